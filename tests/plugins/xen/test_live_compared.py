"""``verify xen --live`` and what stands behind it, with a model in the place of the hypervisor.

`test_live.py` asks the real one. Here it is known beforehand where the two differ: builds differ in
what they tell of the type of a frame that is no table any more (4.14 names it, 4.17 does not).
"""

from __future__ import annotations

import itertools
import json
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from paravirt_mm.errors import ExitCode, SpecError
from paravirt_mm_xen import verify as command
from paravirt_mm_xen.command import xen
from paravirt_mm_xen.live import compare, session, wire
from paravirt_mm_xen.live.pieces import Pieces
from paravirt_mm_xen.mmu.releases import RECORDED, RELEASES, Release
from paravirt_mm_xen.replay import Counts, ModelReplay
from paravirt_mm_xen.traces.format import OperationTrace, RecordedTrace
from paravirt_mm_xen.traces.generators import generate
from paravirt_mm_xen.traces.guest import predict
from paravirt_mm_xen.translate import Refused
from paravirt_mm_xen.verify import RunResult

OLD, NEW = RELEASES["4.14"], RELEASES["4.20.1"]
TYPE = ("type", 0)
PINNED_ONCE = (("update_va_mapping", 0, 0, 0x65), ("pin", 1, 0), ("unpin", 0), TYPE)


class Stand:
    """In the place of a hypervisor: answers as a release of the model does, or as it is told."""

    def __init__(self, release: Release, version: str) -> None:
        self.release, self._version = release, version
        self.version: str | None = None
        self.boots = 0
        self.asked: list[list[OperationTrace]] = []

    def replay(self, traces: Sequence[OperationTrace]) -> list[tuple[int, ...]]:
        self.boots += 1
        self.version = self._version
        self.asked.append(list(traces))
        return [self.answer(trace) for trace in traces]

    def answer(self, trace: OperationTrace) -> tuple[int, ...]:
        return tuple(predict(trace, self.release))


def trace(name: str, *operations: tuple[Any, ...]) -> OperationTrace:
    return OperationTrace(name, 2, operations)


def test_what_differs_is_found_counted_and_shrunk() -> None:
    stand: Any = Stand(OLD, "4.14.6")
    traces = [
        trace("same", ("type", 0), ("type", 1)),
        trace("one", ("type", 1), *PINNED_ONCE, ("type", 1)),
        trace("two", *PINNED_ONCE),
        trace("three", ("type", 1), ("type", 1), *PINNED_ONCE),
    ]
    told: list[tuple[str, tuple[int, ...]]] = []
    result = compare.compare(
        stand, traces, lambda each: predict(each, RECORDED), describe=2,
        record=lambda each, answers: told.append((each.name, tuple(answers))),
    )  # fmt: skip
    assert (result.xen, result.traces, result.operations, result.boots) == ("4.14.6", 4, 18, 1)
    assert (result.ok, result.failed_traces) == (False, 3)
    assert told == [(each.name, stand.answer(each)) for each in traces]
    one, two = result.disagreements
    assert [(each.trace.name, each.number) for each in (one, two)] == [("one", 4), ("two", 3)]
    assert (one.operation, one.predicted, one.real) == (TYPE, 0, 1)
    assert str(one) == "one: operation 4 ('type', 0): Xen 1, model 0"
    for each in (one, two):
        assert each.minimal is not None
        assert each.minimal.ops == PINNED_ONCE
        assert each.minimal_answers == (0, 0, 0, 1)
        assert json.loads(each.reproducer())["rc"] == [0, 0, 0, 1]
    whole = compare.compare(stand, traces, lambda each: predict(each, RECORDED), minimise=False)
    assert [each.minimal for each in whole.disagreements] == [None] * 3
    assert json.loads(whole.disagreements[0].reproducer())["ops"] == [
        list(operation) for operation in traces[1].ops
    ]
    assert "3 traces differ" in whole.summary()
    assert "18 operations in 4 traces, 1 boots" in whole.summary()


def test_what_agrees_and_what_says_nothing() -> None:
    stand: Any = Stand(OLD, "4.14.6")
    traces = [trace("one", *PINNED_ONCE)]
    result = compare.compare(stand, traces, lambda each: predict(each, OLD))
    assert (result.ok, result.failed_traces, result.disagreements) == (True, 0, ())
    assert "all agree" in result.summary()
    stand.asked.clear()
    nothing = compare.compare(stand, [], lambda each: predict(each, OLD))
    assert (nothing.ok, nothing.boots, stand.asked) == (False, 0, [])
    recorded = [RecordedTrace(traces[0], (0, 0, 0, 1)), RecordedTrace(traces[0], (0, 0, 0, 0))]
    assert compare.compare_recorded(stand, recorded[:1]).ok
    assert compare.compare_recorded(stand, recorded[1:]).disagreements[0].number == 3


def test_a_model_that_answers_too_little_differs_there() -> None:
    assert compare.first_difference((0, 1, 2), (0, 1, 2)) is None
    assert compare.first_difference((), ()) is None
    assert compare.first_difference((0, 1, 2), (0, 1, 3)) == 2
    assert compare.first_difference((0, 1), (0, 1, 2)) == 2
    assert compare.first_difference((5, 1), (0, 1)) == 0
    stand: Any = Stand(OLD, "4.14.6")
    traces = [trace("one", *PINNED_ONCE)]
    result = compare.compare(stand, traces, lambda _: (0, 0), minimise=False)
    assert (result.disagreements[0].number, result.disagreements[0].predicted) == (2, None)


def test_traces_are_asked_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    stand: Any = Stand(RECORDED, "4.17.7")
    monkeypatch.setattr(compare, "CHUNK_OPERATIONS", 4)
    traces = [trace(str(n), *[TYPE] * size) for n, size in enumerate((1, 3, 4, 3, 2, 1))]
    result = compare.compare(stand, traces, lambda each: predict(each, RECORDED))
    names = [[each.name for each in chunk] for chunk in stand.asked]
    assert names == [["0", "1"], ["2"], ["3", "4"], ["5"]]
    assert (result.traces, result.operations, result.boots) == (6, 14, 4)


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Ask a stand-in: ``live(release, version, *arguments)`` gives exit code, report and text."""

    def ask(release: Release, version: str, *arguments: str) -> tuple[int, Any, str]:
        stand = Stand(release, version)

        @contextmanager
        def opened(_: object = None) -> Iterator[Any]:
            yield stand

        monkeypatch.setattr(command.LiveXen, "open", opened)
        code = xen.main(["--live", *arguments], standalone_mode=False)
        printed = capsys.readouterr().out
        report = json.loads(printed) if "--json" in arguments else None
        return int(code), report, printed

    return ask


FEW = ("--ops", "300", "--seed", "5", "-g", "trees", "--size", "64", "-a", "chunk_end")


@pytest.mark.slow
def test_fresh_operations_and_runs_on_what_booted(live: Any, tmp_path: Path) -> None:
    kept = tmp_path / "kept.jsonl"
    code, report, _ = live(NEW, "4.20.5-pre", *FEW, "--json", "--save", str(kept))
    fresh = list(generate(["trees"], 5, 300))
    assert code == ExitCode.OK
    assert report["agree"] is True
    assert report["live"] == {
        "xen": "4.20.5-pre", "release": "4.20.1", "seed": 5, "traces": len(fresh),
        "operations": sum(len(each.ops) for each in fresh), "failed_traces": 0, "agree": True,
        "disagreements": [],
    }  # fmt: skip
    (run,) = report["runs"]
    assert (run["mib"], run["allocator"], run["xen"], run["ok"]) == (64, "chunk_end", True, True)
    assert (run["differs"], run["refused"]) == (None, None)
    records = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [record["id"] for record in records] == [each.name for each in fresh]
    assert {record["xen"] for record in records} == {"4.20.5-pre"}
    assert [record["rc"] for record in records] == [list(predict(each, NEW)) for each in fresh]


def test_a_release_that_is_named_is_modelled_instead(
    live: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "run_all", lambda *_: ())
    code, report, _ = live(OLD, "4.14.6", *FEW, "--json", "--release", "4.17")
    assert code == ExitCode.FINDINGS
    assert (report["agree"], report["live"]["release"]) == (False, "4.17")
    assert report["live"]["failed_traces"] > 0
    first = report["live"]["disagreements"][0]
    assert first["reproducer"]["ops"][-1][0] == "type"
    code, report, _ = live(OLD, "4.14.6", *FEW, "--json")
    assert (code, report["live"]["release"]) == (ExitCode.OK, "4.14")
    with pytest.raises(SpecError, match=r"no model of Xen '3\.4'"):
        live(OLD, "3.4", *FEW)


@pytest.mark.slow
def test_a_construction_that_the_hypervisor_answers_otherwise(
    live: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Stand.answer

    def answer(stand: Stand, each: OperationTrace) -> tuple[int, ...]:
        answers = list(plain(stand, each))
        if "MiB" in each.name:
            answers[9] = -22
        return tuple(answers)

    monkeypatch.setattr(Stand, "answer", answer)
    code, _, text = live(NEW, "4.20.5-pre", *FEW)
    assert (code, "model and Xen differ at operation 9" in text) == (ExitCode.FINDINGS, True)


def test_a_run_is_fine_where_everybody_who_was_asked_accepts_all_of_it() -> None:
    refused = Refused(3, ("unpin", 0), 1, -22, 0)
    counts = Counts(1, 2, 3, 0, 0, 0, (), ())
    good = RunResult(64, "chunk_end", "ok", 5, ModelReplay(None, (0,) * 5, counts))
    assert good.ok
    for change in (
        {"verdict": "panic: no memory"},
        {"model": None},
        {"model": ModelReplay(refused, (0,) * 5, counts)},
        {"real": refused},
        {"differs": 0},
    ):
        assert not attrs.evolve(good, **change).ok
    took = "(1 mmu_update, 2 update_va_mapping, 3 mmuext_op, 0 emulated stores; 0.0 s)"
    page = "the hypervisor refuses MMUEXT_UNPIN_TABLE page 0: -22 EINVAL"
    for changes, said in (
        ({}, "accepted by the model"),
        ({"asked_xen": True}, "accepted by model and Xen"),
        ({"verdict": "panic: no memory"}, "accepted by the model, but panic: no memory"),
        ({"real": refused, "asked_xen": True}, page),
        ({"model": ModelReplay(refused, (), counts), "verdict": "rejected"}, page),
        ({"differs": 3, "real": refused}, "model and Xen differ at operation 3"),
    ):
        line = attrs.evolve(good, **changes).line()
        assert line == f"64 MiB, chunk_end: 5 operations {said} {took}"
    assert attrs.evolve(good, verdict="rejected", model=None).line() == (
        "64 MiB, chunk_end: rejected"
    )
    told = attrs.evolve(good, real=refused).as_dict()["refused"]
    assert told == attrs.asdict(refused)
    assert attrs.evolve(good, model=ModelReplay(refused, (), counts)).as_dict()["refused"] == told
    assert good.as_dict()["counts"] == attrs.asdict(counts)


# --- boots ----------------------------------------------------------------------------------------


@pytest.fixture
def boots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Replay traces on a session whose boots are only noted: ``boots(traces)`` gives them."""

    def replayed(traces: list[OperationTrace]) -> list[tuple[list[OperationTrace], Any]]:
        seen: list[tuple[list[OperationTrace], Any]] = []
        left = iter(traces)

        def run(boot: Any, _: Path) -> str:
            (count,) = struct.unpack_from("<I", boot.traces.read_bytes(), HEADER_COUNT)
            here = list(itertools.islice(left, count))
            assert boot.traces.read_bytes() == wire.pack(here)
            seen.append((here, boot))
            lines = (f"#{n} {'.' * len(each.ops)}\n" for n, each in enumerate(here))
            return f"@guest xen=4.17.7 pages=9\n{''.join(lines)}@end\n"

        monkeypatch.setattr(session.qemu, "run", run)
        pieces = Pieces(tmp_path / "qemu", tmp_path / "gcc", tmp_path / "xen", tmp_path)
        live = session.LiveXen(pieces, tmp_path, tmp_path / "xen.elf", tmp_path / "guest.elf")
        assert live.replay(traces) == [(0,) * len(each.ops) for each in traces]
        assert live.boots == len(seen)
        assert not list(tmp_path.glob("*.bin"))
        return seen

    return replayed


HEADER_COUNT = 8


def test_traces_share_a_boot_as_far_as_its_memory_goes(
    boots: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (session.BOOT_PAGES, session.BOOT_OPERATIONS) == (262144, 500_000)
    monkeypatch.setattr(session, "BOOT_PAGES", 10)
    monkeypatch.setattr(session, "BOOT_OPERATIONS", 5)
    sizes = [(4, 1), (6, 1), (1, 1), (20, 1), (1, 1), (1, 3), (1, 2), (1, 3), (10, 5), (1, 1)]
    traces = [
        OperationTrace(str(n), pages, (TYPE,) * count) for n, (pages, count) in enumerate(sizes)
    ]
    names = ["".join(each.name for each in here) for here, _ in boots(traces)]
    assert names == ["01", "2", "3", "45", "67", "8", "9"]


def test_how_much_a_boot_gets(boots: Any) -> None:
    """1 GiB of pages, 515 tables for them, 2 MiB of p2m list, and 32 MiB; a minute and a share."""
    ((_, boot),) = boots([OperationTrace("large", 1 << 18, (TYPE,) * 1000)])
    assert boot.guest_mib == 1024 + 2 + 2 + 32
    assert boot.seconds == pytest.approx(60 + (1 << 18) / 5000 + 0.5)
    ((_, boot),) = boots([OperationTrace("small", 1, (TYPE,))])
    assert boot.guest_mib == 32


def test_memory_of_a_domain_has_room_for_each_part(boots: Any) -> None:
    """4 GiB of pages: 2,054 tables, 8 bytes a page in the p2m list; input lies there twice."""
    assert session._guest_mib(1 << 20, 0) == 4096 + 8 + 8 + 32
    assert session._guest_mib(0, 10 << 20) == 20 + 32
    assert boots([]) == []


def test_times_are_of_the_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on while the hypervisor answers, and twice as far for the model."""
    now = 100.0
    stand: Any = Stand(OLD, "4.14.6")
    replay = stand.replay

    def slow_replay(*asked: Any, **more: Any) -> Any:
        nonlocal now
        now += 0.125
        return replay(*asked, **more)

    def slow_predict(each: OperationTrace) -> Sequence[int]:
        nonlocal now
        now += 0.25
        return predict(each, OLD)

    stand.replay = slow_replay
    monkeypatch.setattr(time, "monotonic", lambda: now)
    result = compare.compare(stand, [trace("one", *PINNED_ONCE)], slow_predict)
    assert (result.live_seconds, result.predict_seconds) == (0.125, 0.25)
