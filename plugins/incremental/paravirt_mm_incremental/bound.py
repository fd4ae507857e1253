"""When the proposed seven steps can run out of memory for tables: the account of pages.

Think of the memory that is left to map as *spans* of one L1 table each (2 MiB), from the top down;
only spans that hold RAM count. Mapping one costs ``tables`` pages: its L1, and an L2, an L3 ...
where it is the first in theirs. It gives back ``free`` pages: what is RAM in it and not taken. The
design begins with a **budget**: the pages of brk that are left when the kernel is mapped.

    budget  =  64            the proposal's 256 KiB
    for each span, downward:
        stuck if budget < tables
        budget += free - tables

That the design maps as many spans as it can pay for and only then may use what they hold changes
nothing (`proof`, first statement), so this account says exactly which machines it cannot map. With
large pages a span of whole RAM costs no L1 table: 4 KiB pages are the worst case.

A span is *poor* if it costs more than it gives; the **deficit** of a machine is the sum of
``tables - free`` over its poor spans. With *levels* below the root (3 on x86_64, 2 with PAE), a
budget of deficit + levels is always enough, and one page less is not (`proof` and its tests).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import attrs

from paravirt_mm import (
    PAGE_SIZE,
    Machine,
    Map,
    PagingMode,
    RangeSet,
    RunStarted,
    StepStarted,
    TablesAllocated,
    Trace,
    align_down,
    page_count,
)


@attrs.frozen
class TableSpan:
    """The bytes of one L1 table: where they start, what mapping them costs and gives, in pages."""

    start: int
    tables: int
    free: int

    @property
    def deficit(self) -> int:
        """How much more it costs than it gives; 0 where it pays for itself."""
        return max(0, self.tables - self.free)


def stuck(budget: int, spans: Iterable[TableSpan]) -> TableSpan | None:
    """Return the span at which a budget (pages) runs out; None: it is enough for all of them."""
    for span in spans:
        if budget < span.tables:
            return span
        budget += span.free - span.tables
    return None


def enough(mode: PagingMode, spans: Iterable[TableSpan]) -> int:
    """Return the budget (pages) that is enough for any machine with these spans' deficit."""
    return sum(span.deficit for span in spans) + mode.root_level - 1


def spans(
    machine: Machine, mapped: Iterable[tuple[int, int]], taken: RangeSet
) -> Iterator[TableSpan]:
    """Yield the spans that are left to map with 4 KiB pages, from the top down.

    ``mapped`` is what has been mapped already (the kernel), ``taken`` all that is not free; bytes.
    """
    mode = machine.mode
    span = mode.table_span(1)
    ram = RangeSet(machine.memory_map.ram_pages().below(machine.map_limit))
    known = {
        (level, number)
        for low, high in mapped
        for level in range(1, mode.root_level)
        for number in range(low // mode.table_span(level), -(-high // mode.table_span(level)))
    }
    for low, high in mapped:
        ram.discard(low, high)
    seen: int | None = None
    for low, high in reversed(list(ram)):
        for start in range(align_down(high - 1, span), align_down(low, span) - 1, -span):
            if start == seen:
                continue  # two pieces of RAM share it
            seen = start
            needed = {
                (level, start // mode.table_span(level)) for level in range(1, mode.root_level)
            }
            inside = RangeSet(ram.within(start, start + span))
            yield TableSpan(start, len(needed - known), inside.difference(taken).total // PAGE_SIZE)
            known |= needed


def left_of_brk(trace: Trace) -> int:
    """Return the pages of brk that are left in a run of the seven steps when the kernel is mapped.

    Raises ValueError where the run did not come so far.
    """
    maps = used = brk = 0
    for event in trace.events:
        match event:
            case RunStarted():
                brk = event.boot.kernel_of(event.machine).brk_pages
            case StepStarted(step=Map()):
                maps += 1
                if maps == 2:
                    break
            case TablesAllocated():
                used += page_count(event.batch.runs)
    if not maps:
        raise ValueError("the run ended before the kernel was mapped")
    return brk - used
