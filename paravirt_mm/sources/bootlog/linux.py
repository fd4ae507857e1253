"""Linux boot logs, 2.6.19 to today: dmesg, syslog, journalctl, serial consoles, quoted in mails.

Which map counts
    ``Machine.memory_map`` is the e820 map as the kernel had it when it built its direct map. The
    kernel prints the firmware's map and then each change (``e820: update``, ``e820: remove``), so
    the changes are applied as printed, up to the last ``last_pfn`` line: after it the kernel copies
    its map into memblock. A change after that line (EFI tables kept from allocation) leaves memory
    RAM but taken, and becomes a reservation. A map printed later (``user:`` for memmap=,
    ``modified:`` after the MTRR and setup-data fix-ups of 2.6.x) replaces the one before it.
    ``reserve setup_data:`` only splits RAM into RAM and is skipped. A firmware map without any
    change printed after it gets Linux's standard trimming.

Cut logs
    Lines wrapped by a mail program are joined. A type that is lost is read as reserved. A map that
    has lost its head gets that of the map printed before it, else what was mapped there. Each such
    step is listed in ``provenance.assumed``.

Several boots in one file
    The first boot with a memory map and something after it is read, or the one asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import BinaryIO

import attrs

from paravirt_mm.errors import InputError
from paravirt_mm.machine.e820 import E820Type
from paravirt_mm.machine.model import Span
from paravirt_mm.machine.paging import (
    PAGE_SIZE,
)
from paravirt_mm.machine.ranges import align_up
from paravirt_mm.printable import printable
from paravirt_mm.sources.bootlog.facts import (
    BootLog,
    BrkTable,
    Fact,
    LastPfn,
    MappedRange,
    PageRange,
    Platform,
    Reservation,
    TableBlock,
)
from paravirt_mm.sources.bootlog.printed import MapChange, Printed, PrintedMap
from paravirt_mm.sources.bootlog.reconstruct import reconstruct
from paravirt_mm.sources.bootlog.xen import MAX_MAP_ENTRIES, XEN_MARK, host_machine
from paravirt_mm.sources.e820_words import log_type
from paravirt_mm.sources.lines import bounded_lines, strip_prefixes

MAX_FACTS = 1 << 17
"""More printed facts than this in one boot are refused."""
MAX_CHANGES = 4096
"""More map changes than this in one boot are refused."""
_HEX = r"(?:0x)?([0-9a-fA-F]{1,16})"
_MEM = rf"\[mem {_HEX}-{_HEX}\]"
_INTERESTING = re.compile(
    r"e820|BIOS-|\[mem|PGTABLE|Linux version|ommand line:|last_pfn|MEM available|low ram:"
    r"|page (?:4k|2M|4M|1G)|direct mapping|init_memory_mapping|RAMDISK|trampoline|memblock_reserve"
    r"|reserved\[|==> \[|memory mapped|NX \(|Memory: |MP-table|\(XEN\)|modified: |user: |Xen[: ]"
    r"|paravirtualized kernel"
)
_FIRMWARE = ("BIOS-e820", "BIOS-e801", "BIOS-88", "Xen")
_LABEL = r"(?P<label>BIOS-e820|BIOS-e801|BIOS-88|Xen|user|modified):"
_MAP = re.compile(rf"{_LABEL}\s+(?:{_MEM}|{_HEX} - {_HEX})\s*(?P<type>.*)$")
_BROKEN_MAP = re.compile(
    r"(?:BIOS-e820|BIOS-e801|BIOS-88|Xen|user|modified):\s*(?:\[mem|[0-9a-f]{8})"
)
_OPEN = re.compile(r"\[mem(?:\s+(?:0x[0-9a-fA-F]*(?:-(?:0x[0-9a-fA-F]*)?)?)?)?$")
_SETUP_DATA = re.compile(r"reserve setup_data:")
_CHANGE = re.compile(
    rf"e820:? (?P<verb>update|remove) (?:{_MEM}|range: {_HEX} - {_HEX})\s*"
    r"\(?(?P<old>[^()=>]*)\)?(?:\s*==>\s*\(?(?P<new>[^()]*)\)?)?\s*$"
)
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
_MEMBLOCK_LIST = re.compile(rf"reserved\[{_HEX}\]\s*\[{_HEX}-{_HEX}\], ")
_EARLY = re.compile(rf"#\d+ \[{_HEX} - {_HEX}\]\s+(?P<owner>\S.{{0,60}}?)\s+==> ")
_RAMDISK = re.compile(rf"RAMDISK: (?:{_MEM}|{_HEX} - {_HEX})")
_TRAMPOLINE = re.compile(rf"Base memory trampoline at \[(?P<va>[^\]]*)\] {_HEX} size (\d{{1,7}})")
_MP_TABLE = re.compile(
    rf"found SMP MP-table at \[(?:mem {_HEX}-{_HEX}\] mapped at \[)?(?P<va>\w+)\]"
)
_BOOT_MAPPED = re.compile(rf"initial memory mapped\s*: (?:{_MEM}|{_HEX} - {_HEX})")
_LOW_RAM = re.compile(rf"(?:mapped )?low ram: {_HEX} - {_HEX}")
_MEGABYTES = re.compile(r"(\d{1,7})MB (HIGH|LOW)MEM available")
_NX = re.compile(r"NX \(Execute Disable\) protection(?:: (?P<how>\w+)|(?P<problem> .*))")
_MEMORY = re.compile(r"Memory: \d+[kK]/\d+[kK] available \((.*)")
_SIZE = re.compile(r"(\d{1,9})[kK] (?:kernel code|rwdata|rodata|data|init|bss)\b")
_ON_XEN = re.compile(
    r"Booting paravirtualized kernel on Xen|Xen version: |xen: PV |Xen: using vcpuop"
)

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


def _span(match: re.Match[str], first: int = 1) -> Span:
    """Read the groups from ``first`` of ``[mem A-B]`` (inclusive) or ``A - B`` (exclusive)."""
    if match[first] is not None:
        return int(match[first], 16), int(match[first + 1], 16) + 1
    return int(match[first + 2], 16), int(match[first + 3], 16)


@attrs.define
class _Boot(Printed):
    """Takes the lines of one boot apart."""

    # -- reading -------------------------------------------------------------------------------

    def feed(self, number: int, message: str) -> None:
        """Take one line, prefixes removed."""
        where = f"{self.source}:{number}"
        self.order += 1
        if message.startswith(XEN_MARK):
            self.xen.feed(where, number, message)
            return
        for pattern, take in _TAKERS:
            if match := pattern.search(message):
                take(self, match, number, message)
                break
        if len(self.facts) > MAX_FACTS or len(self.reserved) > MAX_FACTS:
            raise InputError(f"more than {MAX_FACTS} boot messages about memory", where)

    def _fact(self, fact: Fact) -> None:
        self.facts.append(fact)
        self.progressed = True

    def _take_map(self, match: re.Match[str], number: int, message: str) -> None:
        label = match["label"]
        kind = "firmware" if label in _FIRMWARE else label
        self.on_xen |= label == "Xen"
        if not self.maps or self.maps[-1].label != kind:
            self.maps.append(PrintedMap(kind))
        self.entries += 1
        if self.entries > MAX_MAP_ENTRIES:
            raise InputError(
                f"more than {MAX_MAP_ENTRIES} memory map entries", f"{self.source}:{number}"
            )
        start, end = _span(match, 2)
        memory_type = log_type(match["type"])
        if memory_type is None:
            memory_type = E820Type.RESERVED
            self._assume(f"line {number}: unknown or lost memory type read as reserved")
        self.maps[-1].add((start, end, memory_type))

    def _assume(self, text: str) -> None:
        if len(self.assumed) < 32:
            self.assumed.append(text)

    def _take_nothing(self, match: re.Match[str], number: int, message: str) -> None:
        """Recognised, and told elsewhere in the log."""

    def _take_change(self, match: re.Match[str], number: int, message: str) -> None:
        if self.mapping or not self.maps:
            return
        self.changes += 1
        if self.changes > MAX_CHANGES:
            raise InputError(
                f"more than {MAX_CHANGES} changes of the memory map", f"{self.source}:{number}"
            )
        span = _span(match, 2)
        old = log_type(match["old"])
        new = log_type(match["new"] or "") if match["verb"] == "update" else None
        if match["verb"] == "update" and new is None:
            return
        if old is E820Type.RAM and new is E820Type.RAM:
            self.reserved.append(span)  # setup_data
            return
        self.maps[-1].changes.append(MapChange(self.order, span, old, new))

    def _take_release(self, match: re.Match[str], number: int, message: str) -> None:
        self.release = printable(match[1], 80)

    def _take_command_line(self, match: re.Match[str], number: int, message: str) -> None:
        self.command_line = self.command_line or printable(match[1].strip(), 1000)

    def _take_last_pfn(self, match: re.Match[str], number: int, message: str) -> None:
        self._fact(LastPfn(number, printable(message), int(match[1], 16), int(match[2], 16)))
        if not self.mapping:
            self.last_pfn_order = self.order

    def _take_range(self, match: re.Match[str], number: int, message: str) -> None:
        self.mapping = True
        span = _span(match) if match[1] or match[3] else None
        self._fact(MappedRange(number, printable(message), span))

    def _take_pages(self, match: re.Match[str], number: int, message: str) -> None:
        self.mapping = True
        self._fact(PageRange(number, printable(message), *_span(match), match["page"]))

    def _take_block(self, match: re.Match[str], number: int, message: str) -> None:
        self.mapping = True
        inclusive = match["mem"] is not None
        up_to = int(match[1], 16) + inclusive
        self._fact(TableBlock(number, printable(message), up_to, *_span(match, 3)))

    def _take_brk(self, match: re.Match[str], number: int, message: str) -> None:
        self.mapping = True
        start, end = int(match[1], 16), int(match[2], 16) + 1
        self._fact(BrkTable(number, printable(message), start, end))

    def _take_memblock(self, match: re.Match[str], number: int, message: str) -> None:
        start, end, owner = int(match[1], 16), int(match[2], 16) + 1, match[3].strip()
        self._fact(Reservation(number, printable(message), start, end, printable(owner, 80)))
        if not self.mapping:
            self.reserved.append((start, end))

    def _take_memblock_list(self, match: re.Match[str], number: int, message: str) -> None:
        start, end = int(match[2], 16), int(match[3], 16) + 1
        self._fact(Reservation(number, printable(message), start, end, "reserved list"))
        if not self.mapping:
            self.reserved.append((start, end))

    def _take_early(self, match: re.Match[str], number: int, message: str) -> None:
        start, end, owner = int(match[1], 16), int(match[2], 16), match["owner"]
        self._fact(Reservation(number, printable(message), start, end, printable(owner, 80)))
        if owner == "TEXT DATA BSS":
            self.kernel_image = (start, end)
        elif owner == "RAMDISK":
            self.initrd = self.initrd or (start, end)
        elif owner not in _NOT_BEFORE_MAPPING:
            self.reserved.append((start, end))

    def _take_ramdisk(self, match: re.Match[str], number: int, message: str) -> None:
        start, end = _span(match)
        if self.initrd is None and start < end:
            self.initrd = (start, end)
        self.progressed = True

    def _take_trampoline(self, match: re.Match[str], number: int, message: str) -> None:
        start, size = int(match[2], 16), int(match[3])
        self.trampolines += 1
        self.trampoline = (start, start + align_up(size, PAGE_SIZE))
        self._note_virtual(match["va"])

    def _take_mp_table(self, match: re.Match[str], number: int, message: str) -> None:
        self._note_virtual(match["va"])

    def _note_virtual(self, address: str) -> None:
        if re.fullmatch(r"[0-9a-f]{8}(?:[0-9a-f]{8})?", address):
            self.virtual_digits = len(address)

    def _take_boot_mapped(self, match: re.Match[str], number: int, message: str) -> None:
        self.boot_mapped = _span(match)[1]

    def _take_low_ram(self, match: re.Match[str], number: int, message: str) -> None:
        self.low_ram_end = int(match[2], 16)

    def _take_megabytes(self, match: re.Match[str], number: int, message: str) -> None:
        self.lowmem_lines = True

    def _take_nx(self, match: re.Match[str], number: int, message: str) -> None:
        self.nx = match["how"] == "active"
        self.non_pae |= "non-PAE" in (match["problem"] or "")

    def _take_gbpages(self, match: re.Match[str], number: int, message: str) -> None:
        self.gbpages = self.mapping = True

    def _take_sizes(self, match: re.Match[str], number: int, message: str) -> None:
        self.kernel_bytes = sum(int(size[1]) for size in _SIZE.finditer(match[1])) << 10
        self.progressed = True

    def _take_xen(self, match: re.Match[str], number: int, message: str) -> None:
        self.on_xen = True

    # -- boundaries ----------------------------------------------------------------------------

    def ends_before(self, message: str) -> bool:
        """Tell whether ``message`` is the beginning of another boot."""
        if message.startswith(XEN_MARK):
            return "Xen version " in message and bool(self.maps or self.xen.facts)
        if _LINUX.search(message):
            return self.release is not None or bool(self.maps)
        if not self.progressed or not self.maps:
            return False
        match = _MAP.search(message)
        return match is not None and match["label"] in _FIRMWARE

    @property
    def complete(self) -> bool:
        """Whether there is a map, and a sign that the kernel went on after printing it."""
        return bool(self.maps or self.xen.entries) and (self.progressed or bool(self.xen.facts))

    @property
    def empty(self) -> bool:
        return not (self.maps or self.facts or self.release or self.xen.facts or self.xen.entries)

    # -- the result ----------------------------------------------------------------------------

    def result(self, name: str, more: bool) -> BootLog:
        """Make sense of what has been read. Raises InputError where the map contradicts itself."""
        host_map = self.xen.host_map
        facts = tuple(sorted([*self.xen.facts, *self.facts], key=lambda fact: fact.line))
        platform: Platform = "native"
        if self.on_xen:
            platform = "xen-pv"
        elif not self.maps and (self.xen.facts or self.xen.entries):
            platform = "hypervisor"
        machine = None
        missing = None
        source = self.source
        if self.number > 1 or more:
            source = f"{self.source} (boot {self.number})"
        if self.maps:
            machine = reconstruct(self, name, source)
        elif host_map is not None:
            machine = host_machine(name, source, host_map, self.xen.version)
        elif platform == "hypervisor":
            missing = (
                "a hypervisor log without memory map: it needs the lines after 'Xen-e820 RAM map:'"
                " (boot Xen with loglvl=all) or dom0's 'Xen: [mem ...]' lines"
            )
        else:
            missing = "no memory map: expected 'BIOS-e820: [mem ...] usable' or similar lines"
        return BootLog(
            source=source,
            boot=self.number,
            platform=platform,
            release=self.release,
            command_line=self.command_line,
            machine=machine,
            missing=missing,
            host_map=host_map,
            mixed=self.mixed,
            facts=facts,
        )


_Take = Callable[[_Boot, "re.Match[str]", int, str], None]

# In this order: a line goes to the first pattern that it holds.
_TAKERS: tuple[tuple[re.Pattern[str], _Take], ...] = (
    (_SETUP_DATA, _Boot._take_nothing),
    (_MAP, _Boot._take_map),
    (_CHANGE, _Boot._take_change),
    (_PAGES, _Boot._take_pages),
    (_RANGE, _Boot._take_range),
    (_BRK, _Boot._take_brk),
    (_BLOCK, _Boot._take_block),
    (_LAST_PFN, _Boot._take_last_pfn),
    (_MEMBLOCK, _Boot._take_memblock),
    (_MEMBLOCK_LIST, _Boot._take_memblock_list),
    (_EARLY, _Boot._take_early),
    (_RAMDISK, _Boot._take_ramdisk),
    (_TRAMPOLINE, _Boot._take_trampoline),
    (_MP_TABLE, _Boot._take_mp_table),
    (_BOOT_MAPPED, _Boot._take_boot_mapped),
    (_LOW_RAM, _Boot._take_low_ram),
    (_MEGABYTES, _Boot._take_megabytes),
    (_NX, _Boot._take_nx),
    (re.compile("Using GB pages for direct mapping"), _Boot._take_gbpages),
    (_MEMORY, _Boot._take_sizes),
    (_LINUX, _Boot._take_release),
    (_COMMAND_LINE, _Boot._take_command_line),
    (_ON_XEN, _Boot._take_xen),
)


def scan_boot_log(
    stream: BinaryIO, source: str, name: str = "machine", boot: int | None = None
) -> BootLog:
    """Read a boot log as `read_boot_log` does; ``source`` names it in messages."""
    if boot is not None and boot < 1:
        raise InputError(f"boots are counted from 1, not {boot}", source)
    current = _Boot(1, source)
    partial: _Boot | None = None
    for number, message in _messages(stream, source):
        if current.ends_before(message):
            if current.number == boot or (boot is None and current.complete):
                return current.result(name, more=True)
            if partial is None and (current.maps or current.xen.entries):
                partial = current
            current = _Boot(current.number + 1, source, number)
        current.feed(number, message)
    if boot is not None and boot != current.number:
        raise InputError(f"there is no boot {boot}: the log holds {current.number}", source)
    if boot is None and partial is not None and not current.complete:
        current = partial
    if current.empty:
        raise InputError(
            "not a boot log: no line about memory; give dmesg's output from its first line on",
            source,
        )
    return current.result(name, more=partial is not None)


def _messages(stream: BinaryIO, source: str) -> Iterator[tuple[int, str]]:
    """Yield ``(number, message)`` of the lines that matter, wrapped ones joined."""
    pending: tuple[int, str] | None = None
    for number, line in bounded_lines(stream, source):
        interesting = _INTERESTING.search(line) is not None
        if pending is None and not interesting:
            continue
        message = strip_prefixes(line.lstrip()).strip()
        if pending is not None:
            first, start = pending
            pending = None
            if (joined := _join(start, message)) is not None:
                yield first, joined
                continue
            yield from _given_up(first, start, source)
            if not interesting:
                continue
        entry = _MAP.search(message)
        if _OPEN.search(message) or (entry is not None and not entry["type"]):
            pending = number, message
        elif entry is None and _BROKEN_MAP.match(message):
            raise InputError(
                f"memory map line not understood: {message[:80]!a}", f"{source}:{number}"
            )
        else:
            yield number, message
    if pending is not None:
        yield from _given_up(*pending, source)


def _join(start: str, rest: str) -> str | None:
    """Put a wrapped line together again; None where ``rest`` is no continuation of ``start``."""
    if _OPEN.search(start):
        if not re.match(r"0x|-0x|\[mem", rest):
            return None
        return start + ("" if start.endswith("-") or rest.startswith("-") else " ") + rest
    return f"{start} {rest}" if log_type(rest) is not None else None


def _given_up(number: int, start: str, source: str) -> Iterator[tuple[int, str]]:
    """A line whose rest is lost: a map entry without type still counts, half a range cannot."""
    if not _OPEN.search(start):
        yield number, start
    elif _BROKEN_MAP.match(start):
        raise InputError(f"memory map line cut short: {start[:80]!a}", f"{source}:{number}")
