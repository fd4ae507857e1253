"""The data file that says how far each model is verified, and how it is read."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest
from click.testing import CliRunner

from paravirt_mm import (
    InputError,
    ParavirtMmError,
    SpecError,
    default_registry,
    default_specs,
    evidence as module,
)
from paravirt_mm.cli.main import cli
from paravirt_mm.evidence import (
    EVIDENCE_FILE,
    KINDS,
    Evidence,
    canonical,
    known_specs,
    record_evidence,
    recorded,
    series,
    verified,
)
from paravirt_mm.offers import default_spec
from paravirt_mm.testing import AscendingAllocator, registry_with


@pytest.mark.parametrize(
    ("spec", "key"),
    [
        ("legacy_linear", "legacy_linear:kernel=3.6"),
        ("legacy_linear:kernel=3.6.11", "legacy_linear:kernel=3.6"),
        ("legacy_linear:kernel=2.6.38.8", "legacy_linear:kernel=2.6.38"),
        ("legacy_linear:guess=pieces,kernel=3.2", "legacy_linear:guess=pieces,kernel=3.2"),
        ("legacy_linear:kernel=3.2,guess=pieces", "legacy_linear:guess=pieces,kernel=3.2"),
        ("legacy_linear:kernel=3.2,fixmap_entries=500", "legacy_linear:kernel=3.2"),
        ("incremental:variant=linux,kernel=5.4.17,kaslr=yes", "incremental:kernel=5.4"),
        ("incremental:brk_pages=12", "incremental:kernel=4.19"),
        ("incremental:variant=hpa", "incremental:kernel=4.19,variant=hpa"),
        ("incremental:movable_node=on", "incremental:kernel=4.19,movable_node=yes"),
    ],
)
def test_specs_that_mean_one_model(spec: str, key: str) -> None:
    assert canonical(spec, default_registry()) == key


def test_series() -> None:
    assert [series(release) for release in ("2.6.38.8", "2.6.38", "3.6.11", "4.19")] == [
        "2.6.38",
        "2.6.38",
        "3.6",
        "4.19",
    ]


def test_what_the_package_says_of_its_models() -> None:
    assert verified("legacy_linear:kernel=3.6").startswith("oracle 400/400")
    assert verified("incremental:variant=linux,kernel=4.19").startswith("oracle 400/400, logs ")
    # A patch that was never applied, and that nobody was asked about.
    assert verified("legacy_linear:kernel=3.6,good_end=end") == "not"
    with pytest.raises(SpecError):
        verified("legacy_linear:kernel=9.9")


@pytest.mark.parametrize("spec", ["incremental:variant=hpa", "chunk_end"])
def test_designs_that_no_kernel_has_are_judged_by_xen_and_a_cpu(spec: str) -> None:
    told = dict(part.split(" ") for part in verified(spec).split(", "))
    assert set(told) == {"xen", "model", "cpu"}
    for agree, compared in (text.split("/") for text in told.values()):
        assert int(agree) == int(compared) > 0


def test_nobody_who_is_compared_by_default_is_told_as_unchecked() -> None:
    assert "not" not in {verified(spec) for spec in default_specs("allocator")}
    assert verified("xen").startswith("operations ")


def test_commands_that_take_one_take_what_was_merged_on_bare_metal() -> None:
    assert default_spec("allocator") == "incremental:variant=linux,kernel=4.19"
    assert default_spec("backend") == "native"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of evidence that stands for the package's."""
    path = tmp_path / "verified.json"
    monkeypatch.setattr(module, "EVIDENCE_FILE", path)
    return path


def test_a_release_is_told_what_was_said_of_its_era(kept: Path) -> None:
    seen = [
        Evidence("incremental:kernel=4.9", 2, 2),
        Evidence("incremental:kernel=4.15", 11, 12),
        Evidence("incremental:kernel=4.4", 5, 5),  # another era
        Evidence("incremental:kernel=4.10,movable_node=yes", 7, 7),  # another way
    ]
    record_evidence(kept, "logs", seen)
    assert verified("incremental:kernel=4.18") == "as 4.9 to 4.15: logs 13/14"
    assert verified("incremental:kernel=4.15.3") == "logs 11/12"
    assert verified("incremental:kernel=4.5") == "as 4.4: logs 5/5"
    assert verified("incremental:kernel=4.19") == "not"
    record_evidence(kept, "cpu", [Evidence("incremental:kernel=4.18", 3, 3)])
    assert verified("incremental:kernel=4.18") == "cpu 3/3; as 4.9 to 4.15: logs 13/14"


def test_eras_of_both_widths_count(kept: Path) -> None:
    record_evidence(kept, "logs", [Evidence("legacy_linear:kernel=3.6", 1, 1)])
    assert verified("legacy_linear:kernel=2.6.19") == "not"
    assert verified("legacy_linear:kernel=3.5") == "as 3.6: logs 1/1"
    assert verified("legacy_linear:kernel=3.7") == "not"


def test_plugins_without_eras_and_releases(kept: Path) -> None:
    record_evidence(kept, "operations", [Evidence("xen", 9, 9)])
    assert verified("xen") == "operations 9/9"
    assert verified("native") == "not"


def test_what_plugins_are_said_to_be_that_are_not_there_hinders_nobody(kept: Path) -> None:
    kept.write_text('{"logs": {"gone:kernel=3.6": [1, 1], "legacy_linear:kernel=3.6": [2, 2]}}')
    assert verified("legacy_linear:kernel=3.5") == "as 3.6: logs 2/2"
    assert known_specs() == ["gone:kernel=3.6", "legacy_linear:kernel=3.6"]
    assert recorded("gone") == {"gone:kernel=3.6": "logs 1/1"}


def test_what_is_recorded_is_in_order(kept: Path) -> None:
    """Kinds as they are told, specs by name; what there is of one plugin is told by spec."""
    record_evidence(kept, "cpu", [Evidence("xen", 1, 1), Evidence("native", 2, 2)])
    record_evidence(kept, "logs", [Evidence("native", 3, 4)])
    content = json.loads(kept.read_text())
    assert {kind: list(specs) for kind, specs in content.items()} == {
        "logs": ["native"],
        "cpu": ["native", "xen"],
    }
    assert list(content) == ["logs", "cpu"]
    assert known_specs() == ["native", "xen"]
    assert recorded("native") == {"native": "logs 3/4, cpu 2/2"}


def test_options_of_a_model_are_told_as_they_are_written(kept: Path) -> None:
    @attrs.frozen
    class Model(AscendingAllocator):
        size: int = 7
        kernel: str | None = None
        odd: bool = True

    registry = registry_with(installed=False, model=Model)
    for spec, key in (
        ("model", "model"),
        ("model:size=1", "model:size=1"),
        ("model:odd=no,kernel=6.1.5", "model:kernel=6.1,odd=no"),
        ("model:kernel=none", "model"),
    ):
        assert canonical(spec, registry) == key
    record_evidence(kept, "logs", [Evidence("model:kernel=6.1", 1, 1)], registry)
    assert verified("model:kernel=6.1.7", registry) == "logs 1/1"
    assert verified("model:kernel=6.2", registry) == "not"  # of eras it says nothing


def test_evidence_of_one_kind_replaces_that_kind_only(tmp_path: Path) -> None:
    path = tmp_path / "verified.json"
    record_evidence(path, "logs", [Evidence("legacy_linear:kernel=3.2.1", 1, 1)])
    record_evidence(
        path, "oracle", [Evidence("legacy_linear", 1, 1), Evidence("legacy_linear", 0, 1)]
    )
    record_evidence(path, "logs", [Evidence("legacy_linear:kernel=3.4", 2, 3)])
    assert json.loads(path.read_text()) == {
        "oracle": {"legacy_linear:kernel=3.6": [1, 2]},
        "logs": {"legacy_linear:kernel=3.4": [2, 3]},
    }


@pytest.mark.slow
def test_what_a_cpu_walked_is_recorded_by_allocator(tmp_path: Path) -> None:
    path = tmp_path / "verified.json"
    asked = ["verify", "cpu", "qemu-512m", "--no-la57", "--samples", "0", "-a", "chunk_end"]
    done = CliRunner().invoke(cli, [*asked, "--record", str(path)], standalone_mode=False)
    assert done.return_value == 0, done.output
    # Native and under Xen.
    assert json.loads(path.read_text()) == {"cpu": {"chunk_end": [2, 2]}}


DEEP = "[" * 100_000


def test_wrong_kinds_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParavirtMmError, match="is no kind of evidence"):
        record_evidence(tmp_path / "x.json", "hearsay", [])
    with pytest.raises(InputError, match="cannot be written"):
        record_evidence(tmp_path / "no" / "x.json", "logs", [])
    for text in ("[]", "{", '{"logs": {"legacy_linear:kernel=3.6": "much"}}', '{"logs": 1}', DEEP):
        path = tmp_path / f"{len(text)}.json"
        path.write_text(text)
        monkeypatch.setattr(module, "EVIDENCE_FILE", path)
        with pytest.raises(InputError, match="not a file of evidence"):
            verified("legacy_linear")
    monkeypatch.setattr(module, "EVIDENCE_FILE", tmp_path / "none.json")
    assert verified("legacy_linear") == "not"


def test_the_committed_file_is_written_as_record_writes_it() -> None:
    text = EVIDENCE_FILE.read_text(encoding="utf-8")
    assert text == module._dumped(json.loads(text))
    assert list(json.loads(text)) == list(KINDS)
