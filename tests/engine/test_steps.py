"""Two constructions step by step, counted by hand: what plugins are asked, what they are told back,
and what stands in the trace.
"""

from __future__ import annotations

import gc
from collections.abc import Generator, Sequence
from typing import Any, ClassVar

import attrs
import pytest

from paravirt_mm import (
    ActivateRoot,
    AttachTables,
    Batch,
    Boot,
    BootState,
    Cost,
    CpuFeatures,
    E820Type,
    EntryWrite,
    HandOver,
    HandOverTables,
    KernelFile,
    KernelImage,
    Machine,
    Map,
    MemoryMap,
    NewRoot,
    PageRun,
    Piece,
    Promise,
    RecordedBoot,
    Refusal,
    Run,
    Scenario,
    Source,
    Span,
    Step,
    StepResult,
    TableDemand,
    TablePages,
    hookimpl,
)
from paravirt_mm.engine import build as engine
from paravirt_mm.engine.panic import KernelPanic
from paravirt_mm.engine.trace import (
    EntriesWritten,
    MadeReadonly,
    MadeWritable,
    MemoryTaken,
    PagesTaken,
    Panicked,
    RangeMapped,
    RootActivated,
    RunFinished,
    StepStarted,
    SurplusReleased,
    TablesAllocated,
    TablesAttached,
    TablesPinned,
    TablesReserved,
)
from paravirt_mm.testing import PlainPlatform, registry_with

MIB, GIB, PAGE = 1 << 20, 1 << 30, 4096
MACHINE = Machine(
    name="sixteen megabytes",
    memory_map=MemoryMap.sanitise([(0, 16 * MIB, E820Type.RAM)]),
    features=CpuFeatures(pse=True, gbpages=False),
    kernel=KernelImage(2 * MIB, 3 * MIB, 3 * MIB, 3 * MIB + 16 * PAGE),
)
BRK = 3 * MIB // PAGE
LATER = HandOver.LATER
SAID: list[Any] = []
TOLD: list[Any] = []


@attrs.frozen
class Clerk(PlainPlatform):
    """Types pages, and writes down what it is asked."""

    @hookimpl
    def pvmm_boot_state(self, machine: Machine) -> BootState:
        state = PlainPlatform.pvmm_boot_state(self, machine)
        return attrs.evolve(state, typed=True, max_pfn_mapped=0x700)

    @hookimpl
    def pvmm_write_entries(self, write: EntryWrite) -> Cost:
        live = "live" if write.live else "quiet"
        kept = "" if write.readonly_children else " writable"
        SAID.append(f"{write.count} {write.kind} L{write.level} {live}{kept}")
        return Cost({"write": write.count})

    @hookimpl
    def pvmm_make_readonly(self, tables: Batch) -> Cost:
        SAID.append(f"read-only {tables.count}")
        return Cost({"protect": tables.count})

    @hookimpl
    def pvmm_pin_tables(self, tables: Batch) -> Cost | None:
        count = tables.tables(1)
        SAID.append(f"pin {count}")
        return Cost({"pin": count}, pinned={1: count}) if count else None

    @hookimpl
    def pvmm_map_readonly(self, boot: Boot, start: int, end: int) -> Sequence[Span]:
        return [*boot.table_pages(start, end)] if end - start < 4 * MIB else []

    @hookimpl
    def pvmm_make_writable(self, pages: Sequence[PageRun]) -> Cost:
        SAID.append(f"writable {sum(run.count for run in pages)}")
        return Cost({"protect": 1})

    @hookimpl
    def pvmm_activate_cr3(self, root: Batch | None) -> Cost:
        SAID.append(f"CR3 {root.index if root else 'boot'}")
        return Cost(flushes=3)

    @hookimpl
    def pvmm_memory_taken(self, step: Step) -> Sequence[Span] | None:
        return [(15 * MIB, 15 * MIB + PAGE)] if isinstance(step, AttachTables) else None


@attrs.frozen
class Two:
    """Builds a tree of its own in tables that wait, then goes on table by table."""

    pvmm_api: ClassVar[int] = 1

    @hookimpl
    def pvmm_promise(self) -> Promise:
        return Promise(((0, 16 * MIB),))

    @hookimpl
    def pvmm_allocate_tables(self, boot: Boot, demand: TableDemand) -> list[TablePages]:
        SAID.append(f"{dict(demand.by_level)} for {demand.start >> 20}..{demand.end >> 20}")
        return [TablePages(boot.brk_free.head(demand.count), Source.BRK)]

    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
        def note(result: StepResult) -> None:
            waiting = sum(batch.count for batch in boot.waiting)
            TOLD.append(
                (len(result.pieces), result.tables, result.mapped_end >> 20,
                 boot.max_pfn_mapped, boot.tables_made, waiting, boot.brk_free.count)
            )  # fmt: skip

        note((yield NewRoot()))
        note((yield Map(0, 3 * MIB, hand_over=LATER)))
        note((yield Map(3 * MIB, 4 * MIB, hand_over=LATER)))
        note((yield HandOverTables()))
        note((yield HandOverTables()))
        note((yield AttachTables()))
        note((yield AttachTables()))
        note((yield ActivateRoot()))
        note((yield Map(4 * MIB, 8 * MIB)))
        note((yield Map(8 * MIB, 8 * MIB + PAGE)))
        note((yield Map(8 * MIB + PAGE, 16 * MIB, hand_over=LATER)))
        note((yield AttachTables()))


def run(allocator: type[Any], backend: type[Any] = Clerk) -> Run:
    SAID.clear()
    TOLD.clear()
    registry = registry_with(installed=False, allocator=allocator, backend=backend)
    return Scenario.of(MACHINE, "allocator", "backend").run(registry)


def test_a_tree_of_its_own_step_by_step() -> None:
    """::

    0        2M       3M       4M       8M  8M+4K   10M      16M
    | L2 page | small pages    | large   |small...  | large   |
    """
    trace = run(Two).trace
    assert SAID == [
        "{4: 1} for 0..268435456",
        # 0..2 MiB: an L3 and an L2, which hold all their entries; then the root's.
        "{2: 1, 3: 1} for 0..2",
        "1 leaf L2 quiet",
        "1 table L3 quiet writable",
        "1 table L4 quiet writable",
        # 2..3 MiB: an L1, under an L2 that waits too.
        "{1: 1} for 2..3",
        "256 leaf L1 quiet",
        "1 table L2 quiet writable",
        # 3..4 MiB: the same L1.
        "256 leaf L1 quiet",
        # Root, L3 and L2, L1; only the last is pinned. The second time there is nothing left.
        "read-only 1",
        "pin 0",
        "read-only 2",
        "pin 0",
        "read-only 1",
        "pin 1",
        "CR3 0",
        # From here on the tables are in use.
        "2 leaf L2 live",
        "{1: 1} for 8..8",
        "1 leaf L1 quiet",
        "read-only 1",
        "pin 1",
        "1 table L2 live",
        "511 leaf L1 live",
        "3 leaf L2 live",
    ]
    # Pieces, tables, mapped up to (MiB); then max_pfn_mapped, tables made, waiting, brk left.
    assert TOLD == [
        (0, 1, 0, 0x700, 1, 1, 15),
        (2, 3, 3, 0x700, 4, 4, 12),
        (1, 0, 4, 0x700, 4, 4, 12),
        (0, 4, 0, 0x700, 4, 4, 12),
        (0, 0, 0, 0x700, 4, 4, 12),
        (0, 4, 0, 0x700, 4, 0, 12),
        (0, 0, 0, 0x700, 4, 0, 12),
        (0, 0, 0, 0x700, 4, 0, 12),
        (1, 0, 8, 0x800, 4, 0, 12),
        (1, 1, 8, 0x801, 5, 0, 11),
        (2, 0, 16, 0x1000, 5, 0, 11),
        (0, 0, 0, 0x1000, 5, 0, 11),
    ]
    attached = [(e.batch.index, e.order, e.validated) for e in trace.of(TablesAttached)]
    assert attached == [
        (0, LATER, ((4, 1),)),
        (1, LATER, ((2, 1), (3, 1))),
        (2, LATER, ()),
        (5, HandOver.EACH, ()),
    ]
    assert [(e.batch.index, e.cost.pinned) for e in trace.of(TablesPinned)] == [
        (2, {1: 1}),
        (5, {1: 1}),
    ]
    assert [e.batch.index for e in trace.of(MadeReadonly)] == [0, 1, 2, 5]
    assert [(e.batch, e.owner, e.cost.hypercalls["write"]) for e in trace.of(EntriesWritten)] == [
        (1, 1, 1), (1, 1, 1), (1, 0, 1), (2, 2, 256), (2, 1, 1), (3, 2, 256),
        (4, 1, 2), (5, 5, 1), (5, 1, 1), (6, 5, 511), (7, 1, 3),
    ]  # fmt: skip
    # The tables lie in what step 3 maps with small pages.
    readonly = [e.readonly for e in trace.of(RangeMapped)]
    assert readonly == [(), (), ((3 * MIB, 3 * MIB + 4 * PAGE),), (), (), (), ()]
    taken = (15 * MIB, 15 * MIB + PAGE)
    assert [e.spans for e in trace.of(MemoryTaken)] == [(taken,)] * 3
    assert [e.reserved for e in trace.of(RunFinished)] == [((2 * MIB, 3 * MIB + 16 * PAGE), taken)]
    assert [(e.batch.index, e.cost.flushes) for e in trace.of(RootActivated) if e.batch] == [(0, 3)]


def test_what_has_been_handed_over_is_live_before_it_is_attached() -> None:
    @attrs.frozen
    class Between(Two):
        @hookimpl
        def pvmm_map_steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
            yield NewRoot()
            yield Map(2 * MIB, 3 * MIB, hand_over=LATER)
            yield HandOverTables()
            yield Map(3 * MIB, 4 * MIB, hand_over=LATER)
            yield AttachTables()

    run(Between)
    assert [line for line in SAID if "leaf" in line] == ["256 leaf L1 quiet", "256 leaf L1 live"]


def test_a_tree_reaches_nothing_before_cr3_refers_to_it() -> None:
    @attrs.frozen
    class Little(Clerk):
        @hookimpl
        def pvmm_boot_state(self, machine: Machine) -> BootState:
            return attrs.evolve(Clerk.pvmm_boot_state(self, machine), mapped=((0, 8 * MIB),))

    @attrs.frozen
    class Looks(Two):
        @hookimpl
        def pvmm_map_steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
            for step in (
                NewRoot(),
                Map(2 * MIB, 16 * MIB, hand_over=LATER),
                HandOverTables(),
                AttachTables(),
                ActivateRoot(),
            ):
                yield step
                TOLD.append([*boot.reachable(0, 16 * MIB)])

    run(Looks, Little)
    assert TOLD == [[(0, 8 * MIB)]] * 4 + [[(2 * MIB, 16 * MIB)]]


@attrs.frozen
class Guesses(Two):
    """Sets pages aside for one range, in two runs, and gives back what is left."""

    @hookimpl
    def pvmm_promise(self) -> Promise:
        return Promise(((0, 16 * MIB),), brk_pages=99)

    @hookimpl
    def pvmm_reserve_tables(self, boot: Boot, pieces: Sequence[Piece]) -> Sequence[PageRun]:
        SAID.append(f"reserve for {len(pieces)}, brk {boot.brk_free.count}")
        return [PageRun(0x400, 2), PageRun(0xB05, 4, -1), PageRun(0xC00, 0)]

    @hookimpl
    def pvmm_allocate_tables(self, boot: Boot, demand: TableDemand) -> list[TablePages]:
        SAID.append([(run.start, run.count, run.step) for run in boot.reservation])
        if demand.count == 1:
            return [TablePages(PageRun(0x900, 1), Source.MEMBLOCK)]
        return [
            TablePages(PageRun(0x400, 2), Source.RESERVATION),
            TablePages(PageRun(0xB05, 1, -1), Source.RESERVATION),
        ]

    @hookimpl
    def pvmm_release_tables(self, surplus: Sequence[PageRun]) -> Sequence[PageRun]:
        SAID.append(f"left {[(run.start, run.count, run.step) for run in surplus]}")
        return surplus

    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
        result = yield Map(PAGE, 16 * MIB, reserve=True)
        TOLD.append((result.tables, result.mapped_end, boot.reservation))
        yield ActivateRoot()


@attrs.frozen
class Watches(Clerk):
    """Also maps without write access what is set aside."""

    @hookimpl
    def pvmm_map_readonly(self, boot: Boot, start: int, end: int) -> Sequence[Span]:
        return sorted([*boot.table_pages(start, end), *boot.reserved_pages(start, end)])


def test_a_guess_and_what_is_left_of_it() -> None:
    """::

    4K         2M        4M       9M     11M+5 pages   12M       16M
    | small     | large   tables.. table.. left over...            |
    """
    done = run(Guesses, Watches)
    trace = done.trace
    left = (PageRun(0xB04, 3, -1),)
    assert SAID == [
        "reserve for 2, brk 16",
        [(0x400, 2, 1), (0xB05, 4, -1)],
        "511 leaf L1 quiet",
        "1 table L2 quiet writable",
        "1 table L3 quiet writable",
        "read-only 3",
        "pin 1",
        "1 table L4 live",
        "7 leaf L2 live",
        "left [(2820, 3, -1)]",
        "writable 3",
        "CR3 boot",
    ]
    assert TOLD == [(3, 16 * MIB, ())]
    assert [e.pages for e in trace.of(TablesReserved)] == [
        (PageRun(0x400, 2), PageRun(0xB05, 4, -1))
    ]
    assert [e.pages for e in trace.of(SurplusReleased)] == [left]
    # What is set aside lies in what is mapped with large pages: those cannot be read-only in part.
    assert [(e.pages, e.flipped) for e in trace.of(MadeWritable)] == [(left, 3)]
    readonly = [e.readonly for e in trace.of(RangeMapped)]
    tables, idle = (0x400 * PAGE, 0x402 * PAGE), (0xB02 * PAGE, 0xB06 * PAGE)
    assert readonly == [(), (tables, (0xB02 * PAGE, 0xB05 * PAGE), (0xB05 * PAGE, idle[1]))]
    reserved = next(trace.of(RunFinished)).reserved
    kernel = (2 * MIB, 3 * MIB + 16 * PAGE)
    assert reserved == (kernel, tables, (0xB05 * PAGE, 0xB06 * PAGE))
    assert [e.cost.flushes for e in trace.of(RootActivated)] == [3]
    assert done.figures["hypercalls_of_guess"] == 1


@pytest.mark.parametrize(
    ("brk_pages", "free"), [(None, 16), (0, 0), (15, 15), (16, 16), (17, 16), (1 << 15, 16)]
)
def test_brk_is_no_more_than_there_is(brk_pages: int | None, free: int) -> None:
    @attrs.frozen
    class Promises(Two):
        @hookimpl
        def pvmm_promise(self) -> Promise:
            return Promise(((0, 16 * MIB),), brk_pages)

        @hookimpl
        def pvmm_map_steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
            TOLD.append(boot.brk_free)
            yield ActivateRoot()

    run(Promises)
    assert [PageRun(BRK, free)] == TOLD


@attrs.frozen
class GivesUp(Two):
    """Takes two pages one by one, and finds no third."""

    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
        try:
            yield Map(0, 4 * MIB)
        finally:
            SAID.append("closed")

    @hookimpl
    def pvmm_allocate_tables(self) -> list[TablePages]:
        taken = [
            TablePages(PageRun(BRK, 1), Source.BRK),
            TablePages(PageRun(0x900, 1), Source.MEMBLOCK),
        ]
        raise KernelPanic("no third page", 1, taken)


def test_pages_taken_before_a_panic_are_taken() -> None:
    trace = run(GivesUp).trace
    assert [type(event) for event in trace.events[-3:]] == [PagesTaken, Panicked, RunFinished]
    assert next(trace.of(Panicked)).missing_tables == 1
    assert (0x900 * PAGE, 0x901 * PAGE) in next(trace.of(RunFinished)).reserved
    assert SAID == ["closed"]


def test_a_step_that_maps_nothing_ends_nowhere() -> None:
    """The firmware knows nothing of 4..5 GiB, so that slot of a gigabyte stays empty."""

    @attrs.frozen
    class Skips(Two):
        @hookimpl
        def pvmm_map_steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
            result = yield Map(4 * GIB, 4 * GIB + 2 * MIB, skip_empty_level=3)
            TOLD.append((len(result.pieces), result.mapped_end, boot.max_pfn_mapped))

    trace = run(Skips).trace
    assert TOLD == [(1, 0, 0x700)]
    assert list(trace.of(RangeMapped)) == []


def test_a_panic_that_took_nothing_tells_of_no_pages() -> None:
    @attrs.frozen
    class GivesUpAtOnce(Two):
        @hookimpl
        def pvmm_allocate_tables(self) -> list[TablePages]:
            raise KernelPanic("no page")

    trace = run(GivesUpAtOnce).trace
    assert list(trace.of(PagesTaken)) == []
    assert trace.events[-2] == Panicked("no page", 0)


@pytest.mark.parametrize(
    ("hook", "last"),
    [
        ("pvmm_write_entries", TablesAllocated),
        ("pvmm_make_readonly", RangeMapped),
        ("pvmm_pin_tables", MadeReadonly),
        ("pvmm_activate_cr3", StepStarted),
    ],
)
def test_a_refusal_ends_the_run_where_it_comes(hook: str, last: type) -> None:
    def refuse(self: Any) -> Refusal:
        return Refusal(f"{hook} of a test", -22)

    refuse.__name__ = hook
    backend = attrs.frozen(type("Refuses", (Clerk,), {hook: hookimpl(refuse)}))

    @attrs.frozen
    class Short(Two):
        @hookimpl
        def pvmm_map_steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
            yield Map(0, 2 * MIB)
            yield ActivateRoot()

    done = run(Short, backend)
    assert str(done.verdict) == f"rejected: {hook} of a test, -22"
    assert isinstance(done.trace.events[-3], last)
    assert isinstance(done.trace.events[-1], RunFinished)


@pytest.mark.parametrize(("steps", "ends"), [(5, True), (6, False)])
def test_steps_that_never_end(monkeypatch: pytest.MonkeyPatch, steps: int, ends: bool) -> None:
    """So many steps may be yielded; the next one is too many, whatever it does."""
    monkeypatch.setattr(engine, "MAX_STEPS", 5)

    @attrs.frozen
    class Long(Two):
        @hookimpl
        def pvmm_map_steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
            for _ in range(steps):
                yield ActivateRoot()

    done = run(Long)
    assert ("did not end within 5 steps" in done.verdict.detail) is not ends


@pytest.mark.parametrize(("idle", "ends"), [(3, True), (4, False)])
@pytest.mark.parametrize(
    "step", [AttachTables(), HandOverTables(), ActivateRoot(), Map(0, 2 * MIB)]
)
def test_steps_that_do_nothing(
    monkeypatch: pytest.MonkeyPatch, step: Step, idle: int, ends: bool
) -> None:
    """Three in a row are let pass here, over and over; a fourth is not."""
    monkeypatch.setattr(engine, "MAX_IDLE_STEPS", 3)

    @attrs.frozen
    class Idle(Two):
        @hookimpl
        def pvmm_map_steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
            for number in range(3):
                yield Map(number * 2 * MIB, (number + 1) * 2 * MIB)
                for _ in range(idle):
                    yield step

    done = run(Idle, PlainPlatform)
    assert ("3 steps in a row did nothing" in done.verdict.detail) is not ends


def test_a_kernel_that_boots_is_told_of_when_its_image_is_asked_for() -> None:
    boot = RecordedBoot("6.1", MACHINE, (), ())

    @attrs.frozen
    class HasAKernel(Two):
        @hookimpl
        def pvmm_kernel_file(self) -> KernelFile:
            return KernelFile("vmlinuz")

        @hookimpl
        def pvmm_kernel_image(self, machine: Machine, recorded: RecordedBoot) -> KernelImage:
            SAID.append(recorded)
            return machine.kernel

    @attrs.frozen
    class Boots(Clerk):
        @hookimpl
        def pvmm_boot_kernel(self, kernel_file: KernelFile) -> RecordedBoot:
            SAID.append(kernel_file.image)
            return boot

    run(HasAKernel, Boots)
    assert SAID[:2] == ["vmlinuz", boot]


def test_no_more_tables_are_pinned_than_there_are() -> None:
    @attrs.frozen
    class PinsTooMany(Clerk):
        @hookimpl
        def pvmm_pin_tables(self, tables: Batch) -> Cost:
            return Cost(pinned={1: tables.tables(1) + 1})

    assert "Cost.pinned[1] is not in 0..0" in run(Two, PinsTooMany).verdict.detail


def test_a_step_that_only_tells_the_platform_has_no_result() -> None:
    assert StepResult() == StepResult(pieces=(), tables=0, mapped_end=0)


def test_limits_are_far_above_any_run() -> None:
    assert engine.MAX_STEPS == 1_000_000
    assert engine.MAX_IDLE_STEPS == 10_000


@attrs.frozen
class Hears:
    """Hears of every event, and keeps none."""

    pvmm_api: ClassVar[int] = 1

    @hookimpl
    def pvmm_observe(self, event: object) -> None:
        assert event is not None


@pytest.mark.skipif(not hasattr(gc, "freeze"), reason="PyPy counts no references")
@pytest.mark.parametrize("observers", [(), (Hears(),)], ids=["alone", "heard"])
@pytest.mark.parametrize("allocator", [Two, GivesUp])
def test_a_run_that_nobody_holds_is_gone_at_once(
    allocator: type[Any], observers: tuple[Hears, ...]
) -> None:
    """A hunt makes thousands: looking for what refers to itself took a fifteenth of its time."""
    registry = registry_with(installed=False, allocator=allocator, backend=Clerk)
    scenario = Scenario.of(MACHINE, "allocator", "backend", *observers)
    assert scenario.run(registry).figures  # what is worked out once is kept
    gc.collect()
    gc.disable()
    try:
        run = scenario.run(registry)
        assert run.figures
        assert not run.left_out
        del run
        assert gc.collect() == 0
    finally:
        gc.enable()
