"""What the comparison is about: no flip that is not needed in the seven steps, and the price of a
guess.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from paravirt_mm import Outcome, Run, Scenario, bundled, bundled_machines
from paravirt_mm.engine.trace import MadeWritable, SurplusReleased
from paravirt_mm.testing import generate

RunScenario = Callable[..., Run]
PV = [name for name in bundled_machines() if bundled(name).mode.name in ("x86_64", "i386-pae")]
INCREMENTAL = ("incremental:variant=hpa", "incremental:variant=linux,kernel=4.19")


@pytest.mark.parametrize("machine", PV)
@pytest.mark.parametrize("allocator", INCREMENTAL)
def test_incremental_flips_each_table_once(
    allocator: str, machine: str, run_scenario: RunScenario
) -> None:
    """Each page that becomes a table goes from writable to read-only, and nothing else changes."""
    run = run_scenario(machine, allocator, "xen")
    assert run.verdict.outcome is Outcome.OK
    assert run.figures["flips_per_table"] == 1.0
    assert run.figures["flips_wasted"] == 0
    assert run.figures["max_flips"] == 1
    assert run.figures["waste"] == run.figures["reserved"] == 0


@pytest.mark.parametrize("count", [20, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize("allocator", INCREMENTAL)
def test_incremental_flips_each_table_once_on_any_machine(allocator: str, count: int) -> None:
    done = 0
    for machine in generate(count, seed=9, modes=("x86_64", "i386-pae")):
        run = Scenario.of(machine, allocator, "xen:replay_limit=0").run()
        if run.verdict.outcome is Outcome.OK:
            done += run.figures["tables"] > 0
            assert run.figures["flips"] == run.figures["tables"], machine.name
            assert run.figures["flips_wasted"] == 0, machine.name
    assert done > count // 2  # some domains are larger than their memory


@pytest.mark.parametrize("machine", PV)
@pytest.mark.parametrize("kernel", ["3.6", "3.6,good_end=end"])
def test_guess_costs_two_flips_a_surplus_page_that_was_mapped(
    kernel: str, machine: str, run_scenario: RunScenario
) -> None:
    """Pages of the block that the direct map reached are read-only, and those given back flip a
    second time.
    """
    run = run_scenario(machine, f"legacy_linear:kernel={kernel}", "xen")
    if run.verdict.outcome is not Outcome.OK:
        pytest.skip(str(run.verdict))
    returned = sum(event.flipped for event in run.trace if isinstance(event, MadeWritable))
    surplus = sum(
        part.count
        for event in run.trace
        if isinstance(event, SurplusReleased)
        for part in event.pages
    )
    assert run.figures["waste"] == surplus
    assert run.figures["flips"] == run.figures["tables"] + 2 * returned
    assert run.figures["flips_wasted"] <= 2 * returned


@pytest.mark.parametrize("machine", PV)
def test_the_seed_patchs_choice_wastes_flips(machine: str, run_scenario: RunScenario) -> None:
    """With ``good_end=end`` the block lies in what is being mapped, so that its surplus is mapped
    read-only first.
    """
    run = run_scenario(machine, "legacy_linear:kernel=3.6,good_end=end", "xen")
    assert run.verdict.outcome is Outcome.OK
    assert run.figures["flips_wasted"] > 0
    assert run.figures["flips_per_table"] > 1.0
    assert run.figures["max_flips"] >= 2


@pytest.mark.parametrize("machine", PV)
@pytest.mark.parametrize("allocator", [*INCREMENTAL, "legacy_linear:kernel=3.6,good_end=end"])
def test_natively_nothing_flips(allocator: str, machine: str, run_scenario: RunScenario) -> None:
    figures = run_scenario(machine, allocator, "native").figures
    assert figures["flips"] == figures["flips_wasted"] == figures["hypercalls"] == 0
    assert figures["flips_per_table"] == 0


@pytest.mark.parametrize("machine", PV)
def test_tables_on_xen_are_counted_by_hand(machine: str, run_scenario: RunScenario) -> None:
    """4 KiB pages only: as many L1 tables as 2 MiB slots with RAM in them that the domain builder's
    do not cover.
    """
    run = run_scenario(machine, "incremental:variant=linux,kernel=4.19", "xen")
    start = run.trace.start
    mode = start.machine.mode
    unit = mode.table_span(1)
    slots: set[int] = set()
    for low, high in start.promised:
        slots |= set(range(low // unit, -(-high // unit)))
    for low, high in start.boot.tables[1]:
        slots -= set(range(low // unit, -(-high // unit)))
    assert run.figures["tables_l1"] == len(slots)
