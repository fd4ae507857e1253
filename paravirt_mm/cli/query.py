"""``paravirt-mm query``: ask a sweep's file."""

from __future__ import annotations

import json
from pathlib import Path

import click
from tabulate import tabulate_formats

from paravirt_mm.cli import reading
from paravirt_mm.cli.output import complain, emit
from paravirt_mm.errors import ExitCode
from paravirt_mm.printable import printable
from paravirt_mm.report.markup import tabulated
from paravirt_mm.report.values import size as short
from paravirt_mm.sweep.questions import (
    BELOW,
    GROUPS,
    MAX_ROWS,
    QUESTIONS,
    SIZES,
    QueryResult,
    ask,
    select,
)

_LIST = "\n".join(f"  {name:<12} {question.asks}" for name, question in QUESTIONS.items())


@click.command(epilog=f"\b\nQuestions:\n{_LIST}")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("question", type=click.Choice(list(QUESTIONS)), default="outcomes")
@click.option(
    "--by", type=click.Choice(list(GROUPS)), help="Divide the answer by size of RAM, holes or mode."
)
@click.option(
    "--size", type=click.Choice(SIZES, case_sensitive=False), default="512M", show_default=True,
    help="Of the crash kernel.",
)  # fmt: skip
@click.option(
    "--below", type=click.Choice(BELOW, case_sensitive=False), default="4G", show_default=True,
    help="Where the crash kernel must fit.",
)  # fmt: skip
@click.option(
    "--sql", metavar="SELECT",
    help="Ask in DuckDB's SQL instead; question `columns` tells what there is.",
)  # fmt: skip
@click.option(
    "-f", "--format", "style", default="simple", show_default=True, metavar="FORMAT",
    type=click.Choice(["json", *tabulate_formats]), help="json, or any tabulate format.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to a file."
)
def command(
    file: Path,
    question: str,
    by: str | None,
    size: str,
    below: str,
    sql: str | None,
    style: str,
    as_json: bool,
    output: Path | None,
) -> int:
    """Ask FILE, the result of `paravirt-mm sweep`, a question.

    FILE is only read. A sweep that is still going on has it to itself: wait, or stop it.
    """
    if sql:
        answer = reading.reading(select, file, sql)
    else:
        answer = reading.reading(ask, file, question, by, size, below)
    text = _json(answer) if as_json or style == "json" else _table(answer, style)
    emit(text, output)
    if answer.cut:
        complain(f"only the first {MAX_ROWS} rows are shown")
    return ExitCode.OK


def _json(answer: QueryResult) -> str:
    return json.dumps(answer.records(), indent=1, default=str)


def _table(answer: QueryResult, style: str) -> str:
    rows = [
        [_cell(title, value) for title, value in zip(answer.titles, row, strict=True)]
        for row in answer.rows
    ]
    numbers = [
        any(isinstance(row[column], int | float) for row in answer.rows)
        for column in range(len(answer.titles))
    ]
    align = ["right" if number else "left" for number in numbers]
    titles = [printable(title) for title in answer.titles]
    return tabulated(rows, titles, style, align)


def _cell(title: str, value: object) -> str:
    if value is None:
        return "-"
    if title == "ram_bytes" and isinstance(value, int):
        return short(value)
    return printable(f"{value:.4g}" if isinstance(value, float) else str(value))
