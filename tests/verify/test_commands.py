"""`verify` on the command line: what is told of scenarios, boots and logs, exit codes, records."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from paravirt_mm import offers, sources
from paravirt_mm.cli import reading, verify_kernel, verify_linux, verify_log
from paravirt_mm.cli.verify_log import _runs_of_series
from paravirt_mm.invariants.rules import Finding
from paravirt_mm.sources.bootlog.lines import LineVerdict, LogLine
from paravirt_mm.verify import cpu
from paravirt_mm.verify.cpu import CpuReport
from paravirt_mm.verify.kernel.compare import Mismatch, Replay
from paravirt_mm.verify.linux.maps import NamedMap
from paravirt_mm.verify.linux.qemu import (
    KernelBootError,
    LiveUnavailableError,
    MapSpecError,
)
from paravirt_mm.verify.log.report import LogReport
from tests.boot_records import RECORDS
from tests.commands import Run, written_plugin
from tests.kept import DATA

OLD = "legacy_linear:kernel=3.6"
AGREES = CpuReport(12, 5, 0, 3, 2, (), ())
MANY: Any = tuple(Finding(1, 0, number * 4096, f"no. {number}") for number in range(7))
DIFFERS = CpuReport(9, 4, 1, 2, 1, MANY, MANY, tuple((n << 12, n + 1 << 12) for n in range(7)))


def reports(*given: CpuReport) -> Any:
    """Return what stands for `check_cpu`: one report after the other."""
    left = iter(given)
    return lambda trace, samples, seed: next(left)


def test_what_the_cpu_did_otherwise_is_told_and_recorded(
    paravirt_mm: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Five of a kind at the most; an image that differs is one less that agrees."""
    monkeypatch.setattr(cpu, "check_cpu", reports(AGREES, DIFFERS))
    record = tmp_path / "evidence.json"
    result = paravirt_mm(
        "verify", "cpu", "qemu-512m", "-a", OLD, "-b", "native", "--record", record
    )
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert lines[0] == f"agrees  qemu-512m  {OLD}  native: 12 accesses, 5 faults, 3 runs (ok)"
    assert lines[1] == (
        f"DIFFERS qemu-512m+la57  {OLD}  native: 9 accesses, 4 faults, 1 beyond 1 TiB, 2 runs (ok)"
    )
    told = [line.strip() for line in lines[2:-1]]
    assert all(line.startswith("        ") for line in lines[2:-1])
    assert told[:5] == told[5:10] == [str(one) for one in MANY[:5]]
    assert told[10:] == [f"table at {n << 12:#x} can be written" for n in range(5)]
    assert lines[-1] == "2 images, 21 accesses: 1 image differs"
    assert json.loads(record.read_text()) == {"cpu": {OLD: [1, 2]}}


def test_what_the_cpu_did_as_data(paravirt_mm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "check_cpu", reports(DIFFERS))
    result = paravirt_mm(
        "verify", "cpu", "qemu-512m", "-a", OLD, "-b", "native", "--no-la57", "--json"
    )
    assert result.returncode == 1
    assert json.loads(result.stdout) == {
        "scenario": f"qemu-512m  {OLD}  native",
        "verdict": "ok",
        "agrees": False,
        "probes": 9,
        "faults": 4,
        "beyond_1tib": 1,
        "leaf_runs": 2,
        "hole_sides": 1,
        "disagreements": [str(one) for one in MANY],
        "findings": [str(one) for one in MANY],
        "writable_tables": [[n << 12, n + 1 << 12] for n in range(7)],
    }


def test_the_cpu_gets_samples_and_seed_and_five_levels_only_where_there_are_any(
    paravirt_mm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four and no. 0 where nobody says."""
    told = []

    def check(trace: object, samples: int, seed: int) -> CpuReport:
        return attrs.evolve(AGREES, probes=samples, faults=seed)

    monkeypatch.setattr(cpu, "check_cpu", check)
    for machine, *options in (("qemu-512m", "--samples", 7, "--seed", 3), ("qemu-pae-320m",)):
        result = paravirt_mm("verify", "cpu", machine, "-a", OLD, "-b", "native", *options)
        assert result.returncode == 0
        told += [line.split(f"  {OLD}  native: ") for line in result.stdout.splitlines()[:-1]]
    assert told == [
        ["agrees  qemu-512m", "7 accesses, 3 faults, 3 runs (ok)"],
        ["agrees  qemu-512m+la57", "7 accesses, 3 faults, 3 runs (ok)"],
        ["agrees  qemu-pae-320m", "4 accesses, 0 faults, 3 runs (ok)"],
    ]


def test_where_nothing_is_named_the_cpu_walks_everything(
    paravirt_mm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package's machines, and what the plugins offer."""
    monkeypatch.setattr(cpu, "check_cpu", lambda *_: AGREES)
    monkeypatch.setattr(sources, "bundled_machines", lambda: ("qemu-512m", "qemu-pae-320m"))
    offered = {"allocator": (OLD, "incremental"), "backend": ("native", "xen")}
    monkeypatch.setattr(offers, "default_specs", offered.__getitem__)
    result = paravirt_mm("verify", "cpu", "--no-la57", "--json")
    assert [json.loads(line)["scenario"] for line in result.stdout.splitlines()] == [
        f"{machine}  {allocator}  {backend}"
        for machine in ("qemu-512m", "qemu-pae-320m")
        for allocator in (OLD, "incremental")
        for backend in ("native", "xen")
    ]


def test_a_plugin_that_fails_has_no_tables_to_walk(paravirt_mm: Run, tmp_path: Path) -> None:
    spec = written_plugin(tmp_path, "pvmm_allocate_tables", "raise ValueError('no idea')")
    asked = ("verify", "cpu", "qemu-512m", "-a", spec, "-b", "native", "--no-la57")
    result = paravirt_mm(*asked)
    assert result.returncode == 4
    assert result.stdout.startswith(f"-       qemu-512m  {spec}  native: error: plugin ")
    assert result.stdout.endswith("\n0 images, 0 accesses: 0 images differ\n")
    told = json.loads(paravirt_mm(*asked, "--json").stdout)
    assert told.keys() == {"scenario", "verdict"}
    assert told["verdict"].startswith("error: plugin ")


# -- real kernels ----------------------------------------------------------------------------------

GOOD = RECORDS["6.1.0-56-amd64:tiny"]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A kernel that does what was recorded of one, but on some maps; the boots that were asked."""
    asked: list[dict[str, Any]] = []

    def boot(spec: Any, kernel: Any, *, qemu: str, timeout: float) -> Any:
        asked.append({"map": spec, "kernel": kernel.release, "qemu": qemu, "timeout": timeout})
        if spec == "hangs":
            raise KernelBootError("no sign\nof life")
        record = json.loads(json.dumps(GOOD))
        if spec == "wrong":
            record["steps"][1]["start"] += 4096

        def to_json(tables_up_to: int = 0) -> Any:
            return record if tables_up_to == 3 else {"steps": []}

        return SimpleNamespace(
            to_json=to_json, tables=[1, 2, 3], provenance=SimpleNamespace(seconds=1.5)
        )

    def load(path: Any) -> Any:
        return SimpleNamespace(release=str(path))

    monkeypatch.setattr(verify_linux, "record_boot", boot)
    monkeypatch.setattr(verify_linux, "find_qemu", lambda qemu: qemu or "found")
    monkeypatch.setattr(verify_linux, "find_kernel", lambda path: path or "installed")
    monkeypatch.setattr(verify_linux, "Kernel", SimpleNamespace(load=load))
    return asked


def maps(*names: str) -> Any:
    def given(*_: object) -> Iterator[Any]:
        return (named(name) for name in names)

    return given


def named(name: str) -> Any:
    spec: Any = name
    return NamedMap(name, spec, ("a note",) if name == "fine" else ())


def test_boots_are_compared_and_the_exit_code_says_the_worst(
    paravirt_mm: Run,
    kernel: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for names, code in ((("fine",), 0), (("fine", "hangs"), 3), (("hangs", "wrong", "fine"), 1)):
        monkeypatch.setattr(verify_linux, "builtin_maps", maps(*names))
        record, saved = tmp_path / "evidence.json", tmp_path / "saved.jsonl"
        result = paravirt_mm("verify", "linux", "--save", saved, "--record", record, "-j", 1)
        assert (result.returncode, result.stderr) == (code, "")
        told = [json.loads(line) for line in saved.read_text().splitlines()]
        assert [one["id"] for one in told] == [name for name in names if name != "hangs"]
        agree, compared = names.count("fine"), len(names) - names.count("hangs")
        (counts,) = json.loads(record.read_text())["live"].values()
        assert counts == [agree, compared]
        refused = f", {names.count('hangs')} refused" if "hangs" in names else ""
        assert result.stdout.splitlines()[-1] == (
            f"Linux installed: {agree} of {compared} maps agree in every field{refused}"
        )
        assert result.stdout.startswith("Linux installed against incremental:")
        name = f"{'fine':{max(map(len, names))}}"
        assert f"  {name}  agrees   3 tables, 1.5 s, a note\n" in result.stdout
    assert "  hangs  refused  no sign\n    of life\n" in result.stdout
    assert [one["map"] for one in kernel] == ["fine", "fine", "hangs", "hangs", "wrong", "fine"]


def test_each_kernel_boots_each_map(
    paravirt_mm: Run, kernel: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def random_maps(count: int, seed: int, _: object) -> Any:
        yield named(f"{count}-{seed}")

    monkeypatch.setattr(verify_linux, "random_maps", random_maps)
    result = paravirt_mm(
        "verify", "linux", "-k", "one", "-k", "two", "--random", 3, "--seed", 9, "--qemu", "mine",
        "--timeout", 7, "--json", "-j", 2,
    )  # fmt: skip
    assert result.returncode == 0
    told = json.loads(result.stdout)
    assert told["agree"] is True
    assert [(one["kernel"], one["name"], one["verdict"]) for one in told["maps"]] == [
        ("one", "3-9", "agrees"),
        ("two", "3-9", "agrees"),
    ]
    assert {(one["qemu"], one["timeout"]) for one in kernel} == {("mine", 7.0)}


def test_machines_are_booted_or_it_is_said_why_not(
    paravirt_mm: Run, kernel: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that cannot be read and one that QEMU cannot be cost themselves."""
    (tmp_path / "bad.txt").write_text("nothing\n")

    def map_of(machine: Any, _: object) -> Any:
        if machine.name == "pae-4g":
            raise MapSpecError("32 bits")
        return named(machine.name)

    monkeypatch.setattr(verify_linux, "map_of", map_of)
    result = paravirt_mm("verify", "linux", tmp_path / "bad.txt", "pae-4g", "qemu-512m", "-j", 1)
    assert result.returncode == 3
    assert "pae-4g" in result.stdout
    assert "refused  32 bits\n" in result.stdout
    assert f"  {tmp_path}/bad.txt  refused  {tmp_path}/bad.txt: " in result.stdout
    assert [one["map"] for one in kernel] == ["qemu-512m"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--replay", "x", "qemu-512m"], "--replay boots nothing"),
        (["--replay", "x", "-k", "y"], "--replay boots nothing"),
        (["--replay", "x", "--random", "1"], "--replay boots nothing"),
        (["--replay", "x", "--save", "y"], "--replay boots nothing"),
        (["qemu-512m", "--random", "1"], "not both"),
    ],
)
def test_what_excludes_each_other_is_refused(
    arguments: list[str],
    words: str,
    paravirt_mm: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = paravirt_mm("verify", "linux", *arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert not list(tmp_path.iterdir())  # what would be saved is not begun


def test_without_qemu_it_says_so(paravirt_mm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(_: object) -> None:
        raise LiveUnavailableError("there is no QEMU")

    monkeypatch.setattr(verify_linux, "find_qemu", find)
    result = paravirt_mm("verify", "linux")
    assert (result.returncode, result.stderr) == (3, "paravirt-mm: there is no QEMU\n")


def test_boots_end_where_none_comes_to_its_end(
    paravirt_mm: Run, kernel: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_linux, "builtin_maps", maps("hangs", "hangs", "fine", "fine"))
    monkeypatch.setattr("paravirt_mm.cli.output.PATIENCE", -1.0)
    result = paravirt_mm("verify", "linux", "-j", 1)
    assert result.returncode == 3
    assert result.stderr == (
        "paravirt-mm: 3 more were not booted: none came to its end within a minute\n"
    )
    monkeypatch.setattr(verify_linux, "builtin_maps", maps("fine", "hangs", "hangs"))
    assert not paravirt_mm("verify", "linux", "-j", 1).stderr


def test_boots_end_with_whoever_wanted_them(
    kernel: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those under way are ended, those that have not begun never begin."""
    under_way, end = threading.Event(), threading.Event()
    record = vars(verify_linux)["record_boot"]

    def boot(spec: Any, kernel: Any, *, qemu: str, timeout: float) -> Any:
        if spec == "second":
            under_way.set()
            assert end.wait(30)
        return record(spec, kernel, qemu=qemu, timeout=timeout)

    monkeypatch.setattr(verify_linux, "record_boot", boot)
    monkeypatch.setattr(verify_linux, "end_all", end.set)
    todo: Any = [(SimpleNamespace(release="x"), named(name)) for name in ("first", "second", "3")]
    boots = verify_linux._boots(todo, "qemu", 1.0, 1)
    assert next(boots)[0].name == "first"
    assert under_way.wait(30)
    boots.close()
    assert [one["map"] for one in kernel] == ["first", "second"]


# -- what real kernel code did ---------------------------------------------------------------------


def test_machines_agree_in_as_many_fields_as_were_compared_of_any(
    paravirt_mm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever brk a machine leaves it, it is one model."""
    replays = [
        Replay("f:1", "a", "3.6", OLD, ("x",), ()),
        Replay("f:2", "b", "3.6", f"{OLD},brk_pages=7", ("x", "y"), ()),
        Replay("f:3", "c", "3.6", OLD, ("x",), (Mismatch("x", "", "1", "2"),)),
    ]
    for count, code in ((3, 1), (2, 0)):
        monkeypatch.setattr(verify_kernel, "_all", lambda *_, count=count: replays[:count])
        result = paravirt_mm("verify", "kernel", "f")
        assert result.returncode == code
        assert result.stdout.splitlines()[-1] == (
            f"Linux 3.6, {OLD}: 2 of {count} machines agree in all 2 fields"
        )


# -- logs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("series", "told"),
    [
        (["3.10"], ["3.10"]),
        (["3.12", "3.10", "3.11"], ["3.10-3.12"]),
        (["3.19", "4.0", "4.2"], ["3.19-4.0", "4.2"]),
        (["2.6.39", "3.0"], ["2.6.39-3.0"]),
        ([], []),
    ],
)
def test_neighbouring_series_are_told_together(series: list[str], told: list[str]) -> None:
    """In the order in which they were released, which is none of numbers or letters."""
    assert list(_runs_of_series(series)) == told


SAME = LogLine(LineVerdict.MATCH, 1, "a line", "a line")
OTHER = LogLine(LineVerdict.DIFFERS, 2, "a line", None)
FITS = LogReport("fits", 0, "3.6.0", "x86_64", "3.6", OLD, "native", lines=(SAME,))
WRONG = attrs.evolve(FITS, source="wrong", lines=(SAME, OTHER))
EXPLAINED = attrs.evolve(WRONG, source="explained", reason="a patch of its own")
NAMELESS = attrs.evolve(FITS, source="nameless", release=None)
SILENT = LogReport("silent", 0, "3.6.0", "x86_64", nothing="it says nothing of tables")


@pytest.mark.parametrize(
    ("reports", "code", "counts"),
    [
        ([FITS], 0, [1, 1]),
        ([FITS, EXPLAINED, NAMELESS, SILENT], 0, [1, 1]),
        ([EXPLAINED, SILENT], 0, None),
        ([FITS, WRONG], 1, [1, 2]),
        ([WRONG, FITS], 1, [1, 2]),
        ([WRONG, EXPLAINED], 1, [0, 1]),
    ],
)
def test_logs_that_name_their_release_and_show_something_speak_for_a_model(
    reports: list[LogReport],
    code: int,
    counts: list[int] | None,
    paravirt_mm: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Those that cannot match for a documented reason do not, nor are they findings."""
    checked = iter(reports)
    monkeypatch.setattr(reading, "reading", lambda *_: None)
    monkeypatch.setattr(verify_log, "check_log", lambda *_: next(checked))
    record = tmp_path / "evidence.json"
    names = [one.source for one in reports]
    result = paravirt_mm("verify", "log", *names, "--record", record)
    assert (result.returncode, result.stderr) == (code, "")
    assert json.loads(record.read_text()) == {"logs": {OLD: counts} if counts else {}}


def test_a_log_is_told_line_by_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    head = ["explained: Linux 3.6.0, x86_64", f"  {OLD} under native"]
    more, differing = ["  as well: 3.4-3.5", "  nearest for: no PSE"], [
        "     2 - a line",
        "    12 - another    (of a driver)",
        "       + what was to come",
    ]  # fmt: skip
    all_lines = ["     1 = a line", *differing, "    40 ? the last    (it is cut)"]
    end = ["  1 line matches, 3 differ, 1 cannot be checked", "  reason: a patch of its own"]
    told = attrs.evolve(
        EXPLAINED,
        also=("3.5", "3.4"),
        variant=("no PSE",),
        lines=(
            *EXPLAINED.lines,
            LogLine(LineVerdict.DIFFERS, 12, "another", None, "of a driver"),
            LogLine(LineVerdict.DIFFERS, None, None, "  what was to come"),
            LogLine(LineVerdict.UNCHECKED, 40, "the last", None, "it is cut"),
        ),
    )
    assert list(verify_log._report(told, True)) == [*head, *more, *all_lines, *end]
    assert list(verify_log._report(told, False)) == [*head, *more, *differing, *end]
    assert list(verify_log._report(attrs.evolve(FITS, variant=("no PSE",)), False))[2:] == [
        "  agrees for: no PSE",
        "  1 line matches, 0 differ, 0 cannot be checked",
    ]
    assert list(verify_log._report(attrs.evolve(SILENT, release=None, mode=""), True)) == [
        "silent: release not in the log",
        "  it says nothing of tables",
    ]
    # Standard input, whatever there is of that name.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-").mkdir()
    assert verify_log._files("-") == ["-"]


def test_logs_that_are_none_are_named_and_the_others_go_on(
    paravirt_mm: Run, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").write_text("nothing")
    log = DATA / "logs" / "2.6.28-modified-map.txt"
    result = paravirt_mm("verify", "log", tmp_path / "empty", tmp_path / "bad", log)
    assert result.returncode == 3
    empty, bad = result.stderr.splitlines()
    assert empty == f"paravirt-mm: {tmp_path}/empty: there is no file in this folder"
    assert bad.startswith(f"paravirt-mm: {tmp_path}/bad: ")
    assert result.stdout.startswith(f"{log}: ")
    assert result.stdout.count("Linux") + result.stdout.count("release not") == 1
    assert not paravirt_mm("verify", "log", tmp_path / "bad").stdout
