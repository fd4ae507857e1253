"""``verify kernel``: agreement with real kernels' records, and that every field is looked at."""

from __future__ import annotations

import copy
import json
import lzma
from collections.abc import Callable, Iterable
from itertools import starmap
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner

from paravirt_mm import (
    ActivateRoot,
    Boot,
    CpuFeatures,
    InputError,
    KernelPanic,
    Map,
    NewRoot,
    Outcome,
    PageRun,
    Piece,
    Promise,
    Refusal,
    Source,
    SpecError,
    Step,
    TableDemand,
    TablePages,
    default_registry,
    hookimpl,
)
from paravirt_mm.cli.main import cli
from paravirt_mm.errors import ExitCode
from paravirt_mm.machine.paging import GIB, MIB, PAGE_SIZE, X86_64_LA57
from paravirt_mm.sources import bundled
from paravirt_mm.testing import AscendingAllocator, PlainPlatform, registry_with
from paravirt_mm.verify.kernel import record as record_module
from paravirt_mm.verify.kernel.compare import (
    MAX_KERNELS,
    Replay,
    compare,
    expected_record,
    replay,
    replay_file,
)
from paravirt_mm.verify.kernel.record import MAX_TABLES, Call, Guess, Record, measured
from paravirt_mm.verify.log.words import Words

from . import naive_linux

CHOSEN = Path(__file__).parents[1] / "data" / "oracle" / "linux-kernel-oracle-40.jsonl.xz"
KERNELS = ("linux_3_6", "linux_4_19")
Machine = dict[str, Any]


@pytest.fixture(scope="module")
def machines() -> list[Machine]:
    with lzma.open(CHOSEN, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def small(machines: list[Machine]) -> list[Machine]:
    return [m for m in machines if all(sum(m[k]["table_count"].values()) < 200 for k in KERNELS)]


def replayed(record: Machine) -> list[Replay]:
    return list(replay(record, "test:1", default_registry()))


@pytest.mark.slow
def test_models_agree_with_the_real_kernels() -> None:
    replays = list(replay_file(str(CHOSEN)))
    assert len(replays) == 80
    assert [str(r.differences[0]) for r in replays if not r.agrees] == []
    assert {r.kernel: len(r.fields) for r in replays} == {"3.6": 10, "4.19": 10}
    assert {r.kernel: r.spec.split(",brk")[0] for r in replays} == {
        "3.6": "legacy_linear:kernel=3.6",
        "4.19": "incremental:variant=linux,kernel=4.19",
    }


@pytest.mark.slow
@pytest.mark.full  # every kind of machine is among the forty
def test_models_agree_on_all_of_the_shared_oracle(shared: Path) -> None:
    replays = list(replay_file(str(shared / "oracle" / "linux-kernel-oracle.jsonl.xz")))
    assert len(replays) == 800
    assert [str(r.differences[0]) for r in replays if not r.agrees] == []


# -- every field is compared -----------------------------------------------------------------------


def _append(field: str, item: Any) -> Callable[[Any], None]:
    return lambda kernel: kernel[field].append(item)


def _drop(field: str) -> Callable[[Any], None]:
    return lambda kernel: kernel[field].pop()


def _hash(field: str) -> Callable[[Any], None]:
    return lambda kernel: kernel.update({field: "0" * 64})


def _swap_hooks(kernel: Any) -> None:
    order = kernel["hook_order"]
    order[0], order[1] = order[1], order[0]


def _move_table(kernel: Any) -> None:
    kernel["tables"][0][1] += 1


def _other_page_size(kernel: Any) -> None:
    kernel["steps"][0]["ranges"][0][2] = "8k"


def _other_count(kernel: Any) -> None:
    kernel["table_count"]["L1"] += 1


def _guess_one_more(kernel: Any) -> None:
    kernel["guess"][0]["start"] -= 4096


def _use_one_more(kernel: Any) -> None:
    kernel["guess"][0]["used_end"] += 4096


CHANGES: list[tuple[str, str, Callable[[Any], None]]] = [
    ("linux_3_6", "guess", _guess_one_more),
    ("linux_3_6", "guess", _use_one_more),
    ("linux_4_19", "brk_tables", _drop("brk_tables")),
    *[
        (kernel, field, change)
        for kernel in KERNELS
        for field, change in (
            ("panic", lambda k: k.update(panic="Out of memory")),
            ("steps", _other_page_size),
            ("steps", _drop("steps")),
            ("hook_order", _swap_hooks),
            ("hook_order_sha256", _hash("hook_order_sha256")),
            ("tables", _move_table),
            ("tables_sha256", _hash("tables_sha256")),
            ("table_count", _other_count),
            ("leaf_runs", _drop("leaf_runs")),
            ("reserved_after", _append("reserved_after", [1 << 50, (1 << 50) + 4096])),
        )
    ],
]


@pytest.mark.parametrize(("kernel", "field", "change"), CHANGES)
def test_a_change_of_one_field_is_found_there_alone(
    machines: list[Machine], kernel: str, field: str, change: Callable[[Any], None]
) -> None:
    record = copy.deepcopy(
        next(m for m in small(machines) if all(len(m[k]["hook_order"]) > 1 for k in KERNELS))
    )
    change(record[kernel])
    (wrong,) = [r for r in replayed(record) if not r.agrees]
    assert f"linux_{wrong.kernel.replace('.', '_')}" == kernel
    assert [difference.field for difference in wrong.differences] == [field]
    assert wrong.differences[0].kernel != wrong.differences[0].model


def test_a_difference_is_told_in_the_kernels_words(machines: list[Machine]) -> None:
    record = copy.deepcopy(small(machines)[0])
    block = record["linux_3_6"]["guess"][0]
    size = (block["top"] - block["start"]) >> 12
    shown = f"[mem {block['start']:#010x}-{block['top'] - 1:#010x}] ({size} pages"
    block["start"] += 8192
    difference = replayed(record)[0].differences[0]
    assert difference.place.startswith("block 1 of ")
    assert difference.model.startswith(f"tables @ {shown}")
    assert f"({size - 2} pages" in difference.kernel


def test_fields_that_a_file_leaves_out_are_not_compared(machines: list[Machine]) -> None:
    record = copy.deepcopy(small(machines)[0])
    for kernel in KERNELS:
        record[kernel] = {"panic": None, "tables_sha256": record[kernel]["tables_sha256"]}
    assert [r.fields for r in replayed(record)] == [("panic", "tables_sha256")] * 2
    record["linux_3_6"]["tables_sha256"] = "1" * 64
    (difference,) = replayed(record)[0].differences
    assert difference.field == "tables_sha256"
    assert difference.place.startswith("L1 ")  # the counts: no list is there to name a table


def test_what_a_file_says_is_read_as_it_stands() -> None:
    """A block of which nothing was used; names are the file's own, and no longer than a table has
    room for.
    """
    unused = {"guess": [{"start": 0, "top": 4096, "used_end": None}, {"start": 1, "top": 2}]}
    assert expected_record(unused, "k", "w").guess == (Guess(0, 4096, None), Guess(1, 2, None))
    name = "M" * 9
    ranges = {"start": 0, "end": 1, "ranges": [[0, 1, "L" * 8], [0, 1, name]]}
    record = expected_record({"table_count": {"L" * 8: 1, name: 2}, "steps": [ranges]}, "k", "w")
    names = ["L" * 8, "M" * 7 + "…"]
    assert list(record.table_count or {}) == names
    assert [piece[2] for piece in (record.steps or ())[0].ranges] == names
    with pytest.raises(InputError, match=f"k.table_count.{names[1]}: "):
        expected_record({"table_count": {name: -1}}, "k", "w")


COUNTS = {"L1": 2, "L2": 1}
NOTHING = Record(table_count=COUNTS)


@pytest.mark.parametrize(
    ("field", "kernel", "model", "told"),
    [
        ("panic", "no\x1b", None, r"panic: kernel panics: no\x1b | model goes on"),
        (
            "hook_order", ((2, 16), (4, 17)), ((2, 16), (1, 18)),
            "hook_order, table 2 of 2: kernel alloc_p4d(0x11) | model alloc_pte(0x12)",
        ),
        (
            "hook_order", ((2, 16),), ((3, 16),),
            "hook_order, table 1 of 1: kernel alloc_pmd(0x10) | model alloc_pud(0x10)",
        ),
        (
            "hook_order", ((5, 16),), (),
            "hook_order, table 1 of 1 (model: 0): kernel alloc L5(0x10) | model nothing",
        ),
        (
            "tables", ((1, 16, 0),), ((1, 16, 0), (2, 17, 1 << 30)),
            "tables, table 2 of 1 (model: 2): kernel nothing | "
            "model L2 table in pfn 0x11 for 0x40000000",
        ),
        (
            "leaf_runs", ((0, 1 << 21, 1),), ((0, 1 << 21, 2),),
            "leaf_runs, run 1 of 1: kernel [mem 0x00000000-0x001fffff] page 4k | "
            "model [mem 0x00000000-0x001fffff] page 2M",
        ),
        (
            "leaf_runs", ((0, 1 << 30, 3),), ((0, 1 << 30, 0),),
            "leaf_runs, run 1 of 1: kernel [mem 0x00000000-0x3fffffff] page 1G | "
            "model [mem 0x00000000-0x3fffffff] L0",
        ),
        (
            "reserved_after", ((0, 4096),), ((0, 8192),),
            "reserved_after, region 1 of 1: "
            "kernel memblock_reserve: [0x0000000000000000-0x0000000000000fff] | "
            "model memblock_reserve: [0x0000000000000000-0x0000000000001fff]",
        ),
        (
            "brk_tables", ((0, 4096),), ((4096, 8192),),
            "brk_tables, page 1 of 1: kernel BRK [0x00000000, 0x00000fff] PGTABLE | "
            "model BRK [0x00001000, 0x00001fff] PGTABLE",
        ),
        (
            "guess", (Guess(4096, 12288, None),), (Guess(4096, 12288, 8192),),
            "guess, block 1 of 1: "
            "kernel tables @ [mem 0x00001000-0x00002fff] (2 pages, none used) | "
            "model tables @ [mem 0x00001000-0x00002fff] (2 pages, used up to 0x1fff)",
        ),
        (
            "steps", (Call(0, 1 << 21, ((0, 1 << 20, "4k"), (1 << 20, 1 << 21, "2M"))),), (),
            "steps, call 1 of 1 (model: 0): "
            "kernel init_memory_mapping: [mem 0x00000000-0x001fffff] "
            "[mem 0x00000000-0x000fffff] page 4k, [mem 0x00100000-0x001fffff] page 2M | "
            "model nothing",
        ),
        (
            "table_count", {"L2": 1, "L1": 3}, COUNTS,
            "table_count: kernel L1 3, L2 1 | model L1 2, L2 1",
        ),
        ("tables_sha256", "a", "b", "tables_sha256, L1 2, L2 1: kernel a | model b"),
        ("hook_order_sha256", "a", "b", "hook_order_sha256, L1 2, L2 1: kernel a | model b"),
    ],
)  # fmt: skip
def test_each_field_is_told_in_words(field: str, kernel: Any, model: Any, told: str) -> None:
    """Equal fields are not told, nor those that the file leaves out."""

    def record(value: Any) -> Record:
        return attrs.evolve(NOTHING, **{field: value})

    (difference,) = compare(record(kernel), record(model), Words((6, 1)))
    assert str(difference) == told
    assert compare(record(model), record(model), Words((6, 1))) == []
    if field != "panic":
        assert compare(Record(), record(model), Words((6, 1))) == []
    if field == "table_count":
        (difference,) = compare(record(kernel), Record(), Words((6, 1)))
        assert str(difference) == "table_count: kernel L1 3, L2 1 | model "
    if "sha256" in field:
        (difference,) = compare(Record(**{field: kernel}), Record(), Words((6, 1)))
        assert str(difference) == f"{field}: kernel {kernel} | model None"


STARVED = CHOSEN.with_name("starved.jsonl")


def test_where_tables_run_out_in_the_middle_of_a_step_is_told() -> None:
    """Eleven machines with 2 MiB and a few pages free at the top of 2.1 GiB of small pages: the
    last table that is had is one of L1 or L2, of the first GiB or the second. By `naive_linux`,
    whose lists would be long: their hashes are compared.
    """
    replays = list(replay_file(str(STARVED)))
    assert len(replays) == 11
    assert [str(r.differences[0]) for r in replays if not r.agrees] == []
    assert all({"tables_sha256", "hook_order_sha256", "leaf_runs"} <= {*r.fields} for r in replays)


@pytest.mark.parametrize("middle", [3 * GIB, 513 * GIB])
def test_tables_run_out_where_new_ones_have_new_ancestors(middle: int) -> None:
    """8 MiB of small pages around a border of L2 tables; above 512 GiB their L3 table is new, too.

    What is complete when the pages end was handed over, the first L2 table among it. In the tree is
    only what the highest table that is new and not complete does not hide.
    """
    hidden = []
    for free in range(4, 10):
        bare = {
            "id": f"{free} pages", "e820": [[0, 0x9F000, 1], [MIB, 12 * MIB, 1],
            [middle - 4 * MIB, middle + 4 * MIB, 1]], "brk_start": 8 * MIB, "pgt_buf_pages": 6,
            "reserved": [[0, MIB], [MIB + free * PAGE_SIZE, 12 * MIB],
            [middle - 4 * MIB, middle + 4 * MIB]], "pse": 0, "gbpages": 0,
            "max_pfn": (middle + 4 * MIB) >> 12, "initial_mapped": 1 << 29,
            "max_low_pfn": (middle + 4 * MIB if middle < 4 * GIB else 12 * MIB) >> 12,
        }  # fmt: skip
        record = naive_linux.record(bare)
        assert [str(d) for r in replayed(record) for d in r.differences] == []
        did = record["linux_4_19"]
        hidden.append(len(did["hook_order"]) - len(did["tables"]))
    assert hidden == ([0, 0, 0, 1, 0, 0] if middle == 3 * GIB else [0, 1, 3, 3, 4, 0])


class Stock(AscendingAllocator):
    """Maps what it is told to with so many pages, from 128 MiB on."""

    todo: tuple[Step, ...] = ()
    stock = 0

    @hookimpl
    def pvmm_promise(self) -> Promise:
        return Promise(((0, 2 * GIB),))

    @hookimpl
    def pvmm_map_steps(self) -> Any:
        yield from (step for step in self.todo)

    @hookimpl
    def pvmm_allocate_tables(self, boot: Boot, demand: TableDemand) -> list[TablePages]:
        there = min(demand.count, self.stock - boot.tables_made)
        run = PageRun((128 * MIB >> 12) + boot.tables_made, there)
        pages = [TablePages(run, Source.MEMBLOCK)] if there else []
        if there < demand.count:
            raise KernelPanic("no page is left", demand.count - there, pages)
        return pages


def stocked(pages: int, *steps: Step) -> Record:
    allocator = type("Stocked", (Stock,), {"todo": steps, "stock": pages})
    machine = attrs.evolve(bundled("qemu-512m"), features=CpuFeatures(pse=True))
    run, told = measured(machine, "stocked", registry_with(stocked=allocator))
    assert str(run.verdict) == "panic: no page is left"
    return told


def mapped(*pieces: tuple[int, int, int]) -> Map:
    return Map(pieces[0][0], pieces[-1][1], label="", pieces=tuple(starmap(Piece, pieces)))


def test_large_pages_give_way_as_far_as_tables_are_had() -> None:
    """16 MiB in large pages, then in small ones: L3 and L2, one L1, and two of the other seven."""
    large = mapped((0, 16 * MIB, 2))
    split = stocked(5, large, mapped((0, 2 * MIB, 1), (2 * MIB, 16 * MIB, 1)))
    assert split.leaf_runs == ((0, 6 * MIB, 1), (6 * MIB, 16 * MIB, 2))
    assert split.table_count == {"L1": 3, "L2": 1, "L3": 1}
    assert split.hook_order == ((2, 0x8001), (3, 0x8000), (1, 0x8002), (1, 0x8003), (1, 0x8004))
    assert (0x8000 << 12, 0x8005 << 12) in (split.reserved_after or ())


def test_what_a_missing_table_leaves_is_mapped_as_it_was() -> None:
    """An L2 table for the second GiB lacks; there are small pages in the first."""
    left = stocked(3, mapped((2 * MIB, 4 * MIB, 1)), mapped((0, GIB + 2 * MIB, 2)))
    assert left.leaf_runs == (
        (0, 2 * MIB, 2), (2 * MIB, 4 * MIB, 1), (4 * MIB, GIB, 2),
    )  # fmt: skip
    root = stocked(0, NewRoot())
    assert (root.panic, root.tables, root.hook_order) == ("no page is left", (), ())


def test_a_block_that_runs_out_is_used_up() -> None:
    """Linux 3.6 guesses as if there were no fifth level. The last page becomes the last L1
    table but one: the other 255 are complete, and in no tree.
    """
    machine = attrs.evolve(bundled("qemu-512m"), mode=X86_64_LA57, features=CpuFeatures(pse=False))
    run, short = measured(machine, "legacy_linear:kernel=3.6")
    assert str(run.verdict) == "panic: alloc_low_page: ran out of memory"
    (block,) = short.guess or ()
    first, last = block.start // PAGE_SIZE, block.top // PAGE_SIZE
    assert last - first == 3 + 255
    assert short.hook_order == tuple((1, pfn) for pfn in range(first + 3, last))
    assert (short.tables, short.leaf_runs) == ((), ())


class Late(AscendingAllocator):
    """Panics before the map is complete, or behind it."""

    early: bool = False

    @hookimpl
    def pvmm_map_steps(self, boot: Any) -> Any:
        if not self.early:
            yield ActivateRoot()
        raise KernelPanic("no more")


class Early(Late):
    early = True


class Never(AscendingAllocator):
    @hookimpl
    def pvmm_kernel_image(self) -> Any:
        raise ValueError("no kernel")


class Breaks(AscendingAllocator):
    @hookimpl
    def pvmm_map_steps(self) -> Any:
        yield Map(2 * MIB, 4 * MIB, label="")
        raise ValueError("broken")


class Refuses(PlainPlatform):
    @hookimpl
    def pvmm_boot_state(self) -> Refusal:
        return Refusal("boot", -12)

    @hookimpl
    def pvmm_models_platform(self) -> str:
        return "refuses"


def test_a_record_ends_when_the_map_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = bundled("qemu-512m")
    registry = registry_with(
        late=Late, early=Early, never=Never, breaks=Breaks, up=AscendingAllocator
    )
    run, late = measured(machine, "late", registry)
    assert (run.verdict.outcome, late.panic) == (Outcome.PANIC, None)
    assert measured(machine, "early", registry)[1].panic == "no more"
    for broken in ("never", "breaks"):
        run, nothing = measured(machine, broken, registry)
        assert (run.verdict.outcome, nothing) == (Outcome.ERROR, Record())
    refusing = registry_with(installed=False, up=AscendingAllocator, refuses=Refuses)
    run, nothing = measured(machine, "up", refusing)
    assert (run.verdict.outcome, nothing) == (Outcome.REJECTED, Record())
    with pytest.raises(SpecError, match="no installed plugin models the native platform"):
        measured(machine, "up", registry_with(installed=False, up=AscendingAllocator))

    assert MAX_TABLES * PAGE_SIZE == 16 * GIB
    _, listed = measured(machine, "up", registry)
    tables = len(listed.tables or ())
    monkeypatch.setattr(record_module, "MAX_TABLES", tables)
    assert measured(machine, "up", registry)[1] == listed
    monkeypatch.setattr(record_module, "MAX_TABLES", tables - 1)
    with pytest.raises(InputError, match=f"^x:1: .*'qemu-512m' needs {tables} tables; more than"):
        measured(machine, "up", registry, "x:1")


def test_a_run_that_fails_is_the_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paravirt_mm.verify.kernel.compare._spec", lambda *_: "never")
    record = json.loads(STARVED.read_text().splitlines()[0])
    for found in replay(record, "x", registry_with(never=Never)):
        (told,) = map(str, found.differences)
        assert told.startswith("run: kernel ends | model fails: error: ")


@pytest.mark.slow
def test_starved_machines_are_what_the_plain_model_says() -> None:
    for line in STARVED.read_text().splitlines()[::5]:
        record = json.loads(line)
        bare = {key: value for key, value in record.items() if key not in KERNELS}
        plain = naive_linux.record(bare)["linux_4_19"]
        assert plain["panic"] == "extend_brk: brk is closed (kernel BUG)"
        assert {key: plain[key] for key in record["linux_4_19"]} == record["linux_4_19"]


def test_a_record_of_too_many_kernels_or_of_what_cannot_run(machines: list[Machine]) -> None:
    bare = {key: value for key, value in small(machines)[0].items() if key not in KERNELS}
    most = {**bare, **{f"linux_4_{number}": {"panic": None} for number in range(1, 20)}}
    most |= {f"linux_3_{number}": {"panic": None} for number in range(6, 19)}
    assert len(most) == len(bare) + MAX_KERNELS
    with pytest.raises(InputError, match="more than 32 kernels"):
        replayed({**most, "linux_4_0": {"panic": None}})
    with pytest.raises(SpecError, match=r"no allocator models Linux 2\.4"):
        replayed({**bare, "linux_2_4": {"panic": None}})


# -- machines that the oracle has none of ----------------------------------------------------------


@pytest.mark.slow
def test_the_plain_model_agrees_with_the_real_kernels_too(machines: list[Machine]) -> None:
    checked = small(machines)
    assert len(checked) >= 15
    for machine in checked:
        bare = {key: value for key, value in machine.items() if key not in KERNELS}
        for kernel in KERNELS:
            plain = naive_linux.record(bare)[kernel]
            assert {key: plain[key] for key in machine[kernel]} == machine[kernel]


def _odd(numbers: Iterable[int]) -> tuple[set[Any], list[str]]:
    panics = set()
    wrong = []
    for number in numbers:
        record = naive_linux.record(naive_linux.odd_machine(number))
        panics |= {record[kernel]["panic"] for kernel in KERNELS}
        wrong += [f"{r.machine}: {d}" for r in replayed(record) for d in r.differences]
    return panics, wrong


def test_odd_machines() -> None:
    assert _odd(range(60, 67))[1] == []


@pytest.mark.slow
def test_odd_machines_of_every_kind() -> None:
    panics, wrong = _odd(range(60, 80))
    assert wrong == []
    assert panics == {
        None,
        "Cannot find space for the kernel page tables",
        "alloc_low_pages: can not alloc memory",
        "extend_brk: brk is closed (kernel BUG)",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "numbers",
    [range(60), range(80, 100), pytest.param(range(100, 300), marks=pytest.mark.full)],
    ids=str,
)
def test_many_odd_machines(numbers: range) -> None:
    _, wrong = _odd(numbers)
    assert wrong == []


@pytest.mark.slow
def test_tables_run_out_in_the_middle_of_a_step() -> None:
    """Only the top 2 MiB are free: 512 tables for 1.3 GiB of small pages. None may come from what
    the step itself is mapping.
    """
    end = 1300 << 20
    record = naive_linux.record(
        {
            "id": "starved",
            "e820": [[0, 0x9F000, 1], [1 << 20, end, 1]],
            "reserved": [
                [0, 1 << 20],
                [1 << 23, (1 << 23) + (16 << 12)],
                [1 << 28, end - (2 << 20)],
            ],
            "brk_start": 1 << 23,
            "pgt_buf_pages": 6,
            "pse": 0,
            "gbpages": 0,
            "max_pfn": end >> 12,
            "max_low_pfn": end >> 12,
            "initial_mapped": 1 << 29,
        }
    )
    assert record["linux_4_19"]["panic"] == "extend_brk: brk is closed (kernel BUG)"
    assert record["linux_4_19"]["table_count"]["L1"] > 500
    assert [r.agrees for r in replayed(record)] == [True, True]


@pytest.mark.slow
def test_thousands_of_pieces_and_petabytes() -> None:
    pieces = [[(1 << 26) + n * 40960, (1 << 26) + n * 40960 + 12289, 1] for n in range(5000)]
    far = [[5 << 50, (5 << 50) + (1 << 30), 2]]
    record = naive_linux.odd_machine(1) | {
        "e820": [[1 << 12, 1 << 19, 1], [1 << 20, 1 << 26, 1], *pieces, *far],
        "reserved": [[1 << 20, 1 << 23]],
        "brk_start": 1 << 22,
        "max_pfn": pieces[-1][1] >> 12,
        "max_low_pfn": pieces[-1][1] >> 12,
        "initial_mapped": 1 << 29,
    }
    record |= {kernel: {"panic": None} for kernel in KERNELS}
    assert [r.agrees for r in replayed(record)] == [True, True]


def test_a_plain_models_results_are_evidence_of_their_own(tmp_path: Path) -> None:
    odd = tmp_path / "odd.jsonl"
    odd.write_text(json.dumps(naive_linux.record(naive_linux.odd_machine(61))))
    written = tmp_path / "evidence.json"
    arguments = ["verify", "kernel", str(odd), "--judge", "naive", "--record", str(written)]
    result = CliRunner().invoke(cli, arguments)
    assert "1 of 1 machines agree" in result.output
    assert json.loads(written.read_text()) == {
        "naive": {"incremental:kernel=4.19": [1, 1], "legacy_linear:kernel=3.6": [1, 1]}
    }


# -- the command, and input that is not what it should be ------------------------------------------


def write(path: Path, *records: object) -> str:
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return str(path)


def test_command(tmp_path: Path, machines: list[Machine]) -> None:
    good = small(machines)[0]
    bad = copy.deepcopy(good)
    bad["linux_4_19"]["tables"][0][1] += 1
    runner = CliRunner()
    fine = runner.invoke(cli, ["verify", "kernel", write(tmp_path / "a.jsonl", good)])
    assert fine.exit_code == ExitCode.OK or fine.return_value == ExitCode.OK
    assert fine.output.splitlines() == [
        "Linux 3.6, legacy_linear:kernel=3.6: 1 of 1 machines agree in all 10 fields",
        "Linux 4.19, incremental:variant=linux,kernel=4.19: 1 of 1 machines agree in all 10 fields",
    ]
    path = write(tmp_path / "b.jsonl", good, bad)
    wrong = runner.invoke(cli, ["verify", "kernel", path], standalone_mode=False)
    assert wrong.return_value == ExitCode.FINDINGS
    assert f"{path}:2 {bad['id']}, Linux 4.19: tables, table 1 of " in wrong.output
    assert "1 of 2 machines agree" in wrong.output
    data = runner.invoke(cli, ["verify", "kernel", "--json", path], standalone_mode=False)
    assert data.return_value == ExitCode.FINDINGS
    content = json.loads(data.output)
    assert [entry["agrees"] for entry in content["replays"]] == [True, True, True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"e820": "x"}, r"e820: 'x' is not a list"),
        ({"linux_3_6": 1}, r"linux_3_6: 1 is not a table"),
        ({"linux_3_6": {"steps": [{"start": 0, "end": 1}]}}, r"steps\[0\]\.ranges: missing"),
        ({"linux_3_6": {"steps": [{"ranges": [[0, 1]], "start": 0, "end": 0}]}}, "2 items"),
        ({"linux_3_6": {"guess": [{"start": 0}]}}, r"guess\[0\]\.top: missing"),
        ({"linux_3_6": {"tables": [[1, 2]]}}, r"tables\[0\]: has 2 items instead of 3"),
        ({"linux_3_6": {"leaf_runs": [[1, 2, -1]]}}, r"leaf_runs\[0\]: -0x1 is not between"),
        ({"linux_3_6": {"panic": 7}}, "panic: 7 is not a string"),
        ({"linux_3_6": {"table_count": {"L1": "many"}}}, "table_count.L1: 'many' is not a number"),
        ({"max_pfn": 1 << 60}, "max_pfn"),
    ],
)
def test_wrong_input_names_file_line_and_key(
    tmp_path: Path, machines: list[Machine], change: Machine, message: str
) -> None:
    good = small(machines)[0]
    path = write(tmp_path / "x.jsonl", good, {**good, **change})
    with pytest.raises(InputError, match=message) as caught:
        list(replay_file(path))
    assert str(caught.value).startswith(f"{path}:2: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no machine"),
        ("[1]\n", ":1: not a JSON object"),
        ("{\n", ":1: not a JSON record"),
        ("{}\n", ":1: e820: missing"),
    ],
)
def test_files_that_are_no_oracle(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        list(replay_file(str(path)))


def test_a_record_without_kernels_and_an_unknown_kernel(
    tmp_path: Path, machines: list[Machine]
) -> None:
    bare = {key: value for key, value in machines[0].items() if key not in KERNELS}
    with pytest.raises(InputError, match="expected a key like linux_3_6"):
        list(replay_file(write(tmp_path / "a.jsonl", bare)))
    old = {**bare, "linux_2_4": {"panic": None}}
    result = CliRunner().invoke(cli, ["verify", "kernel", write(tmp_path / "b.jsonl", old)])
    assert "no allocator models Linux 2.4" in str(result.exception)
    known = write(tmp_path / "c.jsonl", {**bare, "linux_4_19": {"panic": None}})
    with pytest.raises(SpecError, match=r"no allocator models Linux 4\.19"):  # none is installed
        list(replay_file(known, registry_with(installed=False, up=AscendingAllocator)))
