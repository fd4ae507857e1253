"""Edges of the model of the hypervisor: numbers by name, tables of the boot, large pages' ends."""

from __future__ import annotations

import pytest

from paravirt_mm_xen.mmu import (
    PV32_PAE,
    BootMapping,
    Counters,
    Hypervisor,
    LargeMapping,
    MmuUpdate,
    UpdateVaMapping,
)
from paravirt_mm_xen.mmu.codes import (
    EINVAL,
    GP_NOT_CANONICAL,
    OK,
    PF_READ_ABSENT,
    PF_READ_PROTECTED,
    PF_WRITE_ABSENT,
    PF_WRITE_PROTECTED,
    describe,
)
from paravirt_mm_xen.mmu.entries import (
    ACCESSED,
    DIRTY,
    GLOBAL,
    MFN_MASK,
    PRESENT,
    RW,
    USER,
    entry_mfn,
)
from paravirt_mm_xen.mmu.releases import RELEASES, release_of

RO_FLAGS, RW_FLAGS = 0x65, 0x67


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "0"),
        (-1, "-1 EPERM"),
        (-13, "-13 EACCES"),
        (-16, "-16 EBUSY"),
        (-22, "-22 EINVAL"),
        (-38, "-38 ENOSYS"),
        (-95, "-95 EOPNOTSUPP"),
        (-2, "-2"),
        (5, "5"),
        (GP_NOT_CANONICAL, "#GP error code 0"),
        (PF_READ_ABSENT, "#PF error code 0"),
        (PF_READ_PROTECTED, "#PF error code 1"),
        (PF_WRITE_ABSENT, "#PF error code 2"),
        (PF_WRITE_PROTECTED, "#PF error code 3"),
        (-100_000, "vector 0 error code 0"),
        (-99_999, "-99999"),
        (-355_999, "vector 255 error code 999"),
        (-356_000, "-356000"),
    ],
)
def test_answers_in_words(code: int, words: str) -> None:
    assert describe(code) == words
    assert GP_NOT_CANONICAL == -113_000
    assert PF_WRITE_PROTECTED == -114_003


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("4.14", "4.14"),
        ("4.14.0", "4.14"),
        ("4.18.4", "4.18"),
        ("4.18.5", "4.18.5"),
        ("4.19.2", "4.19"),
        ("4.19.3", "4.19.3"),
        ("4.20", "4.20"),
        ("4.20.0-rc1", "4.20"),
        ("4.21-unstable", "4.21"),
        ("5.0", "4.21"),
        ("4.114", "4.21"),
        ("ideal", "ideal"),
    ],
)
def test_the_row_of_a_version(version: str, name: str) -> None:
    assert release_of(version).name == name
    assert release_of(version) is RELEASES[name]
    for other in ("4.13.99", "3.20", "4", "4.1234", "x4.17"):
        with pytest.raises(KeyError):
            release_of(other)


def test_what_builds_do_otherwise_by_version() -> None:
    """Recorded: 4.14.6, 4.17.7, 4.20.5-pre; the others are read in the sources."""
    assert [name for name, row in RELEASES.items() if row.verified] == ["4.14", "4.17", "4.20.1"]
    assert [name for name, row in RELEASES.items() if row.names_former_type] == ["4.14", "4.15"]
    assert [name for name, row in RELEASES.items() if row.shadow_paging] == ["4.14"]
    refusals = {name for name, row in RELEASES.items() if row.flush_all_caches_refusal == -13}
    assert refusals == {"4.18.5", "4.19.3", "4.20.1", "4.21"}
    assert [name for name, row in RELEASES.items() if not row.leaves_xen_slots] == ["ideal"]
    assert [name for name, row in RELEASES.items() if not row.forgets_nested_failure] == ["ideal"]


@pytest.mark.parametrize("mfn", [-1, MFN_MASK + 1])
def test_numbers_of_frames(mfn: int) -> None:
    assert len(list(Hypervisor([0, MFN_MASK]).frames())) == 2
    for frames in ([mfn], [0, mfn]):
        with pytest.raises(ValueError, match=r"in 0\.\.0xffffffffff"):
            Hypervisor(frames)


def test_counters_begin_at_0_and_count_what_carried_them() -> None:
    assert all(figure in (0, [0] * 5) for figure in Counters().as_dict().values())
    hypervisor = Hypervisor(range(8))
    hypervisor.mmu_update(1 << 12, 0)
    hypervisor.update_va_mapping(0, 0)
    hypervisor.pin(1, 2)
    hypervisor.multicall(
        [MmuUpdate([(1 << 12, 0), (3 << 12, 0), (4 << 12, 0)]), UpdateVaMapping(0, 0)]
    )
    figures = hypervisor.counters.as_dict()
    assert figures["hypercalls"] == 3 + 1
    assert (figures["mmu_update"], figures["mmu_update_entries"]) == (2, 4)
    assert (figures["mmuext_op"], figures["mmuext_operations"]) == (1, 1)
    assert (figures["multicall"], figures["multicalled"]) == (1, 2)
    assert (figures["batches"], figures["batched_entries"]) == (1, 3)
    assert figures["update_va_mapping"] == 2
    assert figures["validations"] == [0, 1, 0, 0, 0]


# --- the boot -------------------------------------------------------------------------------------


def tables_of(hypervisor: Hypervisor, frames: range) -> list[int]:
    return [hypervisor.page_type(mfn) % 8 for mfn in frames if hypervisor.page_type(mfn) % 8]


@pytest.mark.parametrize(
    ("va", "pages", "levels"),
    [
        (0, 1, [4, 3, 2, 1]),
        (511 << 12, 1, [4, 3, 2, 1]),
        (511 << 12, 2, [4, 3, 2, 1, 1]),
        ((1 << 30) - 4096, 2, [4, 3, 2, 1, 2, 1]),
        ((1 << 39) - 4096, 2, [4, 3, 2, 1, 3, 2, 1]),
        (5 << 12, 1024, [4, 3, 2, 1, 1, 1]),
    ],
)
def test_the_boot_takes_a_table_where_there_is_none_yet(
    va: int, pages: int, levels: list[int]
) -> None:
    """In the order in which entries need them, each mapped page in its place."""
    hypervisor = Hypervisor(range(0x100, 0x700))
    tables = range(0x600, 0x610)
    root = hypervisor.boot([BootMapping(va, 0x100, pages)], tables)
    assert root == tables[0]
    assert tables_of(hypervisor, tables) == levels
    for number in (0, pages // 2, pages - 1):
        address = va + (number << 12)
        assert hypervisor.store(address, number + 7) == OK
        assert hypervisor.entry(0x100 + number, 0) == number + 7
    for outside in (va - 4096, va + (pages << 12)):
        if outside >= 0:
            assert hypervisor.load(outside)[0] == PF_READ_ABSENT
    flags = PRESENT | RW | USER | ACCESSED | DIRTY
    assert hypervisor.entry(root, va >> 39) & 0xFFF == flags


def test_the_boot_takes_no_frame_twice() -> None:
    mapping = BootMapping(0, 1, 1)
    assert Hypervisor(range(16)).boot([mapping], [4, 5, 6, 7]) == 4
    with pytest.raises(ValueError, match="given twice"):
        Hypervisor(range(16)).boot([mapping], [4, 5, 4, 7])
    with pytest.raises(ValueError, match="3 tables are not enough"):
        Hypervisor(range(16)).boot([mapping], [4, 5, 6])


def test_a_boot_mapping_is_read_only_if_asked_for() -> None:
    hypervisor = Hypervisor(range(16))
    hypervisor.boot([BootMapping(0, 1, 1), BootMapping(4096, 2, 1, writable=False)], range(8, 16))
    l1 = 11
    both = PRESENT | USER | ACCESSED | DIRTY | GLOBAL  # the last one is Xen's, for user space
    assert [hypervisor.entry(l1, index) & 0xFFF for index in (0, 1)] == [both | RW, both]
    assert hypervisor.store(0, 1) == OK
    assert hypervisor.store(4096, 1) == PF_WRITE_PROTECTED
    assert hypervisor.load(4096) == (OK, 0)
    assert [hypervisor.frame(mfn).count for mfn in (1, 2)] == [1, 0]


def test_a_32_bit_guest_gets_the_l2_for_xen() -> None:
    """Root, L2 and L1 for the mapping, and an L2 in the fourth slot that maps nothing."""
    hypervisor = Hypervisor(range(16), mode=PV32_PAE)
    root = hypervisor.boot([BootMapping(0, 1, 1)], range(8, 16))
    assert [hypervisor.page_type(mfn) for mfn in range(8, 13)] == [11, 2, 1, 2, 0]
    assert entry_mfn(hypervisor.entry(root, 3)) == 11
    above = Hypervisor(range(16), mode=PV32_PAE)
    above.boot([BootMapping(0xC000_0000, 1, 1)], range(8, 16))
    assert [above.page_type(mfn) for mfn in range(8, 12)] == [11, 2, 1, 0]


# --- large pages ----------------------------------------------------------------------------------

FIRST, LARGE = 0x1000, 0x10_0000
HIGH = 0xFFFF_C900_0000_0000


def with_large(level: int, va: int = HIGH) -> Hypervisor:
    frames = [*range(FIRST, FIRST + 64), *range(LARGE, LARGE + 512 ** (level - 1))]
    hypervisor = Hypervisor(frames)
    tables = range(FIRST + 32, FIRST + 64)
    hypervisor.boot([BootMapping(0, FIRST, 8)], tables, [LargeMapping(va, LARGE, level)])
    return hypervisor


def test_a_large_page_ends_where_it_ends() -> None:
    hypervisor = with_large(2)
    size = 2 << 20
    for offset in (0, 8, 4096, size // 2 + 24, size - 8):
        assert hypervisor.store(HIGH + offset, offset + 1) == OK
        assert hypervisor.load(HIGH + offset) == (OK, offset + 1)
        assert hypervisor.entry(LARGE + (offset >> 12), offset % 4096 >> 3) == offset + 1
    assert hypervisor.store(HIGH + 8, 0xAB, 1) == OK
    assert hypervisor.store(HIGH + 10, 0xCDEF, 2) == OK
    assert hypervisor.load(HIGH + 8) == (OK, 0xCDEF00AB)
    assert hypervisor.counters.plain_stores == 7
    for outside in (HIGH - 8, HIGH + size):
        assert hypervisor.load(outside) == (PF_READ_ABSENT, 0)
        assert hypervisor.store(outside, 1) == PF_WRITE_ABSENT


def test_a_large_page_below_a_read_only_entry_is_read_only() -> None:
    hypervisor = with_large(2)
    root = hypervisor.baseptr
    assert root is not None
    index = HIGH >> 39 & 511
    l3 = entry_mfn(hypervisor.entry(root, index))
    assert hypervisor.mmu_update((root << 12) + 8 * index, l3 << 12 | RO_FLAGS) == OK
    assert hypervisor.load(HIGH) == (OK, 0)
    assert hypervisor.store(HIGH, 1) == PF_WRITE_PROTECTED
    assert hypervisor.counters.plain_stores == 0


@pytest.mark.parametrize(
    ("va", "mfn", "level"),
    [
        (HIGH + 1, LARGE, 2),
        (HIGH + (1 << 12), LARGE, 2),
        (HIGH + (1 << 20), LARGE, 2),
        (HIGH + (1 << 21), LARGE, 3),
        (HIGH + (1 << 29), LARGE, 3),
        (HIGH, LARGE + 256, 2),
        (HIGH, LARGE + 512, 3),
        (HIGH, LARGE, 1),
        (HIGH, LARGE, 4),
    ],
)
def test_large_pages_of_the_boot_are_aligned(va: int, mfn: int, level: int) -> None:
    hypervisor = Hypervisor(range(FIRST, FIRST + 64))
    with pytest.raises(ValueError, match=f"no large page of level {level} at {va:#x}"):
        hypervisor.boot([], range(FIRST, FIRST + 64), [LargeMapping(va, mfn, level)])


def test_addresses_at_the_very_end() -> None:
    """The last page but half an entry, and what would follow it."""
    hypervisor = Hypervisor(range(0x100, 0x120))
    last = (1 << 64) - 4096
    hypervisor.boot([BootMapping(last, 0x100, 1), BootMapping(0, 0x101, 1)], range(0x110, 0x120))
    assert hypervisor.store(last + 4088, 0x1122334455667788) == OK
    assert hypervisor.store(0, 0xAABBCCDD) == OK
    assert hypervisor.load(last + 4092) == (OK, 0xAABBCCDD_11223344)
    # An address stands for its page (do_update_va_mapping shifts it).
    assert hypervisor.update_va_mapping(last + 4095, 0) == OK
    assert hypervisor.load(last)[0] == PF_READ_ABSENT
    assert hypervisor.update_va_mapping(1 << 47, 0) == EINVAL
    assert hypervisor.load((1 << 47) - 8)[0] == PF_READ_ABSENT
    assert hypervisor.load(1 << 47)[0] == GP_NOT_CANONICAL
    assert hypervisor.load((1 << 64) - (1 << 47) - 8)[0] == GP_NOT_CANONICAL
    assert hypervisor.load((1 << 64) - (1 << 47))[0] == PF_READ_PROTECTED
    assert hypervisor.load(0xFFFF_8800_0000_0000 - 8)[0] == PF_READ_PROTECTED
