"""Charts say what the figures say: their data is recomputed from the rows, what is handed to the
library is held against the data, and what it draws is measured.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from math import log1p, log10
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import attrs
import pytest

from paravirt_mm import E820Type, MemoryMap, Outcome, bundled
from paravirt_mm.errors import SpecError
from paravirt_mm.machine.paging import GIB, MIB
from paravirt_mm.view import charts
from paravirt_mm.view.charts import MAX_MACHINES, Drawing, drawings, library, svg
from paravirt_mm.view.palette import COLOURS, Theme
from paravirt_mm.view.survey import Exhibit, Subject, short, survey, totals
from tests.view.parsed import parsed

Specs = Callable[[str, Theme, bool], dict[str, Any]]


@pytest.fixture
def specs(subjects: list[Subject]) -> Specs:
    """What the library is told of a chart, by its name: each takes it a twentieth of a second."""

    def spec(name: str, theme: Theme, narrow: bool) -> dict[str, Any]:
        return spec_of(drawing_of(subjects, name), theme, narrow)

    return spec


def exhibits(subjects: list[Subject]) -> list[tuple[Subject, Exhibit, dict[str, str]]]:
    return [
        (subject, each, {"allocator": short(each.row.allocator), "backend": each.row.backend})
        for subject in subjects
        for each in subject.exhibits
    ]


def drawing_of(subjects: list[Subject], name: str) -> Drawing:
    return next(drawing for drawing in drawings(subjects) if drawing.name == name)


# -- data ------------------------------------------------------------------------------------------


def test_what_it_costs_is_the_sums(subjects: list[Subject]) -> None:
    """Three numbers of each sum; memory in KiB. Without a machine to add up there is nothing."""
    records = drawing_of(subjects, "difference").records
    for total in totals(subjects):
        mine = {
            record["what"]: record["value"]
            for record in records
            if (record["allocator"], record["backend"]) == (total.allocator, total.backend)
        }
        assert mine == {
            "pages set aside in vain": total.waste,
            "status changes in vain": total.flips_wasted,
            "KiB of tables below 16M": total.below_16m // 1024,
        }
    assert len(records) == 3 * len(totals(subjects))
    refused = attrs.evolve(
        subjects[0], exhibits=tuple(e for e in subjects[0].exhibits if e.row.backend == "xen")
    )
    assert not [one for one in drawings([refused]) if one.name == "difference"]


def test_guesses_are_those_of_every_scenario_that_set_pages_aside(subjects: list[Subject]) -> None:
    assert list(drawing_of(subjects, "guess").records) == [
        {
            **who,
            "machine": subject.machine.name,
            "ram_gib": round(subject.machine.memory_map.ram_pages().total / GIB, 3),
            "reserved": each.row.figures["reserved"],
            "used": each.row.figures["used"],
        }
        for subject, each, who in exhibits(subjects)
        if each.row.figures.get("reserved")
    ]


def test_flips_are_of_runs_that_ended_well_and_changed_pages(subjects: list[Subject]) -> None:
    """Largest machine first. Where nothing is ever read-only there is nothing to say."""
    largest_first = sorted(subjects, key=lambda s: -s.machine.memory_map.ram_pages().total)
    records = drawing_of(subjects, "flips").records
    assert list(records) == [
        {
            **who,
            "machine": subject.machine.name,
            "flips_per_table": each.row.figures["flips_per_table"],
        }
        for subject, each, who in exhibits(largest_first)
        if each.row.outcome is Outcome.OK and each.row.figures["flips"] > 0
    ]
    assert {record["backend"] for record in records} == {"xen"}
    each = next(each for each in subjects[2].exhibits if each.row.figures["flips"])
    failed = attrs.evolve(each, row=attrs.evolve(each.row, outcome=Outcome.ERROR))
    for exhibit, count in ((each, 1), (failed, 0)):
        assert len(charts._flips([attrs.evolve(subjects[2], exhibits=(exhibit,))])) == count


def test_low_memory_is_the_most_on_any_machine(subjects: list[Subject]) -> None:
    records = drawing_of(subjects, "low-memory").records
    limits = {"1M": "tables_below_1m", "16M": "tables_below_16m", "4G": "tables_below_4g"}
    for record in records:
        most = max(
            each.row.figures[limits[record["below"]]]
            for _, each, who in exhibits(subjects)
            if each.row.outcome is Outcome.OK
            and who == {name: record[name] for name in ("allocator", "backend")}
        )
        assert record["kib"] == most // 1024
    whose = {(record["allocator"], record["backend"]) for record in records}
    assert len(records) == len(limits) * len(whose) == len(limits) * 8


def test_hypercalls_are_sums_by_kind_and_for_each_table(subjects: list[Subject]) -> None:
    good = [s for s in subjects if all(e.row.outcome is Outcome.OK for e in s.exhibits)]
    records = drawing_of(subjects, "hypercalls").records
    for record in records:
        rows = [
            each.row.figures
            for _, each, who in exhibits(good)
            if who == {name: record[name] for name in ("allocator", "backend")}
        ]
        calls = sum(row[f"hypercalls_{record['kind']}"] for row in rows)
        assert record["calls"] == calls
        assert record["calls_per_table"] == pytest.approx(
            calls / sum(row["tables"] for row in rows), abs=0.0001
        )
    kinds = ["mmu_update", "update_va_mapping", "mmuext_op"]
    assert [record["kind"] for record in records] == kinds * 4
    assert {record["backend"] for record in records} == {"xen"}
    assert sum(record["calls"] for record in records) > 0


def test_calls_that_nobody_made_are_none(subjects: list[Subject]) -> None:
    """A kind that a run lacks counts nought, and so do tables that are not there."""
    (one,) = survey([subjects[2].machine], ["incremental:variant=hpa"], ["xen"])
    (each,) = one.exhibits
    figures = {"hypercalls": 5, "hypercalls_mmu_update": 5, "hypercalls_mmuext_op": None}

    def records(tables: int) -> list[tuple[str, int, float]]:
        row = attrs.evolve(each.row, figures={**figures, "tables": tables})
        subject = attrs.evolve(one, exhibits=(attrs.evolve(each, row=row),))
        return [
            (record["kind"], record["calls"], record["calls_per_table"])
            for record in charts._hypercalls([subject])
        ]

    assert records(2) == [
        ("mmu_update", 5, 2.5), ("update_va_mapping", 0, 0), ("mmuext_op", 0, 0),
    ]  # fmt: skip
    assert records(0)[0] == ("mmu_update", 5, 0)
    row = attrs.evolve(each.row, figures={"tables_below_16m": None})
    subject = attrs.evolve(one, exhibits=(attrs.evolve(each, row=row),))
    assert {record["kib"] for record in charts._low_memory([subject])} == {0}


def test_names_are_bounded_and_of_very_many_machines_the_largest_are_shown(
    subjects: list[Subject],
) -> None:
    one = subjects[2]
    long = attrs.evolve(one, machine=attrs.evolve(one.machine, name="n" * 200))
    for name in ("guess", "flips"):
        names = {record["machine"] for record in drawing_of([long], name).records}
        assert {len(each) for each in names} == {80}
    spans = [(e.start, e.end, e.type) for e in bundled("qemu-512m").memory_map]
    many = [
        attrs.evolve(
            one,
            machine=attrs.evolve(
                one.machine,
                name=f"m{n}",
                memory_map=MemoryMap.sanitise([*spans, (4 * GIB, 5 * GIB + n * MIB, E820Type.RAM)]),
            ),
        )
        for n in range(MAX_MACHINES + 2)
    ]
    shown = first_seen(drawing_of(many, "flips").records, "machine")
    assert shown == [f"m{n}" for n in range(MAX_MACHINES + 1, 1, -1)]
    in_all = {record["machine"] for record in drawing_of(many, "guess").records}
    assert len(in_all) == len(many), "a point takes no room of its own"


# -- what the library is told ----------------------------------------------------------------------


@attrs.frozen
class Unit:
    """One kind of marks: its data, its encoding with what it inherits."""

    mark: Mapping[str, Any]
    encoding: Mapping[str, Any]
    values: list[dict[str, Any]]


def spec_of(drawing: Drawing, theme: Theme, narrow: bool) -> dict[str, Any]:
    pytest.importorskip("altair", reason="needs the extra 'report'")
    from altair.utils.schemapi import debug_mode

    with debug_mode(False):  # what `svg` draws is held against the library's schema
        styled = charts._styled(drawing.draw(drawing, theme, narrow), theme)
        told: dict[str, Any] = styled.to_dict(validate=False)
    return told


def units(
    spec: Mapping[str, Any], values: Any = None, encoding: Mapping[str, Any] | None = None
) -> Iterator[Unit]:
    data = spec.get("data", {})
    values = data.get("values", values)
    encoding = {**(encoding or {}), **spec.get("encoding", {})}
    if "mark" in spec:
        yield Unit(spec["mark"], encoding, values)
    for part in [
        *(spec.get("layer", ())), *spec.get("hconcat", ()), *spec.get("vconcat", ()),
        *([spec["spec"]] if "spec" in spec else ()),
    ]:  # fmt: skip
        yield from units(part, values, encoding)


def first_seen(records: Any, name: str) -> list[Any]:
    return list(dict.fromkeys(record[name] for record in records))


@pytest.mark.slow
@pytest.mark.parametrize("narrow", [False, True])
def test_every_record_is_handed_over_in_its_order(
    subjects: list[Subject], specs: Specs, narrow: bool
) -> None:
    """What a chart reads is in its data; names stand in the order in which they were compared."""
    for drawing in drawings(subjects)[narrow:]:
        found = list(units(specs(drawing.name, Theme.LIGHT, narrow)))
        assert found
        for unit in found:
            for name, channel in unit.encoding.items():
                field = channel.get("field") if isinstance(channel, dict) else None
                if field:
                    assert all(field in value for value in unit.values), (drawing.name, name)
                if isinstance(channel, dict) and isinstance(channel.get("sort"), list):
                    assert channel["sort"] == first_seen(unit.values, channel["field"])
            if drawing.name != "difference":
                assert len(unit.values) == len(drawing.records)
                for value, record in zip(unit.values, drawing.records, strict=True):
                    below = {"below": f"below {record['below']}"} if "below" in record else {}
                    assert {**record, **below} == {name: value[name] for name in record}


@pytest.mark.slow
def test_a_colour_stands_for_the_same_allocator_in_every_chart(
    subjects: list[Subject], specs: Specs
) -> None:
    for theme, place in ((Theme.LIGHT, 0), (Theme.DARK, 1)):
        shades = [COLOURS[f"series{n}"][place] for n in range(1, 7)]
        for drawing in drawings(subjects)[2 * place :]:
            for unit in units(specs(drawing.name, theme, False)):
                for channel in ("color", "shape"):
                    scale = unit.encoding.get(channel, {}).get("scale")
                    if scale is None:
                        continue
                    field = unit.encoding[channel]["field"]
                    if field == "allocator":
                        assert scale["domain"] == list(drawing.allocators)
                    else:
                        assert scale["domain"] == first_seen(unit.values, field)
                    if channel == "color":
                        assert scale["range"] == shades[: len(scale["domain"])]
                        legend = unit.encoding[channel]["legend"]
                        assert set(first_seen(unit.values, field)) <= set(legend["values"])
                        assert [n for n in scale["domain"] if n in legend["values"]] == (
                            legend["values"]
                        )


def test_of_more_than_six_allocators_shapes_tell_colours_apart(subjects: list[Subject]) -> None:
    drawing = drawing_of(subjects, "flips")
    many = attrs.evolve(drawing, allocators=tuple(f"a{n}" for n in range(8)))
    (unit,) = units(spec_of(many, Theme.LIGHT, narrow=False))
    light = [COLOURS[f"series{n}"][0] for n in (1, 2, 3, 4, 5, 6, 1, 2)]
    assert unit.encoding["color"]["scale"]["range"] == light
    assert unit.encoding["shape"]["scale"]["domain"] == list(many.allocators)


def panels(spec: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """Columns by row, each with its data, which the library moves up where all have the same."""
    return [
        [{"data": row.get("data", spec.get("data")), **panel} for panel in row["hconcat"]]
        for row in spec["vconcat"]
    ]


@pytest.mark.slow
@pytest.mark.parametrize("narrow", [False, True])
def test_a_column_of_bars_for_each_waste_and_platform_that_has_any(
    subjects: list[Subject], specs: Specs, narrow: bool
) -> None:
    """All columns of one kind have one scale, which begins at zero and leaves room for numbers;
    bars that are something are red and carry their number, none is green; names stand once a row.
    """
    drawing = drawing_of(subjects, "difference")
    rows = panels(specs(drawing.name, Theme.LIGHT, narrow))
    assert [len(row) for row in rows][:1] == [2] if narrow else len(rows) == 1
    shown = {}
    for row in rows:
        for place, panel in enumerate(row):
            bars, words = panel["layer"]
            values = panel["data"]["values"]
            what, backend = values[0]["what"], values[0]["backend"]
            shown[what, backend] = bars["encoding"]["x"]["scale"]["domain"]
            assert values == [
                r for r in drawing.records if (r["what"], r["backend"]) == (what, backend)
            ]
            title = panel["title"]["text"]
            title = title if isinstance(title, str) else " ".join(title)
            assert title == what[0].upper() + what[1:]
            assert panel["title"]["subtitle"] == f"under {backend}"
            assert panel["title"]["subtitleColor"] == COLOURS["muted"][0]
            for layer, some in ((bars, "bad"), (words, "ink")):
                assert layer["encoding"]["x"]["field"] == "value"
                assert layer["encoding"]["x"]["axis"] is None  # the number says it
                axis = layer["encoding"]["y"]["axis"]
                assert axis["labels"] == (place == 0)
                assert axis["minExtent"] > 90 if place == 0 else axis["minExtent"] == 0
                assert layer["encoding"]["y"]["title"] is None
                colour = layer["encoding"]["color"]
                assert colour == {
                    "condition": {"test": "datum.value > 0", "value": COLOURS[some][0]},
                    "value": COLOURS["good"][0],
                }
            assert (bars["mark"]["type"], words["mark"]["type"]) == ("bar", "text")
            assert words["encoding"]["text"] == {
                "field": "value", "format": ",d", "type": "quantitative",
            }  # fmt: skip
            assert panel["height"] >= len(values) * bars["mark"]["height"]
    by_what: dict[str, dict[str, int]] = {}
    for record in drawing.records:
        mine = by_what.setdefault(record["what"], {})
        mine[record["backend"]] = max(mine.get(record["backend"], 0), record["value"])
    assert list(shown) == [
        (what, backend)
        for what, tops in by_what.items()
        for backend, top in tops.items()
        if top > max(tops.values()) / 100
    ]
    for (what, _), (begin, end) in shown.items():
        assert begin == 0
        assert 1.3 < end / max(by_what[what].values()) < 2.5


def test_where_nothing_is_wasted_one_column_says_so(subjects: list[Subject]) -> None:
    """A column of one platform, with a nought for each allocator, on an axis that has an end."""
    drawing = drawing_of(subjects, "difference")
    nothing = attrs.evolve(drawing, records=tuple({**r, "value": 0} for r in drawing.records))
    for narrow in (False, True):
        ((panel,),) = panels(spec_of(nothing, Theme.LIGHT, narrow))
        assert [v["allocator"] for v in panel["data"]["values"]] == list(drawing.allocators)
        assert len({v["backend"] for v in panel["data"]["values"]}) == 1
        assert 1 <= panel["layer"][0]["encoding"]["x"]["scale"]["domain"][1] < 2
        assert panel["data"]["values"][0]["what"] == "pages set aside in vain", "the first"


@pytest.mark.slow
def test_a_column_of_next_to_nothing_is_left_out(subjects: list[Subject]) -> None:
    """Of a hundredth of the longest bar at the most."""
    drawing = drawing_of(subjects, "difference")
    little = tuple({**r, "value": 100 if r["backend"] == "xen" else 1} for r in drawing.records)
    (row,) = panels(spec_of(attrs.evolve(drawing, records=little), Theme.LIGHT, narrow=False))
    assert {panel["data"]["values"][0]["backend"] for panel in row} == {"xen"}
    less = tuple({**r, "value": 50 if r["backend"] == "xen" else 1} for r in drawing.records)
    (row,) = panels(spec_of(attrs.evolve(drawing, records=less), Theme.LIGHT, narrow=False))
    assert [p["data"]["values"][0]["backend"] for p in row] == ["native", "xen"] * 3


@pytest.mark.slow
def test_axes_say_what_they_are(subjects: list[Subject], specs: Specs) -> None:
    """Titles, scales and round ticks: sizes of machines from 16M to 64T, pages to a million."""
    said = {
        drawing.name: list(units(specs(drawing.name, Theme.LIGHT, False)))
        for drawing in drawings(subjects)
    }
    join, ring, dot = said["guess"]
    for unit in (join, ring, dot):
        x, y = unit.encoding["x"], unit.encoding["y"]
        assert (x["field"], x["title"]) == ("ram_gib", "RAM (logarithmic)")
        assert x["scale"]["type"] == "log"
        assert [value * GIB for value in x["axis"]["values"]] == [
            float(16 * MIB * 4**n) for n in range(12)
        ]
        assert not x["axis"]["grid"]
        assert (y["title"], y["scale"]["type"]) == ("pages (logarithmic)", "symlog")
        assert y["axis"]["values"] == [0, *(10**n for n in range(7))]
    assert (ring.encoding["y"]["field"], dot.encoding["y"]["field"]) == ("reserved", "used")
    assert (join.encoding["y"]["field"], join.encoding["y2"]["field"]) == ("reserved", "used")
    assert (ring.mark.get("filled"), dot.mark["filled"]) == (None, True)
    (flips,) = said["flips"]
    assert flips.encoding["x"]["title"] == "status changes a table"
    assert flips.encoding["x"]["axis"]["grid"] is False
    low, high = flips.encoding["x"]["scale"]["domain"]
    assert low == 1
    assert high > max(value["flips_per_table"] for value in flips.values) > 1.2
    assert flips.encoding["y"]["axis"]["grid"] is True
    assert flips.encoding["y"]["title"] is None
    assert flips.encoding["shape"]["legend"] is None, "one legend, of colours and shapes"
    (bars,) = said["low-memory"]
    assert bars.encoding["x"]["title"] == "memory (logarithmic)"
    assert bars.encoding["x"]["axis"]["values"] == [0, *(16 * 16**n for n in range(5))]
    assert bars.encoding["x"]["axis"]["grid"] is True
    assert bars.encoding["yOffset"]["sort"] == ["below 1M", "below 16M", "below 4G"]
    (calls,) = said["hypercalls"]
    assert calls.encoding["x"]["title"] == "hypercalls for each table in use"
    assert {value["kind"]: value["place"] for value in calls.values} == {
        "mmu_update": 0, "update_va_mapping": 1, "mmuext_op": 2,
    }  # fmt: skip
    assert calls.encoding["order"]["field"] == "place", "parts of a bar stand as in the legend"


def test_the_axis_of_flips_begins_at_one_unless_something_is_less(
    subjects: list[Subject],
) -> None:
    drawing = drawing_of(subjects, "flips")

    def ends(value: float) -> tuple[float, float]:
        records = tuple({**record, "flips_per_table": value} for record in drawing.records)
        (unit,) = units(spec_of(attrs.evolve(drawing, records=records), Theme.LIGHT, False))
        low, high = unit.encoding["x"]["scale"]["domain"]
        return low, high

    assert ends(1.0) == (1, 1.2)
    assert ends(0.5) == (0.5, 1.2)
    low, high = ends(4.0)
    assert low == 1
    assert 4 < high < 4.5


def test_names_have_the_room_that_they_need(subjects: list[Subject], specs: Specs) -> None:
    """Wide: all of it; narrow: machines get less than half of a phone, and are cut to it."""
    longest = max(
        len(name) for name in first_seen(drawing_of(subjects, "flips").records, "machine")
    )
    for narrow in (False, True):
        (unit,) = units(specs("flips", Theme.LIGHT, narrow))
        axis = unit.encoding["y"]["axis"]
        assert axis["minExtent"] >= 6.5 * longest
        assert axis["labelLimit"] >= 6 * longest
    drawing = drawing_of(subjects, "flips")
    records = tuple({**record, "machine": "M" * 80} for record in drawing.records)
    long = attrs.evolve(drawing, records=records)
    (unit,) = units(spec_of(long, Theme.LIGHT, narrow=True))
    axis = unit.encoding["y"]["axis"]
    assert axis["labelLimit"] < axis["minExtent"] < 390 / 2
    (unit,) = units(spec_of(long, Theme.LIGHT, narrow=False))
    axis = unit.encoding["y"]["axis"]
    assert axis["labelLimit"] > 80 * 7
    assert axis["minExtent"] > 80 * 7


def test_a_chart_for_a_page_takes_its_colours_from_it(specs: Specs) -> None:
    for theme, paper, ink in (
        (Theme.PAGE, "transparent", "var(--ink)"),
        (Theme.LIGHT, COLOURS["paper"][0], COLOURS["ink"][0]),
        (Theme.DARK, COLOURS["paper"][1], COLOURS["ink"][1]),
    ):
        config = specs("flips", theme, False)["config"]
        assert config["background"] == paper
        assert {config[part]["labelColor"] for part in ("axis", "legend", "header")} == {ink}
        assert "@" not in str(config)


# -- what is drawn ---------------------------------------------------------------------------------


@attrs.frozen
class Placed:
    """An element with where the groups around it put it."""

    x: float
    y: float
    element: ElementTree.Element


def placed(element: ElementTree.Element, x: float = 0, y: float = 0) -> Iterator[Placed]:
    found = re.match(r"translate\(([-\d.e]+),([-\d.e]+)\)", element.attrib.get("transform", ""))
    if found:
        x, y = x + float(found[1]), y + float(found[2])
    yield Placed(x, y, element)
    for child in element:
        yield from placed(child, x, y)


def told(element: ElementTree.Element) -> dict[str, str]:
    """What a mark says of itself to those who do not see it."""
    parts = element.attrib.get("aria-label", "").split("; ")
    return dict(part.rsplit(": ", 1) for part in parts if ": " in part)


def marks(picture: str, kind: str) -> list[tuple[Placed, dict[str, str]]]:
    root = parsed(picture)
    return [
        (each, told(each.element))
        for each in placed(root)
        if each.element.attrib.get("aria-roledescription") == kind
    ]


@pytest.mark.slow
def test_bars_are_as_long_as_their_numbers(subjects: list[Subject]) -> None:
    drawing = drawing_of(subjects, "difference")
    for narrow in (False, True):
        picture = svg(drawing, Theme.LIGHT, narrow=narrow)
        lengths: dict[int, set[float]] = {}
        for each, said in marks(picture, "bar"):
            found = re.match(r"M0,[-\d.e]+h([-\d.e]+)v", each.element.attrib["d"])
            assert found is not None
            value = int(said["value"])
            lengths.setdefault(value, set()).add(float(found[1]))
            fill = COLOURS["bad" if value else "good"][0]
            assert each.element.attrib["fill"] == fill
        values = {r["value"] for r in drawing.records}
        assert set(lengths) <= values
        assert lengths[0] == {0}
        numbers = {(said["value"], each.element.text) for each, said in marks(picture, "text mark")}
        assert numbers == {(str(value), f"{value:,}") for value in lengths}


@pytest.mark.slow
def test_points_stand_where_their_numbers_are(subjects: list[Subject]) -> None:
    """On logarithmic axes: equal ratios are equal distances."""
    picture = svg(drawing_of(subjects, "guess"), Theme.LIGHT)
    points = marks(picture, "point")
    assert points
    for panel in (0, 1):
        xs: dict[float, float] = {}
        ys: dict[float, float] = {}
        for each, said in points:
            if (each.x > 372) == bool(panel):
                xs[log10(float(said["RAM (logarithmic)"]))] = each.x
                ys[log1p(float(said["pages (logarithmic)"]))] = each.y
        for places, slope in ((xs, 1), (ys, -1)):
            keys = sorted(places)
            whole = (places[keys[-1]] - places[keys[0]]) / (keys[-1] - keys[0])
            assert whole * slope > 0
            for key in keys:
                expected = places[keys[0]] + whole * (key - keys[0])
                assert places[key] == pytest.approx(expected, abs=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("narrow", [False, True])
def test_charts_fit_their_windows_and_ticks_are_in_people_s_units(
    subjects: list[Subject], narrow: bool
) -> None:
    ticks = set()
    for drawing in drawings(subjects):
        picture = svg(drawing, Theme.LIGHT, narrow=narrow)
        root = parsed(picture)
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        assert width <= (390 if narrow else 1080)
        assert picture.count("font-family") == 1
        assert 'display="none"' not in picture
        for each in placed(root):
            if each.element.tag.endswith("text") and "rotate" not in str(each.element.attrib):
                words = each.element.text or ""
                ticks.add(words)
                size = float(each.element.attrib["font-size"].removesuffix("px"))
                assert size >= 11
                wide = 0.4 * size * len(words)
                anchor = each.element.attrib["text-anchor"]
                left = each.x - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
                assert left >= 0, words
                assert left + wide <= width, words
                assert 0 < each.y < height
    assert {"1G", "256M", "16G", "1k", "10k", "10", "0", "16K", "4M"} <= ticks


def test_what_is_missing_is_named(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "altair", None)
    with pytest.raises(SpecError, match="need altair: pip install -e ") as raised:
        library("altair")
    assert f"{checkout}[report]" in shlex.split(str(raised.value))
    with pytest.raises(SpecError):
        charts.require_extra()


def test_a_survey_takes_the_wanted_scenarios_in_their_order() -> None:
    machine = bundled("qemu-512m")
    (one,) = survey([machine], ["incremental:variant=hpa", "chunk_end"], ["native"])
    assert [each.row.allocator for each in one.exhibits] == ["incremental:variant=hpa", "chunk_end"]
    assert all(each.ok for each in one.exhibits)
