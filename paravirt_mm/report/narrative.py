"""A trace as a story: one line an event, grouped by step, bounded in length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from paravirt_mm.counted import counted
from paravirt_mm.engine.answers import Way
from paravirt_mm.engine.pages import PageRun
from paravirt_mm.engine.steps import Map, Step
from paravirt_mm.engine.trace import (
    EntriesWritten,
    MadeReadonly,
    MadeWritable,
    OperationRejected,
    Panicked,
    RangeMapped,
    RangeSplit,
    RootActivated,
    StepStarted,
    SurplusReleased,
    TablesAllocated,
    TablesPinned,
    TablesReserved,
    Trace,
)
from paravirt_mm.printable import printable
from paravirt_mm.report.values import size

MAX_LINES = 400


def narrate(trace: Trace) -> list[str]:
    """Return a line for each event worth one; a long run is cut in the middle, and says so."""
    lines = [text for _, text in numbered_lines(trace)]
    if len(lines) <= MAX_LINES:
        return lines
    half = MAX_LINES // 2
    left_out = len(lines) - 2 * half
    return [
        *lines[:half],
        f"   ... {counted(left_out, 'line')} left out; --trace has them ...",
        *lines[-half:],
    ]


def numbered_lines(trace: Trace) -> Iterator[tuple[int, str]]:
    """Yield the number of each event worth a line, and its line."""
    page_name = trace.start.machine.mode.page_name if trace.begun else str
    for number, event in enumerate(trace):
        describe = _WORDS.get(type(event))
        text = describe(event, page_name) if describe else ""
        if text:
            indent = "" if isinstance(event, StepStarted) else "    "
            yield number, f"[{number:>4}] {indent}{text}"


def describe_step(step: Step) -> str:
    """Return a step in one line."""
    if isinstance(step, Map):
        what = f"map {step.start:#x}-{step.end:#x}"
        return f"{what} ({printable(step.label)})" if step.label else what
    return printable(step.label)


_PageName = Callable[[int], str]
"""What the pages of a level are called."""


def _split(event: RangeSplit, page_name: _PageName) -> str:
    if len(event.pieces) < 2:
        return ""
    return "split: " + ", ".join(
        f"{piece.start:#x}-{piece.end:#x} {page_name(piece.level)}" for piece in event.pieces
    )


def _allocated(event: TablesAllocated, _: _PageName) -> str:
    levels = ", ".join(f"{n} L{level}" for level, n in event.batch.by_level.items())
    parts = event.batch.pages
    sources = "; ".join(f"{_pages((part.run,))} from {part.source}" for part in parts[:4])
    return f"tables: {levels}: {sources}{' ...' if len(parts) > 4 else ''}"


def _written(event: EntriesWritten, _: _PageName) -> str:
    if event.cost.way is Way.DIRECT and not event.cost.hypercalls:
        return ""
    return f"{event.count} L{event.level} {event.kind} entries, {event.cost.way}"


def _mapped(event: RangeMapped, page_name: _PageName) -> str:
    leaves = event.leaves
    readonly = sum(high - low for low, high in event.readonly)
    note = f", {size(readonly)} of it read-only" if readonly else ""
    return f"mapped {leaves.start:#x}-{leaves.end:#x} with {page_name(leaves.level)} pages{note}"


def _pinned(event: TablesPinned, _: _PageName) -> str:
    return "pinned " + ", ".join(f"{n} L{level}" for level, n in event.cost.pinned.items())


_WORDS: Mapping[type, Callable[[Any, _PageName], str]] = {
    StepStarted: lambda event, _: f"step {event.number}: {describe_step(event.step)}",
    RangeSplit: _split,
    TablesReserved: lambda event, _: f"set aside for tables: {_pages(event.pages)}",
    TablesAllocated: _allocated,
    EntriesWritten: _written,
    RangeMapped: _mapped,
    MadeReadonly: lambda event, _: f"{event.batch.count} tables made read-only",
    TablesPinned: _pinned,
    RootActivated: lambda _event, _: "CR3 loaded",
    SurplusReleased: lambda event, _: f"given back unused: {_pages(event.pages)}",
    MadeWritable: lambda event, _: (
        f"{_pages(event.pages)} made writable, {event.flipped} of them again"
    ),
    Panicked: lambda event, _: f"panic: {printable(event.reason)}",
    OperationRejected: lambda event, _: f"refused: {printable(event.operation)}, {event.code}",
}
"""What an event says; nothing: it is not worth a line."""


def _pages(runs: tuple[PageRun, ...]) -> str:
    parts = []
    for run in runs[:4]:
        low, high = run.span
        arrow = "" if run.step > 0 or run.count == 1 else " downward"
        parts.append(f"{run.count} at {low:#x}-{high:#x}{arrow}")
    return ", ".join(parts) + (" ..." if len(runs) > 4 else "")
