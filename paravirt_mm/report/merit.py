"""Which figures are a merit, and which way: what "better" means in a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from paravirt_mm.comparison import Row
from paravirt_mm.measure.figures import FIGURES, Unit


class Merit(IntEnum):
    """What is better of a figure."""

    LESS = -1
    NEITHER = 0
    MORE = 1


_MORE = ("largest_free_", "crashkernel_")
_NEITHER = ("mapped_", "pins_", "validations_", "steps", "brk_")
_TELLS_WHAT_WAS_DONE = frozenset({"used", "direct_writes", "hypercall_writes"})


def merit(name: str) -> Merit:
    """Return which way a figure is a merit. One that only tells what was done, or where, is none;
    of a plugin's own figure nobody knows.
    """
    figure = FIGURES.get(name)
    if figure is None or figure.unit in {Unit.ADDRESS, Unit.TEXT}:
        return Merit.NEITHER
    if name.startswith(_MORE):
        return Merit.MORE
    if name.startswith(_NEITHER) or name in _TELLS_WHAT_WAS_DONE:
        return Merit.NEITHER
    return Merit.LESS


def judged(rows: Sequence[Row], name: str) -> list[Merit]:
    """Return for each row whether it is the best (MORE) or the worst (LESS) of those under the same
    platform on the same machine; NEITHER where nothing is to be said.
    """
    way = merit(name)
    peers: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        value = row.figures.get(name)
        if isinstance(value, int | float):
            peers.setdefault((row.machine.name, row.backend), []).append(way * value)
    result = []
    for row in rows:
        value = row.figures.get(name)
        among = peers.get((row.machine.name, row.backend), [])
        if not isinstance(value, int | float) or min(among) == max(among):
            result.append(Merit.NEITHER)
        elif way * value == max(among):
            result.append(Merit.MORE)
        else:
            result.append(Merit.LESS if way * value == min(among) else Merit.NEITHER)
    return result
