"""References, run in the same session as what is measured beside them: a C loop, a boot."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from timing import ENTRIES, Cost, best, cpu_seconds, timed

from paravirt_mm import bundled
from paravirt_mm.verify.linux.maps import map_of
from paravirt_mm.verify.linux.qemu import (
    KERNEL_VARIABLE,
    Kernel,
    LiveUnavailableError,
    find_kernels,
    find_qemu,
    record_boot,
)


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


@pytest.fixture(scope="session")
def boot() -> tuple[str, float]:
    """What one boot of a real kernel costs: its release, and seconds of CPU of QEMU and of what
    records it, from the start to the end of the direct map. Best of 3, each by itself (a second
    boot of one `Kernel` would go on from where the first came to its map).

    Skips without QEMU or a kernel: `$PARAVIRT_MM_LINUX`, or where .ci/run has them fetched.
    """
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    fetched = Path(home, "paravirt-mm", "linux")
    try:
        find_qemu()
        where = fetched if KERNEL_VARIABLE not in os.environ and fetched.is_dir() else None
        found = find_kernels(where)
    except LiveUnavailableError as error:
        pytest.skip(str(error))
    path = next((one for one in found if "-6.1." in one.name), found[-1])
    costs = []
    for _ in range(3):
        kernel = Kernel.load(path)
        spec = map_of(bundled("qemu-512m"), kernel).spec
        before = cpu_seconds()
        record_boot(spec, kernel)
        costs.append(cpu_seconds() - before)
    return kernel.release, min(costs)
