"""What backends answer: what an operation costs, or that the platform refuses it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import attrs

from paravirt_mm.machine.model import sealed


class Way(StrEnum):
    """How entries get into a table."""

    DIRECT = "direct"
    """A plain store to ordinary memory."""
    HYPERCALL = "hypercall"
    """A call into the hypervisor for each entry."""
    EMULATED = "emulated"
    """A plain store that traps and that the hypervisor carries out."""


@attrs.frozen
class Cost:
    """What an operation took.

    hypercalls
        Calls into the hypervisor by kind, as single operations: {"mmu_update": 512}.
    batches
        How many multicalls carried them (0: none was used).
    pinned
        Tables that the operation pinned, by level.
    way
        For entries: how they got in.
    flushes
        TLB flushes, CR3 loads included.
    """

    hypercalls: Mapping[str, int] = attrs.field(default={}, converter=sealed)
    batches: int = 0
    pinned: Mapping[int, int] = attrs.field(default={}, converter=sealed)
    way: Way = Way.DIRECT
    flushes: int = 0


@attrs.frozen
class Refusal:
    """The platform says no: ``operation`` in its own words, ``code`` a negative errno."""

    operation: str
    code: int


class EntryKind(StrEnum):
    """What entries point to."""

    LEAF = "leaf"
    TABLE = "table"


LEAF, TABLE = EntryKind.LEAF, EntryKind.TABLE
"""For what compares kinds at every event: to look a member up in its class costs as much as calling
a function there (Python 3.11; later ones do not ask the class of the class).
"""


@attrs.frozen
class EntryWrite:
    """``count`` entries of one kind that are written into tables of ``level``.

    ``live`` tells whether the tables are part of a tree that has been handed over (or that exists
    since boot); entries of other tables are stores to ordinary memory. ``readonly_children`` tells
    whether every page that a table entry refers to is read-only.
    """

    level: int
    kind: EntryKind
    count: int
    live: bool
    readonly_children: bool = True
