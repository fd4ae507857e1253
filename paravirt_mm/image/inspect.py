"""Figures of the page tables found in memory: the same names as those of a run, so that both fit
one table.

Tables of a real kernel serve more than its direct map, so they are counted twice: all of them, and
those that translate the direct map, which is recognised as the constant distance between virtual
and physical addresses that covers the most memory of the kernel's half.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import attrs

from paravirt_mm.image.dump import Dump
from paravirt_mm.image.walker import Cpu, Finding, LeafRun, Limits, PhysicalMemory, Walk, walk
from paravirt_mm.machine.paging import GIB, MIB, PAGE_SIZE, PagingMode
from paravirt_mm.machine.ranges import RangeSet

_PAGE_NAMES = {1: "4k", 2: "large", 3: "huge"}


@attrs.frozen
class DirectMap:
    """A direct map: virtual ``[start, end)``, and the virtual address of physical 0."""

    base: int
    start: int
    end: int


@attrs.frozen
class Inspection:
    """What was found: figures of all tables and of the direct map's (None: none recognised), leaf
    runs, findings.
    """

    mode: PagingMode
    root: int
    figures: Mapping[str, int | None]
    direct_map: DirectMap | None
    direct_figures: Mapping[str, int | None] | None
    runs: tuple[LeafRun, ...]
    findings: tuple[Finding, ...]
    dropped: int


def limits_for(dump: Dump) -> Limits:
    """Return limits for the tables in a dump. Each page can be one table; some are shared by many
    parents, but not by so many that they are visited more than a few times on the average.
    """
    pages = sum(segment.end - segment.start for segment in dump.segments) // PAGE_SIZE
    usual = Limits()
    return Limits(
        tables=min(usual.tables, 4 * pages + 4096), runs=min(usual.runs, 2048 * pages + 4096)
    )


def inspect(
    memory: PhysicalMemory,
    root: int,
    mode: PagingMode,
    cpu: Cpu | None = None,
    limits: Limits | None = None,
) -> Inspection:
    """Walk the tables below ``root`` and work out their figures.

    Without ``limits`` the size of a `Dump` decides how many tables it can have.
    """
    if limits is None and isinstance(memory, Dump):
        limits = limits_for(memory)
    everything = walk(memory, root, mode, cpu, limits)
    direct = find_direct_map(everything)
    figures = None
    if direct is not None:
        part = walk(memory, root, mode, cpu, limits, within=(direct.start, direct.end))
        figures = table_figures(part, direct)
    return Inspection(
        mode=mode,
        root=root,
        figures=table_figures(everything),
        direct_map=direct,
        direct_figures=figures,
        runs=everything.runs,
        findings=everything.findings,
        dropped=everything.dropped,
    )


def find_direct_map(found: Walk) -> DirectMap | None:
    """Return the direct map, or None where the kernel's half maps nothing."""
    kernel_half = 1 << (31 if found.mode.is_32bit else 63)
    sizes: Counter[int] = Counter()
    for run in found.runs:
        if run.start >= kernel_half:
            sizes[run.start - run.physical] += run.end - run.start
    if not sizes:
        return None
    base = max(sizes, key=lambda distance: (sizes[distance], distance))
    parts = [run for run in found.runs if run.start - run.physical == base]
    return DirectMap(base, parts[0].start, parts[-1].end)


def table_figures(found: Walk, direct: DirectMap | None = None) -> dict[str, int | None]:
    """Return figures of a walk, named as those of a run; bytes, addresses and counts.

    With ``direct`` only leaves that belong to it count as mapped.
    """
    mode = found.mode
    pages = found.table_pages()
    figures: dict[str, int | None] = {"tables": pages.total // PAGE_SIZE}
    for level in range(1, 6):
        figures[f"tables_l{level}"] = len(found.tables.get(level, ()))
    for name, limit in (
        ("1m", MIB),
        ("16m", 16 * MIB),
        ("lowmem", mode.lowmem_limit),
        ("4g", 4 * GIB),
    ):
        below = sum(high - low for low, high in pages.within(0, limit)) if limit else None
        figures[f"tables_below_{name}"] = below
    figures["lowest_table"] = pages.first if pages else None
    figures["highest_table"] = pages.end - PAGE_SIZE if pages else None
    figures["extents"] = len(pages)
    runs = [run for run in found.runs if direct is None or run.start - run.physical == direct.base]
    for level, name in _PAGE_NAMES.items():
        figures[f"mapped_{name}"] = sum(run.end - run.start for run in runs if run.level == level)
    figures["runs"] = len(runs)
    figures["writable_tables"] = writable_tables(runs, pages).total // PAGE_SIZE
    figures["writable_executable"] = sum(
        run.end - run.start for run in runs if run.writable and run.executable
    )
    return figures


MEANINGS = {
    "tables": "page-table pages, root included",
    **{f"tables_l{level}": f"page tables of level {level}" for level in range(1, 6)},
    "tables_below_1m": "bytes of page-table pages below 1 MiB",
    "tables_below_16m": "below 16 MiB (ISA DMA)",
    "tables_below_lowmem": "below the end of 32-bit lowmem",
    "tables_below_4g": "below 4 GiB",
    "lowest_table": "address of the lowest page-table page",
    "highest_table": "address of the highest page-table page",
    "extents": "contiguous runs that the page-table pages form",
    "mapped_4k": "bytes mapped by L1 entries",
    "mapped_large": "bytes mapped by L2 entries",
    "mapped_huge": "bytes mapped by L3 entries",
    "runs": "runs of leaf entries with equal level and rights",
    "writable_tables": "page-table pages that some mapping lets be written",
    "writable_executable": "bytes mapped both writable and executable",
}
"""What each figure means."""


def writable_tables(runs: list[LeafRun] | tuple[LeafRun, ...], pages: RangeSet) -> RangeSet:
    """Return which of the table pages (bytes) can be written through one of the runs."""
    result = RangeSet()
    for run in runs:
        if run.writable:
            result.update(pages.within(run.physical, run.physical + run.end - run.start))
    return result
