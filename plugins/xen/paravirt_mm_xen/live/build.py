"""Building the guest, and unpacking the hypervisor, into a directory of the caller's."""

from __future__ import annotations

import gzip
import subprocess
import zlib
from collections.abc import Sequence
from pathlib import Path

from paravirt_mm_xen.live.errors import BuildError, MissingPieceError
from paravirt_mm_xen.live.pieces import Pieces

GUEST_SOURCES = Path(__file__).parent.parent / "guest"

_COMPILER_FLAGS = (
    "-std=gnu11",
    "-O2",
    "-Wall",
    "-Wextra",
    "-ffreestanding",
    "-fno-pic",
    "-mcmodel=kernel",
    "-mno-red-zone",  # Xen pushes exception frames right below rsp
    "-mgeneral-regs-only",
    "-fno-stack-protector",
    "-fcf-protection=none",
    "-fno-asynchronous-unwind-tables",
)
_LINKER_FLAGS = (
    "-nostdlib",
    "-static",
    "-no-pie",
    "-Wl,-z,noexecstack,-z,max-page-size=4096",
    "-Wl,--build-id=none,--no-warn-rwx-segments",
)
_ELF_MAGIC = b"\x7fELF"
MAX_HYPERVISOR = 64 << 20  #: bytes, unpacked
GCC_SECONDS = 120


def build_guest(pieces: Pieces, directory: Path, flags: Sequence[str] = ()) -> Path:
    """Compiles and links ``guest/`` with gcc, with extra ``flags``; returns the ELF.

    Raises `BuildError`.
    """
    image = directory / "guest.elf"
    sources = sorted(GUEST_SOURCES.glob("*.[cS]"))
    command = [
        str(pieces.gcc),
        *_COMPILER_FLAGS,
        *_LINKER_FLAGS,
        *flags,
        f"-Wl,-T,{GUEST_SOURCES / 'guest.ld'}",
        "-isystem",
        str(pieces.headers),
        "-o",
        str(image),
        *map(str, sources),
    ]
    try:
        result = subprocess.run(  # noqa: S603 - a list of our own making, no shell
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=GCC_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise BuildError(f"gcc took more than {GCC_SECONDS} s") from None
    if result.returncode:
        raise BuildError(f"gcc failed:\n{result.stderr[-4000:]}")
    return image


def unpack_hypervisor(pieces: Pieces, directory: Path) -> Path:
    """The hypervisor as the plain ELF that QEMU's multiboot loader takes."""
    source = pieces.hypervisor
    remedy = "unpack the Debian package xen-hypervisor-4.17-amd64 again"
    try:
        with source.open("rb") as raw, gzip.open(raw) as zipped:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            image = (zipped if packed else raw).read(MAX_HYPERVISOR + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise MissingPieceError(f"{source} cannot be read ({error})", remedy) from None
    if len(image) > MAX_HYPERVISOR:
        raise MissingPieceError(f"{source} has more than {MAX_HYPERVISOR} bytes", remedy)
    if not image.startswith(_ELF_MAGIC):
        raise MissingPieceError(f"{source} is not an ELF file", remedy)
    target = directory / "xen.elf"
    target.write_bytes(image)
    return target
