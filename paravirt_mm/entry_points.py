"""Where plugins are: entry points of distributions, and files or modules that a spec names. Nothing
is imported by looking.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import zlib
from collections.abc import Iterator
from importlib.metadata import Distribution, EntryPoint, distributions
from pathlib import Path
from typing import Any

import attrs

from paravirt_mm.hookspecs import PROJECT
from paravirt_mm.instances import in_one_line
from paravirt_mm.plugin import OWN_DISTRIBUTION, BrokenPlugin

NONE = "-all"
"""What `CHOICE_VARIABLE` says for no plugins at all."""
LOCAL = "no distribution"
"""What is said instead of one, of a class that a spec names by its file or module."""
_ENTRY = re.compile(r"[\w.]+\s*:\s*[\w.]+\s*\Z")


@attrs.frozen
class Place:
    """Where a class without an entry point is: ``./file.py:Class``, ``package.module:Class``."""

    value: str

    def load(self) -> Any:
        """Import it; modules beside a file can be imported by it, and so can those in the folder
        where the process was started.
        """
        module, _, name = self.value.rpartition(":")
        path = Path(module)
        folder = str(path.resolve().parent if path.suffix == ".py" else Path.cwd())
        if folder not in sys.path:
            sys.path.append(folder)
        if path.suffix != ".py":
            return getattr(importlib.import_module(module), name)
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {module}")
        unique = f"{path.stem}_{zlib.crc32(str(path.resolve()).encode()):08x}"
        if unique not in sys.modules:
            spec = importlib.util.spec_from_file_location(unique, path)
            if spec is None or spec.loader is None:
                raise ImportError(f"{module} is no module")
            made = sys.modules[unique] = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(made)
            except BaseException:
                del sys.modules[unique]
                raise
        return getattr(sys.modules[unique], name)


@attrs.frozen
class Point:
    """An entry point that nobody has asked for yet."""

    point: EntryPoint | Place
    distribution: str
    version: str

    @property
    def names_a_class(self) -> bool:
        """Whether it says ``module:Class``."""
        return _ENTRY.match(self.point.value) is not None

    @property
    def strange(self) -> bool:
        """Whether it comes from somebody else."""
        return self.distribution != OWN_DISTRIBUTION


@attrs.frozen
class Choice:
    """Which plugins somebody wants: all, some, or all but some."""

    only: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, text: str) -> Choice:
        """Read what ``PARAVIRT_MM_PLUGINS`` says."""
        names = [name.strip() for name in text.split(",") if name.strip()]
        return cls(
            frozenset(name for name in names if not name.startswith("-")),
            frozenset(name[1:] for name in names if name.startswith("-")),
        )

    def __contains__(self, name: str) -> bool:
        if name in self.without or NONE[1:] in self.without:
            return False
        return not self.only or name in self.only


def entry_points(broken: list[BrokenPlugin]) -> Iterator[tuple[str, Point]]:
    """Yield the entry points of all distributions; one whose metadata cannot be read is ``broken``
    and hides no other.
    """
    seen: set[str] = set()
    for distribution in distributions():
        try:
            if PROJECT not in (distribution.read_text("entry_points.txt") or ""):
                continue
            name, version = _told(distribution)
            name = name or _folder(distribution)
            # An editable install beside its own metadata is the same distribution twice.
            key = re.sub(r"[-_.]+", "-", name).lower()
            if key in seen:
                continue
            seen.add(key)
            points = {one for one in distribution.entry_points if one.group == PROJECT}
            yield from ((one.name, Point(one, name, version)) for one in points)
        except Exception as error:
            problem = f"its metadata cannot be read: {in_one_line(error)}"
            broken.append(BrokenPlugin("?", _folder(distribution), "", problem))


def _told(distribution: Distribution) -> tuple[str, str]:
    """Return a distribution's name and version; empty where its metadata does not tell.

    Where importlib_metadata was imported, it finds distributions in place of the standard library,
    and raises for what that answers with None.
    """
    try:
        told: Any = distribution.metadata  # has a `get`, which its type does not tell
    except FileNotFoundError:
        return "", ""
    return told.get("Name", ""), told.get("Version", "")


def _folder(distribution: Distribution) -> str:
    """Return the name of a distribution's folder, for want of better."""
    path = getattr(distribution, "_path", None)
    return str(getattr(path, "name", "unknown")).partition("-")[0]


def precedence(item: tuple[str, Point]) -> tuple[str, bool, str, str]:
    """Return the key that sorts entry points: of one name, the core's own comes first."""
    name, found = item
    return name, found.strange, found.distribution, found.point.value
