"""How a figure is written for people: units, dashes, short numbers."""

from __future__ import annotations

from paravirt_mm.machine.paging import GIB, KIB, MIB, TIB
from paravirt_mm.measure.figures import FIGURES, Figure, Unit, Value
from paravirt_mm.printable import printable

MISSING = "-"


def size(value: int) -> str:
    """Return bytes in the largest unit that keeps it short: 0, 256K, 1.5M, 64T."""
    for unit, letter in ((TIB, "T"), (GIB, "G"), (MIB, "M"), (KIB, "K")):
        if value >= unit:
            text = f"{value / unit:.1f}"
            return f"{text.removesuffix('.0')}{letter}"
    return str(value)


def show(figure: Figure, value: Value) -> str:
    """Return a figure's value as a cell of a table."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if figure.unit is Unit.BYTES and isinstance(value, int):
        return size(value)
    if figure.unit is Unit.ADDRESS and isinstance(value, int):
        return f"{value:#x}"
    if isinstance(value, float):
        return f"{value:.2f}"
    return printable(str(value))


def headers(names: list[str]) -> list[str]:
    """Return column titles for figure names; a plugin's own column is titled by its name."""
    return [FIGURES[name].header if name in FIGURES else printable(name) for name in names]
