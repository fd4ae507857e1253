"""One guard for whatever is read and run: a child process with limits of time and memory.

Input is hostile until proven otherwise, and a plugin may spin, sleep, eat memory or end the
process. So that none of it takes more than its own result, the work is done in a forked child.
`guarded` gives what a generator yields there; when the child must be stopped, or dies, that item is
a `Stopped`, and a new child goes on behind it. `call` is the same for one answer.

Three limits hold for each item. Processor time is counted by the system and ends even code that
never returns to Python. Wall-clock time is for work that sleeps; reading has none, for a pipe may
be slow. Memory is address space beyond what the process had.

The child is a fork: it begins at once, and the work may be a closure over plugins, machines and
files that could not travel. Only items must be picklable. It never touches this process's output:
what is printed there goes to standard error. Where forking is not safe, in a process of many
threads, see `paravirt_mm.sweep.guard`, which starts fresh interpreters and shares all the rest.
"""

from __future__ import annotations

import ctypes
import math
import os
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import attrs

from paravirt_mm.errors import ParavirtMmError

T = TypeVar("T")

MIB = 1 << 20


@attrs.frozen
class Limits:
    """What one item may cost: seconds of processor and of wall-clock time, bytes of memory.

    ``wall`` of None: as long as it takes, as long as it does not compute.
    """

    cpu: float = attrs.field(default=60.0)
    wall: float | None = None
    memory: int = 2048 * MIB

    @cpu.validator
    def _finite(self, _: Any, value: float) -> None:
        if not 0 < value < math.inf:
            raise ValueError(f"a limit of {value} seconds")


READING = Limits(cpu=10.0, memory=1024 * MIB)
"""For one input; `paravirt_mm.cli.reading` allows large ones more time."""
RUNNING = Limits(cpu=120.0, wall=300.0, memory=4096 * MIB)
"""For one scenario; the largest machine that ships takes seconds."""


@attrs.frozen
class Stopped:
    """An item that cannot be had. ``crashed``: the child died by itself, rather than at a limit."""

    reason: str
    crashed: bool = False

    def __str__(self) -> str:
        return self.reason


class StoppedError(ParavirtMmError):
    """`call` had to stop its work; ``stopped`` says why."""

    def __init__(self, stopped: Stopped) -> None:
        super().__init__(str(stopped))
        self.stopped = stopped


class ForeignError(ParavirtMmError):
    """What the work raised could not be brought here; the message names it."""


@attrs.frozen
class _Raised:
    error: BaseException


@attrs.frozen
class _End:
    """No more items."""


@attrs.frozen
class _NoMemory:
    """The item needed more memory than it may have."""


def guarded(work: Callable[[int], Iterable[T]], limits: Limits = RUNNING) -> Iterator[T | Stopped]:
    """Yield what ``work(0)`` yields in a child; each item within ``limits``.

    Where item n must be given up, a `Stopped` takes its place, and ``work(n + 1)``, which has to
    leave out the first n + 1 items, goes on in a new child. What the work raises is raised here.
    """
    done = 0
    while True:
        with _Forked(work, done, limits) as child:
            while True:
                item = child.next()
                if isinstance(item, _End):
                    return
                if isinstance(item, _Raised):
                    raise item.error
                done += 1
                yield item
                if isinstance(item, Stopped):
                    break


def call(function: Callable[..., T], *args: Any, limits: Limits = RUNNING) -> T:
    """Return what the function returns in a child. Raises what it raises, and `StoppedError`."""
    for answer in guarded(lambda skip: [function(*args)] if not skip else [], limits):
        if isinstance(answer, Stopped):
            raise StoppedError(answer)
        return answer
    raise AssertionError("a call has one answer")


class Patience(Generic[T]):
    """The parent's side of a child: what it sends, within limits, and how it ended."""

    def __init__(self, connection: Connection, limits: Limits) -> None:
        self._connection = connection
        self._limits = limits

    def next(self, ended: Callable[[], int]) -> Any:
        """Return what the child sends next, or why there is nothing; ``ended`` reaps it and gives
        its exit code, negative for a signal.
        """
        try:
            if not self._connection.poll(self._limits.wall):
                return Stopped(f"longer than {self._limits.wall:g} s")
            item = self._connection.recv()
        except (EOFError, ConnectionError):
            return self._death(ended())
        if isinstance(item, _NoMemory):
            return Stopped(f"more than {self._limits.memory // MIB} MiB of memory")
        return item

    def _death(self, code: int) -> Stopped:
        if code == -signal.SIGPROF:
            return Stopped(f"longer than {self._limits.cpu:g} s")
        return Stopped(f"its process {how_it_ended(code)}", crashed=True)


def how_it_ended(code: int) -> str:
    """Return an exit code, negative for a signal, in words."""
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


class _Forked:
    """A forked child at work."""

    def __init__(self, work: Callable[[int], Iterable[Any]], skip: int, limits: Limits) -> None:
        # What is still in a buffer would be written twice.
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
        ours, theirs = Pipe(duplex=False)
        with warnings.catch_warnings():
            # Threads of progress bars and of numpy may be there; the child uses nothing of theirs.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pid = os.fork()
        if not self._pid:
            ours.close()
            _be_the_child(theirs, work, skip, limits)
        theirs.close()
        self._kill = os.kill if limits.wall is None else os.killpg
        if limits.wall is not None:
            with suppress(OSError):  # whoever comes first
                os.setpgid(self._pid, self._pid)
        self._connection = ours
        self._patience: Patience[Any] = Patience(ours, limits)

    def next(self) -> Any:
        return self._patience.next(self._reap)

    def _reap(self) -> int:
        pid, self._pid = self._pid, 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if pid else 0

    def __enter__(self) -> _Forked:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pid:
            with suppress(ProcessLookupError):
                self._kill(self._pid, signal.SIGKILL)
            self._reap()
        self._connection.close()


def _be_the_child(
    connection: Connection, work: Callable[[int], Iterable[Any]], skip: int, limits: Limits
) -> NoReturn:
    """Send what the work yields, then end without any of the parent's duties at exit."""
    code = 0
    try:
        end_with_parent()
        if limits.wall is not None:
            # What it starts ends with it. A reader stays where it may read a terminal.
            os.setpgid(0, 0)
        _own_output()
        limit_memory(limits.memory)
        send_items(connection, lambda: work(skip), limits)
    except (BrokenPipeError, ConnectionResetError):
        pass  # The parent has what it wants.
    except BaseException:
        code = 70
    finally:
        os._exit(code)


def send_items(connection: Connection, work: Callable[[], Iterable[Any]], limits: Limits) -> None:
    """Send each item, then the end or what was raised instead; time counts from item to item."""
    last: Any = _End()
    try:
        limit_time(limits)
        for item in work():
            stop_time()
            connection.send(item)
            limit_time(limits)
    except (BrokenPipeError, ConnectionResetError):
        raise
    except MemoryError:
        last = _NoMemory()
    except BaseException as error:
        if not isinstance(error, ParavirtMmError):
            error.add_note("There:\n" + "".join(traceback.format_exception(error)))
        last = _Raised(_portable(error))
    stop_time()
    connection.send(last)


def _portable(error: BaseException) -> BaseException:
    """Return the exception if it survives the journey, else one that names it."""
    import pickle

    try:
        if type(pickle.loads(pickle.dumps(error))) is type(error):  # noqa: S301  # our own bytes
            return error
    except Exception:  # noqa: S110  # any class may refuse in its own way
        pass
    foreign = ForeignError(f"{type(error).__name__}: {error}")
    foreign.__notes__ = list(getattr(error, "__notes__", ()))
    return foreign


def end_with_parent() -> None:
    """Let the system end this process when its parent is gone, and leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    set_death_signal = 1  # PR_SET_PDEATHSIG, prctl(2)
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)


def _own_output() -> None:
    """Send what is printed here to standard error, past the parent's buffers and their locks."""
    with suppress(OSError):
        os.dup2(2, 1)
    try:
        sys.stderr = sys.stdout = open(  # noqa: SIM115  # for as long as the process lives
            2, "w", buffering=1, closefd=False, encoding="utf-8", errors="backslashreplace"
        )
    except OSError:
        sys.stderr = sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def limit_memory(extra: int) -> None:
    """Allow ``extra`` bytes of address space beyond what this process uses now."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + extra
    # Inside another guard's child no more can be had than that one allows.
    _, allowed = resource.getrlimit(resource.RLIMIT_AS)
    if allowed != resource.RLIM_INFINITY:
        limit = min(limit, allowed)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def limit_time(limits: Limits) -> None:
    """Begin to count: the system ends this process at its limits, whatever it is doing.

    The wall-clock limit is the parent's to watch; this one is for when the parent cannot.
    """
    signal.setitimer(signal.ITIMER_PROF, limits.cpu)
    if limits.wall is not None:
        signal.setitimer(signal.ITIMER_REAL, 2 * limits.wall + 5)


def stop_time() -> None:
    """Stop counting."""
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
