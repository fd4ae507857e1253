"""What a report is about: machines, the scenarios that were run on them, and what was seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import attrs

from paravirt_mm.comparison import Each, Row, run_here
from paravirt_mm.invariants.rules import Finding
from paravirt_mm.machine.model import Machine
from paravirt_mm.offers import default_specs
from paravirt_mm.options import PluginSpec
from paravirt_mm.registry import Registry, default_registry
from paravirt_mm.report.summary import Total, totals as sums
from paravirt_mm.report.tables import label
from paravirt_mm.run import Outcome, Run
from paravirt_mm.view.scene import MAX_NAME, Scene, scene
from paravirt_mm.view.story import bounded


@attrs.frozen
class Exhibit:
    """One scenario: its row of the comparison, what is to be seen of it, and its findings."""

    row: Row
    scene: Scene
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether the run came to its end and broke no rule."""
        return self.row.outcome is Outcome.OK


@attrs.frozen
class Subject:
    """One machine with the exhibits of its scenarios, in the order in which they were asked for."""

    machine: Machine
    exhibits: tuple[Exhibit, ...]


def survey(
    machines: Iterable[Machine],
    allocators: Sequence[str] | None = None,
    backends: Sequence[str] | None = None,
    registry: Registry | None = None,
    each: Each | None = None,
    crashkernels: Sequence[str] = (),
    look: Callable[[Run], Scene] = scene,
) -> Iterator[Subject]:
    """Run every allocator under every backend on each machine; yield one machine after the other.

    None: what the installed plugins offer for that. ``each`` runs the scenarios elsewhere,
    ``crashkernels`` are asked about. Traces are let go of as soon as ``look`` has seen them. Raises
    `SpecError` for a wrong spec.
    """
    registry = registry or default_registry()
    allocators = allocators or default_specs("allocator", registry)
    backends = backends or default_specs("backend", registry)
    pairs = [(allocator, backend) for backend in backends for allocator in allocators]

    def exhibit(run: Run) -> Exhibit:
        return Exhibit(Row.of(run, registry, crashkernels), look(run), run.findings)

    if each is None:
        for machine in machines:
            found = run_here(registry, [(machine, *pair) for pair in pairs], exhibit)
            yield Subject(machine, tuple(found))
        return
    all_of_them = list(machines)
    made = iter(each([(machine, *pair) for machine in all_of_them for pair in pairs], exhibit))
    for machine in all_of_them:
        yield Subject(machine, tuple(islice(made, len(pairs))))
    next(made, None)  # what watches the scenarios hears that they have ended


def short(spec: str) -> str:
    """Return a plugin spec as a title, as short as it stays clear and bounded."""
    return bounded(label(PluginSpec.parse(spec)), MAX_NAME)


def totals(subjects: Sequence[Subject]) -> list[Total]:
    """Return the sums of all scenarios over the machines that can be compared."""
    return sums([exhibit.row for subject in subjects for exhibit in subject.exhibits])
