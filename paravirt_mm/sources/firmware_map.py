"""/sys/firmware/memmap: the firmware's map as the kernel found it, one folder an entry.

Each numbered folder holds ``start``, ``end`` (inclusive) and ``type``. The folder itself or a tar
archive of it is read; nothing is ever unpacked to disk.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO

import attrs

from paravirt_mm.counted import counted
from paravirt_mm.errors import InputError
from paravirt_mm.machine.e820 import E820Type, MemoryMap
from paravirt_mm.machine.model import Machine
from paravirt_mm.printable import printable
from paravirt_mm.sources.assume import machine_from_map
from paravirt_mm.sources.e820_words import resource_type

MAX_ENTRIES = 1 << 14
"""More folders than this are refused."""
MAX_VALUE_BYTES = 256
"""Longest content of one file."""
PARTS = ("start", "end", "type")

_NUMBER = re.compile(r"\d{1,6}")
_MEMBER = re.compile(r"(.*/|)(\d{1,6})/(start|end|type)", re.DOTALL)


def is_memmap(path: Path) -> bool:
    """Tell whether ``path`` is such a folder."""
    return all((path / "0" / part).is_file() for part in PARTS)


def is_part(file_name: str) -> bool:
    """Tell whether a file of an archive is one of such a folder."""
    return _MEMBER.fullmatch(file_name) is not None


def read_folder(path: Path, source: str, name: str) -> Machine:
    """Return the machine of a memmap folder. Raises InputError that names the file at fault."""
    values = Values(source)
    try:
        for folder in path.iterdir():
            if _NUMBER.fullmatch(folder.name):
                for part in PARTS:
                    with (folder / part).open("rb") as file:
                        values.take(f"{folder.name}/{part}", file)
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", printable(str(error.filename))
        ) from None
    return values.machine(name)


@attrs.define
class Values:
    """The texts of the files ``0/start``, ``0/end``, ``0/type``, ``1/start``, ..."""

    source: str
    _texts: dict[tuple[int, str], str] = attrs.field(factory=dict, init=False)
    _folder: str | None = attrs.field(default=None, init=False)

    def take(self, file_name: str, file: BinaryIO) -> bool:
        """Read a file if its name is one of a memmap folder. Raises InputError for too many, and
        for files of two such folders.
        """
        entry = _MEMBER.fullmatch(file_name)
        if entry is None:
            return False
        folder, number, part = entry.groups()
        text = file.read(MAX_VALUE_BYTES).decode("ascii", "replace")
        if self._folder is None:
            self._folder = folder
        if folder != self._folder:
            first, other = (printable(name, 80) for name in (self._folder, folder))
            raise InputError(f"two firmware maps, {first!r} and {other!r}; give one", self.source)
        if self._texts.setdefault((int(number), part), text) != text:
            raise InputError("stands there twice", f"{self.source}/{int(number)}/{part}")
        if len(self._texts) > MAX_ENTRIES * len(PARTS):
            raise InputError(f"more than {MAX_ENTRIES} entries", self.source)
        return True

    def __bool__(self) -> bool:
        return bool(self._texts)

    def machine(self, name: str) -> Machine:
        """Return the machine. Raises InputError that names the file at fault."""
        entries: list[tuple[int, int, E820Type]] = []
        numbers = sorted({number for number, _ in self._texts})
        for index in numbers:
            start, end = (self._address(index, part) for part in ("start", "end"))
            if start > end:
                raise InputError(
                    f"ends at {end:#x}, before its start {start:#x}", f"{self.source}/{index}"
                )
            label = self._texts.get((index, "type"), "").strip("\0 \n")
            kind = resource_type(label)
            if kind is None:
                raise InputError(
                    f"unknown memory type {printable(label, 40)!r}", f"{self.source}/{index}/type"
                )
            entries.append((start, end + 1, kind))
        memory = MemoryMap.sanitise(entries)
        assumed = []
        if missing := numbers[-1] + 1 - len(numbers):
            # Linux counts from 0; an entry of memory that is unplugged leaves its number free.
            entries_missing = f"{counted(missing, 'entry')} of the map missing"
            assumed.append(f"{entries_missing}: memory unplugged since")
        title = "from /sys/firmware/memmap"
        return machine_from_map(name, self.source, title, memory, assumed=assumed)

    def _address(self, index: int, part: str) -> int:
        text = self._texts.get((index, part), "").strip("\0 \n")
        if not re.fullmatch(r"0x[0-9a-fA-F]{1,16}", text):
            where = f"{self.source}/{index}/{part}"
            raise InputError(f"{printable(text, 40)!r} is not an address", where)
        return int(text, 16)
