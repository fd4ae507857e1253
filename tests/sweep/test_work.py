"""What a part costs and gives, with every failure in its own row: records, children, chunks."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

from paravirt_mm import E820Type, Machine, MemoryMap, hookimpl
from paravirt_mm.cli.sweep import command
from paravirt_mm.errors import InputError, SpecError
from paravirt_mm.machine.model import Provenance
from paravirt_mm.machine.paging import GIB, MIB, MODES
from paravirt_mm.options import PluginSpec
from paravirt_mm.registry import default_registry
from paravirt_mm.sources import load
from paravirt_mm.sources.inputs import FilePart, GeneratedPart
from paravirt_mm.sweep import child, guard, work
from paravirt_mm.sweep.drive import drive
from paravirt_mm.sweep.guard import Guard, Stopping, machines_of, run_chunk
from paravirt_mm.sweep.questions import ask, select
from paravirt_mm.sweep.settings import (
    LIMIT,
    UNREADABLE,
    Chunk,
    ChunkResult,
    MachineRecord,
    Record,
    RunRecord,
    Settings,
)
from paravirt_mm.sweep.store import Store
from paravirt_mm.testing.registries import registry_with

GOOD = "incremental:kernel=4.19"
SETTINGS = Settings((GOOD, "legacy_linear:kernel=3.6"), ("native", "xen"), memory_limit=256 * MIB)
SMALL = "asus-l8400-256m"
MACHINE = Machine("small", MemoryMap.sanitise([(0, 64 * MIB, E820Type.RAM)]))


@attrs.frozen
class Machines:
    """A part of several machines; a name of None cannot be read."""

    names: tuple[str | None, ...]
    source: str = "made"

    def digest(self) -> str:
        return repr(self.names)

    def machines(self, boot: int | None) -> Iterator[tuple[str, Machine | InputError]]:
        for name in self.names:
            source = f"{self.source}:{name}"
            if name is None:
                yield source, InputError("no \x1b[1m memory map", source)
            else:
                yield source, attrs.evolve(MACHINE, name=name)


SEVERAL = Machines(("one", None, "two"))


@attrs.frozen
class Odd:
    """An allocator that does what the machine's name says."""

    pvmm_api: ClassVar[int] = 1

    @hookimpl
    def pvmm_promise(self, boot: Any) -> Any:
        way = boot.machine.name
        if way == "spin":
            signal.setitimer(signal.ITIMER_PROF, 1e-3)  # as if it had
        while way == "spin":
            pass
        if way == "die":
            os._exit(7)
        if way == "memory":
            raise MemoryError
        raise ValueError("odd")

    @hookimpl
    def pvmm_map_steps(self, boot: Any) -> Any:
        raise AssertionError("it promised nothing")

    @hookimpl
    def pvmm_allocate_tables(self, boot: Any, step: Any, demand: Any) -> Any:
        raise AssertionError("it promised nothing")


class Forked:
    """Stands for `subprocess.Popen` of a child: the same code, without the start of Python."""

    started: ClassVar[list[Forked]] = []

    def __init__(self, command: list[str], pass_fds: list[int], **given: Any) -> None:
        assert command[:3] == [sys.executable, "-m", child.__name__]
        assert pass_fds == [int(command[3])]
        assert given["stdout"] == given["stderr"] == given["stdin"] == -3  # /dev/null
        assert given["env"]["OPENBLAS_NUM_THREADS"] == "1"
        assert given["env"].items() >= os.environ.items() - {("OPENBLAS_NUM_THREADS", "")}
        self.code: int | None = None
        self.ended = False
        self.started.append(self)
        self.pid = os.fork()
        if not self.pid:
            code = 70
            try:
                os.closerange(3, pass_fds[0])
                os.closerange(pass_fds[0] + 1, 1 << 20)
                sys.argv[:] = ["child", command[3]]
                child.main()
                code = 0
            finally:
                os._exit(code)

    def poll(self) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def wait(self) -> int:
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def kill(self) -> None:
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Forked]]:
    """Children are forked from here, and know the plugin `Odd`."""
    monkeypatch.setattr("subprocess.Popen", Forked)
    monkeypatch.setattr(child, "default_registry", lambda: registry_with(odd=Odd))
    Forked.started.clear()
    yield Forked.started
    guard.close_all()
    assert all(one.code is not None for one in Forked.started)


def _kinds(records: tuple[Record, ...]) -> list[str]:
    return [r.outcome if isinstance(r, RunRecord) else r.source for r in records]


def test_each_machine_and_then_its_scenarios() -> None:
    """An input that gives no machine keeps its rows, which say why; in words that do no harm."""
    found = tuple(work.records(SEVERAL, SETTINGS, default_registry(), 0))
    bad = [UNREADABLE] * 4
    good = ["ok"] * 4
    assert _kinds(found) == ["made:one", *good, "made:None", *bad, "made:two", *good]
    assert found[5] == MachineRecord("made:None", error=r"made:None: no \x1b[1m memory map")
    for position in (1, 6, 11):
        rows = found[position : position + 4]
        scenarios = tuple((r.allocator, r.backend) for r in rows if isinstance(r, RunRecord))
        assert scenarios == SETTINGS.scenarios
    assert [r.verdict for r in found[6:10] if isinstance(r, RunRecord)] == [found[5].error] * 4
    pairs = list(machines_of(found))
    assert [machine.facts.get("machine") for machine, _ in pairs] == ["one", None, "two"]
    assert [row for _, rows in pairs for row in rows] == [
        r for r in found if isinstance(r, RunRecord)
    ]
    assert list(machines_of(())) == []


def test_records_that_are_known_are_left_out_and_cost_no_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wherever a child ended, the next one goes on: no record twice, none missing."""
    whole = tuple(work.records(SEVERAL, SETTINGS, default_registry(), 0))
    ran = [record for record in whole if isinstance(record, RunRecord) and record.outcome == "ok"]
    on = [
        machine.facts["machine"]
        for machine, rows in machines_of(whole)
        for row in rows
        if row.outcome == "ok"
    ]
    made: list[RunRecord] = []

    def run(machine: Machine, allocator: str, backend: str, _: object) -> RunRecord:
        assert machine.name == on[len(ran) - left + len(made)]
        made.append(ran[len(ran) - left + len(made)])
        assert made[-1].allocator == allocator
        assert made[-1].backend == backend
        return made[-1]

    monkeypatch.setattr(work, "run", run)
    for done in range(len(whole) + 1):
        made.clear()
        left = sum(record in ran for record in whole[done:])
        assert tuple(work.records(SEVERAL, SETTINGS, default_registry(), done)) == whole[done:]
        assert len(made) == left


def test_what_goes_wrong_is_in_the_row() -> None:
    """A plugin's exception is its fault; memory that ran out is a limit, whoever says so."""
    registry = registry_with(odd=Odd)
    rows = [
        work.run(attrs.evolve(MACHINE, name=name), spec, "native", registry)
        for name, spec in (("x", "odd"), ("memory", "odd"), ("x", "incremental:kernel=x"))
    ]
    assert [row.outcome for row in rows] == ["error", LIMIT, "error"]
    assert (
        rows[0].verdict == "error: plugin odd (unregistered): pvmm_promise raised ValueError: odd"
    )
    assert rows[1] == RunRecord("odd", "native", LIMIT, "memory limit")
    assert "kernel" in rows[2].verdict


def test_memory_that_runs_out_elsewhere_is_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("paravirt_mm.scenario.Scenario.of", of)
    assert work.run(MACHINE, "a", "b", default_registry()).outcome == LIMIT


def test_facts_of_a_machine() -> None:
    """Two pieces of RAM have one hole; a last half page is no RAM."""
    pieces = [(0, 0x9FC00, E820Type.RAM), (MIB, 64 * MIB + 0x800, E820Type.RAM)]
    machine = Machine(
        "a\x1b", MemoryMap.sanitise(pieces), MODES["i386"],
        provenance=Provenance("made", title="t\x1b", kernel_release="5\x1b"),
    )  # fmt: skip
    assert work.facts(machine) == {
        "machine": r"a\x1b",
        "title": r"t\x1b",
        "kernel_release": r"5\x1b",
        "mode": "i386",
        "ram_bytes": 63 * MIB + 0x9F000,
        "ram_end": 64 * MIB,
        "holes": 1,
        "e820_entries": 2,
        "max_pfn": 64 * MIB >> 12,
        "pse": machine.features.pse,
        "gbpages": machine.features.gbpages,
    }
    assert work.facts(MACHINE)["kernel_release"] is None
    assert work.facts(MACHINE)["holes"] == 0


def test_one_child_does_part_after_part(forked: list[Forked]) -> None:
    """What a child sends is what the work gives here."""
    settings = attrs.evolve(SETTINGS, allocators=(GOOD, "no_such_plugin"))
    mine = Guard(settings)
    for part in (FilePart(SMALL), SEVERAL, GeneratedPart(3, 1)):
        expected = tuple(work.records(part, settings, registry_with(odd=Odd), 0))
        assert mine.part(part) == expected
    assert len(forked) == 1
    mine.close()
    assert forked[0].code is not None
    mine.close()  # there is none any more
    assert mine.part(SEVERAL)[1].outcome == "ok"  # type: ignore[union-attr]  # a row
    mine.close()


@pytest.mark.slow
def test_a_scenario_that_ends_its_child_costs_its_own_row(forked: list[Forked]) -> None:
    """Which limit it was, or how it died, is in the row; the other rows are as without it."""
    settings = Settings((GOOD, "odd"), ("native",), time_limit=5.0, memory_limit=256 * MIB)
    mine = Guard(settings)
    names = ("good", "spin", "die", None, "memory")
    found = mine.part(Machines(names))
    mine.close()
    assert _kinds(found) == [
        "made:good", "ok", "error", "made:spin", "ok", LIMIT, "made:die", "ok", "error",
        "made:None", UNREADABLE, UNREADABLE, "made:memory", "ok", LIMIT,
    ]  # fmt: skip
    odd = [r for r in found if isinstance(r, RunRecord) and r.allocator == "odd"]
    assert [row.verdict for row in odd[1:3]] == [
        "longer than 5 s", "its process ended with exit code 7",
    ]  # fmt: skip
    assert odd[4].verdict == "more than 256M of memory"
    assert all(row.backend == "native" for row in odd)
    assert len(forked) == 4  # one for each that ended, and the last
    good = [r for r in found if isinstance(r, RunRecord) and r.allocator == GOOD]
    alone = attrs.evolve(settings, allocators=(GOOD,))
    assert good == list(work.records(Machines(names), alone, default_registry(), 0))[1::2]


@attrs.frozen
class Deadly:
    """A part whose reading ends the process, behind its first machine."""

    source: str = "deadly"

    def machines(self, boot: int | None) -> Iterator[tuple[str, Machine]]:
        yield "first", MACHINE
        os._exit(3)


def test_reading_that_ends_its_child_costs_the_rest_of_the_part(forked: list[Forked]) -> None:
    mine = Guard(Settings((GOOD,), ("native",)))
    found = mine.part(Deadly())  # type: ignore[arg-type]  # nobody asks for its digest
    why = "reading it: its process ended with exit code 3"
    assert found[2:] == (
        MachineRecord("deadly", error=why), RunRecord(GOOD, "native", UNREADABLE, why),
    )  # fmt: skip
    assert _kinds(found[:2]) == ["first", "ok"]
    mine.close()


def test_a_child_that_cannot_start_is_told(
    forked: list[Forked], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        os._exit(9)

    monkeypatch.setattr(child, "main", fail)
    mine = Guard(Settings((GOOD,), ("native",)))
    (machine, row) = mine.part(SEVERAL)
    assert isinstance(machine, MachineRecord)
    assert machine.error == "reading it: its process ended with exit code 9"
    assert _kinds((row,)) == [UNREADABLE]
    assert len(forked) == 1
    mine.close()


@pytest.mark.slow
def test_a_sweep_that_is_ended_asks_no_more_children(forked: list[Forked]) -> None:
    """A scenario that is stopped because the sweep ends is no row: it is done again."""
    chunk = Chunk(0, 0, (SEVERAL,))
    assert _kinds(run_chunk(chunk, SETTINGS).parts[0])[:2] == ["made:one", "ok"]
    guard.stop_all()
    assert forked[0].wait() == -signal.SIGKILL
    with pytest.raises(Stopping):
        run_chunk(chunk, SETTINGS)
    assert forked[-1].wait() == -signal.SIGKILL
    guard.close_all()
    before = len(forked)
    result = run_chunk(chunk, SETTINGS)
    assert len(forked) == before + 1
    assert (result.number, result.first, result.digest) == (0, 0, chunk.digest())
    assert result.parts == (tuple(work.records(SEVERAL, SETTINGS, default_registry(), 0)),)
    assert 0 < result.seconds < 60
    assert result.seconds == round(result.seconds, 3)
    run_chunk(chunk, attrs.evolve(SETTINGS))  # equal settings: the same child
    assert len(forked) == before + 1
    run_chunk(chunk, attrs.evolve(SETTINGS, backends=("native",)))
    assert forked[-2].code is not None  # other settings: that child is gone
    assert len(forked) == before + 2


def _answer(chunk: Chunk, settings: Settings) -> ChunkResult:
    parts = tuple(tuple(work.unreadable(part.source, "made", settings)) for part in chunk.parts)
    return ChunkResult(chunk.number, chunk.first, chunk.digest(), parts, 0.5)


class Lazy(Executor):
    """Answers the chunk that came last first, and only when somebody waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_at: int = 1 << 30) -> None:
        self.asked: list[tuple[Future[ChunkResult], Chunk, Settings]] = []
        self.done: list[int] = []
        self.most = 0
        self.fail_at = fail_at
        monkeypatch.setattr("paravirt_mm.sweep.drive.wait", self.wait)

    def submit(self, function: Any, /, *arguments: Any, **_: Any) -> Any:
        future: Future[ChunkResult] = Future()
        self.asked.append((future, *arguments))
        self.most = max(self.most, len(self.asked))
        return future

    def wait(self, running: set[Future[ChunkResult]], return_when: str) -> Any:
        assert return_when == "FIRST_COMPLETED"
        future, chunk, settings = self.asked.pop()
        if chunk.number >= self.fail_at:
            raise KeyboardInterrupt
        self.done.append(chunk.number)
        future.set_result(_answer(chunk, settings))
        return {future}, running - {future}


PARTS = [Machines((str(number),), f"made-{number}") for number in range(7)]
PAIRS = attrs.evolve(SETTINGS, chunk=2)


def _drive(
    path: Path, executor: Executor, parts: list[Machines] = PARTS, width: int = 3
) -> list[tuple[int, bool]]:
    told: list[tuple[int, bool]] = []
    with Store(path, PAIRS, default_registry()) as store:
        drive(parts, PAIRS, store, executor, width, lambda *what: told.append(what))
    return told


@pytest.mark.slow
def test_chunks_are_stored_in_whatever_order_they_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most ``width`` at a time; each part keeps its place; the last chunk may be smaller."""
    file, executor = tmp_path / "out", Lazy(monkeypatch)
    assert sorted(_drive(file, executor)) == [(1, True), (2, True), (2, True), (2, True)]
    assert (executor.most, executor.done) == (3, [2, 3, 1, 0])
    placed = select(file, "SELECT part, number, source FROM machines ORDER BY part").rows
    assert placed == tuple((n, 0, f"made-{n}") for n in range(7))
    assert dict(ask(file, "sweep").rows)["complete"] == "yes"
    stored = select(file, "SELECT chunk, parts, seconds FROM chunks ORDER BY chunk").rows
    assert stored == ((0, 2, 0.5), (1, 2, 0.5), (2, 2, 0.5), (3, 1, 0.5))
    # What is done is not done again.
    assert _drive(file, executor) == [(2, False), (2, False), (2, False), (1, False)]
    assert executor.done == [2, 3, 1, 0]


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_was_or_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "out"
    ended = Lazy(monkeypatch, fail_at=3)
    with pytest.raises(KeyboardInterrupt):
        _drive(file, ended)
    assert ended.done == [2]
    assert [future.cancelled() for future, *_ in ended.asked] == [True, True]
    with pytest.raises(SpecError, match="begun with more inputs"):
        _drive(file, Lazy(monkeypatch), PARTS[:4])
    changed = [*PARTS[:4], Machines(("changed",), "changed"), *PARTS[5:]]
    with pytest.raises(SpecError, match=r"not those that .*from changed on"):
        _drive(file, Lazy(monkeypatch), changed)
    assert "complete" not in dict(ask(file, "sweep").rows)
    rest = Lazy(monkeypatch)
    assert (2, False) in _drive(file, rest)
    assert 2 not in rest.done
    assert select(file, "SELECT count(*) FROM results").rows == ((7 * 4,),)
    assert dict(ask(file, "sweep").rows)["complete"] == "yes"


def test_a_child_has_time_to_start() -> None:
    """All plugins are imported from a disk that may be far away, by a machine that is busy."""
    assert (guard.STARTING.cpu, guard.STARTING.wall) == (60, 120)


def test_a_bundled_machine_is_the_same_through_a_part() -> None:
    (record, *_) = work.records(FilePart(SMALL), SETTINGS, default_registry(), 0)
    assert record == MachineRecord(SMALL, work.facts(load(SMALL)))


def test_the_command_says_what_settings_are_by_default() -> None:
    """A file that was begun by a program goes on with the command, and the other way round."""
    options = {option.name: option.default for option in command.params}
    given = Settings((GOOD,), ("native",))
    assert (given.chunk, given.time_limit) == (options["chunk"], options["time_limit"])
    assert f"{given.memory_limit // GIB}G" == options["memory_limit"]


def test_plugins_are_imported_before_memory_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a plugin needs to be there is not what its scenarios may need; a wrong spec is told in
    its rows.
    """
    done: list[object] = []
    registry = registry_with()

    def make(spec: PluginSpec, role: str) -> None:
        done.append((str(spec), role))
        raise SpecError("none")

    monkeypatch.setattr(registry, "make", make)
    monkeypatch.setattr(child, "default_registry", lambda: registry)
    monkeypatch.setattr(child, "limit_memory", done.append)
    ours, theirs = Pipe()
    with ours, theirs:
        ours.send(attrs.evolve(SETTINGS, memory_limit=7))
        ours.send("no part")
        with pytest.raises(ValueError, match="unpack"):
            child.serve(theirs)
        assert ours.recv() == child.READY
    roles = {"allocator": SETTINGS.allocators, "backend": SETTINGS.backends}
    assert done == [*((spec, role) for role, specs in roles.items() for spec in specs), 7]
