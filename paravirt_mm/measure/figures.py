"""Every figure of the comparison: its name, unit, meaning, and the one place where it is computed.

A figure is a function of `Books`, which is a function of the trace. None means that the figure does
not exist for this run (lowmem on a 64-bit machine); it is shown as a dash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from functools import partial

import attrs

from paravirt_mm.engine.answers import Way
from paravirt_mm.engine.pages import Source
from paravirt_mm.engine.trace import Trace
from paravirt_mm.machine.paging import GIB, MIB, PAGE_SHIFT, PAGE_SIZE
from paravirt_mm.machine.ranges import Ranges
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
    key: bool = False


Limit = Callable[[Books], int | None]


def _below(pages: Ranges, limit: int | None) -> int | None:
    """Bytes of pages (pfns) below ``limit`` bytes."""
    if limit is None:
        return None
    return sum(high - low for low, high in pages.within(0, limit >> PAGE_SHIFT)) << PAGE_SHIFT


def _tables_below(limit: Limit, books: Books) -> int | None:
    return _below(books.table_pages, limit(books))


def _unused_below(limit: Limit, books: Books) -> int | None:
    return _below(books.unused, limit(books))


def _largest_free(limit: int, books: Books) -> int:
    return max((high - low for low, high in books.free.within(0, limit)), default=0)


def _crashkernel_fits(size: int, limit: int, books: Books) -> bool:
    return any(crashkernel.places(books.free, size, limit))


def _crashkernel_largest(limit: int, books: Books) -> int:
    return crashkernel.largest(books.free, limit)


def _pins(level: int, books: Books) -> int:
    return books.pins[level]


def _validations(level: int, books: Books) -> int:
    return books.validations[level]


def _tables(level: int, books: Books) -> int:
    return books.by_level[level]


def _mapped(level: int, books: Books) -> int:
    return books.mapped_bytes[level]


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


def _guess() -> Iterator[Figure]:
    group = Group.GUESS
    yield Figure(
        "reserved",
        group,
        Unit.PAGES,
        "guess",
        "pages set aside for tables before the first entry is written (brk not counted)",
        lambda b: b.reserved,
        key=True,
    )
    yield Figure(
        "used",
        group,
        Unit.PAGES,
        "used",
        "reserved pages that became page tables",
        lambda b: b.used,
    )
    yield Figure(
        "waste",
        group,
        Unit.PAGES,
        "waste",
        "reserved pages that did not become page tables",
        lambda b: b.reserved - b.used,
        key=True,
    )
    yield Figure(
        "waste_percent",
        group,
        Unit.PERCENT,
        "waste%",
        "waste as a share of what was reserved",
        _waste_percent,
    )
    yield Figure(
        "overrun",
        group,
        Unit.PAGES,
        "overrun",
        "tables needed beyond the reservation; above 0 the kernel panics",
        lambda b: b.missing_tables,
    )
    yield Figure(
        "contiguous_need",
        group,
        Unit.BYTES,
        "contig",
        "largest physically contiguous block that was demanded at once",
        lambda b: b.contiguous_pages * PAGE_SIZE,
    )
    yield Figure(
        "brk_used",
        group,
        Unit.PAGES,
        "brk",
        "tables taken from the brk area",
        lambda b: b.by_source[Source.BRK],
    )
    yield Figure(
        "brk_size",
        group,
        Unit.PAGES,
        "brksize",
        "pages of the brk area for tables that the allocator asked for",
        lambda b: b.kernel.brk_pages,
    )


def _status() -> Iterator[Figure]:
    group = Group.STATUS
    yield Figure(
        "flips",
        group,
        Unit.PAGES,
        "flips",
        "changes of a page between writable and not writable, in either direction",
        lambda b: b.flips,
        key=True,
    )
    yield Figure(
        "flips_per_table",
        group,
        Unit.RATIO,
        "/table",
        "flips divided by page-table pages in use at the end; floor: 1.0 on Xen, 0 on native",
        lambda b: _ratio(b.flips, b.tables),
        key=True,
    )
    yield Figure(
        "flips_wasted",
        group,
        Unit.PAGES,
        "wasted",
        "flips of pages that end the run writable again",
        lambda b: b.flips_wasted,
        key=True,
    )
    yield Figure(
        "max_flips",
        group,
        Unit.COUNT,
        "maxflip",
        "the largest number of flips that any single page saw",
        lambda b: b.max_flips,
    )
    for level in range(1, 5):
        yield Figure(
            f"pins_l{level}",
            group,
            Unit.COUNT,
            f"pin L{level}",
            f"L{level} tables pinned",
            partial(_pins, level),
        )
    for level in range(1, 5):
        yield Figure(
            f"validations_l{level}",
            group,
            Unit.COUNT,
            f"valid L{level}",
            f"L{level} tables validated because a parent or CR3 refers to them, without a pin",
            partial(_validations, level),
        )


def _lowmem() -> Iterator[Figure]:
    group = Group.LOWMEM
    for name, words, limit in _LIMITS:
        yield Figure(
            f"tables_below_{name}",
            group,
            Unit.BYTES,
            f"<{name.upper()}",
            f"page-table pages below {words}",
            partial(_tables_below, limit),
            key=name == "16m",
        )
    for name, words, limit in _LIMITS:
        yield Figure(
            f"unused_below_{name}",
            group,
            Unit.BYTES,
            f"idle<{name.upper()}",
            f"pages below {words} that were set aside for tables and did not become any",
            partial(_unused_below, limit),
        )
    for name, top in crashkernel.LIMITS:
        yield Figure(
            f"largest_free_below_{name}",
            group,
            Unit.BYTES,
            f"free<{name.upper()}",
            f"largest free block of RAM below {name.upper()} when the run ends",
            partial(_largest_free, top),
        )
    for name, top in crashkernel.LIMITS:
        yield Figure(
            f"crashkernel_largest_below_{name}",
            group,
            Unit.BYTES,
            f"ck<{name.upper()}",
            f"largest crash kernel, 16 MiB aligned, that still fits below {name.upper()}",
            partial(_crashkernel_largest, top),
        )
    for name, top in crashkernel.LIMITS:
        for size in crashkernel.SIZES:
            yield Figure(
                f"crashkernel_{size}m_below_{name}",
                group,
                Unit.YES_NO,
                f"ck{size}<{name.upper()}",
                f"a crash kernel of {size} MiB, 16 MiB aligned, still fits below {name.upper()}",
                partial(_crashkernel_fits, size * MIB, top),
            )
    yield Figure(
        "lowest_table",
        group,
        Unit.ADDRESS,
        "lowest",
        "address of the lowest page-table page",
        lambda b: b.table_pages.first << PAGE_SHIFT if b.table_pages else None,
    )
    yield Figure(
        "highest_table",
        group,
        Unit.ADDRESS,
        "highest",
        "address of the highest page-table page",
        lambda b: (b.table_pages.end - 1) << PAGE_SHIFT if b.table_pages else None,
    )
    yield Figure(
        "extents",
        group,
        Unit.COUNT,
        "extents",
        "contiguous runs that the page-table pages form",
        lambda b: len(b.table_pages),
    )


def _cost() -> Iterator[Figure]:
    group = Group.COST
    ways = (
        (Way.DIRECT, "direct_writes", "direct", "page-table entries stored straight to memory"),
        (Way.HYPERCALL, "hypercall_writes", "by hcall", "entries changed through the hypervisor"),
        (Way.EMULATED, "emulated_writes", "emulated", "stores that trap and are emulated"),
    )
    for way, name, header, meaning in ways:
        yield Figure(name, group, Unit.COUNT, header, meaning, partial(_written, way))
    yield Figure(
        "hypercalls",
        group,
        Unit.COUNT,
        "hcalls",
        "operations asked of the hypervisor, all kinds",
        lambda b: sum(b.hypercalls.values()),
        key=True,
    )
    for kind in ("mmu_update", "update_va_mapping", "mmuext_op"):
        yield Figure(
            f"hypercalls_{kind}",
            group,
            Unit.COUNT,
            kind,
            f"operations of kind {kind}",
            partial(_hypercalls, kind),
        )
    yield Figure(
        "hypercalls_of_guess",
        group,
        Unit.COUNT,
        "for guess",
        "operations that exist only because too much was set aside",
        lambda b: b.hypercalls_of_guess,
    )
    yield Figure(
        "multicall_batches",
        group,
        Unit.COUNT,
        "batches",
        "multicalls that carried them",
        lambda b: b.batches,
    )
    yield Figure(
        "tlb_flushes",
        group,
        Unit.COUNT,
        "flushes",
        "CR3 loads and explicit flushes",
        lambda b: b.tlb_flushes,
    )


def _work() -> Iterator[Figure]:
    group = Group.WORK
    yield Figure(
        "tables",
        group,
        Unit.PAGES,
        "tables",
        "page-table pages in use at the end, those since boot not counted",
        lambda b: b.tables,
        key=True,
    )
    for level in range(1, 6):
        yield Figure(
            f"tables_l{level}",
            group,
            Unit.PAGES,
            f"L{level}",
            f"page tables of level {level}",
            partial(_tables, level),
        )
    for level, name in ((1, "4k"), (2, "large"), (3, "huge")):
        yield Figure(
            f"mapped_{name}",
            group,
            Unit.BYTES,
            f"map {name}",
            f"memory mapped by L{level} entries",
            partial(_mapped, level),
        )
    yield Figure(
        "steps",
        group,
        Unit.COUNT,
        "steps",
        "rounds of mapping some memory and then being able to use it",
        lambda b: b.rounds,
    )
    yield Figure(
        "peak_unhooked",
        group,
        Unit.PAGES,
        "unhooked",
        "most tables that were built and not yet handed to the backend",
        lambda b: b.peak_unhooked,
    )


FIGURES: dict[str, Figure] = {
    figure.name: figure for group in (_guess, _status, _lowmem, _cost, _work) for figure in group()
}
"""Every figure by name, in the order of the groups."""


def measure(trace: Trace) -> Mapping[str, Value]:
    """Return every figure of a trace; none of one without a start (a refused domain)."""
    if not trace.begun:
        return {}
    books = Books(trace)
    return {name: figure.compute(books) for name, figure in FIGURES.items()}
