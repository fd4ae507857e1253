"""Commands with no plugin installed: each answers, and says what is missing."""

from __future__ import annotations

import sys

import pytest

from paravirt_mm import entry_points, registry
from paravirt_mm.cli.main import main
from paravirt_mm.errors import ExitCode

NO_ALLOCATOR = "no allocator is named, and no installed plugin offers one"
NO_BACKEND = "no backend is named, and no installed plugin offers one"
NO_NAMED = "no allocator 'incremental' (none is installed)"
ANSWERS: dict[str, tuple[list[str], ExitCode, str]] = {
    "compare": (["compare", "qemu-512m"], ExitCode.USAGE, NO_ALLOCATOR),
    "compare -a": (["compare", "qemu-512m", "-a", "incremental", "-b", "native"],
                   ExitCode.USAGE, NO_NAMED),
    "run": (["run", "qemu-512m"], ExitCode.USAGE, NO_ALLOCATOR),
    "machines": (["machines"], ExitCode.OK, "qemu-512m"),
    "plugins": (["plugins"], ExitCode.OK, ""),
    "figures": (["figures"], ExitCode.OK, "flips"),
    "sweep": (["sweep", "qemu-512m", "-o", "{tmp}/x.duckdb"], ExitCode.USAGE, NO_ALLOCATOR),
    "hunt": (["hunt", "incremental", "--for", "panic"], ExitCode.USAGE, NO_BACKEND),
    "verify": (["verify", "--help"], ExitCode.OK, "kernel"),
    "verify cpu": (["verify", "cpu", "qemu-512m"], ExitCode.USAGE, NO_ALLOCATOR),
    "verify kernel": (["verify", "kernel", "{oracle}"], ExitCode.USAGE, "no allocator models"),
    "verify log": (["verify", "log", "{log}"], ExitCode.OK, "no allocator models Linux 4.19.0"),
}  # fmt: skip
ORACLE = (
    '{"id": "x", "e820": [[0, 16777216, 1]], "brk_start": 4194304, "pgt_buf_pages": 6, "pse": 1,'
    ' "gbpages": 0, "max_pfn": 4096, "max_low_pfn": 4096, "initial_mapped": 8388608,'
    ' "reserved": [[0, 65536]], "linux_3_6": {}}'
)
LOG = """\
Linux version 4.19.0 (x)
BIOS-provided physical RAM map:
BIOS-e820: [mem 0x0000000000000000-0x000000003fffffff] usable
last_pfn = 0x40000 max_arch_pfn = 0x400000000
"""


@pytest.fixture
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is installed."""
    monkeypatch.setattr(entry_points, "distributions", list)
    monkeypatch.setattr(registry, "_DEFAULT", [])


@pytest.mark.usefixtures("no_plugins")
@pytest.mark.parametrize(("arguments", "code", "words"), ANSWERS.values(), ids=ANSWERS)
def test_command_answers(
    arguments: list[str],
    code: ExitCode,
    words: str,
    tmp_path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "oracle.jsonl").write_text(ORACLE)
    (tmp_path / "log.txt").write_text(LOG)
    places = {"tmp": tmp_path, "oracle": tmp_path / "oracle.jsonl", "log": tmp_path / "log.txt"}
    given = [one.format(**places) for one in arguments]
    monkeypatch.setattr(sys, "argv", ["paravirt-mm", *given])
    with pytest.raises(SystemExit) as end:
        main()
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert int(end.value.code or 0) == code, text
    assert words in text
    assert "Traceback" not in text


def test_verifiers_are_those_of_the_plugins_that_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one process with plugins, without, and with them again: nothing is kept of the others."""
    monkeypatch.setattr(sys, "argv", ["paravirt-mm", "verify", "--help"])
    found = []
    for choice in ("", "-all", ""):
        with registry.chosen(choice), pytest.raises(SystemExit):
            main()
        found.append("xen " in capsys.readouterr().out)
    assert found == [True, False, True]
