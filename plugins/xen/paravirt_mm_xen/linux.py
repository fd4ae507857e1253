"""What Linux does as a PV guest that backend and replay both need, release by release."""

from __future__ import annotations

MULTICALL_ENTRIES = 32
"""Linux collects up to this many calls in one multicall (arch/x86/xen/multicalls.c: MC_BATCH)."""

UNMAPPED_INITRD_SINCE = (3, 18)
"""First release that does without its initrd in the initial mapping (ELF note MOD_START_PFN)."""

HIGH_P2M_SINCE = (4, 3)
"""First release that has the p2m list mapped at an address of its own (ELF note INIT_P2M)."""

IDENTITY_TABLES = 4
"""L1 tables of its own with which the kernel goes on behind what the domain builder has mapped
(xen_map_identity_early: level1_ident_pgt, in the image or its brk).
"""
IDENTITY_64BIT = (2, 6, 26), (3, 7)
"""First 64-bit release that does so, and first that does not; 32-bit kernels always do."""

EXTRA_RESERVED_SINCE = (4, 3)
"""First release that keeps the RAM behind its number of pages, which has no frames before the
direct map stands, reserved until then: xen_memory_setup counts what will move
(xen_count_remap_pages) and gives as much to xen_add_extra_mem. Read in the source of 4.8; in those
of 3.6 and 3.18 frames move at once, and what they move to is not reserved. The change, "xen: split
counting of extra memory pages from remapping", was posted until June 2015; that 4.3 was the first
to have it is from memory. Measured with 5.10, 6.1 and 7.2.
"""

LEAF_HYPERCALLS = (4, 19), (5, 16)
"""First release whose leaf entries of early boot go through the hypervisor one by one, and first
that stores them again, as those before 4.19 did (xen_set_pte_init: "x86/xen: don't write ptes
directly in 32-bit PV guests", and "xen/x86: restore (fix) xen_set_pte_init() behavior"). Stable
releases of older lines that took the first change as a fix are not told apart.
"""

WRITES_BACK_SINCE = (2, 6, 39)
"""First release that maps all of the linear allocator's block read-only, and makes what is left of
it writable (mask_rw_pte, xen_mapping_pagetable_reserve). The last is 3.8: from 3.9 on there is no
block ("x86, mm, Xen: Remove mapping_pagetable_reserve()").
"""
