"""Work that misbehaves costs its own item and no other, whatever it does."""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import gc
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import attrs
import pytest

from paravirt_mm import registry, strangers
from paravirt_mm.engine.panic import KernelPanic
from paravirt_mm.errors import InputError, PluginError, Rejected
from paravirt_mm.guard import (
    MIB,
    READING,
    RUNNING,
    TRYING,
    Asked,
    ForeignError,
    Limits,
    Patience,
    Stopped,
    StoppedError,
    call,
    ended,
    guarded,
    how_it_ended,
    is_child,
    limit_time,
    send_items,
    stop_time,
    together,
    without_memory_limit,
)

PROMISED = (READING, RUNNING, Limits(), TRYING, strangers.NAMED, registry.ANSWERING,
            strangers.UNASKED)  # fmt: skip
SHORT = Limits(cpu=2.0, wall=3.0, memory=64 * MIB)
ENDLESS = attrs.evolve(SHORT, cpu=0.1)
"""For what computes until it is stopped."""


def _spin() -> None:
    while True:
        pass


def _spin_in_c() -> None:
    re.match(r"(a|a)*b", "a" * 64)


def _deaf() -> None:
    """Take whatever Python can be told, and go on."""
    while True:
        try:
            _spin()
        except BaseException:  # noqa: S112
            continue


def _hoard() -> list[bytearray]:
    return [bytearray(MIB) for _ in range(4096)]


def _hang_up() -> None:
    os.closerange(3, 256)
    time.sleep(0.05)
    os._exit(7)


def _abort() -> None:
    faulthandler.disable()  # pytest's would print where it happened
    os.abort()


WAYS: dict[str, tuple[Callable[[], object], Stopped]] = {
    "spin": (_spin, Stopped("longer than 0.1 s")),
    "spin in C": (_spin_in_c, Stopped("longer than 0.1 s")),
    "deaf": (_deaf, Stopped("longer than 0.1 s")),
    "sleep": (lambda: time.sleep(60), Stopped("longer than 3 s")),
    "memory": (_hoard, Stopped("more than 64 MiB of memory")),
    "exit": (
        lambda: os._exit(7),
        Stopped("its process ended with exit code 7", crashed=True),
    ),
    "exit as if all were well": (
        lambda: os._exit(0),
        Stopped("its process ended with exit code 0", crashed=True),
    ),
    "abort": (_abort, Stopped("its process was ended by SIGABRT", crashed=True)),
    "kill": (
        lambda: os.kill(os.getpid(), signal.SIGKILL),
        Stopped("its process was ended by SIGKILL", crashed=True),
    ),
    "hang up before it ends": (
        _hang_up,
        Stopped("its process ended with exit code 7", crashed=True),
    ),
    "a signal without a name": (
        lambda: os.kill(os.getpid(), signal.SIGRTMIN + 6),
        Stopped(f"its process was ended by signal {signal.SIGRTMIN + 6}", crashed=True),
    ),
}


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=pytest.mark.slow if way == "sleep" else ()) for way in WAYS]
)
def test_one_item_is_lost_and_the_others_are_not(way: str) -> None:
    act, expected = WAYS[way]

    def work(skip: int) -> Iterator[int]:
        for number in range(skip, 5):
            if number == 2:
                act()
            yield number

    limits = ENDLESS if expected.reason.endswith("0.1 s") else SHORT
    assert list(guarded(work, limits)) == [0, 1, expected, 3, 4]


def test_a_first_and_a_last_item_may_be_lost() -> None:
    def work(skip: int) -> Iterator[int]:
        for number in range(skip, 3):
            if number in (0, 2):
                os._exit(1)
            yield number

    lost = Stopped("its process ended with exit code 1", crashed=True)
    assert list(guarded(work)) == [lost, 1, lost]


def test_what_the_work_raises_is_raised_here() -> None:
    def work(skip: int) -> Iterator[int]:
        yield 1
        raise InputError("holds no machine", "a.log:3")

    items = guarded(work)
    assert next(items) == 1
    with pytest.raises(InputError, match=r"^a.log:3: holds no machine$") as caught:
        next(items)
    assert caught.value.where == "a.log:3"


@pytest.mark.parametrize(
    "ending", [SystemExit(0), KeyboardInterrupt(), GeneratorExit(), BrokenPipeError()]
)
def test_exceptions_that_are_no_errors_arrive_as_well(ending: BaseException) -> None:
    """A plugin that calls sys.exit(0), or writes to a program that ended, must not look like the
    end of the work.
    """

    def work() -> None:
        raise ending

    with pytest.raises(type(ending)):
        call(work)


def test_an_exception_that_cannot_travel_is_named() -> None:
    class Local(Exception):
        pass

    def work() -> None:
        raise Local("here")

    with pytest.raises(ForeignError, match="Local: here") as caught:
        call(work)
    assert "in work" in "".join(caught.value.__notes__)


@pytest.mark.parametrize(
    "error",
    [
        InputError("x", "f:1"),
        InputError("x"),
        PluginError("p", "m"),
        KernelPanic("r", 3),
        Rejected("mmu_update", -22),
        StoppedError(Stopped("s", crashed=True)),
    ],
)
def test_our_errors_survive_the_journey(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


@pytest.mark.parametrize(
    "then",
    [
        pytest.param(time.sleep, marks=pytest.mark.slow, id="stopped"),
        pytest.param(os._exit, id="ended by itself"),
        pytest.param(lambda _: None, id="nobody wants more"),
    ],
)
def test_what_it_started_ends_with_it(then: Callable[[int], None]) -> None:
    """A plugin's emulator does not outlive a scenario that was stopped."""

    def work(skip: int) -> Iterator[int]:
        for _ in range(skip, 1):
            yield subprocess.Popen(["sleep", "60"]).pid
        then(60)
        yield 0

    items = guarded(work, Limits(cpu=5, wall=1.5))
    pid = next(items)
    assert isinstance(pid, int)
    assert "Z" not in _state(pid)
    if then in (time.sleep, os._exit):
        assert isinstance(next(items), Stopped)
    items.close()
    until = time.monotonic() + 5
    while "Z" not in _state(pid):
        assert time.monotonic() < until, "it still runs"
        time.sleep(0.01)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return "Z"


def test_where_it_was_raised_is_told() -> None:
    def deep() -> None:
        raise ZeroDivisionError("x")

    with pytest.raises(ZeroDivisionError) as caught:
        call(deep)
    assert "in deep" in "".join(caught.value.__notes__)


def test_an_answer_that_cannot_travel_is_an_error() -> None:
    with pytest.raises((ForeignError, TypeError, AttributeError, pickle.PicklingError)):
        call(lambda: lambda: None)


def test_a_call_that_is_stopped_says_why() -> None:
    with pytest.raises(StoppedError, match=r"longer than 0\.1 s") as caught:
        call(time.sleep, 60, limits=attrs.evolve(SHORT, wall=0.1))
    assert not caught.value.stopped.crashed
    assert call(sum, [1, 2]) == 3


@pytest.mark.slow
def test_time_is_counted_by_item() -> None:
    """Ten items of a tenth of a second are no reason to stop at three tenths."""

    def work(skip: int) -> Iterator[int]:
        for number in range(skip, 10):
            until = time.process_time() + 0.1
            while time.process_time() < until:
                pass
            yield number

    assert list(guarded(work, attrs.evolve(SHORT, cpu=0.3))) == list(range(10))


@pytest.mark.parametrize("children", [1, 2])
def test_all_of_them_end_when_the_time_is_over(
    children: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counts(skip: int) -> Iterator[int]:
        yield from range(3)
        time.sleep(60)

    waits: list[float | None] = []

    def counted(connections: list[Connection], left: float | None) -> list[Any]:
        waits.append(left)
        return wait(connections, left)

    monkeypatch.setattr("paravirt_mm.guard.wait", counted)
    began = time.monotonic()
    found = list(together([counts] * children, until=began + 0.3))
    assert 0.25 < time.monotonic() - began < 20
    assert len(waits) < 20  # who waits does not ask again and again
    assert all(left is not None and left <= 0.3 for left in waits)
    for number in range(children):
        items = [item for one, item in found if one == number]
        assert items == list(range(3))[: len(items)]  # on a busy machine not all have come


def test_a_reader_may_wait_as_long_as_it_likes() -> None:
    assert call(lambda: time.sleep(0.15), limits=Limits(cpu=0.1)) is None
    both = list(together([lambda skip: ["here"][skip:]] * 2, Limits()))
    assert sorted(both) == [(0, "here"), (1, "here")]


def test_nothing_is_left_behind_when_the_caller_stops_early(tmp_path: Path) -> None:
    seen = tmp_path / "pid"

    def work(skip: int) -> Iterator[int]:
        seen.write_text(str(os.getpid()))
        yield from range(10**9)

    items = guarded(work)
    assert next(items) == 0
    items.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(seen.read_text()), 0)


def test_what_work_prints_never_mixes_with_results(capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        print("chatter")
        sys.stdout.write("more\n")
        os.system("echo from a shell")  # noqa: S605
        sys.stdout.close()
        os.system("echo of an error >&2")  # noqa: S605

    call(work)
    out, err = capfd.readouterr()
    assert out == ""
    assert {"chatter", "more", "from a shell", "of an error"} <= set(err.splitlines())


def test_what_was_printed_before_is_printed_once(capfd: pytest.CaptureFixture[str]) -> None:
    print("once", end="")
    call(lambda: None)
    assert capfd.readouterr().out == "once"


def test_limits_are_those_that_are_promised(checkout: Path) -> None:
    """SECURITY.md, what is read or run, in the order of its table."""
    table = (checkout / "SECURITY.md").read_text("utf-8")
    reading, scenario, swept, tried, named, _, unasked = PROMISED
    for row in (
        f"| reading one input | {reading.cpu:g} s of processor time, one more for each MiB,"
        f" {reading.memory >> 30} GiB of memory |",
        f"| one scenario | `--time-limit` ({scenario.cpu:g} s of processor time, 2.5 times as long"
        f" in all), `--memory-limit` ({scenario.memory >> 30} GiB) |",
        f"| a scenario of `sweep` | `--time-limit` ({swept.cpu:g} s) and `--memory-limit`"
        f" ({swept.memory >> 30} GiB) |",
        f"| a try of `hunt` | `--time-limit` ({tried.cpu:g} s of processor time, 2.5 times as long"
        f" in all), `--memory-limit` ({tried.memory >> 30} GiB) |",
        f"or one answer of it to a command | {named.cpu:g} s of processor time, {named.wall:g} s in"
        " all |",
        f"| {unasked.cpu:g} s of processor time, {unasked.wall:g} s in all,"
        f" {unasked.memory >> 30} GiB |",
    ):
        assert row in table
    assert [(one.cpu, one.wall, one.memory / (1 << 30)) for one in PROMISED] == [
        (10, None, 1),  # reading one input
        (120, 2.5 * 120, 4),  # one scenario
        (60, None, 2),  # a scenario of `sweep`
        (10, 2.5 * 10, 2),  # a try of `hunt`
        (20, 30, 2),  # importing a plugin that was named,
        (20, 30, 2),  # or one answer of it to a command
        (5, 6, 1),  # importing one that nobody named
    ]


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_limits_are_numbers(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds"):
        Limits(cpu=seconds)


def test_a_reader_stays_where_it_may_read_a_terminal() -> None:
    """In a group of its own it would be stopped for reading; what runs plugins is in one."""
    assert call(os.getpgrp, limits=Limits()) == os.getpgrp()
    assert call(os.getpgrp, limits=Limits(wall=60)) != os.getpgrp()


def test_a_child_that_the_system_refuses_is_no_fault_of_its_item(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EMFILE, "none left")

    monkeypatch.setattr("paravirt_mm.guard.limit_memory", refuse)
    with pytest.raises(OSError, match="none left"):
        call(len, "abc")


def test_a_child_that_cannot_begin_is_told_as_a_fault_of_software(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the exit code of sysexits.h; a question that was too long for the pipe is given up."""

    def fail() -> None:
        raise RuntimeError

    monkeypatch.setattr("paravirt_mm.guard.end_with_parent", fail)
    with Asked(len) as asked:
        assert asked(bytes(1 << 20)) == Stopped("its process ended with exit code 70", crashed=True)


def test_threads_of_others_are_no_reason_to_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 3.12 on Python warns whoever forks a process of several threads."""
    fork = os.fork

    def warns() -> int:
        warnings.warn("this process is multi-threaded", DeprecationWarning, stacklevel=2)
        return fork()

    monkeypatch.setattr(os, "fork", warns)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert call(len, "abc") == 3


def test_a_program_may_reserve_more_than_the_work_that_starts_it() -> None:
    """Guest memory of a virtual machine is reserved, and mostly never touched."""

    def limits() -> tuple[str, str]:
        def mine() -> str:
            return subprocess.check_output(["bash", "-c", "ulimit -v"], text=True).strip()

        with without_memory_limit():
            free = mine()
        return mine(), free

    mine, free = call(limits, limits=Limits(memory=512 * MIB))
    assert (mine.isdigit(), free) == (True, "unlimited")


# -- what holds inside a child ---------------------------------------------------------------------


def test_a_child_is_ended_by_its_parent_and_by_nobody_at_a_terminal() -> None:
    def inside() -> tuple[bool, list[object], int, bool]:
        asked, get_death_signal = ctypes.c_int(), 2  # PR_GET_PDEATHSIG, prctl(2)
        ctypes.CDLL(None).prctl(get_death_signal, ctypes.byref(asked))
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        # What the parent has is not looked through.
        shares = not hasattr(gc, "freeze") or gc.get_freeze_count() > 10_000
        return is_child(), [signal.getsignal(one) for one in numbers], asked.value, shares

    usual = signal.SIG_DFL
    ours = {one: signal.signal(one, lambda *_: None) for one in (signal.SIGTERM, signal.SIGHUP)}
    try:  # a command's own handlers are not for its children
        assert call(inside) == (True, [signal.SIG_IGN, usual, usual], signal.SIGKILL, True)
    finally:
        for one, handler in ours.items():
            signal.signal(one, handler)
    assert not is_child()


@pytest.mark.parametrize(("wall", "real"), [(None, 0.0), (10.0, 25.0)])
def test_the_system_ends_it_should_its_parent_not(wall: float | None, real: float) -> None:
    """Well after the parent's own limit: a parent that is stopped ends no child."""

    def left() -> list[float]:
        return [signal.getitimer(one)[0] for one in (signal.ITIMER_PROF, signal.ITIMER_REAL)]

    cpu, clock = call(left, limits=Limits(cpu=7.0, wall=wall))
    assert 6 < cpu < 7.1
    assert real - 3 < clock < real + 0.1


def test_a_clock_that_is_stopped_ends_nobody() -> None:
    def stopped() -> list[tuple[float, float]]:
        limit_time(Limits(cpu=9.0, wall=9.0))
        stop_time()
        return [signal.getitimer(one) for one in (signal.ITIMER_PROF, signal.ITIMER_REAL)]

    assert call(stopped) == [(0, 0), (0, 0)]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-9, "was ended by SIGKILL"),
        (-1, "was ended by SIGHUP"),
        (0, "ended with exit code 0"),
        (1, "ended with exit code 1"),
    ],
)
def test_an_exit_code_in_words(code: int, words: str) -> None:
    assert how_it_ended(code) == words


def test_the_end_of_a_work_is_an_item_of_its_own() -> None:
    """For those who start their children some other way."""

    def exchanged(fails: bool) -> list[object]:
        ours, theirs = Pipe(duplex=False)

        def work() -> Iterator[int]:
            yield 7
            if fails:
                raise InputError("no", "f:1")

        send_items(theirs, work, SHORT)
        theirs.close()
        patience = Patience(ours, SHORT)
        items = [patience.next(lambda: 3) for _ in range(3)]
        return [items[0], ended(items[0]), items[2], ended(items[1])]

    died = Stopped("its process ended with exit code 3", crashed=True)
    assert call(exchanged, False) == [7, False, died, True]
    with pytest.raises(InputError, match="f:1: no"):
        call(exchanged, True)


def test_a_child_in_a_child_may_have_no_more_memory() -> None:
    def allowed() -> tuple[int, int]:
        return resource.getrlimit(resource.RLIMIT_AS)

    def both() -> tuple[int, list[tuple[int, int]]]:
        lines = Path("/proc/self/status").read_text().splitlines()
        kib = int(dict(line.split(":") for line in lines)["VmSize"].split()[0])
        inner = [call(allowed, limits=Limits(memory=one << 30)) for one in (1, 64)]
        return kib, [allowed(), *inner]

    kib, (outer, less, more) = call(both, limits=Limits(memory=8 << 30))
    highest = allowed()[1]
    assert {one[1] for one in (outer, less, more)} == {highest}
    used = outer[0] - (8 << 30)
    assert abs(used - (kib << 10)) < 64 * MIB
    assert 0 < used < less[0] - (1 << 30) + (256 << 20)
    assert less < outer == more


def test_whoever_has_no_output_has_none() -> None:
    def silent() -> str:
        os.close(2)
        return call(lambda: print("nobody hears this") or "done")

    assert call(silent) == "done"


@pytest.mark.parametrize("fails", [False, True])
def test_work_that_forks_answers_once(fails: bool) -> None:
    def work() -> str:
        pid = os.fork()
        if pid:
            assert os.waitpid(pid, 0) == (pid, 0)
            return "the first"
        if fails:
            raise ValueError("the second")
        return "the second"

    assert call(work) == "the first"


def test_patience_ends_with_the_time_that_was_spent_waiting() -> None:
    ours, theirs = Pipe(duplex=False)
    with ours, theirs:
        patience = Patience(ours, Limits(wall=2.0))
        assert [patience.waited(seconds) for seconds in (0.5, 1.0, 0.5, 0.1)] == [
            False, False, True, True,
        ]  # fmt: skip
        theirs.send("alive")
        assert patience.next(lambda: 0) == "alive"
        assert patience.left == 2.0
        assert not Patience(ours, Limits()).waited(1e9)


def test_each_of_several_has_its_own_time() -> None:
    """One that keeps talking does not hide one that says nothing."""

    def sleeps(skip: int) -> Iterator[str]:
        if not skip:
            time.sleep(60)
        yield "woken"

    def talks(skip: int) -> Iterator[str]:
        for _ in range(skip, 12):
            time.sleep(0.05)
            yield "here"

    found = list(together([sleeps, talks], Limits(wall=0.4)))
    assert found[0] == (1, "here")
    assert [item for number, item in found if not number] == [Stopped("longer than 0.4 s"), "woken"]


# -- a child that is asked again and again ---------------------------------------------------------


def _answer(question: object) -> object:
    if question == "spin":
        _spin()
    if question == "exit":
        os._exit(7)
    if question == "raise":
        raise InputError("no", "f:1")
    if question == "who":
        return os.getpid()
    return question


def test_it_answers_until_it_is_stopped_and_again_then() -> None:
    with Asked(_answer, ENDLESS) as asked:
        first = asked("who")
        assert first not in (os.getpid(), None)
        assert [asked(number) for number in range(3)] == [0, 1, 2]
        assert asked("spin") == Stopped("longer than 0.1 s")
        second = asked("who")
        assert second != first
        with pytest.raises(InputError, match="no"):
            asked("raise")
        asked.ask("who")
        assert asked.answer() not in (first, second)
        assert asked("exit") == Stopped("its process ended with exit code 7", crashed=True)
        with pytest.raises(ValueError, match="nothing was asked"):
            asked.answer()
        last = asked("who")
        assert isinstance(last, int)
    with pytest.raises(ProcessLookupError):
        os.kill(last, 0)


def test_between_questions_no_clock_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[float] = []

    def begin(_: Limits) -> None:
        left.append(signal.setitimer(signal.ITIMER_REAL, 60)[0])

    monkeypatch.setattr("paravirt_mm.guard.limit_time", begin)
    with Asked(lambda _: left) as asked:
        for number in (1, 2, 3):  # twice a question: before its answer, and behind it
            assert asked(number) == [0.0, 0.0] * number


def test_nobody_need_ask() -> None:
    with Asked(_answer) as asked:
        asked.close()
    with pytest.raises(ValueError, match="nothing was asked"):
        asked.answer()


def test_a_child_that_dies_between_questions_says_so() -> None:
    with Asked(_answer, SHORT) as asked:
        pid = asked("who")
        assert isinstance(pid, int)
        os.kill(pid, signal.SIGKILL)
        while "Z" not in _state(pid):
            time.sleep(0.001)
        killed = Stopped("its process was ended by SIGKILL", crashed=True)
        assert [asked("who"), asked(3)] == [killed, 3]
