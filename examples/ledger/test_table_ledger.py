"""What it writes is what the trace has."""

import csv
from pathlib import Path

from paravirt_mm_table_ledger import TableLedger

from paravirt_mm import Scenario, TablesAllocated, bundled
from paravirt_mm.testing import AscendingAllocator, PlainPlatform, registry_with


def test_every_table_is_written_down(tmp_path: Path) -> None:
    """Both partners are the kit's own, so that no other plugin is needed."""
    ledger = TableLedger(tmp_path / "tables.csv")
    registry = registry_with(installed=False, ascending=AscendingAllocator, plain=PlainPlatform)
    machine = bundled("qemu-512m")
    ledger.pvmm_begin()
    run = Scenario.of(machine, "ascending", "plain", ledger).run(registry)
    ledger.pvmm_end()
    rows = list(csv.DictReader(ledger.path.read_text(encoding="utf-8").splitlines()))
    assert {row["machine"] for row in rows} == {"qemu-512m"}
    assert sum(int(row["pages"]) for row in rows) == sum(
        event.batch.count for event in run.trace if isinstance(event, TablesAllocated)
    )
