"""``paravirt-mm verify cpu``: an emulated CPU walks the tables that each scenario builds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import click

from paravirt_mm.cli import scenarios
from paravirt_mm.cli.recording import record_option
from paravirt_mm.counted import counted
from paravirt_mm.errors import ExitCode, InputError
from paravirt_mm.evidence import Evidence, record_evidence
from paravirt_mm.guard import MIB, Limits
from paravirt_mm.machine.model import Machine
from paravirt_mm.machine.paging import X86_64, X86_64_LA57

if TYPE_CHECKING:
    from paravirt_mm.verify.cpu import CpuReport

WALKING = Limits(cpu=600.0, wall=1500.0, memory=4096 * MIB)
"""For one scenario and the walk through its tables."""


@click.command("cpu")
@click.argument("machines", nargs=-1, metavar="[MACHINE|LOG]...")
@click.option(
    "-a", "--allocator", "allocators", multiple=True, metavar="SPEC",
    help="Only this allocator. May be repeated.",
)  # fmt: skip
@click.option(
    "-b", "--backend", "backends", multiple=True, metavar="SPEC",
    help="Only this backend. May be repeated.",
)  # fmt: skip
@click.option(
    "--la57/--no-la57",
    default=True,
    show_default=True,
    help="Check 64-bit machines with 5 levels too, where the platform has them.",
)
@click.option(
    "--samples", type=click.IntRange(0, 100_000), default=4, show_default=True,
    help="Random addresses a leaf run.",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Chooses the random addresses.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a scenario.")
@record_option
@scenarios.watching(WALKING)
def command(
    machines: tuple[str, ...],
    allocators: tuple[str, ...],
    backends: tuple[str, ...],
    la57: bool,
    samples: int,
    seed: int,
    as_json: bool,
    record_to: Path | None,
    observers: tuple[str, ...],
    time_limit: float,
    memory_limit: int,
) -> int:
    """Load page tables into an emulated x86 CPU (unicorn) and let it walk them.

    For every scenario the image of its tables is made, CR0, CR3, CR4 and EFER are set, and the CPU
    reads, writes and jumps to the first, last and random addresses of each leaf run and to both
    sides of every hole. Physical addresses, rights and fault codes must be what the independent
    walker says; under Xen no table may be writable. Without MACHINE: all that ship with the
    package.

    The emulated CPU has 40 physical address bits: entries that refer to memory above 1 TiB must
    fault there with a reserved bit, and are counted apart.
    """
    from paravirt_mm.cli import reading
    from paravirt_mm.cli.output import progress
    from paravirt_mm.offers import default_specs
    from paravirt_mm.registry import default_registry
    from paravirt_mm.run import Outcome, Run
    from paravirt_mm.sources import bundled_machines
    from paravirt_mm.verify.cpu import check_cpu

    chosen = reading.all_machines(machines or bundled_machines())
    todo = [
        (machine, allocator, backend)
        for given in chosen
        for machine in _modes(given, la57)
        for allocator in allocators or default_specs("allocator")
        for backend in backends or default_specs("backend")
    ]

    def walked(run: Run) -> tuple[str, CpuReport | None, str]:
        if run.verdict.outcome is Outcome.ERROR:
            return "failed", None, str(run.verdict)
        try:
            return "walked", check_cpu(run.trace, samples, seed), str(run.verdict)
        except InputError as error:
            # A domain that was refused before its first step has no tables.
            return "refused", None, f"no tables: {error}"

    running = scenarios.Running.of(default_registry(), observers, time_limit, memory_limit)
    failed = checked = probes = 0
    broken = False
    evidence: list[Evidence] = []
    made = progress(running.each(todo, walked), "walking", len(todo))
    for (machine, allocator, backend), (how, report, verdict) in zip(todo, made, strict=True):
        _show(f"{machine.name}  {allocator}  {backend}", report, verdict, as_json)
        if how == "failed":
            broken = True
        if report is not None:
            checked += 1
            probes += report.probes
            failed += not report.agrees
            evidence.append(Evidence(allocator, int(report.agrees), 1))
    if record_to is not None:
        record_evidence(record_to, "cpu", evidence)
    if not as_json:
        click.echo(
            f"{counted(checked, 'image')}, {counted(probes, 'access')}: "
            f"{counted(failed, 'image', 'differ')}"
        )
    if broken:
        return ExitCode.PLUGIN
    return ExitCode.FINDINGS if failed else ExitCode.OK


def _modes(machine: Machine, la57: bool) -> list[Machine]:
    """Return the machine, and the same with 5 levels where that makes sense."""
    if not la57 or machine.mode != X86_64:
        return [machine]
    return [machine, attrs.evolve(machine, name=f"{machine.name}+la57", mode=X86_64_LA57)]


def _show(name: str, report: CpuReport | None, verdict: str, as_json: bool) -> None:
    from paravirt_mm.printable import printable

    if as_json:
        shown: dict[str, object] = {"scenario": name, "verdict": verdict}
        if report is not None:
            shown |= {
                "agrees": report.agrees,
                "probes": report.probes,
                "faults": report.faults,
                "beyond_1tib": report.beyond,
                "leaf_runs": report.runs,
                "hole_sides": report.holes,
                "disagreements": [str(item) for item in report.disagreements],
                "findings": [str(item) for item in report.findings],
                "writable_tables": [list(span) for span in report.writable_tables],
            }
        click.echo(json.dumps(shown))
        return
    if report is None:
        click.echo(printable(f"-       {name}: {verdict}"))
        return
    word = "agrees" if report.agrees else "DIFFERS"
    beyond = f", {report.beyond} beyond 1 TiB" if report.beyond else ""
    click.echo(
        printable(
            f"{word:7} {name}: {report.probes} accesses, {report.faults} faults{beyond},"
            f" {report.runs} runs ({verdict})"
        )
    )
    for trouble in (
        *map(str, report.disagreements[:5]),
        *map(str, report.findings[:5]),
        *(f"table at {low:#x} can be written" for low, _ in report.writable_tables[:5]),
    ):
        click.echo(f"        {printable(trouble)}")
