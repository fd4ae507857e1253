"""The answers that real Xen 4.17.7 gave to hand-made experiments, one row each."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from paravirt_mm_xen.mmu.codes import EBUSY, EINVAL, ENOSYS, OK, PF_WRITE_PROTECTED
from paravirt_mm_xen.mmu.entries import PSE, XEN_FRAME
from paravirt_mm_xen.traces.guest import TraceGuest

RO, RW = 0x65, 0x67
NO_SUCH_FRAME = 0xFFFFFFF
TABLE, DATA, OTHER, CHILD = 0, 1, 2, 3

Script = Callable[[TraceGuest], list[int]]


def ro(g: TraceGuest, page: int) -> int:
    return g.update_va_mapping(page, page, RO)


def rw(g: TraceGuest, page: int) -> int:
    return g.update_va_mapping(page, page, RW)


def pinned_l1(g: TraceGuest) -> TraceGuest:
    assert [ro(g, TABLE), g.pin(1, TABLE)] == [OK, OK]
    return g


def ready_l4(g: TraceGuest) -> TraceGuest:
    """A valid L4 that maps the kernel, read-only, not pinned."""
    assert [g.copy_kernel_slots(TABLE), ro(g, TABLE)] == [OK, OK]
    return g


def raw_update(g: TraceGuest, index: int, value: int, offset: int = 0) -> int:
    return g.hypervisor.mmu_update((g.mfn(TABLE) << 12) + index * 8 + offset, value)


def pin_l2_with(g: TraceGuest, flags: int, child_read_only: bool) -> list[int]:
    g.write(TABLE, 0, CHILD, flags)
    ro(g, TABLE)
    if child_read_only:
        ro(g, CHILD)
    return [g.pin(2, TABLE), g.type(CHILD)]


def l3_entry_to_read_only(g: TraceGuest) -> list[int]:
    ro(g, TABLE)
    ro(g, CHILD)
    return [g.pin(3, TABLE), g.mmu_update(TABLE, 0, CHILD, RW, False), g.type(CHILD)]


def life_of_an_l4(g: TraceGuest) -> list[int]:
    g.copy_kernel_slots(TABLE)
    answers = [g.pin(4, TABLE), ro(g, TABLE), g.pin(4, TABLE), g.new_baseptr(TABLE)]
    return [*answers, g.unpin(TABLE), rw(g, TABLE), g.boot_baseptr(), rw(g, TABLE)]


def junk_in_xen_slot(g: TraceGuest) -> list[int]:
    g.store(TABLE, 256, OTHER, RW)
    g.store(TABLE, 258, OTHER, RW)
    ro(g, TABLE)
    return [g.pin(4, TABLE), g.read(TABLE, 256), g.read(TABLE, 258) >> 12, raw_update(g, 256, 0)]


MEASURED: dict[str, tuple[Script, list[int]]] = {
    "pin L1 mapped RW": (lambda g: [g.pin(1, TABLE)], [EINVAL]),
    "RO then pin L1": (lambda g: [ro(g, TABLE), g.pin(1, TABLE), g.type(TABLE)], [OK, OK, 9]),
    "pin again, pin as L2": (
        lambda g: [(p := pinned_l1(g)).pin(1, TABLE), p.pin(2, TABLE)],
        [EINVAL, EINVAL],
    ),
    "pinned table mapped RW": (
        lambda g: [rw(pinned_l1(g), TABLE), g.update_va_mapping(OTHER, TABLE, RW)],
        [EBUSY, EBUSY],
    ),
    "pinned table mapped RO elsewhere": (
        lambda g: [pinned_l1(g).update_va_mapping(OTHER, TABLE, RO)],
        [OK],
    ),
    "store of a valid entry to a pinned L1": (
        lambda g: [pinned_l1(g).write(TABLE, 6, DATA, RW), g.hypervisor.counters.emulated_stores],
        [OK, 1],
    ),
    "store of a RW self-map to a pinned L1": (
        lambda g: [pinned_l1(g).write(TABLE, 7, TABLE, RW), g.read(TABLE, 7)],
        [PF_WRITE_PROTECTED, 0],
    ),
    "unaligned store to a pinned L1": (
        lambda g: [pinned_l1(g).hypervisor.store(g.va(TABLE) + 19 * 8 + 4, 0)],
        [PF_WRITE_PROTECTED],
    ),
    "mmu_update RW self-map": (
        lambda g: [pinned_l1(g).mmu_update(TABLE, 10, TABLE, RW, False)],
        [EBUSY],
    ),
    "mmu_update RO self-map": (
        lambda g: [pinned_l1(g).mmu_update(TABLE, 10, TABLE, RO, False)],
        [OK],
    ),
    "mmu_update frame of Xen": (
        lambda g: [
            raw_update(pinned_l1(g), 16, XEN_FRAME << 12 | RW),
            raw_update(g, 16, XEN_FRAME << 12 | RO),
        ],
        [EBUSY, EBUSY],
    ),
    "mmu_update pointer + 4": (lambda g: [raw_update(pinned_l1(g), 17, 0, offset=4)], [ENOSYS]),
    "unpin, again, RW": (
        lambda g: [pinned_l1(g).unpin(TABLE), g.unpin(TABLE), rw(g, TABLE)],
        [OK, EINVAL, OK],
    ),
    "life of an L4": (life_of_an_l4, [EINVAL, OK, OK, OK, OK, EBUSY, OK, OK]),
    "load an L4 that was never pinned": (
        lambda g: [ready_l4(g).new_baseptr(TABLE), g.type(TABLE)],
        [OK, 4],
    ),
    "load a page mapped RW": (
        lambda g: [g.copy_kernel_slots(TABLE), g.new_baseptr(TABLE)],
        [OK, EINVAL],
    ),
    "load an L4 with a bad child": (
        lambda g: [g.write(TABLE, 3, CHILD, RW), ready_l4(g).new_baseptr(TABLE)],
        [OK, EINVAL],
    ),
    "load no such frame": (lambda g: [g.hypervisor.new_baseptr(NO_SUCH_FRAME)], [EINVAL]),
    "Xen's L4 slots": (junk_in_xen_slot, [OK, 0, TABLE, EINVAL]),
    "L2 with a 2M page": (lambda g: pin_l2_with(g, RW | PSE, True), [EINVAL, 0]),
    "L3 with a 1G page": (
        lambda g: [g.write(TABLE, 0, CHILD, RW | PSE), ro(g, TABLE), g.pin(3, TABLE)],
        [OK, OK, EINVAL],
    ),
    "L2 with a child mapped RW": (lambda g: pin_l2_with(g, RW, False), [EINVAL, 0]),
    "L2 with a child mapped RO": (lambda g: pin_l2_with(g, RW, True), [OK, 1]),
    "L3 entry to an RO page": (l3_entry_to_read_only, [OK, OK, 2]),
    "update_va_mapping without an L1": (
        lambda g: [g.hypervisor.update_va_mapping(0x1000, g.mfn(DATA) << 12 | RW)],
        [EINVAL],
    ),
    "update_va_mapping in Xen's range": (
        lambda g: [g.hypervisor.update_va_mapping(0xFFFF_8000_0000_0000, 0)],
        [EINVAL],
    ),
    "store to a pinned L2": (
        lambda g: [ro(g, TABLE), g.pin(2, TABLE), g.write(TABLE, 0, DATA, 0)],
        [OK, OK, PF_WRITE_PROTECTED],
    ),
    "store to an RO page without a type": (
        lambda g: [ro(g, TABLE), g.write(TABLE, 1, DATA, RW)],
        [OK, PF_WRITE_PROTECTED],
    ),
    "mmu_update of an ordinary page": (
        lambda g: [g.mmu_update(DATA, 1, OTHER, RW, False), g.read(DATA, 1)],
        [OK, OTHER << 12 | RW],
    ),
    "unknown mmuext command": (lambda g: [g.hypervisor.mmuext_op(99, g.mfn(TABLE))], [ENOSYS]),
    "pin the loaded boot tables again": (
        lambda g: [g.hypervisor.pin(level, g.hypervisor.baseptr or 0) for level in (1, 4)],
        [EINVAL, EINVAL],
    ),
}


@pytest.mark.parametrize(("script", "expected"), MEASURED.values(), ids=MEASURED.keys())
def test_answers_like_real_xen(script: Script, expected: list[int]) -> None:
    assert script(TraceGuest(8)) == expected


def test_the_example_in_the_docs_does_what_it_says() -> None:
    text = (Path(__file__).parents[3] / "docs/xen-pv-paging.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert example
    names: dict[str, object] = {}
    lines = example[1].splitlines()
    for statement in ast.parse(example[1]).body:
        code = ast.unparse(statement)
        comment = lines[(statement.end_lineno or 0) - 1].partition("#")[2]
        answer = re.match(r" (-?\d+)", comment)
        if answer:
            assert eval(code, names) == int(answer[1]), code  # noqa: S307 - our own docs
        else:
            exec(code, names)  # noqa: S102 - our own docs
