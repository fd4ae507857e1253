"""Whatever machine a reader lets through, no model of the package is to blame for it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent)]

from edges import ALLOCATORS, BACKENDS, edge_machine, pair, unanswered  # noqa: E402

from paravirt_mm.errors import InputError  # noqa: E402
from paravirt_mm.registry import default_registry  # noqa: E402
from paravirt_mm.scenario import Scenario  # noqa: E402
from paravirt_mm.sources.generated import Seeded  # noqa: E402
from paravirt_mm.sources.machine_file import write_toml  # noqa: E402
from paravirt_mm.sources.possible import checked  # noqa: E402


@pytest.mark.parametrize("seed", range(4))
def test_every_machine_that_is_let_through_has_a_verdict(seed: int) -> None:
    """``python tests/fuzz/fuzz.py --target edges`` tries as many as there is time for."""
    let_through = 0
    for number in range(120):
        choose = Seeded(f"edge {seed} {number}")
        try:
            machine = checked(edge_machine(choose), "edge")
        except InputError:
            continue
        let_through += 1
        for _ in range(3):
            allocator, backend = pair(choose, machine)
            run = Scenario.of(machine, allocator, backend).run()
            assert run.figures is not None
            wrong = unanswered(run)
            assert not wrong, f"{allocator} under {backend}: {wrong}\n{write_toml(machine)}"
    assert let_through > 30


def test_every_plugin_that_models_something_takes_part() -> None:
    """Real kernels take minutes."""
    for role, specs in (("allocator", ALLOCATORS), ("backend", BACKENDS)):
        named = {spec.split(":")[0] for spec in specs}
        assert named == {plugin.name for plugin in default_registry().of_role(role)} - {"linux"}
