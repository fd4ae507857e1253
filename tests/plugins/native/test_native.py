"""The native backend: conformance, and what startup code leaves behind in each mode."""

from __future__ import annotations

import attrs
import pytest

from paravirt_mm import MODES, Cost, KernelImage, Machine, Scenario, bundled, default_specs
from paravirt_mm.testing import BackendConformance, generate
from paravirt_mm_native import Native

MIB, GIB = 1 << 20, 1 << 30


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


def test_the_kernel_is_mapped_in_large_pages_to_the_byte() -> None:
    machine = attrs.evolve(_machine("x86_64"), boot_mapped=8 * MIB)
    large = 2 * MIB
    far = 100 * large
    for low, high, mapped in (
        (far, far + 1, (far, far + large)),
        (far - 1, far + large, (far - large, far + large)),
        (far + 1, far + large + 1, (far, far + 2 * large)),
    ):
        kernel = KernelImage(low, high, high, high)
        state = Native().pvmm_boot_state(attrs.evolve(machine, kernel=kernel))
        assert state.mapped == ((0, 8 * MIB), mapped)
        assert state.max_pfn_mapped == 2048


@pytest.mark.parametrize(("mode", "large"), [("i386", 4 * MIB), ("i386-pae", 2 * MIB)])
def test_a_32_bit_kernels_startup_code_maps_all_that_lies_below_it(mode: str, large: int) -> None:
    """And what an image needs behind it, a MiB at the least (head_32.S); a kernel that begins in
    what is known to be mapped changes nothing of that.
    """
    machine = attrs.evolve(_machine(mode), boot_mapped=8 * MIB)
    for low, high, end in (
        (100 * large, 101 * large, 102 * large),
        (8 * MIB, 16 * MIB - MIB, 16 * MIB),
        (8 * MIB, 16 * MIB - MIB + 1, 16 * MIB + large),
        (8 * MIB - 1, 16 * MIB - MIB + 1, 8 * MIB),
    ):
        kernel = KernelImage(low, high, high, high)
        state = Native().pvmm_boot_state(attrs.evolve(machine, kernel=kernel))
        assert state.max_pfn_mapped << 12 == end
        assert state.tables[1] == ((0, end),)
        assert state.mapped == ((0, max(end, 16 * MIB)),)


def test_tables_that_the_image_brings() -> None:
    """PAE: an L2 table for each GiB of lowmem. 64 bits, if asked for: L3 and L2 of the first."""
    state = Native().pvmm_boot_state(_machine("i386-pae"))
    assert set(state.tables) == {1, 2}
    assert state.tables[2] == ((0, MODES["i386-pae"].lowmem_limit),)
    small = attrs.evolve(_machine("i386-pae"), max_pfn_hint=0x8000, max_low_pfn_hint=0x8000)
    assert Native().pvmm_boot_state(small).tables[2] == state.tables[2], "however much RAM there is"
    split = attrs.evolve(_machine("i386-pae"), max_pfn_hint=0x70000, max_low_pfn_hint=0x70000)
    assert Native().pvmm_boot_state(split).tables[2] == ((0, 0x70000 << 12),), "VMSPLIT_2G has two"
    mapped = attrs.evolve(_machine("i386-pae"), boot_mapped=GIB + MIB)
    assert Native().pvmm_boot_state(mapped).tables[2] == ((0, GIB + MIB),)
    assert set(Native().pvmm_boot_state(_machine("i386")).tables) == {1}
    state = Native(ident_tables=True).pvmm_boot_state(_machine("x86_64"))
    assert dict(state.tables) == {2: ((0, 1024 * MIB),), 3: ((0, 512 * 1024 * MIB),)}


def test_it_stands_first_and_for_commands_that_take_one() -> None:
    (offer,) = Native().pvmm_default_specs()
    assert offer.alone
    assert default_specs("backend")[0] == offer.spec == "native"


def test_loading_cr3_flushes_once() -> None:
    assert Native().pvmm_activate_cr3() == Cost(flushes=1)


@pytest.mark.parametrize(
    ("platform", "release", "mode", "spec"),
    [
        ("native", "2.6.26", "x86_64", "native"),
        ("native", "2.6.27", "x86_64", "native:ident_tables=yes"),
        ("native", "3.8.13", "x86_64", "native:ident_tables=yes"),
        ("native", "3.9", "x86_64", "native"),
        ("native", "3.2", "x86_64-la57", "native"),
        ("native", "3.2", "i386-pae", "native"),
        ("native", None, "x86_64", "native"),
        ("xen-pv", "3.2", "x86_64", None),
    ],
)
def test_platforms_that_are_modelled(
    platform: str, release: str | None, mode: str, spec: str | None
) -> None:
    assert Native().pvmm_models_platform(platform, release, mode) == spec


def test_the_images_own_tables_are_those_of_four_levels() -> None:
    subject = attrs.evolve(bundled("qemu-512m"), mode=MODES["x86_64-la57"])
    run = Scenario.of(subject, "legacy_linear", "native:ident_tables=yes").run()
    assert str(run.verdict).startswith("rejected: ident_tables: no kernel that has them has")
