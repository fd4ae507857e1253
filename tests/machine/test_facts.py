"""Figures of the model against the manuals and headers they come from, written out by hand."""

from __future__ import annotations

import pytest

from paravirt_mm import bundled
from paravirt_mm.errors import SpecError
from paravirt_mm.machine.e820 import E820Type
from paravirt_mm.machine.model import DEFAULT_KERNEL, LOW_RESERVED, BootState, Machine
from paravirt_mm.machine.paging import GIB, ISA_END, KIB, MIB, MODES, PAGE_SIZE, TIB
from paravirt_mm.machine.release import dotted, leading_version, parse_release

SDM = {
    # name: (entries by level from L1, bytes of an entry, pages above 4k, bits of addresses)
    "i386": ((1024, 1024), 4, {2: 4 * MIB}, (32, 32)),
    "i386-pae": ((512, 512, 4), 8, {2: 2 * MIB}, (36, 32)),
    "x86_64": ((512,) * 4, 8, {2: 2 * MIB, 3: GIB}, (46, 48)),
    "x86_64-la57": ((512,) * 5, 8, {2: 2 * MIB, 3: GIB}, (52, 57)),
}
"""Volume 3, chapter "Paging"; physical: as far as Linux goes (MAX_PHYSMEM_BITS in
arch/x86/include/asm/sparsemem.h of 3.6 and 4.19; PAE of its time 36).
"""
LINUX = {
    # name: (virtual address of physical 0, of the kernel, end of the direct map)
    "i386": (0xC0000000, 0xC0000000, 896 * MIB),
    "i386-pae": (0xC0000000, 0xC0000000, 896 * MIB),
    "x86_64": (0xFFFF880000000000, 0xFFFFFFFF80000000, None),
    "x86_64-la57": (0xFF11000000000000, 0xFFFFFFFF80000000, None),
}
"""Documentation/arch/x86/x86_64/mm.rst; i386: PAGE_OFFSET of the 3G/1G split."""


@pytest.mark.parametrize("name", SDM)
def test_paging_modes_are_those_of_the_manual(name: str) -> None:
    mode, (entries, size, large, bits) = MODES[name], SDM[name]
    levels = range(1, len(entries) + 1)
    assert mode.name == name
    assert mode.root_level == len(entries)
    assert tuple(mode.entries(level) for level in levels) == entries
    assert mode.entry_bytes == size
    assert {level: mode.entry_span(level) for level in mode.large_levels} == large
    assert (mode.physical_bits, mode.virtual_bits) == bits
    assert mode.has_nx is (name != "i386")
    assert mode.is_32bit is name.startswith("i386")
    assert (mode.direct_map_base, mode.kernel_base, mode.lowmem_limit) == LINUX[name]
    assert mode.entry_span(1) == PAGE_SIZE == 4096
    assert f"{mode.root_level} levels" in mode.title


def test_the_first_mebibyte_and_its_units() -> None:
    assert (KIB, MIB, GIB, TIB) == (1024, 1024**2, 1024**3, 1024**4)
    assert ISA_END == MIB
    assert LOW_RESERVED == (0, 64 * KIB)


@pytest.mark.parametrize(
    ("number", "label"),
    [
        (1, "usable"),
        (2, "reserved"),
        (3, "ACPI data"),
        (4, "ACPI NVS"),
        (5, "unusable"),
        (7, "persistent"),
        (12, "persistent (type 12)"),
        (128, "usable (kernel reserved)"),
        (0xEFFFFFFF, "soft reserved"),
        (6, "type 6"),
    ],
)
def test_types_of_memory_are_called_what_linux_calls_them(number: int, label: str) -> None:
    """ACPI specification 6.5, table 15.3; e820_print_type of arch/x86/kernel/e820.c."""
    assert E820Type(number).label == label
    assert E820Type(number) is E820Type(number)
    assert str(E820Type(6).name) == "TYPE_6"


def test_the_kernel_that_is_assumed() -> None:
    """CONFIG_PHYSICAL_START is 16 MiB; 256 KiB of brk come last."""
    assert DEFAULT_KERNEL.span == (16 * MIB, 30 * MIB + 256 * KIB)
    assert DEFAULT_KERNEL.loaded == DEFAULT_KERNEL.span
    assert DEFAULT_KERNEL.brk_pages == 64
    machine: Machine = bundled("qemu-512m")
    assert Machine("x", machine.memory_map).boot_mapped == 512 * MIB


def test_nothing_is_typed_and_nothing_taken_unless_somebody_says_so() -> None:
    machine = bundled("qemu-512m")
    state = BootState((), 0, machine.features)
    assert state.typed is False
    assert (state.reserved, state.boot_tables, state.direct_mapped, state.places) == ((),) * 4
    assert not state.tables
    assert not state.table_pages


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("3.13.0-39-generic", (3, 13, 0)),
        ("5.4", (5, 4)),
        ("6", (6,)),
        ("1234567.1", (123456,)),
        ("4.1234567", (4, 123456)),
        ("v4.19", ()),
        ("", ()),
        (None, ()),
    ],
)
def test_a_release_in_a_log(text: str | None, version: tuple[int, ...]) -> None:
    assert leading_version(text) == version


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("3.6", (3, 6)),
        ("2.6.32.61", (2, 6, 32, 61)),
        ("4.19-rc1", (4, 19)),
        ("1234.123456", (1234, 123456)),
    ],
)
def test_a_release_that_somebody_asks_for(text: str, version: tuple[int, ...]) -> None:
    assert parse_release(text) == version
    assert dotted(version) == text.split("-")[0]


@pytest.mark.parametrize("text", ["3", "x.6", "12345.1", "3.1234567", "2.6.32.61.5", "3.6.", ""])
def test_what_is_no_release(text: str) -> None:
    with pytest.raises(SpecError, match="is not a release"):
        parse_release(text)
