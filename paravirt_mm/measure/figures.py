"""Every figure of the comparison: its name, unit, meaning, and the one place where it is computed.

A figure is a function of `Books`, which is a function of the trace. None means that the figure does
not exist for this run (lowmem on a 64-bit machine); it is shown as a dash.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import partial
from typing import Protocol

import attrs

from paravirt_mm.engine.answers import Way
from paravirt_mm.engine.pages import Source
from paravirt_mm.engine.trace import Trace
from paravirt_mm.machine.paging import GIB, MIB, PAGE_SHIFT, PAGE_SIZE, PagingMode
from paravirt_mm.machine.ranges import Ranges, align_down
from paravirt_mm.measure import crashkernel
from paravirt_mm.measure.books import Books

Value = int | float | str | bool | None


class Group(StrEnum):
    """The groups of columns, in the order in which they are shown."""

    GUESS = "guess"
    STATUS = "status"
    LOWMEM = "lowmem"
    COST = "cost"
    WORK = "work"


class Unit(StrEnum):
    """How a figure is to be read and shown."""

    PAGES = "pages"
    BYTES = "bytes"
    ADDRESS = "address"
    COUNT = "count"
    RATIO = "ratio"
    PERCENT = "%"
    YES_NO = "yes/no"
    TEXT = "text"


@attrs.frozen
class Figure:
    """One figure. ``header`` is the column's title; ``key`` marks those of the short table."""

    name: str
    group: Group
    unit: Unit
    header: str
    meaning: str
    compute: Callable[[Books], Value]
    key: bool


class Tables(Protocol):
    """Page tables, of a run or found in memory: what the figures of `TABLE_FIGURES` need to know.

    ``table_pages`` holds pfns; ``by_level`` counts tables, ``mapped_bytes`` bytes by level of the
    entries that map them.
    """

    @property
    def mode(self) -> PagingMode:
        """The paging mode."""

    @property
    def table_pages(self) -> Ranges:
        """Pfns of the tables."""

    @property
    def by_level(self) -> Mapping[int, int]:
        """How many tables of each level."""

    @property
    def mapped_bytes(self) -> Mapping[int, int]:
        """Bytes mapped by entries of each level."""

    @property
    def tables(self) -> int:
        """How many tables in all."""


Limit = Callable[[Tables], int | None]


def _below(pages: Ranges, limit: int | None) -> int | None:
    """Bytes of pages (pfns) below ``limit`` bytes."""
    if limit is None:
        return None
    return pages.total_below(limit >> PAGE_SHIFT) << PAGE_SHIFT


def _tables_below(limit: Limit, tables: Tables) -> int | None:
    return _below(tables.table_pages, limit(tables))


def _unused_below(limit: Limit, books: Books) -> int | None:
    return _below(books.unused, limit(books))


def _largest_free(limit: int, books: Books) -> int:
    return books.room[limit].block


def _crashkernel_fits(size: int, limit: int, books: Books) -> bool:
    return size <= books.room[limit].crash_kernel


def _crashkernel_largest(limit: int, books: Books) -> int:
    return align_down(books.room[limit].crash_kernel, MIB)


def _pins(level: int, books: Books) -> int:
    return books.pins[level]


def _validations(level: int, books: Books) -> int:
    return books.validations[level]


def _tables(level: int, tables: Tables) -> int:
    return tables.by_level.get(level, 0)


def _mapped(level: int, tables: Tables) -> int:
    return tables.mapped_bytes.get(level, 0)


def _written(way: Way, books: Books) -> int:
    return books.writes[way]


def _hypercalls(kind: str, books: Books) -> int:
    return books.hypercalls[kind]


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _waste_percent(books: Books) -> float | None:
    return (
        round(100 * (books.reserved - books.used) / books.reserved, 2) if books.reserved else None
    )


_LIMITS: tuple[tuple[str, str, Limit], ...] = (
    ("1m", "1 MiB", lambda _: MIB),
    ("16m", "16 MiB (ISA DMA)", lambda _: 16 * MIB),
    ("lowmem", "the end of 32-bit lowmem", lambda b: b.mode.lowmem_limit),
    ("4g", "4 GiB", lambda _: 4 * GIB),
)


_OfTables = Callable[[Tables], Value]
_Row = tuple[str, Unit, str, Callable[[Books], Value], str]
"""Name (with a star: in the short table), unit, header, how it is computed, meaning."""

_PAGES, _BYTES, _COUNT, _ADDRESS = Unit.PAGES, Unit.BYTES, Unit.COUNT, Unit.ADDRESS
_SIZE_NAMES = {1: "4k", 2: "large", 3: "huge"}

TABLE_FIGURES: Mapping[str, _OfTables] = {
    "tables": lambda t: t.tables,
    **{f"tables_l{level}": partial(_tables, level) for level in range(1, 6)},
    **{f"tables_below_{name}": partial(_tables_below, limit) for name, _, limit in _LIMITS},
    "lowest_table": lambda t: t.table_pages.first << PAGE_SHIFT if t.table_pages else None,
    "highest_table": lambda t: (t.table_pages.end - 1) << PAGE_SHIFT if t.table_pages else None,
    "extents": lambda t: len(t.table_pages),
    **{f"mapped_{name}": partial(_mapped, level) for level, name in _SIZE_NAMES.items()},
}
"""Figures of which the tables themselves tell everything: `paravirt_mm.image.inspect` has them too.
"""

# fmt: off
_ROWS: Mapping[Group, tuple[_Row, ...]] = {
    Group.GUESS: (
        ("reserved*", _PAGES, "guess", lambda b: b.reserved,
         "pages set aside for tables before the first entry is written (brk not counted)"),
        ("used", _PAGES, "used", lambda b: b.used,
         "reserved pages that became page tables"),
        ("waste*", _PAGES, "waste", lambda b: b.reserved - b.used,
         "reserved pages that did not become page tables"),
        ("waste_percent", Unit.PERCENT, "waste%", _waste_percent,
         "waste as a share of what was reserved"),
        ("overrun", _PAGES, "overrun", lambda b: b.missing_tables,
         "tables needed beyond the reservation; above 0 the kernel panics"),
        ("contiguous_need", _BYTES, "contig", lambda b: b.contiguous_pages * PAGE_SIZE,
         "largest physically contiguous block that was demanded at once"),
        ("brk_used", _PAGES, "brk", lambda b: b.by_source[Source.BRK],
         "tables taken from the brk area"),
        ("brk_size", _PAGES, "brksize", lambda b: b.kernel.brk_pages,
         "pages of the brk area for tables that the allocator asked for"),
    ),
    Group.STATUS: (
        ("flips*", _PAGES, "flips", lambda b: b.flips,
         "changes of a page between writable and not writable, in either direction"),
        ("flips_per_table*", Unit.RATIO, "/table", lambda b: _ratio(b.flips, b.tables),
         "flips divided by page-table pages in use at the end; floor: 1.0 on Xen, 0 on native"),
        ("flips_wasted*", _PAGES, "wasted", lambda b: b.flips_wasted,
         "flips of pages that end the run writable again"),
        ("max_flips", _COUNT, "maxflip", lambda b: b.max_flips,
         "the largest number of flips that any single page saw"),
        *((f"pins_l{level}", _COUNT, f"pin L{level}", partial(_pins, level),
           f"L{level} tables pinned") for level in range(1, 5)),
        *((f"validations_l{level}", _COUNT, f"valid L{level}", partial(_validations, level),
           f"L{level} tables validated because a parent or CR3 refers to them, without a pin")
          for level in range(1, 5)),
    ),
    Group.LOWMEM: (
        *((f"tables_below_{name}" + "*" * (name == "16m"), _BYTES, f"<{name.upper()}",
           TABLE_FIGURES[f"tables_below_{name}"], f"page-table pages below {words}")
          for name, words, _ in _LIMITS),
        *((f"unused_below_{name}", _BYTES, f"idle<{name.upper()}", partial(_unused_below, limit),
           f"pages below {words} that were set aside for tables and did not become any")
          for name, words, limit in _LIMITS),
        *((f"largest_free_below_{name}", _BYTES, f"free<{name.upper()}",
           partial(_largest_free, top),
           f"largest free block of RAM below {name.upper()} when the run ends")
          for name, top in crashkernel.LIMITS),
        *((f"crashkernel_largest_below_{name}", _BYTES, f"ck<{name.upper()}",
           partial(_crashkernel_largest, top),
           f"largest crash kernel, 16 MiB aligned, that still fits below {name.upper()}")
          for name, top in crashkernel.LIMITS),
        *((f"crashkernel_{size}m_below_{name}", Unit.YES_NO, f"ck{size}<{name.upper()}",
           partial(_crashkernel_fits, size * MIB, top),
           f"a crash kernel of {size} MiB, 16 MiB aligned, still fits below {name.upper()}")
          for name, top in crashkernel.LIMITS for size in crashkernel.SIZES),
        ("lowest_table", _ADDRESS, "lowest", TABLE_FIGURES["lowest_table"],
         "address of the lowest page-table page"),
        ("highest_table", _ADDRESS, "highest", TABLE_FIGURES["highest_table"],
         "address of the highest page-table page"),
        ("extents", _COUNT, "extents", TABLE_FIGURES["extents"],
         "contiguous runs that the page-table pages form"),
    ),
    Group.COST: (
        ("direct_writes", _COUNT, "direct", partial(_written, Way.DIRECT),
         "page-table entries stored straight to memory"),
        ("hypercall_writes", _COUNT, "by hcall", partial(_written, Way.HYPERCALL),
         "entries changed through the hypervisor"),
        ("emulated_writes", _COUNT, "emulated", partial(_written, Way.EMULATED),
         "stores that trap and are emulated"),
        ("hypercalls*", _COUNT, "hcalls", lambda b: sum(b.hypercalls.values()),
         "operations asked of the hypervisor, all kinds"),
        *((f"hypercalls_{kind}", _COUNT, kind, partial(_hypercalls, kind),
           f"operations of kind {kind}")
          for kind in ("mmu_update", "update_va_mapping", "mmuext_op")),
        ("hypercalls_of_guess", _COUNT, "for guess", lambda b: b.hypercalls_of_guess,
         "operations that exist only because too much was set aside"),
        ("multicall_batches", _COUNT, "batches", lambda b: b.batches,
         "multicalls that carried them"),
        ("tlb_flushes", _COUNT, "flushes", lambda b: b.tlb_flushes,
         "CR3 loads and explicit flushes"),
    ),
    Group.WORK: (
        ("tables*", _PAGES, "tables", TABLE_FIGURES["tables"],
         "page-table pages in use at the end, those since boot not counted"),
        *((f"tables_l{level}", _PAGES, f"L{level}", TABLE_FIGURES[f"tables_l{level}"],
           f"page tables of level {level}") for level in range(1, 6)),
        *((f"mapped_{name}", _BYTES, f"map {name}", TABLE_FIGURES[f"mapped_{name}"],
           f"memory mapped by L{level} entries") for level, name in _SIZE_NAMES.items()),
        ("steps", _COUNT, "steps", lambda b: b.rounds,
         "rounds of mapping some memory and then being able to use it"),
        ("peak_unhooked", _PAGES, "unhooked", lambda b: b.peak_unhooked,
         "most tables that were built and not yet handed to the backend"),
    ),
}
# fmt: on

FIGURES: dict[str, Figure] = {
    starred.rstrip("*"): Figure(
        starred.rstrip("*"), group, unit, header, meaning, compute, key=starred.endswith("*")
    )
    for group, rows in _ROWS.items()
    for starred, unit, header, compute, meaning in rows
}
"""Every figure by name, in the order of the groups."""


def measure(trace: Trace) -> Mapping[str, Value]:
    """Return every figure of a trace; none of one without a start (a refused domain)."""
    if not trace.begun:
        return {}
    return figures_of(Books(trace))


def figures_of(books: Books) -> Mapping[str, Value]:
    """Return every figure."""
    return {name: figure.compute(books) for name, figure in FIGURES.items()}
