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


class Ranges:
    """A set of integers kept as sorted, disjoint, never touching ranges ``[start, end)``, to read.

    Who may change it has it as a `RangeSet`. Two of them compare by their members.
    """

    __slots__ = ("_ends", "_starts")

    _starts: list[int]
    _ends: list[int]

    def covers(self, start: int, end: int) -> bool:
        """Tell whether all of ``[start, end)`` is in the set (an empty range always is)."""
        if start >= end:
            return True
        index = bisect_right(self._starts, start) - 1
        return index >= 0 and self._ends[index] >= end

    def overlaps(self, start: int, end: int) -> bool:
        """Tell whether any of ``[start, end)`` is in the set."""
        index = bisect_right(self._ends, start)
        return start < end and index < len(self._starts) and self._starts[index] < end

    def __contains__(self, value: int) -> bool:
        return self.covers(value, value + 1)

    def within(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield, ascending, the parts of the set inside ``[start, end)``."""
        if start >= end:
            return
        starts, ends = self._starts, self._ends
        first = bisect_right(ends, start)
        for index in range(first, bisect_left(starts, end, first)):
            low, high = starts[index], ends[index]
            yield low if low > start else start, high if high < end else end

    def below(self, end: int) -> Iterator[tuple[int, int]]:
        """Yield, ascending, the parts of the set below ``end``."""
        for low, high in self:
            if low >= end:
                return
            yield low, min(high, end)

    def gaps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield, ascending, the parts of ``[start, end)`` that are not in the set."""
        starts, ends = self._starts, self._ends
        position = start
        first = bisect_right(ends, start)
        for index in range(first, bisect_left(starts, end, first)):
            if position < starts[index]:
                yield position, starts[index]
            position = ends[index]
        if position < end:
            yield position, end

    def descending(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of the set inside ``[start, end)``, highest first."""
        if start >= end:
            return
        for index in range(bisect_left(self._starts, end) - 1, -1, -1):
            if self._ends[index] <= start:
                return
            yield max(self._starts[index], start), min(self._ends[index], end)

    def common_descending(self, other: Ranges, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield what is in both sets inside ``[start, end)``, highest first.

        Costs a bisection for each time the two take turns: where one set has nothing, everything
        that the other has there is skipped at once.
        """
        mine = bisect_left(self._starts, end) - 1
        its = bisect_left(other._starts, end) - 1
        while mine >= 0 and its >= 0:
            low = max(self._starts[mine], other._starts[its], start)
            high = min(self._ends[mine], other._ends[its], end)
            if low < high:
                yield low, high
            if max(self._starts[mine], other._starts[its]) <= start:
                return
            if self._starts[mine] >= other._starts[its]:
                mine = bisect_left(self._starts, other._ends[its], hi=mine) - 1
            else:
                its = bisect_left(other._starts, self._ends[mine], hi=its) - 1

    def difference(self, other: Ranges) -> RangeSet:
        """Return what is in this set and not in ``other``."""
        return RangeSet._apart(other.gaps, self)

    def intersection(self, other: Ranges) -> RangeSet:
        """Return what is in both sets."""
        return RangeSet._apart(other.within, self)

    @property
    def total(self) -> int:
        """How many integers are in the set."""
        return sum(self._ends) - sum(self._starts)

    @property
    def first(self) -> int:
        """The lowest member. Raises IndexError when the set is empty."""
        return self._starts[0]

    @property
    def end(self) -> int:
        """One past the highest member. Raises IndexError when the set is empty."""
        return self._ends[-1]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._ends, strict=True))

    def __len__(self) -> int:
        return len(self._starts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ranges):
            return NotImplemented
        return self._starts == other._starts and self._ends == other._ends

    __hash__ = None  # type: ignore[assignment]  # mutable: hashing it would be a mistake

    def __repr__(self) -> str:
        return f"{type(self).__name__}({[(hex(start), hex(end)) for start, end in self]})"


class RangeSet(Ranges):
    """A set of integers as `Ranges`, to be changed."""

    __slots__ = ()

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        starts: list[int] = []
        ends: list[int] = []
        self._starts, self._ends = starts, ends
        last = None
        for start, end in ranges:
            # Most come in order.
            if start < end and (last is None or start > last):
                starts.append(start)
                ends.append(end)
                last = end
            else:
                self.add(start, end)
                last = ends[-1] if ends else None

    @classmethod
    def _apart(
        cls, parts: Callable[[int, int], Iterator[tuple[int, int]]], ranges: Ranges
    ) -> RangeSet:
        """Return the parts of each range, which ascend and never touch, as the ranges do not."""
        result = cls()
        starts, ends = result._starts, result._ends
        for start, end in ranges:
            for low, high in parts(start, end):
                starts.append(low)
                ends.append(high)
        return result

    def view(self) -> Ranges:
        """Return the same set, as it stands at any time, without the means to change it."""
        view = Ranges()
        view._starts, view._ends = self._starts, self._ends
        return view

    def copy(self) -> RangeSet:
        """Return an independent copy."""
        other = RangeSet()
        other._starts = self._starts.copy()
        other._ends = self._ends.copy()
        return other

    def add(self, start: int, end: int) -> None:
        """Add ``[start, end)``, merging with every range it overlaps or touches."""
        if start >= end:
            return
        starts, ends = self._starts, self._ends
        first = bisect_left(ends, start)
        last = bisect_right(starts, end, first)
        if first == last:
            starts.insert(first, start)
            ends.insert(first, end)
            return
        if starts[first] < start:
            start = starts[first]
        if ends[last - 1] > end:
            end = ends[last - 1]
        starts[first:last] = [start]
        ends[first:last] = [end]

    def discard(self, start: int, end: int) -> None:
        """Remove whatever of ``[start, end)`` is in the set."""
        if start >= end:
            return
        first = bisect_right(self._ends, start)
        last = bisect_left(self._starts, end)
        if first >= last:
            return
        starts: list[int] = []
        ends: list[int] = []
        if self._starts[first] < start:
            starts.append(self._starts[first])
            ends.append(start)
        if self._ends[last - 1] > end:
            starts.append(end)
            ends.append(self._ends[last - 1])
        self._starts[first:last] = starts
        self._ends[first:last] = ends

    def update(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Add every range of ``ranges``."""
        for start, end in ranges:
            self.add(start, end)


class ValuedRanges(Generic[V]):
    """A map from integers to values, kept as sorted, disjoint ranges, to read; equal ones are
    merged. Who may change it has it as a `RangeMap`.
    """

    __slots__ = ("_ends", "_starts", "_values")

    _starts: list[int]
    _ends: list[int]
    _values: list[V]

    def get(self, position: int) -> V | None:
        """Return the value at ``position``, or None where there is none."""
        index = bisect_right(self._starts, position) - 1
        if index >= 0 and position < self._ends[index]:
            return self._values[index]
        return None

    def within(self, start: int, end: int) -> Iterator[tuple[int, int, V]]:
        """Yield, ascending, ``(start, end, value)`` of what is known inside ``[start, end)``."""
        if start >= end:
            return
        starts, ends, values = self._starts, self._ends, self._values
        first = bisect_right(ends, start)
        for index in range(first, bisect_left(starts, end, first)):
            low, high = starts[index], ends[index]
            yield low if low > start else start, high if high < end else end, values[index]

    def gaps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield, ascending, the parts of ``[start, end)`` that have no value."""
        starts, ends = self._starts, self._ends
        position = start
        first = bisect_right(ends, start)
        for index in range(first, bisect_left(starts, end, first)):
            if position < starts[index]:
                yield position, starts[index]
            position = ends[index]
        if position < end:
            yield position, end

    def segments(self, start: int, end: int) -> Iterator[tuple[int, int, V | None]]:
        """Yield ``(start, end, value)`` for all of ``[start, end)``; None: nothing is known."""
        if start >= end:
            return
        starts, ends, values = self._starts, self._ends, self._values
        position = start
        first = bisect_right(ends, start)
        for index in range(first, bisect_left(starts, end, first)):
            if position < starts[index]:
                yield position, starts[index], None
                position = starts[index]
            high = ends[index] if ends[index] < end else end
            yield position, high, values[index]
            position = high
        if position < end:
            yield position, end, None

    def __iter__(self) -> Iterator[tuple[int, int, V]]:
        return iter(zip(self._starts, self._ends, self._values, strict=True))

    def __len__(self) -> int:
        return len(self._starts)


class RangeMap(ValuedRanges[V]):
    """A map from integers to values as `ValuedRanges`, to be changed."""

    __slots__ = ()

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._values: list[V] = []

    def view(self) -> ValuedRanges[V]:
        """Return the same map, as it stands at any time, without the means to change it."""
        view = ValuedRanges[V]()
        view._starts, view._ends, view._values = self._starts, self._ends, self._values
        return view

    def set(self, start: int, end: int, value: V) -> None:
        """Give every integer of ``[start, end)`` the value ``value``."""
        if start >= end:
            return
        starts, ends, values = self._starts, self._ends, self._values
        first, last = bisect_right(ends, start), bisect_left(starts, end)
        overlaps = first < last
        low, high = start, end
        before: list[tuple[int, int, V]] = []
        after: list[tuple[int, int, V]] = []
        # What reaches in from either side, or touches, becomes part of it or stays beside it.
        if overlaps and starts[first] < start:
            if values[first] == value:
                low = starts[first]
            else:
                before = [(starts[first], start, values[first])]
        elif first and ends[first - 1] == start and values[first - 1] == value:
            first -= 1
            low = starts[first]
        if overlaps and ends[last - 1] > end:
            if values[last - 1] == value:
                high = ends[last - 1]
            else:
                after = [(end, ends[last - 1], values[last - 1])]
        elif last < len(starts) and starts[last] == end and values[last] == value:
            high = ends[last]
            last += 1
        if before or after:
            self._put(first, last, [*before, (low, high, value), *after])
        else:
            starts[first:last], ends[first:last], values[first:last] = [low], [high], [value]

    def clear(self, start: int, end: int) -> None:
        """Forget the values of ``[start, end)``."""
        if start >= end:
            return
        first = bisect_right(self._ends, start)
        last = bisect_left(self._starts, end)
        kept: list[tuple[int, int, V]] = []
        if first < last:
            if self._starts[first] < start:
                kept.append((self._starts[first], start, self._values[first]))
            if self._ends[last - 1] > end:
                kept.append((end, self._ends[last - 1], self._values[last - 1]))
            self._put(first, last, kept)

    def _put(self, first: int, last: int, ranges: list[tuple[int, int, V]]) -> None:
        self._starts[first:last] = [low for low, _, _ in ranges]
        self._ends[first:last] = [high for _, high, _ in ranges]
        self._values[first:last] = [value for _, _, value in ranges]
