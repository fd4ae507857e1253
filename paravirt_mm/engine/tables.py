"""Page tables as runs: which spans have a table, what they map, and which pages they are.

A `Batch` is the set of tables that mapping one piece creates. The kernel makes them in one walk
over ascending addresses, parents before children, so the n-th page dealt out belongs to the n-th
table of that walk: the batch keeps only the spans and the runs of pages, and works out (level,
address, pfn) of single tables on demand.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import attrs

from paravirt_mm.engine.answers import LEAF, TABLE, EntryKind
from paravirt_mm.engine.pages import PageRun, TablePages, page_count
from paravirt_mm.engine.split import Piece
from paravirt_mm.frozen import frozen
from paravirt_mm.machine.model import Span, sealed
from paravirt_mm.machine.paging import PAGE_SIZE, PagingMode
from paravirt_mm.machine.ranges import (
    RangeMap,
    Ranges,
    RangeSet,
    ValuedRanges,
    align_down,
    align_up,
)

BOOT_TREE = -1
"""Batch index of the tables that exist since boot."""


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


def tables_by_level(
    mode: PagingMode, spans: Mapping[int, Iterable[Span]]
) -> tuple[tuple[int, int], ...]:
    """Return how many tables map the spans of each level, by level."""
    found: list[tuple[int, int]] = []
    for level in sorted(spans):
        size = sum([high - low for low, high in spans[level]])
        if size:
            found.append((level, size // mode.spans[level]))
    return tuple(found)


@frozen(eq=False)
class Batch:
    """The tables that mapping ``[start, end)`` created, and the pages that became them.

    ``spans`` gives, by level, the physical address ranges that the new tables map; ``leaf_levels``
    which page sizes the piece uses; ``pages`` are in walk order.
    """

    index: int
    mode: PagingMode
    start: int
    end: int
    spans: Mapping[int, tuple[Span, ...]] = attrs.field(converter=sealed)
    leaf_levels: tuple[int, ...]
    pages: tuple[TablePages, ...]
    runs: tuple[PageRun, ...] = attrs.field(init=False, repr=False)
    """The pages, in walk order."""
    count: int = attrs.field(init=False, repr=False)
    """Tables in all."""
    by_level: Mapping[int, int] = attrs.field(init=False, repr=False)
    """Tables by level, levels without any left out."""

    @runs.default
    def _runs(self) -> tuple[PageRun, ...]:
        return tuple([part.run for part in self.pages])

    @count.default
    def _count(self) -> int:
        return page_count(self.runs)

    @by_level.default
    def _by_level(self) -> Mapping[int, int]:
        return sealed(dict(tables_by_level(self.mode, self.spans)))

    def tables(self, level: int) -> int:
        """Return how many tables of ``level`` the batch holds."""
        return self.by_level.get(level, 0)

    def walk_order(self) -> Iterator[TableRun]:
        """Yield the tables in the order in which they are allocated (parents first)."""
        rows, step = self._rows(), self.mode.table_span(1)
        level, base, left = next(rows, (0, 0, 0))
        for run in self.runs:
            pfn, pages = run.start, run.count
            while pages and left:
                count = min(left, pages)
                yield TableRun(level, base, count, pfn, run.step)
                # Only L1 rows hold more than one table.
                base, left = base + count * step, left - count
                pfn, pages = pfn + count * run.step, pages - count
                if not left:
                    level, base, left = next(rows, (0, 0, 0))

    def completion_order(self) -> Iterator[TableRun]:
        """Yield the tables in the order in which they are filled (children first)."""
        span = self.mode.table_span
        return iter(
            sorted(
                self.walk_order(),
                key=lambda row: (row.base + row.count * span(row.level), row.level),
            )
        )

    def _rows(self) -> Iterator[tuple[int, int, int]]:
        """Yield (level, base, count) in walk order.

        Only the lowest level comes in runs; a table above it interrupts them, so it is a row of its
        own.
        """
        found: list[tuple[int, int, int]] = []
        borders: set[int] = set()
        for level, spans in self.spans.items():
            size = self.mode.table_span(level)
            for low, high in spans if level > 1 else ():
                found += [(base, -level, 1) for base in range(low, high, size)]
                borders.update(range(low, high + 1, size))
        cuts, size = sorted(borders), self.mode.table_span(1)
        for low, high in self.spans.get(1, ()):
            inside = cuts[bisect_right(cuts, low) : bisect_left(cuts, high)]
            found += [(a, -1, (b - a) // size) for a, b in pairwise((low, *inside, high))]
        found.sort()
        return ((-level, base, count) for base, level, count in found)


@frozen
class Leaves:
    """New leaf entries: bytes ``[start, end)`` mapped by entries of ``level``."""

    level: int
    start: int
    end: int


@frozen
class EntryCount:
    """``count`` entries of tables of ``level`` that belong to batch ``owner`` (`BOOT_TREE`: tables
    that exist since boot).
    """

    level: int
    owner: int
    count: int


class MapPlan(NamedTuple):
    """What mapping one piece would need and write; nothing is changed until it is committed.

    spans
        By level, the physical address ranges for which a table is missing.
    by_level
        How many tables that are, by level.
    leaves
        The new leaf entries.
    links
        Entries of tables that exist already, which will refer to new tables.
    filled
        Entries of tables that exist already, which will be leaves.
    inside
        ``(kind, level, count)`` of the entries that the new tables hold.
    replaced
        Leaf entries that give way to tables.
    reused_end
        End, in bytes, of what is mapped already and stays.
    """

    start: int
    end: int
    spans: Mapping[int, tuple[Span, ...]]
    by_level: tuple[tuple[int, int], ...]
    leaves: tuple[Leaves, ...]
    links: tuple[EntryCount, ...]
    filled: tuple[EntryCount, ...]
    inside: tuple[tuple[EntryKind, int, int], ...]
    replaced: tuple[Leaves, ...]
    reused_end: int

    @property
    def mapped_end(self) -> int:
        """End of the last large or small page that covers the piece, in bytes."""
        return max([leaf.end for leaf in self.leaves], default=self.reused_end)


class TreeView:
    """The kernel's direct-map tree, to read: spans with tables, and leaf mappings, by level."""

    __slots__ = ("_leaves", "_tables", "mode")

    def __init__(
        self,
        mode: PagingMode,
        tables: Mapping[int, ValuedRanges[int]],
        leaves: Mapping[int, Ranges],
    ) -> None:
        self.mode = mode
        self._tables = tables
        self._leaves = leaves

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

    def tables_needed(self, pieces: Iterable[Piece], only: tuple[int, Ranges] | None = None) -> int:
        """Return how many tables `plan` would find missing, for all pieces together.

        A table is there or it is not, whatever large pages there are: one that stays needs none,
        and one that gives way has none below.
        """
        parts = sorted([(piece.start, piece.end, piece.level) for piece in pieces])
        count = 0
        for level in range(self.mode.root_level - 1, 0, -1):
            if only is not None and only[0] == level + 1:
                parts = [
                    (*part, largest)
                    for low, high, largest in parts
                    for part in only[1].within(low, high)
                ]
            span, tables = self.mode.spans[level], self._tables[level]
            done = 0
            for start, end, largest in parts:
                if largest <= level:
                    first = max(done, start - start % span)
                    done = max(done, end + -end % span)
                    count += tables.missing(first, done) // span
        return count

    def plan(
        self, start: int, end: int, level: int, only: tuple[int, Ranges] | None = None
    ) -> MapPlan:
        """Work out what mapping ``[start, end)`` with pages of at most ``level`` takes.

        An existing entry is used as it is: a table is descended into, a large page that ``level``
        allows stays; one that it does not allow is replaced by a table. (A 32-bit kernel replaces a
        table by a large page, too.) ``only`` is a level and the ranges for which entries of that
        level may be filled; its other entries stay empty.
        """
        walk = _Walk(self.mode, self._tables, self._leaves, level)
        top, owner = self._begin(start, end, level if only is None else max(level, only[0]))
        todo: list[_Part] = [(start, end, owner)]
        for table_level in range(top, 0, -1):
            if only is not None and table_level == only[0]:
                todo = [
                    (*part, owner)
                    for low, high, owner in todo
                    for part in only[1].within(low, high)
                ]
            if table_level == 1:
                walk.small_pages(todo)
            elif todo:
                todo = walk.descend(table_level, todo)
        return walk.plan(start, end)

    def _begin(self, start: int, end: int, lowest: int) -> tuple[int, int | None]:
        """Return the level, ``lowest`` or above, from which ``[start, end)`` is walked down, and
        the batch whose table is there: where one has all of a level's tables, those above exist.
        """
        for level in range(lowest, self.mode.root_level):
            span = self.mode.spans[level]
            owner = self._tables[level].throughout(start - start % span, end + -end % span)
            if owner is not None:
                return level, owner
        return self.mode.root_level, self._tables[self.mode.root_level].get(start)


_Part = tuple[int, int, int | None]
"""What is to be mapped, in bytes, by tables of which batch; None: by new ones."""


class _Walk:
    """One walk down the levels for one piece: what is there, what has to be new."""

    __slots__ = (
        "filled",
        "is_32bit",
        "known_leaves",
        "largest",
        "leaves",
        "links",
        "mode",
        "new_leaves",
        "new_links",
        "replaced",
        "reused_end",
        "spans",
        "tables",
    )

    def __init__(
        self,
        mode: PagingMode,
        tables: Mapping[int, ValuedRanges[int]],
        leaves: Mapping[int, Ranges],
        largest: int,
    ) -> None:
        self.mode, self.tables, self.known_leaves, self.largest = mode, tables, leaves, largest
        self.is_32bit = mode.is_32bit
        self.spans: dict[int, list[Span]] = {}
        self.leaves: list[Leaves] = []
        self.replaced: list[Leaves] = []
        # Entries of tables that there are, by level and batch, and by level those of new ones.
        self.links: dict[tuple[int, int], int] = {}
        self.filled: dict[tuple[int, int], int] = {}
        self.new_links: dict[int, int] = {}
        self.new_leaves: dict[int, int] = {}
        self.reused_end = 0

    def descend(self, level: int, todo: list[_Part]) -> list[_Part]:
        """Look at the entries of ``level`` for ``todo``; return what tables below have to map."""
        entry = self.mode.spans[level - 1]
        may_be_leaf = level <= self.largest and level in self.known_leaves
        # A 32-bit kernel sets a large page whatever is there, the startup code's tables included
        # (kernel_physical_mapping_init in arch/x86/mm/init_32.c).
        tables_stay = not (may_be_leaf and self.is_32bit)
        tables = self.tables[level - 1]
        below: list[_Part] = []
        for low, high, owner in todo:
            first, last = low - low % entry, high + -high % entry
            for start, end, table in tables.segments(first, last):
                if table is None or not tables_stay:
                    if may_be_leaf:
                        self._map_large(level, start, end, owner)
                        continue
                    count = (end - start) // entry
                    self._new_tables(level, start, end)
                    if owner is None:
                        self.new_links[level] = self.new_links.get(level, 0) + count
                    else:
                        held = level, owner
                        self.links[held] = self.links.get(held, 0) + count
                below.append((max(low, start), min(high, end), table))
        return below

    def _map_large(self, level: int, start: int, end: int, owner: int | None) -> None:
        """Large pages for ``[start, end)``, unless there are some."""
        known = self.known_leaves[level]
        for low, high in known.gaps(start, end):
            self._fill(level, low, high, owner)
        for _, high in known.within(start, end) if known else ():
            self.reused_end = max(self.reused_end, high)

    def _new_tables(self, level: int, start: int, end: int) -> None:
        """Tables for ``[start, end)``, in place of the large pages that there are."""
        if known := self.known_leaves.get(level):
            self.replaced += (Leaves(level, *span) for span in known.within(start, end))
        spans = self.spans.setdefault(level - 1, [])
        if spans and spans[-1][1] == start:
            start = spans.pop()[0]
        spans.append((start, end))

    def small_pages(self, todo: list[_Part]) -> None:
        """Small pages for ``todo``, where there are none."""
        for low, high, owner in todo:
            first, last = low - low % PAGE_SIZE, high + -high % PAGE_SIZE
            for start, end in self.known_leaves[1].gaps(first, last):
                self._fill(1, start, end, owner)
            self.reused_end = max(self.reused_end, last)

    def _fill(self, level: int, start: int, end: int, owner: int | None) -> None:
        """New leaf entries of ``level`` for ``[start, end)``, in tables of one batch."""
        self.leaves.append(Leaves(level, start, end))
        count = (end - start) // self.mode.spans[level - 1]
        if owner is None:
            self.new_leaves[level] = self.new_leaves.get(level, 0) + count
        else:
            held = level, owner
            self.filled[held] = self.filled.get(held, 0) + count

    def plan(self, start: int, end: int) -> MapPlan:
        """Return what the walk found out."""
        return MapPlan(
            start=start,
            end=end,
            spans=sealed({level: tuple(spans) for level, spans in self.spans.items()}),
            by_level=tables_by_level(self.mode, self.spans),
            leaves=tuple(self.leaves),
            links=_entry_counts(self.links),
            filled=_entry_counts(self.filled),
            inside=tuple([(LEAF, *inside) for inside in self.new_leaves.items()])
            + tuple([(TABLE, *inside) for inside in sorted(self.new_links.items())]),
            replaced=tuple(self.replaced),
            reused_end=self.reused_end,
        )


def _entry_counts(counts: Mapping[tuple[int, int], int]) -> tuple[EntryCount, ...]:
    return tuple([EntryCount(*held, count) for held, count in counts.items()]) if counts else ()


class Tree(TreeView):
    """The direct-map tree, as the engine has it: ``root`` is the batch that holds the root."""

    __slots__ = ("_open_leaves", "_open_tables")

    def __init__(self, mode: PagingMode, root: int = BOOT_TREE) -> None:
        self._open_tables: dict[int, RangeMap[int]] = {
            level: RangeMap() for level in range(1, mode.root_level + 1)
        }
        self._open_leaves = {level: RangeSet() for level in (1, *sorted(mode.large_levels))}
        super().__init__(
            mode,
            sealed({level: tables.view() for level, tables in self._open_tables.items()}),
            sealed({level: leaves.view() for level, leaves in self._open_leaves.items()}),
        )
        self._open_tables[mode.root_level].set(0, mode.table_span(mode.root_level), root)

    def view(self) -> TreeView:
        """Return the same tree, as it stands at any time, without the means to change it."""
        return TreeView(self.mode, self._tables, self._leaves)

    def start_anew(self, root: int) -> None:
        """Forget everything: a new tree begins, with the table of batch ``root``."""
        for tables in self._open_tables.values():
            tables.empty()
        for leaves in self._open_leaves.values():
            leaves.empty()
        everything = self.mode.table_span(self.mode.root_level)
        self._open_tables[self.mode.root_level].set(0, everything, root)

    def adopt(self, level: int, start: int, end: int) -> None:
        """Note that tables of ``level`` exist since boot for ``[start, end)``."""
        span = self.mode.table_span(level)
        self._open_tables[level].set(align_down(start, span), align_up(end, span), BOOT_TREE)

    def adopt_mapping(self, start: int, end: int) -> None:
        """Note that boot tables already map ``[start, end)`` with small pages."""
        self._open_leaves[1].add(start, end)

    def commit(self, plan: MapPlan, index: int, pages: Sequence[TablePages]) -> Batch:
        """Make the plan true: the tables exist, in the pages given, and the leaves are mapped."""
        for level, spans in plan.spans.items():
            for low, high in spans:
                self._open_tables[level].set(low, high, index)
        for leaf in plan.replaced:
            self._open_leaves[leaf.level].discard(leaf.start, leaf.end)
        for leaf in plan.leaves:
            if leaf.level > 1 and self.mode.is_32bit:  # others keep the tables that there are
                self._open_tables[leaf.level - 1].clear(leaf.start, leaf.end)
            self._open_leaves[leaf.level].add(leaf.start, leaf.end)
        return Batch(
            index=index,
            mode=self.mode,
            start=plan.start,
            end=plan.end,
            spans=plan.spans,
            leaf_levels=tuple(sorted({leaf.level for leaf in plan.leaves})),
            pages=tuple(pages),
        )
