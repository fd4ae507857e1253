"""Text for the many formats of a table: what would be markup there is escaped.

Names and titles come from files. A web page, a TeX source, a wiki, a spreadsheet each act on other
characters; here is, format by format, what they get instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

_TEX: Final = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%",
    "#": r"\#", "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip
_WEB: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_MARKDOWN: Final = {
    **_WEB, "|": "\\|", "\\": "\\\\", "`": "\\`", "*": "\\*", "[": "\\[", "]": "\\]",
}  # fmt: skip
_WIKI: Final = {
    **_WEB, "|": "&#124;", "{": "&#123;", "}": "&#125;", "[": "&#91;", "]": "&#93;", "!": "&#33;",
}  # fmt: skip
_BACKSLASH: Final = {char: f"\\{char}" for char in "\\|{}[]*`<"}

_ESCAPES: Final[Mapping[str, Mapping[str, str]]] = {
    "github": _MARKDOWN,
    "pipe": _MARKDOWN,
    "mediawiki": _WIKI,
    "textile": _WIKI,
    "moinmoin": _WIKI,
    "jira": _BACKSLASH,
    "youtrack": _BACKSLASH,
    "asciidoc": _BACKSLASH,
    "rst": _BACKSLASH,
    "orgtbl": {"|": r"\vert{}"},
}
_TEX_STYLES = frozenset({"latex", "latex_booktabs", "latex_longtable"})
_UNSAFE: Final = {"unsafehtml": "html", "latex_raw": "latex"}
"""Formats whose names promise that nothing is escaped, and what is written instead of them."""

_FORMULA = re.compile(r"[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(?:\d[\d.,]*[KMGT]?|0x[0-9a-f]+)?")


def no_formula(text: str) -> str:
    """Return a cell that a spreadsheet takes for text: an apostrophe in front of a formula."""
    if _FORMULA.match(text) and not _NUMBER.fullmatch(text):
        return f"'{text}"
    return text


def escaped(text: str, style: str) -> str:
    """Return one line of text as a table format wants it."""
    style = _UNSAFE.get(style, style)
    if style == "html":
        return escape(text)
    table = _TEX if style in _TEX_STYLES else _ESCAPES.get(style, {})
    text = "".join(table.get(char, char) for char in text)
    return f"\\{text}" if style == "rst" and text.startswith("..") else text


def words(text: str, style: str) -> str:
    """Return lines of text that stand beside tables of a format."""
    lines = [escaped(line, style) for line in text.split("\n")]
    if _UNSAFE.get(style, style) == "html":
        return f"<p>{'<br>'.join(lines)}</p>"
    return "\n".join(lines)


def tabulated(
    cells: Sequence[Sequence[str]], titles: Sequence[str], style: str, align: Sequence[str]
) -> str:
    """Return a table of texts in a format of tabulate, each cell escaped for it; the titles are our
    own.
    """
    import tabulate as library  # a tenth of the time that a command takes to start

    style = _UNSAFE.get(style, style)
    if style == "tsv":
        rows = [[no_formula(cell).replace("\t", " ") for cell in row] for row in cells]
    elif style == "html" or style in _TEX_STYLES:
        # tabulate escapes for these itself.
        rows = [list(row) for row in cells]
    else:
        rows = [[escaped(cell, style) for cell in row] for row in cells]
    # Titles are no wider than they are: a column of padding each would cost a figure in a terminal.
    # tabulate takes that from its module alone; others who use it in this process keep theirs.
    kept, library.MIN_PADDING = library.MIN_PADDING, 0
    try:
        return library.tabulate(
            rows, titles, tablefmt=style, colalign=align if rows else None, disable_numparse=True
        )
    finally:
        library.MIN_PADDING = kept
