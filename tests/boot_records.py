"""Boots of real kernels, as ``verify linux --live`` recorded them; read once for all who ask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILES = sorted((Path(__file__).parent / "data" / "linux_live").glob("linux-*.jsonl"))
RECORDS: dict[str, dict[str, Any]] = {
    f"{record['release']}:{record['id']}": record
    for file in FILES
    for record in map(json.loads, file.read_text().splitlines())
}
"""By release and name of the machine. Who changes one, changes a copy."""
