"""The contract of what plugins add to a finished run, checked where it arrives.

`paravirt_mm.engine.contract` has that of the run itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from paravirt_mm.engine.contract import Answer, is_int
from paravirt_mm.invariants.rules import Finding

MAX_FIGURES = 200
"""More columns of one plugin are refused."""
MAX_FINDINGS = 10_000
MAX_TEXT = 4096
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")


def figures(answer: Any) -> dict[str, int | float | str]:
    """Check the answer of ``pvmm_figures``."""
    told = Answer("pvmm_figures")
    given = told.of(answer, Mapping, "the answer")  # type: ignore[type-abstract]
    if len(given) > MAX_FIGURES:
        told.refuse(f"gives more than {MAX_FIGURES} figures")
    for name, value in given.items():
        if not isinstance(name, str) or not _NAME.match(name):
            told.refuse("a figure's name must be lower-case letters, digits and underscores", name)
        if isinstance(value, str):
            if len(value) > MAX_TEXT:
                told.refuse(f"figure {name!r} is longer than {MAX_TEXT} characters")
        elif isinstance(value, float):
            if not math.isfinite(value):
                told.refuse(f"figure {name!r} is not a finite number", value)
        elif not isinstance(value, bool) and not (is_int(value) and abs(value) < 1 << 63):
            told.refuse(f"figure {name!r} must be a number of 64 bits or text", value)
    return dict(given)


def findings(answer: Any) -> tuple[Finding, ...]:
    """Check the answer of ``pvmm_check``."""
    told = Answer("pvmm_check")
    given = told.items(answer, "the answer is not findings", MAX_FINDINGS)
    for one in given:
        told.of(one, Finding, "what it gives")
        for name in ("rule", "event", "address"):
            told.number(getattr(one, name), f"Finding.{name}")
        told.of(one.message, str, "Finding.message")
    return given
