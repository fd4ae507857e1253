"""Xen's own console log: the host's memory map, and what the domain builder did with dom0.

Formats: ``print_e820_memory_map`` prints exclusive ends up to Xen 4.14 (``A - B (usable)``) and
inclusive ones since (``[A, B] (usable)``); ``construct_dom0`` prints the arrangements. With
``console_timestamps=`` any line may carry a time in brackets.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import attrs

from paravirt_mm.errors import InputError
from paravirt_mm.machine.e820 import E820Type, MemoryMap
from paravirt_mm.machine.model import Machine, Span
from paravirt_mm.machine.paging import PAGE_SHIFT, PAGE_SIZE
from paravirt_mm.machine.ranges import align_down, align_up
from paravirt_mm.printable import printable
from paravirt_mm.sources.assume import WHOLE, machine_from_map
from paravirt_mm.sources.bootlog.facts import (
    CountedRam,
    DomainKernel,
    Fact,
    Hypervisor,
    Place,
)
from paravirt_mm.sources.e820_words import log_type

XEN_MARK = "(XEN)"

_HEX = r"([0-9a-fA-F]{1,16})"
_STAMP = re.compile(r"\A\(XEN\)(?: ?\[[-\d:. a-f]+\])?")
_VERSION = re.compile(r"\s*Xen version (\S+)")
_XEN_KERNEL = re.compile(r"\s*Xen\s+kernel: (32|64)-bit")
_MAP_HEADER = re.compile(r"\s*(Initial )?[\w-]+ RAM map:\s*$")
_MAP_ENTRY = re.compile(
    rf"(?:\[{_HEX}, {_HEX}\]|{_HEX} - {_HEX}) (?:\((?P<type>[^)]{{0,60}})\)?|(?P<number>type \d+))$"
)
_SYSTEM_RAM = re.compile(r"System RAM: \d{1,12}MB \((\d{1,15})kB\)")
_SECTION = re.compile(r"\s*(PHYSICAL|VIRTUAL) MEMORY ARRANGEMENT:")
_PLACE = re.compile(
    rf"\s*(?P<name>[A-Z][\w .-]{{0,30}}?):?\s+{_HEX}->{_HEX}(?: \((?P<pages>\d{{1,15}}) pages)?"
)
_RANGE = re.compile(r"\A\(XEN\) .*[0-9a-f](?:, | - |->)[0-9a-f]{8}")
_ENTRY_POINT = re.compile(rf"\s*ENTRY ADDRESS: {_HEX}")
_KERNEL = re.compile(
    r"\s*Dom0 kernel: (?P<bits>32|64)-bit.*paddr (?:0x)?([0-9a-f]{1,16}) -> (?:0x)?([0-9a-f]{1,16})"
)

MAX_MAP_ENTRIES = 1 << 17
"""More entries than this in one map are refused: firmware prints a few hundred at the most."""


@attrs.define
class HypervisorScan:
    """Collects what Xen printed, line by line.

    ``in_map``: an entry of a map may follow.
    """

    entries: list[tuple[int, int, E820Type]] = attrs.field(factory=list)
    facts: list[Fact] = attrs.field(factory=list)
    version: str | None = None
    in_map: bool = False
    counted_ram: CountedRam | None = None
    _section: Literal["physical", "virtual"] | None = None

    def feed(self, where: str, number: int, message: str) -> None:
        """Take one line that starts with ``(XEN)``. Raises InputError for a map too long."""
        text = printable(_STAMP.sub("", message))
        rest = " ".join(text.split())
        if self.in_map:
            if entry := _MAP_ENTRY.match(rest):
                self._add(where, entry)
                return
            self.in_map = False
        if _MAP_HEADER.match(rest):
            # With e820-verbose the map before fix-ups comes first; the last one is what Xen uses.
            self.in_map = True
            self.entries.clear()
        elif version := _VERSION.match(rest):
            self.version = printable(version[1], 40)
            self.facts.append(Hypervisor(number, text, self.version))
        elif counted := _SYSTEM_RAM.match(rest):
            self.counted_ram = CountedRam(int(counted[1]) << 10)
        elif kernel := _XEN_KERNEL.match(rest):
            self.facts.append(Hypervisor(number, text, bits=int(kernel[1])))
        elif section := _SECTION.match(rest):
            self._section = "physical" if section[1] == "PHYSICAL" else "virtual"
        elif kernel := _KERNEL.match(rest):
            start, end = int(kernel[2], 16), int(kernel[3], 16)
            self.facts.append(DomainKernel(number, text, int(kernel["bits"]), start, end))
        elif self._section is not None:
            self._place(number, text, rest)

    def _add(self, where: str, match: re.Match[str]) -> None:
        if len(self.entries) >= MAX_MAP_ENTRIES:
            raise InputError(f"more than {MAX_MAP_ENTRIES} memory map entries", where)
        inclusive = match.group().startswith("[")
        start, end = (match[1], match[2]) if inclusive else (match[3], match[4])
        kind = log_type(match["type"] or match["number"] or "") or E820Type.RESERVED
        self.entries.append((int(start, 16), int(end, 16) + inclusive, kind))

    def _place(self, number: int, text: str, rest: str) -> None:
        assert self._section is not None  # noqa: S101 - the caller looked
        if place := _PLACE.match(rest):
            self.facts.append(
                Place(
                    number,
                    text,
                    self._section,
                    place["name"],
                    int(place[2], 16),
                    int(place[3], 16),
                    int(place["pages"]) if place["pages"] else None,
                )
            )
        elif entry := _ENTRY_POINT.match(rest):
            address = int(entry[1], 16)
            self.facts.append(Place(number, text, self._section, "ENTRY ADDRESS", address, address))
        elif rest:
            self._section = None

    @property
    def host_map(self) -> MemoryMap | None:
        """The host's map as Xen printed it; None where it did not."""
        return MemoryMap.sanitise(self.entries) if self.entries else None

    def miscounted(self) -> list[str]:
        """Say so where Xen has counted other RAM than its map has: a line of it may be lost.

        It counts whole pages of each entry's size, wherever the entry begins (__start_xen).
        """
        sizes = (end - start for start, end, kind in self.entries if kind is E820Type.RAM)
        ram = sum(size >> PAGE_SHIFT << PAGE_SHIFT for size in sizes)
        counted = self.counted_ram
        if counted is None or not self.entries or counted.agrees(ram):
            return []
        return [counted.doubt("the host's map", ram, "Xen")]


def tells_a_range(message: str) -> bool:
    """Tell whether a line is Xen's, of a range of addresses: it prints none twice in a row."""
    return _RANGE.match(message) is not None


def host_machine(
    name: str, source: str, scan: HypervisorScan, assumed: Sequence[str] = ()
) -> Machine:
    """Return what the hypervisor's log tells of its host and its dom0, as a machine.

    ``assumed`` is what had to be assumed to read the log; it is told first.

    Where the log says how many pages dom0 has, RAM is the lowest of the host's that make up so
    many, as Linux arranges it. Raises InputError where the host's map has no RAM.
    """
    host_map = MemoryMap.sanitise(scan.entries)
    title = f"host of Xen {scan.version}" if scan.version else "host of Xen"
    kernel = next((f for f in reversed(scan.facts) if isinstance(f, DomainKernel)), None)
    image = (kernel.start, kernel.end) if kernel else None
    pages = _pages_of_dom0(scan.facts)
    memory, sentences = host_map, [*scan.miscounted(), *assumed, *[WHOLE] * scan.in_map]
    if pages and pages << PAGE_SHIFT < host_map.ram_pages().total:
        memory = _with_less_ram(host_map, pages << PAGE_SHIFT)
        sentences.append(f"RAM: the lowest {pages} pages of the host's, as many as dom0 has")
    machine = machine_from_map(name, source, title, memory, linked=image, assumed=sentences)
    sentences = list(machine.provenance.assumed)
    initrd = _initrd(scan.facts, memory)
    if initrd is not None:
        sentences.remove("no initrd")
        sentences.append("initrd at the end of RAM (the log tells its size)")
    provenance = attrs.evolve(machine.provenance, assumed=tuple(sentences))
    return attrs.evolve(machine, provenance=provenance, host_map=host_map, initrd=initrd)


def _initrd(facts: list[Fact], memory: MemoryMap) -> Span | None:
    """Return a place for an initrd of the size that the log tells; None where it tells none."""
    sizes = [
        place.end - place.start
        for place in facts
        if isinstance(place, Place) and place.name.startswith("Init") and place.start < place.end
    ]
    if not sizes:
        return None
    size = max(sizes)
    pages = align_up(size, PAGE_SIZE)
    for low, high in reversed(list(memory.ram_pages())):
        if pages <= high - low:
            return high - pages, high - pages + size
    return None


def _pages_of_dom0(facts: list[Fact]) -> int:
    """Return how many pages the builder gives dom0; 0 where the log does not say."""
    places = [f for f in facts if isinstance(f, Place) and f.section == "physical"]
    allocation = next((f for f in places if f.name.startswith("Dom0 alloc")), None)
    if allocation is None or not allocation.pages:
        return 0
    kept = [f for f in places if f is allocation or f.name.startswith("Init")]
    sizes = (place.end - place.start for place in kept if place.start < place.end)
    return allocation.pages + sum(align_up(size, PAGE_SIZE) >> PAGE_SHIFT for size in sizes)


def _with_less_ram(memory: MemoryMap, limit: int) -> MemoryMap:
    """Return the map with no more whole pages of RAM than make ``limit`` bytes: what lies above is
    a hole. (Linux counts pages: xen_set_identity_and_remap.)
    """
    left = limit
    entries = []
    for entry in memory:
        end = entry.end
        if entry.type is E820Type.RAM:
            start = align_up(entry.start, PAGE_SIZE)
            whole = max(0, align_down(end, PAGE_SIZE) - start)
            if whole > left:
                end = start + left
            left = max(0, left - whole)
        entries.append((entry.start, end, entry.type))
    return MemoryMap.sanitise(entries)
