"""hypothesis strategies: machines, sanitised memory maps, and the raw entries that firmware hands
over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from hypothesis import strategies as st

from paravirt_mm.machine.e820 import E820Type, MemoryMap
from paravirt_mm.machine.model import Machine
from paravirt_mm.machine.paging import GIB, MIB, MODES, PAGE_SIZE
from paravirt_mm.sources.generated import any_machine, any_map

T = TypeVar("T")

_KINDS = (E820Type.RAM, E820Type.RESERVED, E820Type.ACPI, E820Type.NVS, E820Type.UNUSABLE)


class _Drawn:
    """Decisions from hypothesis; it shrinks towards the lowest number and the first option."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw

    def integer(self, low: int, high: int) -> int:
        return self._draw(st.integers(low, high))

    def one_of(self, options: Sequence[T]) -> T:
        return self._draw(st.sampled_from(options))


@st.composite
def machines(draw: st.DrawFn, modes: Sequence[str] = tuple(MODES)) -> Machine:
    """Draw a machine of one of the modes (names of `paravirt_mm.MODES`)."""
    mode = MODES[draw(st.sampled_from(modes))]
    return any_machine(_Drawn(draw), mode, "drawn")


@st.composite
def memory_maps(draw: st.DrawFn, modes: Sequence[str] = tuple(MODES)) -> MemoryMap:
    """Draw a sanitised memory map with RAM from 1 MiB to 32 MiB at least."""
    return any_map(_Drawn(draw), MODES[draw(st.sampled_from(modes))], 32 * MIB)


def raw_entries(
    max_size: int = 24, limit: int = 16 * GIB
) -> st.SearchStrategy[list[tuple[int, int, E820Type]]]:
    """Draw ``(start, end, type)`` entries as bad firmware lists them: unsorted, overlapping, empty,
    inverted, unaligned.
    """
    edge = st.one_of(
        st.integers(0, limit),
        st.integers(0, limit // PAGE_SIZE).map(lambda page: page * PAGE_SIZE),
        st.integers(0, 64).map(lambda number: number * MIB),
    )
    return st.lists(st.tuples(edge, edge, st.sampled_from(_KINDS)), max_size=max_size)
