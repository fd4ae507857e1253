"""``paravirt-mm compare``: every allocator under every backend, machine by machine."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from paravirt_mm.cli import reading
from paravirt_mm.cli.output import complain, emit, progress
from paravirt_mm.comparison import DEFAULT_ALLOCATORS, DEFAULT_BACKENDS, Row, compare
from paravirt_mm.errors import ExitCode, InputError
from paravirt_mm.machine.model import Machine
from paravirt_mm.measure.figures import FIGURES
from paravirt_mm.printable import printable
from paravirt_mm.registry import Registry
from paravirt_mm.report.markup import no_formula, words
from paravirt_mm.report.tables import (
    machine_title,
    summary,
    tables,
    verification,
)
from paravirt_mm.run import Outcome
from paravirt_mm.scenario import default_registry
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


def _formats(registry: Registry) -> dict[str, Callable[[Sequence[Row]], str]]:
    """Data formats: ours, and those that plugins bring."""
    found = dict(_DATA_FORMATS)
    for formats in registry.ask("pvmm_report_formats"):
        for name, write in formats.items():
            found.setdefault(name, partial(_plugin_format, write))
    return found


def _plugin_format(write: Callable[[list[dict[str, Any]]], str], rows: Sequence[Row]) -> str:
    return write([row.as_record() for row in rows])


def _machines(
    inputs: Sequence[str], boot: int | None, registry: Registry, problems: list[InputError]
) -> Iterator[Machine]:
    """Yield the machines; what cannot be read is reported at once, and the others go on."""
    provided: dict[str, Machine] = {}
    for machines in registry.ask("pvmm_machines"):
        provided |= {machine.name: machine for machine in machines}
    yield from (provided[name] for name in inputs if name in provided)
    rest = [name for name in inputs if name not in provided]
    for _, outcome in reading.machines(rest, boot):
        if isinstance(outcome, InputError):
            problems.append(outcome)
            complain(outcome)
        else:
            yield outcome


@click.command(epilog="Columns are explained by `paravirt-mm figures`.")
@click.argument("inputs", metavar="[LOG|MACHINE]...", nargs=-1)
@click.option(
    "-a", "--allocator", "allocators", multiple=True, metavar="SPEC",
    help="Allocator, with options: legacy_linear:kernel=3.6. May be repeated. "
    "[default: " + ", ".join(DEFAULT_ALLOCATORS) + "]",
)  # fmt: skip
@click.option(
    "-b", "--backend", "backends", multiple=True, metavar="SPEC",
    help="Backend: native, xen. May be repeated. [default: both]",
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
    """Compare allocators under native and Xen on real machines.

    LOG is a boot log (dmesg, journal), a copy of /proc/iomem or /sys/firmware/memmap, a Xen log, a
    machine file, a folder or an archive of these, or - for standard input. MACHINE is a name from
    `paravirt-mm machines`; without any, all of those are compared.
    """
    registry = default_registry()
    for broken in registry.broken:
        origin = f"{broken.distribution} {broken.version}".strip()
        click.echo(
            f"paravirt-mm: plugin {broken.name} ({origin}) is left out: {broken.problem}", err=True
        )
    formats = _formats(registry)
    _check_format(style, formats)
    problems: list[InputError] = []
    machines: dict[str, Machine] = {}

    def remembered() -> Iterator[Machine]:
        names = inputs or bundled_machines()
        for machine in _machines(names, boot, registry, problems):
            machines[machine.name] = machine
            yield machine

    groups = compare(
        remembered(), allocators or DEFAULT_ALLOCATORS, backends or DEFAULT_BACKENDS, registry
    )
    total = len(inputs or bundled_machines())
    results = list(progress(groups, "comparing", total))
    rows = [row for group in results for row in group]
    if style in formats:
        emit(formats[style](rows), output)
    elif rows:
        emit(_text(results, machines, style, wide), output)
    return _exit(rows, problems, fail_on, bool(registry.broken))


def _check_format(style: str, formats: dict[str, Any]) -> None:
    from tabulate import tabulate_formats

    if style not in formats and style not in tabulate_formats:
        known = ", ".join([*formats, *tabulate_formats])
        raise click.BadParameter(f"{style!r}; there are: {known}", param_hint="--format")


def _text(results: list[list[Row]], machines: dict[str, Machine], style: str, wide: bool) -> str:
    parts: list[str] = []
    for rows in results:
        machine = machines[rows[0].machine]
        title = words(f"{printable(machine.name)}\n{machine_title(machine)}", style)
        parts.append(f"{title}\n\n{tables(rows, style, wide)}")
    everything = [row for rows in results for row in rows]
    if len(results) > 1:
        title = words(f"All {len(results)} machines", style)
        parts.append(f"{title}\n\n{summary(everything, style)}")
    parts.append(words(verification(everything), style))
    return "\n\n\n".join(parts)


def _exit(
    rows: list[Row], problems: list[InputError], fail_on: Sequence[str], broken: bool
) -> ExitCode:
    outcomes = {str(row.outcome) for row in rows}
    if broken or ("error" in outcomes and "error" in fail_on):
        return ExitCode.PLUGIN
    if problems:
        return ExitCode.BAD_INPUT
    return ExitCode.FINDINGS if outcomes & set(fail_on) else ExitCode.OK
