"""Commands over kernels as dom0 that have booted before: nothing boots, so everywhere."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
from click.testing import CliRunner, Result

from paravirt_mm import load
from paravirt_mm.cli.main import cli
from paravirt_mm.verify.linux.qemu import KernelFacts
from paravirt_mm_xen.dom0 import kept
from paravirt_mm_xen.dom0.host import host_of
from paravirt_mm_xen.dom0.recording import Dom0Recording

RECORDING = Path(__file__).parents[3] / "tests/data/xen/dom0-linux-6.1-xen-4.17-qemu-512m.json.xz"


HYPERVISOR = b"a hypervisor"


@attrs.frozen
class Site:
    """Kernels ``old`` and ``new`` that have booted on ``qemu-512m``, and a directory with Xen."""

    home: Path

    @property
    def backend(self) -> str:
        return f"xen:hypervisor={self.home / 'xen'},kernel=6.1"

    def kernel(self, name: str) -> str:
        return f"linux:image={self.home / name},movable_node=no"

    def run(self, *words: str) -> Result:
        done = CliRunner().invoke(cli, [*words, "-b", self.backend], standalone_mode=False)
        assert done.exception is None, repr(done.exception)
        return done


@pytest.fixture(scope="module")
def kept_boots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which the three have been recorded: to compress that takes a while."""
    home = tmp_path_factory.mktemp("kept")
    recording = Dom0Recording.load(RECORDING)
    boots = {"old": recording, "same": recording, "new": attrs.evolve(recording, panic="no memory")}
    hypervisor = hashlib.sha256(HYPERVISOR).hexdigest()
    asked = [kept._FORM, hypervisor, attrs.astuple(host_of(load("qemu-512m"))), ""]
    key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        for name, boot in boots.items():
            known = hashlib.sha256(name.encode()).hexdigest()[:32]
            kept._keep(kept._home() / known / f"{key}.json.xz", boot)
            start, *_, end = boot.image
            facts = KernelFacts(boot.release, (start, end), has_five_levels=True)
            about = kept._home().parent / "boots" / known / "kernel"
            about.parent.mkdir(parents=True)
            about.write_text(json.dumps(attrs.asdict(facts)))
    return home


@pytest.fixture
def site(kept_boots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    xen = tmp_path / "xen/boot/xen-4.17-amd64"
    headers = tmp_path / "xen/usr/include/xen"
    programs = tmp_path / "bin"
    for directory in (xen.parent, headers, programs):
        directory.mkdir(parents=True)
    xen.write_bytes(HYPERVISOR)
    (headers / "xen.h").touch()
    for name in ("qemu-system-x86_64", "gcc"):
        (programs / name).write_text("#!/bin/sh\nexit 1\n")
        (programs / name).chmod(0o755)
    for name in ("old", "same", "new"):
        (tmp_path / name).write_bytes(name.encode())
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setenv("XDG_CACHE_HOME", str(shutil.copytree(kept_boots, tmp_path / "cache")))
    return Site(tmp_path)


@pytest.mark.slow
def test_diff_of_two_kernels(site: Site) -> None:
    done = site.run("diff", site.kernel("old"), site.kernel("same"), "qemu-512m")
    assert (done.return_value, "0 of 1 comparisons differ" in done.stdout) == (0, True), done.output
    done = site.run("diff", site.kernel("old"), site.kernel("new"), "qemu-512m", "--shrink", "0")
    assert done.return_value == 1, done.output
    assert "B  panic: no memory" in done.stdout
    done = site.run("diff", site.kernel("old"), site.kernel("new"), "xen-dom0-qubes-4g")
    assert done.return_value == 3
    assert "old: 3 bytes cannot be a kernel" in done.stderr  # it would have to boot


@pytest.mark.slow
def test_compare_on_several_machines(site: Site) -> None:
    rows = ("-a", site.kernel("old"), "-a", "incremental:variant=linux,kernel=6.1")
    machines = ("qemu-512m", "qemu-pae-320m")
    done = site.run("compare", *machines, *rows, "--format", "csv")
    compared = [row["verdict"].split(":")[0] for row in csv.DictReader(io.StringIO(done.stdout))]
    assert compared == ["ok", "ok", "error", "ok"]
    assert done.return_value == 4


@pytest.mark.slow
def test_sweep(site: Site) -> None:
    result = str(site.home / "s.duckdb")
    words = ["-m", "paravirt_mm", "sweep", "-o", result, "qemu-512m", "qemu-pae-320m", "-j", "1"]
    words += ["-a", site.kernel("old"), "-b", site.backend]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (4, f"{result}: 1 error, 1 ok\n"), done.stderr
    asked = CliRunner().invoke(cli, ["query", result, "errors"])
    assert "only 64-bit kernels with four levels boot as dom0" in asked.output
