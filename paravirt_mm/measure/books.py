"""One pass over a trace: the sums and sets that all figures are computed from.

Nothing here comes from the engine's state, so that two plugins can never be counted differently.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

from paravirt_mm.engine.answers import Cost, Way
from paravirt_mm.engine.ledger import Ledger, PageStatus
from paravirt_mm.engine.pages import RESERVATION, PageRun, page_count
from paravirt_mm.engine.steps import LATER, Map
from paravirt_mm.engine.tables import Batch
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
        self._trace = trace
        self.machine = start.machine
        self.mode = start.machine.mode
        self.kernel = start.boot.kernel_of(start.machine)
        self.reserved_runs: list[PageRun] = []
        self.missing_tables = 0
        self.pins: defaultdict[int, int] = defaultdict(int)
        self.validations: defaultdict[int, int] = defaultdict(int)
        self.writes: defaultdict[Way, int] = defaultdict(int)
        self.hypercalls_of_guess = 0
        self.mapped_bytes: defaultdict[int, int] = defaultdict(int)
        self.rounds = 0
        self.peak_unhooked = 0
        self._costs: list[Cost] = []
        self._allocations: list[Batch] = []
        self._ledger = Ledger(
            [(low >> PAGE_SHIFT, high >> PAGE_SHIFT) for low, high in start.boot.boot_tables]
        )
        self._writable_again = False
        self._waiting = 0
        self._later = False
        for event in trace.events:
            if enter := _ENTRIES.get(type(event)):
                enter(self, event)
        self._add_up_tables()

    def _step(self, event: StepStarted) -> None:
        if isinstance(event.step, Map):
            self._later = event.step.hand_over is LATER
            self.rounds += not self._later

    def _reserved(self, event: TablesReserved) -> None:
        self.reserved_runs += event.pages

    def _written(self, event: EntriesWritten) -> None:
        cost = event.cost
        self.writes[cost.way] += event.count
        self._costs.append(cost)

    def _mapped(self, event: RangeMapped) -> None:
        leaves = event.leaves
        self.mapped_bytes[leaves.level] += leaves.end - leaves.start
        for low, high in event.readonly:
            self._ledger.set_readonly(low >> PAGE_SHIFT, high >> PAGE_SHIFT, readonly=True)

    def _made_readonly(self, event: MadeReadonly) -> None:
        for run in event.batch.runs:
            self._ledger.set_readonly(*run.pfns, readonly=True)
        self._costs.append(event.cost)

    def _made_writable(self, event: MadeWritable) -> None:
        for run in event.pages:
            self._ledger.set_readonly(*run.pfns, readonly=False)
        self._writable_again = True
        self._costs.append(event.cost)
        self.hypercalls_of_guess += sum(event.cost.hypercalls.values())

    def _attached(self, event: TablesAttached) -> None:
        for level, count in event.validated:
            self.validations[level] += count
        if event.order is LATER:
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
        self._allocations.append(batch)
        if self._later or self.mode.root_level in batch.by_level:
            self._waiting += batch.count
            unfinished = self._waiting
        else:
            # Handed over one by one: unfinished is at most one table of each level, from the top
            # down to the leaf.
            unfinished = len(batch.by_level)
        if unfinished > self.peak_unhooked:
            self.peak_unhooked = unfinished

    def _pinned(self, event: TablesPinned | RootActivated) -> None:
        for level, count in event.cost.pinned.items():
            self.pins[level] += count
        self._costs.append(event.cost)

    # -- what the whole trace tells -----------------------------------------------------------

    def _add_up_tables(self) -> None:
        """Add up which pages became tables.

        tables
            Page-table pages in use at the end, those that exist since boot not counted.
        reserved, used, unused
            Pages that were set aside for tables, that became some, and (pfns) that did not.
        contiguous_pages
            The largest block that was demanded at once.
        """
        parts = [part for batch in self._allocations for part in batch.pages]
        self.by_level = _sums(
            [row for batch in self._allocations for row in batch.by_level.items()]
        )
        self.by_source = _sums([(part.source, part.run.count) for part in parts])
        self.table_pages = RangeSet(sorted([part.run.pfns for part in parts]))
        self.tables = sum(self.by_level.values())
        self.reserved = page_count(self.reserved_runs)
        self.used = self.by_source[RESERVATION]
        used = [part.run.pfns for part in parts if part.source is RESERVATION]
        held = RangeSet([run.pfns for run in self.reserved_runs])
        self.unused: Ranges = held.difference(RangeSet(sorted(used)))
        # One search and one reservation a page, but of a block: nothing contiguous is demanded.
        blocks = [run.count for run in self.reserved_runs]
        self.contiguous_pages = max([int(len(used) < len(parts)), *blocks])

    # -- what few figures are made of: added up when one of them is asked for ------------------

    @cached_property
    def hypercalls(self) -> Mapping[str, int]:
        """Operations asked of the hypervisor, by kind."""
        return _sums([row for cost in self._costs for row in cost.hypercalls.items()])

    @property
    def batches(self) -> int:
        """Multicalls that carried them."""
        return sum([cost.batches for cost in self._costs])

    @property
    def tlb_flushes(self) -> int:
        """CR3 loads and explicit flushes."""
        return sum([cost.flushes for cost in self._costs])

    @cached_property
    def flips(self) -> int:
        """Changes of pages between writable and not writable."""
        return sum([high - low for low, high in self._ledger.flips()])

    # Where no page became writable again, each has flipped once, and not in vain.

    @property
    def flips_wasted(self) -> int:
        """Flips of pages that end the run writable."""
        if not self._writable_again:
            return 0
        writable = [one for one in self._statuses if not one[2].readonly]
        return sum([(high - low) * status.flips for low, high, status in writable])

    @property
    def max_flips(self) -> int:
        """The most flips that one page saw."""
        if not self._writable_again:
            return min(1, self.flips)
        return max([status.flips for _, _, status in self._statuses], default=0)

    @cached_property
    def _statuses(self) -> Sequence[tuple[int, int, PageStatus]]:
        return list(self._ledger)

    @cached_property
    def room(self) -> Mapping[int, Room]:
        """What is free when the run ends, by the limit of a crash kernel below which it lies."""
        free = free_after(self._trace)
        return {limit: Room.of(list(free.below(limit))) for _, limit in crashkernel.LIMITS}


class Room(NamedTuple):
    """Bytes that are free below a limit: the largest block, and the largest crash kernel."""

    block: int
    crash_kernel: int

    @classmethod
    def of(cls, free: Sequence[Span]) -> Room:
        """Measure what is free."""
        return cls(max([high - low for low, high in free], default=0), crashkernel.room(free))


def free_after(trace: Trace) -> Ranges:
    """Return the bytes of RAM that are free when a run ends: all, if it never came to its end."""
    last = trace.events[-1]
    taken = last.reserved if isinstance(last, RunFinished) else ()
    return trace.start.machine.memory_map.ram_pages().difference(RangeSet(taken))


def _sums(counts: Iterable[tuple[K, int]]) -> defaultdict[K, int]:
    """Return the sum of the counts of each key."""
    sums: defaultdict[K, int] = defaultdict(int)
    for key, count in counts:
        sums[key] += count
    return sums


_ENTRIES: Mapping[type, Callable[[Books, Any], None]] = {
    StepStarted: Books._step,
    TablesReserved: Books._reserved,
    TablesAllocated: Books._allocated,
    EntriesWritten: Books._written,
    RangeMapped: Books._mapped,
    MadeReadonly: Books._made_readonly,
    MadeWritable: Books._made_writable,
    TablesPinned: Books._pinned,
    TablesAttached: Books._attached,
    RootActivated: Books._activated,
    Panicked: Books._panicked,
}
"""What each kind of event adds."""
