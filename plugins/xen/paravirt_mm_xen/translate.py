"""A run as hypercalls: what its allocator did under this backend, operation by operation.

`translate` turns the trace of a run into a trace of hypervisor operations
(`paravirt_mm_xen.traces.format`), which the model of Xen's page typing and the real hypervisor both
answer. Every operation must be accepted; the first that is not, is a finding (rule 6).

What the operations stand for
    Page *n* of the trace is the n-th page of RAM; a pfn that is no RAM has no frame, and its entry
    stays empty, as Linux leaves it (xen_make_pte). The direct map lies where the mode has it, at L4
    slot 272. Each page also has an address of its own, writable at first. It stands for the mapping
    through which the kernel fills a table (fixmap or brk), so it must be taken away, too, before
    the page can become one: that operation has no counterpart in a kernel, and
    `Translated.stand_in` marks it.

Boot
    Linux grafts the domain builder's L1 tables into static tables of its own image and loads
    these (xen_setup_kernel_pagetable). The operations before `Translated.begin` do the same: fill
    the tables, make them read-only, pin the root, load it. The kernel's own high mapping is left to
    the replaying guest, whose L4 entry every root gets (``copy_kernel_slots``).

Order
    `HandOver.EACH`: table by table as they are completed: fill by plain stores, make read-only, pin
    an L1, attach. Otherwise in the order of the events; hand-over of everything that waits is one
    step: all pages are made read-only, then L1 tables are pinned. Tables of a tree that CR3 does
    not refer to yet are plain memory, so mappings in it are made read-only by plain stores.

Source: arch/x86/mm/init_64.c and arch/x86/xen/mmu_pv.c of Linux 3.6 and 6.1.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs

from paravirt_mm import (
    PAGE_SHIFT,
    PAGE_SIZE,
    Batch,
    EntriesWritten,
    EntryKind,
    HandOver,
    InputError,
    MadeReadonly,
    MadeWritable,
    Map,
    PagingMode,
    RangeMapped,
    RangeSet,
    RootActivated,
    RunFinished,
    RunStarted,
    StepStarted,
    TablesAllocated,
    TablesAttached,
    TablesPinned,
    Trace,
    Way,
    align_down,
)
from paravirt_mm_xen.domain.layout import extra_memory
from paravirt_mm_xen.linux import MULTICALL_ENTRIES
from paravirt_mm_xen.mmu.entries import PSE
from paravirt_mm_xen.traces.format import MAX_OPERATIONS, MAX_PAGES, Operation, OperationTrace

READ_ONLY = 0x65
WRITABLE = 0x67
BOOT, PROBE = -1, -2
"""Event numbers of operations before the run's first event and after its last."""

EMULATED = 0
FAULT_ABSENT, FAULT_PROTECTED = -114000, -114003
"""Answers to probes: a page fault on a read of what is not mapped, on a write to what is
read-only.
"""

Key = tuple[int, int]
"""A table of a tree: its level, and the physical address (bytes) from which it maps."""

Segment = tuple[int, int, int]
"""Bytes ``[start, end)`` to map with these flags."""


class NotReplayable(InputError):
    """A run that cannot be translated: no 64-bit guest, too large, or tables outside of RAM."""


@attrs.frozen(eq=False)
class Translated:
    """Operations that do what a run did.

    events
        For each operation the number of the run's event that it belongs to; `BOOT` and `PROBE` for
        those around the run.
    stand_in
        Numbers of operations that no kernel would do; see the module's text.
    expected
        The answer that each operation must get: 0, or what a probe must find.
    begin, end
        The run's own operations are ``[begin, end)``.
    """

    trace: OperationTrace
    events: tuple[int, ...]
    stand_in: frozenset[int]
    expected: tuple[int, ...]
    begin: int
    end: int

    def refused(self, answers: Sequence[int]) -> Refused | None:
        """Return the first operation that was not answered as it must be; None: all were."""
        for number, (answer, expected) in enumerate(zip(answers, self.expected, strict=True)):
            if answer != expected:
                operation = self.trace.ops[number]
                return Refused(number, operation, self.events[number], answer, expected)
        return None


@attrs.frozen
class Refused:
    """An operation that the hypervisor did not answer as it must be answered.

    ``number`` counts operations of the replay from 0, ``event`` is that of the run (or `BOOT`,
    `PROBE`), ``code`` the answer: a negative errno, for a multicall less 1000 for each call done
    before, or a fault.
    """

    number: int
    operation: Operation
    event: int
    code: int
    expected: int

    @property
    def errno(self) -> int:
        """The code without the count of calls done before it; faults as they are."""
        return -(-self.code % 1000) if -100_000 < self.code < 0 else self.code


def guest_frames(start: RunStarted) -> RangeSet:
    """Return what has frames, in bytes: RAM, and the boot tables wherever they lie."""
    frames = RangeSet(start.machine.memory_map.ram_pages())
    frames.update(start.boot.boot_tables)
    return frames


def translate(trace: Trace, name: str = "run", *, probes: bool = True) -> Translated:
    """Translate the trace of a run under a backend that types pages; ``name`` becomes the trace's.

    With ``probes``, a run that came to its end is followed by loads and stores through the tables
    that it built. Raises `NotReplayable` for a guest that is not 64-bit, is larger than a trace may
    be, or whose allocator took tables from outside of RAM.
    """
    start = trace.start
    if start.machine.mode.root_level != 4 or not start.boot.typed:
        raise NotReplayable("only 64-bit PV guests can be replayed", start.machine.name)
    pages = guest_frames(start).total >> PAGE_SHIFT
    if pages > MAX_PAGES:
        raise NotReplayable(f"{pages} pages are more than {MAX_PAGES}", start.machine.name)
    return _Translator(start).translate(trace, name, pages, probes)


class _Frames:
    """Frames of the guest by number: the trace's pages."""

    def __init__(self, ram: RangeSet) -> None:
        self._highs: list[int] = []
        self._runs: list[tuple[int, int, int]] = []
        first = 0
        for low, high in ram:
            self._highs.append(high)
            self._runs.append((low, high, first))
            first += (high - low) >> PAGE_SHIFT

    def page(self, pfn: int) -> int:
        """Return the number of a page. Raises `NotReplayable` where it is no RAM."""
        for _, _, page in self.runs(pfn << PAGE_SHIFT, (pfn + 1) << PAGE_SHIFT):
            return page
        raise NotReplayable(f"page {pfn:#x} is no RAM, so it is no frame of the guest")

    def runs(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield the RAM of ``[start, end)``, which is not empty, as (start, end, number of its
        first page).
        """
        index = bisect_right(self._highs, start)
        while index < len(self._runs) and self._runs[index][0] < end:
            low, high, first = self._runs[index]
            low_part, high_part = max(low, start), min(high, end)
            yield low_part, high_part, first + ((low_part - low) >> PAGE_SHIFT)
            index += 1


class _Tree:
    """A tree of tables as far as it has been built: pages by number, and what is mapped."""

    def __init__(self, mode: PagingMode, root: int) -> None:
        self.mode = mode
        self.root = root
        self.tables: dict[Key, int] = {(mode.root_level, 0): root}
        self.owner: dict[Key, int] = {}
        self.linked: set[Key] = {(mode.root_level, 0)}
        self.mapped = RangeSet()
        self.readonly = RangeSet()

    def parent(self, key: Key) -> Key:
        """Return the table that has, or will have, the entry for a table."""
        level, base = key
        return level + 1, align_down(base, self.mode.table_span(level + 1))

    def index(self, level: int, address: int) -> int:
        """Return the entry of a table of ``level`` for a physical address."""
        va = self.mode.direct_map_base + address
        return va // self.mode.entry_span(level) % self.mode.entries(level)

    def maps(self, address: int) -> bool:
        """Tell whether the page at ``address`` is mapped and can be reached from the root."""
        if address not in self.mapped:
            return False
        key = 1, align_down(address, self.mode.table_span(1))
        while key[0] < self.mode.root_level:
            if key not in self.linked:
                return False
            key = self.parent(key)
        return True


class _Translator:
    """Walks a run's events and writes the operations down."""

    def __init__(self, start: RunStarted) -> None:
        self._start = start
        self._mode = start.machine.mode
        # The builder's tables have frames even where the map shows no RAM (`domain.collisions`).
        self._frames = _Frames(guest_frames(start))
        self._frameless = extra_memory(start.machine.memory_map)
        self._ops: list[Operation] = []
        self._events: list[int] = []
        self._stand_in: set[int] = set()
        self._expected: dict[int, int] = {}
        self._event = BOOT
        self._batches: dict[int, tuple[Key, ...]] = {}
        self._each = False
        # Of the batch that is handed over table by table: leaf entries by table, in which way
        # entries of which level get in, which levels are pinned, and the events of all that.
        self._unfinished: dict[Key, list[Segment]] = {}
        self._ways: dict[int, tuple[Way, int]] = {}
        self._leaf_way = Way.DIRECT
        self._readonly_event: int | None = None
        self._pins: tuple[frozenset[int], int]
        self._waiting_readonly: list[tuple[int, Batch]] = []
        self._waiting_pins: list[tuple[int, Batch, frozenset[int]]] = []
        self._tree = self._live = self._boot_tree()
        self._handlers: dict[type, Callable[[Any], None]] = {
            StepStarted: self._on_step,
            TablesAllocated: self._on_allocated,
            EntriesWritten: self._on_entries,
            RangeMapped: self._on_mapped,
            MadeReadonly: self._on_readonly,
            TablesPinned: self._on_pinned,
            TablesAttached: self._on_attached,
            RootActivated: self._on_activated,
            MadeWritable: self._on_writable,
        }

    def translate(self, trace: Trace, name: str, pages: int, probes: bool) -> Translated:
        begin = len(self._ops)
        for number, event in enumerate(trace):
            if not isinstance(event, MadeReadonly | TablesPinned):
                self._hand_over_waiting()
            self._event = number
            handler = self._handlers.get(type(event))
            if handler is not None:
                handler(event)
        self._hand_over_waiting()
        end = len(self._ops)
        if probes and isinstance(trace.events[-1], RunFinished):
            self._event = PROBE
            self._probe()
        if len(self._ops) > MAX_OPERATIONS:
            raise NotReplayable(f"{len(self._ops)} operations are more than {MAX_OPERATIONS}", name)
        return Translated(
            OperationTrace(name, pages, tuple(self._ops)),
            tuple(self._events),
            frozenset(self._stand_in),
            tuple(map(self._expected.get, range(len(self._ops)), [0] * len(self._ops))),
            begin,
            end,
        )

    # -- writing operations down --------------------------------------------------------------

    def _do(self, *operation: Any, event: int | None = None) -> None:
        self._ops.append(operation)
        self._events.append(self._event if event is None else event)

    def _do_stand_in(self, *operation: Any) -> None:
        self._stand_in.add(len(self._ops))
        self._do(*operation)

    def _in_multicalls(self, calls: Sequence[Operation]) -> None:
        for first in range(0, len(calls), MULTICALL_ENTRIES):
            self._do("multicall", tuple(calls[first : first + MULTICALL_ENTRIES]))

    def _va(self, address: int) -> int:
        return self._mode.direct_map_base + address

    def _store_leaves(self, tree: _Tree, key: Key, segments: Sequence[Segment]) -> None:
        """Write leaf entries of one table; bytes that are no RAM stay unmapped."""
        level, _ = key
        table = tree.tables[key]
        step = self._mode.entry_span(level)
        passed = self._leaf_way is Way.HYPERCALL
        for start, end, flags in segments:
            if level > 1:
                flags |= PSE
            # RAM that waits for its frames gets empty entries (`empty_entries`).
            spans = self._frameless.gaps(start, end) if passed else [(start, end)]
            for low, high, page in (run for span in spans for run in self._frames.runs(*span)):
                first = tree.index(level, low)
                entries = [
                    (table, first + n, page + n * (step >> PAGE_SHIFT), flags)
                    for n in range((high - low) // step)
                ]
                # Only an L1 in use can be stored to.
                if passed:
                    self._ops += [("mmu_update", *entry, False) for entry in entries]
                else:
                    self._ops += [("store", *entry) for entry in entries]
                tree.mapped.add(low, high)
                if not flags & 2:
                    tree.readonly.add(low, high)
        self._events += [self._event] * (len(self._ops) - len(self._events))

    def _make_page_readonly(self, page: int, address: int) -> Operation | None:
        """Take write access away; return the hypercall for the live mapping, if there is one."""
        self._do_stand_in("update_va_mapping", page, page, READ_ONLY)
        if self._live.maps(address):
            self._live.readonly.add(address, address + PAGE_SIZE)
            return ("update_va", self._va(address), page, READ_ONLY)
        return None

    def _link(self, tree: _Tree, key: Key, way: Way, event: int) -> None:
        """Write the entry that attaches a table to its parent."""
        parent = tree.parent(key)
        index = tree.index(parent[0], key[1])
        entry = tree.tables[parent], index, tree.tables[key], WRITABLE
        if way is Way.HYPERCALL:
            self._do("mmu_update", *entry, False, event=event)
        else:
            self._do("store", *entry, event=event)
        tree.linked.add(key)

    # -- boot ---------------------------------------------------------------------------------

    def _boot_tree(self) -> _Tree:
        state, mode = self._start.boot, self._mode
        (root,) = state.table_pages[mode.root_level]
        tree = _Tree(mode, self._frames.page(root))
        keys: list[Key] = []
        for level in range(mode.root_level - 1, 0, -1):
            span = mode.table_span(level)
            bases = [
                base
                for low, high in state.tables[level]
                for base in range(align_down(low, span), high, span)
            ]
            for base, pfn in zip(bases, state.table_pages[level], strict=True):
                keys.append((level, base))
                tree.tables[level, base] = self._frames.page(pfn)
                tree.owner[level, base] = BOOT
        tables = RangeSet(state.boot_tables)
        for key in keys:
            if key[0] == 1:
                self._store_leaves(tree, key, list(_boot_leaves(state.direct_mapped, tables, key)))
        self._do("copy_kernel_slots", tree.root)
        for key in keys:
            self._link(tree, key, Way.DIRECT, BOOT)
        for low, high in state.boot_tables:
            for pfn in range(low >> PAGE_SHIFT, high >> PAGE_SHIFT):
                page = self._frames.page(pfn)
                self._do_stand_in("update_va_mapping", page, page, READ_ONLY)
        self._do("pin", mode.root_level, tree.root)
        self._do("new_baseptr", tree.root)
        tree.owner[mode.root_level, 0] = BOOT
        return tree

    # -- events -------------------------------------------------------------------------------

    def _on_step(self, event: StepStarted) -> None:
        if isinstance(event.step, Map):
            self._each = event.step.hand_over is HandOver.EACH

    def _on_allocated(self, event: TablesAllocated) -> None:
        batch = event.batch
        made: dict[Key, int] = {}
        for run in batch.walk_order():
            span = self._mode.table_span(run.level)
            for n in range(run.count):
                key = run.level, run.base + n * span
                made[key] = self._frames.page(run.pfn + n * run.step)
        if self._mode.root_level in batch.spans:
            root = made[self._mode.root_level, 0]
            self._tree = _Tree(self._mode, root)
            self._do_stand_in("copy_kernel_slots", root)
        self._tree.tables.update(made)
        self._tree.owner.update(dict.fromkeys(made, batch.index))
        self._batches[batch.index] = tuple(made)
        if self._each:
            self._unfinished = {key: [] for key in made}
            self._ways = {}
            self._readonly_event = None
            self._pins = frozenset(), BOOT

    def _on_entries(self, event: EntriesWritten) -> None:
        if event.kind is not EntryKind.TABLE:
            self._leaf_way = event.cost.way
            return
        if self._each:
            self._ways[event.level] = event.cost.way, self._event
            return
        tree = self._tree
        for key in self._batches[event.batch]:
            if key[0] == event.level - 1 and tree.owner[tree.parent(key)] == event.owner:
                self._link(tree, key, event.cost.way, self._event)

    def _on_mapped(self, event: RangeMapped) -> None:
        leaf = event.leaves
        span = self._mode.table_span(leaf.level)
        readonly = RangeSet(event.readonly)
        position = leaf.start
        while position < leaf.end:
            base = align_down(position, span)
            stop = min(leaf.end, base + span)
            segments = list(_segments(position, stop, readonly))
            key = leaf.level, base
            if key in self._unfinished:
                self._unfinished[key] += segments
            else:
                self._store_leaves(self._tree, key, segments)
            position = stop

    def _on_readonly(self, event: MadeReadonly) -> None:
        if self._each:
            self._readonly_event = self._event
        else:
            self._waiting_readonly.append((self._event, event.batch))

    def _on_pinned(self, event: TablesPinned) -> None:
        levels = frozenset(event.cost.pinned)
        if self._each:
            self._pins = levels, self._event
        else:
            self._waiting_pins.append((self._event, event.batch, levels))

    def _hand_over_waiting(self) -> None:
        """Hand over all that waits: the hook is called once, with everything."""
        waiting, self._waiting_readonly = self._waiting_readonly, []
        for number, batch in waiting:
            self._event = number
            for page, address in self._pages(batch):
                self._rewrite_unloaded(page, address)
        for number, batch in waiting:
            self._event = number
            calls = [self._make_page_readonly(*page) for page in self._pages(batch)]
            self._in_multicalls([call for call in calls if call is not None])
        pins, self._waiting_pins = self._waiting_pins, []
        for number, batch, levels in pins:
            self._event = number
            self._in_multicalls(
                [
                    ("pin", key[0], self._tree.tables[key])
                    for key in self._batches[batch.index]
                    if key[0] in levels
                ]
            )

    def _pages(self, batch: Batch) -> Iterator[tuple[int, int]]:
        """Yield number and physical address of a batch's pages, in the order of the walk."""
        for run in batch.runs:
            for n in range(run.count):
                pfn = run.start + n * run.step
                yield self._frames.page(pfn), pfn << PAGE_SHIFT

    def _rewrite_unloaded(self, page: int, address: int) -> None:
        """Take write access from a mapping in the tree that is not loaded yet."""
        tree = self._tree
        if tree is self._live or address not in tree.mapped or address in tree.readonly:
            return
        table = tree.tables.get((1, align_down(address, self._mode.table_span(1))))
        if table is not None:  # else a large page maps it, which is refused anyway
            self._do("store", table, tree.index(1, address), page, READ_ONLY)
            tree.readonly.add(address, address + PAGE_SIZE)

    def _on_attached(self, event: TablesAttached) -> None:
        if event.order is not HandOver.EACH:
            return
        tree = self._tree
        attached = self._event
        levels, pinned = self._pins
        for run in event.batch.completion_order():
            span = self._mode.table_span(run.level)
            for n in range(run.count):
                key = run.level, run.base + n * span
                table = tree.tables[key]
                self._store_leaves(tree, key, self._unfinished.pop(key, ()))
                if self._readonly_event is not None:
                    self._event = self._readonly_event
                    address = (run.pfn + n * run.step) << PAGE_SHIFT
                    call = self._make_page_readonly(table, address)
                    if call is not None:
                        self._do(*call)
                    self._event = attached
                if run.level in levels:
                    self._do("pin", run.level, table, event=pinned)
                self._link(tree, key, *self._ways[run.level + 1])

    def _on_activated(self, event: RootActivated) -> None:
        if event.batch is None:
            self._do("new_baseptr", self._live.root)
            self._do("tlb_flush", "local")
            return
        old, self._live = self._live, self._tree
        if self._mode.root_level in event.cost.pinned:
            self._do("pin", self._mode.root_level, self._live.root)
        self._do("new_baseptr", self._live.root)
        self._do("unpin", old.root)

    def _on_writable(self, event: MadeWritable) -> None:
        for run in event.pages:
            for pfn in range(run.low, run.high):
                address = pfn << PAGE_SHIFT
                if self._live.maps(address):
                    page = self._frames.page(pfn)
                    self._do("update_va", self._va(address), page, WRITABLE)
                    self._live.readonly.discard(address, address + PAGE_SIZE)

    # -- probes -------------------------------------------------------------------------------

    def _probe(self) -> None:
        """Look at the ends of everything mapped, at every table above L1, and behind the end."""
        tree = self._live
        leaf_tables = {page for key, page in tree.tables.items() if key[0] == 1}
        edges = [at for low, high in tree.mapped for at in (low, high - PAGE_SIZE)]
        turns = [at for low, high in tree.readonly for at in (low, high - PAGE_SIZE, high)]
        for address in dict.fromkeys([*edges[:64], *turns[:64]]):
            if not tree.maps(address):
                continue
            page = self._frames.page(address >> PAGE_SHIFT)
            # Xen emulates a store to an L1 in use; it would be surprising not to refuse the rest.
            protected = address in tree.readonly and page not in leaf_tables
            self._expect(
                ("probe", self._va(address), "write"), FAULT_PROTECTED if protected else EMULATED
            )
        self._expect(("probe", self._va(tree.mapped.end), "read"), FAULT_ABSENT)

    def _expect(self, operation: Operation, answer: int) -> None:
        self._expected[len(self._ops)] = answer
        self._do(*operation)


def _boot_leaves(
    mapped: Sequence[tuple[int, int]], tables: RangeSet, key: Key
) -> Iterator[Segment]:
    """Yield what an L1 of the domain builder maps: everything, page tables read-only."""
    _, base = key
    for low, high in mapped:
        yield from _segments(max(low, base), min(high, base + (1 << 21)), tables)


def _segments(start: int, end: int, readonly: RangeSet) -> Iterator[Segment]:
    position = start
    for low, high in readonly.within(start, end):
        if position < low:
            yield position, low, WRITABLE
        yield low, high, READ_ONLY
        position = high
    if position < end:
        yield position, end, WRITABLE
