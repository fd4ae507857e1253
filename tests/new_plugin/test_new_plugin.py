"""A generated project is complete: it installs, passes its own tests, and stands in the tables."""

from __future__ import annotations

import ast
import errno
import json
import os
import shlex
import subprocess
import sys
import tomllib
import venv
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from paravirt_mm._version import __version__
from paravirt_mm.errors import ExitCode
from tests.build_tools import required
from tests.commands import Run

real = pytest.mark.skipif(find_spec("copier") is None, reason="needs the extra new")

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


@real
@pytest.mark.slow
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
def installed(
    projects: dict[str, Path], build_tools: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The interpreter of an environment that has the three projects; what this one has installed is
    visible there, so that nothing need be fetched.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)  # this one's pip does for both
    python = folder / "bin" / "python"
    (site,) = (folder / "lib").glob("python*/site-packages")
    ours = [path for path in sys.path if path.endswith("site-packages")]
    checkout = Path(__file__).parents[2]
    plugins = [str(path) for path in (checkout / "plugins").iterdir()]
    (site / "parent.pth").write_text(
        "\n".join([*ours, str(build_tools), str(checkout), *plugins]) + "\n"
    )
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet")
    # Those of the examples, which are built once with nothing else.
    example = required(checkout / "examples" / "bottom_up")
    assert all(required(project) == example for project in projects.values())
    editable = [word for role in ROLES for word in ("--editable", projects[role])]
    call(*pip, "--no-deps", "--no-build-isolation", *editable, cwd=folder)
    return python


@real
@pytest.mark.slow
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


@pytest.mark.slow
@real
def test_an_update_renews_what_nobody_edits_and_nothing_else(
    tmp_path: Path, paravirt_mm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = paravirt_mm("new-plugin", "my_own", "--allocator")
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout.startswith("paravirt-mm-my-own: written\n\n  cd paravirt-mm-my-own\n")
    project = tmp_path / "paravirt-mm-my-own"
    module, ci = project / "paravirt_mm_my_own.py", project / ".github/workflows/ci.yml"
    answers = (project / ".paravirt-mm-plugin.yml").read_text()
    assert __version__ in answers
    fresh = ci.read_text()
    for number, where in enumerate((("-o", str(project)), ())):
        module.write_text("# all my own\n")
        ci.write_text("old\n")
        (project / ".paravirt-mm-plugin.yml").write_text(answers.replace(__version__, "0.0.1"))
        monkeypatch.chdir((tmp_path, project)[number])
        result = paravirt_mm("new-plugin", "--update", *where)
        assert (result.returncode, result.stderr) == (0, "")
        named = where[-1] if where else "."
        assert result.stdout == f"{named}: renewed for paravirt-mm {__version__}\n"
        assert module.read_text() == "# all my own\n"
        assert ci.read_text() == fresh
        assert (project / ".paravirt-mm-plugin.yml").read_text() == answers


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What copier is told to write, in its place."""
    told: list[dict[str, Any]] = []

    def run_copy(template: str, folder: str, **how: Any) -> None:
        told.append({"folder": folder, "files": sorted(os.listdir(template)), **how})

    monkeypatch.setitem(sys.modules, "copier", SimpleNamespace(run_copy=run_copy))
    return told


def test_copier_is_told_what_to_write_and_where(
    tmp_path: Path, paravirt_mm: Run, written: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty folder may be there already."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for where, folder in (((), "paravirt-mm-my-own"), (("-o", "mine"), "mine")):
        for role in ROLES:
            result = paravirt_mm("new-plugin", "my_own", f"--{role}", *where)
            assert (result.returncode, result.stderr) == (0, "")
            head, _, *commands = result.stdout.splitlines()
            assert head == f"{folder}: written"
            assert commands == [f"  cd {folder}", "  pip install --editable '.[test]'", "  pytest"]
            told = written.pop()
            assert "copier.yml" in told.pop("files")
            assert told == {
                "folder": folder,
                "data": {"name": "my_own", "role": role, "version": __version__},
                "defaults": True,
                "quiet": True,
            }


def test_an_update_is_told_what_the_project_was_made_of(
    tmp_path: Path, paravirt_mm: Run, written: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("yaml")
    answers = "name: my_own\nrole: backend\nclass_name: Mine\nversion: 0.0.1\nelse: 7\n"
    (tmp_path / ".paravirt-mm-plugin.yml").write_text(answers)
    monkeypatch.chdir(tmp_path)
    for where, folder in (((), "."), (("-o", str(tmp_path)), str(tmp_path))):
        result = paravirt_mm("new-plugin", "--update", *where)
        assert result.stdout == f"{folder}: renewed for paravirt-mm {__version__}\n"
        told = written.pop()
        assert (told["folder"], told["overwrite"], told["defaults"]) == (folder, True, True)
        assert told["data"] == {
            "name": "my_own", "role": "backend", "class_name": "Mine", "version": __version__,
        }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["mine"], ExitCode.USAGE, "--allocator"),
        (["--allocator"], ExitCode.USAGE, "NAME"),
        (["Mine", "--allocator"], ExitCode.USAGE, "lower case"),
        (["../x", "--allocator"], ExitCode.USAGE, "lower case"),
        (["class", "--allocator"], ExitCode.USAGE, "lower case"),
        (["a" * 41, "--allocator"], ExitCode.USAGE, "lower case"),
        (["mine", "--allocator", "-o", "full"], ExitCode.BAD_INPUT, "full: is there already, and"),
        (["--update"], ExitCode.BAD_INPUT, "holds no project"),
        (["--update", "-o", "odd"], ExitCode.BAD_INPUT, "cannot be understood"),
        (["--update", "-o", "less"], ExitCode.BAD_INPUT, "cannot be understood"),
        (["--update", "-o", "list"], ExitCode.BAD_INPUT, "cannot be understood"),
        (["--update", "-o", "bytes"], ExitCode.BAD_INPUT, "cannot be understood"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path,
    paravirt_mm: Run,
    written: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: ExitCode,
    words: str,
) -> None:
    if words == "cannot be understood":
        pytest.importorskip("yaml")
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full", "file").touch()
    for name, content in (
        ("odd", b"- ["), ("less", b"name: mine"), ("list", b"- name"), ("bytes", b"\xff\xfe")
    ):  # fmt: skip
        Path(name).mkdir()
        Path(name, ".paravirt-mm-plugin.yml").write_bytes(content)
    result = paravirt_mm("new-plugin", *arguments)
    assert (result.returncode, result.stdout, written) == (code, "", [])
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_folder_that_cannot_be_written_is_named(
    paravirt_mm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_copy(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(sys.modules, "copier", SimpleNamespace(run_copy=run_copy))
    result = paravirt_mm("new-plugin", "mine", "--allocator", "-o", "/nowhere/mine")
    assert result.returncode == ExitCode.BAD_INPUT
    assert result.stderr == (
        "paravirt-mm: /nowhere/mine: cannot be written: No space left on device\n"
    )


def test_without_copier_it_says_what_to_install(
    paravirt_mm: Run, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "copier", None)
    result = paravirt_mm("new-plugin", "mine", "--allocator")
    assert (result.returncode, result.stdout) == (ExitCode.USAGE, "")
    assert f"pip install -e {shlex.quote(f'{checkout}[new]')}" in result.stderr
