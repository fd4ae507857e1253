"""Dividing inputs into parts gives the machines that reading them in one go gives."""

from __future__ import annotations

import io
import lzma
import pickle
import tarfile
from pathlib import Path

import pytest

from paravirt_mm.errors import InputError
from paravirt_mm.machine.model import Machine
from paravirt_mm.sources import bundled_machines, load_each
from paravirt_mm.sources.inputs import CarriedPart, GeneratedPart, Part, divide
from paravirt_mm.sweep.drive import chunks
from paravirt_mm.testing import generate

ORACLE = Path(__file__).parents[1] / "data" / "oracle" / "linux-kernel-oracle-40.jsonl.xz"
MEMMAP = {"0": ("0x0", "0x9fbff", "System RAM"), "1": ("0x100000", "0x3fffffff", "System RAM")}


def _read(parts: list[Part]) -> list[Machine | InputError]:
    """Read parts as another process does: parts travel."""
    travelled = pickle.loads(pickle.dumps(parts))  # noqa: S301  # our own, from here
    return [outcome for part in travelled for _, outcome in part.machines(None)]


def _tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:xz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _memmap_members() -> dict[str, bytes]:
    return {
        f"memmap/{number}/{key}": f"{value}\n".encode()
        for number, values in MEMMAP.items()
        for key, value in zip(("start", "end", "type"), values, strict=True)
    }


def test_names_and_a_memmap_archive(tmp_path: Path) -> None:
    """A copy of /sys/firmware/memmap is one machine, in an archive as well."""
    _tar(tmp_path / "memmap.tar.xz", _memmap_members())
    specs = [*bundled_machines(), str(tmp_path)]
    parts = list(divide(specs))
    assert len(parts) == len(specs)
    assert _read(parts) == [outcome for _, outcome in load_each(specs)]


def test_archive_is_carried_member_by_member(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Content and order decide the digests; a member that is too long costs itself only."""
    monkeypatch.setattr("paravirt_mm.sources.inputs.MAX_PART_BYTES", 1 << 20)
    path = tmp_path / "logs.tar.xz"
    good = b"BIOS-e820: 0000000000100000 - 0000000040000000 (usable)\n"
    _tar(path, {"a": good, "b": b"", "huge": b"\0" * ((1 << 20) + 1), "c": good})
    parts = list(divide([str(path)]))
    assert [part.source for part in parts] == [f"{path}:{name}" for name in ("a", "b", "huge", "c")]
    a, b, huge, c = _read(parts)
    assert isinstance(a, Machine)
    assert isinstance(c, Machine)
    assert (a.memory_map, a.name, c.name) == (c.memory_map, "a", "c")
    assert isinstance(b, InputError)
    assert "longer than 1 MiB" in str(huge)
    before = [chunk.digest() for chunk in chunks(parts, 3)]
    assert before == [chunk.digest() for chunk in chunks(divide([str(path)]), 3)]
    _tar(path, {"a": good, "b": b"", "huge": b"\0" * ((1 << 20) + 1), "c": good + b"\n"})
    after = [chunk.digest() for chunk in chunks(divide([str(path)]), 3)]
    assert (after[0] == before[0], after[1] == before[1]) == (True, False)


def test_generated_parts_are_generated_machines() -> None:
    assert _read([GeneratedPart(7, n) for n in range(6)]) == list(generate(6, seed=7))


def test_truncated_archive(tmp_path: Path) -> None:
    """What can still be read is; the rest costs one part, with the reason."""
    path = tmp_path / "logs.tar.xz"
    _tar(path, {"a": b"x" * 100, "b": bytes(range(256)) * 4000})
    path.write_bytes(path.read_bytes()[:-200])
    parts = list(divide([str(path)]))
    assert isinstance(parts[-1], CarriedPart)
    assert parts[-1].problem
    assert all(isinstance(outcome, InputError) for outcome in _read(parts))


def test_records_line_by_line(tmp_path: Path) -> None:
    """Each record of a kernel-oracle file is a part of its own, bad ones included."""
    with lzma.open(ORACLE) as stream:
        oracle_lines = stream.readlines()
    path = tmp_path / "some.jsonl"
    path.write_bytes(oracle_lines[0] + b"{bad\n\n" + oracle_lines[1])
    parts = list(divide([str(path)]))
    assert [part.source for part in parts] == [f"{path}:{n}" for n in (1, 2, 4)]
    first, bad, last = _read(parts)
    assert isinstance(first, Machine)
    assert isinstance(bad, InputError)
    assert isinstance(last, Machine)
    assert first.name != last.name
