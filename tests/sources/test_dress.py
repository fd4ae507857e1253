"""What loggers, consoles, mails and compressors put around a boot log: all of it comes off."""

from __future__ import annotations

import base64
import bz2
import gzip
import importlib.util
import json
import lzma
import quopri
import random
import re
import shlex
import sys
from collections.abc import Callable
from functools import reduce
from pathlib import Path

import pytest

from paravirt_mm.errors import InputError
from paravirt_mm.machine.model import Machine
from paravirt_mm.sources import load, read_boot_log
from paravirt_mm.sources.bootlog import read as read_module
from paravirt_mm.sources.bootlog.facts import LastPfn, Place
from paravirt_mm.sources.foreign import FOREIGN, foreign
from tests.sources.packed import zipped
from tests.sources.understood import understood

LINES = (
    "Linux version 6.1.0-13-amd64 (build@host)",
    "BIOS-provided physical RAM map:",
    "BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable",
    "BIOS-e820: [mem 0x000000000009fc00-0x00000000000fffff] reserved",
    "BIOS-e820: [mem 0x0000000000100000-0x000000007ffdffff] usable",
    "BIOS-e820: [mem 0x000000007ffe0000-0x000000007fffffff] ACPI NVS",
    "e820: update [mem 0x00000000-0x00000fff] usable ==> reserved",
    "e820: remove [mem 0x000a0000-0x000fffff] usable",
    "last_pfn = 0x7ffe0 max_arch_pfn = 0x400000000",
)
PLAIN = "".join(f"[    0.000000] {line}\n" for line in LINES)
RAM = [(0x1000, 0x9FC00), (0x100000, 0x7FFE0000)]


def read(tmp_path: Path, content: bytes, name: str = "boot.txt") -> Machine:
    path = tmp_path / name
    path.write_bytes(content)
    log = read_boot_log(path)
    assert log.release == "6.1.0-13-amd64"
    assert len(log.of_kind(LastPfn)) == 1
    machine = load(path)
    assert list(machine.memory_map.ram()) == RAM
    return machine


def journal(order: int = 1, **shape: object) -> str:
    records = [
        {
            "_TRANSPORT": "kernel",
            "__REALTIME_TIMESTAMP": str(1_700_000_000_000_000 + number),
            "SYSLOG_IDENTIFIER": "kernel",
            "MESSAGE": line,
        }
        for number, line in enumerate(LINES)
    ][::order]
    return "".join(json.dumps(record, **shape) + "\n" for record in records)


def journal_of_pieces(order: int) -> str:
    """Messages of several lines each, as containers and serial consoles log them."""
    messages = ["\n".join(LINES[n : n + 3]) for n in range(0, len(LINES), 3)]
    records = [{"time": str(number), "log": text} for number, text in enumerate(messages)][::order]
    return "".join(json.dumps(record) + "\n" for record in records)


def dmesg_json(indent: int | None = None) -> str:
    messages = [{"pri": 6, "time": 0.0, "msg": line} for line in LINES]
    return json.dumps({"dmesg": messages}, indent=indent)


@pytest.mark.parametrize(
    "encoded",
    [
        PLAIN.replace("\n", "\r\n").encode(),
        PLAIN.replace("\n", "\r").encode(),
        (PLAIN.replace("\n", "\r") + "\n").encode(),
        PLAIN.encode("utf-16"),
        PLAIN.encode("utf-16-le"),
        PLAIN.encode("utf-16-be"),
        PLAIN.encode("utf-8-sig"),
        gzip.compress(PLAIN.encode()),
        reduce(lambda packed, _: gzip.compress(packed), range(4), PLAIN.encode()),
        gzip.compress(PLAIN[:100].encode()) + gzip.compress(PLAIN[100:].encode()),
        bz2.compress(PLAIN.encode()),
        bz2.compress(PLAIN[:100].encode()) + bz2.compress(PLAIN[100:].encode()),
        lzma.compress(PLAIN.encode(), preset=0),
        lzma.compress(gzip.compress(PLAIN.encode("utf-16")), preset=0),
        zipped(("dmesg-0.txt", PLAIN.encode())),
        journal().encode(),
        "".join(f"\x1e{line}\n" for line in journal().splitlines()).encode(),
        "".join(f"data: {line}\n\n" for line in journal().splitlines()).encode(),
        journal(indent="\t").encode(),
        journal(-1).encode(),
        journal_of_pieces(1).encode(),
        journal_of_pieces(-1).encode(),
        dmesg_json(indent=3).encode(),
        dmesg_json().encode(),
        "".join(json.dumps({"MESSAGE": list(line.encode())}) + "\n" for line in LINES).encode(),
        PLAIN.replace("=", "=3D").encode(),
        quopri.encodestring(PLAIN.encode()),
        b"Content-Transfer-Encoding: quoted-printable\n\n" + quopri.encodestring(PLAIN.encode()),
        PLAIN.replace(">", "&gt;").replace("(", "&#40;").encode(),
        PLAIN.encode("utf-32"),
        b"\xff\xfe\x00\x80\xa7\n" + PLAIN.encode(),
        bytes(8192) + PLAIN.encode() + bytes(8192),
        b"Content-Transfer-Encoding: base64\n\n" + base64.encodebytes(PLAIN.encode()),
        b"--b\nContent-Type: text/plain\n\nmy log\n--b\nContent-Transfer-Encoding: base64\n\n"
        + base64.encodebytes(PLAIN.encode())
        + b"--b--\n",
        "".join(json.dumps({"log": f"{line}\n", "time": "2024"}) + "\n" for line in LINES).encode(),
        "".join(json.dumps({"at": 1, "message": line}) + "\n" for line in LINES).encode(),
        PLAIN.replace("==>", "==&gt;").replace("\n", "<br>\n").encode(),
        "".join(f'<span class="l">{line}</span>\n' for line in PLAIN.splitlines()).encode(),
        PLAIN.replace(" ", "\xa0").encode(),
        PLAIN.replace("Linux v", "Linux\x1b[1m v").replace("BIOS-", "BI\x1b[0mOS-").encode(),
        PLAIN.replace("\n", " ").encode(),
        PLAIN.replace("\n", "").encode(),
        "".join(LINES[:-1]).encode() + LINES[-1].encode(),
        "".join(f"> `{line}`\n" for line in LINES).encode(),
        "".join(f"| {line} |\n" for line in LINES).encode(),
        "".join(f'"2024-03-03","host","{line}"\n' for line in LINES).encode(),
        ("time,message\n" + "".join(f'12:00:00,7,"{line}"\n' for line in LINES)).encode(),
        "".join(f'- {{"lvl": "target", "msg": "{line}"}}\n' for line in LINES).encode(),
    ],
    ids=[
        "crlf", "cr", "cr, lf at the end", "utf-16", "utf-16-le", "utf-16-be", "utf-8 bom",
        "gz", "gz four times", "gz gz", "bz2", "bz2 bz2", "xz", "xz of gz of utf-16", "zip",
        "journal", "json-seq", "json-sse", "json-pretty", "reversed journal",
        "pieces", "reversed pieces",
        "dmesg -J", "dmesg -J in a line", "bytes", "=3D", "quoted-printable",
        "mail", "html", "utf-32", "noise first", "zeros of a crash",
        "base64", "attachment", "docker", "message",
        "br", "span", "nbsp", "colour inside words", "no line ends", "not even blanks",
        "no stamps either", "markdown", "table", "csv",
        "csv with a head", "yaml",
    ],
)  # fmt: skip
def test_encodings(tmp_path: Path, encoded: bytes) -> None:
    read(tmp_path, encoded)


def test_lines_of_a_journal_are_numbered_as_they_were_printed(tmp_path: Path) -> None:
    """Where the newest stands first, from the end of the file."""
    numbers = []
    for order in (1, -1):
        path = tmp_path / f"journal{order}.json"
        path.write_text(journal(order))
        (pages,) = read_boot_log(path).of_kind(LastPfn)
        numbers.append(pages.line)
    assert numbers == [len(LINES)] * 2


def test_a_journal_may_stand_in_one_line(tmp_path: Path) -> None:
    """As `jq --slurp --compact-output` and many a logger's export have it; each way round."""
    for order in (1, -1):
        records = ",".join(journal(order).splitlines())
        read(tmp_path, f"[{records}]\n".encode(), "journal.json")


@pytest.mark.parametrize(
    "prefix",
    [
        "(early) [    0.000000] ",
        "(d2) [    0.000000] ",
        "(d1v0) ",
        "[2022-09-19 19:50:56] ",
        "[2022-09-19 19:50:56.123] [    0.000000] ",
        "[Mar 3 08:15] ",
        "[Mar  3 08:15:02] ",
        "2024-03-03T08:15:02,000000+01:00 ",
        "<6>1 2024-03-03T08:15:02.000Z host kernel - - - [    0.000000] ",
        '<6>1 2024-03-03T08:15:02.000Z host kernel - - [a@1 b="c"] [    0.000000] ',
        "6,0,0,-;",
        "MESSAGE=",
        "    MESSAGE=[    0.000000] ",
        "\x1b[32m[    0.000000] \x1b[0m\x1b[33m",
        "^[[32m[    0.000000] ^[[0m",
        "#033[1m[    0.000000] ",
        "> > [    0.000000][    T0] ",
        "JB> [    0.000000] ",
        "Mar  3 08:15:02 host kernel: [    0.000000] ",
        "2024-03-03T08:15:02.123456+01:00 host kernel[1]: ",
    ],
)
def test_prefixes(tmp_path: Path, prefix: str) -> None:
    read(tmp_path, "".join(f"{prefix}{line}\n" for line in LINES).encode())


WITHOUT_A_KERNELS_TIME = [
    "2026-11-26T15:02:38,123456+00:00 ", "2026-11-26T15:02:38.1234567Z ",
    "2026-11-26 15:02:38.123 ",
    "2026-11-26T15:02:38.123456Z 00O ", "Nov 26 15:02:38 ", "[2026-11-26 15:02:38.123] ",
    "00:00:01.123456 ", "1700000000.123456 ", "guest-1  | ", "serial.log:", "> ",
]  # fmt: skip


@pytest.mark.parametrize("name", ["xen-4.1-host", "6.12-xen-dom0", "5.5-user-map", "2.6.32-i386"])
def test_a_real_log_says_the_same_in_any_dress_and_twice(
    tmp_path: Path, logs: Path, name: str
) -> None:
    """Loggers' times are no rest of the line before; and each line may stand there twice."""
    bare = re.sub(r"^\[ *[\d.]+\] ", "", (logs / f"{name}.txt").read_text(), flags=re.MULTILINE)
    (path := tmp_path / "m.txt").write_text(bare)
    as_printed = understood(path)
    dressed = [
        "".join(f"{mark}{line}\n" for line in bare.splitlines()) for mark in WITHOUT_A_KERNELS_TIME
    ]
    doubled = "".join(f"{line}\n" * 2 for line in bare.splitlines())
    timed = "".join(f"Nov 26 15:02:38 [    0.000000] {line}\n" for line in bare.splitlines())
    for text in [*dressed, timed, doubled]:
        path.write_text(text)
        assert understood(path) == as_printed, text[:60]
    assert "every line stands twice in the log: each counts once" in load(path).provenance.assumed
    assert read_boot_log(path).boot == 1


ZSTD = bytes.fromhex("28b52ffd2000010000")
"""An empty frame: to make more would need what is tested."""


def test_zstd_is_read_where_python_can_and_named_where_not(
    tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "log.zst").write_bytes(ZSTD)
    names = ("compression.zstd", "backports.zstd")
    has = sys.version_info >= (3, 14) or importlib.util.find_spec("backports") is not None
    with pytest.raises(InputError, match="not a boot log" if has else "zstd -d"):
        load(tmp_path / "log.zst")
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)
    remedy = re.escape(f"pip install -e {shlex.quote(f'{checkout}[zstd]')}")
    with pytest.raises(InputError, match=rf"{remedy}.* `zstd -d`"):
        load(tmp_path / "log.zst")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (zipped(), "a zip archive without any file"),
        (zipped(*((f"dmesg-{n}.txt", PLAIN.encode()) for n in range(2)))[:-60], "cannot be read"),
        (reduce(lambda x, _: gzip.compress(x), range(5), b"x"), "compressed more than 4 times"),
        ("".join(f"{line}\n" for line in reversed(LINES)).encode(), "reverse order"),
        ("".join(json.dumps({"MESSAGE": x}) + "\n" for x in reversed(LINES)).encode(), "reverse"),
        (gzip.compress(PLAIN.encode())[:-20], "cannot be read"),
        (
            lzma.compress(PLAIN.encode(), preset=0)[:-40],
            "cannot be read: the compressed data are cut short",
        ),
    ],
    ids=[
        "empty zip",
        "cut zip",
        "gz five times",
        "reversed",
        "reversed journal",
        "cut gz",
        "cut xz",
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "boot.txt").write_bytes(content)
    with pytest.raises(InputError, match=expected):
        load(tmp_path / "boot.txt")


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (b"7z\xbc\xaf\x27\x1c\x00\x04", "a 7-Zip archive, no text: .*`7z x`"),
        (b"\x04\x22\x4d\x18\x64\x40\xa7", "compressed with lz4, no text: .*`lz4 -d`"),
        (
            lzma.compress(b"x", format=lzma.FORMAT_ALONE),
            "with lzma, no text: .*`xz -d --format=lzma`",
        ),
        (b"LPKSHHRH\x00\x00", "a journal in its own format, no text: .*`journalctl -k -b --file`"),
        (b"\x7fELF\x02\x01\x01", "an ELF file.*`paravirt-mm inspect`.*`paravirt-mm verify`"),
        (b"%PDF-1.7\n", "a PDF document, no text: give its text"),
        (b"\xff\xd8\xff\xe0", "a picture, no text: give its text"),
    ],
    ids=["7z", "lz4", "lzma", "journal", "elf", "pdf", "jpeg"],
)
def test_what_holds_no_text_is_named_with_a_remedy(tmp_path: Path, head: bytes, told: str) -> None:
    path = tmp_path / "dmesg"
    path.write_bytes(head + PLAIN.encode())
    for read_it in (load, read_boot_log):
        with pytest.raises(InputError, match=f"dmesg: .*{told}"):
            read_it(path)


def test_every_first_bytes_name_one_kind_alone() -> None:
    """None begins like another, nor as a log may."""
    for magic in FOREIGN:
        assert sum(magic.startswith(other) for other in FOREIGN) == 1
        assert not PLAIN.encode().startswith(magic)
        assert foreign(magic)
        assert foreign(magic[:-1]) is None


XEN = (
    "(XEN) Xen version 4.17.0",
    "(XEN) Xen-e820 RAM map:",
    "(XEN)  [0000000000000000, 000000000009fbff] (usable)",
    "(XEN)  [0000000000100000, 000000003fffffff] (usable)",
    "(XEN)  [0000000040000000, 0000000040000fff] type 9",
    "(XEN)  [0000000100000000, 00000001ffffffff] (usable)",
    "(XEN) VIRTUAL MEMORY ARRANGEMENT:",
    "(XEN)  Loaded kernel: ffffffff81000000->ffffffff82e2c000",
    "(XEN)  Start info: ffffffff82e2c000->ffffffff82e2c4b8",
)


@pytest.mark.parametrize(
    "dress",
    [
        "{}".format,
        "(d2) {}".format,
        "[2020-12-24 08:34:49] {}".format,
        "Mar  3 08:15:02 host kernel: {}".format,
        "<6>1 2024-03-03T08:15:02.000Z host kernel - - - [    0.000000] {}".format,
        lambda line: line.replace("(XEN)", "(XEN) [2024-03-03 08:15:02]"),
        lambda line: line.replace("(XEN)", "(XEN) [00000012a3b4c5d6]"),
        lambda line: " ".join(line.split()),
        "> `{}`".format,
        "| {} |".format,
        '1700000000.123,"{}"'.format,
    ],
)
def test_hypervisors(tmp_path: Path, dress: Callable[[str], str]) -> None:
    path = tmp_path / "xen.txt"
    path.write_text("".join(f"{dress(line)}\n" for line in XEN))
    log = read_boot_log(path)
    assert log.platform == "hypervisor"
    assert [fact.name for fact in log.of_kind(Place)] == ["Loaded kernel", "Start info"]
    assert load(path).memory_map.ram().end == 0x200000000


PIECES = (
    "[    0.000000] ", "[12345.678901][    T0] ", "<6>[ 0.000000] ", "BIOS-e820: [mem 0x0-0xfff]",
    "BIOS-e820: 0000000000000000 - ", "Xen: [mem ", "user: [mem ", "modified: 0000", "BRK [0x1, ",
    "init_memory_mapping: ", "memblock_reserve: [", "kernel direct mapping tables up to ",
    "e820: update [mem ", "e820 remove ", "e820: last_pfn = ", "last_pfn = 0x1", "page 4k",
    "page 2M", "[mem 0x", "17", "usable", ":", " ", "", "x",
)  # fmt: skip


def test_no_line_is_passed_over_that_would_be_split() -> None:
    """The quick look at a line finds all that the thorough one splits."""
    chance, split = random.Random(1), 0
    for _ in range(4000):
        line = "".join(chance.choices(PIECES, k=chance.randint(1, 5)))
        if len(read_module._JOINED.split(line)) > 1:
            split += 1
            assert read_module._MAY_BE_JOINED.search(line), line
    assert split > 1000
