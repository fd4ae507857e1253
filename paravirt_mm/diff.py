"""Two allocators side by side on many machines: where they differ, in what, and the smallest
machine that tells them apart.

What is compared of two runs stands in `differences`.

Switches that both allocators have (options that are yes or no) and that neither spec sets are tried
the other way round too. Of those only machines count that do not differ in the same without.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import attrs

from paravirt_mm.differences import ASPECTS, Difference, differences
from paravirt_mm.errors import SpecError
from paravirt_mm.guard import RUNNING, Asked, Limits, Stopped, together
from paravirt_mm.hunt.edits import is_sound
from paravirt_mm.hunt.shrink import measure, shrink
from paravirt_mm.machine.model import Machine
from paravirt_mm.options import PluginSpec
from paravirt_mm.registry import Registry, default_registry
from paravirt_mm.run import Outcome, Run
from paravirt_mm.scenario import Scenario
from paravirt_mm.sources.generated import generated

_MODES = ("x86_64", "x86_64-la57")


@attrs.frozen
class Pair:
    """Two specs, the backend, and the switches that both are given (``movable_node=yes``)."""

    a: str
    b: str
    backend: str
    switches: str = ""

    def spec(self, text: str) -> str:
        """Return one of the specs with the switches."""
        return f"{text}{',' if ':' in text else ':'}{self.switches}" if self.switches else text

    def runs(self, machine: Machine) -> tuple[Run, Run]:
        """Run both on a machine. Raises `SpecError`."""
        first, second = (
            Scenario.of(machine, self.spec(text), self.backend).run() for text in (self.a, self.b)
        )
        return first, second


@attrs.frozen
class Compared:
    """One machine under one pair: what differs, or why the two cannot be compared."""

    pair: Pair
    machine: Machine
    differences: tuple[Difference, ...] = ()
    refused: str = ""


@attrs.frozen
class Kind:
    """A way in which the two differ: on how many machines, and the smallest machine found.

    ``tries`` machines were tried to get there; ``shrunk_from`` is the one that it began with.
    """

    pair: Pair
    difference: Difference
    machine: Machine
    machines: tuple[str, ...]
    shrunk_from: str
    tries: int = 0


def pairs(a: str, b: str, backend: str, registry: Registry | None = None) -> Iterator[Pair]:
    """Yield the pair as it is, and with each switch that both have set the other way round.

    Raises `SpecError` where one of the specs is wrong.
    """
    registry = registry or default_registry()
    common: dict[str, bool] | None = None
    for text in (a, b):
        parsed = PluginSpec.parse(text)
        registry.make(parsed, "allocator")
        switches = {
            field.name: field.default
            for field in registry.get(parsed.name, "allocator").options()
            if isinstance(field.default, bool) and field.name not in dict(parsed.options)
        }
        common = switches if common is None else dict(set(common.items()) & set(switches.items()))
    registry.make(PluginSpec.parse(backend), "backend")
    yield Pair(a, b, backend)
    for name, default in sorted((common or {}).items()):
        pair = Pair(a, b, backend, f"{name}={'no' if default else 'yes'}")
        try:
            for text in (a, b):
                registry.make(PluginSpec.parse(pair.spec(text)), "allocator")
        except SpecError:  # an older kernel does not know it
            continue
        yield pair


def random_machines(count: int, seed: int) -> Iterator[Machine]:
    """Yield 64-bit machines; equal seeds give equal machines."""
    for number in range(count):
        yield generated(number, seed, _MODES)


def survey(
    pairs: Sequence[Pair], machines: Iterable[Machine], jobs: int, limits: Limits = RUNNING
) -> Iterator[Compared]:
    """Compare every pair on every machine, ``jobs`` at a time, each in a child, in order."""
    todo = [(pair, machine) for machine in machines for pair in pairs]
    parts = [todo[first::jobs] for first in range(jobs)]
    done = [0] * jobs
    found: dict[int, Compared] = {}
    due = 0
    for number, item in together([partial(_some, part) for part in parts], limits):
        pair, machine = parts[number][done[number]]
        if isinstance(item, Stopped):
            item = Compared(pair, machine, refused=_stopped(pair, item))
        found[number + jobs * done[number]] = item
        done[number] += 1
        while due in found:
            yield found.pop(due)
            due += 1


def _some(todo: Sequence[tuple[Pair, Machine]], skip: int) -> Iterator[Compared]:
    return (compared(*item) for item in todo[skip:])


def _stopped(pair: Pair, why: object) -> str:
    return f"{pair.spec(pair.a)} or {pair.spec(pair.b)} under {pair.backend} was stopped: {why}"


def compared(pair: Pair, machine: Machine) -> Compared:
    """Run both on one machine and compare. A run that fails is a reason, not a difference."""
    first, second = pair.runs(machine)
    for run in (first, second):
        if run.verdict.outcome is Outcome.ERROR:
            return Compared(pair, machine, refused=run.verdict.detail)
    return Compared(pair, machine, tuple(differences(first, second)))


def kinds(
    found: Iterable[Compared],
    aspects: Sequence[str] = ASPECTS,
    *,
    seconds: float = 60.0,
    limits: Limits = RUNNING,
    tried: Callable[[str, int], None] | None = None,
) -> Iterator[Kind]:
    """Group what differs by pair and aspect, and shrink the smallest machine of each group.

    ``seconds`` is how long the shrinking of one may take, each try in a child within ``limits``;
    ``tried`` is told of every machine.
    """
    groups: dict[tuple[Pair, str], list[tuple[Machine, Difference]]] = {}
    plain: set[tuple[str, str]] = set()
    for item in sorted(found, key=lambda item: item.pair.switches):
        for difference in item.differences:
            place = item.machine.name, difference.aspect
            if not item.pair.switches:
                plain.add(place)
            elif place in plain:
                continue
            if difference.aspect in aspects:
                groups.setdefault((item.pair, difference.aspect), []).append(
                    (item.machine, difference)
                )
    for (pair, aspect), members in groups.items():
        names = tuple(machine.name for machine, _ in members)
        start, difference = min(members, key=lambda member: measure(member[0]))
        kind = Kind(pair, difference, start, names, start.name)
        yield _shrunk(kind, aspect, seconds, limits, tried) if seconds else kind


def _shrunk(
    kind: Kind,
    aspect: str,
    seconds: float,
    limits: Limits,
    tried: Callable[[str, int], None] | None,
) -> Kind:
    end = time.monotonic() + seconds
    tries = 0

    def differs(machine: Machine) -> bool:
        nonlocal tries
        if time.monotonic() > end or not is_sound(machine, 0):
            return False
        tries += 1
        if tried is not None:
            tried(aspect, tries)
        return differs_in(machine) is not None

    def differs_in(machine: Machine) -> Difference | None:
        answer = asked(machine)
        told = () if isinstance(answer, Stopped) else answer.differences
        return next((one for one in told if one.aspect == aspect), None)

    with Asked(partial(compared, kind.pair), limits) as asked:
        machine, _ = shrink(kind.machine, differs)
        machine = attrs.evolve(machine, name=aspect)
        difference = differs_in(machine) or kind.difference
    return attrs.evolve(kind, machine=machine, difference=difference, tries=tries)
