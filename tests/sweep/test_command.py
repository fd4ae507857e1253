"""`sweep` and `query` on the command line: what they are asked, how they end."""

from __future__ import annotations

import json
import os
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from paravirt_mm.cli import query, sweep
from paravirt_mm.offers import default_specs
from paravirt_mm.registry import default_registry
from paravirt_mm.sources.inputs import GeneratedPart
from paravirt_mm.sweep import cluster
from paravirt_mm.sweep.questions import MAX_ROWS, QueryResult
from paravirt_mm.sweep.settings import (
    LIMIT,
    UNREADABLE,
    ChunkResult,
    MachineRecord,
    RunRecord,
    Settings,
)
from tests.commands import Run, runner

ONE = ("-a", "incremental", "-b", "native")


class Driven:
    """What stands for `drive`: it stores runs that ended as wanted, and keeps what it was given."""

    def __init__(self, *outcomes: str) -> None:
        self.outcomes = outcomes
        self.parts: list[Any] = []
        self.settings: Any = None
        self.width = 0

    def __call__(
        self, parts: Any, settings: Any, store: Any, executor: Any, width: int, progress: Any
    ) -> None:
        self.parts, self.settings, self.width = list(parts), settings, width
        runs = [RunRecord("incremental", "native", one, one, {}) for one in self.outcomes]
        machine = MachineRecord("x.log", {"machine": "x"})
        if runs:
            store.add(ChunkResult(0, 0, "x", ((machine, *runs),), 0.5))
        progress(1, True)


@pytest.mark.parametrize(
    ("outcomes", "code", "told"),
    [
        ((), 0, "no inputs"),
        (("ok", "ok"), 0, "2 ok"),
        (("ok", "panic", "rejected"), 0, "1 ok, 1 panic, 1 rejected"),
        (("ok", "violation"), 1, "1 ok, 1 violation"),
        ((LIMIT,), 1, "1 limit"),
        ((UNREADABLE, "violation"), 3, "1 unreadable, 1 violation"),
        (("error", UNREADABLE, "ok"), 4, "1 error, 1 ok, 1 unreadable"),
    ],
)
def test_the_exit_code_says_the_worst_and_how_to_ask_for_it(
    outcomes: tuple[str, ...],
    code: int,
    told: str,
    paravirt_mm: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(sweep, "drive", Driven(*outcomes))
    out = tmp_path / "out.duckdb"
    result = paravirt_mm("sweep", "qemu-512m", *ONE, "-o", out)
    assert (result.returncode, result.stdout) == (code, f"{out}: {told}\n")
    ask = f"`paravirt-mm query {out} errors` tells which, and why\n" if code else ""
    assert result.stderr == ask


def test_settings_are_those_of_the_command_line(
    paravirt_mm: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    driven = Driven()
    monkeypatch.setattr(sweep, "drive", driven)
    result = paravirt_mm(
        "sweep", "--generate", 5, "--seed", 7, *ONE, "-o", tmp_path / "a", "--boot", 2, "-j", 3,
        "--time-limit", 9, "--memory-limit", "256M", "--chunk", 11,
    )  # fmt: skip
    assert result.returncode == 0
    assert driven.settings == Settings(("incremental",), ("native",), 2, 9.0, 256 << 20, 11)
    assert driven.parts == [GeneratedPart(7, number) for number in range(5)]
    assert driven.width == 2 * 3  # as many again wait in the queue
    paravirt_mm("sweep", "qemu-512m", "-o", tmp_path / "b")
    registry = default_registry()
    offered = (default_specs("allocator", registry), default_specs("backend", registry))
    assert driven.settings == Settings(*offered)
    assert driven.width == 2 * (os.cpu_count() or 1)


def test_where_a_sweep_is_ended_nothing_more_is_begun() -> None:
    """What is under way may end; what waits for it is given up."""
    begun, last = Event(), Event()
    futures: list[Future[object]] = []

    def first() -> None:
        begun.set()
        last.wait(0.1)

    def interrupted() -> None:
        with sweep._local(1) as (executor, _):
            futures.extend((executor.submit(first), executor.submit(last.set)))
            begun.wait()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    under_way, waiting = futures
    assert under_way.done()
    assert waiting.cancelled()
    assert not last.is_set()


def test_files_are_named_so_that_a_worker_elsewhere_finds_them(
    paravirt_mm: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A name of a machine stays one."""
    driven = Driven()
    monkeypatch.setattr(sweep, "drive", driven)
    monkeypatch.chdir(tmp_path)
    Path("a.log").write_text("x")
    assert paravirt_mm("sweep", "a.log", "qemu-512m", *ONE, "-o", "out").returncode == 0
    assert [part.source for part in driven.parts] == [f"{tmp_path}/a.log", "qemu-512m"]


@pytest.mark.parametrize("inputs", [(), ("qemu-512m", "--generate", "3")])
def test_inputs_are_given_or_generated(
    inputs: tuple[str, ...], paravirt_mm: Run, tmp_path: Path
) -> None:
    result = paravirt_mm("sweep", *inputs, "-o", tmp_path / "out")
    assert result.returncode == 2
    assert "give either INPUTs or --generate N" in result.stderr


def test_a_broken_plugin_costs_its_rows_a_wrong_spec_everything(
    paravirt_mm: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "bad.py").write_text("raise OSError('no such library')\n")
    driven = Driven("ok")
    monkeypatch.setattr(sweep, "drive", driven)
    bad = f"{tmp_path}/bad.py:X"
    result = paravirt_mm("sweep", "qemu-512m", *ONE, "-a", bad, "-o", tmp_path / "out")
    assert result.returncode == 0
    assert result.stderr.startswith(f"paravirt-mm: plugin {bad}: cannot be loaded")
    driven.settings = None
    for wrong in (("-a", "native"), ("-b", "native:x=1"), ("-b", "incremental")):
        result = paravirt_mm("sweep", "qemu-512m", *wrong, "-o", tmp_path / "other")
        assert result.returncode == 2
        assert driven.settings is None
        assert not (tmp_path / "other").exists()


def test_a_cluster_gets_the_files_that_it_must_see(
    paravirt_mm: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    @contextmanager
    def connect(address: str, paths: list[str]) -> Any:
        asked.append((address, paths))
        yield None, 40

    driven = Driven()
    monkeypatch.setattr(sweep, "drive", driven)
    monkeypatch.setattr(cluster, "connect", connect)
    (tmp_path / "a.log").write_text("x")
    paravirt_mm(
        "sweep", tmp_path / "a.log", "qemu-512m", *ONE, "-o", tmp_path / "out",
        "--scheduler", "tcp://there:8786",
    )  # fmt: skip
    assert asked == [("tcp://there:8786", [f"{tmp_path}/a.log"])]
    assert driven.width == 80


def test_when_it_is_interrupted_its_children_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """First they are stopped, or the threads would wait for them."""
    done: list[str] = []
    monkeypatch.setattr(sweep, "stop_all", lambda: done.append("stop"))
    monkeypatch.setattr(sweep, "close_all", lambda: done.append("close"))
    with sweep._local(2) as (executor, width):
        assert width == 2
        assert executor.submit(int, "7").result() == 7
    assert done == ["close"]
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(int)

    def interrupt() -> None:
        with sweep._local(1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert done == ["close", "stop", "close"]


# -- query -----------------------------------------------------------------------------------------


ANSWER = QueryResult(
    ("name", "ram_bytes", "share", "runs", "\x1b[31m"),
    (
        ("a", 3 << 30, 0.123456, 4096, None),
        ("\x07", None, 12345678.0, 1, "x"),
        ("", "much", 1, 2, "z"),
    ),
)


def test_an_answer_as_a_table(paravirt_mm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory in units, four digits, numbers to the right; nothing that a terminal acts on."""
    monkeypatch.setattr(query, "ask", lambda *_: ANSWER)
    result = paravirt_mm("query", "x")
    assert [line.rstrip() for line in result.stdout.splitlines()] == [
        "name  ram_bytes      share  runs  \\x1b[31m",
        "----  ---------  ---------  ----  --------",
        "a            3G     0.1235  4096  -",
        "\\x07          -  1.235e+07     1  x",
        "           much          1     2  z",
    ]
    assert (result.returncode, result.stderr) == (0, "")
    for style in (("--json",), ("-f", "json")):
        first, *_ = json.loads(paravirt_mm("query", "x", *style).stdout)
        assert (first["ram_bytes"], first["share"]) == (3 << 30, 0.123456)


def test_what_is_asked_reaches_the_file_and_that_rows_are_left_out_is_said(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def told(*given: Any) -> QueryResult:
        os.write(2, f"{given}\n".encode())  # in a child
        return QueryResult(("a",), ((1,),), "cut" in str(given[0]))

    monkeypatch.setattr(query, "ask", told)
    monkeypatch.setattr(query, "select", told)
    run = runner(capfd, monkeypatch)
    for arguments, asked in (
        (("x",), (Path("x"), "outcomes", None, "512M", "4G")),
        (
            ("x", "crashkernel", "--by", "mode", "--size", "128m", "--below", "896m"),
            (Path("x"), "crashkernel", "mode", "128M", "896M"),
        ),
        (("x", "--sql", "SELECT 1"), (Path("x"), "SELECT 1")),
        (("cut",), (Path("cut"), "outcomes", None, "512M", "4G")),
    ):
        result = run("query", *arguments)
        assert result.returncode == 0
        cut = f"paravirt-mm: only the first {MAX_ROWS} rows are shown\n"
        assert result.stderr == f"{asked}\n{cut * (arguments == ('cut',))}"
