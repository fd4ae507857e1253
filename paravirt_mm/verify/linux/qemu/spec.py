"""What a live boot is asked for: a memory map and the processor's paging features."""

from __future__ import annotations

import enum
from collections.abc import Iterable

import attrs

from paravirt_mm.machine.e820 import E820Type
from paravirt_mm.machine.model import Span
from paravirt_mm.machine.paging import GIB, MIB, X86_64, X86_64_LA57, PagingMode
from paravirt_mm.machine.ranges import align_up
from paravirt_mm.verify.linux.qemu.errors import MapSpecError
from paravirt_mm.verify.linux.qemu.ram import RamLayout

RawEntry = tuple[int, int, int]
"""An e820 entry as it is handed over: ``[start, end)`` in bytes, and the type's number."""

MAX_E820_ENTRIES = 128
"""Entries that fit the e820 table of ``boot_params``."""
_MAX_RESERVED = 1024
PC_LOW_LIMIT = 4 * GIB
"""QEMU's PC, told so by ``max-ram-below-4g``, keeps less RAM than this in one piece, ..."""
_PC_LOW_SPLIT = 3 * GIB
"""... and otherwise ends the low piece here and puts the rest at 4 GiB."""
PC_RAM_END = 1000 * GIB
"""TCG has 40 physical address bits, and QEMU keeps the last 12 GiB below 1 TiB free on AMD."""


def _ranges(ranges: Iterable[Span]) -> tuple[Span, ...]:
    return tuple((start, end) for start, end in ranges)


def _entries(entries: Iterable[RawEntry]) -> tuple[RawEntry, ...]:
    return tuple((start, end, kind) for start, end, kind in entries)


class Entry(enum.Enum):
    """How the kernel is started."""

    DIRECT = "direct"
    """The ELF image is put into memory and entered at its 64-bit entry point, with page tables,
    ``boot_params`` and e820 table of ours: exact maps of any shape, about 0.2 s to the direct map.
    """
    FIRMWARE = "firmware"
    """SeaBIOS and the bzImage's own decompressor, the map given by ``memmap=exactmap memmap=...``:
    what a user does who tries a memory map, several seconds."""


@attrs.frozen(kw_only=True)
class MapSpec:
    """A memory map and processor for one boot. All ranges in bytes, ends exclusive.

    Raises MapSpecError where QEMU or the boot protocol cannot express what is asked for.
    """

    ram: tuple[Span, ...] = attrs.field(converter=_ranges)
    """RAM, e820 type 1.  Edges need not be page aligned (``Entry.DIRECT``). Linux takes a map of
    one entry in all for rubbish and ignores it."""
    other: tuple[RawEntry, ...] = attrs.field(default=(), converter=_entries)
    """Further e820 entries ``(start, end, type)``: 2 reserved, 3 ACPI, 4 NVS, ..."""
    reserved: tuple[Span, ...] = attrs.field(default=(), converter=_ranges)
    """What memblock shall hold reserved beside the kernel's own: each becomes a ``setup_data``
    node, so it needs 16 bytes of real RAM at its start, unless it begins inside the kernel's image,
    and its e820 type becomes 128 (``Entry.DIRECT`` only)."""
    initrd: Span | None = None
    """Another range that memblock shall hold reserved; its e820 type stays (``Entry.DIRECT``
    only)."""
    memory_mib: int | None = None
    """QEMU's memory; by default as much as the map needs."""
    pse: bool = True
    """2 MiB pages."""
    gbpages: bool = False
    """1 GiB pages."""
    levels: int = attrs.field(default=4)
    """Levels of paging, 4 or 5."""
    entry: Entry = attrs.field(default=Entry.DIRECT, converter=Entry)
    command_line: str = ""
    """More kernel parameters, e.g. ``movable_node``."""

    @levels.validator
    def _check_levels(self, _attribute: object, value: int) -> None:
        if value not in (4, 5):
            raise MapSpecError(f"levels must be 4 or 5, not {value!r}")

    def __attrs_post_init__(self) -> None:
        if not self.ram:
            raise MapSpecError("a map needs at least one RAM range")
        if len(self.ram) + len(self.other) > MAX_E820_ENTRIES:
            raise MapSpecError(f"more than {MAX_E820_ENTRIES} e820 entries do not fit boot_params")
        if len(self.reserved) > _MAX_RESERVED:
            raise MapSpecError(f"more than {_MAX_RESERVED} reserved ranges")
        for start, end, *_type in (*self.ram, *self.other, *self.taken):
            if not 0 <= start < end <= 1 << 52:
                raise MapSpecError(f"[{start:#x}, {end:#x}) is empty or beyond 52 bits")
        if max(end for _, end in self.ram) > PC_RAM_END:
            raise MapSpecError(f"RAM above {PC_RAM_END >> 30} GiB: QEMU's TCG cannot address it")
        if self.gbpages and not self.pse:
            raise MapSpecError("no processor has 1 GiB pages without 2 MiB pages")
        if self.entry is Entry.FIRMWARE and self.taken:
            raise MapSpecError("reserved ranges can only be handed over with entry='direct'")
        if not self.command_line.isprintable() or len(self.command_line) > 1024:
            raise MapSpecError("command_line must be at most 1024 printable characters")

    @property
    def taken(self) -> tuple[Span, ...]:
        """All that memblock shall hold reserved beside the kernel's own."""
        return (*self.reserved, *([self.initrd] if self.initrd else []))

    @property
    def mode(self) -> PagingMode:
        """The paging mode that the kernel will be in."""
        return X86_64_LA57 if self.levels == 5 else X86_64

    @property
    def e820(self) -> tuple[RawEntry, ...]:
        """The map that is handed to the kernel, sorted by start: ``(start, end, type)``."""
        return tuple(sorted([*((a, b, int(E820Type.RAM)) for a, b in self.ram), *self.other]))

    @property
    def layout(self) -> RamLayout:
        """QEMU's RAM for this map.

        RAM of the map from 3 to 4 GiB is left out when there is more above, since QEMU's PC cannot
        have it: the kernel hears of it, but must not put a table there.
        """
        if self.memory_mib is not None:
            size = self.memory_mib * MIB
            if not MIB <= size <= PC_RAM_END - GIB:
                raise MapSpecError(f"memory_mib={self.memory_mib} is not between 1 and 1022976")
            if size < PC_LOW_LIMIT:
                return RamLayout(size)
            return RamLayout(_PC_LOW_SPLIT, size - _PC_LOW_SPLIT)
        high = align_up(max(end for _, end in self.ram), MIB)
        if high < PC_LOW_LIMIT:
            return RamLayout(high)
        return RamLayout(_PC_LOW_SPLIT, max(high - 4 * GIB, GIB))
