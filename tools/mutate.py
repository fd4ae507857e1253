#!/usr/bin/env python3
"""Make single changes to the code, run the tests that concern it, and see whether they notice.

    tools/mutate.py paravirt_mm/engine --tests tests/engine tests/plugins --count 40 --seed 1

A mutant changes one thing: an off by one, a comparison, a rounding, a constant, an order, a dropped
condition or statement. Each runs in a copy of the checkout, so that nothing here changes. What
lives is printed with file, line and change; the score is the share that died. Exit code 1: some
lived.

Not mutmut or cosmic-ray, on purpose: they know none of the changes that matter most here (rounding
helpers, ends of ranges, order), and neither samples a folder against the tests that concern it.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Mutant:
    """One change: where, what it was, what it became, and the file with it."""

    path: Path
    line: int
    was: str
    became: str
    source: str


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
    elif isinstance(node, ast.If):
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
        for field in ("annotation", "returns"):
            part = getattr(node, field, None)
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
    new = next(islice(_changes(node), which, None))
    was, became = _short(ast.unparse(node)), _short(ast.unparse(new))
    line = getattr(node, "lineno", 0)
    source = ast.unparse(ast.fix_missing_locations(_At(node, new).visit(tree)))
    return Mutant(path, line, was, became, source)


def _short(text: str) -> str:
    return " ".join(text.split())[:90]


def dies(mutant: Mutant, tree: Path, tests: list[str], limit: float) -> bool:
    """Tell whether the tests notice."""
    place = tree / mutant.path.relative_to(TOP)
    before = place.read_text(encoding="utf-8")
    place.write_text(mutant.source, encoding="utf-8")
    try:
        done = subprocess.run(  # noqa: S603  # our own tests
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
            cwd=tree,
            capture_output=True,
            timeout=limit,
            check=False,
            env=_environment(tree),
        )
    except subprocess.TimeoutExpired:
        return True
    finally:
        place.write_text(before, encoding="utf-8")
    return done.returncode != 0


def _environment(tree: Path) -> dict[str, str]:
    folders = [tree, *sorted((tree / "plugins").iterdir())]
    # Two mutants of one second and one size look the same to cached bytecode.
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def main() -> int:
    """Make some mutants of some files, and print the score."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("paths", nargs="+", type=Path, help="files or folders of the package")
    parser.add_argument("--tests", nargs="+", required=True, help="what pytest is given")
    parser.add_argument("--count", type=int, default=20, help="mutants, chosen by chance [20]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all", action="store_true", help="also tests marked slow")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so long")
    given = parser.parse_args()
    files = [
        file
        for path in given.paths
        for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])
    ]
    makers = [make for file in files for make in mutants(file.resolve())]
    chosen = random.Random(given.seed).sample(makers, min(given.count, len(makers)))  # noqa: S311
    tests = [*given.tests, *([] if given.all else ["-m", "not slow"])]
    with tempfile.TemporaryDirectory(prefix="paravirt-mm-mutants-") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(
            TOP, tree, ignore=shutil.ignore_patterns(".git", ".venv", "build", "*cache*", ".hyp*")
        )
        begin = time.monotonic()
        untouched = Mutant(files[0].resolve(), 0, "", "", files[0].read_text(encoding="utf-8"))
        if dies(untouched, tree, tests, 1e6):
            print("the tests fail without any change: run them first")
            return 2
        limit = 10 * (time.monotonic() - begin) + 10
        lived = tried = 0
        for make in chosen:
            if time.monotonic() - begin > given.seconds:
                break
            mutant = make()
            tried += 1
            if not dies(mutant, tree, tests, limit):
                lived += 1
                where = f"{mutant.path.relative_to(TOP)}:{mutant.line}"
                print(f"LIVES {where}: {mutant.was}  ->  {mutant.became}", flush=True)
    print(f"{tried - lived} of {tried} mutants died ({len(makers)} possible, seed {given.seed})")
    return 1 if lived else 0


if __name__ == "__main__":
    sys.exit(main())
