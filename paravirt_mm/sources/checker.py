"""Checks of decoded JSON and TOML: messages name the key, what stands there, what is expected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import attrs

from paravirt_mm.errors import InputError
from paravirt_mm.machine.model import Span
from paravirt_mm.printable import printable

LAST_ADDRESS = 1 << 64
MAX_ITEMS = 1 << 17
"""A list with more items than this is refused."""


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its keys and values. Raises ValueError where a key stands twice."""
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"key {printable(key, 80)!r} stands twice")
        table[key] = value
    return table


@attrs.frozen
class Checker:
    """Checks values that come from the file (and line) ``where``. All raise InputError."""

    where: str

    def fail(self, key: str, problem: str) -> NoReturn:
        """Refuse ``key``."""
        raise InputError(f"{key}: {problem}", self.where)

    def need(self, table: Mapping[str, Any], key: str, path: str = "") -> Any:
        """Return ``table[key]``; it must be there."""
        if key not in table:
            self.fail(path + key, "missing")
        return table[key]

    def only(self, table: Mapping[str, Any], allowed: frozenset[str], path: str = "") -> None:
        """Refuse keys that mean nothing, so that a misspelt one is noticed."""
        for key in table:
            if key not in allowed:
                self.fail(
                    printable(path + key, 80), f"unknown; known are {', '.join(sorted(allowed))}"
                )

    def table(self, value: Any, key: str) -> Mapping[str, Any]:
        """Return a table (TOML) or object (JSON)."""
        if not isinstance(value, dict):
            self.fail(key, f"{_shown(value)} is not a table")
        return value

    def array(self, value: Any, key: str, length: int | None = None) -> list[Any]:
        """Return a list, of ``length`` items if given."""
        if not isinstance(value, list):
            self.fail(key, f"{_shown(value)} is not a list")
        if length is not None and len(value) != length:
            self.fail(key, f"has {len(value)} items instead of {length}")
        if len(value) > MAX_ITEMS:
            self.fail(key, f"has more than {MAX_ITEMS} items")
        return value

    def text(self, value: Any, key: str) -> str:
        """Return a string."""
        if not isinstance(value, str):
            self.fail(key, f"{_shown(value)} is not a string")
        return value

    def flag(self, value: Any, key: str) -> bool:
        """Return a boolean."""
        if not isinstance(value, bool):
            self.fail(key, f"{_shown(value)} is not true or false")
        return value

    def integer(self, value: Any, key: str, low: int, high: int) -> int:
        """Return an integer of ``[low, high]``; strings like "0x1000" count, as JSON has no hex."""
        if isinstance(value, str) and value[:2] == "0x" and len(value) <= 34:
            try:
                value = int(value, 16)
            except ValueError:
                self.fail(key, f"{_shown(value)} is not a number")
        if not isinstance(value, int) or isinstance(value, bool):
            self.fail(key, f"{_shown(value)} is not a number")
        if not low <= value <= high:
            shown = hex(value) if value.bit_length() <= 128 else _shown(value)
            self.fail(key, f"{shown} is not between {low:#x} and {high:#x}")
        return value

    def address(self, value: Any, key: str) -> int:
        """Return an address in bytes, or an exclusive end."""
        return self.integer(value, key, 0, LAST_ADDRESS)

    def pfn(self, value: Any, key: str) -> int:
        """Return the number of a page, not 0; `paravirt_mm.sources.possible` knows the largest."""
        return self.integer(value, key, 1, LAST_ADDRESS)

    def span(self, value: Any, key: str) -> Span:
        """Return ``[start, end]``, not inverted."""
        pair = self.array(value, key, length=2)
        start = self.address(pair[0], f"{key}[0]")
        end = self.address(pair[1], f"{key}[1]")
        if start > end:
            self.fail(key, f"ends at {end:#x}, before its start {start:#x}")
        return start, end


def _shown(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        text = str(value) if value.bit_length() <= 128 else f"a number of {value.bit_length()} bits"
    elif isinstance(value, str):
        text = repr(value[:80])
    elif isinstance(value, float | bool | None):
        text = repr(value)
    else:
        text = type(value).__name__
    return printable(text, 60)
