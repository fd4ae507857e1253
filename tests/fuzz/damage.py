"""Ways to damage an input. Everything comes from one `random.Random`, so a seed tells it all."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

_NUMBERS = (
    b"0", b"1", b"-1", b"0x0", b"0xfff", b"0x1000", b"0x7fffffff", b"0x80000000", b"0xffffffff",
    b"0x100000000", b"0xfffffffffffff000", b"0xffffffffffffffff", b"0x10000000000000000",
    b"18446744073709551616", b"9" * 400, b"1e999", b"nan", b"4096.5", b"0b1", b"1_0", b"true",
    b"null", b'""', b"[]", b"{}",
)  # fmt: skip
_WORDS = (
    b"\x00", b"\xff\xfe", b"\x1b]0;x\x07", b"\xe2\x80\xae", b"\r", b"\n\n", b" " * 3000, b"\\",
    b'"', b"usable", b"reserved", b"type 20", b"[mem ", b"BIOS-e820: ", b"Linux version 3.6.0\n",
    b"(XEN) ", b"Xen version 4.17.7\n", b"=", b"{", b"[", b"NaN", b"../../etc/passwd", b"\x80",
)  # fmt: skip
_NUMBER = re.compile(rb"0x[0-9a-fA-F]+|[0-9a-fA-F]{8,16}|\d+")
MAX_BYTES = 1 << 20
_SMALL = 1 << 14
_OFTEN = 50
"""Of so many inputs one may grow to `MAX_BYTES`, the others to `_SMALL`: what goes wrong goes wrong
with little nearly always, and 64 times as many little ones are tried in the same time.
"""


def _flip(rng: random.Random, data: bytes, _: bytes) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def _cut(rng: random.Random, data: bytes, _: bytes) -> bytes:
    low, high = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:low] + data[high:]


def _truncate(rng: random.Random, data: bytes, _: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _repeat(rng: random.Random, data: bytes, _: bytes) -> bytes:
    low, high = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:high] + data[low:high] * rng.choice((1, 2, 50)) + data[high:]


def _number(rng: random.Random, data: bytes, _: bytes) -> bytes:
    where = _NUMBER.search(data, rng.randrange(len(data))) or _NUMBER.search(data)
    if where is None:
        return _flip(rng, data, b"")
    if rng.random() < 0.5:
        new = rng.choice(_NUMBERS)
    else:
        value = int(where[0], 16 if where[0].startswith(b"0x") or len(where[0]) > 7 else 10)
        near = max(0, value + rng.choice((-4096, -1, 1, 4095, 4096, value, -value // 2)))
        new = b"%x" % near if len(where[0]) > 7 else b"%d" % near
    return data[: where.start()] + new + data[where.end() :]


def _word(rng: random.Random, data: bytes, _: bytes) -> bytes:
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.choice(_WORDS) + data[place:]


def _lines(rng: random.Random, data: bytes, _: bytes) -> bytes:
    """Swap, drop, double, or reverse lines."""
    lines = data.split(b"\n")
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(4):
        case 0:
            lines[one], lines[other] = lines[other], lines[one]
        case 1:
            del lines[one]
        case 2:
            lines[one:one] = [lines[other]] * rng.choice((1, 3, 300))
        case _:
            low, high = sorted((one, other))
            lines[low:high] = reversed(lines[low:high])
    return b"\n".join(lines)


def _splice(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def _noise(rng: random.Random, data: bytes, _: bytes) -> bytes:
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.randbytes(rng.choice((1, 8, 600))) + data[place:]


_WAYS: tuple[Callable[[random.Random, bytes, bytes], bytes], ...] = (
    _flip, _cut, _truncate, _repeat, _number, _number, _word, _lines, _splice, _noise,
)  # fmt: skip


def damaged(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Return one of the seeds, damaged once or a few times; at most `MAX_BYTES` long."""
    data = rng.choice(seeds)
    limit = max(_SMALL, len(data) + 64) if rng.randrange(_OFTEN) else MAX_BYTES
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if not data:
            break
        data = rng.choice(_WAYS)(rng, data, rng.choice(seeds))[:limit]
    return data
