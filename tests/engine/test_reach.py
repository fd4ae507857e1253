"""What the kernel can write at which moment: only what a complete, live tree maps."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import ClassVar

import attrs
import pytest

from paravirt_mm import (
    ActivateRoot,
    AttachTables,
    Boot,
    CpuFeatures,
    E820Type,
    HandOver,
    HandOverTables,
    KernelImage,
    Machine,
    Map,
    MemoryMap,
    NewRoot,
    PageRun,
    Promise,
    Scenario,
    Source,
    Span,
    Step,
    StepResult,
    TableDemand,
    TablePages,
    hookimpl,
)
from paravirt_mm.engine.trace import RootActivated, TablesAttached
from paravirt_mm.testing import AscendingAllocator, PlainPlatform, TypingPlatform, registry_with

MIB, GIB, PAGE = 1 << 20, 1 << 30, 4096
SEEN: dict[str, bool] = {}

MACHINE = Machine(
    name="two gigabytes",
    memory_map=MemoryMap.sanitise(
        (low, high, E820Type.RAM) for low, high in [(16 * MIB, 20 * MIB), (GIB, GIB + 6 * MIB)]
    ),
    features=CpuFeatures(pse=True, gbpages=False),
    kernel=KernelImage(16 * MIB, 18 * MIB, 18 * MIB, 18 * MIB + 64 * PAGE),
)


@attrs.frozen
class Watching(AscendingAllocator):
    """Maps with tables from brk and notes, between steps, whether the middle of what it mapped can
    be written.
    """

    @hookimpl
    def pvmm_promise(self, boot: Boot) -> Promise:
        return Promise(((16 * MIB, 20 * MIB), (GIB, GIB + 6 * MIB)), brk_pages=64)

    @hookimpl
    def pvmm_allocate_tables(
        self, boot: Boot, step: Step, demand: TableDemand
    ) -> Sequence[TablePages]:
        return [TablePages(boot.brk_free.head(demand.count), Source.BRK)]

    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
        def look(moment: str) -> None:
            SEEN[moment] = boot.is_reachable(GIB + 2 * MIB, GIB + 4 * MIB)

        yield NewRoot()
        yield Map(16 * MIB, 20 * MIB, hand_over=HandOver.LATER)
        yield HandOverTables()
        yield AttachTables()
        yield ActivateRoot()
        look("not mapped")
        # The first piece needs new tables, which wait. The second fits into one of them and needs
        # none of its own.
        yield Map(GIB, GIB + 2 * MIB, hand_over=HandOver.LATER)
        yield Map(GIB + 2 * MIB, GIB + 6 * MIB, hand_over=HandOver.LATER)
        look("in a table that waits")
        yield HandOverTables()
        look("handed over, not attached")
        yield AttachTables()
        look("attached")


@pytest.mark.parametrize("backend", [PlainPlatform, TypingPlatform])
def test_memory_under_a_waiting_table_cannot_be_written(backend: type) -> None:
    SEEN.clear()
    registry = registry_with(installed=False, watching=Watching, backend=backend)
    run = Scenario.of(MACHINE, "watching", "backend").run(registry)
    assert str(run.verdict) == "ok"
    assert SEEN == {
        "not mapped": False,
        "in a table that waits": False,
        "handed over, not attached": False,
        "attached": True,
    }


@attrs.frozen
class Impatient(Watching):
    """Takes tables from the memory that is not reachable yet."""

    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
        SEEN["before CR3"] = boot.is_reachable(GIB + MIB, GIB + 2 * MIB)
        yield NewRoot()
        yield Map(16 * MIB, 20 * MIB, hand_over=HandOver.LATER)
        yield HandOverTables()
        yield AttachTables()
        yield ActivateRoot()
        SEEN["after CR3"] = boot.is_reachable(GIB + MIB, GIB + 2 * MIB)
        yield Map(GIB, GIB + 6 * MIB)


def test_new_tree_forgets_what_the_boot_tables_mapped() -> None:
    """CR3 decides: memory that only the boot tables mapped is out of reach after the switch."""
    SEEN.clear()
    registry = registry_with(installed=False, watching=Impatient, backend=PlainPlatform)
    run = Scenario.of(MACHINE, "watching", "backend").run(registry)
    assert str(run.verdict) == "ok"
    assert SEEN == {"before CR3": True, "after CR3": False}


@attrs.frozen
class Reloads(Watching):
    """Loads CR3 with the tree that it has since boot."""

    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
        yield Map(GIB, GIB + 6 * MIB)
        yield ActivateRoot()
        SEEN["mapped at boot"] = boot.is_reachable(16 * MIB, 18 * MIB)
        SEEN["mapped since"] = boot.is_reachable(GIB, GIB + 6 * MIB)


def test_the_same_tree_loaded_again_forgets_nothing() -> None:
    SEEN.clear()
    registry = registry_with(installed=False, watching=Reloads, backend=PlainPlatform)
    run = Scenario.of(MACHINE, "watching", "backend").run(registry)
    assert SEEN == {"mapped at boot": True, "mapped since": True}
    # Where no platform has a say, loading CR3 flushes the TLB once, and nobody validates tables.
    assert [event.cost.flushes for event in run.trace.of(RootActivated)] == [1]
    assert {event.validated for event in run.trace.of(TablesAttached)} == {()}


@attrs.frozen
class UsesLivePages(Watching):
    """Takes a table from a 1G page that lies in an attached table, while other tables wait."""

    spans: ClassVar[tuple[Span, ...]] = (
        (16 * MIB, 20 * MIB),
        (4 * GIB, 4 * GIB + 2 * MIB),
        (5 * GIB, 6 * GIB),
        (7 * GIB, 7 * GIB + 2 * MIB),
    )

    @hookimpl
    def pvmm_promise(self, boot: Boot) -> Promise:
        return Promise(self.spans, brk_pages=64)

    @hookimpl
    def pvmm_allocate_tables(
        self, boot: Boot, step: Step, demand: TableDemand
    ) -> Sequence[TablePages]:
        if demand.start == 7 * GIB and boot.is_reachable(5 * GIB, 6 * GIB):
            SEEN["used"] = True
            return [TablePages(PageRun(5 * GIB >> 12, demand.count), Source.MEMBLOCK)]
        return [TablePages(boot.brk_free.head(demand.count), Source.BRK)]

    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
        yield NewRoot()
        yield Map(16 * MIB, 20 * MIB, hand_over=HandOver.LATER)
        yield HandOverTables()
        yield AttachTables()
        yield ActivateRoot()
        yield Map(4 * GIB, 4 * GIB + 2 * MIB, hand_over=HandOver.LATER)
        yield Map(5 * GIB, 6 * GIB, hand_over=HandOver.LATER)
        yield Map(7 * GIB, 7 * GIB + 2 * MIB, hand_over=HandOver.LATER)
        yield HandOverTables()
        yield AttachTables()


def test_entry_of_a_live_table_counts_at_once() -> None:
    """A leaf entry stored into an attached table maps memory now, whatever else still waits."""
    SEEN.clear()
    machine = attrs.evolve(
        MACHINE,
        memory_map=MemoryMap.sanitise((*span, E820Type.RAM) for span in UsesLivePages.spans),
        features=CpuFeatures(pse=True, gbpages=True),
    )
    registry = registry_with(installed=False, watching=UsesLivePages, backend=PlainPlatform)
    run = Scenario.of(machine, "watching", "backend").run(registry)
    assert SEEN == {"used": True}
    assert str(run.verdict) == "ok"
