"""What subcommands share about names on the command line: machines that plugins bring."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from paravirt_mm import offers
from paravirt_mm.cli import reading
from paravirt_mm.cli.output import complain
from paravirt_mm.errors import InputError
from paravirt_mm.machine.model import Machine
from paravirt_mm.registry import Registry
from paravirt_mm.sources import bundled_machines


def brought_machine(name: str, registry: Registry) -> Machine | None:
    """Return the machine of a plugin that has this name; files and bundled machines come first."""
    if name == "-" or os.path.lexists(name) or name in bundled_machines():
        return None
    return offers.machines(registry).get(name)


def machines(
    inputs: Sequence[str], boot: int | None, registry: Registry, problems: list[InputError]
) -> Iterator[Machine]:
    """Yield the machines; what cannot be read is reported at once, and the others go on."""
    for name in inputs:
        machine = brought_machine(name, registry)
        if machine is not None:
            yield machine
            continue
        for _, outcome in reading.machines([name], boot):
            if isinstance(outcome, InputError):
                problems.append(outcome)
                complain(outcome)
            else:
                yield outcome
