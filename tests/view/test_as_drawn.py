"""Charts and the page as they were seen, kept whole in tests/data/pictures: a wrong place, size,
colour, title, order or axis is a difference of lines there, for whoever reviews it.

A chart is kept as it is handed to the library; `vl_convert.vegalite_to_png` draws it. The page is
kept without its script, style and charts, and its data of one machine beside it. Whoever has seen
that a change is right keeps it: ``PARAVIRT_MM_SEEN=yes pytest tests/view/test_as_drawn.py``.
(Memory maps are kept by `test_map`; that figures are those of the rows is tested everywhere else.)
"""

from __future__ import annotations

import json
import re
from typing import Any

import attrs
import pytest

from paravirt_mm.view import page
from paravirt_mm.view.charts import Drawing, drawings
from paravirt_mm.view.palette import Theme
from paravirt_mm.view.survey import Subject
from tests.kept import DATA, kept
from tests.view.test_charts import spec_of

PICTURES = DATA / "pictures"
CHARTS = PICTURES / "charts"
ALLOCATORS = ("legacy_linear:kernel=3.6", "incremental:variant=hpa")
DRAWN = {
    "difference": (False, True),
    "guess": (False,),
    "flips": (False, True),
    "low-memory": (False,),
    "hypercalls": (True,),
}
"""The charts, and whether each is drawn for wide windows (False), for narrow ones, or for both."""
WIDTH = 100


def laid_out(value: Any, indent: str = "") -> str:
    """JSON that reads well: what fits a line stands on one."""
    line = json.dumps(value, ensure_ascii=False)
    if len(indent) + len(line) < WIDTH or not isinstance(value, dict | list):
        return line
    deeper = f"{indent} "
    parts = (
        [f"{json.dumps(name)}: {laid_out(each, deeper)}" for name, each in value.items()]
        if isinstance(value, dict)
        else [laid_out(each, deeper) for each in value]
    )
    begin, end = "{}" if isinstance(value, dict) else "[]"
    return f"{begin}\n{deeper}" + f",\n{deeper}".join(parts) + f"\n{indent}{end}"


@pytest.fixture
def few(subjects: list[Subject]) -> list[Subject]:
    """Two machines and two allocators of those compared: as few as can differ."""
    return [
        attrs.evolve(
            subject, exhibits=tuple(e for e in subject.exhibits if e.row.allocator in ALLOCATORS)
        )
        for subject in subjects[1:3]
    ]


@pytest.mark.slow
def test_charts_are_drawn_as_they_were_seen(few: list[Subject]) -> None:
    pytest.importorskip("altair", reason="needs the extra 'report'")
    seen = []
    for drawing in drawings(few):
        for narrow in DRAWN[drawing.name]:
            spec = spec_of(drawing, Theme.DARK if narrow else Theme.LIGHT, narrow)
            del spec["$schema"]  # the library's release
            told = {"title": drawing.title, "caption": drawing.caption}
            text = laid_out({"usermeta": told, **spec}) + "\n"
            path = CHARTS / f"{drawing.name}{'-narrow' * narrow}.json"
            assert text == kept(path, text), path.name
            seen.append(path.name)
    assert sorted(seen) == sorted(path.name for path in CHARTS.glob("*.json"))


def test_the_page_is_as_it_was_seen(few: list[Subject], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jinja2", reason="needs the extra 'report'")

    def svg(drawing: Drawing, theme: Theme, *, narrow: bool = False) -> str:
        return f"<svg>{drawing.name}, {theme}, {'narrow' if narrow else 'wide'}</svg>"

    monkeypatch.setattr(page, "svg", svg)
    monkeypatch.setattr(page, "__version__", "1.2.3")
    unread = ["<no> such log", *(f"log {n}" for n in range(page.MAX_UNREAD + 1))]
    text = page.page(few, unread=unread)
    (data,) = re.findall(r'(?<=<script type="application/json" id="data">).*?(?=</script>)', text)
    text = re.sub(
        r"(?s)(<(?:style|script)\b[^>]*>.{0,30}).*?(?=</(?:style|script)>)", r"\1...", text
    )
    text = re.sub(r"sha256-[^&]*", "sha256-...", text)
    assert text == kept(PICTURES / "page.html", text)
    machine = json.loads(data)["machines"][1]
    for each in machine["scenarios"]:
        del each["figures"], each["extra"]  # `test_page` holds them against the rows
    told = laid_out(machine) + "\n"
    assert told == kept(PICTURES / "page.json", told)
