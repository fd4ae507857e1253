"""What each line that Linux prints about its memory says, and where reading a boot stops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import pytest

from paravirt_mm.errors import InputError
from paravirt_mm.machine.e820 import E820Type
from paravirt_mm.sources.bootlog import linux, reconstruct, xen
from paravirt_mm.sources.bootlog.facts import (
    BrkTable,
    CountedRam,
    LastPfn,
    MappedRange,
    PageRange,
    Reservation,
    TableBlock,
    WritableRange,
)
from paravirt_mm.sources.bootlog.linux import PrintedBoot
from paravirt_mm.sources.bootlog.printed import MapChange, Printed, PrintedMap
from paravirt_mm.sources.bootlog.reconstruct import reconstruct as machine_of
from tests.sources.printed import HIGH, LAST_PFN, LOW, UPDATE, fed

RAM, RESERVED = E820Type.RAM, E820Type.RESERVED
MAPPING = "init_memory_mapping: [mem 0x00000000-0x000fffff]"


COUNTED = {"last_line", "order", "entries", "changes", "ends_in_map"}
"""What each line may change, or each entry of a map does."""


def said(*lines: str) -> dict[str, Any]:
    """What is known after the last line and was not before it; of lists the new part."""
    before, after = fed(*lines[:-1]), fed(*lines)
    found: dict[str, Any] = {}
    for field in attrs.fields(Printed):
        was, now = getattr(before, field.name), getattr(after, field.name)
        if was != now and field.name not in COUNTED:
            found[field.name] = now[len(was) :] if isinstance(now, list) else now
    return found


def fact(kind: Any, text: str, *fields: object, line: int = 1) -> dict[str, Any]:
    return {"facts": [kind(line, text, *fields)], "progressed": True}


def mapped(kind: Any, line: str, *fields: object) -> dict[str, Any]:
    return {"mapping": True, **fact(kind, line, *fields)}


LINUX = "Linux version 6.1.0"
XEN = "(XEN) Xen version 4.17.0"
NOT_RAM = ".text .data .bss are not marked as E820_RAM!"
SPAN = (0x10000000, 0x10010000)
REMOVE = "e820: remove [mem 0x10000000-0x{}]".format
RESERVED_LIST = "reserved[0x2] [0x00001000-0x0000ffff], 0xf000 bytes"
CALLER = "alloc_low_pages+0x51/0x150"
ALLOC = f"memblock_phys_alloc_range: 4096 bytes align=0x1000 {CALLER}"
RESERVE = f"memblock_reserve: [0x00001000-0x00001fff] {CALLER}"
FREE = "memblock_free: [0x00001000-0x00001fff] a+0x1/0x2"
BRK = "BRK [0x02145000, 0x02145fff] PGTABLE"
INITRD = "RAMDISK: [mem 0x1e000000-0x1effffff]"
EARLY = "#5 [0010000000 - 0010001000] {} ==> [0010000000 - 0010001000]".format
SAYS: list[tuple[str, dict[str, Any]]] = [
    (LAST_PFN, {"last_pfn_order": 1, **fact(LastPfn, LAST_PFN, 0x20000, 0x400000000)}),
    *(
        (line, mapped(MappedRange, line, span))
        for line, span in (
            (MAPPING, (0, 0x100000)),
            ("init_memory_mapping: 0000000000100000-00000000379fe000", (0x100000, 0x379FE000)),
            ("init_memory_mapping", None),
        )
    ),
    *(
        (line, mapped(PageRange, line, *what))
        for line, what in (
            ("[mem 0x00100000-0x001fffff] page 4k", (0x100000, 0x200000, "4k")),
            ("0000400000 - 0010000000 page 2M", (0x400000, 0x10000000, "2M")),
        )
    ),
    *(
        (line, mapped(TableBlock, line, *what))
        for line, what in (
            (
                "kernel direct mapping tables up to 0xbaffffff @ [mem 0x1fffc000-0x1fffffff]",
                (0xBB000000, 0x1FFFC000, 0x20000000),
            ),
            (
                "kernel direct mapping tables up to bb000000 @ 8000-b000",
                (0xBB000000, 0x8000, 0xB000),
            ),
        )
    ),
    (BRK, mapped(BrkTable, BRK, 0x2145000, 0x2146000)),
    *(
        (line, {"reserved": [(0x1000, 0x10000)], **fact(Reservation, line, 0x1000, 0x10000, owner)})
        for line, owner in (
            ("memblock_reserve: [0x00001000-0x0000ffff] setup_arch+0x1/0x2", "setup_arch+0x1/0x2"),
            ("memblock_reserve: [0x00001000-0x0000ffff] flags 0x0 a+0x1/0x2", "a+0x1/0x2"),
            ("memblock_reserve: [0x00001000-0x0000ffff]", ""),
            (RESERVED_LIST, "reserved list"),
        )
    ),
    (RESERVE, mapped(Reservation, RESERVE, 0x1000, 0x2000, CALLER)),
    (ALLOC, {"mapping": True}),
    ("memblock_phys_alloc_range: 4096 bytes align=0x1000 a_setup+0x1/0x2", {}),
    (FREE, {"freed": [(0, (0x1000, 0x2000))]}),
    *(
        (EARLY(owner), {
            **fact(Reservation, EARLY(owner), 0x10000000, 0x10001000, owner), field: value,
        })
        for owner, field, value in (
            ("TEXT DATA BSS", "kernel_image", (0x10000000, 0x10001000)),
            ("RAMDISK", "initrd", (0x10000000, 0x10001000)),
            ("SMP config", "reserved", [(0x10000000, 0x10001000)]),
        )
    ),
    (INITRD, {"initrd": (0x1E000000, 0x1F000000), "progressed": True, "mapping": True}),
    ("RAMDISK: 1e000000 - 1e123456",
     {"initrd": (0x1E000000, 0x1E123456), "progressed": True, "mapping": True}),
    ("RAMDISK: [mem 0x00000000-0xffffffffffffffff]",
     {"initrd": (0, 1 << 64), "progressed": True, "mapping": True}),
    ("RAMDISK: 1e000000 - 1e000000", {"progressed": True, "mapping": True}),
    ("Base memory trampoline at [c009b000] 9b000 size 16385",
     {"trampoline": (0x9B000, 0xA0000), "trampolines": 1, "virtual_digits": 8}),
    ("Base memory trampoline at [ffff880000096000] 96000 size 24576",
     {"trampoline": (0x96000, 0x9C000), "trampolines": 1, "virtual_digits": 16}),
    ("Base memory trampoline at [(____ptrval____)] 96000 size 4096",
     {"trampoline": (0x96000, 0x97000), "trampolines": 1}),
    ("found SMP MP-table at [c00f6bb0] f6bb0", {"virtual_digits": 8}),
    ("found SMP MP-table at [mem 0x000f6bb0-0x000f6bbf] mapped at [ffff8800000f6bb0]",
     {"virtual_digits": 16}),
    ("found SMP MP-table at [000000f6bb0]", {}),
    ("initial memory mapped: [mem 0x00000000-0x1fffffff]", {"boot_mapped": 0x20000000}),
    ("initial memory mapped : 0 - 01800000", {"boot_mapped": 0x1800000}),
    ("low ram: 0 - 379fe000", {"low_ram_end": 0x379FE000}),
    ("512MB LOWMEM available.", {"lowmem_lines": True}),
    ("NX (Execute Disable) protection: active", {"nx": True}),
    ("NX (Execute Disable) protection: disabled", {"nx": False}),
    ("NX (Execute Disable) protection cannot be enabled: non-PAE kernel!",
     {"nx": False, "non_pae": True}),
    ("Using GB pages for direct mapping", {"gbpages": True, "mapping": True}),
    *(
        (f"Memory: {text}",
         {"kernel_bytes": 60 << 10, "progressed": True, "set_up": True} | counted)
        for text, counted in (
            ("500K/600K available (10K kernel code, 20K rwdata, 99K reserved, 30K init)",
             {"counted_ram": CountedRam(600 << 10)}),  # all of it, since 3.11
            ("500k/600k available (60k kernel code, 99k absent, 9k reserved)",
             {"counted_ram": CountedRam(501 << 10)}),  # of all up to max_pfn
            ("500k/600k available (60k kernel code, 601k absent)", {"counted_ram": CountedRam(0)}),
            ("500k/600k available (60k kernel code, 99k reserved, 0k highmem)",
             {"counted_ram": CountedRam(599 << 10, 2 << 20)}),
            ("500k/600k available (60k kernel code, 99k reserved)", {}),
            ("500k/600k available (60k kernel code, 0k highmem)", {}),
        )
    ),
    ("Linux version 6.1.0-13-amd64 (a@b)", {"release": "6.1.0-13-amd64"}),
    ("Kernel command line: quiet splash", {"command_line": "quiet splash", "set_up": True}),
    ("Command line: quiet", {"command_line": "quiet"}),
    ("ACPI in unprivileged domain disabled", {"unprivileged": True}),
    ("Booting paravirtualized kernel on Xen", {"on_xen": True}),
    ("Booting paravirtualized kernel on Xen PV", {"on_xen": True}),
    ("Booting paravirtualized kernel on Xen HVM", {"fully_virtual": True}),
    ("Booting paravirtualized kernel on Xen PVH", {"fully_virtual": True}),
    ("Hypervisor detected: Xen PV", {"on_xen": True}),
    ("Hypervisor detected: Xen HVM", {"fully_virtual": True}),
    ("Hypervisor detected: Xen", {}),
    ("Xen version: 4.17.0 (preserve-AD)", {"on_xen": True}),
    ("xen: setting RW the range 1fe5b000 - 1fe5c000", {
        "on_xen": True,
        **mapped(WritableRange, "xen: setting RW the range 1fe5b000 - 1fe5c000",
                 0x1FE5B000, 0x1FE5C000),
    }),
    (".text .data .bss are not marked as E820_RAM!", {"kernel_not_ram": True}),
    ("reserve setup_data: [mem 0x0000000000000000-0x000000000009ffff] usable", {}),
    ("usb 1-1: new device", {}),
    (LOW, {"maps": [PrintedMap("firmware", 1, [(0, 0x9FC00, RAM)])]}),
    ("BIOS-e820: 0000000000100000 - 0000000040000000 (ACPI data)",
     {"maps": [PrintedMap("firmware", 1, [(0x100000, 0x40000000, E820Type.ACPI)])]}),
    *(
        (f"{label}: [mem 0x0-0xfff] reserved",
         {"maps": [PrintedMap(kind, 1, [(0, 0x1000, RESERVED)])]} | more)
        for label, kind, more in (
            ("BIOS-e801", "firmware", {}), ("BIOS-88", "firmware", {}), ("user", "user", {}),
            ("modified", "modified", {}), ("Xen", "firmware", {"on_xen": True}),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("line", "wanted"), SAYS, ids=[line[:40] for line, _ in SAYS])
def test_a_line_says_this_and_nothing_else(line: str, wanted: dict[str, Any]) -> None:
    assert said(line) == wanted


AFTER: list[tuple[Sequence[str], dict[str, Any]]] = [
    ([LOW, HIGH], {"maps": []}),  # the map that there is has one entry more
    ([LOW, UPDATE], {"maps": []}),  # or one change
    ([UPDATE], {}),  # of no map
    ([LOW, MAPPING, UPDATE], {}),  # too late
    ([LOW, UPDATE.replace("reserved", "usable")], {"reserved": [(0x10000000, 0x10010000)]}),
    ([LAST_PFN, LOW], {"maps": [PrintedMap("firmware", 2, [(0, 0x9FC00, RAM)])],
                       "progressed": False}),
    ([LOW, "user: [mem 0x0-0xfff] usable", "user: [mem 0x2000-0x2fff] usable"], {"maps": []}),
    ([LOW, LAST_PFN, "user: [mem 0x0-0xfff] usable"],
     {"maps": [PrintedMap("user", 3, [(0, 0x1000, RAM)])], "last_pfn_order": None,
      "user_map_from": 3}),
    ([LOW, LAST_PFN, "modified: [mem 0x0-0xfff] usable"],
     {"maps": [PrintedMap("modified", 3, [(0, 0x1000, RAM)])]}),
    ([LOW, INITRD, "modified: [mem 0x0-0xfff] usable"],
     {"maps": [PrintedMap("modified", 3, [(0, 0x1000, RAM)], is_late=True)]}),
    ([LOW, "user: [mem 0x0-0xfff] usable"], {"maps": [PrintedMap("user", 2, [(0, 0x1000, RAM)])]}),
    ([LOW, NOT_RAM, REMOVE("1000ffff")],
     {"maps": [], "kernel_image": SPAN, "kernel_not_ram": False}),
    ([MAPPING, RESERVED_LIST],
     {"facts": [Reservation(2, RESERVED_LIST, 0x1000, 0x10000, "reserved list")]}),
    ([LINUX, EARLY("PGTABLE")],
     fact(Reservation, EARLY("PGTABLE"), 1 << 28, (1 << 28) + 0x1000, "PGTABLE", line=2)),
    ([MAPPING, LAST_PFN], {"facts": [LastPfn(2, LAST_PFN, 0x20000, 0x400000000)]}),
    ([MAPPING, FREE], {}),
    ([INITRD, INITRD.replace("1e", "1c")], {}),
    ([INITRD, EARLY("RAMDISK")],
     {"facts": [Reservation(2, EARLY("RAMDISK"), 1 << 28, (1 << 28) + 0x1000, "RAMDISK")]}),
    (["Command line: quiet", "Kernel command line: other"], {"set_up": True}),
    (["NX (Execute Disable) protection cannot be enabled: non-PAE kernel!",
      "NX (Execute Disable) protection: active"], {"nx": True}),
    (["Base memory trampoline at [c009b000] 9b000 size 4096",
      "Base memory trampoline at [c009a000] 9a000 size 4096"],
     {"trampoline": (0x9A000, 0x9B000), "trampolines": 2}),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "wanted"), AFTER)
def test_a_line_after_others_says_this(lines: Sequence[str], wanted: dict[str, Any]) -> None:
    assert said(*lines) == wanted


@pytest.mark.parametrize(
    "line", [MAPPING, "[mem 0x0-0xfff] page 4k", "BRK [0x01c00000, 0x01c00fff] PGTABLE",
             "kernel direct mapping tables up to 20000000 @ 8000-15000"],
)  # fmt: skip
def test_once_the_direct_map_is_there_others_are_not_its(line: str) -> None:
    """EFI's runtime services are mapped later (efi_ioremap, up to 3.x), and memory plugged in."""
    set_up = "Memory: 1k/2k available (3k kernel code)"
    assert "facts" in said(line)
    for before in (set_up, "Kernel command line: quiet"):
        assert said(before, line) == {}
    assert "facts" in said("Command line: quiet", line)


CHANGES: list[tuple[Sequence[str], list[MapChange]]] = [
    ([LOW, UPDATE], [MapChange(2, SPAN, RAM, RESERVED)]),
    ([LOW, "user: [mem 0x0-0xfff] usable", UPDATE], [MapChange(3, SPAN, RAM, RESERVED)]),
    ([LOW, "user: [mem 0x0-0xfff] usable", NOT_RAM, REMOVE("1000ffff")],
     [MapChange(4, SPAN, None, RAM, RAM)]),
    ([LOW, REMOVE("1000ffff")], [MapChange(2, SPAN, None, None)]),
    ([LOW, "e820: remove [mem 0x10000000-0x1000ffff] usable"], [MapChange(2, SPAN, RAM, None)]),
    ([LOW, "e820 remove range: 10000000 - 10010000 (usable)"], [MapChange(2, SPAN, RAM, None)]),
    ([LOW, "e820: update [mem 0x10000000-0x1000ffff] reserved ==> usable"],
     [MapChange(2, SPAN, RESERVED, RAM)]),
    ([LOW, "e820: update [mem 0x10000000-0x0fffffff] usable ==> reserved"],
     [MapChange(2, (1 << 28, 1 << 28), RAM, RESERVED)]),
    ([LOW, NOT_RAM, REMOVE("1000ffff")],
     [MapChange(3, SPAN, None, RAM, RAM)]),
    ([LOW, NOT_RAM, REMOVE("10000000")],
     [MapChange(3, (1 << 28, (1 << 28) + 1), None, RAM, RAM)]),
    ([LOW, NOT_RAM, UPDATE.replace("usable ", "")], [MapChange(3, SPAN, None, RESERVED)]),
    ([LOW, NOT_RAM, "e820: remove [mem 0x10000000-0x1000ffff] usable"],
     [MapChange(3, SPAN, RAM, None)]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "ends"),
    [([], False), ([LOW], True), ([LOW, HIGH], True), ([LOW, LOW], True), ([LOW, UPDATE], False),
     ([LOW, ""], False), ([LOW, XEN], False), ([LAST_PFN], False), ([LAST_PFN, LOW], True)],
)  # fmt: skip
def test_whether_a_log_ends_in_its_map(lines: Sequence[str], ends: bool) -> None:
    assert fed(*lines).ends_in_map is ends


@pytest.mark.parametrize(("lines", "changes"), CHANGES)
def test_changes_of_a_map(lines: Sequence[str], changes: list[MapChange]) -> None:
    *before, last = fed(*lines).maps
    assert last.changes == changes
    assert not any(shown.changes for shown in before)


def test_a_line_that_stands_twice_counts_once_where_entries_do() -> None:
    once = fed(LOW, HIGH, EARLY("SMP config"))
    twice = fed(*(line for line in (LOW, HIGH, EARLY("SMP config")) for _ in range(2)))
    assert twice.maps == [attrs.evolve(once.maps[0])]
    assert (twice.reserved, len(twice.facts)) == (once.reserved, 1)
    assert twice.assumed == ["every line stands twice in the log: each counts once"]
    assert len(fed(EARLY("SMP config"), EARLY("SMP config")).facts) == 2
    before = fed(*[LAST_PFN] * 2, *["(XEN) Dom0 kernel: 64-bit, paddr 0x1 -> 0x2"] * 2, *[LOW] * 2)
    assert (len(before.facts), len(before.xen.facts)) == (1, 1)
    places = ("(XEN) VIRTUAL MEMORY ARRANGEMENT:", "(XEN)  Start info: 00ffffff->01ffffff")
    ranges = fed(*(line for line in (XEN, *places) for _ in range(2)))
    assert len(ranges.xen.facts) == 2
    assert [entry[:2] for entry in fed(LOW, HIGH, LOW).maps[0].entries] == [
        (0, 0x9FC00), (0x100000, 0x20000000), (0, 0x9FC00),
    ]  # fmt: skip


def owners(printed: PrintedBoot) -> list[str]:
    return [fact.owner for fact in printed.facts if isinstance(fact, Reservation)]


def test_who_has_reserved_memory() -> None:
    """Since 5.15 the line before names the caller, and the reservation memblock itself."""
    inner = "memblock_reserve: [0x00001000-0x00001fff] memblock_phys_alloc_range+0x1/0x2"
    assert owners(fed(ALLOC, inner, inner)) == [CALLER, "memblock_phys_alloc_range+0x1/0x2"]
    assert owners(fed(ALLOC, inner.replace("memblock_phys", "other")))[0].startswith("other")
    trial = "memblock_reserve: [0x00001000-0x00001fff] init_mem_mapping+0x1/0x2"
    assert not fed(trial).facts, "tried whether large pages fit, and given back"
    assert len(fed("memblock_reserve: [0x00001000-0x00001fff] init_memory+0x1/0x2").facts) == 1


# -- limits ----------------------------------------------------------------------------------------

SETUP_DATA = "e820: update [mem 0x10000000-0x1000ffff] usable ==> usable"
LIMITS: list[tuple[str, list[str], str]] = [
    ("MAX_FACTS", [BRK, MAPPING, BRK], "boot messages about memory"),
    ("MAX_FACTS", [LOW, *[SETUP_DATA] * 3], "boot messages about"),
    ("MAX_CHANGES", [LOW, *[UPDATE] * 3], "changes of the memory map"),
    ("MAX_CHANGES", [FREE, LOW, FREE, LOW, FREE], "pieces of memory given back"),
    ("MAX_MAPS", [LOW, "user: [mem 0x0-0xfff] usable", "modified: [mem 0x0-0xfff] usable"],
     "memory maps in one boot"),
    ("MAX_MAP_ENTRIES", [LOW, HIGH, LOW], "memory map entries"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "lines", "words"), LIMITS)
def test_so_many_and_no_more(
    name: str, lines: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linux, name, 2)
    fed(*lines[:-1])
    with pytest.raises(InputError, match=f"here:{len(lines)}: more than 2 {words}"):
        fed(*lines)


def test_so_many_entries_of_a_hypervisors_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xen, "MAX_MAP_ENTRIES", 2)
    lines = [
        "(XEN) EFI RAM map:",
        *(f"(XEN)  [{at:016x}, 000000000009ffff] (usable)" for at in range(3)),
    ]
    assert len(fed(*lines[:-1]).xen.entries) == 2
    with pytest.raises(InputError, match="here:4: more than 2 memory map entries"):
        fed(*lines)


def test_so_many_entries_times_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruct, "MAX_CHANGE_WORK", 4)
    machine_of(fed(LOW, HIGH, UPDATE, UPDATE), "m", "here")
    with pytest.raises(InputError, match="3 changes of a memory map with 2 entries"):
        machine_of(fed(LOW, HIGH, UPDATE, UPDATE, UPDATE), "m", "here")


def test_texts_of_a_log_are_cut() -> None:
    long = fed(
        f"Linux version {'v' * 90}", f"Command line: {'q' * 1200}", EARLY("O" * 61),
        f"memblock_reserve: [0x00001000-0x00001fff] {'a' * 90}+0x1/0x2",
        EARLY("P" * 50), BRK + "x" * 1200,
    )  # fmt: skip
    shown = [long.release or "", long.command_line]
    assert [(len(text), text[-1]) for text in shown] == [(80, "…"), (1000, "…")]
    assert [len(owner) for owner in owners(long)] == [61, 80, 50]
    unknown = fed(LOW, *(f"BIOS-e820: [mem {n:#x}000-{n:#x}fff] odd" for n in range(1, 40)))
    assert len(unknown.assumed) == 32, "of what is assumed line by line the first ones are told"
    with pytest.raises(InputError) as caught:
        fed(LOW, f"e820: update [mem {'x' * 100}")
    assert str(caught.value).endswith(f"understood: 'e820: update [mem {'x' * 62}'")


def test_a_change_that_is_not_understood_matters_to_a_map_that_still_changes() -> None:
    line = "e820: update [mem 0x1-0x2] usable =>> reserved"
    for lines in ([line], [LOW, MAPPING, line], [LOW, "e820: something else"]):
        fed(*lines)
    with pytest.raises(InputError, match="here:2: change of the memory map not understood"):
        fed(LOW, line)


EMPTY = "BIOS-e820: [mem {:#x}-{:#x}] usable".format


@pytest.mark.parametrize(
    ("start", "last", "words"),
    [
        (0x1000, 0xFFF, "empty"),
        (0, (1 << 64) - 1, "empty"),
        (0x1000, 0xFFE, "the entry ends at 0xfff, before its start 0x1000"),
        (0x1000, 0x1000, ""),
        (1, (1 << 64) - 1, ""),
        (0, (1 << 63) - 1, ""),
    ],
)
def test_entries_of_nothing(start: int, last: int, words: str) -> None:
    """An entry of size 0 ends just before its start, at the largest number if that is 0."""
    if "ends" in words:
        with pytest.raises(InputError, match=words):
            fed(EMPTY(start, last))
        return
    found = fed(EMPTY(start, last))
    assert (not found.maps) == bool(words)
    assert len(found.assumed) == bool(words)
    assert found.entries == 1


@pytest.mark.parametrize(("last", "fits"), [("4fffffff", True), ("50000000", False)])
def test_a_kernel_on_no_ram_has_a_size(last: str, fits: bool) -> None:
    if fits:
        assert fed(LOW, NOT_RAM, REMOVE(last)).kernel_image == (1 << 28, 5 << 28)
    for wrong in [REMOVE("0fffffff")] + [REMOVE(last)] * (not fits):
        with pytest.raises(InputError, match="here:3: a kernel larger than 1 GiB"):
            fed(LOW, NOT_RAM, wrong)


def test_a_change_of_less_than_nothing_is_refused() -> None:
    with pytest.raises(
        InputError, match="here:2: the change ends at 0x1000, before its start 0x1001"
    ):
        fed(LOW, "e820: update [mem 0x1001-0xfff] usable ==> reserved")


# -- where a boot begins, and whether it is one ----------------------------------------------------

XEN_MAP = ("(XEN) EFI RAM map:", "(XEN)  [0000000000000000, 000000000009ffff] (usable)")
ENDS: list[tuple[Sequence[str], str, bool]] = [
    ([], LINUX, False),
    ([LINUX], LINUX, False),  # the same line once more: no boot is one line long
    ([LINUX], LINUX + "x", True),
    ([LINUX, ""], LINUX, True),
    ([LOW], LINUX, True),
    ([LINUX], "Linux version", False),
    ([LOW, LAST_PFN], LOW, True),
    ([LOW], LOW, False),
    ([LAST_PFN], LOW, False),
    ([LOW, LAST_PFN], LOW.replace("BIOS-e820", "Xen"), True),
    ([LOW, LAST_PFN], LOW.replace("BIOS-e820", "user"), False),
    ([LOW, LAST_PFN], MAPPING, False),
    ([LOW, INITRD], LOW, True),
    ([LOW, "Memory: 5K/6K available (1K kernel code)"], LOW, True),
    ([], XEN, False),
    ([XEN], XEN, False),
    ([XEN, XEN_MAP[0]], XEN, True),
    ([LOW], XEN, True),
    ([XEN], "(XEN) Xen kernel: 64-bit", False),
    ([XEN, LOW, LAST_PFN], "(XEN) " + LOW, False),
]


@pytest.mark.parametrize(("lines", "line", "ends"), ENDS)
def test_a_boot_ends_before_a_line(lines: Sequence[str], line: str, ends: bool) -> None:
    assert fed(*lines).ends_before(line) is ends


@pytest.mark.parametrize(
    ("lines", "complete", "empty"),
    [
        ([], False, True),
        (["usb 1-1: new device"], False, True),
        ([LINUX], False, False),
        ([LAST_PFN], False, False),
        ([LOW], False, False),
        ([EMPTY(0x1000, 0xFFF)], False, False),
        ([LOW, LAST_PFN], True, False),
        ([XEN], False, False),
        ([XEN_MAP[0]], False, True),
        (XEN_MAP, False, False),
        ([*XEN_MAP, XEN], True, False),
        ([XEN, LOW], True, False),
    ],
)
def test_whether_it_is_a_boot(lines: Sequence[str], complete: bool, empty: bool) -> None:
    printed = fed(*lines)
    assert (printed.complete, printed.empty) == (complete, empty)


DOWN = [f"BIOS-e820: [mem {n:#x}00000-{n:#x}fffff] usable" for n in (3, 2, 1)]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([LINUX, LOW], ""),
        (["Linux version 2.6.19", LOW], ""),
        (["Linux version 2.6", LOW], ""),
        (["Linux version 2.5.99", LOW], "here:1: Linux 2.5.99 prints maps of another kind"),
        (["Linux version gone", LOW], ""),
        (DOWN, "here:1: the lines stand in reverse order"),
        (DOWN[:2], ""),
        ([LAST_PFN, *DOWN[:2]], "here:2: the lines stand in reverse order"),
        ([*DOWN[:2], LAST_PFN], ""),
        ([LAST_PFN, DOWN[1], DOWN[0]], ""),
        ([LAST_PFN, LOW], ""),
        ([DOWN[0], DOWN[1], DOWN[0].replace("BIOS-e820", "user"), LAST_PFN], ""),
    ],
)
def test_what_is_refused_of_a_whole_boot(lines: Sequence[str], words: str) -> None:
    printed = fed(*lines)
    if words:
        with pytest.raises(InputError, match=words):
            printed.check()
    else:
        printed.check()


def test_of_lines_that_have_lost_their_ends_none_is_before_another() -> None:
    printed = PrintedBoot(1, "here")
    for line in (*DOWN[:2], LAST_PFN):
        printed.feed(1, line)
    printed.check()


def test_the_line_of_a_boot_that_is_not_the_first() -> None:
    with pytest.raises(InputError, match=r"here:7: Linux 2\.4\.20 prints"):
        PrintedBoot(2, "here", 7, release="2.4.20").check()


@pytest.mark.parametrize("kind", ["HVM", "PVH"])
def test_a_fully_virtual_guest_has_page_tables_of_its_own(kind: str) -> None:
    printed = fed("Xen version: 4.17.0", f"Booting paravirtualized kernel on Xen {kind}")
    assert printed.on_xen
    printed.check()
    assert not printed.on_xen
    plain = fed("Xen version: 4.17.0")
    plain.check()
    assert plain.on_xen
