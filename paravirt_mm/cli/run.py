"""``paravirt-mm run``: one scenario, step by step."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import click

from paravirt_mm.cli import reading, scenarios, screen
from paravirt_mm.cli.output import emit
from paravirt_mm.cli.screen import color_option, paper
from paravirt_mm.cli.types import Address
from paravirt_mm.counted import counted
from paravirt_mm.errors import ExitCode, InputError
from paravirt_mm.machine.model import Machine
from paravirt_mm.machine.paging import MIB
from paravirt_mm.measure import crashkernel
from paravirt_mm.measure.books import free_after
from paravirt_mm.measure.figures import FIGURES
from paravirt_mm.offers import default_spec
from paravirt_mm.printable import printable
from paravirt_mm.registry import default_registry
from paravirt_mm.report.markup import tabulated
from paravirt_mm.report.narrative import narrate
from paravirt_mm.report.paper import Paper
from paravirt_mm.report.tables import assumptions, machine_title
from paravirt_mm.report.tracefile import trace_lines
from paravirt_mm.report.values import show, size
from paravirt_mm.run import Outcome, Run
from paravirt_mm.sources.possible import checked
from paravirt_mm.view.story import chapters


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
    "--kernel-at", metavar="ADDRESS|all", type=Address("all"),
    help="Load the kernel there (16M, 0x19000000), or wherever KASLR may, and say what changes.",
)  # fmt: skip
@click.option(
    "--json", "as_json", is_flag=True, help="Print verdict, findings and figures as JSON."
)
@click.option(
    "--explain", is_flag=True, help="Tell the construction as numbered steps in plain English."
)
@color_option
@scenarios.options
def command(
    machine: str,
    allocator: str | None,
    backend: str | None,
    trace_path: Path | None,
    image_path: Path | None,
    boot: int | None,
    kernel_at: int | str | None,
    as_json: bool,
    explain: bool,
    color: str,
    observers: tuple[str, ...],
    time_limit: float,
    memory_limit: int,
    traceback: bool,
) -> int:
    """Run one scenario and show it step by step: what is mapped, which pages become tables, what is
    handed over, and all figures.

    Numbers in brackets are events of the trace. The tables of a machine that is not too large are
    also made byte for byte, walked, and compared with the trace.
    """
    registry = default_registry()
    running = scenarios.Running.of(registry, observers, time_limit, memory_limit, traceback)
    subject = reading.machine(machine, boot)
    specs = (
        allocator or default_spec("allocator", registry),
        backend or default_spec("backend", registry),
    )
    on = paper(color)
    if kernel_at == "all":
        emit("\n".join(_wherever(subject, specs, running)), None)
        return ExitCode.OK
    if isinstance(kernel_at, int):
        subject = checked(subject.with_kernel_at(kernel_at), subject.name)

    def shown(run: Run) -> tuple[str, str, ExitCode]:
        _write(run, trace_path, image_path)
        text = _as_json(run) if as_json else "\n".join(_as_text(run, on, explain))
        return text, run.traceback, _exit(run)

    ((text, where, code),) = running.each([(subject, *specs)], shown, thorough=True)
    if as_json:
        emit(text, None)
    else:
        screen.write(text, on)
    if traceback and where and not as_json:
        click.echo(where, err=True)
    return code


def _write(run: Run, trace_path: Path | None, image_path: Path | None) -> None:
    """Write trace and image to files, if wanted."""
    if trace_path is not None:
        emit("\n".join(trace_lines(run.trace)), trace_path)
    if image_path is not None and run.trace.events:
        from paravirt_mm.image.elf import write_core

        write_core(run.trace, image_path)


def _exit(run: Run) -> ExitCode:
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
            **({"traceback": run.traceback} if run.traceback else {}),
        },
        indent=1,
    )


def _as_text(run: Run, on: Paper, explain: bool) -> Iterator[str]:
    for line in (*machine_title(run.machine).split("\n"), f"{run.allocator} under {run.backend}"):
        yield textwrap.fill(printable(line), on.width, subsequent_indent="  ")
    if explain:
        yield from _explained(run, on)
    else:
        if run.trace.begun:
            for name, (low, high) in run.trace.start.boot.places:
                yield f"  {printable(name) + ':':<16}{low:#x}-{high:#x} ({size(high - low)})"
        yield ""
        yield from narrate(run.trace)
    verdict = printable(str(run.verdict))
    good = run.verdict.outcome is Outcome.OK
    yield ""
    yield f"verdict: {on.good(verdict) if good else on.bad(verdict)}"
    yield from (f"  {printable(str(finding))}" for finding in run.findings[:20])
    yield from (f"{printable(name)}: {printable(str(value))}" for name, value in run.extra.items())
    yield ""
    if figures := _figures(run, on):
        yield figures
        yield ""
    if assumed := assumptions(run.machine, on):
        yield assumed
        yield ""
    if run.figures:
        yield from _crashkernels(run, on)


def _crashkernels(run: Run, on: Paper) -> Iterator[str]:
    """Yield for which sizes and places a crash kernel fits when the run has ended."""
    free = free_after(run.trace)
    for name, limit in crashkernel.LIMITS:
        most = _mib(crashkernel.largest(free, limit))
        yield f"crashkernel=N fits below {name.upper()} up to {most}"
        for wanted in crashkernel.SIZES:
            spans = [
                _mib(first) if first == last else f"{_mib(first)}..{_mib(last)}"
                for first, last in crashkernel.places(free, wanted * MIB, limit)
            ]
            where = f"  crashkernel={wanted}M@Y: {', '.join(spans) or 'nowhere'}"
            yield textwrap.fill(where, on.width, subsequent_indent="    ")


def _mib(value: int) -> str:
    return f"{value // MIB}M"


def _possible(machines: Iterable[Machine]) -> Iterator[Machine]:
    for machine in machines:
        with suppress(InputError):
            yield checked(machine, machine.name)


def _wherever(
    subject: Machine, specs: tuple[str, str], running: scenarios.Running
) -> Iterator[str]:
    """Yield what the place of the kernel changes, one line a stretch of places that are alike."""
    machines = list(_possible(subject.kernel_places()))
    count = f"{counted(len(machines), 'place')} for the kernel"
    yield f"{printable(subject.name)}: {count}, {printable(' under '.join(specs))}"
    alike: list[tuple[int, int, str]] = []
    todo = [(machine, *specs) for machine in machines]
    for machine, answer in zip(machines, running.each(todo, _in_short), strict=True):
        start = machine.kernel.start
        if alike and alike[-1][2] == answer:
            alike[-1] = alike[-1][0], start, answer
        else:
            alike.append((start, start, answer))
    for first, last, answer in alike:
        yield f"{_mib(first):>8}..{_mib(last):<8} {answer}"


def _in_short(run: Run) -> str:
    """Return how a run ended, and which crash kernels fit then."""
    told = [printable(str(run.verdict))]
    for name, _ in crashkernel.LIMITS:
        fits = [
            f"{wanted}M"
            for wanted in crashkernel.SIZES
            if run.figures.get(f"crashkernel_{wanted}m_below_{name}")
        ]
        told.append(f"crashkernel below {name.upper()}: {', '.join(fits) or 'none'}")
    return "; ".join(told)


def _explained(run: Run, on: Paper) -> Iterator[str]:
    """Yield the steps in plain English; those of the design of seven steps carry its numbers."""
    for chapter in chapters(run):
        number = f"Step {chapter.seed}:" if chapter.seed else f"{chapter.number}."
        events = f"events {chapter.first}-{chapter.last}"
        yield ""
        yield f"{on.strong(f'{number} {chapter.title[:1].upper()}{chapter.title[1:]}')}  [{events}]"
        for sentence in chapter.sentences:
            yield textwrap.fill(
                sentence, on.width, initial_indent="   - ", subsequent_indent="     "
            )


def _figures(run: Run, on: Paper) -> str:
    """Return the figures that say something as a table, with their meanings; empty: none does."""
    cells = [
        (str(figure.group), name, show(figure, run.figures[name]), figure.meaning)
        for name, figure in FIGURES.items()
        if run.figures.get(name)
    ]
    if not cells:
        return ""
    used = sum(max(len(row[column]) for row in cells) + 2 for column in range(3))
    room = on.width - used
    if room < _ROOM:  # `paravirt-mm figures` has what is left out, and its title goes with it
        return tabulated([cell[:3] for cell in cells], _TITLES, "simple", _ALIGN)
    rows: list[tuple[str, ...]] = []
    for group, name, value, meaning in cells:
        shown = "" if any(row[0] == group for row in rows) else group
        first, *more = textwrap.wrap(meaning, room)
        rows += [(shown, name, value, first), *(("", "", "", line) for line in more)]
    return tabulated(rows, _TITLES, "simple", _ALIGN)


_ROOM = 16
"""Columns that meanings must have to be shown."""
_TITLES = ("", "figure", "value", "what it is")
_ALIGN = ("left", "left", "right")
