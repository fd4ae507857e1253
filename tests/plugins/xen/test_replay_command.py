"""``verify xen --live`` and ``--runs``: what is printed, exit codes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from paravirt_mm import InputError, SpecError
from paravirt_mm.cli.main import cli
from paravirt_mm.errors import ExitCode
from paravirt_mm_xen import verify as command
from paravirt_mm_xen.command import xen
from paravirt_mm_xen.live import ENVIRONMENT, MissingPieceError, OperationTrace, find_pieces
from paravirt_mm_xen.mmu.releases import RECORDED
from paravirt_mm_xen.traces.guest import predict
from paravirt_mm_xen.verify import guest_machine, run_all

SAMPLE = Path(__file__).parents[3] / "tests/data/xen/xen-4.17.7-sample.jsonl.xz"


def verify(*arguments: str | Path) -> tuple[int, Result]:
    """Exit code, and what was printed."""
    result = CliRunner().invoke(cli, ["verify", "xen", *map(str, arguments)], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return int(result.return_value), result


def test_runs_on_the_model() -> None:
    code, result = verify("--runs", "--size", "64", "-a", "incremental:variant=hpa")
    assert code == ExitCode.OK
    (line,) = result.stdout.splitlines()
    assert line.startswith(
        "64 MiB, incremental:variant=hpa: 26,598 operations accepted by the model"
    )
    assert "34 mmu_update, 35 update_va_mapping, 35 mmuext_op" in line


def test_runs_as_json() -> None:
    code, result = verify("--runs", "--size", "64", "-a", "legacy_linear:kernel=3.6", "--json")
    assert code == ExitCode.OK
    report = json.loads(result.stdout)
    assert report["agree"] is True
    (run,) = report["runs"]
    assert (run["mib"], run["verdict"], run["ok"], run["xen"]) == (64, "ok", True, False)
    # 12 tables, and 22 pages of the block that are given back.
    assert run["counts"]["update_va_mapping"] == 12 + 22
    assert run["refused"] is None


def test_a_run_that_does_not_come_to_its_end_is_a_finding() -> None:
    code, result = verify("--runs", "--size", "64", "-a", "incremental:variant=hpa,brk_pages=0")
    assert code == ExitCode.FINDINGS
    assert "accepted by the model, but panic" in result.stdout


@pytest.mark.slow
def test_runs_are_recorded_as_the_models_verdict(tmp_path: Path) -> None:
    path = tmp_path / "verified.json"
    asked = ("--runs", "--size", "64", "--record", path)
    verify(*asked, "-a", "incremental:variant=hpa", "-a", "incremental:variant=hpa,brk_pages=0")
    assert json.loads(path.read_text()) == {
        "model": {"incremental:kernel=4.19,variant=hpa": [1, 2]},
    }


def test_what_a_report_proves() -> None:
    """Operations speak for the hypervisor's model, constructions and boots for an allocator."""
    run = {"operations": 9, "verdict": "ok", "refused": None, "xen": True, "ok": True}
    report = {
        "files": {"traces": 7, "differing_traces": 1},
        "live": {"traces": 5, "failed_traces": 0},
        "dom0": [{"kernel": "6.1.0-50-amd64", "agree": False}],
        "runs": [
            {**run, "allocator": "chunk_end"},
            # The model accepts what real Xen answers differently.
            {**run, "allocator": "chunk_end", "ok": False},
            {**run, "allocator": "chunk_end", "ok": False, "operations": 0, "xen": False},
        ],
    }
    counts = {
        kind: [(each.spec, each.agree) for each in found]
        for kind, found in command.evidence_of(report).items()
    }
    assert counts == {
        "operations": [("xen", 6), ("xen", 5)],
        "dom0": [("incremental:variant=linux,kernel=6.1.0-50-amd64", 0)],
        "model": [("chunk_end", 1), ("chunk_end", 1), ("chunk_end", 0)],
        "xen": [("chunk_end", 1), ("chunk_end", 0)],
    }
    assert command.evidence_of({}) == {}


@pytest.mark.slow
def test_missing_pieces_name_the_debian_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the files are read all the same."""
    monkeypatch.setattr("paravirt_mm_xen.live.pieces.shutil.which", lambda name: f"/usr/bin/{name}")
    code, result = verify("--live", "--xen", tmp_path, SAMPLE)
    assert code == ExitCode.BAD_INPUT
    assert "xen-hypervisor-4.17-amd64" in result.stderr
    assert "all agree" in result.stdout
    code, result = verify("--live", "--runs", "--xen", tmp_path, "--json")
    assert code == ExitCode.BAD_INPUT
    report = json.loads(result.stdout)
    assert report["agree"] is False
    assert "xen-hypervisor-4.17-amd64" in report["missing"]
    assert "runs" not in report


def test_a_missing_program_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paravirt_mm_xen.live.pieces.shutil.which", lambda _: None)
    code, result = verify("--live")
    assert code == ExitCode.BAD_INPUT
    assert "install the Debian package qemu-system-x86" in result.stderr


def test_wrong_specs() -> None:
    with pytest.raises(SpecError):
        list(run_all([64], ["nobody"]))
    with pytest.raises(InputError):
        guest_machine(32)


@pytest.mark.slow
def test_listing_verifiers_imports_neither_model_nor_live() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from click.testing import CliRunner; from paravirt_mm.cli.main import cli\n"
        "out = CliRunner().invoke(cli, ['verify', '--help']).stdout\n"
        "assert 'xen' in out\n"
        "heavy = [m for m in sys.modules if m.startswith(('paravirt_mm_xen.mmu', "
        "'paravirt_mm_xen.live', 'paravirt_mm_xen.replay', "
        "'paravirt_mm_xen.translate', 'numpy'))]\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def pieces() -> None:
    try:
        find_pieces()
    except MissingPieceError as error:
        if ENVIRONMENT in os.environ:
            raise
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.usefixtures("pieces")
def test_live_asks_fresh_operations_and_runs() -> None:
    code, result = verify("--live", "--ops", "3000", "--seed", "7", "--json")
    assert code == ExitCode.OK
    report = json.loads(result.stdout)
    assert report["live"]["agree"] is True
    assert report["live"]["operations"] >= 3000
    assert report["live"]["xen"]
    assert [run["allocator"] for run in report["runs"]] == list(command.ALLOCATORS)
    assert {run["mib"] for run in report["runs"]} == {64}
    assert all(run["ok"] and run["xen"] for run in report["runs"])


@pytest.mark.slow
@pytest.mark.usefixtures("pieces")
def test_a_wrong_model_is_shrunk_to_a_reproducer(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(trace: OperationTrace, release: object) -> list[int]:
        return [0 if answer == -16 else answer for answer in predict(trace)]

    monkeypatch.setattr(command, "predict", wrong)
    monkeypatch.setattr(command, "run_all", lambda *_: iter(()))
    # So few that one trace differs: each is shrunk by booting again and again.
    code, result = verify("--live", "--ops", "20", "--generator", "trees")
    assert code == ExitCode.FINDINGS
    lines = result.stdout.splitlines()
    reproducer = next(json.loads(line) for line in lines if line.startswith("{"))
    assert -16 in reproducer["rc"]
    assert len(reproducer["ops"]) < 12


@pytest.mark.parametrize(
    ("asked", "sizes"),
    [({}, (64,)), ({"runs": True}, (64, 256, 512)), ({"sizes": (96,), "runs": True}, (96,))],
)
def test_sizes_of_the_guests_that_are_run(
    asked: dict[str, Any], sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Sequence[int]] = []

    def run_all(sizes: Sequence[int], *_: object) -> tuple[()]:
        seen.append(sizes)
        return ()

    monkeypatch.setattr(command, "run_all", run_all)
    options = command.VerifyOptions(live=True, **asked)
    assert command._runs(options, None, RECORDED, {}, print) is ExitCode.OK
    assert seen == [sizes]


def test_defaults_are_those_that_the_help_tells() -> None:
    options = {option.name: option for option in xen.params}
    usual = command.VerifyOptions()
    assert options["seed"].default == usual.seed == 1
    assert options["ops"].default == usual.operations == 100_000
    assert (usual.live, usual.runs, usual.files, usual.sizes) == (False, False, (), ())
    limits = {name: (options[name].type.min, options[name].type.max) for name in ("ops", "sizes")}
    assert limits == {"ops": (1, 10_000_000), "sizes": (64, 4096)}
    first, *_ = command.SIZES
    told = f"[default: {first}; --runs: {', '.join(map(str, command.SIZES))}]"
    assert told == "[default: 64; --runs: 64, 256, 512]"
    assert told in options["sizes"].help
    built_in = {"legacy_linear", "incremental", "chunk_end"}  # that build tables themselves
    assert {spec.partition(":")[0] for spec in command.ALLOCATORS} == built_in


def test_files_are_told_apart_by_their_names() -> None:
    """Recordings of a dom0 are JSON, operations are lines of it."""
    names = ["a.jsonl", "b.json", "c.jsonl.xz", "d.json.xz", "e"]
    options = command.VerifyOptions(files=tuple(map(Path, names)))
    assert options.recordings == [Path("b.json"), Path("d.json.xz")]
    assert options.traces == [Path("a.jsonl"), Path("c.jsonl.xz"), Path("e")]


def test_guests_have_64_mib_at_least() -> None:
    assert guest_machine(64).memory_map.ram_pages().end == 64 << 20
    with pytest.raises(InputError, match="63 MiB is too small"):
        guest_machine(63)
    assert command.RunResult(64, "x", "rejected").as_dict()["operations"] == 0
