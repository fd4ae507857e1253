"""Boots that are made once and kept: which boots are one, and what a record says of them."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from paravirt_mm.engine.pages import Source
from paravirt_mm.errors import InputError
from paravirt_mm.machine.e820 import E820Type
from paravirt_mm.machine.paging import MIB
from paravirt_mm.sources import bundled
from paravirt_mm.verify.linux import boots
from paravirt_mm.verify.linux.boots import (
    kernel_facts,
    kernel_path,
    read_boot,
    recorded_boot,
)
from paravirt_mm.verify.linux.qemu import Kernel, KernelBootError, MapSpec
from paravirt_mm.verify.linux.qemu.image import LoadSegment
from tests.boot_records import RECORDS

RECORD = RECORDS["6.1.0-56-amd64:tiny"]
MACHINE = "lenovo-x230-8g"


@pytest.mark.parametrize("name", ["tiny", "gbpages"])
def test_a_record_is_read_whole(name: str) -> None:
    """Every page that became a table, in order, in the step that took it; every table."""
    record = RECORDS[f"6.1.0-56-amd64:{name}"]
    boot = read_boot(record, "here")
    assert boot.release == record["release"]
    assert [(step.start, step.end) for step in boot.steps] == [
        (step["start"], step["end"]) for step in record["steps"]
    ]
    sizes = {1: "4k", 2: "2M", 3: "1G"}
    assert [
        [[piece.start, piece.end, sizes[piece.level]] for piece in step.pieces]
        for step in boot.steps
    ] == [step["ranges"] for step in record["steps"]]
    taken = [
        [part.run.start + n * part.run.step, str(part.source.name).lower(), number]
        for number, step in enumerate(boot.steps)
        for part in step.pages
        for n in range(part.run.count)
    ]
    assert taken == record["allocations"]
    assert [list(table) for table in boot.tables] == record["tables"]
    assert (boot.panic, boot.findings) == (None, ())
    other = read_boot({**record, "panic": "why\x1b", "findings": ["odd\x1b"]}, "here")
    assert (other.panic, other.findings) == (r"why\x1b", (r"odd\x1b",))
    assert len(read_boot({**record, "panic": "x" * 300}, "here").panic or "") == 200


@pytest.mark.parametrize(
    ("pfns", "runs"),
    [
        ([5], [(5, 1, 1)]),
        ([5, 6, 7], [(5, 3, 1)]),
        ([7, 6, 5], [(7, 3, -1)]),
        ([5, 6, 5], [(5, 2, 1), (5, 1, 1)]),
        ([5, 4, 5], [(5, 2, -1), (5, 1, 1)]),
        ([5, 7], [(5, 1, 1), (7, 1, 1)]),
        ([5, 5], [(5, 1, 1), (5, 1, 1)]),
        ([9, 8, 6, 7, 8], [(9, 2, -1), (6, 3, 1)]),
    ],
)
def test_pages_are_joined_to_runs_in_their_order(
    pfns: list[int], runs: list[tuple[int, int, int]]
) -> None:
    record = {**RECORD, "allocations": [[pfn, "memblock", 0] for pfn in pfns]}
    pages = read_boot(record, "here").steps[0].pages
    assert [(p.run.start, p.run.count, p.run.step) for p in pages] == runs
    mixed = [[5, "brk", 0], [6, "memblock", 0], [7, "memblock", 0]]
    pages = read_boot({**RECORD, "allocations": mixed}, "here").steps[0].pages
    assert [(p.source, p.run.count) for p in pages] == [(Source.BRK, 1), (Source.MEMBLOCK, 2)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"allocations": [[1, "brk"]]}, r"allocations\[0\]: has 2 items"),
        ({"allocations": [[1, "brk", -1]]}, r"allocations\[0\]"),
        ({"allocations": [[-1, "brk", 0]]}, r"allocations\[0\]"),
        ({"steps": [{"start": 0}]}, "end: missing"),
        ({"steps": [{"start": 2, "end": 1, "ranges": []}]}, r"steps\[0\]"),
        ({"steps": [{"start": 0, "end": 1, "ranges": [[0, 1, "3M"]]}]}, "'3M' is no page size"),
        ({"steps": [{"start": 0, "end": 1, "ranges": [[0, 1]]}]}, r"steps\[0\]: has 2 items"),
        ({"tables": [[1, 2, (1 << 52) + 1]]}, "tables"),
        ({"tables": [[-1, 2, 3]]}, "tables"),
        ({"release": 6}, "release"),
        ({"findings": [1]}, "findings"),
    ],
)
def test_a_record_of_another_form_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_boot({**RECORD, **change}, "here")
    for step in (0, 1 << 32):  # of no step that there is: of none
        read_boot({**RECORD, "allocations": [[1, "brk", step]]}, "here")
    with pytest.raises(InputError, match=r"^here: allocations\[0\]: 0x100000001 is not between"):
        read_boot({**RECORD, "allocations": [[1, "brk", (1 << 32) + 1]]}, "here")
    size = {"steps": [{"start": 0, "end": 1, "ranges": [[0, 1, "m" * 20]]}]}
    with pytest.raises(InputError, match=f"'{'m' * 18}… is no page size"):
        read_boot({**RECORD, **size}, "here")
    for key in ("allocations", "steps", "tables", "release"):
        with pytest.raises(InputError, match=f"{key}: missing"):
            read_boot({name: value for name, value in RECORD.items() if name != key}, "here")


# -- what is kept ----------------------------------------------------------------------------------


@attrs.frozen
class Live:
    """What booting gives."""

    tables: list[Any] = attrs.field(factory=lambda: list(RECORD["tables"]))

    def to_json(self, tables_up_to: int) -> dict[str, Any]:
        assert tables_up_to >= len(self.tables)  # a record that leaves them out cannot be read
        return copy.deepcopy(RECORD)


@pytest.fixture
def booted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[MapSpec]]:
    """Every boot that is made, of a kernel that is a file of four bytes."""
    made: list[MapSpec] = []

    def load(path: Path) -> Kernel:
        segment = LoadSegment(0xFFFFFFFF81000000, 16 * MIB, b"", 55 * MIB)
        return Kernel(path, b"", "6.1.0", "6.1.0", 16 * MIB, (segment,), {})

    def record_boot(spec: MapSpec, kernel: Kernel, *, timeout: float) -> Live:
        assert kernel.release == "6.1.0"
        assert timeout > 0
        if "hang" in spec.command_line:
            raise KernelBootError("it hangs\n  the kernel's last lines")
        made.append(spec)
        return Live()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Kernel, "load", load)
    monkeypatch.setattr(boots, "record_boot", record_boot)
    (tmp_path / "vmlinuz-1").write_bytes(b"real")
    _forget()
    yield made
    _forget()


def _forget() -> None:
    """As a new process does."""
    for function in (boots._boot, boots._kernel, boots._digest):
        function.cache_clear()


def test_a_boot_is_made_once_and_kept(tmp_path: Path, booted: list[MapSpec]) -> None:
    """For other processes, too; of another kernel, map, or command line it is another boot."""
    image = str(tmp_path / "vmlinuz-1")
    machine = bundled(MACHINE)
    first = recorded_boot(image, machine)
    assert first == read_boot(RECORD, first.machine.provenance.source)
    assert recorded_boot(image, machine) is first
    _forget()
    again = recorded_boot(image, machine)
    assert (again.steps, again.tables) == (first.steps, first.tables)
    assert len(booted) == 1
    (kept,) = (tmp_path / "cache" / "paravirt-mm" / "boots").rglob("*.json")
    assert json.loads(kept.read_text()) == RECORD
    assert [len(part) for part in (kept.stem, kept.parent.name)] == [32, 32]

    assert recorded_boot(image, machine, "quiet") is not None
    less = machine.memory_map.with_range(79 * MIB, 80 * MIB, E820Type.RAM, None)
    assert recorded_boot(image, attrs.evolve(machine, memory_map=less)) is not None
    assert [spec.command_line for spec in booted] == ["", "quiet", ""]
    assert len({spec.ram for spec in booted}) == 2
    (tmp_path / "vmlinuz-1").write_bytes(b"other")
    recorded_boot(image, machine)
    assert len(booted) == 4
    assert not list((tmp_path / "cache").rglob("tmp*"))


def test_a_damaged_record_is_booted_again(tmp_path: Path, booted: list[MapSpec]) -> None:
    image, machine = str(tmp_path / "vmlinuz-1"), bundled(MACHINE)
    recorded_boot(image, machine)
    (kept,) = (tmp_path / "cache").rglob("*.json")
    whole = kept.read_text()
    for number, damage in enumerate(("", "{", "[]", "{}", whole[:-40])):
        kept.write_text(damage)
        _forget()
        recorded_boot(image, machine)
        assert len(booted) == number + 2
        assert kept.read_text() == whole


def test_a_boot_may_take_as_long_as_it_is_given(
    tmp_path: Path, booted: list[MapSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    def record_boot(_spec: MapSpec, _kernel: Kernel, *, timeout: float) -> Live:
        given.append(timeout)
        return Live()

    monkeypatch.setattr(boots, "record_boot", record_boot)
    recorded_boot(str(tmp_path / "vmlinuz-1"), bundled(MACHINE), timeout=5)
    assert (given, booted) == ([5], [])


def test_facts_of_a_kernel_are_kept_beside_its_boots(
    tmp_path: Path, booted: list[MapSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = str(tmp_path / "vmlinuz-1")
    facts = kernel_facts(image)
    assert (facts.release, facts.physical_range) == ("6.1.0", (16 * MIB, 71 * MIB))
    assert not facts.has_five_levels
    (kept,) = (tmp_path / "cache").rglob("kernel")
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "release": "6.2"}))
    assert kernel_facts(image).release == "6.2"  # what is kept is what is read
    kept.write_text("[]")
    assert kernel_facts(image) == facts
    assert kernel_path(image) == Path(image)
    monkeypatch.setenv("PARAVIRT_MM_LINUX", image)
    assert kernel_path("") == Path(image)
    assert kernel_facts("") == facts


def test_what_cannot_be_booted_is_told_in_one_line(tmp_path: Path, booted: list[MapSpec]) -> None:
    image = str(tmp_path / "vmlinuz-1")
    machine = bundled(MACHINE)
    for _ in range(2):  # a boot that failed is not kept
        with pytest.raises(InputError, match=r"^it hangs$"):
            recorded_boot(image, machine, "hang")
    for ask in (kernel_path, kernel_facts, lambda path: recorded_boot(path, machine)):
        with pytest.raises(InputError, match=r"none: no vmlinuz, nor anything there"):
            ask(str(tmp_path / "none"))
    i386 = bundled("asus-l8400-256m")
    with pytest.raises(InputError, match="only 64-bit kernels"):
        recorded_boot(image, i386)


def test_a_cache_that_cannot_be_written_is_no_fault(tmp_path: Path, booted: list[MapSpec]) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    for _ in range(2):
        recorded_boot(str(tmp_path / "vmlinuz-1"), bundled(MACHINE))
        _forget()
    assert len(booted) == 2


def test_a_boot_that_cannot_be_kept_leaves_nothing(
    tmp_path: Path, booted: list[MapSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    boot = recorded_boot(str(tmp_path / "vmlinuz-1"), bundled(MACHINE))
    assert (boot.release, len(booted)) == (RECORD["release"], 1)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize("cache", [None, ""])
def test_boots_are_kept_at_home(
    tmp_path: Path, booted: list[MapSpec], monkeypatch: pytest.MonkeyPatch, cache: str | None
) -> None:
    """XDG: a variable that is empty says what one says that is not there: $HOME/.cache."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if cache is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
    recorded_boot(str(tmp_path / "vmlinuz-1"), bundled(MACHINE))
    boots_at_home = tmp_path / "home" / ".cache" / "paravirt-mm" / "boots"
    assert len(list(boots_at_home.rglob("*.json"))) == len(booted) == 1


def test_the_older_half_of_too_many_boots_goes(
    tmp_path: Path, booted: list[MapSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert boots.MAX_KEPT == 4096
    monkeypatch.setattr(boots, "MAX_KEPT", 4)
    image, machine = str(tmp_path / "vmlinuz-1"), bundled(MACHINE)
    known: dict[Path, int] = {}
    for number in range(5):
        recorded_boot(image, machine, f"word{number}")
        found = set((tmp_path / "cache").rglob("*.json"))
        (newest,) = found - known.keys()
        os.utime(newest, (number, number))
        known[newest] = number
    assert {known[path] for path in found} == {2, 3, 4}


def test_two_that_clear_away_do_not_stop_each_other(
    tmp_path: Path, booted: list[MapSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process takes the second of three old boots away."""
    monkeypatch.setattr(boots, "MAX_KEPT", 6)
    folder = tmp_path / "cache" / "paravirt-mm" / "boots" / "x"
    folder.mkdir(parents=True)
    for number in range(6):
        old = folder / f"{number}.json"
        old.touch()
        os.utime(old, (number, number))
    unlink = Path.unlink

    def both(path: Path, missing_ok: bool = False) -> None:
        unlink(folder / "1.json", missing_ok=True)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", both)
    boots._keep(folder / "new.json", "{}")
    assert {path.name for path in folder.iterdir()} == {"3.json", "4.json", "5.json", "new.json"}
