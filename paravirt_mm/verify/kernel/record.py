"""What a run did, as a record of the kind that real kernel code leaves in an oracle file.

`measured` runs a scenario and takes the record. Where the modelled kernel panics in the middle of a
range, the engine has no tables of the piece at fault, but the kernel does: it stops at the first
table that it cannot have. `_Watch` notes what was taken by then, and `_interrupted` works out how
far the walk had come.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import attrs

from paravirt_mm.engine.boot import Boot
from paravirt_mm.engine.build import Hooks
from paravirt_mm.engine.pages import PageRun, Source, TablePages
from paravirt_mm.engine.panic import KernelPanic
from paravirt_mm.engine.steps import Map, TableDemand
from paravirt_mm.engine.tables import BOOT_TREE, Batch, MapPlan, TableRun
from paravirt_mm.engine.trace import (
    Event,
    Panicked,
    RangeSplit,
    RootActivated,
    RunFinished,
    TablesAllocated,
    TablesReserved,
    Trace,
)
from paravirt_mm.errors import InputError, SpecError
from paravirt_mm.machine.model import Machine, Span
from paravirt_mm.machine.paging import PAGE_SHIFT, PagingMode
from paravirt_mm.machine.ranges import RangeSet
from paravirt_mm.offers import model_of_platform
from paravirt_mm.registry import Registry, default_registry
from paravirt_mm.run import Outcome, Run
from paravirt_mm.scenario import Scenario

MAX_TABLES = 1 << 22
"""16 GiB of tables; no more are listed one by one."""

Table = tuple[int, int, int]
"""(level, pfn, physical address that the table maps from)."""


@attrs.frozen
class Call:
    """One range handed to the mapper, and its pieces ``(start, end, page size name)``."""

    start: int
    end: int
    ranges: tuple[tuple[int, int, str], ...]


@attrs.frozen
class Guess:
    """The block ``[start, top)`` of one call; ``used_end``: end of what became tables (or None)."""

    start: int
    top: int
    used_end: int | None


@attrs.frozen
class Record:
    """What a kernel did to a machine. Numbers are bytes unless a name says pfn; ends exclusive.

    Fields have the names and the meaning of an oracle file's; None: the file does not say.
    ``tables`` are sorted, ``hook_order`` is as they were handed to the paravirt hook. A file lists
    a few hundred of them at the most, and always gives the hashes. A record ends when the map
    is complete: ``panic`` is one before that.
    """

    panic: str | None = None
    steps: tuple[Call, ...] | None = None
    guess: tuple[Guess, ...] | None = None
    brk_tables: tuple[Span, ...] | None = None
    table_count: dict[str, int] | None = None
    tables: tuple[Table, ...] | None = None
    tables_sha256: str | None = None
    hook_order: tuple[tuple[int, int], ...] | None = None
    hook_order_sha256: str | None = None
    leaf_runs: tuple[tuple[int, int, int], ...] | None = None
    reserved_after: tuple[Span, ...] | None = None


def measured(
    machine: Machine, spec: str, registry: Registry | None = None, where: str = ""
) -> tuple[Run, Record]:
    """Run an allocator natively on a machine, which stands at ``where``; return the run and its
    record.

    Raises `SpecError` for a wrong spec, InputError where the machine needs more than `MAX_TABLES`.
    A run whose verdict is ``error`` gives an empty record.
    """
    registry = registry or default_registry()
    backend = model_of_platform(registry, "native", None, machine.mode.name)
    if backend is None:
        raise SpecError("no installed plugin models the native platform")
    watch = _Watch()
    run = Scenario.of(machine, spec, backend).run(registry, through=watch.over)
    if watch.boot is None or run.verdict.outcome is Outcome.ERROR:
        return run, Record()
    if watch.boot.tables_made > MAX_TABLES:
        raise InputError(
            f"machine {machine.name!r} needs {watch.boot.tables_made} tables;"
            f" more than {MAX_TABLES} are not compared one by one",
            where,
        )
    return run, _record(run, watch.boot, watch.stopped)


@attrs.frozen
class _Stopped:
    """A piece whose tables ran out: what mapping it takes, and the pages it got before that."""

    plan: MapPlan
    demand: TableDemand
    pages: tuple[TablePages, ...]


@attrs.define
class _Watch:
    """Between engine and plugins: keeps the state of the run, and what a panic interrupts."""

    hooks: Hooks = attrs.field(init=False)
    boot: Boot | None = None
    stopped: _Stopped | None = None

    def over(self, hooks: Hooks) -> Hooks:
        """Return the hooks to use instead of the given ones."""
        self.hooks = hooks
        return self

    def observe(self, event: Event) -> None:
        """Pass it on."""
        self.hooks.observe(event)

    def answers(self, hook: str) -> bool:
        """Pass it on."""
        return self.hooks.answers(hook)

    def call(self, hook: str, **arguments: Any) -> Any:
        """Pass it on; where the pages for tables do not suffice, keep those that there were."""
        if hook == "pvmm_promise":
            self.boot = arguments["boot"]
        try:
            return self.hooks.call(hook, **arguments)
        except KernelPanic as panic:
            if hook == "pvmm_allocate_tables" and isinstance(arguments["step"], Map):
                self.stopped = self._stopped(**arguments, panic=panic)
            raise

    def _stopped(self, boot: Boot, step: Map, demand: TableDemand, panic: KernelPanic) -> _Stopped:
        piece = next(part for part in boot.split(step) if part.start == demand.start)
        plan = boot.tree.plan(piece.start, piece.end, piece.level, boot.fillable(step))
        return _Stopped(plan, demand, panic.taken)


def _record(run: Run, boot: Boot, stopped: _Stopped | None) -> Record:
    mode, trace = boot.mode, run.trace
    batches = [event.batch for event in trace.of(TablesAllocated)]
    tables = [table for batch in batches for table in _tables(batch.walk_order(), mode)]
    hooks = [table for batch in batches for table in _tables(batch.completion_order(), mode)]
    brk = list(_brk_pages(part for batch in batches for part in batch.pages))
    reserved = RangeSet(span for end in trace.of(RunFinished) for span in end.reserved)
    leaves = {level: RangeSet(boot.tree.leaves(level)) for level in boot.tree.leaf_levels}
    if stopped is not None:
        more, handed_over = _interrupted(stopped, boot, leaves)
        tables += more
        hooks += handed_over
        brk += _brk_pages(stopped.pages)
    tables.sort()
    counts = Counter(level for level, _, _ in tables)
    order = [(level, pfn) for level, pfn, _ in hooks]
    return Record(
        panic=_panic(trace),
        steps=tuple(_calls(trace, mode)),
        guess=tuple(_guesses(trace)),
        brk_tables=tuple(brk),
        table_count={f"L{level}": counts[level] for level in range(1, mode.root_level)},
        tables=tuple(tables),
        tables_sha256=_sha256(f"{level} {pfn:x} {va:x}" for level, pfn, va in tables),
        hook_order=tuple(order),
        hook_order_sha256=_sha256(f"{level} {pfn:x}" for level, pfn in order),
        leaf_runs=tuple(sorted((*span, level) for level, runs in leaves.items() for span in runs)),
        reserved_after=tuple(reserved),
    )


def _panic(trace: Trace) -> str | None:
    """Return the last words of a kernel that panics before its direct map is complete."""
    for event in trace:
        if isinstance(event, RootActivated):
            return None
        if isinstance(event, Panicked):
            return event.reason
    return None


def _calls(trace: Trace, mode: PagingMode) -> Iterator[Call]:
    for event in trace.of(RangeSplit):
        pieces = tuple((p.start, p.end, mode.page_name(p.level)) for p in event.pieces)
        yield Call(event.start, event.end, pieces)


def _guesses(trace: Trace) -> list[Guess]:
    """Return the blocks that were set aside, and how far tables came to fill them."""
    guesses: list[Guess] = []
    for event in trace:
        if isinstance(event, TablesReserved):
            guesses.append(Guess(*event.pages[0].span, None))
        elif isinstance(event, TablesAllocated):
            for part in event.batch.pages:
                if part.source is Source.RESERVATION:
                    guesses[-1] = attrs.evolve(guesses[-1], used_end=part.run.span[1])
    return guesses


def _brk_pages(parts: Iterable[TablePages]) -> Iterator[Span]:
    """Yield the pages of brk, one by one."""
    for part in parts:
        if part.source is Source.BRK:
            yield from _pages(part.run)


def _interrupted(
    stopped: _Stopped, boot: Boot, leaves: dict[int, RangeSet]
) -> tuple[list[Table], list[Table]]:
    """Return the tables of a piece that a panic cut short: those in the tree, those handed over.

    The walk stops at the first table without a page. Its new ancestors are not attached, so nothing
    below the highest of them is in the tree; whatever is finished by then has been handed over. The
    leaf entries that are in the tree are added to ``leaves``.
    """
    mode, plan = boot.mode, stopped.plan
    taken = _walk(plan, stopped.pages, mode)
    enough = (TablePages(PageRun(0, stopped.demand.count), Source.MEMBLOCK),)
    missing = _walk(plan, enough, mode)[len(taken)]
    finished: list[Table] = []
    hidden: list[Table] = []
    for level, pfn, base in taken:
        done = base + mode.table_span(level) <= missing[2]
        (finished if done else hidden).append((level, pfn, base))
    _, _, cut = [*hidden, missing][0]
    for leaf in plan.replaced:
        leaves[leaf.level].discard(leaf.start, cut)  # all of them give way
    for leaf in plan.leaves:
        leaves[leaf.level].add(leaf.start, min(leaf.end, cut))
    finished.sort(key=lambda table: (table[2] + mode.table_span(table[0]), table[0]))
    return [table for table in finished if table[2] < cut], finished


def _walk(plan: MapPlan, pages: tuple[TablePages, ...], mode: PagingMode) -> list[Table]:
    """Return a plan's tables in the order in which the kernel takes pages, as far as they go."""
    batch = Batch(BOOT_TREE, mode, plan.start, plan.end, plan.spans, (), pages)
    return _tables(batch.walk_order(), mode)


def _pages(run: PageRun) -> list[Span]:
    return [(pfn << PAGE_SHIFT, (pfn + 1) << PAGE_SHIFT) for pfn in range(run.low, run.high)]


def _tables(runs: Iterable[TableRun], mode: PagingMode) -> list[Table]:
    """Return single tables, in the order of the runs."""
    return [
        (run.level, run.pfn + n * run.step, run.base + n * mode.table_span(run.level))
        for run in runs
        for n in range(run.count)
    ]


def _sha256(lines: Iterable[str]) -> str:
    """Return the hash of lines joined by newlines, without holding them all."""
    digest = hashlib.sha256()
    rest = iter(lines)
    separator = ""
    while chunk := list(islice(rest, 1 << 16)):
        digest.update((separator + "\n".join(chunk)).encode())
        separator = "\n"
    return digest.hexdigest()
