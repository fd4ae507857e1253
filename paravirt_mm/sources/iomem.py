"""/proc/iomem: the physical address space as a running kernel has divided it.

Addresses are hexadecimal and ends inclusive. Entries of the firmware's map stand at the top level,
or below the PCI bus that claims them; below RAM stand the parts of the kernel.
"""

from __future__ import annotations

import re

from paravirt_mm.errors import InputError
from paravirt_mm.machine.e820 import E820Type, MemoryMap
from paravirt_mm.machine.model import Machine
from paravirt_mm.machine.ranges import RangeSet
from paravirt_mm.sources.assume import machine_from_map
from paravirt_mm.sources.content import Content
from paravirt_mm.sources.e820_words import resource_type
from paravirt_mm.sources.lines import bounded_lines, wrapping_of

MAX_ENTRIES = 1 << 17
"""More resources than this are refused."""

_LINE = re.compile(r"[>|`\s]*([0-9a-fA-F]{1,16})-([0-9a-fA-F]{1,16}) : (.{0,200})")
_AROUND = re.compile(r"[>|`\s]*$|.*[$#%](?:\s.*)?$")
"""Nothing, or the prompt of a shell, with its command."""
_KERNEL_PARTS = frozenset({"Kernel code", "Kernel rodata", "Kernel data", "Kernel bss"})


def read_iomem(content: Content, source: str, name: str) -> Machine:
    """Return the machine. Raises InputError, also for the zeros that ordinary users get to see."""
    entries: list[tuple[int, int, E820Type]] = []
    kernel = RangeSet()
    where = source
    for number, line in bounded_lines(content, source, cut=wrapping_of(content)):
        where = f"{source}:{number}"
        match = _LINE.match(line)
        if match is None:
            if _AROUND.match(line):
                continue
            raise InputError(f"not a line of /proc/iomem: {line[:80]!a}", where)
        start, end, label = int(match[1], 16), int(match[2], 16) + 1, match[3].strip()
        if label in _KERNEL_PARTS:
            kernel.add(start, end)
        elif (kind := resource_type(label)) is not None:
            if end == 1:
                raise InputError("addresses are hidden; read /proc/iomem as root", where)
            entries.append((start, end, kind))
        if len(entries) > MAX_ENTRIES:
            raise InputError(f"more than {MAX_ENTRIES} resources", where)
    image = (kernel.first, kernel.end) if kernel else None
    return machine_from_map(name, source, "from /proc/iomem", MemoryMap.sanitise(entries), image)
