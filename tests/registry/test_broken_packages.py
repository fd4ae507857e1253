"""Broken packages: each is named with what is wrong, none is in anybody's way."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from paravirt_mm import entry_points as module, guard, offers, registry as registry_module
from paravirt_mm.registry import Registry
from tests.registry.broken_packages import ANSWERS, KINDS, Kind, install

FAST = guard.Limits(cpu=0.5, wall=4, memory=256 << 20)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    for name, kind in KINDS.items():
        install(folder, name, kind)
    for name, (code, _) in ANSWERS.items():
        install(folder, name, Kind(code, None))
    return folder


def _process() -> tuple[object, ...]:
    return (
        os.getcwd(), dict(os.environ), sys.getrecursionlimit(), signal.getsignal(signal.SIGTERM),
        signal.getitimer(signal.ITIMER_REAL)[0], list(warnings.filters), gc.isenabled(),
        random.getstate(), sys.stdout, sys.stderr, sys.excepthook, sys.gettrace(),
        threading.active_count(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def loaded(site: Path) -> Iterator[Registry]:
    """All of them at once, as the command line does it, each tried for a moment."""
    before = _process()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.syspath_prepend(str(site))
        for limits in ("NAMED", "UNASKED", "ANSWERING"):
            patch.setattr(registry_module, limits, FAST)
        during = _process()
        registry = Registry.discover(careful=True)
        assert {"native", "xen"} <= registry.plugins.keys()
        assert _process() == during
        offers.machines(registry)
        yield registry
    assert _process()[0] == before[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.words])
def test_broken_package_is_named(loaded: Registry, name: str) -> None:
    words = KINDS[name].words
    found = [one for one in loaded.broken if one.distribution.startswith(name)]
    assert found, "nobody speaks of it"
    assert any(str(words) in one.problem for one in found), found
    assert all(str(one).isprintable() for one in found)
    assert not any(plugin.distribution == name for plugin in loaded.plugins.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if not kind.words])
def test_it_can_be_used_whatever_else_it_does(loaded: Registry, name: str) -> None:
    assert any(plugin.distribution == name for plugin in loaded.plugins.values())
    assert not [one for one in loaded.broken if one.distribution == name]


def test_metadata_that_is_missing_has_no_say(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a dependency imports importlib_metadata, it finds distributions from then on, and
    raises for what the standard library answers with None.
    """
    other = pytest.importorskip("importlib_metadata")
    monkeypatch.setattr(module, "distributions", lambda: other.distributions(path=[str(site)]))
    broken: list[module.BrokenPlugin] = []
    names = {point.distribution for _, point in module.entry_points(broken)}
    assert {"no_metadata", "prints"} <= names
    assert not [one for one in broken if one.distribution == "no_metadata"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ANSWERS)
def test_who_cannot_answer_is_left_out(loaded: Registry, name: str) -> None:
    (found,) = [one for one in loaded.broken if one.name == name]
    assert ANSWERS[name][1] in found.problem
    assert name in loaded.plugins


@pytest.mark.slow
def test_built_in_plugins_are_what_they_were(loaded: Registry) -> None:
    ours = {name: plugin for name, plugin in loaded.plugins.items() if name in ("xen", "native")}
    assert {plugin.distribution for plugin in ours.values()} == {"paravirt-mm"}
    assert [plugin.role for plugin in ours.values()] == ["backend", "backend"]


SLOW = ("hangs", "spins", "eats", "init_spins", "machines_spin")


@pytest.mark.slow
def test_commands_go_on_beside_all_of_them(site: Path) -> None:
    """Real processes: rows are there, nothing but JSON on standard output, exit code 0."""
    command = [sys.executable, "-m", "paravirt_mm", f"--disable={SLOW[0]}"]
    command += [f"--disable={name}" for name in SLOW[1:]]
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments], env=environment, capture_output=True, text=True, check=False
        )

    done = call("compare", "qemu-512m", "-f", "json")
    assert done.returncode == 0, done.stderr
    assert {row["outcome"] for row in json.loads(done.stdout)} == {"ok"}
    for name in ("import_error", "exits_hard", "interrupts", "patches_core", "binary_points"):
        assert f"{name}" in done.stderr
    asked = call("compare", "qemu-512m", "-a", "prints", "-a", "changes_process", "-f", "json")
    assert asked.returncode == 0, asked.stderr
    assert [row["outcome"] for row in json.loads(asked.stdout)][:2] == ["ok", "ok"]
    broken = call("compare", "qemu-512m", "-a", "exits_hard", "-f", "json")
    assert (broken.returncode, broken.stdout) == (4, "")
    assert "exits_hard" in broken.stderr
