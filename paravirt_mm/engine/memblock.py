"""memblock: which RAM there is, which of it is taken, and the search from the top.

Source: mm/memblock.c of Linux 3.6 and 4.19 (memblock_find_in_range, memblock_reserve). Addresses
are bytes, ends exclusive.
"""

from __future__ import annotations

from collections.abc import Iterator

from paravirt_mm.engine.pages import PageRun, first_pages
from paravirt_mm.machine.paging import PAGE_SIZE
from paravirt_mm.machine.ranges import Ranges, RangeSet, align_down, align_up


class MemblockView:
    """RAM and reservations of one run, to be searched."""

    __slots__ = ("_free", "_memory", "_reserved", "_searched")

    def __init__(self, memory: Ranges, reserved: Ranges, free: Ranges) -> None:
        self._memory = memory
        self._reserved = reserved
        # Kept beside the other two, so that no search walks over what is used up already.
        self._free = free
        # What top-down searches have learnt, by (size, alignment): (end, floor) means that whatever
        # fits below end begins at floor or lower. Free memory only shrinks, so that stays true.
        self._searched: dict[tuple[int, int], tuple[int, int]] = {}

    def memory(self, start: int = 0, end: int = 1 << 64) -> Iterator[tuple[int, int]]:
        """Yield the RAM inside ``[start, end)``, ascending, whole pages only."""
        return self._memory.within(start, end)

    def is_memory(self, start: int, end: int) -> bool:
        """Tell whether ``[start, end)`` is all RAM without a hole (memblock_is_region_memory)."""
        return self._memory.covers(start, end)

    def reserved(self) -> Iterator[tuple[int, int]]:
        """Yield the merged reservations, ascending."""
        return iter(self._reserved)

    def free_descending(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield free RAM inside ``[start, end)``, highest first; page 0 is never free."""
        return self._free.descending(start, end)

    def free_among(self, ranges: Ranges, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield what of ``ranges`` is free RAM inside ``[start, end)``, highest first."""
        return self._free.common_descending(ranges, start, end)

    def find_top_down(self, start: int, end: int, size: int, align: int = PAGE_SIZE) -> int | None:
        """Return the highest aligned address where ``size`` free bytes fit in ``[start, end)``.

        The address is the end of a free range less ``size``, rounded down to ``align``, in the
        highest free range where that does not fall below the range's start. None: nothing fits.
        """
        # Before the first search nothing is known but of what lies below start, where none looks.
        seen_end, floor = self._searched.get((size, align), (start, start))
        found = self._highest_fit(max(start, min(seen_end - size, end)), end, size, align)
        if found is None:
            found = self._highest_fit(start, min(end, floor + size), size, align)
        if end >= seen_end:
            self._searched[size, align] = end, start if found is None else found
        return found

    def _highest_fit(self, start: int, end: int, size: int, align: int) -> int | None:
        for low, high in self._free.descending(start, end):
            candidate = align_down(high - size, align)
            if candidate >= low:
                return candidate
        return None

    def find_bottom_up(self, start: int, end: int, size: int, align: int = PAGE_SIZE) -> int | None:
        """Return the lowest aligned address where ``size`` free bytes fit in ``[start, end)``."""
        for low, high in self._free.within(start, end):
            candidate = align_up(low, align)
            if candidate + size <= high:
                return candidate
        return None

    def pages_top_down(self, start: int, end: int, count: int) -> list[PageRun]:
        """Return up to ``count`` free pages of ``[start, end)``, each the highest one left.

        That is what ``count`` single-page searches with a reservation after each would give.
        """
        spans = self.free_descending(start, end)
        return list(first_pages((PageRun.of_span(*span).downward() for span in spans), count))

    def pages_bottom_up(self, start: int, end: int, count: int) -> list[PageRun]:
        """Return up to ``count`` free pages of ``[start, end)``, each the lowest one left."""
        return list(
            first_pages((PageRun.of_span(*span) for span in self._free.within(start, end)), count)
        )


class Memblock(MemblockView):
    """RAM and reservations of one run, as the engine has them."""

    __slots__ = ("_open_free", "_open_reserved")

    def __init__(self, memory: Ranges, reserved: RangeSet) -> None:
        free = memory.difference(reserved)
        free.discard(0, PAGE_SIZE)
        super().__init__(memory, reserved.view(), free.view())
        self._open_reserved, self._open_free = reserved, free

    def view(self) -> MemblockView:
        """Return the same memory, as it stands at any time, without the means to reserve it."""
        return MemblockView(self._memory, self._reserved, self._free)

    def reserve(self, start: int, end: int) -> None:
        """Take ``[start, end)`` (memblock_reserve)."""
        self._open_reserved.add(start, end)
        self._open_free.discard(start, end)
