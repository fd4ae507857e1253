"""What a comparison says, in three sentences made from its figures.

Which allocators guess is read off their figures, not off their names: one that sets pages aside
before it knows how many it needs, on any machine, guesses.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from paravirt_mm.counted import counted
from paravirt_mm.report.summary import Total
from paravirt_mm.report.values import size


@attrs.frozen
class Sentence:
    """A sentence: what it is about, in a word or two, and what it says."""

    about: str
    text: str

    def __str__(self) -> str:
        return f"{self.about}: {self.text}"


def sentences(totals: Sequence[Total]) -> list[Sentence]:
    """Return the sentences: about the guess, about page status, about low memory and ends."""
    if not any(total.machines for total in totals):
        text = "no machine lets every scenario come to a good end, so no sums can be compared."
        return [Sentence("Nothing to add up", text)]
    guessing = list(dict.fromkeys(total.allocator for total in totals if total.reserved))
    knowing = [name for name in dict.fromkeys(t.allocator for t in totals) if name not in guessing]
    return [
        Sentence("Guessing", _about_the_guess(totals, knowing)),
        Sentence("Page status", _about_status(totals, knowing)),
        Sentence("Low memory", _about_low_memory(totals, guessing, knowing)),
    ]


def _names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _kind(names: Sequence[str], *, knows: bool) -> str:
    """Return allocators by name, or, where they are many, by what they have in common."""
    if len(names) < 3:
        return _names(names)
    return f"the {len(names)} that {'do not guess' if knows else 'guess'}"


def _worst_guess(totals: Sequence[Total]) -> Total:
    return max(totals, key=lambda t: (t.waste / t.reserved if t.reserved else 0, t.waste))


def _about_the_guess(totals: Sequence[Total], knowing: Sequence[str]) -> str:
    parts = []
    for backend in dict.fromkeys(total.backend for total in totals):
        worst = _worst_guess([total for total in totals if total.backend == backend])
        if worst.reserved:
            parts.append(
                f"{worst.allocator} set {counted(worst.reserved, 'page')} aside for tables "
                f"under {backend} and needed {worst.reserved - worst.waste:,}"
            )
    if not parts:
        return "no allocator set pages aside before it needed them."
    end = f"; {_kind(knowing, knows=True)} set none aside" if knowing else ""
    return f"{', '.join(parts)}{end}."


def _about_status(totals: Sequence[Total], knowing: Sequence[str]) -> str:
    changing = [total for total in totals if total.flips]
    if not changing:
        return "no page changes its status under any platform compared here."
    worst = max(changing, key=lambda total: total.flips_a_table or 0)
    best = min(changing, key=lambda t: (t.flips_a_table or 0, t.allocator not in knowing))
    told = (
        f"under {worst.backend} {worst.allocator} changed pages "
        f"{counted(worst.flips, 'time')} for {counted(worst.tables, 'table')}"
    )
    if worst.flips_wasted:
        told += f", {counted(worst.flips_wasted, 'time')} for nothing"
    if best is not worst:
        told += f"; {best.allocator} changed {best.flips_a_table or 0:.2f} a table"
        told += ", none for nothing" if not best.flips_wasted else ""
    calm = [
        backend
        for backend in dict.fromkeys(total.backend for total in totals)
        if not any(total.flips for total in totals if total.backend == backend)
    ]
    return f"{told}; under {_names(calm)} none changes." if calm else f"{told}."


def _about_low_memory(
    totals: Sequence[Total], guessing: Sequence[str], knowing: Sequence[str]
) -> str:
    most = max(totals, key=lambda total: total.below_16m)
    if most.below_16m:
        told = (
            f"{most.allocator} under {most.backend} put up to {size(most.below_16m)} of tables "
            "below 16M"
        )
        others = knowing if most.allocator in guessing else guessing
        rest = [t.below_16m for t in totals if t.allocator in others and t.backend == most.backend]
        if rest:
            who = _kind(others, knows=others is knowing)
            told += f" ({who}: {f'up to {size(max(rest))}' if max(rest) else 'none'})"
    else:
        told = "no allocator put a table below 16M"
    failed = [
        f"{total.allocator} under {total.backend} gives up on {counted(total.failed, 'machine')}"
        for total in totals
        if total.failed
    ]
    if failed:
        return f"{told}; {_names(failed)}."
    return f"{told}; every scenario that the platform accepts came to a good end."
