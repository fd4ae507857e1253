"""Sentences of made-up sums, word for word: who guesses, who is worst and best, who gives up."""

from __future__ import annotations

from typing import Any

import pytest

from paravirt_mm import Outcome
from paravirt_mm.report.summary import Total
from paravirt_mm.view.sentences import sentences


def total(allocator: str, backend: str = "xen", **given: Any) -> Total:
    values = {
        "ends": {Outcome.OK: 2}, "machines": 2, "reserved": 0, "waste": 0, "tables": 100,
        "flips": 0, "flips_wasted": 0, "hypercalls": 0, "below_16m": 0,
    }  # fmt: skip
    return Total(allocator, backend, **{**values, **given})


def said(*totals: Total) -> dict[str, str]:
    told = sentences(totals)
    assert [str(one) for one in told] == [f"{one.about}: {one.text}" for one in told]
    return {one.about: one.text for one in told}


def test_nothing_to_say_of_guesses_status_and_low_memory() -> None:
    assert said(total("hpa"), total("hpa", "native")) == {
        "Guessing": "no allocator set pages aside before it needed them.",
        "Page status": "no page changes its status under any platform compared here.",
        "Low memory": (
            "no allocator put a table below 16M; every scenario that the platform accepts came to "
            "a good end."
        ),
    }


def test_no_machine_no_sums() -> None:
    assert said(total("hpa", machines=0)) == {
        "Nothing to add up": (
            "no machine lets every scenario come to a good end, so no sums can be compared."
        ),
    }
    assert len(said(total("hpa", machines=0), total("other"))) == 3


def test_the_worst_guess_of_each_platform_is_told() -> None:
    """By the share that is wasted, then by how much; who guesses nowhere is who knows."""
    found = said(
        total("old", "native", reserved=1001, waste=1000),
        total("new", "native", reserved=10, waste=9),
        total("hpa", "native"),
        total("old", "xen", reserved=2000, waste=500),
        total("new", "xen", reserved=4, waste=1),
        total("hpa", "xen"),
    )
    assert found["Guessing"] == (
        "old set 1,001 pages aside for tables under native and needed 1, "
        "old set 2,000 pages aside for tables under xen and needed 1,500; hpa set none aside."
    )
    found = said(total("a", reserved=1, waste=1), total("b", reserved=2, waste=0), total("c"),
                 total("d"), total("e"))  # fmt: skip
    assert found["Guessing"] == (
        "a set 1 page aside for tables under xen and needed 0; the 3 that do not guess set none "
        "aside."
    )
    alone = said(total("a", reserved=5, waste=2), total("a", "native"))
    assert alone["Guessing"] == "a set 5 pages aside for tables under xen and needed 3."


def test_status_is_told_of_the_worst_and_the_best() -> None:
    """Per table, not in all; of those who are equally good one who knows."""
    found = said(
        total("old", flips=300, flips_wasted=200, tables=100),
        total("lazy", flips=1000, tables=1000),
        total("hpa", flips=1000, tables=1000),
        total("old", "native", reserved=7),
        total("lazy", "native", reserved=8),
        total("hpa", "native"),
        total("hpa", "bare"),
    )
    assert found["Page status"] == (
        "under xen old changed pages 300 times for 100 tables, 200 times for nothing; hpa changed "
        "1.00 a table, none for nothing; under native and bare none changes."
    )
    both = said(total("a", flips=2, flips_wasted=1, tables=1), total("b", flips=1, flips_wasted=1))
    assert both["Page status"] == (
        "under xen a changed pages 2 times for 1 table, 1 time for nothing; b changed 0.01 a table."
    )
    one = said(total("a", flips=5, tables=5))
    assert one["Page status"] == "under xen a changed pages 5 times for 5 tables."
    none = said(total("a", flips=5, tables=0), total("b", flips=1, tables=2))
    assert none["Page status"] == (
        "under xen b changed pages 1 time for 2 tables; a changed 0.00 a table, none for nothing."
    )


def test_low_memory_is_told_of_the_most_and_of_the_others() -> None:
    """If a guesser took the most, of those who know, or else of those who guess, there."""
    guess = {"reserved": 9, "waste": 1}
    found = said(
        total("old", below_16m=8192, **guess), total("hpa", below_16m=4096), total("b"),
        total("c", below_16m=2048), total("hpa", "native", below_16m=8000),
    )  # fmt: skip
    assert found["Low memory"].startswith(
        "old under xen put up to 8K of tables below 16M (the 3 that do not guess: up to 4K); every"
    )
    found = said(total("old", **guess), total("new", **guess), total("hpa", below_16m=4096))
    assert found["Low memory"].startswith(
        "hpa under xen put up to 4K of tables below 16M (old and new: none); every scenario"
    )
    found = said(total("a", below_16m=1024), total("b", below_16m=4096))
    assert found["Low memory"].startswith("b under xen put up to 4K of tables below 16M; every")


@pytest.mark.parametrize(
    ("ends", "says"),
    [
        ({Outcome.PANIC: 1}, "; a under xen gives up on 1 machine."),
        ({Outcome.PANIC: 1, Outcome.ERROR: 1}, "; a under xen gives up on 2 machines."),
        ({Outcome.REJECTED: 3}, "came to a good end."),
    ],
)
def test_who_gives_up_is_named(ends: dict[Outcome, int], says: str) -> None:
    told = said(total("a", ends={Outcome.OK: 1, **ends}), total("b"))
    assert told["Low memory"].endswith(says)
    both = said(total("a", ends={Outcome.PANIC: 1}), total("b", ends={Outcome.PANIC: 2}))
    assert both["Low memory"].endswith(
        "; a under xen gives up on 1 machine and b under xen gives up on 2 machines."
    )
