"""Odd and hostile inputs, a file of each kind: an answer, or one line that names what is wrong.

The files in tests/data/hostile stand for faults that mutated inputs once found; what would be
large is made here. Each is given to a real command in this process, whose readers work in children.
"""

from __future__ import annotations

import io
import os
import struct
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import pytest

from paravirt_mm.cli.main import main
from paravirt_mm.errors import ExitCode

DATA = Path(__file__).parents[1] / "data" / "hostile"
ONE = ["compare", "-b", "native", "-a", "incremental"]
READ = ["machines"]
CR3 = "../../fuzz/found/core--cr3-negative"
OK, FINDINGS, USAGE, BAD = ExitCode.OK, ExitCode.FINDINGS, ExitCode.USAGE, ExitCode.BAD_INPUT


def command(*arguments: object, stdin: str | Path = "") -> tuple[int, str, str]:
    """Run a command line; return exit code, output and complaints, which suit every terminal."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    began = time.process_time()
    with (
        Path(stdin or os.devnull).open(encoding="latin-1") as given,
        patch.object(sys, "stdin", given),
        patch.object(sys, "argv", ["paravirt-mm", *map(str, arguments)]),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    assert time.process_time() - began < 5
    text = out.getvalue() + err.getvalue()
    assert all(char.isprintable() or char == "\n" for char in text)
    assert "Traceback" not in text
    assert len(err.getvalue()) < 2000
    return code, out.getvalue(), err.getvalue()


@pytest.mark.parametrize(
    ("name", "arguments", "code", "words"),
    [
        # Loops and lists over a number from a file.
        ("kernel-init-ramdisk-huge.txt", ONE, BAD, "does not lie in the memory map"),
        ("dom0-kernel-huge.txt", ONE, BAD, "is larger than 1 GiB"),
        ("max-pfn-movable.toml", ONE, BAD, "max_pfn: page 0x8000000000000 lies above"),
        ("oracle-64t.jsonl", ["verify", "kernel"], BAD, "needs 33620096 tables"),
        # Backtracking, quadratic reading.
        ("change-line-spaces.txt", READ, BAD, ":2: change of the memory map not understood"),
        ("alternating-maps.txt.xz", READ, BAD, ":65: more than 64 memory maps in one boot"),
        ("trace-million-pages.jsonl", ["verify", "xen"], OK, ""),
        # Archives.
        ("tar-163-bytes.tar.xz", READ, BAD, "a sparse file in an archive"),
        ("tar-sparse-map.tar", READ, BAD, "a sparse file in an archive"),
        ("tar-of-folders.tar", READ, BAD, "holds no machine"),
        # Long records.
        ("oracle-64m-record.jsonl.xz", READ, BAD, ":1: record longer than 8 MiB"),
        # Impossible values.
        ("elf-4-bytes.core", ["inspect"], BAD, "ends inside its ELF header"),
        (CR3, ["inspect"], BAD, "cr3 is no physical address: -0x1000"),
        ("oracle-empty-block.jsonl", ["verify", "kernel"], BAD, ":1: max_low_pfn: 0x0 is not"),
        ("oracle-no-ram.jsonl", READ, BAD, ":1: the memory map has no whole page of RAM"),
        ("trace-pages-float-after-int.jsonl", ["verify", "xen"], BAD, ":2: not a JSON object"),
        ("mem-pae-huge.toml", READ, BAD, "no kernel addresses more than"),
        ("kernel-outside-ram.toml", ONE, BAD, "the kernel at 0x1000000-0x10000040000"),
        # Once silently wrong: refused, or read right.
        ("every-line-twice.txt", ONE, OK, "7.8G RAM, 7 pieces"),
        ("every-line-twice.txt", ONE, OK, "Assumed: every line stands twice in the log"),
        ("every-line-twice.txt", ["run", "-b", "native"], OK, "Assumed: every line stands twice"),
        ("e820-update-lost-type.txt", ONE, OK, "511.6M RAM, 2 pieces"),
        ("e820-update-good.txt", ONE, OK, "511.6M RAM, 2 pieces"),
        ("e820-inverted.txt", ONE, BAD, ":3: the entry ends at 0x100000000, before its start"),
        ("e820-cut-exclusive.txt", ONE, OK, "8G RAM, 3 pieces"),
        ("e820-decimal.txt", ONE, BAD, "addresses are hexadecimal"),
        ("e820-size0-at-0.txt", ONE, BAD, "no memory map"),
        ("json-duplicate-key.json", READ, BAD, "key 'memory' stands twice"),
        # Formats that begin late.
        ("late-format.txt", READ, OK, 'name = "qemu-512m"'),
        ("two-logs.tar", ONE, OK, "Both machines"),
        # Text for terminals and other formats.
        ("oracle-sha-escape.jsonl", ["verify", "kernel"], FINDINGS, "\\x1b"),
        ("xen-and-dom0-osc-title.txt", ["verify", "log"], OK, ""),
        ("title-markup.toml", [*ONE, "-f", "html"], OK, "&lt;script&gt;alert(1)"),
        ("title-markup.toml", [*ONE, "-f", "latex"], OK, "\\textbackslash{}input\\{/etc"),
        ("oracle-id-formula.jsonl", [*ONE, "-f", "csv"], OK, "'=HYPERLINK"),
        # Other dresses.
        ("journal.json", ONE, OK, "7.8G RAM, 7 pieces"),
        ("journal-json-seq.txt", ONE, OK, "7.8G RAM, 7 pieces"),
        ("dmesg-J.json", ONE, OK, "7.8G RAM, 7 pieces"),
        ("cr-only.txt", ONE, OK, "7.8G RAM, 7 pieces"),
        ("log.gz", READ, OK, "memory = ["),
        ("log.gz.gz", READ, OK, "memory = ["),
        ("log.zip", READ, OK, "memory = ["),
        ("xen-and-dom0-rfc5424.txt", ["verify", "log"], OK, ""),
        ("xen-guest-512m-no-release.txt", ["verify", "log"], OK, ""),
    ],
)
def test_a_file_of_each_kind(name: str, arguments: list[str], code: int, words: str) -> None:
    found, out, err = command(*arguments, DATA / name)
    assert found == code, err
    assert words in (out if code in (OK, FINDINGS) else err)
    if code == BAD:
        assert err.startswith(f"paravirt-mm: {DATA / name}")
        assert len(err.splitlines()) == 1


def test_standard_input_is_told_by_its_content_too() -> None:
    assert 'name = "qemu-512m"' in command("machines", "-", stdin=DATA / "late-format.txt")[1]
    assert "Both machines" in command(*ONE, "-", stdin=DATA / "two-logs.tar")[1]


def test_zstd_is_read_or_the_remedy_named() -> None:
    code, out, err = command("machines", DATA / "log.zst")
    assert "memory = [" in out if code == OK else "zstd -d" in err


MEMORY = b'memory = [[0x1000, 0x20000000, "usable"]]\nboot_mapped = 0x'


def hexadecimal_digits() -> bytes:
    return b'format = "paravirt-mm-machine-1"\nname = "m"\n' + MEMORY + b"f" * 900_000


def tables_that_fan_out() -> bytes:
    """Each level's table is full of entries for the next one's: 512 ** 3 large pages."""
    tables = [struct.pack("<Q", 0x67 | (level + 1) << 12) * 512 for level in range(3)]
    return b"".join(tables) + struct.pack("<Q", 0xE7) * 512


def many_notes() -> bytes:
    """Nine thousand program headers that all name the same part of the file as notes."""
    from paravirt_mm.image.elf import core_header
    from paravirt_mm.machine.paging import X86_64

    whole = bytearray(core_header(X86_64, 0, [(0, 4096)], 0xFFFF888000000000, {"cr3": "0x0"}))
    note = struct.pack("<IIQQQQQQ", 4, 0, 64 + 56 * 9000, 0, 0, 360_000, 360_000, 4)
    struct.pack_into("<Q", whole, 32, 64)
    struct.pack_into("<H", whole, 56, 9000)
    return bytes(whole[:64]) + note * 9000 + bytes(360_000)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "made", "arguments", "words"),
    [
        ("hex.toml", hexadecimal_digits, READ, "a number of 3600000 bits"),
        ("notes.core", many_notes, ["inspect"], "notes"),
        ("raw", tables_that_fan_out, ["inspect", "--cr3", "0", "--mode", "x86_64"], ""),
    ],
)
def test_what_would_be_large(
    tmp_path: Path, name: str, made: Callable[[], bytes], arguments: list[str], words: str
) -> None:
    (tmp_path / name).write_bytes(made())
    code, out, err = command(*arguments, tmp_path / name)
    assert code in (FINDINGS, BAD)
    assert words in err + out


@pytest.mark.parametrize(
    ("statements", "words"),
    [
        ('CREATE TABLE runs ("allocator\x1b]0;pwned\x07" INTEGER)', "no complete sweep"),
        ("CREATE TABLE sweep (a INTEGER)", "no complete sweep"),
        ("CREATE VIEW runs AS SELECT 1 AS allocator, 2 AS backend", "no complete sweep"),
    ],
    ids=["escape in a column", "no key", "a view"],
)
def test_results_of_sweeps_that_are_none(tmp_path: Path, statements: str, words: str) -> None:
    import duckdb  # not before: a process is forked the slower, the more it holds

    with duckdb.connect(str(tmp_path / "s.duckdb")) as database:
        database.execute(statements)
    code, _, err = command("query", tmp_path / "s.duckdb")
    assert (code, words in err) == (BAD, True), err
    code, _, err = command("sweep", "qemu-512m", "-b", "native", "-o", tmp_path / "s.duckdb")
    assert code in (USAGE, BAD)
    assert "s.duckdb" in err


@pytest.mark.slow
def test_the_collection_beside_the_checkout(shared: Path) -> None:
    """Whatever is there of these kinds: an exit code as documented, in words."""
    for path in sorted((shared / "cases" / "hostile").iterdir()):
        if path.suffix != ".md" and path.name != "query-view-endless.duckdb":
            code, _, err = command("machines", path)
            assert code in (OK, BAD), path
            assert len(err.splitlines()) <= 1
