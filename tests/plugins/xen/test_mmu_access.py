"""Loads, stores, and the stores that Xen emulates."""

from __future__ import annotations

import random

import pytest

from paravirt_mm_xen.mmu import BootMapping, Hypervisor, LargeMapping
from paravirt_mm_xen.mmu.codes import (
    EINVAL,
    GP_NOT_CANONICAL,
    OK,
    PF_READ_ABSENT,
    PF_READ_PROTECTED,
    PF_WRITE_ABSENT,
    PF_WRITE_PROTECTED,
)
from paravirt_mm_xen.mmu.entries import (
    ACCESSED,
    DIRTY,
    GLOBAL,
    PRESENT,
    USER,
    XEN_FRAME,
    entry_mfn,
)
from paravirt_mm_xen.traces.guest import TraceGuest

RO, RW = 0x65, 0x67
A, B, C, D, E = range(5)


@pytest.fixture
def g() -> TraceGuest:
    return TraceGuest(12)


def read_only(g: TraceGuest, *pages: int) -> None:
    for page in pages:
        assert g.update_va_mapping(page, page, RO) == OK


def count(g: TraceGuest, page: int) -> int:
    return g.hypervisor.frame(g.mfn(page)).count


def pinned_l1(g: TraceGuest, page: int = A) -> None:
    read_only(g, page)
    assert g.pin(1, page) == OK


def loaded_tree(g: TraceGuest, upper: int = RW) -> int:
    """A (L4) > B (L3) > C (L2) > D (L1), loaded; returns the address that D's entry 0 maps."""
    g.copy_kernel_slots(A)
    for table, child in ((A, B), (B, C), (C, D)):
        g.write(table, 1, child, upper if table == B else RW)
    read_only(g, A, B, C, D)
    assert g.new_baseptr(A) == OK
    return 1 << 39 | 1 << 30 | 1 << 21


def test_a_store_goes_to_the_frame_that_the_address_maps(g: TraceGuest) -> None:
    assert g.update_va_mapping(A, B, RW) == OK
    assert g.write(A, 3, C, RW) == OK
    assert (g.read(B, 3), g.hypervisor.entry(g.mfn(A), 3)) == (C << 12 | RW, 0)
    assert g.hypervisor.counters.plain_stores == 1


def test_unmapped_addresses_fault(g: TraceGuest) -> None:
    assert g.update_va_mapping(A, A, 0) == OK
    assert (g.read(A, 0), g.write(A, 0, B, RW)) == (PF_READ_ABSENT, PF_WRITE_ABSENT)
    assert g.hypervisor.counters.faults == 2
    hypervisor = g.hypervisor
    assert hypervisor.load(0x1000) == (PF_READ_ABSENT, 0)
    assert hypervisor.load(1 << 47)[0] == GP_NOT_CANONICAL
    assert hypervisor.store(1 << 50, 0) == GP_NOT_CANONICAL
    xens_own = 0xFFFF_8000_0000_0000
    assert hypervisor.load(xens_own)[0] == PF_READ_PROTECTED
    assert hypervisor.store(xens_own, 0) == PF_WRITE_PROTECTED
    assert hypervisor.load(0xFFFF_8800_0000_0000)[0] == PF_READ_ABSENT


@pytest.mark.parametrize("bit", range(47, 64))
def test_an_address_that_is_not_canonical_is_no_other_ones_alias(bit: int) -> None:
    """Bits 48 to 63 repeat bit 47 (Intel SDM volume 1, "Canonical Addressing")."""
    hypervisor = Hypervisor([*range(0x100, 0x120), *range(0x200, 0x400)])
    high = 0xFFFF_FFFF_FFE0_0000
    mappings = [BootMapping(0, 0x100, 2), BootMapping(0xFFFF_8800_0000_0000, 0x101, 1)]
    hypervisor.boot(mappings, range(0x105, 0x120), [LargeMapping(high, 0x200)])
    for mapped in (8, 0xFFFF_8800_0000_0000, high):
        assert hypervisor.load(mapped) == (OK, 0)
        wrong = mapped ^ 1 << bit
        assert hypervisor.load(wrong) == (GP_NOT_CANONICAL, 0)
        assert hypervisor.store(wrong, 1) == GP_NOT_CANONICAL
        assert hypervisor.update_va_mapping(wrong, 0) == EINVAL
        assert hypervisor.load(mapped) == (OK, 0)


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_an_absent_entry_leads_nowhere_whatever_it_says(level: int) -> None:
    """Only bit 0 counts (Intel SDM volume 3, "Paging-Structure Entries")."""
    hypervisor = Hypervisor([*range(0x100, 0x120), *range(0x200, 0x400)])
    root = hypervisor.boot([BootMapping(0x8000, 0x100, 2)], range(0x110, 0x120))
    path = [root]
    while len(path) < 4:
        path.append(entry_mfn(hypervisor.entry(path[-1], 0)))
    table, index = path[4 - level], 8 if level == 1 else 0
    assert hypervisor.load(0x8000) == (OK, 0)
    for entry in (hypervisor.entry(table, index) & ~PRESENT, 0x200 << 12 | 0xE6):
        assert hypervisor.mmu_update(table << 12 | index << 3, entry) == OK
        assert hypervisor.load(0x8000) == (PF_READ_ABSENT, 0)
        assert hypervisor.store(0x8000, 1) == PF_WRITE_ABSENT
        assert hypervisor.entry(table, index) == entry
        assert hypervisor.update_va_mapping(0x8000, 0) == (OK if level == 1 else EINVAL)


def test_any_access_against_a_dictionary_of_bytes() -> None:
    """Pages at both sides of the ends of tables, sizes, offsets and orders by chance."""
    pages = [0, 1, 511, 512, 1023, 1024, (1 << 18) - 1, 1 << 18, (1 << 27) - 1, 1 << 27]
    pages += [(1 << 35) - 1, 0xFFFF_8800_0000_0, 0xFFFF_FFFF_FFE0_0, (1 << 52) - 1]
    hypervisor = Hypervisor(range(0x100, 0x200))
    mappings = [BootMapping(page << 12, 0x110 + n, 1) for n, page in enumerate(pages)]
    hypervisor.boot(mappings, range(0x140, 0x200))
    memory = {page << 12 | at: 0 for page in pages for at in range(4096)}
    draw = random.Random(7)
    for _ in range(1500):
        page = draw.choice(pages)
        at = page << 12 | draw.choice([*range(16), *range(4080, 4096)])
        size = draw.choice([1, 2, 4, 8])
        spots = [at + n & (1 << 64) - 1 for n in range(size)]
        value = draw.getrandbits(64)
        there = all(spot in memory for spot in spots)
        if draw.random() < 0.5:
            assert (hypervisor.store(at, value, size) == OK) is there
            if there:
                memory.update(zip(spots, value.to_bytes(8, "little"), strict=False))
            continue
        spots = [at + n & (1 << 64) - 1 for n in range(8)]
        code, loaded = hypervisor.load(at)
        there = all(spot in memory for spot in spots)
        assert (code == OK) is there
        assert not there or loaded == int.from_bytes(bytes(memory[s] for s in spots), "little")
    for n, page in enumerate(pages):
        held = b"".join(hypervisor.entry(0x110 + n, i).to_bytes(8, "little") for i in range(512))
        assert held == bytes(memory[page << 12 | at] for at in range(4096))


def test_before_a_root_is_loaded_nothing_is_mapped() -> None:
    hypervisor = Hypervisor(range(4))
    assert hypervisor.load(0) == (PF_READ_ABSENT, 0)
    assert hypervisor.update_va_mapping(0, 0) == EINVAL


def test_emulated_stores_are_checked_like_updates(g: TraceGuest) -> None:
    pinned_l1(g)
    assert g.write(A, 0, B, RW) == OK
    assert count(g, B) == 2
    assert g.hypervisor.entry(g.mfn(A), 0) & GLOBAL  # adjusted by Xen
    assert g.write(A, 0, C, RO) == OK
    assert (count(g, B), count(g, C)) == (1, 1)
    assert g.write(A, 0, A, RW) == PF_WRITE_PROTECTED
    assert g.read(A, 0) >> 12 == C
    assert g.hypervisor.store(g.va(A), XEN_FRAME << 12 | RW) == PF_WRITE_PROTECTED
    assert g.write(A, 0, 0, 0) == OK
    assert g.hypervisor.counters.emulated_stores == 3
    assert g.hypervisor.counters.faults == 2
    assert g.hypervisor.counters.plain_stores == 0


def test_every_mapping_of_an_l1_emulates(g: TraceGuest) -> None:
    pinned_l1(g)
    assert g.update_va_mapping(B, A, RO) == OK
    assert g.write(B, 9, C, RW) == OK
    assert count(g, C) == 2


def test_a_frame_that_was_an_l1_does_not_emulate(g: TraceGuest) -> None:
    pinned_l1(g)
    assert g.unpin(A) == OK
    assert g.hypervisor.frame(g.mfn(A)).type == "L1"
    assert g.write(A, 0, B, RW) == PF_WRITE_PROTECTED


@pytest.mark.parametrize("level", [2, 3, 4])
def test_other_levels_do_not_emulate(g: TraceGuest, level: int) -> None:
    read_only(g, A)
    assert g.pin(level, A) == OK
    assert g.write(A, 0, 0, 0) == PF_WRITE_PROTECTED


def test_an_unchanged_emulated_entry_keeps_its_reference(g: TraceGuest) -> None:
    pinned_l1(g)
    for _ in range(3):
        assert g.write(A, 0, B, RW) == OK
    assert count(g, B) == 2


def test_parts_of_entries(g: TraceGuest) -> None:
    store, va = g.hypervisor.store, g.va(B)
    assert store(va, 0x1122334455667788) == OK
    assert store(va + 2, 0xAAAA, 2) == OK
    assert store(va + 7, 0x1FF, 1) == OK
    assert g.hypervisor.load(va) == (OK, 0xFF223344AAAA7788)
    pinned_l1(g)
    assert g.write(A, 0, B, RO) == OK
    assert store(g.va(A), (g.mfn(B) << 12 | RW) & 0xFFFFFFFF, 4) == OK
    assert count(g, B) == 2
    assert store(g.va(A) + 1, 0, 4) == PF_WRITE_PROTECTED
    for size in (0, 3, 16):
        with pytest.raises(ValueError, match="8 bytes"):
            store(0, 0, size)


def test_unaligned_accesses(g: TraceGuest) -> None:
    load, store, va = g.hypervisor.load, g.hypervisor.store, g.va(B)
    assert store(va + 3, 0x1122334455667788) == OK
    assert g.hypervisor.counters.plain_stores == 1
    assert load(va + 3) == (OK, 0x1122334455667788)
    assert load(va)[1] == 0x4455667788 << 24
    assert load(va + 8)[1] == 0x112233
    border = g.va(C) - 4
    assert store(border, 0xAABBCCDDEEFF0011) == OK
    assert (load(border)[1], load(g.va(C))[1]) == (0xAABBCCDDEEFF0011, 0xAABBCCDD)
    read_only(g, C)
    assert store(border, 0) == PF_WRITE_PROTECTED
    assert load(border)[1] == 0xAABBCCDDEEFF0011  # all or nothing
    assert g.update_va_mapping(C, C, 0) == OK
    assert (store(border, 0), load(border)[0]) == (PF_WRITE_ABSENT, PF_READ_ABSENT)


def test_a_walk_needs_rw_at_every_level(g: TraceGuest) -> None:
    va = loaded_tree(g, upper=RO)
    assert g.update_va(va, E, RW) == OK
    assert g.probe(va, "read") == 0
    assert g.probe(va, "write") == PF_WRITE_PROTECTED
    # A writable L1 entry below a read-only one is no business of Xen's: nothing is emulated.
    pinned_l1(g, E + 1)
    assert g.update_va(va, E + 1, RO) == OK
    assert g.hypervisor.store(va, g.mfn(E) << 12 | RO) == OK
    assert g.hypervisor.counters.emulated_stores == 1


def test_walks_follow_changes_above_l1(g: TraceGuest) -> None:
    va = loaded_tree(g)
    assert g.update_va(va, E, RW) == OK
    assert g.probe(va, "write") == OK
    assert g.mmu_update(B, 1, 0, 0, False) == OK
    assert g.probe(va, "read") == PF_READ_ABSENT
    assert g.update_va(va, E, RW) == EINVAL
    assert g.mmu_update(B, 1, C, RO, False) == OK
    assert g.probe(va, "write") == PF_WRITE_PROTECTED
    assert g.probe(va, "read") == 0
    assert g.boot_baseptr() == OK
    assert g.probe(va, "read") == PF_READ_ABSENT


def test_walks_set_accessed_and_dirty(g: TraceGuest) -> None:
    g.copy_kernel_slots(A)
    at = 2 << 39 | 3 << 30 | 4 << 21 | 5 << 12
    for table, index, child in ((A, 2, B), (B, 3, C), (C, 4, D), (D, 5, E)):
        g.write(table, index, child, PRESENT | 2 | USER)
    read_only(g, A, B, C, D)
    assert g.new_baseptr(A) == OK
    tables = [(g.mfn(page), index) for page, index in ((B, 3), (C, 4), (D, 5))]

    def bits() -> list[int]:
        return [g.hypervisor.entry(*place) & (ACCESSED | DIRTY) for place in tables]

    assert bits() == [0, 0, 0]
    assert g.probe(at, "read") == 0
    assert bits() == [ACCESSED, ACCESSED, ACCESSED]
    assert g.hypervisor.store(at, 1) == OK
    assert bits() == [ACCESSED, ACCESSED, ACCESSED | DIRTY]
    assert g.hypervisor.entry(g.mfn(A), 2) & (ACCESSED | DIRTY) == ACCESSED


def test_update_va_mapping_refuses_a_walk_that_ends_in_another_type(g: TraceGuest) -> None:
    va = loaded_tree(g)
    assert g.mmu_update(C, 2, C, RO, False) == OK  # C stands in for an L1
    assert g.update_va(va + (1 << 21), E, RO) == EINVAL
    assert g.probe(va + (1 << 21) + 4096, "read") == 0  # but can be read so


def test_a_boot_table_is_read_only_where_it_is_mapped() -> None:
    hypervisor = Hypervisor(range(0x100, 0x140))
    va = 0xFFFF_FFFF_8000_0000
    root = hypervisor.boot([BootMapping(va, 0x100, 64)], range(0x130, 0x140))
    assert (root, hypervisor.baseptr, hypervisor.page_type(root)) == (0x130, 0x130, 12)
    assert hypervisor.frame(root).count == 2
    assert hypervisor.counters.hypercalls == 0
    for mfn in range(0x100, 0x140):
        table = hypervisor.page_type(mfn) != 0
        expected = PF_WRITE_PROTECTED if table and mfn != 0x133 else OK
        assert hypervisor.store(va + (mfn - 0x100 << 12) + 0xFF8, 0) == expected
    assert hypervisor.page_type(0x133) == 1  # the L1: emulated


def test_boot_refuses_what_cannot_be_built() -> None:
    mapping = BootMapping(0, 0, 4)
    with pytest.raises(ValueError, match="not enough"):
        Hypervisor(range(16)).boot([mapping], range(8, 10))
    with pytest.raises(ValueError, match="not the guest's"):
        Hypervisor(range(16)).boot([mapping], range(90, 99))
    with pytest.raises(ValueError, match="does not start on a page"):
        Hypervisor(range(16)).boot([BootMapping(5, 0, 1)], range(8, 16))
    with pytest.raises(ValueError, match="refused with code -1"):
        Hypervisor(range(16)).boot([BootMapping(0, 77, 1)], range(8, 16))
