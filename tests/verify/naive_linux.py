"""A second model of Linux 3.6 and 4.19, as plain as it can be: every entry of every table is one
item of a dictionary, every search starts from scratch, every table is allocated when it is met.

It shares nothing with the package, so that an error in one of them shows as a difference. It is for
x86_64 and small amounts of RAM; addresses may be anything up to 256 TiB.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from random import Random
from typing import Any

PAGE, LARGE, HUGE, ROOT = 1 << 12, 1 << 21, 1 << 30, 1 << 39
SPAN = {1: PAGE, 2: LARGE, 3: HUGE, 4: ROOT}
ISA = 1 << 20
NAME = {1: "4k", 2: "2M", 3: "1G"}

Table = dict[int, Any]
"""Index to ("page", address) or ("table", pfn, Table)."""


class Panic(Exception):
    pass


def up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def down(value: int, unit: int) -> int:
    return value // unit * unit


def join(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    result: list[tuple[int, int]] = []
    for low, high in sorted(r for r in ranges if r[0] < r[1]):
        if result and low <= result[-1][1]:
            result[-1] = result[-1][0], max(high, result[-1][1])
        else:
            result.append((low, high))
    return result


class Kernel:
    """What both kernels share: memblock, the walk, and the record."""

    def __init__(self, machine: dict[str, Any]) -> None:
        self.machine = machine
        self.known = [(low, high) for low, high, _ in machine["e820"]]
        self.ram = join([(low, high) for low, high, kind in machine["e820"] if kind == 1])
        self.memory = [(up(a, PAGE), down(b, PAGE)) for a, b in self.ram]
        self.memory = [(a, b) for a, b in self.memory if a < b]
        self.reserved = join([(a, b) for a, b in machine["reserved"]])
        self.root: Table = {}
        self.steps: list[dict[str, Any]] = []
        self.hooks: list[tuple[int, int]] = []
        self.record: dict[str, Any] = {"panic": None}

    # -- memblock --------------------------------------------------------------------------

    def free(self) -> list[tuple[int, int]]:
        parts = list(self.memory)
        for low, high in self.reserved:
            parts = [
                cut
                for a, b in parts
                for cut in ((a, min(b, low)), (max(a, high), b))
                if cut[0] < cut[1]
            ]
        return sorted(parts)

    def find(self, low: int, high: int, size: int, unit: int) -> int | None:
        low = max(low, PAGE)
        for a, b in reversed(self.free()):
            a, b = max(a, low), min(b, max(high, low))
            if b < size:
                continue
            place = down(b - size, unit)
            if place >= a and place + size <= b:
                return place
        return None

    def take(self, low: int, high: int) -> None:
        self.reserved = join([*self.reserved, (low, high)])

    def is_ram(self, low: int, high: int) -> bool:
        return any(a <= low and high <= b for a, b in self.memory)

    # -- the walk --------------------------------------------------------------------------

    def allocate(self) -> int:
        raise NotImplementedError

    def skip(self, level: int, low: int, high: int) -> bool:
        """Whether an entry is emptied and passed over."""
        return False

    def clear_rest(self, table: Table, level: int, index: int, address: int) -> None:
        """What is done to the entries behind the end of the range."""

    def fill(self, table: Table, level: int, address: int, end: int, largest: int) -> None:
        index = address // SPAN[level] % 512
        while index < 512:
            if address >= end:
                self.clear_rest(table, level, index, address)
                return
            after = down(address, SPAN[level]) + SPAN[level]
            if self.skip(level, address, after):
                table.pop(index, None)
            else:
                self.entry(table, level, index, address, end, largest)
            index, address = index + 1, after

    def entry(
        self, table: Table, level: int, index: int, address: int, end: int, largest: int
    ) -> None:
        old = table.get(index)
        if old and old[0] == "table":
            self.fill(old[2], level - 1, address, end, largest)
        elif level <= largest and level < 4:
            if not old:
                table[index] = ("page", down(address, SPAN[level]))
        else:
            pfn = self.allocate()
            below: Table = {}
            self.fill(below, level - 1, address, end, largest)
            self.hooks.append((level - 1, pfn))
            table[index] = ("table", pfn, below)

    # -- ranges ----------------------------------------------------------------------------

    def pieces(self, start: int, end: int) -> list[list[int]]:
        start, end = down(start, PAGE), down(end, PAGE)
        edges = [start]
        head = min(up(start, LARGE), end)
        edges.append(head)
        first_huge = min(up(head, HUGE), down(end, LARGE))
        edges.append(max(first_huge, head))
        edges.append(max(down(end, HUGE), edges[-1]))
        edges.append(max(down(end, LARGE), edges[-1]))
        edges.append(max(end, edges[-1]))
        sizes = [1, 2, 3, 2, 1]
        limit = 1 if not self.machine["pse"] else 3 if self.machine["gbpages"] else 2
        return [
            [a, b, min(size, limit)]
            for a, b, size in zip(edges, edges[1:], sizes, strict=False)
            if a < b
        ]

    def merge(self, pieces: list[list[int]]) -> list[list[int]]:
        result: list[list[int]] = []
        for piece in pieces:
            if result and result[-1][1] == piece[0] and result[-1][2] == piece[2]:
                result[-1][1] = piece[1]
            else:
                result.append(list(piece))
        return result

    def note(self, start: int, end: int, pieces: list[list[int]]) -> None:
        ranges = [[a, b, NAME[size]] for a, b, size in pieces]
        self.steps.append({"start": start, "end": end, "ranges": ranges})

    # -- the record ------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        try:
            self.boot()
        except Panic as panic:
            self.record["panic"] = str(panic)
        tables = sorted(self.walk(self.root, 4, 0))
        self.record |= {
            "steps": self.steps,
            "reserved_after": [list(part) for part in self.reserved],
            "table_count": {f"L{n}": sum(t[0] == n for t in tables) for n in (1, 2, 3)},
            "tables": [list(table) for table in tables],
            "tables_sha256": digest(f"{a} {b:x} {c:x}" for a, b, c in tables),
            "hook_order": [list(hook) for hook in self.hooks],
            "hook_order_sha256": digest(f"{a} {b:x}" for a, b in self.hooks),
            "leaf_runs": self.leaf_runs(),
        }
        return self.record

    def boot(self) -> None:
        raise NotImplementedError

    def walk(self, table: Table, level: int, base: int) -> Iterator[tuple[int, int, int]]:
        for index, item in table.items():
            if item[0] == "table":
                at = base + index * SPAN[level]
                yield level - 1, item[1], at
                yield from self.walk(item[2], level - 1, at)

    def leaf_runs(self) -> list[list[int]]:
        by_level: dict[int, list[tuple[int, int]]] = {}

        def visit(table: Table, level: int, base: int) -> None:
            for index, item in table.items():
                at = base + index * SPAN[level]
                if item[0] == "page":
                    assert item[1] == at
                    by_level.setdefault(level, []).append((at, at + SPAN[level]))
                else:
                    visit(item[2], level - 1, at)

        visit(self.root, 4, 0)
        return sorted([a, b, level] for level, runs in by_level.items() for a, b in join(runs))


def digest(lines: Iterable[str]) -> str:
    return sha256("\n".join(lines).encode()).hexdigest()


class Linux36(Kernel):
    """Guess, take one block, use it up."""

    def boot(self) -> None:
        self.mapped = self.machine["initial_mapped"]
        self.record["guess"] = []
        calls = [(0, self.machine["max_low_pfn"] * PAGE)]
        if self.machine["max_pfn"] > self.machine["max_low_pfn"]:
            calls.append((1 << 32, self.machine["max_pfn"] * PAGE))
        for start, end in calls:
            pieces = self.merge(self.pieces(start, end))
            self.note(start, end, pieces)
            self.block(end, pieces)
            block = self.record["guess"][-1]
            for a, b, largest in pieces:
                self.fill(self.root, 4, a, b, largest)
            if self.next > block["start"]:
                block["used_end"] = self.next
                self.take(block["start"], self.next)
            self.mapped = end

    def block(self, end: int, pieces: list[list[int]]) -> None:
        pse, gb = self.machine["pse"], self.machine["gbpages"]
        entries = [up(end, HUGE) // HUGE, up(end % HUGE if pse and gb else end, LARGE) // LARGE]
        small = end
        if pse:
            small = end % LARGE
            if pieces and pieces[0][0] < LARGE:
                small += pieces[0][1] - pieces[0][0]
        entries.append(up(small, PAGE) // PAGE)
        size = sum(up(8 * count, PAGE) for count in entries)
        start = self.find(0, self.mapped, size, PAGE)
        if start is None:
            raise Panic("Cannot find space for the kernel page tables")
        self.next, self.top = start, start + size
        self.record["guess"].append({"start": start, "top": start + size, "used_end": None})

    def allocate(self) -> int:
        if self.next >= self.top:
            raise Panic("alloc_low_page: ran out of memory")
        self.next += PAGE
        return self.next // PAGE - 1

    def skip(self, level: int, low: int, high: int) -> bool:
        return level == 3 and not any(a < high and b > low for a, b in self.known)

    def clear_rest(self, table: Table, level: int, index: int, address: int) -> None:
        if level < 3:
            for rest in range(index, 512):
                table.pop(rest, None)


class Linux419(Kernel):
    """From the top down, tables from brk and then from what is mapped."""

    def boot(self) -> None:
        machine = self.machine
        self.record["brk_tables"] = []
        self.brk = machine["brk_start"]
        self.brk_end = self.brk + machine["pgt_buf_pages"] * PAGE
        self.may_use_brk = True
        self.low = self.high = 0
        self.map(0, ISA)
        end = machine["max_pfn"] * PAGE
        place = self.find(ISA, end, LARGE, LARGE)
        top = (place or 0) + LARGE
        step, total, last = LARGE, 0, top
        self.high, self.low = 0, top
        while last > ISA:
            start = max(down(last - 1, step), ISA) if last > step else ISA
            total += self.map_ram(start, last)
            last = self.low = start
            if total >= step:
                step *= 256
        if top < end:
            self.map_ram(top, end)

    def map_ram(self, low: int, high: int) -> int:
        total = 0
        for a, b in self.memory:
            a, b = max(a, low), min(b, high)
            if a < b:
                self.may_use_brk = max(a, self.brk) >= min(b, self.brk_end)
                self.map(a, b)
                self.may_use_brk = True
                total += b - a
        return total

    def map(self, start: int, end: int) -> None:
        pieces = self.pieces(start, end)
        for piece in pieces:
            sizes: list[tuple[int, Callable[[], bool]]] = [
                (2, lambda: bool(self.machine["pse"])),
                (3, lambda: bool(self.machine["pse"] and self.machine["gbpages"])),
            ]
            for size, there in sizes:
                around = down(piece[0], SPAN[size]), up(piece[1], SPAN[size])
                if there() and piece[2] < size and self.is_ram(*around):
                    piece[2] = size
        pieces = self.merge(pieces)
        self.note(start, end, pieces)
        mapped = 0
        for a, b, largest in pieces:
            self.fill(self.root, 4, a, b, largest)
            mapped = up(b, SPAN[largest])
        self.high = max(self.high, mapped)

    def allocate(self) -> int:
        if self.may_use_brk and self.brk < self.brk_end:
            self.record["brk_tables"].append([self.brk, self.brk + PAGE])
            self.brk += PAGE
            return self.brk // PAGE - 1
        place = self.find(self.low, self.high, PAGE, PAGE) if self.low < self.high else None
        if place is None and self.may_use_brk:
            raise Panic("extend_brk: brk is closed (kernel BUG)")
        if place is None:
            raise Panic("alloc_low_pages: can not alloc memory")
        self.take(place, place + PAGE)
        return place // PAGE

    def clear_rest(self, table: Table, level: int, index: int, address: int) -> None:
        for rest in range(index, 512):
            low = down(address, SPAN[level]) + (rest - index) * SPAN[level]
            if rest in table and not any(a < low + SPAN[level] and b > low for a, b in self.ram):
                table.pop(rest)


def record(machine: dict[str, Any]) -> dict[str, Any]:
    """Return the machine with what both kernels do to it, as an oracle file has it."""
    return {
        **machine,
        "linux_3_6": Linux36(machine).run(),
        "linux_4_19": Linux419(machine).run(),
    }


# -- machines of odd shapes -----------------------------------------------------------------------


def odd_machine(number: int) -> dict[str, Any]:
    """Return a machine that no firmware would make, but that a kernel would try to map.

    Hundreds of small pieces, edges inside a page, RAM far apart, little below 1 MiB, nearly nothing
    mapped at boot, one page of brk, reservations that leave hardly a page: panics included.
    """
    random = Random(number)
    kind = random.choice(["small", "pieces", "far", "tight", "high"])
    grain = random.choice([1, 512, PAGE, PAGE, 64 << 10, LARGE])
    pse = random.random() < 0.75
    e820: list[list[int]] = []
    # Without a place for real-mode code below 1 MiB no kernel comes so far.
    if random.random() < 0.8:
        e820.append([random.choice([0, PAGE]), random.choice([0x9FC00, 0x9F000, 0xA0000]), 1])
    else:
        e820.append([random.choice([PAGE, 0x10000, 0x79000]), 0x80000, 1])
    kernel = random.choice([1 << 20, 2 << 20, 16 << 20])
    low_end = kernel + (random.choice([3, 8, 40]) << 20) + random.randrange(0, 4 << 20, grain)
    e820.append([1 << 20, low_end, 1])
    at = low_end
    for _ in range(random.randrange(120 if kind == "pieces" else 4)):
        at += random.choice([0, PAGE, LARGE]) + random.randrange(1, 1 << 20, grain)
        size = random.choice([PAGE, 3 * PAGE, LARGE]) + random.randrange(0, 1 << 19, grain)
        e820.append([at, at + size, random.choice([1, 1, 1, 2, 3])])
        at += size
    at = max(up(at, PAGE), 1 << 32)
    for _ in range(random.randrange(1, 12) if kind in ("far", "high") else random.randrange(2)):
        at += random.choice([0, LARGE, HUGE, ROOT]) * random.randrange(5)
        at += random.randrange(0, LARGE, grain)
        size = random.choice([PAGE, LARGE, 8 << 20]) + random.randrange(0, LARGE, grain)
        if pse and random.random() < 0.3:
            size += HUGE * random.randrange(3)
        if at + size < 1 << 46:
            e820.append([at, at + size, random.choice([1, 1, 1, 2])])
        at += size
    e820 = [[a, b, k] for a, b, k in e820 if a < b]
    ram = join([(a, b) for a, b, k in e820 if k == 1])
    brk_pages = random.choice([1, 2, 5, 6, 12])
    brk = kernel + random.choice([0, 1, 5]) * (1 << 18) + PAGE
    if random.random() < 0.4:
        # Brk that ends with a large page: a step may begin right there.
        brk = up(brk + brk_pages * PAGE, LARGE) - brk_pages * PAGE
    reserved = [(kernel, brk + brk_pages * PAGE)]
    if random.random() < 0.5:
        reserved.append((0, 1 << 16))
    for _ in range(random.randrange(6)):
        a, b = random.choice(ram)
        start = a + random.randrange(0, b - a, min(grain, b - a))
        reserved.append((start, min(b, start + random.randrange(1, 1 << 20))))
    if kind == "tight":
        # A few free pages, at either end of each region: tables may or may not run out.
        for a, b in ram:
            left = random.randrange(30) * PAGE
            start = a + random.choice([0, left])
            reserved.append((start, max(start, b - left)))
    max_pfn = max(b // PAGE for _, b in ram)
    low = [min(b, 1 << 32) // PAGE for a, b in ram if a < 1 << 32]
    return {
        "id": f"odd-{number}",
        "e820": e820,
        "reserved": [list(part) for part in join(reserved)],
        "brk_start": brk,
        "pgt_buf_pages": brk_pages,
        "pse": int(pse),
        "gbpages": int(pse and random.random() < 0.5),
        "max_pfn": max_pfn,
        "max_low_pfn": max(low) if max_pfn > 1 << 20 else max_pfn,
        "initial_mapped": random.choice([512 << 20, 1 << 30, 8 << 20, 1 << 20, 48 << 20]),
    }


def main() -> None:
    """Print odd machines with what both kernels do, a line each: N of them (default: 100)."""
    for number in range(int(sys.argv[1]) if len(sys.argv) > 1 else 100):
        print(json.dumps(record(odd_machine(number))))


if __name__ == "__main__":
    main()
