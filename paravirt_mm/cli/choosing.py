"""What subcommands share about machines that are named on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

from paravirt_mm.cli import reading
from paravirt_mm.cli.here import this_machine
from paravirt_mm.cli.output import complain
from paravirt_mm.errors import InputError
from paravirt_mm.machine.model import Machine
from paravirt_mm.sources import bundled_machines


def here_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option ``--here`` to a command."""
    return click.option(
        "--here", is_flag=True,
        help="Also the machine that this runs on: its kernel log, firmware map or /proc/iomem, "
        "whichever may be read.",
    )(function)  # fmt: skip


def wanted(inputs: Sequence[str], here: bool) -> tuple[str, ...]:
    """Return what a command is about that is given ``inputs``: without any, and without this
    machine, the machines of the package.
    """
    return tuple(inputs) if inputs or here else tuple(bundled_machines())


def machines(
    inputs: Sequence[str],
    boot: int | None,
    problems: list[InputError],
    *,
    here: bool = False,
) -> Iterator[Machine]:
    """Yield the machines, with ``here`` the one that this runs on first; what cannot be read is
    reported at once, and the others go on.
    """
    if here:
        try:
            machine, source = this_machine()
        except InputError as error:
            problems.append(error)
            complain(error)
        else:
            click.echo(f"{machine.name}: read from the {source}", err=True)
            yield machine
    for _, outcome in reading.machines(inputs, boot):
        if isinstance(outcome, InputError):
            problems.append(outcome)
            complain(outcome)
        else:
            yield outcome
