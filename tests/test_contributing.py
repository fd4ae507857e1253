"""What CONTRIBUTING, make and pre-commit promise is there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

TASKS = (
    "a kernel release, 3.9 or later",
    "a kernel release, 3.8 or earlier",
    "a log format",
    "a figure",
    "a rule that every run obeys",
    "a hypervisor version",
    "a machine",
)
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")


def _rows(checkout: Path) -> dict[str, list[str]]:
    """The table of tasks: task, and the other two cells."""
    text = (checkout / "CONTRIBUTING.md").read_text(encoding="utf-8")
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| a ")]
    return {task: rest for task, *rest in cells}


@pytest.mark.parametrize("task", TASKS)
def test_each_task_names_one_place_that_exists_and_what_checks_it(
    checkout: Path, task: str
) -> None:
    touch, checked = _rows(checkout)[task]
    (place,) = {target for target in _LINK.findall(touch) if not target.startswith("docs/")}
    assert (checkout / place).exists()
    assert all((checkout / target).is_file() for target in _LINK.findall(checked))


def test_no_other_task_is_listed(checkout: Path) -> None:
    assert set(_rows(checkout)) == set(TASKS)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_lead_somewhere(checkout: Path, name: str) -> None:
    text = (checkout / name).read_text(encoding="utf-8")
    missing = [link for link in _LINK.findall(text) if not (checkout / link).exists()]
    assert not missing


def test_make_help_lists_every_target(checkout: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    text = (checkout / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert [line.split()[0] for line in listed.splitlines()] == phony.split()
    assert all(len(line.split()) > 2 for line in listed.splitlines()), "each says what it does"


def test_every_target_of_make_that_is_named_exists(checkout: Path) -> None:
    makefile = (checkout / "Makefile").read_text(encoding="utf-8")
    for name in ("README.md", "CONTRIBUTING.md", ".ci/run", "SECURITY.md"):
        text = (checkout / name).read_text(encoding="utf-8")
        for target in re.findall(r"(?:^\$ |`|^)make ([a-z-]+)", text, re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{name}: make {target}"
