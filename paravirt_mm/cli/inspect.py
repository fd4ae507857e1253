"""``paravirt-mm inspect``: the page tables that a dump of physical memory holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import click

from paravirt_mm.cli.types import WholeNumber
from paravirt_mm.errors import ExitCode, InputError
from paravirt_mm.machine.paging import MODES
from paravirt_mm.measure.figures import FIGURES, Unit, Value
from paravirt_mm.printable import printable

if TYPE_CHECKING:
    from paravirt_mm.image.dump import Dump
    from paravirt_mm.image.inspect import Inspection


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--cr3", type=WholeNumber(), help="Physical address of the root table.")
@click.option("--mode", type=click.Choice(tuple(MODES)), help="The paging mode.")
@click.option(
    "--base", type=WholeNumber(), default=0, help="Physical address of a raw file's first byte."
)
@click.option("--runs", is_flag=True, help="List the leaf runs too: what is mapped, and how.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    file: Path, cr3: int | None, mode: str | None, base: int, runs: bool, as_json: bool
) -> int:
    """Show the page tables that a dump of physical memory holds, with the figures of `compare`.

    FILE is an ELF core (QEMU's dump-guest-memory, a kdump vmcore, or `run --image`), or raw memory
    (QEMU's pmemsave), which needs --cr3 and --mode. What is wrong with the dump or its tables is
    listed, and makes the exit code 1.
    """
    from paravirt_mm.cli import reading

    text, code = reading.reading(_inspected, file, base, cr3, mode, runs, as_json)
    click.echo(text)
    return code


def _inspected(
    file: Path, base: int, cr3: int | None, mode: str | None, runs: bool, as_json: bool
) -> tuple[str, ExitCode]:
    from paravirt_mm.image.dump import open_dump
    from paravirt_mm.image.inspect import inspect

    with open_dump(file, base) as dump:
        paging = MODES[mode] if mode is not None else dump.mode
        root = cr3 if cr3 is not None else dump.cr3
        if paging is None or root is None:
            missing = " and ".join(
                name for name, value in (("--cr3", root), ("--mode", paging)) if value is None
            )
            if dump.problems:
                raise InputError(
                    f"{'; '.join(dump.problems)}; give {missing}", printable(str(file))
                )
            raise click.UsageError(
                f"{printable(str(file))} does not say where its tables are; give {missing}"
            )
        alignment = 32 if paging.name == "i386-pae" else 4096
        result = inspect(dump, root - root % alignment, paging)
        text = _json(dump, result, runs) if as_json else _text(dump, result, runs)
        return text, ExitCode.FINDINGS if dump.problems or result.findings else ExitCode.OK


def _json(dump: Dump, result: Inspection, runs: bool) -> str:
    record = {
        "file": dump.path,
        "kind": dump.kind,
        "mode": result.mode.name,
        "cr3": result.root,
        "figures": dict(result.figures),
        "direct_map": attrs.asdict(result.direct_map) if result.direct_map else None,
        "direct_figures": dict(result.direct_figures) if result.direct_figures else None,
        "problems": list(dump.problems),
        "findings": [
            {**attrs.asdict(finding), "text": str(finding)} for finding in result.findings
        ],
        "more_findings": result.dropped,
    }
    if runs:
        record["runs"] = [attrs.asdict(run) for run in result.runs]
    return json.dumps(record, indent=1)


def _cell(unit: Unit, value: Value) -> str:
    from paravirt_mm.report.values import MISSING, size

    if value is None:
        return MISSING
    if unit is Unit.ADDRESS:
        return f"{value:#x}"
    return size(int(value)) if unit is Unit.BYTES else str(value)


def _explained(name: str) -> tuple[Unit, str]:
    """Return the unit and the meaning of a figure."""
    from paravirt_mm.image.inspect import OWN

    figure = FIGURES.get(name)
    return (figure.unit, figure.meaning) if figure is not None else OWN[name]


def _text(dump: Dump, result: Inspection, runs: bool) -> str:
    from paravirt_mm.report.markup import tabulated

    direct = result.direct_figures or {}
    rows = [
        [name, _cell(unit, value), _cell(unit, direct.get(name)), meaning]
        for name, value in result.figures.items()
        for unit, meaning in (_explained(name),)
    ]
    lines = [
        f"{printable(dump.path)}: {dump.kind}, {result.mode.title}, CR3 {result.root:#x}",
        *(
            f"  {printable(key)}: {printable(dump.facts[key])}"
            for key in _FACTS
            if key in dump.facts
        ),
    ]
    if result.direct_map is not None:
        span = result.direct_map
        lines.append(f"direct map: {span.start:#x}-{span.end - 1:#x}, physical 0 at {span.base:#x}")
    titles = ("", "all tables", "direct map", "")
    lines += ["", tabulated(rows, titles, "simple", ("left",) * len(titles))]
    if runs:
        lines += ["", *_runs(result)]
    troubles = [*dump.problems, *map(str, result.findings)]
    if result.dropped:
        troubles.append(f"and {result.dropped} more")
    if troubles:
        lines += ["", "Findings:", *(f"  {printable(text)}" for text in troubles)]
    return "\n".join(lines)


_FACTS = ("machine", "allocator", "backend", "OSRELEASE")


def _runs(result: Inspection) -> list[str]:
    return [
        f"{run.start:#018x}-{run.end - 1:#018x} -> {run.physical:#014x}"
        f" {result.mode.page_name(run.level):>3}"
        f" {'rw' if run.writable else 'ro'}"
        f" {'x ' if run.executable else 'nx'}"
        f" {'user' if run.user else 'kern'}"
        f"{' global' if run.global_ else ''}"
        for run in result.runs
    ]
