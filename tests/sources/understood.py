"""What was understood of a log, to compare it with the same log in another dress."""

from __future__ import annotations

from pathlib import Path

import attrs

from paravirt_mm.machine.model import Machine
from paravirt_mm.sources import load


def understood(path: Path) -> Machine:
    """Return the machine of a log, but for its name and where it comes from."""
    machine = load(path)
    about = attrs.evolve(machine.provenance, source="", title="", assumed=())
    return attrs.evolve(machine, name="m", provenance=about)
