"""A plugin that fails while it runs: its scenario says so, by name, and others go on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import attrs
import pytest

from paravirt_mm import (
    API_VERSION,
    Boot,
    Finding,
    KernelPanic,
    Machine,
    Map,
    Outcome,
    PageRun,
    PluginSpec,
    Promise,
    Registry,
    Scenario,
    SpecError,
    bundled,
    hookimpl,
)
from paravirt_mm.errors import Ended
from paravirt_mm.testing import AscendingAllocator, BlockAllocator, PlainPlatform, registry_with


@attrs.frozen
class Divides(AscendingAllocator):
    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Any:
        yield Map(0, 1 // 0)


@attrs.frozen
class NoGenerator(AscendingAllocator):
    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Any:
        return [Map(0, 4096)]


@attrs.frozen
class StrangeStep(AscendingAllocator):
    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Generator[Any, Any, None]:
        yield "map everything"


@attrs.frozen
class TooFewPages(AscendingAllocator):
    @hookimpl
    def pvmm_allocate_tables(self) -> Any:
        return []


@attrs.frozen
class StrangePages(AscendingAllocator):
    @hookimpl
    def pvmm_allocate_tables(self) -> Any:
        return [PageRun(256, 1)]


@attrs.frozen
class NoPromise(AscendingAllocator):
    @hookimpl
    def pvmm_promise(self) -> Any:
        return [(0, 4096)]


@attrs.frozen
class StrangeReservation(BlockAllocator):
    @hookimpl
    def pvmm_reserve_tables(self) -> Any:
        return [(0, 4096)]


@attrs.frozen
class EndlessPair(AscendingAllocator):
    @hookimpl
    def pvmm_promise(self) -> Any:
        return Promise((tuple(range(1 << 16)),))


ALLOCATORS = {
    "raises": (Divides, "ZeroDivisionError"),
    "no generator": (NoGenerator, "pvmm_map_steps"),
    "strange step": (StrangeStep, "not a step"),
    "too few pages": (TooFewPages, "gave 0 pages where"),
    "strange pages": (StrangePages, "not TablePages"),
    "no promise": (NoPromise, "not a Promise"),
    "endless pair": (EndlessPair, "must be a pair (start, end) of bytes: (0x0, 0x1, 0x2"),
    "strange reservation": (StrangeReservation, "a run of pages must be a PageRun"),
}


@pytest.fixture(scope="module")
def machine() -> Machine:
    return bundled("qemu-512m")


@pytest.mark.parametrize(("allocator", "words"), ALLOCATORS.values(), ids=ALLOCATORS)
def test_failing_allocator_is_named(allocator: type[Any], words: str, machine: Machine) -> None:
    registry = registry_with(installed=False, mine=allocator, plain=PlainPlatform)
    run = Scenario.of(machine, "mine", "plain").run(registry)
    assert run.verdict.outcome is Outcome.ERROR
    assert "plugin mine (unregistered)" in str(run.verdict)
    assert words in str(run.verdict)
    assert len(str(run.verdict)) < 400


@attrs.frozen
class StrangeState(PlainPlatform):
    @hookimpl
    def pvmm_boot_state(self, machine: Machine) -> Any:
        return {"mapped": ()}


@attrs.frozen
class StrangeCost(PlainPlatform):
    @hookimpl
    def pvmm_write_entries(self) -> Any:
        return 5


@attrs.frozen
class FailingBackend(PlainPlatform):
    @hookimpl
    def pvmm_make_readonly(self) -> Any:
        raise OSError("no such page")


BACKENDS = {
    "strange state": (StrangeState, "not a BootState"),
    "strange cost": (StrangeCost, "not a Cost"),
    "raises": (FailingBackend, "OSError: no such page"),
}


@pytest.mark.parametrize(("backend", "words"), BACKENDS.values(), ids=BACKENDS)
def test_failing_backend_is_named(backend: type[Any], words: str, machine: Machine) -> None:
    registry = registry_with(installed=False, ascending=AscendingAllocator, mine=backend)
    run = Scenario.of(machine, "ascending", "mine").run(registry)
    assert run.verdict.outcome is Outcome.ERROR
    assert "plugin mine (unregistered)" in str(run.verdict)
    assert words in str(run.verdict)


ELSEWHERE = ModuleType("elsewhere")
exec(  # noqa: S102  # a second module of the plugin's
    "def fails(boot):\n    raise RuntimeError('in a module of its own')\n"
    "def steps(boot):\n    raise RuntimeError('in a generator of its own')\n    yield\n",
    vars(ELSEWHERE),
)


@attrs.frozen
class FailsElsewhere(AscendingAllocator):
    @hookimpl
    def pvmm_promise(self, boot: Boot) -> Any:
        return ELSEWHERE.fails(boot)


@attrs.frozen
class GeneratorFromElsewhere(AscendingAllocator):
    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Any:
        return ELSEWHERE.steps(boot)


@attrs.frozen
class AsksNonsense(AscendingAllocator):
    @hookimpl
    def pvmm_promise(self, boot: Boot) -> Any:
        return boot.split("everything")  # fails in the core's code, by the plugin's fault


class Rude(BaseException):
    pass


@attrs.frozen
class Exits(AscendingAllocator):
    @hookimpl
    def pvmm_allocate_tables(self) -> Any:
        sys.exit(0)


@attrs.frozen
class IsRude(AscendingAllocator):
    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Any:
        yield Map(0, 4096)
        raise Rude("no")


FAR = {
    "second module": (FailsElsewhere, "pvmm_promise raised RuntimeError: in a module"),
    "generator of it": (GeneratorFromElsewhere, "pvmm_map_steps raised RuntimeError: in a gen"),
    "core's code": (AsksNonsense, "pvmm_promise raised AttributeError"),
    "exit": (Exits, "pvmm_allocate_tables raised SystemExit: 0"),
    "no Exception": (IsRude, "pvmm_map_steps raised Rude: no"),
}


@pytest.mark.parametrize(("allocator", "words"), FAR.values(), ids=FAR)
def test_plugin_is_named_wherever_it_fails(
    allocator: type[Any], words: str, machine: Machine
) -> None:
    registry = registry_with(installed=False, mine=allocator, plain=PlainPlatform)
    run = Scenario.of(machine, "mine", "plain").run(registry)
    assert run.verdict.outcome is Outcome.ERROR
    assert str(run.verdict).startswith("error: plugin mine (unregistered): ")
    assert words in str(run.verdict)
    assert "Traceback" in run.traceback
    if allocator is IsRude:
        assert [type(event).__name__ for event in run.trace][-1] == "TablesAttached"


def test_panic_is_the_allocators_alone(machine: Machine) -> None:
    @attrs.frozen
    class Panics(PlainPlatform):
        @hookimpl
        def pvmm_write_entries(self) -> Any:
            raise KernelPanic("forged")

    registry = registry_with(installed=False, ascending=AscendingAllocator, mine=Panics)
    run = Scenario.of(machine, "ascending", "mine").run(registry)
    assert run.verdict.outcome is Outcome.ERROR
    assert "plugin mine" in str(run.verdict)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), Ended(143)])
def test_interruptions_are_nobodys_fault(interruption: BaseException) -> None:
    """SIGTERM may come while a plugin is imported or made: the process ends, nobody is blamed."""

    @attrs.frozen
    class Slow(AscendingAllocator):
        wait: bool = attrs.field(default=False)

        def __attrs_post_init__(self) -> None:
            if self.wait:
                raise interruption

    with pytest.raises(type(interruption)):
        registry_with(slow=Slow).make(PluginSpec.parse("slow:wait=yes"), "allocator")

    @attrs.frozen
    class Slower(AscendingAllocator):
        wait: bool = attrs.field(default=True)

        def __attrs_post_init__(self) -> None:
            raise interruption

    with pytest.raises(type(interruption)):
        Registry().add("slower", Slower)


def test_calls_are_shown_on_demand(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PARAVIRT_MM_TRACE_HOOKS", "1")
    registry = registry_with(installed=False, ascending=AscendingAllocator, plain=PlainPlatform)
    Scenario.of(machine, "ascending", "plain").run(registry)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "ascending.pvmm_promise() -> Promise(direct_map=" in captured.err
    assert "plain.pvmm_boot_state(machine=" in captured.err


def test_wrong_specs_raise(machine: Machine) -> None:
    """A spec is the caller's: nothing runs, and the caller is told."""
    for allocator in ("ascendin", "plain", "ascending:first_step=x", "ascending:x"):
        registry = registry_with(installed=False, ascending=AscendingAllocator, plain=PlainPlatform)
        with pytest.raises(SpecError):
            Scenario.of(machine, allocator, "plain").run(registry)


def test_observers_see_every_event_and_change_nothing(machine: Machine) -> None:
    seen: list[object] = []

    @attrs.frozen
    class Observer:
        pvmm_api: ClassVar[int] = API_VERSION

        @hookimpl
        def pvmm_observe(self, event: object) -> None:
            seen.append(event)

    registry = registry_with(installed=False, ascending=AscendingAllocator, plain=PlainPlatform)
    alone = Scenario.of(machine, "ascending", "plain").run(registry)
    watched = Scenario.of(machine, "ascending", "plain", Observer()).run(registry)
    assert tuple(seen) == watched.trace.events
    assert watched.figures == alone.figures


def test_figures_of_observers_are_added(machine: Machine) -> None:
    @attrs.frozen
    class Counts:
        pvmm_api: ClassVar[int] = API_VERSION

        @hookimpl
        def pvmm_figures(self) -> dict[str, int]:
            return {"answer": 42}

    registry = registry_with(
        installed=False, ascending=AscendingAllocator, plain=PlainPlatform, counts=Counts
    )
    assert "counts.answer" not in Scenario.of(machine, "ascending", "plain").run(registry).figures
    twice = Scenario.of(machine, "ascending", "plain", Counts(), Counts())
    run = twice.run(registry)
    assert run.figures["counts.answer"] == run.figures["counts_again.answer"] == 42
    assert "counts.answer" not in twice.run(registry, extra=False).figures


def test_what_observers_find_is_a_violation(machine: Machine) -> None:
    """The first that is found is the verdict, whoever found nothing."""

    @attrs.frozen
    class Finds:
        pvmm_api: ClassVar[int] = API_VERSION
        found: tuple[Finding, ...] = ()

        @hookimpl
        def pvmm_check(self) -> tuple[Finding, ...]:
            return self.found

    found = tuple(Finding(6, number, 0, f"is wrong {number}") for number in (2, 1))
    registry = registry_with(installed=False, ascending=AscendingAllocator, plain=PlainPlatform)
    run = Scenario.of(machine, "ascending", "plain", Finds(), Finds(found)).run(registry)
    assert run.findings == found
    assert (run.verdict.outcome, run.verdict.detail) == (Outcome.VIOLATION, str(found[0]))


def test_suspects_are_all_that_others_wrote_in_the_order_of_their_roles(machine: Machine) -> None:
    @attrs.frozen
    class Watches:
        pvmm_api: ClassVar[int] = API_VERSION

        @hookimpl
        def pvmm_observe(self, event: object) -> None: ...

    registry = registry_with(mine=AscendingAllocator, plain=PlainPlatform)
    asked = Scenario.of(machine, "mine", "plain", Watches()).suspects(registry)
    assert asked == ("mine (unregistered)", "plain (unregistered)", "watches")
    assert Scenario.of(machine, "incremental", "plain").suspects(registry) == asked[1:2]
    assert Scenario.of(machine, "incremental", "native").suspects(registry) == ()


WRONG_FIGURES: dict[str, tuple[Any, str]] = {
    "no mapping": ([1], "the answer is not a Mapping"),
    "strange name": ({"Flips!": 1}, "a figure's name must be lower-case"),
    "not a number": ({"x": float("nan")}, "figure 'x' is not a finite number"),
    "a list": ({"x": [1]}, "figure 'x' must be a number of 64 bits or text"),
    "very large": ({"x": 1 << 70}, "figure 'x' must be a number"),
    "a book": ({"x": "x" * 5000}, "longer than 4096"),
    "too many": ({f"x{n}": n for n in range(300)}, "more than 200 figures"),
}


@pytest.mark.parametrize(("answer", "words"), WRONG_FIGURES.values(), ids=WRONG_FIGURES)
def test_figures_are_checked_and_cannot_pass_for_the_cores(
    answer: Any, words: str, machine: Machine
) -> None:
    @attrs.frozen
    class Counts(AscendingAllocator):
        answer: Any = None

        @hookimpl
        def pvmm_figures(self) -> Any:
            return answer

    registry = registry_with(installed=False, mine=Counts, plain=PlainPlatform)
    verdict = str(Scenario.of(machine, "mine", "plain").run(registry).verdict)
    assert verdict.startswith("error: plugin mine (unregistered): pvmm_figures: ")
    assert words in verdict


def test_a_figure_of_a_plugin_has_the_plugins_name(machine: Machine) -> None:
    @attrs.frozen
    class Lies(AscendingAllocator):
        @hookimpl
        def pvmm_figures(self) -> dict[str, Any]:
            return {"flips": 0, "tables": 1, "verdict": "ok", "machine": "mine"}

    registry = registry_with(installed=False, mine=Lies, plain=PlainPlatform)
    run = Scenario.of(machine, "mine", "plain").run(registry)
    assert run.figures["mine.tables"] == 1 != run.figures["tables"]
    assert {"verdict", "machine"}.isdisjoint(run.figures)


def test_observer_that_fails_is_left_out(machine: Machine) -> None:
    seen: list[object] = []

    @attrs.frozen
    class Fails:
        pvmm_api: ClassVar[int] = API_VERSION

        @hookimpl
        def pvmm_observe(self, event: object) -> None:
            seen.append(event)
            raise OSError("disk full")

        @hookimpl
        def pvmm_check(self) -> None:
            raise AssertionError("left out by now")

    @attrs.frozen
    class Answers:
        pvmm_api: ClassVar[int] = API_VERSION

        @hookimpl
        def pvmm_check(self) -> Any:
            return "junk"

    registry = registry_with(installed=False, ascending=AscendingAllocator, plain=PlainPlatform)
    run = Scenario.of(machine, "ascending", "plain", Fails(), Answers()).run(registry)
    assert run.verdict.outcome is Outcome.OK
    assert len(seen) == 1
    assert run.left_out == (
        "observer fails is left out: pvmm_observe raised OSError: disk full",
        "observer answers is left out: pvmm_check: the answer is not findings, not a sequence:"
        " 'junk'",
    )


def test_observers_are_observers(machine: Machine) -> None:
    registry = registry_with(installed=False, ascending=AscendingAllocator, plain=PlainPlatform)
    for wrong in (AscendingAllocator(), PlainPlatform(), 3):
        with pytest.raises(SpecError, match="is no observer"):
            Scenario.of(machine, "ascending", "plain", wrong).run(registry)


def test_scenarios_do_not_disturb_each_other(
    machine: Machine, run_scenario: Callable[..., Any]
) -> None:
    """After a plugin has failed the next scenario of the process is as if alone."""
    before = run_scenario(machine, "incremental", "xen").figures
    registry = registry_with(mine=Divides)
    assert Scenario.of(machine, "mine", "xen").run(registry).verdict.outcome is Outcome.ERROR
    assert run_scenario(machine, "incremental", "xen").figures == before


_TOLD: list[str] = []
"""What the plugin below knows, and where it appends the process in which it is asked."""


@attrs.frozen
class AnswersFromAFile(AscendingAllocator):
    @hookimpl
    def pvmm_models_kernel(self, release: str) -> str:
        asked, answer = map(Path, _TOLD)
        with asked.open("a") as lines:
            lines.write(f"{release} {os.getpid()}\n")
        return answer.read_text()


def test_the_same_question_is_tried_once_and_answered_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a child the first time; what is said afterwards is what the plugin says then."""
    asked, answer = tmp_path / "asked", tmp_path / "answer"
    monkeypatch.setattr(sys.modules[__name__], "_TOLD", [str(asked), str(answer)])
    registry = Registry(careful=True)
    registry.add("mine", AnswersFromAFile)
    told = []
    for release, text in (("6.1", "a"), ("6.1", "b"), ("6.6", "c"), ("6.1", "d")):
        answer.write_text(text)
        found = registry.ask("pvmm_models_kernel", str, release=release, mode="", parameters=())
        told += [said for _, said in found]
    assert told == ["a", "b", "c", "d"]
    again = registry.branch().ask("pvmm_models_kernel", str, release="6.6", mode="", parameters=())
    assert list(again) == [("mine", "d")]  # a branch knows what was survived
    here = str(os.getpid())
    rows = [line.split() for line in asked.read_text().splitlines()]
    assert [release for release, _ in rows] == ["6.1", "6.1", "6.1", "6.6", "6.6", "6.1", "6.6"]
    assert [process == here for _, process in rows] == [False, True, True, False, True, True, True]


def test_what_may_change_is_tried_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answer = tmp_path / "asked", tmp_path / "answer"
    answer.write_text("x")
    monkeypatch.setattr(sys.modules[__name__], "_TOLD", [str(asked), str(answer)])
    registry = Registry(careful=True)
    registry.add("mine", AnswersFromAFile)
    for _ in range(2):
        assert list(registry.ask("pvmm_models_kernel", str, release=["6.1"], mode=""))
    here = str(os.getpid())
    processes = [line.split()[-1] for line in asked.read_text().splitlines()]
    assert [process == here for process in processes] == [False, True, False, True]
