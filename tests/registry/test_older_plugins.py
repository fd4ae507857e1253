"""Plugins that strangers wrote for API 1.0, as they were: they go on loading and working.

A change of the API that breaks one of them needs a new `API_VERSION`; one that only adds raises
`API_MINOR`, and is listed in docs/plugins.md.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from paravirt_mm import Outcome, Scenario, bundled, hookspecs
from paravirt_mm.registry import Registry
from paravirt_mm.testing import registry_with

FOLDER = Path(__file__).parents[1] / "data" / "plugins-1.0"
PLUGINS = {
    "old_chunk_end": ("older_chunk_end", "ChunkEnd", "allocator"),
    "opts": ("older_opts", "Opts", "allocator"),
    "announce": ("older_announce", "Announce", "backend"),
    "json_lines": ("older_jsonl", "JsonLines", "observer"),
    "lab_machines": ("older_extras", "LabMachines", "observer"),
    "org_mode": ("older_extras", "OrgMode", "observer"),
}


@pytest.fixture
def older(monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.syspath_prepend(str(FOLDER))
    modules: dict[str, ModuleType] = {}
    for module, _, _ in PLUGINS.values():
        monkeypatch.delitem(sys.modules, module, raising=False)
        modules[module] = importlib.import_module(module)
    return registry_with(**{name: getattr(modules[m], c) for name, (m, c, _) in PLUGINS.items()})


def test_they_load_in_their_roles(older: Registry) -> None:
    assert {name: older.get(name).role for name in PLUGINS} == {
        name: role for name, (_, _, role) in PLUGINS.items()
    }


@pytest.mark.parametrize(
    "allocator", ["old_chunk_end", "old_chunk_end:growth=double", "opts:size=large"]
)
@pytest.mark.parametrize("backend", ["announce", "announce:calls_per_table=3", "native", "xen"])
def test_they_run(older: Registry, allocator: str, backend: str) -> None:
    run = Scenario.of(bundled("qemu-512m"), allocator, backend).run(older)
    assert run.verdict.outcome is Outcome.OK, run.verdict


@pytest.mark.slow
def test_observer_machines_and_format(older: Registry, tmp_path: Path) -> None:
    from paravirt_mm import offers

    observer = older.get("json_lines").create({"path": str(tmp_path / "events.jsonl")})
    run = Scenario.of(bundled("qemu-512m"), "old_chunk_end", "announce", observer).run(older)
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == len(run.trace)
    assert set(offers.machines(older)) == {"lab-2g", "lab-16g"}
    assert offers.formats(older)["orglab"]([{"a": 1}]) == "| a |\n|-----|\n| 1 |\n"


def test_changes_of_the_api_are_listed() -> None:
    text = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")
    listed = re.findall(r"(?m)^### API (\d+\.\d+)$", text)
    assert listed[0] == f"{hookspecs.API_VERSION}.{hookspecs.API_MINOR}"
    since_1_0 = set(hookspecs.HOOKS) - HOOKS_OF_1_0
    assert set(hookspecs.HOOKS) >= HOOKS_OF_1_0
    for hook in since_1_0:
        assert f"`{hook}`" in text, f"{hook} came after 1.0: list it"


NAMES_OF_1_0 = """
    boot_state promise map_steps reserve_tables allocate_tables write_entries map_readonly
    make_readonly pin_tables release_tables make_writable activate_cr3 observe check figures
    machines report_formats verifiers check_log models_kernel
"""
HOOKS_OF_1_0 = {f"pvmm_{name}" for name in NAMES_OF_1_0.split()}
