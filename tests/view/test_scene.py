"""What is to be seen agrees with the figures, which are computed elsewhere."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import attrs
import pytest
from hypothesis import given, strategies as st

from paravirt_mm import BootState, CpuFeatures, E820Type, MemoryMap, Run, Scenario, Trace, bundled
from paravirt_mm.engine.pages import PageRun
from paravirt_mm.engine.steps import NewRoot
from paravirt_mm.engine.trace import (
    MadeReadonly,
    RangeMapped,
    RootActivated,
    RunStarted,
    StepStarted,
    SurplusReleased,
    TablesAllocated,
    TablesAttached,
    TablesPinned,
    TablesReserved,
)
from paravirt_mm.machine.ranges import RangeSet
from paravirt_mm.view.scene import (
    MAX_FRAMES,
    MIXED,
    Scene,
    Status,
    StatusChange,
    _Taker,
    areas,
    outline,
    placed,
    scene,
    thinned,
)
from paravirt_mm.view.story import Chapter, chapters
from paravirt_mm.view.survey import Subject


def scenes(subjects: list[Subject]) -> list[tuple[dict[str, object], Scene]]:
    return [
        (each.row.figures, each.scene)
        for subject in subjects
        for each in subject.exhibits
        if each.ok
    ]


def test_every_table_is_shown_once_with_its_level(subjects: list[Subject]) -> None:
    for figures, each in scenes(subjects):
        levels: Counter[int] = Counter()
        for block in each.tables():
            levels[block.level] += block.count
        assert levels.total() == figures["tables"]
        if MIXED not in levels:
            assert {n: levels[n] for n in range(1, 6)} == {
                n: figures[f"tables_l{n}"] for n in range(1, 6)
            }


def test_what_is_mapped_adds_up(subjects: list[Subject]) -> None:
    for figures, each in scenes(subjects):
        shown: Counter[int] = Counter()
        for frame in each.frames:
            for low, high, level in frame.mapped:
                shown[level] += high - low
        assert [shown[n] for n in (1, 2, 3)] == [
            figures[f"mapped_{name}"] for name in ("4k", "large", "huge")
        ]
        before = sum(high - low for low, high in each.premapped)
        assert each.frames[-1].chapter.mapped == before + shown.total()


def test_reserved_and_unused_is_the_waste(subjects: list[Subject]) -> None:
    for figures, each in scenes(subjects):
        assert sum(high - low for low, high in each.idle) >> 12 == figures["waste"]


def test_status_ends_as_the_platform_left_it(subjects: list[Subject]) -> None:
    for figures, each in scenes(subjects):
        status: dict[tuple[int, int], Status] = {}
        for frame in each.frames:
            for change in frame.changes:
                for level in range(6) if change.level == MIXED else (change.level,):
                    status[change.batch, level] = change.status
        ends: Counter[Status] = Counter()
        for block in each.tables():
            ends[status[block.batch, block.level]] += block.count
        assert Status.BUILT not in ends
        if each.backend == "native":
            assert ends == {Status.ATTACHED: figures["tables"]}
        else:
            assert ends[Status.PINNED] == sum(figures[f"pins_l{n}"] for n in range(1, 5))


def test_a_refused_run_still_shows_the_machine(subjects: list[Subject]) -> None:
    refused = next(each for each in subjects[0].exhibits if each.row.backend == "xen")
    assert [name for name, _ in refused.scene.placed][:2] == ["kernel", "brk"]
    assert not list(refused.scene.tables())


def test_xen_names_what_the_domain_builder_placed(runs: dict[tuple[str, str], Run]) -> None:
    names = [name for name, _ in scene(runs["incremental:variant=hpa", "xen"]).placed]
    assert {"Loaded kernel", "Page tables", "brk"} <= set(names)


def test_a_run_of_very_many_steps_is_bounded() -> None:
    base = bundled("qemu-512m")
    pieces = [(n << 21, (n << 21) + (1 << 20), E820Type.RAM) for n in range(16, 256)]
    ram = [(0, 1 << 25, E820Type.RAM), *pieces]
    machine = attrs.evolve(base, memory_map=MemoryMap.sanitise(ram), max_pfn_hint=None)
    run = Scenario.of(machine, "incremental:variant=hpa", "native").run()
    found = scene(run)
    assert run.figures["steps"] >= 1
    assert len(found.frames) == MAX_FRAMES
    assert sum(block.count for block in found.tables()) == run.figures["tables"]
    assert "together" in found.frames[MAX_FRAMES * 2 // 3].chapter.title


@given(
    st.lists(st.tuples(st.integers(0, 500), st.integers(1, 40)), max_size=60), st.integers(1, 12)
)
def test_thinned_ranges_cover_what_they_join(pairs: list[tuple[int, int]], limit: int) -> None:
    spans = [(low, low + length) for low, length in pairs]
    result = thinned(spans, limit)
    assert len(result) <= limit
    assert all(first[1] < second[0] for first, second in pairwise(result))
    for low, high in spans:
        assert any(start <= low and high <= end for start, end in result)
    if spans:
        assert (result[0][0], result[-1][1]) == (min(s[0] for s in spans), max(s[1] for s in spans))


def test_a_batch_with_very_many_tables_is_shown_as_runs_of_several_levels(
    runs: dict[tuple[str, str], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs["incremental:variant=hpa", "xen"]
    apart = scene(run)
    monkeypatch.setattr("paravirt_mm.view.scene.MAX_UPPER", 0)
    together = scene(run)
    assert {block.level for block in together.tables()} >= {MIXED}
    assert sum(block.count for block in together.tables()) == run.figures["tables"]
    assert len(list(together.tables())) < len(list(apart.tables()))


def test_runs_drawn_as_one_hold_no_more_tables_than_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tables at the ends of chunks lie far apart: what lies between them is no table."""
    monkeypatch.setattr("paravirt_mm.view.scene.MAX_UPPER", 0)
    monkeypatch.setattr("paravirt_mm.view.scene.MAX_RANGES", 3)
    run = Scenario.of(bundled("qemu-512m"), "chunk_end", "xen").run()
    found = scene(run)
    assert sum(area.count for area in found.tables()) == run.figures["tables"]
    assert any(area.high - area.low > area.count for area in found.tables())


@pytest.mark.parametrize("backend", ["native", "xen"])
def test_the_root_switches_once_in_the_proposed_design(
    runs: dict[tuple[str, str], Run], backend: str
) -> None:
    found = scene(runs["incremental:variant=hpa", backend])
    assert sum(frame.switched for frame in found.frames) == 1


# -- frames are what their events change -----------------------------------------------------------


def check_frames(run: Run) -> None:
    """One frame a chapter, in the order of the trace, each with what its own events say."""
    found = scene(run)
    told = chapters(run)
    assert [frame.chapter for frame in found.frames] == told
    for frame in found.frames:
        events = run.trace.events[frame.chapter.first : frame.chapter.last + 1]
        reserved = [p.span for e in events if isinstance(e, TablesReserved) for p in e.pages]
        released = [p.span for e in events if isinstance(e, SurplusReleased) for p in e.pages]
        assert list(frame.reserved) == list(RangeSet(reserved))
        assert list(frame.released) == list(RangeSet(released))
        loads = [e for e in events if isinstance(e, RootActivated) and e.batch is not None]
        assert frame.switched == bool(loads)
        for level in {level for _, _, level in frame.mapped}:
            mine = RangeSet((low, high) for low, high, n in frame.mapped if n == level)
            leaves = [e.leaves for e in events if isinstance(e, RangeMapped)]
            assert mine == RangeSet((e.start, e.end) for e in leaves if e.level == level)
        batches = [e.batch for e in events if isinstance(e, TablesAllocated)]
        assert {area.batch for area in frame.tables} == {b.index for b in batches if b.count}
        pages = RangeSet(area.span for area in frame.tables)
        assert pages == RangeSet(run.span for batch in batches for run in batch.runs)
        hands = (MadeReadonly, TablesPinned, TablesAttached, RootActivated)
        heard = [e.batch.index for e in events if isinstance(e, hands) and e.batch is not None]
        assert {change.batch for change in frame.changes} <= {*heard}


def test_frames_are_in_the_order_of_the_trace(runs: dict[tuple[str, str], Run]) -> None:
    for run in runs.values():
        check_frames(run)


def test_tables_become_what_the_platform_makes_of_them(runs: dict[tuple[str, str], Run]) -> None:
    """Read-only, then pinned, or checked where a parent refers to them; the root when CR3 is
    loaded. Where pages are not typed tables are attached, and no more.
    """
    for (_, backend), run in runs.items():
        ways: dict[tuple[int, int], list[Status]] = {}
        for frame in scene(run).frames:
            assert len({*frame.changes}) == len(frame.changes)
            for change in frame.changes:
                for level in range(1, 5) if change.level == MIXED else (change.level,):
                    ways.setdefault((change.batch, level), []).append(change.status)
        allowed = (
            [[Status.ATTACHED], [Status.ATTACHED] * 2]
            if backend == "native"
            else [
                [Status.READONLY],
                [Status.READONLY, Status.PINNED],
                [Status.READONLY, Status.VALIDATED],
            ]
        )
        assert all(way in allowed for way in ways.values()), ways


def test_what_one_event_changes(runs: dict[tuple[str, str], Run]) -> None:
    """The root is in use when CR3 is loaded: pinned under Xen, attached elsewhere. Where levels are
    not told apart a change is one of all tables of the frame, or of what an earlier one made.
    """
    for backend, level, status in (("native", MIXED, Status.ATTACHED), ("xen", 4, Status.PINNED)):
        (loaded,) = runs["incremental:variant=hpa", backend].trace.of(RootActivated)
        assert loaded.batch is not None
        change = StatusChange(loaded.batch.index, level, status)
        chapter = Chapter(0, None, "CR3", (), 0, 0, 0)
        frame = _Taker(typed=backend == "xen").frame(chapter, [loaded])
        assert (frame.switched, frame.changes) == (True, (change,))
        joined = _Taker(typed=backend == "xen", apart=False).frame(chapter, [loaded])
        assert joined.changes == (attrs.evolve(change, level=MIXED),)


def test_an_outline_has_the_same_tables_and_ranges(runs: dict[tuple[str, str], Run]) -> None:
    for run in runs.values():
        whole, short = scene(run), outline(run)
        (frame,) = short.frames
        assert frame.chapter == Chapter(0, None, "the run", (), 0, len(run.trace) - 1, 0)
        assert attrs.evolve(whole, frames=()) == attrs.evolve(short, frames=())
        assert {area.level for area in short.tables()} == {MIXED}
        assert sum(a.count for a in short.tables()) == sum(a.count for a in whole.tables())
        assert RangeSet(a.span for a in short.tables()) == RangeSet(a.span for a in whole.tables())
        mapped = [[m[:2] for f in each.frames for m in f.mapped] for each in (whole, short)]
        assert RangeSet(mapped[0]) == RangeSet(mapped[1])
        (change,) = frame.changes
        assert (change.batch, change.level) == (frame.tables[0].batch, MIXED)
        last = [change for one in whole.frames for change in one.changes][-1]
        assert change.status is last.status
    nothing = Scenario.of(bundled("asus-l8400-256m"), "incremental:kernel=4.19", "xen").run()
    assert not list(outline(nothing).tables())


def in_steps(count: int) -> tuple[Run, Scene]:
    """A run of that many steps, and its scene: one a MiB of RAM."""
    base = bundled("qemu-512m")
    pieces = [(n << 21, (n << 21) + (1 << 20), E820Type.RAM) for n in range(16, 16 + count - 4)]
    ram = [(0, 1 << 25, E820Type.RAM), *pieces]
    machine = attrs.evolve(base, memory_map=MemoryMap.sanitise(ram), max_pfn_hint=None)
    run = Scenario.of(machine, "incremental:variant=linux,kernel=4.19", "native").run()
    return run, scene(run)


def test_of_too_many_steps_the_middle_is_one() -> None:
    """Thirty-two are kept apart; of more, the first 21 and the last 10."""
    seen = {}
    for count in range(20, 60):
        run, found = in_steps(count)
        told = chapters(run)
        seen[len(told)] = True
        if len(told) <= MAX_FRAMES:
            assert [frame.chapter for frame in found.frames] == told
            continue
        assert len(found.frames) == MAX_FRAMES
        head, tail = MAX_FRAMES * 2 // 3, MAX_FRAMES - MAX_FRAMES * 2 // 3 - 1
        assert [f.chapter for f in found.frames[:head]] == told[:head]
        assert [f.chapter for f in found.frames[-tail:]] == told[-tail:]
        middle = told[head:-tail]
        one = found.frames[head].chapter
        assert one.title == f"steps {middle[0].number} to {middle[-1].number}, together"
        assert one.sentences[0].startswith(f"{len(middle)} steps that this picture")
        assert (one.first, one.last) == (middle[0].first, middle[-1].last)
        assert (one.number, one.seed) == (middle[0].number, middle[0].seed)
        assert one.mapped == middle[-1].mapped
        assert sum(a.count for a in found.tables()) == run.figures["tables"]
        (change,) = found.frames[head].changes
        assert {a.batch for a in found.frames[head].tables} == {change.batch}
        if len(told) > MAX_FRAMES + 3:
            break
    assert {MAX_FRAMES, MAX_FRAMES + 1} <= {*seen}


def test_a_batch_is_drawn_by_levels_up_to_so_many_tables(
    runs: dict[tuple[str, str], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above L1 as many as `MAX_UPPER`, in as many places as `MAX_RANGES`."""
    run = Scenario.of(bundled("qemu-512m"), "chunk_end", "xen").run()
    batches = [e.batch for r in (run, *runs.values()) for e in r.trace.of(TablesAllocated)]
    batch = max(batches, key=lambda b: sum(n for level, n in b.by_level.items() if level > 1))
    upper = sum(count for level, count in batch.by_level.items() if level > 1)
    assert upper > 1
    monkeypatch.setattr("paravirt_mm.view.scene.MAX_UPPER", upper)
    by_level: Counter[int] = Counter()
    for area in areas(batch):
        by_level[area.level] += area.count
        assert area.high - area.low == area.count
    assert by_level == batch.by_level
    monkeypatch.setattr("paravirt_mm.view.scene.MAX_UPPER", upper - 1)
    assert {area.level for area in areas(batch)} == {MIXED}
    assert sum(area.count for area in areas(batch)) == batch.count
    monkeypatch.setattr("paravirt_mm.view.scene.MAX_UPPER", upper)
    monkeypatch.setattr("paravirt_mm.view.scene.MAX_UPPER", 0)
    low = next(one for one in batches if {*one.by_level} == {1})
    assert {area.level for area in areas(low)} == {1}, "tables of L1 are not above it"
    monkeypatch.setattr("paravirt_mm.view.scene.MAX_UPPER", upper)
    (part,) = batch.pages
    starts = [PageRun(1000, 1, 1), PageRun(1500, 1, 1), PageRun(3000, batch.count - 2, 1)]
    several = tuple(attrs.evolve(part, run=run) for run in starts)
    apart = attrs.evolve(batch, pages=several)
    monkeypatch.setattr("paravirt_mm.view.scene.MAX_RANGES", 3)
    assert MIXED not in {area.level for area in areas(apart)}
    monkeypatch.setattr("paravirt_mm.view.scene.MAX_RANGES", 2)
    found = list(areas(apart))
    assert {area.level for area in found} == {MIXED}
    assert [(a.low, a.high, a.count) for a in found] == [
        (1000, 1501, 2), (3000, 2998 + batch.count, batch.count - 2),
    ]  # fmt: skip


def test_places_are_those_of_the_log_or_of_the_platform(runs: dict[tuple[str, str], Run]) -> None:
    machine = attrs.evolve(bundled("pae-4g"), initrd=None)
    assert [name for name, _ in placed(machine)] == ["kernel", "brk"]
    kernel = machine.kernel
    assert dict(placed(machine))["kernel"] == (kernel.start, kernel.end)
    assert dict(placed(machine))["brk"] == (kernel.brk_start, kernel.brk_end)
    without = attrs.evolve(kernel, brk_end=kernel.brk_start)
    with_initrd = attrs.evolve(machine, kernel=without, initrd=(1 << 28, 1 << 29))
    assert dict(placed(with_initrd)) == {
        "kernel": (kernel.start, kernel.end), "initrd": (1 << 28, 1 << 29),
    }  # fmt: skip
    for (_, backend), run in runs.items():
        found = scene(run)
        start = run.trace.start
        if backend == "xen":
            named = [(name.rstrip(":"), span) for name, span in start.boot.places]
            assert list(found.placed[: len(named)]) == named
            rest = found.placed[len(named) :]
            kernel = start.boot.kernel_of(start.machine)
            brk = ("brk", (kernel.brk_start, kernel.brk_end))
            assert rest == ((brk,) if kernel.brk_start < kernel.brk_end else ())
        else:
            kernel = start.boot.kernel_of(start.machine)
            assert found.placed == placed(attrs.evolve(run.machine, kernel=kernel))
        assert found.end == max(
            *(high for _, high in start.promised), *(high for _, (_, high) in found.placed)
        )
        assert list(found.promised) == list(RangeSet(start.promised))
        assert list(found.boot_tables) == list(RangeSet(start.boot.boot_tables))
        anew = any(isinstance(e.step, NewRoot) for e in run.trace.of(StepStarted))
        assert list(found.premapped) == ([] if anew else [*RangeSet(start.boot.direct_mapped)])
    nothing = attrs.evolve(found, placed=(), promised=())
    assert nothing.end == 0
    assert attrs.evolve(nothing, placed=(("x", (5, 9)),), promised=((1, 2), (3, 7))).end == 9
    many = BootState(
        ((0, 1),), 0, CpuFeatures(), places=tuple((f"p{n}", (n, n + 1)) for n in range(26))
    )
    start = RunStarted(attrs.evolve(machine, kernel=without), many, "a", "b", ())
    shown = outline(attrs.evolve(run, trace=Trace([start])))
    assert shown.placed == many.places[:24]
    linear = scene(runs["legacy_linear:kernel=3.6", "xen"])
    assert linear.premapped, "a tree that the run goes on with has something mapped"


def test_status_grows() -> None:
    assert [status.value for status in Status] == [0, 1, 2, 3, 4]  # as the page's script has them
