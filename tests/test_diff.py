"""Two allocators on many machines: what counts as a difference, and the smallest machine for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner

import paravirt_mm
from paravirt_mm import (
    InputError,
    MemoryMap,
    RecordedBoot,
    Refusal,
    Run,
    Scenario,
    Source,
    SpecError,
    bundled,
    hookimpl,
    load,
    read_boot,
)
from paravirt_mm.cli import output
from paravirt_mm.cli.diff import command
from paravirt_mm.diff import (
    Compared,
    Pair,
    compared,
    is_real,
    kernels_of,
    kinds,
    pairs,
    random_machines,
    survey,
)
from paravirt_mm.differences import ASPECTS, Difference, differences
from paravirt_mm.engine.trace import TablesAllocated
from paravirt_mm.guard import is_child
from paravirt_mm.machine.model import DEFAULT_KERNEL, Machine
from paravirt_mm.machine.paging import MIB
from paravirt_mm.testing import AscendingAllocator, PlainPlatform, registry_with
from paravirt_mm.verify.linux.maps import builtin_maps, machine_of_map
from paravirt_mm.verify.linux.qemu import KernelFacts
from tests.boot_records import RECORDS

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


@pytest.mark.slow
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


BOTTOM_UP = ("4.4.257", "4.9.257", "4.14.221", "4.19.174", "5.4.96", "5.10.14")
"""Last stable releases without 5.11's commit "memblock: do not start bottom-up allocations with
kernel_end" (announcements of their successors by Greg Kroah-Hartman, February 2021).
"""


@pytest.mark.parametrize("last", BOTTOM_UP)
def test_bottom_up_placement_came_with_a_stable_release(last: str) -> None:
    series, _, number = last.rpartition(".")
    fixed = f"{series}.{int(number) + 1}"
    for before, after in ((last, fixed), (fixed, f"{series}.999")):
        specs = (f"incremental:kernel={before}", f"incremental:kernel={after}")
        told = found(*specs, MAPS["tiny-no-pse"], "movable_node=yes")
        assert ("places" in told) == (after == fixed)


@pytest.mark.slow
def test_bottom_up_placement_is_shrunk() -> None:
    """What no image of today can show any more: 5.10.14 and 5.10.15."""
    a, b = (f"incremental:kernel=5.10.{number}" for number in (14, 15))
    pair = Pair(a, b, "native", "movable_node=yes")
    machines = [MAPS["no-pse-512m"], MAPS["many-pieces"]]
    results = [compared(pair, machine) for machine in machines]
    (kind,) = kinds(results, ["places"], seconds=20, jobs=2)
    assert len(kind.machine.memory_map) <= 4


# -- real kernels, as they were recorded -----------------------------------------------------------

OLD_IMAGE, NEW_IMAGE = "5.10.0-32-amd64", "6.1.0-56-amd64"


@pytest.fixture
def boots(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image is the release of what was recorded."""

    def recorded_boot(image: str, machine: Machine, *_: object) -> RecordedBoot:
        return read_boot(RECORDS[f"{image}:{machine.name}"], "a test")

    monkeypatch.setattr(paravirt_mm, "recorded_boot", recorded_boot)


@pytest.mark.parametrize(
    "name", [name.partition(":")[2] for name in RECORDS if name.startswith(f"{OLD_IMAGE}:")]
)
def test_two_real_kernels_differ_in_what_is_known(boots: None, name: str) -> None:
    """brk, and where mapping begins when no large page is free; not in what follows from the
    size of their images.
    """
    words = next(m.spec.command_line for m in builtin_maps() if m.name == name)
    switches = "movable_node=yes" if words else ""
    told = found(f"linux:image={OLD_IMAGE}", f"linux:image={NEW_IMAGE}", MAPS[name], switches)
    expected = {"brk"}
    if name in ("all-reserved", "closed-brk", "only-the-image"):
        expected.add("steps")
        assert told["steps"][0].startswith("2: 0x")
    if name == "closed-brk":
        expected.add("end")
    assert set(told) == expected


def test_a_real_kernel_runs_first_and_says_where_a_model_lies(boots: None) -> None:
    real, model, machine = f"linux:image={OLD_IMAGE}", "incremental:kernel=5.10.223", MAPS["tiny"]
    for a, b, order in ((real, model, [0, 1]), (model, real, [1, 0]), (model, model, [0, 1])):
        runs = list(Pair(a, b, "native").runs(machine))
        assert [number for number, _ in runs] == order
        lies = {run.trace.start.boot.kernel_of(run.trace.start.machine) for _, run in runs}
        assert len(lies) == 1
    plain = [run.machine for _, run in Pair(model, model, "xen").runs(machine)]
    assert plain == [machine, machine]  # a model runs on the machine as it is
    assert (is_real(real), is_real(model)) == (True, False)


@pytest.mark.slow
@pytest.mark.parametrize("image", [OLD_IMAGE, NEW_IMAGE, "7.3-amd64"])
def test_real_kernel_does_not_differ_from_its_model(boots: None, image: str) -> None:
    """The model's image lies where the kernel does, and its end is that of the direct map."""
    release = {OLD_IMAGE: "5.10.223", NEW_IMAGE: "6.1.192"}.get(image, "7.3")
    for named in builtin_maps():
        if f"{image}:{named.name}" in RECORDS:
            pair = Pair(f"incremental:kernel={release}", f"linux:image={image}", "native")
            if named.spec.command_line:
                pair = attrs.evolve(pair, switches=f"{named.spec.command_line}=yes")
            result = compared(pair, as_booted(RECORDS[f"{image}:{named.name}"]))
            assert (result.differences, result.refused) == ((), ""), named.name


def as_booted(record: dict[str, Any]) -> Machine:
    """The machine as the kernel saw it, but for the kernel itself."""
    return attrs.evolve(read_boot(record, "a test").machine, kernel=DEFAULT_KERNEL)


def test_random_machines_are_such_as_kernels_boot_on() -> None:
    old = KernelFacts("5.10.0-32-amd64", (16 * MIB, 60 * MIB), has_five_levels=False)
    new = KernelFacts("7.3-amd64", (16 * MIB, 90 * MIB), has_five_levels=True)
    machines = list(random_machines(30, 7, [old, new]))
    assert machines == list(random_machines(30, 7, [new, old]))
    assert all(machine.memory_map.ram().covers(16 * MIB, 90 * MIB) for machine in machines)
    assert {machine.mode.name for machine in machines} == {"x86_64"}
    assert any(m.mode.root_level == 5 for m in random_machines(30, 7, [new]))


@pytest.mark.slow
def test_comparison_without_hope_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that hangs takes its time on each machine."""
    monkeypatch.setattr(output, "PATIENCE", -1)
    code, text = run("incremental:kernel=5.10", NEW, "qemu-512m", "-b", "faulty:fault=wrong")
    assert code == 3
    assert "3 more were not tried" in text
    code, text = run(OLD, NEW, "qemu-512m", "--shrink", "0")
    assert code == 1
    assert "not tried" not in text


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
    names = [p.switches for p in pairs(f"{OLD},movable_node=no", NEW, "native")]
    assert names == ["", "kaslr=yes", "randomize_memory=no"]
    wrong = [(OLD, "nobody", "native"), (OLD, NEW, "nobody"), (f"{OLD},odd=1", NEW, "native")]
    for words in wrong:
        with pytest.raises(SpecError):
            list(pairs(*words))


@pytest.mark.slow
def test_smallest_machine_is_small_and_differs() -> None:
    pair = Pair(OLD, NEW, "native")
    machines = [MAPS["all-reserved"], MAPS["many-pieces"], MAPS["real-48-entries"]]
    results = list(kinds([compared(pair, machine) for machine in machines], seconds=20))
    assert {kind.difference.aspect for kind in results} >= {"brk", "steps"}
    for kind in results:
        assert len(kind.machine.memory_map) <= 4
        told = {one.aspect: one for one in compared(pair, kind.machine).differences}
        assert told[kind.difference.aspect] == kind.difference


def places(run: Run) -> list[int]:
    """The pages of a run's tables that memblock gave, one by one."""
    parts = [part for e in run.trace.of(TablesAllocated) for part in e.batch.pages]
    return [
        part.run.start + number * part.run.step
        for part in parts
        if part.source is not Source.BRK
        for number in range(part.run.count)
    ]


def test_a_real_kernel_that_a_platform_refuses_says_nothing_of_where_a_model_lies(
    boots: None,
) -> None:
    @attrs.frozen
    class Refuses(PlainPlatform):
        @hookimpl
        def pvmm_boot_state(self, machine: Machine) -> Any:
            return Refusal("not here", -22)

    pair = Pair(f"linux:image={OLD_IMAGE}", "incremental", "refuses")
    runs = list(pair.runs(MAPS["tiny"], registry_with(refuses=Refuses)))
    assert [str(run.verdict) for _, run in runs] == ["rejected: not here, -22"] * 2
    assert runs[1][1].machine == MAPS["tiny"]


@pytest.mark.parametrize(
    "specs",
    [
        ("kernel=5.10,movable_node=yes", "kernel=6.1,movable_node=yes"),
        ("kernel=4.19,movable_node=yes,brk_pages=16", "kernel=4.19,movable_node=yes,brk_pages=9"),
    ],
)
def test_places_are_compared_page_by_page(specs: tuple[str, str]) -> None:
    """The first page that is neither the same nor as far behind the kernel's brk in both, unless it
    lies in the other's image.
    """
    kinds = set()
    for machine in map(small, random_machines(10, 5)):
        runs = [Scenario.of(machine, f"incremental:{spec}", "native").run() for spec in specs]
        told = [one for one in differences(*runs) if one.aspect == "places"]
        aspects = {one.aspect for one in differences(*runs)}
        if aspects & {"steps", "sizes", "tables"}:
            continue
        images = [run.trace.start.boot.kernel_of(run.trace.start.machine) for run in runs]
        expected = []
        for number, pages in enumerate(zip(*map(places, runs), strict=False), 1):
            first, second = (pfn << 12 for pfn in pages)
            behind = [at - image.brk_end for at, image in zip((first, second), images, strict=True)]
            if first == second or (behind[0] == behind[1] >= 0):
                continue
            kinds.add(number > 1)
            if not any(
                image.span[0] <= at < image.span[1]
                for at, image in zip((second, first), images, strict=True)
            ):
                expected = [(f"{number}: {first:#x}", f"{number}: {second:#x}")]
            break
        assert [(one.a, one.b) for one in told] == expected, machine.name
    assert kinds


def small(machine: Machine) -> Machine:
    """The machine with the memory of its first GiB only, and no large pages."""
    entries = [(e.start, min(e.end, 1 << 30), e.type) for e in machine.memory_map]
    return attrs.evolve(
        machine,
        memory_map=MemoryMap.sanitise(e for e in entries if e[0] < e[1]),
        features=attrs.evolve(machine.features, pse=False, gbpages=False),
        initrd=None,
    )


def test_pairs_run_with_the_registry_that_is_given() -> None:
    registry = registry_with(installed=False, up=AscendingAllocator, plain=PlainPlatform)
    (pair,) = pairs("up", "up:first_step=0x2000000", "plain", registry)
    (result,) = survey([pair], [bundled("qemu-512m")], 1, registry=registry)
    assert [one.aspect for one in result.differences] == ["steps"]
    told: list[tuple[str, int]] = []
    (kind,) = kinds(
        [result], seconds=0.3, registry=registry, tried=lambda *words: told.append(words)
    )
    assert kind.tries
    assert (told[0], told[-1]) == (("steps", 1), ("steps", kind.tries))
    assert compared(pair, kind.machine, registry).differences == (kind.difference,)
    assert kind.difference != result.differences[0]
    (kind,) = kinds([result], seconds=0, registry=registry)
    assert (kind.tries, kind.machine, kind.machines) == (0, result.machine, ("qemu-512m",))
    (kind,) = kinds([result], seconds=0.1, jobs=3, registry=registry)
    assert kind.tries > 1


@attrs.frozen
class Switched(AscendingAllocator):
    """Has a switch, and options that are none; a word ends the process."""

    hasty: bool = False
    word: str = ""

    def __attrs_post_init__(self) -> None:
        if self.word == "die" and is_child():
            os._exit(7)


def test_only_what_is_yes_or_no_is_a_switch() -> None:
    registry = registry_with(installed=False, up=Switched, plain=PlainPlatform)
    found = [pair.switches for pair in pairs("up", "up:first_step=0x2000000", "plain", registry)]
    assert found == ["", "hasty=yes"]
    assert [one.switches for one in pairs("up:hasty=yes", "up", "plain", registry)] == [""]


@pytest.mark.parametrize("jobs", [1, 3])
def test_answers_come_in_order_and_one_that_dies_is_one_answer(jobs: int) -> None:
    registry = registry_with(installed=False, up=Switched, plain=PlainPlatform)
    asked = [Pair("up", second, "plain") for second in ("up:word=die", "up", "up:word=x")]
    machines = [bundled("qemu-512m"), bundled("pae-4g")]
    found = list(survey(asked, machines, jobs, registry=registry))
    assert [(one.machine, one.pair) for one in found] == [(m, p) for m in machines for p in asked]
    assert ["exit code 7" in one.refused for one in found] == [True, False, False] * 2
    assert [one.refused for one in found if one.pair is not asked[0]] == [""] * 4


def test_switch_is_named_only_where_it_matters() -> None:
    todo = [Pair(OLD, NEW, "native", switches) for switches in ("kaslr=yes", "")]
    found = [compared(pair, MAPS["tiny"]) for pair in todo]
    results = list(kinds(found, seconds=0))
    assert [(kind.pair.switches, kind.difference.aspect) for kind in results] == [("", "brk")]
    (only,) = kinds(found[:1], seconds=0)
    assert only.pair.switches == "kaslr=yes"


def test_each_pair_and_aspect_is_a_kind_of_its_own_with_its_smallest_machine() -> None:
    """Of a switch only what does not differ without it; in another order than they are told."""
    large, small_ = bundled("lenovo-x230-8g"), bundled("qemu-512m")
    brk, steps, figures = (Difference(aspect, "1", "2") for aspect in ("brk", "steps", "figures"))
    plain, switched = (Pair(OLD, NEW, "native", words) for words in ("", "kaslr=yes"))
    found = [
        Compared(switched, large, (brk, steps)),
        Compared(plain, large, (brk,)),
        Compared(plain, small_, (figures, brk)),
    ]
    told = [(kind.pair, kind.difference, kind.machine) for kind in kinds(found, seconds=0)]
    assert told == [(plain, brk, small_), (plain, figures, small_), (switched, steps, large)]


def test_what_is_shrunk_is_the_difference_that_was_asked_for() -> None:
    result = compared(Pair(OLD, NEW, "native"), MAPS["all-reserved"])
    assert [one.aspect for one in result.differences] == ["brk", "steps"]
    (kind,) = kinds([result], ["steps"], seconds=0.2)
    assert kind.difference.aspect == "steps"


def test_a_model_of_no_kernel_decides_nothing_of_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    @attrs.frozen
    class Unready(AscendingAllocator):
        @hookimpl
        def pvmm_kernel_file(self) -> None: ...

    registry = registry_with(installed=False, unready=Unready, up=AscendingAllocator)
    monkeypatch.setattr("paravirt_mm.diff.default_registry", lambda: registry)
    assert list(kernels_of(["unready", "up"], MAPS["tiny"])) == []


def test_while_every_try_dies_the_machine_stays_as_it_is() -> None:
    registry = registry_with(installed=False, up=Switched, plain=PlainPlatform)
    pair = Pair("up", "up:first_step=0x2000000,word=die", "plain")
    result = compared(pair, bundled("qemu-512m"), registry)
    (kind,) = kinds([result], seconds=0.1, registry=registry)
    assert kind.tries > 0
    assert kind.difference == result.differences[0]
    assert kind.machine.memory_map == result.machine.memory_map


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


@pytest.mark.slow
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


def test_kernel_that_cannot_be_read_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no vmlinuz"):
        run(f"linux:image={tmp_path}", NEW, "qemu-512m")


def test_nothing_to_compare_is_bad_input() -> None:
    code, text = run(OLD, NEW, "qemu-512m", "-b", "faulty:fault=wrong")
    assert code == 3
    assert "0 of 0" in text


@pytest.mark.slow
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
