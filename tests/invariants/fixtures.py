"""A small machine, and a judge for plugins that break exactly one rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from paravirt_mm import (
    CpuFeatures,
    E820Type,
    KernelImage,
    Machine,
    MemoryMap,
    Run,
    Scenario,
)
from paravirt_mm.testing import registry_with

MIB = 1 << 20


@pytest.fixture(scope="session")
def small() -> Machine:
    """256 MiB with a hole at 640 KiB and one at 100 MiB, kernel at 16 MiB.

    ::

        0    640K  1M       16M    17M    100M   101M          256M
        |RAM |     |RAM     |kernel|RAM   |hole  |RAM          |
    """
    entries = [
        (0x1000, 0xA0000, E820Type.RAM),
        (MIB, 100 * MIB, E820Type.RAM),
        (101 * MIB, 256 * MIB, E820Type.RAM),
    ]
    return Machine(
        name="small",
        memory_map=MemoryMap.sanitise(entries),
        features=CpuFeatures(pse=True, gbpages=False),
        kernel=KernelImage(16 * MIB, 17 * MIB, 17 * MIB, 17 * MIB + 64 * 4096),
    )


@pytest.fixture(scope="session")
def run_pair(small: Machine) -> Callable[[type[Any], type[Any]], Run]:
    """``run_pair(allocator_class, backend_class)`` on the small machine."""

    def run(allocator: type[Any], backend: type[Any]) -> Run:
        registry = registry_with(installed=False, allocator=allocator, backend=backend)
        return Scenario.of(small, "allocator", "backend").run(registry)

    return run
