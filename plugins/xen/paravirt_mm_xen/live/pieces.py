"""Finding what a live replay needs: QEMU, gcc, a Xen hypervisor and its public headers.

Nothing is fetched. ``tools/fetch-xen.sh`` unpacks the two Debian packages into the directory that
is looked at by default.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import attrs

from paravirt_mm_xen.live.errors import MissingPieceError

ENVIRONMENT = "PARAVIRT_MM_XEN"
"""Names a directory into which xen-hypervisor-4.17-amd64 and libxen-dev were unpacked."""

_VERSION = re.compile(r"[0-9]+\.[0-9]+")

_FETCH = f"run tools/fetch-xen.sh [VERSION], or name the directory with --xen or ${ENVIRONMENT}"


@attrs.frozen
class Pieces:
    """Paths of everything that a live replay uses."""

    qemu: Path
    gcc: Path
    hypervisor: Path  #: ELF or gzipped ELF
    headers: Path  #: directory that holds ``xen/xen.h``


def default_directory() -> Path:
    """Where ``tools/fetch-xen.sh`` unpacks to: ``$XDG_CACHE_HOME/paravirt-mm/xen``."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "paravirt-mm" / "xen"


def directory_of(asked: str | Path | None) -> Path | None:
    """A directory that was named, or the one of a version that ``tools/fetch-xen.sh`` fetched."""
    if asked is None or not _VERSION.fullmatch(str(asked)) or Path(asked).is_dir():
        return None if asked is None else Path(asked)
    default = Path(os.environ.get(ENVIRONMENT) or default_directory())
    beside = default.with_name(f"{default.name}-{asked}")
    return default if not beside.is_dir() and _hypervisor(default, str(asked)) else beside


def find_pieces(directory: str | Path | None = None) -> Pieces:
    """Finds the pieces, Xen in ``directory``, ``$PARAVIRT_MM_XEN``, the default, or installed.

    ``directory`` may be a version, 4.14, of those that ``tools/fetch-xen.sh`` fetches. What is
    named explicitly is the only place searched. Raises `MissingPieceError` with the Debian package
    that has the missing one.
    """
    qemu = _program("qemu-system-x86_64", "qemu-system-x86")
    gcc = _program("gcc", "gcc")
    named = directory_of(directory) or os.environ.get(ENVIRONMENT)
    roots = [Path(named)] if named else [default_directory(), Path("/")]
    for root in roots:
        hypervisor = _hypervisor(root)
        headers = root / "usr/include"
        if hypervisor and (headers / "xen/xen.h").is_file():
            return Pieces(qemu, gcc, hypervisor, headers)
    searched = ", ".join(map(str, roots))
    if not any(map(_hypervisor, roots)):
        raise MissingPieceError(
            f"no boot/xen-*-amd64(.gz) in {searched}",
            f"unpack the Debian package xen-hypervisor-4.17-amd64: {_FETCH}",
        )
    raise MissingPieceError(
        f"no usr/include/xen/xen.h in {searched}",
        f"unpack the Debian package libxen-dev beside the hypervisor: {_FETCH}",
    )


def _program(name: str, package: str) -> Path:
    found = shutil.which(name)
    if found is None:
        raise MissingPieceError(f"no {name} on PATH", f"install the Debian package {package}")
    return Path(found)


def _hypervisor(root: Path, version: str = "*") -> Path | None:
    found = sorted(
        path
        for pattern in (f"xen-{version}-amd64", f"xen-{version}-amd64.gz")
        for path in (root / "boot").glob(pattern)
        if path.is_file()
    )
    return found[-1] if found else None
