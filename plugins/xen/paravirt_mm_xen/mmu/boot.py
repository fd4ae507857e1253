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
    RW,
    USER,
    make_entry,
)
from paravirt_mm_xen.mmu.frames import Domain

_TABLE = PRESENT | RW | USER | ACCESSED | DIRTY
_LEAF_RO = PRESENT | USER | ACCESSED | DIRTY


@frozen
class BootMapping:
    """`pages` pages from the virtual address `va` (bytes) mapped to frames from `mfn` on."""

    va: int
    mfn: int
    pages: int
    writable: bool = True


def build_tables(d: Domain, mappings: Iterable[BootMapping], table_frames: Iterable[int]) -> int:
    """Write the tables for `mappings`, without any check; returns the root's frame.

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
    if d.mode.pae_xen_slot is not None:
        child(root, d.mode.pae_xen_slot)
    for entries, index in leaves:
        if entries[index] >> PAGE_SHIFT & MFN_MASK in tables:
            entries[index] &= ~RW
    return root
