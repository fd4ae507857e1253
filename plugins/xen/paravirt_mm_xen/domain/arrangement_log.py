"""What Xen prints about a dom0 that it builds, predicted from what it was given.

Given are: the release of Xen, the kernel image, the initrd, the number of pages, where the kernel
is mapped, and what its ELF notes ask for. All of them stand in the log as well, in other lines than
those predicted:

- ``Xen version``, and ``Xen kernel: 64-bit``;
- ``Dom0 kernel: ... paddr A -> B``, or where that is missing the loaded kernel;
- ``PHYSICAL MEMORY ARRANGEMENT``: first allocation, pages still to be allocated, initrd;
- that the initrd is not mapped (its virtual range is empty or missing), that the p2m list lies at
  an address of its own, where ``TOTAL`` begins, and whether there are rings (a PV shim's guest).

What the log does not give is not predicted: the line "cannot be checked".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import attrs

from paravirt_mm import (
    MODES,
    PAGE_SIZE,
    DomainKernel,
    Fact,
    Hypervisor,
    LineVerdict,
    LogLine,
    PagingMode,
    Place,
    Span,
    Version,
    dotted,
    leading_version,
    of_kind,
)
from paravirt_mm_xen.domain.builders import NEWEST, Builders, builders_of, start_info_sizes
from paravirt_mm_xen.domain.layout import (
    HIGH_P2M_ADDRESS,
    DomainKind,
    Given,
    P2mPlace,
    Part,
    TooLarge,
    arrange,
    first_allocation,
)

_TOTAL = "TOTAL"
_ALLOCATED = "Dom0 alloc."
_MAX_PAGES = 1 << 40
"""No machine has more pages; a log that says so is not computed with."""


@attrs.frozen
class Told:
    """What a log tells of what the builder was given.

    ``xen`` is the release of the hypervisor; None: the log does not tell, and what depends on it is
    not checked. ``pages_told`` tells whether ``given.pages`` comes from other lines than the p2m
    list's own, which would be no check of it.
    """

    given: Given
    xen: Version | None
    pages_told: bool


@attrs.frozen
class Predicted:
    """The lines of the virtual arrangement: virtual addresses by the names that Xen prints."""

    told: Told
    places: Mapping[str, Span]
    chunk: int

    def text(self, name: str) -> str:
        """Return a line as Xen prints it, without its prefix."""
        start, end = self.places[name]
        digits = 8 if self.told.given.hypervisor_bits == 32 else 16
        return f"{name + ':':<14} {start:0{digits}x}->{end:0{digits}x}"


def predict(told: Told) -> Predicted:
    """Predict the virtual arrangement of a dom0. Raises `TooLarge` where it would be none."""
    given = told.given
    base = given.virtual_base
    layout = arrange(given)
    # Old kernels and other guests have no part of that name; Xen prints it as nothing at all.
    places: dict[str, Span] = dict.fromkeys((Part.INITRD, Part.XENSTORE, Part.CONSOLE), (0, 0))
    places |= {part: (base + low, base + high) for part, (low, high) in layout.places}
    if layout.p2m is None:
        places[Part.P2M] = HIGH_P2M_ADDRESS, HIGH_P2M_ADDRESS + given.p2m_bytes
    if not given.initrd_mapped:
        places[Part.INITRD] = 0, 0
    elif not given.initrd_bytes:
        places[Part.INITRD] = places[Part.KERNEL][1], places[Part.KERNEL][1]
    places[_TOTAL] = base, base + layout.end
    return Predicted(told, places, first_allocation(layout.end, given.inserted))


def read_told(facts: Iterable[Fact]) -> Told | None:
    """Return what the log tells of what the builder was given; None where it is too little."""
    facts = list(facts)
    places = of_kind(facts, Place)
    virtual = {place.name: place for place in places if place.section == "virtual"}
    physical = {place.name: place for place in places if place.section == "physical"}
    loaded, total = virtual.get(Part.KERNEL), virtual.get(_TOTAL)
    if loaded is None or total is None or loaded.end <= loaded.start:
        return None
    kernels = of_kind(facts, DomainKernel)
    kernel = kernels[-1] if kernels else None
    if not kernel and total.start == 0:
        return None  # a kernel mapped at 0 may be of either width
    narrow = kernel.bits == 32 if kernel else loaded.end <= 1 << 32
    mode = MODES["i386-pae" if narrow else "x86_64"]
    xen = _version(facts)
    hypervisor_bits = next((fact.bits for fact in of_kind(facts, Hypervisor) if fact.bits), None)
    mapped, p2m = virtual.get(Part.INITRD), virtual.get(Part.P2M)
    in_physical = physical.get(Part.INITRD)
    ring = virtual.get(Part.XENSTORE)
    initrd = in_physical or mapped
    is_mapped = mapped is not None and mapped.start > 0
    builders = _builders(xen, in_chunk=is_mapped and in_physical is None)
    pages = _pages(physical, 0 if builders.initrd_in_chunk else _bytes(initrd))
    if pages is None:
        entry = 4 if mode.is_32bit else 8
        pages = _bytes(p2m) // entry
    if pages > _MAX_PAGES:
        return None
    given = Given(
        mode=mode,
        kernel=(
            (kernel.start, kernel.end)
            if kernel
            else (loaded.start - total.start, loaded.end - total.start)
        ),
        pages=pages,
        initrd_bytes=_bytes(initrd),
        initrd_mapped=is_mapped,
        # Without its line the list is not in the mapping, as far as the log shows.
        p2m=P2mPlace.INLINE if p2m and p2m.start >= loaded.end else P2mPlace.HIGH,
        kind=DomainKind.SHIM if ring and ring.start else DomainKind.DOM0,
        builders=builders,
        base=total.start,
        hypervisor_bits=hypervisor_bits or _width(total, mode),
    )
    return Told(given, xen, _pages(physical, 0) is not None)


def _version(facts: Iterable[Fact]) -> Version | None:
    for fact in of_kind(facts, Hypervisor):
        if fact.version:
            return leading_version(fact.version) or None
    return None


def _builders(xen: Version | None, *, in_chunk: bool) -> Builders:
    """Return the builders of a release, or of one that agrees with where the initrd is printed."""
    if xen is not None:
        return builders_of(xen) or NEWEST
    return attrs.evolve(NEWEST, initrd_in_chunk=in_chunk)


def _width(place: Place, guest: PagingMode) -> int:
    """Xen prints addresses as wide as its own are; no guest is wider."""
    return 64 if f"{place.end:016x}" in place.text or not guest.is_32bit else 32


def _bytes(place: Place | None) -> int:
    return max(0, place.end - place.start) if place else 0


def _pages(physical: Mapping[str, Place], beside: int) -> int | None:
    """All pages of dom0: allocated first, still to be allocated, and the initrd's ``beside``."""
    allocated = physical.get(_ALLOCATED)
    if allocated is None or allocated.pages is None:
        return None
    return _bytes(allocated) // PAGE_SIZE + allocated.pages + -(-beside // PAGE_SIZE)


def check_arrangement(facts: Iterable[Fact]) -> list[LogLine]:
    """Compare the arrangement in a log with the prediction, line by line.

    Empty where the log has none. Of the first allocation only the size is predicted: Xen takes it
    where the host has free memory.
    """
    facts = list(facts)
    printed = [place for place in of_kind(facts, Place) if place.section == "virtual"]
    told = read_told(facts)
    if told is None:
        return [_unchecked(place, "the log lacks kernel or total") for place in printed]
    if told.xen is not None and builders_of(told.xen) is None:
        return [_unchecked(place, f"Xen {dotted(told.xen)} is not modelled") for place in printed]
    try:
        predicted = predict(told)
    except TooLarge as error:
        return [_unchecked(place, str(error)) for place in printed]
    return [*_first_allocation(facts, predicted), *(_line(place, predicted) for place in printed)]


def _first_allocation(facts: Iterable[Fact], predicted: Predicted) -> Iterator[LogLine]:
    for place in of_kind(facts, Place):
        if place.name == _ALLOCATED:
            text = f"{_ALLOCATED}: {predicted.chunk:#x} bytes"
            yield _compared(place, text, _bytes(place) == predicted.chunk, "size")


def _line(place: Place, predicted: Predicted) -> LogLine:
    told = predicted.told
    expected = predicted.places.get(place.name)
    if expected is None:
        why = "told by the kernel" if place.name == "ENTRY ADDRESS" else "not modelled"
        return _unchecked(place, why)
    text = predicted.text(place.name)
    if place.name == Part.P2M and not told.pages_told:
        return _unchecked(place, "the log does not tell how many pages dom0 has", text)
    same = (place.start, place.end) == expected
    if place.name == Part.START_INFO and told.xen is None and place.start == expected[0]:
        # Its length tells the age of Xen, not the other way round.
        if _bytes(place) in start_info_sizes(told.given.hypervisor_bits):
            return _unchecked(place, "the log does not tell the release of Xen", text)
        same = False
    return _compared(place, text, same)


def _compared(place: Place, text: str, same: bool, why: str = "") -> LogLine:
    verdict = LineVerdict.MATCH if same else LineVerdict.DIFFERS
    return LogLine(verdict, place.line, place.text, text, why)


def _unchecked(place: Place, why: str, predicted: str | None = None) -> LogLine:
    return LogLine(LineVerdict.UNCHECKED, place.line, place.text, predicted, why)
