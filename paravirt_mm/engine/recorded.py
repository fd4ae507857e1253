"""A real kernel in a run: the file that boots, and what it did."""

from __future__ import annotations

import attrs

from paravirt_mm.engine.pages import TablePages
from paravirt_mm.engine.split import Piece
from paravirt_mm.machine.model import Machine


@attrs.frozen
class KernelFile:
    """A kernel that boots: where it is (`paravirt_mm.kernel_path` finds it), more words for its
    command line, and how many seconds it may take (None: what is usual on the platform).
    """

    image: str
    parameters: str = ""
    timeout: float | None = None


@attrs.frozen
class RecordedStep:
    """One call of init_memory_mapping: bytes ``[start, end)``, its pieces, and the pages that
    became tables in it, in the order of the kernel's walk (`TableDemand`).
    """

    start: int
    end: int
    pieces: tuple[Piece, ...]
    pages: tuple[TablePages, ...]


@attrs.frozen
class RecordedBoot:
    """What a real kernel did on a machine.

    ``machine`` is the machine as the kernel saw it when it began: memory and reservations as
    memblock had them, and where the kernel itself lies. ``panic`` are the kernel's last words where
    it gave up, ``findings`` what a walk of the finished tables found wrong, ``tables`` every table
    that it made, as ``(level, pfn, physical address that it maps from)``.
    """

    release: str
    machine: Machine
    steps: tuple[RecordedStep, ...]
    tables: tuple[tuple[int, int, int], ...]
    panic: str | None = None
    findings: tuple[str, ...] = ()
