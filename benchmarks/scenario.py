"""One scenario in a process of its own: ``scenario.py MACHINE ALLOCATOR BACKEND``.

Runs it with all figures and invariants and prints, as JSON, the verdict, some figures, the CPU
seconds of engine, invariants and figures alone (imports of the first run included), and the most
memory that the process ever had (bytes).
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

from machines import machine

from paravirt_mm import Scenario


def main() -> None:
    """Run the scenario of the command line."""
    name, allocator, backend = sys.argv[1:]
    subject = machine(name)
    begin = time.process_time()
    run = Scenario.of(subject, allocator, backend).run()
    figures = run.figures
    engine = time.process_time() - begin
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"))
    result = {
        "verdict": str(run.verdict),
        "tables": figures.get("tables"),
        "flips_per_table": figures.get("flips_per_table"),
        "events": len(run.trace),
        "engine": engine,
        "peak": int(peak[1]) << 10 if peak else 0,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
