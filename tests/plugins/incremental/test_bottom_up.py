"""Bottom-up mode (``movable_node``) and what stable releases took over, at the edges of releases.

That it is what kernels do is shown by the recorded boots in ``tests/verify/test_linux_model.py``.
"""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given, strategies as st

from paravirt_mm.engine.memblock import Memblock
from paravirt_mm.engine.pages import PageRun, Source
from paravirt_mm.engine.trace import Panicked, RangeSplit, TablesAllocated
from paravirt_mm.machine.e820 import E820Type, MemoryMap
from paravirt_mm.machine.model import CpuFeatures, KernelImage, Machine
from paravirt_mm.machine.paging import MIB, PAGE_SIZE
from paravirt_mm.machine.ranges import RangeSet
from paravirt_mm.run import Run
from paravirt_mm.scenario import Scenario
from paravirt_mm_incremental.releases import BottomUp, NoBlock, change_for

KERNEL = KernelImage(16 * MIB, 30 * MIB, 30 * MIB, 30 * MIB + 12 * PAGE_SIZE, 30 * MIB + 0x30000)
MACHINE = Machine(
    "small-pages",
    MemoryMap.sanitise([(0, 0x9F000, E820Type.RAM), (MIB, 256 * MIB, E820Type.RAM)]),
    features=CpuFeatures(pse=False),
    kernel=KERNEL,
    reserved=((0, MIB),),
)


def run(kernel: str, machine: Machine = MACHINE, options: str = ",movable_node=yes") -> Run:
    return Scenario.of(machine, f"incremental:kernel={kernel}{options}", "native").run()


def from_memblock(run: Run) -> list[PageRun]:
    return [
        part.run
        for event in run.trace.of(TablesAllocated)
        for part in event.batch.pages
        if part.source is Source.MEMBLOCK
    ]


def calls(run: Run) -> list[tuple[int, int]]:
    return [(e.start, e.end) for e in run.trace.of(RangeSplit)]


def test_upward_from_the_kernel_then_below_it() -> None:
    found = run("6.1")
    assert str(found.verdict) == "ok"
    ranges = calls(found)
    end = KERNEL.with_brk(16).linked_end  # linked with the brk of 6.1
    assert ranges[1] == (end, 32 * MIB)
    assert ranges[2] == (32 * MIB, 34 * MIB)
    below = ranges.index((MIB, 2 * MIB))
    assert ranges[below - 1][1] == 256 * MIB
    assert ranges[-1][1] == end
    # The first table from memblock is the first free page behind the kernel.
    assert end is not None
    assert from_memblock(found)[0].start == end // PAGE_SIZE


@pytest.mark.parametrize(
    ("kernel", "below"), [("4.19", False), ("5.10.14", False), ("5.10.15", True), ("5.11", True)]
)
def test_where_tables_lie_for_what_is_below_the_kernel(kernel: str, below: bool) -> None:
    # With no brk left at the second pass, its tables come from memblock.
    pages = from_memblock(run(kernel, options=",movable_node=yes,brk_pages=6"))
    end = KERNEL.with_brk(6).linked_end
    assert min(page.low for page in pages) * PAGE_SIZE == (MIB if below else end)


def test_only_mapped_memory_serves_as_tables() -> None:
    reserved = (*MACHINE.reserved, (15 * MIB, 100 * MIB))
    machine = attrs.evolve(MACHINE, reserved=reserved)
    assert (
        machine.boot_mapped > 100 * MIB
    )  # mapped by the startup code, but Linux does not count it
    found = run("6.1", machine)
    panic = next(event for event in found.trace if isinstance(event, Panicked))
    assert panic.reason == "extend_brk: brk is closed (kernel BUG)"


def test_movable_node_came_with_3_13() -> None:
    assert str(run("3.13").verdict) == "ok"
    assert change_for("3.12").bottom_up is BottomUp.NO


@pytest.mark.parametrize(
    ("kernel", "start"),
    [
        ("5.10.223", NoBlock.BOTTOM),
        ("6.1.140", NoBlock.BOTTOM),
        ("6.1.141", NoBlock.TOP),
        ("6.2", NoBlock.BOTTOM),
        ("6.12.30", NoBlock.BOTTOM),
        ("6.12.31", NoBlock.TOP),
        ("6.13.1", NoBlock.BOTTOM),
        ("6.15", NoBlock.TOP),
    ],
)
def test_where_mapping_starts_without_a_free_large_page(kernel: str, start: NoBlock) -> None:
    assert change_for(kernel).no_block is start
    reserved = tuple((n * MIB, (n + 1) * MIB) for n in range(0, 256, 2))
    machine = attrs.evolve(MACHINE, reserved=reserved, features=CpuFeatures())
    first = calls(run(kernel, machine, ""))[1]
    expected = {NoBlock.BOTTOM: (MIB, 2 * MIB), NoBlock.TOP: (254 * MIB, 256 * MIB)}
    assert first == expected[start]


_ranges = st.lists(
    st.tuples(st.integers(0, 64 * PAGE_SIZE), st.integers(1, 9 * PAGE_SIZE)), max_size=8
)


@given(_ranges, _ranges, st.integers(0, 60), st.integers(0, 70), st.integers(1, 40))
def test_pages_are_those_of_single_searches(
    memory: list[tuple[int, int]],
    reserved: list[tuple[int, int]],
    low: int,
    high: int,
    count: int,
) -> None:
    def memblock() -> Memblock:
        sets = (RangeSet((start, start + size) for start, size in r) for r in (memory, reserved))
        return Memblock(*sets)

    runs = memblock().pages_bottom_up(low * PAGE_SIZE, high * PAGE_SIZE, count)
    found = [run.start + n * run.step for run in runs for n in range(run.count)]
    one_by_one = memblock()
    for pfn in found:
        address = one_by_one.find_bottom_up(low * PAGE_SIZE, high * PAGE_SIZE, PAGE_SIZE)
        assert address == pfn * PAGE_SIZE
        one_by_one.reserve(address, address + PAGE_SIZE)
    if len(found) < count:
        assert one_by_one.find_bottom_up(low * PAGE_SIZE, high * PAGE_SIZE, PAGE_SIZE) is None
