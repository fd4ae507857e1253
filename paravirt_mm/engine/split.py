"""How one range of physical memory is split by page size before it is mapped.

Source: arch/x86/mm/init.c: init_memory_mapping of Linux 3.6, split_mem_range and
adjust_range_page_size_mask of 3.9 and 4.19.
"""

from __future__ import annotations

from functools import lru_cache

from paravirt_mm.engine.memblock import MemblockView
from paravirt_mm.frozen import frozen
from paravirt_mm.machine.paging import PAGE_SIZE, PagingMode
from paravirt_mm.machine.ranges import align_down, align_up


@frozen
class Piece:
    """Bytes ``[start, end)`` to map with entries of at most ``level`` (1: 4k, 2: 2M, 3: 1G)."""

    start: int
    end: int
    level: int


def split_by_alignment(mode: PagingMode, start: int, end: int, largest: int) -> list[Piece]:
    """Split ``[start, end)`` into at most five pieces: 4k head, 2M, 1G, 2M tail, 4k tail.

    ``largest`` is the highest level whose entries may map pages. Both edges are rounded down to
    pages, as the kernel shifts them. A 32-bit kernel never uses a large page for the first 2 or
    4 MiB: fixed-range MTRRs live there.
    """
    start, end = align_down(start, PAGE_SIZE), align_down(end, PAGE_SIZE)
    if largest == 1:
        return [Piece(start, end, 1)] if start < end else []
    large = mode.entry_span(2)
    first_large = large if mode.is_32bit and start == 0 else align_up(start, large)
    last_large = align_down(end, large)
    stops = [(first_large, 1), (last_large, 2), (end, 1)]
    if 3 in mode.large_levels:
        huge = mode.entry_span(3)
        first_huge = min(align_up(first_large, huge), last_large)
        stops[1:1] = (first_huge, 2), (align_down(end, huge), 3)
    pieces: list[Piece] = []
    for stop, level in stops:
        stop = min(stop, end)
        if start < stop:
            pieces.append(Piece(start, stop, min(level, largest)))
            start = stop
    return pieces


@lru_cache(maxsize=1024)
def tables_to_map(mode: PagingMode, start: int, end: int, largest: int) -> int:
    """Return how many tables a tree of its own takes to map ``[start, end)``, the root included.

    With pages of at most level ``largest``, as `split_by_alignment` chooses them; where pages are
    promoted it takes no more.
    """
    pieces = split_by_alignment(mode, start, end, largest)
    if not pieces:
        return 0
    start, end = pieces[0].start, pieces[-1].end
    count = 0
    for level in range(1, mode.root_level + 1):
        span = mode.table_span(level)
        # Larger pages need no table, and begin and end where one would.
        larger = sum([piece.end - piece.start for piece in pieces if piece.level > level])
        count += (align_up(end, span) - align_down(start, span) - larger) // span
    return count


def promote_to_large(
    mode: PagingMode, pieces: list[Piece], largest: int, memblock: MemblockView, limit: int
) -> list[Piece]:
    """Let a piece use a larger page where the whole large page around it is RAM.

    ``limit`` (bytes) is the end of lowmem, which a promoted page of a 32-bit kernel must not cross.
    """
    promoted: list[Piece] = []
    for piece in pieces:
        level = piece.level
        for candidate in range(piece.level + 1, largest + 1):
            span = mode.entry_span(candidate)
            start, end = piece.start - piece.start % span, piece.end + -piece.end % span
            if (end <= limit or not mode.is_32bit) and memblock.is_memory(start, end):
                level = candidate
        promoted.append(piece if level == piece.level else Piece(piece.start, piece.end, level))
    return promoted


def merge_equal(pieces: list[Piece]) -> list[Piece]:
    """Merge neighbours that use the same page size."""
    merged: list[Piece] = []
    for piece in pieces:
        if merged and merged[-1].end == piece.start and merged[-1].level == piece.level:
            merged[-1] = Piece(merged[-1].start, piece.end, piece.level)
        else:
            merged.append(piece)
    return merged
