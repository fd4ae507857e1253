"""Reading a running kernel's variables from guest memory, through its symbols.

Only addresses in the kernel image mapping and in the direct map are followed; both are at a fixed
distance from physical memory, so no page tables are needed and the kernel may be anywhere in its
boot.  Every count that comes from the guest is bounded.

Source of facts: Linux ``include/linux/memblock.h`` (struct memblock, unchanged from 5.8 to 6.12),
``arch/x86/include/asm/e820/types.h``, ``arch/x86/mm/init.c``.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import attrs

from paravirt_mm.verify.linux.qemu.errors import BootError
from paravirt_mm.verify.linux.qemu.ram import GuestRam
from paravirt_mm.verify.linux.qemu.spec import E820_RAM, E820_RESERVED_KERN, E820Entry, Range

_KERNEL_MAP = 0xFFFF_FFFF_8000_0000
_KERNEL_MAP_SIZE = 1 << 30
_MAX_REGIONS = 1 << 16
_MAX_TEXT = 512
_MEMBLOCK = struct.Struct("<B7xQ")  # bottom_up, current_limit
_MEMBLOCK_TYPE = struct.Struct("<QQQQQ")  # cnt, max, total_size, regions, name
_REGION = struct.Struct("<QQQ")  # base, size, flags and node
_E820_ENTRY = struct.Struct("<QQI")


@attrs.frozen
class Memblock:
    """memblock at one moment: ranges in bytes, ascending, neighbours merged."""

    bottom_up: bool
    memory: tuple[Range, ...]
    reserved: tuple[Range, ...]


@attrs.frozen
class KernelMemory:
    """Variables of one kernel in one machine's memory.  Raises BootError for what is not there."""

    ram: GuestRam
    symbols: Mapping[str, int] = attrs.field(repr=False)

    def address_of(self, *names: str) -> int:
        """Virtual address of the first of these symbols that the kernel has."""
        for name in names:
            if name in self.symbols:
                return self.symbols[name]
        raise BootError(f"this kernel has no symbol {' or '.join(names)}")

    def physical(self, virtual: int) -> int:
        """Physical address of a virtual one in the kernel image mapping or the direct map."""
        if _KERNEL_MAP <= virtual < _KERNEL_MAP + _KERNEL_MAP_SIZE:
            return virtual - _KERNEL_MAP
        base = self.page_offset
        if base <= virtual < _KERNEL_MAP and virtual - base < 1 << 52:
            return virtual - base
        raise BootError(f"{virtual:#x} is neither in the kernel image nor in the direct map")

    @property
    def page_offset(self) -> int:
        """Where the direct map starts."""
        address = self.address_of("page_offset_base")
        return self._word(address - _KERNEL_MAP, 8)

    def number(self, symbol: str, size: int = 8) -> int:
        """An unsigned variable of ``size`` bytes."""
        return self._word(self.physical(self.address_of(symbol)), size)

    def number_at(self, virtual: int) -> int:
        """The unsigned 64-bit number at a virtual address."""
        return self._word(self.physical(virtual), 8)

    def text_at(self, virtual: int) -> str:
        """A NUL-terminated string, cut after 512 bytes."""
        data = self.ram.read(self.physical(virtual), _MAX_TEXT).split(b"\0", 1)[0]
        return data.decode("ascii", "replace")

    def memblock(self) -> Memblock:
        """What memblock holds now."""
        at = self.physical(self.address_of("memblock"))
        bottom_up, _limit = _MEMBLOCK.unpack(self.ram.read(at, _MEMBLOCK.size))
        at += _MEMBLOCK.size
        memory, reserved = (self._regions(at + n * _MEMBLOCK_TYPE.size) for n in range(2))
        return Memblock(bool(bottom_up), memory, reserved)

    def e820(self) -> tuple[E820Entry, ...]:
        """The kernel's own, sanitised map; RAM that holds ``setup_data`` is shown as RAM."""
        at = self.physical(self.number("e820_table"))
        count = self._word(at, 4)
        if count > _MAX_REGIONS:
            raise BootError(f"e820_table claims {count} entries")
        data = self.ram.read(at + 4, count * _E820_ENTRY.size)
        entries: list[E820Entry] = []
        for start, size, kind in _E820_ENTRY.iter_unpack(data):
            end = start + size
            kind = E820_RAM if kind == E820_RESERVED_KERN else kind
            if entries and entries[-1][1:] == (start, kind):
                start = entries.pop()[0]
            entries.append((start, end, kind))
        return tuple(entries)

    def _regions(self, at: int) -> tuple[Range, ...]:
        count, _max, _total, regions, _name = _MEMBLOCK_TYPE.unpack(
            self.ram.read(at, _MEMBLOCK_TYPE.size)
        )
        if count > _MAX_REGIONS:
            raise BootError(f"memblock claims {count} regions")
        data = self.ram.read(self.physical(regions), count * _REGION.size)
        merged: list[Range] = []
        for start, size, _flags in _REGION.iter_unpack(data):
            if size == 0:  # an empty memblock has one region of no size
                continue
            if merged and merged[-1][1] >= start:
                merged[-1] = (merged[-1][0], max(merged[-1][1], start + size))
            else:
                merged.append((start, start + size))
        return tuple(merged)

    def _word(self, physical: int, size: int) -> int:
        return int.from_bytes(self.ram.read(physical, size), "little")
