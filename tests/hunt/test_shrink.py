"""Small machines: smaller with every step, sound, and as small as the question allows."""

from __future__ import annotations

from fractions import Fraction

import attrs
import pytest
from hypothesis import given, strategies as st

from paravirt_mm import MODES, CpuFeatures, E820Type, KernelImage, Machine, MemoryMap, bundled
from paravirt_mm.hunt.edits import changed, is_sound
from paravirt_mm.hunt.shrink import measure, shrink
from paravirt_mm.sources.generated import Seeded

GIB = 1 << 30


def nvs_bytes(machine: Machine) -> int:
    return sum(e.end - e.start for e in machine.memory_map if e.type is E820Type.NVS)


@pytest.mark.parametrize(
    ("question", "entries"),
    [
        (lambda m: True, 1),
        (lambda m: nvs_bytes(m) > 0, 2),
        (lambda m: m.memory_map.ram().end > 5 * GIB, 1),
        (lambda m: len(m.memory_map.ram_pages()) >= 3, 3),
        (lambda m: bool(m.reserved), 1),
    ],
    ids=["anything", "NVS", "above 5 GiB", "three pieces", "a reservation"],
)
def test_minimal(question, entries):
    machine = bundled("lenovo-x230-8g")
    machine = attrs.evolve(machine, reserved=(*machine.reserved, (0x2000000, 0x2001000)))
    assert question(machine)
    small, _ = shrink(machine, question)
    assert question(small)
    assert len(small.memory_map) == entries
    assert measure(small) <= measure(machine)


def test_tries_are_bounded():
    asked = []

    def never(machine: Machine) -> bool:
        asked.append(machine)
        return False

    machine = bundled("lenovo-x230-8g")
    small, tries = shrink(machine, never, max_tries=17)
    assert tries == len(asked) == 17
    assert small.memory_map == machine.memory_map


@given(st.integers(0, 1 << 30), st.sampled_from(["lenovo-x230-8g", "pae-4g", "qemu-512m"]))
def test_changes_leave_a_machine_that_boots(seed, name):
    """Changes never move the kernel out of RAM, nor take the room behind it."""
    machine = bundled(name)
    room = 1 << 20
    if not is_sound(machine, room):
        pytest.skip("this machine has no room to begin with")
    marks = [0, machine.kernel.span[1], machine.kernel.brk_start, 1 << 30, 1 << 45]
    for number in range(20):
        machine = changed(Seeded(seed + number), machine, marks if number % 2 else ())
        assert is_sound(machine, room)


def test_marks_are_where_things_begin_or_end():
    """RAM, a reservation and an initrd, each at a mark itself and off it."""
    machine, mark = bundled("lenovo-x230-8g"), 0x12345000
    ends, taken, initrds = (
        {
            address
            for n in range(300)
            for low, high in spans(changed(Seeded(n), machine, [mark]))
            for address in (low, high)
        }
        for spans in (
            lambda m: list(m.memory_map.ram()),
            lambda m: m.reserved,
            lambda m: [m.initrd] if m.initrd else [],
        )
    )
    for seen in (ends, taken, initrds):
        assert mark in seen
        assert {mark + 4096, mark - 4096} & seen
    assert mark + (2 << 20) in ends


@pytest.mark.parametrize("ratio", [Fraction(1, 5), Fraction(5, 7), Fraction(9, 7), Fraction(4)])
def test_a_ratio_gives_as_much_more_or_less_memory(ratio):
    """Of RAM, or of where it ends, to the page; other changes come between."""
    machine = bundled("lenovo-x230-8g")
    ram = machine.memory_map.ram_pages()
    seen = [changed(Seeded(n), machine, (), [ratio]).memory_map.ram_pages() for n in range(100)]
    assert sum(-4096 < after.total - ram.total * ratio <= 0 for after in seen) > 3
    assert sum(-4096 < after.end - ram.end * ratio <= 0 for after in seen) > 3


def test_no_ratio_gives_more_memory_than_there_are_addresses():
    machine = bundled("lenovo-x230-8g")
    ends = {changed(Seeded(n), machine, (), [Fraction(10**30)]).max_pfn for n in range(50)}
    assert max(ends) == 1 << 34  # 64 TiB, what hunts go up to


def test_changes_change():
    machine = bundled("lenovo-x230-8g")
    seen = {changed(Seeded(n), machine).memory_map for n in range(200)}
    assert len(seen) > 50


def test_nothing_is_tried_when_the_time_is_over():
    machine = bundled("lenovo-x230-8g")
    small, tries = shrink(machine, lambda m: True, until=0.0)
    assert tries == 0
    assert small.memory_map == machine.memory_map


def test_what_is_taken_across_a_gap_never_ends_before_it_begins():
    edge = 2 * GIB
    machine = Machine(
        name="gap",
        memory_map=MemoryMap.sanitise(
            [(0, GIB, E820Type.RAM), (edge, 3 * GIB, E820Type.RAM)],
        ),
        reserved=((edge - 0x2000, edge + 0x1000),),
        initrd=(edge - 0x1000, edge + 0x1000),
    )
    seen: list[Machine] = []
    shrink(machine, lambda m: bool(seen.append(m)))
    assert any(m.memory_map.ram().end < 3 * GIB for m in seen)
    for m in seen:
        assert all(low < high for low, high in (*m.reserved, *([m.initrd] if m.initrd else [])))


def test_a_sound_machine_has_room_behind_its_kernel():
    """Whole pages of RAM that nobody has taken, up to there and not a byte less."""
    kernel = KernelImage(16 << 20, 18 << 20, 18 << 20, (18 << 20) + 5)
    behind, room = (18 << 20) + 4096, 1 << 20
    end = behind + room

    def machine(low=1 << 20, high=end, **fields):
        memory = MemoryMap.sanitise([(low, high, E820Type.RAM)])
        return Machine("m", memory, kernel=kernel, **fields)

    assert is_sound(machine(), room)
    assert is_sound(machine(low=16 << 20), room)
    taken = (((1 << 20), behind - 4096), (end, end + 4096))
    assert is_sound(machine(reserved=taken, initrd=(end, end + 1)), room)
    assert is_sound(machine(reserved=((behind - 5, behind),)), room)
    for wrong in (
        machine(high=end - 1),
        machine(low=(16 << 20) + 1),
        machine(reserved=((behind, behind + 1),)),
        machine(reserved=((end - 1, end),)),
        machine(initrd=(end - 1, end + 1)),
        machine(max_low_pfn_hint=(end >> 12) - 1, mode=MODES["i386"]),
    ):
        assert not is_sound(wrong, room)
    assert is_sound(machine(max_low_pfn_hint=end >> 12, mode=MODES["i386"]), room)
    assert is_sound(machine(high=behind), 0)
    assert not is_sound(machine(high=(17 << 20) + 8 * (1 << 20)))  # 8 MiB, unless told otherwise
    assert is_sound(machine(high=behind + 8 * (1 << 20)))


def test_how_simple_a_machine_is():
    """Entries; then what is unusual; then edges that are not round; then how much it all is."""
    plain = Machine("m", MemoryMap.sanitise([(0, 1 << 30, E820Type.RAM)]))
    assert measure(plain) == (1, 0, 0, 32 * 30)
    for fields, unusual in (
        ({"reserved": ((0, 1 << 30),)}, 1),
        ({"reserved": ((0, 1 << 20), (1 << 30, 2 << 30))}, 2),
        ({"initrd": (1 << 20, 2 << 20)}, 1),
        ({"kernel": plain.kernel.at(32 << 20)}, 1),
        ({"features": CpuFeatures(gbpages=True)}, 1),
        ({"features": CpuFeatures(nx=False)}, 1),
        ({"max_pfn_hint": 5, "max_low_pfn_hint": 5}, 2),
    ):
        assert measure(attrs.evolve(plain, **fields))[1] == unusual
    narrow = attrs.evolve(plain, mode=MODES["i386"], features=CpuFeatures(nx=False))
    assert measure(narrow)[1] == 0
    odd = MemoryMap.sanitise([(0, 1 << 30, E820Type.RAM), (2 << 30, (2 << 30) + 1, E820Type.ACPI)])
    assert measure(attrs.evolve(plain, memory_map=odd))[:3] == (2, 1, 3)
    for edge, uneven in ((1 << 30, 0), (2 << 20, 1), (4096, 2), (1, 3)):
        taken = attrs.evolve(plain, reserved=((0, edge),))
        assert measure(taken)[2] == uneven
    assert measure(plain) < measure(attrs.evolve(plain, initrd=(1 << 20, 2 << 20)))
