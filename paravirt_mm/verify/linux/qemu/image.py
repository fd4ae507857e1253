"""From a kernel's file, a distributor's ``vmlinuz`` or a build's ``vmlinux``, to its ELF image.

``vmlinuz`` is a bzImage: a real-mode setup part, a decompressor, and the compressed ``vmlinux``.
The setup header says where the payload is (``payload_offset`` and ``payload_length``, boot protocol
2.08 and later, Linux 2.6.26), and its first bytes say how it is compressed. Nothing here runs or
trusts the image: every offset is checked against the file, and what comes out is bounded.

Source of facts: Linux ``Documentation/arch/x86/boot.rst`` (setup header, boot protocol), ELF-64.
"""

from __future__ import annotations

import bz2
import lzma
import mmap
import re
import shutil
import struct
import subprocess
import tempfile
import threading
import zlib
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Any, cast

import attrs
import numpy as np

from paravirt_mm.verify.linux.qemu.errors import KernelImageError

MAX_VMLINUZ = 256 << 20
"""Largest vmlinuz that is read, in bytes. Distribution kernels have 6 to 20 MiB."""
MAX_DEBUG_VMLINUX = 8 << 30
"""Largest vmlinux that is mapped, in bytes: debug information takes most of it."""
MAX_VMLINUX = 512 << 20
"""Largest vmlinux that is unpacked, in bytes. Distribution kernels have 40 to 100 MiB."""
_DECOMPRESS_TIMEOUT = 60.0
_BLOCK = 1 << 16

_PT_LOAD = 1
_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_ELF_SEGMENT = struct.Struct("<IIQQQQQQ")
_ELF_SECTION = struct.Struct("<IIQQQQIIQQ")
_ELF_SYMBOL = struct.Struct("<IBBHQQ")
_SHT_SYMTAB = 2
MAX_SYMTAB = 256 << 20
_EM_X86_64 = 62
_MACHINES = {3: "32-bit x86", 183: "arm64", 243: "RISC-V", 21: "PowerPC", 22: "s390"}
"""What ``e_machine`` calls them (ELF gABI, chapter 4)."""
_GIVE_ANOTHER = "give a vmlinuz or vmlinux that is built for x86-64"

_BANNER = re.compile(rb"Linux version (\d+\.[ -~]{1,400})")
_BUILD = re.compile(rb" #\d")
"""In a banner that names the build; since 6.1 one without stands before it (``init/version.c``)."""
_PLAIN_HEADER_END = 0x268
_PLAIN_HEADER = (
    (0x1FE, "<H", 0xAA55),
    (0x202, "<4s", b"HdrS"),
    (0x206, "<H", 0x020F),
    (0x211, "<B", 1),  # loaded high
    (0x22C, "<I", 0x7FFF_FFFF),  # where an initrd may end
    (0x230, "<I", 2 << 20),  # alignment
    (0x234, "<B", 1),  # relocatable
    (0x236, "<H", 3),  # 64-bit entry, may lie above 4 GiB
    (0x238, "<I", 2047),  # length of a command line
    (0x258, "<Q", 16 << 20),  # preferred address
)
"""Fields of the setup header: offset, form, value (boot.rst)."""

_XZ = partial(lzma.LZMADecompressor, memlimit=1 << 30)  # bytes
_STDLIB_CODECS: dict[bytes, tuple[str, Callable[[], Any]]] = {
    b"\x1f\x8b": ("gzip", partial(zlib.decompressobj, wbits=31)),
    b"\xfd7zXZ\x00": ("xz", _XZ),
    b"\x5d\x00\x00": ("lzma", _XZ),
    b"BZh": ("bzip2", bz2.BZ2Decompressor),
}
_TOOL_CODECS = {b"\x28\xb5\x2f\xfd": "zstd", b"\x02\x21\x4c\x18": "lz4", b"\x89LZO": "lzop"}


@attrs.frozen(slots=False)
class LoadSegment:
    """A loadable piece of the kernel: ``data`` goes to physical address ``paddr``."""

    vaddr: int
    paddr: int
    data: bytes = attrs.field(repr=False)
    size: int
    """Bytes in memory; what lies beyond ``data`` is zero (bss, brk)."""

    @property
    def end(self) -> int:
        """Physical end, exclusive."""
        return self.paddr + self.size

    @cached_property
    def pieces(self) -> tuple[tuple[int, bytes], ...]:
        """Physical addresses and bytes of what is not zero, in blocks: bss is often in the file."""
        blocks = len(self.data) // _BLOCK
        array = np.frombuffer(self.data, np.uint8, blocks * _BLOCK).reshape(blocks, _BLOCK)
        filled = np.flatnonzero(array.any(axis=1))
        breaks = np.flatnonzero(np.diff(filled) != 1) + 1
        runs = [(int(run[0]), int(run[-1]) + 1) for run in np.split(filled, breaks) if len(run)]
        edges = [(first * _BLOCK, last * _BLOCK) for first, last in runs]
        edges.append((blocks * _BLOCK, len(self.data)))
        return tuple((self.paddr + low, self.data[low:high]) for low, high in edges if low < high)


@attrs.frozen
class SetupHeader:
    """What the boot protocol's setup header says."""

    raw: bytes = attrs.field(repr=False)
    """The header itself, file offset 0x1f1 up to its end, ready to be copied to ``boot_params``."""
    version: int
    release: str
    """The ``kernel_version`` string, e.g. ``6.1.0-32-amd64 (...) #1 SMP ...``."""
    payload: slice


ElfImage = bytes | mmap.mmap
"""An ELF file in memory: unpacked, or mapped as it lies on disk."""

ELF_MAGIC = b"\x7fELF"


def read_kernel(path: Path) -> tuple[SetupHeader, ElfImage]:
    """Read a bzImage or vmlinux: its setup header (a vmlinux gets a plain one) and ELF image.

    Raises KernelImageError where the file is neither.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            is_elf = file.read(4) == ELF_MAGIC
            if not 0x1000 <= size <= (MAX_DEBUG_VMLINUX if is_elf else MAX_VMLINUZ):
                raise KernelImageError(f"{size} bytes cannot be a kernel; {_GIVE_ANOTHER}")
            if is_elf:
                image = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                return _plain_header(image), image
            file.seek(0)
            packed = file.read()
    except OSError as error:
        raise KernelImageError(str(error.strerror)) from error
    header = parse_setup_header(packed)
    return header, decompress_payload(packed[header.payload])


def read_vmlinux(path: Path) -> ElfImage:
    """Return the ELF image of a bzImage or vmlinux. Raises KernelImageError, with the path."""
    try:
        return read_kernel(path)[1]
    except KernelImageError as error:
        raise KernelImageError(f"{path}: {error}") from error


def _plain_header(image: ElfImage) -> SetupHeader:
    """Return what a loader of a bare vmlinux would write into ``boot_params``, and its version."""
    _check_machine(image)
    found = [banner[1] for banner in _BANNER.finditer(image)]
    if not found:
        raise KernelImageError(
            f"an ELF file without the text 'Linux version': not a vmlinux; {_GIVE_ANOTHER}"
        )
    whole = next((text for text in found if _BUILD.search(text)), found[0])
    words = whole.decode("ascii", "replace")
    header = bytearray(_PLAIN_HEADER_END - 0x1F1)
    for offset, form, value in _PLAIN_HEADER:
        struct.pack_into(form, header, offset - 0x1F1, value)
    return SetupHeader(bytes(header), 0x020F, words, slice(0, 0))


def parse_setup_header(image: bytes) -> SetupHeader:
    """Find payload and version text in a bzImage; raises KernelImageError."""
    if image[0x202:0x206] != b"HdrS":
        raise KernelImageError(f"no 'HdrS' at 0x202: not a Linux x86 bzImage; {_GIVE_ANOTHER}")
    (version,) = struct.unpack_from("<H", image, 0x206)
    if version < 0x0208:
        raise KernelImageError(f"boot protocol {version:#06x} is older than 2.08")
    setup_sectors = image[0x1F1] or 4
    protected_mode = (setup_sectors + 1) * 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    payload = slice(protected_mode + offset, protected_mode + offset + length)
    if not protected_mode < payload.start < payload.stop <= len(image):
        raise KernelImageError(
            "the payload that the setup header names lies outside the file, which seems to be cut "
            "off: copy it again"
        )
    (text,) = struct.unpack_from("<H", image, 0x20E)
    release = image[text + 0x200 : text + 0x200 + 256].partition(b"\0")[0] if text else b""
    header_end = 0x202 + image[0x201]
    return SetupHeader(
        raw=image[0x1F1:header_end],
        version=version,
        release=release.decode("ascii", "replace"),
        payload=payload,
    )


def decompress_payload(payload: bytes) -> bytes:
    """Unpack a bzImage payload: Python does gzip, xz, lzma, bzip2; tools do zstd, lz4, lzo.

    The kernel's build appends the unpacked length to most formats; it is ignored, as is anything
    else behind the compressed stream. Raises KernelImageError.
    """
    for magic, (codec, decompressor) in _STDLIB_CODECS.items():
        if payload.startswith(magic):
            return _decompress_stdlib(payload, codec, decompressor())
    for magic, tool in _TOOL_CODECS.items():
        if payload.startswith(magic):
            return _decompress_tool(payload, tool)
    if payload.startswith(b"\x7fELF"):
        return payload
    raise KernelImageError(f"payload compression is not known (first bytes {payload[:6].hex()})")


def _decompress_stdlib(payload: bytes, codec: str, decompressor: Any) -> bytes:
    try:
        data: bytes = decompressor.decompress(payload, MAX_VMLINUX)
    except (zlib.error, lzma.LZMAError, OSError) as error:
        raise KernelImageError(f"{codec} payload is damaged: {error}") from error
    if not decompressor.eof:
        raise KernelImageError(f"{codec} payload is truncated or larger than {MAX_VMLINUX} bytes")
    return data


def _decompress_tool(payload: bytes, tool: str) -> bytes:
    program = shutil.which(tool)
    if program is None:
        raise KernelImageError(f"this kernel is packed with {tool}: install the program '{tool}'")
    if len(payload) < 8:
        raise KernelImageError(f"{tool} payload is truncated")
    (length,) = struct.unpack_from("<I", payload, len(payload) - 4)
    if not 0 < length <= MAX_VMLINUX:
        raise KernelImageError(f"{tool} payload claims to unpack to {length} bytes")
    with tempfile.TemporaryFile() as packed:
        packed.write(payload[:-4])
        packed.seek(0)
        data = _run_bounded([program, "-dc"], packed, length)
    if len(data) != length:
        raise KernelImageError(f"{tool} could not unpack the payload to {length} bytes")
    return data


def _run_bounded(command: list[str], source: IO[bytes], limit: int) -> bytes:
    """Output of a filter: at most one byte more than ``limit``, and not for ever."""
    with subprocess.Popen(  # noqa: S603 - a fixed program, no shell
        command, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        watchdog = threading.Timer(_DECOMPRESS_TIMEOUT, process.kill)
        watchdog.start()
        try:
            return cast(IO[bytes], process.stdout).read(limit + 1)
        finally:
            watchdog.cancel()
            process.kill()


def _check_machine(vmlinux: ElfImage) -> None:
    """Raise KernelImageError for an ELF file of another machine."""
    machine = int.from_bytes(vmlinux[18:20], "little")
    if vmlinux[:4] == ELF_MAGIC and machine != _EM_X86_64:
        built = _MACHINES.get(machine, f"ELF machine {machine}")
        raise KernelImageError(f"this kernel is built for {built}; {_GIVE_ANOTHER}")


def load_segments(vmlinux: ElfImage) -> tuple[int, tuple[LoadSegment, ...]]:
    """The ELF's entry point (physical) and its PT_LOAD segments; raises KernelImageError."""
    try:
        header = _ELF_HEADER.unpack_from(vmlinux, 0)
    except struct.error as error:
        raise KernelImageError("the unpacked kernel is no ELF file: too short") from error
    ident, entry, table = header[0], header[4], header[5]
    entry_size, count = header[9], header[10]
    _check_machine(vmlinux)
    if ident[:6] != b"\x7fELF\x02\x01" or entry_size != _ELF_SEGMENT.size:
        raise KernelImageError(f"the unpacked kernel is no x86-64 ELF file; {_GIVE_ANOTHER}")
    segments = []
    headers = _headers(vmlinux, _ELF_SEGMENT, table, count, "program")
    for number, (kind, _flags, offset, vaddr, paddr, filesz, memsz, _align) in enumerate(headers):
        if kind != _PT_LOAD or memsz == 0:
            continue
        if filesz > memsz or offset + filesz > len(vmlinux) or paddr + memsz > MAX_VMLINUX:
            raise KernelImageError(f"ELF segment {number} lies outside the file or above 512 MiB")
        segments.append(LoadSegment(vaddr, paddr, vmlinux[offset : offset + filesz], memsz))
    if not segments:
        raise KernelImageError("the unpacked kernel has no loadable segment")
    return entry, tuple(segments)


def _headers(
    vmlinux: ElfImage, form: struct.Struct, start: int, count: int, of: str
) -> list[tuple[int, ...]]:
    end = start + count * form.size
    if end > len(vmlinux):
        raise KernelImageError(f"ELF {of} headers lie outside the file")
    return list(form.iter_unpack(vmlinux[start:end]))


def read_symtab(vmlinux: ElfImage) -> Mapping[str, int]:
    """Return addresses by name from the ELF's own symbol table; empty where it was stripped.

    Raises KernelImageError where the table lies outside the file.
    """
    header = _ELF_HEADER.unpack_from(vmlinux, 0)
    table, count = header[6], header[12]
    sections = _headers(vmlinux, _ELF_SECTION, table, count, "section")
    symtab = next((section for section in sections if section[1] == _SHT_SYMTAB), None)
    if symtab is None:
        return {}
    at, size, names = symtab[4:7]
    if names >= len(sections):
        raise KernelImageError("the ELF symbol table's names are in no section")
    names_at, names_size = sections[names][4:6]
    if size > MAX_SYMTAB or max(at + size, names_at + names_size) > len(vmlinux):
        raise KernelImageError("the ELF symbol table lies outside the file")
    text = vmlinux[names_at : names_at + names_size]
    symbols: dict[str, int] = {}
    entries = memoryview(vmlinux)[at : at + size - size % _ELF_SYMBOL.size]
    for name, _info, _other, _section, value, _size in _ELF_SYMBOL.iter_unpack(entries):
        if 0 < name < len(text) and value:
            end = text.find(b"\0", name)
            symbols.setdefault(text[name:end].decode("ascii", "replace"), value)
    return symbols
