"""Batches, multicalls, other operations, counters, and a guest of real size."""

from __future__ import annotations

import pytest

from paravirt_mm_xen.mmu import (
    BootMapping,
    Command,
    Completion,
    Hypervisor,
    MmuextOp,
    MmuUpdate,
    UpdateVaMapping,
)
from paravirt_mm_xen.mmu.codes import EACCES, EBUSY, EINVAL, ENOSYS, EOPNOTSUPP, OK
from paravirt_mm_xen.traces.guest import TraceGuest

RO, RW = 0x65, 0x67
A, B, C, D = range(4)


@pytest.fixture
def g() -> TraceGuest:
    return TraceGuest(12)


def ptr(g: TraceGuest, page: int, index: int) -> int:
    return g.mfn(page) << 12 | index << 3


def value(g: TraceGuest, page: int, flags: int) -> int:
    return g.mfn(page) << 12 | flags


def pinned(g: TraceGuest, level: int, page: int) -> None:
    assert [g.update_va_mapping(page, page, RO), g.pin(level, page)] == [OK, OK]


def test_a_batch_stops_at_the_first_refusal_and_keeps_what_was_done(g: TraceGuest) -> None:
    pinned(g, 1, A)
    updates = [
        (ptr(g, A, 0), value(g, B, RW)),
        (ptr(g, A, 1), value(g, C, RW)),
        (ptr(g, A, 2), value(g, A, RW)),
        (ptr(g, A, 3), value(g, D, RW)),
    ]
    assert g.hypervisor.mmu_update_batch(updates) == Completion(EBUSY, 2)
    assert [bool(g.hypervisor.entry(g.mfn(A), index)) for index in range(4)] == [1, 1, 0, 0]
    assert g.hypervisor.mmu_update_batch(updates[:2]) == Completion(OK, 2)
    assert g.hypervisor.mmu_update_batch([]) == Completion(OK, 0)
    counters = g.hypervisor.counters
    assert (counters.mmu_update, counters.mmu_update_entries) == (3, 5)
    assert (counters.batches, counters.batched_entries) == (2, 6)


def test_what_one_entry_of_a_batch_drops_is_gone_for_the_next(g: TraceGuest) -> None:
    pinned(g, 1, B)
    g.unpin(B)
    pinned(g, 2, A)
    assert g.hypervisor.mmu_update(ptr(g, A, 0), value(g, B, RW)) == OK
    pinned(g, 1, C)
    # The L1 B loses its type with the first entry, so that the second may map it writable.
    batch = [(ptr(g, A, 0), 0), (ptr(g, C, 0), value(g, B, RW))]
    assert g.hypervisor.mmu_update_batch(batch) == Completion(OK, 2)


def test_a_batch_of_operations(g: TraceGuest) -> None:
    g.update_va_mapping(A, A, RO)
    frame = g.mfn(A)
    operations = [
        (Command.PIN_L3_TABLE, frame, 0),
        (Command.TLB_FLUSH_LOCAL, 0, 0),
        (Command.PIN_L3_TABLE, frame, 0),
        (Command.UNPIN_TABLE, frame, 0),
    ]
    assert g.hypervisor.mmuext_op_batch(operations) == Completion(EINVAL, 2)
    assert g.hypervisor.frame(frame).count == 1
    assert g.hypervisor.mmuext_op_batch(operations[3:]) == Completion(OK, 1)
    assert g.hypervisor.counters.mmuext_operations == 4


def test_a_multicall_goes_on_after_a_refusal(g: TraceGuest) -> None:
    calls: list[MmuUpdate | MmuextOp | UpdateVaMapping] = [
        UpdateVaMapping(g.va(A), value(g, A, RO)),
        MmuextOp([(Command.PIN_L1_TABLE, g.mfn(A), 0)]),
        UpdateVaMapping(g.va(A), value(g, A, RW)),
        MmuUpdate([(ptr(g, A, 0), value(g, B, RW)), (ptr(g, A, 1), value(g, C, RO))]),
    ]
    outcome = g.hypervisor.multicall(calls)
    assert outcome == [
        Completion(OK, 1),
        Completion(OK, 1),
        Completion(EBUSY, 0),
        Completion(OK, 2),
    ]
    counters = g.hypervisor.counters
    assert counters.multicall == 1
    assert counters.hypercalls == 1
    assert counters.as_dict()["multicalled"] == 4
    assert (counters.update_va_mapping, counters.mmuext_op, counters.mmu_update) == (2, 1, 1)
    counters.reset()
    assert counters.hypercalls == 0


def test_clear_and_copy_need_a_frame_that_may_be_written(g: TraceGuest) -> None:
    g.write(B, 1, C, RW)
    assert g.clear_page(B) == OK
    assert g.read(B, 1) == 0
    g.write(B, 1, C, RW)
    assert g.copy_page(D, B) == OK
    assert g.read(D, 1) == C << 12 | RW
    g.write(B, 1, 0, 0)
    assert g.read(D, 1) == C << 12 | RW  # a copy, not the same frame
    pinned(g, 1, A)
    assert (g.clear_page(A), g.copy_page(A, B)) == (EINVAL, EINVAL)
    assert g.copy_page(B, A) == OK
    assert g.unpin(A) == OK
    assert g.clear_page(A) == OK  # read-only, but of no type any more
    assert g.hypervisor.frame(g.mfn(A)).type == "writable"
    copy = g.hypervisor.mmuext_op
    assert copy(Command.COPY_PAGE, g.mfn(B), 1) == EINVAL
    assert copy(Command.CLEAR_PAGE, 1) == EINVAL


@pytest.mark.parametrize(
    ("command", "arguments", "dom0", "dom_u"),
    [
        (Command.TLB_FLUSH_LOCAL, (), OK, OK),
        (Command.TLB_FLUSH_MULTI, (), OK, OK),
        (Command.TLB_FLUSH_ALL, (), OK, OK),
        (Command.INVLPG_LOCAL, (0x1000,), OK, OK),
        (Command.INVLPG_MULTI, (0x1000,), OK, OK),
        (Command.INVLPG_ALL, (0x1000,), OK, OK),
        (Command.FLUSH_CACHE, (), OK, EACCES),
        (Command.FLUSH_CACHE_GLOBAL, (), OK, EINVAL),
        (Command.SET_LDT, (0, 0), OK, OK),
        (Command.SET_LDT, (7, 0), OK, OK),
        (Command.SET_LDT, (0x1000, 8192), OK, OK),
        (Command.SET_LDT, (0x1000, 8193), EINVAL, EINVAL),
        (Command.SET_LDT, (0x1008, 1), EINVAL, EINVAL),
        (Command.SET_LDT, (0xFFFF_8000_0000_0000, 1), EINVAL, EINVAL),
        (Command.MARK_SUPER, (1,), EOPNOTSUPP, EOPNOTSUPP),
        (Command.UNMARK_SUPER, (1,), EOPNOTSUPP, EOPNOTSUPP),
        (14, (), ENOSYS, ENOSYS),
        (21, (), ENOSYS, ENOSYS),
        (-1, (), ENOSYS, ENOSYS),
    ],
)
def test_other_operations(command: int, arguments: tuple[int, ...], dom0: int, dom_u: int) -> None:
    assert Hypervisor([1]).mmuext_op(command, *arguments) == dom0
    assert Hypervisor([1], privileged=False).mmuext_op(command, *arguments) == dom_u


def test_there_is_no_fifth_level() -> None:
    for level in (0, 5):
        with pytest.raises(ValueError, match="no command that pins"):
            Hypervisor([1]).pin(level, 1)


@pytest.mark.slow
def test_a_direct_map_of_512_mib_is_built_and_loaded() -> None:
    """The construction that Linux does: tables filled as data, read-only, attached, loaded."""
    frames, first_table = 131_072, 130_000
    hypervisor = Hypervisor(range(frames))
    kernel = 0xFFFF_FFFF_8000_0000
    boot_root = hypervisor.boot([BootMapping(kernel, 0, frames)], range(first_table, frames))
    boot_tables = {mfn for mfn in range(first_table, frames) if hypervisor.page_type(mfn)}
    l1_tables = frames // 512
    fresh = range(first_table - l1_tables - 2, first_table)
    l4, l3, l2 = boot_root, *fresh[:2]
    hypervisor.counters.reset()

    tables = boot_tables | set(fresh)
    for number, l1 in enumerate(fresh[2:]):
        for index in range(512):
            mfn = number * 512 + index
            entry = mfn << 12 | (RO if mfn in tables else RW)
            assert hypervisor.store(kernel + (l1 << 12) + index * 8, entry) == OK
        assert hypervisor.store(kernel + (l2 << 12) + number * 8, l1 << 12 | RW) == OK
    assert hypervisor.store(kernel + (l3 << 12), l2 << 12 | RW) == OK
    for mfn in fresh:
        assert hypervisor.update_va_mapping(kernel + (mfn << 12), mfn << 12 | RO) == OK
    assert hypervisor.mmu_update(l4 << 12 | 272 << 3, l3 << 12 | RW) == OK

    counters = hypervisor.counters
    assert counters.validations == [0, l1_tables, 1, 1, 0]
    assert counters.plain_stores == l1_tables * 513 + 1
    assert counters.hypercalls == len(fresh) + 1
    direct_map = 0xFFFF_8800_0000_0000
    assert hypervisor.load(direct_map + (l1_tables << 21) - 4096)[0] == OK
    assert hypervisor.store(direct_map, 1) == OK
    assert hypervisor.store(direct_map + (l2 << 12), 0) < 0
    assert hypervisor.frame(0).count == 2  # mapped by the kernel's map and the direct map
    assert hypervisor.frame(l2).count == 1


def test_the_guest_of_traces_keeps_its_own_code_mapped(g: TraceGuest) -> None:
    """Whatever would take it away is not done; frames that are no page of it look alike."""
    refused = -77777
    assert g.write(A, 511, B, RW) == refused
    assert g.update_va(0xFFFF_FF80_0000_0000, B, RW) == refused
    assert g.probe(0xFFFF_FF80_0000_0000, "read") == refused
    for below in (0xFFFF_FF7F_FFFF_F000, 0xFFFF_FF7F_FFFF_FFFF):
        assert g.update_va(below, B, RW) == EINVAL
    assert g.mmu_update(A, 511, B, RW, False) == OK  # not its root
    g.clear_page(A)
    g.copy_kernel_slots(A)
    assert g.update_va_mapping(A, A, RO) == OK
    assert g.new_baseptr(A) == OK
    assert g.mmu_update(A, 511, B, RW, False) == refused
    assert g.mmu_update(A, 510, B, 0, False) == OK
    assert g.boot_baseptr() == OK
    assert g.mmu_update(A, 511, B, 0, False) == OK
    assert g.store(B, 0, 12, RW) == OK
    assert g.read(B, 0) == 0xFFF << 12 | RW  # one of pages 0 to 11 would be told
    assert g.store(B, 0, 11, RW) == OK
    assert g.read(B, 0) == 11 << 12 | RW
    assert g.store_value(B, 0, 1 << 63 | 2) == OK
    assert g.read(B, 0) == 2 - (1 << 63)  # an absent entry is a signed number
    assert g.store_value(B, 0, 1 << 62) == OK
    assert g.read(B, 0) == 1 << 62


@pytest.mark.parametrize("named", [[0], [0, 1, 2], [5, 7, 8], [2, 511, 512, 1023, 1025, 3000]])
def test_a_guest_that_has_the_named_pages_only(named: list[int]) -> None:
    sparse = TraceGuest(4096, named=named)
    for number in named:
        assert sparse.write(number, 3, named[0], RW) == OK
        assert sparse.read(number, 3) == named[0] << 12 | RW
        assert sparse.hypervisor.entry(sparse.mfn(number), 3) >> 12 == sparse.mfn(named[0])
        for beside in (number - 1, number + 1):
            if beside not in named:
                assert sparse.read(beside, 3) != OK
                with pytest.raises(KeyError):
                    sparse.hypervisor.frame(sparse.mfn(beside))
