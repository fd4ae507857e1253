"""The gate that all text passes on its way out."""

from __future__ import annotations

import errno
import io
import sys
from typing import NoReturn

import click
import pytest

from paravirt_mm.cli.main import main
from paravirt_mm.cli.output import MAX_MESSAGE, OutputClosed, complain, harmless, streams
from paravirt_mm.errors import ExitCode, InputError


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\n\ttext é ☺ –", "plain\n\ttext é ☺ –"),
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\rb", "a\\rb"),
        ("\x9b31m", "\\x9b31m"),
        ("abc\u202ecba", "abc\\u202ecba"),
        ("\u2066x\u2069", "\\u2066x\\u2069"),
        ("file\udcff", "file\\udcff"),
        ("\u2028", "\\u2028"),
        ("\U000e0041", "\\U000e0041"),
        ("\x00", "\\x00"),
    ],
)
def test_what_a_terminal_acts_on_is_escaped(text: str, shown: str) -> None:
    assert harmless(text) == shown


def test_every_way_out_passes_the_gate(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]0;owned\x07"
    with streams():
        click.echo(evil)
        click.echo(evil, err=True)
        print(evil)
        sys.stdout.writelines([evil, evil])
        complain(evil)
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert captured.out.count("owned") == 4
    assert captured.err.count("owned") == 2


def test_messages_are_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    complain("x" * 1_000_000)
    assert len(capsys.readouterr().err) < MAX_MESSAGE + 30


class _Full(io.StringIO):
    """A stream that takes nothing."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code

    def write(self, text: str) -> NoReturn:
        raise OSError(self.code, "No space left on device")


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.ENOSPC, InputError), (errno.EPIPE, OutputClosed)]
)
def test_a_stream_that_takes_nothing_says_so_once(
    monkeypatch: pytest.MonkeyPatch, code: int, kind: type[BaseException]
) -> None:
    monkeypatch.setattr(sys, "stdout", _Full(code))
    with streams():
        with pytest.raises(kind):
            click.echo("text")
        click.echo("more")


def test_a_plugin_that_exits_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def leave(**_: object) -> NoReturn:
        sys.exit(0)

    monkeypatch.setattr("paravirt_mm.cli.figures.command.callback", leave)
    monkeypatch.setattr(sys, "argv", ["paravirt-mm", "figures"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == ExitCode.PLUGIN
    assert "tried to end the process" in capsys.readouterr().err


def test_a_bug_is_no_finding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> NoReturn:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("paravirt_mm.cli.figures.command.callback", fail)
    monkeypatch.setattr(sys, "argv", ["paravirt-mm", "figures"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == ExitCode.BUG
    complaint = capsys.readouterr().err
    assert "ZeroDivisionError: oh" in complaint
    assert "please report" in complaint
