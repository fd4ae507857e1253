"""Searches that remember what earlier ones learnt give what a search from scratch gives."""

from __future__ import annotations

from hypothesis import given, strategies as st

from paravirt_mm import RangeSet
from paravirt_mm.engine.memblock import Memblock

PAGE = 4096
PAGES = 64

edges = st.integers(0, PAGES).map(lambda page: page * PAGE)
spans = st.tuples(edges, edges)
searches = st.tuples(
    spans, st.integers(1, 8).map(lambda n: n * PAGE), st.sampled_from([PAGE, 2 * PAGE, 8 * PAGE])
)


@given(st.lists(spans, max_size=8), st.lists(st.tuples(searches, st.booleans()), max_size=12))
def test_a_sequence_of_searches(
    ram: list[tuple[int, int]],
    steps: list[tuple[tuple[tuple[int, int], int, int], bool]],
) -> None:
    """Reserve what was found, or only look; a new memblock of the same state must agree."""
    block = Memblock(RangeSet(ram), RangeSet())
    for ((start, end), size, align), keep in steps:
        fresh = Memblock(RangeSet(ram), RangeSet(block.reserved()))
        found = block.find_top_down(start, end, size, align)
        assert found == fresh.find_top_down(start, end, size, align)
        assert block.find_bottom_up(start, end, size, align) == fresh.find_bottom_up(
            start, end, size, align
        )
        if found is not None and keep:
            block.reserve(found, found + size)


@given(st.lists(spans, max_size=8), st.lists(spans, max_size=8), spans)
def test_common_descending(
    left: list[tuple[int, int]], right: list[tuple[int, int]], window: tuple[int, int]
) -> None:
    start, end = window
    both = RangeSet(left).intersection(RangeSet(right))
    found = list(RangeSet(left).common_descending(RangeSet(right), start, end))
    # A range may come in pieces where the other set ends and begins anew; neighbours are merged.
    assert RangeSet(found) == RangeSet(both.within(start, end))
    assert found == sorted(found, reverse=True)
