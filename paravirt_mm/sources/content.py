"""From a file's bytes to bytes that can be read as text: the one way in, bounded.

Compressed files (gzip, bzip2, xz, zip, zstd; one in another, too) are read through. UTF-16 becomes
UTF-8. How much may come out of a compressed file depends on its size, so that a small file costs
little, whatever it holds; no more than a few buffers are in memory at once.
"""

from __future__ import annotations

import codecs
import importlib
import io
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import attrs

from paravirt_mm.errors import InputError, install
from paravirt_mm.printable import printable

Spec = str | Path

HEAD_BYTES = 1 << 16
"""How much of a file is looked at to tell its format."""
MAX_HEAD = 1 << 20
"""How much at the most, where a file begins with comments."""
MAX_LAYERS = 4
"""A file that is compressed more often than this, one in another, is refused."""
UNPACKED_FREE = 64 << 20
UNPACKED_RATIO = 32
"""A compressed file may grow to this many bytes, and to so many times its size besides: boot logs
shrink to a tenth.
"""
MAX_ZIP_BYTES = 16 << 20
"""A larger zip archive is refused: its directory stands at its end."""
_UNPACKER_MEMORY = 256 << 20
"""Memory that an xz or zstd stream may ask for."""

_BLOCK = 65536
_BOM_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_BOM_UTF32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)


@attrs.frozen
class Content:
    """What a file holds, decompressed: its first bytes, and the stream from the first byte on."""

    head: bytes
    stream: BinaryIO


@contextmanager
def opened(spec: Spec, source: str) -> Iterator[Content]:
    """Open a path, or standard input for ``-``. What reading can raise becomes InputError."""
    with reading(source):
        if str(spec) == "-":
            yield content_of(sys.stdin.buffer, source)
        else:
            with _file(spec, source) as file:
                yield content_of(file, source)


def _file(spec: Spec, source: str) -> BinaryIO:
    try:
        return Path(spec).open("rb", buffering=_BLOCK)
    except ValueError:
        raise InputError("a path cannot hold a NUL", source) from None


@contextmanager
def reading(source: str) -> Iterator[None]:
    """Turn what reading a stream can raise into InputError."""
    try:
        yield
    except (OSError, EOFError, zlib.error, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot be read: {printable(reason, 200)}", source) from None
    except Exception as error:
        # lzma and zstd are imported only where a file needs them: by name.
        if type(error).__name__ in {"LZMAError", "ZstdError"}:
            raise InputError(f"cannot be read: {printable(str(error), 200)}", source) from None
        raise


def content_of(file: Any, source: str) -> Content:
    """Look through what compresses ``file`` (anything with ``read``) and encodes its text."""
    raw = _Counted(file)
    packed: _Counted | None = None
    for _ in range(MAX_LAYERS + 1):
        head = raw.fill(HEAD_BYTES)
        unpacker = _unpacker(head, raw, source)
        if unpacker is None:
            break
        packed = packed or raw
        raw = _Counted(unpacker, packed, source)
    else:
        raise InputError(f"compressed more than {MAX_LAYERS} times; unpack it", source)
    if encoding := _wide(head):
        raw = _Counted(_Parts(_transcoded(raw, encoding)))
    elif head.startswith(codecs.BOM_UTF8):
        raw.drop(len(codecs.BOM_UTF8))
    head = raw.fill(HEAD_BYTES)
    while _only_comments(head):
        longer = raw.fill(min(2 * len(head), MAX_HEAD))
        if len(longer) == len(head):
            break
        head = longer
    return Content(head, cast("BinaryIO", io.BufferedReader(raw, _BLOCK)))


def _only_comments(head: bytes) -> bool:
    """Tell whether nothing but comments and blank lines has been seen."""
    return all(line.lstrip()[:1] in {b"", b"#"} for line in head.splitlines())


def _wide(head: bytes) -> str | None:
    """Return the encoding of text whose characters are two or four bytes.

    A mark alone does not tell: noise on a serial line may begin like one.
    """
    sample = head[:512]
    half = len(sample) // 2
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    if head.startswith(_BOM_UTF32) and even + odd > half:
        return "utf-32"
    if head.startswith(_BOM_UTF16):
        return "utf-16" if len(sample) < 16 or max(even, odd) > half // 4 else None
    if odd > 0.9 * half and not even:
        return "utf-16-le"
    if even > 0.9 * half and not odd:
        return "utf-16-be"
    return None


class _Counted(io.RawIOBase):
    """A stream that can be looked into, and that knows how much it has given.

    ``packed`` is the stream it has been decompressed from: it may not give much more than that has
    taken. Raises InputError.
    """

    def __init__(self, file: Any, packed: _Counted | None = None, source: str = "") -> None:
        self._file = file
        self._packed = packed
        self._source = source
        self._ahead = b""
        self.taken = 0

    def readable(self) -> bool:
        return True

    def fill(self, size: int) -> bytes:
        """Return the next ``size`` bytes, less where the file ends, without taking them."""
        while len(self._ahead) < size and (block := self._more(size - len(self._ahead))):
            self._ahead += block
        return self._ahead[:size]

    def drop(self, size: int) -> None:
        """Throw the next bytes away; they have been looked at."""
        self._ahead = self._ahead[size:]

    def readinto(self, buffer: Any) -> int:
        size = len(buffer)
        block, self._ahead = self._ahead[:size], self._ahead[size:]
        block = block or self._more(size)
        buffer[: len(block)] = block
        return len(block)

    def _more(self, size: int) -> bytes:
        block: bytes = self._file.read(size) or b""
        self.taken += len(block)
        if self._packed is not None:
            allowed = UNPACKED_FREE + UNPACKED_RATIO * self._packed.taken
            if self.taken > allowed:
                raise InputError(
                    f"unpacks to more than {allowed >> 20} MiB, longer than any boot log of its"
                    " size; unpack it and cut out the boot messages",
                    self._source,
                )
        return block


class _Parts:
    """A stream of parts that are made when they are asked for."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = filter(None, parts)
        self._ahead = b""

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes; none only at the end."""
        self._ahead = self._ahead or next(self._parts, b"")
        block, self._ahead = self._ahead[:size], self._ahead[size:]
        return block


def _transcoded(raw: io.RawIOBase, encoding: str) -> Iterator[bytes]:
    """Yield UTF-16 or UTF-32 as UTF-8."""
    file = io.BufferedReader(raw, _BLOCK)
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    while block := file.read(_BLOCK):
        yield decoder.decode(block).encode("utf-8", "replace")


def _unpacked(raw: io.RawIOBase, make: Callable[[], Any]) -> Iterator[bytes]:
    """Yield what a decompressor makes of a stream; several compressed ones may follow each other.

    Raises EOFError where the last is cut.
    """
    packed = io.BufferedReader(raw, _BLOCK)
    decompressor = make()
    while True:
        rest = b""
        if decompressor.eof:
            rest = decompressor.unused_data or packed.read(_BLOCK)
            if not rest.strip(b"\0"):
                return
            decompressor = make()
        elif decompressor.needs_input:
            rest = packed.read(_BLOCK)
            if not rest:
                raise EOFError("the compressed data are cut short")
        yield decompressor.decompress(rest, _BLOCK)


def _unpacker(head: bytes, raw: io.RawIOBase, source: str) -> Any:
    """Return what decompresses a stream that begins like this; None where nothing has to."""
    if head.startswith(b"\x1f\x8b"):
        import gzip

        return gzip.GzipFile(fileobj=io.BufferedReader(raw, _BLOCK))
    if head.startswith(b"BZh"):
        import bz2

        return _Parts(_unpacked(raw, bz2.BZ2Decompressor))
    if head.startswith(b"\xfd7zXZ\x00"):
        import lzma

        return _Parts(_unpacked(raw, lambda: lzma.LZMADecompressor(memlimit=_UNPACKER_MEMORY)))
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        zstd = _zstd(source)
        limits = {zstd.DecompressionParameter.window_log_max: 27}
        return _Parts(_unpacked(raw, lambda: zstd.ZstdDecompressor(options=limits)))
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _Parts(_unzipped(raw, source))
    return None


def _zstd(source: str) -> Any:
    """Return the module of Python 3.14, or the same for an older one (PEP 784)."""
    for name in ("compression.zstd", "backports.zstd"):
        with suppress(ImportError):
            return importlib.import_module(name)
    raise InputError(
        f"compressed with zstd, which this Python cannot read: {install('zstd')}, or unpack it with"
        " `zstd -d`",
        source,
    )


def _unzipped(raw: io.RawIOBase, source: str) -> Iterator[bytes]:
    """Yield the one file of a zip archive, or of several the tar archive that holds the same files:
    so that what holds for the members of one holds for those of the other.
    """
    whole = io.BufferedReader(raw, _BLOCK).read(MAX_ZIP_BYTES + 1)
    if len(whole) > MAX_ZIP_BYTES:
        limit = MAX_ZIP_BYTES >> 20
        raise InputError(f"a zip archive of more than {limit} MiB; unpack it", source)
    try:
        archive = zipfile.ZipFile(io.BytesIO(whole))
        files = [info for info in archive.infolist() if not info.is_dir()]
        yield from _as_tar(archive, files) if len(files) > 1 else _blocks(archive, *files)
    except (zipfile.BadZipFile, RuntimeError, ValueError, LookupError, struct.error) as error:
        # Where an archive is damaged, encrypted or packed in a rare way, that is nearly anything.
        reason = printable(str(error), 200)
        raise InputError(f"a zip archive that cannot be read: {reason}", source) from None
    if not files:
        raise InputError("a zip archive without any file", source)


def _blocks(archive: zipfile.ZipFile, *files: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield the content of members."""
    for info in files:
        with archive.open(info) as file:
            while block := file.read(_BLOCK):
                yield block


def _as_tar(archive: zipfile.ZipFile, files: list[zipfile.ZipInfo]) -> Iterator[bytes]:
    """Yield a tar archive of the files. A size that is not true ends it."""
    import tarfile

    for info in files:
        header = tarfile.TarInfo(info.filename)
        header.size = info.file_size
        yield header.tobuf(tarfile.GNU_FORMAT, errors="replace")
        size = 0
        for block in _blocks(archive, info):
            size += len(block)
            yield block
        if size != info.file_size:
            raise zipfile.BadZipFile(f"{info.filename} is shorter than its directory says")
        yield bytes(-size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)
