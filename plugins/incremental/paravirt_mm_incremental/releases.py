"""The incremental allocator as merged in Linux, by release: brk pages, step growth, promotion,
fallbacks.

One row a change; a release behaves as the last row that is not newer than it.

Source: arch/x86/mm/init.c (early_alloc_pgt_buf, memory_map_top_down, get_new_step_size,
split_mem_range, alloc_low_pages).
"""

from __future__ import annotations

import re
from enum import StrEnum

import attrs

from paravirt_mm import PagingMode, Promote, SpecError

Version = tuple[int, ...]


class Growth(StrEnum):
    """How the step size grows after a step that mapped RAM."""

    LARGER_STEP = "x32 after a step that mapped more than all before"
    MAPPED_ENOUGH = "by a table less one bit (x256) once as much RAM is mapped as the step is large"


class BrkPages(StrEnum):
    """How many pages of brk are set aside for the first tables."""

    FIVE = "5"
    SIX = "6"
    SIX_OR_TWELVE = "6, or 12 with CONFIG_RANDOMIZE_MEMORY"
    BY_LEVELS = "two sets of 3 (4 with CONFIG_X86_5LEVEL), or four with CONFIG_RANDOMIZE_MEMORY"


@attrs.frozen
class Change:
    """What a release does. ``note`` tells what was new in it; ``brk_fallback``, that brk is
    extended where memblock has nothing.
    """

    since: Version
    brk: BrkPages
    growth: Growth
    promote: Promote
    brk_fallback: bool
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
        return (3 if mode.is_32bit else 4) * sets


_BEFORE, _AFTER = Promote.BEFORE_MERGE, Promote.AFTER_MERGE

CHANGES: tuple[Change, ...] = (
    Change((3, 9), BrkPages.FIVE, Growth.LARGER_STEP, _AFTER, False, "merged"),
    Change(
        (3, 10), BrkPages.SIX, Growth.LARGER_STEP, _BEFORE, False,
        "a sixth page; promotion before neighbours are merged",
    ),
    Change(
        (3, 19), BrkPages.SIX, Growth.MAPPED_ENOUGH, _BEFORE, False,
        "steps grow by table size, and as soon as enough is mapped",
    ),
    Change(
        (4, 8), BrkPages.SIX_OR_TWELVE, Growth.MAPPED_ENOUGH, _BEFORE, False,
        "a randomised direct map may start anywhere in a table: twice the pages",
    ),
    Change(
        (4, 16), BrkPages.SIX_OR_TWELVE, Growth.MAPPED_ENOUGH, _BEFORE, True,
        "brk is extended where memblock finds nothing",
    ),
    Change(
        (5, 11), BrkPages.BY_LEVELS, Growth.MAPPED_ENOUGH, _BEFORE, True,
        "a further page a set for a fifth level",
    ),
)  # fmt: skip


def parse_version(kernel: str) -> Version:
    """Return the numbers of a release ("5.4.0-42-generic": (5, 4, 0)). Raises `SpecError`."""
    match = re.match(r"\d{1,4}(?:\.\d{1,6}){1,3}(?![\d.])", kernel)
    if match is None:
        raise SpecError(f"{kernel!r} is not a kernel release (for example 4.19)")
    return tuple(int(number) for number in match.group().split("."))


def change_for(kernel: str) -> Change:
    """Return what a release does. Raises `SpecError` for releases before 3.9."""
    version = parse_version(kernel)
    rows = [change for change in CHANGES if change.since <= version]
    if not rows:
        raise SpecError(f"incremental models kernels from 3.9 on, not {kernel}; use legacy_linear")
    return rows[-1]
