"""Pictures, stories and the page's data do not change without anybody noticing.

No rule says how wide a bar is or where a name stands, so there is nothing to hold them against but
what they were: a digest of each. That says that something looks otherwise, never that it is right;
what must be right (numbers, bounds, escapes) is tested beside this. Who changes how things look
looks at what is told here, then ``PARAVIRT_MM_SEEN=yes pytest tests/view/test_as_seen.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import attrs
import pytest

from paravirt_mm import E820Type, Machine, MemoryMap, Run, Scenario, bundled
from paravirt_mm.machine.paging import I386_PAE, MIB
from paravirt_mm.registry import default_registry
from paravirt_mm.view import charts, page
from paravirt_mm.view.memory_map import memory_map
from paravirt_mm.view.palette import Theme
from paravirt_mm.view.scene import outline, scene
from paravirt_mm.view.sentences import sentences
from paravirt_mm.view.story import chapters
from paravirt_mm.view.strip import ruler, strip, strip_legend
from paravirt_mm.view.survey import Subject, totals
from tests.kept import DATA, digest, kept

SEEN = DATA / "pictures"
Runs = Mapping[tuple[str, str], Run]


def _maps(subjects: list[Subject], _: Runs) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for subject in subjects:
        scenes = [each.scene for each in subject.exhibits]
        machine = subject.machine
        found[f"map of {machine.name}"] = memory_map(machine, scenes, theme=Theme.LIGHT)
        found[f"machine {machine.name}"] = memory_map(machine, linear=True, width=500)
        found[f"strips of {machine.name}"] = [
            (ruler(machine, width), strip(machine, each, width, drawn=drawn))
            for each in scenes
            for width, drawn in ((100, True), (33, False))
        ]
    found["map for the page"] = memory_map(subjects[0].machine, theme=Theme.PAGE)
    found["map of both themes"] = memory_map(subjects[0].machine, theme=Theme.AUTO)
    found["legend"] = [strip_legend(), strip_legend(drawn=False)]
    return found


def _chart(subjects: list[Subject], _: Runs) -> dict[str, Any]:
    """One of each kind: a tenth of a second each."""
    return _drawn(subjects[1:2], (Theme.LIGHT, False))


def _charts(subjects: list[Subject], _: Runs) -> dict[str, Any]:
    return _drawn(subjects, (Theme.DARK, False), (Theme.PAGE, True))


def _drawn(subjects: list[Subject], *ways: tuple[Theme, bool]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for drawing in charts.drawings(subjects):
        for theme, narrow in ways:
            drawn = charts._styled(drawing.draw(drawing, theme, narrow), theme)
            what = drawn.to_dict(validate=False)
            what.pop("$schema")
            found[f"{drawing.name}, {theme}{', narrow' if narrow else ''}"] = [what, drawing.title]
    return found


def _sentences(subjects: list[Subject], _: Runs) -> dict[str, Any]:
    return {
        name: [attrs.asdict(one) for one in sentences(totals(some))]
        for name, some in (("of all", subjects), ("of one machine", subjects[1:2]))
    }


def _page(subjects: list[Subject], _: Runs) -> dict[str, Any]:
    data = page._data(subjects, default_registry(), [])
    found: dict[str, Any] = {}
    for machine in data["machines"]:
        for each in machine["scenarios"]:
            # What a figure is, and whether it is checked, is no matter of looks.
            del each["figures"], each["extra"]
            found[f"page: {machine['name']} {each['allocator']} {each['backend']}"] = each
        del machine["scenarios"]
        found[f"page: {machine['name']}"] = machine
    found["titles"] = [page._title(subjects[:number]) for number in range(3)]
    return found


def _stories(_: list[Subject], runs: Runs) -> dict[str, Any]:
    found = {
        f"story of {spec} under {backend}": [attrs.asdict(one) for one in chapters(run)]
        for (spec, backend), run in runs.items()
    }
    for name, run in _odd_runs().items():
        found[f"story of {name}"] = [attrs.asdict(one) for one in chapters(run)]
        found[f"picture of {name}"] = [
            memory_map(run.machine, [seen], theme=Theme.DARK) for seen in (scene(run), outline(run))
        ]
    return found


def _odd_runs() -> dict[str, Run]:
    """A panic, a refusal, a machine in pieces, one in another mode, one that is bottom-up."""

    def machine(name: str, *ram: tuple[int, int], **given: Any) -> Machine:
        memory = MemoryMap.sanitise([(a, b, E820Type.RAM) for a, b in ram])
        return Machine(name, memory, **given)

    low, small = (0x1000, 0x9F000), (MIB, 64 * MIB)
    pieces = [(n * 4 * MIB, n * 4 * MIB + 3 * MIB) for n in range(20, 60)]
    return {
        name: Scenario.of(where, spec, backend).run()
        for name, where, spec, backend in (
            ("a small machine", machine("s", low, small), "incremental:variant=hpa", "xen"),
            ("a linear one", machine("l", low, small), "legacy_linear:kernel=3.6", "xen"),
            ("a panic", machine("p", low, (1 << 32, (1 << 32) + 64 * MIB), reserved=(low,)),
             "legacy_linear:kernel=3.6", "native"),
            ("a refusal", bundled("asus-l8400-256m"), "incremental:kernel=4.19", "xen"),
            ("pieces", machine("d", low, small, *pieces), "incremental:kernel=4.19", "native"),
            ("chunks", machine("c", low, small, *pieces), "chunk_end", "xen"),
            ("PAE", machine("e", low, (MIB, 2048 * MIB), mode=I386_PAE),
             "incremental:kernel=3.9", "native"),
        )
    }  # fmt: skip


PARTS: dict[str, Callable[[list[Subject], Runs], dict[str, Any]]] = {
    "maps": _maps, "chart": _chart, "charts": _charts, "sentences": _sentences, "page": _page,
    "stories": _stories,
}  # fmt: skip


@pytest.mark.parametrize(
    "part",
    [pytest.param(part, marks=[pytest.mark.slow] if part == "charts" else []) for part in PARTS],
)
def test_it_looks_as_it_did(part: str, subjects: list[Subject], runs: Runs) -> None:
    with_charts = part in ("chart", "charts")
    if with_charts:
        pytest.importorskip("altair", reason="needs the extra 'view'")
    shown = {
        name: digest(json.dumps(what, default=str))
        for name, what in PARTS[part](subjects, runs).items()
    }
    if with_charts:
        shown["by altair"] = version("altair")
    told = json.dumps(shown, indent=1, sort_keys=True) + "\n"
    seen: dict[str, str] = json.loads(kept(SEEN / f"{part}.json", told))
    if seen.get("by altair") != shown.get("by altair"):
        pytest.skip(f"the charts that are kept are of altair {seen['by altair']}")
    assert shown == seen, "look at what differs; if it is meant so, see above"


def test_nothing_is_kept_that_is_not_compared() -> None:
    assert {path.stem for path in SEEN.iterdir()} == {*PARTS}
