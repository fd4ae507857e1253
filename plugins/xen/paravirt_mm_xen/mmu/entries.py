"""Page-table entries as a PV guest may write them: bits, and the rules of a paging mode as data.

An entry is an ``int``: bits 12..51 are the machine frame number (mfn), the others are flags.
Source of the rules: Xen 4.17, ``arch/x86/mm.c`` (``base_disallow_mask``, ``l1_disallow_mask``,
``l3_disallow_mask``, ``FASTPATH_FLAG_WHITELIST``) and ``arch/x86/pv/mm.h`` (``adjust_guest_*``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Final

from attrs import frozen

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT
ENTRIES: Final = 512
"""Entries of a table.  A PAE L3 has the same page; the guest uses the first four entries."""

PRESENT: Final = 1
RW: Final = 1 << 1
USER: Final = 1 << 2
PWT: Final = 1 << 3
PCD: Final = 1 << 4
ACCESSED: Final = 1 << 5
DIRTY: Final = 1 << 6
PAT: Final = 1 << 7
"""Bit 7 of an L1 entry chooses a memory type ..."""
PSE: Final = 1 << 7
"""... and makes an L2 or L3 entry a large page."""
GLOBAL: Final = 1 << 8
GUEST_KERNEL: Final = 1 << 52
"""Xen's mark (an available bit) on an L1 entry that the guest wrote without USER."""
NX: Final = 1 << 63

FLAGS_HIGH: Final = 0xFFF << 52
MFN_BITS: Final = 40
MFN_MASK: Final = (1 << MFN_BITS) - 1
FRAME_BITS: Final = MFN_MASK << PAGE_SHIFT
ACCESSED_DIRTY: Final = ACCESSED | DIRTY
CACHE_BITS: Final = PWT | PCD | PAT

XEN_FRAME: Final = MFN_MASK - 1
"""A frame that stands for all of Xen's own tables."""

XEN_ENTRY: Final = PRESENT | RW | ACCESSED | DIRTY
"""Flags of Xen's own entries in a guest's L4: out of reach of the guest, which runs as user."""

RO_M2P: Final = XEN_FRAME << PAGE_SHIFT | NX | PRESENT | USER | ACCESSED
"""Entry of the machine-to-physical table, which the guest may read."""

XEN_L4_SLOTS: Final = range(256, 272)
"""Slots of an L4 that are Xen's: not checked, overwritten when the L4 is validated."""

M2P_SLOT: Final = 256
"""Where Xen shows its machine-to-physical table, which it adds when the L4 is loaded; ..."""

SELF_MAP_SLOT: Final = 258
"""... maps the L4 itself, writable; ..."""

SIGNIFICANT: Final = FRAME_BITS | PRESENT | RW | CACHE_BITS
"""A present entry that is replaced by one equal in these bits needs no new check: only USER,
ACCESSED, DIRTY, GLOBAL, NX or available bits changed."""


def make_entry(mfn: int, flags: int) -> int:
    """The entry that maps frame `mfn` with `flags`."""
    return mfn << PAGE_SHIFT | flags


def entry_mfn(entry: int) -> int:
    """The frame that `entry` refers to."""
    return entry >> PAGE_SHIFT & MFN_MASK


XEN_L4_ENTRIES: Final = {
    260: make_entry(XEN_FRAME, XEN_ENTRY | NX),
    261: make_entry(XEN_FRAME, XEN_ENTRY),
    262: make_entry(XEN_FRAME, XEN_ENTRY),
}
"""... and what else it writes: per-domain mappings; its text, M2P, vmap and frame table; its direct
map (machines with up to 512 GiB)."""


@frozen
class PvMode:
    """Rules of one kind of PV guest.

    ``verified`` says whether the rules were replayed against a real hypervisor; show it to users.
    """

    name: str
    verified: bool
    root: int
    """Level of the table that the guest's CR3 names."""
    walk: tuple[int, ...]
    """Shift of the virtual address that gives the index at each level from the root down to L2."""
    refused: Mapping[int, int]
    """Bits that a present entry may not have, by level."""
    forced: Mapping[int, int]
    """Bits that Xen sets in every present entry that it accepts above L1 ..."""
    withdrawn: Mapping[int, int]
    """... and those that it takes out again when the table stops being one."""
    marks_kernel_entries: bool
    """Guest kernel and user space share ring 3: L1 entries without USER get USER | GUEST_KERNEL,
    those with USER and without GUEST_KERNEL get GLOBAL."""
    linear_levels: frozenset[int]
    """Levels whose tables may refer, read-only, to tables of their own level."""
    hypervisor_range: range
    """Virtual addresses that the guest may neither access nor map."""
    pae_xen_slot: int | None = None
    """Slot of the L3 whose L2 holds Xen's mappings: it must be there, be used once, and stay."""
    pae_xen_l2_slots: Collection[int] = ()
    """Slots of that L2 that are Xen's."""

    @property
    def guest_l3_slots(self) -> int:
        """How many entries of an L3 the guest may use."""
        return ENTRIES if self.pae_xen_slot is None else self.pae_xen_slot + 1


_NO_DIRECTORY_FLAGS: Final = PWT | PCD | PSE | GLOBAL

PV64: Final = PvMode(
    name="pv64",
    verified=True,
    root=4,
    walk=(39, 30, 21),
    # L1 entries: only guests with access to devices may choose memory types (see
    # ``Domain.privileged``); large pages, and GLOBAL above L1, are for nobody.
    refused={
        1: CACHE_BITS,
        2: _NO_DIRECTORY_FLAGS,
        3: _NO_DIRECTORY_FLAGS,
        4: _NO_DIRECTORY_FLAGS,
    },
    forced={2: USER, 3: USER, 4: USER | ACCESSED},
    withdrawn=Counter(),
    marks_kernel_entries=True,
    linear_levels=frozenset({2, 3, 4}),
    hypervisor_range=range(1 << 47, 0xFFFF_8800_0000_0000),
)
"""64-bit guests.  The hypervisor's range starts at the first non-canonical address, because the
guest can use neither."""

PV32_PAE: Final = PvMode(
    name="pv32pae",
    verified=False,
    root=3,
    walk=(30, 21),
    refused={1: CACHE_BITS, 2: _NO_DIRECTORY_FLAGS, 3: FLAGS_HIGH | _NO_DIRECTORY_FLAGS},
    forced=Counter({3: USER | RW}),
    withdrawn=Counter({3: USER | RW | ACCESSED}),
    marks_kernel_entries=False,
    linear_levels=frozenset({2}),
    hypervisor_range=range(0xF580_0000, 1 << 64),
    pae_xen_slot=3,
    pae_xen_l2_slots=range(0xF580_0000 >> 21 & 511, 512),
)
"""32-bit PAE guests on a 64-bit hypervisor, from the same source files.  Debian's Xen is built
without them, so nothing of this was replayed."""

MODES: Final = {mode.name: mode for mode in (PV64, PV32_PAE)}
