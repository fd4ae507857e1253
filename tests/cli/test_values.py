"""Values on the command line: what is taken, and that what is refused is named."""

from __future__ import annotations

from typing import Any

import click
import pytest

from paravirt_mm.cli.types import Address, CrashKernels, Seconds, WholeNumber, size_in_bytes

ADDRESS, NUMBER, SECONDS, KERNELS = Address("all"), WholeNumber(), Seconds(0.5, 10), CrashKernels()


class _Size(click.ParamType[int]):
    """`size_in_bytes`, which is a callback."""

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        return size_in_bytes(ctx, param, value)


SIZE = _Size()


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (ADDRESS, "all", "all"),
        (ADDRESS, 5, 5),
        (ADDRESS, "0", 0),
        (ADDRESS, "4096", 4096),
        (ADDRESS, "4K", 4096),
        (ADDRESS, "16m", 0x1000000),
        (ADDRESS, "3G", 0xC0000000),
        (ADDRESS, "1T", 0x10000000000),
        (ADDRESS, "0x19000000", 400 << 20),
        (ADDRESS, "0xfffffffffffff", (1 << 52) - 1),  # x86 has no more physical address bits
        (NUMBER, "0", 0),
        (NUMBER, "12", 12),
        (NUMBER, "0x1f", 31),
        (NUMBER, "0xffffffffffffffff", (1 << 64) - 1),
        (SECONDS, "0.5", 0.5),
        (SECONDS, "10", 10.0),
        (SIZE, "128M", 134217728),
        (SIZE, "134217728", 134217728),
        (SIZE, "131072K", 134217728),
        (SIZE, "2g", 2147483648),
        (SIZE, "1T", 1099511627776),
        (KERNELS, "512M,1G@4G", ("512M", "1G@4G")),
        (KERNELS, ",256M,", ("256M",)),
        (KERNELS, "", ()),
        (KERNELS, ("1G",), ("1G",)),
    ],
)
def test_what_is_taken(kind: click.ParamType[Any], text: Any, value: object) -> None:
    assert kind.convert(text, None, None) == value


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        (ADDRESS, "here", "'here' is no address (400M, 0x19000000)"),
        (ADDRESS, "", "'' is no address"),
        (ADDRESS, "-1", "'-1' is no address"),
        (ADDRESS, "1P", "'1P' is no address"),
        (ADDRESS, "M", "'M' is no address"),
        (ADDRESS, "0x10000000000000", "'0x10000000000000' is no address"),
        (ADDRESS, "4096T", "'4096T' is no address"),
        (NUMBER, "x", "'x' is no number (decimal, or hexadecimal with 0x)"),
        (NUMBER, "-1", "'-1' does not fit 64 bits"),
        (NUMBER, "0x10000000000000000", "does not fit 64 bits"),
        (SECONDS, "nan", "'nan' is no time in seconds"),
        (SECONDS, "0.4", "0.4 is not in the range"),
        (SECONDS, "soon", "'soon' is not a valid"),
        (SIZE, "134217727", "'134217727'; the least is 128M"),
        (SIZE, "0", "'0'; the least is 128M"),
        (SIZE, "1.5G", "'1.5G'; the form is 2G, 512M or a number of bytes"),
        (SIZE, "1P", "the form is"),
        (SIZE, "1000000000G", "the form is"),
        (KERNELS, "512M,much", "'much' is no crash kernel (512M, 1G@4G)"),
    ],
)
def test_what_is_refused(kind: click.ParamType[Any], text: str, words: str) -> None:
    with pytest.raises(click.BadParameter) as refused:
        kind.convert(text, None, None)
    assert words in refused.value.message


@pytest.mark.parametrize("kind", [ADDRESS, KERNELS])
def test_of_a_long_value_the_beginning_is_shown(kind: click.ParamType[Any]) -> None:
    with pytest.raises(click.BadParameter, match=f"'{39 * 'x'}…'"):
        kind.convert("x" * 100_000, None, None)
