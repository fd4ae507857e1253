"""The page-status ledger against a dictionary of single pages."""

from __future__ import annotations

from hypothesis import given, strategies as st

from paravirt_mm import PageRun
from paravirt_mm.engine.ledger import Ledger

PAGES = 30
span = st.tuples(st.integers(0, PAGES), st.integers(0, PAGES)).map(lambda s: (min(s), max(s)))
changes = st.lists(st.tuples(span, st.booleans()), max_size=25)


@given(st.lists(span, max_size=3), changes, span)
def test_flips_are_counted_page_by_page(
    boot: list[tuple[int, int]],
    ops: list[tuple[tuple[int, int], bool]],
    at: tuple[int, int],
) -> None:
    """A flip is a change of one page, in either direction; being read-only since boot is none."""
    ledger = Ledger(boot)
    readonly = {page for low, high in boot for page in range(low, high)}
    flips: dict[int, int] = {}
    for (low, high), to_readonly in ops:
        flipped = 0
        for page in range(low, high):
            if (page in readonly) is not to_readonly:
                flipped += 1
                flips[page] = flips.get(page, 0) + 1
                (readonly.add if to_readonly else readonly.discard)(page)
        seen = ledger.set_readonly(low, high, readonly=to_readonly)
        assert sum(last - first for first, last in seen) == flipped
    status = {p: s for low, high, s in ledger for p in range(low, high)}
    assert {p for p, s in status.items() if s.readonly} == readonly
    assert {p: s.flips for p, s in status.items() if s.flips} == flips
    low, high = at
    seen = {p for first, last in ledger.readonly(low, high) for p in range(first, last)}
    assert seen == readonly & set(range(low, high))
    assert ledger.is_readonly([PageRun(low, high - low)]) is (set(range(low, high)) <= readonly)


def test_unknown_pages_are_writable() -> None:
    assert not Ledger().is_readonly([PageRun(5, 1)])
    assert list(Ledger().readonly(0, 100)) == []
    assert Ledger().is_readonly([])
