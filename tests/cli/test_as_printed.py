"""What commands print, word for word: each text is kept in tests/data/printed.

A change of it is a difference of lines there, for whoever reviews it: having read what differs,
``PARAVIRT_MM_SEEN=yes pytest tests/cli/test_as_printed.py`` keeps it. What the figures in them must
be is said elsewhere (tests/measure, tests/verify).

Left out are what changes from one installation to the next (folders, versions, the lists of plugins
and of the machines they bring) and how far a model is checked.
"""

from __future__ import annotations

import json
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
from tests.kept import DATA, kept

SEEN = DATA / "printed"
LOGS = DATA / "logs"
HPA, OLD = "incremental:variant=hpa", "legacy_linear:kernel=3.6"
NATIVE = ("-b", "native")


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


WHAT: dict[str, tuple[str, ...]] = {
    "a machine": ("machines", "lenovo-x230-8g"),
    "a machine as data": ("machines", "pae-4g", "--json"),
    "a plugin": ("plugins", "incremental"),
    "a run": ("run", "qemu-512m", "-a", HPA, *NATIVE),
    "a run as data": ("run", "qemu-512m", "-a", OLD, *NATIVE, "--json"),
    "a run explained": ("run", "qemu-512m", "-a", HPA, *NATIVE, "--explain"),
    "a run in colours": ("run", "asus-l8400-256m", "-a", OLD, "-b", "xen", "--color", "always"),
    "a run elsewhere": ("run", "qemu-512m", "-a", HPA, *NATIVE, "--kernel-at", "32M"),
    "a comparison": ("compare", "qemu-512m", "-a", HPA, "-a", OLD),
    "a wide one": ("compare", "qemu-512m", "-a", HPA, "-a", OLD, "-w"),
    "one in colours": ("compare", "qemu-512m", "-a", HPA, "-a", OLD, "--color", "always"),
    "one for a page": ("compare", "qemu-512m", "-a", HPA, *NATIVE, "-f", "github"),
    "one of two machines": ("compare", "qemu-512m", "asus-l8400-256m", "-a", HPA, "-a", OLD),
    "one of each": ("compare", "qemu-512m", "asus-l8400-256m", "-a", HPA, *NATIVE, "--each"),
    "one as a list": ("compare", "qemu-512m", "-a", HPA, *NATIVE, "-f", "csv"),
    "a difference": (
        "diff", "incremental:kernel=4.19", HPA, "qemu-512m", "--shrink", "0", "-j", "1",
    ),
    "no difference": ("diff", HPA, HPA, "qemu-512m", "asus-l8400-256m", "--shrink", "0", "-j", "1"),
    "tables in a dump": ("inspect", "core"),
    "runs in a dump": ("inspect", "core", "--runs"),
    "a dump as data": ("inspect", "core", "--json"),
    "a log": ("verify", "log", "3.5-inclusive-ends.txt"),
    "two logs": ("verify", "log", "wrong.txt", "3.13-i386-pae.txt"),
    "a log as data": ("verify", "log", "wrong.txt", "--json"),
    "boots": ("verify", "linux", "--replay", "boots.jsonl"),
    "boots in full": ("verify", "linux", "--replay", "boots.jsonl", "-v"),
    "boots as data": ("verify", "linux", "--replay", "boots.jsonl", "--json"),
    "a processor": ("verify", "cpu", "asus-l8400-256m", "-a", OLD),
    "a processor as data": (
        "verify", "cpu", "qemu-512m", "-a", OLD, *NATIVE, "--no-la57", "--json",
    ),
    "a map": ("picture", "qemu-512m", "-a", HPA, *NATIVE, "-o", "map.svg"),
    "outcomes": ("query", "out.duckdb"),
    "panics": ("query", "out.duckdb", "panics"),
    "waste by size": ("query", "out.duckdb", "waste", "--by", "size"),
    "errors": ("query", "out.duckdb", "errors", "--json"),
}  # fmt: skip

FILES: dict[str, Callable[[Path], None]] = {
    **dict.fromkeys(("tables in a dump", "runs in a dump", "a dump as data"), _image),
    **dict.fromkeys(("a log", "two logs", "a log as data"), _log),
    **dict.fromkeys(("boots", "boots in full", "boots as data"), _boots),
    **dict.fromkeys(("outcomes", "panics", "waste by size", "errors"), _sweep),
}  # fmt: skip
"""What puts the files there that some of them read."""


def _told(text: str, folder: Path) -> str:
    text = text.replace(str(folder), "FOLDER").replace(__version__, "VERSION")
    text = re.sub(r"Checked against.*(\n +.*)*", "", text)
    text = re.sub(r'("(?:backend_)?verified": )"[^"]*"', r"\1", text)
    text = re.sub(r'"plugins?": \{[^}]*\}', "", text)
    return re.sub(r"\d[\d.]* (s|ms|seconds|runs/s)\b", "SOON", text)


def _file(name: str) -> str:
    return f"{name.replace(' ', '-')}.txt"


@pytest.mark.parametrize("name", WHAT)
def test_it_prints_what_it_did(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    if name in FILES:
        FILES[name](tmp_path)
    before = {*tmp_path.rglob("*")}
    result = CliRunner().invoke(cli, WHAT[name], standalone_mode=False)
    made = sorted({path for path in tmp_path.rglob("*") if path.is_file()} - before)
    printed = [
        _told(result.output, tmp_path),
        str(result.return_value if result.exception is None else result.exception),
        *(f"{path.name}: {_told(path.read_text(), tmp_path)}" for path in made),
    ]
    shown = "\n".join(printed)
    assert shown == kept(SEEN / _file(name), shown)


def test_nothing_is_kept_that_is_not_compared() -> None:
    assert {path.name for path in SEEN.iterdir()} == {_file(name) for name in WHAT}
