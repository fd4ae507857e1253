"""The incremental design as H. Peter Anvin proposed it on 4 October 2012, step by step.

1. Map the kernel and its brk with tables from brk. 2. Map the topmost memory downward until those
pages are used up. 3. Call the paravirt hook on all tables made so far. 4. Switch to the new tree.
5. From the last address downward, build tables for memory that is not mapped yet until nothing is
left or mapped memory for tables runs out. 6. Call the hook for the new tables, then attach them. 7.
Repeat from 5.

Where it breaks: step 5 lives on free memory that steps 1 and 2 have mapped. Where more is taken at
the very top of memory than the additional brk can map, there is none; `bound` has the exact account
and docs/bound.md what is proved about it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial

import attrs

from paravirt_mm import (
    PAGE_SHIFT,
    PAGE_SIZE,
    ActivateRoot,
    AttachTables,
    Boot,
    CpuFeatures,
    HandOver,
    HandOverTables,
    KernelImage,
    KernelPanic,
    Machine,
    Map,
    NewRoot,
    PageRun,
    Promise,
    Promote,
    RangeSet,
    Source,
    Step,
    StepResult,
    TableDemand,
    TablePages,
    align_down,
    align_up,
    first_pages,
    page_count,
    tables_to_map,
)

DESIGNED_UPON = "3.7"
"""The release whose kernel is to have the design: what it does before and after is as there."""


_map = partial(Map, promote=Promote.BEFORE_MERGE, hand_over=HandOver.LATER)
"""A step of the design: start, end, label."""

_BRK, _MEMBLOCK = Source.BRK, Source.MEMBLOCK
"""Members cost more to look up in their class, each time, than to use."""


@attrs.frozen
class SevenSteps:
    """The seven steps. ``brk_pages``: how much brk there is to begin with, beyond the tables that
    map the kernel and the brk itself (64: the proposal's "arbitrary additional" 256 KiB).
    """

    brk_pages: int = 64

    def brk(self, machine: Machine, features: CpuFeatures) -> int:
        """Return the pages of brk: those that map the kernel with its brk, and the additional ones.

        The more brk, the more tables map it, so the number is the least that is enough for itself.
        """
        mode, largest = machine.mode, features.largest_level(machine.mode)
        pages = self.brk_pages
        while True:
            start, end = _whole_pages(machine.kernel.with_brk(pages))
            needed = tables_to_map(mode, start, end, largest) + self.brk_pages
            if needed <= pages:
                return pages
            pages = needed

    def promise(self, boot: Boot) -> Promise:
        """Promise all RAM up to the limit of the direct map, and the kernel."""
        promised = RangeSet(boot.memblock.memory(0, boot.machine.map_limit))
        promised.add(*_kernel(boot))
        return Promise(tuple(promised))

    def steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
        """Yield the seven steps."""
        todo = RangeSet(boot.memblock.memory(0, boot.machine.map_limit))
        yield NewRoot()
        start, end = _kernel(boot)
        if start < end:  # of an image of nothing a log may tell where it lies
            yield _map(start, end, label="1: kernel and brk")
        todo.discard(start, end)
        yield from self._downward(boot, todo, "2: from the top, tables from brk")
        yield HandOverTables("3: hook on all tables so far")
        yield AttachTables("3: complete the tree")
        yield ActivateRoot("4: switch to the new tree")
        while todo:
            before = todo.total
            yield from self._downward(boot, todo, "5: downward, tables from mapped memory")
            if todo.total == before:
                raise KernelPanic("no mapped memory is left for page tables", 1)
            yield HandOverTables("6: hook on the new tables")
            yield AttachTables("6: attach them")

    def _downward(
        self, boot: Boot, todo: RangeSet, label: str
    ) -> Generator[Step, StepResult, None]:
        """Map what is left, highest first, until the pages for tables run out; shrink ``todo``."""
        for low, high in list(todo.descending(0, todo.end)) if todo else []:
            whole = _map(low, high, label)
            start = self._lowest_start(boot, whole)
            if start < high:
                yield whole if start == low else _map(start, high, label)
                todo.discard(start, high)
            if start > low:
                return

    def _lowest_start(self, boot: Boot, step: Map) -> int:
        """Return the lowest start from which a range can be mapped to its end with the pages at
        hand; its end or more where not even the last table of it can be paid for.
        """
        low, high = step.start, step.end
        brk, whole = boot.brk_free, boot.tables_needed(step)
        if whole <= brk.count:
            return low
        # Fewer than all of it needs are all that there are, so they are counted once.
        pages = page_count([part.run for part in _free_pages(boot, brk, whole)])
        if pages == whole:
            return low
        unit = boot.mode.table_span(1)
        # Invariant: [high - good units] fits, one bad unit more does not. Tables are spread evenly,
        # or nearly, so the pages at hand map about their share.
        top = align_up(high, unit)
        good, bad = 0, (top - align_down(low, unit)) // unit
        middle, stride = bad * pages // whole, 1
        while bad - good > 1:
            if not good < middle < bad:
                middle = (good + bad) // 2
            if boot.tables_needed(_map(top - middle * unit, high)) <= pages:
                good, middle = middle, middle + stride
            else:
                bad, middle = middle, middle - stride
            stride *= 2
        return top - good * unit

    def allocate(self, boot: Boot, step: Step, demand: TableDemand) -> Sequence[TablePages]:
        """Take brk pages while there are some, then the highest free pages that are mapped."""
        count = demand.count
        pages = _free_pages(boot, boot.brk_free, count)
        missing = count - page_count([part.run for part in pages])
        if missing:
            raise KernelPanic("no mapped memory is left for page tables", missing)
        return pages


def _kernel(boot: Boot) -> tuple[int, int]:
    return _whole_pages(boot.kernel)


def _whole_pages(kernel: KernelImage) -> tuple[int, int]:
    start, end = kernel.span
    return align_down(start, PAGE_SIZE), align_up(end, PAGE_SIZE)


def _free_pages(boot: Boot, brk: PageRun, count: int) -> list[TablePages]:
    """Return up to ``count`` pages for tables: of ``brk`` first; once the tree is live, mapped
    memory from the top.
    """
    pages = [TablePages(run, _BRK) for run in first_pages([brk], count)]
    count -= brk.count
    if count > 0 and ((oldest := boot.oldest_waiting) is None or oldest.index > 0):
        for low, high in boot.free_reachable(0, boot.machine.map_limit):
            first, last = align_up(low, PAGE_SIZE) >> PAGE_SHIFT, high >> PAGE_SHIFT
            if first < last:
                taken = min(count, last - first)
                pages.append(TablePages(PageRun(last - 1, taken, -1), _MEMBLOCK))
                count -= taken
                if not count:
                    break
    return pages
