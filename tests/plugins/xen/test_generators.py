"""Generators: deterministic, well formed, and of the variety that they promise."""

from __future__ import annotations

import hashlib
import itertools
import json
import lzma
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from paravirt_mm.errors import SpecError
from paravirt_mm_xen.traces.format import SHAPES, OperationTrace, check
from paravirt_mm_xen.traces.generators import GENERATORS, RECORDED_FORMAT, generate, make

RECORDED = {
    "pin", "unpin", "update_va_mapping", "mmu_update", "write",
    "new_baseptr", "boot_baseptr", "copy_kernel_slots", "type", "read",
}  # fmt: skip


def some(name: str, seed: int = 3, operations: int = 6_000) -> list[OperationTrace]:
    return list(generate([name], seed, operations))


@pytest.mark.parametrize("name", GENERATORS)
def test_traces_are_well_formed_and_end_with_every_pages_type(name: str) -> None:
    for trace in some(name):
        assert check(trace) is trace
        assert trace.ops[-trace.pages :] == tuple(("type", page) for page in range(trace.pages))


@pytest.mark.parametrize("name", GENERATORS)
def test_the_seed_decides_everything(name: str) -> None:
    made = some(name, operations=3_000)
    assert made == some(name, operations=3_000)
    assert made[0].ops != next(iter(generate([name], 4, 3_000))).ops
    trace = made[5]
    assert make(name, 3, 5) == trace
    assert trace.name == f"{name}-3-5"


@pytest.mark.slow
def test_another_process_makes_the_same_traces() -> None:
    """String hashing differs from process to process; the traces must not."""
    code = (
        "import hashlib; from paravirt_mm_xen.traces.generators import GENERATORS, generate;"
        "text = ''.join(t.to_json() for t in generate(list(GENERATORS), 9, 3000));"
        "print(hashlib.sha256(text.encode()).hexdigest())"
    )
    text = "".join(trace.to_json() for trace in generate(list(GENERATORS), 9, 3_000))
    other = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{code}"],
        capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "12345"},
    )  # fmt: skip
    assert other.stdout.strip() == hashlib.sha256(text.encode()).hexdigest()


def test_generators_take_turns_until_there_are_enough_operations() -> None:
    traces = list(generate(["trees", "uniform"], 1, 1_000))
    kinds = [trace.name.split("-")[0] for trace in traces]
    assert kinds == list(itertools.islice(itertools.cycle(["trees", "uniform"]), len(kinds)))
    assert sum(len(trace.ops) for trace in traces) >= 1_000
    assert sum(len(trace.ops) for trace in traces[:-1]) < 1_000


def test_exactly_enough_operations_are_enough() -> None:
    sizes = [len(trace.ops) for trace in generate(["trees", "uniform"], 1, 500)]
    for count in (1, 2, 3):
        assert len(list(generate(["trees", "uniform"], 1, sum(sizes[:count])))) == count
        assert len(list(generate(["trees", "uniform"], 1, sum(sizes[:count]) + 1))) == count + 1


def test_generators_stream() -> None:
    assert next(generate(["uniform"], 1, 10**15)).name == "uniform-1-0"


@pytest.mark.parametrize("names", [[], ["uniform", "unifrom"]])
def test_an_unknown_generator_is_refused_at_once(names: list[str]) -> None:
    with pytest.raises(SpecError, match="there are uniform, trees, extended"):
        generate(names, 1, 1)


@pytest.mark.parametrize("name", RECORDED_FORMAT)
def test_the_recorded_format_is_kept_to_and_covered(name: str) -> None:
    assert {operation[0] for trace in some(name) for operation in trace.ops} == RECORDED


def test_extended_covers_every_operation() -> None:
    operations = {op[0] for trace in some("extended", operations=20_000) for op in trace.ops}
    assert operations == set(SHAPES)


def test_trees_pin_and_load_all_levels_and_hit_every_kind_of_entry() -> None:
    operations = Counter(op for trace in some("trees", operations=20_000) for op in trace.ops)
    assert {op[1] for op in operations if op[0] == "pin"} == {1, 2, 3, 4}
    flags = {op[4] for op in operations if op[0] == "mmu_update"}
    assert {0, 0x65, 0x67, 0xE7, 1 << 63 | 0x67} <= flags
    slots = {op[2] for op in operations if op[0] == "mmu_update"}
    assert {0, 1, 255, 256, 271, 272, 511} <= slots


def test_a_trace_that_was_recorded_is_made_again_by_its_name() -> None:
    """A name in a report must go on meaning the same operations."""
    path = Path(__file__).parent / "data/xen-4.17.7-extended.jsonl.xz"
    counts: Counter[str] = Counter()
    with lzma.open(path, "rt") as lines:
        for record in map(json.loads, lines):
            generator, seed, number = record["id"].split("-")
            if generator == "extended" or counts[generator] == 60:
                continue  # there is more in `extended` than there was
            counts[generator] += 1
            made = make(generator, int(seed), int(number))
            assert (made.name, made.pages) == (record["id"], record["pages"])
            assert json.loads(made.to_json())["ops"] == record["ops"]
    assert counts == {"uniform": 60, "trees": 60}


def test_the_traces_that_are_made_do_not_change() -> None:
    text = "".join(make("extended", 417, number).to_json() for number in range(60))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "79ae7c4c906e99e6"
