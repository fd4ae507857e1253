"""What commands share that run scenarios: limits, observers, where a plugin failed, width, colours,
which machines.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from paravirt_mm.cli import choosing, compare, here, report, scenarios, screen
from paravirt_mm.cli.screen import paper
from paravirt_mm.errors import InputError
from paravirt_mm.guard import RUNNING
from paravirt_mm.registry import default_registry
from paravirt_mm.report.paper import PLAIN, Paper
from paravirt_mm.sources import bundled, bundled_machines
from tests.commands import GOOD_AND_WATCH, Run, Terminal, runner

CODE = (
    GOOD_AND_WATCH
    + """

@attrs.frozen
class Fails(AscendingAllocator):
    @hookimpl
    def pvmm_allocate_tables(self):
        raise ValueError("no idea")


@attrs.frozen
class Dies(AscendingAllocator):
    @hookimpl
    def pvmm_allocate_tables(self, boot):
        if boot.machine.name == "qemu-512m":
            import os
            os._exit(3)
        raise ValueError("lives")
"""
)
NATIVE, OLD = ("-b", "native"), "legacy_linear:kernel=3.6"
EVERYTHING = ["begin", *["RunStarted", "RunFinished"] * 2, "end"]
"""What an observer of two scenarios hears, but for what happens in each."""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(CODE)
    return f"{tmp_path}/mine.py"


@pytest.mark.parametrize(
    ("fails_at", "told", "heard"),
    [
        ("nowhere", [], EVERYTHING),
        ("begin", ["pvmm_begin raised RuntimeError: not begin"], EVERYTHING[:-1]),
        (
            "RunStarted",
            ["pvmm_observe raised RuntimeError: not RunStarted"],
            ["begin", "RunStarted", "RunStarted", "end"],
        ),
        ("RunFinished", ["pvmm_observe raised RuntimeError: not RunFinished"], EVERYTHING),
        ("end", ["pvmm_end raised RuntimeError: not end"], EVERYTHING),
    ],
)
def test_observers_hear_of_everything_until_they_fail(
    fails_at: str,
    told: list[str],
    heard: list[str],
    mine: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That one is left out is said once, however many scenarios there are. It hears no more of the
    run in which it failed; and where it failed to begin, not of the end.
    """
    run = runner(capfd, monkeypatch)  # a child says it
    log = tmp_path / "heard"
    done = run(
        "compare", "qemu-512m", "qemu-pae-320m", "-a", f"{mine}:Good", *NATIVE,
        "--observer", f"{mine}:Watch:path={log},fails_at={fails_at}", "-f", "json",
    )  # fmt: skip
    assert done.returncode == 0
    assert [row["outcome"] for row in json.loads(done.stdout)] == ["ok", "ok"]
    lines = [line for line in done.stderr.splitlines() if "left out" in line]
    assert len(lines) == len(told)
    assert all(words in line for line, words in zip(lines, told, strict=True))
    words = log.read_text().splitlines()
    assert [word for word in words if word in EVERYTHING] == heard
    assert (words[0], words[-1]) == (heard[0], heard[-1])


def test_no_trace_is_written_that_nobody_asked_for(
    mine: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it printed, which a child would do on standard error."""
    done = runner(capfd, monkeypatch)("run", "qemu-512m", "-a", f"{mine}:Good", *NATIVE, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["outcome"] == "ok"


def test_one_scenario_that_has_to_be_stopped_costs_itself(mine: str, paravirt_mm: Run) -> None:
    done = paravirt_mm(
        "compare", "qemu-512m", "qemu-pae-320m", "-a", f"{mine}:Dies", "-a", f"{mine}:Good",
        *NATIVE, "-f", "json",
    )  # fmt: skip
    assert done.returncode == 4
    verdicts = [row["verdict"] for row in json.loads(done.stdout)]
    assert verdicts[1] == verdicts[3] == "ok"
    assert verdicts[0].endswith("Dies under native was stopped: its process ended with exit code 3")
    assert "raised ValueError: lives" in verdicts[2]


@pytest.mark.parametrize("command", ["run", "compare"])
def test_where_a_plugin_failed_is_shown_on_demand(
    command: str, mine: str, paravirt_mm: Run
) -> None:
    arguments = (command, "qemu-512m", "-a", f"{mine}:Fails", *NATIVE)
    assert not paravirt_mm(*arguments).stderr
    done = paravirt_mm(*arguments, "--traceback")
    assert done.returncode == 4
    assert 'raise ValueError("no idea")' in done.stderr
    assert "Traceback" not in done.stdout
    good = paravirt_mm(command, "qemu-512m", "-a", f"{mine}:Good", *NATIVE, "--traceback")
    assert (good.returncode, good.stderr) == (0, "")


def test_as_data_where_a_plugin_failed_is_part_of_it(mine: str, paravirt_mm: Run) -> None:
    done = paravirt_mm("run", "qemu-512m", "-a", f"{mine}:Fails", *NATIVE, "--traceback", "--json")
    assert (done.returncode, done.stderr) == (4, "")
    assert 'raise ValueError("no idea")' in json.loads(done.stdout)["traceback"]
    rows = paravirt_mm(
        "compare", "qemu-512m", "-a", f"{mine}:Fails", *NATIVE, "--traceback", "-f", "csv"
    )  # which has no lines for it
    assert 'raise ValueError("no idea")' in rows.stderr
    good = paravirt_mm("run", "qemu-512m", "-a", f"{mine}:Good", *NATIVE, "--json")
    assert "traceback" not in json.loads(good.stdout)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--observer", "native"), "no observer 'native'"),
        (("-a", "native"), "no allocator 'native'"),
        (("-b", "incremental"), "no backend 'incremental'"),
        (("-b", "xen:xen=9"), "xen='9'"),
    ],
)
def test_wrong_specs_are_refused_before_anything_runs(
    arguments: tuple[str, ...], words: str, mine: str, paravirt_mm: Run, tmp_path: Path
) -> None:
    heard = tmp_path / "heard"
    good = ("-a", f"{mine}:Good", *NATIVE, "--observer", f"{mine}:Watch:path={heard}")
    done = paravirt_mm("compare", "qemu-512m", *good, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert not heard.exists()


def test_a_wrong_observer_is_refused_before_anything_is_read(paravirt_mm: Run) -> None:
    done = paravirt_mm("compare", "no-such-machine", "--observer", "native")
    assert done.returncode == 2
    assert "no-such-machine" not in done.stderr


def test_tables_are_made_byte_for_byte_only_where_that_is_asked_for(mine: str) -> None:
    """It takes far longer than the run itself."""
    running = scenarios.Running.of(default_registry(), (), RUNNING.cpu, RUNNING.memory)
    todo = [(bundled("qemu-512m"), f"{mine}:Good", "native")]
    assert list(running.each(todo, lambda run: run.thorough)) == [False]
    assert list(running.each(todo, lambda run: run.thorough, thorough=True)) == [True]
    assert not running.traceback  # nor is told where plugins fail


def test_the_bar_knows_how_many_machines_there_are(
    paravirt_mm: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Those that are named, and the one that this runs on."""
    totals = []

    def progress(items: Iterator[Any], title: str, total: int) -> Iterator[Any]:
        totals.append((title, total))
        return items

    monkeypatch.setattr(compare, "progress", progress)
    mine = (bundled("pae-4g"), "kernel log (dmesg)")
    monkeypatch.setattr(choosing, "this_machine", lambda: mine)
    for options in (("--here",), ("--here", "-f", "csv"), ()):
        assert paravirt_mm("compare", "qemu-512m", *NATIVE, "-a", OLD, *options).returncode == 0
    assert totals == [("comparing", 2), ("comparing", 2), ("comparing", 1)]
    extra: list[str] = []
    monkeypatch.setattr("paravirt_mm.view.charts.require_extra", lambda: extra.append("report"))
    monkeypatch.setattr(report, "progress", lambda *given: progress(iter(()), *given[1:]))
    assert paravirt_mm("report", "qemu-512m", "--here", "-o", tmp_path / "x.html").returncode == 3
    assert totals[3:] == [("running", 2)]
    assert extra == ["report"]  # asked for before anything runs


def test_a_scenario_may_wait_longer_than_it_computes() -> None:
    found = scenarios.limits(120.0, 5 << 30)
    assert (found.cpu, found.wall, found.memory) == (120.0, 300.0, 5 << 30)
    assert scenarios.limits(RUNNING.cpu, RUNNING.memory) == RUNNING


# -- width and colours -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "width"), [(20, 40), (40, 40), (77, 77), (200, 200), (500, 200)]
)
def test_a_terminal_is_as_wide_as_it_says_within_reason(
    columns: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = os.terminal_size((columns, 24))
    monkeypatch.setattr(shutil, "get_terminal_size", lambda _: size)
    with redirect_stdout(Terminal()):
        assert paper().width == width
        assert paper(output=Path("x")) == PLAIN
    monkeypatch.setattr(shutil, "get_terminal_size", os.terminal_size)
    with redirect_stdout(Terminal()):  # one that does not say
        assert paper().width == 100
    with redirect_stdout(io.StringIO()):
        assert paper().width == PLAIN.width == 100


@pytest.mark.parametrize("color", ["auto", "always", "never"])
@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize(
    ("surroundings", "wished"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_colours_are_for_terminals_unless_somebody_decides(
    color: str,
    terminal: bool,
    surroundings: dict[str, str],
    wished: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    with redirect_stdout(Terminal() if terminal else io.StringIO()):
        expected = color == "always" or (color == "auto" and terminal and wished)
        assert paper(color).colour is expected


@pytest.mark.parametrize(
    ("encoding", "drawn"),
    [("utf-8", True), ("UTF-16", True), ("latin-1", False), ("ascii", False), (None, True)],
)
def test_lines_are_drawn_where_they_can_be_written(encoding: str | None, drawn: bool) -> None:
    stream = io.StringIO() if encoding is None else io.TextIOWrapper(io.BytesIO(), encoding)
    with redirect_stdout(stream):
        assert paper().drawn is drawn


def test_colours_pass_the_gate_and_nothing_else_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = Paper(colour=True).good("fine")
    for on, output in ((Paper(colour=True), None), (PLAIN, None), (PLAIN, tmp_path / "out")):
        sys.stdout.write("before ")
        screen.write(text, on, output)
    assert capsys.readouterr().out == f"before {text}\nbefore fine\nbefore "
    assert (tmp_path / "out").read_text() == f"{text}\n"
    screen.write(text, Paper(colour=True), tmp_path / "out")
    assert not capsys.readouterr().out


# -- which machines --------------------------------------------------------------------------------


def test_without_any_the_machines_of_the_package_are_meant() -> None:
    everything = tuple(bundled_machines())
    assert choosing.wanted([], here=False) == everything
    assert choosing.wanted([], here=True) == ()
    assert choosing.wanted(["a"], here=False) == choosing.wanted(["a"], here=True) == ("a",)


def test_this_machine_comes_first_and_what_cannot_be_read_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    problems: list[InputError] = []
    mine: Any = bundled("qemu-512m")
    monkeypatch.setattr(choosing, "this_machine", lambda: (mine, "kernel log (dmesg)"))
    names = [str(tmp_path / "none"), "pae-4g"]
    found = choosing.machines(names, None, problems, here=True)
    assert next(found) is mine
    assert capsys.readouterr().err == "qemu-512m: read from the kernel log (dmesg)\n"
    assert [machine.name for machine in found] == ["pae-4g"]
    (problem,) = problems
    assert capsys.readouterr().err == f"paravirt-mm: {problem}\n"

    def nothing() -> None:
        raise InputError("nothing may be read", here.NAME)

    monkeypatch.setattr(choosing, "this_machine", nothing)
    assert [m.name for m in choosing.machines(["pae-4g"], None, problems, here=True)] == ["pae-4g"]
    assert [str(one) for one in problems[1:]] == ["here: nothing may be read"]
    assert capsys.readouterr().err == "paravirt-mm: here: nothing may be read\n"
    assert [m.name for m in choosing.machines(["pae-4g"], None, problems)] == ["pae-4g"]
