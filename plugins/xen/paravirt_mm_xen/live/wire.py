"""The binary form of traces that the guest runs, and the text that it answers with.

The other side of this protocol is ``guest/wire.h`` (records) and ``guest/main.c`` (answers).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from paravirt_mm_xen.live.errors import XenBootError
from paravirt_mm_xen.traces.format import (
    ASSISTS,
    DEVICES,
    FLUSHES,
    MAX_ENTRY_BITS,
    REFUSED_BY_GUEST,
    SHAPES,
    Field,
    Operation,
    OperationTrace,
)

MAGIC = int.from_bytes(b"PTRACE1\0", "little")
NO_PAGE = 0xFFFFFFFF

HEADER = struct.Struct("<QII")  # magic, traces, reserved
TRACE = struct.Struct("<II")  # pages, records
RECORD = struct.Struct("<BBHIIIQQ")  # code, detail, index, page, target, count, value, va

CODES = {
    "pin": 1,
    "unpin": 2,
    "update_va_mapping": 3,
    "mmu_update": 4,
    "write": 5,
    "new_baseptr": 6,
    "boot_baseptr": 7,
    "copy_kernel_slots": 8,
    "type": 9,
    "read": 10,
    "store": 11,
    "store_value": 12,
    "update_va": 13,
    "probe": 14,  # and 15 for a write
    "new_user_baseptr": 16,
    "tlb_flush": 17,
    "clear_page": 18,
    "copy_page": 19,
    "mmu_update_batch": 20,
    "mmuext_batch": 21,
    "multicall": 22,
    "mmu_update_device": 23,
    "assist": 24,
}

_DETAIL, _INDEX, _PAGE, _TARGET, _COUNT, _VALUE, _VA = range(1, 8)
_SLOTS = {
    Field.LEVEL: _DETAIL,
    Field.PRESERVE: _DETAIL,
    Field.FLUSH: _DETAIL,
    Field.INDEX: _INDEX,
    Field.PAGE: _PAGE,
    Field.PAGE_OR_NULL: _PAGE,
    Field.TARGET: _TARGET,
    Field.UPDATES: _COUNT,
    Field.MEMBERS: _COUNT,
    Field.FLAGS: _VALUE,
    Field.VALUE: _VALUE,
    Field.ADDRESS: _VA,
    Field.DEVICE: _VA,
    Field.ASSIST: _INDEX,
}

_LETTERS = {".": 0, "p": -1, "b": -16, "i": -22, "n": -38, "w": -114003, "r": REFUSED_BY_GUEST}
_ANSWER = re.compile(r"([.pbinwr])|(-?\d{1,19});")
_TRACE_LINE = re.compile(r"^#(\d+) (.*)$", re.MULTILINE)
_XEN_LINE = re.compile(r"\(XEN\)[^\n]*(?:\n|$)")


def pack(traces: Sequence[OperationTrace]) -> bytes:
    """The guest's input for traces that `paravirt_mm_xen.traces.format.check` accepted."""
    parts = [HEADER.pack(MAGIC, len(traces), 0)]
    for trace in traces:
        records = b"".join(RECORD.pack(*record) for op in trace.ops for record in _records(op))
        parts += (TRACE.pack(trace.pages, len(records) // RECORD.size), records)
    return b"".join(parts)


def _records(operation: Operation) -> Iterator[list[int]]:
    """The record of an operation, followed by those of its members."""
    name = operation[0]
    record = [CODES[name], 0, 0, 0, 0, 0, 0, 0]
    members: Iterable[Sequence[Any]] = ()
    for field, value in zip(SHAPES[name].fields, operation[1:], strict=True):
        if field is Field.ACCESS:
            record[0] += value == "write"
            continue
        if field is Field.UPDATES:
            members = [("mmu_update", *update) for update in value]
            value = len(value)
        elif field is Field.MEMBERS:
            members, value = value, len(value)
        elif field is Field.FLUSH:
            value = FLUSHES[value]
        elif field is Field.ASSIST:
            value = ASSISTS[value]
        elif field is Field.DEVICE:
            value = DEVICES[value] & MAX_ENTRY_BITS
        elif value is None:
            value = NO_PAGE
        record[_SLOTS[field]] = value
    yield record
    for member in members:
        yield from _records(tuple(member))


def guest_text(console: str) -> str:
    """What the guest printed: the console without Xen's own lines, which may split the guest's."""
    return _XEN_LINE.sub("", console.replace("\r", ""))


def parse_answers(text: str, traces: Sequence[OperationTrace]) -> list[tuple[int, ...]]:
    """One answer an operation for each trace, from `guest_text`.

    Raises `XenBootError` where a trace is missing or has another number of answers.
    """
    answers: list[tuple[int, ...]] = []
    for number, line in _TRACE_LINE.findall(text):
        if int(number) != len(answers) or len(answers) == len(traces):
            raise XenBootError(f"the guest answered trace {number}, expected {len(answers)}")
        trace, found = traces[len(answers)], _decode(line)
        if len(found) != len(trace.ops):
            raise XenBootError(
                f"trace {trace.name}: {len(found)} answers for {len(trace.ops)} operations"
            )
        answers.append(found)
    if len(answers) != len(traces):
        raise XenBootError(f"the guest answered {len(answers)} of {len(traces)} traces")
    return answers


def _decode(line: str) -> tuple[int, ...]:
    answers = []
    position = 0
    while position < len(line):
        match = _ANSWER.match(line, position)
        if match is None:
            raise XenBootError(f"the guest printed no answer: {line[position : position + 40]!r}")
        letter, number = match.groups()
        answers.append(_LETTERS[letter] if letter else int(number))
        position = match.end()
    return tuple(answers)
