"""Looking for a machine: batches of tries, each batch decided by the seed and its number alone.

A batch begins with fresh machines, generated ones and real ones that were changed a little, and
then changes those that come nearest to the condition (`Condition.distance`), again and again. So a
hunt goes uphill where there is a slope, and a batch gives the same machines on every host, however
many processes share the work.

The processes are children of the guard: each does batch after batch, and notes before each try, in
memory that it shares with its parent, which one it is; now and then it says that it lives. Where a
plugin hangs or ends the process, a new child does the batch again up to there, and takes that try
for an error.
"""

from __future__ import annotations

import mmap
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import cache, cached_property
from itertools import chain, islice

import attrs

from paravirt_mm.engine.trace import RangeSplit, TablesAllocated
from paravirt_mm.errors import SpecError
from paravirt_mm.guard import TRYING, Limits, Stopped, together
from paravirt_mm.hunt.account import Account
from paravirt_mm.hunt.condition import Condition
from paravirt_mm.hunt.edits import ROOM_FOR_BRK, changed, in_mode, is_sound, small
from paravirt_mm.machine.model import Machine
from paravirt_mm.machine.paging import MODES
from paravirt_mm.options import PluginSpec
from paravirt_mm.registry import default_registry
from paravirt_mm.run import Outcome, Run
from paravirt_mm.scenario import Scenario, replaced
from paravirt_mm.sources import bundled, bundled_machines
from paravirt_mm.sources.generated import Seeded, any_machine
from paravirt_mm.untouched import unchanged

BATCH = 128
"""Tries of a batch; half of them are fresh."""
LONG = 4
"""Each so manieth batch is so many times as long, with no more fresh machines: some ways up take
hundreds of changes.
"""
KEPT = 6
"""Machines of a batch that come nearest, and are changed further."""
_MARKED = 300
"""Events of a run that are looked through for places of interest."""
_START = -1
"""The number of the batch that has the real machines as they are."""
_DRAWS = 20
"""So often another machine is drawn in place of one that the batch has tried."""
_PLUS = 20
"""Events that a try takes as long as, besides those of its trace."""
_WORK = 20_000
"""Events after which a batch has no more fresh machines that are large: some allocators make a step
of every 2 MiB, and a few machines of many TiB would take nearly all of the time.
"""
_NOTE = 8
"""Bytes of the note which try a process is at."""
_SIGN_OF_LIFE = 0.05
"""Seconds after which a process at work says so; to say it at each try would take a tenth of it."""

Runs = tuple[Run, Run | None]
"""The run of the allocator on a machine, and that of the second one, if there is any."""


@attrs.frozen
class Quarry:
    """What is hunted: specs, the condition as text, and the real machines to start from.

    ``other`` is the spec of a second allocator, ``other_backend`` what it runs under if that is not
    the same; ``modes`` are the paging modes that count (none: all).
    """

    allocator: str
    backend: str
    condition: str
    other: str | None = None
    other_backend: str | None = None
    machines: tuple[Machine, ...] = ()
    modes: tuple[str, ...] = ()

    @property
    def start(self) -> tuple[Machine, ...]:
        """The real machines to start from; those of the package where none are given."""
        return self.machines or tuple(map(bundled, bundled_machines()))

    @property
    def sides(self) -> tuple[tuple[str, str], ...]:
        """Allocator and backend of each run; the second is what the first is compared with."""
        first = self.allocator, self.backend
        if self.other is None and self.other_backend is None:
            return (first,)
        allocator, backend = self.other, self.other_backend
        return first, (
            self.allocator if allocator is None else allocator,
            self.backend if backend is None else backend,
        )

    def check(self) -> None:
        """Raise `SpecError` for a spec that fits no installed plugin, a condition that is none, or
        one that speaks of a second allocator or a plugin that has no part in the hunt.
        """
        registry = default_registry()
        plugins: set[str] = set()
        for side in self.sides:
            for text, role in zip(side, ("allocator", "backend"), strict=True):
                name, _ = registry.make(PluginSpec.parse(text), role)
                plugins.add(name.rpartition(":")[2])
        condition = _parsed(self.condition)
        if condition.needs_other and len(self.sides) == 1:
            raise SpecError(
                f"the condition {self.condition!r} speaks of a second allocator: add --against"
            )
        for name in sorted(condition.names):
            if name.partition(".")[0] not in plugins:
                raise SpecError(
                    f"condition {self.condition!r}: there is no figure {name!r}: the plugins of "
                    f"this hunt are {', '.join(sorted(plugins))}"
                )

    def counts(self, machine: Machine) -> bool:
        """Tell whether a machine is in one of the modes that count."""
        return not self.modes or machine.mode.name in self.modes

    def _scenarios(self, machine: Machine) -> Iterator[Scenario]:
        return (Scenario.of(machine, *side) for side in self.sides)

    def runs(self, machine: Machine, *, watched: bool = True, extra: bool = True) -> Runs:
        """Run the allocator, and the second one, on a machine (``watched``, ``extra``:
        `Scenario.run`).
        """
        first, *second = (one.run(watched=watched, extra=extra) for one in self._scenarios(machine))
        return first, second[0] if second else None

    def suspects(self) -> tuple[str, ...]:
        """Return the plugins of others that take part."""
        registry = default_registry()
        found = (one.suspects(registry) for one in self._scenarios(self.start[0]))
        return tuple(dict.fromkeys(chain.from_iterable(found)))

    def stopped(self, machine: Machine, reason: object) -> Runs:
        """Return what `runs` cannot, because one of the two had to be stopped."""
        first, *second = (one.stopped(reason) for one in self._scenarios(machine))
        return first, second[0] if second else None

    def judge(self, machine: Machine, stopped: object = None) -> tuple[bool, Reason]:
        """Tell whether the condition is true of the machine, and the reason for how it ended."""
        runs = self.runs(machine) if stopped is None else self.stopped(machine, stopped)
        return _parsed(self.condition).holds(*runs), _reason(runs[0])

    def holds(self, machine: Machine) -> bool:
        """Tell whether the condition is true of the machine."""
        return _parsed(self.condition).holds(*self.runs(machine))


@cache
def _parsed(text: str) -> Condition:
    return Condition.parse(text)


@attrs.frozen
class BatchResult:
    """What a batch found: the machine (None: nothing), after how many tries, how near it came; how
    many tries were errors of a plugin, and what the first one was. ``figures`` are those of plugins
    that were seen on the machines to start from. ``account`` is of all its runs, where
    nothing was found.
    """

    number: int
    tries: int
    found: Machine | None
    nearest: float
    errors: int = 0
    error: str = ""
    figures: frozenset[str] = frozenset()
    account: Account | None = None


def run_batch(quarry: Quarry, seed: int, number: int) -> BatchResult:
    """Do one batch; equal arguments give an equal result."""
    for item in _batch(quarry, seed, number, {}):
        if isinstance(item, BatchResult):
            return item
    raise AssertionError("a batch has a result")


def _batch(
    quarry: Quarry,
    seed: int,
    number: int,
    stopped: Mapping[int, str],
    most: int | None = None,
) -> Iterator[int | BatchResult]:
    """Do one batch, of ``most`` tries at the most (None: all): yield the number of each try before
    it is made, and the result in the end.

    ``stopped`` says which tries had to be stopped when they were made, and why. Plugins of others
    are watched over a whole batch: to look after each try would take as long as the try.
    """
    suspects = quarry.suspects()
    # What a plugin of others does wrong when it is asked for figures, nobody else would find out.
    extra = _parsed(quarry.condition).needs_extra or bool(suspects)
    tried = _tried(quarry, seed, number, stopped, most, extra=extra)
    if not suspects:
        yield (yield from tried)
        return
    with unchanged(dice=False) as touched:
        result = yield from tried
    if touched:
        error = f"error: {replaced(suspects, touched)}"
        result = BatchResult(number, result.tries, None, 1.0, result.tries, error)
    yield result


def _tried(
    quarry: Quarry,
    seed: int,
    number: int,
    stopped: Mapping[int, str],
    most: int | None,
    *,
    extra: bool,
) -> Generator[int, None, BatchResult]:
    """Yield the number of each try before it is made; return the result. ``extra``: plugins are
    asked for figures.
    """
    condition = _parsed(quarry.condition)
    best = _Best()
    errors, error, tries = 0, "", 0
    figures: set[str] = set()
    account = condition.account()
    started = number == _START
    machines = filter(quarry.counts, quarry.start) if started else _made(quarry, seed, number, best)
    for machine in islice(machines, most):
        tries += 1
        yield tries
        why = stopped.get(tries)
        if why is None:
            runs = quarry.runs(machine, watched=False, extra=extra)
        else:
            runs = quarry.stopped(machine, why)
        failed = [run for run in runs if run and run.verdict.outcome is Outcome.ERROR]
        errors += bool(failed)
        error = error or (str(failed[0].verdict) if failed else "")
        if started and condition.names:
            figures.update(*(_numbers_of_plugins(run) for run in runs if run))
        condition.enter(account, *runs)
        distance = condition.distance(*runs)
        if distance == 0:
            return BatchResult(number, tries, machine, 0.0, errors, error)
        best.add(distance, runs, machine)
    return BatchResult(
        number, tries, None, best.nearest, errors, error, frozenset(figures), account
    )


def _size(number: int) -> int:
    """Return how many tries a batch has."""
    return BATCH * LONG if number % LONG == LONG - 1 else BATCH


def _made(quarry: Quarry, seed: int, number: int, best: _Best) -> Iterator[Machine]:
    """Yield the machines of a batch, each another one: fresh ones first, then changes of those that
    are the best so far.
    """
    choose = Seeded(f"hunt {seed} {number}")
    name = f"hunt-{seed}-{number}"
    made = {attrs.evolve(machine, name=name) for machine in quarry.start}
    for place in range(_size(number)):
        for _ in range(_DRAWS):
            if place < BATCH // 2 or not best.kept:
                machine = _fresh(choose, quarry, name, only_small=best.work > _WORK)
            else:
                machine = best.changed(choose, _parsed(quarry.condition))
            if not quarry.counts(machine):
                machine = in_mode(machine, MODES[choose.one_of(quarry.modes)])
                if not is_sound(machine, ROOM_FOR_BRK):
                    continue
            if machine not in made:
                made.add(machine)
                yield machine
                break


def _numbers_of_plugins(run: Run) -> Iterator[str]:
    return (
        name
        for name, value in run.figures.items()
        if "." in name and isinstance(value, int | float)
    )


@attrs.frozen(slots=False)
class _Tried:
    """A machine that was tried, and what changes of it go by."""

    machine: Machine
    runs: Runs

    @cached_property
    def marks(self) -> Sequence[int]:
        """Where something began or ended."""
        return _marks(self.runs[0])


class _Best:
    """The machines of a batch that come nearest to the condition, and do not all do the same.

    Of those whose run ends alike after as many events the first is kept. Where there is no slope,
    that is where all are as far from the condition, any of the others may be changed further. As
    much work is done for each, by the events of its run: else nearly all would be for large
    machines, of which no two do the same.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[float, Outcome, int], _Tried] = {}
        self._limit = 1.0
        """What is further away is not kept."""
        self._weights: list[float] = []
        self.work = 0
        """Events of all runs."""

    @property
    def kept(self) -> list[_Tried]:
        """What is changed further."""
        return list(self._kept.values())

    def changed(self, choose: Seeded, condition: Condition) -> Machine:
        """Return one of them, changed: the less work it is, the oftener."""
        one = choose.in_proportion(self.kept, self._weights)
        return changed(choose, one.machine, one.marks, condition.leads(*one.runs))

    @property
    def nearest(self) -> float:
        """How near the best came."""
        return min((distance for distance, _, _ in self._kept), default=1.0)

    def add(self, distance: float, runs: Runs, machine: Machine) -> None:
        """Enter a machine that was tried."""
        events = len(runs[0].trace)
        self.work += events
        if distance > self._limit:
            return
        key = distance, runs[0].verdict.outcome, events
        if key in self._kept:
            return
        self._kept[key] = _Tried(machine, runs)
        if len(self._kept) >= KEPT:
            self._limit = sorted(distance for distance, _, _ in self._kept)[KEPT - 1]
            self._kept = {key: kept for key, kept in self._kept.items() if key[0] <= self._limit}
        self._weights = [1 / (_PLUS + events) for _, _, events in self._kept]


def _marks(run: Run) -> list[int]:
    """Return where something began or ended in a run: the kernel, a step, pages for tables."""
    if not run.trace.begun:
        return []
    start = run.trace.start
    kernel = start.boot.kernel_of(start.machine)
    marks = {*kernel.span, *kernel.loaded, kernel.brk_start}
    for event in islice(run.trace, _MARKED):
        if isinstance(event, RangeSplit):
            marks |= {event.start, event.end}
        elif isinstance(event, TablesAllocated):
            marks.update(*(part.run.span for part in event.batch.pages))
    return sorted(marks)


def _fresh(choose: Seeded, quarry: Quarry, name: str, *, only_small: bool = False) -> Machine:
    """Return a generated machine, or a real one with a few changes; every other one is small."""
    if only_small:
        return small(choose, _fresh(choose, quarry, name))
    if choose.one_of((True, False)):
        machine = any_machine(choose, MODES[choose.one_of(quarry.modes or tuple(MODES))], name)
        if choose.one_of((True, False)):
            return machine
    else:
        machine = choose.one_of(quarry.start)
    if choose.one_of((True, False)):
        machine = small(choose, machine)
    return attrs.evolve(changed(choose, machine), name=name)


@attrs.frozen
class HuntResult:
    """How a hunt ended.

    ``machine`` is what was found (None: nothing), ``tries`` and ``seconds`` what it took,
    ``nearest`` how near the best machine came (0: it holds). ``errors`` of the tries were faults
    of a plugin, ``error`` is the first. ``figures`` are the plugins' that were seen on the machines
    to start from, where the condition asks for any. ``account`` is of the runs of all batches that
    ended, where nothing was found.
    """

    machine: Machine | None
    tries: int
    seconds: float
    nearest: float = 1.0
    errors: int = 0
    error: str = ""
    figures: frozenset[str] = frozenset()
    account: Account | None = None


def hunt(
    quarry: Quarry,
    *,
    seed: int = 0,
    seconds: float,
    jobs: int = 1,
    max_tries: int | None = None,
    limits: Limits = TRYING,
    progress: Callable[[int, float], None] = lambda tries, nearest: None,
) -> HuntResult:
    """Search until a machine is found, ``seconds`` are over or ``max_tries`` are done.

    Real machines are tried as they are, first of all. A try that goes beyond its ``limits`` is an
    error; one that is not done when the time is over is given up. ``progress`` hears of every
    batch: tries so far, and the distance of the nearest machine. Raises `SpecError` for wrong specs
    or conditions.
    """
    began = time.monotonic()
    result = HuntResult(None, 0, 0.0)
    account = _parsed(quarry.condition).account()
    width = max(1, min(jobs, os.cpu_count() or 1))
    ways = [_Way(quarry, seed, number + _START, width, max_tries) for number in range(width)]
    waiting: dict[int, BatchResult] = {}
    due = _START
    items = together([way.work for way in ways], limits, until=began + seconds)
    try:
        for number, item in items:
            batch = ways[number].hear(item)
            if batch is not None:
                waiting[batch.number] = batch
            while due in waiting:
                batch = waiting.pop(due)
                due += 1
                if batch.account is not None:
                    account.merge(batch.account)
                result = HuntResult(
                    batch.found,
                    result.tries + batch.tries,
                    time.monotonic() - began,
                    min(result.nearest, batch.nearest),
                    result.errors + batch.errors,
                    result.error or batch.error,
                    result.figures | batch.figures,
                )
                progress(result.tries, result.nearest)
                if batch.found is not None:
                    return result
    finally:
        items.close()
    for _, batch in sorted(waiting.items()):
        if batch.account is not None:
            account.merge(batch.account)
    # What was found in a batch that is ahead of the others counts when there is nothing before it.
    ahead = min((batch.number for batch in waiting.values() if batch.found), default=None)
    machine = None if ahead is None else waiting[ahead].found
    stopped = [why for way in ways for why in way.stopped.values()]
    error = str(quarry.stopped(quarry.start[0], stopped[0])[0].verdict) if stopped else ""
    return attrs.evolve(
        result,
        machine=machine,
        nearest=0.0 if machine else result.nearest,
        tries=result.tries
        + sum(batch.tries for batch in waiting.values())
        + sum(way.tries for way in ways),
        seconds=time.monotonic() - began,
        errors=result.errors + len(stopped),
        error=result.error or error,
        account=account,
    )


class _Way:
    """Every so manieth batch, one after the other: what a child does, and what it has said."""

    def __init__(
        self, quarry: Quarry, seed: int, number: int, by: int, max_tries: int | None
    ) -> None:
        self.by = by
        self._max_tries = max_tries
        self._quarry = quarry
        self._seed = seed
        self._number = number
        self._heard = 0
        """Tries of the batches that have ended."""
        self._noted = mmap.mmap(-1, _NOTE)
        """How many tries the child has begun, in memory that parent and child share."""
        self.stopped: dict[int, str] = {}

    def work(self, _: int) -> Iterator[int | BatchResult]:
        """In the child, which knows how far the ones before it came."""
        number, stopped, before = self._number, self.stopped, self._heard
        said = time.monotonic()
        while (most := self._left(number)) > 0:
            for item in _batch(self._quarry, self._seed, number, stopped, most):
                if isinstance(item, BatchResult):
                    before += item.tries
                else:
                    self.note(before + item)
                    if time.monotonic() < said + _SIGN_OF_LIFE:
                        continue
                said = time.monotonic()
                yield item
            number, stopped = number + self.by, {}

    def note(self, tries: int) -> None:
        """Note how many tries have begun."""
        self._noted[:] = tries.to_bytes(_NOTE, sys.byteorder)

    @property
    def tries(self) -> int:
        """How many tries have begun in batches that have not ended."""
        return int.from_bytes(self._noted[:], sys.byteorder) - self._heard

    def _left(self, number: int) -> int:
        """Return how many tries are left for a batch where those before it made all of theirs."""
        start = len(self._quarry.start)
        if self._max_tries is None:
            return max(start, _size(number))
        return self._max_tries - (0 if number == _START else start + sum(map(_size, range(number))))

    def hear(self, item: int | BatchResult | Stopped) -> BatchResult | None:
        """Take what the child said; return the batch if it has ended."""
        if isinstance(item, Stopped):
            self.stopped[self.tries] = str(item)
        elif isinstance(item, BatchResult):
            self._heard += item.tries
            self._number, self.stopped = item.number + self.by, {}
            return item
        return None


Reason = tuple[str, str]
"""An outcome, and the words of a verdict but for numbers: a panic for want of any memory at all is
not the panic that was found.
"""


def _reason(run: Run) -> Reason:
    words = "".join(" " if character.isdigit() else character for character in run.verdict.detail)
    return str(run.verdict.outcome), words.split(":")[0]
