"""Archives that are damaged, or meant to hurt: each costs what it holds, never what it says."""

from __future__ import annotations

import gzip
import lzma
import time
import tracemalloc
from pathlib import Path

import pytest

from paravirt_mm.errors import InputError
from paravirt_mm.machine.model import Machine
from paravirt_mm.sources import load_each
from paravirt_mm.sources.inputs import divide
from tests.sources.packed import tar, zipped

LOG = b"BIOS-e820: 0000000000100000 - 0000000040000000 (usable)\n"


def header(name: bytes, size: int, kind: bytes = b"0", told: bytes | None = None) -> bytes:
    """A header of a tar archive as POSIX has it; ``told`` instead of the size in octal."""
    digits = b"%011o\0" % size if size < 8**11 else b"%012o" % size
    fields = [
        name.ljust(100, b"\0"), b"0000644\0", b"0000000\0", b"0000000\0",
        told or digits, b"00000000000\0", b" " * 8, kind, bytes(100),
        b"ustar\x0000", bytes(247),
    ]  # fmt: skip
    whole = b"".join(fields)
    assert len(whole) == 512
    return whole[:148] + b"%06o\0 " % sum(whole) + whole[156:]


def body(content: bytes) -> bytes:
    return content.ljust(-(-len(content) // 512) * 512, b"\0")


def outcomes(path: Path, content: bytes) -> list[Machine | InputError]:
    path.write_bytes(content)
    started = time.process_time()
    found = [outcome for _, outcome in load_each([path])]
    divided = list(divide([str(path)]))
    again = [outcome for part in divided for _, outcome in part.machines(None)]
    assert time.process_time() - started < 10
    assert [type(outcome) for outcome in found] == [type(outcome) for outcome in again]
    return found


GOOD = header(b"good.txt", len(LOG)) + body(LOG)
END = bytes(1024)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (GOOD + END, ["good"]),
        (GOOD, ["good"]),
        (GOOD + header(b"b.txt", 1 << 33) + b"x" * 100, ["good", "longer than 64 MiB"]),
        (GOOD + header(b"b.txt", 4096) + b"x" * 100, ["good", "ends inside of a member"]),
        (GOOD + header(b"b.txt", 0, told=b"\x80" + b"\xff" * 11), ["good", "longer than 64 MiB"]),
        (
            header(b"b.txt", 0, told=b"\x80" + len(LOG).to_bytes(11, "big")) + body(LOG) + GOOD,
            ["b", "good"],
        ),
        (GOOD + header(b"b.txt", 0, told=b"\xff" * 12), ["good", "size of member 2"]),
        (GOOD + header(b"b.txt", 0, told=b"0000009999\0\0"), ["good", "size of member 2"]),
        (GOOD + b"junk" * 128, ["good", "member 2 has no header"]),
        (GOOD + header(b"b.txt", 512, b"S") + body(b"x") + GOOD, ["good", "sparse file", "good"]),
        (header(b"x", 22, b"x") + body(b"22 GNU.sparse.map=x,y\n") + GOOD, ["sparse file"]),
        (header(b"x", 18, b"x") + body(b"18 path=other.txt\n") + GOOD, ["other"]),
        (header(b"x", 8, b"L") + body(b"long.txt") + GOOD + GOOD, ["long", "good"]),
        (header(b"x", 1 << 32, b"L"), ["ends inside of a member"]),
        (header(b"e/", 0, b"5") + header(b"l", 99, b"2") + END, ["holds no machine"]),
        (header(b"inner.tar", 1024) + GOOD + GOOD, ["archive inside an archive", "good"]),
        (header(b"empty.txt", 0) + GOOD, ["not a boot log", "good"]),
    ],
    ids=[
        "good", "no end", "size of 8 GiB", "cut", "huge binary size", "binary size",
        "negative size",
        "no octal size", "junk", "sparse", "sparse by pax", "name by pax", "long name",
        "name of 4 GiB", "folders and links", "nested", "empty file",
    ],
)  # fmt: skip
def test_what_an_archive_holds(tmp_path: Path, content: bytes, expected: list[str]) -> None:
    found = outcomes(tmp_path / "logs.tar", content)
    shown = [it.name if isinstance(it, Machine) else str(it) for it in found]
    assert len(shown) == len(expected), shown
    assert all(part in text for part, text in zip(expected, shown, strict=True)), shown


def test_what_comes_out_is_bounded_by_what_goes_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Members that fit one by one, and take more than the archive's size allows for."""
    monkeypatch.setattr("paravirt_mm.sources.content.UNPACKED_FREE", 4 << 20)
    members = b"".join(header(b"%d.txt" % n, 3 << 20) + bytes(3 << 20) for n in range(4))
    tracemalloc.start()
    try:
        found = outcomes(tmp_path / "bomb.tar.xz", lzma.compress(members, preset=0))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert ["unpacks to more than" in str(outcome) for outcome in found] == [False, True]
    assert peak < 128 << 20


@pytest.mark.slow
def test_many_members_take_time_in_proportion(tmp_path: Path) -> None:
    logs = tar(*((f"{number}.txt", LOG) for number in range(2000)))
    found = outcomes(tmp_path / "logs.tar", logs)
    assert len(found) == 2000
    assert all(isinstance(outcome, Machine) for outcome in found)


def test_an_empty_folder_and_one_that_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    ((_, outcome),) = load_each([tmp_path])
    assert "holds no machine" in str(outcome)
    (part,) = divide([str(tmp_path)])
    assert "holds no machine" in str(next(part.machines(None))[1])


TWO = zipped(("a/", b""), ("a/one.txt", LOG), ("two.txt", LOG))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (TWO, ["one", "two"]),
        (gzip.compress(TWO), ["one", "two"]),
        (
            zipped(("one.txt", LOG), ("\x1b]0;x.txt", b""), ("\u00e9.txt", LOG)),
            ["one", "not a", ""],
        ),
        (zipped(("one.txt", LOG), ("two.zip", TWO)), ["one", "archive inside an archive"]),
        (TWO.replace(len(LOG).to_bytes(4, "little"), b"\xff\0\0\0"), ["cannot be read"]),
    ],
    ids=["two", "two, compressed", "odd names", "nested", "wrong sizes"],
)
def test_a_zip_of_several_files_is_read_as_a_tar_of_them(
    tmp_path: Path, content: bytes, expected: list[str]
) -> None:
    found = outcomes(tmp_path / "logs.zip", content)
    shown = [it.name if isinstance(it, Machine) else str(it) for it in found]
    assert len(shown) == len(expected), shown
    assert all(part in text for part, text in zip(expected, shown, strict=True)), shown
    assert all(text.isprintable() for text in shown)


@pytest.mark.slow
def test_a_member_of_a_zip_that_is_too_long_costs_itself(tmp_path: Path) -> None:
    content = zipped(("one.txt", LOG), ("b.txt", bytes(65 << 20)))
    one, other = outcomes(tmp_path / "logs.zip", content)
    assert isinstance(one, Machine)
    assert "longer than 64 MiB" in str(other)
