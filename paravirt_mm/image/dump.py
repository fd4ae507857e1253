"""Reading dumps of physical memory: ELF cores (kdump's vmcore, QEMU's dump-guest-memory, our own)
and raw files.

Nothing is loaded: a `Dump` knows where in the file each piece of memory lies and reads what it is
asked for. A file that ends early, or whose headers contradict each other, still opens, with
`Dump.problems` saying what is wrong; `InputError` is for files that are no dump at all.
"""

from __future__ import annotations

import os
import re
import struct
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType

import attrs

from paravirt_mm.errors import InputError
from paravirt_mm.image.elf import (
    CR0_PG,
    CR4_LA57,
    CR4_PAE,
    EM_386,
    EM_X86_64,
    ET_CORE,
    NHDR,
    NOTE_NAME,
    PN_XNUM,
    PT_LOAD,
    PT_NOTE,
    QEMU_CR_OFFSET,
)
from paravirt_mm.machine.paging import (
    I386,
    I386_PAE,
    MODES,
    X86_64,
    X86_64_LA57,
    PagingMode,
)

MAX_SEGMENTS = 1 << 20
MAX_NOTES = 16 << 20
"""Bytes of notes that are read, of all segments together."""
MAX_PROBLEMS = 100
MAX_NOTE_COUNT = 100_000
MAX_FACTS = 10_000
MAX_READ = 64 << 20

_FOREIGN = {
    b"KDUMP   ": "a compressed kdump; convert it with makedumpfile -E or dump without -z",
    b"makedumpfile": "a flattened dump; convert it with makedumpfile -R",
    b"\x1f\x8b": "compressed with gzip; unpack it first",
    b"\xfd7zXZ": "compressed with xz; unpack it first",
    b"(\xb5/\xfd": "compressed with zstd; unpack it first",
}


@attrs.frozen
class Segment:
    """Physical bytes ``[start, end)`` that lie in the file from ``offset``; ``virtual`` is where
    they are mapped.
    """

    start: int
    end: int
    offset: int
    virtual: int = 0


class Dump:
    """A dump that is open for reading; use it as a context manager.

    ``segments`` are sorted and disjoint. ``cr3`` and ``mode`` are what the notes say, None where
    they say nothing. ``facts`` are the lines of a PARAVIRT_MM or VMCOREINFO note; ``problems``
    says what is wrong with the file.
    """

    def __init__(
        self,
        file: int,
        path: str,
        kind: str,
        segments: list[Segment],
        cr3: int | None = None,
        mode: PagingMode | None = None,
        facts: Mapping[str, str] = MappingProxyType({}),
        problems: tuple[str, ...] = (),
    ) -> None:
        self._file = file
        self.path = path
        self.kind = kind
        self.segments = segments
        self.cr3 = cr3
        self.mode = mode
        self.facts = facts
        self.problems = problems
        self._starts = [segment.start for segment in segments]

    def read(self, address: int, size: int) -> bytes | None:
        """Return ``size`` bytes of physical memory, or None where any of them is not in the dump.

        Raises ValueError for more than `MAX_READ` at once.
        """
        if not 0 <= size <= MAX_READ:
            raise ValueError(f"read of {size} bytes")
        parts = []
        while size > 0:
            number = bisect_right(self._starts, address) - 1
            if number < 0 or address >= self.segments[number].end:
                return None
            segment = self.segments[number]
            want = min(size, segment.end - address)
            data = os.pread(self._file, want, segment.offset + address - segment.start)
            if len(data) != want:
                return None
            parts.append(data)
            address += want
            size -= want
        return b"".join(parts)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Dump:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_dump(path: Path | str, base: int = 0) -> Dump:
    """Open a dump. ``base`` is the physical address of the first byte of a raw file.

    Raises `InputError` where it cannot be read or is of a kind that this reader does not know.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", str(path)) from error
    try:
        return _open(file, str(path), base)
    except OSError as error:
        os.close(file)
        raise InputError(f"cannot be read: {error.strerror}", str(path)) from error
    except BaseException:
        os.close(file)
        raise


def _open(file: int, path: str, base: int) -> Dump:
    size = os.fstat(file).st_size
    if not size:
        raise InputError("is empty, or not a file that can be read at any place", path)
    magic = os.pread(file, max(map(len, _FOREIGN)), 0)
    for start, what in _FOREIGN.items():
        if magic.startswith(start):
            raise InputError(f"is {what}", path)
    if not magic.startswith(b"\x7fELF"):
        return Dump(file, path, "raw", [Segment(base, base + size, 0)])
    return _ElfReader(file, path, size).read(magic)


class _ElfReader:
    """Reads the headers of one ELF core. Every number in them is untrusted."""

    def __init__(self, file: int, path: str, size: int) -> None:
        self.file = file
        self.path = path
        self.size = size
        self.problems: list[str] = []
        self.facts: dict[str, str] = {}
        self.registers: tuple[int, int, int] | None = None
        self.notes_left = MAX_NOTES
        self.note_count = 0

    def _problem(self, text: str) -> None:
        if text in self.problems:
            return
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(text)
        elif len(self.problems) == MAX_PROBLEMS:
            self.problems.append("and more")

    def read(self, magic: bytes) -> Dump:
        wide = magic[4:5] == b"\2"
        kind, machine, table, sections, entry, count = self._header(wide)
        if magic[4] not in {1, 2} or magic[5] != 1:
            raise InputError("is no little-endian 32-bit or 64-bit ELF file", self.path)
        if kind != ET_CORE:
            raise InputError(f"is an ELF file of type {kind}, not a core (4)", self.path)
        if machine not in {EM_386, EM_X86_64}:
            raise InputError(f"is a core of ELF machine {machine}; x86 is 3 or 62", self.path)
        if count == PN_XNUM:
            count = self._extended_count(wide, sections)
        loads: list[Segment] = []
        for header in self._program_headers(wide, table, entry, count):
            kind, offset, virtual, physical, length = header
            if kind == PT_NOTE:
                self._notes(offset, length)
            elif kind == PT_LOAD and length:
                loads.append(self._segment(offset, virtual, physical, length))
        segments = self._disjoint(loads)
        if not segments:
            raise InputError("holds no memory (no PT_LOAD that lies inside the file)", self.path)
        cr3, mode = self._root(machine)
        return Dump(
            self.file,
            self.path,
            "elf",
            segments,
            cr3,
            mode,
            MappingProxyType(self.facts),
            tuple(self.problems),
        )

    def _bytes(self, offset: int, size: int) -> bytes:
        if offset > self.size:
            return b""
        return os.pread(self.file, size, offset)

    def _header(self, wide: bool) -> tuple[int, int, int, int, int, int]:
        layout = struct.Struct("<16xHHIQQQIHHHHHH" if wide else "<16xHHIIIIIHHHHHH")
        data = self._bytes(0, layout.size)
        if len(data) < layout.size:
            raise InputError("ends inside its ELF header", self.path)
        kind, machine, _, _, table, sections, _, _, entry, count, *_ = layout.unpack(data)
        return kind, machine, table, sections, entry, count

    def _extended_count(self, wide: bool, sections: int) -> int:
        at, size = (44, 64) if wide else (28, 40)
        data = self._bytes(sections, size)
        if not sections or len(data) < size:
            self._problem("the number of program headers is not in the file")
            return PN_XNUM
        return int.from_bytes(data[at : at + 4], "little")

    def _program_headers(
        self, wide: bool, table: int, entry: int, count: int
    ) -> Iterator[tuple[int, int, int, int, int]]:
        """Yield (type, offset, virtual, physical, file size) of each program header."""
        layout = struct.Struct("<IIQQQQQQ" if wide else "<IIIIIIII")
        if entry < layout.size:
            raise InputError(f"has program headers of {entry} bytes", self.path)
        if count > MAX_SEGMENTS:
            self._problem(f"{count} program headers; only {MAX_SEGMENTS} are read")
            count = MAX_SEGMENTS
        data = self._bytes(table, min(count * entry, self.size - table))
        if len(data) < count * entry:
            self._problem("the file ends inside its program headers")
        for at in range(0, len(data) - layout.size + 1, entry):
            fields = layout.unpack_from(data, at)
            if wide:
                kind, _, offset, virtual, physical, length, _, _ = fields
            else:
                kind, offset, virtual, physical, length, _, _, _ = fields
            yield kind, offset, virtual, physical, length

    def _segment(self, offset: int, virtual: int, physical: int, length: int) -> Segment:
        have = max(0, min(length, self.size - offset))
        if have < length:
            self._problem(
                f"truncated: of memory {physical:#x}-{physical + length:#x} only"
                f" {have:#x} bytes are in the file"
            )
        return Segment(physical, physical + have, offset, virtual)

    def _disjoint(self, segments: list[Segment]) -> list[Segment]:
        result: list[Segment] = []
        overlaps = 0
        for segment in sorted(segments, key=lambda s: (s.start, s.end)):
            end = result[-1].end if result else segment.start
            if segment.start < end:
                overlaps += 1
                skip = end - segment.start
                segment = attrs.evolve(
                    segment,
                    start=end,
                    offset=segment.offset + skip,
                    virtual=segment.virtual + skip,
                )
            if segment.start < segment.end:
                result.append(segment)
        if overlaps:
            self._problem(f"{overlaps} segments overlap others; the first one is used")
        return result

    # -- notes --------------------------------------------------------------------------------

    def _notes(self, offset: int, length: int) -> None:
        data = self._bytes(offset, min(length, self.notes_left))
        self.notes_left -= len(data)
        if len(data) < length:
            self._problem("the notes are truncated")
        at = 0
        while self.note_count < MAX_NOTE_COUNT and at + NHDR.size <= len(data):
            name_size, size, _kind = NHDR.unpack_from(data, at)
            self.note_count += 1
            at += NHDR.size
            name = data[at : at + name_size].partition(b"\0")[0]
            at += -(-name_size // 4) * 4
            content = data[at : at + size]
            at += -(-size // 4) * 4
            if len(content) < size:
                self._problem("a note is truncated")
                return
            if name == b"QEMU" and self.registers is None and size >= QEMU_CR_OFFSET + 40:
                cr0, _, _, cr3, cr4 = struct.unpack_from("<5Q", content, QEMU_CR_OFFSET)
                self.registers = cr0, cr3, cr4
            elif name in (NOTE_NAME.encode(), b"VMCOREINFO"):
                self._text(content)

    def _text(self, content: bytes) -> None:
        for line in content.decode("ascii", "replace").splitlines():
            key, equals, value = line.partition("=")
            if equals and len(self.facts) < MAX_FACTS:
                self.facts.setdefault(key, value)

    def _root(self, machine: int) -> tuple[int | None, PagingMode | None]:
        """Find CR3 and the mode: in our note, in QEMU's CPU state, or through a kernel's
        VMCOREINFO.
        """
        named = MODES.get(self.facts.get("mode", ""))
        ours = _number(self.facts.get("cr3"))
        if named is not None and ours is not None:
            if not 0 <= ours < 1 << 52:
                self._problem(f"the note's cr3 is no physical address: {self.facts['cr3']}")
                return None, named
            return ours, named
        if self.registers is not None:
            cr0, cr3, cr4 = self.registers
            if not cr0 & CR0_PG:
                self._problem("the CPU's paging is off (CR0.PG is 0)")
                return None, None
            mode = _mode(machine, bool(cr4 & CR4_PAE), bool(cr4 & CR4_LA57))
            return cr3 & (~0x1F if mode is I386_PAE else ~0xFFF), mode
        return self._kernel_root(machine)

    def _kernel_root(self, machine: int) -> tuple[int | None, PagingMode | None]:
        symbol = _number(self.facts.get("SYMBOL(swapper_pg_dir)"), 16)
        if symbol is None:
            return None, None
        five = self.facts.get("NUMBER(pgtable_l5_enabled)") == "1"
        mode = _mode(machine, "CONFIG_X86_PAE" in self.facts, five)
        phys_base = _number(self.facts.get("NUMBER(phys_base)"), 10) or 0
        root = symbol - mode.kernel_base + phys_base
        return (root, mode) if 0 <= root < 1 << 52 else (None, mode)


def _mode(machine: int, pae: bool, five_levels: bool) -> PagingMode:
    if machine == EM_X86_64:
        return X86_64_LA57 if five_levels else X86_64
    return I386_PAE if pae else I386


def _number(text: str | None, base: int = 0) -> int | None:
    if text is None or not re.fullmatch(r"-?(0x)?[0-9a-fA-F]{1,20}", text):
        return None
    try:
        return int(text, base)
    except ValueError:
        return None


__all__ = ["Dump", "Segment", "open_dump"]
