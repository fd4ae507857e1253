"""``paravirt-mm compare``: every allocator under every backend, machine by machine."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from paravirt_mm import offers
from paravirt_mm.cli.choosing import machines
from paravirt_mm.cli.output import emit, progress
from paravirt_mm.comparison import Row, compare
from paravirt_mm.errors import ExitCode, InputError
from paravirt_mm.measure.figures import FIGURES
from paravirt_mm.printable import printable
from paravirt_mm.registry import Registry, default_registry
from paravirt_mm.report.markup import no_formula, words
from paravirt_mm.report.tables import (
    machine_title,
    summary,
    tables,
    verification,
)
from paravirt_mm.run import Outcome
from paravirt_mm.sources import bundled_machines


def _json(rows: Sequence[Row]) -> str:
    return json.dumps([row.as_record() for row in rows], indent=1)


def _csv(rows: Sequence[Row]) -> str:
    extra = [name for row in rows for name in row.figures if name not in FIGURES]
    fields = ["machine", "allocator", "backend", "outcome", "verdict", "verified", *FIGURES]
    fields += dict.fromkeys(extra)
    out = io.StringIO()
    writer = csv.DictWriter(out, fields, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = row.as_record().items()
        writer.writerow({k: no_formula(v) if isinstance(v, str) else v for k, v in cells})
    return out.getvalue().rstrip("\n")


_DATA_FORMATS: dict[str, Callable[[Sequence[Row]], str]] = {"json": _json, "csv": _csv}


def _writer(style: str, registry: Registry) -> Callable[[Sequence[Row]], str] | None:
    """Return what writes a data format, ours or a plugin's; None: it is a style of tables."""
    from tabulate import tabulate_formats

    if style in _DATA_FORMATS or style in tabulate_formats:
        return _DATA_FORMATS.get(style)
    brought = offers.formats(registry)
    if style in brought:
        return lambda rows: brought[style]([row.as_record() for row in rows])
    known = ", ".join([*_DATA_FORMATS, *brought, *tabulate_formats])
    raise click.BadParameter(f"{style!r}; there are: {known}", param_hint="--format")


@click.command(epilog="Columns are explained by `paravirt-mm figures`.")
@click.argument("inputs", metavar="[LOG|MACHINE]...", nargs=-1)
@click.option(
    "-a", "--allocator", "allocators", multiple=True, metavar="SPEC",
    help="Allocator, with options: legacy_linear:kernel=3.6. May be repeated. "
    "[default: what the installed plugins offer]",
)  # fmt: skip
@click.option(
    "-b", "--backend", "backends", multiple=True, metavar="SPEC",
    help="Backend, with options. May be repeated. [default: what the installed plugins offer]",
)  # fmt: skip
@click.option("-w", "--wide", is_flag=True, help="Show every figure, one table a group.")
@click.option(
    "-f", "--format", "style", default="simple", show_default=True, metavar="FORMAT",
    help="Any tabulate format (github, grid, html, latex, rst, tsv ...), json or csv.",
)  # fmt: skip
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to a file."
)
@click.option(
    "--boot", type=click.IntRange(1), help="Which boot of a log with several. [default: 1]"
)
@click.option(
    "--fail-on", multiple=True,
    type=click.Choice([str(outcome) for outcome in Outcome if outcome is not Outcome.OK]),
    default=("violation", "error"), show_default=True,
    help="Verdicts that make the exit code 1 (4 for error). May be repeated.",
)  # fmt: skip
def command(
    inputs: tuple[str, ...],
    allocators: tuple[str, ...],
    backends: tuple[str, ...],
    wide: bool,
    style: str,
    output: Path | None,
    boot: int | None,
    fail_on: tuple[str, ...],
) -> int:
    """Compare allocators under several platforms on real machines.

    LOG is a boot log (dmesg, journal), a copy of /proc/iomem or /sys/firmware/memmap, a Xen log, a
    machine file, a folder or an archive of these, or - for standard input. MACHINE is a name from
    `paravirt-mm machines`; without any, all of those are compared.
    """
    registry = default_registry()
    write = _writer(style, registry)
    problems: list[InputError] = []
    names = inputs or bundled_machines()
    groups = compare(machines(names, boot, registry, problems), allocators, backends, registry)
    results = list(progress(groups, "comparing", len(names)))
    rows = [row for group in results for row in group]
    if write is not None:
        emit(write(rows), output)
    elif rows:
        emit(_text(results, style, wide), output)
    return _exit(rows, problems, fail_on)


def _text(results: list[list[Row]], style: str, wide: bool) -> str:
    parts: list[str] = []
    for rows in results:
        machine = rows[0].machine
        title = words(f"{printable(machine.name)}\n{machine_title(machine)}", style)
        parts.append(f"{title}\n\n{tables(rows, style, wide)}")
    everything = [row for rows in results for row in rows]
    if len(results) > 1:
        title = words(f"All {len(results)} machines", style)
        parts.append(f"{title}\n\n{summary(everything, style)}")
    parts.append(words(verification(everything), style))
    return "\n\n\n".join(parts)


def _exit(rows: list[Row], problems: list[InputError], fail_on: Sequence[str]) -> ExitCode:
    outcomes = {str(row.outcome) for row in rows}
    if "error" in outcomes and "error" in fail_on:
        return ExitCode.PLUGIN
    if problems:
        return ExitCode.BAD_INPUT
    return ExitCode.FINDINGS if outcomes & set(fail_on) else ExitCode.OK
