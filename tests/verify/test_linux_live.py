"""The live-kernel harness: its parts on small made-up data, its records, and real boots.

Real boots need QEMU and a kernel (``PARAVIRT_MM_LINUX``) and skip without them, saying so.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import itertools
import json
import lzma
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner

from paravirt_mm import bundled
from paravirt_mm.cli import verify_linux
from paravirt_mm.diff import Pair, compared, kinds
from paravirt_mm.errors import ExitCode
from paravirt_mm.image.walker import Cpu
from paravirt_mm.machine.paging import X86_64, X86_64_LA57
from paravirt_mm.machine.ranges import RangeSet, align_up
from paravirt_mm.verify.linux.compare import replay, upstream_release
from paravirt_mm.verify.linux.maps import builtin_maps
from paravirt_mm.verify.linux.qemu import (
    BootRecord,
    GdbError,
    GuestMap,
    Kernel,
    KernelBootError,
    KernelImageError,
    LiveUnavailableError,
    MapSpec,
    MapSpecError,
    find_kernel,
    find_kernels,
    find_qemu,
    kallsyms as kallsyms_module,
    probes,
    read_direct_map,
    record_boot,
)
from paravirt_mm.verify.linux.qemu.code import JUMP, moved
from paravirt_mm.verify.linux.qemu.gdbremote import REQUIRED_REGISTERS, GdbClient
from paravirt_mm.verify.linux.qemu.handover import identity_tables, put_kernel
from paravirt_mm.verify.linux.qemu.image import (
    LoadSegment,
    decompress_payload,
    load_segments,
    parse_setup_header,
    read_kernel,
    read_symtab,
)
from paravirt_mm.verify.linux.qemu.kallsyms import parse_kallsyms
from paravirt_mm.verify.linux.qemu.kernelmem import KernelMemory
from paravirt_mm.verify.linux.qemu.probes import Probes
from paravirt_mm.verify.linux.qemu.process import kernel_parameters
from paravirt_mm.verify.linux.qemu.ram import GuestRam, RamLayout
from paravirt_mm.verify.linux.qemu.start import SCANS
from tests.boot_records import RECORDS

MAPS = {named.name: named.spec for named in builtin_maps()}
MIB, GIB, PAGE = 1 << 20, 1 << 30, 4096
LEAF_SIZE = {"4k": PAGE, "2M": 2 * MIB, "1G": GIB}


# ---------------------------------------------------------------------------------------------
# Kernel image and symbols
# ---------------------------------------------------------------------------------------------


def bzimage(payload: bytes, *, version: int = 0x020F, claimed: int | None = None) -> bytes:
    """A bzImage with one setup sector and the payload right at the protected-mode part."""
    image = bytearray(0x1000)
    image[0x1F1] = 1
    image[0x201:0x206] = b"\x66HdrS"
    struct.pack_into("<H", image, 0x206, version)
    struct.pack_into("<H", image, 0x20E, 0x300 - 0x200)
    image[0x300:0x311] = b"6.1.0-test (me)\0\0"
    offset = 0x1000 - 2 * 512
    struct.pack_into("<II", image, 0x248, offset, len(payload) if claimed is None else claimed)
    return bytes(image) + payload


def elf(segments: list[tuple[int, int, bytes, int]]) -> bytes:
    """An x86-64 ELF of ``(vaddr, paddr, data, memory size)`` segments."""
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    headers, body = b"", b""
    start = 64 + 56 * len(segments)
    for vaddr, paddr, data, size in segments:
        place = (1, 7, start + len(body), vaddr, paddr, len(data), size, 4096)
        headers += struct.pack("<IIQQQQQQ", *place)
        body += data
    fields = (ident, 2, 62, 1, 0x1000000, 64, 0, 0, 64, 56, len(segments), 0, 0, 0)
    return struct.pack("<16sHHIQQQIHHHHHH", *fields) + headers + body


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "bzip2": bz2.compress,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "none": lambda data: data,
}


@pytest.mark.parametrize("codec", COMPRESSORS)
def test_payload_is_unpacked(codec: str) -> None:
    plain = elf([(0xFFFFFFFF81000000, 0x1000000, b"text", 4)]) + os.urandom(5000)
    # The kernel's build appends the unpacked length.
    packed = COMPRESSORS[codec](plain) + (b"" if codec == "none" else struct.pack("<I", len(plain)))
    image = bzimage(packed)
    header = parse_setup_header(image)
    assert header.release == "6.1.0-test (me)"
    assert decompress_payload(image[header.payload]) == plain


@pytest.mark.parametrize("tool", ["zstd", "lz4"])
def test_payload_of_an_external_codec(tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"the program {tool} is not installed")
    plain = b"\x7fELF" + bytes(range(256)) * 40
    command = [tool, "-c"] if tool == "zstd" else [tool, "-l", "-c"]
    packed = subprocess.run(command, input=plain, capture_output=True, check=True).stdout
    assert decompress_payload(packed + struct.pack("<I", len(plain))) == plain
    with pytest.raises(KernelImageError, match=tool):
        decompress_payload(packed + struct.pack("<I", len(plain) - 1))


@pytest.mark.parametrize("codec", ["gzip", "xz", "bzip2", "lzma"])
def test_truncated_payload_is_refused(codec: str) -> None:
    packed = COMPRESSORS[codec](os.urandom(9000))
    with pytest.raises(KernelImageError, match=r"truncated|damaged"):
        decompress_payload(packed[:4000])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"\0" * 0x2000, "HdrS"),
        (b"", "HdrS"),
        (bzimage(b"x", version=0x0207), "older"),
        (bzimage(b"x", claimed=1 << 31), "outside"),
    ],
)
def test_what_is_no_bzimage_is_refused(image: bytes, message: str) -> None:
    with pytest.raises(KernelImageError, match=message):
        parse_setup_header(image)


def test_segments_of_the_kernel() -> None:
    entry, segments = load_segments(elf([(0xFFFFFFFF81000000, 0x1000000, b"abcd", 0x3000)]))
    assert entry == 0x1000000
    assert [(s.paddr, s.end, s.data) for s in segments] == [(0x1000000, 0x1003000, b"abcd")]
    for broken in (b"", b"\x7fELF", elf([]), elf([(0, 1 << 40, b"", 4)]), elf([(0, 0, b"ab", 1)])):
        with pytest.raises(KernelImageError):
            load_segments(broken)


def test_version_of_a_vmlinux_is_the_text_that_names_the_build(tmp_path: Path) -> None:
    texts = [b"Linux version 6.1.0-5 (me) # SMP\0", b"Linux version 6.1.0-5 (me) #1 SMP x\0"]
    for banners, version in ((texts, "6.1.0-5 (me) #1 SMP x"), (texts[:1], "6.1.0-5 (me) # SMP")):
        data = b"".join(banners).ljust(0x1000, b"\0")
        (tmp_path / "vmlinux").write_bytes(elf([(0xFFFFFFFF81000000, 0x1000000, data, 0x1000)]))
        assert read_kernel(tmp_path / "vmlinux")[0].release == version


@pytest.mark.parametrize("offset", [1 << 40, (1 << 64) - 1])
def test_tables_of_an_elf_file_may_claim_to_lie_anywhere(offset: int) -> None:
    image = bytearray(elf([(0xFFFFFFFF81000000, 0x1000000, b"abcd", 4)]))
    struct.pack_into("<Q", image, 32, offset)
    struct.pack_into("<Q", image, 40, offset)
    struct.pack_into("<H", image, 60, 3)
    with pytest.raises(KernelImageError, match="program headers lie outside"):
        load_segments(bytes(image))
    with pytest.raises(KernelImageError, match="section headers lie outside"):
        read_symtab(bytes(image))


BASE = 0xFFFF_FFFF_8100_0000
SYMBOLS = [("A", "fixed_percpu", 0), ("T", "_text", BASE)] + [
    ("t", f"function_{n}" + "x" * (n % 190), BASE + 16 * n) for n in range(1, 1300)
]


def kallsyms(
    releases: str, symbols: list[tuple[str, str, int]] = SYMBOLS, pad: int = 0, tokens_end: int = 0
) -> bytes:
    """The tables as ``scripts/kallsyms.c`` of these releases lays them out, in a segment that
    begins at BASE, with tokens of one character each and ``pad`` bytes before them. All tokens
    have ``tokens_end`` bytes, if that is more than they need.
    """
    row = KALLSYMS[releases]

    def align(data: bytes) -> bytes:
        return data + b"\0" * (-len(data) % row["align"])

    tokens = [bytes([n]) if 0x21 <= n < 0x7F else b"~%d" % n for n in range(256)]
    tokens[-1] = tokens[-1].ljust(tokens_end - len(b"~".join(tokens[:-1])) - 2, b"~")
    table = b"".join(token + b"\0" for token in tokens)
    starts = itertools.accumulate([0, *(len(token) + 1 for token in tokens[:-1])])
    names, markers = bytearray(), []
    for number, (kind, name, _) in enumerate(symbols):
        if number % 256 == 0:
            markers.append(len(names))
        text = (kind + name).encode()
        short = len(text) < 128
        names += bytes([len(text)] if short else [len(text) & 0x7F | 0x80, len(text) >> 7]) + text
    parts = {
        "relative_base": struct.pack("<Q", BASE),
        "num_syms": struct.pack("<I", len(symbols)),
        "names": bytes(names),
        "markers": struct.pack(f"<{len(markers)}{row['marker']}", *markers),
        "seqs": bytes(3 * len(symbols)),
        "token_table": table,
        "token_index": struct.pack("<256H", *starts),
    }
    data = align(b"rodata before".ljust(13 + pad, b"."))
    for name in row["order"].split():
        data += align(parts[name] if name in parts else addresses(name, symbols, len(data)))
    return data


def addresses(how: str, symbols: list[tuple[str, str, int]], at: int) -> bytes:
    """The table of addresses; ``at`` is where it begins in the segment."""
    values = [address for _, _, address in symbols]
    match how:
        case "absolute":
            return struct.pack(f"<{len(values)}Q", *values)
        case "percpu":  # negative: relative; else absolute
            return struct.pack(
                f"<{len(values)}i", *(a if a < 1 << 31 else BASE - 1 - a for a in values)
            )
        case "relative":
            return struct.pack(f"<{len(values)}I", *(a - BASE for a in values))
    return struct.pack(f"<{len(values)}i", *(a - (BASE + at + 4 * n) for n, a in enumerate(values)))


KALLSYMS: dict[str, dict[str, Any]] = {
    "4.5": {
        "order": "absolute num_syms names markers token_table token_index",
        "marker": "Q",
        "align": 8,
    },
    "4.9": {
        "order": "percpu relative_base num_syms names markers token_table token_index",
        "marker": "Q",
        "align": 8,
    },
    "5.10": {
        "order": "percpu relative_base num_syms names markers token_table token_index",
        "marker": "I",
        "align": 8,
    },
    "6.2": {
        "order": "percpu relative_base num_syms names markers seqs token_table token_index",
        "marker": "I",
        "align": 8,
    },
    "6.12": {
        "order": "num_syms names markers token_table token_index percpu relative_base seqs",
        "marker": "I",
        "align": 8,
    },
    "6.15": {
        "order": "num_syms names markers token_table token_index relative relative_base seqs",
        "marker": "I",
        "align": 8,
    },
    "7.2": {
        "order": "num_syms names markers token_table token_index place seqs",
        "marker": "I",
        "align": 4,
    },
}


def symbols_of(releases: str) -> list[tuple[str, str, int]]:
    """Per-CPU variables have small addresses of their own up to 6.14."""
    has_percpu = {"absolute", "percpu"} & set(KALLSYMS[releases]["order"].split())
    return SYMBOLS if has_percpu else SYMBOLS[1:]


@pytest.mark.parametrize("pad", [0, 4, 8, 12])
@pytest.mark.parametrize("releases", KALLSYMS)
def test_kallsyms_of_each_layout(releases: str, pad: int) -> None:
    decoy = b"".join(b"%d\0" % digit for digit in range(10)).ljust(32, b"?")
    symbols = symbols_of(releases)
    found = parse_kallsyms(kallsyms(releases, symbols, pad) + decoy, BASE)
    assert found == {name: address for _, name, address in symbols}


def test_symbols_of_a_stripped_kernel_are_those_in_its_first_segment(tmp_path: Path) -> None:
    """Their places count from where that begins (since 7.2 each is relative to its own)."""
    path = tmp_path / "vmlinuz-7.2"
    tables = kallsyms("7.2", symbols_of("7.2"))
    other = (BASE + (64 << 20), 0x5000000, b"data", 8)
    segments = [(BASE, 0x1000000, tables, len(tables)), other]
    path.write_bytes(bzimage(gzip.compress(elf(segments)) + bytes(4)))
    kernel = Kernel.load(path)
    assert kernel.symbols == {name: address for _, name, address in symbols_of("7.2")}
    assert (kernel.release, kernel.version) == ("6.1.0-test", "6.1.0-test (me)")
    assert (kernel.entry, kernel.is_bzimage, kernel.path) == (0x1000000, True, path)
    banner = b"Linux version 6.1.0 (me) #1 SMP\0"
    path.write_bytes(elf([segments[0], (*other[:2], banner, len(banner))]))
    plain = Kernel.load(path)
    assert (plain.release, plain.version) == ("6.1.0", "6.1.0 (me) #1 SMP")
    assert (plain.is_bzimage, plain.symbols) == (False, kernel.symbols)
    path.write_bytes(bzimage(b"nothing"))
    with pytest.raises(KernelImageError, match=f"^{path}: "):
        Kernel.load(path)


def test_kallsyms_are_looked_for_in_32_mib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times what the largest kernel has; here in one."""
    assert kallsyms_module._MAX_TABLES == 32 * MIB
    monkeypatch.setattr(kallsyms_module, "_MAX_TABLES", MIB)
    near = kallsyms("6.2", SYMBOLS[:1200])
    count_at, table = near.index(struct.pack("<I", 1200)), near.index(b"~0\0~1\0")
    for distance, found in ((MIB, True), (MIB + KALLSYMS["6.2"]["align"], False)):
        far = near[:table] + bytes(distance - (table - count_at)) + near[table:]
        if found:
            assert parse_kallsyms(far, BASE)["_text"] == BASE
        else:
            with pytest.raises(KernelImageError, match="no kallsyms tables found"):
                parse_kallsyms(far, BASE)


def test_kallsyms_have_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel has less than 1,000 symbols, none of 2026 more than 200,000; tokens are 3 KiB."""
    assert (kallsyms_module._MAX_SYMBOLS, kallsyms_module._MAX_NAMES_READ) == (2_000_000, 1 << 23)
    few = [("t", "_text", BASE), *(("t", f"f{n}", BASE + n) for n in range(1000))]

    def wrong(count: int = 1000, **given: Any) -> str:
        try:
            parse_kallsyms(kallsyms("6.12", few[:count], **given), BASE)
        except KernelImageError as error:
            return str(error)
        return ""

    none = "no kallsyms tables found"
    assert wrong() == wrong(tokens_end=1 << 14) == ""
    assert wrong(tokens_end=(1 << 14) + 1).startswith(none)
    assert wrong(999).startswith(none)
    for name, least, told in (
        ("_MAX_SYMBOLS", 1000, none),
        # Numbers are tried from the last to the first: the right one comes first here.
        ("_MAX_NAMES_READ", 1 + 1000, "what looks like kallsyms tables has no end"),
    ):
        monkeypatch.setattr(kallsyms_module, name, least)
        assert wrong() == ""
        monkeypatch.setattr(kallsyms_module, name, least - 1)
        assert wrong().startswith(told)
        monkeypatch.undo()


@pytest.mark.parametrize("releases", KALLSYMS)
def test_damaged_kallsyms_are_refused(releases: str) -> None:
    data = kallsyms(releases, symbols_of(releases))
    length = data.index(b"tfunction_700x") - 1
    for broken in (
        b"",
        data[: len(data) // 3],
        data[:length] + b"\x7f" + data[length + 1 :],
    ):
        with pytest.raises(KernelImageError, match="kallsyms"):
            parse_kallsyms(broken, BASE)
    block = sum(len(kind + name) + 1 + (len(kind + name) > 127) for kind, name, _ in
                symbols_of(releases)[:256])  # fmt: skip
    marker = struct.pack(f"<2{KALLSYMS[releases]['marker']}", 0, block)
    with pytest.raises(KernelImageError, match="kallsyms"):
        parse_kallsyms(data.replace(marker, b"\1" + marker[1:]), BASE)
    if "place" not in KALLSYMS[releases]["order"]:  # that one is right wherever it is loaded
        with pytest.raises(KernelImageError, match="kallsyms"):
            parse_kallsyms(data, BASE + 0x1000)
    if "relative_base" in KALLSYMS[releases]["order"]:
        base = struct.pack("<Q", BASE)
        for broken in (data.replace(base, bytes(8)), data[: data.rindex(base) + 7]):
            with pytest.raises(KernelImageError, match="kallsyms"):
                parse_kallsyms(broken, BASE)


def test_kernel_is_found_or_what_to_do_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PARAVIRT_MM_LINUX", raising=False)
    with pytest.raises(LiveUnavailableError, match="fetch-linux"):
        find_kernel()
    with pytest.raises(LiveUnavailableError, match="no vmlinuz"):
        find_kernel(tmp_path)
    for release in ("6.1.0-9", "6.1.0-10", "5.10.0-99"):
        (tmp_path / f"linux-image-{release}" / "boot").mkdir(parents=True)
        (tmp_path / f"linux-image-{release}" / "boot" / f"vmlinuz-{release}").touch()
    assert find_kernel(tmp_path).name == "vmlinuz-6.1.0-10"
    monkeypatch.setenv("PARAVIRT_MM_LINUX", str(tmp_path / "linux-image-5.10.0-99"))
    assert find_kernel().name == "vmlinuz-5.10.0-99"
    with pytest.raises(KernelImageError, match="cannot be a kernel"):
        Kernel.load(find_kernel())


# ---------------------------------------------------------------------------------------------
# gdb remote protocol
# ---------------------------------------------------------------------------------------------

NAMES = [*dict.fromkeys(["rax", "rbx", *REQUIRED_REGISTERS])]
DESCRIPTION = "<!-- <reg name='no' bitsize='64'/>\n<reg name=\"no\" bitsize=\"64\"/> -->" + "".join(
    f'<reg name="{name}" bitsize="{32 if name == "cs" else 64}"/>' for name in NAMES
)


class Stub:
    """The other end of a connection: answers from a table, and remembers what was asked."""

    includes = '<xi:include href="core.xml"/>'

    def __init__(self, answers: dict[str, bytes]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.ours, self._theirs = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def client(self, seconds: float = 5.0) -> GdbClient:
        return GdbClient(self.ours, time.monotonic() + seconds)

    def close(self) -> None:
        self.ours.close()
        self._thread.join(5)
        self._theirs.close()

    def _serve(self) -> None:
        data = b""
        while chunk := self._receive():
            data = (data + chunk).lstrip(b"+")
            while b"#" in data[:-2]:
                packet, _, rest = data.partition(b"#")
                assert int(rest[:2], 16) == sum(packet[1:]) & 0xFF
                data = rest[2:].lstrip(b"+")
                self.asked.append(packet[1:].decode())
                try:
                    self._theirs.sendall(self._answer(self.asked[-1]))
                except OSError:  # the client has hung up on us
                    return

    def _receive(self) -> bytes:
        try:
            return self._theirs.recv(4096)
        except OSError:
            return b""

    def _answer(self, command: str) -> bytes:
        if command.startswith("qXfer"):
            name, place = command.split(":")[3:5]
            text = DESCRIPTION if name == "core.xml" else self.includes
            start, size = (int(number, 16) for number in place.split(","))
            piece = text[start : start + min(size, 100)]
            last = start + len(piece) >= len(text)
            return self.packet(("l" if last else "m") + piece)
        return self.answers.get(command, self.packet("OK"))

    @staticmethod
    def packet(text: str) -> bytes:
        return b"+$%s#%02x" % (text.encode(), sum(text.encode()) & 0xFF)


@pytest.fixture
def stub() -> Iterator[Callable[..., Stub]]:
    made: list[Stub] = []

    def make(**answers: bytes) -> Stub:
        made.append(Stub(answers))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_gdb_registers_are_found_by_the_stubs_description(stub: Callable[..., Stub]) -> None:
    values = {name: 0x1111 * (number + 1) for number, name in enumerate(NAMES)}
    packet = b"".join(values[n].to_bytes(4 if n == "cs" else 8, "little") for n in NAMES)
    server = stub(g=Stub.packet(packet.hex()), p0=Stub.packet("2a00000000000000"))
    client = server.client()
    general = ("rax", "rcx", "rdx", "rsi", "rdi", "rsp", "rip")
    assert client.registers() == {n: values[n] for n in general}
    assert client.read_register("rax") == 42
    client.write_register("cs", 0x10)
    client.insert_breakpoint(BASE)
    number = NAMES.index("cs")
    assert server.asked[-2:] == [f"P{number:x}=10000000", "Z1,ffffffff81000000,1"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Stub.packet("E22"), "refused"),
        (Stub.packet(""), "refused"),
        (b"+$OK#00", "checksum"),
        (b"+$OK#zz", "checksum"),
        (b"-", "acknowledge"),
        (b"+!", "no packet"),
        (b"+$" + b"A" * (1 << 17), "more than"),
        (b"", "within the time"),
    ],
)
def test_gdb_nonsense_is_refused(stub: Callable[..., Stub], answer: bytes, message: str) -> None:
    client = stub(**{"Z1,0,1": answer}).client(5 if answer else 0.1)
    with pytest.raises(GdbError, match=message):
        client.insert_breakpoint(0)


def test_gdb_monitor_is_read_to_its_end(stub: Callable[..., Stub]) -> None:
    text = Stub.packet("O" + b"TR =0000 ".hex()) + Stub.packet("O" + b"00\n".hex())[1:]
    question = "qRcmd," + b"info registers".hex()
    client = stub(**{question: text + Stub.packet("OK")[1:]}).client()
    assert client.monitor("info registers") == "TR =0000 00\n"
    for answer, message in ((Stub.packet("E22"), "refused"), (Stub.packet("Oxy"), "no text")):
        with pytest.raises(GdbError, match=message):
            stub(**{question: answer}).client().monitor("info registers")


def test_gdb_stops_are_told_from_other_answers(stub: Callable[..., Stub]) -> None:
    """S05 and T05: a breakpoint. Nothing else is one."""
    server = stub(c=Stub.packet("S05"), s=Stub.packet("T05thread:01;"))
    client = server.client()
    client.resume()
    client.step()
    assert server.asked[-2:] == ["c", "s"]
    long = "S11" + "x" * 200
    with pytest.raises(GdbError, match=r"breakpoint: 'S11x{77}'$"):
        stub(c=Stub.packet(long)).client().resume()
    for name in ("g", "p0"):
        client = stub(**{name: Stub.packet("xy")}).client()
        with pytest.raises(GdbError, match="sent no"):
            client.registers() if name == "g" else client.read_register("rax")


def test_gdb_end_of_the_machine_is_told(stub: Callable[..., Stub]) -> None:
    server = stub(c=Stub.packet("W00"))
    client = server.client()
    with pytest.raises(GdbError, match="triple fault"):
        client.resume()
    server._theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(GdbError, match=r"^QEMU closed its gdb connection$"):
        client.resume()


def test_gdb_answers_have_bounds(
    stub: Callable[..., Stub], monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 parts of a description, 64 KiB of a monitor's text; nothing is sent for ever."""
    monkeypatch.setattr(Stub, "includes", 20 * Stub.includes)
    server = stub()
    client = server.client()
    assert sum("core.xml:0," in asked for asked in server.asked) == 16

    def monitor(*sizes: int) -> str:
        answers = iter([*("O" + "61" * size for size in sizes), "OK"])
        monkeypatch.setattr(client, "command", lambda _: next(answers))
        monkeypatch.setattr(client, "_read_packet", lambda: next(answers))
        return client.monitor("info")

    assert monitor((1 << 16) - 1, 1) == "a" * (1 << 16)
    with pytest.raises(GdbError, match="refused 'info': 'O61'"):
        monitor(1 << 16, 1)
    client._deadline = time.monotonic() + 0.05
    server._theirs.close()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        client._socket = ours
        with pytest.raises(GdbError, match="within the time allowed"):
            client._send(bytes(1 << 22))


# ---------------------------------------------------------------------------------------------
# Guest memory, hand-over, kernel variables
# ---------------------------------------------------------------------------------------------


def test_guest_memory_has_the_gap_below_4_gib(tmp_path: Path) -> None:
    layout = RamLayout(3 * GIB, GIB)
    with GuestRam(layout) as ram:
        ram.write(3 * GIB - 4, b"low!")
        ram.write(4 * GIB, b"high")
        assert (ram.read(3 * GIB - 4, 4), ram.read(4 * GIB, 4)) == (b"low!", b"high")
        for address, size in ((3 * GIB - 4, 8), (3 * GIB, 1), (5 * GIB, 1), (-8, 4)):
            with pytest.raises(KernelBootError, match="no RAM"):
                ram.read(address, size)
        with pytest.raises(MapSpecError, match="no RAM"):
            ram.write(4 * GIB - 2, b"four")
        ram.write(0, b"first")
        ram.dump(tmp_path / "dump")
    with (tmp_path / "dump").open("rb") as dump:
        assert os.fstat(dump.fileno()).st_size == 5 * GIB
        assert os.fstat(dump.fileno()).st_blocks * 512 < MIB
        assert os.pread(dump.fileno(), 5, 0) == b"first"
        assert os.pread(dump.fileno(), 4, 3 * GIB - 4) == b"low!"
        assert os.pread(dump.fileno(), 4, 4 * GIB) == b"high"
        assert os.pread(dump.fileno(), 4, 3 * GIB) == bytes(4)


def translate(tables: bytes, base: int, levels: int, address: int) -> int | None:
    """Another walker, of one address at a time."""
    table = base
    for level in range(levels, 0, -1):
        slot = address >> (12 + 9 * (level - 1)) & 511
        (entry,) = struct.unpack_from("<Q", tables, table - base + 8 * slot)
        if not entry & 1:
            return None
        if entry & 0x80:
            size = 1 << (12 + 9 * (level - 1))
            return int(entry & 0xFFFFFFFFFF000) // size * size + address % size
        table = entry & 0xFFFFFFFFFF000
    raise AssertionError("no large page met")


def setup_data(ram: GuestRam) -> dict[int, tuple[int, int]]:
    """What a kernel reserves for the chain that ``boot_params`` leads to: nodes, and what they
    point at.
    """
    found = {}
    (node,) = struct.unpack("<Q", ram.read(0x1250, 8))
    while node:
        following, kind, size = struct.unpack("<QII", ram.read(node, 16))
        found[node] = (node, node + 16 + size)
        if kind == 1 << 31:
            nothing, zero, length, start = struct.unpack("<IIQQ", ram.read(node + 16, 24))
            assert (nothing, zero) == (0, 0)
            found[node] = (start, start + length)
        node = following
    return found


@pytest.mark.parametrize("release", ["5.4.1", "5.5"])
def test_reservations_are_handed_over(release: str) -> None:
    """Inside the kernel's image is no place for a node: it is elsewhere, and points there."""
    segment = LoadSegment(0xFFFFFFFF81000000, 16 * MIB, b"text", 4 * MIB)
    kernel = Kernel(Path("vmlinuz"), bytes(0x70), release, release, 16 * MIB, (segment,), {})
    beside, inside = (8 * MIB, 17 * MIB), (18 * MIB, 64 * MIB)
    end = (5 * GIB - PAGE, 5 * GIB)
    ram = [(0, 0x9F000), (MIB, 3 * GIB), (4 * GIB, 5 * GIB)]
    spec = MapSpec(ram=ram, reserved=[beside, inside], initrd=end)
    with GuestRam(spec.layout) as memory:
        if release == "5.4.1":
            with pytest.raises(MapSpecError, match="in use"):
                put_kernel(memory, kernel, spec, "")
            return
        put_kernel(memory, kernel, spec, "")
        chain = setup_data(memory)
        low, high = struct.unpack("<2I", memory.read(0x10C0, 8)), memory.read(0x1218, 8)
    assert set(chain.values()) == {beside, inside}
    assert all(node == beside[0] or 0x3000 < node < 0x10000 for node in chain)
    assert struct.unpack("<2I", high) == (end[0] & 0xFFFFFFFF, PAGE)
    assert low == (1, 0)


def test_too_many_reservations_inside_the_kernel_are_refused() -> None:
    segment = LoadSegment(0xFFFFFFFF81000000, 16 * MIB, b"text", 16 * MIB)
    kernel = Kernel(Path("vmlinuz"), bytes(0x70), "6.1", "6.1", 16 * MIB, (segment,), {})
    pages = range(16 * MIB, 24 * MIB, 2 * PAGE)
    spec = MapSpec(ram=RAM, reserved=[(page, page + PAGE) for page in pages])
    with GuestRam(spec.layout) as ram, pytest.raises(MapSpecError, match="too many"):
        put_kernel(ram, kernel, spec, "")
    # Eight tables, two of them for heads above 4 GiB, end at 0xb000: up to the 64 KiB that Linux
    # keeps to itself there are 512 nodes of 40 bytes.
    high = [(n * GIB, n * GIB + PAGE) for n in (5, 6)]
    inside = [(page, page + PAGE) for page in pages]
    ranges = [*RAM, (4 * GIB, 8 * GIB)]
    fits = MapSpec(ram=ranges, reserved=[*inside[:512], *high])
    with GuestRam(fits.layout) as ram:
        put_kernel(ram, kernel, fits, "")
        assert sorted(setup_data(ram).values()) == [*inside[:512], *high]
    more = MapSpec(ram=ranges, reserved=[*inside[:513], *high])
    with GuestRam(more.layout) as ram, pytest.raises(MapSpecError, match="too many"):
        put_kernel(ram, kernel, more, "")


@pytest.mark.parametrize("levels", [4, 5])
def test_boot_tables_map_identity(levels: int) -> None:
    heads = [40 * GIB + 5, 700 * GIB, 3 << 48]
    if levels == 4:
        heads.pop()
    tables = identity_tables(levels, heads)
    # Root, L4 and L3 tables on the way, four L2 and one more for each head.
    assert len(tables) == PAGE * {4: 1 + 2 + 4 + 2, 5: 1 + 2 + 3 + 4 + 3}[levels]
    for address in (0, 0x1234567, 4 * GIB - 1, *heads, 41 * GIB - 1):
        assert translate(tables, 0x3000, levels, address) == address
    assert translate(tables, 0x3000, levels, 4 * GIB) is None
    # There is room for 125 tables up to 512 KiB: four L2 and those on the way are always there.
    most = 125 - 4 - levels + 2
    assert len(identity_tables(levels, [(4 + n) * GIB for n in range(most)])) == 125 * PAGE
    with pytest.raises(MapSpecError, match="different GiB"):
        identity_tables(levels, [(4 + n) * GIB for n in range(most + 1)])


def test_kernel_variables_are_read_and_bounded() -> None:
    at = 0x100000
    kernel_map = 0xFFFFFFFF80000000
    symbols = {"memblock": kernel_map + at, "e820_table": kernel_map + at + 0x200}
    symbols["page_offset_base"] = kernel_map + at + 0x300
    with GuestRam(RamLayout(4 * MIB)) as ram:
        memory = KernelMemory(ram, symbols)
        page_offset = 0xFFFF888000000000
        ram.write(at + 0x300, struct.pack("<Q", page_offset))
        lists = struct.pack("<5Q", 3, 128, 0, page_offset + 0x2000, 0)
        lists += struct.pack("<5Q", 1, 128, 0, kernel_map + 0x3000, 0)
        ram.write(at, struct.pack("<B7xQ", 1, 1 << 63) + lists)
        # Neighbours of different nodes are one range to us.
        regions = [(0x1000, 0x1000, 0), (0x2000, 0x3000, 1 << 32), (0x9000, 0x1000, 0)]
        ram.write(0x2000, b"".join(struct.pack("<3Q", *region) for region in regions))
        ram.write(0x3000, struct.pack("<3Q", 0, 0, 0))
        state = memory.memblock()
        assert state.bottom_up
        assert state.memory == ((0x1000, 0x5000), (0x9000, 0xA000))
        assert state.reserved == ()

        ram.write(at + 0x200, struct.pack("<Q", kernel_map + 0x4000))
        entries = [(0, 0x1000, 2), (0x1000, 0x1000, 1), (0x2000, 0x10, 128), (0x2010, 0xFF0, 1)]
        packed = b"".join(struct.pack("<QQI", *entry) for entry in entries)
        ram.write(0x4000, struct.pack("<I", len(entries)) + packed)
        assert memory.e820() == ((0, 0x1000, 2), (0x1000, 0x3000, 1))

        ram.write(0x4000, struct.pack("<IQQI", 1, 0x1001, 0x1000, 2))
        assert memory.e820() == ((0x1001, 0x2001, 2),)
        ram.write(0x4000, struct.pack("<I", 1 << 24))
        with pytest.raises(KernelBootError, match="16777216 entries"):
            memory.e820()
        most = 1 << 16
        ram.write(0x4000, struct.pack("<I", most))
        assert len(memory.e820()) > 1
        ram.write(0x4000, struct.pack("<I", most + 1))
        with pytest.raises(KernelBootError, match="65537 entries"):
            memory.e820()
        ram.write(at + 16, struct.pack("<Q", most))
        assert memory.memblock().memory
        ram.write(at + 16, struct.pack("<Q", most + 1))
        with pytest.raises(KernelBootError, match="65537 regions"):
            memory.memblock()
        for address in (0, page_offset + 8 * MIB, (1 << 64) - 1):
            with pytest.raises(KernelBootError):
                memory.number_at(address)


RAM = [(0, 0x9F000), (MIB, GIB)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ram": []}, "at least one"),
        ({"ram": [(5, 5)]}, "empty"),
        ({"ram": [(0, 2000 * GIB)]}, "above 1000 GiB"),
        ({"ram": RAM, "levels": 3}, "levels"),
        ({"ram": RAM, "pse": False, "gbpages": True}, "1 GiB pages"),
        ({"ram": RAM, "entry": "firmware", "reserved": [(MIB, 2 * MIB)]}, "entry='direct'"),
        ({"ram": [(n * MIB, n * MIB + 1) for n in range(129)]}, "128"),
        ({"ram": RAM, "command_line": "a\nb"}, "printable"),
    ],
)
def test_maps_that_cannot_be_booted_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(MapSpecError, match=message):
        MapSpec(**wrong)


def test_ram_of_the_machine_covers_the_map() -> None:
    def layout(*ram: tuple[int, int]) -> tuple[int, int]:
        found = MapSpec(ram=ram).layout
        return found.below_4g, found.above_4g

    assert layout((0, GIB + 1)) == (GIB + MIB, 0)
    assert layout((0, 4 * GIB - 5 * MIB)) == (4 * GIB - 5 * MIB, 0)
    assert layout((0, 4 * GIB)) == (3 * GIB, GIB)
    assert layout((0, GIB), (6 * GIB, 7 * GIB)) == (3 * GIB, 3 * GIB)
    assert layout((0, GIB), (2 * GIB, 4 * GIB - MIB - 1)) == (4 * GIB - MIB, 0)
    assert layout((0, GIB), (2 * GIB, 4 * GIB - MIB + 1)) == (3 * GIB, GIB)
    assert layout((5 * GIB, 6 * GIB)) == (3 * GIB, 2 * GIB)
    assert MapSpec(ram=RAM, memory_mib=4095).layout == RamLayout(4 * GIB - MIB)
    assert MapSpec(ram=RAM, memory_mib=4096).layout == RamLayout(3 * GIB, GIB)
    assert MapSpec(ram=RAM, memory_mib=6144).layout == RamLayout(3 * GIB, 3 * GIB)
    with pytest.raises(MapSpecError, match="memory_mib"):
        _ = MapSpec(ram=RAM, memory_mib=0).layout


def test_firmware_map_becomes_parameters() -> None:
    spec = MapSpec(ram=RAM, other=[(GIB, GIB + MIB, 3), (0xF0000, MIB, 2)], entry="firmware")
    assert kernel_parameters(spec).split()[2:] == [
        "memmap=exactmap",
        "memmap=0x9f000@0x0",
        "memmap=0x10000$0xf0000",
        "memmap=0x3ff00000@0x100000",
        "memmap=0x100000#0x40000000",
    ]


# ---------------------------------------------------------------------------------------------
# The walker
# ---------------------------------------------------------------------------------------------

PAGE_OFFSET = 0xFFFF888000000000
DIRECT_END = 0xFFFFC88000000000


class Tree:
    """Tables in a dictionary, built entry by entry."""

    def __init__(self, levels: int = 4, page_offset: int = PAGE_OFFSET) -> None:
        self.levels, self.page_offset = levels, page_offset
        self.pages: dict[int, bytearray] = {0x1000: bytearray(PAGE)}
        self.next = 0x2000

    def slot(self, level: int, offset: int) -> tuple[bytearray, int]:
        """Page and byte offset of the entry of ``level`` for an offset in the direct map."""
        va = self.page_offset + offset
        table = 0x1000
        for at in range(self.levels, level, -1):
            place = 8 * (va >> (12 + 9 * (at - 1)) & 511)
            (entry,) = struct.unpack_from("<Q", self.pages[table], place)
            if not entry:
                entry = self.next | 0x63
                struct.pack_into("<Q", self.pages[table], place, entry)
                self.pages[self.next] = bytearray(PAGE)
                self.next += PAGE
            table = entry & ~0xFFF
        return self.pages[table], 8 * (va >> (12 + 9 * (level - 1)) & 511)

    def map(self, level: int, offset: int, entry: int) -> None:
        page, place = self.slot(level, offset)
        struct.pack_into("<Q", page, place, entry)

    def read(self, address: int, size: int) -> bytes | None:
        pages = [self.pages.get(at) for at in range(address, address + size, PAGE)]
        return None if None in pages else b"".join(bytes(page) for page in pages if page)

    def walk(self, end: int = DIRECT_END) -> GuestMap:
        mode = X86_64_LA57 if self.levels == 5 else X86_64
        return read_direct_map(self, 0x1000, mode, (self.page_offset, end), Cpu())


@pytest.mark.parametrize(("levels", "base"), [(4, PAGE_OFFSET), (5, 0xFF11000000000000)])
def test_walker_lists_tables_and_runs(levels: int, base: int) -> None:
    tree = Tree(levels, base)
    nx, pat = 1 << 63, 1 << 12
    for page in (1, 2, 3, 5):
        tree.map(1, page * PAGE, page * PAGE | nx | 0x163)
    for large in (1, 2, 511, 512):  # across a table's end
        tree.map(2, large * 2 * MIB, large * 2 * MIB | nx | 0x1E3 | pat)
    tree.map(3, 2 * GIB, 2 * GIB | nx | 0x1E3)
    tree.map(3, 512 * GIB, 512 * GIB | nx | 0x1E3)
    found = tree.walk(base + (64 << 40))
    assert found.findings == ()
    assert found.leaf_runs == (
        (0x1000, 0x4000, 1),
        (0x5000, 0x6000, 1),
        (2 * MIB, 6 * MIB, 2),
        (GIB - 2 * MIB, GIB + 2 * MIB, 2),
        (2 * GIB, 3 * GIB, 3),
        (512 * GIB, 513 * GIB, 3),
    )
    assert [(t.level, t.va) for t in found.tables] == [
        (1, 0),
        (2, 0),
        (2, GIB),
        (3, 0),
        (3, 512 * GIB),
        *([(4, 0)] if levels == 5 else []),
    ]


def test_walker_stays_inside_the_direct_map() -> None:
    tree = Tree()
    tree.map(2, 0, 0x1E3)
    kernel = Tree(page_offset=0xFFFFFFFF80000000)
    kernel.pages = tree.pages
    kernel.next = tree.next
    kernel.map(2, 0, 0x1000000 | 0x1E3)
    assert tree.walk().leaf_runs == ((0, 2 * MIB, 2),)
    assert tree.walk().findings == ()


def test_walker_reports_damage() -> None:
    tree = Tree()
    tree.map(1, 0x5000, 0x6000 | 0x163)  # not identity
    tree.map(2, 4 * MIB, 0x1000 | 0x63)  # leads back to the root
    tree.map(2, 6 * MIB, 0xDEAD000 | 0x63)  # not in memory
    tree.map(3, 1 * GIB, 0x3000 | 0x63)  # a table met before
    tree.map(1, 0x9000, 0x9000 | 0x163)
    found = tree.walk()
    assert (0x9000, 0xA000, 1) in found.leaf_runs
    assert not any(start <= 0x5000 < end for start, end, _ in found.leaf_runs)
    for what in ("own path", "not in memory", "maps 0x6000", "another leads to as well"):
        assert any(what in text for text in found.findings), what


# ---------------------------------------------------------------------------------------------
# Records of real kernels
# ---------------------------------------------------------------------------------------------


def check_record(record: dict[str, Any]) -> None:
    """What holds for any kernel, whatever the allocator: the record agrees with itself."""
    assert record["findings"] == []
    in_ram = [tuple(piece) for piece in record["memory"]]
    reserved = [tuple(piece) for piece in record["reserved_after"]]
    brk_end = record["brk_start"] + record["pgt_buf_pages"] * PAGE
    digest = "\n".join(f"{level} {pfn:x} {va:x}" for level, pfn, va in record["tables"])
    assert hashlib.sha256(digest.encode()).hexdigest() == record["tables_sha256"]
    pages = [pfn for _, pfn, _ in record["tables"]]
    assert sorted(pages) == sorted(pfn for pfn, _, _ in record["allocations"])
    assert len(set(pages)) == len(pages)
    for level, pfn, va in record["tables"]:
        assert va % (1 << (12 + 9 * level)) == 0
        assert any(start <= pfn * PAGE < end for start, end in in_ram)
        assert any(start <= pfn * PAGE < end for start, end in reserved)
    order = [step for _, _, step in record["allocations"]]
    assert order == sorted(order)
    assert set(order) <= set(range(len(record["steps"])))
    for pfn, source, _ in record["allocations"]:
        assert (source == "brk") == (record["brk_start"] <= pfn * PAGE < brk_end)
    levels = {pfn: level for level, pfn, _ in record["tables"]}
    assert sorted(record["hook_order"]) == sorted([levels[pfn], pfn] for pfn in pages)
    for step in record["steps"]:
        edges = [step["start"], *(end for _, end, _ in step["ranges"])]
        assert edges[-1] == step["end"]
        for (start, end, size), expected in zip(step["ranges"], edges, strict=False):
            assert start == expected < end
            assert size == "4k" or record["pse"]
            assert size != "1G" or record["gbpages"]


def covered(record: dict[str, Any]) -> bool:
    """Whether every page of RAM is mapped."""
    return all(
        any(start <= first and last <= end for start, end in union(record["leaf_runs"]))
        for first, last in record["memory"]
    )


def union(runs: list[list[int]]) -> list[list[int]]:
    merged: list[list[int]] = []
    for start, end, _level in sorted(runs):
        if merged and merged[-1][1] == start:
            merged[-1][1] = end
        else:
            merged.append([start, end])
    return merged


@pytest.mark.parametrize("name", RECORDS)
def test_record_agrees_with_itself(name: str) -> None:
    record = RECORDS[name]
    check_record(record)
    assert covered(record) == (record["panic"] is None)
    assert {"kernel", "qemu", "command_line", "qemu_arguments"} <= record["provenance"].keys()


def test_records_cover_what_they_should() -> None:
    releases = {record["release"].split("-")[0].rsplit(".", 1)[0] for record in RECORDS.values()}
    assert {"5.10", "6.1", "6.12"} <= releases
    for release in {record["release"] for record in RECORDS.values()}:
        mine = [record for record in RECORDS.values() if record["release"] == release]
        sizes = {size for r in mine for s in r["steps"] for _, _, size in s["ranges"]}
        assert sizes == {"4k", "2M", "1G"}
        assert any(not record["pse"] for record in mine)
        assert any(record["max_pfn"] > 4 * GIB // PAGE for record in mine)
        assert any(record["bottom_up"] for record in mine)
        assert any(record["panic"] for record in mine)
        assert any(len(record["tables"]) > record["pgt_buf_pages"] for record in mine)
    assert {record["levels"] for record in RECORDS.values()} == {4, 5}


# ---------------------------------------------------------------------------------------------
# Real boots
# ---------------------------------------------------------------------------------------------


def images() -> list[Path | None]:
    """Every kernel that is there; None: none, so the tests skip and say why."""
    try:
        return [*find_kernels()]
    except LiveUnavailableError:
        return [None]


@pytest.fixture(scope="session", params=images(), ids=lambda path: path.name if path else "none")
def kernel(request: pytest.FixtureRequest) -> Kernel:
    try:
        find_qemu()
        return Kernel.load(request.param or find_kernel())
    except LiveUnavailableError as error:
        pytest.skip(str(error))


def comparable(record: dict[str, Any]) -> dict[str, Any]:
    """A record without what differs from boot to boot or with QEMU's version."""
    plain = json.loads(json.dumps(record))
    return {key: plain[key] for key in plain if key not in ("id", "provenance")}


def children() -> set[int]:
    listing = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()
    return {int(pid) for pid in listing.split()}


def other_pages(record: BootRecord) -> list[int]:
    """Pages that became tables, brk apart."""
    return [page.pfn for page in record.allocations if not page.from_brk]


@pytest.mark.slow
def test_live_boot(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    before = children()
    spec = MapSpec(ram=[(0, 0x9FC00), (MIB, 96 * MIB)], pse=False)
    record = record_boot(spec, kernel)
    assert record.panic is None
    assert record.table_count["L1"] == 48
    assert covered(record.to_json())
    check_record(record.to_json())
    assert children() == before
    start, end = kernel.physical_range
    inside, last = (end - MIB, end + MIB), (96 * MIB - PAGE, 96 * MIB)
    taken = attrs.evolve(spec, reserved=[inside], initrd=last)
    other = record_boot(taken, kernel)
    assert RangeSet(other.reserved).covers(*inside)
    assert RangeSet(other.reserved).covers(*last)
    assert not RangeSet(other.reserved).overlaps(end + MIB, last[0])
    assert (other.memory, other.max_pfn) == (record.memory, record.max_pfn)
    assert all(low * PAGE < start or low * PAGE >= inside[1] for low in other_pages(other))
    monkeypatch.setattr(Probes, "put", lambda *_: None)  # as for code that is not understood
    assert comparable(record_boot(spec, kernel).to_json()) == comparable(record.to_json())


@pytest.mark.slow
def test_live_list_of_events_may_be_small(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read whenever it is full, and the guest's memory is left as it was."""
    spec = MapSpec(ram=[(0, 0x9FC00), (MIB, 96 * MIB)], pse=False)
    record = record_boot(spec, kernel)
    monkeypatch.setattr(probes, "_LARGEST", 2 * PAGE)
    monkeypatch.setattr(probes, "_SMALLEST", 2 * PAGE)
    assert comparable(record_boot(spec, kernel).to_json()) == comparable(record.to_json())


@pytest.mark.slow
def test_live_boot_goes_on_from_a_start(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """No record tells how its boot began; where a kernel has not seen the map, it boots anew."""
    plain = MapSpec(ram=[(0, 0x9FC00), (MIB, 96 * MIB)], gbpages=True)
    spec = MapSpec(
        ram=[(0, 0x9FC00), (MIB, 96 * MIB), (4 * GIB, 6 * GIB)],
        reserved=[(0x5800000, 0x5900000), (5 * GIB, 5 * GIB + 999)],
        gbpages=True,
    )
    kernel.starts.clear()
    whole = comparable(record_boot(spec, kernel).to_json())
    (start,) = kernel.starts.values()
    assert start.pages
    assert bool(start.skipped) == any(name in kernel.symbols for name in SCANS)
    assert comparable(record_boot(spec, kernel).to_json()) == whole
    kernel.starts.clear()
    record_boot(plain, kernel)
    assert comparable(record_boot(spec, kernel).to_json()) == whole
    monkeypatch.setattr("paravirt_mm.verify.linux.qemu.start.MAP_FIELDS", ())
    assert comparable(record_boot(spec, kernel).to_json()) == whole
    assert [*kernel.starts.values()] == [None]
    (key,) = kernel.starts
    kernel.starts[key] = attrs.evolve(start, registers={**start.registers, "cs": 0xF0})
    assert comparable(record_boot(spec, kernel).to_json()) == whole
    assert [*kernel.starts.values()] == [None]
    kernel.starts.clear()


CODES = {
    # How functions begin, and what is moved of it: (offset of the jump, what stays, moved)
    "call of fentry": ("e8 fb 0f 00 00 41 57", (0, 5, "")),
    "endbr64 and call of fentry": ("f3 0f 1e fa e8 f7 0f 00 00 41 56", (4, 9, "")),
    "nop": ("f3 0f 1e fa 0f 1f 44 00 00 41 56", (4, 9, "")),
    "pushes": ("55 48 89 e5 41 56 41 55", (0, 6, "55 48 89 e5 41 56")),
    "a number, then a jump": ("41 b8 01 00 00 00 e9 06 fd ff ff", (0, 6, "41 b8 01 00 00 00")),
    "registers": ("89 f8 89 d1 48 83 ec 08 c3", (0, 8, "89 f8 89 d1 48 83 ec 08")),
    "numbers": ("b9 01 00 00 00 c3", (0, 5, "b9 01 00 00 00")),
    "wide registers": ("49 89 f8 41 89 d1 c3", (0, 6, "49 89 f8 41 89 d1")),
    "a push and a nop": ("55 0f 1f 44 00 00 c3", (0, 6, "55")),
    "a jump": ("e9 fb 00 00 00 cc cc", (0, 5, "e9 fb f0 ff ff")),
    "a jump back": ("e9 fb fd ff ff cc cc", (0, 5, "e9 fb ed ff ff")),
    "a call of something else": ("e8 fb 0e 00 00 41 57", None),
    "a variable": ("8b 1d fb 96 20 00 55", None),
    "a return": ("c3 cc cc cc cc cc cc", None),
    "cut": ("41 57 41", None),
}


@pytest.mark.parametrize("name", CODES)
def test_beginning_of_a_function_is_moved(name: str) -> None:
    code, expected = CODES[name]
    found = moved(bytes.fromhex(code), 0x1000, 0x2000, 0x2000)
    assert (found and (*found[:2], found[2].hex(" "))) == expected


def test_instructions_that_are_moved_are_those_of_the_manual() -> None:
    """SDM volume 2: push (50+r, with REX.B up to r15), mov between registers (89 /r, mod 3, of 32
    bits and 64), and what takes a number. Of others nobody knows what they do elsewhere.
    """

    def length(*code: int) -> int:
        whole = bytes(code) + bytes.fromhex("0f 1f 44 00 00")
        found = moved(whole, 0x1000, 0x2000, None)
        if found is None or code[0] == JUMP:
            return 0
        assert whole.startswith(found[2])
        return len(found[2])

    pushes = {*range(0x50, 0x58)}
    assert {byte for byte in range(256) if length(byte)} == {*pushes, 0xB9}
    assert length(0xB9, 1, 2, 3, 4) == 5
    assert {byte for byte in range(256) if length(0x41, byte)} == {*pushes, 0xB8}
    assert length(0x41, 0xB8, 1, 2, 3, 4) == 6
    assert length(0x48, 0x83, 0xEC, 8) == 4
    assert {byte for byte in range(256) if length(0x89, byte)} == {*range(0xC0, 0x100)}
    for byte in (0xBF, 0xC0, 0xFF):
        three = {first for first in range(256) if length(first, 0x89, byte) == 3}
        assert three == (set() if byte < 0xC0 else {*pushes, 0x41, 0x44, 0x48, 0x49})


@pytest.mark.slow
@pytest.mark.parametrize("name", MAPS)
def test_live_boot_is_as_recorded_and_as_the_model_says(kernel: Kernel, name: str) -> None:
    spec = MAPS[name]
    if spec.levels == 5 and not kernel.has_five_levels:
        pytest.skip(f"kernel {kernel.release} is built without five levels")
    boot = record_boot(spec, kernel)
    record = boot.to_json()
    check_record(record)
    assert record["levels"] == spec.levels
    recorded = RECORDS.get(f"{kernel.release}:{name}")
    if recorded is not None and recorded["provenance"]["kernel"] == kernel.version:
        assert comparable(record) == comparable(recorded)
    whole = {"id": name, **boot.to_json(tables_up_to=len(boot.tables))}
    assert [str(difference) for difference in replay(whole, name).differences] == []


@pytest.mark.slow
def test_live_tables_in_memory_that_is_not_mapped(kernel: Kernel) -> None:
    """Bottom-up, with next to nothing free above a kernel that lies high: tables for what lies
    below it lie there, too. The early fault handler maps them, and the kernel lives.
    """
    high = kernel.at(2 * GIB)
    end = align_up(high.physical_range[1], 2 * MIB)
    below = (GIB + 512 * MIB, GIB + 528 * MIB)
    spec = MapSpec(
        ram=[(0, 0x9FC00), (MIB, 4 * MIB), below, (2 * GIB, end + 8 * MIB)],
        reserved=[(MIB, 4 * MIB)],
        initrd=(high.physical_range[1], end + 8 * MIB),
        pse=False,
        command_line="movable_node",
    )
    boot = record_boot(spec, high)
    assert (boot.panic, boot.findings) == (None, ())
    mapping = next(n for n, step in enumerate(boot.steps) if step.start == below[0])
    early = [a.pfn for a in boot.allocations if a.step == mapping and not a.from_brk]
    assert early
    assert all(below[0] <= pfn * PAGE < below[1] for pfn in early)
    record = {"id": "high", **boot.to_json(tables_up_to=len(boot.tables))}
    assert [str(difference) for difference in replay(record, "high").differences] == []


def record_of(kernel: Kernel) -> dict[str, Any]:
    """As much of a record as tells the release."""
    return {"release": kernel.release, "provenance": {"kernel": kernel.version}}


ISA_END_GIVEN = b"\xbe" + (MIB).to_bytes(4, "little")
"""``mov esi, 0x100000``: init_mem_mapping's first range ends there."""


OLDEST_AND_NEWEST = [*dict.fromkeys((images()[0], images()[-1]))]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel",
    OLDEST_AND_NEWEST,
    ids=lambda path: path.name if path else "none",
    indirect=True,
    scope="session",
)
def test_live_constant_that_was_patched_is_found(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As somebody who changes the kernel would see it, in `verify linux`, a row and `diff`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    image, at = bytearray(kernel.unpacked()), kernel.symbols["init_mem_mapping"]
    segment = next(s for s in kernel.segments if s.vaddr <= at < s.vaddr + len(s.data))
    code = segment.data[at - segment.vaddr :][:1024]
    place = image.find(code[:64]) + code.index(ISA_END_GIVEN)
    image[place + 3] = 0x20
    patched = tmp_path / "vmlinux"
    patched.write_bytes(image)

    words = ["--kernel", str(patched), "qemu-512m", "--verbose"]
    result = CliRunner().invoke(verify_linux.command, words, standalone_mode=False)
    assert result.return_value is ExitCode.FINDINGS
    assert "kernel  init_memory_mapping: [mem 0x00000000-0x001fffff]" in result.output
    assert "model   init_memory_mapping: [mem 0x00000000-0x000fffff]" in result.output
    assert f"kernel={upstream_release(record_of(kernel), 'x')}" in result.output

    pair = Pair(f"linux:image={patched}", f"linux:image={kernel.path}", "native")
    rows = [run.figures for _, run in pair.runs(bundled("qemu-512m"))]
    assert rows[0]["mapped_4k"] != rows[1]["mapped_4k"]
    found = [compared(pair, bundled("qemu-512m"))]
    (kind,) = kinds(found, ["steps"], seconds=2, jobs=2)
    assert kind.difference.a.startswith("1: 0x0 to 0x200000")
    assert kind.difference.b.startswith("1: 0x0 to 0x100000")
    assert len(kind.machine.memory_map) <= 4


@pytest.mark.slow
def test_live_boot_that_takes_too_long_is_ended(kernel: Kernel) -> None:
    before = children()
    started = time.monotonic()
    with pytest.raises(KernelBootError, match=r"within the time|closed"):
        record_boot(MapSpec(ram=RAM, entry="firmware"), kernel, timeout=0.3)
    assert time.monotonic() - started < 5
    assert children() == before


@pytest.mark.slow
def test_live_map_without_room_for_the_kernel(kernel: Kernel) -> None:
    with pytest.raises(MapSpecError, match="the kernel needs RAM"):
        record_boot(MapSpec(ram=[(0, 0x9F000), (MIB, 20 * MIB)]), kernel)
    with pytest.raises(MapSpecError, match="in use"):
        record_boot(MapSpec(ram=RAM, reserved=[(0x3000, 0x5000)]), kernel)


@pytest.mark.slow
def test_live_boot_leaves_no_qemu_when_it_is_killed(kernel: Kernel, tmp_path: Path) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv (util-linux) is not installed: QEMU cannot be tied to its parent")
    marker = tmp_path / "qemu-pid"
    wrapper = tmp_path / "qemu"
    script = f'[ "$1" = --version ] || echo $$ > {marker}\nexec {find_qemu()} "$@"\n'
    wrapper.write_text("#!/bin/sh\n" + script)
    wrapper.chmod(0o755)
    code = (
        "import sys; from pathlib import Path; from paravirt_mm.verify.linux.qemu import *;"
        "spec = MapSpec(ram=[(0, 1 << 30)], entry='firmware');"
        "record_boot(spec, Path(sys.argv[1]), qemu=sys.argv[2])"
    )
    command = [sys.executable, "-c", code, str(kernel.path), str(wrapper)]
    child = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    try:
        deadline = time.monotonic() + 20
        while not (marker.exists() and marker.read_text().strip()):
            assert time.monotonic() < deadline, "QEMU was not started"
            assert child.poll() is None, "the boot ended before it could be killed"
            time.sleep(0.02)
    finally:
        child.kill()
        child.wait()
    pid = int(marker.read_text())
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < deadline, "QEMU outlived the process that had started it"
        time.sleep(0.02)
