"""Figures of traces small enough to count by hand, and that each has one definition."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from paravirt_mm import (
    Batch,
    BootState,
    Cost,
    CpuFeatures,
    E820Type,
    EntryKind,
    HandOver,
    KernelImage,
    Machine,
    Map,
    MemoryMap,
    Outcome,
    PageRun,
    Run,
    Scenario,
    Source,
    TablePages,
    Trace,
    Verdict,
    Way,
    bundled,
)
from paravirt_mm.engine.tables import Leaves
from paravirt_mm.engine.trace import (
    EntriesWritten,
    MadeReadonly,
    MadeWritable,
    Panicked,
    RangeMapped,
    RootActivated,
    RunFinished,
    RunStarted,
    StepStarted,
    SurplusReleased,
    TablesAllocated,
    TablesAttached,
    TablesPinned,
    TablesReserved,
)
from paravirt_mm.measure.figures import FIGURES, Group, Unit, measure

MIB, GIB, PAGE = 1 << 20, 1 << 30, 4096

MACHINE = Machine(
    name="by hand",
    memory_map=MemoryMap.sanitise(
        [
            (0x1000, 0xA0000, E820Type.RAM),
            (MIB, GIB, E820Type.RAM),
            (4 * GIB, 5 * GIB, E820Type.RAM),
        ]
    ),
    features=CpuFeatures(pse=False),
    kernel=KernelImage(16 * MIB, 20 * MIB, 20 * MIB, 20 * MIB + 64 * PAGE),
)
BOOT = BootState(
    mapped=((0, 64 * MIB),),
    max_pfn_mapped=64 * MIB // PAGE,
    features=CpuFeatures(pse=False),
    boot_tables=((40 * MIB, 40 * MIB + 3 * PAGE),),
    typed=True,
)


def _batch(pages: list[TablePages], index: int = 0) -> Batch:
    """Two L1 tables and the L2 above them, for the first 4 MiB."""
    return Batch(
        index=index,
        mode=MACHINE.mode,
        start=0,
        end=4 * MIB,
        spans={1: ((0, 4 * MIB),), 2: ((0, GIB),)},
        leaf_levels=(1,),
        pages=tuple(pages),
    )


def _trace(*events: Any, boot: BootState = BOOT) -> Trace:
    return Trace([RunStarted(MACHINE, boot, "a", "b", ((0, 4 * MIB),)), *events])


@pytest.fixture
def guessed() -> Trace:
    """Ten pages are set aside from pfn 0x3000, three become tables, seven are given back::

    pfn     0x3000         0x3003                      0x300a
            | tables: 3    | given back: 7             |
    mapped  | read-only by the mapping                 |      10 flips
    tables  | read-only already                               0 flips
    release                | writable again            |       7 flips
    """
    block = PageRun(0x3000, 10)
    batch = _batch([TablePages(block.head(3), Source.RESERVATION)])
    surplus = block.tail(3)
    step = Map(0, 4 * MIB, reserve=True)
    return _trace(
        StepStarted(1, step),
        TablesReserved((block,)),
        TablesAllocated(batch),
        EntriesWritten(0, 1, EntryKind.LEAF, 1024, 0, Cost()),
        EntriesWritten(0, 2, EntryKind.TABLE, 2, 0, Cost()),
        RangeMapped(Leaves(1, 0, 4 * MIB), ((0x3000 * PAGE, 0x300A * PAGE),)),
        MadeReadonly(batch, Cost(hypercalls={"update_va_mapping": 3}, batches=1)),
        TablesPinned(batch, Cost(hypercalls={"mmuext_op": 2}, batches=1, pinned={1: 2})),
        EntriesWritten(0, 3, EntryKind.TABLE, 1, -1, Cost({"mmu_update": 1}, way=Way.HYPERCALL)),
        TablesAttached(batch, HandOver.EACH, ((2, 1),)),
        EntriesWritten(1, 1, EntryKind.LEAF, 5, -1, Cost(way=Way.EMULATED)),
        SurplusReleased((surplus,)),
        MadeWritable((surplus,), 7, Cost(hypercalls={"update_va_mapping": 7})),
        RootActivated(None, Cost(hypercalls={"mmuext_op": 1}, flushes=1)),
        RunFinished(((16 * MIB, 21 * MIB), (0x3000 * PAGE, 0x3003 * PAGE))),
    )


BY_HAND = {
    "reserved": 10,
    "used": 3,
    "waste": 7,
    "waste_percent": 70.0,
    "overrun": 0,
    "contiguous_need": 10 * PAGE,
    "brk_used": 0,
    "brk_size": 64,
    "flips": 17,
    "flips_per_table": round(17 / 3, 4),
    "flips_wasted": 14,
    "max_flips": 2,
    "pins_l1": 2,
    "pins_l2": 0,
    "validations_l1": 0,
    "validations_l2": 1,
    "tables": 3,
    "tables_l1": 2,
    "tables_l2": 1,
    "tables_l3": 0,
    "mapped_4k": 4 * MIB,
    "mapped_large": 0,
    "tables_below_1m": 0,
    "tables_below_16m": 0,
    "tables_below_4g": 3 * PAGE,
    "tables_below_lowmem": None,
    "unused_below_16m": 0,
    "unused_below_4g": 7 * PAGE,
    "lowest_table": 0x3000 * PAGE,
    "highest_table": 0x3002 * PAGE,
    "extents": 1,
    "direct_writes": 1026,
    "hypercall_writes": 1,
    "emulated_writes": 5,
    "hypercalls": 3 + 2 + 1 + 7 + 1,
    "hypercalls_mmu_update": 1,
    "hypercalls_update_va_mapping": 10,
    "hypercalls_mmuext_op": 3,
    "multicall_batches": 2,
    "tlb_flushes": 1,
    "steps": 1,
    "peak_unhooked": 2,
    # Free: 1M..16M, 21M..48M, 48M+12K..1G (to 896M); above 4G the whole GiB, which does not count.
    "largest_free_below_896m": 896 * MIB - 0x3003 * PAGE,
    "largest_free_below_4g": GIB - 0x3003 * PAGE,
    "crashkernel_128m_below_896m": True,
    "crashkernel_512m_below_896m": True,
    "crashkernel_512m_below_4g": True,
}


@pytest.mark.parametrize("name", BY_HAND)
def test_counted_by_hand(name: str, guessed: Trace) -> None:
    assert measure(guessed)[name] == BY_HAND[name]


def test_pages_read_only_since_boot_do_not_flip() -> None:
    """The domain builder's tables are read-only when the run starts, and mapping them so again is
    no change.
    """
    low, high = BOOT.boot_tables[0]
    trace = _trace(RangeMapped(Leaves(1, 32 * MIB, 48 * MIB), ((low, high),)), RunFinished(()))
    assert measure(trace)["flips"] == 0


def test_a_page_that_goes_forth_and_back_counts_both() -> None:
    pages = (PageRun(0x500, 1),)
    span = (0x500 * PAGE, 0x501 * PAGE)
    there = RangeMapped(Leaves(1, *span), (span,))
    back = MadeWritable(pages, 1, Cost())
    figures = measure(_trace(there, back, there, back, there, RunFinished(())))
    assert (figures["flips"], figures["max_flips"], figures["flips_wasted"]) == (5, 5, 0)
    figures = measure(_trace(there, back, there, back, RunFinished(())))
    assert (figures["flips"], figures["flips_wasted"]) == (4, 4)


def test_tables_by_source_and_place() -> None:
    """Two from brk, one from memblock far above: three tables in two pieces, nothing contiguous
    demanded.
    """
    pages = [
        TablePages(PageRun(0x1400, 2), Source.BRK),
        TablePages(PageRun(0x140000, 1, -1), Source.MEMBLOCK),
    ]
    figures = measure(_trace(TablesAllocated(_batch(pages)), RunFinished(())))
    assert figures["brk_used"] == 2
    assert figures["reserved"] == figures["used"] == figures["waste"] == 0
    assert figures["waste_percent"] is None
    assert figures["contiguous_need"] == PAGE
    assert figures["extents"] == 2
    assert figures["tables_below_4g"] == 2 * PAGE
    assert figures["highest_table"] == 0x140000 * PAGE


def test_root_pinned_when_loaded_was_not_validated_by_itself() -> None:
    """Attaching counts the root as validated; the pin that loads it takes that back."""
    root = attrs.evolve(
        _batch([TablePages(PageRun(0x1400, 1), Source.BRK)]),
        spans={4: ((0, 1 << 48),)},
    )
    figures = measure(
        _trace(
            TablesAllocated(root),
            TablesAttached(root, HandOver.LATER, ((4, 1),)),
            RootActivated(root, Cost(hypercalls={"mmuext_op": 3}, pinned={4: 1}, flushes=1)),
            RunFinished(()),
        )
    )
    assert (figures["pins_l4"], figures["validations_l4"]) == (1, 0)


def test_overrun_is_what_was_missing() -> None:
    figures = measure(_trace(Panicked("ran out of memory", 3), RunFinished(())))
    assert figures["overrun"] == 3


CRASH = {
    # Free RAM of exactly 128 MiB fits where it begins on a 16 MiB boundary and not a page later.
    "aligned": ((64 * MIB, 192 * MIB), True),
    "a page late": ((64 * MIB + PAGE, 192 * MIB + PAGE), False),
    "a page late and room to spare": ((64 * MIB + PAGE, 208 * MIB), True),
    "a MiB late": ((65 * MIB, 200 * MIB), False),
    "across 896M": ((800 * MIB, 960 * MIB), False),
}


@pytest.mark.parametrize(("free", "fits"), CRASH.values(), ids=CRASH)
def test_crash_kernel_is_aligned_and_below_its_limit(free: tuple[int, int], fits: bool) -> None:
    taken = ((0, free[0]), (free[1], 5 * GIB))
    figures = measure(_trace(RunFinished(taken)))
    assert figures["crashkernel_128m_below_896m"] is fits
    assert figures["crashkernel_256m_below_4g"] is False


def test_where_nothing_is_free_nothing_fits() -> None:
    figures = measure(_trace(RunFinished(((0, 5 * GIB),))))
    for limit in ("896m", "4g"):
        assert figures[f"largest_free_below_{limit}"] == 0
        assert figures[f"crashkernel_largest_below_{limit}"] == 0
        assert figures[f"crashkernel_128m_below_{limit}"] is False


def test_waiting_tables_peak() -> None:
    """Tables of two steps wait for one hand-over: five at once, one round."""
    first = _batch([TablePages(PageRun(0x1400, 3), Source.BRK)])
    second = attrs.evolve(
        _batch([TablePages(PageRun(0x1403, 2), Source.BRK)], 1), spans={1: ((4 * MIB, 8 * MIB),)}
    )
    later = Map(0, 4 * MIB, hand_over=HandOver.LATER)
    figures = measure(
        _trace(
            StepStarted(1, later),
            TablesAllocated(first),
            StepStarted(2, later),
            TablesAllocated(second),
            TablesAttached(first, HandOver.LATER, ()),
            TablesAttached(second, HandOver.LATER, ()),
            RunFinished(()),
        )
    )
    assert (figures["peak_unhooked"], figures["steps"]) == (5, 1)


# -- definitions --------------------------------------------------------------------------------


def test_each_figure_is_defined_once() -> None:
    """A name, a header and a meaning of its own: two figures that say the same would drift
    apart.
    """
    for attribute in ("name", "header", "meaning"):
        values = Counter(getattr(figure, attribute) for figure in FIGURES.values())
        assert [value for value, count in values.items() if count > 1] == []
    assert all(name == figure.name for name, figure in FIGURES.items())


def test_what_the_short_table_shows() -> None:
    """What the comparison is about (the guess, its flips, memory for ISA DMA, operations), and the
    size of it all.
    """
    assert [name for name, figure in FIGURES.items() if figure.key] == [
        "reserved", "waste", "flips", "flips_per_table", "flips_wasted",
        "tables_below_16m", "hypercalls", "tables",
    ]  # fmt: skip


NAMES = """
    reserved used waste waste_percent overrun contiguous_need brk_used brk_size
    flips flips_per_table flips_wasted max_flips pins_l1 pins_l2 pins_l3 pins_l4
    validations_l1 validations_l2 validations_l3 validations_l4
    tables_below_1m tables_below_16m tables_below_lowmem tables_below_4g
    unused_below_1m unused_below_16m unused_below_lowmem unused_below_4g
    largest_free_below_896m largest_free_below_4g
    crashkernel_largest_below_896m crashkernel_largest_below_4g
    crashkernel_128m_below_896m crashkernel_256m_below_896m crashkernel_512m_below_896m
    crashkernel_128m_below_4g crashkernel_256m_below_4g crashkernel_512m_below_4g
    lowest_table highest_table extents
    direct_writes hypercall_writes emulated_writes hypercalls hypercalls_mmu_update
    hypercalls_update_va_mapping hypercalls_mmuext_op hypercalls_of_guess multicall_batches
    tlb_flushes
    tables tables_l1 tables_l2 tables_l3 tables_l4 tables_l5 mapped_4k mapped_large mapped_huge
    steps peak_unhooked
"""
UNITS = [
    (r"crashkernel_\d+m_below_\w+", Unit.YES_NO),
    (r"\w+_below_\w+|mapped_\w+|contiguous_need", Unit.BYTES),
    (r"lowest_table|highest_table", Unit.ADDRESS),
    (r"waste_percent", Unit.PERCENT),
    (r"flips_per_table", Unit.RATIO),
    (
        r"reserved|used|waste|overrun|brk_\w+|flips|flips_wasted|tables(_l.)?|peak_unhooked",
        Unit.PAGES,
    ),
    (r"\w+", Unit.COUNT),
]


def test_names_in_the_order_of_columns_and_their_units() -> None:
    """Files, sweeps and conditions know them by name, readers by place."""
    assert list(FIGURES) == NAMES.split()
    for name, figure in FIGURES.items():
        assert figure.unit == next(unit for text, unit in UNITS if re.fullmatch(text, name)), name


def test_of_a_trace_that_was_cut_off_nothing_is_known_to_be_taken() -> None:
    figures = measure(_trace())
    assert figures["largest_free_below_4g"] == GIB - MIB
    assert figures["reserved"] == figures["tables"] == figures["overrun"] == 0


def test_groups_are_together_and_units_known() -> None:
    groups = [figure.group for figure in FIGURES.values()]
    order = list(dict.fromkeys(groups))
    assert order == list(Group)
    assert groups == sorted(groups, key=order.index)
    assert all(figure.unit in Unit for figure in FIGURES.values())


def test_a_trace_without_a_start_has_no_figures() -> None:
    assert measure(Trace()) == {}


@pytest.mark.parametrize(
    ("allocator", "backend"),
    [("legacy_linear:kernel=3.6", "xen"), ("incremental:variant=hpa", "xen"),
     ("incremental:kernel=4.19,kaslr=yes", "native"), ("legacy_linear:kernel=3.6", "native")],
)  # fmt: skip
def test_a_figure_is_worth_the_same_when_it_is_asked_for_alone(
    allocator: str, backend: str
) -> None:
    for name in ("qemu-512m", "xen-domu-98g", "qemu-pae-320m", "asus-l8400-256m"):
        scenario = Scenario.of(bundled(name), allocator, backend)
        whole = scenario.run()
        for figure in (*FIGURES, *whole.figures, "none"):
            assert scenario_figure(whole, figure) == whole.figures.get(figure), figure
        failed = attrs.evolve(whole, verdict=Verdict(Outcome.ERROR))
        assert failed.figure("tables") is failed.figures.get("tables") is None


def scenario_figure(run: Run, name: str) -> Any:
    """Ask a run that has not worked out its figures."""
    return attrs.evolve(run).figure(name)


def test_figures_come_from_the_trace_alone(run_scenario: Callable[..., Run]) -> None:
    """Measured again, from a copy of the events, they are the same."""
    run = run_scenario("macmini-4g", "legacy_linear:kernel=3.6,good_end=end", "xen")
    copy = Trace(run.trace)
    assert measure(copy) == {name: run.figures[name] for name in FIGURES}


def test_figures_at_the_edges_of_what_they_count() -> None:
    """The last page below 4 GiB is given back and found again; RAM ends inside of a page; a root
    waits for the tables below it.
    """
    machine = attrs.evolve(MACHINE, memory_map=MemoryMap.sanitise([(MIB, GIB + 100, E820Type.RAM)]))
    block = PageRun(0xFFFF9, 7)
    again = TablePages(PageRun(0xFFFFF, 1), Source.MEMBLOCK)
    batch = _batch([TablePages(block.head(2), Source.RESERVATION), again], index=1)
    everything = (0, machine.mode.table_span(4))
    root = Batch(
        index=0,
        mode=machine.mode,
        start=0,
        end=everything[1],
        spans={4: (everything,)},
        leaf_levels=(),
        pages=(TablePages(PageRun(0x200, 1), Source.BRK),),
    )
    figures = measure(
        Trace(
            [
                RunStarted(machine, BOOT, "a", "b", ()),
                TablesReserved((block,)),
                TablesAllocated(root),
                StepStarted(1, Map(0, 4 * MIB, hand_over=HandOver.LATER)),
                TablesAllocated(batch),
                RunFinished(()),
            ]
        )
    )
    assert figures["waste_percent"] == 71.43
    assert figures["tables_below_4g"] == 4 * PAGE
    assert figures["unused_below_4g"] == 5 * PAGE
    assert figures["largest_free_below_4g"] == GIB - MIB
    assert figures["peak_unhooked"] == 4
