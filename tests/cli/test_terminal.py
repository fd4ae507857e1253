"""What people see on a terminal: sums first, width, colours, memory in a line, steps told."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from functools import cache

import pytest

pytestmark = pytest.mark.slow  # a process each

LAPTOP = "lenovo-x230-8g"
FEW = ("lenovo-x230-8g", "pae-4g", "qemu-pae-320m", "asus-l8400-256m")
FAST = (
    "-a", "legacy_linear:kernel=2.6.39", "-a", "legacy_linear:kernel=3.6",
    "-a", "incremental:variant=linux,kernel=4.19", "-a", "incremental:variant=hpa",
)  # fmt: skip
"""The allocators of compare without `chunk_end`, whose thousands of steps take longer than all
else."""


@cache
def run(*arguments: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "paravirt_mm", *arguments],
        capture_output=True, text=True, check=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    return result.stdout


@cache
def on_a_terminal(*arguments: str, **environment: str) -> str:
    """Return what a command writes to a terminal of its own."""
    leader, follower = pty.openpty()
    wanted = {"TERM": "xterm", "COLUMNS": "100", **environment}
    inherited = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    with subprocess.Popen(
        [sys.executable, "-m", "paravirt_mm", *arguments],
        stdout=follower, stderr=subprocess.DEVNULL, env={**inherited, **wanted},
    ):  # fmt: skip
        os.close(follower)
        parts = []
        while True:
            try:
                data = os.read(leader, 65536)
            except OSError:  # how Linux says that nobody holds the other end any more
                break
            if not data:
                break
            parts.append(data)
    os.close(leader)
    return b"".join(parts).decode()


def test_many_machines_begin_with_the_sums() -> None:
    text = run("compare", *FEW, *FAST)
    assert text.startswith("All 4 machines\n")
    assert "Guessing: " in text
    assert "--each shows the table of each" in text
    assert "guess  waste" not in text
    assert len(text.splitlines()) < 50
    assert "asus-l8400-256m: rejected: " in text


def test_each_shows_every_machine_below_the_sums() -> None:
    text = run("compare", *FEW, *FAST, "--each")
    assert text.startswith("All 4 machines\n")
    assert [text.count(f"\n{name}\n") for name in FEW] == [1] * 4
    assert text.count("allocator               backend  verdict") == 4


def test_a_few_machines_show_their_tables() -> None:
    assert run("compare", *FEW[:2], *FAST).count("  verdict") == 2


@pytest.mark.parametrize("columns", [60, 77, 132])
def test_it_fits_the_terminal_and_says_what_it_left_out(columns: int) -> None:
    for arguments in (
        ("compare", LAPTOP, *FAST),
        ("compare", *FEW, *FAST),
        ("run", "pae-4g", "--explain"),
    ):
        lines = on_a_terminal(*arguments, COLUMNS=str(columns), NO_COLOR="1").splitlines()
        assert max(map(len, lines)) <= columns
    narrow = on_a_terminal("compare", LAPTOP, *FAST, COLUMNS=str(columns))
    assert ("left out for want of room: " in narrow) == (columns < 132)


def test_sums_say_over_which_machines_they_are() -> None:
    assert "sums: over the 3 of 4 machines on which every row ended ok" in run(
        "compare", *FEW, *FAST
    )


def test_colours_only_where_they_are_wanted() -> None:
    assert "\x1b[32m" in on_a_terminal("compare", LAPTOP, *FAST)
    assert "\x1b[" not in on_a_terminal("compare", LAPTOP, *FAST, NO_COLOR="1")
    assert "\x1b[" not in on_a_terminal("compare", LAPTOP, *FAST, TERM="dumb")
    assert "\x1b[" not in run("compare", LAPTOP, *FAST)
    assert "\x1b[31m" in run("compare", LAPTOP, *FAST, "--color", "always")
    assert "\x1b[" not in on_a_terminal("compare", LAPTOP, *FAST, "--color", "never")


def test_colours_do_not_move_columns() -> None:
    plain = run("compare", LAPTOP, *FAST)
    coloured = run("compare", LAPTOP, *FAST, "--color", "always")
    assert re.sub(r"\x1b\[\d+m", "", coloured) == plain


def test_better_is_green_and_worse_is_red() -> None:
    lines = run("compare", LAPTOP, *FAST, "--color", "always").splitlines()
    guess = next(
        line for line in lines if line.startswith("legacy_linear 2.6.39") and "xen" in line
    )
    knows = next(line for line in lines if line.startswith("incremental hpa") and "xen" in line)
    assert "\x1b[31m6105\x1b[0m" in guess
    assert "\x1b[32m0\x1b[0m" in knows


def test_memory_in_a_line() -> None:
    lines = run("compare", LAPTOP, *FAST).splitlines()
    strips = [line for line in lines if "/xen  " in line or "/native  " in line]
    assert len(strips) == 8
    assert all("█" in line for line in strips)
    assert sum("▒" in line for line in strips) >= 1
    ruler = next(line for line in lines if line.startswith("memory, logarithmic"))
    assert all(f" {mark}" in ruler for mark in ("1M", "16M", "896M", "4G"))
    # Linux 3.6 puts its tables below 16M under Xen, the others do not.
    low = ruler.index("16M")
    below = [line.split("/")[0] for line in strips if "/xen" in line and "█" in line[30:low]]
    assert "legacy_linear 3.6" in below
    assert "incremental hpa" not in below


def test_memory_in_ascii_where_nothing_else_can_be_written() -> None:
    text = run("compare", LAPTOP, *FAST, PYTHONIOENCODING="ascii")
    assert "# tables, % set aside in vain" in text
    assert text.isascii()


def test_the_seven_steps_are_explained_with_their_numbers() -> None:
    text = run("run", LAPTOP, "-a", "incremental:variant=hpa", "-b", "xen", "--explain")
    steps = [int(number) for number in re.findall(r"^Step (\d):", text, re.MULTILINE)]
    assert steps == sorted(steps)
    assert {1, 2, 3, 4, 5, 6} <= set(steps)
    assert re.search(r"\d+ pages from the brk become tables: 0x", text)
    assert "Nothing is left to do." in text
    assert "(100 %)" in text


def test_figures_of_a_run_are_a_table() -> None:
    text = run("run", LAPTOP, "-b", "xen")
    assert re.search(r"^status  flips +\d+  changes of a page", text, re.MULTILINE)
    assert "; " not in next(line for line in text.splitlines() if "flips_per_table" in line)


def test_a_wrong_name_gets_a_suggestion() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "paravirt_mm", "compare", "lenovo-x230"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "did you mean 'lenovo-x230-8g'?" in result.stderr


def test_here_says_what_it_read_or_why_it_cannot() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "paravirt_mm", "compare", "--here", "-b", "native"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if result.returncode == 0:
        assert re.search(r"here: read from the (kernel log|firmware map|resources)", result.stderr)
        assert "this machine, by its " in result.stdout
    else:
        for source in ("dmesg", "/sys/firmware/memmap", "/proc/iomem"):
            assert source in result.stderr
