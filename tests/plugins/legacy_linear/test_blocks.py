"""The block that the linear allocator sets aside: where real kernels had it, and sums by hand."""

from __future__ import annotations

import attrs
import pytest

from paravirt_mm import (
    CpuFeatures,
    E820Type,
    KernelImage,
    Machine,
    MemoryMap,
    Outcome,
    Run,
    Scenario,
    SpecError,
    bundled,
)
from paravirt_mm.engine.trace import Panicked, TablesAllocated, TablesReserved
from paravirt_mm.testing import generate
from paravirt_mm_legacy_linear import LegacyLinear

MIB, GIB, PAGE = 1 << 20, 1 << 30, 4096


def _blocks(run: Run) -> list[tuple[int, int]]:
    return [event.pages[0].span for event in run.trace if isinstance(event, TablesReserved)]


def _used_end(run: Run) -> int:
    return max(
        event.batch.runs[-1].span[1] for event in run.trace if isinstance(event, TablesAllocated)
    )


def _run(machine: Machine, options: str, backend: str = "native") -> Run:
    return Scenario.of(machine, f"legacy_linear:{options}", backend).run()


@pytest.fixture(scope="module")
def big() -> Machine:
    """128 GiB with what the commit "put early page table high" tells of its example.

    ::

        0     512M        7bc84000    7f74c000  7f750000      4G               2080000000
        | mapped |  free  |  taken    | 4 pages |    hole     | free           |
    """
    entries = [
        (0x1000, 0x9F000, E820Type.RAM),
        (MIB, 0x7F750000, E820Type.RAM),
        (4 * GIB, 0x2080000000, E820Type.RAM),
    ]
    return Machine(
        name="128 GiB",
        memory_map=MemoryMap.sanitise(entries),
        features=CpuFeatures(pse=True, gbpages=False),
        kernel=KernelImage(16 * MIB, 30 * MIB, 30 * MIB, 30 * MIB + 64 * PAGE),
        reserved=((0x7BC84000, 0x7F74C000),),
    )


def test_blocks_below_what_is_mapped(big: Machine) -> None:
    """Printed before that commit: 1fffc000-1fffffff and 7bc01000-7bc83fff, used up to 7bc7efff."""
    run = _run(big, "kernel=3.2")
    assert _blocks(run) == [(0x1FFFC000, 0x20000000), (0x7BC01000, 0x7BC84000)]
    assert _used_end(run) == 0x7BC7F000


@pytest.mark.parametrize("options", ["kernel=2.6.39", "kernel=3.2,good_end=end"])
def test_blocks_as_high_as_can_be(big: Machine, options: str) -> None:
    """Printed after it: 7f74c000-7f74ffff and 207ff7d000-207fffffff, used up to 207fffafff."""
    run = _run(big, options)
    assert _blocks(run) == [(0x7F74C000, 0x7F750000), (0x207FF7D000, 0x2080000000)]
    assert _used_end(run) == 0x207FFFB000


def test_block_of_a_pae_kernel_is_where_its_log_has_it() -> None:
    """3.2 on the PAE desktop: "kernel direct mapping tables up to 37bfe000 @ 1ffa000-2000000"."""
    assert _blocks(_run(bundled("pae-4g"), "kernel=3.2")) == [(0x1FFA000, 0x2000000)]


def test_first_piece_rule_asks_for_thousands() -> None:
    """3.5 adds the first piece as small pages: one merged into a 2M range asks for a table for each
    2 MiB of it.
    """
    machine = bundled("lenovo-x230-8g")
    before, after = _run(machine, "kernel=3.4").figures, _run(machine, "kernel=3.5").figures
    assert before["reserved"] < 20
    assert after["reserved"] > 1000
    assert before["tables"] == after["tables"]
    assert after["waste_percent"] > 90


def test_small_machine_by_hand() -> None:
    """64 MiB, 2M pages: one page for 1 GiB entries, one for the 32 entries of 2M, none for a
    tail.
    """
    machine = _flat(64 * MIB)
    run = _run(machine, "kernel=3.4")
    assert run.figures["reserved"] == 2
    assert run.figures["used"] == 2
    tail = _run(_flat(64 * MIB + 5 * PAGE), "kernel=3.4")
    assert tail.figures["reserved"] == 3
    no_pse = _run(attrs.evolve(machine, features=CpuFeatures(pse=False)), "kernel=3.4")
    assert no_pse.figures["reserved"] == 1 + 1 + 32
    assert no_pse.figures["used"] == 1 + 1 + 32


def _flat(end: int) -> Machine:
    return Machine(
        name="flat",
        memory_map=MemoryMap.sanitise([(0, end, E820Type.RAM)]),
        kernel=KernelImage(16 * MIB, 18 * MIB, 18 * MIB, 18 * MIB + 64 * PAGE),
    )


def test_no_room_is_a_panic_in_the_kernels_words() -> None:
    machine = attrs.evolve(_flat(64 * MIB), reserved=((0, 64 * MIB),))
    run = _run(machine, "kernel=3.6")
    assert str(run.verdict) == "panic: Cannot find space for the kernel page tables"
    assert run.figures["tables"] == run.figures["overrun"] == 0


def test_overrun_says_how_many_are_missing() -> None:
    """A guess too small is a panic that names the tables beyond the block."""
    machine = list(generate(3, seed=1))[2]
    run = _run(machine, "kernel=3.8", "xen:replay_limit=0")
    assert str(run.verdict) == "panic: alloc_low_page: ran out of memory"
    panic = next(event for event in run.trace if isinstance(event, Panicked))
    assert run.figures["overrun"] == panic.missing_tables > 0


def test_holes_above_4_gib_are_mapped_until_3_7() -> None:
    """::

    4G      5G        6G      7G
    | RAM   | hole    | RAM   |
    """
    entries = [
        (0x1000, 2 * GIB, E820Type.RAM),
        (4 * GIB, 5 * GIB, E820Type.RAM),
        (5 * GIB, 6 * GIB, E820Type.RESERVED),
        (6 * GIB, 7 * GIB, E820Type.RAM),
    ]
    machine = Machine("hole", MemoryMap.sanitise(entries))
    whole, regions = _run(machine, "kernel=3.6"), _run(machine, "kernel=3.7")
    hole = 5 * GIB, 6 * GIB
    assert any(low <= hole[0] and hole[1] <= high for low, high in whole.trace.start.promised)
    assert not any(low < hole[1] and hole[0] < high for low, high in regions.trace.start.promised)


def test_slots_of_a_gigabyte_without_any_entry_stay_empty() -> None:
    """A hole that no firmware entry of any type touches is left out even before 3.7."""
    entries = [
        (0x1000, 2 * GIB, E820Type.RAM),
        (4 * GIB, 5 * GIB, E820Type.RAM),
        (8 * GIB, 9 * GIB, E820Type.RAM),
    ]
    run = _run(Machine("hole", MemoryMap.sanitise(entries)), "kernel=3.6")
    assert run.verdict.outcome is Outcome.OK
    assert run.trace.start.promised[-2:] == ((4 * GIB, 5 * GIB), (8 * GIB, 9 * GIB))


@pytest.mark.parametrize("kernel", ["3.9", "4.19", "2.6.18", "six", "", "3", "3.6-rc1x."])
def test_releases_without_the_allocator(kernel: str) -> None:
    if kernel == "3.6-rc1x.":
        assert LegacyLinear(kernel=kernel)
        return
    with pytest.raises(SpecError):
        LegacyLinear(kernel=kernel)


@pytest.mark.parametrize(
    ("release", "spec"),
    [
        ("3.6.11", "legacy_linear:kernel=3.6.11"),
        ("2.6.38-8-generic", "legacy_linear:kernel=2.6.38"),
        ("3.9.0", None),
        ("2.6.18", None),
        ("nonsense", None),
    ],
)
def test_models_its_releases_only(release: str, spec: str | None) -> None:
    assert LegacyLinear().pvmm_models_kernel(release=release, mode="x86_64") == spec


# -- machines at the edge of what can be -----------------------------------------------------------


def test_a_release_that_a_mode_is_not_modelled_for_is_nobodys_fault() -> None:
    run = _run(bundled("pae-4g"), "kernel=2.6.19")
    assert str(run.verdict) == (
        "rejected: legacy_linear models kernels 2.6.27 to 3.8 in this mode, not 2.6.19"
    )
    assert not run.figures


def test_without_memory_below_4_gib_there_is_one_call_less() -> None:
    memory = MemoryMap.sanitise([(4 * GIB, 5 * GIB, E820Type.RAM)])
    run = _run(attrs.evolve(bundled("qemu-512m"), memory_map=memory), "kernel=2.6.39")
    assert run.verdict.outcome is Outcome.PANIC  # nothing is mapped in which the tables could lie
    assert run.trace.start.promised == ((4 * GIB, 5 * GIB),)


def test_all_that_firmware_lists_is_mapped_as_far_as_there_are_addresses() -> None:
    """e820_end_of_ram of 2.6.19 ends at MAXMEM."""
    top = 1 << 46
    listed = [(0, GIB, E820Type.RAM), (top - GIB, top + MIB, E820Type.RESERVED)]
    machine = attrs.evolve(bundled("qemu-512m"), memory_map=MemoryMap.sanitise(listed))
    assert _run(machine, "kernel=2.6.19").trace.start.promised[-1][1] == top
