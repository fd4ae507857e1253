"""The house: which part of the core may know which, that none knows a plugin by name, and that
nothing lies about.

Read from the syntax trees, so that imports for type checkers and inside functions count too.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

import pytest

LAYERS: tuple[tuple[str, ...], ...] = (
    ("counted", "frozen"),
    ("_version", "errors", "printable", "shown", "untouched"),
    ("guard", "options", "machine"),
    ("about", "engine", "sources"),
    ("measure",),
    ("image",),
    ("invariants",),
    ("run",),
    ("contract", "hookspecs"),
    ("instances",),
    ("strangers", "plugin"),
    ("entry_points",),
    ("registry",),
    ("offers", "scenario"),
    ("evidence",),
    ("comparison",),
    ("report", "verify"),
    ("differences",),
    ("hunt", "sweep", "view"),
    ("diff",),
    ("cli",),
    ("__main__",),
    ("",),  # the public names: they come from everywhere
    ("testing",),
)
"""Parts of `paravirt_mm`, lowest first. One imports of lower layers only, and of itself."""

LEVELS = {part: level for level, layer in enumerate(LAYERS) for part in layer}
LARGEST_KEPT = 2 << 20
"""Bytes: the published comparison has 1.1 MB."""

PACKAGE = Path(__file__).parents[1] / "paravirt_mm"


def name_of(path: Path) -> str:
    """Return the dotted name of a module of the core."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    paths = sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyi")])
    return {name_of(path): path for path in paths}  # a stub follows its module and says more


class Known(NamedTuple):
    """What the tests want of a module; its syntax tree would take a hundred times the memory."""

    imports: tuple[str, ...]
    named: tuple[str, ...]
    strings: tuple[str, ...]


@cache
def known(name: str) -> Known:
    nodes = list(ast.walk(ast.parse(modules()[name].read_text(encoding="utf-8"))))
    named = (alias.name for alias in nodes if isinstance(alias, ast.alias))
    return Known(tuple(imported(name, nodes)), tuple(named), tuple(strings(nodes)))


def imported(name: str, nodes: list[ast.AST]) -> Iterator[str]:
    """Yield the modules of the core that a module imports, wherever in it."""
    path = modules()[name]
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    for node in nodes:
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, node.module] if node.module else parents)
            whole = [f"{base}.{alias.name}" for alias in node.names]
            named = [one if one in modules() else base for one in whole]
        else:
            continue
        yield from (one for one in named if one in modules() and one != name)


def part_of(module: str) -> str:
    """Return the part of the core that a module belongs to."""
    return module.split(".")[1] if "." in module else ""


def test_every_part_has_its_layer() -> None:
    assert {part_of(name) for name in modules()} == set(LEVELS)


@pytest.mark.slow
def test_imports_go_down() -> None:
    wrong = [
        f"{name} imports {module}, which stands no lower"
        for name in modules()
        for module in known(name).imports
        if part_of(module) != part_of(name) and LEVELS[part_of(module)] >= LEVELS[part_of(name)]
    ]
    assert wrong == []


def test_the_drawing_shows_the_layers() -> None:
    """docs/architecture.md draws the table above, highest first."""
    text = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawing = text.split("## Imports go one way")[1].split("```")[1]
    lines = (re.findall(r" (\w+)(?= )", line[:41]) for line in drawing.splitlines())
    drawn = [tuple(sorted(names)) for names in lines if names]
    unseen = {"", "__main__", "_version", "testing"}
    wanted = [tuple(sorted(set(layer) - unseen)) for layer in reversed(LAYERS)]
    assert drawn == [layer for layer in wanted if layer]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of more than one module (Tarjan)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        number[node] = lowest[node] = len(number)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in number:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in stack:
                lowest[node] = min(lowest[node], number[other])
        if lowest[node] == number[node]:
            at = stack.index(node)
            component = stack[at:]
            del stack[at:]
            if len(component) > 1:
                found.append(component)

    for node in sorted(graph):
        if node not in number:
            visit(node)
    return found


@pytest.mark.slow
def test_no_modules_import_each_other() -> None:
    assert circles({name: set(known(name).imports) for name in modules()}) == []


@pytest.mark.slow
@pytest.mark.parametrize("part", sorted(set(LEVELS) - {""}))
def test_no_folders_import_each_other(part: str) -> None:
    """Inside a part, its folders stand in an order too."""
    graph: dict[str, set[str]] = {}

    def folder(name: str) -> str:
        path = modules()[name]
        inside = ".".join(name.split(".")[1:3])
        return inside if path.stem == "__init__" or name.count(".") > 2 else f"{inside}."

    for name in modules():
        if part_of(name) == part:
            others = {folder(other) for other in known(name).imports if part_of(other) == part}
            graph.setdefault(folder(name), set()).update(others - {folder(name)})
    for node in {other for others in graph.values() for other in others}:
        graph.setdefault(node, set())
    assert circles(graph) == []


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": set()}) == []


# -- plugins ---------------------------------------------------------------------------------------

EXAMPLES = {
    "paravirt_mm.cli.main": ("-a incremental:variant=hpa -b xen",),
    "paravirt_mm.cli.scenarios": ("Allocator, with options: legacy_linear:kernel=3.6.",),
}
"""Texts of help that show what a spec looks like."""
REAL_THINGS = {
    # The hypervisor as a judge, not the plugin that models it.
    "paravirt_mm.evidence": ("dom0", "xen"),
    "paravirt_mm.measure.figures": ("1.0 on Xen, 0 on native",),
    "paravirt_mm.verify.kernel.record": ("native",),
    "paravirt_mm.verify.log.variants": ("xen-pv-guest",),
    "paravirt_mm.verify.log.words": ("xen: setting RW the range",),
    # The kernel, not the plugin that boots one.
    "paravirt_mm.cli.verify": ("linux",),
    "paravirt_mm.cli.verify_linux": ("linux",),
    "paravirt_mm.verify.linux.qemu.locate": ("fetch-linux.sh", "linux-image"),
}
"""Names of things of the world, which some plugin is called after."""
WORDS_OF_LOGS = "paravirt_mm.sources.bootlog."
"""Here everything is a word of a real log."""


@cache
def built_in() -> set[str]:
    points = entry_points(group="paravirt_mm")
    return {point.name for point in points if point.dist and point.dist.name == "paravirt-mm"}


def strings(nodes: list[ast.AST]) -> Iterator[str]:
    """Yield the string constants of a module that are no docstrings."""
    documents = {
        id(node.value)
        for node in nodes
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in nodes:
        text = node.value if isinstance(node, ast.Constant) else None
        if isinstance(text, str) and id(node) not in documents:
            yield text


def names_in(text: str, names: set[str]) -> set[str]:
    """Return the names that stand in a text where a spec or name could: in lower case, alone."""
    words = set(re.findall(r"(?<![\w./])[a-z][a-z0-9_]*(?![\w/])", text))
    return words & names


@pytest.mark.slow
def test_core_knows_no_plugin_by_name() -> None:
    names = {*built_in(), "dom0"}
    assert {"native", "xen", "legacy_linear", "incremental"} <= names
    for name in modules():
        for text in () if name.startswith(WORDS_OF_LOGS) else known(name).strings:
            for allowed in (*EXAMPLES.get(name, ()), *REAL_THINGS.get(name, ())):
                text = text.replace(allowed, "")
            assert not names_in(text, names), (name, text)
        for module in known(name).named:
            assert not module.startswith("paravirt_mm_"), (name, module)


def test_a_name_of_a_plugin_is_seen() -> None:
    names = {"native", "xen"}
    assert names_in("xen:domain=dom0", names) == {"xen"}
    assert names_in("under native and xen", names) == names
    assert not names_in("Xen version 4.17 at arch/x86/xen/mmu.c", names)


def test_nothing_lies_about(checkout: Path) -> None:
    """What is kept stands in a folder that the README names, and none is a dump by mistake."""
    listing = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    try:
        listed = subprocess.run(
            listing, cwd=checkout, check=True, capture_output=True, text=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not a checkout of git: {error}")
    kept = [checkout / name for name in listed.split("\0") if name]
    readme = (checkout / "README.md").read_text()
    folders = {path.relative_to(checkout).parts[0] for path in kept if path.parent != checkout}
    assert [name for name in sorted(folders) if f"{name}/" not in readme] == []
    largest = max(kept, key=lambda path: path.lstat().st_size)
    assert largest.lstat().st_size < LARGEST_KEPT, largest
