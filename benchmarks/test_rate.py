"""What a hunt lives on: scenarios a second on small real maps, beside the C loop of the same run.

Engine, figures and invariants are on; a thorough check (rule 6, bytes) is for what is kept.
"""

from __future__ import annotations

import sys
import time
from types import FrameType
from typing import Any

import pytest
from timing import Cost

from paravirt_mm import Scenario, bundled, bundled_machines

MOST_ENTRIES = 16
"""Maps of up to so many entries."""
SCENARIOS = [
    ("legacy_linear:kernel=2.6.39", "native", 1350),
    ("incremental:variant=linux,kernel=4.19", "native", 1000),
    ("incremental:variant=hpa", "native", 900),
    ("incremental:variant=hpa", "xen", 700),
]
"""With how many scenarios must fit into the C loop at the least: about half of what did."""

WARM_UP = 20.0 if sys.implementation.name == "pypy" else 0.0
"""Seconds before it counts: PyPy compiles what it has seen often."""

LEAST_A_BOOT = 50
"""Scenarios that cost no more than a boot."""


def small_scenarios(allocator: str, backend: str) -> list[Scenario]:
    """Return a scenario for each small machine of the package."""
    machines = [bundled(name) for name in bundled_machines()]
    small = [machine for machine in machines if len(machine.memory_map) <= MOST_ENTRIES]
    return [Scenario.of(machine, allocator, backend) for machine in small]


def bytecodes(scenarios: list[Scenario]) -> float:
    """Return how many instructions Python carries out for one scenario: the same on every machine
    and however busy it is, so what is left of a difference in time is the machine's.
    """
    count = 0

    def each(_frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal count
        count += event == "opcode"
        return each

    def begin(frame: FrameType, _event: str, _argument: object) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return each

    before = sys.gettrace()
    sys.settrace(begin)
    try:
        for scenario in scenarios:
            assert scenario.run().figures is not None
    finally:
        sys.settrace(before)
    return count / len(scenarios)


def cost(benchmark: Any, scenarios: list[Scenario], rounds: int) -> float:
    """Return the CPU seconds of one scenario, in the fastest round."""
    seconds: list[float] = []

    def once() -> None:
        begin = time.process_time()
        for scenario in scenarios:
            run = scenario.run()
            assert bool(run.figures) is run.trace.begun
        seconds.append((time.process_time() - begin) / len(scenarios))

    until = time.process_time() + WARM_UP
    once()
    while time.process_time() < until:
        once()
    benchmark.pedantic(once, rounds=rounds)
    return min(seconds)


@pytest.mark.parametrize(("allocator", "backend", "least"), SCENARIOS)
def test_scenarios_a_second(
    benchmark: Any, c_loop: Cost, allocator: str, backend: str, least: int
) -> None:
    """CPU seconds of one scenario, and how many fit into the C loop."""
    scenarios = small_scenarios(allocator, backend)
    each = cost(benchmark, scenarios, rounds=20)
    benchmark.extra_info.update(
        ratio=each / c_loop.cpu,
        c_cpu_seconds=c_loop.cpu,
        cpu_seconds=each,
        scenarios_a_second=1 / each,
        scenarios_a_c_loop=c_loop.cpu / each,
        bytecodes=bytecodes(scenarios),
    )
    assert c_loop.cpu / each > least


@pytest.mark.parametrize(("allocator", "backend"), [row[:2] for row in SCENARIOS])
def test_scenarios_a_boot(
    benchmark: Any, boot: tuple[str, float], allocator: str, backend: str
) -> None:
    """How many scenarios cost as much CPU as one boot of a real kernel, QEMU's and the recorder's:
    were it a few, a hunt could boot instead.
    """
    release, seconds = boot
    each = cost(benchmark, small_scenarios(allocator, backend), rounds=10)
    benchmark.extra_info.update(
        kernel=release, boot_cpu_seconds=seconds, cpu_seconds=each, scenarios_a_boot=seconds / each
    )
    assert seconds / each > LEAST_A_BOOT
