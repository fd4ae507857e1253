"""Walking a real kernel's tables from the root and listing what makes up its direct map.

Works on anything that can hand out a page of physical memory by address, so it also reads dumps.
Entries are untrusted: tables outside memory, loops and leaves that do not map identity are findings
with level and address, never followed blindly.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import numpy as np
import numpy.typing as npt

from paravirt_mm.machine.paging import PAGE_SIZE

_ENTRIES = 512
_PRESENT = np.uint64(1)
_PS = np.uint64(1 << 7)
_ADDRESS = np.uint64(0x000F_FFFF_FFFF_F000)
_MAX_TABLES = 1 << 21
_MAX_FINDINGS = 100

ReadPage = Callable[[int], bytes | None]
"""Page at a physical address, or None where there is no memory."""
Entries = npt.NDArray[np.uint64]


@attrs.frozen
class Table:
    """A table page: ``level`` 1 to 4, ``pfn``, ``va`` = offset in the direct map it starts at."""

    level: int
    pfn: int
    va: int


@attrs.frozen
class DirectMap:
    """What a walk found.  Offsets are bytes from the start of the direct map, so that for an
    identity mapping they are physical addresses."""

    tables: tuple[Table, ...]
    """Without the root, in order of (level, pfn, va)."""
    leaf_runs: tuple[tuple[int, int, int], ...]
    """Maximal runs ``(start, end, level)`` of identity leaves, ascending."""
    findings: tuple[str, ...]
    """What is not as it should be; empty for a sound map."""


def walk_direct_map(
    read_page: ReadPage, root: int, levels: int, page_offset: int, end: int
) -> DirectMap:
    """List tables and leaf runs in ``[page_offset, end)``.

    ``root`` is the physical address of the top-level table, ``levels`` 4 or 5, ``page_offset`` and
    ``end`` virtual addresses (48 or 57 significant bits; the sign extension is ignored).
    """
    walker = _Walker(read_page, levels, page_offset, end)
    walker.run(root)
    return DirectMap(
        tables=tuple(sorted(walker.tables, key=lambda t: (t.level, t.pfn, t.va))),
        leaf_runs=_merge(walker.runs),
        findings=tuple(walker.findings),
    )


class _Walker:
    def __init__(self, read_page: ReadPage, levels: int, page_offset: int, end: int) -> None:
        mask = (1 << (12 + 9 * levels)) - 1
        self.read_page = read_page
        self.levels = levels
        self.start, self.end = page_offset & mask, end & mask
        self.tables: list[Table] = []
        self.runs: list[tuple[int, int, int]] = []
        self.findings: list[str] = []
        self._seen: set[int] = {0}

    def run(self, root: int) -> None:
        # Depth first with ascending addresses: the stack holds what is still to be visited.
        pending = [(self.levels, root, 0)]
        self._seen = {root}
        while pending:
            level, address, va = pending.pop()
            children = self._visit(level, address, va)
            pending.extend(reversed(children))

    def _find(self, text: str) -> None:
        if len(self.findings) < _MAX_FINDINGS:
            self.findings.append(text)

    def _visit(self, level: int, address: int, va: int) -> list[tuple[int, int, int]]:
        page = self.read_page(address)
        if page is None or len(page) != PAGE_SIZE:
            self._find(f"L{level} table at {address:#x} is not in memory")
            return []
        entries: Entries = np.frombuffer(page, dtype="<u8")
        shift = 12 + 9 * (level - 1)
        vas = va + (np.arange(_ENTRIES, dtype=np.uint64) << np.uint64(shift))
        inside = (vas + np.uint64((1 << shift) - 1) >= self.start) & (vas < self.end)
        present = inside & ((entries & _PRESENT) != 0)
        if level == 1:
            leaf = present
        elif level <= 3:
            leaf = present & ((entries & _PS) != 0)
        else:
            leaf = np.zeros_like(present)
        self._leaves(level, shift, entries[leaf], vas[leaf])
        return self._children(level, entries[present & ~leaf], vas[present & ~leaf])

    def _leaves(self, level: int, shift: int, entries: Entries, vas: Entries) -> None:
        if not len(entries):
            return
        offsets = vas - np.uint64(self.start)
        # Bit 12 of a large leaf is a memory-type bit, so the low bits are not part of the address.
        physical = entries & _ADDRESS & ~np.uint64((1 << shift) - 1)
        wrong = physical != offsets
        for entry, offset in zip(entries[wrong][:4], offsets[wrong][:4], strict=True):
            self._find(f"L{level} leaf at offset {int(offset):#x} is no identity: {int(entry):#x}")
        good = offsets[~wrong]
        if not len(good):
            return
        size = np.uint64(1 << shift)
        breaks = np.flatnonzero(np.diff(good) != size) + 1
        for run in np.split(good, breaks):
            self.runs.append((int(run[0]), int(run[-1]) + (1 << shift), level))

    def _children(self, level: int, entries: Entries, vas: Entries) -> list[tuple[int, int, int]]:
        children = []
        for entry, va in zip(entries.tolist(), vas.tolist(), strict=True):
            address = entry & int(_ADDRESS)
            if address in self._seen or len(self._seen) > _MAX_TABLES:
                self._find(f"L{level} entry {entry:#x} leads to a table met before, or too many")
                continue
            self._seen.add(address)
            self.tables.append(Table(level - 1, address // PAGE_SIZE, va - self.start))
            children.append((level - 1, address, va))
        return children


def _merge(runs: list[tuple[int, int, int]]) -> tuple[tuple[int, int, int], ...]:
    merged: list[tuple[int, int, int]] = []
    for start, end, level in sorted(runs):
        if merged and merged[-1][1:] == (start, level):
            start = merged.pop()[0]
        merged.append((start, end, level))
    return tuple(merged)
