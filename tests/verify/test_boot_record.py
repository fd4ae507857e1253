"""The documented form of a boot's record: every record that the project carries has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from paravirt_mm.verify.linux.qemu.record import FORMAT

ROOT = Path(__file__).parents[2]
SCHEMA: dict[str, Any] = json.loads((ROOT / "docs" / "boot-record.schema.json").read_text())
FILES = sorted((ROOT / "tests" / "data" / "linux_live").glob("*.jsonl"))


def test_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["format"]["const"] == FORMAT


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_records_have_the_form(file: Path) -> None:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    for line in file.read_text().splitlines():
        validator.validate(json.loads(line))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_shortest_record_has_the_form(file: Path) -> None:
    shortest = min(file.read_text().splitlines(), key=len)
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(shortest))


def test_five_releases_are_recorded() -> None:
    releases = {tuple(file.stem.split("-")[1].split("+")[0].split(".")[:2]) for file in FILES}
    assert releases >= {("5", "10"), ("6", "1"), ("6", "12"), ("7", "2"), ("7", "3")}


@pytest.mark.parametrize(
    "change",
    [
        {"levels": 3},
        {"steps": [{"start": 0, "end": 1}]},
        {"tables": [[1, 2]]},
        {"format": "paravirt-mm-boot-2"},
        {"what": 1},
        {"tables_sha256": "?"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_has_another_form_is_refused(change: dict[str, Any]) -> None:
    record = {**json.loads(FILES[0].read_text().splitlines()[0]), **change}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(record, SCHEMA)
