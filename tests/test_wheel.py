"""The package as users get it: a wheel in a clean venv, and an editable install; the main job runs
in both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FAST = ("-a", "legacy_linear:kernel=3.6", "-a", "incremental:variant=hpa")
BUILT_IN = {"native", "xen", "faulty", "legacy_linear", "incremental", "chunk_end", "linux"}


def _call(*command: str | Path, cwd: Path | None = None, path: Path | None = None) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(checkout: Path, build_tools: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    build = (sys.executable, "-m", "build", "--no-isolation")
    _call(*build, "--outdir", folder, checkout, path=build_tools)
    return folder


@pytest.fixture(scope="module", params=["wheel", "editable"])
def environment(
    request: pytest.FixtureRequest, checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The scripts folder of a venv with nothing but the package and its dependencies."""
    folder = tmp_path_factory.mktemp(request.param)
    venv.create(folder, with_pip=False)  # this one's pip does for both
    scripts = folder / "bin"
    pip = (sys.executable, "-m", "pip", "--python", scripts / "python")
    # Most modules of the dependencies are never imported, so not worth compiling.
    install = (*pip, "install", "--quiet", "--no-compile")
    if request.param == "wheel":
        (wheel,) = request.getfixturevalue("built").glob("*.whl")
        _call(*install, wheel)
    else:
        _call(*install, "--editable", checkout)  # isolated: with what is declared
    return scripts


def test_entry_points_are_found(environment: Path, tmp_path: Path) -> None:
    code = (
        "from paravirt_mm.registry import Registry; import json;"
        "r = Registry.discover();"
        "print(json.dumps([sorted(r.plugins), [b.problem for b in r.broken],"
        " sorted({p.origin for p in r.plugins.values()})]))"
    )
    names, broken, origins = json.loads(_call(environment / "python", "-c", code, cwd=tmp_path))
    assert set(names) == BUILT_IN
    assert broken == []
    assert len(origins) == 1
    assert origins[0].startswith("paravirt-mm ")


def test_main_job_runs(environment: Path, tmp_path: Path) -> None:
    """`paravirt-mm compare` away from the source tree, on the machines of the package."""
    output = _call(environment / "paravirt-mm", "compare", *FAST, "--format", "json", cwd=tmp_path)
    rows = json.loads(output)
    assert {row["outcome"] for row in rows} <= {"ok", "panic", "rejected"}
    assert {row["backend"] for row in rows} == {"native", "xen"}
    assert len({row["machine"] for row in rows}) >= 8
    table = _call(environment / "paravirt-mm", "compare", "lenovo-x230-8g", *FAST, cwd=tmp_path)
    for word in ("legacy_linear", "incremental", "native", "xen"):
        assert word in table


def test_types_and_machines_are_packaged(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "paravirt_mm/py.typed" in names
    assert sum(name.endswith(".toml") and "/machines/" in name for name in names) >= 8
    assert {f"paravirt_mm_{name}/__init__.py" for name in BUILT_IN} <= names
    assert not any(name.startswith(("tests/", "plugins/")) for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_sdist_carries_the_tests(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "tests/conftest.py"} <= names


def test_nothing_but_dependencies_is_needed(environment: Path) -> None:
    """Neither pytest nor hypothesis come along, and the parts of the kit that do not need them
    work.
    """
    code = (
        "import sys, paravirt_mm.testing as kit;"
        "machines = list(kit.generate(2)); kit.registry_with(mine=kit.AscendingAllocator);"
        "print(len(machines), 'pytest' in sys.modules, 'hypothesis' in sys.modules)"
    )
    assert _call(environment / "python", "-c", code).split() == ["2", "False", "False"]
