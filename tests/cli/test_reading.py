"""Inputs are read within limits: what a reader cannot stand costs its own input."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from paravirt_mm.cli import reading
from paravirt_mm.errors import InputError
from paravirt_mm.guard import Limits
from paravirt_mm.machine.model import Machine
from paravirt_mm.sources import inputs, load, load_each

LOG = (
    "[    0.000000] Linux version 4.19.0 (a@b) #1 SMP\n"
    "[    0.000000] BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable\n"
    "[    0.000000] BIOS-e820: [mem 0x0000000000100000-0x000000003fffffff] usable\n"
    "[    0.000000] e820: last_pfn = 0x40000 max_arch_pfn = 0x400000000\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six logs; the second and the third make a reader misbehave."""
    for number in range(6):
        (tmp_path / f"{number}.log").write_text(LOG)
    return tmp_path


def _spin() -> None:
    while True:
        pass


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Let the reader do something at files 1 and 2, as hostile content would."""

    def install(act: Callable[[], object]) -> None:
        def read(self: inputs.FilePart, boot: int | None) -> Iterator[Any]:
            if Path(self.path).stem in "12":
                act()
            return load_each([self.path], boot)

        monkeypatch.setattr(inputs.FilePart, "machines", read)
        limits = Limits(cpu=0.4, memory=64 << 20)
        monkeypatch.setattr(reading, "READING", limits)

    return install


@pytest.mark.parametrize(
    ("act", "words"),
    [
        pytest.param(_spin, "cannot be read: took longer than 0.4 s", marks=pytest.mark.slow),
        (lambda: bytearray(1 << 33), "cannot be read: took more than 64 MiB of memory"),
        (lambda: os._exit(9), "cannot be read: its process ended with exit code 9"),
    ],
)
def test_bad_neighbours_cost_themselves(
    folder: Path, hostile: Callable[[Callable[[], object]], None], act: Any, words: str
) -> None:
    hostile(act)
    found = list(reading.machines([str(folder)]))
    assert [source for source, _ in found] == [str(folder / f"{n}.log") for n in range(6)]
    assert [isinstance(outcome, Machine) for _, outcome in found] == [
        True, False, False, True, True, True,
    ]  # fmt: skip
    for source, outcome in found[1:3]:
        assert str(outcome) == f"{source}: {words}"


def test_an_input_that_cannot_even_be_divided_is_given_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And only this one."""
    divided = inputs.divide

    def divide(specs: list[str]) -> Iterator[inputs.Part]:
        if specs[0].endswith("0.log"):
            os._exit(3)
        return divided(specs)

    monkeypatch.setattr(reading, "divide", divide)
    names = [str(folder / "0.log"), str(folder / "1.log")]
    (_, bad), (_, good) = reading.machines(names)
    assert isinstance(bad, InputError)
    assert isinstance(good, Machine)


def test_what_is_read_is_what_is_read_without_a_guard(folder: Path) -> None:
    names = [str(folder), "lenovo-x230-8g", str(folder / "none")]
    guarded, direct = list(reading.machines(names)), list(load_each(names))
    assert [str(outcome) for _, outcome in guarded] == [str(outcome) for _, outcome in direct]
    assert [outcome for _, outcome in guarded][:-1] == [outcome for _, outcome in direct][:-1]
    assert reading.machine(names[1]) == load(names[1])


@pytest.mark.parametrize("kind", ["folder", "records", "archive"])
def test_what_is_empty_holds_no_machine(kind: str, tmp_path: Path) -> None:
    """Whoever reads it; `sweep` has a row that says so."""
    path = tmp_path / f"{kind}.jsonl"
    if kind == "folder":
        path.mkdir()
    elif kind == "records":
        path.write_text("\n \n")
    else:
        with tarfile.open(path, "w") as archive:
            archive.add(tmp_path, "empty", recursive=False)
    for outcomes in (
        reading.machines([str(path)]),
        *(part.machines(None) for part in reading.parts([str(path)])),
    ):
        ((_, outcome),) = outcomes
        assert isinstance(outcome, InputError)
        assert str(outcome).startswith(f"{path}: holds no machine")


def test_where_all_are_wanted_the_first_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    found = reading.all_machines(["qemu-512m", str(tmp_path / "none"), str(tmp_path / "nor this")])
    assert next(found).name == "qemu-512m"
    with pytest.raises(InputError, match="none: "):
        next(found)


def test_a_machine_that_a_plugin_brings_is_read_by_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Alone, beside others, and by a worker that need not have the plugin."""
    mine = load("qemu-512m")
    monkeypatch.setattr(reading, "brought_machine", {"mine": mine}.get)
    assert reading.machine("mine") is mine
    found = [outcome for _, outcome in reading.machines(["pae-4g", "mine"])]
    assert found == [load("pae-4g"), mine]
    divided = list(reading.parts(["mine", "no such file", "pae-4g"]))
    (mine_again,), (error,), (other,) = [
        [outcome for _, outcome in part.machines(None)] for part in divided
    ]
    assert (mine_again, other) == (mine, load("pae-4g"))
    assert isinstance(error, InputError)


def test_a_file_comes_before_a_machine_of_that_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    Path("0.log").rename("qemu-512m")
    mine = load(str(folder / "1.log"))
    one = reading.machine("qemu-512m")
    monkeypatch.delattr(reading, "load")  # nobody vouches for the file: it is read in a child
    ((_, found),) = reading.machines(["qemu-512m"])
    for machine in (found, one):
        assert isinstance(machine, Machine)
        assert machine.memory_map == mine.memory_map


def test_large_inputs_may_take_longer(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.touch()
    for size, more in ((100 << 20, 100), ((100 << 20) - 1, 99), (0, 0)):
        os.truncate(large, size)
        assert reading.limits_for(large).cpu == reading.READING.cpu + more
    assert reading.limits_for("no\0name") == reading.READING == reading.limits_for("-")


def test_one_answer_or_why_there_is_none() -> None:
    assert reading.reading(len, "abc") == 3
    with pytest.raises(InputError, match="exit code 4"):
        reading.reading(lambda _: os._exit(4), "abc")
    with pytest.raises(ZeroDivisionError):
        reading.reading(lambda _: 1 // 0, "abc")


def test_several_answers_come_in_order() -> None:
    assert list(reading.reading_each(iter, "abc")) == ["a", "b", "c"]


def test_every_command_that_reads_goes_through_the_guard(checkout: Path) -> None:
    """No command module uses a reader directly."""
    readers = (
        *("load_each(", "load_all(", "load(", "read_boot_log(", "open_dump("),
        *("replay_file(", "read_records(", "opened(", "read_traces("),
    )
    allowed = {"inspect.py": ("open_dump(",)}  # in the function that it gives to the guard
    for path in (checkout / "paravirt_mm" / "cli").glob("*.py"):
        if path.name == "reading.py":
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            for reader in readers:
                if (
                    reader in allowed.get(path.name, ())
                    or "Kernel.load(" in line
                    or "safe_load(" in line
                ):
                    continue
                assert reader not in line, f"{path.name}: {line.strip()}"


def test_limits_are_values() -> None:
    assert attrs.evolve(Limits(), cpu=1.0).cpu == 1.0
