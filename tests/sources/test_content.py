"""From a file's bytes to bytes that can be read as text: what is looked at, and how far."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable

import pytest

from paravirt_mm.errors import InputError
from paravirt_mm.sources import content
from paravirt_mm.sources.content import content_of, opened, reading
from tests.sources.packed import zipped

TEXT = "".join(f"line {number} \u20ac of some more words\n" for number in range(4000))


class Slow(io.RawIOBase):
    """A pipe that gives no more than 4 bytes at a time."""

    def __init__(self, whole: bytes) -> None:
        self._whole = io.BytesIO(whole)

    def read(self, size: int = -1) -> bytes:
        return self._whole.read(min(size, 4))

    def tell(self) -> int:
        return self._whole.tell()


# -- encodings -------------------------------------------------------------------------------------


def mixed(zeros_even: int, zeros_odd: int, size: int, mark: bytes = b"") -> bytes:
    """So many bytes, of which so many are 0: the last ones at even, and at odd, places."""
    whole = bytearray(b"x" * size)
    whole[: len(mark)] = mark
    for place in range(zeros_even):
        whole[(size - 1) // 2 * 2 - 2 * place] = 0
    for place in range(zeros_odd):
        whole[size // 2 * 2 - 1 - 2 * place] = 0
    return bytes(whole)


LE16, BE16, BE32 = codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE


@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        (b"plain text", None),
        (b"", None),
        # With a mark: a quarter of the characters have a zero, or there are hardly any.
        *((mixed(0, 64, 512, mark), None) for mark in (LE16, BE16)),
        *((mixed(0, 65, 512, mark), "utf-16") for mark in (LE16, BE16)),
        (mixed(64, 0, 512, LE16), None),
        (mixed(65, 0, 512, LE16), "utf-16"),
        (mixed(40, 40, 512, LE16), None),
        (mixed(64, 0, 512, LE16) + b"\0\0\0\0", None),
        (mixed(64, 1, 512, LE16)[:511] + b"\0", None),
        (mixed(0, 0, 15, LE16), "utf-16"),
        (mixed(0, 0, 16, LE16), None),
        (mixed(0, 3, 18, LE16), "utf-16"),
        (mixed(0, 3, 23, LE16), "utf-16"),
        (mixed(0, 2, 18, LE16), None),
        # More than half of the bytes.
        (mixed(128, 126, 512, BE32), None),
        (mixed(128, 127, 512, BE32), "utf-32"),
        (mixed(200, 0, 512, BE32), None),
        (codecs.BOM_UTF32_LE + "text".encode("utf-32-le"), "utf-32"),
        (mixed(200, 200, 512), None),
        # Without one nine characters of ten have a zero, and always on the same side.
        (mixed(0, 90, 200), None),
        (mixed(0, 91, 200), "utf-16-le"),
        (mixed(1, 91, 200), None),
        (mixed(90, 0, 200), None),
        (mixed(91, 0, 200), "utf-16-be"),
        (mixed(91, 1, 200), None),
    ],
)
def test_whether_characters_are_wide(head: bytes, encoding: str | None) -> None:
    assert content._wide(head) == encoding


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be"])
@pytest.mark.parametrize("slow", [False, True])
def test_text_comes_out_as_utf_8(encoding: str, slow: bool) -> None:
    text = TEXT[:2000] if slow else TEXT
    coded = text.encode(encoding)
    found = content_of(Slow(coded) if slow else io.BytesIO(coded), "here")
    wanted = text.encode()
    assert found.head == wanted[: 1 << 16]
    assert found.stream.read() == wanted


# -- how much is looked at -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (b"x" * 100, 16),
        (b"#\n" * 50, 48),
        (b"#\n" * 5, 10),
        (b"#\n" * 8, 16),
        (b"#\n" * 7 + b" \n" + b"x" * 100, 32),
        (b" # some words\n" + b"#\n" * 7 + b"x" * 100, 32),
        (b"#\n" * 16 + b"x" * 100, 48),
        (b"\n\n  \n" * 3 + b"#" + b"x" * 100, 48),
        (b"#\nx\n" + b"#\n" * 50, 16),
    ],
)
@pytest.mark.parametrize("make", [io.BytesIO, Slow])
def test_more_is_looked_at_where_a_file_begins_with_comments(
    text: bytes, size: int, make: Callable[[bytes], io.RawIOBase], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "HEAD_BYTES", 16)
    monkeypatch.setattr(content, "MAX_HEAD", 48)
    found = content_of(make(text), "here")
    assert found.head == text[:size]
    assert found.stream.read() == text


def test_a_mebibyte_is_looked_at_for_what_follows_comments() -> None:
    assert len(content_of(io.BytesIO(b"#\n" * (1 << 20)), "here").head) == 1 << 20


@pytest.mark.parametrize("make", [io.BytesIO, Slow])
def test_what_is_looked_at_is_not_taken(make: Callable[[bytes], io.RawIOBase]) -> None:
    file = make(bytes(range(100)))
    counted = content._Counted(file)
    assert counted.fill(10) == bytes(range(10))
    assert (file.tell(), counted.taken) == (10, 10)
    assert counted.fill(5) == bytes(range(5))
    assert (file.tell(), counted.taken) == (10, 10)
    counted.drop(3)
    assert counted.fill(8) == bytes(range(3, 11))
    buffer = bytearray(5)
    assert counted.readinto(buffer) == 5
    assert buffer == bytes(range(3, 8))
    rest = io.BufferedReader(counted).read()
    assert rest == bytes(range(8, 100))
    assert counted.taken == 100
    assert counted.fill(1) == b""


class Silent(io.RawIOBase):
    """A pipe that has nothing to say, and says so."""

    def read(self, _size: int = -1) -> bytes | None:
        return None


def test_who_says_nothing_has_ended() -> None:
    assert content_of(Silent(), "here").stream.read() == b""


# -- what comes out of compressed files ------------------------------------------------------------


PACK: list[Callable[[bytes], bytes]] = [
    gzip.compress,
    bz2.compress,
    lambda text: lzma.compress(text, preset=0),
    lambda text: zipped(("a", text)),
    lambda text: zipped(("folder/", b""), ("folder/a", text)),
    lambda text: bz2.compress(text[:100]) + bz2.compress(text[100:]),
    lambda text: lzma.compress(text, preset=0) + bytes(4096),
    lambda text: gzip.compress(bz2.compress(text)),
]


@pytest.mark.parametrize("pack", PACK)
def test_what_was_packed_comes_out(pack: Callable[[bytes], bytes]) -> None:
    text = TEXT.encode()
    found = content_of(io.BytesIO(pack(text)), "here")
    assert found.head == text[: 1 << 16]
    assert found.stream.read() == text
    few = pack(text[:500])
    assert content_of(Slow(few), "here").stream.read() == text[:500]


def test_parts_are_given_in_pieces() -> None:
    parts = content._Parts(iter([b"", b"abcde", b"", b"fg"]))
    assert [parts.read(2) for _ in range(6)] == [b"ab", b"cd", b"e", b"fg", b"", b""]


@pytest.mark.parametrize(("free", "ratio", "packed", "most"), [(100, 2, 10, 120), (100, 2, 0, 100)])
def test_so_much_may_come_out_of_what_has_gone_in(
    free: int, ratio: int, packed: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "UNPACKED_FREE", free)
    monkeypatch.setattr(content, "UNPACKED_RATIO", ratio)
    source = content._Counted(io.BytesIO(bytes(packed)))
    source.fill(packed)
    assert len(content._Counted(io.BytesIO(bytes(500)), source, "here").fill(most)) == most
    with pytest.raises(InputError, match="here: unpacks to more than 0 MiB"):
        content._Counted(io.BytesIO(bytes(500)), source, "here").fill(most + 1)
    assert len(content._Counted(io.BytesIO(bytes(500))).fill(500)) == 500


def test_what_comes_out_is_compared_with_what_has_gone_in_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And not with what another layer has made of that."""
    monkeypatch.setattr(content, "UNPACKED_FREE", 3 << 19)
    monkeypatch.setattr(content, "UNPACKED_RATIO", 1000)
    bomb = gzip.compress(gzip.compress(bytes(6 << 20)))
    with pytest.raises(InputError, match="here: unpacks to more than 1 MiB"):
        content_of(io.BytesIO(bomb), "here").stream.read()
    assert (
        len(content_of(io.BytesIO(gzip.compress(bytes(1 << 20))), "here").stream.read()) == 1 << 20
    )


def test_a_zip_has_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = zipped(("a", b"some text\n"))
    monkeypatch.setattr(content, "MAX_ZIP_BYTES", len(whole))
    assert content_of(io.BytesIO(whole), "here").head == b"some text\n"
    monkeypatch.setattr(content, "MAX_ZIP_BYTES", (2 << 20) - 1)
    big = b"PK\x03\x04" + bytes(2 << 20)
    with pytest.raises(InputError, match="here: a zip archive of more than 1 MiB; unpack it"):
        content_of(io.BytesIO(big), "here")
    monkeypatch.setattr(content, "MAX_ZIP_BYTES", len(whole) - 1)
    with pytest.raises(InputError, match="a zip archive of more than"):
        content_of(io.BytesIO(whole), "here")


def tar_of(*files: tuple[str, bytes]) -> bytes:
    return content_of(io.BytesIO(zipped(*files)), "here").stream.read()


def test_a_zip_of_several_files_is_a_tar() -> None:
    sizes = (10, 512, 513, 0)
    tar = tar_of(*((f"f{size}", b"x" * size) for size in sizes))
    assert len(tar) == 4 * 512 + 512 + 512 + 1024 + 0 + 1024
    assert tar[:3] == b"f10"
    assert tar[512:522] == b"x" * 10
    assert tar[1024:1028] == b"f512"
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        assert [member.size for member in archive] == list(sizes)
    assert len(tar_of(("a", b"x"), ("b", b"y"))) == 4 * 512 + 1024


@pytest.mark.parametrize(
    "error",
    [zipfile.BadZipFile, RuntimeError, ValueError, LookupError, struct.error],
)
def test_whatever_a_damaged_zip_raises_is_told(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise error("x" * 300)

    monkeypatch.setattr(zipfile, "ZipFile", fail)
    with pytest.raises(InputError) as caught:
        content_of(io.BytesIO(b"PK\x03\x04"), "here")
    assert str(caught.value) == f"here: a zip archive that cannot be read: {'x' * 199}…"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(2, "No such file"), "No such file"),
        (OSError("x" * 300), "x" * 199 + "…"),
        (EOFError("cut"), "cut"),
        (zlib.error("bad"), "bad"),
        (UnicodeError("bad"), "bad"),
        (lzma.LZMAError("y" * 300), "y" * 199 + "…"),
    ],
)
def test_what_reading_raises_is_told(error: Exception, words: str) -> None:
    with pytest.raises(InputError) as caught, reading("here"):
        raise error
    assert str(caught.value) == f"here: cannot be read: {words}"


def test_other_errors_are_nobodys_input() -> None:
    with pytest.raises(KeyError), reading("here"):
        raise KeyError


def test_a_path_that_cannot_be_one() -> None:
    with pytest.raises(InputError, match="here: a path cannot hold a NUL"), opened("a\0b", "here"):
        pass
