"""What a notebook shows, the frames that it gets, and the notebook of the examples."""

from __future__ import annotations

import ast
import json
import sys
from html import escape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from paravirt_mm import (
    Comparison,
    E820Type,
    Machine,
    MemoryMap,
    ParavirtMmError,
    Run,
    Scenario,
    Trace,
    bundled,
    frame,
)
from paravirt_mm.report.summary import summary_table
from paravirt_mm.report.tables import figure_tables
from paravirt_mm.view.memory_map import memory_map
from paravirt_mm.view.notebook import html, picture
from paravirt_mm.view.palette import Theme
from paravirt_mm.view.scene import scene
from paravirt_mm.view.sentences import sentences
from paravirt_mm.view.story import chapters
from paravirt_mm.view.survey import Subject, totals
from tests.view.parsed import parsed


@pytest.mark.slow
def test_things_show_themselves(runs: dict[tuple[str, str], Run], subjects: list[Subject]) -> None:
    comparison = Comparison(tuple(subjects))
    run = runs["incremental:variant=hpa", "xen"]
    for thing, words in (
        (bundled("pae-4g"), "HIGHMEM"),
        (run, "from the top, tables from brk"),
        (comparison, "Guessing:"),
        (Comparison(tuple(subjects[1:2])), "Lenovo X230"),
    ):
        assert words in thing._repr_html_()
        picture = thing._repr_svg_()
        assert picture is not None
        assert parsed(picture).tag.endswith("svg")


def test_what_is_shown_of_machines_runs_and_comparisons(
    runs: dict[tuple[str, str], Run], subjects: list[Subject]
) -> None:
    """A machine its map; a run its verdict, map and steps; of one machine figures and a map, of
    several sums. Each says what it is about, and a refused run shows the machine alone.
    """
    machine = bundled("pae-4g")
    assert html(machine).startswith("<p><b>pae-4g</b><br>")
    assert html(machine).endswith("</svg>")
    assert picture(machine) == memory_map(machine, theme=Theme.LIGHT)
    run = runs["incremental:variant=hpa", "xen"]
    told = html(run)
    assert told.startswith("<p><b>incremental:variant=hpa under xen on lenovo-x230-8g</b>: ok</p>")
    assert picture(run) == memory_map(run.machine, [scene(run)], theme=Theme.LIGHT)
    steps = chapters(run)
    assert told.count("<ul>") == len(steps)
    assert told.count("<li>") == len(steps) + sum(len(one.sentences) for one in steps)
    refused = Scenario.of(bundled("asus-l8400-256m"), "incremental", "xen").run()
    assert "domain builder" in html(refused)
    assert "<svg" in html(refused)
    one = Comparison(tuple(subjects[1:2]))
    scenes = [each.scene for each in subjects[1].exhibits]
    mapped = memory_map(subjects[1].machine, scenes, theme=Theme.LIGHT)
    assert picture(one) == mapped
    assert html(one) == f"{figure_tables(one.rows, 'html')}{said(one)}{mapped}"
    first, *others = subjects[1].exhibits
    stopped = attrs.evolve(first, scene=attrs.evolve(first.scene, frames=()))
    ran = memory_map(subjects[1].machine, scenes[1:], theme=Theme.LIGHT)
    shown = attrs.evolve(subjects[1], exhibits=(stopped, *others))
    assert picture(Comparison((shown,))) == ran, "of a run that broke off at once there is nothing"
    nothing = attrs.evolve(run, trace=Trace())
    assert picture(nothing) == memory_map(run.machine, theme=Theme.LIGHT)
    with pytest.raises(TypeError):
        html(7)
    with pytest.raises(TypeError):
        picture(7)


def test_of_several_machines_a_chart_is_shown_where_it_can_be_drawn(
    subjects: list[Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    several = Comparison(tuple(subjects))
    monkeypatch.setattr("paravirt_mm.view.notebook.svg", lambda drawing, theme: f"{drawing.name}!")
    assert picture(several) == "difference!"
    assert html(several) == f"{summary_table(several.rows, 'html')}{said(several)}difference!"
    assert picture(Comparison(())) is None

    def missing(*_: object) -> str:
        raise ParavirtMmError("pip install it")

    monkeypatch.setattr("paravirt_mm.view.notebook.svg", missing)
    assert picture(several) is None
    assert html(several).endswith("</ol>")


def said(comparison: Comparison) -> str:
    items = [
        f"<li><b>{escape(one.about)}:</b> {escape(one.text)}</li>"
        for one in sentences(totals(comparison.subjects))
    ]
    return f"<ol>{''.join(items)}</ol>"


def test_of_very_many_steps_the_first_hundred_are_told() -> None:
    spans = [(0, 1 << 25), *((n << 21, (n << 21) + (1 << 20)) for n in range(16, 130))]
    memory = MemoryMap.sanitise([(*span, E820Type.RAM) for span in spans])
    run = Scenario.of(Machine("many", memory), "chunk_end", "native").run()
    assert len(chapters(run)) > 100
    assert html(run).count("<ul>") == 100


@pytest.mark.slow
def test_hostile_names_stay_text(hostile_subjects: list[Subject]) -> None:
    for subject in hostile_subjects:
        for thing in (subject.machine, Comparison((subject,)), Comparison(tuple(hostile_subjects))):
            text = thing._repr_html_()
            assert "<script" not in text
            assert "<img" not in text
            assert "\u202e" not in text


@pytest.mark.slow
def test_a_frame_holds_every_row(subjects: list[Subject]) -> None:
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    comparison = Comparison(tuple(subjects))
    found = comparison.frame()
    assert isinstance(found, pandas.DataFrame)
    assert len(found) == len(comparison.rows) == 32
    row = found[(found.machine == "lenovo-x230-8g") & (found.allocator.str.startswith("legacy"))]
    assert set(row[row.backend == "xen"].reserved) == {6105}


def test_polars_will_do_and_nothing_is_said_in_words(
    subjects: list[Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Comparison(tuple(subjects)).rows
    monkeypatch.setitem(sys.modules, "pandas", None)
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(ParavirtMmError, match="pip install pandas"):
        frame(rows)

    polars: Any = SimpleNamespace(DataFrame=lambda records, **_: len(records))
    monkeypatch.setitem(sys.modules, "polars", polars)
    assert frame(rows) == len(rows)

    made = SimpleNamespace(from_records=lambda records: f"pandas {len(records)}")
    pandas: Any = SimpleNamespace(DataFrame=made)
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    assert frame(rows) == f"pandas {len(rows)}", "the first that is there"


@pytest.mark.slow
def test_the_notebook_runs(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("pandas", reason="needs pandas")
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((checkout / "examples" / "look.ipynb").read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    shown: list[object] = []
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        assert cell["outputs"] == []
        *statements, last = ast.parse("".join(cell["source"])).body
        if not isinstance(last, ast.Expr):
            statements.append(last)
        exec(compile(ast.Module(statements, []), "look.ipynb", "exec"), names)  # noqa: S102
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "look.ipynb", "eval"), names)  # noqa: S307
            shown.append(value)
    assert [type(each).__name__ for each in shown][:3] == ["Machine", "Run", "Comparison"]
    assert all(each._repr_html_() for each in shown[:3])  # type: ignore[attr-defined]
    assert "step 5: " in capsys.readouterr().out
    assert (tmp_path / "report.html").stat().st_size > 100_000
