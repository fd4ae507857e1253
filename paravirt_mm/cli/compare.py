"""``paravirt-mm compare``: every allocator under every backend, machine by machine."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click

from paravirt_mm import offers
from paravirt_mm.cli import scenarios, screen
from paravirt_mm.cli.choosing import here_option, machines, wanted
from paravirt_mm.cli.output import emit, expect_writable, progress
from paravirt_mm.cli.screen import color_option, paper
from paravirt_mm.cli.types import CrashKernels
from paravirt_mm.comparison import Row, compare
from paravirt_mm.counted import all_of, counted
from paravirt_mm.errors import ExitCode, InputError
from paravirt_mm.machine.model import Machine
from paravirt_mm.measure.figures import FIGURES
from paravirt_mm.printable import printable
from paravirt_mm.registry import Registry, default_registry
from paravirt_mm.report.crashkernels import as_columns, crashkernels
from paravirt_mm.report.markup import no_formula, words
from paravirt_mm.report.paper import PLAIN, Paper
from paravirt_mm.report.summary import summary_table
from paravirt_mm.report.tables import (
    assumptions,
    figure_tables,
    machine_title,
    verification,
)
from paravirt_mm.run import Outcome
from paravirt_mm.view.scene import outline
from paravirt_mm.view.sentences import sentences
from paravirt_mm.view.strip import ruler, strip, strip_legend
from paravirt_mm.view.survey import Exhibit, Subject, short, survey, totals

TERMINAL = "simple"
"""The format of tables that is for terminals, and takes their width and colours."""


def _json(rows: Sequence[Row]) -> str:
    return json.dumps([row.as_record() for row in rows], indent=1)


def _csv(rows: Sequence[Row]) -> str:
    extra = [name for row in rows for name in row.figures if name not in FIGURES]
    fields = ["machine", "allocator", "backend", "outcome", "verdict", "verified", *FIGURES]
    fields += dict.fromkeys(extra)
    fields += dict.fromkeys(name for row in rows for name, _ in as_columns(row.crashkernels))
    out = io.StringIO()
    # A traceback is no cell: JSON has it.
    writer = csv.DictWriter(out, fields, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = [*row.as_record().items(), *as_columns(row.crashkernels)]
        writer.writerow({k: no_formula(v) if isinstance(v, str) else v for k, v in cells})
    return out.getvalue().rstrip("\n")


_DATA_FORMATS: dict[str, Callable[[Sequence[Row]], str]] = {"json": _json, "csv": _csv}


def _writer(style: str, registry: Registry) -> Callable[[Sequence[Row]], str] | None:
    """Return what writes a data format, ours or a plugin's; None: it is a style of tables."""
    if style in _DATA_FORMATS:
        return _DATA_FORMATS[style]
    from tabulate import tabulate_formats

    if style in tabulate_formats:
        return None
    brought = offers.formats(registry)
    if style in brought:
        return lambda rows: brought[style]([row.as_record() for row in rows])
    known = ", ".join([*_DATA_FORMATS, *brought, *tabulate_formats])
    raise click.BadParameter(f"{style!r}; there are: {known}", param_hint="--format")


@click.command(epilog="Columns are explained by `paravirt-mm figures`.")
@click.argument("inputs", metavar="[LOG|MACHINE]...", nargs=-1)
@scenarios.matrix
@click.option("-w", "--wide", is_flag=True, help="Show every figure, one table a group.")
@click.option(
    "-f", "--format", "style", default=TERMINAL, show_default=True, metavar="FORMAT",
    help="Any tabulate format (github, grid, html, latex, rst, tsv ...), json or csv.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to a file."
)
@click.option(
    "--fail-on", multiple=True,
    type=click.Choice([str(outcome) for outcome in Outcome if outcome is not Outcome.OK]),
    default=("violation", "error"), show_default=True,
    help="Verdicts that make the exit code 1 (4 for error). May be repeated.",
)  # fmt: skip
@click.option(
    "--crashkernel", "asked", metavar="N[@Y],...", type=CrashKernels(), default=(),
    help="Ask about crash kernels: where does N fit, does N fit at Y (512M,1G@4G)?",
)  # fmt: skip
@click.option("--each", is_flag=True, help="Show the table of each of many machines.")
@color_option
@here_option
@scenarios.options
def command(
    inputs: tuple[str, ...],
    allocators: tuple[str, ...],
    backends: tuple[str, ...],
    wide: bool,
    style: str,
    as_json: bool,
    output: Path | None,
    boot: int | None,
    here: bool,
    fail_on: tuple[str, ...],
    asked: tuple[str, ...],
    each: bool,
    color: str,
    observers: tuple[str, ...],
    time_limit: float,
    memory_limit: int,
    traceback: bool,
) -> int:
    """Compare allocators under several platforms on real machines.

    LOG is a boot log (dmesg, journal), a copy of /proc/iomem or /sys/firmware/memmap, a Xen log, a
    machine file, a folder or an archive of these, or - for standard input. MACHINE is a name from
    `paravirt-mm machines`; without any, all of those are compared.
    """
    expect_writable(output)
    registry = default_registry()
    write = _writer("json" if as_json else style, registry)
    problems: list[InputError] = []
    names = wanted(inputs, here)
    count = len(names) + here
    running = scenarios.Running.of(registry, observers, time_limit, memory_limit, traceback)
    found = machines(names, boot, problems, here=here)
    if write is not None:
        groups = compare(found, allocators, backends, registry, running.each, asked)
        rows = [row for group in progress(groups, "comparing", count) for row in group]
        running.show_tracebacks(rows)
        emit(write(rows), output)
        return _exit(rows, problems, fail_on)
    sizes = asked or ASKED
    surveyed = survey(found, allocators, backends, registry, running.each, sizes, look=outline)
    subjects = list(progress(surveyed, "comparing", count))
    rows = [exhibit.row for subject in subjects for exhibit in subject.exhibits]
    running.show_tracebacks(rows)
    if rows:
        on = paper(color, output) if style == TERMINAL else PLAIN
        screen.write("\n\n".join(_text(subjects, style, wide, each, bool(asked), on)), on, output)
    return _exit(rows, problems, fail_on)


ASKED = ("256M",)
"""The crash kernel that is asked about where the user asks for none."""
MANY = 3
"""Machines beyond which the table of each is shown only on demand."""
MAX_ENDS = 20
"""Verdicts that are told below a summary."""


def _text(
    subjects: Sequence[Subject], style: str, wide: bool, each: bool, asked: bool, on: Paper
) -> Iterator[str]:
    """Yield the parts of the text: of several machines the sums first, and where crash kernels fit
    if that was ``asked``.
    """
    everything = [exhibit.row for subject in subjects for exhibit in subject.exhibits]
    many = len(subjects) > MANY
    if len(subjects) > 1:
        title = words(on.strong(all_of(len(subjects), "machine").capitalize()), style)
        yield f"{title}\n\n{summary_table(everything, style, on)}"
        said = (
            textwrap.fill(str(one), on.width, subsequent_indent="  ")
            for one in sentences(totals(subjects))
        )
        yield words("\n".join(said), style)
        if asked:
            yield crashkernels(everything, style, on)
    if each or not many:
        yield from (_machine(subject, style, wide, on) for subject in subjects)
    elif any(row.outcome is not Outcome.OK for row in everything):
        yield words("\n".join(_ends(subjects, on)), style)
    yield words(verification(everything, on), style)
    if many and not each:
        unsure = sum(bool(subject.machine.provenance.assumed) for subject in subjects)
        about = f", and what was assumed about {unsure} of them" if unsure else ""
        text = f"{counted(len(subjects), 'machine')}: --each shows the table of each{about}."
        yield words(textwrap.fill(text, on.width, subsequent_indent="  "), style)


def _machine(subject: Subject, style: str, wide: bool, on: Paper) -> str:
    """Return the part about one machine: its title, its table, and where its tables lie."""
    machine = subject.machine
    title = "\n".join(
        textwrap.fill(line, on.width, subsequent_indent="  ")
        for line in machine_title(machine).split("\n")
    )
    rows = [exhibit.row for exhibit in subject.exhibits]
    parts = [
        words(f"{on.strong(printable(machine.name))}\n{title}", style),
        figure_tables(rows, style, wide, on),
        crashkernels(rows, style, on),
    ]
    shown = [exhibit for exhibit in subject.exhibits if exhibit.scene.frames]
    if style == TERMINAL and any(exhibit.ok for exhibit in shown):
        parts.append("\n".join(_strips(machine, shown, on)))
    if assumed := assumptions(machine, on):
        parts.append(words(assumed, style))
    return "\n\n".join(parts)


def _strips(machine: Machine, exhibits: Sequence[Exhibit], on: Paper) -> Iterator[str]:
    """Yield memory in one line a scenario, and what the marks mean. Where there is no room beside
    them the names stand above.
    """
    names = [f"{short(one.row.allocator)}/{short(one.row.backend)}" for one in exhibits]
    room = max(map(len, names)) + 2
    above = room > on.width // 3
    width = on.width - (0 if above else room)
    title = "memory, logarithmic"
    scale = ruler(machine, width).rstrip()
    yield f"{title}\n{scale}" if above else f"{title:<{room}}{scale}"
    for name, one in zip(names, exhibits, strict=True):
        line = strip(machine, one.scene, width, drawn=on.drawn).rstrip()
        yield f"{name[: on.width]}\n{line}" if above else f"{name:<{room}}{line}"
    yield textwrap.fill(strip_legend(drawn=on.drawn), on.width)


def _ends(subjects: Sequence[Subject], on: Paper) -> Iterator[str]:
    """Yield how runs ended that are not ok: a line a machine and end, a limited number of them."""
    ends: dict[tuple[str, str], list[str]] = {}
    for subject in subjects:
        for one in subject.exhibits:
            if not one.ok:
                key = printable(subject.machine.name, 60), printable(one.row.verdict, 300)
                who = f"{short(one.row.allocator)}/{short(one.row.backend)}"
                ends.setdefault(key, []).append(who)
    for (name, verdict), pairs in list(ends.items())[:MAX_ENDS]:
        text = f"{name}: {verdict} ({', '.join(pairs)})"
        yield textwrap.fill(text, on.width, subsequent_indent="  ")
    if len(ends) > MAX_ENDS:
        yield f"and {len(ends) - MAX_ENDS} more ends like these"


def _exit(rows: list[Row], problems: list[InputError], fail_on: Sequence[str]) -> ExitCode:
    outcomes = {str(row.outcome) for row in rows}
    if "error" in outcomes and "error" in fail_on:
        return ExitCode.PLUGIN
    if problems:
        return ExitCode.BAD_INPUT
    return ExitCode.FINDINGS if outcomes & set(fail_on) else ExitCode.OK
