"""The kernel's own words: how a release prints what it does to its direct map.

Addresses are bytes and ends exclusive on the way in; what a release prints is its own affair (ends
became inclusive with 3.5).

Source: the printk formats of arch/x86/mm/init.c, init_32.c, init_64.c and arch/x86/kernel/e820.c;
every form is found in real logs.
"""

from __future__ import annotations

import attrs

from paravirt_mm.machine.e820 import MemoryMap
from paravirt_mm.machine.paging import PAGE_SIZE
from paravirt_mm.machine.ranges import align_down
from paravirt_mm.machine.release import Version
from paravirt_mm.sources.bootlog.facts import (
    BrkTable,
    Fact,
    LastPfn,
    MappedRange,
    PageRange,
    TableBlock,
    WritableRange,
)

_MEM_RANGES: Version = (3, 5)
"""First release that prints ranges as ``[mem A-B]``, ends inclusive."""
_E820_PREFIX: Version = (3, 5)
_BARE_LAST_PFN: Version = (4, 12)
"""First release that prints ``last_pfn`` without ``e820:`` again."""
_RANGES_SHOWN: Version = (2, 6, 28)
"""First release whose init_memory_mapping line says which range."""
_ENDS_WITH_LARGE_PAGE: Version = (2, 6, 27)
"""First release that maps the last pages one by one. Before, the last large page was mapped whole,
and the end printed is that of the firmware's last entry.
"""
_NAMES_4M: Version = (4, 0)
"""First release that calls the 4 MiB pages of i386 without PAE 4M; 2M before."""


SHOWN: dict[type[Fact], tuple[Version, Version, Version]] = {
    LastPfn: ((2, 6, 27), (2, 6, 27), (99,)),
    MappedRange: ((2, 6, 27), (2, 6, 30), (4, 4)),
    PageRange: ((2, 6, 27), (2, 6, 30), (4, 4)),
    TableBlock: ((2, 6, 19), (2, 6, 27), (3, 9)),
    BrkTable: ((3, 9), (3, 9), (5, 8)),
    WritableRange: ((2, 6, 39), (2, 6, 39), (3, 9)),
}
"""Lines that a kernel prints without being asked to: since (64-bit), since (32-bit), before."""


@attrs.frozen
class Words:
    """How one release prints.

    ``version`` are the numbers of the release.
    """

    version: Version
    is_32bit: bool = False

    def shows(self, kind: type[Fact]) -> bool:
        """Tell whether the release prints lines of a kind (see `SHOWN`) without being asked to."""
        if kind not in SHOWN:
            return True
        since, since_32, before = SHOWN[kind]
        return (since_32 if self.is_32bit else since) <= self.version < before

    @property
    def hides_ranges(self) -> bool:
        """Whether the line of init_memory_mapping does not say which range."""
        return self.version < _RANGES_SHOWN

    @property
    def _inclusive(self) -> bool:
        return self.version >= _MEM_RANGES

    def memory(self, start: int, end: int) -> str:
        """Return ``[mem 0x00000000-0x000fffff]``."""
        return f"[mem {start:#010x}-{end - 1:#010x}]"

    def mapped_range(self, start: int, end: int) -> str:
        """Return the line of one call of init_memory_mapping."""
        if self._inclusive:
            return f"init_memory_mapping: {self.memory(start, end)}"
        if self.hides_ranges:
            return "init_memory_mapping"
        return f"init_memory_mapping: {start:016x}-{end:016x}"

    def page_name(self, name: str) -> str:
        """Return the name that the release gives to pages of a size: 4k, 2M, 4M, 1G."""
        return "2M" if name == "4M" and self.version < _NAMES_4M else name

    def page_range(self, start: int, end: int, name: str) -> str:
        """Return the line of one piece and its page size."""
        where = self.memory(start, end) if self._inclusive else f"{start:010x} - {end:010x}"
        return f" {where} page {self.page_name(name)}"

    def table_block(self, up_to: int, start: int, end: int) -> str:
        """Return the line of the linear allocator's guess."""
        what = "kernel direct mapping tables up to"
        if self._inclusive:
            return f"{what} {up_to - 1:#x} @ {self.memory(start, end)}"
        return f"{what} {up_to:x} @ {start:x}-{end:x}"

    def brk_table(self, start: int, end: int) -> str:
        """Return the line of tables taken from brk."""
        return f"BRK [{start:#010x}, {end - 1:#010x}] PGTABLE"

    def last_pfn(self, pfn: int, max_arch_pfn: int) -> str:
        """Return the line of e820_end_pfn."""
        prefix = "e820: " if _E820_PREFIX <= self.version < _BARE_LAST_PFN else ""
        return f"{prefix}last_pfn = {pfn:#x} max_arch_pfn = {max_arch_pfn:#x}"

    def reserved(self, start: int, end: int) -> str:
        """Return a reservation of memblock."""
        return f"memblock_reserve: [{start:#018x}-{end - 1:#018x}]"

    def end_of_call(self, end: int, memory: MemoryMap) -> int:
        """Return up to where a call says that it maps: what is mapped may end with a large page."""
        if self.version < _ENDS_WITH_LARGE_PAGE:
            return min(end, align_down(memory.known().end, PAGE_SIZE))
        return end

    def setting_writable(self, start: int, end: int) -> str:
        """Return the line of xen_mapping_pagetable_reserve: what was set aside and not used."""
        return f"xen: setting RW the range {start:x} - {end:x}"
