"""The checker alone: traces that no plugin could produce, because the engine would not let it, and
what must not be found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import pytest

from paravirt_mm import (
    Boot,
    E820Type,
    Event,
    Machine,
    Map,
    MemoryMap,
    Outcome,
    PageRun,
    Run,
    Scenario,
    Trace,
    hookimpl,
)
from paravirt_mm.engine.trace import (
    MadeReadonly,
    MadeWritable,
    MemoryTaken,
    Panicked,
    RangeMapped,
    RunFinished,
    SurplusReleased,
    TablesAllocated,
    TablesAttached,
)
from paravirt_mm.invariants.rules import check
from paravirt_mm.testing import (
    AscendingAllocator,
    BlockAllocator,
    PlainPlatform,
    TypingPlatform,
)

RunPair = Callable[[type[Any], type[Any]], Run]
MIB = 1 << 20


def _altered(trace: Trace, kind: type, change: Callable[[Any], Any]) -> Trace:
    """Return a copy whose first event of ``kind`` is changed (None: left out)."""
    events: list[Event] = []
    done = False
    for event in trace:
        if not done and isinstance(event, kind):
            done = True
            changed = change(event)
            events += [changed] if changed is not None else []
        else:
            events.append(event)
    assert done, f"the trace has no {kind.__name__}"
    return Trace(events)


@pytest.mark.parametrize(("backend", "rule"), [(PlainPlatform, 3), (TypingPlatform, 4)])
def test_page_size_that_the_platform_hides(
    backend: type[Any], rule: int, run_pair: RunPair
) -> None:
    """On a typing platform large pages break rule 4, on another rule 3."""
    trace = run_pair(AscendingAllocator, backend).trace
    level = trace.start.boot.features.largest_level(trace.start.machine.mode) + 1
    wrong = _altered(
        trace, RangeMapped, lambda e: attrs.evolve(e, leaves=attrs.evolve(e.leaves, level=level))
    )
    assert [finding.rule for finding in check(wrong)] == [rule]
    assert "the platform has no" in check(wrong)[0].message


def test_table_made_writable(run_pair: RunPair) -> None:
    """A table among the pages that get write access back breaks rule 4 alone."""
    trace = run_pair(BlockAllocator, _WholeBoot).trace
    batch = next(e for e in trace if isinstance(e, TablesAllocated)).batch
    wrong = _altered(
        trace, MadeWritable, lambda e: attrs.evolve(e, pages=(*e.pages, batch.runs[0]))
    )
    assert [finding.rule for finding in check(wrong)] == [4]
    assert check(wrong)[0].address == batch.runs[0].span[0]


def test_page_given_back_stays_reserved(run_pair: RunPair) -> None:
    trace = run_pair(BlockAllocator, PlainPlatform).trace
    released = next(e for e in trace if isinstance(e, SurplusReleased)).pages[0]
    wrong = _altered(
        trace,
        RunFinished,
        lambda e: attrs.evolve(e, reserved=(*e.reserved, released.span)),
    )
    assert {finding.rule for finding in check(wrong)} == {5}


def test_table_never_made_readonly(run_pair: RunPair) -> None:
    trace = run_pair(AscendingAllocator, TypingPlatform).trace
    wrong = _altered(trace, MadeReadonly, lambda _: None)
    assert {finding.rule for finding in check(wrong)} == {4}


def test_of_tables_that_were_never_attached_the_first_is_named(run_pair: RunPair) -> None:
    """And nothing is said of CR3, which had nothing to be loaded with."""
    trace = run_pair(AscendingAllocator, PlainPlatform).trace
    found = [one.message for one in check(_altered(trace, TablesAttached, lambda _: None))]
    never = [message for message in found if "never attached" in message]
    assert never == ["batch 0 of tables was never attached"]
    assert "CR3 is never loaded with the new tree" not in found


def test_finding_names_event_and_address(run_pair: RunPair) -> None:
    trace = run_pair(AscendingAllocator, PlainPlatform).trace
    wrong = _altered(
        trace,
        RangeMapped,
        lambda e: attrs.evolve(e, leaves=attrs.evolve(e.leaves, end=e.leaves.end + 16 * MIB)),
    )
    found = check(wrong)
    events = [n for n, event in enumerate(wrong) if isinstance(event, RangeMapped)]
    assert found[0].event in events
    assert str(found[0]).startswith(f"invariant 3, event {found[0].event}, {found[0].address:#x}")


def test_run_that_gave_up_promises_nothing(run_pair: RunPair) -> None:
    """After a panic the direct map is not complete, and the reservation not given back; neither is
    a finding.
    """
    trace = run_pair(BlockAllocator, PlainPlatform).trace
    given_back = next(n for n, event in enumerate(trace) if isinstance(event, SurplusReleased))
    kept = trace.events[:given_back]
    assert check(Trace([*kept, Panicked("ran out of memory"), trace.events[-1]])) == []


def test_trace_without_a_start_has_no_findings() -> None:
    assert check(Trace()) == []


@attrs.frozen
class _WholeBoot(TypingPlatform):
    """All memory can be written since boot, and nothing of it is in the kernel's own tree."""

    @hookimpl
    def pvmm_boot_state(self, machine: Any) -> Any:
        state = TypingPlatform.pvmm_boot_state(self, machine)
        return attrs.evolve(state, mapped=((0, machine.map_limit),), direct_mapped=(), tables={})


@attrs.frozen
class _UsesReleasedPages(BlockAllocator):
    """Correct: the surplus of the first step, given back, serves the steps after it."""

    @hookimpl
    def pvmm_reserve_tables(self, boot: Boot, step: Map) -> Sequence[PageRun]:
        spare = 0 if boot.tables_made else 600
        return BlockAllocator(spare).pvmm_reserve_tables(boot, step)


@pytest.mark.parametrize("backend", [PlainPlatform, _WholeBoot])
def test_released_pages_may_be_used_again(backend: type[Any], run_pair: RunPair) -> None:
    """What one step gives back another may take: then it is reserved, and read-only, for good
    reason.
    """
    run = run_pair(_UsesReleasedPages, backend)
    first = next(e for e in run.trace if isinstance(e, SurplusReleased)).pages[0]
    later = [e for e in run.trace if isinstance(e, TablesAllocated)][-1].batch.runs[0]
    assert first.low <= later.low < first.high, "the test's allocator does not do what it says"
    assert run.findings == ()
    assert run.verdict.outcome is Outcome.OK


def _with(trace: Trace, event: Event, before: type) -> Trace:
    """Return a copy with an event more, before the first of a kind."""
    events = list(trace)
    place = next(n for n, each in enumerate(events) if isinstance(each, before))
    return Trace([*events[:place], event, *events[place:]])


def test_memory_that_the_platform_takes(run_pair: RunPair) -> None:
    """Taken for good reason, it may be reserved in the end; no table may lie there, before or
    after.
    """
    trace = run_pair(AscendingAllocator, PlainPlatform).trace
    free = (200 * MIB, 201 * MIB)
    taken = _altered(
        _with(trace, MemoryTaken((free,)), RunFinished),
        RunFinished,
        lambda e: attrs.evolve(e, reserved=(*e.reserved, free)),
    )
    assert check(taken) == []
    table = next(e for e in trace if isinstance(e, TablesAllocated)).batch.runs[0].span
    after = check(_with(trace, MemoryTaken((table,)), RunFinished))
    assert [(each.rule, each.address) for each in after] == [(1, table[0])]
    assert "takes a page table away" in after[0].message
    before = check(_with(trace, MemoryTaken((table,)), TablesAllocated))
    assert {each.rule for each in before} == {1}
    assert {each.address for each in before} == {table[0]}
    assert any("was taken away by the platform" in each.message for each in before)


def test_what_is_given_back_is_named_by_its_page(run_pair: RunPair) -> None:
    trace = run_pair(BlockAllocator, _WholeBoot).trace
    given = [run for e in trace if isinstance(e, SurplusReleased) for run in e.pages]
    found = check(Trace([each for each in trace if not isinstance(each, MadeWritable)]))
    named = [each.address for each in found if "a page given back is read-only" in each.message]
    assert named
    assert {each.rule for each in found} == {5}
    assert all(
        any(low <= address < high for low, high in (r.span for r in given)) for address in named
    )


def test_ram_below_4_gib_that_a_kernel_has_not_counted_need_not_be_mapped() -> None:
    """Its max_low_pfn is lower than the map's end below 4 GiB: nothing is mapped between them."""
    gib = 1 << 30
    memory = [(low, high, E820Type.RAM) for low, high in ((0, gib), (4 * gib, 5 * gib))]
    machine = Machine("low", MemoryMap.sanitise(memory), max_low_pfn_hint=0x30000)
    run = Scenario.of(machine, "legacy_linear:kernel=2.6.39", "native").run()
    assert str(run.verdict) == "ok"
    assert run.trace.start.promised == ((0, 0x30000000), (4 * gib, 5 * gib))
