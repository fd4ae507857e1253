"""What a real kernel's direct map is made of: its tables and leaf mappings, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from paravirt_mm.image.walker import Cpu, PhysicalMemory, Walk, walk
from paravirt_mm.machine.model import Span
from paravirt_mm.machine.paging import PAGE_SHIFT, PagingMode


@attrs.frozen
class TablePage:
    """A table page: ``level``, ``pfn``, ``va`` = offset in the direct map at which it starts."""

    level: int
    pfn: int
    va: int


@attrs.frozen
class GuestMap:
    """What a walk found. Offsets are bytes from the start of the direct map, so that for an
    identity mapping they are physical addresses.
    """

    tables: tuple[TablePage, ...]
    """Without the root, in order of (level, pfn, va)."""
    leaf_runs: tuple[tuple[int, int, int], ...]
    """Maximal runs ``(start, end, level)`` of identity leaves, ascending."""
    findings: tuple[str, ...]
    """What is not as it should be; empty for a sound map."""


def read_direct_map(
    memory: PhysicalMemory, root: int, mode: PagingMode, within: Span, cpu: Cpu | None = None
) -> GuestMap:
    """List tables and leaf runs below the table at physical address ``root``.

    ``within`` are the virtual addresses (bytes) of the direct map: its start, and where what comes
    behind it begins.
    """
    found = walk(memory, root, mode, cpu, within=within)
    start = within[0] & ((1 << mode.virtual_bits) - 1)
    tables = (
        TablePage(level, address >> PAGE_SHIFT, virtual - start)
        for level, (addresses, virtuals) in found.places.items()
        if level < mode.root_level
        for address, virtual in zip(addresses.tolist(), virtuals.tolist(), strict=True)
    )
    return GuestMap(
        tables=tuple(sorted(tables, key=lambda t: (t.level, t.pfn, t.va))),
        leaf_runs=_identity_runs(found, within[0]),
        findings=tuple(_findings(found, within[0])),
    )


def _identity_runs(found: Walk, base: int) -> tuple[tuple[int, int, int], ...]:
    """Return leaf runs whatever their rights, those of one level joined."""
    joined: list[tuple[int, int, int]] = []
    for run in found.runs:
        start, end = run.start - base, run.end - base
        if run.physical != start:
            continue
        if joined and joined[-1][1:] == (start, run.level):
            start = joined.pop()[0]
        joined.append((start, end, run.level))
    return tuple(joined)


def _findings(found: Walk, base: int) -> Iterator[str]:
    yield from map(str, found.findings)
    for run in found.runs:
        if run.physical != run.start - base:
            yield f"L{run.level} leaf at offset {run.start - base:#x} maps {run.physical:#x}"
    once = sum(len(pages) for pages in found.tables.values())
    if found.visits > once:
        yield f"{found.visits - once} entries lead to a table that another leads to as well"
