"""Faults planted in copies of the built-in allocators: the hunt finds a machine for each.

A copy is a file of its own, named on the command line as anybody's would be. The original is the
second allocator; `differs`, `panic and other.ok` or `violation` is all that the hunt is told.
"""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from paravirt_mm.hunt.found import Found
from paravirt_mm.hunt.search import Quarry, hunt

SECONDS = 60.0

COPY = """
import attrs
from paravirt_mm import *
from paravirt_mm import KernelPanic, Map, hookimpl
from paravirt_mm_{plugin} import *
from paravirt_mm_{plugin} import {original}


def each_step(steps, change):
    # What came of a step is sent back: some designs go by it.
    result = None
    while True:
        try:
            step = steps.send(result)
        except StopIteration:
            return
        result = yield change(step)


@attrs.frozen
class Copy({original}):
{body}
"""


@attrs.frozen
class Planted:
    """A fault: the plugin, its class, the method that overrides, what to look for."""

    name: str
    plugin: str
    original: str
    body: str
    condition: str
    options: str
    backend: str = "native"


FAULTS = (
    Planted(
        "a step too far: it maps the RAM of a hole as well",
        "incremental",
        "Incremental",
        """
    @hookimpl
    def pvmm_map_steps(self, boot):
        def far(step):
            if isinstance(step, Map) and step.start > 1 << 32:
                return attrs.evolve(step, start=step.start - step.start % (1 << 30))
            return step

        return each_step(super().pvmm_map_steps(boot), far)
""",
        "violation",
        "kernel=4.19",
    ),
    Planted(
        "the last page of an odd piece is forgotten",
        "incremental",
        "Incremental",
        """
    @hookimpl
    def pvmm_map_steps(self, boot):
        def short(step):
            if isinstance(step, Map) and step.end % (1 << 21):
                return attrs.evolve(step, end=step.end - 4096)
            return step

        return each_step(super().pvmm_map_steps(boot), short)
""",
        "violation",
        "kernel=4.19",
    ),
    Planted(
        "a lost reservation: tables may lie in an initrd",
        "legacy_linear",
        "LegacyLinear",
        """
    @hookimpl
    def pvmm_reserve_tables(self, boot, step, pieces):
        runs = super().pvmm_reserve_tables(boot, step, pieces)
        initrd = boot.machine.initrd
        if initrd is None:
            return runs
        first = runs[0]
        return [attrs.evolve(first, start=initrd[0] // 4096), *runs[1:]]
""",
        "violation",
        "kernel=3.6",
    ),
    Planted(
        "a lost page: a block right below an initrd takes its first page",
        "legacy_linear",
        "LegacyLinear",
        """
    @hookimpl
    def pvmm_reserve_tables(self, boot, step, pieces):
        first, *others = super().pvmm_reserve_tables(boot, step, pieces)
        initrd = boot.machine.initrd
        if initrd and first.high == initrd[0] // 4096:
            first = attrs.evolve(first, count=first.count + 1)
        return [first, *others]
""",
        "violation",
        "kernel=2.6.39",
    ),
    Planted(
        "the surplus is kept",
        "legacy_linear",
        "LegacyLinear",
        """
    @hookimpl
    def pvmm_release_tables(self, surplus):
        released = list(super().pvmm_release_tables(surplus))
        return [run for run in released if run.count < 512]
""",
        "violation or differs",
        "kernel=3.6",
    ),
    Planted(
        "tables from the bottom of what is mapped",
        "incremental",
        "Incremental",
        """
    @hookimpl
    def pvmm_allocate_tables(self, boot, step, demand):
        given = super().pvmm_allocate_tables(boot, step, demand)
        return list(reversed(given))
""",
        "differs or violation",
        "variant=hpa",
    ),
    Planted(
        "CR3 is loaded before the tables are attached",
        "incremental",
        "Incremental",
        """
    @hookimpl
    def pvmm_map_steps(self, boot):
        swapped = {
            "3: complete the tree": ActivateRoot("4"),
            "4: switch to the new tree": AttachTables("3"),
        }
        return each_step(
            super().pvmm_map_steps(boot), lambda step: swapped.get(step.label, step)
        )
""",
        "violation",
        "variant=hpa",
    ),
    Planted(
        "three pages of brk less than are needed",
        "incremental",
        "Incremental",
        """
    @hookimpl
    def pvmm_kernel_image(self, machine, features):
        image = super().pvmm_kernel_image(machine, features)
        return image.with_brk(image.brk_pages - 3)
""",
        "panic and other.ok",
        "variant=hpa",
    ),
    Planted(
        "a piece that ends at a border of 1 GiB loses its last page",
        "incremental",
        "Incremental",
        """
    @hookimpl
    def pvmm_map_steps(self, boot):
        ends = {high for _, high in boot.memblock.memory() if high % (1 << 30) == 0}

        def short(step):
            if isinstance(step, Map) and step.end in ends:
                return attrs.evolve(step, end=step.end - 4096)
            return step

        return each_step(super().pvmm_map_steps(boot), short)
""",
        "violation",
        "kernel=4.19,movable_node=yes",
    ),
    Planted(
        "a last step that is exactly as large as a step is not the last",
        "incremental",
        "Incremental",
        """
    @hookimpl
    def pvmm_map_steps(self, boot):
        end, large = boot.machine.map_limit, boot.mode.entry_span(2)
        last = end - large

        def split(steps):
            result = None
            while True:
                try:
                    step = steps.send(result)
                except StopIteration:
                    return
                if isinstance(step, Map) and (step.start, step.end) == (last, end):
                    middle = last - last % large + large
                    if middle < end:
                        yield attrs.evolve(step, end=middle)
                        step = attrs.evolve(step, start=middle)
                result = yield step

        return split(super().pvmm_map_steps(boot))
""",
        "differs",
        "kernel=5.10,movable_node=yes",
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_found_within_a_minute(fault: Planted, tmp_path: Path) -> None:
    path = tmp_path / "copy_of_it.py"
    path.write_text(
        COPY.format(plugin=fault.plugin, original=fault.original, body=fault.body), encoding="utf-8"
    )
    quarry = Quarry(
        f"{path}:Copy:{fault.options}",
        fault.backend,
        fault.condition,
        other=f"{fault.plugin}:{fault.options}",
    )
    result = hunt(quarry, seconds=SECONDS)
    assert result.machine is not None, f"not found in {result.tries} tries"
    found = Found.of(quarry, result)
    assert str(found.run.verdict.outcome) != "error", found.run.verdict
    assert len(found.machine.memory_map) <= 4
