"""Machines, formats and words that plugins bring: whose they are, and what happens to odd ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest

from paravirt_mm import offers
from paravirt_mm.errors import InputError, PluginError
from paravirt_mm.evidence import MAX_BYTES, _parsed, _run
from paravirt_mm.options import expected
from paravirt_mm.sources import bundled
from paravirt_mm.testing import registry_with
from tests.registry.answers import answering, small

LAB = answering("pvmm_machines", lambda: [small("lab"), small("qemu-512m")])
"""Brings machines, one of them under a name that is taken."""


def test_the_first_to_use_a_name_has_it_and_the_package_before_all() -> None:
    later = answering("pvmm_machines", lambda: [small("lab"), small("mine")])
    registry = registry_with(lab_a=LAB, lab_b=later)
    assert set(offers.machines(registry)) == {"lab", "mine"}
    problems = [(one.name, one.problem) for one in registry.broken if one.name.startswith("lab")]
    assert problems == [
        ("lab_a", "pvmm_machines: 'qemu-512m' is taken"),
        ("lab_b", "pvmm_machines: 'lab' is taken"),
    ]  # fmt: skip


def test_files_and_the_package_come_before_what_plugins_bring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = registry_with(
        lab=answering("pvmm_machines", lambda: [small("lab"), small("-"), small("qemu-512m")])
    )
    monkeypatch.chdir(tmp_path)
    assert offers.brought_machine("lab", registry) == small("lab")
    assert offers.brought_machine("qemu-512m", registry) is None
    assert offers.brought_machine("-", registry) is None
    assert offers.brought_machine("none", registry) is None
    (tmp_path / "lab").write_text("a file of that name")
    assert offers.brought_machine("lab", registry) is None
    assert offers.load("qemu-512m") == bundled("qemu-512m")


def test_a_format_that_fails_is_its_plugins_fault() -> None:
    brought = {"good": lambda rows: f"{len(rows)}", "wrong": len, "odd": lambda rows: rows[7]}
    forms = answering("pvmm_report_formats", lambda: brought)
    found = offers.formats(registry_with(forms=forms))
    assert found["good"]([{}, {}]) == "2"
    with pytest.raises(PluginError, match=r"format wrong gave 0, not text"):
        found["wrong"]([])
    with pytest.raises(PluginError, match=r"format odd raised IndexError"):
        found["odd"]([])


def test_annotated_types_are_told_by_what_they_annotate() -> None:
    assert expected(Annotated[int, "even"]) == expected(int)
    assert expected(int) != expected(str)


def test_releases_in_a_row() -> None:
    assert [_run(["4.9"]), _run(["4.9", "4.14"]), _run(["4.9", "4.14", "5.4"])] == [
        "4.9", "4.9 to 4.14", "4.9 to 5.4",
    ]  # fmt: skip


def test_a_file_of_evidence_may_be_as_long_as_the_limit(tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text('{"oracle": {"a": [1, 2, 3]}, "else": 7}'.ljust(MAX_BYTES))
    bad.write_text("{}".ljust(MAX_BYTES + 1))
    assert _parsed(good) == {"oracle": {"a": (1, 2)}}
    with pytest.raises(InputError, match="longer than 1 MiB"):
        _parsed(bad)
