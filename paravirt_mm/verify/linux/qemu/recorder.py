"""Booting a kernel up to the end of its direct map and writing down what it did.

Breakpoints are set on functions that are called from other files, so that no compiler inlines them:

* ``init_mem_mapping``: the beginning, and through its return address the end;
* ``init_memory_mapping``: one call a piece of RAM;
* ``kernel_physical_mapping_init``: one call a page size;
* ``alloc_low_pages``: a table page; when it returns, RAX is the page;
* the empty function behind native's ``alloc_pte``, ``alloc_pmd`` and ``alloc_pud`` hooks;
* ``extend_brk``, which nobody may call any more by then: a BUG;
* ``panic``.

The kernel's first deed is to clear its bss. That is done for it, since it takes an emulated
processor as long as everything else up to the direct map.

Source: Linux ``arch/x86/mm/init.c``, ``init_64.c``, ``kernel/paravirt.c``, ``kernel/head64.c``
(clear_bss), 5.10 to 6.12; the names are those of 7.3 as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from paravirt_mm.image.elf import CR4_LA57
from paravirt_mm.image.walker import Cpu
from paravirt_mm.machine.paging import MIB, PAGE_SIZE, X86_64, X86_64_LA57
from paravirt_mm.verify.linux.qemu.direct_map import DirectMap, read_direct_map
from paravirt_mm.verify.linux.qemu.errors import (
    GdbError,
    GdbTimeout,
    KernelBootError,
    MapSpecError,
)
from paravirt_mm.verify.linux.qemu.gdbremote import GdbClient
from paravirt_mm.verify.linux.qemu.handover import put_kernel, set_registers
from paravirt_mm.verify.linux.qemu.kernelmem import KernelMemory
from paravirt_mm.verify.linux.qemu.locate import Kernel, find_kernel, find_qemu, qemu_version
from paravirt_mm.verify.linux.qemu.process import Qemu, kernel_parameters, qemu_arguments
from paravirt_mm.verify.linux.qemu.ram import GuestRam
from paravirt_mm.verify.linux.qemu.record import (
    BootProvenance,
    BootRecord,
    MappingStep,
    TableAllocation,
)
from paravirt_mm.verify.linux.qemu.spec import Entry, MapSpec

DEFAULT_TIMEOUT = 120.0
"""Seconds that one boot may take in all."""
BRK_IS_CLOSED = "extend_brk: brk is closed (kernel BUG)"
"""Verdict, where a panic's text stands, for a kernel that dies of a BUG in extend_brk."""
_MAX_STOPS = 2_000_000
_LAST_LINES = 12
_PG_LEVEL_2M, _PG_LEVEL_1G = 2, 3
_NOP_HOOKS = ("_paravirt_nop", "paravirt_nop", "nop_func")
_REP_STOSB = b"\xf3\xaa"
_CLEARING_STARTS_WITHIN = 96
"""Bytes from the start of the function that clears bss."""
_ENDBR64, _NOP5, _CALL, _JUMP = b"\xf3\x0f\x1e\xfa", b"\x0f\x1f\x44\x00\x00", 0xE8, 0xE9
_PHYSICAL_BITS = 40
"""Of the processor that QEMU emulates."""


def record_boot(
    spec: MapSpec,
    kernel: Kernel | Path | None = None,
    *,
    qemu: str | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    dump: Path | None = None,
) -> BootRecord:
    """Boot ``spec`` in QEMU, stop when ``init_mem_mapping`` has returned, and tell what it did.

    ``kernel`` is a loaded kernel (load it once for many boots) or where to find one, see
    ``find_kernel``. A kernel panic on the way is a result (``BootRecord.panic``). ``dump`` names
    a new file for the guest's memory as it is then: sparse, raw, offset = physical address.

    Raises LiveUnavailableError without QEMU or kernel, KernelImageError, MapSpecError, and
    KernelBootError when the kernel does not get there within ``timeout`` seconds.
    """
    program = find_qemu(qemu)
    if not isinstance(kernel, Kernel):
        kernel = Kernel.load(find_kernel(kernel))
    if spec.levels == 5 and not kernel.has_five_levels:
        raise MapSpecError(f"kernel {kernel.release} is built without five levels of paging")
    if spec.entry is Entry.FIRMWARE and not kernel.is_bzimage:
        raise MapSpecError("firmware starts a bzImage, not a vmlinux")
    started = time.monotonic()
    with GuestRam(spec.layout) as ram:
        if spec.entry is Entry.DIRECT:
            put_kernel(ram, kernel, spec, kernel_parameters(spec))
        with Qemu(program, spec, kernel, ram, timeout) as machine:
            try:
                if spec.entry is Entry.DIRECT:
                    set_registers(machine.gdb, kernel, spec)
                recorder = _Recorder(machine.gdb, KernelMemory(ram, kernel.symbols))
                recorder.run()
                if dump is not None:
                    ram.dump(dump)
                provenance = BootProvenance(
                    kernel=kernel.version,
                    qemu=qemu_version(program),
                    qemu_arguments=tuple(_public(qemu_arguments(spec, kernel))),
                    command_line=kernel_parameters(spec),
                    entry=spec.entry.value,
                    seconds=round(time.monotonic() - started, 3),
                )
                return recorder.record(spec, kernel, provenance)
            except GdbTimeout as error:
                problem = (
                    f"the kernel did not come to the end of its direct map within the time "
                    f"allowed, {timeout:g} s: it hangs, or needs more time"
                )
                raise _failed(kernel, problem, machine, ram) from error
            except (GdbError, KernelBootError) as error:
                raise _failed(kernel, str(error), machine, ram) from error


def _failed(kernel: Kernel, problem: str, machine: Qemu, ram: GuestRam) -> KernelBootError:
    """Return the error with the kernel's last lines, from the console or from its own log."""
    lines = machine.console().strip().splitlines()[-_LAST_LINES:]
    lines = lines or KernelMemory(ram, kernel.symbols).last_lines(_LAST_LINES)
    tail = "\n  ".join(["the kernel's last lines:", *lines]) if lines else ""
    return KernelBootError(f"{kernel.release}: {problem}\n{tail}".rstrip())


def _public(arguments: list[str]) -> list[str]:
    """Arguments without directories: they are nobody's business and differ between machines."""
    return [Path(word).name if word.startswith("/") else word for word in arguments]


class _Recorder:
    """Runs the machine from breakpoint to breakpoint and keeps what it sees."""

    def __init__(self, gdb: GdbClient, memory: KernelMemory) -> None:
        self.gdb = gdb
        self.memory = memory
        address = memory.address_of
        self._begin = address("init_mem_mapping")
        self._step = address("init_memory_mapping")
        self._split = address("kernel_physical_mapping_init")
        self._allocate = address("alloc_low_pages")
        self._hook = address(*_NOP_HOOKS)
        self._panic = address("panic")
        self._extend = address("extend_brk")
        # Functions that the kernel never enters again: addresses to come back to instead of the
        # caller's.
        self._page_given = address("x86_64_start_kernel")
        self._range_done = address("start_kernel")
        self._page_caller = self._range_caller = 0
        self._pages_asked = 0
        self._fentry = memory.symbols.get("__fentry__")
        self.steps: list[MappingStep] = []
        self.allocations: list[TableAllocation] = []
        self.hooked: list[int] = []
        self.panic: str | None = None

    def run(self) -> None:
        """Up to the end of the direct map, or to a panic."""
        self._reach_the_beginning()
        self._look_before()
        end = self.memory.number_at(self.gdb.registers()["rsp"])
        notes: dict[int, Callable[[Mapping[str, int]], None]] = {
            self._step: self._note_step,
            self._split: self._note_range,
            self._range_done: self._note_range_done,
            self._allocate: self._note_call,
            self._page_given: self._note_page,
            self._hook: self._note_hook,
        }
        for address in (*notes, self._extend, end):
            self.gdb.insert_breakpoint(address)
        self.gdb.remove_breakpoint(self._begin)
        for _ in range(_MAX_STOPS):
            self.gdb.resume()
            registers = self.gdb.registers()
            rip = registers["rip"]
            if rip == end:
                return
            if rip in (self._panic, self._extend):
                dies = rip == self._panic
                self.panic = self._panic_text(registers["rdi"]) if dies else BRK_IS_CLOSED
                return
            if rip not in notes:
                raise KernelBootError(f"stopped at {rip:#x}, where no breakpoint is")
            notes[rip](registers)
        raise KernelBootError(f"init_mem_mapping did not end after {_MAX_STOPS} events")

    def _reach_the_beginning(self) -> None:
        """Run up to init_mem_mapping."""
        self._clear_bss()
        for address in (self._begin, self._panic):
            self.gdb.insert_breakpoint(address)
        self.gdb.resume()
        registers = self.gdb.registers()
        if registers["rip"] == self._panic:
            text = self._panic_text(registers["rdi"])
            raise KernelBootError(f"panic before the direct map: {text}")
        if registers["rip"] != self._begin:
            raise KernelBootError(f"stopped at {registers['rip']:#x}, not at init_mem_mapping")

    def _clear_bss(self) -> None:
        """Run up to where the kernel clears its bss, and do it."""
        memory, gdb = self.memory, self.gdb
        start = memory.address_of("clear_bss", "x86_64_start_kernel")
        at = start + memory.code(start, _CLEARING_STARTS_WITHIN).find(_REP_STOSB)
        if at < start:
            return  # some other way, which takes its time
        gdb.insert_breakpoint(at)
        gdb.resume()
        registers = gdb.registers()
        if registers["rip"] != at:
            raise KernelBootError(f"stopped at {registers['rip']:#x}, not at clear_bss")
        gdb.remove_breakpoint(at)
        if registers["rdi"] == memory.address_of("__bss_start") and not registers["rax"] & 0xFF:
            memory.clear(registers["rdi"], registers["rcx"])
            gdb.write_register("rdi", registers["rdi"] + registers["rcx"])
            gdb.write_register("rcx", 0)

    def _step_over(self, rip: int) -> None:
        """One instruction on: resumed at the breakpoint itself, QEMU would stop there again.

        Each time it runs QEMU forgets all code that it has translated, so the instructions that
        functions begin with, which do nothing or jump, are not left to it.
        """
        code = self.memory.code(rip, 5)
        target = rip + 5 + int.from_bytes(code[1:], "little", signed=True)
        if code.startswith(_ENDBR64):
            self.gdb.write_register("rip", rip + len(_ENDBR64))
        elif code == _NOP5 or (code[0] == _CALL and target == self._fentry):
            self.gdb.write_register("rip", rip + len(code))
        elif code[0] == _JUMP:
            self.gdb.write_register("rip", target)
        else:
            self.gdb.remove_breakpoint(rip)
            self.gdb.step()
            self.gdb.insert_breakpoint(rip)

    def _look_before(self) -> None:
        memory = self.memory
        self.before = memory.memblock()
        self.e820 = memory.e820()
        self.pgt_buf = memory.number("pgt_buf_end"), memory.number("pgt_buf_top")
        self.max_pfn = memory.number("max_pfn")
        self.max_low_pfn = memory.number("max_low_pfn")

    def _note_step(self, registers: Mapping[str, int]) -> None:
        self.steps.append(MappingStep(registers["rdi"], registers["rsi"]))
        self._step_over(self._step)

    def _note_range(self, registers: Mapping[str, int]) -> None:
        """A range begins. QEMU is slow in a page with a breakpoint, and it is this page whose loops
        fill the tables: there is none in it until the range is done.
        """
        if not self.steps:
            raise KernelBootError("kernel_physical_mapping_init before any init_memory_mapping")
        size = _page_size(registers["rdx"])
        self.steps[-1].ranges.append((registers["rdi"], registers["rsi"], size))
        self._range_caller = self._come_back(registers, self._range_done)
        self.gdb.remove_breakpoint(self._split)

    def _note_range_done(self, _registers: Mapping[str, int]) -> None:
        self.gdb.insert_breakpoint(self._split)
        self.gdb.write_register("rip", self._range_caller)

    def _note_call(self, registers: Mapping[str, int]) -> None:
        self._pages_asked = registers["rdi"] & 0xFFFF_FFFF
        self._page_caller = self._come_back(registers, self._page_given)
        self._step_over(self._allocate)

    def _come_back(self, registers: Mapping[str, int], to: int) -> int:
        """Let the function that begins here return to ``to``; return its caller's address."""
        caller = self.memory.number_at(registers["rsp"])
        self.memory.put_number(registers["rsp"], to)
        return caller

    def _note_hook(self, registers: Mapping[str, int]) -> None:
        self.hooked.append(registers["rsi"])
        self._step_over(self._hook)

    def _note_page(self, registers: Mapping[str, int]) -> None:
        self.gdb.write_register("rip", self._page_caller)
        pages = self._pages_asked
        address = self.memory.physical(registers["rax"])
        if self.memory.ram.layout.file_offset(address, pages * PAGE_SIZE) is None:
            raise KernelBootError(
                f"the kernel took a table at {address:#x}, RAM of the map that QEMU's machine does "
                "not have: take RAM from 3 to 4 GiB out of the map"
            )
        first, top = self.pgt_buf
        pfn = address // PAGE_SIZE
        for number in range(pages):
            from_brk = first <= pfn + number < top
            step = len(self.steps) - 1
            self.allocations.append(TableAllocation(pfn + number, from_brk, step))

    def _panic_text(self, address: int) -> str:
        return self.memory.text_at(address).strip()

    def direct_map(self, spec: MapSpec) -> tuple[int, int, DirectMap]:
        """Levels, root and direct map: from CR3, or after a panic from the tree being built."""
        memory = self.memory
        mode = X86_64_LA57 if self.gdb.read_register("cr4") & CR4_LA57 else X86_64
        root = memory.physical(memory.address_of("init_top_pgt", "init_level4_pgt"))
        cr3 = self.gdb.read_register("cr3") & ~0xFFF
        if self.panic is None and cr3 != root:
            raise KernelBootError(f"CR3 is {cr3:#x} after init_mem_mapping, not {root:#x}")
        within = memory.page_offset, memory.number("vmalloc_base")
        cpu = Cpu(physical_bits=_PHYSICAL_BITS, gbpages=spec.gbpages)
        return mode.root_level, root, read_direct_map(memory.pages, root, mode, within, cpu)

    def record(self, spec: MapSpec, kernel: Kernel, provenance: BootProvenance) -> BootRecord:
        """Everything together; levels of hooked tables come from the tables."""
        levels, root, found = self.direct_map(spec)
        level_of = {table.pfn: table.level for table in found.tables}
        own = {allocation.pfn for allocation in self.allocations}
        first, top = self.pgt_buf
        return BootRecord(
            release=kernel.release,
            levels=levels,
            pse=spec.pse,
            gbpages=spec.gbpages,
            memory_mib=spec.layout.size // MIB,
            firmware_e820=spec.e820,
            e820=self.e820,
            memory=self.before.memory,
            reserved=self.before.reserved,
            bottom_up=self.before.bottom_up,
            kernel_end=self.memory.physical(self.memory.address_of("_end")),
            brk_start=first * PAGE_SIZE,
            pgt_buf_pages=top - first,
            max_pfn=self.max_pfn,
            max_low_pfn=self.max_low_pfn,
            panic=self.panic,
            steps=tuple(self.steps),
            allocations=tuple(self.allocations),
            hook_order=tuple((level_of[p], p) for p in self.hooked if p in own and p in level_of),
            cr3=root,
            tables=found.tables,
            leaf_runs=found.leaf_runs,
            findings=found.findings,
            reserved_after=self.memory.memblock().reserved,
            provenance=provenance,
        )


def _page_size(mask: int) -> str:
    if mask & 1 << _PG_LEVEL_1G:
        return "1G"
    return "2M" if mask & 1 << _PG_LEVEL_2M else "4k"
