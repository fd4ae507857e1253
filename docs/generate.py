"""Reference pages that are written from the code, so that they cannot be out of date.

``write(folder)`` makes hooks.md, figures.md, limits.md and commands.md. What the code does not know
of a hook (when it is called, how often, an example) stands in hooks.toml beside this file; a test
fails where a hook lacks its entry.
"""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

import paravirt_mm
from paravirt_mm import hookspecs
from paravirt_mm.cli.main import COMMANDS, cli
from paravirt_mm.errors import ExitCode
from paravirt_mm.measure.figures import FIGURES

HERE = Path(__file__).parent


def hooks() -> dict[str, Any]:
    """Return every hook of the contract, in the order of a run."""
    return {
        name: function
        for name, function in vars(hookspecs).items()
        if name.startswith("pvmm_") and inspect.isfunction(function)
    }


def notes() -> dict[str, dict[str, str]]:
    """Return what hooks.toml says."""
    return tomllib.loads((HERE / "hooks.toml").read_text(encoding="utf-8"))


def _markdown(text: str) -> str:
    """A docstring as Markdown: double backticks are single ones there."""
    return re.sub(r"``(.+?)``", r"`\1`", text)


def hooks_page() -> str:
    """Every hook: who answers, when and how often, what an answer means, an example."""
    parts = [
        "# Hooks\n",
        "The contract between core and plugins, in the order in which a run calls it. A method "
        "with `@hookimpl` takes as many of the parameters as it needs, by name.\n",
    ]
    for name, function in hooks().items():
        note = notes()[name]
        signature = str(inspect.signature(function)).replace("'", "")
        who, _, meaning = (inspect.getdoc(function) or "").partition(": ")
        parts.append(
            f"## {name}\n\n```text\n{name}{signature}\n```\n\n"
            f"**{who}**: {_markdown(meaning)}\n\n"
            f"*When:* {note['when']} *How often:* {note['often']}\n\n"
            f"```python\n{note['example'].strip()}\n```\n"
        )
    return "\n".join(parts)


def figures_page() -> str:
    """Every figure: its column, unit and meaning."""
    lines = ["# Figures\n", "`paravirt-mm figures` prints the same.\n"]
    group = None
    for name, figure in FIGURES.items():
        if figure.group != group:
            group = figure.group
            lines += [f"\n## {group}\n", "| name | column | unit | meaning |", "| - | - | - | - |"]
        meaning = figure.meaning.replace("|", "\\|")
        lines.append(f"| `{name}` | {figure.header} | {figure.unit} | {meaning} |")
    return "\n".join(lines) + "\n"


def limits() -> Iterator[tuple[str, str, str, str]]:
    """Yield (module, name, value, meaning) of every cap: constants named MAX_... or ..._LIMIT."""
    top = Path(paravirt_mm.__file__).parent
    for path in sorted(top.rglob("*.py")):
        module = ".".join(path.relative_to(top.parent).with_suffix("").parts)
        body = ast.parse(path.read_text(encoding="utf-8")).body
        for node, after in zip(body, [*body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign):
                target: ast.expr = node.target
            elif isinstance(node, ast.Assign):
                target = node.targets[0]
            else:
                continue
            if not isinstance(target, ast.Name) or node.value is None:
                continue
            if not re.match(r"MAX_|.*_LIMIT$", target.id):
                continue
            meaning = ""
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                meaning = " ".join(str(after.value.value).split())
            yield module, target.id, ast.unparse(node.value), _markdown(meaning)


def limits_page() -> str:
    """Every limit and cap of the core."""
    lines = [
        "# Limits\n",
        "Whatever comes from outside is bounded. Beyond one of these the answer is an error that "
        "names it; the guard of time and memory stands behind them all.\n",
        "| module | name | value | what for |",
        "| - | - | - | - |",
    ]
    for module, name, value, meaning in limits():
        lines.append(f"| {module} | {name} | `{value}` | {meaning.replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def _command(name: str, command: click.Command, parent: click.Context, depth: int) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent, max_content_width=96)
    yield f"{'#' * depth} {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            if found is not None:
                yield from _command(inner, found, context, depth + 1)


def commands_page() -> str:
    """Every command with its help, and the exit codes."""
    parts = ["# Commands\n", "## Exit codes\n", "| code | meaning |", "| - | - |"]
    source = ast.parse(inspect.getsource(ExitCode)).body[0]
    body = source.body if isinstance(source, ast.ClassDef) else []
    for node, after in pairwise(body):
        if isinstance(node, ast.Assign) and isinstance(after, ast.Expr):
            meaning = ast.literal_eval(after.value)
            parts.append(f"| {ast.literal_eval(node.value)} | {_markdown(meaning)} |")
    parts.append("")
    root = click.Context(cli, info_name="paravirt-mm")
    for name in COMMANDS:
        command = cli.get_command(root, name)
        if command is not None:
            parts += _command(name, command, root, 2)
    return "\n".join(parts)


PAGES = {
    "hooks.md": hooks_page,
    "figures.md": figures_page,
    "limits.md": limits_page,
    "commands.md": commands_page,
}


def write(folder: Path) -> None:
    """Write all pages; one that says the same stays untouched."""
    folder.mkdir(exist_ok=True)
    for name, make in PAGES.items():
        path, text = folder / name, make()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
