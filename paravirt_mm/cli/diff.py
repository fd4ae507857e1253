"""``paravirt-mm diff``: where do two allocators differ, and which smallest machine shows it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import click

from paravirt_mm.cli import reading, scenarios
from paravirt_mm.cli.output import complain, emit, per_second, progress, show_status, while_some_can
from paravirt_mm.cli.types import Seconds, jobs_option
from paravirt_mm.counted import counted
from paravirt_mm.diff import (
    Compared,
    Kind,
    kernels_of,
    kinds,
    pairs,
    random_machines,
    survey,
)
from paravirt_mm.differences import ASPECTS
from paravirt_mm.errors import ExitCode
from paravirt_mm.guard import RUNNING, Limits
from paravirt_mm.machine.model import Machine
from paravirt_mm.offers import default_spec
from paravirt_mm.printable import printable
from paravirt_mm.sources import bundled, bundled_machines
from paravirt_mm.sources.machine_file import write_toml
from paravirt_mm.verify.linux.maps import builtin_maps, machine_of_map

_RANDOM = 40
"""Random machines beside those of the package, where the caller names none."""
_SHOWN = 6
"""Names of machines that are printed of each kind of difference."""


@click.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.argument("machines", metavar="[LOG|MACHINE]...", nargs=-1)
@click.option("-b", "--backend", metavar="SPEC", help="Backend. [default: the plain machine]")
@click.option(
    "--random", "count", type=click.IntRange(0, 1_000_000), metavar="N",
    help=f"Random machines as well. [default: {_RANDOM} if no machine is named]",
)  # fmt: skip
@click.option(
    "--seed", type=click.IntRange(0, 2**31), default=0, show_default=True,
    help="Which random machines.",
)  # fmt: skip
@click.option(
    "--in", "aspects", multiple=True, type=click.Choice(ASPECTS),
    help="What counts as a difference. May be repeated. [default: everything]",
)  # fmt: skip
@click.option(
    "--shrink", "seconds", type=Seconds(0, 86400), default=60.0, show_default=True,
    metavar="SECONDS", help="How long each machine may be made smaller; 0: not at all.",
)  # fmt: skip
@jobs_option(256, "At a time")
@click.option(
    "-o", "--output", "folder", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
    help="Write each smallest machine there, as a machine file.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
@scenarios.limit_options(RUNNING)
def command(
    a: str,
    b: str,
    machines: tuple[str, ...],
    backend: str | None,
    count: int | None,
    seed: int,
    aspects: tuple[str, ...],
    seconds: float,
    jobs: int,
    folder: Path | None,
    as_json: bool,
    time_limit: float,
    memory_limit: int,
) -> int:
    """Compare allocators A and B on machines, and shrink a machine for every way they differ.

    A and B are specs of any kind: a model with options (incremental:kernel=6.1), another version of
    a plugin, a real kernel (linux:image=VMLINUZ). Without MACHINE those of the package are taken,
    and random ones. Switches that both have (movable_node) are tried both ways.

    Observers do not watch: pairs run side by side, in processes of their own. `run --observer`
    watches one scenario.

    Exit code 0: no difference; 1: they differ; 2: a spec is wrong; 3: nothing could be compared. So
    `git bisect run` can use it (docs/bisect.md).
    """
    limits = scenarios.limits(time_limit, memory_limit)
    began = time.monotonic()
    todo = list(pairs(a, b, backend or default_spec("backend")))
    chosen = _machines(machines, count, seed, (a, b))
    total = len(chosen) * len(todo)
    asked = while_some_can(survey(todo, chosen, jobs, limits), lambda item: not item.refused)
    found = list(progress(asked, "comparing", total))
    compared = [item for item in found if not item.refused]
    took = time.monotonic() - began
    shrunk = list(_kinds(compared, aspects or ASPECTS, seconds, jobs, limits))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for kind in shrunk:
            emit(write_toml(kind.machine), folder / f"{_file_name(kind)}.toml")
    if as_json:
        click.echo(json.dumps(_json(a, b, found, shrunk), indent=1))
    else:
        click.echo("\n".join(_text(a, b, found, shrunk, took)))
    if len(found) < total:
        complain(f"{total - len(found)} more were not tried: none could be compared for a minute")
    if not compared:
        complain(f"no machine could be compared: {found[0].refused}")
        return ExitCode.BAD_INPUT
    return ExitCode.FINDINGS if shrunk else ExitCode.OK


def _machines(
    names: Sequence[str], count: int | None, seed: int, specs: Sequence[str]
) -> list[Machine]:
    """Return the machines to compare on. Raises `InputError` for the first that cannot be read, and
    for a kernel that cannot.
    """
    machines = list(reading.all_machines(names))
    if not names:
        machines += [machine_of_map(named) for named in builtin_maps()]
        machines += [bundled(name) for name in bundled_machines()]
    if count is None:
        count = 0 if names else _RANDOM
    kernels = list(kernels_of(specs, bundled(bundled_machines()[0])))
    return machines + list(random_machines(count, seed, kernels))


def _kinds(
    found: Sequence[Compared], aspects: Sequence[str], seconds: float, jobs: int, limits: Limits
) -> Iterator[Kind]:
    def tried(aspect: str, tries: int) -> None:
        show_status(f"{aspect}: smaller machines, {tries} tried")

    try:
        yield from kinds(found, aspects, seconds=seconds, jobs=jobs, limits=limits, tried=tried)
    finally:
        show_status("")


def _file_name(kind: Kind) -> str:
    switches = kind.pair.switches.replace("=", "-")
    return f"{kind.difference.aspect}-{switches}" if switches else kind.difference.aspect


def _text(
    a: str, b: str, found: Sequence[Compared], shrunk: Sequence[Kind], seconds: float
) -> Iterator[str]:
    yield f"A  {printable(a)}"
    yield f"B  {printable(b)}"
    yield ""
    for kind in shrunk:
        yield from _kind_text(kind)
        yield ""
    compared = [item for item in found if not item.refused]
    differ = sum(bool(item.differences) for item in compared)
    rate = per_second(2 * len(found), seconds)
    yield f"{differ} of {len(compared)} comparisons differ ({seconds:.0f} s, {rate:.1f} runs/s)"
    refused = [item for item in found if item.refused]
    if refused:
        yield f"{len(refused)} could not be made: {printable(refused[0].refused, 200)}"


def _kind_text(kind: Kind) -> Iterator[str]:
    switches = f" with {kind.pair.switches}" if kind.pair.switches else ""
    names = ", ".join(printable(name) for name in kind.machines[:_SHOWN])
    more = len(kind.machines) - _SHOWN
    named = f"{names} and {more} more" if more > 0 else names
    yield f"{kind.difference.aspect}{switches}: {counted(len(kind.machines), 'machine')} ({named})"
    machine = kind.machine
    yield f"  smallest, from {printable(kind.shrunk_from)} in {counted(kind.tries, 'try')}:"
    features = [name for name in ("pse", "gbpages", "nx") if getattr(machine.features, name)]
    yield f"    {machine.mode.title}; {', '.join(features) or 'no features'}"
    for entry in machine.memory_map:
        yield f"    {entry.start:#013x}-{entry.end:#013x}  {entry.type.label}"
    for low, high in machine.reserved:
        yield f"    {low:#013x}-{high:#013x}  taken"
    yield f"  A  {printable(kind.difference.a, 400)}"
    yield f"  B  {printable(kind.difference.b, 400)}"


def _json(a: str, b: str, found: Sequence[Compared], shrunk: Sequence[Kind]) -> dict[str, Any]:
    return {
        "a": a,
        "b": b,
        "differ": bool(shrunk),
        "kinds": [
            {
                **attrs.asdict(kind.difference),
                "switches": kind.pair.switches,
                "machines": list(kind.machines),
                "machine": write_toml(kind.machine),
                "entries": len(kind.machine.memory_map),
                "shrunk_from": kind.shrunk_from,
                "tries": kind.tries,
            }
            for kind in shrunk
        ],
        "compared": [
            {
                "machine": item.machine.name,
                "switches": item.pair.switches,
                "differences": [attrs.asdict(one) for one in item.differences],
                "refused": item.refused,
            }
            for item in found
        ],
    }
