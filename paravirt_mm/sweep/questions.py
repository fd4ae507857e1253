"""The questions that people have of a sweep, as SQL.

Each is one SELECT on the view ``runs`` (or on a table); ``{by}`` stands for the column that the
answer is divided by, with a comma after it, ``{fits}`` for the one that tells whether the crash
kernel that was asked about fits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from paravirt_mm.errors import InputError, SpecError
from paravirt_mm.printable import printable
from paravirt_mm.sweep.store import columns_of, connect

GROUPS = {"size": "size_class", "holes": "holes_class", "mode": "mode"}
"""What an answer can be divided by, and the column of ``runs`` for it."""
SIZES, BELOW = ("128M", "256M", "512M"), ("896M", "4G")
MAX_ROWS = 100_000
"""An answer is cut here: more is a matter for DuckDB itself."""


@attrs.frozen
class Question:
    """A question: what it asks, its SQL, and the SQL that is used where the answer is divided."""

    asks: str
    sql: str
    divided: str = ""


@attrs.frozen
class QueryResult:
    """A table: titles, rows, and whether it was cut."""

    titles: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    cut: bool = False

    def records(self) -> list[dict[str, Any]]:
        """Return the rows as mappings."""
        return [dict(zip(self.titles, row, strict=True)) for row in self.rows]


QUESTIONS = {
    "outcomes": Question(
        "How did the scenarios end?",
        "SELECT {by} allocator, backend, outcome, count(*) AS runs FROM runs "
        "GROUP BY ALL ORDER BY ALL",
    ),
    "panics": Question(
        "On which machines does an allocator panic?",
        "SELECT allocator, backend, machine, mode, ram_bytes, verdict, overrun, source FROM runs "
        "WHERE outcome = 'panic' ORDER BY ALL",
        "SELECT {by} allocator, backend, count(*) FILTER (outcome = 'panic') AS panics, "
        "count(*) AS runs, round(100 * panics / count(*), 2) AS percent FROM runs "
        "WHERE ram_bytes IS NOT NULL GROUP BY ALL ORDER BY percent DESC, allocator, backend",
    ),
    "waste": Question(
        "Which release's guess wastes most?",
        "SELECT {by} allocator, backend, count(*) AS runs, "
        "round(100 * sum(waste) / sum(reserved), 2) AS percent_of_all_pages, "
        "round(median(waste_percent), 2) AS median_percent, max(waste) AS most_pages, "
        "arg_max(machine, waste) AS most_on FROM runs "
        "WHERE outcome = 'ok' AND reserved > 0 GROUP BY ALL "
        "ORDER BY percent_of_all_pages DESC, allocator, backend",
    ),
    "crashkernel": Question(
        "Does a crash kernel still fit when the tables are built?",
        "SELECT {by} allocator, backend, count(*) FILTER ({fits}) AS fits, "
        "count(*) FILTER (NOT {fits}) AS does_not, "
        "round(100 * does_not / count(*), 2) AS percent_not, "
        "min(machine) FILTER (NOT {fits}) AS for_example FROM runs "
        "WHERE outcome = 'ok' GROUP BY ALL ORDER BY percent_not DESC, allocator, backend",
    ),
    "flips": Question(
        "How are flips per table distributed?",
        "SELECT {by} allocator, backend, count(*) AS runs, min(flips_per_table) AS least, "
        "quantile_cont(flips_per_table, 0.25) AS quarter, median(flips_per_table) AS median, "
        "quantile_cont(flips_per_table, 0.75) AS three_quarters, "
        "quantile_cont(flips_per_table, 0.99) AS p99, max(flips_per_table) AS most, "
        "arg_max(machine, flips_per_table) AS most_on FROM runs "
        "WHERE outcome = 'ok' AND tables > 0 GROUP BY ALL ORDER BY most DESC, allocator, backend",
    ),
    "errors": Question(
        "What could not be read, failed, or was stopped?",
        "SELECT outcome, verdict, count(*) AS runs, min(source) AS for_example FROM runs "
        "WHERE outcome IN ('error', 'limit', 'unreadable', 'violation') "
        "GROUP BY ALL ORDER BY runs DESC, verdict",
        "SELECT {by} outcome, count(*) AS runs FROM runs "
        "WHERE outcome IN ('error', 'limit', 'unreadable', 'violation') GROUP BY ALL ORDER BY ALL",
    ),
    "sweep": Question(
        "With which versions, settings and plugins was this made, and is it complete?",
        "SELECT key, value FROM sweep UNION ALL "
        "SELECT 'plugin ' || name, distribution || ' ' || version FROM plugins ORDER BY ALL",
    ),
    "columns": Question("Which columns are there for --sql, and what do they mean?", ""),
}


def ask(
    path: Path, question: str, by: str | None = None, size: str = "512M", below: str = "4G"
) -> QueryResult:
    """Answer one of `QUESTIONS` from a sweep's file.

    Raises SpecError for a question or a division that there is not, InputError for a bad file.
    """
    asked = QUESTIONS.get(question)
    if asked is None:
        raise SpecError(f"no question {question!r} (there are: {', '.join(QUESTIONS)})")
    if by and "{by}" not in asked.sql + asked.divided:
        raise SpecError(f"the answer to {question!r} cannot be divided")
    if question == "columns":
        with connect(path, read_only=True) as connection:
            titles = ("table", "column", "type", "meaning")
            return QueryResult(titles, tuple(columns_of(connection)))
    sql = asked.divided if by and asked.divided else asked.sql
    fits = f"crashkernel_{size.lower()}_below_{below.lower()}"
    try:
        return select(path, sql.format(by=f"{GROUPS[by]}," if by else "", fits=fits))
    except SpecError as error:
        # Our own SQL is right: the file has not the tables that it should have.
        raise InputError(f"holds no complete sweep of this version; {error}", str(path)) from None


def select(path: Path, sql: str) -> QueryResult:
    """Answer free SQL from a sweep's file; it can change nothing and reach nothing else.

    Raises SpecError with DuckDB's words where the SQL is wrong, InputError for a bad file.
    """
    with connect(path, read_only=True) as connection:
        import duckdb

        try:
            connection.execute(sql)
            titles = tuple(column[0] for column in connection.description or ())
            rows = connection.fetchmany(MAX_ROWS + 1)
        except duckdb.Error as error:
            raise SpecError(f"DuckDB: {printable(str(error), 500)}") from None
    return QueryResult(titles, tuple(rows[:MAX_ROWS]), len(rows) > MAX_ROWS)
