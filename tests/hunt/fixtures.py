"""Runs with chosen figures and ends, without an engine behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from paravirt_mm import E820Type, Machine, MemoryMap, Outcome, PluginSpec, Run, Trace, Verdict

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
        run.__dict__["figures"] = dict(figures or {})  # in place of the cached property
        return run

    return make
