"""Splitting a range by page size: properties of every split, and splits that kernels printed."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, strategies as st

from paravirt_mm import MODES, Piece, RangeSet
from paravirt_mm.engine.memblock import Memblock
from paravirt_mm.engine.split import merge_equal, promote_to_large, split_by_alignment

PAGE, MIB, GIB = 4096, 1 << 20, 1 << 30
modes = st.sampled_from(sorted(MODES.values(), key=lambda mode: mode.name))
address = st.one_of(
    st.integers(0, 8 * GIB // PAGE).map(lambda n: n * PAGE),
    st.integers(0, 4096).map(lambda n: n * 2 * MIB),
    st.integers(0, 8).map(lambda n: n * GIB),
)


@st.composite
def splits(draw: st.DrawFn):  # type: ignore[no-untyped-def]
    mode = draw(modes)
    start, end = sorted((draw(address), draw(address)))
    largest = draw(st.sampled_from((1, *sorted(mode.large_levels))))
    return mode, start, end, largest


@given(splits())
def test_pieces_tile_the_range(case) -> None:  # type: ignore[no-untyped-def]
    mode, start, end, largest = case
    pieces = split_by_alignment(mode, start, end, largest)
    position = start
    for piece in pieces:
        assert piece.start == position < piece.end
        position = piece.end
    assert position == max(start, end)
    assert len(pieces) <= 5


@given(splits())
def test_large_pieces_are_aligned_and_allowed(case) -> None:  # type: ignore[no-untyped-def]
    mode, start, end, largest = case
    for piece in split_by_alignment(mode, start, end, largest):
        assert piece.level <= largest
        unit = mode.entry_span(piece.level)
        assert piece.start % unit == piece.end % unit == 0


@given(splits())
def test_small_pieces_are_smaller_than_the_next_page_size(case) -> None:  # type: ignore[no-untyped-def]
    """Nothing is mapped with smaller pages than alignment demands, but for the first large page of
    a 32-bit kernel.
    """
    mode, start, end, largest = case
    for piece in split_by_alignment(mode, start, end, largest):
        larger = [level for level in sorted(mode.large_levels) if piece.level < level <= largest]
        if larger and not (mode.is_32bit and piece.start == 0):
            unit = mode.entry_span(larger[0])
            assert -(-piece.start // unit) >= piece.end // unit


@given(splits())
def test_merging_keeps_size_and_order(case) -> None:  # type: ignore[no-untyped-def]
    pieces = split_by_alignment(*case)
    merged = merge_equal(pieces)
    assert sum(p.end - p.start for p in merged) == sum(p.end - p.start for p in pieces)
    assert all(a.level != b.level or a.end != b.start for a, b in itertools.pairwise(merged))


@given(splits(), st.lists(st.tuples(address, address), max_size=5))
def test_promotion_needs_ram_all_around(case, ram: list[tuple[int, int]]) -> None:  # type: ignore[no-untyped-def]
    mode, start, end, largest = case
    pieces = split_by_alignment(mode, start, end, largest)
    block = Memblock(RangeSet(ram), RangeSet())
    for before, after in zip(
        pieces, promote_to_large(mode, pieces, largest, block, 8 * GIB), strict=True
    ):
        assert (after.start, after.end) == (before.start, before.end)
        assert before.level <= after.level <= largest
        levels = list(range(before.level + 1, largest + 1))
        fits = [
            lv
            for lv in levels
            if block.is_memory(
                before.start // mode.entry_span(lv) * mode.entry_span(lv),
                -(-before.end // mode.entry_span(lv)) * mode.entry_span(lv),
            )
        ]
        assert after.level == (fits[-1] if fits else before.level)


def test_promotion_stops_at_the_end_of_lowmem() -> None:
    """A 32-bit kernel's large page may not reach into high memory, where nothing is mapped."""
    mode = MODES["i386-pae"]
    block = Memblock(RangeSet([(0, GIB)]), RangeSet())
    tail = [Piece(0x37E00000, 0x37FFE000, 1)]
    assert promote_to_large(mode, tail, 2, block, 0x37FFE000)[0].level == 1
    assert promote_to_large(mode, tail, 2, block, 0x38000000)[0].level == 2
    assert promote_to_large(MODES["x86_64"], tail, 2, block, 0x37FFE000)[0].level == 2


PRINTED = {
    "sun x4600m2, 2.6.26, low": (
        "x86_64", 0, 0xD7FA0000, 3,
        [(0, 0xC0000000, 3), (0xC0000000, 0xD7E00000, 2), (0xD7E00000, 0xD7FA0000, 1)],
    ),
    "sun x4600m2, 2.6.26, high": (
        "x86_64", 0x100000000, 0x4028000000, 3,
        [(0x100000000, 0x4000000000, 3), (0x4000000000, 0x4028000000, 2)],
    ),
    "ubuntu 2.6.27, amd64": (
        "x86_64", 0, 0xCFEE0000, 2, [(0, 0xCFE00000, 2), (0xCFE00000, 0xCFEE0000, 1)],
    ),
    "3.2 PAE": (
        "i386-pae", 0, 0x37BFE000, 2,
        [(0, 0x200000, 1), (0x200000, 0x37A00000, 2), (0x37A00000, 0x37BFE000, 1)],
    ),
    "3.13, head and 2M": (
        "x86_64", 0x100000, 0x80000000, 2, [(0x100000, 0x200000, 1), (0x200000, 0x80000000, 2)],
    ),
    "3.13, no edge": ("x86_64", 0xBC400000, 0xBC600000, 2, [(0xBC400000, 0xBC600000, 2)]),
    "QEMU without PSE": ("i386-pae", 0x100000, 0x10000000, 1, [(0x100000, 0x10000000, 1)]),
}  # fmt: skip
"""Lines of "page 4k", "page 2M" and "page 1G" under an init_memory_mapping line in boot logs."""

WORKED_OUT = {
    "head, 2M, 1G, 2M, tail": (
        "x86_64", 0x3FDFF000, 0x80401000, 3,
        [
            (0x3FDFF000, 0x3FE00000, 1), (0x3FE00000, 0x40000000, 2), (0x40000000, 0x80000000, 3),
            (0x80000000, 0x80400000, 2), (0x80400000, 0x80401000, 1),
        ],
    ),
    "4M pages": (
        "i386", 0, 0x0FFEB000, 2,
        [(0, 0x400000, 1), (0x400000, 0x0FC00000, 2), (0x0FC00000, 0x0FFEB000, 1)],
    ),
    "less than a page": ("x86_64", 0x1800, 0x1FFF, 3, []),
    # init_memory_mapping works with start >> PAGE_SHIFT and end >> PAGE_SHIFT.
    "edges inside of pages": ("x86_64", 0x1800, 0x3FFF, 1, [(0x1000, 0x3000, 1)]),
    "an edge inside of a page, large pages": (
        "x86_64", 0x1FF800, 0x400800, 2, [(0x1FF000, 0x200000, 1), (0x200000, 0x400000, 2)],
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "start", "end", "largest", "pieces"),
    [*PRINTED.values(), *WORKED_OUT.values()],
    ids=[*PRINTED, *WORKED_OUT],
)
def test_known_splits(
    mode: str, start: int, end: int, largest: int, pieces: list[tuple[int, int, int]]
) -> None:
    found = merge_equal(split_by_alignment(MODES[mode], start, end, largest))
    assert [(p.start, p.end, p.level) for p in found] == pieces


def test_only_what_touches_is_merged() -> None:
    apart = [Piece(0, PAGE, 1), Piece(2 * PAGE, 3 * PAGE, 1), Piece(3 * PAGE, 4 * PAGE, 1)]
    assert merge_equal(apart) == [Piece(0, PAGE, 1), Piece(2 * PAGE, 4 * PAGE, 1)]
    assert merge_equal([Piece(0, PAGE, 1), Piece(PAGE, 2 * PAGE, 2)]) == [
        Piece(0, PAGE, 1),
        Piece(PAGE, 2 * PAGE, 2),
    ]
