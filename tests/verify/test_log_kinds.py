"""Kinds of logs that were judged wrongly once. Each is cut down from a real one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from paravirt_mm import RangeSet
from paravirt_mm.sources import load, read_boot_log
from paravirt_mm.sources.bootlog.facts import LastPfn, Reservation, is_xenlinux
from paravirt_mm.sources.bootlog.lines import LineVerdict
from paravirt_mm.verify.log.check import check_log
from paravirt_mm.verify.log.report import LogReport

MATCH, DIFFERS, UNCHECKED = LineVerdict.MATCH, LineVerdict.DIFFERS, LineVerdict.UNCHECKED

HVM = """\
Linux version 4.14.165-102.185.amzn1.x86_64
BIOS-e820: [mem 0x0000000000000000-0x000000000009dfff] usable
BIOS-e820: [mem 0x000000000009e000-0x000000000009ffff] reserved
BIOS-e820: [mem 0x00000000000e0000-0x00000000000fffff] reserved
BIOS-e820: [mem 0x0000000000100000-0x000000003fffffff] usable
BIOS-e820: [mem 0x00000000fc000000-0x00000000ffffffff] reserved
e820: last_pfn = 0x40000 max_arch_pfn = 0x400000000
BRK [0x02889000, 0x02889fff] PGTABLE
BRK [0x0288a000, 0x0288afff] PGTABLE
BRK [0x0288b000, 0x0288bfff] PGTABLE
Booting paravirtualized kernel on Xen HVM
Xen: using vcpuop timer interface
"""

TWO_BLOCKS = """\
Linux version 2.6.32-24-generic
 BIOS-e820: 0000000000000000 - 000000000009e400 (usable)
 BIOS-e820: 0000000000100000 - 00000000d7df9c00 (usable)
 BIOS-e820: 00000000d7df9c00 - 00000000d8000000 (reserved)
 BIOS-e820: 0000000100000000 - 0000000628000000 (usable)
last_pfn = 0x628000 max_arch_pfn = 0x400000000
last_pfn = 0xd7df9 max_arch_pfn = 0x400000000
Using GB pages for direct mapping
init_memory_mapping: 0000000000000000-00000000d7df9000
kernel direct mapping tables up to d7df9000 @ 8000-b000
init_memory_mapping: 0000000100000000-0000000628000000
kernel direct mapping tables up to 628000000 @ a000-c000
  #0 [0000000000 - 0000001000]   BIOS data page ==> [0000000000 - 0000001000]
  #1 [0000006000 - 0000008000]       TRAMPOLINE ==> [0000006000 - 0000008000]
  #2 [0001000000 - 0001a2fe64]    TEXT DATA BSS ==> [0001000000 - 0001a2fe64]
  #6 [0000008000 - 000000a000]          PGTABLE ==> [0000008000 - 000000a000]
  #7 [000000a000 - 000000b000]          PGTABLE ==> [000000a000 - 000000b000]
"""

KERNEL_RANGE = """\
Linux version 3.11.0-14-generic
BIOS-e820: [mem 0x0000000000000000-0x000000000009f7ff] usable
BIOS-e820: [mem 0x0000000000100000-0x00000000012243ff] usable
BIOS-e820: [mem 0x0000000001224800-0x000000006fefffff] usable
NX (Execute Disable) protection: active
.text .data .bss are not marked as E820_RAM!
e820: remove [mem 0x01000000-0x01d8afff]\x20
e820: update [mem 0x00000000-0x00000fff] usable ==> reserved
e820: remove [mem 0x000a0000-0x000fffff] usable
e820: last_pfn = 0x6ff00 max_arch_pfn = 0x1000000
init_memory_mapping: [mem 0x00000000-0x000fffff]
init_memory_mapping: [mem 0x37800000-0x379fffff]
init_memory_mapping: [mem 0x34000000-0x377fffff]
init_memory_mapping: [mem 0x00100000-0x33ffffff]
init_memory_mapping: [mem 0x37a00000-0x37bfdfff]
  mapped low ram: 0 - 37bfe000
"""

EXACTMAP = """\
Linux version 2.6.29-rc7
Command line: memmap=exactmap memmap=640K@0K memmap=130412K@17024K elfcorehdr=147436K
 BIOS-e820: 0000000000000100 - 000000000009f400 (usable)
 BIOS-e820: 0000000000100000 - 000000007fe4e000 (usable)
 BIOS-e820: 0000000100000000 - 000000207ffff000 (usable)
last_pfn = 0x207ffff max_arch_pfn = 0x100000000
user-defined physical RAM map:
 user: 0000000000000000 - 00000000000a0000 (usable)
 user: 00000000010a0000 - 0000000008ffb000 (usable)
last_pfn = 0x8ffb max_arch_pfn = 0x100000000
init_memory_mapping: 0000000000000000-0000000008ffb000
found SMP MP-table at [ffff8800000f4f80] 000f4f80
"""

MEMBLOCK_66 = """\
Linux version 6.6.36 (build@host)
BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable
BIOS-e820: [mem 0x000000000009fc00-0x000000000009ffff] reserved
BIOS-e820: [mem 0x0000000000100000-0x00000000bffdffff] usable
BIOS-e820: [mem 0x0000000100000000-0x000000013fffffff] usable
NX (Execute Disable) protection: active
e820: update [mem 0x00000000-0x00000fff] usable ==> reserved
e820: remove [mem 0x000a0000-0x000fffff] usable
memblock_reserve: [0x0000000003600000-0x0000000003608fff] setup_arch+0xd94/0xf80
 reserved[0x0]\t[0x0000000000000000-0x000000000000ffff], 0x0000000000010000 bytes flags: 0x0
 reserved[0x1]\t[0x000000000009f000-0x00000000000fffff], 0x0000000000061000 bytes flags: 0x0
 reserved[0x2]\t[0x0000000001000000-0x0000000003608fff], 0x0000000002609000 bytes flags: 0x0
memblock_reserve: [0x0000000000000000-0x00000000000fffff] setup_arch+0x74e/0xf80
Using GB pages for direct mapping
memblock_phys_alloc_range: 2097152 bytes align=0x200000 from=0x0000000000100000 \
max_addr=0x0000000140000000 init_mem_mapping+0x1a8/0x340
memblock_reserve: [0x000000013fe00000-0x000000013fffffff] memblock_alloc_range_nid+0xdc/0x150
memblock_phys_free: [0x000000013fe00000-0x000000013fffffff] init_mem_mapping+0x1b8/0x340
memblock_phys_alloc_range: 4096 bytes align=0x1000 from=0x0000000120000000 \
max_addr=0x0000000140000000 alloc_low_pages+0x91/0x150
memblock_reserve: [0x000000013ffff000-0x000000013fffffff] memblock_alloc_range_nid+0xdc/0x150
memblock_phys_alloc_range: 4096 bytes align=0x1000 from=0x0000000120000000 \
max_addr=0x0000000140000000 alloc_low_pages+0x91/0x150
memblock_reserve: [0x000000013fffe000-0x000000013fffefff] memblock_alloc_range_nid+0xdc/0x150
memblock_reserve: [0x000000007fffc000-0x000000007fffffff] memblock_alloc_range_nid+0xdc/0x150
"""

PANIC_39 = """\
Linux version 3.9.0 (build@host)
BIOS-e820: [mem 0x0000000000000000-0x000000000009efff] usable
BIOS-e820: [mem 0x0000000000100000-0x000000007fffffff] usable
BIOS-e820: [mem 0x0000000100000000-0x000000e80effffff] usable
NX (Execute Disable) protection: active
e820: last_pfn = 0xe80f000 max_arch_pfn = 0x400000000
e820: last_pfn = 0x80000 max_arch_pfn = 0x400000000
init_memory_mapping: [mem 0x00000000-0x000fffff]
 [mem 0x00000000-0x000fffff] page 4k
BRK [0x02086000, 0x02086fff] PGTABLE
BRK [0x02087000, 0x02087fff] PGTABLE
BRK [0x02088000, 0x02088fff] PGTABLE
init_memory_mapping: [mem 0xe80ee00000-0xe80effffff]
 [mem 0xe80ee00000-0xe80effffff] page 4k
BRK [0x02089000, 0x02089fff] PGTABLE
BRK [0x0208a000, 0x0208afff] PGTABLE
Kernel panic - not syncing: alloc_low_page: ran out of memory
"""

SLACK = """\
Linux version 3.13.0-48-generic
ACPI in unprivileged domain disabled
Xen: [mem 0x0000000000000000-0x000000000009ffff] usable
Xen: [mem 0x00000000000a0000-0x00000000000fffff] reserved
Xen: [mem 0x0000000000100000-0x0000000026efffff] usable
e820: last_pfn = 0x26f00 max_arch_pfn = 0x400000000
init_memory_mapping: [mem 0x00000000-0x000fffff]
init_memory_mapping: [mem 0x26400000-0x265fffff]
init_memory_mapping: [mem 0x24000000-0x263fffff]
init_memory_mapping: [mem 0x00100000-0x23ffffff]
init_memory_mapping: [mem 0x26600000-0x26efffff]
RAMDISK: [mem 0x02403000-0x03860fff]
"""

SETTING_RW = """\
Linux version 3.2.0-54-virtual (build@host)
 Xen: 0000000000000000 - 00000000000a0000 (usable)
 Xen: 00000000000a0000 - 0000000000100000 (reserved)
 Xen: 0000000000100000 - 00000001e0800000 (usable)
xen: setting RW the range fda000 - 1000000
xen: setting RW the range fffff000 - 100000000
Booting paravirtualized kernel on Xen
Xen version: 4.2.amazon (preserve-AD)
"""

MAP_313 = """\
Linux version 3.13.0-39-generic
BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable
BIOS-e820: [mem 0x0000000000100000-0x00000000bfffffff] usable
e820: update [mem 0x00000000-0x00000fff] usable ==> reserved
e820: remove [mem 0x000a0000-0x000fffff] usable
e820: last_pfn = 0xc0000 max_arch_pfn = 0x400000000
init_memory_mapping: [mem 0x00000000-0x000fffff]
 [mem 0x00000000-0x000fffff] page 4k
BRK [0x01fe2000, 0x01fe2fff] PGTABLE
BRK [0x01fe3000, 0x01fe3fff] PGTABLE
BRK [0x01fe4000, 0x01fe4fff] PGTABLE
init_memory_mapping: [mem 0xbfe00000-0xbfffffff]
 [mem 0xbfe00000-0xbfffffff] page 2M
BRK [0x01fe5000, 0x01fe5fff] PGTABLE
init_memory_mapping: [mem 0xbc000000-0xbfdfffff]
 [mem 0xbc000000-0xbfdfffff] page 2M
init_memory_mapping: [mem 0x80000000-0xbbffffff]
 [mem 0x80000000-0xbbffffff] page 2M
init_memory_mapping: [mem 0x00100000-0x7fffffff]
 [mem 0x00100000-0x001fffff] page 4k
 [mem 0x00200000-0x7fffffff] page 2M
"""


def check(tmp_path: Path, text: str) -> LogReport:
    path = tmp_path / "log.txt"
    path.write_text(text)
    return check_log(read_boot_log(path))


def entry(low: int, high: int, kind: str = "usable") -> str:
    """A line of a firmware's map, its end inclusive."""
    return f"BIOS-e820: [mem {low:#018x}-{high:#018x}] {kind}"


def brk_tables(first: int, pages: int) -> list[str]:
    return [
        f"BRK [{page:#010x}, {page + 0xFFF:#010x}] PGTABLE"
        for page in range(first, first + (pages << 12), 0x1000)
    ]


def log(release: str, *lines: str) -> str:
    return "\n".join([f"Linux version {release}", *lines, ""])


def counts(report: LogReport) -> tuple[int, int, int]:
    return report.count(MATCH), report.count(DIFFERS), report.count(UNCHECKED)


@pytest.mark.parametrize(
    "banner",
    [
        "Booting paravirtualized kernel on Xen HVM",
        "Booting paravirtualized kernel on Xen PVH",
        "Hypervisor detected: Xen HVM",
        "Hypervisor detected: Xen",
        "Xen: using vcpuop timer interface",
    ],
)
def test_a_fully_virtual_guest_is_native(tmp_path: Path, banner: str) -> None:
    text = HVM.replace("Booting paravirtualized kernel on Xen HVM", banner)
    report = check(tmp_path, text)
    assert report.backend == "native"
    assert counts(report) == (4, 0, 0)


DOMU_32BIT = """\
Reserving virtual address space above 0xf5800000
Linux version 2.6.29-rc1
 Xen: 0000000000000000 - 00000000000a0000 (usable)
 Xen: 00000000000a0000 - 0000000000100000 (reserved)
 Xen: 0000000000100000 - 0000000000813000 (usable)
 Xen: 0000000000813000 - 0000000000870000 (reserved)
 Xen: 0000000000870000 - 0000000016800000 (usable)
last_pfn = 0x16800 max_arch_pfn = 0x1000000
kernel direct mapping tables up to 16800000 @ 878000-930000
NX (Execute Disable) protection: active
360MB LOWMEM available.
  #0 [0000000000 - 0000001000]   BIOS data page ==> [0000000000 - 0000001000]
  #1 [0000001000 - 0000002000]    EX TRAMPOLINE ==> [0000001000 - 0000002000]
  #3 [0000100000 - 0000812fdc]    TEXT DATA BSS ==> [0000100000 - 0000812fdc]
  #4 [0000870000 - 0000878000]    INIT_PG_TABLE ==> [0000870000 - 0000878000]
  #5 [0000878000 - 0000924000]          PGTABLE ==> [0000878000 - 0000924000]
"""


@pytest.mark.parametrize(
    ("end", "expected"),
    [("922", (3, 0, 0)), ("924", (2, 0, 1)), ("921", (2, 1, 0)), ("926", (2, 1, 0))],
)
def test_a_32_bit_fixmap_takes_tables_from_the_block(
    tmp_path: Path, end: str, expected: tuple[int, int, int]
) -> None:
    """170 tables map the guest; more belong to the fixmap, but for no more than three."""
    report = check(tmp_path, DOMU_32BIT.replace("0000924000", f"0000{end}000"))
    assert counts(report) == expected
    if expected[2]:
        assert "NR_CPUS" in report.lines[-1].why


def test_each_call_reserves_its_own_tables(tmp_path: Path) -> None:
    assert counts(check(tmp_path, TWO_BLOCKS)) == (8, 0, 0)
    merged = TWO_BLOCKS.replace("#6 [0000008000 - 000000a000]", "#6 [0000008000 - 000000b000]")
    assert check(tmp_path, merged).count(DIFFERS)


def test_the_kernels_own_range_is_ram(tmp_path: Path) -> None:
    report = check(tmp_path, KERNEL_RANGE)
    assert counts(report) == (6, 0, 0)
    machine = load(tmp_path / "log.txt")
    assert machine.memory_map.ram().covers(0x100000, 0x1D8B000)
    assert machine.kernel.start == 0x1000000


def test_exactmap_has_the_old_end_printed_first(tmp_path: Path) -> None:
    report = check(tmp_path, EXACTMAP)
    assert counts(report) == (3, 0, 0)
    assert load(tmp_path / "log.txt").max_pfn == 0x8FFB


def test_since_5_15_the_caller_stands_in_the_line_before(tmp_path: Path) -> None:
    report = check(tmp_path, MEMBLOCK_66)
    assert counts(report) == (2, 0, 0)
    log = read_boot_log(tmp_path / "log.txt")
    tables = [fact.start for fact in log.of_kind(Reservation) if fact.is_table]
    assert tables == [0x13FFFF000, 0x13FFFE000]
    taken = RangeSet(load(tmp_path / "log.txt").reserved)
    assert not taken.overlaps(0x7FFFC000, 0x140000000)


def test_tables_before_a_panic_are_predicted(tmp_path: Path) -> None:
    assert counts(check(tmp_path, PANIC_39)) == (11, 0, 0)


def test_a_guest_whose_map_ends_in_slack(tmp_path: Path) -> None:
    report = check(tmp_path, SLACK)
    assert counts(report) == (6, 0, 0)
    assert report.variant == ("8 MiB of slack at the end of the guest's map",)


def test_what_was_not_used_is_set_writable(tmp_path: Path) -> None:
    report = check(tmp_path, SETTING_RW)
    assert counts(report) == (1, 0, 1)
    matched = next(line for line in report.lines if line.verdict is MATCH)
    assert matched.predicted == "xen: setting RW the range fffff000 - 100000000"
    other = SETTING_RW.replace("fffff000 - 100000000", "ffffe000 - 100000000")
    assert check(tmp_path, other).count(DIFFERS)


@pytest.mark.parametrize(
    ("release", "pages"),
    [
        ("3.10-1-grml-amd64", 5),
        ("3.10.10", 5),
        ("3.10.0-957.el7.x86_64", 6),
        ("3.11.0-13-generic", 6),
    ],
)
def test_pages_of_brk_in_3_10(tmp_path: Path, release: str, pages: int) -> None:
    """Six tables are needed: 3.10 has five pages of brk, RHEL's and 3.11 have six."""
    ram = (
        (0x1000, 0x9ABFF), (0x100000, 0xA7A18FFF), (0xA7A96000, 0xA7A96FFF),
        (0xA7B17000, 0xA7D8DFFF), (0xA7EF7000, 0xA7EFFFFF), (0x100001000, 0x13EFFFFFF),
    )  # fmt: skip
    head = ("e820: last_pfn = 0x13f000 max_arch_pfn = 0x400000000",
            "Using GB pages for direct mapping")  # fmt: skip
    tables = brk_tables(0x1872000, pages)
    report = check(tmp_path, log(release, *(entry(*each) for each in ram), *head, *tables))
    assert report.count(DIFFERS) == 0
    assert bool(report.variant) is (release == "3.10.0-957.el7.x86_64")


def test_a_lost_header_cannot_be_checked(tmp_path: Path) -> None:
    whole = check(tmp_path, MAP_313)
    assert whole.count(DIFFERS) == 0
    header = "init_memory_mapping: [mem 0x80000000-0xbbffffff]\n"
    assert header in MAP_313
    report = check(tmp_path, MAP_313.replace(header, ""))
    assert counts(report) == (whole.count(MATCH) - 1, 0, 1)
    sizes = " [mem 0x80000000-0xbbffffff] page 2M\n"
    both = check(tmp_path, MAP_313.replace(header, "").replace(sizes, ""))
    assert both.count(DIFFERS) == 2


def test_where_the_log_ends_nothing_more_is_judged(tmp_path: Path) -> None:
    """The last line of the file speaks of mappings: the kernel may have printed more."""
    lines = PANIC_39.splitlines()[:-3]
    assert "init_memory_mapping" in lines[-2]
    report = check(tmp_path, "\n".join(lines))
    assert report.count(DIFFERS) == 0
    assert {line.why for line in report.lines if line.verdict is UNCHECKED} == {
        "the log ends before it"
    }
    assert check(tmp_path, "\n".join([*lines, "Memory: 1k/1k available"])).count(DIFFERS)


def test_tables_of_acpi_may_end_what_is_counted(tmp_path: Path) -> None:
    """As a mail of 2025 shows of 6.12.31; since 6.11 they count (e820__end_ram_pfn)."""
    lines = [
        entry(0, 0x9ABFF), entry(0x100000, 0xCFF7FFFF), entry(0xCFF80000, 0xCFF97FFF, "ACPI data"),
        entry(0xCFF98000, 0xCFFCFFFF, "ACPI NVS"), entry(0x100000000, 0x42FFFFFFF),
        "last_pfn = 0x430000 max_arch_pfn = 0x400000000",
        "last_pfn = 0xcff98 max_arch_pfn = 0x400000000",
    ]  # fmt: skip
    for release, differ in (("6.12.31", 0), ("6.11.0", 0), ("6.10.14", 1)):
        report = check(tmp_path, log(release, *lines))
        assert counts(report) == (2 - differ, differ, 0)


RHEL_6 = """\
Linux version 2.6.32-573.el6.x86_64
BIOS-e820: 0000000000000000 - 000000000009d800 (usable)
BIOS-e820: 0000000000100000 - 00000000da000000 (usable)
BIOS-e820: 0000000100000000 - 000000011fe00000 (usable)
last_pfn = 0x11fe00 max_arch_pfn = 0x400000000
init_memory_mapping: 0000000000000000-00000000da000000
 0000000000 - 00da000000 page 2M
kernel direct mapping tables up to da000000 @ 8000-d000
init_memory_mapping: 0000000100000000-000000011fe00000
 0100000000 - 011fe00000 page 2M
kernel direct mapping tables up to 11fe00000 @ b000-d000
RAMDISK: 1e54c000 - 1ffef99b
"""


def test_rhel_6_counts_what_is_mapped_alone(tmp_path: Path) -> None:
    """As a log of 2.6.32-573.el6 shows: above 4 GiB two pages are enough."""
    report = check(tmp_path, RHEL_6)
    assert counts(report) == (7, 0, 0)
    assert "RHEL 6" in " ".join(report.variant)


def test_without_5_levels_configured_a_set_of_tables_is_smaller(tmp_path: Path) -> None:
    """As a 5.12 shows with memblock=debug: of eight tables two come from memory."""
    ram = ((0, 0x9EBFF), (0x100000, 0x1FFFFFFF), (0x20200000, 0x3FFFFFFF),
           (0x40200000, 0xAA5CFFFF), (0x100000000, 0x14FDFFFFF))  # fmt: skip
    reserve = "memblock_reserve: [{:#018x}-{:#018x}] {}".format
    lines = [
        *(entry(*each) for each in ram),
        reserve(0x1000000, 0x37FFFFF, "setup_arch+0x2d4/0x8df"),
        reserve(0x14FDFF000, 0x14FDFFFFF, "alloc_low_pages+0x164/0x170"),
        reserve(0x14FDFE000, 0x14FDFEFFF, "alloc_low_pages+0x164/0x170"),
        "Kernel command line: quiet",
    ]  # fmt: skip
    report = check(tmp_path, log("5.12.0", *lines))
    assert counts(report) == (2, 0, 0)
    assert "nor CONFIG_X86_5LEVEL" in " ".join(report.variant)


def test_large_pages_may_be_off_where_the_log_does_not_say(tmp_path: Path) -> None:
    """A 5.4.19 with 128 GiB and no "Using GB pages" took all 12 pages of brk, the last six of them
    as long after each other as 512 entries take, and was a second over it: debug_pagealloc.
    """
    ram = ((0, 0x9FFFF), (0x100000, 0x7DE38FFF), (0x7DEB6000, 0x7DFF2FFF), (0x7F351000, 0x7F351FFF),
           (0x7F3D8000, 0x7F7FFFFF), (0x100000000, 0x207FFFFFFF))  # fmt: skip
    head = [entry(*each) for each in ram]
    tail = [*brk_tables(0x174A801000, 12), "Kernel command line: quiet"]
    report = check(tmp_path, log("5.4.19", *head, *tail))
    assert counts(report) == (12, 0, 0)
    assert "4k pages alone (debug_pagealloc)" in report.variant
    said = check(tmp_path, log("5.4.19", *head, "Using GB pages for direct mapping", *tail))
    assert said.count(DIFFERS) > 0


def test_a_map_without_its_first_entry_has_low_memory(tmp_path: Path) -> None:
    """Firmware lists conventional memory first, from 0 on."""
    whole = check(tmp_path, KERNEL_RANGE)
    first = "BIOS-e820: [mem 0x0000000000000000-0x000000000009f7ff] usable\n"
    second = "BIOS-e820: [mem 0x000000000009f800-0x000000000009ffff] reserved\n"
    assert first in KERNEL_RANGE
    cut = KERNEL_RANGE.replace(first, second)
    assert counts(check(tmp_path, cut)) == counts(whole)
    low = next(iter(load(tmp_path / "log.txt").memory_map.ram()))
    assert low == (0x1000, 0x9F000)


@pytest.mark.slow
@pytest.mark.parametrize("first_kept", [2, 5])
def test_with_the_maps_head_cut_off_nothing_below_is_judged(
    tmp_path: Path, first_kept: int
) -> None:
    firmware = [
        "BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable\n",
        "BIOS-e820: [mem 0x0000000000100000-0x000000003fffffff] usable\n",
        "BIOS-e820: [mem 0x0000000040000000-0x0000000040003fff] ACPI NVS\n",
        "BIOS-e820: [mem 0x0000000040004000-0x000000007fffffff] usable\n",
        "BIOS-e820: [mem 0x0000000080000000-0x00000000800fffff] reserved\n",
        "BIOS-e820: [mem 0x0000000080100000-0x00000000bfffffff] usable\n",
    ]
    rest = MAP_313[MAP_313.index("e820: update") :]
    report = check(tmp_path, "".join(firmware[first_kept:]) + rest)
    below = [
        line for line in report.lines
        if line.verdict is DIFFERS and "[mem 0x0" in str(line.printed)
    ]  # fmt: skip
    assert below == []
    assert report.count(UNCHECKED)


@pytest.mark.parametrize(
    ("release", "fork"),
    [
        ("2.6.18-398.el5xen", True),
        ("2.6.18-xen", True),
        ("2.6.16-xen0", True),
        ("2.6.16.29-xenU", True),
        ("2.6.26-2-xen-amd64", True),
        ("2.6.32.12-0.7-xen", True),
        ("3.0.101-63-xen", True),
        ("4.1.12-1-xen", True),
        ("2.6.32-5-xen-amd64", False),
        ("4.12.14-lp151-xen", False),
        ("5.10.105-xen-stubdom", False),
        ("3.13.0-48-generic", False),
        (None, False),
    ],
)
def test_the_fork_is_told_by_its_names(tmp_path: Path, release: str | None, fork: bool) -> None:
    assert is_xenlinux(release) is fork
    if fork:
        text = TWO_BLOCKS.replace("2.6.32-24-generic", str(release))
        report = check(tmp_path, text)
        assert counts(report) == (0, 0, len(report.lines))
        assert "XenLinux fork" in report.lines[0].why


def test_before_2_6_27_the_end_is_that_of_the_last_entry(tmp_path: Path) -> None:
    """What is mapped ends with a large page, what is printed does not."""
    text = (
        "Linux version 2.6.24-19-generic\n"
        " BIOS-e820: 0000000000000000 - 000000000009f000 (usable)\n"
        " BIOS-e820: 0000000000100000 - 000000001ff31000 (usable)\n"
        " BIOS-e820: 000000001ff31000 - 000000001ff45000 (ACPI data)\n"
        "kernel direct mapping tables up to 1ff45000 @ 8000-a000\n"
    )
    report = check(tmp_path, text)
    assert "up to 1ff45000 @" in str(report.lines[0].predicted)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "(early) Xen: [mem 0x0000000000000000-0x000000000009ffff] usable\n"
        "(early) Xen: [mem 0x0000000000100000-0x000000001fffffff] usable\n"
        "(early) Hypervisor detected: Xen PV\n"
        "(early) e820: last_pfn = 0x20000 max_arch_pfn = 0x400000000\n",
        TWO_BLOCKS.partition("\n")[2],
        MAP_313.partition("\n")[2],
        MAP_313.partition("\n")[2].replace("page 2M", "page 4k"),
        SETTING_RW.partition("\n")[2] + MAP_313.partition("\n")[2],
    ],
    ids=["ten lines", "linear", "incremental", "no release", "no kernel"],
)
def test_without_a_release_all_are_tried_soon(tmp_path: Path, text: str) -> None:
    check(tmp_path, MAP_313)  # plugins are imported once
    started = time.process_time()
    report = check(tmp_path, text)
    assert time.process_time() - started < 3
    assert report.release is None
    assert report.kernel


def test_the_first_of_two_boots_counts(tmp_path: Path) -> None:
    report = check(tmp_path, MAP_313 + KERNEL_RANGE)
    assert report.release == "3.13.0-39-generic"
    assert report.count(DIFFERS) == 0
    log = read_boot_log(tmp_path / "log.txt", 2)
    assert [fact.pfn for fact in log.of_kind(LastPfn)] == [0x6FF00]


def test_a_kernel_that_is_guessed_lies_in_ram(tmp_path: Path) -> None:
    """Its first table of brk lies so low that nothing but 1 MiB is left for its start."""
    text = KERNEL_RANGE.split(".text .data")[0] + "BRK [0x00bd4000, 0x00bd4fff] PGTABLE\n"
    check(tmp_path, text)
    assert load(tmp_path / "log.txt").kernel.start == 0x100000
