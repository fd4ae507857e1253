"""A sweep that is killed goes on where it was, and ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from paravirt_mm.sweep.questions import select

from .fixtures import FAST, Sweep, command, content, wait_for_chunks

SWEEP = ("--generate", 60, "--seed", 3, "--chunk", 2, "-j", 2, *FAST)


@pytest.mark.slow
def test_killed_three_times(tmp_path: Path, sweep: Sweep) -> None:
    """SIGKILL at three moments; the result is that of an undisturbed sweep, row for row."""
    whole, killed = tmp_path / "whole.duckdb", tmp_path / "killed.duckdb"
    assert sweep(*SWEEP, "-o", whole).returncode in (0, 1)
    stored: list[set[tuple[object, ...]]] = [set()]
    while len(stored) < 4:
        process = subprocess.Popen(command("sweep", *SWEEP, "-o", killed), start_new_session=True)
        wait_for_chunks(killed, process)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        chunks = select(killed, "SELECT chunk, seconds FROM chunks").rows
        assert len(chunks) < 30
        assert stored[-1] <= set(chunks)
        if stored[-1] < set(chunks):  # else it was killed before it had stored anything
            stored.append(set(chunks))
        assert ("complete", "yes") not in select(killed, "SELECT key, value FROM sweep").rows
    # What was stored is never done again: chunk and time that it took stay what they were.
    assert sweep(*SWEEP, "-o", killed).returncode in (0, 1)
    chunks = select(killed, "SELECT chunk, seconds FROM chunks").rows
    assert stored[-1] < set(chunks)
    assert sorted(chunk for chunk, _ in chunks) == list(range(30))
    assert content(killed) == content(whole)


@pytest.mark.slow
def test_number_of_processes_does_not_matter(tmp_path: Path, sweep: Sweep) -> None:
    one, three = tmp_path / "one", tmp_path / "three"
    arguments = ("--generate", 9, "--chunk", 2, *FAST)
    sweep(*arguments, "-o", one, "-j", 1)
    sweep(*arguments, "-o", three, "-j", 3)
    assert content(one) == content(three)


@pytest.mark.slow
def test_other_sweeps_are_refused(tmp_path: Path, sweep: Sweep) -> None:
    """Other settings, other inputs, fewer inputs, not a sweep: each is said, nothing is lost."""
    out = tmp_path / "out"
    logs = tmp_path / "logs"
    logs.mkdir()
    for number in range(4):
        (logs / f"{number}.log").write_text(f"no log {number}\n")
    base = (logs, "-o", out, "--chunk", 2, "-b", "native", *FAST[:2])
    assert sweep(*base).returncode == 3
    before = content(out)

    def refused(*arguments: object) -> str:
        result = sweep(*arguments)
        assert result.returncode in (2, 3)
        assert "Traceback" not in result.stderr
        return result.stderr

    assert "other settings" in refused(logs, "-o", out, "--chunk", 3, *FAST).replace(
        "another", "other"
    )
    (logs / "1.log").write_text("changed, and longer\n")
    assert "the inputs are not those" in refused(*base)
    (logs / "1.log").write_text("no log 1\n")
    for number in (2, 3):
        (logs / f"{number}.log").unlink()
    refused(*base)
    assert content(out) == before
    text = tmp_path / "text"
    text.write_text("not a database, but longer than a header would be\n" * 100)
    assert "is no sweep" in refused(logs, "-o", text)
    assert refused("--generate", 1, "-o", tmp_path / "no" / "folder")
