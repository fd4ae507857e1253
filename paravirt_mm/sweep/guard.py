"""The guard of a sweep: the child is a fresh interpreter.

One thread of an executor has one child. So the executor may be a thread pool or the worker of a
cluster, where forking is not safe. Everything else is `paravirt_mm.guard`: limits, what a death is
called, what travels. Limits, crashes and leaks of a scenario are the child's affair: it is stopped,
the row says so, and a new child goes on with the next scenario.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import Pipe
from typing import Any

from paravirt_mm.guard import Limits, Patience, Stopped, ended
from paravirt_mm.report.values import size
from paravirt_mm.run import Outcome
from paravirt_mm.sources.inputs import Part
from paravirt_mm.sweep.settings import (
    LIMIT,
    Chunk,
    ChunkResult,
    MachineRecord,
    Record,
    RunRecord,
    Settings,
)
from paravirt_mm.sweep.work import unreadable

STARTING = Limits(cpu=60.0, wall=120.0)
"""What a child may need to start, and to import the plugins that it is to run."""


class Guard:
    """A child process and the patience to wait for it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._scenarios = settings.scenarios
        self._process: subprocess.Popen[bytes] | None = None

    def part(self, part: Part) -> tuple[Record, ...]:
        """Return all records of a part, whatever happens to the child.

        Raises `Stopping` once `stop_all` was called.
        """
        known: list[Record] = []
        while True:
            stopped = self._ask(part, known)
            if stopped is None:
                return tuple(known)
            self.close()
            if _stopping.is_set():
                raise Stopping
            expected = len(known) % (len(self._scenarios) + 1)
            if not expected:
                # It was reading: the rest of the part cannot be had.
                known += unreadable(part.source, f"reading it: {stopped}", self._settings)
                return tuple(known)
            outcome = str(Outcome.ERROR) if stopped.crashed else LIMIT
            known.append(RunRecord(*self._scenarios[expected - 1], outcome, str(stopped)))

    def _ask(self, part: Part, known: list[Record]) -> Stopped | None:
        """Collect records in ``known``; return why it ended early, if it did."""
        stopped = self._start()
        if stopped is not None:
            return stopped
        with suppress(OSError):  # It died meanwhile; what is said next is how.
            self._connection.send((part, len(known)))
        while True:
            record = self._patience.next(self._end)
            if isinstance(record, Stopped):
                return record
            if ended(record):
                return None
            if isinstance(record, RunRecord) and record.outcome == LIMIT:
                # It found its memory used up. What it left behind in the process may be as large.
                return Stopped(f"more than {size(self._settings.memory_limit)} of memory")
            known.append(record)

    def _start(self) -> Stopped | None:
        """Start the child unless there is one; return why that failed, if it did."""
        if self._process is not None and self._process.poll() is None:
            return None
        self.close()
        self._connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  # this interpreter, this package
                [sys.executable, "-m", "paravirt_mm.sweep.child", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # Threads of a numerical library would each take address space that is limited.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )
        if _stopping.is_set():
            self.stop()
        with suppress(OSError):  # as above
            self._connection.send(self._settings)
        ready: Any = Patience(self._connection, STARTING).next(self._end)
        self._patience = Patience(self._connection, self._settings.limits)
        return ready if isinstance(ready, Stopped) else None

    def _end(self) -> int:
        """Return the exit code of the child."""
        return 0 if self._process is None else self._process.wait()

    def stop(self) -> None:
        """End the child; whoever waits for it hears of it at once. Any thread may call this."""
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """Stop the child, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._connection.close()
            self._process = None


class Stopping(Exception):
    """The sweep is being ended; what is half done is done again by the next one."""


_stopping = threading.Event()
_of_thread = threading.local()
_guards: weakref.WeakSet[Guard] = weakref.WeakSet()


def run_chunk(chunk: Chunk, settings: Settings) -> ChunkResult:
    """Return all records of a chunk: the one function that executors are given."""
    guard: Guard | None = getattr(_of_thread, "guard", None)
    if guard is None or guard._settings != settings:
        if guard is not None:
            guard.close()
        guard = _of_thread.guard = Guard(settings)
        _guards.add(guard)
    begin = time.perf_counter()
    parts = tuple(guard.part(part) for part in chunk.parts)
    seconds = time.perf_counter() - begin
    return ChunkResult(chunk.number, chunk.first, chunk.digest(), parts, round(seconds, 3))


def stop_all() -> None:
    """End every child of this process now, and let no thread start another."""
    _stopping.set()
    for guard in list(_guards):
        guard.stop()


def close_all() -> None:
    """Close every child of this process, when no chunk is being worked on any more."""
    _stopping.clear()
    for guard in list(_guards):
        guard.close()


def machines_of(records: tuple[Record, ...]) -> Iterator[tuple[MachineRecord, list[RunRecord]]]:
    """Yield each machine of a part's records with its rows."""
    rows: list[RunRecord] = []
    machine: MachineRecord | None = None
    for record in records:
        if isinstance(record, MachineRecord):
            if machine is not None:
                yield machine, rows
            machine, rows = record, []
        else:
            rows.append(record)
    if machine is not None:
        yield machine, rows
