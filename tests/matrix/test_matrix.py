"""Every allocator under every backend on every machine that ships with the package.

A run must be ``ok`` and break no rule; other verdicts that are right are listed with their reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest

from paravirt_mm import Outcome, Run, bundled, bundled_machines
from paravirt_mm.registry import Registry
from paravirt_mm.testing import Expected, judge

ALLOCATORS = (
    *(
        f"legacy_linear:kernel={kernel}"
        for kernel in ("2.6.32", "2.6.38", "3.2", "3.4", "3.5", "3.6", "3.7", "3.8")
    ),
    "legacy_linear:kernel=3.6,good_end=end",
    "incremental:variant=hpa",
    "chunk_end",
    *(f"incremental:variant=linux,kernel={kernel}" for kernel in ("3.9", "4.4", "4.19", "6.1")),
)
BACKENDS = ("native", "xen")
MACHINES = tuple(bundled_machines())
SMALL = ("asus-l8400-256m", "pae-4g", "qemu-512m", "qemu-pae-320m")

EXPECTED = (
    Expected(
        "rejected: domain builder: there are no PV guests with i386, 2 levels, -22",
        "Xen gave up PV guests without PAE in 2006",
        backend="xen",
        machine="asus-l8400-256m",
    ),
    *(
        Expected(
            "panic: Cannot find space for the kernel page tables",
            "the block must lie in what the domain builder mapped, below the p2m list; a kernel at"
            " 2 MiB leaves less there than the 8 MiB that 4 KiB pages for 4 GiB need",
            allocator=allocator,
            backend="xen",
            machine="sun-x4600m2-256g",
        )
        for allocator in ("legacy_linear:kernel=?.?", "legacy_linear:kernel=2.6.3[28]")
    ),
)


def _scenarios() -> Iterator[Any]:
    """Every one; the sketch takes a step for each 2 MiB where there are no large pages."""
    for allocator, backend, machine in product(ALLOCATORS, BACKENDS, MACHINES):
        long = (allocator, backend) == ("chunk_end", "xen")
        marks = [pytest.mark.slow] if long and machine not in SMALL else []
        yield pytest.param(
            allocator, backend, machine, marks=marks, id=f"{allocator}-{backend}-{machine}"
        )


@pytest.mark.parametrize(("allocator", "backend", "machine"), list(_scenarios()))
def test_matrix(
    allocator: str, backend: str, machine: str, run_scenario: Callable[..., Run]
) -> None:
    run = run_scenario(machine, allocator, backend)
    problem = judge(run, EXPECTED)
    assert problem is None, problem


def test_expectations_are_used() -> None:
    """An expectation that speaks of no scenario is a slip."""
    for item in EXPECTED:
        assert any(
            item.matches(allocator, backend, machine)
            for allocator in ALLOCATORS
            for backend in BACKENDS
            for machine in MACHINES
        ), item


def test_matrix_names_every_installed_plugin(registry: Registry) -> None:
    """A new built-in plugin is in the matrix; but for real kernels, and what fails at will."""
    assert {name.partition(":")[0] for name in ALLOCATORS} | {"linux"} == {
        plugin.name for plugin in registry.of_role("allocator")
    }
    assert set(BACKENDS) | {"faulty"} == {plugin.name for plugin in registry.of_role("backend")}


def test_machines_are_of_different_kinds() -> None:
    """At least eight: a small one, a huge one, one with many holes, PAE, a Xen dom0, EFI."""
    machines = [bundled(name) for name in MACHINES]
    ram = [machine.memory_map.ram_pages().total for machine in machines]
    assert len(machines) >= 8
    assert min(ram) <= 512 << 20
    assert max(ram) >= 128 << 30
    assert max(len(machine.memory_map.ram_pages()) for machine in machines) >= 10
    assert {"i386-pae", "x86_64"} <= {machine.mode.name for machine in machines}
    assert any("dom0" in machine.name for machine in machines)
    assert all(machine.provenance.source for machine in machines)
    assert any("EFI" in machine.provenance.title for machine in machines)


@pytest.mark.parametrize("machine", MACHINES)
def test_judge_holds_runs_to_their_word(machine: str, run_scenario: Callable[..., Run]) -> None:
    """An expectation of a run that is ok is reported as stale."""
    run = run_scenario(machine, "incremental:variant=linux,kernel=4.19", "native")
    assert run.verdict.outcome is Outcome.OK
    stale = judge(run, [Expected("panic", "it used to", machine=machine)])
    assert stale is not None
    assert "stale: it used to" in stale
