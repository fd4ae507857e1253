"""Dumps that others wrote, and damaged ones."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from paravirt_mm import InputError, Run
from paravirt_mm.image.dump import open_dump
from paravirt_mm.image.elf import write_core
from paravirt_mm.image.inspect import inspect
from paravirt_mm.image.walker import WalkLimits, walk
from paravirt_mm.machine.paging import I386, I386_PAE, X86_64, X86_64_LA57


@pytest.fixture(scope="module")
def core(small_run: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("core") / "core"
    write_core(small_run("x86_64", "incremental:variant=linux", "native").trace, path)
    return path.read_bytes()


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(data: bytes) -> Path:
        path = tmp_path / "dump"
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"KDUMP   " + bytes(100), "makedumpfile -E"),
        (b"makedumpfile" + bytes(100), "makedumpfile -R"),
        (lzma.compress(b"x" * 100), "xz; unpack it"),
        (gzip.compress(b"x" * 100, mtime=0), "gzip; unpack it"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), "zstd; unpack it"),  # RFC 8878: magic number
        (b"\x7fELF\x02\x02\x01" + bytes(100), "little-endian"),
        (b"\x7fELF\x00\x01\x01" + bytes(100), "32-bit or 64-bit"),  # ELFCLASSNONE
        (b"\x7fELF\x03\x01\x01" + bytes(100), "32-bit or 64-bit"),
        (b"\x7fELF\x02\x01\x01", "ends inside"),
        (b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack("<HH", 2, 62) + bytes(60), "type 2"),
        (b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack("<HH", 4, 8) + bytes(60), "machine"),
    ],
)
def test_what_is_no_dump_is_refused(
    opened: Callable[[bytes], Path], data: bytes, message: str
) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(InputError, match=message):
        open_dump(opened(data))
    assert os.listdir("/proc/self/fd") == before


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        open_dump(tmp_path / "nothing")
    with pytest.raises(InputError):
        open_dump(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="empty, or not a file"):
        open_dump(tmp_path / "pipe")


def test_raw_memory_begins_where_it_is_said_to(opened: Callable[[bytes], Path]) -> None:
    with open_dump(opened(b"a" * 4096 + b"b" * 4096), base=0x10000) as dump:
        assert dump.kind == "raw"
        assert dump.read(0x10FFF, 2) == b"ab"
        assert dump.read(0xFFFF, 2) is None
        assert dump.read(0x11FFF, 2) is None
        with pytest.raises(ValueError, match="read of"):
            dump.read(0x10000, 1 << 40)


def test_truncated_core_has_problems_and_findings(
    core: bytes, opened: Callable[[bytes], Path]
) -> None:
    with open_dump(opened(core[:-8192])) as dump:
        assert any("truncated" in problem for problem in dump.problems)
        assert dump.cr3 is not None
        found = walk(dump, dump.cr3, X86_64)
        assert {finding.kind for finding in found.findings} <= {"missing"}
        assert found.findings


def segments(*loads: tuple[int, int, bytes]) -> bytes:
    """A core with pieces of memory: (physical address, file offset, content)."""
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, len(loads), 0, 0, 0)
    for physical, offset, content in loads:
        size = len(content)
        header += struct.pack("<IIQQQQQQ", 1, 0, offset, 0, physical, size, size, 0)
    data = bytearray(header.ljust(max(offset + len(content) for _, offset, content in loads), b"?"))
    for _, offset, content in loads:
        data[offset : offset + len(content)] = content
    return bytes(data)


def test_memory_in_pieces_whatever_their_order(opened: Callable[[bytes], Path]) -> None:
    data = segments((0x2000, 0x1000, b"b" * 4096), (0x1000, 0x2000, b"a" * 4096))
    with open_dump(opened(data)) as dump:
        assert dump.read(0x1FFE, 4) == b"aabb"
        assert dump.read(0x1000, 0x2000) == b"a" * 4096 + b"b" * 4096
        assert dump.read(0x1000, 0x2001) is None
        assert not dump.problems


def test_pieces_that_overlap(opened: Callable[[bytes], Path]) -> None:
    data = segments((0x1000, 0x1000, b"a" * 4096), (0x1800, 0x2000, b"b" * 2048 + b"c" * 2048))
    with open_dump(opened(data)) as dump:
        assert dump.read(0x1FFF, 2) == b"ac"
        assert ["overlap" in problem for problem in dump.problems] == [True]


@pytest.mark.parametrize("cut", [1, 17, 64, 100, 200, 500, 4095])
def test_a_core_that_ends_before_its_memory(
    core: bytes, opened: Callable[[bytes], Path], cut: int
) -> None:
    path = opened(core[:cut])
    if cut < 7:  # not even recognised as ELF: raw memory, of a few bytes
        with open_dump(path) as dump:
            assert dump.kind == "raw"
        return
    with pytest.raises(InputError, match=str(path)):
        open_dump(path)


@pytest.mark.parametrize("cut", [4097, 9000, 20_000])
def test_a_core_that_ends_in_its_memory(
    core: bytes, opened: Callable[[bytes], Path], cut: int
) -> None:
    with open_dump(opened(core[:cut])) as dump:
        assert dump.problems
        assert dump.cr3 is not None
        assert inspect(dump, dump.cr3, X86_64).findings


@given(st.lists(st.tuples(st.integers(0, 0x5FF), st.integers(0, 255)), max_size=12), st.data())
def test_damaged_headers_never_crash(
    core: bytes,
    tmp_path_factory: pytest.TempPathFactory,
    changes: list[tuple[int, int]],
    data: st.DataObject,
) -> None:
    damaged = bytearray(core)
    for at, value in changes:
        damaged[at] = value
    if data.draw(st.booleans()):
        at = data.draw(st.sampled_from([16, 32, 40, 54, 56, 64, 72, 80, 88, 96]))
        damaged[at : at + 8] = data.draw(st.binary(min_size=8, max_size=8))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(damaged)
    try:
        with open_dump(path) as dump:
            if dump.cr3 is not None and dump.mode is not None:
                inspect(dump, dump.cr3, dump.mode, limits=WalkLimits(tables=1 << 12, runs=1 << 12))
    except InputError:
        pass


@pytest.mark.slow
@given(st.randoms(use_true_random=False))
def test_damaged_tables_never_crash(
    core: bytes, tmp_path_factory: pytest.TempPathFactory, random: object
) -> None:
    damaged = bytearray(core)
    for _ in range(200):
        at = random.randrange(4096, len(damaged) - 8, 8)  # type: ignore[attr-defined]
        entry = random.randrange(0, 64) << 12 | random.choice([0x67, 0x1E3, 0x163, 0xFFF])  # type: ignore[attr-defined]
        entry |= random.choice([0, 1 << 63, 1 << 51, 0x1E00 << 12])  # type: ignore[attr-defined]
        struct.pack_into("<Q", damaged, at, entry)
    path = tmp_path_factory.getbasetemp() / "damaged-tables"
    path.write_bytes(damaged)
    with open_dump(path) as dump:
        assert dump.cr3 is not None
        inspect(dump, dump.cr3, X86_64, limits=WalkLimits(tables=1 << 12, runs=1 << 12))


def elf32(root: int, machine: int, cr4: int) -> bytes:
    """A 32-bit core as QEMU writes it for a small 32-bit guest: one page, and the CPU's state."""
    cpu = bytearray(440)
    struct.pack_into("<II", cpu, 0, 1, 440)
    struct.pack_into("<5Q", cpu, 392, 0x8001_0001, 0, 0, root, cr4)
    note = struct.pack("<III", 5, 440, 0) + b"QEMU\0\0\0\0" + bytes(cpu)
    header = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIIIIIHHHHHH", 4, machine, 1, 0, 52, 0, 0, 52, 32, 2, 0, 0, 0)
    header += struct.pack("<8I", 4, 116, 0, 0, len(note), len(note), 0, 4)
    header += struct.pack("<8I", 1, 4096, 0xC0001000, 0x1000, 4096, 4096, 0, 4096)
    page = bytearray(4096)
    struct.pack_into("<I", page, 768 * 4, 0x1E3)
    return (header + note).ljust(4096, b"\0") + bytes(page)


def test_a_32_bit_core(opened: Callable[[bytes], Path]) -> None:
    with open_dump(opened(elf32(0x1000, 3, 0x10))) as dump:
        assert (dump.cr3, dump.mode) == (0x1000, I386)
        assert dump.cr3 is not None
        (run,) = walk(dump, dump.cr3, I386).runs
        assert (run.start, run.end, run.level) == (0xC000_0000, 0xC040_0000, 2)


@pytest.mark.parametrize(
    ("machine", "cr3", "cr4", "root", "mode"),
    [
        (62, 0x1ABC, 0x20, 0x1000, X86_64),  # the low bits hold a PCID
        (62, 0x1000, 0x1020, 0x1000, X86_64_LA57),
        (3, 0x1060, 0x20, 0x1060, I386_PAE),
    ],
)
def test_mode_and_root_from_control_registers(
    opened: Callable[[bytes], Path],
    machine: int,
    cr3: int,
    cr4: int,
    root: int,
    mode: object,
) -> None:
    with open_dump(opened(elf32(cr3, machine, cr4))) as dump:
        assert (dump.cr3, dump.mode) == (root, mode)


def vmcore(text: str) -> bytes:
    note = struct.pack("<III", 11, len(text), 0) + b"VMCOREINFO\0\0" + text.encode()
    note += bytes(-len(note) % 4)
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    header += struct.pack("<IIQQQQQQ", 4, 0, 176, 0, 0, len(note), len(note), 4)
    header += struct.pack("<IIQQQQQQ", 1, 0, 4096, 0, 0x1000, 4096, 4096, 0)
    return (header + note).ljust(4096, b"\0") + bytes(4096)


def test_kdump_vmcore_names_its_root(opened: Callable[[bytes], Path]) -> None:
    """A kdump has no CPU state; the kernel says where swapper_pg_dir is."""
    text = (
        "OSRELEASE=6.1.0\nSYMBOL(swapper_pg_dir)=ffffffff82610000\n"
        "NUMBER(phys_base)=16777216\nNUMBER(pgtable_l5_enabled)=1\n"
    )
    with open_dump(opened(vmcore(text))) as dump:
        assert (dump.cr3, dump.mode) == (0x2610000 + 0x1000000, X86_64_LA57)
        assert dump.facts["OSRELEASE"] == "6.1.0"


@pytest.mark.parametrize("value", ["", "0x", "zz", "9" * 5000, "-1", "ffffffffffffffffff"])
def test_nonsense_in_vmcoreinfo(opened: Callable[[bytes], Path], value: str) -> None:
    with open_dump(opened(vmcore(f"SYMBOL(swapper_pg_dir)={value}\n"))) as dump:
        assert dump.cr3 is None


# -- QEMU itself ----------------------------------------------------------------------------------


def qemu_dump(folder: Path) -> Path:
    """Let QEMU dump the memory of a machine that has not started."""
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    control, result = folder / "control", folder / "dump"
    child = subprocess.Popen(
        [
            qemu,
            "-S",
            "-m",
            "4",
            "-display",
            "none",
            "-nodefaults",
            "-accel",
            "tcg",
            "-qmp",
            f"unix:{control},server,nowait",
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(100):
            if control.exists():
                break
            time.sleep(0.05)
        with socket.socket(socket.AF_UNIX) as talk:
            talk.settimeout(20)
            talk.connect(str(control))
            with talk.makefile("rw") as lines:
                for command in (
                    {"execute": "qmp_capabilities"},
                    {
                        "execute": "dump-guest-memory",
                        "arguments": {"paging": False, "protocol": f"file:{result}"},
                    },
                    {"execute": "quit"},
                ):
                    lines.write(json.dumps(command) + "\n")
                    lines.flush()
                    while "return" not in (answer := json.loads(lines.readline())):
                        assert "error" not in answer, answer
        child.wait(20)
    finally:
        child.kill()
        child.wait()
    return result


def test_qemu_writes_what_we_read(tmp_path: Path) -> None:
    with open_dump(qemu_dump(tmp_path)) as dump:
        assert dump.kind == "elf"
        assert dump.read(0, 4096) == bytes(4096)
        # The reset vector, at the top of the firmware below 4 GiB: a jump.
        code = dump.read(0xFFFF_FFF0, 1)
        assert code in (b"\xea", b"\xe9")
        # Its CPU state was found where we look for it: paging is off after reset.
        assert dump.cr3 is None
        assert any("paging is off" in problem for problem in dump.problems)
