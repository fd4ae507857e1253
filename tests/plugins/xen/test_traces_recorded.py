"""Answers of real Xen 4.17.7, recorded, against the model; and what must hold after every trace."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import attrs
import pytest

from paravirt_mm_xen.mmu import RECORDED, RELEASES, Hypervisor
from paravirt_mm_xen.mmu.entries import PRESENT, RW, entry_mfn
from paravirt_mm_xen.mmu.releases import release_of
from paravirt_mm_xen.traces.files import read_traces
from paravirt_mm_xen.traces.format import RecordedTrace
from paravirt_mm_xen.traces.guest import TraceGuest, predict, release_of_recording, replay

ROOT = Path(__file__).parents[3]
DATA = ROOT / "tests/data/xen"
SAMPLE = DATA / "xen-4.17.7-sample.jsonl.xz"
WIDE = DATA / "xen-4.17.7-wide.jsonl.xz"
OLD = DATA / "xen-4.14.6.jsonl.xz"
NEW = DATA / "xen-4.20.5-pre.jsonl.xz"
ALL = ROOT / "../shared/xen-replay/xen-4.17.7-traces.jsonl.xz"


def disagreements(path: Path, count: int | None = None) -> list[str]:
    return [
        f"{found.recorded.trace.name} operation {found.number} {found.operation}:"
        f" Xen {found.answer}, model {found.predicted}"
        for found in map(replay, islice(read_traces(path), count))
        if found is not None
    ]


@pytest.mark.parametrize("path", [SAMPLE, WIDE, OLD, NEW], ids=lambda path: path.name)
def test_the_first_recorded_answers_agree(path: Path) -> None:
    assert disagreements(path, 9) == []


@pytest.mark.slow
@pytest.mark.parametrize("path", [SAMPLE, WIDE, OLD, NEW], ids=lambda path: path.name)
def test_every_recorded_answer_agrees(path: Path) -> None:
    assert disagreements(path) == []


@pytest.mark.slow
def test_all_7000_traces_agree() -> None:
    if not ALL.exists():
        pytest.skip("the full recording is not beside this checkout (../shared/xen-replay)")
    assert disagreements(ALL) == []


@pytest.mark.slow
def test_the_data_holds_what_the_rules_need() -> None:
    """Each answer of each operation occurs; so that agreeing says something."""
    seen: Counter[tuple[str, int]] = Counter()
    for path in (SAMPLE, WIDE):
        for recorded in read_traces(path):
            names = (operation[0] for operation in recorded.trace.ops)
            seen.update(zip(names, recorded.answers, strict=True))
    for name, answers in {
        "pin": (0, -16, -22),
        "unpin": (0, -22),
        "update_va_mapping": (0, -16),
        "mmu_update": (0, -16, -22, -77777),
        "write": (0, -114002, -114003, -77777),
        "new_baseptr": (0, -16, -22),
        "new_user_baseptr": (0, -16, -22),
        "clear_page": (0, -22),
        "type": (0, 1, 2, 3, 4, 9, 10, 11, 12),
        "read": (0, -114000),
    }.items():
        for answer in answers:
            assert seen[name, answer] > 0, (name, answer)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "version", "release"),
    [(SAMPLE, None, "4.17"), (OLD, "4.14.6", "4.14"), (NEW, "4.20.5-pre", "4.20.1")],
)
def test_a_recording_names_the_hypervisor_and_that_one_is_modelled(
    path: Path, version: str | None, release: str
) -> None:
    for recorded in read_traces(path):
        assert recorded.hypervisor == version
        assert release_of_recording(recorded).name == release


@pytest.mark.slow
def test_what_4_14_does_otherwise_shows_in_the_data() -> None:
    """A frame that was a table is still called one; 4.17 does not say so."""
    differing = [found for found in (replay(r, RECORDED) for r in read_traces(OLD)) if found]
    assert len(differing) > 100
    assert {found.operation[0] for found in differing} == {"type"}
    assert {(found.answer > 0, found.predicted) for found in differing} == {(True, 0)}


@pytest.mark.parametrize(
    ("version", "row"),
    [
        ("4.14.6", "4.14"),
        ("4.15.0", "4.15"),
        ("4.16.1-pre", "4.16"),
        ("4.17.7", "4.17"),
        ("4.18.4", "4.18"),
        ("4.18.5", "4.18.5"),
        ("4.19.3", "4.19.3"),
        ("4.20.0", "4.20"),
        ("4.20.5-pre", "4.20.1"),
        ("4.23-unstable", "4.21"),
        ("ideal", "ideal"),
    ],
)
def test_a_hypervisor_is_recognised_by_what_it_calls_itself(version: str, row: str) -> None:
    assert release_of(version).name == row


@pytest.mark.parametrize("version", ["4.13.4", "3.0.4-1", "", "unstable", "ideal-2", "x4.17"])
def test_versions_without_a_model_are_refused(version: str) -> None:
    with pytest.raises(KeyError):
        release_of(version)


@pytest.mark.slow
@pytest.mark.parametrize("quirk", ["forgets_nested_failure", "leaves_xen_slots"])
def test_each_accident_of_release_builds_shows_in_the_data(quirk: str) -> None:
    without = attrs.evolve(RECORDED, name="without", **{quirk: False})
    differing = [
        found.recorded.trace.name
        for found in (replay(recorded, without) for recorded in read_traces(SAMPLE))
        if found is not None
    ]
    assert len(differing) >= 5


def references(hypervisor: Hypervisor, frames: list[int]) -> Counter[int]:
    """What each frame is referred to by, counted afresh from the contents of all tables."""
    held: Counter[int] = Counter()
    held.update(mfn for mfn in (hypervisor.baseptr, hypervisor.user_baseptr) if mfn is not None)
    for mfn in frames:
        frame = hypervisor.frame(mfn)
        held[mfn] += frame.pinned
        held[mfn] += hypervisor.page_type(mfn) == 15  # shared: the hypervisor holds one itself
        if not frame.validated or frame.type == "writable":
            continue
        level = int(frame.type[1])
        for index in range(512):
            entry = hypervisor.entry(mfn, index)
            if not entry & PRESENT or (level == 4 and 256 <= index < 272):
                continue
            child = entry_mfn(entry)
            if (level == 1 and entry & RW) or (level > 1 and child != mfn):
                held[child] += 1
    return held


def traces_of_every_kind() -> Iterator[RecordedTrace]:
    for path in (SAMPLE, WIDE):
        for number, recorded in enumerate(read_traces(path)):
            if number % 15 == 0:
                yield recorded


@pytest.mark.slow
def test_counts_are_what_a_recount_finds() -> None:
    """Whatever happened: a frame's count is the number of entries, pins and roots that name it."""
    tidy = RELEASES["ideal"]
    for recorded in traces_of_every_kind():
        guest = TraceGuest(recorded.trace.pages, tidy)
        guest.answers(recorded.trace.ops)
        hypervisor = guest.hypervisor
        frames = [frame.mfn for frame in hypervisor.frames()]
        held = references(hypervisor, frames)
        for frame in hypervisor.frames():
            assert frame.count == held[frame.mfn], (recorded.trace.name, frame)
            assert not frame.partial
            if frame.count and frame.type.startswith("L"):
                assert frame.validated


@pytest.mark.slow
def test_no_table_is_ever_writable() -> None:
    """What the typing is for, after every single operation of a few traces."""
    for recorded in list(traces_of_every_kind())[::8]:
        guest = TraceGuest(recorded.trace.pages)
        hypervisor = guest.hypervisor
        for operation in recorded.trace.ops:
            guest.answers([operation])
            writable = {
                entry_mfn(entry)
                for frame in hypervisor.frames()
                if frame.type == "L1" and frame.validated
                for entry in (hypervisor.entry(frame.mfn, index) for index in range(512))
                if entry & PRESENT and entry & RW
            }
            for mfn in writable:
                assert hypervisor.frame(mfn).type == "writable", (recorded.trace.name, operation)


def test_a_trace_leaves_nothing_for_the_next() -> None:
    recorded = next(read_traces(SAMPLE))
    assert predict(recorded.trace) == predict(recorded.trace) == recorded.answers


@pytest.mark.slow
def test_an_operation_costs_no_more_than_80_lookups() -> None:
    """As a ratio, for other load slows both: 300,000 a second where a lookup takes 42 ns."""
    traces = [recorded.trace for recorded in read_traces(SAMPLE)]
    operations = sum(len(trace.ops) for trace in traces)

    def seconds(work: Callable[[], object]) -> float:
        started = time.process_time()
        work()
        return time.process_time() - started

    def lookups() -> None:
        numbers = dict.fromkeys(range(1000), 1)
        for number in range(1_000_000):
            numbers.get(number % 1000)

    def model() -> None:
        for trace in traces:
            predict(trace)

    ratios = []
    for _ in range(3):
        a_lookup = seconds(lookups) / 1_000_000
        ratios.append(seconds(model) / operations / a_lookup)
    assert min(ratios) < 80
