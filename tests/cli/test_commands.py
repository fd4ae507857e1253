"""Every command as a user meets it: help, output, errors and exit codes."""

import csv
import io
import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from paravirt_mm.cli.main import COMMANDS
from paravirt_mm.errors import ExitCode
from paravirt_mm.measure.figures import FIGURES
from tests.commands import written_plugin

LAPTOP = "lenovo-x230-8g"
SMALL = "qemu-512m"
TWO = ("-a", "legacy_linear:kernel=3.6", "-a", "incremental:variant=hpa")


def in_a_process(*arguments):
    command = [sys.executable, "-m", "paravirt_mm", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_explains_itself(name, paravirt_mm):
    result = paravirt_mm(name, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith("Usage: ")
    assert len(result.stdout.splitlines()) > 5


def test_help_lists_every_command_and_the_exit_codes(paravirt_mm):
    result = paravirt_mm("--help")
    assert all(name in result.stdout for name in COMMANDS)
    assert "Exit codes" in result.stdout


def test_help_answers_at_once():
    """In processor time, which does not depend on what else the machine does."""

    def used():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    def seconds():
        start = used()
        in_a_process("--help")
        return used() - start

    assert any(seconds() < 0.2 for _ in range(5))


@pytest.mark.slow
def test_logs_of_one_name_keep_their_titles(paravirt_mm, tmp_path):
    """Machines are what they are, not what their file is called."""
    files = []
    for folder, last in (("small", 0x1FFFFFFF), ("large", 0x3FFFFFFF)):
        (tmp_path / folder).mkdir()
        files.append(tmp_path / folder / "box.txt")
        files[-1].write_text(
            "Linux version 4.19.0 (x)\nBIOS-provided physical RAM map:\n"
            "BIOS-e820: [mem 0x0000000000000000-0x000000000009ffff] usable\n"
            f"BIOS-e820: [mem 0x0000000000100000-{last:#018x}] usable\n"
        )
    result = paravirt_mm("compare", *map(str, files))
    titles = [line for line in result.stdout.splitlines() if " RAM, " in line]
    assert [("511" in title, "1023" in title) for title in titles] == [(True, False), (False, True)]


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from paravirt_mm.cli.main import cli; cli(['--help'], standalone_mode=False);"
        "print([m for m in ('attrs', 'numpy', 'pluggy', 'tabulate', 'rich') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_compare_shows_every_scenario_with_its_verdict_within_100_columns(paravirt_mm):
    result = paravirt_mm("compare", SMALL)
    assert result.returncode == ExitCode.OK
    table, _, places = result.stdout.partition("N<896M")
    for part, word in ((table, " ok "), (places, "M ")):
        rows = [x for x in part.splitlines() if re.search(r"\S +(native|xen) {2,}\S", x)]
        assert len(rows) == 10
        assert all(word in row for row in rows)
    assert max(map(len, result.stdout.splitlines())) <= 100


@pytest.mark.slow
def test_compare_of_all_machines_ends_with_a_summary_and_fits_a_terminal(paravirt_mm):
    result = paravirt_mm("compare", *TWO)
    assert result.returncode == ExitCode.OK
    assert "All " in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_wide_tables_hold_every_figure_that_says_something(paravirt_mm):
    narrow = paravirt_mm("compare", LAPTOP, *TWO, "--format", "json")
    (row, *_) = [r for r in json.loads(narrow.stdout) if r["backend"] == "xen"]
    wide = paravirt_mm("compare", LAPTOP, *TWO, "--wide").stdout
    assert max(map(len, wide.splitlines())) <= 100
    for name, value in row.items():
        if name in FIGURES and value:
            assert FIGURES[name].header in wide


def test_json_and_csv_hold_every_figure(paravirt_mm):
    as_json = json.loads(said := paravirt_mm("compare", SMALL, *TWO, "-f", "json").stdout)
    assert said == f"{json.dumps(as_json, indent=1)}\n"
    text = paravirt_mm("compare", SMALL, *TWO, "-f", "csv").stdout
    as_csv = list(csv.DictReader(io.StringIO(text)))
    assert len(as_json) == len(as_csv) == 4
    for one, other in zip(as_json, as_csv, strict=True):
        assert set(FIGURES) <= set(one)
        assert one["verdict"] == other["verdict"]
        assert str(one["flips"]) == other["flips"]


@pytest.mark.parametrize("style", ["csv", "json", "simple"])
def test_a_plugin_that_raises_has_a_row_in_every_format(style, paravirt_mm, tmp_path):
    spec = written_plugin(tmp_path, "pvmm_allocate_tables", "raise ValueError('oh')")
    done = paravirt_mm("compare", SMALL, "-a", spec, *TWO, "-f", style)
    assert done.returncode == ExitCode.PLUGIN
    assert "ValueError: oh" in done.stdout
    assert ("Traceback" in done.stdout) is (style == "json")  # it has lines, and is no cell


@pytest.mark.parametrize("style", ["github", "grid", "html", "latex", "tsv", "plain"])
def test_tabulate_formats(style, paravirt_mm):
    result = paravirt_mm("compare", LAPTOP, "-a", "incremental", "-b", "native", "-f", style)
    assert result.returncode == ExitCode.OK
    assert "incremental" in result.stdout


def test_output_goes_to_a_file(tmp_path, paravirt_mm):
    target = tmp_path / "out.md"
    result = paravirt_mm("compare", LAPTOP, *TWO, "-f", "github", "-o", str(target))
    assert result.stdout == ""
    assert "| incremental hpa" in target.read_text(encoding="utf-8")


def test_output_that_cannot_be_written_is_named(tmp_path, paravirt_mm):
    """Before anything is read."""
    result = paravirt_mm("compare", "no-such-thing", "-o", str(tmp_path / "no" / "out"))
    assert result.returncode == ExitCode.BAD_INPUT
    assert "out: cannot be written" in result.stderr
    assert "no-such-thing" not in result.stderr


def test_a_log_on_standard_input(tmp_path, paravirt_mm):
    log = (
        "BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable\n"
        "BIOS-e820: [mem 0x0000000000100000-0x000000003fffffff] usable\n"
    )
    result = paravirt_mm("compare", "-", "-b", "native", stdin=log)
    assert result.returncode == ExitCode.OK
    assert "1023" in result.stdout or "1024" in result.stdout or "1G of RAM" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["compare", "no-such-thing"], ExitCode.BAD_INPUT, "no-such-thing"),
        (["compare", LAPTOP, "-a", "legacy_lineer"], ExitCode.USAGE, "mean 'legacy_linear'"),
        (["compare", LAPTOP, "-a", "legacy_linear:kernl=3"], ExitCode.USAGE, "mean 'kernel'"),
        (["compare", LAPTOP, "-a", "legacy_linear:kernel=4.4"], ExitCode.USAGE, "use incremental"),
        (["compare", LAPTOP, "-a", "incremental:variant=x"], ExitCode.USAGE, "one of hpa, linux"),
        (["compare", LAPTOP, "-a", "incremental:brk_pages=x"], ExitCode.USAGE, "whole number"),
        (["compare", LAPTOP, "-a", "incremental:hpa"], ExitCode.USAGE, "the form is"),
        (
            ["compare", LAPTOP, "-b", "incremental"],
            ExitCode.USAGE,
            "there are: faulty, native, xen",
        ),
        (["compare", LAPTOP, "-f", "nonsense"], ExitCode.USAGE, "there are: json, csv"),
        (["run", LAPTOP, "-a", "native"], ExitCode.USAGE, "no allocator 'native'"),
        (["compare", LAPTOP, "--time-limit", "nan"], ExitCode.USAGE, "no time in seconds"),
        (["compare", LAPTOP, "--memory-limit", "127M"], ExitCode.USAGE, "the least is 128M"),
        (["diff", "a", "b", "--shrink", "nan"], ExitCode.USAGE, "no time in seconds"),
        (["compare", LAPTOP, "-b", "xen:xen=9"], ExitCode.USAGE, "xen='9'"),
        (["report", "-o", "/nowhere/x.html"], ExitCode.BAD_INPUT, "no folder /nowhere"),
    ],
)
def test_mistakes_are_named_with_their_remedy(arguments, code, words, paravirt_mm):
    result = paravirt_mm(*arguments)
    assert result.returncode == code
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_one_unreadable_input_does_not_stop_the_others(tmp_path, paravirt_mm):
    bad = tmp_path / "bad.txt"
    bad.write_text("nothing about memory\n", encoding="utf-8")
    result = paravirt_mm("compare", str(bad), LAPTOP, "-b", "native")
    assert result.returncode == ExitCode.BAD_INPUT
    assert "bad.txt" in result.stderr
    assert "incremental hpa" in result.stdout


def test_panics_count_as_findings_only_when_asked(paravirt_mm):
    arguments = ["compare", LAPTOP, "-a", "incremental:variant=hpa,brk_pages=0", "-b", "xen"]
    assert paravirt_mm(*arguments).returncode == ExitCode.OK
    result = paravirt_mm(*arguments, "--fail-on", "panic")
    assert result.returncode == ExitCode.FINDINGS
    assert "panic" in result.stdout


def test_run_tells_the_story_and_writes_the_trace(tmp_path, paravirt_mm):
    trace = tmp_path / "trace.jsonl"
    result = paravirt_mm(
        "run", LAPTOP, "-a", "incremental:variant=hpa", "-b", "xen", "--trace", str(trace)
    )
    assert result.returncode == ExitCode.OK
    assert "4: switch to the new tree" in result.stdout
    assert "verdict: ok" in result.stdout
    events = [json.loads(line) for line in trace.read_text(encoding="utf-8").splitlines()]
    assert [event["event"] for event in events] == list(range(len(events)))
    assert events[0]["kind"] == "RunStarted"
    assert events[-1]["kind"] == "RunFinished"


def test_run_as_json(paravirt_mm):
    record = json.loads(paravirt_mm("run", LAPTOP, "--json").stdout)
    assert record["outcome"] == "ok"
    assert record["findings"] == []
    assert set(FIGURES) <= set(record["figures"])


def test_machines_lists_and_shows(tmp_path, paravirt_mm):
    assert LAPTOP in paravirt_mm("machines").stdout
    listed = json.loads(paravirt_mm("machines", "--json").stdout)
    assert len(listed) >= 8
    assert all(machine["source"] for machine in listed)
    shown = tmp_path / "copy.toml"
    shown.write_text(paravirt_mm("machines", LAPTOP).stdout, encoding="utf-8")
    again = paravirt_mm("compare", str(shown), "-b", "native", "-f", "json")
    direct = paravirt_mm("compare", LAPTOP, "-b", "native", "-f", "json")
    assert json.loads(again.stdout) == json.loads(direct.stdout)


def test_plugins_are_listed_with_version_and_options(paravirt_mm):
    record = json.loads(paravirt_mm("plugins", "--json").stdout)
    roles = {plugin["name"]: plugin["role"] for plugin in record["plugins"]}
    assert roles["legacy_linear"] == roles["incremental"] == "allocator"
    assert roles["native"] == roles["xen"] == "backend"
    assert all(plugin["version"] for plugin in record["plugins"])
    one = record["plugins"][0]
    said = paravirt_mm("plugins", one["name"], "--json").stdout
    assert said == f"{json.dumps(one, indent=1)}\n"
    assert "pvmm_map_steps" in paravirt_mm("plugins", "-v").stdout


def test_figures_are_explained(paravirt_mm):
    text = paravirt_mm("figures").stdout
    assert all(name in text for name in FIGURES)


def test_the_reader_may_go_away():
    command = [sys.executable, "-m", "paravirt_mm", "figures"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        complaint = process.stderr.read()
    assert b"Traceback" not in complaint
    assert b"BrokenPipe" not in complaint


def test_control_characters_of_a_log_are_never_shown(tmp_path: Path, paravirt_mm):
    log = tmp_path / "evil\x1b[31m.txt"
    log.write_text("Linux version 3.6\x1b]0;owned\x07\n", encoding="utf-8")
    result = paravirt_mm("compare", str(log))
    assert "\x1b" not in result.stdout + result.stderr


@pytest.mark.slow
def test_where_the_kernel_may_lie(paravirt_mm):
    one = paravirt_mm("run", LAPTOP, "--kernel-at", "400M", "--json")
    assert one.returncode == ExitCode.OK
    everywhere = paravirt_mm("run", LAPTOP, "--kernel-at", "all").stdout
    assert "places for the kernel" in everywhere
    assert "crashkernel below 896M: 128M, 256M" in everywhere
    assert paravirt_mm("run", LAPTOP, "--kernel-at", "63G").returncode == ExitCode.BAD_INPUT
    assert paravirt_mm("run", LAPTOP, "--kernel-at", "here").returncode == ExitCode.USAGE
    assert "crashkernel=128M@Y: " in paravirt_mm("run", LAPTOP).stdout
