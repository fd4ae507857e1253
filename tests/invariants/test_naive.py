"""The rules again, page by page: sets of pfns and plain loops, on traces that were spoiled by
chance.

What the checker keeps as ranges is here a set, what it stops at the first of is looked for in all,
and nothing is kept that can be worked out again. Both must find the same, at the same events.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from itertools import count, takewhile
from typing import Any

import attrs
import pytest

from paravirt_mm import (
    ActivateRoot,
    AttachTables,
    Boot,
    CpuFeatures,
    E820Type,
    Event,
    HandOver,
    HandOverTables,
    KernelImage,
    Machine,
    Map,
    MemoryMap,
    NewRoot,
    PageRun,
    Promise,
    Scenario,
    Source,
    Step,
    StepResult,
    TableDemand,
    TablePages,
    Trace,
    hookimpl,
)
from paravirt_mm.engine.answers import EntryKind
from paravirt_mm.engine.trace import (
    EntriesWritten,
    MadeReadonly,
    MadeWritable,
    MemoryTaken,
    OperationRejected,
    Panicked,
    RangeMapped,
    RootActivated,
    RunFinished,
    RunStarted,
    StepStarted,
    SurplusReleased,
    TablesAllocated,
    TablesAttached,
    TablesReserved,
)
from paravirt_mm.invariants.rules import check
from paravirt_mm.testing import (
    AscendingAllocator,
    BlockAllocator,
    PlainPlatform,
    TypingPlatform,
    registry_with,
)

MIB, PAGE = 1 << 20, 4096
Pages = set[int]
Found = tuple[int, int, int, str]
"""Rule, event, address, words."""

MACHINE = Machine(
    name="twelve megabytes",
    memory_map=MemoryMap.sanitise(
        (low, high, E820Type.RAM)
        for low, high in [(0x1000, 0xA0000), (MIB, 6 * MIB), (7 * MIB, 12 * MIB)]
    ),
    features=CpuFeatures(pse=True, gbpages=False),
    kernel=KernelImage(2 * MIB, 3 * MIB, 3 * MIB, 3 * MIB + 64 * PAGE),
    reserved=((MIB, MIB + 4 * PAGE),),
)


def pages(spans: Iterable[tuple[int, int]]) -> Pages:
    return {pfn for low, high in spans for pfn in range(low // PAGE, high // PAGE)}


def of_run(run: PageRun) -> Pages:
    return {run.start + number * run.step for number in range(run.count)}


def in_one_piece(pfns: Pages) -> Iterator[Pages]:
    """Yield the runs of pages that follow each other."""
    for low in pfns:
        if low - 1 not in pfns:
            yield set(takewhile(pfns.__contains__, count(low)))


class Naive:
    """Goes through a trace once; what each event does to the books stands in one place."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        start = trace.start
        self.boot, machine = start.boot, start.machine
        kernel = self.boot.kernel or machine.kernel
        self.typed = self.boot.typed
        self.level = 1
        if self.boot.features.pse:
            self.level = 3 if self.boot.features.gbpages else 2
        self.ram = pages((e.start, e.end) for e in machine.memory_map if e.type == 1)
        self.kernel = pages([(kernel.start, max(kernel.end, kernel.brk_end))])
        self.taken = self.kernel | pages(machine.reserved) | pages(self.boot.reserved)
        self.brk = pages([(kernel.brk_start, kernel.brk_end)])
        self.tables = pages(self.boot.boot_tables)
        self.readonly = pages(self.boot.boot_tables)
        self.reachable = pages(self.boot.mapped)
        self.mapped = pages(self.boot.direct_mapped)
        self.needed = {pfn for pfn in self.ram if pfn * PAGE < machine.map_limit}
        self.held: Pages = set()
        self.gone: Pages = set()
        self.waiting: list[tuple[Pages, set[int]]] = []
        self.fresh = self.faults_in = False
        self.built: list[int] = []
        self.attached, self.handed_over = {-1}, set[int]()
        self.writers: tuple[int, set[int]] = (-1, set())
        self.returned: list[Pages] = []
        self.found: list[Found] = []
        for self.number, event in enumerate(trace.events):
            name = re.sub("(?<!^)([A-Z])", r"_\1", type(event).__name__).lower()
            getattr(self, name, lambda _: None)(event)

    def wrong(self, rule: int, where: Pages, words: str) -> bool:
        if where:
            self.found.append((rule, self.number, min(where) * PAGE, words))
        return bool(where)

    def free(self, run: Pages) -> None:
        _ = self.wrong(1, run - self.ram, "a table page is not RAM") or self.wrong(
            1, run & self.taken, "a table page is taken by something else"
        )

    def step_started(self, event: StepStarted) -> None:
        self.faults_in = getattr(event.step, "faults_in", False) and not self.typed

    def tables_reserved(self, event: TablesReserved) -> None:
        for run in map(of_run, event.pages):
            self.free(run)
            self.held |= run

    def tables_allocated(self, event: TablesAllocated) -> None:
        if 4 in event.batch.spans:
            self.fresh, self.mapped, self.waiting = True, set(), []
        self.built.append(event.batch.index)
        for part in event.batch.pages:
            run, source = of_run(part.run), part.source
            if self.wrong(1, run & self.tables, "a page becomes a table twice"):
                pass
            elif source is Source.BRK:
                self.wrong(1, run - self.brk, "a page said to be brk is not")
            elif source is Source.RESERVATION:
                self.wrong(1, run - self.held, "a page said to be set aside is not")
                self.held -= run
            else:
                self.free(run)
            self.wrong(1, run & self.gone, "a table page was taken away by the platform")
            if source is not Source.RESERVATION and not self.faults_in:
                self.wrong(2, run - self.reachable, "a table page cannot be reached yet")
            self.tables |= run
            if source is not Source.BRK:
                self.taken |= run

    def memory_taken(self, event: MemoryTaken) -> None:
        for span in event.spans:
            self.wrong(1, pages([span]) & self.tables, "the platform takes a page table away")
            self.gone |= pages([span])
            self.taken |= pages([span])

    def entries_written(self, event: EntriesWritten) -> None:
        if event.kind is EntryKind.LEAF:
            batch, owners = self.writers
            self.writers = event.batch, (owners if batch == event.batch else set()) | {event.owner}

    def range_mapped(self, event: RangeMapped) -> None:
        leaves = pages([(event.leaves.start, event.leaves.end)])
        if event.leaves.level > self.level:
            size = {2: "2M", 3: "1G", 4: "512G"}[event.leaves.level]
            self.wrong(4 if self.typed else 3, leaves, f"the platform has no {size} pages")
        self.wrong(3, leaves & self.mapped, "an address is mapped twice")
        self.mapped |= leaves
        self.readonly |= pages(event.readonly)
        if self.typed:
            writable = (leaves - pages(event.readonly)) & self.readonly & self.tables
            self.wrong(4, writable, "a page table is mapped writable")
        self.waiting.append((leaves, self.writers[1]))
        self.look()

    def look(self) -> None:
        """What waits for nothing can be written through."""
        for leaves, owners in self.waiting:
            if owners <= self.attached and not self.fresh:
                self.reachable |= leaves
        self.waiting = [each for each in self.waiting if not each[1] <= self.attached]

    def made_readonly(self, event: MadeReadonly) -> None:
        self.readonly |= set().union(*map(of_run, event.batch.runs))
        self.handed_over.add(event.batch.index)

    def made_writable(self, event: MadeWritable) -> None:
        for run in map(of_run, event.pages):
            self.readonly -= run
            self.wrong(
                4, (self.typed and run & self.tables) or set(), "a page table is made writable"
            )

    def tables_attached(self, event: TablesAttached) -> None:
        index = event.batch.index
        if self.typed and index not in self.handed_over:
            words = "tables are attached before they are handed over"
            self.wrong(4, of_run(event.batch.runs[0]), words)
        self.attached.add(index)
        self.look()

    def root_activated(self, event: RootActivated) -> None:
        walked = self.mapped - set().union(*(leaves for leaves, _ in self.waiting))
        if self.typed and event.batch and not set(self.built) <= self.handed_over:
            words = "CR3 is loaded with tables not handed over"
            self.wrong(4, of_run(event.batch.runs[0]), words)
        else:
            words = "CR3 is loaded with a tree that does not map the kernel"
            self.wrong(4, self.kernel - walked, words)
        self.reachable = walked | (set() if self.fresh else self.reachable)
        self.fresh = False

    def surplus_released(self, event: SurplusReleased) -> None:
        for run in map(of_run, event.pages):
            self.wrong(5, run & self.tables, "a page given back is a page table")
            self.held -= run
            self.returned.append(run)

    def run_finished(self, event: RunFinished) -> None:
        if any(isinstance(e, Panicked | OperationRejected) for e in self.trace.events[-2:]):
            return
        wrong = partial(self.wrong, 3)
        promised = pages(self.trace.start.promised)
        for run in in_one_piece(promised):
            wrong(run - self.mapped, "promised to be mapped and is not")
        promised |= pages(self.boot.direct_mapped)
        wrong(self.needed - promised, "RAM that the kernel must reach is not promised")
        wrong(self.mapped - promised, "mapped without having been promised")
        lost = [index for index in self.built if index not in self.attached]
        wrong({0} if lost else set(), f"batch {[*lost, None][0]} of tables was never attached")
        unused = self.fresh and not lost
        self.wrong(4, {0} if unused else set(), "CR3 is never loaded with the new tree")
        wrong = partial(self.wrong, 5)
        reserved = pages(event.reserved)
        wrong(self.held, "a page set aside for tables was not given back")
        wrong(reserved - self.taken, "reserved in the end, and nobody took it")
        wrong(self.readonly - self.tables, "a page is read-only in the end, and no table")
        for run in self.returned:
            wrong((run - self.tables) & reserved, "a page given back is still reserved")
            wrong((run - self.tables) & self.readonly, "a page given back is read-only")


@attrs.frozen
class OwnTree(AscendingAllocator):
    """Builds a tree of its own from brk, in tables that wait, and goes on from the bottom."""

    @hookimpl
    def pvmm_promise(self, boot: Boot) -> Promise:
        return Promise(tuple(boot.memblock.memory(0, boot.machine.map_limit)), brk_pages=40)

    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
        yield NewRoot()
        for start, end in ((MIB, 2 * MIB), (2 * MIB, 4 * MIB), (4 * MIB, 6 * MIB)):
            yield Map(start, end, hand_over=HandOver.LATER)
            yield HandOverTables()
            yield AttachTables()
        yield ActivateRoot()
        yield Map(0x1000, 0xA0000, hand_over=HandOver.LATER)
        yield Map(7 * MIB, 9 * MIB, hand_over=HandOver.LATER)
        yield HandOverTables()
        yield AttachTables()
        yield Map(9 * MIB, 12 * MIB)

    @hookimpl
    def pvmm_allocate_tables(
        self, boot: Boot, step: Step, demand: TableDemand
    ) -> Sequence[TablePages]:
        if boot.tables_made < 6:
            return [TablePages(boot.brk_free.head(demand.count), Source.BRK)]
        return AscendingAllocator.pvmm_allocate_tables(self, boot, step, demand)


@attrs.frozen
class AllMapped(TypingPlatform):
    """Types pages, and maps all memory at boot, though not in the kernel's tree."""

    @hookimpl
    def pvmm_boot_state(self, machine: Machine) -> Any:
        state = TypingPlatform.pvmm_boot_state(self, machine)
        return attrs.evolve(state, mapped=((0, 12 * MIB),), direct_mapped=(), tables={})


def traces() -> Iterator[Trace]:
    registry = registry_with(
        installed=False, up=AscendingAllocator, block=BlockAllocator, own=OwnTree,
        plain=PlainPlatform, typing=TypingPlatform, all=AllMapped,
    )  # fmt: skip
    for allocator in (f"up:first_step={MIB}", "block:spare=9", "own"):
        for backend in ("plain", f"typing:headroom={2 * MIB}", "all"):
            yield Scenario.of(MACHINE, allocator, backend).run(registry).trace


def untyped(trace: Trace) -> Trace:
    """The same events where nobody types pages."""
    start = trace.start
    return Trace(
        [attrs.evolve(start, boot=attrs.evolve(start.boot, typed=False)), *trace.events[1:]]
    )


RIGHT = list(traces())
TRACES = [*RIGHT, *(untyped(trace) for trace in RIGHT if trace.start.boot.typed)]


def spans(chance: random.Random, most: int = 300) -> tuple[int, int]:
    """Some pages, often near what there is."""
    start = chance.choice([0, 1, 256, 512, 700, 768, 800, 1500, 1536, 1792, 2900, 3040, 3072])
    start = max(0, start + chance.randint(-8, 8))
    return start * PAGE, (start + chance.choice([1, 1, 2, 7, most])) * PAGE


UNMAPPED = (MIB + 8 * PAGE, MIB + 16 * PAGE)
"""What a platform that types pages maps neither at boot nor in its tables."""


def run_of(chance: random.Random) -> PageRun:
    low, high = (edge // PAGE for edge in chance.choice([spans(chance, 20), UNMAPPED]))
    return chance.choice([PageRun(low, high - low), PageRun(high - 1, high - low, -1)])


def spoiled(event: Event, chance: random.Random) -> Event:
    """The same event with something else in it."""
    if isinstance(event, RangeMapped):
        leaves, (low, high) = event.leaves, spans(chance)
        return attrs.evolve(
            event,
            leaves=chance.choice([
                attrs.evolve(leaves, level=chance.randint(1, 4)),
                attrs.evolve(leaves, start=low, end=high),
                attrs.evolve(leaves, end=leaves.end + chance.choice([1, 5, 300]) * PAGE),
            ]),
            readonly=chance.choice([(), event.readonly, (spans(chance),)]),
        )  # fmt: skip
    if isinstance(event, TablesAllocated):
        parts = list(event.batch.pages)
        place = chance.randrange(len(parts))
        source = chance.choice([*Source, parts[place].source])
        parts[place] = TablePages(chance.choice([run_of(chance), parts[place].run]), source)
        return attrs.evolve(event, batch=attrs.evolve(event.batch, pages=tuple(parts)))
    if isinstance(event, RunStarted):
        return chance.choice([
            attrs.evolve(event, boot=attrs.evolve(event.boot, typed=not event.boot.typed)),
            attrs.evolve(event, promised=event.promised[:-1]),
            attrs.evolve(event, promised=((0, 12 * MIB),)),
            attrs.evolve(event, promised=(*event.promised, (13 * MIB, 14 * MIB))),
            attrs.evolve(event, boot=attrs.evolve(event.boot, direct_mapped=(spans(chance),))),
            attrs.evolve(event, boot=attrs.evolve(event.boot, features=CpuFeatures(pse=False))),
        ])  # fmt: skip
    if isinstance(event, RunFinished):
        return chance.choice([
            RunFinished((*event.reserved, spans(chance))),
            RunFinished(event.reserved[1:]),
        ])  # fmt: skip
    if isinstance(event, StepStarted) and isinstance(event.step, Map):
        return attrs.evolve(event, step=attrs.evolve(event.step, faults_in=True))
    if isinstance(event, EntriesWritten):
        return attrs.evolve(event, owner=chance.randint(-1, 5), kind=chance.choice(list(EntryKind)))
    return event


def changed(trace: Trace, chance: random.Random) -> Trace:
    """One to three changes: an event that is not there, there twice, elsewhere, or another one."""
    events = list(trace)
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(1, len(events))
        event, what = events[place], chance.randrange(6)
        if what == 0:
            del events[place]
        elif what == 1:
            events.insert(chance.randrange(1, len(events)), event)
        elif what == 2:
            events.insert(chance.randrange(1, len(events)), events.pop(place))
        elif what == 3:
            extra: Sequence[Event] = [
                MemoryTaken((spans(chance), spans(chance))),
                SurplusReleased((run_of(chance), run_of(chance))),
                MadeWritable((run_of(chance), run_of(chance)), 0, NOTHING),
                TablesReserved((run_of(chance), run_of(chance))),
                Panicked("spoiled"),
            ]
            events.insert(chance.randint(1, len(events)), chance.choice(extra))
        else:
            place = chance.choice([0, len(events) - 1, place, place, place])
            events[place] = spoiled(events[place], chance)
    return Trace(events)


NOTHING: Any = None
"""A cost, which no rule looks at."""


def told(trace: Trace, judge: Callable[[Trace], Iterable[Any]]) -> list[Found]:
    return sorted((each.rule, each.event, each.address, each.message) for each in judge(trace))


@pytest.mark.parametrize(
    "seed",
    [pytest.param(n, marks=pytest.mark.slow if n % 6 else ()) for n in range(len(TRACES))],
)
def test_the_same_is_found_page_by_page(seed: int) -> None:
    chance = random.Random(seed)
    trace = TRACES[seed]
    assert Naive(trace).found == told(trace, check) == []
    if trace.start.boot.reserved:
        bare = [
            attrs.evolve(e, readonly=()) if isinstance(e, RangeMapped) else e for e in trace.events
        ]
        assert told(Trace(bare), check) == sorted(Naive(Trace(bare)).found)
    kinds: set[int] = set()
    for _ in range(60):
        wrong = changed(trace, chance)
        found = sorted(Naive(wrong).found)
        assert told(wrong, check) == found
        kinds |= {rule for rule, *_ in found}
    assert kinds >= {1, 3, 5}


EVEN = tuple((number * MIB, (number + 1) * MIB) for number in range(0, 14, 2))


def everywhere(trace: Trace) -> list[list[Event]]:
    """Events about all of memory and of its even MiB, each wrong in many places at once."""
    every, even = PageRun(0, 4096), tuple(PageRun.of_span(*span) for span in EVEN)
    batch = list(trace.of(TablesAllocated))[1].batch
    leaves = attrs.evolve(next(trace.of(RangeMapped)).leaves, start=0, end=14 * MIB)
    runs = (every, *even, every)

    def tables(source: Source, *runs: PageRun) -> TablesAllocated:
        pages = tuple(TablePages(run, source) for run in runs)
        return TablesAllocated(attrs.evolve(batch, pages=pages))

    return [
        *([tables(source, *runs)] for source in Source),
        [MemoryTaken(tuple(run.span for run in runs))],
        [MemoryTaken(EVEN), tables(Source.MEMBLOCK, every, every)],
        [RangeMapped(leaves, ())],
        [RangeMapped(leaves, EVEN)],
        [
            RangeMapped(attrs.evolve(leaves, start=low, end=end), ((low, end),))
            for low, end in EVEN[:3]
        ],
        [MadeWritable(runs, 0, NOTHING)],
        [tables(Source.MEMBLOCK, *even), MadeWritable(runs, 0, NOTHING)],
        [SurplusReleased(even), SurplusReleased(runs)],
        [TablesReserved(runs)],
        [MadeReadonly(attrs.evolve(batch, pages=(TablePages(every, Source.BRK),)), NOTHING)],
        [RootActivated(batch, NOTHING)],
    ]


@pytest.mark.parametrize(
    "number",
    [pytest.param(n, marks=pytest.mark.slow if n % 6 else ()) for n in range(0, len(TRACES), 3)],
)
def test_of_what_is_wrong_in_many_places_the_first_is_told(number: int) -> None:
    """One finding a rule and run of pages, the lowest; what comes after it is looked at, too."""
    trace, chance = TRACES[number], random.Random(number)
    start, *events, end = trace.events
    odd = attrs.evolve(start, promised=EVEN)
    for n, more in enumerate(everywhere(trace)):
        place = chance.randint(2, len(events)) if n else 0
        for first, last in ((start, end), (odd, RunFinished(EVEN))):
            wrong = Trace([first, *events[:place], *more, *events[place:], last])
            assert told(wrong, check) == sorted(Naive(wrong).found)
