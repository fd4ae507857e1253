"""Booting a real Linux kernel in QEMU and reading how it built its direct map.

>>> from paravirt_mm.verify.linux.harness import MapSpec, boot
>>> record = boot(MapSpec(ram=[(0, 0x9F000), (0x100000, 1 << 30)]))  # doctest: +SKIP
>>> record.to_json()["steps"]  # doctest: +SKIP
"""

from .boot import DEFAULT_TIMEOUT, boot
from .errors import (
    BootError,
    GdbError,
    KernelImageError,
    LiveLinuxError,
    LiveUnavailableError,
    MapSpecError,
)
from .locate import KERNEL_VARIABLE, QEMU_VARIABLE, Kernel, find_kernel, find_qemu
from .record import LiveRecord, MappingStep, Provenance, TableAllocation
from .spec import Entry, MapSpec
from .walk import DirectMap, Table, walk_direct_map

__all__ = [
    "DEFAULT_TIMEOUT",
    "KERNEL_VARIABLE",
    "QEMU_VARIABLE",
    "BootError",
    "DirectMap",
    "Entry",
    "GdbError",
    "Kernel",
    "KernelImageError",
    "LiveLinuxError",
    "LiveRecord",
    "LiveUnavailableError",
    "MapSpec",
    "MapSpecError",
    "MappingStep",
    "Provenance",
    "Table",
    "TableAllocation",
    "boot",
    "find_kernel",
    "find_qemu",
    "walk_direct_map",
]
