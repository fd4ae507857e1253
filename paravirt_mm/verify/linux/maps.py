"""Maps to boot a real kernel with: the built-in set, real machines as far as QEMU can be them,
random ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources

import attrs

from paravirt_mm.machine.e820 import E820Type, MemoryMap
from paravirt_mm.machine.model import CpuFeatures, Machine, Provenance
from paravirt_mm.machine.paging import GIB, KIB, MIB, PAGE_SIZE, X86_64, X86_64_LA57
from paravirt_mm.machine.ranges import RangeSet, align_up
from paravirt_mm.sources.generated import Choices, Seeded, any_map
from paravirt_mm.verify.linux.qemu import Entry, Kernel, KernelFacts, MapSpec, MapSpecError
from paravirt_mm.verify.linux.qemu.spec import PC_RAM_END

_NODE = 16
"""Bytes of a ``setup_data`` header, by which a reservation is handed over."""
_LARGEST_NODE = GIB
"""A header's length has 32 bits, so larger reservations are handed over in parts."""
_LOADER_END = MIB
"""Below lies what the harness itself puts into memory, and what every kernel reserves by itself."""
_PC_HOLE = (3 * GIB, 4 * GIB)
"""Where QEMU's PC has no RAM, if it has more above."""
_SMALL_PAGES_RAM = GIB
"""RAM that a random machine without large pages has at most: each table costs a boot 2 ms."""


@attrs.frozen
class NamedMap:
    """A map, and why it is there or what of the machine it leaves out."""

    name: str
    spec: MapSpec
    notes: tuple[str, ...] = ()


def builtin_maps(kernel: Kernel | None = None) -> list[NamedMap]:
    """Return the maps that come with the package; of those only what ``kernel`` was built for, and
    what it can be started with (firmware starts no vmlinux).
    """
    text = (resources.files(__package__) / "qemu" / "maps.json").read_text("utf-8")
    maps = [
        NamedMap(name, MapSpec(**entry["spec"]), (entry["why"],))
        for name, entry in json.loads(text).items()
    ]
    return [
        named
        for named in maps
        if kernel is None
        or (
            (kernel.has_five_levels or named.spec.levels == 4)
            and (kernel.is_bzimage or named.spec.entry is Entry.DIRECT)
        )
    ]


def machine_of_map(named: NamedMap) -> Machine:
    """Return a machine with the map; its kernel lies where any does that says nothing else."""
    spec = named.spec
    return Machine(
        name=named.name,
        memory_map=MemoryMap.sanitise((a, b, E820Type(kind)) for a, b, kind in spec.e820),
        mode=spec.mode,
        features=CpuFeatures(pse=spec.pse, gbpages=spec.gbpages),
        reserved=spec.taken,
        provenance=Provenance(source="the package", title=" ".join(named.notes)),
    )


def map_of(machine: Machine, kernel: Kernel | KernelFacts) -> NamedMap:
    """Return a machine's map as far as QEMU can have it.

    RAM that QEMU cannot address is left out; the kernel lies where it is linked to run, so what the
    machine had reserved there is left out too. Raises MapSpecError, with the reason, where no boot
    is possible.
    """
    if machine.mode not in (X86_64, X86_64_LA57):
        raise MapSpecError(f"{machine.mode.title}: only 64-bit kernels are booted")
    if machine.mode is X86_64_LA57 and not kernel.has_five_levels:
        raise MapSpecError(f"kernel {kernel.release} is built without five levels of paging")
    notes: list[str] = []
    memory = machine.memory_map
    if machine.max_pfn_hint is not None:
        memory = _cut(memory, machine.map_limit)
    if memory.ram().end > PC_RAM_END:
        notes.append(f"without what lies above {PC_RAM_END // GIB} GiB")
        memory = _cut(memory, PC_RAM_END)
    taken = RangeSet(machine.reserved)
    if machine.initrd is not None:
        taken.add(*machine.initrd)
    spec = _spec(memory, _hosted(taken, memory, kernel))
    spec = attrs.evolve(
        spec,
        pse=machine.features.pse,
        gbpages=machine.features.gbpages,
        levels=machine.mode.root_level,
    )
    return NamedMap(machine.name, spec, tuple(notes))


def random_maps(count: int, seed: int, kernel: Kernel | KernelFacts) -> Iterator[NamedMap]:
    """Yield ``count`` maps; equal seeds and kernels of equal size give equal maps."""
    for number in range(count):
        yield NamedMap(f"random-{seed}-{number}", _random(Seeded(seed << 32 | number), kernel))


def _random(choose: Choices, kernel: Kernel | KernelFacts) -> MapSpec:
    levels = choose.one_of((4, 4, 5)) if kernel.has_five_levels else 4
    pse = choose.one_of((True, True, False))
    gbpages = pse and choose.one_of((False, True))
    kernel_end = align_up(kernel.physical_range[1], 4 * MIB)
    memory = _cut(any_map(choose, X86_64, kernel_end), PC_RAM_END)
    if not pse:
        memory = _shrunk(memory, _SMALL_PAGES_RAM)
    taken = RangeSet()
    for _ in range(choose.integer(0, 4)):
        low, high = choose.one_of(list(memory.ram()))
        start = low + choose.integer(0, high - low - 1)
        size = choose.one_of((PAGE_SIZE, 64 * KIB, 2 * MIB, 64 * MIB, high - low))
        taken.add(start, start + choose.integer(1, size))
    words = "movable_node" if choose.one_of((False, False, False, True)) else ""
    spec = _spec(memory, _hosted(taken, memory, kernel))
    return attrs.evolve(spec, pse=pse, gbpages=gbpages, levels=levels, command_line=words)


def _spec(memory: MemoryMap, reserved: RangeSet) -> MapSpec:
    """Return the map. What reaches the end of RAM becomes the initrd: Linux does not count RAM that
    holds ``setup_data`` when it looks for that end.
    """
    last = memory.end_pfn() * PAGE_SIZE
    initrd = next((span for span in reserved if span[1] > last - PAGE_SIZE), None)
    ram = list(memory.ram())
    if len(memory) == 1:  # Linux takes a map of one entry for rubbish, and has no memory then
        ((start, end),) = ram
        ram = [(start, end - PAGE_SIZE), (end - PAGE_SIZE, end)]
    return MapSpec(
        ram=ram,
        other=[(e.start, e.end, int(e.type)) for e in memory if e.type is not E820Type.RAM],
        reserved=[
            (start, min(start + _LARGEST_NODE, high))
            for low, high in reserved
            if (low, high) != initrd
            for start in range(low, high - _NODE + 1, _LARGEST_NODE)
        ],
        initrd=initrd,
    )


def _cut(memory: MemoryMap, limit: int) -> MemoryMap:
    """Return what lies below ``limit``."""
    return MemoryMap.sanitise((e.start, min(e.end, limit), e.type) for e in memory)


def _shrunk(memory: MemoryMap, total: int) -> MemoryMap:
    """Return the map without the RAM beyond the first ``total`` bytes of it."""
    for low, high in memory.ram():
        memory = memory.with_range(low + total, high, E820Type.RAM, None)
        total = max(0, total - (high - low))
    return memory


def _hosted(taken: RangeSet, memory: MemoryMap, kernel: Kernel | KernelFacts) -> RangeSet:
    """Return what of ``taken`` can be handed over: RAM, with room for a header.

    Of RAM below 4 GiB the last page stays free if there is more above, for the same reason as in
    `_spec`.
    """
    hosted = taken.intersection(memory.ram())
    hosted.discard(0, _LOADER_END)
    if not kernel.takes_pointers:
        hosted.discard(*kernel.physical_range)
    if memory.ram().end > 4 * GIB:
        hosted.discard(*_PC_HOLE)
        last = memory.end_pfn(4 * GIB) * PAGE_SIZE
        hosted.discard(last - PAGE_SIZE, 4 * GIB)
    return RangeSet((start, end) for start, end in hosted if end - start >= _NODE)
