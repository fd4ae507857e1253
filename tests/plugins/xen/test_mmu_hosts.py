"""What a guest sees of its host and of what it asked for: devices, shared pages, NX, L1TF, assists,
large pages of the domain builder. Right values are Xen's sources (4.14 to 4.21), where no recording
shows them; `test_live.py` asks the real hypervisor for those that dom0 can see."""

from __future__ import annotations

from typing import Any

import pytest

from paravirt_mm_xen.mmu import (
    RELEASES,
    Assist,
    BootMapping,
    Command,
    DomainCrashedError,
    Hypervisor,
    LargeMapping,
)
from paravirt_mm_xen.mmu.codes import EACCES, EBUSY, EINVAL, EPERM, OK, PF_WRITE_PROTECTED
from paravirt_mm_xen.mmu.entries import (
    M2P_SLOT,
    NX,
    PCD,
    PSE,
    PWT,
    RW,
    SELF_MAP_SLOT,
    entry_mfn,
    make_entry,
)

BASE = 0xFFFF_FFFF_8000_0000
FIRST = 0x1000
PAGES = 64
TABLES = range(FIRST + 32, FIRST + PAGES)
RO_FLAGS, RW_FLAGS = 0x65, 0x67
DEVICE, LOCKED = 0xA0, 0xFEC00
FOREIGN = 0x9_0000


def guest(**options: Any) -> Hypervisor:
    hypervisor = Hypervisor(
        range(FIRST, FIRST + PAGES),
        mmio=(range(0xA0, 0x100), range(LOCKED, LOCKED + 1)),
        read_only_mmio=(range(LOCKED, LOCKED + 1),),
        foreign=frozenset({FOREIGN}),
        **options,
    )
    hypervisor.boot([BootMapping(BASE, FIRST, PAGES)], TABLES)
    return hypervisor


def va(page: int) -> int:
    return BASE + (page << 12)


def l1_table(hypervisor: Hypervisor, page: int = 0, *entries: tuple[int, int]) -> int:
    """Make a page a pinned L1 with these entries; the code of the pin."""
    for index, entry in entries:
        assert hypervisor.store(va(page) + 8 * index, entry) == OK
    assert hypervisor.update_va_mapping(va(page), make_entry(FIRST + page, RO_FLAGS)) == OK
    return hypervisor.pin(1, FIRST + page)


# --- devices --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "flags", "kept"),
    [
        (DEVICE, 0, RW | PCD | PWT),
        (DEVICE, PWT, RW | PCD | PWT),
        (DEVICE, PCD, RW | PCD),
        (DEVICE, PCD | PWT, RW | PCD | PWT),
        (DEVICE, PSE, RW | PSE),  # bit 7 is PAT: write-combining
        (DEVICE, PSE | PWT, RW | PCD | PWT),  # write-protect
        (LOCKED, 0, PCD | PWT),
        (LOCKED, PCD, PCD),
        (LOCKED, PSE | PWT, PCD | PWT),
    ],
)
def test_what_becomes_of_an_entry_for_a_device(frame: int, flags: int, kept: int) -> None:
    """Cached memory becomes uncached; RW is taken where nobody may write."""
    for late in (False, True):
        hypervisor = guest()
        entry = make_entry(frame, RW_FLAGS | flags)
        assert l1_table(hypervisor, 0, *([] if late else [(3, entry)])) == OK
        if late:
            assert hypervisor.mmu_update((FIRST << 12) + 24, entry) == OK
        found = hypervisor.entry(FIRST, 3)
        assert found & (RW | PCD | PWT | PSE) == kept
        assert entry_mfn(found) == frame


def test_a_store_to_a_device_that_is_kept_read_only_is_dropped_for_dom0() -> None:
    for privileged, answer in ((True, OK), (False, PF_WRITE_PROTECTED)):
        hypervisor = guest(privileged=privileged)
        assert hypervisor.update_va_mapping(va(5), make_entry(LOCKED, RW_FLAGS)) == OK
        assert hypervisor.store(va(5), 7) == answer
        assert hypervisor.entry(LOCKED, 0) == 0
    for frame in (LOCKED, DEVICE):  # each of several ranges counts
        both = Hypervisor(
            range(4),
            mmio=[range(1 << 21)],
            read_only_mmio=[range(LOCKED, LOCKED + 1), range(DEVICE, DEVICE + 1)],
        )
        assert both.pin(1, 1) == OK
        assert both.mmu_update(1 << 12, make_entry(frame, RW_FLAGS)) == OK
        assert not both.entry(1, 0) & RW


def test_frames_that_are_somebody_elses() -> None:
    hypervisor = guest()
    for frame, code in ((FOREIGN, EBUSY), (0x8000, EPERM), ((1 << 40) - 1, EINVAL)):
        assert hypervisor.update_va_mapping(va(5), make_entry(frame, RO_FLAGS)) == code


@pytest.mark.parametrize(("flags", "code"), [(0, OK), (PCD, EACCES), (PWT, EACCES), (PSE, EACCES)])
@pytest.mark.parametrize("base", [RO_FLAGS, RW_FLAGS])
def test_pages_that_the_hypervisor_shares_keep_their_memory_type(
    flags: int, code: int, base: int
) -> None:
    shared = FIRST + 9
    hypervisor = guest(special=[shared])
    count = hypervisor.frame(shared).count
    assert hypervisor.update_va_mapping(va(5), make_entry(shared, base | flags)) == code
    more = base == RW_FLAGS and code == OK
    assert hypervisor.frame(shared).count == count + more
    assert hypervisor.update_va_mapping(va(5), 0) == OK
    assert hypervisor.frame(shared).count == count
    assert hypervisor.page_type(shared) == 15
    assert hypervisor.pin(1, shared) == EINVAL


# --- CPUs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("nx", "code"), [(True, OK), (False, EINVAL)])
def test_no_execute_is_refused_where_the_cpu_does_not_know_it(nx: bool, code: int) -> None:
    hypervisor = guest(nx=nx)
    assert hypervisor.update_va_mapping(va(5), make_entry(FIRST + 5, RW_FLAGS) | NX) == code
    root = hypervisor.baseptr
    assert root is not None
    assert bool(hypervisor.entry(root, SELF_MAP_SLOT) & NX) is nx
    # What is not present may have any bit.
    assert hypervisor.update_va_mapping(va(5), NX) == OK
    for level in (2, 3, 4):
        hypervisor = guest(nx=nx)
        for page in range(level):
            target = make_entry(FIRST + page - 1, RW_FLAGS | NX) if page else 0
            assert hypervisor.store(va(page), target) == OK
            entry = make_entry(FIRST + page, RO_FLAGS)
            assert hypervisor.update_va_mapping(va(page), entry) == OK
        assert hypervisor.pin(level, FIRST + level - 1) == code


SAFE = 1 << 36
DANGEROUS = make_entry(FIRST + 7, 0x66)


@pytest.mark.parametrize("way", ["mmu_update", "store", "update_va_mapping", "pin"])
def test_an_absent_entry_with_an_address_crashes_a_guest_on_a_cpu_with_l1tf(way: str) -> None:
    """Without shadow paging, as Debian builds 4.17 and 4.20; 4.14 has it, and goes on."""
    for release, crashed in (("4.14", False), ("4.17", True), ("4.20.1", True)):
        hypervisor = guest(l1tf_safe=SAFE, release=RELEASES[release])

        def act(entry: int, hypervisor: Hypervisor = hypervisor) -> int:
            if way == "pin":
                return l1_table(hypervisor, 1, (7, entry))
            if way == "mmu_update":
                return hypervisor.mmu_update((FIRST << 12) + 56, entry)
            if way == "store":
                return hypervisor.store(va(0) + 56, entry)
            return hypervisor.update_va_mapping(va(5), entry)

        assert l1_table(hypervisor) == OK
        if way != "pin":
            above = make_entry(SAFE >> 12, 0x66), make_entry((SAFE >> 12) + 1, 6)
            for entry in (0, 0x66, 0xE6, *above):  # bit 7 is none of a large page here
                assert act(entry) == OK
        if crashed:
            with pytest.raises(DomainCrashedError, match="L1TF-vulnerable L1e 0000000001007066"):
                act(DANGEROUS)
        else:
            assert act(DANGEROUS) == OK
        assert act(DANGEROUS, guest_of_dom0(way)) == OK


def guest_of_dom0(way: str) -> Hypervisor:
    """Dom0 is not checked."""
    hypervisor = guest()
    assert l1_table(hypervisor) == OK
    return hypervisor


@pytest.mark.parametrize("entry", [DANGEROUS, PSE])
@pytest.mark.parametrize("level", [2, 3, 4])
def test_l1tf_is_looked_for_at_every_level(level: int, entry: int) -> None:
    hypervisor = guest(l1tf_safe=SAFE)
    assert hypervisor.store(va(0) + 8, entry) == OK
    assert hypervisor.update_va_mapping(va(0), make_entry(FIRST, RO_FLAGS)) == OK
    with pytest.raises(DomainCrashedError, match=f"L{level}e"):
        hypervisor.pin(level, FIRST)
    hypervisor = guest(l1tf_safe=SAFE)
    assert hypervisor.update_va_mapping(va(0), make_entry(FIRST, RO_FLAGS)) == OK
    assert hypervisor.pin(level, FIRST) == OK
    with pytest.raises(DomainCrashedError, match=f"L{level}e"):
        hypervisor.mmu_update((FIRST << 12) + 8, entry)


# --- what a guest asks for ------------------------------------------------------------------------


def test_a_guest_without_devices_has_to_ask_for_emulated_stores() -> None:
    entry = make_entry(FIRST + 7, RW_FLAGS)
    for privileged, assisted, answer in (
        (True, False, OK),
        (False, False, PF_WRITE_PROTECTED),
        (False, True, OK),
    ):
        hypervisor = guest(privileged=privileged)
        if assisted:
            assert hypervisor.vm_assist(Assist.WRITABLE_PAGETABLES) == OK
        assert l1_table(hypervisor) == OK
        assert hypervisor.store(va(0), entry) == answer
        assert bool(hypervisor.entry(FIRST, 0)) is (answer == OK)
    assert hypervisor.vm_assist(Assist.WRITABLE_PAGETABLES, enable=False) == OK
    assert hypervisor.store(va(0), entry) == PF_WRITE_PROTECTED
    assert hypervisor.vm_assist(7) == EINVAL
    assert hypervisor.vm_assist(Assist.FOUR_GB_SEGMENTS) == OK


def test_when_an_l4_shows_the_machine_to_physical_table() -> None:
    """Loaded for the kernel; or, strictly, from its validation until it is loaded for the user."""
    slot = M2P_SLOT
    for strict in (False, True):
        hypervisor = guest()
        if strict:
            assert hypervisor.vm_assist(Assist.M2P_STRICT) == OK
        shown = []
        hypervisor.update_va_mapping(va(0), make_entry(FIRST, RO_FLAGS))
        for code in (
            hypervisor.pin(4, FIRST),
            hypervisor.new_user_baseptr(FIRST),
            hypervisor.new_baseptr(FIRST),
            hypervisor.new_user_baseptr(FIRST),
        ):
            assert code == OK
            shown.append(bool(hypervisor.entry(FIRST, slot)))
        # In the order of the calls above, looked at after all of them: see below for each.
        assert shown[-1] is not strict
    expected = {False: [False, False, True, True], True: [True, False, False, False]}
    for strict, states in expected.items():
        hypervisor = guest()
        if strict:
            hypervisor.vm_assist(Assist.M2P_STRICT)
        hypervisor.update_va_mapping(va(0), make_entry(FIRST, RO_FLAGS))
        found = []
        for call in ("pin", "user", "kernel", "user"):
            if call == "pin":
                hypervisor.pin(4, FIRST)
            elif call == "user":
                hypervisor.new_user_baseptr(FIRST)
            else:
                hypervisor.new_baseptr(FIRST)
            found.append(bool(hypervisor.entry(FIRST, slot)))
        assert found == states


@pytest.mark.parametrize("release", RELEASES.values(), ids=lambda release: release.name)
def test_who_may_flush_caches(release: Any) -> None:
    late = release.name in ("4.18.5", "4.19.3", "4.20.1", "4.21")
    for privileged, codes in ((True, [OK, OK]), (False, [EACCES, EACCES if late else EINVAL])):
        hypervisor = guest(privileged=privileged, release=release)
        commands = (Command.FLUSH_CACHE, Command.FLUSH_CACHE_GLOBAL)
        assert [hypervisor.mmuext_op(command) for command in commands] == codes


# --- large pages of the domain builder ------------------------------------------------------------

P2M = 0xFFFF_C900_0000_0000
LARGE = 0x10_0000


def large_guest(level: int) -> tuple[Hypervisor, list[int]]:
    pages = 512 ** (level - 1)
    hypervisor = Hypervisor([*range(FIRST, FIRST + PAGES), *range(LARGE, LARGE + pages)])
    root = hypervisor.boot(
        [BootMapping(BASE, FIRST, PAGES)], TABLES, [LargeMapping(P2M, LARGE, level)]
    )
    path = [root]
    for shift in (39, 30)[: 4 - level]:
        path.append(entry_mfn(hypervisor.entry(path[-1], P2M >> shift & 511)))
    return hypervisor, path


@pytest.mark.parametrize("level", [2, 3])
def test_large_pages_are_used_and_given_back(level: int) -> None:
    """Each of their frames counts one writable mapping, and none when the entry is cleared."""
    hypervisor, path = large_guest(level)
    frames = (LARGE, LARGE + 1, LARGE + 512 ** (level - 1) - 1)
    assert [hypervisor.frame(mfn).count for mfn in frames] == [1, 1, 1]
    at = P2M + (frames[-1] - LARGE << 12) + 16
    assert hypervisor.store(at, 77) == OK
    assert hypervisor.load(at) == (OK, 77)
    assert hypervisor.store(at, 1, 4) == OK
    assert hypervisor.entry(frames[-1], 2) == 1
    # It is no table: no entry of it can be changed, and the guest could not make it itself.
    assert hypervisor.update_va_mapping(at, 0) == EINVAL
    table, index = path[-1], P2M >> (12 + 9 * (level - 1)) & 511
    entry = hypervisor.entry(table, index)
    assert entry & PSE
    ptr = (table << 12) + 8 * index
    assert hypervisor.mmu_update(ptr + 8, entry) == EINVAL
    assert hypervisor.mmu_update(ptr, 0) == OK
    assert [hypervisor.frame(mfn).count for mfn in frames] == [0, 0, 0]
    assert hypervisor.load(at)[0] != OK
    assert hypervisor.mmu_update(ptr, entry) == EINVAL


def test_large_pages_are_given_back_with_their_table() -> None:
    hypervisor, path = large_guest(2)
    assert hypervisor.mmu_update((path[0] << 12) + 8 * (P2M >> 39 & 511), 0) == OK
    assert {hypervisor.frame(mfn).count for mfn in range(LARGE, LARGE + 512)} == {0}
    assert hypervisor.frame(path[-1]).count == 0


@pytest.mark.parametrize(
    "mapping",
    [LargeMapping(P2M + 4096, LARGE), LargeMapping(P2M, LARGE + 1), LargeMapping(P2M, 0, 4)],
)
def test_large_pages_are_aligned(mapping: LargeMapping) -> None:
    hypervisor = Hypervisor(range(FIRST, FIRST + PAGES))
    with pytest.raises(ValueError, match="no large page of level"):
        hypervisor.boot([BootMapping(BASE, FIRST, PAGES)], TABLES, [mapping])
