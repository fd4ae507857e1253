"""The kernel's rules for memory maps, against a model that has one type a byte."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given, strategies as st

from paravirt_mm.machine.e820 import E820Entry, E820Type, MemoryMap
from paravirt_mm.machine.paging import GIB, MIB, PAGE_SIZE

RAM, RESERVED, ACPI, NVS = E820Type.RAM, E820Type.RESERVED, E820Type.ACPI, E820Type.NVS
LIMIT = 48
entries = st.tuples(
    st.integers(0, LIMIT),
    st.integers(0, LIMIT),
    st.sampled_from([RAM, RESERVED, ACPI, NVS, E820Type.SOFT_RESERVED, E820Type(20)]),
)
maps = st.lists(entries, max_size=16)


def by_byte(raw):
    return [
        max((kind for start, end, kind in raw if start <= byte < end), default=None)
        for byte in range(LIMIT)
    ]


def told(memory: MemoryMap):
    bytes_ = [None] * LIMIT
    for entry in memory:
        bytes_[entry.start : entry.end] = [entry.type] * (entry.end - entry.start)
    return bytes_


def assert_sane(memory: MemoryMap) -> None:
    last = None
    for entry in memory:
        assert entry.start < entry.end
        if last is not None:
            assert last.end <= entry.start
            assert last.end < entry.start or last.type != entry.type
        last = entry


@given(maps)
def test_sanitising_gives_each_byte_the_most_restrictive_type(raw):
    memory = MemoryMap.sanitise(raw)
    assert_sane(memory)
    assert told(memory) == by_byte(raw)
    of_type = dict(enumerate(by_byte(raw)))
    for ranges, bytes_ in (
        (memory.known(), [byte for byte in of_type if of_type[byte] is not None]),
        (memory.ram(), [byte for byte in of_type if of_type[byte] is RAM]),
    ):
        assert [byte for low, high in ranges for byte in range(low, high)] == bytes_
    for limit in range(LIMIT + 1):
        pages = [(byte << 12, byte + 1 << 12, kind) for byte, kind in of_type.items() if kind]
        below = [byte for byte in of_type if of_type[byte] is RAM and byte < limit]
        assert MemoryMap.sanitise(pages).end_pfn(limit << 12) == max(below, default=-1) + 1


@given(maps, st.randoms(use_true_random=False))
def test_order_means_nothing(raw, random):
    shuffled = list(raw)
    random.shuffle(shuffled)
    assert MemoryMap.sanitise(shuffled) == MemoryMap.sanitise(raw)


@given(maps)
def test_sanitising_twice_changes_nothing(raw):
    memory = MemoryMap.sanitise(raw)
    assert MemoryMap.sanitise((e.start, e.end, e.type) for e in memory) == memory


@given(maps, st.integers(0, LIMIT), st.integers(0, LIMIT), st.sampled_from([RESERVED, None]))
def test_changing_a_range(raw, start, end, new):
    memory = MemoryMap.sanitise(raw)
    changed = memory.with_range(start, end, RAM, new)
    assert_sane(changed)
    assert start < end or changed is memory
    assert told(changed) == [
        new if kind is RAM and start <= byte < end else kind
        for byte, kind in enumerate(told(memory))
    ]


def test_changing_any_range_of_some_maps():
    for raw in (
        [(2, 9, RAM)],
        [(0, 3, RAM), (3, 5, RESERVED), (5, 9, RAM), (10, 12, RAM)],
        [(1, 4, ACPI), (4, 8, RAM), (8, 9, RESERVED), (9, 12, NVS)],
    ):
        memory = MemoryMap.sanitise(raw)
        for start, end, new in itertools.product(range(14), range(14), (RESERVED, ACPI, None)):
            changed = memory.with_range(start, end, RAM, new)
            assert_sane(changed)
            assert told(changed) == [
                new if kind is RAM and start <= byte < end else kind
                for byte, kind in enumerate(told(memory))
            ]


def test_zero_length_inverted_unsorted_overlapping_unaligned():
    memory = MemoryMap.sanitise(
        [
            (0x100000, 0x8000000, RAM),
            (0x5000, 0x5000, RESERVED),
            (0x9000, 0x8000, RESERVED),
            (0, 0x9FC00, RAM),
            (0x7FF0123, 0x8000000, ACPI),
            (0x9FC00, 0xA0000, RESERVED),
            (0x7FF8000, 0x8000000, RESERVED),
        ]
    )
    assert list(memory) == [
        E820Entry(0, 0x9FC00, RAM),
        E820Entry(0x9FC00, 0xA0000, RESERVED),
        E820Entry(0x100000, 0x7FF0123, RAM),
        E820Entry(0x7FF0123, 0x8000000, ACPI),  # ACPI data (3) beats reserved (2)
    ]
    assert list(memory.ram_pages()) == [(0, 0x9F000), (0x100000, 0x7FF0000)]
    assert memory.end_pfn() == 0x7FF0


def test_only_whole_pages_of_ram_count():
    """memblock_trim_memory: of an entry's first page and of its last it may have a part."""
    for start, end, pages in (
        (0x1000, 0x3000, [(0x1000, 0x3000)]),
        (0x1001, 0x3FFF, [(0x2000, 0x3000)]),
        (0xFFF, 0x3001, [(0x1000, 0x3000)]),
        (0x1001, 0x2FFF, []),
        (0x1001, 0x1FFF, []),
    ):
        assert list(MemoryMap.sanitise([(start, end, RAM)]).ram_pages()) == pages


def test_a_type_that_nobody_defined_wins_like_any_other_number():
    memory = MemoryMap.sanitise([(0, 0x4000, RAM), (0x1000, 0x2000, E820Type(20))])
    assert [int(entry.type) for entry in memory] == [1, 20, 1]
    assert memory.entries[1].type.label == "type 20"


def test_a_type_is_a_number_of_32_bits():
    assert int(E820Type(0)) == 0
    assert int(E820Type((1 << 32) - 1)) == (1 << 32) - 1
    for wrong in (-1, 1 << 32, "RAM", 1.5):
        with pytest.raises(ValueError, match="is not a valid E820Type"):
            E820Type(wrong)


def test_end_pfn_stops_at_the_limit():
    memory = MemoryMap.sanitise([(0, 3 * GIB, RAM), (4 * GIB, 9 * GIB + 100, RAM)])
    assert memory.end_pfn() == 9 * GIB // PAGE_SIZE
    assert memory.end_pfn(4 * GIB) == 3 * GIB // PAGE_SIZE
    assert memory.end_pfn(MIB) == MIB // PAGE_SIZE
    assert MemoryMap(()).end_pfn() == 0


@pytest.mark.slow
@pytest.mark.parametrize("overlapping", [False, True])
def test_a_hundred_thousand_entries_take_about_a_second(overlapping):
    length = 0x28000 if overlapping else 0x8000
    raw = [(i << 16, (i << 16) + length, RAM if i % 3 else RESERVED) for i in range(100_000)]
    started = time.perf_counter()
    memory = MemoryMap.sanitise(raw)
    memory = memory.with_range(0, PAGE_SIZE, RAM, RESERVED).with_range(640, MIB, RAM, None)
    assert time.perf_counter() - started < 3
    assert_sane(memory)
    assert len(memory) > 60_000
