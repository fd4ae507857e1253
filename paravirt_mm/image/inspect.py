"""Figures of the page tables found in memory: those of a run, by the same definitions, so that both
fit one table.

Tables of a real kernel serve more than its direct map, so they are counted twice: all of them, and
those that translate the direct map, which is recognised as the constant distance between virtual
and physical addresses that covers the most memory of the kernel's half.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import attrs

from paravirt_mm.image.dump import Dump
from paravirt_mm.image.walker import Cpu, Damage, LeafRun, PhysicalMemory, Walk, WalkLimits, walk
from paravirt_mm.machine.paging import PAGE_SHIFT, PAGE_SIZE, PagingMode
from paravirt_mm.machine.ranges import RangeSet
from paravirt_mm.measure.figures import TABLE_FIGURES, Unit, Value


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
    figures: Mapping[str, Value]
    direct_map: DirectMap | None
    direct_figures: Mapping[str, Value] | None
    runs: tuple[LeafRun, ...]
    findings: tuple[Damage, ...]
    dropped: int


def limits_for(dump: Dump) -> WalkLimits:
    """Return limits for the tables in a dump. Each page can be one table; some are shared by many
    parents, but not by so many that they are visited more than a few times on the average.
    """
    pages = sum(segment.end - segment.start for segment in dump.segments) // PAGE_SIZE
    usual = WalkLimits()
    return WalkLimits(
        tables=min(usual.tables, 4 * pages + 4096), runs=min(usual.runs, 2048 * pages + 4096)
    )


def inspect(
    memory: PhysicalMemory,
    root: int,
    mode: PagingMode,
    cpu: Cpu | None = None,
    limits: WalkLimits | None = None,
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


@attrs.frozen
class _Found:
    """A walk as the figures of a run see tables; ``runs`` are what counts as mapped."""

    mode: PagingMode
    table_pages: RangeSet
    by_level: Mapping[int, int]
    runs: tuple[LeafRun, ...]

    @property
    def tables(self) -> int:
        return self.table_pages.total

    @property
    def mapped_bytes(self) -> Mapping[int, int]:
        mapped: Counter[int] = Counter()
        for run in self.runs:
            mapped[run.level] += run.end - run.start
        return mapped


def table_figures(walked: Walk, direct: DirectMap | None = None) -> dict[str, Value]:
    """Return figures of a walk: those of a run that tell of tables, and those of `OWN`.

    With ``direct`` only leaves that belong to it count as mapped.
    """
    pages = walked.table_pages()
    runs = tuple(
        run for run in walked.runs if direct is None or run.start - run.physical == direct.base
    )
    found = _Found(
        mode=walked.mode,
        table_pages=RangeSet((low >> PAGE_SHIFT, high >> PAGE_SHIFT) for low, high in pages),
        by_level={level: len(tables) for level, tables in walked.tables.items()},
        runs=runs,
    )
    figures = {name: compute(found) for name, compute in TABLE_FIGURES.items()}
    figures["runs"] = len(runs)
    figures["writable_tables"] = writable_tables(runs, pages).total // PAGE_SIZE
    figures["writable_executable"] = sum(
        run.end - run.start for run in runs if run.writable and run.executable
    )
    return figures


OWN: Mapping[str, tuple[Unit, str]] = {
    "runs": (Unit.COUNT, "runs of leaf entries with equal level and rights"),
    "writable_tables": (Unit.PAGES, "page-table pages that some mapping lets be written"),
    "writable_executable": (Unit.BYTES, "bytes mapped both writable and executable"),
}
"""Figures that only tables found in memory have: unit and meaning."""


def writable_tables(runs: Sequence[LeafRun], pages: RangeSet) -> RangeSet:
    """Return which of the table pages (bytes) can be written through one of the runs."""
    result = RangeSet()
    for run in runs:
        if run.writable:
            result.update(pages.within(run.physical, run.physical + run.end - run.start))
    return result
