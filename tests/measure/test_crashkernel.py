"""Which crash kernels fit::

0      16M       100M     120M            300M
|------|=========|  taken |===============|
       16..100M           128..300M: bases at 128, 144, ... MiB
"""

from __future__ import annotations

import pytest

from paravirt_mm import (
    E820Type,
    InputError,
    KernelImage,
    Machine,
    MemoryMap,
    RangeSet,
    Scenario,
)
from paravirt_mm.measure.crashkernel import Wanted, largest, places, room

MIB, GIB = 1 << 20, 1 << 30
FREE = RangeSet([(0, 100 * MIB), (120 * MIB, 300 * MIB)])
KERNEL = KernelImage(16 * MIB, 56 * MIB, 56 * MIB, 56 * MIB)
MACHINE = Machine(
    "kaslr",
    MemoryMap.sanitise(
        [
            (0x1000, 0x9F000, E820Type.RAM),
            (MIB, 3 * GIB, E820Type.RAM),
            (4 * GIB, 9 * GIB, E820Type.RAM),
        ]
    ),
    kernel=KERNEL,
    reserved=((0, 64 << 10), (640 << 10, MIB), (16 * MIB, 56 * MIB)),
)


@pytest.mark.parametrize(
    ("size", "limit", "expected"),
    [
        (64, 896, [(0, 32), (128, 224)]),
        (100, 896, [(0, 0), (128, 192)]),
        (101, 896, [(128, 192)]),
        (172, 896, [(128, 128)]),
        (173, 896, []),
        (64, 200, [(0, 32), (128, 128)]),
        (64, 128, [(0, 32)]),
    ],
)
def test_places_of_a_size(size: int, limit: int, expected: list[tuple[int, int]]) -> None:
    found = [(low // MIB, high // MIB) for low, high in places(FREE, size * MIB, limit * MIB)]
    assert found == expected


def test_largest_is_the_last_that_has_a_place() -> None:
    for limit in (50, 100, 130, 200, 896):
        size = largest(FREE, limit * MIB) // MIB
        assert any(places(FREE, size * MIB, limit * MIB))
        assert not any(places(FREE, (size + 1) * MIB, limit * MIB))
    assert largest(RangeSet([(MIB, 15 * MIB)]), GIB) == 0
    assert largest(RangeSet([(16 * MIB, 18 * MIB - 1)]), GIB) == MIB
    # To a byte, and from a multiple of 16 MiB on only.
    assert room([(16 * MIB, 16 * MIB + 1)]) == 1
    assert room([(0, 15 * MIB), (16 * MIB + 1, 47 * MIB)]) == 15 * MIB
    assert room([(1, 16 * MIB)]) == room([(1, 15 * MIB)]) == room([]) == 0


@pytest.mark.parametrize(
    ("start", "fits_low"),
    [
        (16, True),  # everything above 56 MiB is free
        (400, False),  # 16..400 MiB below it, 440..896 MiB above: neither holds 512 MiB
        (640, True),  # 16..640 MiB
        (1024, True),
    ],
)
def test_where_the_kernel_lies_decides(start: int, fits_low: bool) -> None:
    machine = MACHINE.with_kernel_at(start * MIB)
    run = Scenario.of(machine, "incremental:kernel=4.19", "native").run()
    assert str(run.verdict) == "ok"
    assert run.figures["crashkernel_512m_below_896m"] is fits_low
    assert run.figures["crashkernel_512m_below_4g"] is True


def test_nothing_stays_where_the_kernel_was() -> None:
    moved = MACHINE.with_kernel_at(400 * MIB)
    assert moved.kernel.span == (400 * MIB, 440 * MIB)
    assert moved.reserved == ((0, 64 << 10), (640 << 10, MIB))


@pytest.mark.parametrize("start", [0, 3 * GIB - 4 * MIB, 3 * GIB, 9 * GIB])
def test_a_kernel_lies_in_free_ram(start: int) -> None:
    with pytest.raises(InputError, match="kernel at"):
        MACHINE.with_kernel_at(start)


def test_places_for_a_kernel() -> None:
    found = [machine.kernel.start for machine in MACHINE.kernel_places(most=1 << 20)]
    assert found[0] == 16 * MIB
    assert all(start % (2 * MIB) == 0 for start in found)
    assert 3 * GIB - 40 * MIB in found
    assert 3 * GIB - 38 * MIB not in found
    assert found[-1] == 9 * GIB - 40 * MIB
    assert len(list(MACHINE.kernel_places(most=100))) <= 100


@pytest.mark.parametrize(
    ("text", "size", "at"),
    [
        ("512M", 512 * MIB, None),
        ("512m@16M", 512 * MIB, 16 * MIB),
        ("1G@4G", GIB, 4 * GIB),
        ("64K@0", 64 << 10, 0),
        ("1T", 1 << 40, None),
        ("0x1000", 4096, None),
        (f"{(1 << 52) - 1}", (1 << 52) - 1, None),
    ],
)
def test_what_is_asked_for(text: str, size: int, at: int | None) -> None:
    assert Wanted.parse(text) == Wanted(size, at)


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "M", "many", "1G@", "1G@-1", f"{1 << 52}", "4096T"]
)
def test_what_cannot_be_asked_for(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|bytes|invalid literal"):
        Wanted.parse(text)


def test_where_what_is_asked_for_fits() -> None:
    assert Wanted(172 * MIB).places(FREE) == [(128 * MIB, 128 * MIB)]
    assert Wanted(5 * MIB, 95 * MIB).places(FREE) == [(95 * MIB, 95 * MIB)]
    assert Wanted(5 * MIB + 1, 95 * MIB).places(FREE) == []
    assert Wanted(MIB).places(RangeSet([(4 * GIB, 5 * GIB)])) == []
