"""A recorded dom0 as a row of a comparison: what its allocator did, and what it asked Xen for.

`recorded_boot` turns the calls of ``init_memory_mapping`` and the tables that stand in the end into
the steps of a run. `Charges` hands the recorded requests out to the operations of that run, so that
flips, pins, hypercalls and batches are the kernel's own: a request belongs to the operation on the
page that it names, and whatever belongs to no other (CR3, flushes) to the end.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping

import attrs

from paravirt_mm import (
    PAGE_SHIFT,
    PAGE_SIZE,
    Batch,
    Cost,
    EntryKind,
    EntryWrite,
    InputError,
    Machine,
    PageRun,
    Piece,
    RecordedBoot,
    RecordedStep,
    Source,
    TablePages,
    Way,
    align_down,
)
from paravirt_mm_xen.dom0.compare import machine_of
from paravirt_mm_xen.dom0.recording import FLUSHES, RW, Dom0Recording, Kind, Request


def recorded_boot(recording: Dom0Recording, machine: Machine) -> RecordedBoot:
    """Return what the kernel did on ``machine``. Raises `InputError` where dom0 saw another one."""
    found = machine_of(recording)
    seen, asked = found.memory_map.ram_pages(), machine.memory_map.ram_pages()
    different = list(asked.difference(seen)) + list(seen.difference(asked))
    # Linux keeps the first page for itself, whatever the map says.
    for low, high in different:
        if (low, high) != (0, PAGE_SIZE):
            if asked.covers(low, high):
                who, remedy = (
                    "the machine",
                    "take it out of the map, as Linux does (6.12 from 0x80000 on)",
                )
            else:
                who, remedy = "dom0", "take a kernel with CONFIG_XEN_DOM0, or add it to the map"
            raise InputError(f"only {who} has RAM at {low:#x}-{high:#x}: {remedy}")
    if not recording.mappings:
        raise InputError("the recording does not say which ranges were mapped: record it again")
    made = {pfn: (level, base) for level, pfn, base in recording.tables}
    first, top = (at >> PAGE_SHIFT for at in recording.image[2:4])
    steps, tables = [], []
    ends = [*(one.calls for one in recording.mappings[1:]), len(recording.calls)]
    for mapping, end in zip(recording.mappings, ends, strict=True):
        attached = {
            call.target
            for call in recording.calls[mapping.calls : end]
            if call.level > 1 and call.target in made
        }
        # The kernel's walk: ascending, parents before children.
        pages = sorted(attached, key=lambda pfn: (made[pfn][1], -made[pfn][0]))
        low, high = (align_down(at, PAGE_SIZE) for at in (mapping.start, mapping.end))
        steps.append(
            RecordedStep(low, high, (Piece(low, high, 1),), tuple(_runs(pages, first, top)))
        )
        tables += [(made[pfn][0], pfn, made[pfn][1]) for pfn in pages]
    return RecordedBoot(
        release=recording.release,
        machine=found,
        steps=tuple(steps),
        tables=tuple(tables),
        panic=recording.panic,
    )


def _runs(pages: Iterable[int], first: int, top: int) -> Iterator[TablePages]:
    for pfn in pages:
        source = Source.BRK if first <= pfn < top else Source.MEMBLOCK
        yield TablePages(PageRun(pfn, 1), source)


@attrs.frozen(eq=False)
class Charges:
    """The requests of one boot that no operation has been charged with yet.

    ``flips`` and ``pins`` are by page, ``entries`` by the level of the table that they are stored
    in; ``rest`` is what neither changes an entry of the direct map nor a page's status.
    """

    flips: dict[int, list[Request]]
    pins: dict[int, list[Request]]
    entries: dict[int, list[Request]]
    rest: list[Request]
    cleared: Mapping[int, int]
    _shared: frozenset[int]
    _told: set[int] = attrs.field(factory=set)

    @classmethod
    def of(cls, recording: Dom0Recording) -> Charges:
        """Return all that was asked in ``init_mem_mapping``; empty entries are only counted."""
        inside = recording.calls[recording.begin :]
        ram = machine_of(recording).memory_map.ram_pages()
        bases = {pfn: base for level, pfn, base in recording.tables if level == 1}
        flips, pins, entries = (defaultdict[int, list[Request]](list) for _ in range(3))
        rest: list[Request] = []
        cleared: Counter[int] = Counter()
        for call in inside:
            base = bases.get(call.pfn) if call.kind is Kind.MMU_UPDATE else None
            # RAM that waits for its frames is mapped by empty entries.
            maps = base is not None and base + call.index * PAGE_SIZE in ram
            if call.clears and not maps:
                cleared[call.level] += 1
            elif call.kind is Kind.MMU_UPDATE:
                entries[call.level].append(call)
            elif call.kind is Kind.UPDATE_VA_MAPPING and not call.flags & RW:
                flips[call.target].append(call)
            elif call.command.startswith("PIN_"):
                pins[call.pfn].append(call)
            else:
                rest.append(call)
        hypercalls = Counter(call.hypercall for call in inside)
        shared = frozenset(number for number, members in hypercalls.items() if members > 1)
        return cls(flips, pins, entries, rest, cleared, shared)

    def made_readonly(self, tables: Batch) -> Cost:
        """What taking write access from a batch's pages took."""
        return self._cost(self._of_pages(self.flips, tables))

    def pinned(self, tables: Batch) -> Cost:
        """What the pins of a batch's pages took."""
        calls = self._of_pages(self.pins, tables)
        levels = Counter(int(call.command[len("PIN_L")]) for call in calls)
        return self._cost(calls, pinned=levels)

    def written(self, write: EntryWrite) -> Cost:
        """What of some entries went through the hypervisor; what did not was stored."""
        waiting = self.entries.get(write.level, [])
        calls, waiting[:] = waiting[: write.count], waiting[write.count :]
        if calls:
            return self._cost(calls, way=Way.HYPERCALL)
        trapped = write.kind is EntryKind.LEAF and write.live
        return Cost(way=Way.EMULATED if trapped else Way.DIRECT)

    def at_the_end(self) -> Cost:
        """All that is left."""
        calls = list(self.rest)
        self.rest.clear()
        for kept in (self.flips, self.pins, self.entries):
            calls += [call for asked in kept.values() for call in asked]
            kept.clear()
        flushes = sum(call.command in {"NEW_BASEPTR", *FLUSHES.values()} for call in calls)
        return self._cost(calls, flushes=flushes)

    def _of_pages(self, asked: dict[int, list[Request]], tables: Batch) -> list[Request]:
        pages = (pfn for run in tables.runs for pfn in range(run.low, run.high))
        return [call for pfn in pages for call in asked.pop(pfn, ())]

    def _cost(
        self,
        calls: list[Request],
        *,
        pinned: Mapping[int, int] | None = None,
        way: Way = Way.DIRECT,
        flushes: int = 0,
    ) -> Cost:
        shared = {call.hypercall for call in calls} & self._shared - self._told
        self._told.update(shared)
        return Cost(
            hypercalls=Counter(call.kind.value for call in calls),
            batches=len(shared),
            pinned=pinned or {},
            way=way,
            flushes=flushes,
        )
