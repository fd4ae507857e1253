"""What the engine takes as an answer and what it refuses: on both sides of every limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from paravirt_mm import (
    ActivateRoot,
    BootState,
    Cost,
    CpuFeatures,
    KernelFile,
    KernelImage,
    Machine,
    Map,
    NewRoot,
    PageRun,
    Piece,
    Promise,
    RecordedBoot,
    Refusal,
    Source,
    TableDemand,
    TablePages,
    bundled,
)
from paravirt_mm.engine import contract
from paravirt_mm.errors import Rejected
from paravirt_mm.machine.paging import GIB, I386, I386_PAE, MIB, PAGE_SIZE, X86_64

MACHINE: Machine = attrs.evolve(
    bundled("qemu-512m"),
    reserved=(),
    mode=X86_64,
    features=CpuFeatures(pse=True, gbpages=False, nx=False),
)
END = 1 << 46
"""Where physical addresses of x86_64 end."""
TOP_PFN = 1 << 40
MOST = 1 << 62


def state(**fields: Any) -> BootState:
    return attrs.evolve(BootState((), 0, MACHINE.features), **fields)


def image(*edges: int) -> KernelImage:
    return KernelImage(*edges)


def demand(count: int) -> TableDemand:
    return TableDemand(0, PAGE_SIZE, ((1, count),))


def runs_of(*runs: PageRun) -> list[TablePages]:
    return [TablePages(run, Source.BRK) for run in runs]


def step(**fields: Any) -> Map:
    return attrs.evolve(Map(0, PAGE_SIZE), **fields)


class Forever:
    """An iterable that comes to no end by itself."""

    def __iter__(self) -> Any:
        while True:
            yield PageRun(0, 1)


Check = Callable[[Any], Any]
CHECKS: dict[str, tuple[Check, list[Any], list[tuple[Any, str]]]] = {
    "features": (
        lambda value: contract.features(MACHINE, value),
        [None, CpuFeatures(True, False, False), CpuFeatures(False, False, False)],
        [
            (CpuFeatures(True, True, False), r"gbpages: a platform cannot add"),
            (CpuFeatures(True, False, True), r"nx: a platform cannot add"),
            ((True, False), "is not a CpuFeatures"),
        ],
    ),
    "kernel file": (
        contract.kernel_file,
        [None, KernelFile("k", "", None), KernelFile("k", "", 1), KernelFile("k", "", 0.5)],
        [
            ("k", "is not a KernelFile"),
            (KernelFile(1, "", None), "image is not a str"),  # type: ignore[arg-type]
            (KernelFile("k", 1, None), "parameters is not a str"),  # type: ignore[arg-type]
            (KernelFile("k", "", 0), "must be a number of seconds"),
            (KernelFile("k", "", -1.0), "must be a number of seconds"),
            (KernelFile("k", "", float("inf")), "must be a number of seconds"),
            (KernelFile("k", "", True), "must be a number of seconds"),
            (KernelFile("k", "", "1"), "must be a number of seconds"),  # type: ignore[arg-type]
        ],
    ),
    "recorded": (
        contract.recorded,
        [None, RecordedBoot("6.1", MACHINE, (), ())],
        [
            (MACHINE, "is not a RecordedBoot"),
            (RecordedBoot("6.1", None, (), ()), "machine is not a Machine"),  # type: ignore[arg-type]
            (RecordedBoot("6.1", MACHINE, (Map(0, 1),), ()), "is not a RecordedStep"),  # type: ignore[arg-type]
        ],
    ),
    "kernel image": (
        lambda value: contract.image(MACHINE, value),
        [
            None,
            image(0, 0, 0, 0),
            image(0, END, END, END),
            image(0, MIB, MIB, MIB + (1 << 15) * PAGE_SIZE),
        ],
        [
            (image(0, END + 1, 0, 0), r"\.end is not in"),
            (image(-1, 0, 0, 0), r"\.start is not in"),
            (image(0, 0, -1, 0), r"\.brk_start is not in"),
            (image(0, 0, END, END + 1), r"\.brk_end is not in"),
            (image(1, 0, 0, 0), "ends before it starts"),
            (image(0, 0, 1, 0), "ends before it starts"),
            (image(0, MIB, MIB, MIB + ((1 << 15) + 1) * PAGE_SIZE), r"pages of brk is not in"),
            (image(0, True, 0, 0), "must be a whole number"),
            ("image", "is not a KernelImage"),
        ],
    ),
    "boot state": (
        lambda value: contract.boot_state(MACHINE, value),
        [
            state(),
            state(mapped=((0, END),)),
            state(mapped=((5, 7), (1, 2))),  # bytes, in any order
            state(reserved=((3, 5),)),
            state(direct_mapped=((0, PAGE_SIZE),)),
            state(reserved=((0, MIB),), boot_tables=((0, PAGE_SIZE),)),
            state(max_pfn_mapped=TOP_PFN),
            state(tables={3: ((0, 1 << 39),), 1: ((0, 1 << 48),)}),
            state(table_pages={4: (0,), 1: (TOP_PFN, 7)}),
            state(typed=True, kernel=image(0, 0, 0, 0)),
            state(places=((Source.BRK, (1, 2)),)),
            Refusal("no", -22),
            Refusal("no", -1),
            Refusal("no", -4095),
        ],
        [
            (None, "is not a BootState"),
            (state(mapped=((0, END + 1),)), "mapped must be 0 <= start < end"),
            (state(reserved=((5, 5),)), "reserved must be 0 <= start < end"),
            (state(mapped=((-1, 5),)), "mapped must be 0 <= start < end"),
            (state(reserved=((1, 2, 3),)), "reserved must be a pair"),
            (state(reserved=((1, 2.0),)), "pair of whole numbers"),
            (state(reserved=((False, 2),)), "pair of whole numbers"),
            (state(reserved=7), "not a sequence"),
            (state(direct_mapped=((0, 5),)), "begin and end at pages"),
            (state(direct_mapped=((5, PAGE_SIZE),)), "begin and end at pages"),
            (state(boot_tables=((0, 5),)), "begin and end at pages"),
            (state(boot_tables=((0, PAGE_SIZE),)), "must be among what is reserved"),
            (state(max_pfn_mapped=TOP_PFN + 1), "max_pfn_mapped is not in"),
            (state(max_pfn_mapped=-1), "max_pfn_mapped is not in"),
            (state(features=CpuFeatures(True, True, False)), "features.gbpages"),
            (state(kernel=image(0, END + 1, 0, 0)), r"kernel\.end"),
            (state(kernel=image(1, 0, 0, 0)), "ends before it starts"),
            (state(tables={4: ()}), "level of BootState.tables is not in 1..3"),
            (state(tables={0: ()}), "level of BootState.tables is not in 1..3"),
            (state(tables={1: ((0, (1 << 48) + PAGE_SIZE),)}), r"tables\[1\] must be 0 <="),
            (state(tables={1: ((PAGE_SIZE, 2 * PAGE_SIZE), (0, PAGE_SIZE))}), "must ascend"),
            (state(table_pages={5: (1,)}), "is not in 1..4"),
            (state(table_pages={0: (1,)}), "is not in 1..4"),
            (state(table_pages={1: (7, -1)}), r"table_pages\[1\] is not in"),
            (state(table_pages={1: (TOP_PFN + 1, 7)}), r"table_pages\[1\] is not in"),
            (state(table_pages={1: (1.0,)}), "must be a whole number"),
            (state(typed=1), "typed is not a bool"),
            (state(places=((1, (1, 2)),)), r"must hold \(name, \(start, end\)\)"),
            (state(places=(("a", (1, 2), 3),)), r"must hold \(name, \(start, end\)\)"),
            (state(places=(["a", (1, 2)],)), r"must hold \(name, \(start, end\)\)"),
            (state(places=(("a", (2, 2)),)), "place 'a' must be 0 <="),
            (state(places=(("a", (2, END + 1)),)), "place 'a' must be 0 <="),
            (Refusal("no", 0), r"a negative errno\) is not in -4095..-1"),
            (Refusal("no", -4096), r"a negative errno\) is not in -4095..-1"),
            (Refusal(3, -1), "operation is not a str"),  # type: ignore[arg-type]
        ],
    ),
    "promise": (
        lambda value: contract.promise(MACHINE, value),
        [
            Promise(((0, PAGE_SIZE), (PAGE_SIZE, END))),
            Promise((), 0),
            Promise((), 1 << 15),
        ],
        [
            (Promise([(0, PAGE_SIZE)]), "direct_map is not a tuple"),  # type: ignore[arg-type]
            (Promise(((0, 2 * PAGE_SIZE), (PAGE_SIZE, END))), "ascend and not overlap"),
            (Promise(((0, END + PAGE_SIZE),)), "must be 0 <="),
            (Promise((), -1), "brk_pages is not in"),
            (Promise((), (1 << 15) + 1), "brk_pages is not in"),
            (None, "is not a Promise"),
        ],
    ),
    "steps": (
        contract.steps,
        [(number for number in ())],
        [([], "not a generator of steps"), (None, "not a generator of steps")],
    ),
    "step": (
        lambda value: contract.step(X86_64, value),
        [
            step(end=END),
            step(tables_from=(0, MOST), skip_empty_level=5),
            step(pieces=(Piece(0, PAGE_SIZE, 1), Piece(0, PAGE_SIZE, 4))),
            NewRoot(),
            ActivateRoot("other words"),
        ],
        [
            (None, "is not a step"),
            (NewRoot(3), "NewRoot.label is not a str"),  # type: ignore[arg-type]
            (step(end=END + PAGE_SIZE), r"Map\(start, end\) must be"),
            (step(start=1), "begin and end at pages"),
            (step(start=PAGE_SIZE), r"Map\(start, end\) must be"),
            (step(label=3), "Map.label is not a str"),
            (step(tables_from=(0,)), "must be a pair"),
            (step(tables_from=(-1, 1)), r"tables_from\[0\] is not in"),
            (step(tables_from=(1, -1)), r"tables_from\[1\] is not in"),
            (step(tables_from=(1, MOST + 1)), r"tables_from\[1\] is not in"),
            (step(tables_from=("0", "1")), r"tables_from\[0\] must be a whole number"),
            (step(tables_from=(0, 1.0)), r"tables_from\[1\] must be a whole number"),
            (step(use_brk=1), "use_brk is not a bool"),
            (step(reserve=1), "reserve is not a bool"),
            (step(promote="never"), "promote is not a Promote"),
            (step(hand_over="each"), "hand_over is not a HandOver"),
            (step(skip_empty_level=6), "skip_empty_level is not in 0..5"),
            (step(skip_empty_level=-1), "skip_empty_level is not in 0..5"),
            (step(pieces=(1,)), "is not a Piece"),
            (step(pieces=(Piece(0, 1, 1),)), "begin and end at pages"),
            (step(pieces=(Piece(0, END + PAGE_SIZE, 1),)), "must be 0 <="),
            (step(pieces=(Piece(0, PAGE_SIZE, 0),)), "is not in 1..4"),
            (step(pieces=(Piece(0, PAGE_SIZE, 5),)), "is not in 1..4"),
        ],
    ),
    "runs": (
        lambda value: contract.runs("pvmm_reserve_tables", value),
        [None, [], [PageRun(0, 1)], (PageRun(TOP_PFN - 1, 1), PageRun(0, 1, -1))],
        [
            ("text", "not a sequence"),
            ({PageRun(0, 1): 1}, "not a sequence"),
            (7, "not a sequence"),
            ([(0, 1)], "must be a PageRun"),
            ([PageRun(0, 1, 2)], "step must be 1 or -1"),
            ([PageRun(0, 1, 0)], "step must be 1 or -1"),
            ([PageRun(0, -1)], "must hold pages of"),
            ([PageRun(-1, 1)], "must hold pages of"),
            ([PageRun(0, 2, -1)], "must hold pages of"),
            ([PageRun(TOP_PFN, 1)], "must hold pages of"),
            ([PageRun(1.0, 1)], "must hold whole numbers"),  # type: ignore[arg-type]
            ([PageRun(1, True)], "must hold whole numbers"),
            ([PageRun(1, 1, True)], "must hold whole numbers"),
        ],
    ),
    "table pages": (
        lambda value: contract.table_pages(value, demand(3)),
        [runs_of(PageRun(1, 2), PageRun(9, 0), PageRun(9, 1, -1))],
        [
            (None, "gave 0 pages where 3 are needed"),
            (runs_of(PageRun(1, 2)), "gave 2 pages where 3 are needed"),
            (runs_of(PageRun(1, 4)), "gave 4 pages where 3 are needed"),
            ([PageRun(1, 3)], "is not TablePages"),
            ([TablePages(PageRun(1, 3), "brk")], "source is not a Source"),  # type: ignore[arg-type]
            ([TablePages(PageRun(-1, 3), Source.BRK)], "must hold pages of"),
        ],
    ),
    "read-only": (
        lambda value: contract.readonly(value, 2 * PAGE_SIZE, 5 * PAGE_SIZE),
        [None, [], [(2 * PAGE_SIZE, 3 * PAGE_SIZE), (3 * PAGE_SIZE, 5 * PAGE_SIZE)]],
        [
            (
                [(PAGE_SIZE, 3 * PAGE_SIZE), (4 * PAGE_SIZE, 5 * PAGE_SIZE)],
                r"lies outside of 0x2000..0x5000: \(0x1000, 0x3000\)",
            ),
            (
                [(3 * PAGE_SIZE, 6 * PAGE_SIZE)],
                r"must be 0 <= start < end <= 0x5000: \(0x3000, 0x6000\)",
            ),
            ([(3 * PAGE_SIZE, 4 * PAGE_SIZE + 1)], "begin and end at pages"),
            ([(3 * PAGE_SIZE, 4 * PAGE_SIZE), (2 * PAGE_SIZE, 3 * PAGE_SIZE)], "must ascend"),
        ],
    ),
    "taken": (
        lambda value: contract.taken(value, MACHINE),
        [None, [(0, END)]],
        [([(0, END + PAGE_SIZE)], "must be 0 <="), ([(0, 1)], "begin and end at pages")],
    ),
    "cost": (
        lambda value: contract.cost("pvmm_pin_tables", X86_64, value, {1: 4}),
        [
            None,
            Cost(),
            Cost({"mmu": 0}),
            Cost({"mmu": MOST}, MOST, {1: 4}, flushes=MOST),
        ],
        [
            (0, "is not a Cost, a Refusal or None"),
            (Cost({"mmu": -1}), r"hypercalls\['mmu'\] is not in"),
            (Cost({"mmu": MOST + 1}), r"hypercalls\['mmu'\] is not in"),
            (Cost({1: 1}), "a kind in Cost.hypercalls is not a str"),  # type: ignore[dict-item]
            (Cost(batches=-1), "batches is not in"),
            (Cost(flushes=-1), "flushes is not in"),
            (Cost(way="direct"), "way is not a Way"),  # type: ignore[arg-type]
            (Cost(pinned={1: 5}), r"pinned\[1\] is not in 0..4"),
            (Cost(pinned={2: 1}), r"pinned\[2\] is not in 0..0"),
            (Cost(pinned={0: 0}), "a level of Cost.pinned is not in 1..4"),
            (Cost(pinned={5: 0}), "a level of Cost.pinned is not in 1..4"),
            (Refusal("no", 1), "is not in -4095..-1"),
        ],
    ),
}


@pytest.mark.parametrize("name", CHECKS)
def test_good_answers_are_taken(name: str) -> None:
    check, good, _ = CHECKS[name]
    for value in good:
        check(value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [(name, *bad) for name, (_, _, refused) in CHECKS.items() for bad in refused],
    ids=range(sum(len(refused) for _, _, refused in CHECKS.values())),
)
def test_others_are_refused(name: str, value: Any, words: str) -> None:
    with pytest.raises(contract.ContractBroken, match=words):
        CHECKS[name][0](value)


def test_what_is_returned() -> None:
    """Where nobody answers, the machine's own; sequences as tuples, without runs of no page."""
    assert contract.features(MACHINE, None) is MACHINE.features
    assert contract.image(MACHINE, None) is MACHINE.kernel
    assert contract.recorded(None) is contract.kernel_file(None) is None
    assert contract.cost("x", X86_64, None) is None
    assert contract.readonly(None, 0, 1) == contract.taken(None, MACHINE) == ()
    assert contract.readonly(iter([[0, PAGE_SIZE]]), 0, MIB) == ((0, PAGE_SIZE),)
    assert contract.runs("x", [PageRun(5, 0), PageRun(5, 1)]) == (PageRun(5, 1),)
    assert contract.runs("x", None) == ()
    kept = contract.table_pages(iter(runs_of(PageRun(-9, 0), PageRun(5, 1))), demand(1))
    assert kept == tuple(runs_of(PageRun(5, 1)))
    # Of nothing in particular any number may be pinned.
    everything = Cost(pinned={4: MOST})
    assert contract.cost("x", X86_64, everything) is everything
    # What was right once may be too much of other tables.
    with pytest.raises(contract.ContractBroken, match=r"pinned\[4\] is not in 0..1"):
        contract.cost("x", X86_64, everything, {4: 1})
    with pytest.raises(Rejected, match="no"):
        contract.cost("x", X86_64, Refusal("no", -1))


def test_answers_without_end_are_cut_off() -> None:
    told = contract.Answer("x")
    assert told.items(iter("ab"), "letters", 2) == ("a", "b")
    with pytest.raises(contract.ContractBroken, match="letters, more than 2"):
        told.items(Forever(), "letters", 2)
    assert contract.MAX_RUNS == 4 << 20


@pytest.mark.parametrize(
    ("mode", "end"), [(I386, 4 * GIB), (I386_PAE, 4 * GIB), (X86_64, 1 << 46)], ids=str
)
def test_where_addresses_end(mode: Any, end: int) -> None:
    """PAE reaches 64 GiB of memory, but its tables map 4."""
    assert mode.physical_end == end


@pytest.mark.parametrize(
    ("value", "whole"), [(0, True), (-5, True), (True, False), (1.0, False), ("1", False)]
)
def test_whole_numbers(value: Any, whole: bool) -> None:
    assert contract.is_int(value) is whole


def test_what_is_wrong_is_shown_in_few_words() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError("no words")

    def words(value: Any) -> str:
        with pytest.raises(contract.ContractBroken) as refused:
            contract.Answer("x").refuse("wrong", value)
        assert refused.value.hook == "x"
        return str(refused.value)

    assert words((4096, 8192)) == "wrong: (0x1000, 0x2000)"
    assert words((4096, "a")) == "wrong: (4096, 'a')"
    assert words("a" * 158) == f"wrong: {'a' * 158!r}"
    assert words("a" * 159) == "wrong: '" + "a" * 156 + "..."
    assert words(Odd()) == "wrong: <Odd whose repr raises RuntimeError>"
