"""The trace format: what is accepted, and that what is not is named."""

from __future__ import annotations

import json

import pytest

from paravirt_mm.errors import InputError
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
        (["mmu_update", 1, 2, 3, 0x1067, False], "overlap the frame number"),
        (["mmu_update", 1, 2, 3, 0x67, 1], "1 is not true or false"),
        (["probe", 1 << 64, "read"], "address"),
        (["probe", 0, "execute"], "'execute' is not"),
        (["tlb_flush", "some"], "'some' is not one of"),
        (["frobnicate", 1], "no such operation"),
        ([["pin"], 1], "no such operation"),
        (["mmu_update_batch", []], "1..1024 members"),
        (["mmu_update_batch", [[1, 2]]], "has 2 fields, not 5"),
        (["mmuext_batch", [["write", 1, 2, 3, 0]]], "may not be a member"),
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
