"""What `compare`, `run`, `report`, `picture` and `plugins` decide: parts, widths, exit codes."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

from paravirt_mm import API_VERSION, Verdict, default_registry, hookimpl
from paravirt_mm.cli import compare, picture, run
from paravirt_mm.cli.plugins import _line, _page, _record
from paravirt_mm.comparison import Row
from paravirt_mm.errors import ExitCode, InputError
from paravirt_mm.invariants.rules import Finding
from paravirt_mm.measure.figures import FIGURES
from paravirt_mm.options import PluginSpec
from paravirt_mm.plugin import Plugin
from paravirt_mm.report.paper import Paper
from paravirt_mm.run import Outcome, Run as Finished
from paravirt_mm.scenario import Scenario
from paravirt_mm.sources import bundled
from paravirt_mm.sources.machine_file import write_toml
from paravirt_mm.view.scene import outline
from paravirt_mm.view.strip import strip as memory_line
from paravirt_mm.view.survey import Exhibit, Subject
from tests.commands import Run, written_plugin

HPA, OLD, NATIVE = "incremental:variant=hpa", "legacy_linear:kernel=3.6", ("-b", "native")
SMALL = bundled("asus-l8400-256m")


@pytest.fixture(scope="module")
def good() -> Finished:
    return Scenario.of(SMALL, HPA, "native").run()


def ended(run: Finished, outcome: Outcome, detail: str = "why") -> Finished:
    return attrs.evolve(run, verdict=Verdict(outcome, "" if outcome is Outcome.OK else detail))


# -- compare ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcomes", "unread", "fail_on", "code"),
    [
        (["ok"], 0, ["violation", "error"], ExitCode.OK),
        ([], 0, ["violation", "error"], ExitCode.OK),
        ([], 1, ["violation", "error"], ExitCode.BAD_INPUT),
        (["ok", "panic", "rejected"], 0, ["violation", "error"], ExitCode.OK),
        (["ok", "panic"], 0, ["panic"], ExitCode.FINDINGS),
        (["rejected"], 0, ["rejected"], ExitCode.FINDINGS),
        (["violation"], 0, ["panic", "violation"], ExitCode.FINDINGS),
        (["violation"], 0, ["error"], ExitCode.OK),
        (["violation"], 1, ["violation"], ExitCode.BAD_INPUT),
        (["error"], 1, ["violation", "error"], ExitCode.PLUGIN),
        (["error"], 1, ["violation"], ExitCode.BAD_INPUT),
        (["error"], 0, ["violation"], ExitCode.OK),
        (["ok"], 0, ["error"], ExitCode.OK),
    ],
)
def test_what_fails_is_what_the_caller_fails_on(
    outcomes: list[str], unread: int, fail_on: list[str], code: ExitCode, good: Finished
) -> None:
    """An error first, which is a plugin's; then what could not be read; then findings."""
    rows = [Row.of(ended(good, Outcome(one))) for one in outcomes]
    problems = [InputError("is empty") for _ in range(unread)]
    assert compare._exit(rows, problems, fail_on) == code


def _subjects(runs: Sequence[Finished]) -> list[Subject]:
    return [
        Subject(
            attrs.evolve(one.machine, name=f"m{number}"),
            (Exhibit(Row.of(one), outline(one), ()),),
        )
        for number, one in enumerate(runs)
    ]


def _told(subjects: list[Subject], on: Paper, **how: Any) -> str:
    asked = {"style": compare.TERMINAL, "wide": False, "each": False, "asked": False, **how}
    return "\n\n".join(compare._text(subjects, on=on, **asked))


def test_of_more_than_three_machines_the_sums_are_shown_and_bad_ends(good: Finished) -> None:
    bad = ended(good, Outcome.REJECTED)
    titles = ("", "Both machines", "All 3 machines", "All 4 machines")
    for count, title, each in zip(range(1, 5), titles, (True, True, True, False), strict=True):
        text = _told(_subjects([good] * (count - 1) + [bad]), Paper())
        assert text.startswith(title)
        assert ("sums: " in text) == (count > 1)
        assert ("\nm1\n" in text) == (each and count > 1)
        assert (f"m{count - 1}: rejected: why (incremental hpa/native)" in text) == (not each)
        assert (f"{count} machines: --each shows the table of each" in text) == (not each)
        whole = _told(_subjects([good] * count), Paper(), each=True)
        assert f"m{count - 1}\n" in whole
        assert "--each" not in whole
        assert "rejected" not in whole


def test_a_limited_number_of_bad_ends_is_told_one_line_a_machine(good: Finished) -> None:
    bad = ended(good, Outcome.REJECTED)
    two = attrs.evolve(bad, allocator=PluginSpec.parse(OLD))
    subjects = _subjects([bad] * 20)
    subjects[3] = attrs.evolve(
        subjects[3], exhibits=(*subjects[3].exhibits, *_subjects([two])[0].exhibits)
    )
    lines = list(compare._ends(subjects, Paper()))
    assert len(lines) == compare.MAX_ENDS == 20
    assert lines[3] == "m3: rejected: why (incremental hpa/native, legacy_linear 3.6/native)"
    lines = list(compare._ends(_subjects([bad, good] * 23), Paper()))
    assert len(lines) == 21
    assert lines[-1] == "and 3 more ends like these"


@pytest.mark.parametrize("more", [0, 1])
def test_of_a_bad_end_as_much_is_told_as_fits(more: int, good: Finished) -> None:
    """60 characters of the machine's name, 300 of the verdict."""
    bad = ended(good, Outcome.PANIC, "y" * (293 + more))
    (subject,) = _subjects([bad])
    named = attrs.evolve(subject.machine, name="x" * (60 + more))
    (line,) = compare._ends([attrs.evolve(subject, machine=named)], Paper(1000))
    name, verdict = ("x" * 59 + "…", "y" * 292 + "…") if more else ("x" * 60, "y" * 293)
    assert line == f"{name}: panic: {verdict} (incremental hpa/native)"


def test_what_was_assumed_is_counted_where_there_is_no_room_for_it(good: Finished) -> None:
    plain = attrs.evolve(
        good, machine=attrs.evolve(SMALL, provenance=attrs.evolve(SMALL.provenance, assumed=()))
    )
    many = _told(_subjects([good, good, plain, plain, plain]), Paper())
    assert "shows the table of each, and what was assumed about 2 of them." in many
    assert many.endswith("--each shows the table of each, and what was assumed about 2 of them.")
    sure = _told(_subjects([plain] * 4), Paper())
    assert sure.endswith("4 machines: --each shows the table of each.")
    assert "Assumed" not in _told(_subjects([plain]), Paper())
    assert "Assumed: " in _told(_subjects([good]), Paper())


@pytest.mark.parametrize(("width", "above"), [(100, False), (77, False), (72, False), (71, True)])
def test_names_stand_above_memory_where_a_third_of_the_width_is_too_little(
    width: int, above: bool, good: Finished
) -> None:
    (subject,) = _subjects([good])
    lines = list(compare._strips(SMALL, subject.exhibits, Paper(width)))
    name = "incremental hpa/native"  # 22 columns, and 2 between
    scale, strip = lines[0], lines[1]
    assert scale.startswith("memory, logarithmic\n" if above else f"{'memory, logarithmic':<24}")
    assert strip.startswith(f"{name}\n" if above else f"{name}  ")
    drawn = strip.split("\n")[1] if above else strip[24:]
    room = width if above else width - 24
    assert drawn == memory_line(SMALL, subject.exhibits[0].scene, room).rstrip()
    assert max(len(line) for text in lines for line in text.split("\n")) <= width


def test_a_name_that_is_wider_than_a_terminal_is_cut(good: Finished) -> None:
    (subject,) = _subjects([good])
    (exhibit,) = subject.exhibits
    for length in (60, 61, 90):
        row = attrs.evolve(exhibit.row, allocator="a" * (length - len("/native")))
        _, strip, *_ = compare._strips(SMALL, [attrs.evolve(exhibit, row=row)], Paper(60))
        name, _ = strip.split("\n")
        assert name == f"{row.allocator}/native"[:60]


def test_memory_is_drawn_for_terminals_and_where_a_run_ended_well(good: Finished) -> None:
    (fine,), (bad,) = _subjects([good]), _subjects([ended(good, Outcome.PANIC)])
    both = attrs.evolve(fine, exhibits=(*fine.exhibits, *bad.exhibits))
    for subject, style, shown in (
        (fine, "simple", True), (fine, "github", False), (bad, "simple", False),
        (both, "simple", True),
    ):  # fmt: skip
        text = compare._machine(subject, style, False, Paper())
        assert ("memory, logarithmic" in text) == shown


def test_only_what_is_for_terminals_has_colours(paravirt_mm: Run) -> None:
    for style, coloured in (("simple", True), ("github", False), ("json", False)):
        arguments = ("qemu-512m", "-a", HPA, "-a", OLD, *NATIVE, "-f", style, "--color", "always")
        shown = paravirt_mm("compare", *arguments).stdout
        assert ("\x1b[" in shown) is coloured
    arguments = ("qemu-512m", "-a", HPA, "-a", OLD, *NATIVE, "--json")
    assert paravirt_mm("compare", *arguments).stdout == shown


def test_figures_of_plugins_are_columns_of_a_list_once(good: Finished) -> None:
    row = Row.of(good)
    more = attrs.evolve(row, figures={**row.figures, "mine.waste": 7})
    titles, *cells = csv.reader(compare._csv([row, more, more]).splitlines())
    assert titles[-1 - len(FIGURES) : -1] == list(FIGURES)
    assert titles[-1] == "mine.waste"
    assert [line[-1] for line in cells] == ["", "7", "7"]


def test_an_unknown_format_lists_what_there_is_of_ours_plugins_and_tabulate(
    paravirt_mm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought = {"mine": lambda records: f"{len(records)} of {records[0]['machine']}"}
    monkeypatch.setattr("paravirt_mm.offers.formats", lambda _: brought)
    result = paravirt_mm("compare", "qemu-512m", "-f", "nonsense")
    assert result.returncode == 2
    assert "'nonsense'; there are: json, csv, mine, " in result.stderr.replace("\n", " ")
    assert ", github, " in result.stderr
    one = paravirt_mm("compare", "qemu-512m", "-a", HPA, *NATIVE, "-f", "mine")
    assert (one.returncode, one.stdout) == (0, "1 of qemu-512m\n")


# -- run -------------------------------------------------------------------------------------------


def test_a_run_ends_with_the_exit_code_of_its_verdict(good: Finished) -> None:
    codes = {one: run._exit(ended(good, one)) for one in Outcome}
    assert codes == {
        Outcome.OK: ExitCode.OK,
        Outcome.PANIC: ExitCode.OK,  # a right answer to a bad machine
        Outcome.REJECTED: ExitCode.FINDINGS,
        Outcome.VIOLATION: ExitCode.FINDINGS,
        Outcome.ERROR: ExitCode.PLUGIN,
    }


def test_findings_are_told_to_the_twentieth(good: Finished) -> None:
    findings = tuple(Finding(3, 0, number << 12, f"no. {number}") for number in range(25))
    wrong = attrs.evolve(ended(good, Outcome.VIOLATION), findings=findings)
    lines = list(run._as_text(wrong, Paper(colour=True), explain=False))
    told = [line for line in lines if line.startswith("  ") and "no. " in line]
    assert told == [f"  {one}" for one in findings[:20]]
    assert "verdict: \x1b[31mviolation: why\x1b[0m" in lines
    assert "verdict: \x1b[32mok\x1b[0m" in run._as_text(good, Paper(colour=True), explain=False)


def test_meanings_of_figures_are_left_out_where_they_have_no_room(good: Finished) -> None:
    widest = max(map(len, run._figures(good, Paper(400)).splitlines()))
    meant = max(
        map(len, (line.split("  ")[-1] for line in run._figures(good, Paper(400)).splitlines()))
    )
    least = widest - meant + 16
    lines = run._figures(good, Paper(least)).splitlines()
    assert "what it is" in lines[0]
    assert max(map(len, lines)) <= least
    lines = run._figures(good, Paper(least - 1)).splitlines()
    assert lines[0].split() == ["figure", "value"]
    assert len({len(line.rstrip()) for line in lines[1:]}) == 1  # values end in one column
    groups = [line.split()[0] for line in lines[2:] if not line.startswith(" ")]
    assert len(groups) == len(lines) - 2


def test_each_group_of_figures_is_named_once_where_they_are_explained(good: Finished) -> None:
    lines = run._figures(good, Paper(400)).splitlines()[2:]
    groups = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert groups == list(dict.fromkeys(groups))
    assert len(groups) < len(lines)


def test_where_a_crash_kernel_fits_is_told_in_stretches(
    good: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    def places(_: object, size: int, limit: int) -> list[tuple[int, int]]:
        return [(16 << 20, 16 << 20), (32 << 20, 64 << 20)] if size == 128 << 20 else []

    monkeypatch.setattr(run.crashkernel, "places", places)
    told = list(run._crashkernels(good, Paper()))
    assert told[1:3] == ["  crashkernel=128M@Y: 16M, 32M..64M", "  crashkernel=256M@Y: nowhere"]


def test_a_place_for_the_kernel_is_taken_or_refused(paravirt_mm: Run) -> None:
    arguments = ("run", "qemu-512m", "-a", HPA, *NATIVE, "--kernel-at")
    told = paravirt_mm(*arguments, "64M")
    assert told.returncode == 0
    assert "step 2: map 0x4000000-" in told.stdout
    assert paravirt_mm(*arguments, "63G").returncode == 3
    assert paravirt_mm(*arguments, "here").returncode == 2


def test_what_runs_where_nothing_is_said_is_what_plugins_offer(paravirt_mm: Run) -> None:
    def specs(*arguments: str) -> tuple[str, str]:
        record = json.loads(paravirt_mm("run", "qemu-512m", "--json", *arguments).stdout)
        return record["allocator"], record["backend"]

    allocator, backend = specs()
    assert backend == "native"
    assert allocator.startswith("incremental")
    assert specs("-a", OLD) == (OLD, "native")
    quick = "xen:replay_limit=0"
    assert specs("-b", quick) == (allocator, quick)


def test_an_image_is_written_of_what_has_begun(paravirt_mm: Run, tmp_path: Path) -> None:
    core = tmp_path / "core"
    paravirt_mm("run", "qemu-512m", "-a", HPA, *NATIVE, "--image", core)
    assert core.read_bytes().startswith(b"\x7fELF")
    core.unlink()
    dies = written_plugin(tmp_path, "pvmm_promise", "os._exit(5)")
    result = paravirt_mm("run", "qemu-512m", "-a", dies, "--image", core)
    assert result.returncode == 4
    assert not core.exists()
    assert "ended with exit code 5" in result.stdout


# -- report and picture ----------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Pages and pictures are not made; what they would be made of is kept."""
    given: list[tuple[Any, ...]] = []

    def page(subjects: Any, registry: Any, problems: Any) -> str:
        given.append((len(subjects), len(problems)))
        return "x" * 1_234_567

    monkeypatch.setattr("paravirt_mm.view.page.page", page)
    return given


@pytest.mark.slow
def test_a_report_says_what_it_is_about_and_what_is_missing(
    paravirt_mm: Run, drawn: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    pytest.importorskip("vl_convert")
    (tmp_path / "bad").write_text("nothing\n")
    out = tmp_path / "out.html"
    one = ("-a", HPA, *NATIVE, "-o", out)
    result = paravirt_mm("report", "qemu-512m", *one)
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr == f"{out}: 1 machine, 1.23 MB\n"
    result = paravirt_mm("report", "qemu-512m", "pae-4g", tmp_path / "bad", *one)
    assert result.returncode == 3
    assert result.stderr.endswith(f"{out}: 2 machines, 1.23 MB, 1 could not be read\n")
    result = paravirt_mm("report", tmp_path / "bad", *one)
    assert (result.returncode, drawn) == (3, [(1, 0), (2, 1)])
    spec = written_plugin(tmp_path, "pvmm_promise", "raise ValueError('no idea')")
    fails = ("-a", spec, "--traceback")
    result = paravirt_mm("report", "qemu-512m", *one, *fails)
    assert result.returncode == 4  # though another scenario ended well
    assert "raise ValueError('no idea')" in result.stderr
    (tmp_path / "other").mkdir()
    too = written_plugin(tmp_path / "other", "pvmm_promise", "raise ValueError('nor I')")
    both = (*fails, "-a", too)
    result = paravirt_mm("picture", "qemu-512m", *NATIVE, "-o", tmp_path / "x.svg", *both)
    assert result.returncode == 4
    assert "raise ValueError('no idea')" in result.stderr
    *_, told = result.stderr.splitlines()  # the first is enough
    assert told.startswith("paravirt-mm: not drawn: error: plugin ")
    assert told.endswith("no idea")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("qemu-512m", "-o", "x.gif"), "'x.gif': use a name that ends in .svg or .png"),
        (("qemu-512m", "-o", "x.png", "-t", "auto"), "auto is for maps as SVG"),
        (("qemu-512m", "-w", "flips", "-o", "x.svg", "-t", "auto"), "auto is for maps as SVG"),
        (("qemu-512m", "pae-4g", "-o", "x.svg"), "a map is of one machine"),
        (("-o", "x.svg"), "a map is of one machine"),
        (("qemu-512m", "-w", "pie", "-o", "x.svg"), "'pie' is not one of"),
    ],
)
def test_pictures_that_cannot_be_are_refused(
    arguments: tuple[str, ...], words: str, paravirt_mm: Run
) -> None:
    result = paravirt_mm("picture", *arguments)
    assert result.returncode == 2
    assert words in " ".join(result.stderr.split())


@pytest.mark.slow
def test_a_picture_is_written_as_its_name_says(
    paravirt_mm: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that needs the extra says so before anything runs; a map as SVG never does."""
    needed: list[str] = []
    monkeypatch.setattr("paravirt_mm.view.charts.require_extra", lambda: needed.append("extra"))
    monkeypatch.setattr("paravirt_mm.view.charts.png", lambda text: b"PNG of " + text.encode())
    monkeypatch.setattr("paravirt_mm.view.charts.svg", lambda drawing, theme: drawing.name)
    one = ("qemu-512m", "-a", OLD, *NATIVE, "-o")
    for name, times, *options in (
        ("map.svg", 0, "-t", "auto"),
        ("MAP.PNG", 1),
        ("guess.svg", 2, "-w", "guess"),
        ("guess.png", 3, "-w", "guess"),
    ):
        assert paravirt_mm("picture", *one, tmp_path / name, *options).returncode == 0
        assert len(needed) == times, name
    assert (tmp_path / "map.svg").read_text().startswith("<svg")
    assert (tmp_path / "MAP.PNG").read_bytes().startswith(b"PNG of <svg")
    assert (tmp_path / "guess.svg").read_text() == "guess\n"
    assert (tmp_path / "guess.png").read_bytes() == b"PNG of guess"
    nothing = paravirt_mm("picture", *one, tmp_path / "x.svg", "-w", "hypercalls")
    assert nothing.returncode == 3
    assert "there is nothing to draw for 'hypercalls' on these machines" in nothing.stderr
    unread = paravirt_mm("picture", tmp_path / "none", "-o", tmp_path / "x.svg")
    assert unread.returncode == 3
    (tmp_path / "two").mkdir()
    for name in ("a.toml", "b.toml"):
        (tmp_path / "two" / name).write_text(write_toml(SMALL))
    several = paravirt_mm("picture", tmp_path / "two", *one[1:], tmp_path / "x.svg")
    assert several.returncode == 3
    assert f"{tmp_path}/two: holds several machines, and a map is of one" in several.stderr
    assert not (tmp_path / "x.svg").exists()
    never = written_plugin(tmp_path, "pvmm_promise", "raise ValueError('no idea')")
    pictures = []
    for more in ((), ("-a", never)):
        paravirt_mm("picture", *one, tmp_path / "map.svg", *more)
        pictures.append((tmp_path / "map.svg").read_text())
    assert pictures[0] == pictures[1]  # what has not begun has nothing to draw
    both = ("-w", "guess", tmp_path / "two", *one[1:], tmp_path / "z.svg")
    assert paravirt_mm("picture", *both).returncode == 0
    monkeypatch.setattr(picture, "bundled_machines", lambda: ("asus-l8400-256m",))
    everything = ("-w", "guess", *one[1:], tmp_path / "all.svg")
    assert paravirt_mm("picture", *everything).returncode == 0
    some = ("-w", "guess", tmp_path / "none", *one, tmp_path / "y.svg")
    assert paravirt_mm("picture", *some).returncode == 3
    assert (tmp_path / "y.svg").exists()
    monkeypatch.setattr(picture, "expect_writable", lambda _: None)
    full = paravirt_mm("picture", *one, "/dev/full/x.png")
    assert full.returncode == 3
    assert "/dev/full/x.png: cannot be written: Not a directory" in full.stderr


# -- plugins ---------------------------------------------------------------------------------------


@attrs.frozen
class Bare:
    pvmm_api: ClassVar[int] = API_VERSION

    @hookimpl
    def pvmm_observe(self, event: object) -> None:
        pass


def test_a_plugin_that_says_nothing_of_itself() -> None:
    Bare.__doc__ = None
    plugin = Plugin("bare", Bare, "far-away", "2")
    assert _page(plugin) == (
        "bare: observer of far-away 2\n\n  hooks: pvmm_observe\n  checked against:\n    not"
    )
    assert _line(plugin) == "observer  bare            far-away 2              "
    assert _record(plugin)["about"] == ""


def test_lines_of_plugins_are_bounded_and_wrapped() -> None:
    @attrs.frozen
    class Long(Bare):
        """Words."""

        option: str = attrs.field(default="y" * 5000, metadata={"help": "word " * 60})

    plugin = Plugin("long", Long)
    assert len(_line(plugin)) == 4000
    lines = _page(plugin).splitlines()
    assert max(map(len, lines)) == 1000
    told = [line for line in lines if line.startswith("      word")]
    assert max(map(len, told)) <= 96
    assert sum(line.count("word") for line in told) == 60

    @attrs.frozen
    class Wide(Bare):
        fits: int = attrs.field(default=1, metadata={"help": f"{88 * 'x'} y"})  # and 6 before it
        not_quite: int = attrs.field(default=2, metadata={"help": f"{89 * 'x'} y"})

    lines = _page(Plugin("wide", Wide)).splitlines()
    assert f"      {88 * 'x'} y" in lines
    assert lines[lines.index(f"      {89 * 'x'}") + 1] == "      y"


def test_without_any_plugin_it_says_so(paravirt_mm: Run) -> None:
    result = paravirt_mm("--only", "nonsense", "plugins")
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr == "paravirt-mm: no plugin is installed\n"
    assert not paravirt_mm("--only", "native", "plugins").stderr
    named = paravirt_mm("plugins", "nonsense")
    assert named.returncode == 2
    assert default_registry().get("native").name in named.stderr


def test_where_no_figure_says_anything_there_is_no_table(paravirt_mm: Run, tmp_path: Path) -> None:
    """RAM that a 32-bit kernel reaches only where it cannot use it: it ends before it begins."""
    path = tmp_path / "high.toml"
    path.write_text(
        'format = "paravirt-mm-machine-1"\nname = "high"\nmode = "i386-pae"\n'
        'boot_mapped = 0x1c00000\nmemory = [[0xffffffff, 0x8000000000, "usable"]]\n'
        "[kernel]\nstart = 0x1000000\nend = 0x1000166\n"
        "brk_start = 0x1001000\nbrk_end = 0x1041000\n"
    )
    told = paravirt_mm("run", str(path), "-a", "legacy_linear:kernel=3.6", *NATIVE)
    assert told.returncode == 0
    assert "verdict: panic: Cannot allocate trampoline" in told.stdout
    assert "what it is" not in told.stdout
