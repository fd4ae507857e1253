"""What commands print, word for word: each text is kept in tests/data/printed.

A change of it is a difference of lines there, for whoever reviews it: having read what differs,
``PARAVIRT_MM_SEEN=yes pytest tests/cli/test_as_printed.py`` keeps it. What the figures in them must
be is said elsewhere (tests/measure, tests/verify).

Left out are what changes from one installation to the next (folders, versions) and how far a model
is checked.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from click.testing import CliRunner

from paravirt_mm._version import __version__
from paravirt_mm.cli.main import cli
from paravirt_mm.registry import default_registry
from paravirt_mm.sweep.settings import ChunkResult, MachineRecord, RunRecord, Settings
from tests.boot_records import RECORDS

SEEN = Path(__file__).parents[1] / "data" / "printed"
LOGS = Path(__file__).parents[1] / "data" / "logs"
HPA, OLD = "incremental:variant=hpa", "legacy_linear:kernel=3.6"
SMALL = ("-b", "native")


def _log(folder: Path) -> None:
    for name in ("3.5-inclusive-ends.txt", "3.13-i386-pae.txt"):
        (folder / name).write_text((LOGS / name).read_text())
    text = (folder / "3.13-i386-pae.txt").read_text()
    other = text.replace("0x34000000-0x377fffff]", "0x34000000-0x375fffff]")
    (folder / "wrong.txt").write_text(other)


def _boots(folder: Path) -> None:
    good = RECORDS["6.1.0-56-amd64:tiny"]
    wrong = json.loads(json.dumps(good))
    wrong["steps"][1]["start"] += 4096
    wrong["table_count"]["L1"] += 1
    rows = [good, wrong, RECORDS["6.1.0-56-amd64:la57"]]
    (folder / "boots.jsonl").write_text("\n".join(map(json.dumps, rows)))


def _sweep(folder: Path) -> None:
    pytest.importorskip("duckdb", reason="needs the extra 'sweep'")
    (folder / "out.duckdb").write_bytes(_stored())


@cache
def _stored() -> bytes:
    """A file of results, which takes a tenth of a second to make."""
    from paravirt_mm.sweep.store import Store

    def run(allocator: str, outcome: str, gib: int, **figures: object) -> RunRecord:
        known = {"tables": 10 * gib, "waste": gib, "reserved": 100, "flips_per_table": 1.5}
        return RunRecord(allocator, "xen", outcome, f"{outcome}: it", {**known, **figures})

    parts = tuple(
        (
            MachineRecord(f"{gib}.log", {"machine": f"m{gib}", "ram_bytes": gib << 30, "holes": 1}),
            run("a", "ok", gib, crashkernel_512m_below_4g=True, waste_percent=0.5),
            run("b", end, gib, crashkernel_512m_below_4g=False, overrun=3),
        )
        for gib, end in ((1, "ok"), (200, "panic"), (7, "error"))
    )
    with TemporaryDirectory() as folder:
        path = Path(folder, "out.duckdb")
        with Store(path, Settings(("a", "b"), ("xen",)), default_registry()) as store:
            store.add(ChunkResult(0, 0, "x", parts, 0.5))
        return path.read_bytes()


def _image(folder: Path) -> None:
    command = ["run", "qemu-512m", "-a", HPA, "-b", "native", "--image", str(folder / "core")]
    CliRunner().invoke(cli, command)


def _nothing(folder: Path) -> None:
    pass


WHAT: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "a machine": (_nothing, ("machines", "lenovo-x230-8g")),
    "a machine as data": (_nothing, ("machines", "pae-4g", "--json")),
    "a plugin": (_nothing, ("plugins", "incremental")),
    "a run": (_nothing, ("run", "qemu-512m", "-a", HPA, *SMALL)),
    "a run as data": (_nothing, ("run", "qemu-512m", "-a", OLD, *SMALL, "--json")),
    "a run explained": (_nothing, ("run", "qemu-512m", "-a", HPA, *SMALL, "--explain")),
    "a run in colours": (
        _nothing, ("run", "asus-l8400-256m", "-a", OLD, "-b", "xen", "--color", "always"),
    ),
    "a run elsewhere": (
        _nothing, ("run", "qemu-512m", "-a", HPA, *SMALL, "--kernel-at", "32M"),
    ),
    "a comparison": (_nothing, ("compare", "qemu-512m", "-a", HPA, "-a", OLD)),
    "a wide one": (_nothing, ("compare", "qemu-512m", "-a", HPA, "-a", OLD, "-w")),
    "one in colours": (
        _nothing, ("compare", "qemu-512m", "-a", HPA, "-a", OLD, "--color", "always"),
    ),
    "one for a page": (_nothing, ("compare", "qemu-512m", "-a", HPA, *SMALL, "-f", "github")),
    "one of two machines": (
        _nothing, ("compare", "qemu-512m", "asus-l8400-256m", "-a", HPA, "-a", OLD),
    ),
    "one of each": (
        _nothing, ("compare", "qemu-512m", "asus-l8400-256m", "-a", HPA, *SMALL, "--each"),
    ),
    "one as a list": (_nothing, ("compare", "qemu-512m", "-a", HPA, *SMALL, "-f", "csv")),
    "a difference": (
        _nothing,
        ("diff", "incremental:kernel=4.19", HPA, "qemu-512m", "--shrink", "0", "-j", "1"),
    ),
    "no difference": (
        _nothing, ("diff", HPA, HPA, "qemu-512m", "asus-l8400-256m", "--shrink", "0", "-j", "1"),
    ),
    "tables in a dump": (_image, ("inspect", "core")),
    "runs in a dump": (_image, ("inspect", "core", "--runs")),
    "a dump as data": (_image, ("inspect", "core", "--json")),
    "a log": (_log, ("verify", "log", "3.5-inclusive-ends.txt")),
    "two logs": (_log, ("verify", "log", "wrong.txt", "3.13-i386-pae.txt")),
    "a log as data": (_log, ("verify", "log", "wrong.txt", "--json")),
    "boots": (_boots, ("verify", "linux", "--replay", "boots.jsonl")),
    "boots in full": (_boots, ("verify", "linux", "--replay", "boots.jsonl", "-v")),
    "boots as data": (_boots, ("verify", "linux", "--replay", "boots.jsonl", "--json")),
    "a processor": (_nothing, ("verify", "cpu", "asus-l8400-256m", "-a", OLD)),
    "a processor as data": (
        _nothing, ("verify", "cpu", "qemu-512m", "-a", OLD, *SMALL, "--no-la57", "--json"),
    ),
    "a map": (_nothing, ("picture", "qemu-512m", "-a", HPA, *SMALL, "-o", "map.svg")),
    "outcomes": (_sweep, ("query", "out.duckdb")),
    "panics": (_sweep, ("query", "out.duckdb", "panics")),
    "waste by size": (_sweep, ("query", "out.duckdb", "waste", "--by", "size")),
    "errors": (_sweep, ("query", "out.duckdb", "errors", "--json")),
}  # fmt: skip


def _told(text: str, folder: Path) -> str:
    text = text.replace(str(folder), "FOLDER").replace(__version__, "VERSION")
    text = re.sub(r"Checked against.*(\n +.*)*", "", text)
    text = re.sub(r'("(?:backend_)?verified": )"[^"]*"', r"\1", text)
    text = re.sub(r'"plugins?": \{[^}]*\}', "", text)
    return re.sub(r"\d[\d.]* (s|ms|seconds|runs/s)\b", "SOON", text)


@pytest.mark.parametrize("name", WHAT)
def test_it_prints_what_it_did(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, words = WHAT[name]
    monkeypatch.chdir(tmp_path)
    for variable in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    make(tmp_path)
    before = {*tmp_path.rglob("*")}
    result = CliRunner().invoke(cli, words, standalone_mode=False)
    made = sorted({path for path in tmp_path.rglob("*") if path.is_file()} - before)
    printed = [
        _told(result.output, tmp_path),
        str(result.return_value if result.exception is None else result.exception),
        *(f"{path.name}: {_told(path.read_text(), tmp_path)}" for path in made),
    ]
    shown = "\n".join(printed)
    seen = SEEN / f"{name.replace(' ', '-')}.txt"
    if os.environ.get("PARAVIRT_MM_SEEN"):
        seen.write_text(shown, encoding="utf-8")
    assert shown == seen.read_text(encoding="utf-8")
