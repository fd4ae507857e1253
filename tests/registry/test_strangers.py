"""Plugins of others are tried in a child: what becomes of each, and of this process."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from paravirt_mm.entry_points import Choice, Place, Point, precedence
from paravirt_mm.errors import Ended
from paravirt_mm.guard import Limits
from paravirt_mm.invariants import rules
from paravirt_mm.plugin import problems
from paravirt_mm.strangers import Tried, tried
from paravirt_mm.testing import AscendingAllocator, PlainPlatform

SHORT = Limits(cpu=0.15, wall=20.0)
"""For what does not end; the others would not always be done so soon on a busy machine."""
LONG = Limits(cpu=10.0, wall=60.0)


@attrs.frozen
class Loaded:
    """An entry point; importing it does something."""

    act: Callable[[], object]
    value: str = "mine:X"

    def load(self) -> object:
        return self.act()


def _spin() -> None:
    while True:
        pass


def _replace() -> object:
    vars(rules)["check"] = None
    return AscendingAllocator


def _replace_many() -> object:
    for name in [one for one, value in vars(rules).items() if callable(value)]:
        if not name.startswith("__"):
            vars(rules)[name] = None
    return AscendingAllocator


def _start() -> object:
    threading.Thread(target=time.sleep, args=(9,)).start()
    return AscendingAllocator


def _fork() -> object:
    if not os.fork():
        os._exit(0)
    return AscendingAllocator


def _fork_both() -> object:
    os.fork()
    return AscendingAllocator


def _said(act: Callable[[], Any], limits: Limits = LONG) -> Tried:
    ((name, found),) = tried({"mine": Loaded(act)}, problems, limits)
    assert name == "mine"
    return found


def test_what_can_be_used_tells_its_hooks() -> None:
    found = _said(lambda: AscendingAllocator)
    assert (found.problem, found.stopped) == ("", False)
    assert {"pvmm_map_steps", "pvmm_promise"} <= set(found.hooks)
    assert "pvmm_boot_state" not in found.hooks


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "raises": (lambda: 1 / 0, "cannot be loaded from mine:X: ZeroDivisionError"),
    "interrupts": (lambda: (_ for _ in ()).throw(KeyboardInterrupt), "KeyboardInterrupt"),
    "ends": (lambda: os._exit(5), "its process ended with exit code 5"),
    "starts a thread": (_start, "cannot be loaded from mine:X: it starts a thread"),
    "starts a process": (_fork, "cannot be loaded from mine:X: it starts a process"),
    "comes back twice": (_fork_both, "cannot be loaded from mine:X: it starts a process"),
    "replaces": (_replace, "importing it replaces paravirt_mm.invariants.rules.check"),
    "no plugin": (lambda: 3, "must name a class"),
    "no attrs class": (lambda: int, "must name a class"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_used_says_why(what: str) -> None:
    act, words = WRONG[what]
    before = rules.check, threading.active_count(), os.getcwd()
    found = _said(act)
    assert words in found.problem
    assert (found.hooks, found.stopped) == ((), False)
    assert (rules.check, threading.active_count(), os.getcwd()) == before


def test_a_signal_to_end_is_nobodys_fault() -> None:
    def ended() -> None:
        raise Ended(3)

    with pytest.raises(Ended):
        _said(ended)


def test_of_many_that_it_replaces_five_are_named() -> None:
    names = _said(_replace_many).problem.partition("replaces ")[2].split(", ")
    assert len(names) == 5
    assert names == sorted(names)


def test_who_takes_too_long_may_be_tried_again() -> None:
    found = _said(_spin, SHORT)
    assert found.stopped
    assert "longer than 0.15 s" in found.problem


def test_each_of_many_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paravirt_mm.strangers.AT_A_TIME", 2)
    points = {f"x{number}": Loaded(lambda: PlainPlatform) for number in range(3)}
    points["x1"] = Loaded(lambda: os._exit(3))
    found = list(tried(points, problems, LONG))
    assert sorted(name for name, _ in found) == sorted(points)
    assert [name for name, one in found if one.problem] == ["x1"]


def test_what_it_prints_while_it_is_tried_is_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    assert _said(lambda: os.write(1, b"a") + os.write(2, b"b") and AscendingAllocator).problem == ""
    assert capfd.readouterr() == ("", "")


# -- where they are --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted", "unwanted"),
    [
        ("", "abc", ""),
        (" , ", "abc", ""),
        ("a, b", "ab", "c"),
        ("-a,-b", "c", "ab"),
        ("a,b,-b", "a", "bc"),
        ("-all", "", "abc"),
        ("a,-all", "", "abc"),
    ],
)
def test_plugins_are_chosen_by_name(text: str, wanted: str, unwanted: str) -> None:
    choice = Choice.parse(text)
    assert [one for one in "abc" if one in choice] == list(wanted)
    assert [one for one in "abc" if one not in choice] == list(unwanted)


@pytest.mark.parametrize(
    ("value", "names"),
    [("a.b:C", True), ("a : C ", True), ("a", False), ("a:b:c", False), ("a:B [x]", False)],
)
def test_an_entry_point_names_a_class(value: str, names: bool) -> None:
    assert Point(Place(value), "somebody", "1").names_a_class == names


def test_of_one_name_ours_comes_first_and_then_by_distribution() -> None:
    ours = ("b", Point(Place("z:Z"), "paravirt-mm", "1"))
    first, second = (("b", Point(Place(f"{one}:A"), "aaa", "1")) for one in "ab")
    other, before = ("b", Point(Place("a:A"), "zzz", "1")), ("a", Point(Place("a:A"), "zzz", "1"))
    wanted = [before, ours, first, second, other]
    assert sorted([*wanted[::-1]], key=precedence) == wanted
    assert [found.strange for _, found in wanted] == [True, False, True, True, True]


def test_a_file_is_imported_once_and_not_at_all_where_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.path", ["/first"])
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text(f"class X: folder = '{folder}'\n")
    places = [Place(f"{tmp_path}/{folder}/same.py:X") for folder in "ab"]
    assert [place.load().folder for place in places] == ["a", "b"]
    assert places[0].load() is places[0].load()
    assert sys.path == ["/first", f"{tmp_path}/a", f"{tmp_path}/b"]
    bad = tmp_path / "bad.py"
    bad.write_text("raise OSError('not yet')\n")
    for _ in range(2):
        with pytest.raises(OSError, match="not yet"):
            Place(f"{bad}:X").load()
    bad.write_text("class X: fine = True  # which is longer\n")
    assert Place(f"{bad}:X").load().fine


def test_a_package_is_imported_by_the_name_that_it_has_where_the_process_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a link of that name leads."""
    (tmp_path / "elsewhere" / "copied").mkdir(parents=True)
    (tmp_path / "elsewhere" / "copied" / "__init__.py").write_text("class X: fine = True\n")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "linked_package").symlink_to(tmp_path / "elsewhere" / "copied")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("sys.path", [])
    assert Place("linked_package:X").load().fine
