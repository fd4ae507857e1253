"""State that is easily mixed up: forks, figures of batches, refused PAE roots, half stores."""

from __future__ import annotations

import pytest

from paravirt_mm_xen.mmu import PV32_PAE, Assist, BootMapping, Hypervisor, MmuUpdate
from paravirt_mm_xen.mmu.codes import EACCES, EINVAL, OK, PF_WRITE_PROTECTED
from paravirt_mm_xen.mmu.entries import ACCESSED, M2P_SLOT, PCD, PRESENT, RW, USER, make_entry

BASE = 0xFFFF_FFFF_8000_0000
FIRST, PAGES = 0x1000, 96
TABLES = range(FIRST + 64, FIRST + PAGES)
RO_FLAGS, RW_FLAGS = 0x65, 0x67
A, B, C, D, E, F = range(FIRST, FIRST + 6)


def guest(special: tuple[int, ...] = ()) -> Hypervisor:
    hypervisor = Hypervisor(range(FIRST, FIRST + PAGES), special=special)
    hypervisor.boot([BootMapping(BASE, FIRST, PAGES)], TABLES)
    return hypervisor


def va(mfn: int) -> int:
    return BASE + (mfn - FIRST << 12)


def put(hypervisor: Hypervisor, table: int, index: int, target: int, flags: int = RW_FLAGS) -> int:
    return hypervisor.mmu_update((table << 12) + 8 * index, make_entry(target, flags))


def read_only(hypervisor: Hypervisor, *frames: int) -> None:
    for mfn in frames:
        assert hypervisor.update_va_mapping(va(mfn), make_entry(mfn, RO_FLAGS)) == OK


# --- forks ----------------------------------------------------------------------------------------


def test_linear_entries_of_a_fork_are_its_own() -> None:
    hypervisor = guest()
    read_only(hypervisor, A, B)
    assert [hypervisor.pin(2, mfn) for mfn in (A, B)] == [OK, OK]
    twin = hypervisor.fork()
    assert put(twin, A, 3, B, RO_FLAGS) == OK
    assert [twin.frame(mfn).same_level_entries for mfn in (A, B)] == [1, -1]
    assert [hypervisor.frame(mfn).same_level_entries for mfn in (A, B)] == [0, 0]
    # B may have entries of its own level only where nobody of that level refers to it.
    assert put(twin, B, 3, A, RO_FLAGS) == EINVAL
    assert put(hypervisor, B, 3, A, RO_FLAGS) == OK


def test_where_a_fork_stopped_checking_is_its_own() -> None:
    """A forgotten L2, half-checked up to slot 2, which the fork gets to slot 5."""
    hypervisor = guest()
    for table, index, target in ((A, 1, B), (B, 0, C), (C, 1, E), (C, 2, D), (C, 5, F)):
        assert hypervisor.store(va(table) + 8 * index, make_entry(target, RW_FLAGS)) == OK
    read_only(hypervisor, A, B, C, E)
    assert hypervisor.pin(4, A) < 0
    assert hypervisor.frame(C).partial
    twin = hypervisor.fork()
    read_only(twin, D)
    assert twin.pin(2, C) < 0  # F is still writable; this table is cleaned up
    assert twin.frame(C).count == 0
    read_only(hypervisor, D, F)
    assert hypervisor.pin(2, C) == OK
    assert [hypervisor.frame(mfn).count for mfn in (E, D, F)] == [1, 1, 1]
    assert hypervisor.unpin(C) == OK
    assert [hypervisor.frame(mfn).count for mfn in (E, D, F)] == [0, 0, 0]


def test_a_fork_walks_its_own_tables() -> None:
    hypervisor = guest()
    twin = hypervisor.fork()
    root = twin.baseptr
    assert root is not None
    table = root
    for shift in (39, 30):
        table = twin.entry(table, BASE >> shift & 511) >> 12 & (1 << 40) - 1
    # In the fork another L1 maps the first pages: A where B was.
    assert put(twin, C, 1, A, RO_FLAGS) == OK
    for number in range(2, PAGES):
        flags = RO_FLAGS if FIRST + number in (C, *TABLES) else RW_FLAGS
        assert put(twin, C, number, FIRST + number, flags) == OK
    read_only(twin, C)
    assert hypervisor.load(va(B)) == (OK, 0)
    assert put(twin, table, BASE >> 21 & 511, C) == OK
    assert hypervisor.store(va(A), 11) == hypervisor.store(va(B), 22) == OK
    assert twin.load(va(B)) == (OK, 0)
    assert twin.load(va(A))[0] != OK
    assert hypervisor.load(va(B)) == (OK, 22)
    assert hypervisor.load(va(A)) == (OK, 11)


def test_what_a_fork_asks_for_is_its_own() -> None:
    hypervisor = guest()
    twin = hypervisor.fork()
    assert twin.vm_assist(Assist.M2P_STRICT) == OK
    for one, shown in ((hypervisor, False), (twin, True)):
        read_only(one, A)
        assert one.pin(4, A) == OK
        assert bool(one.entry(A, M2P_SLOT)) is shown


# --- figures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("requests", "batches"), [(0, 0), (1, 0), (2, 1), (5, 1)])
def test_a_batch_has_more_than_one_request(requests: int, batches: int) -> None:
    hypervisor = guest()
    updates = [(A << 12 | 8 * index, 0) for index in range(requests)]
    hypervisor.mmu_update_batch(updates)
    hypervisor.mmuext_op_batch([(6, 0, 0)] * requests)
    hypervisor.multicall([MmuUpdate(updates)])
    counters = hypervisor.counters
    assert counters.batches == 3 * batches
    assert counters.batched_entries == 3 * requests * batches
    assert counters.mmu_update_entries == 2 * requests


# --- memory types ---------------------------------------------------------------------------------


def test_another_memory_type_is_a_change_that_is_checked() -> None:
    """Only USER, ACCESSED, DIRTY, GLOBAL, NX and available bits change without a check."""
    hypervisor = guest(special=(F,))
    assert hypervisor.update_va_mapping(va(F), make_entry(F, RO_FLAGS & ~USER)) == OK
    assert hypervisor.update_va_mapping(va(F), make_entry(F, RO_FLAGS | PCD)) == EACCES
    assert hypervisor.update_va_mapping(va(F), make_entry(F, RO_FLAGS)) == OK


# --- 32-bit guests --------------------------------------------------------------------------------

L3, L2, XEN_L2, L1 = 100, 101, 102, 103


def pae() -> Hypervisor:
    return Hypervisor(range(100, 140), mode=PV32_PAE)


def fill(hypervisor: Hypervisor, *entries: tuple[int, int, int]) -> None:
    for mfn, index, value in entries:
        assert hypervisor.mmu_update(mfn << 12 | index << 3, value) == OK


@pytest.mark.parametrize("slot", [1, 2])
def test_a_pae_root_that_is_refused_late_loses_what_xen_added(slot: int) -> None:
    """Its entries say PRESENT only, as before."""
    hypervisor = pae()
    fill(
        hypervisor,
        (L3, 0, L2 << 12 | PRESENT),
        (L3, 3, XEN_L2 << 12 | PRESENT),
        (L3, slot, 1 << 12 | PRESENT),  # not the guest's
    )
    assert hypervisor.pin(3, L3) == EINVAL
    assert hypervisor.entry(L3, 0) & 0xFFF == PRESENT
    assert hypervisor.frame(L2).count == 0


def test_a_pae_root_loses_accessed_too() -> None:
    hypervisor = pae()
    fill(
        hypervisor,
        (L3, 3, XEN_L2 << 12 | PRESENT),
        (L3, 0, L2 << 12 | PRESENT | ACCESSED),
    )
    assert hypervisor.pin(3, L3) == OK
    assert hypervisor.entry(L3, 0) & 0xFFF == PRESENT | USER | RW | ACCESSED
    assert hypervisor.unpin(L3) == OK
    assert hypervisor.entry(L3, 0) & 0xFFF == PRESENT


@pytest.mark.parametrize(
    ("size", "answer"), [(4, OK), (2, PF_WRITE_PROTECTED), (1, PF_WRITE_PROTECTED)]
)
def test_only_half_an_entry_may_be_stored_before_the_other_half(size: int, answer: int) -> None:
    """A 32-bit guest stores an entry as two words of four bytes; less is no half of an entry."""
    base = 0xC000_0000
    hypervisor = Hypervisor(range(FIRST, FIRST + PAGES), mode=PV32_PAE)
    hypervisor.boot([BootMapping(base, FIRST, PAGES)], TABLES)
    assert hypervisor.update_va_mapping(base, make_entry(FIRST, RO_FLAGS)) == OK
    assert hypervisor.pin(1, FIRST) == OK
    assert hypervisor.store(base + 8, make_entry(B, RW_FLAGS), 8) == OK
    # Bit 32 of the entry makes it name a frame that is nobody's.
    assert hypervisor.store(base + 12, 1, size) == answer
    kept = make_entry(B, RW_FLAGS)
    assert hypervisor.entry(FIRST, 1) == ((kept | 1 << 32) & ~PRESENT if answer == OK else kept)


def test_a_64_bit_guest_stores_no_half_of_an_entry_first() -> None:
    """What only a PAE guest may do: its two halves are two stores, a 64-bit guest's are one."""
    hypervisor = guest()
    read_only(hypervisor, A)
    assert hypervisor.pin(1, A) == OK
    assert hypervisor.store(va(A) + 8, make_entry(B, RW_FLAGS)) == OK
    kept = hypervisor.entry(A, 1)
    for offset in (8, 12):
        # Either half alone makes the entry name a frame that is nobody's.
        assert hypervisor.store(va(A) + offset, 0x7FFFF067, 4) == PF_WRITE_PROTECTED
        assert hypervisor.entry(A, 1) == kept
