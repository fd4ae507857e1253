"""A run told in plain English: one chapter a step, with figures, derived from the trace.

An allocator may number its steps after a design that it follows, by labels of the form
``"5: downward, ..."``; a chapter then carries that number. Texts are bounded in length and hold
nothing that a terminal would act on.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import singledispatchmethod

import attrs

from paravirt_mm.counted import counted
from paravirt_mm.engine.answers import Way
from paravirt_mm.engine.pages import PageRun, Source, page_count
from paravirt_mm.engine.steps import (
    ActivateRoot,
    AttachTables,
    HandOver,
    HandOverTables,
    Map,
    NewRoot,
    Step,
)
from paravirt_mm.engine.trace import (
    EntriesWritten,
    Event,
    MadeReadonly,
    MadeWritable,
    OperationRejected,
    PagesTaken,
    Panicked,
    RangeMapped,
    RootActivated,
    RunFinished,
    RunStarted,
    StepStarted,
    SurplusReleased,
    TablesAllocated,
    TablesAttached,
    TablesPinned,
    TablesReserved,
)
from paravirt_mm.machine.model import Span
from paravirt_mm.machine.paging import PAGE_SIZE
from paravirt_mm.machine.ranges import RangeSet
from paravirt_mm.printable import printable
from paravirt_mm.report.values import size
from paravirt_mm.run import Run

SEVEN_STEPS = {
    1: "map the kernel and its brk, tables from brk",
    2: "map the topmost memory downward until the brk is used up",
    3: "paravirt hook on all tables so far",
    4: "switch to the new tree; the boot tables are obsolete",
    5: "from the last address mapped, downward: tables for what is not mapped yet",
    6: "hook on the new tables, then add them to the tree",
    7: "repeat from step 5",
}
"""The incremental design as proposed on 4 October 2012, in a line each."""

_NUMBERED = re.compile(r"([1-7]): *(.*)", re.DOTALL)
_PLACES = {
    Source.BRK: "the brk",
    Source.MEMBLOCK: "free memory",
    Source.RESERVATION: "what was set aside",
}
MAX_TEXT = 300
"""Longest text that comes from elsewhere (a label, a reason), in characters."""


@attrs.frozen
class Chapter:
    """One step of a run.

    ``seed`` is the step's number in the design that its label names (None: it names none);
    ``first`` and ``last`` are numbers of events; ``mapped`` counts the bytes of the direct map that
    exist after it.
    """

    number: int
    seed: int | None
    title: str
    sentences: tuple[str, ...]
    first: int
    last: int
    mapped: int


def bounded(text: str, limit: int = MAX_TEXT) -> str:
    """Return text that is printable and at most ``limit`` characters long; a mark tells a cut."""
    shown = printable(text, limit)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def span_text(low: int, high: int) -> str:
    """Return a range with its size: 0x1000-0x3000 (8K)."""
    return f"{low:#x}-{high:#x} ({size(high - low)})"


def chapters(run: Run) -> list[Chapter]:
    """Return the chapters of a run: what there is before the first step, then a chapter a step."""
    teller = _Teller()
    tell = teller.tell  # looked up once: each look-up of a dispatching method makes one
    found: list[Chapter] = []
    for number, events in enumerate(_by_step(run)):
        first = events[0][0]
        head = events[0][1]
        teller.begin()
        for _, event in events:
            tell(event)
        seed, title = (
            teller.named(head.step) if isinstance(head, StepStarted) else (None, "before the start")
        )
        found.append(
            Chapter(number, seed, title, tuple(teller.end()), first, events[-1][0], teller.mapped)
        )
    return found


def _by_step(run: Run) -> Iterator[list[tuple[int, Event]]]:
    part: list[tuple[int, Event]] = []
    for number, event in enumerate(run.trace):
        if isinstance(event, StepStarted) and part:
            yield part
            part = []
        part.append((number, event))
    if part:
        yield part


def _levels(counts: Counter[int]) -> str:
    return ", ".join(f"{counts[level]:,} L{level}" for level in sorted(counts) if counts[level])


def _where(runs: Sequence[PageRun]) -> str:
    """Return where pages lie, the first few runs of them."""
    told = [f"{run.span[0]:#x}-{run.span[1]:#x}" for run in runs[:3]]
    more = f" and {counted(len(runs) - 3, 'more place')}" if len(runs) > 3 else ""
    return ", ".join(told) + more


def merged(spans: Iterable[Span]) -> list[Span]:
    """Return ranges sorted, those that touch joined, empty ones left out."""
    return list(RangeSet(sorted(spans)))


class _Teller:
    """Sums up the events of one step, in the words of somebody who explains it."""

    def __init__(self) -> None:
        self._mapped_before = 0
        self._promised = 0
        self._gave_up = False
        self._seen: set[int] = set()
        self.begin()

    def begin(self) -> None:
        """Forget the step before."""
        self._opening: list[str] = []
        self._taken: dict[Source, list[PageRun]] = {}
        self._tables: Counter[int] = Counter()
        self._mapped: Counter[int] = Counter()
        self._mapped_spans: list[Span] = []
        self._mapped_readonly = 0
        self._readonly = 0
        self._pinned: Counter[int] = Counter()
        self._validated: Counter[int] = Counter()
        self._calls: Counter[str] = Counter()
        self._emulated = 0
        self._attached = 0
        self._closing: list[str] = []
        self._done = False

    @property
    def mapped(self) -> int:
        """Bytes of the direct map that exist by now."""
        return self._mapped_before

    def named(self, step: Step) -> tuple[int | None, str]:
        """Return the number of a step in the design that it follows, and its title."""
        found = _NUMBERED.match(step.label)
        if found is None:
            return None, bounded(step.label) or "map"
        seed, text = int(found[1]), bounded(found[2])
        if seed == 5 and 6 in self._seen:
            return 7, f"repeat: {text}"
        self._seen.add(seed)
        return seed, text

    def end(self) -> Iterator[str]:
        """Yield the sentences of the step."""
        yield from self._opening
        for source, runs in self._taken.items():
            pages = page_count(runs)
            yield (
                f"{counted(pages, 'page')} from {_PLACES[source]} "
                f"{'becomes a table' if pages == 1 else 'become tables'}: {_where(runs)}."
            )
        if self._tables:
            yield f"By level: {_levels(self._tables)}."
        if self._mapped_spans:
            total = sum(high - low for low, high in self._mapped_spans)
            self._mapped_before += total
            sizes = ", ".join(f"{size(n)} by L{level} entries" for level, n in self._mapped.items())
            yield f"Maps {size(total)}: {sizes}."
            if self._mapped_readonly:
                pages = self._mapped_readonly // PAGE_SIZE
                yield f"{counted(pages, 'page')} of it {_are(pages)} mapped read-only."
        yield from self._asked_of_the_platform()
        yield from self._closing
        if self._mapped_spans and self._promised:
            share = 100 * self._mapped_before / self._promised
            yield f"So far {size(self._mapped_before)} of the direct map exist ({share:.0f} %)."
        if self._done and not self._gave_up:
            yield "Nothing is left to do."

    def _asked_of_the_platform(self) -> Iterator[str]:
        if self._readonly:
            text = counted(self._readonly, "table", "are")
            yield f"{text} read-only before the platform hears of {_them(self._readonly)}."
        if self._pinned:
            yield f"The hypervisor checks and pins {_levels(self._pinned)}."
        if self._attached:
            yield f"{counted(self._attached, 'table', 'join')} the tree."
        if self._validated:
            yield (
                "The hypervisor checks, because a parent refers to "
                f"{_them(self._validated.total())}: {_levels(self._validated)}."
            )
        if self._emulated:
            stores = counted(self._emulated, "store")
            yield f"{stores} to read-only tables trap and are emulated."
        if self._calls:
            kinds = ", ".join(f"{n:,} {bounded(kind, 40)}" for kind, n in self._calls.items())
            yield f"Asked of the hypervisor: {kinds}."

    @singledispatchmethod
    def tell(self, event: Event) -> None:
        """Take an event into account; one that says nothing to people is passed over."""

    @tell.register
    def _(self, event: RunStarted) -> None:
        self._promised = sum(high - low for low, high in event.promised)
        self._mapped_before = sum(high - low for low, high in event.boot.direct_mapped)
        writable = merged(event.boot.mapped)
        self._opening.append(
            "The boot tables let the kernel write "
            + ", ".join(span_text(*span) for span in writable[:3])
            + (" ..." if len(writable) > 3 else "")
            + "."
        )
        for name, span in event.boot.places[:12]:
            self._opening.append(f"{bounded(name, 60).rstrip(':')}: {span_text(*span)}.")
        if event.boot.typed:
            self._opening.append(
                "Here a page must be read-only and checked by the hypervisor before it may be a "
                "page table."
            )
        pieces = counted(len(merged(event.promised)), "piece")
        self._opening.append(
            f"To be mapped in the end: {size(self._promised)} of memory in {pieces}."
        )

    @tell.register
    def _(self, event: StepStarted) -> None:
        match event.step:
            case Map() as step:
                self._opening.append(f"Map {span_text(step.start, step.end)}.")
            case NewRoot():
                self._opening.append("Start a new tree with a root table of its own.")
                self._mapped_before = 0
            case HandOverTables():
                self._opening.append("Tell the platform of every table that waits for it.")
            case AttachTables():
                self._opening.append("Write the entries that attach what waits to the tree.")
            case ActivateRoot():
                self._opening.append("Load CR3 with the root of the tree.")

    @tell.register
    def _(self, event: TablesReserved) -> None:
        pages = page_count(event.pages)
        self._opening.append(
            f"Set {counted(pages, 'page')} ({size(pages * PAGE_SIZE)}) aside for tables, a "
            f"guess made before the first entry is written: {_where(event.pages)}."
        )

    @tell.register
    def _(self, event: TablesAllocated) -> None:
        for part in event.batch.pages:
            self._taken.setdefault(part.source, []).append(part.run)
        self._tables.update(event.batch.by_level)

    @tell.register
    def _(self, event: PagesTaken) -> None:
        pages = page_count(part.run for part in event.pages)
        self._closing.append(f"{counted(pages, 'page', 'were')} taken before one lacked.")

    @tell.register
    def _(self, event: EntriesWritten) -> None:
        self._calls.update(event.cost.hypercalls)
        if event.cost.way is Way.EMULATED:
            self._emulated += event.count

    @tell.register
    def _(self, event: RangeMapped) -> None:
        leaves = event.leaves
        self._mapped[leaves.level] += leaves.end - leaves.start
        self._mapped_spans.append((leaves.start, leaves.end))
        self._mapped_readonly += sum(high - low for low, high in event.readonly)

    @tell.register
    def _(self, event: MadeReadonly) -> None:
        self._readonly += event.batch.count
        self._calls.update(event.cost.hypercalls)

    @tell.register
    def _(self, event: TablesPinned) -> None:
        self._pinned.update(event.cost.pinned)
        self._calls.update(event.cost.hypercalls)

    @tell.register
    def _(self, event: TablesAttached) -> None:
        self._attached += event.batch.count if event.order is HandOver.LATER else 0
        self._validated.update(dict(below_root(event)))

    @tell.register
    def _(self, event: RootActivated) -> None:
        self._pinned.update(event.cost.pinned)
        self._calls.update(event.cost.hypercalls)
        self._closing.append("The boot tables are obsolete.")

    @tell.register
    def _(self, event: SurplusReleased) -> None:
        pages = page_count(event.pages)
        self._closing.append(
            f"The guess was {counted(pages, 'page')} too large: {_where(event.pages)} "
            f"{'goes' if len(event.pages) == 1 else 'go'} back unused."
        )

    @tell.register
    def _(self, event: MadeWritable) -> None:
        self._calls.update(event.cost.hypercalls)
        if event.flipped:
            self._closing.append(
                f"{counted(event.flipped, 'page')} of it had been made read-only and "
                f"{_are(event.flipped)} made writable again: "
                f"{counted(2 * event.flipped, 'status change')} for nothing."
            )

    @tell.register
    def _(self, event: Panicked) -> None:
        self._gave_up = True
        missing = event.missing_tables
        lack = f"; {counted(missing, 'table')} would have been missing" if missing else ""
        self._closing.append(f"The kernel gives up: {bounded(event.reason)}{lack}.")

    @tell.register
    def _(self, event: OperationRejected) -> None:
        self._gave_up = True
        self._closing.append(f"The platform refuses: {bounded(event.operation)}, {event.code}.")

    @tell.register
    def _(self, event: RunFinished) -> None:
        self._done = True


def below_root(event: TablesAttached) -> Iterator[tuple[int, int]]:
    """Yield the levels whose tables are checked because a parent refers to them, and how many: the
    root has none, and is checked when CR3 is loaded.
    """
    root = event.batch.mode.root_level
    return ((level, count) for level, count in event.validated if level < root)


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _them(count: int) -> str:
    return "it" if count == 1 else "them"
