"""One run: drive an allocator's steps under a backend, and write down everything that happens.

Plugins decide, this module acts: only here does state change and does the trace grow.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any, Protocol

from paravirt_mm.engine.answers import Answer, Cost, EntryKind, EntryWrite, Refusal
from paravirt_mm.engine.boot import Boot, Promise
from paravirt_mm.engine.pages import PageRun, Source, TablePages, page_count
from paravirt_mm.engine.progress import Progress
from paravirt_mm.engine.split import Piece
from paravirt_mm.engine.steps import (
    ActivateRoot,
    AttachTables,
    HandOver,
    HandOverTables,
    Map,
    NewRoot,
    Step,
    StepResult,
    TableDemand,
)
from paravirt_mm.engine.tables import BOOT_TREE, Batch, MapPlan, Tree
from paravirt_mm.engine.trace import (
    EntriesWritten,
    Event,
    MadeReadonly,
    MadeWritable,
    OperationRejected,
    Panicked,
    RangeMapped,
    RangeSplit,
    RootActivated,
    RunFinished,
    RunStarted,
    StepStarted,
    SurplusReleased,
    TablesAllocated,
    TablesAttached,
    TablesPinned,
    TablesReserved,
    Trace,
)
from paravirt_mm.errors import KernelPanic, Rejected
from paravirt_mm.machine.model import BootState, Machine
from paravirt_mm.machine.paging import PAGE_SHIFT

Links = tuple[tuple[int, int, int], ...]
"""Entries that attach new tables: (level of the parent, its batch, how many)."""

StepGenerator = Generator[Step, StepResult, None]

MAX_STEPS = 1_000_000
"""More steps than any real machine needs; a generator that yields more never ends."""


class Hooks(Protocol):
    """What the engine needs of a scenario's plugins; `paravirt_mm.hookspecs` has the meaning."""

    def call(self, hook: str, **arguments: Any) -> Any:
        """Call a hook that has at most one answer; None: nobody answers."""

    def observe(self, event: Event) -> None:
        """Tell observers of an event."""


class ContractBroken(Exception):
    """A plugin answered with something that the engine cannot act on. ``hook`` says which."""

    def __init__(self, hook: str, message: str) -> None:
        super().__init__(message)
        self.hook = hook


def build(machine: Machine, hooks: Hooks, allocator: str, backend: str) -> Trace:
    """Run an allocator on a machine under a backend.

    A panic of the modelled kernel and a refusal by the platform end the trace with an event. Raises
    `ContractBroken` where an answer cannot be acted on, and whatever a plugin raises.
    """
    state = hooks.call("pvmm_boot_state", machine=machine)
    if isinstance(state, Refusal):
        trace = Trace()
        trace.events.append(OperationRejected(state.operation, state.code))
        return trace
    if not isinstance(state, BootState):
        raise ContractBroken("pvmm_boot_state", f"answered {state!r}, not a BootState")
    return _Run(machine, state, hooks, allocator, backend).run()


class _Run:
    """The state machine behind `build`."""

    def __init__(
        self, machine: Machine, state: BootState, hooks: Hooks, allocator: str, backend: str
    ) -> None:
        self.now = Progress(machine, state)
        self.boot = Boot(machine, state, self.now)
        self.hooks = hooks
        self.trace = Trace()
        self.allocator, self.backend = allocator, backend
        self._attached: set[int] = {BOOT_TREE}
        self._handed_over: set[int] = {BOOT_TREE}
        self._unattached: list[tuple[Batch, MapPlan | None, Links]] = []
        self._pinned: dict[int, frozenset[int]] = {}
        self._root: Batch | None = None
        self._tree_is_live = True
        self._actions: dict[type, Callable[[Any], StepResult]] = {
            Map: self._map,
            NewRoot: self._new_root,
            HandOverTables: self._hand_over_waiting,
            AttachTables: self._attach_waiting,
            ActivateRoot: self._activate,
        }

    def run(self) -> Trace:
        promise = self.hooks.call("pvmm_promise", boot=self.boot)
        if not isinstance(promise, Promise):
            raise ContractBroken("pvmm_promise", f"answered {promise!r}, not a Promise")
        kernel = self.boot.kernel
        room = max(0, kernel.brk_end - kernel.brk_start) >> PAGE_SHIFT
        self.now.brk_pages = min(promise.brk_pages, room)
        self._emit(
            RunStarted(
                self.boot.machine,
                self.boot.state,
                self.allocator,
                self.backend,
                promise.direct_map,
            )
        )
        steps = self.hooks.call("pvmm_map_steps", boot=self.boot)
        if not isinstance(steps, Generator):
            raise ContractBroken("pvmm_map_steps", f"answered {steps!r}, not a generator of steps")
        try:
            self._drive(steps)
        except KernelPanic as panic:
            self._emit(Panicked(str(panic), panic.missing_tables))
        except Rejected as refusal:
            self._emit(OperationRejected(refusal.operation, refusal.code))
        finally:
            steps.close()
        self._emit(RunFinished(tuple(self.now.memblock.reserved())))
        return self.trace

    def _drive(self, steps: StepGenerator) -> None:
        try:
            step = next(steps)
            for number in range(1, MAX_STEPS + 1):
                action = self._actions.get(type(step))
                if action is None:
                    raise ContractBroken("pvmm_map_steps", f"yielded {step!r}, not a step")
                self._emit(StepStarted(number, step))
                step = steps.send(action(step))
        except StopIteration:
            return
        raise ContractBroken("pvmm_map_steps", f"did not end within {MAX_STEPS} steps")

    def _emit(self, event: Event) -> None:
        self.trace.events.append(event)
        self.hooks.observe(event)

    # -- mapping ------------------------------------------------------------------------------

    def _map(self, step: Map) -> StepResult:
        pieces = self.boot.split(step)
        self._emit(RangeSplit(step.start, step.end, tuple(pieces)))
        if step.reserve:
            self._reserve(step, pieces)
        only = self.boot.fillable(step)
        first_batch = len(self.now.batches)
        made, mapped_end = 0, 0
        for piece in pieces:
            plan = self.boot.tree.plan(piece.start, piece.end, piece.level, only)
            batch = self._grow(step, plan)
            made += batch.count
            mapped_end = max(mapped_end, plan.mapped_end)
        self.now.max_pfn_mapped = max(self.now.max_pfn_mapped, mapped_end >> PAGE_SHIFT)
        if step.reserve:
            self._release(step, first_batch)
        return StepResult(tuple(pieces), made, mapped_end)

    def _grow(self, step: Map, plan: MapPlan) -> Batch:
        """Allocate and fill the tables of a plan, then hand them over and attach them, or let them
        wait.
        """
        pages = self._allocate(step, plan)
        batch = self.now.tree.commit(plan, len(self.now.batches), pages)
        self.now.batches.append(batch)
        if batch.count:
            self._note_tables(batch)
        for level, owner, count in plan.leaf_owner:
            self._write(batch, level, EntryKind.LEAF, count, owner)
        self._fill_new(plan, batch)
        for leaf in plan.leaves:
            readonly = self._map_readonly(leaf.start, leaf.end)
            self._emit(RangeMapped(leaf, readonly))
        if step.hand_over is HandOver.EACH:
            self._hand_over([batch])
            self._attach(batch, plan, plan.parents, HandOver.EACH)
        elif batch.count or any(owner not in self._attached for _, owner, _ in plan.leaf_owner):
            self._wait(batch, plan)
        else:
            self._attached.add(batch.index)
            self._now_reachable(plan)
        return batch

    def _wait(self, batch: Batch, plan: MapPlan) -> None:
        """Leave a batch unattached. (Without tables of its own it fills tables that wait.)"""
        if batch.count:
            self.now.waiting.append(batch)
        # Under a parent that waits too the entry is written now; others are what attaches it.
        for level, owner, count in plan.parents:
            if owner not in self._attached:
                self._write(batch, level, EntryKind.TABLE, count, owner)
        links = tuple(link for link in plan.parents if link[1] in self._attached)
        self._unattached.append((batch, plan, links))

    def _allocate(self, step: Step, plan: MapPlan) -> tuple[TablePages, ...]:
        mode = self.boot.mode
        by_level = tuple(
            (level, sum(high - low for low, high in spans) // mode.table_span(level))
            for level, spans in sorted(plan.spans.items())
        )
        demand = TableDemand(plan.start, plan.end, by_level)
        return self._ask_for_tables(step, demand)

    def _ask_for_tables(self, step: Step, demand: TableDemand) -> tuple[TablePages, ...]:
        if not demand.count:
            return ()
        answer = self.hooks.call("pvmm_allocate_tables", boot=self.boot, step=step, demand=demand)
        pages = tuple(answer or ())
        if not all(isinstance(part, TablePages) for part in pages):
            raise ContractBroken("pvmm_allocate_tables", f"answered {answer!r}, not TablePages")
        given = page_count(part.run for part in pages)
        if given != demand.count:
            raise ContractBroken(
                "pvmm_allocate_tables", f"gave {given} pages where {demand.count} are needed"
            )
        return pages

    def _note_tables(self, batch: Batch) -> None:
        self._emit(TablesAllocated(batch))
        for part in batch.pages:
            self.now.tables.add(part.run.low, part.run.high)
            if part.source is Source.BRK:
                self.now.brk_used += part.run.count
            elif part.source is Source.MEMBLOCK:
                self.now.memblock.reserve(*part.run.span)
            else:
                self.now.take_reserved(part.run)

    def _fill_new(self, plan: MapPlan, batch: Batch) -> None:
        """Entries inside the new tables: all leaves and children that no older table owns."""
        mode = self.boot.mode
        owned: dict[tuple[int, EntryKind], int] = {}
        for level, _, count in plan.leaf_owner:
            owned[level, EntryKind.LEAF] = owned.get((level, EntryKind.LEAF), 0) + count
        for level, _, count in plan.parents:
            owned[level, EntryKind.TABLE] = owned.get((level, EntryKind.TABLE), 0) + count
        written: dict[tuple[int, EntryKind], int] = {}
        for leaf in plan.leaves:
            key = leaf.level, EntryKind.LEAF
            count = (leaf.end - leaf.start) // mode.entry_span(leaf.level)
            written[key] = written.get(key, 0) + count
        for level, count in batch.by_level.items():
            key = level + 1, EntryKind.TABLE
            written[key] = written.get(key, 0) + count
        for (level, kind), count in written.items():
            inside = count - owned.get((level, kind), 0)
            if inside:
                self._write(batch, level, kind, inside, batch.index)

    def _write(self, batch: Batch, level: int, kind: EntryKind, count: int, owner: int) -> None:
        write = EntryWrite(
            level=level,
            kind=kind,
            count=count,
            live=owner in self._handed_over,
            readonly_children=kind is EntryKind.LEAF or self.boot.ledger.is_readonly(batch.runs),
        )
        cost = self._ask("pvmm_write_entries", write=write) or Cost()
        self._emit(EntriesWritten(batch.index, level, kind, count, owner, cost))

    def _map_readonly(self, start: int, end: int) -> tuple[tuple[int, int], ...]:
        """Ask the backend what of a new mapping must not be writable, and note it."""
        answer = self.hooks.call("pvmm_map_readonly", boot=self.boot, start=start, end=end)
        readonly = tuple(answer or ())
        for low, high in readonly:
            self.now.ledger.set_readonly(low >> PAGE_SHIFT, high >> PAGE_SHIFT, readonly=True)
        return readonly

    def _now_reachable(self, plan: MapPlan) -> None:
        """What the plan maps can be written from now on, provided that CR3 refers to this tree."""
        if self._tree_is_live:
            for leaf in plan.leaves:
                self.now.reachable.add(leaf.start, leaf.end)

    # -- the reservation ----------------------------------------------------------------------

    def _reserve(self, step: Map, pieces: list[Piece]) -> None:
        answer = self.hooks.call(
            "pvmm_reserve_tables", boot=self.boot, step=step, pieces=tuple(pieces)
        )
        runs = _runs("pvmm_reserve_tables", answer)
        self.now.reservation.extend(runs)
        self._emit(TablesReserved(runs))

    def _release(self, step: Map, first_batch: int) -> None:
        """Keep what became tables in this step; give the rest of the reservation back, writable."""
        boot = self.boot
        surplus = boot.reservation
        answer = self.hooks.call("pvmm_release_tables", boot=boot, step=step, surplus=surplus)
        released = _runs("pvmm_release_tables", answer)
        for batch in self.now.batches[first_batch:]:
            for part in batch.pages:
                if part.source is Source.RESERVATION:
                    self.now.memblock.reserve(*part.run.span)
        self.now.reservation = []
        if not released:
            return
        self._emit(SurplusReleased(released))
        readonly = [
            PageRun(low, high - low)
            for run in released
            for low, high in boot.ledger.readonly(run.low, run.high)
        ]
        if readonly:
            cost = self._ask("pvmm_make_writable", pages=tuple(readonly))
            if cost is not None:
                flipped = sum(
                    self.now.ledger.set_readonly(run.low, run.high, readonly=False)
                    for run in readonly
                )
                self._emit(MadeWritable(tuple(readonly), flipped, cost))

    # -- hand-over, attachment, CR3 -----------------------------------------------------------

    def _hand_over(self, batches: Iterable[Batch]) -> None:
        for batch in batches:
            if batch.count:
                cost = self._ask("pvmm_make_readonly", tables=batch)
                if cost is not None:
                    for run in batch.runs:
                        self.now.ledger.set_readonly(run.low, run.high, readonly=True)
                    self._emit(MadeReadonly(batch, cost))
                cost = self._ask("pvmm_pin_tables", tables=batch)
                if cost is not None:
                    self._pinned[batch.index] = frozenset(cost.pinned)
                    self._emit(TablesPinned(batch, cost))
            self._handed_over.add(batch.index)

    def _attach(self, batch: Batch, plan: MapPlan | None, links: Links, order: HandOver) -> None:
        for level, owner, count in links:
            self._write(batch, level, EntryKind.TABLE, count, owner)
        self._attached.add(batch.index)
        if plan:
            self._now_reachable(plan)
        if batch.count:
            pinned = self._pinned.get(batch.index, frozenset())
            validated = tuple(
                (level, count)
                for level, count in batch.by_level.items()
                if self.boot.state.typed and level not in pinned
            )
            self._emit(TablesAttached(batch, order, validated))

    def _hand_over_waiting(self, _step: HandOverTables) -> StepResult:
        waiting = [batch for batch in self.now.waiting if batch.index not in self._handed_over]
        self._hand_over(waiting)
        return StepResult(tables=sum(batch.count for batch in waiting))

    def _attach_waiting(self, _step: AttachTables) -> StepResult:
        pending, self._unattached = self._unattached, []
        self.now.waiting = []
        for batch, plan, links in pending:
            self._attach(batch, plan, links, HandOver.LATER)
        return StepResult(tables=sum(batch.count for batch, _, _ in pending))

    def _new_root(self, step: NewRoot) -> StepResult:
        boot = self.boot
        mode = boot.mode
        span = (0, mode.table_span(mode.root_level))
        demand = TableDemand(*span, ((mode.root_level, 1),))
        pages = self._ask_for_tables(step, demand)
        index = len(self.now.batches)
        self.now.tree = Tree(mode, root=index)
        batch = Batch(
            index=index,
            mode=mode,
            start=span[0],
            end=span[1],
            spans={mode.root_level: (span,)},
            tops={mode.root_level: 0},
            leaf_levels=(),
            pages=pages,
        )
        self.now.batches.append(batch)
        self._note_tables(batch)
        self.now.waiting.append(batch)
        self._unattached.append((batch, None, ()))
        self._root = batch
        self._tree_is_live = False
        return StepResult(tables=1)

    def _activate(self, _step: ActivateRoot) -> StepResult:
        cost = self._ask("pvmm_activate_cr3", root=self._root) or Cost(flushes=1)
        if not self._tree_is_live:
            self._tree_is_live = True
            self.now.reachable = self.boot.tree.mapped()
        self._emit(RootActivated(self._root, cost))
        return StepResult()

    # -- questions to plugins -----------------------------------------------------------------

    def _ask(self, hook: str, **arguments: Any) -> Cost | None:
        """Ask the backend; a refusal ends the run."""
        answer: Answer = self.hooks.call(hook, boot=self.boot, **arguments)
        if isinstance(answer, Refusal):
            raise Rejected(answer.operation, answer.code)
        if answer is not None and not isinstance(answer, Cost):
            raise ContractBroken(hook, f"answered {answer!r}, not a Cost, a Refusal or None")
        return answer


def _runs(hook: str, answer: object) -> tuple[PageRun, ...]:
    runs = tuple(answer) if isinstance(answer, Iterable) else ()
    if not all(isinstance(run, PageRun) and run.count >= 0 for run in runs):
        raise ContractBroken(hook, f"answered {answer!r}, not runs of pages")
    return tuple(run for run in runs if run.count)
