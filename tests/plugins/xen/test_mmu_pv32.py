"""32-bit PAE guests: from the source, not verified on a real hypervisor."""

from __future__ import annotations

import pytest

from paravirt_mm_xen.mmu import (
    MODES,
    PV32_PAE,
    PV64,
    BootMapping,
    DomainCrashedError,
    Hypervisor,
)
from paravirt_mm_xen.mmu.codes import (
    EBUSY,
    EINVAL,
    EPERM,
    OK,
    PF_READ_ABSENT,
    PF_READ_PROTECTED,
    PF_WRITE_PROTECTED,
)
from paravirt_mm_xen.mmu.entries import ACCESSED, GLOBAL, NX, PRESENT, RW, USER

TABLE = PRESENT | RW | USER | ACCESSED
VA = 0xC000_0000
L3, L2, XEN_L2, L1 = 100, 101, 102, 103


@pytest.fixture
def hypervisor() -> Hypervisor:
    return Hypervisor(range(100, 140), mode=PV32_PAE)


def fill(hypervisor: Hypervisor, *entries: tuple[int, int, int]) -> None:
    """Write entries of frames that are still data."""
    for mfn, index, value in entries:
        assert hypervisor.mmu_update(mfn << 12 | index << 3, value) == OK


def test_it_says_that_it_is_not_verified() -> None:
    assert not PV32_PAE.verified
    assert PV64.verified
    assert set(MODES) == {"pv64", "pv32pae"}


def test_an_l3_is_the_root_and_needs_the_l2_for_xen(hypervisor: Hypervisor) -> None:
    assert hypervisor.pin(4, L3) == OK  # a level that does not exist is ignored
    assert hypervisor.page_type(L3) == 0
    assert hypervisor.pin(3, L3) == EINVAL
    fill(hypervisor, (L3, 3, XEN_L2 << 12 | PRESENT), (L3, 0, L2 << 12 | PRESENT))
    assert hypervisor.pin(3, L3) == OK
    assert [hypervisor.page_type(mfn) for mfn in (L3, L2, XEN_L2)] == [11, 2, 2]
    assert hypervisor.new_baseptr(L3) == OK
    assert hypervisor.new_baseptr(L3) == OK
    assert hypervisor.frame(L3).count == 2
    assert hypervisor.new_user_baseptr(L3) == EINVAL


def test_entries_of_an_l3_have_no_flags_and_get_some_while_it_is_one(
    hypervisor: Hypervisor,
) -> None:
    fill(hypervisor, (L3, 3, XEN_L2 << 12 | PRESENT), (L3, 0, L2 << 12 | PRESENT), (L3, 2, 8))
    assert hypervisor.pin(3, L3) == OK
    assert hypervisor.entry(L3, 0) & 0xFFF == PRESENT | USER | RW
    # What is absent stays as it is; and there are no slots of Xen's, as in an L4.
    assert [hypervisor.entry(L3, index) for index in (1, 2)] == [0, 8]
    assert hypervisor.new_baseptr(L3) == OK
    assert [hypervisor.entry(L3, index) for index in range(4, 512)] == [0] * 508
    assert hypervisor.mmu_update(L2 << 12, L1 << 12 | PRESENT) == OK
    assert hypervisor.entry(L2, 0) == L1 << 12 | PRESENT
    for flag in (GLOBAL, NX, 1 << 52):
        assert hypervisor.mmu_update(L3 << 12 | 8, L2 << 12 | PRESENT | flag) == EINVAL
    assert hypervisor.mmu_update(L3 << 12 | 8, L2 << 12 | PRESENT) == OK
    assert hypervisor.unpin(L3) == OK
    assert hypervisor.new_baseptr(110) == EINVAL
    fill(hypervisor, (110, 3, 111 << 12 | PRESENT))
    assert hypervisor.new_baseptr(110) == OK
    assert hypervisor.entry(L3, 0) & 0xFFF == PRESENT


def test_a_failed_l3_gets_its_flags_back(hypervisor: Hypervisor) -> None:
    fill(hypervisor, (L3, 0, L2 << 12 | PRESENT))
    assert hypervisor.pin(3, L3) == EINVAL
    assert hypervisor.entry(L3, 0) & 0xFFF == PRESENT
    assert [hypervisor.frame(mfn).count for mfn in (L3, L2)] == [0, 0]


def test_only_four_entries_count(hypervisor: Hypervisor) -> None:
    fill(
        hypervisor,
        (L3, 3, XEN_L2 << 12 | PRESENT),
        (L3, 4, 1 << 12 | PRESENT),
        (L3, 511, 0xDEAD),
    )
    assert hypervisor.pin(3, L3) == OK
    assert [hypervisor.entry(L3, index) for index in (4, 511)] == [0, 0]
    for index in (3, 4):
        assert hypervisor.mmu_update(L3 << 12 | index << 3, 0) == EINVAL
    assert hypervisor.mmu_update(L3 << 12 | 2 << 3, 0) == OK


def test_the_l2_for_xen_is_not_shared(hypervisor: Hypervisor) -> None:
    fill(
        hypervisor,
        (L3, 3, XEN_L2 << 12 | PRESENT),
        (110, 3, XEN_L2 << 12 | PRESENT),
        (111, 0, XEN_L2 << 12 | PRESENT),
        (111, 3, 112 << 12 | PRESENT),
    )
    assert hypervisor.pin(3, L3) == OK
    assert hypervisor.pin(3, 110) == EINVAL
    assert hypervisor.pin(3, 111) == EINVAL  # nor in another slot
    assert hypervisor.pin(2, XEN_L2) == EINVAL


def test_xens_slots_of_that_l2(hypervisor: Hypervisor) -> None:
    first = 0xF580_0000 >> 21 & 511
    fill(hypervisor, (L3, 3, XEN_L2 << 12 | PRESENT), (XEN_L2, first, 1 << 12 | PRESENT))
    assert hypervisor.pin(3, L3) == OK  # not looked at
    for index in (first, 511):
        assert hypervisor.mmu_update(XEN_L2 << 12 | index << 3, 0) == EPERM
    assert hypervisor.mmu_update(XEN_L2 << 12 | first - 1 << 3, L1 << 12 | TABLE) == OK
    assert hypervisor.mmu_update(L3 << 12, L2 << 12 | PRESENT) == OK
    assert hypervisor.mmu_update(L2 << 12 | 511 << 3, 0) == OK  # another L2 is all the guest's
    assert hypervisor.unpin(L3) == OK
    assert [hypervisor.frame(mfn).count for mfn in (XEN_L2, L1)] == [0, 0]
    assert hypervisor.update_va_mapping(0xF580_0000, 0) == EINVAL


def test_what_a_32_bit_guest_cannot_use(hypervisor: Hypervisor) -> None:
    """HYPERVISOR_VIRT_START is 0xf5800000, whatever the guest's L2 has there."""
    first = 0xF580_0000 >> 21 & 511
    fill(
        hypervisor,
        (L3, 3, XEN_L2 << 12 | PRESENT),
        (XEN_L2, first, L1 << 12 | TABLE),
        (XEN_L2, first - 1, L1 << 12 | TABLE),
        (L1, 0, 120 << 12 | TABLE),
        (L1, 511, 120 << 12 | TABLE),
    )
    assert hypervisor.new_baseptr(L3) == OK
    assert hypervisor.load(0xF57F_F000) == (OK, 0)
    assert hypervisor.load(0xF57F_E000) == (PF_READ_ABSENT, 0)
    for address in (0xF580_0000, 0xFFFF_F000):
        assert hypervisor.load(address) == (PF_READ_PROTECTED, 0)
        assert hypervisor.store(address, 0) == PF_WRITE_PROTECTED
        assert hypervisor.update_va_mapping(address, 0) == EINVAL


def test_the_l2_for_xen_is_checked_like_any(hypervisor: Hypervisor) -> None:
    for entry in (0, XEN_L2 << 12, XEN_L2 << 12 | PRESENT | GLOBAL, 1 << 12 | PRESENT):
        fill(hypervisor, (L3, 3, entry))
        assert hypervisor.pin(3, L3) == EINVAL
    fill(hypervisor, (L3, 3, XEN_L2 << 12 | PRESENT))
    assert hypervisor.pin(3, L3) == OK
    assert hypervisor.unpin(L3) == OK
    assert hypervisor.pin(2, XEN_L2) == OK  # and is any L2 again


def test_an_absent_entry_of_an_l3_is_looked_at_on_a_cpu_with_l1tf() -> None:
    hypervisor = Hypervisor(range(100, 140), mode=PV32_PAE, l1tf_safe=1 << 36)
    fill(hypervisor, (L3, 3, XEN_L2 << 12 | PRESENT), (L3, 1, L2 << 12))
    with pytest.raises(DomainCrashedError, match="L3e"):
        hypervisor.pin(3, L3)


def test_l3_tables_are_not_linear_but_l2_are(hypervisor: Hypervisor) -> None:
    fill(hypervisor, (L3, 3, XEN_L2 << 12 | PRESENT))
    assert hypervisor.pin(3, L3) == OK
    assert hypervisor.mmu_update(L3 << 12, L3 << 12 | PRESENT) == EINVAL
    assert hypervisor.pin(2, L2) == OK
    assert hypervisor.mmu_update(L2 << 12, L2 << 12 | PRESENT | USER) == OK


def test_kernel_and_user_entries_are_not_marked(hypervisor: Hypervisor) -> None:
    assert hypervisor.pin(1, L1) == OK
    for flags in (PRESENT | RW, PRESENT | RW | USER):
        assert hypervisor.mmu_update(L1 << 12, 120 << 12 | flags) == OK
        assert hypervisor.entry(L1, 0) == 120 << 12 | flags


def test_boot_and_two_half_stores_to_a_live_l1(hypervisor: Hypervisor) -> None:
    root = hypervisor.boot([BootMapping(VA, 100, 40)], range(130, 140))
    assert hypervisor.page_type(root) == 11
    assert hypervisor.frame(root).count == 2
    l1 = next(mfn for mfn in range(130, 140) if hypervisor.page_type(mfn) == 1)
    entry = VA + (l1 - 100 << 12) + 39 * 8
    assert hypervisor.store(entry, 120 << 12 | PRESENT | RW, 4) == OK
    assert hypervisor.frame(120).count == 2
    # Upper half first: Xen takes the entry as not present until the lower half follows.
    assert hypervisor.store(entry + 4, 1, 4) == OK
    assert not hypervisor.entry(l1, 39) & PRESENT
    assert hypervisor.frame(120).count == 1
    assert hypervisor.store(entry, 120 << 12 | PRESENT | RW, 4) < 0
    assert hypervisor.update_va_mapping(VA + (l1 - 100 << 12), l1 << 12 | TABLE) == EBUSY
    assert hypervisor.update_va_mapping(VA, 0) == OK
    assert hypervisor.load(VA)[0] < 0
