"""Cores that we write, read by tools that are not ours."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from paravirt_mm import InputError, Run
from paravirt_mm.engine.trace import RangeMapped
from paravirt_mm.image.contents import Image
from paravirt_mm.image.dump import open_dump
from paravirt_mm.image.elf import PN_XNUM, core_header, stream_core, write_core
from paravirt_mm.image.walker import walk
from paravirt_mm.machine.paging import MODES, X86_64

MODE_NAMES = ("i386", "i386-pae", "x86_64", "x86_64-la57")


def scalar_walk(pages: dict[int, bytes], cr3: int, mode: str) -> dict[int, int]:
    """An x86 page walk in a few lines: virtual page to physical page. Shares nothing with ours."""
    width, bits = (4, 10) if mode == "i386" else (8, 9)
    levels = {"i386": 2, "i386-pae": 3, "x86_64": 4, "x86_64-la57": 5}[mode]
    result = {}

    def visit(table: int, level: int, virtual: int) -> None:
        count = 4 if mode == "i386-pae" and level == 3 else 1 << bits
        for index in range(count):
            (entry,) = struct.unpack_from("<I" if width == 4 else "<Q", pages[table], index * width)
            if not entry & 1:
                continue
            shift = 12 + bits * (level - 1)
            target = entry & 0xF_FFFF_FFFF_F000 if width == 8 else entry & 0xFFFF_F000
            address = virtual | index << shift
            if level == 1 or (entry & 0x80 and level < 4):
                target &= -(1 << shift)
                for offset in range(0, 1 << shift, 4096):
                    result[address + offset] = target + offset
            else:
                visit(target, level - 1, address)

    visit(cr3, levels, 0)
    return result


@pytest.mark.parametrize("mode", MODE_NAMES)
def test_pyelftools_opens_it_and_a_plain_walk_finds_the_direct_map(
    small_run: Callable[..., Run], tmp_path: Path, mode: str
) -> None:
    run = small_run(mode, "incremental:variant=hpa", "native", size=16 << 20)
    path = tmp_path / "core"
    size = write_core(run.trace, path)
    assert path.stat().st_size == size
    with path.open("rb") as file:
        elf = ELFFile(file)
        assert elf["e_type"] == "ET_CORE"
        assert elf["e_machine"] == ("EM_386" if mode.startswith("i386") else "EM_X86_64")
        pages = {}
        notes: dict[str, Any] = {}
        for segment in elf.iter_segments():
            if segment["p_type"] == "PT_NOTE":
                for note in segment.iter_notes():
                    notes[note["n_name"]] = note
                continue
            assert segment["p_offset"] % 4096 == 0
            data = segment.data()
            for at in range(0, len(data), 4096):
                pages[segment["p_paddr"] + at] = data[at : at + 4096]
    assert set(notes) == {"CORE", "QEMU", "PARAVIRT_MM"}
    raw = notes["PARAVIRT_MM"]["n_desc"]
    text = raw if isinstance(raw, str) else raw.decode()
    facts = dict(line.split("=", 1) for line in text.splitlines())
    assert facts["mode"] == mode
    assert facts["allocator"] == "incremental:variant=hpa"
    mapped = scalar_walk(pages, int(facts["cr3"], 16), mode)
    base = MODES[mode].direct_map_base & ((1 << MODES[mode].virtual_bits) - 1)
    expected = {
        base + address: address
        for event in run.trace.of(RangeMapped)
        for address in range(event.leaves.start, event.leaves.end, 4096)
    }
    assert mapped == expected


def test_readelf_agrees(small_run: Callable[..., Run], tmp_path: Path) -> None:
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("readelf (binutils) is not installed")
    run = small_run("x86_64", "incremental:variant=linux", "xen")
    path = tmp_path / "core"
    write_core(run.trace, path)
    done = subprocess.run(
        [readelf, "-lWn", str(path)],
        capture_output=True,
        text=True,
        check=True,
        env={"LC_ALL": "C"},
    )
    assert not done.stderr
    loads = re.findall(r"LOAD +(0x\w+) (0x\w+) (0x\w+) (0x\w+)", done.stdout)
    image = Image(run.trace)
    assert [(int(p, 16), int(p, 16) + int(n, 16)) for _, _, p, n in loads] == image.extents()
    for _, virtual, physical, _ in loads:
        assert int(virtual, 16) == image.mode.direct_map_base + int(physical, 16)
    assert "QEMU" in done.stdout


def test_gdb_shows_a_table_through_the_direct_map(
    small_run: Callable[..., Run], tmp_path: Path
) -> None:
    gdb = shutil.which("gdb")
    if gdb is None:
        pytest.skip("gdb is not installed")
    run = small_run("x86_64", "incremental:variant=linux", "native")
    path = tmp_path / "core"
    write_core(run.trace, path)
    image = Image(run.trace)
    slot = image.mode.direct_map_base + image.root + 272 * 8
    done = subprocess.run(
        [gdb, "-nx", "-batch", "-ex", f"x/gx {slot:#x}", "-c", str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    root = image.read(image.root, 4096)
    assert root is not None
    (entry,) = struct.unpack_from("<Q", root, 272 * 8)
    assert f"{entry:#018x}" in done.stdout


def test_a_pipe_takes_it_too(small_run: Callable[..., Run], tmp_path: Path) -> None:
    run = small_run("x86_64", "incremental:variant=linux", "native")
    file, pipe = tmp_path / "file", tmp_path / "pipe"
    write_core(run.trace, file)
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write_core(run.trace, pipe)
    reader.join()
    assert got == [file.read_bytes()]


def test_short_writes_lose_nothing(small_run: Callable[..., Run], tmp_path: Path) -> None:
    run = small_run("x86_64", "incremental:variant=linux", "native")
    path = tmp_path / "file"
    write_core(run.trace, path)
    taken = bytearray()

    def write(data: memoryview) -> int:
        part = data[:1000]
        taken.extend(part)
        return len(part)

    assert stream_core(Image(run.trace), write) == len(taken)
    assert bytes(taken) == path.read_bytes()


@pytest.mark.slow
def test_more_segments_than_the_header_can_count(tmp_path: Path) -> None:
    extents = [(page * 8192, page * 8192 + 4096) for page in range(PN_XNUM + 5)]
    header = core_header(X86_64, 0x2000, extents, X86_64.direct_map_base, {"mode": "x86_64"})
    path = tmp_path / "core"
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + len(extents) * 4096)
    with open_dump(path) as dump:
        assert len(dump.segments) == len(extents)
        assert dump.segments[-1].start == extents[-1][0]
        assert not dump.problems
    with path.open("rb") as file:
        assert ELFFile(file).num_segments() == len(extents) + 1


def test_our_own_reader_gets_root_and_mode_from_the_notes(
    small_run: Callable[..., Run], tmp_path: Path
) -> None:
    for mode in MODE_NAMES:
        run = small_run(mode, "incremental:variant=linux", "native")
        path = tmp_path / "core"
        write_core(run.trace, path)
        image = Image(run.trace)
        with open_dump(path) as dump:
            assert (dump.cr3, dump.mode) == (image.root, image.mode)
            assert (
                walk(dump, image.root, image.mode).runs == walk(image, image.root, image.mode).runs
            )
        # Other tools know QEMU's note, not ours; so it must say the same.
        path.write_bytes(path.read_bytes().replace(b"PARAVIRT_MM\0", b"SOMEONEELSE\0"))
        with open_dump(path) as dump:
            assert (dump.cr3, dump.mode) == (image.root, image.mode)


def test_a_file_that_cannot_be_written(small_run: Callable[..., Run], tmp_path: Path) -> None:
    run = small_run("x86_64", "incremental:variant=linux", "native")
    with pytest.raises(InputError, match="cannot be written"):
        write_core(run.trace, tmp_path / "no" / "such" / "folder")
