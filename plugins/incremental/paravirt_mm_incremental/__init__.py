"""Incremental allocators: no guess; tables come from brk first, then from memory that is already
mapped.

``variant=hpa`` is the proposal of October 2012, ``variant=linux`` what Linux merged from it, by
release.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import attrs

from paravirt_mm import (
    API_VERSION,
    CONFIGURATION,
    ERA,
    MODES,
    Boot,
    Choice,
    CpuFeatures,
    DefaultSpec,
    KernelImage,
    Machine,
    Promise,
    Run,
    SpecError,
    Step,
    StepResult,
    TableDemand,
    TablePages,
    dotted,
    hookimpl,
    parse_release,
    with_trampoline,
)
from paravirt_mm_incremental.hpa import DESIGNED_UPON, SevenSteps
from paravirt_mm_incremental.linux import LinuxSteps
from paravirt_mm_incremental.questions import QUESTIONS
from paravirt_mm_incremental.releases import (
    BottomUp,
    change_for,
    era,
    gives_back_low_memory,
)

if TYPE_CHECKING:
    import click


MOST_BRK_PAGES = 1 << 14
"""64 MiB of brk: more than any kernel is linked with."""


class Variant(StrEnum):
    """Which form of the design."""

    HPA = "hpa"
    LINUX = "linux"


@attrs.frozen
class Incremental:
    """Incremental page-table allocation.

    variant
        ``linux``: as merged in Linux; ``hpa``: the seven steps of the proposal.
    kernel
        For ``linux``, the release to model, for example ``4.19``.
    randomize_memory
        For ``linux``: the kernel was built with CONFIG_RANDOMIZE_MEMORY, which sets more brk aside.
    movable_node
        For ``linux`` from 3.13 on: booted with the parameter of that name, so that memory is given
        out and mapped from the bottom.
    brk_pages
        For ``linux``: pages of brk set aside for tables; default: what the release has. For
        ``hpa``: pages of brk beyond the tables that map the kernel itself; default: 64.
    kaslr
        For ``linux``: the direct map is randomised (4.8 and later, some older distribution
        kernels), which takes a table or two for the real-mode trampoline from brk.
    """

    pvmm_api: ClassVar[int] = API_VERSION

    variant: Variant = Variant.LINUX
    kernel: str = attrs.field(default="4.19", metadata={ERA: era})
    randomize_memory: bool = attrs.field(default=True, metadata={CONFIGURATION: True})
    movable_node: bool = False
    brk_pages: int | None = attrs.field(default=None, metadata={CONFIGURATION: True})
    kaslr: bool = attrs.field(default=False, metadata={CONFIGURATION: True})

    def __attrs_post_init__(self) -> None:
        release = change_for(self.kernel)
        if self.movable_node and release.bottom_up is BottomUp.NO:
            raise SpecError(f"Linux {self.kernel} does not know movable_node (3.13 and later do)")
        if self.variant is Variant.HPA and (self.movable_node or self.kaslr):
            raise SpecError("movable_node and kaslr are options of variant=linux")
        if self.brk_pages is not None and not 0 <= self.brk_pages <= MOST_BRK_PAGES:
            raise SpecError(f"brk_pages={self.brk_pages} is not between 0 and {MOST_BRK_PAGES}")

    @cached_property
    def _design(self) -> LinuxSteps | SevenSteps:
        if self.variant is Variant.HPA:
            return SevenSteps() if self.brk_pages is None else SevenSteps(self.brk_pages)
        return self._linux

    @cached_property
    def _linux(self) -> LinuxSteps:
        return LinuxSteps(
            change_for(self.kernel),
            self.randomize_memory,
            self.brk_pages,
            self.movable_node,
            self.kaslr,
            frees_low=gives_back_low_memory(self.kernel),
        )

    @hookimpl
    def pvmm_kernel_image(self, machine: Machine, features: CpuFeatures) -> KernelImage:
        """Link the kernel with the brk that the variant takes its first tables from."""
        return machine.kernel.with_brk(self._design.brk(machine, features))

    @hookimpl
    def pvmm_promise(self, boot: Boot) -> Promise:
        """Promise what the variant maps."""
        return self._design.promise(boot)

    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
        """Yield the variant's steps."""
        kernel = DESIGNED_UPON if self.variant is Variant.HPA else self.kernel
        return with_trampoline(boot, kernel, self._design.steps(boot))

    @hookimpl
    def pvmm_allocate_tables(
        self, boot: Boot, step: Step, demand: TableDemand
    ) -> Sequence[TablePages]:
        """Give pages as the variant does."""
        return self._design.allocate(boot, step, demand)

    @hookimpl
    def pvmm_figures(self, run: Run) -> dict[str, int] | None:
        """Say how many tables were made for the trampoline, if any were."""
        if not self.kaslr:
            return None
        tables = self._linux.trampoline_tables(run.machine.mode)
        return {"trampoline_tables": tables}

    @hookimpl
    def pvmm_default_specs(self) -> Iterator[DefaultSpec]:
        """Compare what was merged, and what was proposed."""
        yield DefaultSpec("incremental:variant=linux,kernel=4.19", 30, alone=True)
        yield DefaultSpec("incremental:variant=hpa", 40)

    @hookimpl
    def pvmm_models_kernel(self, release: str, parameters: Sequence[str]) -> str | None:
        """Say which spec models a release from 3.9 on."""
        try:
            change_for(release)
        except SpecError:
            return None
        spec = f"incremental:variant=linux,kernel={dotted(parse_release(release))}"
        return f"{spec},movable_node=yes" if "movable_node" in parameters else spec

    @hookimpl
    def pvmm_open_questions(self, release: str, mode: str) -> Iterator[Sequence[Choice]]:
        """Say what a release leaves open."""
        for question in QUESTIONS:
            if question.concerns(release, mode):
                yield [self._with_trampoline(choice, mode) for choice in question.choices]

    def _with_trampoline(self, choice: Choice, mode: str) -> Choice:
        """Return the choice with the tables that the trampoline takes where it makes any."""
        steps = attrs.evolve(self._linux, kaslr=("kaslr", "yes") in choice.options)
        return attrs.evolve(choice, other_tables=steps.trampoline_tables(MODES[mode]))

    @hookimpl
    def pvmm_verifiers(self) -> Iterable[click.Command]:
        """Add ``verify bound``."""
        from paravirt_mm_incremental.command import bound

        return (bound,)
