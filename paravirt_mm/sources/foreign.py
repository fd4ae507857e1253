"""Files that hold no text to read, told by their first bytes, and what makes text of them."""

from __future__ import annotations

from collections.abc import Mapping

_UNPACK = "unpack it, and give what it holds: `{}`"
_AS_TEXT = "give its text"

FOREIGN: Mapping[bytes, tuple[str, str]] = {
    b"7z\xbc\xaf'\x1c": ("a 7-Zip archive", _UNPACK.format("7z x")),
    b"Rar!\x1a\x07": ("a RAR archive", _UNPACK.format("unrar x")),
    b"\x04\x22\x4d\x18": ("compressed with lz4", _UNPACK.format("lz4 -d")),
    b"\x02\x21\x4c\x18": ("compressed with lz4", _UNPACK.format("lz4 -d")),
    b"\x89LZO\x00\r\n\x1a\n": ("compressed with lzop", _UNPACK.format("lzop -d")),
    b"]\x00\x00": ("compressed with lzma", _UNPACK.format("xz -d --format=lzma")),
    b"LZIP": ("compressed with lzip", _UNPACK.format("lzip -d")),
    b"\x1f\x9d": ("compressed with compress", _UNPACK.format("gzip -d")),
    b"07070": ("a cpio archive", _UNPACK.format("cpio -i")),
    b"!<arch>\n": ("an ar archive or a package of Debian", _UNPACK.format("ar x")),
    b"\xed\xab\xee\xdb": ("an RPM package", _UNPACK.format("rpm2cpio")),
    b"LPKSHHRH": (
        "a journal in its own format",
        "give what `journalctl -k -b --file` prints of it",
    ),
    b"SQLite format 3\x00": ("an SQLite database", _AS_TEXT),
    b"%PDF-": ("a PDF document", _AS_TEXT),
    b"\x89PNG\r\n\x1a\n": ("a picture", _AS_TEXT),
    b"\xff\xd8\xff": ("a picture", _AS_TEXT),
    b"\x7fELF": (
        "an ELF file: a program, kernel or dump of memory",
        "`paravirt-mm inspect` reads dumps, `paravirt-mm verify` boots kernels",
    ),
}
"""What a file is that begins so, and the remedy."""


def foreign(head: bytes) -> str | None:
    """Return what is said of a file that begins so; None: it may be text."""
    for magic, (what, remedy) in FOREIGN.items():
        if head.startswith(magic):
            return f"{what}, no text: {remedy}"
    return None
