"""Comparing a model of Xen's page typing with real Xen, on fresh traces or on given ones.

This is what ``paravirt-mm verify xen --live`` runs. The model is a function from a trace to its
answers, so that anything that predicts can be compared: the model of this package, a deliberately
wrong one, or answers that were recorded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import attrs

from paravirt_mm_xen.live.session import LiveXen
from paravirt_mm_xen.traces.format import Operation, OperationTrace, RecordedTrace
from paravirt_mm_xen.traces.shrink import shrink

Predict = Callable[[OperationTrace], Sequence[int]]
"""The model: one answer an operation. Called when real Xen, whose version is known then, has
answered."""

Record = Callable[[OperationTrace, Sequence[int]], None]
"""Keeps a trace and real Xen's answers."""

CHUNK_OPERATIONS = 250_000
"""Operations that are generated, predicted and replayed together: bounds memory, not results."""


@attrs.frozen
class Disagreement:
    """A trace on which model and hypervisor differ, first at operation ``number``."""

    trace: OperationTrace
    number: int
    predicted: int | None  #: None where the model gave too few answers
    real: int
    minimal: OperationTrace | None = None  #: the shrunk trace, where shrinking was asked for
    minimal_answers: tuple[int, ...] = ()  #: real Xen's, for ``minimal``

    @property
    def operation(self) -> Operation:
        """The operation that they answered differently."""
        return self.trace.ops[self.number]

    def reproducer(self) -> str:
        """One line of the trace format with Xen's answers: the minimal trace, if there is one."""
        if self.minimal is not None:
            return self.minimal.to_json(self.minimal_answers)
        return self.trace.to_json()

    def __str__(self) -> str:
        return (
            f"{self.trace.name}: operation {self.number} {self.operation}:"
            f" Xen {self.real}, model {self.predicted}"
        )


@attrs.frozen
class LiveResult:
    """What a comparison came to. Times are wall-clock seconds."""

    xen: str | None  #: version that the hypervisor reported; None where nothing was booted
    traces: int
    operations: int
    boots: int  #: of the comparison; shrinking not counted
    disagreements: tuple[Disagreement, ...]
    failed_traces: int  #: all of them; ``disagreements`` describes the first few
    predict_seconds: float
    live_seconds: float

    @property
    def ok(self) -> bool:
        """Whether every answer of every trace agreed, and there was at least one."""
        return self.operations > 0 and not self.failed_traces

    def summary(self) -> str:
        """One line for a terminal."""
        verdict = "all agree" if self.ok else f"{self.failed_traces} traces differ"
        return (
            f"Xen {self.xen}: {self.operations:,} operations in {self.traces:,} traces,"
            f" {self.boots} boots: {verdict}"
            f" (Xen {self.live_seconds:.1f} s, model {self.predict_seconds:.1f} s)"
        )


@attrs.define
class _Tally:
    """What a comparison has counted so far."""

    traces: int = 0
    operations: int = 0
    failed: list[Disagreement] = attrs.Factory(list)
    failed_traces: int = 0
    predict_seconds: float = 0.0
    live_seconds: float = 0.0


def compare(
    live: LiveXen,
    traces: Iterable[OperationTrace],
    predict: Predict,
    *,
    minimise: bool = True,
    describe: int = 3,
    record: Record | None = None,
) -> LiveResult:
    """Compares on given traces, which ``record`` is told with the answers.

    ``describe`` is the number of disagreements to keep (and to shrink, with ``minimise``).
    """
    tally = _Tally()
    boots = live.boots
    for chunk in _chunks(traces):
        started = time.monotonic()
        real = live.replay(chunk)
        replayed = time.monotonic()
        predicted = [tuple(predict(trace)) for trace in chunk]
        tally.live_seconds += replayed - started
        tally.predict_seconds += time.monotonic() - replayed
        tally.traces += len(chunk)
        tally.operations += sum(len(trace.ops) for trace in chunk)
        for trace, model, answers in zip(chunk, predicted, real, strict=True):
            if record is not None:
                record(trace, answers)
            number = first_difference(model, answers)
            if number is None:
                continue
            tally.failed_traces += 1
            if len(tally.failed) < describe:
                expected = model[number] if number < len(model) else None
                tally.failed.append(Disagreement(trace, number, expected, answers[number]))
    boots = live.boots - boots
    if minimise:
        tally.failed = [_minimised(live, found, predict) for found in tally.failed]
    return LiveResult(
        xen=live.version,
        traces=tally.traces,
        operations=tally.operations,
        boots=boots,
        disagreements=tuple(tally.failed),
        failed_traces=tally.failed_traces,
        predict_seconds=tally.predict_seconds,
        live_seconds=tally.live_seconds,
    )


def compare_recorded(live: LiveXen, recorded: Iterable[RecordedTrace]) -> LiveResult:
    """Compares recorded answers with those that Xen gives now: the recordings are the model."""
    answers: dict[OperationTrace, tuple[int, ...]] = {}

    def traces() -> Iterator[OperationTrace]:
        for record in recorded:
            answers[record.trace] = record.answers
            yield record.trace

    return compare(live, traces(), lambda trace: answers[trace], minimise=False)


def first_difference(model: Sequence[int], real: Sequence[int]) -> int | None:
    """Number of the first operation with another answer; None where all are the same."""
    for number, answer in enumerate(real):
        if number >= len(model) or model[number] != answer:
            return number
    return None


def _minimised(live: LiveXen, found: Disagreement, predict: Predict) -> Disagreement:
    def failures(traces: Sequence[OperationTrace]) -> list[int | None]:
        return [
            first_difference(tuple(predict(trace)), real)
            for trace, real in zip(traces, live.replay(traces), strict=True)
        ]

    minimal = shrink(found.trace, failures).trace
    (answers,) = live.replay([minimal])
    return attrs.evolve(found, minimal=minimal, minimal_answers=answers)


def _chunks(traces: Iterable[OperationTrace]) -> Iterator[list[OperationTrace]]:
    chunk: list[OperationTrace] = []
    operations = 0
    for trace in traces:
        chunk.append(trace)
        operations += len(trace.ops)
        if operations >= CHUNK_OPERATIONS:
            yield chunk
            chunk, operations = [], 0
    if chunk:
        yield chunk
