"""Questions to a sweep's file whose answers are known."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import attrs
import duckdb
import pytest
from click.testing import CliRunner

from paravirt_mm._version import __version__
from paravirt_mm.cli.query import command
from paravirt_mm.errors import InputError, SpecError
from paravirt_mm.measure.figures import FIGURES
from paravirt_mm.registry import default_registry
from paravirt_mm.sweep.questions import GROUPS, MAX_ROWS, QUESTIONS, QueryResult, ask, select
from paravirt_mm.sweep.settings import ChunkResult, MachineRecord, RunRecord, Settings
from paravirt_mm.sweep.store import Store
from paravirt_mm.testing.registries import registry_with
from paravirt_mm_incremental import Incremental

GIB = 1 << 30
SETTINGS = Settings(allocators=("old", "new"), backends=("xen",), chunk=2)


def _machine(name: str, gib: int, holes: int) -> MachineRecord:
    return MachineRecord(
        f"logs/{name}",
        {"machine": name, "mode": "x86_64", "ram_bytes": gib * GIB, "holes": holes, "pse": True},
    )


def _run(allocator: str, fits: bool = True, **figures: object) -> RunRecord:
    known = {"tables": 100, "flips_per_table": 1.0, "crashkernel_512m_below_4g": fits, **figures}
    return RunRecord(allocator, "xen", "ok", "ok", known)


PARTS = (
    (_machine("small", 2, 1), _run("old", reserved=10, waste=5, waste_percent=50.0), _run("new")),
    (
        _machine("holey", 64, 9),
        RunRecord("old", "xen", "panic", "panic: no room", {"overrun": 7}),
        _run("new", flips_per_table=1.5, vendor_figure=3, tables="many"),
    ),
    (
        MachineRecord("logs/bad", error="no memory map"),
        RunRecord("old", "xen", "unreadable", "no memory map"),
        RunRecord("new", "xen", "unreadable", "no memory map"),
    ),
    (_machine("big", 2048, 3), _run("old", False, reserved=90, waste=10), _run("new")),
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four inputs in two chunks, the second one stored first, as it happens with two workers."""
    path = tmp_path_factory.mktemp("sweep") / "out.duckdb"
    with Store(path, SETTINGS, default_registry()) as store:
        store.add(ChunkResult(1, 2, "b", PARTS[2:], 0.2))
        store.add(ChunkResult(0, 0, "a", PARTS[:2], 0.1))
        assert store.done() == {0: "a", 1: "b"}
        assert store.outcomes() == {"ok": 5, "panic": 1, "unreadable": 2}
    return path


def test_panics(file: Path) -> None:
    (panic,) = ask(file, "panics").records()
    assert (panic["allocator"], panic["machine"], panic["overrun"]) == ("old", "holey", 7)
    by_size = ask(file, "panics", by="size").records()
    assert {r["size_class"]: r["panics"] for r in by_size if r["allocator"] == "old"} == {
        "2: 1-4 GiB": 0, "4: 16-128 GiB": 1, "6: >= 1 TiB": 0,
    }  # fmt: skip


def test_waste(file: Path) -> None:
    """15 of 100 pages that were set aside in all; the machine with most is named."""
    (waste,) = ask(file, "waste").records()
    assert (waste["percent_of_all_pages"], waste["most_pages"], waste["most_on"]) == (15, 10, "big")


def test_crashkernel(file: Path) -> None:
    old, new = ask(file, "crashkernel").records()
    assert (old["fits"], old["does_not"], old["for_example"]) == (1, 1, "big")
    assert (new["fits"], new["does_not"], new["for_example"]) == (3, 0, None)


def test_flips(file: Path) -> None:
    """A value that does not fit its column (a plugin's text for ``tables``) is kept beside it."""
    rows = {row["allocator"]: row for row in ask(file, "flips").records()}
    assert (rows["old"]["least"], rows["old"]["most"], rows["new"]["runs"]) == (1.0, 1.0, 2)
    extra = select(file, "SELECT extra FROM results WHERE extra IS NOT NULL").rows
    assert json.loads(extra[0][0]) == {"tables": "many", "vendor_figure": 3}


def test_errors_and_origin(file: Path) -> None:
    (error,) = ask(file, "errors").records()
    assert (error["outcome"], error["runs"], error["for_example"]) == ("unreadable", 2, "logs/bad")
    facts = dict(ask(file, "sweep").rows)
    assert facts["core"] == __version__
    assert facts["plugin xen"] == default_registry().plugins["xen"].origin
    assert "complete" not in facts


def test_every_column_is_explained(file: Path) -> None:
    columns = ask(file, "columns").records()
    results = {c["column"]: c["meaning"] for c in columns if c["table"] == "results"}
    assert set(FIGURES) <= results.keys()
    assert all(c["meaning"] for c in columns if c["table"] in ("machines", "results", "chunks"))


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize(
    "by", [None, *(pytest.param(group, marks=pytest.mark.slow) for group in GROUPS)]
)
def test_every_question_has_an_answer(file: Path, question: str, by: str | None) -> None:
    options = ["--by", by] if by else []
    result = CliRunner().invoke(command, [str(file), question, *options], standalone_mode=False)
    if by and question in ("sweep", "columns"):
        assert isinstance(result.exception, SpecError)
    else:
        assert result.return_value == 0, result.exception
        assert len(result.output.splitlines()) > 2
        if by:
            assert result.output.startswith(GROUPS[by])


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM results",
        "DROP TABLE results",
        "CREATE TABLE other (a INT)",
        "COPY results TO 'stolen.csv'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "ATTACH 'other.db'",
        "SET enable_external_access = true",
        "INSTALL httpfs",
        "SELECT nonsense FROM runs",
        "",
        "not SQL",
    ],
)
def test_sql_changes_and_reaches_nothing(
    file: Path, sql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = file.read_bytes()
    with pytest.raises(SpecError, match="DuckDB: "):
        select(file, sql)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == []


def test_formats(file: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    sql = "SELECT count(*) AS runs FROM runs"
    assert json.loads(run(command, [str(file), "--sql", sql, "--json"]).output) == [{"runs": 8}]
    out = tmp_path / "answer.md"
    run(command, [str(file), "--sql", sql, "-f", "github", "-o", str(out)])
    assert out.read_text().splitlines()[2] == "|    8 |"


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        ask(tmp_path / "none", "panics")
    for content in (b"", b"\0" * 5000, b"text\n" * 3000):
        file = tmp_path / "file"
        file.write_bytes(content)
        with pytest.raises((InputError, SpecError)):
            ask(file, "panics")


@pytest.mark.slow
def test_half_a_chunk_is_never_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk that fails when most of it is stored leaves nothing behind."""
    path = tmp_path / "out"
    with Store(path, SETTINGS, default_registry()) as store:
        store.add(ChunkResult(0, 0, "a", PARTS[:2], 0.1))
        insert = store._insert

        def fail(table: str, rows: list[dict[str, object]]) -> None:
            if table == "chunks":
                raise OSError("no space left")
            insert(table, rows)

        monkeypatch.setattr(store, "_insert", fail)
        with pytest.raises(OSError, match="no space left"):
            store.add(ChunkResult(1, 2, "b", PARTS[2:], 0.1))
    with Store(path, SETTINGS, default_registry()) as store:
        assert store.done() == {0: "a"}
        assert sum(store.outcomes().values()) == 4


@pytest.mark.slow
def test_a_signal_waits_until_a_chunk_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Amid its work DuckDB would make an error of its own of it."""
    with Store(tmp_path / "out", SETTINGS, default_registry()) as store:
        insert, handler = store._insert, signal.getsignal(signal.SIGINT)

        def interrupted(table: str, rows: list[dict[str, object]]) -> None:
            signal.raise_signal(signal.SIGINT)
            insert(table, rows)

        monkeypatch.setattr(store, "_insert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.add(ChunkResult(0, 0, "a", PARTS[:2], 0.1))
        assert signal.getsignal(signal.SIGINT) is handler
        assert store.done() == {0: "a"}


@pytest.mark.slow
def test_machines_are_divided_by_size_and_holes(tmp_path: Path) -> None:
    """A class begins with the number that its name says, and ends before the next one's."""
    sizes = {
        "1: < 1 GiB": (0, GIB - 1),
        "2: 1-4 GiB": (GIB, 4 * GIB - 1),
        "3: 4-16 GiB": (4 * GIB, 16 * GIB - 1),
        "4: 16-128 GiB": (16 * GIB, 128 * GIB - 1),
        "5: 128 GiB-1 TiB": (128 * GIB, 1024 * GIB - 1),
        "6: >= 1 TiB": (1024 * GIB, 1 << 52),
    }
    holes = {"1: 0-1": (0, 1), "2: 2-3": (2, 3), "3: 4-7": (4, 7), "4: 8 or more": (8, 1 << 40)}
    parts = [
        (MachineRecord("x", {"machine": name, "ram_bytes": size, "holes": hole}), _run("new"))
        for classes, by_size in ((sizes, True), (holes, False))
        for name, ends in classes.items()
        for end in ends
        for size, hole in [(end, 0) if by_size else (0, end)]
    ]
    path = tmp_path / "out"
    with Store(path, SETTINGS, default_registry()) as store:
        store.add(ChunkResult(0, 0, "a", tuple(parts), 0.1))
    for name, size, hole in select(path, "SELECT machine, size_class, holes_class FROM runs").rows:
        assert name in (size, hole)


@pytest.mark.slow
def test_a_file_is_continued_with_the_same_settings_and_plugins_only(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(file, attrs.evolve(SETTINGS), default_registry()):
        pass
    with pytest.raises(SpecError, match="begun with another settings"):
        Store(file, attrs.evolve(SETTINGS, chunk=3), default_registry())
    with pytest.raises(SpecError, match="begun with other plugins or versions"):
        Store(file, SETTINGS, registry_with(odd=Incremental))
    monkeypatch.setattr("paravirt_mm.sweep.store.__version__", "0.0.1")
    with pytest.raises(SpecError, match=rf"another core.*\(there: {__version__}; now: 0.0.1\)"):
        Store(file, SETTINGS, default_registry())
    with duckdb.connect(str(tmp_path / "other")) as connection:
        connection.execute("CREATE TABLE t (a INT)")
    with pytest.raises(InputError, match="is a database, but not of a sweep"):
        Store(tmp_path / "other", SETTINGS, default_registry())


@pytest.mark.slow
def test_what_does_not_fit_its_column_is_kept_beside_it(tmp_path: Path) -> None:
    """A column of the file holds 64 bits, and one kind of value; a share may be whole."""
    most = (1 << 63) - 1
    figures: dict[str, object] = {
        "tables": most, "waste_percent": 3, "crashkernel_512m_below_4g": True, "reserved": None,
        "used": most + 1, "waste": True, "flips_per_table": "x", "mine": Path("/a"),
        "overrun": -most - 1, "overlap": -most - 2, "crashkernel_256m_below_4g": 1,
    }  # fmt: skip
    path = tmp_path / "out"
    row = RunRecord("new", "xen", "ok", "lone \udc80 half", figures)
    part = (_machine("x", 1, 0), row, _run("old"))
    with Store(path, SETTINGS, default_registry()) as store:
        store.add(ChunkResult(0, 0, "a", (part,), 0.1))
    (found, other) = select(path, "SELECT * FROM results ORDER BY allocator").records()
    assert found["verdict"] == r"lone \udc80 half"
    fit = ("tables", "waste_percent", "crashkernel_512m_below_4g", "reserved", "overrun")
    assert {name: found[name] for name in fit} == {name: figures[name] for name in fit}
    extra = json.loads(found["extra"])
    assert extra == {
        name: value if name != "mine" else str(value)
        for name, value in figures.items()
        if name not in fit
    }
    assert all(found[name] is None for name in extra.keys() & FIGURES.keys())
    assert (other["extra"], other["used"]) == (None, None)


def test_a_file_that_is_in_use_is_told_from_one_that_is_none(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = f"^{file}: is no sweep, or cannot be opened: {'x' * 299}…$"
    for words, told in (("Could not set lock", "is in use by another"), ("x" * 301, cut)):

        def connect(*_: object, words: str = words, **given: object) -> None:
            assert given["read_only"]
            raise duckdb.IOException(words)

        monkeypatch.setattr("duckdb.connect", connect)
        with pytest.raises(InputError, match=told):
            ask(file, "outcomes")


@pytest.mark.slow
def test_a_long_answer_is_cut(file: Path) -> None:
    """As many rows as may be are not cut."""
    assert MAX_ROWS == 100_000
    assert not QueryResult(("a",), ()).cut
    whole = select(file, f"SELECT * FROM range({MAX_ROWS})")
    assert (len(whole.rows), whole.cut) == (MAX_ROWS, False)
    more = select(file, f"SELECT * FROM range({MAX_ROWS + 1})")
    assert (more.rows, more.cut) == (whole.rows, True)


def test_settings_are_told_in_one_order() -> None:
    """A file that was begun with the same ones, whatever their order then, goes on."""
    names = list(json.loads(SETTINGS.as_json()))
    assert names == sorted(names)


def test_questions_that_there_are_not(file: Path) -> None:
    with pytest.raises(SpecError, match=r"no question 'x' .*outcomes"):
        ask(file, "x")
    for question in ("sweep", "columns"):
        with pytest.raises(SpecError, match="cannot be divided"):
            ask(file, question, by="size")


@pytest.mark.slow
def test_a_division_comes_first(file: Path) -> None:
    """Each answer can be asked by size; the crash kernel that is asked about is the one counted."""
    for question in ("outcomes", "waste", "crashkernel", "flips", "errors"):
        answer = ask(file, question, by="mode")
        assert answer.titles[0] == "mode"
        assert {row[0] for row in answer.rows} <= {"x86_64", None}
    other = ask(file, "crashkernel", size="128M", below="896M").records()
    assert [row["fits"] for row in other] == [0, 0]
