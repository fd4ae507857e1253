"""What commands print, word for word: each text is kept in tests/data/printed.

A change of it is a difference of lines there, for whoever reviews it: having read what differs,
``PARAVIRT_MM_SEEN=yes pytest tests/cli/test_as_printed.py`` keeps it. What the figures in them must
be is said elsewhere (tests/measure, tests/verify).

Left out are what changes from one installation to the next (folders, versions, the lists of plugins
and of the machines they bring) and how far a model is checked.
"""

from __future__ import annotations

import json
import lzma
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
from tests.commands import written_plugin
from tests.kept import DATA, kept
from tests.verify import naive_linux

SEEN = DATA / "printed"
LOGS = DATA / "logs"
HPA, OLD = "incremental:variant=hpa", "legacy_linear:kernel=3.6"
NATIVE = ("-b", "native")


def _log(folder: Path) -> None:
    for name in ("3.5-inclusive-ends.txt", "3.13-i386-pae.txt"):
        (folder / name).write_text((LOGS / name).read_text())
    text = (folder / "3.13-i386-pae.txt").read_text()
    other = text.replace("0x34000000-0x377fffff]", "0x34000000-0x375fffff]")
    other = other.replace("[    0.000000]  [mem 0x00100000-0x001fffff] page 4k\n", "")
    (folder / "wrong.txt").write_text(other)


def _logs(folder: Path) -> None:
    """Of kernels that do not say their release or all of their map, and of hypervisors."""
    (folder / "logs").mkdir()
    for name in ("2.6.28-modified-map", "3.11-head-cut", "xen-4.17-host", "xen-dom0-32bit"):
        (folder / "logs" / name).write_text((LOGS / f"{name}.txt").read_text())


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


def _dump(folder: Path) -> None:
    """Tables of a real kernel; and the same, of which the end is lost."""
    whole = lzma.decompress((DATA / "dumps" / "linux-6.1-686-pae-qemu-256m.core.xz").read_bytes())
    (folder / "pae").write_bytes(whole)
    (folder / "cut").write_bytes(whole[:-40960])


def _tiny(folder: Path) -> None:
    """A machine on which there are few places for a kernel."""
    (folder / "tiny.toml").write_text(
        'format = "paravirt-mm-machine-1"\nname = "tiny"\nmode = "i386-pae"\n'
        'memory = [[0, 0xa0000, "usable"], [0x100000, 0xB000000, "usable"]]\n'
        "[kernel]\nstart = 0x1000000\nend = 0x1400000\nbrk_start = 0x1400000\nbrk_end = 0x1440000\n"
    )


def _oracle(folder: Path) -> None:
    """What a plain model says of two machines; of the second something is wrong."""
    good, wrong = (naive_linux.record(naive_linux.odd_machine(61)) for _ in range(2))
    for table in wrong["linux_4_19"]["tables"][:2]:
        table[1] += 1
    wrong["linux_4_19"]["table_count"]["L1"] += 1
    wrong["linux_4_19"]["leaf_runs"].pop()
    (folder / "machines.jsonl").write_text("\n".join(map(json.dumps, (good, wrong))))


def _mine(folder: Path) -> None:
    """A plugin that fails."""
    written_plugin(folder, "pvmm_allocate_tables", "raise ValueError('no idea')")


FOUR = ("asus-l8400-256m", "qemu-pae-320m", "qemu-512m", "macmini-4g")
WHAT: dict[str, tuple[str, ...]] = {
    "figures": ("figures",),
    "figures as data": ("figures", "--json"),
    "machines": ("--only", "native", "machines"),
    "machines as data": ("--only", "native", "machines", "--json"),
    "plugins": ("--only", "native,legacy_linear", "plugins"),
    "plugins in full": ("--only", "native,legacy_linear", "plugins", "-v"),
    "plugins as data": ("--only", "native,legacy_linear", "plugins", "--json"),
    "a run everywhere": ("run", "tiny.toml", "-a", OLD, *NATIVE, "--kernel-at", "all"),
    "a run that panics": ("run", "qemu-512m", "-a", f"{HPA},brk_pages=0", "-b", "xen"),
    "a run that is refused": ("run", "qemu-512m", "-a", HPA, "-b", "faulty:operation=3"),
    "a run that fails": ("run", "qemu-512m", "-a", "./mine.py:Fails", *NATIVE),
    "one of many machines": ("compare", *FOUR, "-a", HPA, "-b", "xen"),
    "one of many good ends": ("compare", *FOUR, "-a", HPA, *NATIVE),
    "one of many bad ends": ("compare", *FOUR, "-a", HPA, "-b", "faulty:operation=1"),
    "one of crash kernels": (
        "compare", "qemu-512m", "asus-l8400-256m", "-a", HPA, *NATIVE,
        "--crashkernel", "64M,32M@64M",
    ),
    "a list of crash kernels": (
        "compare", "qemu-512m", "-a", HPA, *NATIVE, "--crashkernel", "64M", "-f", "csv",
    ),
    "a difference written": (
        "diff", "incremental:kernel=4.19", HPA, "qemu-512m", "--shrink", "0", "-j", "1", "-o", "x",
        "--in", "brk",
    ),
    "a difference as data": (
        "diff", "incremental:kernel=4.19", HPA, "qemu-512m", "--shrink", "0", "-j", "1", "--json",
    ),
    "a hunt": (
        "hunt", OLD, "qemu-512m", "--for", "waste > 10", *NATIVE, "-j", "1", "--mode", "x86_64",
    ),
    "a hunt written": (
        "hunt", OLD, "qemu-512m", "--for", "waste > 10", *NATIVE, "-j", "1", "-o", "x", "--json",
    ),
    "a hunt in vain": (
        "hunt", OLD, "qemu-512m", "--for", "waste > 1000000000", *NATIVE, "-j", "1", "--tries", "3",
    ),
    "a hunt for nothing": (
        "hunt", OLD, "qemu-512m", "--for", "xen.nonsense > 1", "-b", "xen", "-j", "1", "--tries",
        "3", "--json",
    ),
    "tables of a real kernel": ("inspect", "pae", "--runs"),
    "tables of half a kernel": ("inspect", "cut"),
    "machines of a plain model": (
        "verify", "kernel", "machines.jsonl", "--judge", "naive", "--record", "new.json",
    ),
    "all of a plain model": ("verify", "kernel", "machines.jsonl", "-v"),
    "a plain model as data": ("verify", "kernel", "machines.jsonl", "--json"),
    "a processor and an early end": (
        "verify", "cpu", "qemu-512m", "-a", HPA, "-b", "faulty:operation=1", "--no-la57",
    ),
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
    "no tables in a dump": ("inspect", "core", "--cr3", "0x5fff"),
    "no tables as data": ("inspect", "core", "--cr3", "0x5000", "--json", "--runs"),
    "a dump in another mode": ("inspect", "cut", "--mode", "i386"),
    "logs of all kinds": ("verify", "log", "logs", "-v", "--record", "new.json"),
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
    "a run everywhere": _tiny,
    "a run that fails": _mine,
    **dict.fromkeys(("tables of a real kernel", "tables of half a kernel"), _dump),
    **dict.fromkeys(
        ("machines of a plain model", "all of a plain model", "a plain model as data"), _oracle
    ),
    **dict.fromkeys(("tables in a dump", "runs in a dump", "a dump as data"), _image),
    **dict.fromkeys(("no tables in a dump", "no tables as data"), _image),
    "a dump in another mode": _dump,
    "logs of all kinds": _logs,
    **dict.fromkeys(("a log", "two logs", "a log as data"), _log),
    **dict.fromkeys(("boots", "boots in full", "boots as data"), _boots),
    **dict.fromkeys(("outcomes", "panics", "waste by size", "errors"), _sweep),
}  # fmt: skip
"""What puts the files there that some of them read."""


def _told(text: str, folder: Path) -> str:
    text = text.replace(str(folder), "FOLDER").replace(__version__, "VERSION")
    text = re.sub(r"Checked against.*(\n +.*)*", "", text)
    text = re.sub(r"(  checked against:).*(\n    .*)*", r"\1", text)
    text = re.sub(r'"\w+ \d+/\d+[^"]*"', "CHECKED", text)
    text = re.sub(r'("(?:backend_)?verified": )"[^"]*"', r"\1", text)
    text = re.sub(r'"plugins?": \{[^}]*\}', "", text)
    text = re.sub(r"\d+/s\b", "RATE", text)
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
    made = sorted(
        {path for path in tmp_path.rglob("*.*") if path.is_file() and path.suffix != ".pyc"}
        - before
    )
    printed = [
        _told(result.output, tmp_path),
        str(result.return_value if result.exception is None else result.exception),
        *(f"{path.name}: {_told(path.read_text(), tmp_path)}" for path in made),
    ]
    shown = "\n".join(printed)
    assert shown == kept(SEEN / _file(name), shown)


def test_nothing_is_kept_that_is_not_compared() -> None:
    assert {path.name for path in SEEN.iterdir()} == {_file(name) for name in WHAT}
