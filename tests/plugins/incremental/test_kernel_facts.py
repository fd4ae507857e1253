"""Machines on which what a release does at the edges decides whether it boots.

Each is after a public report; memory in bytes, the kernel where it was.
"""

from __future__ import annotations

import attrs
import pytest

from paravirt_mm import DefaultSpec, E820Type, KernelImage, Machine, MemoryMap, Outcome, Scenario
from paravirt_mm.engine.pages import Source
from paravirt_mm.engine.trace import PagesTaken, TablesAllocated
from paravirt_mm.machine.model import CpuFeatures
from paravirt_mm.machine.paging import I386, I386_PAE, X86_64
from paravirt_mm_incremental import Incremental

MIB = 1 << 20
GIB = 1 << 30


def machine(*ram: tuple[int, int], kernel: tuple[int, int, int]) -> Machine:
    start, end, brk_end = kernel
    return Machine(
        name="case",
        memory_map=MemoryMap.sanitise((low, high, E820Type.RAM) for low, high in ram),
        kernel=KernelImage(start, end, end, brk_end),
    )


def verdict(subject: Machine, kernel: str) -> str:
    run = Scenario.of(subject, f"incremental:variant=linux,kernel={kernel}", "native").run()
    return str(run.verdict)


# No aligned 2 MiB of RAM is free: the kernel fills nearly all of what it was loaded to.
NO_FREE_PAGE = attrs.evolve(
    machine((0, 0x9F000), (16 * MIB, 0x3630000), kernel=(16 * MIB, 0x35F0000, 0x3630000)),
    features=CpuFeatures(gbpages=True),
)

# A crash kernel of which nothing lies below 1 MiB.
NO_LOW_RAM = machine((0x2B000000, 0x33000000), kernel=(0x2C000000, 0x2E000000, 0x2E040000))

# 928 GiB without large pages: the second step needs six tables (DEBUG_PAGEALLOC).
MANY_SMALL_PAGES = attrs.evolve(
    machine(
        (0x1000, 0x9F000),
        (MIB, 2 * GIB),
        (4 * GIB, 0xE80F000000),
        kernel=(16 * MIB, 0x2086000, 0x20C6000),
    ),
    features=CpuFeatures(pse=False),
    reserved=((0, 0x10000),),
)

# i386 with 8 MiB: the search for a free 4 MiB page fails, and gives back what lies at 0.
UNDER_4M_FREE = attrs.evolve(
    machine((0x1000, 0x9F000), (MIB, 8 * MIB), kernel=(MIB, 5 * MIB, 0x520000)),
    mode=I386,
    boot_mapped=8 * MIB,
    reserved=((0, MIB), (7 * MIB, 0x7F0000)),
)


@pytest.mark.parametrize(
    ("kernel", "boots"),
    [
        ("6.1.140", False), ("6.1.141", True), ("6.6.92", False), ("6.6.93", True),
        ("6.12.30", False), ("6.12.31", True), ("6.14.8", False), ("6.14.9", True),
        ("6.14", False), ("6.15", True), ("5.15.180", False),
    ],
)  # fmt: skip
def test_stable_series_begin_at_the_top_without_a_free_large_page(kernel: str, boots: bool) -> None:
    assert (verdict(NO_FREE_PAGE, kernel) == "ok") is boots


AT_ONCE, LATER = "Cannot allocate trampoline", "Real mode trampoline was not allocated"
LOW_MODES = {"i386-pae": I386_PAE, "x86_64": X86_64}


def with_low_ram(mode: str, pages: int) -> Machine:
    """Return `NO_LOW_RAM` with so many pages of RAM below 1 MiB, the first of all aside."""
    low = MemoryMap.sanitise(
        [(0x1000, 0x1000 + (pages << 12), E820Type.RAM), (0x2B000000, 0x33000000, E820Type.RAM)]
    )
    return attrs.evolve(NO_LOW_RAM, memory_map=low, mode=LOW_MODES[mode], boot_mapped=GIB)


@pytest.mark.parametrize(
    ("allocator", "mode", "pages", "expected"),
    [
        ("incremental:kernel=3.9", "x86_64", 6, AT_ONCE),
        ("incremental:kernel=4.8", "x86_64", 6, AT_ONCE),
        ("incremental:kernel=4.8", "i386-pae", 4, AT_ONCE),
        ("incremental:kernel=4.9", "x86_64", 6, LATER),
        ("incremental:kernel=6.12.31", "x86_64", 6, LATER),
        ("incremental:variant=hpa", "x86_64", 6, AT_ONCE),
        ("incremental:variant=hpa,kernel=6.1", "x86_64", 6, AT_ONCE),
        ("chunk_end", "x86_64", 6, AT_ONCE),
        ("legacy_linear:kernel=3.6", "x86_64", 6, AT_ONCE),
        ("legacy_linear:kernel=3.4", "x86_64", 5, AT_ONCE),
        ("legacy_linear:kernel=3.4", "i386-pae", 4, AT_ONCE),
        ("legacy_linear:kernel=2.6.38", "x86_64", 2, AT_ONCE),
        ("legacy_linear:kernel=2.6.33", "x86_64", 2, AT_ONCE),
    ],
)
def test_a_kernel_without_low_ram_has_no_trampoline(
    allocator: str, mode: str, pages: int, expected: str
) -> None:
    def end(subject: Machine) -> str:
        return str(Scenario.of(subject, allocator, "native").run().verdict)

    assert end(attrs.evolve(NO_LOW_RAM, mode=LOW_MODES[mode], boot_mapped=GIB)) == (
        f"panic: {expected}"
    )
    assert end(with_low_ram(mode, pages - 1)) == f"panic: {expected}"
    assert end(with_low_ram(mode, pages)) == "ok"


def test_the_place_of_the_trampoline_was_fixed_before() -> None:
    run = Scenario.of(with_low_ram("x86_64", 0), "legacy_linear:kernel=2.6.32", "native").run()
    assert str(run.verdict) == "ok"


@pytest.mark.parametrize(("kernel", "boots"), [("4.8", False), ("6.1", False), ("6.2", True)])
def test_guests_of_xen_need_no_trampoline_since_6_2(kernel: str, boots: bool) -> None:
    """PV guests start their processors by hypercall."""
    subject = attrs.evolve(
        machine((MIB, 128 * MIB), kernel=(16 * MIB, 24 * MIB, 0x1810000)), reserved=()
    )
    spec = f"incremental:kernel={kernel}"
    assert (str(Scenario.of(subject, spec, f"xen:kernel={kernel}").run().verdict) == "ok") is boots


@pytest.mark.parametrize(
    ("kernel", "dies"), [("5.14", False), ("5.15", True), ("6.14", True), ("6.15", False)]
)
def test_a_failed_search_gives_low_memory_back(kernel: str, dies: bool) -> None:
    assert ("given back by a failed search" in verdict(UNDER_4M_FREE, kernel)) is dies


@pytest.mark.parametrize(
    ("kernel", "pages"), [("3.9", 5), ("3.10", 5), ("3.10.10", 5), ("3.11", 6)]
)
def test_pages_of_brk_are_taken_one_by_one_until_there_are_none(kernel: str, pages: int) -> None:
    """The kernel that panics has taken, and printed, what there was."""
    spec = f"incremental:variant=linux,kernel={kernel}"
    run = Scenario.of(MANY_SMALL_PAGES, spec, "native").run()
    if pages == 6:
        assert run.verdict.outcome is Outcome.OK
        return
    assert run.verdict.outcome is Outcome.PANIC
    parts = [part for event in run.trace.of(TablesAllocated) for part in event.batch.pages]
    parts += [part for event in run.trace.of(PagesTaken) for part in event.pages]
    assert sum(part.run.count for part in parts if part.source is Source.BRK) == pages


RHEL_7 = [({}, 0), ({"brk_pages": "6"}, 0)]
USUAL = ({}, 0)


def backported(tables: int) -> list[tuple[dict[str, str], int]]:
    return [USUAL, ({"brk_pages": "12", "kaslr": "yes"}, tables), ({"brk_pages": "12"}, 0)]


def randomised(tables: int) -> list[tuple[dict[str, str], int]]:
    return [({"kaslr": "yes"}, tables), USUAL, ({"randomize_memory": "no"}, 0)]


@pytest.mark.parametrize(
    ("releases", "mode", "questions"),
    [
        ("3.9", "x86_64", []),
        ("3.10", "x86_64", [RHEL_7, backported(1)]),
        ("3.10", "x86_64-la57", [RHEL_7, backported(2)]),
        ("3.11 4.7", "x86_64", [backported(1)]),
        ("3.11 4.7", "x86_64-la57", [backported(2)]),
        ("4.8 4.19 5.11 6.16 7.3", "x86_64", [randomised(1)]),
        ("5.12 6.1 6.15", "x86_64", [randomised(1), [USUAL, ({"brk_pages": "6"}, 0)]]),
        ("4.8 4.19 6.1 7.3", "x86_64-la57", [randomised(2)]),
        ("3.9 3.11 4.7 4.8 7.3", "i386 i386-pae", []),
        ("3.10", "i386 i386-pae", [RHEL_7]),
    ],
)
def test_what_a_release_leaves_open(releases: str, mode: str, questions: list[object]) -> None:
    """In the order in which it is tried, with the tables that the trampoline takes from brk: one a
    level between the root and the L2 that is shared, where the direct map is randomised.
    """
    for release in releases.split():
        for each in mode.split():
            asked = Incremental().pvmm_open_questions(release, each)
            *others, pages = asked
            found = [[(dict(c.options), c.other_tables) for c in choices] for choices in others]
            assert found == questions, (release, each)
            assert [choice.large_pages for choice in pages] == [True, False]


def test_what_is_compared_where_nobody_names_anything() -> None:
    """What was merged before what was proposed, both behind the linear allocator; one alone is what
    was merged.
    """
    assert list(Incremental().pvmm_default_specs()) == [
        DefaultSpec("incremental:variant=linux,kernel=4.19", 30, alone=True),
        DefaultSpec("incremental:variant=hpa", 40),
    ]
