"""Rules of page typing, one by one: each test fails when its rule is changed."""

from __future__ import annotations

import attrs
import pytest

from paravirt_mm_xen.mmu import RECORDED, Hypervisor, Release
from paravirt_mm_xen.mmu.codes import EBUSY, EINVAL, EPERM, OK
from paravirt_mm_xen.mmu.entries import (
    ACCESSED,
    DIRTY,
    GLOBAL,
    GUEST_KERNEL,
    MFN_MASK,
    NX,
    PAT,
    PCD,
    PRESENT,
    PSE,
    PWT,
    USER,
    XEN_FRAME,
)
from paravirt_mm_xen.traces.guest import TraceGuest

RO, RW = 0x65, 0x67
A, B, C, D, E, F = range(6)


@pytest.fixture
def g() -> TraceGuest:
    return TraceGuest(12)


def read_only(g: TraceGuest, *pages: int) -> None:
    for page in pages:
        assert g.update_va_mapping(page, page, RO) == OK


def count(g: TraceGuest, page: int) -> int:
    return g.hypervisor.frame(g.mfn(page)).count


def raw(g: TraceGuest, page: int, index: int) -> int:
    return g.hypervisor.entry(g.mfn(page), index)


def entry(g: TraceGuest, page: int, flags: int) -> int:
    return g.mfn(page) << 12 | flags


def update(g: TraceGuest, page: int, index: int, value: int, command: int = 0) -> int:
    return g.hypervisor.mmu_update(g.mfn(page) << 12 | index << 3 | command, value)


# --- types and counts -----------------------------------------------------------------------------


def test_writable_mappings_are_counted_and_the_type_outlives_them(g: TraceGuest) -> None:
    assert count(g, A) == 1
    assert g.update_va_mapping(B, A, RW) == OK
    assert count(g, A) == 2
    assert count(g, B) == 0
    read_only(g, A)
    g.update_va_mapping(B, B, RO)
    assert (g.hypervisor.frame(g.mfn(A)).type, count(g, A)) == ("writable", 0)
    assert g.pin(2, A) == OK


def test_read_only_mappings_are_not_counted(g: TraceGuest) -> None:
    read_only(g, A)
    assert g.update_va_mapping(B, A, RO) == OK
    assert count(g, A) == 0
    assert g.pin(1, A) == OK
    assert count(g, A) == 1


def test_a_frame_mapped_writable_twice_is_no_table_until_both_are_gone(g: TraceGuest) -> None:
    g.update_va_mapping(B, A, RW)
    read_only(g, A)
    assert g.pin(1, A) == EINVAL
    g.update_va_mapping(B, B, RW)
    assert g.pin(1, A) == OK


def test_entries_of_an_l1_take_writable_references_only_with_rw(g: TraceGuest) -> None:
    g.write(A, 0, B, RW)
    g.write(A, 1, C, RO)
    g.write(A, 2, B, RW)
    read_only(g, A, B, C)
    assert g.pin(1, A) == OK
    assert (count(g, B), count(g, C)) == (2, 0)
    assert g.unpin(A) == OK
    assert (count(g, B), count(g, C)) == (0, 0)


def test_remapping_takes_before_it_drops(g: TraceGuest) -> None:
    # RW to RW of the same frame with another memory type: the count never reaches 0.
    value = entry(g, A, RW | PCD)
    assert g.hypervisor.update_va_mapping(g.va(A), value) == OK
    assert count(g, A) == 1


def build_chain(g: TraceGuest, slots: tuple[int, int, int]) -> None:
    """A (L4) -> B (L3) -> C (L2) -> D (L1), all read-only, at the given slots."""
    for table, child, slot in zip((A, B, C), (B, C, D), slots, strict=True):
        g.write(table, slot, child, RW)
    read_only(g, A, B, C, D)


def test_a_tree_is_validated_from_its_root_and_goes_with_it(g: TraceGuest) -> None:
    build_chain(g, (5, 6, 7))
    assert g.pin(4, A) == OK
    assert [g.type(page) for page in (A, B, C, D)] == [12, 3, 2, 1]
    assert g.hypervisor.counters.validations == [0, 1, 1, 1, 1]
    assert g.unpin(A) == OK
    assert [g.type(page) for page in (A, B, C, D)] == [0, 0, 0, 0]
    assert g.hypervisor.counters.devalidations == [0, 1, 1, 1, 1]


def test_a_shared_child_is_validated_once_and_counted_twice(g: TraceGuest) -> None:
    g.write(A, 0, B, RW)
    g.write(A, 9, B, RW)
    read_only(g, A, B)
    assert g.pin(2, A) == OK
    assert count(g, B) == 2
    assert g.hypervisor.counters.validations[1] == 1
    assert g.mmu_update(A, 0, 0, 0, False) == OK
    assert (count(g, B), g.type(B)) == (1, 1)
    assert g.mmu_update(A, 9, 0, 0, False) == OK
    assert (count(g, B), g.type(B)) == (0, 0)


def test_a_type_left_behind_does_not_bind(g: TraceGuest) -> None:
    read_only(g, A)
    for level in (1, 3, 2, 4, 1):
        assert g.pin(level, A) == OK
        assert g.unpin(A) == OK
        if level == 4:
            g.update_va_mapping(A, A, RW)
            g.hypervisor.mmuext_op(16, g.mfn(A))
            read_only(g, A)
    assert g.hypervisor.frame(g.mfn(A)).type == "L1"
    assert g.update_va_mapping(A, A, RW) == OK


# --- undoing --------------------------------------------------------------------------------------


def test_a_refused_l1_gives_back_what_it_took(g: TraceGuest) -> None:
    read_only(g, C)
    assert g.pin(1, C) == OK
    g.write(A, 3, B, RW)
    g.write(A, 4, C, RW)
    read_only(g, A)
    before = count(g, B)
    assert g.pin(1, A) == EBUSY
    assert count(g, B) == before
    assert count(g, A) == 0
    assert g.update_va_mapping(A, A, RW) == OK


def test_what_is_absent_from_an_l1_holds_nothing(g: TraceGuest) -> None:
    """Bits that look like a writable mapping neither take a count nor give one back."""
    g.write(A, 3, B, RW & ~PRESENT)
    read_only(g, A)
    before = count(g, B)
    assert g.pin(1, A) == OK
    assert count(g, B) == before
    assert g.unpin(A) == OK
    assert count(g, B) == before


def test_what_stands_behind_an_absent_entry_is_held(g: TraceGuest) -> None:
    """All slots of a table are looked at, in an L1 and above."""
    for level, table, child, flags in ((1, A, C, RW), (2, B, A, RO), (3, D, B, RO)):
        g.write(table, 3, E, RW & ~PRESENT)
        g.write(table, 5, child, flags)
        read_only(g, table)
        before = count(g, child)
        for _ in range(2):
            assert g.pin(level, table) == OK
            assert count(g, child) == before + 1
            assert g.unpin(table) == OK
            assert count(g, child) == before


@pytest.mark.parametrize(
    ("kinds", "code"),
    [(("foreign", "none"), EBUSY), (("none", "foreign"), EPERM), (("flag", "none"), EINVAL)],
)
def test_entries_are_checked_by_slot_not_as_they_were_written(
    kinds: tuple[str, str], code: int
) -> None:
    """The first slot that is refused decides the answer (``promote_l1_table``)."""
    wrong = {"foreign": 50 << 12 | RO, "none": 60 << 12 | RO, "flag": 101 << 12 | RO | NX}
    hypervisor = Hypervisor(range(100, 110), foreign={50}, nx=False)
    for slot, kind in ((9, kinds[1]), (3, kinds[0])):
        assert hypervisor.mmu_update(100 << 12 | slot << 3, wrong[kind]) == OK
    assert hypervisor.pin(1, 100) == code
    # The same one level up: the L1 there answers first, or a frame that cannot be a table.
    for first, second, expected in ((100, 50, code), (50, 100, EINVAL)):
        for slot, mfn in ((9, second), (3, first)):
            assert hypervisor.mmu_update(105 << 12 | slot << 3, mfn << 12 | RO) == OK
        assert hypervisor.pin(2, 105) == expected


@pytest.mark.parametrize("bad_slot", [0, 1, 300])
@pytest.mark.parametrize("level", [2, 3, 4])
def test_a_refused_directory_gives_back_what_it_took(
    g: TraceGuest, level: int, bad_slot: int
) -> None:
    for slot in (0, 2, 400):
        if slot != bad_slot:
            g.write(A, slot, B, RW)
    g.write(A, bad_slot, C, RW)  # C stays mapped writable: no table
    # What follows was not looked at, and holds nothing: not even what would be a large page.
    g.write(A, 401, D, RW | PSE)
    read_only(g, A, B)
    before = count(g, D)
    assert g.pin(level, A) == EINVAL
    assert [count(g, page) for page in (A, B, C, D)] == [0, 0, 1, before]
    assert [g.type(page) for page in (A, B)] == [0, 0]
    undone = [0] * 5
    undone[level - 1] = int(bad_slot > 0)  # B is a table only while A's entries before C are held
    assert g.hypervisor.counters.devalidations == undone
    assert g.update_va_mapping(A, A, RW) == OK
    assert g.update_va_mapping(B, B, RW) == OK


@pytest.mark.parametrize(
    "slots", [(0, 0, 0), (0, 0, 1), (0, 1, 1), (1, 1, 1), (0, 1, 0), (1, 1, 0)]
)
def test_failures_inside_each_other_are_all_undone(
    g: TraceGuest, slots: tuple[int, int, int]
) -> None:
    build_chain(g, slots)
    assert g.update_va_mapping(D, D, RW) == OK  # the L1 to be
    assert g.pin(4, A) == EINVAL
    assert [count(g, page) for page in (A, B, C, D)] == [0, 0, 0, 1]
    for page in (A, B, C):
        assert g.update_va_mapping(page, page, RW) == OK


def test_a_code_from_deep_below_is_passed_up(g: TraceGuest) -> None:
    build_chain(g, (3, 3, 3))
    g.update_va_mapping(D, D, RW)
    g.write(D, 0, A, RW)
    g.update_va_mapping(D, D, RO)
    assert g.pin(4, A) == EBUSY  # D would map the L4 writable


def test_a_refused_update_changes_nothing(g: TraceGuest) -> None:
    g.write(A, 4, B, RW)
    read_only(g, A, B)
    assert g.pin(2, A) == OK
    before = raw(g, A, 4)
    assert g.mmu_update(A, 4, C, RW, False) == EINVAL
    assert raw(g, A, 4) == before
    assert (count(g, B), count(g, C)) == (1, 1)


NO_SLIP = attrs.evolve(RECORDED, name="careful", forgets_nested_failure=False)


@pytest.mark.parametrize(("release", "stuck"), [(RECORDED, True), (NO_SLIP, False)])
def test_release_builds_forget_an_l2_after_some_nested_failures(
    release: Release, stuck: bool
) -> None:
    g = TraceGuest(12, release)
    build_chain(g, (1, 0, 1))
    g.update_va_mapping(D, D, RW)
    assert g.pin(4, A) == EINVAL
    frame = g.hypervisor.frame(g.mfn(C))
    assert (frame.count, frame.partial, g.type(C)) == (int(stuck), stuck, 0)
    assert g.update_va_mapping(C, C, RW) == (EBUSY if stuck else OK)
    assert [count(g, page) for page in (A, B, D)] == [0, 0, 1]


def test_a_half_checked_table_goes_on_where_it_stopped(g: TraceGuest) -> None:
    g.write(C, 1, E, RW)
    build_chain(g, (1, 0, 2))
    read_only(g, E)
    g.update_va_mapping(D, D, RW)
    assert g.pin(4, A) == EINVAL
    assert count(g, E) == 1  # held by the forgotten C
    assert g.mmu_update(C, 5, D, RW, False) == EINVAL  # neither a table nor a data page
    assert g.hypervisor.mmuext_op(16, g.mfn(C)) == EINVAL
    read_only(g, F)
    assert g.pin(2, F) == OK
    assert g.mmu_update(F, 0, C, RO, False) == EINVAL  # nor a linear page table
    read_only(g, D)
    assert g.pin(2, C) == OK
    assert (count(g, E), count(g, D), g.type(C)) == (1, 1, 10)
    assert g.unpin(C) == OK
    assert (count(g, E), count(g, D), count(g, C)) == (0, 0, 0)


def test_a_half_checked_table_that_fails_again_is_cleaned_up(g: TraceGuest) -> None:
    g.write(C, 1, E, RW)
    build_chain(g, (1, 0, 2))
    read_only(g, E)
    g.update_va_mapping(D, D, RW)
    assert g.pin(4, A) == EINVAL
    assert g.pin(2, C) == EINVAL
    assert (count(g, E), count(g, C)) == (0, 0)
    assert g.update_va_mapping(C, C, RW) == OK


# --- pins and base pointers -----------------------------------------------------------------------


def test_pins_do_not_nest(g: TraceGuest) -> None:
    for level, page in ((1, A), (2, B), (3, C), (4, D)):
        read_only(g, page)
        assert g.pin(level, page) == OK
        assert g.pin(level, page) == EINVAL
        assert count(g, page) == 1
        assert g.unpin(page) == OK
        assert count(g, page) == 0
        assert g.unpin(page) == EINVAL


def test_a_pin_keeps_a_child_alive(g: TraceGuest) -> None:
    g.write(A, 1, B, RW)
    read_only(g, A, B)
    assert g.pin(2, A) == OK
    assert g.pin(1, B) == OK
    assert count(g, B) == 2
    assert g.unpin(A) == OK
    assert (g.type(B), count(g, B)) == (9, 1)
    assert g.update_va_mapping(B, B, RW) == EBUSY


def test_unpin_of_a_frame_that_is_not_the_guests(g: TraceGuest) -> None:
    assert g.hypervisor.unpin(XEN_FRAME) == EINVAL
    assert g.hypervisor.pin(1, XEN_FRAME) == EINVAL


def test_a_loaded_root_holds_one_reference(g: TraceGuest) -> None:
    g.copy_kernel_slots(A)
    read_only(g, A)
    assert g.new_baseptr(A) == OK
    assert g.new_baseptr(A) == OK
    assert (count(g, A), g.hypervisor.baseptr) == (1, g.mfn(A))
    assert g.hypervisor.new_user_baseptr(g.mfn(A)) == OK
    assert g.hypervisor.new_user_baseptr(g.mfn(A)) == OK
    assert (count(g, A), g.hypervisor.user_baseptr) == (2, g.mfn(A))
    assert g.boot_baseptr() == OK
    assert count(g, A) == 1
    assert g.update_va_mapping(A, A, RW) == EBUSY
    assert g.new_user_baseptr(None) == OK
    assert (count(g, A), g.hypervisor.user_baseptr) == (0, None)
    assert g.update_va_mapping(A, A, RW) == OK


def test_a_refused_root_leaves_the_old_one(g: TraceGuest) -> None:
    old = g.hypervisor.baseptr
    assert g.hypervisor.new_baseptr(g.mfn(A)) == EINVAL
    assert g.hypervisor.new_user_baseptr(g.mfn(A)) == EINVAL
    nobodys = 1 << 39  # a frame that is not the guest's, or is none
    assert g.hypervisor.new_user_baseptr(nobodys) == g.hypervisor.new_baseptr(nobodys) == EINVAL
    assert (g.hypervisor.baseptr, g.hypervisor.user_baseptr) == (old, None)


# --- entries --------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [2, 3, 4])
@pytest.mark.parametrize("flag", [PWT, PCD, PSE, GLOBAL])
def test_flags_refused_above_l1(g: TraceGuest, level: int, flag: int) -> None:
    read_only(g, A, B)
    assert g.pin(level, A) == OK
    assert g.mmu_update(A, 3, B, RW | flag, False) == EINVAL
    assert g.mmu_update(A, 3, B, RW | NX | 0xE00 | 1 << 58, False) == OK
    assert g.mmu_update(A, 3, B, RW | flag, False) == EINVAL
    assert g.mmu_update(A, 4, B, flag, False) == OK  # not present: not looked at


def unprivileged() -> Hypervisor:
    hypervisor = Hypervisor(range(100, 110), privileged=False, foreign={50}, mmio=[range(200, 210)])
    assert hypervisor.pin(1, 100) == OK
    return hypervisor


def privileged() -> Hypervisor:
    hypervisor = Hypervisor(range(100, 110), foreign={50}, mmio=[range(200, 210)])
    assert hypervisor.pin(1, 100) == OK
    return hypervisor


@pytest.mark.parametrize("flag", [PWT, PCD, PAT])
def test_memory_types_are_for_guests_with_devices(flag: int) -> None:
    assert unprivileged().mmu_update(100 << 12, 101 << 12 | RW | flag) == EINVAL
    assert privileged().mmu_update(100 << 12, 101 << 12 | RW | flag) == OK
    for hypervisor, expected in ((unprivileged(), EINVAL), (privileged(), OK)):
        hypervisor.mmu_update(102 << 12, 101 << 12 | RW | flag)
        assert hypervisor.pin(1, 102) == expected


def test_frames_that_are_not_the_guests_memory() -> None:
    hypervisor = privileged()

    def map_in_l1(mfn: int, flags: int) -> int:
        return hypervisor.mmu_update(100 << 12 | 8, mfn << 12 | flags)

    assert map_in_l1(50, RO) == EBUSY
    assert map_in_l1(XEN_FRAME, RO) == EBUSY
    assert map_in_l1(60, RO) == EPERM
    assert map_in_l1(MFN_MASK, RO) == EINVAL
    assert map_in_l1(201, RW) == OK
    assert map_in_l1(0, 0) == OK
    assert hypervisor.pin(2, 105) == OK
    for mfn in (50, 60, 201):
        assert hypervisor.mmu_update(105 << 12, mfn << 12 | RW) == EINVAL


@pytest.mark.parametrize(
    ("asked", "written"),
    [
        (0, PWT | PCD),
        (PWT, PWT | PCD),
        (PWT | PAT, PWT | PCD),
        (PCD, PCD),
        (PCD | PWT, PCD | PWT),
        (PAT, PAT),
    ],
)
def test_device_memory_is_not_mapped_cached(asked: int, written: int) -> None:
    hypervisor = privileged()
    assert hypervisor.mmu_update(100 << 12, 205 << 12 | RW | asked) == OK
    assert hypervisor.entry(100, 0) & (PWT | PCD | PAT) == written


@pytest.mark.parametrize(
    ("asked", "written"),
    [
        (RW, RW | GLOBAL),
        (RW & ~USER, RW | GUEST_KERNEL),
        (RW | GUEST_KERNEL, RW | GUEST_KERNEL),
        (PRESENT | GLOBAL, PRESENT | GLOBAL | USER | GUEST_KERNEL),
        (0x66, 0x66),
    ],
)
def test_xen_tells_kernel_and_user_entries_of_an_l1_apart(
    g: TraceGuest, asked: int, written: int
) -> None:
    read_only(g, A)
    assert g.pin(1, A) == OK
    assert g.mmu_update(A, 0, B, asked, False) == OK
    assert raw(g, A, 0) == entry(g, B, written)
    assert g.write(A, 1, B, asked) == OK
    assert raw(g, A, 1) == entry(g, B, written)
    g.write(C, 2, B, asked)
    read_only(g, C)
    assert g.pin(1, C) == OK
    assert raw(g, C, 2) == entry(g, B, written)


@pytest.mark.parametrize(("level", "forced"), [(2, USER), (3, USER), (4, USER | ACCESSED)])
def test_bits_that_xen_sets_above_l1(g: TraceGuest, level: int, forced: int) -> None:
    g.write(A, 1, B, PRESENT)
    read_only(g, A, B, C)
    assert g.pin(level, A) == OK
    assert raw(g, A, 1) == entry(g, B, PRESENT | forced)
    assert g.mmu_update(A, 2, B, PRESENT, False) == OK
    assert raw(g, A, 2) == entry(g, B, PRESENT | forced)
    assert g.mmu_update(A, 3, C, 2, False) == OK
    assert raw(g, A, 3) == entry(g, C, 2)


def test_harmless_changes_are_not_checked_again(g: TraceGuest) -> None:
    g.write(A, 0, B, RW)
    read_only(g, A, B)
    assert g.pin(2, A) == OK
    for flags in (RW | NX, RW & ~DIRTY, RW & ~ACCESSED, RW | 0xA00, RW | 1 << 60):
        assert g.mmu_update(A, 0, B, flags, False) == OK
        assert raw(g, A, 0) == entry(g, B, flags)
        assert count(g, B) == 1
    assert g.mmu_update(A, 0, B, RO, False) == OK  # RW matters, and is checked
    assert count(g, B) == 1


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_preserve_keeps_accessed_and_dirty(g: TraceGuest, level: int) -> None:
    for page in (A, B, C):
        read_only(g, page)
    assert g.pin(level, A) == OK
    plain = RO & ~(ACCESSED | DIRTY)
    kept = ACCESSED | DIRTY
    assert g.mmu_update(A, 1, B, RO, False) == OK
    assert g.mmu_update(A, 1, B, plain, True) == OK  # harmless change
    assert raw(g, A, 1) & kept == kept
    assert g.mmu_update(A, 1, C, plain, True) == OK  # another frame
    assert raw(g, A, 1) & kept == kept
    assert raw(g, A, 1) >> 12 & MFN_MASK == g.mfn(C)
    assert g.mmu_update(A, 1, C, plain, False) == OK
    assert raw(g, A, 1) & DIRTY == 0
    assert g.mmu_update(A, 1, B, RO, False) == OK
    assert g.mmu_update(A, 1, C, plain, False) == OK
    assert raw(g, A, 1) & DIRTY == 0
    assert g.mmu_update(A, 1, B, RO, False) == OK
    assert g.mmu_update(A, 1, 0, 0, True) == OK
    assert raw(g, A, 1) == kept
    # Only that command keeps them; update_va_mapping writes what it is given.
    assert g.update_va_mapping(D, D, RO) == OK
    assert g.update_va_mapping(D, D, plain) == OK
    assert g.hypervisor.load(g.va(E))[0] == OK
    l1 = next(n for n in range(0x1000, 0x1100) if g.hypervisor.page_type(n) == 1)
    assert g.hypervisor.entry(l1, D) & kept == 0


def test_preserve_has_no_meaning_for_data(g: TraceGuest) -> None:
    g.write(A, 1, B, RW)
    assert g.mmu_update(A, 1, B, PRESENT, True) == OK
    assert raw(g, A, 1) == entry(g, B, PRESENT)


def test_update_of_an_unused_page_makes_it_data(g: TraceGuest) -> None:
    read_only(g, A)
    assert g.pin(1, A) == OK
    assert g.unpin(A) == OK
    assert g.mmu_update(A, 0, B, RW, False) == OK
    frame = g.hypervisor.frame(g.mfn(A))
    assert (frame.type, frame.count, frame.validated) == ("writable", 0, True)
    assert raw(g, A, 0) == entry(g, B, RW)
    assert count(g, B) == 1


def test_commands_in_the_pointer(g: TraceGuest) -> None:
    read_only(g, A)
    assert g.pin(1, A) == OK
    value = entry(g, B, RW)
    assert [update(g, A, 0, value, command) for command in range(8)] == [OK] * 4 + [-38] * 4
    assert update(g, A, 1, value, 1) == OK
    assert raw(g, A, 1) == 0  # a machine-to-physical update writes no entry
    assert g.hypervisor.mmu_update(XEN_FRAME << 12, 0) == EINVAL
    assert g.hypervisor.mmu_update(XEN_FRAME << 12 | 1, 0) == EINVAL


# --- linear page tables ---------------------------------------------------------------------------


@pytest.mark.parametrize("level", [2, 3, 4])
def test_a_table_may_refer_to_itself_read_only(g: TraceGuest, level: int) -> None:
    read_only(g, A, C)
    assert g.pin(level, A) == OK
    assert g.mmu_update(A, 5, A, RW, False) == EINVAL
    assert g.mmu_update(A, 5, A, RO, False) == OK
    assert g.mmu_update(A, 6, C, RO, False) == OK
    assert (count(g, A), count(g, C)) == (1, 1)
    assert g.unpin(A) == OK
    assert (count(g, A), count(g, C)) == (0, 0)  # what follows is given back, too
    assert g.pin(level, A) == OK  # and it is accepted at once as well
    assert count(g, C) == 1
    assert g.mmu_update(A, 5, 0, 0, False) == OK
    assert count(g, A) == 1


@pytest.mark.parametrize("level", [2, 3, 4])
def test_a_table_may_refer_to_a_validated_one_of_its_level(g: TraceGuest, level: int) -> None:
    read_only(g, A, B)
    assert g.pin(level, A) == OK
    assert g.pin(level, B) == OK
    assert g.mmu_update(A, 3, B, RW, False) == EINVAL
    assert g.mmu_update(A, 3, B, RO, False) == OK
    assert g.mmu_update(A, 4, B, RO, False) == OK
    frames = [g.hypervisor.frame(g.mfn(page)) for page in (A, B)]
    assert [(frame.count, frame.same_level_entries) for frame in frames] == [(1, 2), (3, -2)]
    assert g.unpin(B) == OK
    assert g.type(B) == level
    assert g.mmu_update(A, 3, 0, 0, False) == OK
    assert g.hypervisor.frame(g.mfn(A)).same_level_entries == 1
    assert g.unpin(A) == OK
    assert [count(g, page) for page in (A, B)] == [0, 0]


def test_an_l1_has_no_linear_entries(g: TraceGuest) -> None:
    read_only(g, A, B)
    assert g.pin(1, A) == OK
    assert g.pin(1, B) == OK
    assert g.mmu_update(A, 3, B, RO, False) == OK
    assert count(g, B) == 1


def test_a_frame_of_no_type_becomes_a_child_not_a_linear_entry(g: TraceGuest) -> None:
    read_only(g, A, B)
    assert g.pin(3, A) == OK
    assert g.mmu_update(A, 3, B, RO, False) == OK
    assert g.type(B) == 2


def test_linear_references_form_no_chains(g: TraceGuest) -> None:
    read_only(g, A, B, C)
    for page in (A, B, C):
        assert g.pin(3, page) == OK
    assert g.mmu_update(A, 0, B, RO, False) == OK
    assert g.mmu_update(B, 0, C, RO, False) == EINVAL  # B is referred to
    assert g.mmu_update(C, 0, A, RO, False) == EINVAL  # A refers
    assert g.mmu_update(B, 1, B, RO, False) == OK  # itself is no link
    assert g.mmu_update(A, 0, 0, 0, False) == OK
    assert g.mmu_update(B, 0, C, RO, False) == OK


def test_a_linear_reference_counts_end_at_15_bits(g: TraceGuest) -> None:
    read_only(g, A, B)
    assert g.pin(3, A) == OK
    assert g.pin(3, B) == OK
    domain = g.hypervisor._domain
    limit = (1 << 15) - 1
    domain.linear_count[g.mfn(A)] = limit
    assert g.mmu_update(A, 0, B, RO, False) == EINVAL
    domain.linear_count[g.mfn(A)] = limit - 1
    assert g.mmu_update(A, 0, B, RO, False) == OK
    domain.linear_count[g.mfn(A)] = 0
    domain.linear_count[g.mfn(B)] = -limit - 1
    assert g.mmu_update(A, 1, B, RO, False) == EINVAL
    domain.linear_count[g.mfn(B)] = -limit
    assert g.mmu_update(A, 1, B, RO, False) == OK


def test_linear_tables_can_be_switched_off() -> None:
    hypervisor = Hypervisor(range(100, 104), linear_tables=False)
    assert hypervisor.pin(4, 100) == OK
    assert hypervisor.mmu_update(100 << 12, 100 << 12 | RO) == EINVAL


def test_undoing_gives_linear_references_back(g: TraceGuest) -> None:
    read_only(g, B)
    assert g.pin(3, B) == OK
    g.write(A, 1, B, RO)
    g.write(A, 2, C, RW)  # C is data: refused
    read_only(g, A)
    assert g.pin(3, A) == EINVAL
    assert g.hypervisor.frame(g.mfn(B)).same_level_entries == 0
    assert count(g, B) == 1


# --- Xen's slots ----------------------------------------------------------------------------------


def test_xen_writes_its_slots_into_a_validated_l4(g: TraceGuest) -> None:
    for slot in range(256, 272):
        g.store(A, slot, C, RW)
    for slot in (255, 272):
        g.store(A, slot, B, RW)
    read_only(g, A, B)
    assert g.pin(4, A) == OK
    assert count(g, B) == 2
    own = {slot for slot in range(256, 272) if raw(g, A, slot)}
    assert own == {258, 260, 261, 262}
    assert raw(g, A, 258) == entry(g, A, 0x63 | NX)
    for slot in (256, 271):
        assert g.mmu_update(A, slot, B, RW, False) == EINVAL
        assert g.mmu_update(A, slot, 0, 0, False) == EINVAL
    for slot in (255, 272):
        assert g.mmu_update(A, slot, 0, 0, False) == OK
    assert count(g, B) == 0


def test_the_m2p_is_shown_to_the_kernel_only(g: TraceGuest) -> None:
    g.copy_kernel_slots(A)
    read_only(g, A)
    assert g.hypervisor.new_user_baseptr(g.mfn(A)) == OK
    assert raw(g, A, 256) == 0
    assert g.new_baseptr(A) == OK
    assert raw(g, A, 256) >> 12 & MFN_MASK == XEN_FRAME


TIDY = attrs.evolve(RECORDED, name="tidy", leaves_xen_slots=False)


@pytest.mark.parametrize(("release", "answers"), [(RECORDED, [EBUSY, EINVAL]), (TIDY, [OK, OK])])
def test_xens_slots_stay_in_a_frame_that_was_an_l4(release: Release, answers: list[int]) -> None:
    g = TraceGuest(8, release)
    read_only(g, A, B)
    for page in (A, B):
        assert g.pin(4, page) == OK
        assert g.unpin(page) == OK
    assert [g.pin(1, A), g.pin(3, B)] == answers
    assert (raw(g, A, 258) != 0) == release.leaves_xen_slots


def test_other_levels_have_no_slots_of_xens(g: TraceGuest) -> None:
    read_only(g, A, B)
    assert g.pin(3, A) == OK
    assert g.mmu_update(A, 260, B, RW, False) == OK


# --- reading state --------------------------------------------------------------------------------


def test_page_type_as_the_control_interface_tells_it(g: TraceGuest) -> None:
    assert g.type(A) == 0
    read_only(g, A)
    assert g.type(A) == 0
    assert g.pin(3, A) == OK
    assert g.type(A) == 11
    g.unpin(A)
    assert g.type(A) == 0
    assert g.hypervisor.page_type(XEN_FRAME) == 15


def test_fork_is_independent(g: TraceGuest) -> None:
    g.write(A, 0, B, RW)
    read_only(g, A)
    twin = g.hypervisor.fork()
    assert twin.pin(1, g.mfn(A)) == OK
    assert g.type(A) == 0
    assert twin.mmu_update(g.mfn(A) << 12, 0) == OK
    assert raw(g, A, 0) == entry(g, B, RW)
    assert (twin.counters.mmuext_op, g.hypervisor.counters.mmuext_op) == (1, 0)


def test_frames_lists_all_of_the_guests() -> None:
    hypervisor = Hypervisor([7, 5])
    assert [frame.mfn for frame in hypervisor.frames()] == [5, 7]
    with pytest.raises(KeyError):
        hypervisor.frame(6)
    with pytest.raises(ValueError, match="machine frame number"):
        Hypervisor([1 << 40])
