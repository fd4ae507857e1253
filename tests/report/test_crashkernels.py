"""Which sizes and places of crash kernels fit: asked on the command line, told in every format."""

from __future__ import annotations

import csv
import io
import json

import attrs
import pytest
from click.testing import CliRunner, Result

from paravirt_mm import E820Type, Machine, MemoryMap, Row, Scenario, bundled
from paravirt_mm.cli.main import cli
from paravirt_mm.machine.paging import GIB, MIB
from paravirt_mm.machine.ranges import RangeSet
from paravirt_mm.measure.crashkernel import Wanted
from paravirt_mm.report.crashkernels import crashkernels, stretches


@pytest.mark.parametrize(
    ("text", "size", "at"),
    [("512M", 512 * MIB, None), ("1G@4G", GIB, 4 * GIB), ("0x4000000@16m", 64 * MIB, 16 * MIB)],
)
def test_what_is_asked(text: str, size: int, at: int | None) -> None:
    assert Wanted.parse(text) == Wanted(size, at)


@pytest.mark.parametrize("text", ["", "M", "0", "-1M", "512Q", "1M@", "1M@x", "9999999T"])
def test_what_cannot_be_asked(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        Wanted.parse(text)


def test_places_are_free_to_the_byte() -> None:
    free = RangeSet([(16 * MIB, 80 * MIB - 1), (5 * GIB, 7 * GIB)])
    assert Wanted(48 * MIB).places(free) == [(16 * MIB, 16 * MIB)]
    assert Wanted(GIB).places(free) == []  # without a place: below 4 GiB
    assert Wanted(64 * MIB, 16 * MIB).places(free) == []
    assert Wanted(64 * MIB - 1, 16 * MIB).places(free) == [(16 * MIB, 16 * MIB)]
    assert Wanted(GIB, 6 * GIB).places(free) == [(6 * GIB, 6 * GIB)]
    assert Wanted(GIB + 1, 6 * GIB).places(free) == []


def test_words() -> None:
    assert stretches([]) == "no"
    assert stretches([(MIB, MIB)], at=True) == "fits"
    assert stretches([(MIB, MIB), (16 * MIB, 32 * MIB)]) == "1M, 16M..32M"
    assert stretches([(n * MIB, n * MIB) for n in range(4)]) == "0M, 1M, 2M, ..."


def row(machine: Machine) -> Row:
    run = Scenario.of(machine, "incremental:variant=hpa", "native").run()
    return Row.of(run, crashkernels=("256M", "256M@32M"))


def test_of_several_machines_the_least_counts() -> None:
    small = bundled("qemu-512m")
    large = attrs.evolve(
        small,
        name="large",
        memory_map=MemoryMap.sanitise(
            [(0x1000, 0x9F000, E820Type.RAM), (MIB, 2 * GIB, E820Type.RAM)]
        ),
    )
    rows = [row(small), row(large)]
    least = min(one.figures["crashkernel_largest_below_4g"] for one in rows) // MIB
    text = crashkernels(rows)
    assert f"{least}M" in text
    assert "2 of 2" in text
    assert "Y of 256M" in crashkernels(rows[:1])
    nowhere = attrs.evolve(rows[0], machine=large, crashkernels={"256M": (), "256M@32M": ()})
    assert "1 of 2" in crashkernels([rows[0], nowhere])


def invoke(*arguments: str) -> Result:
    pair = ("-a", "incremental:variant=hpa", "-b", "native")
    return CliRunner().invoke(cli, ["compare", "qemu-512m", *pair, *arguments])


@pytest.mark.slow
def test_commands_say_it_in_every_format() -> None:
    assert "Y of 256M" in invoke().output
    asked = "128M,64M@128M,1G@4G"
    text = invoke("--crashkernel", asked).output
    assert "Y of 128M" in text
    assert "64M@128M" in text
    (record,) = json.loads(invoke("--crashkernel", asked, "-f", "json").output)
    assert record["crashkernels"]["64M@128M"] == [[128 * MIB, 128 * MIB]]
    assert record["crashkernels"]["1G@4G"] == []
    (line,) = csv.DictReader(io.StringIO(invoke("--crashkernel", asked, "-f", "csv").output))
    assert line["crashkernel=64M@128M"] == "fits"
    assert line["crashkernel=1G@4G"] == "no"
    assert "crashkernels" not in json.loads(invoke("-f", "json").output)[0]
    assert "no crash kernel" in invoke("--crashkernel", "512Q").output
