"""What became of a boot log's lines, and the documented reasons why some logs cannot match."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from functools import cache
from hashlib import file_digest
from pathlib import Path
from typing import Any

import attrs

from paravirt_mm.sources.bootlog.lines import LineVerdict, LogLine

REASONS_FILE = Path(__file__).parent / "data" / "reasons.json"
MAX_REASONS = 8


@attrs.frozen
class LogReport:
    """What was predicted for one boot, and how it compares.

    ``kernel`` is the release that was modelled (None: nothing to check), ``also`` other series that
    agree as well where the log names none, ``variant`` what was assumed about this kernel's
    configuration, ``assumed`` about the machine; ``nothing`` says why there is nothing to check,
    ``reason`` why the log cannot match.
    """

    source: str
    boot: int
    release: str | None
    mode: str
    kernel: str | None = None
    spec: str = ""
    backend: str = ""
    variant: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    lines: tuple[LogLine, ...] = ()
    nothing: str = ""
    reason: str = ""

    def count(self, verdict: LineVerdict) -> int:
        """Return how many lines have a verdict."""
        return sum(line.verdict is verdict for line in self.lines)

    @property
    def agrees(self) -> bool:
        """Whether no line differs."""
        return not self.count(LineVerdict.DIFFERS)


def with_reason(report: LogReport, path: str) -> LogReport:
    """Return the report with the documented reason why this very file cannot match, if any."""
    if report.agrees or not Path(path).is_file():
        return report
    with Path(path).open("rb") as log:
        digest = file_digest(log, "sha256").hexdigest()
    return attrs.evolve(report, reason=reasons().get(digest, ""))


@cache
def reasons() -> dict[str, str]:
    """Return the documented reasons, by the SHA-256 of the file they speak of."""
    content: dict[str, Any] = json.loads(REASONS_FILE.read_text(encoding="utf-8"))
    found = {entry["sha256"]: str(entry["reason"]) for entry in content["reasons"]}
    if len(found) > MAX_REASONS:
        raise ValueError(f"{REASONS_FILE.name} holds more than {MAX_REASONS} reasons")
    return found


def summary(reports: Iterable[LogReport]) -> Counter[str]:
    """Count logs and lines over many reports."""
    counts: Counter[str] = Counter()
    for report in reports:
        counts["logs"] += 1
        counts["nothing to check"] += bool(report.nothing)
        counts["explained"] += bool(report.reason)
        counts["disagreeing"] += not report.agrees and not report.reason
        for verdict in LineVerdict:
            counts[str(verdict)] += report.count(verdict)
    return counts
