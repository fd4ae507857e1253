"""Finding QEMU and a kernel. Nothing is fetched: ``tools/fetch-linux.sh`` does that."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from paravirt_mm.machine.paging import X86_64
from paravirt_mm.verify.linux.qemu.errors import KernelImageError, LiveUnavailableError
from paravirt_mm.verify.linux.qemu.image import (
    ElfImage,
    LoadSegment,
    load_segments,
    read_kernel,
    read_symtab,
    read_vmlinux,
)
from paravirt_mm.verify.linux.qemu.kallsyms import parse_kallsyms

KERNEL_VARIABLE = "PARAVIRT_MM_LINUX"
"""Environment variable: a vmlinuz, or a directory into which a kernel package was unpacked."""
QEMU_VARIABLE = "PARAVIRT_MM_QEMU"
"""Environment variable: the QEMU program, where it is not ``qemu-system-x86_64`` on the path."""
_QEMU = "qemu-system-x86_64"
_NUMBER = re.compile(r"\d+")
_GIVE = (
    "unpack a kernel package into a directory (Debian: linux-image-amd64), or let "
    "tools/fetch-linux.sh do it"
)


@attrs.frozen
class KernelFacts:
    """What decides which machines a kernel can boot on."""

    release: str
    """``uname -r``, e.g. ``6.1.0-32-amd64``."""
    physical_range: tuple[int, int]
    """``[start, end)`` in bytes of physical memory that the image needs, bss and brk too."""
    has_five_levels: bool
    """Whether the kernel was built with CONFIG_X86_5LEVEL."""

    @classmethod
    def of_all(cls, kernels: Sequence[KernelFacts]) -> KernelFacts:
        """Return what holds for each of them: what one cannot have, none has."""
        return cls(
            min(kernels, key=lambda kernel: kernel.takes_pointers).release,
            (
                min(kernel.physical_range[0] for kernel in kernels),
                max(kernel.physical_range[1] for kernel in kernels),
            ),
            all(kernel.has_five_levels for kernel in kernels),
        )

    @property
    def takes_pointers(self) -> bool:
        """Whether ``setup_data`` may point at a range (``setup_indirect``, Linux 5.5)."""
        return [int(number) for number in _NUMBER.findall(self.release)] >= [5, 5]


@attrs.frozen
class Kernel:
    """A kernel ready to be booted: the file, its ELF segments and its symbols."""

    path: Path
    header: bytes = attrs.field(repr=False)
    """The setup header, for ``boot_params``."""
    release: str
    """``uname -r``, e.g. ``6.1.0-32-amd64``."""
    version: str
    """The image's whole version text, which on Debian names the package version."""
    entry: int
    """Physical address of the 64-bit entry point."""
    segments: tuple[LoadSegment, ...] = attrs.field(repr=False)
    symbols: Mapping[str, int] = attrs.field(repr=False)
    is_bzimage: bool = True
    """A vmlinux has no decompressor, so firmware cannot start it."""
    starts: dict[Any, Any] = attrs.field(init=False, factory=dict, eq=False, repr=False)
    """What its boots have in common, as `record_boot` keeps it."""

    @classmethod
    def load(cls, path: Path) -> Kernel:
        """Read, unpack and index a bzImage or vmlinux (1 to 2 s); raises KernelImageError."""
        try:
            header, vmlinux = read_kernel(path)
            entry, segments = load_segments(vmlinux)
            symbols = read_symtab(vmlinux) or parse_kallsyms(segments[0].data, segments[0].vaddr)
        except KernelImageError as error:
            raise KernelImageError(f"{path}: {error}") from error
        return cls(
            path=path,
            header=header.raw,
            release=header.release.partition(" ")[0],
            version=header.release,
            entry=entry,
            segments=segments,
            symbols=symbols,
            is_bzimage=header.payload.stop > 0,
        )

    def unpacked(self) -> ElfImage:
        """The kernel's whole ELF image, read from its file again; raises KernelImageError."""
        return read_vmlinux(self.path)

    @property
    def has_five_levels(self) -> bool:
        """Whether the kernel was built with CONFIG_X86_5LEVEL."""
        return "__pgtable_l5_enabled" in self.symbols

    @property
    def physical_range(self) -> tuple[int, int]:
        """``[start, end)`` in bytes of physical memory that the image needs, bss and brk too."""
        return min(s.paddr for s in self.segments), max(s.end for s in self.segments)

    @property
    def moved(self) -> int:
        """Bytes by which it lies above the place where it is linked to run."""
        first = self.segments[0]
        return first.paddr - (first.vaddr - X86_64.kernel_base)

    def at(self, start: int) -> Kernel:
        """Return the kernel loaded at a physical address, a multiple of 2 MiB below 4 GiB, as a
        loader may do with one that is relocatable (``__startup_64`` corrects its tables).
        """
        by = start - self.physical_range[0]
        segments = tuple(attrs.evolve(s, paddr=s.paddr + by) for s in self.segments)
        return attrs.evolve(self, entry=self.entry + by, segments=segments)

    @property
    def takes_pointers(self) -> bool:
        """Whether ``setup_data`` may point at a range."""
        return self.facts.takes_pointers

    @property
    def facts(self) -> KernelFacts:
        """What decides which machines it can boot on."""
        return KernelFacts(self.release, self.physical_range, self.has_five_levels)


def find_kernels(where: Path | None = None) -> list[Path]:
    """The kernels at ``where``, else at $PARAVIRT_MM_LINUX, a file or a directory; oldest first.

    In a directory these are the ``vmlinuz-*`` in it, in its ``boot/`` or in packages unpacked one
    level below. Raises LiveUnavailableError with what to do.
    """
    text = str(where) if where is not None else os.environ.get(KERNEL_VARIABLE, "")
    if not text:
        raise LiveUnavailableError(
            f"no kernel to boot: set {KERNEL_VARIABLE} to a vmlinuz or to a directory that "
            "tools/fetch-linux.sh has filled (Debian: the package linux-image-amd64, unpacked)"
        )
    path = Path(text)
    if path.is_file():
        return [path]
    if not path.is_dir():
        wrong = "neither a file nor a directory" if path.exists() else "no vmlinuz, nor anything"
        raise LiveUnavailableError(f"{path}: {wrong} there; {_GIVE}")
    patterns = ("vmlinuz-*", "boot/vmlinuz-*", "*/boot/vmlinuz-*")
    found = [file for pattern in patterns for file in path.glob(pattern) if file.is_file()]
    if not found:
        raise LiveUnavailableError(f"{path}: no vmlinuz-* there, in boot/ or in */boot/; {_GIVE}")
    return sorted(found, key=lambda file: [int(n) for n in _NUMBER.findall(file.name)])


def find_kernel(where: Path | None = None) -> Path:
    """The newest of `find_kernels`."""
    return find_kernels(where)[-1]


def find_qemu(program: str | None = None) -> str:
    """QEMU's program: ``program``, else $PARAVIRT_MM_QEMU, else on the path.

    Raises LiveUnavailableError with what to do.
    """
    name = program or os.environ.get(QEMU_VARIABLE) or _QEMU
    found = shutil.which(name)
    if found is None:
        raise LiveUnavailableError(
            f"{name} not found: install QEMU (Debian: qemu-system-x86) or set {QEMU_VARIABLE}"
        )
    return found


@functools.cache
def qemu_version(program: str) -> str:
    """First line of ``--version``; raises LiveUnavailableError where it cannot be run."""
    try:
        result = subprocess.run(  # noqa: S603 - the user names the program; no shell
            [program, "--version"], capture_output=True, timeout=30, check=True, text=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise LiveUnavailableError(f"{program} cannot be run: {error}") from error
    return result.stdout.splitlines()[0][:200] if result.stdout else "unknown"
