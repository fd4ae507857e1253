"""What a real dom0 asked of a real hypervisor, as data: calls, the counts of them, the file.

A file is one JSON object; ``docs/xen-dom0.schema.json`` describes it. Machine frames are
told as the domain's own page frame numbers (pfn), which every boot on the same machine shares;
a frame that is not the domain's is -1.
"""

from __future__ import annotations

import json
import lzma
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import attrs

from paravirt_mm import InputError, printable

FORMAT = "paravirt-mm dom0 1"
MAX_FILE = 64 << 20  #: bytes, unpacked
MAX_CALLS = 1_000_000
_RELEASE = re.compile(r"\d[\w.+~-]{0,63}", re.ASCII)

_WORDS, _TEXT = 80, 200
"""Characters of a value that a message shows, and of a text that is kept."""

PRESENT, RW = 1, 2

FLUSHES = {6: "TLB_FLUSH_LOCAL", 7: "INVLPG_LOCAL", 10: "TLB_FLUSH_ALL", 11: "INVLPG_ALL"}
"""Commands whose argument is no frame."""
COMMANDS = {
    **{level - 1: f"PIN_L{level}_TABLE" for level in (1, 2, 3, 4)},
    4: "UNPIN_TABLE",
    5: "NEW_BASEPTR",
    15: "NEW_USER_BASEPTR",
    **FLUSHES,
}
"""Commands of ``mmuext_op`` that a kernel gives in early boot (public ``xen.h``, ``MMUEXT_*``)."""


class Kind(StrEnum):
    """A hypercall that touches page tables."""

    MMU_UPDATE = "mmu_update"
    UPDATE_VA_MAPPING = "update_va_mapping"
    MMUEXT_OP = "mmuext_op"


@attrs.frozen
class Request:
    """One request of a hypercall.

    ``mmu_update``: entry ``index`` of table ``pfn``, which is of ``level`` (0: none by the end of
    the recording), becomes ``target`` with ``flags`` (0: an empty entry). ``update_va_mapping``:
    the address ``va`` becomes ``target`` with ``flags``. ``mmuext_op``: ``command`` on ``pfn``.
    ``hypercall`` counts entries into the hypervisor from 0: requests of one multicall, or of one
    hypercall with several, share it.
    """

    kind: Kind
    hypercall: int
    pfn: int = -1
    index: int = 0
    level: int = 0
    target: int = -1
    flags: int = 0
    va: int = 0
    command: str = ""

    @property
    def clears(self) -> bool:
        """Whether it stores an empty entry into a table."""
        return self.kind is Kind.MMU_UPDATE and not self.flags

    def as_row(self) -> list[Any]:
        """For the file."""
        match self.kind:
            case Kind.MMU_UPDATE:
                fields = [self.pfn, self.index, self.level, self.target, self.flags]
            case Kind.UPDATE_VA_MAPPING:
                fields = [self.va, self.target, self.flags]
            case _:
                return [self.kind.value, self.hypercall, self.command, self.pfn]
        return [self.kind.value, self.hypercall, *fields]

    @classmethod
    def of_row(cls, row: Any) -> Request:
        """Read a row back. Raises `InputError` for what is none."""
        if not isinstance(row, list) or not row or not isinstance(row[0], str):
            raise InputError("a call is a list that begins with its kind")
        names = _ROWS.get(row[0])
        if names is None or len(row) != len(names) + 1:
            raise InputError(f"no such call: {str(row)[:_WORDS]}")
        fields: dict[str, Any] = dict(zip(names, row[1:], strict=True))
        for name, value in fields.items():
            good = type(value) is str if name == "command" else _is_number(value)
            if not good:
                raise InputError(f"{name} cannot be {str(value)[:_WORDS]}")
        return cls(kind=Kind(row[0]), **fields)


_ROWS = {
    "mmu_update": ("hypercall", "pfn", "index", "level", "target", "flags"),
    "update_va_mapping": ("hypercall", "va", "target", "flags"),
    "mmuext_op": ("hypercall", "command", "pfn"),
}


@attrs.frozen
class MappedRange:
    """A call of ``init_memory_mapping``: bytes ``[start, end)``, and how many requests were made
    before it."""

    start: int
    end: int
    calls: int


@attrs.frozen
class Dom0Recording:
    """A boot of a kernel as dom0, up to the end of its ``init_mem_mapping``.

    ``calls[begin:]`` were made in ``init_mem_mapping``, those before it earlier. ``kernel`` is the
    image's version text, ``xen`` the hypervisor's version, ``log`` what both printed. ``image`` is
    where the kernel lies, in bytes: start and end of what it has from the first byte to its bss,
    then the part of brk that is for the first tables, and the end of all that it was loaded to.
    ``mappings`` are the calls of ``init_memory_mapping``, ``tables`` the direct map's tables in the
    end, as ``(level, pfn, physical address that it maps from)``: recordings from before these were
    written down have none. ``e820`` is the map that the host was given (``[start, end)`` in bytes
    and the type's number; empty: the firmware's), ``pages`` what dom0 got. ``panic`` are the last
    words of a kernel that gave up in between.
    """

    kernel: str
    xen: str
    host_mib: int
    dom0_mib: int
    image: tuple[int, int, int, int, int]
    log: tuple[str, ...]
    calls: tuple[Request, ...]
    begin: int
    mappings: tuple[MappedRange, ...] = ()
    tables: tuple[tuple[int, int, int], ...] = ()
    panic: str | None = None
    e820: tuple[tuple[int, int, int], ...] = ()
    pages: int = 0

    @property
    def release(self) -> str:
        """``uname -r`` of the kernel. Raises `InputError` where its text begins with none."""
        release = self.kernel.split(" ", 1)[0]
        if not _RELEASE.fullmatch(release):
            raise InputError(f"'kernel' begins with no release: {printable(release, _WORDS)}")
        return release

    def counts(self, *, inside: bool) -> dict[str, int]:
        """Requests in ``init_mem_mapping``, or before it, by kind and by what they do."""
        return count(self.calls[self.begin :] if inside else self.calls[: self.begin])

    def save(self, path: Path) -> None:
        """Write the file, packed where its name ends in .xz. Raises `InputError`."""
        record = attrs.asdict(self, recurse=False)
        record["calls"] = [call.as_row() for call in self.calls]
        record["mappings"] = [attrs.astuple(one) for one in self.mappings]
        text = json.dumps({"format": FORMAT, **record}, separators=(",", ":")) + "\n"
        try:
            if path.suffix == ".xz":
                path.write_bytes(lzma.compress(text.encode()))
            else:
                path.write_text(text)
        except OSError as error:
            raise InputError(f"cannot be written: {error}", str(path)) from None

    @classmethod
    def load(cls, path: Path) -> Dom0Recording:
        """Read a file. Raises `InputError` that names it."""
        try:
            return cls._of(json.loads(_read(path)))
        except InputError as error:
            raise InputError(str(error), str(path)) from None
        except (OSError, EOFError, lzma.LZMAError, ValueError, RecursionError) as error:
            raise InputError(f"cannot be read: {str(error)[:_TEXT]}", str(path)) from None

    @classmethod
    def _of(cls, record: Any) -> Dom0Recording:
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise InputError(f"no recording of a dom0: its format is not {FORMAT!r}")
        texts = {name: _typed(record, name, str)[:_TEXT] for name in ("kernel", "xen")}
        numbers = {name: _typed(record, name, int) for name in ("host_mib", "dom0_mib", "begin")}
        log, image, calls = (_typed(record, name, list) for name in ("log", "image", "calls"))
        if len(image) != 5 or set(map(type, image)) != {int} or set(map(type, log)) - {str}:
            raise InputError("'image' must be five numbers, 'log' texts")
        if len(calls) > MAX_CALLS or not 0 <= numbers["begin"] <= len(calls):
            raise InputError(f"'begin' is no place in 'calls', or these are more than {MAX_CALLS}")
        start, end, brk_start, brk_end, top = image
        return cls(
            **texts,
            **numbers,
            image=(start, end, brk_start, brk_end, top),
            log=tuple(log),
            calls=tuple(map(Request.of_row, calls)),
            mappings=tuple(MappedRange(*row) for row in _rows_of_three(record, "mappings")),
            tables=tuple(_rows_of_three(record, "tables")),
            e820=tuple(_rows_of_three(record, "e820")),
            pages=_typed(record, "pages", int) if "pages" in record else 0,
            panic=None if record.get("panic") is None else _typed(record, "panic", str)[:_TEXT],
        )


def _rows_of_three(record: dict[str, Any], name: str) -> Iterator[tuple[int, int, int]]:
    rows = record.get(name, [])
    if not isinstance(rows, list) or len(rows) > MAX_CALLS:
        raise InputError(f"{name!r} must be a list")
    for row in rows:
        if not isinstance(row, list) or len(row) != 3 or not all(map(_is_number, row)):
            raise InputError(f"{name!r} has rows of three numbers, not {str(row)[:_WORDS]}")
        yield row[0], row[1], row[2]


def _is_number(value: Any) -> bool:
    return type(value) is int and -1 <= value < 1 << 64


def count(calls: Sequence[Request]) -> dict[str, int]:
    """Requests by kind and by what they do; besides, hypercalls and what shared one."""
    counts: Counter[str] = Counter(call.kind.value for call in calls)
    entries = Counter(call.hypercall for call in calls)
    counts["hypercalls"] = len(entries)
    counts["batches"] = sum(number > 1 for number in entries.values())
    counts["batched"] = sum(number for number in entries.values() if number > 1)
    counts.update(what for call in calls for what in _what(call))
    return dict(counts)


def _what(call: Request) -> Iterator[str]:
    match call.kind:
        case Kind.MMU_UPDATE:
            yield f"{'cleared' if call.clears else 'set'} L{call.level}"
        case Kind.UPDATE_VA_MAPPING:
            if call.flags & PRESENT:
                yield "made writable" if call.flags & RW else "made read-only"
        case Kind.MMUEXT_OP:
            yield call.command


def _read(path: Path) -> str:
    with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as file:
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise InputError(f"more than {MAX_FILE} bytes")
    return data.decode()


def _typed(record: Mapping[str, Any], name: str, kind: type) -> Any:
    value = record.get(name)
    if type(value) is not kind:
        raise InputError(f"'{name}' must be a {kind.__name__}")
    return value
