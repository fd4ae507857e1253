"""Verdicts other than ``ok`` that are right: data, each with its reason."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

import attrs

from paravirt_mm.run import Outcome, Run


@attrs.frozen
class Expected:
    """A scenario that must end with ``verdict``, and why that is right.

    ``verdict`` is how the verdict must begin ("panic", "panic: Cannot find space"). ``allocator``,
    ``backend`` and ``machine`` are patterns as of a shell (``*``, ``?``); allocator and backend are
    compared as specs with their options.
    """

    verdict: str
    reason: str
    allocator: str = "*"
    backend: str = "*"
    machine: str = "*"

    def matches(self, allocator: str, backend: str, machine: str) -> bool:
        """Tell whether it speaks of this scenario."""
        return (
            fnmatchcase(allocator, self.allocator)
            and fnmatchcase(backend, self.backend)
            and fnmatchcase(machine, self.machine)
        )


def judge(run: Run, expected: Iterable[Expected] = ()) -> str | None:
    """Return what is wrong with the end of a run, or None.

    A run must be ``ok`` without findings, unless the first expectation that speaks of it says
    otherwise; one that does not come true is stale, and that is wrong too. ``error`` and findings
    are never right.
    """
    names = str(run.allocator), str(run.backend), run.machine.name
    where = " on ".join((" under ".join(names[:2]), names[2]))
    if run.verdict.outcome is Outcome.ERROR:
        return f"{where}: {run.verdict}"
    if run.findings:
        return f"{where}: {run.findings[0]}"
    wanted = next((item for item in expected if item.matches(*names)), None)
    if wanted is None:
        return None if run.verdict.outcome is Outcome.OK else f"{where}: {run.verdict}"
    if str(run.verdict).startswith(wanted.verdict):
        return None
    return f"{where}: {run.verdict}; expected {wanted.verdict!r}, stale: {wanted.reason}"
