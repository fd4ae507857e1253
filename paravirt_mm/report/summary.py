"""Sums over many machines that can be compared: every row over the same machines.

A row that fails on the largest machine must not look cheap for it. So figures are added up over the
machines on which every row ended well, and what a row lost is counted beside its sums.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence

import attrs

from paravirt_mm.comparison import Row
from paravirt_mm.counted import all_of, counted
from paravirt_mm.machine.model import Machine
from paravirt_mm.options import PluginSpec
from paravirt_mm.report.markup import tabulated, words
from paravirt_mm.report.paper import PLAIN, Paper
from paravirt_mm.report.tables import GAP, label, labels
from paravirt_mm.report.values import MISSING, size
from paravirt_mm.run import Outcome


@attrs.frozen
class Total:
    """One allocator under one backend: how its runs ended, and sums over ``machines`` machines.

    ``below_16m`` is the most that its tables took there on one of them, in bytes.
    """

    allocator: str
    backend: str
    ends: Mapping[Outcome, int]
    machines: int
    reserved: int
    waste: int
    tables: int
    flips: int
    flips_wasted: int
    hypercalls: int
    below_16m: int

    @property
    def failed(self) -> int:
        """Machines on which it did not come to a good end although the platform takes them."""
        return sum(n for end, n in self.ends.items() if end not in {Outcome.OK, Outcome.REJECTED})

    @property
    def flips_a_table(self) -> float | None:
        """Status changes for each table; None where there are no tables."""
        return self.flips / self.tables if self.tables else None


def comparable(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of the machines on which every row ended well.

    Where there is no such machine, each platform has its own: those on which every row under it
    ended well.
    """
    by_machine: dict[Machine, list[Row]] = {}
    for row in rows:
        by_machine.setdefault(row.machine, []).append(row)
    good = [group for group in by_machine.values() if _ended_well(group)]
    if not good:
        parts: dict[tuple[Machine, str], list[Row]] = {}
        for row in rows:
            parts.setdefault((row.machine, row.backend), []).append(row)
        good = [group for group in parts.values() if _ended_well(group)]
    return [row for group in good for row in group]


def _ended_well(rows: Sequence[Row]) -> bool:
    return all(row.outcome is Outcome.OK for row in rows)


def totals(rows: Sequence[Row]) -> list[Total]:
    """Return the sums, platform by platform, allocators in their order."""
    shared = comparable(rows)
    backends = dict.fromkeys(row.backend for row in rows)
    keys = dict.fromkeys((row.backend, row.allocator) for row in rows)
    told = labels(allocator for _, allocator in keys)
    ordered = [key for backend in backends for key in keys if key[0] == backend]
    return [
        _total(
            told[allocator],
            backend,
            [row for row in rows if (row.backend, row.allocator) == (backend, allocator)],
            [row for row in shared if (row.backend, row.allocator) == (backend, allocator)],
        )
        for backend, allocator in ordered
    ]


def _total(told: str, backend: str, mine: Sequence[Row], shared: Sequence[Row]) -> Total:
    def over(name: str) -> list[int]:
        return [row.figures.get(name) or 0 for row in shared]

    return Total(
        allocator=told,
        backend=label(PluginSpec.parse(backend)),
        ends=Counter(row.outcome for row in mine),
        machines=len(shared),
        reserved=sum(over("reserved")),
        waste=sum(over("waste")),
        tables=sum(over("tables")),
        flips=sum(over("flips")),
        flips_wasted=sum(over("flips_wasted")),
        hypercalls=sum(over("hypercalls")),
        below_16m=max(over("tables_below_16m"), default=0),
    )


def summary_table(rows: Sequence[Row], style: str = "simple", paper: Paper = PLAIN) -> str:
    """Return a line for each allocator and backend: how its runs ended, and the sums.

    Below it stands how many machines are added up. On narrow paper the last columns are left out,
    and named.
    """
    lines = totals(rows)
    columns: dict[str, list[str]] = {
        "allocator": [line.allocator for line in lines],
        "backend": [line.backend for line in lines],
    }
    for outcome in Outcome:
        if any(line.ends.get(outcome) for line in lines):
            columns[str(outcome)] = [str(line.ends.get(outcome, 0)) for line in lines]
    columns |= {
        "tables": [_sum(line, line.tables) for line in lines],
        "waste": [_sum(line, line.waste) for line in lines],
        "flips": [_sum(line, line.flips) for line in lines],
        "/table": [
            MISSING if line.flips_a_table is None else f"{line.flips_a_table:.2f}" for line in lines
        ],
        "wasted": [_sum(line, line.flips_wasted) for line in lines],
        "max<16M": [size(line.below_16m) if line.machines else MISSING for line in lines],
    }
    return fitted(columns, [summed_over(rows, lines)], style, paper)


def fitted(
    columns: Mapping[str, Sequence[str]], notes: Sequence[str], style: str, paper: Paper
) -> str:
    """Return a table of columns, the first two names, without the last ones where there is no room;
    below it stand notes, and what is left out.
    """
    width, fits = -GAP, 0
    for title, cells in columns.items():
        width += max(len(title), *map(len, cells)) + GAP
        fits += width <= paper.width
    shown, left_out = list(columns)[:fits], list(columns)[fits:]
    align = ("left", "left", *("right",) * (len(shown) - 2))
    cut = list(zip(*(columns[title] for title in shown), strict=True))
    if left_out:
        notes = [*notes, f"left out for want of room: {', '.join(left_out)}"]
    told = (textwrap.fill(note, paper.width, subsequent_indent="  ") for note in notes)
    return "\n\n".join([tabulated(cut, shown, style, align), words("\n".join(told), style)])


def _sum(line: Total, number: int) -> str:
    return str(number) if line.machines else MISSING


def summed_over(rows: Sequence[Row], lines: Sequence[Total]) -> str:
    """Return which machines the sums are over, in words."""
    every = len({row.machine for row in rows})
    counts = {line.backend: line.machines for line in lines}
    if len(set(counts.values())) == 1:
        count = next(iter(counts.values()))
        if not count:
            return "sums: there is no machine on which every row ended ok"
        which = f"{all_of(every, 'machine')}, every row ended ok"
        if count < every:
            which = f"the {count} of {counted(every, 'machine')} on which every row ended ok"
        return f"sums: over {which}"
    parts = ", ".join(f"{count} under {backend}" for backend, count in counts.items())
    return f"sums: over the machines on which every row of the platform ended ok ({parts})"
