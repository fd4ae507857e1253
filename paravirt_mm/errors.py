"""One tree of exceptions, each saying who or what is to blame and what to change; exit codes."""

from __future__ import annotations

import shlex
from enum import IntEnum
from pathlib import Path
from typing import Any

_HOME = Path(__file__).resolve().parents[1]


def install(extra: str) -> str:
    """Return the command that installs one of the package's extras: that of the checkout, where the
    package runs from one.
    """
    if (_HOME / "pyproject.toml").is_file():
        return f"pip install -e {shlex.quote(f'{_HOME}[{extra}]')}"
    return f"pip install 'paravirt-mm[{extra}]'"


class ParavirtMmError(Exception):
    """Base of everything that this package raises on purpose. It can be pickled: it may have been
    raised in another process.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.args, self.__dict__)


def _again(
    kind: type[ParavirtMmError], args: tuple[Any, ...], fields: dict[str, Any]
) -> ParavirtMmError:
    """Make an exception as it was, without its constructor, which words the message anew."""
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(fields)
    return error


class InputError(ParavirtMmError):
    """Something that was read is wrong. ``where`` is a file, or file and line, where known."""

    def __init__(self, message: str, where: str | None = None) -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.where = where


class SpecError(ParavirtMmError):
    """A scenario or plugin option on the command line or in an API call is wrong."""


class PluginError(ParavirtMmError):
    """A plugin broke the contract or failed; ``plugin`` names it, its distribution if known."""

    def __init__(self, plugin: str, message: str) -> None:
        super().__init__(f"plugin {plugin}: {message}")
        self.plugin = plugin


class Rejected(ParavirtMmError):
    """The modelled hypervisor refused ``operation`` with ``code`` (a negative errno)."""

    def __init__(self, operation: str, code: int) -> None:
        super().__init__(f"{operation}: {code}")
        self.operation = operation
        self.code = code


class Ended(SystemExit):
    """A signal asks this process to end: nobody's fault, and nobody's to catch."""


INTERRUPTIONS = (KeyboardInterrupt, Ended)
"""What passes through whatever code of others it meets: that code has not raised it."""


class ExitCode(IntEnum):
    """What the process says when it ends."""

    OK = 0
    """Everything ran, and nothing was found that the caller asked to fail on."""
    FINDINGS = 1
    """A model disagrees with reality, or a scenario ended as ``--fail-on`` says."""
    USAGE = 2
    """The command line is wrong."""
    BAD_INPUT = 3
    """A log, map or dump could not be read, or an answer not be written."""
    PLUGIN = 4
    """A plugin is broken or failed."""
    BUG = 70
    """Something went wrong that this package did not foresee."""
    SYSTEM = 71
    """The system has no file descriptor or memory left for it."""
    INTERRUPTED = 130
    """Ctrl-C. Other signals: 128 and their number, 129 for SIGHUP, 143 for SIGTERM."""
