"""Fault injection: a platform that goes wrong at a chosen moment.

``-b faulty:of=xen,fault=refuse,operation=12``: the hypervisor refuses the twelfth thing that it is
asked for. ``fault=take,step=4,size=0x200000``: before the fourth step the topmost free memory is
gone. ``late`` and ``wrong`` are a plugin's faulty: it answers after ``seconds``, or nonsense. The
verdict of such a run names the event, and whatever else is compared or swept goes on.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, ClassVar

import attrs

from paravirt_mm import (
    PAGE_SIZE,
    Batch,
    Boot,
    BootState,
    CpuFeatures,
    EntryWrite,
    Finding,
    KernelFile,
    Machine,
    PageRun,
    PluginSpec,
    RecordedBoot,
    Refusal,
    Run,
    Span,
    SpecError,
    Step,
    align_down,
    align_up,
    default_registry,
    hookimpl,
)
from paravirt_mm.hookspecs import API_VERSION

EINVAL = -22


class Fault(StrEnum):
    """What goes wrong."""

    REFUSE = "refuse"
    """The platform refuses an operation."""
    TAKE = "take"
    """Memory vanishes before a step: a balloon, memory that is unplugged, a bank that fails."""
    LATE = "late"
    """The plugin answers an operation late."""
    WRONG = "wrong"
    """The plugin answers an operation with something that is no answer."""


@attrs.define
class Faulty:
    """Another backend, with one fault.

    of
        The backend that is asked for everything else; its options are divided by ``;`` instead of
        commas: ``of=xen:domain=domU;kernel=6.1``.
    fault
        What goes wrong: ``refuse``, ``take``, ``late`` or ``wrong``.
    operation
        Which operation it happens to, counted from 1: entries written, pages made read-only or
        writable, tables pinned, CR3 loaded.
    step
        For ``take``: before which step, counted from 1.
    size
        For ``take``: how much of the highest free memory is gone (bytes, of which whole pages
        count).
    seconds
        For ``late``: by how much.
    """

    pvmm_api: ClassVar[int] = API_VERSION

    of: str = "native"
    fault: Fault = Fault.REFUSE
    operation: int = 1
    step: int = 2
    size: int = PAGE_SIZE
    seconds: float = 1.0
    _inner: Any = attrs.field(init=False, repr=False, eq=False)
    _operations: int = attrs.field(init=False, default=0, repr=False, eq=False)
    _steps: int = attrs.field(init=False, default=0, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        spec = PluginSpec.parse(self.of.replace(";", ","))
        if spec.name == "faulty":
            raise SpecError("faulty: of=faulty would never end")
        if min(self.operation, self.step, self.size) < 1 or not 0 <= self.seconds <= 3600:
            raise SpecError("faulty: operation, step and size begin at 1, seconds at 0")
        plugin = default_registry().get(spec.name, "backend")
        self._inner = plugin.create(dict(spec.options))

    def _ask(self, hook: str, **arguments: Any) -> Any:
        """Ask the other backend, with the parameters that its hook takes."""
        function = getattr(self._inner, hook, None)
        if function is None:
            return None
        taken = inspect.signature(function).parameters
        return function(**{name: arguments[name] for name in taken})

    def _operation(self, hook: str, **arguments: Any) -> Any:
        """Ask for one operation, unless it is the one that goes wrong."""
        self._operations += 1
        if self._operations == self.operation:
            if self.fault is Fault.REFUSE:
                return Refusal(f"operation {self.operation}, {hook}: refused on purpose", EINVAL)
            if self.fault is Fault.WRONG:
                return "this is no answer"
            if self.fault is Fault.LATE:
                time.sleep(self.seconds)
        return self._ask(hook, **arguments)

    @hookimpl
    def pvmm_features(self, machine: Machine) -> CpuFeatures | None:
        """As the other backend."""
        answer: CpuFeatures | None = self._ask("pvmm_features", machine=machine)
        return answer

    @hookimpl
    def pvmm_boot_kernel(self, machine: Machine, kernel_file: KernelFile) -> RecordedBoot | None:
        """Boot what the other boots."""
        answer: RecordedBoot | None = self._ask(
            "pvmm_boot_kernel", machine=machine, kernel_file=kernel_file
        )
        return answer

    @hookimpl
    def pvmm_boot_state(self, machine: Machine) -> BootState | Refusal:
        """As the other backend; a run begins."""
        self._operations = self._steps = 0
        answer: BootState | Refusal = self._ask("pvmm_boot_state", machine=machine)
        return answer

    @hookimpl
    def pvmm_memory_taken(self, boot: Boot, step: Step) -> Iterable[Span]:
        """Take the highest free memory away before the chosen step."""
        self._steps += 1
        yield from self._ask("pvmm_memory_taken", boot=boot, step=step) or ()
        if self.fault is not Fault.TAKE or self._steps != self.step:
            return
        for first, last in boot.memblock.free_descending(0, boot.machine.map_limit):
            low, high = align_up(first, PAGE_SIZE), align_down(last, PAGE_SIZE)
            if low < high:
                low = max(low, high - align_down(self.size, PAGE_SIZE))
                if low < high:
                    yield low, high
                return

    @hookimpl
    def pvmm_write_entries(self, boot: Boot, write: EntryWrite) -> Any:
        """As the other backend, with the fault."""
        return self._operation("pvmm_write_entries", boot=boot, write=write)

    @hookimpl
    def pvmm_map_readonly(self, boot: Boot, start: int, end: int) -> Any:
        """As the other backend."""
        return self._ask("pvmm_map_readonly", boot=boot, start=start, end=end)

    @hookimpl
    def pvmm_make_readonly(self, boot: Boot, tables: Batch) -> Any:
        """As the other backend, with the fault."""
        return self._operation("pvmm_make_readonly", boot=boot, tables=tables)

    @hookimpl
    def pvmm_pin_tables(self, boot: Boot, tables: Batch) -> Any:
        """As the other backend, with the fault."""
        return self._operation("pvmm_pin_tables", boot=boot, tables=tables)

    @hookimpl
    def pvmm_make_writable(self, boot: Boot, pages: Sequence[PageRun]) -> Any:
        """As the other backend, with the fault."""
        return self._operation("pvmm_make_writable", boot=boot, pages=pages)

    @hookimpl
    def pvmm_activate_cr3(self, boot: Boot, root: Batch | None) -> Any:
        """As the other backend, with the fault."""
        return self._operation("pvmm_activate_cr3", boot=boot, root=root)

    @hookimpl
    def pvmm_check(self, run: Run) -> Iterable[Finding] | None:
        """As the other backend."""
        findings: Iterable[Finding] | None = self._ask("pvmm_check", run=run)
        return findings

    @hookimpl
    def pvmm_figures(self, run: Run) -> Mapping[str, int | float | str] | None:
        """As the other backend."""
        figures: Mapping[str, int | float | str] | None = self._ask("pvmm_figures", run=run)
        return figures
