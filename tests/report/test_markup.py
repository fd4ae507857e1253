"""What a file says is text in every format, never markup."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser

import pytest
from tabulate import tabulate, tabulate_formats

from paravirt_mm.report.markup import escaped, no_formula, tabulated, words

EVIL = r"<script>alert(1)</script> | \input{/etc/passwd} $x$ [a](javascript:b) `c` & {{d}} ![e](f)"


class _Reader(HTMLParser):
    """Elements and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("style", ["html", "unsafehtml"])
def test_a_page_shows_it(style: str) -> None:
    page = tabulated([[EVIL, "1"]], ["a", "b"], style, ["left", "right"]) + words(EVIL, style)
    seen = _Reader(page)
    assert "script" not in seen.tags
    assert seen.text.count("<script>alert(1)</script>") == 2


@pytest.mark.parametrize("style", ["latex", "latex_raw", "latex_booktabs", "latex_longtable"])
def test_tex_prints_it(style: str) -> None:
    """No command but those that print a character."""
    source = tabulated([[EVIL]], ["a"], style, ["left"])
    assert "\\input" not in source
    assert "\\textbackslash" in source
    assert r" a\_b 7\% " in tabulated([["a_b 7%"]], ["a"], style, ["left"])  # once, not twice
    text = words(EVIL, style)
    commands = set(re.findall(r"\\([a-z]+)", text))
    assert commands == {"textbackslash"}
    assert not re.search(r"(?<!\\)[$%#_&]", text)


@pytest.mark.parametrize("style", ["github", "pipe"])
def test_markdown_shows_it(style: str) -> None:
    (*_, row) = tabulated([[EVIL, "x"]], ["a", "b"], style, ["left", "left"]).splitlines()
    assert len(re.findall(r"(?<!\\)\|", row)) == 3, "two cells"
    for text in (row, words(EVIL, style)):
        assert "<" not in text
        assert not re.search(r"(?<!\\)[`\[]", text)


@pytest.mark.parametrize("style", tabulate_formats)
def test_every_format_of_tabulate_has_been_thought_of(style: str) -> None:
    """A cell never makes a cell, a row or a tag of its own."""
    one = tabulated([["a|b", "x"]], ["h", "i"], style, ["left", "left"])
    two = tabulated([["a b", "x"]], ["h", "i"], style, ["left", "left"])
    assert len(one.splitlines()) == len(two.splitlines())
    web = {"html", "unsafehtml", "github", "pipe", "mediawiki", "textile", "moinmoin"}
    if style in web:
        assert "<script" not in tabulated([[EVIL]], ["a"], style, ["left"])


@pytest.mark.parametrize("text", ["=1+1", "+1+1", "-1+cmd|' /C calc'!A0", "@SUM(A1)", "\t=1"])
def test_a_spreadsheet_takes_it_for_text(text: str) -> None:
    assert no_formula(text) == f"'{text}"
    table = tabulated([[text]], ["a"], "tsv", ["left"])
    (_, (cell,)) = csv.reader(io.StringIO(table), delimiter="\t", quoting=csv.QUOTE_NONE)
    assert cell.startswith("'")


@pytest.mark.parametrize("text", ["-", "-3", "+5", "1.5", "-0.25", "0x10", "text", "", "a=b"])
def test_numbers_and_plain_text_stay(text: str) -> None:
    assert no_formula(text) == text


SPECIAL = r"""&<>|\`*[]{}!$%#_~^"'"""
WEB, BACKSLASHED = "&amp;&lt;&gt;", r"""&\<>\|\\\`\*\[\]\{\}!$%#_~^"'"""
MARKDOWN = WEB + r"""\|\\\`\*\[\]{}!$%#_~^"'"""
WIKI = WEB + r"""&#124;\`*&#91;&#93;&#123;&#125;&#33;$%#_~^"'"""
TEX = r"""\&<>|\textbackslash{}`*[]\{\}!\$\%\#\_\textasciitilde{}\textasciicircum{}"'"""
AS_WRITTEN = {
    "html": WEB + r"""|\`*[]{}!$%#_~^&quot;&#x27;""",
    **dict.fromkeys(("latex", "latex_raw", "latex_booktabs", "latex_longtable"), TEX),
    **dict.fromkeys(("github", "pipe"), MARKDOWN),
    **dict.fromkeys(("mediawiki", "textile", "moinmoin"), WIKI),
    **dict.fromkeys(("jira", "youtrack", "asciidoc", "rst"), BACKSLASHED),
    "orgtbl": SPECIAL.replace("|", r"\vert{}"),
    "simple": SPECIAL,
}


def test_what_stands_for_each_character() -> None:
    """In each family of formats; two points begin a comment of reStructuredText, elsewhere not."""
    assert {style: escaped(SPECIAL, style) for style in AS_WRITTEN} == AS_WRITTEN
    assert escaped(SPECIAL, "unsafehtml") == AS_WRITTEN["html"]
    assert [escaped(text, "rst") for text in ("..a", "a..", "")] == [r"\..a", "a..", ""]
    assert escaped("..a", "simple") == "..a"


def test_plain_formats_stay_plain() -> None:
    assert escaped(EVIL, "simple") == EVIL
    assert words("a\nb", "plain") == "a\nb"


def test_other_tables_of_the_process_stay_as_they_are() -> None:
    """Titles of ours are no wider than they are; those of others, before and after, as before."""
    before = tabulate([[1]], ["long"], disable_numparse=True, colalign=["right"])
    assert tabulated([["1"]], ["long"], "simple", ["right"]).splitlines()[0] == "long"
    assert tabulate([[1]], ["long"], disable_numparse=True, colalign=["right"]) == before
    assert before.splitlines()[0] == "  long"
