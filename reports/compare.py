"""Write the comparison that this project publishes: every shipped machine, all allocators, both
platforms; as Markdown with pictures, and as the HTML report.

Run it after a change that alters figures: ``make report``. ``--check`` only tells whether what is
published is stale (exit code 1): it compares text, and the data that pictures and page were made
of, so that another release of the drawing library makes nothing stale.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from paravirt_mm import (
    Drawing,
    MadeWritable,
    Outcome,
    Scenario,
    Subject,
    SurplusReleased,
    TablesReserved,
    Theme,
    Total,
    bundled,
    bundled_machines,
    drawings,
    figure_tables,
    machine_title,
    memory_map,
    page,
    sentences,
    summary_table,
    survey,
    svg,
    totals,
)

HERE = Path(__file__).parent
MARKDOWN = HERE / "comparison.md"
PAGE = HERE / "comparison.html"
PICTURES = HERE / "pictures"

HEAD = """\
# Old and new early page-table allocators on real machines

Written by `reports/compare.py` (`make report`) from the machines that the package carries; a test
fails when it is stale. Columns are explained by `paravirt-mm figures`. The same to click through:
[comparison.html](comparison.html) (one file, loads nothing).
"""

ABOUT = {
    "legacy_linear:kernel=2.6.39": "one block, guessed, placed as high as what is to be mapped. "
    "The seed patch of October 2012 wanted this choice back for 64-bit kernels",
    "legacy_linear:kernel=3.6": "one block, guessed, inside what is mapped so far",
    "incremental:variant=linux,kernel=4.19": "what Linux merged in 3.9: top-down, no guess",
    "incremental:variant=hpa": "the seven steps as proposed in October 2012; tables are handed to "
    "the platform before they are attached",
    "chunk_end": "the sketch that the proposal corrects: upward in chunks of 2 MiB, each table at "
    "the end of the chunk mapped last",
}

WHY_3_6_WASTES_NOTHING = """\
With 3.6 nothing is wasted in this way, and that is no merit of the guess: the block lies in memory
that is mapped already, so its pages are made read-only one by one as they become tables. The price
is where the block lies (`<16M` above, `idle<16M` in the wide table), and that no place at all is
found on machines where too little is mapped at first."""


def published(subjects: Sequence[Subject]) -> dict[Path, str]:
    """Return every published file but the page, by path."""
    pictures = dict(_pictures(subjects))
    return {MARKDOWN: _markdown(subjects), **pictures}


def _pictures(subjects: Sequence[Subject]) -> Iterator[tuple[Path, str]]:
    for drawing in drawings(subjects):
        for theme in (Theme.LIGHT, Theme.DARK):
            picture = svg(drawing, theme)
            yield PICTURES / f"{drawing.name}-{theme}.svg", _marked(picture, _digest(drawing))
    for subject in subjects:
        scenes = [each.scene for each in subject.exhibits if each.scene.frames]
        yield PICTURES / f"map-{subject.machine.name}.svg", memory_map(subject.machine, scenes)


def _digest(drawing: Drawing) -> str:
    data = json.dumps([drawing.title, drawing.allocators, drawing.records])
    return hashlib.sha256(data.encode()).hexdigest()[:16]


def _marked(picture: str, digest: str) -> str:
    """Return an SVG that tells which data it was drawn from."""
    return re.sub(r"(<svg [^>]*>)", rf"\1<desc>data {digest}</desc>", picture, count=1)


def _essence(path: Path, text: str) -> str:
    """Return what of a published file must not be stale: of a chart its data."""
    mark = re.search(r"<desc>data \w+</desc>", text)
    if path.suffix == ".html":
        return _page_data(text)
    return mark[0] if mark else text


def _page_data(text: str) -> str:
    """Return the data of a page, without the versions of what made it."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    if found is None:
        return ""
    data = json.loads(found[1])
    return json.dumps({key: data[key] for key in data if key not in {"version", "plugins"}})


# -- Markdown -------------------------------------------------------------------------------------


def _markdown(subjects: Sequence[Subject]) -> str:
    rows = [each.row for subject in subjects for each in subject.exhibits]
    charts = [_chart(drawing) for drawing in drawings(subjects)]
    parts = [
        HEAD,
        "\n".join(_answer(totals(subjects), len(subjects))),
        charts[0],
        "\n".join(f"- **{each.about}:** {each.text}" for each in sentences(totals(subjects))),
        "\n".join(_who(subjects)),
        "## All machines\n\n" + summary_table(rows, "github"),
        *charts[1:],
        *(_machine(subject) for subject in subjects),
        _flips_explained(),
    ]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _answer(sums: Sequence[Total], machines: int) -> Iterator[str]:
    """Yield the answer to the question that this laboratory grew from, made of the figures."""
    seed = [total for total in sums if total.allocator == "incremental hpa"]
    typed = next(total for total in seed if total.flips)
    old = [
        t for t in sums if t.allocator.startswith("legacy_linear") and t.backend == typed.backend
    ]
    guessed = max(old, key=lambda total: total.waste)
    wasted = max(old, key=lambda total: total.flips_wasted)
    low = max(old, key=lambda total: total.below_16m)
    lost = sum(total.failed for total in seed)
    right = not (lost or typed.reserved or any(t.flips_wasted for t in seed))
    ratio = typed.flips_a_table or 0
    yield "## The question, and the answer"
    yield ""
    yield (
        "*Can a kernel build its first page tables without guessing how many it needs, without "
        "changing the status of any page more often than it must, and without taking low memory?*"
    )
    yield ""
    yield (
        f"**{'Yes' if right else 'Not everywhere'}.** On the {typed.machines} of {machines} "
        "machines on which every allocator comes to a good end, the proposed design set aside "
        f"{typed.reserved:,} pages before it needed them (the worst guess under "
        f"{typed.backend}: {guessed.reserved:,} pages, {guessed.waste:,} of them for nothing) and "
        f"changed pages {typed.flips:,} times for {typed.tables:,} tables: {ratio:.2f} a table, "
        f"{typed.flips_wasted:,} for nothing ({wasted.allocator}: {wasted.flips:,} times, "
        f"{wasted.flips_wasted:,} for nothing). Below 16M its tables take at most "
        f"{typed.below_16m >> 10:,} KiB on any of them ({low.allocator}: {low.below_16m >> 10:,} "
        f"KiB). It gives up on {lost or 'no'} machine{'' if lost == 1 else 's'} that the platform "
        "accepts."
    )


def _chart(drawing: Drawing) -> str:
    light, dark = (f"pictures/{drawing.name}-{theme}.svg" for theme in ("light", "dark"))
    return (
        f'<picture>\n  <source media="(prefers-color-scheme: dark)" srcset="{dark}">\n'
        f'  <img alt="{drawing.title}" src="{light}">\n</picture>\n\n'
        f"*{drawing.title}.* {drawing.caption}"
    )


def _who(subjects: Sequence[Subject]) -> Iterator[str]:
    yield "The allocators:"
    yield ""
    for spec in dict.fromkeys(each.row.allocator for each in subjects[0].exhibits):
        known = (text for name, text in ABOUT.items() if name in spec)
        about = next(known, "see `paravirt-mm plugins`")
        yield f"- `{spec}`: {about}."


def _machine(subject: Subject) -> str:
    machine = subject.machine
    rows = [each.row for each in subject.exhibits]
    return (
        f"## {machine.name}\n\n{machine_title(machine)}\n\nSource: {machine.provenance.source}.\n\n"
        f"![Where tables lie in the memory of {machine.name}](pictures/map-{machine.name}.svg)\n\n"
        f"{figure_tables(rows, 'github')}"
    )


def _flips_explained() -> str:
    """Return what the guess costs in page-status flips, with the trace events that show it."""
    lines = ["## What the guess costs under Xen, event by event", ""]
    for name in bundled_machines():
        run = Scenario.of(bundled(name), "legacy_linear:kernel=2.6.39", "xen").run()
        figures: Mapping[str, int] = run.figures
        if run.verdict.outcome is Outcome.OK and figures["flips_wasted"]:
            events = [
                f"event {number} ({type(event).__name__})"
                for number, event in enumerate(run.trace)
                if isinstance(event, TablesReserved | SurplusReleased | MadeWritable)
            ]
            lines.append(
                f"- {name}, {run.allocator}: {figures['flips_wasted']} of {figures['flips']} flips "
                f"are wasted: {', '.join(events)}."
            )
    return "\n".join([*lines, "", WHY_3_6_WASTES_NOTHING])


# -- command --------------------------------------------------------------------------------------


def _stale(files: Mapping[Path, str]) -> list[str]:
    """Return the names of published files that are not what they would be now, or not there."""
    found = []
    for path, text in files.items():
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        if _essence(path, before) != _essence(path, text):
            found.append(path.name)
    left_over = {path for path in PICTURES.glob("*") if path not in files}
    return found + [path.name for path in sorted(left_over)]


def main() -> int:
    """Write or check the published comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only tell whether it is stale")
    arguments = parser.parse_args()
    subjects = list(survey(bundled(name) for name in bundled_machines()))
    files = {**published(subjects), PAGE: page(subjects)}
    if arguments.check:
        stale = _stale(files)
        print(f"stale: {', '.join(stale)}; run make report" if stale else "up to date")
        return 1 if stale else 0
    PICTURES.mkdir(exist_ok=True)
    for path in PICTURES.glob("*.svg"):
        path.unlink()
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
