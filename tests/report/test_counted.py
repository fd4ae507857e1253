"""How many of something, in words."""

from __future__ import annotations

import pytest

from paravirt_mm.counted import all_of, counted


@pytest.mark.parametrize(
    ("number", "noun", "some", "every"),
    [
        (0, "machine", "0 machines", "all 0 machines"),
        (1, "machine", "1 machine", "the machine"),
        (2, "machine", "2 machines", "both machines"),
        (13, "machine", "13 machines", "all 13 machines"),
        (1, "map entry", "1 map entry", "the map entry"),
        (2, "map entry", "2 map entries", "both map entries"),
        (3, "try", "3 tries", "all 3 tries"),
        (2, "address", "2 addresses", "both addresses"),
        (3, "key", "3 keys", "all 3 keys"),
        (1234, "page", "1,234 pages", "all 1,234 pages"),
    ],
)
def test_words(number: int, noun: str, some: str, every: str) -> None:
    assert counted(number, noun) == some
    assert all_of(number, noun) == every


@pytest.mark.parametrize(
    ("number", "noun", "verb", "words"),
    [
        (1, "log", "disagree", "1 log disagrees"),
        (2, "log", "disagree", "2 logs disagree"),
        (1, "line", "match", "1 line matches"),
        (0, "line", "match", "0 lines match"),
        (1, "table", "are", "1 table is"),
        (2, "table", "are", "2 tables are"),
        (1, "page", "were", "1 page was"),
        (3, "page", "were", "3 pages were"),
    ],
)
def test_what_so_many_do(number: int, noun: str, verb: str, words: str) -> None:
    assert counted(number, noun, verb) == words
