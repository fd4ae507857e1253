"""Runs as hypercalls: the model accepts them, counts the backend's costs, refuses what is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import attrs
import pytest

from paravirt_mm import (
    BootState,
    Cost,
    E820Type,
    Machine,
    MadeReadonly,
    MadeWritable,
    Map,
    MemoryMap,
    PageRun,
    RangeMapped,
    RangeSet,
    RootActivated,
    Run,
    Scenario,
    StepStarted,
    TablesAllocated,
    TablesPinned,
    Trace,
    bundled,
)
from paravirt_mm_xen import translate as translation
from paravirt_mm_xen.backend import TableEntries, Xen
from paravirt_mm_xen.empty_entries import cleared_entries
from paravirt_mm_xen.replay import Counts, address_of, describe, findings, replay
from paravirt_mm_xen.traces.format import check
from paravirt_mm_xen.translate import (
    BOOT,
    PROBE,
    NotReplayable,
    Refused,
    _boot_leaves,
    translate,
)
from paravirt_mm_xen.verify import ALLOCATORS, guest_machine, run_all

from .wrong import WRONG, Wrong, run_wrong

MIB = 1 << 20
HOLE = (MIB - (640 << 10)) >> 12
"""The pages below 1 MiB that are no RAM, which numbers of a trace do not count."""


@cache
def _run(mib: int, allocator: str, backend: str = "xen:replay_limit=0") -> Run:
    run = Scenario.of(guest_machine(mib), allocator, backend).run()
    assert str(run.verdict) == "ok"
    return run


@pytest.mark.parametrize(
    "mib", [97, *(pytest.param(mib, marks=pytest.mark.slow) for mib in (64, 256))]
)
@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_the_model_accepts_a_run_and_counts_what_the_backend_charges(
    allocator: str, mib: int
) -> None:
    run = _run(mib, allocator)
    translated = translate(run.trace)
    answered = replay(translated)
    assert answered.refused is None
    counts, figures = answered.counts, run.figures
    own = [translated.trace.ops[n] for n in range(translated.begin, translated.end)]
    assert counts.batched == sum(len(each[1]) for each in own if each[0] == "multicall")
    # What maps a page is stored once, wherever in a table a range begins or ends.
    stored = [each[1:3] for each in own if each[0] == "store" and each[4] == 0x67]
    assert len(stored) == len(set(stored))
    assert counts.calls == figures["hypercalls"] - counts.batched + counts.multicalls
    assert counts.mmu_update == figures["hypercalls_mmu_update"]
    assert counts.update_va_mapping == figures["hypercalls_update_va_mapping"]
    assert counts.mmuext_op == figures["hypercalls_mmuext_op"]
    assert counts.multicalls == figures["multicall_batches"]
    assert counts.emulated == figures["emulated_writes"]
    assert dict(counts.pins) == {
        level: figures[f"pins_l{level}"] for level in range(1, 5) if figures[f"pins_l{level}"]
    }
    # The model checks a pinned table's contents as well.
    assert dict(counts.validations) == {
        level: pinned + validated
        for level in range(1, 5)
        if (pinned := figures[f"pins_l{level}"]) + (validated := figures[f"validations_l{level}"])
    }


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_probes_look_at_both_ends_of_what_is_read_only(allocator: str) -> None:
    """No table can be written through the direct map; a store to an L1 is the hypervisor's."""
    trace = _run(97, allocator).trace
    state, mode = trace.start.boot, trace.start.machine.mode
    new_tree = any(mode.root_level in event.batch.spans for event in trace.of(TablesAllocated))
    leaf_tables = set() if new_tree else {pfn << 12 for pfn in state.table_pages[1]}
    readonly = RangeSet(state.boot_tables)
    for event in trace:
        if isinstance(event, TablesAllocated):
            leaf_tables |= {
                pfn << 12
                for run in event.batch.walk_order()
                if run.level == 1
                for pfn in range(run.pfn, run.pfn + run.count * run.step, run.step)
            }
            readonly.update(run.span for run in event.batch.runs)
        elif isinstance(event, RangeMapped):
            readonly.update(event.readonly)
        elif isinstance(event, MadeWritable):
            for pages in event.pages:
                readonly.discard(*pages.span)
    found = translate(trace)
    probes = {
        operation[1] - mode.direct_map_base: answer
        for operation, answer in zip(found.trace.ops, found.expected, strict=True)
        if operation[0] == "probe" and operation[2] == "write"
    }
    edges = {at for low, high in list(readonly)[:20] for at in (low, high - 4096)}
    ram = trace.start.machine.memory_map.ram_pages()
    edges |= {at for low, high in ram for at in (low, high - 4096)}
    edges = {at for at in edges if any(step.start <= at < step.end for step in _mapped(trace))}
    assert -114003 in probes.values()
    assert edges <= set(probes)
    for at, answer in probes.items():
        protected = at in readonly and at not in leaf_tables
        assert answer == (-114003 if protected else 0), hex(at)


def _mapped(trace: Trace) -> list[Any]:
    return [event.leaves for event in trace.of(RangeMapped)]


@pytest.mark.slow
def test_a_gap_in_memory_and_a_second_range_are_replayed() -> None:
    """RAM in three pieces, one of them above 4 GiB and in another L3 entry."""
    machine = attrs.evolve(
        guest_machine(128),
        memory_map=MemoryMap.sanitise(
            [
                (0, 640 << 10, E820Type.RAM),
                (MIB, 128 * MIB, E820Type.RAM),
                (512 * MIB + 0x5000, 523 * MIB + 0x3000, E820Type.RAM),
                (4096 * MIB, 4130 * MIB, E820Type.RAM),
            ]
        ),
    )
    for allocator in ALLOCATORS:
        run = Scenario.of(machine, allocator, "xen").run()
        assert str(run.verdict) == "ok", allocator
        answered = replay(translate(run.trace))
        assert answered.refused is None, describe(answered.refused)
        assert answered.counts.requests == run.figures["hypercalls"]


def numbered(runs: Iterable[PageRun]) -> set[int]:
    """Return the pages as a trace numbers them."""
    return {pfn - HOLE * (pfn > HOLE) for run in runs for pfn in range(run.low, run.high)}


def test_operations_say_which_event_they_come_from() -> None:
    run = _run(64, "incremental:variant=hpa")
    found = translate(run.trace)
    assert (BOOT, PROBE) == (-1, -2)  # as `--json` tells it: no event of the run
    stored: set[int] = set()
    assert set(found.events[: found.begin]) == {BOOT}
    assert set(found.events[found.end :]) == {PROBE}
    for number in range(found.begin, found.end):
        event = type(run.trace.events[found.events[number]]).__name__
        name = found.trace.ops[number][0]
        if event in ("MadeReadonly", "TablesPinned"):
            # What is handed over is the batch's own, one event of several that wait together.
            handed = run.trace.events[found.events[number]]
            assert isinstance(handed, MadeReadonly | TablesPinned)
            batch = handed.batch
            pages = numbered(batch.runs)
            operation = found.trace.ops[number]
            for each in operation[1] if name == "multicall" else [operation]:
                assert each[3 if name == "store" else 2] in pages
            if name == "store":  # what the tree that is built maps writable until now
                before = [op for op in found.trace.ops[:number] if op[:3] == operation[:3]]
                assert [op[4] for op in before[-1:]] == [0x67]
                stored.add(found.events[number])
        if number in found.stand_in:
            assert name in ("update_va_mapping", "copy_kernel_slots")
        elif name == "multicall":
            kinds = {member[0] for member in found.trace.ops[number][1]}
            assert kinds in ({"update_va"}, {"pin"})
            assert event == ("MadeReadonly" if kinds == {"update_va"} else "TablesPinned")
        elif name == "mmu_update":
            assert event == "EntriesWritten"
    assert stored


@pytest.mark.parametrize("kind", [MadeReadonly, TablesPinned])
def test_what_a_batch_was_not_given_it_does_not_have_of_the_one_before(
    kind: type[MadeReadonly | TablesPinned],
) -> None:
    """Of the tables that Linux hands over one by one the last are not, in one respect."""
    trace = _run(64, "incremental:variant=linux").trace
    *before, last = trace.of(kind)
    assert before
    events = [event for event in trace if event is not last]
    found = translate(Trace(events), probes=False)
    pages = numbered(last.batch.runs)
    wanted = {"pin"} if kind is TablesPinned else {"update_va_mapping", "update_va"}
    assert not [op for op in found.trace.ops if op[0] in wanted and op[2] in pages]


def test_a_root_that_is_not_pinned_is_only_loaded() -> None:
    trace = _run(64, "incremental:variant=hpa").trace
    events = [
        attrs.evolve(event, cost=Cost()) if isinstance(event, RootActivated) else event
        for event in trace
    ]
    found = translate(Trace(events))
    levels = [op[1] for op in found.trace.ops[found.begin :] if op[0] == "pin"]
    assert 4 not in levels
    assert replay(found).refused is None


def test_what_is_not_mapped_is_not_made_writable() -> None:
    """Linux changes the mappings that there are; update_va_mapping of another would be refused."""
    scenario = Scenario.of(guest_machine(64), "legacy_linear:kernel=3.6,good_end=end", "xen")
    trace = scenario.run().trace
    beyond = PageRun((64 * MIB) >> 12, 4)
    events = [
        attrs.evolve(event, pages=(*event.pages, beyond))
        if isinstance(event, MadeWritable)
        else event
        for event in trace
    ]
    assert events != list(trace)
    assert translate(Trace(events)).trace.ops == translate(trace).trace.ops


def test_runs_that_are_too_large_for_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = _run(64, "incremental:variant=linux").trace
    found = translate(trace)
    limits = {"MAX_PAGES": found.trace.pages, "MAX_OPERATIONS": len(found.trace.ops)}
    for name, enough in limits.items():
        with monkeypatch.context() as patch:
            patch.setattr(translation, name, enough)
            assert translate(trace).trace == found.trace
            patch.setattr(translation, name, enough - 1)
            with pytest.raises(NotReplayable, match=f"{enough} .* are more than {enough - 1}"):
                translate(trace)
            (finding,) = findings(trace)
            assert (finding.rule, finding.event, finding.address) == (6, 0, 0)
            assert finding.message.endswith(f"are more than {enough - 1}")


def test_pages_are_numbered_where_there_is_ram() -> None:
    frames = translation._Frames(RangeSet([(0, 0xA0000), (MIB, 2 * MIB)]))
    pages = {0: 0, 0x9F: 0x9F, 0x100: 0xA0, 0x1FF: 0x19F}
    assert {pfn: frames.page(pfn) for pfn in pages} == pages
    for pfn in (0xA0, 0xFF, 0x200):
        with pytest.raises(NotReplayable, match="is no RAM"):
            frames.page(pfn)
    assert list(frames.runs(0x9E000, 0x10_2000)) == [
        (0x9E000, 0xA0000, 0x9E), (MIB, 0x10_2000, 0xA0)
    ]  # fmt: skip
    assert list(frames.runs(0x9E000, MIB)) == [(0x9E000, 0xA0000, 0x9E)]
    assert list(frames.runs(0xA0000, MIB)) == []
    assert list(frames.runs(0x10_1000, 3 * MIB)) == [(0x10_1000, 2 * MIB, 0xA1)]


def test_a_run_ends_on_its_new_tree_and_is_probed_through_it() -> None:
    run = _run(64, "incremental:variant=hpa")
    found = translate(run.trace)
    loads = [op for op in found.trace.ops if op[0] == "new_baseptr"]
    assert len({op[1] for op in loads}) == 2
    assert found.trace.ops[found.end - 1] == ("unpin", loads[0][1])
    probes = found.trace.ops[found.end :]
    assert {op[0] for op in probes} == {"probe"}
    expected = found.expected[found.end :]
    # Data can be written, tables above L1 cannot, and behind the end nothing is mapped.
    assert set(expected) == {0, -114003, -114000}
    assert len(probes) > 8


@pytest.mark.slow
def test_linux_changes_upper_entries_by_hypercall_even_in_ordinary_pages() -> None:
    """Only there do the two ways differ; what is stored is the same."""
    faithful = _run(64, "incremental:variant=hpa")
    design = _run(64, "incremental:variant=hpa", "xen:replay_limit=0,table_entries=store")
    assert faithful.figures["hypercall_writes"] - design.figures["hypercall_writes"] == 34
    assert faithful.figures["direct_writes"] + 34 == design.figures["direct_writes"]
    for run in (faithful, design):
        answered = replay(translate(run.trace))
        assert answered.refused is None
        assert answered.counts.mmu_update == run.figures["hypercalls_mmu_update"]


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_refused(wrong: Wrong) -> None:
    """The backend, which keeps no types, says what the model of the hypervisor says."""
    run = run_wrong(wrong, thorough=False)
    found = translate(run.trace, probes=False)
    refused = replay(found).refused
    assert refused is not None
    operation = refused.operation
    if operation[0] == "multicall":
        operation = operation[1][-refused.code // 1000]
    assert (str(operation[0]), refused.errno) == (wrong.operation, wrong.code)
    assert type(run.trace.events[refused.event]).__name__ == wrong.event
    (finding,) = findings(run.trace)
    assert finding.rule == 6
    assert finding.event == refused.event
    assert "refuses" in finding.message
    if wrong.backend_says is not None:
        strict = run_wrong(wrong, trusting=False)
        assert str(strict.verdict) == wrong.backend_says


def test_tables_must_be_read_only_in_the_tree_that_is_not_loaded_yet() -> None:
    """The kernel's boot tables lie in its image; a new tree that maps that writable is refused."""

    machine = guest_machine(64)
    state = Xen().pvmm_boot_state(machine)
    assert isinstance(state, BootState)
    _, static = state.boot_tables
    assert machine.kernel.start <= static[0] < static[1] <= machine.kernel.brk_start
    run = _run(64, "incremental:variant=hpa")
    found = translate(run.trace)
    pages = range(static[0] >> 12, static[1] >> 12)
    entries = [
        op
        for number, op in enumerate(found.trace.ops)
        if op[0] == "store" and number >= found.begin and op[3] + HOLE in pages
    ]
    assert len(entries) == len(pages) == 3
    assert {op[4] for op in entries} == {0x65}
    # The same run with one of these entries writable.
    number = found.trace.ops.index(entries[0])
    ops = list(found.trace.ops)
    ops[number] = (*ops[number][:4], 0x67)
    changed = attrs.evolve(found, trace=attrs.evolve(found.trace, ops=tuple(ops)))
    refused = replay(changed).refused
    assert refused is not None
    assert refused.operation[0] == "multicall"
    assert refused.errno == -16


@pytest.mark.slow
def test_every_operation_matters() -> None:
    """Left out one at a time, each kind of operation that hands tables over is missed later."""
    run = _run(64, "incremental:variant=linux")
    found = translate(run.trace)
    for name in ("update_va_mapping", "update_va", "mmu_update"):
        numbers = [n for n in range(found.begin, found.end) if found.trace.ops[n][0] == name]
        assert numbers
        ops = list(found.trace.ops)
        del ops[numbers[0]]
        events = [event for n, event in enumerate(found.events) if n != numbers[0]]
        expected = [answer for n, answer in enumerate(found.expected) if n != numbers[0]]
        changed = attrs.evolve(
            found,
            trace=attrs.evolve(found.trace, ops=tuple(ops)),
            events=tuple(events),
            expected=tuple(expected),
            end=found.end - 1,
        )
        assert replay(changed).refused is not None, name


def test_32_bit_guests_are_not_replayed() -> None:
    machine = bundled("qemu-pae-320m")
    run = Scenario.of(machine, "legacy_linear:kernel=3.6", "xen").run(thorough=True)
    with pytest.raises(NotReplayable, match="64-bit"):
        translate(run.trace)
    assert str(run.verdict) == "ok"
    assert run.figures["xen.model"] == "not verified on a real hypervisor"


def test_native_runs_are_not_replayed() -> None:
    run = Scenario.of(guest_machine(64), ALLOCATORS[0], "native").run()
    with pytest.raises(NotReplayable):
        translate(run.trace)


@pytest.mark.parametrize(
    ("limit", "thorough", "told"),
    [
        pytest.param(80, True, "accepts", marks=pytest.mark.slow),
        (80, False, "not asked (`run` asks, as every thorough run)"),
        (79, False, "not asked, the guest has over 79 MiB (replay_limit)"),
        (79, True, "not asked, the guest has over 79 MiB (replay_limit)"),
    ],
)
def test_thorough_runs_in_reach_are_replayed_and_say_so(
    limit: int, thorough: bool, told: str
) -> None:
    exactly = Machine(name="m", memory_map=MemoryMap.sanitise([(0, 80 * MIB, E820Type.RAM)]))
    scenario = Scenario.of(exactly, "incremental:variant=hpa", f"xen:replay_limit={limit}")
    assert scenario.run(thorough=thorough).figures["xen.model"] == told


def test_a_wrong_run_is_found_where_it_is_asked_for() -> None:
    """A thorough run is a violation; the same run otherwise says that nobody asked."""
    wrong = WRONG["attached before it is handed over"]
    assert 6 in {finding.rule for finding in run_wrong(wrong).findings}
    unasked = run_wrong(wrong, thorough=False)
    assert 6 not in {finding.rule for finding in unasked.findings}


def test_calls_count_a_multicall_once() -> None:
    counts = Counts(
        mmu_update=5,
        update_va_mapping=64,
        mmuext_op=3,
        multicalls=2,
        batched=64,
        emulated=7,
        pins=(),
        validations=(),
    )
    assert counts.requests == 72
    assert counts.calls == 5 + 3 + 2


@pytest.mark.parametrize(("event", "shown"), [(BOOT, 0), (7, 7), (PROBE, -1)])
def test_a_finding_belongs_to_the_event_that_did_it(
    monkeypatch: pytest.MonkeyPatch, event: int, shown: int
) -> None:
    """What goes wrong before the run is its first event's, what is found after it its last's."""
    run = _run(64, "incremental:variant=linux")
    refused = Refused(0, ("pin", 1, 0), event, -22, 0)
    answered = attrs.evolve(replay(translate(run.trace)), refused=refused)
    monkeypatch.setattr("paravirt_mm_xen.replay.replay", lambda _: answered)
    (finding,) = findings(run.trace)
    assert finding.event == range(len(run.trace.events))[shown]


def test_a_probe_that_finds_something_else_is_told_with_what_it_must_find() -> None:
    probe = ("probe", 0xFFFF_8800_0000_0000, "write")
    assert describe(Refused(9, probe, PROBE, 0, -114003)) == (
        "write at address 0xffff880000000000: 0, not #PF error code 3"
    )


def test_findings_name_the_address_of_the_page() -> None:
    """Page numbers of a trace count RAM: from 1 MiB on they are behind the hole below it."""
    machine = guest_machine(64)
    run = Scenario.of(machine, "incremental:variant=linux", "xen").run()
    first_mib = (640 << 10) >> 12
    assert address_of(("pin", 1, first_mib - 1), run.trace) == (640 << 10) - 4096
    assert address_of(("pin", 1, first_mib), run.trace) == MIB
    assert address_of(("store", first_mib + 5, 0, 1, 0x67), run.trace) == MIB + 5 * 4096
    pages = machine.memory_map.ram_pages().total >> 12
    assert address_of(("pin", 1, pages), run.trace) == 0
    assert address_of(("probe", 1 << 46, "read"), run.trace) == 0


def test_a_refused_run_shows_in_the_figures() -> None:
    run = run_wrong(WRONG["attached before it is handed over"])
    figures = Xen().pvmm_figures(run)
    assert figures is not None
    assert str(figures["model"]).startswith("refuses: the hypervisor refuses mmu_update page")


@pytest.mark.slow
@pytest.mark.parametrize("mib", [1024, pytest.param(4096, marks=pytest.mark.full)])
def test_the_model_accepts_large_guests(mib: int) -> None:
    for result in run_all([mib], ALLOCATORS):
        assert result.ok, result.line()


def test_panics_are_replayed_up_to_there() -> None:
    """A brk that maps the kernel and no more: what was done until then is accepted."""
    machine: Machine = attrs.evolve(guest_machine(64), max_pfn_hint=(64 * MIB) >> 12)
    run = Scenario.of(machine, "incremental:variant=hpa,brk_pages=0", "xen").run()
    assert str(run.verdict).startswith("panic")
    answered = replay(translate(run.trace))
    assert answered.refused is None
    # What did not come to its end is not looked at.
    assert PROBE in translate(run.trace).events
    assert PROBE not in translate(Trace(run.trace.events[:-1])).events


def test_table_entries_option() -> None:
    assert Xen().table_entries is TableEntries.HYPERCALL


def test_tables_that_are_handed_over_one_by_one_belong_to_their_events() -> None:
    """Filled when they are attached, made read-only, pinned, and their entry written."""
    run = _run(64, "incremental:variant=linux")
    found = translate(run.trace)
    seen = set()
    for number in range(found.begin, found.end):
        name, event = found.trace.ops[number][0], run.trace.events[found.events[number]]
        if number not in found.stand_in:
            seen.add((name, type(event).__name__))
    assert seen == {
        ("store", "TablesAttached"), ("update_va", "MadeReadonly"),
        ("pin", "TablesPinned"), ("mmu_update", "EntriesWritten"), ("new_baseptr", "RootActivated"),
        ("tlb_flush", "RootActivated"),
    }  # fmt: skip


def test_what_a_table_of_the_builder_maps() -> None:
    tables = RangeSet([(0x3000, 0x5000)])
    mapped = [(0x1000, 0x6000), (0x1F_F000, 0x20_1000)]
    assert list(_boot_leaves(mapped, tables, (1, 0))) == [
        (0x1000, 0x3000, 0x67), (0x3000, 0x5000, 0x65), (0x5000, 0x6000, 0x67),
        (0x1F_F000, 0x20_0000, 0x67),
    ]  # fmt: skip
    assert list(_boot_leaves(mapped, tables, (1, 2 * MIB))) == [(0x20_0000, 0x20_1000, 0x67)]
    assert list(_boot_leaves(mapped, tables, (1, 4 * MIB))) == []
    assert list(_boot_leaves([(0x3000, 0x5000)], tables, (1, 0))) == [(0x3000, 0x5000, 0x65)]


@pytest.mark.slow
def test_memory_above_the_first_l3_gets_one_of_its_own() -> None:
    """At 600 GiB: the root since boot takes another entry."""
    entries = [(e.start, e.end, e.type) for e in guest_machine(64).memory_map.entries]
    entries.append((600 << 30, (600 << 30) + 4 * MIB, E820Type.RAM))
    machine = attrs.evolve(guest_machine(64), memory_map=MemoryMap.sanitise(entries))
    for allocator in ("incremental:variant=linux", "incremental:variant=hpa", "chunk_end"):
        run = Scenario.of(machine, allocator, "xen").run()
        assert str(run.verdict) == "ok", allocator
        found = translate(run.trace)
        assert check(found.trace).pages == machine.memory_map.ram_pages().total >> 12
        assert replay(found).refused is None, allocator


@pytest.mark.parametrize(
    ("code", "errno"),
    [(0, 0), (-22, -22), (-3016, -16), (-99_999, -999), (-100_000, -100_000), (-114_003, -114_003)],
)
def test_codes_without_what_was_done_before(code: int, errno: int) -> None:
    """Multicalls count by thousands; what begins at 100,000 is a fault."""
    assert Refused(0, ("multicall", ()), 0, code, 0).errno == errno


@pytest.mark.parametrize(("kernel", "levels"), [("4.18", {2, 3}), ("5.10", {1, 2, 3})])
def test_empty_entries_of_l1_count_where_leaves_go_through_xen(
    kernel: str, levels: set[int]
) -> None:
    allocator, backend = f"incremental:variant=linux,kernel={kernel}", f"xen:kernel={kernel}"
    run = Scenario.of(guest_machine(65), allocator, backend).run()
    assert str(run.verdict) == "ok"
    cleared = cleared_entries(run.trace)
    assert set(cleared) == levels
    assert all(cleared.values())
    # A range of nothing is not walked.
    events = [
        attrs.evolve(event, step=attrs.evolve(event.step, end=event.step.start))
        if isinstance(event, StepStarted) and isinstance(event.step, Map)
        else event
        for event in run.trace
    ]
    assert not any(cleared_entries(Trace(events)).values())


@pytest.mark.parametrize("way", TableEntries)
def test_entries_of_tables_are_written_in_the_way_that_is_charged(way: TableEntries) -> None:
    run = _run(64, "incremental:variant=hpa", f"xen:replay_limit=0,table_entries={way.value}")
    found = translate(run.trace, probes=False)
    names = [operation[0] for operation in found.trace.ops[found.begin : found.end]]
    assert names.count("mmu_update") == run.figures["hypercalls_mmu_update"]
    assert (names.count("mmu_update") > 0) is (way is TableEntries.HYPERCALL)
    # xen_set_pmd_hyper and its like (mmu_pv.c of 6.1) ask for MMU_NORMAL_UPDATE.
    for kernel in ("4.18", "5.10"):
        spec = f"incremental:variant=linux,kernel={kernel}", f"xen:kernel={kernel},replay_limit=0"
        found = translate(Scenario.of(guest_machine(64), *spec).run().trace)
        assert {op[5] for op in found.trace.ops if op[0] == "mmu_update"} == {False}


@pytest.mark.parametrize("kernel", ["4.18", "4.19", "5.15", "5.16"])
@pytest.mark.parametrize("allocator", ["incremental", "incremental:variant=hpa", "legacy_linear"])
def test_ram_that_waits_for_frames_is_not_looked_for(allocator: str, kernel: str) -> None:
    """Leaf entries go through the hypervisor from 4.19 to 5.15, and are empty there."""
    backend = f"xen:domain=domU,kernel={kernel}"
    run = Scenario.of(guest_machine(64), allocator, backend).run(thorough=True)
    assert str(run.verdict) == "ok"
    assert run.figures["xen.model"] == "accepts"
