"""The machines that come with the package: real ones, each with its provenance."""

from __future__ import annotations

import difflib
from functools import cache
from importlib import resources

from paravirt_mm.errors import InputError
from paravirt_mm.machine.model import Machine
from paravirt_mm.sources import machine_file

_FOLDER = "machines"


def bundled_machines() -> list[str]:
    """Return the names of the machines that the package carries, sorted."""
    return [*_names()]


@cache
def _names() -> tuple[str, ...]:
    folder = resources.files("paravirt_mm") / _FOLDER
    return tuple(
        sorted(
            entry.name.removesuffix(".toml")
            for entry in folder.iterdir()
            if entry.name.endswith(".toml")
        )
    )


@cache
def bundled(name: str) -> Machine:
    """Return the machine called ``name``, read once a process. Raises InputError with the nearest
    names otherwise.
    """
    names = _names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names
        raise InputError(
            f"no machine called {name[:80]!a} comes with the package; try {', '.join(near)}"
        )
    text = (resources.files("paravirt_mm") / _FOLDER / f"{name}.toml").read_text("utf-8")
    return machine_file.read_toml(text, f"machines/{name}.toml")
