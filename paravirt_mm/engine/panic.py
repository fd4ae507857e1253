"""The end that an allocator may come to: the modelled kernel gives up."""

from __future__ import annotations

from collections.abc import Sequence

from paravirt_mm.engine.pages import TablePages
from paravirt_mm.errors import ParavirtMmError


class KernelPanic(ParavirtMmError):
    """The modelled kernel gives up. Allocators raise it; the run ends with the verdict ``panic``.

    ``missing_tables`` is how many table pages were needed beyond what was set aside for them.
    ``taken`` are the pages (`TablePages`) that the kernel, which takes them one by one, had taken
    for the tables at hand before one was missing.
    """

    def __init__(
        self, reason: str, missing_tables: int = 0, taken: Sequence[TablePages] = ()
    ) -> None:
        super().__init__(reason)
        self.missing_tables = missing_tables
        self.taken = tuple(taken)
