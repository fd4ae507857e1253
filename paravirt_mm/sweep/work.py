"""What a child process does: read a part, run its scenarios, one record after the other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from paravirt_mm.errors import InputError, ParavirtMmError
from paravirt_mm.machine.model import Machine
from paravirt_mm.printable import printable
from paravirt_mm.registry import Registry
from paravirt_mm.run import Outcome
from paravirt_mm.scenario import Scenario
from paravirt_mm.sources.inputs import Part
from paravirt_mm.sweep.settings import (
    LIMIT,
    UNREADABLE,
    MachineRecord,
    Record,
    RunRecord,
    Settings,
)

OUT_OF_MEMORY = "memory limit"
_MEMORY_ERROR = re.compile(r"\bMemoryError\b")


def records(part: Part, settings: Settings, registry: Registry, done: int) -> Iterator[Record]:
    """Yield the records of a part, leaving out the first ``done``: those cost no run."""
    position = 0
    for source, outcome in part.machines(settings.boot):
        if isinstance(outcome, InputError):
            found = unreadable(source, str(outcome), settings)
        else:
            found = _of_machine(source, outcome, settings, registry, done - position)
        for record in found:
            if position >= done:
                yield record
            position += 1


def unreadable(source: str, message: str, settings: Settings) -> Iterator[Record]:
    """Yield the records of an input that gives no machine: every scenario's row says why."""
    message = printable(message)
    yield MachineRecord(printable(source), error=message)
    for allocator, backend in settings.scenarios:
        yield RunRecord(allocator, backend, UNREADABLE, message)


def _of_machine(
    source: str, machine: Machine, settings: Settings, registry: Registry, done: int
) -> Iterator[Record]:
    yield MachineRecord(printable(source), facts(machine))
    for place, (allocator, backend) in enumerate(settings.scenarios, 1):
        if place < done:
            yield RunRecord(allocator, backend, "", "")
        else:
            yield run(machine, allocator, backend, registry)


def run(machine: Machine, allocator: str, backend: str, registry: Registry) -> RunRecord:
    """Run one scenario; whatever goes wrong is in its record."""
    try:
        result = Scenario.of(machine, allocator, backend).run(registry)
        outcome, detail = str(result.verdict.outcome), str(result.verdict)
        figures = dict(result.figures)
    except MemoryError:
        return RunRecord(allocator, backend, LIMIT, OUT_OF_MEMORY)
    except ParavirtMmError as error:
        return RunRecord(allocator, backend, str(Outcome.ERROR), printable(str(error)))
    if outcome == Outcome.ERROR and _MEMORY_ERROR.search(detail):
        # A scenario turns every exception of a plugin into its verdict, this one as well.
        return RunRecord(allocator, backend, LIMIT, OUT_OF_MEMORY)
    return RunRecord(allocator, backend, outcome, printable(detail), figures)


def facts(machine: Machine) -> dict[str, Any]:
    """Return what is stored of a machine, by column name."""
    ram = machine.memory_map.ram_pages()
    return {
        "machine": printable(machine.name),
        "title": printable(machine.provenance.title),
        "kernel_release": printable(machine.provenance.kernel_release or "") or None,
        "mode": machine.mode.name,
        "ram_bytes": ram.total,
        "ram_end": ram.end,
        "holes": len(ram) - 1,
        "e820_entries": len(machine.memory_map),
        "max_pfn": machine.max_pfn,
        "pse": machine.features.pse,
        "gbpages": machine.features.gbpages,
    }
