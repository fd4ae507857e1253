"""The incremental allocator as merged in Linux, by release: brk pages, step growth, promotion,
fallbacks.

One row a change; a release behaves as the last row that is not newer than it.

Where neighbouring releases could not be read, a row begins with the first that was seen to have the
change: 3.13 (3.11 has not), 4.19 (4.18 has not), 5.12 (5.11 has not, 5.14 has). Rows hold mainline
releases; what stable series took from later ones is in `BACKPORTS`.

Source: arch/x86/mm/init.c (early_alloc_pgt_buf, memory_map_top_down, memory_map_bottom_up,
get_new_step_size, split_mem_range, alloc_low_pages), mm/memblock.c (memblock_find_in_range_node);
6.16: "x86/mm/64: Make 5-level paging support unconditional" (INIT_PGD_PAGE_TABLES). Debian's 5.10,
6.1, 6.12, 7.2 and 7.3 were booted with hundreds of maps: from 6.16 to 7.3 nothing else changed.
"""

from __future__ import annotations

from enum import StrEnum
from functools import cache

import attrs

from paravirt_mm import PagingMode, Promote, SpecError, Version, parse_release


class Growth(StrEnum):
    """How the step size grows after a step that mapped RAM."""

    LARGER_STEP = "x32 after a step that mapped more than all before"
    MAPPED_ENOUGH = "by a table less one bit (x256) once as much RAM is mapped as the step is large"


class BrkPages(StrEnum):
    """How many pages of brk are set aside for the first tables.

    A set holds the tables of the ISA range or of the first large page, one a level below the root.
    """

    FIVE = "5"
    SIX = "6"
    SIX_OR_TWELVE = "6; 12 with CONFIG_RANDOMIZE_MEMORY"
    EIGHT_OR_SIXTEEN = "8 (6 without a fifth level); 16 (12) with CONFIG_RANDOMIZE_MEMORY"
    ALWAYS_FOUR_A_SET = "8; 16 with CONFIG_RANDOMIZE_MEMORY"


class BottomUp(StrEnum):
    """How memblock searches in bottom-up mode (``movable_node`` and hot-pluggable memory)."""

    NO = "no such mode"
    ABOVE_KERNEL = "lowest free page above the kernel; else from the top"
    ANYWHERE = "lowest free page, or none"


class Fallback(StrEnum):
    """What happens where memblock has no page for a table.

    The later way looks like a rescue and is none: setup_arch has closed brk before (reserve_brk),
    and extend_brk insists on an open one. Live 6.1 dies there.
    """

    PANIC = "panic"
    EXTEND_BRK = "where brk may serve, one more page of it is asked for, which is a BUG; else panic"


class NoBlock(StrEnum):
    """Where mapping begins when no free large page is found."""

    BOTTOM = "at the first large page"
    TOP = "at the last large page boundary, with a warning"


@attrs.frozen
class Change:
    """What releases do from ``since`` on; ``note`` tells what was new."""

    since: Version
    brk: BrkPages
    growth: Growth
    promote: Promote
    bottom_up: BottomUp
    fallback: Fallback
    no_block: NoBlock
    note: str

    def next_step(self, mode: PagingMode, step: int, mapped: int, last: int) -> int:
        """Return the next step size in bytes; ``mapped`` is all RAM mapped so far, ``last`` by the
        last step.
        """
        if self.growth is Growth.LARGER_STEP:
            return step << 5 if last > mapped - last else step
        return step << (mode.index_bits[0] - 1) if mapped >= step else step

    def brk_pages(self, mode: PagingMode, randomize_memory: bool) -> int:
        """Return the pages of brk set aside; ``randomize_memory``: CONFIG_RANDOMIZE_MEMORY (64-bit
        only).
        """
        sets = 4 if randomize_memory and not mode.is_32bit else 2
        if self.brk is BrkPages.FIVE:
            return 5
        if self.brk is BrkPages.SIX:
            return 6
        if self.brk is BrkPages.SIX_OR_TWELVE:
            return 3 * sets
        if self.brk is BrkPages.ALWAYS_FOUR_A_SET:
            return 4 * sets
        return (3 if mode.is_32bit else 4) * sets

    def panic(self, *, window_is_empty: bool, use_brk: bool) -> str:
        """Return the words with which the kernel gives up."""
        if use_brk and self.fallback is Fallback.EXTEND_BRK:
            return "extend_brk: brk is closed (kernel BUG)"
        function = "alloc_low_page" if self.bottom_up is BottomUp.NO else "alloc_low_pages"
        if window_is_empty and self.fallback is Fallback.PANIC:
            return f"{function}: ran out of memory"
        return f"{function}: can not alloc memory"


_5, _6, _12, _16 = (
    BrkPages.FIVE, BrkPages.SIX, BrkPages.SIX_OR_TWELVE, BrkPages.EIGHT_OR_SIXTEEN
)  # fmt: skip
_FOUR = BrkPages.ALWAYS_FOUR_A_SET
_LARGER, _ENOUGH = Growth.LARGER_STEP, Growth.MAPPED_ENOUGH
_BEFORE, _AFTER = Promote.BEFORE_MERGE, Promote.AFTER_MERGE
_NO, _ABOVE, _ANYWHERE = BottomUp.NO, BottomUp.ABOVE_KERNEL, BottomUp.ANYWHERE
_PANIC, _EXTEND = Fallback.PANIC, Fallback.EXTEND_BRK
_BOTTOM, _TOP = NoBlock.BOTTOM, NoBlock.TOP

CHANGES: tuple[Change, ...] = (
    Change((3, 9), _5, _LARGER, _AFTER, _NO, _PANIC, _BOTTOM,
        "merged"),
    Change((3, 10), _5, _LARGER, _BEFORE, _NO, _PANIC, _BOTTOM,
        "promotion before neighbours are merged"),
    Change((3, 11), _6, _LARGER, _BEFORE, _NO, _PANIC, _BOTTOM,
        "a sixth page"),
    Change((3, 13), _6, _LARGER, _BEFORE, _ABOVE, _PANIC, _BOTTOM,
        "movable_node: bottom-up above the kernel, then what lies below its end"),
    Change((3, 19), _6, _ENOUGH, _BEFORE, _ABOVE, _PANIC, _BOTTOM,
        "steps grow by table size, and as soon as enough is mapped"),
    Change((4, 8), _12, _ENOUGH, _BEFORE, _ABOVE, _PANIC, _BOTTOM,
        "a randomised direct map may start anywhere in a table: twice the pages, and one table for"
        " the real-mode trampoline"),
    Change((4, 19), _12, _ENOUGH, _BEFORE, _ABOVE, _EXTEND, _BOTTOM,
        "more brk is asked for where memblock finds nothing"),
    Change((5, 11), _12, _ENOUGH, _BEFORE, _ANYWHERE, _EXTEND, _BOTTOM,
        "bottom-up searches are no longer kept above the kernel, and have no second try"),
    Change((5, 12), _16, _ENOUGH, _BEFORE, _ANYWHERE, _EXTEND, _BOTTOM,
        "a further page a set for the fifth level (CONFIG_X86_5LEVEL)"),
    Change((6, 15), _16, _ENOUGH, _BEFORE, _ANYWHERE, _EXTEND, _TOP,
        "without a free large page mapping begins at the top"),
    Change((6, 16), _FOUR, _ENOUGH, _BEFORE, _ANYWHERE, _EXTEND, _TOP,
        "no CONFIG_X86_5LEVEL any more: the page for the fifth level is in every set, on 32 bits"
        " too"),
)  # fmt: skip


@attrs.frozen
class Backport:
    """A stable series does from ``since`` on what mainline does from ``mainline`` on, in one
    ``field`` of `Change`.
    """

    since: Version
    mainline: Version
    field: str


BACKPORTS: tuple[Backport, ...] = (
    Backport((4, 4, 258), (5, 11), "bottom_up"),
    Backport((4, 9, 258), (5, 11), "bottom_up"),
    Backport((4, 14, 222), (5, 11), "bottom_up"),
    Backport((4, 19, 175), (5, 11), "bottom_up"),
    Backport((5, 4, 97), (5, 11), "bottom_up"),
    Backport((5, 10, 15), (5, 11), "bottom_up"),
    Backport((6, 1, 141), (6, 15), "no_block"),
    Backport((6, 6, 93), (6, 15), "no_block"),
    Backport((6, 12, 31), (6, 15), "no_block"),
    Backport((6, 14, 9), (6, 15), "no_block"),
)
"""What is known of it. `bottom_up`: commit 2dcb39645441 ("memblock: do not start bottom-up
allocations with kernel_end"), which the announcements of these releases list (Greg Kroah-Hartman on
linux-kernel, 10 and 23 February 2021). `no_block`: "x86/mm: Check return value from
memblock_phys_alloc_range()", from the changelogs of June 2025 and the record CVE-2025-38071, which
listed these series and no other in June 2025. Live boots of 5.10.223, 6.1.192 and 6.12.107 confirm
them.
"""

_SEARCH_RESERVES: Version = (5, 15)
"""First release that finds the free large page by taking it and giving it back: where there is
none it gives back what lies at 0 (memblock_phys_free of a failed memblock_phys_alloc_range).
"""


def gives_back_low_memory(kernel: str) -> bool:
    """Tell whether a failed search for a free large page gives back the first large page."""
    missing_check = change_for(kernel).no_block is NoBlock.BOTTOM
    return missing_check and parse_release(kernel) >= _SEARCH_RESERVES


@cache
def change_for(kernel: str) -> Change:
    """Return what a release does. Raises `SpecError` for releases before 3.9."""
    version = parse_release(kernel)
    if version < CHANGES[0].since:
        raise SpecError(f"incremental models kernels from 3.9 on, not {kernel}; use legacy_linear")
    change = _mainline(version)
    for backport in BACKPORTS:
        if version[:2] == backport.since[:2] and version >= backport.since:
            taken = getattr(_mainline(backport.mainline), backport.field)
            change = attrs.evolve(change, **{backport.field: taken})
    return change


def era(kernel: str) -> Version:
    """Return the first release that does what this one does, stable series' fixes apart."""
    return change_for(kernel).since


def _mainline(version: Version) -> Change:
    return [change for change in CHANGES if change.since <= version][-1]
