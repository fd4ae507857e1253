"""A kernel of a few functions, and a machine without QEMU that runs it: unicorn is the processor.

The toy does what the recorder watches a real kernel do, to a script: it clears its bss, copies
``boot_params``, calls the functions that are watched, hands pages to the empty hook, builds the
tables that it was told to, and comes back or panics. The machine answers as QEMU's gdb stub does,
a breakpoint at which it was resumed included.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import unicorn
from unicorn import x86_const

from paravirt_mm.verify.linux.qemu import Kernel, MapSpec
from paravirt_mm.verify.linux.qemu.errors import GdbError, GdbTimeout
from paravirt_mm.verify.linux.qemu.image import LoadSegment
from paravirt_mm.verify.linux.qemu.ram import GuestRam

MAP = 0xFFFFFFFF80000000
PAGE_OFFSET = 0xFFFF888000000000
BASE = 16 << 20
PAGE = 4096
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
ENDBR = b"\xf3\x0f\x1e\xfa"
HERE = b"\xeb\xfe"  # jmp to itself
MOVE = b"\xf3\x48\xa5"  # rep movsq
PUSHES = b"\x55\x48\x89\xe5\x53"  # push rbp; mov rbp, rsp; push rbx
MM = 0x1234

CLEARS_AT = 30
"""Offset of the instruction that clears bss, in x86_64_start_kernel."""

# Where everything lies in the image.
ENTRY, START64, START, EARLY, SCAN, INIT = 0x0, 0x40, 0x100, 0x180, 0x1C0, 0x1000
STEP, RANGE, ALLOC, NOP, PANIC, EXTEND, FENTRY = 0x200, 0x240, 0x280, 0x300, 0x320, 0x340, 0x360
RODATA, RODATA_END = 0x20000, 0x20080
DATA = 0x22000
MEMBLOCK, REGIONS, E820, VARIABLES = DATA, DATA + 0x100, DATA + 0x400, DATA + 0x600
PV_OPS, GIVEN, TEXT, PARAMETERS, LOG = DATA + 0x700, DATA + 0x800, DATA + 0xC00, 0x23000, 0x24000
ROOT, TABLES, BSS, BSS_END, BRK, END = 0x26000, 0x27000, 0x30000, 0x34000, 0x36000, 0x3A000
VARIABLE = {
    name: VARIABLES + 8 * number
    for number, name in enumerate(
        [
            "page_offset_base", "vmalloc_base", "pgt_buf_end", "pgt_buf_top", "max_pfn",
            "max_low_pfn", "e820_table", "next", "scans", "smp_found_config", "descriptors",
        ]
    )
}  # fmt: skip


@attrs.frozen
class Step:
    """A call of init_memory_mapping, of kernel_physical_mapping_init for each of its ranges, and of
    alloc_low_pages: ``(number of pages, physical address that is given)``.
    """

    start: int
    end: int
    ranges: tuple[tuple[int, int, int], ...] = ()
    pages: tuple[tuple[int, int], ...] = ()
    hooked: tuple[int, ...] = ()


@attrs.frozen
class Script:
    """What the toy does. ``tables`` are copied to physical addresses when all steps are done;
    ``ends`` is "", "panic", "extend_brk" or "early panic"; ``begins`` is how functions do.
    """

    steps: tuple[Step, ...]
    tables: Mapping[int, bytes] = attrs.field(factory=dict)
    ends: str = ""
    begins: str = "fentry"
    reserved: tuple[tuple[int, int], ...] = ()
    bottom_up: bool = False
    loads_cr3: bool = True
    text_end: int = 0x7800
    scan_finds: bool = False
    ranges_first: bool = False
    fill: int = 0
    """RAX when bss is filled with its lowest byte."""
    root_slot: int = PAGE_OFFSET >> 39 & 511
    dirties: int = 0
    """A physical address outside of the image that is written before the map is read."""


class Code:
    """Instructions at a place of the image."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.data = b""

    def put(self, *parts: bytes) -> Code:
        self.data += b"".join(parts)
        return self

    def number(self, register: int, value: int) -> Code:
        return self.put(bytes([0x48, 0xB8 + register]), struct.pack("<Q", value & (1 << 64) - 1))

    def call(self, target: int, opcode: int = 0xE8) -> Code:
        here = self.at + len(self.data) + 5
        return self.put(bytes([opcode]), struct.pack("<i", target - here))

    def variable(self, instruction: bytes, target: int) -> Code:
        here = self.at + len(self.data) + len(instruction) + 4
        return self.put(instruction, struct.pack("<i", target - here))

    def copy(self, to: int, source: int, size: int = PAGE) -> Code:
        return self.number(RDI, to).number(RSI, source).number(RCX, size // 8).put(MOVE)


def virtual(offset: int) -> int:
    return MAP + BASE + offset


def _init(script: Script) -> Code:
    code = Code(INIT).put(ENDBR)
    for step in script.steps:
        if not script.ranges_first:
            code.number(RDI, step.start).number(RSI, step.end).call(STEP)
        for start, end, mask in step.ranges:
            code.number(RDI, start).number(RSI, end).number(RDX, mask).call(RANGE)
        for count, _ in step.pages:
            # The upper half of a register that holds an int may be anything.
            code.number(RDI, 7 << 32 | count).number(RBX, 77).call(ALLOC)
        for pfn in step.hooked:
            code.number(RDI, MM).number(RSI, pfn)
            code.variable(b"\xff\x15", PV_OPS + 16)  # call [pv_ops + 16]
    for number, address in enumerate(script.tables):
        code.copy(PAGE_OFFSET + address, virtual(TABLES + number * PAGE))
    if script.ends == "panic":
        code.number(RDI, virtual(TEXT)).call(PANIC)
    if script.ends == "extend_brk":
        code.call(EXTEND)
    if script.loads_cr3:
        code.number(RAX, BASE + ROOT | 0x19).put(b"\x0f\x22\xd8")  # mov cr3, rax
    return code.put(b"\xc3")


def _functions(script: Script) -> list[Code]:
    def begins(at: int, body: bytes) -> Code:
        code = Code(at)
        if script.begins == "fentry":
            return code.put(ENDBR).call(FENTRY).put(body)
        if script.begins == "nop":
            return code.put(b"\x0f\x1f\x44\x00\x00", body)
        if script.begins == "call":
            return code.call(FENTRY).put(body)
        if script.begins == "calls":
            return code.call(SCAN).put(body)
        if script.begins == "jump":  # its body lies elsewhere
            return code.call(at + 16, 0xE9).put(bytes([0xCC] * 11), body)
        return code.put(body) if script.begins == "pushes" else code.put(b"\x0f\xa2", body)

    plain = PUSHES + b"\x5b\x5d\xc3"
    # rbx = next; rax = [rbx]; next = rbx + 8
    alloc = begins(ALLOC, PUSHES)
    alloc.variable(b"\x48\x8b\x1d", VARIABLE["next"]).put(b"\x48\x8b\x03\x48\x83\xc3\x08")
    alloc.variable(b"\x48\x89\x1d", VARIABLE["next"]).put(b"\x5b\x5d\xc3")
    start = Code(START)
    if script.dirties:
        start.number(RAX, PAGE_OFFSET + script.dirties).put(b"\xfe\x00")  # inc byte [rax]
    start.call(EARLY).call(SCAN)
    if script.ends == "early panic":
        start.number(RDI, virtual(TEXT)).call(PANIC)
    return [
        Code(ENTRY).put(b"\x48\x89\xf3").number(RSP, virtual(END)).number(RAX, virtual(START64))
        .put(b"\xff\xe0"),
        Code(START64).number(RDI, virtual(BSS)).number(RCX, BSS_END - BSS).number(RAX, script.fill)
        .put(b"\xf3\xaa").number(RDI, virtual(PARAMETERS)).number(RCX, PAGE // 8)
        .put(b"\x48\x89\xde", MOVE)
        .variable(b"\x0f\x01\x15", VARIABLE["descriptors"])  # lgdt
        .variable(b"\x0f\x01\x1d", VARIABLE["descriptors"] + 16)  # lidt
        .call(START),
        start.call(INIT).put(HERE),
        Code(EARLY).put(ENDBR, b"\xc3"),
        Code(SCAN).variable(b"\x48\xff\x05", VARIABLE["scans"]).put(b"\xc3"),
        _init(script), begins(STEP, plain), begins(RANGE, plain), alloc,
        Code(NOP).put(b"\xc3"), Code(PANIC).put(HERE), Code(EXTEND).put(HERE),
        Code(FENTRY).put(b"\xc3"),
    ]  # fmt: skip


def _types(bottom_up: bool, *kinds: Iterable[tuple[int, int]]) -> tuple[bytes, bytes]:
    """memblock, and the regions that it leads to."""
    head, regions = struct.pack("<B7xQ", bottom_up, 1 << 52), b""
    for spans in kinds:
        rows = b"".join(struct.pack("<3Q", low, high - low, 0) for low, high in spans)
        at = virtual(REGIONS) + len(regions)
        head += struct.pack("<5Q", len(rows) // 24, 128, 0, at, 0)
        regions += rows
    return head, regions


def kernel(script: Script, spec: MapSpec) -> Kernel:
    """Assemble it."""
    image = bytearray(END)

    def put(at: int, data: bytes) -> None:
        image[at : at + len(data)] = data

    put(0, b"\xcc" * script.text_end)
    for code in _functions(script):
        put(code.at, code.data)
    put(script.text_end, b"\xcc" * (RODATA - script.text_end))
    memblock, regions = _types(script.bottom_up, spec.ram, script.reserved)
    put(MEMBLOCK, memblock)
    put(REGIONS, regions)
    rows = b"".join(struct.pack("<QQI", low, high - low, kind) for low, high, kind in spec.e820)
    put(E820, struct.pack("<I", len(spec.e820)) + rows)
    values = {
        "page_offset_base": PAGE_OFFSET,
        "vmalloc_base": 0xFFFFC90000000000,
        "pgt_buf_end": (BASE + BRK) // PAGE,
        "pgt_buf_top": (BASE + BRK) // PAGE + 3,
        "max_pfn": 0x4000,
        "max_low_pfn": 0x3000,
        "e820_table": virtual(E820),
        "next": virtual(GIVEN),
        # An int, next to something else.
        "smp_found_config": script.scan_finds << 24 | 1 << 32,
    }
    for name, value in values.items():
        put(VARIABLE[name], struct.pack("<Q", value))
    put(VARIABLE["descriptors"], struct.pack("<HQ", 0x7F, virtual(RODATA)))
    put(VARIABLE["descriptors"] + 16, struct.pack("<HQ", 0xFFF, virtual(RODATA)))
    put(PV_OPS, struct.pack("<4Q", virtual(STEP), 0, virtual(NOP), virtual(NOP)))
    given = [page for step in script.steps for _, page in step.pages]
    put(GIVEN, b"".join(struct.pack("<Q", _address(page)) for page in given))
    put(TEXT, b" it is over\n\0rest")
    put(LOG, b"\0\x01words of the log\0\0\x07the last of them\0")
    put(ROOT, entries({script.root_slot: next(iter(script.tables), 0) | 3}))
    for number, data in enumerate(script.tables.values()):
        put(TABLES + number * PAGE, data)
    put(BSS, b"\xaa" * 64)  # what a loader left there
    put(BSS_END, b"\xbb" * 64)
    symbols = {
        "x86_64_start_kernel": START64, "start_kernel": START, "early_ioremap_init": EARLY,
        "mpparse_find_mptable": SCAN, "init_mem_mapping": INIT, "init_memory_mapping": STEP,
        "kernel_physical_mapping_init": RANGE, "alloc_low_pages": ALLOC, "paravirt_nop": NOP,
        "panic": PANIC, "extend_brk": EXTEND, "__fentry__": FENTRY, "_etext": script.text_end,
        "__start_rodata": RODATA, "__end_rodata": RODATA_END, "_sdata": DATA, "__bss_start": BSS,
        "memblock": MEMBLOCK, "pv_ops": PV_OPS, "boot_params": PARAMETERS, "__log_buf": LOG,
        "init_top_pgt": ROOT, "_end": END, **VARIABLE,
    }  # fmt: skip
    segment = LoadSegment(virtual(0), BASE, bytes(image), END)
    return Kernel(
        Path("toy"), bytes(0x70), "6.1.0-toy", "6.1.0-toy (of tests)", BASE, (segment,),
        {name: virtual(at) for name, at in symbols.items()},
    )  # fmt: skip


def _address(physical: int) -> int:
    """Where a page is given: those of brk by the image's own mapping."""
    inside = BASE <= physical < BASE + END
    return (MAP if inside else PAGE_OFFSET) + physical


def entries(found: Mapping[int, int]) -> bytes:
    page = bytearray(PAGE)
    for slot, entry in found.items():
        struct.pack_into("<Q", page, 8 * slot, entry)
    return bytes(page)


def tables_for(l3: int, l2: int, large_pages: int) -> dict[int, bytes]:
    """Tables that map so many large pages from 0 on: pages at two physical addresses."""
    leaves = {number: number << 21 | 0x1E3 for number in range(large_pages)}
    return {l3: entries({0: l2 | 0x63}), l2: entries(leaves)}


GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "rip", "eflags", "cr3")
NAMES = {name: getattr(x86_const, f"UC_X86_REG_{name.upper()}") for name in GENERAL}
KEPT = ("efer", "cr4", "cr0", "cs", "ds", "es", "fs", "gs", "ss")


class Gdb:
    """The machine, asked as `GdbClient` asks QEMU's stub."""

    forgets = ""
    """A register that does not keep what is written."""
    task = 0
    hangs = False

    def __init__(self, ram: GuestRam) -> None:
        self.breakpoints: set[int] = set()
        self.resumed = 0
        self.other = dict.fromkeys(KEPT, 0)
        self.written: list[tuple[str, int]] = []
        self.cpu = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self._memory = mmap.mmap(ram.fd, ram.layout.below_4g)
        self._pointer: Any = (ctypes.c_char * len(self._memory)).from_buffer(self._memory)
        size = len(self._memory)
        self.cpu.mem_map_ptr(0, size, unicorn.UC_PROT_ALL, ctypes.addressof(self._pointer))
        # What boot tables would map: physical memory itself, the image, the direct map.
        self.cpu.ctl_set_tlb_mode(unicorn.UC_TLB_VIRTUAL)
        self.cpu.hook_add(unicorn.UC_HOOK_TLB_FILL, self._translate)
        self.cpu.hook_add(unicorn.UC_HOOK_CODE, self._look)

    def close(self) -> None:
        del self.cpu, self._pointer
        self._memory.close()

    def _translate(self, _cpu: Any, address: int, _access: int, entry: Any, *_: object) -> bool:
        base = next((base for base in (MAP, PAGE_OFFSET) if address >= base), 0)
        entry.paddr, entry.perms = address - base, unicorn.UC_PROT_ALL
        return True

    def _look(self, cpu: Any, address: int, *_: object) -> None:
        if address in self.breakpoints:
            self._stopped = True
            cpu.emu_stop()

    def insert_breakpoint(self, address: int) -> None:
        self.breakpoints.add(address)
        assert len(self.breakpoints) < 16

    def remove_breakpoint(self, address: int) -> None:
        self.breakpoints.remove(address)

    def resume(self) -> None:
        if self.hangs:
            raise GdbTimeout("no answer")
        self._run(100_000)
        if not self._stopped:
            raise GdbError("it runs for ever")

    def step(self) -> None:
        assert self.read_register("rip") not in self.breakpoints
        self._run(1)

    def _run(self, count: int) -> None:
        self.resumed += 1
        self._stopped = False
        self.cpu.ctl_flush_tb()
        rip = self.read_register("rip")
        try:
            self.cpu.emu_start(rip, 0, count=count)
        except unicorn.UcError as error:
            raise GdbError(f"at {self.read_register('rip'):#x}: {error}") from error

    def read_register(self, name: str) -> int:
        return int(self.cpu.reg_read(NAMES[name])) if name in NAMES else self.other[name]

    def write_register(self, name: str, value: int) -> None:
        self.written.append((name, value))
        if name == self.forgets:
            return
        if name in NAMES:
            self.cpu.reg_write(NAMES[name], value)
        else:
            self.other[name] = value

    def registers(self) -> dict[str, int]:
        names = ("rax", "rcx", "rdx", "rsi", "rdi", "rsp", "rip")
        return {name: self.read_register(name) for name in names}

    def all_registers(self) -> dict[str, int]:
        return {name: self.read_register(name) for name in (*NAMES, *KEPT)}

    def tables(self) -> list[tuple[int, int]]:
        """Base and limit of GDT and IDT."""
        read = (
            self.cpu.reg_read(r) for r in (x86_const.UC_X86_REG_GDTR, x86_const.UC_X86_REG_IDTR)
        )
        return [(base & (1 << 64) - 1, limit) for _, base, limit, _ in read]

    def monitor(self, command: str) -> str:
        assert command == "info registers"
        (gdt, idt) = (f"{base:016x} {limit:08x}" for base, limit in self.tables())
        lines = (f"LDT=0000 {0:016x} 0000ffff", f"TR ={self.task:04x} {0:016x} 0000ffff")
        return "\r\n".join(["RAX=0", *lines, f"GDT=     {gdt}", f"IDT=     {idt}", "CR0=1\r\n"])


class Machine:
    """Stands for `Qemu`."""

    made: list[Machine] = []  # noqa: RUF012  # emptied by each test

    def __init__(self, _: str, spec: MapSpec, kernel: Kernel, ram: GuestRam, timeout: float):
        assert timeout > 0
        self.gdb = Gdb(ram)
        self.made.append(self)

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.descriptors = self.gdb.tables()
        self.gdb.close()

    def console(self) -> str:
        return ""
