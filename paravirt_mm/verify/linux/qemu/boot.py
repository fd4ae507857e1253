"""Booting a kernel up to the end of its direct map and writing down what it did.

Breakpoints are set on functions that are called from other files, so that no compiler inlines them:

* ``init_mem_mapping``: the beginning, and through its return address the end;
* ``init_memory_mapping``: one call a piece of RAM;
* ``kernel_physical_mapping_init``: one call a page size;
* ``alloc_low_pages``: a table page; at its return address RAX is the page;
* the empty function behind native's ``alloc_pte``, ``alloc_pmd`` and ``alloc_pud`` hooks;
* ``extend_brk``, which nobody may call any more by then: a BUG;
* ``panic``.

Source of facts: Linux ``arch/x86/mm/init.c``, ``init_64.c``, ``kernel/paravirt.c``, 5.10 to 6.12.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from paravirt_mm.machine.paging import MIB, PAGE_SIZE
from paravirt_mm.verify.linux.qemu.errors import BootError, GdbError, MapSpecError
from paravirt_mm.verify.linux.qemu.gdbremote import GdbClient
from paravirt_mm.verify.linux.qemu.handover import put_kernel, set_registers
from paravirt_mm.verify.linux.qemu.kernelmem import KernelMemory
from paravirt_mm.verify.linux.qemu.locate import Kernel, find_kernel, find_qemu, qemu_version
from paravirt_mm.verify.linux.qemu.process import Qemu, kernel_parameters, qemu_arguments
from paravirt_mm.verify.linux.qemu.ram import GuestRam
from paravirt_mm.verify.linux.qemu.record import (
    LiveRecord,
    MappingStep,
    Provenance,
    TableAllocation,
)
from paravirt_mm.verify.linux.qemu.spec import Entry, MapSpec
from paravirt_mm.verify.linux.qemu.walk import DirectMap, walk_direct_map

DEFAULT_TIMEOUT = 120.0
"""Seconds that one boot may take in all."""
BRK_IS_CLOSED = "extend_brk: brk is closed (kernel BUG)"
"""Verdict, where a panic's text stands, for a kernel that dies of a BUG in extend_brk."""
_MAX_STOPS = 2_000_000
_PG_LEVEL_2M, _PG_LEVEL_1G = 2, 3
_NOP_HOOKS = ("_paravirt_nop", "paravirt_nop", "nop_func")
_CR4_LA57 = 1 << 12


def boot(
    spec: MapSpec,
    kernel: Kernel | Path | None = None,
    *,
    qemu: str | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    dump: Path | None = None,
) -> LiveRecord:
    """Boot ``spec`` in QEMU, stop when ``init_mem_mapping`` has returned, and tell what it did.

    ``kernel`` is a loaded kernel (load it once for many boots) or where to find one, see
    ``find_kernel``.  A kernel panic on the way is a result (``LiveRecord.panic``).  ``dump`` names
    a new file for the guest's memory as it is then: sparse, raw, offset = physical address.

    Raises LiveUnavailableError without QEMU or kernel, KernelImageError, MapSpecError, and
    BootError when the kernel does not get there within ``timeout`` seconds.
    """
    program = find_qemu(qemu)
    if not isinstance(kernel, Kernel):
        kernel = Kernel.load(find_kernel(kernel))
    if spec.levels == 5 and not kernel.has_five_levels:
        raise MapSpecError(f"kernel {kernel.release} is built without five levels of paging")
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
                provenance = Provenance(
                    kernel=kernel.version,
                    qemu=qemu_version(program),
                    qemu_arguments=tuple(_public(qemu_arguments(spec, kernel))),
                    command_line=kernel_parameters(spec),
                    entry=spec.entry.value,
                    seconds=round(time.monotonic() - started, 3),
                )
                return recorder.record(spec, kernel, provenance)
            except (GdbError, BootError) as error:
                console = machine.console().strip().splitlines()[-12:]
                tail = "\n  ".join(["the kernel's last lines:", *console]) if console else ""
                raise BootError(f"{kernel.release}: {error}\n{tail}".rstrip()) from error


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
        self._returns: dict[int, int] = {}  # return address of alloc_low_pages -> pages asked for
        self.steps: list[MappingStep] = []
        self.allocations: list[TableAllocation] = []
        self.hooked: list[int] = []
        self.panic: str | None = None

    def run(self) -> None:
        """Up to the end of the direct map, or to a panic."""
        for address in (self._begin, self._panic):
            self.gdb.insert_breakpoint(address)
        self.gdb.resume()
        registers = self.gdb.registers()
        if registers["rip"] == self._panic:
            raise BootError(f"panic before the direct map: {self._panic_text(registers['rdi'])}")
        if registers["rip"] != self._begin:
            raise BootError(f"stopped at {registers['rip']:#x}, not at init_mem_mapping")
        self._look_before()
        end = self.memory.number_at(registers["rsp"])
        for address in (self._step, self._split, self._allocate, self._hook, self._extend, end):
            self.gdb.insert_breakpoint(address)
        self.gdb.remove_breakpoint(self._begin)
        for _ in range(_MAX_STOPS):
            self.gdb.resume()
            registers = self.gdb.registers()
            rip = registers["rip"]
            if rip == end:
                return
            if rip == self._panic:
                self.panic = self._panic_text(registers["rdi"])
                return
            if rip == self._extend:
                self.panic = BRK_IS_CLOSED
                return
            self._note(rip, registers)
            self._step_over(rip)
        raise BootError(f"init_mem_mapping did not end after {_MAX_STOPS} events")

    def _step_over(self, rip: int) -> None:
        """One instruction on: resumed at the breakpoint itself, QEMU would stop there again."""
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

    def _note(self, rip: int, registers: Mapping[str, int]) -> None:
        rdi, rsi, rdx = registers["rdi"], registers["rsi"], registers["rdx"]
        if rip == self._step:
            self.steps.append(MappingStep(rdi, rsi))
        elif rip == self._split:
            if not self.steps:
                raise BootError("kernel_physical_mapping_init before any init_memory_mapping")
            self.steps[-1].ranges.append((rdi, rsi, _page_size(rdx)))
        elif rip == self._allocate:
            back = self.memory.number_at(registers["rsp"])
            if back not in self._returns:
                self.gdb.insert_breakpoint(back)
            self._returns[back] = rdi & 0xFFFF_FFFF
        elif rip in self._returns:
            self._note_allocation(self.memory.physical(registers["rax"]), self._returns[rip])
        elif rip == self._hook:
            self.hooked.append(rsi)
        else:
            raise BootError(f"stopped at {rip:#x}, where no breakpoint is")

    def _note_allocation(self, address: int, pages: int) -> None:
        if self.memory.ram.layout.file_offset(address, pages * PAGE_SIZE) is None:
            raise BootError(
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

    def walk(self) -> tuple[int, int, DirectMap]:
        """Levels, root and direct map: from CR3, or after a panic from the tree being built."""
        memory = self.memory
        levels = 5 if self.gdb.read_register("cr4") & _CR4_LA57 else 4
        root = memory.physical(memory.address_of("init_top_pgt", "init_level4_pgt"))
        cr3 = self.gdb.read_register("cr3") & ~0xFFF
        if self.panic is None and cr3 != root:
            raise BootError(f"CR3 is {cr3:#x} after init_mem_mapping, not {root:#x}")

        def read_page(address: int) -> bytes | None:
            if memory.ram.layout.file_offset(address, PAGE_SIZE) is None:
                return None
            return memory.ram.read(address, PAGE_SIZE)

        end = memory.number("vmalloc_base")
        return levels, root, walk_direct_map(read_page, root, levels, memory.page_offset, end)

    def record(self, spec: MapSpec, kernel: Kernel, provenance: Provenance) -> LiveRecord:
        """Everything together; levels of hooked tables come from the walk."""
        levels, root, found = self.walk()
        level_of = {table.pfn: table.level for table in found.tables}
        own = {allocation.pfn for allocation in self.allocations}
        first, top = self.pgt_buf
        return LiveRecord(
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
