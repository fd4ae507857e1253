"""Allocators and backends that each break one rule: a contract error names the plugin, the hook and
the value, a rule of the run finds it, or the kit does.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import repeat
from typing import Any

import attrs
import pytest

from paravirt_mm import (
    GIB,
    MIB,
    ActivateRoot,
    AttachTables,
    BootState,
    Cost,
    CpuFeatures,
    HandOver,
    HandOverTables,
    Map,
    NewRoot,
    Outcome,
    PageRun,
    Promise,
    Refusal,
    Run,
    Scenario,
    Source,
    TablePages,
    bundled,
    hookimpl,
)
from paravirt_mm.testing import (
    AscendingAllocator,
    BlockAllocator,
    PlainPlatform,
    TypingPlatform,
    registry_with,
)
from tests.testing.suites import allocator_suite, backend_suite

GOOD = AscendingAllocator()


def made(base: type[Any], **hooks: Callable[..., Any]) -> type[Any]:
    """Return a plugin class like ``base`` but for some hooks, given as functions without self."""

    def method(name: str, function: Callable[..., Any]) -> Any:
        names = function.__code__.co_varnames[: function.__code__.co_argcount]
        source = f"def {name}(self, {', '.join(names)}): return function({', '.join(names)})"
        namespace: dict[str, Any] = {"function": function}
        exec(source, namespace)  # noqa: S102  # a hook's parameters are its signature
        namespace[name].__doc__ = "x"
        return hookimpl(namespace[name])

    members = {f"pvmm_{name}": method(f"pvmm_{name}", hook) for name, hook in hooks.items()}
    return attrs.frozen(type("Culprit", (base,), {"__doc__": "Culprit.", **members}))


def tables(*parts: Any) -> Callable[..., Any]:
    return lambda demand: list(parts)


def given(run: PageRun, source: Any = Source.MEMBLOCK) -> Any:
    return TablePages(run, source)


def ram(boot: Any) -> tuple[tuple[int, int], ...]:
    return tuple(boot.memblock.memory(0, boot.machine.map_limit))


def steps(change: Callable[[Any], Any], *, before: Any = (), after: Any = ()) -> Callable[..., Any]:
    def hook(boot: Any) -> Any:
        for step in before:
            yield step
        for step in GOOD.pvmm_map_steps(boot):
            yield from iter_steps(*change(step))
        for step in after:
            yield step

    return hook


def maps(**fields: Any) -> Callable[..., Any]:
    return steps(lambda step: [attrs.evolve(step, **fields) if isinstance(step, Map) else step])


def again(boot: Any, demand: Any) -> Any:
    page = next(PageRun.of_span(*span) for span in sorted(boot.free_reachable(MIB, GIB))).head(1)
    return [given(page)] * demand.count


def good_pages(boot: Any, demand: Any) -> Any:
    return GOOD.pvmm_allocate_tables(boot, Map(0, 4096), demand)


def relabelled(source: Any) -> Callable[..., Any]:
    return lambda boot, demand: [given(part.run, source) for part in good_pages(boot, demand)]


ALLOCATORS: dict[str, tuple[type[Any], str]] = {
    name: (made(AscendingAllocator, **hooks), words)
    for name, (hooks, words) in {
        "one page again and again": ({"allocate_tables": again}, "becomes a table twice"),
        "pages beyond all memory": (
            {"allocate_tables": lambda demand: [given(PageRun(1 << 60, demand.count))]},
            "TablePages.run must hold pages of",
        ),
        "negative pages": (
            {"allocate_tables": lambda demand: [given(PageRun(-5, demand.count))]},
            "TablePages.run must hold pages of",
        ),
        "every second page": (
            {"allocate_tables": lambda demand: [given(PageRun(0x200, demand.count, 2))]},
            "TablePages.run.step must be 1 or -1",
        ),
        "half pages": (
            {"allocate_tables": lambda demand: [given(PageRun(512.0, demand.count))]},
            "TablePages.run must hold whole numbers",
        ),
        "pages of the kernel": (
            {"allocate_tables": lambda boot, demand: [
                given(PageRun((boot.kernel.start >> 12) + 4 + boot.tables_made, demand.count))]},
            "taken by something else",
        ),
        "pages of a hole": (
            {"allocate_tables": lambda boot, demand: [
                given(PageRun(0xA0 + boot.tables_made, demand.count))]},
            "is not RAM",
        ),
        "no pages": ({"allocate_tables": tables()}, "gave 0 pages where"),
        "None": ({"allocate_tables": lambda demand: None}, "gave 0 pages where"),
        "text": ({"allocate_tables": lambda demand: "pages"}, "not a sequence: 'pages'"),
        "numbers": ({"allocate_tables": tables(1)}, "what it gives is not TablePages: 1"),
        "endless": (
            {"allocate_tables": lambda demand: repeat(given(PageRun(512, 0)))},
            "more than",
        ),
        "brk that is none": ({"allocate_tables": relabelled(Source.BRK)}, "said to be brk is not"),
        "never set aside": (
            {"allocate_tables": relabelled(Source.RESERVATION)}, "said to be set aside is not"),
        "source as text": (
            {"allocate_tables": relabelled("memblock")}, "TablePages.source is not a Source"),
        "promise of nothing": (
            {"promise": lambda boot: Promise(()), "map_steps": lambda boot: iter_steps()},
            "RAM that the kernel must reach is not promised",
        ),
        "promise of the kernel alone": (
            {"promise": lambda boot: Promise(((16 * MIB, 64 * MIB),)),
             "map_steps": lambda boot: iter_steps(Map(16 * MIB, 64 * MIB))},
            "RAM that the kernel must reach is not promised",
        ),
        "promise twice over": (
            {"promise": lambda boot: Promise(ram(boot) * 2)}, "must ascend and not overlap"),
        "promise of a list": ({"promise": lambda boot: list(ram(boot))}, "is not a Promise"),
        "promise of a generator": (
            {"promise": lambda boot: Promise(boot.memblock.memory(0, GIB))}, "is not a tuple"),
        "brk below nothing": (
            {"promise": lambda boot: Promise(ram(boot), brk_pages=-4)},
            "Promise.brk_pages is not in 0..32768: -4",
        ),
        "a million pages of brk": (
            {"promise": lambda boot: Promise(ram(boot), brk_pages=10**6)},
            "Promise.brk_pages is not in 0..32768: 1000000",
        ),
        "more than it promised": (
            {"promise": lambda boot: Promise(ram(boot)[1:])}, "must reach is not promised"),
        "backward range": (
            {"map_steps": steps(lambda step: [step], before=[Map(2 * MIB, MIB)])},
            "Map(start, end) must be 0 <= start < end",
        ),
        "range of halves": ({"map_steps": maps(start=0.5)}, "pair of whole numbers"),
        "unaligned range": ({"map_steps": maps(start=0x1001)}, "begin and end at pages"),
        "beyond the address space": (
            {"map_steps": steps(lambda step: [step], after=[Map(1 << 60, (1 << 60) + MIB)])},
            "Map(start, end) must be 0 <= start < end",
        ),
        "promoted sideways": ({"map_steps": maps(promote="sideways")}, "is not a Promote"),
        "handed over some day": ({"map_steps": maps(hand_over="some day")}, "is not a HandOver"),
        "level of nowhere": (
            {"map_steps": maps(skip_empty_level=-7)}, "Map.skip_empty_level is not in 0..5: -7"),
        "strange step": ({"map_steps": steps(lambda step: ["all"])}, "is not a step: 'all'"),
        "list of steps": ({"map_steps": lambda boot: [Map(0, 4096)]}, "is not a generator"),
        "forgot to yield": ({"map_steps": lambda boot: None}, "is not a generator of steps: None"),
        "never ends": (
            {"map_steps": lambda boot: (HandOverTables() for _ in iter(int, 1))},
            "10000 steps in a row did nothing",
        ),
        "never attaches": ({"map_steps": maps(hand_over=HandOver.LATER)}, "was never attached"),
        "never activates": (
            {"map_steps": steps(
                lambda step: [] if isinstance(step, ActivateRoot) else [step],
                before=[NewRoot()])},
            "was never attached",
        ),
        "attaches first": (
            {"map_steps": steps(
                lambda step: [attrs.evolve(step, hand_over=HandOver.LATER)]
                if isinstance(step, Map) else [],
                after=[AttachTables(), HandOverTables(), ActivateRoot()])},
            "the child is writable",
        ),
        "writes into memblock": (
            {"promise": lambda boot: boot.memblock.reserve(0, 4096)}, "has no attribute 'reserve'"),
        "writes into the tree": (
            {"promise": lambda boot: boot.tree.adopt_mapping(0, 4096)}, "has no attribute"),
        "sets an attribute": (
            {"promise": lambda boot: setattr(boot, "scratch", 1)}, "AttributeError"),
        "raises": ({"allocate_tables": lambda demand: {}["no key"]}, "KeyError: 'no key'"),
        "recursion": ({"promise": lambda boot: recurse()}, "RecursionError"),
    }.items()
}  # fmt: skip


def iter_steps(*some: Any) -> Any:
    yield from (step for step in some)  # a list could not be sent results


def recurse() -> Any:
    return recurse()


def state(machine: Any, **fields: Any) -> Any:
    return attrs.evolve(PlainPlatform().pvmm_boot_state(machine), **fields)


def typed(machine: Any, **fields: Any) -> Any:
    made_state = TypingPlatform().pvmm_boot_state(machine)
    return attrs.evolve(made_state, **fields) if isinstance(made_state, BootState) else made_state


BACKENDS: dict[str, tuple[type[Any], str]] = {
    name: (made(base, **hooks), words)
    for name, (base, hooks, words) in {
        "negative cost": (
            TypingPlatform, {"make_readonly": lambda tables: Cost({"x": -1})},
            "Cost.hypercalls['x'] is not in 0"),
        "absurd cost": (
            TypingPlatform, {"make_readonly": lambda tables: Cost({"x": 10**30})}, "is not in 0"),
        "cost in words": (
            TypingPlatform, {"make_readonly": lambda tables: Cost({"x": "many"})},
            "Cost.hypercalls['x'] must be a whole number: 'many'"),
        "no number": (
            TypingPlatform, {"make_readonly": lambda tables: Cost(batches=float("nan"))},
            "Cost.batches must be a whole number"),
        "pins what there is not": (
            TypingPlatform, {"pin_tables": lambda tables: Cost(pinned={1: tables.count + 1})},
            "Cost.pinned[1] is not in 0"),
        "pins level nine": (
            TypingPlatform, {"pin_tables": lambda tables: Cost(pinned={9: 1})},
            "a level of Cost.pinned is not in 1..4: 9"),
        "a number for a cost": (
            TypingPlatform, {"make_readonly": lambda tables: 7},
            "is not a Cost, a Refusal or None"),
        "true": (
            TypingPlatform, {"make_readonly": lambda tables: True},
            "is not a Cost, a Refusal or None"),
        "a class for a refusal": (
            PlainPlatform, {"write_entries": lambda write: Refusal},
            "is not a Cost, a Refusal or None"),
        "refusal of nothing": (
            PlainPlatform, {"boot_state": lambda machine: Refusal("", 0)},
            "Refusal.code (a negative errno) is not in -4095..-1: 0"),
        "never read-only": (
            TypingPlatform, {"make_readonly": lambda tables: None}, "a table is writable"),
        "read-only outside": (
            TypingPlatform, {"map_readonly": lambda start, end: [(end, end + 4096)]},
            "a read-only range must be"),
        "read-only unsorted": (
            TypingPlatform,
            {"map_readonly": lambda start, end: [(end - 4096, end), (start, start + 4096)]},
            "must ascend and not overlap"),
        "all read-only": (
            TypingPlatform, {"map_readonly": lambda start, end: [(start, end)]},
            "read-only in the end, and no table"),
        "tables writable": (
            TypingPlatform, {"map_readonly": lambda start, end: []}, "is mapped writable"),
        "no state": (PlainPlatform, {"boot_state": lambda machine: None}, "is not a BootState"),
        "negative state": (
            PlainPlatform, {"boot_state": lambda machine: state(machine, mapped=((-4096, 3),))},
            "BootState.mapped must be 0 <= start < end"),
        "backward state": (
            PlainPlatform, {"boot_state": lambda machine: state(machine, mapped=((GIB, MIB),))},
            "BootState.mapped must be 0 <= start < end"),
        "more than the CPU has": (
            PlainPlatform,
            {"boot_state": lambda machine: state(machine, features=CpuFeatures(True, True, True))},
            "a platform cannot add what the CPU lacks"),
        "boot tables anywhere": (
            TypingPlatform, {"boot_state": lambda machine: typed(machine, reserved=())},
            "BootState.boot_tables must be among what is reserved"),
        "forged panic": (
            PlainPlatform, {"activate_cr3": lambda root: panics()},
            "activate_cr3 raised KernelPanic"),
    }.items()
}  # fmt: skip


def panics() -> Any:
    from paravirt_mm import KernelPanic

    raise KernelPanic("forged")


def run_of(plugin: type[Any], partner: type[Any], *, allocator: bool) -> Run:
    registry = registry_with(installed=False, mine=plugin, partner=partner)
    pair = ("mine", "partner") if allocator else ("partner", "mine")
    machine = "qemu-512m" if allocator else "lenovo-x230-8g"
    return Scenario.of(bundled(machine), *pair).run(registry)


def judged(run: Run, words: str) -> None:
    verdict = run.verdict
    assert verdict.outcome in (Outcome.ERROR, Outcome.VIOLATION, Outcome.REJECTED), verdict
    said = [str(verdict), *map(str, run.findings)]
    assert any(words in text for text in said), said
    if verdict.outcome is Outcome.ERROR:
        assert str(verdict).startswith("error: plugin mine (unregistered): pvmm_")


@pytest.mark.parametrize(("culprit", "words"), ALLOCATORS.values(), ids=ALLOCATORS)
def test_wrong_allocator(culprit: type[Any], words: str) -> None:
    judged(run_of(culprit, TypingPlatform, allocator=True), words)


@pytest.mark.parametrize(("culprit", "words"), BACKENDS.values(), ids=BACKENDS)
def test_wrong_backend(culprit: type[Any], words: str) -> None:
    partner = BlockAllocator if "writable" in words else AscendingAllocator
    judged(run_of(culprit, partner, allocator=False), words)


# -- what one run alone cannot show: the kit finds it ----------------------------------------------


def random_steps(boot: Any) -> Any:
    for step in GOOD.pvmm_map_steps(boot):
        if isinstance(step, Map):
            yield attrs.evolve(step, label=str(random.random()))
        else:
            yield step


SEEN: list[object] = []


def growing_steps(boot: Any) -> Any:
    SEEN.append(boot)
    yield from GOOD.pvmm_map_steps(boot)
    for _ in SEEN:
        yield ActivateRoot()


LAST: list[str] = []


def steps_after_another_machine(boot: Any) -> Any:
    yield from GOOD.pvmm_map_steps(boot)
    for _ in {*LAST} - {boot.machine.name}:
        yield ActivateRoot()
    LAST[:] = [boot.machine.name]


def less_if_typed(boot: Any) -> Promise:
    promised = GOOD.pvmm_promise(boot)
    return Promise(promised.direct_map[1:]) if boot.state.typed else promised


KIT: dict[str, tuple[type[Any], str, tuple[str, ...]]] = {
    "drawn at random": (
        made(AscendingAllocator, map_steps=random_steps),
        "test_run_is_repeatable", ("mine", "plain_platform")),
    "keeps state": (
        made(AscendingAllocator, map_steps=growing_steps),
        "test_run_is_repeatable", ("mine", "plain_platform")),
    "keeps the last machine": (
        made(AscendingAllocator, map_steps=steps_after_another_machine),
        "test_run_is_repeatable", ("mine", "plain_platform")),
    "depends on the platform": (
        made(AscendingAllocator, promise=less_if_typed),
        "test_same_memory_on_every_platform", ("mine",)),
    "types in secret": (
        made(TypingPlatform, boot_state=lambda machine: typed(machine, typed=False)),
        "test_typed_pages_are_handed_over", ("mine", "ascending")),
}  # fmt: skip


@pytest.mark.parametrize(("culprit", "requirement", "arguments"), KIT.values(), ids=KIT)
def test_the_kit_finds_it(culprit: type[Any], requirement: str, arguments: tuple[str, ...]) -> None:
    made_for = allocator_suite if hasattr(culprit, "pvmm_map_steps") else backend_suite
    suite = made_for(culprit)
    with pytest.raises(AssertionError):
        getattr(suite, requirement)(*arguments)
