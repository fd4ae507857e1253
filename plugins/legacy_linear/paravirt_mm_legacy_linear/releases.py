"""The linear allocator by kernel release: how many tables are guessed, where the block is searched,
which ranges are mapped.

One row a change; a release behaves as the last row that is not newer than it. Rows hold mainline
``.0`` releases: stable and distribution kernels took some changes earlier (``guess=`` and
``good_end=`` choose them).

Source: find_early_table_space and its callers in arch/x86/mm/init.c (init_64.c and init_32.c before
2.6.30) and arch/x86/kernel/setup.c.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum

import attrs

from paravirt_mm import Boot, Piece, SpecError, align_up

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT

Version = tuple[int, ...]


class Guess(StrEnum):
    """How the number of tables is estimated. Each level's entries are rounded up to whole pages on
    their own.
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
    """As `FIRST_PIECE`, wherever the first piece starts: the mainline commit before its correction,
    in some stable trees.
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
    """Which ranges above 4 GiB a 64-bit kernel passes to init_memory_mapping."""

    WHOLE = "one range"
    """[4 GiB, max_pfn), holes included."""
    REGIONS = "each region of RAM"
    """One call for each region that ends above 4 GiB."""


@attrs.frozen
class Change:
    """What a release does. ``note`` tells what was new in it."""

    since: Version
    guess: Guess
    good_end: GoodEnd
    top_down: bool
    search_start: int
    note: str
    calls: Calls = Calls.WHOLE


X86_64: tuple[Change, ...] = (
    Change(
        (2, 6, 27), Guess.WHOLE, GoodEnd.END, False, 0x8000,
        "ranges are split by page size, so small pages are estimated too; block from 0x8000 upward",
    ),
    Change(
        (2, 6, 31), Guess.WHOLE, GoodEnd.MAPPED, False, 0x8000,
        "the block must lie in what is mapped",
    ),
    Change(
        (2, 6, 37), Guess.WHOLE, GoodEnd.MAPPED, True, 0x8000,
        "memblock replaces early_res: the search goes from the top down",
    ),
    Change(
        (2, 6, 39), Guess.WHOLE, GoodEnd.END, True, 0,
        '"put early page table high": the block may lie in what is yet to be mapped',
    ),
    Change(
        (3, 1), Guess.WHOLE, GoodEnd.MAPPED, True, 0,
        "taken back for 64-bit: resume from S4 broke",
    ),
    Change(
        (3, 5), Guess.FIRST_PIECE, GoodEnd.MAPPED, True, 0,
        "the first piece, which uses no large pages, is added to the estimate",
    ),
    Change(
        (3, 7), Guess.PIECES, GoodEnd.MAPPED, True, 0,
        "estimated from the pieces; holes above 4 GiB are no longer mapped", Calls.REGIONS,
    ),
    Change(
        (3, 8), Guess.PIECES_AND_ROOTS, GoodEnd.MAPPED, True, 0,
        "a page for each further root entry", Calls.REGIONS,
    ),
)  # fmt: skip

I386: tuple[Change, ...] = (
    Change(
        (2, 6, 27), Guess.WHOLE, GoodEnd.MAPPED, False, 0x7000,
        "the first large page is always mapped with small ones; tables for the fixmap are added",
    ),
    Change(
        (2, 6, 37), Guess.WHOLE, GoodEnd.MAPPED, True, 0x7000,
        "memblock replaces early_res: the search goes from the top down",
    ),
    Change((2, 6, 39), Guess.WHOLE, GoodEnd.MAPPED, True, 0, "the search may reach down to 0"),
    Change(
        (3, 5), Guess.FIRST_PIECE, GoodEnd.MAPPED, True, 0,
        "the first piece, which uses no large pages, is added to the estimate",
    ),
    Change((3, 7), Guess.PIECES, GoodEnd.MAPPED, True, 0, "estimated from the pieces"),
    Change(
        (3, 8), Guess.PIECES_AND_ROOTS, GoodEnd.MAPPED, True, 0,
        "a page for each further root entry",
    ),
)  # fmt: skip

FIRST_INCREMENTAL: Version = (3, 9)

FIXMAP_ENTRIES = 600
"""Entries of the i386 fixmap (__end_of_fixed_addresses). The value depends on the configuration;
boot logs bound it: more than one table with 8-byte entries, no more than one with 4-byte entries.
"""


def parse_version(kernel: str) -> Version:
    """Return the numbers of a release ("3.2.0-23-generic": (3, 2, 0)). Raises `SpecError`."""
    match = re.match(r"\d{1,4}(?:\.\d{1,6}){1,3}(?![\d.])", kernel)
    if match is None:
        raise SpecError(f"{kernel!r} is not a kernel release (for example 3.6)")
    return tuple(int(number) for number in match.group().split("."))


def change_for(kernel: str, *, is_32bit: bool) -> Change:
    """Return what a release does. Raises `SpecError` where the linear allocator did not exist."""
    version = parse_version(kernel)
    changes = I386 if is_32bit else X86_64
    first = changes[0].since
    if not first <= version < FIRST_INCREMENTAL:
        raise SpecError(
            f"legacy_linear models kernels {_dotted(first)} to 3.8, not {kernel}"
            + ("; use incremental" if version >= FIRST_INCREMENTAL else "")
        )
    return [change for change in changes if change.since <= version][-1]


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


def guess_pages(boot: Boot, guess: Guess, pieces: Sequence[Piece], end: int) -> int:
    """Return how many pages are set aside for a range that ends at ``end`` bytes."""
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
    else:
        upper = -(-end // huge)
        middle = -(-(end % huge if largest >= 3 else end) // large)
        tail = end
        if largest >= 2:
            tail = end % large + extra_32
            first = pieces[0]
            if guess is Guess.ANY_FIRST_PIECE or (
                guess is Guess.FIRST_PIECE and first.start < large
            ):
                tail += first.end - first.start
        lower = -(-tail // small)
    entries = [upper, middle, lower]
    if mode.is_32bit:
        entries.append(FIXMAP_ENTRIES)
    pages = sum(align_up(count * mode.entry_bytes, PAGE_SIZE) for count in entries) >> PAGE_SHIFT
    return pages + (roots if guess is Guess.PIECES_AND_ROOTS else 0)
