"""The page's data is the comparison: each figure under its name, each step with what it changes,
and texts no longer than they may be. (Its script is tried in a browser: `test_report`.)
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

import attrs
import pytest

from paravirt_mm import Finding, bundled
from paravirt_mm.machine.paging import MIB
from paravirt_mm.measure.figures import FIGURES
from paravirt_mm.registry import default_registry
from paravirt_mm.report.merit import merit
from paravirt_mm.report.values import size
from paravirt_mm.view import page
from paravirt_mm.view.charts import drawings
from paravirt_mm.view.palette import COLOURS
from paravirt_mm.view.scene import LINES, MAX_NAME, Status, thinned
from paravirt_mm.view.story import SEVEN_STEPS
from paravirt_mm.view.survey import Subject, short


@pytest.fixture
def data(subjects: list[Subject]) -> dict[str, Any]:
    made = page._data(subjects, default_registry(), drawings(subjects))
    whole: dict[str, Any] = json.loads(json.dumps(made))
    return whole


def test_figures_stand_under_their_names(data: dict[str, Any], subjects: list[Subject]) -> None:
    names = [one["name"] for one in data["figures"]]
    assert names == list(FIGURES)
    for one, figure in zip(data["figures"], FIGURES.values(), strict=True):
        assert (one["header"], one["meaning"]) == (figure.header, figure.meaning)
        assert (one["unit"], one["group"]) == (figure.unit.value, figure.group.value)
        assert one["key"] == figure.key
        assert one["better"] == merit(one["name"])
    added = [name for name, shown in data["extra"] if name == shown]
    assert {"xen.hypercalls_clearing"} <= {*added}
    assert not {*added} & {*names}, "each figure stands once"
    for told, subject in zip(data["machines"], subjects, strict=True):
        for scenario, each in zip(told["scenarios"], subject.exhibits, strict=True):
            row = each.row
            shown = dict(zip(names, scenario["figures"], strict=True))
            shown |= dict(zip([name for name, _ in data["extra"]], scenario["extra"], strict=True))
            for name, value in shown.items():
                assert value == page._plain(row.figures.get(name)), name
            assert {*row.figures} <= {*shown}
            assert (scenario["allocator"], scenario["backend"]) == (
                short(row.allocator), short(row.backend),
            )  # fmt: skip
            assert (scenario["spec"], scenario["outcome"]) == (row.allocator, row.outcome.value)
            assert scenario["verdict"] == row.verdict


def test_steps_tell_what_they_change_and_nothing_else(
    data: dict[str, Any], subjects: list[Subject]
) -> None:
    for told, subject in zip(data["machines"], subjects, strict=True):
        for scenario, each in zip(told["scenarios"], subject.exhibits, strict=True):
            scene = each.scene
            assert len(scenario["steps"]) == len(scene.frames)
            for step, frame in zip(scenario["steps"], scene.frames, strict=True):
                assert step.get("seed") == frame.chapter.seed
                assert (step["title"], step.get("say", [])) == (
                    frame.chapter.title, [*frame.chapter.sentences],
                )  # fmt: skip
                assert step["events"] == [frame.chapter.first, frame.chapter.last]
                assert step.get("map", []) == [list(one) for one in frame.mapped]
                assert step.get("exist", 0) == frame.chapter.mapped
                tables = [(a.batch, a.level, a.low, a.high, a.count) for a in frame.tables]
                assert [tuple(one) for one in step.get("tables", [])] == tables
                changes = [(c.batch, c.level, c.status) for c in frame.changes]
                assert [tuple(one) for one in step.get("status", [])] == changes
                assert step.get("aside", []) == [list(one) for one in frame.reserved]
                assert step.get("back", []) == [list(one) for one in frame.released]
                assert step.get("switched", False) == frame.switched
                assert all(step.values())
            assert scenario["placed"] == [[n, low, high] for n, (low, high) in scene.placed]
            assert scenario["premapped"] == [list(one) for one in scene.premapped]
            assert scenario["promised"] == sum(high - low for low, high in scene.promised)
            assert scenario["boot"] == [list(one) for one in thinned(scene.boot_tables)]
            assert scenario["findings"] == []
            assert scenario["more"] == 0


def test_machines_are_told_as_they_are(data: dict[str, Any], subjects: list[Subject]) -> None:
    for told, subject in zip(data["machines"], subjects, strict=True):
        machine = subject.machine
        assert told["name"] == machine.name
        assert told["title"] == machine.provenance.title
        assert told["source"] == machine.provenance.source
        assert told["ram"] == machine.memory_map.ram_pages().total
        assert told["e820"] == [[e.start, e.end, e.type.label] for e in machine.memory_map]
        assert told["more"] == 0
        assert told["assumed"] == list(machine.provenance.assumed)
        assert told["release"] == (machine.provenance.kernel_release or "")
        ends = [each.scene.end for each in subject.exhibits]
        assert told["end"] == max(machine.map_limit, machine.memory_map.ram_pages().end, *ends)
        facts = dict(told["facts"])
        ram = machine.memory_map.ram_pages()
        assert facts["RAM"] == f"{size(ram.total)} in {len(ram)} piece{'s' * (len(ram) != 1)}"
        assert facts["Direct map ends at"] == hex(machine.map_limit)
        kernel = machine.kernel
        assert facts["Kernel"] == f"{kernel.start:#x}-{kernel.end:#x}"
        assert facts["Brk for tables"] == f"{kernel.brk_start:#x}-{kernel.brk_end:#x}"
        assert ("Initrd" in facts) == (machine.initrd is not None)
    paging = dict(data["machines"][1]["facts"])["Paging"]
    assert paging == "x86_64, 4 levels; pages of 4k, 2M; NX yes"
    old = bundled("asus-l8400-256m")
    assert dict(page._facts(old))["Paging"].endswith("NX no")


def test_what_all_machines_share(data: dict[str, Any], subjects: list[Subject]) -> None:
    assert data["lines"] == [list(line) for line in LINES]
    assert data["seven"] == [SEVEN_STEPS[n] for n in range(1, 8)]
    rows = [each.row for subject in subjects for each in subject.exhibits]
    assert data["evidence"] == {short(row.allocator): row.verified for row in rows}
    installed = default_registry().plugins.values()
    assert data["plugins"] == [[one.name, one.origin, one.role] for one in installed]
    assert data["charts"] == {
        drawing.name: [dict(record) for record in drawing.records] for drawing in drawings(subjects)
    }


def test_long_lists_and_texts_are_cut_and_say_so(subjects: list[Subject]) -> None:
    """The machines of strangers may have any number of anything."""
    subject = subjects[1]
    finding = Finding(3, 7, 0x1000, "w" * 1000)
    for count in (page.MAX_FINDINGS, page.MAX_FINDINGS + 2):
        each = attrs.evolve(subject.exhibits[0], findings=(finding,) * count)
        told = page._exhibit(each, [])
        assert len(told["findings"]) == page.MAX_FINDINGS
        assert told["more"] == count - page.MAX_FINDINGS
        rule, event, address, words = told["findings"][0]
        assert (rule, event, address, len(words)) == (3, 7, 0x1000, 300)
    provenance = attrs.evolve(
        subject.machine.provenance,
        assumed=("a" * 1000,) * (page.MAX_ASSUMED + 1), title="t" * 1000, source="s" * 1000,
        kernel_release="r" * 1000,
    )  # fmt: skip
    machine = attrs.evolve(subject.machine, provenance=provenance, name="n" * 1000)
    told = page._subject(Subject(machine, ()), [])
    assert len(told["assumed"]) == page.MAX_ASSUMED
    assert {len(text) for text in told["assumed"]} == {300}
    assert [len(told[name]) for name in ("title", "source", "release", "name")] == [
        160, 300, MAX_NAME, MAX_NAME,
    ]  # fmt: skip
    row = attrs.evolve(subject.exhibits[0].row, verdict="v" * 1000)
    assert len(page._exhibit(attrs.evolve(each, row=row), [])["verdict"]) == 600
    nameless = attrs.evolve(machine, provenance=attrs.evolve(provenance, title=""))
    assert page._subject(Subject(nameless, ()), [])["title"] == bounded_name(machine.name)
    assert page._unread(["x"] * page.MAX_UNREAD) == ["x"] * page.MAX_UNREAD
    assert page._unread(["x"] * (page.MAX_UNREAD + 3))[-1] == "and 3 more"


def bounded_name(name: str) -> str:
    return f"{name[:159]}…"


def test_a_page_is_titled_by_its_machine_or_their_number(subjects: list[Subject]) -> None:
    assert page._title(subjects[1:2]) == subjects[1].machine.provenance.title
    assert [page._title(subjects[:n]) for n in (0, 2)] == ["0 machines", "2 machines"]
    machine = subjects[1].machine
    nameless = attrs.evolve(machine, provenance=attrs.evolve(machine.provenance, title=""))
    assert page._title([Subject(nameless, ())]) == machine.name
    assert page._names(subjects[1], "backend") == ["native", "xen"]
    assert page._names(subjects[1], "allocator")[:2] == [
        "legacy_linear 2.6.39", "legacy_linear 3.6",
    ]  # fmt: skip


def test_only_its_own_script_and_style_may_act() -> None:
    """By their hashes, as a browser computes them; the dark colours apply where the reader's system
    is dark, unless light ones were chosen, and where dark ones were.
    """
    policy = dict(part.split(" ", 1) for part in page._policy("alert(1)", "a{}").split("; "))
    for name, text in (("script-src", b"alert(1)"), ("style-src", b"a{}")):
        digest = base64.b64encode(hashlib.sha256(text).digest()).decode()
        assert policy[name] == f"'sha256-{digest}'"
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    by_system, chosen = page._dark().splitlines()
    assert by_system.startswith("@media(prefers-color-scheme:dark){:root:not([data-scheme=light]){")
    assert chosen.startswith(":root[data-scheme=dark]{")
    for style in (by_system, chosen):
        found = dict(re.findall(r"--(\w+):(#\w+);", style))
        assert found == {name: pair[1] for name, pair in COLOURS.items()}
    assert page.as_script_data({"a": [1, None, True, "<"]}) == '{"a":[1,null,true,"\\u003c"]}'


def test_the_whole_page(subjects: list[Subject]) -> None:
    """Jinja and the charts: what was compared is in the head, sums say what they are over."""
    pytest.importorskip("jinja2", reason="needs the extra 'report'")
    assert Status.PINNED == 2  # the script knows them by number
    assert page.page([]).startswith("<!doctype html>")
    machine = attrs.evolve(subjects[1].machine, initrd=(16 * MIB, 17 * MIB))
    text = page.page([Subject(machine, ())], unread=["<no>"])
    assert "&lt;no&gt;" in text
    assert "1 machine" in text
    assert re.search(r"script-src &#39;sha256-[\w+/=]{44}&#39;", text)
