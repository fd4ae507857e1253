"""``paravirt-mm report``: everything that was compared, as one HTML page to look at."""

from __future__ import annotations

from pathlib import Path

import click

from paravirt_mm.cli import scenarios
from paravirt_mm.cli.choosing import here_option, machines, wanted
from paravirt_mm.cli.output import emit, expect_writable, progress
from paravirt_mm.counted import counted
from paravirt_mm.errors import ExitCode, InputError
from paravirt_mm.registry import default_registry
from paravirt_mm.run import Outcome


@click.command(epilog="Needs the extra 'report' (in a checkout: make install).")
@click.argument("inputs", metavar="[LOG|MACHINE]...", nargs=-1)
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), default=Path("report.html"),
    show_default=True, help="Where the page is written.",
)  # fmt: skip
@scenarios.matrix
@here_option
@scenarios.options
def command(
    inputs: tuple[str, ...],
    output: Path,
    allocators: tuple[str, ...],
    backends: tuple[str, ...],
    boot: int | None,
    here: bool,
    observers: tuple[str, ...],
    time_limit: float,
    memory_limit: int,
    traceback: bool,
) -> int:
    """Write a report to look at: one HTML file that loads nothing and works from a mail
    attachment.

    It shows where every table lands in memory and how that comes about step by step, figures beside
    a baseline, charts, verdicts, and where each machine comes from. Without LOG or MACHINE it is
    about the machines of the package.
    """
    expect_writable(output)  # before what takes half a second to import
    from paravirt_mm.view.charts import require_extra
    from paravirt_mm.view.page import page
    from paravirt_mm.view.survey import survey

    require_extra()
    registry = default_registry()
    problems: list[InputError] = []
    names = wanted(inputs, here)
    running = scenarios.Running.of(registry, observers, time_limit, memory_limit, traceback)
    found = survey(
        machines(names, boot, problems, here=here),
        allocators,
        backends,
        registry,
        running.each,
    )
    subjects = list(progress(found, "running", len(names) + here))
    running.show_tracebacks(each.row for one in subjects for each in one.exhibits)
    if not subjects:
        return ExitCode.BAD_INPUT
    emit(page(subjects, registry, problems), output)
    size = output.stat().st_size
    told = counted(len(subjects), "machine")
    left = f", {len(problems)} could not be read" if problems else ""
    click.echo(f"{output}: {told}, {size / 1e6:.2f} MB{left}", err=True)
    if any(each.row.outcome is Outcome.ERROR for one in subjects for each in one.exhibits):
        return ExitCode.PLUGIN
    return ExitCode.BAD_INPUT if problems else ExitCode.OK
