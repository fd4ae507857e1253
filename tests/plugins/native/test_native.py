"""The native backend: conformance, and what startup code leaves behind in each mode."""

from __future__ import annotations

import pytest

from paravirt_mm import Machine, bundled
from paravirt_mm.testing import BackendConformance, generate
from paravirt_mm_native import Native

MIB = 1 << 20


class TestNative(BackendConformance):
    plugin = Native


def _machine(mode: str) -> Machine:
    return next(generate(1, seed=11, modes=(mode,)))


@pytest.mark.parametrize("mode", ["x86_64", "x86_64-la57"])
def test_64_bit_starts_with_an_empty_root(mode: str) -> None:
    """level3_ident_pgt and its like are dropped: nothing of the direct map exists."""
    machine = _machine(mode)
    state = Native().pvmm_boot_state(machine)
    assert dict(state.tables) == {}
    assert state.direct_mapped == ()


@pytest.mark.parametrize("mode", ["i386", "i386-pae"])
def test_32_bit_keeps_the_startup_tables(mode: str) -> None:
    """swapper_pg_dir is the startup code's: its L1 tables map what is mapped since boot; PAE's L2
    tables are static.
    """
    machine = _machine(mode)
    state = Native().pvmm_boot_state(machine)
    assert state.tables[1] == ((0, machine.boot_mapped),)
    assert (2 in state.tables) is (mode == "i386-pae")


def test_nothing_is_typed_or_hidden() -> None:
    machine = _machine("x86_64")
    state = Native().pvmm_boot_state(machine)
    assert state.features == machine.features
    assert not state.typed
    assert state.boot_tables == ()
    assert state.max_pfn_mapped == machine.boot_mapped >> 12


def test_kernel_far_above_the_boot_mapping_is_mapped() -> None:
    """A randomised kernel lies anywhere; the startup code maps it, brk included, wherever it is."""
    machine = bundled("gentoo-64g")
    assert machine.kernel.start > machine.boot_mapped
    mapped = Native().pvmm_boot_state(machine).mapped
    assert any(
        low <= machine.kernel.start and machine.kernel.brk_end <= high for low, high in mapped
    )


def test_only_cr3_costs_anything(run_scenario) -> None:  # type: ignore[no-untyped-def]
    figures = run_scenario("lenovo-x230-8g", "incremental:variant=linux", "native").figures
    assert figures["tlb_flushes"] == 1
    assert figures["hypercalls"] == figures["flips"] == figures["emulated_writes"] == 0
    assert figures["direct_writes"] > 0
