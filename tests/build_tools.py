"""What builds packages, fetched once for the tests that build some. One build each of the project
and of an example is isolated, and fetches its own: it notices what a project does not declare.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest


def required(project: Path) -> set[str]:
    """What a project declares that it is built with."""
    about = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    return set(about["build-system"]["requires"])


@pytest.fixture(scope="session")
def build_tools(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of modules with what the project and its examples are built with."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all workers
    tools, new = folder / "build-tools", folder / "build-tools.new"
    examples = [path.parent for path in checkout.glob("examples/*/pyproject.toml")]
    wanted = {"editables"}.union(*map(required, (checkout, *examples)))  # for --editable
    with (folder / "build-tools.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tools.exists():
            pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-compile")
            subprocess.run([*pip, "--target", new, *sorted(wanted)], check=True)
            new.rename(tools)
    return tools
