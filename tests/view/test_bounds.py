"""How much of a text, of a list and of a value gets onto a page, at the bounds."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from paravirt_mm import E820Type, Machine, MemoryMap, bundled
from paravirt_mm.machine.paging import MIB
from paravirt_mm.view import page
from paravirt_mm.view.memory_map import Scale
from paravirt_mm.view.page import MAX_ENTRIES
from paravirt_mm.view.scene import LINES, MAX_FRAMES, MAX_RANGES, MAX_UPPER, thinned
from paravirt_mm.view.sentences import _kind, _names
from paravirt_mm.view.story import bounded
from paravirt_mm.view.strip import ruler
from paravirt_mm.view.survey import Subject


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, None), (True, True), (7, 7), (1.5, 1.5), (float("nan"), "nan"),
        (float("inf"), "inf"), (float("-inf"), "-inf"), ("a\x1b", r"a\x1b"), ([1], "[1]"),
    ],
)  # fmt: skip
def test_a_figure_as_json_has_it(value: object, shown: object) -> None:
    """JSON has no infinity: what is none of its values becomes text."""
    assert page._plain(value) == shown
    assert type(page._plain(value)) is type(shown)


def test_the_bounds_are_those_of_the_documents(checkout: Path) -> None:
    told = (checkout / "docs" / "reports.md").read_text(encoding="utf-8")
    words = " ".join(told.split())
    for number, what in (
        (MAX_ENTRIES, "entries of a firmware map"), (MAX_FRAMES, "steps of a run"),
        (MAX_RANGES, "ranges of a kind"), (page.MAX_FINDINGS, "findings a run"),
        (MAX_UPPER, "tables above L1"),
    ):  # fmt: skip
        assert f"{number} {what}" in words


def test_texts_are_cut_with_a_mark() -> None:
    assert bounded("x" * 5, 5) == "x" * 5
    assert len(bounded("x" * 6, 5)) == 5
    assert bounded("x" * 6, 5).endswith("…")
    assert len(bounded("\x1b" * 6, 9)) <= 9


def test_names_in_a_sentence() -> None:
    assert [_names(["a"]), _names(["a", "b"]), _names(["a", "b", "c"])] == [
        "a", "a and b", "a, b and c",
    ]  # fmt: skip
    assert _kind(["a", "b"], knows=True) == "a and b"
    assert _kind(["a", "b", "c"], knows=True) == "the 3 that do not guess"
    assert _kind(["a", "b", "c"], knows=False) == "the 3 that guess"


def test_the_smallest_gaps_are_closed() -> None:
    spans = [(0, 10), (11, 20), (30, 40), (45, 50)]
    assert thinned(spans, 4) == spans
    assert thinned(spans, 3) == [(0, 20), (30, 40), (45, 50)]
    assert thinned(spans, 2) == [(0, 20), (30, 50)]
    assert thinned(spans, 1) == [(0, 50)]
    later = [(0, 10), (15, 20), (21, 30), (60, 70)]
    assert thinned(later, 3) == [(0, 10), (15, 30), (60, 70)], "in order, whichever gap is largest"


def machine(entries: int, **given: object) -> Machine:
    spans = [(n * 2 * MIB, n * 2 * MIB + MIB, E820Type.RAM) for n in range(entries)]
    return attrs.evolve(Machine("m", MemoryMap.sanitise(spans)), **given)


def test_what_the_page_tells_of_a_machine() -> None:
    whole = page._subject(Subject(machine(MAX_ENTRIES), ()), [])
    assert (len(whole["e820"]), whole["more"]) == (MAX_ENTRIES, 0)
    more = page._subject(Subject(machine(MAX_ENTRIES + 2), ()), [])
    assert (len(more["e820"]), more["more"]) == (MAX_ENTRIES, 2)
    assert "Initrd" not in dict(page._facts(machine(1)))
    with_initrd = dict(page._facts(machine(20, initrd=(4 * MIB, 5 * MIB))))
    assert with_initrd["Initrd"] == "0x400000-0x500000"
    assert page._names(None, "allocator") == []


def test_a_ruler_names_what_it_has_room_for() -> None:
    """Names are whole and in order, with blanks between them, however narrow the strip is."""
    names = [words for _, words in LINES]
    for one, most in ((machine(20), names[:2]), (bundled("lenovo-x230-8g"), names)):
        for width in range(1, 120):
            line = ruler(one, width)
            assert len(line) == width
            there = line.split()
            assert there == [name for name in most if name in there]
            scale = Scale(max(one.map_limit, one.memory_map.ram_pages().end), width)
            for address, name in LINES[: len(most)]:
                place = int(scale(address))
                covered = place and not line[place - 1 : place + len(name)].isspace()
                assert name in there or covered or place + len(name) > width
        assert there == most
