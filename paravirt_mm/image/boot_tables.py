"""Where tables lie that exist since boot: the trace tells what they map, not which pages they are.

Three kinds occur:

- the static root (init_top_pgt, swapper_pg_dir) and tables that are part of the kernel image: a
  PAE kernel's L2 tables, and under Xen level3_ident_pgt and level2_ident_pgt, through which Linux
  grafts the domain builder's tables into its own tree;
- L1 tables that a 32-bit kernel's startup code builds behind its image;
- L1 tables of Xen's domain builder.

Where the platform knows the pages (`BootState.table_pages`), these are taken. Otherwise a memory
map says nothing about them, and they are given the last pages of the kernel image (its bss, which
no allocator touches), downward; where the image is too small, the lowest pages above 1 MiB that
nobody has. Source: arch/x86/kernel/head_32.S and head_64.S.
"""

from __future__ import annotations

from collections.abc import Iterator

from paravirt_mm.engine.pages import PageRun
from paravirt_mm.engine.tables import TableRun
from paravirt_mm.engine.trace import RunStarted
from paravirt_mm.errors import InputError
from paravirt_mm.machine.model import KernelImage, Machine
from paravirt_mm.machine.paging import GIB, ISA_END, PAGE_SHIFT, PAGE_SIZE
from paravirt_mm.machine.ranges import RangeSet, align_down, align_up


class NoRoom(InputError):
    """A machine of which no page is left for a table that exists since boot: none could boot it."""


def place_boot_tables(start: RunStarted, taken: RangeSet) -> Iterator[TableRun]:
    """Yield the tables that exist since boot, root first, with the pages that they are given.

    ``taken`` (bytes) is what must not be used where the kernel image is too small: everything
    reserved in the end. Raises `NoRoom` when the machine has none for them.
    """
    machine, state = start.machine, start.boot
    mode = machine.mode
    root = mode.root_level
    spans = {root: ((0, mode.table_span(root)),), **state.tables}
    pages = _static_pages(machine, state.kernel_of(machine), taken)
    for level, wanted in sorted(spans.items(), reverse=True):
        span = mode.table_span(level)
        known = state.table_pages.get(level)
        source = [PageRun(pfn, 1) for pfn in reversed(known)] if known is not None else pages
        for low, high in wanted:
            base = align_down(low, span)
            left = (align_up(high, span) - base) // span
            while left:
                run = _take(source, left, machine)
                yield TableRun(level, base, run.count, run.start, run.step)
                base += run.count * span
                left -= run.count


def _static_pages(machine: Machine, kernel: KernelImage, taken: RangeSet) -> list[PageRun]:
    """Return runs of pages for static tables, the next to use last."""
    image = RangeSet([(align_up(kernel.start, PAGE_SIZE), align_down(kernel.end, PAGE_SIZE))])
    image.discard(kernel.brk_start, kernel.brk_end)
    spare = machine.memory_map.ram_pages().difference(taken).difference(image)
    runs = [
        PageRun.of_span(align_up(low, PAGE_SIZE), align_down(high, PAGE_SIZE))
        for low, high in spare.within(ISA_END, 4 * GIB)
    ]
    runs = [run for run in reversed(runs) if run.count > 0]
    return runs + [
        PageRun((high >> PAGE_SHIFT) - 1, (high - low) >> PAGE_SHIFT, -1) for low, high in image
    ]


def _take(pages: list[PageRun], count: int, machine: Machine) -> PageRun:
    if not pages:
        raise NoRoom(f"machine {machine.name!r} has no page left for a table since boot")
    run = pages.pop()
    if run.count <= count:
        return run
    pages.append(run.tail(count))
    return run.head(count)
