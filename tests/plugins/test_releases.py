"""Facts by release: the tables of docs/kernel-releases.md are those of the plugins, and what the
tables say is what the plugins do.

``python tests/plugins/test_releases.py`` writes the tables into the document.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import attrs
import pytest

from paravirt_mm import (
    MODES,
    CpuFeatures,
    E820Type,
    KernelImage,
    Machine,
    MemoryMap,
    Outcome,
    PageRun,
    Run,
    Scenario,
    SpecError,
    TablesAllocated,
    TablesReserved,
)
from paravirt_mm.engine.trace import RangeSplit
from paravirt_mm.machine.release import leading_version
from paravirt_mm.verify.log import variants
from paravirt_mm_incremental import questions as incremental_questions, releases as incremental
from paravirt_mm_legacy_linear import questions as linear_questions, releases as linear

DOCUMENT = Path(__file__).parents[2] / "docs" / "kernel-releases.md"
MIB, GIB = 1 << 20, 1 << 30

# -- the document ----------------------------------------------------------------------------------


def dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


def spans(starts: Sequence[tuple[int, ...]], last: str) -> list[str]:
    """Return "first-last" of each row; the last row is open where ``last`` is empty."""
    ends = [before(start) for start in starts[1:]] + [last]
    return [
        dotted(start) if dotted(start) == end else f"{dotted(start)} - {end}".rstrip()
        for start, end in zip(starts, ends, strict=True)
    ]


def before(version: tuple[int, ...]) -> str:
    series = list(variants.all_series())
    return series[series.index(dotted(version)) - 1]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def linear_table(changes: Sequence[linear.Change]) -> str:
    rows = []
    for span, change in zip(spans([c.since for c in changes], "3.8"), changes, strict=True):
        where = "from the top" if change.top_down else "from the bottom"
        limit = {"mapped": "what is mapped", "end": "the range's end"}[change.good_end]
        start = f"{change.search_start:#x}" if change.search_start else "page 1"
        fixmap = {None: "by entries"}.get(change.fixmap, str(change.fixmap))
        cells = [span, str(change.guess), f"{start} to {limit}, {where}"]
        cells.append(str(change.calls) if changes is linear.X86_64 else fixmap)
        rows.append([*cells, change.note])
    last = "ranges" if changes is linear.X86_64 else "fixmap tables"
    return table(["releases", "guess", "block searched", last, "what changed"], rows)


def incremental_table() -> str:
    changes = incremental.CHANGES
    rows = [
        [span, c.brk, c.growth, c.promote, c.bottom_up, c.fallback, c.no_block, c.note]
        for span, c in zip(spans([c.since for c in changes], ""), changes, strict=True)
    ]
    head = ["releases", "brk pages", "step grows", "promotion", "bottom-up search",
            "no page found", "no free large page", "what changed"]  # fmt: skip
    return table(head, rows)


def backports_table() -> str:
    rows = [
        [f"{dotted(b.since)} and later {dotted(b.since[:2])}", b.field.replace("_", " "),
         dotted(b.mainline)]
        for b in incremental.BACKPORTS
    ]  # fmt: skip
    return table(["stable releases", "column", "as mainline"], rows)


def guesses_table() -> str:
    source = Path(linear.__file__).read_text(encoding="utf-8")
    body = source[source.index("class Guess") : source.index("class GoodEnd")]
    texts = re.findall(r'^    \w+ = "([\w-]+)"\n    """(.*?)"""', body, re.DOTALL | re.MULTILINE)
    assert [name for name, _ in texts] == list(linear.Guess)
    names = {f"`{guess.name}`": f"`{guess}`" for guess in linear.Guess}
    rows = []
    for name, text in texts:
        for old, new in names.items():
            text = text.replace(old, new)
        rows.append([f"`{name}`", " ".join(text.split())])
    return table(["guess", "tables are estimated"], rows)


def variants_table() -> str:
    rows = []
    for allocator, questions in (
        ("legacy_linear", linear_questions.QUESTIONS),
        ("incremental", incremental_questions.QUESTIONS),
    ):
        for question in questions:
            since, end = question.since, question.before
            releases = f"{since} -" if end == "99" else f"{since} - {before(leading_version(end))}"
            told = "; ".join(choice.words for choice in question.choices if choice.words)
            rows.append([allocator, ", ".join(question.modes), releases, told])
    return table(["allocator", "modes", "releases", "choices besides what is in the tables"], rows)


TABLES = {
    "guesses": guesses_table,
    "linear x86_64": lambda: linear_table(linear.X86_64),
    "linear i386": lambda: linear_table(linear.I386),
    "incremental": incremental_table,
    "backports": backports_table,
    "variants": variants_table,
}


def with_tables(text: str) -> str:
    for name, render in TABLES.items():
        start, end = f"<!-- table: {name} -->", "<!-- end -->"
        assert text.count(start) == 1, name
        head, rest = text.split(start)
        text = f"{head}{start}\n{render()}\n{end}{rest.partition(end)[2]}"
    return text


def test_document_has_the_plugins_tables() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text == with_tables(text), "stale: run python tests/plugins/test_releases.py"


# -- rows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [linear.X86_64, linear.I386, incremental.CHANGES])
def test_rows_are_in_order_and_each_changes_something(rows: Sequence[linear.Change]) -> None:
    assert [row.since for row in rows] == sorted({row.since for row in rows})
    for older, newer in pairwise(rows):
        assert attrs.evolve(older, since=newer.since, note=newer.note) != newer


@pytest.mark.parametrize(
    ("kernel", "guess", "good_end", "top_down", "start"),
    [
        ("2.6.19-rc5", "large-pages", "end", False, 0x8000),
        ("2.6.26.8", "large-pages", "end", False, 0x8000),
        ("2.6.30.10", "whole", "end", False, 0x8000),
        ("2.6.31", "whole", "mapped", False, 0x8000),
        ("2.6.38.8", "whole", "mapped", True, 0x8000),
        ("2.6.39", "whole", "end", True, 0),
        ("3.0", "whole", "end", True, 0),
        ("3.1", "whole", "mapped", True, 0),
        ("3.4.0", "whole", "mapped", True, 0),
        ("3.5", "first-piece", "mapped", True, 0),
        ("3.6.11", "first-piece", "mapped", True, 0),
        ("3.7.2", "pieces", "mapped", True, 0),
        ("3.8.13", "pieces-and-roots", "mapped", True, 0),
    ],
)
def test_linear_facts_of_a_release(
    kernel: str, guess: str, good_end: str, top_down: bool, start: int
) -> None:
    row = linear.change_for(kernel, is_32bit=False)
    assert (row.guess, row.good_end) == (guess, good_end)
    assert (row.top_down, row.search_start) == (top_down, start)


@pytest.mark.parametrize(
    ("kernel", "guess", "top_down", "start", "fixmap"),
    [
        ("2.6.27", "whole", False, 0x7000, 2),
        ("2.6.29", "whole", False, 0x7000, None),
        ("2.6.37", "whole", True, 0x7000, None),
        ("2.6.39", "whole", True, 0, None),
        ("3.5", "first-piece", True, 0, None),
        ("3.7", "pieces", True, 0, None),
        ("3.8", "pieces-and-roots", True, 0, None),
    ],
)
def test_linear_facts_of_a_32bit_release(
    kernel: str, guess: str, top_down: bool, start: int, fixmap: int | None
) -> None:
    row = linear.change_for(kernel, is_32bit=True)
    assert (row.guess, row.good_end, row.fixmap) == (guess, "mapped", fixmap)
    assert (row.top_down, row.search_start) == (top_down, start)


@pytest.mark.parametrize("kernel", ["2.6.18", "3.9", "4.19", "nonsense", "3"])
def test_kernels_without_the_linear_allocator(kernel: str) -> None:
    with pytest.raises(SpecError):
        linear.change_for(kernel, is_32bit=False)


def test_32bit_kernels_begin_with_2_6_27() -> None:
    assert linear.change_for("2.6.26", is_32bit=False)
    with pytest.raises(SpecError, match=r"2\.6\.27 to 3\.8 in this mode"):
        linear.change_for("2.6.26", is_32bit=True)


@pytest.mark.parametrize(
    ("kernel", "mode", "sizes"),
    [
        ("3.18", "x86_64", [2 * MIB, 64 * MIB, 2 * GIB]),
        ("3.19", "x86_64", [2 * MIB, 512 * MIB, 128 * GIB]),
        ("4.19", "i386-pae", [2 * MIB, 512 * MIB, 128 * GIB]),
        ("4.19", "i386", [4 * MIB, 2 * GIB, 1024 * GIB]),
    ],
)
def test_steps_grow(kernel: str, mode: str, sizes: list[int]) -> None:
    row = incremental.change_for(kernel)
    step, mapped = sizes[0], 0
    for size in sizes[1:]:
        mapped += step
        step = row.next_step(MODES[mode], step, mapped, step)
        assert step == size


def test_steps_grow_by_what_each_release_looks_at() -> None:
    mode, step = MODES["x86_64"], 64 * MIB
    old, new = incremental.change_for("3.18"), incremental.change_for("3.19")
    # 40 MiB in this step after 30 MiB before: more than all before, less than the step size.
    assert old.next_step(mode, step, 70 * MIB, 40 * MIB) > step
    assert new.next_step(mode, step, 63 * MIB, 40 * MIB) == step
    # Half of what is mapped is not more than the other half.
    assert old.next_step(mode, step, 80 * MIB, 40 * MIB) == step
    assert new.next_step(mode, step, 64 * MIB, 0) > step


# -- the published example of 2.6.39 ---------------------------------------------------------------

SERVER_128G = Machine(
    name="128-gib-server",
    memory_map=MemoryMap.sanitise(
        [(0x1000, 0x9F000, E820Type.RAM), (MIB, 0x7F750000, E820Type.RAM),
         (4 * GIB, 0x2080000000, E820Type.RAM)]
    ),
    features=CpuFeatures(pse=True, gbpages=False),
    kernel=KernelImage(16 * MIB, 30 * MIB, 30 * MIB, 31 * MIB),
    # Assumed. The message lists no reservation, but a search from the top could only end at
    # 7bc84000 if what lies above was taken; all of it, but for the four pages that the later
    # release used at its very end, or but for less than the 131 pages that were needed.
    reserved=((0, 64 << 10), (0x7BC84000, 0x7F74C000)),
    boot_mapped=512 * MIB,
)  # fmt: skip


def blocks(run: Run) -> list[tuple[int, int, int]]:
    """(start, top, end of what was used) of each call's block, in bytes."""
    found: list[tuple[int, int, int]] = []
    for event in run.trace:
        if isinstance(event, TablesReserved):
            found.append((*event.pages[0].span, 0))
        elif isinstance(event, TablesAllocated):
            found[-1] = (*found[-1][:2], max(run.span[1] for run in event.batch.runs))
    return found


@pytest.mark.parametrize(
    ("kernel", "low", "high"),
    [
        ("2.6.38", (0x1FFFC000, 0x20000000), (0x7BC01000, 0x7BC84000, 0x7BC7F000)),
        ("2.6.39", (0x7F74C000, 0x7F750000), (0x207FF7D000, 0x2080000000, 0x207FFFB000)),
    ],
)
def test_published_example(kernel: str, low: tuple[int, int], high: tuple[int, int, int]) -> None:
    """The change "put early page table high" was published with what a machine of 128 GiB printed
    before and after.
    """
    scenario = Scenario.of(SERVER_128G, f"legacy_linear:kernel={kernel}", "native:ident_tables=yes")
    run = scenario.run()
    assert run.verdict.outcome is Outcome.OK
    first, second = blocks(run)
    assert first[:2] == low
    assert second == high
    ranges = [(e.start, e.end) for e in run.trace if isinstance(e, RangeSplit)]
    assert ranges == [(0, 0x7F750000), (4 * GIB, 0x2080000000)]


def test_a_crash_kernel_of_512_mib_fits_below_896_mib_only_with_tables_high() -> None:
    """The reason that was given for the change."""

    def room(kernel: str) -> int:
        scenario = Scenario.of(SERVER_128G, f"legacy_linear:kernel={kernel}", "native")
        return int(scenario.run().figures["largest_free_below_896m"])

    assert room("2.6.39") >= 512 * MIB > room("2.6.38")


# -- modes and options -----------------------------------------------------------------------------


def a_machine(**changes: object) -> Machine:
    memory = MemoryMap.sanitise([(0, 0x9F000, E820Type.RAM), (MIB, 2 * GIB, E820Type.RAM)])
    kernel = KernelImage(16 * MIB, 30 * MIB, 30 * MIB, 30 * MIB + 24 * 4096)
    return attrs.evolve(Machine(name="m", memory_map=memory, kernel=kernel), **changes)


def mapped(run: Run) -> list[tuple[int, int]]:
    return [(event.start, event.end) for event in run.trace if isinstance(event, RangeSplit)]


def table_runs(run: Run) -> list[PageRun]:
    return [r for e in run.trace if isinstance(e, TablesAllocated) for r in e.batch.runs]


def go(machine: Machine, allocator: str, backend: str = "native") -> Run:
    run = Scenario.of(machine, allocator, backend).run()
    assert run.verdict.outcome is Outcome.OK, run.verdict
    return run


def test_movable_node_maps_upward_from_the_kernels_end() -> None:
    machine = a_machine(features=CpuFeatures(pse=False))
    run = go(machine, "incremental:kernel=4.19,movable_node=yes")
    end = machine.kernel.with_brk(12).loaded[1]
    assert mapped(run)[0] == (0, MIB)
    above = [span for span in mapped(run) if span[0] >= end]
    below = [span for span in mapped(run)[1:] if span[0] < end]
    assert above == sorted(above)
    assert below == sorted(below)
    assert mapped(run)[1:] == above + below
    assert above[0] == (end, 32 * MIB)
    assert above[1] == (32 * MIB, 34 * MIB)
    # Tables lie right above the kernel, not at the end of memory.
    assert max(run.span[1] for run in table_runs(run)) < 48 * MIB
    top_down = go(machine, "incremental:kernel=4.19")
    assert max(run.span[1] for run in table_runs(top_down)) == 2 * GIB


def test_movable_node_came_with_3_13() -> None:
    go(a_machine(), "incremental:kernel=3.13,movable_node=yes")
    with pytest.raises(SpecError, match=r"3\.12 does not know movable_node"):
        Scenario.of(a_machine(), "incremental:kernel=3.12,movable_node=yes", "native").run()


@pytest.mark.parametrize(("mode", "pages"), [("x86_64", 1), ("x86_64-la57", 2), ("i386-pae", 0)])
def test_a_randomised_map_takes_trampoline_tables_from_brk(mode: str, pages: int) -> None:
    machine = a_machine(mode=MODES[mode])
    plain = table_runs(go(machine, "incremental:kernel=5.15"))
    shifted = table_runs(go(machine, "incremental:kernel=5.15,kaslr=yes"))
    isa = MODES[mode].root_level - 1 if mode != "i386-pae" else 0
    brk = machine.kernel.brk_start >> 12

    def numbers(runs: list[PageRun]) -> list[int]:
        inside = [run for run in runs if brk <= run.low < brk + 24]
        return [run.start + n for run in inside for n in range(run.count)]

    before_it, after_it = numbers(plain)[:isa], numbers(plain)[isa:]
    assert after_it or pages == 0
    assert numbers(shifted) == before_it + [pfn + pages for pfn in after_it]


def test_ident_tables_spare_two_tables_and_the_first_huge_page() -> None:
    machine = a_machine(features=CpuFeatures(pse=True, gbpages=True))
    plain = go(machine, "legacy_linear:kernel=3.4")
    static = go(machine, "legacy_linear:kernel=3.4", "native:ident_tables=yes")
    assert plain.figures["tables"] == static.figures["tables"] + 1  # one L3; no L2 was needed
    assert plain.figures["mapped_huge"] == 2 * GIB
    assert static.figures["mapped_huge"] == GIB


def test_2_6_26_maps_whole_large_pages_and_everything_listed() -> None:
    memory = MemoryMap.sanitise([
        (0, 0x9F000, E820Type.RAM), (MIB, 0x1FFE3000, E820Type.RAM),
        (0x1FFE3000, 0x20000000, E820Type.ACPI), (0xFEC00000, 0xFEC01000, E820Type.RESERVED),
    ])  # fmt: skip
    run = go(a_machine(memory_map=memory), "legacy_linear:kernel=2.6.25")
    assert mapped(run) == [(0, 0xFEE00000)]
    assert blocks(run)[0][0] == 0x8000
    # One L3 and one L2 table: the holes between 1 GiB and the APIC's slot stay empty.
    assert run.figures["tables"] == 3


@pytest.mark.parametrize(
    ("options", "pages"),
    [("", 5), ("fixmap_entries=500", 4), ("fixmap_entries=512", 4), ("fixmap_entries=513", 5)],
)
def test_fixmap_tables_are_part_of_a_32bit_guess(options: str, pages: int) -> None:
    machine = a_machine(mode=MODES["i386-pae"], boot_mapped=64 * MIB)
    spec = ",".join(filter(None, ["legacy_linear:kernel=2.6.32", options]))
    ((start, top, _),) = blocks(go(machine, spec))
    assert (top - start) >> 12 == pages


if __name__ == "__main__":
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(0)
