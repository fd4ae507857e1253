"""What a notebook shows, the frames that it gets, and the notebook of the examples."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from paravirt_mm import Comparison, ParavirtMmError, Run, bundled, frame
from paravirt_mm.view.survey import Subject


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
        ElementTree.fromstring(picture)  # noqa: S314 - our own picture


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

    class Polars:
        @staticmethod
        def DataFrame(records: list[dict[str, Any]], **_: Any) -> int:  # noqa: N802
            return len(records)

    monkeypatch.setitem(sys.modules, "polars", Polars)  # type: ignore[arg-type]
    assert frame(rows) == len(rows)


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
