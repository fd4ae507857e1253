"""For which sizes and places a crash kernel fits after each run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from paravirt_mm.comparison import Row
from paravirt_mm.machine.model import Span
from paravirt_mm.machine.paging import MIB
from paravirt_mm.measure.crashkernel import LIMITS
from paravirt_mm.options import PluginSpec
from paravirt_mm.report.paper import PLAIN, Paper
from paravirt_mm.report.summary import fitted
from paravirt_mm.report.tables import label
from paravirt_mm.report.values import MISSING

MAX_STRETCHES = 3
"""So many stretches of places are told."""
_NOTE = "N: the largest crashkernel=N that fits below; Y: every multiple of 16M for N@Y."
_OF_MANY = "N: the largest crashkernel=N that fits below on every machine where a run could end."


def crashkernels(rows: Sequence[Row], style: str = "simple", paper: Paper = PLAIN) -> str:
    """Return a line for each allocator and backend: the largest N, and where those that were asked
    about fit; of several machines on how many.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.backend, row.allocator), []).append(row)
    lines = list(groups.values())
    columns: dict[str, list[str]] = {
        "allocator": [label(PluginSpec.parse(allocator)) for _, allocator in groups],
        "backend": [label(PluginSpec.parse(backend)) for backend, _ in groups],
    }
    for name, _ in LIMITS:
        figure = f"crashkernel_largest_below_{name}"
        columns[f"N<{name.upper()}"] = [_least(line, figure) for line in lines]
    for text in dict.fromkeys(text for row in rows for text in row.crashkernels):
        title = text if "@" in text else f"Y of {text}"
        columns[title] = [_fits(line, text) for line in lines]
    many = len({row.machine for row in rows}) > 1
    return fitted(columns, [_OF_MANY if many else _NOTE], style, paper)


def _least(rows: Sequence[Row], figure: str) -> str:
    known = [row.figures[figure] for row in rows if figure in row.figures]
    return f"{min(known) // MIB}M" if known else MISSING


def _fits(rows: Sequence[Row], text: str) -> str:
    known = [row.crashkernels[text] for row in rows if text in row.crashkernels]
    if len(rows) > 1:
        return f"{sum(map(bool, known))} of {len(known)}"
    if not known:
        return MISSING
    (places,) = known
    return stretches(places, at="@" in text)


def stretches(places: Sequence[Span], *, at: bool = False) -> str:
    """Return places in words: 16M..400M; "fits" where one was asked ``at``."""
    if not places:
        return "no"
    if at:
        return "fits"
    told = [_stretch(*place) for place in places[:MAX_STRETCHES]]
    return ", ".join([*told, *(["..."] if len(places) > MAX_STRETCHES else [])])


def _stretch(first: int, last: int) -> str:
    shown = f"{first // MIB}M"
    return shown if first == last else f"{shown}..{last // MIB}M"


def as_columns(asked: Mapping[str, Sequence[Span]]) -> Iterator[tuple[str, str]]:
    """Yield a name and a text for each crash kernel asked about, for formats without lists."""
    for text, places in asked.items():
        yield f"crashkernel={text}", stretches(places, at="@" in text)
