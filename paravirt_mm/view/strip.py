"""A machine's memory in one line of text, for terminals."""

from __future__ import annotations

from collections.abc import Iterable

from paravirt_mm.machine.model import Machine, Span
from paravirt_mm.view.memory_map import Scale
from paravirt_mm.view.scene import LINES, Scene

_DRAWN = {"hole": " ", "ram": "·", "mapped": "─", "aside": "▒", "tables": "█"}
_ASCII = {"hole": " ", "ram": ".", "mapped": "-", "aside": "%", "tables": "#"}


def strip(machine: Machine, scene: Scene, width: int, *, drawn: bool = True) -> str:
    """Return ``width`` characters, from address 0 to the end on a logarithmic axis: what is RAM,
    mapped, set aside in vain, and where tables are. What is rarer is drawn over what is not.
    """
    scale = _scale(machine, width)
    marks = _DRAWN if drawn else _ASCII
    line = [marks["hole"]] * width
    layers: tuple[tuple[str, Iterable[Span]], ...] = (
        ("ram", machine.memory_map.ram_pages()),
        ("mapped", scene.premapped),
        ("mapped", ((low, high) for frame in scene.frames for low, high, _ in frame.mapped)),
        ("aside", scene.idle),
        ("tables", (area.span for area in scene.tables())),
    )
    for name, spans in layers:
        for low, high in spans:
            first = min(width - 1, int(scale(low)))
            last = min(width, max(first + 1, round(scale(high))))
            line[first:last] = marks[name] * (last - first)
    return "".join(line)


def ruler(machine: Machine, width: int) -> str:
    """Return the line above strips: where low memory ends."""
    scale = _scale(machine, width)
    line = [" "] * width
    free = 0
    for address, words in LINES:
        place = int(scale(address))
        if address < scale.end and free <= place <= width - len(words):
            line[place : place + len(words)] = words
            free = place + len(words) + 1
    return "".join(line)


def strip_legend(*, drawn: bool = True) -> str:
    """Return what the marks of strips mean."""
    marks = _DRAWN if drawn else _ASCII
    return (
        f"{marks['tables']} tables, {marks['aside']} set aside in vain, {marks['mapped']} mapped, "
        f"{marks['ram']} RAM"
    )


def _scale(machine: Machine, width: int) -> Scale:
    return Scale(max(machine.map_limit, machine.memory_map.ram_pages().end), width)
