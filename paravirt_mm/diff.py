"""Two allocators side by side on many machines: where they differ, in what, and the smallest
machine that tells them apart.

What is compared of two runs stands in `differences`.

Switches that both allocators have (options that are yes or no) and that neither spec sets are tried
the other way round too. Of those only machines count that do not differ in the same without.

A real kernel lies where it is linked to run. Beside one, a model has its image there as well, and
random machines are such as the kernel can boot on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial

import attrs

from paravirt_mm.differences import ASPECTS, Difference, differences
from paravirt_mm.engine import contract
from paravirt_mm.engine.trace import RunStarted
from paravirt_mm.errors import SpecError
from paravirt_mm.guard import RUNNING, Asked, Limits, Stopped, together
from paravirt_mm.hunt.shrink import measure, shrink_by
from paravirt_mm.instances import Instances
from paravirt_mm.machine.model import Machine
from paravirt_mm.options import PluginSpec
from paravirt_mm.registry import Registry, default_registry
from paravirt_mm.run import Outcome, Run
from paravirt_mm.scenario import Scenario
from paravirt_mm.sources.generated import generated
from paravirt_mm.verify.linux.boots import kernel_facts
from paravirt_mm.verify.linux.maps import machine_of_map, random_maps
from paravirt_mm.verify.linux.qemu import KernelFacts

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

    def runs(self, machine: Machine, registry: Registry | None = None) -> Iterator[tuple[int, Run]]:
        """Run both on a machine, a real kernel first; yield 0 for ``a`` or 1 for ``b``, and the
        run. Raises `SpecError`.
        """
        texts = self.a, self.b
        for number in sorted((0, 1), key=lambda number: not is_real(texts[number], registry)):
            text = self.spec(texts[number])
            run = Scenario.of(machine, text, self.backend).run(registry)
            yield number, run
            if is_real(text, registry) and run.trace.begun:
                machine = _with_kernel_of(machine, run)


def is_real(spec: str, registry: Registry | None = None) -> bool:
    """Tell whether an allocator is a real kernel, which boots. Raises `SpecError`."""
    name = PluginSpec.parse(spec).name
    return "pvmm_kernel_file" in (registry or default_registry()).get(name, "allocator").hooks


def _with_kernel_of(machine: Machine, run: Run) -> Machine:
    begun = next(run.trace.of(RunStarted))
    return attrs.evolve(machine, kernel=begun.boot.kernel_of(begun.machine))


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
    common = _switches(a, registry) & _switches(b, registry)
    registry.make(PluginSpec.parse(backend), "backend")
    yield Pair(a, b, backend)
    for name, default in sorted(common):
        pair = Pair(a, b, backend, f"{name}={'no' if default else 'yes'}")
        try:
            for text in (a, b):
                registry.make(PluginSpec.parse(pair.spec(text)), "allocator")
        except SpecError:  # an older kernel does not know it, or the caller has set it
            continue
        yield pair


def _switches(text: str, registry: Registry) -> set[tuple[str, bool]]:
    """Return the options of an allocator that are yes or no, with what they are where nobody says.
    Raises `SpecError`.
    """
    spec = PluginSpec.parse(text)
    registry.make(spec, "allocator")
    options = registry.get(spec.name, "allocator").options()
    return {(one.name, one.default) for one in options if isinstance(one.default, bool)}


def kernels_of(specs: Iterable[str], machine: Machine) -> Iterator[KernelFacts]:
    """Yield what decides on which machines the real kernels among some allocators boot.

    ``machine`` is any machine. Raises `SpecError`, and `InputError` where a kernel cannot be read.
    """
    for text in specs:
        made = Instances([default_registry().make(PluginSpec.parse(text), "allocator")])
        file = contract.kernel_file(made.call("pvmm_kernel_file", machine=machine))
        if file is not None:
            yield kernel_facts(file.image)


def random_machines(
    count: int, seed: int, kernels: Sequence[KernelFacts] = ()
) -> Iterator[Machine]:
    """Yield 64-bit machines on which the ``kernels`` boot; equal seeds (and kernels of equal size)
    give equal machines.
    """
    if kernels:
        yield from map(machine_of_map, random_maps(count, seed, KernelFacts.of_all(kernels)))
        return
    for number in range(count):
        yield generated(number, seed, _MODES)


def survey(
    pairs: Sequence[Pair],
    machines: Iterable[Machine],
    jobs: int,
    limits: Limits = RUNNING,
    registry: Registry | None = None,
) -> Iterator[Compared]:
    """Compare every pair on every machine, ``jobs`` at a time, each in a child, in order."""
    todo = [(pair, machine) for machine in machines for pair in pairs]
    parts = [todo[first::jobs] for first in range(jobs)]
    done = [0] * jobs
    found: dict[int, Compared] = {}
    due = 0
    for number, item in together([partial(_some, part, registry) for part in parts], limits):
        pair, machine = parts[number][done[number]]
        if isinstance(item, Stopped):
            item = Compared(pair, machine, refused=_stopped(pair, item))
        found[number + jobs * done[number]] = item
        done[number] += 1
        while due in found:
            yield found.pop(due)
            due += 1


def _some(
    todo: Sequence[tuple[Pair, Machine]], registry: Registry | None, skip: int
) -> Iterator[Compared]:
    return (compared(*item, registry) for item in todo[skip:])


def _stopped(pair: Pair, why: object) -> str:
    return f"{pair.spec(pair.a)} or {pair.spec(pair.b)} under {pair.backend} was stopped: {why}"


def compared(pair: Pair, machine: Machine, registry: Registry | None = None) -> Compared:
    """Run both on one machine and compare. A run that fails is a reason, not a difference."""
    runs: dict[int, Run] = {}
    for number, run in pair.runs(machine, registry):
        if run.verdict.outcome is Outcome.ERROR:
            return Compared(pair, machine, refused=run.verdict.detail)
        runs[number] = run
    recorded = is_real(pair.a, registry) != is_real(pair.b, registry)
    return Compared(pair, machine, tuple(differences(runs[0], runs[1], recorded=recorded)))


def _answer(registry: Registry | None, question: tuple[Pair, Machine]) -> Compared:
    return compared(*question, registry)


def kinds(
    found: Iterable[Compared],
    aspects: Sequence[str] = ASPECTS,
    *,
    seconds: float,
    jobs: int = 1,
    limits: Limits = RUNNING,
    tried: Callable[[str, int], None] | None = None,
    registry: Registry | None = None,
) -> Iterator[Kind]:
    """Group what differs by pair and aspect, and shrink the smallest machine of each group.

    ``seconds`` is how long the shrinking of one may take, ``jobs`` machines at a time, each in a
    child within ``limits``; ``tried`` is told how many there were.
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
    with ExitStack() as stack:
        answer = partial(_answer, registry)
        workers = [stack.enter_context(Asked(answer, limits)) for _ in range(jobs)]
        for (pair, _), members in groups.items():
            names = tuple(machine.name for machine, _ in members)
            start, difference = min(members, key=lambda member: measure(member[0]))
            kind = Kind(pair, difference, start, names, start.name)
            yield _shrunk(kind, seconds, workers, tried) if seconds else kind


def _shrunk(
    kind: Kind,
    seconds: float,
    workers: Sequence[Asked[Compared]],
    tried: Callable[[str, int], None] | None,
) -> Kind:
    aspect = kind.difference.aspect
    end = time.monotonic() + seconds
    tries = 0
    told: dict[Machine, Difference] = {}

    def first(machines: Sequence[Machine]) -> int | None:
        nonlocal tries
        tries += len(machines)
        if tried is not None:
            tried(aspect, tries)
        for worker, machine in zip(workers, machines, strict=False):
            worker.ask((kind.pair, machine))
        answers = [worker.answer() for worker, _ in zip(workers, machines, strict=False)]
        for number, answer in enumerate(answers):
            found = () if isinstance(answer, Stopped) else answer.differences
            for one in found:
                if one.aspect == aspect:
                    told[machines[number]] = one
                    return number
        return None

    machine, _ = shrink_by(kind.machine, first, len(workers), until=end)
    difference = told.get(machine, kind.difference)
    machine = attrs.evolve(machine, name=aspect)
    return attrs.evolve(kind, machine=machine, difference=difference, tries=tries)
