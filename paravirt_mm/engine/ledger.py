"""The page-status ledger: which pages may be written through a mapping, and how often that changed.

A page is writable until something says otherwise. Every change between writable and not writable,
in either direction, is one flip of that page (see the definition of ``flips`` in
`paravirt_mm.measure`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import attrs

from paravirt_mm.engine.pages import PageRun
from paravirt_mm.machine.ranges import RangeMap


@attrs.frozen
class PageStatus:
    """Status of a run of pages: whether it is read-only, and how many flips each page has seen."""

    readonly: bool
    flips: int


_UNTOUCHED = PageStatus(readonly=False, flips=0)


class Ledger:
    """Status by pfn, kept as runs."""

    def __init__(self) -> None:
        self._status: RangeMap[PageStatus] = RangeMap()

    def start_readonly(self, low: int, high: int) -> None:
        """Note that pfns ``[low, high)`` are read-only since before the run: no flip."""
        self._status.set(low, high, PageStatus(readonly=True, flips=0))

    def is_readonly(self, runs: Iterable[PageRun]) -> bool:
        """Tell whether every page of ``runs`` is read-only."""
        return all(
            status is not None and status.readonly
            for run in runs
            for _, _, status in self._status.segments(run.low, run.high)
        )

    def readonly(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """Yield the read-only pfn ranges inside ``[low, high)``, ascending."""
        for start, end, status in self._status.within(low, high):
            if status.readonly:
                yield start, end

    def set_readonly(self, low: int, high: int, readonly: bool) -> int:
        """Make pfns ``[low, high)`` read-only or writable; return how many pages flipped."""
        flipped = 0
        for start, end, status in list(self._status.segments(low, high)):
            before = status or _UNTOUCHED
            if before.readonly is readonly:
                continue
            self._status.set(start, end, PageStatus(readonly, before.flips + 1))
            flipped += end - start
        return flipped

    def __iter__(self) -> Iterator[tuple[int, int, PageStatus]]:
        """Yield ``(low, high, status)`` of every pfn that ever flipped, ascending."""
        return iter(self._status)
