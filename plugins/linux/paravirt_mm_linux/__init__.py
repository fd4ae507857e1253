"""A real Linux kernel as an allocator: it boots in QEMU on the machine's map, or on a platform that
boots kernels (`pvmm_boot_kernel`), and what it did is the run.

Nothing is modelled here. The ranges that init_memory_mapping was called with, their page sizes, and
every page that became a table are those of the boot; the core draws the same conclusions from them
as from a model's, checks them with the same rules and counts the same figures.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

import paravirt_mm
from paravirt_mm import (
    API_VERSION,
    ISA_END,
    PAGE_SHIFT,
    ActivateRoot,
    Boot,
    CpuFeatures,
    Finding,
    InputError,
    KernelFile,
    KernelImage,
    KernelPanic,
    Machine,
    Map,
    Promise,
    RangeSet,
    Run,
    SpecError,
    Step,
    StepResult,
    TableDemand,
    TablePages,
    TablesAllocated,
    hookimpl,
)

if TYPE_CHECKING:  # what boots kernels is loaded when one boots
    from paravirt_mm import RecordedBoot

_SECONDS = 120.0
RECORDED_TABLES = 9
"""The rule that a run's tables are those that the kernel made."""
_NATIVE_ONLY = (
    "this backend models a platform and boots no kernel there: choose -b native, or one that does "
    "(-b xen:hypervisor=DIR)"
)


@attrs.frozen
class Linux:
    """A real Linux kernel, x86_64, booted in QEMU (not modelled).

    image
        A bzImage (``vmlinuz``) or ``vmlinux``, a distribution's or home-made, or a directory with
        one. Default: ``$PARAVIRT_MM_LINUX``. The kernel must keep its symbols (CONFIG_KALLSYMS_ALL)
        unless the vmlinux was not stripped. Where it lies in memory it says itself.
    movable_node
        Boot with the parameter of that name: memory is given out and mapped from the bottom.
    timeout
        Seconds that one boot may take (default: 120; 280 as dom0); a kernel that hangs is ended
        then. Boots are kept, by image, map and parameters.
    """

    pvmm_api: ClassVar[int] = API_VERSION

    image: str = ""
    movable_node: bool = False
    timeout: float | None = None
    _boots: list[Any] = attrs.field(init=False, factory=list, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        if self.timeout is not None and not 0 < self.timeout <= 86400:
            raise SpecError("linux: timeout is a number of seconds, up to a day")

    @property
    def _boot(self) -> RecordedBoot:
        """The boot of this run."""
        boot: RecordedBoot = self._boots[-1]
        return boot

    @property
    def _parameters(self) -> str:
        return "movable_node" if self.movable_node else ""

    @hookimpl
    def pvmm_kernel_file(self, machine: Machine) -> KernelFile:
        """Name the image."""
        return KernelFile(self.image, self._parameters, self.timeout)

    @hookimpl
    def pvmm_kernel_image(
        self, machine: Machine, features: CpuFeatures, recorded: RecordedBoot | None
    ) -> KernelImage:
        """Boot the kernel, unless the platform has; say where it lies, and how much brk it has set
        aside for tables.
        """
        self._boots.append(recorded or self._booted(machine, features))
        if recorded is not None:
            return recorded.machine.kernel
        boot = self._boot
        kernel = boot.machine.kernel
        dropped = RangeSet(machine.reserved).difference(RangeSet(boot.machine.reserved))
        for _, pfn, _ in boot.tables:
            if pfn << PAGE_SHIFT in dropped:
                raise InputError(
                    f"the machine has something at {pfn << PAGE_SHIFT:#x} that could not be handed "
                    "over to the kernel, which put a table there"
                )
        return kernel

    def _booted(self, machine: Machine, features: CpuFeatures) -> RecordedBoot:
        if features != machine.features:
            raise InputError(_NATIVE_ONLY)  # before hours go into a boot without large pages
        return paravirt_mm.recorded_boot(
            self.image, machine, self._parameters, self.timeout or _SECONDS
        )

    @hookimpl
    def pvmm_promise(self, boot: Boot) -> Promise:
        """Promise the first MiB and all RAM, as every Linux since 3.9 does."""
        promised = RangeSet([(0, ISA_END)])
        promised.update(boot.memblock.memory(0, boot.machine.map_limit))
        return Promise(tuple(promised))

    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
        """Yield the calls of init_memory_mapping as they were."""
        recorded = self._boot
        for number, call in enumerate(recorded.steps, 1):
            yield Map(call.start, call.end, label=f"call {number}", pieces=call.pieces)
        if recorded.panic is not None:
            raise KernelPanic(recorded.panic)
        taken = sum(part.run.count for call in recorded.steps for part in call.pages)
        if taken != boot.tables_made:
            raise InputError(
                f"Linux {recorded.release} took {taken} pages for tables, and its ranges need "
                f"{boot.tables_made}"
            )
        yield ActivateRoot()

    @hookimpl
    def pvmm_allocate_tables(
        self, boot: Boot, step: Step, demand: TableDemand
    ) -> Sequence[TablePages]:
        """Give the pages that the kernel took."""
        recorded = self._boot
        made = boot.tables_made
        pages = list(_dealt(recorded, made, demand.count))
        missing = demand.count - sum(part.run.count for part in pages)
        if not missing:
            return pages
        if recorded.panic is None:
            raise InputError(
                f"Linux {recorded.release} took {made + demand.count - missing} pages for tables, "
                f"and its ranges need more"
            )
        raise KernelPanic(recorded.panic, missing, pages)

    @hookimpl
    def pvmm_check(self, run: Run) -> Iterator[Finding]:
        """Compare the tables of the run with those that the kernel made, one by one."""
        recorded = self._boot
        last = len(run.trace.events) - 1
        for finding in recorded.findings:
            yield Finding(RECORDED_TABLES, last, 0, f"the kernel's own tables: {finding}")
        mode = run.machine.mode
        drawn = {
            (table.level, table.pfn + n * table.step, table.base + n * mode.table_span(table.level))
            for event in run.trace.of(TablesAllocated)
            for table in event.batch.walk_order()
            for n in range(table.count)
        }
        for level, pfn, base in sorted(drawn.symmetric_difference(recorded.tables))[:1]:
            who = "the run" if (level, pfn, base) in drawn else "the kernel"
            yield Finding(
                RECORDED_TABLES, last, base, f"only {who} has this L{level} table: {pfn:#x}"
            )


def _dealt(recorded: RecordedBoot, skip: int, count: int) -> Iterator[TablePages]:
    """Yield ``count`` of the pages that became tables, without the first ``skip``."""
    for part in (part for call in recorded.steps for part in call.pages):
        run = part.run
        if skip >= run.count:
            skip -= run.count
            continue
        run = run.tail(skip)
        skip = 0
        if count <= 0:
            return
        taken = run.head(min(count, run.count))
        count -= taken.count
        yield TablePages(taken, part.source)
