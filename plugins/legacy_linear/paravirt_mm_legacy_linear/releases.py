"""The linear allocator by kernel release: how many tables are guessed, where the block is searched,
which ranges are mapped.

One row a change; a release behaves as the last row that is not newer than it. Rows hold mainline
``.0`` releases: stable and distribution kernels took some changes earlier (``guess=`` and
``good_end=`` choose them).

Source: find_early_table_space and its callers in arch/x86/mm/init.c (init_64.c and init_32.c before
2.6.30) and arch/x86/kernel/setup.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import attrs

from paravirt_mm import (
    PAGE_SIZE,
    Boot,
    Piece,
    SpecError,
    Version,
    dotted,
    parse_release,
)


class Guess(StrEnum):
    """How the number of tables is estimated. Each level's entries are rounded up to whole pages on
    their own.
    """

    LARGE_PAGES = "large-pages"
    """L3 and L2 tables from 0 to the end of the range: nothing is mapped with small pages. With 1G
    pages no L2 tables either.
    """
    WHOLE = "whole"
    """From 0 to the end of the range: 1G units, 2M units (or the remainder), and the small pages at
    the end.
    """
    FIRST_PIECE = "first-piece"
    """As `WHOLE`, and the whole first piece in small pages if it starts below one large page. Where
    the first piece was merged into a large range this asks for a table for every 2 MiB of it:
    thousands guessed, a handful used.
    """
    ANY_FIRST_PIECE = "any-first-piece"
    """As `FIRST_PIECE`, wherever the first piece starts: the mainline commit before its correction
    (3.5-rc).
    """
    PIECES = "pieces"
    """From the pieces that are really mapped, summed over them."""
    PIECES_AND_ROOTS = "pieces-and-roots"
    """As `PIECES`, and a page for every piece that crosses into another entry of the root."""


class GoodEnd(StrEnum):
    """Where the search for the block may end."""

    RELEASE = "release"
    MAPPED = "mapped"
    """At the end of what is mapped so far."""
    END = "end"
    """At the end of the range that is to be mapped."""


class Calls(StrEnum):
    """Which ranges a 64-bit kernel passes to init_memory_mapping."""

    ONE = "one"
    """[0, end of the last firmware entry of any type), to whole large pages."""
    TWO = "two"
    """[0, max_low_pfn) and [4 GiB, max_pfn), holes included."""
    REGIONS = "regions"
    """[0, max_low_pfn), then one call for each region of RAM that ends above 4 GiB."""


@attrs.frozen
class Change:
    """What releases do from ``since`` on, in the mode of their table.

    guess, calls
        See there.
    top_down
        The block is the highest that fits (memblock); otherwise the lowest (e820, early_res).
    search_start, good_end
        Where the search begins (bytes) and ends.
    fixmap
        32-bit: tables for the fixmap are guessed too; a number of pages, or None for as many as its
        entries need.
    note
        What was new.
    """

    since: Version
    guess: Guess
    good_end: GoodEnd
    top_down: bool
    search_start: int
    calls: Calls
    note: str
    fixmap: int | None = None


_UP, _DOWN = False, True
_MAPPED, _END = GoodEnd.MAPPED, GoodEnd.END
_ONE, _TWO, _REGIONS = Calls.ONE, Calls.TWO, Calls.REGIONS

X86_64: tuple[Change, ...] = (
    Change((2, 6, 19), Guess.LARGE_PAGES, _END, _UP, 0x8000, _ONE,
        "everything the firmware lists is mapped, with large pages only"),
    Change((2, 6, 27), Guess.WHOLE, _END, _UP, 0x8000, _TWO,
        "only RAM is mapped; ranges are split by page size, so small pages are estimated too"),
    Change((2, 6, 31), Guess.WHOLE, _MAPPED, _UP, 0x8000, _TWO,
        "the block must lie in what is mapped"),
    Change((2, 6, 37), Guess.WHOLE, _MAPPED, _DOWN, 0x8000, _TWO,
        "memblock replaces early_res: the search goes from the top down"),
    Change((2, 6, 39), Guess.WHOLE, _END, _DOWN, 0, _TWO,
        '"put early page table high": the block may lie in what is yet to be mapped'),
    Change((3, 1), Guess.WHOLE, _MAPPED, _DOWN, 0, _TWO,
        "taken back, as hibernation broke (3.0.9 as well)"),
    Change((3, 5), Guess.FIRST_PIECE, _MAPPED, _DOWN, 0, _TWO,
        "the first piece, which uses no large pages, is added to the estimate"),
    Change((3, 7), Guess.PIECES, _MAPPED, _DOWN, 0, _REGIONS,
        "estimated from the pieces; holes above 4 GiB are no longer mapped"),
    Change((3, 8), Guess.PIECES_AND_ROOTS, _MAPPED, _DOWN, 0, _REGIONS,
        "a page for each further root entry"),
)  # fmt: skip

I386: tuple[Change, ...] = (
    Change((2, 6, 27), Guess.WHOLE, _MAPPED, _UP, 0x7000, _TWO,
        "the first large page is always mapped with small ones", 2),
    Change((2, 6, 29), Guess.WHOLE, _MAPPED, _UP, 0x7000, _TWO,
        "the fixmap's tables are counted by its entries"),
    Change((2, 6, 37), Guess.WHOLE, _MAPPED, _DOWN, 0x7000, _TWO,
        "memblock replaces early_res: the search goes from the top down"),
    Change((2, 6, 39), Guess.WHOLE, _MAPPED, _DOWN, 0, _TWO,
        "the search may reach down to the second page"),
    Change((3, 5), Guess.FIRST_PIECE, _MAPPED, _DOWN, 0, _TWO,
        "the first piece, which uses no large pages, is added to the estimate"),
    Change((3, 7), Guess.PIECES, _MAPPED, _DOWN, 0, _TWO,
        "estimated from the pieces"),
    Change((3, 8), Guess.PIECES_AND_ROOTS, _MAPPED, _DOWN, 0, _TWO,
        "a page for each further root entry"),
)  # fmt: skip

FIRST_INCREMENTAL: Version = (3, 9)
LAST_LINEAR = "3.8"

FIXMAP_ENTRIES = 600
"""Entries of the i386 fixmap (__end_of_fixed_addresses) unless told. The value depends on NR_CPUS
and the configuration: boot logs show less than 512 to 1022.
"""


def change_for(kernel: str, *, is_32bit: bool) -> Change:
    """Return what a release does. Raises `SpecError` where the linear allocator did not exist."""
    version = parse_release(kernel)
    changes = I386 if is_32bit else X86_64
    first = changes[0].since
    if not first <= version < FIRST_INCREMENTAL:
        raise SpecError(
            f"legacy_linear models kernels {dotted(first)} to {LAST_LINEAR}"
            f"{' in this mode' if is_32bit else ''}, not {kernel}"
            + ("; use incremental" if version >= FIRST_INCREMENTAL else "")
        )
    return [change for change in changes if change.since <= version][-1]


def era(kernel: str) -> tuple[Version | None, ...]:
    """Return the first releases that do what this one does, on 32 and on 64 bits (None: that mode
    is not modelled).
    """
    version = parse_release(kernel)
    return tuple(
        max((change.since for change in changes if change.since <= version), default=None)
        for changes in (I386, X86_64)
    )


def guess_pages(
    boot: Boot, guess: Guess, pieces: Sequence[Piece], end: int, fixmap_pages: int = 0
) -> int:
    """Return how many pages are set aside for a range that ends at ``end`` bytes.

    ``fixmap_pages`` are added for a 32-bit kernel.
    """
    mode = boot.mode
    small, large = mode.entry_span(1), mode.entry_span(2)
    # Without a level of its own the upper directory is folded into the one below it.
    huge = mode.entry_span(3) if mode.root_level >= 3 else large
    largest = boot.largest_level
    extra_32 = large if mode.is_32bit else 0
    roots = 0
    if guess in (Guess.PIECES, Guess.PIECES_AND_ROOTS):
        upper = middle = lower = 0
        root_span = mode.entry_span(mode.root_level)
        for piece in pieces:
            size = piece.end - piece.start
            upper += -(-size // huge)
            middle += -(-(size % huge if piece.level >= 3 else size) // large)
            lower += -(-(size % large + extra_32 if piece.level >= 2 else size) // small)
            roots += piece.start // root_span != piece.end // root_span
    elif guess is Guess.LARGE_PAGES:
        upper = -(-end // huge)
        middle = 0 if largest >= 3 else -(-end // large)
        lower = 0
    else:
        upper = -(-end // huge)
        middle = -(-(end % huge if largest >= 3 else end) // large)
        tail = end
        if largest >= 2:
            tail = end % large + extra_32
            if pieces and (
                guess is Guess.ANY_FIRST_PIECE
                or (guess is Guess.FIRST_PIECE and pieces[0].start < large)
            ):
                tail += pieces[0].end - pieces[0].start
        lower = -(-tail // small)
    pages = sum(pages_for(boot, entries) for entries in (upper, middle, lower))
    if mode.is_32bit:
        pages += fixmap_pages
    return pages + (roots if guess is Guess.PIECES_AND_ROOTS else 0)


def pages_for(boot: Boot, entries: int) -> int:
    """Return the table pages that hold so many entries."""
    return -(-entries * boot.mode.entry_bytes // PAGE_SIZE)
