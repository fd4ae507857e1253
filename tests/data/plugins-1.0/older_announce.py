"""A VMI-like platform: each table is announced with its level; none is made read-only."""

from collections.abc import Iterator
from enum import StrEnum
from typing import ClassVar

import attrs

from paravirt_mm import (
    PAGE_SHIFT,
    Batch,
    Boot,
    BootState,
    Cost,
    Finding,
    Machine,
    RangeSet,
    Refusal,
    Run,
    TablesAttached,
    TablesPinned,
    align_down,
    align_up,
    hookimpl,
)

EINVAL = 22


class BootRoot(StrEnum):
    """What the hypervisor knows of the root that exists since boot."""

    KNOWN = "known"
    UNKNOWN = "unknown"


@attrs.frozen
class Announce:
    """A hypervisor that wants to be told which pages are tables, and of which level.

    calls_per_table
        Hypercalls that one announcement takes.
    boot_root
        Whether the hypervisor knows the root that exists since boot: ``known``, ``unknown``.
    """

    pvmm_api: ClassVar[int] = 1

    calls_per_table: int = attrs.field(default=1, validator=attrs.validators.ge(0))
    boot_root: BootRoot = BootRoot.KNOWN
    _announced: set[int] = attrs.field(init=False, factory=set, eq=False, repr=False)

    @hookimpl
    def pvmm_boot_state(self, machine: Machine) -> BootState:
        """Say what the startup code has mapped; as on bare hardware."""
        large = machine.mode.entry_span(2)
        start, end = machine.kernel.span
        low = (0, machine.boot_mapped)
        tables = {}
        if machine.mode.is_32bit:
            tables[1] = (low,)
            if machine.mode.root_level == 3:
                tables[2] = ((0, machine.mode.lowmem_limit or machine.map_limit),)
        return BootState(
            mapped=tuple(RangeSet([low, (align_down(start, large), align_up(end, large))])),
            max_pfn_mapped=machine.boot_mapped >> PAGE_SHIFT,
            features=machine.features,
            tables=tables,
        )

    @hookimpl
    def pvmm_pin_tables(self, tables: Batch) -> Cost:
        """Announce every table of the batch."""
        self._announced.add(tables.index)
        return Cost(hypercalls={"announce": self.calls_per_table * tables.count}, pinned=dict(tables.by_level))

    @hookimpl
    def pvmm_activate_cr3(self, root: Batch | None) -> Cost | Refusal:
        """Load CR3, if the root was announced."""
        known = self.boot_root is BootRoot.KNOWN if root is None else root.index in self._announced
        if not known:
            return Refusal("load CR3: root was never announced", -EINVAL)
        return Cost(hypercalls={"set_cr3": 1}, flushes=1)

    @hookimpl
    def pvmm_check(self, run: Run) -> Iterator[Finding]:
        """Tables must be announced before they are attached."""
        if run.trace.start.backend.partition(":")[0] != "announce":
            return
        announced = set()
        for number, event in enumerate(run.trace):
            if isinstance(event, TablesPinned):
                announced.add(event.batch.index)
            elif isinstance(event, TablesAttached) and event.batch.index not in announced:
                yield Finding(7, number, event.batch.runs[0].span[0], "a table is attached before it is announced")
