"""Kernel releases as numbers that can be compared: (3, 13, 0) of "3.13.0-39-generic"."""

from __future__ import annotations

import re
from functools import cache

from paravirt_mm.errors import SpecError

Version = tuple[int, ...]

_LEADING = re.compile(r"\d{1,6}(?:\.\d{1,6})*")
_RELEASE = re.compile(r"\d{1,4}(?:\.\d{1,6}){1,3}(?![\d.])")


def leading_version(text: str | None) -> Version:
    """Return the numbers that a text begins with; none: an empty tuple. For text from logs."""
    match = _LEADING.match(text or "")
    return tuple(map(int, match.group().split("."))) if match else ()


@cache
def parse_release(text: str) -> Version:
    """Return the numbers of a release that somebody asks for. Raises `SpecError`."""
    match = _RELEASE.match(text)
    if match is None:
        raise SpecError(f"{text!r} is not a release: numbers and dots, for example 3.6")
    return tuple(map(int, match.group().split(".")))


def dotted(version: Version) -> str:
    """Return a version as it is written: 3.13.0."""
    return ".".join(map(str, version))
