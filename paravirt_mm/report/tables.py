"""The comparison as tables that fit a terminal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence

from paravirt_mm.comparison import Row
from paravirt_mm.machine.model import Machine
from paravirt_mm.measure.figures import FIGURES, Group
from paravirt_mm.measure.lowmem32 import SEED_BRK, brk_reach, lowmem32
from paravirt_mm.options import PluginSpec
from paravirt_mm.printable import printable
from paravirt_mm.report.markup import tabulated, words
from paravirt_mm.report.values import MISSING, headers, show, size
from paravirt_mm.run import Outcome

WIDTH = 100
"""Columns of text that a table may take."""
_GAP = 2

KEY_FIGURES = tuple(name for name, figure in FIGURES.items() if figure.key)


_TELLS_ITSELF = re.compile(r"[a-z][a-z-]{2,}|\d+(\.\d+)+")
"""Option values that need no name beside them: a word, a kernel release."""


def label(spec: PluginSpec) -> str:
    """Return a plugin spec as a row title, its options as short as they stay clear."""
    parts = [
        value if _TELLS_ITSELF.fullmatch(value) else f"{key}={value}" for key, value in spec.options
    ]
    return printable(" ".join([spec.name, *parts]))


def machine_title(machine: Machine) -> str:
    """Return a line about a machine; of a 32-bit one also what its lowmem takes and leaves out."""
    ram = size(machine.memory_map.ram_pages().total)
    pieces = len(machine.memory_map.ram_pages())
    title = machine.provenance.title or machine.name
    lines = [printable(f"{title}: {ram} RAM, {pieces} pieces, {machine.mode.title}")]
    lowmem = lowmem32(machine)
    if lowmem is not None:
        lines += [
            f"Lowmem: {size(lowmem.lowmem)} below {lowmem.lowmem_end:#x}, "
            f"{size(lowmem.highmem)} HIGHMEM above. In 4 KiB pages: {lowmem.tables_4k} L1 tables.",
            f"A brk area of {size(SEED_BRK)} maps at least {size(brk_reach(machine.mode))} of it.",
        ]
    return "\n".join(lines)


def table(rows: Sequence[Row], figures: Sequence[str], style: str = "simple") -> str:
    """Return a table of the given figures, one line a scenario; the verdict is always there."""
    titles = [*_FIXED, *headers(list(figures))]
    cells = [[*_fixed_cells(row), *(_cell(row, name) for name in figures)] for row in rows]
    align = ("left",) * len(_FIXED) + ("right",) * len(figures)
    return tabulated(cells, titles, style, align)


_FIXED = ("allocator", "backend", "verdict")


def _fixed_cells(row: Row) -> list[str]:
    return [
        label(PluginSpec.parse(row.allocator)),
        label(PluginSpec.parse(row.backend)),
        str(row.outcome),
    ]


def _cell(row: Row, name: str) -> str:
    if name not in row.figures:
        return MISSING
    value = row.figures[name]
    return show(FIGURES[name], value) if name in FIGURES else printable(str(value))


def fit(rows: Sequence[Row], figures: Sequence[str]) -> Iterator[list[str]]:
    """Divide figures among as many tables as it takes to keep each within `WIDTH` columns."""
    fixed = sum(
        max(len(title), *(len(_fixed_cells(row)[column]) for row in rows)) + _GAP
        for column, title in enumerate(_FIXED)
    )
    chosen: list[str] = []
    width = fixed
    for name, title in zip(figures, headers(list(figures)), strict=True):
        needed = max(len(title), *(len(_cell(row, name)) for row in rows)) + _GAP
        if chosen and width + needed > WIDTH + _GAP:
            yield chosen
            chosen, width = [], fixed
        chosen.append(name)
        width += needed
    if chosen:
        yield chosen


def tables(rows: Sequence[Row], style: str = "simple", wide: bool = False) -> str:
    """Return the short table, or with ``wide`` the tables of every group of figures.

    The short table is one table: key figures that do not fit are left to ``wide``.
    """
    added = dict.fromkeys(name for row in rows for name in row.figures if name not in FIGURES)
    numbers = [name for name in added if not _is_text(rows, name)]
    if wide:
        groups = [[n for n, f in FIGURES.items() if f.group is group] for group in Group]
        parts = [
            table(rows, chosen, style)
            for names in (*groups, numbers)
            for chosen in fit(rows, _told(rows, names))
        ]
    else:
        parts = [table(rows, next(fit(rows, [*KEY_FIGURES, *numbers]), []), style)]
    notes = [_note(rows, name) for name in added if name not in numbers]
    told = [*filter(None, ["\n".join(notes)]), *_footnotes(rows)]
    return "\n\n".join([*parts, *(words(text, style) for text in told)])


def _is_text(rows: Sequence[Row], name: str) -> bool:
    return any(isinstance(row.figures.get(name), str) for row in rows)


def _note(rows: Sequence[Row], name: str) -> str:
    """Return what plugins say in words, each answer with the scenarios that it is about."""
    answers: dict[str, list[str]] = {}
    for row in rows:
        if name in row.figures:
            answers.setdefault(printable(str(row.figures[name])), []).append(_who(row))
    if len(answers) == 1:
        return _filled(f"{printable(name)}: {next(iter(answers))}")
    told = (f"{answer} ({', '.join(who)})" for answer, who in answers.items())
    return _filled(f"{printable(name)}: {'; '.join(told)}")


def _who(row: Row) -> str:
    return f"{label(PluginSpec.parse(row.allocator))}/{label(PluginSpec.parse(row.backend))}"


def _filled(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="  ")


def summary(rows: Sequence[Row], style: str = "simple") -> str:
    """Return a line for each allocator and backend: verdicts, sums over the runs that are ok."""
    seen: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        seen.setdefault((row.allocator, row.backend), []).append(row)
    outcomes = [outcome for outcome in Outcome if any(row.outcome is outcome for row in rows)]
    cells = []
    for (allocator, backend), group in seen.items():
        good = [row.figures for row in group if row.outcome is Outcome.OK]
        tables_made = sum(figures["tables"] for figures in good)
        flips = sum(figures["flips"] for figures in good)
        cells.append(
            [
                label(PluginSpec.parse(allocator)),
                label(PluginSpec.parse(backend)),
                *(str(sum(row.outcome is outcome for row in group)) for outcome in outcomes),
                str(tables_made),
                str(sum(figures["waste"] for figures in good)),
                str(flips),
                f"{flips / tables_made:.2f}" if tables_made else MISSING,
                str(sum(figures["flips_wasted"] for figures in good)),
                size(max((figures["tables_below_16m"] for figures in good), default=0)),
            ]
        )
    sums = ("tables", "waste", "flips", "/table", "wasted", "max<16M")
    titles = ["allocator", "backend", *map(str, outcomes), *sums]
    align = ("left", "left", *("right",) * (len(outcomes) + len(sums)))
    return tabulated(cells, titles, style, align)


def verification(rows: Sequence[Row]) -> str:
    """Return a line for each allocator: how far its model has been checked against reality."""
    known = {label(PluginSpec.parse(row.allocator)): row.verified for row in rows}
    width = max(map(len, known), default=0)
    lines = [f"  {name:<{width}}  {text}" for name, text in known.items()]
    return "\n".join(["Checked against real kernels (see `paravirt-mm verify`):", *lines])


def _footnotes(rows: Sequence[Row]) -> list[str]:
    """Verdicts that need more than a word, each once, with the scenarios that ended so."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.outcome is not Outcome.OK:
            reasons.setdefault(printable(row.verdict), []).append(_who(row))
    return [_filled(f"{', '.join(who)}: {reason}") for reason, who in reasons.items()]


def _told(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """Figures that say something for at least one row: neither missing nor 0 everywhere."""
    return [name for name in names if any(row.figures.get(name) for row in rows)]
