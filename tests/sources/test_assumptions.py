"""What is assumed where a source does not say, by worked examples; and generated machines."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from paravirt_mm import E820Type, Machine, MemoryMap
from paravirt_mm.machine.paging import I386, I386_PAE, KIB, MIB, X86_64
from paravirt_mm.sources import assume
from paravirt_mm.sources.assume import KernelHints, place_kernel
from paravirt_mm.sources.generated import generated

PAGE = 4096
RAM, RESERVED = E820Type.RAM, E820Type.RESERVED


def memory(*ram: tuple[int, int]) -> MemoryMap:
    return MemoryMap.sanitise((low, high, RAM) for low, high in ram)


PLENTY = memory((0, 640 * KIB), (MIB, 512 * MIB))
BRK = 256 * KIB
M = MIB
TOLD: dict[str, tuple[KernelHints, tuple[int, int, int, int], tuple[str, ...]]] = {
    "image and brk": (
        KernelHints(image=(16 * M, 30 * M), brk_start=28 * M),
        (16 * M, 28 * M, 28 * M, 30 * M), (),
    ),
    "an image that ends inside of a page": (
        KernelHints(image=(16 * M, 30 * M + 5), brk_start=28 * M),
        (16 * M, 28 * M, 28 * M, 30 * M), (),
    ),
    "the page that was taken is the last": (
        KernelHints(image=(16 * M, 30 * M + 5), brk_start=30 * M),
        (16 * M, 30 * M, 30 * M, 30 * M + PAGE), (),
    ),
    "brk where the image begins": (
        KernelHints(image=(16 * M, 30 * M), brk_start=16 * M),
        (16 * M, 16 * M, 16 * M, 30 * M), (),
    ),
    "brk behind the image": (
        KernelHints(image=(16 * M, 30 * M), brk_start=30 * M),
        (16 * M, 30 * M, 30 * M, 30 * M + BRK),
        ("kernel starts at 0x1000000", "256 KiB of brk for tables"),
    ),
    "brk before the image": (
        KernelHints(image=(24 * M, 30 * M), brk_start=20 * M),
        (16 * M, 20 * M, 20 * M, 20 * M + BRK),
        ("kernel starts at 0x1000000", "256 KiB of brk for tables"),
    ),
    "brk 64 MiB above the usual place": (
        KernelHints(brk_start=80 * M), (16 * M, 80 * M, 80 * M, 80 * M + BRK),
        ("kernel starts at 0x1000000", "256 KiB of brk for tables"),
    ),
    "brk further above: 14 MiB from text to bss, from 2 MiB on": (
        KernelHints(brk_start=81 * M), (66 * M, 81 * M, 81 * M, 81 * M + BRK),
        ("kernel starts at 0x4200000", "256 KiB of brk for tables"),
    ),
    "a size that is known, down to 2 MiB": (
        KernelHints(brk_start=90 * M, size=3 * M), (86 * M, 90 * M, 90 * M, 90 * M + BRK),
        ("kernel starts at 0x5600000", "256 KiB of brk for tables"),
    ),
    "brk at the usual place": (
        KernelHints(brk_start=16 * M), (2 * M, 16 * M, 16 * M, 16 * M + BRK),
        ("kernel starts at 0x200000", "256 KiB of brk for tables"),
    ),
    "brk low: no kernel is loaded below 1 MiB": (
        KernelHints(brk_start=12 * M), (M, 12 * M, 12 * M, 12 * M + BRK),
        ("kernel starts at 0x100000", "256 KiB of brk for tables"),
    ),
    "brk at 1 MiB": (
        KernelHints(brk_start=M), (0, M, M, M + BRK),
        ("kernel starts at 0x0", "256 KiB of brk for tables"),
    ),
    "linked": (
        KernelHints(linked=(16 * M, 30 * M + 5)),
        (16 * M, 30 * M - BRK, 30 * M - BRK, 30 * M + PAGE),
        ("the kernel's last 256 KiB are brk for tables",),
    ),
    "linked, smaller than brk": (
        KernelHints(linked=(16 * M + 5, 16 * M + 64 * KIB)),
        (16 * M + 5, 16 * M + PAGE, 16 * M + PAGE, 16 * M + 64 * KIB),
        ("the kernel's last 256 KiB are brk for tables",),
    ),
    "image": (
        KernelHints(image=(16 * M, 30 * M + 5)),
        (16 * M, 30 * M + 5, 30 * M + PAGE, 30 * M + PAGE + BRK),
        ("256 KiB of brk for tables, after the kernel",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TOLD)
def test_a_kernel_lies_where_it_is_told_to(name: str) -> None:
    hints, (start, end, brk, brk_end), sentences = TOLD[name]
    image, said = place_kernel(PLENTY, X86_64, None, hints)
    assert (image.start, image.end, image.brk_start, image.brk_end) == (start, end, brk, brk_end)
    assert image.linked_end is None
    assert said == sentences


GUESSED: dict[str, tuple[MemoryMap, Any, Any, KernelHints, tuple[int, int]]] = {
    "usually": (PLENTY, X86_64, None, KernelHints(), (16 * M, 30 * M)),
    "of a size": (PLENTY, X86_64, None, KernelHints(size=3 * M + 1), (16 * M, 19 * M + PAGE)),
    "since 2.6.31": (PLENTY, I386, (2, 6, 31), KernelHints(), (16 * M, 30 * M)),
    "before": (PLENTY, X86_64, (2, 6, 30), KernelHints(), (2 * M, 8 * M)),
    "before, with RAM from 0": (
        memory((0, 512 * M)), X86_64, (2, 6, 30), KernelHints(), (2 * M, 8 * M),
    ),
    "before, 32 bits": (PLENTY, I386, (2, 6, 30), KernelHints(), (M, 7 * M)),
    "before, of a size": (PLENTY, I386, (2, 6, 30), KernelHints(size=M), (M, 2 * M)),
    "as high as it is mapped": (
        PLENTY, I386, None, KernelHints(ceiling=30 * M + BRK), (16 * M, 30 * M),
    ),
    "higher than it is mapped: no larger than that, less a MiB and brk": (
        PLENTY, I386, None, KernelHints(ceiling=30 * M), (16 * M, 29 * M - BRK),
    ),
    "64 bits map enough": (PLENTY, X86_64, None, KernelHints(ceiling=20 * M), (16 * M, 30 * M)),
    "an end just above shows 16 MiB": (
        PLENTY, I386, None, KernelHints(ceiling=18 * M + PAGE), (16 * M, 17 * M + PAGE - BRK),
    ),
    "one that does not: 1 MiB": (
        PLENTY, I386, None, KernelHints(ceiling=18 * M), (M, 15 * M),
    ),
    "hardly mapped": (PLENTY, I386, None, KernelHints(ceiling=2 * M), (M, M + PAGE)),
    "room to the byte": (
        memory((0, 640 * KIB), (16 * M, 30 * M + BRK)), X86_64, None, KernelHints(),
        (16 * M, 30 * M),
    ),
    "a byte less: half of it": (
        memory((0, 640 * KIB), (16 * M, 30 * M + BRK - PAGE)), X86_64, None, KernelHints(),
        (16 * M, 23 * M),
    ),
    "elsewhere with room, at 2 MiB": (
        memory((0, 640 * KIB), (M, 16 * M), (19 * M, 60 * M)), X86_64, None, KernelHints(),
        (20 * M, 34 * M),
    ),
    "the lowest place that has room": (
        memory((0, 640 * KIB), (M, 16 * M + BRK), (19 * M, 60 * M)), X86_64, None, KernelHints(),
        (2 * M, 16 * M),
    ),
    "small machines": (
        memory((0, 640 * KIB), (M, 3 * M)), X86_64, None, KernelHints(),
        (2 * 896 * KIB, 3 * 896 * KIB),
    ),
    "none above 1 MiB": (memory((0, 640 * KIB)), X86_64, None, KernelHints(), (0, PAGE)),
    "none that 32 bits have addresses for": (
        memory((0, 640 * KIB), (4096 * M, 8192 * M)), I386, None, KernelHints(), (0, PAGE),
    ),
    "room at their very end": (
        memory((0, 640 * KIB), (3040 * M, 8192 * M)), I386_PAE, None, KernelHints(),
        (3040 * M, 3054 * M),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GUESSED)
def test_a_kernel_lies_where_there_is_room(name: str) -> None:
    where, mode, release, hints, (start, end) = GUESSED[name]
    image, said = place_kernel(where, mode, release, hints)
    assert (image.start, image.end) == (start, end)
    assert (image.brk_start, image.brk_end) == (end, end + BRK)
    assert said == (f"kernel at {start:#x}-{end:#x}, 256 KiB of brk after it",)


def test_what_linux_trims() -> None:
    firmware = memory((0, 0xA8000), (M, 3 * M))
    trimmed, _ = assume.standard_trimming(firmware)
    assert [(e.start, e.end, e.type) for e in trimmed] == [
        (0, PAGE, RESERVED), (PAGE, 0xA0000, RAM), (M, 3 * M, RAM)
    ]  # fmt: skip
    top, _ = assume.standard_trimming(memory((0xF0000, 3 * M)))
    assert [(e.start, e.end) for e in top] == [(M, 3 * M)]


@pytest.mark.parametrize(
    ("release", "kept"),
    [
        ((2, 6, 36), None),
        ((2, 6, 37), (0, 64 * KIB)),
        (None, (0, 64 * KIB)),
        ((5, 12), (0, 64 * KIB)),
        ((5, 13), (0, MIB)),
        ((6, 1), (0, MIB)),
    ],
)
def test_what_is_kept_of_low_memory(release: Any, kept: Any) -> None:
    found = assume.low_reservation(release)
    assert (found and found[0]) == kept


def test_conventional_memory_that_is_lost_from_a_log() -> None:
    lost = assume.low_memory(memory((M, 64 * M)))
    assert lost is not None
    assert [(e.start, e.end) for e in lost[0]] == [(PAGE, 0x9F000), (M, 64 * M)]
    assert "0x1000 to 0x9f000" in lost[1]
    again = assume.low_memory(memory((M, 64 * M)), 0x98000)
    assert again is not None
    assert again[0].entries[0].end == 0x98000
    early = MemoryMap.sanitise([(64 * KIB, 0xA0000, RESERVED), (M, 64 * M, RAM)])
    cut = assume.low_memory(early)
    assert cut is not None
    assert (cut[0].entries[0].start, cut[0].entries[0].end) == (PAGE, 64 * KIB)
    for first in (64 * KIB, 0x9F000, 640 * KIB - 1):
        some = memory((first, 64 * M))
        assert assume.low_memory(some) == (
            some,
            f"no memory below {first:#x}, where the map begins",
        )
    known = MemoryMap.sanitise([(64 * KIB - 1, 0xA0000, RESERVED), (M, 64 * M, RAM)])
    assert assume.low_memory(known) is None
    assert assume.low_memory(memory((640 * KIB, 64 * M))) is not None


def described(machine: Machine) -> list[Any]:
    kernel, features = machine.kernel, machine.features
    return [
        machine.name,
        machine.mode.name,
        [(e.start, e.end, int(e.type)) for e in machine.memory_map],
        [features.pse, features.gbpages, features.nx],
        [kernel.start, kernel.end, kernel.brk_start, kernel.brk_end, kernel.linked_end],
        [machine.reserved, machine.initrd, machine.boot_mapped],
    ]


def test_machines_of_a_seed_are_the_same_everywhere_and_for_ever() -> None:
    """Published counts, and other people's sweeps, are of machines that a seed and a number name.
    Whoever changes one of 600 changes what those counts are of: this is their digest.
    """
    digest = hashlib.sha256()
    for seed in (0, 1, 7):
        for number in range(200):
            digest.update(json.dumps(described(generated(number, seed))).encode())
    assert digest.hexdigest()[:16] == "94d46d27b711537c"
