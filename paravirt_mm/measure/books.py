"""One pass over a trace: the sums and sets that all figures are computed from.

Nothing here comes from the engine's state, so that two plugins can never be counted differently.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from paravirt_mm.engine.answers import Cost, Way
from paravirt_mm.engine.ledger import Ledger
from paravirt_mm.engine.pages import PageRun, Source, page_count
from paravirt_mm.engine.steps import HandOver, Map
from paravirt_mm.engine.trace import (
    EntriesWritten,
    MadeReadonly,
    MadeWritable,
    Panicked,
    RangeMapped,
    RootActivated,
    RunFinished,
    StepStarted,
    TablesAllocated,
    TablesAttached,
    TablesPinned,
    TablesReserved,
    Trace,
)
from paravirt_mm.machine.model import Span
from paravirt_mm.machine.paging import PAGE_SHIFT
from paravirt_mm.machine.ranges import Ranges, RangeSet
from paravirt_mm.measure import crashkernel

K = TypeVar("K")


class Books:
    """What a trace adds up to. Page numbers are pfns, everything else bytes or counts."""

    def __init__(self, trace: Trace) -> None:
        start = trace.start
        self.machine = start.machine
        self.mode = start.machine.mode
        self.kernel = start.boot.kernel_of(start.machine)
        self.reserved_runs: list[PageRun] = []
        self.by_source: defaultdict[Source, int] = defaultdict(int)
        self.by_level: defaultdict[int, int] = defaultdict(int)
        self.table_pages = RangeSet()
        self.from_reservation = RangeSet()
        self.contiguous_pages = 0
        self.missing_tables = 0
        self.ledger = Ledger()
        self.pins: defaultdict[int, int] = defaultdict(int)
        self.validations: defaultdict[int, int] = defaultdict(int)
        self.writes: defaultdict[Way, int] = defaultdict(int)
        self.hypercalls: defaultdict[str, int] = defaultdict(int)
        self.hypercalls_of_guess = 0
        self.batches = 0
        self.tlb_flushes = 0
        self.mapped_bytes: defaultdict[int, int] = defaultdict(int)
        self.rounds = 0
        self.peak_unhooked = 0
        self._waiting = 0
        self._later = False
        for low, high in start.boot.boot_tables:
            self.ledger.start_readonly(low >> PAGE_SHIFT, high >> PAGE_SHIFT)
        for event in trace.events:
            if enter := _ENTRIES.get(type(event)):
                enter(self, event)
        self._add_up(trace)

    def _step(self, event: StepStarted) -> None:
        if isinstance(event.step, Map):
            self._later = event.step.hand_over is HandOver.LATER
            self.rounds += not self._later

    def _reserved(self, event: TablesReserved) -> None:
        self.reserved_runs += event.pages
        self.contiguous_pages = max([self.contiguous_pages, *(run.count for run in event.pages)])

    def _written(self, event: EntriesWritten) -> None:
        self.writes[event.cost.way] += event.count
        self._spend(event.cost)

    def _mapped(self, event: RangeMapped) -> None:
        leaves = event.leaves
        self.mapped_bytes[leaves.level] += leaves.end - leaves.start
        for low, high in event.readonly:
            self.ledger.set_readonly(low >> PAGE_SHIFT, high >> PAGE_SHIFT, readonly=True)

    def _readonly(self, event: MadeReadonly) -> None:
        for run in event.batch.runs:
            self.ledger.set_readonly(*run.pfns, readonly=True)
        self._spend(event.cost)

    def _writable(self, event: MadeWritable) -> None:
        for run in event.pages:
            self.ledger.set_readonly(*run.pfns, readonly=False)
        self._spend(event.cost)
        self.hypercalls_of_guess += sum(event.cost.hypercalls.values())

    def _attached(self, event: TablesAttached) -> None:
        _add(self.validations, dict(event.validated))
        if event.order is HandOver.LATER:
            self.rounds += self._waiting > 0
            self._waiting = 0

    def _activated(self, event: RootActivated) -> None:
        self._pinned(event)
        # Pinned after all: they were counted as validated when they were attached.
        for level, count in event.cost.pinned.items():
            self.validations[level] -= count

    def _panicked(self, event: Panicked) -> None:
        self.missing_tables = event.missing_tables

    def _allocated(self, event: TablesAllocated) -> None:
        batch = event.batch
        _add(self.by_level, batch.by_level)
        for part in batch.pages:
            self.by_source[part.source] += part.run.count
            self.table_pages.add(*part.run.pfns)
            if part.source is Source.RESERVATION:
                self.from_reservation.add(*part.run.pfns)
            else:
                # One search and one reservation a page: nothing contiguous is demanded.
                self.contiguous_pages = max(self.contiguous_pages, 1)
        if self._later or self.mode.root_level in batch.by_level:
            self._waiting += batch.count
            self.peak_unhooked = max(self.peak_unhooked, self._waiting)
        else:
            # Handed over one by one: unfinished is at most one table of each level, from the top
            # down to the leaf.
            self.peak_unhooked = max(self.peak_unhooked, len(batch.by_level))

    def _pinned(self, event: TablesPinned | RootActivated) -> None:
        _add(self.pins, event.cost.pinned)
        self._spend(event.cost)

    def _spend(self, cost: Cost) -> None:
        if cost.hypercalls:
            _add(self.hypercalls, cost.hypercalls)
        self.batches += cost.batches
        self.tlb_flushes += cost.flushes

    def _add_up(self, trace: Trace) -> None:
        """Work out what the sums and sets of the whole trace tell.

        unused
            Pfns that were set aside for tables and did not become any.
        free
            Bytes of RAM that are free when the run ends.
        free_below, crash_room
            By limit of a crash kernel, what is free below it, and the largest that fits there.
        flips, flips_wasted, max_flips
            Changes of pages between writable and not writable; those of pages that end the run
            writable; the most that one page saw.
        """
        held = RangeSet([run.pfns for run in self.reserved_runs])
        self.unused: Ranges = held.difference(self.from_reservation)
        self.free = free_after(trace)
        self.free_below: Mapping[int, Sequence[Span]] = {
            limit: list(self.free.below(limit)) for _, limit in crashkernel.LIMITS
        }
        self.crash_room: Mapping[int, int] = {
            limit: crashkernel.room(free) for limit, free in self.free_below.items()
        }
        self.flips = self.flips_wasted = self.max_flips = 0
        for low, high, status in self.ledger:
            flips = (high - low) * status.flips
            self.flips += flips
            self.flips_wasted += 0 if status.readonly else flips
            self.max_flips = max(self.max_flips, status.flips)

    # -- derived ------------------------------------------------------------------------------

    @property
    def tables(self) -> int:
        """Page-table pages in use at the end, those that exist since boot not counted."""
        return sum(self.by_level.values())

    @property
    def reserved(self) -> int:
        """Pages set aside for tables."""
        return page_count(self.reserved_runs)

    @property
    def used(self) -> int:
        """Reserved pages that became tables."""
        return self.by_source[Source.RESERVATION]


def free_after(trace: Trace) -> Ranges:
    """Return the bytes of RAM that are free when a run ends: all, if it never came to its end."""
    last = trace.events[-1]
    taken = last.reserved if isinstance(last, RunFinished) else ()
    return trace.start.machine.memory_map.ram_pages().difference(RangeSet(taken))


def _add(sums: dict[K, int], more: Mapping[K, int]) -> None:
    for key, count in more.items():
        sums[key] += count


_ENTRIES: Mapping[type, Callable[[Books, Any], None]] = {
    StepStarted: Books._step,
    TablesReserved: Books._reserved,
    TablesAllocated: Books._allocated,
    EntriesWritten: Books._written,
    RangeMapped: Books._mapped,
    MadeReadonly: Books._readonly,
    MadeWritable: Books._writable,
    TablesPinned: Books._pinned,
    TablesAttached: Books._attached,
    RootActivated: Books._activated,
    Panicked: Books._panicked,
}
"""What each kind of event adds."""
