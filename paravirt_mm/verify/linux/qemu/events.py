"""What a kernel does while it builds its direct map, one thing at a time."""

from __future__ import annotations

import enum

import attrs


class EventKind(enum.IntEnum):
    """What happened, and what the numbers of an `Event` then are."""

    STEP = 1
    """``init_memory_mapping(start, end)`` was called."""
    RANGE = 2
    """``kernel_physical_mapping_init(start, end, page size mask)`` was called."""
    ASKED = 3
    """``alloc_low_pages(pages)`` was called."""
    GIVEN = 4
    """It returned the virtual address of the pages."""
    HOOK = 5
    """A paravirt hook that native leaves empty was called with ``(mm, page frame)``."""


@attrs.frozen
class Event:
    """One thing that happened; arguments that it does not have are whatever the registers held."""

    kind: EventKind
    first: int
    second: int = 0
    third: int = 0
