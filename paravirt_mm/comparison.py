"""The comparison: every scenario of every machine, as rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import attrs

from paravirt_mm.evidence import verified
from paravirt_mm.machine.model import Machine
from paravirt_mm.offers import default_specs
from paravirt_mm.registry import Registry, default_registry
from paravirt_mm.run import Outcome, Run
from paravirt_mm.scenario import Scenario


@attrs.frozen
class Row:
    """One scenario of the comparison: what it was, how it ended, and its figures."""

    machine: Machine
    allocator: str
    backend: str
    verdict: str
    outcome: Outcome
    verified: str
    figures: dict[str, Any]

    @classmethod
    def of(cls, run: Run, registry: Registry | None = None) -> Row:
        """Make the row of a finished run."""
        return cls(
            machine=run.machine,
            allocator=str(run.allocator),
            backend=str(run.backend),
            verdict=str(run.verdict),
            outcome=run.verdict.outcome,
            verified=verified(str(run.allocator), registry),
            figures=dict(run.figures),
        )

    def as_record(self) -> dict[str, Any]:
        """Return the row as one flat mapping, for JSON and CSV."""
        return {
            "machine": self.machine.name,
            "allocator": self.allocator,
            "backend": self.backend,
            "outcome": str(self.outcome),
            "verdict": self.verdict,
            "verified": self.verified,
            **self.figures,
        }


def compare(
    machines: Iterable[Machine],
    allocators: Sequence[str] | None = None,
    backends: Sequence[str] | None = None,
    registry: Registry | None = None,
) -> Iterator[list[Row]]:
    """Run every allocator under every backend; yield the rows of one machine after the other.

    None: what the installed plugins offer for that (`paravirt_mm.default_specs`). Raises
    `SpecError` for a wrong spec; a plugin that fails gives rows with the verdict ``error``.
    """
    registry = registry or default_registry()
    allocators = allocators or default_specs("allocator", registry)
    backends = backends or default_specs("backend", registry)
    for machine in machines:
        yield [
            Row.of(Scenario.of(machine, allocator, backend).run(registry), registry)
            for allocator in allocators
            for backend in backends
        ]
