"""The documentation says what is so: every command and block is tried, every hook has its entry."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import attrs
import click
import pluggy
import pytest

import paravirt_mm
from paravirt_mm import hookimpl, hookspecs
from paravirt_mm.cli.main import cli
from paravirt_mm.sources import bundled, bundled_machines
from paravirt_mm.sources.machine_file import write_json
from tests.commands import Result, Run

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
sys.path[:0] = [str(HERE)]

from blocks import Command, blocks, commands, shows  # noqa: E402

GENERATED = {"hooks.md", "figures.md", "limits.md", "commands.md"}
PAGES = [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md"]
PAGES += sorted(p for p in (CHECKOUT / "docs").rglob("*.md") if p.name not in GENERATED)
_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(?:#[^)]*)?\)")


def _name(page: Path) -> str:
    return page.relative_to(CHECKOUT).as_posix()


COMMANDS = [(page, command) for page in PAGES for command in commands(page)]
OURS = [(page, c) for page, c in COMMANDS if c.words[0] == "paravirt-mm"]


def _id(value: object) -> str | None:
    if isinstance(value, Path):
        return _name(value)
    return f"line{value.line}" if isinstance(value, Command) else None


def _parse(
    command: click.Command, name: str, words: list[str], parent: click.Context | None
) -> None:
    context = command.make_context(name, words, parent=parent)
    if isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        inner_name, inner, left = command.resolve_command(context, rest)
        assert inner is not None
        _parse(inner, inner_name or "", left, context)


@pytest.mark.parametrize(("page", "command"), OURS, ids=_id)
def test_every_command_line_is_one(page: Path, command: Command) -> None:
    """Its options exist and take such values; nothing is run."""
    _parse(cli, "paravirt-mm", list(command.words[1:]), None)


def test_inline_commands_exist() -> None:
    """`paravirt-mm word` in running text names a subcommand."""
    context = click.Context(cli)
    known = {*cli.list_commands(context), "new-plugin"}
    for page in PAGES:
        for word in re.findall(r"`paravirt-mm ([a-z-]+)", page.read_text(encoding="utf-8")):
            assert word in known, f"{_name(page)}: {word}"


NEEDS_REALITY = ("linux", "--live", "--scheduler", "diff")
"""Commands with such a word boot real kernels or hypervisors; their own tests do that."""
ELSEWHERE = ("docs/history.md", "docs/live-linux.md", "docs/live-xen.md")
"""Pages whose commands tests of their own run."""
FEWER = {"10000": "100"}
"""Counts that stand for "very many": a hundred tell as much of whether the command works."""
RUN = [page for page in PAGES if _name(page) not in ELSEWHERE and any(p == page for p, _ in OURS)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that pages speak of."""
    logs = sorted((CHECKOUT / "tests" / "data" / "logs").glob("*.txt"))
    good = [path for path in logs if path.name.startswith(("4.9", "3.11", "5.4"))]
    shutil.copy(good[0], tmp_path / "dmesg.txt")
    (tmp_path / "logs").mkdir()
    for path in good:
        shutil.copy(path, tmp_path / "logs")
    with tarfile.open(tmp_path / "logs.tar.xz", "w:xz") as archive:
        archive.add(good[0], "log.txt")
    shutil.copy(tmp_path / "logs.tar.xz", tmp_path / "archive.tar.xz")
    return tmp_path


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """What `pip install ./examples/...` would install, as a folder for PYTHONPATH."""
    site = tmp_path / "site-packages"
    site.mkdir()
    for project in sorted((CHECKOUT / "examples").glob("*/pyproject.toml")):
        about = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        for module in project.parent.glob("paravirt_mm_*.py"):
            shutil.copy(module, site)
        info = site / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
        info.mkdir()
        head = f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n"
        (info / "METADATA").write_text(head, encoding="utf-8")
        points = about["entry-points"]["paravirt_mm"].items()
        lines = ["[paravirt_mm]", *(f"{name} = {target}" for name, target in points)]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return site


def _in_a_process(environment: dict[str, str]) -> Run:
    def run(*arguments: str) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "paravirt_mm", *arguments],
            capture_output=True, text=True, check=False, timeout=300, env=environment,
        )  # fmt: skip
        return Result(done.returncode, done.stdout, done.stderr)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=_name)
def test_every_page_can_be_followed(
    page: Path, folder: Path, examples: Path, paravirt_mm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From top to bottom in one folder: files are saved, commands run, and say what is shown.

    A command is a process of its own where it finds plugins that a page writes or installs, and
    where it starts processes.
    """
    monkeypatch.chdir(folder)
    installs = "pip install ./examples/" in page.read_text(encoding="utf-8")
    process = _in_a_process(os.environ | ({"PYTHONPATH": str(examples)} if installs else {}))
    plugins = installs or any((block.file or "").endswith(".py") for block in blocks(page))
    steps: list[tuple[int, Any]] = [(block.line, block) for block in blocks(page) if block.file]
    steps += [(c.line, c) for p, c in OURS if p == page]
    for _, step in sorted(steps, key=lambda item: item[0]):
        if not isinstance(step, Command):
            (folder / step.file).write_text(step.text, encoding="utf-8")
            continue
        if set(step.words) & set(NEEDS_REALITY):
            continue
        if "vmcore" in step.words:
            shutil.copy(folder / "tables.core", folder / "vmcore")
        run = process if plugins or "sweep" in step.words else paravirt_mm
        result = run(*(FEWER.get(word, word) for word in step.words[1:]))
        where = f"{_name(page)}:{step.line}: {' '.join(step.words)}"
        assert result.returncode in (0, 1), f"{where}\n{result.stdout}{result.stderr}"
        assert shows(step.output, result.stdout), f"{where} says\n{result.stdout}"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_blocks_are_what_they_say(page: Path) -> None:
    """Python compiles, JSON and TOML parse."""
    for block in blocks(page):
        if block.language == "python":
            compile(block.text, f"{_name(page)}:{block.line}", "exec")
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "toml":
            tomllib.loads(block.text)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(page.read_text(encoding="utf-8")):
        target = (page.parent / link).resolve()
        assert target.name in GENERATED or target.exists(), link


# -- the reference --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generate() -> Any:
    spec = importlib.util.spec_from_file_location("generate", CHECKOUT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_hook_has_its_entry(generate: Any) -> None:
    assert list(generate.notes()) == list(generate.hooks()), "hooks.toml follows hookspecs.py"
    page = generate.hooks_page()
    for name, note in generate.notes().items():
        assert set(note) == {"when", "often", "example"}, name
        assert f"## {name}\n" in page


HOOK_NAMES = [name for name in vars(hookspecs) if name.startswith("pvmm_")]


@pytest.mark.parametrize("name", HOOK_NAMES)
def test_the_example_of_a_hook_answers_it(generate: Any, name: str) -> None:
    """It has the hook's name and parameters, and uses names that exist."""
    text = generate.notes()[name]["example"]
    names = {each: getattr(paravirt_mm, each) for each in paravirt_mm.__all__}
    namespace: dict[str, Any] = {**names, "attrs": attrs, "click": click}
    exec(compile(text, name, "exec"), namespace)  # noqa: S102  # our own documentation
    function = namespace[name]
    local = set(function.__code__.co_varnames) | set(dir(builtins))
    used = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    inner = {node.arg for node in ast.walk(ast.parse(text)) if isinstance(node, ast.arg)}
    inner |= {
        node.id
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    assert used <= local | inner | set(namespace)
    plugin = type("Example", (), {name: hookimpl(function)})()
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(plugin)
    manager.check_pending()
    wanted = set(inspect.signature(function).parameters) - {"self"}
    assert wanted <= set(inspect.signature(getattr(hookspecs, name)).parameters)


@pytest.mark.slow
def test_limits_say_what_they_are_for(generate: Any) -> None:
    """At least most of them, and no fewer than now."""
    limits = list(generate.limits())
    told = [limit for limit in limits if limit[3]]
    assert len(limits) > 20
    assert len(told) / len(limits) > 0.5


@pytest.mark.slow
def test_machines_fit_their_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema")
    path = CHECKOUT / "docs" / "reference" / "machine.schema.json"
    schema = json.loads(path.read_text(encoding="utf-8"))
    for name in bundled_machines():
        document = json.loads(write_json(bundled(name)))
        jsonschema.validate(document, schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**document, "unknown": 1}, schema)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="needs the extra docs")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    command += ["-d", str(tmp_path / "trees"), str(CHECKOUT / "docs"), str(tmp_path / "site")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert result.returncode == 0, result.stderr
    pages = {
        path.relative_to(tmp_path / "site").as_posix()
        for path in (tmp_path / "site").rglob("*.html")
    }
    assert {"index.html", "tutorials/allocator.html", "reference/hooks.html"} <= pages
