"""What dom0 sees of its host, asked of the three real hypervisors: devices, shared pages, CPUs
without NX, L1TF, assists. The same right values as in `test_mmu_hosts.py`, and the model's."""

from __future__ import annotations

import os
from collections.abc import Iterator

import attrs
import pytest

from paravirt_mm_xen.live import (
    ENVIRONMENT,
    LiveXen,
    MissingPieceError,
    OperationTrace,
    XenBootError,
    find_pieces,
)
from paravirt_mm_xen.mmu.releases import release_of
from paravirt_mm_xen.traces.guest import predict

pytestmark = pytest.mark.slow

RO, RW = 0x65, 0x67
PWT, PCD, PAT = 0x08, 0x10, 0x80
NX = 1 << 63
DEVICE = 0xFFF << 12


@pytest.fixture(scope="module", params=["4.14", "4.17", "4.20"])
def live(request: pytest.FixtureRequest) -> Iterator[LiveXen]:
    try:
        find_pieces(request.param)
    except MissingPieceError as error:
        if ENVIRONMENT in os.environ:
            raise
        pytest.skip(str(error))
    with LiveXen.open(request.param) as session:
        yield session


def ask(live: LiveXen, *operations: tuple[object, ...]) -> list[int]:
    """Real Xen's answers, which are the model's too."""
    trace = OperationTrace("t", 8, operations)
    (found,) = live.replay([trace])
    assert live.version is not None
    assert predict(trace, release_of(live.version)) == found
    return list(found)


def table(*entries: tuple[int, str, int]) -> list[tuple[object, ...]]:
    """Entries for devices, written to page 0 before it becomes an L1."""
    return [
        *(("mmu_update_device", 0, index, device, flags) for index, device, flags in entries),
        ("update_va_mapping", 0, 0, RO),
        ("pin", 1, 0),
    ]


def test_devices_are_uncached_and_interrupt_controllers_read_only(live: LiveXen) -> None:
    cases = {
        ("vga", 0): PCD | PWT,
        ("vga", PWT): PCD | PWT,
        ("vga", PCD): PCD,
        ("vga", PAT): PAT,
        ("vga", PAT | PWT): PCD | PWT,
        ("io_apic", 0): PCD | PWT,
        ("io_apic", PAT): PAT,
    }
    entries = [(number, device, RW | flags) for number, (device, flags) in enumerate(cases)]
    reads = [("read", 0, number) for number in range(len(cases))]
    answers = ask(live, *table(*entries), *reads)
    expected = [
        DEVICE | 0x100 | (RO if device == "io_apic" else RW) | kept
        for (device, _), kept in cases.items()
    ]
    assert answers[: len(entries) + 2] == [0] * (len(entries) + 2)
    assert answers[len(entries) + 2 :] == expected
    # The same by mmu_update of the table in use.
    late = [("mmu_update_device", 0, number, device, flags) for number, device, flags in entries]
    assert ask(live, *table(), *late, *reads)[2 + len(late) :] == expected


def test_frames_that_dom0_may_not_map(live: LiveXen) -> None:
    late = [
        ("mmu_update_device", 0, 1, device, flags)
        for device, flags in (
            ("local_apic", RO),
            ("invalid", RO),
            ("shared_info", RW),
            ("shared_info", RW | PCD),
            ("shared_info", RO | PWT),
            ("shared_info", RW | PAT),
        )
    ]
    assert ask(live, *table(), *late)[2:] == [-1, -22, 0, -13, -13, -13]
    assert ask(live, *table((1, "shared_info", RW | PCD)))[-1] == -13


def test_an_l4_shows_the_m2p_table_when_the_guest_asked_how(live: LiveXen) -> None:
    def slots(strict: bool) -> list[bool]:
        operations: list[tuple[object, ...]] = [
            ("assist", "m2p_strict", strict),
            ("copy_kernel_slots", 0),
            ("update_va_mapping", 0, 0, RO),
        ]
        for step in (
            ("pin", 4, 0),
            ("new_user_baseptr", 0),
            ("new_baseptr", 0),
            ("new_user_baseptr", 0),
            ("boot_baseptr",),
        ):
            operations += [step, ("read", 0, 256)]
        answers = ask(live, *operations)
        assert answers[3::2] == [0] * 5
        return [bool(answer) for answer in answers[4::2]]

    assert slots(strict=False) == [False, False, True, True, True]
    assert slots(strict=True) == [True, False, False, False, False]


def test_no_execute_is_refused_on_a_cpu_without_it(live: LiveXen) -> None:
    operations = (
        ("update_va_mapping", 1, 1, RW | NX),
        ("write", 0, 3, 2, RW | NX),
        ("update_va_mapping", 0, 0, RO),
        ("pin", 1, 0),
    )
    assert ask(live, *operations) == [0, 0, 0, 0]
    without = attrs.evolve(live, cpu="max,-smap,-nx")
    (answers,) = without.replay([OperationTrace("t", 4, operations)])
    assert answers == (-22, 0, 0, -22)


def test_l1tf_crashes_a_guest_or_moves_it_to_shadow_tables(live: LiveXen) -> None:
    """Dom0 is looked at where ``pv-l1tf=dom0`` says so, on any CPU."""
    operations = (
        ("update_va_mapping", 0, 0, RO),
        ("pin", 1, 0),
        ("mmu_update", 0, 1, 2, 0x66, False),
        ("mmu_update", 0, 2, 2, RW, False),
    )
    assert ask(live, *operations) == [0, 0, 0, 0]
    checked = attrs.evolve(live, options="pv-l1tf=dom0", seconds=60)
    trace = OperationTrace("t", 4, operations)
    assert live.version is not None
    if release_of(live.version).shadow_paging:
        assert checked.replay([trace]) == [(0, 0, 0, 0)]
        return
    with pytest.raises(XenBootError) as raised:
        checked.replay([trace])
    assert any("L1TF-vulnerable L1e" in line for line in raised.value.console), raised.value
