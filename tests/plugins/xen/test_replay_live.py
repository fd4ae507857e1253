"""Whole runs on real Xen. Skipped, saying why, where a piece is missing.

With ``PARAVIRT_MM_XEN`` set, as in CI, a missing piece is a failure.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import attrs
import pytest

from paravirt_mm import Scenario
from paravirt_mm_xen.live import ENVIRONMENT, LiveXen, MissingPieceError, find_pieces
from paravirt_mm_xen.replay import replay
from paravirt_mm_xen.translate import translate
from paravirt_mm_xen.verify import ALLOCATORS, guest_machine, run_all

from .wrong import WRONG, run_wrong

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def live() -> Iterator[LiveXen]:
    try:
        find_pieces()
    except MissingPieceError as error:
        if ENVIRONMENT in os.environ:
            raise
        pytest.skip(str(error))
    with LiveXen.open() as session:
        yield session


# At 64 MiB the command does it, in test_replay_command.
@pytest.mark.parametrize("mib", [256, pytest.param(512, marks=pytest.mark.full)])
@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_real_xen_accepts_every_operation_of_a_run(live: LiveXen, allocator: str, mib: int) -> None:
    """The new tree is loaded in the end, and what was built is seen through it."""
    (result,) = run_all([mib], [allocator], live)
    assert result.ok, result.line()
    assert result.asked_xen
    assert result.operations > 256 * mib


def test_real_xen_refuses_what_is_wrong_where_the_model_does(live: LiveXen) -> None:
    found = {name: translate(run_wrong(wrong).trace, probes=False) for name, wrong in WRONG.items()}
    answers = live.replay([one.trace for one in found.values()])
    for (name, one), real in zip(found.items(), answers, strict=True):
        model = replay(one)
        refused = one.refused(real)
        assert refused is not None, name
        assert refused == model.refused, name
        assert refused.errno == WRONG[name].code, name
        assert model.answers == real, name


def test_a_writable_table_of_the_old_tree_is_refused_in_the_new_one(live: LiveXen) -> None:
    """The kernel image of a new tree must show the static tables of the old one read-only."""
    run = Scenario.of(guest_machine(64), "incremental:variant=hpa", "xen").run()
    found = translate(run.trace, probes=False)
    low, high = run.trace.start.boot.boot_tables[1]
    hole = 96
    number = next(
        n
        for n, op in enumerate(found.trace.ops)
        if n >= found.begin and op[0] == "store" and low <= (op[3] + hole) << 12 < high
    )
    ops = list(found.trace.ops)
    ops[number] = (*ops[number][:4], 0x67)
    changed = attrs.evolve(found, trace=attrs.evolve(found.trace, ops=tuple(ops)))
    (real,) = live.replay([changed.trace])
    refused = changed.refused(real)
    assert refused is not None
    assert refused.errno == -16
    assert refused == replay(changed).refused
