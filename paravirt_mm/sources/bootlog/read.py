"""Reading a boot log: which lines matter, where a boot begins, and what is made of one.

Formats
    dmesg, syslog, journals (also in JSON and in reverse order), serial consoles, quoted in mails
    (`paravirt_mm.sources.lines`); Linux 2.6.19 to today (`linux`) and Xen (`xen`).

Cut logs
    Lines wrapped by a mail program or a terminal are joined (`paravirt_mm.sources.wrapped`; entries
    of a map always). A type that is lost is read as reserved. A map that
    has lost its head gets that of the map printed before it, else what was mapped there. Where
    every line stands twice, it counts once. Where the kernel or Xen has counted other RAM than its
    map has, a line of that may be lost. All this is listed in ``provenance.assumed``; what
    contradicts itself is refused with its line.

Several boots in one file
    The first boot with a memory map and something after it is read, or the one asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import attrs

from paravirt_mm.errors import InputError
from paravirt_mm.machine.e820 import E820Type, MemoryMap
from paravirt_mm.printable import printable
from paravirt_mm.sources.bootlog.facts import BootLog, Platform
from paravirt_mm.sources.bootlog.linux import INTERESTING, MAP_ENTRY, SIZE, PrintedBoot
from paravirt_mm.sources.bootlog.printed import PrintedMap
from paravirt_mm.sources.bootlog.reconstruct import reconstruct
from paravirt_mm.sources.bootlog.xen import XEN_MARK, host_machine
from paravirt_mm.sources.content import Content
from paravirt_mm.sources.e820_words import log_type
from paravirt_mm.sources.lines import (
    bounded_lines,
    from_position,
    strip_prefixes,
    wrapping_of,
)
from paravirt_mm.sources.wrapped import Wrapping

_ADDRESS_OPEN = re.compile(r"(?:\[mem(?:\s+(?:0x[0-9a-fA-F]*(?:-(?:0x[0-9a-fA-F]*)?)?)?)?)$")
"""A line that ends inside of a range."""
_TYPE_OPEN = re.compile(r"==>\s*\(?$")
_BROKEN_ENTRY = re.compile(
    r"(?:BIOS-e820|BIOS-e801|BIOS-88|Xen):\s*(?:\[mem\b|\d|[0-9a-f]{8})"
    r"|(?:user|modified):\s*(?:\[mem\b|(?=[0-9a-f]{8,16}(?:\s|-|$)))"
)
"""``user`` and ``modified`` are words of others, too."""
_REST = re.compile(r"0x|-0x|\[mem")
_CUT_ENTRY = re.compile(rf"(?:{_BROKEN_ENTRY.pattern})[^]]*[0-9a-fx-]$")
_SIZES_OPEN = re.compile(r"Memory: \d+[kK]/\d+[kK] available(?: \([^()]*)?$")
_SIZES_REST = re.compile(r"\(?[^:()\[\]]*\)|[a-zK, -]*\d[a-z\dK, -]*$")
"""What closes the bracket of the line about free memory, or more sizes, before that."""
_MOST_SIZES = 512
"""Characters of the line about free memory at the most, however often it is cut."""
_JOINED = re.compile(
    r"""
    \s?(?:<\d>)?\[\s*\d{1,6}\.\d{6}\](?:\[\s*[TC]\d+\])?\s     # seconds since boot
    | (?<=\S)\s?(?:<\d>)?(?=(?:BIOS-e820|Xen|user|modified):\s(?:\[mem|\d{4})
                  |BRK\ \[|init_memory_mapping:\s|memblock_reserve:\s
                  |kernel\ direct\ mapping\ tables\s|e820:?\ (?:update|remove|last_pfn)\s)
    | (?<=[^:\s])\s?(?=last_pfn\ =)
    | (?<=page\ [124][kMG])\s?(?=\[mem|\d)
    """,
    re.VERBOSE,
)
"""Where a line end is lost: what begins a line stands inside of one."""
_MAY_BE_JOINED = re.compile(
    r"(?!\A)(?:\.\d{6}\]|(?:BIOS-e820|Xen|user|modified):\s|BRK \[|init_memory_mapping:\s"
    r"|memblock_reserve:\s|kernel direct mapping|e820:?\s(?:update|remove|last)|last_pfn =)"
    r"|page [124][kMG]\s?[\[\d]"
)
"""In each line that `_JOINED` splits; several times as fast as that."""

_GUEST_ENTRIES = 6

_NO_HYPERVISOR_MAP = (
    "a hypervisor log without memory map: it needs the lines after 'Xen-e820 RAM map:'"
    " (boot Xen with loglvl=all) or dom0's 'Xen: [mem ...]' lines"
)
_NO_MAP = "no memory map: expected 'BIOS-e820: [mem ...] usable' or similar lines"


def scan_boot_log(
    content: Content, source: str, name: str = "machine", boot: int | None = None
) -> BootLog:
    """Read a boot log as `read_boot_log` does; ``source`` names it in messages."""
    if boot is not None and boot < 1:
        raise InputError(f"boots are counted from 1, not {boot}", source)
    cut = wrapping_of(content)
    assumed = (
        [f"lines that were cut (none is longer than {cut.width} columns) are joined"] if cut else []
    )
    current = PrintedBoot(1, source, assumed=[*assumed])
    partial: PrintedBoot | None = None
    for number, message in _messages(content, source, cut):
        if current.ends_before(message):
            if current.number == boot or (boot is None and current.complete):
                return _result(current, name, more=True)
            if partial is None and (current.maps or current.xen.entries):
                partial = current
            current = PrintedBoot(current.number + 1, source, number, assumed=[*assumed])
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
    return _result(current, name, more=partial is not None)


def _result(boot: PrintedBoot, name: str, more: bool) -> BootLog:
    """Make sense of what has been read. Raises InputError where it contradicts itself."""
    boot.check()
    host_map = boot.xen.host_map
    platform: Platform = "native"
    if boot.on_xen:
        guest = boot.unprivileged or _is_a_guests(boot.maps)
        platform = "xen-pv-guest" if guest else "xen-pv"
    elif not boot.maps and (boot.xen.facts or boot.xen.entries):
        platform = "hypervisor"
    source = f"{boot.source} (boot {boot.number})" if boot.number > 1 or more else boot.source
    machine = missing = None
    made_up: tuple[tuple[int, int], ...] = ()
    if boot.maps:
        machine, made_up = reconstruct(boot, name, source)
        below = _as_built(machine.memory_map) if platform == "xen-pv-guest" else host_map
        machine = attrs.evolve(machine, host_map=below)
    elif host_map is not None:
        machine = host_machine(name, source, boot.xen, boot.assumed)
    else:
        missing = _NO_HYPERVISOR_MAP if platform == "hypervisor" else _NO_MAP
    return BootLog(
        source=source,
        boot=boot.number,
        platform=platform,
        release=boot.release,
        command_line=boot.command_line,
        machine=machine,
        missing=missing,
        host_map=host_map,
        firmware_map=boot.maps[0].sanitised if boot.maps else None,
        made_up=made_up,
        kernel_listed=boot.kernel_image is not None,
        user_map_from=boot.user_map_from,
        mixed=boot.mixed,
        last_line=boot.last_line,
        facts=tuple(sorted([*boot.xen.facts, *boot.facts], key=lambda fact: fact.line)),
    )


def _is_a_guests(maps: Sequence[PrintedMap]) -> bool:
    """Tell whether a map below Xen is one that Linux makes up for a guest: RAM, with the first
    MiB's hole and what the toolstack has put there. dom0 gets the host's, ACPI tables and all.
    """
    return (
        bool(maps)
        and len(maps[0].entries) <= _GUEST_ENTRIES
        and not any(kind not in {E820Type.RAM, E820Type.RESERVED} for _, _, kind in maps[0].entries)
    )


def _as_built(memory: MemoryMap) -> MemoryMap:
    """Return a guest's memory as the toolstack built it: all RAM up to its end. What Linux calls
    reserved above 1 MiB is what it found there: the list of frames, start info.
    """
    return MemoryMap.sanitise([(0, memory.ram_pages().end, E820Type.RAM)])


# -- lines -----------------------------------------------------------------------------------------


def _messages(content: Content, source: str, cut: Wrapping | None) -> Iterator[tuple[int, str]]:
    """Yield ``(number, message)`` of the lines that matter, wrapped ones joined, joined ones apart.

    Of another line that follows one of these the message is empty.
    """
    pending: tuple[int, str] | None = None
    for number, message in _parts(content, source, cut):
        interesting = any(word in message for word in INTERESTING)
        if pending is None and not interesting:
            yield number, ""
            continue
        if pending is not None:
            first, start = pending
            pending = None
            if (joined := _join(start, message)) is not None:
                if len(joined) < _MOST_SIZES and _SIZES_OPEN.match(joined):
                    pending = first, joined
                else:
                    yield first, joined
                continue
            yield from _given_up(first, start, source)
            if not interesting:
                continue
        if _is_entry(message):
            yield number, message
        elif _is_open(message):
            pending = number, message
        else:
            _check(message, number, source)
            yield number, message
    if pending is not None:
        yield from _given_up(*pending, source)


def _parts(content: Content, source: str, cut: Wrapping | None) -> Iterator[tuple[int, str]]:
    """Yield ``(number, message)`` of the lines that matter and of those that follow them."""
    for number, line in bounded_lines(content, source, INTERESTING, cut):
        message = _message(line)
        if message.startswith(XEN_MARK):
            yield number, message
        else:
            parts = _JOINED.split(message) if _MAY_BE_JOINED.search(message) else [message]
            yield from ((number, part) for part in parts if part)


def _message(line: str) -> str:
    """Return what was printed, without prefixes, blanks in a row made one."""
    hypervisor = line.find(XEN_MARK)
    if hypervisor >= 0:
        return from_position(line, hypervisor)
    return " ".join(strip_prefixes(line.lstrip()).split())


def _is_entry(message: str) -> bool:
    """Tell whether a line is an entry of a memory map, complete and of a known type."""
    entry = MAP_ENTRY.search(message)
    return entry is not None and log_type(entry["type"]) is not None


def _is_open(message: str) -> bool:
    """Tell whether the rest of a line may stand on the next one."""
    if message.startswith(XEN_MARK):
        return False
    return (
        MAP_ENTRY.search(message) is not None
        or _ADDRESS_OPEN.search(message) is not None
        or _TYPE_OPEN.search(message) is not None
        or _CUT_ENTRY.search(message) is not None
        or _SIZES_OPEN.match(message) is not None
    )


def _join(start: str, rest: str) -> str | None:
    """Put a wrapped line together again; None where ``rest`` is no continuation of ``start``."""
    if _TYPE_OPEN.search(start):
        return f"{start} {rest}" if log_type(rest.rstrip(")")) is not None else None
    if _SIZES_OPEN.match(start):
        if _SIZES_REST.match(rest) is None:
            return None
        if start[-1:].isdigit():  # no word ends so
            return start + rest
        return max(f"{start} {rest}", start + rest, key=lambda text: len(SIZE.findall(text)))
    for joined in (start + rest, f"{start} {rest}"):
        if (entry := MAP_ENTRY.search(joined)) is not None and log_type(entry["type"]) is not None:
            return joined
    if _BROKEN_ENTRY.search(start) or not _REST.match(rest):
        return None
    return start + ("" if start.endswith("-") or rest.startswith("-") else " ") + rest


def _check(message: str, number: int, source: str) -> None:
    """Refuse a line of or about the memory map that says something that is not understood."""
    if _BROKEN_ENTRY.match(message):
        shown = printable(message, 80)
        raise InputError(
            f"memory map line not understood: {shown!r} (addresses are hexadecimal, as printed)",
            f"{source}:{number}",
        )


def _given_up(number: int, start: str, source: str) -> Iterator[tuple[int, str]]:
    """A line whose rest is lost: a map entry without type still counts, half a range cannot."""
    if MAP_ENTRY.search(start) or _TYPE_OPEN.search(start) or _SIZES_OPEN.match(start):
        yield number, start
    elif _BROKEN_ENTRY.match(start):
        shown = printable(start, 80)
        raise InputError(f"memory map line cut short: {shown!r}", f"{source}:{number}")
