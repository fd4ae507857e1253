"""Page-table operations on the real Xen hypervisor, booted in QEMU (docs/live-xen.md)."""

from paravirt_mm_xen.live.errors import BuildError, LiveError, MissingPieceError, XenBootError
from paravirt_mm_xen.live.pieces import ENVIRONMENT, Pieces, find_pieces
from paravirt_mm_xen.live.session import LiveXen
from paravirt_mm_xen.traces.format import OperationTrace, RecordedTrace, check

__all__ = [
    "ENVIRONMENT",
    "BuildError",
    "LiveError",
    "LiveXen",
    "MissingPieceError",
    "OperationTrace",
    "Pieces",
    "RecordedTrace",
    "XenBootError",
    "check",
    "find_pieces",
]
