"""What a hook sees of a run: the machine, and how far the kernel has come. Plugins read it, only
the engine changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs

from paravirt_mm.engine.ledger import LedgerView
from paravirt_mm.engine.memblock import MemblockView
from paravirt_mm.engine.pages import PageRun
from paravirt_mm.engine.progress import Progress, Standing
from paravirt_mm.engine.split import Piece, merge_equal, promote_to_large, split_by_alignment
from paravirt_mm.engine.steps import Map, Promote
from paravirt_mm.engine.tables import Batch, TreeView
from paravirt_mm.machine.model import BootState, CpuFeatures, KernelImage, Machine, Span
from paravirt_mm.machine.paging import PAGE_SHIFT, PagingMode
from paravirt_mm.machine.ranges import Ranges, RangeSet, align_down, align_up


@attrs.frozen
class Promise:
    """What an allocator promises before its first step.

    ``direct_map`` is what the direct map will cover in the end (bytes, ascending, disjoint): no
    more and no less. ``brk_pages`` is how many pages of the brk that the kernel is linked with are
    set aside for tables; None: all (``pvmm_kernel_image`` says how much that is).
    """

    direct_map: tuple[Span, ...]
    brk_pages: int | None = None


class Boot:
    """The state of a run, as hooks see it: before the first step, or where ``progress`` says.

    Everything here is to be read. Addresses are bytes, ends exclusive, unless a name says pfn.

    machine, state
        What the run is about, and what existed before its first step.
    mode, kernel, features
        The paging mode; where the kernel lies on this platform; CPU features as it leaves them.
    largest_level
        Highest level whose entries may map pages (1: only 4 KiB pages).
    memblock, tree, ledger
        RAM and reservations; the direct-map tree as it stands; which pages are read-only.
    """

    __slots__ = (
        "_fillable",
        "_oldest_waiting",
        "_reachable",
        "_splits",
        "_standing",
        "_table_pages",
        "_waiting",
        "features",
        "kernel",
        "largest_level",
        "ledger",
        "machine",
        "memblock",
        "mode",
        "state",
        "tree",
    )

    machine: Machine
    state: BootState
    mode: PagingMode
    kernel: KernelImage
    features: CpuFeatures
    largest_level: int
    memblock: MemblockView
    tree: TreeView
    ledger: LedgerView
    _standing: Standing
    _waiting: Callable[[], Iterator[Batch]]
    _oldest_waiting: Callable[[], Batch | None]
    _reachable: Ranges
    _table_pages: Ranges
    _fillable: dict[int, Ranges]
    _splits: dict[tuple[int, int, Promote], tuple[Piece, ...]]

    def __init__(
        self, machine: Machine, state: BootState, progress: Progress | None = None
    ) -> None:
        now = progress or Progress(machine, state)
        for name, value in {
            "machine": machine,
            "state": state,
            "mode": machine.mode,
            "kernel": state.kernel_of(machine),
            "features": state.features,
            "largest_level": state.features.largest_level(machine.mode),
            "memblock": now.memblock.view(),
            "tree": now.tree.view(),
            "ledger": now.ledger.view(),
            "_standing": now.standing,
            "_waiting": now.waiting,
            "_oldest_waiting": now.oldest_waiting,
            "_reachable": now.reachable.view(),
            "_table_pages": now.tables.view(),
            "_fillable": {},
            "_splits": {},
        }.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"the state of a run is to be read: {name} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"the state of a run is to be read: {name} cannot be deleted")

    @property
    def max_pfn_mapped(self) -> int:
        """The kernel's variable: one past the highest pfn mapped so far."""
        return self._standing.max_pfn_mapped

    @property
    def brk_free(self) -> PageRun:
        """Brk pages set aside for tables that are still free, ascending."""
        now = self._standing
        first = self.kernel.brk_start >> PAGE_SHIFT
        return PageRun(first + now.brk_used, max(0, now.brk_pages - now.brk_used))

    @property
    def reservation(self) -> tuple[PageRun, ...]:
        """Pages set aside for tables and not used yet, in the order in which they were given."""
        return self._standing.reservation

    @property
    def waiting(self) -> tuple[Batch, ...]:
        """Batches that are built and wait to be handed over or attached."""
        return tuple(self._waiting())

    @property
    def oldest_waiting(self) -> Batch | None:
        """The first of the batches that wait."""
        return self._oldest_waiting()

    def is_reachable(self, start: int, end: int) -> bool:
        """Tell whether the kernel can write all of ``[start, end)`` now."""
        return self._reachable.covers(start, end)

    def reachable(self, start: int, end: int) -> Iterator[Span]:
        """Yield the parts of ``[start, end)`` that the kernel can write now, ascending."""
        return self._reachable.within(start, end)

    def free_reachable(self, start: int, end: int) -> Iterator[Span]:
        """Yield the free RAM of ``[start, end)`` that the kernel can write now, highest first."""
        return self.memblock.free_among(self._reachable, start, end)

    def table_pages(self, start: int, end: int) -> Iterator[Span]:
        """Yield the bytes of ``[start, end)`` whose pages are page tables, boot tables included."""
        for low, high in self._table_pages.within(start >> PAGE_SHIFT, -(-end >> PAGE_SHIFT)):
            yield low << PAGE_SHIFT, high << PAGE_SHIFT

    def reserved_pages(self, start: int, end: int) -> Iterator[Span]:
        """Yield the bytes of ``[start, end)`` that are set aside for tables and not used yet."""
        for run in self.reservation:
            low, high = run.span
            if max(low, start) < min(high, end):
                yield max(low, start), min(high, end)

    def split(self, step: Map) -> list[Piece]:
        """Return the pieces, by page size, in which the range of ``step`` will be mapped."""
        return list(self._pieces(step))

    def _pieces(self, step: Map) -> tuple[Piece, ...]:
        if step.pieces:
            return step.pieces
        # Neither RAM nor the CPU changes in the course of a run.
        key = step.start, step.end, step.promote
        pieces = self._splits.get(key)
        if pieces is None:
            pieces = self._splits[key] = tuple(self._split(step))
        return pieces

    def _split(self, step: Map) -> list[Piece]:
        largest = self.largest_level
        pieces = split_by_alignment(self.mode, step.start, step.end, largest)
        if largest == 1:  # small pages alone are one piece
            return pieces
        if step.promote is Promote.BEFORE_MERGE:
            pieces = self._promote(pieces, largest)
        pieces = merge_equal(pieces)
        if step.promote is Promote.AFTER_MERGE:
            pieces = self._promote(pieces, largest)
        return pieces

    def _promote(self, pieces: list[Piece], largest: int) -> list[Piece]:
        return promote_to_large(self.mode, pieces, largest, self.memblock, self.machine.map_limit)

    def fillable(self, step: Map) -> tuple[int, Ranges] | None:
        """Return where entries of ``step.skip_empty_level`` may be filled; None: everywhere."""
        level = step.skip_empty_level
        if not level or level > self.mode.root_level:
            return None
        if level not in self._fillable:
            span = self.mode.entry_span(level)
            self._fillable[level] = RangeSet(
                (align_down(low, span), align_up(high, span))
                for low, high in self.machine.memory_map.known()
            ).view()
        return level, self._fillable[level]

    def tables_needed(self, step: Map) -> int:
        """Return how many table pages ``step`` would need now."""
        return self.tree.tables_needed(self._pieces(step), self.fillable(step))

    @property
    def tables_made(self) -> int:
        """Tables built since boot."""
        return self._standing.tables_made
