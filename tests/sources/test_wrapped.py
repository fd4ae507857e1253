"""Logs whose long lines a mail program or a terminal has cut."""

from __future__ import annotations

import quopri
import re
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from paravirt_mm.sources import load
from paravirt_mm.sources.content import opened
from paravirt_mm.sources.lines import wrapping_of
from paravirt_mm.sources.wrapped import LONGEST, WIDEST, Wrapping, wrapping
from tests.sources.understood import understood

DATA = Path(__file__).parents[1] / "data" / "logs"
LOGS = ("3.13-i386-pae.txt", "4.19-xen-and-dom0.txt", "4.9-memblock-debug.txt", "5.5-user-map.txt")
SAID = "lines that were cut (none is longer than {} columns) are joined"


def by_words(text: str, width: int, indent: str = "") -> str:
    """As mail programs do."""
    return "\n".join(
        part
        for line in text.splitlines()
        for part in textwrap.wrap(
            line,
            width,
            break_long_words=False,
            break_on_hyphens=False,
            subsequent_indent=indent,
            expand_tabs=False,
        )
        or [""]
    )


def hard(text: str, width: int) -> str:
    """As a terminal shows it, and as it is copied from there."""
    return "\n".join(
        line[at : at + width]
        for line in text.splitlines()
        for at in range(0, len(line) or 1, width)
    )


def quoted(text: str, width: int) -> str:
    return "\n".join(f"> {line}" for line in by_words(text, width).splitlines())


def journal(text: str, width: int) -> str:
    plain = (re.sub(r"^\[ *\d+\.\d+\] ?", "", line) for line in text.splitlines())
    return by_words("\n".join(f"Nov 26 01:02:03 host kernel: {line}" for line in plain), width)


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize(
    "cut",
    [
        lambda text: by_words(text, 66),
        lambda text: by_words(text, 72),
        lambda text: by_words(text, 72, "   "),
        lambda text: by_words(text, 100),
        lambda text: quoted(text, 76),
        lambda text: journal(text, 72),
        lambda text: hard(text, 80),
        lambda text: hard(text, 73),
        lambda text: by_words(text, 72).replace("\n", "\r\n"),
    ],
    ids=["66", "72", "indented", "100", "quoted", "journal", "terminal", "hard", "crlf"],
)
def test_it_is_read_as_if_it_were_whole(
    name: str, cut: Callable[[str], str], tmp_path: Path
) -> None:
    text = (DATA / name).read_text(encoding="utf-8")
    damaged = tmp_path / "m.txt"
    damaged.write_text(f"{cut(text)}\n", encoding="utf-8", newline="")
    assert understood(damaged) == understood(DATA / name)


def test_it_is_said(tmp_path: Path) -> None:
    text = (DATA / LOGS[2]).read_text(encoding="utf-8")
    path = tmp_path / "m.txt"
    path.write_text(by_words(text, 72), encoding="utf-8")
    assert SAID.format(72) in load(path).provenance.assumed
    path.write_text(text, encoding="utf-8")
    assert "columns" not in " ".join(load(path).provenance.assumed)


@pytest.mark.parametrize("width", range(44, 80, 4))
def test_sizes_without_a_time_before_them(width: int, tmp_path: Path) -> None:
    lines = "BIOS-e820: [mem 0x0000000000100000-0x000000003fffffff] usable\n"
    lines += "last_pfn = 0x40000 max_arch_pfn = 0x400000000\n"
    sizes = "Memory: 1006576K/1048120K available (6546K kernel code, 1261K rwdata, 2764K rodata, "
    sizes += "1592K init, 924K bss, 480600K reserved, 0K cma-reserved)\n"
    path = tmp_path / "m.txt"
    path.write_text(lines + sizes)
    whole = understood(path)
    for text in (by_words(sizes, width), hard(sizes, width)):
        path.write_text(f"{lines}{text}\nOther: line\n")
        assert understood(path).kernel == whole.kernel
    path.write_text(f"{lines}{sizes[:48]}\nOther: (6546K init)\n")
    assert understood(path).kernel != whole.kernel


LINE = "[    0.000000] " + "word " * 11 + "end"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ((LINE + "\nof some words more\n") * 3 + "\n", Wrapping(len(LINE), hard=True)),
        # The date of a build may be a rest; a logger's begins a line.
        ((LINE + "\nNov 18 22:11:06 UTC 2009\n") * 3 + "\n", Wrapping(len(LINE), hard=True)),
        ((LINE + "\nNov 18 22:11:06 +03 2009 (x)\n") * 3 + "\n", Wrapping(len(LINE), hard=True)),
        ((LINE + "\nNov 18 22:11:06 words 2009\n") * 3 + "\n", None),
        ((LINE + "\n2009-11-18T22:11:06 words more\n") * 3 + "\n", None),
        ((LINE + "\n2009-11-18 (words) and more\n") * 3 + "\n", Wrapping(len(LINE), hard=True)),
        # A blank was lost after the bracket: lines were cut between words.
        ((LINE[:-1] + "]\nof some words\n") * 3 + "\n", Wrapping(len(LINE), hard=False)),
        ((LINE[:-1] + "]\n of some words\n") * 3 + "\n", Wrapping(len(LINE), hard=True)),
        ((LINE + "\nof some words more\n") * 2 + "\n", None),  # too few
        ((LINE[15:] + "\nof some words more\n") * 9 + "\n", None),  # no time
        ((LINE[:50] + "\nof\n") * 9 + LINE + "\n\n", None),  # there was room
        ((LINE + "\n\nof some words more\n") * 9 + "\n", None),
        ((LINE * 2 + "\nof some words more\n") * 9 + "\n", None),  # too wide
        ((LINE + "\nrest of it\n") * 3 + (LINE[:40] + "\nx\n") * 4 + "\n", None),  # mostly not
        ("", None),
    ],
)
def test_when_it_is_certain(text: str, found: Wrapping | None) -> None:
    assert len(LINE) < WIDEST < 2 * len(LINE)
    assert wrapping(text) == found


def begun(columns: int) -> str:
    """The beginning of a line, of so many columns."""
    return "[    0.000000] ".ljust(columns, "w")


def pair(columns: int, rest: str = "rest") -> list[str]:
    return [begun(columns), rest]


THREE = pair(60) * 3
WIDTHS: dict[str, tuple[list[str], Wrapping | None]] = {
    "a narrow one": (pair(40) * 3, Wrapping(40, hard=True)),
    "too narrow": (pair(39) * 3, None),
    "the widest": (pair(132) * 3, Wrapping(132, hard=True)),
    "wider": (pair(133) * 3, None),
    "something wider before": (["f" * 70, *THREE], Wrapping(60, hard=True)),
    "nothing is cut": ([begun(80), begun(60)], None),
    "a blank at the end": ([*pair(60), *pair(59), *pair(60)], Wrapping(60, hard=True)),
    "an earlier end": ([*pair(60), *pair(58), *pair(60)], Wrapping(60, hard=False)),
    "no room for another word": (
        [*THREE[:5], "x" * 5, begun(54), "wordy", begun(54), "w"], Wrapping(60, hard=True),
    ),
    "one letter too many": (
        [*THREE[:5], "x" * 5, begun(55), "wordy of more", begun(54)], Wrapping(60, hard=False),
    ),
    "half of them": ([*THREE, *pair(40, "x") * 3], Wrapping(60, hard=True)),
    "less than half": ([*THREE, *pair(40, "x") * 4], None),
    "in three": ([begun(60), "y" * 60, "z", begun(60), "y" * 60, "z"], Wrapping(60, hard=True)),
    "foreign lines first": (["foreign"] * 9 + THREE, Wrapping(60, hard=True)),
    "foreign lines last": ([*THREE, "", *["foreign"] * 9], Wrapping(60, hard=True)),
    "after blanks": ([*THREE, "   ", *["foreign"] * 9], Wrapping(60, hard=True)),
    "blanks are no rest": ([*THREE, *pair(60, "   ") * 4], Wrapping(60, hard=True)),
    "at a terminal's edge, once": (pair(80), Wrapping(80, hard=True)),
    "at its edge and before": ([*pair(80), *pair(74, "longer of words")], None),
    "at another edge": (pair(79), None),
}  # fmt: skip


@pytest.mark.parametrize("name", WIDTHS)
def test_how_lines_are_cut(name: str) -> None:
    lines, found = WIDTHS[name]
    assert wrapping("\n".join(lines) + "\n\n") == found


def test_the_last_line_that_is_seen_may_go_on() -> None:
    assert wrapping("\n".join([*THREE, "x"])) == Wrapping(60, hard=True)
    assert wrapping("\n".join(THREE)) is None


def joined(cut: Wrapping, *lines: str) -> list[tuple[int, str]]:
    return list(cut.joined(enumerate(lines, 1)))


@pytest.mark.parametrize(
    ("hard", "lines", "wanted"),
    [
        (True, pair(60), [(1, begun(60) + "rest")]),
        (True, pair(60, "> > rest > more"), [(1, begun(60) + "rest > more")]),
        (True, pair(60, "  rest"), [(1, begun(60) + "  rest")]),
        (True, [begun(59) + " ", "rest"], [(1, begun(59) + " rest")]),
        (True, pair(59, "  rest"), [(1, begun(59) + " rest")]),
        (False, pair(60), [(1, begun(60) + " rest")]),
        (False, [begun(60) + "  ", "rest"], [(1, begun(60) + " rest")]),
        (False, pair(60, "| > rest "), [(1, begun(60) + " rest")]),
        (False, [begun(50) + " 0x00ff-", "0x00ffff"], [(1, begun(50) + " 0x00ff-0x00ffff")]),
        (False, [*pair(60), *pair(60)], [(1, begun(60) + " rest"), (3, begun(60) + " rest")]),
        (False, [*pair(60, "y" * 60), "z"], [(1, f"{begun(60)} {'y' * 60} z")]),
        (False, pair(54, "wordy"), [(1, begun(54)), (2, "wordy")]),
        (False, pair(54, "wordyy of"), [(1, begun(54) + " wordyy of")]),
        (False, pair(60, ""), [(1, begun(60)), (2, "")]),
        (False, [begun(60), "", "rest"], [(1, begun(60)), (2, ""), (3, "rest")]),
        (False, [begun(60), " ", "r" * 70], [(1, begun(60)), (2, " "), (3, "r" * 70)]),
        (False, ["other", "r" * 70, begun(20)], [(1, "other"), (2, "r" * 70), (3, begun(20))]),
        (False, pair(4095, "rest of"), [(1, begun(4095) + " rest of")]),
        (False, pair(4096), [(1, begun(4096)), (2, "rest")]),
    ],
)
def test_lines_are_put_together(
    hard: bool, lines: list[str], wanted: list[tuple[int, str]]
) -> None:
    assert joined(Wrapping(60, hard), *lines) == wanted


def test_once_is_enough_at_the_edge_of_a_terminal() -> None:
    line = LINE.ljust(80, "x")
    assert wrapping(f"{line}\nrest\n\n") == Wrapping(80, hard=True)
    assert wrapping(f"{line}x\nrest\n\n") is None


def test_a_line_has_an_end() -> None:
    lines = [(1, LINE), *((number, "w" * 90) for number in range(2, 1000))]
    joined = list(Wrapping(len(LINE), hard=False).joined(lines))
    assert joined[0][0] == 1
    assert LONGEST <= len(joined[0][1]) < LONGEST + 100
    assert [number for number, _ in joined[1:]] == list(range(1000 - len(joined) + 1, 1000))


def test_an_encoding_that_says_what_a_line_is_is_not_second_guessed(tmp_path: Path) -> None:
    """Its soft line breaks look like a wrapped log, and are joined by who decodes it."""
    path = tmp_path / "mail.txt"
    body = "".join(f"[    {number}.000000] {LINE[15:]} {LINE[15:]}\n" for number in range(9))
    path.write_bytes(
        b"Content-Transfer-Encoding: quoted-printable\n\n" + quopri.encodestring(body.encode())
    )
    with opened(path, "mail.txt") as content:
        assert wrapping(content.head.decode()) is not None
        assert wrapping_of(content) is None
