"""What is kept of an earlier run, to compare the next one with: one file for each thing that is
compared, so that tests side by side never write the same one.

Who means a change looks at what differs, and keeps it by running that test with
``PARAVIRT_MM_SEEN=yes``.
"""

from __future__ import annotations

import os
from pathlib import Path

DATA = Path(__file__).parent / "data"


def kept(path: Path, now: str) -> str:
    """Return what ``path`` has: ``now``, if changes are to be kept, or else what it was."""
    if os.environ.get("PARAVIRT_MM_SEEN"):
        path.write_text(now, encoding="utf-8")
    return path.read_text(encoding="utf-8")
