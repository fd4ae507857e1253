"""An account of many runs, for those who find nothing: how they ended, what of a condition was
true, and how near the rest came.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import attrs

from paravirt_mm.printable import printable
from paravirt_mm.run import Outcome, Verdict

Number = int | float
Sides = tuple[Number, Number]
"""What is compared: the left side and the right one."""


@attrs.define
class Tally:
    """What became of a part of a condition in many runs: in how many it had a value, and was true.

    ``below`` and ``above`` are what was compared where the two came nearest: the left one smaller,
    or not.
    """

    text: str
    runs: int = 0
    valued: int = 0
    true: int = 0
    below: Sides | None = None
    above: Sides | None = None

    def enter(self, value: Number | None, sides: Sides | None) -> None:
        """Enter a run."""
        self.runs += 1
        self.valued += value is not None
        self.true += bool(value)
        if sides is not None:
            self._compare(sides)

    def merge(self, other: Tally) -> None:
        """Enter the runs of another one."""
        self.runs += other.runs
        self.valued += other.valued
        self.true += other.true
        for sides in filter(None, (other.below, other.above)):
            self._compare(sides)

    def _compare(self, sides: Sides) -> None:
        left, right = sides
        if left < right:
            if self.below is None or right - left < self.below[1] - self.below[0]:
                self.below = sides
        elif self.above is None or left - right < self.above[0] - self.above[1]:
            self.above = sides

    def __str__(self) -> str:
        if not self.valued:
            return f"{self.text}: without a value"
        if 0 < self.true < self.valued:
            return f"{self.text}: true in {self.true:,} of {self.runs:,}"
        nearest = [
            f"{_shown(left)} against {_shown(right)}"
            for left, right in filter(None, (self.below, self.above))
        ]
        return "; ".join(
            [
                f"{self.text}: {'always' if self.true else 'never'} true",
                *([f"nearest {' and '.join(nearest)}"] if nearest else []),
            ]
        )


def _shown(number: Number) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:,.6g}"


@attrs.define
class Account:
    """What became of each part of a condition; how many runs of the first allocator ended how, and
    what the first verdict of each kind was.
    """

    parts: list[Tally]
    ends: Counter[Outcome] = attrs.field(factory=Counter)
    verdicts: dict[Outcome, Verdict] = attrs.field(factory=dict)

    def enter(self, verdict: Verdict) -> None:
        """Enter how a run ended."""
        self.ends[verdict.outcome] += 1
        self.verdicts.setdefault(verdict.outcome, verdict)

    def merge(self, other: Account) -> None:
        """Enter the runs of another one, which were made later."""
        for mine, others in zip(self.parts, other.parts, strict=True):
            mine.merge(others)
        self.ends.update(other.ends)
        self.verdicts = {**other.verdicts, **self.verdicts}

    def lines(self) -> Iterator[str]:
        """Yield it in words: the parts, then how runs ended, the most first."""
        yield from map(str, self.parts)
        for outcome, runs in self.ends.most_common():
            times = "once" if runs == 1 else f"{runs:,} times"
            yield f"ended {times}: {printable(str(self.verdicts[outcome]))}"

    def record(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "parts": [attrs.asdict(part) for part in self.parts],
            "ends": {
                str(outcome): {"runs": runs, "first": str(self.verdicts[outcome])}
                for outcome, runs in self.ends.most_common()
            },
        }
