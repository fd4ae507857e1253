"""Invariant 3 by walking the bytes: sound runs have no findings, damaged traces do."""

from __future__ import annotations

import attrs
import pytest

from paravirt_mm import (
    CpuFeatures,
    E820Type,
    InputError,
    KernelImage,
    Machine,
    MemoryMap,
    Scenario,
)
from paravirt_mm.engine.answers import EntryKind
from paravirt_mm.engine.tables import Leaves
from paravirt_mm.engine.trace import (
    EntriesWritten,
    Event,
    MadeReadonly,
    RangeMapped,
    TablesAllocated,
    Trace,
)
from paravirt_mm.image.contents import Image
from paravirt_mm.image.walker import Damage, LeafRun, walk
from paravirt_mm.invariants.image import SMALL, check_image, compare_walk, expected_leaves, is_small
from paravirt_mm.machine.paging import MODES

ALLOCATORS = ("legacy_linear:kernel=3.6", "incremental:variant=linux", "incremental:variant=hpa")
MIB = 1 << 20


def trace_of(mode: str, allocator: str, backend: str) -> Trace:
    machine = Machine(
        name="small",
        memory_map=MemoryMap.sanitise(
            [
                (0, 0x9F000, E820Type.RAM),
                (MIB, 40 * MIB + 0x3000, E820Type.RAM),
                (42 * MIB, 128 * MIB, E820Type.RAM),
            ]
        ),
        mode=MODES[mode],
        features=CpuFeatures(nx=MODES[mode].has_nx),
        boot_mapped=64 * MIB,
    )
    run = Scenario.of(machine, allocator, backend).run()
    assert run.verdict.outcome == "ok", run.verdict
    return run.trace


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize(
    ("mode", "backend"),
    [(mode, "native") for mode in sorted(MODES)] + [("x86_64", "xen"), ("i386-pae", "xen")],
)
def test_sound_runs_have_no_findings(mode: str, backend: str, allocator: str) -> None:
    trace = trace_of(mode, allocator, backend)
    assert is_small(trace)
    assert check_image(trace) == []


def test_a_small_run_has_as_many_tables_as_8_gib_of_small_pages() -> None:
    trace = trace_of("x86_64", "incremental:variant=hpa", "native")
    count = sum(event.batch.count for event in trace.of(TablesAllocated))
    assert is_small(trace, count)
    assert not is_small(trace, count - 1)
    assert SMALL == (8 << 30) // (2 << 20)


def without(trace: Trace, number: int) -> Trace:
    return Trace([*trace.events[:number], *trace.events[number + 1 :]])


def changed(trace: Trace, number: int, event: Event) -> Trace:
    return Trace([*trace.events[:number], event, *trace.events[number + 1 :]])


def numbers(trace: Trace, kind: type) -> list[int]:
    return [number for number, event in enumerate(trace) if isinstance(event, kind)]


def test_an_entry_that_was_never_written_leaves_a_hole() -> None:
    trace = trace_of("x86_64", "incremental:variant=hpa", "native")
    tables = [
        number
        for number in numbers(trace, EntriesWritten)
        if isinstance(event := trace.events[number], EntriesWritten)
        and event.kind is EntryKind.TABLE
        and event.owner != event.batch
    ]
    assert tables
    for number in tables:
        findings = check_image(without(trace, number))
        assert {finding.rule for finding in findings} == {3}
        assert {finding.event for finding in findings} == {len(trace.events) - 2}
        assert "not mapped instead of" in findings[0].message


def test_a_table_that_stays_writable_breaks_rule_4() -> None:
    trace = trace_of("x86_64", "incremental:variant=linux", "xen")
    seen = 0
    for number in numbers(trace, MadeReadonly):
        findings = check_image(without(trace, number))
        assert {finding.rule for finding in findings} <= {4}
        seen += bool(findings)
    # Some tables were mapped read-only to begin with, so that not every event matters.
    assert seen


def test_a_table_that_is_mapped_writable_breaks_rule_4() -> None:
    trace = trace_of("x86_64", "incremental:variant=hpa", "xen")
    mapped = [
        number
        for number in numbers(trace, RangeMapped)
        if isinstance(event := trace.events[number], RangeMapped) and event.readonly
    ]
    assert mapped
    event = trace.events[mapped[-1]]
    assert isinstance(event, RangeMapped)
    findings = check_image(changed(trace, mapped[-1], attrs.evolve(event, readonly=())))
    assert [finding.rule for finding in findings] == [4] * len(findings)
    assert findings[0].address == event.readonly[0][0]


def test_the_trace_and_the_bytes_must_say_the_same() -> None:
    """Leaves outside of any table are in the trace, and cannot be in the bytes."""
    trace = trace_of("x86_64", "incremental:variant=linux", "native")
    far = 1 << 40
    extra = RangeMapped(Leaves(1, far, far + 4096), ())
    findings = check_image(changed(trace, numbers(trace, RangeMapped)[-1], extra))
    assert any(finding.address == far for finding in findings)


def test_runs_that_end_early_have_no_findings() -> None:
    machine = trace_of("x86_64", ALLOCATORS[2], "native").start.machine
    run = Scenario.of(
        attrs.evolve(machine, features=CpuFeatures(pse=False)),
        "incremental:variant=hpa,brk_pages=0",
        "native",
    ).run()
    assert run.verdict.outcome == "panic"
    assert check_image(run.trace) == []
    assert check_image(Trace()) == []


def changed_runs(*changes: tuple[int, LeafRun | None]) -> list[str]:
    """What is found where a walk shows other runs than the trace says."""
    trace = trace_of("x86_64", "incremental:variant=linux", "native")
    image = Image(trace)
    found = walk(image, image.root, image.mode)
    runs: list[LeafRun | None] = list(found.runs)
    for place, run in changes:
        runs[place] = run
    wrong = attrs.evolve(found, runs=tuple(run for run in runs if run is not None))
    different = list(compare_walk(trace, wrong))
    assert all((each.rule, each.event) == (3, len(trace.events) - 1) for each in different)
    return [f"{each.address:#x} {each.message}" for each in different]


def test_damage_in_the_tables_breaks_rule_3() -> None:
    trace = trace_of("x86_64", "incremental:variant=linux", "native")
    image = Image(trace)
    damage = Damage("loop", 2, 0x1000, 0x67, "a table of its own")
    found = attrs.evolve(walk(image, image.root, image.mode), findings=(damage,))
    (finding,) = compare_walk(trace, found)
    assert (finding.rule, finding.address) == (3, 0x1000)
    assert str(damage) in finding.message


def test_a_walk_that_shows_something_else() -> None:
    """Pages of another size, pages that lead elsewhere or are not there: each at its address."""
    trace = trace_of("x86_64", "incremental:variant=linux", "native")
    image = Image(trace)
    runs = walk(image, image.root, image.mode).runs
    place = next(n for n, run in enumerate(runs) if run.level == 2)
    run = runs[place]
    assert changed_runs((place, run)) == []
    assert changed_runs((place, attrs.evolve(run, level=1))) == [
        f"{run.physical:#x} a page of L1 instead of a page of L2"
    ]
    assert changed_runs((place, None)) == [f"{run.physical:#x} not mapped instead of a page of L2"]
    assert changed_runs((place, attrs.evolve(run, physical=run.physical + 4096))) == [
        f"{run.start:#x} leads to {run.physical + 4096:#x}: no identity",
        f"{run.physical:#x} not mapped instead of a page of L2",
    ]
    last = runs[-1]
    more = attrs.evolve(last, end=last.end + 4096)
    end = last.physical + last.end - last.start
    assert changed_runs((len(runs) - 1, more)) == [
        f"{end:#x} a page of L{last.level} instead of not mapped"
    ]


def test_of_a_range_that_the_trace_has_as_one_the_first_difference_is_told() -> None:
    """::

    trace  | small pages          |      | large pages       |
    walk   |   | |   |  |         | more | |            |    |
    """
    trace = trace_of("x86_64", "incremental:variant=linux", "native")
    image = Image(trace)
    found = walk(image, image.root, image.mode)
    runs = []
    for run in found.runs:
        size = {1: 4096, 2: 2 * MIB}[run.level]
        for number in range((run.end - run.start) // size):
            at = number * size
            one = attrs.evolve(
                run, start=run.start + at, end=run.start + at + size, physical=run.physical + at
            )
            # In each run the first is there, then every other is not.
            runs += [one] if number % 2 == 0 else []
    told = list(compare_walk(trace, attrs.evolve(found, runs=tuple(runs))))
    expected = [(low, {1: 4096, 2: 2 * MIB}[level]) for low, _, level in expected_leaves(trace)]
    assert [each.address for each in told] == [low + size for low, size in expected]
    assert len(told) > 3


def mapped(start: int, end: int, level: int) -> RangeMapped:
    return RangeMapped(Leaves(level, start, end), ())


def test_a_new_table_takes_the_place_of_the_large_pages_that_were_there() -> None:
    """Of smaller pages, and of those beside it, it takes nothing; a new root takes all."""
    trace = trace_of("x86_64", "incremental:variant=linux", "native")
    start, batch = trace.start, next(trace.of(TablesAllocated)).batch
    start = attrs.evolve(start, boot=attrs.evolve(start.boot, direct_mapped=((0, 4096),)))
    events: list[Event] = [start, mapped(2 * MIB, 8 * MIB, 2), mapped(8 * MIB, 9 * MIB, 1)]
    before = [(0, 4096, 1), (2 * MIB, 8 * MIB, 2), (8 * MIB, 9 * MIB, 1)]
    assert list(expected_leaves(Trace(events))) == before
    below = attrs.evolve(
        batch,
        spans={1: ((0, 2 * MIB), (4 * MIB, 6 * MIB), (8 * MIB, 10 * MIB)), 2: ((0, 1 << 30),)},
    )
    events += [TablesAllocated(below)]
    between = [(0, 4096, 1), (2 * MIB, 4 * MIB, 2), (6 * MIB, 8 * MIB, 2), (8 * MIB, 9 * MIB, 1)]
    assert list(expected_leaves(Trace(events))) == between
    events += [mapped(5 * MIB, 6 * MIB, 1)]
    after = [*between[:2], (5 * MIB, 6 * MIB, 1), *between[2:]]
    assert list(expected_leaves(Trace(events))) == after
    root = attrs.evolve(batch, spans={4: ((0, 1 << 48),)})
    assert list(expected_leaves(Trace([*events, TablesAllocated(root)]))) == []
    again = [*events, TablesAllocated(root), mapped(0, 8192, 1)]
    assert list(expected_leaves(Trace(again))) == [(0, 8192, 1)]


@pytest.mark.parametrize(
    ("mode", "lowmem", "base"),
    [
        ("i386", 0x40000, 0xC0000000),
        ("i386", 0x40001, 0xB0000000),
        ("i386", 0x50001, 0x80000000),
        ("i386", 0x80001, 0x78000000),
        ("i386", 0x88001, 0x40000000),
        ("i386-pae", 0x40001, 0x80000000),
        ("i386-pae", 0x80001, 0x40000000),
        ("i386-pae", 0xC0000, 0x40000000),
    ],
)
def test_the_direct_map_of_a_32_bit_kernel_begins_where_it_has_room(
    mode: str, lowmem: int, base: int
) -> None:
    """CONFIG_VMSPLIT_3G, 3G_OPT, 2G, 2G_OPT, 1G; with PAE those that begin with a GiB."""
    machine = Machine(
        name="split",
        memory_map=MemoryMap.sanitise([(0, 0x9F000, E820Type.RAM), (MIB, 3 << 30, E820Type.RAM)]),
        mode=MODES[mode],
        max_low_pfn_hint=lowmem,
        boot_mapped=64 * MIB,
    )
    assert machine.direct_map_base == base
    run = Scenario.of(machine, "incremental", "native").run(thorough=True)
    assert str(run.verdict) == "ok"


def test_no_image_is_made_for_a_machine_that_has_no_page_for_its_first_tables() -> None:
    """What must have been there before the run: who asks for an image is told."""
    kernel = KernelImage(16 * MIB, 16 * MIB + 1, 16 * MIB + 4096, 16 * MIB + 4096)
    memory = MemoryMap.sanitise([(0, 0x9F000, E820Type.RAM), (MIB, 64 * MIB, E820Type.RAM)])
    machine = Machine("full", memory, kernel=kernel, reserved=((0, 64 * MIB),))
    run = Scenario.of(machine, "incremental", "native").run(thorough=True)
    assert str(run.verdict) == "ok"
    with pytest.raises(InputError, match="no page left for a table since boot"):
        Image(run.trace)
