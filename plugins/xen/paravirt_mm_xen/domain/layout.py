"""Where a domain builder puts a PV kernel, its modules and its boot page tables.

Two builders exist: Xen's own for dom0 (xen/arch/x86/pv/dom0_build.c, dom0_construct_pv; it prints
what it did as "VIRTUAL MEMORY ARRANGEMENT"), and the toolstack's for every other guest
(tools/libs/guest/xg_dom_core.c and xg_dom_x86.c). Both of Xen 4.17; nothing that matters here has
changed between the releases whose logs were compared (4.1 to 4.19). docs/xen-domain-builder.md
tells it in prose.

All addresses are guest-physical bytes, that is virtual addresses less the kernel's virtual base.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from itertools import islice

import attrs

from paravirt_mm import (
    GIB,
    MIB,
    PAGE_SIZE,
    KernelImage,
    Machine,
    PagingMode,
    Span,
    align_down,
    align_up,
)

START_INFO_BYTES = 0x4B8
"""struct start_info with the console data behind it, for a 64-bit dom0."""
START_INFO_BYTES_OLD = 0x4B4
"""The same before the console data told the upper half of a frame buffer's address (Xen 4.14)."""
START_INFO_BYTES_32 = 0x46C
_END_ALIGNMENT = 4 * MIB
_MIN_PADDING = 512 << 10
_PHYSICAL_START = 16 * MIB
_HIGHEST_LINK_ADDRESS = 32 * MIB
HIGH_P2M_ADDRESS = 1 << 39
"""Where Linux asks for the p2m list (ELF note INIT_P2M, since 4.3): the second slot of the L4."""
INLINE_P2M_LIMIT = 512 * GIB
"""A p2m list inside the initial mapping serves guests up to this size; larger ones need it
elsewhere.
"""


class P2mPlace(StrEnum):
    """Where the list of machine frames is mapped for the guest."""

    AUTO = "auto"
    """By the size of the domain, or by the kernel's release where one is given."""
    INLINE = "inline"
    """After the initrd, inside the initial mapping: every kernel before Linux 4.3."""
    HIGH = "high"
    """At an address of its own that the kernel asked for (ELF note INIT_P2M)."""


class DomainKind(StrEnum):
    """Who builds the domain."""

    DOM0 = "dom0"
    """Xen itself, from the modules that the boot loader gave it."""
    DOMU = "domU"
    """The toolstack, from dom0."""


class Part(StrEnum):
    """A part of a fresh domain, by the name that Xen prints."""

    KERNEL = "Loaded kernel"
    INITRD = "Init. ramdisk"
    P2M = "Phys-Mach map"
    START_INFO = "Start info"
    XENSTORE = "Xenstore ring"
    CONSOLE = "Console ring"
    PAGE_TABLES = "Page tables"
    BOOT_STACK = "Boot stack"


@attrs.frozen
class Arrangement:
    """The layout of a fresh domain: named ranges in guest-physical bytes, and where the initial
    mapping ends.

    ``p2m`` is the list inside the initial mapping. A list at an address of its own has its frames,
    and the tables that map them, at ``high_p2m``. That, and an initrd that is not mapped, lie
    behind ``end``.
    """

    kernel: Span
    initrd: Span | None
    p2m: Span | None
    start_info: Span
    page_tables: Span
    boot_stack: Span
    end: int
    xenstore: Span | None = None
    console: Span | None = None
    high_p2m: Span | None = None

    @property
    def places(self) -> tuple[tuple[Part, Span], ...]:
        """The parts that there are, in the order in which Xen prints them."""
        parts = (
            (Part.KERNEL, self.kernel),
            (Part.INITRD, self.initrd),
            (Part.P2M, self.p2m or self.high_p2m),
            (Part.START_INFO, self.start_info),
            (Part.XENSTORE, self.xenstore),
            (Part.CONSOLE, self.console),
            (Part.PAGE_TABLES, self.page_tables),
            (Part.BOOT_STACK, self.boot_stack),
        )
        return tuple((part, span) for part, span in parts if span is not None)


def arrange(
    mode: PagingMode,
    kernel: Span,
    initrd_bytes: int,
    pages: int,
    p2m: P2mPlace = P2mPlace.AUTO,
    *,
    initrd_mapped: bool = True,
    kind: DomainKind = DomainKind.DOM0,
    start_info_bytes: int | None = None,
) -> Arrangement:
    """Lay out a domain of ``pages`` pages whose kernel occupies ``kernel``.

    Each part starts on the next page boundary after the one before. The boot tables must map
    themselves and everything else, so their number is found by trying: each further table may push
    the end over a 4 MiB boundary. At least 512 KiB stay free below the end.

    ``initrd_mapped`` tells whether the initrd is part of the initial mapping (a kernel may do
    without: ELF note MOD_START_PFN, Linux since 3.18).
    """
    position = align_up(kernel[1], PAGE_SIZE)
    initrd = None
    if initrd_bytes and initrd_mapped:
        initrd = (position, position + initrd_bytes)
        position = align_up(initrd[1], PAGE_SIZE)
    # The list holds frame numbers as wide as the guest's long.
    p2m_bytes = pages * (4 if mode.is_32bit else 8)
    inline = mode.is_32bit or p2m is P2mPlace.INLINE
    if p2m is P2mPlace.AUTO:
        inline |= pages * PAGE_SIZE <= INLINE_P2M_LIMIT
    p2m_list = (position, position + p2m_bytes) if inline else None
    if p2m_list:
        position = align_up(p2m_list[1], PAGE_SIZE)
    if start_info_bytes is None:
        start_info_bytes = START_INFO_BYTES_32 if mode.is_32bit else START_INFO_BYTES
    start_info = (position, position + start_info_bytes)
    position = align_up(start_info[1], PAGE_SIZE)
    xenstore = console = None
    if kind is DomainKind.DOMU:
        xenstore = (position, position + PAGE_SIZE)
        console = (position + PAGE_SIZE, position + 2 * PAGE_SIZE)
        position += 2 * PAGE_SIZE
    page_tables, end = _page_tables(mode, position)
    stack = (page_tables[1], page_tables[1] + PAGE_SIZE)
    behind = end
    if kind is DomainKind.DOM0:
        inserted = align_up(initrd_bytes, PAGE_SIZE) if initrd else 0
        behind = first_allocation(end, inserted) + inserted
    if initrd_bytes and not initrd_mapped:
        initrd = (behind, behind + initrd_bytes)
        behind = align_up(initrd[1], PAGE_SIZE)
    high_p2m = None
    if p2m_list is None:
        high_p2m = (behind, behind + high_p2m_frames(p2m_bytes) * PAGE_SIZE)
    return Arrangement(
        kernel, initrd, p2m_list, start_info, page_tables, stack, end, xenstore, console, high_p2m
    )


def _page_tables(mode: PagingMode, start: int) -> tuple[Span, int]:
    """Return where the boot tables lie if they begin at ``start``, and the end of the mapping."""
    tables = 1
    while True:
        tables += 1
        tables_end = start + tables * PAGE_SIZE
        stack_end = tables_end + PAGE_SIZE
        end = align_up(stack_end, _END_ALIGNMENT)
        if end - stack_end < _MIN_PADDING:
            end += _END_ALIGNMENT
        if boot_tables_needed(mode, end) <= tables:
            return (start, tables_end), end


def first_allocation(end: int, inserted: int = 0) -> int:
    """Return the size of the chunk, a power of two, that Xen takes for dom0's initial mapping.

    An initrd of ``inserted`` bytes that is part of the mapping is not part of the chunk: its pages
    are inserted among those. What is not mapped comes after all that.
    """
    return 1 << (end - align_up(inserted, PAGE_SIZE) - 1).bit_length()


def high_p2m_frames(p2m_bytes: int) -> int:
    """Return how many frames a p2m list at its own address takes: 2 MiB pages, a rest of small
    ones, and the tables that map them.
    """
    large = 2 * MIB
    rest = p2m_bytes % large
    pages = p2m_bytes // large * (large // PAGE_SIZE) + -(-rest // PAGE_SIZE)
    tables = 1 + -(-p2m_bytes // GIB) + (rest > 0)
    return pages + tables


def boot_tables_needed(mode: PagingMode, end: int) -> int:
    """Return how many tables map ``[0, end)`` at the kernel's virtual base, the root included.

    A 32-bit guest always gets all four L2 tables.
    """
    low, high = mode.kernel_base, mode.kernel_base + end
    spans = [mode.table_span(level) for level in range(1, mode.root_level)]
    below_root = sum((align_up(high, span) - align_down(low, span)) // span for span in spans)
    return 1 + below_root + (3 if mode.root_level == 3 else 0)


def builder_tables(mode: PagingMode, end: int, kind: DomainKind) -> Iterator[tuple[int, int]]:
    """Yield level and first address of each boot table, in the order of the pages that they take.

    Xen itself takes the root, and then each table when its first entry is needed, the L1 before the
    tables above it; the toolstack takes level by level from the top. (The L2 tables of a 32-bit
    guest that map nothing are left out.)
    """
    base = mode.kernel_base
    yield mode.root_level, 0
    if kind is DomainKind.DOMU:
        for level in range(mode.root_level - 1, 0, -1):
            span = mode.table_span(level)
            for va in range(align_down(base, span), base + end, span):
                yield level, va - base
        return
    for address in range(0, end, mode.table_span(1)):
        yield 1, address
        for level in range(2, mode.root_level):
            span = mode.table_span(level)
            if address == 0 or (base + address) % span == 0:
                yield level, align_down(base + address, span) - base


def boot_l1_pages(
    mode: PagingMode, tables: Span, end: int, kind: DomainKind = DomainKind.DOM0
) -> list[int]:
    """Return the pfns of the L1 tables among the boot tables, by ascending address mapped."""
    first = tables[0] // PAGE_SIZE
    order = builder_tables(mode, end, kind)
    return [first + position for position, (level, _) in enumerate(order) if level == 1]


def arrange_machine(
    machine: Machine,
    p2m: P2mPlace,
    *,
    initrd_mapped: bool = True,
    kind: DomainKind = DomainKind.DOM0,
) -> Arrangement:
    """Lay out a domain that owns all RAM of ``machine``."""
    kernel = loaded_kernel(machine)
    pages = machine.memory_map.ram_pages().total // PAGE_SIZE
    initrd = machine.initrd
    size = initrd[1] - initrd[0] if initrd else 0
    return arrange(
        machine.mode, kernel.span, size, pages, p2m, initrd_mapped=initrd_mapped, kind=kind
    )


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


def static_tables(mode: PagingMode, kernel: KernelImage, layout: Arrangement) -> Span:
    """Return the pages of the kernel's own static tables, the root and those above L1.

    Linux has them in its image (init_top_pgt, level3_ident_pgt, level2_ident_pgt; i386:
    swapper_pg_dir and initial L2 tables). A memory map does not tell where; here they are the last
    pages of the image, or follow the boot stack where an image is too small to be one.
    """
    count = 1 + sum(-(-layout.end // mode.table_span(level)) for level in range(2, mode.root_level))
    size = count * PAGE_SIZE
    top = align_down(min(kernel.end, kernel.brk_start), PAGE_SIZE)
    if top - size < align_up(kernel.start, PAGE_SIZE):
        top = layout.boot_stack[1] + size
    return top - size, top


def table_pages(
    mode: PagingMode, layout: Arrangement, static: Span, kind: DomainKind
) -> dict[int, tuple[int, ...]]:
    """Return the pfns of the tables that begin the direct map, by level and ascending address: the
    builder's L1s, and above them the kernel's static ones, downward from the root.
    """
    downward = iter(range(static[1] // PAGE_SIZE - 1, static[0] // PAGE_SIZE - 1, -1))
    pages: dict[int, tuple[int, ...]] = {mode.root_level: (next(downward),)}
    for level in range(mode.root_level - 1, 1, -1):
        pages[level] = tuple(islice(downward, -(-layout.end // mode.table_span(level))))
    pages[1] = tuple(boot_l1_pages(mode, layout.page_tables, layout.end, kind))
    return pages
