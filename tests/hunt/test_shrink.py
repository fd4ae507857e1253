"""Small machines: smaller with every step, sound, and as small as the question allows."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given, settings, strategies as st

from paravirt_mm import E820Type, Machine, MemoryMap, bundled
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


@settings(max_examples=60, deadline=None)
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
