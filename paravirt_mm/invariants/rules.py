"""The rules that every run is checked against, from its trace alone.

1. A table page is RAM, free, and not already a table; what the platform put somewhere is not free.
2. It is reachable (boot map, brk, or direct map so far) when it is first written, unless the kernel
   handles the fault (`Map.faults_in`), which none can under a platform that types pages.
3. In the end the direct map is exactly what the allocator promised: everything once, identity,
   nothing else; and no RAM up to the limit of the direct map is left out of the promise.
4. CR3 is loaded only with a tree whose attached tables map the kernel, and a tree that was begun
   anew is loaded. Under a platform that types pages, besides: tables are handed over before they
   are attached, no table is mapped writable, no page size is used that the platform hides.
5. What was reserved and not used is free and writable in the end, and so is every page that is no
   table; nothing is taken but what was taken at boot or became a table.

(Rule 6, that a hypervisor accepts the trace operation by operation, needs a model of one: see the
Xen plugin.) The checker keeps its own books; it shares no state with the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from paravirt_mm.engine.answers import LEAF
from paravirt_mm.engine.pages import BRK, RESERVATION, PageRun
from paravirt_mm.engine.steps import Map
from paravirt_mm.engine.tables import BOOT_TREE
from paravirt_mm.engine.trace import (
    EntriesWritten,
    MadeReadonly,
    MadeWritable,
    MemoryTaken,
    RangeMapped,
    RootActivated,
    RunFinished,
    RunStarted,
    StepStarted,
    SurplusReleased,
    TablesAllocated,
    TablesAttached,
    TablesReserved,
    Trace,
)
from paravirt_mm.machine.paging import GIB, PAGE_SHIFT
from paravirt_mm.machine.ranges import RangeSet


@attrs.frozen
class Finding:
    """A broken rule: its number, the event that broke it (index in the trace), an address in bytes,
    and what is wrong.
    """

    rule: int
    event: int
    address: int
    message: str

    def __str__(self) -> str:
        return f"invariant {self.rule}, event {self.event}, {self.address:#x}: {self.message}"


def check(trace: Trace) -> list[Finding]:
    """Return every broken rule of a trace, in the order of its events (at most one a rule and
    event).
    """
    if not trace.begun:
        return []
    return _Checker(trace).findings()


class _Checker:
    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        start = trace.start
        self._start: RunStarted = start
        self._boot = start.boot
        machine = start.machine
        self._mode = machine.mode
        self._largest = start.boot.features.largest_level(machine.mode)
        self._ram = machine.memory_map.ram_pages()
        self._taken = start.boot.taken(machine)
        kernel = start.boot.kernel_of(machine)
        self._kernel = kernel.span
        self._brk = RangeSet([(kernel.brk_start, kernel.brk_end)])
        self._held = RangeSet()
        self._gone = RangeSet()
        self._tables = RangeSet(start.boot.boot_tables)
        self._reachable = RangeSet(start.boot.mapped)
        self._mapped = RangeSet(start.boot.direct_mapped)
        # Mappings that cannot be used before the tables that hold them (batches) are attached, by
        # one of the batches that are missing.
        self._pending: dict[int, list[tuple[frozenset[int], int, int]]] = {}
        self._leaf_owners: tuple[int, frozenset[int]] = (BOOT_TREE, frozenset())
        self._readonly = self._tables.copy()
        self._faults_in = False
        self._fresh_tree = False
        self._attached: set[int] = {BOOT_TREE}
        self._handed_over: set[int] = set()
        self._built: list[int] = []
        self._released: list[tuple[int, PageRun]] = []
        self._findings: list[Finding] = []

    def findings(self) -> list[Finding]:
        """Enter every event, and return what is broken."""
        for number, event in enumerate(self._trace.events):
            if handler := _HANDLERS.get(type(event)):
                handler(self, number, event)
        return self._findings

    def _find(self, rule: int, number: int, address: int, message: str) -> None:
        self._findings.append(Finding(rule, number, address, message))

    def _on_started(self, number: int, event: RunStarted) -> None:
        """A thing that the platform put somewhere is kept from everyone, or free: never half."""
        kept = RangeSet(event.boot.reserved)
        for place, (low, high) in event.boot.places:
            if kept.overlaps(low, high) and not kept.covers(low, high):
                gap, _ = next(kept.gaps(low, high))
                self._find(1, number, gap, f"what lies there is kept in part only: {place}")

    def _on_step(self, _number: int, event: StepStarted) -> None:
        step = event.step
        self._faults_in = isinstance(step, Map) and step.faults_in and not self._boot.typed

    def _on_reserved(self, number: int, event: TablesReserved) -> None:
        for run in event.pages:
            low, high = run.span
            self._must_be_free(number, low, high)
            self._held.add(low, high)

    def _must_be_free(self, number: int, low: int, high: int) -> None:
        if (gap := self._ram.first_gap(low, high)) is not None:
            self._find(1, number, gap, "a table page is not RAM")
        elif (taken := self._taken.first_in(low, high)) is not None:
            self._find(1, number, taken, "a table page is taken by something else")

    def _on_allocated(self, number: int, event: TablesAllocated) -> None:
        batch = event.batch
        if self._mode.root_level in batch.spans:
            self._fresh_tree = True
            self._mapped = RangeSet()
            self._pending = {}
        self._built.append(batch.index)
        for part in batch.pages:
            low, high = part.run.span
            if (again := self._tables.first_in(low, high)) is not None:
                self._find(1, number, again, "a page becomes a table twice")
            elif part.source is BRK:
                if (gap := self._brk.first_gap(low, high)) is not None:
                    self._find(1, number, gap, "a page said to be brk is not")
            elif part.source is RESERVATION:
                if (gap := self._held.first_gap(low, high)) is not None:
                    self._find(1, number, gap, "a page said to be set aside is not")
                self._held.discard(low, high)
            else:
                self._must_be_free(number, low, high)
            if (gone := self._gone.first_in(low, high)) is not None:
                self._find(1, number, gone, "a table page was taken away by the platform")
            # The linear allocator writes through fixmap slots, so a page of its block need not be
            # mapped, but only a page that the allocator holds for tables.
            reachable = part.source is RESERVATION or self._faults_in
            if not reachable and (gap := self._reachable.first_gap(low, high)) is not None:
                self._find(2, number, gap, "a table page cannot be reached yet")
            self._tables.add(low, high)
            if part.source is not BRK:
                self._taken.add(low, high)

    def _on_memory_taken(self, number: int, event: MemoryTaken) -> None:
        for low, high in event.spans:
            if (lost := self._tables.first_in(low, high)) is not None:
                self._find(1, number, lost, "the platform takes a page table away")
            self._gone.add(low, high)
            self._taken.add(low, high)

    def _on_mapped(self, number: int, event: RangeMapped) -> None:
        leaves = event.leaves
        start, end = leaves.start, leaves.end
        if leaves.level > self._largest:
            size = self._mode.page_name(leaves.level)
            rule = 4 if self._boot.typed else 3
            self._find(rule, number, start, f"the platform has no {size} pages")
        if (again := self._mapped.first_in(start, end)) is not None:
            self._find(3, number, again, "an address is mapped twice")
        self._mapped.add(start, end)
        self._usable(self._leaf_owners[1], start, end)
        self._readonly.update(event.readonly)
        if self._boot.typed:
            tables = tuple(self._tables.within(start, end))
            if tables != event.readonly:
                writable = RangeSet(tables).difference(RangeSet(event.readonly))
                for address, _ in writable.intersection(self._readonly):
                    self._find(4, number, address, "a page table is mapped writable")
                    break

    def _on_written(self, _number: int, event: EntriesWritten) -> None:
        if event.kind is LEAF:
            batch, owners = self._leaf_owners
            known = owners if batch == event.batch else frozenset()
            self._leaf_owners = event.batch, known | {event.owner}

    def _on_readonly(self, _number: int, event: MadeReadonly) -> None:
        for run in event.batch.runs:
            self._readonly.add(*run.span)
        self._handed_over.add(event.batch.index)

    def _on_writable(self, number: int, event: MadeWritable) -> None:
        for run in event.pages:
            low, high = run.span
            self._readonly.discard(low, high)
            if self._boot.typed and (table := self._tables.first_in(low, high)) is not None:
                self._find(4, number, table, "a page table is made writable")

    def _on_attached(self, number: int, event: TablesAttached) -> None:
        batch = event.batch
        if self._boot.typed and batch.index not in self._handed_over:
            self._find(
                4, number, batch.runs[0].span[0], "tables are attached before they are handed over"
            )
        self._attached.add(batch.index)
        for waiting in self._pending.pop(batch.index, ()):
            self._usable(*waiting)

    def _usable(self, owners: frozenset[int], start: int, end: int) -> None:
        """Note that ``[start, end)`` can be written through once all its tables are attached."""
        missing = owners - self._attached
        if missing:
            self._pending.setdefault(min(missing), []).append((owners, start, end))
        elif not self._fresh_tree:
            self._reachable.add(start, end)

    def _on_activated(self, number: int, event: RootActivated) -> None:
        # What hangs on tables that are not attached, no walk from CR3 finds.
        hanging = RangeSet(
            (start, end) for waiting in self._pending.values() for _, start, end in waiting
        )
        walked = self._mapped.difference(hanging)
        untold = not self._handed_over.issuperset(self._built)
        if self._boot.typed and event.batch is not None and untold:
            address = event.batch.runs[0].span[0]
            self._find(4, number, address, "CR3 is loaded with tables not handed over")
        elif (gap := walked.first_gap(*self._kernel)) is not None:
            self._find(4, number, gap, "CR3 is loaded with a tree that does not map the kernel")
        if self._fresh_tree:
            self._fresh_tree = False
            self._reachable = walked
        else:
            self._reachable.update(walked)

    def _on_released(self, number: int, event: SurplusReleased) -> None:
        for run in event.pages:
            if (table := self._tables.first_in(*run.span)) is not None:
                self._find(5, number, table, "a page given back is a page table")
            self._held.discard(*run.span)
            self._released.append((number, run))

    def _on_finished(self, number: int, event: RunFinished) -> None:
        if not self._trace.ended_early:
            self._left_unmapped(number)
            self._left_taken(number, RangeSet(event.reserved))

    def _left_unmapped(self, number: int) -> None:
        """The direct map is what was promised, the promise what the kernel needs."""
        promised = RangeSet(self._start.promised)
        for low, high in promised:
            if (gap := self._mapped.first_gap(low, high)) is not None:
                self._find(3, number, gap, "promised to be mapped and is not")
        promised.update(self._boot.direct_mapped)
        machine = self._start.machine
        needed = RangeSet(self._ram.below(machine.map_limit))
        if not self._mode.is_32bit:  # a kernel may have counted less below 4 GiB than its map has
            needed.discard(machine.max_low_pfn << PAGE_SHIFT, 4 * GIB)
        if (left := needed.first_outside(promised)) is not None:
            self._find(3, number, left, "RAM that the kernel must reach is not promised")
        if (more := self._mapped.first_outside(promised)) is not None:
            self._find(3, number, more, "mapped without having been promised")
        for built in self._built:
            if built not in self._attached:
                self._find(3, number, 0, f"batch {built} of tables was never attached")
                break
        else:
            if self._fresh_tree:
                self._find(4, number, 0, "CR3 is never loaded with the new tree")

    def _left_taken(self, number: int, reserved: RangeSet) -> None:
        """What is no table is free and writable again."""
        if self._held:
            self._find(
                5, number, self._held.first, "a page set aside for tables was not given back"
            )
        if (taken := reserved.first_outside(self._taken)) is not None:
            self._find(5, number, taken, "reserved in the end, and nobody took it")
        # Nothing but page tables may be read-only, or the kernel faults on its RAM.
        if (page := self._readonly.first_outside(self._tables)) is not None:
            self._find(5, number, page, "a page is read-only in the end, and no table")
        for _, run in self._released:
            # What was given back may have become a table since, or be gone, like any free page.
            idle = RangeSet(self._tables.gaps(*run.span)).difference(self._gone)
            for low, _ in idle.intersection(reserved):
                self._find(5, number, low, "a page given back is still reserved")
                break
            for low, high in idle:
                if (page := self._readonly.first_in(low, high)) is not None:
                    self._find(5, number, page, "a page given back is read-only")


_HANDLERS: Mapping[type, Callable[[_Checker, int, Any], None]] = {
    RunStarted: _Checker._on_started,
    StepStarted: _Checker._on_step,
    TablesReserved: _Checker._on_reserved,
    TablesAllocated: _Checker._on_allocated,
    EntriesWritten: _Checker._on_written,
    MemoryTaken: _Checker._on_memory_taken,
    RangeMapped: _Checker._on_mapped,
    MadeReadonly: _Checker._on_readonly,
    MadeWritable: _Checker._on_writable,
    TablesAttached: _Checker._on_attached,
    RootActivated: _Checker._on_activated,
    SurplusReleased: _Checker._on_released,
    RunFinished: _Checker._on_finished,
}
"""What each kind of event is checked for."""
