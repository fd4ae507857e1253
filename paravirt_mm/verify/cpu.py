"""Letting an emulated x86 CPU walk the tables, and comparing what it says with the walker.

The image of a run is written to a file and copied into the memory of an emulator (unicorn, that is
QEMU's TCG); CR0, CR3, CR4 and EFER are set for the mode, and instructions are
run that read, write and jump to addresses: the first, the last and random ones of each leaf run,
and both sides of every hole. The emulator reports the physical address that the CPU's own page
walk arrived at, or the page fault with its error code. Both must be what
`paravirt_mm.image.translate.translate` says, and what the run that the whole walk found says.

The probing instructions lie in a page that the image does not map. So CR3 is loaded with a copy of
the root that has one more entry, in a slot that the direct map does not use (address 0), leading
to that page.

Two things about unicorn (2.1) are relied on and checked before the first probe
(`EmulatedCpu.calibrate`): memory hooks give physical addresses, and the error code of a fault
stands in the saved CPU context, at a place that known faults give away.
"""

from __future__ import annotations

import gc
import random
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import attrs

from paravirt_mm.engine.trace import Trace
from paravirt_mm.errors import ParavirtMmError, SpecError, install
from paravirt_mm.image.dump import MAX_READ, Dump, open_dump
from paravirt_mm.image.elf import control_registers, write_core
from paravirt_mm.image.entries import ACCESSED, DIRTY, FORMATS, PRESENT, RW
from paravirt_mm.image.translate import (
    FAULT_PRESENT,
    FAULT_RESERVED,
    FAULT_WRITE,
    Access,
    PageFault,
    translate,
)
from paravirt_mm.image.walker import Cpu, Damage, LeafRun, PhysicalMemory, Walk, read_root, walk
from paravirt_mm.machine.paging import PAGE_SIZE, PagingMode
from paravirt_mm.machine.ranges import RangeSet, align_down, align_up

EMULATED_BITS = 40
"""Physical address bits of QEMU's emulated CPU: entries with higher addresses fault with a
reserved bit.
"""
EFER, EFER_NXE = 0xC0000080, 1 << 11
PAGE_FAULT = 14


class CpuUnavailable(ParavirtMmError):
    """The emulator is not installed, or does not behave as this module needs it to."""


class NoEmulator(CpuUnavailable, SpecError):
    """The extra that brings a CPU is not installed."""


@attrs.frozen
class Disagreement:
    """A probe on which CPU and walker differ."""

    address: int
    access: str
    expected: str
    cpu: str

    def __str__(self) -> str:
        return f"{self.access} at {self.address:#x}: walker {self.expected}, CPU {self.cpu}"


@attrs.frozen
class CpuReport:
    """What came out for one image.

    ``probes`` counts accesses, ``faults`` how many of them had to fault; ``beyond`` of those had
    to because the emulated CPU has only `EMULATED_BITS` address bits. ``findings`` are those of
    the walk itself.
    """

    probes: int
    faults: int
    beyond: int
    runs: int
    holes: int
    disagreements: tuple[Disagreement, ...]
    findings: tuple[Damage, ...]
    writable_tables: tuple[tuple[int, int], ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether nothing at all was found."""
        return not (self.disagreements or self.findings or self.writable_tables)


@attrs.frozen
class Seen:
    """What the CPU did: the physical address that it accessed, or the error code of its page
    fault.
    """

    physical: int | None = None
    fault: int | None = None

    def __str__(self) -> str:
        if self.fault is not None:
            return f"#PF({self.fault:#x})"
        return "nothing" if self.physical is None else f"{self.physical:#x}"


def check_cpu(trace: Trace, samples: int, seed: int) -> CpuReport:
    """Write the image of a run to a temporary file, load it into the CPU and compare.

    ``samples`` is how many random addresses of each run are tried besides its first and last.
    Raises `CpuUnavailable` without unicorn, `InputError` for a run without tables.
    """
    with tempfile.TemporaryDirectory(prefix="paravirt-mm-") as folder:
        path = Path(folder, "image.core")
        write_core(trace, path)
        with open_dump(path) as dump:
            return check_dump_on_cpu(dump, samples, seed, typed=trace.start.boot.typed)


def check_dump_on_cpu(dump: Dump, samples: int, seed: int, *, typed: bool) -> CpuReport:
    """Compare CPU and walker on a dump that says its CR3 and mode.

    ``typed``: no page that is a table may be writable through any mapping.
    """
    if dump.cr3 is None or dump.mode is None:
        raise CpuUnavailable(f"{dump.path}: the dump does not say CR3 and paging mode")
    mode = dump.mode
    found = walk(dump, dump.cr3, mode)
    cpu = Cpu(physical_bits=EMULATED_BITS)
    emulated = EmulatedCpu(dump, dump.cr3, mode)
    try:
        emulated.calibrate()
        comparison = _Comparison(dump, dump.cr3, mode, cpu, emulated)
        holes = 0
        for address, run in probe_addresses(found, samples, seed):
            holes += run is None
            comparison.probe(address, run)
    finally:
        emulated.close()
    writable: RangeSet = RangeSet()
    if typed:
        from paravirt_mm.image.inspect import writable_tables

        writable = writable_tables(found.runs, found.table_pages())
    return CpuReport(
        probes=comparison.probes,
        faults=comparison.faults,
        beyond=comparison.beyond,
        runs=len(found.runs),
        holes=holes,
        disagreements=tuple(comparison.disagreements),
        findings=found.findings,
        writable_tables=tuple(writable),
    )


def probe_addresses(found: Walk, samples: int, seed: int) -> Iterator[tuple[int, LeafRun | None]]:
    """Yield addresses to try, each with the run that maps it (None: a hole).

    For every run its first and last byte and random ones between; for every hole of the address
    space its first and last byte, as far as they are canonical and not in the slot of the probing
    code.
    """
    rng = random.Random(seed)  # noqa: S311  # repeatable, not secret
    mode = found.mode
    for run in found.runs:
        yield run.start, run
        yield run.end - 1, run
        for _ in range(samples):
            yield rng.randrange(run.start, run.end), run
    first = probe_slot_end(mode)
    if mode.is_32bit:
        spaces = [(first, 1 << 32)]
    else:
        half = 1 << (mode.virtual_bits - 1)
        spaces = [(first, half), ((1 << 64) - half, 1 << 64)]
    for low, high in spaces:
        for start, end in found.holes(low, high):
            yield start, None
            yield end - 1, None


def probe_slot_end(mode: PagingMode) -> int:
    """End of what the first entry of the root translates: the probing code lives there."""
    return mode.entry_span(mode.root_level)


class _Comparison:
    """Asks both, counts, and keeps what differs."""

    def __init__(
        self,
        memory: PhysicalMemory,
        root: int,
        mode: PagingMode,
        cpu: Cpu,
        emulated: EmulatedCpu,
    ) -> None:
        self.memory, self.root, self.mode, self.cpu = memory, root, mode, cpu
        self.emulated = emulated
        self.probes = self.faults = self.beyond = 0
        self.disagreements: list[Disagreement] = []

    def probe(self, address: int, run: LeafRun | None) -> None:
        for name, access in (
            ("read", Access()),
            ("write", Access(write=True)),
            ("fetch", Access(fetch=True)),
        ):
            if access.fetch:
                # Rights are those of a page. In its middle no instruction reaches into another one.
                address = address - address % PAGE_SIZE + PAGE_SIZE // 2
            expected = self._expected(address, access)
            beyond = expected.fault is not None and bool(expected.fault & FAULT_RESERVED)
            if run is not None and not beyond:
                self._compare_run(address, name, access, run, expected)
            seen = self.emulated.access(address, access)
            self.probes += 1
            self.faults += expected.fault is not None
            self.beyond += beyond
            if seen != expected:
                self._differ(address, name, expected, seen)

    def _compare_run(
        self, address: int, name: str, access: Access, run: LeafRun, expected: Seen
    ) -> None:
        """The whole walk and the walk of one address must agree too."""
        forbidden = (access.write and not run.writable) or (access.fetch and not run.executable)
        reach = Seen(physical=run.physical + address - run.start)
        if forbidden and expected.fault is None:
            self._differ(address, f"{name} (walk)", expected, Seen(fault=FAULT_PRESENT))
        if not forbidden and expected != reach:
            self._differ(address, f"{name} (walk)", expected, reach)

    def _expected(self, address: int, access: Access) -> Seen:
        answer = translate(self.memory, self.root, self.mode, address, access, self.cpu)
        if isinstance(answer, PageFault):
            return Seen(fault=answer.code)
        return Seen(physical=answer.physical)

    def _differ(self, address: int, access: str, expected: Seen, seen: Seen) -> None:
        if len(self.disagreements) < 100:
            self.disagreements.append(Disagreement(address, access, str(expected), str(seen)))


# The probing instructions, valid in 32-bit and 64-bit code alike: B is ebx or rbx.
_READ = b"\x8a\x03"  # mov al, [B]
_WRITE = b"\x88\x03"  # mov [B], al
_JUMP = b"\xff\xe3"  # jmp B
_CODE = _READ + _WRITE + _JUMP
_CODE_AT = PAGE_SIZE
"""Virtual address of the page with the probing instructions; page 0 and page 2 stay as they are."""


class EmulatedCpu:
    """One emulated x86 CPU whose memory is a dump and whose CR3 is the dump's root (a copy with
    one more slot).
    """

    def __init__(self, dump: Dump, root: int, mode: PagingMode) -> None:
        """Map the dump's memory, build the slot for the probing code, and switch paging on.

        Raises `CpuUnavailable` without unicorn, and where no physical memory below the limit of
        the emulated CPU is left for the slot's tables.
        """
        try:
            unicorn: Any = import_module("unicorn")
            x86_const: Any = import_module("unicorn.x86_const")
        except ImportError as error:
            raise NoEmulator(
                f"unicorn, the CPU that walks the tables, is not installed: {install('cpu')}"
            ) from error
        self._unicorn = unicorn
        self._x86 = x86_const
        self.mode = mode
        self.format = FORMATS[mode.name]
        self._error_at: int  # `calibrate` finds it
        self._physical: int | None = None
        self._fault: Any = None
        wide = not mode.is_32bit
        uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64 if wide else unicorn.UC_MODE_32)
        self.uc: Any = uc
        self._map_dump(dump)
        self._build_slot(dump, root)
        self._switch_on()
        self._clean = uc.context_save()
        self._at_fault = uc.context_save()
        self._hook()

    def close(self) -> None:
        """Let go of the memory, a gigabyte of address space for translated code among it.

        The engine and its hooks refer to each other, and there is no public way to close it before
        the garbage collector finds them: what that would call is called here.
        """
        self._clean = self._at_fault = None
        getattr(self.uc, "_Uc__finalizer", gc.collect)()

    # -- setting up ---------------------------------------------------------------------------

    def _map_dump(self, dump: Dump) -> None:
        """Give the CPU a copy of every whole page below the limit of physical addresses."""
        self._used = RangeSet()
        for segment in dump.segments:
            self._used.add(segment.start, segment.end)
            low = align_up(segment.start, PAGE_SIZE)
            high = align_down(min(segment.end, 1 << EMULATED_BITS), PAGE_SIZE)
            if low < high:
                self.uc.mem_map(low, high - low)
            for at in range(low, high, MAX_READ):
                self.uc.mem_write(at, dump.read(at, min(MAX_READ, high - at)))

    def _build_slot(self, dump: Dump, root: int) -> None:
        """Make a copy of the root whose first entry leads to the probing code, in memory of its
        own.
        """
        mode = self.mode
        pages = mode.root_level + 1
        base = self._free_memory(pages * PAGE_SIZE)
        self.uc.mem_map(base, pages * PAGE_SIZE)
        original = read_root(dump, mode, root)
        if original is None:
            raise CpuUnavailable(f"{dump.path}: the root table at {root:#x} is not in the dump")
        if original[0] & PRESENT:
            raise CpuUnavailable(f"{dump.path}: the first entry of the root is in use")
        self.uc.mem_write(base, original)
        table = base
        for level in range(mode.root_level, 1, -1):
            child = table + PAGE_SIZE
            self._write_entry(table, 0, child | self.format.table[level])
            table = child
        leaf = PRESENT | RW | ACCESSED | DIRTY
        code = table + PAGE_SIZE
        self._code_page = code
        self.uc.mem_write(code, _CODE)
        self._write_entry(table, _CODE_AT // PAGE_SIZE, code | leaf)
        self._leaf_table = table
        self._cr3 = base

    def _write_entry(self, table: int, slot: int, entry: int) -> None:
        size = self.mode.entry_bytes
        self.uc.mem_write(table + slot * size, entry.to_bytes(size, "little"))

    def _free_memory(self, size: int) -> int:
        """Return an address below 4 GiB (a PAE CR3 has no more bits) where the dump has nothing."""
        for low, high in self._used.gaps(PAGE_SIZE, 1 << 32):
            low = align_up(low, PAGE_SIZE)
            if high - low >= size:
                return low
        raise CpuUnavailable("the dump leaves no memory below 4 GiB for the probing code")

    def _switch_on(self) -> None:
        uc, x86 = self.uc, self._x86
        cr0, cr4 = control_registers(self.mode)
        uc.reg_write(x86.UC_X86_REG_CR4, cr4)
        uc.reg_write(x86.UC_X86_REG_CR3, self._cr3)
        # Tables of 32-bit entries have no NX: there it means nothing.
        uc.msr_write(EFER, EFER_NXE)
        uc.reg_write(x86.UC_X86_REG_CR0, cr0)
        for register, wanted in ((x86.UC_X86_REG_CR0, cr0), (x86.UC_X86_REG_CR4, cr4)):
            refused = wanted & ~uc.reg_read(register)
            if refused:
                raise CpuUnavailable(f"the emulated CPU refuses control bits: {refused:#x}")
        narrow = self.mode.is_32bit
        self._pointer = x86.UC_X86_REG_EBX if narrow else x86.UC_X86_REG_RBX

    def _hook(self) -> None:
        uc, unicorn = self.uc, self._unicorn

        def on_memory(_uc: Any, _kind: int, address: int, *_: Any) -> bool:
            return self._on_memory(address)

        uc.hook_add(unicorn.UC_HOOK_INTR, self._on_interrupt)
        uc.hook_add(unicorn.UC_HOOK_MEM_READ | unicorn.UC_HOOK_MEM_WRITE, on_memory)
        uc.hook_add(
            unicorn.UC_HOOK_MEM_READ_UNMAPPED | unicorn.UC_HOOK_MEM_WRITE_UNMAPPED, on_memory
        )

    def _on_memory(self, address: int) -> bool:
        self._physical = address
        return False  # where there is no memory: stop, the address is all that is wanted

    def _on_interrupt(self, uc: Any, number: int, _data: Any) -> None:
        if self._fault is None:
            uc.context_update(self._at_fault)
            self._fault = number
        uc.emu_stop()

    # -- probing ------------------------------------------------------------------------------

    def access(self, address: int, access: Access) -> Seen:
        """Let the CPU access an address: what it arrives at, or the error code of its fault.

        A fetch that succeeds is reported with the physical address that a read of the same address
        reaches: the emulator does not tell where it fetches. A write stores what is there: it may
        be the entry that maps it.
        """
        value = 0
        if access.write and not self._faults(address, Access()):
            value = self.uc.reg_read(self._x86.UC_X86_REG_AL)
        if self._faults(address, access, value):
            return Seen(fault=self._context()[self._error_at])
        if access.fetch:
            self._faults(address, Access())
        return Seen(physical=self._physical)

    def _faults(self, address: int, access: Access, value: int = 0) -> bool:
        """Run one probing instruction (a write stores ``value``); say whether it gives a page
        fault.
        """
        uc = self.uc
        uc.context_restore(self._clean)
        uc.reg_write(self._x86.UC_X86_REG_AL, value)
        self._physical, self._fault = None, None
        uc.reg_write(self._pointer, address)
        start = _CODE_AT + (len(_READ + _WRITE) if access.fetch else len(_READ) * access.write)
        stop = address if access.fetch else start + len(_READ)
        try:
            uc.emu_start(start, stop)
        except self._unicorn.UcError as error:
            unmapped = (
                self._unicorn.UC_ERR_READ_UNMAPPED,
                self._unicorn.UC_ERR_WRITE_UNMAPPED,
                self._unicorn.UC_ERR_FETCH_UNMAPPED,
            )
            if error.errno not in unmapped:
                raise CpuUnavailable(f"the emulator failed at {address:#x}: {error}") from error
        if self._fault not in (None, PAGE_FAULT):
            raise CpuUnavailable(f"exception {self._fault} at {address:#x} instead of a page fault")
        return self._fault is not None

    def _context(self) -> memoryview:
        """Return the state of the CPU at the last fault, in words of 32 bits."""
        state, *_ = self._at_fault.__getstate__()
        return memoryview(bytes(state)).cast("I")

    def calibrate(self) -> None:
        """Check what this module relies on, with entries of its own next to the probing code.

        Raises `CpuUnavailable` where the emulator does not do as it should.
        """
        readonly, elsewhere = 2 * PAGE_SIZE, 3 * PAGE_SIZE
        target = self._code_page
        self._write_entry(self._leaf_table, readonly // PAGE_SIZE, target | PRESENT)
        self._write_entry(self._leaf_table, elsewhere // PAGE_SIZE, target | PRESENT | RW)
        found: list[set[int]] = []
        for address, access, code in (
            (0, Access(), 0),
            (0, Access(write=True), FAULT_WRITE),
            (readonly, Access(write=True), FAULT_WRITE | FAULT_PRESENT),
        ):
            if not self._faults(address, access):
                raise CpuUnavailable(f"the emulated CPU does not fault at {address:#x}")
            found.append({at for at, word in enumerate(self._context()) if word == code})
        places = set.intersection(*found)
        if len(places) != 1:
            raise CpuUnavailable(
                f"the error code of faults was found in {len(places)} places, not one"
            )
        (self._error_at,) = places
        seen = self.access(elsewhere, Access())
        if seen != Seen(physical=target):
            raise CpuUnavailable(f"the emulator reports {seen}, not {target:#x}")


__all__ = [
    "CpuReport",
    "CpuUnavailable",
    "Disagreement",
    "EmulatedCpu",
    "Seen",
    "check_cpu",
    "check_dump_on_cpu",
    "probe_addresses",
]
