"""Input that is meant to hurt: an InputError or a machine, soon, and in little memory."""

from __future__ import annotations

import gzip
import random
import time
import tracemalloc
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from paravirt_mm.errors import InputError
from paravirt_mm.printable import printable
from paravirt_mm.sources import load, read_boot_log
from paravirt_mm.sources.bootlog.linux import MAX_CHANGES, MAX_FACTS
from paravirt_mm.sources.bootlog.xen import MAX_MAP_ENTRIES
from paravirt_mm.sources.lines import MAX_LINE_BYTES, MAX_LOG_BYTES

ENTRY = "BIOS-e820: [mem 0x{:016x}-0x{:016x}] {}\n".format
EXCERPTS = sorted((Path(__file__).parents[1] / "data" / "logs").glob("*.txt"))


def outcome(path: Path) -> str:
    """Load ``path``; anything but a machine and an InputError that names it fails the test."""
    try:
        machine = load(path)
    except InputError as error:
        message = str(error)
    else:
        return f"{len(machine.memory_map)} entries"
    assert path.name in message
    return message


@pytest.mark.slow
def test_a_map_of_100_000_entries(tmp_path):
    path = tmp_path / "big.txt"
    kinds = ["usable", "reserved", "ACPI NVS"]
    entries = [ENTRY(i << 16, (i << 16) + 0x7FFF, kinds[i % 3]) for i in range(100_000)]
    random.Random(1).shuffle(entries)
    trimming = (
        "e820: update [mem 0x00000000-0x00000fff] usable ==> reserved\n"
        "e820: remove [mem 0x000a0000-0x000fffff] usable\n"
    )
    path.write_text("".join(entries) + trimming)
    started = time.process_time()
    # The first entry loses its first page to another type; two pieces of RAM lie in 640K-1M.
    assert outcome(path) == "99999 entries"
    assert time.process_time() - started < 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            (ENTRY(i << 16, (i << 16) + 0x7FFF, "usable") for i in range(MAX_MAP_ENTRIES + 1)),
            f":{MAX_MAP_ENTRIES + 1}: more than {MAX_MAP_ENTRIES} memory map entries",
        ),
        (
            ["BRK [0x02145000, 0x02145fff] PGTABLE\n"] * (MAX_FACTS + 1),
            f":{MAX_FACTS + 1}: more than {MAX_FACTS} boot messages",
        ),
        (
            [ENTRY(0, 0xFFFFFFF, "usable")]
            + ["e820: update [mem 0x0-0xfff] usable ==> reserved\n"] * (MAX_CHANGES + 1),
            f":{MAX_CHANGES + 2}: more than {MAX_CHANGES} changes",
        ),
        (
            chain(
                (ENTRY(i << 16, (i << 16) + 0x7FFF, "usable") for i in range(50_000)),
                ["e820: update [mem 0x0-0xfff] usable ==> reserved\n"] * 4000,
            ),
            "4000 changes of a memory map with 50000 entries",
        ),
    ],
    ids=["entries", "facts", "changes", "entries times changes"],
)
def test_too_much_of_something(tmp_path, lines, expected):
    path = tmp_path / "big.txt"
    path.write_text("".join(lines))
    assert expected in outcome(path)


@pytest.mark.slow
def test_an_endless_line_takes_no_memory(tmp_path):
    path = tmp_path / "line.txt"
    with path.open("wb") as file:
        file.write(ENTRY(0, 0xFFFFFFF, "usable").encode())
        file.truncate(MAX_LOG_BYTES + 1000)  # a hole: reads as zeros, takes no disk
    tracemalloc.start()
    try:
        message = outcome(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert f"line.txt: longer than {MAX_LOG_BYTES >> 20} MiB" in message
    assert peak < 4 << 20


def test_what_follows_on_a_long_line_is_dropped(tmp_path):
    path = tmp_path / "line.txt"
    entry = ENTRY(0x100000, 0xFFFFFFF, "usable").rstrip()
    path.write_text(f"{entry}\n{'x' * MAX_LINE_BYTES}{entry.replace('usable', 'reserved')}\n")
    assert list(load(path).memory_map.ram().within(1 << 20, 1 << 30)) == [(0x100000, 0x10000000)]


def test_a_compression_bomb(tmp_path):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(bytes(1 << 20)) * ((MAX_LOG_BYTES >> 20) + 1))
    assert path.stat().st_size < 1 << 20
    assert "longer than" in outcome(path)


@pytest.mark.parametrize(
    "head", [b"\x1f\x8b", b"BZh9", b"\xfd7zXZ\x00", b"a" * 257 + b"ustar\x0000"]
)
@pytest.mark.parametrize("size", [0, 1, 1000])
def test_damaged_archives(tmp_path, head, size):
    path = tmp_path / "damaged"
    path.write_bytes(head + random.Random(size).randbytes(size))
    assert "entries" not in outcome(path)


@pytest.mark.parametrize(
    "content",
    [
        b'{"format":' + b"[" * 1_000_000,
        b'{"format":' + b"9" * 100_000 + b"}",
        b'{"format": "paravirt-mm-machine-1", "name": "\\ud800", "memory": []}',
        b'{"e820": ' + b"[" * 100_000,
        b'format = "paravirt-mm-machine-1"\nx = ' + b"[" * 100_000,
        b'format = "paravirt-mm-machine-1"\n' + b"a." * 100_000 + b"b = 1",
        b'format = "paravirt-mm-machine-1"\nname = "\xff"',
        "Linux version".encode("utf-16"),
        b"",
        b"\0" * 100_000,
        b"\n" * 100_000,
        b"BIOS-e820: [mem 0x0-0xffffffffffffffff] usable\n",
        b"BIOS-e820: [mem 0xffffffffffffffff-0x0] usable\n",
        b"(XEN) Xen-e820 RAM map:\n(XEN)  [0000000000000000, ffffffffffffffff] (reserved)\n",
    ],
)
def test_nonsense(tmp_path, content):
    path = tmp_path / "nonsense"
    path.write_bytes(content)
    started = time.process_time()
    outcome(path)
    assert time.process_time() - started < 3


def test_random_bytes(tmp_path):
    path = tmp_path / "random"
    path.write_bytes(random.Random(2).randbytes(4 << 20))
    assert "not a boot log" in outcome(path)


@pytest.mark.parametrize(
    "path", ["/dev/zero", "/dev/null", "/", "/proc/self/mem", "a\0b", "x" * 5000]
)
def test_paths_that_are_no_logs(path):
    with pytest.raises(InputError):
        load(path) if path != "/" else read_boot_log(path)


@pytest.mark.slow
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_truncated_and_damaged_logs(tmp_path, data):
    content = bytearray(data.draw(st.sampled_from(EXCERPTS)).read_bytes())
    content = content[: data.draw(st.integers(0, len(content)))]
    for _ in range(data.draw(st.integers(0, 20)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.txt"
    path.write_bytes(content)
    outcome(path)


@given(st.text(max_size=400), st.integers(4, 300))
def test_printable_is_printable_and_short(text, limit):
    shown = printable(text, limit)
    assert shown.isprintable()
    assert len(shown) <= limit * len("\\U0010ffff")
