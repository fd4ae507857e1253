"""What a process has only one of, and code of strangers may change: it is as it was afterwards.

A plugin that is imported, or asked, may change directory, environment, signal handlers, limits,
streams, the random generator, or a function of this package. The first kind is put back; a changed
package is put back too, and said, because what was computed meanwhile is worth nothing.
"""

from __future__ import annotations

import builtins
import gc
import locale
import os
import random
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import ModuleType
from typing import Any, TextIO

import attrs

_PACKAGE = __name__.partition(".")[0]
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGPIPE", "SIGALRM", "SIGPROF", "SIGCHLD", "SIGUSR1")
_LIMITS = (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CPU, resource.RLIMIT_AS)
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_HOOKS = ("stdin", "stdout", "stderr", "excepthook", "displayhook", "unraisablehook")


@attrs.frozen
class _Setting:
    """Something that can be asked for, compared and set back."""

    get: Callable[[], Any]
    set: Callable[[Any], object]


def _umask() -> int:
    now = os.umask(0o077)
    os.umask(now)
    return now


def _set_environment(wanted: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(wanted)


def _set_filters(wanted: list[Any]) -> None:
    warnings.filters[:] = wanted  # type: ignore[index]  # a list, whatever typeshed promises
    with suppress(AttributeError):
        warnings._filters_mutated()  # type: ignore[attr-defined]  # or the old ones stay cached


def _settings() -> Iterator[_Setting]:
    yield _Setting(os.getcwd, os.chdir)
    yield _Setting(lambda: dict(os.environ), _set_environment)
    yield _Setting(_umask, os.umask)
    yield _Setting(sys.getrecursionlimit, sys.setrecursionlimit)
    yield _Setting(sys.getswitchinterval, sys.setswitchinterval)
    yield _Setting(sys.gettrace, sys.settrace)
    yield _Setting(sys.getprofile, sys.setprofile)
    yield _Setting(gc.isenabled, lambda on: gc.enable() if on else gc.disable())
    yield _Setting(
        lambda: locale.setlocale(locale.LC_ALL), lambda name: locale.setlocale(locale.LC_ALL, name)
    )
    yield _Setting(lambda: list(warnings.filters), _set_filters)
    for name in _HOOKS:
        yield _Setting(partial(getattr, sys, name), partial(setattr, sys, name))
    for what in _LIMITS:
        yield _Setting(partial(resource.getrlimit, what), partial(resource.setrlimit, what))
    if threading.current_thread() is threading.main_thread():
        for name in _SIGNALS:
            number = getattr(signal, name)
            yield _Setting(partial(signal.getsignal, number), partial(_set_handler, number))
        for timer in _TIMERS:
            if not _left(timer):  # One that runs is ours, and goes on.
                yield _Setting(partial(_left, timer), partial(signal.setitimer, timer))


_DICE = _Setting(random.getstate, random.setstate)


def _set_handler(number: int, handler: Any) -> None:
    signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _left(timer: Any) -> float:
    return signal.getitimer(timer)[0]


@contextmanager
def unchanged(*, dice: bool = True) -> Iterator[list[str]]:
    """Put back what is changed meanwhile, with ``dice`` the random generator too (else who draws
    at random would draw the same again, and nobody would find that out). The list that it gives
    names, in the end, what of this package or of Python's built-in functions was replaced: that
    cannot be excused.
    """
    touched: list[str] = []
    settings = [(setting, setting.get()) for setting in _settings()]
    if dice:
        settings.append((_DICE, random.getstate()))
    modules = _Namespaces.now()
    try:
        yield touched
    finally:
        for setting, before in settings:
            with suppress(Exception):
                if setting.get() != before:
                    setting.set(before)
        touched += modules.put_back()


def named(touched: Iterable[str]) -> str:
    """Return what was replaced in a few words: the first five names."""
    return ", ".join(sorted(set(touched))[:5])


class _Space:
    """One of them: a module or a class, and what its names stood for."""

    __slots__ = ("_now", "_values", "names", "owner")

    def __init__(self, owner: ModuleType | type) -> None:
        self.owner = owner
        self.names = dict(vars(owner))
        self._now = vars(owner).values()  # a view: it shows what is there when it is read
        self._values = [*self.names.values()]

    def same(self) -> bool:
        """Tell, as fast as Python can, whether the values are what they were, in the same order."""
        try:
            return [*self._now] == self._values
        except Exception:  # one of them does not want to be compared
            return False


@attrs.frozen
class _Namespaces:
    """The namespaces that are nobody else's to change, as they were."""

    modules: int
    spaces: tuple[_Space, ...]

    @classmethod
    def now(cls) -> _Namespaces:
        """Return them as they are; the same as last time while nothing has changed: comparing is
        ten times faster than collecting, and scenarios come in thousands.
        """
        if not _LAST or not _LAST[0]._as_now():
            _LAST[:] = [cls._collected()]
        return _LAST[0]

    @classmethod
    def _collected(cls) -> _Namespaces:
        found = [_Space(builtins)]
        for name, module in list(sys.modules.items()):
            if name != _PACKAGE and not name.startswith(f"{_PACKAGE}."):
                continue
            found.append(_Space(module))
            found += [
                _Space(one)
                for one in list(vars(module).values())
                if isinstance(one, type) and one.__module__ == module.__name__
            ]
        return cls(len(sys.modules), tuple(found))

    def _as_now(self) -> bool:
        return self.modules == len(sys.modules) and all(space.same() for space in self.spaces)

    def put_back(self) -> Iterator[str]:
        """Put back what was replaced, and yield its names."""
        for space in self.spaces:
            if not space.same():
                yield from _put_back(space.owner, space.names)


_LAST: list[_Namespaces] = []
"""What was collected last, if anything was."""


def _put_back(owner: ModuleType | type, names: dict[str, Any]) -> Iterator[str]:
    now = vars(owner)
    for name, before in names.items():
        if name.startswith("__") or now.get(name, _GONE) is before:
            continue
        if isinstance(owner, type) and not callable(before):
            continue  # what a class remembers for itself
        if name.startswith("_") and not callable(before):
            continue  # a module's own state
        with suppress(Exception):
            setattr(owner, name, before)
            where = owner.__name__ if isinstance(owner, ModuleType) else owner.__module__
            yield f"{where}.{name}"


_GONE = object()


class Noise:
    """Standard error under another name: what is printed on standard output goes there, and whoever
    closes it closes nothing.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def close(self) -> None:
        """Do nothing."""


@contextmanager
def no_output() -> Iterator[None]:
    """Send to standard error whatever is written to standard output, whichever way."""
    streams = sys.stdout, sys.stderr
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    kept = None
    with suppress(OSError):
        kept = os.dup(1)
        os.dup2(2, 1)
    noise: Any = Noise(sys.stderr)
    sys.stdout = sys.stderr = noise
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        if kept is not None:
            os.dup2(kept, 1)
            os.close(kept)


def side_effects() -> str | None:
    """Return what importing left behind that could not be put back; None: nothing."""
    if any(not one.daemon for one in threading.enumerate() if one is not threading.main_thread()):
        return "it starts a thread, which would keep the program from ending"
    with suppress(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
        return "it starts a process"
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            return f"it closes the file descriptor {number}"
    for stream in (sys.__stdin__, sys.__stdout__, sys.__stderr__):
        if stream is not None and stream.closed:
            return f"it closes {stream.name}"
    return None
