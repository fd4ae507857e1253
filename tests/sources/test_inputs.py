"""Inputs divided into parts, and what members of archives are called."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import attrs
import pytest

from paravirt_mm import CpuFeatures, bundled
from paravirt_mm.errors import InputError
from paravirt_mm.sources import archives, firmware_map, inputs, iomem
from paravirt_mm.sources.bootlog.facts import is_xenlinux
from paravirt_mm.sources.content import content_of
from paravirt_mm.sources.generated import Seeded
from paravirt_mm.sources.inputs import CarriedPart, FilePart, divide
from paravirt_mm.sources.machine_file import read_toml, write_toml
from tests.sources.packed import tar

LOG = b"BIOS-e820: 0000000000100000 - 0000000040000000 (usable)\n"


def written(folder: Path, name: str, whole: bytes) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(whole)
    return str(path)


def test_what_is_no_archive_stays_where_it_is(tmp_path: Path) -> None:
    log = written(tmp_path, "a.txt", LOG)
    assert list(divide(["qemu-512m", log, "gone"])) == [
        FilePart("qemu-512m"), FilePart(log), FilePart("gone"),
    ]  # fmt: skip


def test_members_of_an_archive_are_carried(tmp_path: Path) -> None:
    path = written(tmp_path, "a.tar", tar(("x/one.txt", LOG), ("0/start", b"0x0")))
    assert list(divide([path])) == [
        CarriedPart(f"{path}:x/one.txt", "one.txt", LOG),
        CarriedPart(f"{path}:0/start", "start", b"0x0"),
    ]
    names = "n" * 255, "m" * 256  # as long as Linux lets them be, and longer
    path = written(tmp_path, "b.tar", tar(*((name, LOG) for name in names)))
    assert [part.source for part in divide([path])] == [
        f"{path}:{names[0]}", f"{path}:{'m' * 254}…",
    ]  # fmt: skip


def test_an_archive_of_a_firmware_map_stays_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tar(("memmap/0/start", b"0x0\n"), ("memmap/0/end", b"0xfff\n"))
    path = written(tmp_path, "a.tar", whole)
    assert list(divide([path])) == [FilePart(path)]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(whole)))
    assert [part.source for part in divide(["-"])] == ["-:memmap/0/start", "-:memmap/0/end"]


def test_standard_input_is_carried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LOG)))
    assert list(divide(["-"])) == [CarriedPart("-", "-", LOG)]


def test_lines_of_a_record_file_are_carried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, "a.jsonl", b"{1}\n \n\n{2}\n")
    assert list(divide([path])) == [
        CarriedPart(f"{path}:1", "record.json", b"{1}\n"),
        CarriedPart(f"{path}:4", "record.json", b"{2}\n"),
    ]
    monkeypatch.setattr(inputs, "MAX_RECORD_BYTES", 9)
    long = written(tmp_path, "b.jsonl", b"{" + b"x" * 20)
    assert next(part.content for part in divide([long]) if isinstance(part, CarriedPart)) == (
        b"{" + b"x" * 9
    ), "a byte more than is read: enough to be refused"


def test_files_of_a_folder(tmp_path: Path) -> None:
    one = written(tmp_path, "b/one.txt", LOG)
    two = written(tmp_path, "a/two.txt", LOG)
    written(tmp_path, ".hidden/three.txt", LOG)
    assert list(divide([str(tmp_path)])) == [FilePart(two), FilePart(one)]
    for part, text in (("start", "0x0"), ("end", "0xfff"), ("type", "System RAM")):
        written(tmp_path, f"map/0/{part}", text.encode())
    assert list(divide([str(tmp_path / "map")])) == [FilePart(str(tmp_path / "map"))]


def test_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    log = written(tmp_path, "log.txt", LOG)
    assert list(divide([str(tmp_path)])) == [FilePart(log)]


def test_so_many_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iomem, "MAX_ENTRIES", 2)
    lines = [f"{n}0000000-{n}fffffff : System RAM\n" for n in (1, 2, 3)]
    fits = content_of(io.BytesIO("".join(lines[:2]).encode()), "here")
    assert iomem.read_iomem(fits, "here", "m").memory_map.ram_pages().end == 3 << 28
    long = content_of(io.BytesIO("".join(lines).encode()), "here")
    with pytest.raises(InputError, match="here:3: more than 2 resources"):
        iomem.read_iomem(long, "here", "m")


# -- headers of archives ---------------------------------------------------------------------------


def header(name: bytes, magic: bytes, prefix: bytes, padding: bytes, signed: bool) -> bytes:
    """A header of an empty file, as tar implementations differ in it."""
    fields = [
        name.ljust(100, b"\0"), b"0000644\0", b"0000000\0", b"0000000\0", b"00000000000\0",
        b"00000000000\0", b" " * 8, b"0", bytes(100), magic, bytes(80), prefix.ljust(155, b"\0"),
        padding.ljust(12, b"\0"),
    ]  # fmt: skip
    whole = b"".join(fields)
    assert len(whole) == 512
    total = sum(byte - 256 if signed and byte > 127 else byte for byte in whole)
    return whole[:148] + b"%06o\0 " % total + whole[156:]


POSIX, GNU = b"ustar\x0000", b"ustar  \0"


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    ("name", "magic", "prefix", "padding", "wanted"),
    [
        (b"a.txt", POSIX, b"", b"", "a.txt"),
        (b"a.txt", POSIX, b"folder", b"", "folder/a.txt"),
        (b"a.txt", POSIX, b"folder", b"junk", "folder/a.txt"),
        (b"a.txt", GNU, b"00000000000", b"", "a.txt"),
        (b"\x7f\x80\xc3\xa9\xff.txt", POSIX, b"", b"", "\x7f\ufffd\u00e9\ufffd.txt"),
    ],
)
def test_headers_as_tar_implementations_write_them(
    name: bytes, magic: bytes, prefix: bytes, padding: bytes, wanted: str, signed: bool
) -> None:
    """GNU tar keeps times where POSIX has a folder; some old ones add signed bytes up."""
    stream = io.BytesIO(header(name, magic, prefix, padding, signed) + bytes(1024))
    assert [member.name for member in archives.members(stream, "here")] == [wanted]
    cut = io.BytesIO(header(name, magic, prefix, padding, signed)[:511])
    with pytest.raises(InputError, match="member 1 has no header"):
        list(archives.members(cut, "here"))


# -- words of errors, and what is written ----------------------------------------------------------


def test_the_first_entry_of_a_firmware_map_that_is_wrong_is_named() -> None:
    for start, told in (
        ("0x0", f"here/2/type: unknown memory type '{'x' * 39}…'"),
        ("y" * 50, f"here/2/start: '{'y' * 39}…' is not an address"),
    ):
        values = firmware_map.Values("here")
        for number in (10, 2):
            for part, text in (("start", start), ("end", "0xf"), ("type", "x" * 50)):
                values.take(f"{number}/{part}", io.BytesIO(text.encode()))
        with pytest.raises(InputError) as caught:
            values.machine("m")
        assert str(caught.value) == told


def test_a_machine_file_is_laid_out_for_people() -> None:
    lines = write_toml(bundled("qemu-512m")).splitlines()
    assert 'mode = "x86_64"' in lines
    assert "pse = true" in lines
    assert any(line.startswith("  [0x") and line.endswith('"usable"],') for line in lines)
    assert any(line.startswith("brk_start = 0x") for line in lines)


def test_a_machine_file_that_ends_too_soon_is_wrong_in_its_last_line() -> None:
    with pytest.raises(InputError, match=r"^here:3: not TOML"):
        read_toml("a = 1\nb = 2\nc = [", "here")


@pytest.mark.parametrize(
    ("release", "fork"),
    [
        ("2.6.18-xen", True),
        ("2.6.18-194.el5xen", True),
        ("2.6.26-2-xen-amd64", True),
        ("2.6.32-5-xen-amd64", False),  # Debian's flavour of that name is mainline's
        ("2.6.32-5-xen-686", False),
        ("2.6.31-5-xen-amd64", True),
        ("2.6.32-xen", True),
        ("4.3.9-xen", True),
        ("4.4.0-xen", False),
        ("4.4-xen", False),
        ("6.1.0-13-amd64", False),
        ("xen", False),
        (None, False),
    ],
)
def test_which_releases_are_of_the_fork(release: str | None, fork: bool) -> None:
    assert is_xenlinux(release) is fork


@pytest.mark.parametrize("features", [(True, True, False), (False, False, True)])
def test_a_machine_file_keeps_what_the_cpu_can(features: tuple[bool, bool, bool]) -> None:
    machine = attrs.evolve(bundled("qemu-512m"), features=CpuFeatures(*features))
    assert read_toml(write_toml(machine), "here").features == machine.features


def test_small_distances_are_as_likely_as_large_ones() -> None:
    drawn = [Seeded(seed).integer(1000, 1001) for seed in range(200)]
    assert set(drawn) == {1000, 1001}
    assert drawn.count(1000) > 100
    wide = [Seeded(seed).integer(1, 1 << 40) for seed in range(400)]
    assert min(wide) >= 1
    assert 40 < sum(number < 1 << 10 for number in wide) < 200
    assert 40 < sum(number >= 1 << 30 for number in wide) < 200
