"""What a terminal shows while work goes on, and that nothing else does."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from types import ModuleType, SimpleNamespace

import pytest

from paravirt_mm.cli import diff, hunt, output, sweep
from paravirt_mm.cli.output import PATIENCE, per_second, progress, while_some_can
from paravirt_mm.guard import Limits
from paravirt_mm.sources.inputs import GeneratedPart
from tests.commands import Terminal

CLEARED = "\r\x1b[K"


def lines(screen: Terminal) -> list[str]:
    """Return what the one line was, one after the other."""
    return screen.getvalue().split(CLEARED)[1:]


@pytest.fixture
def no_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is not installed."""
    for name in ("rich.console", "rich.progress"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType, float], None]:
    """Let it be so many seconds after noon, for a module."""

    def set_clock(module: ModuleType, seconds: float) -> None:
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: 43200 + seconds))

    return set_clock


def test_a_rate_is_a_number_also_where_no_time_has_passed() -> None:
    assert (per_second(30, 4), per_second(3, 0), per_second(0, 4)) == (7.5, 0, 0)


def test_a_bar_is_for_terminals() -> None:
    pytest.importorskip("rich")
    for stream in (Terminal(), io.StringIO()):
        with redirect_stderr(stream):
            assert list(progress(iter("abc"), "running", 3)) == ["a", "b", "c"]
        assert ("running" in stream.getvalue()) == stream.isatty()
        # It takes its line away.
        assert stream.getvalue().endswith("\x1b[2K") == stream.isatty()


@pytest.mark.usefixtures("no_rich")
def test_without_rich_there_is_no_bar() -> None:
    with redirect_stderr(Terminal()) as screen:
        assert list(progress(iter("abc"), "running", 3)) == ["a", "b", "c"]
    assert not screen.getvalue()


def _parts() -> Iterator[GeneratedPart]:
    return (GeneratedPart(0, number) for number in range(40))


@pytest.mark.usefixtures("no_rich")
def test_a_sweep_says_how_long_it_will_take(at: Callable[[ModuleType, float], None]) -> None:
    """By what was computed now: what an earlier sweep has stored took no time."""
    at(sweep, 0)
    with redirect_stderr(Terminal()) as screen, sweep._progress(_parts) as told:
        at(sweep, 2)
        told(10, False)
        told(4, True)
        at(sweep, 5400)
        told(4, True)
        told(22, True)
    assert lines(screen) == [
        "10/40 inputs, 0.0/s, ? left",
        "14/40 inputs, 2.0/s, 0:00:13 left",
        "18/40 inputs, 0.0/s, 4:07:30 left",
        "40/40 inputs, 0.0/s, 0:00:00 left",
    ]


def test_a_sweep_has_a_bar() -> None:
    pytest.importorskip("rich")
    with redirect_stderr(Terminal()) as screen, sweep._progress(_parts) as told:
        told(30, True)
        told(10, True)
    assert re.search(r"sweeping .*40/40 inputs, [\d.]+/s, 0:00:00 left", screen.getvalue())
    assert screen.getvalue().endswith("\x1b[2K")


def test_a_hunt_says_how_near_it_is(at: Callable[[ModuleType, float], None]) -> None:
    at(hunt, 0)
    with redirect_stderr(Terminal()) as screen, hunt._progress(60) as told:
        told(1, 1.0)
        at(hunt, 4)
        told(30, 0.25)
        at(hunt, 61)
        told(31, 0.0)
    assert lines(screen) == [
        "1 try, 0/s, nearest 0.0%, 60 s left",
        "30 tries, 8/s, nearest 75.0%, 56 s left",
        "31 tries, 1/s, nearest 100.0%, 0 s left",
        "",
    ]


def test_shrinking_says_how_many_were_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def kinds(*_: object, tried: Callable[[str, int], None], **__: object) -> Iterator[str]:
        tried("brk", 7)
        yield "kind"

    monkeypatch.setattr(diff, "kinds", kinds)
    with redirect_stderr(Terminal()) as screen:
        assert [*map(str, diff._kinds([], ["brk"], 1.0, 1, Limits()))] == ["kind"]
    assert lines(screen) == ["brk: smaller machines, 7 tried", ""]


def test_what_is_shown_is_seen_at_once() -> None:
    class Buffered(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    below = io.BytesIO()
    with redirect_stderr(screen := Buffered(below, "utf-8")):
        output.show_status("half of it")
    assert below.getvalue().decode() == f"{CLEARED}half of it"
    screen.close()


def test_elsewhere_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diff, "kinds", lambda *_, tried, **__: [tried("brk", 7)])
    with redirect_stderr(io.StringIO()) as quiet:
        with sweep._progress(_parts) as told:
            told(1, True)
        with hunt._progress(60) as tried:
            tried(1, 0.5)
        list(diff._kinds([], ["brk"], 1.0, 1, Limits()))
    assert not quiet.getvalue()


def test_after_a_minute_without_any_no_more_are_tried(
    at: Callable[[ModuleType, float], None],
) -> None:
    """Each boot of a kernel that hangs takes all the time that it may have."""
    assert PATIENCE == 60

    def tried(seconds: list[float], came_out: Callable[[float], bool]) -> list[float]:
        def items() -> Iterator[float]:
            for now in seconds:
                at(output, now)
                yield now

        at(output, 0)
        return list(while_some_can(items(), came_out))

    assert tried([10, 60, 61, 62], lambda _: False) == [10, 60, 61]
    assert tried([10, 60, 61, 62], lambda item: item == 61) == [10, 60, 61, 62]
    assert tried([10, 20, 61, 90], lambda item: item == 10) == [10, 20, 61, 90]
