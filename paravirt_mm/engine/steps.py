"""The steps of an allocator: what ``pvmm_map_steps`` yields, and what it gets back."""

from __future__ import annotations

from enum import StrEnum

import attrs

from paravirt_mm.engine.split import Piece
from paravirt_mm.frozen import frozen


class HandOver(StrEnum):
    """When the tables that a `Map` step makes are handed over and attached to the tree."""

    EACH = "each"
    """Every table as soon as it is filled, children first, and attached at once: what Linux does.
    """
    LATER = "later"
    """Not by this step: they wait, unattached, for `HandOverTables` and `AttachTables`."""


EACH, LATER = HandOver.EACH, HandOver.LATER
"""As `paravirt_mm.engine.answers.LEAF`."""


class Promote(StrEnum):
    """Whether small pieces may use large pages where the whole large page around them is RAM."""

    NEVER = "never"
    BEFORE_MERGE = "before equal neighbours are merged"
    AFTER_MERGE = "after equal neighbours were merged"
    """Promoted neighbours then stay apart: Linux 3.9."""


@frozen
class Map:
    """Map physical bytes ``[start, end)``, one call of the kernel's init_memory_mapping.

    tables_from
        ``(low, high)`` bytes: where the allocator wants to look for table pages. Only the allocator
        reads it, in `pvmm_allocate_tables`.
    use_brk
        Whether brk pages may serve; only the allocator reads it.
    faults_in
        Whether the kernel maps by itself, at the first touch, a table page that is not mapped yet.
        No platform that types pages lets it.
    reserve
        Ask `pvmm_reserve_tables` before this range is mapped and `pvmm_release_tables` after it.
    promote
        Whether, and when, small pieces are promoted to large pages.
    pieces
        The pieces, by page size, where they are known; none: the range is split as kernels do.
    skip_empty_level
        Leave entries of this level empty where the firmware map has no entry of any type (0:
        never).
    """

    start: int
    end: int
    label: str = ""
    tables_from: tuple[int, int] = (0, 0)
    use_brk: bool = True
    faults_in: bool = False
    reserve: bool = False
    promote: Promote = Promote.NEVER
    skip_empty_level: int = 0
    hand_over: HandOver = HandOver.EACH
    pieces: tuple[Piece, ...] = ()


@attrs.frozen
class NewRoot:
    """Start a new tree: the root table is allocated like any other; the boot tree stays in CR3."""

    label: str = "new root"


@attrs.frozen
class HandOverTables:
    """Call the backend's hooks on every table that waits for it."""

    label: str = "hand over"


@attrs.frozen
class AttachTables:
    """Write the entries that attach every waiting table to the tree."""

    label: str = "attach"


@attrs.frozen
class ActivateRoot:
    """Load CR3 with the root of the tree."""

    label: str = "activate"


Step = Map | NewRoot | HandOverTables | AttachTables | ActivateRoot


@frozen
class StepResult:
    """What a step did: pieces by page size, tables made, end of the last mapping (bytes)."""

    pieces: tuple[Piece, ...] = ()
    tables: int = 0
    mapped_end: int = 0


@frozen
class TableDemand:
    """Tables that one piece needs: ``by_level`` counts, for bytes ``[start, end)``.

    The pages of the answer are dealt out in the order of the kernel's walk: ascending addresses,
    parents before children.
    """

    start: int
    end: int
    by_level: tuple[tuple[int, int], ...]
    count: int = attrs.field(init=False, repr=False, eq=False)
    """How many table pages are needed in all."""

    @count.default
    def _count(self) -> int:
        return sum([count for _, count in self.by_level])
