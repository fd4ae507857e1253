"""The C reference: compiled and run in the same session as what is measured beside it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from timing import ENTRIES, Cost, best, timed


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Keep of the machine what decides speed, not whose it is."""
    cpu = machine_info.get("cpu", {})
    kept = {"brand_raw": cpu.get("brand_raw"), "count": cpu.get("count")}
    python = machine_info.get("python_version")
    machine_info.clear()
    machine_info.update(cpu=kept, python_version=python)


@pytest.fixture(scope="session")
def c_loop(tmp_path_factory: pytest.TempPathFactory) -> Cost:
    """What it costs a plain C loop to fill `ENTRIES`, one at a time: whole process, best of 3."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler for the reference to compare with")
    program = tmp_path_factory.mktemp("c") / "fill"
    source = Path(__file__).with_name("fill.c")
    subprocess.run([compiler, "-O2", "-o", program, source], check=True)
    return best([timed([program, str(ENTRIES)])[0] for _ in range(3)])
