"""A generated project is complete: it installs, passes its own tests, and stands in the tables."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
import venv
from importlib.util import find_spec
from pathlib import Path

import pytest

from paravirt_mm.errors import ExitCode

pytestmark = [
    pytest.mark.slow,  # a process each
    pytest.mark.skipif(find_spec("copier") is None, reason="needs the extra new"),
]

ROLES = ("allocator", "backend", "observer")


def new_plugin(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "paravirt_mm", "new-plugin", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A fresh project of each role."""
    folder = tmp_path_factory.mktemp("projects")
    for role in ROLES:
        result = new_plugin(f"my_{role}", f"--{role}", cwd=folder)
        assert result.returncode == 0, result.stderr
    return {role: folder / f"paravirt-mm-my-{role}" for role in ROLES}


@pytest.mark.parametrize("role", ROLES)
def test_everything_is_there(projects: dict[str, Path], role: str) -> None:
    found = {path.relative_to(projects[role]).as_posix() for path in projects[role].rglob("*")}
    assert {
        "pyproject.toml", "README.md", f"paravirt_mm_my_{role}.py", f"tests/test_my_{role}.py",
        ".github/workflows/ci.yml", ".gitignore", ".paravirt-mm-plugin.yml",
    } <= found  # fmt: skip
    assert not any(name.endswith((".jinja", "copier.yml")) for name in found)
    for name in found:
        path = projects[role] / name
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert "{%" not in text
            assert "{{" not in text.replace("${{ matrix.python }}", "")
            if name.endswith(".py"):
                assert ast.get_docstring(ast.parse(text))
    points = tomllib.loads((projects[role] / "pyproject.toml").read_text("utf-8"))["project"]
    assert points["entry-points"]["paravirt_mm"] == {
        f"my_{role}": f"paravirt_mm_my_{role}:My{role.capitalize()}"
    }


def call(*command: str | Path, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment,
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def installed(projects: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has the three projects; what this one has installed is
    visible there, so that nothing need be fetched but the tool that builds them, once.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)  # this one's pip does for both
    python = folder / "bin" / "python"
    (site,) = (folder / "lib").glob("python*/site-packages")
    ours = [path for path in sys.path if path.endswith("site-packages")]
    checkout = Path(__file__).parents[2]
    plugins = [str(path) for path in (checkout / "plugins").iterdir()]
    (site / "parent.pth").write_text("\n".join([*ours, str(checkout), *plugins]) + "\n")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet")
    tools = {
        tool
        for project in projects.values()
        for tool in tomllib.loads((project / "pyproject.toml").read_text("utf-8"))["build-system"][
            "requires"
        ]
    }
    call(*pip, *sorted(tools), "editables", cwd=folder)  # what hatchling needs for --editable
    editable = [word for role in ROLES for word in ("--editable", projects[role])]
    call(*pip, "--no-deps", "--no-build-isolation", *editable, cwd=folder)
    return python


@pytest.mark.parametrize("role", ROLES)
def test_it_installs_and_passes_its_tests(
    projects: dict[str, Path], installed: Path, role: str
) -> None:
    here, python = projects[role], installed
    assert " passed" in call(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=here)
    command = (python, "-m", "paravirt_mm")
    listed = json.loads(call(*command, "plugins", "--json", cwd=here))["plugins"]
    (mine,) = [plugin for plugin in listed if plugin["name"] == f"my_{role}"]
    assert (mine["role"], mine["version"]) == (role, "0.1.0")
    if role == "observer":
        return
    flag = "-a" if role == "allocator" else "-b"
    rows = json.loads(
        call(*command, "compare", "qemu-512m", flag, f"my_{role}", "-f", "json", cwd=here)
    )
    assert rows
    assert {row["outcome"] for row in rows} == {"ok"}
    assert {row[role] for row in rows} == {f"my_{role}"}


def test_an_update_renews_what_nobody_edits_and_nothing_else(tmp_path: Path) -> None:
    assert new_plugin("mine", "--allocator", cwd=tmp_path).returncode == 0
    project = tmp_path / "paravirt-mm-mine"
    module, ci = project / "paravirt_mm_mine.py", project / ".github/workflows/ci.yml"
    fresh = ci.read_text()
    module.write_text("# all my own\n")
    ci.write_text("old\n")
    result = new_plugin("--update", cwd=project)
    assert result.returncode == 0, result.stderr
    assert module.read_text() == "# all my own\n"
    assert ci.read_text() == fresh


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["mine"], ExitCode.USAGE, "--allocator"),
        (["--allocator"], ExitCode.USAGE, "NAME"),
        (["Mine", "--allocator"], ExitCode.USAGE, "lower case"),
        (["../x", "--allocator"], ExitCode.USAGE, "lower case"),
        (["class", "--allocator"], ExitCode.USAGE, "lower case"),
        (["mine", "--allocator", "-o", "full"], ExitCode.BAD_INPUT, "not empty"),
        (["--update"], ExitCode.BAD_INPUT, "holds no project"),
        (["--update", "-o", "odd"], ExitCode.BAD_INPUT, "cannot be understood"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, arguments: list[str], code: ExitCode, words: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / ".paravirt-mm-plugin.yml").write_text("- [")
    result = new_plugin(*arguments, cwd=tmp_path)
    assert result.returncode == code, result.stderr
    assert words in result.stderr
    assert "Traceback" not in result.stderr
