"""Konrad Wilk's sketch, page by page, against a loop that knows nothing but its rule::

start    2M       4M       6M
|TTT-----|-------T|-------T|---    without large pages: each T maps the chunk behind it
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import attrs
import pytest

from paravirt_mm import (
    MODES,
    CpuFeatures,
    E820Type,
    KernelImage,
    Machine,
    Map,
    MemoryMap,
    Outcome,
    RangeMapped,
    Run,
    Scenario,
    SpecError,
    StepStarted,
    TablesAllocated,
    bundled,
    default_specs,
)
from paravirt_mm.testing import AllocatorConformance, generate
from paravirt_mm_chunk_end import ChunkEnd

MIB, GIB, PAGE = 1 << 20, 1 << 30, 4096
LOW = (0x1000, 0x9F000)
"""Conventional memory: without it there is no place for real-mode code."""


class TestChunkEnd(AllocatorConformance):
    pytestmark = pytest.mark.slow
    plugin = ChunkEnd
    # A step for each 2 MiB: typed platforms take seconds a machine, so that one is enough.
    partners = ("native", "xen:replay_limit=0", "plain_platform")
    declines: ClassVar[Mapping[str, str]] = {
        "work_is_done_in_runs": "the sketch maps one chunk after the other"
    }


def machine(*ram: tuple[int, int], **changes: object) -> Machine:
    memory = MemoryMap.sanitise((low, high, E820Type.RAM) for low, high in ram)
    kernel = KernelImage(4 * MIB, 5 * MIB, 5 * MIB, 5 * MIB)
    plain = Machine("chunks", memory, features=CpuFeatures(pse=False), kernel=kernel)
    return attrs.evolve(plain, **changes)


def pages(run: Run) -> list[int]:
    """Table pages in the order in which they were taken."""
    return [
        part.run.start + n * part.run.step
        for event in run.trace.of(TablesAllocated)
        for part in event.batch.pages
        for n in range(part.run.count)
    ]


def naive(subject: Machine) -> list[int]:
    """Page by page: a table for each 2 MiB, an L2 each GiB, an L3, from the highest free page
    below the chunk; at first the lowest free ones. (No large pages, four levels.)
    """
    free = {
        pfn for low, high in subject.memory_map.ram_pages() for pfn in range(low >> 12, high >> 12)
    }
    taken = {pfn for low, high in subject.reserved for pfn in range(low >> 12, high >> 12)}
    taken |= set(range(subject.kernel.start >> 12, subject.kernel.end >> 12)) | {0}
    free -= taken
    tables: set[tuple[int, int]] = set()
    found: list[int] = []
    end = 0
    for low, high in subject.memory_map.ram_pages():
        while low < high:
            for level, shift in ((3, 39), (2, 30), (1, 21)):
                if (level, low >> shift) not in tables:
                    tables.add((level, low >> shift))
                    page = max(p for p in free if p < end >> 12) if end else min(free)
                    free.discard(page)
                    found.append(page)
            low = end = min(high, (low >> 21) + 1 << 21)
    return found


@pytest.mark.parametrize(
    "ram",
    [
        [(0x1000, 64 * MIB)],
        [LOW, (MIB, 37 * MIB + 5 * PAGE)],
        # A chunk whose end is the kernel's, a hole, and a second GiB: an L2 more.
        [LOW, (MIB, 6 * MIB), (9 * MIB, 20 * MIB), (GIB - 4 * MIB, GIB + 6 * MIB)],
    ],
)
def test_every_table_lies_where_the_rule_says(ram: list[tuple[int, int]]) -> None:
    subject = machine(*ram, reserved=((0, 64 << 10), (10 * MIB, 13 * MIB)))
    run = Scenario.of(subject, "chunk_end", "native").run()
    assert run.verdict.outcome is Outcome.OK
    assert pages(run) == naive(subject)


def test_large_pages_need_a_table_a_gibibyte() -> None:
    """And 1 GiB pages are not used: a chunk is smaller."""
    features = CpuFeatures(pse=True, gbpages=True)
    subject = machine((0x1000, 8 * GIB), features=features)
    run = Scenario.of(subject, "chunk_end", "native").run()
    assert run.figures["tables_l1"] == 1  # the first chunk begins behind page 0
    assert run.figures["tables_l2"] == 8
    assert {event.leaves.level for event in run.trace.of(RangeMapped)} == {1, 2}
    # The L2 of the next GiB: the last page of the one before.
    assert pages(run)[3:] == [(gib << 18) - 1 for gib in range(1, 8)]


def test_nothing_is_guessed_and_no_flip_is_wasted() -> None:
    subject = bundled("qemu-512m")
    run = Scenario.of(subject, "chunk_end", "xen").run()
    assert run.verdict.outcome is Outcome.OK
    assert run.figures["flips_per_table"] == 1.0
    assert run.figures["flips_wasted"] == run.figures["reserved"] == run.figures["brk_size"] == 0
    assert subject.kernel.brk_pages > ChunkEnd().pvmm_kernel_image(subject).brk_pages == 0


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param(mode, marks=pytest.mark.slow if mode.startswith("x86_64") else ())
        for mode in MODES
    ],
)
def test_every_mode(mode: str) -> None:
    for subject in generate(4, modes=(mode,)):
        run = Scenario.of(subject, "chunk_end", "native").run()
        assert run.verdict.outcome is Outcome.OK, (subject.name, run.verdict)


def test_larger_chunks_hold_their_tables_together() -> None:
    run = Scenario.of(machine(LOW, (MIB, 96 * MIB)), "chunk_end:chunk_mib=16", "native").run()
    assert run.verdict.outcome is Outcome.OK
    # Chunk 16..32M: eight tables at the end of the first.
    assert pages(run)[-40:][:8] == sorted(pages(run)[-40:][:8], reverse=True)
    assert (16 << 8) - 1 in pages(run)


def test_it_panics_where_nothing_is_free() -> None:
    subject = machine(LOW, (MIB, 64 * MIB), reserved=((0, 64 * MIB),))
    run = Scenario.of(subject, "chunk_end", "native").run()
    assert str(run.verdict) == "panic: no mapped memory is left for page tables"
    assert run.figures["overrun"] == 3
    # A page below the first chunk is all that there is: the others are missing.
    less = attrs.evolve(subject, reserved=((0, 8 * PAGE), (9 * PAGE, 64 * MIB)))
    run = Scenario.of(less, "chunk_end", "native").run()
    assert run.figures["overrun"] == 2


def maps(run: Run) -> list[tuple[int, int, str]]:
    steps = [event.step for event in run.trace.of(StepStarted) if isinstance(event.step, Map)]
    return [(step.start, step.end, step.label) for step in steps]


def test_chunks_in_large_pages_are_one_step_a_table() -> None:
    """A head behind page 0, whole large pages up to the end of an L2's span, the small tail."""
    end = GIB + 5 * MIB + 3 * PAGE
    subject = machine((0x1000, end), features=CpuFeatures(pse=True))
    run = Scenario.of(subject, "chunk_end", "native").run()
    assert maps(run) == [
        (PAGE, 2 * MIB, "chunk"),
        (2 * MIB, GIB, "chunks"),
        (GIB, GIB + 4 * MIB, "chunks"),
        (GIB + 4 * MIB, end, "chunk"),
    ]
    assert [event.leaves.level for event in run.trace.of(RangeMapped)] == [1, 2, 2, 1]


@pytest.mark.parametrize(("mode", "large"), [("i386", 4 * MIB), ("i386-pae", 2 * MIB)])
def test_the_first_large_page_of_32_bits_is_a_chunk_of_small_ones(mode: str, large: int) -> None:
    subject = machine(
        (0, 16 * MIB), features=CpuFeatures(pse=True), mode=MODES[mode], boot_mapped=8 * MIB
    )
    run = Scenario.of(subject, "chunk_end", "native").run()
    assert maps(run) == [(0, large, "chunk"), (large, 16 * MIB, "chunks")]


def test_chunks_of_another_size_end_at_its_multiples() -> None:
    subject = machine(LOW, (MIB, 21 * MIB))
    run = Scenario.of(subject, "chunk_end:chunk_mib=8", "native").run()
    assert [step[:2] for step in maps(run)] == [
        LOW,
        (MIB, 8 * MIB),
        (8 * MIB, 16 * MIB),
        (16 * MIB, 21 * MIB),
    ]
    # A large page at the least.
    run = Scenario.of(subject, "chunk_end:chunk_mib=1", "native").run()
    assert [step[0] for step in maps(run)] == [LOW[0], MIB, *range(2 * MIB, 21 * MIB, 2 * MIB)]


@pytest.mark.parametrize(
    ("largest", "limit", "chunk"),
    [
        (1, GIB, 2 * MIB),
        (1, 8 * GIB, 2 * MIB),
        (1, 8 * GIB + 1, 4 * MIB),
        (1, 32 * GIB, 8 * MIB),
        (2, 512 * GIB, 2 * MIB),
    ],
)
def test_no_more_than_4096_chunks_unless_asked_for(largest: int, limit: int, chunk: int) -> None:
    boot: Any = SimpleNamespace(
        largest_level=largest, machine=SimpleNamespace(map_limit=limit), mode=MODES["x86_64"]
    )
    assert ChunkEnd()._chunk(boot) == chunk
    assert ChunkEnd(chunk_mib=2)._chunk(boot) == 2 * MIB


@pytest.mark.parametrize("size", ["0", "3", "2048", "-2"])
def test_chunks_are_powers_of_two(size: str) -> None:
    assert ChunkEnd(chunk_mib=1)
    assert ChunkEnd(chunk_mib=1024)
    with pytest.raises(SpecError, match="chunk_mib"):
        Scenario.of(machine((MIB, 64 * MIB)), f"chunk_end:chunk_mib={size}", "native").run()


def test_its_row_stands_in_every_comparison() -> None:
    assert "chunk_end" in default_specs("allocator")


def test_large_pages_of_64_bits_begin_at_0() -> None:
    subject = machine((0, 16 * MIB), features=CpuFeatures(pse=True))
    run = Scenario.of(subject, "chunk_end", "native").run()
    assert maps(run) == [(0, 16 * MIB, "chunks")]


def test_larger_chunks_in_large_pages_end_at_their_multiples() -> None:
    subject = machine(LOW, (MIB, 21 * MIB), features=CpuFeatures(pse=True))
    run = Scenario.of(subject, "chunk_end:chunk_mib=8", "native").run()
    assert maps(run) == [
        (*LOW, "chunk"),
        (MIB, 8 * MIB, "chunk"),
        (8 * MIB, 16 * MIB, "chunks"),
        (16 * MIB, 20 * MIB, "chunks"),
        (20 * MIB, 21 * MIB, "chunk"),
    ]


def test_whole_pages_of_a_kernel_are_mapped_where_there_is_no_ram() -> None:
    kernel = KernelImage(6 * MIB + 5, 7 * MIB + 5, 7 * MIB + 5, 7 * MIB + 5)
    subject = machine(LOW, (MIB, 5 * MIB), (8 * MIB, 16 * MIB), kernel=kernel)
    run = Scenario.of(subject, "chunk_end", "native").run()
    mapped = [step[:2] for step in maps(run)]
    assert (6 * MIB, 7 * MIB + PAGE) in mapped


@pytest.mark.parametrize(
    ("end", "chunk"), [(4 << 40, 1 << 30), ((4 << 40) + PAGE, 2 << 30), (1 << 46, 16 << 30)]
)
def test_large_memory_in_large_pages_is_divided_into_4096_steps(end: int, chunk: int) -> None:
    run = Scenario.of(machine(LOW, (MIB, end), features=CpuFeatures()), "chunk_end", "native").run()
    assert str(run.verdict) == "ok"
    found = (event.step for event in run.trace.of(StepStarted))
    sizes = {step.end - step.start for step in found if isinstance(step, Map)}
    assert max(sizes) == chunk
