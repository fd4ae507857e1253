"""A machine's memory as a picture (SVG): what the firmware says, what lies there before the first
step, and where each scenario's tables landed, all on one axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from xml.etree import ElementTree

import attrs

from paravirt_mm.counted import counted
from paravirt_mm.machine.model import Machine, Span
from paravirt_mm.machine.paging import PAGE_SHIFT, PAGE_SIZE
from paravirt_mm.options import PluginSpec
from paravirt_mm.report.tables import label
from paravirt_mm.report.values import size
from paravirt_mm.view.palette import E820_COLOURS, Theme, both, colour
from paravirt_mm.view.scene import LINES, MAX_NAME, Scene, TableArea, placed, thinned
from paravirt_mm.view.story import bounded, merged

_SVG = "http://www.w3.org/2000/svg"
_FONT = "system-ui, 'Segoe UI', Helvetica, Arial, sans-serif"
_MARGIN = 12
_TOP = 64
_ROW = 17
"""Height of a row of the legend."""
_SMALLEST = 1.5
"""No range is drawn narrower than this, in pixels: a page of a terabyte would not be seen."""
PLACE_COLOURS = {
    "kernel": "kernel",
    "Loaded kernel": "kernel",
    "brk": "brk",
    "initrd": "initrd",
    "Init. ramdisk": "initrd",
}


class Scale:
    """Where an address stands on an axis of ``width`` pixels that ends at ``end`` bytes."""

    def __init__(self, end: int, width: float, *, linear: bool = False) -> None:
        self.end = max(end, PAGE_SIZE)
        self.width = width
        self.linear = linear

    def __call__(self, address: int) -> float:
        """Return the place of an address in pixels; the logarithmic axis begins with 64 KiB."""
        if self.linear:
            return self.width * address / self.end
        first = 64 << 10
        return self.width * math.log2(1 + address / first) / math.log2(1 + self.end / first)

    def ticks(self) -> Iterator[tuple[int, str]]:
        """Yield addresses worth a label, ascending."""
        if self.linear:
            step = 1 << max(20, math.ceil(math.log2(self.end / 8)))
            yield from ((address, size(address)) for address in range(step, self.end, step))
            return
        address = 1 << 18
        while address < self.end:
            yield address, size(address)
            address <<= 2


@attrs.define
class _Canvas:
    """An SVG under construction."""

    root: ElementTree.Element
    theme: Theme

    def rect(
        self, x: float, y: float, width: float, height: float, fill: str, title: str = ""
    ) -> None:
        """Draw a rectangle, with what is told about it."""
        element = self._add("rect", x=x, y=y, width=width, height=height)
        element.set("fill", fill if fill.startswith("url") else colour(fill, self.theme))
        if title:
            ElementTree.SubElement(element, "title").text = title

    def line(self, x: float, top: float, bottom: float, fill: str) -> None:
        """Draw an upright dashed line."""
        element = self._add("line", x1=x, x2=x, y1=top, y2=bottom)
        element.set("stroke", colour(fill, self.theme))
        element.set("stroke-dasharray", "3 3")

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        fill: str = "ink",
        points: int = 12,
        anchor: str = "start",
        bold: bool = False,
    ) -> None:
        """Write a line of text."""
        element = self._add("text", x=x, y=y)
        element.set("fill", colour(fill, self.theme))
        element.set("font-size", str(points))
        element.set("text-anchor", anchor)
        if bold:
            element.set("font-weight", "600")
        # A halo of paper keeps text readable across lines.
        element.set("stroke", colour("paper", self.theme))
        element.set("stroke-width", "4")
        element.set("paint-order", "stroke")
        element.text = words

    def _add(self, tag: str, **numbers: float) -> ElementTree.Element:
        written = {name: f"{value:.2f}".rstrip("0").rstrip(".") for name, value in numbers.items()}
        return ElementTree.SubElement(self.root, tag, written)


def memory_map(
    machine: Machine,
    scenes: Sequence[Scene] = (),
    *,
    theme: Theme = Theme.AUTO,
    linear: bool = False,
    width: int = 960,
) -> str:
    """Return the picture as SVG text. Without scenes it shows the machine alone."""
    end = max(machine.map_limit, machine.memory_map.ram().end, *(each.end for each in scenes))
    scale = Scale(end, width - 2 * _MARGIN, linear=linear)
    lanes = list(_places(machine, scenes))
    foot = _TOP + 34 + 34 * len(lanes) + 42 * len(scenes)
    legend = _legend(machine, scenes, [name for _, parts in lanes for name, _ in parts])
    rows = list(_rows(legend, width)) if scenes else []
    height = foot + (10 + _ROW * len(rows) if scenes else 0)
    root = ElementTree.Element(
        "svg",
        {
            "xmlns": _SVG,
            "viewBox": f"0 0 {width} {height}",
            "width": str(width),
            "height": str(height),
            "role": "img",
            "font-family": _FONT,
        },
    )
    canvas = _Canvas(root, theme)
    title = bounded(machine.provenance.title or machine.name, MAX_NAME)
    ElementTree.SubElement(root, "title").text = f"Memory of {title}"
    if theme is Theme.AUTO:
        ElementTree.SubElement(root, "style").text = both()
    _hatching(root, theme)
    if theme is not Theme.PAGE:
        canvas.rect(0, 0, width, height, "paper")
    kind = "linear" if linear else "logarithmic"
    canvas.text(_MARGIN, 20, title, points=15, bold=True)
    ram = size(machine.memory_map.ram_pages().total)
    canvas.text(_MARGIN, 37, f"{ram} RAM, {machine.mode.title}; {kind} axis", fill="muted")
    _axis(canvas, scale, foot)
    y = _TOP + 14
    canvas.text(_MARGIN, y - 3, "Firmware map", fill="muted", points=11)
    for entry in machine.memory_map:
        if entry.start < end:
            words = f"{entry.type.label}: {entry.start:#x}-{entry.end:#x}"
            span = entry.start, min(entry.end, end)
            _range(canvas, scale, span, y, 14, E820_COLOURS.get(entry.type.label, "other"), words)
    y += 34
    for name, parts in lanes:
        canvas.text(_MARGIN, y - 3, name, fill="muted", points=11)
        for what, span in parts:
            words = f"{what}: {span[0]:#x}-{span[1]:#x}"
            _range(canvas, scale, span, y, 14, PLACE_COLOURS.get(what, "placed"), words)
        y += 34
    for each in scenes:
        _scenario(canvas, scale, each, y)
        y += 42
    for number, row in enumerate(rows):
        for x, fill, words in row:
            canvas.rect(x, y + 2 + _ROW * number, 11, 11, fill)
            canvas.text(x + 15, y + 12 + _ROW * number, words, points=11, fill="muted")
    return ElementTree.tostring(root, encoding="unicode")


def _places(
    machine: Machine, scenes: Sequence[Scene]
) -> Iterator[tuple[str, tuple[tuple[str, Span], ...]]]:
    """Yield what lies in memory at the start, a backend after the other. Allocators under one
    backend differ in their brk at most: all of it is shown.
    """
    by_backend: dict[str, dict[tuple[str, Span], None]] = {}
    for each in scenes:
        if each.frames:
            by_backend.setdefault(each.backend, {}).update(dict.fromkeys(each.placed))
    if not by_backend:
        yield "Before the first step", placed(machine)
    for backend, parts in by_backend.items():
        yield f"Before the first step, {label(PluginSpec.parse(backend))}", tuple(parts)


def _hatching(root: ElementTree.Element, theme: Theme) -> None:
    defs = ElementTree.SubElement(root, "defs")
    pattern = ElementTree.SubElement(
        defs,
        "pattern",
        {
            "id": "idle",
            "width": "5",
            "height": "5",
            "patternUnits": "userSpaceOnUse",
            "patternTransform": "rotate(45)",
        },
    )
    fill = {"fill": colour("idle", theme)}
    ElementTree.SubElement(pattern, "rect", {"width": "5", "height": "5", "opacity": ".22", **fill})
    ElementTree.SubElement(pattern, "rect", {"width": "2", "height": "5", **fill})


def _axis(canvas: _Canvas, scale: Scale, foot: float) -> None:
    taken: list[float] = []
    for address, words in LINES:
        if address < scale.end:
            x = _MARGIN + scale(address)
            canvas.line(x, _TOP - 8, foot - 14, "muted")
            canvas.text(x, _TOP - 11, words, points=11, anchor="middle", bold=True)
            taken.append(x)
    right = _MARGIN + scale.width
    names = [
        (right, "end", size(scale.end)),
        *((_MARGIN + scale(address), "middle", words) for address, words in scale.ticks()),
    ]
    for x, anchor, words in names:
        middle = min(x, right - 12)
        if all(abs(middle - other) > 34 for other in taken):
            canvas.text(x, _TOP - 11, words, points=10, anchor=anchor, fill="muted")
            taken.append(middle)


def _range(
    canvas: _Canvas, scale: Scale, span: Span, y: float, height: float, fill: str, words: str
) -> None:
    x = scale(span[0])
    width = max(_SMALLEST, scale(span[1]) - x)
    canvas.rect(_MARGIN + min(x, scale.width - width), y, width, height, fill, words)


def _scenario(canvas: _Canvas, scale: Scale, each: Scene, y: float) -> None:
    name = f"{label(PluginSpec.parse(each.allocator))}, {label(PluginSpec.parse(each.backend))}"
    canvas.text(_MARGIN, y - 3, bounded(name, MAX_NAME), points=11)
    canvas.text(_MARGIN + scale.width, y - 3, _counts(each), fill="muted", points=11, anchor="end")
    canvas.rect(_MARGIN, y, scale.width, 19, "panel")
    for low, high in each.premapped:
        words = f"mapped since boot: {low:#x}-{high:#x}"
        _range(canvas, scale, (low, high), y, 4, "other", words)
    mapped = thinned((low, high) for frame in each.frames for low, high, _ in frame.mapped)
    for low, high in mapped:
        _range(canvas, scale, (low, high), y, 4, "mapped", f"mapped: {low:#x}-{high:#x}")
    for low, high in thinned(each.idle):
        words = f"set aside, never a table: {low:#x}-{high:#x}"
        _range(canvas, scale, (low, high), y + 5, 14, "url(#idle)", words)
    for level, spans in _by_level(each.tables()):
        for low, high, count in _seen_apart(scale, merged(spans)):
            words = f"{level_text(level)} tables: {low:#x}-{high:#x}"
            if count > 1:
                words = f"{words} in {count} places"
            # The few tables of a higher level stand before the many of a lower one, and are lower.
            tall = 14 if level < 2 else 8 - level
            _range(canvas, scale, (low, high), y + 19 - tall, tall, f"level{level}", words)


def _seen_apart(scale: Scale, spans: Iterable[Span]) -> Iterator[tuple[int, int, int]]:
    """Yield ranges that can be told apart on this axis, and how many ranges each of them joins."""
    first = last = count = 0
    for low, high in spans:
        if count and scale(low) - scale(last) < _SMALLEST:
            last, count = high, count + 1
            continue
        if count:
            yield first, last, count
        first, last, count = low, high, 1
    if count:
        yield first, last, count


def _counts(each: Scene) -> str:
    """Return what became of a scenario's tables, in figures."""
    tables = sum(area.count for area in each.tables())
    if not tables:
        return "no tables"
    idle = sum(high - low for low, high in each.idle) >> PAGE_SHIFT
    told = f"{counted(tables, 'table')}, {size(tables * PAGE_SIZE)}"
    return f"{told}; {counted(idle, 'more page')} set aside in vain" if idle else told


def _by_level(tables: Iterable[TableArea]) -> list[tuple[int, list[Span]]]:
    spans: dict[int, list[Span]] = {}
    for area in tables:
        spans.setdefault(area.level, []).append(area.span)
    return sorted(spans.items())


def level_text(level: int) -> str:
    """Return the name of a level of tables."""
    return f"L{level}" if level else "mixed"


def _legend(
    machine: Machine, scenes: Sequence[Scene], places: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Yield a colour and what it means, for everything that the picture can have."""
    yield "mapped", "mapped"
    for level in sorted({area.level for each in scenes for area in each.tables()}):
        yield f"level{level}", f"{level_text(level)} tables"
    if any(each.idle for each in scenes):
        yield "url(#idle)", "set aside, never a table"
    yield from (("ram", "RAM"), ("firmware", "reserved"), ("acpi", "ACPI"))
    yield from (("kernel", "kernel"), ("brk", "brk"), ("initrd", "initrd"))
    if any(name not in PLACE_COLOURS for name in places):
        yield "placed", "placed by the platform"
    others = [
        *(["mapped since boot"] if any(each.premapped for each in scenes) else []),
        *(e.type.label for e in machine.memory_map if e.type.label not in E820_COLOURS),
    ]
    if others:
        yield "other", ", ".join(dict.fromkeys(others))


def _rows(items: Iterable[tuple[str, str]], width: int) -> Iterator[list[tuple[float, str, str]]]:
    """Yield as many rows as it takes, of colours and words and where they stand."""
    x = float(_MARGIN)
    row: list[tuple[float, str, str]] = []
    for fill, words in items:
        needed = 32 + 5.8 * len(words)
        if row and x + needed > width - _MARGIN:
            yield row
            x, row = float(_MARGIN), []
        row.append((x, fill, words))
        x += needed
    yield row
