"""The judge beside the emulated CPU: where it looks, what it counts, and what it must object to.

No emulator here: a CPU by hand says what each case needs.
"""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
import pytest

from paravirt_mm.image.entries import NX
from paravirt_mm.image.translate import Access
from paravirt_mm.image.walker import Cpu, Damage, LeafRun, Walk, walk
from paravirt_mm.machine.paging import GIB, MODES, X86_64
from paravirt_mm.verify.cpu import (
    EMULATED_BITS,
    CpuReport,
    Disagreement,
    Seen,
    _Comparison,
    probe_addresses,
    probe_slot_end,
)

PAGE = 4096


def leaf(start: int, end: int, physical: int = 0) -> LeafRun:
    return LeafRun(start, end, physical, 1, True, False, True, False)


@pytest.mark.parametrize(
    ("name", "slot", "half", "last"),
    [
        ("i386", 4 << 20, None, 1 << 32),
        ("i386-pae", GIB, None, 1 << 32),
        ("x86_64", 1 << 39, 1 << 47, 1 << 64),
        ("x86_64-la57", 1 << 48, 1 << 56, 1 << 64),
    ],
)
def test_runs_and_holes_are_tried_at_both_ends(
    name: str, slot: int, half: int | None, last: int
) -> None:
    """Not where the probing code lies, and not between the two halves."""
    mode = MODES[name]
    base = last - (1 << 30)
    runs = leaf(base, base + 8 * PAGE), leaf(base + 16 * PAGE, base + 17 * PAGE)
    found = Walk(mode, runs, {1: np.empty(0, dtype=np.uint64)}, {}, 0, ())
    probes = list(probe_addresses(found, 3, 1))
    assert probe_slot_end(mode) == slot
    low = [slot] if half is None else [slot, half - 1, last - half]
    holes = [*low, base - 1, base + 8 * PAGE, base + 16 * PAGE - 1, base + 17 * PAGE, last - 1]
    assert [address for address, run in probes if run is None] == holes
    for run in runs:
        tried = [address for address, of in probes if of is run]
        assert tried[:2] == [run.start, run.end - 1]
        assert len(tried) == 5
        assert all(run.start <= address < run.end for address in tried)
    assert len({address for address, run in probes if run is runs[0]}) == 5
    assert probes == list(probe_addresses(found, 3, 1))
    assert probes != list(probe_addresses(found, 3, 2))


def test_agreement_needs_everything() -> None:
    good = CpuReport(1, 0, 0, 1, 0, (), ())
    assert good.agrees
    assert not attrs.evolve(good, disagreements=(Disagreement(0, "read", "0x0", "0x1"),)).agrees
    assert not attrs.evolve(good, findings=(Damage("loop", 1, 0, 0, ""),)).agrees
    assert not attrs.evolve(good, writable_tables=((0, PAGE),)).agrees
    assert EMULATED_BITS == 40  # QEMU 8 and 9: target/i386/cpu.c, max_x86_cpu_initfn; unicorn's too


def memory(entry: int) -> Any:
    """Tables at 0x1000 to 0x4000 whose last has one entry, for address 0x5000."""
    data = bytearray(6 * PAGE)
    for table in (1, 2, 3):
        struct.pack_into("<Q", data, table * PAGE, (table + 1) * PAGE | 0x67)
    struct.pack_into("<Q", data, 4 * PAGE + 5 * 8, entry)
    return SimpleNamespace(read=lambda address, size: bytes(data[address : address + size]))


class ByHand:
    """A CPU that maps page 5 to 0x9000 with some rights."""

    def __init__(self, write: bool = True, fetch: bool = True, shift: int = 0) -> None:
        self.write, self.fetch, self.shift = write, fetch, shift

    def access(self, address: int, access: Access) -> Seen:
        if access.write and not self.write:
            return Seen(fault=3)
        if access.fetch and not self.fetch:
            return Seen(fault=17)
        return Seen(physical=address + 0x4000 + self.shift)


RUN = LeafRun(0x5000, 0x6000, 0x9000, 1, True, False, True, False)
CASES: dict[str, tuple[int, ByHand, LeafRun | None, list[str]]] = {
    "all agree": (0x9063, ByHand(), RUN, []),
    "read only": (0x9061, ByHand(write=False), attrs.evolve(RUN, writable=False), []),
    "no code": (0x9063 | NX, ByHand(fetch=False), attrs.evolve(RUN, executable=False), []),
    "the CPU goes elsewhere": (0x9063, ByHand(shift=1), RUN, ["read", "write", "fetch"]),
    "the CPU lets it be written": (
        0x9061, ByHand(), attrs.evolve(RUN, writable=False), ["write"],
    ),
    "the run goes elsewhere": (
        0x9063, ByHand(), attrs.evolve(RUN, physical=0xA000),
        ["read (walk)", "write (walk)", "fetch (walk)"],
    ),
    "the run forbids writing": (
        0x9063, ByHand(), attrs.evolve(RUN, writable=False), ["write (walk)"],
    ),
    "the run forbids code": (
        0x9063, ByHand(), attrs.evolve(RUN, executable=False), ["fetch (walk)"],
    ),
    "the run lets it be written": (0x9061, ByHand(write=False), RUN, ["write (walk)"]),
    "a hole that maps": (0x9063, ByHand(), None, []),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_compared(name: str) -> None:
    entry, cpu, run, wrong = CASES[name]
    tables = memory(entry)
    judge = _Comparison(tables, PAGE, X86_64, Cpu(physical_bits=40), cpu)  # type: ignore[arg-type]
    judge.probe(0x5123, run)
    assert [each.access for each in judge.disagreements] == wrong
    assert judge.probes == 3
    assert judge.faults == (not entry & 2) + bool(entry & NX)
    assert judge.beyond == 0
    if run is not None and not wrong:
        (walked,) = walk(tables, PAGE, X86_64).runs
        assert (walked.start, walked.physical) == (run.start, run.physical)
        # Code is tried in the middle of the page: nothing reaches into the next.
        assert str(Disagreement(0x5800, "fetch", "0x1", "0x2")) == (
            "fetch at 0x5800: walker 0x1, CPU 0x2"
        )


def test_what_the_emulated_cpu_cannot_address_is_counted_apart() -> None:
    class Faults:
        def access(self, _address: int, access: Access) -> Seen:
            return Seen(fault=9 + 2 * access.write + 16 * access.fetch)

    tables = memory(1 << 40 | 0x63)
    judge = _Comparison(tables, PAGE, X86_64, Cpu(physical_bits=40), Faults())  # type: ignore[arg-type]
    judge.probe(0x5000, RUN)
    assert (judge.probes, judge.faults, judge.beyond) == (3, 3, 3)
    assert judge.disagreements == []


def test_disagreements_are_listed_up_to_a_hundred() -> None:
    judge = _Comparison(memory(0x9063), PAGE, X86_64, Cpu(), ByHand(shift=1))  # type: ignore[arg-type]
    for _ in range(40):
        judge.probe(0x5000, None)
    assert len(judge.disagreements) == 100
    assert str(judge.disagreements[0]) == "read at 0x5000: walker 0x9000, CPU 0x9001"
    assert str(judge.disagreements[2]) == "fetch at 0x5800: walker 0x9800, CPU 0x9801"
    assert [str(Seen(fault=3)), str(Seen(physical=0)), str(Seen())] == [
        "#PF(0x3)",
        "0x0",
        "nothing",
    ]
