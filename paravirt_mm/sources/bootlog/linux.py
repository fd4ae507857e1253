"""What Linux prints about its memory, line by line, 2.6.19 to today.

Which map counts
    ``Machine.memory_map`` is the e820 map as the kernel had it when it built its direct map. The
    kernel prints the firmware's map and then each change (``e820: update``, ``e820: remove``), so
    the changes are applied as printed, up to the last ``last_pfn`` line: after it the kernel copies
    its map into memblock. A change after that line (EFI tables kept from allocation) leaves memory
    RAM but taken, and becomes a reservation. A map printed later (``user:`` for memmap=,
    ``modified:`` after the MTRR and setup-data fix-ups of 2.6.x) replaces the one before it; what a
    map takes that is printed once the direct map is there (ACPI's tables are replaced) becomes a
    reservation, too.
    ``reserve setup_data:`` only splits RAM into RAM and is skipped. A firmware map without any
    change printed after it gets Linux's standard trimming. Where the kernel's own range is no RAM
    it says so, removes that range and adds it as RAM (e820_add_kernel_range, since 3.9).

Source: the printk formats of arch/x86/kernel/e820.c, setup.c, arch/x86/mm/init*.c, mm/memblock.c
and arch/x86/xen/mmu.c; every form is found in real logs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Concatenate, ParamSpec

import attrs

from paravirt_mm.errors import InputError
from paravirt_mm.machine.e820 import E820Type
from paravirt_mm.machine.model import Span
from paravirt_mm.machine.paging import MIB, PAGE_SIZE
from paravirt_mm.machine.ranges import align_up
from paravirt_mm.machine.release import leading_version
from paravirt_mm.printable import printable
from paravirt_mm.sources.bootlog.facts import (
    BrkTable,
    CountedRam,
    Fact,
    LastPfn,
    MappedRange,
    PageRange,
    Reservation,
    TableBlock,
    WritableRange,
    once_each,
)
from paravirt_mm.sources.bootlog.printed import MapChange, Printed, PrintedMap
from paravirt_mm.sources.bootlog.xen import MAX_MAP_ENTRIES, XEN_MARK, tells_a_range
from paravirt_mm.sources.e820_words import log_type
from paravirt_mm.sources.possible import MAX_KERNEL_BYTES

MAX_FACTS = 1 << 17
"""More printed facts than this in one boot are refused."""
MAX_CHANGES = 4096
"""More map changes than this in one boot are refused."""
MAX_MAPS = 64
"""So are more printed maps: kernels print the firmware's, the user's and a few modified ones."""
FIRST_READ = (2, 6)
"""Kernels before print other maps, and have other allocators."""

_HEX = r"(?:0x)?([0-9a-fA-F]{1,16})"
_LONG = r"([0-9a-fA-F]{16})"
_MEM = r"\[mem 0x([0-9a-fA-F]{1,16})-0x([0-9a-fA-F]{1,16})\]"
INTERESTING = (
    "e820", "BIOS-", "[mem", "PGTABLE", "Linux version", "ommand line:", "last_pfn",
    "MEM available", "low ram:", "page 4k", "page 2M", "page 4M", "page 1G", "direct mapping",
    "init_memory_mapping", "RAMDISK", "trampoline", "memblock_", "reserved[", "==>", "==&gt;",
    "memory mapped", "NX (", "Memory: ", "MP-table", "(XEN)", "modified: ", "user: ", "Xen: ",
    "Xen version", "paravirtualized kernel", "setting RW", "Hypervisor detected", "not marked as",
    "unprivileged domain",
)  # fmt: skip
"""A line without any of these words tells nothing about memory."""
_FIRMWARE = ("BIOS-e820", "BIOS-e801", "BIOS-88", "Xen")
_LABEL = r"(?P<label>BIOS-e820|BIOS-e801|BIOS-88|Xen|user|modified):"
MAP_ENTRY = re.compile(rf"{_LABEL} (?:{_MEM}|{_LONG} - {_LONG}) ?(?P<type>.*)$")
"""An entry of a printed map: groups 2 and 3 (inclusive) or 4 and 5 (exclusive), and its type."""
_SETUP_DATA = re.compile(r"reserve setup_data:")
_CHANGE = re.compile(
    rf"e820:? (?P<verb>update|remove) (?:{_MEM}|range: {_HEX} - {_HEX}) ?"
    r"\(?(?P<old>[^()=>]{0,60}?)\)?(?: ?==> ?\(?(?P<new>[^()]{0,60})\)?)?$"
)
_BROKEN_CHANGE = re.compile(r"e820:? (?:update|remove) (?:\[mem|range:)")
_NOT_RAM = re.compile(r"\.text \.data \.bss are not marked as E820_(?:TYPE_)?RAM!")
_LINUX = re.compile(r"Linux version (\S{1,100})")
_COMMAND_LINE = re.compile(r"(?:Kernel command|Command) line:\s?(.*)$")
_LAST_PFN = re.compile(rf"(?:e820: )?last_pfn = {_HEX} max_arch_pfn = {_HEX}")
_RANGE = re.compile(rf"init_memory_mapping(?:: (?:{_MEM}|{_HEX}-{_HEX})|:?\s*$)")
_PAGES = re.compile(rf"(?:{_MEM}|{_HEX} - {_HEX}) page (?P<page>4k|2M|4M|1G)\b")
_BLOCK = re.compile(
    rf"kernel direct mapping tables up to {_HEX} @ (?:(?P<mem>{_MEM})|{_HEX}-{_HEX})"
)
_BRK = re.compile(rf"BRK \[{_HEX}, {_HEX}\] PGTABLE")
_MEMBLOCK = re.compile(rf"memblock_reserve: \[{_HEX}-{_HEX}\](?: flags \S+)?(?: bytes)?\s*(.*)$")
_MEMBLOCK_ALLOC = re.compile(
    r"memblock_(?:phys_alloc_range|alloc_range_nid|alloc_try_nid|alloc_try_nid_raw"
    r"|alloc_exact_nid_raw): .{0,200}?(\S+\+0x[0-9a-f]+/0x[0-9a-f]+)$"
)
"""Since 5.15 the caller stands in the line before the reservation."""
_MEMBLOCK_FREE = re.compile(rf"memblock_(?:phys_)?free: \[{_HEX}-{_HEX}\]")
_MEMBLOCK_LIST = re.compile(rf"reserved\[{_HEX}\] ?\[{_HEX}-{_HEX}\], ")
_EARLY = re.compile(rf"#\d{{1,6}} \[{_HEX} - {_HEX}\] (?P<owner>\S.{{0,60}}?) ==>(?: |$)")
_RAMDISK = re.compile(rf"RAMDISK: (?:{_MEM}|{_HEX} - {_HEX})")
_TRAMPOLINE = re.compile(rf"Base memory trampoline at \[(?P<va>[^\]]*)\] {_HEX} size (\d{{1,7}})")
_MP_TABLE = re.compile(
    rf"found SMP MP-table at \[(?:mem {_HEX}-{_HEX}\] mapped at \[)?(?P<va>\w+)\]"
)
_BOOT_MAPPED = re.compile(rf"initial memory mapped\s*: (?:{_MEM}|{_HEX} - {_HEX})")
_LOW_RAM = re.compile(rf"(?:mapped )?low ram: {_HEX} - {_HEX}")
_MEGABYTES = re.compile(r"(\d{1,7})MB (HIGH|LOW)MEM available")
_NX = re.compile(r"NX \(Execute Disable\) protection(?:: (?P<how>\w+)|(?P<problem> .*))")
_GB_PAGES = re.compile("Using GB pages for direct mapping")
_UNPRIVILEGED = re.compile("ACPI in unprivileged domain")
_MEMORY = re.compile(r"Memory: (?P<free>\d{1,15})[kK]/(?P<all>\d{1,15})(?P<unit>[kK]) available \(")
_NOT_FREE = re.compile(r"(\d{1,12})k (absent|reserved)")
SIZE = re.compile(r"(\d{1,9})[kK] (?:kernel code|rwdata|rodata|data|init|bss)\b")
"""A part of the kernel's image, in the line about free memory."""
_ON_XEN = re.compile(
    r"(?:Booting paravirtualized kernel on|Hypervisor detected:) Xen(?: (?P<kind>\w{1,10}))?$"
    r"|Xen version: "
)
_SETTING_RW = re.compile(rf"xen: setting RW the range {_HEX} - {_HEX}")
_CALLS_ALLOCATOR = re.compile(r"init_mem_mapping\+|init_memory_mapping\+|alloc_low_page")

# Early reservations (2.6.25 to 2.6.38 list them with their owners) that later code has made, or
# that are what a run of the model makes itself.
_NOT_BEFORE_MAPPING = frozenset(
    {
        "PGTABLE",
        "NODE_DATA",
        "MEMNODEMAP",
        "BOOTMAP",
        "NEW RAMDISK",
        "MEMMAP",
        "USEMAP",
        "CRASH KERNEL",
    }
)


_P = ParamSpec("_P")


@attrs.frozen
class _Line:
    """A line that a pattern has recognised: its message, and what the groups say."""

    message: str
    match: re.Match[str]

    def __getitem__(self, group: int | str) -> str:
        """The text of a group, empty where the line does not have it."""
        return self.match[group] or ""

    def hex(self, group: int) -> int:
        return int(self.match[group], 16)

    def span(self, first: int = 1) -> Span:
        """The groups from ``first`` of ``[mem A-B]`` (B inclusive) or, next, ``A - B``."""
        if self[first]:
            return self.hex(first), self.hex(first + 1) + 1
        return self.hex(first + 2), self.hex(first + 3)


@attrs.define
class PrintedBoot(Printed):
    """Takes the lines of one boot apart. All methods may raise InputError that names the line."""

    _last: str = ""
    _doubled: bool = False
    _caller: str = ""

    # -- reading -------------------------------------------------------------------------------

    def feed(self, number: int, message: str) -> None:
        """Take one line, prefixes removed."""
        self.last_line = number
        self.order += 1
        if message == self._last and self._is_double(message):
            return
        self._last = message
        self.ends_in_map = False
        if message.startswith(XEN_MARK):
            self.xen.feed(f"{self.source}:{number}", number, message)
            return
        for word, pattern, take in _TAKERS:
            if word in message and (match := pattern.search(message)):
                if not (self.set_up and take in _OF_THE_DIRECT_MAP):
                    take(self, _Line(message, match))
                return
        if _BROKEN_CHANGE.search(message) and self.maps and not self.mapping:
            raise self._refused(f"change of the memory map not understood: {message[:80]!a}")

    def _is_double(self, message: str) -> bool:
        """Tell whether a line is the one before once more: so it is in some logs, all along."""
        if not self._doubled and (MAP_ENTRY.search(message) or tells_a_range(message)):
            self._doubled = True
            self._assume("every line stands twice in the log: each counts once")
            for facts in (self.facts, self.xen.facts):
                facts[:] = once_each(facts)
        return self._doubled

    def _fact(
        self,
        line: _Line,
        kind: Callable[Concatenate[int, str, _P], Fact],
        *said: _P.args,
        **named: _P.kwargs,
    ) -> None:
        self.facts.append(kind(self.last_line, printable(line.message), *said, **named))
        self.progressed = True
        self._bound()

    def _refused(self, problem: str) -> InputError:
        return InputError(problem, f"{self.source}:{self.last_line}")

    def _bound(self) -> None:
        if len(self.facts) > MAX_FACTS or len(self.reserved) > MAX_FACTS:
            raise self._refused(f"more than {MAX_FACTS} boot messages about memory")

    def _reserve(self, start: int, end: int) -> None:
        self.reserved.append((start, end))
        self._bound()

    def _take_map(self, line: _Line) -> None:
        label = line["label"]
        kind = "firmware" if label in _FIRMWARE else label
        self.on_xen |= label == "Xen"
        self.ends_in_map = True
        self.entries += 1
        if self.entries > MAX_MAP_ENTRIES:
            raise self._refused(f"more than {MAX_MAP_ENTRIES} memory map entries")
        start, end = line.span(2)
        if start >= end or (start == 0 and end == 1 << 64):
            # An entry of size 0 ends just before its start, at the largest number if that is 0.
            if start > end:
                raise self._refused(f"the entry ends at {end:#x}, before its start {start:#x}")
            self._assume(f"line {self.last_line}: empty memory map entry left out")
            return
        memory_type = self._type(line["type"])
        if not self.maps or self.maps[-1].label != kind:
            self._begin_map(kind)
        self.maps[-1].add((start, end, memory_type))

    def _type(self, text: str) -> E820Type:
        memory_type = log_type(text)
        if memory_type is None:
            self._assume(f"line {self.last_line}: unknown or lost memory type read as reserved")
            return E820Type.RESERVED
        return memory_type

    def _begin_map(self, kind: str) -> None:
        if len(self.maps) >= MAX_MAPS:
            raise self._refused(f"more than {MAX_MAPS} memory maps in one boot")
        if not self.maps:
            self.progressed = False  # what came before it does not show that the kernel went on
        if kind == "user" and self.last_pfn_order is not None:
            # memmap=exactmap looks for the old end of RAM first; what counts comes after.
            self.last_pfn_order = None
            self.user_map_from = self.last_line
        is_late = self.mapping and bool(self.maps)
        self.maps.append(PrintedMap(kind, self.last_line, is_late=is_late))

    def _assume(self, text: str) -> None:
        if len(self.assumed) < 32:
            self.assumed.append(text)

    def _take_nothing(self, line: _Line) -> None:
        """Recognised, and told elsewhere in the log."""

    def _take_change(self, line: _Line) -> None:
        if self.mapping or not self.maps:
            return
        self.changes += 1
        if self.changes > MAX_CHANGES:
            raise self._refused(f"more than {MAX_CHANGES} changes of the memory map")
        span = line.span(2)
        if span[0] > span[1]:
            raise self._refused(f"the change ends at {span[1]:#x}, before its start {span[0]:#x}")
        old = log_type(line["old"])
        new = self._type(line["new"]) if line["verb"] == "update" else None
        if old is E820Type.RAM and new is E820Type.RAM:
            self._reserve(*span)  # setup_data
            return
        if line["verb"] == "remove" and self.kernel_not_ram and old is None:
            self.kernel_not_ram = False
            self._take_kernel_range(span)
            return
        self.maps[-1].changes.append(MapChange(self.order, span, old, new))

    def _take_kernel_range(self, span: Span) -> None:
        """The kernel lies on what is no RAM: it removes the range and adds it as RAM."""
        if not 0 < span[1] - span[0] <= MAX_KERNEL_BYTES:
            raise self._refused("a kernel larger than 1 GiB")
        self.kernel_image = span
        self.maps[-1].changes.append(MapChange(self.order, span, None, E820Type.RAM, E820Type.RAM))

    def _take_not_ram(self, line: _Line) -> None:
        self.kernel_not_ram = True

    def _take_release(self, line: _Line) -> None:
        self.release = printable(line[1], 80)

    def _take_command_line(self, line: _Line) -> None:
        self.set_up |= line.message.startswith("Kernel")
        self.command_line = self.command_line or printable(line[1], 1000)

    def _take_last_pfn(self, line: _Line) -> None:
        self._fact(line, LastPfn, line.hex(1), line.hex(2))
        if not self.mapping:
            self.last_pfn_order = self.order

    def _take_range(self, line: _Line) -> None:
        self.mapping = True
        self._fact(line, MappedRange, line.span() if line.match.lastindex else None)

    def _take_pages(self, line: _Line) -> None:
        self.mapping = True
        self._fact(line, PageRange, *line.span(), line["page"])

    def _take_block(self, line: _Line) -> None:
        self.mapping = True
        inclusive = bool(line["mem"])
        self._fact(line, TableBlock, line.hex(1) + inclusive, *line.span(3))

    def _take_brk(self, line: _Line) -> None:
        self.mapping = True
        self._fact(line, BrkTable, line.hex(1), line.hex(2) + 1)

    def _take_memblock(self, line: _Line) -> None:
        start, end, owner = line.hex(1), line.hex(2) + 1, line[3]
        if self._caller and owner.startswith("memblock_"):
            owner = self._caller
        self._caller = ""
        self.mapping |= _CALLS_ALLOCATOR.match(owner) is not None
        if self.mapping and owner.startswith("init_mem"):
            return  # tried whether large pages fit, and given back
        self._fact(line, Reservation, start, end, printable(owner, 80))
        if not self.mapping:
            self._reserve(start, end)

    def _take_memblock_alloc(self, line: _Line) -> None:
        self._caller = line[1]
        self.mapping |= _CALLS_ALLOCATOR.match(line[1]) is not None

    def _take_memblock_free(self, line: _Line) -> None:
        if not self.mapping:
            self.freed.append((len(self.reserved), (line.hex(1), line.hex(2) + 1)))
            if len(self.freed) > MAX_CHANGES:
                raise self._refused(f"more than {MAX_CHANGES} pieces of memory given back")

    def _take_memblock_list(self, line: _Line) -> None:
        start, end = line.hex(2), line.hex(3) + 1
        self._fact(line, Reservation, start, end, "reserved list")
        if not self.mapping:
            self._reserve(start, end)

    def _take_early(self, line: _Line) -> None:
        start, end, owner = line.hex(1), line.hex(2), line["owner"]
        self._fact(line, Reservation, start, end, printable(owner))
        if owner == "TEXT DATA BSS":
            self.kernel_image = (start, end)
        elif owner == "RAMDISK":
            self.initrd = self.initrd or (start, end)
        elif owner not in _NOT_BEFORE_MAPPING:
            self._reserve(start, end)

    def _take_ramdisk(self, line: _Line) -> None:
        start, end = line.span()
        if self.initrd is None and start < end:
            self.initrd = (start, end)
        self.progressed = self.mapping = True

    def _take_trampoline(self, line: _Line) -> None:
        start, size = line.hex(2), int(line[3])
        self.trampolines += 1
        self.trampoline = (start, start + align_up(size, PAGE_SIZE))
        self._note_virtual(line["va"])

    def _take_mp_table(self, line: _Line) -> None:
        self._note_virtual(line["va"])

    def _note_virtual(self, address: str) -> None:
        if re.fullmatch(r"[0-9a-f]{8}(?:[0-9a-f]{8})?", address):
            self.virtual_digits = len(address)

    def _take_boot_mapped(self, line: _Line) -> None:
        self.boot_mapped = line.span()[1]

    def _take_low_ram(self, line: _Line) -> None:
        self.low_ram_end = line.hex(2)

    def _take_megabytes(self, line: _Line) -> None:
        self.lowmem_lines = True

    def _take_nx(self, line: _Line) -> None:
        self.nx = line["how"] == "active"
        self.non_pae |= "non-PAE" in line["problem"]

    def _take_gbpages(self, line: _Line) -> None:
        self.gbpages = self.mapping = True

    def _take_sizes(self, line: _Line) -> None:
        self.kernel_bytes = sum(int(size[1]) for size in SIZE.finditer(line.message)) << 10
        self.counted_ram = _counted_ram(line)
        self.progressed = self.set_up = True

    def _take_xen(self, line: _Line) -> None:
        # Fully virtualised guests (HVM, PVH) say so, and have native page tables. Kernels before
        # 5.x say "Hypervisor detected: Xen" in both kinds.
        kind = line["kind"]
        if kind in {"HVM", "PVH"}:
            self.fully_virtual = True
        elif not line.message.startswith("Hypervisor") or kind == "PV":
            self.on_xen = True

    def _take_unprivileged(self, line: _Line) -> None:
        self.unprivileged = True

    def _take_setting_rw(self, line: _Line) -> None:
        self.mapping = self.on_xen = True
        self._fact(line, WritableRange, line.hex(1), line.hex(2))

    # -- boundaries ----------------------------------------------------------------------------

    def ends_before(self, message: str) -> bool:
        """Tell whether ``message`` is the beginning of another boot."""
        if message == self._last:  # no boot is one line long: each stands twice
            return False
        if message.startswith(XEN_MARK):
            return "Xen version " in message and bool(self.maps or self.xen.facts)
        if _LINUX.search(message):
            return self.release is not None or bool(self.maps)
        if not self.progressed or not self.maps:
            return False
        match = MAP_ENTRY.search(message)
        return match is not None and match["label"] in _FIRMWARE

    @property
    def complete(self) -> bool:
        """Whether there is a map, and a sign that the kernel went on after printing it."""
        return bool(self.maps or self.xen.entries) and (self.progressed or bool(self.xen.facts))

    @property
    def empty(self) -> bool:
        """Whether nothing of a boot has been seen."""
        return not (
            self.entries or self.facts or self.release or self.xen.facts or self.xen.entries
        )

    # -- contradictions ------------------------------------------------------------------------

    def check(self) -> None:
        """Refuse what would be read wrongly in silence."""
        version = leading_version(self.release)
        if version and version < FIRST_READ:
            raise InputError(
                f"Linux {self.release} prints maps of another kind; 2.6.19 and later are read",
                f"{self.source}:{self.first_line or 1}",
            )
        for shown in self.maps:
            if shown.is_reversed and (len(shown.entries) > 2 or self._began_before(shown.line)):
                raise InputError(
                    "the lines stand in reverse order (journalctl -r?); give the oldest first",
                    f"{self.source}:{shown.line}",
                )
        if self.fully_virtual:
            self.on_xen = False

    def _began_before(self, line: int) -> bool:
        return any(fact.line < line for fact in self.facts)


def _counted_ram(line: _Line) -> CountedRam | None:
    """Return what the line about free memory says of all RAM; None where it does not."""
    free, all_of_it = int(line["free"]), int(line["all"])
    rest = {what: int(size) for size, what in _NOT_FREE.findall(line.message)}
    if line["unit"] == "K":  # since 3.11; before, it is all up to max_pfn
        return CountedRam(all_of_it << 10)
    if "absent" in rest:  # on x86_64, since 2.6.25
        return CountedRam(max(0, all_of_it - rest["absent"]) << 10)
    if "highmem" in line.message and "reserved" in rest:
        return CountedRam(free + rest["reserved"] << 10, MIB * 2)
    return None


_Take = Callable[[PrintedBoot, _Line], None]

# Once setup_arch is over these are of EFI's runtime services, or of memory that is plugged in.
_OF_THE_DIRECT_MAP = frozenset(
    {
        PrintedBoot._take_range,
        PrintedBoot._take_pages,
        PrintedBoot._take_block,
        PrintedBoot._take_brk,
    }
)

# In this order: a line goes to the first pattern that it holds, of those whose word it holds.
_TAKERS: tuple[tuple[str, re.Pattern[str], _Take], ...] = (
    ("setup_data:", _SETUP_DATA, PrintedBoot._take_nothing),
    (": ", MAP_ENTRY, PrintedBoot._take_map),
    ("e820", _CHANGE, PrintedBoot._take_change),
    ("page ", _PAGES, PrintedBoot._take_pages),
    ("init_memory_mapping", _RANGE, PrintedBoot._take_range),
    ("PGTABLE", _BRK, PrintedBoot._take_brk),
    ("direct mapping tables", _BLOCK, PrintedBoot._take_block),
    ("last_pfn", _LAST_PFN, PrintedBoot._take_last_pfn),
    ("setting RW", _SETTING_RW, PrintedBoot._take_setting_rw),
    ("memblock_", _MEMBLOCK, PrintedBoot._take_memblock),
    ("memblock_", _MEMBLOCK_ALLOC, PrintedBoot._take_memblock_alloc),
    ("memblock_", _MEMBLOCK_FREE, PrintedBoot._take_memblock_free),
    ("reserved[", _MEMBLOCK_LIST, PrintedBoot._take_memblock_list),
    ("==>", _EARLY, PrintedBoot._take_early),
    ("RAMDISK", _RAMDISK, PrintedBoot._take_ramdisk),
    ("trampoline", _TRAMPOLINE, PrintedBoot._take_trampoline),
    ("MP-table", _MP_TABLE, PrintedBoot._take_mp_table),
    ("initial memory mapped", _BOOT_MAPPED, PrintedBoot._take_boot_mapped),
    ("low ram:", _LOW_RAM, PrintedBoot._take_low_ram),
    ("MEM available", _MEGABYTES, PrintedBoot._take_megabytes),
    ("NX (", _NX, PrintedBoot._take_nx),
    ("not marked as", _NOT_RAM, PrintedBoot._take_not_ram),
    ("Using GB pages", _GB_PAGES, PrintedBoot._take_gbpages),
    ("Memory: ", _MEMORY, PrintedBoot._take_sizes),
    ("Linux version", _LINUX, PrintedBoot._take_release),
    ("ommand line:", _COMMAND_LINE, PrintedBoot._take_command_line),
    ("unprivileged", _UNPRIVILEGED, PrintedBoot._take_unprivileged),
    ("Xen", _ON_XEN, PrintedBoot._take_xen),
)
