"""Logs that went through a mail program, or were copied from a narrow terminal: long lines are cut
in two or three.

Where every line of a log begins with a time, or a logger's words, the rest of a cut line is known
by having none. Lines are joined where that is so several times, and each time the line before had
no room for the next word: then it is certain. A log without times says nothing like that, and is
read as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise

import attrs

WIDEST = 132
"""Columns of the widest paper that lines are wrapped for."""
LONGEST = 4096
"""Characters of a line that is still continued."""
_LEAST = 3
"""So often at least a line has to be cut, or it may be a line of something else."""
_TERMINAL = 80
"""Once is enough where a line ends at the very column where most terminals do."""
_MARKS = ">| \t"
"""Quoting and indentation, which the rest of a line has as well."""
_QUOTES = re.compile(r"\A(?:[>|] ?)*")
_WORD = re.compile(r"\w")
_IN_RANGE = re.compile(r"[0-9a-f]-$")
_BEGINS = re.compile(
    r"""
    <\d{1,3}> | \[\s*\d{1,7}\.\d{1,9}\] | \[\s*\+?\d[\dT:.,+\ -]{4,40}Z?\] | \(XEN\)
    | \[\w{3}\ (?:\w{3}\ )?\ ?\d{1,2}\ [\d:]{5,8}
    | \d{4}-\d\d-\d\d[T\ ][\d:]{8}
    | \w{3}\ [\ \d]\d\ [\d:]{8}(?!\ [A-Z\d+-]{2,5}\ \d{4}(?:\s|$))
    """,
    re.VERBOSE,
)
"""What a line begins with that is no rest of another: a time, a priority, a logger's words. Only
the date of a kernel's build ("Nov 18 22:11:06 UTC 2009") may be the rest of its version.
"""


@attrs.frozen
class Wrapping:
    """Lines were cut at ``width`` columns: between words, or (``hard``) wherever that is."""

    width: int
    hard: bool

    def joined(self, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
        """Yield numbered lines with those that were cut put together again."""
        whole: tuple[int, str] | None = None
        last = ""
        for number, line in lines:
            if whole and len(whole[1]) < LONGEST and _continues(last, line, self.width):
                whole = whole[0], whole[1] + self._rest(last, line)
            else:
                if whole is not None:
                    yield whole
                whole = None
                if _begins(line):
                    whole = number, line if self.hard else line.rstrip()
                else:
                    yield number, line
            last = line
        if whole is not None:
            yield whole

    def _rest(self, last: str, line: str) -> str:
        if self.hard and len(last) >= self.width:
            return _QUOTES.sub("", line)
        return _bare(line) if _IN_RANGE.search(last) else f" {_bare(line)}"


def wrapping(text: str) -> Wrapping | None:
    """Return how the lines of a log are wrapped of which this is the beginning; None: they are
    not, or nothing tells.
    """
    lines = text.splitlines()[:-1]
    widths = [len(line.rstrip()) for line in lines if _begins(line)]
    if not widths or not 40 <= (width := max(widths)) <= WIDEST:
        return None
    cut = rest = 0
    between_words = False
    ends = []
    known = False
    for last, line in pairwise(lines):
        known = _begins(last) or (known and bool(last.strip()))
        if known and line.strip() and not _begins(line):
            rest += 1
            if _continues(last, line, width):
                cut += 1
                ends.append(len(last.rstrip()))
                # A word behind a bracket: the blank between them is gone.
                is_word = _WORD.match(_QUOTES.sub("", line)) is not None
                between_words |= is_word and last.rstrip().endswith(("]", ")"))
    hard = not between_words and all(end >= width - 1 for end in ends)
    enough = 1 if hard and width == _TERMINAL else _LEAST
    return Wrapping(width, hard) if cut >= enough and 2 * cut >= rest else None


def _begins(line: str) -> bool:
    return _BEGINS.match(_bare(line)) is not None


def _continues(last: str, line: str, width: int) -> bool:
    """Tell whether a line is the rest of the one before it, which had no room for its next word."""
    rest = _bare(line).split()
    if not rest or _begins(line):
        return False
    return len(last.rstrip()) + 1 + len(rest[0]) > width


def _bare(line: str) -> str:
    return line.lstrip(_MARKS).rstrip()
