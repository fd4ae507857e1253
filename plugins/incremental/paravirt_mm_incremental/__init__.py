"""Incremental allocators: no guess; tables come from brk first, then from memory that is already
mapped.

``variant=hpa`` is the proposal of October 2012, ``variant=linux`` what Linux merged from it, by
release.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from enum import StrEnum
from typing import ClassVar

import attrs

from paravirt_mm import (
    Boot,
    Promise,
    SpecError,
    Step,
    StepResult,
    TableDemand,
    TablePages,
    hookimpl,
)
from paravirt_mm.hookspecs import API_VERSION
from paravirt_mm_incremental.hpa import SevenSteps
from paravirt_mm_incremental.linux import TopDown
from paravirt_mm_incremental.releases import change_for, parse_version


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
    brk_pages
        Pages of brk set aside for tables; default: what the release has, 64 for ``hpa``.
    """

    pvmm_api: ClassVar[int] = API_VERSION

    variant: Variant = Variant.LINUX
    kernel: str = "4.19"
    randomize_memory: bool = True
    brk_pages: int | None = None

    def __attrs_post_init__(self) -> None:
        change_for(self.kernel)

    @property
    def _design(self) -> TopDown | SevenSteps:
        if self.variant is Variant.HPA:
            return SevenSteps() if self.brk_pages is None else SevenSteps(self.brk_pages)
        return TopDown(change_for(self.kernel), self.randomize_memory, self.brk_pages)

    @hookimpl
    def pvmm_promise(self, boot: Boot) -> Promise:
        """Promise what the variant maps."""
        return self._design.promise(boot)

    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
        """Yield the variant's steps."""
        return self._design.steps(boot)

    @hookimpl
    def pvmm_allocate_tables(
        self, boot: Boot, step: Step, demand: TableDemand
    ) -> Sequence[TablePages]:
        """Give pages as the variant does."""
        return self._design.allocate(boot, step, demand)

    @hookimpl
    def pvmm_models_kernel(self, release: str) -> str | None:
        """Say which spec models a release from 3.9 on."""
        try:
            change_for(release)
        except SpecError:
            return None
        return f"incremental:variant=linux,kernel={'.'.join(map(str, parse_version(release)))}"
