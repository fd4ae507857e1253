"""Entries bit by bit as the manual has them (Intel SDM volume 3, chapter "Paging"), and what is
worked out from whole trees, against the obvious way.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
import pytest

from paravirt_mm import (
    CpuFeatures,
    E820Type,
    KernelImage,
    Machine,
    Map,
    MemoryMap,
    PageRun,
    Promise,
    Run,
    Scenario,
    Source,
    TablePages,
    hookimpl,
)
from paravirt_mm.engine.trace import TablesAllocated, Trace
from paravirt_mm.errors import InputError
from paravirt_mm.image import entries as bits
from paravirt_mm.image.boot_tables import place_boot_tables
from paravirt_mm.image.contents import Image
from paravirt_mm.image.dump import Segment
from paravirt_mm.image.entries import FORMATS
from paravirt_mm.image.inspect import DirectMap, find_direct_map, limits_for, table_figures
from paravirt_mm.image.walker import (
    Cpu,
    LeafRun,
    Walk,
    WalkLimits,
    canonical,
    leaf_address,
    reserved_bits,
    walk,
)
from paravirt_mm.machine.paging import GIB, KIB, MIB, MODES, PagingMode
from paravirt_mm.machine.ranges import RangeSet
from paravirt_mm.testing import AscendingAllocator, registry_with

CPUS = [
    Cpu(), Cpu(physical_bits=30), Cpu(physical_bits=32), Cpu(physical_bits=34),
    Cpu(physical_bits=38), Cpu(physical_bits=39), Cpu(physical_bits=40), Cpu(physical_bits=46),
    Cpu(nx=False), Cpu(gbpages=False),
]  # fmt: skip


def reserved(mode: PagingMode, level: int, bit: int, leaf: bool, cpu: Cpu) -> bool:
    """Say whether a bit must be 0, as the tables of the manual have it."""
    if mode.entry_bytes == 4:
        if not leaf or level == 1 or not 13 <= bit <= 21:
            return False
        # PSE-36: bit 13 is address bit 32; what the CPU lacks and bit 21 are reserved.
        return bit == 21 or bit + 19 >= max(32, cpu.physical_bits)
    if bit == 63:
        return not cpu.nx or (mode.is_32bit and level == 3)
    if bit >= cpu.physical_bits:
        return mode.is_32bit or bit < 52
    if mode.is_32bit and level == 3:
        return bit in (1, 2, 6, 7, 8)
    if level >= 4:
        return bit == 7
    if not leaf or level == 1:
        return False
    return 13 <= bit < {2: 21, 3: 30}[level] or (level == 3 and bit == 7 and not cpu.gbpages)


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("cpu", CPUS, ids=str)
def test_reserved_bits_of_the_manual(name: str, cpu: Cpu) -> None:
    mode = MODES[name]
    for level in range(1, mode.root_level + 1):
        both = reserved_bits(FORMATS[name], level, cpu)
        for leaf in (False, True):
            if leaf and level > 1 and level not in mode.large_levels:
                continue
            wrong = [
                bit
                for bit in range(8 * mode.entry_bytes)
                if bool(both[leaf] >> bit & 1) is not reserved(mode, level, bit, leaf, cpu)
            ]
            assert wrong == [], (level, leaf)


def test_bits_have_the_places_of_the_manual() -> None:
    places = {
        "PRESENT": 0, "RW": 1, "USER": 2, "PWT": 3, "PCD": 4, "ACCESSED": 5, "DIRTY": 6,
        "PSE": 7, "PAT": 7, "GLOBAL": 8, "PAT_LARGE": 12, "NX": 63, "XEN_GUEST_KERNEL": 52,
    }  # fmt: skip
    assert {name: getattr(bits, name) for name in places} == {
        name: 1 << place for name, place in places.items()
    }


def test_flags_are_the_kernels() -> None:
    """pgtable_types.h of Linux 4.19, as numbers; L1_PROT, COMPAT_L1_PROT of Xen 4.17."""
    assert bits.KERNPG_TABLE == 0x063
    assert bits.PAGE_TABLE == 0x067
    assert bits.PAGE_KERNEL == 1 << 63 | 0x163
    assert bits.PAGE_KERNEL_LARGE == 1 << 63 | 0x1E3
    assert bits.DOMAIN_BUILDER_LEAF == 0x023
    assert bits.DOMAIN_BUILDER_LEAF_64 == 1 << 52 | 0x027


@pytest.mark.parametrize("name", MODES)
def test_formats(name: str) -> None:
    mode, entry_format = MODES[name], FORMATS[name]
    levels = range(1, mode.root_level + 1)
    pae, narrow = name == "i386-pae", name == "i386"
    table = [0x001 if pae and level == 3 else 0x067 for level in levels if level > 1]
    boot = [
        0x063 if level > 2 and not mode.is_32bit else known for level, known in enumerate(table, 2)
    ]
    assert entry_format.mode is mode
    assert (entry_format.table, entry_format.boot_table) == ((0, 0, *table), (0, 0, *boot))
    assert entry_format.permissions == (False, *(not (pae and level == 3) for level in levels))
    assert (len(entry_format.reserved), entry_format.reserved[0]) == (1 + mode.root_level, 0)
    assert (entry_format.dtype, entry_format.page_entries) == (
        ("<u4", 1024) if narrow else ("<u8", 512)
    )
    frame = range(12, 32 if narrow else 52)
    assert entry_format.address_field == sum(1 << bit for bit in frame)
    for level in (1, *mode.large_levels):
        span = mode.entry_span(level)
        field = sum(1 << bit for bit in frame if 1 << bit >= span)
        assert entry_format.leaf_address_field(level) == field


def test_addresses_of_4_mib_pages_have_40_bits() -> None:
    entry = np.array([0xFFC0_0000 | 0xFF << 13 | 0xFFF, 0x0040_0000 | 1 << 13], dtype=np.uint64)
    assert leaf_address(FORMATS["i386"], 2, entry).tolist() == [0xFF_FFC0_0000, 0x1_0040_0000]
    assert leaf_address(FORMATS["i386"], 1, entry).tolist() == [0xFFDF_E000, 0x0040_2000]
    assert leaf_address(FORMATS["x86_64"], 2, entry).tolist() == [0xFFC0_0000, 0x0040_0000]


def test_what_is_assumed_of_a_cpu() -> None:
    assert Cpu() == Cpu(physical_bits=52, nx=True, pse=True, gbpages=True)
    assert WalkLimits() == WalkLimits(tables=4 << 20, runs=1 << 20, findings=100)


@pytest.mark.parametrize(
    ("name", "address", "seen"),
    [
        ("x86_64", 1 << 47, 0xFFFF_8000_0000_0000),
        ("x86_64", (1 << 47) - 1, (1 << 47) - 1),
        ("x86_64", (1 << 48) - 1, (1 << 64) - 1),
        ("x86_64", 0xFFFF_8880_0000_0000, 0xFFFF_8880_0000_0000),
        ("x86_64-la57", 1 << 56, 0xFF00_0000_0000_0000),
        ("x86_64-la57", 1 << 55, 1 << 55),
        ("i386", 0xC000_0000, 0xC000_0000),
        ("i386-pae", 0x1_C000_0000, 0xC000_0000),
    ],
)
def test_canonical_addresses(name: str, address: int, seen: int) -> None:
    assert canonical(MODES[name], address) == seen


# -- whole trees ----------------------------------------------------------------------------------


def found(*runs: LeafRun, tables: list[int] | None = None, mode: str = "x86_64") -> Walk:
    pages = np.array(tables or [], dtype=np.uint64)
    return Walk(MODES[mode], tuple(runs), {1: pages}, {}, 0, ())


def run(
    start: int, end: int, physical: int = 0, *, writable: bool = True, fetch: bool = False
) -> LeafRun:
    return LeafRun(start, end, physical, 1, writable, False, fetch, False)


def test_holes_and_table_pages() -> None:
    chance = random.Random(1)
    for _ in range(60):
        edges = sorted(chance.sample(range(30), 8))
        spans = list(zip(edges[::2], edges[1::2], strict=True))
        tables = chance.sample(range(1, 12), chance.randint(0, 9))
        walked = found(*(run(*span) for span in spans), tables=[n * 4096 for n in sorted(tables)])
        start, end = chance.randrange(30), chance.randrange(30)
        free = [n for n in range(start, end) if not any(low <= n < high for low, high in spans)]
        told = [n for low, high in walked.holes(start, end) for n in range(low, high)]
        assert told == free
        assert all(low < high for low, high in walked.holes(start, end))
        assert walked.table_pages() == RangeSet((n * 4096, (n + 1) * 4096) for n in tables)


KERNEL = 0xFFFF_8880_0000_0000


def test_the_direct_map_is_the_distance_with_the_most_memory_of_the_kernels_half() -> None:
    text = run(0xFFFF_FFFF_8000_0000, 0xFFFF_FFFF_8000_3000, 0x100_0000)
    parts = run(KERNEL, KERNEL + 0x2000, 0), run(KERNEL + 0x5000, KERNEL + 0x7000, 0x5000)
    user = run(0x1000, 0x9000, 0x9000)
    assert find_direct_map(found(user, *parts, text)) == DirectMap(KERNEL, KERNEL, KERNEL + 0x7000)
    assert find_direct_map(found(user)) is None
    # Of equals it is the higher one.
    assert find_direct_map(
        found(parts[0], attrs.evolve(text, end=text.start + 0x2000))
    ) == DirectMap(text.start - 0x100_0000, text.start, text.start + 0x2000)
    edge = run(1 << 31, (1 << 31) + 4096)
    assert find_direct_map(found(edge, mode="i386")) == DirectMap(1 << 31, edge.start, edge.end)
    assert find_direct_map(found(run((1 << 31) - 4096, 1 << 31), mode="i386")) is None


def test_figures_of_what_a_walk_found() -> None:
    walked = found(
        run(KERNEL, KERNEL + 0x3000, 0, fetch=True),
        run(KERNEL + 0x4000, KERNEL + 0x6000, 0x4000, writable=False, fetch=True),
        run(0xFFFF_FFFF_8000_0000, 0xFFFF_FFFF_8000_1000, 0x5000),
        tables=[0x2000, 0x5000, 0x6000],
    )
    everything = table_figures(walked)
    assert (everything["runs"], everything["mapped_4k"]) == (3, 0x6000)
    assert everything["writable_tables"] == 2  # 0x2000, and 0x5000 through the last run
    assert everything["writable_executable"] == 0x3000
    direct = table_figures(walked, DirectMap(KERNEL, KERNEL, KERNEL + 0x6000))
    assert (direct["runs"], direct["mapped_4k"], direct["writable_tables"]) == (2, 0x5000, 1)
    assert (direct["tables"], direct["lowest_table"]) == (3, 0x2000)


def test_limits_of_a_walk_go_by_the_size_of_the_dump() -> None:
    def limits(*sizes: int) -> WalkLimits:
        segments = [Segment(n << 40, (n << 40) + size, 0) for n, size in enumerate(sizes)]
        return limits_for(SimpleNamespace(segments=segments))  # type: ignore[arg-type]

    assert limits() == WalkLimits(tables=4096, runs=4096)
    assert limits(8192, 4097) == WalkLimits(tables=4 * 3 + 4096, runs=2048 * 3 + 4096)
    assert limits(1 << 40) == WalkLimits()


# -- where tables lie -----------------------------------------------------------------------------


@attrs.frozen
class Scattered(AscendingAllocator):
    """Takes single pages, some beside each other, some with one or two pages between."""

    @hookimpl
    def pvmm_promise(self) -> Promise:
        return Promise(((MIB, 32 * MIB + 0x3000),))

    @hookimpl
    def pvmm_map_steps(self) -> Iterator[Map]:
        yield Map(MIB, 32 * MIB + 0x3000)

    @hookimpl
    def pvmm_allocate_tables(self, boot: Any, demand: Any) -> list[TablePages]:
        offsets = [0, 1, 2, 4, 5, 8, 9, 10, 12, 15, 17, 18, 19, 21, 22, 24, 27, 28, 30, 31]
        offsets = offsets[boot.tables_made :][: demand.count]
        return [TablePages(PageRun(0x800 + n, 1), Source.MEMBLOCK) for n in offsets]  # from 8 MiB


def test_extents_are_whole(make_machine: Any) -> None:
    registry = registry_with(scattered=Scattered)
    machine = make_machine("x86_64", features=CpuFeatures(pse=False))
    trace = Scenario.of(machine, "scattered", "native").run(registry).trace
    image = Image(trace)
    pages = {(address >> 12) + n for address, rows in image.chunks() for n in range(len(rows))}
    starts = sorted(pfn for pfn in pages if pfn - 1 not in pages)
    ends = sorted(pfn + 1 for pfn in pages if pfn + 1 not in pages)
    assert len(starts) > 3
    assert image.extents() == [(a << 12, b << 12) for a, b in zip(starts, ends, strict=True)]
    for pfn in range(min(pages) - 1, max(pages) + 2):
        assert (image.read(pfn << 12, 4096) is None) is (pfn not in pages)


def moved(trace: Trace, pfn: int) -> Trace:
    """The same run, the first tables at ``pfn``."""
    events = list(trace)
    place = next(n for n, event in enumerate(events) if isinstance(event, TablesAllocated))
    batch = events[place].batch  # type: ignore[union-attr]
    pages = (TablePages(PageRun(pfn, batch.count), Source.MEMBLOCK),)
    events[place] = TablesAllocated(attrs.evolve(batch, pages=pages))
    return Trace(events)


@pytest.mark.parametrize(("name", "limit"), [("i386", 32), ("i386-pae", 52), ("x86_64", 52)])
def test_entries_hold_addresses_up_to_a_limit(small_run: Any, name: str, limit: int) -> None:
    trace = small_run(name, "incremental:variant=linux", "native").trace
    batch = next(trace.of(TablesAllocated)).batch
    last = (1 << limit - 12) - batch.count
    assert Image(moved(trace, last)).extents()[-1][1] == 1 << limit
    with pytest.raises(InputError, match=f"cannot hold the address {(1 << limit) + 4095:#x}"):
        Image(moved(trace, last + 1))


def test_tables_before_the_last_new_root_are_not_in_the_image(small_run: Any) -> None:
    trace = small_run("x86_64", "incremental:variant=hpa", "native").trace
    first = next(moved(trace, 0x3000).of(TablesAllocated))
    events = list(trace)
    place = next(n for n, event in enumerate(events) if isinstance(event, TablesAllocated))
    twice = Image(Trace([*events[:place], first, *events[place:]]))
    once = Image(trace)
    assert (twice.root, twice.extents()) == (once.root, once.extents())


def boot_tables(machine: Machine, taken: RangeSet, **fields: Any) -> list[tuple[int, int, int]]:
    """Level, base and page of each table since boot, in the order given."""
    run: Run = Scenario.of(machine, "incremental:variant=linux", "native").run()
    start = run.trace.start
    start = attrs.evolve(start, boot=attrs.evolve(start.boot, **fields))
    placed = list(place_boot_tables(start, taken))
    assert all(each.count > 0 for each in placed)
    return [
        (each.level, each.base + n * machine.mode.table_span(each.level), each.pfn + n * each.step)
        for each in placed
        for n in range(each.count)
    ]


def test_tables_since_boot_lie_at_the_end_of_the_kernel(make_machine: Any) -> None:
    """The root first, each level below it by ascending address, pages downward from the last."""
    machine = make_machine("x86_64")
    end = machine.kernel.end >> 12
    tables = {3: ((0, 512 * GIB),), 2: ((0, 2 * GIB),), 1: ((2 * MIB, 5 * MIB),)}
    wanted = [(4, 0), (3, 0), (2, 0), (2, GIB), (1, 2 * MIB), (1, 4 * MIB)]
    got = boot_tables(machine, RangeSet(), tables=tables)
    assert got == [(*place, end - 1 - n) for n, place in enumerate(wanted)]
    for amid in (1, 4095):  # where the image ends amid a page, that one may be another's, too
        brk = machine.kernel.end + 8192
        kernel = KernelImage(machine.kernel.start, machine.kernel.end + amid, brk, brk)
        assert boot_tables(machine, RangeSet(), tables=tables, kernel=kernel) == got
    known = {2: (7, 9), 4: (5,)}
    got = boot_tables(machine, RangeSet(), tables=tables, table_pages=known)
    assert [pfn for _, _, pfn in got] == [5, end - 1, 7, 9, end - 2, end - 3]
    with pytest.raises(InputError, match="no page left"):
        boot_tables(machine, RangeSet(), tables=tables, table_pages={2: (7,)})


def test_tables_since_boot_without_room_in_the_kernel(make_machine: Any) -> None:
    """Two whole pages of an image whose edges are none; then the lowest free RAM above 1 MiB."""
    machine = make_machine("x86_64")
    kernel = attrs.evolve(
        machine.kernel,
        start=16 * MIB + 5,
        end=16 * MIB + 4 * KIB * 4 + 5,
        brk_start=16 * MIB + 3 * 4096 + 5,  # brk begins amid a page, which is none of the image
    )
    machine = attrs.evolve(machine, kernel=kernel)
    taken = RangeSet([(0, 3 * MIB), (3 * MIB + 2 * 4096 + 1, 32 * MIB)])
    # Pieces of less than a page, inside one and across the end of one, are no pages.
    taken.discard(4 * MIB + 0x3100, 4 * MIB + 0x3200)
    taken.discard(4 * MIB + 0x4F00, 4 * MIB + 0x5100)
    tables = {3: ((0, 512 * GIB),), 2: ((0, 3 * GIB),), 1: ((0, 2 * MIB),)}
    first, free = (16 * MIB >> 12) + 2, 3 * MIB >> 12
    got = boot_tables(machine, taken, tables=tables, kernel=kernel)
    above = 32 * MIB >> 12
    assert [pfn for _, _, pfn in got] == [first, first - 1, free, free + 1, above, above + 1]


def test_tables_since_boot_lie_below_4_gib(make_machine: Any) -> None:
    """As all that startup code makes: what is higher is not used, even if all else is taken."""
    ram = [(0, 64 * MIB), (4 * GIB - 2 * 4096, 4 * GIB), (4 * GIB, 4 * GIB + 64 * MIB)]
    machine = attrs.evolve(
        make_machine("x86_64"),
        memory_map=MemoryMap.sanitise((low, high, E820Type.RAM) for low, high in ram),
    )
    kernel = KernelImage(16 * MIB, 16 * MIB, 16 * MIB, 17 * MIB)
    taken = RangeSet([(0, 64 * MIB)])
    last = (4 * GIB >> 12) - 2
    got = boot_tables(machine, taken, tables={3: ((0, 512 * GIB),)}, kernel=kernel)
    assert [pfn for _, _, pfn in got] == [last, last + 1]
    with pytest.raises(InputError, match="no page left"):
        boot_tables(machine, taken, tables={3: ((0, 512 * GIB),), 2: ((0, GIB),)}, kernel=kernel)


def test_a_whole_walk_asks_only_for_what_is_within() -> None:
    """Each entry whose range meets the one asked for, and no other, on both sides."""
    data = bytearray(8 * 4096)
    for table, entry in ((1, 0x2067), (2, 0x3067), (3, 0x4067)):
        struct.pack_into("<Q", data, table * 4096, entry)
    for n in range(8):
        struct.pack_into("<Q", data, 4 * 4096 + n * 8, (n * 7 + 1) << 12 | 0x63)

    def read(address: int, size: int) -> bytes | None:
        return bytes(data[address : address + size])

    memory, mode = SimpleNamespace(read=read), MODES["x86_64"]
    for low in range(0, 9 * 4096, 2048):
        ends = range(low // 4096 * 4096 + 4096, 9 * 4096, 4096)
        for high in (*ends, *(end + 1 for end in ends)):
            part = walk(memory, 4096, mode, within=(low, high))
            met = [n for n in range(8) if n * 4096 < high and (n + 1) * 4096 > low]
            assert [each.start // 4096 for each in part.runs] == met
