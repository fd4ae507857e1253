"""The walker: every kind of entry, damage, and random trees against walks of one address."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import attrs
import numpy as np
import pytest
from hypothesis import given, strategies as st

from paravirt_mm.image import walker
from paravirt_mm.image.entries import FORMATS
from paravirt_mm.image.translate import Access, PageFault, Translation, translate
from paravirt_mm.image.walker import Cpu, LeafRun, Walk, WalkLimits, canonical, walk
from paravirt_mm.machine.paging import MODES, X86_64, PagingMode
from tests.page_tables import ROOT, RandomTables, page_tables

NX = 1 << 63


class Memory:
    """Physical memory by hand."""

    def __init__(self, mode: PagingMode, size: int = 1 << 20) -> None:
        self.mode = mode
        self.data = bytearray(size)

    def read(self, address: int, size: int) -> bytes | None:
        if address < 0 or address + size > len(self.data):
            return None
        return bytes(self.data[address : address + size])

    def put(self, table: int, index: int, entry: int) -> None:
        layout = "<I" if self.mode.entry_bytes == 4 else "<Q"
        struct.pack_into(layout, self.data, table + index * self.mode.entry_bytes, entry)

    def chain(self, root: int = 0x1000, flags: int = 0x67) -> int:
        """Lead entry 0 of each level to the next table; return the L1."""
        table = root
        for level in range(self.mode.root_level, 1, -1):
            bare = self.mode.name == "i386-pae" and level == 3
            self.put(table, 0, table + 0x1000 | (1 if bare else flags))
            table += 0x1000
        return table


@pytest.mark.parametrize("name", sorted(MODES))
def test_runs_holes_and_rights(name: str) -> None:
    mode = MODES[name]
    memory = Memory(mode)
    leaf = memory.chain()
    for n in range(16):
        memory.put(leaf, n, 0x40000 + n * 4096 | 0x163)
    for n in range(16, 20):
        memory.put(leaf, n, 0x40000 + n * 4096 | 0x161)
    memory.put(leaf, 30, 0x99000 | 0x163)
    found = walk(memory, 0x1000, mode)
    assert found.runs == (
        LeafRun(0, 0x10000, 0x40000, 1, True, False, True, True),
        LeafRun(0x10000, 0x14000, 0x50000, 1, False, False, True, True),
        LeafRun(0x1E000, 0x1F000, 0x99000, 1, True, False, True, True),
    )
    assert list(found.holes(0, 0x40000)) == [(0x14000, 0x1E000), (0x1F000, 0x40000)]
    assert not found.findings
    assert [len(found.tables[level]) for level in range(1, mode.root_level + 1)] == [
        1
    ] * mode.root_level


def test_rights_are_those_of_the_whole_path() -> None:
    memory = Memory(X86_64)
    leaf = memory.chain(flags=0x65)
    memory.put(leaf, 0, 0x5000 | 0x67)
    (run,) = walk(memory, 0x1000, X86_64).runs
    assert (run.writable, run.user, run.executable) == (False, True, True)
    memory.put(0x1000, 0, 0x2067 | NX)
    (run,) = walk(memory, 0x1000, X86_64).runs
    assert not run.executable
    # Without EFER.NXE the bit is reserved.
    found = walk(memory, 0x1000, X86_64, Cpu(nx=False))
    assert not found.runs
    assert [finding.kind for finding in found.findings] == ["reserved"]


def test_large_pages_and_their_pat_bit() -> None:
    memory = Memory(X86_64)
    memory.put(0x1000, 0, 0x2067)
    memory.put(0x2000, 0, 0x3067)
    memory.put(0x3000, 1, 0x20_0000 | 0x1E3)
    memory.put(0x3000, 2, 0x40_0000 | 0x11E3)
    memory.put(0x2000, 1, 1 << 30 | 0x1E3)
    found = walk(memory, 0x1000, X86_64)
    assert [(run.start, run.end, run.physical, run.level) for run in found.runs] == [
        (0x20_0000, 0x60_0000, 0x20_0000, 2),
        (1 << 30, 2 << 30, 1 << 30, 3),
    ]
    memory.put(0x3000, 2, 0x40_0000 | 0x21E3)
    (finding,) = walk(memory, 0x1000, X86_64).findings
    assert (finding.kind, finding.level, finding.address) == ("reserved", 2, 0x40_0000)


def test_pse36_reaches_above_4_gib() -> None:
    mode = MODES["i386"]
    memory = Memory(mode)
    memory.put(0x1000, 768, 0x0040_0000 | 3 << 13 | 0x1E3)
    (run,) = walk(memory, 0x1000, mode).runs
    assert (run.start, run.physical) == (0xC000_0000, 0x3_0040_0000)
    # Without CR4.PSE the same entry refers to a table, which is not there.
    (finding,) = walk(memory, 0x1000, mode, Cpu(pse=False)).findings
    assert finding.kind == "missing"


def test_pae_root_at_32_bytes() -> None:
    mode = MODES["i386-pae"]
    memory = Memory(mode)
    memory.put(0x1000 + 0x60, 3, 0x2001)
    memory.put(0x1000, 0, 0xFFFF_FFFF_FFFF_FFFF)
    memory.put(0x1000 + 0x60, 4, 0x2001)  # what follows the four is none of them
    memory.put(0x2000, 0, 0x1E3 | NX)
    found = walk(memory, 0x1060, mode)
    assert [(run.start, run.end) for run in found.runs] == [(0xC000_0000, 0xC020_0000)]
    assert not found.findings
    answer = translate(memory, 0x1060, mode, 0xC000_1234)
    assert answer == Translation(0x1234, 2, 0x1E3 | NX)


def test_upper_half_is_canonical() -> None:
    memory = Memory(X86_64)
    memory.put(0x1000, 511, 0x2067)
    memory.put(0x2000, 511, 0x1E3)
    (run,) = walk(memory, 0x1000, X86_64).runs
    assert (run.start, run.end) == (0xFFFF_FFFF_C000_0000, 1 << 64)
    assert canonical(X86_64, 0x7FFF_FFFF_FFFF) == 0x7FFF_FFFF_FFFF


def test_loops_are_findings() -> None:
    memory = Memory(X86_64)
    leaf = memory.chain()
    memory.put(leaf, 0, 0x5000 | 0x63)
    memory.put(0x1000, 5, 0x1067)  # the root is its own child, as in a recursive mapping
    memory.put(0x3000, 7, 0x2067)  # an L2 leads back to the L3 above it
    found = walk(memory, 0x1000, X86_64)
    assert [(f.kind, f.level, f.address) for f in found.findings] == [
        ("loop", 4, 5 << 39),
        ("loop", 2, 7 << 21),
    ]
    assert len(found.runs) == 1


def test_more_tables_than_are_read_together_keep_their_own_paths() -> None:
    """Below the first L3 stand 512 empty L2 tables, below the second 512 that lead back to it."""
    memory = Memory(X86_64)
    memory.put(0x1000, 0, 0x2067)
    memory.put(0x1000, 1, 0x3067)
    for n in range(512):
        memory.put(0x2000, n, 0x5067)
        memory.put(0x3000, n, 0x4067)
    memory.put(0x4000, 5, 0x3067)
    found = walk(memory, 0x1000, X86_64, limits=WalkLimits(findings=1000))
    assert {finding.kind for finding in found.findings} == {"loop"}
    assert [finding.address for finding in found.findings] == [
        (1 << 39) + (n << 30) + (5 << 21) for n in range(512)
    ]
    assert (found.visits, found.runs) == (1 + 2 + 1024, ())


def test_a_table_at_address_0_is_one_like_others() -> None:
    memory = Memory(X86_64)
    for table, entry in ((0x1000, 0x67), (0, 0x2067), (0x2000, 0x3067), (0x3000, 0x5063)):
        memory.put(table, 0, entry)
    found = walk(memory, 0x1000, X86_64)
    assert [run.physical for run in found.runs] == [0x5000]
    assert not found.findings


def test_a_shared_table_is_no_loop() -> None:
    memory = Memory(X86_64)
    leaf = memory.chain()
    memory.put(leaf, 0, 0x5000 | 0x63)
    memory.put(0x1000, 273, 0x2067)
    found = walk(memory, 0x1000, X86_64)
    assert not found.findings
    assert [run.physical for run in found.runs] == [0x5000, 0x5000]
    assert found.visits == 7
    addresses, virtual = found.places[3]  # every reference, and whence it maps
    assert (addresses.tolist(), virtual.tolist()) == ([0x2000, 0x2000], [0, 273 << 39])
    assert [column.tolist() for column in found.places[4]] == [[0x1000], [0]]
    assert [len(found.tables[level]) for level in (1, 2, 3, 4)] == [1, 1, 1, 1]


def test_tables_outside_of_memory() -> None:
    memory = Memory(X86_64)
    memory.put(0x1000, 0, 0x2067)
    memory.put(0x2000, 3, 0x7F_FFFF_F067)
    memory.put(0x2000, 4, 0x3067)
    memory.put(0x3000, 0, 0x1E3)
    found = walk(memory, 0x1000, X86_64)
    (finding,) = found.findings
    assert (finding.kind, finding.level, finding.address) == ("missing", 3, 3 << 30)
    assert "L2 table" in str(finding)
    assert len(found.runs) == 1
    (finding,) = walk(memory, 0x1000_0000, X86_64).findings
    assert (finding.kind, finding.level) == ("no root", 4)
    assert str(finding) == "CR3 0x10000000: the L4 table that it refers to is not in memory"
    # Neighbours are read together; if one is missing the others are there all the same.
    for n, page in enumerate((0xFE, 0xFF, 0x100, 0x101)):
        memory.put(0x3000, n, page << 12 | 0x67)
    memory.put(0xFE000, 0, 0x5063)
    memory.put(0xFF000, 0, 0x6063)
    found = walk(memory, 0x1000, X86_64, within=(4 << 30, 5 << 30))
    assert [run.physical for run in found.runs] == [0x5000, 0x6000]
    assert [(f.kind, f.level, f.address) for f in found.findings] == [
        ("missing", 2, (4 << 30) + (n << 21)) for n in (2, 3)
    ]


def test_address_beyond_the_cpu() -> None:
    memory = Memory(X86_64)
    leaf = memory.chain()
    for n in range(4):  # the frames cross the end of 40-bit addresses
        memory.put(leaf, n, (1 << 40) - 0x2000 + n * 0x1000 | 0x63)
    found = walk(memory, 0x1000, X86_64, Cpu(physical_bits=40))
    assert [(run.start, run.end) for run in found.runs] == [(0, 0x2000)]
    assert [finding.address for finding in found.findings] == [0x2000, 0x3000]


def test_frames_that_run_over_the_address_field() -> None:
    """Entries that ascend by 4096 into the flags above the address are not one run."""
    memory = Memory(X86_64)
    leaf = memory.chain()
    memory.put(leaf, 0, 0xF_FFFF_FFFF_F063)
    memory.put(leaf, 1, 0x10_0000_0000_0063)  # frame 0 with a software bit
    memory.put(leaf, 510, 0xF_FFFF_FFFF_F063)  # and up to the end of the table
    memory.put(leaf, 511, 0x10_0000_0000_0063)
    found = walk(memory, 0x1000, X86_64)
    last = 0xF_FFFF_FFFF_F000
    assert [(run.start, run.end, run.physical) for run in found.runs] == [
        (0, 0x1000, last), (0x1000, 0x2000, 0), (0x1F_E000, 0x1F_F000, last),
        (0x1F_F000, 0x20_0000, 0),
    ]  # fmt: skip


def test_a_full_table_is_looked_at_once() -> None:
    """In an L1 what ascends with equal flags is one stretch, and so is what is not present, as far
    as the next entry that is; in other tables, each entry.
    """
    tables = np.zeros((3, 512), dtype=np.uint64)
    tables[0] = np.arange(512) * 4096 + 0x63
    tables[1, :4], tables[1, 4:8] = tables[0, 4:8], tables[0, 8:12] ^ 2
    looked = walker._Walker(Memory(X86_64), FORMATS["x86_64"], Cpu(), WalkLimits())
    start, length = looked._stretches(1, tables)
    assert start.tolist() == [0, 512, 516, 520, 1024]
    assert length.tolist() == [512, 4, 4, 504, 512]
    for level in (2, 3, 4):
        start, length = looked._stretches(level, tables)
        assert start.tolist() == list(range(3 * 512))
        assert set(length.tolist()) == {1}


def test_a_tree_without_end_stops() -> None:
    """Every entry of every table leads to one other table: 512^3 visits, if one let it."""
    memory = Memory(X86_64)
    for table in range(0x1000, 0x5000, 0x1000):
        for n in range(512):
            memory.put(table, n, table + 0x1000 | 0x67)
    found = walk(memory, 0x1000, X86_64, limits=WalkLimits(tables=2000, runs=50, findings=10))
    assert found.visits <= 2000
    assert {finding.kind for finding in found.findings} == {"limit"}
    # The L1s map the frames of one page again and again: as many runs as entries.
    full = walk(memory, 0x2000, MODES["i386-pae"], limits=WalkLimits(tables=10000, runs=50))
    assert len(full.runs) <= 50


@pytest.mark.parametrize("together", [1, 512])
def test_runs_are_as_long_as_they_can_be(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Page by page: it goes on, into the next table too, while frames ascend and rights stay."""

    def alike(run: LeafRun) -> LeafRun:
        return attrs.evolve(run, start=0, end=0, physical=run.physical - run.start)

    monkeypatch.setattr(walker, "_CHUNK", together)
    chance = random.Random(7)
    for _ in range(12):
        memory = Memory(X86_64)
        leaf = memory.chain()
        tables = [leaf, 0x9000, 0xB000]
        for n, table in enumerate(tables):
            memory.put(leaf - 0x1000, n, table | 0x67)
        want: list[LeafRun] = []
        entry = 0x5000 | 0x63
        for page in range(3 * 512):
            if chance.random() < (0.4 if page % 512 in (0, 1, 511) else 0.01):
                entry ^= chance.choice([0x2, 0x4, 0x100, NX, 0x70_0000, 0, 1, 1])
            memory.put(tables[page // 512], page % 512, entry)
            if entry & 1:
                now = LeafRun(
                    page << 12, page + 1 << 12, entry & 0xF_FFFF_FFFF_F000, 1,
                    bool(entry & 2), bool(entry & 4), not entry & NX, bool(entry & 0x100),
                )  # fmt: skip
                if want and want[-1].end == now.start and alike(want[-1]) == alike(now):
                    now = attrs.evolve(want.pop(), end=now.end)
                want.append(now)
            entry += 0x1000
        assert list(walk(memory, 0x1000, X86_64).runs) == want


@pytest.mark.parametrize("together", [1, 512])
def test_a_walk_ends_at_exactly_its_limits(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breadth first, whatever is read together: the tables that the limit leaves, with one finding
    for each level that goes on: its first table that was not visited. Runs alike.
    """
    monkeypatch.setattr(walker, "_CHUNK", together)
    memory = Memory(X86_64)
    trees = {4: [(0x1000, 0)]}
    at = 0x2000
    for level in (3, 2, 1):
        trees[level] = []
        for table, base in trees[level + 1]:
            for n in (1, 3):
                memory.put(table, n, at | 0x67)
                trees[level].append((at, base + (n << 12 + 9 * level)))
                at += 0x1000
    pages = [(table, base, n) for table, base in trees[1] for n in (2, 3, 5)]
    for k, (table, _, n) in enumerate(pages):
        memory.put(table, n, 0x1000 * (2 * k + 1) | 0x63)
    for limit in range(1, 17):
        found = walk(memory, 0x1000, X86_64, limits=WalkLimits(tables=limit))
        assert found.visits == min(limit, 15)
        room, after = limit - 1, []
        parents = 1
        for level in (3, 2, 1):
            if 2 * parents > room:
                table, base = trees[level][room]
                after.append(("limit", level + 1, base, table))
            parents = min(2 * parents, room)
            room -= parents
        assert [(f.kind, f.level, f.address, f.entry) for f in found.findings] == after
    for limit in range(len(pages) + 2):
        found = walk(memory, 0x1000, X86_64, limits=WalkLimits(runs=limit))
        starts = [base + (n << 12) for _, base, n in pages]
        assert [run.start for run in found.runs] == starts[:limit]
        assert [(f.kind, f.level, f.address, f.entry) for f in found.findings] == [
            ("limit", 1, start, 0) for start in starts[limit : limit + 1]
        ]


def test_findings_are_bounded_and_counted() -> None:
    memory = Memory(X86_64)
    leaf = memory.chain()
    for n in range(512):
        memory.put(leaf, n, 1 << 51 | 0x63)
    found = walk(memory, 0x1000, X86_64, Cpu(physical_bits=40), WalkLimits(findings=7))
    assert len(found.findings) == 7
    assert found.dropped == 505
    memory.put(0x3000, 1, 0x4067)  # the same again: what the limit leaves is shared by all tables
    for limit in (511, 512, 513, 1024, 1025):
        found = walk(memory, 0x1000, X86_64, Cpu(physical_bits=40), WalkLimits(findings=limit))
        assert [f.address for f in found.findings] == [n * 4096 for n in range(min(limit, 1024))]
        assert found.dropped == max(0, 1024 - limit)


@pytest.mark.parametrize(("limit", "kept", "dropped"), [(0, 0, 1), (1, 1, 0)])
def test_a_single_finding_is_bounded_and_counted(limit: int, kept: int, dropped: int) -> None:
    memory = Memory(X86_64)
    memory.put(memory.chain(), 0, 0x5063)
    found = walk(memory, 0x1000, X86_64, limits=WalkLimits(runs=0, findings=limit))
    assert (len(found.findings), found.dropped) == (kept, dropped)


def test_the_last_page_of_all_addresses_can_be_asked_for() -> None:
    memory = Memory(X86_64)
    leaf = memory.chain()
    for table in (0x1000, 0x2000, 0x3000):
        memory.put(table, 511, table + 0x1067)
    memory.put(leaf, 510, 0x5063)
    memory.put(leaf, 511, 0x8063)
    found = walk(memory, 0x1000, X86_64, within=((1 << 64) - 4096, 1 << 64))
    assert [(run.end, run.physical) for run in found.runs] == [(1 << 64, 0x8000)]


def test_cr4_pse_is_for_two_levels_only() -> None:
    """SDM 3: where PAE is used, PS alone makes a large page."""
    memory = Memory(X86_64)
    memory.put(0x1000, 0, 0x2067)
    memory.put(0x2000, 0, 0x3067)
    memory.put(0x3000, 1, 0x20_01E3)
    for cpu in (Cpu(), Cpu(pse=False)):
        answer = translate(memory, 0x1000, X86_64, 0x20_0123, cpu=cpu)
        assert answer == Translation(0x20_0123, 2, 0x20_01E3)
        assert [run.level for run in walk(memory, 0x1000, X86_64, cpu).runs] == [2]
    two = Memory(MODES["i386"])
    two.put(0x1000, 1, 0x40_01E3)
    assert translate(two, 0x1000, two.mode, 0x40_0123) == Translation(0x40_0123, 2, 0x40_01E3)
    answer = translate(two, 0x1000, two.mode, 0x40_0123, cpu=Cpu(pse=False))
    assert isinstance(answer, PageFault)
    assert (answer.level, answer.entry) == (1, None)  # the table that it refers to is not there


def test_within_visits_only_what_is_asked_for() -> None:
    memory = Memory(X86_64)
    leaf = memory.chain()
    memory.put(leaf, 0, 0x5000 | 0x63)
    memory.put(leaf, 9, 0x6000 | 0x63)
    memory.put(0x1000, 273, 0x8067)
    memory.put(0x8000, 0, 0x1E3)
    start = 0xFFFF_8880_0000_0000
    found = walk(memory, 0x1000, X86_64, within=(start, start + 4096))
    assert [(run.start, run.level) for run in found.runs] == [(start, 3)]
    assert sum(len(pages) for pages in found.tables.values()) == 2
    memory.put(leaf, 8, 0x3333000 | 0x63)
    memory.put(leaf, 10, 0x4444000 | 0x63)
    found = walk(memory, 0x1000, X86_64, within=(0x9000, 0xA000))
    assert [run.physical for run in found.runs] == [0x6000]


@pytest.mark.parametrize(
    ("access", "address", "code", "level"),
    [
        (Access(), 0x5000, 0, 1),
        (Access(write=True), 0x5000, 2, 1),
        (Access(fetch=True), 0x5000, 16, 1),
        (Access(write=True), 0x1000, 3, 1),
        (Access(fetch=True), 0x1000, 17, 1),
        (Access(), 0x2000, 9, 1),
        (Access(write=True), 0x2000, 11, 1),
        (Access(), 1 << 39, 0, 4),
    ],
)
def test_faults_say_level_entry_and_code(
    access: Access, address: int, code: int, level: int
) -> None:
    memory = Memory(X86_64)
    leaf = memory.chain()
    memory.put(leaf, 1, 0x5000 | 0x61 | NX)
    memory.put(leaf, 2, 1 << 51 | 0x63)
    answer = translate(memory, 0x1000, X86_64, address, access, Cpu(physical_bits=40))
    assert isinstance(answer, PageFault)
    assert (answer.code, answer.level, answer.address) == (code, level, address)
    assert f"{address:#x}" in str(answer)


# -- random trees ---------------------------------------------------------------------------------


def edges(found: Walk, mode: PagingMode) -> Iterator[tuple[int, LeafRun | None]]:
    for run in found.runs:
        yield run.start, run
        yield run.end - 1, run
        yield (run.start + run.end) // 2, run
    half = 1 << (mode.virtual_bits - 1)
    spaces = [(0, half), (canonical(mode, half), canonical(mode, 2 * half - 1) + 1)]
    for low, high in spaces:
        for start, end in found.holes(low, high):
            yield start, None
            yield end - 1, None


@given(page_tables(), st.sampled_from([Cpu(), Cpu(physical_bits=40), Cpu(nx=False)]))
def test_the_whole_walk_agrees_with_single_addresses(tables: RandomTables, cpu: Cpu) -> None:
    mode = tables.mode
    found = walk(tables, ROOT, mode, cpu, WalkLimits(tables=1 << 14, runs=1 << 14))
    if any(finding.kind in ("loop", "limit") for finding in found.findings) or found.dropped:
        return  # the walk of one address goes round the loop; the whole walk must not
    probes = [*edges(found, mode)]
    for offset in tables.addresses():
        address = canonical(mode, offset)
        home = [run for run in found.runs if run.start <= address < run.end]
        probes.append((address, home[0] if home else None))
    for address, run in probes:
        for access in (Access(), Access(write=True), Access(fetch=True)):
            answer = translate(tables, ROOT, mode, address, access, cpu)
            denied = run is None or (
                (access.write and not run.writable) or (access.fetch and not run.executable)
            )
            assert isinstance(answer, PageFault) is denied, (hex(address), access, run, answer)
            if run is not None and isinstance(answer, Translation):
                assert answer.physical == run.physical + address - run.start
                assert answer.level == run.level
