"""How Xen types the pages of a PV guest: a model that answers as the hypervisor does.

Start with `hypercalls.Hypervisor`; then `validation` for what a type is.  ``docs/xen-pv-paging.md``
tells the whole in prose.
"""

from .boot import BootMapping
from .entries import MODES, PV32_PAE, PV64, PvMode
from .frames import Counters, Frame
from .hypercalls import Batch, Command, Hypervisor, MmuextOp, MmuUpdate, UpdateVaMapping
from .releases import RECORDED, RELEASES, Release

__all__ = [
    "MODES",
    "PV32_PAE",
    "PV64",
    "RECORDED",
    "RELEASES",
    "Batch",
    "BootMapping",
    "Command",
    "Counters",
    "Frame",
    "Hypervisor",
    "MmuUpdate",
    "MmuextOp",
    "PvMode",
    "Release",
    "UpdateVaMapping",
]
