"""Completion as shells ask for it; bash itself is asked."""

from __future__ import annotations

import enum
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import attrs
import click
import pytest

from paravirt_mm import registry
from paravirt_mm.cli import COMPLETE, completion, verify
from paravirt_mm.cli.main import cli, main
from paravirt_mm.testing import AscendingAllocator, BlockAllocator, registry_with
from tests.commands import Run

COMMAND = Path(sys.executable).with_name("paravirt-mm")
BREAKS = "\"'><=;|&(:"
"""What bash takes for the ends of words."""


def in_bash(line: str, *, breaks: str = BREAKS) -> list[str]:
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


@pytest.fixture
def offered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """Return what is offered for a line, with the cursor at its end."""

    def ask(line: str, breaks: str = BREAKS) -> list[str]:
        monkeypatch.setenv(COMPLETE, "bash_complete")
        monkeypatch.setenv("COMP_TEXT", f"paravirt-mm {line}")
        monkeypatch.setenv("COMP_BREAKS", breaks)
        with pytest.raises(SystemExit):
            main()
        told = capsys.readouterr()
        assert not told.err
        return [item.removeprefix("plain,") for item in told.out.splitlines() if item]

    return ask


ALLOCATORS = ["chunk_end", "incremental", "legacy_linear", "linux"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("comp", ["compare", "completion"]),
        ("nonsense", []),
        ("compare len", ["lenovo-x230-8g"]),
        ("compare qemu-512m len", ["lenovo-x230-8g"]),
        ("compare ./some", ["file,./some"]),
        ("machines mac", ["macmini-4g"]),
        ("sweep -o x mac", ["macmini-4g"]),
        ("verify cpu mac", ["macmini-4g"]),
        ("compare --he", ["--here", "--help"]),
        ("compare --color a", ["auto", "always"]),
        ("compare -a ", ALLOCATORS),
        ("compare -a inc", ["incremental"]),
        ("compare -a xen", []),
        ("hunt incremental --for panic --against inc", ["incremental"]),
        ("run qemu-512m -b x", ["xen"]),
        ("run qemu-512m -b inc", []),
        ("run qemu-512m -a nonsense:va", []),
        ("run qemu-512m -a incremental:var", ["variant="]),
        ("run qemu-512m -a incremental:variant=", ["hpa", "linux"]),
        ("run qemu-512m -a incremental:variant=h", ["hpa"]),
        ("run qemu-512m -a incremental:kaslr=", ["yes", "no"]),
        ("run qemu-512m -a incremental:kaslr=y", ["yes"]),
        ("run qemu-512m -a incremental:brk_pages=", ["none"]),
        ("run qemu-512m -a incremental:nonsense=", []),
        ("run qemu-512m -a legacy_linear:kernel=3.6,good", ["3.6,good_end="]),
        ("run qemu-512m -a legacy_linear:kernel=3.6,kern", []),
        ("verify cp", ["cpu"]),
    ],
)
def test_what_is_offered(line: str, expected: list[str], offered: Callable[..., list[str]]) -> None:
    """Names that fit, in order; files where a machine may stand and none is known by that name."""
    assert offered(line) == expected


@pytest.mark.parametrize(
    ("line", "words", "begun"),
    [
        (None, [], ""),
        ("", [], ""),
        ("paravirt-mm", [], "paravirt-mm"),
        ("paravirt-mm ", [], ""),
        ("paravirt-mm run x", ["run"], "x"),
        ("paravirt-mm run x ", ["run", "x"], ""),
    ],
)
def test_what_is_being_typed_ends_at_the_cursor(
    line: str | None, words: list[str], begun: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COMP_TEXT", raising=False)
    if line is not None:
        monkeypatch.setenv("COMP_TEXT", line)
    bash = completion._Bash(cli, {}, "paravirt-mm", COMPLETE)
    assert bash.get_completion_args() == (words, begun)


def test_names_are_offered_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever was loaded first."""
    known = registry_with(installed=False, zeta=AscendingAllocator, alpha=BlockAllocator)
    monkeypatch.setattr(registry, "default_registry", lambda: known)
    assert list(completion._specs("allocator", "")) == ["alpha", "zeta"]


def test_kernels_are_offered_that_were_checked(offered: Callable[..., list[str]]) -> None:
    """And the default, each once, in order; none of another plugin's."""
    found = offered("run x -a legacy_linear:kernel=")
    assert found == sorted(set(found))
    assert {"3.6", "2.6.39"} <= set(found)
    assert "4.19" not in found


class _Side(enum.Enum):
    LEFT = "left-hand"
    RIGHT = "right-hand"


class _Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


@attrs.frozen
class _Chooses:
    side: _Side = _Side.LEFT
    size: _Size | None = None
    letter: Literal["a", "b"] = "a"
    perhaps: Literal["a", "b"] | None = None
    pages: list[int] | None = None


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("side", ["left-hand", "right-hand"]),
        ("size", ["small", "large"]),
        ("letter", ["a", "b"]),
        ("perhaps", ["a", "b"]),
        ("pages", ["none"]),  # of what may be anything only the default is known
    ],
)
def test_all_of_a_choice_is_offered(option: str, values: list[str]) -> None:
    field = attrs.fields_dict(_Chooses)[option]
    assert completion._values("chooses", _Chooses, field) == values


def test_what_is_given_back_begins_where_the_shell_breaks_words(
    offered: Callable[..., list[str]],
) -> None:
    line = "run x -a legacy_linear:good_end=rel"
    for breaks, answer in (
        (BREAKS, "release"),
        (":", "good_end=release"),
        ("=", "release"),
        (" \t\n", "legacy_linear:good_end=release"),
    ):
        assert offered(line, breaks) == [answer]


def test_a_plugin_s_own_commands_are_taught(
    offered: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    group = click.Group("mine")
    group.add_command(
        click.Command("deep", params=[click.Argument(["x"], metavar="[LOG|MACHINE]...")])
    )
    monkeypatch.setattr(verify, "verifiers", lambda _: [group])
    assert offered("verify mine deep mac") == ["macmini-4g"]


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_each_shell_gets_its_lines(shell: str, paravirt_mm: Run) -> None:
    result = paravirt_mm("completion", shell)
    assert result.returncode == 0
    assert f"_PARAVIRT_MM_COMPLETE={shell}_complete" in result.stdout
    assert ("COMP_BREAKS" in result.stdout) == (shell == "bash")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("paravirt-mm comp", ["compare", "completion"]),
        ("paravirt-mm run qemu-512m -a incremental:var", ["variant="]),
        ("paravirt-mm run qemu-512m -a incremental:variant=h", ["hpa"]),
    ],
)
def test_bash_completes(line: str, expected: list[str]) -> None:
    assert [word for word in in_bash(line) if word in expected] == expected


@pytest.mark.slow
def test_bash_without_breaks_gets_whole_words() -> None:
    words = in_bash("paravirt-mm run x -a legacy_linear:kernel=3.", breaks=" \t\n")
    assert "legacy_linear:kernel=3.6" in words
    assert all(word.startswith("legacy_linear:kernel=3.") for word in words)


@pytest.mark.slow
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
