"""The data file that says how far each model is verified, and how it is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paravirt_mm import InputError, ParavirtMmError, SpecError, default_registry, evidence as module
from paravirt_mm.evidence import DATA_FILE, Evidence, canonical, record, series, verified


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
    assert verified("legacy_linear:kernel=3.2") == "logs 1/1"
    # A proposal that was never merged as it stood, and a patch that was never applied.
    assert verified("incremental:variant=hpa") == "not"
    assert verified("legacy_linear:kernel=3.6,good_end=end") == "not"
    with pytest.raises(SpecError):
        verified("legacy_linear:kernel=9.9")


def test_evidence_of_one_kind_replaces_that_kind_only(tmp_path: Path) -> None:
    path = tmp_path / "verified.json"
    record(path, "logs", [Evidence("legacy_linear:kernel=3.2.1", 1, 1)])
    record(path, "oracle", [Evidence("legacy_linear", 1, 1), Evidence("legacy_linear", 0, 1)])
    record(path, "logs", [Evidence("legacy_linear:kernel=3.4", 2, 3)])
    assert json.loads(path.read_text()) == {
        "oracle": {"legacy_linear:kernel=3.6": [1, 2]},
        "logs": {"legacy_linear:kernel=3.4": [2, 3]},
    }


def test_wrong_kinds_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParavirtMmError, match="is no kind of evidence"):
        record(tmp_path / "x.json", "hearsay", [])
    with pytest.raises(InputError, match="cannot be written"):
        record(tmp_path / "no" / "x.json", "logs", [])
    for text in ("[]", "{", '{"logs": {"legacy_linear:kernel=3.6": "much"}}', '{"logs": 1}'):
        path = tmp_path / f"{len(text)}.json"
        path.write_text(text)
        monkeypatch.setattr(module, "DATA_FILE", path)
        with pytest.raises(InputError, match="not a file of evidence"):
            verified("legacy_linear")
    monkeypatch.setattr(module, "DATA_FILE", tmp_path / "none.json")
    assert verified("legacy_linear") == "not"


def test_the_committed_file_is_written_as_record_writes_it() -> None:
    text = DATA_FILE.read_text(encoding="utf-8")
    assert text == module._dumped(json.loads(text))
    assert list(json.loads(text)) == [kind for kind in ("oracle", "logs", "live") if kind in text]
