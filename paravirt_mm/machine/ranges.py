"""Sets and maps of half-open integer ranges: what memory maps, memblock and page tables are made
of.

Positions are plain integers (bytes or pfns, the caller decides); ends are exclusive. Every
operation costs a bisection plus the ranges it touches, never the pages that they hold.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

V = TypeVar("V")


def align_down(value: int, alignment: int) -> int:
    """Return the largest multiple of ``alignment`` that is not above ``value``."""
    return value - value % alignment


def align_up(value: int, alignment: int) -> int:
    """Return the smallest multiple of ``alignment`` that is not below ``value``."""
    return value + -value % alignment


def _last_before(edges: list[int], position: int, most: int | None = None) -> int:
    """Return the place of the last of some ranges (of the first ``most`` edges) that begins before
    a position; negative: none does.
    """
    return bisect_left(edges, position, hi=most) - 1 & -2


class Ranges:
    """A set of integers kept as sorted, disjoint, never touching ranges ``[start, end)``, to read.

    Who may change it has it as a `RangeSet`. Two of them compare by their members.
    """

    __slots__ = ("_edges",)

    _edges: list[int]
    """Start and end of each range, one after the other: at an odd place lies an end."""

    def covers(self, start: int, end: int) -> bool:
        """Tell whether all of ``[start, end)`` is in the set (an empty range always is)."""
        if start >= end:
            return True
        place = bisect_right(self._edges, start)
        return place & 1 == 1 and self._edges[place] >= end

    def overlaps(self, start: int, end: int) -> bool:
        """Tell whether any of ``[start, end)`` is in the set."""
        place = bisect_right(self._edges, start)
        return start < end and (place & 1 == 1 or bisect_left(self._edges, end, place) > place)

    def __contains__(self, value: int) -> bool:
        return self.covers(value, value + 1)

    def within(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield, ascending, the parts of the set inside ``[start, end)``."""
        if start >= end:
            return
        edges = self._edges
        first = bisect_right(edges, start)
        for index in range(first & -2, bisect_left(edges, end, first), 2):
            low, high = edges[index], edges[index + 1]
            yield low if low > start else start, high if high < end else end

    def below(self, end: int) -> Iterator[tuple[int, int]]:
        """Yield, ascending, the parts of the set below ``end``."""
        for low, high in self:
            if low >= end:
                return
            yield low, min(high, end)

    def gaps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield, ascending, the parts of ``[start, end)`` that are not in the set."""
        edges = self._edges
        first = bisect_right(edges, start)
        for index in range(first & -2, bisect_left(edges, end, first), 2):
            if start < edges[index]:
                yield start, edges[index]
            start = edges[index + 1]
        if start < end:
            yield start, end

    def descending(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of the set inside ``[start, end)``, highest first."""
        if start >= end:
            return
        edges = self._edges
        for index in range(_last_before(edges, end), -1, -2):
            if edges[index + 1] <= start:
                return
            yield max(edges[index], start), min(edges[index + 1], end)

    def common_descending(self, other: Ranges, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield what is in both sets inside ``[start, end)``, highest first.

        Costs a bisection for each time the two take turns: where one set has nothing, everything
        that the other has there is skipped at once.
        """
        ours, theirs = self._edges, other._edges
        mine, its = _last_before(ours, end), _last_before(theirs, end)
        while mine >= 0 and its >= 0:
            low = max(ours[mine], theirs[its], start)
            high = min(ours[mine + 1], theirs[its + 1], end)
            if low < high:
                yield low, high
            if low <= start:
                return
            if ours[mine] >= theirs[its]:
                mine = _last_before(ours, theirs[its + 1], mine)
            else:
                its = _last_before(theirs, ours[mine + 1], its)

    def first_in(self, start: int, end: int) -> int | None:
        """Return the lowest member in ``[start, end)``; None: there is none."""
        edges = self._edges
        place = bisect_right(edges, start)
        if not place & 1:
            if place == len(edges):
                return None
            start = edges[place]
        return start if start < end else None

    def first_gap(self, start: int, end: int) -> int | None:
        """Return the lowest number of ``[start, end)`` that is no member; None: all are."""
        place = bisect_right(self._edges, start)
        if place & 1:
            start = self._edges[place]
        return start if start < end else None

    def first_outside(self, other: Ranges) -> int | None:
        """Return the lowest member that ``other`` does not have; None: it has all."""
        for start, end in self:
            gap = other.first_gap(start, end)
            if gap is not None:
                return gap
        return None

    def difference(self, other: Ranges) -> RangeSet:
        """Return what is in this set and not in ``other``."""
        return RangeSet._apart(other.gaps, self)

    def intersection(self, other: Ranges) -> RangeSet:
        """Return what is in both sets."""
        return RangeSet._apart(other.within, self)

    @property
    def total(self) -> int:
        """How many integers are in the set."""
        return sum(self._edges[1::2]) - sum(self._edges[::2])

    def total_below(self, limit: int) -> int:
        """Return how many integers below ``limit`` are in the set."""
        place = bisect_left(self._edges, limit)
        if not place:
            return 0
        starts, ends = self._edges[:place:2], self._edges[1:place:2]
        return sum(ends) - sum(starts) + (limit if place & 1 else 0)

    @property
    def first(self) -> int:
        """The lowest member. Raises IndexError when the set is empty."""
        return self._edges[0]

    @property
    def end(self) -> int:
        """One past the highest member. Raises IndexError when the set is empty."""
        return self._edges[-1]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        edges = iter(self._edges[:])
        return zip(edges, edges)  # noqa: B905  # they are even; to say so costs as much as it all

    def __len__(self) -> int:
        return len(self._edges) >> 1

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ranges):
            return NotImplemented
        return self._edges == other._edges

    __hash__ = None  # type: ignore[assignment]  # mutable: hashing it would be a mistake

    def __repr__(self) -> str:
        return f"{type(self).__name__}({[(hex(start), hex(end)) for start, end in self]})"


class RangeSet(Ranges):
    """A set of integers as `Ranges`, to be changed."""

    __slots__ = ()

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        edges = self._edges = []
        for start, end in ranges:
            # Most come in order, or reach into the last one.
            if not edges or start > edges[-1]:
                if start < end:
                    edges += (start, end)
            elif start < edges[-2]:
                self.add(start, end)
            elif end > edges[-1]:
                edges[-1] = end

    @classmethod
    def _apart(
        cls, parts: Callable[[int, int], Iterator[tuple[int, int]]], ranges: Ranges
    ) -> RangeSet:
        """Return the parts of each range, which ascend and never touch, as the ranges do not."""
        result = cls()
        for start, end in ranges:
            for part in parts(start, end):
                result._edges += part
        return result

    def view(self) -> Ranges:
        """Return the same set, as it stands at any time, without the means to change it."""
        view = Ranges()
        view._edges = self._edges
        return view

    def copy(self) -> RangeSet:
        """Return an independent copy."""
        other = RangeSet()
        other._edges += self._edges
        return other

    def add(self, start: int, end: int) -> None:
        """Add ``[start, end)``, merging with every range it overlaps or touches."""
        if start >= end:
            return
        edges = self._edges
        first = bisect_left(edges, start)
        last = bisect_right(edges, end, first)
        # An edge that lies in a range, or at its other edge, is none any more.
        if first & 1:
            edges[first:last] = () if last & 1 else (end,)
        else:
            edges[first:last] = (start,) if last & 1 else (start, end)

    def discard(self, start: int, end: int) -> None:
        """Remove whatever of ``[start, end)`` is in the set."""
        if start >= end:
            return
        edges = self._edges
        first = bisect_left(edges, start)
        last = bisect_right(edges, end, first)
        # A range that reaches in from outside ends, or begins, here.
        edges[first:last] = (start, end)[1 - (first & 1) : 1 + (last & 1)]

    def empty(self) -> None:
        """Remove everything."""
        self._edges.clear()

    def update(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Add every range of ``ranges``."""
        for start, end in ranges:
            self.add(start, end)


class ValuedRanges(Generic[V]):
    """A map from integers to values, kept as sorted, disjoint ranges, to read; equal ones are
    merged. Who may change it has it as a `RangeMap`.
    """

    __slots__ = ("_edges", "_values")

    _edges: list[int]
    """Where the value changes."""
    _values: list[V | None]
    """The values before, between and behind the edges; None: there is none."""

    def get(self, position: int) -> V | None:
        """Return the value at ``position``, or None where there is none."""
        return self._values[bisect_right(self._edges, position)]

    def throughout(self, start: int, end: int) -> V | None:
        """Return the value that all of ``[start, end)`` has; None: there is none such."""
        place = bisect_right(self._edges, start)
        return self._values[place] if bisect_left(self._edges, end, place) == place else None

    def segments(self, start: int, end: int) -> Iterator[tuple[int, int, V | None]]:
        """Yield ``(start, end, value)`` for all of ``[start, end)``; None: nothing is known. What
        is changed meanwhile does not show.
        """
        edges, values = self._edges, self._values
        first = bisect_right(edges, start)
        last = bisect_left(edges, end, first)
        if first == last:
            return iter([(start, end, values[first])] if start < end else [])
        edges = [start, *edges[first:last], end]
        return zip(edges, edges[1:], values[first : last + 1], strict=False)

    def missing(self, start: int, end: int) -> int:
        """Return how many integers of ``[start, end)`` have no value."""
        edges = self._edges
        first = bisect_right(edges, start)
        if first == len(edges) or end <= edges[first]:
            return end - start if self._values[first] is None and start < end else 0
        return sum([high - low for low, high, value in self.segments(start, end) if value is None])

    def within(self, start: int, end: int) -> Iterator[tuple[int, int, V]]:
        """Yield, ascending, ``(start, end, value)`` of what is known inside ``[start, end)``."""
        for low, high, value in self.segments(start, end):
            if value is not None:
                yield low, high, value

    def gaps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield, ascending, the parts of ``[start, end)`` that have no value."""
        for low, high, value in self.segments(start, end):
            if value is None:
                yield low, high

    def __iter__(self) -> Iterator[tuple[int, int, V]]:
        for low, high, value in zip(
            self._edges[:-1], self._edges[1:], self._values[1:-1], strict=True
        ):
            if value is not None:
                yield low, high, value

    def __len__(self) -> int:
        return sum([value is not None for value in self._values])


class RangeMap(ValuedRanges[V]):
    """A map from integers to values as `ValuedRanges`, to be changed."""

    __slots__ = ()

    def __init__(self) -> None:
        self._edges = []
        self._values = [None]

    def view(self) -> ValuedRanges[V]:
        """Return the same map, as it stands at any time, without the means to change it."""
        view: ValuedRanges[V] = ValuedRanges()
        view._edges, view._values = self._edges, self._values
        return view

    def set(self, start: int, end: int, value: V | None) -> None:
        """Give every integer of ``[start, end)`` the value ``value``; None: `clear`."""
        if start >= end:
            return
        edges, values = self._edges, self._values
        first = bisect_left(edges, start)
        last = bisect_right(edges, end, first)
        before, after = values[first], values[last]
        # Where the value stays what it is there is no edge.
        same, too = before == value, after == value
        edges[first:last] = (start, end)[same : 2 - too]
        values[first : last + 1] = (before, value, after)[same : 3 - too]

    def clear(self, start: int, end: int) -> None:
        """Forget the values of ``[start, end)``."""
        self.set(start, end, None)

    def empty(self) -> None:
        """Forget every value."""
        self._edges.clear()
        self._values[:] = [None]
