"""The report: one self-contained HTML page with everything that was compared.

Needs the extra ``report`` (jinja2 for the page, Altair for its charts). The page loads nothing: its
Content-Security-Policy allows its own script and its own style, by their hashes, and nothing else.
Texts from logs and plugins get into it as JSON, and from there into text nodes only.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import attrs

from paravirt_mm._version import __version__
from paravirt_mm.counted import counted
from paravirt_mm.machine.model import Machine
from paravirt_mm.measure.figures import FIGURES
from paravirt_mm.registry import Registry, default_registry
from paravirt_mm.report.merit import merit
from paravirt_mm.report.summary import summed_over
from paravirt_mm.report.values import size
from paravirt_mm.view.charts import Drawing, asset, drawings, library, svg
from paravirt_mm.view.palette import Theme, properties
from paravirt_mm.view.scene import LINES, MAX_NAME, Frame, Scene, thinned
from paravirt_mm.view.sentences import sentences
from paravirt_mm.view.story import SEVEN_STEPS, bounded
from paravirt_mm.view.survey import Exhibit, Subject, short, totals

MAX_ENTRIES = 600
"""Entries of a firmware map that are written out; of more, the first ones, and the page says so."""
MAX_FINDINGS = 40
MAX_ASSUMED = 40
MAX_UNREAD = 20
"""Inputs that could not be read that are named; of more, how many."""


def page(
    subjects: Sequence[Subject],
    registry: Registry | None = None,
    unread: Sequence[object] = (),
) -> str:
    """Return the report as HTML text. ``unread`` says what could not be read, and why. Raises
    `SpecError` where the extra is not installed.
    """
    script, style = asset("report.js"), f":root{{{properties(dark=False)}}}\n" + _dark()
    style += asset("report.css")
    sums = totals(subjects)
    rows = [each.row for subject in subjects for each in subject.exhibits]
    pictures = drawings(subjects)
    first = subjects[0] if subjects else None
    template = _environment().get_template("report.html.j2")
    text: str = template.render(
        policy=_policy(script, style),
        script=script,
        style=style,
        data=as_script_data(_data(subjects, registry or default_registry(), pictures)),
        title=_title(subjects),
        machines=counted(len(subjects), "machine"),
        allocators=_names(first, "allocator"),
        backends=_names(first, "backend"),
        sentences=sentences(sums),
        unread=_unread(unread),
        over=summed_over(rows, sums) if len(subjects) > 1 else "",
        difference=_both(pictures[0]) if pictures else None,
        charts=[(drawing, *_both(drawing)) for drawing in pictures[1:]],
        version=__version__,
    )
    return text


def as_script_data(value: Any) -> str:
    """Return a value as JSON that may stand in a ``script`` element whatever its texts hold."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True)
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _environment() -> Any:
    jinja2 = library("jinja2")
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _dark() -> str:
    dark = properties(dark=True)
    return (
        f"@media(prefers-color-scheme:dark){{:root:not([data-scheme=light]){{{dark}}}}}\n"
        f":root[data-scheme=dark]{{{dark}}}\n"
    )


def _policy(script: str, style: str) -> str:
    return (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _title(subjects: Sequence[Subject]) -> str:
    if len(subjects) == 1:
        machine = subjects[0].machine
        return bounded(machine.provenance.title or machine.name, MAX_NAME)
    return counted(len(subjects), "machine")


def _names(subject: Subject | None, what: str) -> list[str]:
    exhibits = subject.exhibits if subject else ()
    return list(dict.fromkeys(short(getattr(each.row, what)) for each in exhibits))


def _unread(problems: Sequence[object]) -> list[str]:
    told = [bounded(str(problem)) for problem in problems[:MAX_UNREAD]]
    left = len(problems) - len(told)
    return [*told, f"and {left} more"] if left else told


def _both(drawing: Drawing) -> tuple[str, str]:
    """Return a chart for a wide and for a narrow window."""
    return svg(drawing, Theme.PAGE), svg(drawing, Theme.PAGE, narrow=True)


# -- data -----------------------------------------------------------------------------------------


def _data(
    subjects: Sequence[Subject], registry: Registry, pictures: Sequence[Drawing]
) -> dict[str, Any]:
    extra = dict.fromkeys(
        name
        for subject in subjects
        for each in subject.exhibits
        for name in each.row.figures
        if name not in FIGURES
    )
    evidence = {
        short(each.row.allocator): bounded(each.row.verified)
        for subject in subjects
        for each in subject.exhibits
    }
    return {
        "version": __version__,
        "lines": LINES,
        "seven": list(SEVEN_STEPS.values()),
        "figures": [
            {
                "name": name,
                "header": figure.header,
                "meaning": figure.meaning,
                "unit": str(figure.unit),
                "group": str(figure.group),
                "key": figure.key,
                "better": merit(name),
            }
            for name, figure in FIGURES.items()
        ],
        "extra": [[name, bounded(name, MAX_NAME)] for name in extra],
        "evidence": evidence,
        "plugins": [
            [bounded(plugin.name, MAX_NAME), bounded(plugin.origin), plugin.role]
            for plugin in registry.plugins.values()
        ],
        "machines": [_subject(subject, list(extra)) for subject in subjects],
        "charts": {
            drawing.name: [dict(record) for record in drawing.records] for drawing in pictures
        },
    }


def _subject(subject: Subject, extra: Sequence[str]) -> dict[str, Any]:
    machine = subject.machine
    source = machine.provenance
    entries = machine.memory_map.entries
    return {
        "name": bounded(machine.name, MAX_NAME),
        "title": bounded(source.title or machine.name, 160),
        "ram": machine.memory_map.ram_pages().total,
        "facts": list(_facts(machine)),
        "source": bounded(source.source),
        "release": bounded(source.kernel_release or "", MAX_NAME),
        "assumed": [bounded(text) for text in source.assumed[:MAX_ASSUMED]],
        "end": max(
            machine.map_limit,
            *(each.scene.end for each in subject.exhibits),
            machine.memory_map.ram_pages().end,
        ),
        "e820": [[e.start, e.end, e.type.label] for e in entries[:MAX_ENTRIES]],
        "more": max(0, len(entries) - MAX_ENTRIES),
        "scenarios": [_exhibit(each, extra) for each in subject.exhibits],
    }


def _facts(machine: Machine) -> list[list[str]]:
    mode, features = machine.mode, machine.features
    sizes = ", ".join(mode.page_name(n) for n in range(1, features.largest_level(mode) + 1))
    facts = [
        ["RAM", f"{size(machine.memory_map.ram_pages().total)} in "
         f"{counted(len(machine.memory_map.ram_pages()), 'piece')}"],
        ["Paging", f"{mode.title}; pages of {sizes}; NX {'yes' if features.nx else 'no'}"],
        ["Direct map ends at", f"{machine.map_limit:#x}"],
        ["Kernel", f"{machine.kernel.start:#x}-{machine.kernel.end:#x}"],
        ["Brk for tables", f"{machine.kernel.brk_start:#x}-{machine.kernel.brk_end:#x}"],
    ]  # fmt: skip
    if machine.initrd:
        facts.append(["Initrd", f"{machine.initrd[0]:#x}-{machine.initrd[1]:#x}"])
    return facts


def _exhibit(each: Exhibit, extra: Sequence[str]) -> dict[str, Any]:
    row = each.row
    return {
        "allocator": short(row.allocator),
        "backend": short(row.backend),
        "spec": bounded(row.allocator),
        "outcome": str(row.outcome),
        "verdict": bounded(row.verdict, 600),
        "findings": [
            [finding.rule, finding.event, finding.address, bounded(finding.message)]
            for finding in each.findings[:MAX_FINDINGS]
        ],
        "more": max(0, len(each.findings) - MAX_FINDINGS),
        "figures": [_plain(row.figures.get(name)) for name in FIGURES],
        "extra": [_plain(row.figures.get(name)) for name in extra],
        **_scene(each.scene),
    }


def _plain(value: Any) -> Any:
    """Return a figure as JSON has it; a plugin's own may be anything, and becomes text."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)
    return bounded(str(value))


def _scene(scene: Scene) -> dict[str, Any]:
    return {
        "placed": [[name, low, high] for name, (low, high) in scene.placed],
        "premapped": scene.premapped,
        "boot": thinned(scene.boot_tables),
        "promised": sum(high - low for low, high in scene.promised),
        "steps": [_step(frame) for frame in scene.frames],
    }


def _step(frame: Frame) -> dict[str, Any]:
    """Return a step with what it changed; what it did not change is not there."""
    chapter = frame.chapter
    parts = {
        "seed": chapter.seed,
        "title": chapter.title,
        "say": chapter.sentences,
        "events": [chapter.first, chapter.last],
        "map": frame.mapped,
        "exist": chapter.mapped,
        "tables": [attrs.astuple(area) for area in frame.tables],
        "status": [attrs.astuple(change) for change in frame.changes],
        "aside": frame.reserved,
        "back": frame.released,
        "switched": frame.switched,
    }
    return {name: value for name, value in parts.items() if value}
