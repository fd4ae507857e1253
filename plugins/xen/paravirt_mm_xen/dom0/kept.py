"""Boots of real kernels as dom0, each made once and kept.

A boot is decided by the kernel's image, the hypervisor, the host (`Host`) and the kernel's command
line; whoever asks for the same again gets the recording. Recordings lie under
``$XDG_CACHE_HOME/paravirt-mm/dom0/IMAGE/BOOT.json.xz`` (the first half of SHA-256 sums) in the form
that ``verify xen --dom0 --save`` writes; they may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from functools import lru_cache
from pathlib import Path

import attrs

from paravirt_mm import InputError, KernelFile, ParavirtMmError, kernel_path
from paravirt_mm_xen.dom0.boot import record
from paravirt_mm_xen.dom0.host import Host
from paravirt_mm_xen.dom0.recording import Dom0Recording
from paravirt_mm_xen.live.pieces import find_pieces

SECONDS = 280.0
"""Time limit of a boot; `compare` and `run` end a scenario after 300 s unless told otherwise."""
_FORM = 1
"""Counts up when a recording of the same boot would say more, or something else."""


def recorded(kernel: KernelFile, hypervisor: str, host: Host) -> Dom0Recording:
    """Return a boot: as it is kept, or by booting now.

    Raises InputError, one line with what to do, where something is missing, where the machine
    cannot be booted, and where the kernel does not get through in time.
    """
    try:
        image = kernel_path(kernel.image)
        pieces = find_pieces(hypervisor)
        asked = [_FORM, _digest(pieces.hypervisor), attrs.astuple(host), kernel.parameters]
        key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]
        kept = _home() / _digest(image)[:32] / f"{key}.json.xz"
        if kept.exists():
            with contextlib.suppress(InputError):
                return Dom0Recording.load(kept)
        recording = record(
            image,
            pieces,
            host,
            parameters=kernel.parameters,
            seconds=kernel.timeout or SECONDS,
        )
    except InputError:
        raise
    except ParavirtMmError as error:  # of this plugin, or of what reads the image
        raise InputError(" ".join(str(error).split("\n")[0].split())) from error
    _keep(kept, recording)
    return recording


def _home() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "paravirt-mm" / "dom0"


def _digest(path: Path) -> str:
    try:
        status = path.stat()
        return _digest_of(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", str(path)) from None


@lru_cache(maxsize=64)
def _digest_of(path: Path, _modified: int, _size: int) -> str:
    with path.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def _keep(path: Path, recording: Dom0Recording) -> None:
    """Write it whole or not at all; what cannot be kept is booted again next time."""
    with contextlib.suppress(OSError, InputError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            new = Path(directory) / path.name
            recording.save(new)
            os.replace(new, path)
