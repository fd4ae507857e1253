"""The Xen backend: conformance, what it takes, refuses and charges."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from paravirt_mm import (
    MODES,
    Batch,
    Boot,
    BootState,
    Cost,
    EntryKind,
    EntryWrite,
    KernelImage,
    PageRun,
    RangeSet,
    Refusal,
    Run,
    Scenario,
    Source,
    SpecError,
    TablePages,
    Way,
    bundled,
    bundled_machines,
    page_count,
)
from paravirt_mm.engine.progress import BatchLife, Progress
from paravirt_mm.engine.trace import MadeWritable, SurplusReleased
from paravirt_mm.instances import Instances
from paravirt_mm.testing import BackendConformance, Expected, generate
from paravirt_mm_xen.backend import TableEntries, Xen
from paravirt_mm_xen.domain.layout import DomainKind, Part
from paravirt_mm_xen.linux import MULTICALL_ENTRIES

NO_SUCH_GUESTS = "rejected: domain builder: there are no PV guests with"


class TestXen(BackendConformance):
    plugin = Xen
    options = ("replay_limit=0", "replay_limit=0,p2m=high")
    expected = tuple(
        Expected(NO_SUCH_GUESTS, "PV guests have PAE or four levels", machine=machine)
        for machine in (
            "asus-l8400-256m",
            "generated-1-[048]",
            "generated-1-[37]",
            "generated-1-11",
        )
    )


def _ask(hook: str, plugin: Xen | None = None, **arguments: Any) -> Any:
    """Call a hook as the core does: an implementation may take fewer parameters than its
    specification.
    """
    return Instances([("xen", plugin or Xen())]).call(hook, **arguments)


def _boot(name: str = "xen-dom0-qubes-4g") -> Boot:
    machine = bundled(name)
    state = Xen().pvmm_boot_state(machine)
    assert isinstance(state, BootState)
    return Boot(machine, state)


@pytest.mark.parametrize("mode", ["i386", "x86_64-la57"])
def test_modes_without_pv_guests_are_refused(mode: str) -> None:
    """No non-PAE guests since Xen 3.0 dropped them, no 5-level ones ever."""
    answer = Xen().pvmm_boot_state(next(generate(1, modes=(mode,))))
    assert isinstance(answer, Refusal)
    assert answer.code == -22
    assert MODES[mode].title in answer.operation


def test_large_pages_are_hidden() -> None:
    boot = _boot()
    assert not boot.features.pse
    assert not boot.features.gbpages
    assert boot.largest_level == 1


def test_boot_tables_are_taken_and_not_writable() -> None:
    boot = _boot()
    for low, high in boot.state.boot_tables:
        assert not boot.is_reachable(low, high)
        assert not any(boot.reachable(low, high))
        assert any(start <= low and high <= end for start, end in boot.memblock.reserved())


@pytest.mark.parametrize("domain", [DomainKind.DOM0, DomainKind.DOMU])
def test_what_a_domain_has_is_reserved_by_whole_pages(domain: DomainKind) -> None:
    """However odd the ends of kernel and initrd; nothing else is, but what no frame is for."""
    machine = bundled("qemu-512m")
    kernel = KernelImage((16 << 20) + 7, (20 << 20) + 5, 20 << 20, 21 << 20)
    machine = attrs.evolve(machine, kernel=kernel, initrd=(40 << 20, (45 << 20) + 123))
    state = Xen(domain=domain).pvmm_boot_state(machine)
    assert isinstance(state, BootState)
    assert all(low % 4096 == high % 4096 == 0 for low, high in state.reserved)
    taken = RangeSet(state.reserved)
    for part, (low, high) in state.places:
        if part != "Boot stack":
            assert taken.covers(low - low % 4096, high + -high % 4096)


WRITES = {
    "leaf of a new table": (EntryWrite(1, EntryKind.LEAF, 9, live=False), Cost()),
    "table into a new table": (
        EntryWrite(2, EntryKind.TABLE, 9, live=False, readonly_children=False),
        Cost(hypercalls={"mmu_update": 9}, way=Way.HYPERCALL),
    ),
    "leaf of a live table": (
        EntryWrite(1, EntryKind.LEAF, 9, live=True),
        Cost(way=Way.EMULATED),
    ),
    "table": (
        EntryWrite(2, EntryKind.TABLE, 9, live=True),
        Cost(hypercalls={"mmu_update": 9}, way=Way.HYPERCALL),
    ),
}


@pytest.mark.parametrize(("write", "cost"), WRITES.values(), ids=WRITES)
def test_ways_to_write_entries(write: EntryWrite, cost: Cost) -> None:
    assert _ask("pvmm_write_entries", boot=_boot(), write=write) == cost


@pytest.mark.parametrize(
    ("kernel", "passes"),
    [(None, False), ("4.18", False), ("4.19", True), ("5.15.9", True), ("5.16", False)],
)
@pytest.mark.parametrize("live", [False, True])
def test_releases_that_have_the_hypervisor_write_leaves(
    kernel: str | None, passes: bool, live: bool
) -> None:
    """One call an entry of an L1, from 4.19 to 5.15; a large page is stored, as it is no PTE."""

    def cost(level: int) -> Any:
        write = EntryWrite(level, EntryKind.LEAF, 9, live=live)
        return _ask("pvmm_write_entries", Xen(kernel=kernel), boot=_boot(), write=write)

    stored = Cost(way=Way.EMULATED) if live else Cost()
    passed = Cost(hypercalls={"mmu_update": 9}, way=Way.HYPERCALL)
    assert cost(1) == (passed if passes else stored)
    assert isinstance(cost(2), Refusal) if live else cost(2) == Cost()


def test_design_stores_into_new_tables() -> None:
    """Linux asks the hypervisor for every table entry; the design writes an ordinary page like
    one.
    """
    write = EntryWrite(2, EntryKind.TABLE, 9, live=False, readonly_children=False)
    plugin = Xen(table_entries=TableEntries.STORE)
    assert _ask("pvmm_write_entries", plugin, boot=_boot(), write=write) == Cost()


REFUSED = {
    "large page": EntryWrite(2, EntryKind.LEAF, 1, live=True),
    "writable child": EntryWrite(2, EntryKind.TABLE, 1, live=True, readonly_children=False),
}


@pytest.mark.parametrize("write", REFUSED.values(), ids=REFUSED)
def test_entries_that_are_refused(write: EntryWrite) -> None:
    """Both answers were measured on Xen 4.17: EINVAL."""
    answer = _ask("pvmm_write_entries", boot=_boot(), write=write)
    assert isinstance(answer, Refusal)
    assert answer.code == -22


RunScenario = Callable[..., Run]
PV_MACHINES = [name for name in bundled_machines() if bundled(name).mode.name != "i386"]
ALLOCATORS = ("incremental:variant=hpa", "incremental:variant=linux", "legacy_linear:kernel=3.4")


@pytest.mark.parametrize("machine", PV_MACHINES)
@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_hypercalls_add_up(allocator: str, machine: str, run_scenario: RunScenario) -> None:
    """One update_va_mapping a table made read-only and a page given back, one pin an L1 table, one
    mmu_update a table attached.
    """
    run = run_scenario(machine, allocator, "xen")
    f = run.figures
    if str(run.verdict) != "ok":
        pytest.skip(f"{run.verdict}: nothing to add up")
    cr3 = 0 if allocator.startswith("legacy") else 3 if "hpa" in allocator else 2
    given_back = sum(page_count(event.pages) for event in run.trace.of(SurplusReleased))
    assert f["hypercalls_of_guess"] == given_back
    assert f["hypercalls_update_va_mapping"] == f["tables"] + given_back
    assert f["flips_wasted"] // 2 <= given_back
    assert f["hypercalls_mmuext_op"] == f["pins_l1"] + cr3
    assert f["hypercalls_mmu_update"] == f["hypercall_writes"]
    assert f["pins_l1"] == f["tables_l1"]
    assert f["mapped_large"] == f["mapped_huge"] == 0


@pytest.mark.parametrize("machine", PV_MACHINES)
def test_each_page_given_back_costs_a_hypercall(machine: str, run_scenario: RunScenario) -> None:
    """Whether it was mapped read-only or not: that is where the block lies, not what it costs."""
    flipped = []
    for good_end in ("mapped", "end"):
        run = run_scenario(machine, f"legacy_linear:kernel=3.6,good_end={good_end}", "xen")
        given_back = list(run.trace.of(MadeWritable))
        if good_end == "end":
            assert given_back
        for event in given_back:
            pages = page_count(event.pages)
            assert dict(event.cost.hypercalls) == {"update_va_mapping": pages}
        flipped.append(sum(event.flipped for event in given_back))
    assert flipped[0] <= flipped[1]


def test_a_small_guess_costs_nothing_afterwards(run_scenario: RunScenario) -> None:
    """The value that compare left out once: 2,087 pages that 3.6 set aside in vain."""
    old = run_scenario("lenovo-x230-8g", "legacy_linear:kernel=3.6", "xen").figures
    new = run_scenario("lenovo-x230-8g", "incremental:variant=hpa", "xen").figures
    assert old["hypercalls_of_guess"] == old["waste"] > 2000
    assert old["flips_wasted"] == 0
    assert new["hypercalls_of_guess"] == 0


@pytest.mark.parametrize(("kernel", "calls"), [("2.6.38", 0), ("2.6.39", 1), ("3.8", 1)])
def test_kernels_that_write_the_rest_back(kernel: str, calls: int) -> None:
    """Up to 2.6.38 no page of the block is read-only before it is a table."""
    machine = bundled("lenovo-x230-8g")
    run = Scenario.of(machine, f"legacy_linear:kernel={kernel}", f"xen:kernel={kernel}").run()
    assert str(run.verdict) == "ok"
    assert (run.figures["hypercalls_of_guess"] > 0) == bool(calls)
    assert run.figures["waste"] > 0
    if not calls:
        assert run.figures["flips_wasted"] == 0


@pytest.mark.parametrize(
    ("kernel", "block", "readonly"),
    [
        ("2.6.38", True, [(0x2000, 0x3000)]),
        ("2.6.39", True, [(0x2000, 0x5000)]),
        (None, True, [(0x2000, 0x5000)]),
        (None, False, [(0x2000, 0x3000)]),
    ],
)
def test_what_is_mapped_read_only(
    kernel: str | None, block: bool, readonly: list[tuple[int, int]]
) -> None:
    """Tables; since 2.6.39 the whole block that is set aside for them, where there is one."""
    boot = SimpleNamespace(
        reservation=block,
        table_pages=lambda start, end: [(0x2000, 0x3000)] if (start, end) == (1, 2) else [],
        reserved_pages=lambda start, end: [(0x2000, 0x5000)] if (start, end) == (1, 2) else [],
    )
    asked = _ask("pvmm_map_readonly", Xen(kernel=kernel), boot=boot, start=1, end=2)
    assert list(asked) == readonly


@pytest.mark.parametrize(
    ("platform", "release", "spec"),
    [
        ("xen-pv", "6.1.0-50-amd64", "xen:kernel=6.1.0"),
        ("xen-pv", "2.6.37", "xen:kernel=2.6.37"),
        ("xen-pv", "2.6.36.4", "xen"),  # no dom0 before 2.6.37
        ("xen-pv", "4.19.86.1.2", "xen:kernel=4.19.86"),  # what a release may look like
        ("xen-pv", "6", "xen"),
        ("xen-pv", None, "xen"),
        ("xen-pv-guest", "4.4-rc1", "xen:domain=domU,kernel=4.4"),
        ("xen-pv-guest", None, "xen:domain=domU"),
        ("xen-hvm", "6.1", None),
        ("native", None, None),
    ],
)
def test_platforms_that_are_modelled(platform: str, release: str | None, spec: str | None) -> None:
    assert Xen().pvmm_models_platform(platform, release) == spec


def test_waiting_tables_share_multicalls(run_scenario: RunScenario) -> None:
    """Tables handed over together fill multicalls; table by table there is none to share."""
    together = run_scenario("xen-dom0-qubes-4g", "incremental:variant=hpa", "xen").figures
    apart = run_scenario("xen-dom0-qubes-4g", "incremental:variant=linux", "xen").figures
    assert apart["multicall_batches"] == 0
    batched = sum(together[f"hypercalls_{kind}"] for kind in ("update_va_mapping", "mmuext_op"))
    assert 0 < together["multicall_batches"] < batched
    assert together["multicall_batches"] >= batched / MULTICALL_ENTRIES - 3


@pytest.mark.parametrize(("pages", "multicalls"), [(1, 1), (32, 1), (33, 2), (64, 2), (65, 3)])
def test_a_multicall_carries_32_operations(pages: int, multicalls: int) -> None:
    """MC_BATCH of arch/x86/xen/multicalls.c; only what waits is collected."""
    boot, progress = _progress()
    low = boot.kernel.brk_start >> 12
    batch = _batch(boot, PageRun(low, pages))
    calls = {"update_va_mapping": pages}
    assert _ask("pvmm_make_readonly", boot=boot, tables=batch) == Cost(hypercalls=calls)
    progress.pending.append(BatchLife(batch))
    assert _ask("pvmm_make_readonly", boot=boot, tables=batch) == Cost(
        hypercalls=calls, batches=multicalls
    )


def test_a_page_that_is_not_mapped_yet_costs_nothing() -> None:
    boot = _boot()
    batch = _batch(boot, PageRun(boot.machine.max_pfn - 1, 1))
    assert _ask("pvmm_make_readonly", boot=boot, tables=batch) == Cost()


def test_large_leaves_matter_where_there_is_a_table_for_them() -> None:
    """A level of leaves without a table of that level in the batch fills an older table."""
    boot, progress = _progress()
    page = PageRun(boot.machine.max_pfn - 1, 1)
    progress.ledger.set_readonly(page.low, page.high, readonly=True)
    batch = attrs.evolve(_batch(boot, page), leaf_levels=(1, 2))
    assert _ask("pvmm_pin_tables", boot=boot, tables=batch) == Cost(
        hypercalls={"mmuext_op": 1}, pinned={1: 1}
    )


def test_tables_above_the_l1_are_not_pinned() -> None:
    """They are validated when they are attached: there is nothing to ask for."""
    boot, progress = _progress()
    page = PageRun(boot.machine.max_pfn - 1, 1)
    progress.ledger.set_readonly(page.low, page.high, readonly=True)
    batch = attrs.evolve(_batch(boot, page), spans={2: ((0, 1 << 30),)}, leaf_levels=())
    assert _ask("pvmm_pin_tables", boot=boot, tables=batch) is None


@pytest.mark.parametrize("limit", [0, 4096])
def test_limits_of_replay_limit(limit: int) -> None:
    assert Xen(replay_limit=limit).replay_limit == limit
    assert "(MiB of RAM; 512)" in (Xen.__doc__ or "")
    assert Xen().replay_limit == 512
    for other in (-1, 4097):
        with pytest.raises(SpecError, match=r"not in 0\.\.4096"):
            Xen(replay_limit=other)


def test_tables_of_the_boot_map_whole_spans() -> None:
    """The initial mapping ends in the middle of an L2 and an L3; the tables reach beyond it."""
    state = _boot().state
    end = state.direct_mapped[0][1]
    assert end == 0x2000000 or end % (1 << 30)
    outside = RangeSet([(0, end)]).difference(RangeSet(state.boot_tables))
    assert state.mapped == tuple(outside)
    assert state.tables[1] == ((0, end),)
    assert state.tables[2] == ((0, 1 << 30),)
    assert state.tables[3] == ((0, 512 << 30),)
    assert {level: len(pages) for level, pages in state.table_pages.items()} == {
        4: 1,
        3: 1,
        2: 1,
        1: end >> 21,
    }


def test_static_tables_of_an_image_too_small_follow_the_boot_stack() -> None:
    tiny = attrs.evolve(
        bundled("xen-dom0-qubes-4g"),
        kernel=KernelImage(16 << 20, (16 << 20) + 1, (16 << 20) + 4096, (16 << 20) + 8192),
    )
    state = Xen().pvmm_boot_state(tiny)
    assert isinstance(state, BootState)
    _, static = state.boot_tables
    assert static[0] == dict(state.places)[Part.BOOT_STACK][1]
    large = _boot().state
    assert large.kernel is not None
    assert large.boot_tables[1][1] == large.kernel.brk_start


@pytest.mark.parametrize(("start", "moves"), [(30 << 20, False), (32 << 20, True)])
def test_a_kernel_from_32_mib_on_was_moved_by_its_boot_loader(start: int, moves: bool) -> None:
    end = start + (8 << 20)
    kernel = KernelImage(start, end, end, end + 4096)
    machine = attrs.evolve(bundled("xen-dom0-qubes-4g"), kernel=kernel)
    state = Xen().pvmm_boot_state(machine)
    assert isinstance(state, BootState)
    assert state.kernel is not None
    assert state.kernel.start == (16 << 20 if moves else start)


def _progress() -> tuple[Boot, Progress]:
    """A boot, and what the engine would change of it."""
    boot = _boot()
    progress = Progress(boot.machine, boot.state)
    return Boot(boot.machine, boot.state, progress), progress


def _batch(boot: Boot, page: PageRun) -> Batch:
    return Batch(
        index=0,
        mode=boot.mode,
        start=0,
        end=page.count << 21,
        spans={1: ((0, page.count << 21),)},
        leaf_levels=(1,),
        pages=(TablePages(page, Source.MEMBLOCK),),
    )


def test_pin_before_readonly_is_refused() -> None:
    """The order is: take write access, then pin. Without the first the second fails with EINVAL, as
    measured.
    """
    boot, progress = _progress()
    page = PageRun(boot.machine.max_pfn - 1, 1)
    batch = _batch(boot, page)
    answer = _ask("pvmm_pin_tables", boot=boot, tables=batch)
    assert isinstance(answer, Refusal)
    assert answer.code == -22
    progress.ledger.set_readonly(page.low, page.high, readonly=True)
    assert _ask("pvmm_pin_tables", boot=boot, tables=batch) == Cost(
        hypercalls={"mmuext_op": 1}, pinned={1: 1}
    )
    large = attrs.evolve(batch, leaf_levels=(2,), spans={2: ((0, 1 << 30),)})
    refused = _ask("pvmm_pin_tables", boot=boot, tables=large)
    assert isinstance(refused, Refusal)
