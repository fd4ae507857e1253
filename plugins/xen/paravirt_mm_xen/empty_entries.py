"""Empty entries that Linux writes while it maps a range: the largest part of its hypercalls.

Each call of init_memory_mapping walks the tables of its range to the end of each table, and stores
0 into the entries behind the end of the range that have no RAM (phys_pud_init, phys_pmd_init and
phys_pte_init in arch/x86/mm/init_64.c; seen in Linux 3.6 to 6.5). Under Xen an entry of an L2 or L3
goes through mmu_update, even where it is 0 already: a guest of 512 MiB pays 511 calls for the L3
and 256 for the L2, in each call of init_memory_mapping. Releases whose leaf entries go through it
pay for those of the L1, too. The design has none of it, and no platform
asks for it; the trace of a run does not hold these stores, so that allocators are compared by what
they need. Here they are counted.
"""

from __future__ import annotations

from collections.abc import Mapping

from paravirt_mm import (
    EntriesWritten,
    EntryKind,
    HandOver,
    Map,
    PagingMode,
    Ranges,
    RangeSet,
    StepStarted,
    Trace as RunTrace,
    Way,
    align_down,
    align_up,
)

_EACH = HandOver.EACH


def cleared_entries(trace: RunTrace) -> Mapping[int, int]:
    """Return, by level, how many empty entries Linux would pass to Xen in the course of a run.

    Counted for steps whose tables are handed over one by one, which are calls of Linux's
    init_memory_mapping; others are not Linux's. The 32-bit walk (init_32.c) stores no such entries.
    """
    start = trace.start
    mode = start.machine.mode
    if mode.is_32bit:
        return {}
    steps = [event.step for event in trace.of(StepStarted)]
    calls = [step for step in steps if isinstance(step, Map) and step.hand_over is _EACH]
    if not calls:
        return dict.fromkeys(range(2, mode.root_level), 0)
    ram = start.machine.memory_map.ram_pages()
    leaves = any(
        event.kind is EntryKind.LEAF and event.cost.way is Way.HYPERCALL
        for event in trace.of(EntriesWritten)
    )
    levels = range(1 if leaves else 2, mode.root_level)
    cleared = dict.fromkeys(levels, 0)
    for level in cleared:
        # Rounded to entries once: a table has few of them, however many pieces the RAM lies in.
        used = _in_entries(ram, mode.entry_span(level))
        cleared[level] = sum(_behind(used, step.start, step.end, mode, level) for step in calls)
    return cleared


def _in_entries(ram: Ranges, entry: int) -> RangeSet:
    return RangeSet((align_down(low, entry), align_up(high, entry)) for low, high in ram)


def _behind(used: RangeSet, start: int, end: int, mode: PagingMode, level: int) -> int:
    """Count entries that are not ``used`` behind ``end`` in the last table of ``level`` walked."""
    if start >= end:
        return 0
    entry = mode.entry_span(level)
    last = align_up(end, mode.table_span(level))
    filled = sum(high - low for low, high in used.within(end, last))
    return (last - end - filled) // entry
