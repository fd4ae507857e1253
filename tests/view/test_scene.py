"""What is to be seen agrees with the figures, which are computed elsewhere."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import attrs
import pytest
from hypothesis import given, strategies as st

from paravirt_mm import E820Type, MemoryMap, Run, Scenario, bundled
from paravirt_mm.view.scene import MAX_FRAMES, MIXED, Scene, Status, scene, thinned
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
