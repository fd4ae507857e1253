"""What subcommands share about names on the command line: machines that plugins bring."""

from __future__ import annotations

import os

from paravirt_mm import offers
from paravirt_mm.machine.model import Machine
from paravirt_mm.registry import Registry
from paravirt_mm.sources import bundled_machines


def brought_machine(name: str, registry: Registry) -> Machine | None:
    """Return the machine of a plugin that has this name; files and bundled machines come first."""
    if name == "-" or os.path.lexists(name) or name in bundled_machines():
        return None
    return offers.machines(registry).get(name)
