"""The guest that does the operations of a trace, in Python on the model (`TraceGuest`).

``guest/`` holds the one that does them on the real hypervisor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, Final

from attrs import frozen

from paravirt_mm import InputError
from paravirt_mm_xen.mmu.boot import BootMapping
from paravirt_mm_xen.mmu.codes import OK
from paravirt_mm_xen.mmu.entries import (
    ACCESSED_DIRTY,
    ENTRIES,
    GLOBAL,
    M2P_SLOT,
    MFN_MASK,
    PAGE_SHIFT,
    PRESENT,
)
from paravirt_mm_xen.mmu.hypercalls import (
    NORMAL_UPDATE,
    PRESERVE_AD,
    Command,
    Completion,
    Hypervisor,
    MmuextOp,
    MmuUpdate,
    UpdateVaMapping,
)
from paravirt_mm_xen.mmu.releases import RECORDED, Release, release_of
from paravirt_mm_xen.traces.format import (
    ASSISTS,
    DEVICES,
    FLUSHES,
    REFUSED_BY_GUEST,
    SHAPES,
    Operation,
    OperationTrace,
    RecordedTrace,
    mentioned_pages,
)


@frozen
class Difference:
    """The first operation of a trace to which model and hypervisor answer differently."""

    recorded: RecordedTrace
    number: int
    """Of the operation, from 0."""
    predicted: int

    @property
    def operation(self) -> Operation:
        """The operation itself."""
        return self.recorded.trace.ops[self.number]

    @property
    def answer(self) -> int:
        """The hypervisor's answer."""
        return self.recorded.answers[self.number]


_KERNEL_SLOT: Final = 511
_KERNEL_SLOT_VA: Final = 0xFFFF_FF80_0000_0000
_BASE_VA: Final = 0xFFFF_FFC0_0000_0000
_TABLES_MFN: Final = 0x1000
_FIRST_MFN: Final = 0x10_0000
_SHARED_INFO: Final = 0xF00
_MMIO: Final = (range(0xA0, 0x100), range(0xFEC00, 0xFEC01))
_READ_ONLY_MMIO: Final = _MMIO[1:]
_OUTSIDE: Final = 0xFFF
"""Stands for a frame that is not one of the trace's pages."""
_NOT_COMPARED: Final = ACCESSED_DIRTY | GLOBAL
_RAW_MFN: Final = MFN_MASK << PAGE_SHIFT


_WHOLE_PAGES: Final = 1024
"""A trace of so many pages is cheap to boot as it is; of more, with those it names only."""


@lru_cache(maxsize=16)
def _booted(pages: int, release: Release) -> Hypervisor:
    """A guest with `pages` pages, to fork."""
    return _boot([range(pages)], release)


def _boot(runs: Sequence[range], release: Release) -> Hypervisor:
    """A guest with these pages, each mapped at its own address."""
    l1 = sum((run[-1] // ENTRIES) - (run[0] // ENTRIES) + 1 for run in runs)
    tables = range(_TABLES_MFN, _TABLES_MFN + 8 + l1)
    frames = (range(_FIRST_MFN + run[0], _FIRST_MFN + run[-1] + 1) for run in runs)
    hypervisor = Hypervisor(
        [*tables, *chain.from_iterable(frames)],
        release=release,
        mmio=_MMIO,
        read_only_mmio=_READ_ONLY_MMIO,
        special=[_SHARED_INFO],
    )
    mappings = [
        BootMapping(_BASE_VA + (run[0] << PAGE_SHIFT), _FIRST_MFN + run[0], len(run))
        for run in runs
    ]
    hypervisor.boot(mappings, tables)
    return hypervisor


def _runs(pages: Iterable[int]) -> list[range]:
    """Numbers as runs of neighbours."""
    runs: list[range] = []
    for page in sorted(pages):
        if runs and runs[-1].stop == page:
            runs[-1] = range(runs[-1].start, page + 1)
        else:
            runs.append(range(page, page + 1))
    return runs


class TraceGuest:
    """A fresh guest in the situation that traces start from, which does the operations of a trace.

    Page `n` is frame ``mfn(n)``, mapped writable at ``va(n)``.  Each method named like an operation
    does it and returns its answer.
    """

    def __init__(
        self, pages: int, release: Release = RECORDED, named: Iterable[int] | None = None
    ) -> None:
        """A guest of `pages` pages, of which only `named` ones are there, if that is given."""
        if named is None:
            # Pages above the trace's own do no harm, and few sizes have to be booted.
            self.hypervisor = _booted(1 << (pages - 1).bit_length(), release).fork()
        else:
            self.hypervisor = _boot(_runs(named) or [range(1)], release)
        self._pages = pages
        self._boot_root = self.hypervisor.baseptr or 0
        self._kernel_entry = self.hypervisor.entry(self._boot_root, _KERNEL_SLOT)
        self._root = self._boot_root

    @staticmethod
    def mfn(page: int) -> int:
        """Frame of a page."""
        return _FIRST_MFN + page

    @staticmethod
    def va(page: int) -> int:
        """Address at which the boot tables map a page."""
        return _BASE_VA + (page << PAGE_SHIFT)

    def answers(self, operations: Sequence[Operation]) -> tuple[int, ...]:
        """Do `operations` one after the other."""
        do = {name: getattr(self, name) for name in SHAPES}
        return tuple([do[operation[0]](*operation[1:]) for operation in operations])

    # Operations of the recorded format.

    def pin(self, level: int, page: int) -> int:
        """``MMUEXT_PIN_L<level>_TABLE``."""
        return self.hypervisor.pin(level, _FIRST_MFN + page)

    def unpin(self, page: int) -> int:
        """``MMUEXT_UNPIN_TABLE``."""
        return self.hypervisor.unpin(_FIRST_MFN + page)

    def update_va_mapping(self, page: int, target: int, flags: int) -> int:
        """Map the address of `page` to frame `target`."""
        va = _BASE_VA + (page << PAGE_SHIFT)
        return self.hypervisor.update_va_mapping(va, _entry(target, flags))

    def mmu_update(self, page: int, index: int, target: int, flags: int, preserve_ad: bool) -> int:
        """Write entry `index` of `page`."""
        if self._is_own_slot(page, index):
            return REFUSED_BY_GUEST
        return self.hypervisor.mmu_update(*_update(page, index, target, flags, preserve_ad))

    def write(self, page: int, index: int, target: int, flags: int) -> int:
        """Store an entry through the address of `page`; never one of the kernel's slot."""
        if index == _KERNEL_SLOT:
            return REFUSED_BY_GUEST
        return self.store(page, index, target, flags)

    def new_baseptr(self, page: int) -> int:
        """Load `page` as root: for the kernel if it maps the kernel, else for user space."""
        if not self._maps_kernel(page):
            return self.hypervisor.new_user_baseptr(_FIRST_MFN + page)
        return self._load(_FIRST_MFN + page)

    def boot_baseptr(self) -> int:
        """Load the boot tables again."""
        return self._load(self._boot_root)

    def copy_kernel_slots(self, page: int) -> int:
        """Store the boot root's guest-owned entries through the address of `page`."""
        return self.store_value(page, _KERNEL_SLOT, self._kernel_entry)

    def type(self, page: int) -> int:
        """``XEN_DOMCTL_getpageframeinfo3``."""
        return self.hypervisor.page_type(_FIRST_MFN + page)

    def read(self, page: int, index: int) -> int:
        """Load an entry through the address of `page`."""
        return self._load_entry(_BASE_VA + (page << PAGE_SHIFT) + (index << 3))

    # Extensions.

    def store(self, page: int, index: int, target: int, flags: int) -> int:
        """Store an entry through the address of `page`."""
        return self.store_value(page, index, _entry(target, flags))

    def store_value(self, page: int, index: int, value: int) -> int:
        """Store 8 bytes through the address of `page`."""
        return self.hypervisor.store(_BASE_VA + (page << PAGE_SHIFT) + (index << 3), value)

    def update_va(self, address: int, target: int, flags: int) -> int:
        """Map any address but the kernel's to frame `target`."""
        if address >= _KERNEL_SLOT_VA:
            return REFUSED_BY_GUEST
        return self.hypervisor.update_va_mapping(address, _entry(target, flags))

    def probe(self, address: int, access: str) -> int:
        """Load from any address but the kernel's; to probe for writing, store the same again."""
        if address >= _KERNEL_SLOT_VA:
            return REFUSED_BY_GUEST
        if access == "read":
            return self._load_entry(address)
        code, value = self.hypervisor.load(address)
        return code or self.hypervisor.store(address, value)

    def new_user_baseptr(self, page: int | None) -> int:
        """``MMUEXT_NEW_USER_BASEPTR``; None unloads it."""
        return self.hypervisor.new_user_baseptr(0 if page is None else _FIRST_MFN + page)

    def tlb_flush(self, kind: str) -> int:
        """A flush, by its name in `FLUSHES`."""
        return self.hypervisor.mmuext_op(FLUSHES[kind])

    def clear_page(self, page: int) -> int:
        """``MMUEXT_CLEAR_PAGE``."""
        return self.hypervisor.mmuext_op(Command.CLEAR_PAGE, _FIRST_MFN + page)

    def copy_page(self, page: int, source: int) -> int:
        """``MMUEXT_COPY_PAGE``."""
        return self.hypervisor.mmuext_op(Command.COPY_PAGE, _FIRST_MFN + page, _FIRST_MFN + source)

    def mmu_update_device(self, page: int, index: int, device: str, flags: int) -> int:
        """Write an entry for a frame of `DEVICES`."""
        if self._is_own_slot(page, index):
            return REFUSED_BY_GUEST
        frame = _SHARED_INFO if device == "shared_info" else DEVICES[device]
        entry = frame << PAGE_SHIFT | flags if flags else 0
        return self.hypervisor.mmu_update((_FIRST_MFN + page << PAGE_SHIFT) + (index << 3), entry)

    def assist(self, name: str, on: bool) -> int:
        """``vm_assist`` for a name of `ASSISTS`."""
        return self.hypervisor.vm_assist(ASSISTS[name], enable=on)

    def mmu_update_batch(self, updates: Sequence[tuple[int, int, int, int, bool]]) -> int:
        """Several entries in one ``mmu_update``."""
        if any(self._is_own_slot(page, index) for page, index, *_ in updates):
            return REFUSED_BY_GUEST
        return _answer(self.hypervisor.mmu_update_batch([_update(*one) for one in updates]))

    def mmuext_batch(self, members: Sequence[Operation]) -> int:
        """Several operations in one ``mmuext_op``."""
        roots = [name == "new_baseptr" and fields[0] for name, *fields in members]
        if any(page is not False and not self._maps_kernel(page) for page in roots):
            return REFUSED_BY_GUEST
        batch = self.hypervisor.mmuext_op_batch([_mmuext(*member) for member in members])
        for page in roots[: batch.done]:
            if page is not False:
                self._root = _FIRST_MFN + page
        return _answer(batch)

    def multicall(self, members: Sequence[Operation]) -> int:
        """Several hypercalls in one; the answer is that of the first that failed."""
        for name, *fields in members:
            if name == "mmu_update" and self._is_own_slot(fields[0], fields[1]):
                return REFUSED_BY_GUEST
            if name == "update_va" and fields[0] >= _KERNEL_SLOT_VA:
                return REFUSED_BY_GUEST
        outcomes = self.hypervisor.multicall([_call(*member) for member in members])
        for number, outcome in enumerate(outcomes):
            if outcome.code:
                return _answer(Completion(outcome.code, number))
        return OK

    def _load(self, root: int) -> int:
        code = self.hypervisor.new_baseptr(root)
        if code == OK:
            self._root = root
        return code

    def _maps_kernel(self, page: int) -> bool:
        entry = self.hypervisor.entry(_FIRST_MFN + page, _KERNEL_SLOT)
        return not (entry ^ self._kernel_entry) & ~_NOT_COMPARED

    def _is_own_slot(self, page: int, index: int) -> bool:
        """Whether the guest would take its own code away."""
        return index == _KERNEL_SLOT and _FIRST_MFN + page == self._root

    def _sees_m2p(self) -> bool:
        """Whether the guest can translate frames: the loaded root shows it Xen's table."""
        root = self.hypervisor.baseptr or 0
        return self.hypervisor.entry(root, M2P_SLOT) != 0

    def _load_entry(self, va: int) -> int:
        """Load an entry; its frame as a page number.  What is not present is a signed number."""
        code, entry = self.hypervisor.load(va)
        if code:
            return code
        if not entry & PRESENT:
            return entry if entry < 1 << 63 else entry - (1 << 64)
        target = (entry >> PAGE_SHIFT & MFN_MASK) - _FIRST_MFN
        if not 0 <= target < self._pages or not self._sees_m2p():
            target = _OUTSIDE
        return target << PAGE_SHIFT | entry & 0xFFF


def _entry(target: int, flags: int) -> int:
    return _FIRST_MFN + target << PAGE_SHIFT | flags if flags else 0


def _update(page: int, index: int, target: int, flags: int, preserve_ad: bool) -> tuple[int, int]:
    command = PRESERVE_AD if preserve_ad else NORMAL_UPDATE
    return _FIRST_MFN + page << PAGE_SHIFT | index << 3 | command, _entry(target, flags)


def _mmuext(name: str, *fields: Any) -> tuple[int, ...]:
    if name == "pin":
        level, page = fields
        return Command.PIN_L1_TABLE + level - 1, _FIRST_MFN + page
    if name == "tlb_flush":
        return (FLUSHES[fields[0]],)
    command = Command.UNPIN_TABLE if name == "unpin" else Command.NEW_BASEPTR
    return command, _FIRST_MFN + fields[0]


def _call(name: str, *fields: Any) -> MmuUpdate | MmuextOp | UpdateVaMapping:
    if name == "mmu_update":
        return MmuUpdate([_update(*fields)])
    if name in {"update_va", "update_va_mapping"}:
        where, target, flags = fields
        va = where if name == "update_va" else TraceGuest.va(where)
        return UpdateVaMapping(va, _entry(target, flags))
    return MmuextOp([_mmuext(name, *fields)])


def _answer(batch: Completion) -> int:
    """A batch in one number: the code less a thousand for each request done before it."""
    return batch.code - 1000 * batch.done if batch.code else OK


def predict(trace: OperationTrace, release: Release = RECORDED) -> tuple[int, ...]:
    """What the model answers to the operations of `trace`."""
    named = None if trace.pages <= _WHOLE_PAGES else mentioned_pages(trace)
    return TraceGuest(trace.pages, release, named).answers(trace.ops)


def release_of_recording(recorded: RecordedTrace) -> Release:
    """The release to model for a recording: of the hypervisor that it names, or else the default.

    Raises InputError where the recording names one that is not known.
    """
    version = recorded.hypervisor
    try:
        return RECORDED if version is None else release_of(version)
    except KeyError:
        raise InputError(f"no model of Xen {version!r}", recorded.trace.name) from None


def replay(recorded: RecordedTrace, release: Release | None = None) -> Difference | None:
    """Replay a trace on the model: None when every answer agrees, else the first that does not.

    `release` is by default that of `release_of_recording`.
    """
    release = release_of_recording(recorded) if release is None else release
    predicted = predict(recorded.trace, release)
    if predicted == recorded.answers:
        return None
    for number, (model, real) in enumerate(zip(predicted, recorded.answers, strict=True)):
        if model != real and not _same_but_frame(model, real):
            return Difference(recorded, number, model)
    return None


def _same_but_frame(model: int, real: int) -> bool:
    """Whether both loaded an entry that is not present and differs in the frame only.

    Such entries are told as they are, and a page's frame is another one in every run.
    """
    return not (model | real) & PRESENT and not (model ^ real) & ~_RAW_MFN and model & _RAW_MFN != 0
