"""pytest fixtures for plugin tests; load them with ``pytest_plugins =
["paravirt_mm.testing.fixtures"]``.

Importing paravirt_mm never loads this: pytest runs that have nothing to do with it stay as they
are.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from paravirt_mm import API_VERSION, __version__
from paravirt_mm.errors import ParavirtMmError
from paravirt_mm.machine.model import Machine
from paravirt_mm.registry import Registry, default_registry
from paravirt_mm.run import Run
from paravirt_mm.scenario import Scenario
from paravirt_mm.sources import bundled

RunScenario = Callable[..., Run]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--pvmm-plugin``."""
    parser.addoption(
        "--pvmm-plugin",
        metavar="SPEC",
        help="plugin for `pytest --pyargs paravirt_mm.testing.check`: a name, ./file.py:Class, "
        "or either with options",
    )


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Name core and plugins with their versions, without importing any."""
    plugins = ", ".join(f"{name} ({origin})" for name, origin in default_registry().found.items())
    head = f"paravirt-mm {__version__}, API {API_VERSION}, plugins: {plugins or 'none'}"
    spec = config.getoption("--pvmm-plugin", None)
    return [head, f"paravirt-mm: checks {spec}"] if spec else [head]


def pytest_configure(config: pytest.Config) -> None:
    """Make the suite of ``--pvmm-plugin``, and give it to `paravirt_mm.testing.check`."""
    spec = config.getoption("--pvmm-plugin")
    if spec:
        from paravirt_mm.testing import check

        try:
            check.TestPlugin = check.suite_for(spec)  # type: ignore[attr-defined]
        except ParavirtMmError as error:
            raise pytest.UsageError(str(error)) from error


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
