"""References by type: taking one may validate a table, dropping the last one devalidates it.

This is the heart of PV paging (Xen: ``_get_page_type``, ``_put_page_type``, ``promote_*``,
``demote_*`` and ``get_page_from_l?e``, ``put_page_from_l?e`` in ``arch/x86/mm.c``):

* Every present entry of a validated table holds a reference.  An L1 entry with RW holds a writable
  one on the frame it maps; an entry of level 2..4 holds one of the next lower level on its child.
* The first reference of a table type validates the table, entry by entry, which takes these
  references and so validates children in turn.  The last one to go devalidates it likewise.
* When an entry is refused, what was taken for the entries before it has to be given back.  An L1
  does that on the spot.  A higher table is left ``PARTIAL``, with the slot at which it stopped, and
  becomes the guest's one *pending* table, which the hypercall drops before it returns
  (`finish_pending`).  Where tables fail inside each other, the outer one becomes the pending one
  and still holds its half-checked child by the entry at which it stopped.

Functions that can refuse return a code of `codes`; the others cannot fail.
"""

from __future__ import annotations

from collections.abc import Collection

from paravirt_mm_xen.mmu.codes import EACCES, EBUSY, EINVAL, EPERM, OK, DomainCrashedError
from paravirt_mm_xen.mmu.entries import (
    CACHE_BITS,
    ENTRIES,
    FRAME_BITS,
    GLOBAL,
    GUEST_KERNEL,
    M2P_SLOT,
    MFN_MASK,
    NX,
    PAGE_SHIFT,
    PAT,
    PCD,
    PRESENT,
    PSE,
    PWT,
    RO_M2P,
    RW,
    SELF_MAP_SLOT,
    USER,
    XEN_ENTRY,
    XEN_L4_ENTRIES,
    XEN_L4_SLOTS,
)
from paravirt_mm_xen.mmu.frames import (
    COUNT_SHIFT,
    L1,
    L2,
    L3,
    L4,
    NONE,
    PAE_XEN_L2,
    PARTIAL,
    REFERENCE,
    TYPE,
    VALIDATED,
    WRITABLE,
    Assist,
    Domain,
)

_LINEAR_LIMIT = (1 << 15) - 1
"""Xen counts same-level references in 16 bits with a sign."""


# --- references -----------------------------------------------------------------------------------


def get_table_type(d: Domain, mfn: int, kind: int) -> int:
    """Take a reference on a frame of the guest as a table: `kind` is ``L1``..``L4``, or ``L2``
    with ``PAE_XEN_L2``.

    Returns 0; or EINVAL when the frame has references of another type; or what validation says.
    """
    info = d.type_info[mfn]
    if not info >> COUNT_SHIFT:
        # Nobody uses the frame: it may become anything that its contents allow.
        d.type_info[mfn] = REFERENCE | kind
        d.linear_count[mfn] = 0
        return _validate(d, mfn, kind, start=0)
    if info & (TYPE | PAE_XEN_L2) != kind:
        return EINVAL
    if info & VALIDATED:
        d.type_info[mfn] = info + REFERENCE
        return OK
    # Left half-checked by an earlier failure: this reference takes over where that one stopped.
    # Only an L2 is ever left so (`Release.forgets_nested_failure`): it has no half-checked child.
    d.type_info[mfn] = info & ~PARTIAL
    return _validate(d, mfn, kind, d.held_slots[mfn])


def put_table_type(d: Domain, mfn: int, parent: int | None = None) -> None:
    """Drop a reference on table `mfn`, devalidating it with its last one.

    `parent` is the table whose entry held the reference, if one did.
    """
    info = d.type_info[mfn]
    if info >> COUNT_SHIFT == 1:
        d.type_info[mfn] = info & ~(VALIDATED | PARTIAL)
        _devalidate(d, mfn, info)
        d.type_info[mfn] -= REFERENCE
    else:
        d.type_info[mfn] = info - REFERENCE
    if parent is not None and not (info ^ d.type_info[parent]) & TYPE:
        d.linear_count[mfn] += 1
        d.linear_count[parent] -= 1


def get_writable_type(d: Domain, mfn: int) -> bool:
    """Take a writable reference on a frame of the guest; False when it has another type."""
    info = d.type_info[mfn]
    if info & TYPE == WRITABLE:
        d.type_info[mfn] = info + REFERENCE
    elif not info >> COUNT_SHIFT:
        d.type_info[mfn] = REFERENCE | VALIDATED | WRITABLE
    else:
        return False
    return True


def put_writable_type(d: Domain, mfn: int) -> None:
    """Drop a writable reference.  There is nothing to undo, and the type stays at count 0."""
    d.type_info[mfn] -= REFERENCE


def defer_put(d: Domain, mfn: int, parent: int | None) -> None:
    """Drop the reference that an entry of `parent` held on table `mfn` when the hypercall ends."""
    d.pending = mfn
    d.pending_parent = parent


def finish_pending(d: Domain) -> None:
    """Drop the pending reference, if any: the last thing that every hypercall does."""
    mfn = d.pending
    if mfn is not None:
        put_table_type(d, mfn, d.pending_parent)
        d.pending = None


# --- validation -----------------------------------------------------------------------------------


def _validate(d: Domain, mfn: int, kind: int, start: int) -> int:
    """Check the entries of `mfn` from slot `start` on.  Its type and one reference are in place."""
    level = kind & TYPE
    code = _promote_l1(d, mfn) if level == L1 else _promote_directory(d, mfn, level, kind, start)
    if code == OK:
        d.type_info[mfn] |= VALIDATED
        d.counters.validations[level] += 1
    elif mfn == d.pending:
        d.type_info[mfn] |= PARTIAL
    else:
        d.type_info[mfn] = NONE
    return code


def _promote_l1(d: Domain, mfn: int) -> int:
    entries = d.contents.get(mfn)
    if not entries:
        return OK
    taken: list[int] = []
    for index, entry in sorted(entries.items()):
        if not entry & PRESENT:
            check_absent(d, L1, entry)
            continue
        code = get_page_from_l1e(d, entry)
        if code < 0:
            for accepted in taken:
                put_page_from_l1e(d, accepted)
            return code
        entries[index] = accepted = adjust_l1e(d, entry ^ code)
        taken.append(accepted)
    return OK


def _promote_directory(d: Domain, mfn: int, level: int, kind: int, start: int) -> int:
    """Validate an L2, L3 or L4 from slot `start` on."""
    mode = d.mode
    if level == L3 and mode.pae_xen_slot is not None:
        return _promote_pae_l3(d, mfn, start)
    entries = d.contents.get(mfn, {})
    skipped = _xen_slots_of(d, level, kind)
    forced = mode.forced[level]
    for index in sorted(entries):
        entry = entries[index]
        if index < start or index in skipped:
            continue
        if not entry & PRESENT:
            check_absent(d, level, entry)
            continue
        code = get_page_from_directory_entry(d, level, entry, mfn)
        if code < 0:
            _stop_at(d, mfn, index, entry)
            return code
        entries[index] = entry | forced
    if level == L4:
        _write_xen_slots(d, mfn)
    return OK


def _promote_pae_l3(d: Domain, mfn: int, start: int) -> int:
    """Validate a 32-bit guest's L3: four entries, of which the last leads to Xen's mappings."""
    mode = d.mode
    last = mode.pae_xen_slot
    forced = mode.forced[L3]
    entries = d.contents.setdefault(mfn, {})
    for index in [index for index in entries if index >= mode.guest_l3_slots]:
        del entries[index]
    for index in range(start, mode.guest_l3_slots):
        entry = entries.get(index, 0)
        code = OK
        if index == last:
            code = _get_pae_xen_l2(d, entry)
        elif entry & PRESENT:
            code = get_page_from_directory_entry(d, L3, entry, mfn)
        else:
            check_absent(d, L3, entry)
        if code < 0:
            _stop_at(d, mfn, index, entry)
            return code
        if entry & PRESENT:
            entries[index] = entry | forced
    return OK


def _get_pae_xen_l2(d: Domain, entry: int) -> int:
    """Take the L2 that will hold Xen's mappings; it may not be used anywhere else.

    As in the source, the reference taken on an L2 that turns out to be shared is not given back.
    """
    child = entry >> PAGE_SHIFT & MFN_MASK
    if not entry & PRESENT or entry & d.refused[L3] or child not in d.type_info:
        return EINVAL
    code = get_table_type(d, child, L2 | PAE_XEN_L2)
    if code == OK and d.type_info[child] >> COUNT_SHIFT > 1:
        return EINVAL
    return code


def _stop_at(d: Domain, mfn: int, index: int, entry: int) -> None:
    """Leave table `mfn` half-checked: `entry` in slot `index` was refused."""
    if index == 0:
        return  # nothing was taken; the table just loses its type
    d.held_slots[mfn] = index
    if d.pending == entry >> PAGE_SHIFT & MFN_MASK:
        d.held_slots[mfn] = index + 1
    elif not d.release.forgets_nested_failure:
        finish_pending(d)
    d.pending = mfn
    d.pending_parent = None


def _xen_slots_of(d: Domain, level: int, info: int) -> Collection[int]:
    """Slots of a table that are Xen's own: never checked, never dropped."""
    if level == L4:
        return XEN_L4_SLOTS
    return d.mode.pae_xen_l2_slots if info & PAE_XEN_L2 else ()


def _write_xen_slots(d: Domain, mfn: int) -> None:
    """Put Xen's own mappings into a fresh L4, over whatever the guest left there."""
    entries = d.contents.setdefault(mfn, {})
    for slot in XEN_L4_SLOTS:
        entries.pop(slot, None)
    entries[SELF_MAP_SLOT] = mfn << PAGE_SHIFT | XEN_ENTRY | NX
    entries.update(XEN_L4_ENTRIES)
    if Assist.M2P_STRICT in d.assists:
        entries[M2P_SLOT] = RO_M2P
    if not d.nx:
        for slot in XEN_L4_SLOTS:
            if slot in entries:
                entries[slot] &= ~NX


# --- devalidation ---------------------------------------------------------------------------------


def _devalidate(d: Domain, mfn: int, info: int) -> None:
    """Give back what the entries hold; `info` is the type word before."""
    level = info & TYPE
    if not info & PARTIAL:
        d.counters.devalidations[level] += 1
    entries = d.contents.get(mfn, {})
    if level == L1:
        for entry in entries.values():
            if entry & PRESENT:
                put_page_from_l1e(d, entry)
    else:
        _demote_directory(d, mfn, entries, level, info)


def _demote_directory(d: Domain, mfn: int, entries: dict[int, int], level: int, info: int) -> None:
    held = d.held_slots[mfn] if info & PARTIAL else ENTRIES
    skipped = _xen_slots_of(d, level, info)
    for index, entry in list(entries.items()):
        if not entry & PRESENT or index in skipped or index >= held:
            continue
        child = entry >> PAGE_SHIFT & MFN_MASK
        if child == mfn:
            continue  # a table's entries of itself hold nothing
        if entry & PSE:
            put_large_page(d, level, entry)
        else:
            put_table_type(d, child, mfn)
        entries[index] = entry & ~d.mode.withdrawn[level]
    if level == L4 and not d.release.leaves_xen_slots:
        for slot in skipped:
            entries.pop(slot, None)


# --- what one entry holds -------------------------------------------------------------------------


def get_page_from_l1e(d: Domain, entry: int) -> int:
    """Take what a present L1 entry holds.

    Returns 0; or the flags (above 0) to flip in the entry before it is written: uncached for device
    memory, read-only where nobody may write to it; or EINVAL for flags, EBUSY when the frame cannot
    be mapped so, EACCES for a memory type on a page that the hypervisor shares, EPERM for device
    memory that is not the guest's.
    """
    if entry & d.refused[L1]:
        return EINVAL
    mfn = entry >> PAGE_SHIFT & MFN_MASK
    if mfn not in d.type_info:
        return _get_alien_frame(d, mfn, entry)
    if entry & RW and not get_writable_type(d, mfn):
        return EBUSY
    if entry & CACHE_BITS and mfn in d.special:
        if entry & RW:
            put_writable_type(d, mfn)
        return EACCES
    return OK


def _get_alien_frame(d: Domain, mfn: int, entry: int) -> int:
    """Map a frame that is not the guest's memory."""
    if d.is_foreign(mfn):
        return EBUSY
    if not d.may_map_device(mfn):
        return EINVAL if mfn == MFN_MASK else EPERM
    flip = entry & RW if d.is_read_only_device(mfn) else 0
    memory_type = entry & CACHE_BITS
    if memory_type == 0:
        return flip | PWT | PCD
    if memory_type in (PWT, PAT | PWT):
        return flip | PCD | memory_type & PAT
    return flip


def put_page_from_l1e(d: Domain, entry: int) -> None:
    """Give back what a present L1 entry holds."""
    if entry & RW:
        mfn = entry >> PAGE_SHIFT & MFN_MASK
        if mfn in d.type_info:
            put_writable_type(d, mfn)


def get_page_from_directory_entry(d: Domain, level: int, entry: int, table: int) -> int:
    """Take what a present entry of a level 2..4 `table` holds.  EINVAL for flags and frames that
    cannot be a table of the level below; otherwise what the child's validation says."""
    if entry & d.refused[level]:
        return EINVAL
    if _get_linear(d, level, entry, table):
        return OK
    child = entry >> PAGE_SHIFT & MFN_MASK
    return get_table_type(d, child, level - 1) if child in d.type_info else EINVAL


def put_page_from_directory_entry(d: Domain, level: int, entry: int, table: int) -> None:
    """Give back what an entry of a `table` of `level` 2..4 held, when the hypercall ends."""
    if entry & PRESENT:
        child = entry >> PAGE_SHIFT & MFN_MASK
        if child == table:
            return
        if entry & PSE:  # a large page: only the domain builder makes such entries
            put_large_page(d, level, entry)
        else:
            defer_put(d, child, table)


def get_large_page(d: Domain, level: int, entry: int) -> None:
    """Take what a large page holds: a writable reference on each of its frames, if it has RW."""
    if entry & RW:
        first = entry >> PAGE_SHIFT & MFN_MASK
        for mfn in range(first, first + ENTRIES ** (level - 1)):
            get_writable_type(d, mfn)


def put_large_page(d: Domain, level: int, entry: int) -> None:
    """Give it back (Xen: ``put_data_pages``)."""
    if entry & RW:
        first = entry >> PAGE_SHIFT & MFN_MASK
        for mfn in range(first, first + ENTRIES ** (level - 1)):
            put_writable_type(d, mfn)


def check_absent(d: Domain, level: int, entry: int) -> None:
    """Look at an absent entry that a guest stores, on CPUs with L1TF (``pv_l1tf_check_pte``).

    Such an entry must not name memory that the L1 data cache may hold. The guest goes on under
    shadow tables, where these are compiled in; without them it is crashed: raises
    `DomainCrashedError`.
    """
    limit = d.l1tf_safe
    if limit is None or d.release.shadow_paging:
        return
    if (level > L1 and entry & PSE) or 0 < entry & FRAME_BITS < limit:
        raise DomainCrashedError(f"L1TF-vulnerable L{level}e {entry:016x}")


def _get_linear(d: Domain, level: int, entry: int, table: int) -> bool:
    """Try `entry` as one of a *linear* page table: a read-only reference to the same level.

    A table may refer to itself freely (no reference is taken: it would keep itself alive).  Other
    tables must be validated already, and a table either has such entries or is referred to by
    them, never both, so that no chains can be built whose devalidation would recurse.
    """
    if not d.linear_tables or level not in d.mode.linear_levels or entry & RW:
        return False
    child = entry >> PAGE_SHIFT & MFN_MASK
    if child == table:
        return True
    info = d.type_info.get(child)
    if info is None or info & (TYPE | VALIDATED) != level | VALIDATED:
        return False
    uses = -d.linear_count[child]
    has = d.linear_count[table]
    if not 0 <= has < _LINEAR_LIMIT or not 0 <= uses <= _LINEAR_LIMIT:
        return False
    d.linear_count[child] -= 1
    d.linear_count[table] += 1
    d.type_info[child] = info + REFERENCE
    return True


def adjust_l1e(d: Domain, entry: int) -> int:
    """A present L1 entry as Xen writes it: kernel and user pages told apart (64-bit guests)."""
    if d.mode.marks_kernel_entries:
        if not entry & USER:
            return entry | GUEST_KERNEL | USER
        if not entry & GUEST_KERNEL:
            return entry | GLOBAL
    return entry
