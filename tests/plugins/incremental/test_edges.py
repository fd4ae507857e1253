"""The edges of what Linux merged, each worked out by hand from init.c of the releases named.

Addresses in bytes; a machine is as small as the edge allows.
"""

from __future__ import annotations

import attrs
import pytest

from paravirt_mm import (
    MODES,
    AttachTables,
    Boot,
    BootState,
    CpuFeatures,
    E820Type,
    KernelImage,
    KernelPanic,
    Machine,
    Map,
    MemoryMap,
    Outcome,
    PageRun,
    Run,
    Scenario,
    Source,
    TableDemand,
    TablePages,
    hookimpl,
)
from paravirt_mm.engine.trace import RangeSplit, RootActivated, StepStarted, TablesAllocated
from paravirt_mm.machine.ranges import RangeSet
from paravirt_mm.testing import registry_with
from paravirt_mm_incremental import Incremental
from paravirt_mm_incremental.releases import change_for

KIB, MIB, GIB, PAGE = 1 << 10, 1 << 20, 1 << 30, 4096


def machine(*ram: tuple[int, int], end: int = 18 * MIB, **others: object) -> Machine:
    """RAM, with a kernel from 16 MiB, or from 1 MiB below that, up to ``end``."""
    return Machine(
        "edge",
        MemoryMap.sanitise((low, high, E820Type.RAM) for low, high in ram),
        kernel=KernelImage(16 * MIB if end > 16 * MIB else MIB, end, end, end),
        **others,
    )


def run(subject: Machine, options: str, backend: str = "native") -> Run:
    return Scenario.of(subject, f"incremental:{options}", backend).run()


def calls(found: Run) -> list[tuple[int, int]]:
    return [(event.start, event.end) for event in found.trace.of(RangeSplit)]


def maps(found: Run) -> list[Map]:
    return [e.step for e in found.trace.of(StepStarted) if isinstance(e.step, Map)]


# -- releases -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "first", "new"),
    [
        ("3.9.11", "3.10", {"promote"}),
        ("3.10.108", "3.11", {"brk"}),
        ("3.12.74", "3.13", {"bottom_up"}),
        ("3.18.140", "3.19", {"growth"}),
        ("4.7.10", "4.8", {"brk"}),
        ("4.18.20", "4.19", {"fallback"}),
        ("5.10.14", "5.11", {"bottom_up"}),
        ("5.10.14", "5.10.15", {"bottom_up"}),
        ("5.11.22", "5.12", {"brk"}),
        ("6.1.140", "6.1.141", {"no_block"}),
        ("6.6.92", "6.6.93", {"no_block"}),
        ("6.12.30", "6.12.31", {"no_block"}),
        ("6.14.8", "6.14.9", {"no_block"}),
        ("6.13.12", "6.15", {"no_block"}),
        ("6.15.11", "6.16", {"brk"}),
    ],
)
def test_what_a_release_was_the_first_to_do(last: str, first: str, new: set[str]) -> None:
    before, after = attrs.asdict(change_for(last)), attrs.asdict(change_for(first))
    differ = {name for name in before if before[name] != after[name]}
    assert differ - {"since", "note"} == new


@pytest.mark.parametrize(
    ("kernel", "wide", "randomised", "narrow"),
    [
        ("3.9", 5, 5, 5),
        ("3.10", 5, 5, 5),
        ("3.11", 6, 6, 6),
        ("4.7", 6, 6, 6),
        ("4.8", 6, 12, 6),
        ("5.11", 6, 12, 6),
        ("5.12", 8, 16, 6),
        ("6.15", 8, 16, 6),
        ("6.16", 8, 16, 8),
        ("6.18", 8, 16, 8),
    ],
)
def test_pages_of_brk(kernel: str, wide: int, randomised: int, narrow: int) -> None:
    """INIT_PGT_BUF_SIZE."""
    change = change_for(kernel)
    for name, mode in MODES.items():
        expected = (narrow, narrow) if name.startswith("i386") else (wide, randomised)
        assert (change.brk_pages(mode, False), change.brk_pages(mode, True)) == expected


@pytest.mark.parametrize(
    ("kernel", "empty_window", "brk", "words"),
    [
        # One page at a time, a message for each of two ways to have none.
        ("3.9", True, False, "alloc_low_page: ran out of memory"),
        ("3.9", True, True, "alloc_low_page: ran out of memory"),
        ("3.12", False, False, "alloc_low_page: can not alloc memory"),
        ("3.12", False, True, "alloc_low_page: can not alloc memory"),
        ("3.13", True, False, "alloc_low_pages: ran out of memory"),
        ("4.18", True, True, "alloc_low_pages: ran out of memory"),
        ("4.18", False, True, "alloc_low_pages: can not alloc memory"),
        # The empty window is no message of its own any more; brk may serve, which is worse.
        ("4.19", True, False, "alloc_low_pages: can not alloc memory"),
        ("4.19", False, False, "alloc_low_pages: can not alloc memory"),
        ("4.19", True, True, "extend_brk: brk is closed (kernel BUG)"),
        ("6.16", False, True, "extend_brk: brk is closed (kernel BUG)"),
    ],
)
def test_last_words(kernel: str, empty_window: bool, brk: bool, words: str) -> None:
    assert change_for(kernel).panic(window_is_empty=empty_window, use_brk=brk) == words


@pytest.mark.parametrize(
    ("mode", "times"), [("x86_64", 256), ("x86_64-la57", 256), ("i386-pae", 256), ("i386", 512)]
)
def test_steps_grow_by_half_a_table(mode: str, times: int) -> None:
    step = MODES[mode].entry_span(2)
    assert change_for("4.19").next_step(MODES[mode], step, step, step) == times * step
    assert change_for("3.18").next_step(MODES[mode], step, step, step) == 32 * step


# -- the way down ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["5.14", "6.15"])
def test_less_than_a_large_page_in_all(kernel: str) -> None:
    """i386: no 4 MiB are free, and the top of the last whole ones would be 0. Nothing below 1 MiB
    is mapped a second time.
    """
    small = machine(
        (0, 640 * KIB), (MIB, 3 * MIB), end=2 * MIB, mode=MODES["i386"], boot_mapped=3 * MIB
    )
    expected = {"5.14": [(MIB, 3 * MIB)], "6.15": [(MIB, 3 * MIB)]}
    assert calls(run(small, f"kernel={kernel}")) == [(0, MIB), *expected[kernel]]


def test_the_first_large_page_is_none_to_begin_at() -> None:
    """The search begins at 1 MiB: that the first 2 MiB are all free does not count."""
    top = 64 * MIB
    full = machine((0, top), reserved=((2 * MIB, top),))
    assert calls(run(full, "kernel=6.15"))[1] == (top - 2 * MIB, top)
    free = attrs.evolve(full, reserved=((2 * MIB, 4 * MIB), (6 * MIB, top)))
    assert calls(run(free, "kernel=6.15"))[1] == (4 * MIB, 6 * MIB)
    # With no free large page at all it begins at the end of the last whole one.
    odd = machine((0, top + MIB), reserved=((2 * MIB, top + MIB),))
    mapped = calls(run(odd, "kernel=6.15"))
    assert (mapped[1], mapped[-1]) == ((top - 2 * MIB, top), (top, top + MIB))


def test_a_step_as_large_as_what_is_left_goes_down_to_the_first_mib() -> None:
    """``last_start > step``: with 2 MiB left and a step of 2 MiB the rest is one call."""
    small = machine((0, 4 * MIB), end=2 * MIB - 64 * PAGE, reserved=((0, MIB),))
    assert calls(run(small, "kernel=4.19")) == [(0, MIB), (2 * MIB, 4 * MIB), (MIB, 2 * MIB)]


def test_what_is_promised_is_the_first_mib_and_ram() -> None:
    holes = machine((4 * KIB, 640 * KIB), (2 * MIB, 40 * MIB), (41 * MIB, 64 * MIB))
    assert run(holes, "kernel=4.19").trace.start.promised == (
        (0, MIB),
        (2 * MIB, 40 * MIB),
        (41 * MIB, 64 * MIB),
    )


def test_brk_serves_no_step_that_maps_it() -> None:
    """The kernel counts on brk being mapped by its own tables until they are replaced."""
    brk = 17 * MIB
    subject = attrs.evolve(
        machine((0, 64 * MIB), reserved=((0, MIB),)),
        kernel=KernelImage(16 * MIB, brk, brk, brk),
        features=CpuFeatures(pse=False),
    )
    steps = maps(run(subject, "kernel=4.19"))
    assert [(step.start, step.use_brk) for step in steps] == [
        (0, True),
        (62 * MIB, True),
        (MIB, False),
    ]


def test_what_the_trampoline_took_of_brk_is_left_of_it_no_more() -> None:
    """can_use_brk_pgt asks for the pages from pgt_buf_end on: with a randomised direct map that is
    behind the table of the trampoline, and RAM may end there without being brk's.
    """
    brk = 17 * MIB
    for behind, uses_brk in ((5, True), (6, False)):
        subject = attrs.evolve(
            machine((0, brk + behind * PAGE), (18 * MIB, 64 * MIB), reserved=((0, MIB),)),
            kernel=KernelImage(16 * MIB, brk, brk, brk),
            features=CpuFeatures(pse=False),
        )
        found = run(subject, "kernel=4.9,kaslr=yes")
        # Three pages for the first MiB, one for the trampoline, one for the topmost 2 MiB.
        (low,) = (step for step in maps(found) if step.end == brk + behind * PAGE)
        assert low.use_brk is uses_brk


def test_a_trampoline_takes_no_more_of_brk_than_there_is() -> None:
    """Three pages map the first MiB; there is none for the trampoline, nor for what follows."""
    found = run(machine((0, 64 * MIB)), "kernel=4.9,kaslr=yes,brk_pages=3")
    assert str(found.verdict) == "ok"
    sources = [part.source for e in found.trace.of(TablesAllocated) for part in e.batch.pages]
    assert sources[0] is Source.BRK
    assert Source.BRK not in sources[1:]


def windows(found: Run) -> list[tuple[int, ...]]:
    """Start of each range, and where pages for its tables are looked for, in MiB."""
    return [
        (step.start // MIB, *(edge // MIB for edge in step.tables_from)) for step in maps(found)
    ]


def test_tables_come_from_what_is_mapped_above() -> None:
    """min_pfn_mapped and max_pfn_mapped: downward, from where the last step ended up to the end of
    all; upward, from where the direction began. Before the first range nothing counts as mapped.
    """
    subject = machine(
        (0, 640 * KIB), (MIB, 40 * MIB), (41 * MIB, 64 * MIB - PAGE),
        features=CpuFeatures(pse=False),
    )  # fmt: skip
    down = run(subject, "kernel=3.18")
    assert windows(down) == [(0, 0, 0), (60, 62, 0), (1, 60, 62), (41, 60, 62), (62, 1, 62)]
    assert maps(down)[1].tables_from == (62 * MIB, 0)
    up = run(subject, "kernel=3.18,movable_node=yes")
    assert windows(up) == [
        (0, 0, 0), (18, 18, 0), (20, 18, 20), (41, 18, 40), (1, 1, 63), (2, 1, 63),
    ]  # fmt: skip
    assert maps(up)[1].tables_from == (18 * MIB + 6 * PAGE, 0)


@pytest.mark.parametrize(
    ("window", "empty"),
    [((4 * MIB, 0), True), ((4 * MIB, 4 * MIB), True), ((4 * MIB, 4 * MIB + PAGE), False)],
)
def test_a_window_without_any_page_is_empty(window: tuple[int, int], empty: bool) -> None:
    """``min_pfn_mapped >= max_pfn_mapped`` has words of its own in 3.9; and what was taken before
    one page was missing is told, from wherever.
    """
    subject = machine((0, 64 * MIB))
    boot = Boot(subject, BootState((), 0, subject.features))
    demand = TableDemand(0, MIB, ((1, 2),))
    for use_brk in (True, False):
        step = Map(0, MIB, tables_from=window, use_brk=use_brk)
        with pytest.raises(KernelPanic) as panic:
            Incremental(kernel="3.9").pvmm_allocate_tables(boot, step, demand)
        words = "ran out of memory" if empty else "can not alloc memory"
        assert str(panic.value) == f"alloc_low_page: {words}"
        assert panic.value.missing_tables == (2 if empty else 1)
        taken = [TablePages(PageRun(window[0] // PAGE, 1, -1), Source.MEMBLOCK)]
        assert list(panic.value.taken) == ([] if empty else taken)
        # Booted with movable_node memory is given out from the kernel's end upward; below it, what
        # lies in the window and nowhere else.
        upward = Incremental(kernel="4.4", movable_node=True)
        if empty:
            with pytest.raises(KernelPanic):
                upward.pvmm_allocate_tables(boot, step, demand)
        else:
            wider = attrs.evolve(step, tables_from=(4 * MIB, 5 * MIB), use_brk=False)
            found = upward.pvmm_allocate_tables(boot, wider, demand)
            assert [part.run for part in found] == [PageRun(5 * MIB // PAGE - 1, 2, -1)]
    with pytest.raises(TypeError, match="no tables are asked for in step AttachTables"):
        Incremental(kernel="3.9").pvmm_allocate_tables(boot, AttachTables(), demand)


# -- movable_node ---------------------------------------------------------------------------------


def upward(memory: int, kernel_end: int, options: str = "", **others: object) -> Run:
    subject = machine((0, memory), end=kernel_end, reserved=((0, MIB),), **others)
    return run(subject, f"kernel=6.1,movable_node=yes{options}", "native")


def test_up_from_the_kernel_in_one_call_if_a_step_is_enough() -> None:
    end = 18 * MIB + 16 * PAGE  # with the brk of 6.1
    assert calls(upward(end + 2 * MIB, 18 * MIB))[1] == (end, end + 2 * MIB)
    assert calls(upward(end + 2 * MIB + PAGE, 18 * MIB))[1:3] == [
        (end, 20 * MIB),
        (20 * MIB, end + 2 * MIB + PAGE),
    ]


def test_up_from_the_end_of_the_kernels_last_page() -> None:
    """Where a log does not tell it by whole pages."""
    subject = attrs.evolve(
        machine((0, 64 * MIB), reserved=((0, MIB),)),
        kernel=KernelImage(16 * MIB, 18 * MIB, 18 * MIB, 18 * MIB, 18 * MIB + 40 * PAGE + 5),
    )
    found = run(subject, "kernel=6.1,movable_node=yes")
    assert calls(found)[1][0] == 18 * MIB + (40 + 16 + 1) * PAGE  # with the brk of 6.1


def test_what_the_startup_code_mapped_counts_where_it_says_so() -> None:
    """max_pfn_mapped: i386 and guests of Xen begin with what is mapped already, x86_64 with 0."""
    for backend, mode in (("native", "x86_64"), ("native", "i386-pae"), ("xen", "x86_64")):
        subject = machine((0, 128 * MIB), mode=MODES[mode], boot_mapped=24 * MIB)
        found = run(subject, "kernel=4.4,movable_node=yes", backend)
        mapped = found.trace.start.boot.max_pfn_mapped * PAGE
        assert mapped > 18 * MIB
        counted = 0 if (backend, mode) == ("native", "x86_64") else mapped
        assert maps(found)[1].tables_from[1] == counted


@pytest.mark.parametrize("mode", ["x86_64", "x86_64-la57"])
@pytest.mark.parametrize("kernel", ["4.4", "6.1"])
def test_tables_below_a_high_kernel_may_lie_in_memory_that_is_not_mapped(
    kernel: str, mode: str
) -> None:
    """5.10.223 and 6.1.176 do it, booted at 2 GiB: the early fault handler maps what is touched."""
    low, end = 600 * MIB, 632 * MIB
    subject = Machine(
        "high",
        MemoryMap.sanitise([(0, 4 * MIB, E820Type.RAM), (low, end + 8 * MIB, E820Type.RAM)]),
        mode=MODES[mode],
        features=CpuFeatures(pse=False),
        kernel=KernelImage(end - 2 * MIB, end, end, end),
        reserved=((0, 4 * MIB), (end + 20 * PAGE, end + 8 * MIB)),
    )
    found = run(subject, f"kernel={kernel},movable_node=yes")
    assert str(found.verdict) == "ok"
    taken = [part.run.span[0] for e in found.trace.of(TablesAllocated) for part in e.batch.pages]
    assert any(low <= address < end - 2 * MIB for address in taken)


# -- the trampoline of a randomised direct map ----------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "tables"), [("x86_64", 1), ("x86_64-la57", 2), ("i386-pae", 0), ("i386", 0)]
)
def test_the_trampoline_takes_a_table_for_each_level_above_the_l3(mode: str, tables: int) -> None:
    subject = machine((0, 64 * MIB), mode=MODES[mode])
    plain, kaslr = (run(subject, f"kernel=4.9,kaslr={answer}") for answer in ("no", "yes"))
    assert "incremental.trampoline_tables" not in plain.figures
    assert kaslr.figures["incremental.trampoline_tables"] == tables


# -- the seven steps ------------------------------------------------------------------------------


def proposed(subject: Machine, brk_pages: int) -> Run:
    found = run(subject, f"variant=hpa,brk_pages={brk_pages}")
    assert str(found.verdict) == "ok"
    return found


def test_a_kernel_beyond_ram_is_promised_too() -> None:
    """It is mapped by itself, whatever the memory map says."""
    subject = machine((0, 17 * MIB))
    found = proposed(subject, 64)
    end = found.trace.start.boot.kernel_of(found.trace.start.machine).span[1]
    assert end > 18 * MIB
    assert found.trace.start.promised == ((0, end),)


def test_a_kernel_is_mapped_by_whole_pages() -> None:
    """Where a log does not tell it by whole pages."""
    kernel = KernelImage(16 * MIB + 7, 18 * MIB - 5, 18 * MIB - 5, 18 * MIB - 5)
    found = proposed(attrs.evolve(machine((0, 64 * MIB)), kernel=kernel), 64)
    start, end = calls(found)[0]
    brk_end = found.trace.start.boot.kernel_of(found.trace.start.machine).brk_end
    assert (start, end) == (16 * MIB, brk_end + -brk_end % PAGE)


@pytest.mark.parametrize(
    ("brk_pages", "labels"),
    [
        (4, "12555"),
        (5, "1255"),
        (6, "12255"),
        (15, "12255"),
        (16, "1225"),
        (23, "12225"),
        (24, "1222"),
    ],
)
def test_a_round_goes_on_in_the_next_piece_while_there_are_pages(
    brk_pages: int, labels: str
) -> None:
    """Five tables map the upper piece, eleven what is above the kernel (one of them three pages),
    eight what is below it; no piece is begun that none is left for.
    """
    subject = machine(
        (0, 40 * MIB + 3 * PAGE),
        (50 * MIB + PAGE, 60 * MIB),
        features=CpuFeatures(pse=False),
    )
    found = proposed(subject, brk_pages)
    assert "".join(step.label[0] for step in maps(found)) == labels
    assert maps(found)[1].start == max(50 * MIB + PAGE, 60 * MIB - brk_pages * 2 * MIB)


def test_a_page_that_is_taken_in_part_is_no_table() -> None:
    top = 64 * MIB
    subject = machine(
        (0, top), reserved=((top - 2 * MIB + 5, top),), features=CpuFeatures(pse=False)
    )
    found = proposed(subject, 2)
    taken = [part.run for e in found.trace.of(TablesAllocated) for part in e.batch.pages]
    assert max(run.high for run in taken) == (top - 2 * MIB) // PAGE


TAKEN = ((0, MIB), (16 * MIB, 18 * MIB), (250 * MIB, 251 * MIB), (252 * MIB - PAGE, 252 * MIB))


@pytest.mark.parametrize(("mode", "levels"), [("x86_64", 3), ("i386-pae", 2)])
@pytest.mark.parametrize("brk_pages", [3, 5, 7, 64])
def test_each_round_maps_all_that_the_pages_at_hand_pay_for(
    mode: str, levels: int, brk_pages: int
) -> None:
    """Page by page and table by table: what a round can pay with, what one more L1 would cost, and
    that the pages are the highest mapped ones that are free, from the top.
    """
    subject = machine(
        (0, 100 * MIB),
        (101 * MIB + PAGE, 253 * MIB + 5 * PAGE),
        mode=MODES[mode],
        features=CpuFeatures(pse=False),
        reserved=TAKEN,
        boot_mapped=64 * MIB,
    )
    found = proposed(subject, brk_pages)
    kernel = found.trace.start.boot.kernel_of(found.trace.start.machine)
    brk = set(range(kernel.brk_start // PAGE, kernel.brk_end // PAGE))
    taken = {pfn for low, high in (*TAKEN, kernel.span) for pfn in range(low // PAGE, high // PAGE)}
    spans = subject.memory_map.ram_pages()
    ram = {pfn for low, high in spans for pfn in range(low // PAGE, high // PAGE)}
    mapped: set[int] = set()
    known: set[tuple[int, int]] = set()
    pending: set[int] = set()
    live = False

    def tables(start: int, end: int) -> set[tuple[int, int]]:
        return {
            (level, number)
            for level in range(1, levels + 1)
            for number in range(start // 512**level, (end - 1) // 512**level + 1)
        } - known

    for event in found.trace:
        if isinstance(event, TablesAllocated):
            assert all(run.count for run in event.batch.runs)
            pages = [run.start + n * run.step for run in event.batch.runs for n in range(run.count)]
            if event.batch.count == 1 and not known:
                brk.remove(pages[0])  # the root
                continue
            of_brk = [pfn for pfn in pages if pfn in brk]
            assert of_brk == sorted(brk)[: len(of_brk)]
            brk.difference_update(of_brk)
            rest = pages[len(of_brk) :]
            free = sorted(mapped - taken, reverse=True)
            assert rest == free[: len(rest)]
            taken.update(rest)
        elif isinstance(event, RootActivated):
            live = True
        elif isinstance(event, StepStarted) and isinstance(event.step, Map):
            start, end = event.step.start // PAGE, event.step.end // PAGE
            at_hand = len(brk) + (len(mapped - taken) if live else 0)
            new = tables(start, end)
            assert len(new) <= at_hand
            if event.step.label[0] != "1" and start - 1 in ram - mapped - pending:
                more = tables(max(0, start - 512), end)
                assert len(more) > at_hand
            known |= new
            pending.update(range(start, end))
        elif isinstance(event, StepStarted) and isinstance(event.step, AttachTables):
            mapped |= pending


@pytest.mark.parametrize(
    ("memory", "pse", "brk_pages", "looks"),
    [
        (8, False, 64, 5), (64, False, 64, 8), (300, False, 130, 8),
        (64, True, 20, 19), (300, True, 9, 13),
    ],
)  # fmt: skip
def test_how_far_the_pages_at_hand_go_is_found_where_their_share_is(
    monkeypatch: pytest.MonkeyPatch, memory: int, pse: bool, brk_pages: int, looks: int
) -> None:
    """In a range of gigabytes there are 4,000 to 150,000 places; halving alone takes 12 to 17 looks
    a round, of which there are up to five.
    """
    seen: list[Map] = []
    plain = Boot.tables_needed

    def counted(self: Boot, step: Map) -> int:
        seen.append(step)
        return plain(self, step)

    monkeypatch.setattr(Boot, "tables_needed", counted)
    proposed(machine((0, memory * GIB), features=CpuFeatures(pse=pse)), brk_pages)
    assert len(seen) <= looks


# -- the proposal ---------------------------------------------------------------------------------


@attrs.frozen
class LittleBrk(Incremental):
    """A kernel that was linked with one page of brk: not enough to map it."""

    @hookimpl
    def pvmm_kernel_image(self, machine: Machine) -> KernelImage:
        return machine.kernel.with_brk(1)


def test_too_little_brk_for_the_kernel_itself_is_a_panic() -> None:
    subject = machine((0, 64 * MIB))
    found = Scenario.of(subject, "little:variant=hpa", "native").run(
        registry_with(little=LittleBrk)
    )
    assert str(found.verdict) == "panic: no mapped memory is left for page tables"


def test_pages_that_lie_apart_serve_together() -> None:
    """Of the 4 MiB that two pages of brk map, six single pages are free: they are the tables of the
    next 12 MiB at once, highest first.
    """
    top = 64 * MIB
    free = [top - number * 16 * PAGE for number in range(1, 7)]
    taken = RangeSet([(top - 4 * MIB, top)])
    for start in free:
        taken.discard(start, start + PAGE)
    subject = machine((0, top), reserved=tuple(taken), features=CpuFeatures(pse=False))
    found = run(subject, "variant=hpa,brk_pages=2")
    assert calls(found)[1:3] == [(top - 4 * MIB, top), (top - 16 * MIB, top - 4 * MIB)]
    pages = list(found.trace.of(TablesAllocated))[3].batch.pages
    assert [part.run.span for part in pages] == [(start, start + PAGE) for start in free]


# -- machines at the edge of what can be -----------------------------------------------------------


@pytest.mark.parametrize("options", ["kernel=3.9", "kernel=6.1", "kernel=6.1,movable_node=yes"])
def test_memory_that_lies_far_apart_is_reached_in_few_steps(options: str) -> None:
    """As the kernel does in 33 million steps that map nothing: the calls are the same."""
    top = 1 << 46
    spans = ((0, 64 * MIB), (1 << 45, (1 << 45) + MIB), (top - PAGE, top))
    far = run(machine(*spans, features=CpuFeatures(pse=False)), options)
    assert str(far.verdict) == "ok"
    assert {(1 << 45, (1 << 45) + MIB), (top - PAGE, top)} <= set(calls(far))


@pytest.mark.parametrize(("kernel", "end"), [("6.1", 2 * MIB), ("6.15", MIB + 64 * KIB)])
def test_with_less_lowmem_than_a_large_page_all_of_the_first_is_mapped(
    kernel: str, end: int
) -> None:
    """Where none is free mapping begins at the end of the first: behind the end of lowmem here."""
    subject = machine((0, 64 * MIB), mode=MODES["i386-pae"], max_low_pfn_hint=0x110)
    found = run(subject, f"kernel={kernel}")
    assert not [finding for finding in found.findings if finding.rule == 3]
    assert found.trace.start.promised == ((0, end),)


def test_an_image_of_nothing_is_not_mapped() -> None:
    subject = machine((0, 64 * MIB))
    subject = attrs.evolve(subject, kernel=KernelImage(16 * MIB, *[16 * MIB] * 3))
    found = run(subject, "variant=hpa,brk_pages=0")
    assert found.verdict.outcome is not Outcome.ERROR


@pytest.mark.parametrize(
    ("kernel", "last"), [("3.9", [(2 * MIB, 0x7C000000, 2)]),
                         ("3.10", [(2 * MIB, GIB, 2), (GIB, 0x7C000000, 3)])]
)  # fmt: skip
def test_pages_of_1_gib_are_mapped_over_where_neighbours_are_merged_first(
    kernel: str, last: list[tuple[int, int, int]]
) -> None:
    """2 GiB in one piece: the last step begins at 1 MiB, the two before lie in a page of 1 GiB."""
    subject = machine((PAGE, 2 * GIB), features=CpuFeatures(gbpages=True))
    found = run(subject, f"kernel={kernel}")
    *_, split = found.trace.of(RangeSplit)
    assert [(piece.start, piece.end, piece.level) for piece in split.pieces[1:]] == last
    twice = [] if kernel == "3.10" else [(3, GIB)]
    assert [(finding.rule, finding.address) for finding in found.findings[:1]] == twice
