"""The symbol table that a stripped kernel carries for its own oops messages.

Distributors strip ``vmlinux``, but ``CONFIG_KALLSYMS`` leaves all names in ``.rodata``, compressed:
each name is a sequence of token numbers, and 256 tokens stand for frequent strings. No symbol tells
where those tables are, so they are found by their contents, starting from the one that cannot be
mistaken (each begins at a multiple of the layout's alignment):

* ``kallsyms_token_table``: 256 strings ending in NUL, of which number 0x30..0x39 are the digits;
* ``kallsyms_token_index``: 256 16-bit offsets into it, right behind;
* ``kallsyms_num_syms``: 32 bits, somewhere in front;
* ``kallsyms_names``: right behind that; per name a length (one byte, or two where bit 7 is set,
  since 6.1) and its tokens, the first character being the type that ``nm`` shows;
* ``kallsyms_markers``: right behind the names, offsets of every 256th name;
* the addresses, where and how `LAYOUTS` says.

Each table confirms the one before, and the address of ``_text`` confirms the last, so a wrong guess
is refused, not returned.

Source: Linux ``scripts/kallsyms.c`` (write_src) and ``kernel/kallsyms.c`` (kallsyms_sym_address) of
4.6 to 6.12; the change "kallsyms: Get rid of kallsyms relative base" (January 2026), and images of
5.10, 6.1, 6.12, 7.2 and 7.3.
"""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Iterator, Mapping
from enum import Enum

import attrs
import numpy as np

from paravirt_mm.machine.ranges import align_up
from paravirt_mm.verify.linux.qemu.errors import KernelImageError

_DIGITS = re.compile(b"".join(b"%d\0" % digit for digit in range(10)))
_MIN_SYMBOLS = 1_000
_MAX_SYMBOLS = 2_000_000
_MAX_TABLES = 32 << 20
_MAX_NAMES_READ = 1 << 23  # and of places for their number, of which kernels have up to 60,000
_MAX_TOKEN_TABLE = 1 << 14
_NAMES_PER_MARKER = 256


class Addresses(Enum):
    """How the address of a symbol is written."""

    ABSOLUTE = "64 bits each (kallsyms_addresses)"
    BASE = "32 bits each from kallsyms_relative_base, which stands behind them"
    PLACE = "32 bits each from the place where they stand"


@attrs.frozen
class Layout:
    """The tables of a range of releases."""

    releases: str
    addresses: Addresses
    in_front: bool
    """The addresses stand in front of ``num_syms``; else behind ``token_index``."""
    marker: str
    """Type of a marker, as `struct` names it."""
    align: int
    """Where a table may begin: multiples of this, in bytes."""


LAYOUTS = (
    Layout("to 4.5", Addresses.ABSOLUTE, in_front=True, marker="Q", align=8),
    Layout("4.6 - 4.19", Addresses.BASE, in_front=True, marker="Q", align=8),
    Layout("4.20 - 6.3", Addresses.BASE, in_front=True, marker="I", align=8),
    Layout("6.4 - 6.19", Addresses.BASE, in_front=False, marker="I", align=8),
    Layout("7.2, 7.3", Addresses.PLACE, in_front=False, marker="I", align=4),
)
"""What is known. ``kallsyms_seqs_of_names`` (since 6.2) is not needed: it stands behind the
markers, and since 6.4 behind the addresses. 7.0 and 7.1 have the one or the other of the last two.
"""


def parse_kallsyms(rodata: bytes, start: int) -> Mapping[str, int]:
    """Return addresses by symbol name, from the bytes of the segment that holds ``.rodata``.

    ``start`` is the virtual address at which the segment begins, which is that of ``_text``. Where
    a name occurs more than once (static functions of different files), the first is kept. Raises
    KernelImageError where no consistent tables are found.
    """
    budget = _MAX_NAMES_READ
    aligns = sorted({layout.align for layout in LAYOUTS}, reverse=True)
    for table, align in itertools.product(_token_table_candidates(rodata), aligns):
        if table % align:
            continue
        tokens_and_end = _read_tokens(rodata, table, align)
        if tokens_and_end is None:
            continue
        tokens, index_end = tokens_and_end
        for count_at, count in _symbol_count_candidates(rodata, table, align):
            read = _Names.read(rodata, count_at + align, count, table)
            budget -= 1 + len(read.starts)
            if budget < 0:
                raise KernelImageError("what looks like kallsyms tables has no end")
            if len(read.starts) < count:
                continue
            for layout in LAYOUTS:
                if layout.align != align or not read.marked(rodata, layout):
                    continue
                try:
                    addresses = _read_addresses(rodata, start, layout, count_at, index_end, count)
                except (ValueError, struct.error):  # beyond the bytes that are there
                    continue
                symbols = read.symbols(rodata, tokens, addresses)
                if symbols.get("_text") == start:
                    return symbols
    raise KernelImageError(
        "no kallsyms tables found: the kernel needs CONFIG_KALLSYMS_ALL, as distribution kernels "
        "have it; or give its vmlinux with symbols"
    )


def _token_table_candidates(data: bytes) -> Iterator[int]:
    """Yield possible starts of ``kallsyms_token_table``: 0x30 strings before the ten digits."""
    for digits in (found.start() for found in _DIGITS.finditer(data)):
        _, *strings = data[max(0, digits - _MAX_TOKEN_TABLE) : digits].rsplit(b"\0", 0x31)
        if len(strings) == 0x31:  # the last is what stands behind the last NUL
            yield digits - len(b"\0".join(strings))


def _read_tokens(data: bytes, table: int, align: int) -> tuple[list[bytes], int] | None:
    """Return the 256 tokens and the end of the index behind them, if index and strings agree."""
    *tokens, _ = data[table : table + _MAX_TOKEN_TABLE].split(b"\0", 256)
    if len(tokens) < 256:
        return None
    *offsets, size = itertools.accumulate([0, *(len(token) + 1 for token in tokens)])
    index = struct.pack("<256H", *offsets)
    index_at = align_up(table + size, align)
    return (tokens, index_at + len(index)) if data.startswith(index, index_at) else None


def _symbol_count_candidates(data: bytes, table: int, align: int) -> Iterator[tuple[int, int]]:
    """Yield places before ``table`` that could hold ``num_syms``, its padding included; the last
    first: only the names stand between, and in front of it there may be 30 MiB of other things.
    """
    start = max(0, table - _MAX_TABLES) & -align
    words = np.frombuffer(data, f"<u{align}", (table - start) // align, start)
    found = np.flatnonzero((words >= _MIN_SYMBOLS) & (words <= _MAX_SYMBOLS))
    for number in found[::-1]:
        yield start + align * int(number), int(words[number])


@attrs.frozen
class _Names:
    """A run of compressed names: where each begins and ends."""

    at: int
    starts: list[int]
    ends: list[int]
    markers: list[int]
    """Every 256th name's length byte, from ``at``."""

    @classmethod
    def read(cls, data: bytes, at: int, count: int, limit: int) -> _Names:
        """Read ``count`` names, or fewer where one is empty or goes beyond ``limit``."""
        starts: list[int] = []
        ends: list[int] = []
        markers: list[int] = []
        position = at
        for number in range(count):
            if number % _NAMES_PER_MARKER == 0:
                markers.append(position - at)
            length = data[position]
            position += 1
            if length & 0x80:
                length = length & 0x7F | data[position] << 7
                position += 1
            if not length or position + length >= limit:
                break
            starts.append(position)
            position += length
            ends.append(position)
        return cls(at, starts, ends, markers)

    def marked(self, data: bytes, layout: Layout) -> bool:
        """Say whether the markers of these names stand behind them."""
        packed = struct.pack(f"<{len(self.markers)}{layout.marker}", *self.markers)
        return data.startswith(packed, align_up(self.ends[-1], layout.align))

    def symbols(self, data: bytes, tokens: list[bytes], addresses: list[int]) -> dict[str, int]:
        """Return addresses by name; the first of equal names is kept."""
        symbols: dict[str, int] = {}
        for start, end, address in zip(self.starts, self.ends, addresses, strict=True):
            text = b"".join([tokens[token] for token in data[start:end]])
            symbols.setdefault(text[1:].decode("ascii", "replace"), address)
        return symbols


def _read_addresses(
    data: bytes, start: int, layout: Layout, count_at: int, index_end: int, count: int
) -> list[int]:
    """Return the addresses as one layout has them. Raises ValueError and struct.error."""
    size = 8 if layout.addresses is Addresses.ABSOLUTE else 4
    base_size = 8 if layout.addresses is Addresses.BASE else 0
    if layout.in_front:
        at = (count_at - base_size - size * count) & -layout.align
        base_at = count_at - base_size
    else:
        at = align_up(index_end, layout.align)
        base_at = align_up(at + size * count, layout.align)
    if layout.addresses is Addresses.ABSOLUTE:
        return [int(address) for address in np.frombuffer(data, "<u8", count, at)]
    offsets = np.frombuffer(data, "<i4", count, at).astype(np.int64)
    if layout.addresses is Addresses.PLACE:
        return [start + offset for offset in (offsets + at + 4 * np.arange(count)).tolist()]
    (base,) = struct.unpack_from("<Q", data, base_at)
    if (offsets < 0).any():
        # CONFIG_KALLSYMS_ABSOLUTE_PERCPU (to 6.14): only negative numbers are relative to the base.
        return [offset if offset >= 0 else base - 1 - offset for offset in offsets.tolist()]
    return [base + offset for offset in offsets.tolist()]
