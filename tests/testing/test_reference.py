"""The reference plugins do what their words say: they are what others are tested against."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from paravirt_mm import (
    MIB,
    BootState,
    Cost,
    E820Type,
    Machine,
    Map,
    MemoryMap,
    Outcome,
    PageRun,
    Refusal,
    Run,
    Scenario,
    Verdict,
    bundled,
)
from paravirt_mm.engine.answers import EntryKind, Way
from paravirt_mm.engine.trace import StepStarted, SurplusReleased, TablesAllocated, TablesReserved
from paravirt_mm.machine.ranges import RangeSet, align_down, align_up
from paravirt_mm.options import described
from paravirt_mm.testing import (
    AscendingAllocator,
    BlockAllocator,
    Expected,
    PlainPlatform,
    TypingPlatform,
    judge,
    reference,
    registry_with,
)

QEMU = bundled("qemu-512m")
TIB = 1 << 40
REGISTRY = registry_with(
    installed=False,
    ascending=AscendingAllocator,
    block=BlockAllocator,
    plain=PlainPlatform,
    typing=TypingPlatform,
)


def run(allocator: str, backend: str, machine: Machine = QEMU) -> Run:
    return Scenario.of(machine, allocator, backend).run(REGISTRY)


def steps(run: Run) -> list[tuple[int, int]]:
    maps = [one.step for one in run.trace.of(StepStarted) if isinstance(one.step, Map)]
    return [(one.start, one.end) for one in maps]


def test_options_are_as_documented() -> None:
    assert {
        option.name: option.schema["default"]
        for factory in (AscendingAllocator, BlockAllocator, PlainPlatform, TypingPlatform)
        for option in described(factory)
    } == {"first_step": 16 * MIB, "spare": 5, "headroom": 8 * MIB}
    assert (reference.EINVAL, reference.ENOMEM) == (-errno.EINVAL, -errno.ENOMEM)


def test_steps_double_and_end_where_the_first_could() -> None:
    """At most a TiB at a time."""
    ends = [0x9F000, *(number * MIB for number in (32, 96, 224, 480)), 0x1FFFE000]
    starts = [0x1000, MIB, *ends[1:-1]]
    assert steps(run("ascending", "plain")) == list(zip(starts, ends, strict=True))
    large = Machine("large", MemoryMap.sanitise([(0, 8 * TIB, E820Type.RAM)]))
    sizes = [end - start for start, end in steps(run("ascending", "plain", large))]
    assert max(sizes) == TIB
    assert sum(sizes) == 8 * TIB


def test_the_lowest_pages_become_tables() -> None:
    pages = [
        part.run
        for event in run("ascending", "plain").trace.of(TablesAllocated)
        for part in event.batch.pages
    ]
    taken = [number for one in pages for number in range(one.start, one.start + one.count)]
    assert taken == [0x10, 0x11, 0x12, 0x13]  # below are the first 64 KiB, which are reserved


def test_where_no_page_is_left_it_gives_up() -> None:
    kernel = attrs.evolve(QEMU.kernel, start=MIB, end=2 * MIB, brk_start=2 * MIB, brk_end=2 * MIB)
    full = attrs.evolve(
        QEMU, kernel=kernel, initrd=None, reserved=(),
        memory_map=MemoryMap.sanitise([(MIB, 2 * MIB, E820Type.RAM)]),
    )  # fmt: skip
    verdict = str(run("ascending", "plain", full).verdict)
    assert verdict.startswith("panic: no free page can be reached")
    assert str(run("block", "plain", full).verdict).startswith("panic: no block can be reached")
    state = TypingPlatform().pvmm_boot_state(full)
    assert state == Refusal("boot: no room for boot tables", -errno.ENOMEM)


def test_the_highest_block_becomes_tables_and_its_rest_is_given_back() -> None:
    done = run("block", "plain")
    assert steps(done) == [(0x1000, 0x9F000), (MIB, 0x1FFFE000)]  # a step a region
    blocks = [event.pages for event in done.trace.of(TablesReserved)]
    assert blocks[0] == (PageRun(0x1FFFE - 8, 8),)  # 3 tables, 5 to spare, at the end of RAM
    released = [event.pages for event in done.trace.of(SurplusReleased)]
    assert released[0] == (PageRun(0x1FFFE - 5, 5),)
    assert done.figures["waste"] == 2 * 5
    assert run("block:spare=0", "plain").figures["waste"] == 0


def test_a_block_ends_with_the_last_whole_page() -> None:
    """Below an initrd that begins within a page."""
    done = run("block", "plain", attrs.evolve(QEMU, initrd=(0x1F000800, 0x1FFFE000)))
    blocks = [event.pages for event in done.trace.of(TablesReserved)]
    assert blocks[0] == (PageRun(0x1F000 - 8, 8),)


@pytest.mark.parametrize(("start", "first"), [(0x20000, 0x20), (0x20800, 3)])
def test_the_highest_part_that_holds_a_block_is_taken(start: int, first: int) -> None:
    """Of what can be reached; pages that are not whole do not count."""
    parts = [(0x2800, 0xA000), (start, 0x27800)]
    boot: Any = SimpleNamespace(
        tables_needed=lambda step: 2,
        machine=SimpleNamespace(map_limit=1 << 20),
        free_reachable=RangeSet(parts).descending,
    )
    step = Map(0, 1 << 20)
    assert BlockAllocator().pvmm_reserve_tables(boot, step) == [PageRun(first, 7)]


def test_a_platform_that_asks_nothing_maps_all_ram() -> None:
    state = PlainPlatform().pvmm_boot_state(QEMU)
    ram = QEMU.memory_map.ram_pages()
    assert state == BootState(tuple(ram), ram.end >> 12, QEMU.features)


@pytest.mark.parametrize("headroom", [0, 8 * MIB, 8 * MIB + 4096])
def test_a_platform_that_types_begins_with_kernel_and_headroom(headroom: int) -> None:
    """Through small pages, with a table for each part that is touched, in the highest free RAM."""
    state = TypingPlatform(headroom).pvmm_boot_state(QEMU)
    assert isinstance(state, BootState)
    start, end = QEMU.kernel.span
    mapped = RangeSet(state.mapped)
    assert (mapped.first, mapped.end) == (start, align_up(end + headroom, 4096))
    assert state.direct_mapped == state.mapped
    assert state.max_pfn_mapped == mapped.end >> 12
    assert (state.features.pse, state.features.gbpages, state.typed) == (False, False, True)
    assert state.features.nx == QEMU.features.nx
    low, high = align_down(start, 2 * MIB), align_up(mapped.end, 2 * MIB)
    assert state.tables == {1: ((low, high),), 2: ((0, 1 << 30),), 3: ((0, 1 << 39),)}
    pages = (high - low) // (2 * MIB) + 3  # one of level 1 each, and one of each other level
    (block,) = state.boot_tables
    assert state.reserved == (block,)
    assert block[1] - block[0] == pages * 4096
    assert QEMU.initrd is not None
    above = 0x1FFFE000 - align_up(QEMU.initrd[1], 4096)  # 14 pages between the initrd and the end
    end = 0x1FFFE000 if pages * 4096 <= above else QEMU.initrd[0]
    assert block[1] == align_down(end, 4096)


@pytest.mark.parametrize("pages", [3, 4])
def test_boot_tables_may_lie_at_the_beginning_of_memory(pages: int) -> None:
    """Four of them, where four pages are free."""
    kernel = attrs.evolve(QEMU.kernel, start=MIB, end=2 * MIB, brk_start=2 * MIB, brk_end=2 * MIB)
    ram = MemoryMap.sanitise([(0, pages << 12, E820Type.RAM), (MIB, 2 * MIB, E820Type.RAM)])
    small = attrs.evolve(QEMU, kernel=kernel, initrd=None, reserved=(), memory_map=ram)
    state = TypingPlatform(0).pvmm_boot_state(small)
    assert getattr(state, "boot_tables", None) == (((0, 4 << 12),) if pages == 4 else None)


def test_a_kernel_that_begins_or_ends_within_a_page_is_mapped_whole() -> None:
    odd = attrs.evolve(QEMU, kernel=attrs.evolve(QEMU.kernel, start=0x1000800))
    state = TypingPlatform(0).pvmm_boot_state(odd)
    assert isinstance(state, BootState)
    assert RangeSet(state.mapped).first == 0x1000000
    brk_end = QEMU.kernel.brk_end
    odd = attrs.evolve(QEMU, kernel=attrs.evolve(QEMU.kernel, brk_end=brk_end - 0x800))
    state = TypingPlatform(0).pvmm_boot_state(odd)
    assert isinstance(state, BootState)
    assert RangeSet(state.mapped).end == brk_end


@pytest.mark.parametrize(("allocator", "idle"), [("ascending", 0), ("block", 10)])
def test_on_a_platform_that_types_each_table_costs_what_is_said(allocator: str, idle: int) -> None:
    figures = run(allocator, "typing").figures
    tables = figures["tables"]
    assert tables == figures["flips"] == figures["pins_l1"] == 243
    assert figures["hypercalls_update_va_mapping"] == tables + idle
    new_cr3 = allocator == "ascending"
    assert figures["hypercalls_mmuext_op"] == tables + new_cr3
    assert figures["tlb_flushes"] == new_cr3
    assert figures["hypercalls_mmu_update"] == figures["hypercall_writes"] > tables


PLATFORM = TypingPlatform()
BOOT: Any = SimpleNamespace(
    mode=QEMU.mode, ledger=SimpleNamespace(is_readonly=lambda runs: runs == "readonly")
)


def tables(count: int, runs: str) -> Any:
    return SimpleNamespace(count=count, runs=runs, tables=lambda level: count * (level == 1))


@pytest.mark.parametrize(
    ("live", "kind", "readonly", "answer"),
    [
        (False, EntryKind.TABLE, False, Cost()),
        (True, EntryKind.LEAF, False, 7),
        (True, EntryKind.TABLE, True, 7),
        (True, EntryKind.TABLE, False, "write_entries: the child is writable"),
    ],
)
def test_live_tables_change_by_hypercall(
    live: bool, kind: EntryKind, readonly: bool, answer: Any
) -> None:
    write: Any = SimpleNamespace(live=live, kind=kind, readonly_children=readonly, count=7)
    if answer == 7:
        answer = Cost(hypercalls={"mmu_update": 7}, way=Way.HYPERCALL)
    elif isinstance(answer, str):
        answer = Refusal(answer, -errno.EINVAL)
    assert PLATFORM.pvmm_write_entries(BOOT, write) == answer


def test_only_read_only_tables_of_level_1_are_pinned() -> None:
    pin = PLATFORM.pvmm_pin_tables
    assert pin(BOOT, tables(3, "readonly")) == Cost(hypercalls={"mmuext_op": 3}, pinned={1: 3})
    assert pin(BOOT, tables(0, "readonly")) is None
    assert pin(BOOT, tables(3, "rw")) == Refusal("pin: a table is writable", -errno.EINVAL)


def test_a_new_root_is_pinned_by_being_loaded() -> None:
    load = PLATFORM.pvmm_activate_cr3
    assert load(BOOT, None) == Cost(hypercalls={"mmuext_op": 1}, flushes=1)
    assert load(BOOT, tables(1, "rw")) == Refusal("CR3: the root is writable", -errno.EINVAL)
    assert load(BOOT, tables(1, "readonly")) == Cost(
        hypercalls={"mmuext_op": 1}, pinned={4: 1}, flushes=1
    )


# -- verdicts that are right -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "speaks"),
    [
        ({}, True),
        ({"allocator": "block*"}, True),
        ({"allocator": "block"}, False),
        ({"backend": "typ?ng"}, True),
        ({"backend": "plain"}, False),
        ({"machine": "qemu-*"}, True),
        ({"machine": "pae-*"}, False),
        ({"allocator": "block*", "backend": "plain"}, False),
        ({"allocator": "x", "machine": "qemu-512m"}, False),
    ],
)
def test_an_expectation_speaks_of_the_scenarios_that_it_names(
    patterns: dict[str, str], speaks: bool
) -> None:
    expected = Expected("panic", "why", **patterns)
    assert expected.matches("block:spare=7", "typing", "qemu-512m") is speaks


def test_the_first_expectation_that_speaks_of_a_run_judges_it() -> None:
    good = run("block", "plain")
    where = "block under plain on qemu-512m"
    panic = attrs.evolve(good, verdict=Verdict(Outcome.PANIC, "no memory"))
    first, second = Expected("panic: no", "small"), Expected("rejected", "large")
    other = Expected("rejected", "other", machine="other")
    assert judge(good) is None
    assert judge(panic) == f"{where}: panic: no memory"
    assert judge(panic, [other, first, second]) is None
    assert judge(panic, [second, first]) == (
        f"{where}: panic: no memory; expected 'rejected', stale: large"
    )
    failed = attrs.evolve(good, verdict=Verdict(Outcome.ERROR, "oh"))
    assert judge(failed, [Expected("error", "never right")]) == f"{where}: error: oh"
