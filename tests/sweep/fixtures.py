"""A sweep in a process of its own, as users run it, and plugins that misbehave in it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from paravirt_mm.sweep.questions import select

Sweep = Callable[..., "subprocess.CompletedProcess[str]"]

FAST = ("-a", "incremental:variant=linux,kernel=4.19", "-a", "legacy_linear:kernel=3.6")
"""Two allocators are enough where it is not about them."""


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "paravirt_mm", *map(str, arguments)]


def rows(path: Path, table: str = "results") -> list[tuple[Any, ...]]:
    """All rows of a table that has to be the same every time, sorted."""
    return sorted(select(path, f"SELECT * FROM {table}").rows, key=repr)


def content(path: Path) -> list[list[tuple[Any, ...]]]:
    return [rows(path, table) for table in ("machines", "results", "plugins", "sweep")]


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Run ``paravirt-mm sweep`` and wait for it."""

    def run(*arguments: object, plugins: Path | None = None) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": str(plugins)} if plugins else None
        return subprocess.run(
            command("sweep", *arguments), capture_output=True, text=True, timeout=120, env=env
        )

    return run


@pytest.fixture
def distribution(tmp_path: Path) -> Callable[[str, str], Path]:
    """Make an installed distribution of one plugin module; return the folder for PYTHONPATH."""

    def make(code: str, entry_points: str) -> Path:
        folder = tmp_path / "site"
        info = folder / "odd_plugins-1.0.dist-info"
        info.mkdir(parents=True)
        (folder / "odd_plugins.py").write_text(dedent(code))
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-plugins\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[paravirt_mm]\n{dedent(entry_points)}")
        return folder

    return make


def wait_for_chunks(path: Path, process: subprocess.Popen[Any]) -> None:
    """Wait until a running sweep has stored something: its write-ahead log grows chunk by chunk."""
    wal = path.with_name(path.name + ".wal")
    deadline = time.monotonic() + 60
    seen = 0
    while time.monotonic() < deadline:
        assert process.poll() is None, "the sweep ended too early"
        size = wal.stat().st_size if wal.exists() else 0
        if seen and size > seen:
            return
        seen = seen or size
        time.sleep(0.02)
    raise AssertionError("nothing was stored")
