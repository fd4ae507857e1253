"""What this program writes on: how wide the terminal is, and whether its reader wants colours.

Colours follow https://no-color.org: a terminal gets them unless NO_COLOR is set to anything, or
``--color`` decides.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from paravirt_mm.cli.output import emit, terminal, write_vouched
from paravirt_mm.report.paper import PLAIN, Paper

NARROWEST, WIDEST = 40, 200


def color_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option ``--color`` to a command."""
    return click.option(
        "--color", type=click.Choice(["auto", "always", "never"]), default="auto",
        show_default=True, help="Colours: auto means on a terminal, unless NO_COLOR is set.",
    )(function)  # fmt: skip


def paper(color: str = "auto", output: Path | None = None) -> Paper:
    """Return what standard output is: a terminal of some width, or a file or pipe, whose text is
    the same whatever surrounds it.
    """
    if output is not None:
        return PLAIN
    stream = terminal()
    shown = stream.isatty()
    columns = shutil.get_terminal_size((PLAIN.width, 24)).columns if shown else PLAIN.width
    wished = color == "always" or (
        color == "auto"
        and shown
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM") != "dumb"
    )
    encoding = (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "")
    return Paper(
        width=min(max(columns, NARROWEST), WIDEST),
        colour=wished,
        drawn=encoding.startswith("utf"),
    )


def write(text: str, on: Paper, output: Path | None = None) -> None:
    """Write text that its author made printable; its colours pass the gate of `streams`."""
    if output is None and on.colour:
        write_vouched(text + "\n")
    else:
        emit(text, output)
