"""Walking page tables as the CPU does, but all of them at once, vectorised.

The walker knows the formats of `entries` and nothing of how the tables came to be: it reads
physical memory through one method, so that an `Image`, a dump of a real machine or a test's
dictionary will do. What it finds comes in runs: leaf entries that map ascending addresses to
ascending frames with equal rights are one run, and what no run covers is a hole.

Entries are untrusted. Reserved bits, tables that are not in memory, tables that are their own
ancestors and trees without end are findings with level, address and entry; the walk goes on
elsewhere, and stops at `WalkLimits`.

Virtual addresses are canonical (sign-extended) integers; ends are exclusive.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Protocol

import attrs
import numpy as np
import numpy.typing as npt

from paravirt_mm.image.entries import FORMATS, GLOBAL, NX, PRESENT, PSE, RW, USER, EntryFormat
from paravirt_mm.machine.paging import PAGE_SIZE, PagingMode
from paravirt_mm.machine.ranges import RangeSet

U64 = npt.NDArray[np.uint64]
_ONE = np.uint64(1)


class PhysicalMemory(Protocol):
    """What the walker needs of physical memory."""

    def read(self, address: int, size: int) -> bytes | memoryview | None:
        """Return ``size`` bytes at ``address``, or None where any of them is not there."""


@attrs.frozen
class Cpu:
    """What of the CPU decides how entries are read.

    ``physical_bits`` are the address bits it has (MAXPHYADDR), ``nx`` is EFER.NXE, ``pse`` CR4.PSE
    (2-level only), ``gbpages`` whether L3 entries may map pages.
    """

    physical_bits: int = 52
    nx: bool = True
    pse: bool = True
    gbpages: bool = True


@attrs.frozen
class WalkLimits:
    """Where a walk gives up: how many tables it visits, runs it keeps, and findings it lists."""

    tables: int = 1 << 22
    runs: int = 1 << 20
    findings: int = 100


@attrs.frozen
class LeafRun:
    """``[start, end)`` maps to ``physical`` upward by leaf entries of ``level`` with equal rights.

    The rights are those of the whole path: writable and user only if every entry says so,
    executable only if none forbids it.
    """

    start: int
    end: int
    physical: int
    level: int
    writable: bool
    user: bool
    executable: bool
    global_: bool


NO_ROOT = "no root"
"""The damage where CR3, which is no entry of any table, refers to no memory."""


@attrs.frozen
class Damage:
    """Something wrong in the tables: what, at which level, for which virtual address, and the
    entry. Of `NO_ROOT` the level is the root's, and the entry CR3.
    """

    kind: str
    level: int
    address: int
    entry: int
    message: str

    def __str__(self) -> str:
        if self.kind == NO_ROOT:
            return f"CR3 {self.entry:#x}: {self.message}"
        return f"L{self.level} entry {self.entry:#x} for {self.address:#x}: {self.message}"


@attrs.frozen(eq=False)
class Walk:
    """What a walk found: leaf runs by ascending address, tables (root included), findings.

    ``tables`` gives by level the physical addresses of the tables, each once, ascending;
    ``places`` every reference to them: where the table lies, and the virtual address that it maps
    from (not sign-extended); ``visits`` counts those. ``dropped`` counts findings beyond the limit.
    """

    mode: PagingMode
    runs: tuple[LeafRun, ...]
    tables: dict[int, U64]
    places: dict[int, tuple[U64, U64]]
    visits: int
    findings: tuple[Damage, ...]
    dropped: int = 0

    def holes(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of ``[start, end)`` that nothing maps, ascending."""
        position = start
        for run in self.runs:
            stop = min(run.start, end)
            if position < stop:
                yield position, stop
            position = max(position, run.end)
        if position < end:
            yield position, end

    def table_pages(self) -> RangeSet:
        """Return the pages that are tables, in bytes."""
        pages = np.unique(np.concatenate([*self.tables.values(), np.empty(0, dtype=np.uint64)]))
        result = RangeSet()
        if len(pages):
            breaks = np.flatnonzero(np.diff(pages) != PAGE_SIZE)
            firsts = pages[np.concatenate(([0], breaks + 1))]
            lasts = pages[np.concatenate((breaks, [len(pages) - 1]))]
            spans = np.column_stack((firsts, lasts)).tolist()
            result.update((low, high + PAGE_SIZE) for low, high in spans)
        return result


def canonical(mode: PagingMode, address: int) -> int:
    """Sign-extend the significant bits of a virtual address to the 64 bits that software sees."""
    bits = mode.virtual_bits
    address &= (1 << bits) - 1
    if not mode.is_32bit and address >> (bits - 1):
        address |= (1 << 64) - (1 << bits)
    return address


def walk(
    memory: PhysicalMemory,
    root: int,
    mode: PagingMode,
    cpu: Cpu | None = None,
    limits: WalkLimits | None = None,
    within: tuple[int, int] | None = None,
) -> Walk:
    """Walk the tables below the root at physical address ``root`` (bytes).

    ``within`` limits the walk to entries that translate any of these virtual addresses (canonical,
    end exclusive), which must not lie on both sides of the canonical hole.
    """
    walker = _Walker(memory, FORMATS[mode.name], cpu or Cpu(), limits or WalkLimits())
    if within is not None:
        mask = (1 << mode.virtual_bits) - 1
        walker.within = within[0] & mask, (within[1] - 1 & mask) + 1
    return walker.walk(root)


_CHUNK = 512
"""Tables that are read and looked at together: 2 MiB."""
_W, _U, _X, _G = 1, 2, 4, 8
"""Rights as bits of a small integer, as they are inherited down the tree."""


@attrs.frozen(eq=False)
class _Level:
    """Tables of one level that are still to be visited; ``path`` has their ancestors, one row a
    level.
    """

    address: U64
    virtual: U64
    rights: npt.NDArray[np.uint8]
    path: U64

    def part(self, start: int, end: int) -> _Level:
        part = slice(start, end)
        return _Level(self.address[part], self.virtual[part], self.rights[part], self.path[:, part])


def _joined(parts: list[_Level]) -> _Level:
    return _Level(
        *(
            np.concatenate([getattr(part, name) for part in parts], axis=-1)
            for name in ("address", "virtual", "rights", "path")
        )
    )


class _Walker:
    def __init__(
        self, memory: PhysicalMemory, entry_format: EntryFormat, cpu: Cpu, limits: WalkLimits
    ) -> None:
        self.memory = memory
        self.format = entry_format
        self.mode = entry_format.mode
        self.cpu = cpu
        self.limits = limits
        self.findings: list[Damage] = []
        self.dropped = 0
        self.runs: list[U64] = []
        self.run_count = 0
        self.visits = 0
        self.tables: dict[int, U64] = {}
        self.places: dict[int, tuple[U64, U64]] = {}
        self.within: tuple[int, int] | None = None

    def walk(self, root: int) -> Walk:
        level = _Level(
            address=np.array([root], dtype=np.uint64),
            virtual=np.zeros(1, dtype=np.uint64),
            rights=np.full(1, _W | _U | _X, dtype=np.uint8),
            path=np.zeros((0, 1), dtype=np.uint64),
        )
        for number in range(self.mode.root_level, 0, -1):
            self.tables[number] = np.unique(level.address)
            self.places[number] = level.address, level.virtual
            below: list[_Level] = []
            room = self.limits.tables - self.visits - len(level.address)
            for start in range(0, len(level.address), _CHUNK):
                found = self._visit(number, level.part(start, start + _CHUNK))
                # Chunk by chunk: four pages can refer to more tables than memory holds.
                below.append(self._bounded(number, found, room))
                room -= len(found.address)
            if below:  # else there were no tables, and there are none below
                level = _joined(below)
        return Walk(
            mode=self.mode,
            runs=self._collected(),
            tables=self.tables,
            places=self.places,
            visits=self.visits,
            findings=tuple(self.findings),
            dropped=self.dropped,
        )

    def _find(self, kind: str, level: int, virtual: int, entry: int, message: str) -> None:
        if len(self.findings) < self.limits.findings:
            address = canonical(self.mode, virtual)
            self.findings.append(Damage(kind, level, address, entry, message))
        else:
            self.dropped += 1

    def _find_all(self, kind: str, level: int, virtual: U64, entries: U64, message: str) -> None:
        room = self.limits.findings - len(self.findings)
        for address, entry in np.column_stack((virtual, entries))[:room].tolist():
            self._find(kind, level, address, entry, message)
        self.dropped += max(0, len(virtual) - room)

    # -- one chunk of tables ------------------------------------------------------------------

    def _visit(self, level: int, tables: _Level) -> _Level:
        """Look at tables of one level: keep their leaf runs, return the tables below."""
        self.visits += len(tables.address)
        entries = self._read(level, tables)
        width = self.format.page_entries  # of which a PAE root's page has four, and then zeros
        start, length = self._stretches(level, entries)
        flat = entries.ravel()
        first = flat[start].astype(np.uint64)
        present = np.flatnonzero(first & np.uint64(PRESENT))
        start, length, first = start[present], length[present], first[present]
        table, index = np.divmod(start, width)
        span = self.mode.entry_span(level)
        virtual = tables.virtual[table] + index.astype(np.uint64) * np.uint64(span)
        if self.within is not None:
            end = virtual + length.astype(np.uint64) * np.uint64(span)
            low, high = (np.uint64(edge) for edge in self.within)
            asked = np.flatnonzero((end > low) & (virtual < high))
            length, first = length[asked], first[asked]
            table, virtual = table[asked], virtual[asked]
        is_leaf = self._is_leaf(level, first)
        sound = self._sound(level, first, is_leaf, virtual)
        rights = self._rights(level, first, tables.rights[table])
        leaf = is_leaf & sound
        self._keep(level, virtual[leaf], first[leaf], length[leaf], rights[leaf])
        child = ~is_leaf & sound
        return self._children(
            level,
            _Level(first[child], virtual[child], rights[child], tables.path[:, table[child]]),
            tables.address[table[child]],
        )

    def _read(self, level: int, tables: _Level) -> U64:
        """Read the tables, neighbours in memory together; those that are not there are empty."""
        count = len(tables.address)
        entries = np.zeros((count, self.format.page_entries), dtype=self.format.dtype)
        there = np.ones(count, dtype=np.bool_)
        order = np.argsort(tables.address, kind="stable")
        address = tables.address[order]
        breaks = np.flatnonzero(np.diff(address) != PAGE_SIZE) + 1
        edges = [0, *breaks.tolist(), count]
        for low, high in pairwise(edges):
            where = order[low:high]
            data: bytes | memoryview | None
            if level == self.mode.root_level:
                data = read_root(self.memory, self.mode, int(address[low]))
            else:
                data = self.memory.read(int(address[low]), (high - low) * PAGE_SIZE)
            if data is not None:
                entries[where] = np.frombuffer(data, dtype=self.format.dtype).reshape(
                    high - low, self.format.page_entries
                )
                continue
            for position in where.tolist():
                data = self.memory.read(int(tables.address[position]), PAGE_SIZE)
                if data is None:
                    there[position] = False
                else:
                    entries[position] = np.frombuffer(data, dtype=self.format.dtype)
        missing = np.flatnonzero(~there)
        is_root = level == self.mode.root_level
        self._find_all(
            NO_ROOT if is_root else "missing",
            level if is_root else level + 1,
            tables.virtual[missing],
            tables.address[missing],
            f"the L{level} table that it refers to is not in memory",
        )
        return entries

    def _stretches(
        self, level: int, entries: U64
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Cut the entries of some tables into stretches; return where they start and their lengths.

        In an L1, entries that ascend frame by frame with equal flags are one stretch, and so are
        entries that are not present: a full table is looked at once, not 512 times. Elsewhere
        every entry is its own.
        """
        count, width = entries.shape
        if level > 1:
            size = count * width
            return np.arange(size, dtype=np.int64), np.ones(size, dtype=np.int64)
        after, before = entries[:, 1:], entries[:, :-1]
        cut = np.ones((count, width), dtype=np.bool_)
        one = entries.dtype.type(PRESENT)
        np.not_equal(after - before, entries.dtype.type(PAGE_SIZE), out=cut[:, 1:])
        cut[:, 1:] &= ((after | before) & one) != 0
        # A carry out of the address field would change flags, and one into reserved bits makes a
        # fault.
        start = np.flatnonzero(cut)
        length = np.diff(start, append=count * width)
        last = entries.ravel()[start + length - 1].astype(np.uint64)
        first = entries.ravel()[start].astype(np.uint64)
        field = np.uint64(self.format.address_field & ~self.format.above(self.cpu.physical_bits))
        overflow = (((first ^ last) & ~field) != 0) & ((first & _ONE) != 0)
        if overflow.any():
            for number in np.flatnonzero(overflow).tolist():
                low = int(start[number])
                cut.flat[low : low + int(length[number])] = True
            start = np.flatnonzero(cut)
            length = np.diff(start, append=count * width)
        return start, length

    def _is_leaf(self, level: int, entries: U64) -> npt.NDArray[np.bool_]:
        if level == 1:
            return np.ones(len(entries), dtype=np.bool_)
        if self.mode.entry_bytes == 4 and not self.cpu.pse:
            return np.zeros(len(entries), dtype=np.bool_)
        # Where there are no large pages the bit is reserved, whatever the entry were with it.
        leaf: npt.NDArray[np.bool_] = (entries & np.uint64(PSE)) != 0
        return leaf

    def _sound(
        self, level: int, entries: U64, is_leaf: npt.NDArray[np.bool_], virtual: U64
    ) -> npt.NDArray[np.bool_]:
        """Tell which entries have no reserved bit set; find the others."""
        table, leaf = (np.uint64(bits) for bits in reserved_bits(self.format, level, self.cpu))
        wrong: npt.NDArray[np.bool_] = (entries & np.where(is_leaf, leaf, table)) != 0
        self._find_all("reserved", level, virtual[wrong], entries[wrong], "a reserved bit is set")
        return ~wrong

    def _rights(
        self, level: int, entries: U64, inherited: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.uint8]:
        if not self.format.permissions[level]:
            return inherited
        own = np.where(entries & np.uint64(RW), _W, 0) | np.where(entries & np.uint64(USER), _U, 0)
        # Where there is no NX, an entry with that bit is not sound.
        own |= np.where(entries & np.uint64(NX), 0, _X)
        return (own.astype(np.uint8) & inherited).astype(np.uint8)

    def _children(self, level: int, found: _Level, parents: U64) -> _Level:
        """Return the tables that entries refer to, but for those that are their own ancestors."""
        entries = found.address
        address = entries & np.uint64(self.format.address_field)
        path = np.vstack((found.path, parents[None, :]))
        loops = (path == address[None, :]).any(axis=0)
        self._find_all(
            "loop",
            level,
            found.virtual[loops],
            entries[loops],
            "it refers to a table on its own path",
        )
        fine = ~loops
        return _Level(address[fine], found.virtual[fine], found.rights[fine], path[:, fine])

    def _bounded(self, level: int, found: _Level, room: int) -> _Level:
        """Return what a chunk of a level refers to, as far as there is room for more tables."""
        if len(found.address) <= room:
            return found
        if room >= 0:  # the first time
            self._find(
                "limit",
                level,
                int(found.virtual[room]),
                int(found.address[room]),
                f"the tree has more than {self.limits.tables} tables; the rest was not visited",
            )
        kept = found.part(0, max(0, room))
        # A slice would hold on to all of the array.
        return _Level(*(part.copy() for part in attrs.astuple(kept, recurse=False)))

    # -- leaf runs ----------------------------------------------------------------------------

    def _keep(
        self,
        level: int,
        virtual: U64,
        entries: U64,
        length: npt.NDArray[np.int64],
        rights: npt.NDArray[np.uint8],
    ) -> None:
        """Keep leaves as columns (virtual, end, physical, level, rights), neighbours merged."""
        if not len(virtual) or self.run_count > self.limits.runs:
            return
        span = self.mode.entry_span(level)
        physical = leaf_address(self.format, level, entries)
        marks = rights.astype(np.uint64)
        marks |= np.where(entries & np.uint64(GLOBAL), np.uint64(_G), np.uint64(0))
        rows = np.vstack(
            (
                virtual,
                virtual + length.astype(np.uint64) * np.uint64(span),
                physical,
                np.full(len(virtual), level, dtype=np.uint64),
                marks,
            )
        )
        rows = _merge(rows)
        room = self.limits.runs - self.run_count
        self.run_count += rows.shape[1]
        if self.run_count > self.limits.runs:
            self._find(
                "limit",
                level,
                int(rows[0, room]),
                0,
                f"the tables map more than {self.limits.runs} runs; the rest was not kept",
            )
            rows = rows[:, :room]
        self.runs.append(rows)

    def _collected(self) -> tuple[LeafRun, ...]:
        rows = np.concatenate([np.empty((5, 0), dtype=np.uint64), *self.runs], axis=1)
        if not rows.size:
            return ()
        rows = _merge(rows[:, np.argsort(rows[0], kind="stable")])
        return tuple(
            LeafRun(
                start=canonical(self.mode, start),
                end=canonical(self.mode, end - 1) + 1,
                physical=physical,
                level=level,
                writable=bool(marks & _W),
                user=bool(marks & _U),
                executable=bool(marks & _X),
                global_=bool(marks & _G),
            )
            for start, end, physical, level, marks in rows.T.tolist()
        )


def _merge(rows: U64) -> U64:
    """Join neighbours that go on where the one before ends, in both address spaces, with equal
    rights.
    """
    start, end, physical = rows[0], rows[1], rows[2]
    joins = (
        (start[1:] == end[:-1])
        & (physical[1:] - physical[:-1] == end[:-1] - start[:-1])
        & (rows[3:, 1:] == rows[3:, :-1]).all(axis=0)
    )
    heads = np.concatenate(([0], np.flatnonzero(~joins) + 1))
    merged: U64 = rows[:, heads]
    tails = np.concatenate((heads[1:] - 1, [rows.shape[1] - 1]))
    merged[1] = end[tails]
    return merged


def reserved_bits(entry_format: EntryFormat, level: int, cpu: Cpu) -> tuple[int, int]:
    """Return the bits that must be 0 in a present entry of ``level``: one that refers to a table,
    and a leaf.
    """
    common = entry_format.reserved[level] | entry_format.above(cpu.physical_bits)
    if entry_format.mode.entry_bytes == 8 and not cpu.nx:
        common |= NX
    leaf = common | entry_format.leaf_reserved(level)
    if level == 3 and not cpu.gbpages:
        leaf |= PSE
    if entry_format.mode.entry_bytes == 4 and level == 2:
        # PSE-36: address bits 32 to 39 lie in bits 13 to 20. Reserved are those that the CPU lacks,
        # and bit 21.
        leaf |= (1 << 22) - (1 << min(max(cpu.physical_bits, 32), 40) - 32 + 13)
    return common, leaf


def leaf_address(entry_format: EntryFormat, level: int, entries: U64) -> U64:
    """Return the physical addresses that leaf entries of ``level`` map."""
    address = entries & np.uint64(entry_format.leaf_address_field(level))
    if entry_format.mode.entry_bytes == 4 and level == 2:
        address |= (entries >> np.uint64(13) & np.uint64(0xFF)) << np.uint64(32)
    return address


def read_root(memory: PhysicalMemory, mode: PagingMode, root: int) -> bytes | None:
    """Return the page of a root table, its entries first.

    A PAE root has four entries and lies at any multiple of 32 bytes; what follows them in its page
    is dropped.
    """
    page = memory.read(root - root % PAGE_SIZE, PAGE_SIZE)
    if page is None:
        return None
    size = mode.entries(mode.root_level) * mode.entry_bytes
    at = root % PAGE_SIZE
    return bytes(page[at : at + size]).ljust(PAGE_SIZE, b"\0")
