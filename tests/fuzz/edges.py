"""Machines at the edge of what readers let through, and all that can be run on them.

Readers refuse what no machine can be (`paravirt_mm.sources.possible`); what they let through every
allocator and every backend of the package must answer for: ``ok``, ``panic``, ``rejected`` or a
finding about what it does, and never ``error``, which blames a plugin.
"""

from __future__ import annotations

from collections.abc import Iterator

from paravirt_mm.machine.e820 import E820Type, MemoryMap
from paravirt_mm.machine.model import CpuFeatures, KernelImage, Machine, Provenance, Span
from paravirt_mm.machine.paging import GIB, ISA_END, KIB, MIB, MODES, PAGE_SIZE, TIB, PagingMode
from paravirt_mm.machine.ranges import align_down, align_up
from paravirt_mm.machine.release import dotted
from paravirt_mm.run import Outcome, Run
from paravirt_mm.sources.generated import Choices, any_machine
from paravirt_mm_incremental.releases import BACKPORTS, CHANGES, BottomUp
from paravirt_mm_legacy_linear.releases import I386, X86_64, Calls, GoodEnd, Guess
from paravirt_mm_xen.domain.builders import RELEASES
from paravirt_mm_xen.domain.collisions import HANDLINGS

_LINEAR = sorted({change.since for change in (*X86_64, *I386)})
_INCREMENTAL = sorted({change.since for change in (*CHANGES, *BACKPORTS)})
_MOVABLE = [change.since for change in CHANGES if change.bottom_up is not BottomUp.NO]

ALLOCATORS: tuple[str, ...] = (
    "incremental",
    *[f"legacy_linear:kernel={dotted(since)}" for since in _LINEAR],
    *[f"legacy_linear:kernel=3.6,good_end={each}" for each in GoodEnd],
    *[f"legacy_linear:kernel=3.6,guess={each}" for each in Guess],
    *[f"legacy_linear:kernel=3.6,calls={each}" for each in Calls],
    "legacy_linear:fixmap_entries=0",
    *[f"incremental:kernel={dotted(since)}" for since in _INCREMENTAL],
    *[f"incremental:kernel={dotted(since)},movable_node=yes" for since in _MOVABLE],
    "incremental:kernel=6.1,kaslr=yes",
    "incremental:randomize_memory=no",
    *[f"incremental:brk_pages={pages}" for pages in (0, 1, 2, 512)],
    "incremental:variant=hpa",
    *[f"incremental:variant=hpa,brk_pages={pages}" for pages in (0, 1, 600)],
    "chunk_end",
    *[f"chunk_end:chunk_mib={size}" for size in (1, 64, 1024)],
)
BACKENDS: tuple[str, ...] = (
    "native",
    "native:ident_tables=yes",
    "xen",
    "xen:domain=domU",
    "xen:domain=shim",
    "xen:table_entries=store",
    "xen:p2m=inline",
    "xen:p2m=high",
    *[f"xen:kernel={dotted(one.since)}" for one in HANDLINGS],
    *[f"xen:domain=domU,kernel={release}" for release in ("2.6.27", "2.6.38", "3.7", "4.19")],
    *[f"xen:domain=domU,xen={dotted(one.since)}" for one in RELEASES],
    *[f"xen:xen={dotted(one.since)}" for one in RELEASES],
    *[f"faulty:of={of},fault=refuse" for of in ("native", "xen")],
    *[f"faulty:of={of},fault=take,step={step}" for of in ("native", "xen") for step in (1, 3)],
    "faulty:fault=take,size=0x40000000",
)


def pair(choose: Choices, machine: Machine) -> tuple[str, str]:
    """Return an allocator and a backend that can run on a machine in seconds."""
    kind = choose.one_of(("native", "xen", "faulty"))
    if machine.mode.name not in ("x86_64", "i386-pae"):
        kind = choose.one_of((kind, "native"))  # Xen has no such guests
    allocator = choose.one_of(ALLOCATORS)
    if allocator.startswith("chunk_end:") and machine.map_limit > _MANY_CHUNKS:
        allocator = "chunk_end"  # what is asked for to the letter takes as long as it takes
    return allocator, choose.one_of([spec for spec in BACKENDS if spec.startswith(kind)])


def excuse(run: Run) -> str:
    """Return why a run may break a rule, empty if it may not: what its machine says of itself does
    not go together (readers tell of it: see `Provenance.assumed`), or the release is at fault.
    """
    if not run.trace.begun:
        return ""
    if ("kernel", "3.9") in run.allocator.options and run.machine.features.gbpages:
        return "3.9 maps over pages of 1 GiB (docs/history.md)"
    machine = run.trace.start.machine
    kernel = run.trace.start.boot.kernel_of(machine)
    start, end = kernel.loaded
    if end > machine.map_limit:
        return "the kernel lies above the direct map"
    if not machine.memory_map.ram_pages().covers(
        align_down(start, PAGE_SIZE), align_up(end, PAGE_SIZE)
    ):
        return "the kernel lies outside RAM"
    ram_end = machine.memory_map.end_pfn(machine.mode.physical_end)
    if not machine.mode.is_32bit and machine.max_pfn < ram_end:
        return "max_pfn lies below the end of RAM"
    return ""


def unanswered(run: Run) -> str:
    """Return what is wrong about the end of a run, empty if nothing is."""
    match run.verdict.outcome:
        case Outcome.ERROR:
            return f"{run.verdict}\n{run.traceback}"
        case Outcome.VIOLATION if not excuse(run):
            return str(run.verdict)
    return ""


_MANY_CHUNKS = 16 * GIB
_NUDGES = (0, 0, 0, 0, PAGE_SIZE, -PAGE_SIZE, 1, -1, 512, 0x800)
_SIZES = (
    0, 1, PAGE_SIZE, 2 * PAGE_SIZE, 64 * KIB, 640 * KIB, MIB, 2 * MIB, 4 * MIB, 8 * MIB, 16 * MIB,
    30 * MIB, 64 * MIB, 512 * MIB, 896 * MIB, GIB, 3 * GIB, 4 * GIB, 5 * GIB, 64 * GIB, 512 * GIB,
    TIB, 64 * TIB, 1 << 52,
)  # fmt: skip


def edge_machine(choose: Choices) -> Machine:
    """Return a machine of which a third is odd; readers need not let it through."""
    mode = MODES[choose.one_of(("x86_64", "i386-pae", *MODES))]
    usual = any_machine(choose, mode, "edge")
    memory = _memory(choose, mode) if _odd(choose) else usual.memory_map
    return Machine(
        name="edge",
        memory_map=memory,
        mode=mode,
        features=CpuFeatures(*[choose.one_of((True, False)) for _ in range(3)]),
        kernel=_kernel(choose, memory, mode) if _odd(choose) else usual.kernel,
        reserved=tuple(_reserved(choose, memory, mode)) if _odd(choose) else usual.reserved,
        initrd=_span(choose, memory, mode) if _odd(choose) else usual.initrd,
        boot_mapped=_address(choose, memory, mode) if _odd(choose) else usual.boot_mapped,
        provenance=Provenance(source="edge"),
        max_pfn_hint=_hint(choose, memory, mode),
        max_low_pfn_hint=_hint(choose, memory, mode),
        host_map=choose.one_of((_memory(choose, mode), MemoryMap(()))) if _odd(choose) else None,
    )


def _odd(choose: Choices) -> bool:
    return choose.one_of((False, False, True))


def _address(choose: Choices, memory: MemoryMap | None, mode: PagingMode) -> int:
    """Return an address at which something ends or begins, or near it."""
    ends = [mode.physical_end, 1 << mode.physical_bits, mode.lowmem_limit or 4 * GIB]
    ends += [mode.table_span(level) for level in range(1, mode.root_level + 1)]
    if memory is not None:
        ends += [edge for entry in memory.entries[:8] for edge in (entry.start, entry.end)]
    place = choose.one_of((choose.one_of(_SIZES), choose.one_of(ends)))
    return max(0, place + choose.one_of(_NUDGES))


def _span(choose: Choices, memory: MemoryMap | None, mode: PagingMode) -> Span:
    start = _address(choose, memory, mode)
    end = choose.one_of((start + choose.one_of(_SIZES), _address(choose, memory, mode)))
    low, high = sorted((start, end))
    return choose.one_of(((low, high), (max(0, low - (high - low)), low)))


def _memory(choose: Choices, mode: PagingMode) -> MemoryMap:
    raw = []
    if choose.one_of((True, False)):
        raw = [(0, 640 * KIB, E820Type.RAM), (ISA_END, _address(choose, None, mode), E820Type.RAM)]
    for _ in range(choose.integer(0 if raw else 1, 5)):
        kind = choose.one_of((E820Type.RAM, E820Type.RAM, *E820Type))
        raw.append((*_span(choose, None, mode), kind))
    memory = MemoryMap.sanitise(raw)
    if not memory.ram_pages():
        page = align_down(choose.one_of((0, 0, mode.physical_end - 1, 4 * GIB)), PAGE_SIZE)
        memory = MemoryMap.sanitise([(page, page + PAGE_SIZE, E820Type.RAM)])
    return memory


def _kernel(choose: Choices, memory: MemoryMap, mode: PagingMode) -> KernelImage:
    start = _address(choose, memory, mode)
    end = start + choose.one_of((0, 1, PAGE_SIZE, 100, 14 * MIB, 14 * MIB + 5, GIB))
    if choose.one_of((True, False)):  # ends with the last address
        last = choose.one_of((memory.entries[-1].end, mode.physical_end, memory.ram().end))
        start, end = max(0, last - (end - start)), last
    brk = choose.one_of((end, align_up(end, PAGE_SIZE), end + choose.one_of(_SIZES[:8])))
    brk_end = brk + choose.one_of((0, 1, PAGE_SIZE, 64 * PAGE_SIZE, 64 * PAGE_SIZE + 7, 16 * MIB))
    linked = choose.one_of((None, None, brk_end + choose.one_of(_SIZES[:8])))
    return KernelImage(start, end, brk, brk_end, linked)


def _reserved(choose: Choices, memory: MemoryMap, mode: PagingMode) -> Iterator[Span]:
    if choose.integer(0, 9) == 9:
        yield 0, 1 << 64
    for _ in range(choose.integer(0, 4)):
        yield _span(choose, memory, mode)


def _hint(choose: Choices, memory: MemoryMap, mode: PagingMode) -> int | None:
    known = (memory.end_pfn(mode.physical_end), memory.end_pfn(4 * GIB), 4 * GIB // PAGE_SIZE)
    pages = choose.one_of((*known, _address(choose, memory, mode) // PAGE_SIZE))
    return (pages or 1) if _odd(choose) else None
