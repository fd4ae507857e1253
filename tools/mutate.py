#!/usr/bin/env python3
"""Make single changes to the code, run the tests that concern it, and see whether they notice.

    tools/mutate.py paravirt_mm/engine --count 200 --seed 1

A mutant changes one thing: an off by one, a comparison, a rounding, a constant, an order, a dropped
condition or statement. What lives is printed with file, line and change; the score is the share
that died, without those that `tools/equivalent.txt` argues to mean the same. Exit code 1: some
lived.

One process imports everything and collects the tests of the folder (`TESTS`). A first child runs
them and sees which functions each test calls, also in children of its own. Then every mutant is a
fork in which the function has its changed code, and runs the tests that call it, the quickest
first, until one fails: most take a fraction of a second. What is no function, the constants and
tables of a module, is changed in a copy of the checkout and tested by a fresh pytest.

Not mutmut or cosmic-ray, on purpose: they know none of the changes that matter most here (rounding
helpers, ends of ranges, order), and neither samples a folder against the tests that concern it.
"""

from __future__ import annotations

import argparse
import ast
import copy
import gc
import importlib
import json
import mmap
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

TOP = Path(__file__).resolve().parents[1]
EQUIVALENT = Path(__file__).with_name("equivalent.txt")

TESTS = {
    "paravirt_mm/engine": ["engine", "invariants", "plugins", "machine"],
    "paravirt_mm/machine": ["machine", "sources", "engine"],
    "paravirt_mm/measure": ["measure", "report"],
    "paravirt_mm/invariants": ["invariants", "engine"],
    "paravirt_mm/image": ["image", "plugins"],
    "paravirt_mm/sources": ["sources", "verify"],
    "paravirt_mm/verify": ["verify"],
    "paravirt_mm/report": ["report", "cli", "view"],
    "paravirt_mm/view": ["view", "report"],
    "paravirt_mm/cli": ["cli", "report"],
    "paravirt_mm/sweep": ["sweep"],
    "paravirt_mm/hunt": ["hunt"],
    "paravirt_mm/testing": ["testing", "new_plugin"],
    "paravirt_mm": ["registry", "engine", "guard", "cli", "report", "plugins"],
    "plugins": ["plugins", "measure", "verify", "matrix"],
}
"""By folder, the folders of tests whose quick part concerns it; the longest name that fits counts.
"""


@dataclass(frozen=True)
class Mutant:
    """One change: where, what it was, what it became, and the file with it; ``code`` is the file
    compiled, its lines where they were.
    """

    path: Path
    line: int
    was: str
    became: str
    source: str
    code: CodeType

    def __str__(self) -> str:
        return f"{self.path.relative_to(TOP)}:{self.line}: {self.was}  ->  {self.became}"

    @property
    def what(self) -> tuple[str, str, str]:
        """What `tools/equivalent.txt` knows it by."""
        return str(self.path.relative_to(TOP)), self.was, self.became


_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.Mod: ast.FloorDiv,
}
_NAMES = {
    "align_up": "align_down",
    "align_down": "align_up",
    "min": "max",
    "max": "min",
    "bisect_left": "bisect_right",
    "bisect_right": "bisect_left",
    "all": "any",
    "any": "all",
    "sorted": "list",
    "reversed": "list",
}


def _changes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what a node could become."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        new = copy.deepcopy(node)
        new.ops = [_COMPARISONS[type(node.ops[0])]()]
        yield new
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        if not isinstance(node.left, ast.Constant | ast.JoinedStr) or _number(node.left):
            new_op = copy.deepcopy(node)
            new_op.op = _OPERATORS[type(node.op)]()
            yield new_op
    elif _number(node):
        for delta in (1, -1):
            yield ast.copy_location(ast.Constant(ast.literal_eval(node) + delta), node)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in _NAMES:
        yield ast.copy_location(ast.Name(_NAMES[node.id], ast.Load()), node)
    elif isinstance(node, ast.BoolOp):
        for place in range(len(node.values)):
            fewer = copy.deepcopy(node)
            del fewer.values[place]
            yield fewer.values[0] if len(fewer.values) == 1 else fewer
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.stmt):
        yield from _statements(node)


def _statements(node: ast.stmt) -> Iterator[ast.AST]:
    """Yield what a statement could become: a condition that always or never holds, no call."""
    if isinstance(node, ast.If):
        for value in (True, False):
            always = copy.deepcopy(node)
            always.test = ast.copy_location(ast.Constant(value), node.test)
            yield always
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.copy_location(ast.Pass(), node)


def _number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int


class _At(ast.NodeTransformer):
    """Put something else in the place of the n-th node that `ast.walk` comes to."""

    def __init__(self, target: ast.AST, new: ast.AST) -> None:
        self.target, self.new = target, new

    def visit(self, node: ast.AST) -> ast.AST:
        """Replace the one node, keep the others."""
        return self.new if node is self.target else super().generic_visit(node)


def _annotations(tree: ast.Module) -> set[int]:
    """What is only read by type checkers and people."""
    found: set[int] = set()
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            part = getattr(node, name, None)
            if isinstance(part, ast.AST):
                found |= {id(inner) for inner in ast.walk(part)}
        test = getattr(node, "test", None)
        if isinstance(node, ast.If) and isinstance(test, ast.Name) and test.id == "TYPE_CHECKING":
            found |= {id(inner) for inner in ast.walk(node)}
    return found


def mutants(path: Path) -> list[Callable[[], Mutant]]:
    """Return every mutant of a file, each made when it is asked for."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    skip = _annotations(tree)
    return [
        partial(_mutant, path, text, place, which)
        for place, node in enumerate(ast.walk(tree))
        if id(node) not in skip and hasattr(node, "lineno")
        for which, _ in enumerate(_changes(node))
    ]


def _mutant(path: Path, text: str, place: int, which: int) -> Mutant:
    """Make change number ``which`` of the node number ``place``, in a tree of its own."""
    tree = ast.parse(text)
    node = next(islice(ast.walk(tree), place, None))
    new = ast.copy_location(next(islice(_changes(node), which, None)), node)
    was, became = _short(ast.unparse(node)), _short(ast.unparse(new))
    line = getattr(node, "lineno", 0)
    _At(node, new).visit(tree)
    changed = ast.fix_missing_locations(tree)
    code = compile(changed, str(path), "exec", dont_inherit=True)
    return Mutant(path, line, was, became, ast.unparse(changed), code)


def _short(text: str) -> str:
    return " ".join(text.split())[:90]


def changed_functions(old: CodeType, new: CodeType) -> list[tuple[CodeType, CodeType]] | None:
    """Return the outermost functions that differ, as they were and as they became; None where the
    difference is what a module or a class runs by itself.
    """
    if _own(old) != _own(new):
        return None
    found: list[tuple[CodeType, CodeType]] = []
    for was, became in zip(_inner(old), _inner(new), strict=True):
        if was == became:
            continue
        if was.co_flags & _IS_FUNCTION:
            found.append((was, became))
            continue
        inside = changed_functions(was, became)
        if inside is None:
            return None
        found += inside
    return found


_IS_FUNCTION = 0x0001 | 0x0002  # inspect.CO_OPTIMIZED | CO_NEWLOCALS


def _inner(code: CodeType) -> list[CodeType]:
    return [each for each in code.co_consts if isinstance(each, CodeType)]


def _own(code: CodeType) -> tuple[Any, ...]:
    consts = [
        "code" if isinstance(each, CodeType) else (type(each).__name__, repr(each))
        for each in code.co_consts
    ]
    return code.co_code, code.co_names, consts


Where = tuple[str, int]
"""A function: its file and first line."""


@dataclass(eq=False)
class Suite:
    """The collected tests, and what each calls. A plugin of pytest."""

    work: Callable[[Suite], None]
    files: list[str]
    session: Any = None
    calls: dict[str, set[Where]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failed: bool = False

    def pytest_runtestloop(self, session: Any) -> bool:
        """Do the work in the place of running each test once."""
        self.session = session
        self.work(self)
        return True

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Remember that something failed."""
        self.failed |= report.failed

    def run(self, items: list[Any], after: Any = None) -> bool:
        """Run tests until one fails; tell whether none did. ``after``: what will run then."""
        self.failed = False
        for item, following in zip(items, [*items[1:], after], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed:
                return False
        return True

    def measure(self) -> list[str]:
        """Run each test in a child, and learn how long it takes and which functions it calls.

        Return those that fail, or that were not come to.
        """
        places: dict[Where, int] = {}
        marks = mmap.mmap(-1, 1 << 16)
        for name in self.files:
            for code in _codes(compile(Path(name).read_text("utf-8"), name, "exec")):
                places.setdefault((name, code.co_firstlineno), len(places))

        def note(frame: FrameType, _event: str, _arg: object) -> None:
            code = frame.f_code
            place = places.get((code.co_filename, code.co_firstlineno))
            if place is not None:
                marks[place] = 1

        def child() -> bool:
            items = self.session.items
            for item, following in zip(items, [*items[1:], None], strict=True):
                marks[:] = bytes(len(marks))
                begin = time.process_time()
                sys.settrace(note)
                good = self.run([item], following)
                sys.settrace(None)
                called = [where for where, place in places.items() if marks[place]]
                told = json.dumps([item.nodeid, good, time.process_time() - begin, called])
                os.write(out, told.encode() + b"\n")
            return True

        bad = {item.nodeid for item in self.session.items}
        with tempfile.TemporaryFile() as file:
            out = file.fileno()
            _in_child(child, 3600)
            file.seek(0)
            for line in file:
                name, good, taken, called = json.loads(line)
                self.seconds[name] = taken
                self.calls[name] = {(path, first) for path, first in called}
                if good:
                    bad.remove(name)
        return sorted(bad)

    def notices(self, mutant: Mutant, functions: list[tuple[CodeType, CodeType]]) -> bool | None:
        """Tell whether a test that calls the changed functions fails; None if that is not known."""
        live = [(_live(was), became) for was, became in functions]
        if not all(found for found, _ in live):
            return None
        wanted = {(str(mutant.path), was.co_firstlineno) for was, _ in functions}
        items = [item for item in self.session.items if wanted & self.calls[item.nodeid]]
        items.sort(key=lambda item: self.seconds[item.nodeid])

        def child() -> bool:
            for found, became in live:
                for function in found:
                    function.__code__ = became
            return self.run(items)

        limit = 10 + 5 * sum(self.seconds[item.nodeid] for item in items)
        return bool(items) and _in_child(child, limit) != 0

    def files_that_call(self, path: Path) -> list[str]:
        """Return the test files that call anything of a file, the quickest first."""
        taken: dict[str, float] = {}
        for name, called in self.calls.items():
            if any(where == str(path) for where, _ in called):
                file = name.split("::")[0]
                taken[file] = taken.get(file, 0) + self.seconds[name]
        return sorted(taken, key=lambda name: taken[name])


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for inner in _inner(code):
        yield from _codes(inner)


def _live(code: CodeType) -> list[FunctionType]:
    return [
        each for each in gc.get_objects() if type(each) is FunctionType and each.__code__ == code
    ]


def _in_child(work: Callable[[], bool], seconds: float) -> int:
    """Return the exit code of a child that does the work: 0 if it says that all is well."""
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        code = 2
        with suppress(BaseException):
            os.setpgid(0, 0)
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(null, stream)
            resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
            signal.alarm(int(10 * seconds) + 60)
            code = 0 if work() else 1
        os._exit(code)
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


@dataclass
class Copy:
    """A copy of the checkout, made when it is first needed, for what cannot be changed in place."""

    folder: Path
    made: bool = False

    def notices(self, mutant: Mutant, tests: list[str], seconds: float) -> bool:
        """Tell whether a fresh pytest fails with the change."""
        if not self.made:
            left_out = shutil.ignore_patterns(".git", ".venv", "build", "*cache*", ".hyp*")
            shutil.copytree(TOP, self.folder, ignore=left_out)
            self.made = True
        place = self.folder / mutant.path.relative_to(TOP)
        before = place.read_text(encoding="utf-8")
        place.write_text(mutant.source, encoding="utf-8")
        # No bytecode: two mutants of one second and one size look the same to it.
        folders = [self.folder, *sorted((self.folder / "plugins").iterdir())]
        path = os.pathsep.join(map(str, folders))
        try:
            done = subprocess.run(  # noqa: S603  # our own tests
                [sys.executable, "-m", "pytest", "-x", *OPTIONS, *tests],
                cwd=self.folder,
                capture_output=True,
                timeout=60 + 20 * seconds,
                check=False,
                env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            )
        except subprocess.TimeoutExpired:
            return True
        finally:
            place.write_text(before, encoding="utf-8")
        return done.returncode != 0


OPTIONS = ["-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist"]


@dataclass
class Score:
    """What became of the mutants."""

    died: int = 0
    equivalent: int = 0
    lived: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counted = self.died + len(self.lived)
        share = f" ({self.died / counted:.1%})" if counted else ""
        return f"{self.died} of {counted} mutants died{share}, {self.equivalent} equivalent"


def equivalent() -> set[tuple[str, str, str]]:
    """Return the mutants that are argued to mean the same: ``FILE: WAS  ->  BECAME  # WHY``."""
    found = set()
    for line in EQUIVALENT.read_text("utf-8").splitlines():
        change, _, why = line.partition("  # ")
        if why and not line.startswith("#"):
            path, _, change = change.partition(": ")
            was, _, became = change.partition("  ->  ")
            found.add((path, was, became))
    return found


def score(suite: Suite, chosen: list[Callable[[], Mutant]], seconds: float) -> Score:
    """Try mutants until the time is over; print those that live."""
    end = time.monotonic() + seconds
    result, known = Score(), equivalent()
    with tempfile.TemporaryDirectory(prefix="paravirt-mm-mutants-") as folder:
        apart = Copy(Path(folder) / "tree")
        for make in chosen:
            if time.monotonic() > end:
                break
            mutant = make()
            if mutant.what in known:
                result.equivalent += 1
                continue
            text = mutant.path.read_text(encoding="utf-8")
            functions = changed_functions(
                compile(text, str(mutant.path), "exec", dont_inherit=True), mutant.code
            )
            noticed = suite.notices(mutant, functions) if functions is not None else None
            if noticed is None:
                tests = suite.files_that_call(mutant.path)
                noticed = bool(tests) and apart.notices(mutant, tests, sum(suite.seconds.values()))
            if noticed:
                result.died += 1
            else:
                result.lived.append(str(mutant))
                print(f"LIVES {mutant}", flush=True)
    return result


def tests_for(path: Path) -> list[str]:
    """Return the folders of tests that concern a file or folder."""
    name = str(path.resolve().relative_to(TOP))
    best = max((key for key in TESTS if f"{name}/".startswith(f"{key}/")), key=len)
    return [str(TOP / "tests" / folder) for folder in TESTS[best]]


def main() -> int:
    """Make some mutants of some files, and print the score."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("paths", nargs="+", type=Path, help="files or folders of the package")
    parser.add_argument("--tests", nargs="+", help="what pytest is given [those of the folder]")
    parser.add_argument("--count", type=int, default=20, help="mutants, chosen by chance [20]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so long")
    given = parser.parse_args()
    files = [
        file.resolve()
        for path in given.paths
        for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])
    ]
    makers = [make for file in files for make in mutants(file)]
    chosen = random.Random(given.seed).sample(makers, min(given.count, len(makers)))  # noqa: S311
    tests = given.tests or [test for path in given.paths for test in tests_for(path)]
    codes = [2]

    def work(suite: Suite) -> None:
        for file in files:
            with suppress(ImportError):
                importlib.import_module(_module(file))
        if failing := suite.measure():
            failing[8:] = [f"and {len(failing) - 8} more"] if len(failing) > 8 else []
            print("fail without any change:", *failing, sep="\n  ")
            return
        result = score(suite, chosen, given.seconds)
        print(f"{result} (of {len(makers)} possible, seed {given.seed})")
        codes[0] = 1 if result.lived else 0

    import pytest

    os.chdir(TOP)
    arguments = [
        *OPTIONS,
        "-s",
        "-p",
        "no:terminal",
        "-o",
        "addopts=--import-mode=importlib",
        *dict.fromkeys(map(str, tests)),
    ]
    pytest.main(arguments, plugins=[Suite(work, [str(file) for file in files])])
    return codes[0]


def _module(path: Path) -> str:
    parts = list(path.relative_to(TOP).with_suffix("").parts)
    if parts[0] == "plugins":
        del parts[:2]
    return ".".join(parts).removesuffix(".__init__")


if __name__ == "__main__":
    sys.exit(main())
