"""What no machine can be: numbers that a file may hold, and that nothing may be counted up to.

Readers pass every machine through `checked`. What is refused here could only waste time and memory,
or be blamed on a model later.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from paravirt_mm.errors import InputError
from paravirt_mm.machine.e820 import MemoryMap
from paravirt_mm.machine.model import Machine, Span
from paravirt_mm.machine.paging import GIB, PAGE_SHIFT, PAGE_SIZE, PagingMode
from paravirt_mm.machine.ranges import RangeSet

MAX_PHYSICAL_BITS = 46
"""Without 5-level tables Linux addresses no more (MAXMEM), and 32-bit CPUs much less."""
MAX_KERNEL_BYTES = GIB
"""The kernel's own mapping holds no larger image (KERNEL_IMAGE_SIZE)."""
ABOVE_KERNELS = GIB
"""No kernel lies in the last GiB of what its mode can address, of 4 GiB in 32 bits: there, however
VMSPLIT is set, the direct map that the kernel lies in begins at 1 GiB or above.
"""
_4_GIB_PFN = 4 * GIB >> PAGE_SHIFT


def checked(machine: Machine, where: str) -> Machine:
    """Return the machine. Raises InputError that says what of it is impossible."""
    limit = 1 << max(machine.mode.physical_bits, MAX_PHYSICAL_BITS)
    ram = machine.memory_map.ram_pages()
    if ram.end > limit:
        raise InputError(f"RAM up to {ram.end:#x}: no kernel addresses more than {limit:#x}", where)
    for what, pfn in (
        ("max_pfn", machine.max_pfn_hint),
        ("max_low_pfn", machine.max_low_pfn_hint),
    ):
        if pfn is not None and pfn > limit >> PAGE_SHIFT:
            raise InputError(f"{what}: page {pfn:#x} lies above all memory", where)
    _check_ends(machine, where)
    if machine.boot_mapped % PAGE_SIZE or machine.boot_mapped > machine.mode.physical_end:
        # Linux prints a count of pages, as an address.
        raise InputError(
            f"startup code maps whole pages below {machine.mode.physical_end:#x}, not up to"
            f" {machine.boot_mapped:#x}",
            where,
        )
    check_kernel(machine.kernel.loaded, machine.memory_map, machine.mode, where)
    if machine.initrd is not None:
        check_place("the initrd", machine.initrd, machine.memory_map, where)
    return _with_notes(machine)


def _check_ends(machine: Machine, where: str) -> None:
    """Refuse a direct map that ends where none can. Raises InputError."""
    low, last = machine.max_low_pfn, machine.max_pfn
    if not machine.map_limit:
        raise InputError(f"all RAM lies above what {machine.mode.name} addresses", where)
    if machine.mode.is_32bit:
        if machine.map_limit > kernels_end(machine.mode):
            raise InputError(
                f"a 32-bit kernel has no addresses for lowmem up to {machine.map_limit:#x}", where
            )
    elif low > _4_GIB_PFN or (low != last and last <= _4_GIB_PFN):
        raise InputError(
            f"max_low_pfn {low:#x}: where memory ends with page {last:#x}, that below 4 GiB does"
            " not end there",
            where,
        )


def _with_notes(machine: Machine) -> Machine:
    """Say of a kernel or initrd where no boot loader puts it that it lies there: what follows from
    that is no fault of an allocator.
    """
    source = machine.provenance
    notes = [note for note in _notes(machine) if note not in source.assumed]
    if not notes:
        return machine
    return attrs.evolve(machine, provenance=attrs.evolve(source, assumed=(*source.assumed, *notes)))


def _notes(machine: Machine) -> Iterator[str]:
    ram, kernel = machine.memory_map.ram(), machine.kernel
    if outside := next(ram.gaps(*kernel.span), None):
        yield (
            f"the kernel lies outside RAM at {outside[0]:#x}-{outside[1]:#x}, and is left there"
            " (Linux 3.9 and later add that range as RAM)"
        )
    if (end := kernel.span[1]) > machine.map_limit:
        yield (
            f"the kernel ends at {end:#x}, above the end of the direct map, {machine.map_limit:#x}"
        )
    if machine.initrd is None:
        return
    start, end = machine.initrd
    if outside := next(ram.gaps(start, end), None):
        yield f"the initrd lies outside RAM at {outside[0]:#x}-{outside[1]:#x}, and is left there"
    if RangeSet([machine.initrd]).overlaps(*kernel.span):
        yield f"the initrd at {start:#x}-{end:#x} and the kernel lie on each other"


def kernels_end(mode: PagingMode) -> int:
    """Return the address that every kernel of a paging mode ends below, its brk included."""
    return (4 * GIB if mode.is_32bit else 1 << mode.physical_bits) - ABOVE_KERNELS


def check_kernel(span: Span, memory: MemoryMap, mode: PagingMode, where: str) -> None:
    """Refuse a kernel that is too large, or lies where there is no memory or no address for it.
    Raises InputError.
    """
    if span[1] - span[0] > MAX_KERNEL_BYTES:
        raise InputError(f"the kernel at {span[0]:#x}-{span[1]:#x} is larger than 1 GiB", where)
    if span[1] > kernels_end(mode):
        raise InputError(
            f"the kernel at {span[0]:#x}-{span[1]:#x} lies above {kernels_end(mode):#x}, where"
            f" {mode.name} has no addresses for it",
            where,
        )
    check_place("the kernel", span, memory, where)


def check_place(what: str, span: Span, memory: MemoryMap, where: str) -> None:
    """Refuse what is empty or lies behind all that the map tells. Raises InputError."""
    end = memory.entries[-1].end
    if not span[0] < span[1] <= end:
        raise InputError(
            f"{what} at {span[0]:#x}-{span[1]:#x} does not lie in the memory map, which ends at"
            f" {end:#x}",
            where,
        )


def check_ram(memory: MemoryMap, where: str) -> None:
    """Refuse a map without RAM. Raises InputError."""
    if not memory.ram_pages():
        raise InputError("the memory map has no whole page of RAM", where)
