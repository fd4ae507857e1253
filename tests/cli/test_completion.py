"""Completion as shells ask for it; bash itself is asked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # a process each

COMMAND = Path(sys.executable).with_name("paravirt-mm")


def in_bash(line: str, *, breaks: str = "\"'><=;|&(:") -> list[str]:
    """Return what bash's function replies for a line, with the cursor at its end."""
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    script = (
        f'eval "$({COMMAND} completion bash)"\n'
        "COMP_LINE=$1 COMP_POINT=${#1} COMP_WORDBREAKS=$2\n"
        f"_paravirt_mm_completion {COMMAND} 2>/dev/null\n"
        "printf '%s\\n' \"${COMPREPLY[@]}\"\n"
    )
    result = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", line, breaks],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert not result.stderr
    return result.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("paravirt-mm comp", ["compare", "completion"]),
        ("paravirt-mm compare len", ["lenovo-x230-8g"]),
        ("paravirt-mm compare --he", ["--here", "--help"]),
        ("paravirt-mm compare -a inc", ["incremental"]),
        ("paravirt-mm run qemu-512m -b x", ["xen"]),
        ("paravirt-mm run qemu-512m -a incremental:var", ["variant="]),
        ("paravirt-mm run qemu-512m -a incremental:variant=h", ["hpa"]),
        ("paravirt-mm verify cp", ["cpu"]),
        ("paravirt-mm machines mac", ["macmini-4g"]),
    ],
)
def test_bash_completes(line: str, expected: list[str]) -> None:
    assert [word for word in in_bash(line) if word in expected] == expected


def test_bash_without_breaks_gets_whole_words() -> None:
    words = in_bash("paravirt-mm run x -a legacy_linear:kernel=3.", breaks=" \t\n")
    assert "legacy_linear:kernel=3.6" in words
    assert all(word.startswith("legacy_linear:kernel=3.") for word in words)


def test_a_second_option_is_completed_and_the_first_not_offered_again() -> None:
    words = in_bash("paravirt-mm run x -a legacy_linear:kernel=3.6,", breaks=" \t\n")
    assert words
    assert "legacy_linear:kernel=3.6,kernel=" not in words


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_answered(shell: str) -> None:
    words = "paravirt-mm compare len" if shell == "zsh" else "paravirt-mm compare"
    asked = {"COMP_WORDS": words, "COMP_CWORD": "2" if shell == "zsh" else "len"}
    result = subprocess.run(
        [COMMAND], capture_output=True, text=True, check=True,
        env={**os.environ, **asked, "_PARAVIRT_MM_COMPLETE": f"{shell}_complete"},
    )  # fmt: skip
    assert "lenovo-x230-8g" in result.stdout
    script = subprocess.run(
        [COMMAND, "completion", shell], capture_output=True, text=True, check=True
    ).stdout
    assert "paravirt-mm" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)
