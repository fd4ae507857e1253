"""One bad log, one bad plugin, one endless scenario: each costs its own rows and no others."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from paravirt_mm.sweep.questions import ask, select

from .fixtures import Sweep, rows

ODD = """
import os, time
from typing import ClassVar
import attrs
from paravirt_mm import hookimpl
from paravirt_mm.hookspecs import API_VERSION
from paravirt_mm_incremental import Incremental

@attrs.frozen
class Odd:
    pvmm_api: ClassVar[int] = API_VERSION
    way: str = "raise"

    @hookimpl
    def pvmm_promise(self, boot):
        if boot.machine.name != "lenovo-x230-8g":
            return Incremental().pvmm_promise(boot)
        if self.way == "raise":
            raise ValueError("odd")
        if self.way == "sleep":
            time.sleep(60)
        if self.way == "spin":
            if "ODD_SPINS" in os.environ:
                open(os.environ["ODD_SPINS"], "w").close()
            while True:
                pass
        if self.way == "memory":
            hold = [bytearray(1 << 26) for _ in range(64)]
        if self.way == "die":
            os._exit(7)
        if self.way == "abort":
            os.abort()

    @hookimpl
    def pvmm_map_steps(self, boot):
        return Incremental().pvmm_map_steps(boot)

    @hookimpl
    def pvmm_allocate_tables(self, boot, step, demand):
        return Incremental().pvmm_allocate_tables(boot, step, demand)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "outcome", "verdict"),
    [
        (
            "raise",
            "error",
            "error: plugin odd (odd-plugins 1.0): pvmm_promise raised ValueError: odd",
        ),
        ("sleep", "limit", "longer than 1.5 s"),
        ("spin", "limit", "longer than 1.5 s"),
        ("memory", "limit", "more than 256M of memory"),
        ("die", "error", "its process ended with exit code 7"),
        ("abort", "error", "its process was ended by SIGABRT"),
    ],
)
def test_plugin_that_misbehaves(
    tmp_path: Path,
    sweep: Sweep,
    distribution: Callable[[str, str], Path],
    way: str,
    outcome: str,
    verdict: str,
) -> None:
    """On the second of three machines it fails; every other row is as without it."""
    plugins = distribution(ODD, "odd = odd_plugins:Odd\n")
    machines = ("asus-l8400-256m", "lenovo-x230-8g", "macmini-4g")
    good = "incremental:kernel=4.19"
    limits = ("--time-limit", 1.5, "--memory-limit", "256M", "-b", "native")
    out = tmp_path / "out"
    result = sweep(
        *machines, "-o", out, "-a", f"odd:way={way}", "-a", good, *limits, plugins=plugins
    )
    assert result.returncode == {"error": 4, "limit": 1}[outcome], result.stderr
    found = select(
        out, "SELECT machine, allocator, outcome, verdict FROM runs ORDER BY part, allocator"
    )
    odd = {row[0]: row[2:] for row in found.rows if row[1] != good}
    assert odd == {
        machines[0]: ("ok", "ok"),
        machines[1]: (outcome, verdict),
        machines[2]: ("ok", "ok"),
    }
    assert [row[2] for row in found.rows if row[1] == good] == ["ok"] * 3


@pytest.mark.slow
def test_broken_plugin(
    tmp_path: Path, sweep: Sweep, distribution: Callable[[str, str], Path]
) -> None:
    """A plugin that cannot even be loaded costs its rows; a misspelt one is refused at once."""
    plugins = distribution("raise RuntimeError('no')", "odd = odd_plugins:Odd\n")
    out = tmp_path / "out"
    arguments = ("macmini-4g", "-o", out, "-b", "native", "-a", "incremental")
    assert sweep(*arguments, "-a", "odd", plugins=plugins).returncode == 4
    found = select(out, "SELECT allocator, outcome, verdict FROM results ORDER BY ALL").rows
    assert [row[:2] for row in found] == [("incremental", "ok"), ("odd", "error")]
    assert "RuntimeError: no" in found[1][2]
    result = sweep(*arguments, "-a", "incrementel")
    assert result.returncode == 2
    assert "did you mean 'incremental'" in result.stderr


@pytest.mark.slow
def test_inputs_of_every_kind(tmp_path: Path, sweep: Sweep) -> None:
    """Folder, archive, name, nonsense and nothing: good ones run, bad ones say why, in order."""
    log = (
        b"[    0.000000] Linux version 4.19.0 (a@b) #1 SMP\n"
        b"[    0.000000] BIOS-provided physical RAM map:\n"
        b"[    0.000000] BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable\n"
        b"[    0.000000] BIOS-e820: [mem 0x0000000000100000-0x000000003fffffff] usable\n"
        b"[    0.000000] e820: last_pfn = 0x40000 max_arch_pfn = 0x400000000\n"
    )
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.log").write_bytes(log)
    (folder / "b.log").write_bytes(b"\x00\xff" * 1000)
    (folder / "c.log.gz").write_bytes(gzip.compress(log))
    (folder / "d.log.gz").write_bytes(gzip.compress(log)[:-20])
    with tarfile.open(folder / "e.tar.gz", "w:gz") as archive:
        for name, text in (("x/good.log", log), ("x/bad\x1b[31m.log", b"nothing\n")):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    out = tmp_path / "out"
    result = sweep(folder, "macmini-4g", tmp_path / "none", "-o", out, "-a", "incremental")
    assert result.returncode == 3, result.stderr
    found = select(
        out, "SELECT part, regexp_replace(source, '.*/in/', ''), error FROM machines ORDER BY part"
    ).rows
    assert [row[1].removeprefix(f"{tmp_path}/") for row in found] == [
        "a.log", "b.log", "c.log.gz", "d.log.gz", "e.tar.gz:x/good.log",
        "e.tar.gz:x/bad\\x1b[31m.log", "macmini-4g", "none",
    ]  # fmt: skip
    assert [row[2] is None for row in found] == [
        True, False, True, False, True, False, True, False,
    ]  # fmt: skip
    outcomes = select(out, "SELECT part, outcome, verdict FROM results").rows
    assert len(outcomes) == 16, "a bad input keeps its two rows"
    bad = {row[0] for row in outcomes if row[1] == "unreadable"}
    assert bad == {1, 3, 5, 7}
    assert all(row[2] for row in outcomes)
    same = {row[2:] for row in rows(out) if row[0] in (0, 2, 4)}
    assert len(same) == 2, "one log in three wrappings gives one result a backend"
    errors = ask(out, "errors").records()
    assert sum(error["runs"] for error in errors) == 8
