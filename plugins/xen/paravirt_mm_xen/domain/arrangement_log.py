"""What Xen prints about a dom0 that it builds, predicted from what it was given.

Given are: the kernel image, the initrd, the number of pages, and what the kernel's ELF notes ask
for. All of them stand in the log as well, in other lines than those predicted:

- ``Dom0 kernel: ... paddr A -> B``, or where that is missing (before Xen 4.9) the loaded kernel;
- ``PHYSICAL MEMORY ARRANGEMENT``: first allocation, pages still to be allocated, initrd;
- that the initrd is not mapped (its virtual range is empty or missing), and that the p2m list lies
  at an address of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import attrs

from paravirt_mm import (
    MODES,
    PAGE_SIZE,
    DomainKernel,
    Fact,
    LineVerdict,
    LogLine,
    PagingMode,
    Place,
    Span,
    of_kind,
)
from paravirt_mm_xen.domain.layout import (
    HIGH_P2M_ADDRESS,
    START_INFO_BYTES,
    START_INFO_BYTES_32,
    START_INFO_BYTES_OLD,
    Arrangement,
    P2mPlace,
    arrange,
    first_allocation,
)

_START_INFO_SIZES = {
    START_INFO_BYTES: "",
    START_INFO_BYTES_OLD: "start info as before Xen 4.14",
    START_INFO_BYTES_32: "",
}
_NOT_BUILT = {
    "Xenstore ring": "only guests of the toolstack have one",
    "Console ring": "only guests of the toolstack have one",
}


@attrs.frozen
class Given:
    """What a domain builder is given, as a log tells it. ``kernel`` is guest-physical bytes.

    ``pages`` counts all of dom0's memory, first allocation and initrd included; None: the log does
    not tell.
    """

    mode: PagingMode
    kernel: Span
    initrd_bytes: int
    initrd_mapped: bool
    pages: int | None
    p2m: P2mPlace
    start_info_bytes: int


@attrs.frozen
class Predicted:
    """The lines of the virtual arrangement: virtual addresses by the names that Xen prints."""

    given: Given
    places: dict[str, Span]

    def text(self, name: str) -> str:
        """Return a line as Xen prints it, without its prefix."""
        start, end = self.places[name]
        digits = 8 if self.given.mode.is_32bit else 16
        return f"{name + ':':<14} {start:0{digits}x}->{end:0{digits}x}"


def predict(given: Given) -> Predicted:
    """Predict the virtual arrangement of a dom0."""
    base = given.mode.kernel_base
    layout = arrange(
        given.mode,
        given.kernel,
        given.initrd_bytes,
        given.pages or 0,
        given.p2m,
        initrd_mapped=given.initrd_mapped,
        start_info_bytes=given.start_info_bytes,
    )
    places = dict(_virtual(layout, base))
    if given.p2m is P2mPlace.HIGH:
        size = (given.pages or 0) * 8
        places["Phys-Mach map"] = HIGH_P2M_ADDRESS, HIGH_P2M_ADDRESS + size
    if not given.initrd_mapped:
        places["Init. ramdisk"] = 0, 0
    for name in _NOT_BUILT:
        places[name] = 0, 0
    places["TOTAL"] = base, base + layout.end
    return Predicted(given, places)


def _virtual(layout: Arrangement, base: int) -> Iterator[tuple[str, Span]]:
    for name, (low, high) in layout.places:
        yield name, (base + low, base + high)


def read_given(facts: Iterable[Fact]) -> Given | None:
    """Return what the builder was given; None where the log tells too little."""
    facts = list(facts)
    places = of_kind(facts, Place)
    virtual = {place.name: place for place in places if place.section == "virtual"}
    physical = {place.name: place for place in places if place.section == "physical"}
    loaded, total = virtual.get("Loaded kernel"), virtual.get("TOTAL")
    if loaded is None or total is None:
        return None
    mode = MODES["i386-pae" if loaded.end < 1 << 32 else "x86_64"]
    kernels = of_kind(facts, DomainKernel)
    kernel = loaded.start - mode.kernel_base, loaded.end - mode.kernel_base
    if kernels:
        kernel = kernels[-1].start, kernels[-1].end
    mapped = virtual.get("Init. ramdisk")
    is_mapped = mapped is not None and mapped.start < mapped.end
    initrd = physical.get("Init. ramdisk") or mapped
    p2m = virtual.get("Phys-Mach map")
    info = virtual.get("Start info")
    size = info.end - info.start if info else 0
    default = START_INFO_BYTES_32 if mode.is_32bit else START_INFO_BYTES
    return Given(
        mode=mode,
        kernel=kernel,
        initrd_bytes=initrd.end - initrd.start if initrd else 0,
        initrd_mapped=is_mapped,
        pages=_pages(physical, initrd if not is_mapped else None),
        p2m=P2mPlace.HIGH if p2m and p2m.start < mode.kernel_base else P2mPlace.INLINE,
        start_info_bytes=size if size in _START_INFO_SIZES else default,
    )


def _pages(physical: dict[str, Place], inserted: Place | None) -> int | None:
    """All pages of dom0: allocated first, still to be allocated, and the initrd's own."""
    allocated = physical.get("Dom0 alloc.")
    if allocated is None or allocated.pages is None:
        return None
    first = (allocated.end - allocated.start) // PAGE_SIZE
    initrd = -(-(inserted.end - inserted.start) // PAGE_SIZE) if inserted else 0
    return first + allocated.pages + initrd


def check_arrangement(facts: Iterable[Fact]) -> list[LogLine]:
    """Compare the arrangement in a log with the prediction, line by line.

    Empty where the log has none. Of the first allocation only the size is predicted: Xen takes it
    where the host has free memory.
    """
    facts = list(facts)
    printed = [place for place in of_kind(facts, Place) if place.section == "virtual"]
    given = read_given(facts)
    if given is None:
        why = "the log lacks kernel or total"
        return [
            LogLine(LineVerdict.UNCHECKED, place.line, place.text, None, why) for place in printed
        ]
    predicted = predict(given)
    physical = {place.name: place for place in of_kind(facts, Place) if place.section == "physical"}
    first = physical.get("Dom0 alloc.")
    lines = [_first_allocation(first, predicted, physical)] if first else []
    return lines + [_line(place, predicted) for place in printed]


def _first_allocation(place: Place, predicted: Predicted, physical: Mapping[str, Place]) -> LogLine:
    low, high = predicted.places["TOTAL"]
    initrd = predicted.given.initrd_bytes
    inserted = initrd if predicted.given.initrd_mapped and "Init. ramdisk" in physical else 0
    size = first_allocation(high - low, inserted)
    same = place.end - place.start == size
    text = f"Dom0 alloc.: {size:#x} bytes"
    return LogLine(
        LineVerdict.MATCH if same else LineVerdict.DIFFERS, place.line, place.text, text, "size"
    )


def _line(place: Place, predicted: Predicted) -> LogLine:
    given = predicted.given
    if place.name not in predicted.places:
        why = "told by the kernel" if place.name == "ENTRY ADDRESS" else "not modelled"
        return LogLine(LineVerdict.UNCHECKED, place.line, place.text, None, why)
    text = predicted.text(place.name)
    if place.name == "Phys-Mach map" and given.pages is None:
        why = "the log does not tell how many pages dom0 has"
        return LogLine(LineVerdict.UNCHECKED, place.line, place.text, text, why)
    why = _START_INFO_SIZES[given.start_info_bytes] if place.name == "Start info" else ""
    same = (place.start, place.end) == predicted.places[place.name]
    return LogLine(
        LineVerdict.MATCH if same else LineVerdict.DIFFERS, place.line, place.text, text, why
    )
