"""The hypercalls of PV paging, with Xen's return codes: the model as its users see it.

`Hypervisor` is the whole model: one guest, what it may call, and what can be read of its state.
Hypercalls that carry several requests stop at the first one refused and say how many were done
before it; those stay done (Xen: ``do_mmu_update``, ``do_mmuext_op``, ``do_update_va_mapping``,
``new_guest_cr3`` in ``arch/x86/mm.c``).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from enum import IntEnum
from typing import Final

from attrs import frozen

from paravirt_mm_xen.mmu import access
from paravirt_mm_xen.mmu.boot import (
    BootMapping,
    LargeMapping,
    build_tables,
    write_large,
)
from paravirt_mm_xen.mmu.codes import EACCES, EINVAL, ENOSYS, EOPNOTSUPP, OK
from paravirt_mm_xen.mmu.entries import M2P_SLOT, PAGE_SHIFT, PAGE_SIZE, PV64, RO_M2P, PvMode
from paravirt_mm_xen.mmu.frames import (
    L1,
    L4,
    PINNED,
    TYPE,
    VALIDATED,
    Assist,
    Counters,
    Domain,
    Frame,
)
from paravirt_mm_xen.mmu.releases import RECORDED, Release
from paravirt_mm_xen.mmu.updates import mod_directory_entry, mod_l1_entry, read_entry, write_entry
from paravirt_mm_xen.mmu.validation import (
    defer_put,
    finish_pending,
    get_table_type,
    get_writable_type,
    put_table_type,
    put_writable_type,
)

NORMAL_UPDATE: Final = 0
MACHPHYS_UPDATE: Final = 1
PRESERVE_AD: Final = 2
NO_TRANSLATE: Final = 3
"""Commands of ``mmu_update``, in the low bits of the address of the entry."""

_COMMAND: Final = 7
_OFFSET: Final = PAGE_SIZE - 1
_LDT_ENTRIES: Final = 8192


class Command(IntEnum):
    """Commands of ``mmuext_op`` (public ``xen.h``, ``MMUEXT_*``)."""

    PIN_L1_TABLE = 0
    PIN_L2_TABLE = 1
    PIN_L3_TABLE = 2
    PIN_L4_TABLE = 3
    UNPIN_TABLE = 4
    NEW_BASEPTR = 5
    TLB_FLUSH_LOCAL = 6
    INVLPG_LOCAL = 7
    TLB_FLUSH_MULTI = 8
    INVLPG_MULTI = 9
    TLB_FLUSH_ALL = 10
    INVLPG_ALL = 11
    FLUSH_CACHE = 12
    SET_LDT = 13
    NEW_USER_BASEPTR = 15
    CLEAR_PAGE = 16
    COPY_PAGE = 17
    FLUSH_CACHE_GLOBAL = 18
    MARK_SUPER = 19
    UNMARK_SUPER = 20


_ASSISTS: Final = frozenset(map(int, Assist))
_UNPIN: Final = int(Command.UNPIN_TABLE)


@frozen
class Completion:
    """Outcome of a hypercall with several requests."""

    code: int
    """Of the request at which it stopped; 0 when all were done."""
    done: int
    """Requests carried out, from the first on."""


@frozen
class MmuUpdate:
    """A call of ``mmu_update`` inside a multicall: (machine address | command, value) pairs."""

    updates: Sequence[tuple[int, int]]


@frozen
class MmuextOp:
    """A call of ``mmuext_op`` inside a multicall: commands, each with the arguments it has."""

    operations: Sequence[tuple[int, ...]]


@frozen
class UpdateVaMapping:
    """A call of ``update_va_mapping`` inside a multicall."""

    va: int
    value: int


class Hypervisor:
    """Xen as one PV guest with one virtual CPU sees it, as far as its page tables go.

    frames
        Machine frames of the guest (mfns).  All are untyped and zeroed at first.
    mode
        `entries.PV64`, or `entries.PV32_PAE` (not verified on a real hypervisor).
    release
        What differs by hypervisor build; see `releases`.
    privileged
        The guest has access to devices, like dom0: it may choose memory types in L1 entries, map
        the frames of `mmio`, and flush caches.
    foreign
        Frames that exist and are not this guest's.  Frames in none of `frames`, `foreign` and
        `mmio` do not exist, or may not be mapped by this guest.
    read_only_mmio
        Frames of `mmio` that nobody may map writable: Xen takes RW out of such an entry, and drops
        what dom0 stores there.
    special
        Frames of the guest that the hypervisor shares with it (``shared_info``, grant tables): a
        memory type other than the default is refused.
    linear_tables
        Xen's command line option ``pv-linear-pt``.
    nx
        The CPU knows no-execute.  Without it entries with that bit are refused.
    l1tf_safe
        Address (bytes) from which on an absent entry cannot name memory that the CPU's L1 cache
        holds; None: the guest is not checked for that (Xen's option ``pv-l1tf``: dom0 is not,
        others are on CPUs with L1TF).  A `DomainCrashedError` of any method ends the guest.

    Nothing is mapped and no base pointer is set until `boot`, or until the guest's tables were
    built through hypercalls.
    """

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
        self._domain = Domain(
            frames,
            mode=mode,
            release=release,
            privileged=privileged,
            foreign=foreign,
            mmio=mmio,
            read_only_mmio=read_only_mmio,
            special=special,
            linear_tables=linear_tables,
            nx=nx,
            l1tf_safe=l1tf_safe,
        )

    def boot(
        self,
        mappings: Iterable[BootMapping],
        table_frames: Iterable[int],
        large: Iterable[LargeMapping] = (),
    ) -> int:
        """Do what the domain builder does: build tables for `mappings`, pin the root, load it.

        Tables are taken from `table_frames` as needed; pages of `mappings` that became tables are
        mapped read-only.  `large` are pages of 2 MiB and 1 GiB, which no guest may map: dom0's p2m
        list has them.  Returns the frame of the root table.  Counters stay at 0.

        Raises ValueError when table frames run out, are not the guest's, or a mapping cannot be
        validated.
        """
        root, entries = build_tables(self._domain, mappings, table_frames, large)
        for code in (self.pin(self._domain.mode.root, root), self.new_baseptr(root)):
            if code != OK:
                raise ValueError(f"the boot tables are refused with code {code}")
        write_large(self._domain, entries)
        self._domain.counters.reset()
        return root

    def fork(self) -> Hypervisor:
        """An independent copy in the same state, counters at 0."""
        twin = Hypervisor.__new__(Hypervisor)
        twin._domain = self._domain.fork()
        return twin

    # --- what can be read -------------------------------------------------------------------------

    @property
    def counters(self) -> Counters:
        """What happened since the start, or since the last ``reset``."""
        return self._domain.counters

    @property
    def mode(self) -> PvMode:
        """The rules in force."""
        return self._domain.mode

    @property
    def release(self) -> Release:
        """The hypervisor build modelled."""
        return self._domain.release

    @property
    def baseptr(self) -> int | None:
        """Frame of the root table loaded for the guest's kernel."""
        return self._domain.cr3

    @property
    def user_baseptr(self) -> int | None:
        """Frame of the root table loaded for the guest's user space."""
        return self._domain.user_cr3

    def frame(self, mfn: int) -> Frame:
        """State of a frame.  Raises KeyError when it is not the guest's."""
        return self._domain.frame(mfn)

    def frames(self) -> Iterable[Frame]:
        """State of all frames, by mfn."""
        return map(self._domain.frame, sorted(self._domain.type_info))

    def entry(self, mfn: int, index: int) -> int:
        """The 8 bytes at `index` (0..511) of frame `mfn`, as Xen's own mappings show them."""
        return read_entry(self._domain, mfn, index)

    def page_type(self, mfn: int) -> int:
        """As ``XEN_DOMCTL_getpageframeinfo3``: 0 no table, 1..4 level, + 8 pinned, 15 no frame."""
        info = self._domain.type_info.get(mfn)
        if info is None or mfn in self._domain.special:
            return 15
        level = info & TYPE if info & TYPE <= L4 else 0
        if info & PINNED:
            return level + 8
        told = info & VALIDATED or self._domain.release.names_former_type
        return level if told else 0

    # --- the guest's own loads and stores ---------------------------------------------------------

    def load(self, va: int) -> tuple[int, int]:
        """Load 8 bytes at the virtual address `va`: (0, value), or (fault, 0).  See `access`."""
        return access.load(self._domain, va)

    def store(self, va: int, value: int, size: int = 8) -> int:
        """Store at the virtual address `va`: 0, or the fault.  See `access`."""
        return access.store(self._domain, va, value, size)

    # --- mmu_update -------------------------------------------------------------------------------

    def mmu_update(self, ptr: int, value: int) -> int:
        """Write one entry.  `ptr` is its machine address (bytes), plus a command in bits 0..2."""
        d = self._domain
        d.counters.mmu_update += 1
        code = self._update(ptr, value)
        finish_pending(d)
        return code

    def mmu_update_batch(self, updates: Sequence[tuple[int, int]]) -> Completion:
        """Write several entries in one hypercall; (ptr, value) pairs as for `mmu_update`."""
        d = self._domain
        d.counters.mmu_update += 1
        self._count_batch(len(updates))
        for done, (ptr, value) in enumerate(updates):
            code = self._update(ptr, value)
            finish_pending(d)
            if code:
                return Completion(code, done)
        return Completion(OK, len(updates))

    def _update(self, ptr: int, value: int) -> int:
        d = self._domain
        d.counters.mmu_update_entries += 1
        command = ptr & _COMMAND
        if command > NO_TRANSLATE:
            return ENOSYS
        mfn = ptr >> PAGE_SHIFT
        info = d.type_info.get(mfn)
        if info is None:
            return EINVAL
        if command == MACHPHYS_UPDATE:
            return OK  # `value` goes to the M2P table, which has no part in typing
        index = (ptr & _OFFSET) >> 3
        level = info & TYPE
        if level <= L4 and info & VALIDATED:
            if level == L1:
                return mod_l1_entry(d, mfn, index, value, command == PRESERVE_AD)
            return mod_directory_entry(d, level, mfn, index, value, command == PRESERVE_AD)
        if not self._may_write(mfn):
            return EINVAL
        write_entry(d, mfn, index, value)
        return OK

    def _may_write(self, mfn: int) -> bool:
        """Whether a frame is data.  An unused one becomes it, and keeps that type at count 0."""
        if not get_writable_type(self._domain, mfn):
            return False
        put_writable_type(self._domain, mfn)
        return True

    # --- update_va_mapping ------------------------------------------------------------------------

    def update_va_mapping(self, va: int, value: int) -> int:
        """Write the L1 entry that maps `va`.  EINVAL when there is no L1 for it, or it is Xen's."""
        d = self._domain
        d.counters.update_va_mapping += 1
        found = access.l1_table_of(d, va)
        if found is None:
            return EINVAL
        table = found[0]
        info = d.type_info.get(table, 0)
        if info & (TYPE | VALIDATED) != L1 | VALIDATED:
            return EINVAL
        return mod_l1_entry(d, table, va >> PAGE_SHIFT & 511, value, False)

    # --- mmuext_op --------------------------------------------------------------------------------

    def pin(self, level: int, mfn: int) -> int:
        """``MMUEXT_PIN_L<level>_TABLE``: validate `mfn` as a table of `level` 1..4 and keep it."""
        if level not in (1, 2, 3, 4):
            raise ValueError(f"there is no command that pins at level {level}")
        return self.mmuext_op(level - 1, mfn)

    def unpin(self, mfn: int) -> int:
        """``MMUEXT_UNPIN_TABLE``: drop the pin's reference."""
        return self.mmuext_op(_UNPIN, mfn)

    def new_baseptr(self, mfn: int) -> int:
        """``MMUEXT_NEW_BASEPTR``: load CR3 for the guest's kernel."""
        return self.mmuext_op(Command.NEW_BASEPTR, mfn)

    def new_user_baseptr(self, mfn: int) -> int:
        """``MMUEXT_NEW_USER_BASEPTR``: load CR3 for the guest's user space; frame 0 unloads it."""
        return self.mmuext_op(Command.NEW_USER_BASEPTR, mfn)

    def mmuext_op(self, command: int, arg1: int = 0, arg2: int = 0) -> int:
        """One operation; ``arg1`` is a frame, or an address for ``INVLPG_*`` and ``SET_LDT``."""
        d = self._domain
        d.counters.mmuext_op += 1
        code = self._operate(command, arg1, arg2)
        finish_pending(d)
        return code

    def mmuext_op_batch(self, operations: Sequence[tuple[int, ...]]) -> Completion:
        """Several operations in one hypercall: commands, each with the arguments it has."""
        d = self._domain
        d.counters.mmuext_op += 1
        self._count_batch(len(operations))
        for done, operation in enumerate(operations):
            code = self._operate(*operation)
            finish_pending(d)
            if code:
                return Completion(code, done)
        return Completion(OK, len(operations))

    def _operate(self, command: int, arg1: int = 0, arg2: int = 0) -> int:
        self._domain.counters.mmuext_operations += 1
        operation = _OPERATIONS.get(command)
        return operation(self, arg1, arg2) if operation is not None else ENOSYS

    def _pin(self, level: int, mfn: int) -> int:
        d = self._domain
        if level > d.mode.root:
            return OK  # a level that the mode does not have is ignored
        if mfn not in d.type_info:
            return EINVAL
        code = get_table_type(d, mfn, level)
        if code:
            return code
        info = d.type_info[mfn]
        if info & PINNED:
            # Pins do not nest: the second reference goes again.
            defer_put(d, mfn, None)
            return EINVAL
        d.type_info[mfn] = info | PINNED
        return OK

    def _unpin(self, mfn: int, _: int) -> int:
        d = self._domain
        info = d.type_info.get(mfn, 0)
        if not info & PINNED:
            return EINVAL
        d.type_info[mfn] = info & ~PINNED
        put_table_type(d, mfn)
        return OK

    def _load_kernel_root(self, mfn: int, _: int) -> int:
        d = self._domain
        old = d.cr3
        code = get_table_type(d, mfn, d.mode.root) if mfn in d.type_info else EINVAL
        if code:
            return code
        if d.mode.root == L4 and Assist.M2P_STRICT not in d.assists:
            # Only now: a root for user space does not show the M2P table.
            d.contents[mfn].setdefault(M2P_SLOT, RO_M2P)
        d.cr3 = mfn
        d.walks.clear()
        if old is not None:
            put_table_type(d, old)
        return OK

    def _load_user_root(self, mfn: int, _: int) -> int:
        d = self._domain
        old = d.user_cr3
        if d.mode.root != L4:
            return EINVAL  # 32-bit kernels and processes share one root
        if mfn:
            code = get_table_type(d, mfn, L4) if mfn in d.type_info else EINVAL
            if code:
                return code
            if Assist.M2P_STRICT in d.assists:
                d.contents[mfn].pop(M2P_SLOT, None)
        d.user_cr3 = mfn or None
        if old is not None:
            put_table_type(d, old)
        return OK

    def _clear_page(self, mfn: int, _: int) -> int:
        return self._fill_page(mfn, {})

    def _copy_page(self, mfn: int, source: int) -> int:
        d = self._domain
        if source not in d.type_info:
            return EINVAL
        return self._fill_page(mfn, d.contents.get(source, {}))

    def _fill_page(self, mfn: int, entries: dict[int, int]) -> int:
        """Replace all of a frame that is, or may become, writable."""
        d = self._domain
        if mfn not in d.type_info or not self._may_write(mfn):
            return EINVAL
        d.contents[mfn] = entries.copy()
        return OK

    def _flush_cache(self, _: int, __: int) -> int:
        return OK if self._domain.privileged else EACCES

    def _flush_all_caches(self, _: int, __: int) -> int:
        d = self._domain
        return OK if d.privileged else d.release.flush_all_caches_refusal

    def _set_ldt(self, va: int, entries: int) -> int:
        bad = va % PAGE_SIZE != 0 or va in self._domain.mode.hypervisor_range
        return EINVAL if entries > _LDT_ENTRIES or (entries and bad) else OK

    def _flush_tlb(self, _: int, __: int) -> int:
        return OK  # there is no TLB in the model

    def _superpage(self, _: int, __: int) -> int:
        return EOPNOTSUPP

    # --- vm_assist --------------------------------------------------------------------------------

    def vm_assist(self, assist: int, *, enable: bool = True) -> int:
        """``VMASST_CMD_enable`` or ``_disable`` for a type of `Assist`; EINVAL for another."""
        if assist not in _ASSISTS:
            return EINVAL
        (self._domain.assists.add if enable else self._domain.assists.discard)(assist)
        return OK

    # --- multicall --------------------------------------------------------------------------------

    def multicall(
        self, calls: Sequence[MmuUpdate | MmuextOp | UpdateVaMapping]
    ) -> list[Completion]:
        """Several hypercalls in one entry.  Each has its outcome; a refused one stops no other."""
        counters = self._domain.counters
        counters.multicall += 1
        counters.multicalled += len(calls)
        return [self._call(call) for call in calls]

    def _call(self, call: MmuUpdate | MmuextOp | UpdateVaMapping) -> Completion:
        if isinstance(call, MmuUpdate):
            return self.mmu_update_batch(call.updates)
        if isinstance(call, MmuextOp):
            return self.mmuext_op_batch(call.operations)
        code = self.update_va_mapping(call.va, call.value)
        return Completion(code, 1 if code == OK else 0)

    def _count_batch(self, requests: int) -> None:
        if requests > 1:
            self._domain.counters.batches += 1
            self._domain.counters.batched_entries += requests


def _pin_at(level: int) -> Callable[[Hypervisor, int, int], int]:
    return lambda hypervisor, mfn, _: hypervisor._pin(level, mfn)


_OPERATIONS: Final[dict[int, Callable[[Hypervisor, int, int], int]]] = {
    Command.PIN_L1_TABLE: _pin_at(1),
    Command.PIN_L2_TABLE: _pin_at(2),
    Command.PIN_L3_TABLE: _pin_at(3),
    Command.PIN_L4_TABLE: _pin_at(4),
    Command.UNPIN_TABLE: Hypervisor._unpin,
    Command.NEW_BASEPTR: Hypervisor._load_kernel_root,
    Command.TLB_FLUSH_LOCAL: Hypervisor._flush_tlb,
    Command.INVLPG_LOCAL: Hypervisor._flush_tlb,
    Command.TLB_FLUSH_MULTI: Hypervisor._flush_tlb,
    Command.INVLPG_MULTI: Hypervisor._flush_tlb,
    Command.TLB_FLUSH_ALL: Hypervisor._flush_tlb,
    Command.INVLPG_ALL: Hypervisor._flush_tlb,
    Command.FLUSH_CACHE: Hypervisor._flush_cache,
    Command.SET_LDT: Hypervisor._set_ldt,
    Command.NEW_USER_BASEPTR: Hypervisor._load_user_root,
    Command.CLEAR_PAGE: Hypervisor._clear_page,
    Command.COPY_PAGE: Hypervisor._copy_page,
    Command.FLUSH_CACHE_GLOBAL: Hypervisor._flush_all_caches,
    Command.MARK_SUPER: Hypervisor._superpage,
    Command.UNMARK_SUPER: Hypervisor._superpage,
}
