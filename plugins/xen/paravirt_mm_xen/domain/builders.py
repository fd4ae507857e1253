"""What differs between releases of Xen in how a PV domain is built, as data.

A release is a whole distribution of Xen: the hypervisor, which builds dom0, and its toolstack,
which builds every other guest. Numbers of a tree between two releases count as the older one.

Source: xen/arch/x86/domain_build.c (pv/dom0_build.c since 4.9), xen/include/public/xen.h,
tools/libxc/xc_dom_x86.c (tools/libs/guest/xg_dom_x86.c since 4.15) and tools/libxl/libxl_create.c
at the tags of the releases named; sizes by compiling xen.h at each.
"""

from __future__ import annotations

from typing import Any

import attrs

from paravirt_mm import MIB, Version


@attrs.frozen
class Builders:
    """The builders of one release, and of those after it up to the next entry of `RELEASES`.

    start_info
        Bytes of ``struct start_info``: for a 64-bit, and for a 32-bit hypervisor.
    console_info
        Bytes of ``struct dom0_vga_console_info``, which follows start info in dom0.
    l4_of_32bit
        The hypervisor counts an L4 among the boot tables of a 32-bit dom0 although it is 64-bit
        itself.
    initrd_in_chunk
        dom0's initrd is copied into its first chunk of memory; later releases assign the pages that
        the boot loader put it into, besides that chunk.
    dom0_unmapped_initrd, guest_unmapped_initrd
        The builder of dom0, or of other guests, knows ELF note MOD_START_PFN.
    dom0_high_p2m, guest_high_p2m
        The builder of dom0, or of other guests, knows ELF note INIT_P2M.
    guest_l2_to_the_end
        A 32-bit guest that is mapped below the last GiB has L2 tables from there to the end;
        before, its own and the last.
    clips_dom0
        dom0 gets no more memory than a p2m list in half of the kernel's own addresses can name,
        where its kernel has no other place for that list.
    guest_slack
        Bytes that a guest's memory map is longer than its memory.
    """

    since: Version
    start_info: tuple[int, int] = (0x480, 0x450)
    console_info: int = 0x1C
    l4_of_32bit: bool = True
    initrd_in_chunk: bool = True
    dom0_unmapped_initrd: bool = False
    dom0_high_p2m: bool = False
    guest_unmapped_initrd: bool = False
    guest_high_p2m: bool = False
    guest_l2_to_the_end: bool = False
    clips_dom0: bool = False
    guest_slack: int = 0

    def start_info_bytes(self, hypervisor_bits: int, *, console: bool) -> int:
        """Return the length of start info; with ``console``, that of dom0."""
        size = self.start_info[0 if hypervisor_bits == 64 else 1]
        return size + self.console_info if console else size


def _releases() -> tuple[Builders, ...]:
    changes: tuple[tuple[Version, dict[str, Any]], ...] = (
        ((3, 2), {"console_info": 0x24}),
        ((3, 4), {"start_info": (0x490, 0x458), "dom0_high_p2m": True}),
        ((4, 0), {"guest_slack": 8 * MIB, "clips_dom0": True}),
        ((4, 1), {"initrd_in_chunk": False, "dom0_unmapped_initrd": True}),
        ((4, 2), {"guest_slack": 0}),
        ((4, 2, 1), {"l4_of_32bit": False}),
        (
            (4, 7),
            {"guest_unmapped_initrd": True, "guest_high_p2m": True, "guest_l2_to_the_end": True},
        ),
        # A frame buffer above 4 GiB: first in 4.13, taken back into stable series.
        ((4, 11, 3), {"console_info": 0x28}),
        ((4, 12), {"console_info": 0x24}),
        ((4, 12, 2), {"console_info": 0x28}),
    )
    found = [Builders((3, 0, 4))]
    for since, change in changes:
        found.append(attrs.evolve(found[-1], since=since, **change))
    return tuple(found)


RELEASES = _releases()
"""Oldest first."""

NEWEST = RELEASES[-1]


def builders_of(release: Version) -> Builders | None:
    """Return the builders of a release of Xen; None before the first that is known."""
    return next((one for one in reversed(RELEASES) if one.since <= release), None)


def start_info_sizes(hypervisor_bits: int) -> frozenset[int]:
    """Return the lengths of dom0's start info in all releases."""
    return frozenset(one.start_info_bytes(hypervisor_bits, console=True) for one in RELEASES)
