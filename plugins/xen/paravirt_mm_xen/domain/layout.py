"""Where a domain builder puts a PV kernel, its modules and its boot page tables.

Two builders exist: Xen's own for dom0 (xen/arch/x86/pv/dom0_build.c, dom0_construct_pv; it prints
what it did as "VIRTUAL MEMORY ARRANGEMENT"), and the toolstack's for every other guest
(tools/libs/guest/xg_dom_core.c and xg_dom_x86.c). What releases do differently is data
(`paravirt_mm_xen.domain.builders`). docs/xen-domain-builder.md tells it in prose.

All addresses are guest-physical bytes, that is virtual addresses less the kernel's virtual base.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from functools import lru_cache
from itertools import islice

import attrs

from paravirt_mm import (
    GIB,
    MIB,
    PAGE_SIZE,
    E820Type,
    InputError,
    KernelImage,
    Machine,
    MemoryMap,
    PagingMode,
    RangeSet,
    Span,
    align_down,
    align_up,
)
from paravirt_mm_xen.domain.builders import NEWEST, Builders

_END_ALIGNMENT = 4 * MIB
_MIN_PADDING = 512 << 10
_PHYSICAL_START = 16 * MIB
_HIGHEST_LINK_ADDRESS = 32 * MIB
HIGH_P2M_ADDRESS = 1 << 39
"""Where Linux asks for the p2m list (ELF note INIT_P2M, since 4.3): the second slot of the L4."""
LAST_GIB_OF_32BIT = 3 * GIB
"""Where a 32-bit guest's last L2 table begins to map."""


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
    SHIM = "shim"
    """A Xen between another Xen and the guest (PV shim): built as a dom0, with a guest's rings."""


class Part(StrEnum):
    """A part of a fresh domain, by the name that Xen prints (brk is part of the kernel to Xen)."""

    KERNEL = "Loaded kernel"
    BRK = "Brk"
    INITRD = "Init. ramdisk"
    P2M = "Phys-Mach map"
    START_INFO = "Start info"
    XENSTORE = "Xenstore ring"
    CONSOLE = "Console ring"
    PAGE_TABLES = "Page tables"
    BOOT_STACK = "Boot stack"


KERNEL, BRK, BOOT_STACK = Part.KERNEL, Part.BRK, Part.BOOT_STACK
"""For what every run asks for: a member costs ten times as much to look up in its class."""

_PRINTED = (
    Part.KERNEL,
    Part.INITRD,
    Part.P2M,
    Part.START_INFO,
    Part.XENSTORE,
    Part.CONSOLE,
    Part.PAGE_TABLES,
    Part.BOOT_STACK,
)
"""In the order in which Xen prints them."""


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
        spans = (
            self.kernel,
            self.initrd,
            self.p2m or self.high_p2m,
            self.start_info,
            self.xenstore,
            self.console,
            self.page_tables,
            self.boot_stack,
        )
        found = zip(_PRINTED, spans, strict=True)
        return tuple([(part, span) for part, span in found if span is not None])


@attrs.frozen(kw_only=True)
class Given:
    """What a domain builder is given. Addresses and sizes are bytes.

    kernel
        Where the kernel is loaded, in guest-physical bytes.
    pages
        All memory of the domain in pages, initrd and page tables included.
    initrd_mapped
        The initrd is part of the initial mapping (a kernel may do without: ELF note MOD_START_PFN,
        Linux since 3.18).
    base
        Where guest-physical 0 is mapped (ELF note VIRT_BASE); None: where the kernel's mode has it.
    hypervisor_bits
        Word size of Xen itself. (A 32-bit dom0 may run on a 64-bit Xen.)
    gbpages
        The CPU has pages of 1 GiB, which Xen takes for a long p2m list.
    """

    mode: PagingMode
    kernel: Span
    pages: int
    initrd_bytes: int = 0
    initrd_mapped: bool = True
    p2m: P2mPlace = P2mPlace.AUTO
    kind: DomainKind = DomainKind.DOM0
    builders: Builders = NEWEST
    base: int | None = None
    hypervisor_bits: int = 64
    gbpages: bool = False

    @property
    def virtual_base(self) -> int:
        """Where guest-physical 0 is mapped."""
        return self.mode.kernel_base if self.base is None else self.base

    @property
    def p2m_bytes(self) -> int:
        """Length of the p2m list, whose entries are as wide as the guest's long."""
        return self.pages * self._p2m_entry

    @property
    def _p2m_entry(self) -> int:
        return 4 if self.mode.is_32bit else 8

    @property
    def inserted(self) -> int:
        """Bytes of initrd in dom0's initial mapping that are no part of its first allocation."""
        apart = self.initrd_mapped and not self.builders.initrd_in_chunk
        return self.initrd_bytes if apart else 0

    @property
    def p2m_inline(self) -> bool:
        """Whether the p2m list lies inside the initial mapping."""
        if self.mode.is_32bit or self.p2m is P2mPlace.INLINE:
            return True
        return self.p2m is P2mPlace.AUTO and self.clipped.pages == self.pages

    @property
    def clipped(self) -> Given:
        """The same with no more pages than leave room for Linux's own tables if the p2m list lies
        inside the initial mapping: they take as much again (dom0_compute_nr_pages). As there, that
        may be a few more than were given, and what ends with the last address fits only where the
        hypervisor's own numbers go on behind it.
        """
        addresses = (1 << (32 if self.mode.is_32bit else 64)) - self.virtual_base
        end = align_up(self.kernel[1], PAGE_SIZE)
        if self.initrd_mapped:
            end += align_up(self.initrd_bytes, PAGE_SIZE)
        left = addresses - 2 * (end + self.p2m_bytes)
        if left > 0 or (left == 0 and self.mode.is_32bit and self.hypervisor_bits == 64):
            return self
        return attrs.evolve(self, pages=(addresses - end) // (2 * self._p2m_entry))


class TooLarge(InputError):
    """What is to be mapped at first reaches beyond the end of the guest's addresses, or takes more
    memory than there is.
    """


def arrange(given: Given) -> Arrangement:
    """Lay out a domain.

    Each part starts on the next page boundary after the one before. At least 512 KiB stay free
    between the boot stack and the end, a multiple of 4 MiB. Raises `TooLarge` where that end is no
    address of the guest.
    """
    position = align_up(given.kernel[1], PAGE_SIZE)
    initrd = None
    if given.initrd_bytes and given.initrd_mapped:
        initrd = (position, position + given.initrd_bytes)
        position = align_up(initrd[1], PAGE_SIZE)
    p2m_list = (position, position + given.p2m_bytes) if given.p2m_inline else None
    if p2m_list:
        position = align_up(p2m_list[1], PAGE_SIZE)
    has_rings = given.kind is not DomainKind.DOM0
    info_bytes = given.builders.start_info_bytes(given.hypervisor_bits, console=not has_rings)
    start_info = (position, position + info_bytes)
    position = align_up(start_info[1], PAGE_SIZE)
    xenstore = console = None
    if has_rings:
        xenstore = (position, position + PAGE_SIZE)
        console = (position + PAGE_SIZE, position + 2 * PAGE_SIZE)
        position += 2 * PAGE_SIZE
    page_tables, end = _page_tables(given, position)
    stack = (page_tables[1], page_tables[1] + PAGE_SIZE)
    behind = end
    if given.kind is not DomainKind.DOMU:
        inserted = align_up(given.inserted, PAGE_SIZE)
        behind = first_allocation(end, inserted) + inserted
    if given.initrd_bytes and not given.initrd_mapped:
        initrd = (behind, behind + given.initrd_bytes)
        behind = align_up(initrd[1], PAGE_SIZE)
    high_p2m = None
    if p2m_list is None:
        high_p2m = (behind, behind + high_p2m_frames(given) * PAGE_SIZE)
    return Arrangement(
        given.kernel,
        initrd,
        p2m_list,
        start_info,
        page_tables,
        stack,
        end,
        xenstore,
        console,
        high_p2m,
    )


def built(given: Given) -> Arrangement:
    """Lay out a domain that its builder can build. Raises `TooLarge` also where it has too little
    memory for the parts: the toolstack says so of the one that is too large
    (xc_dom_alloc_segment), Xen of the chunk and the initrd beside it ("Domain 0 allocation is too
    small for kernel image").
    """
    layout = arrange(given)
    needed = max(end for _, (_, end) in layout.places)
    if given.kind is not DomainKind.DOMU:
        beside = 0 if given.builders.initrd_in_chunk else align_up(given.initrd_bytes, PAGE_SIZE)
        needed = max(needed, first_allocation(layout.end, given.inserted) + beside)
    if needed > given.pages * PAGE_SIZE:
        raise TooLarge(f"needs {needed:#x} bytes of memory, and has {max(given.pages, 0)} pages")
    return layout


def _page_tables(given: Given, start: int) -> tuple[Span, int]:
    """Return where the boot tables lie if they begin at ``start``, and the end of the mapping.

    They must map themselves and everything else: each further table may push the end over a 4 MiB
    boundary. The number that maps what the number before needs settles after a few rounds, since
    512 tables need one more.
    """
    tables = boot_tables_needed(given, start)
    while True:
        tables_end = start + tables * PAGE_SIZE
        stack_end = tables_end + PAGE_SIZE
        end = align_up(stack_end + _MIN_PADDING, _END_ALIGNMENT)
        if given.virtual_base + end > 1 << (32 if given.mode.is_32bit else 64):
            raise TooLarge(
                f"an initial mapping of {end:#x} bytes at {given.virtual_base:#x} does not fit"
            )
        needed = boot_tables_needed(given, end)
        if needed <= tables:
            return (start, tables_end), end
        tables = needed


def first_allocation(end: int, inserted: int = 0) -> int:
    """Return the size of the chunk, a power of two, that Xen takes for dom0's initial mapping.

    An initrd of ``inserted`` bytes that is part of the mapping is not part of the chunk: its pages
    are inserted among those. What is not mapped comes after all that.
    """
    return 1 << (end - align_up(inserted, PAGE_SIZE) - 1).bit_length()


def high_p2m_frames(given: Given) -> int:
    """Return how many frames a p2m list at its own address takes, with the tables that map it.

    dom0's is mapped by pages of 1 GiB where the CPU has them and of 2 MiB, a rest by small ones
    (setup_pv_physmap); that of other guests by small pages alone (alloc_p2m_list_x86_64).
    """
    large = given.mode.entry_span(2)
    pages = -(-given.p2m_bytes // PAGE_SIZE)
    in_l2 = given.p2m_bytes % GIB if given.gbpages else given.p2m_bytes
    if given.kind is DomainKind.DOMU:
        return pages + 1 + -(-given.p2m_bytes // GIB) + -(-given.p2m_bytes // large)
    return pages + 1 + -(-in_l2 // GIB) + bool(given.p2m_bytes % large)


def boot_tables_needed(given: Given, end: int) -> int:
    """Return how many tables map ``[0, end)`` at the guest's virtual base, the root included.

    A 32-bit guest has an L3 of four entries. dom0 always gets all four L2 tables, another guest
    those that it needs, and one for the last GiB, which Xen's own entries need.
    """
    mode = given.mode
    low, high = given.virtual_base, given.virtual_base + end
    tables = {
        level: (align_up(high, span) - align_down(low, span)) // span
        for level, span in ((level, mode.table_span(level)) for level in range(1, mode.root_level))
    }
    if mode.root_level == 3:
        if given.kind is not DomainKind.DOMU:
            tables[2] = 4
            tables[4] = given.hypervisor_bits == 64 and given.builders.l4_of_32bit
        elif high <= LAST_GIB_OF_32BIT:
            to_the_end = 4 - low // GIB
            tables[2] = to_the_end if given.builders.guest_l2_to_the_end else tables[2] + 1
    return 1 + sum(tables.values())


def builder_tables(mode: PagingMode, end: int, kind: DomainKind) -> Iterator[tuple[int, int]]:
    """Yield level and first address of each boot table, in the order of the pages that they take.

    Xen itself takes the root, and then each table when its first entry is needed, the L1 before the
    tables above it; the toolstack takes level by level from the top. (The L2 tables of a 32-bit
    guest that map nothing are left out.) Guest-physical 0 is mapped where an L2 table begins to
    map, and all of the domain by one table of each level above.
    """
    yield mode.root_level, 0
    if kind is DomainKind.DOMU:
        for level in range(mode.root_level - 1, 0, -1):
            for address in range(0, end, mode.table_span(level)):
                yield level, address
        return
    for address in range(0, end, mode.table_span(1)):
        yield 1, address
        for level in range(2, mode.root_level):
            if address % mode.table_span(level) == 0:
                yield level, address


def boot_l1_pages(
    mode: PagingMode, tables: Span, end: int, kind: DomainKind = DomainKind.DOM0
) -> list[int]:
    """Return the pfns of the L1 tables among the boot tables, by ascending address mapped."""
    first = tables[0] // PAGE_SIZE
    return [first + position for position in _l1_positions(mode, end, kind)]


@lru_cache
def _l1_positions(mode: PagingMode, end: int, kind: DomainKind) -> tuple[int, ...]:
    order = builder_tables(mode, end, kind)
    return tuple(position for position, (level, _) in enumerate(order) if level == 1)


def extra_memory(memory: MemoryMap) -> RangeSet:
    """Return, in bytes, the RAM behind the domain's number of pages. What holes in front of it
    leave without a place, Linux moves here once its direct map stands (xen_remap_memory).
    """
    ram = with_first_page(memory).ram_pages()
    return RangeSet(ram.within(ram.total, ram.end))


def with_first_page(memory: MemoryMap) -> MemoryMap:
    """Return the map with RAM in its first page if that is reserved by itself: Linux keeps it,
    whatever the firmware says of it, and what a log shows is what Linux has made of the map.
    """
    first = next(iter(memory), None)
    if first is None or (first.start, first.end) != (0, PAGE_SIZE):
        return memory
    return memory.with_range(0, PAGE_SIZE, first.type, E820Type.RAM)


def loaded_kernel(machine: Machine) -> KernelImage:
    """Return where the domain builder loads the kernel: at its linked address, never randomised.

    A machine whose kernel lies higher than any is linked had it moved there by its boot loader; it
    goes back to the default (CONFIG_PHYSICAL_START, 16 MiB), by whole pages.
    """
    kernel = machine.kernel
    if kernel.start < _HIGHEST_LINK_ADDRESS:
        return kernel
    return kernel.at(_PHYSICAL_START + kernel.start % PAGE_SIZE)


def static_tables(
    mode: PagingMode, kernel: KernelImage, layout: Arrangement, identity: int = 0
) -> Span:
    """Return the pages of the kernel's own static tables: the root, those above L1, and
    ``identity`` L1 tables that map what follows the initial mapping.

    Linux has them in its image (init_top_pgt, level3_ident_pgt, level2_ident_pgt; i386:
    swapper_pg_dir and initial L2 tables). A memory map does not tell where; here they are the last
    pages of the image, or follow the boot stack where an image is too small to be one.
    """
    end = layout.end + identity * mode.table_span(1)
    above = (-(-end // mode.table_span(level)) for level in range(2, mode.root_level))
    count = 1 + sum(above) + identity
    size = count * PAGE_SIZE
    top = align_down(min(kernel.end, kernel.brk_start), PAGE_SIZE)
    if top - size < kernel.start:
        top = layout.boot_stack[1] + size
    return top - size, top


def table_pages(
    mode: PagingMode, layout: Arrangement, static: Span, kind: DomainKind, identity: int = 0
) -> dict[int, tuple[int, ...]]:
    """Return the pfns of the tables that begin the direct map, by level and ascending address: the
    builder's L1s, and the kernel's static ones, downward from the root.
    """
    end = layout.end + identity * mode.table_span(1)
    downward = iter(range(static[1] // PAGE_SIZE - 1, static[0] // PAGE_SIZE - 1, -1))
    pages: dict[int, tuple[int, ...]] = {mode.root_level: (next(downward),)}
    for level in range(mode.root_level - 1, 1, -1):
        pages[level] = tuple(islice(downward, -(-end // mode.table_span(level))))
    builders = boot_l1_pages(mode, layout.page_tables, layout.end, kind)
    pages[1] = (*builders, *islice(downward, identity))
    return pages
