"""Files of traces with the answers of a real hypervisor: reading and writing them.

A file holds one JSON object a line (``.jsonl``, or ``.jsonl.xz``)::

    {"id": "t1", "pages": 8, "ops": [["pin", 1, 3], ...], "rc": [-22, ...], "xen": "4.17.7"}

``pages`` frames of the guest, zeroed and mapped writable at their own addresses by the boot tables;
the operations on them (`paravirt_mm_xen.traces.format` lists them); what the hypervisor answered,
one for one; and its version, where it is known.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, cast

from paravirt_mm import InputError
from paravirt_mm_xen.traces.format import Operation, OperationTrace, RecordedTrace, check

MAX_LINE: Final = 64 << 20
"""Bytes of a line."""
MAX_TRACES: Final = 10_000_000
MAX_KNOWN: Final = 200_000
"""Different operations that a reader remembers."""


def read_traces(path: Path) -> Iterator[RecordedTrace]:
    """The traces of a file, one by one.

    Raises InputError, naming file and line, for a file that cannot be read or is damaged, a line
    longer than `MAX_LINE` bytes, and whatever is not a trace with answers.
    """
    reader = TraceReader()
    try:
        with _open(path) as lines:
            for number in range(1, MAX_TRACES + 1):
                line = lines.readline(MAX_LINE + 1)
                if not line:
                    return
                where = f"{path}:{number}"
                if len(line) > MAX_LINE:
                    raise InputError(f"line longer than {MAX_LINE} bytes; split the trace", where)
                if line.strip():
                    yield reader.read(line, where)
            raise InputError(f"more than {MAX_TRACES} traces; split the file", str(path))
    except (OSError, lzma.LZMAError, EOFError) as error:
        raise InputError(f"cannot be read: {error}", str(path)) from error


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".xz":
        return lzma.open(path, "rb")
    return path.open("rb")


@contextmanager
def write_traces(path: Path) -> Iterator[IO[str]]:
    """A text file that traces are written to, a line each; compressed where the name ends in .xz.

    Raises InputError where it cannot be written.
    """
    try:
        with lzma.open(path, "wt") if path.suffix == ".xz" else path.open("w") as file:
            yield file
    except OSError as error:
        raise InputError(f"cannot be written: {error}", str(path)) from None


class TraceReader:
    """Turns lines into traces.  An operation that was seen before is not checked again."""

    def __init__(self) -> None:
        self._pages = 0
        self._known: dict[Operation, Operation] = {}

    def read(self, line: bytes, where: str) -> RecordedTrace:
        """The trace in `line`, which is at `where`.  Raises InputError when it is none."""
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"not a JSON object: {error}", where) from None
        if not isinstance(record, dict):
            raise InputError("not a JSON object", where)
        operations, answers = record.get("ops"), record.get("rc")
        if not isinstance(operations, list) or not isinstance(answers, list):
            raise InputError("'ops' and 'rc' must be lists", where)
        if len(operations) != len(answers):
            raise InputError(f"{len(operations)} operations but {len(answers)} answers", where)
        if set(map(type, answers)) - {int}:
            raise InputError("'rc' must hold numbers only", where)
        pages: Any = record.get("pages")
        try:
            checked = self._check_all(pages, operations)
        except InputError as error:
            raise InputError(str(error), where) from None
        hypervisor = record.get("xen")
        if hypervisor is not None and not isinstance(hypervisor, str):
            raise InputError("'xen' must be the hypervisor's version", where)
        trace = OperationTrace(str(record.get("id", where))[:100], pages, checked)
        return RecordedTrace(trace, tuple(answers), hypervisor and hypervisor[:40])

    def _check_all(self, pages: int, raw: list[Any]) -> tuple[Operation, ...]:
        if pages != self._pages or len(self._known) > MAX_KNOWN:
            check(OperationTrace("pages", pages, ()))
            self._pages = pages
            self._known = {}
        if set(map(type, raw)) - {list}:
            raise InputError("'ops' must hold lists only")
        known = self._known
        operations: list[Operation] = list(map(tuple, raw))
        try:
            checked = list(map(known.get, operations))
        except TypeError:  # batches hold lists
            operations = list(map(_as_tuple, raw))
            checked = [None] * len(operations)
        if None in checked:
            for number, operation in enumerate(operations):
                if checked[number] is None:
                    if not operation:
                        raise InputError("empty", f"operation {number}")
                    check(OperationTrace(f"operation {number}", pages, (operation,)))
                    known[operation] = operation
            return tuple(operations)
        return cast(tuple[Operation, ...], tuple(checked))


def _as_tuple(value: Any) -> Any:
    """Lists as tuples, all the way down; JSON's parser has bounded the depth."""
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value
