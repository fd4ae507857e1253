"""The page-status ledger: which pages may be written through a mapping, and how often that changed.

A page is writable until something says otherwise. Every change between writable and not writable,
in either direction, is one flip of that page (see the definition of ``flips`` in
`paravirt_mm.measure`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from paravirt_mm.engine.pages import PageRun
from paravirt_mm.machine.model import Span
from paravirt_mm.machine.ranges import RangeMap, Ranges, RangeSet


class PageStatus(NamedTuple):
    """Status of a run of pages: whether it is read-only, and how many flips each page has seen."""

    readonly: bool
    flips: int


class LedgerView:
    """Status by pfn, kept as runs, to read."""

    __slots__ = ("_flips", "_readonly")

    def __init__(self, readonly: Ranges, flips: list[Span]) -> None:
        self._readonly = readonly
        self._flips = flips

    def is_readonly(self, runs: Iterable[PageRun]) -> bool:
        """Tell whether every page of ``runs`` is read-only."""
        for run in runs:  # noqa: SIM110  # most are one: a generator costs more than to look
            if not self._readonly.covers(*run.pfns):
                return False
        return True

    def readonly(self, low: int, high: int) -> Iterator[Span]:
        """Yield the read-only pfn ranges inside ``[low, high)``, ascending."""
        return self._readonly.within(low, high)

    def flips(self) -> Iterator[Span]:
        """Yield the pfn ranges that flipped, in the order in which they did."""
        return iter(self._flips)

    def __iter__(self) -> Iterator[tuple[int, int, PageStatus]]:
        """Yield ``(low, high, status)`` of every pfn that ever was read-only, ascending."""
        found: RangeMap[PageStatus] = RangeMap()
        for span in self._readonly:
            found.set(*span, PageStatus(readonly=True, flips=0))
        for span in self._flips:
            for low, high, known in found.segments(*span):
                readonly, flips = known or (False, 0)
                found.set(low, high, PageStatus(readonly, flips + 1))
        return iter(found)


class Ledger(LedgerView):
    """Status by pfn, as whoever keeps the books has it."""

    __slots__ = ("_open",)

    def __init__(self, readonly: Iterable[Span] = ()) -> None:
        """Begin with what is read-only since before the run: it has not flipped."""
        self._open = RangeSet(readonly)
        super().__init__(self._open.view(), [])

    def view(self) -> LedgerView:
        """Return the same statuses, as they stand at any time, without the means to change them."""
        return LedgerView(self._readonly, self._flips)

    def set_readonly(self, low: int, high: int, readonly: bool) -> list[Span]:
        """Make pfns ``[low, high)`` read-only or writable; return those that flipped."""
        if readonly:
            flipped = [*self._open.gaps(low, high)]
            self._open.add(low, high)
        else:
            flipped = [*self._open.within(low, high)]
            self._open.discard(low, high)
        self._flips += flipped
        return flipped
