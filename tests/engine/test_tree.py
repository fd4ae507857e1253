"""The tree of runs against page tables built the slow way: nested dictionaries, one entry at a
time.

The walk allocates a table before it descends into it and attaches it when it is filled, as
phys_pud_init and its kin do. Both are tried on paging modes of four entries a table, where a few
pages make a deep tree.
"""

from __future__ import annotations

from collections import Counter

import attrs
from hypothesis import given, strategies as st

from paravirt_mm import (
    MODES,
    EntryCount,
    MapPlan,
    PageRun,
    PagingMode,
    Piece,
    RangeSet,
    Source,
    TablePages,
)
from paravirt_mm.engine.tables import BOOT_TREE, Tree

PAGE = 4096
TINY = {
    levels: PagingMode(
        name=f"tiny{levels}",
        title="four entries a table",
        index_bits=(2,) * levels,
        entry_bytes=8,
        large_levels=frozenset({2, 3} if levels > 3 else {2}),
        physical_bits=40,
        virtual_bits=48,
        has_nx=True,
        direct_map_base=0,
        kernel_base=0,
    )
    for levels in (2, 3, 4)
}
LEAF = "leaf"
Node = dict[int, "Node | str"]


@attrs.define
class Naive:
    """Page tables as dictionaries from address to entry. ``born`` and ``filled`` note (level,
    address) of the last call's tables.
    """

    mode: PagingMode
    root: Node = attrs.field(factory=dict)
    owner: dict[int, int] = attrs.field(factory=dict)
    born: list[tuple[int, int]] = attrs.field(factory=list)
    filled: list[tuple[int, int]] = attrs.field(factory=list)
    writes: Counter[tuple[int, str, int]] = attrs.field(factory=Counter)
    batch: int = -1

    def map(self, start: int, end: int, level: int, only: tuple[int, RangeSet] | None) -> None:
        self.batch += 1
        self.born, self.filled, self.writes = [], [], Counter()
        self._walk(self.root, self.mode.root_level, -1, start, end, level, only)

    def _walk(
        self,
        table: Node,
        level: int,
        owner: int,
        start: int,
        end: int,
        largest: int,
        only: tuple[int, RangeSet] | None,
    ) -> None:
        size = self.mode.entry_span(level)
        address = start // size * size
        while address < end:
            entry = table.get(address)
            low, high = max(start, address), min(end, address + size)
            skipped = only is not None and level == only[0] and not only[1].overlaps(low, high)
            may_be_leaf = level == 1 or (level in self.mode.large_levels and level <= largest)
            if skipped:
                pass
            elif isinstance(entry, dict):
                self._walk(entry, level - 1, self.owner[id(entry)], low, high, largest, only)
            elif may_be_leaf:
                if entry is None:
                    table[address] = LEAF
                    self.writes[level, "leaf", owner] += 1
            else:
                child: Node = {}
                self.owner[id(child)] = self.batch
                self.born.append((level - 1, address))
                self._walk(child, level - 1, self.batch, low, high, largest, only)
                self.filled.append((level - 1, address))
                table[address] = child
                self.writes[level, "table", owner] += 1
            address += size

    def leaves(self) -> dict[int, RangeSet]:
        found = {level: RangeSet() for level in (1, *sorted(self.mode.large_levels))}

        def walk(table: Node, level: int) -> None:
            for address, entry in table.items():
                if isinstance(entry, dict):
                    walk(entry, level - 1)
                else:
                    found[level].add(address, address + self.mode.entry_span(level))

        walk(self.root, self.mode.root_level)
        return found


def _runs(draw: st.DrawFn, count: int, first: int) -> list[TablePages]:
    """Pages for ``count`` tables, in runs up and down that never meet."""
    pages = []
    while count:
        taken = draw(st.integers(1, count))
        up = draw(st.booleans())
        run = PageRun(first, taken) if up else PageRun(first + taken - 1, taken, -1)
        pages.append(TablePages(run, Source.MEMBLOCK))
        first += taken + draw(st.integers(0, 2))
        count -= taken
    return pages


def _pfns(pages: list[TablePages]) -> list[int]:
    return [part.run.start + i * part.run.step for part in pages for i in range(part.run.count)]


def _flat(mode: PagingMode, runs: object) -> list[tuple[int, int, int]]:
    return [
        (run.level, run.base + i * mode.table_span(run.level), run.pfn + i * run.step)
        for run in runs  # type: ignore[attr-defined]
        for i in range(run.count)
    ]


def _writes(plan: MapPlan) -> Counter[tuple[int, str, int]]:
    """Entries by level, kind and owner, as the plan says; what the new tables hold themselves is
    the rest.
    """
    writes: Counter[tuple[int, str, int]] = Counter()
    for kind, entries in (("leaf", plan.filled), ("table", plan.links)):
        for one in entries:
            writes[one.level, kind, one.owner] += one.count
    return writes


@given(st.data())
def test_tree_grows_like_the_kernels(data: st.DataObject) -> None:
    mode = TINY[data.draw(st.sampled_from([4, 3, 2]), "levels")]
    pages = mode.table_span(mode.root_level) // PAGE
    tree, naive = Tree(mode), Naive(mode)
    first = 1000
    for index in range(data.draw(st.integers(1, 6), "calls")):
        edges = data.draw(st.tuples(st.integers(0, pages), st.integers(0, pages)), "range")
        start, end = min(edges) * PAGE, max(edges) * PAGE
        if start == end:
            continue
        level = data.draw(st.sampled_from((1, *sorted(mode.large_levels))), "level")
        only = None
        if data.draw(st.booleans(), "skip empty entries"):
            skip = data.draw(st.integers(2, mode.root_level), "skip level")
            unit = mode.entry_span(skip)
            slots = data.draw(st.sets(st.integers(0, pages * PAGE // unit)), "known")
            only = skip, RangeSet((slot * unit, (slot + 1) * unit) for slot in slots)
        before = tree.plan(start, end, level, only)
        assert tree.tables_needed([Piece(start, end, level)], only) == sum(
            _count(mode, before.spans)
        )
        dealt = _runs(data.draw, sum(_count(mode, before.spans)), first)
        first += 4 * sum(_count(mode, before.spans)) + 1
        batch = tree.commit(before, index, dealt)
        naive.batch = index - 1
        naive.map(start, end, level, only)

        pfns = dict(zip(naive.born, _pfns(dealt), strict=True))
        assert _flat(mode, batch.walk_order()) == [(lv, at, pfns[lv, at]) for lv, at in naive.born]
        assert _flat(mode, batch.completion_order()) == [
            (lv, at, pfns[lv, at]) for lv, at in naive.filled
        ]
        assert batch.by_level == dict(sorted(Counter(lv for lv, _ in naive.born).items()))
        assert batch.count == len(naive.born)
        older = {key: n for key, n in naive.writes.items() if key[2] != index}
        assert _writes(before) == older
        for leaf_level, leaves in naive.leaves().items():
            assert list(tree.leaves(leaf_level)) == list(leaves)
        assert tree.is_mapped(start, end) is tree.mapped().covers(start, end)


def _count(mode: PagingMode, spans: object) -> list[int]:
    return [
        (high - low) // mode.table_span(level)
        for level, parts in spans.items()  # type: ignore[attr-defined]
        for low, high in parts
    ]


@given(st.data())
def test_planning_changes_nothing(data: st.DataObject) -> None:
    tree = Tree(TINY[3])
    pages = 64
    edges = [data.draw(st.integers(0, pages)) for _ in range(4)]
    tree.commit(tree.plan(0, edges[0] * PAGE, 2), 0, [])
    before = [list(tree.leaves(level)) for level in tree.leaf_levels]
    low, high = sorted(edges[1:3])
    first, second = tree.plan(low * PAGE, high * PAGE, 1), tree.plan(low * PAGE, high * PAGE, 1)
    assert first == second
    assert [list(tree.leaves(level)) for level in tree.leaf_levels] == before


def test_adopted_tables_are_not_made_again() -> None:
    """What exists since boot serves: no table for it, entries go to the boot tree."""
    mode = MODES["x86_64"]
    tree = Tree(mode)
    for level in (3, 2, 1):
        tree.adopt(level, 0, 4 << 20)
    tree.adopt_mapping(0, 1 << 20)
    plan = tree.plan(0, 4 << 20, 1)
    assert plan.spans == {}
    assert plan.filled == (EntryCount(1, BOOT_TREE, 768),)
    assert [(leaf.start, leaf.end) for leaf in plan.leaves] == [(1 << 20, 4 << 20)]
    assert plan.mapped_end == 4 << 20
    # A table of which a part is told of is there as a whole.
    other = Tree(mode)
    for level in (3, 2, 1):
        other.adopt(level, (2 << 20) + PAGE, (4 << 20) + PAGE)
    assert other.plan(2 << 20, 6 << 20, 1).spans == {}
    assert other.plan(0, 2 << 20, 1).spans == {1: ((0, 2 << 20),)}
    assert other.plan(6 << 20, 7 << 20, 1).spans == {1: ((6 << 20, 8 << 20),)}


def test_new_tables_beside_each_other_are_one_span() -> None:
    """Whatever table above they hang in, and however many spans there are already."""
    gib, mib = 1 << 30, 1 << 20
    tree = Tree(MODES["x86_64"])
    tree.commit(tree.plan(0, 2 * mib, 1), 0, [])  # the first GiB has its L2
    tree.adopt(1, gib - 8 * mib, gib - 6 * mib)
    assert tree.plan(gib - 10 * mib, gib + 4 * mib, 1).spans == {
        2: ((gib, 2 * gib),),
        1: ((gib - 10 * mib, gib - 8 * mib), (gib - 6 * mib, gib + 4 * mib)),
    }


def test_large_page_in_the_way_is_replaced() -> None:
    """::

    2M page  |################|  then 4 KiB of it mapped small: one table takes its place
    """
    mode = MODES["x86_64"]
    tree = Tree(mode)
    tree.commit(tree.plan(0, 2 << 20, 2), 0, [TablePages(PageRun(1, 2), Source.BRK)])
    plan = tree.plan(PAGE, 2 * PAGE, 1)
    assert [(leaf.level, leaf.start, leaf.end) for leaf in plan.replaced] == [(2, 0, 2 << 20)]
    assert plan.spans == {1: ((0, 2 << 20),)}
    again = tree.plan(PAGE, 2 * PAGE, 2)
    assert again.leaves == ()
    assert again.mapped_end == 2 << 20


def test_a_32_bit_kernel_puts_a_large_page_where_a_table_is() -> None:
    """The table is gone then: whoever maps small pages there needs one again."""
    mode = MODES["i386"]
    large = mode.entry_span(2)
    tree = Tree(mode)
    tree.adopt(1, 0, 3 * large)
    assert tree.plan(large, 2 * large, 1).spans == {}
    plan = tree.plan(large, 2 * large, 2)
    assert [(leaf.level, leaf.start, leaf.end) for leaf in plan.leaves] == [(2, large, 2 * large)]
    tree.commit(plan, 0, [])
    again = tree.plan(large, 2 * large, 1)
    assert again.spans == {1: ((large, 2 * large),)}
    assert [(leaf.level, leaf.start, leaf.end) for leaf in again.replaced] == [
        (2, large, 2 * large)
    ]
    # The tables beside it are still there.
    assert tree.plan(0, large, 1).spans == tree.plan(2 * large, 3 * large, 1).spans == {}
