"""Konrad Wilk's sketch: map upward in chunks; a table comes from the end of the last chunk."""

from collections.abc import Generator, Sequence
from enum import StrEnum
from typing import ClassVar

import attrs

from paravirt_mm import (
    MIB,
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
    deal,
    hookimpl,
    page_count,
)


class Growth(StrEnum):
    """How large the next chunk is."""

    FIXED = "fixed"
    DOUBLE = "double"


@attrs.frozen
class ChunkEnd:
    """Map upward in chunks; take tables from the end of the chunk just mapped.

    chunk_mib
        Size of a chunk in MiB.
    growth
        ``fixed``: all chunks are as large; ``double``: each is as large as all before it.
    brk_pages
        Pages of brk for the first tables.
    """

    pvmm_api: ClassVar[int] = 1

    chunk_mib: int = attrs.field(default=2, validator=attrs.validators.ge(1))
    growth: Growth = Growth.FIXED
    brk_pages: int = 16

    @hookimpl
    def pvmm_promise(self, boot: Boot) -> Promise:
        """Promise all RAM."""
        ram = tuple(boot.memblock.memory(0, boot.machine.map_limit))
        return Promise(direct_map=ram, brk_pages=self.brk_pages)

    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
        """Map each piece of RAM upward, chunk by chunk."""
        chunk = size = self.chunk_mib * MIB
        last = (0, 0)
        for low, high in boot.memblock.memory(0, boot.machine.map_limit):
            while low < high:
                stop = min(high, align_down(low, chunk) + size)
                yield Map(low, stop, label="chunk", tables_from=last)
                last = (low, stop)
                if self.growth is Growth.DOUBLE:
                    size = max(size, align_down(stop, chunk))
                low = stop
        yield ActivateRoot()

    @hookimpl
    def pvmm_allocate_tables(
        self, boot: Boot, step: Step, demand: TableDemand
    ) -> Sequence[TablePages]:
        """Take the end of the last chunk; brk before there is one, then anything mapped below."""
        low, high = step.tables_from
        pages: list[TablePages] = []

        def take(runs, source: Source) -> None:
            missing = demand.count - page_count(page.run for page in pages)
            pages.extend(TablePages(run, source) for run in deal(runs, missing))

        if high == 0:
            take([boot.brk_free], Source.BRK)
        take(
            (PageRun.of_span(*span).downward() for span in boot.free_reachable(0, high or boot.machine.map_limit)),
            Source.MEMBLOCK,
        )
        take([boot.brk_free], Source.BRK) if high else None
        missing = demand.count - page_count(page.run for page in pages)
        if missing:
            raise KernelPanic("no mapped memory is left for page tables", missing)
        return pages
