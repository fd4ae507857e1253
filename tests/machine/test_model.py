"""What a Machine derives from its map."""

from __future__ import annotations

import copy

import attrs
import pytest

from paravirt_mm.errors import InputError
from paravirt_mm.machine.e820 import E820Type, MemoryMap
from paravirt_mm.machine.model import BootState, CpuFeatures, KernelImage, Machine, sealed
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


def test_a_kernel_leaves_nothing_where_it_was():
    it = machine(
        (MIB, 200 * MIB),
        reserved=((MIB, 2 * MIB), (16 * MIB, 31 * MIB)),
        initrd=(90 * MIB, 91 * MIB),
    )
    moved = it.with_kernel_at(64 * MIB)
    end = it.kernel.span[1]
    # What was reserved beside the kernel stays; the initrd is not among it.
    assert moved.reserved == ((MIB, 2 * MIB), (end, 31 * MIB))
    assert moved.initrd == it.initrd
    told = (*it.provenance.assumed, "the kernel is loaded at 0x4000000 instead")
    assert moved.provenance.assumed == told
    with pytest.raises(InputError, match="lies on what is taken"):
        it.with_kernel_at(90 * MIB)
    assert it.with_kernel_at(91 * MIB).kernel.start == 91 * MIB


def test_places_for_a_kernel_are_spread_over_all_of_them():
    it = machine((0, 116 * MIB))
    size = it.kernel.span[1] - it.kernel.start  # 14 MiB and 256 KiB
    every = [16 * MIB + number * 2 * MIB for number in range(50)]
    fit = [place for place in every if place + size <= 116 * MIB]
    assert [each.kernel.start for each in it.kernel_places()] == fit
    assert [each.kernel.start for each in it.kernel_places(50)] == fit
    # Up to 512 are all tried; of one more, every other one.
    for steps, by in ((512, 2), (513, 4)):
        starts = [
            each.kernel.start for each in machine((0, (16 + 2 * steps) * MIB)).kernel_places()
        ]
        assert (starts[0], starts[1]) == (16 * MIB, (16 + by) * MIB)
    # Half of a step more of memory is no place more.
    wider = machine((0, 117 * MIB)).kernel_places(50)
    assert [each.kernel.start for each in wider] == [p for p in every if p + size <= 117 * MIB]
    assert [each.kernel.start for each in it.kernel_places(49)] == [
        p for p in every[::2] if p in fit
    ]
    assert [each.kernel.start for each in it.kernel_places(20)] == [
        p for p in every[::3] if p in fit
    ]


def test_the_parts_of_a_kernel():
    """::

    16 MiB          20 MiB       22 MiB     22 MiB + 8 pages     24 MiB
      | text .. bss   |            | brk, tables |   free           |  the linker's _end
    """
    image = KernelImage(16 * MIB, 20 * MIB, 22 * MIB, 22 * MIB + 8 * PAGE_SIZE, 24 * MIB)
    assert image.span == (16 * MIB, 22 * MIB + 8 * PAGE_SIZE)
    assert image.loaded == (16 * MIB, 24 * MIB)
    assert image.brk_pages == 8
    assert image.at(64 * MIB) == KernelImage(
        64 * MIB, 68 * MIB, 70 * MIB, 70 * MIB + 8 * PAGE_SIZE, 72 * MIB
    )
    assert attrs.evolve(image, linked_end=None).at(MIB).linked_end is None
    inside = attrs.evolve(image, end=23 * MIB, linked_end=None)
    assert inside.span == inside.loaded == (16 * MIB, 23 * MIB)
    assert attrs.evolve(image, brk_end=22 * MIB - 1).brk_pages == 0
    assert attrs.evolve(image, brk_end=22 * MIB + 2 * PAGE_SIZE - 1).brk_pages == 1


def test_another_brk():
    """Fewer pages leave the end where it was, with free memory before it; more move the end."""
    image = KernelImage(16 * MIB, 20 * MIB, 20 * MIB, 20 * MIB + 8 * PAGE_SIZE)
    less = image.with_brk(3)
    assert (less.brk_start, less.brk_pages) == (20 * MIB, 3)
    assert less.loaded == image.loaded
    assert less.linked_end == 20 * MIB + 8 * PAGE_SIZE
    more = image.with_brk(10)
    assert (more.brk_pages, more.linked_end) == (10, None)
    assert more.loaded == (16 * MIB, 20 * MIB + 10 * PAGE_SIZE)
    assert image.with_brk(8) == image
    # Other users of brk behind the tables stay behind them.
    shared = attrs.evolve(image, linked_end=20 * MIB + 12 * PAGE_SIZE)
    assert shared.with_brk(10).loaded[1] == 20 * MIB + 14 * PAGE_SIZE
    # It begins at a page, and the kernel ends where it begins.
    odd = attrs.evolve(image, brk_start=20 * MIB + 5, end=20 * MIB + 6 * PAGE_SIZE)
    assert odd.with_brk(2).brk_start == 20 * MIB + PAGE_SIZE
    assert odd.with_brk(2).end == 20 * MIB + PAGE_SIZE
    assert attrs.evolve(image, end=19 * MIB).with_brk(1).end == 19 * MIB
    # Without any, and amid a page: it grows by whole pages, from the next one on.
    none = KernelImage(16 * MIB, 20 * MIB + 5, 20 * MIB + 5, 20 * MIB + 5, 21 * MIB)
    assert none.with_brk(2).linked_end == 21 * MIB + 2 * PAGE_SIZE


def test_what_is_taken_before_the_first_step():
    it = machine((0, 64 * MIB), reserved=((0, MIB),), initrd=(40 * MIB, 41 * MIB))
    kernel = it.kernel.span
    state = BootState((), 0, it.features, reserved=((50 * MIB, 51 * MIB),))
    assert list(state.taken(it)) == [(0, MIB), kernel, (40 * MIB, 41 * MIB), (50 * MIB, 51 * MIB)]
    assert state.kernel_of(it) is it.kernel
    # A platform that loads the kernel itself says where the initrd is.
    elsewhere = attrs.evolve(state, kernel=it.kernel.at(20 * MIB))
    assert list(elsewhere.taken(it)) == [
        (0, MIB), it.kernel.at(20 * MIB).span, (50 * MIB, 51 * MIB)
    ]  # fmt: skip


def test_what_is_sealed_is_a_copy():
    mapping = {1: 2}
    held = sealed(mapping)
    mapping[1] = 3
    assert held == {1: 2}
    assert sealed({}) == {}
    assert copy.deepcopy(held) == held  # as a run that travels between processes is
    with pytest.raises(TypeError):
        copy.deepcopy(held)[1] = 4


def test_4_gib_of_ram_and_not_a_byte_more_are_all_low():
    assert machine((MIB, 4 * GIB)).max_low_pfn == 4 * GIB // PAGE_SIZE
    # setup_arch asks for the end of low RAM only where max_pfn lies above 4 GiB.
    told = machine((MIB, 3 * GIB), max_pfn_hint=0x100000)
    assert told.max_low_pfn == 0x100000
    assert attrs.evolve(told, max_pfn_hint=0x100001).max_low_pfn == 0xC0000
    holed = machine((MIB, 3 * GIB), (4 * GIB, 4 * GIB + PAGE_SIZE))
    assert (holed.max_low_pfn, holed.max_pfn) == (0xC0000, 0x100001)
    assert machine((MIB, GIB), mode=I386).max_low_pfn == 896 * MIB // PAGE_SIZE
    assert machine((MIB, 64 * MIB), mode=I386).max_low_pfn == 64 * MIB // PAGE_SIZE


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


def test_a_kernel_is_not_moved_above_the_end_of_the_direct_map():
    """32 bits: where lowmem ends there is more RAM, but no address for a kernel."""
    it = machine((MIB, 1200 * MIB), mode=MODES["i386-pae"])
    size = it.kernel.span[1] - it.kernel.start
    assert it.map_limit == 896 * MIB
    assert it.with_kernel_at(896 * MIB - size).kernel.span[1] == 896 * MIB
    with pytest.raises(InputError, match="lies above the end of the direct map, 0x38000000"):
        it.with_kernel_at(896 * MIB - size + 4096)
    assert max(each.kernel.span[1] for each in it.kernel_places()) <= 896 * MIB
