"""What can be asked of a machine itself, and how a machine comes to have as much of it as is
wanted.

What is wanted is come to at once where it can be, and in a few changes otherwise: a piece of memory
may have no room for as many holes, and pages may lie where others have been taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import attrs

from paravirt_mm.hunt.edits import (
    MAX_ADDRESS,
    end_at,
    ending_at,
    entries_of,
    taking,
    with_hole,
    with_map,
)
from paravirt_mm.machine.e820 import E820Type
from paravirt_mm.machine.model import Machine, Span
from paravirt_mm.machine.paging import MIB, PAGE_SHIFT, PAGE_SIZE
from paravirt_mm.machine.ranges import align_down, align_up
from paravirt_mm.sources.generated import ROOM_AFTER_KERNEL, Choices

MAX_MORE = 4096
"""So many more pieces of RAM, entries or reservations at the most, of one change."""

_RAM, _RESERVED = E820Type.RAM, E820Type.RESERVED
_APART = 2 * PAGE_SIZE


@attrs.frozen
class Fact:
    """``of`` says how much of something a machine has, ``given`` returns one that has so much, or
    nearly.
    """

    of: Callable[[Machine], int]
    given: Callable[[Choices, Machine, int], Machine]


def scaled(ratio: Fraction, choose: Choices, machine: Machine) -> Machine:
    """Return the machine with so many times as much of one of the `FACTS`. Many a figure is nearly
    in proportion to one of them, so that a few of these changes come to a number that it should
    have.
    """
    fact = choose.one_of(tuple(FACTS.values()))
    return fact.given(choose, machine, round(max(1, fact.of(machine)) * ratio))


def _of_ram(machine: Machine) -> int:
    return machine.memory_map.ram_pages().total


def _with_ram(choose: Choices, machine: Machine, wanted: int) -> Machine:
    """Return the machine with so many bytes of RAM: what is missing follows on the last piece, what
    is too much goes from the end of the last ones or of the largest.
    """
    ram = machine.memory_map.ram_pages()
    more = wanted - ram.total
    if more > 0:
        return ending_at(choose, machine, ram.end + align_up(more, PAGE_SIZE))
    if choose.one_of((True, False)):
        low, high = max(ram, key=lambda span: span[1] - span[0])
        left = max(high - low - align_up(-more, PAGE_SIZE), 0)
        return with_hole(choose, machine, low + left, high)
    end = ram.end
    for low, high in ram:
        if wanted <= high - low:
            end = low + wanted
            break
        wanted -= high - low
    return end_at(choose, machine, align_down(end, PAGE_SIZE))


def _with_end(choose: Choices, machine: Machine, pfn: int) -> Machine:
    """Return the machine with RAM that ends at a page."""
    return ending_at(choose, machine, pfn << PAGE_SHIFT)


def _of_pieces(machine: Machine) -> int:
    return len(machine.memory_map.ram_pages())


def _with_pieces(choose: Choices, machine: Machine, wanted: int) -> Machine:
    """Return the machine with its RAM in so many pieces: with pages that are missing, or more of
    them above the rest; without the last pieces, or with as many made one.
    """
    pieces = list(machine.memory_map.ram_pages())
    more = wanted - len(pieces)
    if more > 0:
        return choose.one_of((_without, _scattered))(choose, machine, more)
    if more == 0 or wanted < 1:
        return machine
    if choose.one_of((True, False)):
        return end_at(choose, machine, pieces[wanted - 1][1])
    first = choose.integer(0, wanted - 1)
    low, high = pieces[first][0], pieces[first - more][1]
    others = [one for one in entries_of(machine) if not low <= one[0] < high]
    return with_map(machine, [*others, (low, high, _RAM)])


def _of_entries(machine: Machine) -> int:
    return len(machine.memory_map)


def _with_entries(choose: Choices, machine: Machine, wanted: int) -> Machine:
    """Return the machine with so many entries: with pages of RAM that are missing, or something
    else, or with more entries behind the last; without the first or the last that are not its
    kernel's.
    """
    entries = entries_of(machine)
    more = wanted - len(entries)
    if more > 0:
        return choose.one_of((_without, _otherwise, _behind))(choose, machine, more)
    kernel = machine.kernel.start
    others = tuple(one for one in entries if not one[0] <= kernel < one[1])
    gone = choose.one_of((others[:-more], others[more:])) if more else ()
    return with_map(machine, [one for one in entries if one not in gone])


def _of_reserved(machine: Machine) -> int:
    return len(machine.reserved)


def _with_reserved(choose: Choices, machine: Machine, wanted: int) -> Machine:
    """Return the machine with so many reservations: with more pages that are taken, or without the
    first or the last.
    """
    taken = machine.reserved
    more = wanted - len(taken)
    if more > 0:
        return taking(machine, _pages(choose, machine, more))
    kept = choose.one_of((taken[:wanted], taken[-more:]))
    return attrs.evolve(machine, reserved=kept)


def _pages(choose: Choices, machine: Machine, count: int) -> Sequence[Span]:
    """Return so many pages of one piece of RAM, or as many as it has room for: evenly over it or
    close together below its end, with a page between two, and not near the kernel.
    """
    low, high = choose.one_of(list(machine.memory_map.ram_pages()))
    if low <= machine.kernel.start < high:
        low = align_up(machine.kernel.span[1], PAGE_SIZE) + ROOM_AFTER_KERNEL
    count = min(count, MAX_MORE, (high - low) // _APART - 1)
    if count <= 0:
        return ()
    evenly = align_down((high - low) // (count + 1), PAGE_SIZE)
    apart = choose.one_of((evenly, evenly, _APART, min(evenly, 2 * MIB)))
    return [(high - n * apart, high - n * apart + PAGE_SIZE) for n in range(count, 0, -1)]


def _without(choose: Choices, machine: Machine, count: int) -> Machine:
    """Return the machine without so many pages of its RAM."""
    return _replaced(machine, _pages(choose, machine, count), 0)


def _otherwise(choose: Choices, machine: Machine, count: int) -> Machine:
    """Return the machine with something else in pages of its RAM, which are two entries more each;
    where an odd number is wanted one of them is missing.
    """
    return _replaced(machine, _pages(choose, machine, (count + 1) // 2), count // 2)


def _replaced(machine: Machine, pages: Sequence[Span], kept: int) -> Machine:
    """Return the machine with no RAM in some pages; the first of them hold something else."""
    if not pages:
        return machine
    ram = machine.memory_map.ram()
    for page in pages:
        ram.discard(*page)
    others = [one for one in entries_of(machine) if one[2] is not _RAM]
    return with_map(
        machine,
        [
            *others,
            *((*span, _RAM) for span in ram),
            *((*page, _RESERVED) for page in pages[:kept]),
        ],
    )


def _behind(_: Choices, machine: Machine, count: int) -> Machine:
    """Return the machine with entries of a page behind its last one, a page apart."""
    first = align_up(machine.memory_map.entries[-1].end, PAGE_SIZE) + PAGE_SIZE
    starts = range(first, MAX_ADDRESS, _APART)[: min(count, MAX_MORE)]
    pages = [(start, start + PAGE_SIZE, _RESERVED) for start in starts]
    return with_map(machine, [*entries_of(machine), *pages])


def _scattered(choose: Choices, machine: Machine, count: int) -> Machine:
    """Return the machine with single pages of RAM above the rest, each of them in a table of its
    own.
    """
    apart = machine.mode.table_span(choose.integer(1, machine.mode.root_level - 1))
    first = align_up(machine.memory_map.entries[-1].end, apart)
    limit = min(1 << machine.mode.physical_bits, MAX_ADDRESS)
    starts = range(first, limit, apart)[: min(count, MAX_MORE)]
    pages = [(start, start + PAGE_SIZE, _RAM) for start in starts]
    return with_map(machine, [*entries_of(machine), *pages]) if pages else machine


FACTS: Mapping[str, Fact] = {
    "ram": Fact(_of_ram, _with_ram),
    "entries": Fact(_of_entries, _with_entries),
    "pieces": Fact(_of_pieces, _with_pieces),
    "max_pfn": Fact(lambda machine: machine.max_pfn, _with_end),
    "reserved": Fact(_of_reserved, _with_reserved),
}
"""Bytes of RAM, entries of the map, pieces of RAM, ..."""
