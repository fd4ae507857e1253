"""Booting a kernel up to the end of its direct map and writing down what it did.

The machine stops at functions that are called from other files, so that no compiler inlines them:

* ``init_mem_mapping``: the beginning, and through its return address the end;
* ``extend_brk``, which nobody may call any more by then: a BUG;
* ``panic``.

What happens in between is noted by `Probes`, or, where they cannot be put, by `Stops`.

The kernel's first deed is to clear its bss. That is done for it, since it takes an emulated
processor as long as everything else up to the direct map.

Source: Linux ``arch/x86/mm/init.c``, ``init_64.c``, ``kernel/paravirt.c``, ``kernel/head64.c``
(clear_bss), 5.10 to 6.12; the names are those of 7.3 as well.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from paravirt_mm.image.elf import CR4_LA57
from paravirt_mm.image.walker import Cpu
from paravirt_mm.machine.model import Span
from paravirt_mm.machine.paging import MIB, PAGE_SIZE, X86_64, X86_64_LA57
from paravirt_mm.machine.ranges import RangeSet
from paravirt_mm.verify.linux.qemu.direct_map import GuestMap, read_direct_map
from paravirt_mm.verify.linux.qemu.errors import (
    GdbError,
    GdbTimeout,
    KernelBootError,
    MapSpecError,
)
from paravirt_mm.verify.linux.qemu.events import Event, EventKind
from paravirt_mm.verify.linux.qemu.gdbremote import GdbClient
from paravirt_mm.verify.linux.qemu.handover import enter, put_kernel
from paravirt_mm.verify.linux.qemu.kernelmem import KernelMemory
from paravirt_mm.verify.linux.qemu.locate import Kernel, find_kernel, find_qemu, qemu_version
from paravirt_mm.verify.linux.qemu.probes import Probes
from paravirt_mm.verify.linux.qemu.process import Qemu, kernel_parameters, processor, qemu_arguments
from paravirt_mm.verify.linux.qemu.ram import GuestRam
from paravirt_mm.verify.linux.qemu.record import (
    BootProvenance,
    BootRecord,
    MappingStep,
    TableAllocation,
)
from paravirt_mm.verify.linux.qemu.spec import Entry, MapSpec
from paravirt_mm.verify.linux.qemu.start import BEFORE_THE_MAP, Start, UnusableStartError
from paravirt_mm.verify.linux.qemu.stops import Stops

DEFAULT_TIMEOUT = 120.0
"""Seconds that one boot may take in all."""
BRK_IS_CLOSED = "extend_brk: brk is closed (kernel BUG)"
"""Verdict, where a panic's text stands, for a kernel that dies of a BUG in extend_brk."""
_LAST_LINES = 12
_PG_LEVEL_2M, _PG_LEVEL_1G = 2, 3
_REP_STOSB = b"\xf3\xaa"
_CLEARING_STARTS_WITHIN = 96
"""Bytes from the start of the function that clears bss."""
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
    boot = partial(_boot, program, spec, kernel, timeout=timeout, dump=dump, started=started)
    common = (program, processor(spec), kernel_parameters(spec), str(spec.initrd is not None))
    try:
        return boot(common)
    except UnusableStartError:
        kernel.starts[common] = None
        return boot(common)


def _boot(
    program: str,
    spec: MapSpec,
    kernel: Kernel,
    common: tuple[str, ...],
    *,
    timeout: float,
    dump: Path | None,
    started: float,
) -> BootRecord:
    """Boot once; continue where boots with the same ``common`` have come to, if one has."""
    with GuestRam(spec.layout) as ram:
        memory = KernelMemory(ram, kernel.symbols, kernel.moved)
        start = None
        if spec.entry is Entry.DIRECT:
            put_kernel(ram, kernel, spec, kernel_parameters(spec))
            start = kernel.starts.get(common)
            if start is not None:
                start.put(memory)
        with Qemu(program, spec, kernel, ram, timeout) as machine:
            try:
                recorder = _Recorder(machine.gdb, memory)
                if start is not None:
                    start.enter(machine.gdb, ram, spec)
                    recorder.reach_the_beginning()
                    start.leave(memory)
                    recorder.look_for(spec.taken)
                elif spec.entry is Entry.DIRECT:
                    enter(machine.gdb, spec, kernel.entry)
                    recorder.clear_bss()
                    new = None if common in kernel.starts else recorder.start(kernel, spec)
                    recorder.reach_the_beginning()
                    kernel.starts.setdefault(common, new and new.without_scan(memory))
                else:
                    recorder.reach_the_beginning()
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
            except UnusableStartError:
                raise
            except (GdbError, KernelBootError) as error:
                raise _failed(kernel, str(error), machine, ram) from error


def _failed(kernel: Kernel, problem: str, machine: Qemu, ram: GuestRam) -> KernelBootError:
    """Return the error with the kernel's last lines, from the console or from its own log."""
    lines = machine.console().strip().splitlines()[-_LAST_LINES:]
    lines = lines or KernelMemory(ram, kernel.symbols, kernel.moved).last_lines(_LAST_LINES)
    tail = "\n  ".join(["the kernel's last lines:", *lines]) if lines else ""
    return KernelBootError(f"{kernel.release}: {problem}\n{tail}".rstrip())


def _public(arguments: list[str]) -> list[str]:
    """Arguments without directories: they are nobody's business and differ between machines."""
    return [Path(word).name if word.startswith("/") else word for word in arguments]


class _Recorder:
    """Runs the machine through its direct map and keeps what it sees."""

    def __init__(self, gdb: GdbClient, memory: KernelMemory) -> None:
        self.gdb = gdb
        self.memory = memory
        address = memory.address_of
        self._begin = address("init_mem_mapping")
        self._panic = address("panic")
        self._extend = address("extend_brk")
        self._pages_asked: int
        self.steps: list[MappingStep] = []
        self.allocations: list[TableAllocation] = []
        self.hooked: list[int] = []
        self.panic: str | None = None

    def look_for(self, reserved: Iterable[Span]) -> None:
        """Raise UnusableStartError where the kernel has not heard of all reservations."""
        known = RangeSet(self.memory.memblock().reserved)
        if RangeSet(reserved).difference(known):
            raise UnusableStartError("the kernel had read its reservations before")

    def run(self) -> None:
        """From init_mem_mapping up to the end of the direct map, or to a panic."""
        self._look_before()
        end = self.memory.number_at(self.gdb.registers()["rsp"])
        watching = Probes.put(self.gdb, self.memory) or Stops(self.gdb, self.memory)
        for address in (self._extend, end):
            self.gdb.insert_breakpoint(address)
        self.gdb.remove_breakpoint(self._begin)
        ends = frozenset((end, self._panic, self._extend))
        registers = watching.run(ends, self._note)
        if registers["rip"] == self._panic:
            self.panic = self._panic_text(registers["rdi"])
        elif registers["rip"] == self._extend:
            self.panic = BRK_IS_CLOSED

    def start(self, kernel: Kernel, spec: MapSpec) -> Start | None:
        """Run up to where the map is read, and keep what the machine is then, if it can be."""
        at = self.memory.symbols.get(BEFORE_THE_MAP)
        if at is None:
            return None
        stops = (at, self._begin, self._panic)
        for address in stops:
            self.gdb.insert_breakpoint(address)
        self.gdb.resume()
        here = self.gdb.registers()["rip"]
        for address in stops:
            self.gdb.remove_breakpoint(address)
        return Start.taken(self.gdb, self.memory, kernel, spec) if here == at else None

    def reach_the_beginning(self) -> None:
        """Run up to init_mem_mapping."""
        for address in (self._begin, self._panic):
            self.gdb.insert_breakpoint(address)
        self.gdb.resume()
        registers = self.gdb.registers()
        if registers["rip"] == self._panic:
            text = self._panic_text(registers["rdi"])
            raise KernelBootError(f"panic before the direct map: {text}")
        if registers["rip"] != self._begin:
            raise KernelBootError(f"stopped at {registers['rip']:#x}, not at init_mem_mapping")

    def clear_bss(self) -> None:
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

    def _look_before(self) -> None:
        memory = self.memory
        self.before = memory.memblock()
        self.e820 = memory.e820()
        self.pgt_buf = memory.number("pgt_buf_end"), memory.number("pgt_buf_top")
        self.max_pfn = memory.number("max_pfn")
        self.max_low_pfn = memory.number("max_low_pfn")

    def _note(self, event: Event) -> None:
        match event.kind:
            case EventKind.STEP:
                self.steps.append(MappingStep(event.first, event.second))
            case EventKind.RANGE:
                if not self.steps:
                    raise KernelBootError(
                        "kernel_physical_mapping_init before any init_memory_mapping"
                    )
                size = _page_size(event.third)
                self.steps[-1].ranges.append((event.first, event.second, size))
            case EventKind.ASKED:
                self._pages_asked = event.first & 0xFFFF_FFFF
            case EventKind.GIVEN:
                self._note_pages(event.first)
            case EventKind.HOOK:
                self.hooked.append(event.second)

    def _note_pages(self, virtual: int) -> None:
        pages = self._pages_asked
        address = self.memory.physical(virtual)
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

    def direct_map(self, spec: MapSpec) -> tuple[int, int, GuestMap]:
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
