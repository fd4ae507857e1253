"""Lines of text: their numbers, what is left of long ones, and where reading stops."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence

import pytest

from paravirt_mm.errors import InputError
from paravirt_mm.sources import lines
from paravirt_mm.sources.content import Content
from paravirt_mm.sources.lines import bounded_lines, strip_prefixes, wrapping_of
from paravirt_mm.sources.wrapped import Wrapping


def content(text: str | bytes) -> Content:
    whole = text.encode() if isinstance(text, str) else text
    return Content(whole[:4096], io.BytesIO(whole))


def read(
    text: str | bytes, wanted: Sequence[str] = (), cut: Wrapping | None = None
) -> list[tuple[int, str]]:
    return list(bounded_lines(content(text), "here", wanted, cut))


# -- which lines, and their numbers ----------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 2, 3, 5, 7, 100])
def test_lines_do_not_depend_on_how_they_are_read(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_BLOCK", block)
    assert read("one\n\ntwo\nx") == [(1, "one"), (2, ""), (3, "two"), (4, "x")]
    assert read("a\nb\nkey\nc\nd\ne\nkey\nkey\nf\ng\nh", ["key", "none"]) == [
        (3, "key"), (4, "c"), (5, "d"), (7, "key"), (8, "key"), (9, "f"), (10, "g"),
    ]  # fmt: skip
    assert read("a\nkey", ["key"]) == [(2, "key")]
    assert read("") == []
    assert read("\n") == [(1, "")]
    assert read("a\xa0b\n\x1b[1mc\n") == [(1, "a b"), (2, "c")]


CUT = Wrapping(60, hard=False)
BEGUN = "[    0.000000] ".ljust(60, "w")


def test_nothing_is_kept_of_what_is_longer_than_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 4)
    monkeypatch.setattr(lines, "_BLOCK", 5)
    blocks = list(lines._blocks(io.BytesIO(b"ab\ncd" + b"x" * 99), "here", returns=False))
    assert blocks == [b"ab\n", b"cdxx\n"]


def test_lines_that_were_cut_are_chosen_when_they_are_whole() -> None:
    text = f"a\n{BEGUN}\nkey more\nb\nc\n[    0.000000] x\n[    0.000000] y\n"
    assert read(text, ["key", "none"], CUT) == [(2, f"{BEGUN} key more"), (4, "b"), (5, "c")]
    assert read(text, ["w", "none"], CUT) == [(2, f"{BEGUN} key more"), (4, "b"), (5, "c")]
    assert [number for number, _ in read(text, (), CUT)] == [1, 2, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a\rb\n", ["ab"]),  # as many returns as ends: they end nothing
        ("a\rb\rc\n", ["a", "b", "c"]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("a\rb\rc\r\nd\r", ["a", "b", "c", "d"]),
        ("a", ["a"]),
    ],
)
def test_returns_end_lines_where_nothing_else_does(text: str, wanted: list[str]) -> None:
    assert [line for _, line in read(text)] == wanted


MAIL = "Content-Transfer-Encoding: quoted-printable\n"


def test_lines_of_a_mail() -> None:
    text = f"{MAIL}a=3Db\nlong=\n er=20=\nand\nc<br>\n"
    assert read(text)[1:] == [(2, "a=b"), (5, "long er and"), (6, "c")]
    assert read(f"{MAIL}end=")[1:] == []


def test_lines_of_an_attachment() -> None:
    """What is no base64 stands as it is: other headers, words of a mail."""
    head = "content-transfer-encoding: base64\n"
    coded = base64.b64encode(b"one\ntwo\n").decode()
    assert [line for _, line in read(f"{head}words here\n{coded}\nabcde\n\nQUJD\n")][1:] == [
        "words here", "one", "two", "abcde", "", "ABC",
    ]  # fmt: skip


@pytest.mark.parametrize(("size", "count"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3), (12, 3)])
def test_an_attachment_is_read_in_small_pieces(size: int, count: int) -> None:
    assert lines._Base64(io.BytesIO(b"a-b\n" * 9)).read(size) == b"a-b\n" * count


# -- what is around a line -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("plain", "plain"),
        ("> plain", "plain"),
        ("> `plain`", "plain"),
        ("| plain | ", "plain"),
        ('"2024","host","plain"', "plain"),
        ("<6>[    0.000000] plain", "plain"),
        ("plain`", "plain`"),
        ("a|b|", "a|b|"),
        ("> plain`", "plain`"),
        ("> ", ""),
    ],
)
def test_what_is_put_around_a_line_is_taken_off(line: str, wanted: str) -> None:
    assert strip_prefixes(line) == wanted


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("a<b>b</b>c", "abc"),
        ("a < b <other> c", "a < b <other> c"),
        ("a&gt;b &amp; c", "a>b & c"),
        ("a\u00a0b\u2010c\u2011d\u2013e\u2014f", "a b-c-d-e-f"),
        ("a\x1b[1;31mb\x07c^[[0md", "abcd"),
        ("a\tb", "a\tb"),
    ],
)
def test_what_stands_in_a_line_for_something_else(line: str, wanted: str) -> None:
    assert read(line) == [(1, wanted)]


# -- journals --------------------------------------------------------------------------------------


def record(message: object, at: object = None) -> str:
    return json.dumps({"MESSAGE": message} if at is None else {"time": str(at), "MESSAGE": message})


@pytest.mark.parametrize(
    ("records", "wanted"),
    [
        ([record("a"), record("b")], [(1, "a"), (2, "b")]),
        ([record("a", 1), record("b", 2)], [(1, "a"), (2, "b")]),
        ([record("b", 2), record("a", 1)], [(1, "a"), (2, "b")]),
        (
            [record("c", 2), record("b", 3), record("a", 1)],
            [(1, "a"), (2, "b"), (3, "c")],
        ),
        ([record("a", 1), record("b", 1)], [(1, "a"), (2, "b")]),
        ([record("c\nd", 2), "", record("a\nb", 1)], [(1, "a"), (1, "b"), (3, "c"), (3, "d")]),
        ([record("b", 2.5), record("a", 2.25)], [(1, "a"), (2, "b")]),
        ([record("x"), record("b", 2), record("a", 1)], [(1, "a"), (2, "b"), (3, "x")]),
        ([record("b", 2), record("a", 1), record("x")], [(1, "x"), (2, "a"), (3, "b")]),
        ([record([72, 105, 328, 255 + 34])], [(1, "HiH!")]),
        ([record(["a"])], []),
        ([record("a") + record("b")], [(1, "a"), (1, "b")]),
        ([record("a<br>")], [(1, "a")]),
        ([record(""), record("a")], [(2, "a")]),
    ],
)
def test_messages_of_a_journal_oldest_first(
    records: list[str], wanted: list[tuple[int, str]]
) -> None:
    assert read("\n".join(records) + "\n") == wanted


# -- limits ----------------------------------------------------------------------------------------


def test_so_much_of_a_line_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 80)
    assert [len(line) for _, line in read("x" * 79 + "\n" + "y" * 200 + "\nz\n")] == [79, 80, 1]
    assert len(read(f"{BEGUN}\n{'z' * 60}\n{'z' * 60}\n", (), CUT)[0][1]) == 80
    assert [len(line) for _, line in read(f"{'y' * 90}\n{BEGUN}\n", (), CUT)] == [80, 60]
    assert [len(line) for _, line in read(f"{MAIL}{'a' * 79}=\n{'b' * 9}\n{'c' * 90}\n")][1:] == [
        80, 80,
    ]  # fmt: skip
    assert [len(line) for _, line in read(record("a" * 90 + "\n" + "b" * 79))] == [80, 79]
    coded = base64.b64encode(b"b" * 48).decode() * 2
    attached = f"content-transfer-encoding: base64\n{coded}\n{coded}\n"
    assert [len(line) for _, line in read(attached)][1:] == [80]
    for block in (1, 7, 64, 100):
        monkeypatch.setattr(lines, "_BLOCK", block)
        found = read("x" * 300 + "\n" + "y" * 79 + "\n" + "z" * 300)
        assert [(number, line[0], len(line)) for number, line in found] == [
            (1, "x", 80), (2, "y", 79), (3, "z", 80),
        ]  # fmt: skip


TEXTS: dict[str, Callable[[int], str]] = {
    "plain": lambda count: "x\n" * count,
    "mail": lambda count: MAIL + "x\n" * (count - 1),
    "attachment": lambda count: "content-transfer-encoding: base64\n" + "x y\n" * (count - 1),
    "journal": lambda count: (record("x") + "\n") * count,
}


@pytest.mark.parametrize("name", TEXTS)
def test_so_many_lines(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINES", 8)
    text = TEXTS[name]
    assert len(read(text(2))) == 2
    if name != "journal":
        assert len(read(text(8))) == 8
        assert len(read(text(8), (), CUT)) == 8
        with pytest.raises(InputError, match="here:9: more than 8 lines; cut out"):
            read(text(9))
    else:
        assert len(read("\n" * 6 + text(2))) == 2
        with pytest.raises(InputError, match="here:9: a journal longer than any boot"):
            read("\n" * 6 + text(3))


def test_so_many_lines_of_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINES", 9)
    assert len(read(f"{record('a' + chr(10) + 'b')}\n\n")) == 2
    with pytest.raises(InputError, match="here:2: a journal longer"):
        read(f"{record('a' + chr(10) + 'b' + chr(10) + 'c')}\n\n")


def test_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    size = (3 << 20) + 9
    monkeypatch.setattr(lines, "MAX_LOG_BYTES", size)
    assert read("\n" * size, ["none"]) == []
    with pytest.raises(InputError, match="here: longer than 3 MiB; cut out the boot messages"):
        read("\n" * (size + 1), ["none"])
    monkeypatch.setattr(lines, "MAX_LOG_BYTES", 83)
    text = record("abc")
    assert len(text) == 18
    assert len(read(f"{text}\n ")) == 1
    with pytest.raises(InputError, match="here:2: a journal longer than any boot"):
        read(f"{text}\n  ")


def test_so_much_of_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_RECORD_BYTES", 20)
    assert [line for _, line in read(f"{record('abc')}\n{record('x' * 30)}\n")] == ["abc"]


@pytest.mark.parametrize(
    "head", [record("x"), MAIL, "content-transfer-encoding: base64", "last_pfn =3D 0x1"]
)
def test_who_says_what_a_line_is_needs_no_guess(head: str) -> None:
    cut = f"{BEGUN}\nrest\n" * 3
    assert wrapping_of(content(f"{cut}\n")) == Wrapping(60, hard=True)
    assert wrapping_of(content(f"{head}\n{cut}\n")) is None
