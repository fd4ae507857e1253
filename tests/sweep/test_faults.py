"""Signals, full disks and files that are no sweep: said in words, and nothing stored is lost."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import duckdb
import pytest

from paravirt_mm.cli import reading
from paravirt_mm.errors import InputError
from paravirt_mm.sweep.questions import ask
from tests.commands import Run

from .fixtures import Sweep
from .test_isolation import ODD

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_a_signal_ends_children_that_are_stuck_first(
    tmp_path: Path, distribution: Callable[[str, str], Path], number: signal.Signals
) -> None:
    """A scenario that spins under a limit of an hour does not keep Ctrl-C waiting."""
    plugins = distribution(ODD, "odd = odd_plugins:Odd\n")
    command = [
        sys.executable, "-m", "paravirt_mm", "sweep", "lenovo-x230-8g", "macmini-4g",
        "-o", str(tmp_path / "out"), "-a", "odd:way=spin", "-b", "native", "-j", "2",
        "--time-limit", "3600", "--chunk", "1",
    ]  # fmt: skip
    spins = tmp_path / "spins"
    env = {"PYTHONPATH": str(plugins), "ODD_SPINS": str(spins)}
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        while not spins.exists():
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.05)
        begin = time.monotonic()
        process.send_signal(number)
        try:
            _, complaint = process.communicate(timeout=60)
        finally:
            process.kill()
        passed = time.monotonic() - begin
    assert process.returncode == 128 + number
    assert passed < 20
    assert b"Traceback" not in complaint


@pytest.mark.parametrize("limit", ["nan", "inf", "-1", "0", "1e999", "NaN", "x"])
def test_a_time_limit_is_a_number(tmp_path: Path, sweep: Sweep, limit: str) -> None:
    result = sweep("macmini-4g", "-o", tmp_path / "out", "--time-limit", limit)
    assert result.returncode == 2
    assert "--time-limit" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_said_in_words(tmp_path: Path, sweep: Sweep) -> None:
    """The limit of a file's size stands for the disk: DuckDB cannot write beyond it."""
    import resource

    command = [
        sys.executable, "-m", "paravirt_mm", "sweep", "--generate", "40", "-o",
        str(tmp_path / "out"), "-a", "incremental", "-b", "native", "-j", "1",
    ]  # fmt: skip

    def full() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    result = subprocess.run(
        command, preexec_fn=full, capture_output=True, text=True, check=False, timeout=120
    )
    assert result.returncode == 3
    assert "Traceback" not in result.stderr
    assert "out: cannot be used" in result.stderr


def _database(path: Path, *statements: str) -> Path:
    with duckdb.connect(str(path)) as connection:
        for statement in statements:
            connection.execute(statement)
    return path


FOREIGN = {
    "empty": (),
    "another": ("CREATE TABLE t (a INT)",),
    "without its key": ("CREATE TABLE sweep (value VARCHAR)",),
    "without tables": (
        "CREATE TABLE sweep (key VARCHAR, value VARCHAR)",
        "INSERT INTO sweep VALUES ('format', '1\x1b]0;x\x07'), ('core', '0'), ('settings', '{}')",
    ),
    "other columns": ('CREATE TABLE t ("a\x1b]0;x\x07" INT)', "CREATE VIEW runs AS FROM t"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_is_no_sweep_is_refused_in_words(
    tmp_path: Path, sweep: Sweep, kind: str
) -> None:
    path = _database(tmp_path / "out", *FOREIGN[kind])
    with pytest.raises(InputError) as caught:
        ask(path, "outcomes")
    assert "\x1b" not in str(caught.value)
    if kind == "empty":
        return
    result = sweep("macmini-4g", "-o", path, "-a", "incremental", "-b", "native")
    assert result.returncode in (2, 3)
    assert "Traceback" not in result.stderr
    assert "\x1b" not in result.stderr


def test_a_question_without_end_is_ended(
    tmp_path: Path, paravirt_mm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read within limits as every input is; in a tenth of the time here."""
    monkeypatch.setattr(reading, "READING", attrs.evolve(reading.READING, cpu=1))
    endless = (
        "CREATE VIEW runs AS WITH RECURSIVE t(outcome) AS "
        "(SELECT 'ok' UNION ALL SELECT outcome FROM t) "
        "SELECT outcome, '' AS allocator, '' AS backend FROM t"
    )
    path = _database(tmp_path / "out", endless)
    result = paravirt_mm("query", str(path))
    assert result.returncode == 3
    assert "cannot be read" in result.stderr


def test_an_archive_that_cannot_be_divided_costs_its_own_rows(tmp_path: Path, sweep: Sweep) -> None:
    """Cut in the middle of a header: what came before is swept, the rest says why."""
    archive = shutil.make_archive(
        str(tmp_path / "logs"), "tar", str(Path(__file__).parent), "fixtures.py"
    )
    data = Path(archive).read_bytes()
    bad = tmp_path / "bad.tar"
    bad.write_bytes(data[:700])
    result = sweep(bad, "macmini-4g", "-o", tmp_path / "out", "-a", "incremental", "-b", "native")
    assert result.returncode == 3, result.stderr
    outcomes = {row["outcome"] for row in ask(tmp_path / "out", "outcomes").records()}
    assert outcomes == {"ok", "unreadable"}
