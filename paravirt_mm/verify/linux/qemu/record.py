"""What one live boot did, and its JSON form, which is that of the kernel-oracle records."""

from __future__ import annotations

import hashlib
from typing import Any

import attrs

from paravirt_mm.machine.model import Span
from paravirt_mm.machine.paging import PAGE_SIZE
from paravirt_mm.verify.linux.qemu.direct_map import TablePage
from paravirt_mm.verify.linux.qemu.spec import RawEntry

FORMAT = "paravirt-mm-boot-1"
"""Format of a record, which docs/boot-record.md and its JSON schema describe."""


@attrs.frozen
class MappingStep:
    """One call of ``init_memory_mapping(start, end)`` and the ranges by page size it was cut into.

    Bytes, ends exclusive; ``ranges`` are ``(start, end, "4k" | "2M" | "1G")`` in order.
    """

    start: int
    end: int
    ranges: list[tuple[int, int, str]] = attrs.field(factory=list)


@attrs.frozen
class TableAllocation:
    """One page that ``alloc_low_pages`` gave: from the brk pages or from memblock."""

    pfn: int
    from_brk: bool
    step: int
    """Number, from 0, of the step that needed it."""


@attrs.frozen
class BootProvenance:
    """Where a record comes from, so that anyone can make it again."""

    kernel: str
    """The kernel image's version text (on Debian with the package version)."""
    qemu: str
    qemu_arguments: tuple[str, ...]
    command_line: str
    entry: str
    seconds: float
    """Wall-clock of the boot, with start and end of QEMU."""


@attrs.frozen(kw_only=True)
class BootRecord:
    """What a real kernel did while it built its direct map. Bytes, ends exclusive, unless pfn."""

    release: str
    levels: int
    pse: bool
    gbpages: bool
    memory_mib: int
    firmware_e820: tuple[RawEntry, ...]
    """The map as it was handed over."""
    e820: tuple[RawEntry, ...]
    """The kernel's map when it began: sanitised, cut, ``(start, end, type)``."""
    memory: tuple[Span, ...]
    """memblock's memory when it began."""
    reserved: tuple[Span, ...]
    """memblock's reservations when it began."""
    bottom_up: bool
    """memblock's direction: True with ``movable_node``."""
    kernel_end: int
    """The linker's ``_end``: where bottom-up mapping starts."""
    brk_start: int
    """First of the ``pgt_buf_pages`` brk pages for early tables."""
    pgt_buf_pages: int
    max_pfn: int
    max_low_pfn: int
    panic: str | None
    """The panic's format string (or what the kernel died of), or None."""
    steps: tuple[MappingStep, ...]
    allocations: tuple[TableAllocation, ...]
    """Pages of tables in the order in which they were taken."""
    hook_order: tuple[tuple[int, int], ...]
    """``(level, pfn)`` in the order in which tables were handed to the paravirt hooks."""
    cr3: int
    tables: tuple[TablePage, ...]
    leaf_runs: tuple[tuple[int, int, int], ...]
    findings: tuple[str, ...]
    """What the walker found wrong; empty for a sound direct map."""
    reserved_after: tuple[Span, ...]
    provenance: BootProvenance

    @property
    def brk_tables(self) -> tuple[Span, ...]:
        """Pages of tables taken from brk, one range a page."""
        return tuple(
            (a.pfn * PAGE_SIZE, (a.pfn + 1) * PAGE_SIZE) for a in self.allocations if a.from_brk
        )

    @property
    def table_count(self) -> dict[str, int]:
        """Tables by level without the static root, ``{"L1": n, ...}``."""
        counts = {f"L{level}": 0 for level in range(1, self.levels)}
        for table in self.tables:
            counts[f"L{table.level}"] += 1
        return counts

    def to_json(self, *, tables_up_to: int = 400) -> dict[str, Any]:
        """The record in the shape of the kernel-oracle files, ready for ``json.dumps``.

        ``tables``, ``hook_order`` and ``allocations`` are left out where there are more than
        ``tables_up_to`` tables; their SHA-256 sums are always there.
        """
        tables = [[t.level, t.pfn, t.va] for t in self.tables]
        hooks = [list(hook) for hook in self.hook_order]
        taken = [[a.pfn, "brk" if a.from_brk else "memblock", a.step] for a in self.allocations]
        result: dict[str, Any] = {
            "format": FORMAT,
            "release": self.release,
            "levels": self.levels,
            "e820": _lists(self.e820),
            "firmware_e820": _lists(self.firmware_e820),
            "memory": _lists(self.memory),
            "reserved": _lists(self.reserved),
            "bottom_up": self.bottom_up,
            "kernel_end": self.kernel_end,
            "brk_start": self.brk_start,
            "pgt_buf_pages": self.pgt_buf_pages,
            "pse": int(self.pse),
            "gbpages": int(self.gbpages),
            "max_pfn": self.max_pfn,
            "max_low_pfn": self.max_low_pfn,
            "memory_mib": self.memory_mib,
            "panic": self.panic,
            "steps": [
                {"start": s.start, "end": s.end, "ranges": _lists(s.ranges)} for s in self.steps
            ],
            "brk_tables": _lists(self.brk_tables),
            "table_count": self.table_count,
            "tables_sha256": _digest(tables),
            "hook_order_sha256": _digest(hooks),
            "leaf_runs": _lists(self.leaf_runs),
            "findings": list(self.findings),
            "reserved_after": _lists(self.reserved_after),
            "cr3": self.cr3,
            "provenance": attrs.asdict(self.provenance),
        }
        if len(tables) <= tables_up_to:
            result |= {"tables": tables, "hook_order": hooks, "allocations": taken}
        return result


def _lists(rows: Any) -> list[list[Any]]:
    return [list(row) for row in rows]


def _digest(rows: list[list[int]]) -> str:
    """SHA-256 of ``"{level} {pfn:x} {va:x}"`` lines, as in the kernel-oracle files."""
    lines = (" ".join([str(row[0]), *(f"{value:x}" for value in row[1:])]) for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
