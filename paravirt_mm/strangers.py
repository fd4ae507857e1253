"""Plugins of others are imported in a child first: one may hang, print, end the process, or start
threads and processes, and none of that may reach the program.

What the child learns (`Tried`) says whether the plugin can be used and which hooks it answers. So
the program itself imports only what a command needs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Protocol

import attrs

from paravirt_mm.errors import Ended
from paravirt_mm.guard import MIB, Limits, Stopped, together
from paravirt_mm.instances import implemented, in_one_line
from paravirt_mm.untouched import named, side_effects, unchanged

NAMED = Limits(cpu=20.0, wall=30.0)
"""What importing a plugin may cost that somebody named."""
UNASKED = Limits(cpu=5.0, wall=6.0, memory=1024 * MIB)
"""What it may cost to see whether a plugin that nobody named has something to say."""
AT_A_TIME = 4


class Loads(Protocol):
    """An entry point, or whatever else says where a class is."""

    @property
    def value(self) -> str:
        """The place, as text."""

    def load(self) -> object:
        """Import it."""


@attrs.frozen
class Tried:
    """What became of a trial: why the plugin cannot be used (empty: it can), and its hooks.

    ``stopped``: it took too long, and might be usable for those who have more patience.
    """

    problem: str = ""
    hooks: tuple[str, ...] = ()
    stopped: bool = False


def tried(
    points: Mapping[str, Loads], problems: Callable[[str, object], list[str]], limits: Limits
) -> Iterator[tuple[str, Tried]]:
    """Yield what each entry point says in a child of its own, several at a time."""
    waiting = list(points.items())
    while waiting:
        some, waiting = waiting[:AT_A_TIME], waiting[AT_A_TIME:]
        works = [partial(_once, name, point, problems) for name, point in some]
        for number, found in together(works, limits):
            name, point = some[number]
            if isinstance(found, Stopped):
                problem = f"cannot be loaded from {point.value}: {found}"
                found = Tried(problem, stopped=not found.crashed)
            yield name, found


def _once(
    name: str, point: Loads, problems: Callable[[str, object], list[str]], skip: int
) -> list[Tried]:
    return [] if skip else [_try(name, point, problems)]


def _try(name: str, point: Loads, problems: Callable[[str, object], list[str]]) -> Tried:
    """Import a plugin in this process, which is a child, and say what there is to say."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)
    os.dup2(silence, 1)
    try:
        with unchanged() as touched:
            factory = point.load()
            wrong = problems(name, factory)
    except BaseException as error:
        if isinstance(error, Ended):
            raise
        return Tried(f"cannot be loaded from {point.value}: {in_one_line(error)}")
    left = side_effects()
    if left is not None:
        return Tried(f"cannot be loaded from {point.value}: {left}")
    if touched:
        return Tried(f"importing it replaces {named(touched)}")
    hooks = tuple(implemented(factory)) if isinstance(factory, type) and not wrong else ()
    return Tried("; ".join(wrong), hooks)
