"""From the lines of a file to those that matter, whole again, and to the boots they tell of."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from typing import Any

import pytest

from paravirt_mm.errors import InputError
from paravirt_mm.machine.e820 import E820Type
from paravirt_mm.sources.bootlog import read
from paravirt_mm.sources.bootlog.facts import BootLog, DomainKernel, LastPfn
from paravirt_mm.sources.bootlog.printed import PrintedMap
from paravirt_mm.sources.bootlog.read import scan_boot_log
from paravirt_mm.sources.content import content_of
from tests.sources.printed import HIGH, LAST_PFN, LOW, UPDATE

RANGE_OF_LOW = LOW.removesuffix(" usable")
OLD = "BIOS-e820: 0000000000100000 - 0000000040000000 (ACPI NVS)"
RANGE = "init_memory_mapping: [mem 0x00100000-0x1fffffff]"
SIZES = "Memory: 500K/600K available (10K kernel code, 20K rwdata, 30K init)"
XEN = "(XEN) Xen version 4.17.0"
MORE = "usb 1-1: new device"


def messages(*lines: str) -> list[tuple[int, str]]:
    content = content_of(io.BytesIO("".join(f"{line}\n" for line in lines).encode()), "here")
    return list(read._messages(content, "here", None))


WHOLE: list[tuple[Sequence[str], list[tuple[int, str]]]] = [
    ([LOW], [(1, LOW)]),
    ([MORE, LOW, MORE, MORE, MORE, HIGH, LAST_PFN],
     [(2, LOW), (3, ""), (4, ""), (6, HIGH), (7, LAST_PFN)]),
    (["[    0.000000]  BIOS-e820:   [mem 0x0-0xfff]   usable  "],
     [(1, "BIOS-e820: [mem 0x0-0xfff] usable")]),
    ([f"[    0.000000] {LOW}[    0.000000] {HIGH}"], [(1, LOW), (1, HIGH)]),
    ([f"[    0.000000] {LOW}[    0.000000] [    0.000000] {HIGH}"], [(1, LOW), (1, HIGH)]),
    # The rest of a map entry.
    ([LOW[:30], LOW[30:], HIGH], [(1, LOW), (3, HIGH)]),
    *(([LOW[:cut], LOW[cut:]], [(1, LOW)]) for cut in (17, 30, 40)),
    ([RANGE_OF_LOW, "usable"], [(1, f"{RANGE_OF_LOW}usable")]),
    ([RANGE_OF_LOW, MORE], [(1, RANGE_OF_LOW)]),
    ([RANGE_OF_LOW, LAST_PFN], [(1, RANGE_OF_LOW), (2, LAST_PFN)]),
    ([RANGE_OF_LOW], [(1, RANGE_OF_LOW)]),
    ([OLD[:-4], OLD[-4:]], [(1, OLD)]),
    # The type that memory becomes.
    ([UPDATE[:-8], "reserved"], [(1, UPDATE)]),
    ([f"{UPDATE[:-8]}(", "reserved)"], [(1, f"{UPDATE[:-8]}( reserved)")]),
    ([UPDATE[:-8], LOW], [(1, UPDATE[:-9]), (2, LOW)]),
    ([UPDATE[:-8], MORE], [(1, UPDATE[:-9])]),
    ([UPDATE[:-8]], [(1, UPDATE[:-9])]),
    # The rest of a range.
    (["init_memory_mapping: [mem", "0x00100000-0x1fffffff]"], [(1, RANGE)]),
    (["init_memory_mapping:", "[mem 0x00100000-0x1fffffff]"],
     [(1, "init_memory_mapping:"), (2, "[mem 0x00100000-0x1fffffff]")]),
    (["init_memory_mapping: [mem 0x00100000-", "0x1fffffff]"], [(1, RANGE)]),
    (["init_memory_mapping: [mem 0x00100000", "-0x1fffffff]"], [(1, RANGE)]),
    (["init_memory_mapping: [mem 0x00100000-", LAST_PFN], [(2, LAST_PFN)]),
    (["init_memory_mapping: [mem 0x00100000-"], []),
    (["init_memory_mapping: [mem 0x00100000-", MORE, LOW], [(3, LOW)]),
    # The rest of the kernel's sizes.
    ([SIZES[:32], SIZES[33:]], [(1, SIZES)]),
    ([SIZES[:30], SIZES[30:]], [(1, SIZES)]),
    ([SIZES[:27], SIZES[28:]], [(1, SIZES)]),
    ([SIZES[:45], SIZES[45:]], [(1, SIZES)]),
    ([SIZES[:64], SIZES[64:]], [(1, SIZES)]),
    ([SIZES[:30], SIZES[30:45], SIZES[45:], LOW], [(1, SIZES), (4, LOW)]),
    ([SIZES[:30], SIZES[30:45], MORE], [(1, SIZES[:45])]),
    ([SIZES[:34], MORE], [(1, SIZES[:34])]),
    ([SIZES[:34], LAST_PFN], [(1, SIZES[:34]), (2, LAST_PFN)]),
    ([SIZES[:34]], [(1, SIZES[:34])]),
    # A hypervisor's lines are whole.
    (["host (XEN)  BIOS-e820: [mem 0x  ", MORE], [(1, "(XEN)  BIOS-e820: [mem 0x"), (2, "")]),
    ([f"{XEN} {LOW}[    0.000000] {HIGH}"], [(1, f"{XEN} {LOW}[    0.000000] {HIGH}")]),
    (["BIOS-e820 (XEN)"], [(1, "(XEN)")]),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "wanted"), WHOLE)
def test_lines_that_matter_are_put_together(
    lines: Sequence[str], wanted: list[tuple[int, str]]
) -> None:
    assert messages(*lines) == wanted


def test_a_line_of_sizes_that_never_ends_is_put_together_up_to_a_bound() -> None:
    """Else each line of a log would cost all that is joined so far."""
    found = messages(SIZES[:30], *["e820 1"] * 3000)
    assert 512 <= max(len(text) for _, text in found) < 520
    assert len(found) > 2900
    begin = time.process_time()
    assert read._SIZES_REST.match("1" * 20_000 + "!") is None
    assert time.process_time() - begin < 1


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([LOW[:30], MORE], f"here:1: memory map line cut short: '{LOW[:30]}'"),
        ([LOW[:38], f"{LOW[38:-6]}strange"], f"here:1: memory map line cut short: '{LOW[:38]}'"),
        ([MORE, LOW[:30]], f"here:2: memory map line cut short: '{LOW[:30]}'"),
        ([f"BIOS-e820: [mem {'z' * 90}]"],
         f"here:1: memory map line not understood: 'BIOS-e820: [mem {'z' * 63}…' (addresses"),
        ([f"BIOS-e820: [mem {'0' * 90}"], f"cut short: 'BIOS-e820: [mem {'0' * 63}…'"),
        *(([f"{label}: {start}", MORE], f"here:1: memory map line cut short: '{label}: {start}'")
          for label in ("user", "modified", "Xen", "BIOS-88")
          for start in ("[mem 0x000", "0000000000100000 - 00", "0000000000100000", "00000000-")),
    ],
)  # fmt: skip
def test_half_an_entry_of_a_map_is_refused(lines: Sequence[str], words: str) -> None:
    with pytest.raises(InputError) as caught:
        messages(*lines)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "Bootfile predefined by user: 14150335/tftp-deploy-vak2yxfg/kernel/bzImage",
        "TFTP server IP predefined by user: 192.168.201.1",
        "modified: 2021-notes-about-face",
        "user: 1000",
    ],
)
def test_words_of_others_are_no_half_an_entry(line: str) -> None:
    assert messages(line, LOW, HIGH)[-2:] == [(2, LOW), (3, HIGH)]
    assert messages(LOW, HIGH, line)[:2] == [(1, LOW), (2, HIGH)]


# -- boots -----------------------------------------------------------------------------------------


def scan(*lines: str, boot: int | None = None) -> BootLog:
    content = content_of(io.BytesIO("".join(f"{line}\n" for line in lines).encode()), "here")
    return scan_boot_log(content, "here", "m", boot)


def told(log: BootLog) -> tuple[str, int, str, bool, int]:
    return log.source, log.boot, log.platform, log.machine is not None, log.last_line


LINUX = "Linux version 6.1.{}".format
BUILDER = ("(XEN) VIRTUAL MEMORY ARRANGEMENT:", "(XEN)  Loaded kernel: ffffff->fffffff")
HOST = ("(XEN) EFI RAM map:", "(XEN)  [0000000000000000, 000000000fffffff] (usable)")
GUEST = (LOW.replace("BIOS-e820", "Xen"), HIGH.replace("BIOS-e820", "Xen"))
ONE = [LINUX(0), HIGH, LAST_PFN]


@pytest.mark.parametrize(
    ("lines", "boot", "wanted"),
    [
        (ONE, None, ("here", 1, "native", True, 3)),
        (ONE, 1, ("here", 1, "native", True, 3)),
        ([*ONE, *ONE], None, ("here (boot 1)", 1, "native", True, 3)),
        ([*ONE, *ONE], 1, ("here (boot 1)", 1, "native", True, 3)),
        ([*ONE, *ONE], 2, ("here (boot 2)", 2, "native", True, 6)),
        ([*ONE, *ONE, *ONE], 2, ("here (boot 2)", 2, "native", True, 6)),
        ([*ONE, *ONE, *ONE], 3, ("here (boot 3)", 3, "native", True, 9)),
        # Without a sign that the kernel went on, the next boot counts; or the first, of none.
        ([LINUX(0), HIGH, *ONE], None, ("here (boot 2)", 2, "native", True, 5)),
        ([LINUX(1), *ONE], None, ("here (boot 2)", 2, "native", True, 4)),
        ([LINUX(0), *ONE], None, ("here", 1, "native", True, 4)),
        ([LINUX(0), HIGH, LINUX(1), HIGH], None, ("here (boot 1)", 1, "native", True, 2)),
        ([LINUX(0), HIGH, LINUX(1)], None, ("here (boot 1)", 1, "native", True, 2)),
        ([LINUX(0), HIGH, LINUX(1), HIGH, LINUX(2)], None, ("here (boot 1)", 1, "native", True, 2)),
        ([LINUX(0), HIGH, LINUX(1)], 2, ("here (boot 2)", 2, "native", False, 3)),
        ([LINUX(0), LINUX(1)], None, ("here (boot 2)", 2, "native", False, 2)),
        ([*HOST, XEN, LINUX(0)], None, ("here", 1, "hypervisor", True, 4)),
        ([*HOST, LINUX(0), LINUX(1)], None, ("here (boot 1)", 1, "hypervisor", True, 3)),
        ([XEN, *BUILDER], None, ("here", 1, "hypervisor", False, 3)),
        ([*HOST], None, ("here", 1, "hypervisor", True, 2)),
        ([*HOST, XEN, HIGH], None, ("here", 1, "native", True, 4)),
        ([*HOST, *GUEST], None, ("here", 1, "xen-pv-guest", True, 4)),
        ([*GUEST, LOW.replace("BIOS-e820", "user")], None, ("here", 1, "xen-pv-guest", True, 3)),
    ],
)
def test_which_boot_counts(
    lines: Sequence[str], boot: int | None, wanted: tuple[str, int, str, bool, int]
) -> None:
    log = scan(*lines, boot=boot)
    assert told(log) == wanted
    assert log.machine is None or log.machine.provenance.source == wanted[0]


@pytest.mark.parametrize(
    ("lines", "boot", "words"),
    [
        (ONE, 0, "here: boots are counted from 1, not 0"),
        (ONE, 2, "here: there is no boot 2: the log holds 1"),
        ([*ONE, *ONE], 3, "here: there is no boot 3: the log holds 2"),
        ([MORE], None, "here: not a boot log"),
        ([LINUX(0), HIGH, "Linux version 2.4.20", HIGH, LAST_PFN], None, "here:3: Linux 2.4.20"),
    ],
)
def test_boots_that_there_are_not(lines: Sequence[str], boot: int | None, words: str) -> None:
    with pytest.raises(InputError) as caught:
        scan(*lines, boot=boot)
    assert str(caught.value).startswith(words)


ENTRY = "Xen: [mem {0:#x}00000-{0:#x}fffff] {1}".format


@pytest.mark.parametrize(
    ("lines", "guest"),
    [
        ([ENTRY(n, "usable") for n in range(1, 7)], True),
        ([ENTRY(n, "usable") for n in range(1, 8)], False),
        ([ENTRY(1, "usable"), ENTRY(2, "reserved")], True),
        ([ENTRY(1, "usable"), ENTRY(2, "ACPI data")], False),
        ([ENTRY(1, "usable"), ENTRY(2, "ACPI data"), "ACPI in unprivileged domain disabled"], True),
        ([ENTRY(1, "usable"), ENTRY(2, "usable").replace("Xen", "user")], True),
        ([ENTRY(1, "usable"), ENTRY(2, "ACPI data").replace("Xen", "user")], True),
        (
            [ENTRY(1, "usable"), *(ENTRY(n, "usable").replace("Xen", "user") for n in range(8))],
            True,
        ),
    ],
)
def test_a_guest_gets_a_map_that_linux_makes_up(lines: Sequence[str], guest: bool) -> None:
    """RAM with what the toolstack has put there; dom0 gets the host's, ACPI tables and all."""
    log = scan(*lines)
    assert log.platform == ("xen-pv-guest" if guest else "xen-pv")
    assert log.machine is not None
    assert (log.machine.host_map is not None) is guest


def test_a_guests_memory_is_built_without_holes() -> None:
    machine = scan(*GUEST).machine
    assert machine is not None
    assert machine.host_map is not None
    assert [(e.start, e.end, e.type) for e in machine.host_map] == [(0, 0x20000000, E820Type.RAM)]
    dom0 = scan(*HOST, ENTRY(1, "usable"), ENTRY(2, "ACPI data"), HIGH)
    assert dom0.machine is not None
    assert dom0.machine.host_map == dom0.host_map


def test_what_a_log_says_besides_its_machine() -> None:
    kernel = "(XEN)  Dom0 kernel: 64-bit, PAE, lsb, paddr 0x1000000 -> 0x2000000"
    last = f"[    0.000000] {LAST_PFN}"
    log = scan(*HOST, last, kernel, LINUX(7), "Command line: quiet", LOW, HIGH, UPDATE)
    assert (log.release, log.command_line) == ("6.1.7", "quiet")
    assert [type(fact) for fact in log.facts] == [LastPfn, DomainKernel], "in the order of lines"
    assert log.firmware_map is not None
    assert [(e.start, e.end) for e in log.firmware_map] == [(0, 0x9FC00), (1 << 20, 1 << 29)]
    assert log.host_map is not None
    assert (log.made_up, log.kernel_listed, log.user_map_from, log.mixed, log.missing) == (
        (), False, 0, False, None,
    )  # fmt: skip
    text = "#1 [0001000000 - 0001800000] TEXT DATA BSS ==> [0001000000 - 0001800000]"
    assert scan(LOW, HIGH, text).kernel_listed
    user = scan(LOW, HIGH, LAST_PFN, HIGH.replace("BIOS-e820", "user"))
    assert user.user_map_from == 4
    assert user.firmware_map == log.firmware_map
    assert scan(LINUX(0)).firmware_map is None
    assert scan(HIGH.replace("0x00000000001", "0x00000000101")).made_up == ((1 << 20, 0x10100000),)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([XEN, *BUILDER], "a hypervisor log without memory map"),
        ([LINUX(0)], "no memory map: expected"),
    ],
)
def test_what_is_missing(lines: Sequence[str], words: str) -> None:
    missing = scan(*lines).missing
    assert missing is not None
    assert missing.startswith(words)


def test_of_a_log_that_was_cut_each_boot_says_so() -> None:
    word = "[    0.000000] " + "word " * 11 + "end"
    cut = [word, "and the rest of it"] * 4
    lines = [*(f"[    0.000000] {line}" for line in ONE), *cut]
    for boot in (1, 2):
        machine = scan(*lines, *lines, boot=boot).machine
        assert machine is not None
        assert machine.provenance.assumed[0].startswith("lines that were cut (none is longer than")


def test_maps_of_no_entry_are_no_guests() -> None:
    assert not read._is_a_guests([])
    assert read._is_a_guests([PrintedMap("firmware", 1, [(0, 1, E820Type.RAM)])])


def test_boots_of_a_hypervisor() -> None:
    def release(boot: int) -> Any:
        return scan(XEN, *ONE, XEN.replace("17", "18"), *ONE, boot=boot).of_kind(LastPfn)[0].line

    assert [release(1), release(2)] == [4, 8]
