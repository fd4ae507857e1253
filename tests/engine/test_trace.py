"""What every trace must be, whatever plugins wrote it: ordered, complete, and in agreement with
itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import pairwise, product

import pytest

from paravirt_mm import EntryKind, Outcome, RangeSet, Run, Scenario, Trace
from paravirt_mm.engine.trace import (
    EntriesWritten,
    MadeReadonly,
    RangeMapped,
    RangeSplit,
    RunFinished,
    RunStarted,
    StepStarted,
    TablesAllocated,
    TablesAttached,
    TablesPinned,
)
from paravirt_mm.testing import generate

ALLOCATORS = (
    "legacy_linear:kernel=3.6",
    "legacy_linear:kernel=3.6,good_end=end",
    "incremental:variant=linux,kernel=4.19",
    "incremental:variant=hpa",
)
BACKENDS = ("native", "xen:replay_limit=0")


@cache
def runs() -> list[Run]:
    machines = list(generate(20, seed=31))
    made = [
        Scenario.of(machine, allocator, backend).run()
        for machine in machines
        for allocator in ALLOCATORS
        for backend in BACKENDS
    ]
    return [run for run in made if run.verdict.outcome is Outcome.OK]


def _each(check: Callable[[Run], None]) -> Callable[[str, str], None]:
    """Make a test for each pair of plugins of a check of one run."""

    @pytest.mark.parametrize(("allocator", "backend"), list(product(ALLOCATORS, BACKENDS)))
    def test(allocator: str, backend: str) -> None:
        for run in runs():
            if (str(run.allocator), str(run.backend)) == (allocator, backend):
                try:
                    check(run)
                except BaseException as error:
                    error.add_note(f"on {run.machine.name}")
                    raise

    test.__doc__ = check.__doc__
    return test


def test_enough_runs_end_well() -> None:
    seen = Counter((str(run.allocator), str(run.backend)) for run in runs())
    assert all(seen[allocator, backend] >= 2 for allocator in ALLOCATORS for backend in BACKENDS)


@_each
def test_begins_and_ends(run: Run) -> None:
    events = run.trace.events
    assert isinstance(events[0], RunStarted)
    assert run.trace.start is events[0]
    assert [type(event) for event in events].count(RunStarted) == 1
    assert isinstance(events[-1], RunFinished)
    steps = [event.number for event in events if isinstance(event, StepStarted)]
    assert steps == list(range(1, len(steps) + 1))


@_each
def test_tables_go_through_their_stages_in_order(run: Run) -> None:
    """Allocated, filled, made read-only, pinned, attached: each once, in this order, for every
    batch.
    """
    order = (TablesAllocated, MadeReadonly, TablesPinned, TablesAttached)
    stages: dict[int, list[int]] = {}
    for event in run.trace:
        if isinstance(event, order):
            stages.setdefault(event.batch.index, []).append(order.index(type(event)))
    typed = run.trace.start.boot.typed
    for stage in stages.values():
        assert stage[0] == 0
        assert stage[-1] == 3
        assert all(first < second for first, second in pairwise(stage))
        assert (1 in stage) is typed


@_each
def test_every_entry_is_written_once(run: Run) -> None:
    """As many leaf entries as pages mapped, and one entry for each table but the root."""
    mode = run.machine.mode
    written: Counter[tuple[int, EntryKind]] = Counter()
    wanted: Counter[tuple[int, EntryKind]] = Counter()
    for event in run.trace:
        if isinstance(event, EntriesWritten):
            assert event.count > 0
            written[event.level, event.kind] += event.count
        elif isinstance(event, RangeMapped):
            size = event.leaves.end - event.leaves.start
            level = event.leaves.level
            assert size % mode.entry_span(level) == 0
            wanted[level, EntryKind.LEAF] += size // mode.entry_span(level)
        elif isinstance(event, TablesAllocated):
            for level, count in event.batch.by_level.items():
                if level < mode.root_level:
                    wanted[level + 1, EntryKind.TABLE] += count
    assert written == wanted


@_each
def test_no_page_is_two_tables(run: Run) -> None:
    seen = RangeSet()
    for event in run.trace:
        if isinstance(event, TablesAllocated):
            for pages in event.batch.runs:
                assert not seen.overlaps(pages.low, pages.high)
                seen.add(pages.low, pages.high)


@_each
def test_walk_and_completion_list_the_same_tables(run: Run) -> None:
    """Both orders hold each table once; parents come first in one and last in the other."""
    mode = run.machine.mode
    for event in run.trace:
        if not isinstance(event, TablesAllocated) or event.batch.count > 3000:
            continue
        both = [
            [
                (
                    table.level,
                    table.base + i * mode.table_span(table.level),
                    table.pfn + i * table.step,
                )
                for table in runs
                for i in range(table.count)
            ]
            for runs in (event.batch.walk_order(), event.batch.completion_order())
        ]
        assert sorted(both[0]) == sorted(both[1])
        pages = [r.start + i * r.step for r in event.batch.runs for i in range(r.count)]
        assert [pfn for _, _, pfn in both[0]] == pages
        place = {(level, base): n for n, (level, base, _) in enumerate(both[0])}
        done = {(level, base): n for n, (level, base, _) in enumerate(both[1])}
        for level, base in place:
            parent = level + 1, base - base % mode.table_span(min(level + 1, mode.root_level))
            if parent in place and level < mode.root_level:
                assert place[parent] < place[level, base]
                assert done[parent] > done[level, base]


@_each
def test_pieces_tile_their_range(run: Run) -> None:
    for event in run.trace:
        if isinstance(event, RangeSplit):
            edges = [event.start, *(piece.end for piece in event.pieces)]
            assert [piece.start for piece in event.pieces] == edges[:-1]
            assert edges[-1] == event.end - event.end % 4096


def test_empty_trace() -> None:
    trace = Trace()
    assert len(trace) == 0
    assert list(trace) == []
    with pytest.raises(LookupError, match="no start"):
        _ = trace.start


def test_events_by_kind() -> None:
    trace = runs()[0].trace
    chosen = [*trace.of(RunStarted), *trace.of(RunFinished)]
    assert chosen == [trace.events[0], trace.events[-1]]
