"""Figures of tables that are found in memory: real kernels' and our own."""

from __future__ import annotations

import json
import lzma
import struct
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from paravirt_mm import Run
from paravirt_mm.cli.inspect import _cell, _runs, command
from paravirt_mm.image.dump import open_dump
from paravirt_mm.image.elf import write_core
from paravirt_mm.image.inspect import OWN, Inspection, inspect
from paravirt_mm.image.walker import LeafRun
from paravirt_mm.machine.paging import X86_64
from paravirt_mm.measure.figures import TABLE_FIGURES, Unit
from paravirt_mm.report.values import MISSING

LINUX = "linux-6.12-qemu-256m.core.xz"
LINUX_LA57 = "linux-6.12-qemu-256m-la57.core.xz"


def unpacked(dumps: Path, name: str, folder: Path) -> Path:
    path = folder / "core"
    path.write_bytes(lzma.decompress((dumps / name).read_bytes()))
    return path


@pytest.fixture(scope="module")
def linux(dumps: Path, tmp_path_factory: pytest.TempPathFactory) -> Inspection:
    with open_dump(unpacked(dumps, LINUX, tmp_path_factory.mktemp("linux"))) as dump:
        assert dump.cr3 == 0x2C22000  # what QEMU printed
        assert dump.mode is not None
        return inspect(dump, dump.cr3, dump.mode)


@pytest.mark.slow
def test_linux_4_levels(linux: Inspection) -> None:
    result = linux
    assert not result.findings
    assert result.direct_map is not None
    assert result.direct_map.base == 0xFFFF_8880_0000_0000
    # The RAM of that machine ends at 0xffe0000 (its log: "BIOS-e820: ... usable").
    assert result.direct_map.end == 0xFFFF_8880_0FFE_0000
    direct = result.direct_figures
    assert direct is not None
    assert (direct["tables_l4"], direct["tables_l3"], direct["tables_l2"]) == (1, 1, 1)
    assert (direct["mapped_4k"] or 0) + (direct["mapped_large"] or 0) <= 0xFFE0000
    assert direct["writable_executable"] == 0
    assert result.figures["tables"] == 90


@pytest.mark.slow
def test_linux_5_levels(dumps: Path, tmp_path: Path) -> None:
    with open_dump(unpacked(dumps, LINUX_LA57, tmp_path)) as dump:
        assert dump.cr3 is not None
        assert dump.mode is not None
        result = inspect(dump, dump.cr3, dump.mode)
    assert result.direct_map is not None
    assert result.direct_map.base == 0xFF11_0000_0000_0000
    assert result.direct_figures is not None
    assert [result.direct_figures[f"tables_l{level}"] for level in (2, 3, 4, 5)] == [1, 1, 1, 1]


@pytest.mark.parametrize("backend", ["native", "xen"])
def test_figures_of_a_run_and_of_its_image_are_the_same(
    small_run: Callable[..., Run], tmp_path: Path, backend: str
) -> None:
    """With a root of its own, all tables of a run are in its image, and in its figures."""
    run = small_run("x86_64", "incremental:variant=hpa", backend, size=512 << 20)
    path = tmp_path / "core"
    write_core(run.trace, path)
    with open_dump(path) as dump:
        assert dump.cr3 is not None
        assert dump.mode is not None
        result = inspect(dump, dump.cr3, dump.mode)
    shared = sorted(set(result.figures) & set(run.figures) - {"highest_table"})
    assert len(shared) > 12
    assert {name: result.figures[name] for name in shared} == {
        name: run.figures[name] for name in shared
    }
    assert list(result.figures) == [*TABLE_FIGURES, *OWN]  # each has a meaning there
    assert [unit for unit, _ in OWN.values()] == ["count", "pages", "bytes"]
    assert result.direct_figures == result.figures
    assert result.figures["writable_tables"] == (0 if backend == "xen" else run.figures["tables"])


# -- the command ----------------------------------------------------------------------------------


def run_command(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(command, arguments, standalone_mode=False)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return int(result.return_value or 0), result.output


@pytest.mark.slow
def test_command(dumps: Path, tmp_path: Path) -> None:
    code, text = run_command(str(unpacked(dumps, LINUX, tmp_path)), "--runs")
    assert code == 0
    assert "x86_64, 4 levels, CR3 0x2c22000" in text
    assert "OSRELEASE: 6.12.107" in text
    assert "0xffff888000000000-0xffff888000097fff -> 0x000000000000  4k rw nx kern global" in text


@pytest.mark.slow
def test_command_json(dumps: Path, tmp_path: Path) -> None:
    code, text = run_command(str(unpacked(dumps, LINUX, tmp_path)), "--json")
    record = json.loads(text)
    assert code == 0
    assert record["figures"]["tables"] == 90
    assert record["direct_map"]["base"] == 0xFFFF_8880_0000_0000
    assert record["findings"] == []


def test_raw_memory_needs_root_and_mode(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    path.write_bytes(bytes(8192))
    with pytest.raises(click.UsageError, match="--cr3 and --mode"):
        run_command(str(path))
    with pytest.raises(click.UsageError, match=r"give --mode$"):
        run_command(str(path), "--cr3", "0x1000")
    with pytest.raises(click.UsageError, match=r"give --cr3$"):
        run_command(str(path), "--mode", "x86_64")
    with pytest.raises(Exception, match="no number"):
        run_command(str(path), "--cr3", "here")
    code, text = run_command(str(path), "--cr3", "0x1000", "--mode", "x86_64")
    assert (code, "mapped_4k" in text) == (0, True)
    code, text = run_command(str(path), "--cr3", "0x9000", "--mode", "x86_64")
    assert code == 1
    assert "not in memory" in text
    # Flags of the root stand in its low bits: 12 of them, of PAE's table of four entries 5.
    for given, mode, root in (("0x1fff", "x86_64", "0x1000"), ("0x103f", "i386-pae", "0x1020")):
        assert f", CR3 {root}\n" in run_command(str(path), "--cr3", given, "--mode", mode)[1]


def test_of_many_findings_the_first_are_told_and_how_many_more(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    path.write_bytes(struct.pack("<Q", 0x7FFF_0003) * 512)  # tables that are not there
    code, text = run_command(str(path), "--cr3", "0", "--mode", "x86_64")
    told = text[text.index("Findings:") :].splitlines()
    assert (code, len(told), told[-1]) == (1, 102, "  and 412 more")


@pytest.mark.slow
def test_truncated_dump_says_so(dumps: Path, tmp_path: Path) -> None:
    path = unpacked(dumps, LINUX, tmp_path)
    path.write_bytes(path.read_bytes()[:-40960])
    code, text = run_command(str(path))
    assert code == 1
    assert "truncated" in text


@pytest.mark.parametrize(
    ("unit", "value", "told"),
    [
        (Unit.BYTES, 4096, "4K"),
        (Unit.ADDRESS, 4096, "0x1000"),
        (Unit.COUNT, 4096, "4096"),
        (Unit.PERCENT, 0.5, "0.5"),
        (Unit.BYTES, None, MISSING),
    ],
)
def test_a_figure_is_told_in_its_unit(unit: Unit, value: float | None, told: str) -> None:
    assert _cell(unit, value) == told


def test_a_run_is_told_with_its_size_and_rights() -> None:
    runs = (
        LeafRun(0x200000, 0x600000, 0x1000000, 2, True, False, True, False),
        LeafRun(0x7000, 0x8000, 0x9000, 1, False, True, False, True),
    )
    assert _runs(Inspection(X86_64, 0, {}, None, None, runs, (), 0)) == [
        "0x0000000000200000-0x00000000005fffff -> 0x000001000000  2M rw x  kern",
        "0x0000000000007000-0x0000000000007fff -> 0x000000009000  4k ro nx user global",
    ]
