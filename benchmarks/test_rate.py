"""What a hunt lives on: scenarios a second on small real maps, beside the C loop of the same run.

Engine, figures and invariants are on; a thorough check (rule 6, bytes) is for what is kept.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
from timing import Cost

from paravirt_mm import Scenario, bundled, bundled_machines

MOST_ENTRIES = 16
"""Maps of up to so many entries."""
SCENARIOS = [
    ("legacy_linear:kernel=2.6.39", "native", 1200),
    ("incremental:variant=linux,kernel=4.19", "native", 850),
    ("incremental:variant=hpa", "native", 700),
    ("incremental:variant=hpa", "xen", 480),
]
"""With how many scenarios must fit into the C loop at the least: two thirds or more of what did."""


@pytest.mark.parametrize(("allocator", "backend", "least"), SCENARIOS)
def test_scenarios_a_second(
    benchmark: Any, c_loop: Cost, allocator: str, backend: str, least: int
) -> None:
    """CPU seconds of one scenario, and how many fit into the C loop."""
    machines = [bundled(name) for name in bundled_machines()]
    small = [machine for machine in machines if len(machine.memory_map) <= MOST_ENTRIES]
    scenarios = [Scenario.of(machine, allocator, backend) for machine in small]
    seconds: list[float] = []

    def once() -> None:
        begin = time.process_time()
        for scenario in scenarios:
            run = scenario.run()
            assert bool(run.figures) is run.trace.begun
        seconds.append((time.process_time() - begin) / len(scenarios))

    once()
    benchmark.pedantic(once, rounds=20)
    each = min(seconds)
    benchmark.extra_info.update(
        ratio=each / c_loop.cpu,
        c_cpu_seconds=c_loop.cpu,
        cpu_seconds=each,
        scenarios_a_second=1 / each,
        scenarios_a_c_loop=c_loop.cpu / each,
    )
    assert c_loop.cpu / each > least
