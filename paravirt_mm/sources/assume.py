"""What is taken for granted where a source does not say, each time with the words that admit it.

A firmware map alone does not tell where a kernel lies or what it has reserved. Every function here
returns what it assumed as sentences for `Provenance.assumed`.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from paravirt_mm.machine.e820 import E820Type, MemoryMap
from paravirt_mm.machine.model import (
    DEFAULT_KERNEL,
    LOW_RESERVED,
    KernelImage,
    Machine,
    Provenance,
    Span,
)
from paravirt_mm.machine.paging import ISA_END, KIB, MIB, PAGE_SIZE, X86_64, PagingMode
from paravirt_mm.machine.ranges import align_down, align_up
from paravirt_mm.machine.release import Version
from paravirt_mm.sources.possible import check_ram, checked, kernels_end

BIOS_END = 640 * KIB
"""RAM from here to 1 MiB is taken out of the map: option ROMs and the BIOS live there."""
EBDA_START = 0x9F000
"""Where conventional memory usually ends: firmware keeps the last KiB or page below 640 KiB."""
DEFAULT_KERNEL_BYTES = DEFAULT_KERNEL.end - DEFAULT_KERNEL.start
LARGEST_KERNEL = 64 * MIB
"""More than any distribution's kernel from text to bss takes."""
ASSUMED_BRK = DEFAULT_KERNEL.brk_end - DEFAULT_KERNEL.brk_start
"""Bytes of brk that early page tables may come from, where nothing says how many."""
_BRK_KIB = ASSUMED_BRK // KIB
WHOLE = "the memory map is whole (the log ends with it)"
"""Entries that a cut log lacks nothing tells of."""

_LOADED_HIGH = (2, 6, 31)
"""First release whose default CONFIG_PHYSICAL_START is 16 MiB."""
_RESERVES_LOW = (2, 6, 37)
"""First release with CONFIG_X86_RESERVE_LOW (64 KiB by default)."""
_ONLY_RESERVES_LOW = (3, 9)
"""First release in whose map that remains RAM (trim_low_memory_range)."""
_RESERVES_FIRST_MIB = (5, 13)
"""First release that reserves all of the first MiB, whatever the map says."""


TRIMMED_LOW = (PAGE_SIZE, LOW_RESERVED[1])
"""Where the memory that kernels trim off the beginning of their map ends, in bytes."""


def trimmed_low(release: Version | None) -> int:
    """Return that of a release: CONFIG_X86_RESERVE_LOW left the map again in 3.9 (setup_arch)."""
    takes_more = release is not None and _RESERVES_LOW <= release < _ONLY_RESERVES_LOW
    return TRIMMED_LOW[takes_more]


def standard_trimming(firmware: MemoryMap, low_end: int = TRIMMED_LOW[0]) -> tuple[MemoryMap, str]:
    """Apply to a firmware map what Linux does before it uses it (trim_bios_range, since 2.6.34)."""
    trimmed = firmware.with_range(0, low_end, E820Type.RAM, E820Type.RESERVED)
    trimmed = trimmed.with_range(BIOS_END, ISA_END, E820Type.RAM, None)
    first = "first page" if low_end == PAGE_SIZE else f"first {low_end // KIB} KiB"
    return trimmed, f"Linux's trimming of the map ({first} reserved, 640K-1M not RAM)"


_MAPS_BEGIN_BELOW = 64 * KIB
"""Firmware's first entry is that of conventional memory: a map that begins later is cut."""


def low_memory(memory: MemoryMap, end: int = EBDA_START) -> tuple[MemoryMap, str] | None:
    """Give a map whose head is lost its conventional memory back, if it has none of it; None where
    nothing is lost.
    """
    first = min((entry.start for entry in memory), default=0)
    if first < _MAPS_BEGIN_BELOW:
        return None
    if any(memory.ram().below(BIOS_END)):
        return memory, f"no memory below {first:#x}, where the map begins"
    end = min(end, first)
    entries = [(PAGE_SIZE, end, E820Type.RAM), *((e.start, e.end, e.type) for e in memory)]
    return (
        MemoryMap.sanitise(entries),
        f"RAM from 0x1000 to {end:#x} (the map's entries below 640K are missing)",
    )


def low_reservation(release: Version | None) -> tuple[Span, str] | None:
    """Return what that release keeps of low memory by default; None where it keeps nothing."""
    if release is not None and release < _RESERVES_LOW:
        return None
    if release is not None and release >= _RESERVES_FIRST_MIB:
        return (0, ISA_END), "first MiB reserved (5.13 and later always do)"
    return LOW_RESERVED, "first 64 KiB reserved (CONFIG_X86_RESERVE_LOW's default)"


@attrs.frozen
class KernelHints:
    """What a source says about the kernel's place, in bytes; None where it says nothing.

    size
        From text to bss.
    brk_start
        The first page of brk that became a page table.
    image
        The reserved region that holds the image, brk included where the kernel has extended it.
    linked
        From text to the linker's ``_end``, all of brk included.
    ceiling
        Where the kernel must end at the latest: the end of what the startup code has mapped.
    initrd
        What was loaded beside it.
    """

    size: int | None = None
    brk_start: int | None = None
    image: Span | None = None
    linked: Span | None = None
    ceiling: int | None = None
    initrd: Span | None = None


def place_kernel(
    memory: MemoryMap, mode: PagingMode, release: Version | None, hints: KernelHints
) -> tuple[KernelImage, tuple[str, ...]]:
    """Put the kernel where the hints say, the rest where its release is loaded by default."""
    if hints.image is not None and hints.brk_start is not None:
        start, end = hints.image
        if start <= hints.brk_start < end:
            brk_end = max(align_down(end, PAGE_SIZE), hints.brk_start + PAGE_SIZE)
            return KernelImage(start, hints.brk_start, hints.brk_start, brk_end), ()
    if hints.brk_start is not None:
        size = hints.size or DEFAULT_KERNEL_BYTES
        usual = DEFAULT_KERNEL.start
        if usual < hints.brk_start <= usual + LARGEST_KERNEL:
            start = usual
        else:
            # No kernel is loaded below 1 MiB.
            lowest = ISA_END if hints.brk_start > ISA_END else 0
            start = max(align_down(hints.brk_start - size, 2 * MIB), lowest)
        image = KernelImage(start, hints.brk_start, hints.brk_start, hints.brk_start + ASSUMED_BRK)
        return image, (f"kernel starts at {start:#x}", f"{_BRK_KIB} KiB of brk for tables")
    linked = hints.linked
    if hints.image is not None and linked is None:
        start, end = hints.image
        brk = align_up(end, PAGE_SIZE)
        if _is_free(memory, hints, brk, brk + ASSUMED_BRK):
            image = KernelImage(start, end, brk, brk + ASSUMED_BRK)
            return image, (f"{_BRK_KIB} KiB of brk for tables, after the kernel",)
        linked = hints.image
    if linked is not None:
        start, end = linked
        brk = max(align_down(end, PAGE_SIZE) - ASSUMED_BRK, align_up(start, PAGE_SIZE))
        image = KernelImage(start, brk, brk, align_up(end, PAGE_SIZE))
        return image, (f"the kernel's last {_BRK_KIB} KiB are brk for tables",)
    start, size = _default_place(memory, mode, release, hints)
    end = align_up(start + size, PAGE_SIZE)
    image = KernelImage(start, end, end, end + ASSUMED_BRK)
    return image, (f"kernel at {start:#x}-{end:#x}, {_BRK_KIB} KiB of brk after it",)


def _is_free(memory: MemoryMap, hints: KernelHints, start: int, end: int) -> bool:
    """Tell whether all of a range is RAM in which no initrd lies."""
    free = memory.ram()
    if hints.initrd is not None:
        free.discard(*hints.initrd)
    return free.covers(start, end)


def _default_place(
    memory: MemoryMap, mode: PagingMode, release: Version | None, hints: KernelHints
) -> tuple[int, int]:
    size = hints.size or DEFAULT_KERNEL_BYTES
    start = DEFAULT_KERNEL.start
    if release is not None and release < _LOADED_HIGH:
        start = ISA_END if mode.is_32bit else 2 * MIB
        size = hints.size or 6 * MIB
    ceiling = hints.ceiling
    if mode.is_32bit and ceiling is not None and start + size + ASSUMED_BRK > ceiling:
        # i386 startup code maps little more than the kernel: an image at 16 MiB shows in its end.
        start = start if ceiling > start + 2 * MIB else ISA_END
        size = max(min(size, ceiling - MIB - ASSUMED_BRK - start), PAGE_SIZE)
    ram = memory.ram_pages()
    if ram.covers(start, start + size + ASSUMED_BRK):
        return start, size
    # Too small, or a hole there: the lowest place above 1 MiB with room; a smaller kernel at need.
    while size >= PAGE_SIZE:
        for low, high in ram.within(ISA_END, min(ram.end, kernels_end(mode))):
            place = align_up(low, min(2 * MIB, align_up(size, PAGE_SIZE)))
            if place + size + ASSUMED_BRK <= high:
                return place, size
        size //= 2
    return ram.first, PAGE_SIZE


def machine_from_map(
    name: str,
    source: str,
    title: str,
    firmware: MemoryMap,
    image: Span | None = None,
    linked: Span | None = None,
    assumed: Sequence[str] = (),
) -> Machine:
    """Return a 64-bit machine of which little more than the firmware's map is known.

    ``image`` is where its kernel lies, ``linked`` the same with its brk; ``assumed`` is what was
    assumed to read the map, and told first. Raises InputError where the map has no RAM.
    """
    memory, trimming = standard_trimming(firmware)
    check_ram(memory, source)
    kernel, placed = place_kernel(memory, X86_64, None, KernelHints(image=image, linked=linked))
    sentences = [*assumed, "x86_64, no 1 GiB pages", trimming, *placed, "no initrd"]
    reserved: tuple[Span, ...] = ()
    if low := low_reservation(None):
        reserved = (low[0],)
        sentences.append(low[1])
    machine = Machine(
        name=name,
        memory_map=memory,
        kernel=kernel,
        reserved=reserved,
        provenance=Provenance(source, title, None, tuple(sentences)),
    )
    return checked(machine, source)
