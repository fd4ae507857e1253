"""Numbers of Xen's public interface, as its headers have them (``public/xen.h``)."""

from __future__ import annotations

import pytest

from paravirt_mm_xen.mmu.entries import PV64
from paravirt_mm_xen.mmu.hypercalls import Assist, Command


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
