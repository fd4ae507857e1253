"""The smallest machine on which something still holds.

`shrink` walks down: of the simpler machines next to the present one it takes the first on which the
question is still answered with yes, until there is none. Simpler means, in this order: fewer
entries in the map, fewer other peculiarities (reservations, initrd, unusual features, a kernel
somewhere else), rounder addresses, less memory. The measure falls with every step, so it ends.

It is delta debugging on the machine itself. A shrinker of random choices (hypothesis has one) knows
nothing of machines that were read from a log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from math import inf, log2
from time import monotonic

import attrs

from paravirt_mm.errors import InputError
from paravirt_mm.hunt.edits import is_sound
from paravirt_mm.machine.e820 import E820Entry, E820Type, MemoryMap
from paravirt_mm.machine.model import DEFAULT_KERNEL, CpuFeatures, Machine, Provenance, Span
from paravirt_mm.machine.paging import GIB, MIB, PAGE_SIZE
from paravirt_mm.machine.ranges import RangeSet, align_down, align_up

MAX_TRIES = 4000
"""Machines that are tried at the most; what is left then is small, if not smallest."""

_UNITS = (GIB, 2 * MIB, PAGE_SIZE)
_PLAIN = Provenance(source="found by a hunt")

Measure = tuple[int, int, int, int]


def measure(machine: Machine) -> Measure:
    """Return how far from simple a machine is; lower is simpler."""
    entries = machine.memory_map.entries
    peculiar = (
        len(machine.reserved)
        + (machine.initrd is not None)
        + (machine.kernel != DEFAULT_KERNEL)
        + len(_unusual_features(machine))
        + (machine.max_pfn_hint is not None)
        + (machine.max_low_pfn_hint is not None)
        + sum(entry.type is not E820Type.RAM for entry in entries)
    )
    edges = [edge for entry in entries for edge in (entry.start, entry.end)]
    taken = [edge for span in machine.reserved for edge in span]
    uneven = sum(sum(edge % unit != 0 for unit in _UNITS) for edge in (*edges, *taken))
    # By a share of what it is, so that page after page is not a way down.
    size = int(32 * log2(1 + sum(edges))) + int(
        log2(1 + sum(high - low for low, high in machine.reserved))
    )
    return len(entries), peculiar, uneven, size


def _unusual_features(machine: Machine) -> dict[str, bool]:
    """Return what would be usual of each feature that is not."""
    plain = attrs.asdict(CpuFeatures(nx=machine.mode.has_nx))
    return {
        name: plain[name]
        for name, is_there in attrs.asdict(machine.features).items()
        if is_there != plain[name]
    }


def shrink(
    machine: Machine,
    holds: Callable[[Machine], bool],
    max_tries: int = MAX_TRIES,
    until: float = inf,
) -> tuple[Machine, int]:
    """Return the smallest machine found on which ``holds`` is true, and how many were tried; the
    last is tried before ``until`` (of `time.monotonic`).

    ``holds`` must be true of ``machine`` itself. A machine on which it raises `InputError` does not
    count.
    """

    def first(candidates: Sequence[Machine]) -> int | None:
        for number, candidate in enumerate(candidates):
            with suppress(InputError):
                if holds(candidate):
                    return number
        return None

    return shrink_by(machine, first, 1, max_tries, until)


def shrink_by(
    machine: Machine,
    first: Callable[[Sequence[Machine]], int | None],
    width: int,
    max_tries: int = MAX_TRIES,
    until: float = inf,
) -> tuple[Machine, int]:
    """As `shrink`, where ``first`` looks at up to ``width`` machines at a time and gives the number
    of the first that will do.
    """
    tries = 0
    machine = attrs.evolve(machine, provenance=_PLAIN)
    found: int | None = 0
    while found is not None:
        found, size = None, measure(machine)
        candidates = (
            candidate
            for candidate in _simpler(machine)
            if measure(candidate) < size and is_sound(candidate, 0)
        )
        while found is None and monotonic() < until:
            few = list(islice(candidates, min(width, max_tries - tries)))
            if not few:
                break
            tries += len(few)
            found = first(few)
        if found is not None:
            machine = few[found]
    return machine, tries


def _simpler(machine: Machine) -> Iterator[Machine]:
    for make in (_entries, _peculiarities, _edges):
        for candidate in make(machine):
            try:
                yield candidate()
            except InputError:  # without RAM it is no machine
                continue


Candidate = Callable[[], Machine]


def _mapped(machine: Machine, entries: list[tuple[int, int, E820Type]]) -> Candidate:
    def make() -> Machine:
        return attrs.evolve(machine, memory_map=MemoryMap.sanitise(entries))

    return make


def _with(machine: Machine, **fields: object) -> Candidate:
    return lambda: attrs.evolve(machine, **fields)  # type: ignore[arg-type]


def _entries(machine: Machine) -> Iterator[Candidate]:
    """Fewer entries: half of them, one of them, two that become one."""
    raw = [(entry.start, entry.end, entry.type) for entry in machine.memory_map]
    size = len(raw) // 2
    while size:
        for first in range(0, len(raw), size):
            yield _mapped(machine, raw[:first] + raw[first + size :])
        size //= 2
    for number in range(len(raw) - 1):
        (start, _, kind), (_, end, other) = raw[number], raw[number + 1]
        for joined in {kind, other}:
            yield _mapped(machine, [*raw[:number], (start, end, joined), *raw[number + 2 :]])


def _peculiarities(machine: Machine) -> Iterator[Candidate]:
    """What the machine has besides its map goes, one after the other."""
    size = len(machine.reserved)
    while size:
        for first in range(0, len(machine.reserved), size):
            kept = machine.reserved[:first] + machine.reserved[first + size :]
            yield _with(machine, reserved=kept)
        size //= 2
    yield _with(machine, initrd=None)
    yield _with(machine, max_pfn_hint=None, max_low_pfn_hint=None)
    yield _with(machine, kernel=DEFAULT_KERNEL)
    unusual = _unusual_features(machine)
    if len(unusual) > 1:
        yield _with(machine, features=attrs.evolve(machine.features, **unusual))
    for name, usual in unusual.items():
        yield _with(machine, features=attrs.evolve(machine.features, **{name: usual}))


def _edges(machine: Machine) -> Iterator[Candidate]:
    """Rounder and lower edges, of entries and of reservations; all of what lies above moves too."""
    entries = machine.memory_map.entries
    for number, entry in enumerate(entries):
        floor = entries[number - 1].end if number else 0
        for start, end in _rounder(entry, floor):
            changed = [
                (start, end, e.type) if e is entry else (e.start, e.end, e.type) for e in entries
            ]
            yield _mapped(machine, changed)
        # Close (or halve) the gap below, so that everything above slides down.
        for by in {entry.start - floor, (entry.start - floor) // 2}:
            shift = align_down(by, PAGE_SIZE)
            if entry.start > machine.kernel.span[1]:
                yield _slid(machine, entry.start, shift)
        for part in (2, 4, 16):
            shift = align_down((entry.end - entry.start) // part, PAGE_SIZE)
            if entry.end > machine.kernel.span[1]:
                yield _slid(machine, entry.end, shift)
    for number, span in enumerate(machine.reserved):
        for start, end in _rounder(E820Entry(*span, E820Type.RAM), 0):
            # Never more taken: memory of which all is taken would break anything.
            if not span[0] <= start < end <= span[1]:
                continue
            spans = [*machine.reserved[:number], (start, end), *machine.reserved[number + 1 :]]
            yield _with(machine, reserved=tuple(spans))


def _rounder(entry: E820Entry, floor: int) -> Iterator[tuple[int, int]]:
    start, end = entry.start, entry.end
    yield floor, end
    for unit in _UNITS:
        yield align_up(start, unit), end
        yield align_down(start, unit), end
        yield start, align_down(end, unit)
        yield start, align_up(end, unit)
    for share in (2, 4, 16):
        yield start, start + (end - start) // share
        yield start, start + align_up((end - start) // share, 2 * MIB)
        # What lies beyond a large page, or a GiB, may be what matters: keep it as it is.
        for unit in (GIB, 4 * MIB):
            yield start, end - align_down((end - start) // share, unit)
    yield start, start + PAGE_SIZE


def _slid(machine: Machine, edge: int, by: int) -> Candidate:
    """Everything from ``edge`` (bytes) upward comes down by ``by`` bytes, on what was taken there:
    of that nothing may be left.
    """

    def down(address: int) -> int:
        return address - by if address >= edge else address

    def moved(spans: Iterable[Span]) -> tuple[Span, ...]:
        return tuple(RangeSet((down(low), down(high)) for low, high in spans))

    def make() -> Machine:
        return attrs.evolve(
            machine,
            memory_map=MemoryMap.sanitise(
                (down(e.start), down(e.end), e.type) for e in machine.memory_map
            ),
            reserved=moved(machine.reserved),
            initrd=next(iter(moved([machine.initrd] if machine.initrd else [])), None),
        )

    return make
