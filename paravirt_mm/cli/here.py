"""The machine that the program runs on: whatever of it may be read.

The kernel's log says most (where the kernel lies, what is reserved), the firmware's map in sysfs
only what memory there is, /proc/iomem both, to those who may see its addresses.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import attrs

from paravirt_mm.cli import reading
from paravirt_mm.errors import InputError
from paravirt_mm.machine.model import Machine

NAME = "here"
MEMMAP = Path("/sys/firmware/memmap")
IOMEM = Path("/proc/iomem")
LOGS = (Path("/var/log/dmesg"), Path("/var/log/kern.log"))
_SECONDS = 10


def this_machine() -> tuple[Machine, str]:
    """Return the machine and what of it was read.

    Raises `InputError` that says of each source why it says nothing.
    """
    reasons = []
    for name, read in _sources():
        try:
            machine = read()
        except (InputError, OSError, subprocess.SubprocessError) as error:
            reasons.append(f"{name}: {_reason(error)}")
            continue
        told = attrs.evolve(machine.provenance, title=f"this machine, by its {name}", source=name)
        return attrs.evolve(machine, name=NAME, provenance=told), name
    raise InputError("nothing may be read of this machine: " + "; ".join(reasons), NAME)


def _sources() -> Iterator[tuple[str, Callable[[], Machine]]]:
    yield "kernel log (dmesg)", _from_dmesg
    for path in LOGS:
        yield f"kernel log ({path})", partial(_from_file, path)
    yield f"firmware map ({MEMMAP})", partial(_from_file, MEMMAP)
    yield f"resources ({IOMEM})", partial(_from_file, IOMEM)


def _from_file(path: Path) -> Machine:
    if not path.exists():
        raise InputError("there is none")
    return reading.machine(str(path))


def _from_dmesg() -> Machine:
    """Read what the kernel still has of its log; the beginning may have been overwritten."""
    program = shutil.which("dmesg")
    if program is None:
        raise InputError("there is no such program")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "dmesg.txt")
        with log.open("wb") as file:
            ended = subprocess.run(  # noqa: S603 - a fixed program, no shell
                [program],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.DEVNULL,
                timeout=_SECONDS,
                check=False,
                env={**os.environ, "LC_ALL": "C"},
            )
        if ended.returncode:
            raise InputError("it may not be read")
        return reading.machine(str(log))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
