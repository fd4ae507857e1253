"""Memory maps hold what the model says: each is parsed, and every mark is held against the machine
and the run that it shows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from math import log2
from typing import Any
from xml.etree import ElementTree

import attrs
import pytest

from paravirt_mm import (
    E820Type,
    KernelImage,
    Machine,
    MemoryMap,
    Outcome,
    PluginSpec,
    Run,
    Scenario,
    bundled,
)
from paravirt_mm.machine.paging import GIB, KIB, MIB, TIB
from paravirt_mm.machine.ranges import RangeSet
from paravirt_mm.report.tables import label
from paravirt_mm.view.memory_map import Scale, _rows, _seen_apart, level_text, memory_map
from paravirt_mm.view.palette import COLOURS, Theme
from paravirt_mm.view.scene import LINES, Scene, outline, scene
from paravirt_mm.view.survey import Subject
from tests.kept import DATA, kept
from tests.view.parsed import parsed

LEAST = 1.5
"""Pixels below which a mark could not be seen."""
ROUNDED = 0.011
"""Numbers are written with two digits."""


@attrs.frozen
class Mark:
    """A rectangle, with what is told about it."""

    x: float
    y: float
    width: float
    height: float
    fill: str
    kind: str
    span: tuple[int, int]


@attrs.frozen
class Drawn:
    """A picture, taken apart."""

    root: ElementTree.Element

    @classmethod
    def of(cls, text: str) -> Drawn:
        return cls(parsed(text))

    def all(self, tag: str) -> list[ElementTree.Element]:
        """The elements that are drawn themselves, in their order."""
        return [each for each in self.root if each.tag.rpartition("}")[2] == tag]

    @property
    def size(self) -> tuple[float, float]:
        left, top, width, height = map(float, self.root.attrib["viewBox"].split())
        assert (left, top) == (0, 0)
        return width, height

    @property
    def marks(self) -> list[Mark]:
        """What has a title: an address range and what lies there."""
        return [
            Mark(*_box(each), each.attrib["fill"], found[1], (int(found[2], 16), int(found[3], 16)))
            for each in self.all("rect")
            for title in each
            if (found := re.match(r"(.*): (0x[0-9a-f]+)-(0x[0-9a-f]+)", title.text or ""))
        ]

    def words(self, x: float | None = None, y: float | None = None) -> list[str]:
        """Texts in their order, or those that stand there."""
        return [
            each.text or ""
            for each in self.all("text")
            if x in (None, float(each.attrib["x"])) and y in (None, float(each.attrib["y"]))
        ]


def _box(each: ElementTree.Element) -> tuple[float, float, float, float]:
    at = each.attrib
    return float(at["x"]), float(at["y"]), float(at["width"]), float(at["height"])


def shown(subject: Subject, **given: Any) -> tuple[Drawn, list[Scene]]:
    scenes = [each.scene for each in subject.exhibits]
    given.setdefault("theme", Theme.LIGHT)
    return Drawn.of(memory_map(subject.machine, scenes, **given)), scenes


def end_of(machine: Machine, scenes: Iterable[Scene] = ()) -> int:
    ends = [each.end for each in scenes]
    return max(machine.map_limit, *ends, _ram_end(machine))


def _ram_end(machine: Machine) -> int:
    return max(e.end for e in machine.memory_map if e.type is E820Type.RAM)


# -- the axis -------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [MIB, 4 * GIB, 64 * TIB])
def test_a_logarithmic_axis_gives_each_doubling_as_much_room(end: int) -> None:
    """Counted from 64 KiB before address 0, so that the axis has a beginning."""
    scale = Scale(end, 1000)
    doublings = log2(1 + end / (64 * KIB))
    for n in range(int(doublings)):
        assert scale(64 * KIB * ((1 << n) - 1)) == pytest.approx(1000 * n / doublings)
    assert scale(end) == pytest.approx(1000)


def test_a_linear_axis_gives_each_byte_as_much_room() -> None:
    scale = Scale(8 * GIB, 400, linear=True)
    assert [scale(n * GIB) for n in range(9)] == [50 * n for n in range(9)]


def test_an_axis_has_a_page_at_least() -> None:
    assert Scale(0, 100).end == 4096
    assert Scale(0, 100, linear=True)(4096) == 100


@pytest.mark.parametrize("end", [3 * MIB, 300 * MIB, 4 * GIB, 5 * GIB + 1, 64 * TIB])
def test_ticks_ascend_at_round_places_below_the_end(end: int) -> None:
    """On a linear axis equally far apart, four to eight of them wherever a MiB is not too much;
    on a logarithmic one a quarter of a MiB, and then four times as much each.
    """
    for linear in (False, True):
        ticks = list(Scale(end, 1000, linear=linear).ticks())
        places = [address for address, _ in ticks]
        assert all(0 < place < end and place & (place - 1) * (not linear) == 0 for place in places)
        for address, words in ticks:
            number, unit = words[:-1], words[-1]
            assert unit in "KMGT"
            assert round(float(number) * 1024 ** " KMGT".index(unit)) == address
        if linear:
            assert {b - a for a, b in pairwise([0, *places])} == {places[0]}
            assert places[-1] + places[0] >= end
            assert places[0] >= MIB
            assert places[0] == MIB or 3 <= len(places) <= 8
        else:
            assert places[0] == 256 * KIB
            assert {b // a for a, b in pairwise(places)} <= {4}
            assert places[-1] * 4 >= end
    for end, apart in ((7 * GIB, GIB), (8 * GIB, GIB), (8 * GIB + 1, 2 * GIB)):
        assert next(Scale(end, 1000, linear=True).ticks())[0] == apart, "eighths at least"


# -- every mark is where its addresses are --------------------------------------------------------


def check_places(drawn: Drawn, end: int, *, linear: bool) -> None:
    """Marks begin and end where the ruler has their addresses; the smallest are as wide as can be
    seen, and stay on the axis.
    """
    width, height = drawn.size
    margin = float(drawn.all("text")[0].attrib["x"])
    axis = width - 2 * margin
    scale = Scale(end, axis, linear=linear)
    assert drawn.marks
    for mark in drawn.marks:
        low, high = map(scale, mark.span)
        wide = max(LEAST, high - low)
        assert mark.width == pytest.approx(wide, abs=ROUNDED), mark
        assert mark.x - margin == pytest.approx(min(low, axis - wide), abs=ROUNDED), mark
    for each in drawn.all("rect"):
        x, y, w, h = _box(each)
        assert 0 <= x < x + w <= width + ROUNDED, each.attrib
        assert 0 <= y < y + h <= height, each.attrib
    for each in drawn.all("text"):
        x, y = float(each.attrib["x"]), float(each.attrib["y"])
        wide = 4 * len(each.text or "")
        assert each.attrib["text-anchor"] in ("start", "middle", "end")
        left = x - {"start": 0, "middle": wide / 2, "end": wide}[each.attrib["text-anchor"]]
        assert left >= 0, each.text
        assert left + wide <= width, each.text
        assert 10 <= int(each.attrib["font-size"]) <= y <= height
    for line in drawn.all("line"):
        assert line.attrib["x1"] == line.attrib["x2"]
        assert 0 < float(line.attrib["y1"]) < float(line.attrib["y2"]) < height


@pytest.mark.parametrize("linear", [False, True])
def test_marks_stand_where_the_ruler_has_their_addresses(
    subjects: list[Subject], linear: bool
) -> None:
    for subject in subjects:
        for width in (960, 500):
            drawn, scenes = shown(subject, linear=linear, width=width)
            assert drawn.size[0] == width
            assert (drawn.root.attrib["width"], drawn.root.attrib["height"]) == tuple(
                f"{number:.0f}" for number in drawn.size
            )
            check_places(drawn, end_of(subject.machine, scenes), linear=linear)


def test_low_memory_lines_are_drawn_through_all_lanes(subjects: list[Subject]) -> None:
    """1M, 16M, 896M, 4G, as far as the machine goes; other names of addresses keep away."""
    assert LINES == ((MIB, "1M"), (16 * MIB, "16M"), (896 * MIB, "896M"), (4 * GIB, "4G"))
    for subject in subjects:
        drawn, scenes = shown(subject)
        end = end_of(subject.machine, scenes)
        there = [words for address, words in LINES if address < end]
        lines = drawn.all("line")
        margin = float(drawn.all("text")[0].attrib["x"])
        scale = Scale(end, drawn.size[0] - 2 * margin)
        places = [margin + scale(address) for address, _ in LINES[: len(there)]]
        assert [float(line.attrib["x1"]) for line in lines] == pytest.approx(places, abs=ROUNDED)
        bottom = max(mark.y + mark.height for mark in drawn.marks)
        for line in lines:
            assert float(line.attrib["y1"]) < min(mark.y for mark in drawn.marks)
            assert float(line.attrib["y2"]) >= bottom - 8
        top = min(float(line.attrib["y1"]) for line in lines) - 3
        named = [
            (float(each.attrib["x"]), each.text)
            for each in drawn.all("text")
            if float(each.attrib["y"]) == top and each.attrib["text-anchor"] == "middle"
        ]
        assert [words for _, words in named][: len(there)] == there
        apart = [b - a for a, b in pairwise(sorted(x for x, _ in named[len(there) :]))]
        assert all(gap > 34 for gap in apart)
        for x, _ in named[len(there) :]:
            assert min(abs(x - place) for place in places) > 34
        ticks = dict(Scale(end, 1000).ticks())
        assert {words for _, words in named[len(there) :]} <= {*ticks.values()}
        assert len(named) > len(there)
    for end, there in ((4 * GIB, 3), (4 * GIB + MIB, 4)):
        whole = Machine("whole", MemoryMap.sanitise([(0, end, E820Type.RAM)]))
        drawn = Drawn.of(memory_map(whole))
        assert len(drawn.all("line")) == there, "what ends there has nothing on both sides"


def test_no_words_stand_on_others(subjects: list[Subject], hostile_subjects: list[Subject]) -> None:
    """A letter is half as wide as it is high; 4G is named, and not 4.5G beside it."""
    for subject in (*subjects, *hostile_subjects):
        drawn, _ = shown(subject)
        taken: dict[float, list[tuple[float, float]]] = {}
        for each in drawn.all("text"):
            wide = len(each.text or "") * float(each.attrib["font-size"]) / 2
            share = {"start": 0, "middle": 0.5, "end": 1}[each.attrib["text-anchor"]]
            left = float(each.attrib["x"]) - share * wide
            taken.setdefault(float(each.attrib["y"]), []).append((left, left + wide))
        for places in taken.values():
            for (_, end), (begin, _) in pairwise(sorted(places)):
                assert end < begin
    axis = Drawn.of(memory_map(bundled("pae-4g"), theme=Theme.LIGHT)).words(y=53)
    assert "4G" in axis
    assert "4.5G" not in axis


def test_names_on_the_axis_keep_apart_at_every_width() -> None:
    """By the room of four characters, from each other and from the lines of low memory."""
    machine = Machine("large", MemoryMap.sanitise([(0, 256 * GIB, E820Type.RAM)]))
    least = set()
    for width in range(300, 700, 5):
        drawn = Drawn.of(memory_map(machine, width=width, theme=Theme.LIGHT))
        places = [
            (float(each.attrib["x"]), each.attrib["font-size"] == "11")
            for each in drawn.all("text")
            if float(each.attrib["y"]) == 53 and each.attrib["text-anchor"] == "middle"
        ]
        gaps = [
            abs(x - other)
            for n, (x, line) in enumerate(places)
            for other, _ in places[:n]
            if not line
        ]
        least.add(min(gaps, default=99))
    assert 34 < min(least) < 34.5
    eighths = Machine("8G", MemoryMap.sanitise([(0, 8 * GIB, E820Type.RAM)]))
    there = Drawn.of(memory_map(eighths, linear=True, width=24 + 8 * 34)).words(y=53)
    assert there == ["1M", "16M", "896M", "4G", "8G", "2G", "6G"], "of those 34 apart each second"


# -- every mark is of the model, and all of the model is marked -----------------------------------


def lanes(drawn: Drawn) -> Iterator[tuple[str, list[Mark]]]:
    """Each lane by the text above it, with its marks."""
    margin = float(drawn.all("text")[0].attrib["x"])
    heads = [
        (float(each.attrib["y"]), each.text or "")
        for each in drawn.all("text")
        if float(each.attrib["x"]) == margin and float(each.attrib["y"]) > 60
    ]
    for (top, words), (bottom, _) in pairwise([*heads, (1e9, "")]):
        yield words, [mark for mark in drawn.marks if top < mark.y < bottom]


E820_FILLS = {
    "usable": "ram",
    "reserved": "firmware",
    "ACPI data": "acpi",
    "ACPI NVS": "acpi",
    "unusable": "other",
}


def test_the_firmware_map_is_drawn_entry_by_entry(subjects: list[Subject]) -> None:
    for subject in subjects:
        drawn, scenes = shown(subject)
        words, marks = next(lanes(drawn))
        assert words == "Firmware map"
        end = end_of(subject.machine, scenes)
        assert [(mark.kind, mark.span) for mark in marks] == [
            (entry.type.label, (entry.start, entry.end))
            for entry in subject.machine.memory_map
            if entry.start < end
        ]
        for mark in marks:
            assert mark.fill == COLOURS[E820_FILLS[mark.kind]][0]


def test_what_lies_there_at_the_start_is_named(subjects: list[Subject]) -> None:
    """One lane for each platform that took the machine, with everything that any scenario has."""
    for subject in subjects:
        drawn, scenes = shown(subject)
        found = {
            words.removeprefix("Before the first step, "): marks
            for words, marks in lanes(drawn)
            if words.startswith("Before")
        }
        ran = dict.fromkeys(each.backend for each in scenes if each.frames)
        assert list(found) == [label(PluginSpec.parse(backend)) for backend in ran]
        for backend, marks in zip(ran, found.values(), strict=True):
            mine = [each.placed for each in scenes if each.backend == backend and each.frames]
            assert [(m.kind, m.span) for m in marks] == [
                *dict.fromkeys(part for parts in mine for part in parts)
            ]


def check_scenario(mine: list[Mark], each: Scene) -> None:
    """What is mapped, set aside and used for tables is all there, and nothing else."""
    by_kind: dict[str, list[tuple[int, int]]] = {}
    for mark in mine:
        by_kind.setdefault(mark.kind, []).append(mark.span)
    mapped = RangeSet((low, high) for frame in each.frames for low, high, _ in frame.mapped)
    assert RangeSet(by_kind.pop("mapped", [])) == mapped
    assert by_kind.pop("mapped since boot", []) == list(each.premapped)
    assert by_kind.pop("set aside, never a table", []) == list(each.idle)
    for level in {area.level for area in each.tables()}:
        spans = by_kind.pop(f"{level_text(level)} tables")
        tables = RangeSet(area.span for area in each.tables() if area.level == level)
        drawn = RangeSet(spans)
        assert all(drawn.covers(*span) for span in tables)
        edges = ({low for low, _ in tables}, {high for _, high in tables})
        assert all(low in edges[0] and high in edges[1] for low, high in spans)
    assert not by_kind


def test_every_scenario_is_drawn_as_it_ran(subjects: list[Subject]) -> None:
    """Its name, the figures of `measure`, and on its panel each range where it lies."""
    for subject in subjects:
        drawn, scenes = shown(subject)
        found = list(lanes(drawn))[-len(scenes) - 1 :] if scenes else []
        assert len(scenes) == len(subject.exhibits)
        drawn_lanes = [one for one in found if ", " in one[0] and not one[0].startswith("Before")]
        panels = [each for each in drawn.all("rect") if each.attrib["fill"] == COLOURS["panel"][0]]
        assert len(drawn_lanes) == len(panels) == len(scenes)
        for (words, marks), panel, exhibit in zip(
            drawn_lanes, panels, subject.exhibits, strict=True
        ):
            row, each = exhibit.row, exhibit.scene
            names = [label(PluginSpec.parse(spec)) for spec in (row.allocator, row.backend)]
            assert words == ", ".join(names)
            check_scenario(marks, each)
            x, y, width, height = _box(panel)
            assert 2 * x + width == drawn.size[0]
            for mark in marks:
                assert y <= mark.y < mark.y + mark.height <= y + height
                if mark.kind.startswith("mapped"):
                    assert (mark.y, mark.height) == (y, 4), "a line along the top"
                else:
                    assert mark.y + mark.height == y + height  # all stand on one line
            heights = {m.kind: m.height for m in marks if TABLES.fullmatch(m.kind)}
            levels = [heights[kind] for kind in sorted(heights)]
            assert levels == sorted(levels, reverse=True), "a higher level is lower"
            assert len({*levels}) == len(levels)
            (told,) = [
                each.text
                for each in drawn.all("text")
                if each.attrib["text-anchor"] == "end" and y - 5 < float(each.attrib["y"]) < y
            ]
            assert told == figures_in_words(row.figures if row.outcome is Outcome.OK else None)


def figures_in_words(figures: Any) -> str:
    """What a scenario's line should say: tables, their memory, pages set aside in vain."""
    if figures is None:  # those that break off here do so before they make one
        return "no tables"
    tables, waste = figures["tables"], figures["waste"]
    memory = next(
        f"{tables * 4096 / unit:.1f}".removesuffix(".0") + letter
        for unit, letter in ((GIB, "G"), (MIB, "M"), (KIB, "K"))
        if tables * 4096 >= unit
    )
    words = f"{tables:,} table{'' if tables == 1 else 's'}, {memory}"
    more = f"{waste:,} more page{'' if waste == 1 else 's'} set aside in vain"
    return f"{words}; {more}" if waste else words


def pieces(count: int) -> Machine:
    """RAM in pieces of a MiB, 4 MiB apart, above 64 MiB."""
    ram = [(n * 4 * MIB, n * 4 * MIB + MIB) for n in range(17, 17 + count)]
    spans = [(0x1000, 0x9F000), (MIB, 64 * MIB), *ram]
    return Machine("pieces", MemoryMap.sanitise([(a, b, E820Type.RAM) for a, b in spans]))


def run_of(machine: Machine, allocator: str, backend: str = "native") -> Run:
    return Scenario.of(machine, allocator, backend).run()


def test_one_page_set_aside_in_vain_is_told_as_one() -> None:
    machine = pieces(1)
    each = attrs.evolve(scene(run_of(machine, "chunk_end")), idle=((MIB, MIB + 4096),))
    words = Drawn.of(memory_map(machine, [each], theme=Theme.LIGHT)).words()
    assert [told for told in words if told.endswith("; 1 more page set aside in vain")]


def test_ranges_that_cannot_be_told_apart_are_one_mark_that_counts_them() -> None:
    """Marks of tables never lie closer than can be seen, and say how many ranges they join."""
    machine = pieces(60)
    run = run_of(machine, "chunk_end")
    for each in (scene(run), outline(run)):
        drawn = Drawn.of(memory_map(machine, [each], theme=Theme.LIGHT))
        check_places(drawn, end_of(machine, [each]), linear=False)
        joined: Counter[str] = Counter()
        for element in drawn.all("rect"):
            for title in element:
                if found := re.search(r"(\w+) tables: .*?( in (\d+) places)?$", title.text or ""):
                    joined[found[1]] += int(found[3] or 1)
                    assert found[3] != "1"
        for name, count in joined.items():
            mine = [a.span for a in each.tables() if level_text(a.level) == name]
            assert count == len(list(RangeSet(mine)))
        assert joined
        for kind in joined:
            marks = sorted(m.span for m in drawn.marks if m.kind == f"{kind} tables")
            scale = Scale(end_of(machine, [each]), drawn.size[0] - 24)
            for (_, last), (first, _) in pairwise(marks):
                assert scale(first) - scale(last) >= LEAST
    assert list(_seen_apart(Scale(GIB, 1000), [])) == []
    pages = Scale(100 * 4096, 100, linear=True)  # of a pixel each
    for begin, found in (
        (8192 + 6143, [(4096, 30 * 4096, 2)]),
        (8192 + 6144, [(4096, 8192, 1), (8192 + 6144, 30 * 4096, 1)]),
    ):
        assert list(_seen_apart(pages, [(4096, 8192), (begin, 30 * 4096)])) == found
    few = Scale(GIB, 100)
    assert list(_seen_apart(few, [(4096, 8192)])) == [(4096, 8192, 1)], "nothing lies before it"
    together = Drawn.of(memory_map(machine, [outline(run)], theme=Theme.LIGHT))
    assert any(mark.kind == "mixed tables" for mark in together.marks)


def test_entries_beyond_what_is_shown_are_left_out_or_cut() -> None:
    """A device far above memory would leave no room for the memory."""
    spans = [
        (0, 64 * MIB, E820Type.RAM),
        (TIB, TIB + MIB, E820Type.RESERVED),
        (63 * MIB, 65 * MIB + 4096, E820Type.RAM),
        (65 * MIB + 4096, 2 * GIB, E820Type.RESERVED),
    ]
    machine = Machine("far", MemoryMap.sanitise(spans))
    drawn = Drawn.of(memory_map(machine, theme=Theme.LIGHT))
    end = 65 * MIB + 4096
    _, marks = next(lanes(drawn))
    assert [mark.kind for mark in marks] == ["usable"]
    check_places(drawn, end, linear=False)
    assert [mark.kind for _, marks in lanes(drawn) for mark in marks][1:] == ["kernel", "brk"]
    nothing = run_of(bundled("asus-l8400-256m"), "incremental:kernel=4.19", "xen")
    shown = attrs.evolve(scene(nothing), promised=((0, GIB),))
    drawn = Drawn.of(memory_map(machine, [shown], theme=Theme.LIGHT))
    _, marks = next(lanes(drawn))
    assert [mark.kind for mark in marks] == ["usable", "reserved"]
    assert marks[1].span == (end, 2 * GIB)
    assert marks[1].x == pytest.approx(12 + Scale(GIB, 936)(end), abs=ROUNDED)
    assert marks[1].x + marks[1].width == pytest.approx(948, abs=ROUNDED), "where the axis ends"


def test_a_machine_alone_has_no_legend() -> None:
    machine = bundled("pae-4g")
    drawn = Drawn.of(memory_map(machine))
    assert [words for words, _ in lanes(drawn)] == ["Firmware map", "Before the first step"]
    assert (
        drawn.size[1]
        < Drawn.of(memory_map(machine, [outline(run_of(machine, "chunk_end"))])).size[1]
    )


# -- colours, names, layout -----------------------------------------------------------------------


def test_every_colour_is_explained(subjects: list[Subject]) -> None:
    """Each fill that marks a range is in the legend, the legend's names say what it marks, and it
    explains nothing that could not be there.
    """
    for subject in subjects:
        for width in (960, 500):
            drawn, _ = shown(subject, width=width)
            legend = legend_of(drawn)
            for mark in drawn.marks:
                assert mark.fill in legend, mark
                if mark.kind in EXPLAINED_ALIKE:
                    assert legend[mark.fill] == mark.kind
                if mark.kind in {"mapped since boot", "unusable"}:
                    assert mark.kind in legend[mark.fill].split(", ")
                if TABLES.fullmatch(mark.kind):
                    assert legend[mark.fill] == mark.kind
            tables = {words for words in legend.values() if TABLES.fullmatch(words)}
            assert tables == {m.kind for m in drawn.marks if TABLES.fullmatch(m.kind)}
            ordered = [words for words in legend.values() if TABLES.fullmatch(words)]
            assert ordered == sorted(ordered)
            idle = "set aside, never a table"
            assert (idle in legend.values()) == any(m.kind == idle for m in drawn.marks)


TABLES = re.compile(r"(L\d|mixed) tables")
EXPLAINED_ALIKE = {"mapped", "kernel", "brk", "initrd", "reserved", "set aside, never a table"}


def legend_of(drawn: Drawn) -> dict[str, str]:
    """The names of colours: squares below all marks, each with the text right of it."""
    bottom = max(mark.y + mark.height for mark in drawn.marks)
    texts = [
        (float(each.attrib["x"]), float(each.attrib["y"]), each.text or "")
        for each in drawn.all("text")
    ]
    found: dict[str, str] = {}
    ends: dict[float, float] = {}
    for each in drawn.all("rect"):
        x, y, width, height = _box(each)
        if y <= bottom or width != height:
            continue
        beside = [one for one in texts if x + width < one[0] < x + 20 and y < one[1] <= y + height]
        ((left, _, words),) = beside
        assert x > ends.get(y, 0), "names do not run into the next square"
        ends[y] = left + 5.5 * len(words)
        assert ends[y] <= drawn.size[0]
        assert found.setdefault(each.attrib["fill"], words) == words
    return found


def test_a_row_of_the_legend_may_end_at_the_margin() -> None:
    """Ten letters take 90 pixels with their square; there are 12 on either side of a row."""
    items = [("ink", "x" * 10)] * 3
    for width, rows in ((204, [2, 1]), (203, [1, 1, 1]), (294, [3]), (293, [2, 1]), (50, [1] * 3)):
        assert [len(row) for row in _rows(items, width)] == rows


def test_a_theme_has_its_own_colours_and_no_others(subjects: list[Subject]) -> None:
    subject = subjects[1]
    for theme, place in ((Theme.LIGHT, 0), (Theme.DARK, 1)):
        drawn, _ = shown(subject, theme=theme)
        used = {
            each.attrib[name]
            for each in drawn.root.iter()
            for name in ("fill", "stroke")
            if name in each.attrib and not each.attrib[name].startswith("url")
        }
        assert used <= {pair[place] for pair in COLOURS.values()}
        first = drawn.all("rect")[0]
        assert (first.attrib["fill"], *_box(first)[2:]) == (COLOURS["paper"][place], *drawn.size)
    names = {f"--{name}:{pair[0]};" for name, pair in COLOURS.items()}
    text = memory_map(subject.machine, theme=Theme.AUTO)
    style = Drawn.of(text).all("style")[0].text or ""
    assert all(name in style for name in names)
    light, dark = style.split("@media(prefers-color-scheme:dark)")
    assert all(f"--{name}:{pair[1]};" in dark for name, pair in COLOURS.items())
    assert "--ink:" in light
    on_page, _ = shown(subject, theme=Theme.PAGE)
    assert on_page.all("style") == []  # the page has them, and paper of its own
    assert _box(on_page.all("rect")[0])[2:] != on_page.size
    assert {each.attrib["fill"] for each in on_page.all("rect")} <= {
        *(f"var(--{name})" for name in COLOURS),
        "url(#idle)",
    }


def test_the_head_says_what_machine_it_is() -> None:
    machine = bundled("pae-4g")
    drawn = Drawn.of(memory_map(machine))
    assert drawn.words()[0] == machine.provenance.title
    assert drawn.words()[1] == "3.8G RAM, i386 PAE, 3 levels; logarithmic axis"
    linear = Drawn.of(memory_map(machine, linear=True))
    assert linear.words()[1].endswith("; linear axis")
    assert drawn.root[0].text == f"Memory of {machine.provenance.title}"
    nameless = attrs.evolve(machine, provenance=attrs.evolve(machine.provenance, title=""))
    assert Drawn.of(memory_map(nameless)).words()[0] == "pae-4g"


def test_the_layout_is_that_of_the_kept_pictures() -> None:
    """What no rule says, how high a lane is and where its name stands, is kept as a picture to look
    at; who means another layout keeps that (see `tests.kept`).
    """
    spans = [
        (0x1000, 0x9F000, E820Type.RAM), (0xF0000, MIB, E820Type.RESERVED),
        (MIB, 62 * MIB, E820Type.RAM), (62 * MIB, 63 * MIB, E820Type.NVS),
        (63 * MIB, 64 * MIB, E820Type.UNUSABLE), (64 * MIB, 96 * MIB, E820Type.RAM),
    ]  # fmt: skip
    machine = Machine(
        "small", MemoryMap.sanitise(spans), initrd=(40 * MIB, 50 * MIB),
        kernel=KernelImage(16 * MIB, 20 * MIB, 20 * MIB, 20 * MIB + 24 * 4096),
    )  # fmt: skip
    scenes = [
        scene(run_of(machine, allocator, backend))
        for allocator, backend in (
            ("legacy_linear:kernel=3.6", "native"), ("incremental:variant=hpa", "xen"),
        )
    ]  # fmt: skip
    for name, picture in (
        ("small", memory_map(machine, scenes, theme=Theme.LIGHT)),
        ("alone", memory_map(machine, theme=Theme.DARK, linear=True, width=480)),
    ):
        text = picture.replace("><", ">\n<") + "\n"
        assert text == kept(DATA / "pictures" / f"{name}.svg", text)
