"""Which predicted line stands for which printed one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from paravirt_mm.sources.bootlog.facts import (
    BrkTable,
    Fact,
    MappedRange,
    PageRange,
    Reservation,
    TableBlock,
    WritableRange,
)

Pair = tuple[Fact | None, Fact | None]
"""A printed line and a predicted one; None: there is no such line."""


def key(fact: Fact | None) -> tuple[object, ...]:
    """Return what must be equal of a line; a block's place, and what is left of it, are looked at
    on their own. No line is equal to no other.
    """
    if isinstance(fact, MappedRange):
        return "range", fact.span
    if isinstance(fact, PageRange):
        return "page", fact.start, fact.end, fact.page
    if isinstance(fact, TableBlock):
        return "block", fact.up_to, fact.end - fact.start
    if isinstance(fact, WritableRange):
        return "writable", fact.end
    if isinstance(fact, BrkTable | Reservation):
        return type(fact).__name__, fact.start, fact.end
    return (fact,)


def aligned(printed: Sequence[Fact], predicted: Sequence[Fact]) -> Iterator[Pair]:
    """Pair the lines up as a diff does; what differs in one place is paired in order."""
    matcher = SequenceMatcher(
        None, [key(fact) for fact in printed], [key(fact) for fact in predicted], autojunk=False
    )
    for _, low, high, other_low, other_high in matcher.get_opcodes():
        left: list[Fact | None] = list(printed[low:high])
        right: list[Fact | None] = list(predicted[other_low:other_high])
        while left and right:
            # Only lines of one kind speak of the same thing.
            if type(left[0]) is type(right[0]):
                yield left.pop(0), right.pop(0)
            elif len(left) >= len(right):
                yield left.pop(0), None
            else:
                yield None, right.pop(0)
        yield from ((fact, None) for fact in left)
        yield from ((None, fact) for fact in right)


def tail_of_brk(pairs: Sequence[Pair]) -> int:
    """Return the index after the last pair that is not merely a printed BRK line."""
    index = len(pairs)
    while index and isinstance(pairs[index - 1][0], BrkTable) and pairs[index - 1][1] is None:
        index -= 1
    return index
