"""An allocator that maps upward in doubling steps and takes tables from the lowest mapped page.

It is what one would write first, and the comparison shows what is wrong with it: all its tables
lie in low memory.
"""

from collections.abc import Generator, Sequence
from typing import ClassVar

import attrs

from paravirt_mm import (
    API_VERSION,
    ActivateRoot,
    Boot,
    KernelPanic,
    Map,
    PageRun,
    Promise,
    Source,
    Step,
    StepResult,
    TableDemand,
    TablePages,
    align_down,
    first_pages,
    hookimpl,
    page_count,
)

LARGEST_STEP = 1 << 40


@attrs.frozen
class BottomUp:
    """Map upward; take the lowest free page that is mapped.

    step_mib
        How much to map at first, in MiB; every step is twice as large as the one before.
    brk_pages
        Pages of brk for the first tables.
    """

    pvmm_api: ClassVar[int] = API_VERSION

    step_mib: int = 32
    brk_pages: int = 64

    @hookimpl
    def pvmm_promise(self, boot: Boot) -> Promise:
        """Promise all RAM."""
        ram = tuple(boot.memblock.memory(0, boot.machine.map_limit))
        return Promise(direct_map=ram, brk_pages=self.brk_pages)

    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
        """Map each piece of RAM, step by step; steps end on multiples of the first."""
        first = step = self.step_mib << 20
        for low, high in boot.memblock.memory(0, boot.machine.map_limit):
            while low < high:
                stop = min(high, align_down(low + step, first))
                yield Map(low, stop, label="upward")
                low, step = stop, min(2 * step, LARGEST_STEP)
        yield ActivateRoot()

    @hookimpl
    def pvmm_allocate_tables(self, boot: Boot, demand: TableDemand) -> Sequence[TablePages]:
        """Take brk pages while there are some, then free mapped pages, lowest first."""
        pages = [TablePages(run, Source.BRK) for run in first_pages([boot.brk_free], demand.count)]
        wanted = demand.count - page_count(page.run for page in pages)
        free = sorted(boot.memblock.free_descending(0, boot.machine.map_limit))
        mapped = (span for low, high in free for span in boot.reachable(low, high))
        runs = (PageRun.of_span(low, high) for low, high in mapped)
        pages += [TablePages(run, Source.MEMBLOCK) for run in first_pages(runs, wanted)]
        missing = demand.count - page_count(page.run for page in pages)
        if missing:
            raise KernelPanic("no mapped memory is left for page tables", missing)
        return pages
