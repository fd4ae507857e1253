"""What a run costs under the backend, against the page-table hypercalls of a real boot.

`BOOT` was recorded with breakpoints on the hypercall entry of Debian's Linux 6.1.192 as PV dom0 of
Xen 4.17.7 in QEMU (host of 1 GiB, ``dom0_mem=512M,max:512M``), from the first instruction to the
end of init_mem_mapping. docs/xen-costs.md tells who made the calls.
"""

from __future__ import annotations

import pytest

from paravirt_mm import (
    E820Type,
    KernelImage,
    Machine,
    Map,
    MemoryMap,
    Run,
    Scenario,
    StepStarted,
    bundled,
)
from paravirt_mm_xen.domain.layout import Part
from paravirt_mm_xen.empty_entries import cleared_entries
from paravirt_mm_xen.replay import replay
from paravirt_mm_xen.translate import translate
from paravirt_mm_xen.verify import guest_machine

MIB = 1 << 20
BOOT = {
    "set_pmd of new L1 tables": 219,
    "set_pmd of empty entries": 1020,
    "set_pud of empty entries": 2044,
    "update_va_mapping": 219,
    "MMUEXT_PIN_L1_TABLE": 219,
    "MMUEXT_NEW_BASEPTR and MMUEXT_TLB_FLUSH_LOCAL": 2,
    "calls of init_memory_mapping": 4,
    "boot frames": 41,
}
"""Inside init_mem_mapping; ``boot frames`` as the hypervisor printed them."""

PUBLISHED = {"mmu_update": 3342, "update_va_mapping": 330, "mmuext_op": 263}
"""Another boot of Linux 6.1 as dom0 with 512 MiB, up to the end of its direct map."""

BEFORE = {"mmu_update": 50, "update_va_mapping": 112, "mmuext_op": 43}
"""Hypercalls of the recorded boot before init_mem_mapping."""


def _dom0(end: int = 0x20061000) -> Machine:
    ram, reserved = E820Type.RAM, E820Type.RESERVED
    entries = [
        (0, 0x9F000, ram),
        (0x9FC00, 0x100000, reserved),
        (0x100000, end, ram),
        (0x3FFE0000, 0x40000000, reserved),
        (0xFEC00000, 0xFEC01000, reserved),
        (0xFEE00000, 0xFEF00000, reserved),
        (0xFFFC0000, 0x100000000, reserved),
    ]
    kernel = KernelImage(0x1000000, 0x49C0000, 0x49C0000, 0x4A00000)
    return Machine(name="dom0", memory_map=MemoryMap.sanitise(entries), kernel=kernel)


def _boot(end: int = 0x20061000) -> Run:
    run = Scenario.of(_dom0(end), "incremental:variant=linux,kernel=6.1", "xen:kernel=6.1").run()
    assert str(run.verdict) == "ok"
    return run


def test_a_real_boot_is_counted_call_by_call() -> None:
    run = _boot()
    figures = run.figures
    cleared = cleared_entries(run.trace)
    assert figures["hypercalls_mmu_update"] == BOOT["set_pmd of new L1 tables"]
    assert cleared[2] == BOOT["set_pmd of empty entries"]
    assert cleared[3] == BOOT["set_pud of empty entries"]
    assert figures["hypercalls_update_va_mapping"] == BOOT["update_va_mapping"]
    pins = BOOT["MMUEXT_PIN_L1_TABLE"]
    assert figures["pins_l1"] == pins
    cr3 = BOOT["MMUEXT_NEW_BASEPTR and MMUEXT_TLB_FLUSH_LOCAL"]
    assert figures["hypercalls_mmuext_op"] == pins + cr3
    assert figures["xen.hypercalls_clearing"] == 1020 + 2044
    steps = list(run.trace.of(StepStarted))
    assert len(steps) - 1 == BOOT["calls of init_memory_mapping"]
    places = dict(run.trace.start.boot.places)
    low, high = places[Part.PAGE_TABLES]
    assert (high - low) >> 12 == BOOT["boot frames"]


def test_the_published_figures_follow_from_one_l1_table_less() -> None:
    """All but six mmu_update: early mappings of firmware tables, which depend on the host."""
    tables = PUBLISHED["update_va_mapping"] - BEFORE["update_va_mapping"]
    assert tables == BOOT["update_va_mapping"] - 1
    cr3 = BOOT["MMUEXT_NEW_BASEPTR and MMUEXT_TLB_FLUSH_LOCAL"]
    assert PUBLISHED["mmuext_op"] == BEFORE["mmuext_op"] + tables + cr3
    run = _boot(512 * MIB - 0x9000)
    assert run.figures["tables"] == tables
    assert run.figures["xen.hypercalls_clearing"] == 4 * (256 + 511)
    explained = BEFORE["mmu_update"] + tables + run.figures["xen.hypercalls_clearing"]
    assert PUBLISHED["mmu_update"] - explained == 6


def test_clearing_is_linux_own() -> None:
    """The design stores nothing into entries that stay empty."""
    run = Scenario.of(guest_machine(64), "incremental:variant=hpa", "xen").run()
    assert cleared_entries(run.trace) == {2: 0, 3: 0}
    assert run.figures["xen.hypercalls_clearing"] == 0


@pytest.mark.parametrize("allocator", ["legacy_linear:kernel=3.6", "incremental:variant=linux"])
@pytest.mark.parametrize(
    "ram",
    [
        [(0, 512 * MIB)],
        [(0, 511 * MIB), (600 * MIB, 601 * MIB)],
        [(0, 512 * MIB), (1023 * MIB, 1024 * MIB), (2048 * MIB, 2050 * MIB + 0x3000)],
        [(0, 512 * MIB), *((n * MIB - 0x3000, n * MIB) for n in (602, 606, 610))],
        [(2 * MIB, 512 * MIB)],
    ],
    ids=["one piece", "two in one L2", "two L2", "ends of entries", "none in the first entry"],
)
def test_what_is_cleared_behind_each_range(allocator: str, ram: list[tuple[int, int]]) -> None:
    """Entry by entry: from the end of the range to the end of the table, where no RAM is."""
    machine = Machine(
        name="m", memory_map=MemoryMap.sanitise([(*span, E820Type.RAM) for span in ram])
    )
    run = Scenario.of(machine, allocator, "xen:replay_limit=0").run()
    expected = {2: 0, 3: 0}
    for event in run.trace:
        if isinstance(event, StepStarted) and isinstance(event.step, Map):
            for level, span in ((2, 2 * MIB), (3, 1024 * MIB)):
                table = (event.step.end - 1) // (512 * span)
                for entry in range(512 * table, 512 * (table + 1)):
                    low, high = entry * span, (entry + 1) * span
                    empty = not any(max(low, a) < min(high, b) for a, b in ram)
                    expected[level] += low >= event.step.end and empty
    assert cleared_entries(run.trace) == expected
    assert expected[3] or ram[0][0]  # a run may end early where no RAM is low


def test_32_bit_kernels_clear_nothing() -> None:
    run = Scenario.of(bundled("qemu-pae-320m"), "legacy_linear:kernel=3.6", "xen").run()
    assert run.figures["xen.hypercalls_clearing"] == 0


@pytest.mark.slow
def test_model_and_figures_agree_on_the_real_machine() -> None:
    run = _boot()
    answered = replay(translate(run.trace))
    assert answered.refused is None
    assert answered.counts.requests == run.figures["hypercalls"]
