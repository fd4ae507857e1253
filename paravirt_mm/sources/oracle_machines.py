"""Machine records of kernel-oracle files: one JSON object a line, with the real code's results.

Only the machine is read here: ``e820``, ``reserved``, ``brk_start``, ``pgt_buf_pages``, ``pse``,
``gbpages``, ``max_pfn``, ``max_low_pfn``, ``initial_mapped``; numbers are bytes, ends exclusive.
Unlike a firmware map, the map of a record is used as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from paravirt_mm.errors import InputError
from paravirt_mm.machine.e820 import E820Type, MemoryMap
from paravirt_mm.machine.model import CpuFeatures, KernelImage, Machine, Provenance
from paravirt_mm.machine.paging import PAGE_SIZE, X86_64
from paravirt_mm.machine.ranges import RangeSet
from paravirt_mm.printable import printable
from paravirt_mm.sources.checker import Checker, once
from paravirt_mm.sources.possible import check_ram, checked

MAX_RECORD_BYTES = 1 << 23
"""A record longer than this is refused."""


def read_records(stream: BinaryIO, source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``(where, record)`` a line. Raises InputError for a line that is no JSON object."""
    number = 0
    while line := stream.readline(MAX_RECORD_BYTES + 1):
        number += 1
        where = f"{source}:{number}"
        if len(line) > MAX_RECORD_BYTES:
            raise InputError(f"record longer than {MAX_RECORD_BYTES >> 20} MiB", where)
        if not line.strip():
            continue
        try:
            record = json.loads(line, object_pairs_hook=once)
        except (ValueError, RecursionError) as error:
            raise InputError(f"not a JSON record: {printable(str(error), 200)}", where) from None
        if not isinstance(record, dict):
            raise InputError("not a JSON object", where)
        yield where, record


def machine(record: Mapping[str, Any], where: str) -> Machine:
    """Return the machine of one record. Raises InputError that names the key at fault."""
    check = Checker(where)
    entries = []
    for index, item in enumerate(check.array(check.need(record, "e820"), "e820")):
        key = f"e820[{index}]"
        parts = check.array(item, key, length=3)
        start, end = check.span(parts[:2], key)
        number = check.integer(parts[2], f"{key}[2]", 0, (1 << 32) - 1)
        entries.append((start, end, E820Type(number)))
    reserved = RangeSet(
        check.span(item, f"reserved[{index}]")
        for index, item in enumerate(check.array(check.need(record, "reserved"), "reserved"))
    )
    brk_start = check.address(check.need(record, "brk_start"), "brk_start")
    brk_pages = check.integer(check.need(record, "pgt_buf_pages"), "pgt_buf_pages", 0, 1 << 20)
    image = next((start for start, end in reserved if start <= brk_start < end), brk_start)
    memory = MemoryMap.sanitise(entries)
    check_ram(memory, where)
    made = Machine(
        name=printable(check.text(record.get("id", "machine"), "id"), 80),
        memory_map=memory,
        mode=X86_64,
        features=CpuFeatures(
            pse=bool(check.integer(check.need(record, "pse"), "pse", 0, 1)),
            gbpages=bool(check.integer(check.need(record, "gbpages"), "gbpages", 0, 1)),
        ),
        kernel=KernelImage(image, brk_start, brk_start, brk_start + brk_pages * PAGE_SIZE),
        reserved=tuple(reserved),
        boot_mapped=check.address(check.need(record, "initial_mapped"), "initial_mapped"),
        provenance=Provenance(where),
        max_pfn_hint=check.pfn(check.need(record, "max_pfn"), "max_pfn"),
        max_low_pfn_hint=check.pfn(check.need(record, "max_low_pfn"), "max_low_pfn"),
    )
    return checked(made, where)
