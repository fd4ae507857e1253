"""What each requirement of the kit asks for, at its edge: of answers and runs that are given to it,
not made by a plugin.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from hypothesis import Phase, settings

from paravirt_mm import (
    GIB,
    MIB,
    Boot,
    BootState,
    CpuFeatures,
    Machine,
    Outcome,
    Promise,
    Verdict,
    hookimpl,
)
from paravirt_mm.engine.trace import MadeReadonly, TablesAllocated, TablesAttached, Trace
from paravirt_mm.testing import (
    AllocatorConformance,
    AscendingAllocator,
    Expected,
    PlainPlatform,
    TypingPlatform,
    generate,
)
from paravirt_mm.testing.conformance import MACHINES, _drawn, _large_machine
from tests.testing.suites import allocator_suite, backend_suite, refused

SPECS = ("mine", "partner")


class Events(list[Any]):
    """A trace of anything, which began with ``start`` or, without, never did."""

    def __init__(self, *events: Any, **start: Any) -> None:
        super().__init__(events)
        self.begun = bool(start)
        self.start = SimpleNamespace(**start)


def ended(
    outcome: Outcome = Outcome.OK, trace: Any = (), findings: Any = (), **figures: Any
) -> Any:
    verdict = Verdict(outcome, "" if outcome is Outcome.OK else "why")
    return SimpleNamespace(verdict=verdict, trace=trace, findings=findings, figures=figures)


def handed(suite: Any, *runs: Any) -> list[tuple[str, ...]]:
    """Let the runs of a suite end in these; return what it will have asked for."""
    asked: list[tuple[str, ...]] = []

    def run(machine: Machine, spec: str, partner: str) -> Any:
        asked.append((machine.name, spec, partner))
        return runs[len(asked) - 1]

    suite.run = run
    return asked


# -- the plugin itself -----------------------------------------------------------------------------


def test_what_may_be_declined_is_told() -> None:
    suite = allocator_suite(AscendingAllocator)
    type(suite).declines = {"any_machine": "one machine", "work_is_done_in_runs": "slow"}
    suite.test_declines_what_may_be_declined()
    for declines in ({"run_is_right": "no"}, {"any_machine": "one machine", "run_is_right": "no"}):
        type(suite).declines = declines
        refused(
            suite.test_declines_what_may_be_declined,
            words="'run_is_right' cannot be declined, but any_machine, work_is_done_in_runs",
        )


def test_expectations_name_allocator_and_backend_in_their_roles() -> None:
    allocator = allocator_suite(AscendingAllocator, options=("", "first_step=2M"))
    backend = backend_suite(PlainPlatform)
    for suite, good, wrong in (
        (
            allocator,
            ("mine:first_step=2M", "typing_platform"),
            ("typing_platform", "mine:first_step=2M"),
        ),
        (backend, ("block", "mine"), ("mine", "block")),
    ):
        for pair, speaks in ((good, True), (wrong, False)):
            expected = Expected("panic", "once", *pair, machine="generated-1-11")
            type(suite).expected = (expected,)
            if speaks:
                suite.test_expectations_speak_of_something()
            else:
                refused(
                    suite.test_expectations_speak_of_something,
                    words=f"stale, no scenario matches: {expected}",
                )


def parameters(suite: Any, *names: str) -> dict[str, list[str]]:
    filled: dict[str, list[str]] = {}
    asks: Any = SimpleNamespace(fixturenames=names, parametrize=filled.__setitem__)
    suite.pytest_generate_tests(asks)
    return filled


def test_tests_are_filled_with_what_they_ask_for() -> None:
    suite = allocator_suite(AscendingAllocator, options=("", "first_step=2M"))
    every = {
        "spec": ["mine", "mine:first_step=2M"],
        "partner": ["plain_platform", "typing_platform"],
        "machine_name": list(MACHINES),
    }
    assert parameters(suite, *every) == every
    for name, values in every.items():
        assert parameters(suite, name, "request") == {name: values}
    assert parameters(suite, "request") == {}


@attrs.frozen
class Unsaid(AscendingAllocator):
    """Says nothing of one hook."""

    @hookimpl
    def pvmm_promise(self, boot: Boot) -> Promise:
        return AscendingAllocator.pvmm_promise(self, boot)


@attrs.frozen
class Same(AscendingAllocator):
    """Two of a kind that differ."""

    number: int = attrs.field(init=False, factory=iter(range(100)).__next__)


@attrs.frozen
class Undescribed(AscendingAllocator):
    __doc__ = ""


def test_a_plugin_that_is_wrong_in_itself_is_told_so() -> None:
    words = allocator_suite(Unsaid).test_plugin_says_what_it_is
    refused(words, words="pvmm_promise has no docstring")
    refused(allocator_suite(Undescribed).test_plugin_says_what_it_is)
    refused(allocator_suite(Same).test_options_are_accepted, "mine")
    refused(allocator_suite(AscendingAllocator, name="no name").test_plugin_is_usable)
    refused(backend_suite(AscendingAllocator).test_plugin_is_usable)


def test_options_under_test_are_those_of_the_spec() -> None:
    """A plugin that equals itself only with its default is found only with another."""

    @attrs.define(eq=False)
    class Odd(AscendingAllocator):
        """Equal while it is as it comes."""

        def __eq__(self, other: object) -> bool:
            return self.first_step == 16 * MIB

    allocator_suite(Odd).test_options_are_accepted("mine")
    refused(allocator_suite(Odd).test_options_are_accepted, "mine:first_step=2M")


# -- runs ------------------------------------------------------------------------------------------


def test_a_run_ends_well_or_as_expected_or_is_excused() -> None:
    name = "generated-1-2"
    good = allocator_suite(AscendingAllocator).run(MACHINES[name](), *SPECS[:1], "plain_platform")
    panic = attrs.evolve(good, verdict=Verdict(Outcome.PANIC, "why"))
    unbegun = attrs.evolve(good, verdict=Verdict(Outcome.REJECTED, "why"), trace=Trace())
    suite = allocator_suite(AscendingAllocator)
    for run in (good, unbegun):
        assert handed(suite, run) == []
        suite.test_run_is_right("mine", "plain_platform", name)
    asked = handed(suite, panic)
    refused(
        suite.test_run_is_right, "mine", "plain_platform", name,
        words=f"mine under plain_platform on {name}: panic: why",
    )  # fmt: skip
    assert asked == [(name, "mine", "plain_platform")]
    handed(suite, panic)
    type(suite).expected = (Expected("panic: why", "it is small"),)
    suite.test_run_is_right("mine", "plain_platform", name)


@pytest.mark.parametrize(
    ("third", "words"),
    [
        (ended(trace="abc", tables=3), None),
        (ended(Outcome.PANIC, trace="abc", tables=3), ""),
        (ended(trace="abc", tables=4), ""),
        (ended(trace="abx", tables=3), "event 2 differs:\n'c'\n'x'"),
        (ended(trace="ab", tables=3), "event 2 differs:\n'c'\nno more"),
        (ended(trace="abcd", tables=3), "event 3 differs:\nno more\n'd'"),
        (ended(trace=["y" * 400, "b", "c"], tables=3), f"\n'a'\n'{'y' * 299}"),
    ],
)
def test_a_scenario_is_repeated_after_another_machine(third: Any, words: str | None) -> None:
    suite = allocator_suite(AscendingAllocator)
    asked = handed(suite, ended(trace="abc", tables=3), ended(Outcome.PANIC), third)
    if words is None:
        suite.test_run_is_repeatable(*SPECS)
    else:
        refused(suite.test_run_is_repeatable, *SPECS, words=words)
    machines = ["generated-2-0", "generated-2-1", "generated-2-0"]
    assert asked == [(machine, *SPECS) for machine in machines]


FINDING = "invariant 1 is broken"


@pytest.mark.parametrize(
    ("run", "words"),
    [
        *((ended(each), None) for each in (Outcome.OK, Outcome.PANIC, Outcome.REJECTED)),
        (ended(Outcome.ERROR), "error: why"),
        (ended(Outcome.VIOLATION, findings=(FINDING, "more")), FINDING),
    ],
)
def test_on_a_drawn_machine_no_rule_breaks_and_nothing_fails(run: Any, words: str | None) -> None:
    options = ("", "first_step=2M")
    suite = allocator_suite(AscendingAllocator, options=options, partners=("one", "other"))
    asked = handed(suite, run)
    machine = MACHINES["qemu-512m"]()
    wanted: Iterator[tuple[str, Any]] = iter(
        [
            ("machines()", machine),
            ("sampled_from(['mine', 'mine:first_step=2M'])", "mine"),
            ("sampled_from(['one', 'other'])", "other"),
        ]
    )

    def draw(strategy: object) -> Any:
        name, drawn = next(wanted)
        assert repr(strategy) == name
        return drawn

    test: Any = AllocatorConformance.test_any_machine
    arguments = suite, SimpleNamespace(draw=draw)
    if words is None:
        test.hypothesis.inner_test(*arguments)
    else:
        refused(test.hypothesis.inner_test, *arguments, words=words)
    assert asked == [("qemu-512m", "mine", "other")]


def test_what_is_drawn_may_take_its_time_and_is_made_small() -> None:
    """What explains a failure takes too long; all that finds and shrinks one is kept."""
    assert set(_drawn.phases) == set(settings().phases) - {Phase.explain}
    assert (_drawn.max_examples, _drawn.deadline) == (15, None)


# -- allocators ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (ended(trace=range(19_999)), None),
        (ended(Outcome.PANIC), None),
        (ended(trace=range(20_000)), "20000 events"),
        (ended(Outcome.ERROR), ""),
    ],
)
def test_a_large_machine_takes_less_than_20_000_events(run: Any, words: str | None) -> None:
    suite = allocator_suite(AscendingAllocator)
    asked = handed(suite, run)
    if words is None:
        suite.test_work_is_done_in_runs(*SPECS)
    else:
        refused(suite.test_work_is_done_in_runs, *SPECS, words=words)
    assert asked == [("large", *SPECS)]


def test_the_large_machine_is_a_pc_of_4_tib() -> None:
    """With the two holes of a PC, below 1 MiB and below 4 GiB, and every page size."""
    large = _large_machine()
    ram = [(0x1000, 0x9F000), (MIB, 3 * GIB), (4 * GIB, 4096 * GIB)]
    assert list(large.memory_map.ram()) == ram
    assert large.features.largest_level(large.mode) == 3


def test_the_same_memory_is_promised_wherever_it_begins() -> None:
    partners = ("a", "b", "c")
    suite = allocator_suite(AscendingAllocator, partners=partners)
    first, second = (ended(trace=Events(promised=((0, end),))) for end in (MIB, 2 * MIB))
    unbegun = ended(Outcome.REJECTED, trace=Events())
    for runs in ([first] * 3, [unbegun] * 3, [unbegun, second, second]):
        asked = handed(suite, *runs)
        suite.test_same_memory_on_every_platform("mine")
        assert asked == [("generated-3-0", "mine", partner) for partner in partners]
    for runs in ([first, first, second], [second, unbegun, first]):
        handed(suite, *runs)
        refused(suite.test_same_memory_on_every_platform, "mine")


# -- backends --------------------------------------------------------------------------------------


def batch(number: int) -> Any:
    return SimpleNamespace(index=number)


def table(number: int, *kinds: Any) -> list[Any]:
    """What happens to a table, in this order."""
    rest = {MadeReadonly: (None,), TablesAttached: (None, ())}
    return [kind(batch(number), *rest.get(kind, ())) for kind in kinds]


RIGHT = (TablesAllocated, MadeReadonly, TablesAttached)


def typed(*tables: list[Any], flips: int = 1) -> Any:
    events = Events(*(event for events in tables for event in events), boot=TYPED)
    return ended(trace=events, flips_per_table=flips)


TYPED = SimpleNamespace(typed=True)
UNTYPED = SimpleNamespace(typed=False)
FOUR = [f"generated-4-{number}" for number in range(4)]
FIVE = [f"generated-5-{number}" for number in range(4)]


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (ended(Outcome.PANIC), None),
        (ended(trace=Events(boot=UNTYPED), flips=0), None),
        (ended(trace=Events(boot=UNTYPED), flips=1), ""),
        (typed(table(0, *RIGHT), table(7, *RIGHT)), None),
        (typed(table(0, *RIGHT), flips=0), ""),
        (typed(table(0, *RIGHT), flips=2), None),
        (
            typed(table(0, *RIGHT), table(7, TablesAllocated, TablesAttached, MadeReadonly)),
            "attached before it was made read-only",
        ),
        (typed(table(0, *RIGHT), table(7, TablesAllocated)), ""),
        (typed(table(0, *RIGHT), table(7, MadeReadonly, TablesAttached)), ""),
    ],
)
@pytest.mark.parametrize("place", range(4))
def test_where_pages_are_typed_each_table_is_handed_over(
    run: Any, words: str | None, place: int
) -> None:
    """In each of the four runs, whatever became of the others."""
    suite = backend_suite(TypingPlatform)
    runs = [
        ended(Outcome.PANIC),
        ended(trace=Events(boot=UNTYPED), flips=0),
        typed(table(3, *RIGHT)),
    ]
    runs.insert(place, run)
    asked = handed(suite, *runs)
    if words is None:
        suite.test_typed_pages_are_handed_over(*SPECS)
        assert asked == [(name, *SPECS) for name in FOUR]
    else:
        refused(suite.test_typed_pages_are_handed_over, *SPECS, words=words)
        assert asked == [(name, *SPECS) for name in FOUR[: place + 1]]


def sized(features: CpuFeatures, large: int, huge: int, outcome: Outcome = Outcome.OK) -> Any:
    trace = Events(boot=SimpleNamespace(features=features))
    return ended(outcome, trace=trace, mapped_large=large, mapped_huge=huge)


SMALL, LARGE, HUGE = (CpuFeatures(pse=p, gbpages=g) for p, g in ((0, 0), (1, 0), (1, 1)))


@pytest.mark.parametrize(
    ("features", "large", "huge", "right"),
    [
        (SMALL, 0, 0, True),
        (SMALL, 1, 0, False),
        (SMALL, 0, 1, False),
        (LARGE, 1, 0, True),
        (LARGE, 0, 1, False),
        (LARGE, 1, 1, False),
        (HUGE, 1, 1, True),
    ],
)
def test_only_page_sizes_on_offer_are_used(
    features: CpuFeatures, large: int, huge: int, right: bool
) -> None:
    """On a machine of x86-64, the fourth of four; a run that did not end well is no matter."""
    suite = backend_suite(TypingPlatform)
    machines = list(generate(4, seed=5))
    number = next(n for n, one in enumerate(machines) if 3 in one.mode.large_levels)
    runs = [sized(SMALL, 1, 1, Outcome.PANIC), *[sized(SMALL, 0, 0)] * 2]
    runs.insert(number, sized(features, large, huge))
    asked = handed(suite, *runs)
    if right:
        suite.test_large_pages_are_hidden_or_taken(*SPECS)
        assert asked == [(name, *SPECS) for name in FIVE]
    else:
        refused(suite.test_large_pages_are_hidden_or_taken, *SPECS)


def sound(**changes: Any) -> Any:
    """Ask of the boot state of a right platform, changed in one thing, on a machine of x86-64."""

    @attrs.frozen
    class Changed(TypingPlatform):
        """Differs."""

        @hookimpl
        def pvmm_boot_state(self, machine: Machine) -> Any:
            state = TypingPlatform.pvmm_boot_state(self, machine)
            assert isinstance(state, BootState)
            return attrs.evolve(state, **changes)

    return backend_suite(Changed).test_boot_state_is_sound


def test_the_running_kernel_can_be_written_but_for_its_tables() -> None:
    """Tables within the kernel need not be mapped; the platform says where the kernel lies."""
    machine = MACHINES["qemu-512m"]()
    start, end = machine.kernel.start, machine.kernel.end
    first = ((start, start + 0x1000),)
    rest = ((start + 0x1000, end),)
    sound(mapped=rest, boot_tables=first, reserved=first)("mine", "qemu-512m")
    refused(sound(mapped=rest), "mine", "qemu-512m")
    there = attrs.evolve(machine.kernel, start=start + 0x1000)
    sound(mapped=rest, kernel=there)("mine", "qemu-512m")


@pytest.mark.parametrize(
    ("level", "right"), [(0, False), (1, True), (2, True), (3, True), (4, False)]
)
def test_boot_tables_may_be_of_each_level_below_the_root(level: int, right: bool) -> None:
    asked = sound(tables={1: ((0, MIB),), level: ((0, MIB),)})
    if right:
        asked("mine", "qemu-512m")
    else:
        refused(asked, "mine", "qemu-512m")


@pytest.mark.parametrize(
    ("typed", "tables", "right"),
    [(True, True, True), (True, False, False), (False, True, True), (False, False, True)],
)
def test_who_types_pages_has_boot_tables(typed: bool, tables: bool, right: bool) -> None:
    asked = sound(typed=typed, **({} if tables else {"boot_tables": ()}))
    if right:
        asked("mine", "qemu-512m")
    else:
        refused(asked, "mine", "qemu-512m")
