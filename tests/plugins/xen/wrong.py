"""Deliberately wrong allocators and backends, and what a hypervisor says to each.

Run under a backend that trusts them, so that the trace goes on past what is wrong, and replayed.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any, ClassVar

import attrs

from paravirt_mm import (
    AttachTables,
    Batch,
    Boot,
    BootState,
    Cost,
    E820Type,
    EntryWrite,
    HandOver,
    HandOverTables,
    Machine,
    Map,
    MemoryMap,
    PluginSpec,
    Refusal,
    Registry,
    Run,
    Scenario,
    Step,
    StepResult,
    Way,
    hookimpl,
)
from paravirt_mm_incremental import Incremental
from paravirt_mm_legacy_linear import LegacyLinear
from paravirt_mm_native import Native
from paravirt_mm_xen.backend import Xen
from paravirt_mm_xen.verify import guest_machine

API = 1
GIB = 1 << 30


@attrs.frozen
class AttachesFirst(Incremental):
    """Builds tables that wait, attaches them, and hands them over afterwards."""

    pvmm_api: ClassVar[int] = API

    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
        """Linux's steps, each split in three."""
        steps = self._design.steps(boot)
        result: StepResult | None = None
        try:
            step = next(steps)
            while True:
                if isinstance(step, Map):
                    result = yield attrs.evolve(step, hand_over=HandOver.LATER)
                    yield AttachTables()
                    yield HandOverTables()
                else:
                    result = yield step
                step = steps.send(result)
        except StopIteration:
            return


@attrs.frozen
class Trusting(Xen):
    """Refuses nothing."""

    pvmm_api: ClassVar[int] = API

    @hookimpl
    def pvmm_write_entries(self, write: EntryWrite) -> Cost | Refusal:
        """Charge what the right one charges, whatever the entries are."""
        answer = Xen.pvmm_write_entries(self, attrs.evolve(write, readonly_children=True))
        return Cost(way=Way.HYPERCALL) if isinstance(answer, Refusal) else answer

    @hookimpl
    def pvmm_pin_tables(self, boot: Boot, tables: Batch) -> Cost | Refusal | None:
        """Pin L1 tables, whatever else there is."""
        answer = Xen.pvmm_pin_tables(self, boot, tables)
        if isinstance(answer, Refusal):
            count = tables.tables(1)
            return Cost(hypercalls={"mmuext_op": count}, pinned={1: count}) if count else None
        return answer

    @hookimpl
    def pvmm_activate_cr3(self, boot: Boot, root: Batch | None) -> Cost | Refusal:
        """Load what it is given."""
        answer = Xen.pvmm_activate_cr3(self, boot, root)
        return Cost(pinned={4: 1}, flushes=1) if isinstance(answer, Refusal) else answer


@attrs.frozen
class MapsWritable(Trusting):
    """Maps the direct map writable, tables and all."""

    pvmm_api: ClassVar[int] = API

    @hookimpl
    def pvmm_map_readonly(self, boot: Boot, start: int, end: int) -> Iterable[tuple[int, int]]:
        """Nothing is read-only."""
        return ()


@attrs.frozen
class LargePages(Trusting):
    """Leaves large pages visible."""

    pvmm_api: ClassVar[int] = API

    @hookimpl
    def pvmm_boot_state(self, machine: Machine) -> BootState | Refusal:
        """The boot state, without the mask."""
        state = Xen.pvmm_boot_state(self, machine)
        assert isinstance(state, BootState)
        return attrs.evolve(state, features=machine.features)


@attrs.frozen
class StrictLargePages(Xen):
    """The same with a backend that looks."""

    pvmm_api: ClassVar[int] = API

    @hookimpl
    def pvmm_boot_state(self, machine: Machine) -> BootState | Refusal:
        """The boot state, without the mask."""
        return LargePages().pvmm_boot_state(machine)


@attrs.frozen
class ForgetsReadonly(Trusting):
    """Pins without having taken write access away."""

    pvmm_api: ClassVar[int] = API

    @hookimpl
    def pvmm_make_readonly(self, boot: Boot, tables: Batch) -> Cost | None:
        """Nothing to do, it believes."""
        return None


@attrs.frozen
class StrictForgetsReadonly(Xen):
    """The same with a backend that looks."""

    pvmm_api: ClassVar[int] = API

    @hookimpl
    def pvmm_make_readonly(self, boot: Boot, tables: Batch) -> Cost | None:
        """Nothing to do, it believes."""
        return None


@attrs.frozen
class Wrong:
    """A wrong pair, and the first operation that a hypervisor refuses: its name, code, and event.

    ``backend_says`` is the verdict under the real backend's checks (None: it cannot see it).
    """

    allocator: type[Any]
    backend: type[Any]
    operation: str
    code: int
    event: str
    strict: type[Any] | None = None
    backend_says: str | None = None
    options: tuple[tuple[str, str], ...] = ()
    high: bool = False
    """The guest has RAM above 1 GiB, where no boot table is."""


WRONG = {
    "attached before it is handed over": Wrong(
        AttachesFirst, Trusting, "mmu_update", -22, "EntriesWritten", Xen,
        "rejected: mmu_update: L2 entry to a writable page, -22",
    ),
    "tables mapped writable, linear": Wrong(
        LegacyLinear, MapsWritable, "pin", -16, "TablesPinned", options=(("kernel", "2.6.39"),),
    ),
    "tables mapped writable, hpa": Wrong(
        Incremental, MapsWritable, "pin", -16, "TablesPinned", options=(("variant", "hpa"),),
    ),
    "large pages in a live table": Wrong(
        Incremental, LargePages, "mmu_update", -22, "RangeMapped", StrictLargePages,
        "rejected: mmu_update: large page in an L2 entry, -22",
    ),
    "large pages in a new table": Wrong(
        Incremental, LargePages, "mmu_update", -22, "EntriesWritten", StrictLargePages,
        "rejected: mmu_update: L3 entry to a table with a large page, -22", high=True,
    ),
    "large pages in a new tree": Wrong(
        Incremental, LargePages, "pin", -22, "RootActivated", StrictLargePages,
        "rejected: MMUEXT_PIN_TABLE: a table below has a large page, -22",
        (("variant", "hpa"),),
    ),
    "pinned while writable": Wrong(
        Incremental, ForgetsReadonly, "pin", -22, "TablesPinned", StrictForgetsReadonly,
        "rejected: MMUEXT_PIN_TABLE: page is mapped writable, -22",
    ),
}  # fmt: skip


def run_wrong(wrong: Wrong, *, trusting: bool = True, mib: int = 64, thorough: bool = True) -> Run:
    """Run a wrong pair; ``trusting``: under the backend that refuses nothing."""
    registry = Registry()
    backend = wrong.backend if trusting else wrong.strict
    registry.add("allocator", wrong.allocator)
    registry.add("backend", backend)
    registry.add("native", Native)
    assert not registry.broken, registry.broken
    machine = guest_machine(mib)
    if wrong.high:
        entries = [(e.start, e.end, e.type) for e in machine.memory_map.entries]
        entries.append((GIB, GIB + (16 << 20), E820Type.RAM))
        machine = attrs.evolve(machine, memory_map=MemoryMap.sanitise(entries))
    scenario = Scenario(machine, PluginSpec("allocator", wrong.options), PluginSpec("backend"))
    return scenario.run(registry, thorough=thorough)
