"""Translating one virtual address as the CPU does: where it leads, or with which page fault an
access to it ends.

Source: Intel SDM volume 3, "Access Rights" and "Page-Fault Exceptions" of the chapter on paging.
"""

from __future__ import annotations

import attrs
import numpy as np

from paravirt_mm.image.entries import FORMATS, NX, PRESENT, PSE, RW
from paravirt_mm.image.walker import (
    Cpu,
    PhysicalMemory,
    leaf_address,
    read_root,
    reserved_bits,
)
from paravirt_mm.machine.paging import PAGE_SIZE, PagingMode


@attrs.frozen
class Access:
    """What is asked of an address: to read it, unless one of these says more. Supervisor mode,
    CR0.WP set.
    """

    write: bool = False
    fetch: bool = False


@attrs.frozen
class Translation:
    """Where an address leads: its physical address, and the leaf entry with its level."""

    physical: int
    level: int
    entry: int


@attrs.frozen
class PageFault:
    """Why an access fails: the error code that the CPU gives, and the entry that says so.

    ``address`` is virtual. Bits of ``code``: 0 present, 1 write, 3 reserved bit, 4 fetch.
    ``entry`` is None where the table itself is not in memory (a real CPU then reads whatever the
    bus gives).
    """

    address: int
    level: int
    entry: int | None
    code: int

    def __str__(self) -> str:
        entry = "missing" if self.entry is None else f"{self.entry:#x}"
        return f"#PF({self.code:#x}) at {self.address:#x}: L{self.level} entry {entry}"


FAULT_PRESENT, FAULT_WRITE, FAULT_RESERVED, FAULT_FETCH = 1, 2, 8, 16


def translate(
    memory: PhysicalMemory,
    root: int,
    mode: PagingMode,
    address: int,
    access: Access | None = None,
    cpu: Cpu | None = None,
) -> Translation | PageFault:
    """Translate one canonical virtual address, entry by entry, as the CPU does for an access in
    supervisor mode.
    """
    access, cpu = access or Access(), cpu or Cpu()
    entry_format = FORMATS[mode.name]
    size = mode.entry_bytes
    knows_fetch = access.fetch and size == 8 and cpu.nx
    code = FAULT_WRITE * access.write | FAULT_FETCH * knows_fetch
    table, writable, executable = root, True, True
    for level in range(mode.root_level, 0, -1):
        index = (address >> (mode.entry_span(level).bit_length() - 1)) % mode.entries(level)
        if level == mode.root_level:
            page: bytes | memoryview | None = read_root(memory, mode, root)
        else:
            page = memory.read(table, PAGE_SIZE)
        if page is None:
            return PageFault(address, level, None, code)
        entry = int.from_bytes(page[index * size : (index + 1) * size], "little")
        if not entry & PRESENT:
            return PageFault(address, level, entry, code)
        # Where there are no large pages PSE is reserved, whatever the entry were with it.
        leaf = level == 1 or bool(entry & PSE and (size == 8 or cpu.pse))
        if entry & reserved_bits(entry_format, level, cpu)[leaf]:
            return PageFault(address, level, entry, code | FAULT_PRESENT | FAULT_RESERVED)
        if entry_format.permissions[level]:
            writable &= bool(entry & RW)
            executable &= not entry & NX
        if not leaf:
            table = entry & entry_format.address_field
            continue
        if (access.write and not writable) or (access.fetch and not executable):
            return PageFault(address, level, entry, code | FAULT_PRESENT)
        start: int = leaf_address(entry_format, level, np.array([entry], dtype=np.uint64)).item()
        return Translation(start + address % mode.entry_span(level), level, entry)
    raise AssertionError("an L1 entry is a leaf")
