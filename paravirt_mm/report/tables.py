"""The comparison as tables that fit a terminal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence

import attrs

from paravirt_mm.comparison import Row
from paravirt_mm.counted import counted
from paravirt_mm.evidence import NOT
from paravirt_mm.machine.model import Machine
from paravirt_mm.measure.figures import FIGURES, Group
from paravirt_mm.measure.lowmem32 import SEED_BRK, brk_reach, lowmem32
from paravirt_mm.options import PluginSpec
from paravirt_mm.printable import printable
from paravirt_mm.report.markup import tabulated, words
from paravirt_mm.report.merit import Merit, judged
from paravirt_mm.report.paper import PLAIN, Paper
from paravirt_mm.report.values import MISSING, headers, show, size
from paravirt_mm.run import Outcome

GAP = 2
"""Blanks between two columns."""

KEY_FIGURES = tuple(name for name, figure in FIGURES.items() if figure.key)


_TELLS_ITSELF = re.compile(r"(?!yes$|true$|false$|off$)[a-z][a-z-]{2,}|\d+(\.\d+)+")
"""Option values that need no name beside them: a word, a kernel release."""


_DEEPEST = 32
"""Folders of a path that are shown at most, to tell it from another."""


def label(spec: PluginSpec, depth: int = 2) -> str:
    """Return a plugin spec as a row title, its options as short as they stay clear.

    Of a path only the last ``depth`` names are shown.
    """
    parts = []
    for key, value in spec.options:
        names = value.rstrip("/").split("/")
        if len(names) > 1:
            parts.append("/".join(names[-depth:]))
        else:
            parts.append(value if _TELLS_ITSELF.fullmatch(value) else f"{key}={value}")
    return printable(" ".join([spec.name, *parts]))


def labels(specs: Iterable[str]) -> dict[str, str]:
    """Return the `label` of each spec, paths as short as they differ from each other."""
    parsed = {spec: PluginSpec.parse(spec) for spec in specs}
    for depth in range(1, _DEEPEST):
        told = {text: label(spec, depth) for text, spec in parsed.items()}
        if len(set(told.values())) == len(told):
            return told
    return {text: printable(str(spec)) for text, spec in parsed.items()}


def machine_title(machine: Machine) -> str:
    """Return a line about a machine; of a 32-bit one also what its lowmem takes and leaves out."""
    ram = size(machine.memory_map.ram_pages().total)
    pieces = counted(len(machine.memory_map.ram_pages()), "piece")
    title = machine.provenance.title or machine.name
    lines = [printable(f"{title}: {ram} RAM, {pieces}, {machine.mode.title}")]
    lowmem = lowmem32(machine)
    if lowmem is not None:
        lines += [
            f"Lowmem: {size(lowmem.lowmem)} below {lowmem.lowmem_end:#x}, "
            f"{size(lowmem.highmem)} HIGHMEM above. In 4 KiB pages: {lowmem.tables_4k} L1 tables.",
            f"A brk area of {size(SEED_BRK)} maps at least {size(brk_reach(machine.mode))} of it.",
        ]
    return "\n".join(lines)


def table(
    rows: Sequence[Row], figures: Sequence[str], style: str = "simple", paper: Paper = PLAIN
) -> str:
    """Return a table of the given figures, one line a scenario; the verdict is always there.

    On paper with colours the best figures under a platform are green, the worst are red.
    """
    titles = [*_FIXED, *headers(list(figures))]
    columns = [*_fixed_columns(rows, paper), *(_column(rows, name, paper) for name in figures)]
    align = ("left",) * len(_FIXED) + ("right",) * len(figures)
    return tabulated(list(zip(*columns, strict=True)), titles, style, align)


_FIXED = ("allocator", "backend", "verdict")
_ROOM = 24
"""Columns that are kept for figures: on narrow paper the names of allocators are cut for it."""


def _fixed_columns(rows: Sequence[Row], paper: Paper) -> list[list[str]]:
    told = labels(row.allocator for row in rows)
    names = [told[row.allocator] for row in rows]
    backends = [label(PluginSpec.parse(row.backend)) for row in rows]
    verdicts = [str(row.outcome) for row in rows]
    others = sum(max(map(len, (*cells, "verdict"))) + GAP for cells in (backends, verdicts))
    room = max(9, paper.width - others - _ROOM)
    names = [name if len(name) <= room else f"{name[: room - 1]}…" for name in names]
    coloured = [
        text if row.outcome is Outcome.OK else paper.bad(text)
        for text, row in zip(verdicts, rows, strict=True)
    ]
    return [names, backends, coloured]


def _column(rows: Sequence[Row], name: str, paper: Paper) -> list[str]:
    how: dict[Merit, Callable[[str], str]] = {Merit.MORE: paper.good, Merit.LESS: paper.bad}
    cells = (_cell(row, name) for row in rows)
    return [how.get(each, str)(cell) for cell, each in zip(cells, judged(rows, name), strict=True)]


def _cell(row: Row, name: str) -> str:
    if name not in row.figures:
        return MISSING
    value = row.figures[name]
    return show(FIGURES[name], value) if name in FIGURES else printable(str(value))


def fit(rows: Sequence[Row], figures: Sequence[str], paper: Paper = PLAIN) -> Iterator[list[str]]:
    """Divide figures among as many tables as it takes to keep each within the paper."""
    colourless = attrs.evolve(paper, colour=False)
    fixed = sum(
        max(len(title), *map(len, cells)) + GAP
        for title, cells in zip(_FIXED, _fixed_columns(rows, colourless), strict=True)
    )
    chosen: list[str] = []
    width = fixed
    for name, title in zip(figures, headers(list(figures)), strict=True):
        needed = max(len(title), *(len(_cell(row, name)) for row in rows)) + GAP
        if chosen and width + needed > paper.width + GAP:
            yield chosen
            chosen, width = [], fixed
        chosen.append(name)
        width += needed
    if chosen:
        yield chosen


def figure_tables(
    rows: Sequence[Row], style: str = "simple", wide: bool = False, paper: Paper = PLAIN
) -> str:
    """Return the short table, or with ``wide`` the tables of every group of figures.

    The short table is one table: key figures that do not fit are left out, and named.
    """
    added = dict.fromkeys(name for row in rows for name in row.figures if name not in FIGURES)
    numbers = [name for name in added if not _is_text(rows, name)]
    left_out: list[str] = []
    if wide:
        groups = [[n for n, f in FIGURES.items() if f.group is group] for group in Group]
        parts = [
            table(rows, chosen, style, paper)
            for names in (*groups, numbers)
            for chosen in fit(rows, _told(rows, names), paper)
        ]
    else:
        wanted = [*KEY_FIGURES, *numbers]
        chosen = next(fit(rows, wanted, paper), [])
        left_out = _told(rows, wanted[len(chosen) :])
        parts = [table(rows, chosen, style, paper)]
    notes = [_note(rows, name, paper) for name in added if name not in numbers]
    if left_out:
        names = ", ".join(headers(left_out))
        notes.append(_filled(f"left out for want of room: {names} (--wide shows them)", paper))
    told = [*filter(None, ["\n".join(notes)]), *_footnotes(rows, paper)]
    return "\n\n".join([*parts, *(words(text, style) for text in told)])


def _is_text(rows: Sequence[Row], name: str) -> bool:
    return any(isinstance(row.figures.get(name), str) for row in rows)


def _note(rows: Sequence[Row], name: str, paper: Paper) -> str:
    """Return what plugins say in words, each answer with the scenarios that it is about."""
    who = _who(rows)
    answers: dict[str, list[str]] = {}
    for row in rows:
        if name in row.figures:
            answers.setdefault(printable(str(row.figures[name])), []).append(
                who[row.allocator, row.backend]
            )
    if len(answers) == 1:
        return _filled(f"{printable(name)}: {next(iter(answers))}", paper)
    told = (f"{answer} ({', '.join(rows)})" for answer, rows in answers.items())
    return _filled(f"{printable(name)}: {'; '.join(told)}", paper)


MAX_ASSUMED = 8
"""What was assumed about a machine, as far as it is shown under a table."""


def assumptions(machine: Machine, paper: Paper = PLAIN) -> str:
    """Return what the reader of a machine's source assumed, dropped or repaired; nothing where it
    had to do none of it.
    """
    told = [printable(text, 200) for text in machine.provenance.assumed]
    if len(told) > MAX_ASSUMED:
        told[MAX_ASSUMED:] = [f"and {len(told) - MAX_ASSUMED} more (see `paravirt-mm machines`)"]
    return _filled(f"Assumed: {'; '.join(told)}.", paper) if told else ""


def _who(rows: Sequence[Row]) -> dict[tuple[str, str], str]:
    """Return the names of scenarios, by allocator and backend."""
    told = labels(row.allocator for row in rows)
    return {
        (row.allocator, row.backend): (
            f"{told[row.allocator]}/{label(PluginSpec.parse(row.backend))}"
        )
        for row in rows
    }


def _filled(text: str, paper: Paper) -> str:
    return textwrap.fill(text, paper.width, subsequent_indent="  ")


def verification(rows: Sequence[Row], paper: Paper = PLAIN) -> str:
    """Return a line for each allocator, and each backend that was judged itself: by which judges
    its model has been checked, and how much of what they compared agrees.
    """
    told = labels(row.allocator for row in rows)
    known = {told[row.allocator]: row.verified for row in rows}
    for row in rows:
        if row.backend_verified != NOT:
            known[PluginSpec.parse(row.backend).name] = row.backend_verified
    width = max(map(len, known), default=0)
    lines = ["Checked against (agree/compared, by judge: `paravirt-mm verify`):"]
    lines += [f"  {name:<{width}}  {text}" for name, text in known.items()]
    return "\n".join(textwrap.fill(line, paper.width, subsequent_indent=" " * 4) for line in lines)


def _footnotes(rows: Sequence[Row], paper: Paper) -> list[str]:
    """Verdicts that need more than a word, each once, with the scenarios that ended so."""
    reasons: dict[str, list[str]] = {}
    who = _who(rows)
    for row in rows:
        if row.outcome is not Outcome.OK:
            name = who[row.allocator, row.backend]
            reasons.setdefault(printable(row.verdict), []).append(name)
    return [_filled(f"{', '.join(names)}: {reason}", paper) for reason, names in reasons.items()]


def _told(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """Figures that say something for at least one row: neither missing nor 0 everywhere."""
    return [name for name in names if any(row.figures.get(name) for row in rows)]
