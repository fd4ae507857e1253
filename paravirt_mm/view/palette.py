"""Colours, once: names, and what they are on light and on dark paper.

What carries text has a contrast of at least 4.5 with its paper, a mark one of at least 1.5 where
its lane and words tell it too, and 3 where they do not (a test computes them). No meaning hangs on
colour alone: lanes, hatching and words repeat it.
"""

from __future__ import annotations

from enum import StrEnum


class Theme(StrEnum):
    """How a picture gets its colours."""

    LIGHT = "light"
    DARK = "dark"
    AUTO = "auto"
    """By the reader's system: the picture carries both."""
    PAGE = "page"
    """By the page around it, which defines the colours as CSS properties."""


COLOURS: dict[str, tuple[str, str]] = {
    "paper": ("#ffffff", "#14181d"),
    "panel": ("#f4f6f8", "#1c2229"),
    "ink": ("#1b2430", "#e8edf2"),
    "muted": ("#566270", "#a3b0bd"),
    "line": ("#c9d1d9", "#3b4650"),
    "accent": ("#0b62a8", "#6db7f2"),
    "good": ("#11734b", "#53c892"),
    "bad": ("#b3321b", "#ff8f73"),
    "ram": ("#a9c9e4", "#33536e"),
    "firmware": ("#8c7f9c", "#8f83a3"),
    "acpi": ("#b58b3a", "#b18d49"),
    "other": ("#7c8791", "#8a959f"),
    "kernel": ("#3d4f60", "#c3d0dc"),
    "brk": ("#0f8a8a", "#3fc3c0"),
    "initrd": ("#77736b", "#aaa69d"),
    "placed": ("#8f6a9c", "#c3a0cf"),
    "mapped": ("#5d8fb8", "#5b93c0"),
    "level1": ("#c25a00", "#ffab5c"),
    "level2": ("#a3195b", "#ff86b6"),
    "level3": ("#5a35a8", "#b79cff"),
    "level4": ("#1f6b1f", "#8ddb7d"),
    "level5": ("#28449c", "#9fb4ff"),
    "level0": ("#8a4a2a", "#e0a184"),
    "idle": ("#c4381f", "#ff8f73"),
    "series1": ("#b3321b", "#ff8f73"),
    "series2": ("#c27c00", "#f2c14e"),
    "series3": ("#0b62a8", "#6db7f2"),
    "series4": ("#11734b", "#53c892"),
    "series5": ("#7a4fb0", "#c3a5f5"),
    "series6": ("#566270", "#a3b0bd"),
    "status0": ("#7c8791", "#8a959f"),
    "status1": ("#c27c00", "#f2c14e"),
    "status2": ("#0b62a8", "#6db7f2"),
    "status3": ("#7a4fb0", "#c3a5f5"),
    "status4": ("#11734b", "#53c892"),
}
"""Name: (on light paper, on dark paper)."""

E820_COLOURS = {
    "usable": "ram",
    "reserved": "firmware",
    "ACPI data": "acpi",
    "ACPI NVS": "acpi",
}
"""Colours of the firmware's types, by their words; every other type has ``other``."""


def colour(name: str, theme: Theme) -> str:
    """Return what stands in a picture for a colour."""
    if theme is Theme.LIGHT:
        return COLOURS[name][0]
    if theme is Theme.DARK:
        return COLOURS[name][1]
    return f"var(--{name})"


def properties(*, dark: bool) -> str:
    """Return the colours as CSS custom properties."""
    return "".join(f"--{name}:{pair[dark]};" for name, pair in COLOURS.items())


def both() -> str:
    """Return CSS that sets the colours by the reader's system."""
    return (
        f":root{{{properties(dark=False)}}}"
        f"@media(prefers-color-scheme:dark){{:root{{{properties(dark=True)}}}}}"
    )
