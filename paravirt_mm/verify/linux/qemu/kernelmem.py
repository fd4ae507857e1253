"""Reading a running kernel's variables from guest memory, through its symbols.

Only addresses in the kernel image mapping and in the direct map are followed; both are at a fixed
distance from physical memory, so no page tables are needed and the kernel may be anywhere in its
boot. Every count that comes from the guest is bounded.

Source of facts: Linux ``include/linux/memblock.h`` (struct memblock, unchanged from 5.8 to 6.12),
``arch/x86/include/asm/e820/types.h``, ``arch/x86/mm/init.c``.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping

import attrs

from paravirt_mm.machine.e820 import E820Type
from paravirt_mm.machine.model import Span
from paravirt_mm.machine.paging import X86_64
from paravirt_mm.machine.ranges import RangeSet
from paravirt_mm.verify.linux.qemu.errors import KernelBootError
from paravirt_mm.verify.linux.qemu.ram import GuestRam
from paravirt_mm.verify.linux.qemu.spec import RawEntry

_KERNEL_MAP = X86_64.kernel_base
"""The same with five levels."""
_KERNEL_MAP_SIZE = 1 << 30
_MAX_REGIONS = 1 << 16
_MAX_TEXT = 512
_LOG_SIZE = 1 << 15
"""Bytes of the log that are looked at: early boot has less."""
_LOG_TEXT = re.compile(rb"[ -~]{10,200}")
_MEMBLOCK = struct.Struct("<B7xQ")  # bottom_up, current_limit
_MEMBLOCK_TYPE = struct.Struct("<QQQQQ")  # cnt, max, total_size, regions, name
_REGION = struct.Struct("<QQQ")  # base, size, flags and node
_E820_ENTRY = struct.Struct("<QQI")


@attrs.frozen
class MemblockState:
    """memblock at one moment: ranges in bytes, ascending, neighbours merged."""

    bottom_up: bool
    memory: tuple[Span, ...]
    reserved: tuple[Span, ...]


@attrs.frozen
class GuestPages:
    """Guest-physical memory by page, None where there is none."""

    ram: GuestRam

    def read(self, address: int, size: int) -> bytes | None:
        """Return ``size`` bytes at ``address``."""
        if self.ram.layout.file_offset(address, size) is None:
            return None
        return self.ram.read(address, size)


@attrs.frozen
class KernelMemory:
    """Variables of one kernel in one machine's memory.

    Raises KernelBootError for what is not there.
    """

    ram: GuestRam
    symbols: Mapping[str, int] = attrs.field(repr=False)
    moved: int = 0
    """Bytes by which the kernel lies above the place where it is linked to run."""

    def address_of(self, *names: str) -> int:
        """Virtual address of the first of these symbols that the kernel has."""
        for name in names:
            if name in self.symbols:
                return self.symbols[name]
        raise KernelBootError(f"this kernel has no symbol {' or '.join(names)}")

    def physical(self, virtual: int) -> int:
        """Physical address of a virtual one in the kernel image mapping or the direct map."""
        if _KERNEL_MAP <= virtual < _KERNEL_MAP + _KERNEL_MAP_SIZE:
            return virtual - _KERNEL_MAP + self.moved
        base = self.page_offset
        if base <= virtual < min(_KERNEL_MAP, base + (1 << 52)):
            return virtual - base
        raise KernelBootError(f"{virtual:#x} is neither in the kernel image nor in the direct map")

    @property
    def page_offset(self) -> int:
        """Where the direct map starts."""
        address = self.address_of("page_offset_base")
        return self._word(address - _KERNEL_MAP + self.moved, 8)

    @property
    def pages(self) -> GuestPages:
        """Guest-physical memory, as a walk of page tables reads it."""
        return GuestPages(self.ram)

    def clear(self, virtual: int, size: int) -> None:
        """Make ``size`` bytes zero."""
        self.ram.clear(self.physical(virtual), size)

    def number(self, symbol: str, size: int = 8) -> int:
        """An unsigned variable of ``size`` bytes."""
        return self._word(self.physical(self.address_of(symbol)), size)

    def number_at(self, virtual: int) -> int:
        """The unsigned 64-bit number at a virtual address."""
        return self._word(self.physical(virtual), 8)

    def put(self, virtual: int, data: bytes) -> None:
        """Write bytes. Code that has run may be changed only while the machine is stopped."""
        self.ram.write(self.physical(virtual), data)

    def put_number(self, virtual: int, value: int) -> None:
        """Write an unsigned 64-bit number."""
        self.put(virtual, value.to_bytes(8, "little"))

    def code(self, virtual: int, size: int) -> bytes:
        """Bytes of the kernel's image."""
        return self.ram.read(self.physical(virtual), size)

    def last_lines(self, count: int) -> list[str]:
        """The end of what the kernel has noted for printing, or nothing where that is not found."""
        try:
            at = self.physical(self.address_of("__log_buf"))
            data = self.ram.read(at, _LOG_SIZE)
        except KernelBootError:
            return []
        return [text.decode("ascii") for text in _LOG_TEXT.findall(data)[-count:]]

    def text_at(self, virtual: int) -> str:
        """A NUL-terminated string, cut after 512 bytes."""
        data = self.ram.read(self.physical(virtual), _MAX_TEXT).partition(b"\0")[0]
        return data.decode("ascii", "replace")

    def memblock(self) -> MemblockState:
        """What memblock holds now."""
        at = self.physical(self.address_of("memblock"))
        bottom_up, _limit = _MEMBLOCK.unpack(self.ram.read(at, _MEMBLOCK.size))
        at += _MEMBLOCK.size
        memory, reserved = (self._regions(at + n * _MEMBLOCK_TYPE.size) for n in range(2))
        return MemblockState(bool(bottom_up), memory, reserved)

    def e820(self) -> tuple[RawEntry, ...]:
        """The kernel's own, sanitised map; RAM that holds ``setup_data`` is shown as RAM."""
        at = self.physical(self.number("e820_table"))
        count = self._word(at, 4)
        if count > _MAX_REGIONS:
            raise KernelBootError(f"e820_table claims {count} entries")
        data = self.ram.read(at + 4, count * _E820_ENTRY.size)
        entries: list[RawEntry] = []
        for start, size, kind in _E820_ENTRY.iter_unpack(data):
            end = start + size
            kind = int(E820Type.RAM) if kind == E820Type.RESERVED_KERN else kind
            if entries and entries[-1][1:] == (start, kind):
                start = entries.pop()[0]
            entries.append((start, end, kind))
        return tuple(entries)

    def _regions(self, at: int) -> tuple[Span, ...]:
        count, _max, _total, regions, _name = _MEMBLOCK_TYPE.unpack(
            self.ram.read(at, _MEMBLOCK_TYPE.size)
        )
        if count > _MAX_REGIONS:
            raise KernelBootError(f"memblock claims {count} regions")
        data = self.ram.read(self.physical(regions), count * _REGION.size)
        # An empty memblock has one region of no size; regions of different flags may touch.
        return tuple(
            RangeSet((start, start + size) for start, size, _flags in _REGION.iter_unpack(data))
        )

    def _word(self, physical: int, size: int) -> int:
        return int.from_bytes(self.ram.read(physical, size), "little")
