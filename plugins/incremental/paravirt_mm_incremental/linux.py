"""Linux's form of the incremental design ("setup page table in top-down", merged for 3.9).

Map the first MiB; find a free large page as high as possible; from its end go down in growing
steps, mapping only RAM; in the end map what lies above it, and load CR3. A table page comes from
brk while that lasts, then from what has been mapped most recently. Each table is handed over and
attached as soon as it is filled.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

import attrs

from paravirt_mm import (
    ActivateRoot,
    Boot,
    KernelPanic,
    Map,
    Promise,
    RangeSet,
    Source,
    Step,
    StepResult,
    TableDemand,
    TablePages,
    align_down,
    deal,
    page_count,
)
from paravirt_mm_incremental.releases import Change

PAGE_SHIFT = 12
ISA_END = 1 << 20


@attrs.frozen
class TopDown:
    """The steps of one release. Addresses are bytes."""

    release: Change
    randomize_memory: bool = True
    brk_pages: int | None = None

    def promise(self, boot: Boot) -> Promise:
        """Promise the first MiB and all RAM up to the limit of the direct map."""
        promised = RangeSet([(0, ISA_END)])
        promised.update(boot.memblock.memory(0, boot.machine.map_limit))
        pages = self.brk_pages
        if pages is None:
            pages = self.release.brk_pages(boot.mode, self.randomize_memory)
        return Promise(direct_map=tuple(promised), brk_pages=pages)

    def steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
        """Yield the steps (init_mem_mapping, memory_map_top_down)."""
        end = boot.machine.map_limit
        yield Map(0, ISA_END, label="ISA range", promote=self.release.promote)
        large = boot.mode.entry_span(2)
        # A large block of free RAM, as high as possible: Xen has a big reservation at the very top.
        found = boot.memblock.find_top_down(ISA_END, end, large, large)
        real_end = (found or 0) + large
        step = large
        mapped, max_mapped = 0, 0
        upper = real_end
        while upper > ISA_END:
            lower = ISA_END
            if upper > step:
                lower = max(ISA_END, align_down(upper - 1, step))
            this_step = 0
            for piece in self._ram(boot, lower, upper):
                done = yield attrs.evolve(piece, tables_from=(upper, max_mapped))
                max_mapped = max(max_mapped, done.mapped_end)
                this_step += piece.end - piece.start
            upper = lower
            mapped += this_step
            step = self.release.next_step(boot.mode, step, mapped, this_step)
        for piece in self._ram(boot, real_end, end):
            done = yield attrs.evolve(piece, tables_from=(upper, max_mapped))
            max_mapped = max(max_mapped, done.mapped_end)
        yield ActivateRoot()

    def _ram(self, boot: Boot, lower: int, upper: int) -> Iterator[Map]:
        """Yield a step for each piece of RAM in ``[lower, upper)`` (init_range_memory_mapping)."""
        for low, high in boot.memblock.memory(lower, upper):
            brk = boot.brk_free.span
            overlaps_brk = max(low, brk[0]) < min(high, brk[1])
            yield Map(
                low, high, label="RAM", promote=self.release.promote, use_brk=not overlaps_brk
            )

    def allocate(self, boot: Boot, step: Step, demand: TableDemand) -> Sequence[TablePages]:
        """Take pages from brk, then the highest free ones of the window (alloc_low_pages)."""
        if not isinstance(step, Map):
            raise TypeError(f"no tables are asked for in step {step!r}")
        pages: list[TablePages] = []
        wanted = demand.count
        if step.use_brk:
            pages += [TablePages(run, Source.BRK) for run in deal([boot.brk_free], wanted)]
            wanted -= page_count(part.run for part in pages)
        if wanted:
            low, high = step.tables_from
            found = boot.memblock.pages_top_down(low, high, wanted) if low < high else []
            pages += [TablePages(run, Source.MEMBLOCK) for run in found]
            wanted -= page_count(found)
        if wanted and step.use_brk and self.release.brk_fallback:
            extended = list(deal([boot.brk_beyond], wanted))
            pages += [TablePages(run, Source.BRK) for run in extended]
            wanted -= page_count(extended)
        if wanted:
            raise KernelPanic("alloc_low_pages: can not alloc memory", wanted)
        return pages
