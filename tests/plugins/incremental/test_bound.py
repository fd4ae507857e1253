"""docs/bound.md: its proofs, and the allocator itself on both sides of every border.

::

    0        kernel, brk                      taken            top
    ├────────┬─────────┬──────── free ───────┬─────────────────┤
             └ tables come from here first,   └ 64 pages must reach past this
"""

from __future__ import annotations

import json
import random
import re
import textwrap
from collections.abc import Iterable
from functools import partial
from itertools import product
from pathlib import Path

import attrs
import pytest
from click.testing import CliRunner

from paravirt_mm import (
    MODES,
    CpuFeatures,
    E820Type,
    ExitCode,
    Machine,
    MemoryMap,
    Outcome,
    RangeSet,
    Run,
    Scenario,
    SpecError,
)
from paravirt_mm.cli.main import cli
from paravirt_mm.testing import generate
from paravirt_mm_incremental.bound import TableSpan, enough, left_of_brk, spans, stuck

z3 = pytest.importorskip("z3", reason="z3 is not installed")
proof = pytest.importorskip("paravirt_mm_incremental.proof", reason="z3 is not installed")

PAGE = 4096
MIB = 1 << 20
DOCUMENT = Path(__file__).parents[3] / "docs" / "bound.md"
DEAR = {"contiguous-3-30208-64", "contiguous-3-65536-133"}
STATEMENTS = {statement.name: statement for statement in proof.statements()}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in DEAR else ()) for n in STATEMENTS]
)
def test_proved(name):
    assert proof.prove(STATEMENTS[name]).proved


def test_the_document_names_what_is_proved():
    named = set(re.findall(r"`(contiguous-[\d-]+|enough-\d)`", DOCUMENT.read_text("utf-8")))
    assert named <= set(STATEMENTS)
    assert {name for name in STATEMENTS if name.startswith("contiguous")} <= named


NUMBERS = {
    "rounds": "",
    **{f"enough-{levels}": f"{levels} {levels}" for levels in (2, 3, 4)},
    "pae-64": "4 64 64 2 2",
    # Levels, pages taken, the same in MiB, budget, and up to which MiB: of lowmem, or 64 TiB.
    "contiguous-1-0-1": "1 0 0 1 896",
    "contiguous-3-0-5": f"3 0 0 5 {64 << 20}",
    "contiguous-1-32256-64": "1 32256 126 64 896",
    "contiguous-3-30208-64": f"3 30208 118 64 {64 << 20}",
    "contiguous-3-65536-133": f"3 65536 256 133 {64 << 20}",
    **{f"linux-first-{n}": f"{n} {n} {n} {2 * n}" for n in (2, 3, 4)},
    # (x86_64, 4 KiB pages;) growth, so many free in so many.
    "linux-step-32-1-15": "86 64 4 32 1 15",
    "linux-step-256-129-256": "86 64 4 256 129 256",
}


SHOWN = {
    "rounds": "begin paid gained cost",
    "enough": "budget left tables free",
    "pae": "top start",
    "contiguous": "top_pfn",
    "linux-first": "block_pfn tables",
    "linux-step": "mapped low high free",
}


def test_each_statement_has_the_numbers_of_its_name_in_words():
    """All of them, in the order of docs/bound.md, for each number of levels that there is: two
    below the root with PAE, three, and four with five-level paging.
    """
    told = {name: " ".join(re.findall(r"\d+", each.words)) for name, each in STATEMENTS.items()}
    assert list(told.items()) == list(NUMBERS.items())
    assert "32257 pages (126 MiB)" in proof.contiguous(1, 32257, 64).words
    # One page less than deficit and levels: 10 + 3 - 1.
    assert re.findall(r"\d+", proof.less_is_not_enough(3, 10).words) == ["3", "12", "10"]
    for name, statement in STATEMENTS.items():
        (shown,) = (known for start, known in SHOWN.items() if name.startswith(start))
        assert list(statement.shown) == shown.split(), name
    wide = {mode.root_level - 1 for mode in MODES.values() if mode.entry_bytes == 8}
    assert wide == {2, 3, 4}


@pytest.mark.parametrize(
    "wrong",
    [
        proof.less_is_not_enough(2, 10),
        proof.less_is_not_enough(3, 10),
        proof.less_is_not_enough(4, 10),
        proof.less_is_not_enough(3, 3),  # a block of one span
        proof.seed_reach(64).__class__("x", "x", proof.seed_reach(64).opposite[:-1]),
        proof.linux_step(32, 1, 16),
        proof.linux_step(256, 1, 2),
        *(proof.contiguous(n, taken + 1, b) for n, taken, b in proof.CONTIGUOUS[2:4]),
        *(proof.contiguous(n, 0, b - 1) for n, taken, b in proof.CONTIGUOUS if not taken),
    ],
    ids=lambda statement: statement.name,
)
def test_just_beyond_is_refuted(wrong):
    """A formula that nothing can refute proves nothing: each has numbers one step further."""
    found = proof.prove(wrong)
    assert not found.proved
    assert found.refutation is not None


MOST = 1 << 34
"""Pages of 64 TiB."""
FORMULAS = {
    "rounds": (
        {"begin": 0, "paid": 0, "gained": 0, "cost": 1},
        [
            {"begin": -1},
            {"paid": -1, "cost": 5},
            {"gained": -1},
            {"cost": -1, "paid": 9},
            {"cost": 0},
        ],
        [{"begin": 5, "cost": 9}, {"paid": 9, "cost": 0}, {"begin": 2, "gained": 3, "cost": 6}],
    ),
    "enough-3": (
        {"budget": 5, "left": 2, "tables": 3, "free": 1},
        [
            {"budget": 4},
            {"left": 1},
            {"tables": 4, "left": 3, "budget": 6},
            {"tables": -1},
            {"free": -1, "left": 9, "budget": 12},
            {"free": 513},
            {"tables": 0, "left": -1, "budget": 3},
        ],
        [
            {"budget": 9},
            {"tables": 0, "left": 0, "budget": 3},
            {"free": 0, "left": 3, "budget": 6},
            {"free": 512, "left": 0, "budget": 3},
            {"free": 3, "left": 0, "budget": 3},
        ],
    ),
    "pae-64": (
        {"top": 64 * 512 + 512, "start": 512},
        [
            {"top": 64 * 512, "start": 0},
            {"top": 896 * 256 + 1, "start": 896 * 256 + 1 - 64 * 512},
            {"start": 1024},
            {"start": 0},
        ],
        [{"top": 64 * 512 + 1, "start": 512}, {"top": 896 * 256, "start": 896 * 256 - 64 * 512}],
    ),
    "contiguous-1-0-1": (
        {"top": 2048},
        [{"top": 1024}, {"top": 896 * 256 + 1}],
        [{"top": 1025}, {"top": 896 * 256}],
    ),
    "contiguous-3-0-5": ({"top": MOST}, [{"top": 1024}, {"top": MOST + 1}], [{"top": 1025}]),
    "contiguous-1-32256-64": ({"top": 40000}, [{"top": 32256 + 1024}], [{"top": 32256 + 1025}]),
    "linux-first-3": (
        {"block": 512},
        [{"block": 0}, {"block": 513}, {"block": MOST + 512}],
        [{"block": MOST}, {"block": 1 << 27}],
    ),
    "linux-step-32-1-15": (
        {"mapped": 1500, "step": 1024, "low": 0, "high": 1024, "free": 105},
        [
            {"mapped": 511, "step": 512, "high": 512, "free": 500},
            {"mapped": MOST + 1, "free": MOST},
            {"step": 32 * 1500 + 512, "free": 9999},
            {"step": 48001, "free": 9999},
            {"low": -512, "high": 512},
            {"low": 512, "high": 512},
            {"high": 1536},
            {"low": 100},
            {"high": 1000},
            {"free": 104},
            {"low": MOST - 512, "high": MOST + 512},
        ],
        [
            {"mapped": 512, "step": 512, "high": 512, "free": 40},
            {"mapped": MOST, "free": MOST},
            {"mapped": 1504, "step": 32 * 1504, "free": 106},
            {"low": MOST - 1024, "high": MOST},
        ],
    ),
}
"""By statement: numbers that it speaks of, changes of them that it must not, and that it must."""
PREMISES = {"rounds": 2, "enough": 3, "pae": 3, "contiguous": 2, "linux-first": 1, "linux-step": 6}


@pytest.mark.parametrize("name", FORMULAS)
def test_what_a_formula_speaks_of(name):
    """A premise that leaves numbers out proves less than its words say; one that lets others in
    says more.
    """
    plain, out, inside = FORMULAS[name]
    (count,) = (n for start, n in PREMISES.items() if name.startswith(start))
    statement = STATEMENTS[name]

    def admits(numbers):
        solver = z3.Solver()
        solver.add(*statement.opposite[:count])
        solver.add(*(z3.Int(variable) == value for variable, value in numbers.items()))
        return solver.check() == z3.sat

    assert admits(plain)
    for change in inside:
        assert admits(plain | change), change
    for change in out:
        assert not admits(plain | change), change


def tables(bottom: int, top: int, levels: int) -> int:
    """Tables that map pages ``bottom`` up to, not with, ``top``, where none is there yet."""
    return sum((top - 1) // 512**level - bottom // 512**level + 1 for level in range(1, levels + 1))


def enough_goes_wrong(levels: int, budget: int, left: int, tables: int, free: int) -> bool:
    deficit = max(0, tables - free)
    return budget < tables or budget - tables + free < left - deficit + levels


def reach_goes_wrong(top: int, start: int) -> bool:
    mapped, full = top - start, 64 * 512
    return mapped != full if top % 512 == 0 else not full - 512 < mapped < full


def contiguous_goes_wrong(levels: int, taken: int, budget: int, top: int) -> bool:
    """Too few pages for the first free one, or for the span below with what that has given."""
    free = (top - taken - 1) % 512 + 1
    last = top - taken - free
    return (
        tables(top - taken - 1, top, levels) > budget
        or tables(last - 512, top, levels) > budget + free
    )


def step_goes_wrong(low: int, high: int, free: int, **_: int) -> bool:
    return tables(low, high, 3) > free


def grid(**numbers: Iterable[int]) -> list[dict[str, int]]:
    chance = random.Random(len(numbers))
    every = [dict(zip(numbers, each, strict=True)) for each in product(*numbers.values())]
    return chance.sample(every, min(len(every), 100))


def near(*borders: int) -> list[int]:
    return [border + offset for border in borders for offset in (-1, 0, 1)]


TOPS = sorted({
    k * 512**level + offset
    for level, offsets in ((1, (0, 1, 255, 511)), (2, (0, 1, 2, 511, 513)), (3, (0, 1, 513)))
    for k in (3, 130)
    for offset in offsets
})  # fmt: skip
CONCLUSIONS = {
    "rounds": (
        lambda begin, paid, gained, cost: begin >= paid + cost,
        grid(begin=range(5), paid=range(3), gained=(0, 7), cost=range(3)),
    ),
    "enough-2": (
        partial(enough_goes_wrong, 2),
        grid(budget=range(7), left=range(4), tables=range(4), free=(0, 1, 2, 512)),
    ),
    "enough-4": (
        partial(enough_goes_wrong, 4),
        grid(budget=range(2, 9), left=range(4), tables=range(6), free=(0, 1, 3)),
    ),
    "pae-64": (
        reach_goes_wrong,
        [
            {"top": top, "start": top - size}
            for top in near(64 * 512, 70 * 512, 896 * 256)
            for size in near(63 * 512, 64 * 512, 65 * 512)
        ],
    ),
    "linux-step-32-1-15": (
        step_goes_wrong,
        [
            {"mapped": 0, "step": 0, "low": low, "high": high, "free": free}
            for low, high in [
                (0, 512), (511, 513), (512**2 - 512, 512**2 + 512), (512**3 - 1, 512**3 + 1),
                (0, 512**3), (512**2, 3 * 512**2),
            ]
            for free in near(tables(low, high, 3))
        ],
    ),
    **{
        f"contiguous-{levels}-{taken}-{budget}": (
            partial(contiguous_goes_wrong, levels, taken, budget),
            [{"top": top} for top in TOPS if top > taken + 1024],
        )
        for levels, taken, budget in (
            (1, 5, 1), (3, 0, 4), (1, 511, 1), (1, 600, 2), (2, 511, 3), (3, 511, 5),
        )
    },
}  # fmt: skip
"""By statement: whether numbers contradict it, counted table by table, and some about its edges."""


@pytest.mark.parametrize("name", CONCLUSIONS)
def test_what_a_formula_says(name):
    """Number by number, whether or not it speaks of them: a conclusion that says less would be
    proved as well.
    """
    wrong, points = CONCLUSIONS[name]
    statement = STATEMENTS.get(name)
    if statement is None:
        statement = proof.contiguous(*map(int, name.split("-")[1:]))
    (count,) = (n for start, n in PREMISES.items() if name.startswith(start))
    # Digits of numbers are among the premises, the last of them, and needed here.
    first = 1 if name.startswith("contiguous") else 5 if name.startswith("linux-step") else count
    solver = z3.Solver()
    solver.add(*statement.opposite[first:])
    answers = set()
    for numbers in points:
        solver.push()
        solver.add(*(z3.Int(variable) == value for variable, value in numbers.items()))
        found = solver.check() == z3.sat  # the numbers decide digits, too
        solver.pop()
        assert found is wrong(**numbers), numbers
        answers.add(found)
    assert answers == {True, False}


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_tables_of_a_large_page_far_up(levels):
    """One for each level in whose first table, which serves the first MiB, it does not lie."""
    statement = STATEMENTS[f"linux-first-{levels}"]
    block, made = statement.shown["block_pfn"], statement.shown["tables"]
    for pfn in near(512, 512**2, 512**3, 512**4):
        count = z3.simplify(z3.substitute(made, (block, z3.IntVal(pfn)))).as_long()
        assert count == len([level for level in range(1, levels + 1) if pfn >= 512**level])


def test_what_z3_does_not_decide_in_time_is_not_proved(monkeypatch):
    a, b, c = z3.Ints("a b c")
    hard = proof.Statement("x", "x", (a**3 + b**3 + c**3 == 42,), {"a": a})
    with monkeypatch.context() as patch:
        patch.setattr(proof, "TIMEOUT_MS", 1)
        assert proof.prove(hard) == proof.Proof(hard, proved=False, refutation=None)
    # Numbers that do not matter have some value, too.
    found = proof.prove(proof.Statement("x", "x", (a > 2,), {"a": a, "b": b}))
    assert found.refutation is not None
    assert found.refutation["a"] > 2
    assert isinstance(found.refutation["b"], int)


def reach(levels: int, taken: int, top: int) -> int:
    """Budget that a top needs, counted table by table."""

    def tables(bottom: int) -> int:
        return sum(
            (top - 1) // 512**level - bottom // 512**level + 1 for level in range(1, levels + 1)
        )

    first_free = top - taken - 1
    down_to = first_free // 512 * 512
    return max(tables(down_to), tables(down_to - 512) - (first_free - down_to + 1))


@pytest.mark.parametrize(("levels", "taken", "budget"), proof.CONTIGUOUS)
def test_counting_agrees(levels, taken, budget):
    """The worst top lies near a border of a table: all of those, counted without z3."""
    limit = proof.LOWMEM if levels == 1 else 3 * 512**3
    borders = {
        border + offset
        for border in (k * 512**level for level in range(1, 4) for k in (1, 2, 3, 100, 437))
        for near in (0, taken, taken % 512, -(-taken // 512) * 512)
        for offset in range(near - 3, near + 4)
    }
    tops = [top for top in borders if taken + 1024 < top <= limit]
    assert tops
    assert max(reach(levels, taken, top) for top in tops) == budget


# -- the allocator on both sides ------------------------------------------------------------------


def hpa(machine: Machine, **options: int) -> Run:
    spec = ",".join(["incremental:variant=hpa", *(f"{k}={v}" for k, v in options.items())])
    return Scenario.of(machine, spec, "native").run()


def with_budget(machine: Machine, budget: int) -> Run:
    """Run the seven steps with so much brk that ``budget`` pages are left for the top."""
    run = hpa(machine, brk_pages=budget)
    assert left_of_brk(run.trace) == budget
    return run


def topped(mode: str, top_pfn: int, taken: int) -> Machine:
    """RAM in one piece up to ``top_pfn``, whose topmost ``taken`` pages are reserved."""
    top = top_pfn * PAGE
    machine = Machine(
        name="topped",
        memory_map=MemoryMap.sanitise([(0, top, E820Type.RAM)]),
        mode=MODES[mode],
        features=CpuFeatures(pse=False, gbpages=False),
        reserved=((top - taken * PAGE, top),) if taken else (),
    )
    kernel = machine.kernel
    return attrs.evolve(machine, kernel=attrs.evolve(kernel, start=2 * MIB, end=4 * MIB))


def away_from_the_kernel(refuted: proof.Statement, levels: int) -> int:
    """Return the top (pfn) at which a statement fails, so far up that no table is the kernel's."""
    span = 512**levels
    away = 2 if levels == 3 else 100
    return proof.prove(refuted).refutation["top_pfn"] % span + away * span


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "row"), [("i386-pae", 2), ("x86_64", 3), ("x86_64-la57", 3)], ids=lambda v: str(v)
)
def test_the_border_is_the_allocators(mode, row):
    """As much taken as is proved to be survived, and one page more, where z3 says it breaks."""
    levels, taken, budget = proof.CONTIGUOUS[row]
    top = away_from_the_kernel(proof.contiguous(levels, taken + 1, budget), levels)
    assert with_budget(topped(mode, top, taken), budget).verdict.outcome is Outcome.OK
    beyond = with_budget(topped(mode, top, taken + 1), budget)
    assert beyond.verdict.outcome is Outcome.PANIC
    assert "no mapped memory" in beyond.verdict.detail


@pytest.mark.slow
def test_the_smallest_budgets_are_the_allocators():
    """With nothing taken: one page of RAM just behind a 512 GiB border needs five pages."""
    top = away_from_the_kernel(proof.contiguous(3, 0, 4), 3)
    machine = topped("x86_64", top, 0)
    assert with_budget(machine, 5).verdict.outcome is Outcome.OK
    assert with_budget(machine, 4).verdict.outcome is Outcome.PANIC


def account(machine: Machine, run: Run) -> list[TableSpan]:
    """The spans of a machine, from what the run says of the kernel and nothing else of it."""
    start = run.trace.start
    low, high = start.boot.kernel_of(machine).span
    kernel = (low // PAGE * PAGE, -(-high // PAGE) * PAGE)
    taken = RangeSet(start.boot.taken(machine))
    return list(spans(machine, [kernel], taken))


def by_page(
    machine: Machine, mapped: list[tuple[int, int]], taken: list[tuple[int, int]]
) -> list[TableSpan]:
    """The account again, a page at a time from the top down."""

    def tables(pfn: int) -> set[tuple[int, int]]:
        sizes, found = machine.mode.index_bits, set()
        for level in range(1, len(sizes)):
            pfn >>= sizes[level - 1]
            found.add((level, pfn))
        return found

    known = {table for pfn in pfns(mapped) for table in tables(pfn)}
    ram = pfns((entry.start, entry.end) for entry in machine.memory_map if entry.type == 1)
    left = {pfn for pfn in ram - pfns(mapped) if pfn * PAGE < machine.map_limit}
    found = []
    for span in sorted({pfn >> machine.mode.index_bits[0] for pfn in left}, reverse=True):
        first = span << machine.mode.index_bits[0]
        inside = left & set(range(first, first + (1 << machine.mode.index_bits[0])))
        found.append(TableSpan(first * PAGE, len(tables(first) - known), len(inside - pfns(taken))))
        known |= tables(first)
    return found


def pfns(pieces: Iterable[tuple[int, int]]) -> set[int]:
    return {pfn for low, high in pieces for pfn in range(low // PAGE, high // PAGE)}


@pytest.mark.parametrize("mode", ["i386-pae", "x86_64", "x86_64-la57"])
def test_the_account_page_by_page(mode: str) -> None:
    """RAM from page 0, two pieces in one span, pieces that end with a span and a page behind one,
    about the first GiB, and at the end of lowmem and of 512 GiB; the kernel in the midst.
    """
    edge = {"i386-pae": 896 * MIB, "x86_64": 512 << 30, "x86_64-la57": 512 << 30}[mode]
    pieces = [
        (0, 3 * PAGE), (4 * PAGE, 2 * MIB), (2 * MIB + PAGE, 3 * MIB), (3 * MIB + PAGE, 9 * MIB),
        (512 * MIB - PAGE, 512 * MIB + PAGE), (edge - 3 * PAGE, edge + 5 * PAGE),
    ]  # fmt: skip
    machine = Machine(
        name="pieces",
        memory_map=MemoryMap.sanitise((low, high, E820Type.RAM) for low, high in pieces),
        mode=MODES[mode],
    )
    taken = [(PAGE, 2 * PAGE), (5 * MIB, 8 * MIB), (edge - PAGE, edge + PAGE)]
    for mapped in ([(4 * MIB, 5 * MIB)], [(2 * MIB, 4 * MIB), (8 * MIB, 9 * MIB)], []):
        found = list(spans(machine, mapped, RangeSet([*mapped, *taken])))
        assert found == by_page(machine, mapped, [*mapped, *taken])
        assert len(found) >= 6
    assert list(spans(machine, pieces, RangeSet())) == []
    assert list(spans(machine, pieces[1:], RangeSet())) == [TableSpan(0, 0, 3)]
    assert list(spans(machine, pieces[4:], RangeSet())) == by_page(machine, pieces[4:], [])
    # A span that two pieces share is told once, and the lower one's others all the same.
    shared = [(0, 11 * MIB), (23 * MIB // 2, 13 * MIB)]
    ram = MemoryMap.sanitise((low, high, E820Type.RAM) for low, high in shared)
    found = spans(attrs.evolve(machine, memory_map=ram), [], RangeSet())
    assert [span.start // MIB for span in found] == [12, 10, 8, 6, 4, 2, 0]


@pytest.mark.parametrize(
    "seed", [pytest.param(1), *(pytest.param(s, marks=pytest.mark.slow) for s in range(2, 6))]
)
def test_the_account_decides_as_the_allocator_does(seed):
    """Stuck or not, for machines of every kind without large pages, with several budgets."""
    ends = set()
    for machine in generate(25 if seed > 1 else 10, seed, ("i386-pae", "x86_64", "x86_64-la57")):
        small = machine.memory_map.ram_pages().total <= 64 << 30
        if not small:
            continue  # as many spans as there are 2 MiB in it
        machine = attrs.evolve(machine, features=CpuFeatures(pse=False, gbpages=False))
        for brk_pages in (1, 4, 8, 64):
            run = hpa(machine, brk_pages=brk_pages)
            try:
                budget = left_of_brk(run.trace)
            except ValueError:
                continue  # not even the kernel could be mapped
            expected = stuck(budget, account(machine, run))
            outcome = Outcome.OK if expected is None else Outcome.PANIC
            assert run.verdict.outcome is outcome, (machine.name, brk_pages, expected)
            assert run.figures["overrun"] == (expected is not None)
            ends.add(outcome)
    assert ends == {Outcome.OK, Outcome.PANIC}


def test_deficit_and_levels_are_enough():
    """The bound itself, on real accounts: enough always is, and it is never more than needed by
    much: the smallest budget that works is at least the deficit less what rich spans gave before.
    """
    for machine in generate(20, 7, ("i386-pae", "x86_64")):
        if machine.memory_map.ram_pages().total > 16 << 30:
            continue
        machine = attrs.evolve(machine, features=CpuFeatures(pse=False, gbpages=False))
        kept = account(machine, hpa(machine))
        assert stuck(enough(machine.mode, kept), kept) is None


def test_tight_on_spans():
    """One page less than deficit and levels is not enough, for the spans of the refutation."""
    for levels in (2, 3, 4):
        deficit = 10
        number = proof.prove(proof.less_is_not_enough(levels, deficit)).refutation
        count = number["spans_taken_at_the_top"]
        block = [TableSpan(0, levels, 0), *(TableSpan(0, 1, 0) for _ in range(count - 1))]
        row = [*block, TableSpan(0, levels, 512)]
        assert sum(span.deficit for span in row) == deficit
        assert stuck(deficit + levels - 1, row) is row[-1]
        assert stuck(deficit + levels, row) is None
        assert {enough(mode, row) for mode in MODES.values() if mode.root_level == levels + 1} == {
            deficit + levels
        }


def bound(*arguments):
    return CliRunner().invoke(cli, ["verify", "bound", *arguments], standalone_mode=False)


def test_command():
    result = bound("rounds", "pae-64")
    assert result.return_value == ExitCode.OK
    assert result.output.split() == ["proved", "rounds", "proved", "pae-64"]
    told = " ".join(bound("rounds", "--words").output.split())
    assert told == f"proved rounds {STATEMENTS['rounds'].words}"


@pytest.mark.parametrize(
    ("answer", "numbers", "code"),
    [
        ("proved", None, ExitCode.OK),
        ("refuted", {"budget": 3}, ExitCode.FINDINGS),
        ("not decided", None, ExitCode.FINDINGS),
    ],
)
def test_command_tells_what_z3_says(monkeypatch, answer, numbers, code):
    """Whatever is not proved is printed in full, and counts as a finding."""
    monkeypatch.setattr(
        proof, "prove", lambda asked: proof.Proof(asked, answer == "proved", numbers)
    )
    result = bound("rounds")
    assert result.return_value == code
    words = STATEMENTS["rounds"].words
    full = f" {words}" if answer != "proved" else ""
    shown = f" {numbers}" if numbers else ""
    assert " ".join(result.output.split()) == f"{answer} rounds{full}{shown}"
    result = bound("rounds", "enough-2", "--json")
    assert result.return_value == code
    assert result.output.startswith('[\n {\n  "name": "rounds",\n')
    assert json.loads(result.output) == [
        {"name": name, "words": STATEMENTS[name].words, "answer": answer, "numbers": numbers}
        for name in ("rounds", "enough-2")
    ]


@pytest.mark.slow
def test_command_prints_every_statement_as_wide_as_a_page(monkeypatch):
    monkeypatch.setattr(proof, "prove", lambda asked: proof.Proof(asked, True, None))
    expected: list[str] = []
    for name, statement in STATEMENTS.items():
        margin = {"initial_indent": " " * 4, "subsequent_indent": " " * 4}
        lines = textwrap.wrap(statement.words, 98, **margin)
        expected += [f"proved       {name}", *lines]
    assert bound("--words").output.splitlines() == expected
    assert bound().output.splitlines() == [f"proved       {name}" for name in STATEMENTS]
    told = [{"name": n, "words": s.words, "answer": "proved", "numbers": None}
            for n, s in STATEMENTS.items()]  # fmt: skip
    assert bound("--json").output == json.dumps(told, indent=1) + "\n"
    with pytest.raises(SpecError, match=r"no statement 'x' \(there are: rounds, enough-2, "):
        proof.find("x")
