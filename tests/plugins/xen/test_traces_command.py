"""``verify xen FILE...``: lines, summary, JSON, exit codes."""

from __future__ import annotations

import io
import json
import sys
import time
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import attrs
import click
import pytest
from click.testing import CliRunner, Result

from paravirt_mm import SpecError
from paravirt_mm.cli.main import cli
from paravirt_mm_xen.mmu.releases import RELEASES
from paravirt_mm_xen.traces import recorded
from paravirt_mm_xen.traces.files import read_traces, write_traces
from paravirt_mm_xen.traces.format import OperationTrace, RecordedTrace
from paravirt_mm_xen.traces.guest import Difference
from paravirt_mm_xen.traces.words import answer_in_words, words

DATA = Path(__file__).parents[3] / "tests/data/xen"
SAMPLE = DATA / "xen-4.17.7-sample.jsonl.xz"


def verify(*arguments: str | Path) -> tuple[int, Result]:
    """Exit code, and what was printed."""
    result = CliRunner().invoke(cli, ["verify", "xen", *map(str, arguments)], standalone_mode=False)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return int(result.return_value), result


def write(tmp_path: Path, *answers: int, name: str = "t") -> Path:
    path = tmp_path / "one.jsonl"
    operations = [["pin", 1, 3], ["update_va_mapping", 3, 3, 101], ["pin", 1, 3], ["type", 3]]
    path.write_text(json.dumps({"id": name, "pages": 4, "ops": operations, "rc": answers}))
    return path


@pytest.mark.slow
def test_all_agree() -> None:
    code, result = verify(str(SAMPLE))
    assert code == 0
    assert len(result.stdout.splitlines()) == 1
    assert "all agree" in result.stdout
    assert "operations a CPU second" in result.stdout


@pytest.mark.slow
def test_a_line_for_each_trace_that_differs(tmp_path: Path) -> None:
    path = write(tmp_path, -22, 0, -16, 9)
    code, result = verify(str(SAMPLE), str(path))
    assert code == 1
    first, last = result.stdout.splitlines()
    assert first == (
        f"{path}: t: operation 2, MMUEXT_PIN_L1_TABLE page 3: hypervisor -16 EBUSY, model 0"
    )
    assert "1 traces differ" in last


def test_json(tmp_path: Path) -> None:
    path = write(tmp_path, -22, 0, 0, 1)
    code, result = verify("--json", str(path))
    assert code == 1
    assert set(json.loads(result.stdout)) == {"agree", "files"}
    report = json.loads(result.stdout)["files"]
    assert (report["traces"], report["operations"], report["agree"]) == (1, 4, False)
    assert report["release"] == "4.17"
    assert report["differences"] == [
        {
            "file": str(path),
            "trace": "t",
            "number": 3,
            "operation": ["type", 3],
            "hypervisor": 1,
            "model": 9,
        }
    ]


def test_a_result_begins_with_nothing() -> None:
    empty = recorded.FilesResult()
    assert empty.agrees
    assert empty.as_dict() == {
        "release": "", "traces": 0, "operations": 0, "differing_traces": 0, "agree": True,
        "cpu_seconds": 0, "operations_per_second": 0, "operations_per_second_model": 0,
        "differences": [], "errors": [],
    }  # fmt: skip
    assert recorded.FilesResult(seconds=1.23449).as_dict()["cpu_seconds"] == 1.234
    assert recorded.summary_line(empty) == (
        "model of Xen 4.17: 0 operations in 0 traces: nothing compared"
        " (0 operations a CPU second in the model, 0 with reading)"
    )


def test_rates_are_operations_a_second_of_each_kind(tmp_path: Path) -> None:
    path = write(tmp_path, -22, 0, 0, 9)
    path.write_text((path.read_text() + "\n") * 50)
    begun = time.monotonic()
    found = recorded.verify([path])
    assert 0 <= found.replay_seconds <= found.seconds < time.monotonic() - begun
    half = attrs.evolve(found, replay_seconds=0.25, seconds=0.5)
    assert half.as_dict()["operations_per_second_model"] == 800
    assert half.as_dict()["operations_per_second"] == 400
    assert half.as_dict()["cpu_seconds"] == 0.5


def test_progress_is_shown_five_times_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, -22, 0, 0, 9)
    path.write_text((path.read_text() + "\n") * 7)
    clock = count(0, 0.125)  # each look at it takes an eighth of a second
    fake = SimpleNamespace(monotonic=lambda: next(clock), process_time=time.process_time)
    monkeypatch.setattr(recorded, "time", fake)
    for told, lines in ((True, [2, 4, 6]), (False, None)):
        shown = io.StringIO()
        monkeypatch.setattr(sys, "__stderr__", shown)
        recorded.verify([path], progress=told)
        assert shown.getvalue().split("\r\x1b[K") == (
            [""]
            if lines is None
            else ["", *(f"one.jsonl: {n} traces, {4 * n} operations" for n in lines), ""]
        )


def test_a_recording_of_an_unknown_hypervisor_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text('{"id": "t", "xen": "3.4.1", "pages": 1, "ops": [], "rc": []}\n')
    code, result = verify(path)
    assert code == 3
    assert "t: no model of Xen '3.4.1'" in result.stderr
    code, result = verify("--release", "4.14.2", path)
    assert (code, result.stderr) == (0, "")


def test_bad_input_does_not_hide_other_files(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    good = write(tmp_path, -22, 0, 0, 9)
    code, result = verify(str(tmp_path / "none"), str(empty), str(good))
    assert code == 3
    assert "4 operations in 1 traces: all agree" in result.stdout
    assert "none: cannot be read" in result.stderr
    assert "empty.jsonl: holds no trace" in result.stderr


def test_usage() -> None:
    with pytest.raises(click.UsageError, match="at least one FILE"):
        verify()
    with pytest.raises(click.UsageError, match="is a directory"):
        verify(DATA)
    with pytest.raises(SpecError, match=r"no model of Xen '2.0'; there are 4.14"):
        verify("--release", "2.0", SAMPLE)
    result = CliRunner().invoke(cli, ["verify", "xen", "--help"])
    assert "Exit code: 0 all agree" in result.stdout


@pytest.mark.slow
def test_another_release(tmp_path: Path) -> None:
    code, result = verify("--release", "ideal", str(SAMPLE))
    assert code == 1
    assert "model of Xen ideal" in result.stdout
    assert "never replayed on a real hypervisor" in result.stderr


def test_names_from_files_cannot_move_the_cursor(tmp_path: Path) -> None:
    path = write(tmp_path, 1, 1, 1, 1, name="\x1b[2J\x07")
    _, result = verify(path)
    assert "\x1b" not in result.stdout
    assert "\\x1b[2J\\x07" in result.stdout


@pytest.mark.parametrize(
    ("name", "answer", "text"),
    [
        ("pin", 0, "0"),
        ("pin", -22, "-22 EINVAL"),
        ("write", -114003, "#PF error code 3"),
        ("probe", -113000, "#GP error code 0"),
        ("mmu_update_batch", -3016, "-16 EBUSY after 3 done"),
        ("mmu_update_batch", -1001, "-1 EPERM after 1 done"),
        ("mmu_update_batch", -99_022, "-22 EINVAL after 99 done"),
        ("probe", -100_000, "vector 0 error code 0"),
        ("write", -77777, "not tried (the guest would have cut itself off)"),
        ("type", 12, "type 12"),
        ("read", 0x3067, "0x3067"),
        ("pin", -7, "-7"),
    ],
)
def test_answers_in_words(name: str, answer: int, text: str) -> None:
    assert answer_in_words(name, answer) == text


def test_a_difference_in_one_line() -> None:
    trace = OperationTrace("t", 4, (("unpin", 1), ("type", 2)))
    found = Difference(RecordedTrace(trace, (-22, 9)), 1, 1)
    assert recorded.difference_line(Path("a.jsonl"), found) == (
        "a.jsonl: t: operation 1, XEN_DOMCTL_getpageframeinfo3 page 2: "
        "hypervisor type 9, model type 1"
    )


def test_operations_in_words() -> None:
    assert words(("mmu_update", 1, 2, 3, 0x67, True)) == (
        "mmu_update page 1 entry 2 := page 3 flags 0x67 preserve A/D True"
    )
    assert words(("tlb_flush", "all")) == '["tlb_flush", "all"]'


@pytest.mark.parametrize(("name", "magic"), [("a.jsonl", b"{"), ("a.jsonl.xz", b"\xfd7zXZ\0")])
def test_files_are_compressed_by_their_names(tmp_path: Path, name: str, magic: bytes) -> None:
    path = tmp_path / name
    trace = OperationTrace("t", 1, (("type", 0),))
    with write_traces(path) as file:
        file.write(trace.to_json([0]) + "\n")
    assert path.read_bytes().startswith(magic)
    assert [found.trace for found in read_traces(path)] == [trace]


def test_results_add_up() -> None:
    found = recorded.FilesResult()
    for release, operations in (
        (RELEASES["4.17"], 5),
        (RELEASES["4.14"], 7),
        (RELEASES["4.17"], 1),
    ):
        found.add(Path("f"), recorded._Replayed(release, operations, None, 0.25, 0.75))
    assert (found.traces, found.operations, found.modelled) == (3, 13, "4.17, 4.14")
    assert (found.replay_seconds, found.seconds, found.agrees) == (0.75, 2.25, True)
