"""The kit's machines: what `generate` and the strategies promise."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import Phase, find, given, settings

from paravirt_mm import MODES, E820Type, Machine, MemoryMap
from paravirt_mm.machine.paging import GIB, MIB
from paravirt_mm.sources.generated import ROOM_AFTER_KERNEL
from paravirt_mm.testing import generate, machines, memory_maps, raw_entries

SAMPLE = list(generate(400, seed=0))


def test_same_seed_same_machines() -> None:
    assert list(generate(12, seed=5)) == list(generate(12, seed=5))
    assert list(generate(5, seed=5)) == list(generate(12, seed=5))[:5]
    assert next(generate(1, seed=5)) != next(generate(1, seed=6))


def test_same_machines_as_ever() -> None:
    """Other people's sweeps name machines by seed and number: these must not change."""
    machine = list(generate(3, seed=1))[2]
    assert machine.name == "generated-1-2"
    assert machine.mode.name == "x86_64"
    assert [(e.start, e.end) for e in machine.memory_map] == [
        (0x0, 0x9F000),
        (0xF0000, 0x100000),
        (0x100000, 0x380D000),
        (0xFEC00000, 0xFEC01000),
        (0x13FFF0CF5, 0x17FFEC84A),
    ]


def test_modes_are_taken_in_turn() -> None:
    assert Counter(machine.mode.name for machine in SAMPLE) == dict.fromkeys(MODES, 100)
    assert {m.mode.name for m in generate(4, modes=("i386-pae",))} == {"i386-pae"}


def test_all_kinds_come_up() -> None:
    """Holes, odd edges, every feature, small and huge, with and without initrd."""
    features = {(m.features.pse, m.features.gbpages) for m in SAMPLE}
    assert features == {(True, True), (True, False), (False, False)}
    edges = [edge for m in SAMPLE for e in m.memory_map for edge in (e.start, e.end)]
    assert any(edge % 4096 for edge in edges)
    assert min(m.memory_map.ram_pages().total for m in SAMPLE) < 64 * MIB
    assert max(m.memory_map.ram_pages().total for m in SAMPLE) > 1024 * GIB
    assert max(len(m.memory_map.ram_pages()) for m in SAMPLE) >= 7
    assert {bool(m.initrd) for m in SAMPLE} == {True, False}
    kinds = {entry.type for m in SAMPLE for entry in m.memory_map}
    assert {E820Type.RAM, E820Type.RESERVED, E820Type.ACPI, E820Type.UNUSABLE} <= kinds
    assert {len(m.reserved) for m in SAMPLE} >= {0, 1, 2, 3}


def _is_realistic(machine: Machine) -> None:
    ram = machine.memory_map.ram()
    kernel = machine.kernel
    assert ram.covers(kernel.start, kernel.brk_end + ROOM_AFTER_KERNEL)
    assert kernel.start < kernel.end <= kernel.brk_start < kernel.brk_end
    assert kernel.brk_start % 4096 == kernel.brk_end % 4096 == 0
    assert machine.boot_mapped >= kernel.brk_end
    if machine.initrd:
        assert ram.covers(*machine.initrd)
    for start, end in machine.reserved:
        assert not (start < kernel.brk_end + ROOM_AFTER_KERNEL and end > kernel.brk_end)
    assert machine.max_pfn << 12 <= 1 << machine.mode.physical_bits
    assert not machine.features.gbpages or machine.features.pse
    assert machine.features.nx <= machine.mode.has_nx


@pytest.mark.parametrize("machine", SAMPLE[:60], ids=lambda machine: machine.name)
def test_generated_machines_could_be(machine: Machine) -> None:
    _is_realistic(machine)


@given(machines())
def test_drawn_machines_could_be(machine: Machine) -> None:
    _is_realistic(machine)


@pytest.mark.slow
def test_failures_shrink_to_small_machines() -> None:
    """The simplest machine with memory above 4 GiB has hardly more than that."""
    found = find(
        machines(modes=("x86_64",)),
        lambda machine: machine.memory_map.end_pfn() > 4 * GIB >> 12,
        settings=settings(max_examples=2000, database=None, derandomize=True),
    )
    assert len(found.memory_map.ram_pages()) == 3
    assert found.reserved in ((), ((0, 0x10000),))
    assert found.initrd is None


@given(memory_maps())
def test_maps_are_sanitised(memory: MemoryMap) -> None:
    assert MemoryMap.sanitise((e.start, e.end, e.type) for e in memory) == memory
    assert memory.ram().covers(MIB, 32 * MIB)


@given(raw_entries())
def test_raw_entries_can_be_sanitised(entries: list[tuple[int, int, E820Type]]) -> None:
    memory = MemoryMap.sanitise(entries)
    assert all(
        first.end <= second.start
        for first, second in zip(memory.entries, memory.entries[1:], strict=False)
    )


def test_raw_entries_are_bad_enough() -> None:
    """Overlaps, inverted and empty entries are all to be found."""
    strategy = raw_entries()
    quiet = settings(max_examples=500, database=None, derandomize=True, phases=[Phase.generate])
    for is_bad in (
        lambda rows: any(start > end for start, end, _ in rows),
        lambda rows: any(start == end for start, end, _ in rows),
        lambda rows: any(a[0] < b[0] < a[1] for a in rows for b in rows),
        lambda rows: any(start % 4096 for start, _, _ in rows),
    ):
        assert find(strategy, is_bad, settings=quiet)
