"""What each kind of change may do to a machine: every decision that it could take is taken.

Weights (how often a kind is chosen, that half of something is none) are no facts and not tested;
what is chosen from, where it may lie and what must stay as it was is.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import attrs
import pytest

from paravirt_mm import MODES, CpuFeatures, E820Type, Machine, MemoryMap
from paravirt_mm.errors import InputError
from paravirt_mm.hunt import edits
from paravirt_mm.hunt.edits import MAX_ADDRESS, MAX_CROWD, changed, in_mode, small
from paravirt_mm.machine.paging import GIB, KIB, MIB, TIB
from paravirt_mm.machine.ranges import RangeSet
from paravirt_mm.sources.generated import Seeded
from tests.hunt.walks import (
    END,
    KERNEL,
    PAGE,
    RAM,
    RESERVED,
    Walk,
    every,
    less,
    machine,
    ram,
    taken,
)

FILLINGS = {None, RESERVED, E820Type.ACPI, E820Type.NVS, E820Type.UNUSABLE}
FEW = {0, 1, 2, 3, 5, 6, 12, 16, 63, 64, 65, 511, 512}
"""Pages that something may be off: none, one, around a batch of 64 and a table of 512."""


BOTH = machine((0, 0x9F000, RAM), (MIB, 128 * MIB, RAM), (200 * MIB, 201 * MIB, E820Type.NVS),
               (4 * GIB, 6 * GIB, RAM))  # fmt: skip


# -- the map -------------------------------------------------------------------------------------


def test_an_edge_moves_by_powers_of_two() -> None:
    """By a byte, or eight GiB, or what is between; up and down; of any entry; nothing else does."""
    base = machine((MIB, 16 * GIB, RAM))
    moved: dict[int, set[int]] = {0: set(), 1: set()}
    for after in every(lambda choose: edits._move_edge(choose, base)):
        ((low, high),) = ram(after)
        by = (low - MIB, high - 16 * GIB)
        assert 0 in by
        if low:  # an edge stops at address 0
            for side in (0, 1):
                moved[side] |= {by[side]} - {0}
    sizes = {1, 512, PAGE, 64 * KIB, 2 * MIB, 4 * MIB, 64 * MIB, GIB}
    ends = {sign * n * size for size in sizes for n in (1, 4, 8) for sign in (1, -1)}
    assert moved[1] == ends
    assert moved[0] == {by for by in ends if by > -MIB}
    assert {1, -1, 8 * GIB} <= moved[0]
    firsts = {after.memory_map.entries[0].start for after in every(
        lambda choose: edits._move_edge(choose, machine((MIB, 4 * GIB, RAM))))}  # fmt: skip
    assert 0 in firsts
    assert len({tuple(less(BOTH, m)) for m in every(
        lambda choose: edits._move_edge(choose, BOTH))}) > 8  # fmt: skip


def test_an_edge_is_aligned_outward() -> None:
    base = machine((MIB + 5, 3 * GIB + 4097, RAM))
    found = {tuple(ram(m)) for m in every(lambda choose: edits._align_edge(choose, base))}
    assert found == {
        ((MIB, 3 * GIB + 2 * PAGE),), ((0, 3 * GIB + 2 * MIB),), ((0, 4 * GIB),),
    }  # fmt: skip


def test_an_edge_is_that_of_any_entry() -> None:
    entries = [(MIB + 5, 32 * MIB + 5, RAM), (GIB + 5, GIB + 7, E820Type.NVS),
               (16 * GIB + 5, 18 * GIB + 5, RAM)]  # fmt: skip
    base = machine(*entries)
    for change in (edits._move_edge, edits._align_edge):
        alone = set()
        for after in every(lambda choose, change=change: change(choose, base)):
            others = [n for n, raw in enumerate(entries) if raw not in edits.entries_of(after)]
            if len(others) == 1:
                alone |= {*others}
        assert alone == {0, 1, 2}, change.__name__


def test_sizes_are_usual_ones_or_so_many_large_pages_and_a_little_off() -> None:
    sizes = set(every(edits._size))
    off = {0, 1, -1, PAGE, -PAGE}
    usual = {PAGE, 64 * KIB, 2 * MIB, 64 * MIB, GIB, 64 * GIB, TIB}
    large = {2 * MIB * n for n in (1, 256, 512)}
    assert sizes == {max(1, size + by) for size in usual | large for by in off}
    assert 1 in sizes
    assert 0 not in sizes


def test_a_hole_lies_within_an_entry_of_ram(monkeypatch: pytest.MonkeyPatch) -> None:
    """At one of its ends or amid it, no larger than it is, filled with whatever firmware has."""
    size = 3 * PAGE
    monkeypatch.setattr(edits, "_size", lambda _: size)
    fillings, places = set(), set()
    for after in every(lambda choose: edits._punch(choose, BOTH)):
        ((low, high),) = less(BOTH, after)
        assert high - low == size
        places.add(low)
        fillings.add(next((e.type for e in after.memory_map if e.start <= low < e.end), None))
        assert not less(after, BOTH)
        assert after.reserved == BOTH.reserved
    assert fillings == FILLINGS
    for start, end in ((0, 0x9F000), (MIB, 128 * MIB), (4 * GIB, 6 * GIB)):
        assert {start, end - size, start + (end - start - size) // 2} <= places
    size = 100 * GIB
    whole = {tuple(less(BOTH, m)) for m in every(lambda choose: edits._punch(choose, BOTH))}
    assert whole == {((0, 0x9F000),), ((MIB, 128 * MIB),), ((4 * GIB, 6 * GIB),)}


def test_an_entry_is_dropped() -> None:
    raw = [(e.start, e.end, e.type) for e in BOTH.memory_map]
    found = {m.memory_map for m in every(lambda choose: edits._drop(choose, BOTH))}
    assert found == {MemoryMap.sanitise([e for e in raw if e is not gone]) for gone in raw}


def test_a_plain_machine_has_one_piece_around_its_kernel() -> None:
    found = {m.memory_map for m in every(lambda choose: edits._plain(choose, BOTH))}
    assert found == {MemoryMap.sanitise([(low, 128 * MIB, RAM)]) for low in (0, MIB)}
    high = machine((0, 0x9F000, RAM), (8 * MIB, 128 * MIB, RAM), (GIB, 2 * GIB, RAM))
    lows = {next(iter(ram(m)))[0] for m in every(lambda choose: edits._plain(choose, high))}
    assert lows == {0, MIB, 8 * MIB}
    nowhere = machine((0, MIB, RAM))
    for after in every(lambda choose: edits._plain(choose, nowhere)):
        assert ram(after).end == END
    first = machine((16 * MIB, 32 * MIB, RAM))
    assert all(ram(m).end == 32 * MIB for m in every(lambda c: edits._plain(c, first)))


def test_a_riddle_has_even_holes_behind_the_kernel() -> None:
    base = machine((MIB, 8 * GIB, RAM))
    seen, sizes = set(), set()
    for n in range(150):
        after = edits._riddle(Seeded(n), base)
        holes = less(base, after)
        assert {e.type for e in after.memory_map} == {RAM, RESERVED}
        assert all(low >= END + 8 * MIB for low, _ in holes)
        assert all(low % (64 * KIB) == 0 for low, _ in holes)
        units = {b - a for (a, _), (b, _) in pairwise(holes)}
        if units & {64 * KIB, 128 * KIB}:
            continue  # some are as large as what is between them, and join
        (unit,) = units
        assert holes[0][0] == -(-(END + 8 * MIB) // unit) * unit
        sizes |= {high - low for low, high in holes}
        seen.add((unit, len(holes)))
    assert {unit for unit, _ in seen} == {MIB, 2 * MIB, 64 * MIB, GIB}
    assert {count for unit, count in seen if unit < GIB} == {3, 9, 25, 60}
    assert {count for unit, count in seen if unit == GIB} == {3, 7}  # no more in 8 GiB
    assert sizes == {PAGE, 2 * PAGE, 64 * KIB}
    for n in range(60):
        for entry in edits._riddle(
            Seeded(n), machine((0, GIB, RAM), (4 * GIB, 6 * GIB, RAM))
        ).memory_map:
            assert entry.type is RAM or entry.start < GIB or entry.start >= 4 * GIB


def test_an_overlap_lies_across_an_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edits, "_size", lambda _: 2 * MIB)
    base = machine((8 * MIB, 128 * MIB, RAM), (128 * MIB, 129 * MIB, E820Type.NVS))
    found = {m.memory_map for m in every(lambda choose: edits._overlap(choose, base))}
    raw = [(e.start, e.end, e.type) for e in base.memory_map]
    assert found == {
        MemoryMap.sanitise([*raw, (edge - 2 * MIB, edge + 2 * MIB, kind)])
        for edge in (8 * MIB, 128 * MIB, 129 * MIB)
        for kind in (FILLINGS - {None}) | {RAM}
    }
    low = machine((0, 128 * MIB, RAM))
    firsts = set()
    for after in every(lambda choose: edits._overlap(choose, low)):
        first = after.memory_map.entries[0]
        assert first.start == 0
        firsts.add((first.end, first.type))
    across = {(2 * MIB, kind) for kind in FILLINGS - {None}}
    assert firsts == across | {(126 * MIB, RAM), (128 * MIB, RAM), (130 * MIB, RAM)}


def test_more_memory_begins_behind_everything_at_4g_or_higher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(edits, "_size", lambda _: 2 * MIB)
    gaps = {0, PAGE, 2 * MIB, GIB, 256 * GIB}
    for base, top in ((machine(), 4 * GIB), (BOTH, 6 * GIB)):
        found = set()
        for after in every(lambda choose, base=base: edits._more_memory(choose, base)):
            ((low, high),) = less(after, base)
            assert high - low == 2 * MIB
            found.add(low - top)
            assert after.max_pfn_hint is None
        assert found == gaps
    wide = machine((0, MIB, RAM), (2 * MIB, MAX_ADDRESS - GIB, RAM), mode=MODES["x86_64-la57"])
    monkeypatch.setattr(edits, "_size", lambda _: TIB)
    for after in every(lambda choose: edits._more_memory(choose, wide)):
        assert ram(after).end <= MAX_ADDRESS
    for name, mode in MODES.items():
        ends = {ram(m).end for m in every(
            lambda c, mode=mode: edits._more_memory(c, machine(mode=mode)))}  # fmt: skip
        assert max(ends) <= min(1 << mode.physical_bits, MAX_ADDRESS), name


def test_less_memory_ends_behind_the_kernel() -> None:
    ends = {ram(m).end for m in every(lambda choose: edits._less_memory(choose, BOTH))}
    assert min(ends) == END
    assert {END, 6 * GIB} <= ends
    whole = machine((0, 8 * GIB, RAM))
    ends = {m.memory_map.ram().end for m in every(lambda choose: edits._less_memory(choose, whole))}
    assert ends == {END, END + (8 * GIB - END) // 2, 8 * GIB}


def test_small_machines_have_little_more_than_their_kernel_needs() -> None:
    behind = END + 8 * MIB
    room = {ram(m).end - behind for m in every(lambda c: small(c, machine((0, 8 * GIB, RAM))))}
    sizes = {n * MIB for n in (0, 2, 14, 62, 126, 254)}
    assert room == {size + off for size in sizes for off in (0, PAGE, -PAGE)}


def test_behind_a_kernel_is_the_next_whole_page() -> None:
    odd = attrs.evolve(KERNEL, brk_end=END - 5)
    whole = machine((0, 8 * GIB, RAM), kernel=odd)
    assert min(ram(m).end for m in every(lambda c: small(c, whole))) == END + 8 * MIB - PAGE
    assert min(ram(m).end for m in every(lambda c: edits._less_memory(c, whole))) == END
    tight = machine((16 * MIB, END + PAGE, RAM), kernel=odd)
    assert {m.initrd for m in every(lambda c: edits._initrd(c, tight))} == {
        None, (END, END + PAGE),
    }  # fmt: skip


def test_what_lies_in_memory_that_is_gone_goes_with_it() -> None:
    end = 64 * MIB
    base = machine(
        (0, 128 * MIB, RAM), (128 * MIB, 129 * MIB, E820Type.NVS), (GIB, 2 * GIB, RAM),
        reserved=((MIB, 2 * MIB), (63 * MIB, 65 * MIB), (GIB, GIB + MIB)),
        initrd=(60 * MIB, end),
    )  # fmt: skip
    after = edits._until(base, end)
    assert list(ram(after)) == [(0, end)]
    assert [e.type for e in after.memory_map] == [RAM, E820Type.NVS]
    assert after.reserved == ((MIB, 2 * MIB), (63 * MIB, end))
    assert after.initrd == base.initrd
    assert edits._until(attrs.evolve(base, initrd=(60 * MIB, end + 1)), end).initrd is None
    assert edits.end_at(Walk([]), base, MIB).memory_map.ram().end == END, "its kernel stays"
    assert edits.end_at(Walk([]), base, 77 * MIB).memory_map.ram().end == 77 * MIB


# -- what is taken -------------------------------------------------------------------------------


def test_a_reservation_lies_in_ram_and_not_on_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edits, "_size", lambda _: 2 * MIB)
    old = (0x1000, 0x2000)
    base = attrs.evolve(BOTH, reserved=(old,))
    places = set()
    for after in every(lambda choose: edits._reserve(choose, base)):
        if after is base:
            continue
        for low, high in taken(after).difference(RangeSet([old])):
            assert not (low < END and high > 16 * MIB)
            places.add((low, high))
        assert after.memory_map == base.memory_map
    assert {(MIB, 3 * MIB), (126 * MIB, 128 * MIB), (5 * GIB - MIB, 5 * GIB + MIB)} <= places
    assert {(0, 0x1000), (0x2000, 0x9F000)} <= places  # a piece that is smaller: all of it
    tight = machine((16 * MIB, END, RAM))
    assert all(m is tight for m in every(lambda choose: edits._reserve(choose, tight)))


def test_a_crowd_leaves_no_large_page_free() -> None:
    for mode, large in ((MODES["x86_64"], 2 * MIB), (MODES["i386"], 4 * MIB)):
        base = machine((0, MIB, RAM), (2 * MIB + PAGE, 64 * MIB + PAGE, RAM), mode=mode)
        sizes = set()
        for n in range(60):
            after = edits._crowd(Seeded(n), base)
            spots = list(taken(after).difference(taken(base)))
            for low, high in spots:
                assert high - low in (PAGE, 2 * PAGE)
                assert low % large in (0, PAGE, large - PAGE) or high % large == PAGE
                assert not (low < END and high > 16 * MIB)
                assert ram(base).covers(low, high), "within the piece"
            free = ram(after).difference(taken(after))
            whole = [
                start
                for start in range(0, 64 * MIB, large)
                if free.covers(start, start + large)
                and not (start < END and start + large > 16 * MIB)
            ]
            sizes.add(len(spots))
            if spots:
                assert not whole
        assert max(sizes) > 64 * MIB // large - 8
    many = machine((0, MIB, RAM), (2 * MIB, GIB, RAM))
    assert max(
        sum(high - low for low, high in edits._crowd(Seeded(n), many).reserved) // PAGE
        for n in range(30)
    ) in range(MAX_CROWD - 4, MAX_CROWD + 1)
    offsets = {low % (2 * MIB) for n in range(60)
               for low, _ in edits._crowd(Seeded(n), many).reserved}  # fmt: skip
    assert offsets == {0, PAGE, 2 * MIB - PAGE}


def test_a_reservation_is_released() -> None:
    base = machine(reserved=((0, PAGE), (MIB, 2 * MIB)))
    found = {m.reserved for m in every(lambda choose: edits._release(choose, base))}
    assert found == {((0, PAGE),), ((MIB, 2 * MIB),)}
    plain = machine()
    assert [*every(lambda choose: edits._release(choose, plain))] == [plain]


def test_an_initrd_lies_as_high_as_a_loader_could_put_it() -> None:
    """Whole pages of RAM behind the kernel, below 4 GiB or what the kernel maps at first; or a few
    pages off something else.
    """
    sizes = {5 * MIB + 123, 40 * MIB, 200 * MIB, PAGE, 3 * PAGE - 1}
    base = attrs.evolve(machine((0, 0x9F000, RAM), (MIB, 3 * GIB, RAM), (4 * GIB, 6 * GIB, RAM)),
                        initrd=(32 * MIB, 33 * MIB))  # fmt: skip
    seen = set()
    for after in every(lambda choose: edits._initrd(choose, base)):
        if after.initrd is None:
            seen.add(None)
            continue
        low, high = after.initrd
        assert low % PAGE == 0
        assert low >= END
        assert ram(after).covers(low, high)
        seen.add(high - low)
        seen.add((3 * GIB - low) // PAGE if high <= 3 * GIB else "high")
    assert seen >= {None, *sizes}
    assert -(-(5 * MIB + 123) // PAGE) in seen, "right below the end of RAM"
    whole = machine((0, 6 * GIB, RAM))
    tops = {m.initrd for m in every(lambda c: edits._initrd(c, whole)) if m.initrd}
    pages = {size: -(-size // PAGE) * PAGE for size in sizes}
    assert {(4 * GIB - pages[size], 4 * GIB - pages[size] + size) for size in sizes} <= tops
    assert {high for _, high in tops if GIB < high <= 4 * GIB} == {
        4 * GIB - pages[size] + size for size in sizes
    }, "nothing else that ends near there"
    narrow = machine((0, 3 * GIB, RAM), mode=MODES["i386"])
    limit = MODES["i386"].lowmem_limit
    assert limit is not None
    highest = [m.initrd[1] for m in every(lambda c: edits._initrd(c, narrow)) if m.initrd]
    assert sorted(highest)[len(highest) // 2] <= 3 * GIB
    assert limit - PAGE < max(h for h in highest if h <= limit) <= limit
    amid = attrs.evolve(machine((0, 63 * MIB, RAM)), reserved=((48 * MIB + 100, 49 * MIB),))
    near = {m.initrd[1] for m in every(lambda choose: edits._initrd(choose, amid)) if m.initrd}
    assert 48 * MIB - 1 in near
    assert not any(48 * MIB < end <= 48 * MIB + PAGE for end in near), "no page with half of it"
    full = machine((16 * MIB, END + PAGE, RAM))
    ends = {m.initrd for m in every(lambda choose: edits._initrd(choose, full))}
    assert ends == {None, (END, END + PAGE)}


def test_edges_are_all_places_where_something_begins_or_ends() -> None:
    base = machine(reserved=((2 * MIB, 3 * MIB),), initrd=(32 * MIB, 33 * MIB))
    loaded = base.kernel.loaded
    assert edits._edges(base) == sorted({
        0, 0x9F000, MIB, 128 * MIB, 2 * MIB, 3 * MIB, *loaded, 32 * MIB, 33 * MIB,
    })  # fmt: skip


def test_a_few_pages() -> None:
    assert set(every(edits._few)) == {n * PAGE for n in FEW}


def test_pages_are_taken_beside_things() -> None:
    base = machine((0, 256 * MIB, RAM))
    sizes = {PAGE, 1, PAGE + 1, 64 * KIB, 2 * MIB}
    edges = edits._edges(base)
    seen, off = set(), set()
    for after in every(lambda choose: edits._take_beside(choose, base)):
        assert after.memory_map == base.memory_map
        for low, high in taken(after):
            assert not (low < END and high > 16 * MIB)
            if low > END and high < 256 * MIB - 4 * MIB:
                seen.add(high - low)
                off |= {edge - END for edge in (low, high)}
            expected = {
                span
                for edge in edges
                for by in FEW
                for at in (edge + by * PAGE, edge - by * PAGE)
                for size in sizes
                for span in ((at, at + size), (at - size, at))
            }
            if low > END:
                assert (low, high) in expected or high == 256 * MIB
    assert seen == sizes
    assert {n * PAGE for n in FEW - {0}} <= off
    assert edges[0] == 0


def test_all_of_a_piece_is_taken_but_a_few_pages() -> None:
    base = machine((0, MIB, RAM), (64 * MIB, 65 * MIB, RAM), (16 * MIB, 32 * MIB, RAM))
    left = set()
    for after in every(lambda choose: edits._leave_few(choose, base)):
        free = list(RangeSet([(64 * MIB, 65 * MIB)]).difference(taken(after)))
        if free and taken(after).overlaps(64 * MIB, 65 * MIB):
            ((low, high),) = free
            left.add(high - low)
            assert (
                low in (64 * MIB, 64 * MIB + 512 * KIB)
                or high == 65 * MIB
            )  # fmt: skip
        assert not taken(after).overlaps(16 * MIB, END)
    assert left == {min((n + 1) * PAGE, MIB) for n in FEW if (n + 1) * PAGE < MIB} | {MIB // 2}
    behind = {
        taken(m).overlaps(END, END + 8 * MIB)
        for m in every(lambda choose: edits._leave_few(choose, base))
    }
    assert behind == {True, False}
    alone = machine((16 * MIB, 64 * MIB, RAM))
    firsts = {m.reserved[0][0] for m in every(lambda choose: edits._leave_few(choose, alone))}
    assert firsts == {END, END + 8 * MIB}, "right behind the kernel, or where a loader needs none"


def test_what_is_taken_spares_the_kernel() -> None:
    base = machine(reserved=((0, PAGE),))
    after = edits.taking(base, [(MIB, 64 * MIB), (127 * MIB, 999 * MIB)])
    assert after.reserved == ((0, PAGE), (MIB, 16 * MIB), (END, 64 * MIB), (127 * MIB, 128 * MIB))
    after = edits.taking(base, [(MIB, 64 * MIB)], END + MIB)
    assert after.reserved[1:] == ((MIB, 16 * MIB), (END + MIB, 64 * MIB))
    assert edits.taking(base, [(MIB, 64 * MIB)], MIB).reserved[1:][0] == (MIB, 16 * MIB)


def test_as_much_of_the_top_is_taken_as_so_many_tables_map(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One to 128 tables, a few pages off, whole pages or whole tables; large pages may be gone."""
    base = machine((0, 8 * GIB, RAM))
    counts, free_ends = set(), set()
    for after in every(lambda choose: edits._take_the_top(choose, base)):
        if not after.reserved:
            continue  # as many pages less as one table maps
        *below, (low, high) = taken(after)
        assert high == 8 * GIB
        assert low % PAGE == 0
        if below:  # more than there is: all but the kernel and the room behind it
            assert [end for _, end in below] == [16 * MIB]
            assert low == END + 8 * MIB
            continue
        assert low >= END + 8 * MIB
        small_pages = not after.features.pse
        assert after.features == attrs.evolve(
            base.features, pse=not small_pages, gbpages=base.features.gbpages and not small_pages
        )
        span = 2 * MIB if small_pages else GIB
        free_ends.add(low % span // PAGE)
        counts.add((small_pages, round((high - low) / span)))
    assert {n for small_pages, n in counts if small_pages} >= {1, 5, 8, 16, 32, 64, 128}
    monkeypatch.setattr(edits, "_few", lambda _: 0)
    exactly = {
        (8 * GIB - m.reserved[-1][0]) / (2 * MIB)
        for m in every(lambda choose: edits._take_the_top(choose, base))
        if not m.features.pse
    }
    assert exactly == {n - less for n in (8, 16, 32, 64, 128) for less in (0, 3, 7)}
    assert max(n for small_pages, n in counts if small_pages) == 129  # 512 pages more
    assert {0, 1, 63, 512 - 63, 511} <= free_ends


def test_nearly_all_is_taken_but_a_few_pages_of_some_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = machine((0, 0x9F000, RAM), (MIB, 128 * MIB, RAM))
    behind = END + MIB
    sides, left, ends = set(), set(), set()
    for n in range(300):
        after = edits._take_nearly_all(Seeded(n), base)
        free = ram(after).difference(taken(after))
        assert free.covers(16 * MIB, behind)
        assert all(edge % PAGE == 0 for span in after.reserved for edge in span), "whole pages"
        below, above = taken(after).overlaps(0, 16 * MIB), taken(after).overlaps(behind, GIB)
        sides.add((below, above))
        for low, high in free:
            if low > behind or high < 16 * MIB:
                left.add((high - low) // PAGE)
                assert low in (0, MIB, 16 * MIB) or high in (0x9F000, 128 * MIB, 16 * MIB)
                ends.add((low in (0, MIB), high in (0x9F000, 128 * MIB)))
    assert sides == {(True, False), (False, True), (True, True)}
    assert {1, 2, 3, 4} <= left
    assert ends >= {(True, False), (False, True)}, "the first few of a piece, or its last"
    monkeypatch.setattr(edits, "_few", lambda _: PAGE)
    close = machine((16 * MIB, 64 * MIB, RAM), (64 * MIB + PAGE, 65 * MIB, RAM))
    sizes = {
        sum(high - low for low, high in ram(after).difference(taken(after)).within(64 * MIB, GIB))
        for after in (edits._take_nearly_all(Seeded(n), close) for n in range(60))
    }
    assert sizes == {0, 2 * PAGE, MIB - PAGE}, "none of the next piece"


# -- marks and borders ---------------------------------------------------------------------------


def test_holes_and_reservations_begin_or_end_at_a_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    place, base = 64 * MIB, machine((0, 8 * GIB, RAM))
    holes = {less(base, m)[0] for m in every(lambda c: edits._hole_at(c, base, place))}
    sizes = {PAGE, 2 * PAGE, 64 * KIB, 2 * MIB}
    assert holes == {
        *((place, place + size) for size in {*sizes, GIB}),
        *((place - size, place) for size in sizes), (0, GIB),
    }  # fmt: skip
    spots = {m.reserved for m in every(lambda c: edits._take_at(c, base, place))}
    sizes = {*((n + 1) * PAGE for n in FEW), 2 * MIB}
    assert {((place, place + size),) for size in {*sizes, 64 * MIB}} <= spots
    assert {((place - size, place),) for size in sizes} <= spots
    monkeypatch.setattr(edits, "_few", lambda _: 0)
    plain = {m.reserved for m in every(lambda c: edits._take_at(c, base, place))}
    assert {((place, place + size),) for size in (PAGE, 2 * MIB, 64 * MIB)} <= plain
    ((low, high), *_) = next(spot for spot in spots if spot[0][0] == 0)
    assert (low, high) == (0, 16 * MIB)  # 64 MiB below the mark, but for the kernel


def test_an_initrd_begins_or_ends_at_a_mark_in_ram_behind_the_kernel() -> None:
    base = machine((0, 128 * MIB, RAM))
    sizes = {PAGE, 3 * PAGE - 1, 5 * MIB + 123}
    found = {m.initrd for m in every(lambda c: edits._initrd_at(c, base, 64 * MIB))}
    assert found == {
        *((64 * MIB, 64 * MIB + size) for size in sizes),
        *((low, low + size) for size in sizes for low in [(64 * MIB - size) // PAGE * PAGE]),
    }  # fmt: skip
    amid = {m.initrd for m in every(lambda c: edits._initrd_at(c, base, 64 * MIB + PAGE - 1))}
    assert {low for low, _ in amid if low >= 64 * MIB - PAGE} == {64 * MIB, 64 * MIB - PAGE}
    for place in (0, 17 * MIB, 128 * MIB, GIB):
        for after in every(lambda c, at=place: edits._initrd_at(c, base, at)):
            assert after.initrd is None or (after.initrd[0] >= END and after.initrd[1] <= 128 * MIB)
    at_end = {m.initrd for m in every(lambda c: edits._initrd_at(c, base, 128 * MIB))}
    assert (128 * MIB - PAGE, 128 * MIB) in at_end
    assert {m.initrd for m in every(lambda c: edits._initrd_at(c, base, END))} >= {
        (END, END + PAGE)
    }


def test_a_mark_makes_something_begin_or_end_there_or_near_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Off it by nothing, a page, a few pages, a large page or a little more than that."""
    monkeypatch.setattr(edits, "_few", lambda _: 3 * PAGE)
    mark, base = 64 * MIB, machine((0, 128 * MIB, RAM))
    places: dict[str, set[int]] = {"end": set(), "hole": set(), "taken": set(), "initrd": set()}
    for after in every(lambda choose: edits._at_mark(choose, base, [mark])):
        places["taken"] |= {edge for span in after.reserved for edge in span}
        places["initrd"] |= {*(after.initrd or ())}
        places["end" if ram(after).covers(0, after.memory_map.ram().end) else "hole"] |= {
            edge for span in ram(after) for edge in span
        }
    off = {0, PAGE, 3 * PAGE, 2 * MIB, 2 * MIB + 3 * PAGE}
    near = {mark + sign * by for by in off for sign in (1, -1)}
    assert places["end"] - {0, 128 * MIB} == near
    for kind, found in places.items():
        assert {mark + by for by in off} <= found, kind
        assert {mark - by for by in off} <= found, kind
    assert min(
        after.memory_map.ram().end
        for after in every(lambda c: edits._at_mark(c, machine((0, 8 * GIB, RAM)), [0]))
    ) == END, "no place is below the first page"  # fmt: skip


def test_brk_begins_where_a_mark_is_within_a_large_page() -> None:
    """The kernel grows by less than a large page, until its brk, or a mark within a MiB of it, is
    as far into one as the place is.
    """
    base = machine((0, 128 * MIB, RAM))
    place = 64 * MIB + 5 * PAGE
    inside, beyond = KERNEL.brk_start + MIB, KERNEL.brk_start + MIB + PAGE
    starts = set()
    marks = [place, inside, beyond, KERNEL.brk_start]
    for n in range(3000):
        try:
            after = edits._at_mark(Seeded(n), base, marks)
        except InputError:
            continue
        grown = after.kernel.brk_start - KERNEL.brk_start
        if grown:
            assert after.kernel.start == KERNEL.start
            assert 0 < grown < 2 * MIB
            assert after.kernel.brk_end - after.kernel.brk_start == 64 * PAGE
            starts.add(grown)
    assert {5 * PAGE, (5 * PAGE - MIB) % (2 * MIB)} <= starts
    assert (5 * PAGE - MIB - PAGE) % (2 * MIB) in starts  # a page off, too


def test_borders_are_where_tables_begin_or_end() -> None:
    """Multiples of what an entry maps, at the first, the last or one amid the piece; or so far
    behind an edge of something: once or twice.
    """
    base = machine((MIB, 3 * GIB, RAM))
    seen = set(every(lambda choose: edits._border(choose, base), 200_000))
    low = machine((0, 64 * MIB, RAM))
    assert min(edits._border(Seeded(n), low) for n in range(200)) == 0, "nothing is below that"
    few = {sign * n * PAGE for n in FEW for sign in (1, -1)}
    edges = {*edits._edges(base), KERNEL.brk_start}
    expected = set()
    for unit in (2 * MIB, 64 * MIB, 512 * MIB, GIB, 512 * GIB):
        first, last = 1, 3 * GIB // unit
        places = {n * unit for n in (first, (first + last) // 2, last)} if last else set()
        places |= {edge + n * unit for edge in edges for n in (1, 2)}
        expected |= {max(0, place + by) for place in places for by in few}
    assert seen == expected
    assert {m.memory_map.ram().end for m in (
        edits._end_at_border(Seeded(n), base) for n in range(200))} - {3 * GIB}  # fmt: skip
    assert any(less(base, edits._hole_at_border(Seeded(n), base)) for n in range(50))


# -- kernel, features, mode ----------------------------------------------------------------------


def test_memory_ends_at_powers_of_two_and_a_page_off_them() -> None:
    """From above the kernel to where addresses end, whether there was memory or not."""
    for mode, highest in (("x86_64", 46), ("i386", 32), ("i386-pae", 36), ("x86_64-la57", 46)):
        base = machine(mode=MODES[mode])
        ends = {ram(m).end for m in every(lambda c, m=base: edits._end_at_power(c, m))}
        assert ends == {
            (1 << bits) + off
            for bits in range(25, highest + 1)
            for off in (0, PAGE, -PAGE)
            if (bits, off) != (highest, PAGE)
        }


def test_features_are_those_that_the_mode_can_have() -> None:
    for name, pairs in (
        ("x86_64", {(False, False), (True, False), (True, True)}),
        ("i386-pae", {(False, False), (True, False)}),
    ):
        base = machine(mode=MODES[name])
        found = {m.features for m in every(lambda c, base=base: edits._features(c, base))}
        assert {(f.pse, f.gbpages) for f in found} == pairs
        assert {f.nx for f in found} == {base.features.nx}


def test_another_mode_keeps_what_it_can_have() -> None:
    base = machine(features=CpuFeatures(gbpages=True, nx=True), max_pfn_hint=7, max_low_pfn_hint=8)
    for mode in MODES.values():
        after = in_mode(base, mode)
        assert after.mode is mode
        assert after.features.gbpages == (3 in mode.large_levels)
        assert after.features.nx == mode.has_nx
        assert (after.max_pfn_hint, after.max_low_pfn_hint) == (None, None)
        without = in_mode(attrs.evolve(base, features=CpuFeatures(nx=False)), mode)
        assert (without.features.gbpages, without.features.nx) == (False, False)
    assert {m.mode for m in every(lambda c: edits._mode(c, base))} == {*MODES.values()}


def test_a_kernel_moves_to_an_aligned_place_with_room_behind_it() -> None:
    size = END - 16 * MIB
    base = machine((MIB, 128 * MIB, RAM), (3 * GIB, 3 * GIB + size + 8 * MIB, RAM),
                   (3 * GIB + 512 * MIB, 3 * GIB + 512 * MIB + size + 8 * MIB - PAGE, RAM),
                   (4 * GIB, 6 * GIB, RAM))  # fmt: skip
    starts = set()
    for after in every(lambda choose: edits._move_kernel(choose, base)):
        kernel = after.kernel
        by = kernel.start - KERNEL.start
        assert kernel == KERNEL.at(KERNEL.start + by)
        assert ram(after).covers(kernel.start, kernel.span[1] + 8 * MIB)
        starts.add(kernel.start)
    last = (128 * MIB - 8 * MIB - size) // (2 * MIB) * 2 * MIB
    assert {2 * MIB, last, 16 * MIB, 3 * GIB} <= starts
    assert max(starts) == 3 * GIB, "below 4 GiB"
    assert {start % (2 * MIB) for start in starts} == {0}


def test_a_kernel_grows_until_brk_begins_or_ends_at_a_large_page() -> None:
    base = machine()
    found = set()
    for after in every(lambda choose: edits._grow_kernel(choose, base)):
        kernel = after.kernel
        assert kernel.start == KERNEL.start
        by = kernel.brk_start - KERNEL.brk_start
        assert (kernel.end, kernel.brk_end) == (KERNEL.end + by, KERNEL.brk_end + by)
        found.add(by)
    ends = 2 * MIB - 64 * PAGE
    expected = {by for n in FEW for sign in (1, -1)
                for by in (sign * n * PAGE, ends + sign * n * PAGE) if by >= 0}  # fmt: skip
    assert found == expected


# -- all of them ---------------------------------------------------------------------------------


def test_every_kind_of_change_occurs_and_the_time_is_kept() -> None:
    """What a hunt changes: entries, their types and edges, reservations, initrd, features, mode,
    kernel; one to three of it at a time. A seed gives the same machine again.
    """
    base = attrs.evolve(BOTH, reserved=((0x1000, 0x3000),), initrd=(64 * MIB, 65 * MIB))
    seen: dict[str, set[Any]] = {}
    for n in range(400):
        after = changed(Seeded(n), base)
        assert after == changed(Seeded(n), base)
        for field in attrs.fields(Machine):
            seen.setdefault(field.name, set()).add(getattr(after, field.name))
        assert ram(after).end <= MAX_ADDRESS
        assert after.name == base.name
    for name in ("memory_map", "reserved", "initrd", "features", "mode", "kernel"):
        assert len(seen[name]) > 3, name
    assert len({kernel.brk_start - kernel.start for kernel in seen["kernel"]}) > 3, "it grows"
    assert len({len(edits.entries_of(changed(Seeded(n), base))) for n in range(100)}) > 3
    assert {e.type for m in seen["memory_map"] for e in m} >= FILLINGS - {None}


def test_one_to_three_changes_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change after which the kernel would not start, or there would be no RAM, is not made."""
    made: list[int] = []

    def count(_: object, one: Machine) -> Machine:
        made.append(1)
        return attrs.evolve(one, reserved=(*one.reserved, (len(one.reserved) * PAGE, PAGE * 99)))

    def never(_: object, one: Machine) -> Machine:
        raise InputError("no RAM")

    def worse(_: object, one: Machine) -> Machine:
        return attrs.evolve(one, reserved=((END + MIB - 1, END + MIB),))

    base = machine()
    monkeypatch.setattr(edits, "_CHANGES", (count,))
    counts = set()
    for after in every(lambda choose: changed(choose, base)):
        counts.add(len(made))
        assert len(after.reserved) == len(made)
        made.clear()
    assert counts == {1, 2, 3}
    for change in (never, worse):
        monkeypatch.setattr(edits, "_CHANGES", (change,))
        assert {*every(lambda choose: changed(choose, base))} == {base}

    def refused(_: object, one: Machine) -> Machine:
        made.append(0)
        raise InputError("no RAM")

    monkeypatch.setattr(edits, "_CHANGES", (refused, count))
    orders = set()
    for _ in every(lambda choose: changed(choose, base)):
        orders.add(tuple(made))
        made.clear()
    assert (0, 1) in orders, "what cannot be made is passed over"
    # Marks and leads are used where there are any, and by times only.
    monkeypatch.setattr(edits, "_CHANGES", (lambda _, one: attrs.evolve(one, name="other"),))
    monkeypatch.setattr(edits, "_at_mark", lambda _c, one, _: attrs.evolve(one, name="mark"))

    def lead(_: object, one: Machine) -> Machine:
        return attrs.evolve(one, name="lead")

    for marks, leads, names in (
        ((), (), {"other"}), ((1,), (), {"other", "mark"}), ((), (lead,), {"other", "lead"}),
        ((1,), (lead,), {"other", "mark", "lead"}),
    ):  # fmt: skip
        found = {m.name for m in every(lambda c, m=marks, r=leads: changed(c, base, m, r))}
        assert found == names


def test_an_entry_is_cut_where_addresses_end() -> None:
    after = edits.with_map(machine(max_pfn_hint=5, max_low_pfn_hint=6),
                            [(0, 128 * MIB, RAM), (64 * TIB - PAGE, 65 * TIB, RAM)])  # fmt: skip
    assert list(ram(after)) == [(0, 128 * MIB), (64 * TIB - PAGE, 64 * TIB)]
    assert (after.max_pfn_hint, after.max_low_pfn_hint) == (None, None)
