"""An observer: a CSV file with a line for each run of pages that become tables.

An observer hears of everything and answers nothing, so it cannot change what it watches. It is made
once a command: ``pvmm_begin`` opens the file, ``pvmm_end`` closes it, whatever happened between.
"""

import csv
from pathlib import Path
from typing import Any, ClassVar

import attrs

from paravirt_mm import API_VERSION, Event, RunStarted, TablesAllocated, hookimpl


@attrs.define
class TableLedger:
    """Write down where tables come from.

    path
        The file; one that exists is written anew.
    """

    pvmm_api: ClassVar[int] = API_VERSION

    path: Path = Path("tables.csv")
    _file: Any = attrs.field(init=False, default=None, repr=False)
    _scenario: tuple[str, str, str] = attrs.field(init=False, default=("", "", ""), repr=False)

    @hookimpl
    def pvmm_begin(self) -> None:
        """Open the file. An error here (a folder that may not be written) leaves us out, by name;
        the command goes on.
        """
        self._file = self.path.open("w", encoding="utf-8", newline="")
        self._write("machine", "allocator", "backend", "batch", "source", "address", "pages")

    @hookimpl
    def pvmm_observe(self, event: Event) -> None:
        """Write down allocations; of a start of a run only which one it is."""
        if isinstance(event, RunStarted):
            self._scenario = (event.machine.name, event.allocator, event.backend)
        elif isinstance(event, TablesAllocated):
            for page in event.batch.pages:
                low, _ = page.run.span
                cells = event.batch.index, page.source, f"{low:#x}", page.run.count
                self._write(*self._scenario, *cells)

    @hookimpl
    def pvmm_end(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _write(self, *cells: object) -> None:
        csv.writer(self._file, lineterminator="\n").writerow(cells)
