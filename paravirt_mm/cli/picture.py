"""``paravirt-mm picture``: a memory map or a chart as SVG or PNG."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click

from paravirt_mm.cli import scenarios
from paravirt_mm.cli.choosing import machines
from paravirt_mm.cli.output import complain, emit, expect_writable, progress
from paravirt_mm.errors import ExitCode, InputError
from paravirt_mm.machine.model import Machine
from paravirt_mm.registry import default_registry
from paravirt_mm.run import Outcome
from paravirt_mm.sources import bundled_machines
from paravirt_mm.view.palette import Theme
from paravirt_mm.view.survey import Subject, survey

MAP = "map"
CHARTS = ("difference", "guess", "flips", "low-memory", "hypercalls")
_NEEDS_TEXT = "use a name that ends in .svg or .png"


@click.command(epilog="Charts and PNG need the extra 'report' (in a checkout: make install).")
@click.argument("inputs", metavar="[LOG|MACHINE]...", nargs=-1)
@click.option(
    "-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path),
    help="Where the picture is written; the name ends in .svg or .png.",
)  # fmt: skip
@click.option(
    "-w", "--what", type=click.Choice([MAP, *CHARTS]), default=MAP, show_default=True,
    help="The memory map of one machine, or a chart of all.",
)  # fmt: skip
@scenarios.matrix
@click.option(
    "-t", "--theme", type=click.Choice(["light", "dark", "auto"]), default="light",
    show_default=True, help="Paper; auto follows the reader's system (SVG maps only).",
)  # fmt: skip
@click.option("--linear", is_flag=True, help="A linear axis; the default is logarithmic.")
@scenarios.options
def command(
    inputs: tuple[str, ...],
    output: Path,
    what: str,
    allocators: tuple[str, ...],
    backends: tuple[str, ...],
    theme: str,
    linear: bool,
    boot: int | None,
    observers: tuple[str, ...],
    time_limit: float,
    memory_limit: int,
    traceback: bool,
) -> int:
    """Draw where the tables of a machine lie, or a chart of many machines.

    \b
    paravirt-mm picture lenovo-x230-8g -o map.svg
    paravirt-mm picture -w difference -o difference.png
    """
    suffix = output.suffix.lower()
    if suffix not in {".svg", ".png"}:
        raise click.BadParameter(f"{output.name!r}: {_NEEDS_TEXT}", param_hint="--output")
    if theme == Theme.AUTO and (what != MAP or suffix != ".svg"):
        raise click.BadParameter("auto is for maps as SVG", param_hint="--theme")
    if what == MAP and len(inputs) != 1:
        raise click.BadParameter("a map is of one machine", param_hint="LOG|MACHINE")
    if what != MAP or suffix == ".png":
        from paravirt_mm.view.charts import require_extra

        require_extra()
    expect_writable(output)
    registry = default_registry()
    problems: list[InputError] = []
    names = inputs or tuple(bundled_machines())
    running = scenarios.Running.of(registry, observers, time_limit, memory_limit, traceback)
    found = machines(names, boot, problems)
    surveyed = survey(
        _only(found, names[0]) if what == MAP else found,
        allocators,
        backends,
        registry,
        running.each,
    )
    subjects = list(progress(surveyed, "running", len(names)))
    if not subjects:
        return ExitCode.BAD_INPUT
    rows = [each.row for one in subjects for each in one.exhibits]
    running.show_tracebacks(rows)
    _write(_drawn(subjects, what, Theme(theme), linear), output, png=suffix == ".png")
    failed = [row for row in rows if row.outcome is Outcome.ERROR]
    if failed:
        complain(f"not drawn: {failed[0].verdict}")
        return ExitCode.PLUGIN
    return ExitCode.BAD_INPUT if problems else ExitCode.OK


def _only(found: Iterable[Machine], source: str) -> Iterator[Machine]:
    """Yield the one machine of a map. Raises `InputError` at a second one."""
    for number, machine in enumerate(found):
        if number:
            raise InputError("holds several machines, and a map is of one", source)
        yield machine


def _drawn(subjects: Sequence[Subject], what: str, theme: Theme, linear: bool) -> str:
    if what == MAP:
        from paravirt_mm.view.memory_map import memory_map

        (subject,) = subjects
        scenes = [each.scene for each in subject.exhibits if each.scene.frames]
        return memory_map(subject.machine, scenes, theme=theme, linear=linear)
    from paravirt_mm.view.charts import drawings, svg

    for drawing in drawings(subjects):
        if drawing.name == what:
            return svg(drawing, theme)
    raise InputError(f"there is nothing to draw for {what!r} on these machines")


def _write(picture: str, output: Path, *, png: bool) -> None:
    if not png:
        emit(picture, output)
        return
    from paravirt_mm.view.charts import png as rendered

    data = rendered(picture)
    try:
        output.write_bytes(data)
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", str(output)) from error
