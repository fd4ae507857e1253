"""The smallest correct plugins: partners to test against, and a start for tests that break one rule
on purpose.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from types import MappingProxyType
from typing import ClassVar

import attrs

from paravirt_mm.engine.answers import Cost, EntryKind, EntryWrite, Refusal, Way
from paravirt_mm.engine.boot import Boot, Promise
from paravirt_mm.engine.pages import PageRun, Source, TablePages, first_pages, page_count
from paravirt_mm.engine.panic import KernelPanic
from paravirt_mm.engine.steps import ActivateRoot, Map, Step, StepResult, TableDemand
from paravirt_mm.engine.tables import Batch
from paravirt_mm.hookspecs import API_VERSION, hookimpl
from paravirt_mm.machine.model import BootState, Machine, Span
from paravirt_mm.machine.paging import PAGE_SHIFT, PAGE_SIZE
from paravirt_mm.machine.ranges import RangeSet, align_down, align_up

EINVAL, ENOMEM = -22, -12
_LARGEST_STEP = 1 << 40


@attrs.frozen
class AscendingAllocator:
    """Map RAM upward in doubling steps; tables are the lowest free pages that can be reached.

    A step needs at most one page in 256 of what it maps, so half of what is mapped before suffices
    by far.
    """

    pvmm_api: ClassVar[int] = API_VERSION

    first_step: int = 16 << 20

    @hookimpl
    def pvmm_promise(self, boot: Boot) -> Promise:
        """Promise all RAM up to the limit of the direct map."""
        return Promise(tuple(boot.memblock.memory(end=boot.machine.map_limit)))

    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
        """One step a part of a region, then CR3."""
        step = self.first_step
        for start, end in boot.memblock.memory(end=boot.machine.map_limit):
            while start < end:
                stop = min(end, align_down(start + step, self.first_step))
                yield Map(start, stop, label="region")
                start, step = stop, min(2 * step, _LARGEST_STEP)
        yield ActivateRoot()

    @hookimpl
    def pvmm_allocate_tables(
        self, boot: Boot, step: Step, demand: TableDemand
    ) -> Sequence[TablePages]:
        """Take free pages from the bottom."""
        spans = reversed(list(boot.free_reachable(0, boot.machine.map_limit)))
        runs = list(first_pages((PageRun.of_span(*span) for span in spans), demand.count))
        missing = demand.count - page_count(runs)
        if missing:
            raise KernelPanic("no free page can be reached", missing)
        return [TablePages(run, Source.MEMBLOCK) for run in runs]


@attrs.frozen
class BlockAllocator:
    """Map each region at once, with tables from one block that is set aside beforehand, ``spare``
    pages too large.

    The block is the highest that can be reached; what is left of it is given back.
    """

    pvmm_api: ClassVar[int] = API_VERSION

    spare: int = 5

    @hookimpl
    def pvmm_promise(self, boot: Boot) -> Promise:
        """Promise all RAM up to the limit of the direct map."""
        return Promise(tuple(boot.memblock.memory(end=boot.machine.map_limit)))

    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
        """One step a region."""
        for start, end in boot.memblock.memory(end=boot.machine.map_limit):
            yield Map(start, end, label="region", reserve=True)

    @hookimpl
    def pvmm_reserve_tables(self, boot: Boot, step: Map) -> Sequence[PageRun]:
        """Set aside what the step needs, and the spare pages."""
        wanted = boot.tables_needed(step) + self.spare
        for span in boot.free_reachable(0, boot.machine.map_limit):
            run = PageRun.of_span(*span)
            if run.count >= wanted:
                return [run.tail(run.count - wanted)]
        raise KernelPanic("no block can be reached", wanted)

    @hookimpl
    def pvmm_allocate_tables(self, boot: Boot, demand: TableDemand) -> Sequence[TablePages]:
        """Take the block's next pages."""
        return [
            TablePages(run, Source.RESERVATION)
            for run in first_pages(boot.reservation, demand.count)
        ]

    @hookimpl
    def pvmm_release_tables(self, surplus: Sequence[PageRun]) -> Sequence[PageRun]:
        """Give back what is left."""
        return surplus


@attrs.frozen
class PlainPlatform:
    """A platform that asks nothing of a page: plain stores, every feature of the CPU, all RAM
    mapped at boot.
    """

    pvmm_api: ClassVar[int] = API_VERSION

    @hookimpl
    def pvmm_boot_state(self, machine: Machine) -> BootState:
        """All RAM can be written from the start, through tables that the kernel drops."""
        mapped = machine.memory_map.ram_pages()
        return BootState(
            mapped=tuple(mapped),
            max_pfn_mapped=mapped.end >> PAGE_SHIFT,
            features=machine.features,
        )


@attrs.frozen
class TypingPlatform:
    """A platform that types pages: a table must be read-only before it is attached, and pages are
    small.

    At boot it maps the kernel and the RAM in ``headroom`` bytes after it, with tables that begin
    the direct map and lie in the highest free RAM.
    """

    pvmm_api: ClassVar[int] = API_VERSION

    headroom: int = 8 << 20

    @hookimpl
    def pvmm_boot_state(self, machine: Machine) -> BootState | Refusal:
        """Kernel and headroom are mapped; large pages are hidden."""
        mode = machine.mode
        start, end = machine.kernel.span
        mapped = RangeSet(machine.memory_map.ram_pages().within(start, end + self.headroom))
        mapped.add(align_down(start, PAGE_SIZE), align_up(end, PAGE_SIZE))
        tables: dict[int, tuple[Span, ...]] = {}
        count = 1
        for level in range(1, mode.root_level):
            span = mode.table_span(level)
            covered = align_down(mapped.first, span), align_up(mapped.end, span)
            tables[level] = (covered,)
            count += (covered[1] - covered[0]) // span
        state = BootState(
            mapped=tuple(mapped),
            max_pfn_mapped=mapped.end >> PAGE_SHIFT,
            features=attrs.evolve(machine.features, pse=False, gbpages=False),
            tables=MappingProxyType(tables),
            direct_mapped=tuple(mapped),
            typed=True,
        )
        free = machine.memory_map.ram_pages().difference(state.taken(machine))
        block = _highest_block(free, count, machine.map_limit)
        if block is None:
            return Refusal("boot: no room for boot tables", ENOMEM)
        return attrs.evolve(state, reserved=(block,), boot_tables=(block,))

    @hookimpl
    def pvmm_map_readonly(self, boot: Boot, start: int, end: int) -> Iterator[Span]:
        """Whatever is a table, or held to become one, is mapped without write access."""
        readonly = RangeSet(boot.table_pages(start, end))
        readonly.update(boot.reserved_pages(start, end))
        return readonly.within(start, end)

    @hookimpl
    def pvmm_write_entries(self, boot: Boot, write: EntryWrite) -> Cost | Refusal:
        """Live tables change by hypercall only, and refer to nothing that can be written."""
        if not write.live:
            return Cost()
        if write.kind is EntryKind.TABLE and not write.readonly_children:
            return Refusal("write_entries: the child is writable", EINVAL)
        return Cost(hypercalls={"mmu_update": write.count}, way=Way.HYPERCALL)

    @hookimpl
    def pvmm_make_readonly(self, tables: Batch) -> Cost:
        """One hypercall a page."""
        return Cost(hypercalls={"update_va_mapping": tables.count})

    @hookimpl
    def pvmm_pin_tables(self, boot: Boot, tables: Batch) -> Cost | Refusal | None:
        """Only tables of level 1 are pinned, and only read-only ones."""
        count = tables.tables(1)
        if not boot.ledger.is_readonly(tables.runs):
            return Refusal("pin: a table is writable", EINVAL)
        return Cost(hypercalls={"mmuext_op": count}, pinned={1: count}) if count else None

    @hookimpl
    def pvmm_make_writable(self, pages: Sequence[PageRun]) -> Cost:
        """One hypercall a page."""
        return Cost(hypercalls={"update_va_mapping": page_count(pages)})

    @hookimpl
    def pvmm_activate_cr3(self, boot: Boot, root: Batch | None) -> Cost | Refusal:
        """A new root must be read-only; it is pinned by being loaded."""
        if root is None:
            return Cost(hypercalls={"mmuext_op": 1}, flushes=1)
        if not boot.ledger.is_readonly(root.runs):
            return Refusal("CR3: the root is writable", EINVAL)
        return Cost(
            hypercalls={"mmuext_op": 1}, pinned={boot.mode.root_level: root.count}, flushes=1
        )


def _highest_block(free: RangeSet, pages: int, limit: int) -> Span | None:
    """Return the highest ``pages`` pages of ``free`` in one block below ``limit``."""
    for low, high in free.descending(0, limit):
        start = align_down(high, PAGE_SIZE) - pages * PAGE_SIZE
        if start >= low:
            return start, start + pages * PAGE_SIZE
    return None
