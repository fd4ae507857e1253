"""Writing table pages as an ELF core, as kdump and QEMU's dump-guest-memory write memory.

One PT_LOAD a contiguous run of table pages (p_paddr: where it lies, p_vaddr: where the direct map
would show it) and three notes: an empty NT_PRSTATUS, which gdb asks for; ``QEMU``, QEMU's CPU
state with CR0, CR3 and CR4, from which tools learn the root and the mode; ``PARAVIRT_MM``, lines
of text that say which run this is. The file is written front to back, so that it can go to a pipe.

Source: System V ABI, "Object files"; the CPU-state note as in target/i386/arch_dump.c of QEMU 5 to
8 (layout only).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paravirt_mm._version import __version__
from paravirt_mm.engine.trace import Trace
from paravirt_mm.errors import InputError
from paravirt_mm.image.contents import Image
from paravirt_mm.image.walker import canonical
from paravirt_mm.machine.paging import PAGE_SIZE, PagingMode
from paravirt_mm.printable import printable

EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")
SHDR = struct.Struct("<IIQQQQIIQQ")
NHDR = struct.Struct("<III")
ET_CORE, PT_LOAD, PT_NOTE = 4, 1, 4
EM_386, EM_X86_64 = 3, 62
PN_XNUM = 0xFFFF
"""In e_phnum: the real number of program headers stands in sh_info of section header 0."""
NT_PRSTATUS = 1
_PRSTATUS_SIZE = {EM_386: (144, 24), EM_X86_64: (336, 32)}
"""Size of the note by machine, and where pr_pid is."""

QEMU_CPU_SIZE = 440
QEMU_CR_OFFSET = 392
"""The note of a CPU: version and size (4 bytes each), 18 registers, 10 segments of 24 bytes, CR0
to CR4, kernel GS base.
"""

CR0_PE, CR0_WP, CR0_PG = 1, 1 << 16, 1 << 31
CR4_PSE, CR4_PAE, CR4_PGE, CR4_LA57 = 1 << 4, 1 << 5, 1 << 7, 1 << 12

NOTE_NAME = "PARAVIRT_MM"


def control_registers(mode: PagingMode) -> tuple[int, int]:
    """Return CR0 and CR4 as they select a paging mode (a 64-bit one needs EFER.LME too)."""
    cr4 = CR4_PSE | CR4_PGE
    if mode.entry_bytes == 8:
        cr4 |= CR4_PAE
    if mode.root_level == 5:
        cr4 |= CR4_LA57
    return CR0_PE | CR0_WP | CR0_PG, cr4


def write_core(trace: Trace, path: Path | str) -> int:
    """Write the table pages of a finished run to ``path`` (a file or a pipe); return its size in
    bytes.

    Raises `InputError` where the file cannot be written or the run has no tables.
    """
    image = Image(trace)
    try:
        with Path(path).open("wb", buffering=0) as file:
            return stream_core(image, file.write)
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", str(path)) from error


def stream_core(image: Image, write: Callable[[Any], int | None]) -> int:
    """Pass the core of an image to ``write``, front to back, chunk by chunk; return its size in
    bytes.
    """
    start = image.start
    facts = {
        "version": __version__,
        "machine": start.machine.name,
        "allocator": start.allocator,
        "backend": start.backend,
        "mode": image.mode.name,
        "cr3": f"{image.root:#x}",
    }
    header = core_header(image.mode, image.root, image.extents(), image.direct_map_base, facts)
    size = _write_all(write, header)
    for _, entries in image.chunks():
        size += _write_all(write, entries)
    return size


def _write_all(write: Callable[[Any], int | None], data: Any) -> int:
    """A pipe may take less than it is given."""
    view = memoryview(data).cast("B")
    done = 0
    while done < len(view):
        done += write(view[done:]) or 0
    return len(view)


def core_header(
    mode: PagingMode,
    root: int,
    extents: Sequence[tuple[int, int]],
    direct_map_base: int,
    facts: Mapping[str, str],
) -> bytes:
    """Return everything before the first page: headers and notes, padded to a page.

    ``extents`` are the physical ranges (bytes, page aligned) whose contents follow, in this order.
    """
    machine = EM_386 if mode.is_32bit else EM_X86_64
    notes = _notes(mode, root, machine, facts)
    count = len(extents) + 1
    extended = count >= PN_XNUM
    table = EHDR.size
    notes_at = table + count * PHDR.size + (SHDR.size if extended else 0)
    data_at = -(-(notes_at + len(notes)) // PAGE_SIZE) * PAGE_SIZE
    header = EHDR.pack(
        b"\x7fELF\x02\x01\x01".ljust(16, b"\0"),  # 64-bit, little-endian, version 1
        ET_CORE,
        machine,
        1,  # version
        0,  # no entry point
        table,
        table + count * PHDR.size if extended else 0,
        0,  # flags
        EHDR.size,
        PHDR.size,
        PN_XNUM if extended else count,
        SHDR.size if extended else 0,
        1 if extended else 0,
        0,  # no section names
    )
    parts = [header, PHDR.pack(PT_NOTE, 0, notes_at, 0, 0, len(notes), len(notes), 4)]
    offset = data_at
    for start, end in extents:
        virtual = canonical(mode, direct_map_base + start)
        size = end - start
        parts.append(PHDR.pack(PT_LOAD, 0, offset, virtual, start, size, size, PAGE_SIZE))
        offset += size
    if extended:
        parts.append(SHDR.pack(0, 0, 0, 0, 0, 0, 0, count, 0, 0))
    parts.append(notes)
    return b"".join(parts).ljust(data_at, b"\0")


def _notes(mode: PagingMode, root: int, machine: int, facts: Mapping[str, str]) -> bytes:
    size, pid_at = _PRSTATUS_SIZE[machine]
    status = bytearray(size)
    status[pid_at : pid_at + 4] = (1).to_bytes(4, "little")
    cr0, cr4 = control_registers(mode)
    cpu = bytearray(QEMU_CPU_SIZE)
    struct.pack_into("<II", cpu, 0, 1, QEMU_CPU_SIZE)
    struct.pack_into("<5Q", cpu, QEMU_CR_OFFSET, cr0, 0, 0, root, cr4)
    text = "".join(f"{key}={printable(value, 256)}\n" for key, value in facts.items())
    return (
        _note("CORE", NT_PRSTATUS, bytes(status))
        + _note("QEMU", 0, bytes(cpu))
        + _note(NOTE_NAME, 0, text.encode())
    )


def _note(name: str, kind: int, content: bytes) -> bytes:
    label = name.encode() + b"\0"
    return (
        NHDR.pack(len(label), len(content), kind)
        + label.ljust(-(-len(label) // 4) * 4, b"\0")
        + content.ljust(-(-len(content) // 4) * 4, b"\0")
    )
