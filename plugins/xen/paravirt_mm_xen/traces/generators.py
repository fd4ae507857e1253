"""Random traces for comparing the model of Xen's page typing with the real hypervisor.

Each generator makes one trace from a source of random numbers; `generate` streams traces of
several generators in turn. The same seed gives the same traces: trace *n* of a generator depends
on the generator's name, the seed and *n* alone.

What a generator draws from stands in tables at the top, so that it is plain what is tried and how
often; every trace ends with the type of each of its pages, which catches differences that no answer
showed.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import attrs

from paravirt_mm import SpecError
from paravirt_mm_xen.traces.format import ASSISTS, DEVICES, FLUSHES, Operation, OperationTrace

READ_ONLY = 0x65  #: present, user, accessed, dirty
WRITABLE = 0x67

_ENTRY_FLAGS = {
    WRITABLE: 30,
    READ_ONLY: 24,
    0: 14,
    0xE7: 8,  # PSE: a large page at L2 and L3, PAT at L1
    0x167: 2,  # global: Xen has its own view of this bit
    0x63: 3,  # no USER bit: Xen adds it
    0x61: 2,
    0x01: 2,  # present and nothing else
    0xE07: 1,  # bits that are the guest's to use
    0x1F: 1,  # cache attributes
    1 << 63 | WRITABLE: 2,  # no execute
}
_NOT_PRESENT = 0x66  # Xen does not look at the rest of such an entry
_INDEXES = {0: 30, 1: 24, 2: 8, 3: 8, 7: 6, 300: 8, 510: 3, 511: 6, 255: 2, 272: 3}
_DEVICE_FLAGS = {WRITABLE: 6, READ_ONLY: 4, 0x77: 2, 0x7F: 2, 0x6F: 2, 0xE7: 2, 0xEF: 2, 0x75: 1}
_DEVICE_INDEXES = (2, 3, 7)  # none that an address to probe goes through: devices answer anything
_XEN_SLOTS = (256, 257, 258, 261, 271)  # of an L4
_MAPPING_FLAGS = {READ_ONLY: 60, WRITABLE: 36, 0: 1}

_UNIFORM = {
    "update_va_mapping": 28,
    "mmu_update": 22,
    "pin": 18,
    "unpin": 10,
    "write": 9,
    "type": 4,
    "new_baseptr": 3,
    "copy_kernel_slots": 3,
    "read": 3,
    "boot_baseptr": 1,
}
_EXTENSIONS = {
    "store": 6,
    "store_value": 2,
    "update_va": 4,
    "probe": 4,
    "new_user_baseptr": 2,
    "tlb_flush": 1,
    "clear_page": 3,
    "copy_page": 3,
    "mmu_update_device": 5,
    "assist": 1,
    "mmu_update_batch": 8,
    "mmuext_batch": 6,
    "multicall": 6,
}
_MMUEXT_MEMBERS = {"pin": 8, "unpin": 4, "tlb_flush": 2, "new_baseptr": 1}
_MULTICALL_MEMBERS = {"update_va_mapping": 3, "mmu_update": 3, "pin": 2, "unpin": 2, "update_va": 1}

_USES = {"change": 45, "store": 20, "look at": 10, "type": 10, "load": 5, "give up": 10}
"""Of a tree that was handed over."""

_VALUES = (0, 2, 0x1234 << 12, 8)  # none is present

Fields = tuple[Any, ...]
"""What follows the name of an operation."""
TreePlan = dict[int, list[int]]
"""Pages that a trace of `trees` means to be tables, by level."""


@attrs.frozen
class Draw:
    """Random choices for a trace of ``pages`` pages.

    A ``blind`` trace has entries that are not present and yet hold a frame, and therefore reads
    nothing: a read would answer that frame's number, which differs from host to host.
    """

    source: random.Random
    pages: int
    blind: bool

    @classmethod
    def of(cls, source: random.Random, fewest: int, most: int) -> Draw:
        """For a trace of ``fewest..most`` pages; one in six is blind."""
        return cls(source, source.randint(fewest, most), source.random() < 1 / 6)

    def page(self) -> int:
        """Any page."""
        return self.source.randrange(self.pages)

    def weighted(self, weights: dict[int, int]) -> int:
        """A key, as often as its weight says."""
        return self.source.choices(list(weights), list(weights.values()))[0]

    def name(self, weights: dict[str, int]) -> str:
        """A name, as often as its weight says."""
        return self.source.choices(list(weights), list(weights.values()))[0]

    def chance(self, probability: float) -> bool:
        """True with that probability."""
        return self.source.random() < probability

    def index(self) -> int:
        """An entry of a table; now and then a slot that Xen keeps for itself in an L4."""
        if self.chance(0.02):
            return self.source.choice(_XEN_SLOTS)
        return self.weighted(_INDEXES)

    def address(self) -> int:
        """An address that the trace's own tables may map: built from likely indexes."""
        address = 0
        for _ in range(4):
            address = address << 9 | self.source.choice((0, 0, 0, 1, 1, 1, 300))
        address <<= 12
        return address | 0xFFFF << 48 if address >> 47 else address

    def operation(self, name: str) -> Operation:
        """An operation of that name with random fields."""
        if self.blind and name in {"read", "probe"}:
            name = "type"
        fields = _FIELDS.get(name, Draw._page_only)
        return (name, *fields(self))

    def _page_only(self) -> Fields:
        return (self.page(),)

    def _mapping(self) -> Fields:
        """Of ``update_va_mapping``: mostly a page where it lies already."""
        target = self.page()
        at = target if self.chance(0.75) else self.page()
        return (at, target, self.weighted(_MAPPING_FLAGS))

    def _device(self) -> Fields:
        index = self.source.choice(_DEVICE_INDEXES)
        device = self.source.choice(tuple(DEVICES))
        return (self.page(), index, device, self.weighted(_DEVICE_FLAGS))

    def _updates(self) -> Fields:
        return (tuple(self.update() for _ in range(self.source.randint(1, 5))),)

    def update(self) -> tuple[int, int, int, int, bool]:
        """Fields of a ``mmu_update``."""
        flags = self.weighted(_ENTRY_FLAGS)
        if self.blind and self.chance(0.2):
            flags = _NOT_PRESENT
        target = self.page() if flags else 0
        return (self.page(), self.index(), target, flags, self.chance(0.3))

    def members(self, names: dict[str, int]) -> tuple[Operation, ...]:
        """Members of a batch."""
        return tuple(self.operation(self.name(names)) for _ in range(self.source.randint(1, 5)))


_FIELDS: dict[str, Callable[[Draw], Fields]] = {
    "pin": lambda draw: (draw.source.randint(1, 4), draw.page()),
    "update_va_mapping": Draw._mapping,
    "mmu_update": Draw.update,
    "write": lambda draw: draw.update()[:4],
    "store": lambda draw: draw.update()[:4],
    "read": lambda draw: (draw.page(), draw.weighted(_INDEXES)),
    "boot_baseptr": lambda _: (),
    "store_value": lambda draw: (draw.page(), draw.index(), draw.source.choice(_VALUES)),
    "update_va": lambda draw: (draw.address(), draw.page(), draw.weighted(_MAPPING_FLAGS)),
    "probe": lambda draw: (draw.address(), draw.source.choice(("read", "write"))),
    "new_user_baseptr": lambda draw: (None if draw.chance(0.3) else draw.page(),),
    "tlb_flush": lambda draw: (draw.source.choice(tuple(FLUSHES)),),
    "mmu_update_device": Draw._device,
    "assist": lambda draw: (draw.source.choice(tuple(ASSISTS)), draw.chance(0.7)),
    "copy_page": lambda draw: (draw.page(), draw.page()),
    "mmu_update_batch": Draw._updates,
    "mmuext_batch": lambda draw: (draw.members(_MMUEXT_MEMBERS),),
    "multicall": lambda draw: (draw.members(_MULTICALL_MEMBERS),),
}
"""How the fields of an operation are drawn; of any other it is one page."""


def uniform(source: random.Random) -> tuple[int, list[Operation]]:
    """Recorded operations on a few pages, without a plan; half the pages start read-only."""
    draw = Draw.of(source, 4, 12)
    return draw.pages, [*_some_read_only(draw), *_noise(draw, 60, _UNIFORM)]


def extended(source: random.Random) -> tuple[int, list[Operation]]:
    """Batches, multicalls, probes and page copies: without a plan, or on a tree, or through one."""
    names = _UNIFORM | _EXTENSIONS
    kind = source.choice(("no plan", "tree", "walk"))
    if kind == "no plan":
        draw = Draw.of(source, 4, 12)
        return draw.pages, [*_some_read_only(draw), *_noise(draw, 60, names)]
    draw = Draw.of(source, 14, 24)
    steps = _tree(draw) if kind == "tree" else _walk(draw)
    return draw.pages, list(_with_noise(draw, steps, names, 0.4))


def trees(source: random.Random) -> tuple[int, list[Operation]]:
    """Page-table trees of up to four levels: built, pinned, loaded, changed and taken down.

    One operation in eight is noise, so that most trees are nearly right: the interesting refusals
    are deep in a tree. The planned tables are not shielded from the noise.
    """
    draw = Draw.of(source, 14, 24)
    return draw.pages, list(_with_noise(draw, _tree(draw), _UNIFORM, 0.12))


Generator = Callable[[random.Random], tuple[int, list[Operation]]]
"""Makes one trace: its number of pages, and its operations."""

GENERATORS: dict[str, Generator] = {"uniform": uniform, "trees": trees, "extended": extended}

RECORDED_FORMAT = ("uniform", "trees")
"""Generators that keep to the operations of the recorded trace format."""


def generate(names: Sequence[str], seed: int, operations: int) -> Iterator[OperationTrace]:
    """Traces of the named generators in turn, until they have at least that many operations.

    Raises `paravirt_mm.errors.SpecError` for an unknown name.
    """
    unknown = [name for name in names if name not in GENERATORS]
    if unknown or not names:
        known = ", ".join(GENERATORS)
        raise SpecError(f"no generator {', '.join(unknown) or 'named'}; there are {known}")
    return _generate(names, seed, operations)


def _generate(names: Sequence[str], seed: int, operations: int) -> Iterator[OperationTrace]:
    made = 0
    for number in itertools.count():
        for name in names:
            if made >= operations:
                return
            trace = make(name, seed, number)
            made += len(trace.ops)
            yield trace


def make(name: str, seed: int, number: int) -> OperationTrace:
    """Trace ``number`` of one generator. Its name says all that is needed to make it again."""
    title = f"{name}-{seed}-{number}"
    source = random.Random(title)  # noqa: S311 - a string seeds through SHA-512, the same everywhere
    pages, operations = GENERATORS[name](source)
    types = [("type", page) for page in range(pages)]
    return OperationTrace(title, pages, (*operations, *types))


def _some_read_only(draw: Draw) -> list[Operation]:
    share = draw.source.choice((0.0, 0.5, 0.9))
    return [_read_only(page) for page in range(draw.pages) if draw.chance(share)]


def _noise(draw: Draw, count: int, names: dict[str, int]) -> list[Operation]:
    return [draw.operation(draw.name(names)) for _ in range(count)]


def _tree(draw: Draw) -> Iterator[Operation]:
    """The life of a tree, without noise; at most 13 pages are meant to be tables."""
    data = list(range(draw.pages))
    draw.source.shuffle(data)
    plan: TreePlan = {}
    for level in range(draw.source.randint(2, 4), 0, -1):
        count = draw.source.randint(1, 3 if level > 1 else 4)
        plan[level] = [data.pop() for _ in range(count)]
    yield from _fill(draw, plan, data)
    yield from _hand_over(draw, plan)
    yield from _use(draw, plan, data)
    yield from _take_down(draw, plan)


def _walk(draw: Draw) -> Iterator[Operation]:
    """A complete tree, loaded, and looked at and changed through the addresses that it maps."""
    l4, l3, l2, l1 = draw.source.sample(range(draw.pages), 4)
    for parent, child in ((l4, l3), (l3, l2), (l2, l1)):
        for index in (0, 1):
            yield ("store", parent, index, child, WRITABLE)
    for index in (0, 1, 300):
        target = draw.page()
        tables = (l4, l3, l2, l1)
        yield ("store", l1, index, target, READ_ONLY if target in tables else WRITABLE)
    yield ("copy_kernel_slots", l4)
    yield from (_read_only(table) for table in (l1, l2, l3, l4))
    yield ("mmuext_batch", (("pin", 4, l4), ("new_baseptr", l4)))
    for _ in range(draw.source.randint(10, 30)):
        yield draw.operation(draw.name({"probe": 3, "update_va": 2, "read": 1, "type": 1}))


def _with_noise(
    draw: Draw, steps: Iterable[Operation], names: dict[str, int], share: float
) -> Iterator[Operation]:
    for step in steps:
        if draw.chance(0.03):
            continue  # forgotten: also a kind of noise
        yield step
        if draw.chance(share):
            yield draw.operation(draw.name(names))


def _read_only(page: int) -> Operation:
    return ("update_va_mapping", page, page, READ_ONLY)


def _writable(page: int) -> Operation:
    return ("update_va_mapping", page, page, WRITABLE)


def _entry(draw: Draw, plan: TreePlan, data: Sequence[int], level: int) -> tuple[int, int]:
    """Target and flags that suit a table of that level."""
    if level > 1 and draw.chance(0.1):  # a linear map of tables, or what looks like one
        return draw.source.choice(plan[level]), READ_ONLY
    if level > 1 and draw.chance(0.04):
        return draw.page(), draw.weighted(_MAPPING_FLAGS)
    if level > 1:
        return draw.source.choice(plan[level - 1]), WRITABLE
    tables = [page for group in plan.values() for page in group]
    if draw.chance(0.25):
        return draw.source.choice(tables), READ_ONLY
    return draw.source.choice(data), draw.source.choice((WRITABLE, WRITABLE, READ_ONLY))


def _fill(draw: Draw, plan: TreePlan, data: Sequence[int]) -> Iterator[Operation]:
    """Entries of tables that are still ordinary pages: stores, or hypercalls as well."""
    for level in sorted(plan):
        for table in plan[level]:
            if level == 4 and draw.chance(0.8):
                yield ("copy_kernel_slots", table)
            for _ in range(draw.source.randint(0, 4)):
                target, flags = _entry(draw, plan, data, level)
                index = draw.weighted(_INDEXES)
                if draw.chance(0.7):
                    yield ("write", table, index, target, flags)
                else:
                    yield ("mmu_update", table, index, target, flags, False)


def _hand_over(draw: Draw, plan: TreePlan) -> Iterator[Operation]:
    """Read-only, then pinned: every level, the leaves only (as Linux does), or the top only."""
    pinned = draw.source.choice((set(plan), {1}, {max(plan)}, {1, max(plan)}))
    for level in sorted(plan):
        for table in plan[level]:
            yield _read_only(table)
    for level in sorted(plan):
        for table in plan[level]:
            if level in pinned:
                yield ("pin", level, table)
    if draw.chance(0.5):
        yield ("new_baseptr", plan[max(plan)][0])


def _use(draw: Draw, plan: TreePlan, data: Sequence[int]) -> Iterator[Operation]:
    """Changes of live tables, looks at them, and attempts to make them writable."""
    for _ in range(draw.source.randint(8, 30)):
        level = draw.source.choice(list(plan))
        table = draw.source.choice(plan[level])
        index = draw.index()
        target, flags = _entry(draw, plan, data, level)
        if draw.chance(0.3):
            target, flags = 0, 0
        match draw.name(_USES):
            case "change":
                yield ("mmu_update", table, index, target, flags, draw.chance(0.3))
            case "store":
                leaf = draw.source.choice(plan[1])
                yield ("write", leaf, index, target, flags)
            case "look at" if not draw.blind:
                yield ("read", table, draw.weighted(_INDEXES))
            case "load":
                yield ("new_baseptr", draw.source.choice(plan[max(plan)]))
            case "give up":
                yield draw.source.choice((_writable(table), _read_only(table), ("unpin", table)))
            case _:
                yield ("type", table)


def _take_down(draw: Draw, plan: TreePlan) -> Iterator[Operation]:
    if draw.chance(0.7):
        yield ("boot_baseptr",)
    for level in sorted(plan, reverse=draw.chance(0.5)):
        for table in plan[level]:
            if draw.chance(0.8):
                yield ("unpin", table)
                yield _writable(table)
