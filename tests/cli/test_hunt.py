"""What `hunt` asks for, and how it tells of tries that failed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import attrs
import pytest

from paravirt_mm.cli import hunt
from paravirt_mm.hunt.search import HuntResult
from paravirt_mm.sources import bundled
from tests.commands import Run

OLD = "legacy_linear:kernel=3.6"
ASKED = ("hunt", OLD, "--for", "waste > 10 and used > 0")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the search is asked for; it answers what stands in ``answer``."""
    given: list[dict[str, Any]] = [{}]

    def search(quarry: Any, *, progress: Any, **how: Any) -> HuntResult:
        given.append({"quarry": quarry, **how})
        progress(1, 0.5)
        answer: HuntResult = given[0]["answer"]
        return answer

    monkeypatch.setattr(hunt, "hunt", search)
    return given


NOTHING = HuntResult(machine=None, tries=30, seconds=1.5)


def test_the_search_is_asked_for_what_the_command_line_says(
    asked: list[dict[str, Any]], paravirt_mm: Run
) -> None:
    asked[0]["answer"] = NOTHING
    result = paravirt_mm(
        *ASKED, "qemu-512m", "-b", "xen", "--against", "incremental", "--against-backend", "native",
        "--mode", "x86_64", "--mode", "i386", "--time", 7, "--tries", 9, "--seed", 3, "-j", 2,
        "--time-limit", 4, "--memory-limit", "1G",
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "not found in 30 tries, 1.5 s, 20/s (seed 3); that proves nothing\n"
    (found,) = asked[1:]
    quarry = found["quarry"]
    assert (quarry.allocator, quarry.backend, quarry.other) == (OLD, "xen", "incremental")
    assert (quarry.other_backend, quarry.modes) == ("native", ("x86_64", "i386"))
    assert [machine.name for machine in quarry.machines] == ["qemu-512m"]
    limits = found["limits"]
    assert (limits.cpu, limits.wall, limits.memory) == (4.0, 10.0, 1 << 30)
    assert (found["seed"], found["seconds"], found["jobs"], found["max_tries"]) == (3, 7.0, 2, 9)
    assert not paravirt_mm(*ASKED).returncode
    found = asked[-1]
    assert (found["quarry"].backend, found["quarry"].modes) == ("native", ())
    assert (found["seed"], found["seconds"], found["max_tries"]) == (0, 60.0, None)
    assert found["jobs"] == (os.cpu_count() or 1)


def test_a_condition_or_spec_that_cannot_be_is_refused_before(
    asked: list[dict[str, Any]], paravirt_mm: Run
) -> None:
    for arguments in (
        ("hunt", OLD, "--for", "waste >"),
        ("hunt", OLD, "--for", "nonsense > 1"),
        ("hunt", "nonsense", "--for", "panic"),
        ("hunt", OLD, "--for", "panic", "-b", "nonsense"),
    ):
        result = paravirt_mm(*arguments)
        assert (result.returncode, result.stdout) == (2, "")
    assert len(asked) == 1


def test_tries_that_failed_are_counted_and_a_plugins_fault(
    asked: list[dict[str, Any]], paravirt_mm: Run
) -> None:
    asked[0]["answer"] = attrs.evolve(NOTHING, errors=4, error="plugin x: fails")
    condition = "xen.b > 1 and xen.a > 1"
    result = paravirt_mm("hunt", OLD, "--for", condition, "-b", "xen", "--json")
    assert result.returncode == 4
    assert json.loads(result.stdout) == {"found": False, "tries": 30, "seed": 0}
    told = result.stderr.splitlines()
    assert told[0] == "paravirt-mm: 4 of 30 tries: plugin x: fails"
    assert told[1:] == [
        f"paravirt-mm: no run on a real machine had a number {name!r}; of plugins it had: none"
        for name in ("xen.a", "xen.b")
    ]
    asked[0]["answer"] = attrs.evolve(NOTHING, figures=frozenset(["xen.b", "xen.c"]))
    result = paravirt_mm("hunt", OLD, "--for", condition, "-b", "xen")
    assert result.stderr.endswith(" a number 'xen.a'; of plugins it had: xen.b, xen.c\n")
    assert len(result.stderr.splitlines()) == 1


def test_what_is_found_is_written_where_it_is_wanted(
    asked: list[dict[str, Any]], paravirt_mm: Run, tmp_path: Path
) -> None:
    machine = bundled("qemu-512m")
    asked[0]["answer"] = attrs.evolve(NOTHING, machine=machine, errors=1, error="x fails")
    folder = tmp_path / "new" / "folder"
    for _ in range(2):
        result = paravirt_mm(*ASKED, "--time", 0.5, "-j", 1, "-o", folder)
        assert result.returncode == 1
        assert result.stderr == "paravirt-mm: 1 of 30 tries: x fails\n"
        head, *_, last = result.stdout.splitlines()
        assert head.startswith("found after 30 tries, 1.5 s, 20/s (seed 0); from 8 map entries to ")
        assert last == f"written: {folder}/found.toml, {folder}/test_found.py"
        assert sorted(path.name for path in folder.iterdir()) == ["found.toml", "test_found.py"]
    result = paravirt_mm(*ASKED, "--time", 0.5, "-j", 1)
    assert result.stdout.endswith("\nA pytest case and the machine as files: -o DIR\n")
    assert (folder / "found.toml").read_text() in result.stdout
