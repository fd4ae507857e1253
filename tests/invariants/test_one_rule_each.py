"""Deliberately wrong plugins: each breaks exactly one clause of one rule, and exactly that is
found.

Each starts from a correct reference plugin and changes one hook. `Case.message` is the clause.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from enum import StrEnum
from typing import Any

import attrs
import pytest

from paravirt_mm import (
    PAGE_SIZE,
    ActivateRoot,
    AttachTables,
    Batch,
    Boot,
    BootState,
    Cost,
    EntryWrite,
    HandOver,
    HandOverTables,
    Machine,
    Map,
    NewRoot,
    Outcome,
    PageRun,
    Promise,
    Run,
    Source,
    Span,
    Step,
    StepResult,
    TableDemand,
    TablePages,
    hookimpl,
)
from paravirt_mm.testing import (
    AscendingAllocator,
    BlockAllocator,
    PlainPlatform,
    TypingPlatform,
)

MIB = 1 << 20
HOLE = 100 * MIB
Steps = Generator[Step, StepResult, None]


# -- rule 1: a table page is RAM, free, and not already a table -----------------------------------


@attrs.frozen
class MapsEverything(PlainPlatform):
    """Correct, and lets the kernel write holes too: what is no RAM can then be told from what is
    out of reach.
    """

    @hookimpl
    def pvmm_boot_state(self, machine: Machine) -> BootState:
        """All addresses are mapped at boot."""
        state = PlainPlatform.pvmm_boot_state(self, machine)
        return attrs.evolve(state, mapped=((0, machine.map_limit),))


def _from(address: int, source: Source = Source.MEMBLOCK) -> type[Any]:
    """An allocator whose tables begin at ``address``, whatever is there."""

    @attrs.frozen
    class Placed(AscendingAllocator):
        @hookimpl
        def pvmm_allocate_tables(self, boot: Boot, demand: TableDemand) -> Sequence[TablePages]:
            return [TablePages(PageRun((address >> 12) + boot.tables_made, demand.count), source)]

    return Placed


@attrs.frozen
class SamePageAgain(AscendingAllocator):
    @hookimpl
    def pvmm_allocate_tables(self, demand: TableDemand) -> Sequence[TablePages]:
        return [TablePages(PageRun(2 * MIB >> 12, demand.count), Source.MEMBLOCK)]


@attrs.frozen
class BlockOnTheKernel(BlockAllocator):
    @hookimpl
    def pvmm_reserve_tables(self, boot: Boot, step: Map) -> Sequence[PageRun]:
        return [PageRun((16 * MIB >> 12) + boot.tables_made, boot.tables_needed(step))]


# -- rule 2: a table page can be reached when it is first written ---------------------------------


@attrs.frozen
class MapsLittle(PlainPlatform):
    """Correct; only the first 64 MiB are mapped at boot."""

    @hookimpl
    def pvmm_boot_state(self, machine: Machine) -> BootState:
        state = PlainPlatform.pvmm_boot_state(self, machine)
        return attrs.evolve(state, mapped=((0, 64 * MIB),))


@attrs.frozen
class FaultsIn(AscendingAllocator):
    """Its kernel maps what it touches."""

    pvmm_allocate_tables = _from(200 * MIB).pvmm_allocate_tables

    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Iterator[Step]:
        for step in super().pvmm_map_steps(boot):
            yield attrs.evolve(step, faults_in=True) if isinstance(step, Map) else step


@attrs.frozen
class UsesWhatWaits(AscendingAllocator):
    """Takes tables from memory whose own tables are not attached yet."""

    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Steps:
        yield Map(101 * MIB, 256 * MIB, hand_over=HandOver.LATER)
        yield Map(MIB, HOLE, hand_over=HandOver.LATER)
        yield HandOverTables()
        yield AttachTables()
        yield Map(0x1000, 0xA0000)

    @hookimpl
    def pvmm_allocate_tables(self, boot: Boot, demand: TableDemand) -> Sequence[TablePages]:
        start = 2 * MIB if not boot.waiting else 200 * MIB
        return [
            TablePages(PageRun((start >> 12) + boot.tables_made, demand.count), Source.MEMBLOCK)
        ]


# -- rule 3: the direct map is what was promised --------------------------------------------------


@attrs.frozen
class ForgetsTheTop(AscendingAllocator):
    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Steps:
        yield Map(0x1000, 0xA0000)
        yield Map(MIB, HOLE)
        yield Map(101 * MIB, 256 * MIB - 4096)
        yield ActivateRoot()


@attrs.frozen
class MapsTheHole(AscendingAllocator):
    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Steps:
        yield Map(0x1000, 0xA0000)
        yield Map(MIB, 256 * MIB)
        yield ActivateRoot()


@attrs.frozen
class MapsTwice(AscendingAllocator):
    """Maps a part of a large page again with small ones, which replaces the large page."""

    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Steps:
        yield from AscendingAllocator.pvmm_map_steps(self, boot)
        yield Map(4 * MIB, 4 * MIB + 4096)


@attrs.frozen
class ForgetsToAttach(AscendingAllocator):
    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Steps:
        for start, end in boot.memblock.memory(0, boot.machine.map_limit):
            yield Map(start, end, hand_over=HandOver.LATER)
        yield HandOverTables()


# -- rule 4: what a platform that types pages demands ---------------------------------------------


@attrs.frozen
class AttachesFirst(AscendingAllocator):
    """Attaches tables that have not been handed over."""

    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Steps:
        for step in AscendingAllocator.pvmm_map_steps(self, boot):
            if isinstance(step, Map):
                yield attrs.evolve(step, hand_over=HandOver.LATER)
                yield AttachTables()
            else:
                yield step


@attrs.frozen
class Lenient(TypingPlatform):
    """Correct but for refusals: it lets everything pass, so that only the checker can object."""

    @hookimpl
    def pvmm_write_entries(self, write: EntryWrite) -> Cost:
        return Cost()

    @hookimpl
    def pvmm_pin_tables(self, tables: Batch) -> Cost:
        return Cost(pinned={1: tables.tables(1)})

    @hookimpl
    def pvmm_activate_cr3(self) -> Cost:
        return Cost(flushes=1)


@attrs.frozen
class MapsTablesWritable(TypingPlatform):
    @hookimpl
    def pvmm_map_readonly(self) -> list[Span]:
        return []


@attrs.frozen
class NeverMakesReadonly(Lenient):
    @hookimpl
    def pvmm_make_readonly(self) -> None:
        return None


def _new_tree(
    *, hand_over_first: bool = True, kernel_first: bool = True, loads: bool = True
) -> type[Any]:
    """An allocator with a tree of its own, which may load CR3 too early, or never."""

    @attrs.frozen
    class NewTree(AscendingAllocator):
        @hookimpl
        def pvmm_promise(self, boot: Boot) -> Promise:
            promised = tuple(boot.memblock.memory(0, boot.machine.map_limit))
            return Promise(promised, brk_pages=64)

        @hookimpl
        def pvmm_map_steps(self, boot: Boot) -> Steps:
            yield NewRoot()
            kernel = Map(16 * MIB, 18 * MIB, hand_over=HandOver.LATER)
            yield kernel if kernel_first else Map(32 * MIB, 34 * MIB, hand_over=HandOver.LATER)
            if hand_over_first:
                yield HandOverTables()
                yield AttachTables()
            if loads:
                yield ActivateRoot()
            yield kernel
            yield HandOverTables()
            yield AttachTables()
            for step in AscendingAllocator.pvmm_map_steps(self, boot):
                if loads or not isinstance(step, ActivateRoot):
                    yield step

        @hookimpl
        def pvmm_allocate_tables(
            self, boot: Boot, step: Step, demand: TableDemand
        ) -> Sequence[TablePages]:
            brk = boot.brk_free
            if brk.count >= demand.count and boot.is_reachable(*brk.span):
                return [TablePages(brk.head(demand.count), Source.BRK)]
            return AscendingAllocator.pvmm_allocate_tables(self, boot, step, demand)

    return NewTree


# -- rule 5: what was set aside and not used is free and writable ---------------------------------


@attrs.frozen
class KeepsTheSurplus(BlockAllocator):
    @hookimpl
    def pvmm_release_tables(self) -> Sequence[PageRun]:
        return []


@attrs.frozen
class GivesTablesBack(BlockAllocator):
    @hookimpl
    def pvmm_release_tables(self, boot: Boot, surplus: Sequence[PageRun]) -> Sequence[PageRun]:
        first = surplus[0]
        return [PageRun(first.start - 1, first.count + 1), *surplus[1:]]


@attrs.frozen
class MapsReservationsReadonly(TypingPlatform):
    """Correct: maps everything read-only that is set aside, and most memory at boot but not in the
    kernel's own tree.
    """

    @hookimpl
    def pvmm_boot_state(self, machine: Machine) -> BootState:
        state = TypingPlatform.pvmm_boot_state(self, machine)
        assert isinstance(state, BootState)
        return attrs.evolve(state, mapped=((0, machine.map_limit),), direct_mapped=(), tables={})


@attrs.frozen
class LeavesSurplusReadonly(MapsReservationsReadonly):
    @hookimpl
    def pvmm_make_writable(self) -> None:
        return None


@attrs.frozen
class Case:
    """A pair of plugins and the one clause that they break; ``address`` is where, as far as the
    drawing of the machine tells.
    """

    allocator: type[Any]
    backend: type[Any]
    rule: int
    message: str
    address: int | None = None


class Thing(StrEnum):
    """What a platform puts somewhere."""

    INITRD = "initrd"


@attrs.frozen
class KeepsAPart(PlainPlatform):
    """Two of the three pages of an initrd are kept."""

    @hookimpl
    def pvmm_boot_state(self, machine: Machine) -> BootState:
        """Say so."""
        state = PlainPlatform.pvmm_boot_state(self, machine)
        start = 40 * MIB
        return attrs.evolve(
            state,
            reserved=((start, start + 2 * PAGE_SIZE),),
            places=((Thing.INITRD, (start, start + 3 * PAGE_SIZE)),),
        )


CASES = {
    "an initrd kept in part": Case(
        AscendingAllocator, KeepsAPart, 1, "kept in part only: initrd", 40 * MIB + 2 * PAGE_SIZE
    ),
    "not RAM": Case(_from(HOLE), MapsEverything, 1, "is not RAM", HOLE),
    "taken by the kernel": Case(
        _from(16 * MIB), PlainPlatform, 1, "taken by something else", 16 * MIB
    ),
    "block on the kernel": Case(
        BlockOnTheKernel, PlainPlatform, 1, "taken by something else", 16 * MIB
    ),
    "table twice": Case(SamePageAgain, PlainPlatform, 1, "a table twice", 2 * MIB),
    "brk that is none": Case(
        _from(2 * MIB, Source.BRK), PlainPlatform, 1, "said to be brk", 2 * MIB
    ),
    "out of reach": Case(_from(200 * MIB), MapsLittle, 2, "cannot be reached", 200 * MIB),
    "a fault that nobody handles": Case(
        FaultsIn, TypingPlatform, 2, "cannot be reached", 200 * MIB
    ),
    # Behind the three tables (L1, L2, L3) that the memory above the hole takes.
    "reached too early": Case(
        UsesWhatWaits, MapsLittle, 2, "cannot be reached", 200 * MIB + 3 * 4096
    ),
    "RAM not mapped": Case(
        ForgetsTheTop, PlainPlatform, 3, "promised to be mapped and is not", 256 * MIB - 4096
    ),
    "mapped without promise": Case(
        MapsTheHole, PlainPlatform, 3, "without having been promised", HOLE
    ),
    "mapped twice": Case(MapsTwice, PlainPlatform, 3, "mapped twice", 4 * MIB),
    "never attached": Case(ForgetsToAttach, PlainPlatform, 3, "never attached", 0),
    "attached first": Case(AttachesFirst, Lenient, 4, "attached before they are handed over"),
    "never read-only": Case(
        AscendingAllocator, NeverMakesReadonly, 4, "attached before they are handed over"
    ),
    "table mapped writable": Case(AscendingAllocator, MapsTablesWritable, 4, "mapped writable"),
    "CR3 before hand-over": Case(
        _new_tree(hand_over_first=False, kernel_first=True), Lenient, 4, "tables not handed over"
    ),
    "CR3 without the kernel": Case(
        _new_tree(hand_over_first=True, kernel_first=False),
        PlainPlatform,
        4,
        "not map the kernel",
        16 * MIB,
    ),
    "CR3 never": Case(
        _new_tree(loads=False), PlainPlatform, 4, "never loaded with the new tree", 0
    ),
    "CR3 before the tables are attached": Case(
        _new_tree(hand_over_first=False, kernel_first=True),
        PlainPlatform,
        4,
        "not map the kernel",
        16 * MIB,
    ),
    "surplus kept": Case(KeepsTheSurplus, PlainPlatform, 5, "was not given back"),
    "table given back": Case(GivesTablesBack, PlainPlatform, 5, "is a page table"),
    "surplus read-only": Case(BlockAllocator, LeavesSurplusReadonly, 5, "is read-only"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_exactly_one_rule(case: Case, run_pair: Callable[[type[Any], type[Any]], Run]) -> None:
    run = run_pair(case.allocator, case.backend)
    assert {finding.rule for finding in run.findings} == {case.rule}, list(map(str, run.findings))
    assert all(case.message in finding.message for finding in run.findings)
    if case.address is not None:
        assert run.findings[0].address == case.address
    assert run.verdict.outcome is Outcome.VIOLATION
    assert str(run.verdict).startswith(f"violation: invariant {case.rule}")


REFUSED = {
    "attached first": (AttachesFirst, "write_entries: the child is writable"),
    "CR3 before hand-over": (
        _new_tree(hand_over_first=False, kernel_first=False),
        "CR3: the root is writable",
    ),
}


@pytest.mark.parametrize(("allocator", "operation"), REFUSED.values(), ids=REFUSED)
def test_strict_platform_refuses(
    allocator: type[Any], operation: str, run_pair: Callable[[type[Any], type[Any]], Run]
) -> None:
    """What the checker would find, a platform that looks refuses with its code, and the run ends
    there.
    """
    run = run_pair(allocator, TypingPlatform)
    assert str(run.verdict) == f"rejected: {operation}, -22"


@pytest.mark.parametrize("allocator", [AscendingAllocator, BlockAllocator], ids=str)
@pytest.mark.parametrize(
    "backend",
    [
        PlainPlatform,
        TypingPlatform,
        MapsEverything,
        MapsLittle,
        Lenient,
        MapsReservationsReadonly,
    ],
    ids=str,
)
def test_right_plugins_break_nothing(
    allocator: type[Any], backend: type[Any], run_pair: Callable[[type[Any], type[Any]], Run]
) -> None:
    """What the wrong plugins are made from is right."""
    run = run_pair(allocator, backend)
    assert run.findings == ()
    assert run.verdict.outcome is Outcome.OK


def test_a_fault_that_the_kernel_handles(
    run_pair: Callable[[type[Any], type[Any]], Run],
) -> None:
    run = run_pair(FaultsIn, MapsLittle)
    assert run.findings == ()
    assert run.verdict.outcome is Outcome.OK
