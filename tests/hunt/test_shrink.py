"""Small machines: smaller with every step, sound, and as small as the question allows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from functools import partial
from itertools import pairwise

import attrs
import pytest
from hypothesis import given, strategies as st

from paravirt_mm import MODES, CpuFeatures, E820Type, KernelImage, Machine, MemoryMap, bundled
from paravirt_mm.errors import InputError
from paravirt_mm.hunt.edits import changed, is_sound
from paravirt_mm.hunt.facts import scaled
from paravirt_mm.hunt.shrink import measure, shrink, shrink_by
from paravirt_mm.machine.model import DEFAULT_KERNEL, Provenance
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
    asked.clear()
    _, tries = shrink(machine, lambda m: not asked.append(m))
    assert tries == len(asked), "one at a time, also where the first will do"


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
def test_what_leads_to_the_goal_is_taken_among_other_changes(ratio):
    """Here as many times as much RAM, to the page."""
    machine = bundled("lenovo-x230-8g")
    leads = [partial(scaled, ratio)]
    seen = [changed(Seeded(n), machine, (), leads).memory_map.ram_pages() for n in range(200)]
    wanted = machine.memory_map.ram_pages().total * ratio
    assert sum(abs(after.total - wanted) <= 4096 for after in seen) > 3


def test_nothing_leads_to_more_memory_than_there_are_addresses():
    machine = bundled("lenovo-x230-8g")
    leads = [partial(scaled, Fraction(10**30))]
    ends = {changed(Seeded(n), machine, (), leads).max_pfn for n in range(100)}
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
        ({"features": CpuFeatures(nx=False, pse=False, gbpages=True)}, 3),
        ({"max_pfn_hint": 5, "max_low_pfn_hint": 5}, 2),
    ):
        assert measure(attrs.evolve(plain, **fields))[1] == unusual
    for end, of_size in ((8190, 415), (8191, 416)):
        memory = MemoryMap.sanitise([(0, end, E820Type.RAM)])
        assert measure(attrs.evolve(plain, memory_map=memory))[3] == of_size, "thirteen doublings"
    narrow = attrs.evolve(plain, mode=MODES["i386"], features=CpuFeatures(nx=False))
    assert measure(narrow)[1] == 0
    odd = MemoryMap.sanitise([(0, 1 << 30, E820Type.RAM), (2 << 30, (2 << 30) + 1, E820Type.ACPI)])
    assert measure(attrs.evolve(plain, memory_map=odd))[:3] == (2, 1, 3)
    for edge, uneven in ((1 << 30, 0), (2 << 20, 1), (4096, 2), (1, 3)):
        taken = attrs.evolve(plain, reserved=((0, edge),))
        assert measure(taken)[2] == uneven
    assert measure(plain) < measure(attrs.evolve(plain, initrd=(1 << 20, 2 << 20)))


# -- every reduction is tried, and none is left ----------------------------------------------------

RICH = Machine(
    "rich",
    MemoryMap.sanitise(
        [
            (0x1000, 0x9F123, E820Type.RAM),
            (0xF0000, 1 << 20, E820Type.RESERVED),
            (1 << 20, 3 * GIB + 0x5000, E820Type.RAM),
            (3 * GIB + 0x5000, 3 * GIB + 0x9000, E820Type.NVS),
            (5 * GIB, 9 * GIB + 0x123, E820Type.RAM),
        ]
    ),
    reserved=((0x3000000, 0x3001000), (0x4000000, 0x5000123), (6 * GIB, 7 * GIB)),
    initrd=(0x6000000, 0x7000000),
    kernel=KernelImage(32 << 20, 40 << 20, 40 << 20, (40 << 20) + 0x8000),
    features=CpuFeatures(gbpages=True, nx=True),
    max_pfn_hint=(9 * GIB) >> 12,
)


def asked_of(machine: Machine) -> list[Machine]:
    """What is tried where nothing will do."""
    seen: list[Machine] = []
    small, tries = shrink(machine, lambda m: bool(seen.append(m)))
    assert tries == len(seen)
    assert attrs.evolve(small, provenance=machine.provenance) == machine
    return seen


def reductions(machine: Machine) -> list[Machine]:
    """What the words of `shrink` promise, without its help: an entry or a reservation less, two
    entries as one, nothing unusual, edges at the next page, large page or GiB.
    """
    raw = [(e.start, e.end, e.type) for e in machine.memory_map]
    maps = [raw[:n] + raw[n + 1 :] for n in range(len(raw))]
    for n, ((start, _, kind), (_, end, other)) in enumerate(pairwise(raw)):
        maps += [[*raw[:n], (start, end, one), *raw[n + 2 :]] for one in (kind, other)]
    for n, (start, end, kind) in enumerate(raw):
        maps.append([*raw[:n], (start, end, E820Type.RESERVED), *raw[n + 1 :]])
        maps.append([*raw[:n], (raw[n - 1][1] if n else 0, end, kind), *raw[n + 1 :]])
        for unit in (GIB, 2 << 20, 4096):
            up, down = -(-start // unit) * unit, end // unit * unit
            for edges in ((up, end), (start // unit * unit, end), (start, down),
                          (start, -(-end // unit) * unit)):  # fmt: skip
                maps.append([*raw[:n], (*edges, kind), *raw[n + 1 :]])
        for share in (2, 4, 16):
            part = (end - start) // share
            ends = [end - part // unit * unit for unit in (GIB, 4 << 20)]
            for stop in (start + part, start + -(-part // (2 << 20)) * (2 << 20), *ends):
                maps.append([*raw[:n], (start, stop, kind), *raw[n + 1 :]])
        maps.append([*raw[:n], (start, start + 4096, kind), *raw[n + 1 :]])
    found = []
    for entries in maps:
        with suppress(InputError):  # without RAM it is no machine
            found.append(attrs.evolve(machine, memory_map=MemoryMap.sanitise(entries)))
    taken = machine.reserved
    rests = [taken[:n] + taken[n + 1 :] for n in range(len(taken))]
    found += [attrs.evolve(machine, reserved=rest) for rest in rests]
    found += [
        attrs.evolve(machine, reserved=()),
        attrs.evolve(machine, initrd=None),
        attrs.evolve(machine, max_pfn_hint=None, max_low_pfn_hint=None),
        attrs.evolve(machine, kernel=DEFAULT_KERNEL),
        attrs.evolve(machine, features=CpuFeatures(nx=machine.mode.has_nx)),
        attrs.evolve(machine, features=attrs.evolve(machine.features, gbpages=False)),
        attrs.evolve(machine, features=attrs.evolve(machine.features, pse=True)),
        attrs.evolve(machine, features=attrs.evolve(machine.features, nx=machine.mode.has_nx)),
    ]
    return [
        one
        for one in found
        if measure(one) < measure(machine) and is_sound(one, 0) and list(one.memory_map.ram_pages())
    ]


def essence(machine: Machine) -> Machine:
    return attrs.evolve(machine, name="", provenance=Provenance(source=""))


@pytest.mark.parametrize(
    "machine",
    [
        RICH,
        attrs.evolve(RICH, initrd=None, reserved=()),
        attrs.evolve(RICH, features=CpuFeatures(pse=False)),
        attrs.evolve(
            RICH,
            memory_map=MemoryMap.sanitise(
                [(0, GIB, E820Type.RAM), (2 * GIB, 2 * GIB + (64 << 20) + 1, E820Type.RAM)]
            ),
        ),
    ],
)
def test_every_reduction_is_tried(machine: Machine) -> None:
    seen = {essence(m) for m in asked_of(machine)}
    expected = {essence(m) for m in reductions(machine)}
    assert len(expected) > 15
    assert expected <= seen
    for one in seen:
        assert measure(one) < measure(machine)
        assert is_sound(one, 0)


def test_reservations_shrink_and_never_grow() -> None:
    low, high = 0x4000000, 0x5000123
    one = attrs.evolve(RICH, reserved=((low, high),))
    taken = {span for m in asked_of(one) if m.memory_map == one.memory_map for span in m.reserved}
    assert all(low <= a < b <= high for a, b in taken)
    assert {(low, 0x5000000), (low, low + 0x1000)} <= taken
    assert {(low, low + (high - low) // share) for share in (2, 4, 16)} <= taken
    low += 0x123
    uneven = attrs.evolve(RICH, reserved=((low, high),))
    seen = {span for m in asked_of(uneven) if m.memory_map == one.memory_map for span in m.reserved}
    assert (0x4001000, high) in seen, "from below, too"
    little = attrs.evolve(RICH, reserved=((low, 0x4001000),))
    assert all(a < b for m in asked_of(little) for a, b in m.reserved)
    for m in asked_of(RICH):
        if len(m.reserved) == 3:
            assert len({*m.reserved} - {*RICH.reserved}) <= 1 or m.memory_map != RICH.memory_map
        elif m.memory_map == RICH.memory_map:
            assert {*m.reserved} < {*RICH.reserved}, "one shrinks, or some go"


def test_what_lies_above_slides_down_with_an_edge() -> None:
    """The whole gap or half of it, or a part of the entry; what lies higher keeps its size."""
    top = 6 * GIB + 0x1001
    spans = [(0, 1 << 26), (GIB, 2 * GIB), (4 * GIB, top)]
    machine = Machine(
        "gaps",
        MemoryMap.sanitise([(*span, E820Type.RAM) for span in spans]),
        reserved=((0x2000000, 0x2001000), (5 * GIB, 5 * GIB + 4096)),
    )
    seen = asked_of(machine)
    tops = {m.memory_map.ram().end for m in seen}
    assert {top - 2 * GIB, top - GIB} <= tops, "all of the gap, and half of it"
    shares = {(2 * GIB + 0x1001) // part // 4096 * 4096 for part in (2, 4)}
    assert {top - share for share in shares} <= tops
    top += 0x50000
    alone = attrs.evolve(machine, memory_map=MemoryMap.sanitise([(0, top, E820Type.RAM)]))
    tops = {m.memory_map.ram().end for m in asked_of(alone)}
    assert {top - top // part // 4096 * 4096 for part in (2, 4, 16)} <= tops
    top -= 0x50000
    slid = next(m for m in seen if m.memory_map.ram().end == top - 2 * GIB)
    assert [(e.start, e.end) for e in slid.memory_map][-1] == (GIB, top - 2 * GIB)
    assert slid.reserved == ((0x2000000, 0x2001000), (3 * GIB, 3 * GIB + 4096))


def test_an_entry_that_shrinks_by_whole_pages_lets_what_is_above_slide() -> None:
    start, end = 4 * GIB + 0x123, 6 * GIB
    spans = [(0, 1 << 26), (GIB, 2 * GIB + 0x1801), (start, end + 0x123)]
    machine = Machine("m", MemoryMap.sanitise([(*span, E820Type.RAM) for span in spans]))
    slid = {
        (m.memory_map.entries[1].end, m.memory_map.entries[2].start)
        for m in asked_of(machine)
        if len(m.memory_map) == 3 and m.memory_map.entries[2].start < start - 4096
    }
    for part in (2, 4):
        by = (GIB + 0x1801) // part // 4096 * 4096
        assert (2 * GIB + 0x1801 - by, start - by) in slid


def test_nothing_slides_that_the_kernel_stands_on() -> None:
    low, start, end = (8 << 20) + 4096, (12 << 20) + 12288, (64 << 20) + 20480
    spans = [(0, low, E820Type.RAM), (start, end, E820Type.RAM)]
    for m in asked_of(Machine("m", MemoryMap.sanitise(spans))):
        alike = [e.start for e in m.memory_map if e.end - e.start == end - start]
        assert alike in ([], [start])


def test_what_slides_by_whole_pages_lies_on_nothing() -> None:
    low, start, end = (1 << 26) + 1, 2 * GIB + 0x123, 4 * GIB + 0x1001
    uneven = [(0, low, E820Type.RAM), (start, end, E820Type.RAM)]
    machine = Machine("uneven", MemoryMap.sanitise(uneven))
    gap = start - low
    slid = {
        m.memory_map.entries[1].start
        for m in asked_of(machine)
        if len(m.memory_map) == 2 and m.memory_map.ram().total == machine.memory_map.ram().total
    }
    assert {start - by // 4096 * 4096 for by in (gap, gap // 2)} == slid


def test_half_of_many_entries_or_reservations_goes_at_once() -> None:
    pieces = [(n << 24, (n << 24) + (1 << 23), E820Type.RAM) for n in range(4, 11)]
    machine = Machine("many", MemoryMap.sanitise([(0, 1 << 26, E820Type.RAM), *pieces]))
    left = {len(m.memory_map) for m in asked_of(machine)}
    assert {len(machine.memory_map) - n for n in (4, 2, 1)} <= left
    taken = tuple((n << 20, (n << 20) + 4096) for n in range(40, 48))
    full = attrs.evolve(machine, reserved=taken)
    assert {8 - n for n in (8, 4, 2, 1)} <= {len(m.reserved) for m in asked_of(full)}


QUESTIONS = [
    lambda m: len(m.memory_map) >= 3,
    lambda m: m.memory_map.ram().end > 3 * GIB,
    lambda m: m.memory_map.ram_pages().total % (64 << 20) == 12288,
    lambda m: len(m.reserved) >= 2 and m.kernel.start > 1 << 24,
    lambda m: m.initrd is not None and not m.features.pse,
    lambda m: sum(m.kernel.span) % 3 == 0,
]
THREE_PAGES_OVER = Machine("over", MemoryMap.sanitise(
    [(0, (192 << 20) + 12288, E820Type.RAM), (GIB, GIB + (64 << 20), E820Type.RAM)],
))  # fmt: skip


@pytest.mark.parametrize("question", QUESTIONS)
def test_what_is_left_cannot_be_reduced_by_one_step(question) -> None:
    """It meets the condition, and no single documented reduction of it does."""
    starts = [changed(Seeded(f"{n}"), bundled(name)) for n in range(12)
              for name in ("lenovo-x230-8g", "pae-4g", "qemu-512m")]  # fmt: skip
    starts.append(attrs.evolve(RICH, features=CpuFeatures(pse=False)))
    starts.append(THREE_PAGES_OVER)
    some = [machine for machine in starts if question(machine)][:3]
    assert some
    for machine in some:
        small, tries = shrink(machine, question)
        assert question(small)
        assert 0 < tries < 4000
        assert measure(small) <= measure(machine)
        assert small.provenance.source == "found by a hunt"
        assert not [one for one in reductions(small) if question(one)]


def test_several_are_looked_at_at_a_time() -> None:
    """As many as are asked for, and no more than are left; the first that will do is taken."""
    sizes: list[int] = []

    def none(candidates: Sequence[Machine]) -> int | None:
        sizes.append(len(candidates))
        return None

    _, tries = shrink_by(RICH, none, 5, max_tries=13)
    assert (sizes, tries) == ([5, 5, 3], 13)
    plain = attrs.evolve(RICH, provenance=Provenance(source="found by a hunt"))
    taken: list[Machine] = []

    def second(candidates: Sequence[Machine]) -> int | None:
        if taken:
            return None
        taken.append(candidates[1])
        return 1

    small, _ = shrink_by(plain, second, 4)
    assert small == taken[0]


def test_a_machine_that_cannot_be_run_does_not_count() -> None:
    def refuses(machine: Machine) -> bool:
        if machine.reserved:
            raise InputError("no")
        return True

    small, _ = shrink(RICH, refuses)
    assert small.reserved == ()
