"""The sketch that the incremental design corrects (Konrad Wilk, October 2012): map upward, chunk by
chunk, and put each further table at the end of the chunk just mapped.

::

    start                2M                   4M                   6M
    |T0T0T0-------------T|-------------------T|-------------------T|
     first tables        ^ maps 2M..4M        ^ maps 4M..6M        ^ ...

The first tables lie at the start of the region, unless some are found there (a typed platform and
a 32-bit kernel bring tables along). Nothing is guessed, and no status flip is wasted; but tables
begin in the lowest memory, and where there are no large pages every chunk ends in one.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import ClassVar

import attrs

from paravirt_mm import (
    API_VERSION,
    MIB,
    PAGE_SIZE,
    ActivateRoot,
    Boot,
    DefaultSpec,
    KernelImage,
    KernelPanic,
    Machine,
    Map,
    PageRun,
    Piece,
    Promise,
    RangeSet,
    Source,
    SpecError,
    Step,
    StepResult,
    TableDemand,
    TablePages,
    align_down,
    first_pages,
    hookimpl,
    page_count,
    with_trampoline,
)

SKETCHED_UPON = "3.7"
"""The release whose kernel is to have the sketch: what it does besides is as there."""

MOST_CHUNKS = 4096
"""More are not made unless asked for."""


@attrs.frozen
class ChunkEnd:
    """Page tables at the ends of chunks, upward.

    chunk_mib
        Size of a chunk in MiB, a power of two; at least a large page is taken at a time. Default:
        2, as in the sketch. Each chunk is a step of its own where there are small pages only, those
        of one table where there are large ones, so that memory of over 8 GiB, or 4 TiB, is then
        divided into 4,096 larger ones; their tables lie together at the end of the chunk before
        (``chunk_mib=2`` takes the sketch to the letter, and longer).
    """

    pvmm_api: ClassVar[int] = API_VERSION

    chunk_mib: int | None = None

    def __attrs_post_init__(self) -> None:
        size = self.chunk_mib
        if size is not None and not (1 <= size <= 1024 and not size & (size - 1)):
            raise SpecError(f"chunk_mib={size} is not a power of two from 1 to 1024")

    @hookimpl
    def pvmm_kernel_image(self, machine: Machine) -> KernelImage:
        """Link the kernel without brk for tables: the sketch finds them in the region."""
        return machine.kernel.with_brk(0)

    @hookimpl
    def pvmm_promise(self, boot: Boot) -> Promise:
        """Promise all RAM up to the limit of the direct map, and the kernel."""
        return Promise(tuple(_regions(boot)))

    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
        """Yield the chunks of every region, upward."""
        return with_trampoline(boot, SKETCHED_UPON, self._steps(boot))

    def _steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
        mapped_end = PAGE_SIZE  # nothing yet: page 0 is nobody's
        for region in _regions(boot):
            for chunk in self._chunks(boot, *region):
                yield attrs.evolve(chunk, tables_from=(PAGE_SIZE, mapped_end))
                mapped_end = chunk.end
        yield ActivateRoot()

    def _chunk(self, boot: Boot) -> int:
        """Return the size of a chunk in bytes."""
        if self.chunk_mib is not None:
            return self.chunk_mib * MIB
        size = 2 * MIB
        step = size if boot.largest_level == 1 else boot.mode.table_span(2)
        while step * MOST_CHUNKS < boot.machine.map_limit:
            step *= 2
            size = step
        return size

    def _chunks(self, boot: Boot, start: int, end: int) -> Iterator[Map]:
        """Yield the chunks of a region. Chunks in large pages that one table holds are one step:
        none of them but the first needs a table.
        """
        large = boot.mode.entry_span(2)
        chunk = max(self._chunk(boot), large)
        while start < end:
            stop = min(end, align_down(start, chunk) + chunk)
            # The first large page of a 32-bit kernel is mapped in small ones.
            first_of_32bit = boot.mode.is_32bit and start == 0
            if boot.largest_level > 1 and not start % large and not first_of_32bit:
                table = align_down(start, boot.mode.table_span(2)) + boot.mode.table_span(2)
                stop = max(stop, min(align_down(end, chunk), table))
                whole = align_down(stop, large)
                if whole > start:
                    stop = whole
                    yield Map(start, stop, label="chunks", pieces=(Piece(start, stop, 2),))
                    start = stop
                    continue
            yield Map(start, stop, label="chunk")
            start = stop

    @hookimpl
    def pvmm_allocate_tables(
        self, boot: Boot, step: Map, demand: TableDemand
    ) -> Sequence[TablePages]:
        """Take the last free pages of the chunk just mapped, then what lies below it; before there
        is one, the first pages of the region that can be written.
        """
        low, mapped_end = step.tables_from
        if low < mapped_end:
            spans = boot.free_reachable(low, mapped_end)
            runs = (PageRun.of_span(*span).downward() for span in spans)
        else:
            spans = boot.free_reachable(step.start, boot.machine.map_limit)
            runs = (PageRun.of_span(*span) for span in reversed(list(spans)))
        pages = list(first_pages(runs, demand.count))
        taken = [TablePages(run, Source.MEMBLOCK) for run in pages]
        missing = demand.count - page_count(pages)
        if missing:
            raise KernelPanic("no mapped memory is left for page tables", missing, taken)
        return taken

    @hookimpl
    def pvmm_default_specs(self) -> Iterator[DefaultSpec]:
        """Stand before the design that corrects it."""
        yield DefaultSpec("chunk_end", 35)


def _regions(boot: Boot) -> RangeSet:
    """Return what is to be mapped, in bytes: RAM, and the kernel wherever it lies."""
    regions = RangeSet(boot.memblock.memory(0, boot.machine.map_limit))
    start, end = boot.kernel.span
    regions.add(align_down(start, PAGE_SIZE), end)  # brk ends with a page
    return regions
