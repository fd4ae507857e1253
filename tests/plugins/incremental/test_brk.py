"""The brk of the design: what maps the kernel and the brk itself, plus 64 pages, whatever a log's
own kernel took of it::

    kernel 16M                  30M            brk: (a) + 64 pages
    |######## text data bss ####|=a=|----64----|
     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ mapped with the tables of (a)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from paravirt_mm import (
    MODES,
    CpuFeatures,
    E820Type,
    InputError,
    KernelImage,
    Machine,
    MemoryMap,
    Outcome,
    Scenario,
    SpecError,
    bundled,
    load_all,
    tables_to_map,
)
from paravirt_mm.engine.tables import Tree
from paravirt_mm.testing import generate

MIB, GIB, PAGE = 1 << 20, 1 << 30, 4096
HPA = "incremental:variant=hpa"
KERNEL = KernelImage(16 * MIB, 30 * MIB, 30 * MIB, 30 * MIB)
SHARED = Path(__file__).parents[4] / "shared"


def machine(**changes: object) -> Machine:
    memory = MemoryMap.sanitise([(0x1000, 4 * GIB, E820Type.RAM)])
    return attrs.evolve(Machine("four gigabytes", memory, kernel=KERNEL), **changes)


@pytest.mark.parametrize(
    ("mode", "pse", "tables"),
    [
        # Root, L3, L2, and an L1 for each of 16..18M to 30..32M.
        ("x86_64", False, 3 + 8),
        # In 2M pages, but for the brk's own L1.
        ("x86_64", True, 3 + 1),
        ("x86_64-la57", False, 4 + 8),
        ("i386-pae", False, 2 + 8),
        # 4 MiB a table.
        ("i386", False, 1 + 4),
    ],
)
def test_brk_maps_the_kernel_and_itself(mode: str, pse: bool, tables: int) -> None:
    """64 pages and a few tables end within 30M..32M, so that the last L1 is all that brk adds."""
    subject = machine(mode=MODES[mode], features=CpuFeatures(pse=pse))
    figures = Scenario.of(subject, HPA, "native").run().figures
    assert figures["brk_size"] == tables + 64
    assert figures["brk_used"] <= figures["brk_size"]


@pytest.mark.parametrize("extra", [0, 1, 64, 500, 511, 512, 5000])
def test_brk_is_the_least_that_is_enough_for_itself(extra: int) -> None:
    """With 4 KiB pages 512 more pages of brk take a table more, which is a page of brk too."""
    subject = machine(features=CpuFeatures(pse=False))
    run = Scenario.of(subject, f"{HPA},brk_pages={extra}", "native").run()
    kernel = run.trace.start.machine.kernel

    def needed(pages: int) -> int:
        tree = Tree(subject.mode)
        spans = tree.plan(KERNEL.start, KERNEL.brk_start + pages * PAGE, 1).spans
        below = sum(
            (high - low) // subject.mode.table_span(lv)
            for lv, parts in spans.items()
            for low, high in parts
        )
        return 1 + below + extra

    assert needed(kernel.brk_pages) == kernel.brk_pages
    assert needed(kernel.brk_pages - 1) > kernel.brk_pages - 1


def test_tables_to_map_is_what_a_tree_takes() -> None:
    """::

    4k |-| 2M |----|----| 4k |-|   two L1, one L2, one L3, the root
    """
    assert tables_to_map(MODES["x86_64"], 2 * MIB - PAGE, 6 * MIB + PAGE, 2) == 2 + 1 + 1 + 1
    assert tables_to_map(MODES["x86_64"], 2 * MIB, 4 * MIB, 2) == 3
    assert tables_to_map(MODES["x86_64"], GIB - PAGE, GIB + PAGE, 1) == 2 + 2 + 1 + 1
    assert tables_to_map(MODES["x86_64"], 0, GIB, 3) == 2
    assert tables_to_map(MODES["i386"], 0, 4 * MIB, 2) == 2  # the first large page is never one


@pytest.mark.parametrize("taken", [0, 5, 12, 400])
@pytest.mark.parametrize("backend", ["native", "xen"])
def test_the_brk_of_a_logs_kernel_is_no_limit(backend: str, taken: int) -> None:
    """Whatever that kernel took, the image is linked with the brk that the allocator wants."""
    runs = {}
    for allocator, size in ((HPA, None), ("incremental:kernel=4.19", 12), ("legacy_linear", 0)):
        subject = machine(kernel=KERNEL.with_brk(taken), features=CpuFeatures(pse=False))
        runs[allocator] = Scenario.of(subject, allocator, backend).run()
        assert runs[allocator].verdict.outcome is Outcome.OK
        kernel = runs[allocator].trace.start.boot.kernel_of(runs[allocator].trace.start.machine)
        assert kernel.brk_start == 30 * MIB
        expected = 64 + 3 + 8 if size is None else size
        assert runs[allocator].figures["brk_size"] == kernel.brk_pages == expected


def test_what_follows_the_kernel_follows_its_brk() -> None:
    """The domain builder puts the p2m list right behind the image that was linked."""
    ends = {}
    for allocator in (HPA, "incremental:kernel=3.9", "legacy_linear"):
        run = Scenario.of(machine(), allocator, "xen").run()
        kernel = run.trace.start.boot.kernel_of(run.trace.start.machine)
        places = {str(name): span for name, span in run.trace.start.boot.places}
        assert places["Loaded kernel"] == kernel.span
        assert places["Phys-Mach map"][0] == kernel.span[1]
        ends[allocator] = kernel.span[1]
    assert ends["legacy_linear"] == 30 * MIB
    assert ends["incremental:kernel=3.9"] == 30 * MIB + 5 * PAGE
    assert ends[HPA] == 30 * MIB + (64 + 3 + 8) * PAGE


def _many() -> Iterator[Machine]:
    yield from generate(60)
    for name in ("lenovo-x230-8g", "xen-dom0-qubes-4g", "xen-domu-98g", "ibm-hs23-128g", "pae-4g"):
        yield bundled(name)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["native", "xen:replay_limit=0"])
def test_the_design_never_runs_out_on_these(backend: str) -> None:
    for subject in _many():
        _ends_well(subject, backend)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the corpora are not here")
@pytest.mark.parametrize("backend", ["native", "xen:replay_limit=0"])
def test_the_design_never_runs_out_on_real_machines(backend: str) -> None:
    count = 0
    for log in sorted(SHARED.glob("corpus*/logs/*")):
        try:
            machines = list(load_all([str(log)]))
        except InputError:
            continue
        for subject in machines:
            _ends_well(subject, backend)
            count += 1
    assert count > 180


def _ends_well(subject: Machine, backend: str) -> None:
    run = Scenario.of(subject, HPA, backend).run()
    if "domain builder" in run.verdict.detail:  # no guest of that mode, or dom0 stands on no RAM
        return
    assert run.verdict.outcome is Outcome.OK, (subject.name, run.verdict)
    assert run.figures["flips_wasted"] == 0
    assert run.figures["flips_per_table"] == (0 if backend == "native" else 1.0)


@pytest.mark.parametrize("variant", ["linux", "hpa"])
def test_brk_is_no_larger_than_any_kernel_links(variant: str) -> None:
    spec = f"incremental:variant={variant},brk_pages="
    for pages in (-1, (1 << 14) + 1):
        with pytest.raises(SpecError, match=f"brk_pages={pages} is not between 0 and 16384"):
            Scenario.of(machine(), f"{spec}{pages}", "native").run()
    for backend in ("native", "xen"):
        run = Scenario.of(machine(), f"{spec}{1 << 14}", backend).run()
        assert run.figures["brk_size"] >= 1 << 14, run.verdict
