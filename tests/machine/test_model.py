"""What a Machine derives from its map."""

from __future__ import annotations

import attrs
import pytest

from paravirt_mm.errors import InputError
from paravirt_mm.machine.e820 import E820Type, MemoryMap
from paravirt_mm.machine.model import CpuFeatures, Machine
from paravirt_mm.machine.paging import (
    GIB,
    I386,
    I386_PAE,
    KIB,
    MIB,
    MODES,
    PAGE_SHIFT,
    PAGE_SIZE,
    TIB,
    X86_64,
    X86_64_LA57,
)


def machine(*ram: tuple[int, int], **options) -> Machine:
    memory = MemoryMap.sanitise((start, end, E820Type.RAM) for start, end in ram)
    return Machine("test", memory, **options)


def test_last_pfns_with_memory_above_4g():
    it = machine((MIB, 3 * GIB), (4 * GIB, 6 * GIB))
    assert (it.max_pfn, it.max_low_pfn) == (0x180000, 0xC0000)
    assert it.map_limit == 6 * GIB


def test_last_pfns_without():
    it = machine((MIB, 3 * GIB))
    assert (it.max_pfn, it.max_low_pfn) == (0xC0000, 0xC0000)


def test_32_bits_end_at_lowmem_and_at_what_they_can_address():
    ram = ((MIB, 3 * GIB), (4 * GIB, 6 * GIB))
    pae, plain = machine(*ram, mode=I386_PAE), machine(*ram, mode=I386)
    assert (pae.max_pfn, plain.max_pfn) == (0x180000, 0xC0000)
    assert pae.map_limit == plain.map_limit == 896 * MIB


def test_hints_override():
    it = machine((MIB, GIB), mode=I386, max_low_pfn_hint=0x379FE)
    assert it.map_limit == 0x379FE000
    assert attrs.evolve(it, max_pfn_hint=0x1000).max_pfn == 0x1000


def test_no_ram_is_refused():
    with pytest.raises(InputError, match="no whole page"):
        machine((0x1001, 0x1FFF))


def test_a_kernel_is_moved_into_free_ram_only():
    it = machine((MIB, 64 * MIB), (96 * MIB, 200 * MIB), initrd=(120 * MIB, 121 * MIB))
    size = it.kernel.span[1] - it.kernel.span[0]
    assert it.with_kernel_at(96 * MIB).kernel.span == (96 * MIB, 96 * MIB + size)
    with pytest.raises(InputError, match="does not lie in RAM"):
        it.with_kernel_at(95 * MIB)
    with pytest.raises(InputError, match="lies on what is taken"):
        it.with_kernel_at(120 * MIB)
    places = [each.kernel.span[0] for each in it.kernel_places()]
    assert 96 * MIB in places
    assert all(place % (2 * MIB) == 0 and place >= 16 * MIB for place in places)
    assert not [place for place in places if place < 121 * MIB and place + size > 120 * MIB]
    assert list(machine((MIB, 15 * MIB)).kernel_places()) == []


@pytest.mark.parametrize(
    ("mode", "features", "level"),
    [
        (X86_64, CpuFeatures(), 2),
        (X86_64, CpuFeatures(gbpages=True), 3),
        (X86_64_LA57, CpuFeatures(gbpages=True), 3),
        (X86_64, CpuFeatures(pse=False, gbpages=True), 1),
        (I386_PAE, CpuFeatures(gbpages=True), 2),
        (I386, CpuFeatures(), 2),
    ],
)
def test_largest_page(mode, features, level):
    assert features.largest_level(mode) == level


def test_units():
    assert [unit.bit_length() for unit in (PAGE_SIZE, KIB, MIB, GIB, TIB)] == [13, 11, 21, 31, 41]
    assert PAGE_SIZE == 1 << PAGE_SHIFT


@pytest.mark.parametrize("mode", MODES.values(), ids=str)
def test_modes_are_consistent(mode):
    # A root table spans all that the mode can address virtually, and a table fits a page or less.
    assert mode.table_span(mode.root_level) == 1 << mode.virtual_bits
    assert all(
        mode.entries(level) * mode.entry_bytes <= 4096 for level in range(1, mode.root_level + 1)
    )
    assert all(
        mode.entry_span(level + 1) == mode.table_span(level) for level in range(1, mode.root_level)
    )


def test_page_names_are_the_kernels():
    assert [X86_64.page_name(level) for level in (1, 2, 3)] == ["4k", "2M", "1G"]
    assert I386.page_name(2) == "4M"
