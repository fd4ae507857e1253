"""What a 64-bit Linux kernel finds in memory and registers when it is entered directly.

The 64-bit boot protocol wants a processor in long mode with paging on and an identity mapping of
kernel, ``boot_params``, command line and ``setup_data``, flat segments, interrupts off, and RSI
pointing at ``boot_params`` (the "zero page"). ``boot_params`` and command line are put below
64 KiB, which Linux keeps to itself; it leaves our tables before it uses any other memory.

Source of facts: Linux ``Documentation/arch/x86/boot.rst`` ("64-bit boot protocol") and
``zero-page.rst``; ``setup_indirect`` of boot protocol 2.15, Linux 5.5 (``arch/x86/kernel/setup.c``,
memblock_x86_reserve_range_setup_data); Intel SDM volume 3, chapter 4, for entries and control
registers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from paravirt_mm.image.elf import control_registers
from paravirt_mm.image.entries import PRESENT, PSE, RW
from paravirt_mm.machine.paging import PAGE_SIZE
from paravirt_mm.verify.linux.qemu.errors import MapSpecError
from paravirt_mm.verify.linux.qemu.gdbremote import GdbClient
from paravirt_mm.verify.linux.qemu.locate import Kernel
from paravirt_mm.verify.linux.qemu.ram import GuestRam
from paravirt_mm.verify.linux.qemu.spec import MAX_E820_ENTRIES, MapSpec

_GDT = 0x0000  # where GDTR points after a reset, so that selectors can be loaded from it
_BOOT_PARAMS = 0x1000
_COMMAND_LINE = 0x2000
_ROOT_TABLE = 0x3000
SCRATCH_END = 0x80000
"""Below lies what is put here: beyond 64 KiB, but out of use before the kernel allocates."""
_KEPT_END = 0x10000  # below, Linux keeps all memory to itself

_CODE_SELECTOR, _CODE_DESCRIPTOR = 0x10, 0x00AF_9B00_0000_FFFF
_DATA_SELECTOR, _DATA_DESCRIPTOR = 0x18, 0x00CF_9300_0000_FFFF
_TABLE = PRESENT | RW
_EFER_LME = 1 << 8
_EFLAGS_NONE = 0x2

_SETUP_HEADER = 0x1F1
_E820_COUNT, _E820_TABLE = 0x1E8, 0x2D0
_LOADER_TYPE, _LOADER_UNKNOWN = 0x210, 0xFF
_COMMAND_LINE_POINTER, _SETUP_DATA_POINTER = 0x228, 0x250
_E820_ENTRY = struct.Struct("<QQI")
_INITRD, _INITRD_HIGH = 0x218, 0x0C0
_INITRD_ENDS = struct.Struct("<II")  # address and size: the low halves, elsewhere the high ones
_SETUP_DATA = struct.Struct("<QII")
HEAD = _SETUP_DATA.size
"""Bytes in front of a reservation that are written."""
_SETUP_INDIRECT, _INDIRECT = 1 << 31, struct.Struct("<IIQQ")  # type, reserved, length, address
_IDENTITY_GIB = 4

MAP_FIELDS = (
    (_E820_COUNT, _E820_COUNT + 1),
    (_SETUP_DATA_POINTER, _SETUP_DATA_POINTER + 8),
    (_INITRD, _INITRD + _INITRD_ENDS.size),
    (_INITRD_HIGH, _INITRD_HIGH + _INITRD_ENDS.size),
    (_E820_TABLE, _E820_TABLE + MAX_E820_ENTRIES * _E820_ENTRY.size),
)
"""Bytes of ``boot_params`` that tell the map and the reservations."""


def handed_over(ram: GuestRam) -> bytes:
    """Return ``boot_params`` as `put_kernel` wrote them."""
    return ram.read(_BOOT_PARAMS, PAGE_SIZE)


def put_kernel(ram: GuestRam, kernel: Kernel, spec: MapSpec, command_line: str) -> None:
    """Write kernel, tables, ``boot_params`` and reservations; raises MapSpecError.

    Checked here: the map must have RAM where the kernel is linked to run.
    """
    start, end = kernel.physical_range
    covered = start
    for first, last in sorted(spec.ram):
        if first <= covered:
            covered = max(covered, last)
    if covered < end:
        raise MapSpecError(
            f"the kernel needs RAM at [{start:#x}, {end:#x}), where it is linked to run: the map "
            f"has a hole or other memory at {covered:#x}"
        )
    for segment in kernel.segments:
        for address, data in segment.pieces:
            ram.write(address, data)
    ram.write(_GDT, struct.pack("<4Q", 0, 0, _CODE_DESCRIPTOR, _DATA_DESCRIPTOR))
    ram.write(_COMMAND_LINE, command_line.encode("ascii") + b"\0")
    tables = identity_tables(spec.levels, [start for start, _ in spec.reserved])
    ram.write(_ROOT_TABLE, tables)
    setup_data = _put_reservations(ram, kernel, spec, _ROOT_TABLE + len(tables))
    ram.write(_BOOT_PARAMS, _boot_params(kernel, spec, setup_data))


def enter(gdb: GdbClient, spec: MapSpec, address: int) -> None:
    """Bring the processor, fresh from reset, to an address, as a kernel is entered."""
    cr0, cr4 = control_registers(spec.mode)
    gdb.write_register("efer", _EFER_LME)
    gdb.write_register("cr4", cr4)
    gdb.write_register("cr3", _ROOT_TABLE)
    gdb.write_register("cr0", cr0)
    for name in ("ds", "es", "fs", "gs", "ss"):
        gdb.write_register(name, _DATA_SELECTOR)
    gdb.write_register("cs", _CODE_SELECTOR)
    gdb.write_register("eflags", _EFLAGS_NONE)
    gdb.write_register("rsi", _BOOT_PARAMS)
    gdb.write_register("rip", address)


def identity_tables(levels: int, heads: Iterable[int]) -> bytes:
    """Tables to be put at 0x3000: the first 4 GiB, and each GiB in which one of ``heads`` starts.

    ``heads`` are physical addresses below 256 TiB.  Raises MapSpecError when they are too
    scattered.
    """
    gigabytes = sorted({*range(_IDENTITY_GIB), *(head >> 30 for head in heads)})
    tables: list[list[int]] = [[0] * 512]

    def child(table: int, slot: int) -> int:
        """Number of the table that this entry leads to, made if need be."""
        if not tables[table][slot]:
            tables[table][slot] = _ROOT_TABLE + len(tables) * PAGE_SIZE | _TABLE
            tables.append([0] * 512)
        return (tables[table][slot] - _ROOT_TABLE) // PAGE_SIZE

    for gib in gigabytes:
        table = 0
        for level in range(levels, 2, -1):
            table = child(table, gib >> 9 * (level - 3) & 511)
        leaf = (gib << 30) | _TABLE | PSE
        tables[table] = [leaf + (n << 21) for n in range(512)]
    if _ROOT_TABLE + len(tables) * PAGE_SIZE > SCRATCH_END:
        raise MapSpecError("reserved ranges lie in too many different GiB")
    return b"".join(struct.pack("<512Q", *table) for table in tables)


def _boot_params(kernel: Kernel, spec: MapSpec, setup_data: int) -> bytes:
    page = bytearray(PAGE_SIZE)
    start, end = spec.initrd or (0, 0)
    page[_SETUP_HEADER : _SETUP_HEADER + len(kernel.header)] = kernel.header
    page[_LOADER_TYPE] = _LOADER_UNKNOWN
    struct.pack_into("<I", page, _COMMAND_LINE_POINTER, _COMMAND_LINE)
    struct.pack_into("<Q", page, _SETUP_DATA_POINTER, setup_data)
    for shift, offset in ((0, _INITRD), (32, _INITRD_HIGH)):
        halves = (value >> shift & 0xFFFF_FFFF for value in (start, end - start))
        _INITRD_ENDS.pack_into(page, offset, *halves)
    page[_E820_COUNT] = len(spec.e820)
    for number, (start, end, kind) in enumerate(spec.e820):
        offset = _E820_TABLE + number * _E820_ENTRY.size
        _E820_ENTRY.pack_into(page, offset, start, end - start, kind)
    return bytes(page)


def _put_reservations(ram: GuestRam, kernel: Kernel, spec: MapSpec, scratch_end: int) -> int:
    """One ``setup_data`` node a reserved range; the address of the first, or 0.

    The kernel reserves each node, head and contents, before it builds the direct map, and ignores
    contents of type 0. Where there is no place for a head, since the kernel's own image lies there,
    the node is in low memory and points at the range.
    """
    image = kernel.physical_range
    forbidden = [(0, scratch_end)]
    following, free = 0, scratch_end
    for start, end in reversed(spec.reserved):
        if image[0] < start + HEAD and start < image[1] and kernel.takes_pointers:
            node = _SETUP_DATA.pack(following, _SETUP_INDIRECT, _INDIRECT.size)
            node += _INDIRECT.pack(0, 0, end - start, start)
            following, free = free, free + len(node)
            if free > _KEPT_END:
                raise MapSpecError("too many reserved ranges begin inside the kernel's image")
            ram.write(following, node)
            continue
        head_end = start + HEAD
        length = end - head_end
        if not 0 <= length < 1 << 32:
            raise MapSpecError(f"reserved [{start:#x}, {end:#x}): 16 bytes to 4 GiB are possible")
        in_use = (image, *forbidden)
        clash = next(((a, b) for a, b in in_use if start < b and a < head_end), None)
        if clash is not None:
            raise MapSpecError(
                f"reserved [{start:#x}, {end:#x}) would have its head inside "
                f"[{clash[0]:#x}, {clash[1]:#x}), which is in use"
            )
        ram.write(start, _SETUP_DATA.pack(following, 0, length))
        forbidden.append((start, head_end))
        following = start
    return following
