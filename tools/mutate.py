#!/usr/bin/env python3
"""Make single changes to the code, run the tests that concern it, and see whether they notice.

    tools/mutate.py paravirt_mm/engine --count 200 --seed 1

A mutant changes one thing: an off by one, a comparison, a rounding, a constant, an order, a dropped
condition or statement (`tools/mutants.py`). What lives is printed with file, line and change; the
score is the share that died, without those that `tools/equivalent.txt` argues to mean the same.
Exit code 1: some lived.

One process imports everything and collects the tests of the folder (`TESTS`). Each test runs in a
child of its own, which sees the functions it calls, also in its threads and children. Then every
mutant is a fork in which the function has its changed code, and runs the tests that call it, the
quickest first, until one fails: most take a fraction of a second. What a module runs by itself, its
constants and tables, is tested by a fresh pytest that imports the file with the change. Commands
that tests start as processes of their own never see it: who dies is counted low, never high.
With ``--slow`` what lives is written into a copy of the project, where the slow tests of the folder
run, commands and all: seconds to minutes for each.

Not mutmut or cosmic-ray, on purpose: they know none of the changes that matter most here (rounding
helpers, ends of ranges, order), and neither samples a folder against the tests that concern it.
"""

from __future__ import annotations

import argparse
import ast
import fcntl
import functools
import gc
import importlib
import json
import mmap
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

from mutants import TOP, Mutant, again, edits, mutants

EQUIVALENT = Path(__file__).with_name("equivalent.txt")

TESTS = {
    "paravirt_mm/engine": ["engine", "invariants", "plugins", "machine"],
    "paravirt_mm/machine": ["machine", "sources", "engine", "invariants"],
    "paravirt_mm/measure": ["measure", "report"],
    "paravirt_mm/invariants": ["invariants", "engine"],
    "paravirt_mm/image": ["image", "plugins"],
    "paravirt_mm/sources": ["sources", "verify", "sweep/test_parts.py"],
    "paravirt_mm/verify": ["verify"],
    "paravirt_mm/report": ["report", "cli", "view"],
    "paravirt_mm/view": ["view", "report"],
    "paravirt_mm/cli": [
        "cli", "report", "verify", "sweep/test_command.py", "sweep/test_query.py",
        "sweep/test_work.py", "hunt/test_hunt.py", "view/test_commands.py", "image/test_inspect.py",
        "new_plugin", "test_diff.py", "registry", "plugins/faulty", "testing",
    ],
    "paravirt_mm/sweep": ["sweep"],
    "paravirt_mm/hunt": ["hunt"],
    "paravirt_mm/testing": ["testing", "new_plugin", "verify/test_cpu.py", "image", "sweep"],
    "paravirt_mm": [
        "registry", "engine", "guard", "cli", "report", "plugins", "hunt", "test_comparison.py",
        "test_diff.py", "test_differences.py", "test_docs.py", "test_evidence.py",
        "test_untouched.py",
    ],
    "plugins/chunk_end": ["plugins/chunk_end", "plugins/test_releases.py"],
    "plugins/faulty": ["plugins/faulty"],
    "plugins/incremental": [
        "plugins/incremental", "plugins/test_releases.py", "verify/test_linux_model.py",
        "verify/test_kernel.py",
    ],
    "plugins/legacy_linear": [
        "plugins/legacy_linear", "plugins/test_releases.py", "verify/test_kernel.py",
    ],
    "plugins/linux": ["plugins/test_linux.py", "plugins/test_releases.py", "verify"],
    "plugins/native": ["plugins/native", "measure", "matrix"],
    "plugins/xen": ["plugins/xen"],
}  # fmt: skip
"""By folder, the tests whose quick part concerns it; the longest name that fits counts."""


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
    early: set[Where] = field(default_factory=set)
    """What importing and collecting calls: its results may be older than a change of it."""
    failed: bool = False
    noticed: Counter[str] = field(default_factory=Counter)
    """How many mutants each test has noticed: those come first, their like die of them, too."""

    def __post_init__(self) -> None:
        self._places: dict[Where, int] = {}
        for name in self.files:
            for code in _codes(compile(Path(name).read_text("utf-8"), name, "exec")):
                self._places.setdefault((name, code.co_firstlineno), len(self._places))
        sys.settrace(self._note_early)

    def _note_early(self, frame: FrameType, _event: str, _arg: object) -> None:
        code = frame.f_code
        if (code.co_filename, code.co_firstlineno) in self._places:
            self.early.add((code.co_filename, code.co_firstlineno))

    def pytest_runtestloop(self, session: Any) -> bool:
        """Do the work in the place of running each test once."""
        sys.settrace(None)
        self.session = session
        session.config.option.tbstyle = "no"  # nobody reads how a test failed
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
        """Run each test in a child of its own, and learn how long it takes and which functions it
        calls: those also of its module's fixtures, and those whose results would be kept.

        Return those that fail, or that were not come to.
        """
        places = self._places
        marks = mmap.mmap(-1, 1 << 16)

        def note(frame: FrameType, _event: str, _arg: object) -> None:
            code = frame.f_code
            place = places.get((code.co_filename, code.co_firstlineno))
            if place is not None:
                marks[place] = 1

        def child(item: Any) -> bool:
            threading.settrace(note)
            sys.settrace(note)
            return self.run([item])

        bad = []
        for item in self.session.items:
            marks[:] = bytes(len(marks))
            begin = _seconds_of_children()
            if _in_child(functools.partial(child, item), 600) != 0:
                bad.append(item.nodeid)
            self.seconds[item.nodeid] = _seconds_of_children() - begin
            self.calls[item.nodeid] = {where for where, place in places.items() if marks[place]}
        return bad

    def leave_out(self, names: list[str]) -> None:
        """Forget tests that say nothing about a change."""
        self.session.items = [item for item in self.session.items if item.nodeid not in names]

    def notices(self, mutant: Mutant, functions: list[tuple[CodeType, CodeType]]) -> bool | None:
        """Tell whether a test that calls the changed functions fails; None if that is not known."""
        live = [(_live(was), became) for was, became in functions]
        if not all(found for found, _ in live):
            return None
        wanted = {(str(mutant.path), was.co_firstlineno) for was, _ in functions}
        items = [item for item in self.session.items if wanted & self.calls[item.nodeid]]
        items.sort(key=lambda item: (-self.noticed[item.nodeid], self.seconds[item.nodeid]))
        reached = mmap.mmap(-1, 8)

        def child() -> bool:
            for found, became in live:
                for function in found:
                    function.__code__ = became
            _forget_results([function for found, _ in live for function in found])
            for number, item in enumerate(items):
                reached[:] = number.to_bytes(8, "little")
                # A loop without end is noticed by the test that runs into it.
                signal.setitimer(signal.ITIMER_PROF, 5 + 5 * self.seconds[item.nodeid])
                if not self.run([item], items[number + 1] if number + 1 < len(items) else None):
                    return False
            return True

        limit = 10 + 5 * sum(self.seconds[item.nodeid] for item in items)
        if items and _in_child(child, limit) != 0:
            self.noticed[items[int.from_bytes(reached, "little")].nodeid] += 1
            return True
        return None if wanted & self.early else False

    def files_that_call(self, path: Path) -> list[str]:
        """Return the test files that call anything of a file or import it, the quickest first; all
        of them, where nothing of it is a function.
        """
        taken: dict[str, float] = {}
        some = any(where == str(path) for called in self.calls.values() for where, _ in called)
        for name, called in self.calls.items():
            file = name.split("::")[0]
            if (
                not some
                or _module(path) in _imported(file)
                or any(where == str(path) for where, _ in called)
            ):
                taken[file] = taken.get(file, 0) + self.seconds[name]
        return sorted(taken, key=lambda name: taken[name])


@functools.cache
def _imported(file: str) -> set[str]:
    """What a file may import, by full names: modules, and what it takes out of them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((TOP / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{each.name}" for each in node.names)}
    return found


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for inner in _inner(code):
        yield from _codes(inner)


@functools.cache
def _all_functions() -> dict[CodeType, list[FunctionType]]:
    """Every function of the project that lives when all tests are collected, by its code."""
    found: dict[CodeType, list[FunctionType]] = {}
    for each in gc.get_objects():
        if type(each) is FunctionType and each.__code__.co_filename.startswith(str(TOP)):
            found.setdefault(each.__code__, []).append(each)
    return found


def _live(code: CodeType) -> list[FunctionType]:
    return _all_functions().get(code, [])


@functools.cache
def _all_results() -> list[Any]:
    """What may keep results of functions of the project: their caches, and their properties."""
    return [
        each
        for each in gc.get_objects()
        if (type(each) is functools._lru_cache_wrapper and "paravirt" in str(each.__module__))
        or type(each) is functools.cached_property
    ]


def _forget_results(functions: list[FunctionType]) -> None:
    """Empty the caches, and those properties that the functions have worked out already."""
    for each in _all_results():
        if type(each) is functools.cached_property:
            if each.func in functions:
                name = each.attrname or ""
                gc.unfreeze()
                for owner in gc.get_objects():
                    if getattr(type(owner), name, None) is each:
                        vars(owner).pop(name, None)
        else:
            each.cache_clear()


def _seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


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


class Afresh:
    """A process in which nothing of the project is imported yet: each of its children imports it
    with one file changed. For what a module runs by itself, which no running process can take back.
    """

    def __init__(self) -> None:
        # Far from 0, 1 and 2: a mutant of their numbers must not write into it.
        mine, its = map(_moved, socket.socketpair())
        self._tried = False
        self._noticed: Counter[str] = Counter()
        self._reached = mmap.mmap(-1, 8)
        self._pid = os.fork()
        if self._pid:
            self._asked = mine.makefile("rwb")
            its.close()
            return
        mine.close()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        asked = its.makefile("rwb")
        import attrs
        import numpy as np
        import pytest
        import rich  # what most tests import, once for all of them

        _ = attrs, np, rich
        for line in asked:
            path, source, tests, seconds = json.loads(line)

            def child(path: str = path, source: str = source, tests: Any = tests) -> bool:
                _import_as(path, source)
                for number, test in enumerate(tests):
                    self._reached[:] = number.to_bytes(8, "little")
                    code = pytest.main(["-x", "--tb=no", *OPTIONS, test])
                    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
                        return False
                return True

            asked.write(b"%d\n" % _in_child(child, seconds))
            asked.flush()
        os._exit(0)

    def notices(self, mutant: Mutant, tests: list[str], seconds: float) -> bool:
        """Tell whether pytest fails with the change. Raises RuntimeError if it does without any."""
        if not self._tried:
            self._tried = True
            plain = mutant.path.read_text(encoding="utf-8")
            if self._fails(str(mutant.path), plain, tests[:1], seconds):
                raise RuntimeError("pytest cannot be run afresh")
        # The file that has noticed most of them comes first.
        tests = sorted(tests, key=lambda test: -self._noticed[test])
        found = self._fails(str(mutant.path), mutant.source, tests, seconds)
        if found:
            self._noticed[tests[int.from_bytes(self._reached, "little")]] += 1
        return found

    def _fails(self, path: str, source: str, tests: list[str], seconds: float) -> bool:
        told = json.dumps([path, source, tests, 60 + 5 * seconds])
        self._asked.write(told.encode() + b"\n")
        self._asked.flush()
        return int(self._asked.readline()) != 0


def _moved(one: socket.socket) -> socket.socket:
    with one:
        return socket.socket(fileno=fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 100))


def _import_as(path: str, source: str) -> None:
    """Let whoever imports the file get other code."""
    plain = SourceFileLoader.get_code

    def get_code(self: SourceFileLoader, fullname: str) -> CodeType | None:
        if os.path.realpath(self.path) == path:
            return compile(source, path, "exec", dont_inherit=True)
        return plain(self, fullname)

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign,assignment]


class Copied:
    """A copy of the project on disk, in which slow tests run with a change made."""

    def __init__(self, home: Path, tests: list[str]) -> None:
        self._writes = 0
        top = home / TOP.name
        left = shutil.ignore_patterns(".git", ".venv", ".*_cache", "build", "__pycache__")
        shutil.copytree(TOP, top, ignore=left, symlinks=True)
        shared = TOP.parent / "shared"
        if shared.is_dir():
            top.with_name("shared").symlink_to(shared)
        packages = map(str, (top, *sorted((top / "plugins").iterdir())))
        self._environment = {**os.environ, "PYTHONPATH": os.pathsep.join(packages)}
        self._environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self._top = top
        self._tests = [str(top / Path(test).resolve().relative_to(TOP)) for test in tests]
        begin = time.monotonic()
        told = self._run(["-rfE"], 3600)
        bad = [line.split(" ", 1)[1].split(" - ")[0] for line in told.stdout.splitlines()
               if line.startswith(("FAILED ", "ERROR "))]  # fmt: skip
        if bad:
            print("slow tests left out, as they fail without any change:", *bad, sep="\n  ")
        self._seconds = time.monotonic() - begin
        self._options = ["-x", *(f"--deselect={name}" for name in bad)]
        self._nothing = "no tests ran" in told.stdout

    def _run(self, options: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider"]
        chosen = ["-m", "slow and not full", "-p", "no:xdist"]
        return subprocess.run(  # noqa: S603
            [*command, *chosen, *options, *self._tests],
            cwd=self._top, env=self._environment, capture_output=True, text=True, check=False,
            timeout=seconds,
        )  # fmt: skip

    def notices(self, mutant: Mutant) -> bool:
        """Tell whether a slow test fails with the change, or does not end."""
        if self._nothing:
            return False
        path = self._top / mutant.path.relative_to(TOP)
        plain = path.read_text(encoding="utf-8")
        self._write(path, mutant.source)
        try:
            return self._run(self._options, 60 + 3 * self._seconds).returncode != 0
        except subprocess.TimeoutExpired:
            return True
        finally:
            self._write(path, plain)

    def _write(self, path: Path, text: str) -> None:
        """Write a file with a time of its own: one of the same time and size would be taken for the
        one that Python compiled last.
        """
        path.write_text(text, encoding="utf-8")
        self._writes += 1
        os.utime(path, (self._writes, self._writes))


OPTIONS = ["-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist"]


@dataclass
class Score:
    """What became of the mutants."""

    died: int = 0
    late: int = 0
    """How many of them only slow tests noticed."""
    equivalent: int = 0
    lived: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counted = self.died + len(self.lived)
        share = f" ({self.died / counted:.1%})" if counted else ""
        late = f", {self.late} of them of slow tests" if self.late else ""
        return f"{self.died} of {counted} mutants died{share}{late}, {self.equivalent} equivalent"


def equivalent() -> set[tuple[str, str, str, str]]:
    """Return the mutants that are argued to mean the same, as `Mutant.what` names them."""
    found = set()
    for line in EQUIVALENT.read_text("utf-8").splitlines():
        change, _, why = line.partition("  # ")
        if why and not line.startswith("#"):
            place, _, change = change.partition(": ")
            path, _, where = place.partition(":")
            was, _, became = change.partition("  ->  ")
            found.add((path, where, was, became))
    return found


def score(
    suite: Suite,
    afresh: Afresh,
    slow: Callable[[], Copied] | None,
    chosen: Iterable[Callable[[], Mutant]],
    seconds: float,
) -> Score:
    """Try mutants until the time is over; print those that live. ``slow``: what makes a copy for
    the slow tests, at the first that the quick ones do not notice.
    """
    end = time.monotonic() + seconds
    result, known = Score(), equivalent()
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
            noticed = bool(tests) and afresh.notices(mutant, tests, sum(suite.seconds.values()))
        if not noticed and slow:
            noticed = slow().notices(mutant)
            result.late += noticed
        if noticed:
            result.died += 1
        else:
            result.lived.append(str(mutant))
            print(f"LIVES {mutant}", flush=True)
        print(f"so far {result}", file=sys.stderr, flush=True)
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
    parser.add_argument(
        "--edits", type=Path, help="try these changes: a table of FILE, WAS, BECAME"
    )
    parser.add_argument("--again", type=Path, help="try what lived, by a log of this program")
    parser.add_argument(
        "--slow", action="store_true", help="try what lives with the slow tests, too, on disk"
    )
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so long")
    given = parser.parse_args()
    os.chdir(TOP)
    os.environ["HYPOTHESIS_PROFILE"] = "mutants"
    files = [
        file.resolve()
        for path in given.paths
        for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])
    ]
    makers = [make for file in files for make in mutants(file)]
    chosen = random.Random(given.seed).sample(makers, min(given.count, len(makers)))  # noqa: S311
    possible = len(makers)
    if given.edits:
        chosen = edits(given.edits, files)
        possible = len(chosen)
    if given.again:
        chosen = again(given.again, files)
        possible = len(chosen)
    tests = given.tests or [test for path in given.paths for test in tests_for(path)]
    codes = [2]
    home = tempfile.TemporaryDirectory()
    slow = functools.cache(lambda: Copied(Path(home.name), tests)) if given.slow else None
    afresh = Afresh()

    def work(suite: Suite) -> None:
        for file in files:
            with suppress(ImportError):
                importlib.import_module(_module(file))
        if failing := suite.measure():
            print("left out, as they fail without any change:", *failing, sep="\n  ")
            suite.leave_out(failing)
        gc.unfreeze()  # or what the tests' own conftest has frozen is not found
        assert _all_functions()  # noqa: S101 - each mutant would run everything afresh
        _all_results()  # once, for all children
        gc.freeze()  # no child looks through all of it for garbage
        result = score(suite, afresh, slow, chosen, given.seconds)
        print(f"{result} (of {possible} possible, seed {given.seed})")
        codes[0] = 1 if result.lived else 0

    import pytest

    arguments = [
        *OPTIONS,
        "-s",
        "-p",
        "no:terminal",
        "-o",
        "addopts=--import-mode=importlib",
        *dict.fromkeys(map(str, tests)),
    ]
    with home:
        pytest.main(arguments, plugins=[Suite(work, [str(file) for file in files])])
    return codes[0]


def _module(path: Path) -> str:
    parts = list(path.relative_to(TOP).with_suffix("").parts)
    if parts[0] == "plugins":
        del parts[:2]
    return ".".join(parts).removesuffix(".__init__")


if __name__ == "__main__":
    sys.exit(main())
