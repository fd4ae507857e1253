"""``make bench-compare``: every benchmark of either file gets a verdict with its reason."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "compare.py"


def _result(name: str, seconds: float, **extra: object) -> dict[str, Any]:
    return {"fullname": f"x/test_scale.py::{name}", "stats": {"min": seconds}, "extra_info": extra}


def _file(path: Path, cpu: str, *results: dict[str, Any]) -> Path:
    path.write_text(
        json.dumps({"machine_info": {"cpu": {"brand_raw": cpu}}, "benchmarks": list(results)})
    )
    return path


def _compare(*files: Path) -> tuple[int, dict[str, list[str]]]:
    done = subprocess.run([sys.executable, SCRIPT, *files], capture_output=True, text=True)
    lines = [line.split("::")[1].split("  ") for line in done.stdout.splitlines()]
    return done.returncode, {
        parts[0]: [part.strip() for part in parts[1:] if part.strip()] for parts in lines
    }


def test_verdicts(tmp_path: Path) -> None:
    """Ratios to the C loop count before seconds, so a faster processor is no improvement."""
    base = _file(
        tmp_path / "base", "slow",
        _result("better", 9.0, ratio=0.4), _result("worse", 9.0, ratio=0.1),
        _result("same", 9.0, ratio=0.2), _result("gone", 1.0), _result("plain", 1.0),
        _result("other", 1.0, ratio=0.2, tables=5),
    )  # fmt: skip
    new = _file(
        tmp_path / "new", "fast",
        _result("better", 1.0, ratio=0.2), _result("worse", 1.0, ratio=0.2),
        _result("same", 1.0, ratio=0.22), _result("fresh", 1.0), _result("plain", 1.0),
        _result("other", 1.0, ratio=0.2, tables=6),
    )  # fmt: skip
    code, found = _compare(base, new)
    assert code == 1
    assert found == {
        "better": ["better", "x 0.50"],
        "worse": ["worse", "x 2.00"],
        "same": ["same", "x 1.10"],
        "gone": ["not comparable", "only in the base"],
        "fresh": ["not comparable", "only in the new file"],
        "plain": ["not comparable", "no C loop beside it, and different processors"],
        "other": ["not comparable", "it does other work: 5 and 6 tables"],
    }
    assert _compare(base, base)[0] == 0


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"benchmarks": 3}'])
def test_not_a_result(tmp_path: Path, content: str) -> None:
    file = tmp_path / "file"
    file.write_text(content)
    done = subprocess.run([sys.executable, SCRIPT, file, file], capture_output=True, text=True)
    assert done.returncode == 1
    assert "not a result of make bench" in done.stderr
    assert "Traceback" not in done.stderr
