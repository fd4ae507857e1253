"""Page tables as runs: which spans have a table, what they map, and which pages they are.

A `Batch` is the set of tables that mapping one piece creates. The kernel makes them in one walk
over ascending addresses, parents before children, so the n-th page dealt out belongs to the n-th
table of that walk: the batch keeps only the spans and the runs of pages, and works out (level,
address, pfn) of single tables on demand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import attrs

from paravirt_mm.engine.pages import PageRun, TablePages, page_count
from paravirt_mm.machine.paging import PagingMode
from paravirt_mm.machine.ranges import RangeMap, RangeSet, align_down, align_up

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Span = tuple[int, int]


@attrs.frozen
class TableRun:
    """``count`` tables of ``level``: the i-th maps from ``base + i * span`` and is page ``pfn + i *
    step``.

    ``base`` is the physical address where the first table's span begins (bytes, span aligned).
    """

    level: int
    base: int
    count: int
    pfn: int
    step: int


@attrs.frozen(eq=False, slots=False)
class Batch:
    """The tables that mapping ``[start, end)`` created, and the pages that became them.

    ``spans`` gives, by level, the physical address ranges that the new tables map; ``tops`` how
    many of the new tables hang, by level, under a table that existed before; ``leaf_levels`` which
    page sizes the piece uses; ``pages`` are in walk order.
    """

    index: int
    mode: PagingMode
    start: int
    end: int
    spans: Mapping[int, tuple[Span, ...]]
    tops: Mapping[int, int]
    leaf_levels: tuple[int, ...]
    pages: tuple[TablePages, ...]

    def tables(self, level: int) -> int:
        """Return how many tables of ``level`` the batch holds."""
        span = self.mode.table_span(level)
        return sum(end - start for start, end in self.spans.get(level, ())) // span

    @property
    def by_level(self) -> dict[int, int]:
        """Tables by level, levels without any left out."""
        return {level: self.tables(level) for level in sorted(self.spans) if self.spans[level]}

    @property
    def count(self) -> int:
        """Tables in all."""
        return page_count(self.runs)

    @property
    def runs(self) -> tuple[PageRun, ...]:
        """The pages, in walk order."""
        return tuple(pages.run for pages in self.pages)

    def walk_order(self) -> Iterator[TableRun]:
        """Yield the tables in the order in which they are allocated (parents first)."""
        return self._emit(self._rows())

    def completion_order(self) -> Iterator[TableRun]:
        """Yield the tables in the order in which they are filled (children first)."""
        rows = self._rows()
        if not rows.shape[1]:
            return iter(())
        import numpy as np

        level, base, count = rows[0], rows[1], rows[2]
        spans = np.array(
            [0] + [self.mode.table_span(lv) for lv in range(1, self.mode.root_level + 1)]
        )
        last = np.minimum(base + count * spans[level], self.end)
        return self._emit(rows[:, np.lexsort((level, last))])

    @staticmethod
    def _emit(rows: npt.NDArray[np.int64]) -> Iterator[TableRun]:
        for level, base, count, pfn, step in zip(*(row.tolist() for row in rows), strict=True):
            yield TableRun(level, base, count, pfn, step)

    def _rows(self) -> npt.NDArray[np.int64]:
        """Return rows (level, base, count, pfn, step), one column a run, in walk order.

        Only the lowest level comes in runs; a table above it interrupts them, so it is a row of its
        own.
        """
        import numpy as np

        upper_base: list[npt.NDArray[np.int64]] = []
        upper_level: list[npt.NDArray[np.int64]] = []
        for level, spans in self.spans.items():
            if level == 1:
                continue
            for low, high in spans:
                bases = np.arange(low, high, self.mode.table_span(level), dtype=np.int64)
                upper_base.append(bases)
                upper_level.append(np.full(len(bases), level, dtype=np.int64))
        bases = np.concatenate(upper_base) if upper_base else np.empty(0, dtype=np.int64)
        levels = np.concatenate(upper_level) if upper_level else np.empty(0, dtype=np.int64)
        leaf_span = self.mode.table_span(1)
        leaf_base: list[npt.NDArray[np.int64]] = []
        leaf_end: list[npt.NDArray[np.int64]] = []
        spans_of = np.array(
            [0, *(self.mode.table_span(level) for level in range(1, self.mode.root_level + 1))]
        )
        cuts = np.union1d(bases, bases + spans_of[levels])
        for low, high in self.spans.get(1, ()):
            inside = cuts[(cuts > low) & (cuts < high)]
            leaf_base.append(np.concatenate(([low], inside)))
            leaf_end.append(np.concatenate((inside, [high])))
        if leaf_base:
            low_edges = np.concatenate(leaf_base)
            counts = (np.concatenate(leaf_end) - low_edges) // leaf_span
            bases = np.concatenate((bases, low_edges))
            levels = np.concatenate((levels, np.ones(len(low_edges), dtype=np.int64)))
            counts = np.concatenate((np.ones(len(bases) - len(counts), dtype=np.int64), counts))
        else:
            counts = np.ones(len(bases), dtype=np.int64)
        order = np.lexsort((-levels, np.maximum(bases, self.start)))
        return self._with_pages(levels[order], bases[order], counts[order])

    def _with_pages(
        self,
        levels: npt.NDArray[np.int64],
        bases: npt.NDArray[np.int64],
        counts: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.int64]:
        """Deal the pages out to rows in walk order, cutting rows where a run of pages ends."""
        import numpy as np

        runs = self.runs
        row_at = np.concatenate(([0], np.cumsum(counts)))
        run_at = np.concatenate(([0], np.cumsum([run.count for run in runs], dtype=np.int64)))
        offsets = np.union1d(row_at, run_at)
        heads, sizes = offsets[:-1], np.diff(offsets)
        row = np.searchsorted(row_at, heads, side="right") - 1
        run = np.searchsorted(run_at, heads, side="right") - 1
        starts = np.array([r.start for r in runs], dtype=np.int64)
        steps = np.array([r.step for r in runs], dtype=np.int64)
        result = np.empty((5, len(heads)), dtype=np.int64)
        result[0] = levels[row]
        # Only L1 rows hold more than one table, so only their base moves with the offset.
        result[1] = bases[row] + (heads - row_at[row]) * self.mode.table_span(1)
        result[2] = sizes
        result[3] = starts[run] + (heads - run_at[run]) * steps[run]
        result[4] = steps[run]
        return result


@attrs.frozen
class Leaves:
    """New leaf entries: bytes ``[start, end)`` mapped by entries of ``level``."""

    level: int
    start: int
    end: int


@attrs.frozen
class MapPlan:
    """What mapping one piece would need and write; nothing is changed until it is committed.

    ``parents`` tells for each level which existing batches get new child entries (count by batch
    index), ``leaf_owner`` likewise for new leaf entries; -1 is the tree that exists since boot.
    """

    start: int
    end: int
    spans: Mapping[int, tuple[Span, ...]]
    leaves: tuple[Leaves, ...]
    tops: Mapping[int, int]
    parents: tuple[tuple[int, int, int], ...]
    leaf_owner: tuple[tuple[int, int, int], ...]
    replaced: tuple[Leaves, ...]
    reused_end: int

    @property
    def mapped_end(self) -> int:
        """End of the last large or small page that covers the piece, in bytes."""
        return max((leaf.end for leaf in self.leaves), default=self.reused_end)


BOOT_TREE = -1
"""Batch index of the tables that exist since boot."""


class Tree:
    """The kernel's direct-map tree: spans with tables, and leaf mappings, by level.

    ``root`` is the index of the batch that holds the root table.
    """

    def __init__(self, mode: PagingMode, root: int = BOOT_TREE) -> None:
        self.mode = mode
        self._tables: dict[int, RangeMap[int]] = {
            level: RangeMap() for level in range(1, mode.root_level + 1)
        }
        self._leaves: dict[int, RangeSet] = {
            level: RangeSet() for level in (1, *sorted(mode.large_levels))
        }
        self._tables[mode.root_level].set(0, mode.table_span(mode.root_level), root)

    def adopt(self, level: int, start: int, end: int) -> None:
        """Note that tables of ``level`` exist since boot for ``[start, end)``."""
        span = self.mode.table_span(level)
        self._tables[level].set(align_down(start, span), align_up(end, span), BOOT_TREE)

    def adopt_mapping(self, start: int, end: int) -> None:
        """Note that boot tables already map ``[start, end)`` with small pages."""
        self._leaves[1].add(start, end)

    def leaves(self, level: int) -> Iterator[Span]:
        """Yield what entries of ``level`` map, ascending, in bytes."""
        return iter(self._leaves[level])

    @property
    def leaf_levels(self) -> tuple[int, ...]:
        """Levels whose entries may be leaves in this mode."""
        return tuple(self._leaves)

    def mapped(self) -> RangeSet:
        """Return everything mapped, whatever the page size, in bytes."""
        result = RangeSet()
        for leaves in self._leaves.values():
            result.update(leaves)
        return result

    def is_mapped(self, start: int, end: int) -> bool:
        """Tell whether all of ``[start, end)`` is mapped."""
        return self.mapped().covers(start, end)

    def plan(
        self, start: int, end: int, level: int, only: tuple[int, RangeSet] | None = None
    ) -> MapPlan:
        """Work out what mapping ``[start, end)`` with pages of at most ``level`` takes.

        An existing entry is used as it is: a table is descended into, a large page that ``level``
        allows stays; one that it does not allow is replaced by a table. (A 32-bit kernel replaces a
        table by a large page, too.) ``only`` is a level and the ranges for which entries of that
        level may be filled; its other entries stay empty.
        """
        mode = self.mode
        spans: dict[int, tuple[Span, ...]] = {}
        tops: dict[int, int] = {}
        leaves: list[Leaves] = []
        replaced: list[Leaves] = []
        parents: dict[tuple[int, int], int] = {}
        owners: dict[tuple[int, int], int] = {}
        reused_end = 0
        todo: list[Span] = [(start, end)]
        for table_level in range(mode.root_level, 0, -1):
            if only is not None and table_level == only[0]:
                todo = [part for low, high in todo for part in only[1].within(low, high)]
            entry = mode.entry_span(table_level)
            new_children = RangeSet()
            below: list[Span] = []
            for low, high in todo:
                first, last = align_down(low, entry), align_up(high, entry)
                if table_level == 1:
                    for part in self._leaves[1].gaps(first, last):
                        leaves.append(Leaves(1, *part))
                        self._credit(owners, 1, *part, entry)
                    reused_end = max(reused_end, last)
                    continue
                may_be_leaf = table_level in self._leaves and table_level <= level
                children = self._tables[table_level - 1]
                for seg_low, seg_high, child in children.segments(first, last):
                    # A 32-bit kernel sets a large page whatever is there, the startup code's tables
                    # included (kernel_physical_mapping_init in arch/x86/mm/init_32.c).
                    if child is not None and not (may_be_leaf and mode.is_32bit):
                        below.append((max(low, seg_low), min(high, seg_high)))
                        continue
                    for gap_low, gap_high, is_leaf in self._leaf_segments(
                        table_level, seg_low, seg_high
                    ):
                        if is_leaf and may_be_leaf:
                            reused_end = max(reused_end, gap_high)
                        elif may_be_leaf:
                            leaves.append(Leaves(table_level, gap_low, gap_high))
                            self._credit(owners, table_level, gap_low, gap_high, entry)
                        else:
                            if is_leaf:
                                replaced.append(Leaves(table_level, gap_low, gap_high))
                            new_children.add(gap_low, gap_high)
                            self._credit(parents, table_level, gap_low, gap_high, entry)
                            below.append((max(low, gap_low), min(high, gap_high)))
            if new_children:
                spans[table_level - 1] = tuple(new_children)
                tops[table_level - 1] = sum(
                    count for (lv, _), count in parents.items() if lv == table_level
                )
            todo = below
        return MapPlan(
            start=start,
            end=end,
            spans=spans,
            leaves=tuple(leaves),
            tops=tops,
            parents=tuple((lv, owner, n) for (lv, owner), n in parents.items()),
            leaf_owner=tuple((lv, owner, n) for (lv, owner), n in owners.items()),
            replaced=tuple(replaced),
            reused_end=reused_end,
        )

    def _leaf_segments(self, level: int, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        leaves = self._leaves.get(level)
        if leaves is None:
            yield start, end, False
            return
        position = start
        for low, high in leaves.within(start, end):
            if position < low:
                yield position, low, False
            yield low, high, True
            position = high
        if position < end:
            yield position, end, False

    def _credit(
        self, counts: dict[tuple[int, int], int], level: int, start: int, end: int, entry: int
    ) -> None:
        """Count entries written into tables of ``level`` that existed before, by their batch."""
        for low, high, owner in self._tables[level].within(start, end):
            counts[level, owner] = counts.get((level, owner), 0) + (high - low) // entry

    def commit(self, plan: MapPlan, index: int, pages: Sequence[TablePages]) -> Batch:
        """Make the plan true: the tables exist, in the pages given, and the leaves are mapped."""
        for level, spans in plan.spans.items():
            for low, high in spans:
                self._tables[level].set(low, high, index)
        for leaf in plan.replaced:
            self._leaves[leaf.level].discard(leaf.start, leaf.end)
        for leaf in plan.leaves:
            if leaf.level > 1:
                self._tables[leaf.level - 1].clear(leaf.start, leaf.end)
            self._leaves[leaf.level].add(leaf.start, leaf.end)
        return Batch(
            index=index,
            mode=self.mode,
            start=plan.start,
            end=plan.end,
            spans=plan.spans,
            tops=plan.tops,
            leaf_levels=tuple(sorted({leaf.level for leaf in plan.leaves})),
            pages=tuple(pages),
        )
