"""The symbol table that a stripped kernel carries for its own oops messages.

Distributors strip ``vmlinux``, but ``CONFIG_KALLSYMS`` leaves all names in ``.rodata``, compressed:
each name is a sequence of token numbers, and 256 tokens stand for frequent strings.  No symbol
tells where those tables are, so they are found by their contents, starting from the one that cannot
be mistaken (each label is 8-byte aligned):

* ``kallsyms_token_table``: 256 strings ending in NUL, of which number 0x30..0x39 are the digits;
* ``kallsyms_token_index``: 256 16-bit offsets into it, right behind;
* ``kallsyms_num_syms``: 32 bits, somewhere in front;
* ``kallsyms_names``: right behind that; per name a length (one byte, or two where bit 7 is set,
  since 6.1) and its tokens, the first character being the type that ``nm`` shows;
* ``kallsyms_markers``: right behind the names, 32-bit offsets of every 256th name;
* ``kallsyms_offsets`` (32 bits a symbol) and ``kallsyms_relative_base``: in front of
  ``num_syms``, or behind ``token_index`` in newer releases (about 6.4).

Each table confirms the one before, so a wrong guess is refused, not returned.  Source of facts:
Linux ``scripts/kallsyms.c`` and ``kernel/kallsyms.c``, releases 5.10 to 6.12.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Mapping

from paravirt_mm.verify.linux.qemu.errors import KernelImageError

_DIGITS = b"".join(b"%d\0" % digit for digit in range(10))
_MIN_SYMBOLS = 1_000
_MAX_SYMBOLS = 2_000_000
_MAX_TABLES = 32 << 20
_MAX_CANDIDATES = 1 << 16  # real kernels have 2,000 to 3,100
_MAX_TOKEN_TABLE = 1 << 14
_KERNEL_BASE = 0xFFFF_FFFF_8000_0000
_NAMES_PER_MARKER = 256


def parse_kallsyms(rodata: bytes) -> Mapping[str, int]:
    """Addresses by symbol name, from the bytes of the segment that holds ``.rodata``.

    Where a name occurs more than once (static functions of different files), the first is kept.
    Raises KernelImageError when no consistent tables are found.
    """
    for table in _token_table_candidates(rodata):
        tokens_and_end = _read_tokens(rodata, table)
        if tokens_and_end is None:
            continue
        tokens, index_end = tokens_and_end
        candidates = itertools.islice(_symbol_count_candidates(rodata, table), _MAX_CANDIDATES)
        for count_at, count in candidates:
            names = _read_names(rodata, count_at + 8, count, table)
            if names is None:
                continue
            addresses = _read_addresses(rodata, count_at, index_end, count)
            if addresses is None:
                continue
            symbols: dict[str, int] = {}
            for address, name in zip(addresses, names, strict=True):
                text = b"".join([tokens[token] for token in name])
                symbols.setdefault(text[1:].decode("ascii", "replace"), address)
            return symbols
    raise KernelImageError(
        "no kallsyms tables found: the kernel needs CONFIG_KALLSYMS_ALL and CONFIG_KALLSYMS_"
        "BASE_RELATIVE, as distribution kernels from 4.6 on have them"
    )


def _align(value: int, to: int = 8) -> int:
    return (value + to - 1) & -to


def _token_table_candidates(data: bytes) -> Iterator[int]:
    """Possible starts of ``kallsyms_token_table``: 0x30 strings before the ten digits."""
    digits = data.find(_DIGITS)
    while digits >= 0:
        start = digits
        for _ in range(0x30):
            start = data.rfind(b"\0", max(0, digits - _MAX_TOKEN_TABLE), max(0, start - 1)) + 1
            if start <= 0:
                break
        if start > 0:
            yield start
        digits = data.find(_DIGITS, digits + 1)


def _read_tokens(data: bytes, table: int) -> tuple[list[bytes], int] | None:
    """The 256 tokens and the end of the index behind them, if index and strings agree."""
    tokens: list[bytes] = []
    offsets: list[int] = []
    position = table
    for _ in range(256):
        end = data.find(b"\0", position, table + _MAX_TOKEN_TABLE)
        if end < 0:
            return None
        tokens.append(data[position:end])
        offsets.append(position - table)
        position = end + 1
    index = struct.pack("<256H", *offsets)
    index_at = _align(position)
    if data[index_at : index_at + len(index)] != index:
        return None
    return tokens, index_at + len(index)


def _symbol_count_candidates(data: bytes, table: int) -> Iterator[tuple[int, int]]:
    """Places of 64-bit words before ``table`` that could be ``num_syms`` and its padding."""
    table &= ~7
    start = max(0, table - _MAX_TABLES)
    for number, (word,) in enumerate(struct.iter_unpack("<Q", memoryview(data)[start:table])):
        if _MIN_SYMBOLS <= word <= _MAX_SYMBOLS:
            yield start + 8 * number, word


def _read_names(data: bytes, names_at: int, count: int, limit: int) -> list[bytes] | None:
    """The token numbers of each name, if ``count`` names are followed by markers that fit."""
    names: list[bytes] = []
    markers: list[int] = []
    position = names_at
    for number in range(count):
        if number % _NAMES_PER_MARKER == 0:
            markers.append(position - names_at)
        length = data[position]
        position += 1
        if length & 0x80:
            length = length & 0x7F | data[position] << 7
            position += 1
        if length == 0 or position + length >= limit:
            return None
        names.append(data[position : position + length])
        position += length
    packed = struct.pack(f"<{len(markers)}I", *markers)
    position = _align(position)
    return names if data[position : position + len(packed)] == packed else None


def _read_addresses(data: bytes, count_at: int, index_end: int, count: int) -> list[int] | None:
    """Symbol addresses: ``offsets`` and ``relative_base`` in front of or behind the names."""
    before = (count_at - 8 - 4 * count) & ~7
    behind = _align(index_end)
    for offsets_at, base_at in ((before, count_at - 8), (behind, _align(behind + 4 * count))):
        if offsets_at < 0 or base_at + 8 > len(data):
            continue
        (base,) = struct.unpack_from("<Q", data, base_at)
        if base < _KERNEL_BASE:
            continue
        offsets = struct.unpack_from(f"<{count}i", data, offsets_at)
        if any(offset < 0 for offset in offsets):
            # CONFIG_KALLSYMS_ABSOLUTE_PERCPU: only negative numbers are relative to the base.
            return [offset if offset >= 0 else base - 1 - offset for offset in offsets]
        return [base + offset for offset in offsets]
    return None
