"""Whether what the domain builder laid out for dom0 stands where the host has no RAM.

A PV dom0 sees guest-physical memory that begins at 0 and has no holes when it starts. Linux then
makes it look like the host: where the host's map has no RAM, guest addresses are to show what the
host has there (ACPI tables, device memory), one to one. Kernel, start info, page tables, p2m list
and initrd lie at fixed guest addresses. Where the host has no RAM at these, something must move.

Source: arch/x86/xen/setup.c (xen_memory_setup, xen_chk_is_e820_usable,
xen_e820_resolve_conflicts, xen_e820_swap_entry_with_ram) and mmu_pv.c (xen_pt_check_e820) of Linux
4.2, 4.3, 6.8 and 6.12; the check of 4.3 ends at __bss_stop, that of 6.12 at _end ("xen: use correct
end address of kernel for conflict checking").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import IntEnum, auto
from functools import cache

import attrs

from paravirt_mm import (
    ISA_END,
    PAGE_SIZE,
    E820Entry,
    E820Type,
    KernelImage,
    MemoryMap,
    Span,
    SpecError,
    Version,
    align_down,
    align_up,
    dotted,
)
from paravirt_mm_xen.domain.layout import BRK, KERNEL, Part
from paravirt_mm_xen.linux import HIGH_P2M_SINCE, UNMAPPED_INITRD_SINCE

HOLE = "hole"


class Fate(IntEnum):
    """What becomes of a part that stands on something else than RAM, best first."""

    MOVED = auto()
    """The kernel moves the part, or what is in its way, and boots."""
    UNNOTICED = auto()
    """The kernel does not look; what it reads or overwrites there is not what it believes."""
    PANIC = auto()
    """The kernel says so and stops ("... memory conflicts with E820 map")."""

    @property
    def label(self) -> str:
        """In one word."""
        return self.name.lower()


FIXED = (Part.KERNEL, Part.BRK, Part.START_INFO, Part.PAGE_TABLES)
MOVABLE = (Part.P2M, Part.INITRD)
PARTS = (*FIXED, *MOVABLE)
"""Parts that matter after the first step of the boot; the boot stack does not."""


@attrs.frozen
class Handling:
    """What kernels from a release on do about conflicts.

    ``checked`` parts stop the boot, ``moved`` parts are copied elsewhere, and of ``cleared`` types
    of memory it is the memory that moves, to the end of the host's RAM. ``stable``: a stable series
    took it, which mainline had not when it left it.
    """

    since: Version
    checked: frozenset[Part]
    moved: tuple[Part, ...]
    cleared: tuple[E820Type, ...]
    note: str
    stable: bool = False


_UNCHECKED = Handling((2, 6, 37), frozenset(), (), (), "no check")
_CHECKED = Handling(
    (4, 3), frozenset({Part.KERNEL, Part.PAGE_TABLES}), MOVABLE, (),
    "kernel (up to its bss) and page tables are checked; p2m list and initrd are moved",
)  # fmt: skip
_NVS_MOVES = Handling(
    (6, 12), frozenset(FIXED), MOVABLE, (E820Type.NVS,),
    "brk and start info are checked, too; ACPI NVS is moved out of the way in the p2m",
)  # fmt: skip

HANDLINGS: tuple[Handling, ...] = (
    _UNCHECKED,
    _CHECKED,
    attrs.evolve(_NVS_MOVES, since=(6, 6, 54), stable=True),
    attrs.evolve(_CHECKED, since=(6, 7)),
    attrs.evolve(_NVS_MOVES, since=(6, 10, 13), stable=True),
    attrs.evolve(_CHECKED, since=(6, 11)),
    attrs.evolve(_NVS_MOVES, since=(6, 11, 2), stable=True),
    _NVS_MOVES,
)
"""Oldest first. The stable updates are those of October 2024."""


@attrs.frozen
class Collision:
    """A part of dom0 that the host's map has no RAM for.

    ``where`` is what of it (guest-physical bytes), ``on`` the host's word for what is there.
    ``can_swap`` tells whether the host has RAM beyond dom0's own to move that memory to.
    """

    part: Part
    where: Span
    on: str
    type: E820Type | None
    can_swap: bool

    def outcome(self, release: Version) -> Fate:
        """Return what a kernel of a release makes of it."""
        change = handling(max(release, HANDLINGS[0].since))  # no other guest looked before
        if self.type in change.cleared and self.part in change.checked and self.can_swap:
            return Fate.MOVED
        if self.part in change.moved:
            return Fate.MOVED
        return Fate.PANIC if self.part in change.checked else Fate.UNNOTICED

    def __str__(self) -> str:
        low, high = self.where
        return f"{self.part} on {self.on} at {low:#x}-{high:#x}"


@cache
def handling(release: Version) -> Handling:
    """Return what a release does. Raises `SpecError` before the first that can be dom0."""
    known = [change for change in HANDLINGS if change.since <= release]
    if not known:
        raise SpecError(f"Linux can be a PV dom0 from {dotted(HANDLINGS[0].since)} on")
    return known[-1]


def apart(places: Iterable[tuple[Part, Span]], kernel: KernelImage) -> Iterator[tuple[Part, Span]]:
    """Yield the parts of a domain with the kernel's brk as one of its own."""
    for part, (start, end) in places:
        if part is KERNEL and kernel.end < end:
            yield KERNEL, (start, kernel.end)
            yield BRK, (kernel.end, end)
        else:
            yield part, (start, end)


def find_collisions(
    places: Iterable[tuple[Part, Span]], host: MemoryMap, pages: int
) -> list[Collision]:
    """Return the collisions of a dom0 of ``pages`` pages, by part and address.

    ``places`` are the named ranges of its arrangement. Memory that the firmware calls unusable is
    RAM to dom0; the first MiB is nobody's.
    """
    found: list[Collision] = []
    matters = [place for place in places if place[0] in PARTS]
    if host.ram_pages().covers(ISA_END, max([end for _, (_, end) in matters], default=ISA_END)):
        return found
    # RAM behind dom0's memory, of which one piece must have room for what is swapped with it.
    own = pages * PAGE_SIZE
    ram = [entry for entry in host.entries if entry.type is E820Type.RAM]
    rooms = [entry.end - max(entry.start, own) for entry in ram]
    for part, (start, end) in matters:
        for low, high, entry in _not_ram(host, max(start, ISA_END), end):
            if entry is None:
                found.append(Collision(part, (low, high), HOLE, None, can_swap=False))
                continue
            size = align_up(entry.end, PAGE_SIZE) - align_down(entry.start, PAGE_SIZE)
            fits = any(size <= room for room in rooms)
            found.append(Collision(part, (low, high), entry.type.label, entry.type, fits))
    return sorted(found, key=lambda one: (PARTS.index(one.part), one.where))


def _not_ram(host: MemoryMap, start: int, end: int) -> Iterator[tuple[int, int, E820Entry | None]]:
    """Yield what of ``[start, end)`` is no RAM, with the map's entry; None: it has a hole there."""
    position = start
    for entry in host.entries:
        if entry.end <= position:
            continue
        if entry.start >= end:
            break
        low, high = max(entry.start, position), min(entry.end, end)
        if position < low:
            yield position, low, None
        if entry.type not in (E820Type.RAM, E820Type.UNUSABLE):
            yield low, high, entry
        position = high
    if position < end:
        yield position, end, None


def summary(found: Sequence[Collision], release: Version) -> str:
    """Return what becomes of the parts with a release of Linux, worst first; empty without any."""
    fates: dict[Fate, list[str]] = {}
    for one in found:
        fates.setdefault(one.outcome(release), []).append(str(one))
    told = (f"{fate.label}: {', '.join(fates[fate])}" for fate in sorted(fates, reverse=True))
    return "; ".join(told)


def boots(found: Iterable[Collision], release: Version) -> bool:
    """Tell whether a release of Linux copes with all collisions."""
    return all(one.outcome(release) is Fate.MOVED for one in found)


NO_RELEASE = "no release of Linux boots"


def releases() -> list[Version]:
    """Return the releases with which something changes about collisions, oldest first."""
    known = {one.since for one in HANDLINGS if not one.stable}
    return sorted({*known, UNMAPPED_INITRD_SINCE, HIGH_P2M_SINCE})


def releases_that_boot(copes: Callable[[Version], bool]) -> str:
    """Return in words for which releases of Linux ``copes`` says so; empty: for all."""
    known = releases()
    good = [copes(release) for release in known]
    if all(good):
        return ""
    spans = []
    for number, release in enumerate(known):
        if good[number] and (number == 0 or not good[number - 1]):
            bad = [later for later, fits in zip(known, good, strict=True) if not fits]
            until = next((f"before {dotted(end)}" for end in bad if end > release), "")
            spans.append(f"{dotted(release) if number else ''} {until}".strip())
    return f"needs Linux {' or '.join(spans)}" if spans else NO_RELEASE
