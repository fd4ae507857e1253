"""An emulated CPU walks images in every mode, and random tables; it must notice what is wrong."""

from __future__ import annotations

import gc
import shlex
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner
from hypothesis import given, settings

from paravirt_mm import CpuFeatures, E820Type, InputError, Machine, MemoryMap, Scenario
from paravirt_mm.cli.verify_cpu import command
from paravirt_mm.engine.trace import Trace
from paravirt_mm.image.dump import Dump, open_dump
from paravirt_mm.image.elf import write_core
from paravirt_mm.image.translate import Access, PageFault, translate
from paravirt_mm.image.walker import Cpu, canonical, walk
from paravirt_mm.machine.paging import MODES, X86_64
from paravirt_mm.machine.ranges import RangeSet
from paravirt_mm.verify import cpu as module
from paravirt_mm.verify.cpu import (
    EMULATED_BITS,
    CpuUnavailable,
    EmulatedCpu,
    Seen,
    check_cpu,
    check_dump_on_cpu,
)
from tests.page_tables import ROOT, RandomTables, page_tables

unicorn = pytest.importorskip("unicorn", reason="needs unicorn (the extra 'cpu')")

ALLOCATORS = ("legacy_linear:kernel=3.6", "incremental:variant=linux", "incremental:variant=hpa")
MIB, GIB = 1 << 20, 1 << 30


def machine_of(mode: str, size: int = 512 * MIB, **features: bool) -> Machine:
    """RAM with an ISA hole, a hole that is no multiple of a large page, and one below 4 GiB."""
    ram = [(0, 0x9F000), (MIB, 0x1020_3000), (0x1040_4000, min(size, 3 * GIB))]
    if size > 3 * GIB:
        ram.append((4 * GIB, size + GIB))
    return Machine(
        name=mode,
        memory_map=MemoryMap.sanitise((low, high, E820Type.RAM) for low, high in ram),
        mode=MODES[mode],
        features=CpuFeatures(**{"nx": MODES[mode].has_nx, **features}),
        boot_mapped=64 * MIB if MODES[mode].is_32bit else 512 * MIB,
    )


def trace_of(machine: Machine, allocator: str, backend: str) -> Trace:
    run = Scenario.of(machine, allocator, backend).run()
    assert run.verdict.outcome == "ok", run.verdict
    return run.trace


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize(
    ("mode", "backend", "size", "features"),
    [
        ("i386", "native", 512 * MIB, {}),
        ("i386", "native", 512 * MIB, {"pse": False}),
        ("i386-pae", "native", 512 * MIB, {}),
        ("i386-pae", "native", 8 * GIB, {}),
        ("i386-pae", "native", 512 * MIB, {"pse": False, "nx": False}),
        ("i386-pae", "xen", 512 * MIB, {}),
        ("x86_64", "native", 512 * MIB, {}),
        ("x86_64", "native", 16 * GIB, {"gbpages": True}),
        ("x86_64", "native", 512 * MIB, {"nx": False}),
        ("x86_64", "xen", 4 * GIB, {}),
        ("x86_64-la57", "native", 512 * MIB, {}),
        ("x86_64-la57", "native", 16 * GIB, {"gbpages": True}),
    ],
)
def test_cpu_and_walker_agree(
    mode: str, backend: str, size: int, features: dict[str, bool], allocator: str
) -> None:
    report = check_cpu(trace_of(machine_of(mode, size, **features), allocator, backend), 4, 0)
    assert report.agrees, report.disagreements or report.findings or report.writable_tables
    assert report.probes == 3 * (report.holes + report.runs * (2 + 4))
    assert 0 < report.faults < report.probes
    assert report.beyond == 0
    assert report.holes >= 4


@pytest.mark.slow
def test_memory_beyond_the_cpu_is_counted_apart() -> None:
    report = check_cpu(trace_of(machine_of("x86_64", 2048 * GIB), ALLOCATORS[1], "native"), 4, 0)
    assert report.agrees, report.disagreements
    assert 0 < report.beyond <= report.faults


class Damaged:
    """What the walker reads is not what the CPU got: one entry differs."""

    def __init__(self, dump: Dump, address: int, change: int) -> None:
        self._dump, self._address, self._change = dump, address, change

    def read(self, address: int, size: int) -> bytes | None:
        data = self._dump.read(address, size)
        if data is None or not address <= self._address < address + size:
            return data
        damaged = bytearray(data)
        at = self._address - address
        (entry,) = struct.unpack_from("<Q", damaged, at)
        struct.pack_into("<Q", damaged, at, entry ^ self._change)
        return bytes(damaged)


@pytest.mark.parametrize("change", [1 << 0, 1 << 1, 1 << 63, 1 << 12, 1 << 30])
def test_a_wrong_bit_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: int
) -> None:
    """Presence, write permission, NX and frame bits of the last L1 entry."""
    trace = trace_of(machine_of("x86_64", pse=False), ALLOCATORS[1], "native")
    write_core(trace, tmp_path / "core")
    with open_dump(tmp_path / "core") as dump:
        assert dump.cr3 is not None
        last = walk(dump, dump.cr3, X86_64).runs[-1]
        answer = translate(dump, dump.cr3, X86_64, last.end - 1)
        assert not isinstance(answer, PageFault)
        at = find_entry(dump, answer.entry)
        wrong = Damaged(dump, at, change)
        monkeypatch.setattr(module, "walk", lambda _memory, *rest: walk(wrong, *rest))
        monkeypatch.setattr(module, "translate", lambda _memory, *rest: translate(wrong, *rest))
        report = check_dump_on_cpu(dump, 4, 0, typed=False)
    assert report.disagreements
    assert not report.agrees
    assert f"{last.end - 1 & ~0xFFF:#x}"[:-3] in str(report.disagreements[0])


def find_entry(dump: Dump, entry: int) -> int:
    for segment in dump.segments:
        data = dump.read(segment.start, segment.end - segment.start)
        assert data is not None
        at = data.find(struct.pack("<Q", entry))
        if at >= 0:
            return segment.start + at
    raise AssertionError("no such entry")


def test_a_writable_table_is_noticed(tmp_path: Path) -> None:
    trace = trace_of(machine_of("x86_64"), ALLOCATORS[1], "native")
    write_core(trace, tmp_path / "core")
    with open_dump(tmp_path / "core") as dump:
        assert not check_dump_on_cpu(dump, 4, 0, typed=False).writable_tables
        assert check_dump_on_cpu(dump, 4, 0, typed=True).writable_tables


def test_the_cpu_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    """Writes through the direct map reach table pages; they go to a copy."""
    trace = trace_of(machine_of("x86_64"), ALLOCATORS[2], "native")
    write_core(trace, tmp_path / "core")
    before = (tmp_path / "core").read_bytes()
    with open_dump(tmp_path / "core") as dump:
        assert check_dump_on_cpu(dump, 4, 0, typed=False).agrees
    assert (tmp_path / "core").read_bytes() == before


def test_a_dump_must_say_its_root(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(8192))
    with open_dump(tmp_path / "raw") as dump, pytest.raises(CpuUnavailable, match="CR3"):
        check_dump_on_cpu(dump, 4, 0, typed=False)


def table(*entries: tuple[int, int], size: int = 8) -> bytes:
    data = bytearray(4096)
    for slot, entry in entries:
        data[slot * size : (slot + 1) * size] = entry.to_bytes(size, "little")
    return bytes(data)


SECOND = {  # by mode: the root at 0x1000, what it leads to, an address of its second entry, a page
    "i386": (table((1, 0x80_0083), size=4), b"", 1 << 22, (8 * MIB, 4 * MIB)),
    "i386-pae": (table((1, 0x2001)), table((0, 0x80_0083)), 1 << 30, (8 * MIB, 2 * MIB)),
    "x86_64": (table((1, 0x2003)), table((0, 0x4000_0083)), 1 << 39, (GIB, GIB)),
    "x86_64-la57": (
        table((1, 0x2003)), table((0, 0x3003)) + table((0, 0x4000_0083)), 1 << 48, (GIB, GIB),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SECOND)
def test_only_the_first_entry_of_the_root_is_the_probing_codes(tmp_path: Path, name: str) -> None:
    """The second leads where the tables say; pages of memory need not be whole."""
    root, below, address, (page, size) = SECOND[name]
    path = tmp_path / "raw"
    path.write_bytes(bytes(4096) + root + below + b"end")
    with open_dump(path) as dump:
        cpu = EmulatedCpu(dump, 0x1000, MODES[name])
        cpu.calibrate()
        for access in (Access(), Access(write=True)):
            for offset in (0, size - 1):
                assert cpu.access(address + offset, access) == Seen(physical=page + offset)
        assert cpu.access(address + size, Access()) == Seen(fault=0)
        cpu.close()
        with pytest.raises(CpuUnavailable, match="the root table at 0x100000 is not in the dump"):
            EmulatedCpu(dump, 0x100000, MODES[name])
    path.write_bytes(bytes(4096) + table((0, 1)) + below)
    with open_dump(path) as dump, pytest.raises(CpuUnavailable, match="first entry of the root"):
        EmulatedCpu(dump, 0x1000, MODES[name])


def test_tables_of_the_probing_code_lie_below_4_gib() -> None:
    """A CR3 of PAE has 32 bits. The first gap that has room counts, page 0 is none."""
    cpu = EmulatedCpu.__new__(EmulatedCpu)
    page = 4096
    for used, size, free in (
        ([], 3 * page, page),
        ([(0, 2 * page)], page, 2 * page),
        ([(2 * page, 3 * page)], 2 * page, 3 * page),
        ([(0, 4 * GIB - 3 * page)], 3 * page, 4 * GIB - 3 * page),
        ([(0, 4 * GIB - 3 * page - 1)], 3 * page, 4 * GIB - 3 * page),
    ):
        cpu._used = RangeSet(used)
        assert cpu._free_memory(size) == free
    for end in (4 * GIB - 3 * page + 1, 4 * GIB - page, 4 * GIB):
        cpu._used = RangeSet([(0, end)])
        with pytest.raises(CpuUnavailable, match="no memory below 4 GiB"):
            cpu._free_memory(3 * page)


def test_every_whole_page_that_can_be_addressed_is_the_cpus() -> None:
    """Of a segment's first and last page it may have a part, and above 40 bits nothing."""
    given: list[tuple[str, int, object]] = []
    cpu = EmulatedCpu.__new__(EmulatedCpu)
    cpu.uc = SimpleNamespace(
        mem_map=lambda *told: given.append(("map", *told)),
        mem_write=lambda *told: given.append(("write", *told)),
    )
    top = 1 << 40
    segments = [
        (0x1800, 0x4800), (0x5001, 0x5FFF), (0x6000, 0x6000), (GIB, GIB + 65 * MIB),
        (top - 8192, top + GIB),
    ]  # fmt: skip
    dump: Any = SimpleNamespace(
        segments=[SimpleNamespace(start=low, end=high) for low, high in segments],
        read=lambda address, size: (address, size),
    )
    cpu._map_dump(dump)
    assert given == [
        ("map", 0x2000, 0x2000), ("write", 0x2000, (0x2000, 0x2000)),
        ("map", GIB, 65 * MIB), ("write", GIB, (GIB, 64 * MIB)),  # no more is read at once
        ("write", GIB + 64 * MIB, (GIB + 64 * MIB, MIB)),
        ("map", top - 8192, 8192), ("write", top - 8192, (top - 8192, 8192)),
    ]  # fmt: skip
    assert cpu._used == RangeSet(segments)


class Asked(EmulatedCpu):
    """Tells for how much memory it has asked."""

    sizes: ClassVar[list[int]] = []

    def _free_memory(self, size: int) -> int:
        self.sizes.append(size)
        return super()._free_memory(size)


@pytest.fixture
def cpu(tmp_path: Path) -> Iterator[EmulatedCpu]:
    """One whose memory begins with a page of nothing, a root, and a table that maps 1 GiB from 0 at
    512 GiB.
    """
    (tmp_path / "raw").write_bytes(bytes(4096) + table((1, 0x2003)) + table((0, 0x83)))
    Asked.sizes.clear()
    with open_dump(tmp_path / "raw") as dump:
        cpu = Asked(dump, 0x1000, X86_64)
        yield cpu
        cpu.close()


def test_what_is_written_is_what_is_there(cpu: EmulatedCpu) -> None:
    """Each byte of the very entries that map it, through the mapping."""
    assert Asked.sizes == [(4 + 1) * 4096]  # a table a level, and the code
    cpu.calibrate()
    at = 1 << 39
    for address in (*range(0x1008, 0x1010), *range(0x2000, 0x2008)):
        for access in (Access(write=True), Access(fetch=True), Access()):
            assert cpu.access(at + address, access) == Seen(physical=address)
    assert cpu.uc.mem_read(0x2000, 8) == (0xE3).to_bytes(8, "little")  # accessed and dirty
    assert cpu.access(at + 0x100000, Access()) == Seen(physical=0x100000)
    with pytest.raises(CpuUnavailable, match="exception 13 at 0x8000000000000000 instead of a"):
        cpu.access(1 << 63, Access())


@pytest.mark.parametrize(
    ("name", "answers", "message"),
    [
        ("_faults", [False], "does not fault at 0x0"),
        ("_faults", [True, True, False], "does not fault at 0x2000"),
        ("_context", [[5], [5], [5]], "found in 0 places, not one"),
        ("_context", [[0], [2], []], "found in 0 places, not one"),
        ("_context", [[0, 0], [2, 2], [3, 3]], "found in 2 places, not one"),
        ("access", [Seen(physical=7)], "the emulator reports 0x7, not 0x"),
        ("access", [Seen()], "the emulator reports nothing, not 0x"),
    ],
)
def test_an_emulator_that_is_not_as_it_should_be_is_not_used(
    cpu: EmulatedCpu, name: str, answers: list[Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = iter(answers)
    monkeypatch.setattr(cpu, name, lambda *_: next(given))
    with pytest.raises(CpuUnavailable, match=message):
        cpu.calibrate()


def test_an_emulator_that_fails_or_refuses_is_told(
    cpu: EmulatedCpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise unicorn.UcError(unicorn.UC_ERR_EXCEPTION)

    monkeypatch.setattr(cpu.uc, "emu_start", fail)
    with pytest.raises(CpuUnavailable, match="the emulator failed at 0x1234: Unhandled CPU"):
        cpu.access(0x1234, Access())
    monkeypatch.setattr(cpu.uc, "reg_read", lambda _: 1 << 31 | 1)
    with pytest.raises(CpuUnavailable, match="refuses control bits: 0x10000"):
        cpu._switch_on()


def test_a_dump_must_say_its_mode() -> None:
    dump: Any = SimpleNamespace(path="d", cr3=0x1000, mode=None)
    with pytest.raises(CpuUnavailable, match="d: the dump does not say CR3 and paging mode"):
        check_dump_on_cpu(dump, 4, 0, typed=False)


def test_without_unicorn_it_says_what_to_install(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From where this runs: in an index there may be no such package, or another one."""

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(module, "import_module", missing)
    with pytest.raises(CpuUnavailable) as raised:
        check_cpu(trace_of(machine_of("x86_64"), ALLOCATORS[1], "native"), 4, 0)
    assert f"{checkout}[cpu]" in shlex.split(str(raised.value))


# -- random tables --------------------------------------------------------------------------------


def fuzz(tables: RandomTables, folder: Path) -> None:
    mode = tables.mode
    path = folder / "random"
    path.write_bytes(tables.data)
    cpu = Cpu(physical_bits=EMULATED_BITS)
    with open_dump(path) as dump:
        emulated = EmulatedCpu(dump, ROOT, mode)
        emulated.calibrate()
        addresses = tables.addresses()
        for address in addresses[:: max(1, len(addresses) // 40)]:
            address = canonical(mode, address + 0x7F0)
            for access in (Access(), Access(write=True), Access(fetch=True)):
                answer = translate(dump, ROOT, mode, address, access, cpu)
                if isinstance(answer, PageFault) and answer.entry is None:
                    continue  # a table that is not in memory: the bus decides what the CPU reads
                if isinstance(answer, PageFault):
                    expected = Seen(fault=answer.code)
                else:
                    expected = Seen(physical=answer.physical)
                where = mode.name, hex(address), access, answer
                assert emulated.access(address, access) == expected, where
        emulated.close()


@pytest.mark.slow
@given(page_tables())
def test_random_tables(tmp_path_factory: pytest.TempPathFactory, tables: RandomTables) -> None:
    fuzz(tables, tmp_path_factory.getbasetemp())


@pytest.mark.slow
@settings(max_examples=150)
@given(page_tables())
def test_many_random_tables(tmp_path_factory: pytest.TempPathFactory, tables: RandomTables) -> None:
    fuzz(tables, tmp_path_factory.getbasetemp())


# -- the command ----------------------------------------------------------------------------------


def test_command_on_a_machine() -> None:
    result = CliRunner().invoke(command, ["qemu-512m", "-a", ALLOCATORS[1]], standalone_mode=False)
    assert result.exception is None
    assert result.return_value == 0
    lines = result.output.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["agrees"] * 3
    assert "+la57" in lines[2]
    assert lines[-1].startswith("3 images, ")


def test_command_says_what_has_no_tables() -> None:
    result = CliRunner().invoke(
        command, ["asus-l8400-256m", "-a", ALLOCATORS[1], "-b", "xen"], standalone_mode=False
    )
    assert result.return_value == 0
    assert "no tables" in result.output


def test_command_refuses_an_unknown_machine() -> None:
    result = CliRunner().invoke(command, ["no-such-machine"], standalone_mode=False)
    assert isinstance(result.exception, InputError)


@pytest.mark.slow
def test_every_machine_of_the_package() -> None:
    chosen = ["-a", ALLOCATORS[0], "-a", ALLOCATORS[2]]
    result = CliRunner().invoke(command, chosen, standalone_mode=False)
    assert result.return_value == 0, result.output


def test_each_cpu_gives_its_memory_back_at_once() -> None:
    """Each takes a gigabyte of address space, of which a guarded command has four."""
    trace = trace_of(machine_of("x86_64"), ALLOCATORS[0], "native")
    sizes = []
    gc.disable()
    try:
        for _ in range(3):
            check_cpu(trace, 1, 0)
            sizes.append(int(Path("/proc/self/statm").read_text().split()[0]) << 12)
    finally:
        gc.enable()
    assert sizes[-1] - sizes[0] < GIB
