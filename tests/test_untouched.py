"""A plugin that replaces something of ours while a scenario runs, whoever runs the scenario."""

from __future__ import annotations

import builtins
import gc
import io
import locale
import os
import random
import resource
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import paravirt_mm
from paravirt_mm import untouched
from paravirt_mm.diff import Pair, compared
from paravirt_mm.errors import PluginError
from paravirt_mm.guard import call
from paravirt_mm.hunt.search import Quarry, run_batch
from paravirt_mm.invariants import rules
from paravirt_mm.offers import default_specs
from paravirt_mm.registry import Registry, default_registry
from paravirt_mm.scenario import Scenario
from paravirt_mm.sources import bundled
from paravirt_mm.sweep.work import run as swept
from paravirt_mm.untouched import no_output, side_effects, unchanged

CODE = """
import random

import attrs
from paravirt_mm import hookimpl
from paravirt_mm.testing import AscendingAllocator


@attrs.frozen
class Patches(AscendingAllocator):
    @hookimpl
    def pvmm_allocate_tables(self, boot, demand):
        import paravirt_mm.invariants.rules as rules, paravirt_mm.scenario as scenario
        rules.check = scenario.check = lambda trace: ()
        return AscendingAllocator.pvmm_allocate_tables(self, boot, None, demand)


@attrs.frozen
class Draws(AscendingAllocator):
    @hookimpl
    def pvmm_allocate_tables(self, boot, demand):
        random.random()
        return AscendingAllocator.pvmm_allocate_tables(self, boot, None, demand)


@attrs.frozen
class Good(AscendingAllocator):
    pass
"""
SAID = "replaces paravirt_mm.invariants.rules.check, paravirt_mm.scenario.check while it runs"


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("untouched") / "mine.py"
    path.write_text(CODE)
    return path


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("paravirt_mm.registry._DEFAULT", [])
    before = rules.check
    yield
    assert rules.check is before


def told(mine: Path, runner: str, name: str) -> str:
    """Run a plugin the way a command does; return what that says of it."""
    machine, spec = bundled("qemu-512m"), f"{mine}:{name}"
    if runner == "scenario":
        return str(Scenario.of(machine, spec, "native").run().verdict)
    if runner == "diff":
        return compared(Pair("incremental", spec, "native"), machine).refused
    if runner == "sweep":
        return swept(machine, spec, "native", default_registry()).verdict
    quarry = Quarry(spec, "native", "ok", machines=(machine,))
    if runner == "hunt":
        result = run_batch(quarry, 0, -1)
        assert (result.found is None) == (result.errors > 0)
        return result.error
    return str(quarry.judge(machine)[1])  # while what was found is made smaller


@pytest.mark.parametrize("runner", ["scenario", "diff", "sweep", "hunt", "shrink"])
def test_it_is_found_and_put_back(mine: Path, runner: str) -> None:
    said = told(mine, runner, "Patches")
    assert "error" in said or runner == "diff"
    assert SAID in said or runner == "shrink"
    assert SAID not in told(mine, runner, "Good")


def test_what_changed_before_is_nobodys_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    with unchanged() as touched:
        pass
    monkeypatch.setattr(rules, "check", lambda trace: [])
    mine = rules.check
    with unchanged() as touched:
        pass
    assert (touched, rules.check) == ([], mine)
    monkeypatch.undo()
    with unchanged() as touched:
        rules.check = mine
    assert touched == ["paravirt_mm.invariants.rules.check"]


def test_who_draws_at_random_is_not_made_repeatable() -> None:
    before = random.getstate()
    with unchanged(dice=False):
        random.random()
    assert random.getstate() != before
    before = random.getstate()
    with unchanged():
        random.random()
    assert random.getstate() == before


def test_who_replaces_something_while_it_is_imported_is_broken(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from paravirt_mm.invariants import rules\nrules.check = None\nclass Mine: pass\n"
    )
    with pytest.raises(PluginError, match=r"it replaces paravirt_mm\.invariants\.rules\.check$"):
        Registry().get(f"{tmp_path}/mine.py:Mine")


def test_a_scenario_of_others_draws_on(mine: Path) -> None:
    """Else each would meet the same chance."""
    before = random.getstate()
    Scenario.of(bundled("qemu-512m"), f"{mine}:Draws", "native").run()
    assert random.getstate() != before


def test_a_class_in_a_file_offers_no_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import attrs\nfrom paravirt_mm_xen import Xen\n@attrs.frozen\nclass Mine(Xen):\n    pass\n"
    )
    registry = Registry.discover()
    before = default_specs("backend", registry)
    registry.get(f"{path}:Mine", "backend")
    assert default_specs("backend", registry) == before


class _Contrary:
    """Refuses to be compared."""

    def __eq__(self, other: object) -> bool:
        raise TypeError("no")

    __hash__ = None  # type: ignore[assignment]  # as for a class that compares


def test_a_value_that_refuses_comparison_is_another() -> None:
    before = rules.check
    with unchanged() as touched:
        rules.check = _Contrary()  # type: ignore[assignment]  # that is the point
    assert touched == ["paravirt_mm.invariants.rules.check"]
    assert rules.check is before


# -- what is put back: all of it in a child, so that a failure spoils no other test ----------------

Change = tuple[Callable[[], object], Callable[[], object]]
"""How to ask for something of the process, and something that changes it."""


def _mask() -> int:
    return int(Path("/proc/self/status").read_text().partition("Umask:")[2].split()[0], 8)


def _lower(what: int) -> None:
    now, highest = resource.getrlimit(what)
    resource.setrlimit(what, (5000 if now == resource.RLIM_INFINITY else now - 1, highest))


def _changes() -> dict[str, Change]:
    def nothing(*_: object) -> None:
        pass

    found: dict[str, Change] = {
        "directory": (os.getcwd, lambda: os.chdir("/proc")),
        "a variable more": (os.environ.copy, lambda: os.environ.update(PVMM_MORE="1")),
        "a variable less": (os.environ.copy, lambda: os.environ.pop("PATH")),
        "umask": (_mask, lambda: os.umask(0o123)),
        "depth": (sys.getrecursionlimit, lambda: sys.setrecursionlimit(4321)),
        "turns": (sys.getswitchinterval, lambda: sys.setswitchinterval(0.5)),
        "trace": (sys.gettrace, lambda: sys.settrace(nothing)),
        "profile": (sys.getprofile, lambda: sys.setprofile(nothing)),
        "locale": (
            lambda: locale.setlocale(locale.LC_ALL),
            lambda: locale.setlocale(locale.LC_CTYPE, "POSIX"),
        ),
        "filters": (lambda: [*warnings.filters], lambda: warnings.simplefilter("once")),
        "timer": (lambda: signal.getitimer(signal.ITIMER_VIRTUAL), partial(_timer, 90.0)),
        "memory": (
            lambda: resource.getrlimit(resource.RLIMIT_AS),
            lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 45, resource.RLIM_INFINITY)),
        ),
    }
    for name in ("stdin", "stdout", "stderr", "excepthook", "displayhook", "unraisablehook"):
        found[name] = (partial(getattr, sys, name), partial(setattr, sys, name, nothing))
    for what in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CPU):
        found[f"limit {what}"] = (partial(resource.getrlimit, what), partial(_lower, what))
    for one in ["INT", "TERM", "HUP", "PIPE", "ALRM", "PROF", "CHLD", "USR1"]:
        number = getattr(signal, f"SIG{one}")
        found[one] = (partial(signal.getsignal, number), partial(signal.signal, number, nothing))
    return found


def _timer(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)


def _not_put_back() -> list[str]:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 46, resource.RLIM_INFINITY))
    locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    bad = []
    for name, (get, change) in _changes().items():
        before = get()
        with unchanged() as touched:
            change()
            if get() == before:
                bad.append(f"{name}: not changed")
        if get() != before or touched:
            bad.append(name)
    for collects in (True, False):
        (gc.enable if collects else gc.disable)()
        with unchanged():
            (gc.disable if collects else gc.enable)()
        if gc.isenabled() != collects:
            bad.append("gc")
    return bad


def test_a_process_is_as_it_was() -> None:
    assert call(_not_put_back) == []


def test_it_is_put_back_after_an_error_too() -> None:
    def interrupted() -> None:
        with unchanged():
            os.chdir("/proc")
            raise KeyboardInterrupt

    before = os.getcwd()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.getcwd() == before


def _handler_of_c() -> bool:
    """Python gives None for a handler that it has not set; here, for the one it began with."""
    known, number = signal.getsignal, signal.SIGUSR1
    signal.signal(number, signal.SIG_DFL)
    vars(signal)["getsignal"] = lambda one: None if known(one) is signal.SIG_DFL else known(one)
    with unchanged():
        signal.signal(number, signal.SIG_IGN)
    return known(number) is signal.SIG_DFL


def test_a_handler_that_python_does_not_know_becomes_the_usual_one() -> None:
    assert call(_handler_of_c)


def _time_left(where: str) -> float:
    if where == "before":
        _timer(90)
    with unchanged():
        _timer(30)
    return signal.getitimer(signal.ITIMER_VIRTUAL)[0]


def _time_left_when_a_thread_asks() -> float:
    thread = threading.Thread(target=_time_left, args=("there",))
    thread.start()
    thread.join()
    return signal.getitimer(signal.ITIMER_VIRTUAL)[0]


def test_a_timer_of_others_goes_on() -> None:
    """Whoever has set one limits the very work that is watched; a thread owns none of them."""
    assert 0 < call(_time_left, "before") < 31
    assert call(_time_left, "there") == 0
    assert 0 < call(_time_left_when_a_thread_asks) < 31


def test_a_warning_is_given_again_once_its_filters_are_back() -> None:
    """Python remembers which it has given, until somebody tells it that the filters changed."""
    told: dict[Any, Any] = {}
    warn = partial(warnings.warn_explicit, "twice", UserWarning, "here", 1, registry=told)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        with unchanged():
            warnings.simplefilter("default")
            warn()
            warn()
            assert len(given) == 1
        warn()
    assert len(given) == 2


# -- what of the package is put back, and said -----------------------------------------------------

MADE_UP = """
import attrs
public, _state = 1, 1
def function(): pass
def _helper(): pass
class Kind:
    remembered = 1
    def __init__(self): pass  # as typing replaces that of a protocol
    def method(self): pass
class Foreign:
    __module__ = "elsewhere"
    def theirs(self): pass
def change():
    global public, _state, function, _helper, __doc__
    public = _state = __doc__ = 2
    del function
    _helper = Kind.method = Foreign.theirs = Kind.__init__ = len
    Kind.remembered = 2
"""


def _replaced(name: str, before: bool) -> tuple[list[str], list[object]]:
    module = ModuleType(name)
    exec(MADE_UP, vars(module))  # noqa: S102  # our own text
    if not before:
        with unchanged():
            pass
    sys.modules[name] = module
    with unchanged() as touched:
        module.change()
    kind, foreign = module.Kind, module.Foreign
    values = [module.public, module._state, module.__doc__, kind.remembered]
    return sorted(touched), [
        *values,
        *(one is len for one in (foreign.theirs, kind.__init__, kind.method)),
    ]


@pytest.mark.parametrize("before", [True, False])
def test_what_counts_as_replaced(before: bool) -> None:
    """Functions, methods and public names; what a module or a class keeps for itself may change."""
    name = "paravirt_mm.made_up"
    touched, values = call(_replaced, name, before)
    assert touched == sorted(f"{name}.{one}" for one in ("public", "function", "_helper", "method"))
    assert values == [1, 2, 2, 2, True, True, False]


@pytest.mark.parametrize("name", ["paravirt_mm_made_up", "made_up"])
def test_modules_of_plugins_are_theirs(name: str) -> None:
    assert call(_replaced, name, True) == ([], [2, 2, 2, 2, True, True, True])


def _replaced_at_the_top() -> tuple[list[str], bool]:
    before = paravirt_mm.bundled, len
    with unchanged() as touched:
        vars(paravirt_mm)["bundled"] = vars(builtins)["len"] = None
    return touched, before == (paravirt_mm.bundled, len)


def test_the_package_itself_and_built_in_functions_count() -> None:
    assert call(_replaced_at_the_top) == (["builtins.len", "paravirt_mm.bundled"], True)


def test_what_has_not_changed_is_not_collected_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scenarios come in thousands, and the package has thousands of names."""
    first = untouched._Namespaces.now()
    assert untouched._Namespaces.now() is first
    monkeypatch.setattr(rules, "check", lambda trace: [])
    second = untouched._Namespaces.now()
    assert second is not first
    monkeypatch.setitem(sys.modules, "made_up", ModuleType("made_up"))
    assert untouched._Namespaces.now() is not second
    monkeypatch.undo()


# -- output, and what an import leaves behind ------------------------------------------------------


def test_output_of_others_goes_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    streams = sys.stdout, sys.stderr
    with no_output():
        print("printed")
        os.write(1, b"written\n")
        assert sys.stdout.encoding == streams[1].encoding
        sys.stdout.close()
        sys.stderr.close()
    assert (sys.stdout, sys.stderr) == streams
    print("ours")
    os.write(1, b"and ours\n")
    captured = capfd.readouterr()
    assert sorted(captured.out.split("\n")) == ["", "and ours", "ours"]
    assert sorted(captured.err.split()) == ["printed", "written"]


def test_what_waits_in_a_buffer_is_still_output(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    buffered = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)))
    monkeypatch.setattr(sys, "stdout", buffered)
    buffered.write("ours")
    with no_output():
        buffered.flush()
    assert capfd.readouterr() == ("ours", "")
    descriptors = os.listdir("/proc/self/fd")
    with no_output():
        pass
    assert os.listdir("/proc/self/fd") == descriptors


def test_a_program_without_output_needs_no_care(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with no_output():
        assert sys.stdout is not None
    assert sys.stdout is None


def _thread(*, daemon: bool) -> None:
    threading.Thread(target=time.sleep, args=(9,), daemon=daemon).start()


def _process(*, leaves: bool = False) -> None:
    if not os.fork():
        if leaves:
            os.setsid()
        time.sleep(2)
        os._exit(0)
    time.sleep(0.01 if leaves else 0)


def _closed(name: str) -> None:
    stream = open(os.devnull)  # noqa: SIM115  # closed here
    stream.close()
    setattr(sys, name, stream)


LEFT: dict[str, tuple[Callable[[], object], str | None]] = {
    "nothing": (lambda: None, None),
    "a thread": (partial(_thread, daemon=False), "it starts a thread"),
    "a thread that ends with the program": (partial(_thread, daemon=True), None),
    "a process": (_process, "it starts a process"),
    "a process that leaves": (partial(_process, leaves=True), "it starts a process"),
    **{
        f"descriptor {number}": (
            partial(os.close, number),
            f"it closes the file descriptor {number}",
        )
        for number in range(3)
    },
    **{
        f"a stream, {name}": (partial(_closed, name), f"it closes {os.devnull}")
        for name in ("__stdin__", "__stdout__", "__stderr__")
    },
    "no stream at all": (lambda: setattr(sys, "__stdin__", None), None),
}


def _left_behind(what: str) -> str | None:
    LEFT[what][0]()
    return side_effects()


@pytest.mark.parametrize("what", LEFT)
def test_what_an_import_left_behind_is_said(what: str) -> None:
    told, words = call(_left_behind, what), LEFT[what][1]
    if words is None:
        assert told is None
    else:
        assert told is not None
        assert told.startswith(words)


def test_other_descriptors_are_its_own_to_close() -> None:
    pid = os.fork()
    if not pid:
        with suppress(OSError):
            os.close(3)
        os._exit(side_effects() is not None)
    assert os.waitpid(pid, 0) == (pid, 0)
