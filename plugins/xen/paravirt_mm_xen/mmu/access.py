"""Loads and stores of the guest: the page walk, and the stores that Xen emulates.

A store to a frame that the guest maps read-only faults into Xen.  If the frame is a validated L1,
Xen treats the stored entry like an ``mmu_update`` (``ptwr_do_page_fault`` and
``ptwr_emulated_update`` in ``arch/x86/pv/ro-page-fault.c``), except that whatever it refuses
becomes the guest's page fault.  Everything else is the guest's page fault in the first place.

The CPU's ACCESSED and DIRTY bits are set as a walk uses entries.  The TLB is not modelled: what is
written to a table holds at once.
"""

from __future__ import annotations

from paravirt_mm_xen.mmu.codes import (
    GP_NOT_CANONICAL,
    OK,
    PF_READ_ABSENT,
    PF_READ_PROTECTED,
    PF_WRITE_ABSENT,
    PF_WRITE_PROTECTED,
)
from paravirt_mm_xen.mmu.entries import (
    ACCESSED,
    ACCESSED_DIRTY,
    MFN_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    PRESENT,
    PSE,
    RW,
)
from paravirt_mm_xen.mmu.frames import L1, TYPE, VALIDATED, Assist, Domain
from paravirt_mm_xen.mmu.updates import read_entry, write_entry
from paravirt_mm_xen.mmu.validation import (
    adjust_l1e,
    check_absent,
    get_page_from_l1e,
    put_page_from_l1e,
)

_L2_SHIFT = 21
_ADDRESSES = (1 << 64) - 1


def l1_table_of(d: Domain, va: int) -> tuple[int, bool] | None:
    """The frame that the L2 entry for `va` names, and whether all entries down to it allow writes.

    None where an entry is not present or the address is not the guest's to use.  Sets ACCESSED in
    the entries on the way, as the CPU does.
    """
    known = d.walks.get(va >> _L2_SHIFT)
    if known is not None:
        return known
    mfn = d.cr3
    if mfn is None or va in d.mode.hypervisor_range:
        return None
    path = RW
    for shift in d.mode.walk:
        index = va >> shift & 511
        entry = read_entry(d, mfn, index)
        if not entry & PRESENT or entry & PSE:
            return None
        write_entry(d, mfn, index, entry | ACCESSED)
        path &= entry
        mfn = entry >> PAGE_SHIFT & MFN_MASK
    d.walks[va >> _L2_SHIFT] = found = mfn, path != 0
    return found


def load(d: Domain, va: int) -> tuple[int, int]:
    """Load the 8 bytes at `va`: the code, and the value where the code is 0."""
    if va & 7:
        return _load_unaligned(d, va)
    found = l1_table_of(d, va)
    if found is not None:
        table, index = found[0], va >> PAGE_SHIFT & 511
        entry = read_entry(d, table, index)
        if entry & PRESENT:
            write_entry(d, table, index, entry | ACCESSED)
            return OK, read_entry(d, entry >> PAGE_SHIFT & MFN_MASK, _slot(va))
    else:
        large = _large_page(d, va)
        if large is not None:
            return OK, read_entry(d, large[0], _slot(va))
    return _fault(d, va, write=False), 0


def store(d: Domain, va: int, value: int, size: int = 8) -> int:
    """Store the low `size` bytes (1, 2, 4 or 8) of `value` at `va`.  0, or the fault.

    Raises ValueError for another size.
    """
    if size not in (8, 4, 2, 1):
        raise ValueError(f"a store has 1, 2, 4 or 8 bytes, not {size}")
    if va % size:
        return _store_unaligned(d, va, value, size)
    found = l1_table_of(d, va)
    if found is None:
        return _store_large(d, va, value, size)
    table, writable = found
    position = va >> PAGE_SHIFT & 511
    entry = read_entry(d, table, position)
    if not entry & PRESENT:
        return _fault(d, va, write=True)
    mfn = entry >> PAGE_SHIFT & MFN_MASK
    index = _slot(va)
    if size != 8:
        value = _merge(read_entry(d, mfn, index), value, va, size)
    if entry & RW:
        if not writable:
            return _fault(d, va, write=True, mapped=True)
        if entry & ACCESSED_DIRTY != ACCESSED_DIRTY:
            write_entry(d, table, position, entry | ACCESSED_DIRTY)
        write_entry(d, mfn, index, value)
        d.counters.plain_stores += 1
        return OK
    if d.privileged and d.is_read_only_device(mfn):
        d.counters.emulated_stores += 1  # and nothing is stored
        return OK
    # A frame that merely was an L1 has no references, and counts as an ordinary page.
    if d.type_info.get(mfn, 0) & (TYPE | VALIDATED) == L1 | VALIDATED and emulates_stores(d):
        upper_half = size == 4 and va % 8 == 4
        if _emulate(d, mfn, index, value, upper_half):
            return OK
    return _fault(d, va, write=True, mapped=True)


def _store_large(d: Domain, va: int, value: int, size: int) -> int:
    """Store where no L1 maps `va`: into a large page of the domain builder's, or not at all."""
    large = _large_page(d, va)
    if large is None or not large[1]:
        return _fault(d, va, write=True, mapped=large is not None)
    mfn, index = large[0], _slot(va)
    write_entry(d, mfn, index, _merge(read_entry(d, mfn, index), value, va, size))
    d.counters.plain_stores += 1
    return OK


def _large_page(d: Domain, va: int) -> tuple[int, bool] | None:
    """The frame at `va` in a large page, and whether it may be written; None: there is none."""
    mfn = d.cr3
    if mfn is None or va in d.mode.hypervisor_range:
        return None
    path = RW
    for shift in d.mode.walk:
        entry = read_entry(d, mfn, va >> shift & 511)
        if not entry & PRESENT:
            return None
        path &= entry
        mfn = entry >> PAGE_SHIFT & MFN_MASK
        if entry & PSE:
            return mfn + (va % (1 << shift) >> PAGE_SHIFT), path != 0
    return None


def emulates_stores(d: Domain) -> bool:
    """Whether Xen looks at a guest's stores to read-only pages at all: at those of dom0 for the
    sake of read-only devices, at others' where they ask for it (``fixup_page_fault``)."""
    return d.privileged or Assist.WRITABLE_PAGETABLES in d.assists


def _load_unaligned(d: Domain, va: int) -> tuple[int, int]:
    """As two loads: of the bytes below a multiple of 8, and of those from it on."""
    shift = va % 8 * 8
    parts = []
    for address in (va & ~7, (va & ~7) + 8 & _ADDRESSES):
        code, value = load(d, address)
        if code:
            return code, 0
        parts.append(value)
    low, high = parts
    return OK, (low >> shift | high << 64 - shift) & _ADDRESSES


def _store_unaligned(d: Domain, va: int, value: int, size: int) -> int:
    """All bytes or none.  Xen emulates no such store, so both ends must be plainly writable."""
    for address in (va, va + size - 1 & _ADDRESSES):
        found = l1_table_of(d, address)
        entry = read_entry(d, found[0], address >> PAGE_SHIFT & 511) if found else 0
        if found is None or not entry & PRESENT:
            return _fault(d, address, write=True)
        if not (found[1] and entry & RW):
            return _fault(d, address, write=True, mapped=True)
    for offset in range(size):
        store(d, va + offset, value >> 8 * offset & 0xFF, 1)
    d.counters.plain_stores -= size - 1
    return OK


def _fault(d: Domain, va: int, *, write: bool, mapped: bool = False) -> int:
    """The fault that the guest's handler sees."""
    d.counters.faults += 1
    if -1 << 47 & va not in (0, -1 << 47 & _ADDRESSES):
        return GP_NOT_CANONICAL
    if mapped or va in d.mode.hypervisor_range:
        return PF_WRITE_PROTECTED if write else PF_READ_PROTECTED
    return PF_WRITE_ABSENT if write else PF_READ_ABSENT


def _slot(va: int) -> int:
    """Which 8 bytes of its page an address lies in."""
    return va % PAGE_SIZE >> 3


def _merge(old: int, value: int, va: int, size: int) -> int:
    """Part of an entry replaced."""
    shift = va % 8 * 8
    mask = (1 << 8 * size) - 1 << shift
    return old & ~mask | value << shift & mask


def _emulate(d: Domain, table: int, index: int, new: int, upper_half: bool) -> bool:
    """Do the store to a validated L1 on the guest's behalf, if the entry is acceptable."""
    if new & PRESENT:
        code = get_page_from_l1e(d, new)
        if code < 0:
            if d.mode.root == 4 or not upper_half:
                return False
            # A PAE guest writes an entry in two halves; Xen takes it that the lower one follows.
            new &= ~PRESENT
        else:
            new ^= code
    if new & PRESENT:
        new = adjust_l1e(d, new)
    else:
        check_absent(d, L1, new)
    old = read_entry(d, table, index)
    write_entry(d, table, index, new)
    d.counters.emulated_stores += 1
    if old & PRESENT:
        put_page_from_l1e(d, old)
    return True
