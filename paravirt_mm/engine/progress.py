"""How far a run has come. The engine changes it; plugins read it through `Boot`."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from paravirt_mm.engine.ledger import Ledger
from paravirt_mm.engine.memblock import Memblock
from paravirt_mm.engine.pages import PageRun
from paravirt_mm.engine.tables import BOOT_TREE, Batch, EntryCount, MapPlan, Tree
from paravirt_mm.machine.model import BootState, Machine
from paravirt_mm.machine.paging import PAGE_SHIFT
from paravirt_mm.machine.ranges import RangeSet


@attrs.define(eq=False)
class BatchLife:
    """What becomes of a batch: built, handed over to the platform, attached to the tree.

    A new root has no ``plan``. ``links`` are the entries that attach the batch; ``pinned`` holds
    the levels whose tables the platform was told of. What else becomes of it is in `Progress`.
    """

    batch: Batch
    plan: MapPlan | None = None
    links: tuple[EntryCount, ...] = ()
    pinned: frozenset[int] = frozenset()


@attrs.define
class Standing:
    """The numbers of a run.

    max_pfn_mapped
        The kernel's variable: one past the highest pfn mapped so far.
    brk_pages, brk_used
        Pages of brk set aside for tables, and how many of them are used.
    reservation
        Pages that the allocator has set aside and not used yet, in its order.
    tables_made
        Tables built since boot.
    """

    max_pfn_mapped: int
    brk_pages: int = 0
    brk_used: int = 0
    reservation: tuple[PageRun, ...] = ()
    tables_made: int = 0


class Progress:
    """The state of a run.

    memblock, tree, ledger
        RAM and reservations; the direct-map tree; which pages are read-only.
    reachable
        Bytes that the kernel can write now.
    tables
        Pfns that are page tables, boot tables included.
    next_index
        The index of the batch that will be built next.
    handed_over, attached
        Indexes of the batches of which that is true; `BOOT_TREE` stands for what exists since boot.
    pending
        Those that are not attached yet, in order.
    standing
        The numbers.
    """

    def __init__(self, machine: Machine, state: BootState) -> None:
        self.memblock = Memblock(machine.memory_map.ram_pages(), state.taken(machine))
        self.tree = Tree(machine.mode)
        for level, spans in state.tables.items():
            for span in spans:
                self.tree.adopt(level, *span)
        for span in state.direct_mapped:
            self.tree.adopt_mapping(*span)
        boot_tables = [(low >> PAGE_SHIFT, high >> PAGE_SHIFT) for low, high in state.boot_tables]
        self.tables, self.ledger = RangeSet(boot_tables), Ledger(boot_tables)
        self.reachable = RangeSet(state.mapped)
        self.next_index = 0
        self.handed_over, self.attached = {BOOT_TREE}, {BOOT_TREE}
        self.pending: list[BatchLife] = []
        self.standing = Standing(state.max_pfn_mapped)

    def waiting(self) -> Iterator[Batch]:
        """Yield the batches with tables that wait to be handed over or attached."""
        return (life.batch for life in self.pending if life.batch.count)

    def oldest_waiting(self) -> Batch | None:
        """Return the first of them."""
        for life in self.pending:
            if life.batch.count:
                return life.batch
        return None

    def take_reserved(self, run: PageRun) -> None:
        """Note that pages of the reservation are used now; the others stay in their order."""
        remaining: list[PageRun] = []
        for held in self.standing.reservation:
            left = RangeSet([held.pfns])
            left.discard(*run.pfns)
            pieces = [PageRun(low, high - low) for low, high in left]
            if held.step == -1:
                pieces = [piece.downward() for piece in reversed(pieces)]
            remaining += pieces
        self.standing.reservation = tuple(remaining)
