"""Questions to a sweep's file whose answers are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from paravirt_mm._version import __version__
from paravirt_mm.cli.query import command
from paravirt_mm.errors import InputError, SpecError
from paravirt_mm.measure.figures import FIGURES
from paravirt_mm.registry import default_registry
from paravirt_mm.sweep.questions import GROUPS, QUESTIONS, ask, select
from paravirt_mm.sweep.settings import ChunkResult, MachineRecord, RunRecord, Settings
from paravirt_mm.sweep.store import Store

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
