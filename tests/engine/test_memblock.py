"""memblock against `portion`, and its top-down search against a search page by page."""

from __future__ import annotations

from collections.abc import Iterator

import portion
import pytest
from hypothesis import given, strategies as st

from paravirt_mm import PageRun, RangeSet
from paravirt_mm.engine.memblock import Memblock
from paravirt_mm.machine.ranges import Ranges

PAGE = 4096
PAGES = 64
"""The model's machine is 256 KiB: small enough to try every place."""

page_spans = st.tuples(st.integers(0, PAGES), st.integers(0, PAGES)).map(
    lambda s: (s[0] * PAGE, s[1] * PAGE)
)
byte_spans = st.tuples(st.integers(0, PAGES * PAGE), st.integers(0, PAGES * PAGE))
memory = st.lists(page_spans, min_size=1, max_size=6)
reserved = st.lists(st.one_of(page_spans, byte_spans), max_size=8)
alignments = st.sampled_from([PAGE, 2 * PAGE, 8 * PAGE])
sizes = st.integers(1, 20).map(lambda n: n * PAGE)


def _memblock(ram: list[tuple[int, int]], taken: list[tuple[int, int]]) -> Memblock:
    return Memblock(RangeSet(ram), RangeSet(taken))


def _free(ram: list[tuple[int, int]], taken: list[tuple[int, int]]) -> portion.Interval:
    free = portion.empty()
    for start, end in ram:
        free |= portion.closedopen(start, end)
    for start, end in taken:
        free -= portion.closedopen(start, end)
    # memblock_find_in_range never hands out page 0.
    return free - portion.closedopen(0, PAGE)


@given(memory, reserved, byte_spans)
def test_free_ranges(
    ram: list[tuple[int, int]], taken: list[tuple[int, int]], window: tuple[int, int]
) -> None:
    found = list(_memblock(ram, taken).free_descending(*window))
    wanted = _free(ram, taken) & portion.closedopen(*window)
    assert found == [(p.lower, p.upper) for p in reversed(list(wanted)) if not p.empty]


@given(memory, reserved, page_spans, sizes, alignments)
def test_top_down_is_the_highest_aligned_place(
    ram: list[tuple[int, int]],
    taken: list[tuple[int, int]],
    window: tuple[int, int],
    size: int,
    align: int,
) -> None:
    """Try every aligned place from the top: the first whose bytes are all free, except for the
    kernel's rounding.

    The kernel looks at one place in each free range only, its end less the size, rounded down; as a
    lower aligned place in the range would fit only if that one does, that is the highest place of
    all.
    """
    free = _free(ram, taken) & portion.closedopen(*window)
    places = [
        place
        for place in range(PAGES * PAGE // align * align, -1, -align)
        if portion.closedopen(place, place + size) in free
    ]
    found = _memblock(ram, taken).find_top_down(*window, size, align)
    assert found == (places[0] if places else None)


@given(memory, reserved, page_spans, sizes, alignments)
def test_bottom_up_is_the_lowest_aligned_place(
    ram: list[tuple[int, int]],
    taken: list[tuple[int, int]],
    window: tuple[int, int],
    size: int,
    align: int,
) -> None:
    free = _free(ram, taken) & portion.closedopen(*window)
    places = [
        place
        for place in range(0, PAGES * PAGE, align)
        if portion.closedopen(place, place + size) in free
    ]
    found = _memblock(ram, taken).find_bottom_up(*window, size, align)
    assert found == (places[0] if places else None)


@given(memory, reserved, page_spans, st.integers(1, PAGES))
def test_many_pages_are_as_many_searches(
    ram: list[tuple[int, int]], taken: list[tuple[int, int]], window: tuple[int, int], count: int
) -> None:
    """pages_top_down gives what searching for one page and reserving it gives, over and over."""
    runs = _memblock(ram, taken).pages_top_down(*window, count)
    given_out = [run.start + i * run.step for run in runs for i in range(run.count)]
    one_by_one = []
    block = _memblock(ram, taken)
    while len(one_by_one) < count:
        place = block.find_top_down(*window, PAGE)
        if place is None:
            break
        one_by_one.append(place >> 12)
        block.reserve(place, place + PAGE)
    assert given_out == one_by_one


def test_search_from_the_top_rounds_down_inside_the_range() -> None:
    """::

        0     4 pages    8         12        16
        |      |#########|          |#########|       free: 4..8 and 12..16 (pages)

    Three pages aligned to 4: 16 - 3 = 13 rounds down to 12, where the range begins; two pages
    aligned to 8 fit nowhere in the upper range (14 rounds down to 8), and 8 - 2 = 6 rounds down to
    0 in the lower.
    """
    block = Memblock(RangeSet([(4 * PAGE, 8 * PAGE), (12 * PAGE, 16 * PAGE)]), RangeSet())
    assert block.find_top_down(0, 16 * PAGE, 3 * PAGE, 4 * PAGE) == 12 * PAGE
    assert block.find_top_down(0, 16 * PAGE, 2 * PAGE, 8 * PAGE) is None
    assert block.find_top_down(0, 15 * PAGE, 4 * PAGE) == 4 * PAGE
    assert block.find_top_down(0, 16 * PAGE, 5 * PAGE) is None


def test_search_from_the_bottom_rounds_up_inside_the_range() -> None:
    """Free: pages 5 to 12 and 13 to 20, the first with some bytes of page 4."""
    block = Memblock(RangeSet([(5 * PAGE - 7, 12 * PAGE), (13 * PAGE, 20 * PAGE)]), RangeSet())
    assert block.find_bottom_up(0, 20 * PAGE, 4 * PAGE, 4 * PAGE) == 8 * PAGE
    assert block.find_bottom_up(0, 20 * PAGE, 5 * PAGE, 4 * PAGE) is None
    assert block.find_bottom_up(0, 20 * PAGE, 2 * PAGE, 2 * PAGE) == 6 * PAGE
    assert block.find_bottom_up(0, 20 * PAGE, PAGE) == 5 * PAGE
    assert block.find_bottom_up(9 * PAGE, 20 * PAGE, 4 * PAGE, 4 * PAGE) == 16 * PAGE
    assert block.find_bottom_up(0, 7 * PAGE, 3 * PAGE) is None


def test_what_was_learnt_holds_where_it_was_learnt() -> None:
    """A search below another end, or of another size, or from another start, begins afresh."""
    ram = RangeSet([(4 * PAGE, 8 * PAGE), (12 * PAGE, 16 * PAGE)])
    block = Memblock(ram, RangeSet())
    assert block.find_top_down(0, 16 * PAGE, 3 * PAGE) == 13 * PAGE
    block.reserve(13 * PAGE, 16 * PAGE)
    assert block.find_top_down(0, 16 * PAGE, 3 * PAGE) == 5 * PAGE
    assert block.find_top_down(6 * PAGE, 16 * PAGE, 3 * PAGE) is None
    assert block.find_top_down(0, 16 * PAGE, 3 * PAGE) == 5 * PAGE
    assert block.find_top_down(0, 7 * PAGE, 3 * PAGE) == 4 * PAGE
    assert block.find_top_down(0, 16 * PAGE, PAGE) == 12 * PAGE
    block.reserve(12 * PAGE, 13 * PAGE)
    assert block.find_top_down(0, 16 * PAGE, PAGE) == 7 * PAGE
    assert block.find_top_down(0, 64 * PAGE, 3 * PAGE) == 5 * PAGE
    # What lies on both sides of an end that was searched below.
    whole = Memblock(RangeSet([(4 * PAGE, 16 * PAGE)]), RangeSet())
    assert whole.find_top_down(0, 8 * PAGE, 2 * PAGE) == 6 * PAGE
    assert whole.find_top_down(0, 9 * PAGE, 2 * PAGE) == 7 * PAGE
    assert whole.find_top_down(0, 10 * PAGE, 2 * PAGE) == 8 * PAGE


def test_unaligned_reservation_spoils_its_page() -> None:
    block = Memblock(RangeSet([(PAGE, 4 * PAGE)]), RangeSet([(2 * PAGE + 5, 2 * PAGE + 6)]))
    assert block.pages_top_down(0, 4 * PAGE, 3) == [PageRun(3, 1, -1), PageRun(1, 1, -1)]


def test_page_zero_is_never_given() -> None:
    block = Memblock(RangeSet([(0, 2 * PAGE)]), RangeSet())
    assert block.find_top_down(0, 2 * PAGE, 2 * PAGE) is None
    assert block.find_bottom_up(0, 2 * PAGE, PAGE) == PAGE
    assert block.pages_top_down(0, 2 * PAGE, 9) == [PageRun(1, 1, -1)]


def test_is_memory_knows_no_reservations() -> None:
    block = Memblock(RangeSet([(0, 8 * PAGE)]), RangeSet([(PAGE, 2 * PAGE)]))
    assert block.is_memory(0, 8 * PAGE)
    assert not block.is_memory(0, 8 * PAGE + 1)


def test_what_was_walked_over_once_is_not_walked_over_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Above 200 pages in one piece lie 300 single ones, in which no two fit: the first search looks
    at all of them, the others at none, also after one that ends lower and one from higher up.
    """
    visited = 0
    plain = Ranges.descending

    def counted(self: Ranges, start: int, end: int) -> Iterator[tuple[int, int]]:
        nonlocal visited
        for each in plain(self, start, end):
            visited += 1
            yield each

    monkeypatch.setattr(Ranges, "descending", counted)
    single = [((300 + 2 * n) * PAGE, (301 + 2 * n) * PAGE) for n in range(300)]
    block = Memblock(RangeSet([(PAGE, 201 * PAGE), *single]), RangeSet())
    end = 1000 * PAGE
    for number in range(90):
        found = block.find_top_down(0, end, 2 * PAGE)
        assert found == (201 - 2 * (number + 1)) * PAGE
        block.reserve(found, found + 2 * PAGE)
        if number % 30 == 0:
            assert block.find_top_down(0, 10 * PAGE, 2 * PAGE) == 8 * PAGE
        assert visited < 302 + 2 * number + 10


def test_memory_is_all_of_it_unless_less_is_asked_for() -> None:
    ram = [(0, 5 * PAGE), (8 * PAGE, 1 << 52)]
    block = Memblock(RangeSet(ram), RangeSet([(PAGE, 2 * PAGE)]))
    assert list(block.memory()) == ram
    assert list(block.memory(PAGE, 9 * PAGE)) == [(PAGE, 5 * PAGE), (8 * PAGE, 9 * PAGE)]
    assert list(block.reserved()) == [(PAGE, 2 * PAGE)]
