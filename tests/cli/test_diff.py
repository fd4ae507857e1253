"""What `diff` tells of differences that were found, and on which machines it looks for them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from paravirt_mm.cli import diff, output
from paravirt_mm.diff import Compared, Kind, Pair
from paravirt_mm.differences import Difference
from paravirt_mm.machine.model import CpuFeatures
from paravirt_mm.sources import bundled, bundled_machines
from paravirt_mm.verify.linux.maps import builtin_maps
from tests.commands import Run

MACHINE = attrs.evolve(
    bundled("qemu-512m"), features=CpuFeatures(pse=False, gbpages=False, nx=False)
)
PAIR = Pair("a:x=1", "b", "native")
BRK = Difference("brk", "12 pages", "68 pages")


def kind(count: int, switches: str = "", tries: int = 1) -> Kind:
    names = tuple(f"m{number}" for number in range(count))
    return Kind(attrs.evolve(PAIR, switches=switches), BRK, MACHINE, names, "m0", tries)


@pytest.mark.parametrize(
    ("count", "switches", "head"),
    [
        (1, "", "brk: 1 machine (m0)"),
        (6, "", "brk: 6 machines (m0, m1, m2, m3, m4, m5)"),
        (7, "", "brk: 7 machines (m0, m1, m2, m3, m4, m5 and 1 more)"),
        (2, "kaslr=yes", "brk with kaslr=yes: 2 machines (m0, m1)"),
    ],
)
def test_a_difference_is_told_with_the_first_machines(count: int, switches: str, head: str) -> None:
    lines = list(diff._kind_text(kind(count, switches)))
    assert lines[:3] == [
        head,
        "  smallest, from m0 in 1 try:",
        "    x86_64, 4 levels; no features",
    ]
    assert lines[-2:] == ["  A  12 pages", "  B  68 pages"]
    assert [line.split()[1] for line in lines[3:-2]] == [
        *(entry.type.label for entry in MACHINE.memory_map),
        *["taken"] * len(MACHINE.reserved),
    ]


@pytest.mark.parametrize(
    ("switches", "name"), [("", "brk"), ("movable_node=yes", "brk-movable_node-yes")]
)
def test_a_smallest_machine_is_written_by_what_differs_on_it(switches: str, name: str) -> None:
    assert diff._file_name(kind(1, switches)) == name


def test_in_the_end_it_is_counted() -> None:
    found = [
        Compared(PAIR, MACHINE, (BRK,)),
        Compared(PAIR, MACHINE),
        Compared(PAIR, MACHINE, refused="a was stopped"),
        Compared(PAIR, MACHINE, refused="b was stopped"),
    ]
    for seconds, rate in ((4.0, "4 s, 2.0 runs/s"), (0.0, "0 s, 0.0 runs/s")):
        lines = list(diff._text("a:x=1", "b", found, [kind(1)], seconds))
        assert lines[:4] == ["A  a:x=1", "B  b", "", "brk: 1 machine (m0)"]
        assert lines[-2:] == [
            f"1 of 2 comparisons differ ({rate})",
            "2 could not be made: a was stopped",
        ]
    assert list(diff._text("a", "b", found[1:2], [], 1.0))[3:] == [
        "0 of 1 comparisons differ (1 s, 2.0 runs/s)"
    ]


def test_long_words_are_cut() -> None:
    """Of a reason 200 characters are shown, of a difference 400."""
    for length, shown in ((200, 200 * "x"), (201, 199 * "x" + "…")):
        found = [Compared(PAIR, MACHINE, refused="x" * length)]
        assert list(diff._text("a", "b", found, [], 1.0))[-1] == f"1 could not be made: {shown}"
    for length, shown in ((400, 400 * "x"), (401, 399 * "x" + "…")):
        long = attrs.evolve(kind(1), difference=Difference("brk", "x" * length, "x" * length))
        assert list(diff._kind_text(long))[-2:] == [f"  A  {shown}", f"  B  {shown}"]


def test_without_any_machine_there_are_those_of_the_package_and_random_ones() -> None:
    specs = ("incremental", "legacy_linear")
    own = [*(one.name for one in builtin_maps()), *bundled_machines()]
    for names, count, there, more in (
        ((), None, own, 40),
        ((), 0, own, 0),
        ((), 3, own, 3),
        (("qemu-512m",), None, ["qemu-512m"], 0),
        (("qemu-512m",), 2, ["qemu-512m"], 2),
    ):
        machines = diff._machines(names, count, 7, specs)
        assert [machine.name for machine in machines[: len(there)]] == there
        assert len(machines) == len(there) + more
    assert diff._machines(("qemu-512m",), 2, 7, specs) == machines
    assert diff._machines(("qemu-512m",), 2, 8, specs) != machines


def test_that_some_were_not_tried_is_said(
    paravirt_mm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    backends, totals = set(), []

    def survey(todo: Any, chosen: Any, *_: object) -> Any:
        backends.update(pair.backend for pair in todo)
        totals.append(len(chosen) * len(todo))
        return (Compared(pair, one, refused="it hangs") for one in chosen for pair in todo)

    monkeypatch.setattr(output, "PATIENCE", -1.0)
    monkeypatch.setattr(diff, "survey", survey)
    one = "incremental:variant=hpa"
    result = paravirt_mm("diff", one, one, "qemu-512m", "pae-4g", "qemu-pae-320m")
    assert result.returncode == 3
    told = result.stderr.splitlines()
    assert told[-1] == "paravirt-mm: no machine could be compared: it hangs"
    left = f"{totals[0] - 1} more were not tried: none could be compared for a minute"
    assert told[0] == f"paravirt-mm: {left}"
    monkeypatch.setattr(output, "PATIENCE", 60.0)
    result = paravirt_mm("diff", one, one, "qemu-512m", "pae-4g", "-b", "xen")
    assert result.stderr == "paravirt-mm: no machine could be compared: it hangs\n"
    assert backends == {"native", "xen"}


def test_folders_for_what_is_written_are_made(
    paravirt_mm: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "new" / "folder"
    for _ in range(2):  # and may be there
        clock = iter((43200.0, 43204.0))
        monkeypatch.setattr(diff, "time", SimpleNamespace(monotonic=clock.__next__))
        result = paravirt_mm(
            "diff", "incremental:kernel=4.19", "incremental:variant=hpa", "qemu-512m",
            "--shrink", 0, "-j", 1, "--in", "brk", "-o", folder,
        )  # fmt: skip
        assert result.returncode == 1
        assert result.stdout.endswith("\n2 of 2 comparisons differ (4 s, 1.0 runs/s)\n")
        assert [path.name for path in folder.iterdir()] == ["brk.toml"]
