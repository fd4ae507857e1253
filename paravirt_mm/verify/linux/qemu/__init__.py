"""Booting a real Linux kernel in QEMU and reading how it built its direct map.

>>> from paravirt_mm.verify.linux.qemu import MapSpec, record_boot
>>> record = record_boot(MapSpec(ram=[(0, 0x9F000), (0x100000, 1 << 30)]))  # doctest: +SKIP
>>> record.to_json()["steps"]  # doctest: +SKIP
"""

from paravirt_mm.verify.linux.qemu.direct_map import GuestMap, TablePage, read_direct_map
from paravirt_mm.verify.linux.qemu.errors import (
    GdbError,
    KernelBootError,
    KernelImageError,
    LiveLinuxError,
    LiveUnavailableError,
    MapSpecError,
)
from paravirt_mm.verify.linux.qemu.locate import (
    KERNEL_VARIABLE,
    QEMU_VARIABLE,
    Kernel,
    KernelFacts,
    find_kernel,
    find_kernels,
    find_qemu,
)
from paravirt_mm.verify.linux.qemu.process import end_all
from paravirt_mm.verify.linux.qemu.record import (
    BootProvenance,
    BootRecord,
    MappingStep,
    TableAllocation,
)
from paravirt_mm.verify.linux.qemu.recorder import DEFAULT_TIMEOUT, record_boot
from paravirt_mm.verify.linux.qemu.spec import Entry, MapSpec

__all__ = [
    "DEFAULT_TIMEOUT",
    "KERNEL_VARIABLE",
    "QEMU_VARIABLE",
    "BootProvenance",
    "BootRecord",
    "Entry",
    "GdbError",
    "GuestMap",
    "Kernel",
    "KernelBootError",
    "KernelFacts",
    "KernelImageError",
    "LiveLinuxError",
    "LiveUnavailableError",
    "MapSpec",
    "MapSpecError",
    "MappingStep",
    "TableAllocation",
    "TablePage",
    "end_all",
    "find_kernel",
    "find_kernels",
    "find_qemu",
    "read_direct_map",
    "record_boot",
]
