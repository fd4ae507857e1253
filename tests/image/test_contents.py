"""The bytes of images, against a model that makes one entry at a time."""

from __future__ import annotations

import lzma
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import attrs
import numpy as np
import pytest

from paravirt_mm import (
    API_VERSION,
    Boot,
    Cost,
    CpuFeatures,
    EntryWrite,
    InputError,
    KernelImage,
    Machine,
    Map,
    Promise,
    Refusal,
    Run,
    Scenario,
    Source,
    TableDemand,
    TablePages,
    hookimpl,
)
from paravirt_mm.engine.answers import EntryKind
from paravirt_mm.engine.trace import (
    EntriesWritten,
    MadeReadonly,
    MadeWritable,
    RangeMapped,
    TablesAllocated,
    Trace,
)
from paravirt_mm.image.contents import Image, _Canvas
from paravirt_mm.image.dump import open_dump
from paravirt_mm.image.walker import walk
from paravirt_mm.testing import registry_with
from paravirt_mm_native import Native

ALLOCATORS = ("legacy_linear:kernel=3.6", "incremental:variant=linux", "incremental:variant=hpa")
MODES = ("i386", "i386-pae", "x86_64", "x86_64-la57")
SCENARIOS = [
    (mode, allocator, backend)
    for mode in MODES
    for allocator in ALLOCATORS
    for backend in ("native", "xen")
    if backend == "native" or mode in ("i386-pae", "x86_64")
]

AMID_LARGE_PAGES = (0x110_5000, 0x150_3000, 0x150_3000, 0x154_3000)

# Linux's and Xen's numbers, written down once more on purpose.
LEAF = {1: 0x8000_0000_0000_0163, 2: 0x8000_0000_0000_01E3, 3: 0x8000_0000_0000_01E3}
GLOBAL, RW, NX = 0x100, 0x2, 1 << 63


def slow_entries(trace: Trace, static: dict[int, tuple[int, int, int]]) -> dict[int, list[int]]:
    """Make all tables of a trace, one entry at a time: pfn to entries.

    ``static`` are the tables since boot: pfn to (level, base, owner).
    """
    state, mode = trace.start.boot, trace.start.machine.mode
    tables = slow_tables(trace, static)
    leaves = slow_leaves(trace, bool(static))
    links = {
        (event.batch, event.level, event.owner)
        for event in trace.of(EntriesWritten)
        if event.kind is EntryKind.TABLE
    }
    by_place = {(level, base): (pfn, owner) for pfn, (level, base, owner) in tables.items()}
    result = {}
    for pfn, (level, base, owner) in tables.items():
        entries = [0] * (4096 // mode.entry_bytes)
        first = 0
        if level == mode.root_level:
            first = mode.direct_map_base // mode.entry_span(level) % mode.entries(level)
        for n in range(mode.entries(level) - first):
            address = base + n * mode.entry_span(level)
            child = by_place.get((level - 1, address))
            if (level, address) in leaves:
                entries[first + n] = leaves[level, address] | address
            elif child and (child[1] == owner or (child[1], level, owner) in links):
                flags = 0x67
                if owner == child[1] == -1 and not mode.is_32bit:
                    flags = 0x63 if level > 2 else 0x67
                if mode.name == "i386-pae" and level == 3:
                    flags = 0x01
                entries[first + n] = child[0] << 12 | flags
        result[pfn] = entries
    if state.typed:
        readonly = {pfn << 12 for pfn in static}
        for entries in result.values():
            for n, entry in enumerate(entries):
                if entry & 0xFFF in (0x27, 0x23) and entry & 0xFFFF_FFFF_F000 in readonly:
                    entries[n] = entry & ~RW
    return result


def slow_tables(
    trace: Trace, static: dict[int, tuple[int, int, int]]
) -> dict[int, tuple[int, int, int]]:
    """Return every table by its pfn: (level, base, owner)."""
    mode = trace.start.machine.mode
    tables = dict(static)
    for event in trace.of(TablesAllocated):
        if mode.root_level in event.batch.spans:
            tables = {}
        for run in event.batch.walk_order():
            for n in range(run.count):
                base = run.base + n * mode.table_span(run.level)
                tables[run.pfn + n * run.step] = run.level, base, event.batch.index
    return tables


def slow_leaves(trace: Trace, old_root: bool) -> dict[tuple[int, int], int]:
    """Return the leaf entries' flags by (level, address), as the events leave them."""
    machine, state = trace.start.machine, trace.start.boot
    mode = machine.mode
    leaves = boot_leaves(trace) if old_root else {}
    kernel = state.kernel_of(machine)

    def writable(low: int, high: int, on: bool) -> None:
        for address in range(low, high, 4096):
            if (1, address) in leaves:
                leaves[1, address] = leaves[1, address] & ~RW | RW * on

    for event in trace:
        if isinstance(event, RangeMapped):
            level, span = event.leaves.level, mode.entry_span(event.leaves.level)
            for address in range(event.leaves.start, event.leaves.end, span):
                text = mode.is_32bit and kernel.start < address + span and address < kernel.end
                leaves[level, address] = (
                    LEAF[level]
                    & ~(NX if text or not (state.features.nx and mode.has_nx) else 0)
                    & ~(GLOBAL if state.typed else 0)
                )
            for low, high in event.readonly:
                writable(low, high, False)
        elif isinstance(event, MadeReadonly):
            for run in event.batch.runs:
                writable(*run.span, False)
        elif isinstance(event, MadeWritable):
            for run in event.pages:
                writable(*run.span, True)
    return leaves


def boot_leaves(trace: Trace) -> dict[tuple[int, int], int]:
    """Return the leaf entries that the domain builder leaves."""
    state = trace.start.boot
    flags = 0x23 if trace.start.machine.mode.is_32bit else 1 << 52 | 0x27
    leaves = {
        (1, address): flags
        for low, high in state.direct_mapped
        for address in range(low, high, 4096)
    }
    for low, high in state.boot_tables:
        for address in range(low, high, 4096):
            leaves[1, address] &= ~RW
    return leaves


def pages_of(image: Image, pages: int = 64) -> dict[int, list[int]]:
    return {
        (address >> 12) + n: row
        for address, entries in image.chunks(pages)
        for n, row in enumerate(entries.tolist())
    }


def static_tables(image: Image) -> dict[int, tuple[int, int, int]]:
    tables = image.tables
    return {
        int(tables.pfn[row]) + (int(tables.count[row]) - 1 - n if tables.down[row] else n): (
            int(tables.level[row]),
            int(tables.base[row]) + n * image.mode.table_span(int(tables.level[row])),
            -1,
        )
        for row in np.flatnonzero(tables.owner == -1).tolist()
        for n in range(int(tables.count[row]))
    }


@pytest.mark.parametrize(
    ("mode", "allocator", "backend", "options"),
    [
        *((*scenario, {}) for scenario in SCENARIOS),
        # Small pages on bare hardware: nothing is read-only there, the tables' own pages neither.
        ("x86_64", ALLOCATORS[1], "native", {"features": CpuFeatures(pse=False)}),
        ("i386", ALLOCATORS[1], "native", {"features": CpuFeatures(pse=False, nx=False)}),
        # Kernels that begin and end amid large pages, all of which can be executed.
        *(
            (mode, ALLOCATORS[1], "native", {"kernel": KernelImage(*AMID_LARGE_PAGES)})
            for mode in ("i386", "i386-pae")
        ),
    ],
)
def test_every_entry_is_what_a_slow_model_makes(
    small_run: Callable[..., Run], mode: str, allocator: str, backend: str, options: dict[str, Any]
) -> None:
    run = small_run(mode, allocator, backend, **options)
    assert run.verdict.outcome == "ok"
    image = Image(run.trace)
    made = pages_of(image)
    expected = slow_entries(run.trace, static_tables(image))
    assert made.keys() == expected.keys()
    for pfn, entries in expected.items():
        assert made[pfn] == entries, f"page {pfn:#x}"


@pytest.mark.parametrize("pages", [1, 3, 1000])
def test_chunk_size_changes_nothing(small_run: Callable[..., Run], pages: int) -> None:
    image = Image(small_run("x86_64", "incremental:variant=hpa", "xen").trace)
    assert pages_of(image, pages) == pages_of(image)


def test_chunks_ascend_and_fill_the_extents(small_run: Callable[..., Run]) -> None:
    image = Image(small_run("x86_64", "incremental:variant=linux", "xen").trace)
    position = 0
    covered = []
    for address, entries in image.chunks(7):
        assert address >= position
        position = address + entries.nbytes
        covered += list(range(address, position, 4096))
    assert covered == [a for low, high in image.extents() for a in range(low, high, 4096)]
    assert len(covered) * 4096 == image.size


def test_read_gives_the_same_bytes(small_run: Callable[..., Run]) -> None:
    image = Image(small_run("x86_64", "incremental:variant=hpa", "xen").trace)
    for low, high in image.extents():
        data = image.read(low, high - low)
        assert data is not None
        for address, entries in image.chunks():
            if low <= address < high:
                assert data[address - low : address - low + entries.nbytes] == entries.tobytes()
        assert image.read(low, high - low + 4096) is None
    assert image.read(image.extents()[0][0] - 4096, 4096) is None


def test_under_xen_no_entry_lets_a_table_be_written(small_run: Callable[..., Run]) -> None:
    for allocator in ALLOCATORS:
        run = small_run("x86_64", allocator, "xen")
        image = Image(run.trace)
        pages = pages_of(image)
        level = {pfn: table[0] for pfn, table in static_tables(image).items()}
        for event in run.trace.of(TablesAllocated):
            for part in event.batch.walk_order():
                level |= {part.pfn + n * part.step: part.level for n in range(part.count)}
        seen = 0
        for pfn, entries in pages.items():
            for entry in entries if level[pfn] == 1 else ():
                if entry & 1 and (entry >> 12 & 0xFFFFFFFF) in pages:
                    assert not entry & RW, hex(entry)
                    seen += 1
        assert seen == len(pages)


def test_surplus_of_the_guess_is_writable_again(small_run: Callable[..., Run]) -> None:
    allocator = "legacy_linear:kernel=3.6,good_end=end"
    run = small_run("x86_64", allocator, "xen", size=512 << 20)
    writable = list(run.trace.of(MadeWritable))
    assert writable
    image = Image(run.trace)
    found = walk(image, image.root, image.mode)
    for event in writable:
        for part in event.pages:
            low, high = part.span
            (home,) = [r for r in found.runs if r.physical <= low < r.physical + r.end - r.start]
            assert home.writable
            assert high <= home.physical + home.end - home.start


def test_large_pages_take_the_place_of_startup_tables(small_run: Callable[..., Run]) -> None:
    """As Debian's 6.1.0-50-686 does: 4 MiB pages from 4 MiB on, where its startup code had L1s."""
    run = small_run("i386", "incremental:variant=linux,kernel=6.1", "native")
    image = Image(run.trace)
    found = walk(image, image.root, image.mode)
    first = next(run for run in found.runs if run.level > 1)
    assert (first.physical, first.level) == (4 << 20, 2)
    assert {int(base) for base in image.tables.base[image.tables.owner == -1]} == {0}


def test_cpu_without_nx(small_run: Callable[..., Run]) -> None:
    run = small_run("x86_64", "incremental:variant=linux", "native", features=CpuFeatures(nx=False))
    image = Image(run.trace)
    assert not any(int(entries.max()) >> 63 for _, entries in image.chunks())


def test_machine_frames(small_run: Callable[..., Run]) -> None:
    run = small_run("x86_64", "incremental:variant=hpa", "xen")
    seen: list[int] = []

    def translate(frames: Any) -> Any:
        seen.extend(frames.tolist())
        return frames + np.uint64(0x5000)

    plain, translated = (pages_of(Image(run.trace, each)) for each in (None, translate))
    entries = [entry for page in plain.values() for entry in page if entry & 1]
    assert sorted(seen) == sorted(entry >> 12 & 0xFF_FFFF_FFFF for entry in entries)
    for pfn, entries in plain.items():
        for entry, other in zip(entries, translated[pfn], strict=True):
            assert other == (entry + (0x5000 << 12) if entry & 1 else 0)


def test_newer_direct_map_base(small_run: Callable[..., Run]) -> None:
    run = small_run("x86_64", "incremental:variant=linux", "native")
    image = Image(run.trace, direct_map_base=0xFFFF_8880_0000_0000)
    found = walk(image, image.root, image.mode)
    assert found.runs[0].start == 0xFFFF_8880_0000_0000
    with pytest.raises(InputError, match="no entry of the root"):
        Image(run.trace, direct_map_base=0xFFFF_8880_0000_1000)


@pytest.mark.parametrize("name", ["", "-la57"])
def test_bits_are_those_of_a_real_kernel(
    small_run: Callable[..., Run], dumps: Path, tmp_path: Path, name: str
) -> None:
    """Along the path to 2 MiB, entry by entry: frames differ, flags do not."""
    core = tmp_path / "core"
    core.write_bytes(lzma.decompress((dumps / f"linux-6.12-qemu-256m{name}.core.xz").read_bytes()))
    run = small_run(f"x86_64{name}", "incremental:variant=linux,kernel=6.1", "native")
    image = Image(run.trace)
    with open_dump(core) as dump:
        assert dump.mode is image.mode
        assert dump.cr3 is not None
        real_base = 0xFFFF_8880_0000_0000 if not name else 0xFF11_0000_0000_0000
        for offset in (0x1000, 0x20_0000):
            real = path_flags(dump, dump.cr3, image.mode.root_level, real_base + offset)
            ours = path_flags(
                image, image.root, image.mode.root_level, image.mode.direct_map_base + offset
            )
            assert ours == real


def path_flags(memory: Any, table: int, level: int, address: int) -> list[int]:
    flags = []
    while level:
        page = memory.read(table, 4096)
        index = address >> (12 + 9 * (level - 1)) & 511
        (entry,) = struct.unpack_from("<Q", page, index * 8)
        flags.append(entry & 0xFFF0_0000_0000_0FFF)
        if level < 4 and entry & 0x80:
            break
        table, level = entry & 0xF_FFFF_FFFF_F000, level - 1
    return flags


def test_a_run_that_panics_has_what_it_built(make_machine: Callable[..., Machine]) -> None:
    machine = make_machine("x86_64", 64 << 20, features=CpuFeatures(pse=False))
    run = Scenario.of(machine, "incremental:variant=hpa,brk_pages=0", "native").run()
    assert run.verdict.outcome == "panic"
    image = Image(run.trace)
    found = walk(image, image.root, image.mode)
    assert not found.findings
    assert image.size == sum(len(pages) for pages in found.tables.values()) * 4096


def test_a_refused_domain_has_no_tables(small_run: Callable[..., Run]) -> None:
    run = small_run("i386", "incremental:variant=linux", "xen")
    with pytest.raises(InputError, match="no tables"):
        Image(run.trace)


def test_static_tables_without_room_in_the_kernel(make_machine: Callable[..., Machine]) -> None:
    """A kernel image of no size: the static tables go to free memory, and to nobody else's."""
    at = 16 << 20
    machine = make_machine("i386-pae", kernel=KernelImage(at, at, at, at + (64 << 12)))
    run = Scenario.of(machine, "incremental:variant=linux", "native").run()
    image = Image(run.trace)
    found = walk(image, image.root, image.mode)
    assert not found.findings
    pages = found.table_pages()
    assert pages.total == image.size
    ram = machine.memory_map.ram_pages()
    for low, high in pages:
        assert ram.covers(low, high)


def test_static_tables_keep_away_from_brk(make_machine: Callable[..., Machine]) -> None:
    """Where the image is said to end behind brk, brk is still the allocator's."""
    end = 18 << 20
    brk = end - (64 << 12)
    machine = make_machine("i386-pae", kernel=KernelImage(16 << 20, end, brk, end))
    image = Image(Scenario.of(machine, "incremental:variant=linux", "native").run().trace)
    for pfn in static_tables(image):
        assert 16 << 20 <= pfn << 12 < brk


@attrs.frozen
class SmallOverLarge:
    """An allocator that maps a large page, and then part of it with small ones."""

    pvmm_api: ClassVar[int] = API_VERSION

    @hookimpl
    def pvmm_promise(self) -> Promise:
        return Promise(((2 << 20, 6 << 20),), brk_pages=16)

    @hookimpl
    def pvmm_map_steps(self) -> Iterator[Map]:
        yield Map(2 << 20, 6 << 20)
        yield Map((4 << 20) + 0x1000, (4 << 20) + 0x3000)

    @hookimpl
    def pvmm_allocate_tables(self, boot: Boot, demand: TableDemand) -> list[TablePages]:
        return [TablePages(boot.brk_free.head(demand.count), Source.BRK)]


def test_a_table_takes_the_place_of_a_large_page(make_machine: Callable[..., Machine]) -> None:
    registry = registry_with(small_over_large=SmallOverLarge)
    machine = make_machine("x86_64")
    run = Scenario.of(machine, "small_over_large", "native").run(registry)
    assert run.trace.events, run.verdict
    image = Image(run.trace)
    found = walk(image, image.root, image.mode)
    assert [(r.physical, r.physical + r.end - r.start, r.level) for r in found.runs] == [
        (2 << 20, 4 << 20, 2),
        ((4 << 20) + 0x1000, (4 << 20) + 0x3000, 1),
    ]


@attrs.frozen
class Refusing(Native):
    """Bare hardware that takes no more writes of entries after some."""

    pvmm_api: ClassVar[int] = API_VERSION

    after: int = 1
    _seen: list[EntryWrite] = attrs.field(init=False, factory=list, eq=False)

    @hookimpl
    def pvmm_write_entries(self, write: EntryWrite) -> Cost | Refusal:
        self._seen.append(write)
        return Refusal("no more", -22) if len(self._seen) > self.after else Cost()


@pytest.mark.parametrize("after", range(1, 11))
def test_a_table_that_was_not_attached_yet_hides_no_other(
    make_machine: Callable[..., Machine], after: int
) -> None:
    """Linux builds downward: what is refused lies below what is attached already."""
    registry = registry_with(refusing=Refusing)
    machine = make_machine("x86_64", features=CpuFeatures(pse=False))
    scenario = Scenario.of(machine, "incremental:variant=linux", f"refusing:after={after}")
    run = scenario.run(registry)
    assert str(run.verdict) == "rejected: no more, -22"
    image = Image(run.trace)
    assert pages_of(image) == slow_entries(run.trace, static_tables(image))


def test_a_canvas_is_painted_where_it_is_asked_to_and_nowhere_else() -> None:
    """Entry by entry, in tables of 8: partial ones, whole ones, both directions, any beginning."""
    for shift, step in ((0, 4096), (3, 4096), (0, -4096)):
        for first in range(40):
            for last in range(first, 40):
                view = np.zeros((5, 8), dtype="<u4")
                canvas = _Canvas(view, 0x8000, 16, shift)
                places = [0x8000 + 16 * (n - shift) for n in (first, last)]
                canvas.paint(places[0], places[1], 0x7FFF_0067, step)
                assert view.reshape(-1).tolist() == [
                    (0x7FFF_0067 + (n - first) * step) * (first <= n < last) for n in range(40)
                ]
