"""Two allocators on many machines: what counts as a difference, and the smallest machine for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from paravirt_mm import Scenario, SpecError, bundled, load
from paravirt_mm.cli.diff import command
from paravirt_mm.diff import Pair, compared, kinds, pairs, random_machines
from paravirt_mm.differences import ASPECTS, differences
from paravirt_mm.machine.model import Machine
from paravirt_mm.verify.linux.maps import builtin_maps, machine_of_map

MAPS = {named.name: machine_of_map(named) for named in builtin_maps()}
OLD, NEW = "incremental:kernel=5.10", "incremental:kernel=6.1.192"


def found(a: str, b: str, machine: Machine, switches: str = "") -> dict[str, tuple[str, str]]:
    result = compared(Pair(a, b, "native", switches), machine)
    assert not result.refused
    return {one.aspect: (one.a, one.b) for one in result.differences}


@pytest.mark.parametrize("name", MAPS)
def test_nothing_differs_from_itself(name: str) -> None:
    assert found(OLD, OLD, MAPS[name]) == {}


def test_first_difference_of_each_aspect_is_told() -> None:
    assert found(OLD, NEW, MAPS["tiny"]) == {"brk": ("12 pages", "16 pages")}
    told = found(OLD, NEW, MAPS["closed-brk"])
    assert list(told) == ["end", "brk", "steps"]
    assert told["end"][0].startswith("panic")
    assert told["steps"][0].split(":")[0] == told["steps"][1].split(":")[0] == "2"


def test_bottom_up_placement_is_a_place() -> None:
    """5.11 gives the lowest page, 5.10 the lowest above the kernel: seen where the kernel's own
    surroundings are used up.
    """
    seen = [
        found("incremental:kernel=5.10", "incremental:kernel=5.11", machine, "movable_node=yes")
        for machine in MAPS.values()
    ]
    assert any("places" in one for one in seen)
    assert not any(
        found("incremental:kernel=5.10", "incremental:kernel=5.11", machine)
        for machine in MAPS.values()
    )


def test_different_designs_differ_in_figures_too() -> None:
    told = found("legacy_linear:kernel=3.6", OLD, bundled("lenovo-x230-8g"))
    assert set(told) <= set(ASPECTS)
    assert "steps" in told


def test_switches_of_both_are_tried() -> None:
    names = [pair.switches for pair in pairs(OLD, NEW, "native")]
    assert names == ["", "kaslr=yes", "movable_node=yes", "randomize_memory=no"]
    names = [p.switches for p in pairs(f"{OLD},kaslr=yes", "incremental:kernel=3.9", "native")]
    assert names == ["", "randomize_memory=no"]  # 3.9 does not know movable_node
    assert [p.switches for p in pairs(OLD, "legacy_linear", "native")] == [""]
    with pytest.raises(SpecError):
        list(pairs(OLD, "nobody", "native"))


def test_smallest_machine_is_small_and_differs() -> None:
    pair = Pair(OLD, NEW, "native")
    machines = [MAPS["all-reserved"], MAPS["many-pieces"], MAPS["real-48-entries"]]
    results = list(kinds([compared(pair, machine) for machine in machines], seconds=20))
    assert {kind.difference.aspect for kind in results} >= {"brk", "steps"}
    for kind in results:
        assert len(kind.machine.memory_map) <= 4
        told = {one.aspect: one for one in compared(pair, kind.machine).differences}
        assert told[kind.difference.aspect] == kind.difference


def test_switch_is_named_only_where_it_matters() -> None:
    todo = [Pair(OLD, NEW, "native", switches) for switches in ("kaslr=yes", "")]
    results = list(kinds([compared(pair, MAPS["tiny"]) for pair in todo], seconds=0))
    assert [(kind.pair.switches, kind.difference.aspect) for kind in results] == [("", "brk")]


def test_run_that_fails_is_no_difference(tmp_path: Path) -> None:
    result = compared(Pair(f"linux:image={tmp_path}", NEW, "native"), MAPS["tiny"])
    assert result.differences == ()
    assert "no vmlinuz" in result.refused


def test_random_machines_are_the_same_again() -> None:
    first, again = (list(random_machines(5, 3)) for _ in range(2))
    assert first == again
    assert first != list(random_machines(5, 4))


def test_runs_are_compared_as_they_are() -> None:
    machine = MAPS["no-pse-512m"]
    runs = [Scenario.of(machine, spec, "native").run() for spec in (OLD, NEW)]
    assert {one.aspect for one in differences(*runs)} >= {"brk"}


# -- the command ----------------------------------------------------------------------------------


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(command, words, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return int(result.return_value), result.output


def test_exit_code_says_whether_they_differ(tmp_path: Path) -> None:
    code, text = run(OLD, OLD, "qemu-512m")
    assert (code, "0 of 4 comparisons differ" in text) == (0, True)
    code, text = run(OLD, NEW, "qemu-512m", "--shrink", "0", "-o", str(tmp_path))
    assert code == 1
    assert "12 pages" in text
    assert "16 pages" in text
    (saved,) = tmp_path.glob("*.toml")
    assert saved.name == "brk.toml"
    code, _ = run(OLD, NEW, str(saved), "--in", "steps")
    assert code == 0
    code, _ = run(OLD, NEW, str(saved), "--in", "brk")
    assert code == 1
    assert load(str(saved)).memory_map


def test_nothing_to_compare_is_bad_input(tmp_path: Path) -> None:
    code, text = run(f"linux:image={tmp_path}", NEW, "qemu-512m")
    assert code == 3
    assert "0 of 0" in text


def test_json_has_everything() -> None:
    code, text = run(OLD, NEW, "qemu-512m", "--json", "--shrink", "5")
    result: dict[str, Any] = json.loads(text)
    assert (code, result["differ"]) == (1, True)
    (kind,) = [kind for kind in result["kinds"] if kind["aspect"] == "brk"]
    assert kind["entries"] <= 4
    assert "memory = [" in kind["machine"]
    assert {row["switches"] for row in result["compared"]} >= {"", "movable_node=yes"}


@pytest.mark.slow
def test_git_bisect_finds_the_commit(tmp_path: Path) -> None:
    """As docs/bisect.md has it, with commits that choose a model instead of building a kernel."""

    def git(*words: str) -> str:
        who = ("-c", "user.name=n", "-c", "user.email=n@example.org")
        command = ["git", *who, *words]
        return subprocess.run(
            command, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    script = tmp_path / "same-as-good.sh"
    script.write_text(
        f"{sys.executable} -m paravirt_mm diff {OLD} incremental:kernel=$(cat kernel) qemu-512m "
        "--in brk --shrink 0\ncase $? in 0) exit 0 ;; 1) exit 1 ;; *) exit 125 ;; esac\n"
    )
    git("init", "-q")
    for number, kernel in enumerate(("5.10", "none", "5.11", "6.1", "6.12", "7.2")):
        (tmp_path / "kernel").write_text(kernel)
        git("add", "kernel")
        git("commit", "-qm", f"commit {number}")
    git("bisect", "start", "HEAD", "HEAD~5")
    found = git("bisect", "run", "sh", "same-as-good.sh")
    assert "is the first bad commit" in found
    assert "commit 3" in found
