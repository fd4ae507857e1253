"""``paravirt-mm verify log``: what a kernel printed about its mappings, against the model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import attrs
import click

from paravirt_mm.cli import reading
from paravirt_mm.cli.output import complain, progress
from paravirt_mm.cli.recording import record_option
from paravirt_mm.counted import counted
from paravirt_mm.errors import ExitCode, InputError
from paravirt_mm.evidence import Evidence, record_evidence
from paravirt_mm.printable import printable
from paravirt_mm.registry import default_registry
from paravirt_mm.sources import read_boot_log
from paravirt_mm.sources.bootlog.lines import LineVerdict, LogLine
from paravirt_mm.sources.load import files_below
from paravirt_mm.verify.log.check import check_log
from paravirt_mm.verify.log.report import LogReport, summary, with_reason
from paravirt_mm.verify.log.variants import all_series


@click.command(
    "log",
    epilog="Each line shows its number in the log. = printed as predicted, - printed, + predicted,"
    " ? cannot be checked.",
)
@click.argument("files", metavar="FILE|FOLDER...", nargs=-1, required=True)
@click.option(
    "--kernel", metavar="RELEASE", help="Model this release, whatever the log says: 3.2, 5.4.17."
)
@click.option(
    "--boot", type=click.IntRange(1), help="Which boot of a log with several. [default: 1]"
)
@click.option(
    "-v", "--verbose", is_flag=True,
    help="Show every line; with several files only those that differ are shown otherwise.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print every line's result as JSON.")
@record_option
def command(
    files: tuple[str, ...],
    kernel: str | None,
    boot: int | None,
    verbose: bool,
    as_json: bool,
    record_to: Path | None,
) -> ExitCode:
    """Predict what a kernel printed about its direct map, and compare line by line.

    FILE is a boot log (dmesg, journal, serial console, plain or compressed, - for standard input);
    of a FOLDER each file is taken.
    Its release says which allocator is modelled; what a release leaves open (configuration, stable
    patches) is tried, and the answer names the choice under which the log agrees.

    Exit code 0: no line differs, or the reason why the log cannot match is documented.
    """
    registry = default_registry()
    reports: list[LogReport] = []
    problems: list[InputError] = []
    paths: list[str] = []
    for name in files:
        try:
            paths += _files(name)
        except InputError as error:
            problems.append(error)
            complain(error)
    for path in progress(paths, "predicting", len(paths)):
        try:
            report = check_log(reading.reading(read_boot_log, path, boot), kernel, registry)
            reports.append(with_reason(report, path))
        except InputError as error:
            problems.append(error)
            complain(error)
    if as_json:
        click.echo(json.dumps([_as_json(report) for report in reports], indent=1))
    elif reports:
        click.echo(_text(reports, verbose or len(paths) == 1))
    if record_to is not None:
        record_evidence(record_to, "logs", _evidence(reports))
    if problems:
        return ExitCode.BAD_INPUT
    good = all(report.agrees or report.reason for report in reports)
    return ExitCode.OK if good else ExitCode.FINDINGS


def _files(name: str) -> list[str]:
    """Return the files that a name stands for: itself, or what is in the folder."""
    if name == "-" or not Path(name).is_dir():
        return [name]
    found = [str(path) for path in files_below(Path(name), printable(name))]
    if not found:
        raise InputError("there is no file in this folder", printable(name))
    return found


def _as_json(report: LogReport) -> dict[str, object]:
    counts = {str(verdict): report.count(verdict) for verdict in LineVerdict}
    return {**attrs.asdict(report), "agrees": report.agrees, "counts": counts}


def _text(reports: Sequence[LogReport], everything: bool) -> str:
    blocks = ["\n".join(_report(report, everything)) for report in reports]
    if len(reports) > 1:
        counts = summary(reports)
        matching = counted(counts[LineVerdict.MATCH], "line", "match")
        blocks.append(
            f"{counted(counts['logs'], 'log')}: {matching},"
            f" {counts[LineVerdict.DIFFERS]} differ,"
            f" {counts[LineVerdict.UNCHECKED]} cannot be checked;"
            f" {counted(counts['disagreeing'], 'log', 'disagree')},"
            f" {counts['explained']} with a documented reason,"
            f" {counts['nothing to check']} with nothing to check"
        )
    return "\n".join(blocks)


def _report(report: LogReport, everything: bool) -> Iterator[str]:
    named = f"Linux {report.release}" if report.release else "release not in the log"
    yield f"{report.source}: {', '.join(filter(None, (named, report.mode)))}"
    if report.nothing:
        yield f"  {report.nothing}"
        return
    if report.spec:
        yield f"  {report.spec} under {report.backend}"
    if report.also:
        yield f"  as well: {', '.join(_runs_of_series(report.also))}"
    for words in report.variant:
        yield f"  agrees for: {words}" if report.agrees else f"  nearest for: {words}"
    for line in report.lines:
        if everything or line.verdict is LineVerdict.DIFFERS:
            yield from _line(line)
    counts = (
        counted(report.count(LineVerdict.MATCH), "line", "match"),
        f"{report.count(LineVerdict.DIFFERS)} differ",
        f"{report.count(LineVerdict.UNCHECKED)} cannot be checked",
    )
    yield f"  {', '.join(counts)}"
    if report.reason:
        yield f"  reason: {report.reason}"


def _line(line: LogLine) -> Iterator[str]:
    number = f"{line.number or '':>6}"
    if line.verdict is LineVerdict.MATCH:
        yield f"{number} = {line.printed}"
    elif line.verdict is LineVerdict.UNCHECKED:
        yield f"{number} ? {line.printed}    ({line.why})"
    else:
        why = f"    ({line.why})" if line.why else ""
        if line.printed is not None:
            yield f"{number} - {line.printed}{why}"
        if line.predicted is not None:
            yield f"{'':>6} + {line.predicted.strip()}"


def _runs_of_series(series: Sequence[str]) -> Iterator[str]:
    """Yield neighbouring series together: 3.10-3.18."""
    order = {name: number for number, name in enumerate(all_series())}
    numbered = enumerate(sorted(series, key=order.__getitem__))
    for _, run in groupby(numbered, lambda item: order[item[1]] - item[0]):
        names = [name for _, name in run]
        yield names[0] if len(names) == 1 else f"{names[0]}-{names[-1]}"


def _evidence(reports: Iterable[LogReport]) -> Iterator[Evidence]:
    """Logs that name their release and show what the allocator did speak for its model."""
    for report in reports:
        if report.spec and report.release and not report.reason:
            yield Evidence(report.spec, int(report.agrees), 1)
