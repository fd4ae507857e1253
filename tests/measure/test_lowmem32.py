"""Lowmem arithmetic: the proposal's own numbers, and what a 32-bit kernel printed."""

from __future__ import annotations

import attrs

from paravirt_mm import CpuFeatures, E820Type, KernelImage, Machine, MemoryMap, Scenario, bundled
from paravirt_mm.machine.paging import I386, I386_PAE
from paravirt_mm.measure.lowmem32 import SEED_BRK, brk_reach, lowmem32

MIB, GIB = 1 << 20, 1 << 30


def pae(*ram: tuple[int, int], brk: int = SEED_BRK) -> Machine:
    return Machine(
        name="pae",
        memory_map=MemoryMap.sanitise((low, high, E820Type.RAM) for low, high in ram),
        mode=I386_PAE,
        features=CpuFeatures(pse=False),
        kernel=KernelImage(16 * MIB, 30 * MIB, 30 * MIB, 30 * MIB + brk),
    )


def test_the_proposals_arithmetic() -> None:
    assert SEED_BRK == 64 * 4096
    assert brk_reach(I386_PAE) == 128 * MIB
    assert brk_reach(I386) == 256 * MIB  # entries half as wide
    assert brk_reach(I386_PAE, 2 * 4096 - 1) == 2 * MIB  # a part of a page is no table


def test_four_gigabytes_with_pae() -> None:
    figures = lowmem32(pae((0, 640 << 10), (MIB, 3 * GIB), (4 * GIB, 5 * GIB)))
    assert figures is not None
    assert figures.lowmem_end == figures.lowmem_limit == 896 * MIB
    assert figures.lowmem == 895 * MIB + (640 << 10)
    assert figures.highmem == 3 * GIB - 896 * MIB + GIB
    assert figures.tables_4k == 448
    assert figures.tables_4k_bytes == 1792 << 10
    assert (figures.brk, figures.brk_reach) == (256 << 10, 128 * MIB)
    assert not figures.brk_covers_lowmem


def test_a_machine_that_brk_covers() -> None:
    figures = lowmem32(pae((0, 128 * MIB)))
    assert figures is not None
    assert (figures.tables_4k, figures.highmem) == (64, 0)
    assert figures.brk_covers_lowmem
    figures = lowmem32(pae((0, 128 * MIB + 4096)))
    assert figures is not None
    assert not figures.brk_covers_lowmem


def test_memory_that_pae_cannot_address_is_no_highmem() -> None:
    figures = lowmem32(pae((0, GIB), (1 << 36, (1 << 36) + GIB)))
    assert figures is not None
    assert figures.highmem == GIB - 896 * MIB


def test_table_count_is_what_a_run_needs() -> None:
    """With 4 KiB pages alone, as many L1 tables as the arithmetic says; holes and edges
    included.
    """
    machine = pae((0, 640 << 10), (MIB, 3 * MIB), (5 * MIB + 4096, 97 * MIB), (99 * MIB, GIB))
    figures = lowmem32(machine)
    assert figures is not None
    fresh = attrs.evolve(machine, boot_mapped=64 * MIB)
    run = Scenario.of(fresh, "incremental:variant=hpa", "native").run()
    assert run.verdict.outcome == "ok"
    # The kernel image and brk are RAM here, so that mapping RAM is mapping all.
    assert run.figures["tables_l1"] == figures.tables_4k


def test_64_bit_machines_have_none() -> None:
    assert lowmem32(bundled("lenovo-x230-8g")) is None


def test_lowmem_that_ends_with_a_table_takes_no_further_one() -> None:
    for ram, tables in (((MIB, 64 * MIB), 32), ((2 * MIB, 4 * MIB), 1)):
        found = lowmem32(pae(ram))
        assert found is not None
        assert found.tables_4k == tables


def test_each_page_of_lowmem_is_counted_once() -> None:
    """RAM from byte 0, in pieces that share tables (2 MiB each) or fill them, up to the last page
    below 896 MiB and the first above; and a kernel without brk.
    """
    end, page = 896 * MIB, 4096
    pieces = [(0, page), (2 * page, MIB), (3 * MIB, 8 * MIB), (8 * MIB + page, 9 * MIB)]
    found = lowmem32(pae(*pieces, (end - page, end + page), brk=5 * page))
    assert found is not None
    assert found.lowmem == page + (MIB - 2 * page) + 5 * MIB + (MIB - page) + page
    assert found.highmem == page
    assert found.tables_4k == len({0, 1, 2, 3, 4, 447})
    assert (found.brk, found.brk_reach) == (5 * page, 10 * MIB)
    machine = pae((0, end), brk=0)
    found = lowmem32(machine)
    assert found is not None
    assert (found.lowmem, found.highmem, found.brk, found.brk_reach) == (end, 0, 0, 0)
    backward = attrs.evolve(machine, kernel=attrs.evolve(machine.kernel, brk_end=29 * MIB))
    found = lowmem32(backward)
    assert found is not None
    assert (found.brk, found.brk_reach) == (0, 0)
