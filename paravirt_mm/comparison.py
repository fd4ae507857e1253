"""The comparison: every scenario of every machine, as rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from types import MappingProxyType
from typing import Any, TypeVar

import attrs

from paravirt_mm.evidence import NOT, verified
from paravirt_mm.machine.model import Machine, Span
from paravirt_mm.measure.books import free_after
from paravirt_mm.measure.crashkernel import Wanted
from paravirt_mm.offers import default_specs
from paravirt_mm.registry import Registry, default_registry
from paravirt_mm.run import Outcome, Run
from paravirt_mm.scenario import Scenario

T = TypeVar("T")

Cell = tuple[Machine, str, str]
"""One cell of the comparison: a machine, and the specs of allocator and backend."""
Each = Callable[[Sequence[Cell], Callable[[Run], Any]], Iterator[Any]]
"""What runs scenarios and yields what is made of each run."""


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
    traceback: str = ""
    backend_verified: str = NOT
    crashkernels: Mapping[str, Sequence[Span]] = MappingProxyType({})
    """Where crash kernels fit that were asked about: first and last Y of each stretch, in bytes."""

    @classmethod
    def of(
        cls, run: Run, registry: Registry | None = None, crashkernels: Sequence[str] = ()
    ) -> Row:
        """Make the row of a finished run; ``crashkernels`` are asked about (512M, 1G@4G)."""
        free = free_after(run.trace) if crashkernels and run.figures else None
        return cls(
            machine=run.machine,
            allocator=str(run.allocator),
            backend=str(run.backend),
            verdict=str(run.verdict),
            outcome=run.verdict.outcome,
            verified=verified(str(run.allocator), registry),
            figures=dict(run.figures),
            traceback=run.traceback,
            backend_verified=verified(run.backend.name, registry),
            crashkernels={}
            if free is None
            else {text: Wanted.parse(text).places(free) for text in crashkernels},
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
            **({"crashkernels": dict(self.crashkernels)} if self.crashkernels else {}),
            **({"traceback": self.traceback} if self.traceback else {}),
        }


def run_here(registry: Registry, todo: Sequence[Cell], make: Callable[[Run], T]) -> Iterator[T]:
    """Yield what ``make`` makes of the runs of scenarios, run in this process."""
    return (make(Scenario.of(*asked).run(registry)) for asked in todo)


def compare(
    machines: Iterable[Machine],
    allocators: Sequence[str] | None = None,
    backends: Sequence[str] | None = None,
    registry: Registry | None = None,
    each: Each | None = None,
    crashkernels: Sequence[str] = (),
) -> Iterator[list[Row]]:
    """Run every allocator under every backend; yield the rows of one machine after the other.

    None: what the installed plugins offer for that (`paravirt_mm.default_specs`). ``each`` runs the
    scenarios elsewhere; ``crashkernels`` are asked about. Raises `SpecError` for a wrong spec; a
    plugin that fails gives rows with the verdict ``error``.
    """
    registry = registry or default_registry()
    allocators = allocators or default_specs("allocator", registry)
    backends = backends or default_specs("backend", registry)
    pairs = [(allocator, backend) for allocator in allocators for backend in backends]
    make = partial(Row.of, registry=registry, crashkernels=crashkernels)
    if each is None:
        for machine in machines:
            yield list(run_here(registry, [(machine, *pair) for pair in pairs], make))
        return
    made = iter(each([(machine, *pair) for machine in machines for pair in pairs], make))
    while group := list(islice(made, len(pairs))):
        yield group
