"""Dumps whose numbers ask for more than the file holds: refused by name, or bounded."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from paravirt_mm.errors import InputError
from paravirt_mm.image import inspect as inspection
from paravirt_mm.image.dump import MAX_NOTES, MAX_PROBLEMS, open_dump
from paravirt_mm.image.elf import (
    EHDR,
    EM_X86_64,
    ET_CORE,
    NHDR,
    PHDR,
    PT_LOAD,
    PT_NOTE,
    core_header,
)
from paravirt_mm.image.inspect import inspect, limits_for
from paravirt_mm.image.walker import WalkLimits
from paravirt_mm.machine.paging import PAGE_SIZE, X86_64


@pytest.mark.parametrize("size", [4, 5, 15, 16, 40])
def test_a_file_that_ends_inside_its_header(tmp_path: Path, size: int) -> None:
    path = tmp_path / "core"
    path.write_bytes((b"\x7fELF\x02\x01\x01" + bytes(100))[:size])
    with pytest.raises(InputError, match="ends inside its ELF header"):
        open_dump(path)


@pytest.mark.parametrize("cr3", ["-0x1000", "-1", "0xfffffffffffffffff000", hex(1 << 52)])
def test_a_root_that_is_no_address_is_refused_by_name(tmp_path: Path, cr3: str) -> None:
    path = tmp_path / "core"
    facts = {"mode": "x86_64", "cr3": cr3}
    path.write_bytes(core_header(X86_64, 0, [(0, PAGE_SIZE)], 0, facts) + bytes(PAGE_SIZE))
    with open_dump(path) as dump:
        assert dump.cr3 is None
        assert any("cr3" in problem and cr3 in problem for problem in dump.problems)


def _core(notes: list[tuple[int, int]], body: bytes) -> bytes:
    """A core with a segment of notes for each (offset, size), and one page of memory."""
    count = len(notes) + 1
    head = EHDR.pack(
        b"\x7fELF\x02\x01\x01".ljust(16, b"\0"), ET_CORE, EM_X86_64, 1, 0, EHDR.size, 0, 0,
        EHDR.size, PHDR.size, count, 0, 0, 0,
    )  # fmt: skip
    start = EHDR.size + count * PHDR.size
    headers = [PHDR.pack(PT_NOTE, 0, start + at, 0, 0, size, size, 4) for at, size in notes]
    headers.append(PHDR.pack(PT_LOAD, 0, start, 0, 0, PAGE_SIZE, PAGE_SIZE, 0))
    return head + b"".join(headers) + body


@pytest.mark.slow
def test_many_segments_of_the_same_notes_cost_no_more_than_their_bytes(tmp_path: Path) -> None:
    """60,000 headers that all name the same 4 MiB of notes."""
    note = NHDR.pack(4, 0, 0) + b"ABC\0"
    body = note * ((4 << 20) // len(note))
    path = tmp_path / "core"
    path.write_bytes(_core([(0, len(body))] * 60_000, body))
    begin = time.process_time()
    with open_dump(path) as dump:
        assert any("notes are truncated" in problem for problem in dump.problems)
        assert len(dump.problems) <= MAX_PROBLEMS + 1
    assert time.process_time() - begin < 5
    assert 60_000 * len(body) > MAX_NOTES


def test_problems_are_listed_once_each_and_not_without_end(tmp_path: Path) -> None:
    path = tmp_path / "core"
    path.write_bytes(_core([(0, 1 << 40)] * 5000, bytes(PAGE_SIZE)))
    with open_dump(path) as dump:
        assert dump.problems.count("the notes are truncated") == 1


@pytest.mark.slow
def test_tables_that_fan_out_are_bounded_by_the_memory_that_could_hold_them(
    tmp_path: Path,
) -> None:
    """Four pages, each entry of one refers to the next: 512 * 512 * 512 tables, if one believes."""
    pages = np.zeros((4, 512), dtype=np.uint64)
    for level in range(3):
        pages[level] = (level + 1) * PAGE_SIZE + 0x63
    pages[3] = 0x63
    path = tmp_path / "raw"
    path.write_bytes(pages.tobytes())
    begin = time.process_time()
    with open_dump(path) as dump:
        limits = limits_for(dump)
        result = inspect(dump, 0, X86_64)
    assert time.process_time() - begin < 5
    assert {finding.kind for finding in result.findings} == {"limit"}
    assert limits.tables < 10_000
    assert len(result.runs) <= limits.runs


def test_a_dump_is_walked_within_limits_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless others are asked for."""
    pages = np.zeros((4, 512), dtype=np.uint64)
    for level in range(3):
        pages[level, 0] = (level + 1) * PAGE_SIZE + 0x63
    path = tmp_path / "raw"
    path.write_bytes(pages.tobytes())
    monkeypatch.setattr(inspection, "limits_for", lambda _: WalkLimits(tables=2))
    with open_dump(path) as dump:
        assert {finding.kind for finding in inspect(dump, 0, X86_64).findings} == {"limit"}
        assert inspect(dump, 0, X86_64, limits=WalkLimits()).findings == ()


@pytest.mark.slow
def test_the_limit_holds_chunk_by_chunk(tmp_path: Path) -> None:
    """Also with the usual limits, for whoever asks for them: no level is held before it is cut."""
    import tracemalloc

    pages = np.zeros((4, 512), dtype=np.uint64)
    for level in range(3):
        pages[level] = (level + 1) * PAGE_SIZE + 0x63
    path = tmp_path / "raw"
    path.write_bytes(pages.tobytes())
    tracemalloc.start()
    with open_dump(path) as dump:
        inspect(dump, 0, X86_64, limits=WalkLimits(tables=6_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 << 20
