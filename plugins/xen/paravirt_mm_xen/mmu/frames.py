"""The frame table: what Xen knows of every machine frame of a guest, and the guest's state.

Xen keeps one word for each frame, ``type_info``; so does the model, as an ``int`` in a ``dict`` by
mfn, because hundreds of thousands of them are read and written a second:

====================  ======================================================================
bits 0..2             type: none, L1..L4 table, writable
``VALIDATED``         the contents were checked and found fit for the type
``PINNED``            one of the references belongs to a pin
``PARTIAL``           a check of the contents stopped half-way; the one reference belongs to that
``PAE_XEN_L2``        this L2 holds Xen's own mappings (32-bit guests)
``count``             references of the type, in units of ``REFERENCE``
====================  ======================================================================

A type may change only while the count is 0; it is then a remainder of former use.  Xen's second
count, of references of any type, decides when a frame is freed; a guest that only maps its own
frames cannot see it, and the model does not keep it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from copy import copy
from enum import IntEnum
from typing import Final

from attrs import frozen

from paravirt_mm_xen.mmu.entries import CACHE_BITS, MFN_MASK, NX, PV64, XEN_FRAME, PvMode
from paravirt_mm_xen.mmu.releases import RECORDED, Release

NONE: Final = 0
L1, L2, L3, L4 = 1, 2, 3, 4
"""A table's type is its level."""
TYPE: Final = 0b111
WRITABLE: Final = TYPE

VALIDATED: Final = 1 << 3
PINNED: Final = 1 << 4
PARTIAL: Final = 1 << 5
PAE_XEN_L2: Final = 1 << 6
REFERENCE: Final = 1 << 7
COUNT_SHIFT: Final = 7


class Assist(IntEnum):
    """What ``vm_assist`` can turn on for a 64-bit guest (public ``xen.h``, ``VMASST_TYPE_*``)."""

    FOUR_GB_SEGMENTS = 0
    FOUR_GB_SEGMENTS_NOTIFY = 1
    WRITABLE_PAGETABLES = 2
    PAE_EXTENDED_CR3 = 3
    ARCHITECTURAL_IOPL = 4
    RUNSTATE_UPDATE_FLAG = 5
    M2P_STRICT = 32


_NAMES: Final = {NONE: "none", L1: "L1", L2: "L2", L3: "L3", L4: "L4", WRITABLE: "writable"}


@frozen
class Frame:
    """One frame, for readers of the model."""

    mfn: int
    type: str
    """``none``, ``writable``, ``L1`` .. ``L4``.  With a count of 0: the type of its last use."""
    count: int
    pinned: bool
    validated: bool
    partial: bool
    """Validation stopped half-way and has still to be undone or finished."""
    same_level_entries: int
    """Above 0: entries of this table that refer to tables of its own level; below 0: how often
    tables of its own level refer to it.  Never both (entries of itself do not count)."""


class Counters:
    """What happened so far.  All figures only grow; `reset` starts again at 0."""

    __slots__ = (
        "batched_entries",
        "batches",
        "devalidations",
        "emulated_stores",
        "faults",
        "mmu_update",
        "mmu_update_entries",
        "mmuext_op",
        "mmuext_operations",
        "multicall",
        "multicalled",
        "plain_stores",
        "update_va_mapping",
        "validations",
    )

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start again at 0."""
        self.mmu_update = 0
        """Hypercalls, each with one or more entries ..."""
        self.mmu_update_entries = 0
        """... and entries (requests) in all of them, refused ones included."""
        self.update_va_mapping = 0
        self.mmuext_op = 0
        """Hypercalls, each with one or more operations ..."""
        self.mmuext_operations = 0
        """... and operations in all of them."""
        self.batches = 0
        """Hypercalls of either kind that carried more than one."""
        self.batched_entries = 0
        """What these carried."""
        self.multicall = 0
        self.multicalled = 0
        """Calls inside multicalls; they are counted by their own kind too."""
        self.plain_stores = 0
        self.emulated_stores = 0
        self.faults = 0
        """Loads and stores that ended in the guest's page-fault handler."""
        self.validations = [0, 0, 0, 0, 0]
        """Completed, by level (element 0 is unused)."""
        self.devalidations = [0, 0, 0, 0, 0]

    @property
    def hypercalls(self) -> int:
        """Times that the guest entered the hypervisor by a hypercall."""
        calls = self.mmu_update + self.update_va_mapping + self.mmuext_op
        return calls - self.multicalled + self.multicall

    def as_dict(self) -> dict[str, int | list[int]]:
        """All figures by name, for reports."""
        figures = {name: getattr(self, name) for name in self.__slots__}
        return {"hypercalls": self.hypercalls, **figures}


class Domain:
    """State of one guest with one virtual CPU: its frames, their contents, and its base pointers.

    Contents are kept for the entries that are not 0 only: ``contents[mfn][index]``.  A frame that
    is a key of ``type_info`` belongs to the guest.  Any other frame is one of Xen's or of another
    guest's (``foreign``), device memory that the guest may map (``mmio``), or not permitted to it.
    """

    __slots__ = (
        "assists",
        "contents",
        "counters",
        "cr3",
        "foreign",
        "held_slots",
        "l1tf_safe",
        "linear_count",
        "linear_tables",
        "mmio",
        "mode",
        "nx",
        "pending",
        "pending_parent",
        "privileged",
        "read_only_mmio",
        "refused",
        "release",
        "special",
        "type_info",
        "user_cr3",
        "walks",
    )

    def __init__(
        self,
        frames: Iterable[int],
        *,
        mode: PvMode = PV64,
        release: Release = RECORDED,
        privileged: bool = True,
        foreign: Container[int] = (),
        mmio: Sequence[range] = (),
        read_only_mmio: Sequence[range] = (),
        special: Iterable[int] = (),
        linear_tables: bool = True,
        nx: bool = True,
        l1tf_safe: int | None = None,
    ) -> None:
        self.mode = mode
        self.release = release
        self.privileged = privileged
        self.foreign = foreign
        self.mmio = tuple(mmio)
        self.linear_tables = linear_tables
        """Xen's command line option ``pv-linear-pt``."""
        self.read_only_mmio = tuple(read_only_mmio)
        self.special = frozenset(special)
        self.nx = nx
        self.l1tf_safe = l1tf_safe
        self.assists: set[int] = set()
        """What the guest asked for: numbers of `Assist`."""
        unknown = 0 if nx else NX
        self.refused = {level: bits | unknown for level, bits in mode.refused.items()}
        """Bits refused by level: guests with device access may choose memory types."""
        if privileged:
            self.refused[L1] &= ~CACHE_BITS

        self.type_info: dict[int, int] = dict.fromkeys(frames, NONE)
        if any(not 0 <= mfn <= MFN_MASK for mfn in self.type_info):
            raise ValueError(f"a machine frame number must be in 0..{MFN_MASK:#x}")
        # Shared by the hypervisor, which keeps a writable reference of its own.
        self.type_info.update(dict.fromkeys(self.special, REFERENCE | VALIDATED | WRITABLE))
        self.contents: dict[int, dict[int, int]] = {}

        # Of half-checked tables (PARTIAL): the first slot that holds no reference.
        self.held_slots: dict[int, int] = {}
        self.linear_count: dict[int, int] = {}

        self.cr3: int | None = None
        self.user_cr3: int | None = None
        # Results of page walks by address >> 21 (see `access.l1_table_of`): emptied whenever an
        # entry above L1 or the base pointer changes, as Xen then flushes the CPU's own.
        self.walks: dict[int, tuple[int, bool]] = {}
        # The one table whose reference is dropped before the hypercall returns (Xen:
        # ``old_guest_table``), and the table whose entry held it, if one did.
        self.pending: int | None = None
        self.pending_parent: int | None = None
        self.counters = Counters()

    def frame(self, mfn: int) -> Frame:
        """What Xen knows of frame `mfn`.  Raises KeyError when it is not the guest's."""
        info = self.type_info[mfn]
        return Frame(
            mfn=mfn,
            type=_NAMES[info & TYPE],
            count=info >> COUNT_SHIFT,
            pinned=bool(info & PINNED),
            validated=bool(info & VALIDATED),
            partial=bool(info & PARTIAL),
            same_level_entries=self.linear_count.get(mfn, 0),
        )

    def is_foreign(self, mfn: int) -> bool:
        """Whether `mfn` exists and is Xen's or another guest's."""
        return mfn == XEN_FRAME or mfn in self.foreign

    def may_map_device(self, mfn: int) -> bool:
        """Whether `mfn` is device memory that the guest has access to."""
        return any(mfn in frames for frames in self.mmio)

    def is_read_only_device(self, mfn: int) -> bool:
        """Whether `mfn` is device memory that nobody may map writable: interrupt controllers, MSI-X
        tables (Xen: ``mmio_ro_ranges``)."""
        return any(mfn in frames for frames in self.read_only_mmio)

    def fork(self) -> Domain:
        """An independent copy, counters at 0."""
        twin = copy(self)
        twin.type_info = self.type_info.copy()
        twin.contents = {mfn: entries.copy() for mfn, entries in self.contents.items()}
        twin.held_slots = self.held_slots.copy()
        twin.linear_count = self.linear_count.copy()
        twin.walks = {}
        twin.assists = self.assists.copy()
        twin.counters = Counters()
        return twin
