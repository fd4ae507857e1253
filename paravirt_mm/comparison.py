"""The comparison: every scenario of every machine, as rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import attrs

from paravirt_mm.evidence import verified
from paravirt_mm.machine.model import Machine
from paravirt_mm.registry import Registry
from paravirt_mm.run import Outcome, Run
from paravirt_mm.scenario import Scenario

DEFAULT_ALLOCATORS = (
    "legacy_linear:kernel=2.6.39",
    "legacy_linear:kernel=3.6",
    "incremental:variant=linux,kernel=4.19",
    "incremental:variant=hpa",
)
DEFAULT_BACKENDS = ("native", "xen")


@attrs.frozen
class Row:
    """One scenario of the comparison: what it was, how it ended, and its figures."""

    machine: str
    allocator: str
    backend: str
    verdict: str
    outcome: Outcome
    verified: str
    figures: dict[str, Any]

    @classmethod
    def of(cls, run: Run) -> Row:
        """Make the row of a finished run."""
        return cls(
            machine=run.machine.name,
            allocator=str(run.allocator),
            backend=str(run.backend),
            verdict=str(run.verdict),
            outcome=run.verdict.outcome,
            verified=verified(str(run.allocator)),
            figures=dict(run.figures),
        )

    def as_record(self) -> dict[str, Any]:
        """Return the row as one flat mapping, for JSON and CSV."""
        return {
            "machine": self.machine,
            "allocator": self.allocator,
            "backend": self.backend,
            "outcome": str(self.outcome),
            "verdict": self.verdict,
            "verified": self.verified,
            **self.figures,
        }


def compare(
    machines: Iterable[Machine],
    allocators: Sequence[str] = DEFAULT_ALLOCATORS,
    backends: Sequence[str] = DEFAULT_BACKENDS,
    registry: Registry | None = None,
) -> Iterator[list[Row]]:
    """Run every allocator under every backend; yield the rows of one machine after the other.

    Raises `SpecError` for a wrong spec; a plugin that fails gives rows with the verdict ``error``.
    """
    for machine in machines:
        yield [
            Row.of(Scenario.of(machine, allocator, backend).run(registry))
            for allocator in allocators
            for backend in backends
        ]
