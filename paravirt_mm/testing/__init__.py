"""What the author of a plugin imports to test it: conformance suites, machines, reference plugins.

Three lines test an allocator against every installed backend, on every kind of machine::

    from paravirt_mm.testing import AllocatorConformance

    class TestMine(AllocatorConformance):
        plugin = Mine

`BackendConformance` does the same for a backend. The suites know capabilities (a platform that
types pages, a machine that it refuses), never plugins by name.

Fixtures come with ``pytest_plugins = ["paravirt_mm.testing.fixtures"]`` in the top ``conftest.py``;
nothing is loaded by itself. The suites need pytest, `machines` and `memory_maps` hypothesis;
`generate`, `registry_with` and the reference plugins need neither.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paravirt_mm.testing.conformance import AllocatorConformance, BackendConformance
    from paravirt_mm.testing.expected import Expected, judge
    from paravirt_mm.testing.generator import generate
    from paravirt_mm.testing.reference import (
        AscendingAllocator,
        BlockAllocator,
        PlainPlatform,
        TypingPlatform,
    )
    from paravirt_mm.testing.registries import registry_with
    from paravirt_mm.testing.strategies import machines, memory_maps, raw_entries

_HOMES = {
    "conformance": ("AllocatorConformance", "BackendConformance"),
    "expected": ("Expected", "judge"),
    "generator": ("generate",),
    "reference": ("AscendingAllocator", "BlockAllocator", "PlainPlatform", "TypingPlatform"),
    "registries": ("registry_with",),
    "strategies": ("machines", "memory_maps", "raw_entries"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AllocatorConformance",
    "AscendingAllocator",
    "BackendConformance",
    "BlockAllocator",
    "Expected",
    "PlainPlatform",
    "TypingPlatform",
    "generate",
    "judge",
    "machines",
    "memory_maps",
    "raw_entries",
    "registry_with",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
