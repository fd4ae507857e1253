"""Kernel files, what is handed to a kernel, and what a record says: field by field."""

from __future__ import annotations

import gzip
import lzma
import os
import random
import re
import stat
import struct
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
import pytest

from paravirt_mm.image.walker import Cpu
from paravirt_mm.machine.paging import X86_64
from paravirt_mm.verify.linux.qemu import (
    GdbError,
    Kernel,
    KernelBootError,
    KernelFacts,
    KernelImageError,
    LiveUnavailableError,
    MapSpec,
    MapSpecError,
    image as image_module,
    process,
    ram as ram_module,
    read_direct_map,
)
from paravirt_mm.verify.linux.qemu.direct_map import TablePage
from paravirt_mm.verify.linux.qemu.gdbremote import (
    REQUIRED_REGISTERS,
    GdbClient,
    RegisterLayout,
)
from paravirt_mm.verify.linux.qemu.handover import (
    MAP_FIELDS,
    enter,
    handed_over,
    put_kernel,
)
from paravirt_mm.verify.linux.qemu.image import (
    MAX_VMLINUX,
    LoadSegment,
    decompress_payload,
    load_segments,
    parse_setup_header,
    read_kernel,
    read_symtab,
    read_vmlinux,
)
from paravirt_mm.verify.linux.qemu.kernelmem import KernelMemory
from paravirt_mm.verify.linux.qemu.locate import find_kernels, find_qemu, qemu_version
from paravirt_mm.verify.linux.qemu.process import processor, qemu_arguments
from paravirt_mm.verify.linux.qemu.ram import GuestRam, RamLayout
from paravirt_mm.verify.linux.qemu.record import (
    BootProvenance,
    BootRecord,
    MappingStep,
    TableAllocation,
)
from paravirt_mm.verify.linux.qemu.start import Start, _changed, _nothing_else

from .naive_linux import digest

MIB, GIB, PAGE = 1 << 20, 1 << 30, 4096
BASE = 0xFFFFFFFF81000000


# -- the file --------------------------------------------------------------------------------------


def elf(*segments: tuple[int, int, int, int], machine: int = 62, data: bytes = b"") -> bytes:
    """An ELF of program headers ``(offset, physical address, bytes in file, bytes in memory)``."""
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    fields = (ident, 2, machine, 1, 0x1000000, 64, 0, 0, 64, 56, len(segments), 0, 0, 0)
    rows = (
        struct.pack("<IIQQQQQQ", 1, 7, offset, BASE, at, size, memory, PAGE)
        for offset, at, size, memory in segments
    )
    return struct.pack("<16sHHIQQQIHHHHHH", *fields) + b"".join(rows) + data


def test_segments_may_fill_their_file_and_all_memory_that_is_allowed() -> None:
    whole = elf((120, 16 * MIB, 8, 8), data=b"abcdefgh")
    _, (segment,) = load_segments(whole)
    assert (segment.data, segment.size, segment.end) == (b"abcdefgh", 8, 16 * MIB + 8)
    for wrong in ((121, 0, 8, 8), (120, 0, 9, 9), (120, 0, 8, 7)):
        with pytest.raises(KernelImageError, match="segment 0 lies outside"):
            load_segments(elf(wrong, data=b"abcdefgh"))
    highest = (120, MAX_VMLINUX - 8, 8, 8)
    assert load_segments(elf(highest, data=b"abcdefgh"))[1][0].end == MAX_VMLINUX
    assert MAX_VMLINUX == 512 * MIB
    with pytest.raises(KernelImageError, match="above 512 MiB"):
        load_segments(elf((120, MAX_VMLINUX - 7, 8, 8), data=b"abcdefgh"))
    empty = elf((120, 0, 0, 0), (176, 16 * MIB, 8, 8), data=b"abcdefgh")
    assert [s.paddr for s in load_segments(empty)[1]] == [16 * MIB]
    with pytest.raises(KernelImageError, match="no loadable segment"):
        load_segments(elf((120, 0, 0, 0)))


@pytest.mark.parametrize(
    ("machine", "name"),
    [(3, "32-bit x86"), (183, "arm64"), (243, "RISC-V"), (21, "PowerPC"), (22, "s390"),
     (40, "ELF machine 40")],
)  # fmt: skip
def test_a_kernel_of_another_processor_is_told_so(machine: int, name: str) -> None:
    with pytest.raises(KernelImageError, match=rf"built for {name}; give a vmlinuz or vmlinux"):
        load_segments(elf((120, 0, 1, 1), machine=machine, data=b"x"))


@pytest.mark.parametrize(("at", "value"), [(0, 0x7E), (4, 1), (5, 2), (54, 32)])
def test_other_kinds_of_files_are_no_kernels(at: int, value: int) -> None:
    """No ELF; one of 32 bits, or big-endian; headers of another size than Elf64_Phdr."""
    image = bytearray(elf((120, 0, 1, 1), data=b"x"))
    image[at] = value
    with pytest.raises(KernelImageError, match="is no x86-64 ELF file; give a vmlinuz"):
        load_segments(bytes(image))


def test_what_is_not_zero_is_written_in_blocks() -> None:
    """bss may be in the file: blocks of zeroes are left out."""
    block = 1 << 16
    filled, empty = b"\1" * block, bytes(block)
    segment = LoadSegment(BASE, MIB, filled + empty + empty + filled + filled + b"\2" * 10, 9 * MIB)
    assert segment.pieces == (
        (MIB, filled),
        (MIB + 3 * block, filled + filled),
        (MIB + 5 * block, b"\2" * 10),
    )
    assert LoadSegment(BASE, MIB, empty, MIB).pieces == ()
    half = bytes(block // 2) + b"\1" * (block // 2)
    assert LoadSegment(BASE, MIB, half, MIB).pieces == ((MIB, half),)
    assert LoadSegment(BASE, MIB, b"\3", MIB).pieces == ((MIB, b"\3"),)


def test_files_of_a_size_that_no_kernel_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vmlinux with debug information is larger than any vmlinuz."""
    assert image_module.MAX_VMLINUZ == 256 * MIB
    assert image_module.MAX_DEBUG_VMLINUX == 8 * GIB
    assert image_module.MAX_SYMTAB == 256 * MIB
    monkeypatch.setattr(image_module, "MAX_VMLINUZ", 0x2000)
    monkeypatch.setattr(image_module, "MAX_DEBUG_VMLINUX", 0x3000)
    file = tmp_path / "kernel"
    head = elf((120, 0, 0, 0))
    for begins, size, refused in (
        (b"", 0xFFF, True), (b"", 0x1000, False), (b"", 0x2000, False), (b"", 0x2001, True),
        (head, 0x2001, False), (head, 0x3000, False), (head, 0x3001, True), (head, 0xFFF, True),
    ):  # fmt: skip
        file.write_bytes(begins.ljust(size, b"\0"))
        with pytest.raises(KernelImageError) as caught:
            read_kernel(file)
        assert ("cannot be a kernel" in str(caught.value)) is refused
    with pytest.raises(KernelImageError, match=r"^Is a directory$"):
        read_kernel(tmp_path)
    with pytest.raises(KernelImageError, match=f"^{file}: "):
        read_vmlinux(file)


def bzimage(**fields: tuple[int, str, Any]) -> bytes:
    image = bytearray(0x2000)
    usual = {
        "magic": (0x202, "4s", b"HdrS"), "version": (0x206, "<H", 0x208),
        "sectors": (0x1F1, "B", 3),
        "jump": (0x200, "B", 0xEB), "end": (0x201, "B", 0x66), "text": (0x20E, "<H", 0x100),
        "words": (0x300, "5s", b"6.1 x"),
        "offset": (0x248, "<I", 0x10), "length": (0x24C, "<I", 0x17F0),
    }  # fmt: skip
    for at, form, value in (usual | fields).values():
        struct.pack_into(form, image, at, value)
    return bytes(image)


def test_setup_header() -> None:
    """The payload begins behind the boot sector and so many setup sectors (0 stands for 4)."""
    header = parse_setup_header(bzimage())
    assert (header.version, header.release) == (0x208, "6.1 x")
    assert header.payload == slice(4 * 512 + 0x10, 0x2000)
    assert header.raw == bzimage()[0x1F1 : 0x202 + 0x66]
    four = parse_setup_header(bzimage(sectors=(0x1F1, "B", 0), length=(0x24C, "<I", 16)))
    assert four.payload.start == 5 * 512 + 0x10
    assert parse_setup_header(bzimage(text=(0x20E, "<H", 0))).release == ""
    long = bzimage(words=(0x300, "300s", b"6" * 300))
    assert parse_setup_header(long).release == "6" * 256
    for wrong, why in (
        ({"version": (0x206, "<H", 0x207)}, "0x0207 is older than 2.08"),
        ({"length": (0x24C, "<I", 0x17F1)}, "outside the file"),
        ({"length": (0x24C, "<I", 0)}, "outside the file"),
        ({"offset": (0x248, "<I", 0)}, "outside the file"),
        ({"magic": (0x202, "4s", b"HdrX")}, "HdrS"),
    ):
        with pytest.raises(KernelImageError, match=why):
            parse_setup_header(bzimage(**wrong))


def test_a_bare_vmlinux_gets_the_header_of_a_loader(tmp_path: Path) -> None:
    """boot.rst: what a loader of a 64-bit kernel writes where there is no bzImage to copy."""
    text = b"Linux version 6.1.0 (me) #1 SMP\0".ljust(PAGE, b"\0")
    file = tmp_path / "vmlinux"
    file.write_bytes(elf((120, 16 * MIB, PAGE, PAGE), data=text))
    header, _ = read_kernel(file)
    assert header.version == 0x20F

    def field(form: str, at: int) -> Any:
        return struct.unpack_from(form, header.raw, at - 0x1F1)[0]

    assert [field("<H", 0x1FE), field("<4s", 0x202), field("<H", 0x206)] == [
        0xAA55, b"HdrS", 0x20F,
    ]  # fmt: skip
    assert (field("B", 0x211), field("<I", 0x22C)) == (1, 0x7FFFFFFF)
    assert (field("<I", 0x230), field("B", 0x234), field("<H", 0x236)) == (2 * MIB, 1, 3)
    assert (field("<I", 0x238), field("<Q", 0x258)) == (2047, 16 * MIB)
    assert len(header.raw) == 0x268 - 0x1F1
    assert (header.payload.start, header.payload.stop) == (0, 0)
    file.write_bytes(elf((120, 16 * MIB, PAGE, PAGE), data=bytes(PAGE)))
    with pytest.raises(KernelImageError, match="without the text 'Linux version'"):
        read_kernel(file)


def with_symbols(symbols: list[tuple[str, int]], **wrong: int) -> bytes:
    """An ELF whose second section is a symbol table, whose third are the names."""
    names, rows = b"\0", struct.pack("<IBBHQQ", 0, 0, 0, 0, 0, 0)
    for name, value in symbols:
        rows += struct.pack("<IBBHQQ", len(names) if name else 0, 0, 0, 0, value, 0)
        names += name.encode() + b"\0"
    at = 64 + 3 * 64
    given = {"size": len(rows), "link": 2, "names": len(names), "kind": 2} | wrong
    sections = struct.pack("<IIQQQQIIQQ", *[0] * 10)
    sections += struct.pack(
        "<IIQQQQIIQQ", 0, given["kind"], 0, 0, at, given["size"], given["link"], 0, 8, 24
    )
    sections += struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, at + len(rows), given["names"], 0, 0, 1, 0)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    fields = (ident, 2, 62, 1, 0, 0, 64, 0, 64, 56, 0, 64, 3, 0)
    return struct.pack("<16sHHIQQQIHHHHHH", *fields) + sections + rows + names


def test_symbols_of_a_vmlinux(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of a name counts; what has no name or no address is none."""
    symbols = [("_text", BASE), ("a", BASE + 1), ("a", BASE + 2), ("", 7), ("undefined", 0)]
    assert read_symtab(with_symbols(symbols)) == {"_text": BASE, "a": BASE + 1}
    assert read_symtab(with_symbols(symbols, size=3 * 24 + 5)) == {"_text": BASE, "a": BASE + 1}
    assert read_symtab(with_symbols(symbols, kind=1)) == {}  # stripped
    two = [("_text", BASE), ("behind", BASE + 1)]
    assert read_symtab(with_symbols(two, names=7)) == {"_text": BASE}
    assert read_symtab(with_symbols(two, names=14)) == {"_text": BASE, "behind": BASE + 1}
    with pytest.raises(KernelImageError, match="names are in no section"):
        read_symtab(with_symbols(symbols, link=3))
    for wrong in ({"names": 1 << 20}, {"size": 1 << 20}, {"size": 1 << 29}):
        with pytest.raises(KernelImageError, match="symbol table lies outside"):
            read_symtab(with_symbols(symbols, **wrong))
    monkeypatch.setattr(image_module, "MAX_SYMTAB", 6 * 24)
    assert read_symtab(with_symbols(symbols))
    monkeypatch.setattr(image_module, "MAX_SYMTAB", 6 * 24 - 1)
    with pytest.raises(KernelImageError, match="symbol table lies outside"):
        read_symtab(with_symbols(symbols))


def test_payload_of_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What unpacks zstd, lz4 and lzo reads a file and writes to its output, no more than it said
    and not for ever.
    """
    (tmp_path / "lz4").write_text(
        '#!/bin/sh\n[ "$*" = -dc ] && cat; cat "$0.more"; [ ! -e "$0.hangs" ] || exec sleep 60\n'
        '[ ! -e "$0.stays" ] || exec sleep 60 >&-\n'
    )
    (tmp_path / "lz4").chmod(0o755)
    more, hangs = tmp_path / "lz4.more", tmp_path / "lz4.hangs"
    more.write_bytes(b"")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    packed = b"\x02\x21\x4c\x18 and so on"

    def unpack(claimed: int) -> bytes:
        return decompress_payload(packed + struct.pack("<I", claimed))

    assert image_module._DECOMPRESS_TIMEOUT == 60
    hangs.touch()
    began = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(image_module, "_DECOMPRESS_TIMEOUT", 0.2)
        with pytest.raises(KernelImageError, match="lz4 could not unpack the payload to 15 bytes"):
            unpack(len(packed) + 1)
    hangs.unlink()
    stays = tmp_path / "lz4.stays"
    stays.touch()
    assert unpack(len(packed)) == packed
    stays.unlink()
    assert time.monotonic() - began < 30
    with pytest.raises(KernelImageError, match="lz4 could not unpack the payload to 15 bytes"):
        unpack(len(packed) + 1)  # it ends too early
    assert unpack(len(packed)) == packed
    for watchdog in threading.enumerate():  # nothing is left that would keep this process alive
        if isinstance(watchdog, threading.Timer):
            watchdog.join(5)
            assert not watchdog.is_alive()
    more.write_bytes(b"1")
    with pytest.raises(KernelImageError, match="lz4 could not unpack the payload to 14 bytes"):
        unpack(len(packed))
    for claimed in (0, MAX_VMLINUX + 1):
        with pytest.raises(KernelImageError, match=f"lz4 payload claims to unpack to {claimed} "):
            unpack(claimed)
    monkeypatch.setattr(image_module, "MAX_VMLINUX", 15)
    assert unpack(15) == packed + b"1"
    more.write_bytes(b"")
    assert decompress_payload(packed[:4] + struct.pack("<I", 4)) == packed[:4]
    for short in (packed[:4], packed[:7]):
        with pytest.raises(KernelImageError, match="lz4 payload is truncated"):
            decompress_payload(short)
    monkeypatch.setenv("PATH", "")
    for tool, begins in (("lz4", packed), ("zstd", b"\x28\xb5\x2f\xfd"), ("lzop", b"\x89LZO")):
        with pytest.raises(KernelImageError, match=f"packed with {tool}: install .* '{tool}'"):
            decompress_payload(begins)


def test_payload_that_python_unpacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """gzip's window is 32 KiB, a dictionary of xz or lzma may have half a gigabyte."""
    data = random.Random(1).randbytes(32768)
    assert decompress_payload(gzip.compress(data + data)) == data + data
    alone = lzma.compress(b"words", format=lzma.FORMAT_ALONE)

    def dictionary(size: int) -> bytes:
        return alone[:1] + struct.pack("<I", size) + alone[5:]

    assert decompress_payload(dictionary(GIB // 2)) == b"words"
    with pytest.raises(KernelImageError, match=r"^lzma payload is damaged: Memory usage limit"):
        decompress_payload(dictionary(GIB))
    monkeypatch.setattr(image_module, "MAX_VMLINUX", 4)
    with pytest.raises(KernelImageError, match=r"^lzma payload is truncated or larger than 4 byt"):
        decompress_payload(alone)
    with pytest.raises(KernelImageError, match=r"not known \(first bytes 616263646566\)"):
        decompress_payload(b"abcdefgh")


# -- what a kernel is ------------------------------------------------------------------------------


def kernel(release: str = "6.1.0", *spans: tuple[int, int], **given: Any) -> Kernel:
    places = spans or ((16 * MIB, 20 * MIB),)
    segments = tuple(
        LoadSegment(BASE - 16 * MIB + low, low, b"text", high - low) for low, high in places
    )
    given = {"header": bytes(range(1, 0x71)), "symbols": {}} | given
    return Kernel(
        Path("/boot/vmlinuz"), given.pop("header"), release, release, 16 * MIB, segments, **given
    )


def test_facts_that_hold_for_all_kernels() -> None:
    old = kernel("5.4.9", (20 * MIB, 40 * MIB)).facts
    new = kernel("6.1.0", (16 * MIB, 30 * MIB), symbols={"__pgtable_l5_enabled": 1}).facts
    assert KernelFacts.of_all([new, old]) == KernelFacts("5.4.9", (16 * MIB, 40 * MIB), False)
    assert KernelFacts.of_all([new, new]) == new
    assert (old.takes_pointers, new.takes_pointers, new.has_five_levels) == (False, True, True)
    for release, takes in (
        ("5.5.0-rc1", True),
        ("5.4.300", False),
        ("10.0", True),
        ("4.19", False),
    ):
        assert kernel(release).takes_pointers is takes


def test_a_kernel_loaded_elsewhere() -> None:
    usual = kernel("6.1", (16 * MIB, 20 * MIB), (24 * MIB, 25 * MIB))
    assert (usual.physical_range, usual.moved) == ((16 * MIB, 25 * MIB), 0)
    high = usual.at(64 * MIB)
    assert (high.physical_range, high.moved) == ((64 * MIB, 73 * MIB), 48 * MIB)
    assert high.entry == 64 * MIB
    assert [s.vaddr for s in high.segments] == [s.vaddr for s in usual.segments]
    # Segments for each processor are linked to address 0.
    each = attrs.evolve(high.segments[1], vaddr=0)
    assert attrs.evolve(high, segments=(high.segments[0], each)).moved == 48 * MIB


def test_what_is_long_is_not_shown() -> None:
    """Errors and tests print these things. What its boots have in common is no part of a kernel."""
    long = bytes(MIB)
    segment = LoadSegment(BASE, 16 * MIB, long, MIB)
    symbols = {f"symbol_{n}": n for n in range(1000)}
    mine = attrs.evolve(kernel(), header=long, segments=(segment,), symbols=symbols)
    other = attrs.evolve(mine)
    other.starts["processor"] = start = Start(symbols, long, 1, ((0, long),))
    assert mine == other
    with GuestRam(RamLayout(MIB)) as ram:
        memory = KernelMemory(ram, symbols)
        header = image_module.SetupHeader(long, 0x20F, "6.1", slice(0, 0))
        for one in (segment, other, start, memory, header):
            assert len(repr(one)) < 300
    assert "starts" not in repr(other)
    assert "segments" not in repr(other)


def test_programs_and_kernels_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qemu = tmp_path / "qemu"
    qemu.write_text("#!/bin/sh\necho 'QEMU 8'; echo more\n")
    qemu.chmod(qemu.stat().st_mode | stat.S_IXUSR)
    assert qemu_version(str(qemu)) == "QEMU 8"
    long = tmp_path / "long"
    long.write_text(f"#!/bin/sh\necho {'v' * 201}\n")
    long.chmod(0o755)
    assert qemu_version(str(long)) == "v" * 200
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\n")
    silent.chmod(0o755)
    assert qemu_version(str(silent)) == "unknown"
    with pytest.raises(LiveUnavailableError, match="cannot be run"):
        qemu_version(str(tmp_path / "none"))
    monkeypatch.setenv("PARAVIRT_MM_QEMU", str(qemu))
    assert (find_qemu(), find_qemu(str(silent))) == (str(qemu), str(silent))
    monkeypatch.setenv("PARAVIRT_MM_QEMU", "no-such-program")
    with pytest.raises(LiveUnavailableError, match="no-such-program not found"):
        find_qemu()
    monkeypatch.delenv("PARAVIRT_MM_QEMU")
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "qemu-system-x86_64").symlink_to(qemu)
    assert find_qemu() == str(tmp_path / "qemu-system-x86_64")
    for name in ("a/boot/vmlinuz-6.2", "boot/vmlinuz-6.10", "vmlinuz-5.9", "vmlinuz-6.1/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [file.name for file in find_kernels(tmp_path)] == [
        "vmlinuz-5.9", "vmlinuz-6.2", "vmlinuz-6.10",
    ]  # fmt: skip
    assert find_kernels(qemu) == [qemu]
    with pytest.raises(LiveUnavailableError, match="neither a file nor a directory"):
        find_kernels(Path("/dev/null"))


def test_what_qemu_is_asked_for() -> None:
    spec = MapSpec(ram=[(0, 0x9F000), (MIB, GIB)], pse=False)
    assert processor(spec) == "qemu64,-pse,-pdpe1gb,-la57"
    assert processor(attrs.evolve(spec, pse=True, gbpages=True, levels=5)) == (
        "qemu64,+pse,+pdpe1gb,+la57"
    )
    arguments = qemu_arguments(spec, kernel())
    assert arguments[-2:] == ["-m", "1024M"]
    assert "-kernel" not in arguments
    started = qemu_arguments(attrs.evolve(spec, entry="firmware"), kernel())
    assert started[started.index("-kernel") + 1] == "/boot/vmlinuz"
    assert "memmap=exactmap" in started[started.index("-append") + 1]


def test_memory_of_a_machine_has_bounds() -> None:
    ram = [(0, MIB)]
    assert MapSpec(ram=ram, memory_mib=1).layout == RamLayout(MIB)
    assert MapSpec(ram=ram, memory_mib=999 * 1024).layout.size == 999 * GIB
    for size in (0, 999 * 1024 + 1):
        with pytest.raises(MapSpecError, match="memory_mib"):
            _ = MapSpec(ram=ram, memory_mib=size).layout
    assert MapSpec(ram=[(0, 1000 * GIB)]).layout.size == 999 * GIB
    with pytest.raises(MapSpecError, match="RAM above 1000 GiB"):
        MapSpec(ram=[(0, 1000 * GIB + 1)])
    taken = [(n * PAGE, n * PAGE + 16) for n in range(1025)]
    assert len(MapSpec(ram=ram, reserved=taken[:1024]).reserved) == 1024
    with pytest.raises(MapSpecError, match="more than 1024 reserved"):
        MapSpec(ram=ram, reserved=taken)
    most = [(n * MIB, n * MIB + 1) for n in range(128)]
    assert len(MapSpec(ram=most).ram) == 128
    with pytest.raises(MapSpecError, match="more than 128 e820 entries"):
        MapSpec(ram=most, other=[(GIB, 2 * GIB, 2)])
    assert all(field.kw_only for field in attrs.fields(MapSpec))
    with pytest.raises(MapSpecError, match="empty or beyond 52 bits"):
        MapSpec(ram=ram, other=[(0, (1 << 52) + 1, 2)])
    with pytest.raises(MapSpecError, match="empty or beyond 52 bits"):
        MapSpec(ram=ram, other=[(-1, 5, 2)])
    assert MapSpec(ram=ram, other=[(0, 1 << 52, 2)]).e820[0] == (0, MIB, 1)
    MapSpec(ram=ram, command_line="x" * 1024)
    with pytest.raises(MapSpecError, match="1024 printable"):
        MapSpec(ram=ram, command_line="x" * 1025)


# -- what a kernel is given ------------------------------------------------------------------------


def test_boot_params_are_those_of_the_protocol() -> None:
    """zero-page.rst and boot.rst, field by field."""
    reserved = [(8 * MIB, 9 * MIB), (30 * MIB, 31 * MIB)]
    spec = MapSpec(
        ram=[(0, 0x9F000), (MIB, 64 * MIB)], other=[(0x9F000, 0xA0000, 2)],
        reserved=reserved, initrd=(60 * MIB, 61 * MIB + 5),
    )  # fmt: skip
    mine = kernel()
    with GuestRam(spec.layout) as ram:
        put_kernel(ram, mine, spec, "quiet")
        page = handed_over(ram)
        assert ram.read(16 * MIB, 4) == b"text"
        assert ram.read(0x2000, 6) == b"quiet\0"
        heads = [struct.unpack("<QII", ram.read(low, 16)) for low, _ in reserved]
        gdt = struct.unpack("<4Q", ram.read(0, 32))

    def field(form: str, at: int) -> Any:
        return struct.unpack_from(form, page, at)

    untouched = [n for n in range(0x70) if 0x1F1 + n not in (0x210, *range(0x218, 0x220),
                 *range(0x228, 0x22C), *range(0x250, 0x258))]  # fmt: skip
    assert [page[0x1F1 + n] for n in untouched] == [mine.header[n] for n in untouched]
    assert page[0x210] == 0xFF  # a loader that is not known
    assert field("<I", 0x228) == (0x2000,)
    assert field("<II", 0x218) == (60 * MIB, MIB + 5)
    assert field("<II", 0x0C0) == (0, 0)
    assert page[0x1E8] == 3
    assert [field("<QQI", 0x2D0 + 20 * n) for n in range(4)] == [
        (0, 0x9F000, 1), (0x9F000, 0x1000, 2), (MIB, 63 * MIB, 1), (0, 0, 0),
    ]  # fmt: skip
    # setup_data: a chain from low to high, of type 0 (nothing that anybody reads)
    assert field("<Q", 0x250) == (8 * MIB,)
    assert heads == [(30 * MIB, 0, MIB - 16), (0, 0, MIB - 16)]
    assert gdt == (0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF)
    told = {at for start, end in MAP_FIELDS for at in range(start, end)}
    assert {0x1E8, 0x218, 0x21F, 0x250, 0x257, 0x2D0, 0x2D0 + 20 * 128 - 1} <= told
    assert not {0x1E7, 0x1E9, 0x210, 0x228, 0x217, 0x220, 0x24F, 0x258, 0x2CF} & told


@pytest.mark.parametrize("levels", [4, 5])
def test_a_kernel_is_entered_as_the_protocol_wants(levels: int) -> None:
    """boot.rst, 64-bit: __BOOT_CS is 0x10, __BOOT_DS 0x18, RSI points at boot_params, interrupts
    are off; what decides how the others are read comes first.
    """
    told: dict[str, int] = {}
    gdb: Any = SimpleNamespace(write_register=told.__setitem__)
    enter(gdb, MapSpec(ram=[(0, 0x9F000), (MIB, GIB)], levels=levels), 16 * MIB)
    paging, protected, long_mode, la57 = 1 << 31, 1, 1 << 8, 1 << 12
    assert list(told)[:4] == ["efer", "cr4", "cr3", "cr0"]
    assert told["efer"] == long_mode
    assert told["cr0"] & (paging | protected) == paging | protected
    assert bool(told["cr4"] & la57) is (levels == 5)
    assert told["cr4"] & 1 << 5  # PAE
    assert (told["cr3"], told["rsi"], told["rip"]) == (0x3000, 0x1000, 16 * MIB)
    assert [told[name] for name in ("cs", "ds", "es", "fs", "gs", "ss")] == [0x10, *[0x18] * 5]
    assert told["eflags"] == 2  # bit 1 is always set
    assert set(told) <= set(REQUIRED_REGISTERS)


def test_a_head_that_ends_where_the_image_begins_has_its_place() -> None:
    for start, own in (
        (16 * MIB - 16, True),
        (16 * MIB - 15, False),
        (20 * MIB - 1, False),
        (20 * MIB, True),
    ):
        spec = MapSpec(ram=[(0, MIB), (MIB, 64 * MIB)], reserved=[(start, 30 * MIB)])
        with GuestRam(spec.layout) as ram:
            put_kernel(ram, kernel(), spec, "")
            (node,) = struct.unpack_from("<Q", handed_over(ram), 0x250)
        assert (node == start) is own


def test_pages_that_a_kernel_has_changed() -> None:
    """Runs of pages that are not as the file says, in pieces of 4 MiB; bss is zero in the file."""
    first = LoadSegment(BASE, 16 * MIB, b"\1" * (3 * PAGE), 5 * MIB)
    second = LoadSegment(0, 21 * MIB + PAGE, b"\2" * (2 * MIB), 2 * MIB + 5)
    mine = attrs.evolve(kernel(), segments=(first, second))
    with GuestRam(RamLayout(64 * MIB)) as ram:
        for segment in mine.segments:
            for at, data in segment.pieces:
                ram.write(at, data)
        assert list(_changed(ram, mine)) == []
        for page in (16 * MIB + PAGE, 16 * MIB + 2 * PAGE, 20 * MIB - PAGE, 20 * MIB):
            ram.write(page + 7, b"\xff")
        for page in (21 * MIB + PAGE, 23 * MIB + PAGE):
            ram.write(page + 7, b"\xff")
        found = [(at, len(data)) for at, data in _changed(ram, mine)]
        assert found == [
            (16 * MIB + PAGE, 2 * PAGE), (20 * MIB - PAGE, PAGE), (20 * MIB, PAGE),
            (21 * MIB + PAGE, PAGE), (23 * MIB + PAGE, PAGE),
        ]  # fmt: skip
        assert next(iter(_changed(ram, mine)))[1][:8] == b"\1" * 7 + b"\xff"


def test_a_start_is_only_what_the_image_and_the_map_are() -> None:
    """Heads of reservations are the map's; a byte elsewhere is one that the kernel wrote."""
    heads = [(8 * MIB + 8, 9 * MIB), (30 * MIB, 31 * MIB)]
    spec = MapSpec(ram=[(0, 0x9F000), (MIB, 64 * MIB)], reserved=heads)
    for at, only in (
        (8 * MIB + 8, True), (8 * MIB + 23, True), (8 * MIB + 7, False), (8 * MIB + 24, False),
        (30 * MIB + 15, True), (30 * MIB + 16, False), (31 * MIB - 1, False),
        (0x7FFFF, True), (0x80000, False),
        (16 * MIB - 1, False), (16 * MIB, True), (20 * MIB - 1, True), (20 * MIB, False),
    ):  # fmt: skip
        with GuestRam(spec.layout) as ram:
            put_kernel(ram, kernel(), spec, "")
            assert _nothing_else(ram, kernel(), spec)
            ram.write(at, b"\xff")
            assert _nothing_else(ram, kernel(), spec) is only, hex(at)


def test_a_start_puts_what_tells_of_the_map_and_nothing_else() -> None:
    """Of the kernel's own ``boot_params`` (zero page of the protocol) the numbers of the map, of
    what is handed over and of the initrd; what it has changed in the rest stays.
    """
    puts: list[tuple[int, bytes]] = []
    spec = MapSpec(ram=[(0, 0x9F000), (MIB, 64 * MIB)])
    at, scan = 1 << 40, 1 << 41
    start = Start({}, b"load", 4, ((16 * MIB, b"changed"),), ((scan, b"\x55"),))
    with GuestRam(spec.layout) as ram:
        put_kernel(ram, kernel(), spec, "")
        params = bytes(range(256)) * 16
        ram.write(0x1000, params)
        memory: Any = SimpleNamespace(
            ram=ram, address_of={"boot_params": at}.__getitem__, put=lambda *told: puts.append(told)
        )
        start.put(memory)
        fields = [(0xC0, 8), (0x1E8, 1), (0x218, 8), (0x250, 8), (0x2D0, 128 * 20)]
        assert sorted(puts) == [
            *((at + offset, params[offset : offset + size]) for offset, size in fields),
            (scan, b"\xc3"),  # ret
        ]
        assert (ram.read(16 * MIB, 7), ram.read(0x40, 4)) == (b"changed", b"load")
        puts.clear()
        start.leave(memory)
        assert puts == [(scan, b"\x55")]


def test_registers_come_back_in_the_order_that_makes_sense() -> None:
    """What decides how the others are read comes first; what is as it was is left alone."""
    told: list[tuple[str, Any]] = []
    wanted = {"rax": 1, "cr0": 2, "efer": 3, "same": 0, "cr3": 4, "cs": 5, "cr4": 6}
    gdb: Any = SimpleNamespace(
        all_registers=lambda: dict.fromkeys(wanted, 0),
        resume=lambda: told.append(("resume", None)),
        write_register=lambda *one: told.append(one),
        insert_breakpoint=lambda at: told.append(("stop", at)),
        remove_breakpoint=lambda at: told.append(("go on", at)),
    )
    spec = MapSpec(ram=[(0, 0x9F000), (MIB, 64 * MIB)])
    with GuestRam(spec.layout) as ram:
        Start(wanted, b"instructions", 9, ())._enter(gdb, ram, spec)
    loaded = told.index(("stop", 0x49))
    assert told[loaded:] == [
        ("stop", 0x49), ("resume", None), ("go on", 0x49),
        ("efer", 3), ("cr4", 6), ("cr3", 4), ("cr0", 2), ("rax", 1), ("cs", 5),
    ]  # fmt: skip


STUB = """\
import ctypes, os, re, socket, sys
words = " ".join(sys.argv[1:])
at_parents_end = ctypes.c_int()
ctypes.CDLL(None).prctl(2, ctypes.byref(at_parents_end))
console = int(re.search(r"console,path=/proc/self/fd/(\\d+)", words)[1])
ram = int(re.search(r"mem-path=/proc/self/fd/(\\d+)", words)[1])
seen = os.pread(ram, 4, 0) + b" %d" % at_parents_end.value
os.write(console, b"\\x1b[0m" + words.encode() + b"\\r\\n" + seen)
if "-cpu qemu64,-pse" in words:
    sys.exit("no such processor")
names = sys.argv[0].rsplit("/", 1)[0] + "/names"
with socket.socket(fileno=int(re.search(r"gdb,fd=(\\d+)", words)[1])) as peer:
    while data := peer.recv(4096):
        if b"#" not in data:
            continue
        text = "l" + open(names).read() if b"qXfer" in data else "OK"
        peer.sendall(b"+$%s#%02x" % (text.encode(), sum(text.encode()) & 255))
"""


@pytest.mark.parametrize("has_setpriv", [True, False])
def test_a_machine_lives_as_long_as_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_setpriv: bool
) -> None:
    """Its console is read, it is known while it runs, and it is killed; a reason is told where it
    does not start.
    """
    program = tmp_path / "qemu"
    program.write_text(f"#!{sys.executable}\n{STUB}")
    program.chmod(0o755)
    (tmp_path / "names").write_text(described(list(REQUIRED_REGISTERS)))
    open_files = len(os.listdir("/proc/self/fd"))
    if not has_setpriv:
        monkeypatch.setattr("shutil.which", lambda name: None)
    spec = MapSpec(ram=[(0, 0x9F000), (MIB, 64 * MIB)])
    with GuestRam(spec.layout) as ram:
        ram.write(0, b"seen")
        before = set(process._running)
        with process.Qemu(str(program), spec, kernel(), ram, 20) as machine:
            machine.gdb.insert_breakpoint(0)
            (running,) = process._running - before
            assert running.poll() is None
            told = machine.console()
            assert told.startswith(".[0m-S -nodefaults -no-user-config -no-reboot -display none")
            # SIGKILL if this process is killed, where there is what asks for it.
            assert told.endswith("\nseen 9" if has_setpriv else "\nseen 0")
            shared = f"memory-backend-file,id=ram,share=on,size={64 * MIB}"
            assert f"-m 64M -machine memory-backend=ram -object {shared}" in told
            assert re.search(
                r" -chardev socket,id=gdb,fd=\d+ -gdb chardev:gdb "
                r"-chardev file,id=console,path=/proc/self/fd/\d+ -serial chardev:console\n",
                told,
            )
            if has_setpriv:
                process.end_all()
                assert running.wait(10) == -9
        assert running.returncode == -9
        assert set(process._running) == before
        wrong = attrs.evolve(spec, pse=False)
        if has_setpriv:
            reason = "no such processor"
        else:
            reason = "QEMU closed its gdb connection"
            program.write_text(f"#!{sys.executable}\n")
        with pytest.raises(KernelBootError) as caught:
            process.Qemu(str(program), wrong, kernel(), ram, 20)
        assert str(caught.value).partition(": ")[2].startswith(reason)
        assert not str(caught.value).endswith("\n")
        assert set(process._running) == before
    assert len(os.listdir("/proc/self/fd")) == open_files


def test_the_end_of_a_console_is_told() -> None:
    """16 KiB of it; what cannot be shown is a point."""
    with GuestRam(RamLayout(MIB)) as ram:
        os.truncate(ram.fd, 0)
        os.pwrite(ram.fd, b"begin" + b"\x07" * 16383 + b"\n", 0)
        assert process._tail(ram.fd) == "." * 16383 + "\n"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ram": [(0, MIB), (MIB, 18 * MIB), (19 * MIB, 64 * MIB)]}, "other memory at 0x1200000"),
        ({"ram": [(0, MIB), (17 * MIB, 64 * MIB)]}, "other memory at 0x1000000"),
        ({"reserved": [(30 * MIB, 30 * MIB + 15)]}, "16 bytes to 4 GiB"),
        # The GDT, the zero page, the command line, and six tables: root, L3, one L2 for each GiB.
        ({"reserved": [(0x8FFF, 0xA000)]}, r"inside \[0x0, 0x9000\), which is in use"),
        (
            {"reserved": [(30 * MIB, 31 * MIB), (30 * MIB + 8, 32 * MIB)]},
            r"inside \[0x1e00008, 0x1e00018\), which is in use",
        ),
    ],
)
def test_maps_that_have_no_room_are_refused(wrong: dict[str, Any], message: str) -> None:
    spec = MapSpec(**{"ram": [(0, 0x9F000), (MIB, 64 * MIB)]} | wrong)
    with GuestRam(spec.layout) as ram, pytest.raises(MapSpecError, match=message):
        put_kernel(ram, kernel(), spec, "")


def test_maps_that_have_just_enough_room() -> None:
    """RAM in any order, as long as there is some wherever the kernel lies; heads side by side."""
    heads = 30 * MIB
    for given in (
        {"ram": [(17 * MIB, 64 * MIB), (MIB, 17 * MIB), (0, MIB)]},
        {"ram": [(0, MIB), (16 * MIB, 20 * MIB)]},
        {"ram": [(0, 64 * MIB), (2 * MIB, 3 * MIB)]},
        {"reserved": [(heads, heads + 16), (heads + 16, heads + 32)]},
        {"reserved": [(heads, heads + 16 + (1 << 32) - 1)]},
        {"reserved": [(0x9000, 0xA000), (16 * MIB - 16, 17 * MIB), (20 * MIB, 21 * MIB)]},
    ):
        spec = MapSpec(**{"ram": [(0, 0x9F000), (MIB, 64 * MIB)]} | given)
        with GuestRam(spec.layout) as ram:
            put_kernel(ram, kernel("5.4.0"), spec, "")
            assert handed_over(ram)[0x1E8] == len(spec.ram)
            # No initrd is one at 0 with no bytes.
            assert handed_over(ram)[0xC0:0xC8] == handed_over(ram)[0x218:0x220] == bytes(8)
    for start, end in ((heads, heads + 16 + (1 << 32)), (20 * MIB - 1, 21 * MIB)):
        spec = MapSpec(ram=[(0, 64 * MIB)], reserved=[(start, end)])
        with GuestRam(spec.layout) as ram, pytest.raises(MapSpecError):
            put_kernel(ram, kernel("5.4.0"), spec, "")


def test_memory_is_cleared_and_what_was_written_elsewhere_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with GuestRam(RamLayout(3 * GIB, GIB)) as ram:
        ram.write(MIB, b"\1" * (3 * PAGE))
        ram.clear(MIB + 5, PAGE)
        assert ram.read(MIB, 3 * PAGE) == b"\1" * 5 + bytes(PAGE) + b"\1" * (2 * PAGE - 5)
        ram.write(5 * GIB - PAGE, b"\2" * PAGE)
        found = list(ram.beyond([(MIB, MIB + PAGE)]))
        assert [(at, len(data)) for at, data in found] == [
            (MIB + PAGE, 2 * PAGE), (5 * GIB - PAGE, PAGE),
        ]  # fmt: skip
        ram.clear(8 * MIB, PAGE)  # nothing is there
        ram.write(0, b"first")
        assert [at for at, _ in ram.beyond([])] == [0, MIB, 5 * GIB - PAGE]
        with pytest.raises(KernelBootError, match=r"\[0xbfffffff, 0xc0000001\) to clear"):
            ram.clear(3 * GIB - 1, 2)
        with pytest.raises(KernelBootError, match=r"\[0x0, 0x4000001\) to read"):
            ram.read(0, (64 << 20) + 1)
        with pytest.raises(MapSpecError, match=r"\[0xbfffffff, 0xc0000001\) to write"):
            ram.write(3 * GIB - 1, b"ab")
        assert len(ram.read(0, 64 << 20)) == 64 << 20
        monkeypatch.setattr(ram_module, "_MAX_READ", 2 * PAGE)
        assert [(at, len(data)) for at, data in ram.beyond([(0, MIB + 5)])] == [
            (MIB + 5, 2 * PAGE), (MIB + 5 + 2 * PAGE, PAGE - 5), (5 * GIB - PAGE, PAGE),
        ]  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", lambda *_: 3)
            with pytest.raises(MapSpecError, match="only 3 of 4 bytes could be written"):
                ram.write(0, b"four")
    with pytest.raises(OSError, match="Bad file descriptor"):
        list(ram.beyond([]))
    open_files = len(os.listdir("/proc/self/fd"))
    with pytest.raises(MapSpecError, match=r"no sparse file of -1 bytes: .*Invalid argument"):
        GuestRam(RamLayout(-1))
    assert len(os.listdir("/proc/self/fd")) == open_files


def test_addresses_of_the_image_and_of_the_direct_map() -> None:
    offset, top = 0xFFFF888000000000, 0xFFFFFFFF80000000
    symbols = {"page_offset_base": top + 0x1000, "n": top + 0x2001, "__log_buf": top + 0x3000}
    with GuestRam(RamLayout(4 * MIB)) as ram:
        memory = KernelMemory(ram, symbols)
        ram.write(0x1000, struct.pack("<QQ", offset, 1))
        ram.write(0x2001, bytes(range(1, 10)))
        assert memory.physical(top) == 0
        assert memory.physical(top + GIB - 1) == GIB - 1
        assert (memory.physical(offset), memory.physical(offset + 7)) == (0, 7)
        for wrong in (top + GIB, offset - 1, 0):
            with pytest.raises(KernelBootError, match="neither in the kernel image nor"):
                memory.physical(wrong)
        assert memory.number("n") == int.from_bytes(bytes(range(1, 9)), "little")
        assert memory.number("n", 4) == 0x04030201
        ram.write(0x1000, struct.pack("<Q", five := 0xFF11000000000000))  # 52 bits are addresses
        assert memory.physical(five + (1 << 52) - 1) == (1 << 52) - 1
        with pytest.raises(KernelBootError, match="neither in the kernel image nor"):
            memory.physical(five + (1 << 52))
        ram.write(0x1000, struct.pack("<Q", offset))
        moved = KernelMemory(ram, {**symbols, "page_offset_base": top}, moved=0x1000)
        assert (moved.page_offset, moved.physical(top)) == (offset, 0x1000)
        with pytest.raises(KernelBootError, match="no symbol a or b"):
            memory.address_of("a", "b")
        assert memory.address_of("a", "n") == symbols["n"]
        ram.write(0x2800, b"word\xff\0rest")
        assert memory.text_at(top + 0x2800) == "word\ufffd"
        ram.write(0x3000, b"\7first line of it\0\0\1short\0the last line\0")
        assert memory.last_lines(1) == ["the last line"]
        assert memory.last_lines(9) == ["first line of it", "the last line"]
        assert KernelMemory(ram, {}).last_lines(9) == []
        ram.write(0x2800, b"x" * 600)
        assert memory.text_at(top + 0x2800) == "x" * 512
        ram.write(0x3000 + (1 << 15) - 10, b"ten bytes!eleven")  # 32 KiB are looked at
        assert memory.last_lines(1) == ["ten bytes!"]
        ram.write(0x3000 + (1 << 15) - 9, b"ten bytes!")
        assert memory.last_lines(9) == ["first line of it", "the last line", "tten bytes"]


# -- what is read ----------------------------------------------------------------------------------


def described(names: list[str]) -> str:
    return "".join(f'<reg name="{name}" bitsize="64"/>' for name in names)


def test_registers_have_places_in_their_order() -> None:
    layout = RegisterLayout.from_xml(described([*REQUIRED_REGISTERS, "x"]))
    packet = b"".join(n.to_bytes(8, "little") for n in range(len(REQUIRED_REGISTERS)))
    assert layout.unpack(packet, ["rcx", "efer"]) == {"rcx": 1, "efer": len(packet) // 8 - 1}
    assert layout.unpack_all(packet) == {name: n for n, name in enumerate(REQUIRED_REGISTERS)}
    with pytest.raises(GdbError, match="no value for register 'x'"):
        layout.unpack(packet, ["x"])
    with pytest.raises(GdbError, match="no register 'efer'"):
        RegisterLayout.from_xml(described([*REQUIRED_REGISTERS[:-1]]))
    with pytest.raises(GdbError, match="no register 'cr4'"):
        RegisterLayout.from_xml(described([*REQUIRED_REGISTERS[:-2]]))
    many = [f"r{n}" for n in range(1000 - len(REQUIRED_REGISTERS))]
    assert RegisterLayout.from_xml(described([*many, *REQUIRED_REGISTERS])).number["efer"] == 999
    with pytest.raises(GdbError, match="no register 'efer'"):
        RegisterLayout.from_xml(described([*many, "one", *REQUIRED_REGISTERS]))


def test_what_the_stub_sends_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A description of a quarter of a megabyte, a packet of 64 KiB."""
    client = GdbClient.__new__(GdbClient)
    for size, message in ((1 << 18, ""), ((1 << 18) + 1, "'target.xml' does not end")):
        answers = iter(["m" + "x" * size, "l"])
        monkeypatch.setattr(client, "command", lambda _, answers=answers: next(answers))
        with pytest.raises(GdbError, match=message) if message else nullcontext():
            assert client._read_description("target.xml") == "x" * size
    monkeypatch.setattr(client, "_send", lambda _: None)
    for size, message in ((1 << 16, ""), ((1 << 16) + 1, "packet of more than 65536 bytes")):
        client._buffer = bytearray(b"$" + b"x" * size)
        end = b"#%02x" % (size * ord("x") & 0xFF)
        monkeypatch.setattr(client, "_receive", lambda end=end: client._buffer.extend(end))
        with pytest.raises(GdbError, match=message) if message else nullcontext():
            assert client._read_packet() == "x" * size


class Pages(dict[int, bytes]):
    """Physical memory."""

    def read(self, address: int, size: int) -> bytes | None:
        page = self.get(address & -PAGE)
        return None if page is None else page[address % PAGE : address % PAGE + size]


def test_leaves_of_a_direct_map_are_joined_and_what_is_odd_is_told() -> None:
    """Rights do not part a run; the level does, and a page that maps something else."""
    offset = 0xFFFF888000000000

    def table(entries: dict[int, int]) -> bytes:
        page = np.zeros(512, np.uint64)
        for slot, entry in entries.items():
            page[slot] = entry
        return page.tobytes()

    small = {n: n << 12 | (1 if n == 3 else 3) for n in range(512)}
    pages = Pages({
        0x1000: table({offset >> 39 & 511: 0x2003}),
        0x2000: table({0: 0x3003, 2: 0x3003}),
        0x3000: table({0: 0x4003, 1: 2 << 20 | 0x83, 2: 8 << 20 | 0x83}),
        0x4000: table(small),
    })  # fmt: skip
    found = read_direct_map(pages, 0x1000, X86_64, (offset, offset + (1 << 46)), Cpu(40))
    assert [(t.level, t.pfn, t.va) for t in found.tables][:3] == [
        (1, 4, 0), (1, 4, 2 << 30), (2, 3, 0),
    ]  # fmt: skip
    assert found.leaf_runs[:2] == ((0, 2 * MIB, 1), (2 * MIB, 4 * MIB, 2))
    assert "L2 leaf at offset 0x400000 maps 0x800000" in found.findings
    assert found.findings[-1] == "2 entries lead to a table that another leads to as well"


def record(**given: Any) -> BootRecord:
    usual: dict[str, Any] = {
        "release": "6.1", "levels": 4, "pse": True, "gbpages": False, "memory_mib": 64,
        "firmware_e820": ((0, MIB, 1),), "e820": ((0, MIB, 2),), "memory": ((0, MIB),),
        "reserved": ((0, PAGE),), "bottom_up": True, "kernel_end": 7, "brk_start": 5 * PAGE,
        "pgt_buf_pages": 6, "max_pfn": 8, "max_low_pfn": 9, "panic": None,
        "steps": (MappingStep(0, MIB, [(0, MIB, "4k")]),),
        "allocations": (TableAllocation(5, True, 0), TableAllocation(9, False, 1)),
        "hook_order": ((1, 9), (2, 5)), "cr3": 0x1000,
        "tables": (TablePage(1, 9, 0x200000), TablePage(2, 5, 0)),
        "leaf_runs": ((0, MIB, 1),), "findings": ("odd",), "reserved_after": ((0, 2 * PAGE),),
        "provenance": BootProvenance("k", "q", ("-m",), "quiet", "direct", 1.5),
    }  # fmt: skip
    return BootRecord(**usual | given)


def test_a_record_as_data() -> None:
    """docs/boot-record.md; hashes are those of the kernel-oracle files."""
    assert all(field.kw_only for field in attrs.fields(BootRecord))
    told = record().to_json(tables_up_to=2)
    assert told == {
        "format": "paravirt-mm-boot-1", "release": "6.1", "levels": 4, "e820": [[0, MIB, 2]],
        "firmware_e820": [[0, MIB, 1]], "memory": [[0, MIB]], "reserved": [[0, PAGE]],
        "bottom_up": True, "kernel_end": 7, "brk_start": 5 * PAGE, "pgt_buf_pages": 6, "pse": 1,
        "gbpages": 0, "max_pfn": 8, "max_low_pfn": 9, "memory_mib": 64, "panic": None,
        "steps": [{"start": 0, "end": MIB, "ranges": [[0, MIB, "4k"]]}],
        "brk_tables": [[5 * PAGE, 6 * PAGE]], "table_count": {"L1": 1, "L2": 1, "L3": 0},
        "tables_sha256": digest(["1 9 200000", "2 5 0"]),
        "hook_order_sha256": digest(["1 9", "2 5"]), "leaf_runs": [[0, MIB, 1]],
        "findings": ["odd"], "reserved_after": [[0, 2 * PAGE]], "cr3": 0x1000,
        "provenance": {
            "kernel": "k", "qemu": "q", "qemu_arguments": ("-m",), "command_line": "quiet",
            "entry": "direct", "seconds": 1.5,
        },
        "tables": [[1, 9, 0x200000], [2, 5, 0]], "hook_order": [[1, 9], [2, 5]],
        "allocations": [[5, "brk", 0], [9, "memblock", 1]],
    }  # fmt: skip
    short = record().to_json(tables_up_to=1)
    assert told.keys() - short.keys() == {"tables", "hook_order", "allocations"}
    many = tuple(TablePage(1, n, n << 21) for n in range(401))
    assert "tables" not in record(tables=many).to_json()
    assert "tables" in record(tables=many[1:]).to_json()
    assert record(levels=5).table_count == {"L1": 1, "L2": 1, "L3": 0, "L4": 0}
