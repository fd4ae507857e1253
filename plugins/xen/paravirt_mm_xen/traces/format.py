"""Traces: operations on a guest's page tables, in the recorded JSON format.

A trace works on ``pages`` pages, numbered from 0. Each starts as an ordinary zeroed page that is
mapped writable at its own address. Every operation gets one answer, an integer. Operations are the
JSON lists of the recorded format, as tuples; `SHAPES` says which there are and what their
fields mean, and is the only place that does. Files of traces are read by
`paravirt_mm_xen.traces.files`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from enum import Enum, auto
from typing import Any

import attrs

from paravirt_mm import InputError

MAX_PAGES = 1 << 20  #: of one trace: 4 GiB of guest
MAX_OPERATIONS = 1 << 22  #: of one trace
MAX_BATCH = 1024  #: members of one batch
MAX_ENTRY_BITS = (1 << 64) - 1

FRAME_BITS = (1 << 46) - (1 << 12)
"""Bits of an entry that hold the frame and therefore may not be given as flags.

Xen's own limit of 16 TiB in a release build; bits from 46 up may be set, so that entries that
are out of range or reserved can be tried.
"""

REFUSED_BY_GUEST = -77777
"""The answer to an operation that the guest did not carry out, to survive."""

Operation = tuple[Any, ...]
"""A name and its fields, as `SHAPES` lists them."""


class Field(Enum):
    """What one field of an operation means, and thereby what may stand there."""

    PAGE = auto()  #: page number, below the trace's ``pages``
    PAGE_OR_NULL = auto()  #: the same, or null for "none"
    TARGET = auto()  #: page number that an entry is to refer to
    INDEX = auto()  #: entry of a table, 0..511
    LEVEL = auto()  #: 1..4
    FLAGS = auto()  #: bits of an entry besides the frame; 0 stands for an entry of 0
    VALUE = auto()  #: 64 bits
    ADDRESS = auto()  #: virtual address, 64 bits
    PRESERVE = auto()  #: boolean
    ACCESS = auto()  #: "read" or "write"
    FLUSH = auto()  #: a key of `FLUSHES`
    DEVICE = auto()  #: a key of `DEVICES`
    ASSIST = auto()  #: a key of `ASSISTS`
    UPDATES = auto()  #: list of [table, index, target, flags, preserve_ad]
    MEMBERS = auto()  #: list of operations that the shape allows as members

    # Each exists once. Enum's own is written in Python, and took a fifth of the check of a trace.
    __hash__ = object.__hash__


@attrs.frozen
class Shape:
    """The fields of an operation, and the operations that a batch of this kind may hold."""

    fields: tuple[Field, ...]
    members: tuple[str, ...] = ()


FLUSHES = {"local": 6, "local_page": 7, "all": 10, "all_page": 11}
"""Kinds of ``tlb_flush``, as numbers of ``MMUEXT_*`` commands (public header ``xen.h``)."""

DEVICES = {
    "vga": 0xB8,
    "io_apic": 0xFEC00,
    "local_apic": 0xFEE00,
    "invalid": (1 << 40) - 1,
    "shared_info": -1,
}
"""Frames that are no memory of the guest's alone, by name: device memory that dom0 may map, that it
may map read-only, and may not; a frame that cannot be; and the page that Xen shares with the guest,
which lies elsewhere on every host. The numbers are those of every PC."""

ASSISTS = {"writable_pagetables": 2, "m2p_strict": 32}
"""What a guest may ask for, as numbers of ``VMASST_TYPE_*`` (public header ``xen.h``)."""

_ENTRY = (Field.PAGE, Field.INDEX, Field.TARGET, Field.FLAGS)

SHAPES: dict[str, Shape] = {
    # The recorded format (answers of real Xen are published for these).
    "pin": Shape((Field.LEVEL, Field.PAGE)),
    "unpin": Shape((Field.PAGE,)),
    "update_va_mapping": Shape((Field.PAGE, Field.TARGET, Field.FLAGS)),
    "mmu_update": Shape((*_ENTRY, Field.PRESERVE)),
    "write": Shape(_ENTRY),
    "new_baseptr": Shape((Field.PAGE,)),
    "boot_baseptr": Shape(()),
    "copy_kernel_slots": Shape((Field.PAGE,)),
    "type": Shape((Field.PAGE,)),
    "read": Shape((Field.PAGE, Field.INDEX)),
    # Extensions: what the construction of a whole direct map needs.
    "store": Shape(_ENTRY),
    "store_value": Shape((Field.PAGE, Field.INDEX, Field.VALUE)),
    "update_va": Shape((Field.ADDRESS, Field.TARGET, Field.FLAGS)),
    "probe": Shape((Field.ADDRESS, Field.ACCESS)),
    "new_user_baseptr": Shape((Field.PAGE_OR_NULL,)),
    "tlb_flush": Shape((Field.FLUSH,)),
    "clear_page": Shape((Field.PAGE,)),
    "copy_page": Shape((Field.PAGE, Field.TARGET)),
    "mmu_update_device": Shape((Field.PAGE, Field.INDEX, Field.DEVICE, Field.FLAGS)),
    "assist": Shape((Field.ASSIST, Field.PRESERVE)),
    "mmu_update_batch": Shape((Field.UPDATES,)),
    "mmuext_batch": Shape((Field.MEMBERS,), ("new_baseptr", "pin", "tlb_flush", "unpin")),
    "multicall": Shape(
        (Field.MEMBERS,),
        ("mmu_update", "pin", "tlb_flush", "unpin", "update_va", "update_va_mapping"),
    ),
}

PAGE_FIELDS = frozenset({Field.PAGE, Field.PAGE_OR_NULL, Field.TARGET})

_NAMES = {Field.FLUSH: FLUSHES, Field.DEVICE: DEVICES, Field.ASSIST: ASSISTS}

_NUMBER_LIMITS = {
    Field.INDEX: (0, 511),
    Field.LEVEL: (1, 4),
    Field.VALUE: (0, MAX_ENTRY_BITS),
    Field.ADDRESS: (0, MAX_ENTRY_BITS),
    Field.FLAGS: (0, MAX_ENTRY_BITS),
}


@attrs.frozen
class OperationTrace:
    """Operations on ``pages`` fresh pages. ``name`` says where the trace comes from."""

    name: str
    pages: int
    ops: tuple[Operation, ...]

    def to_json(self, answers: Iterable[int] | None = None, hypervisor: str | None = None) -> str:
        """The trace as one line of the recorded format, with ``rc`` where answers are given, and
        ``xen`` where it is known which version gave them."""
        record: dict[str, Any] = {"id": self.name, "pages": self.pages, "ops": self.ops}
        if hypervisor is not None:
            record["xen"] = hypervisor
        if answers is not None:
            record["rc"] = list(answers)
        return json.dumps(record, separators=(",", ":"))


@attrs.frozen
class RecordedTrace:
    """A trace together with the answers that some hypervisor gave, one an operation."""

    trace: OperationTrace
    answers: tuple[int, ...]
    hypervisor: str | None = None  #: its version; None where the recording does not say


def check(trace: OperationTrace) -> OperationTrace:
    """Returns the trace unchanged, or raises `InputError` naming the operation."""
    if not _is_int(trace.pages) or not 1 <= trace.pages <= MAX_PAGES:
        raise InputError(f"pages is {trace.pages!r}, not in 1..{MAX_PAGES}", trace.name)
    if len(trace.ops) > MAX_OPERATIONS:
        raise InputError(f"more than {MAX_OPERATIONS} operations", trace.name)
    for number, operation in enumerate(trace.ops):
        try:
            check_operation(operation, number, trace.pages)
        except InputError as error:
            raise InputError(str(error), trace.name) from None
    return trace


def check_operation(operation: Operation, number: int, pages: int) -> None:
    """Raises `InputError` that names the operation, ``number`` of a trace of ``pages`` pages, if it
    is not one of `SHAPES`."""
    problem = _problem(operation, pages) if operation else "empty"
    if problem:
        raise InputError(f"operation {number}, {str(operation)[:200]}: {problem}")


def mentioned_pages(trace: OperationTrace) -> set[int]:
    """The pages that operations of a trace name; no other can make a difference."""
    pages: set[int] = set()
    for operation in trace.ops:
        _add_pages(operation, pages)
    return pages


_PLACES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    name: (
        tuple(at for at, field in enumerate(shape.fields, 1) if field in PAGE_FIELDS),
        tuple(
            at
            for at, field in enumerate(shape.fields, 1)
            if field in (Field.UPDATES, Field.MEMBERS)
        ),
    )
    for name, shape in SHAPES.items()
}
"""Where an operation has pages, and where it has a list of others: found once, not per trace."""


def _add_pages(operation: Sequence[Any], pages: set[int]) -> None:
    own, lists = _PLACES[operation[0]]
    for at in own:
        if operation[at] is not None:
            pages.add(operation[at])
    for at in lists:
        updates = SHAPES[operation[0]].fields[at - 1] is Field.UPDATES
        for member in operation[at]:
            _add_pages(("mmu_update", *member) if updates else member, pages)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _problem(operation: Operation, pages: int, allowed: Sequence[str] | None = None) -> str:
    """What is wrong with an operation, or an empty string."""
    shape = SHAPES.get(operation[0]) if isinstance(operation[0], str) else None
    if shape is None:
        return "no such operation"
    if allowed is not None and operation[0] not in allowed:
        return f"may not be a member of this batch (only {', '.join(allowed)})"
    if len(operation) != len(shape.fields) + 1:
        return f"has {len(operation) - 1} fields, not {len(shape.fields)}"
    for field, value in zip(shape.fields, operation[1:], strict=True):
        problem = _field_problem(field, value, pages, shape)
        if problem:
            return problem
    return ""


def _field_problem(field: Field, value: Any, pages: int, shape: Shape) -> str:
    limits = (0, pages - 1) if field in PAGE_FIELDS else _NUMBER_LIMITS.get(field)
    if limits is not None:
        return _number_problem(field, value, *limits)
    if field is Field.PRESERVE:
        return "" if isinstance(value, bool) else f"{value!r} is not true or false"
    if field is Field.ACCESS:
        return "" if value in ("read", "write") else f"{value!r} is not 'read' or 'write'"
    if field in _NAMES:
        known = isinstance(value, str) and value in _NAMES[field]
        return "" if known else f"{value!r} is not one of {', '.join(_NAMES[field])}"
    return _members_problem(field, value, pages, shape)


def _number_problem(field: Field, value: Any, low: int, high: int) -> str:
    if field is Field.PAGE_OR_NULL and value is None:
        return ""
    if not _is_int(value) or not low <= value <= high:
        return f"{field.name.lower()} {str(value)[:40]} is not in {low}..{high}"
    if field is Field.FLAGS and value & FRAME_BITS:
        return f"flags {value:#x} overlap the frame number"
    return ""


def _members_problem(field: Field, value: Any, pages: int, shape: Shape) -> str:
    if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= MAX_BATCH:
        return f"a batch has 1..{MAX_BATCH} members"
    for member in value:
        if not isinstance(member, (list, tuple)) or not member:
            return f"member {member!r} is not a list"
        problem = (
            _problem(("mmu_update", *member), pages)
            if field is Field.UPDATES
            else _problem(tuple(member), pages, shape.members)
        )
        if problem:
            return f"member {str(member)[:80]}: {problem}"
    return ""
