"""Machines, runs and comparisons as a notebook shows them, and as frames of pandas or polars."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import singledispatch
from html import escape
from importlib import import_module
from typing import Any

import attrs

from paravirt_mm.comparison import Row
from paravirt_mm.errors import ParavirtMmError
from paravirt_mm.machine.model import Machine
from paravirt_mm.registry import Registry
from paravirt_mm.report.summary import summary_table
from paravirt_mm.report.tables import figure_tables, machine_title
from paravirt_mm.run import Run
from paravirt_mm.shown import Shown
from paravirt_mm.view.charts import drawings, svg
from paravirt_mm.view.memory_map import memory_map
from paravirt_mm.view.palette import Theme
from paravirt_mm.view.scene import MAX_NAME, scene
from paravirt_mm.view.sentences import sentences
from paravirt_mm.view.story import bounded, chapters
from paravirt_mm.view.survey import Subject, survey, totals


@attrs.frozen
class Comparison(Shown):
    """Machines, with every scenario that was run on them; a notebook shows it as sums, sentences
    and a chart.
    """

    subjects: tuple[Subject, ...]

    @classmethod
    def of(
        cls,
        machines: Machine | Iterable[Machine],
        allocators: Sequence[str] | None = None,
        backends: Sequence[str] | None = None,
        registry: Registry | None = None,
    ) -> Comparison:
        """Run every allocator under every backend. None: what the installed plugins offer.

        Raises `SpecError` for a wrong spec.
        """
        several = [machines] if isinstance(machines, Machine) else machines
        return cls(tuple(survey(several, allocators, backends, registry)))

    @property
    def rows(self) -> list[Row]:
        """The row of every scenario, machine by machine."""
        return [exhibit.row for subject in self.subjects for exhibit in subject.exhibits]

    def frame(self) -> Any:
        """Return all figures as a frame, a row a scenario (see `frame`)."""
        return frame(self.rows)

    def page(self) -> str:
        """Return the HTML report; needs the extra ``report``."""
        from paravirt_mm.view.page import page

        return page(self.subjects)


def frame(rows: Iterable[Row]) -> Any:
    """Return rows as a pandas frame, or a polars one where only that is installed.

    Raises `ParavirtMmError` where neither is.
    """
    records = [row.as_record() for row in rows]
    for name in ("pandas", "polars"):
        try:
            library = import_module(name)
        except ImportError:
            continue
        if name == "pandas":
            return library.DataFrame.from_records(records)
        return library.DataFrame(records, infer_schema_length=None)
    raise ParavirtMmError("a frame needs pandas or polars: pip install pandas")


@singledispatch
def html(thing: object) -> str:
    """Return what a notebook shows of a machine, a run or a comparison."""
    raise TypeError(type(thing))


@singledispatch
def picture(thing: object) -> str | None:
    """Return a machine, a run or a comparison as SVG; None where there is nothing to draw."""
    raise TypeError(type(thing))


@html.register
def _(thing: Machine) -> str:
    title = escape(machine_title(thing)).replace("\n", "<br>")
    return f"<p><b>{escape(bounded(thing.name, MAX_NAME))}</b><br>{title}</p>{picture(thing)}"


@picture.register
def _(thing: Machine) -> str | None:
    return memory_map(thing, theme=Theme.LIGHT)


@html.register
def _(thing: Run) -> str:
    told = "".join(
        f"<li>{escape(chapter.title)}<ul>"
        + "".join(f"<li>{escape(sentence)}</li>" for sentence in chapter.sentences)
        + "</ul></li>"
        for chapter in chapters(thing)[:100]
    )
    what = escape(bounded(f"{thing.allocator} under {thing.backend} on {thing.machine.name}"))
    end = escape(bounded(str(thing.verdict)))
    steps = f"<details><summary>Step by step</summary><ol start=0>{told}</ol></details>"
    return f"<p><b>{what}</b>: {end}</p>{picture(thing) or ''}{steps}"


@picture.register
def _(thing: Run) -> str | None:
    found = scene(thing)
    return memory_map(thing.machine, [found] if found.frames else [], theme=Theme.LIGHT)


@html.register
def _(thing: Comparison) -> str:
    told = "".join(
        f"<li><b>{escape(one.about)}:</b> {escape(one.text)}</li>"
        for one in sentences(totals(thing.subjects))
    )
    if len(thing.subjects) == 1:
        return f"{figure_tables(thing.rows, 'html')}<ol>{told}</ol>{_map(thing.subjects[0])}"
    return f"{summary_table(thing.rows, 'html')}<ol>{told}</ol>{picture(thing) or ''}"


@picture.register
def _(thing: Comparison) -> str | None:
    """Of one machine the map; of several the chart of differences, where the extra is installed."""
    if len(thing.subjects) == 1:
        return _map(thing.subjects[0])
    try:
        found = drawings(thing.subjects)
        return svg(found[0], Theme.LIGHT) if found else None
    except ParavirtMmError:
        return None


def _map(subject: Subject) -> str:
    scenes = [exhibit.scene for exhibit in subject.exhibits if exhibit.scene.frames]
    return memory_map(subject.machine, scenes, theme=Theme.LIGHT)
