"""Tar archives, read in passing: nothing is unpacked to disk, no size is believed.

Only plain files count. What else stands in an archive (folders, links, devices) is passed over;
sparse files are refused, as their size is whatever they say.

Source: POSIX.1-1988 (ustar) and POSIX.1-2001 (pax), "pax, Extended Description"; GNU tar manual,
"Basic Tar Format".
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import attrs

from paravirt_mm.errors import InputError

MAX_FILES = 1 << 20
"""An archive with more members than this is refused; so is a folder with more files."""
MAX_MEMBER_BYTES = 64 << 20
"""A longer member is not read: it costs an error, not the time and the memory."""

_BLOCK = 512
_MAGIC_AT = 257
_MAX_NAME = 1 << 16
_PAX_PATH = re.compile(rb"\d{1,6} path=([^\n]*)\n")


@attrs.frozen
class Member:
    """A file of an archive: its name and what it holds; ``problem`` says why it is not read."""

    name: str
    stream: BinaryIO
    problem: str = ""


def is_archive(head: bytes) -> bool:
    """Tell whether a file that begins like this is a tar archive."""
    return head[_MAGIC_AT : _MAGIC_AT + 5] == b"ustar"


def members(stream: BinaryIO, source: str) -> Iterator[Member]:
    """Yield the files of a tar archive, in order; each must be read before the next is asked for.

    Raises InputError where the archive is damaged or holds more than `MAX_FILES` members.
    """
    name: bytes | None = None
    sparse = False
    for count in range(MAX_FILES + 1):
        header = stream.read(_BLOCK)
        if not header.strip(b"\0"):
            return
        if len(header) < _BLOCK or not _sum_is_right(header):
            raise InputError(f"a damaged tar archive: member {count + 1} has no header", source)
        size = _number(header[124:136])
        if size is None:
            raise InputError(f"a damaged tar archive: size of member {count + 1}", source)
        kind = header[156:157]
        body = _Body(stream, 0 if kind in b"123456" else size, source)
        if kind == b"L":
            name = body.read(_MAX_NAME).rstrip(b"\0")
        elif kind == b"x":
            attributes = body.read(_MAX_NAME)
            path = _PAX_PATH.search(attributes)
            name = path[1] if path else name
            sparse = b"GNU.sparse" in attributes
        elif kind in b"07\0S":
            stem, folder = header[:100].rstrip(b"\0"), header[345:500].rstrip(b"\0")
            if header[_MAGIC_AT : _MAGIC_AT + 8] == b"ustar  \0":
                folder = b""  # GNU tar keeps times there
            full = name if name is not None else b"/".join(filter(None, (folder, stem)))
            problem = ""
            if sparse or kind == b"S":
                problem = "a sparse file in an archive; unpack it"
            elif size > MAX_MEMBER_BYTES:
                problem = f"longer than {MAX_MEMBER_BYTES >> 20} MiB; unpack the archive"
            shown = full.decode("utf-8", "replace")
            yield Member(shown, cast("BinaryIO", io.BufferedReader(body)), problem)
            name, sparse = None, False
        body.skip()
    raise InputError(f"more than {MAX_FILES} files", source)


def _sum_is_right(header: bytes) -> bool:
    """Tell whether the header's checksum is that of its bytes, signed or not."""
    told = _number(header[148:156])
    rest = header[:148] + b" " * 8 + header[156:]
    signed = sum(byte - 256 if byte > 127 else byte for byte in rest)
    return told is not None and told in (sum(rest), signed)


def _number(field: bytes) -> int | None:
    """Read a number of a header: octal digits, or GNU's binary form for large ones."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not re.fullmatch(rb"[0-7]*", digits):
        return None
    return int(digits or b"0", 8)


class _Body(io.RawIOBase):
    """The bytes of one member."""

    def __init__(self, stream: BinaryIO, size: int, source: str) -> None:
        self._stream = stream
        self._left = size
        self._padding = -size % _BLOCK
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._stream.read(min(len(buffer), self._left))
        if self._left and not block:
            raise InputError("a damaged tar archive: it ends inside of a member", self._source)
        self._left -= len(block)
        buffer[: len(block)] = block
        return len(block)

    def skip(self) -> None:
        """Read what is left, up to the next header. To be called once."""
        self._left += self._padding
        while self._left > 0:
            block = self._stream.read(min(self._left, 1 << 16))
            if not block:
                return  # the last member may lack its padding
            self._left -= len(block)
