"""Shrinking, with failures that are known exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

import pytest

from paravirt_mm_xen.live import session
from paravirt_mm_xen.traces import shrink as shrinking
from paravirt_mm_xen.traces.format import Operation, OperationTrace, check
from paravirt_mm_xen.traces.generators import make
from paravirt_mm_xen.traces.shrink import compact, shrink


class Oracle:
    """Counts rounds; a trace fails where ``fails(operations up to here)`` first holds."""

    def __init__(self, fails: Callable[[Sequence[Operation]], bool]) -> None:
        self.fails = fails
        self.rounds = 0
        self.widest = 0

    def __call__(self, traces: Sequence[OperationTrace]) -> list[int | None]:
        self.rounds += 1
        self.widest = max(self.widest, sum(len(trace.ops) for trace in traces))
        return [self.first(check(trace)) for trace in traces]

    def first(self, trace: OperationTrace) -> int | None:
        return next((i for i in range(len(trace.ops)) if self.fails(trace.ops[: i + 1])), None)


def ends_with_double_pin(operations: Sequence[Operation]) -> bool:
    """A page is pinned as any level, and pinned again as L4 later on."""
    last = operations[-1]
    return last[:2] == ("pin", 4) and any(
        op[0] == "pin" and op[2] == last[2] for op in operations[:-1]
    )


FAILING = list(
    islice(
        (
            trace
            for trace in (make("uniform", 11, number) for number in range(300))
            if Oracle(ends_with_double_pin).first(trace) is not None
        ),
        5,
    )
)


@pytest.mark.parametrize("trace", FAILING, ids=lambda trace: trace.name)
def test_a_random_trace_shrinks_to_the_two_operations_that_matter(trace: OperationTrace) -> None:
    oracle = Oracle(ends_with_double_pin)
    found = shrink(trace, oracle)
    assert found.minimal
    first, second = found.trace.ops
    assert (first[0], second[:2]) == ("pin", ("pin", 4))
    assert found.trace.pages == 1
    assert found.rounds == oracle.rounds <= 8
    assert found.trace.name == f"{trace.name}-shrunk"


def test_shrinking_is_repeatable() -> None:
    assert shrink(FAILING[0], Oracle(ends_with_double_pin)) == shrink(
        FAILING[0], Oracle(ends_with_double_pin)
    )


def test_what_cannot_be_left_out_stays_in_order() -> None:
    needed = [("unpin", 3), ("pin", 2, 1), ("unpin", 3), ("type", 0)]
    noise: list[Operation] = [("read", page % 4, 7) for page in range(10)]
    operations = [step for op in needed for step in (*noise, op)]

    def fails(seen: Sequence[Operation]) -> bool:
        kept = [op[0] for op in seen if op[0] != "read"]
        return kept == ["unpin", "pin", "unpin", "type"] and seen[-1][0] == "type"

    found = shrink(OperationTrace("t", 4, tuple(operations)), Oracle(fails))
    assert found.trace.ops == (("unpin", 0), ("pin", 2, 1), ("unpin", 0), ("type", 2))


def test_batches_and_fields_are_simplified() -> None:
    batch = (
        "mmu_update_batch",
        ((0, 3, 1, 0x67, True), (2, 300, 1, 0x65, True), (3, 1, 1, 0x67, False)),
    )

    def fails(seen: Sequence[Operation]) -> bool:
        return seen[-1][0] == "mmu_update_batch" and any(u[3] == 0x65 for u in seen[-1][1])

    found = shrink(OperationTrace("t", 4, (("unpin", 2), batch)), Oracle(fails))
    assert found.trace.ops == (("mmu_update_batch", ((0, 300, 1, 0x65, True),)),)
    update = OperationTrace("t", 4, (("mmu_update", 3, 300, 2, 0x65, True),))
    found = shrink(update, Oracle(lambda seen: seen[-1][0] == "mmu_update"))
    assert found.trace.ops == (("mmu_update", 0, 0, 1, 0x65, False),)


def test_page_numbers_that_matter_are_kept() -> None:
    operations = tuple(("unpin", page) for page in (5, 6, 7))
    found = shrink(
        OperationTrace("t", 8, operations), Oracle(lambda seen: seen[-1] == ("unpin", 7))
    )
    assert found.trace.pages == 8
    assert found.trace.ops[-1] == ("unpin", 7)


def test_a_trace_that_names_no_page_has_one() -> None:
    for operations, pages in (
        ([("boot_baseptr",)], 1),
        ([("unpin", 7)], 1),
        ([("copy_page", 5, 3)], 2),
    ):
        trace = compact("t", operations)
        assert check(trace).pages == pages


@pytest.mark.slow
def test_a_long_trace_is_shrunk_within_what_a_boot_holds() -> None:
    operations = [("unpin", i % 500) for i in range(1_300)]  # too many for random subsets
    operations[123], operations[1_250] = ("type", 17), ("type", 18)

    def fails(seen: Sequence[Operation]) -> bool:
        return seen[-1][0] == "type" and any(op[0] == "type" for op in seen[:-1])

    class Fast(Oracle):
        def first(self, trace: OperationTrace) -> int | None:
            types = [i for i, op in enumerate(trace.ops) if op[0] == "type"]
            return types[1] if len(types) > 1 else None

    oracle = Fast(fails)
    found = shrink(OperationTrace("t", 500, tuple(operations)), oracle)
    assert found.minimal
    assert found.trace.ops == (("type", 0), ("type", 1))
    assert oracle.widest < 500_000


def unpins(count: int) -> OperationTrace:
    return OperationTrace("t", count + 1, tuple(("unpin", page) for page in range(count + 1)))


@pytest.mark.parametrize("count", [0, 1, 2, 5, 10])
def test_every_part_of_a_short_trace_is_tried(count: int) -> None:
    """Up to ten operations before the one that fails: all choices of them but the whole."""
    trace = unpins(count)
    kept = list(shrinking._kept(trace))
    assert {part[-1] for part in kept} <= {trace.ops[-1]}
    assert all(list(part) == sorted(part) for part in kept)
    assert len(set(kept)) == 2**count - 1
    assert trace.ops not in kept


def test_parts_of_a_longer_trace_are_drawn() -> None:
    """60 of each share, from one in twenty to four in five, after chunks left out; the same ones
    each time. Of more than a thousand operations chunks only.
    """
    trace = unpins(128)
    kept = list(shrinking._kept(trace))
    assert list(shrinking._kept(trace)) == kept
    whole = [len(part) - 1 for part in kept[: 2 * 128 - 1]]
    assert [128 - size for size in whole] == [
        size for k in range(8) for size in [128 >> k] * (1 << k)
    ]
    drawn = [len(part) - 1 for part in kept[255:]]
    assert len(drawn) == 7 * 60
    shares = [sum(drawn[n * 60 : n * 60 + 60]) / 60 / 128 for n in range(7)]
    assert shares == pytest.approx([0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8], abs=0.02)
    assert len(set(shrinking._kept(unpins(11)))) < 2**11 - 1
    for count, more in ((11, True), (1000, True), (1001, False)):
        left_out = sum(-(-count // chunk) for chunk in halves(count))
        kept = list(shrinking._kept(unpins(count)))
        assert (len(kept) > left_out) is more
        assert all(part[-1] == ("unpin", count) and len(part) <= count for part in kept)


def test_operations_are_made_simpler_one_by_one() -> None:
    """One field of one operation, or one member of one batch less; all others stay as they are."""
    first, second = ("read", 0, 300), ("mmu_update", 1, 7, 0, 0x67, True)
    batch = ("mmuext_batch", (("unpin", 0), ("unpin", 1)))
    trace = OperationTrace("t", 2, (first, second, batch))
    whole = [each.ops for each in shrinking._candidates(trace) if len(each.ops) == 3]
    assert whole == [
        (("read", 0, 0), second, batch),
        (first, ("mmu_update", 1, 0, 0, 0x67, True), batch),
        (first, ("mmu_update", 1, 7, 0, 0x67, False), batch),
        (first, second, ("mmuext_batch", (("unpin", 1),))),
        (first, second, ("mmuext_batch", (("unpin", 0),))),
    ]
    assert list(shrinking._simpler(("mmuext_batch", (("unpin", 0),)))) == []


def test_what_is_simpler() -> None:
    """Fewer operations and members; then fewer pages; then smaller fields, the first one too."""
    flush, pin = ("tlb_flush", "all"), ("pin", 1, 0)
    ascending = [
        OperationTrace("t", 9, (pin,)), OperationTrace("t", 9, (("pin", 4, 0),)),
        OperationTrace("t", 9, (("pin", 4, 8),)),
        OperationTrace("t", 1, (pin, flush)), OperationTrace("t", 2, (pin, flush)),
        OperationTrace("t", 1, (("mmuext_batch", (flush, flush)),)),
        OperationTrace("t", 1, (("mmuext_batch", (flush, pin)),)),
        OperationTrace("t", 1, (pin, ("mmuext_batch", (flush, flush)))),
    ]  # fmt: skip
    sizes = [shrinking._size(trace) for trace in ascending]
    assert sizes[:5] == sorted(set(sizes[:5]))
    assert sizes[5:] == sorted(set(sizes[5:]))
    assert sizes[3] < sizes[5]


def test_pages_of_a_minimal_trace_are_numbered_afresh() -> None:
    found = shrink(OperationTrace("t", 8, (("unpin", 5),)), Oracle(lambda _: True))
    assert (found.trace.pages, found.trace.ops) == (1, (("unpin", 0),))


def test_a_round_fits_a_boot() -> None:
    assert shrinking._ROUND_PAGES == session.BOOT_PAGES
    assert shrinking._ROUND_OPERATIONS == 400_000 < session.BOOT_OPERATIONS


def halves(count: int) -> list[int]:
    return [count >> k for k in range(count.bit_length())]


def test_a_boot_holds_what_it_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates in turn until operations or pages fill it; one at least, however large."""
    sizes = [3, 2, 4, 1, 9]
    for room in range(1, 22):
        for limits in ((room, 100), (100, room)):  # unpins() has as many operations as pages
            monkeypatch.setattr(shrinking, "_ROUND_OPERATIONS", limits[0])
            monkeypatch.setattr(shrinking, "_ROUND_PAGES", limits[1])
            taken = len(shrinking._take(iter([unpins(size - 1) for size in sizes])))
            assert sum(sizes[: taken - 1]) < room
            assert taken == len(sizes) or sum(sizes[:taken]) >= room
    assert shrinking._take(iter(())) == []


def test_rounds_are_limited() -> None:
    found = shrink(FAILING[0], Oracle(ends_with_double_pin), max_rounds=2)
    assert not found.minimal
    assert found.rounds == 2
    assert Oracle(ends_with_double_pin).first(found.trace) == len(found.trace.ops) - 1


def test_forty_rounds_are_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each round leaves one operation out."""
    monkeypatch.setattr(shrinking, "_SAMPLES", 0)
    sizes = iter(range(60, 0, -1))

    def failures(traces: Sequence[OperationTrace]) -> list[int | None]:
        size = next(sizes)
        return [size - 1 if len(trace.ops) == size else None for trace in traces]

    found = shrink(unpins(59), failures)
    assert (found.rounds, len(found.trace.ops), found.minimal) == (40, 21, False)


def test_a_trace_that_does_not_fail_is_refused() -> None:
    with pytest.raises(ValueError, match="t does not fail"):
        shrink(OperationTrace("t", 1, (("unpin", 0),)), Oracle(lambda seen: False))


def test_compact_renumbers_pages_everywhere_and_nothing_else() -> None:
    trace = compact(
        "t",
        [
            ("mmu_update_batch", ((9, 300, 4, 0x67, True),)),
            ("mmuext_batch", (("pin", 4, 9), ("tlb_flush", "all"), ("new_baseptr", 7))),
            ("new_user_baseptr", None),
            ("probe", 9 << 12, "read"),
            ("copy_page", 4, 11),
        ],
    )
    assert trace == OperationTrace(
        "t",
        4,
        (
            ("mmu_update_batch", ((0, 300, 1, 0x67, True),)),
            ("mmuext_batch", (("pin", 4, 0), ("tlb_flush", "all"), ("new_baseptr", 2))),
            ("new_user_baseptr", None),
            ("probe", 9 << 12, "read"),
            ("copy_page", 1, 3),
        ),
    )
