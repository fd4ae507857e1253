"""The firmware's memory map and the kernel's rules for making sense of it.

Source: arch/x86/kernel/e820.c (sanitize_e820_map, e820_end_pfn, e820_update_range) of Linux 3.6 and
4.19; type numbers from the ACPI specification and arch/x86/include/asm/e820/types.h.
"""

from __future__ import annotations

import enum
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property
from itertools import pairwise
from operator import attrgetter

import attrs

from paravirt_mm.machine.paging import GIB, PAGE_SHIFT, PAGE_SIZE
from paravirt_mm.machine.ranges import Ranges, RangeSet, align_down, align_up
from paravirt_mm.machine.release import Version

_COUNTS_ACPI: Version = (6, 11)
"""First release whose max_pfn counts ACPI tables: a kernel that kexec starts maps them, too."""


class E820Type(enum.IntEnum):
    """What an e820 entry says about its memory."""

    RAM = 1
    RESERVED = 2
    ACPI = 3
    NVS = 4
    UNUSABLE = 5
    PMEM = 7
    SOFT_RESERVED = 0xEFFFFFFF
    PRAM = 12
    RESERVED_KERN = 128

    @classmethod
    def _missing_(cls, value: object) -> E820Type | None:
        """Any other 32-bit number is a type: firmware invents them, and the kernel keeps them."""
        if not isinstance(value, int) or not 0 <= value < 1 << 32:
            return None
        member = int.__new__(cls, value)
        member._name_, member._value_ = f"TYPE_{value}", value
        return cls._value2member_map_.setdefault(value, member)  # type: ignore[return-value]

    @property
    def label(self) -> str:
        """The words that Linux prints for this type."""
        return _LABELS.get(self, f"type {int(self)}")


_LABELS = {
    E820Type.RAM: "usable",
    E820Type.RESERVED: "reserved",
    E820Type.ACPI: "ACPI data",
    E820Type.NVS: "ACPI NVS",
    E820Type.UNUSABLE: "unusable",
    E820Type.PMEM: "persistent",
    E820Type.SOFT_RESERVED: "soft reserved",
    E820Type.PRAM: "persistent (type 12)",
    E820Type.RESERVED_KERN: "usable (kernel reserved)",
}


@attrs.frozen
class E820Entry:
    """One line of a memory map: bytes ``[start, end)`` of ``type``."""

    start: int
    end: int
    type: E820Type


_START, _END = attrgetter("start"), attrgetter("end")


_Piece = tuple[int, int, E820Type]


def _resolve_overlaps(pieces: Iterable[_Piece]) -> list[_Piece]:
    """Cut overlapping pieces up; the highest type number that covers a spot wins it."""
    edges = sorted(
        edge for start, end, kind in pieces for edge in ((start, 1, kind), (end, -1, kind))
    )
    resolved: list[_Piece] = []
    active: dict[E820Type, int] = {}
    position = 0
    for edge, change, kind in edges:
        if active:
            resolved.append((position, edge, max(active)))
        position = edge
        count = active.get(kind, 0) + change
        if count:
            active[kind] = count
        else:
            del active[kind]
    return resolved


def _merge(pieces: Iterable[_Piece]) -> list[E820Entry]:
    """Join ascending neighbours that touch and have one type; drop empty ones."""
    merged: list[_Piece] = []
    for start, end, kind in pieces:
        if start >= end:
            continue
        if merged and merged[-1][1:] == (start, kind):
            start = merged.pop()[0]
        merged.append((start, end, kind))
    return [E820Entry(*piece) for piece in merged]


@attrs.frozen(slots=False)
class MemoryMap:
    """A sanitised memory map: sorted, disjoint entries; what no entry covers is a hole.

    Build it with `MemoryMap.sanitise`; the plain constructor takes entries that already are.
    """

    entries: tuple[E820Entry, ...]

    @classmethod
    def sanitise(cls, raw: Iterable[tuple[int, int, E820Type]]) -> MemoryMap:
        """Apply the kernel's rules to ``(start, end, type)`` entries in any order.

        Empty and inverted entries are dropped. Where entries overlap, the one with the higher type
        number wins, as in ``sanitize_e820_map``; neighbours of one type are merged. Edges need not
        be page aligned and stay as they are.
        """
        pieces = sorted(piece for piece in raw if piece[0] < piece[1])
        if any(first[1] > second[0] for first, second in pairwise(pieces)):
            pieces = _resolve_overlaps(pieces)
        return cls(tuple(_merge(pieces)))

    def with_range(self, start: int, end: int, old: E820Type, new: E820Type | None) -> MemoryMap:
        """Retype what is ``old`` in ``[start, end)``; None removes it (e820_update_range)."""
        first = bisect_right(self.entries, start, key=_END)
        last = bisect_left(self.entries, end, lo=first, key=_START)
        touched = self.entries[first:last]
        if start >= end or not any(entry.type is old for entry in touched):
            return self
        pieces: list[_Piece] = []
        for entry in touched:
            if entry.type is not old:
                pieces.append((entry.start, entry.end, entry.type))
                continue
            low, high = max(entry.start, start), min(entry.end, end)
            pieces.append((entry.start, low, old))
            if new is not None:
                pieces.append((low, high, new))
            pieces.append((high, entry.end, old))
        # A neighbour on each side may turn out to be of the same type now.
        around = slice(max(first - 1, 0), last + 1)
        before, after = self.entries[around.start : first], self.entries[last : around.stop]
        pieces[:0] = [(entry.start, entry.end, entry.type) for entry in before]
        pieces += [(entry.start, entry.end, entry.type) for entry in after]
        return MemoryMap(
            (*self.entries[: around.start], *_merge(pieces), *self.entries[around.stop :])
        )

    def ram(self) -> RangeSet:
        """Return the RAM, in bytes, edges as the firmware gave them."""
        return RangeSet((e.start, e.end) for e in self.entries if e.type is E820Type.RAM)

    def ram_pages(self) -> Ranges:
        """Return the RAM in bytes with partial pages thrown away (memblock_trim_memory)."""
        return self._ram_pages

    @cached_property
    def _ram_pages(self) -> Ranges:
        ram = [entry for entry in self.entries if entry.type is E820Type.RAM]
        return RangeSet(
            (align_up(entry.start, PAGE_SIZE), align_down(entry.end, PAGE_SIZE)) for entry in ram
        ).view()

    def known(self) -> Ranges:
        """Return everything that has an entry of any type, in bytes."""
        return self._known

    @cached_property
    def _known(self) -> Ranges:
        return RangeSet((entry.start, entry.end) for entry in self.entries).view()

    def end_pfn(
        self, limit: int | None = None, types: Collection[E820Type] = (E820Type.RAM,)
    ) -> int:
        """Return the pfn after the last whole page of RAM, or of other ``types``, below ``limit``
        bytes (0: there is none).
        """
        for entry in reversed(self.entries):
            if entry.type in types and (limit is None or entry.start < limit):
                return (entry.end if limit is None else min(entry.end, limit)) >> PAGE_SHIFT
        return 0

    def __iter__(self) -> Iterator[E820Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def last_pfns(memory: MemoryMap, physical_bits: int, release: Version) -> tuple[int, int]:
    """Return what a release finds as the end of all memory, and of that below 4 GiB, as pfns
    (e820__end_ram_pfn): the end of RAM, and since 6.11 of ACPI's tables, too.
    """
    types = [E820Type.RAM, *[E820Type.ACPI] * (release >= _COUNTS_ACPI)]
    return memory.end_pfn(1 << physical_bits, types), memory.end_pfn(4 * GIB, types)
