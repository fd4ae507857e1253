"""From what a kernel printed to the machine that it ran on.

`paravirt_mm.sources.bootlog.linux` tells which of the printed maps counts, and what cut logs get.
What a function has to assume it says in ``assumed``.
"""

from __future__ import annotations

import attrs

from paravirt_mm.errors import InputError
from paravirt_mm.machine.e820 import E820Type, MemoryMap, last_pfns
from paravirt_mm.machine.model import CpuFeatures, Machine, Provenance, Span
from paravirt_mm.machine.paging import (
    GIB,
    I386,
    I386_PAE,
    ISA_END,
    MIB,
    PAGE_SHIFT,
    X86_64,
    X86_64_LA57,
    PagingMode,
)
from paravirt_mm.machine.ranges import RangeSet, align_up
from paravirt_mm.machine.release import Version, leading_version
from paravirt_mm.sources import assume
from paravirt_mm.sources.bootlog.facts import (
    BrkTable,
    DomainKernel,
    LastPfn,
    MappedRange,
    PageRange,
    Place,
    TableBlock,
    of_kind,
)
from paravirt_mm.sources.bootlog.printed import Printed, PrintedMap
from paravirt_mm.sources.possible import check_kernel, check_ram, checked

MAX_CHANGE_WORK = 1 << 25
"""Limit on map entries times map changes."""

_MODE_BY_MAX_ARCH_PFN = {
    0x100000: I386,
    0x1000000: I386_PAE,
    0x3FFFFFFFF: X86_64,  # up to 2.6.28
    0x400000000: X86_64,
    0x10000000000: X86_64_LA57,
}
_BOOT_MAPPED_64BIT = 512 * MIB
_FOUR_GIB_PFN = (4 * GIB) >> PAGE_SHIFT


def reconstruct(printed: Printed, name: str, source: str) -> tuple[Machine, tuple[Span, ...]]:
    """Return the machine, and RAM of it that the log does not show (`BootLog.made_up`).

    Raises InputError where the map has no RAM, changes without end or contradicts the rest.
    """
    assumed = list(printed.assumed)
    shown, kept = _effective_map(printed, assumed)
    release = leading_version(printed.release) or None
    memory = _trimmed(printed, shown, release, assumed)
    memory, made_up = _with_head(printed, memory, assumed)
    if printed.ends_in_map:
        assumed.append(assume.WHOLE)
    check_ram(memory, printed.source)
    mode = _mode(printed, assumed)
    taken = _reservations(printed)
    taken.update(kept)
    if printed.trampoline is not None:
        taken.add(*printed.trampoline)
    hints = _kernel_hints(printed, taken)
    if hints.image is not None:
        check_kernel(hints.image, memory, mode, printed.source)
    kernel, sentences = assume.place_kernel(memory, mode, release, hints)
    assumed.extend(sentences)
    _reserve_low(memory, release, taken, assumed)
    if printed.initrd is None:
        assumed.append("no initrd")
    machine = Machine(
        name=name,
        memory_map=memory,
        mode=mode,
        features=_features(printed, mode, assumed),
        kernel=kernel,
        reserved=tuple(taken),
        initrd=printed.initrd,
        boot_mapped=_boot_mapped(printed, mode, kernel.span[1], assumed),
    )
    doubts: list[str] = []  # told first: of a long list the head is shown
    max_pfn, max_low_pfn = _hints(printed, machine, release, doubts)
    machine = attrs.evolve(machine, max_pfn_hint=max_pfn, max_low_pfn_hint=max_low_pfn)
    doubts += [*_miscounted(printed, machine, shown), *printed.xen.miscounted()]
    provenance = Provenance(source, "", printed.release, (*doubts, *assumed))
    machine = attrs.evolve(machine, provenance=provenance)
    return checked(machine, printed.source), made_up


def _reservations(printed: Printed) -> RangeSet:
    """Return what was taken and not given back before the direct map was built."""
    taken = RangeSet()
    done = 0
    for count, span in printed.freed:
        taken.update(printed.reserved[done:count])
        taken.discard(*span)
        done = count
    taken.update(printed.reserved[done:])
    return taken


# -- the memory map --------------------------------------------------------------------------------


def _effective_map(printed: Printed, assumed: list[str]) -> tuple[MemoryMap, list[Span]]:
    """Return the map that was in force, and RAM that was kept from allocation after it was."""
    memory = MemoryMap(())
    kept: list[Span] = []
    for shown in printed.maps:
        if shown.is_late:
            kept += memory.ram().difference(shown.sanitised.ram())
        else:
            memory = _shown_map(shown, memory, printed.mixed, assumed)
        if len(memory) * len(shown.changes) > MAX_CHANGE_WORK:
            raise InputError(
                f"{len(shown.changes)} changes of a memory map with {len(memory)} entries"
                " are more than any kernel makes",
                printed.source,
            )
        for change in shown.changes:
            if printed.is_late(change):
                if change.new is not None:
                    kept.append(change.span)
                continue
            olds = [change.old] if change.old is not None else {entry.type for entry in memory}
            for old in olds:
                memory = memory.with_range(*change.span, old, change.new)
            if change.hole is not None:
                entries = [(entry.start, entry.end, entry.type) for entry in memory]
                memory = MemoryMap.sanitise([*entries, (*change.span, change.hole)])
    return memory, kept


def _trimmed(
    printed: Printed, memory: MemoryMap, release: Version | None, assumed: list[str]
) -> MemoryMap:
    """Return the map with what Linux trims off a map, unless the log shows how it did: as its
    release does, or as what the kernel counted shows (distributions had a later release's way).
    """
    *_, last = (shown for shown in printed.maps if not shown.is_late)
    if last.label == "modified" or not all(map(printed.is_late, last.changes)):
        return memory
    ends = dict.fromkeys((assume.trimmed_low(release), *assume.TRIMMED_LOW))
    trimmings = [assume.standard_trimming(memory, end) for end in ends]
    counted = printed.counted_ram
    fitting = (one for one in trimmings if counted and counted.agrees(one[0].ram_pages().total))
    memory, sentence = next(fitting, trimmings[0])
    assumed.append(sentence)
    return memory


def _shown_map(shown: PrintedMap, before: MemoryMap, mixed: bool, assumed: list[str]) -> MemoryMap:
    """Return one map as printed; where its head is cut off, with the head of the one before."""
    entries = list(shown.entries)
    if mixed and shown.restart is not None:
        entries = entries[: shown.restart]
        assumed.append("two boots are mixed in the log: the first memory map counts")
    first = min(start for start, _, _ in entries)
    if len(before) and first > ISA_END:
        assumed.append(f"map below {first:#x} as in the map printed before it")
        entries += [(e.start, min(e.end, first), e.type) for e in before]
    return MemoryMap.sanitise(entries)


def _with_head(
    printed: Printed, memory: MemoryMap, assumed: list[str]
) -> tuple[MemoryMap, tuple[Span, ...]]:
    """Give a map whose head is cut off the RAM that must have been there; say which that is."""
    first = min((entry.start for entry in memory), default=0)
    lost: list[Span] = []
    if first > ISA_END:
        mapped = RangeSet(fact.span for fact in of_kind(printed.facts, MappedRange) if fact.span)
        if not mapped or of_kind(printed.facts, TableBlock):
            # The linear allocator maps across holes: its ranges do not show where RAM is.
            mapped = RangeSet([(ISA_END, first)])
        lost = list(mapped.within(ISA_END, first))
        shown = ", ".join(f"{start:#x}-{end:#x}" for start, end in lost[:8])
        assumed.append(f"RAM {shown} (the map's head is missing from the log)")
        known = [(entry.start, entry.end, entry.type) for entry in memory]
        lost_ram = [(start, end, E820Type.RAM) for start, end in lost]
        memory = MemoryMap.sanitise([*known, *lost_ram])
    low_end = printed.trampoline[1] if printed.trampoline else assume.EBDA_START
    if restored := assume.low_memory(memory, low_end):
        memory, sentence = restored
        assumed.append(sentence)
    return memory, tuple(lost)


# -- CPU and kernel --------------------------------------------------------------------------------


def _mode(printed: Printed, assumed: list[str]) -> PagingMode:
    mode = _printed_mode(printed) or _hypervisors_mode(printed)
    if mode is not None:
        return mode
    if _is_64bit(printed):
        if printed.virtual_digits is None:
            assumed.append("x86_64 (nothing in the log says 32 bits)")
        return X86_64
    return _mode_of_32bit(printed, assumed)


def _printed_mode(printed: Printed) -> PagingMode | None:
    """Return the mode that the end of what it can address tells."""
    for last in of_kind(printed.facts, LastPfn):
        if last.max_arch_pfn in _MODE_BY_MAX_ARCH_PFN:
            return _MODE_BY_MAX_ARCH_PFN[last.max_arch_pfn]
    return I386 if printed.non_pae else None


def _hypervisors_mode(printed: Printed) -> PagingMode | None:
    """Return the mode of the kernel that the hypervisor says it has built a domain for."""
    kernels = of_kind(printed.xen.facts, DomainKernel)
    places = [f for f in of_kind(printed.xen.facts, Place) if f.section == "virtual"]
    if not (kernels or places):
        return None
    wide = any(kernel.bits == 64 for kernel in kernels) or any(f.end >> 32 for f in places)
    return X86_64 if wide else I386_PAE


def _is_64bit(printed: Printed) -> bool:
    # 64-bit startup code maps 512 MiB, 32-bit code little more than the kernel.
    mapped_little = (printed.boot_mapped or _BOOT_MAPPED_64BIT) < _BOOT_MAPPED_64BIT
    return not (printed.lowmem_lines or printed.virtual_digits == 8 or mapped_little)


def _mode_of_32bit(printed: Printed, assumed: list[str]) -> PagingMode:
    release = (printed.release or "").lower()
    if printed.nx or "pae" in release or "bigmem" in release:
        return I386_PAE
    large = [f for f in of_kind(printed.facts, PageRange) if f.page != "4k"]
    if not large:
        assumed.append("no PAE (nothing in the log says so)")
        return I386
    # Without PAE large pages are 4M, though the kernel prints 2M for them.
    by_4m = all(f.start % (4 * MIB) == 0 and f.end % (4 * MIB) == 0 for f in large)
    return I386 if by_4m else I386_PAE


def _features(printed: Printed, mode: PagingMode, assumed: list[str]) -> CpuFeatures:
    """Return the features in use: a kernel that splits everything into 4k has no large pages.

    Xen hides large pages from its guests: below it a log does not tell what the CPU has.
    """
    pages = of_kind(printed.facts, PageRange)
    large = mode.entry_span(2)
    has_room = any(align_up(page.start, large) + large <= page.end for page in pages)
    gbpages = printed.gbpages or any(page.page == "1G" for page in pages)
    if printed.on_xen:
        assumed.append("large pages, none of 1 GiB (Xen hides what the CPU has)")
    elif 3 in mode.large_levels and not (printed.mapping or gbpages):
        assumed.append("no 1 GiB pages (nothing in the log says so)")
    return CpuFeatures(
        pse=printed.on_xen or not has_room or any(page.page != "4k" for page in pages),
        gbpages=gbpages,
        nx=mode.has_nx and printed.nx is not False,
    )


def _kernel_hints(printed: Printed, taken: RangeSet) -> assume.KernelHints:
    brk = min((table.start for table in of_kind(printed.facts, BrkTable)), default=None)
    image = printed.kernel_image
    if kernels := of_kind(printed.xen.facts, DomainKernel):
        linked = (kernels[-1].start, kernels[-1].end)
        return assume.KernelHints(printed.kernel_bytes, brk, linked, linked, printed.boot_mapped)
    if image is None and brk is not None:
        image = next(((start, end) for start, end in taken if start <= brk < end), None)
    return assume.KernelHints(
        printed.kernel_bytes, brk, image, None, printed.boot_mapped, printed.initrd
    )


def _boot_mapped(printed: Printed, mode: PagingMode, kernel_end: int, assumed: list[str]) -> int:
    if printed.boot_mapped is not None:
        return printed.boot_mapped
    mapped = _BOOT_MAPPED_64BIT
    if mode.is_32bit:
        mapped = align_up(kernel_end + MIB, mode.entry_span(2))
    assumed.append(f"startup code maps up to {mapped:#x}")
    return mapped


def _reserve_low(
    memory: MemoryMap, release: Version | None, taken: RangeSet, assumed: list[str]
) -> None:
    if low := assume.low_reservation(release):
        span, sentence = low
        if not taken.covers(*span):
            assumed.append(sentence)
            taken.add(*span)
    if memory.ram().overlaps(assume.EBDA_START, ISA_END):
        assumed.append("0x9f000-1M reserved for the BIOS")
        taken.add(assume.EBDA_START, ISA_END)


# -- max_pfn and max_low_pfn -----------------------------------------------------------------------


def _hints(
    printed: Printed, machine: Machine, release: Version | None, doubts: list[str]
) -> tuple[int | None, int | None]:
    """Return max_pfn and max_low_pfn as printed, where the map leads to another number."""
    pfns = [
        last.pfn for last in of_kind(printed.facts, LastPfn) if last.line > printed.user_map_from
    ]
    high = [pfn for pfn in pfns if pfn > _FOUR_GIB_PFN]
    low = [pfn for pfn in pfns if pfn <= _FOUR_GIB_PFN]
    max_pfn = max_low_pfn = None
    if machine.mode.is_32bit:
        max_pfn, max_low_pfn = _last(pfns), _lowmem_end(printed)
    elif high or machine.max_pfn > _FOUR_GIB_PFN:
        max_pfn, max_low_pfn = _last(high), _last(low)
    else:
        max_pfn = _last(low)
    of_all, of_low = last_pfns(machine.memory_map, machine.mode.physical_bits, release or ())
    if max_pfn in {machine.max_pfn, of_all}:
        max_pfn = None
    if max_pfn is not None:
        doubts.append(f"max_pfn {max_pfn:#x} as printed; the map says {machine.max_pfn:#x}")
        machine = attrs.evolve(machine, max_pfn_hint=max_pfn)
    if max_low_pfn in {machine.max_low_pfn, of_low}:
        max_low_pfn = None
    if max_low_pfn is not None and not machine.mode.is_32bit:  # there vmalloc= and such decide
        said = f"max_low_pfn {max_low_pfn:#x} as printed; the map says {machine.max_low_pfn:#x}"
        doubts.append(said)
    return max_pfn, max_low_pfn


def _miscounted(printed: Printed, machine: Machine, shown: MemoryMap) -> list[str]:
    """Say so where the kernel has counted other RAM than its map has: a line of it may be lost.

    ``shown`` is the map before anything was assumed to be trimmed off: up to 2.6.33 nothing was.
    """
    maps = (machine.memory_map, shown)
    sizes = [memory.ram_pages().total_below(machine.max_pfn << PAGE_SHIFT) for memory in maps]
    counted = printed.counted_ram
    if counted is None or any(map(counted.agrees, sizes)):
        return []
    return [counted.doubt("the map", sizes[0], "the kernel")]


def _last(pfns: list[int]) -> int | None:
    return pfns[-1] if pfns else None


def _lowmem_end(printed: Printed) -> int | None:
    """Return where a 32-bit kernel printed that low memory ends."""
    if printed.low_ram_end:
        return printed.low_ram_end >> PAGE_SHIFT
    ends = [fact.span[1] for fact in of_kind(printed.facts, MappedRange) if fact.span]
    ends = ends or [fact.up_to for fact in of_kind(printed.facts, TableBlock)]
    return max(ends) >> PAGE_SHIFT if ends else None
