"""Two runs on one machine: in what they differ.

What is compared of two runs, in the order in which one thing leads to the next:

========== ===================================================================================
end        verdict and reason
brk        pages of brk set aside for tables
steps      ranges in the order in which they were mapped
sizes      the pieces by page size of each range
tables     how many tables of each level
sources    how many of them were taken from brk, where as much of it is set aside
places     the page of every table that memblock gave, in order, as far as both have one
figures    every figure of the core
========== ===================================================================================

Two builds of a kernel differ in size, and with it in where their brk and their end lie. So two
addresses are the same if they are equal, or as far behind the two kernels, or the last large page
boundary of both. Where one takes a page that the other's image occupies, that image is why, and
nothing is said of the places behind it. Figures, most of which depend on that, are compared only
where both kernels lie in the same place. Where steps differ already, nothing is said of what
follows from them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import Any

import attrs

from paravirt_mm.counted import counted
from paravirt_mm.engine.pages import PageRun, Source, TablePages
from paravirt_mm.engine.trace import RangeSplit, RootActivated, RunStarted, TablesAllocated
from paravirt_mm.machine.paging import PAGE_SHIFT, PAGE_SIZE
from paravirt_mm.machine.ranges import align_down, align_up
from paravirt_mm.run import Outcome, Run

ASPECTS = ("end", "brk", "steps", "sizes", "tables", "sources", "places", "figures")
"""What can differ; the first that does explains those behind it."""


@attrs.frozen
class Difference:
    """What two runs differ in, as both have it."""

    aspect: str
    a: str
    b: str


def differences(first: Run, second: Run, *, recorded: bool = False) -> Iterator[Difference]:
    """Yield what two runs on one machine differ in, in the order of `ASPECTS`.

    ``recorded``: one is a real kernel's boot, of which nothing is known beyond its direct map; so a
    model's panic beyond it does not count.
    """
    ends = ["ok" if recorded and _mapped_all(run) else str(run.verdict) for run in (first, second)]
    if ends[0] != ends[1]:
        yield Difference("end", *ends)
    if not (first.trace.begun and second.trace.begun):
        return
    brk = [run.figure("brk_size") for run in (first, second)]
    if None not in brk and brk[0] != brk[1]:
        yield Difference("brk", *(counted(pages, "page") for pages in brk))
    a, b = _Done(first), _Done(second)
    for aspect, mine, others in (("steps", a.steps, b.steps), ("sizes", a.sizes, b.sizes)):
        difference = _first_difference(aspect, zip_longest(mine, others))
        if difference is not None:
            yield difference
            return
    if a.tables != b.tables:
        yield Difference("tables", *(_counts(done.tables) for done in (a, b)))
        return
    if brk[0] == brk[1] and a.from_brk != b.from_brk:
        yield Difference(
            "sources", *(f"{counted(done.from_brk, 'table')} from brk" for done in (a, b))
        )
    if a.places != b.places:
        yield from _place_difference(a, b)
    if a.kernel == b.kernel:
        yield from _figure_differences(first.figures, second.figures)


def _mapped_all(run: Run) -> bool:
    return run.verdict.outcome is Outcome.PANIC and any(run.trace.of(RootActivated))


@attrs.frozen
class _At:
    """An address, and where that is seen from the kernel: how far behind its end or its brk.

    Step ends are rounded, so what counts for them is the first large page behind the kernel; the
    end itself is 0, and the end rounded down is -1. None: nowhere in particular.
    """

    address: int
    behind: int | None

    def same(self, other: _At) -> bool:
        return self.address == other.address or None is not self.behind == other.behind

    def __str__(self) -> str:
        return "the kernel's end" if self.behind == 0 else f"{self.address:#x}"


@attrs.frozen
class _Item:
    """Something that happened, with its addresses."""

    at: tuple[_At, ...]
    words: str = ""

    def same(self, other: _Item) -> bool:
        return self.words == other.words and all(
            mine.same(theirs) for mine, theirs in zip(self.at, other.at, strict=True)
        )

    def __str__(self) -> str:
        return " to ".join(str(at) for at in self.at) + self.words


class _Done:
    """What a run did."""

    def __init__(self, run: Run) -> None:
        begun = next(run.trace.of(RunStarted))
        self.kernel = begun.boot.kernel_of(begun.machine)
        self._large = begun.machine.mode.entry_span(2)
        end = self.kernel.linked_end or self.kernel.span[1]
        self._end = align_up(end, PAGE_SIZE)
        self.steps: list[_Item] = []
        self.sizes: list[_Item] = []
        self.tables: dict[int, int] = {}
        self.from_brk = 0
        self.places: list[PageRun] = []
        for event in run.trace.of(RangeSplit):
            self.steps.append(self._range(event.start, event.end))
            self.sizes += [
                self._range(piece.start, piece.end, f" with pages of level {piece.level}")
                for piece in event.pieces
            ]
        for table in run.trace.of(TablesAllocated):
            for level, count in table.batch.by_level.items():
                self.tables[level] = self.tables.get(level, 0) + count
            for part in table.batch.pages:
                self._take(part)

    def _range(self, start: int, end: int, words: str = "") -> _Item:
        return _Item((self._edge(start), self._edge(end)), words)

    def _edge(self, address: int) -> _At:
        if address == self._end:
            return _At(address, 0)
        if address == align_down(self._end, self._large):
            return _At(address, -1)
        rounded = align_up(self._end, self._large)
        return _At(address, address - rounded + 1 if address >= rounded else None)

    def is_inside(self, at: _At) -> bool:
        """Tell whether a place lies in the kernel's image, spare brk apart."""
        low, high = self.kernel.span
        return low <= at.address < high

    def _take(self, part: TablePages) -> None:
        if part.source is Source.BRK:
            self.from_brk += part.run.count
        else:
            self.places.append(part.run)

    def page(self, run: PageRun, number: int) -> _At:
        """Return the place of one page of a run."""
        address = (run.start + number * run.step) << PAGE_SHIFT
        behind = address - self.kernel.brk_end
        return _At(address, behind + 1 if behind >= 0 else None)


def _place_difference(a: _Done, b: _Done) -> Iterator[Difference]:
    """Yield the first place that differs, of as many as both have; nothing where the image of one
    is in the way of the other.
    """
    number = 1
    for mine, others in _side_by_side(a.places, b.places):
        same = _same_pages(a, mine, b, others)
        if same < mine.count:
            first, second = a.page(mine, same), b.page(others, same)
            if not (a.is_inside(second) or b.is_inside(first)):
                told = (f"{number + same}: {place}" for place in (first, second))
                yield Difference("places", *told)
            return
        number += same


def _side_by_side(a: Iterable[PageRun], b: Iterable[PageRun]) -> Iterator[tuple[PageRun, PageRun]]:
    """Yield the runs of both, cut so that two that go together have as many pages."""
    left, right = iter(a), iter(b)
    mine, others = next(left, None), next(right, None)
    while mine is not None and others is not None:
        count = min(mine.count, others.count)
        yield mine.head(count), others.head(count)
        mine = mine.tail(count) if mine.count > count else next(left, None)
        others = others.tail(count) if others.count > count else next(right, None)


def _same_pages(a: _Done, mine: PageRun, b: _Done, others: PageRun) -> int:
    """Return how many pages of two runs of equal length are the same before the first that is not.

    Where both run the same way they keep their distance, and what is behind a kernel stays there or
    leaves it once; where they do not, no more than two pages can be the same.
    """

    def differs(number: int) -> bool:
        return not a.page(mine, number).same(b.page(others, number))

    numbers = range(mine.count)
    if mine.step != others.step:
        return next(filter(differs, numbers), mine.count)
    return 0 if differs(0) else bisect_left(numbers, True, key=differs)


def _first_difference(
    aspect: str, pairs: Iterable[tuple[_Item | None, _Item | None]]
) -> Difference | None:
    for number, (first, second) in enumerate(pairs, 1):
        if first is None or second is None or not first.same(second):
            told = (f"{number}: {item or 'nothing'}" for item in (first, second))
            return Difference(aspect, *told)
    return None


def _counts(tables: Mapping[int, int]) -> str:
    return ", ".join(f"{count} L{level}" for level, count in sorted(tables.items())) or "none"


def _figure_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Difference]:
    """What a plugin adds is its own, and says nothing of the other."""
    names = [name for name in a if name in b and "." not in name and a[name] != b[name]]
    if names:
        yield Difference(
            "figures", *(", ".join(f"{name} {run[name]}" for name in names) for run in (a, b))
        )
