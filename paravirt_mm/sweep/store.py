"""The result of a sweep: one DuckDB file.

A chunk is stored in one transaction together with the note that it is done, so that whatever is
killed when, the file holds whole chunks and knows which. Tables:

sweep
    Key and value: ``format`` of this file, ``core`` version, ``settings`` (JSON), ``complete``.
plugins
    Name, role, distribution and version of every plugin that took part.
machines
    One row an input that gave a machine, or the error why it gave none. Its key is ``part`` (place
    among the inputs, from 0) and ``number`` (place within the part, from 0).
results
    One row a scenario: the same key, allocator, backend, outcome, verdict, a column for each figure
    of `paravirt_mm.measure` and, in ``extra``, those of plugins as JSON.
chunks
    What is done, and how long it took. The only table that differs from sweep to sweep.
runs
    A view: machines and results joined, with classes of size and of holes to group by.

Columns carry their meaning and unit as comments (``paravirt-mm query FILE columns``).
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from paravirt_mm._version import __version__
from paravirt_mm.errors import InputError, SpecError, install
from paravirt_mm.machine.paging import GIB, TIB
from paravirt_mm.measure.figures import FIGURES, Unit
from paravirt_mm.printable import printable
from paravirt_mm.registry import Registry
from paravirt_mm.sweep.guard import machines_of
from paravirt_mm.sweep.settings import ChunkResult, MachineRecord, RunRecord, Settings

FORMAT = "1"
"""Raised when a table changes in a way that breaks queries."""


_TYPES = {
    Unit.RATIO: "DOUBLE",
    Unit.PERCENT: "DOUBLE",
    Unit.YES_NO: "BOOLEAN",
    Unit.TEXT: "VARCHAR",
}
_PYTHON: dict[str, tuple[type, ...]] = {
    "BIGINT": (int,),
    "DOUBLE": (int, float),
    "BOOLEAN": (bool,),
    "VARCHAR": (str,),
}
_NUMPY = {"BIGINT": np.int64, "DOUBLE": np.float64, "BOOLEAN": np.bool_}

_KEY = {
    "part": ("BIGINT", "place of the input among all inputs, from 0"),
    "number": ("BIGINT", "place of the machine within the input, from 0"),
}
_MACHINES = {
    **_KEY,
    "source": ("VARCHAR", "file, or archive:member, or file:line that it was read from"),
    "machine": ("VARCHAR", "name of the machine"),
    "title": ("VARCHAR", "what the source calls it"),
    "kernel_release": ("VARCHAR", "kernel that wrote the log, where it says so"),
    "mode": ("VARCHAR", "paging mode"),
    "ram_bytes": ("BIGINT", "bytes: all whole pages of RAM"),
    "ram_end": ("BIGINT", "address: one past the highest page of RAM"),
    "holes": ("BIGINT", "gaps between pieces of RAM"),
    "e820_entries": ("BIGINT", "entries of the sanitised memory map"),
    "max_pfn": ("BIGINT", "pfn: one past the highest page that the mode can address"),
    "pse": ("BOOLEAN", "the CPU has 2 or 4 MiB pages"),
    "gbpages": ("BOOLEAN", "the CPU has 1 GiB pages"),
    "error": ("VARCHAR", "why there is no machine"),
}
_RESULTS = {
    **_KEY,
    "allocator": ("VARCHAR", "allocator with its options"),
    "backend": ("VARCHAR", "backend with its options"),
    "outcome": (
        "VARCHAR",
        "ok, panic, rejected, violation, error; unreadable: no machine; limit: it was stopped",
    ),
    "verdict": ("VARCHAR", "the outcome and its reason"),
    **{
        name: (_TYPES.get(figure.unit, "BIGINT"), f"{figure.unit}: {figure.meaning}")
        for name, figure in FIGURES.items()
    },
    "extra": ("VARCHAR", "JSON: figures of plugins, and values that do not fit their column"),
}
_CHUNKS = {
    "chunk": ("BIGINT", "number of the chunk, from 0"),
    "digest": ("VARCHAR", "what changes when one of its inputs does"),
    "parts": ("BIGINT", "inputs in it"),
    "seconds": ("DOUBLE", "how long it took one worker"),
}
_TABLES = {"machines": _MACHINES, "results": _RESULTS, "chunks": _CHUNKS}

_SIZE_CLASSES = (
    ("1: < 1 GiB", GIB),
    ("2: 1-4 GiB", 4 * GIB),
    ("3: 4-16 GiB", 16 * GIB),
    ("4: 16-128 GiB", 128 * GIB),
    ("5: 128 GiB-1 TiB", TIB),
    ("6: >= 1 TiB", 1 << 62),
)
_HOLES_CLASSES = (("1: 0-1", 2), ("2: 2-3", 4), ("3: 4-7", 8), ("4: 8 or more", 1 << 62))


def _classes(column: str, classes: Sequence[tuple[str, int]]) -> str:
    """Return SQL for the class that a number falls in; each is (name, end)."""
    cases = " ".join(f"WHEN {column} < {end} THEN '{name}'" for name, end in classes)
    return f"CASE {cases} END"


_VIEW = (
    "CREATE VIEW runs AS SELECT m.* EXCLUDE (error), r.* EXCLUDE (part, number), "  # noqa: S608
    f"{_classes('ram_bytes', _SIZE_CLASSES)} AS size_class, "
    f"{_classes('holes', _HOLES_CLASSES)} AS holes_class "
    "FROM machines m JOIN results r USING (part, number)"
)


class Store:
    """A sweep's file, open for writing by this process alone. A context manager."""

    def __init__(self, path: Path, settings: Settings, registry: Registry) -> None:
        """Open or create it.

        Raises InputError where it is something else or in use, SpecError where it was begun with
        other settings or versions, or where DuckDB is not installed.
        """
        self.path = path
        self._connection = connect(path, read_only=False)
        try:
            with _told(path):
                self._prepare(settings, registry)
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self, settings: Settings, registry: Registry) -> None:
        wanted = {"format": FORMAT, "core": __version__, "settings": settings.as_json()}
        plugins = [
            (plugin.name, plugin.role, plugin.distribution, plugin.version)
            for _, plugin in sorted(registry.plugins.items())
        ]
        tables = {name for (name,) in self._connection.execute("SHOW TABLES").fetchall()}
        if not tables:
            self._create(wanted, plugins)
            return
        if "sweep" not in tables:
            raise InputError("is a database, but not of a sweep; choose another -o", str(self.path))
        found = dict(self._connection.execute("SELECT key, value FROM sweep").fetchall())
        for key, value in wanted.items():
            if found.get(key) != value:
                raise SpecError(
                    f"{self.path} was begun with another {key}; choose another -o or remove it "
                    f"(there: {printable(str(found.get(key)))}; now: {value})"
                )
        if self._connection.execute("SELECT * FROM plugins ORDER BY name").fetchall() != plugins:
            raise SpecError(
                f"{self.path} was begun with other plugins or versions of them; "
                "choose another -o or remove it"
            )

    def _create(self, values: dict[str, str], plugins: Sequence[tuple[str, ...]]) -> None:
        run = self._connection.execute
        run("BEGIN")
        run("CREATE TABLE sweep (key VARCHAR PRIMARY KEY, value VARCHAR)")
        for item in values.items():
            run("INSERT INTO sweep VALUES (?, ?)", item)
        run("CREATE TABLE plugins (name TEXT, role TEXT, distribution TEXT, version TEXT)")
        for plugin in plugins:
            run("INSERT INTO plugins VALUES (?, ?, ?, ?)", plugin)
        for table, columns in _TABLES.items():
            fields = ", ".join(f'"{name}" {kind}' for name, (kind, _) in columns.items())
            run(f"CREATE TABLE {table} ({fields})")
            for name, (_, meaning) in columns.items():
                text = meaning.replace("'", "''")
                run(f"COMMENT ON COLUMN {table}.\"{name}\" IS '{text}'")
        run(_VIEW)
        run("COMMIT")

    def done(self) -> dict[int, str]:
        """Return the digests of the chunks that are stored, by number."""
        with _told(self.path):
            rows = self._connection.execute("SELECT chunk, digest FROM chunks").fetchall()
        return dict(rows)

    def add(self, result: ChunkResult) -> None:
        """Store a chunk, all of it or nothing."""
        machines: list[dict[str, Any]] = []
        results: list[dict[str, Any]] = []
        for part, records in enumerate(result.parts, result.first):
            for number, (machine, rows) in enumerate(machines_of(records)):
                key = {"part": part, "number": number}
                machines.append({**key, **_machine_row(machine)})
                results += [{**key, **_result_row(row)} for row in rows]
        done = {
            "chunk": result.number,
            "digest": result.digest,
            "parts": len(result.parts),
            "seconds": result.seconds,
        }
        import duckdb

        with _told(self.path):
            self._connection.execute("BEGIN")
            try:
                self._insert("machines", machines)
                self._insert("results", results)
                self._insert("chunks", [done])
            except BaseException:
                with suppress(duckdb.Error):  # the first one is told
                    self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _insert(self, table: str, rows: list[dict[str, Any]]) -> None:
        if rows:
            frame = {name: _column(rows, name, kind) for name, (kind, _) in _TABLES[table].items()}
            self._connection.register("frame", frame)
            self._connection.execute(f"INSERT INTO {table} SELECT * FROM frame")  # noqa: S608

    def complete(self) -> None:
        """Note that nothing is left to do."""
        with _told(self.path):
            self._connection.execute("INSERT OR REPLACE INTO sweep VALUES ('complete', 'yes')")

    def outcomes(self) -> dict[str, int]:
        """Return how many scenarios ended how."""
        with _told(self.path):
            rows = self._connection.execute(
                "SELECT outcome, count(*) FROM results GROUP BY outcome ORDER BY outcome"
            ).fetchall()
        return dict(rows)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        with _told(self.path):
            self._connection.close()


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Say in words what DuckDB cannot do with a file: a full disk, tables of another kind. Signals
    wait.
    """
    import duckdb

    try:
        with _undisturbed():
            yield
    except duckdb.Error as error:
        text = printable(str(error), 300)
        raise InputError(f"cannot be used as the file of a sweep: {text}", str(path)) from None


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let signals wait that would raise something: DuckDB looks for them amid its work, and raises
    whatever it happens to (an error of its own, RuntimeError) in the place of that.
    """
    came: list[int] = []
    handlers: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():  # no other hears of them
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if callable(handler := signal.getsignal(number)):
                handlers[number] = handler
                signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for each in came:
            signal.raise_signal(each)


def connect(path: Path, read_only: bool) -> Any:
    """Open a sweep's file. Read only, the connection can reach nothing else: no file, no network.

    Raises InputError where it cannot be opened, SpecError where DuckDB is not installed.
    """
    try:
        import duckdb
    except ImportError:
        raise SpecError(f"needs DuckDB: {install('sweep')}") from None
    if read_only and not path.is_file():
        raise InputError("no such file", str(path))
    closed: dict[str, str | bool | int | float | list[str]] = {
        "enable_external_access": "false",
        "lock_configuration": "true",
    }
    try:
        with _undisturbed():
            return duckdb.connect(str(path), read_only=read_only, config=closed)
    except duckdb.Error as error:
        text = printable(str(error), 300)
        if "lock" in text:
            raise InputError("is in use by another process (a sweep?)", str(path)) from None
        raise InputError(f"is no sweep, or cannot be opened: {text}", str(path)) from None


def _machine_row(machine: MachineRecord) -> dict[str, Any]:
    return {"source": machine.source, **machine.facts, "error": machine.error}


def _result_row(row: RunRecord) -> dict[str, Any]:
    fixed = {
        "allocator": row.allocator,
        "backend": row.backend,
        "outcome": row.outcome,
        "verdict": row.verdict,
    }
    extra: dict[str, Any] = {}
    for name, value in row.figures.items():
        kind = _RESULTS[name][0] if name in FIGURES else None
        if kind is not None and _fits(value, kind):
            fixed[name] = value
        else:
            extra[name] = value
    return {**fixed, "extra": json.dumps(extra, sort_keys=True, default=str) if extra else None}


def _fits(value: object, kind: str) -> bool:
    if value is None:
        return True
    if isinstance(value, bool) and kind != "BOOLEAN":
        return False
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        return False
    return isinstance(value, _PYTHON[kind])


def _column(rows: list[dict[str, Any]], name: str, kind: str) -> Any:
    """Return one column of rows as DuckDB takes it; what is missing becomes NULL."""
    values = [row.get(name) for row in rows]
    if kind not in _NUMPY:
        column = np.empty(len(values), dtype=object)
        column[:] = [None if value is None else _storable(value) for value in values]
        return column
    missing = [value is None for value in values]
    filled = [0 if value is None else value for value in values]
    return np.ma.masked_array(np.array(filled, dtype=_NUMPY[kind]), mask=missing)


def _storable(text: str) -> str:
    """Names of files may hold bytes that are no text."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def columns_of(connection: Any) -> Iterator[tuple[str, str, str, str]]:
    """Yield (table, column, type, meaning) of a sweep's file."""
    yield from connection.execute(
        "SELECT table_name, column_name, data_type, comment FROM duckdb_columns() "
        "WHERE NOT internal AND table_name <> 'runs' ORDER BY table_name, column_index"
    ).fetchall()
