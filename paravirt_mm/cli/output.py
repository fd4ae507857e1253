"""Where text leaves the program: the streams, a file, a bar that shows that work goes on.

Texts and names come from files that nobody vouches for. Whoever composes a line for people makes
them printable there; the streams set up here are the last gate, and let nothing through that a
terminal would act on, whoever forgot. What wants colours or moves the cursor asks for `terminal`,
and vouches for its text.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, TypeVar, cast

import click

from paravirt_mm.errors import InputError

T = TypeVar("T")

MAX_MESSAGE = 4000
"""Characters of an error message that are shown."""

# Controls but line feed and tab, surrogates, separators of lines and paragraphs, and what reverses
# or hides text: bidirectional controls, characters without width, "tag" characters.
_ACTED_ON = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def harmless(text: str) -> str:
    """Return text with everything escaped that a terminal acts on."""
    return _ACTED_ON.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class OutputClosed(BaseException):
    """Nobody reads standard output any more: no error, and nothing is left to do."""


class _Stream:
    """A standard stream behind the gate; all else is the stream's own affair."""

    def __init__(self, stream: TextIO | None, name: str, may_vanish: bool) -> None:
        self._stream = stream
        self._name = name
        self._may_vanish = may_vanish

    def _do(self, act: Callable[[TextIO], object]) -> None:
        """Say once that the stream takes nothing, and nothing ever after."""
        try:
            if self._stream is None:
                raise OSError(errno.EBADF, "it is closed")
            act(self._stream)
        except OSError as error:
            if self._may_vanish:
                return
            self._may_vanish = True
            self._drop()
            if error.errno == errno.EPIPE:
                raise OutputClosed from None
            raise InputError(f"cannot be written: {error.strerror}", self._name) from None

    def _drop(self) -> None:
        """Let the rest go nowhere, or Python would complain of it when it ends."""
        with suppress(OSError, ValueError, AttributeError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, cast(TextIO, self._stream).fileno())
            os.close(null)

    def write(self, text: str) -> int:
        shown = harmless(text)
        if shown:  # click tries a stream with an empty text, and swallows what comes of it
            self.vouched(shown)
        return len(text)

    def vouched(self, text: str) -> None:
        self._do(lambda stream: stream.write(text))

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self._stream is not None:
            self._do(lambda stream: stream.flush())

    @property
    def encoding(self) -> str:
        """The stream's; never ASCII, for which click would go behind the gate."""
        known = getattr(self._stream, "encoding", None) or "utf-8"
        return "latin-1" if known.lower() in ("ascii", "us-ascii", "ansi_x3.4-1968") else known

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def streams() -> Iterator[None]:
    """Put the gate in front of standard output and standard error.

    What they cannot encode is escaped. A descriptor that is closed is taken, so that no file that
    is opened later gets its number.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)
    before = sys.stdin, sys.stdout, sys.stderr
    for stream in before[1:]:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115  # as long as the process lives
    sys.stdout = cast(TextIO, _Stream(before[1], "standard output", may_vanish=False))
    sys.stderr = cast(TextIO, _Stream(before[2], "standard error", may_vanish=True))
    try:
        yield
        sys.stdout.flush()
    finally:
        sys.stdin, sys.stdout, sys.stderr = before


def terminal(err: bool = False) -> TextIO:
    """Return standard output or error itself, for colours; the caller makes its text printable."""
    stream = sys.stderr if err else sys.stdout
    return cast(TextIO, getattr(stream, "_stream", None) or stream)


def write_vouched(text: str) -> None:
    """Write text to standard output whose author made it printable, but for its colours."""
    if isinstance(sys.stdout, _Stream):
        sys.stdout.vouched(text)
    else:
        sys.stdout.write(text)


def show_status(text: str) -> None:
    """Show text in the one line of a terminal that says how far things are; "" takes it away.
    Nothing is shown elsewhere.
    """
    stream = terminal(err=True)
    if stream.isatty():
        with suppress(OSError):
            stream.write(f"\r\x1b[K{harmless(text)}")
            stream.flush()


def complain(message: object) -> None:
    """Say on standard error what is wrong."""
    text = str(message)
    if len(text) > MAX_MESSAGE:
        text = text[:MAX_MESSAGE] + "…"
    click.echo(f"paravirt-mm: {text}", err=True)


def emit(text: str, path: Path | None) -> None:
    """Write text to a file, or to standard output. Raises `InputError` where the file cannot be
    written.
    """
    if path is None:
        click.echo(text)
        return
    try:
        path.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", str(path)) from error


def expect_writable(path: Path | None) -> None:
    """Make sure, before long work begins, that a file can be written at its end. Raises
    `InputError`.
    """
    if path is None:
        return
    if not path.parent.is_dir():
        raise InputError(f"cannot be written: there is no folder {path.parent}", str(path))
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError("cannot be written: Permission denied", str(path))


def per_second(count: int, seconds: float) -> float:
    """Return a rate; 0 where no time has passed."""
    return count / seconds if seconds else 0.0


PATIENCE = 60.0
"""Seconds after which no more is tried if nothing at all has come out."""


def while_some_can(items: Iterable[T], came_out: Callable[[T], bool]) -> Iterator[T]:
    """Yield the items until there is no hope: each boot of a kernel that hangs takes all its time.

    ``came_out`` tells whether an item is what was wanted; after the first that is, all are yielded.
    """
    began = time.monotonic()
    hope = False
    for item in items:
        yield item
        hope = hope or came_out(item)
        if not hope and time.monotonic() > began + PATIENCE:
            return


def progress(items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
    """Yield the items; on a terminal with rich installed, show a bar on standard error."""
    if not sys.stderr.isatty():
        yield from items
        return
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:
        yield from items
        return
    console = Console(file=terminal(err=True))
    yield from track(items, description=title, total=total, console=console, transient=True)
