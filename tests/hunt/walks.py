"""Every way to decide, and machines to decide about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from paravirt_mm import E820Type, KernelImage, Machine, MemoryMap
from paravirt_mm.errors import InputError
from paravirt_mm.machine.paging import MIB
from paravirt_mm.machine.ranges import RangeSet

T = TypeVar("T")
PAGE = 4096
RAM, RESERVED = E820Type.RAM, E820Type.RESERVED


class Walk:
    """Decisions along a path, and what else each could have been; equal options are one."""

    def __init__(self, path: Sequence[int]) -> None:
        self.path, self.widths = list(path), []

    def _pick(self, options: Sequence[T]) -> T:
        place = len(self.widths)
        self.widths.append(len(options))
        if place == len(self.path):
            self.path.append(0)
        return options[self.path[place]]

    def one_of(self, options: Sequence[T]) -> T:
        return self._pick(list(dict.fromkeys(options)))

    def integer(self, low: int, high: int) -> int:
        return self._pick(sorted({low, (low + high) // 2, high}))


def every(make: Callable[[Walk], T], most: int = 20_000) -> Iterator[T]:
    """Yield what comes of each way to decide."""
    path: list[int] = []
    for _ in range(most):
        walk = Walk(path)
        with suppress(InputError):  # no RAM would be left: `changed` passes over it
            yield make(walk)
        path = walk.path
        while path and path[-1] + 1 == walk.widths[len(path) - 1]:
            path.pop()
        if not path:
            return
        path[-1] += 1
    raise AssertionError("too many ways")


KERNEL = KernelImage(16 * MIB, 20 * MIB, 20 * MIB, 20 * MIB + 64 * PAGE)
END = 20 * MIB + 64 * PAGE


def machine(*entries: tuple[int, int, E820Type], **given: Any) -> Machine:
    spans = entries or ((0, 0x9F000, RAM), (MIB, 128 * MIB, RAM))
    return Machine("m", MemoryMap.sanitise(spans), **{"kernel": KERNEL, **given})


def ram(one: Machine) -> RangeSet:
    return RangeSet(one.memory_map.ram())


def less(one: Machine, other: Machine) -> list[tuple[int, int]]:
    """RAM that only the first has."""
    return list(ram(one).difference(ram(other)))


def taken(one: Machine) -> RangeSet:
    return RangeSet(one.reserved)
