"""Traces as stories and as data, line by line."""

from __future__ import annotations

import json

import attrs
import pytest

from paravirt_mm import E820Type, Machine, MemoryMap, Run, Scenario
from paravirt_mm.engine.answers import Cost, EntryKind, Way
from paravirt_mm.engine.pages import PageRun
from paravirt_mm.engine.steps import Map, NewRoot
from paravirt_mm.engine.tables import Leaves
from paravirt_mm.engine.trace import (
    EntriesWritten,
    MadeWritable,
    OperationRejected,
    Panicked,
    RangeMapped,
    StepStarted,
    SurplusReleased,
    TablesAllocated,
    TablesReserved,
    Trace,
)
from paravirt_mm.machine.paging import MIB
from paravirt_mm.report.narrative import MAX_LINES, narrate, numbered_lines
from paravirt_mm.report.tracefile import trace_lines


def run(spec: str, backend: str, end: int) -> Run:
    spans = [(0x1000, 0x9F000, E820Type.RAM), (MIB, end, E820Type.RAM)]
    return Scenario.of(Machine("m", MemoryMap.sanitise(spans)), spec, backend).run()


@pytest.fixture(scope="module")
def linear() -> Run:
    return run("legacy_linear:kernel=2.6.39", "xen", 64 * MIB)


def test_the_story_of_the_linear_allocator_under_xen(linear: Run) -> None:
    assert narrate(linear.trace) == [
        "[   1] step 1: map 0x0-0x4000000 (init_memory_mapping)",
        "[   3]     set aside for tables: 34 at 0x3fde000-0x4000000",
        "[   4]     tables: 16 L1: 16 at 0x3fde000-0x3fee000 from reservation",
        "[   6]     mapped 0x2000000-0x4000000 with 4k pages, 136K of it read-only",
        "[   7]     16 tables made read-only",
        "[   8]     pinned 16 L1",
        "[   9]     16 L2 table entries, hypercall",
        "[  11]     given back unused: 18 at 0x3fee000-0x4000000",
        "[  12]     18 at 0x3fee000-0x4000000 made writable, 18 of them again",
    ]


def test_the_story_of_a_native_kernel() -> None:
    """What costs nothing but time is not told: direct writes."""
    lines = narrate(run("incremental:kernel=4.19", "native", 40 * MIB).trace)
    assert lines[:5] == [
        "[   1] step 1: map 0x0-0x100000 (ISA range)",
        "[   3]     tables: 1 L1, 1 L2, 1 L3: 3 at 0x1e00000-0x1e03000 from brk",
        "[   7]     mapped 0x0-0x100000 with 4k pages",
        "[  10] step 2: map 0x2600000-0x2800000 (RAM)",
        "[  13]     mapped 0x2600000-0x2800000 with 2M pages",
    ]
    assert "[  15]     split: 0x100000-0x200000 4k, 0x200000-0x2600000 2M" in lines
    assert lines[-2:] == ["[  20] step 4: activate", "[  21]     CR3 loaded"]


def test_words_for_each_event(linear: Run) -> None:
    runs = tuple(PageRun(16 * n, 1 + n, -1 if n == 2 else 1) for n in range(6))
    called = Cost(hypercalls={"mmu_update": 2})
    (allocated,) = linear.trace.of(TablesAllocated)
    part = allocated.batch.pages[0]
    five = attrs.evolve(allocated, batch=attrs.evolve(allocated.batch, pages=(part,) * 5))
    four = attrs.evolve(allocated, batch=attrs.evolve(allocated.batch, pages=(part,) * 4))
    events = (
        StepStarted(3, NewRoot("over\x1b")),
        StepStarted(4, Map(0, 4096, "x\x1b")),
        StepStarted(5, Map(0, 4096)),
        TablesReserved(runs[:4]),
        SurplusReleased(runs[:5]),
        MadeWritable(runs[:1], 0, Cost()),
        EntriesWritten(0, 1, EntryKind.LEAF, 3, 0, Cost(way=Way.DIRECT)),
        EntriesWritten(0, 1, EntryKind.LEAF, 3, 0, called),
        EntriesWritten(0, 2, EntryKind.TABLE, 1, 0, Cost(way=Way.EMULATED)),
        RangeMapped(Leaves(1, 0, 8192), ((0, 4096),)),
        RangeMapped(Leaves(1, 0, 8192), ()),
        five,
        four,
        Panicked("no\x1b room"),
        OperationRejected("pin\x1b", -22),
    )
    part_words = "16 at 0x3fde000-0x3fee000 from reservation"
    four_runs = (
        "1 at 0x0-0x1000, 2 at 0x10000-0x12000, 3 at 0x1e000-0x21000 downward, 4 at 0x30000-0x34000"
    )
    assert [line for _, line in numbered_lines(Trace(events))] == [
        r"[   0] step 3: over\x1b",
        r"[   1] step 4: map 0x0-0x1000 (x\x1b)",
        "[   2] step 5: map 0x0-0x1000",
        f"[   3]     set aside for tables: {four_runs}",
        f"[   4]     given back unused: {four_runs} ...",
        "[   5]     1 at 0x0-0x1000 made writable, 0 of them again",
        f"[   7]     3 L1 leaf entries, {Way.DIRECT}",
        "[   8]     1 L2 table entries, emulated",
        "[   9]     mapped 0x0-0x2000 with 1 pages, 4K of it read-only",
        "[  10]     mapped 0x0-0x2000 with 1 pages",
        f"[  11]     tables: 16 L1: {'; '.join([part_words] * 4)} ...",
        f"[  12]     tables: 16 L1: {'; '.join([part_words] * 4)}",
        r"[  13]     panic: no\x1b room",
        r"[  14]     refused: pin\x1b, -22",
    ]
    single = Trace([TablesReserved((PageRun(7, 1, -1),))])
    assert narrate(single) == ["[   0]     set aside for tables: 1 at 0x7000-0x8000"]


def test_a_long_story_is_cut_in_the_middle() -> None:
    events = [StepStarted(number, NewRoot("x")) for number in range(MAX_LINES + 1)]
    assert narrate(Trace(events[:-1])) == [line for _, line in numbered_lines(Trace(events[:-1]))]
    lines = narrate(Trace(events))
    assert len(lines) == MAX_LINES + 1
    assert lines[MAX_LINES // 2] == "   ... 1 line left out; --trace has them ..."
    assert lines[0].startswith("[   0]")
    assert lines[-1].startswith(f"[{MAX_LINES:>4}]")


def test_a_trace_as_data(linear: Run) -> None:
    """Each event with its number and kind; what was told once is named after that."""
    lines = [json.loads(line) for line in trace_lines(linear.trace)]
    assert [line["event"] for line in lines] == list(range(len(linear.trace)))
    assert [line["kind"] for line in lines[:4]] == [
        "RunStarted", "StepStarted", "RangeSplit", "TablesReserved",
    ]  # fmt: skip
    start, step, split, reserved, allocated, written, mapped, readonly = lines[:8]
    assert (start["machine"], start["promised"]) == ("m", [[0, 64 * MIB]])
    assert start["boot"]["tables"]["1"] == [[0, 32 * MIB]]
    assert step["step"]["hand_over"] == "each"
    assert split["pieces"] == [{"start": 0, "end": 64 * MIB, "level": 1}]
    assert reserved["pages"] == [{"start": 16350, "count": 34, "step": 1}]
    assert allocated["batch"]["mode"] == "x86_64"
    assert allocated["batch"]["pages"][0]["source"] == "reservation"
    assert written == {
        "event": 5, "kind": "leaf", "batch": 0, "level": 1, "count": 8192, "owner": 0,
        "cost": {"hypercalls": {}, "batches": 0, "pinned": {}, "way": "direct", "flushes": 0},
    }  # fmt: skip
    assert mapped["readonly"] == [[66969600, 64 * MIB]]
    assert readonly["batch"] == 0
