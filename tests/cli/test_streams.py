"""Streams, signals and surroundings, each tried with the real command."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest

from paravirt_mm.errors import ExitCode

pytestmark = pytest.mark.slow  # a process each

COMMAND = [sys.executable, "-m", "paravirt_mm"]
LAPTOP = "lenovo-x230-8g"
SHORT = ["figures"]
LONG = ["compare", LAPTOP, "-b", "native", "--wide"]


def run(
    *arguments: str, redirect: str = "", env: dict[str, str] | None = None, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run the command; ``redirect`` is what a shell makes of its streams."""
    command = [*COMMAND, *arguments]
    if redirect:
        command = ["sh", "-c", f'"$@" {redirect}', "sh", *command]
    return subprocess.run(
        command, input=stdin, capture_output=True, timeout=60, check=False, env=env
    )


@cache
def plainly(*arguments: str) -> bytes:
    """What a command writes with nothing odd about it."""
    return run(*arguments).stdout


def quiet(result: subprocess.CompletedProcess[bytes]) -> bool:
    return b"Traceback" not in result.stderr and b"Exception ignored" not in result.stderr


@pytest.mark.parametrize("arguments", [SHORT, LONG, ["--help"], ["machines", LAPTOP]])
def test_a_full_disk_is_named(arguments: list[str]) -> None:
    result = run(*arguments, redirect="> /dev/full")
    assert result.returncode == ExitCode.BAD_INPUT
    assert result.stderr == (
        b"paravirt-mm: standard output: cannot be written: No space left on device\n"
    )


@pytest.mark.parametrize("arguments", [SHORT, LONG])
def test_standard_output_that_is_closed_is_named(arguments: list[str]) -> None:
    result = run(*arguments, redirect=">&-")
    assert result.returncode == ExitCode.BAD_INPUT
    assert result.stderr == b"paravirt-mm: standard output: cannot be written: it is closed\n"


@pytest.mark.parametrize("arguments", [SHORT, LONG])
def test_standard_error_that_is_closed_or_full_costs_nothing(arguments: list[str]) -> None:
    expected = plainly(*arguments)
    for redirect in ("2>&-", "2> /dev/full"):
        result = run(*arguments, redirect=redirect)
        assert (result.returncode, result.stdout) == (0, expected)


@pytest.mark.parametrize("redirect", ["2>&-", "2> /dev/full", ">&- 2>&-"])
def test_errors_keep_their_exit_code_when_nobody_hears_of_them(redirect: str) -> None:
    assert run("compare", "no-such-thing", redirect=redirect).returncode == ExitCode.BAD_INPUT


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    result = run("run", LAPTOP, "--trace", str(trace), redirect=">&-")
    assert result.returncode == ExitCode.BAD_INPUT
    assert all(line.startswith("{") for line in trace.read_text().splitlines())


def test_standard_input_that_is_closed_holds_no_machine() -> None:
    result = run("compare", "-", redirect="<&-")
    assert result.returncode == ExitCode.BAD_INPUT
    assert quiet(result)
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [SHORT, LONG])
def test_a_reader_that_goes_away_is_no_finding(arguments: list[str]) -> None:
    with subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == ExitCode.OK


def test_a_reader_that_reads_slowly_gets_everything() -> None:
    expected = plainly(*SHORT)
    with subprocess.Popen([*COMMAND, *SHORT], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        time.sleep(0.5)
        parts = []
        while part := process.stdout.read(997):
            parts.append(part)
    assert b"".join(parts) == expected
    assert process.returncode == 0


def test_a_log_that_comes_slowly_is_read_to_its_end() -> None:
    log = (
        b"[    0.000000] Linux version 3.6.0 (a@b) #1 SMP\n"
        b"[    0.000000] BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable\n"
        b"[    0.000000] BIOS-e820: [mem 0x0000000000100000-0x000000003fffffff] usable\n"
        b"[    0.000000] e820: last_pfn = 0x40000 max_arch_pfn = 0x400000000\n"
    )
    arguments = ["compare", "-", "-b", "native", "-f", "json"]
    expected = run(*arguments, stdin=log)
    assert expected.returncode == 0
    command = [*COMMAND, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for start in range(0, len(log), 60):
            process.stdin.write(log[start : start + 60])
            process.stdin.flush()
            time.sleep(0.02)
        process.stdin.close()
        assert process.stdout.read() == expected.stdout
    assert process.returncode == 0


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", SIGNALS, ids=str)
def test_signals_end_a_command_in_order(number: signal.Signals) -> None:
    """While it waits for its input, and while it reads it in a child: nothing is left running."""
    with subprocess.Popen(
        [*COMMAND, "compare", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"Linux version 3.6\n" * 20_000)
        process.stdin.flush()
        children = _children(process.pid)
        process.send_signal(number)
        _, complaint = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert b"Traceback" not in complaint
    assert not [child for child in children if Path(f"/proc/{child}").exists()]


def _children(pid: int) -> list[str]:
    time.sleep(0.3)
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += (task / "children").read_text().split()
    return found


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    command = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *COMMAND, "compare", "-"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"nothing\n" * 20_000)
        process.stdin.flush()
        time.sleep(0.3)
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=20)
    assert process.returncode == ExitCode.BAD_INPUT


def test_surroundings_may_be_bare() -> None:
    """No HOME, no TERM, no locale, no PATH, a folder that is gone."""
    expected = plainly(*LONG)
    assert run(*LONG, env={}).stdout == expected
    gone = 'mkdir "$0.gone" && cd "$0.gone" && rmdir "$0.gone" && exec "$@"'
    result = subprocess.run(
        ["sh", "-c", gone, f"/tmp/paravirt-mm-{os.getpid()}", *COMMAND, *LONG],  # noqa: S108
        capture_output=True,
        check=False,
        env=dict(os.environ),
    )
    assert result.stdout == expected, result.stderr


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252", "utf-8"])
def test_a_terminal_of_few_letters_shows_the_rest_escaped(tmp_path: Path, encoding: str) -> None:
    log = tmp_path / "log"
    log.write_text(
        'name = "smile"\nmode = "x86_64"\n[provenance]\ntitle = "☺ é"\n'
        "[[e820]]\nstart = 0\nend = 0x40000000\ntype = 'usable'\n",
        encoding="utf-8",
    )
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    result = run("compare", str(log), "-b", "native", env=env)
    assert quiet(result)
    text = result.stdout.decode(encoding) + result.stderr.decode(encoding)
    if result.returncode == 0:
        assert "☺" in text or "\\u263a" in text


@pytest.mark.parametrize("columns", ["1", "20", "0", "-3", "nonsense"])
def test_a_narrow_terminal_changes_how_help_is_wrapped_only(columns: str) -> None:
    env = {**os.environ, "COLUMNS": columns}
    assert run(*LONG, env=env).stdout == plainly(*LONG)
    result = run("--help", env=env)
    assert result.returncode == 0
    assert quiet(result)


def test_on_a_terminal_nothing_but_a_bar_is_added() -> None:
    """A real one: standard error is a terminal 20 columns wide."""
    ours, theirs = pty.openpty()
    result = subprocess.run(
        [*COMMAND, *LONG],
        stdout=subprocess.PIPE,
        stderr=theirs,
        check=False,
        env={**os.environ, "COLUMNS": "20", "TERM": "dumb"},
    )
    os.close(theirs)
    os.close(ours)
    assert result.stdout == plainly(*LONG)
    assert result.returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare", LAPTOP, "-b", "native", "-o"],
        ["run", LAPTOP, "--trace"],
        ["run", LAPTOP, "--image"],
        ["sweep", LAPTOP, "-b", "native", "-o"],
    ],
    ids=lambda arguments: " ".join(arguments[::2]),
)
@pytest.mark.parametrize("place", ["/dev/full", "/proc/nothing", "folder", "missing/folder/file"])
def test_an_output_that_cannot_be_written_is_named(
    tmp_path: Path, arguments: list[str], place: str
) -> None:
    (tmp_path / "folder").mkdir()
    target = str(tmp_path / place)
    result = run(*arguments, target)
    assert result.returncode in (ExitCode.BAD_INPUT, ExitCode.USAGE), result
    assert quiet(result)
    assert target.encode() in result.stderr


@pytest.mark.parametrize("most", [5, 6])
def test_no_descriptor_left_is_said_in_words(most: int) -> None:
    """Also where it is a scenario's own process that finds none. With 4 not even Python starts."""
    script = f'ulimit -n {most}; exec "$@"'
    result = subprocess.run(
        ["sh", "-c", script, "sh", *COMMAND, *LONG], capture_output=True, check=False
    )
    assert result.returncode in (ExitCode.OK, ExitCode.SYSTEM), result
    assert quiet(result), result.stderr
    if result.returncode:
        assert b"no file descriptor is left (`ulimit -n`" in result.stderr
        assert not result.stdout


def test_completion_still_answers() -> None:
    env = {
        **os.environ,
        "_PARAVIRT_MM_COMPLETE": "bash_complete",
        "COMP_WORDS": "paravirt-mm com",
        "COMP_CWORD": "1",
    }
    assert b"plain,compare" in run(env=env).stdout
