"""How far a run has come. The engine changes it; plugins read it through `Boot`."""

from __future__ import annotations

from paravirt_mm.engine.ledger import Ledger
from paravirt_mm.engine.memblock import Memblock
from paravirt_mm.engine.pages import PageRun
from paravirt_mm.engine.tables import Batch, Tree
from paravirt_mm.machine.model import BootState, Machine
from paravirt_mm.machine.paging import PAGE_SHIFT
from paravirt_mm.machine.ranges import RangeSet


class Progress:
    """The state of a run.

    memblock, tree, ledger
        RAM and reservations; the direct-map tree; which pages are read-only.
    reachable
        Bytes that the kernel can write now.
    tables
        Pfns that are page tables, boot tables included.
    reservation
        Pages that the allocator has set aside and not used yet, in its order.
    brk_pages, brk_used
        Pages of brk set aside for tables, and how many of them are used.
    batches, waiting
        Everything built, in order; and of that what waits to be handed over or attached.
    max_pfn_mapped
        The kernel's variable: one past the highest pfn mapped so far.
    """

    def __init__(self, machine: Machine, state: BootState) -> None:
        self.memblock = Memblock(machine.memory_map.ram_pages(), state.taken(machine))
        self.tree = Tree(machine.mode)
        for level, spans in state.tables.items():
            for span in spans:
                self.tree.adopt(level, *span)
        for span in state.direct_mapped:
            self.tree.adopt_mapping(*span)
        self.ledger = Ledger()
        self.tables = RangeSet()
        for start, end in state.boot_tables:
            low, high = start >> PAGE_SHIFT, end >> PAGE_SHIFT
            self.tables.add(low, high)
            self.ledger.start_readonly(low, high)
        self.reachable = RangeSet(state.mapped)
        self.reservation: list[PageRun] = []
        self.brk_pages = 0
        self.brk_used = 0
        self.batches: list[Batch] = []
        self.waiting: list[Batch] = []
        self.max_pfn_mapped = state.max_pfn_mapped

    def take_reserved(self, run: PageRun) -> None:
        """Note that pages of the reservation are used now."""
        remaining: list[PageRun] = []
        for held in self.reservation:
            if held.step == run.step and held.start == run.start and held.count >= run.count:
                remaining.append(held.tail(run.count))
            else:
                left = RangeSet([(held.low, held.high)])
                left.discard(run.low, run.high)
                remaining.extend(PageRun(low, high - low) for low, high in left)
        self.reservation = [held for held in remaining if held.count]
