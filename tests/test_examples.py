"""The examples work, and what the documentation says of them is true."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from paravirt_mm import Registry, Scenario, bundled
from tests.build_tools import required

EXAMPLES = Path(__file__).parents[1] / "examples"
BOTTOM_UP = EXAMPLES / "bottom_up"


@pytest.fixture(scope="module")
def with_bottom_up() -> Registry:
    path = BOTTOM_UP / "paravirt_mm_bottom_up.py"
    spec = importlib.util.spec_from_file_location("paravirt_mm_bottom_up", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    registry = Registry.discover()
    registry.add("bottom_up", module.BottomUp)
    assert not registry.broken
    return registry


@pytest.mark.parametrize("backend", ["native", "xen"])
def test_bottom_up_is_correct_and_lies_low(with_bottom_up: Registry, backend: str) -> None:
    run = Scenario.of(bundled("lenovo-x230-8g"), "bottom_up", backend).run(with_bottom_up)
    assert str(run.verdict) == "ok"
    if backend == "xen":
        assert run.figures["tables_below_16m"] > 0


FOLDERS = ("bottom_up", "shadow", "ledger")


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS)
def test_example_passes_its_own_tests(folder: str) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--import-mode=append",
    ]
    result = subprocess.run(
        [*command, "."], cwd=EXAMPLES / folder, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]


@pytest.mark.slow
def test_they_install_like_anybody_elses(tmp_path: Path, build_tools: Path) -> None:
    """Real packages, built and installed by pip into a folder of their own; for the first of them
    pip fetches the build tool that it declares, which is that of the others.
    """
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site)]
    # A build leaves files behind.
    sources = [shutil.copytree(EXAMPLES / folder, tmp_path / folder) for folder in FOLDERS]
    assert len({frozenset(required(source)) for source in sources}) == 1
    subprocess.run([*pip, str(sources[0])], check=True)
    environment = {**os.environ, "PYTHONPATH": str(build_tools)}
    pip.append("--no-build-isolation")
    subprocess.run([*pip, *map(str, sources[1:])], check=True, env=environment)
    environment["PYTHONPATH"] = str(site)

    def call(*arguments: str) -> str:
        command = [sys.executable, "-m", "paravirt_mm", *arguments]
        result = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout

    listed = {one["name"]: one for one in json.loads(call("plugins", "--json"))["plugins"]}
    assert [listed[name]["role"] for name in ("bottom_up", "shadow", "table_ledger")] == [
        "allocator", "backend", "observer",
    ]  # fmt: skip
    chosen = ("-a", "bottom_up", "-b", "shadow", "--observer", "table_ledger:path=t.csv")
    (row,) = json.loads(call("compare", "lenovo-x230-8g", *chosen, "-f", "json"))
    assert (row["verdict"], row["flips"]) == ("ok", 0)
    assert row["shadow.pages"] > 0
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert sum(int(line.rpartition(",")[2]) for line in lines[1:]) == row["shadow.pages"]
