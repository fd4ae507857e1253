"""Cost follows runs, not pages: whole processes, each beside the C loop of the same session.

The C loop stores one entry after the other; the model works out the same tables, keeps the ledger
of every page, and checks every invariant. Limits are ratios, so that they hold on any machine.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from timing import Cost, best, timed

MIB = 1 << 20
HERE = Path(__file__).parent
HPA, LINUX = "incremental:variant=hpa", "incremental:variant=linux,kernel=4.19"
# A guess that has to find its block in what is mapped at boot (below 512 MiB) has no room for the
# 2 GiB of tables of 1 TiB, and the kernel panics. In 2.6.39 alone the search ends where the mapping
# will.
LINEAR = "legacy_linear:kernel=2.6.39"
ALLOCATORS = (LINEAR, "legacy_linear:kernel=3.6", LINUX, HPA)


def scenario(machine: str, allocator: str, backend: str) -> tuple[Cost, dict[str, Any]]:
    """Run ``scenario.py``; return what it cost and what it printed."""
    cost, printed = timed([sys.executable, HERE / "scenario.py", machine, allocator, backend])
    result: dict[str, Any] = json.loads(printed)
    assert result["verdict"] == "ok"
    return cost, result


def measure(benchmark: Any, c_loop: Cost, *what: str, rounds: int = 3) -> tuple[float, float]:
    """Measure a whole process; return (CPU time / C loop's, most memory in bytes)."""
    measured: list[tuple[Cost, dict[str, Any]]] = []
    benchmark.pedantic(lambda: measured.append(scenario(*what)), rounds=rounds)
    ratio = note(benchmark, c_loop, [cost for cost, _ in measured])
    results = [result for _, result in measured]
    peak = max(result["peak"] for result in results)
    benchmark.extra_info.update(
        engine_ratio=min(result["engine"] for result in results) / c_loop.cpu,
        peak_bytes=peak,
        tables=results[0]["tables"],
        events=results[0]["events"],
    )
    return ratio, peak


def note(benchmark: Any, c_loop: Cost, costs: list[Cost]) -> float:
    """Note the best cost beside the C loop's; return the ratio of CPU times."""
    least = best(costs)
    ratio = least.cpu / c_loop.cpu
    benchmark.extra_info.update(
        ratio=ratio,
        wall_ratio=least.wall / c_loop.wall,
        c_cpu_seconds=c_loop.cpu,
        c_wall_seconds=c_loop.wall,
        cpu_seconds=least.cpu,
    )
    return ratio


@pytest.mark.parametrize(
    ("allocator", "backend"), [(LINUX, "xen"), (HPA, "xen"), (LINEAR, "native")]
)
def test_1_tib(benchmark: Any, c_loop: Cost, allocator: str, backend: str) -> None:
    """524,288 L1 tables: at most a quarter of the C loop's time, under 150 MB."""
    ratio, peak = measure(benchmark, c_loop, "guest-1t", allocator, backend)
    assert benchmark.extra_info["tables"] > 524_000
    assert ratio <= 1 / 4
    assert peak < 150e6


@pytest.mark.parametrize("allocator", [LINUX, HPA])
def test_64_tib(benchmark: Any, c_loop: Cost, allocator: str) -> None:
    """33,554,432 L1 tables: at most the time in which the C loop does 1 TiB, under 400 MB."""
    ratio, peak = measure(benchmark, c_loop, "guest-64t", allocator, "xen")
    assert benchmark.extra_info["tables"] > 33_500_000
    assert ratio <= 1
    assert peak < 400e6


@pytest.mark.parametrize("allocator", [LINUX, HPA])
def test_growth(benchmark: Any, c_loop: Cost, allocator: str) -> None:
    """From 1 to 64 TiB: the exponent of the engine's time in pages is well below 1."""
    sizes = [1 << power for power in range(7)]
    curve: dict[int, float] = {}
    costs: list[Cost] = []

    def once() -> None:
        for size in sizes:
            cost, result = scenario(f"guest-{size}t", allocator, "xen")
            curve[size] = min(result["engine"], curve.get(size, math.inf))
            costs.append(cost)

    benchmark.pedantic(once, rounds=2)
    note(benchmark, c_loop, costs)
    xs, ys = [math.log(size) for size in sizes], [math.log(curve[size]) for size in sizes]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    slope = sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum(
        (a - x) ** 2 for a in xs
    )
    benchmark.extra_info.update(
        exponent=slope,
        curve={f"{size} TiB": seconds / c_loop.cpu for size, seconds in curve.items()},
    )
    assert slope < 0.5


@pytest.mark.parametrize("backend", ["native", "xen"])
@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_10000_pieces(benchmark: Any, c_loop: Cost, allocator: str, backend: str) -> None:
    """10,000 pieces of RAM cost about four times what 2,500 do: nothing is quadratic."""
    _, peak = measure(benchmark, c_loop, "pieces-10000", allocator, backend, rounds=1)
    few = scenario("pieces-2500", allocator, backend)[1]["engine"]
    growth = benchmark.extra_info["engine_ratio"] * c_loop.cpu / few
    benchmark.extra_info["growth_from_2500"] = growth
    assert growth < 4 * 1.75
    assert peak < 400e6


@pytest.mark.parametrize("backend", ["native", "xen"])
@pytest.mark.parametrize("allocator", [LINUX, HPA])
def test_32_bit_pae(benchmark: Any, c_loop: Cost, allocator: str, backend: str) -> None:
    """A real 32-bit PAE desktop, the plugins' imports included."""
    measure(benchmark, c_loop, "pae-4g", allocator, backend)
    assert benchmark.extra_info["engine_ratio"] <= 1 / 10


def test_laptop(benchmark: Any, c_loop: Cost) -> None:
    """``paravirt-mm compare`` of a laptop, four allocators and two backends, imports included.

    Two thirds of a second where the C loop takes 1.8 s. Most of it is 400 imports, which other
    work on the machine slows down more than the C loop, which waits for memory: it was 0.27 to 0.35
    of the loop beside seven processes on two cores.
    """

    costs: list[Cost] = []

    def compare() -> None:
        command = [sys.executable, "-m", "paravirt_mm", "compare", "lenovo-x230-8g"]
        command += [word for allocator in ALLOCATORS for word in ("-a", allocator)]
        cost, printed = timed([*command, "--fail-on", "rejected"])
        costs.append(cost)
        assert "xen" in printed

    benchmark.pedantic(compare, rounds=5)
    assert note(benchmark, c_loop, costs) <= 0.66 / 1.8
