"""Kinds of values on the command line, and the option how much happens at a time."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from paravirt_mm.measure.crashkernel import Wanted
from paravirt_mm.printable import printable

Command = TypeVar("Command", bound=Callable[..., Any])

QUOTED = 40
"""Characters of a wrong value that are shown."""
_SIZE = re.compile(r"(\d{1,9})([KMGT]?)", re.IGNORECASE)
_BITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
"""What a unit shifts by."""


def jobs_option(most: int, words: str) -> Callable[[Command], Command]:
    """Give a command ``--jobs``, up to ``most``: without it, one for each processor."""
    return click.option(
        "-j", "--jobs", type=click.IntRange(1, most), callback=_all_cores,
        help=f"{words}. [default: all cores]",
    )  # fmt: skip


def _all_cores(_context: click.Context, _option: click.Parameter, jobs: int | None) -> int:
    return jobs or os.cpu_count() or 1


class Seconds(click.FloatRange):
    """A time in seconds within bounds; "nan" compares with nothing and would pass them."""

    name = "seconds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is no time in seconds", param, ctx)
        return number


class Address(click.ParamType[int | str]):
    """An address or a size in bytes: 400M, 0x19000000; or one of some words."""

    name = "address"

    def __init__(self, *words: str) -> None:
        self.words = words

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """Return the number, or the word."""
        if isinstance(value, int) or value in self.words:
            word_or_number: int | str = value
            return word_or_number
        text = str(value)
        unit = _BITS.get(text[-1:].upper(), 0)
        try:
            number = int(text[:-1] if unit else text, 0) << unit
        except ValueError:
            number = -1
        if not 0 <= number < 1 << 52:
            quoted = printable(text, QUOTED)
            self.fail(f"{quoted!r} is no address (400M, 0x19000000)", param, ctx)
        return number


class WholeNumber(click.ParamType[int]):
    """A number, decimal or 0x hexadecimal."""

    name = "address"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return the number."""
        try:
            number = int(str(value), 0)
        except ValueError:
            self.fail(f"{value!r} is no number (decimal, or hexadecimal with 0x)", param, ctx)
        if not 0 <= number < 1 << 64:
            self.fail(f"{value!r} does not fit 64 bits", param, ctx)
        return number


def size_in_bytes(_context: click.Context, _option: click.Parameter, text: str) -> int:
    """Return a size of the command line in bytes."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise click.BadParameter(f"{text!r}; the form is 2G, 512M or a number of bytes")
    size = int(match[1]) << _BITS[match[2].upper()]
    if size < LEAST_MEMORY:
        raise click.BadParameter(f"{text!r}; the least is {LEAST_MEMORY >> 20}M")
    return size


LEAST_MEMORY = 128 << 20
"""With less, Python cannot import what the core itself uses, and no plugin would be at fault."""


class CrashKernels(click.ParamType[tuple[str, ...]]):
    """Crash kernels as the kernel's parameter has them, with commas between: 512M,1G@4G."""

    name = "crash kernels"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Return each as it is written."""
        if isinstance(value, tuple):
            return value
        asked = tuple(filter(None, str(value).split(",")))
        for text in asked:
            try:
                Wanted.parse(text)
            except ValueError:
                quoted = printable(text, QUOTED)
                self.fail(f"{quoted!r} is no crash kernel (512M, 1G@4G)", param, ctx)
        return asked
