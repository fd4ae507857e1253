"""Looking for a machine: batches of tries, each batch decided by the seed and its number alone.

A batch begins with fresh machines, generated ones and real ones that were changed a little, and
then changes those that come nearest to the condition (`Condition.distance`), again and again. So a
hunt goes uphill where there is a slope, and a batch gives the same machines on every host, however
many processes share the work.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import cache
from itertools import count

import attrs

from paravirt_mm.hunt.condition import Condition
from paravirt_mm.hunt.edits import changed, is_sound
from paravirt_mm.machine.model import Machine
from paravirt_mm.machine.paging import MODES
from paravirt_mm.run import Run
from paravirt_mm.scenario import Scenario
from paravirt_mm.sources import bundled, bundled_machines
from paravirt_mm.sources.generated import Seeded, any_machine

BATCH = 128
"""Tries of a batch; half of them are fresh."""
KEPT = 6
"""Machines of a batch that come nearest, and are changed further."""


@attrs.frozen
class Quarry:
    """What is hunted: specs, the condition as text, and the real machines to start from.

    ``other`` is the spec of a second allocator, ``modes`` the paging modes that count (none: all).
    """

    allocator: str
    backend: str
    condition: str
    other: str | None = None
    machines: tuple[Machine, ...] = ()
    modes: tuple[str, ...] = ()

    @property
    def start(self) -> tuple[Machine, ...]:
        """The real machines to start from; those of the package where none are given."""
        return self.machines or _bundled()

    def counts(self, machine: Machine) -> bool:
        """Tell whether a machine is in one of the modes that count."""
        return not self.modes or machine.mode.name in self.modes

    def runs(self, machine: Machine) -> tuple[Run, Run | None]:
        """Run the allocator, and the second one, on a machine."""
        run = Scenario.of(machine, self.allocator, self.backend).run()
        if self.other is None:
            return run, None
        return run, Scenario.of(machine, self.other, self.backend).run()

    def holds(self, machine: Machine) -> bool:
        """Tell whether the condition is true of the machine."""
        return _parsed(self.condition).holds(*self.runs(machine))


@cache
def _bundled() -> tuple[Machine, ...]:
    return tuple(bundled(name) for name in bundled_machines())


@cache
def _parsed(text: str) -> Condition:
    return Condition.parse(text)


@attrs.frozen
class BatchResult:
    """What a batch found: the machine (None: nothing), after how many tries, how near it came."""

    number: int
    tries: int
    found: Machine | None
    nearest: float


def run_batch(quarry: Quarry, seed: int, number: int) -> BatchResult:
    """Do one batch; equal arguments give an equal result."""
    choose = Seeded(f"hunt {seed} {number}")
    condition = _parsed(quarry.condition)
    best: list[tuple[float, int, Machine]] = []
    for tries in range(1, BATCH + 1):
        if tries <= BATCH // 2 or not best:
            machine = _fresh(choose, quarry.start, f"hunt-{seed}-{number}-{tries}")
        else:
            machine = changed(choose, choose.one_of(best)[2])
        if not quarry.counts(machine):
            continue
        runs = quarry.runs(machine)
        if condition.holds(*runs):
            return BatchResult(number, tries, machine, 0.0)
        best.append((condition.distance(*runs), tries, machine))
        best.sort(key=lambda item: item[:2])
        del best[KEPT:]
    return BatchResult(number, BATCH, None, best[0][0] if best else 1.0)


def _fresh(choose: Seeded, real: Sequence[Machine], name: str) -> Machine:
    """Return a generated machine, or a real one with a few changes."""
    if choose.one_of((True, False)):
        return any_machine(choose, MODES[choose.one_of(tuple(MODES))], name)
    machine = choose.one_of(real)
    return attrs.evolve(changed(choose, machine), name=name)


@attrs.frozen
class HuntResult:
    """How a hunt ended.

    ``machine`` is what was found (None: nothing), ``tries`` and ``seconds`` what it took,
    ``nearest`` how near the best machine came (0: it holds).
    """

    machine: Machine | None
    tries: int
    seconds: float
    nearest: float = 1.0


def hunt(
    quarry: Quarry,
    *,
    seed: int = 0,
    seconds: float = 60.0,
    jobs: int = 1,
    max_tries: int | None = None,
    progress: Callable[[int, float], None] = lambda tries, nearest: None,
) -> HuntResult:
    """Search until a machine is found, ``seconds`` are over or ``max_tries`` are done.

    Real machines are tried as they are, first of all. ``progress`` hears of every batch: tries so
    far, and the distance of the nearest machine. Raises `SpecError` for wrong specs or conditions.
    """
    began = time.monotonic()
    tries, nearest = 0, 1.0
    condition = _parsed(quarry.condition)
    for machine in quarry.start:
        if not quarry.counts(machine):
            continue
        tries += 1
        runs = quarry.runs(machine)
        if condition.holds(*runs):
            return HuntResult(machine, tries, time.monotonic() - began, 0.0)
        nearest = min(nearest, condition.distance(*runs))

    def is_over() -> bool:
        late = time.monotonic() - began >= seconds
        return late or (max_tries is not None and tries >= max_tries)

    batches = _batches(quarry, seed, jobs, is_over)
    for batch in batches:
        tries += batch.tries
        nearest = min(nearest, batch.nearest)
        progress(tries, nearest)
        if batch.found is not None:
            batches.close()
            return HuntResult(batch.found, tries, time.monotonic() - began, 0.0)
    return HuntResult(None, tries, time.monotonic() - began, nearest)


def _batches(
    quarry: Quarry, seed: int, jobs: int, is_over: Callable[[], bool]
) -> Generator[BatchResult, None, None]:
    """Yield batches in the order of their numbers until time is over, from ``jobs`` processes."""
    if jobs <= 1:
        for number in count():
            if is_over():
                return
            yield run_batch(quarry, seed, number)
    waiting: dict[Future[BatchResult], int] = {}
    done: dict[int, BatchResult] = {}
    submitted = due = 0
    with ProcessPoolExecutor(min(jobs, os.cpu_count() or 1)) as pool:
        try:
            while not is_over():
                while len(waiting) + len(done) < 4 * jobs:
                    waiting[pool.submit(run_batch, quarry, seed, submitted)] = submitted
                    submitted += 1
                finished, _ = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in finished:
                    done[waiting.pop(future)] = future.result()
                while due in done:
                    yield done.pop(due)
                    due += 1
        finally:
            for future in waiting:
                future.cancel()


def alike(quarry: Quarry, machine: Machine) -> Callable[[Machine], bool]:
    """Return the question that a shrinker asks: does the condition hold, for the same reason?

    The outcome must be that of ``machine``, and a verdict's words must be the same but for numbers:
    a panic for want of any memory at all is not the panic that was found.
    """
    wanted = _reason(quarry.runs(machine)[0])
    room = is_sound(machine)
    condition = _parsed(quarry.condition)

    def holds(candidate: Machine) -> bool:
        if room and not is_sound(candidate):
            return False
        runs = quarry.runs(candidate)
        return condition.holds(*runs) and _reason(runs[0]) == wanted

    return holds


def _reason(run: Run) -> tuple[str, str]:
    words = "".join(" " if character.isdigit() else character for character in run.verdict.detail)
    return str(run.verdict.outcome), words.split(":")[0]
