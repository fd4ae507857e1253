"""What the conformance suites excuse, and that each single thing which they ask for is asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from paravirt_mm import (
    BootState,
    Machine,
    Outcome,
    Refusal,
    Run,
    Verdict,
    __version__,
    bundled,
    default_registry,
    hookimpl,
)
from paravirt_mm.engine.trace import MadeReadonly, TablesAllocated, TablesAttached, Trace
from paravirt_mm.errors import SpecError
from paravirt_mm.invariants.rules import Finding
from paravirt_mm.sources import bundled_machines
from paravirt_mm.testing import (
    AllocatorConformance,
    AscendingAllocator,
    BackendConformance,
    BlockAllocator,
    PlainPlatform,
    TypingPlatform,
    check,
    fixtures,
    registry_with,
)
from paravirt_mm.testing.check import suite_for
from paravirt_mm.testing.conformance import MACHINES, _check_order
from tests.testing.suites import allocator_suite, backend_suite

NAME = "generated-1-2"


@pytest.fixture(scope="module")
def good() -> Run:
    return allocator_suite(AscendingAllocator).run(MACHINES[NAME](), "mine", "typing_platform")


def ended(run: Run, outcome: Outcome, *findings: Finding) -> Run:
    return attrs.evolve(run, verdict=Verdict(outcome, "why"), findings=findings)


def test_right_plugins_pass_what_is_asked_of_them() -> None:
    for suite, partner in (
        (allocator_suite(BlockAllocator), "typing_platform"),
        (backend_suite(TypingPlatform), "block"),
    ):
        suite.test_plugin_is_usable()
        suite.test_plugin_says_what_it_is()
        suite.test_options_are_accepted("mine")
        suite.test_run_is_right("mine", partner, NAME)
        suite.test_run_is_repeatable("mine", partner)
        suite.test_declines_what_may_be_declined()
    backend = backend_suite(TypingPlatform)
    for name in list(MACHINES)[-12:]:
        backend.test_boot_state_is_sound("mine", name)
        backend.test_features_are_only_taken_away("mine", name)
    backend.test_large_pages_are_hidden_or_taken("mine", "block")
    backend.test_typed_pages_are_handed_over("mine", "block")
    allocator_suite(BlockAllocator).test_same_memory_on_every_platform("mine")


def test_specs_are_the_plugin_with_its_options() -> None:
    suite = allocator_suite(AscendingAllocator, options=("", "first_step=2M"))
    assert suite.specs() == ["mine", "mine:first_step=2M"]
    assert suite.partner_specs() == ["plain_platform", "typing_platform"]
    assert allocator_suite(AscendingAllocator, partners=("xen",)).partner_specs() == ["xen"]
    assert allocator_suite(AscendingAllocator, name="").plugin_name() == "ascending_allocator"
    assert suite.registry() is suite.registry()
    assert suite.registry().get("mine").factory is AscendingAllocator
    run = backend_suite(PlainPlatform).run(MACHINES[NAME](), "mine", "block")
    assert (str(run.allocator), str(run.backend)) == ("block", "mine")


def test_the_end_of_a_run_may_be_the_partners_business_alone(good: Run) -> None:
    """A platform that refuses the machine before anything begins, an allocator that gives up; but
    not the reference allocator that never gives up, and never with a finding.
    """
    unbegun = attrs.evolve(good, trace=Trace())
    finding = Finding(1, 0, 0, "is wrong")
    excused = allocator_suite(AscendingAllocator)._excused
    assert excused(ended(unbegun, Outcome.REJECTED), "typing_platform")
    assert not excused(ended(good, Outcome.REJECTED), "typing_platform")
    assert not excused(ended(unbegun, Outcome.PANIC), "typing_platform")
    excused = backend_suite(TypingPlatform)._excused
    assert excused(ended(good, Outcome.PANIC), "block")
    assert not excused(ended(good, Outcome.PANIC), "ascending")
    assert not excused(ended(good, Outcome.PANIC, finding), "block")
    assert not excused(ended(good, Outcome.REJECTED), "block")


# -- boot states -----------------------------------------------------------------------------------


def stating(**changes: Any) -> type[Any]:
    """Return a platform whose boot state differs from a right one."""

    @attrs.frozen
    class Stating(TypingPlatform):
        """Wrong in one thing."""

        @hookimpl
        def pvmm_boot_state(self, machine: Machine) -> Any:
            state = TypingPlatform.pvmm_boot_state(self, machine)
            assert isinstance(state, BootState)
            return attrs.evolve(
                state, **{key: value(state, machine) for key, value in changes.items()}
            )

    return Stating


def moved(begin: int, end: int) -> Any:
    def change(state: BootState, _: Machine) -> Any:
        ((low, high),) = state.boot_tables
        return ((low + begin, high + end),)

    return change


UNSOUND: dict[str, type[Any]] = {
    "tables begin within a page": stating(boot_tables=moved(8, 0)),
    "tables end within a page": stating(boot_tables=moved(0, -8)),
    "tables are empty": stating(boot_tables=lambda s, _: ((s.boot_tables[0][0],) * 2,)),
    "tables are not taken": stating(reserved=lambda *_: ()),
    "some of the tables are not taken": stating(
        reserved=lambda s, _: ((s.reserved[0][0] + 4096, s.reserved[0][1]),)
    ),
    "tables of the root level": stating(tables=lambda s, m: {m.mode.root_level: ((0, 4096),)}),
    "tables of no level": stating(tables=lambda *_: {0: ((0, 4096),)}),
    "the direct map begins within a page": stating(direct_mapped=lambda *_: ((8, 4096),)),
    "the direct map ends within a page": stating(direct_mapped=lambda *_: ((0, 4104),)),
    "the kernel's first page is not mapped": stating(
        mapped=lambda _, m: ((m.kernel.start + 4096, m.kernel.span[1]),)
    ),
    "the kernel's last page is not mapped": stating(
        mapped=lambda _, m: ((m.kernel.start, m.kernel.end - 4096),)
    ),
    "typed without tables": stating(boot_tables=lambda *_: ()),
}


@pytest.mark.parametrize("what", UNSOUND)
def test_an_unsound_boot_state_is_found(what: str) -> None:
    with pytest.raises(AssertionError):
        backend_suite(UNSOUND[what]).test_boot_state_is_sound("mine", NAME)


@pytest.mark.parametrize(
    ("answer", "sound"),
    [
        (Refusal("not here", -1), True),
        (Refusal("not here", 0), False),
        (Refusal("", -22), False),
        ("text", False),
    ],
)
def test_a_machine_may_be_refused_with_words_and_a_code(answer: Any, sound: bool) -> None:
    @attrs.frozen
    class Refuses(PlainPlatform):
        """Refuses."""

        @hookimpl
        def pvmm_boot_state(self, machine: Machine) -> Any:
            return answer

    suite = backend_suite(Refuses)
    for test in (suite.test_boot_state_is_sound, suite.test_features_are_only_taken_away):
        if sound:
            test("mine", NAME)
        else:
            with pytest.raises(AssertionError):
                test("mine", NAME)


@pytest.mark.parametrize("feature", ["pse", "gbpages", "nx"])
def test_each_feature_is_only_taken_away(feature: str) -> None:
    factory = stating(features=lambda _, m: attrs.evolve(m.features, **{feature: True}))
    suite = backend_suite(factory)
    for name in list(MACHINES)[-12:]:
        has = getattr(MACHINES[name]().features, feature)
        if has:
            suite.test_features_are_only_taken_away("mine", name)
        else:
            with pytest.raises(AssertionError):
                suite.test_features_are_only_taken_away("mine", name)


def test_tables_are_read_only_before_they_are_attached(good: Run) -> None:
    _check_order(good)
    events = list(good.trace)
    for kind in (MadeReadonly, TablesAllocated):
        first = next(number for number, one in enumerate(events) if isinstance(one, kind))
        without = attrs.evolve(good, trace=Trace(events[:first] + events[first + 1 :]))
        with pytest.raises(AssertionError):
            _check_order(without)
    late = next(number for number, one in enumerate(events) if isinstance(one, MadeReadonly))
    attached = next(number for number, one in enumerate(events) if isinstance(one, TablesAttached))
    events[late], events[attached] = events[attached], events[late]
    with pytest.raises(AssertionError, match="attached before it was made read-only"):
        _check_order(attrs.evolve(good, trace=Trace(events)))


def test_there_are_machines_of_the_package_and_twelve_made_up() -> None:
    made_up = [f"generated-1-{number}" for number in range(12)]
    assert list(MACHINES) == [*bundled_machines(), *made_up]
    assert all(make().name == name for name, make in MACHINES.items())


# -- what comes with it ----------------------------------------------------------------------------


def header(spec: str | None) -> list[str]:
    config: Any = SimpleNamespace(getoption=lambda name, default=None: spec)
    return fixtures.pytest_report_header(config)


def test_the_report_says_what_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    (head,) = header(None)
    origin = default_registry().found["native"]
    assert head.startswith(f"paravirt-mm {__version__}, API ")
    assert f"native ({origin})" in head
    assert header("mine:x=1") == [head, "paravirt-mm: checks mine:x=1"]
    empty = registry_with(installed=False)
    monkeypatch.setattr(fixtures, "default_registry", lambda: empty)
    assert header(None)[0].endswith(", plugins: none")


def test_scenarios_run_once_a_session_unless_with_a_registry(run_scenario: Any) -> None:
    ask = ("qemu-512m", "incremental", "native")
    assert run_scenario(*ask) is run_scenario(*ask)
    assert run_scenario("qemu-512m", "incremental", "xen") is not run_scenario(*ask)
    anew = run_scenario(*ask, registry=default_registry())
    assert anew is not run_scenario(*ask)
    assert anew.figures == run_scenario(*ask).figures
    machine = bundled("qemu-pae-320m")
    assert run_scenario(machine, "incremental", "native").machine is machine


def test_a_suite_is_made_for_a_spec() -> None:
    found = suite_for("incremental:variant=hpa")
    assert issubclass(found, AllocatorConformance)
    assert (found.name, found.options) == ("incremental", ("variant=hpa",))
    local = suite_for("paravirt_mm.testing.reference:PlainPlatform")
    assert issubclass(local, BackendConformance)
    assert (local.name, local.options) == ("plain_platform", ("",))
    with pytest.raises(SpecError, match="no_such"):
        suite_for("no_such")
    with pytest.raises(pytest.UsageError, match="is an observer"):
        suite_for(f"{__name__}:Watches")


def test_the_suite_that_is_asked_for_is_the_one_that_is_collected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(check, "TestPlugin", None, raising=False)
    asked: dict[str, str | None] = {"--pvmm-plugin": None}
    config: Any = SimpleNamespace(getoption=asked.__getitem__)
    fixtures.pytest_configure(config)
    assert check.TestPlugin is None
    asked["--pvmm-plugin"] = "native"
    fixtures.pytest_configure(config)
    assert (check.TestPlugin.name, check.TestPlugin.__name__) == ("native", "TestPlugin")
    asked["--pvmm-plugin"] = "no_such"
    with pytest.raises(pytest.UsageError, match="no plugin 'no_such'"):
        fixtures.pytest_configure(config)


@attrs.frozen
class Watches:
    """An observer."""

    pvmm_api = AscendingAllocator.pvmm_api

    @hookimpl
    def pvmm_observe(self, event: object) -> None:
        """Watch."""
