"""The native platform: a page needs nothing to become a table, and entries are plain stores."""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType
from typing import ClassVar

import attrs

from paravirt_mm import (
    API_VERSION,
    MIB,
    PAGE_SHIFT,
    BootState,
    Cost,
    DefaultSpec,
    Machine,
    RangeSet,
    Span,
    SpecError,
    align_down,
    align_up,
    hookimpl,
    leading_version,
)

_IDENT_TABLES = ((2, 6, 27), (3, 9))
"""First release whose direct map grows the image's own tables, and the first that does not."""


@attrs.frozen
class Native:
    """Bare hardware, or a fully virtualised guest.

    The startup code maps the first ``machine.boot_mapped`` bytes. A 32-bit kernel keeps those
    tables: its direct map grows the very tree that the startup code began, and a PAE kernel's L2
    tables are part of the image (arch/x86/kernel/head_32.S). A 64-bit kernel starts its direct map
    with an empty root, unless told otherwise.

    ident_tables
        For a 64-bit kernel from 2.6.27 to 3.8: its direct map begins with the image's own tables
        for the first 512 GiB (L3, level3_ident_pgt) and the first 1 GiB (L2, level2_ident_pgt) of
        arch/x86/kernel/head_64.S, so that two tables less are taken, and the first GiB never gets a
        1 GiB page.
    """

    pvmm_api: ClassVar[int] = API_VERSION

    ident_tables: bool = False

    @hookimpl
    def pvmm_boot_state(self, machine: Machine) -> BootState:
        """Say what the startup code has mapped, and which of its tables the kernel keeps."""
        large = machine.mode.entry_span(2)
        start, end = machine.kernel.span
        boot_mapped = machine.boot_mapped
        if machine.mode.is_32bit and boot_mapped <= start:  # below a kernel all is mapped
            boot_mapped = align_up(end + MIB, large)
        low: Span = (0, boot_mapped)
        # A kernel loaded elsewhere is mapped there too, in large pages.
        mapped = RangeSet([low, (align_down(start, large), align_up(end, large))])
        tables: dict[int, tuple[Span, ...]] = {}
        if machine.mode.is_32bit:
            tables[1] = tuple(RangeSet([low]))  # of no bytes there are none
            if machine.mode.root_level == 3:
                ends = machine.mode.lowmem_limit or 0, machine.map_limit, boot_mapped
                tables[2] = ((0, max(ends)),)
        elif self.ident_tables:
            if machine.mode.root_level > 4:
                raise SpecError(f"ident_tables: no kernel that has them has {machine.mode.title}")
            tables = {level: ((0, machine.mode.table_span(level)),) for level in (2, 3)}
        return BootState(
            mapped=tuple(mapped),
            max_pfn_mapped=boot_mapped >> PAGE_SHIFT,
            features=machine.features,
            tables=MappingProxyType(tables),
        )

    @hookimpl
    def pvmm_activate_cr3(self) -> Cost:
        """Load CR3; everything that is not global leaves the TLB."""
        return Cost(flushes=1)

    @hookimpl
    def pvmm_default_specs(self) -> Iterator[DefaultSpec]:
        """Stand first: what everything else is compared with."""
        yield DefaultSpec("native", 10, alone=True)

    @hookimpl
    def pvmm_models_platform(self, platform: str, release: str | None, mode: str) -> str | None:
        """Say how a kernel that runs on no hypervisor's terms begins."""
        if platform != "native":
            return None
        first, last = _IDENT_TABLES
        if mode == "x86_64" and first <= leading_version(release) < last:
            return "native:ident_tables=yes"
        return "native"
