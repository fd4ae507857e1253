"""What all boots of a kernel have in common, done once: the way to where its map is read.

Until ``setup_arch`` calls ``early_ioremap_init`` a kernel has cleared its bss, built its first page
tables, copied ``boot_params``, learned what processor it has, and sorted its jump labels and static
calls, which takes an emulated processor longer than all that follows. Of the map it has used
nothing. So the first boot of a kernel on a processor, with a command line, is stopped there, and
what it has changed in memory and in the processor is kept; the next is put there at once, with its
own map in the kernel's copy of ``boot_params``.

What is put back: every page of the image that differs from the file, every register that QEMU's gdb
stub has, and the descriptor tables, which the stub has not: a few instructions load them. The rest
of the machine is as after a reset, as it was then: no interrupt was on, no device in use. A state
with anything else in it (a page outside of the image, a task register, a reservation of the map) is
not kept, and one that does not read back as it was written is not used. Kernels up to 5.12 look at
the initrd earlier, those of 5.13 to 5.15 may look at ``setup_data`` too: whoever continues must
look whether its reservations were seen (`UnusableStartError`).

Source: Linux ``arch/x86/kernel/setup.c`` (setup_arch), ``head64.c`` (copy_bootdata), 4.6 to 7.3.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import numpy as np

from paravirt_mm.machine.paging import MIB, PAGE_SIZE
from paravirt_mm.machine.ranges import RangeSet, align_up
from paravirt_mm.verify.linux.qemu.errors import GdbError, GdbTimeout, KernelBootError
from paravirt_mm.verify.linux.qemu.gdbremote import GdbClient
from paravirt_mm.verify.linux.qemu.handover import (
    HEAD,
    MAP_FIELDS,
    SCRATCH_END,
    enter,
    handed_over,
)
from paravirt_mm.verify.linux.qemu.kernelmem import KernelMemory
from paravirt_mm.verify.linux.qemu.locate import Kernel
from paravirt_mm.verify.linux.qemu.ram import GuestRam
from paravirt_mm.verify.linux.qemu.spec import MapSpec

BEFORE_THE_MAP = "early_ioremap_init"
"""Called by setup_arch before it looks at the map, from another file."""
_CHUNK = 4 * MIB
_LOADER = 0x40
"""Where the instructions are put: behind the GDT that `enter` uses, below the BIOS's data."""
_TABLE = re.compile(r"^(GDT|IDT)= *([0-9a-f]{16}) ([0-9a-f]{8})\s*$", re.MULTILINE)
_UNUSED = re.compile(r"^(LDT=|TR =)0000 ", re.MULTILINE)
_FIRST = ("efer", "cr4", "cr3", "cr0")
"""Registers that decide how the others are read."""


SCANS = ("mpparse_find_mptable", "default_find_smp_config")
"""The search of the BIOS's memory for an MP table, by release: thousands of mappings of it."""
_FOUND = "smp_found_config"
"""Says whether it found one."""
_RETURN = b"\xc3"


class UnusableStartError(KernelBootError):
    """A boot cannot go on from there: QEMU does not give the processor back as it was, or the
    kernel had looked at a map before.
    """


@attrs.frozen
class Start:
    """A kernel that is about to read its map."""

    registers: Mapping[str, int] = attrs.field(repr=False)
    loader: bytes = attrs.field(repr=False)
    """Instructions that load the descriptor tables, with what they load."""
    loaded: int
    """Offset behind the last of them."""
    pages: tuple[tuple[int, bytes], ...] = attrs.field(repr=False)
    """Physical addresses and bytes: what differs from the image."""
    skipped: tuple[tuple[int, bytes], ...] = ()
    """Functions that return at once, and the bytes with which they begin."""

    @classmethod
    def taken(
        cls, gdb: GdbClient, memory: KernelMemory, kernel: Kernel, spec: MapSpec
    ) -> Start | None:
        """Read a machine that stands at `BEFORE_THE_MAP`; None where that is not all there is."""
        try:
            state = gdb.monitor("info registers")
        except GdbTimeout:
            raise
        except GdbError:
            return None
        tables = {
            name: (int(base, 16), int(limit, 16)) for name, base, limit in _TABLE.findall(state)
        }
        if len(tables) != 2 or len(_UNUSED.findall(state)) != 2:
            return None
        if not _map_is_there(memory) or _is_seen(memory, kernel, spec):
            return None
        if not _nothing_else(memory.ram, kernel, spec):
            return None
        code, loaded = _loader(tables["GDT"], tables["IDT"])
        return cls(gdb.all_registers(), code, loaded, tuple(_changed(memory.ram, kernel)))

    def without_scan(self, memory: KernelMemory) -> Start:
        """Leave out the search for an MP table, if the kernel, mapping by now, has found none.

        What it looks through (``mpparse.c``: the ends of the low memory and the BIOS) is the same
        in each boot; where it finds nothing, it does nothing else.
        """
        known = memory.symbols
        scan = next((name for name in SCANS if name in known), None)
        if scan is None or _FOUND not in known or memory.number(_FOUND, 4):
            return self
        return attrs.evolve(self, skipped=((known[scan], memory.code(known[scan], 1)),))

    def put(self, memory: KernelMemory) -> None:
        """Write what the kernel changed, over its image, and the map that it shall see."""
        for address, data in self.pages:
            memory.ram.write(address, data)
        handed = handed_over(memory.ram)
        for start, end in MAP_FIELDS:
            memory.put(memory.address_of("boot_params") + start, handed[start:end])
        memory.ram.write(_LOADER, self.loader)
        for function, _ in self.skipped:
            memory.put(function, _RETURN)

    def leave(self, memory: KernelMemory) -> None:
        """Put back what functions that are skipped began with."""
        for function, code in self.skipped:
            memory.put(function, code)

    def enter(self, gdb: GdbClient, ram: GuestRam, spec: MapSpec) -> None:
        """Bring the processor, fresh from reset, to `BEFORE_THE_MAP`.

        Raises UnusableStartError, and GdbTimeout.
        """
        try:
            self._enter(gdb, ram, spec)
        except GdbTimeout:
            raise
        except GdbError as error:
            raise UnusableStartError(str(error)) from error
        if gdb.all_registers() != self.registers:
            raise UnusableStartError("QEMU does not give a processor back as it was")

    def _enter(self, gdb: GdbClient, ram: GuestRam, spec: MapSpec) -> None:
        enter(gdb, spec, _LOADER)
        end = _LOADER + self.loaded
        gdb.insert_breakpoint(end)
        gdb.resume()
        gdb.remove_breakpoint(end)
        ram.write(_LOADER, bytes(len(self.loader)))
        now = gdb.all_registers()
        for name in (*_FIRST, *(name for name in self.registers if name not in _FIRST)):
            if now[name] != self.registers[name]:
                gdb.write_register(name, self.registers[name])


def _loader(gdt: tuple[int, int], idt: tuple[int, int]) -> tuple[bytes, int]:
    """Return ``lgdt``, ``lidt``, one byte to stop at, and the operands; and where that byte is."""
    loads = 14
    operands = [struct.pack("<HQ", limit, base) for base, limit in (gdt, idt)]
    first = b"\x0f\x01\x15" + struct.pack("<i", loads + 1 - 7)
    second = b"\x0f\x01\x1d" + struct.pack("<i", loads + 1 + 10 - 14)
    return first + second + b"\x90" + b"".join(operands), loads


def _changed(ram: GuestRam, kernel: Kernel) -> Iterator[tuple[int, bytes]]:
    """Yield the runs of pages that are not as the image says."""
    start, end = kernel.physical_range
    for chunk in range(start, end, _CHUNK):
        size = align_up(min(_CHUNK, end - chunk), PAGE_SIZE)
        before = bytearray(size)
        for segment in kernel.segments:
            low = max(chunk, segment.paddr)
            high = min(chunk + size, segment.paddr + len(segment.data))
            if low < high:
                before[low - chunk : high - chunk] = segment.data[
                    low - segment.paddr : high - segment.paddr
                ]
        now = ram.read(chunk, size)
        differ = np.flatnonzero((_rows(before) != _rows(now)).any(axis=1))
        for run in np.split(differ, np.flatnonzero(np.diff(differ) != 1) + 1):
            if len(run):
                low, high = int(run[0]) * PAGE_SIZE, (int(run[-1]) + 1) * PAGE_SIZE
                yield chunk + low, now[low:high]


def _rows(data: bytes | bytearray) -> Any:
    """Return the numbers of which pages are made, a row a page."""
    return np.frombuffer(data, np.uint64).reshape(-1, PAGE_SIZE // 8)


def _map_is_there(memory: KernelMemory) -> bool:
    """Whether the kernel's copy of the map is what it was given."""
    if "boot_params" not in memory.symbols:
        return False
    handed = handed_over(memory.ram)
    own = memory.code(memory.address_of("boot_params"), PAGE_SIZE)
    return all(own[start:end] == handed[start:end] for start, end in MAP_FIELDS)


def _is_seen(memory: KernelMemory, kernel: Kernel, spec: MapSpec) -> bool:
    """Whether the kernel has reserved something of the map already, which another map lacks."""
    reserved = RangeSet(memory.memblock().reserved)
    reserved.discard(*kernel.physical_range)
    return any(reserved.overlaps(*span) for span in spec.taken)


def _nothing_else(ram: GuestRam, kernel: Kernel, spec: MapSpec) -> bool:
    """Whether memory holds nothing but the image, what was handed over, and zeroes."""
    start, end = kernel.physical_range
    image = start, align_up(end, PAGE_SIZE)
    heads = ((low, low + HEAD) for low, _ in spec.reserved)
    return not any(any(data) for _, data in ram.beyond([(0, SCRATCH_END), image, *heads]))
