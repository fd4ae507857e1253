"""A recorded dom0 beside the model: the calls in ``init_mem_mapping``, one by one.

The model's run is the allocator of the kernel's own release under this backend, on the machine that
the recording's log tells. Its hypercalls (`paravirt_mm_xen.translate`) are what the platform asks
for. A kernel stores empty entries besides, each by a hypercall (`paravirt_mm_xen.empty_entries`):
these are counted by level, and left out where calls are compared one by one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from paravirt_mm import (
    PAGE_SHIFT,
    PAGE_SIZE,
    E820Type,
    InputError,
    KernelImage,
    Machine,
    MemoryMap,
    Run,
    Scenario,
    load,
    printable,
)
from paravirt_mm_xen.dom0.recording import Dom0Recording, Kind, Request
from paravirt_mm_xen.domain.layout import extra_memory
from paravirt_mm_xen.empty_entries import cleared_entries
from paravirt_mm_xen.traces.format import Operation
from paravirt_mm_xen.translate import translate

STATIC_TABLE = -2
"""Stands for the page of a table that was there before ``init_mem_mapping``."""
_ROOT_ENTRY = 1 << 39  # bytes that an entry of an L4 maps

Asked = tuple[Any, ...]
"""One request in words and numbers that model and recording share."""


@attrs.frozen
class Dom0Comparison:
    """What came of it. ``difference`` is the first place at which the requests are not the same,
    with both sides' request there (None: that side has no more)."""

    recording: Dom0Recording
    run: Run
    real: dict[str, int]
    model: dict[str, int]
    difference: tuple[int, Asked | None, Asked | None] | None

    @property
    def ok(self) -> bool:
        """Whether all counts, and all requests one by one, are the same."""
        return self.difference is None and self.real == self.model

    def lines(self) -> Iterator[str]:
        """A table of the counts, then what differs."""
        said = self.recording
        yield f"Linux {said.release} as dom0 of Xen {printable(said.xen)}, {said.dom0_mib} MiB:"
        for name in sorted({*self.real, *self.model}):
            real, model = self.real.get(name, 0), self.model.get(name, 0)
            differs = "" if real == model else "  differs"
            yield f"  {printable(name):20} {real:7,} {model:7,}{differs}"
        if self.difference is None:
            yield "  every request in init_mem_mapping is the model's, in the same order"
        else:
            number, real_one, model_one = self.difference
            yield f"  request {number}: kernel {_shown(real_one)}, model {_shown(model_one)}"

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "kernel": self.recording.release,
            "xen": self.recording.xen,
            "real": self.real,
            "model": self.model,
            "before": self.recording.counts(inside=False),
            "difference": self.difference,
            "agree": self.ok,
        }


def compare_dom0(recording: Dom0Recording) -> Dom0Comparison:
    """Compare. Raises `paravirt_mm.ParavirtMmError` where the log tells no machine, or the model
    has no run of it.
    """
    machine = machine_of(recording)
    version = recording.release
    run = Scenario.of(
        machine, f"incremental:variant=linux,kernel={version}", f"xen:kernel={version}"
    ).run()
    if not run.trace.begun:
        raise InputError(f"the model has no run of it: {run.verdict}")
    inside = recording.calls[recording.begin :]
    real = _told([_asked(call) for call in inside if not call.clears])
    model = _told(list(_of_model(run)))
    cleared = dict(cleared_entries(run.trace))
    if 1 in cleared:
        cleared[1] += extra_memory(machine.memory_map).total // PAGE_SIZE
    return Dom0Comparison(
        recording=recording,
        run=run,
        real=_summary(real) | _cleared(inside),
        model=_summary(model) | {f"cleared L{level}": n for level, n in cleared.items() if n},
        difference=_first_difference(real, model),
    )


def machine_of(recording: Dom0Recording) -> Machine:
    """The machine that the kernel found: its log's, with the image where its symbols say.

    Kernels that print nothing so early (5.10) found what the host was given, as far as dom0 has
    pages.
    """
    if recording.e820 and not any(_LINUX_MAP in line for line in recording.log):
        machine = Machine(f"dom0-{recording.release}", _given(recording))
        return attrs.evolve(machine, kernel=_image(recording))
    with tempfile.TemporaryDirectory() as name:
        log = Path(name) / "log.txt"  # no word of a recording is part of a path
        log.write_text("\n".join(recording.log), "utf-8", "replace")
        try:
            machine = load(log)
        except InputError as error:
            raise InputError(str(error).replace(str(log), "its log")) from None
    return attrs.evolve(machine, name=recording.release, kernel=_image(recording))


_LINUX_MAP = "BIOS-provided physical RAM map"


def _image(recording: Dom0Recording) -> KernelImage:
    start, end, brk_start, brk_end, top = recording.image
    return KernelImage(start, end, brk_start, brk_end, top)


def _given(recording: Dom0Recording) -> MemoryMap:
    """Return the host's map without the RAM that is not dom0's."""
    memory = MemoryMap.sanitise((low, high, E820Type(kind)) for low, high, kind in recording.e820)
    left = recording.pages * PAGE_SIZE
    for low, high in memory.ram_pages():
        if high - low > left:
            memory = memory.with_range(low + left, high, E820Type.RAM, None)
        left = max(0, left - (high - low))
    return memory


def _asked(call: Request) -> Asked:
    match call.kind:
        case Kind.MMU_UPDATE:
            return "mmu_update", call.pfn, call.index, call.target
        case Kind.UPDATE_VA_MAPPING:
            return "update_va_mapping", call.va, call.target, bool(call.flags & 2)
        case Kind.MMUEXT_OP:
            return call.command, call.pfn


def _of_model(run: Run) -> Iterator[Asked]:
    """The requests of a run, in frames of the domain."""
    translated = translate(run.trace, probes=False)
    pages = [
        pfn
        for low, high in run.trace.start.machine.memory_map.ram_pages()
        for pfn in range(low >> PAGE_SHIFT, high >> PAGE_SHIFT)
    ]
    for number in range(translated.begin, translated.end):
        if number not in translated.stand_in:
            # Linux hands tables over one by one, so that no requests share a multicall.
            yield from _asked_of(translated.trace.ops[number], pages)


def _asked_of(operation: Operation, pages: list[int]) -> Iterator[Asked]:
    match operation:
        case ("mmu_update", table, index, target, _, _):
            yield "mmu_update", pages[table], index, pages[target]
        case ("update_va", va, page, flags):
            yield "update_va_mapping", va, pages[page], bool(flags & 2)
        case ("pin", level, page):
            yield f"PIN_L{level}_TABLE", pages[page]
        case ("unpin", page):
            yield "UNPIN_TABLE", pages[page]
        case ("new_baseptr", page):
            yield "NEW_BASEPTR", pages[page]
        case ("tlb_flush", "local"):
            yield "TLB_FLUSH_LOCAL", -1


def _told(asked: list[Asked]) -> list[Asked]:
    """Requests without what the model need not know: where the kernel's static tables lie, and from
    which address on (KASLR, and 4.20) it has its direct map."""
    own = {one[1] for one in asked if one[0].startswith("PIN_")}
    told: list[Asked] = []
    for name, *fields in asked:
        if name in ("mmu_update", "NEW_BASEPTR") and fields[0] not in own:
            fields[0] = STATIC_TABLE
        elif name == "update_va_mapping":
            fields[0] %= _ROOT_ENTRY
        told.append((name, *fields))
    return told


def _summary(asked: list[Asked]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, *fields in asked:
        if name == "update_va_mapping":
            name = "made writable" if fields[2] else "made read-only"
        counts[name] = counts.get(name, 0) + 1
    return counts


def _cleared(calls: tuple[Request, ...]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for call in calls:
        if call.clears:
            name = f"cleared L{call.level}"
            counts[name] = counts.get(name, 0) + 1
    return counts


def _first_difference(
    real: list[Asked], model: list[Asked]
) -> tuple[int, Asked | None, Asked | None] | None:
    for number in range(max(len(real), len(model))):
        one = real[number] if number < len(real) else None
        other = model[number] if number < len(model) else None
        if one != other:
            return number, one, other
    return None


def _shown(asked: Asked | None) -> str:
    if asked is None:
        return "nothing more"
    name, *fields = asked
    return " ".join([printable(name), *(f"{field:#x}" for field in fields)])
