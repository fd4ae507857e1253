"""The x86 paging modes, as data.

Levels are numbered from the leaf tables upward: an L1 table holds the entries of 4 KiB pages, the
highest level is the root that CR3 points to. A *table* of level L maps ``table_span(L)`` bytes; one
*entry* of it maps ``entry_span(L)`` bytes.

Source: Intel SDM volume 3, chapter "Paging"; the direct-map bases are those of Linux
(Documentation/arch/x86/x86_64/mm.rst; i386: PAGE_OFFSET with the default 3G/1G split).
"""

from __future__ import annotations

from itertools import accumulate
from operator import mul

import attrs

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
ISA_END = MIB
"""End of the ISA range: the first MiB is mapped on its own by every Linux since 3.8."""


@attrs.frozen
class PagingMode:
    """How one mode translates addresses.

    ``index_bits`` gives, from L1 upward, how many address bits index a table; ``large_levels`` the
    levels above L1 whose entries may map a large page; ``physical_bits`` and ``virtual_bits`` are
    what Linux uses of an address; ``direct_map_base`` is the virtual address of physical 0 in the
    direct map, ``kernel_base`` that in the mapping of the kernel's image; ``lowmem_limit`` (bytes)
    is where the direct map must end, None where it may reach all memory; ``splits`` are the virtual
    addresses, highest first, at which a 32-bit kernel may be configured to begin it.
    """

    name: str
    title: str
    index_bits: tuple[int, ...]
    entry_bytes: int
    large_levels: frozenset[int]
    physical_bits: int
    virtual_bits: int
    has_nx: bool
    direct_map_base: int
    kernel_base: int
    lowmem_limit: int | None = None
    splits: tuple[int, ...] = ()
    root_level: int = attrs.field(init=False, repr=False, eq=False)
    """Level of the table that CR3 points to."""
    spans: tuple[int, ...] = attrs.field(init=False, repr=False, eq=False)
    """Bytes that a page maps, and, from L1 upward, a table of each level."""
    physical_end: int = attrs.field(init=False, repr=False, eq=False)
    """Where physical addresses end, in bytes, as far as the tree reaches."""
    is_32bit: bool = attrs.field(init=False, repr=False, eq=False)
    """Whether the kernel of this mode is i386 (with or without PAE)."""

    @root_level.default
    def _root_level(self) -> int:
        return len(self.index_bits)

    @spans.default
    def _spans(self) -> tuple[int, ...]:
        return tuple(accumulate((1 << bits for bits in self.index_bits), mul, initial=PAGE_SIZE))

    @physical_end.default
    def _physical_end(self) -> int:
        return min(1 << self.physical_bits, self.spans[-1])

    @is_32bit.default
    def _is_32bit(self) -> bool:
        return self.virtual_bits == 32

    def entry_span(self, level: int) -> int:
        """Bytes that one entry of a table of ``level`` maps (level 1: 4096)."""
        return self.spans[level - 1]

    def table_span(self, level: int) -> int:
        """Bytes that a whole table of ``level`` maps."""
        return self.spans[level]

    def entries(self, level: int) -> int:
        """Number of entries in a table of ``level``."""
        return 1 << self.index_bits[level - 1]

    def page_name(self, level: int) -> str:
        """Size of the pages that entries of ``level`` map, as printed: 4k, 2M, 4M, 1G."""
        size = self.entry_span(level)
        for unit, letter in ((GIB, "G"), (MIB, "M")):
            if size >= unit:
                return f"{size // unit}{letter}"
        return f"{size // KIB}k"


# i386: 1 GiB of kernel addresses less 128 MiB for vmalloc and fixmaps leaves 896 MiB of lowmem at
# the most (arch/x86/mm/init_32.c: MAXMEM; boot logs show 0x37ffe000 and 0x379fe000, see
# LowmemLimit).
_I386_LOWMEM = 896 * MIB
# CONFIG_VMSPLIT_*; with PAE those that begin with an entry of the root.
_SPLITS = (0xC0000000, 0xB0000000, 0x80000000, 0x78000000, 0x40000000)
_PAE_SPLITS = tuple([base for base in _SPLITS if base % GIB == 0])

I386 = PagingMode(
    name="i386",
    title="i386, 2 levels",
    index_bits=(10, 10),
    entry_bytes=4,
    large_levels=frozenset({2}),
    physical_bits=32,
    virtual_bits=32,
    has_nx=False,
    direct_map_base=0xC0000000,
    kernel_base=0xC0000000,
    lowmem_limit=_I386_LOWMEM,
    splits=_SPLITS,
)
I386_PAE = PagingMode(
    name="i386-pae",
    title="i386 PAE, 3 levels",
    index_bits=(9, 9, 2),
    entry_bytes=8,
    large_levels=frozenset({2}),
    physical_bits=36,
    virtual_bits=32,
    has_nx=True,
    direct_map_base=0xC0000000,
    kernel_base=0xC0000000,
    lowmem_limit=_I386_LOWMEM,
    splits=_PAE_SPLITS,
)
X86_64 = PagingMode(
    name="x86_64",
    title="x86_64, 4 levels",
    index_bits=(9, 9, 9, 9),
    entry_bytes=8,
    large_levels=frozenset({2, 3}),
    physical_bits=46,
    virtual_bits=48,
    has_nx=True,
    direct_map_base=0xFFFF_8800_0000_0000,
    kernel_base=0xFFFF_FFFF_8000_0000,
)
X86_64_LA57 = PagingMode(
    name="x86_64-la57",
    title="x86_64, 5 levels",
    index_bits=(9, 9, 9, 9, 9),
    entry_bytes=8,
    large_levels=frozenset({2, 3}),
    physical_bits=52,
    virtual_bits=57,
    has_nx=True,
    direct_map_base=0xFF11_0000_0000_0000,
    kernel_base=0xFFFF_FFFF_8000_0000,
)

MODES: dict[str, PagingMode] = {mode.name: mode for mode in (I386, I386_PAE, X86_64, X86_64_LA57)}
"""Every mode by name."""
