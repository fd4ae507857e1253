"""Boot every map of ``maps.json`` with a real kernel and write what it did beside this file.

    python tests/data/linux_live/record.py [KERNEL]

KERNEL is a vmlinuz or a directory that ``tools/fetch-linux.sh`` has filled; by default what
$PARAVIRT_MM_LINUX says.  The result is ``linux-RELEASE.jsonl``, one record a line, in the shape of
``LiveRecord.to_json`` with the map's name as ``id``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from paravirt_mm.verify.linux_live import Kernel, MapSpec, MapSpecError, boot, find_kernel

HERE = Path(__file__).parent


def main() -> None:
    """Record all maps; those that this kernel cannot be given (five levels) are left out."""
    kernel = Kernel.load(find_kernel(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
    lines = []
    for name, entry in json.loads((HERE / "maps.json").read_text()).items():
        try:
            record = boot(MapSpec(**entry["spec"]), kernel)
        except MapSpecError as error:
            print(f"{name}: left out: {error}")
            continue
        verdict = record.panic or f"{len(record.tables)} tables"
        print(f"{name}: {verdict}, {record.provenance.seconds:.2f} s")
        lines.append(json.dumps({"id": name, **record.to_json()}) + "\n")
    (HERE / f"linux-{kernel.release}.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    main()
