"""Numbers of Xen's public interface, as its headers have them (``public/xen.h``)."""

from __future__ import annotations

import pytest

from paravirt_mm_xen.mmu import entries
from paravirt_mm_xen.mmu.codes import EINVAL, OK
from paravirt_mm_xen.mmu.entries import PV32_PAE, PV64, PvMode
from paravirt_mm_xen.mmu.frames import Assist
from paravirt_mm_xen.mmu.hypercalls import Command, Hypervisor


def test_commands_of_mmuext_op() -> None:
    numbers = {
        "PIN_L1_TABLE": 0,
        "PIN_L2_TABLE": 1,
        "PIN_L3_TABLE": 2,
        "PIN_L4_TABLE": 3,
        "UNPIN_TABLE": 4,
        "NEW_BASEPTR": 5,
        "TLB_FLUSH_LOCAL": 6,
        "INVLPG_LOCAL": 7,
        "TLB_FLUSH_MULTI": 8,
        "INVLPG_MULTI": 9,
        "TLB_FLUSH_ALL": 10,
        "INVLPG_ALL": 11,
        "FLUSH_CACHE": 12,
        "SET_LDT": 13,
        "NEW_USER_BASEPTR": 15,
        "CLEAR_PAGE": 16,
        "COPY_PAGE": 17,
        "FLUSH_CACHE_GLOBAL": 18,
        "MARK_SUPER": 19,
        "UNMARK_SUPER": 20,
    }
    assert {name: int(command) for name, command in Command.__members__.items()} == numbers


def test_kinds_of_vm_assist() -> None:
    assert {name: int(kind) for name, kind in Assist.__members__.items()} == {
        "FOUR_GB_SEGMENTS": 0,
        "FOUR_GB_SEGMENTS_NOTIFY": 1,
        "WRITABLE_PAGETABLES": 2,
        "PAE_EXTENDED_CR3": 3,
        "ARCHITECTURAL_IOPL": 4,
        "RUNSTATE_UPDATE_FLAG": 5,
        "M2P_STRICT": 32,
    }


@pytest.mark.parametrize(
    ("address", "of_xen"),
    [
        (0x0000_7FFF_FFFF_FFFF, False),
        (0x0000_8000_0000_0000, True),  # not canonical from here on
        (0xFFFF_8000_0000_0000, True),  # HYPERVISOR_VIRT_START
        (0xFFFF_87FF_FFFF_FFFF, True),
        (0xFFFF_8800_0000_0000, False),  # HYPERVISOR_VIRT_END
    ],
)
def test_what_a_64_bit_guest_cannot_use(address: int, of_xen: bool) -> None:
    assert (address in PV64.hypervisor_range) is of_xen


@pytest.mark.parametrize(("address", "of_xen"), [(0xF57F_FFFF, False), (0xF580_0000, True)])
def test_what_a_32_bit_guest_cannot_use(address: int, of_xen: bool) -> None:
    """From HYPERVISOR_COMPAT_VIRT_START on."""
    assert (address in PV32_PAE.hypervisor_range) is of_xen


def test_bits_of_an_entry() -> None:
    """Intel SDM volume 3, "Paging"; bit 52 is Xen's _PAGE_GUEST_KERNEL."""
    bits = {
        "PRESENT": 0, "RW": 1, "USER": 2, "PWT": 3, "PCD": 4, "ACCESSED": 5, "DIRTY": 6, "PAT": 7,
        "PSE": 7, "GLOBAL": 8, "GUEST_KERNEL": 52, "NX": 63,
    }  # fmt: skip
    assert {name: getattr(entries, name) for name in bits} == {
        name: 1 << bit for name, bit in bits.items()
    }
    assert (entries.PAGE_SHIFT, entries.PAGE_SIZE, entries.ENTRIES) == (12, 4096, 512)
    assert entries.FRAME_BITS == 0x000F_FFFF_FFFF_F000
    assert entries.FLAGS_HIGH == 0xFFF0_0000_0000_0000
    assert (entries.ACCESSED_DIRTY, entries.CACHE_BITS) == (0x60, 0x98)
    assert entries.SIGNIFICANT == 0x000F_FFFF_FFFF_F09B
    assert entries.XEN_FRAME == 0xFF_FFFF_FFFE
    assert entries.RO_M2P == 0x800F_FFFF_FFFF_E025
    assert entries.make_entry(0x12345, 0x67) == 0x1234_5067
    assert entries.entry_mfn(0xFFF1_2345_6789_AFFF) == 0x1_2345_6789A


def test_slots_of_an_l4_that_are_xens() -> None:
    """asm/config.h: 256 shows the M2P, 258 the L4 itself, 260 the per-domain mappings."""
    hypervisor = Hypervisor(range(4))
    assert hypervisor.pin(4, 1) == OK
    assert {
        slot: hypervisor.entry(1, slot) for slot in range(512) if hypervisor.entry(1, slot)
    } == {
        258: 0x8000_0000_0000_1063,
        260: 0x800F_FFFF_FFFF_E063,
        261: 0x000F_FFFF_FFFF_E063,
        262: 0x000F_FFFF_FFFF_E063,
    }
    assert hypervisor.new_baseptr(1) == OK
    assert hypervisor.entry(1, 256) == 0x800F_FFFF_FFFF_E025
    without = Hypervisor(range(4), nx=False)
    assert without.pin(4, 1) == OK
    assert [without.entry(1, slot) >> 63 for slot in range(256, 272)] == [0] * 16


@pytest.mark.parametrize(
    ("mode", "refused"),
    [
        (PV64, {1: {}, 2: {3, 4, 7, 8}, 3: {3, 4, 7, 8}, 4: {3, 4, 7, 8}}),
        (PV32_PAE, {1: {}, 2: {3, 4, 7, 8}, 3: {3, 4, 7, 8, *range(52, 64)}}),
    ],
    ids=["64-bit", "PAE"],
)
@pytest.mark.parametrize("privileged", [True, False])
def test_each_bit_by_level(mode: PvMode, refused: dict[int, set[int]], privileged: bool) -> None:
    """L1_DISALLOW_MASK to L4_DISALLOW_MASK; memory types in an L1 are for guests with devices."""
    for level, bits in refused.items():
        wrong = bits if privileged or level > 1 else {3, 4, 7}
        found = set()
        for bit in (*range(1, 12), *range(52, 64)):
            hypervisor = Hypervisor(range(16), mode=mode, privileged=privileged)
            hypervisor.mmu_update(1 << 12 | 3 << 3, 2 << 12 | 1)  # the L2 for Xen, of a PAE root
            assert hypervisor.pin(level, 1) == OK
            if hypervisor.mmu_update(1 << 12, 3 << 12 | 1 | 1 << bit) == EINVAL:
                found.add(bit)
        assert found == set(wrong)
