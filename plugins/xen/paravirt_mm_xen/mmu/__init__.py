"""How Xen types the pages of a PV guest: a model that answers as the hypervisor does.

Start with `hypercalls.Hypervisor`; then `validation` for what a type is.  ``docs/xen-pv-paging.md``
tells the whole in prose.
"""

from paravirt_mm_xen.mmu.boot import BootMapping, LargeMapping
from paravirt_mm_xen.mmu.codes import DomainCrashedError
from paravirt_mm_xen.mmu.entries import MODES, PV32_PAE, PV64, PvMode
from paravirt_mm_xen.mmu.frames import Assist, Counters, Frame
from paravirt_mm_xen.mmu.hypercalls import (
    Command,
    Completion,
    Hypervisor,
    MmuextOp,
    MmuUpdate,
    UpdateVaMapping,
)
from paravirt_mm_xen.mmu.releases import RECORDED, RELEASES, Release

__all__ = [
    "MODES",
    "PV32_PAE",
    "PV64",
    "RECORDED",
    "RELEASES",
    "Assist",
    "BootMapping",
    "Command",
    "Completion",
    "Counters",
    "DomainCrashedError",
    "Frame",
    "Hypervisor",
    "LargeMapping",
    "MmuUpdate",
    "MmuextOp",
    "PvMode",
    "Release",
    "UpdateVaMapping",
]
