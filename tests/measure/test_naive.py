"""Every figure again, the slow way: a dictionary entry a page, on events thrown together by chance.

No engine made these traces, so that what it never does is counted, too.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import attrs
import portion
import pytest

from paravirt_mm import (
    MODES,
    Batch,
    BootState,
    Cost,
    CpuFeatures,
    E820Type,
    EntryKind,
    Event,
    HandOver,
    KernelImage,
    Machine,
    Map,
    MemoryMap,
    NewRoot,
    PageRun,
    PagingMode,
    Source,
    TablePages,
    Trace,
    Way,
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
    TablesAllocated,
    TablesAttached,
    TablesPinned,
    TablesReserved,
)
from paravirt_mm.measure.figures import FIGURES, measure

KIB, MIB, GIB, PAGE = 1 << 10, 1 << 20, 1 << 30, 4096
WINDOWS = (0, 0xF8, 0xFF8, 0x37FF8, 0x50000, 0xFFFF8)
"""Pfns about 0, 1 MiB, 16 MiB, the end of lowmem, and 4 GiB."""
CALLS = ("mmu_update", "update_va_mapping", "mmuext_op", "another")


class Chance(random.Random):
    """Parts of events."""

    def run(self) -> PageRun:
        start, count = self.choice(WINDOWS) + self.randint(0, 12), self.randint(1, 6)
        return self.choice([PageRun(start, count), PageRun(start + count, count, -1)])

    def runs(self) -> tuple[PageRun, ...]:
        return tuple(self.run() for _ in range(self.randint(1, 3)))

    def cost(self) -> Cost:
        return Cost(
            hypercalls={name: self.randint(0, 9) for name in self.sample(CALLS, 2)},
            batches=self.randint(0, 3),
            pinned={level: self.randint(0, 5) for level in self.sample(range(1, 5), 2)},
            way=self.choice(list(Way)),
            flushes=self.randint(0, 2),
        )

    def batch(self, mode: PagingMode) -> Batch:
        # It holds a root now and then.
        levels = self.sample(range(1, mode.root_level + 1), self.randint(1, mode.root_level))
        spans = {
            level: ((0, mode.table_span(level) * (1 if level == mode.root_level else 2)),)
            for level in levels
        }
        left = sum(1 if level == mode.root_level else 2 for level in levels)
        pages = []
        while left:
            run = self.run()
            pages.append(TablePages(run.head(min(left, run.count)), self.choice(list(Source))))
            left -= pages[-1].run.count
        return Batch(0, mode, 0, PAGE, spans, (1,), tuple(pages))

    def event(self, mode: PagingMode) -> Event:
        batch, order = self.batch(mode), self.choice(list(HandOver))
        low, high = self.run().span
        return self.choice([
            StepStarted(1, Map(0, PAGE, hand_over=order)),
            StepStarted(1, NewRoot()),
            TablesReserved(self.runs()),
            TablesReserved(()),
            TablesAllocated(batch),
            TablesAllocated(batch),
            EntriesWritten(0, 1, EntryKind.LEAF, self.randint(1, 9), 0, self.cost()),
            RangeMapped(Leaves(self.randint(1, 3), low, high), ((low, high),)),
            MadeReadonly(batch, self.cost()),
            MadeWritable(self.runs(), 0, self.cost()),
            TablesPinned(batch, self.cost()),
            TablesAttached(batch, order, ((self.randint(1, 4), self.randint(1, 5)),)),
            RootActivated(batch, self.cost()),
        ])  # fmt: skip

    def trace(self, mode: PagingMode) -> Trace:
        ram = [(0x1000, 0x9F000 + 0x800), (MIB, 4 * GIB - 16 * MIB), (4 * GIB, 5 * GIB)]
        machine = Machine(
            name="by chance",
            memory_map=MemoryMap.sanitise((low, high, E820Type.RAM) for low, high in ram),
            mode=mode,
            features=CpuFeatures(nx=mode.has_nx),
            kernel=KernelImage(16 * MIB, 20 * MIB, 20 * MIB, 20 * MIB + self.randint(0, 9) * PAGE),
        )
        boot = BootState(
            mapped=(),
            max_pfn_mapped=0,
            features=machine.features,
            boot_tables=(self.run().span,),
            kernel=self.choice([None, attrs.evolve(machine.kernel, brk_end=20 * MIB + 3 * PAGE)]),
        )
        events = [self.event(mode) for _ in range(self.randint(0, 25))]
        taken = [self.span() for _ in range(self.randint(0, 6))]
        end: list[Event] = [RunFinished(tuple(taken))]
        if self.randrange(3) == 0:
            end.insert(0, Panicked("by chance", self.randint(0, 9)))
        return Trace([RunStarted(machine, boot, "a", "b", ()), *events, *end])

    def span(self) -> tuple[int, int]:
        low = self.choice([0, 64, 700, 832, 1000, 3000, 4000]) * MIB + self.randint(0, 3) * 8 * MIB
        low += self.choice([0, 0, PAGE])
        return low, low + self.choice([PAGE, 16 * MIB, 250 * MIB, 2 * GIB])


def pfns(run: PageRun) -> list[int]:
    return [run.start + number * run.step for number in range(run.count)]


def pages(spans: Iterable[tuple[int, int]]) -> set[int]:
    return {pfn for low, high in spans for pfn in range(low // PAGE, high // PAGE)}


class Naive:
    """Goes through a trace once and counts."""

    def __init__(self, trace: Trace) -> None:
        start = trace.start
        self.mode, self.kernel = start.machine.mode, start.boot.kernel or start.machine.kernel
        self.held, self.tables, self.used = set[int](), set[int](), set[int]()
        self.readonly = pages(start.boot.boot_tables)
        self.flips, self.calls, self.ways = Counter[int](), Counter[str](), Counter[str]()
        self.pins, self.validations, self.levels = Counter[int](), Counter[int](), Counter[int]()
        self.sources, self.mapped = Counter[str](), Counter[int]()
        self.reserved = self.batches = self.flushes = self.guess = self.rounds = 0
        self.waiting = self.peak = self.block = self.overrun = 0
        self.later = False
        self.last: tuple[tuple[int, int], ...] = ()
        for event in trace:
            cost = getattr(event, "cost", Cost())
            self.calls.update(cost.hypercalls)
            self.batches += cost.batches
            self.flushes += cost.flushes
            name = re.sub("(?<!^)([A-Z])", r"_\1", type(event).__name__).lower()
            getattr(self, f"on_{name}", lambda _: None)(event)

    def flip(self, pfns: Iterable[int], readonly: bool) -> None:
        for pfn in pfns:
            if (pfn in self.readonly) != readonly:
                self.flips[pfn] += 1
            (self.readonly.add if readonly else self.readonly.discard)(pfn)

    def on_step_started(self, event: StepStarted) -> None:
        if isinstance(event.step, Map):
            self.later = event.step.hand_over is HandOver.LATER
            self.rounds += event.step.hand_over is HandOver.EACH

    def on_tables_reserved(self, event: TablesReserved) -> None:
        for run in event.pages:
            self.reserved += run.count
            self.block = max(self.block, run.count)
            self.held |= set(pfns(run))

    def on_tables_allocated(self, event: TablesAllocated) -> None:
        count = 0
        for part in event.batch.pages:
            count += part.run.count
            self.sources[part.source] += part.run.count
            self.tables |= set(pfns(part.run))
            if part.source == "reservation":
                self.used |= set(pfns(part.run))
            else:
                self.block = max(self.block, 1)
        for level, ((low, high),) in event.batch.spans.items():
            self.levels[level] += (high - low) // self.mode.table_span(level)
        if self.later or self.mode.root_level in event.batch.spans:
            self.waiting += count
            self.peak = max(self.peak, self.waiting)
        else:
            self.peak = max(self.peak, len(event.batch.spans))

    def on_entries_written(self, event: EntriesWritten) -> None:
        self.ways[event.cost.way] += event.count

    def on_range_mapped(self, event: RangeMapped) -> None:
        self.mapped[event.leaves.level] += event.leaves.end - event.leaves.start
        self.flip(pages(event.readonly), True)

    def on_made_readonly(self, event: MadeReadonly) -> None:
        for run in event.batch.runs:
            self.flip(pfns(run), True)

    def on_made_writable(self, event: MadeWritable) -> None:
        self.guess += sum(event.cost.hypercalls.values())
        for run in event.pages:
            self.flip(pfns(run), False)

    def on_tables_pinned(self, event: TablesPinned) -> None:
        self.pins.update(event.cost.pinned)

    def on_root_activated(self, event: RootActivated) -> None:
        self.pins.update(event.cost.pinned)
        self.validations.subtract(event.cost.pinned)

    def on_tables_attached(self, event: TablesAttached) -> None:
        self.validations.update(dict(event.validated))
        if event.order is HandOver.LATER:
            self.rounds += self.waiting > 0
            self.waiting = 0

    def on_panicked(self, event: Panicked) -> None:
        self.overrun = event.missing_tables

    def on_run_finished(self, event: RunFinished) -> None:
        self.last = event.reserved

    def figures(self) -> dict[str, Any]:
        made, flips = sum(self.levels.values()), sum(self.flips.values())
        used, reserved = self.sources["reservation"], self.reserved
        return {
            "reserved": reserved, "used": used, "waste": reserved - used,
            "waste_percent": round(100 * (reserved - used) / reserved, 2) if reserved else None,
            "overrun": self.overrun, "contiguous_need": self.block * 4096,
            "brk_used": self.sources["brk"],
            "brk_size": (self.kernel.brk_end - self.kernel.brk_start) // 4096,
            "flips": flips, "flips_per_table": round(flips / made, 4) if made else None,
            "flips_wasted": sum(n for pfn, n in self.flips.items() if pfn not in self.readonly),
            "max_flips": max(self.flips.values(), default=0),
            "lowest_table": min(self.tables) * 4096 if self.tables else None,
            "highest_table": max(self.tables) * 4096 if self.tables else None,
            "extents": len([pfn for pfn in self.tables if pfn - 1 not in self.tables]),
            "direct_writes": self.ways["direct"], "hypercall_writes": self.ways["hypercall"],
            "emulated_writes": self.ways["emulated"], "hypercalls": sum(self.calls.values()),
            "hypercalls_of_guess": self.guess, "multicall_batches": self.batches,
            "tlb_flushes": self.flushes, "tables": made, "steps": self.rounds,
            "peak_unhooked": self.peak, "mapped_4k": self.mapped[1],
            "mapped_large": self.mapped[2], "mapped_huge": self.mapped[3],
            **{f"hypercalls_{name}": self.calls[name] for name in CALLS[:3]},
            **{f"pins_l{level}": self.pins[level] for level in range(1, 5)},
            **{f"validations_l{level}": self.validations[level] for level in range(1, 5)},
            **{f"tables_l{level}": self.levels[level] for level in range(1, 6)},
            **self.low_memory(), **crash_kernels(self.last),
        }  # fmt: skip

    def low_memory(self) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        limits = {"1m": MIB, "16m": 16 * MIB, "lowmem": 896 * MIB, "4g": 4 * GIB}
        for name, limit in limits.items():
            known = name != "lowmem" or self.mode.is_32bit
            for what, which in (("tables", self.tables), ("unused", self.held - self.used)):
                below = sum(4096 for pfn in which if pfn * 4096 < limit)
                found[f"{what}_below_{name}"] = below if known else None
        return found


def crash_kernels(taken: tuple[tuple[int, int], ...]) -> dict[str, int | bool]:
    """Try every multiple of 16 MiB."""
    found: dict[str, int | bool] = {}
    free = portion.closedopen(0x1000, 0x9F000) | portion.closedopen(MIB, 4 * GIB - 16 * MIB)
    free |= portion.closedopen(4 * GIB, 5 * GIB)
    for low, high in taken:
        free -= portion.closedopen(low, high)
    for name, limit in (("896m", 896 * MIB), ("4g", 4 * GIB)):
        spans = [(p.lower, p.upper) for p in free & portion.closedopen(0, limit) if not p.empty]
        bases = range(0, 4 * GIB, 16 * MIB)
        rooms = [high - base for low, high in spans for base in bases if low <= base < high]
        room = max(rooms, default=0)
        found[f"largest_free_below_{name}"] = max((high - low for low, high in spans), default=0)
        found[f"crashkernel_largest_below_{name}"] = room // MIB * MIB
        for size in (128, 256, 512):
            found[f"crashkernel_{size}m_below_{name}"] = room >= size * MIB
    return found


@pytest.mark.parametrize("count", [15, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["x86_64", "i386-pae", "i386", "x86_64-la57"])
def test_every_figure_is_counted_page_by_page(name: str, count: int) -> None:
    chance = Chance(name)
    for _ in range(count):
        trace = chance.trace(MODES[name])
        assert measure(trace) == Naive(trace).figures()
    assert set(Naive(trace).figures()) == set(FIGURES)
