"""The tables that a PV guest starts with, as the domain builder leaves them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

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
    tree = _BootTree(d, iter(table_frames))
    for mapping in mappings:
        tree.map(mapping)
    entries = [tree.place(page) for page in large]
    if d.mode.pae_xen_slot is not None:
        tree.child(tree.root, d.mode.pae_xen_slot)
    tree.protect_tables()
    return tree.root, entries


class _BootTree:
    """Tables as they are written, from a supply of frames. Raises ValueError where it ends."""

    def __init__(self, d: Domain, fresh: Iterator[int]) -> None:
        self._domain = d
        self._fresh = fresh
        self._tables: set[int] = set()
        self._leaves: list[tuple[dict[int, int], int]] = []
        self.root = self._new_table()

    def _new_table(self) -> int:
        mfn = next(self._fresh, None)
        if mfn is None:
            raise ValueError(
                f"{len(self._tables)} tables are not enough: give more frames of the guest's"
            )
        if mfn not in self._domain.type_info or mfn in self._tables:
            raise ValueError(
                f"frame {mfn:#x} cannot be a boot table: not the guest's, or given twice"
            )
        self._tables.add(mfn)
        self._domain.contents[mfn] = {}
        return mfn

    def child(self, table: int, index: int) -> int:
        """The table below an entry, made where there is none."""
        entries = self._domain.contents[table]
        entry = entries.get(index)
        if entry is None:
            entry = entries[index] = make_entry(self._new_table(), _TABLE)
        return entry >> PAGE_SHIFT & MFN_MASK

    def _walk(self, va: int, shifts: Iterable[int]) -> int:
        table = self.root
        for shift in shifts:
            table = self.child(table, va >> shift & (ENTRIES - 1))
        return table

    def map(self, mapping: BootMapping) -> None:
        """Write the leaf entries of a mapping."""
        if mapping.va % PAGE_SIZE:
            raise ValueError(f"boot mapping at {mapping.va:#x} does not start on a page")
        flags = _TABLE if mapping.writable else _LEAF_RO
        entries: dict[int, int] = {}
        for page in range(mapping.pages):
            va = mapping.va + page * PAGE_SIZE
            index = va >> PAGE_SHIFT & (ENTRIES - 1)
            if index == 0 or page == 0:
                entries = self._domain.contents[self._walk(va, self._domain.mode.walk)]
            entries[index] = make_entry(mapping.mfn + page, flags)
            self._leaves.append((entries, index))

    def place(self, page: LargeMapping) -> LargeEntry:
        """Return the entry of a large page; the tables above it are made."""
        frames = ENTRIES ** (page.level - 1)
        misaligned = page.va % (frames * PAGE_SIZE) or page.mfn % frames
        if page.level not in (2, 3) or misaligned:
            raise ValueError(f"no large page of level {page.level} at {page.va:#x}")
        mode = self._domain.mode
        *above, shift = mode.walk[: mode.root - page.level + 1]
        index = page.va >> shift & (ENTRIES - 1)
        return self._walk(page.va, above), index, page.level, make_entry(page.mfn, _TABLE | PSE)

    def protect_tables(self) -> None:
        """Map the tables themselves read-only, as Xen demands."""
        for entries, index in self._leaves:
            if entries[index] >> PAGE_SHIFT & MFN_MASK in self._tables:
                entries[index] &= ~RW


def write_large(d: Domain, entries: Iterable[LargeEntry]) -> None:
    """Put large pages into tables that were validated: the builder does not ask itself."""
    for table, index, level, entry in entries:
        get_large_page(d, level, entry)
        d.contents[table][index] = entry
