"""A backend with other rules than Xen's: a hypervisor that keeps shadow page tables.

The guest writes its tables as on bare hardware; the CPU never sees them. The hypervisor walks them
when CR3 is loaded and builds tables of its own. From then on it write-protects those of the guest,
behind its back: each later store into them traps. So nothing is made read-only or pinned by the
guest, and what Xen counts as flips and hypercalls are traps here, and memory for the shadows, which
is limited.
"""

from collections.abc import Mapping
from errno import ENOMEM
from types import MappingProxyType
from typing import ClassVar

import attrs

from paravirt_mm import (
    API_VERSION,
    PAGE_SHIFT,
    Batch,
    Boot,
    BootState,
    Cost,
    EntryWrite,
    Machine,
    RangeSet,
    Refusal,
    Run,
    Span,
    TablesAllocated,
    align_down,
    align_up,
    hookimpl,
)


@attrs.frozen
class Shadow:
    """A hypervisor with shadow page tables.

    pool
        Pages that it has for the shadows of one guest; loading CR3 is refused beyond.
    traps
        Whether a store into a table that is in use traps; no: the hypervisor compares tables when
        the TLB is flushed instead, which costs one call a store as well, but later.
    """

    pvmm_api: ClassVar[int] = API_VERSION

    pool: int = attrs.field(default=1 << 20, validator=attrs.validators.ge(1))
    traps: bool = True

    @hookimpl
    def pvmm_boot_state(self, machine: Machine) -> BootState:
        """Say what the startup code has mapped: as on bare hardware, which the guest believes it
        runs on.
        """
        large = machine.mode.entry_span(2)
        start, end = machine.kernel.span
        low: Span = (0, machine.boot_mapped)
        tables: dict[int, tuple[Span, ...]] = {}
        if machine.mode.is_32bit:
            tables[1] = (low,)
            if machine.mode.root_level == 3:
                tables[2] = ((0, machine.mode.lowmem_limit or machine.map_limit),)
        return BootState(
            mapped=tuple(RangeSet([low, (align_down(start, large), align_up(end, large))])),
            max_pfn_mapped=machine.boot_mapped >> PAGE_SHIFT,
            features=machine.features,
            tables=MappingProxyType(tables),
        )

    @hookimpl
    def pvmm_write_entries(self, write: EntryWrite) -> Cost | None:
        """A store into a table that the hypervisor has shadowed costs a trap, any other nothing."""
        if not write.live:
            return None
        return Cost(hypercalls={"trap" if self.traps else "resync": write.count})

    @hookimpl
    def pvmm_activate_cr3(self, boot: Boot, root: Batch | None) -> Cost | Refusal:
        """Walk the guest's tables and build the shadows, one page each, if there is room."""
        wanted = boot.tables_made
        if wanted > self.pool:
            return Refusal(f"load CR3: {wanted} shadows, the pool has {self.pool}", -ENOMEM)
        return Cost(hypercalls={"shadow": wanted, "cr3": 1}, flushes=1)

    @hookimpl
    def pvmm_figures(self, run: Run) -> Mapping[str, int]:
        """Add columns of our own; they are called ``shadow.pages`` and ``shadow.pool_left``."""
        made = sum(one.batch.count for one in run.trace if isinstance(one, TablesAllocated))
        return {"pages": made, "pool_left": self.pool - made}
