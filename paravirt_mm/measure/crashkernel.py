"""Where a crash kernel fits when a run has ended: ``crashkernel=N`` and ``crashkernel=N@Y``.

Linux reserves it once the direct map stands (reserve_crashkernel in arch/x86/kernel/setup.c), at a
multiple of 16 MiB, below 896 MiB in old releases and below 4 GiB where nothing else is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import attrs

from paravirt_mm.machine.model import Span
from paravirt_mm.machine.paging import GIB, MIB
from paravirt_mm.machine.ranges import Ranges, align_down, align_up

ALIGNMENT = 16 * MIB
SIZES = (128, 256, 512)
"""The sizes that are asked about, in MiB."""
LIMITS = (("896m", 896 * MIB), ("4g", 4 * GIB))
"""Where it must end, by name."""


@attrs.frozen
class Wanted:
    """A crash kernel that is asked about: ``size`` bytes at ``at``, None: anywhere below 4 GiB."""

    size: int
    at: int | None = None

    @classmethod
    def parse(cls, text: str) -> Wanted:
        """Read what stands behind ``crashkernel=``: 512M, 1G@4G. Raises ValueError."""
        size, behind, at = text.partition("@")
        found = cls(_bytes(size), _bytes(at) if behind else None)
        if not found.size:
            raise ValueError("a crash kernel of no bytes")
        return found

    def places(self, free: Ranges) -> list[Span]:
        """Return first and last Y of each stretch where it fits; none: it does not."""
        if self.at is None:
            return list(places(free, self.size, 4 * GIB))
        return [(self.at, self.at)] if free.covers(self.at, self.at + self.size) else []


def _bytes(text: str) -> int:
    unit = {"K": 10, "M": 20, "G": 30, "T": 40}.get(text[-1:].upper(), 0)
    number = int(text[:-1] if unit else text, 0) << unit
    if not 0 <= number < 1 << 52:
        raise ValueError(f"{text} is no size of memory")
    return number


def places(free: Ranges, size: int, limit: int) -> Iterator[Span]:
    """Yield first and last Y, multiples of 16 MiB, at which ``size`` bytes are free below ``limit``
    (bytes): every ``crashkernel=size@Y`` that works.
    """
    for low, high in free.below(limit):
        first, last = align_up(low, ALIGNMENT), align_down(high - size, ALIGNMENT)
        if first <= last:
            yield first, last


def room(free: Iterable[Span]) -> int:
    """Return the most bytes that are free from a multiple of 16 MiB on: a crash kernel of so many
    fits, and no larger one.
    """
    return max([0, *[high - align_up(low, ALIGNMENT) for low, high in free]])


def largest(free: Ranges, limit: int) -> int:
    """Return the largest N in bytes, a whole MiB, for which ``crashkernel=N`` fits below
    ``limit``; 0: none does.
    """
    return align_down(room(free.below(limit)), MIB)
