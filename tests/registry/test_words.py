"""Small things that all of it stands on: what is shown of texts, exit codes, what findings and
figures of plugins may be.
"""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import attrs
import pytest

from paravirt_mm import contract
from paravirt_mm.about import DefaultSpec, OpenQuestion
from paravirt_mm.engine.contract import ContractBroken
from paravirt_mm.errors import (
    ExitCode,
    InputError,
    ParavirtMmError,
    PluginError,
    Rejected,
    SpecError,
    install,
)
from paravirt_mm.invariants.rules import Finding
from paravirt_mm.printable import MAX_SHOWN, printable
from paravirt_mm.run import Outcome, Verdict
from paravirt_mm.scenario import Scenario
from paravirt_mm.sources import bundled


@pytest.mark.parametrize(
    ("text", "limit", "shown"),
    [
        ("plain é ☺", 9, "plain é ☺"),
        ("plain é ☺!", 9, "plain é …"),
        ("a\tb", 9, "a b"),
        ("a\nb\x1b", 9, "a\\nb\\x1b"),
        ("", 9, ""),
        ("x" * 1000, MAX_SHOWN, "x" * 1000),
        ("x" * 1001, MAX_SHOWN, "x" * 999 + "…"),
    ],
)
def test_texts_of_others_are_shown_safely(text: str, limit: int, shown: str) -> None:
    assert printable(text, limit) == shown
    if limit == MAX_SHOWN:
        assert printable(text) == shown


def test_of_a_text_without_end_its_beginning_is_shown() -> None:
    assert printable("x" * 10**7) == "x" * 999 + "…"


def test_exit_codes_are_those_of_the_manual() -> None:
    """`paravirt-mm --help` lists them; shells have 128 and the number for signals."""
    assert {one.name: int(one) for one in ExitCode} == {
        "OK": 0, "FINDINGS": 1, "USAGE": 2, "BAD_INPUT": 3, "PLUGIN": 4, "BUG": 70, "SYSTEM": 71,
        "INTERRUPTED": 130,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("error", "text", "fields"),
    [
        (InputError("is empty", "x"), "x: is empty", {"where": "x"}),
        (InputError("is empty"), "is empty", {"where": None}),
        (SpecError("no plugin"), "no plugin", {}),
        (PluginError("x", "fails"), "plugin x: fails", {"plugin": "x"}),
        (Rejected("pin", -22), "pin: -22", {"operation": "pin", "code": -22}),
    ],
)
def test_errors_say_who_or_what_and_can_travel(
    error: ParavirtMmError, text: str, fields: dict[str, Any]
) -> None:
    vars(error)["more"] = 7  # whatever somebody puts there
    for one in (error, pickle.loads(pickle.dumps(error))):  # noqa: S301  # our own
        assert type(one) is type(error)
        assert str(one) == text
        assert vars(one) == {**fields, "more": 7}


def test_an_end_in_one_line() -> None:
    assert str(Verdict(Outcome.OK)) == "ok"
    assert str(Verdict(Outcome.PANIC, "no memory")) == "panic: no memory"


def test_a_run_that_failed_has_no_figures() -> None:
    run = Scenario.of(bundled("qemu-512m"), "incremental", "native").run()
    assert run.figures["tables"] > 0
    assert not run.thorough
    one = Scenario.of(bundled("qemu-512m"), "incremental", "native").run()
    assert one.figure("tables") == run.figures["tables"]
    assert "figures" not in vars(one)  # for one figure the others are not worked out
    assert one.figure("mine.x") is None
    failed = attrs.evolve(run, verdict=Verdict(Outcome.ERROR, "why"))
    assert dict(failed.figures) == {}
    early = attrs.evolve(run, verdict=Verdict(Outcome.PANIC, "why"), extra={"mine.x": 1})
    assert dict(early.figures) == {**run.figures, "mine.x": 1}
    stopped = Scenario.of(bundled("qemu-512m"), "x", "y").stopped("z")
    assert (dict(stopped.figures), stopped.figure("tables"), stopped.thorough) == ({}, None, False)


def test_an_extra_is_installed_from_where_the_package_is(monkeypatch: pytest.MonkeyPatch) -> None:
    top = Path(__file__).parents[2]
    assert install("sweep") == f"pip install -e '{top}[sweep]'"
    monkeypatch.setattr("paravirt_mm.errors._HOME", Path("/usr/lib"))
    assert install("sweep") == "pip install 'paravirt-mm[sweep]'"


def test_a_default_is_behind_those_that_say_more() -> None:
    spec = DefaultSpec("x")
    assert (spec.rank, spec.alone) == (100, False)


@pytest.mark.parametrize(
    ("release", "mode", "open_"),
    [
        ("3.9", "i386", False),
        ("3.10", "i386", True),
        ("3.10.5", "x86_64", True),
        ("3.12", "i386", True),
        ("3.13", "i386", False),
        ("3.12", "i386-pae", False),
    ],
)
def test_a_question_is_open_from_one_release_up_to_another(
    release: str, mode: str, open_: bool
) -> None:
    question = OpenQuestion("3.10", "3.13", ("i386", "x86_64"), ())
    assert question.concerns(release, mode) is open_


# -- figures and findings of plugins ---------------------------------------------------------------

RIGHT: list[Any] = [
    {}, {"x" * 64: 1}, {"x": True}, {"x": (1 << 63) - 1}, {"x": 1 - (1 << 63)}, {"x": 1e308},
    {"x": "y" * 4096}, {f"x{number}": number for number in range(200)},
]  # fmt: skip
WRONG: list[Any] = [
    7, {"x" * 65: 1}, {7: 1}, {"X": 1}, {"x": 1 << 63}, {"x": -1 << 63}, {"x": float("inf")},
    {"x": float("nan")}, {"x": "y" * 4097}, {"x": None}, {"x": [1]},
    {f"x{number}": number for number in range(201)},
]  # fmt: skip


@pytest.mark.parametrize("answer", RIGHT, ids=lambda answer: repr(answer)[:20])
def test_figures_that_are_taken(answer: Any) -> None:
    assert contract.figures(answer) == answer


@pytest.mark.parametrize("answer", WRONG, ids=lambda answer: repr(answer)[:20])
def test_figures_that_are_refused(answer: Any) -> None:
    with pytest.raises(ContractBroken):
        contract.figures(answer)


FOUND = Finding(3, 7, 0x1000, "is wrong")
WORD: Any = "x"
NUMBER: Any = 7


def test_findings_that_are_taken() -> None:
    for answer in ([], [FOUND], (FOUND,), [FOUND] * 10_000):
        assert contract.findings(answer) == contract.findings(iter(answer)) == tuple(answer)


@pytest.mark.parametrize(
    "answer",
    [
        7,
        itertools.repeat(FOUND),  # which has no end
        ["text"],
        [Finding(WORD, 7, 0, "x")],
        [Finding(3, WORD, 0, "x")],
        [Finding(3, 7, WORD, "x")],
        [Finding(3, 7, 0, NUMBER)],
    ],
    ids=lambda answer: repr(answer)[:40],
)
def test_findings_that_are_refused(answer: Any) -> None:
    with pytest.raises(ContractBroken):
        contract.findings(answer)
