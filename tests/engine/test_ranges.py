"""RangeSet and RangeMap against `portion` and against plain sets and dicts of single integers."""

from __future__ import annotations

import itertools

import portion
import pytest
from hypothesis import example, given, strategies as st

from paravirt_mm import RangeMap, RangeSet, align_down, align_up

LIMIT = 40
span = st.tuples(st.integers(0, LIMIT), st.integers(0, LIMIT)).map(lambda s: (min(s), max(s)))
operations = st.lists(st.tuples(st.sampled_from(["add", "discard"]), span), max_size=30)


def _build(ops: list[tuple[str, tuple[int, int]]]) -> tuple[RangeSet, portion.Interval, set[int]]:
    ranges, oracle, plain = RangeSet(), portion.empty(), set[int]()
    for name, (start, end) in ops:
        part = portion.closedopen(start, end)
        if name == "add":
            ranges.add(start, end)
            oracle |= part
            plain |= set(range(start, end))
        else:
            ranges.discard(start, end)
            oracle -= part
            plain -= set(range(start, end))
    return ranges, oracle, plain


def _pairs(interval: portion.Interval) -> list[tuple[int, int]]:
    return [] if interval.empty else [(part.lower, part.upper) for part in interval]


@given(operations)
def test_add_and_discard_are_union_and_difference(ops: list[tuple[str, tuple[int, int]]]) -> None:
    ranges, oracle, plain = _build(ops)
    assert list(ranges) == _pairs(oracle)
    assert ranges.total == len(plain)
    assert len(ranges) == len(_pairs(oracle))


@given(operations, span)
def test_questions_about_a_range(
    ops: list[tuple[str, tuple[int, int]]], at: tuple[int, int]
) -> None:
    ranges, oracle, plain = _build(ops)
    start, end = at
    inside = set(range(start, end))
    assert list(ranges.within(start, end)) == _pairs(oracle & portion.closedopen(start, end))
    assert list(ranges.below(end)) == _pairs(oracle & portion.closedopen(0, end))
    assert list(ranges.gaps(start, end)) == _pairs(portion.closedopen(start, end) - oracle)
    assert list(ranges.descending(start, end)) == list(ranges.within(start, end))[::-1]
    assert ranges.covers(start, end) is (inside <= plain)
    assert ranges.overlaps(start, end) is bool(inside & plain)
    assert (start in ranges) is (start in plain)


SETS: list[list[tuple[int, int]]] = [
    [], [(3, 4)], [(2, 9)], [(0, 2), (4, 6), (8, 10)], [(1, 5), (6, 7), (9, 11)], [(5, 8)],
]  # fmt: skip


def test_every_range_of_some_sets() -> None:
    """Each end before, at, within and behind each range: nothing empty comes out."""
    for parts, others in itertools.product(SETS, SETS):
        ranges, other = RangeSet(parts), RangeSet(others)
        plain = {n for low, high in parts for n in range(low, high)}
        both = plain & {n for low, high in others for n in range(low, high)}
        for limit in range(13):
            assert ranges.total_below(limit) == len([n for n in plain if n < limit])
            assert list(ranges.below(limit)) == _runs({n for n in plain if n < limit})
        for start, end in itertools.product(range(13), range(13)):
            asked = set(range(start, end))
            inside = _runs(plain & asked)
            assert list(ranges.within(start, end)) == inside
            assert list(ranges.descending(start, end)) == inside[::-1]
            assert list(ranges.gaps(start, end)) == _runs(asked - plain)
            assert ranges.overlaps(start, end) is bool(asked & plain)
            assert ranges.covers(start, end) is (asked <= plain)
            common = list(ranges.common_descending(other, start, end))
            assert common == _runs(both & asked)[::-1]


def _runs(members: set[int]) -> list[tuple[int, int]]:
    return list(
        zip(
            sorted(n for n in members if n - 1 not in members),
            sorted(n + 1 for n in members if n + 1 not in members),
            strict=True,
        )
    )


@given(operations, operations)
def test_sets_of_sets(
    one: list[tuple[str, tuple[int, int]]], two: list[tuple[str, tuple[int, int]]]
) -> None:
    left, left_oracle, _ = _build(one)
    right, right_oracle, _ = _build(two)
    before = list(left), list(right)
    assert list(left.difference(right)) == _pairs(left_oracle - right_oracle)
    assert list(left.intersection(right)) == _pairs(left_oracle & right_oracle)
    for start, end in ((0, LIMIT), (3, 17), (9, 9)):
        inside = list(left.intersection(right).within(start, end))
        assert list(left.common_descending(right, start, end)) == inside[::-1]
    assert (left == right) is (left_oracle == right_oracle)
    assert (list(left), list(right)) == before, "operands must not change"


@given(st.lists(st.tuples(st.integers(0, LIMIT), st.integers(0, LIMIT)), max_size=8))
def test_a_set_is_made_of_ranges_in_any_order(parts: list[tuple[int, int]]) -> None:
    """Empty and inverted ones are none; so does `update`."""
    plain = portion.empty()
    for start, end in parts:
        if start < end:
            plain |= portion.closedopen(start, end)
    one_by_one = RangeSet()
    one_by_one.update(parts)
    for made in (RangeSet(parts), RangeSet(sorted(parts)), one_by_one):
        assert list(made) == _pairs(plain)


@given(operations)
def test_copy_is_independent(ops: list[tuple[str, tuple[int, int]]]) -> None:
    ranges, _, _ = _build(ops)
    before = list(ranges)
    ranges.copy().add(0, LIMIT)
    assert list(ranges) == before


def test_ends_of_a_set() -> None:
    ranges = RangeSet([(5, 7), (1, 2)])
    assert (ranges.first, ranges.end) == (1, 7)
    for name in ("first", "end"):
        with pytest.raises(IndexError):
            getattr(RangeSet(), name)


assignments = st.lists(st.tuples(span, st.one_of(st.none(), st.integers(0, 2))), max_size=30)


@example([((5, 9), 1), ((2, 5), 1)], (0, LIMIT))
@example([((2, 5), 1), ((5, 9), 1)], (2, 9))
@example([((2, 9), 1), ((4, 6), None), ((4, 6), 1)], (3, 5))
@example([((0, 4), 1), ((4, 8), 2), ((8, 12), 3), ((2, 10), 4)], (1, 11))
@example([((0, 4), 1), ((4, 8), 2), ((8, 12), 3), ((2, 10), None)], (1, 11))
@example([((0, 4), 1), ((4, 8), 2), ((8, 12), 3), ((2, 10), 3)], (0, LIMIT))
@example([((0, 4), 1), ((4, 8), 2), ((8, 12), 3), ((2, 10), 1)], (0, LIMIT))
@example([((0, 4), 1), ((8, 12), 3), ((4, 8), 3)], (4, 8))
@example([((0, 4), 1), ((8, 12), 3), ((4, 8), 1)], (4, 8))
@given(assignments, span)
def test_map_is_a_dict_of_integers(
    ops: list[tuple[tuple[int, int], int | None]], at: tuple[int, int]
) -> None:
    """None clears. Neighbours of equal value are one range, so that the map is canonical."""
    ranges, plain = RangeMap[int](), dict[int, int]()
    for (start, end), value in ops:
        if value is None:
            ranges.clear(start, end)
        else:
            ranges.set(start, end, value)
        for position in range(start, end):
            if value is None:
                plain.pop(position, None)
            else:
                plain[position] = value
    assert {p: v for low, high, v in ranges for p in range(low, high)} == plain
    listed = list(ranges)
    assert all(low < high for low, high, _ in listed)
    for (_, end, value), (start, _, other) in itertools.pairwise(listed):
        assert end < start or (end == start and value != other)
    assert len(ranges) == len(listed)
    start, end = at
    known = list(ranges.within(start, end))
    between = portion.closedopen(start, end)
    for low, high, _ in known:
        between -= portion.closedopen(low, high)
    assert list(ranges.gaps(start, end)) == _pairs(between)
    assert ranges.missing(start, end) == sum(high - low for low, high in _pairs(between))
    assert ranges.missing(end, start) == 0  # nothing lies in a range from its end to its start
    assert all(ranges.get(p) == plain.get(p) for p in range(-1, LIMIT + 1))
    parts = list(ranges.segments(start, end))
    assert {p: v for low, high, v in parts for p in range(low, high)} == {
        p: plain.get(p) for p in range(start, end)
    }
    assert known == [part for part in parts if part[2] is not None]
    # They tile the range, and none of them is empty.
    assert all(low < high for low, high, _ in parts)
    edges = [start, *(high for _, high, _ in parts)] if parts else [end]
    assert edges == [*(low for low, _, _ in parts), end]


@given(st.integers(0, 1 << 64), st.integers(1, 1 << 40))
def test_alignment(value: int, alignment: int) -> None:
    down, up = align_down(value, alignment), align_up(value, alignment)
    assert down % alignment == up % alignment == 0
    assert down <= value <= up
    assert up - down in (0, alignment)
