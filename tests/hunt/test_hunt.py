"""A hunt from the condition to the machine, the files and the exit code."""

from __future__ import annotations

import json
import re
import runpy

import attrs
import pytest
from click.testing import CliRunner

from paravirt_mm import (
    MIB,
    Condition,
    E820Type,
    ExitCode,
    Finding,
    Machine,
    MemoryMap,
    RangeMapped,
    Scenario,
    load,
)
from paravirt_mm.cli.main import cli
from paravirt_mm.errors import SpecError
from paravirt_mm.hunt.found import STORY_LINES, Ending, Found
from paravirt_mm.hunt.search import Quarry, hunt, run_batch

SPACE = Quarry("legacy_linear:kernel=3.6", "native", "panic 'Cannot find space' and other.ok",
               other="incremental:variant=linux,kernel=4.19")  # fmt: skip


def command(*arguments: object):
    result = CliRunner().invoke(cli, ["hunt", *map(str, arguments)], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result


def test_the_story_ends_with_what_is_to_blame():
    """However long the run is: that its middle is cut out is no event."""
    pieces = [(4 * MIB * n, 4 * MIB * n + 2 * MIB, E820Type.RAM) for n in range(16, 400)]
    machine = Machine("pieces", MemoryMap.sanitise([(0, 64 * MIB, E820Type.RAM), *pieces]))
    run = Scenario.of(machine, "incremental:variant=linux,kernel=4.19", "native").run()
    mapped = [n for n, event in enumerate(run.trace) if isinstance(event, RangeMapped)]
    assert len(mapped) > 300
    for blamed in (mapped[1], mapped[150], mapped[-1]):
        ending = Ending.of(attrs.evolve(run, findings=(Finding(3, blamed, 0, "made up"),)))
        assert ending.story[-1].startswith(f"[{blamed:>4}]")
        assert len(ending.story) <= STORY_LINES + 1


@pytest.mark.slow
def test_processes_give_the_same_machine():
    alone, together = (hunt(SPACE, seed=1, seconds=300, jobs=jobs) for jobs in (1, 2))
    assert alone.machine == together.machine is not None
    assert alone.tries == together.tries


@pytest.mark.slow
def test_a_find_is_small_and_ready_to_use(tmp_path):
    result = hunt(SPACE, seed=0, seconds=300)
    found = Found.of(SPACE, result)
    assert len(found.machine.memory_map) <= 3
    (tmp_path / "found.toml").write_text(found.toml(), encoding="utf-8")
    machine = load(str(tmp_path / "found.toml"))
    run = Scenario.of(machine, SPACE.allocator, SPACE.backend).run()
    other = Scenario.of(machine, SPACE.other, SPACE.backend).run()
    assert Condition.parse(SPACE.condition).holds(run, other)


@pytest.mark.slow
def test_the_pytest_case_fails_until_it_is_mended(tmp_path):
    result = hunt(SPACE, seed=0, seconds=300)
    text = Found.of(SPACE, result).pytest()
    file = tmp_path / "test_found.py"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(AssertionError, match="Cannot find space"):
        runpy.run_path(str(file))["test_found"](tmp_path)
    mended = text.replace("panic 'Cannot find space' and other.ok", "violation")
    file.write_text(mended, encoding="utf-8")
    runpy.run_path(str(file))["test_found"](tmp_path)


def test_command_finds_and_writes(tmp_path):
    folder = tmp_path / "new" / "folder"
    result = command(
        "legacy_linear:kernel=3.6", "--for", "reserved > 100 * used and used > 0",
        "-j", 1, "-o", folder,
    )  # fmt: skip
    assert result.return_value == ExitCode.FINDINGS
    assert "found after" in result.output
    assert load(str(folder / "found.toml")).name == "found"
    assert "Condition.parse" in (folder / "test_found.py").read_text(encoding="utf-8")


@pytest.mark.slow
def test_command_says_that_nothing_was_found():
    result = command("incremental:variant=hpa", "--for", "waste > 0", "--tries", 60, "-j", 1)
    assert result.return_value == ExitCode.OK
    assert "not found in" in result.output
    assert "proves nothing" in result.output
    assert "\n  waste > 0: never true; nearest 0 against 0\n" in result.output
    assert re.search(r"\n  ended [0-9]+ times: ok\n", result.output)
    result = command("incremental:variant=hpa", "--for", "waste > 0", "--tries", 60, "--json")
    record = json.loads(result.output)
    (part,) = record["parts"]
    assert (part["text"], part["true"], part["above"]) == ("waste > 0", 0, [0, 0])
    assert part["runs"] == sum(end["runs"] for end in record["ends"].values()) == record["tries"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "condition",
    [
        "machine.ram == 0x12345000", "123456 == machine.max_pfn", "used == 37", "waste == 1000",
        "machine.pieces > 120", "machine.reserved > 300",
    ],
)  # fmt: skip
def test_an_exact_number_or_a_large_one_is_come_to(condition):
    """More or less memory, in proportion to what is missing, and not one number in a million; so
    many times as many pieces at once: what adds a few at a time never comes to hundreds.
    """
    quarry = Quarry("legacy_linear:kernel=2.6.39", "native", condition)
    result = hunt(quarry, seconds=300, max_tries=300)
    assert result.machine is not None
    assert quarry.holds(result.machine)


@pytest.mark.parametrize("tries", [1, 20])
def test_no_more_tries_than_were_asked_for(tries):
    """Whether processes share them or not."""
    quarry = Quarry("legacy_linear:kernel=3.6", "native", "violation")
    for jobs in (1, 2):
        assert hunt(quarry, seconds=300, jobs=jobs, max_tries=tries).tries == tries


@pytest.mark.slow
def test_only_the_modes_that_count_are_tried():
    """Whatever the machine was before: nearly every try of a batch is one."""
    seen = set()

    class Watching(Quarry):
        def runs(self, machine, **how):
            seen.add(machine.mode.name)
            return super().runs(machine, **how)

    result = run_batch(
        Watching("legacy_linear:kernel=3.6", "native", "violation", modes=("i386-pae",)), 0, 3
    )
    assert seen == {"i386-pae"}
    assert result.tries > 100


def test_a_number_that_no_run_has_is_told():
    result = command("incremental", "-b", "xen", "--for", "xen.model > 1", "--tries", 14)
    assert result.return_value == ExitCode.OK
    assert "had a number 'xen.model'" in result.stderr
    assert "xen.hypercalls_clearing" in result.stderr


def test_a_figure_of_nobody_is_refused():
    with pytest.raises(SpecError, match="the plugins of this hunt are incremental, xen"):
        command("incremental", "-b", "xen", "--for", "xem.hypercalls_clearing > 1", "--time", 1)


def test_command_as_json():
    result = command("legacy_linear:kernel=3.6", "--for", "waste > 0", "--json", "-j", 1)
    record = json.loads(result.output)
    assert record["found"]
    assert record["figures"]["waste"] > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["incremental", "--for", "panik"], "did you mean 'panic'"),
        (["incremental", "--for", "other.panic"], "--against"),
        (["incrementl", "--for", "panic"], "did you mean"),
        (["incremental:kernel=x", "--for", "panic"], "kernel"),
        (["incremental", "-b", "zen", "--for", "panic"], "backend"),
    ],
)
def test_wrong_usage(arguments, says):
    with pytest.raises(Exception, match=says):
        command(*arguments)


SLEEPER = """
import time
from paravirt_mm import hookimpl
from paravirt_mm_incremental import Incremental


class Sleeper(Incremental):
    @hookimpl
    def pvmm_promise(self, boot):
        time.sleep(20)
        return super().pvmm_promise(boot)
"""


@pytest.mark.slow
def test_a_try_that_takes_long_does_not_keep_the_hunt(tmp_path):
    path = tmp_path / "sleeper.py"
    path.write_text(SLEEPER, encoding="utf-8")
    result = hunt(Quarry(f"{path}:Sleeper", "native", "panic"), seconds=0.2, jobs=2)
    assert result.machine is None
    assert result.seconds < 10


FORGETFUL = """
import attrs
from paravirt_mm import hookimpl
from paravirt_mm_xen import Xen


@attrs.frozen
class Forgetful(Xen):
    @hookimpl
    def pvmm_boot_state(self, machine):
        state = super().pvmm_boot_state(machine)
        if not hasattr(state, "reserved"):
            return state
        *others, (low, high) = state.reserved
        last = [(low, high - 4096)] if high - low > 4096 else []
        return attrs.evolve(state, reserved=(*others, *last))
"""


@pytest.mark.slow
def test_two_backends_are_compared(tmp_path):
    """A page that a platform forgets to keep breaks no rule: it is what the platform says."""
    path = tmp_path / "forgetful.py"
    path.write_text(FORGETFUL, encoding="utf-8")
    result = command(
        "incremental:variant=hpa", "-b", f"{path}:Forgetful", "--against-backend", "xen",
        "--for", "differs", "--mode", "x86_64", "--time", 60, "-o", tmp_path,
    )  # fmt: skip
    assert result.return_value == ExitCode.FINDINGS
    assert "incremental hpa under xen: " in result.output
    case = (tmp_path / "test_found.py").read_text(encoding="utf-8")
    assert "Scenario.of(machine, 'incremental:variant=hpa', 'xen').run()" in case
