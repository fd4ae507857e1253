"""Recorded answers of the real hypervisor against the model: ``paravirt-mm verify xen FILE...``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from paravirt_mm import InputError, printable, reading_each
from paravirt_mm_xen.mmu.releases import RECORDED, Release
from paravirt_mm_xen.traces.files import read_traces
from paravirt_mm_xen.traces.format import RecordedTrace
from paravirt_mm_xen.traces.guest import Difference, release_of_recording, replay
from paravirt_mm_xen.traces.words import answer_in_words, words


@attrs.define
class FilesResult:
    """What a comparison of recorded answers came to.  Times are seconds of CPU time of the process,
    so that other load does not count."""

    releases: list[Release] = attrs.Factory(list)
    """Those modelled, in the order in which files asked for them."""
    traces: int = 0
    operations: int = 0
    replay_seconds: float = 0.0
    """In the model alone ..."""
    seconds: float = 0.0
    """... and with reading and checking the files."""
    differences: list[tuple[Path, Difference]] = attrs.Factory(list)
    """The first of each trace that differs."""
    errors: list[str] = attrs.Factory(list)
    """Of files that could not be read to their end."""

    def add(self, path: Path, one: _Replayed) -> None:
        """Count a trace."""
        if one.release not in self.releases:
            self.releases.append(one.release)
        self.traces += 1
        self.operations += one.operations
        self.replay_seconds += one.seconds
        self.seconds += one.all_seconds
        if one.found is not None:
            self.differences.append((path, one.found))

    @property
    def modelled(self) -> str:
        """Names of the releases modelled."""
        return ", ".join(release.name for release in self.releases)

    @property
    def agrees(self) -> bool:
        """Whether everything could be read, and every answer agreed."""
        return not self.errors and not self.differences

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "release": self.modelled,
            "traces": self.traces,
            "operations": self.operations,
            "differing_traces": len(self.differences),
            "agree": self.agrees,
            "cpu_seconds": round(self.seconds, 3),
            "operations_per_second": _rate(self.operations, self.seconds),
            "operations_per_second_model": _rate(self.operations, self.replay_seconds),
            "differences": [
                {
                    "file": str(path),
                    "trace": found.recorded.trace.name,
                    "number": found.number,
                    "operation": found.operation,
                    "hypervisor": found.answer,
                    "model": found.predicted,
                }
                for path, found in self.differences
            ],
            "errors": self.errors,
        }


def verify(
    files: list[Path], release: Release | None = None, *, progress: bool = False
) -> FilesResult:
    """Replay all traces of `files`, on the model of `release` or of what each recording names.

    A damaged file is an entry of ``errors``, not an exception.
    """
    outcome = FilesResult()
    shown = time.monotonic()
    for path in files:
        try:
            for one in reading_each(_replayed, path, release):
                outcome.add(path, one)
                if progress and time.monotonic() - shown > 0.2:
                    shown = time.monotonic()
                    _show(
                        f"{path.name}: {outcome.traces:,} traces, {outcome.operations:,} operations"
                    )
        except InputError as error:
            outcome.errors.append(str(error))
    if progress:
        _show("")
    return outcome


@attrs.frozen
class _Replayed:
    """What a trace came to. ``seconds`` are those of the model, of ``all_seconds``."""

    release: Release
    operations: int
    found: Difference | None
    seconds: float
    all_seconds: float


def _replayed(path: Path, release: Release | None) -> Iterator[_Replayed]:
    """Replay the traces of a file: in a child, for nobody vouches for it."""
    started = time.process_time()
    for recorded in _at_least_one(path):
        before = time.process_time()
        modelled = release or release_of_recording(recorded)
        found = replay(recorded, modelled)
        now = time.process_time()
        yield _Replayed(modelled, len(recorded.trace.ops), found, now - before, now - started)
        started = now


def _at_least_one(path: Path) -> Iterator[RecordedTrace]:
    empty = True
    for recorded in read_traces(path):
        empty = False
        yield recorded
    if empty:
        raise InputError("holds no trace", str(path))


def _show(text: str) -> None:
    """Replace the progress line, on a terminal: what moves the cursor goes there directly."""
    if sys.__stderr__ is not None:
        print(f"\r\x1b[K{printable(text)}", end="", file=sys.__stderr__, flush=True)


def _rate(operations: int, seconds: float) -> int:
    return round(operations / seconds) if seconds > 0 else 0


def difference_line(path: Path, found: Difference) -> str:
    """A differing trace in one line."""
    name = found.operation[0]
    return printable(
        f"{path}: {found.recorded.trace.name}: operation {found.number},"
        f" {words(found.operation)}: hypervisor {answer_in_words(name, found.answer)},"
        f" model {answer_in_words(name, found.predicted)}"
    )


def summary_line(outcome: FilesResult) -> str:
    """The last line."""
    verdict = (
        f"{len(outcome.differences)} traces differ"
        if outcome.differences
        else "all agree"
        if outcome.traces
        else "nothing compared"
    )
    return (
        f"model of Xen {outcome.modelled or RECORDED.name}: {outcome.operations:,} operations in"
        f" {outcome.traces:,} traces: {verdict}"
        f" ({_rate(outcome.operations, outcome.replay_seconds):,} operations a CPU second"
        " in the model,"
        f" {_rate(outcome.operations, outcome.seconds):,} with reading)"
    )
