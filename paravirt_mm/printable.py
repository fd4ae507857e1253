"""The one place where text of others becomes text that is safe to show.

Names, messages and lines come from files, plugins and kernels. Whatever goes to a terminal, a table
or an error message passes here, so that none of it can talk to a terminal or fill the screen.
"""

from __future__ import annotations

MAX_SHOWN = 1000
"""Longest text, in characters, that is shown where nothing else is asked for."""


def printable(text: str, limit: int = MAX_SHOWN) -> str:
    """Return ``text`` safe to show: no tabs, all else that does not print escaped, cut to
    ``limit``.
    """
    text = text[: limit + 1].replace("\t", " ")
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
