"""/sys/firmware/memmap: the firmware's map as the kernel found it, one folder an entry.

Each numbered folder holds ``start``, ``end`` (inclusive) and ``type``. The folder itself or a tar
archive of it is read; nothing is ever unpacked to disk.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

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


def is_memmap(path: Path) -> bool:
    """Tell whether ``path`` is such a folder."""
    return all((path / "0" / part).is_file() for part in PARTS)


def read_folder(path: Path, source: str, name: str) -> Machine:
    """Return the machine of a memmap folder. Raises InputError that names the file at fault."""
    values: dict[tuple[int, str], str] = {}
    try:
        folders = [child for child in path.iterdir() if _NUMBER.fullmatch(child.name)]
        if len(folders) > MAX_ENTRIES:
            raise InputError(f"more than {MAX_ENTRIES} entries", source)
        for folder in folders:
            for part in PARTS:
                with (folder / part).open("rb") as file:
                    content = file.read(MAX_VALUE_BYTES)
                values[int(folder.name), part] = content.decode("ascii", "replace")
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", printable(str(error.filename))
        ) from None
    return from_values(values, source, name)


def from_values(values: Mapping[tuple[int, str], str], source: str, name: str) -> Machine:
    """Return the machine of ``{(entry, "start"): text}``. Raises InputError."""
    entries: list[tuple[int, int, E820Type]] = []
    for index in sorted({number for number, _ in values}):
        start, end = (_address(values, index, part, source) for part in ("start", "end"))
        label = values.get((index, "type"), "").strip("\0 \n")
        kind = resource_type(label)
        if kind is None:
            raise InputError(
                f"unknown memory type {printable(label, 40)!r}", f"{source}/{index}/type"
            )
        entries.append((start, end + 1, kind))
    return machine_from_map(name, source, "from /sys/firmware/memmap", MemoryMap.sanitise(entries))


def _address(values: Mapping[tuple[int, str], str], index: int, part: str, source: str) -> int:
    text = values.get((index, part), "").strip("\0 \n")
    if not re.fullmatch(r"0x[0-9a-fA-F]{1,16}", text):
        raise InputError(f"{printable(text, 40)!r} is not an address", f"{source}/{index}/{part}")
    return int(text, 16)
