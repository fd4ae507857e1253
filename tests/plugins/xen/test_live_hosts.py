"""What dom0 sees of its host, asked of the three real hypervisors: devices, shared pages, CPUs
without NX, L1TF, assists. The same right values as in `test_mmu_hosts.py`, and the model's."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

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


Operations = Sequence[tuple[object, ...]]


def table(*entries: tuple[int, str, int]) -> list[tuple[object, ...]]:
    """Entries for devices, written to page 0 before it becomes an L1."""
    return [
        *(("mmu_update_device", 0, index, device, flags) for index, device, flags in entries),
        ("update_va_mapping", 0, 0, RO),
        ("pin", 1, 0),
    ]


CACHED = {
    ("vga", 0): PCD | PWT,
    ("vga", PWT): PCD | PWT,
    ("vga", PCD): PCD,
    ("vga", PAT): PAT,
    ("vga", PAT | PWT): PCD | PWT,
    ("io_apic", 0): PCD | PWT,
    ("io_apic", PAT): PAT,
}
"""How a device is mapped: as asked for, and the bits that decide how it is cached then."""
DEVICES = [(number, device, RW | flags) for number, (device, flags) in enumerate(CACHED)]
READS = [("read", 0, number) for number in range(len(CACHED))]


def slots(strict: bool) -> Operations:
    """Look at an L4's slot of the M2P table: before it is a table, and after each use."""
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
    return operations


NO_EXECUTE = (
    ("update_va_mapping", 1, 1, RW | NX),
    ("write", 0, 3, 2, RW | NX),
    ("update_va_mapping", 0, 0, RO),
    ("pin", 1, 0),
)
L1TF = (
    ("update_va_mapping", 0, 0, RO),
    ("pin", 1, 0),
    ("mmu_update", 0, 1, 2, 0x66, False),
    ("mmu_update", 0, 2, 2, RW, False),
)
QUESTIONS: dict[str, Operations] = {
    "devices": [*table(*DEVICES), *READS],
    "devices of the table in use": [
        *table(),
        *(("mmu_update_device", 0, number, device, flags) for number, device, flags in DEVICES),
        *READS,
    ],
    "frames": [
        *table(),
        *(
            ("mmu_update_device", 0, 1, device, flags)
            for device, flags in (
                ("local_apic", RO),
                ("invalid", RO),
                ("shared_info", RW),
                ("shared_info", RW | PCD),
                ("shared_info", RO | PWT),
                ("shared_info", RW | PAT),
            )
        ),
    ],
    "a shared frame": table((1, "shared_info", RW | PCD)),
    "slots": slots(strict=False),
    "slots, strict": slots(strict=True),
    "no execute": NO_EXECUTE,
    "L1TF": L1TF,
}


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


@pytest.fixture(scope="module")
def answers(live: LiveXen) -> dict[str, list[int]]:
    """Real Xen's answers to all questions, in one boot; they are the model's too."""
    traces = [OperationTrace(name, 8, tuple(asked)) for name, asked in QUESTIONS.items()]
    found = live.replay(traces)
    assert live.boots == 1
    assert live.version is not None
    release = release_of(live.version)
    for trace, answer in zip(traces, found, strict=True):
        assert predict(trace, release) == answer, trace.name
    return {name: list(answer) for name, answer in zip(QUESTIONS, found, strict=True)}


def test_devices_are_uncached_and_interrupt_controllers_read_only(
    answers: dict[str, list[int]],
) -> None:
    expected = [
        DEVICE | 0x100 | (RO if device == "io_apic" else RW) | kept
        for (device, _), kept in CACHED.items()
    ]
    count = len(DEVICES)
    assert answers["devices"] == [0] * (count + 2) + expected
    # The same by mmu_update of the table in use.
    assert answers["devices of the table in use"][2 + count :] == expected


def test_frames_that_dom0_may_not_map(answers: dict[str, list[int]]) -> None:
    assert answers["frames"][2:] == [-1, -22, 0, -13, -13, -13]
    assert answers["a shared frame"][-1] == -13


def test_an_l4_shows_the_m2p_table_when_the_guest_asked_how(answers: dict[str, list[int]]) -> None:
    for name, shown in (
        ("slots", [False, False, True, True, True]),
        ("slots, strict", [True, False, False, False, False]),
    ):
        assert answers[name][3::2] == [0] * 5
        assert [bool(answer) for answer in answers[name][4::2]] == shown


def test_no_execute_is_refused_on_a_cpu_without_it(
    live: LiveXen, answers: dict[str, list[int]]
) -> None:
    assert answers["no execute"] == [0, 0, 0, 0]
    without = attrs.evolve(live, cpu="max,-smap,-nx")
    (refused,) = without.replay([OperationTrace("t", 4, NO_EXECUTE)])
    assert refused == (-22, 0, 0, -22)


def test_l1tf_crashes_a_guest_or_moves_it_to_shadow_tables(
    live: LiveXen, answers: dict[str, list[int]]
) -> None:
    """Dom0 is looked at where ``pv-l1tf=dom0`` says so, on any CPU."""
    assert answers["L1TF"] == [0, 0, 0, 0]
    checked = attrs.evolve(live, options="pv-l1tf=dom0", seconds=60)
    trace = OperationTrace("t", 4, L1TF)
    assert live.version is not None
    if release_of(live.version).shadow_paging:
        assert checked.replay([trace]) == [(0, 0, 0, 0)]
        return
    with pytest.raises(XenBootError) as raised:
        checked.replay([trace])
    assert any("L1TF-vulnerable L1e" in line for line in raised.value.console), raised.value
