"""What there is to see of a run: where everything lies in memory, and what each step changes.

A `Scene` is derived from a run's trace alone. It is made of plain numbers and bounded texts, so
that it can be drawn, or written into a page as JSON, whatever the machine: ranges are bytes with
exclusive ends, runs of tables are pages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import IntEnum
from functools import singledispatchmethod
from itertools import pairwise

import attrs

from paravirt_mm.counted import counted
from paravirt_mm.engine.pages import PageRun
from paravirt_mm.engine.steps import NewRoot
from paravirt_mm.engine.tables import Batch
from paravirt_mm.engine.trace import (
    Event,
    MadeReadonly,
    RangeMapped,
    RootActivated,
    RunStarted,
    StepStarted,
    SurplusReleased,
    TablesAllocated,
    TablesAttached,
    TablesPinned,
    TablesReserved,
    Trace,
)
from paravirt_mm.machine.model import Machine, Span
from paravirt_mm.machine.paging import GIB, MIB, PAGE_SHIFT
from paravirt_mm.machine.ranges import RangeSet
from paravirt_mm.run import Run
from paravirt_mm.view.story import Chapter, below_root, bounded, chapters, merged

LINES: tuple[tuple[int, str], ...] = (
    (MIB, "1M"),
    (16 * MIB, "16M"),
    (896 * MIB, "896M"),
    (4 * GIB, "4G"),
)
"""Where low memory ends, for whom: real mode, ISA DMA, 32-bit lowmem, 32-bit DMA."""

MAX_FRAMES = 32
"""Steps that are kept apart; of a longer run those in the middle become one frame."""
MAX_RANGES = 160
"""Ranges of one kind that are kept apart in a frame; more are joined across their smallest gaps."""
MAX_UPPER = 300
"""Tables above L1 in a batch up to which each run of tables of a level is kept apart."""
MIXED = 0
"""The level of a run that holds tables of several levels."""
MAX_NAME = 80
"""Longest name, in characters."""


class Status(IntEnum):
    """What the platform makes of a table."""

    BUILT = 0
    """Filled, or being filled; nothing refers to it."""
    READONLY = 1
    """Mapped without RW, not yet known to the hypervisor as a table."""
    PINNED = 2
    """Checked, and kept as a table by an explicit pin."""
    VALIDATED = 3
    """Checked, because a parent refers to it."""
    ATTACHED = 4
    """Part of the tree, on a platform that does not type pages."""


@attrs.frozen
class TableArea:
    """``count`` page-table pages of ``level`` (`MIXED`: several) between pfns ``low`` and ``high``
    (exclusive). Where many runs are drawn as one, other pages lie between them.
    """

    batch: int
    level: int
    low: int
    high: int
    count: int

    @property
    def span(self) -> Span:
        """The bytes from the first table to the last."""
        return self.low << PAGE_SHIFT, self.high << PAGE_SHIFT


@attrs.frozen
class StatusChange:
    """Tables of ``level`` of a batch (`MIXED`: of every level) have ``status`` from now on."""

    batch: int
    level: int
    status: Status


@attrs.frozen
class Frame:
    """What one step changed, and the words for it.

    ``mapped`` holds (start, end, level of the entries); ``reserved`` and ``released`` the bytes
    that were set aside for tables and given back; ``switched`` tells that the boot tables are
    obsolete.
    """

    chapter: Chapter
    mapped: tuple[tuple[int, int, int], ...]
    tables: tuple[TableArea, ...]
    changes: tuple[StatusChange, ...]
    reserved: tuple[Span, ...]
    released: tuple[Span, ...]
    switched: bool


@attrs.frozen
class Scene:
    """A run to look at.

    ``placed`` names what lies in memory before the first step, ``premapped`` what of the direct map
    exists by then, in a tree that the run goes on with; ``idle`` holds the bytes that were set
    aside for tables and did not become any.
    """

    allocator: str
    backend: str
    placed: tuple[tuple[str, Span], ...]
    premapped: tuple[Span, ...]
    boot_tables: tuple[Span, ...]
    promised: tuple[Span, ...]
    idle: tuple[Span, ...]
    frames: tuple[Frame, ...]

    @property
    def end(self) -> int:
        """Where the highest thing to be seen ends, in bytes."""
        ends = [high for _, high in self.promised]
        ends += [high for _, (_, high) in self.placed]
        return max(ends, default=0)

    def tables(self) -> Iterator[TableArea]:
        """Yield every run of tables."""
        for frame in self.frames:
            yield from frame.tables


def placed(machine: Machine) -> tuple[tuple[str, Span], ...]:
    """Return what a machine's log says of places: kernel, brk, initrd."""
    kernel = machine.kernel
    parts = [("kernel", (kernel.start, kernel.end)), ("brk", (kernel.brk_start, kernel.brk_end))]
    if machine.initrd is not None:
        parts.append(("initrd", machine.initrd))
    return tuple((name, span) for name, span in parts if span[0] < span[1])


def scene(run: Run) -> Scene:
    """Return what there is to see of a run; a run that failed at once has no frames."""
    return _scene(run, lambda typed: _frames(chapters(run), run.trace, typed=typed))


def outline(run: Run) -> Scene:
    """Return what one line can show of a run: its steps as one frame, tables of all levels alike.

    No sentence is made, and no table looked for one by one.
    """
    events = run.trace.events
    all_of_it = Chapter(0, None, "the run", (), 0, len(events) - 1, 0)

    def frames(typed: bool) -> Iterator[Frame]:
        if events:
            yield _Taker(typed=typed, apart=False).frame(all_of_it, events)

    return _scene(run, frames)


def _scene(run: Run, frames: Callable[[bool], Iterable[Frame]]) -> Scene:
    start = next((event for event in run.trace if isinstance(event, RunStarted)), None)
    anew = any(isinstance(event.step, NewRoot) for event in run.trace.of(StepStarted))
    return Scene(
        allocator=str(run.allocator),
        backend=str(run.backend),
        placed=_placed_by_platform(start) if start else placed(run.machine),
        premapped=tuple(merged(start.boot.direct_mapped)) if start and not anew else (),
        boot_tables=tuple(merged(start.boot.boot_tables)) if start else (),
        promised=tuple(merged(start.promised)) if start else (),
        idle=tuple(_idle(run.trace)),
        frames=tuple(frames(bool(start and start.boot.typed))),
    )


def _idle(trace: Trace) -> Iterator[Span]:
    held = RangeSet(run.span for event in trace.of(TablesReserved) for run in event.pages)
    tables = RangeSet(run.span for event in trace.of(TablesAllocated) for run in event.batch.runs)
    yield from held.difference(tables)


def _placed_by_platform(start: RunStarted) -> tuple[tuple[str, Span], ...]:
    """Return what lies in memory before the first step: the platform's own names go first."""
    if not start.boot.places:
        kernel = start.boot.kernel_of(start.machine)
        return placed(attrs.evolve(start.machine, kernel=kernel))
    kernel = start.boot.kernel_of(start.machine)
    named = [(bounded(name, MAX_NAME).rstrip(":"), span) for name, span in start.boot.places[:24]]
    if kernel.brk_start < kernel.brk_end:
        named.append(("brk", (kernel.brk_start, kernel.brk_end)))
    return tuple(named)


def _frames(told: Sequence[Chapter], trace: Trace, *, typed: bool) -> Iterator[Frame]:
    """Yield a frame a chapter; of too many, those in the middle as one."""
    events = trace.events
    middle = range(0)
    if len(told) > MAX_FRAMES:
        head = MAX_FRAMES * 2 // 3
        middle = range(head, len(told) - (MAX_FRAMES - head - 1))
    for number, chapter in enumerate(told):
        if number not in middle:
            yield _Taker(typed=typed).frame(chapter, events)
        elif number == middle.start:
            together = _joined(told[middle.start : middle.stop])
            yield _Taker(typed=typed, apart=False).frame(together, events)


def _joined(told: Sequence[Chapter]) -> Chapter:
    """Return chapters as one."""
    first, last = told[0], told[-1]
    return Chapter(
        number=first.number,
        seed=first.seed,
        title=f"steps {first.number} to {last.number}, together",
        sentences=(
            f"{counted(len(told), 'step')} that this picture does not keep apart; "
            "`paravirt-mm run --trace` has each.",
        ),
        first=first.first,
        last=last.last,
        mapped=last.mapped,
    )


class _Taker:
    """Takes the events of one frame, and keeps what can be drawn. ``apart``: levels and batches are
    told apart.
    """

    def __init__(self, *, typed: bool, apart: bool = True) -> None:
        self._typed = typed
        self._apart = apart
        self.mapped: dict[int, list[Span]] = {}
        self.tables: list[TableArea] = []
        self.changes: list[StatusChange] = []
        self.reserved: list[Span] = []
        self.released: list[Span] = []
        self.switched = False

    def frame(self, chapter: Chapter, events: Sequence[Event]) -> Frame:
        """Take the events of a chapter; return what they change."""
        take = self.take  # looked up once: each look-up of a dispatching method makes one
        for event in events[chapter.first : chapter.last + 1]:
            take(event)
        return Frame(
            chapter=chapter,
            mapped=tuple(
                (low, high, level)
                for level, spans in sorted(self.mapped.items())
                for low, high in thinned(spans)
            ),
            tables=tuple(self.tables if self._apart else _joined_areas(self.tables)),
            changes=tuple(dict.fromkeys(self.changes) if self._apart else self._last_change()),
            reserved=tuple(thinned(self.reserved)),
            released=tuple(thinned(self.released)),
            switched=self.switched,
        )

    def _last_change(self) -> Iterator[StatusChange]:
        """Yield the last change as one of all tables, which are drawn as one batch; without any it
        is one of tables of an earlier frame.
        """
        for change in self.changes[-1:]:
            batch = self.tables[0].batch if self.tables else change.batch
            yield StatusChange(batch, MIXED, change.status)

    @singledispatchmethod
    def take(self, event: Event) -> None:
        """Keep what can be drawn of an event; of most there is nothing."""

    @take.register
    def _(self, event: RangeMapped) -> None:
        leaves = event.leaves
        self.mapped.setdefault(leaves.level, []).append((leaves.start, leaves.end))

    @take.register
    def _(self, event: TablesReserved) -> None:
        self.reserved += [run.span for run in event.pages]

    @take.register
    def _(self, event: SurplusReleased) -> None:
        self.released += [run.span for run in event.pages]

    @take.register
    def _(self, event: TablesAllocated) -> None:
        self.tables += areas(event.batch) if self._apart else _mixed(event.batch)

    @take.register
    def _(self, event: MadeReadonly) -> None:
        self._change(event.batch, (MIXED,), Status.READONLY)

    @take.register
    def _(self, event: TablesPinned) -> None:
        self._change(event.batch, event.cost.pinned, Status.PINNED)

    @take.register
    def _(self, event: TablesAttached) -> None:
        if self._typed:
            levels = (level for level, _ in below_root(event))
            self._change(event.batch, levels, Status.VALIDATED)
        else:
            self._change(event.batch, (MIXED,), Status.ATTACHED)

    @take.register
    def _(self, event: RootActivated) -> None:
        if event.batch is not None:
            self.switched = True
            status = Status.PINNED if event.cost.pinned else Status.ATTACHED
            self._change(event.batch, event.cost.pinned or (MIXED,), status)

    def _change(self, batch: Batch, levels: Iterable[int], status: Status) -> None:
        self.changes += [StatusChange(batch.index, level, status) for level in levels]


def areas(batch: Batch) -> Iterator[TableArea]:
    """Yield a batch's pages as runs of one level each; of a batch with very many tables above L1 as
    runs of several levels.
    """
    upper = sum(count for level, count in batch.by_level.items() if level > 1)
    if upper > MAX_UPPER or len(batch.pages) > MAX_RANGES:
        yield from _joined_areas(list(_mixed(batch)))
        return
    by_level: dict[int, list[Span]] = {}
    for row in batch.walk_order():
        run = PageRun(row.pfn, row.count, row.step)
        by_level.setdefault(row.level, []).append((run.low, run.high))
    for level, pages in by_level.items():
        for low, high in merged(pages):
            yield TableArea(batch.index, level, low, high, high - low)


def _mixed(batch: Batch) -> Iterator[TableArea]:
    """Yield a batch's runs of pages, whatever levels their tables have."""
    for run in batch.runs:
        yield TableArea(batch.index, MIXED, run.low, run.high, run.count)


def _joined_areas(many: Sequence[TableArea]) -> Iterator[TableArea]:
    """Yield areas of several levels, few enough to be drawn, that hold the same tables; they are
    those of the first batch.
    """
    waiting = deque(sorted(many, key=lambda area: area.low))
    for low, high in thinned([(area.low, area.high) for area in waiting]):
        count = 0
        while waiting and waiting[0].low < high:
            count += waiting.popleft().count
        yield TableArea(many[0].batch, MIXED, low, high, count)


def thinned(spans: Iterable[Span], limit: int | None = None) -> list[Span]:
    """Return ranges sorted and joined; of more than ``limit`` (None: `MAX_RANGES`) the smallest
    gaps are closed.
    """
    limit = MAX_RANGES if limit is None else limit
    result = merged(spans)
    if len(result) <= limit:
        return result
    gaps = sorted(
        range(1, len(result)), key=lambda n: result[n][0] - result[n - 1][1], reverse=True
    )
    cuts = [0, *sorted(gaps[: limit - 1]), len(result)]
    return [(result[first][0], result[last - 1][1]) for first, last in pairwise(cuts)]
