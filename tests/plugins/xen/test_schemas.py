"""The schemas in docs say what the readers accept: traces, and recordings of a dom0."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from paravirt_mm import InputError
from paravirt_mm_xen.dom0.recording import COMMANDS, Dom0Recording, Request
from paravirt_mm_xen.traces.files import TraceReader, read_traces
from paravirt_mm_xen.traces.schema import schema

ROOT = Path(__file__).parents[3]
SCHEMAS = ROOT / "docs"
DATA = ROOT / "tests/data/xen"


@cache
def validator(name: str) -> Any:
    found = json.loads((SCHEMAS / name).read_text())
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


def test_the_schema_of_traces_is_made_from_the_shapes_of_operations() -> None:
    assert json.loads((SCHEMAS / "xen-trace.schema.json").read_text()) == schema()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["xen-4.14.6.jsonl.xz", "xen-4.17.7-wide.jsonl.xz"])
def test_recorded_traces_are_valid(name: str) -> None:
    check = validator("xen-trace.schema.json")
    for recorded in list(read_traces(DATA / name))[::40]:
        line = recorded.trace.to_json(recorded.answers, recorded.hypervisor)
        assert not list(check.iter_errors(json.loads(line)))


@pytest.mark.parametrize(
    "changes",
    [
        {"pages": 0},
        {"pages": "4"},
        {"xen": 4},
        {"rc": [0.5]},
        {"rc": [1 << 63]},
        {"ops": [["fly", 1]]},
        {"ops": [["pin", 5, 1]]},
        {"ops": [["pin", 1]]},
        {"ops": [["pin", 1, 1, 1]]},
        {"ops": [["mmu_update", 0, 0, 0, 0, 1]]},
        {"ops": [["mmu_update_device", 0, 0, "floppy", 1]]},
        {"ops": [["multicall", []]]},
        {"ops": [["mmuext_batch", [["type", 0]]]]},
        {"ops": [["mmu_update_batch", [[0, 512, 0, 0, False]]]]},
    ],
    ids=str,
)
def test_the_schema_refuses_what_the_reader_refuses(changes: dict[str, Any]) -> None:
    good = {"id": "t", "pages": 4, "ops": [["pin", 1, 1]], "rc": [0]}
    check = validator("xen-trace.schema.json")
    assert check.is_valid(good)
    TraceReader().read(json.dumps(good).encode(), "here")
    assert not check.is_valid(good | changes)
    with pytest.raises(InputError):
        TraceReader().read(json.dumps(good | changes).encode(), "here")


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(DATA.glob("dom0-*.json.xz")), ids=lambda path: path.name)
def test_recordings_of_a_dom0_are_valid(path: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.json"
    Dom0Recording.load(path).save(plain)
    record = json.loads(plain.read_text())
    rows = max(
        (name for name in record if isinstance(record[name], list)), key=lambda n: len(record[n])
    )
    assert len(record[rows]) > 1000
    record[rows] = record[rows][::20]
    assert not list(validator("xen-dom0.schema.json").iter_errors(record))


@pytest.mark.parametrize(
    "row",
    [
        ["mmuext_op", 0, "PIN_L1_TABLE"],
        ["mmuext_op", 0, 1, 2],
        ["mmu_update", 0, -2, 0, 1, 1, 1],
        ["update_va_mapping", 0, 1, 2],
        ["update_va_mapping", 0, 1 << 64, 2, 3],
        ["type", 0],
        [],
    ],
    ids=str,
)
def test_the_schema_refuses_calls_that_the_reader_refuses(row: list[Any]) -> None:
    record = {"format": "paravirt-mm dom0 1", "kernel": "k", "xen": "4", "host_mib": 1}
    record |= {"dom0_mib": 1, "image": [0] * 5, "log": [], "begin": 0, "calls": []}
    check = validator("xen-dom0.schema.json")
    good = ["mmuext_op", 0, COMMANDS[0], 5]
    assert Request.of_row(good).as_row() == good
    assert check.is_valid(record | {"calls": [good]})
    assert not check.is_valid(record | {"calls": [row]})
    with pytest.raises(InputError):
        Request.of_row(row)
