"""One run: drive an allocator's steps under a backend, and write down everything that happens.

Plugins decide, this module acts: only here does state change and does the trace grow.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from functools import lru_cache, partial
from typing import Any, Protocol

from paravirt_mm.engine import contract
from paravirt_mm.engine.answers import LEAF, TABLE, Cost, EntryKind, EntryWrite, Refusal
from paravirt_mm.engine.boot import Boot
from paravirt_mm.engine.pages import BRK, MEMBLOCK, RESERVATION, TablePages
from paravirt_mm.engine.panic import KernelPanic
from paravirt_mm.engine.progress import BatchLife, Progress
from paravirt_mm.engine.split import Piece
from paravirt_mm.engine.steps import (
    EACH,
    LATER,
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
from paravirt_mm.engine.tables import Batch, EntryCount, MapPlan
from paravirt_mm.engine.trace import (
    EntriesWritten,
    Event,
    MadeReadonly,
    MadeWritable,
    MemoryTaken,
    OperationRejected,
    PagesTaken,
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
from paravirt_mm.errors import Rejected
from paravirt_mm.machine.model import BootState, Machine
from paravirt_mm.machine.paging import PAGE_SHIFT

StepGenerator = Generator[Step, StepResult, None]

_FREE, _LOADED = Cost(), Cost(flushes=1)
# There are few different ones.
_entry_write = lru_cache(maxsize=4096)(EntryWrite)

MAX_STEPS = 1_000_000
"""More steps than any real machine needs; a generator that yields more never ends."""


MAX_IDLE_STEPS = 10_000
"""So many steps in a row that change nothing come from a generator that never ends."""


class Hooks(Protocol):
    """What the engine needs of a scenario's plugins; `paravirt_mm.hookspecs` has the meaning."""

    def call(self, hook: str, **arguments: Any) -> Any:
        """Call a hook that has at most one answer; None: nobody answers."""

    def answers(self, hook: str) -> bool:
        """Tell whether somebody answers a hook, so that it is worth asking."""

    def observe(self, event: Event) -> None:
        """Tell observers of an event."""


def build(
    machine: Machine,
    hooks: Hooks,
    allocator: str,
    backend: str,
    events: list[Event],
) -> Trace:
    """Run an allocator on a machine under a backend; events are added to ``events`` as they happen,
    where they stay if this raises.

    A panic of the modelled kernel and a refusal by the platform end the trace with an event. Raises
    `contract.ContractBroken` where an answer cannot be acted on, and whatever a plugin raises.
    """
    machine = link(machine, hooks)
    try:
        answer = hooks.call("pvmm_boot_state", machine=machine)
    except KernelPanic as panic:
        events.append(Panicked(str(panic), panic.missing_tables))
        return Trace(events)
    state = contract.boot_state(machine, answer)
    if isinstance(state, Refusal):
        events.append(OperationRejected(state.operation, state.code))
        return Trace(events)
    return _Run(machine, state, hooks, allocator, backend, events).run()


def link(machine: Machine, hooks: Hooks) -> Machine:
    """Return the machine with the kernel image that the allocator wants for it."""
    features = contract.features(machine, hooks.call("pvmm_features", machine=machine))
    recorded = None
    file = contract.kernel_file(hooks.call("pvmm_kernel_file", machine=machine))
    if file is not None:
        answer = hooks.call("pvmm_boot_kernel", machine=machine, kernel_file=file)
        recorded = contract.recorded(answer)
    answer = hooks.call("pvmm_kernel_image", machine=machine, features=features, recorded=recorded)
    kernel = contract.image(machine, answer)
    return machine if kernel is machine.kernel else machine.linked_with(kernel)


class _Run:
    """The state machine behind `build`."""

    def __init__(
        self,
        machine: Machine,
        state: BootState,
        hooks: Hooks,
        allocator: str,
        backend: str,
        events: list[Event],
    ) -> None:
        self.machine, self.state, self.mode = machine, state, machine.mode
        self.allocator, self.backend = allocator, backend
        self.hooks = hooks
        self.now = Progress(machine, state)
        self.boot = Boot(machine, state, self.now)
        self.events = events
        # Most runs have no observer.
        self._emit = (
            partial(_tell, hooks, events) if hooks.answers("pvmm_observe") else events.append
        )
        self._writes_cost = hooks.answers("pvmm_write_entries")
        self._is_told = any(map(hooks.answers, ("pvmm_make_readonly", "pvmm_pin_tables")))
        self._maps_readonly = hooks.answers("pvmm_map_readonly")
        self._loses_memory = hooks.answers("pvmm_memory_taken")
        self._root: Batch | None = None
        """The root of a new tree; None: the one that exists since boot."""
        self._tree_is_live = True
        """Whether CR3 refers to the tree that is being built."""

    def run(self) -> Trace:
        answer = self.hooks.call("pvmm_promise", boot=self.boot)
        promise = contract.promise(self.machine, answer)
        room, given = self.state.kernel_of(self.machine).brk_pages, promise.brk_pages
        self.now.standing.brk_pages = room if given is None else min(given, room)
        self._emit(
            RunStarted(self.machine, self.state, self.allocator, self.backend, promise.direct_map)
        )
        steps = contract.steps(self.hooks.call("pvmm_map_steps", boot=self.boot))
        try:
            self._drive(steps)
        except KernelPanic as panic:
            self._take_in_vain(panic.taken)
            self._emit(Panicked(str(panic), panic.missing_tables))
        except Rejected as refusal:
            self._emit(OperationRejected(refusal.operation, refusal.code))
        finally:
            steps.close()
        self._emit(RunFinished(tuple(self.now.memblock.reserved())))
        return Trace(self.events)

    def _drive(self, steps: StepGenerator) -> None:
        try:
            step = next(steps)
            idle = 0
            for number in range(1, MAX_STEPS + 1):
                action = _ACTIONS[type(contract.step(self.mode, step))]
                if self._loses_memory:
                    self._memory_taken(step)
                self._emit(StepStarted(number, step))
                before = len(self.events)
                step = steps.send(action(self, step))
                # Of a step that does nothing there is at the most how its range is split.
                idle = idle + 1 if len(self.events) - before <= 1 else 0
                if idle > MAX_IDLE_STEPS:
                    message = f"{MAX_IDLE_STEPS} steps in a row did nothing"
                    raise contract.ContractBroken("pvmm_map_steps", message)
        except StopIteration:
            return
        raise contract.ContractBroken("pvmm_map_steps", f"did not end within {MAX_STEPS} steps")

    def _memory_taken(self, step: Step) -> None:
        answer = self.hooks.call("pvmm_memory_taken", boot=self.boot, step=step)
        spans = contract.taken(answer, self.machine)
        if spans:
            for span in spans:
                self.now.memblock.reserve(*span)
            self._emit(MemoryTaken(spans))

    # -- mapping a range: split, reserve, then piece by piece, release -------------------------

    def _map(self, step: Map) -> StepResult:
        pieces = tuple(self.boot.split(step))
        self._emit(RangeSplit(step.start, step.end, pieces))
        if step.reserve:
            self._reserve(step, pieces)
        only = self.boot.fillable(step)
        mapped_end = 0
        grown: list[BatchLife] = []
        for piece in pieces:
            plan = self.now.tree.plan(piece.start, piece.end, piece.level, only)
            grown.append(self._map_piece(step, plan))
            mapped_end = max(mapped_end, plan.mapped_end)
        standing = self.now.standing
        standing.max_pfn_mapped = max(standing.max_pfn_mapped, mapped_end >> PAGE_SHIFT)
        if step.reserve:
            self._release(step, grown)
        return StepResult(pieces, _tables(grown), mapped_end)

    def _map_piece(self, step: Map, plan: MapPlan) -> BatchLife:
        """Allocate and fill the tables of a plan, then hand them over and attach them, or let them
        wait.
        """
        life = self._build(step, plan)
        if step.hand_over is EACH:
            self._hand_over([life])
            self._attach(life, EACH)
        elif life.batch.count or not self._are_attached(plan.filled):
            self._wait(life)
        else:
            self.now.attached.add(life.batch.index)
            self._now_reachable(plan)
        return life

    def _build(self, step: Map, plan: MapPlan) -> BatchLife:
        """Make the tables of a plan, fill them, and fill the entries of tables that were there."""
        pages: tuple[TablePages, ...] = ()
        if plan.spans:
            pages = self._allocate(step, TableDemand(plan.start, plan.end, plan.by_level))
        batch = self.now.tree.commit(plan, self.now.next_index, pages)
        life = self._born(batch, plan)
        for entries in plan.filled:
            self._write(batch, LEAF, entries.level, entries.count, entries.owner)
        for kind, level, count in plan.inside:
            self._write(batch, kind, level, count, batch.index)
        for leaf in plan.leaves:
            readonly = self._map_readonly(leaf.start, leaf.end) if self._maps_readonly else ()
            self._emit(RangeMapped(leaf, readonly))
        return life

    def _born(self, batch: Batch, plan: MapPlan | None = None) -> BatchLife:
        life = BatchLife(batch, plan, plan.links if plan else ())
        self.now.next_index += 1
        if batch.count:
            self._emit(TablesAllocated(batch))
            self._take(batch.pages)
            self.now.standing.tables_made += batch.count
        return life

    def _allocate(self, step: Step, demand: TableDemand) -> tuple[TablePages, ...]:
        answer = self.hooks.call("pvmm_allocate_tables", boot=self.boot, step=step, demand=demand)
        return contract.table_pages(answer, demand)

    def _take(self, pages: Iterable[TablePages]) -> None:
        """Note that pages are tables now, and that their memory is used."""
        for part in pages:
            self.now.tables.add(*part.run.pfns)
            if part.source is BRK:
                self.now.standing.brk_used += part.run.count
            elif part.source is MEMBLOCK:
                self.now.memblock.reserve(*part.run.span)
            else:
                self.now.take_reserved(part.run)

    def _take_in_vain(self, pages: Iterable[TablePages]) -> None:
        """Note pages that were taken for the piece for which the next one was missing."""
        taken = tuple(pages)
        if taken:
            self._emit(PagesTaken(taken))
            self._take(taken)

    def _write(self, batch: Batch, kind: EntryKind, level: int, count: int, owner: int) -> None:
        cost = _FREE
        if self._writes_cost:
            write = _entry_write(
                level,
                kind,
                count,
                owner in self.now.handed_over,
                kind is LEAF or self.now.ledger.is_readonly(batch.runs),
            )
            answer = self.hooks.call("pvmm_write_entries", boot=self.boot, write=write)
            cost = contract.cost("pvmm_write_entries", self.mode, answer) or _FREE
        self._emit(EntriesWritten(batch.index, level, kind, count, owner, cost))

    def _map_readonly(self, start: int, end: int) -> tuple[tuple[int, int], ...]:
        """Ask the backend what of a new mapping must not be writable, and note it."""
        answer = self.hooks.call("pvmm_map_readonly", boot=self.boot, start=start, end=end)
        readonly = contract.readonly(answer, start, end)
        for low, high in readonly:
            self.now.ledger.set_readonly(low >> PAGE_SHIFT, high >> PAGE_SHIFT, readonly=True)
        return readonly

    def _now_reachable(self, plan: MapPlan | None) -> None:
        """What the plan maps can be written from now on, provided that CR3 refers to this tree."""
        if plan and self._tree_is_live:
            for leaf in plan.leaves:
                self.now.reachable.add(leaf.start, leaf.end)

    # -- the reservation ----------------------------------------------------------------------

    def _reserve(self, step: Map, pieces: tuple[Piece, ...]) -> None:
        answer = self.hooks.call("pvmm_reserve_tables", boot=self.boot, step=step, pieces=pieces)
        runs = contract.runs("pvmm_reserve_tables", answer)
        self.now.standing.reservation += runs
        self._emit(TablesReserved(runs))

    def _release(self, step: Map, grown: Iterable[BatchLife]) -> None:
        """Keep what became tables in this step; give the rest of the reservation back, writable."""
        surplus = self.now.standing.reservation
        answer = self.hooks.call("pvmm_release_tables", boot=self.boot, step=step, surplus=surplus)
        released = contract.runs("pvmm_release_tables", answer)
        for life in grown:
            for part in life.batch.pages:
                if part.source is RESERVATION:
                    self.now.memblock.reserve(*part.run.span)
        self.now.standing.reservation = ()
        if not released:
            return
        self._emit(SurplusReleased(released))
        # The kernel does not look which of them it had mapped read-only.
        answer = self.hooks.call("pvmm_make_writable", boot=self.boot, pages=released)
        cost = contract.cost("pvmm_make_writable", self.mode, answer)
        if cost is not None:
            flipped = 0
            for run in released:
                for low, high in self.now.ledger.set_readonly(*run.pfns, readonly=False):
                    flipped += high - low
            self._emit(MadeWritable(released, flipped, cost))

    # -- hand-over and attachment -------------------------------------------------------------

    def _hand_over(self, lives: Iterable[BatchLife]) -> None:
        for life in lives:
            batch = life.batch
            if batch.count and self._is_told:
                answer = self.hooks.call("pvmm_make_readonly", boot=self.boot, tables=batch)
                cost = contract.cost("pvmm_make_readonly", self.mode, answer, batch.by_level)
                if cost is not None:
                    for run in batch.runs:
                        self.now.ledger.set_readonly(*run.pfns, readonly=True)
                    self._emit(MadeReadonly(batch, cost))
                answer = self.hooks.call("pvmm_pin_tables", boot=self.boot, tables=batch)
                cost = contract.cost("pvmm_pin_tables", self.mode, answer, batch.by_level)
                if cost is not None:
                    life.pinned = frozenset(cost.pinned)
                    self._emit(TablesPinned(batch, cost))
            self.now.handed_over.add(batch.index)

    def _attach(self, life: BatchLife, order: HandOver) -> None:
        """Write the entries that make a batch part of the tree."""
        batch = life.batch
        for entries in life.links:
            self._write(batch, TABLE, entries.level, entries.count, entries.owner)
        self.now.attached.add(batch.index)
        self._now_reachable(life.plan)
        if batch.count:
            levels = batch.by_level.items() if self.state.typed else ()
            validated = tuple([row for row in levels if row[0] not in life.pinned])
            self._emit(TablesAttached(batch, order, validated))

    def _are_attached(self, entries: Iterable[EntryCount]) -> bool:
        return self.now.attached.issuperset([one.owner for one in entries])

    def _wait(self, life: BatchLife) -> None:
        """Leave a batch unattached. (Without tables of its own it fills tables that wait.)"""
        # Under a parent that waits too the entry is written now; others are what attaches it.
        links = []
        for entries in life.links:
            if entries.owner in self.now.attached:
                links.append(entries)
            else:
                self._write(life.batch, TABLE, entries.level, entries.count, entries.owner)
        life.links = tuple(links)
        self.now.pending.append(life)

    # -- the other steps ----------------------------------------------------------------------

    def _new_root(self, step: NewRoot) -> StepResult:
        level = self.mode.root_level
        everything = (0, self.mode.table_span(level))
        pages = self._allocate(step, TableDemand(*everything, ((level, 1),)))
        self._root = Batch(
            index=self.now.next_index,
            mode=self.mode,
            start=everything[0],
            end=everything[1],
            spans={level: (everything,)},
            leaf_levels=(),
            pages=pages,
        )
        self.now.tree.start_anew(self._root.index)
        self._tree_is_live = False
        self.now.pending.append(self._born(self._root))
        return StepResult(tables=1)

    def _hand_over_waiting(self, _step: HandOverTables) -> StepResult:
        waiting = [life for life in self.now.pending if life.batch.count]
        lives = [life for life in waiting if life.batch.index not in self.now.handed_over]
        self._hand_over(lives)
        return StepResult(tables=_tables(lives))

    def _attach_waiting(self, _step: AttachTables) -> StepResult:
        lives, self.now.pending = self.now.pending, []
        for life in lives:
            self._attach(life, LATER)
        return StepResult(tables=_tables(lives))

    def _activate(self, _step: ActivateRoot) -> StepResult:
        answer = self.hooks.call("pvmm_activate_cr3", boot=self.boot, root=self._root)
        cost = contract.cost("pvmm_activate_cr3", self.mode, answer) or _LOADED
        if not self._tree_is_live:
            self._tree_is_live = True
            self.now.reachable.empty()
            self.now.reachable.update(self.now.tree.mapped())
        self._emit(RootActivated(self._root, cost))
        return StepResult()


_ACTIONS: Mapping[type, Callable[[_Run, Any], StepResult]] = {
    Map: _Run._map,
    NewRoot: _Run._new_root,
    HandOverTables: _Run._hand_over_waiting,
    AttachTables: _Run._attach_waiting,
    ActivateRoot: _Run._activate,
}
"""What each kind of step does."""


def _tell(hooks: Hooks, events: list[Event], event: Event) -> None:
    events.append(event)
    hooks.observe(event)


def _tables(lives: Iterable[BatchLife]) -> int:
    return sum([life.batch.count for life in lives])
