"""pytest fixtures for plugin tests; load them with ``pytest_plugins =
["paravirt_mm.testing.fixtures"]``.

Importing paravirt_mm never loads this: pytest runs that have nothing to do with it stay as they
are.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from paravirt_mm import __version__
from paravirt_mm.machine.model import Machine
from paravirt_mm.registry import Registry, default_registry
from paravirt_mm.run import Run
from paravirt_mm.scenario import Scenario
from paravirt_mm.sources import bundled

RunScenario = Callable[..., Run]


def pytest_report_header() -> list[str]:
    """Name core and plugins with their versions."""
    registry = default_registry()
    plugins = [f"{plugin.name} ({plugin.origin})" for plugin in registry.plugins.values()]
    broken = [f"{item.name} ({item.distribution}): {item.problem}" for item in registry.broken]
    return [
        f"paravirt-mm {__version__}, plugins: {', '.join(plugins) or 'none'}",
        *(f"paravirt-mm: broken plugin {text}" for text in broken),
    ]


@pytest.fixture(scope="session")
def registry() -> Registry:
    """What is installed."""
    return default_registry()


@pytest.fixture(scope="session")
def run_scenario() -> RunScenario:
    """``run_scenario(machine, allocator, backend)``: run specs on a machine or the name of a
    bundled one, once a session.

    With ``registry=`` it runs anew.
    """
    known: dict[tuple[str, str, str], Run] = {}

    def run(
        machine: Machine | str, allocator: str, backend: str, registry: Registry | None = None
    ) -> Run:
        if registry is not None or isinstance(machine, Machine):
            made = bundled(machine) if isinstance(machine, str) else machine
            return Scenario.of(made, allocator, backend).run(registry)
        key = machine, allocator, backend
        if key not in known:
            known[key] = Scenario.of(bundled(machine), allocator, backend).run()
        return known[key]

    return run
