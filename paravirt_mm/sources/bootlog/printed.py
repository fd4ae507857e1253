"""What one boot of Linux has printed, before anything is made of it."""

from __future__ import annotations

from itertools import pairwise

import attrs

from paravirt_mm.machine.e820 import E820Type, MemoryMap
from paravirt_mm.machine.model import Span
from paravirt_mm.sources.bootlog.facts import CountedRam, Fact
from paravirt_mm.sources.bootlog.xen import HypervisorScan


@attrs.frozen
class MapChange:
    """``e820: update`` or ``remove``: ``old`` (None: any) becomes ``new`` (None: hole) in ``span``.

    ``order`` is that of its line, as counted by `Printed`; ``hole``: what holes become.
    """

    order: int
    span: Span
    old: E820Type | None
    new: E820Type | None
    hole: E820Type | None = None


@attrs.define
class PrintedMap:
    """One printed map, from ``line`` on, and the changes printed after it.

    ``restart`` is where its entries begin anew, if they do. ``is_late``: the direct map was there
    already (ACPI's tables may be replaced, and then the map is printed once more).
    """

    label: str
    line: int
    entries: list[tuple[int, int, E820Type]] = attrs.field(factory=list)
    changes: list[MapChange] = attrs.field(factory=list)
    restart: int | None = None
    is_late: bool = False

    def add(self, entry: tuple[int, int, E820Type]) -> None:
        """Take an entry. Where one begins like the first, a second map may have begun."""
        if self.restart is None and self.entries and entry[0] == self.entries[0][0]:
            self.restart = len(self.entries)
        self.entries.append(entry)

    @property
    def is_reversed(self) -> bool:
        """Whether each entry lies below the one before it."""
        return len(self.entries) > 1 and all(
            first[0] > second[0] for first, second in pairwise(self.entries)
        )

    @property
    def sanitised(self) -> MemoryMap:
        """The map as the kernel makes sense of it, before any change."""
        return MemoryMap.sanitise(self.entries)


@attrs.define
class Printed:
    """One boot, as far as it has been read. Addresses are bytes, ends exclusive.

    ``freed`` says what was given back, and how many reservations there were then; ``user_map_from``
    is the line where a user's map replaced one that ``last_pfn`` was printed for already.
    ``order`` counts the lines taken, to tell what was printed before what; ``mapping`` is true once
    the direct map is being built, ``set_up`` once it must be there, ``progressed`` once anything
    shows that the kernel went on after printing its map; ``ends_in_map`` while the last line is an
    entry of one.
    """

    number: int
    source: str
    first_line: int = 0
    last_line: int = 0
    release: str | None = None
    command_line: str = ""
    maps: list[PrintedMap] = attrs.field(factory=list)
    facts: list[Fact] = attrs.field(factory=list)
    xen: HypervisorScan = attrs.field(factory=HypervisorScan)
    assumed: list[str] = attrs.field(factory=list)
    reserved: list[Span] = attrs.field(factory=list)
    freed: list[tuple[int, Span]] = attrs.field(factory=list)
    kernel_image: Span | None = None
    kernel_bytes: int | None = None
    counted_ram: CountedRam | None = None
    initrd: Span | None = None
    boot_mapped: int | None = None
    trampoline: Span | None = None
    trampolines: int = 0
    low_ram_end: int | None = None
    lowmem_lines: bool = False
    virtual_digits: int | None = None
    nx: bool | None = None
    non_pae: bool = False
    gbpages: bool = False
    on_xen: bool = False
    fully_virtual: bool = False
    unprivileged: bool = False
    kernel_not_ram: bool = False
    user_map_from: int = 0
    mapping: bool = False
    set_up: bool = False
    progressed: bool = False
    ends_in_map: bool = False
    changes: int = 0
    entries: int = 0
    order: int = 0
    last_pfn_order: int | None = None

    @property
    def mixed(self) -> bool:
        """Whether lines of two boots stand between each other, as in files merged by time."""
        return self.trampolines > 1 and any(printed.restart for printed in self.maps)

    def is_late(self, change: MapChange) -> bool:
        """Whether memblock had its copy of the map already when ``change`` was made."""
        return self.last_pfn_order is not None and change.order > self.last_pfn_order
