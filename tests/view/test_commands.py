"""`report` and `picture` on the command line."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from paravirt_mm.cli.main import cli
from paravirt_mm.errors import SpecError
from paravirt_mm.view.page import MAX_UNREAD
from tests.view.parsed import parsed


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(each) for each in arguments], standalone_mode=False)


@pytest.mark.slow
def test_report_writes_one_file(tmp_path: Path) -> None:
    path = tmp_path / "out.html"
    result = run("report", "qemu-pae-320m", "-b", "native", "-o", path)
    assert result.exception is None
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "qemu-pae-320m" in text
    assert "could not be read" not in text + result.output
    assert [each.name for each in tmp_path.iterdir()] == ["out.html"]


@pytest.mark.slow
def test_report_of_what_cannot_be_read(tmp_path: Path) -> None:
    logs = [tmp_path / f"no<b>thing{number}.txt" for number in range(MAX_UNREAD + 2)]
    for log in logs:
        log.write_text("no memory map in here\n")
    result = run("report", *logs, "qemu-pae-320m", "-b", "native", "-o", tmp_path / "out.html")
    assert result.return_value == 3
    assert "thing0.txt" in result.output
    assert "1 machine, 0." in result.output
    assert f", {len(logs)} could not be read" in result.output
    text = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert text.count("no&lt;b&gt;thing") == MAX_UNREAD
    assert "<li>and 2 more</li>" in text


@pytest.mark.parametrize(
    "theme", ["auto", *(pytest.param(one, marks=pytest.mark.slow) for one in ("light", "dark"))]
)
def test_a_map_as_svg(tmp_path: Path, theme: str) -> None:
    path = tmp_path / "map.svg"
    assert run("picture", "qemu-pae-320m", "-o", path, "-t", theme, "--linear").exception is None
    root = parsed(path.read_text())
    assert root.tag.endswith("svg")


@pytest.mark.slow
def test_a_map_and_a_chart_as_png(tmp_path: Path) -> None:
    for name, what in (("map.png", "map"), ("guess.png", "guess")):
        path = tmp_path / name
        assert run("picture", "qemu-pae-320m", "-w", what, "-o", path).exception is None
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments",
    [
        ("qemu-pae-320m", "-o", "map.gif"),
        ("-o", "map.svg"),
        ("qemu-pae-320m", "-o", "map.png", "-t", "auto"),
    ],
)
def test_wrong_usage_is_told(arguments: tuple[str, ...]) -> None:
    result = run("picture", *arguments)
    assert getattr(result.exception, "exit_code", None) == 2


@pytest.mark.parametrize("arguments", [("report", "-o"), ("picture", "qemu-pae-320m", "-o")])
def test_without_the_extra_it_says_what_to_install(
    arguments: tuple[str, ...], tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From where this runs: in an index there may be no such package, or another one."""
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    result = run(*arguments, tmp_path / "out.png")
    assert isinstance(result.exception, SpecError)  # exit code 2: no finding
    assert f"{checkout}[report]" in shlex.split(str(result.exception))
    assert not list(tmp_path.iterdir())
