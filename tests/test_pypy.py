"""On PyPy, which long hunts are several times as fast on, everything comes to the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

TIMES = {"seconds", "rate"}
"""What a hunt tells that is never twice the same."""

Told = Callable[..., Any]


@pytest.fixture
def told(checkout: Path) -> Told:
    """Run a command on an interpreter; return what it says as JSON."""
    other = os.environ.get("PARAVIRT_MM_PYPY")
    if not other:
        pytest.skip("needs PARAVIRT_MM_PYPY: a python of PyPy's that paravirt-mm is installed for")
    which = "import sys; print(sys.implementation.name)"
    assert subprocess.check_output([other, "-c", which], text=True) == "pypy\n"

    def run(python: str, *arguments: str) -> Any:
        command = [python, "-m", "paravirt_mm", *arguments, "--json"]
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=300)
        assert done.returncode in (0, 1), done.stderr
        return json.loads(done.stdout)

    return run


def both(told: Told, *arguments: str) -> tuple[Any, Any]:
    """Return what CPython says, and PyPy."""
    return told(sys.executable, *arguments), told(os.environ["PARAVIRT_MM_PYPY"], *arguments)


def test_every_figure_is_the_same(told: Told) -> None:
    """Of all allocators, natively and under Xen."""
    ours, theirs = both(told, "compare", "lenovo-x230-8g", "qemu-pae-320m")
    assert ours == theirs
    assert len(ours) == 20


def test_a_hunt_finds_the_same_machine(told: Told) -> None:
    hunt = ("hunt", "incremental:variant=hpa", "-b", "xen", "--for", "tables == 77")
    ours, theirs = both(told, *hunt, "--seed", "1", "--time", "200")
    assert ours["found"]
    assert ours["tries"] > 50
    assert {key: ours[key] for key in ours.keys() - TIMES} == {
        key: theirs[key] for key in theirs.keys() - TIMES
    }
