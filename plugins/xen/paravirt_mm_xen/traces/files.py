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
from itertools import count
from pathlib import Path
from typing import IO, Any, Final, cast

from paravirt_mm import InputError
from paravirt_mm_xen.traces.format import (
    Operation,
    OperationTrace,
    RecordedTrace,
    check,
    check_operation,
)

MAX_LINE: Final = 16 << 20
"""Bytes that no line may have, its end included: some 600,000 operations."""
MAX_BYTES: Final = 1 << 30
"""Bytes of a file, when unpacked."""
MAX_TRACES: Final = 10_000_000
MAX_KNOWN: Final = 200_000
"""Different operations that a reader remembers."""
MAX_ANSWER: Final = 1 << 63


def read_traces(path: Path) -> Iterator[RecordedTrace]:
    """The traces of a file, one by one.

    Raises InputError, naming file and line, for a file that cannot be read or is damaged, a line
    of `MAX_LINE` bytes, and whatever is not a trace with answers.
    """
    reader = TraceReader()
    size = 0
    try:
        with _open(path) as lines:
            for number in count(1):
                line = lines.readline(MAX_LINE)
                if not line:
                    return
                where = f"{path}:{number}"
                size += len(line)
                if len(line) == MAX_LINE:
                    raise InputError(f"a line of {MAX_LINE} bytes or more; split the trace", where)
                if size > MAX_BYTES:
                    raise InputError(f"more than {MAX_BYTES} bytes; split the file", where)
                if number > MAX_TRACES:
                    raise InputError(f"more than {MAX_TRACES} lines; split the file", where)
                if not line.isspace():
                    yield reader.read(line, where)
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
        # By value and types: in Python 1 equals true, in a file it does not.
        self._known: dict[tuple[tuple[Any, type], ...], Operation] = {}

    def read(self, line: bytes, where: str) -> RecordedTrace:
        """The trace in `line`, which is at `where`.  Raises InputError when it is none."""
        try:
            return self._read(_object(line), where)
        except InputError as error:
            raise InputError(str(error), where) from None

    def _read(self, record: dict[str, Any], where: str) -> RecordedTrace:
        operations, answers = record.get("ops"), record.get("rc")
        if not isinstance(operations, list) or not isinstance(answers, list):
            raise InputError("'ops' and 'rc' must be lists")
        if len(operations) != len(answers):
            raise InputError(f"{len(operations)} operations but {len(answers)} answers")
        if set(map(type, answers)) - {int}:
            raise InputError("'rc' must hold numbers only")
        if answers and not -MAX_ANSWER <= min(answers) <= max(answers) < MAX_ANSWER:
            raise InputError("'rc' must hold numbers of 64 bits")
        name, hypervisor = record.get("id", where), record.get("xen")
        if not isinstance(name, str):
            raise InputError("'id' must be a text")
        if hypervisor is not None and not isinstance(hypervisor, str):
            raise InputError("'xen' must be the hypervisor's version")
        pages = record.get("pages")
        checked = self._check_all(pages, operations)
        trace = OperationTrace(name[:100], cast(int, pages), checked)
        return RecordedTrace(trace, tuple(answers), hypervisor and hypervisor[:40])

    def _check_all(self, pages: Any, raw: list[Any]) -> tuple[Operation, ...]:
        if type(pages) is not int or pages != self._pages or len(self._known) > MAX_KNOWN:
            check(OperationTrace("pages", pages, ()))
            self._pages = pages
            self._known = {}
        if set(map(type, raw)) - {list}:
            raise InputError("'ops' must hold lists only")
        return tuple([self._check(number, operation) for number, operation in enumerate(raw)])

    def _check(self, number: int, raw: list[Any]) -> Operation:
        operation = tuple(raw)
        key = tuple((value, type(value)) for value in raw)
        try:
            known = self._known.get(key)
        except TypeError:  # a batch holds lists
            batch: Operation = _as_tuple(raw)
            check_operation(batch, number, self._pages)
            return batch
        if known is None:
            check_operation(operation, number, self._pages)
            known = self._known[key] = operation
        return known


def _object(line: bytes) -> dict[str, Any]:
    """The JSON object in `line`, whose numbers are all integers."""
    try:
        record = json.loads(line, parse_float=_refuse_float, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not a JSON object: {error}") from None
    if not isinstance(record, dict):
        raise InputError("not a JSON object")
    return record


def _refuse_float(text: str) -> int:
    raise ValueError(f"{text[:40]} is no integer")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a key is there twice")
    return record


def _as_tuple(value: Any) -> Any:
    """Lists as tuples, all the way down; JSON's parser has bounded the depth."""
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value
