"""Charts of a comparison, drawn by Altair and turned into SVG or PNG without a browser.

Needs the extra ``report``. Colours are those of `paravirt_mm.view.palette`; a chart for a page
names them as CSS properties, so that it follows the page from light to dark. How large things are,
where there is room and where there is little, stands in ``assets/charts.json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import resources
from itertools import islice
from typing import TYPE_CHECKING, Any

import attrs

from paravirt_mm.errors import SpecError, install
from paravirt_mm.report.summary import Total, comparable
from paravirt_mm.view.palette import Theme, colour
from paravirt_mm.view.scene import MAX_NAME
from paravirt_mm.view.story import bounded
from paravirt_mm.view.survey import Exhibit, Subject, short, totals

if TYPE_CHECKING:
    import altair as alt

    AnyChart = alt.Chart | alt.LayerChart | alt.HConcatChart | alt.VConcatChart | alt.FacetChart

Record = dict[str, Any]
MAX_MACHINES = 40
"""Machines that a chart names; of more, those with the most memory."""
_SERIES = 6
_LOW_LIMITS = (("tables_below_1m", "1M"), ("tables_below_16m", "16M"), ("tables_below_4g", "4G"))
_KINDS = ("hypercalls_mmu_update", "hypercalls_update_va_mapping", "hypercalls_mmuext_op")


@attrs.frozen
class Drawing:
    """A chart that can be drawn: its name for commands, title, what it shows, data and drawer.

    ``draw`` gets the drawing, a theme and whether there is little room. ``allocators`` are all that
    were compared, in their order: a colour stands for the same one in every chart.
    """

    name: str
    title: str
    caption: str
    records: tuple[Record, ...]
    draw: Callable[[Drawing, Theme, bool], Any]
    allocators: tuple[str, ...]


def drawings(subjects: Sequence[Subject]) -> list[Drawing]:
    """Return the charts for which there is something to draw, the most telling one first."""
    shown = sorted(subjects, key=lambda each: -each.machine.memory_map.ram_pages().total)
    shown = shown[:MAX_MACHINES]
    everyone = (short(each.row.allocator) for subject in subjects for each in subject.exhibits)
    allocators = tuple(dict.fromkeys(everyone))
    found = [
        Drawing(
            "difference",
            "What each allocator costs",
            "Sums over the machines on which every allocator comes to a good end.",
            tuple(_difference(totals(subjects))),
            _draw_difference,
            allocators,
        ),
        Drawing(
            "guess",
            "Pages set aside for tables, and used, by size of the machine",
            "A line joins what was set aside (ring) with what became tables (dot); allocators that "
            "set nothing aside are not here.",
            tuple(_guesses(subjects)),
            _draw_guesses,
            allocators,
        ),
        Drawing(
            "flips",
            "Status changes for each table in use",
            "One is the floor where pages are typed; more means that pages went back and forth.",
            tuple(_flips(shown)),
            _draw_flips,
            allocators,
        ),
        Drawing(
            "low-memory",
            "Low memory taken by tables",
            "The most that tables take there on any one machine.",
            tuple(_low_memory(subjects)),
            _draw_low_memory,
            allocators,
        ),
        Drawing(
            "hypercalls",
            "Hypercalls by kind, for each table in use",
            "Sums over the machines on which every allocator comes to a good end.",
            tuple(_hypercalls(subjects)),
            _draw_hypercalls,
            allocators,
        ),
    ]
    return [drawing for drawing in found if drawing.records]


def svg(drawing: Drawing, theme: Theme = Theme.LIGHT, *, narrow: bool = False) -> str:
    """Return a chart as SVG text. Raises `SpecError` where the extra is not installed."""
    converter = library("vl_convert")
    chart = drawing.draw(drawing, theme, narrow)
    text: str = converter.vegalite_to_svg(_styled(chart, theme).to_dict(), vl_version=_vega_lite())
    return _slimmed(text)


_INVISIBLE = re.compile(r'<path class="foreground"[^>]* display="none"/>')


def _slimmed(picture: str) -> str:
    """Return a chart without what nobody sees, and with its font said once."""
    font = f' font-family="{_looks()["style"]["font"]}"'
    shorter = _INVISIBLE.sub("", picture).replace(font, "")
    return shorter.replace("<svg ", f"<svg{font} ", 1)


def png(picture: str, scale: float = 2) -> bytes:
    """Return SVG text as PNG. Raises `SpecError` where the extra is not installed."""
    converter = library("vl_convert")
    data: bytes = converter.svg_to_png(picture, scale=scale)
    return data


def require_extra() -> None:
    """Make sure, before long work begins, that charts and the report can be made. Raises
    `SpecError` where the extra is not installed.
    """
    for name in ("altair", "vl_convert", "jinja2"):
        library(name)


def library(name: str) -> Any:
    """Import what the extra brings. Raises `SpecError` where it is not installed."""
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise SpecError(f"charts, PNG and the report need {name}: {install('report')}") from error


def _vega_lite() -> str:
    version: str = library("altair").SCHEMA_VERSION
    return ".".join(version.removeprefix("v").split(".")[:2])


# -- data ---------------------------------------------------------------------------------------


def _who(each: Exhibit) -> Record:
    return {"allocator": short(each.row.allocator), "backend": short(each.row.backend)}


def _difference(sums: Sequence[Total]) -> list[Record]:
    found: list[Record] = []
    for total in sums:
        shared = {"allocator": total.allocator, "backend": total.backend}
        numbers = (
            ("pages set aside in vain", total.waste),
            ("status changes in vain", total.flips_wasted),
            ("KiB of tables below 16M", total.below_16m >> 10),
        )
        found += [{**shared, "what": what, "value": value} for what, value in numbers]
    return found if any(total.machines for total in sums) else []


def _guesses(subjects: Sequence[Subject]) -> list[Record]:
    return [
        {
            **_who(each),
            "machine": bounded(subject.machine.name, MAX_NAME),
            "ram_gib": round(subject.machine.memory_map.ram_pages().total / (1 << 30), 3),
            "reserved": each.row.figures["reserved"],
            "used": each.row.figures["used"],
        }
        for subject in subjects
        for each in subject.exhibits
        if each.row.figures.get("reserved")
    ]


def _flips(subjects: Sequence[Subject]) -> list[Record]:
    return [
        {
            **_who(each),
            "machine": bounded(subject.machine.name, MAX_NAME),
            "flips_per_table": each.row.figures["flips_per_table"],
        }
        for subject in subjects
        for each in subject.exhibits
        if each.ok and each.row.figures.get("flips")
    ]


def _low_memory(subjects: Sequence[Subject]) -> list[Record]:
    exhibits = [each for subject in subjects for each in subject.exhibits if each.ok]
    keys = dict.fromkeys((each.row.allocator, each.row.backend) for each in exhibits)
    return [
        {
            **_who(mine[0]),
            "below": words,
            "kib": max((each.row.figures.get(name) or 0) for each in mine) >> 10,
        }
        for key in keys
        for name, words in _LOW_LIMITS
        if (mine := [each for each in exhibits if (each.row.allocator, each.row.backend) == key])
    ]


def _hypercalls(subjects: Sequence[Subject]) -> list[Record]:
    shared = comparable([each.row for subject in subjects for each in subject.exhibits])
    kept = {id(row) for row in shared if row.figures.get("hypercalls")}
    good = [each for subject in subjects for each in subject.exhibits if id(each.row) in kept]
    keys = dict.fromkeys((each.row.allocator, each.row.backend) for each in good)
    found: list[Record] = []
    for key in keys:
        mine = [each for each in good if (each.row.allocator, each.row.backend) == key]
        tables = sum(each.row.figures["tables"] for each in mine)
        for kind in _KINDS:
            calls = sum(each.row.figures.get(kind) or 0 for each in mine)
            found.append(
                {
                    **_who(mine[0]),
                    "kind": kind.removeprefix("hypercalls_"),
                    "calls": calls,
                    "calls_per_table": round(calls / tables, 4) if tables else 0,
                }
            )
    return found


# -- drawing ------------------------------------------------------------------------------------


@cache
def asset(name: str) -> str:
    """Return the text of a file that belongs to this package."""
    return resources.files(__package__).joinpath("assets", name).read_text(encoding="utf-8")


@cache
def _looks() -> dict[str, Any]:
    looks: dict[str, Any] = json.loads(asset("charts.json"))
    return looks


def _look(narrow: bool) -> dict[str, Any]:
    """Return how large things are, and what marks, scales and axes are alike in all charts."""
    looks = _looks()
    return {**looks["both"], **looks["narrow" if narrow else "wide"]}


def _styled(chart: AnyChart, theme: Theme) -> AnyChart:
    def coloured(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: coloured(each) for name, each in value.items()}
        named = isinstance(value, str) and value.startswith("@")
        return colour(value.removeprefix("@"), theme) if named else value

    paper = "transparent" if theme is Theme.PAGE else colour("paper", theme)
    configured: AnyChart = chart.configure(background=paper, **coloured(_looks()["style"]))
    return configured


def _data(records: Sequence[Mapping[str, Any]]) -> alt.Data:
    data: alt.Data = library("altair").Data(values=[dict(record) for record in records])
    return data


def _room(names: Sequence[str], look: Mapping[str, Any]) -> float:
    """Return the room that names need beside an axis, whatever font the reader has."""
    needed: float = look["letter"] * max(map(len, names)) + look["beside_names"]
    return needed


def _order(records: Sequence[Record], name: str) -> list[str]:
    return list(dict.fromkeys(record[name] for record in records))


def _colours(names: Sequence[str], theme: Theme) -> alt.Scale:
    shades = [colour(f"series{n % _SERIES + 1}", theme) for n in range(len(names))]
    scale: alt.Scale = library("altair").Scale(domain=list(names), range=shades)
    return scale


def _draw_difference(drawing: Drawing, theme: Theme, narrow: bool) -> AnyChart:
    """Bars of one column each for what is wasted, and under which platform, with their numbers."""
    records, look = drawing.records, _look(narrow)
    alt = library("altair")
    whats, backends = _order(records, "what"), _order(records, "backend")
    tops = {what: max(r["value"] for r in records if r["what"] == what) for what in whats}
    parts = {
        (what, backend): mine
        for what in whats
        for backend in backends
        if (mine := [r for r in records if r["what"] == what and r["backend"] == backend])
    }
    told = {
        key: mine
        for key, mine in parts.items()
        if max(r["value"] for r in mine) > _NEGLIGIBLE * tops[key[0]]
    } or dict(islice(parts.items(), 1))
    a_row = 2 if narrow else len(told)
    panels = [
        _panel(what, backend, mine, tops[what], theme, narrow, names=number % a_row == 0)
        for number, ((what, backend), mine) in enumerate(told.items())
    ]
    rows = [
        alt.hconcat(*panels[first : first + a_row], spacing=look["gap"])
        for first in range(0, len(panels), a_row)
    ]
    joined: AnyChart = alt.vconcat(*rows, spacing=look["rows_apart"])
    return joined


_NEGLIGIBLE = 0.01
"""A column whose bars are all below this share of the longest one would show nothing."""


def _panel(
    what: str,
    backend: str,
    records: Sequence[Record],
    top: int,
    theme: Theme,
    narrow: bool,
    names: bool,
) -> AnyChart:
    """Return one column of bars. Its scale is that of both platforms: little looks little."""
    alt = library("altair")
    order = _order(records, "allocator")
    look = _look(narrow)
    base = alt.Chart(_data(records)).encode(
        y=alt.Y(
            "allocator:N",
            sort=order,
            title=None,
            axis=alt.Axis(
                **look["column_names"],
                labels=names,
                labelFontSize=look["text"],
                minExtent=_room(order, look) - look["names_less"] if names else 0,
            ),
        )
    )
    bad, good, ink = (colour(name, theme) for name in ("bad", "good", "ink"))

    def coloured(some: str) -> Any:
        """None at all is good."""
        return alt.ColorValue(good, condition={"test": "datum.value > 0", "value": some})

    # An axis without an end would have none where all bars are of no length.
    ends = alt.Scale(domain=[0, max(top, 1) * look["beyond_bars"]])
    bars = base.mark_bar(height=look["bar"]).encode(
        x=alt.X("value:Q", axis=None, scale=ends),
        color=coloured(bad),
    )
    words = base.mark_text(**look["number"], fontSize=look["text"]).encode(
        x=alt.X("value:Q", axis=None),
        text=alt.Text("value:Q", format=",d"),
        color=coloured(ink),
    )
    lines = _capital(what).rsplit(" ", 2)
    title = alt.TitleParams(
        text=[lines[0], " ".join(lines[1:])] if narrow else _capital(what),
        subtitle=f"under {backend}",
        subtitleColor=colour("muted", theme),
        fontSize=look["title"],
    )
    chart: AnyChart = alt.layer(bars, words).properties(
        width=look["panel"], height=look["panel_row"] * len(order), title=title
    )
    return chart


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _draw_guesses(drawing: Drawing, theme: Theme, narrow: bool) -> AnyChart:
    records, look = drawing.records, _look(narrow)
    alt = library("altair")
    scale = _colours(drawing.allocators, theme)
    x = alt.X(
        "ram_gib:Q",
        scale=alt.Scale(**look["ram"]),
        title="RAM (logarithmic)",
        axis=alt.Axis(grid=False, values=[4.0**n for n in range(-3, 9)], labelExpr=_GIB_LABELS),
    )
    up = alt.Scale(**look["pages"])
    base = alt.Chart().encode(
        x=x,
        color=alt.Color(
            "allocator:N",
            scale=scale,
            legend=_legend("allocator", look, _order(records, "allocator")),
        ),
    )
    title = "pages (logarithmic)"
    ticks = alt.Axis(values=[0, 1, 10, 100, 1000, 10_000, 100_000, 1_000_000], labelExpr=_PAGES)
    join = base.mark_rule(**look["join"]).encode(
        y=alt.Y("reserved:Q", scale=up, title=title, axis=ticks), y2="used:Q"
    )
    rings = base.mark_point(**look["ring"]).encode(
        y=alt.Y("reserved:Q", scale=up, title=title, axis=ticks)
    )
    dots = base.mark_point(**look["dot"]).encode(
        y=alt.Y("used:Q", scale=up, title=title, axis=ticks)
    )
    layered = alt.layer(join, rings, dots, data=_data(records)).properties(
        width=look["guess_width"], height=look["guess_height"]
    )
    return _by_backend(layered, records, look)


def _by_backend(chart: Any, records: Sequence[Record], look: Mapping[str, Any]) -> AnyChart:
    """Put one chart a backend side by side, or above each other where there is little room."""
    alt = library("altair")
    backends = _order(records, "backend")
    facet = alt.Facet(
        "backend:N",
        sort=backends,
        title=None,
        header=alt.Header(labelExpr="'under ' + datum.value"),
    )
    result: AnyChart = chart.facet(facet=facet, columns=look["columns"])
    return result


def _legend(title: str, look: Mapping[str, Any], shown: Sequence[str]) -> Any:
    """Return a legend; ``shown`` are the names that it explains."""
    return library("altair").Legend(
        title=title, values=list(shown), columns=look["legend_columns"], **look["legend"]
    )


def _draw_flips(drawing: Drawing, theme: Theme, narrow: bool) -> AnyChart:
    records, look = drawing.records, _look(narrow)
    alt = library("altair")
    machines = _order(records, "machine")
    largest = max(record["flips_per_table"] for record in records)
    chart = (
        alt.Chart(_data(records))
        .mark_point(**look["mark"])
        .encode(
            y=alt.Y(
                "machine:N",
                sort=machines,
                title=None,
                axis=alt.Axis(
                    grid=True,
                    minExtent=min(_room(machines, look), look["machines"]),
                    # Cut a little earlier: the reader's font may be wider than ours.
                    labelLimit=look["machines"] - 30,
                ),
            ),
            x=alt.X(
                "flips_per_table:Q",
                title="status changes a table",
                scale=alt.Scale(
                    domain=[min(1, largest), max(largest * 1.05, 1.2)], **look["flips"]
                ),
                axis=alt.Axis(format=".2~f", tickCount=look["flips_ticks"], grid=False),
            ),
            color=alt.Color(
                "allocator:N",
                scale=_colours(drawing.allocators, theme),
                legend=_legend("allocator", look, drawing.allocators),
            ),
            shape=alt.Shape(
                "allocator:N", scale=alt.Scale(domain=list(drawing.allocators)), legend=None
            ),
        )
        .properties(width=look["flips_width"], height=look["flips_row"] * len(machines))
    )
    result: AnyChart = chart
    return result


def _draw_low_memory(drawing: Drawing, theme: Theme, narrow: bool) -> AnyChart:
    records, look = drawing.records, _look(narrow)
    alt = library("altair")
    shown = [{**record, "below": f"below {record['below']}"} for record in records]
    order, belows = _order(shown, "allocator"), _order(shown, "below")
    base = alt.Chart(_data(shown)).encode(
        y=alt.Y(
            "allocator:N",
            sort=order,
            title=None,
            axis=alt.Axis(**look["names"], minExtent=_room(order, look)),
        ),
        yOffset=alt.YOffset("below:N", sort=belows),
    )
    scale = alt.Scale(**look["kib"])
    ticks = alt.Axis(values=[0, 16, 256, 4096, 65536, 1048576], grid=True, labelExpr=_KIB_LABELS)
    bars = base.mark_bar().encode(
        x=alt.X("kib:Q", scale=scale, title="memory (logarithmic)", axis=ticks),
        color=alt.Color(
            "below:N",
            sort=belows,
            legend=_legend("tables", look, belows),
            scale=_colours(belows, theme),
        ),
    )
    chart = bars.properties(
        width=look["low_memory_width"], height=look["low_memory_row"] * len(order)
    )
    return _by_backend(chart, shown, look)


_PAGES = "datum.value >= 1000 ? datum.value / 1000 + 'k' : datum.value"
_GIB_LABELS = (
    "datum.value >= 1024 ? datum.value / 1024 + 'T'"
    " : datum.value >= 1 ? datum.value + 'G' : datum.value * 1024 + 'M'"
)
_KIB_LABELS = (
    "datum.value >= 1048576 ? datum.value / 1048576 + 'G'"
    " : datum.value >= 1024 ? datum.value / 1024 + 'M'"
    " : datum.value ? datum.value + 'K' : '0'"
)


def _draw_hypercalls(drawing: Drawing, theme: Theme, narrow: bool) -> AnyChart:
    records, look = drawing.records, _look(narrow)
    alt = library("altair")
    kinds, order = _order(records, "kind"), _order(records, "allocator")
    chart = (
        alt.Chart(_data([{**r, "place": kinds.index(r["kind"])} for r in records]))
        .mark_bar(**look["stack"])
        .encode(
            y=alt.Y(
                "allocator:N",
                sort=order,
                title=None,
                axis=alt.Axis(**look["names"], minExtent=_room(order, look)),
            ),
            x=alt.X(
                "calls_per_table:Q",
                title="hypercalls for each table in use",
                axis=alt.Axis(tickCount=look["hypercalls_ticks"]),
            ),
            color=alt.Color(
                "kind:N",
                sort=kinds,
                legend=_legend("kind", look, kinds),
                scale=_colours(kinds, theme),
            ),
            order="place:Q",
        )
        .properties(width=look["hypercalls_width"], height=look["hypercalls_row"] * len(order))
    )
    result: AnyChart = chart
    return result
