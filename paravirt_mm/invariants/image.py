"""Invariant 3 by the hardware's own rules: make the bytes of a run's tables, walk them, compare
with the trace.

The other invariants follow the events. This one looks at the result as a CPU would: entries that
are missing, lead elsewhere, have reserved bits set or let a table be written are found whatever
the events say. It costs a visit to every table, so it is for machines that are `is_small`.
"""

from __future__ import annotations

from collections.abc import Iterator

from paravirt_mm.engine.trace import (
    RangeMapped,
    TablesAllocated,
    Trace,
)
from paravirt_mm.image.boot_tables import NoRoom
from paravirt_mm.image.contents import Image
from paravirt_mm.image.inspect import writable_tables
from paravirt_mm.image.walker import Walk, canonical, walk
from paravirt_mm.invariants.rules import Finding
from paravirt_mm.machine.ranges import RangeMap, RangeSet

SMALL = 4096
"""Table pages up to which a walk takes some milliseconds (8 GiB of 4 KiB mappings)."""


def is_small(trace: Trace, limit: int = SMALL) -> bool:
    """Tell whether a run built at most ``limit`` tables."""
    return sum(event.batch.count for event in trace.of(TablesAllocated)) <= limit


def check_image(trace: Trace) -> list[Finding]:
    """Return what a walk of the finished tables finds wrong: rule 3, or 4 for a table that can be
    written.

    A run that panicked or was refused has no finished tables, and no findings; nor has one on a
    machine without room for the tables that it must have had before.
    """
    if not trace.begun or trace.ended_early:
        return []
    try:
        image = Image(trace)
    except NoRoom:
        return []
    return list(compare_walk(trace, walk(image, image.root, image.mode)))


def compare_walk(trace: Trace, found: Walk) -> Iterator[Finding]:
    """Yield what a walk shows that the trace does not say, and the other way round."""
    number = len(trace.events) - 1
    for damage in found.findings:
        yield Finding(3, number, damage.address, f"walking the tables: {damage}")
    mode = found.mode
    base = canonical(mode, trace.start.machine.direct_map_base)
    mapped: RangeMap[int] = RangeMap()
    for run in found.runs:
        if run.start - base != run.physical:
            yield Finding(3, number, run.start, f"leads to {run.physical:#x}: no identity")
        else:
            mapped.set(run.physical, run.physical + run.end - run.start, run.level)
    expected = expected_leaves(trace)
    known = RangeSet((low, high) for low, high, _ in expected)
    known.update((low, high) for low, high, _ in mapped)
    for first, last in known:
        for low, high, level in expected.segments(first, last):
            for start, _, seen in mapped.segments(low, high):
                if seen != level:
                    yield Finding(3, number, start, f"{_words(seen)} instead of {_words(level)}")
                    break
    if trace.start.boot.typed:
        tables = found.table_pages()
        tables.update(trace.start.boot.boot_tables)
        for address, _ in writable_tables(found.runs, tables):
            yield Finding(4, number, address, "a page table can be written through the direct map")


def expected_leaves(trace: Trace) -> RangeMap[int]:
    """Return by physical address which level maps it, as the events say (no level: not mapped)."""
    mode = trace.start.machine.mode
    leaves: RangeMap[int] = RangeMap()
    for low, high in trace.start.boot.direct_mapped:
        leaves.set(low, high, 1)
    for event in trace:
        if isinstance(event, TablesAllocated):
            if mode.root_level in event.batch.spans:
                leaves = RangeMap()
            for level, spans in event.batch.spans.items():
                for low, high in spans:
                    _replace(leaves, level, low, high)
        elif isinstance(event, RangeMapped):
            leaves.set(event.leaves.start, event.leaves.end, event.leaves.level)
    return leaves


def _replace(leaves: RangeMap[int], level: int, low: int, high: int) -> None:
    """A new table takes the place of the large pages that were there."""
    large = RangeSet((start, end) for start, end, seen in leaves.within(low, high) if seen > level)
    for start, end in large:
        leaves.clear(start, end)


def _words(level: int | None) -> str:
    return "not mapped" if level is None else f"a page of L{level}"


__all__ = ["SMALL", "check_image", "compare_walk", "expected_leaves", "is_small"]
