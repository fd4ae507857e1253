"""The gate that all text passes on its way out."""

from __future__ import annotations

import errno
import io
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import click
import pytest

from paravirt_mm.cli import screen
from paravirt_mm.cli.output import (
    MAX_MESSAGE,
    OutputClosed,
    complain,
    emit,
    expect_writable,
    harmless,
    streams,
    terminal,
)
from paravirt_mm.errors import InputError
from paravirt_mm.guard import call
from paravirt_mm.report.paper import Paper


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
    assert MAX_MESSAGE == 4000
    for length, shown in ((4000, 4000 * "x"), (4001, 4000 * "x" + "…"), (10**6, 4000 * "x" + "…")):
        complain("x" * length)
        assert capsys.readouterr().err == f"paravirt-mm: {shown}\n"


class _Full(io.StringIO):
    """A stream that takes nothing."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code

    def write(self, text: str) -> NoReturn:
        raise OSError(self.code, "No space left on device")


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (errno.ENOSPC, InputError, "standard output: cannot be written: No space left on device"),
        (errno.EPIPE, OutputClosed, ""),
    ],
)
def test_a_stream_that_takes_nothing_says_so_once(
    monkeypatch: pytest.MonkeyPatch, code: int, kind: type[BaseException], message: str
) -> None:
    """Be the text plain, or have colours."""
    for write in (click.echo, partial(screen.write, on=Paper(colour=True))):
        monkeypatch.setattr(sys, "stdout", _Full(code))
        with streams():
            with pytest.raises(kind) as raised:
                write("text")
            assert str(raised.value) == message
            write("more")


def test_what_is_left_for_a_reader_that_went_away_goes_nowhere() -> None:
    """Or Python would complain of it when it ends; and no descriptor stays open for that."""
    reader, writer = os.pipe()
    with open(writer, "w", encoding="utf-8") as stream:
        os.close(reader)
        there = set(os.listdir("/dev/fd"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            with streams():
                with pytest.raises(OutputClosed):
                    click.echo("text")
                click.echo("more")
        stream.write("even more")
        stream.flush()
        assert set(os.listdir("/dev/fd")) == there


@pytest.mark.parametrize("stream", [None, _Full(errno.ENOSPC)])
def test_nobody_minds_that_errors_go_nowhere(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO | None
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    with streams():
        complain("text")
        sys.stderr.flush()


def test_what_is_closed_of_the_three_streams_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file that is opened later gets one of their numbers."""
    asked, taken = [], []

    def fstat(number: int) -> None:
        asked.append(number)
        raise OSError(errno.EBADF, "closed")

    monkeypatch.setattr(os, "fstat", fstat)
    monkeypatch.setattr(os, "open", lambda *call: taken.append(call))
    with streams():
        pass
    monkeypatch.undo()
    assert (asked, taken) == ([0, 1, 2], [(os.devnull, os.O_RDWR)] * 3)


def test_standard_output_that_is_closed_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with streams():
        sys.stdout.flush()  # nothing was written yet
        assert not sys.stdout.isatty()
        with pytest.raises(InputError, match="standard output: cannot be written: it is closed"):
            click.echo("text")
        click.echo("more")


def test_what_is_left_in_a_buffer_is_written_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a disk that is full then is named as well."""

    class Late(io.StringIO):
        def flush(self) -> NoReturn:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Late())
    with pytest.raises(InputError, match="standard output: cannot be written: No space"), streams():
        assert sys.stdout.write("\x1bé") == 2


@pytest.mark.parametrize(
    ("encoding", "told"),
    [("utf-8", "utf-8"), ("ASCII", "latin-1"), ("cp1252", "cp1252"), (None, "utf-8")],
)
def test_click_never_goes_behind_the_gate(
    monkeypatch: pytest.MonkeyPatch, encoding: str | None, told: str
) -> None:
    """As it does for an encoding that it takes for a mistake; what cannot be encoded is escaped."""
    below = io.BytesIO()
    stream: Any = io.StringIO()
    if encoding is not None:
        stream = io.TextIOWrapper(below, encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    with streams():
        assert (sys.stdout.encoding or "").lower() == told
        assert sys.stdout.isatty() == stream.isatty()
        click.echo("☺")
        assert terminal() is stream
    assert sys.stdout is stream
    assert terminal() is stream
    if encoding is not None:
        wanted = "☺\n" if encoding == "utf-8" else "\\u263a\n"
        assert below.getvalue().decode(encoding) == wanted


def test_closed_descriptors_are_taken_before_a_file_gets_their_number() -> None:
    def opened() -> list[int]:
        for number in range(3):
            os.close(number)
        with streams():
            return [os.open(os.devnull, os.O_RDONLY) for _ in range(2)]

    assert min(call(opened)) > 2


def test_standard_input_that_is_closed_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with streams(), sys.stdin as nothing:
        assert nothing.read() == ""
    assert sys.stdin is None


def test_what_comes_in_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be encoded is escaped on its way out alone."""
    stream = io.TextIOWrapper(io.BytesIO(b"\xff"), "utf-8")
    monkeypatch.setattr(sys, "stdin", stream)
    with streams():
        assert sys.stdin is stream
        assert stream.errors == "strict"


def test_text_in_a_file_ends_with_one_line_feed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in ("é", "é\n"):
        emit(text, tmp_path / "out")
        assert (tmp_path / "out").read_text(encoding="utf-8") == "é\n"
    emit("é", None)
    assert capsys.readouterr().out == "é\n"
    with pytest.raises(InputError, match="cannot be written: Is a directory"):
        emit("text", tmp_path)


def test_what_will_not_be_writable_is_found_out_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a new file its folder counts, for one that is there the file itself."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.touch()
    for path in (None, old, new):
        expect_writable(path)
    with pytest.raises(InputError, match=f"there is no folder {new}"):
        expect_writable(new / "file")
    for closed, refused in ((old, old), (tmp_path, new)):
        monkeypatch.setattr(os, "access", lambda path, how, closed=closed: path != closed)
        with pytest.raises(InputError, match="cannot be written: Permission denied"):
            expect_writable(refused)
        expect_writable(new if refused == old else old)
