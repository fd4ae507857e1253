"""Runs with chosen figures and ends, without an engine behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from paravirt_mm import GIB, E820Type, Machine, MemoryMap, Outcome, PluginSpec, Run, Trace, Verdict
from paravirt_mm.measure.books import Room

MIB = 1 << 20
MakeRun = Callable[..., Run]


@pytest.fixture
def made() -> MakeRun:
    """Return a function that makes a run: figures by name, outcome, detail."""
    machine = Machine("made", MemoryMap.sanitise([(0, 64 * MIB, E820Type.RAM)]))
    spec = PluginSpec("made")

    def make(
        figures: Mapping[str, Any] | None = None, outcome: Outcome = Outcome.OK, detail: str = ""
    ) -> Run:
        run = Run(machine, spec, spec, Trace(), Verdict(outcome, detail))
        # In place of the cached properties.
        run.__dict__["figures"] = dict(figures or {})
        largest = (figures or {}).get("crashkernel_largest_below_4g", 0)
        run.__dict__["books"] = SimpleNamespace(room={4 * GIB: Room(0, largest)})
        return run

    return make
