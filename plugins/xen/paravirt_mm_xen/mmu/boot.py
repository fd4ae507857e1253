"""The tables that a PV guest starts with, as the domain builder leaves them."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen

from paravirt_mm_xen.mmu.entries import (
    ACCESSED,
    DIRTY,
    ENTRIES,
    MFN_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    PRESENT,
    PSE,
    RW,
    USER,
    make_entry,
)
from paravirt_mm_xen.mmu.frames import Domain
from paravirt_mm_xen.mmu.validation import get_large_page

_TABLE = PRESENT | RW | USER | ACCESSED | DIRTY
_LEAF_RO = PRESENT | USER | ACCESSED | DIRTY


@frozen
class BootMapping:
    """`pages` pages from the virtual address `va` (bytes) mapped to frames from `mfn` on."""

    va: int
    mfn: int
    pages: int
    writable: bool = True


@frozen
class LargeMapping:
    """A large page at the virtual address `va` (bytes): frames from `mfn` on, in one entry of a
    table of `level` 2 (2 MiB) or 3 (1 GiB)."""

    va: int
    mfn: int
    level: int = 2


LargeEntry = tuple[int, int, int, int]
"""Table, index, level and entry of a large page."""


def build_tables(
    d: Domain,
    mappings: Iterable[BootMapping],
    table_frames: Iterable[int],
    large: Iterable[LargeMapping] = (),
) -> tuple[int, list[LargeEntry]]:
    """Write the tables for `mappings`, and those above `large`, without any check.

    Returns the root's frame, and the entries for large pages, which `write_large` puts in.

    A 32-bit guest gets the L2 that Xen needs in the last slot of its L3, mapped or not.
    """
    fresh = iter(table_frames)
    tables: set[int] = set()

    def new_table() -> int:
        mfn = next(fresh, None)
        if mfn is None or mfn not in d.type_info or mfn in tables:
            raise ValueError(
                f"{len(tables)} tables are not enough: give more frames of the guest's"
                if mfn is None
                else f"frame {mfn:#x} cannot be a boot table: not the guest's, or given twice"
            )
        tables.add(mfn)
        d.contents[mfn] = {}
        return mfn

    def child(table: int, index: int) -> int:
        entries = d.contents[table]
        entry = entries.get(index)
        if entry is None:
            entry = entries[index] = make_entry(new_table(), _TABLE)
        return entry >> PAGE_SHIFT & MFN_MASK

    root = new_table()
    leaves: list[tuple[dict[int, int], int]] = []
    for mapping in mappings:
        if mapping.va % PAGE_SIZE:
            raise ValueError(f"boot mapping at {mapping.va:#x} does not start on a page")
        flags = _TABLE if mapping.writable else _LEAF_RO
        entries: dict[int, int] = {}
        for page in range(mapping.pages):
            va = mapping.va + page * PAGE_SIZE
            index = va >> PAGE_SHIFT & (ENTRIES - 1)
            if index == 0 or page == 0:
                table = root
                for shift in d.mode.walk:
                    table = child(table, va >> shift & (ENTRIES - 1))
                entries = d.contents[table]
            entries[index] = make_entry(mapping.mfn + page, flags)
            leaves.append((entries, index))
    large_entries: list[LargeEntry] = []
    for huge in large:
        size = ENTRIES ** (huge.level - 1)
        if huge.level not in (2, 3) or huge.va >> PAGE_SHIFT & size - 1 or huge.mfn % size:
            raise ValueError(f"no large page of level {huge.level} at {huge.va:#x}")
        *above, shift = d.mode.walk[: d.mode.root - huge.level + 1]
        table = root
        for upper in above:
            table = child(table, huge.va >> upper & (ENTRIES - 1))
        entry = make_entry(huge.mfn, _TABLE | PSE)
        large_entries.append((table, huge.va >> shift & (ENTRIES - 1), huge.level, entry))
    if d.mode.pae_xen_slot is not None:
        child(root, d.mode.pae_xen_slot)
    for entries, index in leaves:
        if entries[index] >> PAGE_SHIFT & MFN_MASK in tables:
            entries[index] &= ~RW
    return root, large_entries


def write_large(d: Domain, entries: Iterable[LargeEntry]) -> None:
    """Put large pages into tables that were validated: the builder does not ask itself."""
    for table, index, level, entry in entries:
        get_large_page(d, level, entry)
        d.contents[table][index] = entry
