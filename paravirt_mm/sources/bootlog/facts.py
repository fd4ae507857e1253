"""What a boot log says: one machine, and the lines that a model of its kernel must reproduce.

Facts keep the printed text next to its meaning, so that a disagreement can be shown in the kernel's
own words. All numbers are bytes with exclusive ends, whatever the release prints.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby
from typing import Literal, TypeVar

import attrs

from paravirt_mm.machine.e820 import MemoryMap
from paravirt_mm.machine.model import Machine, Span
from paravirt_mm.machine.release import leading_version

_F = TypeVar("_F", bound="Fact")

Platform = Literal["native", "xen-pv", "xen-pv-guest", "hypervisor"]
"""Who printed the log: Linux on (virtual) hardware, Linux below Xen as dom0 (or the log does not
say as what), as a guest that the toolstack built, or Xen alone.
"""


@attrs.frozen
class Fact:
    """One printed line: its number from 1, and its text, escaped, without the logger's prefixes."""

    line: int
    text: str


@attrs.frozen
class MappedRange(Fact):
    """``init_memory_mapping``: a range handed to the mapper; None where 2.6.26 prints no range."""

    span: Span | None


@attrs.frozen
class PageRange(Fact):
    """``... page 4k``: a part of the last `MappedRange` and the page size, as printed, it gets."""

    start: int
    end: int
    page: str


@attrs.frozen
class TableBlock(Fact):
    """``kernel direct mapping tables up to X @ A-B``: the linear allocator's guess for one call.

    The text says ``up to``, an end; where it is inclusive (3.5 and later), ``up_to`` is one more.
    """

    up_to: int
    start: int
    end: int


@attrs.frozen
class BrkTable(Fact):
    """``BRK [...] PGTABLE``: a page of brk became a page table."""

    start: int
    end: int


@attrs.frozen
class LastPfn(Fact):
    """``last_pfn = ... max_arch_pfn = ...``: the end of all RAM; then of that below 4 GiB."""

    pfn: int
    max_arch_pfn: int


@attrs.frozen
class Reservation(Fact):
    """``memblock_reserve`` or an entry of a reservation list, and who is named as the owner."""

    start: int
    end: int
    owner: str

    @property
    def is_table(self) -> bool:
        """Whether the owner is the code that allocates the direct map's tables."""
        return self.owner == "PGTABLE" or self.owner.startswith("alloc_low_page")


@attrs.frozen
class WritableRange(Fact):
    """``xen: setting RW the range A - B``: what the linear allocator had reserved and not used."""

    start: int
    end: int


@attrs.frozen
class Place(Fact):
    """A named range of Xen's domain builder, from ``section``: physical, or virtual, addresses.

    ``pages`` is the number of pages still to be allocated, where the line says it.
    """

    section: Literal["physical", "virtual"]
    name: str
    start: int
    end: int
    pages: int | None = None


@attrs.frozen
class Hypervisor(Fact):
    """What a line tells about the hypervisor itself: its ``version`` ("4.17.2"), or the word size
    in ``bits`` of its own code. None: another line tells, or none.
    """

    version: str | None = None
    bits: int | None = None


@attrs.frozen
class DomainKernel(Fact):
    """Xen's ``Dom0 kernel:`` line: word size in bits and where the image lies, in bytes."""

    bits: int
    start: int
    end: int


@attrs.frozen
class CountedRam:
    """How many bytes of RAM a kernel, or Xen, says there are, and how many it may have left out."""

    bytes: int
    left_out: int = 0

    def agrees(self, ram: int) -> bool:
        """Tell whether ``ram`` bytes may be what was counted."""
        return self.bytes <= ram <= self.bytes + self.left_out

    def doubt(self, shown: str, ram: int, who: str) -> str:
        """Say that a map has other RAM than was counted: a line of it may be lost."""
        has, counted = ram >> 10, self.bytes >> 10
        return f"{shown} as printed: its RAM is {has}K, but {who} counted {counted}K"


def of_kind(facts: Iterable[Fact], kind: type[_F]) -> list[_F]:
    """Return the facts of one kind, in order."""
    return [fact for fact in facts if isinstance(fact, kind)]


def once_each(facts: Iterable[Fact]) -> list[Fact]:
    """Return facts without those that say what the one before them says."""
    alike = groupby(facts, key=lambda fact: attrs.evolve(fact, line=0))
    return [next(same) for _, same in alike]


_XENLINUX = re.compile(r"-?xen(?:0|U|pae|PAE)?(?:-(?:amd64|686|686-pae|vserver.*))?(?:$|[.+~])")
_PVOPS_AS_XEN = re.compile(r"-xen-(?:amd64|686)")
"""Debian's 2.6.32 flavour of that name is mainline with patches (pvops)."""
_LAST_XENLINUX = (4, 4)
"""SUSE, the last to ship the fork, went to mainline's support with this release."""


def is_xenlinux(release: str | None) -> bool:
    """Tell whether a release is named like those of the XenLinux fork (2.6.18-xen, el5xen)."""
    version = leading_version(release)
    if release is None or not version or version >= _LAST_XENLINUX:
        return False
    if version[:3] == (2, 6, 32) and _PVOPS_AS_XEN.search(release):
        return False
    return _XENLINUX.search(release) is not None


@attrs.frozen
class BootLog:
    """One boot, as far as its log tells.

    boot
        Which boot of the file this is, from 1.
    machine
        None where the log holds no memory map; ``missing`` then says what to look for.
    host_map
        The map that the hypervisor printed (``Xen-e820 RAM map``), untrimmed.
    firmware_map
        The first map that the kernel printed, before any change.
    made_up
        RAM, in bytes, that the log does not show as such: the head of the map is cut off, and what
        was mapped there, or all of it, is taken for RAM.
    kernel_listed
        The log says where the kernel lies.
    user_map_from
        The line at which a user's map replaced one that ``last_pfn`` was printed for; 0: none did.
    mixed
        Lines of two boots stand between each other; facts cannot be told apart.
    last_line
        The last line of the boot that is not blank: where a fact stands there the log may be cut.
    facts
        In the order of the log.
    """

    source: str
    boot: int
    platform: Platform
    release: str | None
    command_line: str
    machine: Machine | None
    missing: str | None
    host_map: MemoryMap | None
    firmware_map: MemoryMap | None
    made_up: tuple[Span, ...]
    kernel_listed: bool
    user_map_from: int
    mixed: bool
    last_line: int
    facts: tuple[Fact, ...]

    @property
    def is_fork(self) -> bool:
        """Whether the kernel is one of the XenLinux fork, by its name: no mainline Linux."""
        return is_xenlinux(self.release)

    def of_kind(self, kind: type[_F]) -> list[_F]:
        """Return the facts of one kind, in order."""
        return of_kind(self.facts, kind)
