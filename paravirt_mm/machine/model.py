"""What a run is about: one machine, and what exists on it before the first page table is built."""

from __future__ import annotations

import copyreg
from collections.abc import Iterator, Mapping
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import Any

import attrs

from paravirt_mm.errors import InputError
from paravirt_mm.machine.e820 import MemoryMap
from paravirt_mm.machine.paging import GIB, MIB, PAGE_SHIFT, PAGE_SIZE, X86_64, PagingMode
from paravirt_mm.machine.ranges import RangeSet, align_up
from paravirt_mm.shown import Shown


def sealed(mapping: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Return a copy of a mapping that nobody can change."""
    return MappingProxyType(dict(mapping)) if mapping else _EMPTY


_EMPTY: Mapping[Any, Any] = MappingProxyType({})


def _opened(mapping: MappingProxyType[Any, Any]) -> tuple[Any, tuple[Any]]:
    return sealed, (dict(mapping),)


copyreg.pickle(MappingProxyType, _opened)  # runs travel between processes


Span = tuple[int, int]
"""A half-open range ``(start, end)``: bytes, unless the name says pfn."""


@attrs.frozen
class CpuFeatures:
    """What the CPU offers: large pages in L2 (``pse``) and L3 (``gbpages``) entries, and
    no-execute.
    """

    pse: bool = True
    gbpages: bool = False
    nx: bool = True

    def largest_level(self, mode: PagingMode) -> int:
        """Return the highest level whose entries may map pages under these features."""
        if not self.pse:
            return 1
        return 3 if self.gbpages and 3 in mode.large_levels else 2


@attrs.frozen
class KernelImage:
    """Where the kernel lies, in bytes: ``[start, end)`` from text to bss, then its brk area.

    ``brk_start``..``brk_end`` is the part of brk that early page tables may come from: of a machine
    from a log, what that log's kernel took of it; other allocators link the kernel with another
    (`with_brk`). ``linked_end`` is the linker's ``_end`` where brk is larger than what was taken of
    it; memory from ``brk_end`` up to there is free.
    """

    start: int
    end: int
    brk_start: int
    brk_end: int
    linked_end: int | None = None

    @property
    def span(self) -> Span:
        """All of it, from text to the end of brk."""
        return self.start, max(self.end, self.brk_end)

    @property
    def loaded(self) -> Span:
        """What the image takes where it is loaded, from text to the linker's ``_end``."""
        return self.start, max(self.span[1], self.linked_end or 0)

    def at(self, start: int) -> KernelImage:
        """Return the same image, loaded so that it begins at ``start``."""
        move = start - self.start
        linked = None if self.linked_end is None else self.linked_end + move
        return KernelImage(
            start, self.end + move, self.brk_start + move, self.brk_end + move, linked
        )

    @property
    def brk_pages(self) -> int:
        """Pages of brk that early page tables may come from."""
        return max(0, self.brk_end - self.brk_start) >> PAGE_SHIFT

    def with_brk(self, pages: int) -> KernelImage:
        """Return the same kernel linked with ``pages`` pages of brk for tables.

        It ends with them, or where it has ended anyway: brk has other users, too.
        """
        start = align_up(self.brk_start, PAGE_SIZE)
        end = start + pages * PAGE_SIZE
        linked = self.loaded[1] + max(0, end - max(self.brk_end, start))
        return KernelImage(
            self.start, min(self.end, start), start, end, linked if linked > end else None
        )


@attrs.frozen
class Provenance:
    """Where a machine comes from, and what of it is an assumption rather than read."""

    source: str
    title: str = ""
    kernel_release: str | None = None
    assumed: tuple[str, ...] = ()


DEFAULT_KERNEL = KernelImage(
    start=16 * MIB, end=30 * MIB, brk_start=30 * MIB, brk_end=30 * MIB + 64 * PAGE_SIZE
)
"""Used where a log does not say: 16 MiB is the default CONFIG_PHYSICAL_START; 256 KiB of brk for
early tables is the amount that the incremental design argues with.
"""

LOW_RESERVED: Span = (0, 64 << 10)
"""What CONFIG_X86_RESERVE_LOW keeps from everyone by default."""


@attrs.frozen(slots=False)
class Machine(Shown):
    """A machine: its memory, its CPU, and what is already taken when the direct map is built.

    ``reserved`` holds what memblock knows as taken (kernel image and brk included). ``boot_mapped``
    is how many bytes from physical 0 the native startup code has mapped. ``max_low_pfn_hint``
    overrides where lowmem ends (32-bit kernels print it). ``host_map`` is the map of the host
    below, where a hypervisor printed it and it is another one: ``memory_map`` is the guest's then.
    All addresses are bytes.
    """

    name: str
    memory_map: MemoryMap
    mode: PagingMode = X86_64
    features: CpuFeatures = CpuFeatures()
    kernel: KernelImage = DEFAULT_KERNEL
    reserved: tuple[Span, ...] = ()
    initrd: Span | None = None
    boot_mapped: int = 512 * MIB
    provenance: Provenance = Provenance(source="built by hand")
    max_pfn_hint: int | None = None
    max_low_pfn_hint: int | None = None
    host_map: MemoryMap | None = None

    def __attrs_post_init__(self) -> None:
        if not self.memory_map.ram_pages():
            raise InputError(f"machine {self.name!r} has no whole page of RAM in its memory map")

    def linked_with(self, kernel: KernelImage) -> Machine:
        """Return the machine with another kernel. Unlike `attrs.evolve` it keeps what was worked
        out of the memory: nothing that depends on the kernel may be cached here.
        """
        machine = object.__new__(type(self))
        machine.__dict__.update(self.__dict__, kernel=kernel)
        return machine

    def with_kernel_at(self, start: int) -> Machine:
        """Return the machine with its kernel loaded at ``start``, and nothing left where it was.

        Raises InputError where it would not lie in RAM that the direct map reaches and nothing else
        has taken.
        """
        kernel = self.kernel.at(start)
        reserved = RangeSet(self.reserved)
        reserved.discard(*self.kernel.span)
        taken = reserved.copy()
        if self.initrd is not None:
            taken.add(*self.initrd)
        low, high = kernel.span
        if not self.memory_map.ram_pages().covers(low, high):
            raise InputError(f"a kernel at {low:#x}-{high:#x} does not lie in RAM", self.name)
        if high > self.map_limit:
            limit = f"the end of the direct map, {self.map_limit:#x}"
            raise InputError(f"a kernel at {low:#x}-{high:#x} lies above {limit}", self.name)
        if taken.overlaps(low, high):
            raise InputError(f"a kernel at {low:#x}-{high:#x} lies on what is taken", self.name)
        told = f"the kernel is loaded at {start:#x} instead"
        source = attrs.evolve(self.provenance, assumed=(*self.provenance.assumed, told))
        return attrs.evolve(self, kernel=kernel, reserved=tuple(reserved), provenance=source)

    def kernel_places(self, most: int = 512) -> Iterator[Machine]:
        """Yield the machine with its kernel wherever KASLR may put it: at each multiple of 2 MiB
        (CONFIG_PHYSICAL_ALIGN) from 16 MiB on where it fits; evenly spread if there are over
        ``most``.
        """
        step = 2 * MIB
        count = max(0, self.map_limit - 16 * MIB) // step
        for number in range(0, count, max(1, -(-count // most))):
            try:
                yield self.with_kernel_at(16 * MIB + number * step)
            except InputError:
                continue

    @cached_property
    def max_pfn(self) -> int:
        """One past the highest RAM pfn that the mode can address."""
        if self.max_pfn_hint is not None:
            return self.max_pfn_hint
        return self.memory_map.end_pfn(1 << self.mode.physical_bits)

    @cached_property
    def max_low_pfn(self) -> int:
        """End of RAM below 4 GiB (64-bit) or of lowmem (32-bit), as a pfn."""
        if self.max_low_pfn_hint is not None:
            return self.max_low_pfn_hint
        if self.mode.lowmem_limit is not None:
            return min(self.max_pfn, self.mode.lowmem_limit >> PAGE_SHIFT)
        if self.max_pfn > (4 * GIB) >> PAGE_SHIFT:
            return self.memory_map.end_pfn(4 * GIB)
        return self.max_pfn

    @cached_property
    def map_limit(self) -> int:
        """Where the direct map must end, in bytes."""
        pfn = self.max_low_pfn if self.mode.lowmem_limit is not None else self.max_pfn
        return pfn << PAGE_SHIFT

    @cached_property
    def direct_map_base(self) -> int:
        """The virtual address of physical 0: the mode's, or of a 32-bit kernel with more lowmem
        than fits above that, the highest that leaves room for it.
        """
        bases = (base for base in self.mode.splits if base + self.map_limit <= 4 * GIB)
        return next(bases, self.mode.direct_map_base)


@attrs.frozen
class BootState:
    """What exists before an allocator's first step: the answer of ``pvmm_boot_state``.

    mapped
        Physical ranges (bytes) that the boot page tables let the kernel write.
    max_pfn_mapped
        The kernel's variable of that name when the linear allocator starts (a pfn).
    features
        The CPU's features less what the platform masks.
    kernel
        Where the kernel lies, if the platform does not load it where ``machine.kernel`` says.
    reserved
        What the platform itself has taken, in bytes (boot tables, p2m list, start info ...).
    boot_tables
        Pages (bytes) that are page tables already; on Xen they are pinned and read-only.
    tables
        Spans of physical addresses, by level, for which the kernel's tree already has a table:
        static ones, or the boot tables where the kernel grafts them into its own tree.
    table_pages
        Which pages those are, where the platform knows it: pfns by level, by ascending address
        mapped, and the root's. An image of the tables places the others by itself.
    direct_mapped
        What those tables already map of the direct map, in bytes.
    typed
        The platform types pages: a table must be read-only, and known to it, before it is attached.
    places
        Named ranges, in bytes: members of the platform's own enum of parts, whose values are what
        people read.
    """

    mapped: tuple[Span, ...]
    max_pfn_mapped: int
    features: CpuFeatures
    kernel: KernelImage | None = None
    reserved: tuple[Span, ...] = ()
    boot_tables: tuple[Span, ...] = ()
    tables: Mapping[int, tuple[Span, ...]] = attrs.field(default={}, converter=sealed)
    table_pages: Mapping[int, tuple[int, ...]] = attrs.field(default={}, converter=sealed)
    direct_mapped: tuple[Span, ...] = ()
    typed: bool = False
    places: tuple[tuple[StrEnum, Span], ...] = ()

    def kernel_of(self, machine: Machine) -> KernelImage:
        """Return where the kernel really lies."""
        return self.kernel or machine.kernel

    def taken(self, machine: Machine) -> RangeSet:
        """Return everything, in bytes, that is taken before the direct map is built.

        A platform that loads the kernel itself also says, in ``reserved``, where the initrd is.
        """
        taken = [*machine.reserved, self.kernel_of(machine).span, *self.reserved]
        if self.kernel is None and machine.initrd is not None:
            taken.append(machine.initrd)
        return RangeSet(sorted(taken))
