"""A finished run: how it ended, what it did, and every figure of it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import Any

import attrs

from paravirt_mm.engine.trace import Trace
from paravirt_mm.invariants.rules import Finding
from paravirt_mm.machine.model import Machine
from paravirt_mm.measure.books import Books
from paravirt_mm.measure.figures import FIGURES, figures_of
from paravirt_mm.options import PluginSpec
from paravirt_mm.shown import Shown


class Outcome(StrEnum):
    """How a run ended."""

    OK = "ok"
    PANIC = "panic"
    REJECTED = "rejected"
    VIOLATION = "violation"
    ERROR = "error"


@attrs.frozen
class Verdict:
    """The end of a run in one line."""

    outcome: Outcome
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.outcome}: {self.detail}" if self.detail else str(self.outcome)


@attrs.frozen(slots=False)
class Run(Shown):
    """A finished run: its trace, the findings of the invariants, and its verdict.

    ``extra`` holds the figures that plugins added through ``pvmm_figures``, ``left_out`` what
    became of observers that failed. Where an allocator or backend failed, the trace ends there, and
    ``traceback`` says where in its code. ``thorough`` tells whether every check was asked for; one
    that takes far longer than the run itself waits for that.
    """

    machine: Machine
    allocator: PluginSpec
    backend: PluginSpec
    trace: Trace
    verdict: Verdict
    findings: tuple[Finding, ...] = ()
    extra: Mapping[str, Any] = MappingProxyType({})
    left_out: tuple[str, ...] = ()
    traceback: str = ""
    thorough: bool = False

    @cached_property
    def figures(self) -> Mapping[str, Any]:
        """Every figure of `paravirt_mm.measure`, by name, and those of plugins, by plugin and name
        (``xen.model``); empty where the run failed, or came to no first step.
        """
        if self.books is None:
            return MappingProxyType({})
        return MappingProxyType({**figures_of(self.books), **self.extra})

    def figure(self, name: str) -> Any:
        """Return one figure, for who asks thousands of runs for the same few; None: there is none.
        The others are not worked out.
        """
        if name not in FIGURES or "figures" in self.__dict__:
            return self.figures.get(name)
        return None if self.books is None else FIGURES[name].compute(self.books)

    @cached_property
    def books(self) -> Books | None:
        """What the figures are computed from; None where there are none."""
        failed = self.verdict.outcome is Outcome.ERROR
        return Books(self.trace) if self.trace.begun and not failed else None
