"""Small changes of a machine: what another firmware, another setup option or more memory would do.

Every change returns a machine that could exist: the kernel still lies in RAM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs

from paravirt_mm.errors import InputError
from paravirt_mm.machine.e820 import E820Entry, E820Type, MemoryMap
from paravirt_mm.machine.model import Machine, Span
from paravirt_mm.machine.paging import GIB, ISA_END, KIB, MIB, MODES, PAGE_SIZE, TIB, PagingMode
from paravirt_mm.machine.ranges import RangeSet, align_down, align_up
from paravirt_mm.sources.generated import ROOM_AFTER_KERNEL, Choices

_ONE_IN_TWO = (True, False)
_ONE_IN_THREE = (True, False, False)
_TWO_IN_THREE = (True, True, False)
_UP_OR_DOWN = (1, -1)
_NUDGES = (1, 512, PAGE_SIZE, 64 * KIB, 2 * MIB, 4 * MIB, 64 * MIB, GIB)
_SIZES = (PAGE_SIZE, 64 * KIB, 2 * MIB, 64 * MIB, GIB, 64 * GIB, TIB)
_FILLINGS = (None, E820Type.RESERVED, E820Type.ACPI, E820Type.NVS, E820Type.UNUSABLE)
MAX_ADDRESS = 64 * TIB
ROOM_FOR_BRK = MIB
"""Behind a kernel, free: allocators link it with more brk than it has on a machine."""
MAX_CROWD = 64
"""Pages that a crowded piece of memory has taken from it."""


def is_sound(machine: Machine, room: int = ROOM_AFTER_KERNEL) -> bool:
    """Tell whether a loader would start the kernel: it lies in RAM, with ``room`` bytes behind it
    that are RAM and not taken.
    """
    start, end = machine.kernel.span
    behind = align_up(end, PAGE_SIZE)
    taken = RangeSet(machine.reserved)
    if machine.initrd is not None:
        taken.add(*machine.initrd)
    return (
        machine.memory_map.ram().covers(start, behind + room)
        and not taken.overlaps(behind, behind + room)
        and machine.map_limit >= behind + room
    )


Change = Callable[[Choices, Machine], Machine]
"""What makes another machine of one. Raises `InputError` where it would have no RAM."""


def changed(
    choose: Choices, machine: Machine, marks: Sequence[int] = (), leads: Sequence[Change] = ()
) -> Machine:
    """Return the machine with one to three changes; itself where none of them made sense.

    ``marks`` are addresses at which something began or ended when an allocator ran on it: a third
    of the changes put something there. As many are of ``leads``, which lead to what is looked for.
    """
    for _ in range(choose.one_of((1, 1, 2, 3))):
        try:
            if bool(leads) and choose.one_of(_ONE_IN_THREE):
                after = choose.one_of(leads)(choose, machine)
            elif bool(marks) and choose.one_of(_ONE_IN_THREE):
                after = _at_mark(choose, machine, marks)
            else:
                after = choose.one_of(_CHANGES)(choose, machine)
        except InputError:  # no RAM would be left
            continue
        if is_sound(after, ROOM_FOR_BRK):
            machine = after
    return machine


def with_map(machine: Machine, entries: Sequence[tuple[int, int, E820Type]]) -> Machine:
    """Return the machine with a map of these entries."""
    cut = ((low, min(high, MAX_ADDRESS), kind) for low, high, kind in entries)
    return _with_new_map(machine, MemoryMap.sanitise(cut))


def _with_new_map(machine: Machine, memory: MemoryMap) -> Machine:
    """Return the machine with another map; what a log said of the old one's end is void."""
    return attrs.evolve(machine, memory_map=memory, max_pfn_hint=None, max_low_pfn_hint=None)


def with_hole(choose: Choices, machine: Machine, start: int, end: int) -> Machine:
    """Return the machine with no RAM in ``[start, end)``: nothing, or something else."""
    filling = choose.one_of(_FILLINGS)
    return _with_new_map(machine, machine.memory_map.with_range(start, end, E820Type.RAM, filling))


def entries_of(machine: Machine) -> list[tuple[int, int, E820Type]]:
    """Return the entries of the map as they are given to `with_map`."""
    return [(entry.start, entry.end, entry.type) for entry in machine.memory_map]


def _any_entry(choose: Choices, machine: Machine) -> E820Entry:
    return choose.one_of(machine.memory_map.entries)


def _size(choose: Choices) -> int:
    """Return a size near a usual one, or some large pages; by times not a multiple of anything."""
    size = choose.one_of((*_SIZES, 2 * MIB * choose.integer(1, 512)))
    return max(1, size + choose.one_of((0, 0, 0, PAGE_SIZE, -PAGE_SIZE, 1, -1)))


def _move_edge(choose: Choices, machine: Machine) -> Machine:
    raw = entries_of(machine)
    number = choose.integer(0, len(raw) - 1)
    start, end, kind = raw[number]
    by = choose.one_of(_NUDGES) * choose.one_of(_UP_OR_DOWN) * choose.integer(1, 8)
    if choose.one_of(_ONE_IN_TWO):
        end += by
    else:
        start = max(0, start + by)
    raw[number] = start, end, kind
    return with_map(machine, raw)


def _align_edge(choose: Choices, machine: Machine) -> Machine:
    raw = entries_of(machine)
    number = choose.integer(0, len(raw) - 1)
    start, end, kind = raw[number]
    unit = choose.one_of((PAGE_SIZE, 2 * MIB, GIB))
    raw[number] = align_down(start, unit), align_up(end, unit), kind
    return with_map(machine, raw)


def _punch(choose: Choices, machine: Machine) -> Machine:
    ram = [entry for entry in machine.memory_map if entry.type is E820Type.RAM]
    entry = choose.one_of(ram)
    span = entry.end - entry.start
    size = min(_size(choose), span)
    start = choose.one_of(
        (entry.end - size, entry.start, entry.start + choose.integer(0, span - size))
    )
    return with_hole(choose, machine, start, start + size)


def _drop(choose: Choices, machine: Machine) -> Machine:
    gone = _any_entry(choose, machine)
    return with_map(
        machine, [(e.start, e.end, e.type) for e in machine.memory_map if e is not gone]
    )


def _plain(choose: Choices, machine: Machine) -> Machine:
    """One piece of RAM around the kernel, and nothing else in the map."""
    kernel = machine.kernel.start
    low, high = next(
        (span for span in machine.memory_map.ram() if span[0] <= kernel < span[1]),
        machine.kernel.span,
    )
    return with_map(machine, [(choose.one_of((0, min(ISA_END, low), low)), high, E820Type.RAM)])


def _riddle(choose: Choices, machine: Machine) -> Machine:
    """Punch many small holes, evenly apart, into a piece of RAM that is not the kernel's."""
    low, high = choose.one_of(list(machine.memory_map.ram_pages()))
    unit = choose.one_of((16 * PAGE_SIZE, MIB, 2 * MIB, 64 * MIB, GIB))
    low = align_up(max(low, machine.kernel.span[1] + ROOM_AFTER_KERNEL), unit)
    holes = [
        (start, start + choose.one_of((PAGE_SIZE, 2 * PAGE_SIZE, 64 * KIB)), E820Type.RESERVED)
        for start in range(low, high, unit)[: choose.one_of((3, 9, 25, 60))]
    ]
    return with_map(machine, [*entries_of(machine), *holes])


def _overlap(choose: Choices, machine: Machine) -> Machine:
    """Lay an entry across an edge, as firmware does that lists a device twice."""
    entry = _any_entry(choose, machine)
    edge = choose.one_of((entry.start, entry.end))
    start = max(0, edge - _size(choose))
    kind = choose.one_of((*_FILLINGS[1:], E820Type.RAM))
    return with_map(machine, [*entries_of(machine), (start, edge + _size(choose), kind)])


def _more_memory(choose: Choices, machine: Machine) -> Machine:
    top = max(machine.memory_map.entries[-1].end, 4 * GIB)
    start = top + choose.one_of((0, 0, PAGE_SIZE, 2 * MIB, GIB, 256 * GIB))
    end = min(start + _size(choose), 1 << machine.mode.physical_bits)
    return with_map(machine, [*entries_of(machine), (start, end, E820Type.RAM)])


def _less_memory(choose: Choices, machine: Machine) -> Machine:
    """End RAM earlier, as ``mem=`` does."""
    low = align_up(machine.kernel.span[1], PAGE_SIZE)
    return _until(machine, low + choose.integer(0, max(0, machine.memory_map.ram().end - low)))


def small(choose: Choices, machine: Machine) -> Machine:
    """Return the machine with little more RAM than its kernel needs, so that a try is cheap and
    borders are near each other.
    """
    room = choose.one_of((0, 2, 14, 62, 126, 254)) * MIB + choose.one_of((0, 0, 1, -1)) * PAGE_SIZE
    return _until(machine, align_up(machine.kernel.span[1], PAGE_SIZE) + ROOM_AFTER_KERNEL + room)


def _until(machine: Machine, end: int) -> Machine:
    """Return the machine with all of its RAM below ``end``, and what was in the rest of it."""
    shorter = with_map(
        machine,
        [
            (e.start, min(e.end, end) if e.type is E820Type.RAM else e.end, e.type)
            for e in machine.memory_map
        ],
    )
    taken = tuple(RangeSet(machine.reserved).below(end))
    gone = machine.initrd is not None and machine.initrd[1] > end
    return attrs.evolve(shorter, reserved=taken, initrd=None if gone else machine.initrd)


def _reserve(choose: Choices, machine: Machine) -> Machine:
    low, high = choose.one_of(list(machine.memory_map.ram_pages()))
    size = min(_size(choose), high - low)
    start = choose.one_of((high - size, low, low + choose.integer(0, high - low - size)))
    kernel = RangeSet([machine.kernel.span])
    if any(kernel.within(start, start + size)):
        return machine
    taken = RangeSet(machine.reserved)
    taken.add(start, start + size)
    return attrs.evolve(machine, reserved=tuple(taken))


def _crowd(choose: Choices, machine: Machine) -> Machine:
    """Take a page of every large page of one piece of RAM for a while, or of each: no large page is
    free there any more.
    """
    large = machine.mode.entry_span(2)
    pieces = list(machine.memory_map.ram_pages())
    taken = RangeSet(machine.reserved)
    for low, high in choose.one_of((pieces, [choose.one_of(pieces)])):
        first = align_up(low, large)
        for number in range(min(MAX_CROWD, (high - first) // large)):
            start = first + number * large + choose.one_of((0, PAGE_SIZE, large - PAGE_SIZE))
            taken.add(start, start + PAGE_SIZE)
    taken.discard(*machine.kernel.span)
    return attrs.evolve(machine, reserved=tuple(taken))


def _release(choose: Choices, machine: Machine) -> Machine:
    if not machine.reserved:
        return machine
    gone = choose.one_of(machine.reserved)
    return attrs.evolve(machine, reserved=tuple(s for s in machine.reserved if s != gone))


def _initrd(choose: Choices, machine: Machine) -> Machine:
    """Put the initrd, or another one, where a loader could: below some limit as high as it fits, or
    a few pages off something else.
    """
    size = choose.one_of((0, 5 * MIB + 123, 40 * MIB, 200 * MIB, PAGE_SIZE, 3 * PAGE_SIZE - 1))
    without = attrs.evolve(machine, initrd=None)
    if not size:
        return without
    limit = machine.mode.lowmem_limit or 4 * GIB
    if choose.one_of(_ONE_IN_TWO):
        limit = align_down(choose.one_of(_edges(without)), PAGE_SIZE) - _few(choose)
    behind = align_up(machine.kernel.span[1], PAGE_SIZE)
    for low, high in machine.memory_map.ram().descending(behind, limit):
        if high - size >= low:
            start = align_down(high - size, PAGE_SIZE)
            return attrs.evolve(machine, initrd=(start, start + size))
    return without


def _edges(machine: Machine) -> list[int]:
    """Return where something begins or ends: RAM, what is taken, the kernel, the initrd."""
    spans = [*machine.memory_map.ram(), *machine.reserved, machine.kernel.loaded]
    if machine.initrd is not None:
        spans.append(machine.initrd)
    return sorted({edge for span in spans for edge in span})


def _few(choose: Choices) -> int:
    """Return a few pages, in bytes; often none or one."""
    return PAGE_SIZE * choose.one_of((0, 0, 1, 1, 2, 3, 5, 6, 12, 16, 63, 64, 65, 511, 512))


def _take_beside(choose: Choices, machine: Machine) -> Machine:
    """Take a page or so at an edge of something, or a few pages off: what is free between them is
    small, and may end amid a page.
    """
    edge = choose.one_of(_edges(machine)) + _few(choose) * choose.one_of(_UP_OR_DOWN)
    size = choose.one_of((PAGE_SIZE, PAGE_SIZE, 1, PAGE_SIZE + 1, 64 * KIB, 2 * MIB))
    start = edge - choose.one_of((0, size))
    return taking(machine, [(start, start + size)])


def _leave_few(choose: Choices, machine: Machine) -> Machine:
    """Take all of a piece of RAM but for a few pages at an end, or amid it: each of them may be
    needed.
    """
    low, high = choose.one_of(list(machine.memory_map.ram_pages()))
    left = PAGE_SIZE + _few(choose)
    start = choose.one_of((low, high - left, align_down((low + high) // 2, PAGE_SIZE)))
    end = machine.kernel.span[1] + choose.one_of((0, ROOM_AFTER_KERNEL))
    return taking(machine, [(low, start), (start + left, high)], end)


def taking(machine: Machine, spans: Sequence[Span], kernel_end: int = 0) -> Machine:
    """Return the machine with more of its RAM taken, but nothing of its kernel up to there."""
    taken, ram = RangeSet(machine.reserved), machine.memory_map.ram()
    for span in spans:
        taken.update(ram.within(*span))
    start, end = machine.kernel.span
    taken.discard(start, max(end, kernel_end))
    return attrs.evolve(machine, reserved=tuple(taken))


def _features(choose: Choices, machine: Machine) -> Machine:
    pse = choose.one_of(_ONE_IN_TWO)
    huge = pse and 3 in machine.mode.large_levels and choose.one_of(_ONE_IN_TWO)
    return attrs.evolve(machine, features=attrs.evolve(machine.features, pse=pse, gbpages=huge))


def in_mode(machine: Machine, mode: PagingMode) -> Machine:
    """Return the machine with a kernel of another mode."""
    features = attrs.evolve(
        machine.features,
        gbpages=machine.features.gbpages and 3 in mode.large_levels,
        nx=machine.features.nx and mode.has_nx,
    )
    return attrs.evolve(
        machine, mode=mode, features=features, max_pfn_hint=None, max_low_pfn_hint=None
    )


def _mode(choose: Choices, machine: Machine) -> Machine:
    return in_mode(machine, MODES[choose.one_of(tuple(MODES))])


def _move_kernel(choose: Choices, machine: Machine) -> Machine:
    kernel = machine.kernel
    low, high = choose.one_of(list(machine.memory_map.ram_pages()))
    unit = choose.one_of((2 * MIB, 16 * MIB))
    room = high - align_up(low, unit) - (kernel.span[1] - kernel.start) - ROOM_AFTER_KERNEL
    if room < 0 or low >= 4 * GIB:
        return machine
    start = align_up(low, unit) + unit * choose.integer(0, room // unit)
    return attrs.evolve(machine, kernel=kernel.at(start))


def _at_mark(choose: Choices, machine: Machine, marks: Sequence[int]) -> Machine:
    """Let RAM, a hole, a reservation, the initrd or the kernel's brk begin or end at a mark, or
    near it.
    """
    mark = choose.one_of(marks)
    large = machine.mode.entry_span(2)
    off = choose.one_of((0, 0, 0, PAGE_SIZE, _few(choose), large, large + _few(choose)))
    place = max(PAGE_SIZE, mark + off * choose.one_of((1, 1, -1)))
    action = choose.one_of((end_at, _hole_at, _take_at, _initrd_at, None))
    if action is not None:
        return action(choose, machine, place)
    brk = machine.kernel.brk_start
    moved = choose.one_of([brk, *(mark for mark in marks if brk < mark <= brk + ROOM_FOR_BRK)])
    return _grown(machine, (place - moved) % large)


def end_at(_: Choices, machine: Machine, place: int) -> Machine:
    """Return the machine with all of its RAM below a place, but for its kernel."""
    return _until(machine, max(place, machine.kernel.span[1]))


def ending_at(choose: Choices, machine: Machine, end: int) -> Machine:
    """Return the machine with RAM that ends there, also where there was none."""
    machine = end_at(choose, machine, end)
    last = machine.memory_map.ram_pages().end
    end = min(end, 1 << machine.mode.physical_bits)
    more = [(last, end, E820Type.RAM)] if last < end else []
    return with_map(machine, [*entries_of(machine), *more])


def _hole_at(choose: Choices, machine: Machine, place: int) -> Machine:
    size = choose.one_of((PAGE_SIZE, 2 * PAGE_SIZE, 64 * KIB, 2 * MIB, GIB))
    start = max(0, place - choose.one_of((0, size)))
    return with_hole(choose, machine, start, start + size)


def _take_at(choose: Choices, machine: Machine, place: int) -> Machine:
    size = choose.one_of((PAGE_SIZE, PAGE_SIZE, PAGE_SIZE + _few(choose), 2 * MIB, 64 * MIB))
    start = place - choose.one_of((0, size))
    return taking(machine, [(start, start + size)])


def _initrd_at(choose: Choices, machine: Machine, place: int) -> Machine:
    size = choose.one_of((PAGE_SIZE, 3 * PAGE_SIZE - 1, 5 * MIB + 123))
    start = align_down(place - choose.one_of((0, size)), PAGE_SIZE)
    ram = machine.memory_map.ram()
    if not ram.covers(start, start + size) or start < machine.kernel.span[1]:
        return machine
    return attrs.evolve(machine, initrd=(start, start + size))


def _border(choose: Choices, machine: Machine) -> int:
    """Return a place where a table, or a step of an allocator, may begin or end: a multiple of what
    one maps, or so far behind an edge of something; often a few pages off it.
    """
    low, high = choose.one_of(list(machine.memory_map.ram_pages()))
    units = [machine.mode.entry_span(level) for level in range(2, machine.mode.root_level + 1)]
    unit = choose.one_of((*units, 64 * MIB, 512 * MIB, GIB))
    first, last = align_up(low, unit) // unit, high // unit
    if first <= last and choose.one_of(_TWO_IN_THREE):
        border = unit * choose.one_of((first, last, choose.integer(first, last)))
    else:
        edges = (*_edges(machine), machine.kernel.brk_start, machine.kernel.brk_start)
        border = choose.one_of(edges) + unit * choose.one_of((1, 1, 2))
    return max(0, border + _few(choose) * choose.one_of(_UP_OR_DOWN))


def _hole_at_border(choose: Choices, machine: Machine) -> Machine:
    """End or begin RAM at a border, with a hole of a few pages or more on the other side."""
    return _hole_at(choose, machine, _border(choose, machine))


def _end_at_border(choose: Choices, machine: Machine) -> Machine:
    """End all RAM there."""
    return end_at(choose, machine, _border(choose, machine))


def _end_at_power(choose: Choices, machine: Machine) -> Machine:
    """End RAM at a power of two, where limits are, or a page off it."""
    lowest = machine.kernel.span[1].bit_length()
    highest = min(machine.mode.physical_bits, MAX_ADDRESS.bit_length() - 1)
    off = choose.one_of((0, 0, 0, PAGE_SIZE, -PAGE_SIZE))
    return ending_at(choose, machine, (1 << choose.one_of(range(lowest, highest + 1))) + off)


def _take_the_top(choose: Choices, machine: Machine) -> Machine:
    """Take as much of the highest RAM as so many tables map, a few pages more or less: what is
    mapped first is no memory for more tables.
    """
    if choose.one_of(_ONE_IN_TWO):
        machine = attrs.evolve(
            machine, features=attrs.evolve(machine.features, pse=False, gbpages=False)
        )
    tables = 1 + choose.one_of((7, 15, 31, 63, 127)) - choose.integer(0, 7)
    span = machine.mode.table_span(machine.features.largest_level(machine.mode))
    low, high = next(machine.memory_map.ram_pages().descending(0, machine.map_limit))
    start = high - tables * span + _few(choose) * choose.one_of(_UP_OR_DOWN)
    start = max(align_down(start, choose.one_of((PAGE_SIZE, span))), low)
    return taking(machine, [(start, high)], machine.kernel.span[1] + ROOM_AFTER_KERNEL)


def _take_nearly_all(choose: Choices, machine: Machine) -> Machine:
    """Take all RAM below the kernel, above it, or anywhere, but for a few pages of some pieces."""
    start, end = machine.kernel.span
    behind = end + ROOM_FOR_BRK
    low, high = choose.one_of(
        ((0, start), (behind, MAX_ADDRESS), (0, MAX_ADDRESS), (0, MAX_ADDRESS))
    )
    spans = []
    for first, last in machine.memory_map.ram_pages().within(low, high):
        left = choose.one_of((0, 0, 1)) * (PAGE_SIZE + _few(choose))
        spans.append(choose.one_of(((first + left, last), (first, last - left))))
    return taking(machine, spans, behind)


def _grow_kernel(choose: Choices, machine: Machine) -> Machine:
    """Let brk begin, or end, at the border of a large page or a few pages off it."""
    kernel = machine.kernel
    edge = choose.one_of((kernel.brk_start, kernel.brk_end))
    by = (
        align_up(edge, machine.mode.entry_span(2))
        + _few(choose) * choose.one_of(_UP_OR_DOWN)
        - edge
    )
    return machine if by < 0 else _grown(machine, by)


def _grown(machine: Machine, by: int) -> Machine:
    """Return the machine with a kernel that is so many bytes larger."""
    kernel = machine.kernel
    grown = attrs.evolve(kernel.at(kernel.start + by), start=kernel.start)
    return attrs.evolve(machine, kernel=grown)


_CHANGES: tuple[Change, ...] = (
    _move_edge,
    _move_edge,
    _align_edge,
    _punch,
    _punch,
    _drop,
    _plain,
    _riddle,
    _overlap,
    _more_memory,
    _less_memory,
    _reserve,
    _reserve,
    _take_beside,
    _take_beside,
    _leave_few,
    _hole_at_border,
    _hole_at_border,
    _end_at_border,
    _end_at_power,
    _take_the_top,
    _take_the_top,
    _take_nearly_all,
    _crowd,
    _release,
    _initrd,
    _initrd,
    _features,
    _mode,
    _move_kernel,
    _grow_kernel,
)
