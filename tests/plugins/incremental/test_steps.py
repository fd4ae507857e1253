"""The incremental allocators' steps against lines that real kernels printed, and sums by hand."""

from __future__ import annotations

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
    Run,
    Scenario,
    SpecError,
    bundled,
)
from paravirt_mm.engine.trace import (
    MadeReadonly,
    RangeSplit,
    RootActivated,
    StepStarted,
    TablesAllocated,
    TablesAttached,
)
from paravirt_mm_incremental import Incremental
from paravirt_mm_incremental.releases import CHANGES, change_for

MIB, GIB, PAGE = 1 << 20, 1 << 30, 4096


def _run(machine: Machine, options: str, backend: str = "native") -> Run:
    run = Scenario.of(machine, f"incremental:{options}", backend).run()
    assert run.verdict.outcome is Outcome.OK, run.verdict
    return run


def _ranges(run: Run) -> list[tuple[int, int]]:
    return [(event.start, event.end) for event in run.trace if isinstance(event, RangeSplit)]


# init_memory_mapping lines, exclusive ends. Found by reading the logs that the machines come from.
PRINTED = {
    ("qemu-pae-320m", "kernel=3.14"): [
        (0, 0x100000),
        (0x12400000, 0x12600000),
        (0x10000000, 0x12400000),
        (0x100000, 0x10000000),
        (0x12600000, 0x13FE0000),
    ],
}


@pytest.mark.parametrize(("machine", "options"), PRINTED)
def test_ranges_are_those_of_the_log(machine: str, options: str) -> None:
    assert _ranges(_run(bundled(machine), f"variant=linux,{options}")) == PRINTED[machine, options]


@pytest.fixture(scope="module")
def plain() -> Machine:
    """::

    0   640K 1M       16M kernel  24M            3G        4G                 12G
    |RAM|hole|RAM                                |  hole   | RAM              |
    """
    entries = [
        (0x1000, 0xA0000, E820Type.RAM),
        (MIB, 3 * GIB, E820Type.RAM),
        (4 * GIB, 12 * GIB, E820Type.RAM),
    ]
    return Machine(
        name="plain",
        memory_map=MemoryMap.sanitise(entries),
        features=CpuFeatures(pse=True, gbpages=False),
        kernel=KernelImage(16 * MIB, 24 * MIB, 24 * MIB, 24 * MIB + 64 * PAGE),
        reserved=((0, 0x10000),),
    )


def test_linux_steps_of_4_19_by_hand(plain: Machine) -> None:
    """x256 as soon as as much is mapped as the step is large: 2M, 512M, 128G.

    The second step ends at a multiple of 512M; with the first it has mapped 512M, just enough.
    """
    top = 12 * GIB
    assert _ranges(_run(plain, "variant=linux,kernel=4.19")) == [
        (0, MIB),
        (top - 2 * MIB, top),
        (top - 512 * MIB, top - 2 * MIB),
        (MIB, 3 * GIB),
        (4 * GIB, top - 512 * MIB),
    ]


def test_linux_steps_of_3_18_by_hand(plain: Machine) -> None:
    """x32 after a step that mapped more than all before it: 2M, 64M, 2G, 64G."""
    top = 12 * GIB
    assert _ranges(_run(plain, "variant=linux,kernel=3.18")) == [
        (0, MIB),
        (top - 2 * MIB, top),
        (top - 64 * MIB, top - 2 * MIB),
        (top - 2 * GIB, top - 64 * MIB),
        (MIB, 3 * GIB),
        (4 * GIB, top - 2 * GIB),
    ]


def test_equal_amounts_do_not_let_the_step_grow() -> None:
    """3.9 to 3.18 ask for more than all steps before together, later releases for as much as the
    step.
    """
    mode = MODES["x86_64"]
    old, new = change_for("3.18"), change_for("4.19")
    assert old.next_step(mode, 2 * MIB, mapped=2 * MIB, last=2 * MIB) == 64 * MIB
    assert old.next_step(mode, 2 * MIB, mapped=4 * MIB, last=2 * MIB) == 2 * MIB
    assert old.next_step(mode, 2 * MIB, mapped=4 * MIB + PAGE, last=2 * MIB + PAGE) == 64 * MIB
    assert new.next_step(mode, 2 * MIB, mapped=2 * MIB, last=PAGE) == 512 * MIB
    assert new.next_step(mode, 2 * MIB, mapped=2 * MIB - PAGE, last=PAGE) == 2 * MIB
    assert new.next_step(MODES["i386"], 4 * MIB, mapped=4 * MIB, last=PAGE) == 2048 * MIB


def test_real_end_is_the_highest_free_large_block(plain: Machine) -> None:
    """With the top 3 MiB taken, mapping begins 4 MiB below it, and what lies above comes last."""
    top = 12 * GIB
    machine = attrs.evolve(plain, reserved=(*plain.reserved, (top - 3 * MIB, top)))
    ranges = _ranges(_run(machine, "variant=linux,kernel=4.19"))
    assert ranges[1] == (top - 6 * MIB, top - 4 * MIB)
    assert ranges[-1] == (top - 4 * MIB, top)


def test_linux_takes_brk_first_then_the_newest_memory(plain: Machine) -> None:
    """First tables from brk; the rest just below the memory that was mapped in the step before,
    highest first.
    """
    run = _run(plain, "variant=linux,kernel=4.19,brk_pages=6", "xen")
    batches = [event.batch for event in run.trace if isinstance(event, TablesAllocated)]
    brk = 24 * MIB >> 12
    first = next(run for batch in batches for run in batch.runs)
    assert first.start == brk
    assert run.figures["brk_used"] <= 6
    assert run.figures["highest_table"] > 11 * GIB


def test_brk_pages_by_release_and_mode() -> None:
    wide = MODES["x86_64"]
    small = MODES["i386-pae"]
    for kernel, plain_pages, randomised in (
        ("3.9", 5, 5),
        ("3.10", 5, 5),
        ("3.11", 6, 6),
        ("4.4", 6, 6),
        ("4.8", 6, 12),
        ("4.19", 6, 12),
        ("6.1", 8, 16),
    ):
        change = change_for(kernel)
        assert change.brk_pages(wide, False) == plain_pages
        assert change.brk_pages(wide, True) == randomised
        assert change.brk_pages(small, True) == change.brk_pages(small, False)


def test_rows_are_in_order_and_say_what_is_new() -> None:
    versions = [change.since for change in CHANGES]
    assert versions == sorted(set(versions))
    assert all(change.note for change in CHANGES)


# -- the seven steps ------------------------------------------------------------------------------


def _labels(run: Run) -> list[str]:
    return [event.step.label for event in run.trace if isinstance(event, StepStarted)]


def test_seven_steps_in_their_order(plain: Machine) -> None:
    labels = [label.partition(":")[0] for label in _labels(_run(plain, "variant=hpa", "xen"))]
    assert labels[:2] == ["new root", "1"]
    collapsed = [
        label for label, before in zip(labels, ["", *labels], strict=False) if label != before
    ]
    assert collapsed[:5] == ["new root", "1", "2", "3", "4"]
    rest = collapsed[5:]
    assert rest
    assert rest == ["5", "6"] * (len(rest) // 2)


def test_hook_before_attach_for_the_whole_batch(plain: Machine) -> None:
    """Steps 3 and 6: the hook sees every table made so far before the first of them is attached."""
    waiting: list[int] = []
    for event in _run(plain, "variant=hpa", "xen").trace:
        if isinstance(event, TablesAllocated):
            waiting.append(event.batch.index)
        elif isinstance(event, MadeReadonly):
            waiting.remove(event.batch.index)
        elif isinstance(event, TablesAttached):
            assert waiting == [], "a table is attached while others wait for the hook"


def test_first_tables_come_from_brk_until_it_is_used_up(plain: Machine) -> None:
    """Step 2 ends because brk does: all of it is tables, and only then is CR3 loaded. It is what
    maps the kernel (root, L3, L2 and seven or eight L1), and 64 pages.
    """
    run = _run(plain, "variant=hpa", "xen")
    before = 0
    for event in run.trace:
        if isinstance(event, RootActivated):
            break
        if isinstance(event, TablesAllocated):
            before += event.batch.count
    kernel = run.trace.start.machine.kernel
    span = kernel.span
    leaves = -(-span[1] >> 21) - (span[0] >> 21)
    assert before == 3 + leaves + 64
    assert run.figures["brk_used"] == run.figures["brk_size"] == kernel.brk_pages == before


def test_256_kib_of_brk_map_128_mib_at_least() -> None:
    """The proposal's sum: 64 tables of 4 KiB PAE pages map 128 MiB from the top."""
    machine = Machine(
        name="pae",
        memory_map=MemoryMap.sanitise([(0x1000, 800 * MIB, E820Type.RAM)]),
        mode=MODES["i386-pae"],
        features=CpuFeatures(pse=False),
        kernel=KernelImage(16 * MIB, 17 * MIB, 17 * MIB, 17 * MIB + 64 * PAGE),
        boot_mapped=32 * MIB,
    )
    run = _run(machine, "variant=hpa")
    ranges = _ranges(run)
    # Root, one L2 table, one L1 table for the kernel itself are on top of the 64.
    assert run.figures["brk_size"] == 3 + 64
    assert ranges[1] == (800 * MIB - 128 * MIB, 800 * MIB)


def test_nothing_is_mapped_twice_and_nothing_left_out(plain: Machine) -> None:
    run = _run(plain, "variant=hpa")
    mapped = sum(run.figures[name] for name in ("mapped_4k", "mapped_large", "mapped_huge"))
    assert mapped == plain.memory_map.ram_pages().total


@pytest.mark.parametrize("kernel", ["3.8", "2.6.32", "four", "", "5"])
def test_releases_without_the_allocator(kernel: str) -> None:
    with pytest.raises(SpecError):
        Incremental(kernel=kernel)


@pytest.mark.parametrize(
    ("release", "spec"),
    [
        ("4.19.0-6-amd64", "incremental:variant=linux,kernel=4.19.0"),
        ("3.9", "incremental:variant=linux,kernel=3.9"),
        ("3.8", None),
        ("", None),
    ],
)
def test_models_its_releases_only(release: str, spec: str | None) -> None:
    assert Incremental().pvmm_models_kernel(release, ()) == spec
