"""Where Xen's domain builder puts a PV kernel, its modules and its boot page tables.

Source: xen/arch/x86/pv/dom0_build.c (dom0_construct_pv) of Xen 4.17; what it prints as "VIRTUAL
MEMORY ARRANGEMENT". All addresses are guest-physical bytes, that is virtual addresses less the
kernel's virtual base.
"""

from __future__ import annotations

from enum import StrEnum

import attrs

from paravirt_mm import KernelImage, Machine, PagingMode, Span, align_up

PAGE_SIZE = 4096
MIB = 1 << 20
GIB = 1 << 30
START_INFO_SIZE = 0x4B8
_END_ALIGNMENT = 4 * MIB
_MIN_PADDING = 512 << 10
_PHYSICAL_START = 16 * MIB
_HIGHEST_LINK_ADDRESS = 32 * MIB
INLINE_P2M_LIMIT = 512 * GIB
"""A p2m list inside the initial mapping serves guests up to this size; larger ones need it
elsewhere.
"""


class P2mPlace(StrEnum):
    """Where the list of machine frames is mapped for the guest."""

    AUTO = "auto"
    INLINE = "inline"
    """After the initrd, inside the initial mapping: every kernel before Linux 4.3."""
    HIGH = "high"
    """At an address of its own that the kernel asked for (ELF note INIT_P2M)."""


@attrs.frozen
class Arrangement:
    """The layout of a fresh domain: named ranges in guest-physical bytes, and where the mapping
    ends.
    """

    kernel: Span
    initrd: Span | None
    p2m: Span | None
    start_info: Span
    page_tables: Span
    boot_stack: Span
    end: int

    @property
    def places(self) -> tuple[tuple[str, Span], ...]:
        """The ranges under the names that Xen prints."""
        named = (
            ("Loaded kernel", self.kernel),
            ("Init. ramdisk", self.initrd),
            ("Phys-Mach map", self.p2m),
            ("Start info", self.start_info),
            ("Page tables", self.page_tables),
            ("Boot stack", self.boot_stack),
        )
        return tuple((name, span) for name, span in named if span is not None)


def arrange(
    mode: PagingMode,
    kernel: Span,
    initrd_bytes: int,
    pages: int,
    p2m: P2mPlace = P2mPlace.AUTO,
) -> Arrangement:
    """Lay out a domain of ``pages`` pages whose kernel occupies ``kernel``.

    Each part starts on the next page boundary after the one before. The boot tables must map
    themselves and everything else, so their number is found by trying: each further table may push
    the end over a 4 MiB boundary. At least 512 KiB stay free below the end.
    """
    position = align_up(kernel[1], PAGE_SIZE)
    initrd = None
    if initrd_bytes:
        initrd = (position, position + initrd_bytes)
        position = align_up(initrd[1], PAGE_SIZE)
    inline = p2m is P2mPlace.INLINE or (
        p2m is P2mPlace.AUTO and pages * PAGE_SIZE <= INLINE_P2M_LIMIT
    )
    p2m_list = None
    if inline:
        p2m_list = (position, position + pages * mode.entry_bytes)
        position = align_up(p2m_list[1], PAGE_SIZE)
    start_info = (position, position + START_INFO_SIZE)
    tables_start = align_up(start_info[1], PAGE_SIZE)
    tables = 1
    while True:
        tables += 1
        tables_end = tables_start + tables * PAGE_SIZE
        stack = (tables_end, tables_end + PAGE_SIZE)
        end = align_up(stack[1], _END_ALIGNMENT)
        if end - stack[1] < _MIN_PADDING:
            end += _END_ALIGNMENT
        if boot_tables_needed(mode, end) <= tables:
            break
    return Arrangement(kernel, initrd, p2m_list, start_info, (tables_start, tables_end), stack, end)


def boot_tables_needed(mode: PagingMode, end: int) -> int:
    """Return how many tables map ``[0, end)`` at the kernel's virtual base, the root included."""
    needed = 1
    for level in range(1, mode.root_level):
        span = mode.table_span(level)
        base = mode.kernel_base % mode.table_span(mode.root_level)
        first = base // span
        last = -(-(base + end) // span)
        needed += last - first
    return needed


def arrange_machine(machine: Machine, p2m: P2mPlace) -> Arrangement:
    """Lay out a domain that owns all RAM of ``machine``."""
    kernel = loaded_kernel(machine)
    pages = machine.memory_map.ram_pages().total // PAGE_SIZE
    initrd = machine.initrd
    size = initrd[1] - initrd[0] if initrd else 0
    return arrange(machine.mode, kernel.span, size, pages, p2m)


def loaded_kernel(machine: Machine) -> KernelImage:
    """Return where the domain builder loads the kernel: at its linked address, never randomised.

    A machine whose kernel lies higher than any is linked had it moved there by its boot loader; it
    goes back to the default (CONFIG_PHYSICAL_START, 16 MiB).
    """
    kernel = machine.kernel
    if kernel.start < _HIGHEST_LINK_ADDRESS:
        return kernel
    move = _PHYSICAL_START - kernel.start
    return KernelImage(
        kernel.start + move, kernel.end + move, kernel.brk_start + move, kernel.brk_end + move
    )
