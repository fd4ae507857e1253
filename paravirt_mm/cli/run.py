"""``paravirt-mm run``: one scenario, step by step."""

from __future__ import annotations

import json
from pathlib import Path

import click

from paravirt_mm.cli import reading
from paravirt_mm.cli.output import emit
from paravirt_mm.errors import ExitCode
from paravirt_mm.measure.figures import FIGURES, Group
from paravirt_mm.offers import default_spec
from paravirt_mm.printable import printable
from paravirt_mm.report.narrative import narrate
from paravirt_mm.report.tables import machine_title
from paravirt_mm.report.tracefile import trace_lines
from paravirt_mm.report.values import show, size
from paravirt_mm.run import Outcome, Run
from paravirt_mm.scenario import Scenario


@click.command()
@click.argument("machine", metavar="LOG|MACHINE")
@click.option(
    "-a", "--allocator", metavar="SPEC",
    help="Allocator, with options. [default: what an installed plugin offers]",
)  # fmt: skip
@click.option(
    "-b", "--backend", metavar="SPEC", help="Backend. [default: what an installed plugin offers]"
)
@click.option(
    "--trace", "trace_path", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path),
    help="Write every event, one JSON object a line.",
)  # fmt: skip
@click.option(
    "--image",
    "image_path",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the bytes of all tables, as an ELF core that standard tools open.",
)
@click.option(
    "--boot", type=click.IntRange(1), help="Which boot of a log with several. [default: 1]"
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print verdict, findings and figures as JSON."
)
def command(
    machine: str,
    allocator: str | None,
    backend: str | None,
    trace_path: Path | None,
    image_path: Path | None,
    boot: int | None,
    as_json: bool,
) -> int:
    """Run one scenario and show it step by step: what is mapped, which pages become tables, what is
    handed over, and all figures.

    Numbers in brackets are events of the trace. The tables of a machine that is not too large are
    also made byte for byte, walked, and compared with the trace.
    """
    scenario = Scenario.of(
        reading.machine(machine, boot),
        allocator or default_spec("allocator"),
        backend or default_spec("backend"),
    )
    run = scenario.run(thorough=True)
    if trace_path is not None:
        emit("\n".join(trace_lines(run.trace)), trace_path)
    if image_path is not None and run.trace.events:
        from paravirt_mm.image.elf import write_core

        write_core(run.trace, image_path)
    click.echo(_as_json(run) if as_json else _as_text(run))
    return {
        Outcome.OK: ExitCode.OK,
        Outcome.PANIC: ExitCode.OK,
        Outcome.ERROR: ExitCode.PLUGIN,
    }.get(run.verdict.outcome, ExitCode.FINDINGS)


def _as_json(run: Run) -> str:
    return json.dumps(
        {
            "machine": run.machine.name,
            "allocator": str(run.allocator),
            "backend": str(run.backend),
            "outcome": run.verdict.outcome,
            "verdict": str(run.verdict),
            "findings": [str(finding) for finding in run.findings],
            "figures": dict(run.figures),
        },
        indent=1,
    )


def _as_text(run: Run) -> str:
    lines = [machine_title(run.machine)]
    lines.append(f"{run.allocator} under {run.backend}")
    if run.trace.begun:
        for name, (low, high) in run.trace.start.boot.places:
            lines.append(f"  {name + ':':<16}{low:#x}-{high:#x} ({size(high - low)})")
    lines.append("")
    lines += narrate(run.trace)
    lines += ["", f"verdict: {printable(str(run.verdict))}"]
    lines += [f"  {printable(str(finding))}" for finding in run.findings[:20]]
    lines += [f"{printable(name)}: {printable(str(value))}" for name, value in run.extra.items()]
    for group in Group:
        cells = [
            f"{name} {show(figure, run.figures[name])}"
            for name, figure in FIGURES.items()
            if figure.group is group and run.figures.get(name)
        ]
        if cells:
            lines.append(f"{group + ':':<8}{'; '.join(cells)}")
    return "\n".join(lines)
