"""Page-table operations on the real Xen hypervisor, booted in QEMU (docs/live-xen.md)."""

from paravirt_mm_xen.live.errors import BootError, BuildError, LiveError, MissingPieceError
from paravirt_mm_xen.live.pieces import ENVIRONMENT, Pieces, find_pieces
from paravirt_mm_xen.live.session import LiveXen
from paravirt_mm_xen.traces.format import RecordedTrace, Trace, check

__all__ = [
    "ENVIRONMENT",
    "BootError",
    "BuildError",
    "LiveError",
    "LiveXen",
    "MissingPieceError",
    "Pieces",
    "RecordedTrace",
    "Trace",
    "check",
    "find_pieces",
]
