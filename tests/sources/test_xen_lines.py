"""What each line of a hypervisor's log says, and the machine that its host and dom0 are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import attrs
import pytest

from paravirt_mm.errors import InputError
from paravirt_mm.machine.e820 import E820Type
from paravirt_mm.machine.model import Machine, Span
from paravirt_mm.machine.paging import MIB
from paravirt_mm.sources.bootlog.facts import DomainKernel, Fact, Hypervisor, Place
from paravirt_mm.sources.bootlog.linux import PrintedBoot
from paravirt_mm.sources.bootlog.printed import MapChange, PrintedMap
from paravirt_mm.sources.bootlog.reconstruct import reconstruct
from paravirt_mm.sources.bootlog.xen import HypervisorScan, host_machine
from tests.sources.printed import fed

RAM, RESERVED = E820Type.RAM, E820Type.RESERVED
HEADER = "(XEN) EFI RAM map:"
USABLE = "(XEN)  [{:016x}, {:016x}] (usable)".format
PHYSICAL = "(XEN) PHYSICAL MEMORY ARRANGEMENT:"
VIRTUAL = "(XEN) VIRTUAL MEMORY ARRANGEMENT:"


def scanned(*lines: str) -> HypervisorScan:
    scan = HypervisorScan()
    for number, line in enumerate(lines, 1):
        scan.feed(f"here:{number}", number, line)
    return scan


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        ("[0000000000100000, 00000000001fffff] (usable)", (MIB, 2 * MIB, RAM)),
        ("0000000000100000 - 0000000000200000 (usable)", (MIB, 2 * MIB, RAM)),
        ("[000000000fee0000, 00000000ffffffff] (reserved)", (0xFEE0000, 1 << 32, RESERVED)),
        ("[00000000000000aa, 00000000000000bb] (ACPI data)", (0xAA, 0xBC, E820Type.ACPI)),
        ("[00000000000000aa, 00000000000000bb] type 9", (0xAA, 0xBC, E820Type(9))),
        ("[00000000000000aa, 00000000000000bb] (odd)", (0xAA, 0xBC, RESERVED)),
        ("[00000000000000aa, 00000000000000bb] ()", (0xAA, 0xBC, RESERVED)),
        ("[00000000000000aa, 00000000000000bb] (usable", (0xAA, 0xBC, RAM)),
    ],
)
@pytest.mark.parametrize("mark", ["(XEN)  {}", "(XEN) [2024-03-03 08:15:02]  {}"])
def test_an_entry_of_a_hosts_map(mark: str, line: str, entry: Any) -> None:
    assert scanned(HEADER, mark.format(line)).entries == [entry]
    assert scanned(mark.format(line)).entries == []


def test_a_log_that_ends_with_the_hosts_map_is_told_to() -> None:
    """More of the map may have followed."""
    lines = (HEADER, "(XEN)  [0000000000100000, 000000001fffffff] (usable)")
    machines = [
        host_machine("m", "here", scanned(*some)) for some in (lines, (*lines, "(XEN) EFI"))
    ]
    told = ["the log ends with it" in " ".join(m.provenance.assumed) for m in machines]
    assert told == [True, False]


def test_the_last_map_counts_and_ends_with_another_line() -> None:
    """With e820-verbose the map before fix-ups comes first."""
    scan = scanned(
        "(XEN) Initial Xen-e820 RAM map:", USABLE(0, 0xFFF), "(XEN) Xen-e820 RAM map:",
        USABLE(0, 0x1FFF), USABLE(0x4000, 0x4FFF), "(XEN) other", USABLE(0x8000, 0x8FFF),
    )  # fmt: skip
    assert [found[:2] for found in scan.entries] == [(0, 0x2000), (0x4000, 0x5000)]
    assert scan.host_map is not None
    assert [(e.start, e.end) for e in scan.host_map] == [(0, 0x2000), (0x4000, 0x5000)]
    assert scanned(HEADER).host_map is None


@pytest.mark.parametrize(
    ("counted", "agrees"), [(0x1FF * 4, True), (0x1FE * 4, False), (0x200 * 4, False)]
)
def test_a_hosts_map_with_other_ram_than_xen_counted_is_told(counted: int, agrees: bool) -> None:
    """It counts whole pages of what each entry is long (__start_xen)."""
    low, high = USABLE(0x800, 0xFFFFF), USABLE(MIB, 2 * MIB - 1)
    acpi = "(XEN)  [0000000000200000, 0000000000300000] (ACPI data)"
    said = f"(XEN) System RAM: 1MB ({counted}kB)"
    wrong = f"the host's map as printed: its RAM is 2044K, but Xen counted {counted}K"
    scan = scanned(HEADER, low, high, acpi, said)
    assert scan.miscounted() == ([] if agrees else [wrong])
    assert (wrong in host_machine("m", "here", scan).provenance.assumed) is not agrees
    dom0 = ("Xen: [mem 0x0000000000100000-0x000000001fffffff] usable", "last_pfn = 0x20000")
    machine, _ = reconstruct(fed(HEADER, low, high, acpi, said, *dom0), "m", "here")
    assert (wrong in machine.provenance.assumed) is not agrees
    assert scanned(said).miscounted() == scanned(HEADER, low).miscounted() == []


PLACES: list[tuple[Sequence[str], list[Fact]]] = [
    (["(XEN) Xen version 4.17.0 (x@y)"], [Hypervisor(1, " Xen version 4.17.0 (x@y)", "4.17.0")]),
    (["(XEN)  Xen  kernel: 64-bit, lsb"], [Hypervisor(1, "  Xen  kernel: 64-bit, lsb", bits=64)]),
    (["(XEN)  Xen  kernel: 32-bit"], [Hypervisor(1, "  Xen  kernel: 32-bit", bits=32)]),
    (
        ["(XEN)  Dom0 kernel: 64-bit, PAE, lsb, paddr 0x10abc00 -> 0x2e2c0ff"],
        [DomainKernel(1, "  Dom0 kernel: 64-bit, PAE, lsb, paddr 0x10abc00 -> 0x2e2c0ff",
                      64, 0x10ABC00, 0x2E2C0FF)],
    ),
    (["(XEN)  Loaded kernel: ffff->fffff"], []),
    (
        [VIRTUAL, "(XEN)  Loaded kernel: ffffa->ffffb"],
        [Place(2, "  Loaded kernel: ffffa->ffffb", "virtual", "Loaded kernel", 0xFFFFA, 0xFFFFB)],
    ),
    (
        [PHYSICAL, "(XEN)  Dom0 alloc.:   00aa->00bb (98304 pages to be allocated)"],
        [Place(2, "  Dom0 alloc.:   00aa->00bb (98304 pages to be allocated)", "physical",
               "Dom0 alloc.", 0xAA, 0xBB, 98304)],
    ),
    (
        [PHYSICAL, VIRTUAL, "(XEN)", "(XEN)  ENTRY ADDRESS: ffffabcd"],
        [Place(4, "  ENTRY ADDRESS: ffffabcd", "virtual", "ENTRY ADDRESS", 0xFFFFABCD,
               0xFFFFABCD)],
    ),
    ([VIRTUAL, "(XEN) Dom0 has 4 VCPUs", "(XEN)  Loaded kernel: ffff->fffff"], []),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "facts"), PLACES)
def test_what_lines_of_the_domain_builder_say(lines: Sequence[str], facts: list[Fact]) -> None:
    assert scanned(*lines).facts == facts


def test_a_version_is_cut() -> None:
    assert scanned("(XEN) Xen version 4.17.0").version == "4.17.0"
    assert scanned(f"(XEN) Xen version {'4' * 50}").version == "4" * 39 + "…"


def test_of_a_boot_of_which_nothing_is_read_nothing_is_known() -> None:
    known = attrs.asdict(PrintedBoot(1, "here"), recurse=False)
    assert known.pop("xen") == HypervisorScan()
    assert {name for name, value in known.items() if value} == {"number", "source"}
    assert not PrintedBoot(1, "here").is_late(MapChange(1, (0, 1), None, None))


# -- host and dom0 ---------------------------------------------------------------------------------

MAP: list[tuple[int, int, E820Type]] = [
    (0, 0x9F000, RAM), (MIB, 64 * MIB, RAM), (64 * MIB, 65 * MIB, RESERVED),
    (80 * MIB, 144 * MIB, RAM),
]  # fmt: skip
SENTENCES = (
    "x86_64, no 1 GiB pages",
    "Linux's trimming of the map (first page reserved, 640K-1M not RAM)",
    "kernel at 0x1000000-0x1e00000, 256 KiB of brk after it",
    "no initrd",
    "first 64 KiB reserved (CONFIG_X86_RESERVE_LOW's default)",
)
TOLD = "initrd at the end of RAM (the log tells its size)"
ALL = (0x9F000 >> 12) + (127 << 8)


def place(
    name: str,
    start: int,
    end: int,
    pages: int | None = None,
    section: Literal["physical", "virtual"] = "physical",
) -> Place:
    return Place(1, "", section, name, start, end, pages)


def host(*facts: Fact, entries: Any = MAP, version: str | None = None) -> Machine:
    return host_machine("m", "here", HypervisorScan([*entries], [*facts], version))


def test_a_host_of_which_only_the_map_is_known() -> None:
    machine = host()
    assert machine.provenance.assumed == SENTENCES
    assert machine.reserved == ((0, 0x10000),)
    assert (machine.provenance.title, machine.initrd) == ("host of Xen", None)
    assert host(version="4.17.0").provenance.title == "host of Xen 4.17.0"
    assert machine.host_map is not None
    assert [(e.start, e.end, e.type) for e in machine.host_map] == MAP
    assert list(machine.memory_map.ram()) == [
        (0x1000, 0x9F000), (MIB, 64 * MIB), (80 * MIB, 144 * MIB),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "pages"),
    [
        ([place("Dom0 alloc.", 0, 0, 0x4000)], 0x4000),
        ([place("Dom0 alloc.", 0, 0, 0x2000)], 0x2000),
        ([place("Dom0 alloc.", 0, 0x1000, 0x2000)], 0x2001),
        ([place("Dom0 alloc.", 0, 0x1001, 0x2000)], 0x2002),
        ([place("Dom0 alloc.", 0x5000, 0, 0x2000)], 0x2000),
        ([place("Dom0 alloc.", 0, 0x1000, 0x2000), place("Init. ramdisk", 0x3000, 0x4FFF)], 0x2003),
        ([place("Loaded kernel", 0, 0x1000, 9), place("Dom0 alloc.", 0, 0, 0x2000)], 0x2000),
        ([place("Dom0 alloc.", 0, 0, 0x2000, section="virtual")], None),
        ([place("Dom0 alloc.", 0, 0, 0x2000), place("Init", 0, 0x1000, section="virtual")], 0x2000),
        ([place("Dom0 alloc.", 0, 0x1000)], None),
        ([place("Dom0 alloc.", 0, 0, 0)], None),
        ([place("Dom0 alloc.", 0, 0, ALL)], None),
        ([place("Dom0 alloc.", 0, 0, ALL - 1)], ALL - 1),
        ([Hypervisor(1, ""), place("TOTAL", 0, 0x1000)], None),
    ],
)
def test_ram_of_dom0_is_the_lowest_of_its_hosts(facts: list[Fact], pages: int | None) -> None:
    machine = host(*facts)
    told = [text for text in machine.provenance.assumed if text.startswith("RAM")]
    left = machine.memory_map.ram().total + 0x1000  # and the page that Linux takes out
    if pages is None:
        assert (told, left) == ([], ALL << 12)
        return
    assert told == [f"RAM: the lowest {pages} pages of the host's, as many as dom0 has"]
    assert left == pages << 12
    assert machine.memory_map.entries[-1].end in (65 * MIB, 80 * MIB + left - 0x9F000 - 63 * MIB)
    assert machine.host_map is not None
    assert machine.host_map.ram().total == ALL << 12


def test_ram_of_dom0_is_counted_in_whole_pages() -> None:
    """A 5.10 with 33,792 pages of this host mapped its RAM up to 138809344."""
    scan = scanned(
        HEADER, USABLE(0, 0x9FBFF), USABLE(0xF0800, 0xF0FFF), USABLE(0x100000, 0x213DFFFF),
        USABLE(0x30000800, 0x30001FFF), PHYSICAL,
        "(XEN)  Dom0 alloc.:   0000000010000000->0000000018000000 (1024 pages to be allocated)",
    )  # fmt: skip
    machine = host_machine("m", "here", scan)
    assert list(machine.memory_map.ram_pages()) == [(0x1000, 0x9F000), (0x100000, 138809344)]


@pytest.mark.parametrize(
    ("facts", "initrd"),
    [
        ([place("Init. ramdisk", 0, 5 * MIB)], (139 * MIB, 144 * MIB)),
        ([place("Init. ramdisk", 0, 5 * MIB - 1)], (139 * MIB, 144 * MIB - 1)),
        ([place("Init. ramdisk", 2 * MIB, 7 * MIB)], (139 * MIB, 144 * MIB)),
        (
            [place("Init. ramdisk", 0, 1), place("Init. Ramdisk", 0, 5 * MIB, section="virtual")],
            (139 * MIB, 144 * MIB),
        ),
        ([place("Init. ramdisk", 0, 64 * MIB)], (80 * MIB, 144 * MIB)),
        ([place("Init. ramdisk", 0, 64 * MIB + 1)], None),
        ([place("Init. ramdisk", MIB, MIB)], None),
        ([place("Init. ramdisk", 2 * MIB, MIB)], None),
        ([place("TOTAL", 0, 5 * MIB), Hypervisor(1, "")], None),
    ],
)
def test_an_initrd_of_the_size_that_is_told(facts: list[Fact], initrd: Span | None) -> None:
    machine = host(*facts)
    assert machine.initrd == initrd
    told = [text for text in machine.provenance.assumed if "initrd" in text]
    assert told == ([TOLD] if initrd else ["no initrd"])


def test_an_initrd_lies_as_high_as_there_is_room() -> None:
    entries = [*MAP[:3], (80 * MIB, 81 * MIB, RAM)]
    machine = host(place("Init. ramdisk", 0, 2 * MIB), entries=entries)
    assert machine.initrd == (62 * MIB, 64 * MIB)


def test_the_kernel_of_dom0_is_the_last_that_is_told() -> None:
    first, last = DomainKernel(1, "", 64, 4 * MIB, 8 * MIB), DomainKernel(2, "", 64, MIB, 20 * MIB)
    kernel = host(first, last, Hypervisor(3, "")).kernel
    assert (kernel.start, kernel.brk_end) == (MIB, 20 * MIB)
    with pytest.raises(InputError, match="the kernel at 0x100000-0x10000000 does not lie"):
        host(DomainKernel(1, "", 64, MIB, 256 * MIB))


# -- maps of which two may stand in one ------------------------------------------------------------


@pytest.mark.parametrize(
    ("starts", "restart", "reverse"),
    [
        ([], None, False),
        ([0], None, False),
        ([0, 1], None, False),
        ([0, 1, 0], 2, False),
        ([0, 1, 0, 1, 0], 2, False),
        ([1, 0, 1], 2, False),
        ([0, 0], 1, False),
        ([2, 1], None, True),
        ([2, 1, 0], None, True),
        ([2, 1, 3], None, False),
        ([1, 2, 0], None, False),
        ([2, 1, 1], None, False),
    ],
)
def test_order_of_a_map(starts: list[int], restart: int | None, reverse: bool) -> None:
    shown = PrintedMap("firmware", 1)
    for start in starts:
        shown.add((start, 9 - start, RAM))
    assert (shown.restart, shown.is_reversed) == (restart, reverse)


def test_two_boots_are_mixed_where_both_a_map_and_a_trampoline_come_twice() -> None:
    mixed = PrintedMap("firmware", 1, restart=1)
    plain = PrintedMap("user", 1)
    for trampolines, maps, wanted in (
        (2, [plain, mixed], True), (1, [mixed], False), (2, [plain], False), (2, [], False),
    ):  # fmt: skip
        assert PrintedBoot(1, "here", trampolines=trampolines, maps=maps).mixed is wanted


@pytest.mark.parametrize(
    ("last", "order", "late"), [(None, 5, False), (5, 5, False), (5, 6, True), (5, 4, False)]
)
def test_a_change_after_the_last_last_pfn_is_late(last: int | None, order: int, late: bool) -> None:
    printed = PrintedBoot(1, "here", last_pfn_order=last)
    assert printed.is_late(MapChange(order, (0, 1), None, None)) is late
