"""Is it slower than it was? ``compare.py BASE.json NEW.json``: one line a benchmark, as ratios.

Compares time relative to the C loop that was measured in the same session, so that results of
different machines can be compared. Where a result lacks that, the plain times count, provided that
both come from one machine; else it is not comparable. Exit code 1 if anything is worse.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

NOISE = 1.25
"""Differences up to this factor happen from run to run."""


def benchmarks(path: Path) -> dict[str, dict[str, Any]]:
    """Return the results of a pytest-benchmark file by name."""
    try:
        content = json.loads(path.read_text("utf-8"))
        machine = content["machine_info"].get("cpu", {}).get("brand_raw")
        return {
            result["fullname"].rpartition("/")[2]: {**result, "cpu": machine}
            for result in content["benchmarks"]
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SystemExit(f"{path}: not a result of make bench: {error}") from None


def judge(base: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> tuple[str, str]:
    """Return (verdict, reason) for one benchmark; a ratio below 1 means that it became faster."""
    if base is None or new is None:
        return "not comparable", "only in the new file" if base is None else "only in the base"
    before, after = base["extra_info"].get("ratio"), new["extra_info"].get("ratio")
    if before is None or after is None:
        if base["cpu"] != new["cpu"] or not base["cpu"]:
            return "not comparable", "no C loop beside it, and different processors"
        before, after = base["stats"]["min"], new["stats"]["min"]
    tables = [result["extra_info"].get("tables") for result in (base, new)]
    if tables[0] != tables[1]:
        return "not comparable", f"it does other work: {tables[0]} and {tables[1]} tables"
    ratio = after / before
    verdict = "worse" if ratio > NOISE else "better" if ratio < 1 / NOISE else "same"
    return verdict, f"x {ratio:.2f}"


def lines(
    base: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, str, str]]:
    """Yield (name, verdict, reason) of every benchmark of either file."""
    for name in dict.fromkeys((*base, *new)):
        yield name, *judge(base.get(name), new.get(name))


def main() -> int:
    """Print the comparison."""
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    found = list(lines(*(benchmarks(Path(name)) for name in sys.argv[1:])))
    width = max((len(name) for name, _, _ in found), default=0)
    for name, verdict, reason in found:
        print(f"{name:<{width}}  {verdict:<14}  {reason}")
    return int(any(verdict == "worse" for _, verdict, _ in found))


if __name__ == "__main__":
    sys.exit(main())
