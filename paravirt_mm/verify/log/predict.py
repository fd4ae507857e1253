"""From a run of the model to the lines that its kernel would have printed.

The lines are facts of the same kinds that a boot log is read into, so that the two can be compared
one by one. Line numbers are 0.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import islice

import attrs

from paravirt_mm.engine.pages import Source, TablePages
from paravirt_mm.engine.trace import PagesTaken, RangeSplit, TablesAllocated, TablesReserved
from paravirt_mm.machine import e820
from paravirt_mm.machine.model import Machine, Span
from paravirt_mm.machine.paging import GIB, PAGE_SHIFT, PAGE_SIZE
from paravirt_mm.run import Run
from paravirt_mm.sources.bootlog.facts import (
    BrkTable,
    Fact,
    LastPfn,
    MappedRange,
    PageRange,
    Reservation,
    TableBlock,
    WritableRange,
)
from paravirt_mm.verify.log.words import Words

TABLE_OWNER = "PGTABLE"


def mapping_lines(
    run: Run,
    words: Words,
    kinds: Collection[type[Fact]],
    limit: int,
    other_tables: int,
) -> list[Fact]:
    """Return the lines of some kinds (ranges, page sizes, blocks, tables), in the kernel's order.

    Of the linear allocator's tables the reservations come last, one for each call: kernels that
    print them do so when they hand over to the next allocator. No more than ``limit`` lines are
    returned. ``other_tables`` pages of brk become tables of something else than the direct map
    right after its first step, so that no event shows them.
    """
    lines = (line for line in _all_lines(run, words, kinds, other_tables) if type(line) in kinds)
    return list(islice(lines, limit))


def _all_lines(
    run: Run, words: Words, kinds: Collection[type[Fact]], other_tables: int
) -> Iterator[Fact]:
    kernel = _Kernel(run.machine, words, Reservation in kinds, other_tables << PAGE_SHIFT)
    for event in run.trace:
        if isinstance(event, RangeSplit):
            yield from kernel.begin_call(event)
        elif isinstance(event, TablesReserved):
            yield kernel.set_aside(event.pages[0].span)
        elif isinstance(event, TablesAllocated):
            yield from kernel.take(event.batch.pages)
        elif isinstance(event, PagesTaken):
            yield from kernel.take(event.pages)
    yield from kernel.end()


@attrs.define
class _Kernel:
    """A kernel that prints. ``other_tables`` (bytes of brk) become tables between the first call of
    init_memory_mapping and the second; pages from memblock are told if ``tells_pages``.

    Where a call ends (bytes), how many there were, and what each has taken of its block; where the
    last table from brk ends; what of the last block is not used.
    """

    machine: Machine
    words: Words
    tells_pages: bool
    other_tables: int
    _call_end: int = attrs.field(init=False)
    _blocks: list[list[Span]] = attrs.field(factory=list)
    _brk_end: int = 0
    _unused: Span | None = None

    def begin_call(self, event: RangeSplit) -> Iterator[Fact]:
        """Lines of a call of init_memory_mapping, which begins with what the last one left."""
        yield from self._give_back()
        self._blocks.append([])
        if len(self._blocks) == 2:
            yield from _brk_tables(self._brk_end, self._brk_end + self.other_tables, self.words)
        self._call_end = event.end
        span = None if self.words.hides_ranges else (event.start, event.end)
        yield MappedRange(0, self.words.mapped_range(event.start, event.end), span)
        for piece in event.pieces:
            name = self.words.page_name(self.machine.mode.page_name(piece.level))
            text = self.words.page_range(piece.start, piece.end, name)
            yield PageRange(0, text, piece.start, piece.end, name)

    def set_aside(self, block: Span) -> TableBlock:
        """The line of the block that the linear allocator sets aside for a call."""
        self._unused = block
        up_to = self.words.end_of_call(self._call_end, self.machine.memory_map)
        return TableBlock(0, self.words.table_block(up_to, *block), up_to, *block)

    def take(self, pages: Iterable[TablePages]) -> Iterator[Fact]:
        """Lines of pages that become tables."""
        for part in pages:
            start, end = part.run.span
            if part.source is Source.BRK:
                yield from _brk_tables(start, end, self.words)
                self._brk_end = end
            elif part.source is Source.RESERVATION:
                self._blocks[-1].append((start, end))
                self._unused = (end, self._unused[1]) if self._unused else None
            elif self.tells_pages:
                for n in range(part.run.count):
                    page = (part.run.start + n * part.run.step) << PAGE_SHIFT
                    yield _reservation(page, page + PAGE_SIZE, self.words)

    def end(self) -> Iterator[Fact]:
        """Lines at the end of the mapping: what is left of the last block, and every block."""
        yield from self._give_back()
        for parts in filter(None, self._blocks):  # used from the start up, reserved in one piece
            yield _reservation(parts[0][0], parts[-1][1], self.words)

    def _give_back(self) -> Iterator[WritableRange]:
        if self._unused is not None:
            yield WritableRange(0, self.words.setting_writable(*self._unused), *self._unused)
            self._unused = None


def _brk_tables(start: int, end: int, words: Words) -> Iterator[BrkTable]:
    for page in range(start, end, PAGE_SIZE):
        yield BrkTable(0, words.brk_table(page, page + PAGE_SIZE), page, page + PAGE_SIZE)


def _reservation(start: int, end: int, words: Words) -> Reservation:
    text = f"{words.reserved(start, end)} {TABLE_OWNER}"
    return Reservation(0, text, start, end, TABLE_OWNER)


def last_pfns(machine: Machine, max_arch_pfn: int, words: Words) -> list[LastPfn]:
    """Return the last_pfn lines that follow from the memory map alone (e820_end_pfn)."""
    pfn, low = e820.last_pfns(machine.memory_map, machine.mode.physical_bits, words.version)
    pfns = [pfn]
    if not machine.mode.is_32bit and pfn > (4 * GIB) >> PAGE_SHIFT:
        pfns.append(low)
    return [LastPfn(0, words.last_pfn(pfn, max_arch_pfn), pfn, max_arch_pfn) for pfn in pfns]
