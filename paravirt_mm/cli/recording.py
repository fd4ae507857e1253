"""The option of the commands that write how far a model is verified."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from paravirt_mm.evidence import EVIDENCE_FILE


def record_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option ``--record`` to a command that verifies a model: ``record_to`` is a path, that
    of the package's own file where none is given.
    """
    return click.option(
        "--record", "record_to", is_flag=False, flag_value=str(EVIDENCE_FILE), metavar="[FILE]",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Write how far each model is verified now, for `compare` to show.",
    )(function)  # fmt: skip
