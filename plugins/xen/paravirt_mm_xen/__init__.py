"""Xen PV: a page must be read-only and known to the hypervisor before it may be a page table.

This module is the backend as an allocator meets it: what exists when the domain starts, what a
status change costs, and what is refused with which code. The hypervisor's own rules, page by page,
are modelled in `paravirt_mm_xen.mmu`.

Source: Xen's public interface (xen/include/public/xen.h), arch/x86/xen/mmu.c and mmu_pv.c of Linux
3.6 to 6.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import MappingProxyType
from typing import ClassVar

import attrs

from paravirt_mm import (
    Batch,
    Boot,
    BootState,
    Cost,
    EntryKind,
    EntryWrite,
    Machine,
    PageRun,
    RangeSet,
    Refusal,
    Span,
    Way,
    align_down,
    align_up,
    hookimpl,
    page_count,
)
from paravirt_mm.hookspecs import API_VERSION
from paravirt_mm_xen.domain import P2mPlace, arrange_machine, loaded_kernel

EINVAL = -22
PAGE_SIZE = 4096
PAGE_SHIFT = 12
MULTICALL_ENTRIES = 32
"""Linux collects up to this many operations in one multicall (arch/x86/xen/multicalls.c: MC_BATCH).
"""


@attrs.frozen
class Xen:
    """A Xen PV domain (dom0 or domU).

    p2m
        Where the domain builder maps the list of machine frames: ``inline`` after the initrd,
        ``high`` at an address of its own, ``auto`` by the size of the domain.
    """

    pvmm_api: ClassVar[int] = API_VERSION

    p2m: P2mPlace = P2mPlace.AUTO

    @hookimpl
    def pvmm_boot_state(self, machine: Machine) -> BootState | Refusal:
        """Say what the domain builder has mapped; its tables, grafted by Linux, begin the direct
        map.
        """
        mode = machine.mode
        if mode.name not in ("x86_64", "i386-pae"):
            return Refusal(f"domain builder: there are no PV guests with {mode.title}", EINVAL)
        layout = arrange_machine(machine, self.p2m)
        end = layout.end
        mapped = RangeSet([(0, end)])
        mapped.discard(*layout.page_tables)
        # The kernel's own limit for early allocations is where the p2m list begins: what follows
        # belongs to the domain builder.
        limit = layout.p2m or layout.start_info
        tables: dict[int, tuple[Span, ...]] = {
            level: ((0, align_up(end, mode.table_span(level))),)
            for level in range(1, mode.root_level)
        }
        taken = RangeSet(span for _, span in layout.places)
        return BootState(
            mapped=tuple(mapped),
            max_pfn_mapped=limit[0] >> PAGE_SHIFT,
            features=attrs.evolve(machine.features, pse=False, gbpages=False),
            kernel=loaded_kernel(machine),
            reserved=tuple(
                (align_down(low, PAGE_SIZE), align_up(high, PAGE_SIZE)) for low, high in taken
            ),
            boot_tables=(layout.page_tables,),
            tables=MappingProxyType(tables),
            direct_mapped=((0, end),),
            typed=True,
            places=layout.places,
        )

    @hookimpl
    def pvmm_map_readonly(self, boot: Boot, start: int, end: int) -> Iterable[Span]:
        """Map read-only what is a table, or is set aside to become one (mask_rw_pte)."""
        readonly = RangeSet(boot.table_pages(start, end))
        readonly.update(boot.reserved_pages(start, end))
        return readonly.within(start, end)

    @hookimpl
    def pvmm_write_entries(self, boot: Boot, write: EntryWrite) -> Cost | Refusal:
        """Entries of a table that Xen knows go through it; others are plain stores."""
        if not write.live:
            return Cost()
        if write.kind is EntryKind.LEAF:
            if write.level > 1:
                return Refusal(f"mmu_update: large page in an L{write.level} entry", EINVAL)
            return Cost(way=Way.EMULATED)
        if not write.readonly_children:
            return Refusal(f"mmu_update: L{write.level} entry to a writable page", EINVAL)
        return Cost(
            hypercalls={"mmu_update": write.count},
            batches=_batches(boot, write.count),
            way=Way.HYPERCALL,
        )

    @hookimpl
    def pvmm_make_readonly(self, boot: Boot, tables: Batch) -> Cost:
        """Take write access from the pages' mapping, one update_va_mapping a page."""
        return Cost(
            hypercalls={"update_va_mapping": tables.count}, batches=_batches(boot, tables.count)
        )

    @hookimpl
    def pvmm_pin_tables(self, boot: Boot, tables: Batch) -> Cost | Refusal | None:
        """Pin L1 tables; tables above are validated when they are attached."""
        leaf_tables = tables.tables(1)
        if any(level > 1 for level in tables.leaf_levels):
            return Refusal("MMUEXT_PIN_TABLE: table with a large page", EINVAL)
        if not boot.ledger.is_readonly(tables.runs):
            return Refusal("MMUEXT_PIN_TABLE: page is mapped writable", EINVAL)
        if not leaf_tables:
            return None
        return Cost(
            hypercalls={"mmuext_op": leaf_tables},
            batches=_batches(boot, leaf_tables),
            pinned={1: leaf_tables},
        )

    @hookimpl
    def pvmm_make_writable(self, pages: Sequence[PageRun]) -> Cost:
        """Give write access back, one update_va_mapping a page."""
        return Cost(hypercalls={"update_va_mapping": page_count(pages)})

    @hookimpl
    def pvmm_activate_cr3(self, boot: Boot, root: Batch | None) -> Cost | Refusal:
        """Load CR3; a new root is pinned first, and the old one unpinned afterwards."""
        if root is None:
            return Cost(hypercalls={"mmuext_op": 1}, flushes=1)
        if not boot.ledger.is_readonly(root.runs):
            return Refusal("MMUEXT_NEW_BASEPTR: root is mapped writable", EINVAL)
        return Cost(
            hypercalls={"mmuext_op": 3}, pinned={boot.mode.root_level: root.count}, flushes=1
        )


def _batches(boot: Boot, operations: int) -> int:
    """Tables that wait are handed over together, so their operations share multicalls."""
    return -(-operations // MULTICALL_ENTRIES) if boot.waiting else 0
