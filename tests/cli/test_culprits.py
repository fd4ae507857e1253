"""Plugins that misbehave as processes do: they cost their own rows, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import GOOD_AND_WATCH

pytestmark = pytest.mark.slow  # a process each

CODE = (
    GOOD_AND_WATCH
    + """
import os, sys


@attrs.frozen
class Exits(AscendingAllocator):
    @hookimpl
    def pvmm_allocate_tables(self):
        sys.exit(0)


@attrs.frozen
class Dies(AscendingAllocator):
    @hookimpl
    def pvmm_allocate_tables(self):
        os._exit(0)


@attrs.frozen
class Spins(AscendingAllocator):
    @hookimpl
    def pvmm_allocate_tables(self):
        print("noise")
        while True:
            pass


@attrs.frozen
class Eats(AscendingAllocator):
    @hookimpl
    def pvmm_allocate_tables(self):
        kept = []
        while True:
            kept.append(bytes(1 << 24))  # nothing is stored: it must not run out of time first


@attrs.frozen
class Patches(AscendingAllocator):
    @hookimpl
    def pvmm_allocate_tables(self, boot, demand):
        import paravirt_mm.invariants.rules as rules, paravirt_mm.scenario as scenario
        rules.check = scenario.check = lambda trace: ()
        os.chdir("/")
        sys.stdout = None
        return AscendingAllocator.pvmm_allocate_tables(self, boot, None, demand)
"""
)
LIMITS = ("--time-limit", "1", "--memory-limit", "512M")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("culprits")
    (where / "mine.py").write_text(CODE)
    return where


def paravirt_mm(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "paravirt_mm", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


def test_each_costs_its_own_row(folder: Path) -> None:
    names = ("Exits", "Dies", "Spins", "Eats", "Patches", "Good")
    specs = [word for name in names for word in ("-a", f"./mine.py:{name}")]
    done = paravirt_mm(
        folder, "compare", "qemu-512m", *specs, "-b", "native", *LIMITS, "-f", "json"
    )
    assert done.returncode == 4, done.stderr
    rows = json.loads(done.stdout)
    verdicts = dict(zip(names, (row["verdict"] for row in rows), strict=True))
    assert verdicts.pop("Good") == "ok"
    for name, words in {
        "Exits": "pvmm_allocate_tables raised SystemExit: 0",
        "Dies": "was stopped: its process ended with exit code 0",
        "Spins": "was stopped: longer than",
        "Eats": "MemoryError",
        "Patches": "replaces paravirt_mm.invariants.rules.check",
    }.items():
        assert verdicts[name].startswith("error: ")
        assert words in verdicts[name]
        assert f"./mine.py:{name}" in verdicts[name]
    assert 'File "' in rows[0]["traceback"]
    assert "noise" in done.stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [("Exits", "SystemExit: 0"), ("Dies", "exit code 0"), ("Spins", "longer than")],
)
def test_run_names_it_too(folder: Path, name: str, words: str) -> None:
    done = paravirt_mm(
        folder, "run", "qemu-512m", "-a", f"./mine.py:{name}", *LIMITS, "--traceback"
    )
    assert done.returncode == 4
    assert words in done.stdout + done.stderr
    assert f"./mine.py:{name}" in done.stdout + done.stderr
    if name == "Exits":
        assert "sys.exit(0)" in done.stderr
        assert "event" in done.stdout or "[" in done.stdout  # the trace up to there


DEAD = "was stopped: its process ended with exit code 0"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("hunt", "./mine.py:Dies", "--for", "panic", "--time", "0.5"), 4),
        (("hunt", "./mine.py:Dies", "qemu-512m", "--for", "error", "--json"), 1),
        (("diff", "./mine.py:Dies", "./mine.py:Good", "qemu-512m"), 3),
        (("report", "qemu-512m", "-a", "./mine.py:Dies", "-b", "native", "--traceback"), 4),
        (("picture", "qemu-512m", "-a", "./mine.py:Dies", "-b", "native", "-o", "x.svg"), 4),
        (("verify", "cpu", "qemu-512m", "-a", "./mine.py:Dies", "-b", "native", "--no-la57"), 4),
    ],
)
def test_every_command_survives_it_and_names_it(
    folder: Path, arguments: tuple[str, ...], code: int
) -> None:
    """What a plugin does to its process never ends a command, and costs nobody else's row."""
    done = paravirt_mm(folder, *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    if arguments[0] == "report":
        told = (folder / "report.html").read_text(encoding="utf-8")
    else:
        told = done.stdout + done.stderr
    assert DEAD in told
    assert "./mine.py:Dies" in told
    if "--json" in arguments:
        assert json.loads(done.stdout)["found"]


def test_a_hunt_lets_observers_watch_what_it_found(folder: Path) -> None:
    done = paravirt_mm(
        folder, "hunt", "./mine.py:Good", "qemu-512m", "--for", "ok", "-j", "1",
        "--observer", "./mine.py:Watch:path=hunted.txt",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    heard = (folder / "hunted.txt").read_text().split()
    assert (heard[0], heard[-2], heard[-1]) == ("begin", "RunFinished", "end")


def test_observers_are_chosen_and_hear_of_everything(folder: Path) -> None:
    assert not (folder / "watched.txt").exists()
    done = paravirt_mm(
        folder, "compare", "qemu-512m", "-a", "./mine.py:Good", "-b", "native",
        "--observer", "./mine.py:Watch:path=w.txt",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    heard = (folder / "w.txt").read_text().split()
    assert (heard[0], heard[1], heard[-2], heard[-1]) == (
        "begin",
        "RunStarted",
        "RunFinished",
        "end",
    )


def test_observer_that_is_none(folder: Path) -> None:
    done = paravirt_mm(folder, "compare", "qemu-512m", "--observer", "./mine.py:Good")
    assert done.returncode == 2
    assert "no observer" in done.stderr


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path, with a broken distribution, and one that brings machines."""
    for name, code in {
        "pvmm-broken": "raise OSError('no such library')",
        "pvmm-lab": (
            "from typing import ClassVar\nimport attrs\n"
            "from paravirt_mm import API_VERSION, E820Type, Machine, MemoryMap, hookimpl\n"
            "@attrs.frozen\nclass X:\n    pvmm_api: ClassVar[int] = API_VERSION\n    @hookimpl\n"
            "    def pvmm_machines(self):\n"
            "        ram = MemoryMap.sanitise([(0, 1 << 30, E820Type.RAM)])\n"
            "        yield Machine('lab-1g', ram)\n"
        ),
    }.items():
        module = name.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(code)
        info = tmp_path / f"{module}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[paravirt_mm]\n{module} = {module}:X\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_a_broken_package_that_nobody_asked_for_is_a_warning(site: Path) -> None:
    done = paravirt_mm(site, "compare", "qemu-512m")
    assert done.returncode == 0, done.stderr
    assert "plugin pvmm_broken (pvmm-broken 1) is left out: cannot be loaded" in done.stderr
    assert "no such library" in done.stderr
    unasked = paravirt_mm(site, "compare", "qemu-512m", "-a", "incremental", "-b", "native")
    assert (unasked.returncode, unasked.stderr) == (0, "")  # it was not even imported
    asked = paravirt_mm(site, "compare", "qemu-512m", "-a", "pvmm_broken")
    assert asked.returncode == 4
    assert "no such library" in asked.stderr
    assert paravirt_mm(site, "plugins").returncode == 4
    left = paravirt_mm(site, "--disable", "pvmm_broken", "plugins")
    assert left.returncode == 0
    assert "pvmm_lab" in left.stdout


def test_machines_of_plugins_are_known_by_name(site: Path) -> None:
    for arguments in (("run", "lab-1g"), ("compare", "lab-1g"), ("machines", "lab-1g")):
        done = paravirt_mm(site, *arguments)
        assert done.returncode == 0, done.stderr
        assert "1G" in done.stdout or "0x40000000" in done.stdout
    assert "lab-1g" in paravirt_mm(site, "machines").stdout
    one = ("-a", "incremental", "-b", "native")
    swept = paravirt_mm(site, "sweep", "lab-1g", *one, "-j", "1", "-o", "s.duckdb")
    assert (swept.returncode, swept.stdout) == (0, "s.duckdb: 1 ok\n")
    hunted = paravirt_mm(site, "hunt", "incremental", "lab-1g", "--for", "ok", "-j", "1")
    assert hunted.returncode == 1
    code = (
        "import paravirt_mm as p; print(p.load('lab-1g').name, next(p.load_all(['lab-1g'])).name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "lab-1g lab-1g\n"


def test_one_plugin_is_shown(site: Path) -> None:
    done = paravirt_mm(site, "plugins", "legacy_linear")
    for words in (
        "legacy_linear: allocator of paravirt-mm",
        "good_end=release   one of release, mapped, end",
        "Where the search for the block may end",
        "hooks: pvmm_allocate_tables,",
        "oracle 400/400",
    ):
        assert words in done.stdout
    record = json.loads(paravirt_mm(site, "plugins", "incremental", "--json").stdout)
    assert record["options"][0] == {
        "name": "variant",
        "accepts": "one of hpa, linux",
        "default": "linux",
        "help": "``linux``: as merged in Linux; ``hpa``: the seven steps of the proposal.",
        "schema": {"enum": ["hpa", "linux"], "default": "linux"},
    }


def test_only(site: Path) -> None:
    done = paravirt_mm(site, "--only", "native,incremental", "plugins", "--json")
    names = {plugin["name"] for plugin in json.loads(done.stdout)["plugins"]}
    assert names == {"native", "incremental"}
