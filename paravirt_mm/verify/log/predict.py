"""From a run of the model to the lines that its kernel would have printed.

The lines are facts of the same kinds that a boot log is read into, so that the two can be compared
one by one. Line numbers are 0.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import islice

import attrs

from paravirt_mm.engine.pages import Source
from paravirt_mm.engine.trace import PagesTaken, RangeSplit, TablesAllocated, TablesReserved
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
    limit: int = 1 << 20,
    other_tables: int = 0,
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
    mode = run.machine.mode
    blocks: list[list[Reservation]] = []
    end = brk_end = calls = 0
    unused: Span | None = None
    for event in run.trace:
        if isinstance(event, RangeSplit):
            calls += 1
            blocks.append([])
            yield from _writable(unused, words)
            unused = None
            if calls == 2:
                yield from _brk_tables(brk_end, brk_end + (other_tables << PAGE_SHIFT), words)
            end = event.end
            span = None if words.hides_ranges else (event.start, event.end)
            yield MappedRange(0, words.mapped_range(event.start, event.end), span)
            for piece in event.pieces:
                name = words.page_name(mode.page_name(piece.level))
                text = words.page_range(piece.start, piece.end, name)
                yield PageRange(0, text, piece.start, piece.end, name)
        elif isinstance(event, TablesReserved):
            start, top = unused = event.pages[0].span
            up_to = words.end_of_call(end, run.machine.memory_map)
            yield TableBlock(0, words.table_block(up_to, start, top), up_to, start, top)
        elif isinstance(event, TablesAllocated | PagesTaken):
            taken = event.pages if isinstance(event, PagesTaken) else event.batch.pages
            for part in taken:
                start, top = part.run.span
                if part.source is Source.BRK:
                    yield from _brk_tables(start, top, words)
                    brk_end = top
                elif part.source is Source.RESERVATION:
                    blocks[-1].append(_reservation(start, top, words))
                    unused = (top, unused[1]) if unused else None
                elif Reservation in kinds:
                    for n in range(part.run.count):
                        page = (part.run.start + n * part.run.step) << PAGE_SHIFT
                        yield _reservation(page, page + PAGE_SIZE, words)
    yield from _writable(unused, words)
    for parts in blocks:
        yield from _merged(parts, words)


def _brk_tables(start: int, end: int, words: Words) -> Iterator[BrkTable]:
    for page in range(start, end, PAGE_SIZE):
        yield BrkTable(0, words.brk_table(page, page + PAGE_SIZE), page, page + PAGE_SIZE)


def _writable(unused: Span | None, words: Words) -> Iterator[WritableRange]:
    if unused is not None:
        yield WritableRange(0, words.setting_writable(*unused), *unused)


def _reservation(start: int, end: int, words: Words) -> Reservation:
    text = f"{words.reserved(start, end)} {TABLE_OWNER}"
    return Reservation(0, text, start, end, TABLE_OWNER)


def _merged(reserved: list[Reservation], words: Words) -> Iterator[Reservation]:
    """Join the parts of one block: it is reserved in one piece."""
    pending: tuple[int, int] | None = None
    for fact in reserved:
        if pending is not None and pending[1] == fact.start:
            pending = pending[0], fact.end
            continue
        if pending is not None:
            yield _reservation(*pending, words)
        pending = fact.start, fact.end
    if pending is not None:
        yield _reservation(*pending, words)


def last_pfns(machine: Machine, max_arch_pfn: int, words: Words) -> list[LastPfn]:
    """Return the last_pfn lines that follow from the memory map alone (e820_end_pfn)."""
    machine = attrs.evolve(machine, max_pfn_hint=None, max_low_pfn_hint=None)
    pfns = [machine.max_pfn]
    if not machine.mode.is_32bit and machine.max_pfn > (4 * GIB) >> PAGE_SHIFT:
        pfns.append(machine.max_low_pfn)
    return [LastPfn(0, words.last_pfn(pfn, max_arch_pfn), pfn, max_arch_pfn) for pfn in pfns]
