"""One guard for whatever is read and run: a child process with limits of time and memory.

Input is hostile until proven otherwise, and a plugin may spin, sleep, eat memory or end the
process. So that none of it takes more than its own result, the work is done in a child. `guarded`
gives what a generator yields there; when the child must be stopped, or dies, that item is a
`Stopped`, and a new child goes on behind it. `together` is the same for several generators side by
side, `call` for one answer, and `Asked` for a function that is asked again and again.

Three limits hold for each item. Processor time is counted by the system and ends even code that
never returns to Python. Wall-clock time is for work that sleeps; reading has none, for a pipe may
be slow. Memory is address space beyond what the process had.

The child is a fork: it begins at once, and the work may be a closure over plugins, machines and
files that could not travel. It never touches this process's output: what is printed there goes to
standard error. In a process of many threads forking is not safe; `paravirt_mm.sweep.guard` starts
fresh interpreters instead. Either way the parent is a `Patience` and the child calls `send_items`:
what a limit is, how a death is told, and what travels is said once, here.

What travels is pickled: between a process and the child that it made, through a pipe that nobody
else has open. Input is never unpickled. A child that runs a plugin could send its parent a pickle
that does harm; but so could the plugin, which is code that somebody chose to install (SECURITY.md).
"""

from __future__ import annotations

import ctypes
import gc
import math
import os
import resource
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
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
TRYING = Limits(cpu=10.0, wall=25.0)
"""For one scenario of thousands, on machines that were made up."""
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


def guarded(
    work: Callable[[int], Iterable[T]], limits: Limits = RUNNING
) -> Generator[T | Stopped, None, None]:
    """Yield what ``work(0)`` yields in a child; each item within ``limits``.

    Where item n must be given up, a `Stopped` takes its place, and ``work(n + 1)``, which has to
    leave out the first n + 1 items, goes on in a new child. What the work raises is raised here.
    """
    with closing(together([work], limits)) as items:
        for _, item in items:
            yield item


def together(
    works: Sequence[Callable[[int], Iterable[T]]],
    limits: Limits = RUNNING,
    *,
    until: float = math.inf,
) -> Generator[tuple[int, T | Stopped], None, None]:
    """Do several works at a time, each in a child as `guarded` does it; yield ``(number of the
    work, item)`` as they come.

    At ``until`` (of `time.monotonic`) all of them end, whatever they are at.
    """
    done = [0] * len(works)
    children: dict[int, _Forked] = {}
    try:
        for number, work in enumerate(works):
            children[number] = _Forked(partial(work, 0), limits)
        while children and time.monotonic() < until:
            for number in _ready(children, until):
                item = children[number].next()
                if isinstance(item, _Raised):
                    raise item.error
                if isinstance(item, _End | Stopped):
                    children.pop(number).close()
                if isinstance(item, _End):
                    continue
                done[number] += 1
                yield number, item
                if isinstance(item, Stopped):
                    children[number] = _Forked(partial(works[number], done[number]), limits)
    finally:
        for child in children.values():
            child.close()


def _ready(children: dict[int, _Forked], until: float) -> list[int]:
    """Wait until some children have something to say, or have had all the time they may have; at
    the longest ``until``.
    """
    if len(children) == 1 and until == math.inf:
        return list(children)
    began = time.monotonic()
    left = [child.patience.left for child in children.values()]
    left += [None if until == math.inf else max(0.0, until - began)]
    said = wait(
        [child.connection for child in children.values()],
        min((one for one in left if one is not None), default=None),
    )
    passed = time.monotonic() - began
    found = []
    for number, child in children.items():
        if child.connection in said or child.patience.waited(passed):
            found.append(number)
    return found


def call(function: Callable[..., T], *args: Any, limits: Limits = RUNNING) -> T:
    """Return what the function returns in a child. Raises what it raises, and `StoppedError`."""
    with closing(guarded(lambda _: [function(*args)], limits)) as answers:
        answer = next(answers)
    if isinstance(answer, Stopped):
        raise StoppedError(answer)
    return answer


class Asked(Generic[T]):
    """A function that a child answers for, asked again and again; a child that had to be stopped,
    or died, is replaced when the next question comes. Use it in a ``with``.
    """

    def __init__(self, function: Callable[[Any], T], limits: Limits = RUNNING) -> None:
        self._function = function
        self._limits = limits
        self._child: _Forked | None = None
        self._questions: Connection  # of the child, while there is one

    def __call__(self, question: Any) -> T | Stopped:
        """Return what the function answers in the child. Raises what it raises."""
        self.ask(question)
        return self.answer()

    def ask(self, question: Any) -> None:
        """Let the child begin; `answer` has what comes of it."""
        if self._child is None:
            theirs, self._questions = Pipe(duplex=False)
            ours = self._questions

            def answers() -> Iterator[T]:
                ours.close()
                with theirs, suppress(EOFError):
                    while True:
                        stop_time()  # nobody has asked anything
                        asked = theirs.recv()
                        limit_time(self._limits)
                        yield self._function(asked)

            self._child = _Forked(answers, self._limits)
            theirs.close()
        with suppress(ConnectionError):  # It died meanwhile; `next` says how.
            self._questions.send(question)

    def answer(self) -> T | Stopped:
        """Return what the function answers to the last question. Raises what it raises."""
        if self._child is None:
            raise ValueError("nothing was asked")
        answer = self._child.next()
        if isinstance(answer, _End | Stopped | _Raised):
            self.close()
        if isinstance(answer, _Raised):
            raise answer.error
        found: T | Stopped = answer
        return found

    def close(self) -> None:
        """End the child, if there is one."""
        if self._child is not None:
            self._child.close()
            self._child = None
            self._questions.close()

    def __enter__(self) -> Asked[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Patience:
    """The parent's side of a child, forked or not: what it sends, within limits, and how it ended.

    ``left`` is how long it may still take until it says something (None: as long as it likes).
    """

    def __init__(self, connection: Connection, limits: Limits) -> None:
        self._connection = connection
        self._limits = limits
        self.left = limits.wall

    def waited(self, seconds: float) -> bool:
        """Count time that was spent waiting for it; tell whether that was all it may have."""
        if self.left is not None:
            self.left = max(0.0, self.left - seconds)
        return self.left == 0

    def next(self, ended: Callable[[], int]) -> Any:
        """Return what the child sends next, or why there is nothing; ``ended`` reaps it and gives
        its exit code, negative for a signal. What its work raised is raised by the caller.
        """
        try:
            if not self._connection.poll(self.left):
                return Stopped(f"longer than {self._limits.wall:g} s")
            item = self._connection.recv()
        except (EOFError, ConnectionError):
            return self._death(ended())
        self.left = self._limits.wall
        if isinstance(item, _NoMemory):
            return Stopped(f"more than {self._limits.memory // MIB} MiB of memory")
        return item

    def _death(self, code: int) -> Stopped:
        if code == -signal.SIGPROF:
            return Stopped(f"longer than {self._limits.cpu:g} s")
        return Stopped(f"its process {how_it_ended(code)}", crashed=True)


def ended(item: object) -> bool:
    """Tell whether what `Patience.next` gave is the end of a work. Raises what the work raised."""
    if isinstance(item, _Raised):
        raise item.error
    return isinstance(item, _End)


def how_it_ended(code: int) -> str:
    """Return an exit code, negative for a signal, in words."""
    if code < 0:
        named = -code in set(signal.Signals)  # most real-time signals have no name
        return f"was ended by {signal.Signals(-code).name if named else f'signal {-code}'}"
    return f"ended with exit code {code}"


class _Forked:
    """A forked child at work."""

    def __init__(self, work: Callable[[], Iterable[Any]], limits: Limits) -> None:
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
            _be_the_child(theirs, work, limits)
        theirs.close()
        if limits.wall is not None:
            with suppress(OSError):  # whoever comes first
                os.setpgid(self._pid, self._pid)
        self._lives = True
        self.connection = ours
        self.patience = Patience(ours, limits)

    def next(self) -> Any:
        return self.patience.next(self._reap)

    def _reap(self) -> int:
        self._lives = False
        status = None
        if hasattr(os, "waitid"):
            # While it is there, though dead, nobody else has its number.
            os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
        else:  # PyPy: numbers are not given again before all others were
            status = os.waitpid(self._pid, 0)[1]
        with suppress(ProcessLookupError, PermissionError):  # What it started, and left.
            os.killpg(self._pid, signal.SIGKILL)
        if status is None:
            status = os.waitpid(self._pid, 0)[1]
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        """End it."""
        if self._lives:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self._reap()  # which ends what it started, too
        self.connection.close()


def _be_the_child(
    connection: Connection, work: Callable[[], Iterable[Any]], limits: Limits
) -> NoReturn:
    """Send what the work yields, then end without any of the parent's duties at exit."""
    code = 0
    if hasattr(gc, "freeze"):  # PyPy's collector has none
        # Else the collector would touch, and so copy, every page of what the parent has.
        gc.freeze()
    try:
        end_with_parent()
        if limits.wall is not None:
            # What it starts ends with it. A reader stays where it may read a terminal.
            os.setpgid(0, 0)
        try:
            _own_output()
            limit_memory(limits.memory)
        except OSError as error:  # no descriptor is left: the system's fault, not the item's
            connection.send(_Raised(error))
        else:
            send_items(connection, work, limits)
    except BaseException:
        code = os.EX_SOFTWARE
    finally:
        os._exit(code)


def send_items(connection: Connection, work: Callable[[], Iterable[Any]], limits: Limits) -> None:
    """Send each item, then the end or what was raised instead; time counts from item to item."""
    last: Any = _End()
    here = os.getpid()
    try:
        limit_time(limits)
        for item in work():
            stop_time()
            _only(here)
            connection.send(item)
            limit_time(limits)
    except MemoryError:
        last = _NoMemory()
    except BaseException as error:
        if not isinstance(error, ParavirtMmError):
            error.add_note("There:\n" + "".join(traceback.format_exception(error)))
        last = _Raised(_portable(error))
    stop_time()
    _only(here)
    connection.send(last)


def _only(process: int) -> None:
    """End a process that the work forked off and that came back here: one of them is enough."""
    if os.getpid() != process:
        os._exit(0)


def is_child() -> bool:
    """Tell whether this is a child of the guard: Ctrl-C and other signals are its parent's, so that
    what looks like one here was raised by the work.
    """
    return _CHILD.is_set()


_CHILD = threading.Event()


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
    _CHILD.set()
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
    allowed, highest = resource.getrlimit(resource.RLIMIT_AS)
    if allowed != resource.RLIM_INFINITY:
        limit = min(limit, allowed)
    resource.setrlimit(resource.RLIMIT_AS, (limit, highest))


@contextmanager
def without_memory_limit() -> Iterator[None]:
    """Lift the limit for a program that is started here and that reserves more than it uses."""
    limit, highest = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (highest, highest))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (limit, highest))


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
