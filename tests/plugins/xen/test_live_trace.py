"""The trace format: what is accepted, and that what is not is named."""

from __future__ import annotations

import json

import pytest

from paravirt_mm.errors import InputError
from paravirt_mm_xen.traces import format as format_
from paravirt_mm_xen.traces.format import MAX_PAGES, SHAPES, OperationTrace, check

VALID = [
    ["pin", 4, 7],
    ["unpin", 0],
    ["update_va_mapping", 1, 2, 0x67],
    ["mmu_update", 3, 511, 2, 1 << 63 | 0x65, True],
    ["write", 3, 0, 2, 0],
    ["new_baseptr", 1],
    ["boot_baseptr"],
    ["copy_kernel_slots", 1],
    ["type", 1],
    ["read", 1, 300],
    ["store", 1, 511, 2, 0x67],
    ["store_value", 1, 8, (1 << 64) - 1],
    ["update_va", 0xFFFF880000000000, 1, 0x67],
    ["probe", 0xFFFF880000000000, "write"],
    ["new_user_baseptr", None],
    ["tlb_flush", "all"],
    ["clear_page", 1],
    ["copy_page", 1, 2],
    ["mmu_update_device", 1, 2, "io_apic", 0x67],
    ["assist", "m2p_strict", True],
    ["mmu_update_batch", [[1, 2, 3, 0x65, False], [1, 3, 0, 0, True]]],
    ["mmuext_batch", [["pin", 4, 1], ["new_baseptr", 1]]],
    ["multicall", [["update_va_mapping", 1, 1, 0x65], ["pin", 1, 1]]],
]


def tuples(value: object) -> object:
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def trace_of(operations: list[object]) -> OperationTrace:
    return OperationTrace("here", 8, tuples(operations))  # type: ignore[arg-type]


def test_every_operation_has_a_valid_example() -> None:
    assert {operation[0] for operation in VALID} == set(SHAPES)
    trace = trace_of(list(VALID))
    assert check(trace) is trace


def test_a_trace_is_one_line_of_json() -> None:
    trace = trace_of(list(VALID))
    assert json.loads(trace.to_json()) == {"id": "here", "pages": 8, "ops": VALID}
    answers = range(len(VALID))
    assert json.loads(trace.to_json(answers))["rc"] == list(answers)
    assert "xen" not in json.loads(trace.to_json(answers))
    assert json.loads(trace.to_json(answers, "4.17.5"))["xen"] == "4.17.5"
    assert "\n" not in trace.to_json()


@pytest.mark.parametrize(
    ("operation", "says"),
    [
        (["pin", 5, 0], "level 5 is not in 1..4"),
        (["pin", True, 0], "level True is not"),
        (["pin", 1, 8], "page 8 is not in 0..7"),
        (["pin", 1, -1], "page -1"),
        (["pin", 1, 1.0], "page 1.0"),
        (["pin", 1], "has 1 fields, not 2"),
        (["read", 1, 512], "index 512 is not in 0..511"),
        (["read", 1, 10**90], f"index 1{'0' * 39} is not in 0..511"),
        (["x" * 300], f"operation 1, ('{'x' * 198}: no such operation"),
        (["mmu_update", 1, 2, 3, 0x1067, False], "overlap the frame number"),
        (["mmu_update", 1, 2, 3, 0x67, 1], "1 is not true or false"),
        (["probe", 1 << 64, "read"], "address"),
        (["probe", 0, "execute"], "'execute' is not"),
        (["tlb_flush", "some"], "'some' is not one of"),
        (["frobnicate", 1], "no such operation"),
        ([["pin"], 1], "no such operation"),
        (["mmu_update_batch", []], "1..1024 members"),
        (["multicall", 7], "1..1024 members"),
        (["multicall", ["x" * 90]], f"member {'x' * 90!r} is not a list"),
        (["multicall", [["x" * 90]]], f"member {str(('x' * 90,))[:80]}: no such operation"),
        (["mmu_update_batch", [[1, 2]]], "has 2 fields, not 5"),
        (["mmuext_batch", [["write", 1, 2, 3, 0]]], "only new_baseptr, pin, tlb_flush, unpin)"),
        (["multicall", [["new_baseptr", 1]]], "may not be a member"),
        (["multicall", [["multicall", []]]], "may not be a member"),
        (["mmuext_batch", [["tlb_flush", "all"]] * 1025], "1..1024 members"),
    ],
)
def test_a_malformed_operation_is_named(operation: list[object], says: str) -> None:
    with pytest.raises(InputError, match=r"^here: operation 1, ") as error:
        check(trace_of([["unpin", 0], operation]))
    assert says in str(error.value)


@pytest.mark.parametrize("pages", [0, -1, MAX_PAGES + 1, True, "8", None, 8.0])
def test_the_number_of_pages_is_bounded(pages: object) -> None:
    with pytest.raises(InputError, match=r"^here: pages is "):
        check(OperationTrace("here", pages, ()))  # type: ignore[arg-type]


def test_the_largest_trace_is_accepted() -> None:
    check(OperationTrace("here", MAX_PAGES, (("unpin", MAX_PAGES - 1),)))


def accepted(*operation: object) -> bool:
    try:
        check(trace_of([list(operation)]))
    except InputError:
        return False
    return True


@pytest.mark.parametrize(
    ("operation", "place", "low", "high"),
    [
        (["pin", 1, 0], 1, 1, 4),
        (["pin", 1, 0], 2, 0, 7),
        (["update_va_mapping", 0, 0, 0], 2, 0, 7),
        (["new_user_baseptr", 0], 1, 0, 7),
        (["read", 0, 0], 2, 0, 511),
        (["store_value", 0, 0, 0], 3, 0, (1 << 64) - 1),
        (["update_va", 0, 0, 0], 1, 0, (1 << 64) - 1),
    ],
)
def test_both_ends_of_each_number(operation: list[object], place: int, low: int, high: int) -> None:
    for value, good in ((low, True), (high, True), (low - 1, False), (high + 1, False)):
        assert accepted(*operation[:place], value, *operation[place + 1 :]) is good, value


def test_flags_are_what_is_no_frame() -> None:
    """Bits 12 to 45 are the frame's: 16 TiB of a release build; those above may be tried."""
    taken = [bit for bit in range(64) if not accepted("write", 0, 0, 0, 1 << bit)]
    assert taken == list(range(12, 46))


def test_as_many_members_and_operations_as_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    flush = ["tlb_flush", "all"]
    assert [accepted("multicall", [flush] * count) for count in (1, 1024, 1025)] == [
        True, True, False
    ]  # fmt: skip
    assert (format_.MAX_OPERATIONS, MAX_PAGES) == (1 << 22, 1 << 20)
    monkeypatch.setattr(format_, "MAX_OPERATIONS", 3)
    check(trace_of([["boot_baseptr"]] * 3))
    with pytest.raises(InputError, match="more than 3 operations"):
        check(trace_of([["boot_baseptr"]] * 4))


def test_numbers_behind_names() -> None:
    """Public xen.h: MMUEXT_TLB_FLUSH_LOCAL and so on, VMASST_TYPE_*; devices of every PC."""
    assert format_.FLUSHES == {"local": 6, "local_page": 7, "all": 10, "all_page": 11}
    assert format_.ASSISTS == {"writable_pagetables": 2, "m2p_strict": 32}
    assert {name: mfn << 12 for name, mfn in format_.DEVICES.items() if 0 < mfn < 1 << 32} == {
        "vga": 0xB8000, "io_apic": 0xFEC00000, "local_apic": 0xFEE00000
    }  # fmt: skip
    assert format_.DEVICES["invalid"] == (1 << 40) - 1


def test_pages_that_operations_name() -> None:
    for operation, pages in (
        (["pin", 4, 7], {7}),
        (["mmu_update", 3, 5, 2, 0x65, True], {3, 2}),
        (["new_user_baseptr", None], set()),
        (["new_user_baseptr", 0], {0}),
        (["copy_page", 1, 2], {1, 2}),
        (["update_va", 6, 1, 0x67], {1}),
        (["assist", "m2p_strict", True], set()),
        (["mmu_update_batch", [[1, 7, 3, 0x65, False], [4, 3, 0, 0, True]]], {0, 1, 3, 4}),
        (["multicall", [["update_va_mapping", 1, 5, 0x65], ["pin", 2, 6]]], {1, 5, 6}),
    ):
        assert format_.mentioned_pages(trace_of([operation])) == pages
    assert format_.mentioned_pages(trace_of([["unpin", 3], ["unpin", 1], ["unpin", 3]])) == {1, 3}
