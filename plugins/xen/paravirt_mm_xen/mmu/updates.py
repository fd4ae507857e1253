"""Changing one entry of a validated table (Xen: ``mod_l1_entry`` .. ``mod_l4_entry``).

The order is always: check the new entry and take what it holds, write it, give back what the old
entry held.  So a refusal changes nothing, and a reference that both hold never drops to 0.
"""

from __future__ import annotations

from paravirt_mm_xen.mmu.codes import EINVAL, EPERM, OK
from paravirt_mm_xen.mmu.entries import ACCESSED_DIRTY, PRESENT, SIGNIFICANT, XEN_L4_SLOTS
from paravirt_mm_xen.mmu.frames import L1, L3, L4, PAE_XEN_L2, Domain
from paravirt_mm_xen.mmu.validation import (
    adjust_l1e,
    check_absent,
    get_page_from_directory_entry,
    get_page_from_l1e,
    put_page_from_directory_entry,
    put_page_from_l1e,
)


def write_entry(d: Domain, mfn: int, index: int, value: int) -> None:
    """Store without any check."""
    entries = d.contents.get(mfn)
    if value:
        if entries is None:
            d.contents[mfn] = {index: value}
        else:
            entries[index] = value
    elif entries is not None:
        entries.pop(index, None)


def read_entry(d: Domain, mfn: int, index: int) -> int:
    """Entry `index` of frame `mfn`; 0 where nothing was ever stored."""
    entries = d.contents.get(mfn)
    return entries.get(index, 0) if entries is not None else 0


def mod_l1_entry(d: Domain, table: int, index: int, new: int, preserve_ad: bool) -> int:
    """Replace an L1 entry.  Codes as of `get_page_from_l1e`."""
    old = read_entry(d, table, index)
    if new & PRESENT:
        if new & d.refused[L1]:
            return EINVAL
        new = adjust_l1e(d, new)
        if not (old ^ new) & SIGNIFICANT:
            write_entry(d, table, index, new | old & ACCESSED_DIRTY if preserve_ad else new)
            return OK
        code = get_page_from_l1e(d, new)
        if code < 0:
            return code
        new ^= code
    else:
        check_absent(d, L1, new)
    write_entry(d, table, index, new | old & ACCESSED_DIRTY if preserve_ad else new)
    if old & PRESENT:
        put_page_from_l1e(d, old)
    return OK


def mod_directory_entry(
    d: Domain, level: int, table: int, index: int, new: int, preserve_ad: bool
) -> int:
    """Replace an entry of an L2, L3 or L4.

    EINVAL for Xen's own slots of an L4 and the last of a PAE L3, EPERM for Xen's slots of a PAE L2;
    otherwise codes as of `get_page_from_directory_entry`.
    """
    mode = d.mode
    if level == L4:
        if index in XEN_L4_SLOTS:
            return EINVAL
    elif level == L3:
        if mode.pae_xen_slot is not None and index >= mode.pae_xen_slot:
            return EINVAL
    elif d.type_info[table] & PAE_XEN_L2 and index in mode.pae_xen_l2_slots:
        return EPERM

    d.walks.clear()
    old = read_entry(d, table, index)
    if new & PRESENT:
        if new & d.refused[level]:
            return EINVAL
        new |= mode.forced[level]
        if not (old ^ new) & SIGNIFICANT:
            write_entry(d, table, index, new | old & ACCESSED_DIRTY if preserve_ad else new)
            return OK
        code = get_page_from_directory_entry(d, level, new, table)
        if code:
            return code
    else:
        check_absent(d, level, new)
    write_entry(d, table, index, new | old & ACCESSED_DIRTY if preserve_ad else new)
    put_page_from_directory_entry(d, level, old, table)
    return OK
