"""Booting a real Linux kernel in QEMU and reading how it built its direct map.

>>> from paravirt_mm.verify.linux.qemu import MapSpec, boot
>>> record = boot(MapSpec(ram=[(0, 0x9F000), (0x100000, 1 << 30)]))  # doctest: +SKIP
>>> record.to_json()["steps"]  # doctest: +SKIP
"""

from paravirt_mm.verify.linux.qemu.boot import DEFAULT_TIMEOUT, boot
from paravirt_mm.verify.linux.qemu.errors import (
    BootError,
    GdbError,
    KernelImageError,
    LiveLinuxError,
    LiveUnavailableError,
    MapSpecError,
)
from paravirt_mm.verify.linux.qemu.locate import (
    KERNEL_VARIABLE,
    QEMU_VARIABLE,
    Kernel,
    find_kernel,
    find_qemu,
)
from paravirt_mm.verify.linux.qemu.record import (
    LiveRecord,
    MappingStep,
    Provenance,
    TableAllocation,
)
from paravirt_mm.verify.linux.qemu.spec import Entry, MapSpec
from paravirt_mm.verify.linux.qemu.walk import DirectMap, Table, walk_direct_map

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
