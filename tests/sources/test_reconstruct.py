"""From what a kernel printed to its machine: each rule by a log of a few lines."""

from __future__ import annotations

from typing import Any

import pytest

from paravirt_mm.errors import InputError
from paravirt_mm.machine.e820 import E820Type
from paravirt_mm.machine.model import Machine, Span
from paravirt_mm.machine.paging import I386, I386_PAE, MIB, X86_64, X86_64_LA57, PagingMode
from paravirt_mm.machine.ranges import RangeSet
from paravirt_mm.sources.bootlog.reconstruct import reconstruct
from tests.sources.printed import HIGH, LOW, fed

RAM, RESERVED, ACPI = E820Type.RAM, E820Type.RESERVED, E820Type.ACPI
ACPI_NVS = E820Type.NVS
TRIMMED = (
    "e820: update [mem 0x00000000-0x00000fff] usable ==> reserved",
    "e820: remove [mem 0x000a0000-0x000fffff] usable",
)
LAST_PFN = "e820: last_pfn = {:#x} max_arch_pfn = {:#x}".format
MAPPING = "init_memory_mapping: [mem {:#x}-{:#x}]".format
RESERVE = "memblock_reserve: [{:#x}-{:#x}] a+0x1/0x2".format
FREE = "memblock_free: [{:#x}-{:#x}] a+0x1/0x2".format
EARLY = "#1 [{:010x} - {:010x}] {} ==> [0000000000 - 0000000000]".format
LOWMEM = "512MB LOWMEM available."


def entry(low: int, high: int, kind: str = "usable", label: str = "BIOS-e820") -> str:
    return f"{label}: [mem {low:#x}-{high - 1:#x}] {kind}"


def built(*lines: str) -> tuple[Machine, tuple[Span, ...]]:
    return reconstruct(fed(*lines), "m", "here")


def of(*lines: str) -> Machine:
    return built(*lines)[0]


def pieces(machine: Machine) -> list[tuple[int, int, E820Type]]:
    return [(each.start, each.end, each.type) for each in machine.memory_map]


# -- what is assumed, and told ---------------------------------------------------------------------

WHOLE = "the memory map is whole (the log ends with it)"
TRIM = "Linux's trimming of the map (first page reserved, 640K-1M not RAM)"
WIDE = "x86_64 (nothing in the log says 32 bits)"
KERNEL = "kernel at 0x1000000-0x1e00000, 256 KiB of brk after it"
FIRST_64K = "first 64 KiB reserved (CONFIG_X86_RESERVE_LOW's default)"
FIRST_MIB = "first MiB reserved (5.13 and later always do)"
BIOS = "0x9f000-1M reserved for the BIOS"
NO_1G = "no 1 GiB pages (nothing in the log says so)"
MAPPED = "startup code maps up to 0x20000000"


@pytest.mark.parametrize(
    ("lines", "assumed"),
    [
        ([LOW, HIGH], [TRIM, WHOLE, WIDE, KERNEL, FIRST_64K, BIOS, "no initrd", NO_1G, MAPPED]),
        ([LOW, HIGH, ""], [TRIM, WIDE, KERNEL, FIRST_64K, BIOS, "no initrd", NO_1G, MAPPED]),
        (
            [LOW, HIGH, "RAMDISK: [mem 0x1e000000-0x1effffff]"],
            [TRIM, WIDE, KERNEL, FIRST_64K, BIOS, MAPPED],
        ),
        (
            [LOW, HIGH, *TRIMMED, LAST_PFN(0x20000, 0x400000000)],
            [KERNEL, FIRST_64K, BIOS, "no initrd", NO_1G, MAPPED],
        ),
        (
            ["Linux version 5.13.0", LOW, HIGH],
            [TRIM, WHOLE, WIDE, KERNEL, FIRST_MIB, BIOS, "no initrd", NO_1G, MAPPED],
        ),
        (
            ["Linux version gone", LOW, HIGH, RESERVE(0, 0xFFFF)],
            [TRIM, WIDE, KERNEL, BIOS, "no initrd", NO_1G, MAPPED],
        ),
        (
            ["Linux version gone", LOW, HIGH],
            [TRIM, WHOLE, WIDE, KERNEL, FIRST_64K, BIOS, "no initrd", NO_1G, MAPPED],
        ),
        (
            [LOW.replace("9fbff", "9efff"), HIGH, "found SMP MP-table at [ffff8800000f6bb0] f6bb0",
             "initial memory mapped: [mem 0x00000000-0x1fffffff]"],
            [TRIM, KERNEL, FIRST_64K, "no initrd", NO_1G],
        ),
        (
            [LOW.replace("9fbff", "9f000"), HIGH, LOWMEM],
            [TRIM, "no PAE (nothing in the log says so)", KERNEL, FIRST_64K, BIOS, "no initrd",
             "startup code maps up to 0x2000000"],
        ),
        (
            [LOW, HIGH, LAST_PFN(0x18000, 0x400000000)],
            ["max_pfn 0x18000 as printed; the map says 0x20000",
             TRIM, KERNEL, FIRST_64K, BIOS, "no initrd", NO_1G, MAPPED],
        ),
        (
            [LOW, HIGH, LAST_PFN(0x20000, 0x400000000), MAPPING(0, 0xFFFFF)],
            [TRIM, KERNEL, FIRST_64K, BIOS, "no initrd", MAPPED],
        ),
        (
            [LOW, HIGH, "Booting paravirtualized kernel on Xen"],
            [TRIM, WIDE, KERNEL, FIRST_64K, BIOS, "no initrd",
             "large pages, none of 1 GiB (Xen hides what the CPU has)", MAPPED],
        ),
    ],
)  # fmt: skip
def test_what_is_assumed_is_told(lines: list[str], assumed: list[str]) -> None:
    machine = of(*lines)
    assert list(machine.provenance.assumed) == assumed
    assert machine.provenance.source == "here"


COUNTED = "Memory: 1K/{}K available (1K kernel code)".format
ABSENT = "Memory: 1k/{}k available (1k kernel code, {}k absent, 1k reserved)".format
HIGHMEM = "Memory: {}k/524288k available (1k kernel code, {}k reserved, 0k highmem)".format
TRIMMED_RAM = 0x9E * 4 + 511 * 1024
"""KiB of RAM in `LOW` and `HIGH` less the first page."""


@pytest.mark.parametrize(
    ("line", "agrees"),
    [
        (COUNTED(TRIMMED_RAM), True),
        (COUNTED(TRIMMED_RAM + 4), True),  # up to 2.6.33 the first page is not trimmed off
        (COUNTED(TRIMMED_RAM + 8), False),
        (COUNTED(TRIMMED_RAM - 4), False),
        (COUNTED(TRIMMED_RAM - 60), True),  # distributions trimmed off 64 KiB before 2.6.37
        (ABSENT(524288, 524288 - TRIMMED_RAM), True),
        (ABSENT(524288, 524288 - TRIMMED_RAM + 4), False),
        (HIGHMEM(500000, TRIMMED_RAM - 500000), True),
        (HIGHMEM(500000, TRIMMED_RAM - 500000 - 2048), True),  # 2.6.32 leaves some out
        (HIGHMEM(500000, TRIMMED_RAM - 500000 - 2048 - 64), False),
        (HIGHMEM(500000, TRIMMED_RAM - 500000 + 8), False),
    ],
)
def test_a_map_with_other_ram_than_the_kernel_counted_is_told(line: str, agrees: bool) -> None:
    first = of(LOW, HIGH, line).provenance.assumed[0]
    told = f"the map as printed: its RAM is {TRIMMED_RAM}K, but the kernel counted "
    assert first.startswith(told) is not agrees


def test_ram_that_a_kernel_cannot_address_it_does_not_count() -> None:
    """Without PAE it counts up to 4 GiB."""
    more = entry(4 << 30, 5 << 30)
    lines = [LOW, HIGH, more, LAST_PFN(0x20000, 0x100000), COUNTED(TRIMMED_RAM)]
    assert "counted" not in " ".join(of(*lines).provenance.assumed)


@pytest.mark.parametrize(
    ("release", "first"),
    [("2.6.36", 1), ("2.6.37", 16), ("3.8.13", 16), ("3.9", 1), ("6.1", 1), ("none", 1)],
)
def test_what_is_trimmed_off_the_beginning_is_the_releases_affair(release: str, first: int) -> None:
    """CONFIG_X86_RESERVE_LOW took 64 KiB out of the map, and since 3.9 reserves them."""
    version = f"Linux version {release}"
    assert of(version, LOW, HIGH).memory_map.ram().first == first << 12
    for left, wanted in ((TRIMMED_RAM, 1), (TRIMMED_RAM - 60, 16), (TRIMMED_RAM - 4, first)):
        machine = of(version, LOW, HIGH, COUNTED(left))
        assert machine.memory_map.ram().first == wanted << 12
        assert any(f"first {'page' if wanted == 1 else '64 KiB'} reserved, 640K" in text
                   for text in machine.provenance.assumed)  # fmt: skip


def test_a_map_printed_once_the_direct_map_is_there_takes_and_changes_nothing() -> None:
    """So it is where tables of ACPI are replaced (6.12.6): what lies in the new ones is taken."""
    changed = [
        entry(0x1000, 0x9FC00, label="modified"),
        entry(MIB, 0x1B95E000, label="modified"),
        entry(0x1B95E000, 0x1B96E5BE, "ACPI NVS", label="modified"),
        entry(0x1B96E5BE, 0x20000000, label="modified"),
    ]
    lines = [LOW, HIGH, *TRIMMED, LAST_PFN(0x20000, 0x400000000)]
    late = of(*lines, "Using GB pages for direct mapping", *changed)
    assert late.memory_map == of(*lines).memory_map
    assert set(late.reserved) - set(of(*lines).reserved) == {(0x1B95E000, 0x1B96E5BE)}
    early = of(*lines, *changed)
    assert [piece[:2] for piece in pieces(early) if piece[2] is ACPI_NVS] == [
        (0x1B95E000, 0x1B96E5BE)
    ]
    assert pieces(of(*changed))[0][:2] == (0x1000, 0x9FC00)


@pytest.mark.parametrize(("release", "told"), [("6.10.14", True), ("6.11", False)])
def test_acpi_tables_may_end_max_pfn(release: str, told: bool) -> None:
    """Since 6.11 (e820__end_ram_pfn): of all memory, and of that below 4 GiB."""
    tables = entry(0x20000000, 0x20018000, "ACPI data")
    lines = [f"Linux version {release}", LOW, HIGH, tables]
    small = of(*lines, LAST_PFN(0x20018, 0x400000000))
    large = of(
        *lines, entry(4 << 30, 5 << 30), LAST_PFN(0x140000, 0x400000000),
        LAST_PFN(0x20018, 0x400000000),
    )  # fmt: skip
    assert [small.max_pfn, large.max_low_pfn] == ([0x20018] * 2 if told else [0x20000] * 2)
    for machine in (small, large):
        assert ("0x20018 as printed" in " ".join(machine.provenance.assumed)) is told


def test_what_64_bits_print_of_the_first_4_gib_and_the_map_does_not_say_is_told() -> None:
    more, all_of_it = entry(4 << 30, 5 << 30), LAST_PFN(0x140000, 0x400000000)
    for low, told in ((0x20000, False), (0x10000, True)):
        machine = of(LOW, HIGH, more, all_of_it, LAST_PFN(low, 0x400000000))
        assert machine.max_low_pfn == low
        text = "max_low_pfn 0x10000 as printed; the map says 0x20000"
        assert (text in machine.provenance.assumed) is told


def test_where_startup_code_of_32_bits_ends() -> None:
    """A MiB after the kernel, up to the end of a last-level table: 4 MiB of one, 2 MiB with PAE."""
    kernel = EARLY(0x1000000, 0x1300001, "TEXT DATA BSS")
    for mode, wanted in ((0x100000, 0x1800000), (0x1000000, 0x1600000)):
        machine = of(LOW, HIGH, LAST_PFN(0x20000, mode), kernel)
        assert machine.kernel.span[1] == 0x1341000
        assert machine.boot_mapped == wanted
    assert of(LOW, HIGH, kernel, "initial memory mapped: [mem 0x0-0x1fffff]").boot_mapped == 2 * MIB


# -- the map ---------------------------------------------------------------------------------------


def test_a_change_takes_what_it_names_and_where_it_names_nothing_all() -> None:
    maps = [entry(0, 0x9F000), entry(MIB, 8 * MIB), entry(8 * MIB, 10 * MIB, "ACPI data")]
    maps += [entry(32 * MIB, 128 * MIB)]
    tail = (32 * MIB, 128 * MIB, RAM)
    head = (0, 0x9F000, RAM)
    for change, wanted in (
        ("e820: update [mem 0x700000-0x8fffff] usable ==> reserved",
         [(MIB, 7 * MIB, RAM), (7 * MIB, 8 * MIB, RESERVED), (8 * MIB, 10 * MIB, ACPI)]),
        ("e820: remove [mem 0x700000-0x8fffff] ACPI data",
         [(MIB, 8 * MIB, RAM), (9 * MIB, 10 * MIB, ACPI)]),
        ("e820: remove [mem 0x700000-0x8fffff] ", [(MIB, 7 * MIB, RAM), (9 * MIB, 10 * MIB, ACPI)]),
        ("e820: update [mem 0x700000-0xafffff] ==> reserved",
         [(MIB, 7 * MIB, RAM), (7 * MIB, 10 * MIB, RESERVED)]),
    ):  # fmt: skip
        assert pieces(of(*maps, change.strip())) == [head, *wanted, tail]


def test_a_map_that_begins_again_is_one_where_nothing_else_comes_twice() -> None:
    machine = of(LOW, HIGH, entry(0, 0x2000, "reserved"), *TRIMMED)
    assert machine.memory_map.ram().first == 0x2000


def test_a_kernel_on_no_ram_fills_holes_as_well() -> None:
    lines = [LOW, HIGH, entry(0x30000000, 0x31000000)]
    lines += [".text .data .bss are not marked as E820_RAM!"]
    machine = of(*lines, "e820: remove [mem 0x1f000000-0x20ffffff]")
    assert list(machine.memory_map.ram())[1:] == [(MIB, 0x21000000), (0x30000000, 0x31000000)]


def test_what_is_changed_late_is_taken_and_other_changes_count_all_the_same() -> None:
    late = "e820: update [mem 0x10000000-0x1000ffff] usable ==> reserved"
    gone = "e820: remove [mem 0x11000000-0x1100ffff] usable"
    last = LAST_PFN(0x20000, 0x400000000)
    machine = of(LOW, HIGH, TRIMMED[1], last, late, gone)
    assert list(machine.memory_map.ram()) == [(0, 0x9FC00), (MIB, 0x20000000)]
    assert RangeSet(machine.reserved).covers(0x10000000, 0x10010000)
    assert not RangeSet(machine.reserved).overlaps(0x11000000, 0x11010000)
    again = late.replace("0x10", "0x12")
    both = of(LOW, HIGH, TRIMMED[1], last, late, again).reserved
    assert {(0x10000000, 0x10010000), (0x12000000, 0x12010000)} <= set(both)
    # Without any change before it was copied, the map was trimmed all the same.
    bare = of(LOW, HIGH, last, late)
    assert list(bare.memory_map.ram()) == [(0x1000, 0x9FC00), (MIB, 0x20000000)]


@pytest.mark.parametrize(
    ("first", "kept"),
    [
        (MIB, []),
        (MIB + 0x1000, [(0, 0x9F000), (MIB, MIB + 0x1000)]),
        (16 * MIB, [(0, 0x9F000), (MIB, 16 * MIB)]),
        (32 * MIB, [(0, 0x9F000), (MIB, 20 * MIB)]),
    ],
)
def test_a_map_without_a_head_gets_that_of_the_one_before(first: int, kept: list[Span]) -> None:
    maps = [entry(0, 0x9F000), entry(MIB, 20 * MIB), entry(40 * MIB, 400 * MIB)]
    machine = of(*maps, entry(first, 128 * MIB, label="modified"))
    told = [text for text in machine.provenance.assumed if "printed before" in text]
    low = list(machine.memory_map.ram().below(first))
    if kept:
        assert told == [f"map below {first:#x} as in the map printed before it"]
        assert low == kept
    else:
        assert not told
        assert low == [(0x1000, 0x9F000)], "made up: the map has no conventional memory"


def test_a_head_ends_where_the_map_begins_that_has_lost_its_own() -> None:
    maps = [entry(0, 0x9F000), entry(MIB, 64 * MIB), entry(16 * MIB, 17 * MIB, label="modified")]
    tail = entry(80 * MIB, 128 * MIB, label="modified")
    assert list(of(*maps, tail).memory_map.ram()) == [
        (0, 0x9F000), (MIB, 17 * MIB), (80 * MIB, 128 * MIB),
    ]  # fmt: skip
    whole = of(*maps[:2], entry(0, 0x9E000, label="modified"), tail)
    assert list(whole.memory_map.ram()) == [(0, 0x9E000), (80 * MIB, 128 * MIB)]


@pytest.mark.parametrize(
    ("lines", "made_up", "low_end"),
    [
        ([], [(MIB, 32 * MIB)], 0x9F000),
        ([MAPPING(0, 0x1FFFFF), MAPPING(8 * MIB, 33 * MIB - 1)],
         [(MIB, 2 * MIB), (8 * MIB, 32 * MIB)], 0x9F000),
        ([MAPPING(0, 0x1FFFFF), "kernel direct mapping tables up to bb000000 @ 8000-b000"],
         [(MIB, 32 * MIB)], 0x9F000),
        (["init_memory_mapping"], [(MIB, 32 * MIB)], 0x9F000),
        (["Base memory trampoline at [ffff880000096000] 96000 size 4096"],
         [(MIB, 32 * MIB)], 0x97000),
    ],
)  # fmt: skip
def test_ram_that_a_lost_head_must_have_had(
    lines: list[str], made_up: list[Span], low_end: int
) -> None:
    """What was mapped, where mapping stops at holes; all of it, where it does not."""
    machine, found = built(entry(32 * MIB, 128 * MIB), *lines)
    assert list(found) == made_up
    high = [*made_up[:-1], (made_up[-1][0], 128 * MIB)]
    assert list(machine.memory_map.ram()) == [(0x1000, low_end), *high]
    shown = ", ".join(f"{low:#x}-{high:#x}" for low, high in made_up)
    assert [text for text in machine.provenance.assumed if "RAM " in text or "before" in text] == [
        f"RAM {shown} (the map's head is missing from the log)",
        f"RAM from 0x1000 to {low_end:#x} (the map's entries below 640K are missing)",
    ]
    assert built(entry(0, 0x9F000), entry(MIB, 128 * MIB))[1] == ()


def test_of_many_pieces_that_are_made_up_eight_are_told() -> None:
    holes = [MAPPING(n * MIB, (2 * n + 1 << 19) - 1) for n in range(1, 12)]
    machine, found = built(entry(32 * MIB, 128 * MIB), *holes)
    assert len(found) == 11
    (told,) = [text for text in machine.provenance.assumed if "head is missing" in text]
    assert told.count("-") == 8


# -- what is taken ---------------------------------------------------------------------------------


def test_what_is_given_back_is_free_until_it_is_taken_again() -> None:
    lines = [LOW, HIGH, RESERVE(0, 0xFFFF), RESERVE(0x10000000, 0x1000FFFF)]
    lines += [FREE(0x10004000, 0x10005FFF), RESERVE(0x10005000, 0x10005FFF)]
    lines += [FREE(0x10000000, 0x10000FFF), RESERVE(0x18000000, 0x18000FFF)]
    assert [span for span in of(*lines).reserved if span[0] >= MIB] == [
        (0x10001000, 0x10004000), (0x10005000, 0x10010000), (0x18000000, 0x18001000),
    ]  # fmt: skip
    last = [*lines, FREE(0x10005000, 0x10005FFF)]
    assert (0x10006000, 0x10010000) in of(*last).reserved


# -- CPU -------------------------------------------------------------------------------------------

DOM0 = "(XEN)  Dom0 kernel: {}-bit, PAE, lsb, paddr 0x1000000 -> 0x2000000".format
VIRTUAL = ("(XEN) VIRTUAL MEMORY ARRANGEMENT:", "(XEN)  Loaded kernel: {:x}->{:x}")
PHYSICAL = ("(XEN) PHYSICAL MEMORY ARRANGEMENT:", "(XEN)  Dom0 alloc.:   {:x}->{:x}")


def arranged(what: tuple[str, str], *spans: Span) -> list[str]:
    return [what[0], *(what[1].format(*span) for span in spans)]


@pytest.mark.parametrize(
    ("lines", "mode"),
    [
        *(
            ([LAST_PFN(0x20000, end)], mode)
            for end, mode in (
                (1 << 20, I386), (1 << 24, I386_PAE), ((1 << 34) - 1, X86_64), (1 << 34, X86_64),
                (1 << 40, X86_64_LA57), (1 << 35, X86_64),
            )
        ),
        ([LAST_PFN(0x20000, 1 << 35), LAST_PFN(0x20000, 1 << 20)], I386),
        ([LAST_PFN(0x20000, 1 << 20), DOM0(64)], I386),
        (["NX (Execute Disable) protection cannot be enabled: non-PAE kernel!", DOM0(64)], I386),
        ([DOM0(64)], X86_64),
        ([DOM0(32)], I386_PAE),
        ([DOM0(32), DOM0(64)], X86_64),
        ([*arranged(PHYSICAL, (1 << 32, 1 << 33))], X86_64),
        ([*arranged(PHYSICAL, (1 << 32, 1 << 33)), LOWMEM], I386),
        ([*arranged(VIRTUAL, (0xC0000000, 0xFFFFFFFF))], I386_PAE),
        ([*arranged(VIRTUAL, (0xC0000000, 1 << 32))], X86_64),
        ([*arranged(VIRTUAL, (0xC0000000, 0xD0000000), (1 << 40, (1 << 40) + 1))], X86_64),
        ([LOWMEM], I386),
        ([LOWMEM, DOM0(64)], X86_64),
        (["found SMP MP-table at [c00f6bb0] f6bb0"], I386),
        (["found SMP MP-table at [ffff8800000f6bb0] f6bb0"], X86_64),
        (["initial memory mapped : 0 - 20000000"], X86_64),
        (["initial memory mapped : 0 - 1ffff000"], I386),
        ([LOWMEM, "NX (Execute Disable) protection: active"], I386_PAE),
        ([LOWMEM, "NX (Execute Disable) protection: disabled"], I386),
        (["Linux version 3.2.0-4-686-PAE", LOWMEM], I386_PAE),
        (["Linux version 2.6.26-2-686-bigmem", LOWMEM], I386_PAE),
        (["Linux version 2.6.26-2-686", LOWMEM], I386),
        ([LOWMEM, "0000400000 - 0000800000 page 2M", "0000200000 - 0000400000 page 2M"], I386_PAE),
        ([LOWMEM, "0000400000 - 0000800000 page 2M", "0000200000 - 0000400000 page 4k"], I386),
        ([LOWMEM, "0000400000 - 0000600000 page 2M"], I386_PAE),
        ([LOWMEM, "0000600000 - 0000800000 page 2M"], I386_PAE),
    ],
)  # fmt: skip
def test_the_mode_of_a_kernel(lines: list[str], mode: PagingMode) -> None:
    head = [line for line in lines if line.startswith(("Linux", "(XEN)"))]
    rest = [line for line in lines if line not in head]
    assert of(*head, LOW, HIGH, *rest).mode is mode


PAGES = "[mem {:#x}-{:#x}] page {}".format


@pytest.mark.parametrize(
    ("lines", "pse", "gbpages"),
    [
        ([], True, False),
        ([PAGES(2 * MIB, 4 * MIB - 1, "4k")], False, False),
        ([PAGES(2 * MIB, 4 * MIB - 2, "4k")], True, False),
        ([PAGES(2 * MIB + 1, 6 * MIB - 2, "4k")], True, False),
        ([PAGES(2 * MIB, 4 * MIB - 1, "4k"), PAGES(4 * MIB, 6 * MIB - 1, "2M")], True, False),
        ([PAGES(0, MIB - 1, "4k"), PAGES(2 * MIB, 4 * MIB - 1, "4k")], False, False),
        ([PAGES(0, (1 << 30) - 1, "1G")], True, True),
        ([PAGES(0, (1 << 30) - 1, "1G"), PAGES(0, MIB - 1, "4k")], True, True),
        # Xen lets a guest have none, whatever the CPU has.
        ([PAGES(2 * MIB, 4 * MIB - 1, "4k"), "Hypervisor detected: Xen PV"], True, False),
        (["Using GB pages for direct mapping"], True, True),
        (["Using GB pages for direct mapping", PAGES(0, MIB - 1, "4k")], True, True),
    ],
)
def test_large_pages_are_there_unless_there_was_room_and_none_was_used(
    lines: list[str], pse: bool, gbpages: bool
) -> None:
    features = of(LOW, HIGH, *lines).features
    assert (features.pse, features.gbpages) == (pse, gbpages)


@pytest.mark.parametrize(
    ("line", "mode", "nx"),
    [
        ("NX (Execute Disable) protection: active", 1 << 20, False),
        ("NX (Execute Disable) protection: active", 1 << 24, True),
        ("NX (Execute Disable) protection: disabled", 1 << 24, False),
        ("x", 1 << 34, True),
    ],
)
def test_no_execute_needs_entries_of_64_bits(line: str, mode: int, nx: bool) -> None:
    assert of(LOW, HIGH, LAST_PFN(0x20000, mode), line).features.nx is nx


# -- the kernel ------------------------------------------------------------------------------------

BRK = "BRK [{:#x}, {:#x}] PGTABLE".format


@pytest.mark.parametrize(
    ("lines", "start", "brk", "brk_end"),
    [
        # The image, and the first page of brk that became a table.
        ([EARLY(0x1000000, 0x1800000, "TEXT DATA BSS"), BRK(0x1700000, 0x1700FFF),
          BRK(0x1701000, 0x1701FFF)], 0x1000000, 0x1700000, 0x1800000),
        # What is reserved around it.
        ([RESERVE(0x1000000, 0x17FFFFF), BRK(0x1700000, 0x1700FFF)],
         0x1000000, 0x1700000, 0x1800000),
        ([RESERVE(0x1700000, 0x17FFFFF), BRK(0x1700000, 0x1700FFF)],
         0x1700000, 0x1700000, 0x1800000),
        ([RESERVE(0x1000000, 0x16FFFFF), BRK(0x1700000, 0x1700FFF)],
         0x1000000, 0x1700000, 0x1740000),
        ([RESERVE(MIB, 0x1FFFFF), RESERVE(0x4000000, 0x4FFFFFF), RESERVE(0x1100000, 0x17FFFFF),
          BRK(0x1700000, 0x1700FFF)],
         0x1100000, 0x1700000, 0x1800000),
        # The hypervisor's word comes before what is reserved; its last one counts.
        ([DOM0(64), RESERVE(0x1100000, 0x17FFFFF), BRK(0x1700000, 0x1700FFF)],
         0x1000000, 0x1700000, 0x2000000),
        ([DOM0(64).replace("0x1", "0x18").replace("0x2", "0x3"), DOM0(64)],
         0x1000000, 0x1FC0000, 0x2000000),
        ([RESERVE(0x1000000, 0x17FFFFF)], 0x1000000, 0x1E00000, 0x1E40000),
        (["Memory: 5K/6K available (3072K kernel code, 1024K init)"],
         0x1000000, 0x1400000, 0x1440000),
    ],
)  # fmt: skip
def test_where_the_kernel_lies(lines: list[str], start: int, brk: int, brk_end: int) -> None:
    head = [line for line in lines if line.startswith("(XEN)")]
    kernel = of(*head, LOW, HIGH, *lines[len(head) :]).kernel
    assert (kernel.start, kernel.brk_start, kernel.brk_end) == (start, brk, brk_end)


def test_a_kernel_that_cannot_be_is_refused_even_where_another_place_would_count() -> None:
    huge = EARLY(0x1000000, 0x41000001, "TEXT DATA BSS")
    with pytest.raises(InputError, match="larger than 1 GiB"):
        of(LOW, HIGH.replace("1fff", "7fff"), huge, BRK(0x50000000, 0x50000FFF))


def test_a_map_without_memory_is_refused() -> None:
    with pytest.raises(InputError, match="no whole page of RAM"):
        of(entry(0, 0xFFF))


# -- max_pfn and max_low_pfn -----------------------------------------------------------------------

FOUR = 1 << 20
ABOVE = entry(1 << 32, 5 << 30)
UP_TO_4G = entry(MIB, 1 << 32)
BIG = entry(MIB, 0xC0000000)


@pytest.mark.parametrize(
    ("lines", "hints"),
    [
        ([HIGH, LAST_PFN(0x20000, 1 << 34)], (None, None)),
        ([HIGH, LAST_PFN(0x1FFFF, 1 << 34)], (0x1FFFF, None)),
        ([HIGH, LAST_PFN(FOUR, 1 << 34)], (FOUR, None)),
        ([HIGH, LAST_PFN(FOUR + 1, 1 << 34)], (FOUR + 1, None)),
        ([HIGH, LAST_PFN(0x1F000, 1 << 34), LAST_PFN(0x1E000, 1 << 34)], (0x1E000, None)),
        ([UP_TO_4G, LAST_PFN(FOUR - 1, 1 << 34)], (FOUR - 1, None)),
        ([BIG, ABOVE, LAST_PFN(5 << 18, 1 << 34), LAST_PFN(0xC0000, 1 << 34)], (None, None)),
        ([BIG, ABOVE, LAST_PFN(0x13FFFF, 1 << 34), LAST_PFN(0xBFFFF, 1 << 34)],
         (0x13FFFF, 0xBFFFF)),
        ([BIG, ABOVE, LAST_PFN(0xBFFFF, 1 << 34)], (None, 0xBFFFF)),
        # Of a map that a user's has replaced it is not asked.
        ([HIGH, LAST_PFN(0x1F000, 1 << 34), entry(0, 0x9F000, label="user"),
          entry(MIB, 0x18000000, label="user"), LAST_PFN(0x17000, 1 << 34)], (0x17000, None)),
        ([HIGH, LAST_PFN(0x1F000, 1 << 34), entry(0, 0x9F000, label="user"),
          entry(MIB, 0x18000000, label="user")], (None, None)),
        # 32 bits: low memory ends where it is said to, or where mapping does.
        ([BIG, LAST_PFN(0xBF000, 1 << 24), "low ram: 0 - 37000000"], (0xBF000, 0x37000)),
        ([BIG, LAST_PFN(0xC0000, 1 << 24), "mapped low ram: 0 - 37bfe000"], (None, 0x37BFE)),
        ([BIG, LAST_PFN(0xC0000, 1 << 24), "low ram: 0 - 38000000"], (None, None)),
        ([BIG, LAST_PFN(0xC0000, 1 << 24), MAPPING(0, 0x36FFFFFF), MAPPING(0, 0xFFFFF)],
         (None, 0x37000)),
        ([BIG, LAST_PFN(0xC0000, 1 << 24), "init_memory_mapping",
          "kernel direct mapping tables up to 36000000 @ 8000-b000"], (None, 0x36000)),
        ([BIG, LAST_PFN(0xC0000, 1 << 24), MAPPING(0, 0x36FFFFFF),
          "kernel direct mapping tables up to 36000000 @ 8000-b000"], (None, 0x37000)),
        # Of a page of which a part is mapped all is not.
        ([BIG, LAST_PFN(0xC0000, 1 << 24), "low ram: 0 - 37bfe800"], (None, 0x37BFE)),
        ([BIG, LAST_PFN(0xC0000, 1 << 24), MAPPING(0, 0x36FFF7FF)], (None, 0x36FFF)),
        ([BIG, LAST_PFN(0xC0000, 1 << 24), MAPPING(0, 0x36FFFFFF), "low ram: 0 - 37000000"],
         (None, 0x37000)),
        ([BIG, LAST_PFN(0x30000, 1 << 24), "low ram: 0 - 30000000"], (0x30000, None)),
        ([BIG, LAST_PFN(0xC0000, 1 << 24)], (None, None)),
        ([BIG, LOWMEM], (None, None)),
    ],
)  # fmt: skip
def test_what_was_printed_is_a_hint_where_the_map_says_otherwise(
    lines: list[str], hints: tuple[Any, Any]
) -> None:
    machine = of(LOW, *lines)
    assert (machine.max_pfn_hint, machine.max_low_pfn_hint) == hints
