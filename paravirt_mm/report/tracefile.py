"""A trace as a data file: one JSON object a line, each with the event's number and kind."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from paravirt_mm.engine.tables import Batch
from paravirt_mm.engine.trace import RunStarted, TablesAllocated, Trace
from paravirt_mm.machine.paging import PagingMode


def trace_lines(trace: Trace) -> Iterator[str]:
    """Yield a line an event. Batches are written out once, in TablesAllocated, and then named by
    index.
    """
    for number, event in enumerate(trace):
        record: dict[str, Any] = {"event": number, "kind": type(event).__name__}
        for field in attrs.fields(type(event)):
            value = getattr(event, field.name)
            if isinstance(value, Batch) and not isinstance(event, TablesAllocated):
                record[field.name] = value.index
            elif isinstance(event, RunStarted) and field.name == "machine":
                record[field.name] = value.name
            else:
                record[field.name] = _plain(value)
        yield json.dumps(record)


def _plain(value: Any) -> Any:
    if isinstance(value, PagingMode):
        return value.name
    if attrs.has(type(value)):
        return {
            field.name: _plain(getattr(value, field.name)) for field in attrs.fields(type(value))
        }
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
