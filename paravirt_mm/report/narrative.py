"""A trace as a story: one line an event, grouped by step, bounded in length."""

from __future__ import annotations

from collections.abc import Iterator

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
    lines = list(_lines(trace))
    if len(lines) <= MAX_LINES:
        return lines
    half = MAX_LINES // 2
    left_out = len(lines) - 2 * half
    return [
        *lines[:half],
        f"   ... {left_out} lines left out; --trace has them ...",
        *lines[-half:],
    ]


def _lines(trace: Trace) -> Iterator[str]:
    mode = trace.start.machine.mode if trace.begun else None
    for number, event in enumerate(trace):
        text = _describe(event, mode)
        if text:
            indent = "" if isinstance(event, StepStarted) else "    "
            yield f"[{number:>4}] {indent}{text}"


def describe_step(step: Step) -> str:
    """Return a step in one line."""
    if isinstance(step, Map):
        what = f"map {step.start:#x}-{step.end:#x}"
        return f"{what} ({printable(step.label)})" if step.label else what
    return printable(step.label)


def _describe(event: object, mode: object) -> str | None:
    match event:
        case StepStarted():
            return f"step {event.number}: {describe_step(event.step)}"
        case RangeSplit() if len(event.pieces) > 1:
            name = getattr(mode, "page_name", str)
            return "split: " + ", ".join(
                f"{piece.start:#x}-{piece.end:#x} {name(piece.level)}" for piece in event.pieces
            )
        case TablesReserved():
            return f"set aside for tables: {_pages(event.pages)}"
        case TablesAllocated():
            levels = ", ".join(f"{n} L{level}" for level, n in event.batch.by_level.items())
            sources = "; ".join(
                f"{_pages((part.run,))} from {part.source}" for part in event.batch.pages[:4]
            )
            more = " ..." if len(event.batch.pages) > 4 else ""
            return f"tables: {levels}: {sources}{more}"
        case EntriesWritten() if event.cost.hypercalls or event.cost.way != "direct":
            return f"{event.count} L{event.level} {event.kind} entries, {event.cost.way}"
        case RangeMapped():
            name = getattr(mode, "page_name", str)
            readonly = sum(high - low for low, high in event.readonly)
            note = f", {size(readonly)} of it read-only" if readonly else ""
            leaves = event.leaves
            return f"mapped {leaves.start:#x}-{leaves.end:#x} with {name(leaves.level)} pages{note}"
        case MadeReadonly():
            return f"{event.batch.count} tables made read-only"
        case TablesPinned():
            return "pinned " + ", ".join(f"{n} L{level}" for level, n in event.cost.pinned.items())
        case RootActivated():
            return "CR3 loaded"
        case SurplusReleased():
            return f"given back unused: {_pages(event.pages)}"
        case MadeWritable():
            return f"{_pages(event.pages)} made writable, {event.flipped} of them again"
        case Panicked():
            return f"panic: {printable(event.reason)}"
        case OperationRejected():
            return f"refused: {printable(event.operation)}, {event.code}"
        case _:
            return None


def _pages(runs: tuple[PageRun, ...]) -> str:
    parts = []
    for run in runs[:4]:
        low, high = run.span
        arrow = "" if run.step > 0 or run.count == 1 else " downward"
        parts.append(f"{run.count} at {low:#x}-{high:#x}{arrow}")
    return ", ".join(parts) + (" ..." if len(runs) > 4 else "")
