"""Tables of rows whose figures are known, word for word."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from paravirt_mm import E820Type, Machine, MemoryMap, Outcome, Row
from paravirt_mm.machine.model import Provenance
from paravirt_mm.machine.paging import GIB, I386_PAE, KIB, MIB, TIB
from paravirt_mm.measure.figures import FIGURES
from paravirt_mm.report.crashkernels import as_columns, crashkernels
from paravirt_mm.report.merit import Merit, judged, merit
from paravirt_mm.report.paper import BOLD, GREEN, PLAIN, RED, RESET, Paper
from paravirt_mm.report.summary import comparable, fitted, summary_table, totals
from paravirt_mm.report.tables import (
    MAX_ASSUMED,
    assumptions,
    figure_tables,
    fit,
    labels,
    machine_title,
    table,
    verification,
)
from paravirt_mm.report.values import show, size


def machine(name: str = "one", *ram: tuple[int, int], **given: Any) -> Machine:
    spans = ram or ((0, 64 * MIB),)
    return Machine(name, MemoryMap.sanitise([(a, b, E820Type.RAM) for a, b in spans]), **given)


ONE, TWO = machine("one"), machine("two")


def row(
    allocator: str = "incremental",
    backend: str = "native",
    where: Machine = ONE,
    outcome: Outcome = Outcome.OK,
    detail: str = "",
    **figures: Any,
) -> Row:
    verdict = f"{outcome}: {detail}" if detail else str(outcome)
    return Row(where, allocator, backend, verdict, outcome, "not checked", figures)


# -- one machine -----------------------------------------------------------------------------------


def test_a_table_is_cut_to_its_paper_and_says_so() -> None:
    rows = [
        row("incremental:variant=hpa", tables=12, waste=0, reserved=12),
        row("legacy_linear:kernel=3.6", tables=10, waste=1000, reserved=1010),
    ]
    figures = ("tables", "waste")
    whole = table(rows, figures)
    assert whole.splitlines() == [
        "allocator          backend  verdict  tables  waste",
        "-----------------  -------  -------  ------  -----",
        "incremental hpa    native   ok           12      0",
        "legacy_linear 3.6  native   ok           10   1000",
    ]
    others = len("backend  verdict  ") + 24  # and what is kept for figures
    assert "legacy_linear 3.6  " in table(rows, figures, paper=Paper(width=17 + others))
    cut = table(rows, figures, paper=Paper(width=16 + others))
    assert "legacy_linear 3…  " in cut
    assert "incremental hpa " in cut
    assert "legacy_l…  " in table(rows, figures, paper=Paper(width=5))


def test_the_best_and_the_worst_are_coloured() -> None:
    rows = [
        row("a", tables=1), row("b", tables=2), row("c", tables=3),
        row("d", outcome=Outcome.PANIC, detail="no"), row("e", "xen", tables=9),
    ]  # fmt: skip
    text = table(rows, ["tables"], paper=Paper(colour=True))
    assert f"{GREEN}1{RESET}" in text
    assert f"{RED}3{RESET}" in text
    assert f"{RED}panic{RESET}" in text
    assert text.count("\x1b") == 6
    assert "\x1b" not in table(rows, ["tables"])
    paper = Paper(colour=True)
    told = (paper.good("x"), paper.bad("x"), paper.strong("x"))
    assert told == (f"{GREEN}x{RESET}", f"{RED}x{RESET}", f"{BOLD}x{RESET}")
    assert {PLAIN.good("x"), PLAIN.bad("x"), PLAIN.strong("x")} == {"x"}


def test_merit() -> None:
    """More of what is left is better, less of what is taken; what only tells what was done is
    neither, nor is a place, a word, or a plugin's own figure.
    """
    more = {name for name in FIGURES if name.startswith(("largest_free_", "crashkernel_"))}
    assert len(more) == 10
    neither = {
        "used", "brk_used", "brk_size", "lowest_table", "highest_table", "direct_writes",
        "hypercall_writes", "mapped_4k", "mapped_large", "mapped_huge", "steps",
        *(f"{what}_l{level}" for what in ("pins", "validations") for level in range(1, 5)),
    }  # fmt: skip
    assert {name for name in FIGURES if merit(name) is Merit.MORE} == more
    assert {name for name in FIGURES if merit(name) is Merit.NEITHER} == neither
    for name in ("tables", "waste", "flips", "hypercalls"):
        assert merit(name) is Merit.LESS
    assert merit("xen.hypercalls") is Merit.NEITHER
    rows = [row("a", waste=5), row("b", waste=5), row("c"), row("d", where=TWO, waste=9)]
    assert judged(rows, "waste") == [Merit.NEITHER] * 4
    rows += [row("e", waste=7), row("f", waste=6)]
    assert judged(rows, "waste") == [
        Merit.MORE, Merit.MORE, Merit.NEITHER, Merit.NEITHER, Merit.LESS, Merit.NEITHER,
    ]  # fmt: skip
    assert judged([row("a", used=1), row("b", used=2)], "used") == [Merit.NEITHER] * 2


def test_figures_are_divided_among_tables_that_fit() -> None:
    rows = [row("a", tables=1, waste=2, reserved=3)]
    figures = ["tables", "waste", "reserved"]
    titles = [FIGURES[name].header for name in figures]
    fixed = len("allocator  backend  verdict")
    widths = [fixed + sum(len(title) + 2 for title in titles[:n]) for n in range(4)]
    assert list(fit(rows, figures, Paper(width=widths[3]))) == [figures]
    assert list(fit(rows, figures, Paper(width=widths[3] - 1))) == [figures[:2], figures[2:]]
    assert list(fit(rows, figures, Paper(width=widths[2]))) == [figures[:2], figures[2:]]
    assert list(fit(rows, figures, Paper(width=widths[1]))) == [[name] for name in figures]
    assert list(fit(rows, figures, Paper(width=1))) == [[name] for name in figures]
    assert list(fit(rows, [], PLAIN)) == []
    coloured = Paper(width=widths[3], colour=True)
    bad = [row("a", outcome=Outcome.ERROR, tables=1, waste=2, reserved=3)]
    assert list(fit(bad, figures, coloured)) == [figures]


def test_the_short_table_names_what_has_no_room() -> None:
    rows = [
        row("a", **{"tables": 1, "waste": 2, "mine.count": 7, "mine.words": "so be it"}),
        row("b", outcome=Outcome.PANIC, detail="no \x1b space", **{"mine.words": "never"}),
        row("c", outcome=Outcome.PANIC, detail="no \x1b space", **{"mine.words": "never"}),
    ]
    text = figure_tables(rows, paper=Paper(width=1000))
    first, *rest = text.split("\n\n")
    assert first.splitlines()[0].split()[:3] == ["allocator", "backend", "verdict"]
    assert "mine.count" in first
    assert rest == [
        "mine.words: so be it (a/native); never (b/native, c/native)",
        r"b/native, c/native: panic: no \x1b space",
    ]
    narrow = figure_tables(rows[:1], paper=Paper(width=50)).split("\n\n")[1].split()
    joined = " ".join(narrow)
    assert joined.startswith("mine.words: so be it left out for want of room: ")
    assert joined.endswith("(--wide shows them)")
    wide = figure_tables(rows, wide=True, paper=Paper(width=1000))
    assert wide.count("verdict") == 3  # two groups of figures that are known, and the plugin's
    assert "left out" not in wide


def test_what_was_checked_is_told_of_allocators_and_of_backends_that_were() -> None:
    checked = attrs.evolve(row("b", "xen"), verified="3/3 kernel", backend_verified="5/5 xen")
    assert verification([row("incremental"), checked]).splitlines() == [
        "Checked against (agree/compared, by judge: `paravirt-mm verify`):",
        "  incremental  not checked",
        "  b            3/3 kernel",
        "  xen          5/5 xen",
    ]
    assert verification([row()]).count("\n") == 1
    long = attrs.evolve(checked, verified="words " * 30)
    assert max(map(len, verification([long]).splitlines())) <= 100
    assert verification([long]).splitlines()[2].startswith("    words"), "indented by four"


def test_assumptions_are_shown_up_to_a_number() -> None:
    assert MAX_ASSUMED == 8

    def told(count: int) -> str:
        facts = tuple(f"fact {n}\x1b" for n in range(count))
        where = machine(provenance=Provenance("x", assumed=facts))
        return assumptions(where, Paper(width=1000))

    assert told(0) == ""
    assert told(1) == r"Assumed: fact 0\x1b."
    assert told(MAX_ASSUMED).count("fact") == MAX_ASSUMED
    assert "more" not in told(MAX_ASSUMED)
    assert told(MAX_ASSUMED + 2).count("fact") == MAX_ASSUMED
    assert told(MAX_ASSUMED + 2).endswith("; and 2 more (see `paravirt-mm machines`).")


def test_title_of_a_machine() -> None:
    assert machine_title(ONE) == "one: 64M RAM, 1 piece, x86_64, 4 levels"
    titled = machine("m", (0, MIB), (2 * MIB, 3 * MIB), provenance=Provenance("x", title="T\x1b"))
    assert machine_title(titled) == r"T\x1b: 2M RAM, 2 pieces, x86_64, 4 levels"
    pae = machine_title(machine("p", (0, 2 * GIB), mode=I386_PAE))
    assert pae.splitlines()[1:] == [
        "Lowmem: 896M below 0x38000000, 1.1G HIGHMEM above. In 4 KiB pages: 448 L1 tables.",
        "A brk area of 256K maps at least 128M of it.",
    ]


def test_values_in_words() -> None:
    sizes = {
        0: "0", 1023: "1023", KIB: "1K", 1536: "1.5K", MIB - 1: "1024K", MIB: "1M", GIB: "1G",
        3 * GIB // 2: "1.5G", TIB: "1T", 64 * TIB: "64T",
    }  # fmt: skip
    assert {number: size(number) for number in sizes} == sizes
    by_unit = {figure.unit.name: figure for figure in FIGURES.values()}
    assert show(by_unit["ADDRESS"], 4096) == "0x1000"
    assert show(by_unit["BYTES"], 4096) == "4K"
    assert [show(by_unit[unit], "none") for unit in ("ADDRESS", "BYTES")] == ["none", "none"]
    assert show(by_unit["RATIO"], 1.005) == "1.00"
    assert show(by_unit["RATIO"], None) == "-"
    assert [show(by_unit["YES_NO"], value) for value in (True, False)] == ["yes", "no"]
    counts = next(f for f in FIGURES.values() if f.unit.name not in ("ADDRESS", "BYTES"))
    assert show(counts, 4096) == "4096"
    assert show(by_unit["COUNT"], "a\x1b") == r"a\x1b"


def test_labels_that_no_cut_tells_apart_are_whole() -> None:
    deep = "/".join(["x"] * 40)
    specs = [f"linux:image=/a/{deep}/k", f"linux:image=/b/{deep}/k"]
    assert list(labels(specs).values()) == specs


# -- several machines ------------------------------------------------------------------------------


def many(where: Machine, *ends: Outcome, **figures: int) -> list[Row]:
    """A row of each of three scenarios."""
    scenarios = (("a", "native"), ("b", "native"), ("a", "xen"))
    return [
        row(allocator, backend, where, end, **(figures if end is Outcome.OK else {}))
        for (allocator, backend), end in zip(scenarios, ends, strict=True)
    ]


OK, PANIC, REJECTED = Outcome.OK, Outcome.PANIC, Outcome.REJECTED
FIGURES_OF_ONE = {"tables": 4, "waste": 1, "flips": 10, "flips_wasted": 2, "tables_below_16m": 4096}


def test_sums_are_over_machines_on_which_all_ended_well() -> None:
    rows = [
        *many(ONE, OK, OK, OK, **FIGURES_OF_ONE),
        *many(TWO, OK, PANIC, OK, **FIGURES_OF_ONE),
        *many(machine("three"), OK, OK, OK, **{**FIGURES_OF_ONE, "tables_below_16m": 8192}),
    ]
    assert [one.machine.name for one in comparable(rows)] == ["one"] * 3 + ["three"] * 3
    assert summary_table(rows).splitlines() == [
        "allocator  backend  ok  panic  tables  waste  flips  /table  wasted  max<16M",
        "---------  -------  --  -----  ------  -----  -----  ------  ------  -------",
        "a          native    3      0       8      2     20    2.50       4       8K",
        "b          native    2      1       8      2     20    2.50       4       8K",
        "a          xen       3      0       8      2     20    2.50       4       8K",
        "",
        "sums: over the 2 of 3 machines on which every row ended ok",
    ]
    both = summary_table(rows[:3] + rows[6:])
    assert both.splitlines()[-1] == "sums: over both machines, every row ended ok"
    one = summary_table(rows[:3])
    assert one.splitlines()[-1].startswith("sums: over ")
    assert " of " not in one.splitlines()[-1]


def test_where_no_machine_is_good_for_all_each_platform_has_its_own() -> None:
    rows = [*many(ONE, OK, OK, REJECTED, **FIGURES_OF_ONE), *many(TWO, OK, OK, PANIC)]
    assert len(comparable(rows)) == 4
    *lines, note = summary_table(rows).splitlines()
    assert note == (
        "sums: over the machines on which every row of the platform ended ok "
        "(2 under native, 0 under xen)"
    )
    assert lines[-2].split() == ["a", "xen", "0", "1", "1", *["-"] * 6]
    bad = [row(outcome=PANIC), row("b", outcome=OK)]
    assert summary_table(bad).splitlines()[-1] == (
        "sums: there is no machine on which every row ended ok"
    )


def test_a_summary_leaves_out_its_last_columns_on_narrow_paper() -> None:
    rows = many(ONE, OK, OK, OK, **FIGURES_OF_ONE)
    whole = summary_table(rows)
    width = len("allocator  backend  ok  tables  waste  flips  /table  wasted  max<16M")
    assert summary_table(rows, paper=Paper(width=width)).startswith(whole.split("\n\n")[0])
    narrow = summary_table(rows, paper=Paper(width=width - 1))
    assert "max<16M" not in narrow.splitlines()[0]
    assert narrow.endswith("left out for want of room: max<16M")
    columns = {"a": ["1234567890"], "b": ["1"], "c": ["123"]}  # cells wider than their titles
    width = len("1234567890  1  123")
    for room, titles in ((width, "abc"), (width - 1, "ab"), (12, "a")):
        head, *rest = fitted(columns, ["note"], "simple", Paper(width=room)).splitlines()
        assert "".join(head.split()) == titles
        assert ("left out" in " ".join(" ".join(rest).split())) == (titles != "abc")


def test_sums_of_no_machine_are_nought() -> None:
    (total,) = totals([row(outcome=PANIC, tables=3, tables_below_16m=4096)])
    assert (total.machines, total.tables, total.waste, total.below_16m) == (0, 0, 0, 0)
    assert (total.failed, total.flips_a_table) == (1, None)
    (total,) = totals([row(outcome=OK, tables=4, flips=6)])
    assert (total.machines, total.below_16m, total.flips_a_table) == (1, 0, 1.5)
    assert total.failed == 0
    (refused,) = totals([row(outcome=REJECTED)])
    assert refused.failed == 0


def test_crash_kernels_of_one_run_and_of_many() -> None:
    largest = "crashkernel_largest_below_896m"
    asked = {"1M": ((16 * MIB, 16 * MIB), (32 * MIB, 64 * MIB)), "1M@16M": ((16 * MIB, 16 * MIB),)}
    one = attrs.evolve(row(**{largest: 300 * MIB}), crashkernels=asked)
    line, note = crashkernels([one]).splitlines()[2], crashkernels([one]).splitlines()[-1]
    assert line.split() == ["incremental", "native", "300M", "-", "16M,", "32M..64M", "fits"]
    assert note.startswith("N: the largest crashkernel=N that fits below; Y:")
    other = attrs.evolve(
        row(where=TWO, **{largest: 200 * MIB}), crashkernels={**asked, "1M@16M": ()}
    )
    failed = row(where=machine("three"), outcome=PANIC)
    text = crashkernels([one, other, failed]).splitlines()
    assert text[2].split() == [
        "incremental",
        "native",
        "200M",
        "-",
        *["2", "of", "2", "1", "of", "2"],
    ]
    assert text[-1].endswith("on every machine where a run could end.")
    assert crashkernels([failed]).splitlines()[2].split() == ["incremental", "native", "-", "-"]


def test_crash_kernels_as_columns() -> None:
    asked = {"1M": ((16 * MIB, 32 * MIB),), "1M@16M": ((16 * MIB, 16 * MIB),), "9G": ()}
    assert list(as_columns(asked)) == [
        ("crashkernel=1M", "16M..32M"), ("crashkernel=1M@16M", "fits"), ("crashkernel=9G", "no"),
    ]  # fmt: skip


@pytest.mark.parametrize("place", [0, 1])
def test_a_crash_kernel_at_0_or_1_mib(place: int) -> None:
    asked = {"1M": ((place * MIB, (place + 1) * MIB),)}
    text = crashkernels([attrs.evolve(row(), crashkernels=asked)])
    assert f"{place}M..{place + 1}M" in text
