"""The script that makes mutants makes the kinds it promises, one at a time."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def mutate(checkout: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(checkout / "tools")
        yield importlib.import_module("mutate")


SOURCE = """
def f(a: int = 1, b=2):
    if a < b and not b:
        g(a)
    for x in reversed(a.copy()[:b]):
        y += x // 2 if x.start else -x
    return align_up(a, 4) + b - max(a, *b)
"""


def _became(mutate: Any, path: Path) -> set[str]:
    return {f"{m.was} -> {m.became}" for m in (make() for make in mutate.mutants(path))}


def test_every_kind_of_change_is_made(mutate: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_text(SOURCE)
    made = _became(mutate, path)
    assert {
        "a < b -> a <= b",
        "1 -> 2",
        "4 -> 3",
        "a < b and (not b) -> not b",
        "a < b and (not b) -> a < b",
        "not b -> b",
        "align_up -> align_down",
        "g(a) -> pass",
        "align_up(a, 4) + b -> align_up(a, 4) - b",
        "align_up(a, 4) -> a",
        "reversed -> list",
        "a.copy() -> a",
        ":b -> :",
        "y += x // 2 if x.start else -x -> pass",
        "x // 2 -> -(-x // 2)",
        "x // 2 if x.start else -x -> -x",
        "x.start -> x.end",
        "-x -> x",
    } <= made


def test_each_mutant_differs_in_one_place_and_compiles(mutate: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_text(SOURCE)
    plain = ast.unparse(ast.parse(SOURCE)).splitlines()
    for make in mutate.mutants(path):
        lines = make().source.splitlines()
        compile("\n".join(lines), "m", "exec")
        assert len(lines) == len(plain)
        assert sum(one != other for one, other in zip(lines, plain, strict=True)) == 1
    assert path.read_text() == SOURCE


def test_changes_by_hand(mutate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, table = tmp_path / "m.py", tmp_path / "rows.md"
    path.write_text(SOURCE)
    monkeypatch.setattr(sys.modules["mutants"], "TOP", tmp_path)
    table.write_text(
        "| file | was | became |\n| --- | --- | --- |\n"
        "| m.py | `if a < b and not b: ⏎         g(a)` | `if a < b: ⏎         g(b)` |\n"
        "| m.py | `g(a)` | `` |\n| m.py | `h(a)` | `` |\n| other.py | `g(a)` | `` |\n"
    )
    made = [make().source for make in mutate.edits(table, [path])]
    assert made == [
        SOURCE.replace("a < b and not b", "a < b").replace("g(a)", "g(b)"),
        SOURCE.replace("g(a)", "pass"),
    ]


def test_what_lived_is_tried_again(
    mutate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name, wherever it stands by now; what is gone, or in another file, is not."""
    monkeypatch.setattr(sys.modules["mutants"], "TOP", tmp_path)
    path, log = tmp_path / "m.py", tmp_path / "log"
    path.write_text("\n\n" + SOURCE.replace("g(a)", "h(a)"))
    log.write_text(
        "LIVES m.py:3:f: not b  ->  b\nLIVES m.py:4:f: g(a)  ->  pass\n"
        "LIVES other.py:3:f: not b  ->  b\nLIVES m.py:3:g: not b  ->  b\nm.py:5:f: 2  ->  3\n"
    )
    assert [make().what for make in mutate.again(log, [path])] == [("m.py", "f", "not b", "b")]


def test_types_are_no_code(mutate: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_text("def f(a: 'max | 3') -> 'min': ...\n")
    assert mutate.mutants(path) == []


@pytest.mark.slow
def test_a_change_is_noticed_or_not(mutate: Any, checkout: Path, tmp_path: Path) -> None:
    """In a function and in what a module runs by itself; what means the same lives."""
    import subprocess

    table = tmp_path / "rows.md"
    table.write_text(
        "| paravirt_mm/machine/paging.py | `len(self.index_bits)` | `4` |\n"
        "| paravirt_mm/machine/ranges.py | `-value % alignment` | `(-value) % alignment` |\n"
        "| paravirt_mm/machine/paging.py | `TIB = 1 << 40` | `TIB = 1 << 41` |\n"
        "| paravirt_mm/machine/paging.py | `PAGE_SHIFT = 12` | `PAGE_SHIFT = 13` |\n"
        "| paravirt_mm/machine/paging.py | `ISA_END = MIB` | `ISA_END = 1 << 20` |\n"
    )
    result = subprocess.run(
        [sys.executable, str(checkout / "tools" / "mutate.py"),
         "paravirt_mm/machine", "--tests", "tests/machine/test_model.py",
         "--edits", str(table)],
        cwd=checkout, capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert result.returncode == 1, result.stdout + result.stderr
    assert "2 of 4 mutants died" in result.stdout
    assert "cannot be made in 0 places: paravirt_mm/machine/paging.py: TIB" in result.stdout


def test_what_differs_is_the_outermost_function_or_the_module(mutate: Any, tmp_path: Path) -> None:
    """A change inside of a nested function is one of the function around it; a constant of a module
    or class, and a default, are none of any function.
    """
    path = tmp_path / "m.py"
    path.write_text("A = 1\nclass C:\n    B = 2\n    def f(self, x=3):\n        return lambda: 4\n")
    old = compile(path.read_text(), str(path), "exec", dont_inherit=True)
    found = {}
    for make in mutate.mutants(path):
        mutant = make()
        changed = mutate.changed_functions(old, mutant.code)
        found[mutant.was] = changed and [was.co_name for was, _ in changed]
    assert found == {"1": None, "2": None, "3": None, "4": ["f"]}


def test_each_folder_has_tests_that_are_there(mutate: Any, checkout: Path) -> None:
    for folder, tests in mutate.TESTS.items():
        assert (checkout / folder).is_dir()
        assert all((checkout / "tests" / name).exists() for name in tests)
    name = str(checkout / "tests" / "image")
    assert name in mutate.tests_for(checkout / "paravirt_mm" / "image" / "walker.py")


@pytest.mark.slow
def test_equivalent_mutants_are_ones_that_it_makes(mutate: Any) -> None:
    """In the function that the line names; and each says why."""
    made: dict[str, set[Any]] = {}
    for name, *change in mutate.equivalent():
        if name not in made:
            made[name] = sys.modules["mutants"].changes(mutate.TOP / name)
        assert tuple(change) in made[name], (name, change)


def test_changes_are_those_of_the_mutants(mutate: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_text(SOURCE)
    made = [(m.where, m.was, m.became) for m in (make() for make in mutate.mutants(path))]
    assert sys.modules["mutants"].changes(path) == set(made)
    assert len(made) == len(set(made))


def test_a_change_is_told_by_the_function_that_it_is_in(mutate: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_text("A = 1\nclass C:\n    def f(self):\n        return (1, lambda: 1, g(2))\n")
    made = sys.modules["mutants"].changes(path)
    assert {where for where, was, _ in made if was == "1"} == {"<module>", "C.f", "C.f#2"}
    assert {where for where, was, _ in made if was == "2"} == {"C.f"}


@pytest.mark.slow
def test_slow_tests_see_a_change_in_commands_that_they_start(
    mutate: Any, tmp_path: Path, tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails without any change is left out; the quick tests do not run; nothing stays."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\nmarkers = ['slow','full']")
    program, tests = tmp_path / "said.py", tmp_path / "test_said.py"
    program.write_text("print(1 + 2, 5)\n")
    tests.write_text(
        "import subprocess, sys, pytest\n"
        "@pytest.mark.slow\ndef test_it():\n"
        "    said = subprocess.run([sys.executable, '-m', 'said'], capture_output=True)\n"
        "    assert said.stdout.startswith(b'3 ')\n"
        "@pytest.mark.slow\ndef test_red(): assert False\n"
        "def test_quick(): assert False\n"
    )
    for module in (mutate, sys.modules["mutants"]):
        monkeypatch.setattr(module, "TOP", tmp_path)
    copied = mutate.Copied(tmp_path_factory.mktemp("home"), [str(tests)])
    made = {(m.was, m.became): m for m in (make() for make in mutate.mutants(program))}
    assert copied.notices(made["1 + 2", "1 - 2"])
    assert not copied.notices(made["5", "6"])
    assert copied.notices(made["2", "3"])
    assert program.read_text() == "print(1 + 2, 5)\n"


@pytest.mark.slow
def test_what_a_fixture_or_a_kept_result_calls_is_of_each_test(
    mutate: Any, pytester: pytest.Pytester
) -> None:
    """The second test of a module would not call it, where both run in one process."""
    path = pytester.makepyfile(
        test_m="""
        import pytest, threading
        _KEPT = {}
        def aside(): pass
        def made(): return 1
        def kept(): return 2
        def result():
            if not _KEPT:
                _KEPT[0] = kept()
            return _KEPT[0]
        @pytest.fixture(scope="module")
        def it():
            thread = threading.Thread(target=aside)
            thread.start()
            thread.join()
            return made()
        def test_one(it): assert it == 1 and result() == 2
        def test_two(it): assert it == 1 and result() == 2
        def test_red(): assert False
        """
    )
    found = {}

    def work(suite: Any) -> None:
        assert suite.measure() == ["test_m.py::test_red"]
        lines = path.read_text().splitlines()
        for name, called in suite.calls.items():
            found[name[-3:]] = {lines[first - 1].split("(")[0] for _, first in called}

    pytester.inline_run("-p", "no:cacheprovider", plugins=[mutate.Suite(work, [str(path)])])
    called = {"def made", "def kept", "def result", "def aside"}
    assert all(called <= found[name] for name in ("one", "two"))
