"""Run chunks in a child process that can be stopped.

One thread of an executor has one child. So the executor may be a thread pool or the worker of a
cluster, and limits, crashes and leaks of a scenario are the child's affair: it is stopped, the row
says so, and a new child goes on with the next scenario.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from multiprocessing import Pipe

from paravirt_mm.guard import how_it_ended
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
from paravirt_mm.sweep.work import OUT_OF_MEMORY, unreadable

START_LIMIT = 60.0
"""Seconds that a child may need to start, beyond the limit of its first scenario."""


class Guard:
    """A child process and the patience to wait for it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._scenarios = settings.scenarios
        self._process: subprocess.Popen[bytes] | None = None
        self._fresh = True

    def part(self, part: Part) -> tuple[Record, ...]:
        """Return all records of a part, whatever happens to the child.

        Raises `Stopping` once `stop_all` was called.
        """
        known: list[Record] = []
        while True:
            problem = self._ask(part, known)
            if problem is None:
                return tuple(known)
            self.close()
            if _stopping.is_set():
                raise Stopping
            outcome, verdict = problem
            expected = len(known) % (len(self._scenarios) + 1)
            if not verdict:
                continue
            if not expected:
                # It was reading: the rest of the part cannot be had.
                known += unreadable(part.source, f"reading it: {verdict}", self._settings)
                return tuple(known)
            known.append(RunRecord(*self._scenarios[expected - 1], outcome, verdict))

    def _ask(self, part: Part, known: list[Record]) -> tuple[str, str] | None:
        """Collect records in ``known``; return outcome and verdict if the child must be replaced.

        An empty verdict: the record is there already, only the child is not to be used any more.
        """
        self._start()
        limit = self._settings.time_limit
        patience = limit + (START_LIMIT if self._fresh else 0)
        try:
            self._connection.send((part, len(known)))
            while self._connection.poll(patience):
                self._fresh, patience = False, limit
                record = self._connection.recv()
                if record is None:
                    return None
                known.append(record)
                if isinstance(record, RunRecord) and record.verdict == OUT_OF_MEMORY:
                    allowed = size(self._settings.memory_limit)
                    known[-1] = RunRecord(
                        record.allocator, record.backend, LIMIT, f"more than {allowed} of memory"
                    )
                    return LIMIT, ""
        except (EOFError, OSError):
            return str(Outcome.ERROR), f"its process {self._end()}"
        return LIMIT, f"longer than {limit:g} s"

    def _start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
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
        self._fresh = True
        if _stopping.is_set():
            self.stop()
        self._connection.send(self._settings)

    def _end(self) -> str:
        """Return how the child ended."""
        if self._process is None:
            return "did not start"
        return how_it_ended(self._process.wait())

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
