"""The page-status ledger: which pages may be written through a mapping, and how often that changed.

A page is writable until something says otherwise. Every change between writable and not writable,
in either direction, is one flip of that page (see the definition of ``flips`` in
`paravirt_mm.measure`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import NamedTuple

from paravirt_mm.engine.pages import PageRun
from paravirt_mm.machine.ranges import RangeMap, ValuedRanges


class PageStatus(NamedTuple):
    """Status of a run of pages: whether it is read-only, and how many flips each page has seen."""

    readonly: bool
    flips: int


# There are few different ones, and many runs of pages that have them.
_status = cache(PageStatus)
_UNTOUCHED = PageStatus(readonly=False, flips=0)


class LedgerView:
    """Status by pfn, kept as runs, to read."""

    __slots__ = ("_status",)

    def __init__(self, status: ValuedRanges[PageStatus]) -> None:
        self._status = status

    def is_readonly(self, runs: Iterable[PageRun]) -> bool:
        """Tell whether every page of ``runs`` is read-only."""
        for run in runs:
            for _, _, status in self._status.segments(*run.pfns):
                if status is None or not status.readonly:
                    return False
        return True

    def readonly(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """Yield the read-only pfn ranges inside ``[low, high)``, ascending."""
        for start, end, status in self._status.within(low, high):
            if status.readonly:
                yield start, end

    def __iter__(self) -> Iterator[tuple[int, int, PageStatus]]:
        """Yield ``(low, high, status)`` of every pfn that ever flipped, ascending."""
        return iter(self._status)


class Ledger(LedgerView):
    """Status by pfn, as whoever keeps the books has it."""

    __slots__ = ("_open",)

    def __init__(self) -> None:
        self._open: RangeMap[PageStatus] = RangeMap()
        super().__init__(self._open.view())

    def view(self) -> LedgerView:
        """Return the same statuses, as they stand at any time, without the means to change them."""
        return LedgerView(self._status)

    def start_readonly(self, low: int, high: int) -> None:
        """Note that pfns ``[low, high)`` are read-only since before the run: no flip."""
        self._open.set(low, high, PageStatus(readonly=True, flips=0))

    def set_readonly(self, low: int, high: int, readonly: bool) -> int:
        """Make pfns ``[low, high)`` read-only or writable; return how many pages flipped."""
        flipped = 0
        for start, end, status in self._status.segments(low, high):
            before = status or _UNTOUCHED
            if before.readonly is readonly:
                continue
            self._open.set(start, end, _status(readonly, before.flips + 1))
            flipped += end - start
        return flipped
