"""Machines that firmware could have made: maps with holes and odd edges, every mode and feature,
reservations anywhere.

One description, two sources of decisions: `generate` takes them from a seed (sweeps, benchmarks,
identical everywhere), the hypothesis strategies of `paravirt_mm.testing.strategies` from its
search, so that a failure shrinks to a small machine.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

from paravirt_mm.machine.e820 import E820Type, MemoryMap
from paravirt_mm.machine.model import (
    LOW_RESERVED,
    CpuFeatures,
    KernelImage,
    Machine,
    Provenance,
    Span,
)
from paravirt_mm.machine.paging import GIB, ISA_END, KIB, MIB, MODES, PAGE_SIZE, TIB, PagingMode
from paravirt_mm.machine.ranges import RangeSet, align_down, align_up

T = TypeVar("T")

ROOM_AFTER_KERNEL = 8 * MIB
"""RAM that follows every kernel, free of holes and reservations: a domain builder or loader would
not start without.
"""


class Choices(Protocol):
    """Where decisions come from. The first option and the lowest number are the simplest."""

    def integer(self, low: int, high: int) -> int:
        """Return a number of ``low``..``high``, both included."""

    def one_of(self, options: Sequence[T]) -> T:
        """Return one of the options."""


class Seeded:
    """Decisions from a seed, the same with every Python."""

    def __init__(self, seed: int | str) -> None:
        self._random = random.Random(seed)  # noqa: S311  # reproducible, not secret

    def integer(self, low: int, high: int) -> int:
        """Return a number of ``low``..``high``, small distances from ``low`` as likely as large
        ones.
        """
        bits = self._random.randint(0, (high - low).bit_length())
        return low + min(high - low, self._random.getrandbits(bits) if bits else 0)

    def one_of(self, options: Sequence[T]) -> T:
        """Return one of the options, all alike."""
        return self._random.choice(options)

    def in_proportion(self, options: Sequence[T], weights: Sequence[float]) -> T:
        """Return one of the options, each as often as its weight says."""
        return self._random.choices(options, weights)[0]


def generate(n: int, seed: int = 0, modes: Sequence[str] = tuple(MODES)) -> Iterator[Machine]:
    """Yield ``n`` machines, named ``generated-SEED-NUMBER``; equal arguments give equal machines.

    ``modes`` are names of `paravirt_mm.MODES`, taken in turn.
    """
    for number in range(n):
        yield generated(number, seed, modes)


def generated(number: int, seed: int = 0, modes: Sequence[str] = tuple(MODES)) -> Machine:
    """Return machine ``number`` of `generate` with the same seed and modes.

    Python's generator folds the key, so that machine ``s + 1`` of seed ``s`` is that of seed 0 too.
    The key stays as it is: published counts are of the machines that it names.
    """
    mode = MODES[modes[number % len(modes)]]
    return any_machine(Seeded(seed << 32 | number), mode, f"generated-{seed}-{number}")


_FILLINGS: tuple[E820Type | None, ...] = (
    None,
    E820Type.RESERVED,
    E820Type.ACPI,
    E820Type.NVS,
    E820Type.UNUSABLE,
    E820Type.PRAM,
)
_CONVENTIONAL_ENDS = (640 * KIB, 0x9FC00, 0x9F000, 0x9D400, 0x9B001)
_SMALL_TO_LARGE = (PAGE_SIZE, 64 * KIB, 2 * MIB, 64 * MIB)
_HIGH_SIZES = (2 * MIB, 256 * MIB, GIB, 16 * GIB, 512 * GIB, 4 * TIB)
_HIGH_GAPS = (0, PAGE_SIZE, 2 * MIB, GIB, 256 * GIB)


def any_map(choose: Choices, mode: PagingMode, kernel_end: int) -> MemoryMap:
    """Return a map whose RAM holds ``[1 MiB, kernel_end)`` in one piece."""
    low_end = kernel_end + _size(choose, (0, 32 * MIB, 256 * MIB, GIB, 2 * GIB))
    low_end = min(low_end, 0xE0000000)
    raw = [
        (0, choose.one_of(_CONVENTIONAL_ENDS), E820Type.RAM),
        (640 * KIB, 640 * KIB + choose.one_of((0, PAGE_SIZE)), E820Type.RESERVED),
        (0xF0000, ISA_END, E820Type.RESERVED),
        (ISA_END, low_end, E820Type.RAM),
        (0xFEC00000, 0xFEC00000 + choose.one_of((PAGE_SIZE, 20 * MIB)), E820Type.RESERVED),
    ]
    position = 4 * GIB
    limit = 1 << mode.physical_bits
    for _ in range(choose.integer(0, 4)):
        start = position + _size(choose, _HIGH_GAPS)
        end = min(start + _size(choose, _HIGH_SIZES), limit)
        if start < end:
            raw.append((start, end, E820Type.RAM))
            position = end
    memory = MemoryMap.sanitise(raw)
    for _ in range(choose.integer(0, 6)):
        regions = [(low, high) for low, high in memory.ram() if high > kernel_end]
        if not regions:
            break
        low, high = choose.one_of(regions)
        low = max(low, kernel_end)
        start = low + _size(choose, (0, high - low))
        end = start + _size(choose, _SMALL_TO_LARGE)
        memory = memory.with_range(start, end, E820Type.RAM, choose.one_of(_FILLINGS))
    return memory


def any_machine(choose: Choices, mode: PagingMode, name: str) -> Machine:
    """Return a machine of ``mode``; its kernel lies in RAM with `ROOM_AFTER_KERNEL` behind it."""
    start = choose.one_of((16 * MIB, 2 * MIB, MIB, 32 * MIB))
    end = start + choose.integer(1, 24 * MIB)
    brk = align_up(end, PAGE_SIZE)
    kernel = KernelImage(start, end, brk, brk + choose.one_of((64, 6, 12, 24)) * PAGE_SIZE)
    room_end = kernel.brk_end + ROOM_AFTER_KERNEL
    memory = any_map(choose, mode, room_end)
    boot_mapped = align_up(room_end, 4 * MIB)
    if not mode.is_32bit:
        boot_mapped = choose.one_of((512 * MIB, GIB))
    pse = choose.one_of((True, True, False))
    return Machine(
        name=name,
        memory_map=memory,
        mode=mode,
        features=CpuFeatures(
            pse=pse,
            gbpages=pse and 3 in mode.large_levels and choose.one_of((False, True)),
            nx=mode.has_nx,
        ),
        kernel=kernel,
        reserved=_reservations(choose, memory, room_end),
        initrd=_initrd(choose, memory, room_end, mode),
        boot_mapped=boot_mapped,
        provenance=Provenance(source="generated"),
    )


def _reservations(choose: Choices, memory: MemoryMap, room_end: int) -> tuple[Span, ...]:
    taken = RangeSet([LOW_RESERVED] if choose.one_of((True, False)) else [])
    regions = [(low, high) for low, high in memory.ram() if high > room_end]
    for _ in range(choose.integer(0, 4)) if regions else ():
        low, high = choose.one_of(regions)
        start = max(low, room_end) + _size(choose, (0, max(high - max(low, room_end), 1)))
        taken.add(start, min(start + _size(choose, _SMALL_TO_LARGE), high))
    return tuple(taken)


def _initrd(choose: Choices, memory: MemoryMap, room_end: int, mode: PagingMode) -> Span | None:
    size = choose.one_of((0, 5 * MIB + 123, 40 * MIB))
    limit = mode.lowmem_limit or 4 * GIB
    for low, high in memory.ram().descending(room_end, limit) if size else ():
        start = align_down(high - size, PAGE_SIZE)
        if start >= low:
            return start, start + size
    return None


def _size(choose: Choices, typical: Sequence[int]) -> int:
    """Return a size up to one of the typical ones, or near it; by times not a multiple of
    anything.
    """
    largest = choose.one_of(typical)
    grain = choose.one_of((2 * MIB, PAGE_SIZE, GIB, 1))
    if grain > largest:
        return largest
    return align_down(largest, grain) - grain * choose.integer(0, min(largest // grain, 1 << 20))
