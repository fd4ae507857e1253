"""Linux's form of the incremental design ("setup page table in top-down", merged for 3.9).

Map the first MiB; find a free large page as high as possible; from its end go down in growing
steps, mapping only RAM; in the end map what lies above it, and load CR3. A table page comes from
brk while that lasts, then from what has been mapped most recently. Each table is handed over and
attached as soon as it is filled.

Booted with ``movable_node`` (since 3.13), memblock gives memory from the bottom, next to the
kernel, so that tables stay off memory that may be unplugged; the map grows upward from the kernel's
end and is completed below it last. Where free memory above runs short then, tables lie below the
kernel in memory that is not mapped yet: the early page fault handler of native 64-bit kernels maps
it when it is cleared (early_make_pgtable, since 3.9).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import attrs

from paravirt_mm import (
    ISA_END,
    PAGE_SHIFT,
    PAGE_SIZE,
    ActivateRoot,
    Boot,
    CpuFeatures,
    KernelPanic,
    Machine,
    Map,
    PageRun,
    PagingMode,
    Promise,
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
)
from paravirt_mm_incremental.releases import BottomUp, Change, NoBlock

_ISA_LABEL = "ISA range"


@attrs.frozen
class LinuxSteps:
    """The steps of one release. Addresses are bytes.

    ``frees_low``: a failed search for a free large page gives back the first one, at 0.
    ``movable_node``: booted with the parameter of that name, so memblock works from the bottom up;
    ``kaslr``: the direct map is randomised, and a table for the trampoline comes from brk too.
    """

    release: Change
    randomize_memory: bool
    brk_pages: int | None
    movable_node: bool
    kaslr: bool
    frees_low: bool

    def brk(self, machine: Machine, _features: CpuFeatures) -> int:
        """Return the pages of brk for tables: the release's, whatever the machine is like."""
        if self.brk_pages is not None:
            return self.brk_pages
        return self.release.brk_pages(machine.mode, self.randomize_memory)

    def promise(self, boot: Boot) -> Promise:
        """Promise the first MiB and all RAM up to the limit of the direct map, or of the first
        large page, with which mapping begins where none is free.
        """
        end = boot.machine.map_limit
        if self.release.no_block is NoBlock.BOTTOM and not self.movable_node:
            end = max(end, boot.mode.entry_span(2))
        promised = RangeSet([(0, ISA_END)])
        promised.update(boot.memblock.memory(ISA_END, end))
        return Promise(direct_map=tuple(promised))

    def steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
        """Yield the steps (init_mem_mapping)."""
        yield Map(0, ISA_END, label=_ISA_LABEL, promote=self.release.promote)
        end = boot.machine.map_limit
        if self.movable_node:
            # Tables go above the kernel, so what lies there is mapped first.
            kernel_end = _kernel_end(boot)
            mapped = yield from self._upward(boot, kernel_end, end, _mapped_at_boot(boot))
            yield from self._upward(boot, ISA_END, kernel_end, mapped)
            found = True
        else:
            found = yield from self._downward(boot, end)
        yield ActivateRoot()
        if not found and self.frees_low:
            raise KernelPanic("memory at 0, given back by a failed search, is given to others")

    def _downward(self, boot: Boot, end: int) -> Generator[Step, StepResult, bool]:
        """Map from the highest free large page downward, then what lies above it
        (memory_map_top_down); return whether there was one.
        """
        large = boot.mode.entry_span(2)
        # Xen has a big reservation at the very top, which is skipped at first.
        found = boot.memblock.find_top_down(ISA_END, end, large, large)
        if found is not None:
            real_end = found + large
        elif self.release.no_block is NoBlock.TOP:
            real_end = max(ISA_END, align_down(end, large))
        else:
            real_end = large
        step = large
        mapped = max_mapped = 0
        upper = real_end
        while upper > ISA_END:
            lower = max(ISA_END, align_up(upper, step) - step)
            this_step, max_mapped = yield from self._map_ram(boot, lower, upper, upper, max_mapped)
            upper = lower
            mapped += this_step
            before, step = step, self.release.next_step(boot.mode, step, mapped, this_step)
            if not this_step and step == before:  # nor does it grow before there is RAM again
                ram = boot.machine.memory_map.ram_pages().descending(ISA_END, upper)
                upper = min(upper, align_up(next(ram, (0, ISA_END))[1], step))
        yield from self._map_ram(boot, real_end, end, upper, max_mapped)
        return found is not None

    def _upward(
        self, boot: Boot, start: int, end: int, max_mapped: int
    ) -> Generator[Step, StepResult, int]:
        """Map ``[start, end)`` in growing steps, upward (memory_map_bottom_up).

        ``max_mapped`` is the end of what is mapped already; return where it is then.
        """
        step = boot.mode.entry_span(2)
        mapped, lower = 0, start
        while lower < end:
            upper = align_down(lower, step) + step if end - lower > step else end
            this_step, max_mapped = yield from self._map_ram(boot, lower, upper, start, max_mapped)
            lower = upper
            mapped += this_step
            before, step = step, self.release.next_step(boot.mode, step, mapped, this_step)
            if not this_step and step == before:
                ram = boot.memblock.memory(lower, end)
                lower = max(lower, align_down(next(ram, (end, end))[0], step))
        return max_mapped

    def _map_ram(
        self, boot: Boot, lower: int, upper: int, tables_low: int, max_mapped: int
    ) -> Generator[Step, StepResult, tuple[int, int]]:
        """Map the RAM of ``[lower, upper)``, piece by piece (init_range_memory_mapping).

        Tables may come from ``tables_low`` up to the end of what is mapped, ``max_mapped`` at
        first. Return how much RAM was mapped, and where the end is then.
        """
        ram = list(boot.memblock.memory(lower, upper))
        for low, high in ram:
            brk = self._brk_free(boot).span
            done = yield Map(
                low,
                high,
                label="RAM",
                promote=self.release.promote,
                use_brk=max(low, brk[0]) >= min(high, brk[1]),
                tables_from=(tables_low, max_mapped),
                faults_in=self.movable_node and _handles_faults(boot),
            )
            max_mapped = max(max_mapped, done.mapped_end)
        return sum(high - low for low, high in ram), max_mapped

    def trampoline_tables(self, mode: PagingMode) -> int:
        """Return how many pages of brk become tables for the real-mode trampoline, right after the
        ISA range is mapped (init_trampoline).

        They map the first MiB a second time where the direct map is randomised: one for each level
        between the root and the L2 table that is shared.
        """
        return mode.root_level - 3 if self.kaslr and not mode.is_32bit else 0

    def _brk_free(self, boot: Boot, in_isa_range: bool = False) -> PageRun:
        """Return the brk pages that are left."""
        free = boot.brk_free
        taken = 0 if in_isa_range else self.trampoline_tables(boot.mode)
        return free.tail(min(taken, free.count))

    def allocate(self, boot: Boot, step: Step, demand: TableDemand) -> Sequence[TablePages]:
        """Take pages from brk, then from the window (alloc_low_pages)."""
        if not isinstance(step, Map):
            raise TypeError(f"no tables are asked for in step {step!r}")
        pages: list[TablePages] = []
        wanted = demand.count
        if step.use_brk:
            free = self._brk_free(boot, in_isa_range=step.label == _ISA_LABEL)
            pages += [TablePages(run, Source.BRK) for run in first_pages([free], wanted)]
            wanted -= page_count(part.run for part in pages)
        low, high = step.tables_from
        found = self._find(boot, low, high, wanted)
        pages += [TablePages(run, Source.MEMBLOCK) for run in found]
        wanted -= page_count(found)
        if wanted:
            words = self.release.panic(window_is_empty=low >= high, use_brk=step.use_brk)
            raise KernelPanic(words, wanted, pages)
        return pages

    def _find(self, boot: Boot, low: int, high: int, wanted: int) -> list[PageRun]:
        """Return up to ``wanted`` free pages of a window, in the order of memblock's searches."""
        if not self.movable_node:
            return boot.memblock.pages_top_down(low, high, wanted)
        above = low
        if self.release.bottom_up is BottomUp.ABOVE_KERNEL:
            above = _kernel_end(boot)
        upward = boot.memblock.pages_bottom_up(above, high, wanted)
        wanted -= page_count(upward)
        return upward + boot.memblock.pages_top_down(low, min(above, high), wanted)


def _mapped_at_boot(boot: Boot) -> int:
    """Return the kernel's max_pfn_mapped, in bytes, as it is when mapping begins: the startup code
    of i386 and of Xen guests sets it, that of native x86_64 does not (cleanup_highmap).
    """
    return 0 if _handles_faults(boot) else boot.max_pfn_mapped << PAGE_SHIFT


def _handles_faults(boot: Boot) -> bool:
    """Tell whether this is a native 64-bit kernel: those map what they touch before CR3 is loaded,
    and count nothing of it.
    """
    return not (boot.state.typed or boot.mode.is_32bit)


def _kernel_end(boot: Boot) -> int:
    return align_up(boot.kernel.linked_end or boot.kernel.span[1], PAGE_SIZE)
