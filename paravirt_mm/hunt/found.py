"""What a hunt found, for people and for a test suite: the machine, the story, a pytest case."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import inf
from time import monotonic
from typing import Any

import attrs

from paravirt_mm.comparison import Each, run_here
from paravirt_mm.counted import counted
from paravirt_mm.guard import TRYING, Asked, Limits, Stopped
from paravirt_mm.hunt.edits import is_sound
from paravirt_mm.hunt.search import HuntResult, Quarry, Reason
from paravirt_mm.hunt.shrink import shrink
from paravirt_mm.invariants.rules import Finding
from paravirt_mm.machine.model import Machine
from paravirt_mm.printable import printable
from paravirt_mm.registry import default_registry
from paravirt_mm.report.narrative import numbered_lines
from paravirt_mm.report.tables import label, machine_title
from paravirt_mm.run import Run, Verdict
from paravirt_mm.sources.machine_file import write_toml

STORY_LINES = 40
"""Lines of the trace that are shown; the end of it is where things happen."""


@attrs.frozen
class Ending:
    """What is told of a run; unlike the run it can come from another process.

    ``story`` is the trace line by line, up to the first event that is to blame where one is.
    """

    allocator: str
    verdict: Verdict
    findings: tuple[Finding, ...]
    figures: dict[str, Any]
    story: tuple[str, ...]

    @classmethod
    def of(cls, run: Run) -> Ending:
        """Look at a run."""
        story = tuple(_story(run))
        return cls(label(run.allocator), run.verdict, run.findings, dict(run.figures), story)


def _story(run: Run) -> list[str]:
    if not run.trace.begun:
        return []
    last = min((finding.event for finding in run.findings), default=len(run.trace))
    lines = [line for number, line in numbered_lines(run.trace) if number <= last]
    if len(lines) <= STORY_LINES:
        return lines
    return [f"   ... {counted(len(lines) - STORY_LINES, 'line')} before ...", *lines[-STORY_LINES:]]


@attrs.frozen
class Found:
    """A machine on which the condition holds, how its runs end, what it took to make it small."""

    quarry: Quarry
    machine: Machine
    run: Ending
    other: Ending | None
    shrunk_from: int
    tries: int

    @classmethod
    def of(
        cls,
        quarry: Quarry,
        result: HuntResult,
        *,
        limits: Limits = TRYING,
        each: Each | None = None,
        seconds: float = inf,
    ) -> Found:
        """Shrink what a hunt found for ``seconds`` at the most, each try in a child within
        ``limits``; ``each`` runs what is shown in the end (None: this process). Raises ValueError
        where the hunt found nothing.
        """
        if result.machine is None:
            raise ValueError("the hunt found nothing")
        until = monotonic() + seconds
        with Asked(quarry.judge, limits) as asked:

            def judge(machine: Machine) -> tuple[bool, Reason]:
                answer = asked(machine)
                return quarry.judge(machine, answer) if isinstance(answer, Stopped) else answer

            _, wanted = judge(result.machine)
            room = is_sound(result.machine)
            machine, tries = shrink(
                result.machine,
                lambda one: (not room or is_sound(one)) and judge(one) == (True, wanted),
                until=until,
            )
        machine = attrs.evolve(machine, name="found")
        todo = [(machine, *side) for side in quarry.sides]
        run = each or partial(run_here, default_registry())
        endings = [*run(todo, Ending.of), None]
        entries = len(result.machine.memory_map)
        return cls(quarry, machine, endings[0], endings[1], entries, tries)

    def toml(self) -> str:
        """Return the machine as a machine file."""
        return write_toml(self.machine)

    def pytest(self) -> str:
        """Return a test module that fails as long as the condition holds on the machine."""
        lines = "\n".join(f"    {line!r}" for line in self.toml().splitlines(keepends=True))
        second = "None"
        for allocator, backend in self.quarry.sides[1:]:
            second = f"Scenario.of(machine, {allocator!r}, {backend!r}).run()"
        return _TEST.format(
            condition=self.quarry.condition,
            lines=lines,
            allocator=self.quarry.allocator,
            backend=self.quarry.backend,
            second=second,
        )

    def text(self) -> str:
        """Return all of it for a terminal."""
        ends = [f"{self.run.allocator}: {self.run.verdict}"]
        if self.other is not None:
            under = self.quarry.other_backend
            other = self.other.allocator + (f" under {under}" if under else "")
            ends.append(f"{other}: {self.other.verdict}")
        parts: Sequence[Sequence[str]] = (
            [machine_title(self.machine)],
            [
                f"  {entry.start:#016x}-{entry.end:#016x}  {entry.type.label}"
                for entry in self.machine.memory_map
            ],
            [f"  taken: {low:#x}-{high:#x}" for low, high in self.machine.reserved],
            [""],
            self.run.story,
            [""],
            [printable(end) for end in ends],
            [f"  {printable(str(finding))}" for finding in self.run.findings[:5]],
        )
        return "\n".join(line for part in parts for line in part)

    def record(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        return {
            "machine": self.toml(),
            "entries": len(self.machine.memory_map),
            "shrunk_from_entries": self.shrunk_from,
            "shrink_tries": self.tries,
            "verdict": str(self.run.verdict),
            "findings": [str(finding) for finding in self.run.findings],
            "figures": dict(self.run.figures),
            "other_verdict": None if self.other is None else str(self.other.verdict),
            "other_figures": None if self.other is None else dict(self.other.figures),
            "pytest": self.pytest(),
        }


_TEST = '''\
"""A machine that a hunt found; the test passes when the condition no longer holds on it."""

from paravirt_mm import Condition, Scenario, load

CONDITION = {condition!r}
MACHINE = (
{lines}
)


def test_found(tmp_path):
    path = tmp_path / "found.toml"
    path.write_text(MACHINE, encoding="utf-8")
    machine = load(str(path))
    run = Scenario.of(machine, {allocator!r}, {backend!r}).run()
    other = {second}
    assert not Condition.parse(CONDITION).holds(run, other), str(run.verdict)
'''
