"""The trace: everything that happened in a run, in order, as small immutable events.

Figures, invariants and replays are derived from it and from nothing else. An event's number is its
place in `Trace.events`. All ranges are bytes with exclusive ends unless a field says pfn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import attrs

from paravirt_mm.engine.answers import Cost, EntryKind
from paravirt_mm.engine.pages import PageRun, TablePages
from paravirt_mm.engine.split import Piece
from paravirt_mm.engine.steps import HandOver, Step
from paravirt_mm.engine.tables import Batch, Leaves
from paravirt_mm.frozen import frozen
from paravirt_mm.machine.model import BootState, Machine


@attrs.frozen
class RunStarted:
    """The first event: what the run is about; ``promised`` is what the allocator will map."""

    machine: Machine
    boot: BootState
    allocator: str
    backend: str
    promised: tuple[tuple[int, int], ...]


@frozen
class StepStarted:
    """The allocator's generator yielded a step."""

    number: int
    step: Step


@frozen
class RangeSplit:
    """A range was split by page size."""

    start: int
    end: int
    pieces: tuple[Piece, ...]


@attrs.frozen
class TablesReserved:
    """The allocator set pages aside for tables."""

    pages: tuple[PageRun, ...]


@attrs.frozen
class MemoryTaken:
    """The platform took memory away (bytes), between two steps."""

    spans: tuple[tuple[int, int], ...]


@attrs.frozen
class PagesTaken:
    """Pages were taken for tables of a piece before one was missing: a panic follows."""

    pages: tuple[TablePages, ...]


@frozen
class TablesAllocated:
    """Pages became the tables of a batch; nothing is written to them yet."""

    batch: Batch


@frozen
class EntriesWritten:
    """Entries of one kind were stored into tables of ``level``.

    ``owner`` is the batch whose tables they went into (-1: tables that exist since boot).
    """

    batch: int
    level: int
    kind: EntryKind
    count: int
    owner: int
    cost: Cost


@frozen
class RangeMapped:
    """Leaf entries map ``leaves``; of these bytes, ``readonly`` ranges are mapped without RW."""

    leaves: Leaves
    readonly: tuple[tuple[int, int], ...]


@frozen
class MadeReadonly:
    """Tables of a batch were made read-only."""

    batch: Batch
    cost: Cost


@frozen
class TablesPinned:
    """Tables of a batch were pinned: ``cost.pinned`` tells how many of which level."""

    batch: Batch
    cost: Cost


@frozen
class TablesAttached:
    """A batch became part of the tree; tables that a typed platform did not pin are validated by
    it.

    ``order``: `HandOver.EACH` means that the last hand-over events and this attachment went
    table by table, children first. ``validated``: levels and how many tables of each; a new root
    is among them, although no entry refers to it and loading CR3 is what pins it
    (`RootActivated`): whoever counts takes it off again.
    """

    batch: Batch
    order: HandOver
    validated: tuple[tuple[int, int], ...]


@attrs.frozen
class RootActivated:
    """CR3 was loaded. ``batch`` holds the root (None: the root that exists since boot)."""

    batch: Batch | None
    cost: Cost


@attrs.frozen
class SurplusReleased:
    """Pages that were set aside and not used were given back."""

    pages: tuple[PageRun, ...]


@attrs.frozen
class MadeWritable:
    """Pages were made writable again; ``flipped`` of them were not."""

    pages: tuple[PageRun, ...]
    flipped: int
    cost: Cost


@attrs.frozen
class Panicked:
    """The modelled kernel gave up; it needed ``missing_tables`` pages beyond its reservation."""

    reason: str
    missing_tables: int = 0


@attrs.frozen
class OperationRejected:
    """The platform refused an operation."""

    operation: str
    code: int


@attrs.frozen
class RunFinished:
    """The last event of a run that came to its end: memblock's reservations."""

    reserved: tuple[tuple[int, int], ...]


Event = (
    RunStarted
    | StepStarted
    | RangeSplit
    | TablesReserved
    | PagesTaken
    | MemoryTaken
    | TablesAllocated
    | EntriesWritten
    | RangeMapped
    | MadeReadonly
    | TablesPinned
    | TablesAttached
    | RootActivated
    | SurplusReleased
    | MadeWritable
    | Panicked
    | OperationRejected
    | RunFinished
)


_Kind = TypeVar("_Kind")


@attrs.frozen(init=False)
class Trace:
    """The events of one run, in order."""

    events: tuple[Event, ...]

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.__attrs_init__(tuple(events))

    @property
    def start(self) -> RunStarted:
        """The first event. Raises LookupError when the run failed before it."""
        first = self.events[0] if self.events else None
        if not isinstance(first, RunStarted):
            raise LookupError("the trace has no start")
        return first

    @property
    def begun(self) -> bool:
        """Whether the run came as far as its start: the platform took the domain."""
        return bool(self.events) and isinstance(self.events[0], RunStarted)

    @property
    def ended_early(self) -> Panicked | OperationRejected | None:
        """What cut the run short; None: it came to its end."""
        # Behind it stands only the event that tells how memory was left.
        for event in self.events[-2:]:
            if isinstance(event, (Panicked, OperationRejected)):
                return event
        return None

    def of(self, kind: type[_Kind]) -> Iterator[_Kind]:
        """Yield the events of a kind, in order."""
        return (event for event in self.events if isinstance(event, kind))

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def __len__(self) -> int:
        return len(self.events)
