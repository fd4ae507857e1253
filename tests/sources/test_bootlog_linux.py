"""Boot logs of each style: what they say, and what is made of cut, wrapped and mixed ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from paravirt_mm.errors import InputError
from paravirt_mm.machine.e820 import E820Entry, E820Type
from paravirt_mm.machine.paging import I386, I386_PAE, X86_64, X86_64_LA57
from paravirt_mm.machine.ranges import RangeSet
from paravirt_mm.sources import load, read_boot_log
from paravirt_mm.sources.bootlog.facts import (
    BrkTable,
    DomainKernel,
    Hypervisor,
    LastPfn,
    MappedRange,
    PageRange,
    Place,
    Reservation,
    TableBlock,
)

RAM, RESERVED = E820Type.RAM, E820Type.RESERVED


def ram(path: Path) -> list[tuple[int, int]]:
    return list(load(path).memory_map.ram())


def boot(tmp_path: Path, *lines: str, name: str = "boot.txt") -> Path:
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


FIRMWARE = (
    "BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable",
    "BIOS-e820: [mem 0x000000000009fc00-0x00000000000fffff] reserved",
    "BIOS-e820: [mem 0x0000000000100000-0x000000001fffffff] usable",
)
TRIMMED = [(0x1000, 0x9FC00), (0x100000, 0x20000000)]


# -- one log of each style -------------------------------------------------------------------------


def test_exclusive_ends_of_2_6_26(logs):
    log = read_boot_log(logs / "2.6.26-exclusive-ends.txt")
    machine = log.machine
    assert log.release == machine.provenance.kernel_release == "2.6.26-tip-01876-g0609af7-dirty"
    assert list(machine.memory_map.ram()) == [
        (0x1000, 0x95800), (0x100000, 0xD7FA0000), (0x100000000, 0x4028000000),
    ]  # fmt: skip
    assert (machine.mode, machine.features.gbpages) == (X86_64, True)
    assert (machine.max_pfn, machine.max_low_pfn) == (0x4028000, 0xD7FA0)
    assert machine.initrd == (0x7E6CB000, 0x7FFF3E0B)
    assert [fact.span for fact in log.of_kind(MappedRange)] == [None, None]
    assert [(fact.up_to, fact.start, fact.end) for fact in log.of_kind(TableBlock)] == [
        (0xD7FA0000, 0x8000, 0xB000),
        (0x4028000000, 0xA000, 0xC000),
    ]
    assert [(fact.start, fact.end, fact.page) for fact in log.of_kind(PageRange)] == [
        (0, 0xC0000000, "1G"),
        (0xC0000000, 0xD7E00000, "2M"),
        (0xD7E00000, 0xD7FA0000, "4k"),
        (0x100000000, 0x4000000000, "1G"),
        (0x4000000000, 0x4028000000, "2M"),
    ]
    assert [fact.owner for fact in log.of_kind(Reservation)] == ["RAMDISK", "BIOS reserved"]
    assert (0x95400, 0x100000) in machine.reserved


def test_inclusive_ends_of_3_5(logs):
    log = read_boot_log(logs / "3.5-inclusive-ends.txt")
    (low, high) = log.of_kind(TableBlock)
    assert (low.up_to, low.start, low.end) == (0xBB000000, 0x1FFFC000, 0x20000000)
    assert (high.up_to, high.start, high.end) == (0x23E600000, 0xB60C7000, 0xB60CD000)
    assert low.text == (
        "kernel direct mapping tables up to 0xbaffffff @ [mem 0x1fffc000-0x1fffffff]"
    )
    assert [fact.span for fact in log.of_kind(MappedRange)] == [
        (0, 0xBB000000), (0x100000000, 0x23E600000),
    ]  # fmt: skip
    assert log.machine.boot_mapped == 0x20000000
    assert log.machine.initrd == (0x362E2000, 0x37169000)
    assert (0x50000, 0x56000) in log.machine.reserved  # the real-mode trampoline


def test_modified_map_counts_as_it_is(logs):
    log = read_boot_log(logs / "2.6.28-modified-map.txt")
    assert log.machine.mode is I386
    assert log.machine.memory_map.entries[0] == E820Entry(0, 0x2000, RAM), "not trimmed again"
    assert log.machine.max_low_pfn == 0xFEC0
    assert log.release is None


def test_modified_map_of_which_only_the_tail_is_there(logs):
    memory = load(logs / "2.6.31-map-tail-modified.txt").memory_map
    assert memory.ram().covers(0x100000, 0x6E64F000), "from the firmware's map"
    assert memory.entries[-1] == E820Entry(0xFFC00000, 0x100000000, RESERVED), "from the other"


def test_user_map_replaces_the_firmwares(logs):
    machine = load(logs / "5.5-user-map.txt")
    assert machine.max_pfn == 0x1C0000  # mem=7G; the firmware's map goes to 0x239a00
    assert machine.max_pfn_hint is None, "derived, not copied"


def test_32_bits_without_pae(logs):
    log = read_boot_log(logs / "2.6.32-i386.txt")
    assert log.machine.mode is I386
    assert log.machine.boot_mapped == 0x1800000
    assert log.machine.kernel.span[1] <= 0x1800000


@pytest.mark.parametrize(
    ("name", "low_pfn", "nx"), [("3.2-i386-pae", 0x379FE, False), ("3.13-i386-pae", 0x37BFE, True)]
)
def test_32_bits_with_pae(logs, name, low_pfn, nx):
    machine = load(logs / f"{name}.txt")
    assert machine.mode is I386_PAE
    assert machine.max_low_pfn == low_pfn
    assert machine.features.nx is nx
    assert machine.features.pse
    assert machine.max_pfn > low_pfn


def test_memblock_debug_tells_where_the_kernel_is(logs):
    log = read_boot_log(logs / "4.9-memblock-debug.txt")
    kernel = log.machine.kernel
    assert (kernel.start, kernel.brk_start, kernel.brk_end) == (0x1000000, 0x2145000, 0x214B000)
    assert {(0x96000, 0x9C000), (0x9C800, 0x100000), (0x34CAD000, 0x3664E000)} <= set(
        log.machine.reserved
    )
    assert [fact.start for fact in log.of_kind(Reservation) if fact.is_table] == [
        0x2807FF000, 0x2807FE000,
    ]  # fmt: skip
    assert [fact.start for fact in log.of_kind(BrkTable)] == [
        0x2145000 + 0x1000 * index for index in range(6)
    ]
    assert not any(start >= 0x280000000 for start, _ in log.machine.reserved), (
        "what the kernel allocates itself is the model's to find"
    )


def test_setup_data_is_ram_but_taken(logs):
    machine = load(logs / "5.1-setup-data.txt")
    assert machine.memory_map.ram().covers(0x6D55C018, 0x6D56C058)
    assert (0x6D55C018, 0x6D56C058) in machine.reserved
    assert machine.features.gbpages


def test_xen_dom0(logs):
    log = read_boot_log(logs / "6.12-xen-dom0.txt")
    assert log.platform == "xen-pv"
    assert (log.machine.max_pfn, log.machine.max_low_pfn) == (0x178481, 0x8AC0F)
    assert log.machine.initrd == (0x4000000, 0x6669000)


def test_hypervisor_and_dom0_in_one_log(logs):
    log = read_boot_log(logs / "4.19-xen-and-dom0.txt")
    assert log.platform == "xen-pv"
    assert log.of_kind(DomainKernel)[0].bits == 64
    assert log.machine.kernel.start == 0x1000000
    assert log.machine.kernel.loaded[1] == 0x2E2C000  # with its brk
    places = {(fact.section, fact.name): fact for fact in log.of_kind(Place)}
    assert places["physical", "Dom0 alloc."].pages == 1014568
    assert places["virtual", "Page tables"].start == 0xFFFFFFFF82E2D000
    assert places["virtual", "TOTAL"].end == 0xFFFFFFFF83000000
    assert places["virtual", "Loaded kernel"].text.startswith("  Loaded kernel: ffffffff81000000")
    assert places["virtual", "ENTRY ADDRESS"].start == 0xFFFFFFFF82746180


@pytest.mark.parametrize(
    ("name", "ends"), [("xen-4.17-host", 0x430000000), ("xen-4.1-host", 0x7FE6D800)]
)
def test_host_map_of_the_hypervisor(logs, name, ends):
    log = read_boot_log(logs / f"{name}.txt")
    assert log.platform == "hypervisor"
    assert log.host_map.ram().end == ends
    assert log.machine.memory_map.ram().first == 0x1000, "as Linux would trim it"
    assert "host of Xen 4.1" in log.machine.provenance.title


def test_hypervisor_log_without_map_is_a_log_but_no_machine(logs):
    path = logs / "xen-dom0-32bit.txt"
    log = read_boot_log(path)
    assert log.machine is None
    assert "Xen-e820 RAM map" in log.missing
    assert [fact.name for fact in log.of_kind(Place)][:2] == ["Dom0 alloc.", "Loaded kernel"]
    with pytest.raises(InputError, match=r"xen-dom0-32bit.txt: .*loglvl=all"):
        load(path)


# -- cut and wrapped -------------------------------------------------------------------------------


def test_lines_that_a_mail_program_has_wrapped(logs):
    machine = load(logs / "5.4-wrapped-lines.txt")
    memory = machine.memory_map
    assert E820Entry(0x4000000, 0x4040000, RESERVED) in memory.entries
    assert memory.entries[-1] == E820Entry(0xFFFD00000000, 0x1000000000000, RESERVED)
    lost = [text for text in machine.provenance.assumed if "lost memory type" in text]
    assert len(lost) == 2
    assert not memory.ram().overlaps(0x76EDD000, 0x797FE000)


def test_a_lost_head_comes_from_what_was_mapped(logs):
    log = read_boot_log(logs / "3.11-head-cut.txt")
    mapped = RangeSet(fact.span for fact in log.of_kind(MappedRange))
    assert RangeSet(
        log.machine.memory_map.ram_pages().within(1 << 20, 1 << 63)
    ) == mapped.difference(RangeSet([(0, 1 << 20)]))
    assert any("head is missing" in text for text in log.machine.provenance.assumed)
    assert log.machine.memory_map.ram().covers(0x1000, 0x84000), "up to the trampoline's end"


def test_a_lost_head_before_the_linear_allocator_is_all_ram(logs):
    assert ram(logs / "3.0-head-cut.txt")[:2] == [(0x1000, 0x9D000), (0x100000, 0xDF5D4000)]


def test_a_map_cut_in_the_middle_of_an_entry_is_refused(tmp_path):
    path = boot(tmp_path, *FIRMWARE[:2], "BIOS-e820: [mem 0x00000000001000")
    with pytest.raises(InputError, match=r"boot.txt:3: memory map line cut short"):
        load(path)


def test_a_map_entry_that_is_none_is_refused(tmp_path):
    path = boot(tmp_path, *FIRMWARE, "BIOS-e820: [mem 0xzz-0x100] usable")
    with pytest.raises(InputError, match=r"boot.txt:4: memory map line not understood"):
        load(path)


# -- which map counts ------------------------------------------------------------------------------


def test_a_bare_map_gets_the_standard_trimming(tmp_path):
    path = boot(tmp_path, "BIOS-e820: [mem 0x0-0x1fffffff] usable")
    machine = load(path)
    assert list(machine.memory_map.ram()) == [(0x1000, 0xA0000), (0x100000, 0x20000000)]
    assert any("trimming" in text for text in machine.provenance.assumed)


def test_changes_count_up_to_the_last_last_pfn(tmp_path):
    path = boot(
        tmp_path,
        *FIRMWARE,
        "e820: update [mem 0x00000000-0x0000ffff] usable ==> reserved",
        "e820: remove [mem 0x000a0000-0x000fffff] usable",
        "e820: last_pfn = 0x20000 max_arch_pfn = 0x400000000",
        "e820: update [mem 0x1f000000-0x1f000fff] usable ==> reserved",
        "BRK [0x01fd9000, 0x01fd9fff] PGTABLE",
        "e820: update [mem 0x10000000-0x1f000fff] usable ==> reserved",
    )
    machine = load(path)
    assert list(machine.memory_map.ram()) == [(0x10000, 0x9FC00), (0x100000, 0x20000000)]
    assert (0x1F000000, 0x1F001000) in machine.reserved, "kept from allocation, but mapped"
    assert not RangeSet(machine.reserved).overlaps(0x10000000, 0x1F000000), "too late to matter"


def test_max_pfn_is_a_hint_only_where_the_map_says_otherwise(tmp_path):
    last = "last_pfn = 0x{:x} max_arch_pfn = 0x400000000".format
    assert load(boot(tmp_path, *FIRMWARE, last(0x20000))).max_pfn_hint is None
    machine = load(boot(tmp_path, *FIRMWARE, last(0x18000)))
    assert machine.max_pfn_hint == machine.max_pfn == 0x18000
    assert any("as printed" in text for text in machine.provenance.assumed)


def test_unknown_types_keep_their_number(tmp_path):
    path = boot(tmp_path, *FIRMWARE, "BIOS-e820: [mem 0x20000000-0x20ffffff] type 20")
    assert load(path).memory_map.entries[-1].type == 20


# -- CPU -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "mode"),
    [
        ("last_pfn = 0x20000 max_arch_pfn = 0x100000", I386),
        ("last_pfn = 0x20000 max_arch_pfn = 0x1000000", I386_PAE),
        ("last_pfn = 0x20000 max_arch_pfn = 0x3ffffffff", X86_64),
        ("last_pfn = 0x20000 max_arch_pfn = 0x400000000", X86_64),
        ("last_pfn = 0x20000 max_arch_pfn = 0x10000000000", X86_64_LA57),
        ("Base memory trampoline at [c009b000] 9b000 size 16384", I386),
        ("Base memory trampoline at [ffff880000096000] 96000 size 24576", X86_64),
        ("NX (Execute Disable) protection cannot be enabled: non-PAE kernel!", I386),
        ("initial memory mapped : 0 - 01800000", I386),
        ("512MB LOWMEM available.", I386),
    ],
)
def test_mode(tmp_path, line, mode):
    assert load(boot(tmp_path, *FIRMWARE, line)).mode is mode


@pytest.mark.parametrize(
    ("lines", "mode"),
    [
        (("  0000400000 - 0010000000 page 2M",), I386),
        (("  0000200000 - 0010000000 page 2M",), I386_PAE),
        (("NX (Execute Disable) protection: active",), I386_PAE),
        (("Linux version 2.6.32-5-686-pae",), I386_PAE),
    ],
)
def test_32_bit_mode_without_max_arch_pfn(tmp_path, lines, mode):
    head = [line for line in lines if line.startswith("Linux")]
    tail = [line for line in lines if not line.startswith("Linux")]
    path = boot(tmp_path, *head, *FIRMWARE, "512MB LOWMEM available.", *tail)
    assert load(path).mode is mode


def test_no_large_pages_where_all_is_4k(tmp_path):
    mapped = ("init_memory_mapping: [mem 0x00100000-0x1fffffff]",)
    small = load(boot(tmp_path, *FIRMWARE, *mapped, " [mem 0x00100000-0x1fffffff] page 4k"))
    large = load(boot(tmp_path, *FIRMWARE, *mapped, " [mem 0x00200000-0x1fffffff] page 2M"))
    short = load(boot(tmp_path, *FIRMWARE, *mapped, " [mem 0x00100000-0x001fffff] page 4k"))
    assert [machine.features.pse for machine in (small, large, short)] == [False, True, True]


# -- what stands around the message ----------------------------------------------------------------

MESSAGES = (
    "Linux version 4.4.0-66-generic",
    "Command line: nokaslr",
    *FIRMWARE,
    "e820: update [mem 0x00000000-0x00000fff] usable ==> reserved",
    "e820: last_pfn = 0x20000 max_arch_pfn = 0x400000000",
    "init_memory_mapping: [mem 0x00100000-0x1fffffff]",
    " [mem 0x00100000-0x001fffff] page 4k",
    " [mem 0x00200000-0x1fffffff] page 2M",
    "BRK [0x01fd9000, 0x01fd9fff] PGTABLE",
    "RAMDISK: [mem 0x1e000000-0x1effffff]",
)


@pytest.mark.parametrize(
    "prefix",
    [
        "[    0.000000] ",
        "[    0.000000][    T0] ",
        "[Thu May  9 12:00:01 2019] ",
        "<6>[    0.000000] ",
        "kern  :info  : [    0.000000] ",
        "kern.info kernel: [    0.000000] ",
        "May  9 12:00:01 host kernel: [    0.000000] ",
        "May 09 12:00:01 host.example.org kernel: ",
        "2019-05-09T12:00:01.123456+02:00 host kernel: [    0.000000] ",
        "[    0.000000] host kernel: ",
        "Thu May  9 12:00:01 2019 kern.info kernel: [    0.000000] ",
        "> [    0.000000] ",
        "> > ",
        "\t[    0.000000] ",
        "\x1b[32m[    0.000000] \x1b[0m",
    ],
)
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r\r\n"])
def test_prefixes_and_line_ends(tmp_path, prefix, ending):
    def read(name: str, prefix: str, ending: str):
        path = tmp_path / name
        path.write_bytes("".join(prefix + text + ending for text in MESSAGES).encode())
        return read_boot_log(path)

    plain, dressed = read("plain", "", "\n"), read("dressed", prefix, ending)
    assert dressed.facts == plain.facts
    assert len(plain.facts) == 5
    assert dressed.release == "4.4.0-66-generic"
    assert dressed.command_line == "nokaslr"
    assert dressed.machine.memory_map == plain.machine.memory_map
    assert dressed.machine.initrd == (0x1E000000, 0x1F000000)


def test_names_and_messages_cannot_talk_to_the_terminal(tmp_path):
    path = boot(
        tmp_path,
        "Linux version 4.4\x07\x1b]0;owned\x07",
        "Command line: \x9b31mred \u202e‮ \x00",
        *FIRMWARE,
        "last_pfn = 0x20000 max_arch_pfn = 0x400000000 \x1b[2J\x08\x08",
        name="a\x1b[31m\nb.txt",
    )
    log = read_boot_log(path)
    shown = [log.source, log.release, log.command_line, log.machine.name]
    shown += [log.machine.provenance.source, *log.machine.provenance.assumed]
    shown += [fact.text for fact in log.facts]
    assert all(text.isprintable() for text in shown), shown
    assert log.of_kind(LastPfn)[0].pfn == 0x20000


# -- several boots ---------------------------------------------------------------------------------


def second(size: int) -> tuple[str, ...]:
    return (
        "Linux version 5.0",
        f"BIOS-e820: [mem 0x0000000000100000-0x{size - 1:016x}] usable",
        f"last_pfn = 0x{size >> 12:x} max_arch_pfn = 0x400000000",
    )


def test_the_first_complete_boot_counts(tmp_path):
    path = boot(tmp_path, *second(1 << 28), *second(1 << 29))
    assert read_boot_log(path).machine.max_pfn == 1 << 16
    assert "boot 1" in load(path).provenance.source
    cut = boot(tmp_path, *second(1 << 28)[:2], *second(1 << 29), name="cut.txt")
    log = read_boot_log(cut)
    assert (log.boot, log.machine.max_pfn) == (2, 1 << 17)
    assert "boot 2" in log.machine.provenance.source


def test_a_boot_can_be_chosen(tmp_path):
    path = boot(tmp_path, *second(1 << 28), *second(1 << 29), *second(1 << 30))
    assert [load(path, boot=n).max_pfn for n in (1, 2, 3)] == [1 << 16, 1 << 17, 1 << 18]
    with pytest.raises(InputError, match="there is no boot 4: the log holds 3"):
        load(path, boot=4)
    with pytest.raises(InputError, match="counted from 1"):
        load(path, boot=0)


def test_a_boot_without_its_first_line_still_ends_the_one_before(tmp_path):
    path = boot(tmp_path, *second(1 << 28), *second(1 << 29)[1:])
    assert read_boot_log(path).machine.max_pfn == 1 << 16
    assert load(path, boot=2).max_pfn == 1 << 17


def test_two_boots_line_by_line(tmp_path):
    one = [*FIRMWARE, "Base memory trampoline at [ffff880000099000] 99000 size 24576"]
    other = ["BIOS-e820: [mem 0x0-0x9fbff] usable", "BIOS-e820: [mem 0x100000-0x3fffffff] usable"]
    path = boot(tmp_path, *one[:3], *other, one[3], one[3].replace("99000", "98000"))
    log = read_boot_log(path)
    assert log.mixed
    assert list(log.machine.memory_map.ram()) == TRIMMED
    assert any("two boots are mixed" in text for text in log.machine.provenance.assumed)
    # Of a map that comes once it is not said.
    user = ["user: [mem 0x0-0x9fbff] usable", "user: [mem 0x100000-0xfffffff] usable"]
    path = boot(tmp_path, *one[:3], *other, *user, one[3], one[3].replace("99000", "98000"))
    told = [text for text in load(path).provenance.assumed if "two boots are mixed" in text]
    assert len(told) == 1


def test_a_kernel_that_lies_on_no_ram_is_added_as_ram(tmp_path):
    """e820_add_kernel_range: what the map has there is removed, whatever it is, and added."""
    maps = [*FIRMWARE, "BIOS-e820: [mem 0x0000000020000000-0x0000000021ffffff] reserved"]
    low = (0, 0x9FC00)  # a kernel that prints changes prints those of its trimming, too
    warning = ".text .data .bss are not marked as E820_RAM!"
    remove = "e820: remove [mem 0x20000000-0x20ffffff] "
    machine = load(boot(tmp_path, *maps, warning, remove))
    assert list(machine.memory_map.ram()) == [low, (0x100000, 0x21000000)]
    assert machine.kernel.start == 0x20000000
    # Without the warning something else was removed, and nothing added.
    machine = load(boot(tmp_path, *maps, remove))
    assert list(machine.memory_map.ram()) == [low, TRIMMED[1]]
    # The warning speaks of one change, and counts for the map that stands then.
    user = [line.replace("BIOS-e820", "user") for line in maps]
    again = "e820: remove [mem 0x00100000-0x001fffff] usable"
    machine = load(boot(tmp_path, *maps, *user, *user, warning, remove, again))
    assert list(machine.memory_map.ram()) == [low, (0x200000, 0x21000000)]
    large = [*maps[:3], "BIOS-e820: [mem 0x0000000020000000-0x000000009fffffff] reserved"]
    whole = remove.replace("0x20ffffff", "0x5ffbffff")  # with 256 KiB of brk 1 GiB
    assert load(boot(tmp_path, *large, warning, whole)).kernel.start == 0x20000000
    with pytest.raises(InputError, match="a kernel larger than 1 GiB"):
        load(boot(tmp_path, *large, warning, remove.replace("0x20ffffff", "0x60000000")))


@pytest.mark.parametrize(
    ("release", "low"),
    [("2.6.36", 0), ("2.6.37", 0x10000), ("5.12.19", 0x10000), ("5.13.0-28-generic", 0x100000)],
)
def test_what_a_release_keeps_of_low_memory(tmp_path, release, low):
    firmware = ("BIOS-e820: [mem 0x0-0x9dfff] usable", FIRMWARE[2])
    machine = load(boot(tmp_path, f"Linux version {release}", *firmware))
    assert list(RangeSet(machine.reserved).within(0, 1 << 20)) == ([(0, low)] if low else [])


@pytest.mark.parametrize(("start", "low"), [(0x100000, 0x100000), (0x101000, 0x100000)])
def test_a_map_that_begins_above_1_mib_has_lost_its_head(tmp_path, start, low):
    machine = load(boot(tmp_path, f"BIOS-e820: [mem 0x{start:016x}-0x000000001fffffff] usable"))
    assert list(machine.memory_map.ram()) == [(0x1000, 0x9F000), (low, 0x20000000)]
    assert any("head is missing" in text for text in machine.provenance.assumed) == (start != low)


def test_a_hypervisors_log_tells_kernel_initrd_and_pages_of_dom0(tmp_path: Path) -> None:
    """The kernel with its brk where Xen loaded it, over whatever is there; the host's own map."""
    path = boot(
        tmp_path,
        "(XEN) Xen version 4.17.0",
        "(XEN) EFI RAM map:",
        "(XEN)  [0000000000000000, 000000000009ffff] (usable)",
        "(XEN)  [0000000000100000, 0000000003ffffff] (usable)",
        "(XEN)  [0000000004000000, 0000000004009fff] (ACPI NVS)",
        "(XEN)  [000000000400a000, 000000009fffffff] (usable)",
        "(XEN)  [0000000100000000, 000000044fffffff] (usable)",
        "(XEN)  Dom0 kernel: 64-bit, PAE, lsb, paddr 0x1000000 -> 0x4000000",
        "(XEN) PHYSICAL MEMORY ARRANGEMENT:",
        "(XEN)  Dom0 alloc.:   0000000440000000->0000000448000000 (98304 pages to be allocated)",
        "(XEN)  Init. ramdisk: 000000044e000000->000000044f123456",
        "(XEN) VIRTUAL MEMORY ARRANGEMENT:",
        "(XEN)  Loaded kernel: ffffffff81000000->ffffffff84000000",
        "(XEN)  TOTAL:         ffffffff80000000->ffffffff84400000",
    )
    machine = load(path)
    assert machine.kernel.loaded == (0x1000000, 0x4000000)
    assert machine.kernel.brk_end == 0x4000000
    assert machine.initrd is not None
    assert machine.initrd[1] - machine.initrd[0] == 0x1123456
    assert machine.host_map is not None
    assert machine.host_map.ram_pages().end == 0x450000000
    pages = 0x8000 + 98304 + 0x1124
    # Linux takes the first page and what lies below 1 MiB out of the map.
    assert machine.memory_map.ram_pages().total <= pages << 12
    assert machine.memory_map.ram_pages().total >= (pages - 1) << 12
    hypervisor = read_boot_log(path).of_kind(Hypervisor)
    assert [fact.version for fact in hypervisor] == ["4.17.0"]


@pytest.mark.parametrize(("given", "lowest"), [(0x3EFE, True), (0x3EFF, False), (0x4000, False)])
def test_dom0_has_no_more_memory_than_its_host(tmp_path: Path, given: int, lowest: bool) -> None:
    """With as many pages as the host has, its RAM is the host's: 0x3eff of 64 MiB below 4 GiB."""
    path = boot(
        tmp_path,
        "(XEN) Xen version 4.17.0",
        "(XEN) EFI RAM map:",
        "(XEN)  [0000000000000000, 000000000009efff] (usable)",
        "(XEN)  [0000000000100000, 0000000003f5ffff] (usable)",
        "(XEN) PHYSICAL MEMORY ARRANGEMENT:",
        f"(XEN)  Dom0 alloc.:   0000000003800000->0000000003800000 ({given} pages to be allocated)",
    )
    machine = load(path)
    assert machine.host_map is not None
    assert machine.host_map.ram_pages().total == 0x3EFF << 12
    assert any("the lowest" in text for text in machine.provenance.assumed) is lowest


# -- what each line means --------------------------------------------------------------------------


def test_a_trampoline_takes_whole_pages(tmp_path):
    trampoline = "Base memory trampoline at [ffff880000096000] 96000 size 24001"
    machine = load(boot(tmp_path, *FIRMWARE, trampoline))
    taken = RangeSet(machine.reserved)
    assert list(taken.within(0x90000, 0xA0000)) == [(0x96000, 0x9C000), (0x9F000, 0xA0000)]


def test_a_last_pfn_after_mapping_does_not_move_changes_before_the_map_was_copied(tmp_path):
    machine = load(
        boot(
            tmp_path,
            *FIRMWARE,
            "e820: last_pfn = 0x20000 max_arch_pfn = 0x400000000",
            "e820: update [mem 0x10000000-0x1000ffff] usable ==> reserved",
            "init_memory_mapping: [mem 0x00000000-0x000fffff]",
            "e820: last_pfn = 0x20000 max_arch_pfn = 0x400000000",
        )
    )
    assert machine.memory_map.ram().covers(0x10000000, 0x10010000)
    assert RangeSet(machine.reserved).covers(0x10000000, 0x10010000)


@pytest.mark.parametrize(
    ("owner", "counts"),
    [
        ("PGTABLE", False),
        ("NODE_DATA", False),
        ("MEMNODEMAP", False),
        ("BOOTMAP", False),
        ("NEW RAMDISK", False),
        ("MEMMAP", False),
        ("USEMAP", False),
        ("CRASH KERNEL", False),
        ("SMP config", True),
        ("ACPI WAKEUP", True),
    ],
)
def test_early_reservations_that_later_code_has_made_do_not_count(tmp_path, owner, counts):
    line = f"  #5 [0010000000 - 0010001000]   {owner} ==> [0010000000 - 0010001000]"
    machine = load(boot(tmp_path, *FIRMWARE, line))
    assert RangeSet(machine.reserved).overlaps(0x10000000, 0x10001000) is counts


def test_the_first_initrd_that_is_one_counts(tmp_path):
    lines = [f"RAMDISK: [mem {low:#x}-{high:#x}]" for low, high in (
        (0x10000000, 0xFFFFFFF), (0x11000000, 0x11FFFFFF), (0x12000000, 0x12FFFFFF)
    )]  # fmt: skip
    assert load(boot(tmp_path, *FIRMWARE, *lines)).initrd == (0x11000000, 0x12000000)


@pytest.mark.parametrize(
    ("line", "nx"),
    [
        ("NX (Execute Disable) protection: active", True),
        ("NX (Execute Disable) protection: disabled", False),
        ("NX (Execute Disable) protection: approximated by x86 segment limits", False),
        ("", True),
    ],
)
def test_no_execute_is_what_the_kernel_says(tmp_path, line, nx):
    assert load(boot(tmp_path, *FIRMWARE, line)).features.nx is nx


def test_each_kind_of_map_replaces_the_one_before(tmp_path):
    entry = "{}: [mem 0x0000000000100000-{:#018x}] usable".format
    lines = [entry("user", 0x17FFFFFF), entry("modified", 0x16FFFFFF), entry("user", 0x15FFFFFF)]
    for count, end in enumerate((0x20000000, 0x18000000, 0x17000000, 0x16000000)):
        machine = load(boot(tmp_path, *FIRMWARE, *lines[:count]))
        assert machine.memory_map.ram().end == end


@pytest.mark.parametrize(
    ("arrangement", "mode"),
    [
        (("c0100000->c0480734", "c0000000->c1800000"), I386_PAE),
        (("c0100000->ffffffff", "c0000000->ffffffff"), I386_PAE),
        (("ffffffff81000000->ffffffff82e2c000", "ffffffff80000000->ffffffff83000000"), X86_64),
        (("0000000001000000->0000000100000000", "0000000000000000->0000000100000000"), X86_64),
    ],
)
def test_a_dom0_is_as_wide_as_its_addresses(tmp_path, arrangement, mode):
    kernel, total = arrangement
    lines = (
        "(XEN) VIRTUAL MEMORY ARRANGEMENT:",
        f"(XEN)  Loaded kernel: {kernel}",
        f"(XEN)  TOTAL:         {total}",
        *FIRMWARE,
    )
    assert load(boot(tmp_path, *lines)).mode is mode


@pytest.mark.parametrize(
    ("lines", "mode"),
    [
        (["0MB HIGHMEM available.", " 0000000000 - 0000400000 page 2M"], I386),
        (["0MB HIGHMEM available.", " 0000000000 - 0000600000 page 2M"], I386_PAE),
        (["0MB HIGHMEM available.", " 0000200000 - 0000800000 page 2M"], I386_PAE),
        (["0MB HIGHMEM available.", " 0000000000 - 0000200000 page 4k"], I386),
    ],
)
def test_large_pages_of_4_mib_are_those_without_pae(tmp_path, lines, mode):
    """The kernel prints 2M for both; with PAE some edge is no multiple of 4 MiB."""
    assert load(boot(tmp_path, *FIRMWARE, *lines)).mode is mode


@pytest.mark.parametrize(
    "before",
    [
        "init_memory_mapping: [mem 0x00000000-0x1fffffff]",
        "last_pfn = 0x20000 max_arch_pfn = 0x400000000",
        "Zone ranges:",
        "Memory: 500000K/524284K available",
    ],
)
def test_what_comes_before_the_first_map_begins_no_boot_of_its_own(tmp_path, before):
    path = boot(tmp_path, before, *FIRMWARE, before)
    assert read_boot_log(path).boot == 1
    with pytest.raises(InputError, match="there is no boot 2: the log holds 1"):
        load(path, boot=2)
