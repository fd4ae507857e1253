"""Memory maps and charts: well formed, inert, in the reader's colours; sentences made of
figures.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from paravirt_mm import Outcome
from paravirt_mm.view.charts import drawings, png, svg
from paravirt_mm.view.memory_map import Scale, memory_map
from paravirt_mm.view.palette import COLOURS, Theme
from paravirt_mm.view.sentences import sentences
from paravirt_mm.view.survey import Subject, short, totals
from tests.view.parsed import parsed


def test_a_map_is_well_formed_in_every_theme(subjects: list[Subject]) -> None:
    for theme in Theme:
        subject = subjects[1]
        text = memory_map(subject.machine, [each.scene for each in subject.exhibits], theme=theme)
        root = parsed(text)
        assert root.tag.endswith("svg")
        words = " ".join(root.itertext())
        for expected in ("1M", "16M", "896M", "4G", "Firmware map", "incremental hpa, xen"):
            assert expected in words
        assert ("var(--" in text) == (theme in {Theme.AUTO, Theme.PAGE})


def test_a_map_shows_where_tables_lie(subjects: list[Subject]) -> None:
    subject = subjects[1]
    each = next(one for one in subject.exhibits if one.row.backend == "xen")
    root = parsed(memory_map(subject.machine, [each.scene]))
    titles = {element.text for element in root.iter() if element.tag.endswith("title")}
    highest = each.row.figures["highest_table"]
    tables = [text for text in titles if text and "tables: 0x" in text]
    ends = [int(re.search(r"-(0x[0-9a-f]+)", text)[1], 16) for text in tables]  # type: ignore[index]
    assert max(ends) == highest + 4096


@pytest.mark.parametrize("linear", [False, True])
def test_an_axis_grows_with_the_address(linear: bool) -> None:
    scale = Scale(1 << 40, 1000, linear=linear)
    places = [scale(address) for address in (0, 4096, 1 << 20, 1 << 24, 1 << 32, 1 << 40)]
    assert places == sorted(places)
    assert (places[0], round(places[-1], 6)) == (0, 1000)


def test_charts_for_whatever_was_compared(subjects: list[Subject]) -> None:
    names = [drawing.name for drawing in drawings(subjects)]
    assert names == ["difference", "guess", "flips", "low-memory", "hypercalls"]
    # Xen refuses this machine: no flips, no hypercalls.
    assert [drawing.name for drawing in drawings(subjects[:1])] == [
        "difference", "guess", "low-memory",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_chart_is_drawn_without_a_browser(subjects: list[Subject]) -> None:
    drawing = drawings(subjects)[0]
    text = svg(drawing, Theme.LIGHT)
    parsed(text)
    assert png(text).startswith(b"\x89PNG")
    page = svg(drawing, Theme.PAGE, narrow=True)
    assert "var(--bad)" in page
    assert " id=" not in page  # two charts in one page must not share names


def _maps(subjects: list[Subject]) -> list[str]:
    return [memory_map(one.machine, [each.scene for each in one.exhibits]) for one in subjects]


def _charts(subjects: list[Subject]) -> list[str]:
    return [svg(drawing, Theme.PAGE) for drawing in drawings(subjects)]


@pytest.mark.parametrize("drawn", [_maps, pytest.param(_charts, marks=pytest.mark.slow)])
def test_hostile_texts_stay_texts_in_pictures(
    drawn: Callable[[list[Subject]], list[str]], hostile_subjects: list[Subject]
) -> None:
    pictures = drawn(hostile_subjects)
    assert pictures
    for picture in pictures:
        root = parsed(picture)
        tags = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert not tags & {"script", "img", "foreignObject", "image", "a"}
        for element in root.iter():
            assert not [name for name in element.attrib if name.startswith("on")]
            assert all((text or "").isprintable() for text in element.itertext())


def contrast(first: str, second: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [0, 1])
def test_contrast(dark: int) -> None:
    shades = {name: pair[dark] for name, pair in COLOURS.items()}
    for name in ("ink", "muted", "accent", "good", "bad"):
        for paper in ("paper", "panel"):
            assert contrast(shades[name], shades[paper]) >= 4.5, name
    marks = [name for name in shades if name.startswith(("level", "series", "status", "idle"))]
    for name in [*marks, "kernel", "brk", "placed", "initrd", "mapped", "firmware", "acpi"]:
        assert contrast(shades[name], shades["paper"]) >= 3, name
    assert contrast(shades["ram"], shades["paper"]) >= 1.5
    assert 1.4 <= contrast(shades["line"], shades["paper"]) <= 2.5, "there, and no more"


def test_sentences_say_what_the_figures_say(subjects: list[Subject]) -> None:
    sums = totals(subjects)
    guess, status, low = map(str, sentences(sums))
    worst = next(t for t in sums if t.allocator == "legacy_linear 2.6.39" and t.backend == "xen")
    assert f"{worst.reserved:,} pages aside for tables under xen" in guess
    assert "incremental linux 4.19 and incremental hpa set none aside" in guess
    assert f"{worst.flips:,} times for {worst.tables:,} tables" in status
    assert f"{worst.flips_wasted:,} times for nothing" in status
    assert "legacy_linear 3.6 under xen gives up on 1 machine" in low


def test_sums_are_over_the_machines_on_which_every_row_ended_well(subjects: list[Subject]) -> None:
    good = [s for s in subjects if all(e.row.outcome is Outcome.OK for e in s.exhibits)]
    assert 0 < len(good) < len(subjects)
    for total in totals(subjects):
        assert total.machines == len(good)
        mine = [
            e.row.figures["tables"]
            for s in good
            for e in s.exhibits
            if (short(e.row.allocator), e.row.backend) == (total.allocator, total.backend)
        ]
        assert total.tables == sum(mine)
    lost = {(t.allocator, t.backend): t.failed for t in totals(subjects) if t.failed}
    assert lost == {("legacy_linear 3.6", "xen"): 1}


def test_where_no_machine_suits_all_each_platform_has_its_own(subjects: list[Subject]) -> None:
    found = totals(subjects[:1])  # Xen refuses this one
    assert {total.backend: total.machines for total in found} == {"native": 1, "xen": 0}


def test_no_sums_no_sentences(subjects: list[Subject]) -> None:
    import attrs

    refused = attrs.evolve(
        subjects[0], exhibits=tuple(e for e in subjects[0].exhibits if e.row.backend == "xen")
    )
    assert [sentence.about for sentence in sentences(totals([refused]))] == ["Nothing to add up"]
