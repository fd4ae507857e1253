"""Compare the model with what a real kernel did while it built its direct map.

A live record (`qemu`, or a file of such records) says what the kernel knew when it began and
what it did; the allocator that models its release runs on the same memory,
and every field of the two must be equal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from paravirt_mm.engine.build import link
from paravirt_mm.engine.pages import Source
from paravirt_mm.engine.trace import RangeSplit, TablesAllocated, Trace
from paravirt_mm.errors import InputError, SpecError
from paravirt_mm.instances import Instances
from paravirt_mm.machine.e820 import E820Type, MemoryMap
from paravirt_mm.machine.model import CpuFeatures, KernelImage, Machine, Provenance
from paravirt_mm.machine.paging import GIB, PAGE_SHIFT, PAGE_SIZE, X86_64, X86_64_LA57
from paravirt_mm.offers import model_of_kernel
from paravirt_mm.options import PluginSpec
from paravirt_mm.printable import printable
from paravirt_mm.registry import Registry, default_registry
from paravirt_mm.run import Outcome, Run
from paravirt_mm.sources import oracle_machines
from paravirt_mm.sources.checker import Checker
from paravirt_mm.sources.content import opened
from paravirt_mm.verify.kernel.compare import (
    Mismatch,
    Replay,
    compare,
    expected_record,
    first_difference,
)
from paravirt_mm.verify.kernel.record import Record, measured
from paravirt_mm.verify.linux.qemu.record import FORMAT
from paravirt_mm.verify.log.words import Words

ACPI_COUNTS_SINCE = (6, 11)
"""First release that looks for the end of RAM in ACPI tables too (e820__end_ram_pfn)."""

_RELEASE = re.compile(r"(\d{1,3}\.\d{1,4}(?:\.\d{1,5})?)")
_DEBIAN = re.compile(r"#\d.*\bDebian (\d{1,3}\.\d{1,4}\.\d{1,5})[-+~]")
_MODES = {4: X86_64, 5: X86_64_LA57}
_FACTS = ("memory", "max_pfn", "max_low_pfn", "pgt_buf_pages", "allocations", "findings")

Allocation = tuple[int, str, int]
"""(pfn, "brk" or "memblock", number of the step that took it)."""


def replay_file(path: str, registry: Registry | None = None) -> Iterator[Replay]:
    """Compare every record of a file, plain or compressed, one JSON object a line.

    Raises InputError, with file and line, where the file is not what it should be.
    """
    source = printable(path)
    empty = True
    with opened(path, source) as content:
        for where, record in oracle_machines.read_records(content.stream, source):
            empty = False
            yield replay(record, where, registry)
    if empty:
        raise InputError("holds no record", source)


def replay(record: Mapping[str, Any], where: str, registry: Registry | None = None) -> Replay:
    """Compare what one kernel did (``BootRecord.to_json``) with the model of its release.

    Raises InputError for a record that is not of that shape.
    """
    registry = registry or default_registry()
    known = record.get("format", FORMAT)
    if known != FORMAT:
        raise InputError(f"format: {printable(repr(known), 60)} is not {FORMAT!r}", where)
    release = upstream_release(record, where)
    machine = machine_of(record, where)
    spec = spec_of(record, where, registry)
    words = Words(_version(release))
    run, got = measured(machine, spec, registry)
    if run.verdict.outcome in (Outcome.ERROR, Outcome.VIOLATION):
        differences = [Mismatch("run", "", "ends", f"fails: {printable(str(run.verdict))}")]
    else:
        differences = [
            *_memory_differences(record, machine, release, where, words),
            *_brk_differences(machine, spec, registry),
            *_allocation_differences(record, run, where),
            *compare(expected_record(record, "record", where), got, words),
            *_findings(record, where),
        ]
    fields = tuple(
        name
        for name in (*_FACTS, *(field.name for field in attrs.fields(Record)))
        if name in record
    )
    return Replay(where, machine.name, release, spec, fields, tuple(differences))


def upstream_release(record: Mapping[str, Any], where: str) -> str:
    """Return the release that the kernel was built from: 6.1.192 for Debian's 6.1.0-56-amd64.

    ``uname -r`` of a Debian kernel stands still while stable releases go on; the version text names
    the package version behind the number of the build, and that the release. (Before it, a vmlinux
    names Debian's compiler.)
    """
    check = Checker(where)
    version = check.table(record.get("provenance", {}), "provenance").get("kernel", "")
    if match := _DEBIAN.search(check.text(version, "provenance.kernel")):
        return match[1]
    release = check.text(check.need(record, "release"), "release")
    if match := _RELEASE.match(release):
        return match[1]
    raise InputError(f"release: {printable(repr(release), 60)} is no kernel release", where)


def spec_of(record: Mapping[str, Any], where: str, registry: Registry | None = None) -> str:
    """Return the allocator that models a record's kernel, and how it was booted.

    Raises `SpecError` where no installed plugin models it.
    """
    check = Checker(where)
    release = upstream_release(record, where)
    levels = check.integer(check.need(record, "levels"), "levels", 4, 5)
    bottom_up = check.flag(record.get("bottom_up", False), "bottom_up")
    parameters = ("movable_node",) if bottom_up else ()
    registry = registry or default_registry()
    spec = model_of_kernel(registry, release, _MODES[levels].name, parameters)
    if spec is None:
        raise SpecError(f"{where}: no installed plugin models Linux {release}")
    return spec


def machine_of(record: Mapping[str, Any], where: str) -> Machine:
    """Return the machine as the kernel saw it when it began its direct map.

    Memory and reservations are memblock's, the other entries of the map e820's.
    """
    check = Checker(where)
    memory = [(start, end, E820Type.RAM) for start, end in _spans(check, record, "memory")]
    other = [entry for entry in _e820(check, record) if entry[2] is not E820Type.RAM]
    reserved = _spans(check, record, "reserved")
    brk_start = check.address(check.need(record, "brk_start"), "brk_start")
    brk_pages = check.integer(check.need(record, "pgt_buf_pages"), "pgt_buf_pages", 0, 1 << 20)
    levels = check.integer(check.need(record, "levels"), "levels", 4, 5)
    image = next((start for start, end in reserved if start <= brk_start < end), brk_start)
    return Machine(
        name=printable(check.text(record.get("id", "machine"), "id"), 80),
        memory_map=MemoryMap.sanitise([*memory, *other]),
        mode=_MODES[levels],
        features=CpuFeatures(
            pse=bool(check.integer(check.need(record, "pse"), "pse", 0, 1)),
            gbpages=bool(check.integer(check.need(record, "gbpages"), "gbpages", 0, 1)),
        ),
        kernel=KernelImage(
            start=image,
            end=brk_start,
            brk_start=brk_start,
            brk_end=brk_start + brk_pages * PAGE_SIZE,
            linked_end=check.address(check.need(record, "kernel_end"), "kernel_end"),
        ),
        reserved=tuple(reserved),
        provenance=Provenance(where),
        max_pfn_hint=_pfn(check, record, "max_pfn"),
        max_low_pfn_hint=_pfn(check, record, "max_low_pfn"),
    )


# -- what the kernel knew when it began ------------------------------------------------------------


def _memory_differences(
    record: Mapping[str, Any], machine: Machine, release: str, where: str, words: Words
) -> Iterator[Mismatch]:
    """Memory and its end as our reading of the e820 map gives them."""
    derived = MemoryMap.sanitise(_e820(Checker(where), record))
    memory, ours = list(machine.memory_map.ram_pages()), list(derived.ram_pages())
    if memory != ours:
        yield first_difference("memory", "region", memory, ours, lambda span: words.memory(*span))
    counted = {E820Type.RAM}
    if _version(release) >= ACPI_COUNTS_SINCE:
        counted.add(E820Type.ACPI)
    spans = [(entry.start, entry.end) for entry in derived if entry.type in counted]
    for field, limit in (("max_pfn", 1 << machine.mode.physical_bits), ("max_low_pfn", 4 * GIB)):
        kernel = getattr(machine, field)
        model = max((min(end, limit) for start, end in spans if start < limit), default=0)
        model >>= PAGE_SHIFT
        if kernel != model:
            yield Mismatch(field, "", f"{kernel:#x}", f"{model:#x}")


def _brk_differences(machine: Machine, spec: str, registry: Registry) -> Iterator[Mismatch]:
    """How many brk pages the release sets aside; a run cannot show pages that it did not need."""
    hooks = Instances([registry.make(PluginSpec.parse(spec), "allocator")])
    linked, found = link(machine, hooks).kernel.brk_pages, machine.kernel.brk_pages
    if linked != found:
        yield Mismatch("pgt_buf_pages", "", f"{found} pages", f"{linked} pages")


# -- the order in which pages became tables --------------------------------------------------------


def _allocation_differences(record: Mapping[str, Any], run: Run, where: str) -> Iterator[Mismatch]:
    """Every page with its source and step; not for a panic, which leaves the last step open."""
    if "allocations" not in record or run.verdict.outcome is Outcome.PANIC:
        return
    kernel, model = _allocations(record, where), list(_allocated(run.trace))
    if kernel != model:
        yield first_difference("allocations", "page", kernel, model, _allocation)


def _allocations(record: Mapping[str, Any], where: str) -> list[Allocation]:
    check = Checker(where)
    rows = []
    for index, item in enumerate(check.array(record["allocations"], "allocations")):
        key = f"allocations[{index}]"
        pfn, source, step = check.array(item, key, length=3)
        rows.append(
            (check.address(pfn, key), check.text(source, key), check.integer(step, key, 0, 1 << 32))
        )
    return rows


def _allocated(trace: Trace) -> Iterator[Allocation]:
    step = -1
    for event in trace:
        if isinstance(event, RangeSplit):
            step += 1
        elif isinstance(event, TablesAllocated):
            for part in event.batch.pages:
                source = "brk" if part.source is Source.BRK else "memblock"
                run = part.run
                for number in range(run.count):
                    yield run.start + number * run.step, source, step


def _allocation(item: Allocation) -> str:
    pfn, source, step = item
    return f"pfn {pfn:#x} from {source} in call {step + 1}"


def _findings(record: Mapping[str, Any], where: str) -> Iterator[Mismatch]:
    """What a walk of the real tables found wrong; a model has no such entries."""
    check = Checker(where)
    for finding in check.array(record.get("findings", []), "findings")[:1]:
        text = printable(check.text(finding, "findings"))
        yield Mismatch("findings", "", text, "a sound direct map")


# -- reading ---------------------------------------------------------------------------------------


def _spans(check: Checker, record: Mapping[str, Any], key: str) -> list[tuple[int, int]]:
    rows = check.array(check.need(record, key), key)
    return [check.span(item, f"{key}[{index}]") for index, item in enumerate(rows)]


def _e820(check: Checker, record: Mapping[str, Any]) -> list[tuple[int, int, E820Type]]:
    entries = []
    for index, item in enumerate(check.array(check.need(record, "e820"), "e820")):
        key = f"e820[{index}]"
        parts = check.array(item, key, length=3)
        kind = check.integer(parts[2], f"{key}[2]", 0, (1 << 32) - 1)
        entries.append((*check.span(parts[:2], key), E820Type(kind)))
    return entries


def _pfn(check: Checker, record: Mapping[str, Any], key: str) -> int:
    return check.integer(check.need(record, key), key, 1, 1 << 52)


def _version(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in release.split("."))
