"""What a process costs, in seconds.

CPU time decides: everything here is one thread that waits for nothing, so that on an idle machine
both are the same, and on a busy one CPU time is what the work took.
"""

from __future__ import annotations

import resource
import subprocess
import time
from collections.abc import Sequence
from os import PathLike
from typing import NamedTuple

ENTRIES = 1 << 28
"""What the C loop stores: the entries for 1 TiB of 4 KiB pages, 2 GiB of tables."""


class Cost(NamedTuple):
    """Seconds of a whole process: by the clock, and of CPU (user and system)."""

    wall: float
    cpu: float


def timed(command: Sequence[str | PathLike[str]]) -> tuple[Cost, str]:
    """Run a command; return what it cost and what it printed. Raises where it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    wall = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(wall, cpu), done.stdout


def cpu_seconds() -> float:
    """Return the CPU time that this process has used, and its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def best(costs: Sequence[Cost]) -> Cost:
    """Return the least of each."""
    return Cost(min(cost.wall for cost in costs), min(cost.cpu for cost in costs))
