"""What is told of a find: the machine, how its runs end, the end of the story, a test to keep."""

from __future__ import annotations

import runpy
from typing import Any

import attrs
import pytest

from paravirt_mm import E820Type, Finding, Machine, MemoryMap, Scenario
from paravirt_mm.guard import Stopped
from paravirt_mm.hunt import found as module
from paravirt_mm.hunt.edits import is_sound
from paravirt_mm.hunt.found import STORY_LINES, Ending, Found
from paravirt_mm.hunt.search import HuntResult, Quarry
from paravirt_mm.report.narrative import numbered_lines
from paravirt_mm.sources.machine_file import write_toml

MIB = 1 << 20
SPANS = [(0, 0x9F000), (MIB, 200 * MIB), (300 * MIB, 400 * MIB)]
MACHINE = Machine(
    "start",
    MemoryMap.sanitise([(*span, E820Type.RAM) for span in SPANS]),
    reserved=((0x1000, 0x3000),),
)
QUARRY = Quarry("legacy_linear:kernel=3.6", "native", "waste > 0")


class Here:
    """Asks in this process, and notes what."""

    stops: bool = False

    def __init__(self, ask: Any, limits: object) -> None:
        self.ask = ask

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, machine: Machine) -> Any:
        return Stopped("it slept") if self.stops else self.ask(machine)


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Asked", Here)


def find(quarry: Quarry = QUARRY, machine: Machine = MACHINE, **given: Any) -> Found:
    return Found.of(quarry, HuntResult(machine, 3, 0.0), **given)


def test_a_find_is_shrunk_and_named_and_keeps_its_end() -> None:
    found = find()
    assert found.machine.name == "found"
    assert QUARRY.holds(found.machine)
    assert is_sound(found.machine), "as the one that was found"
    assert (len(found.machine.memory_map), found.machine.reserved) == (1, ())
    assert is_sound(find(attrs.evolve(QUARRY, condition="ok")).machine), "whatever would do, too"
    anything = find(attrs.evolve(QUARRY, condition="machine.ram > 0"))
    assert is_sound(anything.machine)
    assert found.shrunk_from == 3
    assert found.tries > 3
    assert found.other is None
    end = 16 * MIB
    tight = attrs.evolve(MACHINE, memory_map=MemoryMap.sanitise([(0, end + MIB, E820Type.RAM)]),
                         kernel=MACHINE.kernel.at(end - 15 * MIB))  # fmt: skip
    assert not is_sound(tight)
    little = find(attrs.evolve(QUARRY, condition="machine.ram < 20000000"), tight)
    assert not is_sound(little.machine), "what had no room to begin with needs none"
    assert little.machine.reserved == ()
    untouched = find(seconds=0.0)
    assert (untouched.tries, untouched.machine.memory_map) == (0, MACHINE.memory_map)
    with pytest.raises(ValueError, match="found nothing"):
        Found.of(QUARRY, HuntResult(None, 3, 0.0))


def test_a_try_that_is_stopped_is_judged_as_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Here, "stops", True)
    found = find(attrs.evolve(QUARRY, condition="error"))
    assert len(found.machine.memory_map) == 1
    assert len(find().machine.memory_map) == 3, "an error is not what was looked for"


def test_another_reason_is_another_find() -> None:
    """Of a panic for want of space nothing is left where there is no memory at all."""
    quarry = Quarry("legacy_linear:kernel=3.6", "native", "panic")
    low = attrs.evolve(
        MACHINE,
        memory_map=MemoryMap.sanitise(
            [(0, 0x9F000, E820Type.RAM), (1 << 32, (1 << 32) + 64 * MIB, E820Type.RAM)]
        ),
    )
    run = Scenario.of(low, quarry.allocator, quarry.backend).run()
    found = find(quarry, low)
    assert found.run.verdict.detail == run.verdict.detail


def test_what_is_told_on_a_terminal() -> None:
    second = attrs.evolve(QUARRY, other="incremental:variant=hpa", other_backend="xen")
    found = attrs.evolve(find(second, seconds=0.0), shrunk_from=7, tries=9)
    lines = found.text().splitlines()
    assert lines[0] == "found: 299.6M RAM, 3 pieces, x86_64, 4 levels"
    for low, high in SPANS:
        assert f"  {low:#016x}-{high:#016x}  usable" in lines
    assert "  taken: 0x1000-0x3000" in lines
    assert lines[-2:] == ["legacy_linear 3.6: ok", "incremental hpa under xen: ok"]
    place = lines.index(found.run.story[0])
    assert lines[place : place + len(found.run.story)] == list(found.run.story)
    assert lines[place - 1] == lines[place + len(found.run.story)] == ""
    blamed = attrs.evolve(
        found.run, findings=tuple(Finding(3, n, 0, f"f{n}\x1b") for n in range(7))
    )
    told = attrs.evolve(found, run=blamed, other=None).text().splitlines()
    assert told[-6] == "legacy_linear 3.6: ok"
    assert [line[:2] for line in told[-5:]] == ["  "] * 5, "the first five"
    assert "f0" in told[-5]
    assert "f4" in told[-1]
    assert "\x1b" not in found.text() + "".join(told)
    alike = attrs.evolve(found, quarry=attrs.evolve(second, other_backend=None))
    assert alike.text().splitlines()[-1] == "incremental hpa: ok"


def test_the_record_has_all_of_it() -> None:
    second = attrs.evolve(QUARRY, other="incremental:variant=hpa")
    found = find(second, seconds=0.0)
    record = found.record()
    assert record["machine"] == found.toml() == write_toml(found.machine)
    assert (record["entries"], record["shrunk_from_entries"], record["shrink_tries"]) == (3, 3, 0)
    assert (record["verdict"], record["findings"], record["other_verdict"]) == ("ok", [], "ok")
    assert record["figures"]["waste"] > 0
    assert record["other_figures"]["waste"] == 0
    assert record["pytest"] == found.pytest()
    alone = find(seconds=0.0).record()
    assert (alone["other_verdict"], alone["other_figures"]) == (None, None)


def test_the_test_to_keep_fails_as_long_as_the_condition_holds(tmp_path: Any) -> None:
    for quarry, second in (
        (QUARRY, "other = None"),
        (attrs.evolve(QUARRY, other="incremental:variant=hpa"),
         "other = Scenario.of(machine, 'incremental:variant=hpa', 'native').run()"),
    ):  # fmt: skip
        text = find(quarry, seconds=0.0).pytest()
        assert second in text
        for condition, fails in (("waste > 0", True), ("waste < 0", False)):
            file = tmp_path / "test_found.py"
            file.write_text(text.replace("waste > 0", condition), encoding="utf-8")
            test = runpy.run_path(str(file))["test_found"]
            if fails:
                with pytest.raises(AssertionError, match="ok"):
                    test(tmp_path)
            else:
                test(tmp_path)


def test_a_story_is_its_last_lines() -> None:
    """Up to the first event that is to blame; what is left out is counted."""
    run = Scenario.of(MACHINE, "incremental:variant=hpa", "xen").run()
    lines = [line for _, line in numbered_lines(run.trace)]
    assert len(lines) > STORY_LINES
    story = Ending.of(run).story
    assert STORY_LINES == 40
    left = len(lines) - STORY_LINES
    assert story[0] == f"   ... {left} line{'s' * (left > 1)} before ..."
    assert list(story[1:]) == lines[-STORY_LINES:]
    numbers = [number for number, _ in numbered_lines(run.trace)]
    for count in (STORY_LINES, STORY_LINES + 1):
        blamed = Finding(3, numbers[count - 1], 0, "here")
        later = Finding(3, numbers[-1], 0, "there")
        told = Ending.of(attrs.evolve(run, findings=(later, blamed))).story
        assert told[-1] == lines[count - 1]
        assert len(told) == count, "a line that says that one is left out is a line"
    nothing = attrs.evolve(run, trace=type(run.trace)())
    assert Ending.of(nothing).story == ()
    ending = Ending.of(run)
    assert (ending.allocator, ending.verdict) == ("incremental hpa", run.verdict)
    assert ending.figures == dict(run.figures)
