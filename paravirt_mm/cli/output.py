"""What subcommands share: where text goes, and how long work shows that it is going on."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import click

from paravirt_mm.errors import InputError

T = TypeVar("T")


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
    console = Console(stderr=True)
    yield from track(items, description=title, total=total, console=console, transient=True)
