"""The formats of page-table entries, as data: what the CPU reads in them, and what Linux writes.

Source: Intel SDM volume 3, section "Paging" (bits, reserved bits);
arch/x86/include/asm/pgtable_types.h, arch/x86/mm/init_32.c, init_64.c and
arch/x86/kernel/head_{32,64}.S of Linux 3.6 to 6.1 (values); xen/arch/x86/pv/dom0_build.c of Xen
4.17 (entries of the domain builder).
"""

from __future__ import annotations

import attrs

from paravirt_mm.machine.paging import (
    I386,
    I386_PAE,
    PAGE_SIZE,
    X86_64,
    X86_64_LA57,
    PagingMode,
)

PRESENT = 1
RW = 1 << 1
USER = 1 << 2
PWT = 1 << 3
PCD = 1 << 4
ACCESSED = 1 << 5
DIRTY = 1 << 6
PSE = 1 << 7
"""In an entry above L1: maps a large page. In an L1 entry bit 7 is `PAT`."""
GLOBAL = 1 << 8
NX = 1 << 63
PAT = 1 << 7
"""Memory-type bit of an L1 entry ..."""
PAT_LARGE = 1 << 12
"""... and where it lies in the entry of a large page, since bit 7 says PSE there."""
XEN_GUEST_KERNEL = 1 << 52
"""Xen's mark on L1 entries that its domain builder made for the kernel (_PAGE_GUEST_KERNEL)."""

KERNPG_TABLE = PRESENT | RW | ACCESSED | DIRTY
"""Linux's _KERNPG_TABLE: an entry that refers to a table, in tables that are part of the image."""
PAGE_TABLE = KERNPG_TABLE | USER
"""Linux's _PAGE_TABLE: what pgd_populate, pud_populate and pmd_populate_kernel write."""
PAGE_KERNEL = PRESENT | RW | ACCESSED | DIRTY | GLOBAL | NX
"""Linux's PAGE_KERNEL, before bits that the CPU or platform lacks are masked."""
PAGE_KERNEL_LARGE = PAGE_KERNEL | PSE
"""Linux's PAGE_KERNEL_LARGE."""
DOMAIN_BUILDER_LEAF = PRESENT | RW | ACCESSED
"""L1 entries of Xen's domain builder for a 32-bit guest (COMPAT_L1_PROT): executable."""
DOMAIN_BUILDER_LEAF_64 = DOMAIN_BUILDER_LEAF | USER | XEN_GUEST_KERNEL
"""The same for a 64-bit guest (L1_PROT), whose kernel runs in user mode."""


@attrs.frozen
class EntryFormat:
    """How entries of one mode look.

    Tuples by level start with an unused element for level 0. ``table`` is what Linux writes next
    to the address of a table, ``boot_table`` what tables have that exist since boot (L2 entries of
    Xen's domain builder, L2_PROT, are the same). ``reserved``
    are bits that must be 0 in every present entry of a level (those above the CPU's physical
    addresses come on top); ``permissions`` tells whether entries of a level have RW, USER and NX
    at all: those of a PAE L3 do not.
    """

    mode: PagingMode
    table: tuple[int, ...]
    boot_table: tuple[int, ...]
    reserved: tuple[int, ...]
    permissions: tuple[bool, ...]

    @property
    def dtype(self) -> str:
        """numpy's name of the entries' type."""
        return f"<u{self.mode.entry_bytes}"

    @property
    def page_entries(self) -> int:
        """Entries that fit a page; a PAE L3 uses only the first four of them."""
        return PAGE_SIZE // self.mode.entry_bytes

    @property
    def address_field(self) -> int:
        """Bits of an entry that hold the address of a table or of a 4 KiB page."""
        return 0xFFFF_F000 if self.mode.entry_bytes == 4 else 0x000F_FFFF_FFFF_F000

    def leaf_address_field(self, level: int) -> int:
        """Bits of a leaf entry of ``level`` that hold an address at its own place."""
        return self.address_field & -self.mode.entry_span(level)

    def leaf_reserved(self, level: int) -> int:
        """Bits that must be 0 in a leaf entry of ``level``, beside ``reserved``.

        Below the address of a large page all is reserved but `PAT_LARGE`. In a 4 MiB entry it
        depends on the CPU (PSE-36) what is.
        """
        if self.mode.entry_bytes == 4:
            return 0
        return (self.mode.entry_span(level) - 1) & ~(PAT_LARGE | (PAGE_SIZE - 1))

    def above(self, physical_bits: int) -> int:
        """Return the bits that a CPU with ``physical_bits`` address bits reserves at the top of an
        address.
        """
        if self.mode.entry_bytes == 4:
            return 0
        top = 63 if self.mode.is_32bit else 52  # a PAE entry has no bits for software up there
        return (1 << top) - (1 << min(physical_bits, top))

    def leaf_flags(self, level: int, nx: bool = True, global_pages: bool = True) -> int:
        """Return what Linux writes next to the address of a page that entries of ``level`` map.

        ``nx`` and ``global_pages`` say whether CPU and platform have them (__supported_pte_mask).
        """
        flags = PAGE_KERNEL if level == 1 else PAGE_KERNEL_LARGE
        if not (nx and self.mode.has_nx):
            flags &= ~NX
        if not global_pages:
            flags &= ~GLOBAL
        return flags


# The L4 and L5 have no large pages: bit 7 is reserved in their entries.
FORMATS: dict[str, EntryFormat] = {
    entry_format.mode.name: entry_format
    for entry_format in (
        EntryFormat(
            mode=I386,
            table=(0, 0, PAGE_TABLE),
            boot_table=(0, 0, PAGE_TABLE),
            reserved=(0, 0, 0),
            permissions=(False, True, True),
        ),
        EntryFormat(
            mode=I386_PAE,
            table=(0, 0, PAGE_TABLE, PRESENT),
            boot_table=(0, 0, PAGE_TABLE, PRESENT),
            # Bit 5 (ACCESSED) is reserved too, but QEMU's emulated CPU sets it: dumps have it.
            reserved=(0, 0, 0, RW | USER | DIRTY | PSE | GLOBAL | NX),
            permissions=(False, True, True, False),
        ),
        EntryFormat(
            mode=X86_64,
            table=(0, 0, PAGE_TABLE, PAGE_TABLE, PAGE_TABLE),
            boot_table=(0, 0, PAGE_TABLE, KERNPG_TABLE, KERNPG_TABLE),
            reserved=(0, 0, 0, 0, PSE),
            permissions=(False, True, True, True, True),
        ),
        EntryFormat(
            mode=X86_64_LA57,
            table=(0, 0, PAGE_TABLE, PAGE_TABLE, PAGE_TABLE, PAGE_TABLE),
            boot_table=(0, 0, PAGE_TABLE, KERNPG_TABLE, KERNPG_TABLE, KERNPG_TABLE),
            reserved=(0, 0, 0, 0, PSE, PSE),
            permissions=(False, True, True, True, True, True),
        ),
    )
}
"""Every format by the name of its mode."""
