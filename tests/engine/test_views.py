"""What a hook gets can be read and not changed: a plugin that tries is named, or has no effect."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import attrs
import pytest

from paravirt_mm import (
    Boot,
    HandOver,
    Map,
    Outcome,
    Promise,
    RangeSet,
    Run,
    Scenario,
    Source,
    Step,
    StepResult,
    TableDemand,
    TablePages,
    bundled,
    hookimpl,
)
from paravirt_mm.testing import AscendingAllocator, registry_with

Attempt = Callable[[Any], object]
MACHINE = "qemu-512m"
REFUSED: dict[str, Attempt] = {
    "reserve memory": lambda boot: boot.memblock.reserve(0, 1 << 32),
    "adopt everything": lambda boot: boot.tree.adopt(1, 0, boot.machine.map_limit),
    "adopt a mapping": lambda boot: boot.tree.adopt_mapping(0, boot.machine.map_limit),
    "commit a plan": lambda boot: boot.tree.commit(boot.tree.plan(0, 4096, 1), 0, []),
    "begin a new tree": lambda boot: boot.tree.start_anew(5),
    "flip pages": lambda boot: boot.ledger.set_readonly(0, 1, readonly=True),
    "the engine's state": lambda boot: boot._now.memblock.reserve(0, 1 << 32),
    "another machine": lambda boot: setattr(boot, "machine", None),
    "another memblock": lambda boot: setattr(boot, "memblock", None),
    "no state": lambda boot: delattr(boot, "state"),
    "a note of its own": lambda boot: setattr(boot, "seen", 1),
    "an entry of the map": lambda boot: setattr(boot.machine.memory_map.entries[0], "end", 0),
    "another map": lambda boot: setattr(boot.machine, "memory_map", None),
    "RAM of the map itself": lambda boot: boot.machine.memory_map.ram_pages().discard(0, 1 << 32),
    "more entries": lambda boot: boot.machine.memory_map.entries.append(1),
    "tables of the platform": lambda boot: boot.state.tables.update({1: ((0, 1 << 40),)}),
    "the ranges behind memblock": lambda boot: boot.memblock._reserved.add(0, 1 << 32),
    "the ranges behind the tree": lambda boot: boot.tree._tables[1].set(0, 1 << 40, 0),
    "another level of the tree": lambda boot: boot.tree._leaves.update({1: RangeSet()}),
    "what can be filled": lambda boot: boot.fillable(Map(0, 4096, skip_empty_level=3))[1].discard(
        0, 1 << 48
    ),
    "tables of a batch": lambda boot: boot.waiting[0].spans.update({1: ()}),
    "counts of a batch": lambda boot: boot.waiting[0].by_level.clear(),
    "tables of a plan": lambda boot: boot.tree.plan(0, 4096, 1).spans.clear(),
}
HARMLESS: dict[str, Attempt] = {
    "RAM of the map": lambda boot: RangeSet(boot.machine.memory_map.ram_pages()).discard(
        0, 1 << 32
    ),
    "what is mapped": lambda boot: boot.tree.mapped().add(0, 1 << 40),
    "pieces": lambda boot: boot.split(Map(0, 1 << 22)).clear(),
    "reservation": lambda boot: [*boot.reservation, 1],
}


@attrs.frozen
class Cheat(AscendingAllocator):
    """Builds tables that wait, tries something, then goes on as if nothing had been."""

    attempt: str = ""

    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
        steps = super().pvmm_map_steps(boot)
        yield next(steps)
        {**REFUSED, **HARMLESS}[self.attempt](boot)
        yield from steps


@attrs.frozen
class Waits(Cheat):
    """As `Cheat`, after a step whose tables wait."""

    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
        yield Map(16 << 20, 18 << 20, hand_over=HandOver.LATER)
        REFUSED[self.attempt](boot)


def _run(name: str, attempt: str, backend: str = "native") -> Run:
    registry = registry_with(cheat=Cheat, waits=Waits, ascending=AscendingAllocator)
    allocator = f"{name}:attempt={attempt}" if attempt else name
    return Scenario.of(bundled(MACHINE), allocator, backend).run(registry)


@pytest.mark.parametrize("attempt", REFUSED)
def test_a_plugin_that_changes_what_it_reads_is_named(attempt: str) -> None:
    name = "waits" if "of a batch" in attempt else "cheat"
    run = _run(name, attempt)
    assert run.verdict.outcome is Outcome.ERROR
    assert run.verdict.detail.startswith(f"plugin {name} "), run.verdict
    assert "Error" in run.verdict.detail


@pytest.mark.parametrize("attempt", HARMLESS)
def test_what_is_given_away_is_a_copy(attempt: str) -> None:
    run, honest = _run("cheat", attempt), _run("ascending", "")
    assert run.verdict.outcome is Outcome.OK
    assert run.figures == honest.figures
    assert [type(event) for event in run.trace] == [type(event) for event in honest.trace]


def test_a_finished_run_cannot_be_changed() -> None:
    run = _run("ascending", "")
    with pytest.raises(AttributeError):
        run.trace.events = ()  # type: ignore[misc]
    with pytest.raises(TypeError):
        run.figures["tables"] = 0  # type: ignore[index]


@attrs.frozen
class Escape(AscendingAllocator):
    """Takes the highest free pages at once, mapped or not, and says that it had set them aside."""

    source: str = "reservation"

    @hookimpl
    def pvmm_allocate_tables(
        self, boot: Boot, step: Step, demand: TableDemand
    ) -> Sequence[TablePages]:
        skip, answer = boot.tables_made, []
        for run in boot.memblock.pages_top_down(0, boot.machine.map_limit, skip + demand.count):
            taken = run.tail(min(skip, run.count))
            skip -= min(skip, run.count)
            answer += [TablePages(taken, Source(self.source))] if taken.count else []
        return answer


@pytest.mark.parametrize(("source", "rule"), [("memblock", 2), ("reservation", 1)])
@pytest.mark.parametrize("backend", ["native", "xen"])
def test_a_page_is_what_it_is_said_to_be(backend: str, source: str, rule: int) -> None:
    """Unreachable pages are found, also where they are called a reservation that nobody made."""
    registry = registry_with(escape=Escape)
    machine = bundled("lenovo-x230-8g")
    run = Scenario.of(machine, f"escape:source={source}", backend).run(registry)
    assert run.verdict.outcome is Outcome.VIOLATION
    assert run.findings[0].rule == rule


@attrs.frozen
class Stealing(AscendingAllocator):
    """Goes behind every view to take memory that nobody is told of."""

    @hookimpl
    def pvmm_promise(self, boot: Boot) -> Promise:
        promise = super().pvmm_promise(boot)
        reserved: Any = boot.memblock._reserved
        reserved._edges += (reserved.end + (1 << 20), reserved.end + (2 << 20))
        return promise


def test_memory_that_nobody_took_is_not_reserved() -> None:
    registry = registry_with(stealing=Stealing)
    run = Scenario.of(bundled(MACHINE), "stealing", "native").run(registry)
    assert run.verdict.outcome is Outcome.VIOLATION
    assert "nobody took it" in run.verdict.detail
