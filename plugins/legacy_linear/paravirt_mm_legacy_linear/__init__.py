"""The linear allocator of Linux up to 3.8: guess how many tables a range needs, set one block
aside, use it up.

Each call of init_memory_mapping guesses anew. The formulas, and where the block is searched,
changed with nearly every release; they stand in `paravirt_mm_legacy_linear.releases`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import ClassVar

import attrs

from paravirt_mm import (
    API_VERSION,
    CONFIGURATION,
    ERA,
    GIB,
    PAGE_SHIFT,
    Boot,
    Choice,
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
    Span,
    SpecError,
    Step,
    StepResult,
    TableDemand,
    TablePages,
    align_up,
    dotted,
    first_pages,
    hookimpl,
    page_count,
    parse_release,
    with_trampoline,
)
from paravirt_mm_legacy_linear.questions import QUESTIONS
from paravirt_mm_legacy_linear.releases import (
    FIXMAP_ENTRIES,
    Calls,
    Change,
    GoodEnd,
    Guess,
    change_for,
    era,
    guess_pages,
    pages_for,
)


@attrs.frozen
class LegacyLinear:
    """Linux's linear early page-table allocator.

    kernel
        The release to model, from 2.6.19 (32-bit: 2.6.27) to 3.8, for example ``3.6``.
    good_end
        Where the search for the block may end: ``release`` as that release did, ``mapped`` at the
        end of what is mapped so far, ``end`` at the end of the range to be mapped. The patch
        "revert back good_end setting for 64bit", which started the thread that this laboratory grew
        from, is the choice ``end``.
    guess
        How the number of tables is estimated, where it is not as in the mainline release (see
        `Guess`).
    calls
        Which ranges are passed to init_memory_mapping, where that is not as in the mainline release
        (see `Calls`).
    fixmap_entries
        32-bit: entries of the kernel's fixmap; its tables are part of the guess.
    """

    pvmm_api: ClassVar[int] = API_VERSION

    kernel: str = attrs.field(default="3.6", metadata={ERA: era})
    good_end: GoodEnd = GoodEnd.RELEASE
    guess: Guess | None = None
    calls: Calls | None = None
    fixmap_entries: int = attrs.field(default=FIXMAP_ENTRIES, metadata={CONFIGURATION: True})

    def __attrs_post_init__(self) -> None:
        change_for(self.kernel, is_32bit=False)
        if not 0 <= self.fixmap_entries <= 1 << 20:
            raise SpecError(f"fixmap_entries={self.fixmap_entries} is not between 0 and {1 << 20}")

    def _change(self, boot: Boot) -> Change:
        """The facts of the release."""
        return change_for(self.kernel, is_32bit=boot.mode.is_32bit)

    def _calls(self, boot: Boot) -> list[Span]:
        """The ranges that setup_arch passes to init_memory_mapping."""
        machine = boot.machine
        calls = [(0, machine.max_low_pfn << PAGE_SHIFT)]
        if boot.mode.is_32bit:
            return calls
        wanted = self.calls or self._change(boot).calls
        if wanted is Calls.ONE:
            # The last large page is mapped whole.
            largest = boot.mode.entry_span(boot.largest_level)
            end = align_up(machine.memory_map.known().end, largest)
            return [(0, min(end, boot.mode.physical_end))]
        if machine.max_pfn <= machine.max_low_pfn:
            return calls
        end = machine.max_pfn << PAGE_SHIFT
        if wanted is Calls.REGIONS:
            calls += boot.memblock.memory(4 * GIB, end)
        else:
            calls.append((4 * GIB, end))
        return calls

    def _step(self, boot: Boot, start: int, end: int) -> Map:
        return Map(
            start,
            end,
            label="init_memory_mapping",
            reserve=True,
            skip_empty_level=0 if boot.mode.is_32bit else 3,
        )

    def _steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
        for start, end in self._calls(boot):
            if start < end:  # there may be no memory below 4 GiB
                yield self._step(boot, start, end)

    @hookimpl
    def pvmm_kernel_image(self, machine: Machine) -> KernelImage:
        """Link the kernel without any brk for the tables of the direct map. Raises `SpecError`
        where the release is not modelled on this machine.
        """
        change_for(self.kernel, is_32bit=machine.mode.is_32bit)
        return machine.kernel.with_brk(0)

    @hookimpl
    def pvmm_promise(self, boot: Boot) -> Promise:
        """Promise each call's range, holes included, but for 1 GiB slots without any firmware
        entry.
        """
        promised = RangeSet()
        for start, end in self._calls(boot):
            fillable = boot.fillable(self._step(boot, start, end))
            promised.update(fillable[1].within(start, end) if fillable else [(start, end)])
        return Promise(direct_map=tuple(promised))

    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
        """Map each call's range, upward."""
        return with_trampoline(boot, self.kernel, self._steps(boot))

    @hookimpl
    def pvmm_reserve_tables(
        self, boot: Boot, step: Map, pieces: Sequence[Piece]
    ) -> Sequence[PageRun]:
        """Guess how many tables the range needs and find one block for them
        (find_early_table_space).
        """
        change = self._change(boot)
        fixmap = change.fixmap
        if fixmap is None:
            fixmap = pages_for(boot, self.fixmap_entries)
        guess = guess_pages(boot, self.guess or change.guess, pieces, step.end, fixmap)
        size = guess << PAGE_SHIFT
        good_end = change.good_end if self.good_end is GoodEnd.RELEASE else self.good_end
        stop = step.end if good_end is GoodEnd.END else boot.max_pfn_mapped << PAGE_SHIFT
        find = boot.memblock.find_top_down if change.top_down else boot.memblock.find_bottom_up
        base = find(change.search_start, stop, size)
        if base is None:
            raise KernelPanic("Cannot find space for the kernel page tables")
        return [PageRun.of_span(base, base + size)]

    @hookimpl
    def pvmm_allocate_tables(self, boot: Boot, demand: TableDemand) -> Sequence[TablePages]:
        """Take the next pages of the block, upward (alloc_low_page)."""
        runs = list(first_pages(boot.reservation, demand.count))
        pages = [TablePages(run, Source.RESERVATION) for run in runs]
        missing = demand.count - page_count(runs)
        if missing:
            raise KernelPanic("alloc_low_page: ran out of memory", missing, pages)
        return pages

    @hookimpl
    def pvmm_release_tables(self, surplus: Sequence[PageRun]) -> Sequence[PageRun]:
        """Give back all that was not used: pgt_buf_end up to pgt_buf_top."""
        return surplus

    @hookimpl
    def pvmm_default_specs(self) -> Iterator[DefaultSpec]:
        """Compare the two sides of the thread: the block as high as what is to be mapped, and the
        block inside what is mapped.
        """
        yield DefaultSpec("legacy_linear:kernel=2.6.39", 10)
        yield DefaultSpec("legacy_linear:kernel=3.6", 20)

    @hookimpl
    def pvmm_models_kernel(self, release: str, mode: str) -> str | None:
        """Say which spec models a release before 3.9."""
        try:
            change_for(release, is_32bit=mode.startswith("i386"))
        except SpecError:
            return None
        return f"legacy_linear:kernel={dotted(parse_release(release))}"

    @hookimpl
    def pvmm_open_questions(self, release: str, mode: str) -> Iterator[Sequence[Choice]]:
        """Say what a release leaves open."""
        return (question.choices for question in QUESTIONS if question.concerns(release, mode))
