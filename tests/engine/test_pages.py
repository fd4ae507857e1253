"""Runs of pages against plain lists of pfns, and the numbers of a run that count them."""

from __future__ import annotations

import itertools
from typing import Any

import attrs
import pytest

from paravirt_mm import (
    Boot,
    BootState,
    CpuFeatures,
    E820Type,
    KernelImage,
    Machine,
    Map,
    MemoryMap,
    PageRun,
    Piece,
    Promote,
    bundled,
)
from paravirt_mm.engine.pages import deal, first_pages, page_count
from paravirt_mm.engine.panic import KernelPanic
from paravirt_mm.engine.progress import Progress
from paravirt_mm.engine.realmode import missing_trampoline, with_trampoline
from paravirt_mm.engine.split import split_by_alignment, tables_to_map
from paravirt_mm.engine.tables import BOOT_TREE, Tree
from paravirt_mm.machine.paging import GIB, I386, I386_PAE, KIB, MIB, MODES, PAGE_SIZE, X86_64

RUNS = [PageRun(7, count, step) for count in (1, 2, 5) for step in (1, -1)]


def listed(*runs: PageRun) -> list[int]:
    return [run.start + number * run.step for run in runs for number in range(run.count)]


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_a_run_is_a_list_of_pages(run: PageRun) -> None:
    pfns = listed(run)
    assert (run.low, run.high) == (min(pfns), max(pfns) + 1)
    assert run.span == (min(pfns) * 4096, (max(pfns) + 1) * 4096)
    for count in range(run.count + 1):
        assert listed(run.head(count)) == pfns[:count]
        assert listed(run.tail(count)) == pfns[count:]
    if run.step == 1:
        assert listed(run.downward()) == pfns[::-1]


@pytest.mark.parametrize("start", [0, 1, 4095, 4096, 4097])
@pytest.mark.parametrize("end", [0, 1, 4096, 8191, 8192, 12289])
def test_whole_pages_of_a_span(start: int, end: int) -> None:
    whole = [n for n in range(5) if start <= n * 4096 and (n + 1) * 4096 <= end]
    assert listed(PageRun.of_span(start, end)) == whole
    assert PageRun.of_span(start, end).count == len(whole)


@pytest.mark.parametrize("count", range(-1, 12))
def test_the_first_pages_of_some_runs(count: int) -> None:
    runs = [PageRun(3, 2), PageRun(0, 0), PageRun(20, 3, -1), PageRun(40, 5)]
    found = list(first_pages(runs, count))
    assert listed(*found) == listed(*runs)[: max(0, count)]
    assert all(run.count for run in found)
    assert page_count(found) == len(listed(*found))
    assert deal is first_pages


def machine(*ram: tuple[int, int], **options: Any) -> Machine:
    memory = MemoryMap.sanitise((low, high, E820Type.RAM) for low, high in ram)
    options.setdefault("kernel", KernelImage(2 * MIB, 3 * MIB, 3 * MIB, 3 * MIB + 8 * PAGE_SIZE))
    return Machine("test", memory, **options)


SMALL = machine((0, 640 * KIB), (MIB, 16 * MIB))


def progress(at: Machine = SMALL, **fields: Any) -> tuple[Progress, Boot]:
    state = attrs.evolve(BootState((), 0, at.features), **fields)
    now = Progress(at, state)
    return now, Boot(at, state, now)


def test_pages_of_a_reservation_are_used_up() -> None:
    """From the front or from the middle: what is left stays in its order."""
    given = (PageRun(10, 4), PageRun(30, 3, -1), PageRun(50, 6))
    for start, count, step in itertools.product(range(8, 58), (1, 2, 3, 6), (1, -1)):
        now, boot = progress()
        now.standing.reservation = given
        used = PageRun(start, count, step)
        now.take_reserved(used)
        left = [pfn for pfn in listed(*given) if pfn not in listed(used)]
        assert listed(*boot.reservation) == left
        assert all(run.count for run in boot.reservation)


def test_what_exists_since_boot() -> None:
    now, boot = progress(
        mapped=((MIB, 2 * MIB), (8 * MIB, 9 * MIB)),
        max_pfn_mapped=0x900,
        reserved=((MIB, MIB + 4 * PAGE_SIZE),),
        boot_tables=((MIB, MIB + 2 * PAGE_SIZE), (MIB + 3 * PAGE_SIZE, MIB + 4 * PAGE_SIZE)),
        tables={1: ((0, 4 * MIB),), 2: ((0, GIB),), 3: ((0, 512 * GIB),)},
        direct_mapped=((MIB, 2 * MIB),),
    )
    assert boot.max_pfn_mapped == 0x900
    assert list(boot.tree.leaves(1)) == [(MIB, 2 * MIB)]
    assert boot.tree.plan(0, 4 * MIB, 1).spans == {}
    assert list(now.ledger.readonly(0, 1 << 40)) == [(0x100, 0x102), (0x103, 0x104)]
    assert [flips.flips for _, _, flips in now.ledger] == [0, 0]
    whole = [(MIB, MIB + 2 * PAGE_SIZE), (MIB + 3 * PAGE_SIZE, MIB + 4 * PAGE_SIZE)]
    assert list(boot.table_pages(0, 16 * MIB)) == whole
    # Bytes of which a part is asked for count as whole pages.
    edge = MIB + PAGE_SIZE
    assert list(boot.table_pages(edge + 5, edge + 6)) == [(edge, edge + PAGE_SIZE)]
    assert list(boot.table_pages(edge + 5, whole[1][0] + 1)) == [
        (edge, edge + PAGE_SIZE),
        whole[1],
    ]
    assert boot.is_reachable(MIB, 2 * MIB)
    assert not boot.is_reachable(MIB, 2 * MIB + 1)
    assert list(boot.reachable(0, 8 * MIB + 1)) == [(MIB, 2 * MIB), (8 * MIB, 8 * MIB + 1)]
    assert list(boot.free_reachable(0, 16 * MIB)) == [
        (8 * MIB, 9 * MIB),
        (MIB + 4 * PAGE_SIZE, 2 * MIB),
    ]
    assert list(boot.memblock.reserved()) == [
        (MIB, MIB + 4 * PAGE_SIZE),
        (2 * MIB, 3 * MIB + 8 * PAGE_SIZE),
    ]
    assert now.next_index == 0
    assert (now.handed_over, now.attached) == ({BOOT_TREE}, {BOOT_TREE})
    assert boot.waiting == ()
    assert boot.oldest_waiting is None
    assert boot.tables_made == 0


def test_what_is_set_aside() -> None:
    now, boot = progress()
    now.standing.reservation = (PageRun(10, 4), PageRun(30, 3, -1))
    now.standing.brk_pages, now.standing.brk_used = 5, 2
    page = PAGE_SIZE
    assert list(boot.reserved_pages(0, MIB)) == [(10 * page, 14 * page), (28 * page, 31 * page)]
    assert list(boot.reserved_pages(12 * page, 29 * page)) == [
        (12 * page, 14 * page),
        (28 * page, 29 * page),
    ]
    assert list(boot.reserved_pages(14 * page, 28 * page)) == []
    assert boot.brk_free == PageRun((3 * MIB >> 12) + 2, 3)
    now.standing.brk_used = 6
    assert boot.brk_free.count == 0


def test_how_a_step_is_split() -> None:
    """Head and tail are promoted where the whole large page is RAM, before neighbours merge or
    after; then they stay apart.
    """
    step = Map(4 * MIB + PAGE_SIZE, 10 * MIB)
    apart = [(4 * MIB + PAGE_SIZE, 6 * MIB), (6 * MIB, 10 * MIB)]
    cases = {
        Promote.NEVER: [(*apart[0], 1), (*apart[1], 2)],
        Promote.BEFORE_MERGE: [(step.start, step.end, 2)],
        Promote.AFTER_MERGE: [(*apart[0], 2), (*apart[1], 2)],
    }
    _, boot = progress()
    for promote, wanted in cases.items():
        pieces = boot.split(attrs.evolve(step, promote=promote))
        assert [(piece.start, piece.end, piece.level) for piece in pieces] == wanted
    known = (Piece(0, PAGE_SIZE, 1),)
    assert boot.split(attrs.evolve(step, pieces=known)) == list(known)
    _, small = progress(features=CpuFeatures(pse=False))
    assert [piece.level for piece in small.split(step)] == [1]
    assert small.largest_level == 1
    # One table for the head; three (the two above it) where there are none yet.
    assert boot.tables_needed(step) == 3
    assert boot.tables_needed(attrs.evolve(step, promote=Promote.BEFORE_MERGE)) == 2
    assert small.tables_needed(step) == 2 + 3


def test_where_the_firmware_knows_nothing_entries_stay_empty() -> None:
    at = machine((0, MIB), (3 * MIB, 16 * MIB), (GIB + PAGE_SIZE, GIB + 2 * PAGE_SIZE))
    _, boot = progress(at)
    assert boot.fillable(Map(0, MIB)) is None
    assert boot.fillable(Map(0, MIB, skip_empty_level=5)) is None
    level, known = boot.fillable(Map(0, MIB, skip_empty_level=2)) or (0, [])
    assert level == 2
    # The hole of 1..3 MiB shares each of its large pages with RAM.
    assert list(known) == [(0, 16 * MIB), (GIB, GIB + 2 * MIB)]
    root, known = boot.fillable(Map(0, MIB, skip_empty_level=4)) or (0, [])
    assert (root, list(known)) == (4, [(0, 512 * GIB)])
    assert boot.fillable(Map(0, MIB, skip_empty_level=2)) == (
        2,
        boot.fillable(Map(0, PAGE_SIZE, skip_empty_level=2))[1],
    )  # type: ignore[index]


@pytest.mark.parametrize("mode", MODES.values(), ids=str)
@pytest.mark.parametrize(
    "span",
    [
        (0, PAGE_SIZE), (0, 2 * MIB), (0, 896 * MIB), (3 * MIB, 5 * MIB),
        (MIB, 8 * MIB + PAGE_SIZE), (2 * MIB, 4 * MIB), (4 * MIB, 8 * MIB),
        (0x37FFE000, 0x38000000), (5 * MIB, 5 * MIB),
        (GIB - PAGE_SIZE, 2 * GIB + PAGE_SIZE), (MIB, 3 * GIB + 7 * MIB),
    ],
)  # fmt: skip
def test_tables_of_a_tree_of_its_own(mode: Any, span: tuple[int, int]) -> None:
    """As many as an empty tree lacks when the pieces are mapped one by one."""
    for largest in (1, *sorted(mode.large_levels)):
        tree = Tree(mode)
        count = 0
        for number, piece in enumerate(split_by_alignment(mode, *span, largest)):
            plan = tree.plan(piece.start, piece.end, piece.level)
            count += sum(
                (high - low) // mode.table_span(level)
                for level, spans in plan.spans.items()
                for low, high in spans
            )
            tree.commit(plan, number, [])
        root = 1 if span[0] < span[1] else 0
        assert tables_to_map(mode, *span, largest) == count + root


TRAMPOLINE = [
    # release, mode, pages below 1 MiB in one piece: enough, and one too few; at once or at the end
    ("2.6.32", X86_64, 0, None),
    ("2.6.33", I386, 1, True),
    ("2.6.33", X86_64, 2, True),
    ("2.6.38", X86_64, 2, True),
    ("2.6.39", I386_PAE, 4, True),
    ("2.6.39", X86_64, 5, True),
    ("3.4", X86_64, 5, True),
    ("3.5", I386, 4, True),
    ("3.5", X86_64, 6, True),
    ("4.8", X86_64, 6, True),
    ("4.9", X86_64, 6, False),
    ("6.2", I386, 4, False),
    ("6.2", X86_64, 6, False),
]


@pytest.mark.parametrize(("release", "mode", "needed", "at_once"), TRAMPOLINE)
def test_room_for_a_trampoline(release: str, mode: Any, needed: int, at_once: bool | None) -> None:
    def boot(pages: int, typed: bool = False) -> Boot:
        # The first page is none of it, whatever the firmware says.
        ram = [(0, (1 + pages) * PAGE_SIZE), (MIB - pages * PAGE_SIZE, 16 * MIB)]
        return progress(machine(*ram, mode=mode), typed=typed)[1]

    assert missing_trampoline(boot(needed), release) is None
    if not needed:
        return
    missing = missing_trampoline(boot(needed - 1), release)
    assert missing is not None
    assert missing.at_once is at_once
    done: list[str] = []

    def steps() -> Any:
        done.append("a step")
        yield Map(0, PAGE_SIZE)

    words = "Cannot allocate trampoline" if at_once else "Real mode trampoline was not allocated"
    with pytest.raises(KernelPanic, match=words):
        list(with_trampoline(boot(needed - 1), release, steps()))
    assert done == ([] if at_once else ["a step"])
    assert len(list(with_trampoline(boot(needed), release, steps()))) == 1
    # Guests of Xen ask for none since 6.2, and what two stable series took from it.
    guest = missing_trampoline(boot(needed - 1, typed=True), release)
    assert (guest is None) is (release == "6.2")
    for fixed, not_yet in (("6.0.16", "6.0.15"), ("6.1.2", "6.1.1"), ("7.3", "6.1")):
        assert missing_trampoline(boot(0, typed=True), fixed) is None
        assert missing_trampoline(boot(0, typed=True), not_yet) is not None


def test_a_boot_without_progress_is_at_its_beginning() -> None:
    at = bundled("qemu-512m")
    state = BootState(((0, MIB),), 5, at.features)
    boot = Boot(at, state)
    assert (boot.max_pfn_mapped, boot.tables_made, boot.reservation) == (5, 0, ())
    assert boot.brk_free == PageRun(at.kernel.brk_start >> 12, 0)
