"""Lowmem of 32-bit machines: where the direct map must end, what lies beyond, and how far brk
tables reach.

A 32-bit kernel maps only lowmem, at most 896 MiB with the usual 3G/1G split; RAM above is HIGHMEM.
The incremental design argues that a brk area of 256 KiB is enough to begin with: 64 tables, which
map 64 × 512 × 4 KiB = 128 MiB even if a PAE machine has no large pages. These figures do that
arithmetic for a machine.
"""

from __future__ import annotations

import attrs

from paravirt_mm.machine.model import Machine
from paravirt_mm.machine.paging import PAGE_SIZE, PagingMode


@attrs.frozen
class Lowmem32:
    """Figures of one 32-bit machine; bytes unless the name says tables.

    lowmem
        RAM below the end of the direct map.
    lowmem_end
        Where the direct map ends.
    lowmem_limit
        Where it must end at the latest.
    highmem
        RAM that has no place in the direct map.
    brk
        Size of the brk area for early tables.
    brk_reach
        How much a brk area of that size maps in 4 KiB pages if every page of it becomes an L1
        table.
    brk_covers_lowmem
        Whether that is all of lowmem.
    tables_4k
        L1 tables that the direct map takes with 4 KiB pages alone.
    tables_4k_bytes
        The memory that they take.
    """

    lowmem: int
    lowmem_end: int
    lowmem_limit: int
    highmem: int
    brk: int
    brk_reach: int
    brk_covers_lowmem: bool
    tables_4k: int
    tables_4k_bytes: int


SEED_BRK = 256 << 10
"""The brk area that the incremental design argues with, in bytes."""


def brk_reach(mode: PagingMode, brk: int = SEED_BRK) -> int:
    """Return how many bytes a brk area of ``brk`` bytes maps in 4 KiB pages: 128 MiB for 256 KiB
    under PAE.
    """
    return brk // PAGE_SIZE * mode.table_span(1)


def lowmem32(machine: Machine) -> Lowmem32 | None:
    """Return the figures of a machine, None for a 64-bit one."""
    mode = machine.mode
    if mode.lowmem_limit is None:
        return None
    end = machine.map_limit
    ram = machine.memory_map.ram_pages()
    lowmem = ram.total_below(end)
    brk = machine.kernel.brk_pages * PAGE_SIZE
    span = mode.table_span(1)
    touched = [range(low // span, -(-high // span)) for low, high in ram.below(end)]
    tables = len(set().union(*touched))
    reach = brk_reach(mode, brk)
    return Lowmem32(
        lowmem=lowmem,
        lowmem_end=end,
        lowmem_limit=mode.lowmem_limit,
        highmem=ram.total_below(1 << mode.physical_bits) - lowmem,
        brk=brk,
        brk_reach=reach,
        brk_covers_lowmem=tables * PAGE_SIZE <= brk,
        tables_4k=tables,
        tables_4k_bytes=tables * PAGE_SIZE,
    )
