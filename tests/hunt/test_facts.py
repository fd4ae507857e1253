"""What a machine is given so that it has as much of something as is wanted."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import attrs
import pytest

from paravirt_mm import MODES, E820Type, Machine
from paravirt_mm.hunt import facts
from paravirt_mm.hunt.facts import FACTS, MAX_MORE, Fact, scaled
from paravirt_mm.machine.paging import GIB, MIB, TIB
from tests.hunt.walks import (
    END,
    KERNEL,
    PAGE,
    RAM,
    RESERVED,
    every,
    less,
    machine,
    ram,
    taken,
)

ROOM = END + 8 * MIB


def given(name: str, one: Machine, wanted: int) -> list[Machine]:
    """Return what comes of each way to give a machine so much."""
    return list(every(lambda choose: FACTS[name].given(choose, one, wanted)))


def test_facts_are_of_the_machine() -> None:
    one = machine(
        (0, 0x9F000, RAM), (MIB, 128 * MIB + 5, RAM), (200 * MIB, 201 * MIB, E820Type.NVS),
        (4 * GIB, 6 * GIB, RAM), reserved=((MIB, 2 * MIB), (3 * MIB, 4 * MIB)),
    )  # fmt: skip
    found = {name: fact.of(one) for name, fact in FACTS.items()}
    assert found == {
        "ram": 0x9F000 + 127 * MIB + 2 * GIB, "entries": 4, "pieces": 3,
        "max_pfn": 6 * GIB // PAGE, "reserved": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("ram", 0x12345000), ("ram", 27 * MIB), ("ram", 9 * TIB),
        ("entries", 777), ("entries", 778), ("entries", 4), ("entries", 2),
        ("pieces", 77), ("pieces", 2), ("pieces", 1),
        ("max_pfn", 0xABCDE), ("max_pfn", 8000),
        ("reserved", 33), ("reserved", 1), ("reserved", 0),
    ],
)  # fmt: skip
def test_a_machine_comes_to_have_what_is_wanted(name: str, wanted: int) -> None:
    """By one of the ways at once, and the others lead there."""
    one = machine(
        (0, 0x9F000, RAM), (MIB, 128 * MIB, RAM), (200 * MIB, 201 * MIB, E820Type.NVS),
        (256 * MIB, 512 * MIB, RAM), (4 * GIB, 6 * GIB, RAM),
        reserved=((MIB, 2 * MIB), (3 * MIB, 4 * MIB)),
    )  # fmt: skip
    machines = given(name, one, wanted)
    assert wanted in {FACTS[name].of(after) for after in machines}
    before = FACTS[name].of(one)
    for after in machines:
        assert (FACTS[name].of(after) < before) is (wanted < before)


@pytest.mark.parametrize("name", FACTS)
def test_what_a_machine_has_is_left_alone(name: str) -> None:
    one = machine((0, 64 * MIB, RAM), (128 * MIB, 192 * MIB, RAM), reserved=((MIB, 2 * MIB),))
    for after in given(name, one, FACTS[name].of(one)):
        assert FACTS[name].of(after) == FACTS[name].of(one)
        assert after.reserved == one.reserved


def test_memory_is_added_behind_and_taken_from_the_end_or_the_largest_piece() -> None:
    """To whole pages that pass what is wanted; never beyond what the mode can address."""
    one = machine((0, 64 * MIB, RAM), (128 * MIB, 256 * MIB, RAM), (GIB, GIB + 16 * MIB, RAM))
    total = 208 * MIB
    assert {[*ram(m)][-1] for m in given("ram", one, total + 1)} == {(GIB, GIB + 16 * MIB + PAGE)}
    less_of_it = {tuple(ram(m)) for m in given("ram", one, total - 48 * MIB - 1)}
    assert less_of_it == {
        ((0, 64 * MIB), (128 * MIB, 208 * MIB - PAGE), (GIB, GIB + 16 * MIB)),
        ((0, 64 * MIB), (128 * MIB, 224 * MIB - PAGE)),
    }
    narrow = machine((0, 64 * MIB, RAM), mode=MODES["i386"])
    for name, much in (("ram", 10**15), ("max_pfn", 10**12)):
        for after in given(name, narrow, much):
            assert ram(after).end == 1 << MODES["i386"].physical_bits


def test_pages_lie_evenly_apart_or_close_together_and_not_near_the_kernel() -> None:
    base = machine((0, 64 * MIB, RAM), (128 * MIB, 192 * MIB, RAM))
    aparts = set()
    for after in given("reserved", base, 8):
        pages = list(taken(after))
        assert {high - low for low, high in pages} == {PAGE}
        (apart,) = {b - a for (a, _), (b, _) in pairwise(pages)}
        last = pages[-1][0]
        high = 64 * MIB if last < 64 * MIB else 192 * MIB
        assert last == high - apart
        assert pages[0][0] >= (ROOM if high == 64 * MIB else 128 * MIB)
        aparts.add((high, apart))
    even = {64 * MIB: 64 * MIB - ROOM, 192 * MIB: 64 * MIB}
    assert aparts == {
        (high, apart)
        for high, size in even.items()
        for apart in (size // 9 // PAGE * PAGE, 2 * PAGE, 2 * MIB)
    }


@pytest.mark.parametrize(("pages", "most"), [(3, 0), (4, 1), (5, 1), (6, 2)])
def test_no_more_pages_than_there_is_room_for(pages: int, most: int) -> None:
    """One between two, one at each end at the least."""
    tight = machine((MIB, MIB + pages * PAGE, RAM))
    assert {len(m.reserved) for m in given("reserved", tight, 10)} == {most}
    odd = attrs.evolve(KERNEL, brk_end=END - 5)
    behind = machine((0, ROOM + pages * PAGE, RAM), kernel=odd)
    assert {len(m.reserved) for m in given("reserved", behind, 10)} == {most}
    wide = machine((0, 64 * MIB, RAM), (GIB, 4 * GIB, RAM))
    assert max(len(m.reserved) for m in given("reserved", wide, 10**9)) == MAX_MORE


def test_pieces_come_of_pages_that_are_missing_or_added() -> None:
    """Those that are added lie in tables of their own, as far as the mode has addresses."""
    base = machine((0, 64 * MIB, RAM), (65 * MIB, 66 * MIB, RESERVED))
    spans = set()
    for after in given("pieces", base, 4):
        gone = less(base, after)
        if gone:
            assert [high - low for low, high in gone] == [PAGE] * 3
            continue
        _, *pages = ram(after)
        assert {high - low for low, high in pages} == {PAGE}
        (apart,) = {b - a for (a, _), (b, _) in pairwise(pages)}
        assert pages[0][0] == apart * -(-66 * MIB // apart)
        spans.add(apart)
    assert spans == {base.mode.table_span(level) for level in (1, 2, 3)}
    wide = machine((0, 64 * MIB, RAM), mode=MODES["x86_64-la57"])
    tops = {[*ram(m)][-1] for m in every(lambda c: facts._scattered(c, wide, 1))}
    assert tops == {(0, 64 * MIB), (0, 64 * MIB + PAGE), (GIB, GIB + PAGE)}, "none at 256 TiB"
    narrow = machine((0, 63 * MIB, RAM), mode=MODES["i386"])
    many = {len(list(ram(m))) for m in every(lambda c: facts._scattered(c, narrow, 10**6))}
    assert many == {1 + (4 * GIB - 64 * MIB) // (4 * MIB)}


def test_fewer_pieces_are_the_first_ones_or_some_that_became_one() -> None:
    one = machine(*((n * GIB, n * GIB + 64 * MIB, RAM) for n in range(4)))
    maps = {tuple(ram(m)) for m in given("pieces", one, 2)}
    pieces = [(n * GIB, n * GIB + 64 * MIB) for n in range(4)]
    assert maps == {
        tuple(pieces[:2]),
        ((0, pieces[2][1]), pieces[3]),
        (pieces[0], (GIB, pieces[3][1])),
    }
    assert given("pieces", one, 0) == [one], "without RAM it is none"


def test_entries_are_pages_that_are_missing_something_else_or_behind_the_rest() -> None:
    base = machine((0, 64 * MIB, RAM), (128 * MIB, 192 * MIB, RAM))
    kinds = set()
    for after in given("entries", base, 7):
        behind = [e for e in after.memory_map if e.start >= 192 * MIB]
        others = [e for e in after.memory_map if e.type is RESERVED and e not in behind]
        kinds.add((len(less(base, after)), len(others), len(behind)))
        assert len(after.memory_map) == 7
    assert kinds == {(5, 0, 0), (3, 2, 0), (0, 0, 5)}


def test_the_kernel_keeps_its_entry() -> None:
    """The first of the others go, or the last."""
    one = machine((0, 0x9F000, RAM), (0xF0000, MIB, RESERVED), (MIB, 64 * MIB, RAM),
                  (GIB, 2 * GIB, RAM))  # fmt: skip
    starts = {tuple(e.start for e in m.memory_map) for m in given("entries", one, 2)}
    assert starts == {(MIB, GIB), (0, MIB)}
    assert [len(m.memory_map) for m in given("entries", one, 0)] == [1]


def test_so_many_times_as_much_of_any_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of nothing as much as of one; to the nearest number, so that a few stay as many."""
    seen = set()

    def fact(name: str, has: int) -> Fact:
        def give(_: object, one: Machine, wanted: int) -> Machine:
            seen.add((name, wanted))
            return one

        return Fact(lambda _: has, give)

    monkeypatch.setattr(facts, "FACTS", {"ten": fact("ten", 10), "none": fact("none", 0)})
    for ratio in (Fraction(5, 2), Fraction(1, 3), Fraction(99, 100)):
        list(every(lambda choose, r=ratio: scaled(r, choose, machine())))
    assert seen == {("ten", 25), ("none", 2), ("ten", 3), ("none", 0), ("ten", 10), ("none", 1)}
