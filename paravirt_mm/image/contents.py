"""The bytes of every table page of a run, made on demand, a chunk of pages at a time.

An `Image` is derived from a finished trace alone: which tables there are (runs of pages), what
their entries refer to, and with which bits. It keeps runs only; entries exist in the chunk that is
being made.

What is in the image
    The tree that the allocator built, with its root. Under a new root the boot tables are no
    longer part of it; otherwise tables that exist since boot are included (see `boot_tables` for
    where they lie). The kernel's other mappings (its text at the top of the address space,
    fixmaps, vmalloc) are not the direct map, and are absent.

Which bits
    Those that the kernel writes. What Xen makes of them when it validates a table (USER in every
    entry of a 64-bit guest) is not applied. A typed platform has no global pages, and pages that
    are tables are mapped without RW. 32-bit kernels map their text executable; as a machine does
    not say where text ends, all of the kernel image is.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

import attrs
import numpy as np
import numpy.typing as npt

from paravirt_mm.engine.answers import EntryKind
from paravirt_mm.engine.pages import PageRun
from paravirt_mm.engine.tables import BOOT_TREE, Batch, TableRun
from paravirt_mm.engine.trace import (
    EntriesWritten,
    MadeReadonly,
    MadeWritable,
    RangeMapped,
    RunFinished,
    TablesAllocated,
    Trace,
)
from paravirt_mm.errors import InputError
from paravirt_mm.image.boot_tables import place_boot_tables
from paravirt_mm.image.entries import (
    DOMAIN_BUILDER_LEAF,
    DOMAIN_BUILDER_LEAF_64,
    FORMATS,
    NX,
    RW,
    EntryFormat,
)
from paravirt_mm.machine.paging import PAGE_SHIFT, PAGE_SIZE
from paravirt_mm.machine.ranges import RangeMap, RangeSet, align_down, align_up

Entries = npt.NDArray[np.unsignedinteger]
"""Entries of some tables: one row a table."""
Translate = Callable[[npt.NDArray[np.uint64]], npt.NDArray[np.uint64]]
"""From frame numbers as the guest counts them (pfn) to those that go into entries (mfn)."""

CHUNK_PAGES = 64
"""Pages made at once: entries and their template stay in a CPU's second-level cache."""


@attrs.frozen(eq=False)
class TableColumns:
    """Runs of tables as columns, sorted by pfn.

    The tables of run *i* are the ``count`` pages from ``pfn`` upward; their spans lie side by side
    from ``base``, ascending with the pages, or descending where ``down`` is set. ``owner`` is the
    batch (-1: since boot).
    """

    level: npt.NDArray[np.int64]
    base: npt.NDArray[np.int64]
    count: npt.NDArray[np.int64]
    pfn: npt.NDArray[np.int64]
    down: npt.NDArray[np.bool_]
    owner: npt.NDArray[np.int64]

    @classmethod
    def of(cls, runs: Iterable[tuple[int, TableRun]]) -> TableColumns:
        """Collect ``(owner, run)`` pairs."""
        rows = [(r.level, r.base, r.count, r.pfn, r.step, owner) for owner, r in runs]
        level, base, count, pfn, step, owner = np.array(rows, dtype=np.int64).T
        down = step < 0
        first = np.where(down, pfn - count + 1, pfn)
        order = np.argsort(first, kind="stable")
        return cls(level[order], base[order], count[order], first[order], down[order], owner[order])

    def __len__(self) -> int:
        return len(self.pfn)


@attrs.frozen
class _Children:
    """Runs of tables of one level by ascending base, as the level above refers to them."""

    bases: list[int]
    ends: list[int]
    rows: list[list[int]]
    """First pfn, count, down (0 or 1), owner."""


class Image:
    """Physical memory as far as it consists of the table pages of one run."""

    def __init__(
        self,
        trace: Trace,
        translate: Translate | None = None,
        direct_map_base: int | None = None,
    ) -> None:
        """Read a trace.

        ``translate`` gives the frame numbers that entries hold (default: pfn), ``direct_map_base``
        the virtual address of physical 0, if it is not the machine's: a 4-level Linux has it
        at 0xffff888000000000 since 4.20, and elsewhere with KASLR. Raises `InputError` for a trace
        without a start, a machine without room for static tables, or a base that no table starts
        at.
        """
        if not trace.begun:
            raise InputError("the run failed before its first step: there are no tables")
        self.start = trace.start
        self.mode = self.start.machine.mode
        self.format: EntryFormat = FORMATS[self.mode.name]
        self._translate = translate
        self.direct_map_base = (
            self.start.machine.direct_map_base if direct_map_base is None else direct_map_base
        )
        if self.direct_map_base % self.mode.table_span(self.mode.root_level - 1):
            raise InputError(
                f"direct map at {self.direct_map_base:#x}: no entry of the root starts there"
            )
        self._leaves: dict[int, RangeMap[int]] = {}
        self._follow(trace)
        self._links = {
            (event.batch, event.level, event.owner)
            for event in trace.of(EntriesWritten)
            if event.kind is EntryKind.TABLE
        }
        self.tables = TableColumns.of(self._find_tables(trace))
        self._children = self._by_base()
        self._check_fit()

    @property
    def root(self) -> int:
        """Physical address of the root table, in bytes: what CR3 holds."""
        (row,) = np.flatnonzero(self.tables.level == self.mode.root_level)
        return int(self.tables.pfn[row]) << PAGE_SHIFT

    @property
    def size(self) -> int:
        """Bytes of all table pages."""
        return int(self.tables.count.sum()) << PAGE_SHIFT

    def extents(self) -> list[tuple[int, int]]:
        """Return the maximal runs of table pages, in bytes, ascending."""
        first, last = self.tables.pfn, self.tables.pfn + self.tables.count
        breaks = np.flatnonzero(first[1:] != last[:-1])
        starts = first[np.concatenate(([0], breaks + 1))]
        ends = last[np.concatenate((breaks, [len(last) - 1]))]
        return [
            (start << PAGE_SHIFT, end << PAGE_SHIFT)
            for start, end in np.column_stack((starts, ends)).tolist()
        ]

    def chunks(self, pages: int = CHUNK_PAGES) -> Iterator[tuple[int, Entries]]:
        """Yield ``(address, entries)`` of all table pages by ascending address, at most ``pages``
        at once.

        ``entries`` has one row a page and is valid until the next chunk is asked for: it is one
        buffer, used again.
        """
        buffer = np.empty((pages, self.format.page_entries), dtype=self.format.dtype)
        for row, count in enumerate(self.tables.count.tolist()):
            for skip in range(0, count, pages):
                part = buffer[: min(pages, count - skip)]
                self._fill(part, row, skip)
                yield (int(self.tables.pfn[row]) + skip) << PAGE_SHIFT, part

    def read(self, address: int, size: int) -> bytes | None:
        """Return ``size`` bytes of physical memory, or None where any of them is no table page.

        Both must be multiples of 4096. With this an `Image` is memory that the walker can read.
        """
        pfn, count = address >> PAGE_SHIFT, size >> PAGE_SHIFT
        result = np.empty((count, self.format.page_entries), dtype=self.format.dtype)
        done = 0
        while done < count:
            row = int(np.searchsorted(self.tables.pfn, pfn + done, side="right")) - 1
            if row < 0:
                return None
            skip = pfn + done - int(self.tables.pfn[row])
            have = int(self.tables.count[row]) - skip
            if have <= 0:
                return None
            part = result[done : done + have]
            self._fill(part, row, skip)
            done += len(part)
        return result.tobytes()

    # -- what the trace says ------------------------------------------------------------------

    def _follow(self, trace: Trace) -> None:
        """Follow the events: which leaf entries there are in the end, and with which bits."""
        state = self.start.boot
        self._forget_leaves()
        flags = DOMAIN_BUILDER_LEAF if self.mode.is_32bit else DOMAIN_BUILDER_LEAF_64
        for low, high in state.direct_mapped:
            self._leaves[1].set(low, high, flags)
        for low, high in state.boot_tables:
            self._set_writable(low, high, writable=False)
        for event in trace:
            if isinstance(event, TablesAllocated):
                self._make_way(event.batch)
            elif isinstance(event, RangeMapped):
                self._map_range(event)
            elif isinstance(event, MadeReadonly):
                for run in event.batch.runs:
                    self._set_writable(*run.span, writable=False)
            elif isinstance(event, MadeWritable):
                for run in event.pages:
                    self._set_writable(*run.span, writable=True)

    def _make_way(self, batch: Batch) -> None:
        """A table where a large page was: its entry refers to the table from now on."""
        if self.mode.root_level in batch.spans:
            self._forget_leaves()
        for level, spans in batch.spans.items():
            if level + 1 in self._leaves:
                for low, high in spans:
                    self._leaves[level + 1].clear(low, high)

    def _forget_leaves(self) -> None:
        self._leaves = {level: RangeMap() for level in (1, *self.mode.large_levels)}

    def _find_tables(self, trace: Trace) -> Iterator[tuple[int, TableRun]]:
        """Yield the tree's tables with their owners: all since the last new root, or since boot."""
        batches = [event.batch for event in trace.of(TablesAllocated)]
        roots = [n for n, batch in enumerate(batches) if self.mode.root_level in batch.spans]
        for batch in batches[roots[-1] if roots else 0 :]:
            for run in batch.walk_order():
                yield batch.index, run
        if roots:
            return
        for placed in place_boot_tables(self.start, self._taken(trace, batches)):
            for run in self._still_used(placed):
                if self.start.boot.typed:
                    pages = PageRun(run.pfn, run.count, run.step)
                    self._set_writable(*pages.span, writable=False)
                yield BOOT_TREE, run

    def _taken(self, trace: Trace, batches: list[Batch]) -> RangeSet:
        """Return where no static table may be placed, in bytes."""
        taken = self.start.boot.taken(self.start.machine)
        taken.update(self.start.boot.boot_tables)
        for event in trace.of(RunFinished):
            taken.update(event.reserved)
        taken.update(run.span for batch in batches for run in batch.runs)
        return taken

    def _still_used(self, run: TableRun) -> Iterator[TableRun]:
        """Yield the boot tables of a run whose place was not taken by large pages."""
        large = self._leaves.get(run.level + 1)
        span = self.mode.table_span(run.level)
        end = run.base + run.count * span
        for low, high, taken in large.segments(run.base, end) if large else [(run.base, end, None)]:
            if taken is None:
                skip = (low - run.base) // span
                yield TableRun(
                    run.level, low, (high - low) // span, run.pfn + skip * run.step, run.step
                )

    def _map_range(self, event: RangeMapped) -> None:
        leaves = event.leaves
        flags = self.format.leaf_flags(
            leaves.level,
            nx=self.start.boot.features.nx,
            global_pages=not self.start.boot.typed,
        )
        entries = self._leaves[leaves.level]
        entries.set(leaves.start, leaves.end, flags)
        if self.mode.is_32bit:
            span = self.mode.entry_span(leaves.level)
            kernel = self.start.boot.kernel_of(self.start.machine)
            low = max(leaves.start, align_down(kernel.start, span))
            high = min(leaves.end, align_up(kernel.end, span))
            entries.set(low, high, flags & ~NX)
        for low, high in event.readonly:
            self._set_writable(low, high, writable=False)

    def _set_writable(self, start: int, end: int, writable: bool) -> None:
        entries = self._leaves[1]
        for low, high, flags in list(entries.within(start, end)):
            entries.set(low, high, flags | RW if writable else flags & ~RW)

    def _by_base(self) -> dict[int, _Children]:
        result: dict[int, _Children] = {}
        tables = self.tables
        for level in range(1, self.mode.root_level):
            rows = np.flatnonzero(tables.level == level)
            rows = rows[np.argsort(tables.base[rows], kind="stable")]
            span = self.mode.table_span(level)
            columns = [tables.pfn, tables.count, tables.down, tables.owner]
            result[level] = _Children(
                bases=tables.base[rows].tolist(),
                ends=(tables.base[rows] + tables.count[rows] * span).tolist(),
                rows=np.column_stack([column[rows] for column in columns]).tolist(),
            )
        return result

    def _check_fit(self) -> None:
        """An entry has room for so many address bits only."""
        limit = self.format.address_field + PAGE_SIZE
        highest = self.extents()[-1][1]
        for leaves in self._leaves.values():
            highest = max([highest, *(end for _, end, _ in leaves)])
        if highest > limit:
            raise InputError(
                f"entries of {self.mode.title} cannot hold the address {highest - 1:#x}"
            )

    # -- making entries -----------------------------------------------------------------------

    def _fill(self, out: Entries, row: int, skip: int) -> None:
        """Make the tables ``skip``, ``skip + 1`` ... of a run."""
        tables = self.tables
        level, count = int(tables.level[row]), int(tables.count[row])
        span = self.mode.table_span(level)
        # ``view`` holds the same tables by ascending address, whichever way the pages go.
        view, index = out, skip
        if tables.down[row]:
            view, index = out[::-1], count - skip - len(out)
        low = int(tables.base[row]) + index * span
        high = low + len(out) * span
        # In the root the direct map begins anywhere, in a table below always with the first entry.
        shift = (self.direct_map_base % span) // self.mode.entry_span(level)
        canvas = _Canvas(view, low, self.mode.entry_span(level), shift)
        out[...] = 0
        if level > 1:
            self._refer(canvas, level, low, high, int(tables.owner[row]))
        if level in self._leaves:
            for start, end, flags in self._leaves[level].within(low, high):
                canvas.paint(start, end, start | flags, canvas.entry_span)
        if self._translate is not None:
            self._to_machine_frames(out, self._translate)

    def _refer(self, canvas: _Canvas, level: int, low: int, high: int, owner: int) -> None:
        """Make the entries that refer to tables of the level below."""
        children = self._children[level - 1]
        span = self.mode.table_span(level - 1)
        for number in range(bisect_right(children.ends, low), bisect_left(children.bases, high)):
            base = children.bases[number]
            pfn, count, down, child_owner = children.rows[number]
            if child_owner != owner and (child_owner, level, owner) not in self._links:
                continue
            first, last = max(low, base), min(high, children.ends[number])
            index = (first - base) // span
            start = pfn + (count - 1 - index if down else index)
            flags = self._table_flags(level, owner, child_owner)
            step = -PAGE_SIZE if down else PAGE_SIZE
            canvas.paint(first, last, start << PAGE_SHIFT | flags, step)

    def _table_flags(self, level: int, owner: int, child_owner: int) -> int:
        if owner != BOOT_TREE or child_owner != BOOT_TREE:
            return self.format.table[level]
        return self.format.boot_table[level]

    def _to_machine_frames(self, out: Entries, translate: Translate) -> None:
        present = np.nonzero(out & 1)
        field = self.format.address_field
        values = out[present].astype(np.uint64)
        frames = translate((values & np.uint64(field)) >> np.uint64(PAGE_SHIFT))
        out[present] = values & ~np.uint64(field) | frames << np.uint64(PAGE_SHIFT)


class _Canvas:
    """Tables side by side, by ascending address from ``base``, painted with runs of entries, the
    first of them entry number ``shift``.
    """

    def __init__(self, view: Entries, base: int, entry_span: int, shift: int) -> None:
        self._view = view
        self._base = base
        self._shift = shift
        self.entry_span = entry_span

    def paint(self, start: int, end: int, first: int, step: int) -> None:
        """Set the entries for bytes ``[start, end)`` to ``first``, ``first + step``, and so on."""
        width = self._view.shape[1]
        k = (start - self._base) // self.entry_span + self._shift
        stop = (end - self._base) // self.entry_span + self._shift
        while k < stop:
            row, column = divmod(k, width)
            if not column and stop - k >= width:
                rows = (stop - k) // width
                self._ramp(self._view[row : row + rows], first, step)
                done = rows * width
            else:
                done = min(width - column, stop - k)
                self._ramp(self._view[row : row + 1, column : column + done], first, step)
            k += done
            first += done * step

    def _ramp(self, out: Entries, first: int, step: int) -> None:
        ramp = _ramp(self._view.dtype.str, step, self._view.shape[1])
        rows, columns = out.shape
        heads = _ramp(self._view.dtype.str, step * len(ramp), rows) + out.dtype.type(first)
        np.add(heads[:, None], ramp[None, :columns], out=out)


@lru_cache
def _ramp(dtype: str, step: int, count: int) -> Entries:
    """Return ``0, step, 2 * step ...`` modulo the entry size, ``count`` of them."""
    return (np.arange(count, dtype=np.int64) * step).astype(dtype)
