"""The changes that `tools/mutate.py` makes: one place of one file at a time.

Four kinds: a wrong constant (numbers, flags, the last row of a table), a wrong rounding (up for
down, a bound or a rounding left out), a wrong order (ends swapped, sorting left out, sort keys in
the other order), a condition or statement that is not there. Each is small enough to be a mistake
that somebody makes.
"""

from __future__ import annotations

import ast
import copy
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import CodeType
from typing import TypeVar

TOP = Path(__file__).resolve().parents[1]

_Node = TypeVar("_Node", bound=ast.AST)


@dataclass(frozen=True)
class Mutant:
    """One change: where, what it was, what it became; ``code`` is the file compiled with it, its
    lines where they were.

    ``where`` is the qualified name of the function or class around it, ``<module>`` outside of any;
    of changes that read the same in one function, the second ends in ``#2``.
    """

    path: Path
    line: int
    where: str
    was: str
    became: str
    source: str
    code: CodeType

    def __str__(self) -> str:
        place = f"{self.path.relative_to(TOP)}:{self.line}:{self.where}"
        return f"{place}: {self.was}  ->  {self.became}"

    def itself(self) -> Mutant:
        """Return the mutant: what makes it, once it is made."""
        return self

    @property
    def what(self) -> tuple[str, str, str, str]:
        """What `tools/equivalent.txt` knows it by."""
        return str(self.path.relative_to(TOP)), self.where, self.was, self.became


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
_BOUNDS = {"align_up", "align_down", "min", "max"}
_ENDS = {"start": "end", "end": "start", "low": "high", "high": "low", "first": "last"}
_LEFT_OUT = {"copy", "downward", "strip"}
"""Methods without arguments whose result could be mistaken for what they are called on."""


def _changes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what a node could become."""
    same = ast.dump(node)
    for kind, make in _KINDS:
        if isinstance(node, kind):
            yield from (new for new in make(node) if ast.dump(new) != same)


def _edited(node: _Node, **fields: object) -> _Node:
    new = copy.deepcopy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def _compare(node: ast.Compare) -> Iterator[ast.AST]:
    for place, op in enumerate(node.ops):
        ops = [*node.ops[:place], _COMPARISONS[type(op)](), *node.ops[place + 1 :]]
        yield _edited(node, ops=ops)


def _binary(node: ast.BinOp) -> Iterator[ast.AST]:
    text = isinstance(node.left, ast.JoinedStr) or (
        isinstance(node.left, ast.Constant) and isinstance(node.left.value, str)
    )
    if text or type(node.op) not in _OPERATORS:
        return
    yield _edited(node, op=_OPERATORS[type(node.op)]())
    if isinstance(node.op, ast.FloorDiv | ast.RShift):
        if isinstance(node.left, ast.UnaryOp) and isinstance(node.left.op, ast.USub):
            return
        yield ast.UnaryOp(ast.USub(), _edited(node, left=ast.UnaryOp(ast.USub(), node.left)))


def _constant(node: ast.Constant) -> Iterator[ast.AST]:
    if isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1)
        yield ast.Constant(node.value - 1)


def _name(node: ast.Name) -> Iterator[ast.AST]:
    if isinstance(node.ctx, ast.Load) and node.id in _NAMES:
        yield ast.Name(_NAMES[node.id], ast.Load())


def _attribute(node: ast.Attribute) -> Iterator[ast.AST]:
    if isinstance(node.ctx, ast.Load) and node.attr in _ENDS:
        yield _edited(node, attr=_ENDS[node.attr])


def _call(node: ast.Call) -> Iterator[ast.AST]:
    called = node.func
    if isinstance(called, ast.Name) and called.id in _BOUNDS and len(node.args) == 2:
        some = node.args[: 1 if called.id.startswith("align") else 2]
        yield from (each for each in some if not isinstance(each, ast.Starred))
    if isinstance(called, ast.Attribute) and called.attr in _LEFT_OUT and not node.args:
        yield called.value


def _fewer(node: ast.BoolOp) -> Iterator[ast.AST]:
    for place in range(len(node.values)):
        values = [*node.values[:place], *node.values[place + 1 :]]
        yield values[0] if len(values) == 1 else _edited(node, values=values)


def _unary(node: ast.UnaryOp) -> Iterator[ast.AST]:
    if isinstance(node.op, ast.Not | ast.USub):
        yield node.operand


def _if(node: ast.If) -> Iterator[ast.AST]:
    for value in (True, False):
        yield _edited(node, test=ast.copy_location(ast.Constant(value), node.test))


def _either(node: ast.IfExp) -> Iterator[ast.AST]:
    yield node.body
    yield node.orelse


def _filter(node: ast.comprehension) -> Iterator[ast.AST]:
    for place in range(len(node.ifs)):
        yield _edited(node, ifs=[*node.ifs[:place], *node.ifs[place + 1 :]])


def _slice(node: ast.Slice) -> Iterator[ast.AST]:
    for name in ("lower", "upper"):
        if getattr(node, name) is not None:
            yield _edited(node, **{name: None})


def _swapped(node: ast.Tuple) -> Iterator[ast.AST]:
    if isinstance(node.ctx, ast.Load) and len(node.elts) == 2:
        yield _edited(node, elts=node.elts[::-1])


def _shorter(node: ast.Tuple | ast.List | ast.Set) -> Iterator[ast.AST]:
    least = 4 if isinstance(node, ast.Tuple) else 3  # Shorter ones mean something by their length.
    if len(node.elts) >= least and isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
        yield _edited(node, elts=node.elts[:-1])


def _less(node: ast.Dict) -> Iterator[ast.AST]:
    if len(node.keys) > 2:
        yield _edited(node, keys=node.keys[:-1], values=node.values[:-1])


def _statement(node: ast.Expr) -> Iterator[ast.AST]:
    if isinstance(node.value, ast.Call):
        yield ast.Pass()


def _assignment(node: ast.Assign) -> Iterator[ast.AST]:
    if all(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets):
        yield ast.Pass()


def _augmented(node: ast.AugAssign) -> Iterator[ast.AST]:
    yield ast.Pass()
    if type(node.op) in _OPERATORS:
        yield _edited(node, op=_OPERATORS[type(node.op)]())


_KINDS: list[tuple[type | tuple[type, ...], Callable[..., Iterator[ast.AST]]]] = [
    (ast.Compare, _compare),
    (ast.BinOp, _binary),
    (ast.Constant, _constant),
    (ast.Name, _name),
    (ast.Attribute, _attribute),
    (ast.Call, _call),
    (ast.BoolOp, _fewer),
    (ast.UnaryOp, _unary),
    (ast.If, _if),
    (ast.IfExp, _either),
    (ast.comprehension, _filter),
    (ast.Slice, _slice),
    (ast.Tuple, _swapped),
    ((ast.Tuple, ast.List, ast.Set), _shorter),
    (ast.Dict, _less),
    (ast.Expr, _statement),
    (ast.Assign, _assignment),
    (ast.AugAssign, _augmented),
    (ast.Continue, lambda _: iter([ast.Break()])),
    (ast.Break, lambda _: iter([ast.Continue()])),
]


class _At(ast.NodeTransformer):
    """Put something else in the place of one node."""

    def __init__(self, target: ast.AST, new: ast.AST) -> None:
        self.target, self.new = target, new

    def visit(self, node: ast.AST) -> ast.AST:
        """Replace the one node, keep the others."""
        return self.new if node is self.target else super().generic_visit(node)


_SLOTS = ("__slots__", "__all__")


def _no_code(tree: ast.Module) -> set[int]:
    """What is only read by type checkers and people: annotations, type variables, names."""
    found: set[int] = set()

    def leave(part: object) -> None:
        if isinstance(part, ast.AST):
            found.update(id(inner) for inner in ast.walk(part))

    for node in ast.walk(tree):
        leave(getattr(node, "annotation", None))
        leave(getattr(node, "returns", None))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            leave(node)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in _SLOTS:
            leave(node)
        # An alias of a type, which is written in capitals like a class: Span = tuple[int, int].
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) in _GENERIC:
            leave(node)
    return found


_GENERIC = {"tuple", "list", "dict", "set", "frozenset", "Callable", "Mapping", "Generator"}


def mutants(path: Path) -> list[Callable[[], Mutant]]:
    """Return every mutant of a file, each made when it is asked for."""
    text = path.read_text(encoding="utf-8")
    return [partial(_mutant, path, text, at) for at, _ in enumerate(_all(ast.parse(text)))]


def again(log: Path, files: Iterable[Path]) -> list[Callable[[], Mutant]]:
    """Return the mutants of these files that a log of `tools/mutate.py` says live, as far as they
    can still be made.
    """
    lived: dict[Path, set[tuple[str, str, str]]] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        if found := re.fullmatch(r"LIVES (.+?):\d+:(.+?): (.+)  ->  (.+)", line):
            lived.setdefault(TOP / found[1], set()).add((found[2], found[3], found[4]))
    chosen: list[Callable[[], Mutant]] = []
    for path in lived.keys() & files:
        text = path.read_text(encoding="utf-8")
        names = (names for names, _, _ in _named(ast.parse(text)))
        chosen += [
            partial(_mutant, path, text, at) for at, n in enumerate(names) if n in lived[path]
        ]
    return chosen


def changes(path: Path) -> set[tuple[str, str, str]]:
    """Return what a file could become, as `Mutant.where`, `Mutant.was` and `Mutant.became`."""
    return {names for names, _, _ in _named(ast.parse(path.read_text(encoding="utf-8")))}


def _all(tree: ast.Module) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Yield each node that is code with each thing that it could become."""
    skip = _no_code(tree)
    return (
        (node, new) for node in ast.walk(tree) if id(node) not in skip for new in _changes(node)
    )


def _named(tree: ast.Module) -> Iterator[tuple[tuple[str, str, str], ast.AST, ast.AST]]:
    """Yield what `_all` does after what names it: where it is, what it was, what it becomes."""
    scopes = _scopes(tree)
    seen: Counter[tuple[str, str, str]] = Counter()
    for node, new in _all(tree):
        where, was, became = scopes[id(node)], *map(_short, map(ast.unparse, (node, new)))
        seen[where, was, became] += 1
        number = seen[where, was, became]
        yield (where if number == 1 else f"{where}#{number}", was, became), node, new


def _scopes(tree: ast.Module) -> dict[int, str]:
    """Name the function or class in which each node is."""
    found: dict[int, str] = {}

    def enter(node: ast.AST, outer: str) -> None:
        found[id(node)] = outer or "<module>"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            outer = f"{outer}.{node.name}" if outer else node.name
        for inner in ast.iter_child_nodes(node):
            enter(inner, outer)

    enter(tree, "")
    return found


def _mutant(path: Path, text: str, at: int) -> Mutant:
    """Make change number ``at`` in a tree of its own."""
    tree = ast.parse(text)
    (where, was, became), node, new = next(islice(_named(tree), at, None))
    line = getattr(node, "lineno", 0)
    if isinstance(node, ast.comprehension):
        line = node.target.lineno
    else:
        new = ast.copy_location(new, node)
    _At(node, new).visit(tree)
    changed = ast.fix_missing_locations(tree)
    code = compile(changed, str(path), "exec", dont_inherit=True)
    return Mutant(path, line, where, was, became, ast.unparse(changed), code)


def _short(text: str) -> str:
    return " ".join(text.split())[:90]


def edits(table: Path, files: Iterable[Path]) -> list[Callable[[], Mutant]]:
    """Return changes that somebody made by hand: rows ``| `FILE` | `WAS` | `BECAME` |``, where a
    line's end is written ⏎ between spaces. What is not about one place of these files is left out.
    """
    found: list[Callable[[], Mutant]] = []
    for row in table.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        if len(cells) != 3 or (path := TOP / cells[0]) not in files:
            continue
        was, became = (cell.replace("\\|", "|").replace(" ⏎ ", "\n") for cell in cells[1:])
        text = path.read_text(encoding="utf-8")
        places = list(re.finditer(r"\s+".join(map(re.escape, was.split())), text))
        made = [mutant for place in places[:1] if (mutant := _edit(path, text, place, became))]
        if len(places) == len(made) == 1:
            found.append(made[0].itself)
        else:
            print(f"cannot be made in {len(places)} places: {cells[0]}: {_short(was)}")
    return found


def _edit(path: Path, text: str, place: re.Match[str], became: str) -> Mutant | None:
    # A statement that is left out leaves an empty line, or one that does nothing.
    for instead in (became, "pass"):
        source = text[: place.start()] + instead + text[place.end() :]
        with suppress(SyntaxError):
            code = compile(source, str(path), "exec", dont_inherit=True)
            line = text.count("\n", 0, place.start()) + 1
            names = "<edit>", _short(place.group()), _short(became)
            return Mutant(path, line, *names, source, code)
    return None
