"""What a report is about: machines, the scenarios that were run on them, and what was seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import attrs

from paravirt_mm.comparison import Row
from paravirt_mm.invariants.rules import Finding
from paravirt_mm.machine.model import Machine
from paravirt_mm.offers import default_specs
from paravirt_mm.options import PluginSpec
from paravirt_mm.registry import Registry, default_registry
from paravirt_mm.report.tables import label
from paravirt_mm.run import Outcome
from paravirt_mm.scenario import Scenario
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
) -> Iterator[Subject]:
    """Run every allocator under every backend on each machine; yield one machine after the other.

    None: what the installed plugins offer for that. Traces are let go of as soon as they have been
    looked at. Raises `SpecError` for a wrong spec.
    """
    registry = registry or default_registry()
    allocators = allocators or default_specs("allocator", registry)
    backends = backends or default_specs("backend", registry)
    for machine in machines:
        exhibits = []
        for backend in backends:
            for allocator in allocators:
                run = Scenario.of(machine, allocator, backend).run(registry)
                exhibits.append(Exhibit(Row.of(run, registry), scene(run), run.findings))
        yield Subject(machine, tuple(exhibits))


def short(spec: str) -> str:
    """Return a plugin spec as a title, as short as it stays clear and bounded."""
    return bounded(label(PluginSpec.parse(spec)), MAX_NAME)


@attrs.frozen
class Total:
    """Sums of one allocator under one backend, over the machines on which every allocator comes to
    a good end under that backend, so that rows can be compared.

    ``below_16m`` is the most that its tables took there on one machine, in bytes; ``failed`` counts
    the machines on which it did not come to a good end although the platform accepts them.
    """

    allocator: str
    backend: str
    machines: int
    reserved: int
    waste: int
    tables: int
    flips: int
    flips_wasted: int
    hypercalls: int
    below_16m: int
    failed: int


_NUMBER = Callable[[Exhibit], int]


def totals(subjects: Sequence[Subject]) -> list[Total]:
    """Return the sums, backend by backend, in the order of the scenarios."""
    exhibits = [each for subject in subjects for each in subject.exhibits]
    backends = list(dict.fromkeys(each.row.backend for each in exhibits))
    allocators = list(dict.fromkeys(each.row.allocator for each in exhibits))
    result = []
    for backend in backends:
        here = [
            [each for each in subject.exhibits if each.row.backend == backend]
            for subject in subjects
        ]
        good = [group for group in here if group and all(each.ok for each in group)]
        accepted = [
            group
            for group in here
            if any(each.row.outcome is not Outcome.REJECTED for each in group)
        ]
        for allocator in allocators:
            mine = [each for group in good for each in group if each.row.allocator == allocator]
            all_mine = [
                each for group in accepted for each in group if each.row.allocator == allocator
            ]

            def total(name: str, over: list[Exhibit] = mine) -> int:
                return sum(each.row.figures.get(name) or 0 for each in over)

            result.append(
                Total(
                    allocator=short(allocator),
                    backend=short(backend),
                    machines=len(mine),
                    reserved=total("reserved"),
                    waste=total("waste"),
                    tables=total("tables"),
                    flips=total("flips"),
                    flips_wasted=total("flips_wasted"),
                    hypercalls=total("hypercalls"),
                    below_16m=max(
                        (each.row.figures.get("tables_below_16m") or 0 for each in mine), default=0
                    ),
                    failed=sum(not each.ok for each in all_mine),
                )
            )
    return result
