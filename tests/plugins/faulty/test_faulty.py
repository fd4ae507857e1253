"""Faults: the verdict names the event, and everything else goes on."""

from __future__ import annotations

import attrs
import pytest

from paravirt_mm import (
    E820Type,
    Machine,
    MemoryMap,
    MemoryTaken,
    OperationRejected,
    Outcome,
    Scenario,
    SpecError,
    StepStarted,
    SurplusReleased,
    bundled,
    compare,
)

MIB = 1 << 20
ALLOCATORS = ("incremental:variant=hpa", "incremental:kernel=4.19", "legacy_linear:kernel=2.6.39")
QEMU = bundled("qemu-512m")


def run(allocator: str, backend: str, machine: Machine = QEMU):
    return Scenario.of(machine, allocator, backend).run()


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("inner", ["native", "xen"])
def test_without_its_moment_a_fault_changes_nothing(allocator, inner):
    plain = run(allocator, inner)
    faulty = run(allocator, f"faulty:of={inner},operation=1000000")
    assert faulty.verdict == plain.verdict
    for name, value in plain.figures.items():
        assert faulty.figures[name.replace(f"{inner}.", "faulty.")] == value


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("operation", [1, 2, 3])
def test_a_refused_operation_is_named(allocator, operation):
    found = run(allocator, f"faulty:of=xen,fault=refuse,operation={operation}")
    assert found.verdict.outcome is Outcome.REJECTED
    assert f"operation {operation}, pvmm_" in found.verdict.detail
    assert sum(1 for _ in found.trace.of(OperationRejected)) == 1


def test_each_operation_can_fail_in_its_turn():
    """Until the run has no more operations, every number ends it, each at another event."""
    ends = []
    for operation in range(1, 200):
        found = run(ALLOCATORS[0], f"faulty:of=xen,operation={operation}")
        if found.verdict.outcome is Outcome.OK:
            break
        ends.append(len(found.trace.events))
    assert len(ends) > 10
    assert ends == sorted(ends)


def test_options_of_the_other_backend():
    found = run(ALLOCATORS[0], "faulty:of=xen:domain=domU;kernel=6.1,operation=1000000")
    assert found.verdict.outcome is Outcome.OK


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_memory_that_vanishes_ends_in_words(allocator):
    """Tables go elsewhere, or the run breaks a rule that names the event; never silence."""
    step = 1 if allocator.startswith("legacy_linear") else 2  # it has one step on this machine
    found = run(allocator, f"faulty:of=xen,fault=take,step={step},size={64 * MIB}")
    taken = list(found.trace.of(MemoryTaken))
    assert len(taken) == 1
    assert found.verdict.outcome in {Outcome.OK, Outcome.PANIC, Outcome.VIOLATION}
    for low, high in taken[0].spans:
        assert not any(low <= page < high for page in table_pages(found, after=taken[0])) or (
            found.verdict.outcome is Outcome.VIOLATION
        )


def table_pages(found, after):
    from paravirt_mm import TablesAllocated

    events = list(found.trace)
    for event in events[events.index(after) :]:
        if isinstance(event, TablesAllocated):
            for run_of_pages in event.batch.runs:
                yield run_of_pages.span[0]


@pytest.mark.parametrize(("size", "pages"), [(1, 0), (8191, 1), (8192, 2), (1 << 40, 16)])
@pytest.mark.parametrize("step", [1, 3])
def test_whole_pages_of_the_highest_free_piece_are_gone_before_the_step(size, pages, step):
    """At most that piece, and what ends before it stays."""
    end = 64 * MIB
    machine = Machine(
        "small",
        MemoryMap.sanitise([(0, end, E820Type.RAM)]),
        reserved=((end - (16 << 12) - MIB, end - (16 << 12)),),
    )
    found = run("incremental:kernel=4.19", f"faulty:fault=take,step={step},size={size}", machine)
    taken = [span for event in found.trace.of(MemoryTaken) for span in event.spans]
    assert taken == ([(end - (pages << 12), end)] if pages else [])
    if taken:
        events = list(found.trace)
        before = events[: next(n for n, e in enumerate(events) if isinstance(e, MemoryTaken))]
        assert sum(isinstance(event, StepStarted) for event in before) in (step - 1, step)


def test_each_run_counts_afresh():
    scenario = Scenario.of(QEMU, ALLOCATORS[0], "faulty:of=xen,operation=3")
    assert [scenario.run().verdict for _ in range(2)] == [scenario.run().verdict] * 2


def test_limits_of_numbers():
    for options in ("seconds=3601", "step=0", "operation=0"):
        with pytest.raises(SpecError):
            run(ALLOCATORS[0], f"faulty:{options}")
    assert (
        run(ALLOCATORS[0], "faulty:fault=take,seconds=3600,step=99").verdict.outcome is Outcome.OK
    )
    assert run(ALLOCATORS[0], "faulty:fault=late,seconds=0").verdict.outcome is Outcome.OK


def test_all_free_memory_gone():
    """Nothing is left for tables: the seven steps panic where they would go on."""
    machine = Machine("small", MemoryMap.sanitise([(0, 400 * MIB, E820Type.RAM)]))
    machine = attrs.evolve(machine, features=attrs.evolve(machine.features, pse=False))
    found = run("incremental:variant=hpa", f"faulty:fault=take,step=3,size={400 * MIB}", machine)
    assert found.verdict.outcome is Outcome.PANIC
    assert "no mapped memory" in found.verdict.detail


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_nonsense_is_an_error_of_the_plugin(allocator):
    found = run(allocator, "faulty:of=xen,fault=wrong,operation=3")
    assert found.verdict.outcome is Outcome.ERROR
    assert "faulty" in found.verdict.detail
    assert "this is no answer" in found.verdict.detail


def test_a_late_answer_is_only_late():
    found = run(ALLOCATORS[0], "faulty:fault=late,seconds=0.01")
    assert found.verdict.outcome is Outcome.OK


def test_the_comparison_goes_on():
    backends = ["native", "faulty:fault=wrong", "faulty:of=xen,operation=5", "xen"]
    rows = next(iter(compare([QEMU], ALLOCATORS, backends)))
    ends = [row.outcome for row in rows[:4]]
    assert ends == [Outcome.OK, Outcome.ERROR, Outcome.REJECTED, Outcome.OK]
    assert len(rows) == len(ALLOCATORS) * 4


@pytest.mark.parametrize(
    "options", ["of=faulty", "of=zen", "operation=0", "size=0", "seconds=-1", "fault=loud"]
)
def test_wrong_options(options):
    with pytest.raises(SpecError):
        run(ALLOCATORS[0], f"faulty:{options}")


def test_where_no_memory_is_free_none_is_taken():
    full = attrs.evolve(QEMU, reserved=((0, QEMU.memory_map.ram().end),))
    plain = run("incremental:kernel=4.19", "native", full)
    found = run("incremental:kernel=4.19", "faulty:fault=take,step=1", full)
    assert str(found.verdict) == str(plain.verdict)
    assert not list(found.trace.of(MemoryTaken))


def test_what_is_taken_are_whole_pages_of_memory_that_ends_within_one():
    end = 64 * MIB
    machine = Machine(
        "half",
        MemoryMap.sanitise([(0, end, E820Type.RAM)]),
        reserved=((end - 100, end), (32 * MIB - 100, end - 4196)),
    )
    for size, taken in ((8192, (32 * MIB - 12288, 32 * MIB - 4096)), (1 << 40, None)):
        found = run("incremental:kernel=4.19", f"faulty:fault=take,step=1,size={size}", machine)
        (span,) = (span for event in found.trace.of(MemoryTaken) for span in event.spans)
        assert taken in (span, None)
        assert span[1] == 32 * MIB - 4096


def test_what_was_given_back_may_be_taken_later():
    memory = MemoryMap.sanitise([(0, 3 << 30, E820Type.RAM), (4 << 30, 6 << 30, E820Type.RAM)])
    machine = Machine("given back", memory, boot_mapped=8 << 30)
    found = run("legacy_linear:kernel=3.6", f"faulty:fault=take,step=2,size={1 << 30}", machine)
    ((low, high),) = (span for event in found.trace.of(MemoryTaken) for span in event.spans)
    back = [run.span for event in found.trace.of(SurplusReleased) for run in event.pages]
    assert low <= back[0][0] < back[0][1] <= high
    assert str(found.verdict) == "ok"
