"""Runs of pages: the unit in which tables are allocated, handed over and counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum

from paravirt_mm.frozen import frozen
from paravirt_mm.machine.paging import PAGE_SHIFT


@frozen
class PageRun:
    """``count`` pages from pfn ``start`` upward (``step`` 1) or downward (``step`` -1), in that
    order.
    """

    start: int
    count: int
    step: int = 1

    @property
    def low(self) -> int:
        """The lowest pfn of the run."""
        return self.start if self.step == 1 else self.start - self.count + 1

    @property
    def high(self) -> int:
        """One past the highest pfn of the run."""
        return self.start + self.count if self.step == 1 else self.start + 1

    @property
    def pfns(self) -> tuple[int, int]:
        """`low` and `high`."""
        start, count = self.start, self.count
        return (start, start + count) if self.step == 1 else (start - count + 1, start + 1)

    @property
    def span(self) -> tuple[int, int]:
        """The bytes that the run covers."""
        low, high = self.pfns
        return low << PAGE_SHIFT, high << PAGE_SHIFT

    def head(self, count: int) -> PageRun:
        """Return the first ``count`` pages."""
        return PageRun(self.start, count, self.step)

    def tail(self, skip: int) -> PageRun:
        """Return what follows the first ``skip`` pages."""
        return PageRun(self.start + skip * self.step, self.count - skip, self.step)

    def downward(self) -> PageRun:
        """Return the same pages of an ascending run, highest first."""
        return PageRun(self.high - 1, self.count, -1)

    @classmethod
    def of_span(cls, start: int, end: int) -> PageRun:
        """Return the whole pages inside bytes ``[start, end)``, ascending; there may be none."""
        first, last = -(-start >> PAGE_SHIFT), end >> PAGE_SHIFT
        return cls(first, max(0, last - first))


class Source(StrEnum):
    """Where pages for tables were taken from."""

    BRK = "brk"
    MEMBLOCK = "memblock"
    RESERVATION = "reservation"


BRK, MEMBLOCK, RESERVATION = Source.BRK, Source.MEMBLOCK, Source.RESERVATION
"""As `paravirt_mm.engine.answers.LEAF`."""


@frozen
class TablePages:
    """An allocator's answer: one run, and where it came from."""

    run: PageRun
    source: Source


def page_count(runs: Iterable[PageRun]) -> int:
    """Return how many pages the runs hold."""
    count = 0
    for run in runs:
        count += run.count
    return count


def first_pages(runs: Iterable[PageRun], count: int) -> Iterator[PageRun]:
    """Yield the first ``count`` pages of ``runs``, run by run."""
    if count <= 0:
        return
    for run in runs:
        if run.count >= count:
            yield run.head(count)
            return
        if run.count:
            yield run
            count -= run.count


deal = first_pages
"""The name of `first_pages` up to API 1.1. Deprecated: it goes with API 2."""
