"""``paravirt-mm figures``: what every column means."""

from __future__ import annotations

import json

import click

from paravirt_mm.measure.figures import FIGURES


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Explain every column of the comparison: title, unit, meaning. Columns marked * are in the
    short table.
    """
    if as_json:
        rows = [
            {
                "name": f.name,
                "group": f.group,
                "unit": f.unit,
                "header": f.header,
                "key": f.key,
                "meaning": f.meaning,
            }
            for f in FIGURES.values()
        ]
        click.echo(json.dumps(rows, indent=1))
        return
    group = None
    for figure in FIGURES.values():
        if figure.group is not group:
            group = figure.group
            click.echo(f"\n{group}")
        mark = "*" if figure.key else " "
        click.echo(f" {mark}{figure.header:<18}{figure.name} ({figure.unit}): {figure.meaning}")
