"""A plugin that replaces something of ours while a scenario runs, whoever runs the scenario."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from paravirt_mm.diff import Pair, compared
from paravirt_mm.hunt.search import Quarry, run_batch
from paravirt_mm.invariants import rules
from paravirt_mm.offers import default_specs
from paravirt_mm.registry import Registry, default_registry
from paravirt_mm.scenario import Scenario
from paravirt_mm.sources import bundled
from paravirt_mm.sweep.work import run as swept
from paravirt_mm.untouched import unchanged

CODE = """
import attrs
from paravirt_mm import hookimpl
from paravirt_mm.testing import AscendingAllocator


@attrs.frozen
class Patches(AscendingAllocator):
    @hookimpl
    def pvmm_allocate_tables(self, boot, demand):
        import paravirt_mm.invariants.rules as rules, paravirt_mm.scenario as scenario
        rules.check = scenario.check = lambda trace: ()
        return AscendingAllocator.pvmm_allocate_tables(self, boot, None, demand)


@attrs.frozen
class Good(AscendingAllocator):
    pass
"""
SAID = "replaces paravirt_mm.invariants.rules.check, paravirt_mm.scenario.check while it runs"


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("untouched") / "mine.py"
    path.write_text(CODE)
    return path


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("paravirt_mm.registry._DEFAULT", [])
    before = rules.check
    yield
    assert rules.check is before


def told(mine: Path, runner: str, name: str) -> str:
    """Run a plugin the way a command does; return what that says of it."""
    machine, spec = bundled("qemu-512m"), f"{mine}:{name}"
    if runner == "scenario":
        return str(Scenario.of(machine, spec, "native").run().verdict)
    if runner == "diff":
        return compared(Pair("incremental", spec, "native"), machine).refused
    if runner == "sweep":
        return swept(machine, spec, "native", default_registry()).verdict
    quarry = Quarry(spec, "native", "ok", machines=(machine,))
    if runner == "hunt":
        result = run_batch(quarry, 0, -1)
        assert (result.found is None) == (result.errors > 0)
        return result.error
    return str(quarry.judge(machine)[1])  # while what was found is made smaller


@pytest.mark.parametrize("runner", ["scenario", "diff", "sweep", "hunt", "shrink"])
def test_it_is_found_and_put_back(mine: Path, runner: str) -> None:
    said = told(mine, runner, "Patches")
    assert "error" in said or runner == "diff"
    assert SAID in said or runner == "shrink"
    assert SAID not in told(mine, runner, "Good")


def test_what_changed_before_is_nobodys_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    with unchanged() as touched:
        pass
    monkeypatch.setattr(rules, "check", lambda trace: [])
    mine = rules.check
    with unchanged() as touched:
        pass
    assert (touched, rules.check) == ([], mine)
    monkeypatch.undo()
    with unchanged() as touched:
        rules.check = mine
    assert touched == ["paravirt_mm.invariants.rules.check"]


def test_who_draws_at_random_is_not_made_repeatable() -> None:
    before = random.getstate()
    with unchanged(dice=False):
        random.random()
    assert random.getstate() != before
    before = random.getstate()
    with unchanged():
        random.random()
    assert random.getstate() == before


def test_a_class_in_a_file_offers_no_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import attrs\nfrom paravirt_mm_xen import Xen\n@attrs.frozen\nclass Mine(Xen):\n    pass\n"
    )
    registry = Registry.discover()
    before = default_specs("backend", registry)
    registry.get(f"{path}:Mine", "backend")
    assert default_specs("backend", registry) == before


class _Contrary:
    """Refuses to be compared."""

    def __eq__(self, other: object) -> bool:
        raise TypeError("no")

    __hash__ = None  # type: ignore[assignment]  # as for a class that compares


def test_a_value_that_refuses_comparison_is_another() -> None:
    before = rules.check
    with unchanged() as touched:
        rules.check = _Contrary()  # type: ignore[assignment]  # that is the point
    assert touched == ["paravirt_mm.invariants.rules.check"]
    assert rules.check is before
