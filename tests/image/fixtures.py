"""Machines and runs that the tests of images share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from paravirt_mm import CpuFeatures, E820Type, Machine, MemoryMap, Run, Scenario
from paravirt_mm.machine.paging import MODES

MIB = 1 << 20
ALLOCATORS = ("legacy_linear:kernel=3.6", "incremental:variant=linux", "incremental:variant=hpa")

MakeMachine = Callable[..., Machine]
MakeRun = Callable[..., Run]


def machine(mode: str, size: int = 64 * MIB, **options: object) -> Machine:
    """A machine with an ISA hole, and one that is not aligned to large pages."""
    ram = [(0, 0x9F000), (MIB, size // 2 + 0x3000), (size // 2 + 0x204000, size)]
    features = CpuFeatures(nx=MODES[mode].has_nx)
    return Machine(
        name=f"{mode} with {size >> 20} MiB",
        memory_map=MemoryMap.sanitise((low, high, E820Type.RAM) for low, high in ram),
        mode=MODES[mode],
        **{"features": features, "boot_mapped": 32 * MIB, **options},  # type: ignore[arg-type]
    )


@pytest.fixture(scope="session")
def make_machine() -> MakeMachine:
    return machine


@pytest.fixture(scope="session")
def small_run() -> MakeRun:
    """``small_run(mode, allocator, backend, size, **machine options)``."""

    def run(
        mode: str, allocator: str, backend: str, size: int = 64 * MIB, **options: object
    ) -> Run:
        return Scenario.of(machine(mode, size, **options), allocator, backend).run()

    return run


@pytest.fixture(scope="session")
def dumps() -> Path:
    """The folder with page tables of real kernels."""
    return Path(__file__).resolve().parents[1] / "data" / "dumps"
