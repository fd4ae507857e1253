"""``paravirt-mm machines``: what ships with the package."""

from __future__ import annotations

import json

import click

from paravirt_mm.cli import reading
from paravirt_mm.machine.model import Machine
from paravirt_mm.offers import machines as brought_machines
from paravirt_mm.printable import printable
from paravirt_mm.registry import default_registry
from paravirt_mm.report.markup import tabulated
from paravirt_mm.report.values import size
from paravirt_mm.sources import bundled, bundled_machines


@click.command()
@click.argument("name", required=False, metavar="[NAME|LOG]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(name: str | None, as_json: bool) -> None:
    """List the machines of the package and of plugins, or show one: its memory map, and where it
    comes from.

    NAME may also be a log or machine file: this shows what was understood of it.
    """
    if name is not None:
        from paravirt_mm.sources.machine_file import write_json, write_toml

        machine = reading.machine(name)
        click.echo(write_json(machine) if as_json else write_toml(machine))
        return
    machines = [bundled(each) for each in bundled_machines()]
    machines += brought_machines(default_registry()).values()
    if as_json:
        click.echo(json.dumps([_record(machine) for machine in machines], indent=1))
        return
    rows = [
        [
            m.name,
            size(m.memory_map.ram_pages().total),
            str(len(m.memory_map.ram_pages())),
            m.mode.name,
            printable(m.provenance.title),
        ]
        for m in machines
    ]
    titles = ("machine", "RAM", "pieces", "mode", "")
    align = ("left", "right", "right")  # and left behind them
    click.echo(tabulated(rows, titles, "simple", align))


def _record(machine: Machine) -> dict[str, object]:
    ram = machine.memory_map.ram_pages()
    return {
        "name": machine.name,
        "ram_bytes": ram.total,
        "ram_pieces": len(ram),
        "mode": machine.mode.name,
        "title": machine.provenance.title,
        "source": machine.provenance.source,
        "kernel_release": machine.provenance.kernel_release,
        "assumed": list(machine.provenance.assumed),
    }
