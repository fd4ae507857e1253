"""From a distributor's ``vmlinuz`` to the kernel's ELF image.

``vmlinuz`` is a bzImage: a real-mode setup part, a decompressor, and the compressed ``vmlinux``.
The setup header says where the payload is (``payload_offset`` and ``payload_length``, boot protocol
2.08 and later, Linux 2.6.26), and its first bytes say how it is compressed. Nothing here runs or
trusts the image: every offset is checked against the file, and what comes out is bounded.

Source of facts: Linux ``Documentation/arch/x86/boot.rst`` (setup header, boot protocol), ELF-64.
"""

from __future__ import annotations

import bz2
import lzma
import shutil
import struct
import subprocess
import tempfile
import threading
import zlib
from pathlib import Path
from typing import IO, cast

import attrs

from paravirt_mm.verify.linux.qemu.errors import KernelImageError

MAX_VMLINUZ = 256 << 20
"""Largest vmlinuz that is read, in bytes. Distribution kernels have 6 to 20 MiB."""
MAX_VMLINUX = 512 << 20
"""Largest vmlinux that is unpacked, in bytes. Distribution kernels have 40 to 100 MiB."""
_DECOMPRESS_TIMEOUT = 60.0

_PT_LOAD = 1
_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_ELF_SEGMENT = struct.Struct("<IIQQQQQQ")
_EM_X86_64 = 62

_STDLIB_CODECS = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\x00": "xz",
    b"\x5d\x00\x00": "lzma",
    b"BZh": "bzip2",
}
_TOOL_CODECS = {b"\x28\xb5\x2f\xfd": "zstd", b"\x02\x21\x4c\x18": "lz4"}


@attrs.frozen
class Segment:
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


@attrs.frozen
class SetupHeader:
    """What the boot protocol's setup header says."""

    raw: bytes = attrs.field(repr=False)
    """The header itself, file offset 0x1f1 up to its end, ready to be copied to ``boot_params``."""
    version: int
    release: str
    """The ``kernel_version`` string, e.g. ``6.1.0-32-amd64 (...) #1 SMP ...``."""
    payload: slice


def read_vmlinuz(path: Path) -> bytes:
    """Read a bzImage; raises KernelImageError where the file cannot be one."""
    try:
        size = path.stat().st_size
        if not 0x1000 <= size <= MAX_VMLINUZ:
            raise KernelImageError(f"{path}: {size} bytes cannot be a vmlinuz")
        return path.read_bytes()
    except OSError as error:
        raise KernelImageError(f"{path}: {error.strerror or error}") from error


def parse_setup_header(image: bytes) -> SetupHeader:
    """Find payload and version text in a bzImage; raises KernelImageError."""
    if len(image) < 0x1000 or image[0x202:0x206] != b"HdrS":
        raise KernelImageError("no 'HdrS' at 0x202: not a Linux x86 bzImage")
    (version,) = struct.unpack_from("<H", image, 0x206)
    if version < 0x0208:
        raise KernelImageError(f"boot protocol {version:#06x} is older than 2.08")
    setup_sectors = image[0x1F1] or 4
    protected_mode = (setup_sectors + 1) * 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    payload = slice(protected_mode + offset, protected_mode + offset + length)
    if not protected_mode < payload.start < payload.stop <= len(image):
        raise KernelImageError("the payload that the setup header names lies outside the file")
    (text,) = struct.unpack_from("<H", image, 0x20E)
    release = image[text + 0x200 : text + 0x200 + 256].split(b"\0", 1)[0] if text else b""
    header_end = 0x202 + image[0x201]
    return SetupHeader(
        raw=image[0x1F1:header_end],
        version=version,
        release=release.decode("ascii", "replace"),
        payload=payload,
    )


def decompress_payload(payload: bytes) -> bytes:
    """Unpack a bzImage payload: gzip, xz, lzma and bzip2 in Python, zstd and lz4 by their tools.

    The kernel's build appends the unpacked length to most formats; it is ignored, as is anything
    else behind the compressed stream. Raises KernelImageError.
    """
    for magic, codec in _STDLIB_CODECS.items():
        if payload.startswith(magic):
            return _decompress_stdlib(payload, codec)
    for magic, tool in _TOOL_CODECS.items():
        if payload.startswith(magic):
            return _decompress_tool(payload, tool)
    if payload.startswith(b"\x7fELF"):
        return payload
    raise KernelImageError(f"payload compression is not known (first bytes {payload[:6].hex()})")


def _decompress_stdlib(payload: bytes, codec: str) -> bytes:
    try:
        if codec == "gzip":
            unzip = zlib.decompressobj(wbits=31)
            data = unzip.decompress(payload, MAX_VMLINUX)
            complete = unzip.eof
        elif codec == "bzip2":
            bunzip = bz2.BZ2Decompressor()
            data = bunzip.decompress(payload, MAX_VMLINUX)
            complete = bunzip.eof
        else:
            unxz = lzma.LZMADecompressor(memlimit=1 << 30)
            data = unxz.decompress(payload, MAX_VMLINUX)
            # The kernel's lzma-alone streams carry the length instead of an end marker.
            complete = unxz.eof or codec == "lzma"
    except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
        raise KernelImageError(f"{codec} payload is damaged: {error}") from error
    if not complete:
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


def load_segments(vmlinux: bytes) -> tuple[int, tuple[Segment, ...]]:
    """The ELF's entry point (physical) and its PT_LOAD segments; raises KernelImageError."""
    try:
        header = _ELF_HEADER.unpack_from(vmlinux, 0)
    except struct.error as error:
        raise KernelImageError("the unpacked kernel is no ELF file: too short") from error
    ident, machine, entry, table = header[0], header[2], header[4], header[5]
    entry_size, count = header[9], header[10]
    if ident[:6] != b"\x7fELF\x02\x01" or machine != _EM_X86_64 or entry_size != 56:
        raise KernelImageError("the unpacked kernel is no x86-64 ELF file")
    segments = []
    for number in range(count):
        try:
            kind, _flags, offset, vaddr, paddr, filesz, memsz, _align = _ELF_SEGMENT.unpack_from(
                vmlinux, table + number * entry_size
            )
        except struct.error as error:
            raise KernelImageError("ELF program headers lie outside the file") from error
        if kind != _PT_LOAD or memsz == 0:
            continue
        if filesz > memsz or offset + filesz > len(vmlinux) or paddr + memsz > MAX_VMLINUX:
            raise KernelImageError(f"ELF segment {number} lies outside the file or above 512 MiB")
        segments.append(Segment(vaddr, paddr, vmlinux[offset : offset + filesz], memsz))
    if not segments:
        raise KernelImageError("the unpacked kernel has no loadable segment")
    return entry, tuple(segments)
