"""``paravirt-mm hunt``: find the machine that breaks an allocator, and make it small."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from paravirt_mm.cli import reading, scenarios
from paravirt_mm.cli.output import complain, emit, per_second, show_status
from paravirt_mm.cli.types import Seconds, jobs_option
from paravirt_mm.counted import counted
from paravirt_mm.errors import ExitCode
from paravirt_mm.guard import TRYING
from paravirt_mm.hunt.condition import Condition
from paravirt_mm.hunt.found import Found
from paravirt_mm.hunt.search import HuntResult, Quarry, hunt
from paravirt_mm.machine.paging import MODES
from paravirt_mm.offers import default_spec
from paravirt_mm.registry import default_registry


@click.command()
@click.argument("allocator", metavar="ALLOCATOR")
@click.argument("machines", metavar="[LOG|MACHINE]...", nargs=-1)
@click.option(
    "--for", "condition", required=True, metavar="CONDITION",
    help="What to look for: panic, violation, 'waste > 1000', 'reserved > 100 * used', "
    "'panic and other.ok', \"panic 'Cannot find space'\", 'not crashkernel_512m_below_4g'.",
)  # fmt: skip
@click.option("-b", "--backend", metavar="SPEC", help="Backend. [default: the plain machine]")
@click.option(
    "--against", metavar="SPEC",
    help="A second allocator; its figures are 'other.NAME' in the condition, and 'differs' is true "
    "where the two do not end alike.",
)  # fmt: skip
@click.option(
    "--against-backend", metavar="SPEC",
    help="What the second allocator runs under, if not the same. Without --against: the same "
    "allocator, so that two backends are compared.",
)  # fmt: skip
@click.option(
    "--mode", "modes", multiple=True, type=click.Choice(tuple(MODES)),
    help="Paging mode to try. May be repeated. [default: all]",
)  # fmt: skip
@click.option(
    "--time", "seconds", type=Seconds(0.1, 86400), default=60.0, show_default=True,
    metavar="SECONDS",
    help="How long to search; making the machine small takes as long again at the most.",
)  # fmt: skip
@click.option("--tries", type=click.IntRange(1), help="How many machines to try at the most.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True)
@jobs_option(1024, "Processes")
@click.option(
    "-o", "--output", "folder", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
    help="Write found.toml (the machine) and test_found.py (a pytest case) there.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
@scenarios.watching(TRYING)
def command(
    allocator: str,
    machines: tuple[str, ...],
    condition: str,
    backend: str | None,
    against: str | None,
    against_backend: str | None,
    modes: tuple[str, ...],
    seconds: float,
    tries: int | None,
    seed: int,
    jobs: int,
    folder: Path | None,
    as_json: bool,
    observers: tuple[str, ...],
    time_limit: float,
    memory_limit: int,
) -> int:
    """Search memory maps for one on which CONDITION holds for ALLOCATOR, and shrink it.

    It starts from real machines (those of the package, or the ones given), changes them a little,
    and makes up others: every paging mode and feature, holes, reservations, initrds, kernel places,
    firmware oddities. What comes nearest to the condition is changed further.

    \b
    CONDITION: figures (`paravirt-mm figures`), numbers (16M, 0x1000), + - * /, < <= == != >= >,
    outcomes (ok panic rejected violation error, each with an optional text of its reason),
    machine.ram, .entries, .pieces, .max_pfn, .reserved, differs; and, or, not, ( ).
    Of a second allocator (--against): other.FIGURE, other.ok. docs/howto/hunt.md has a table.

    A try in which a plugin fails or has to be stopped is an error, and costs that try. Observers
    watch what is found, not the thousands of tries in several processes.

    Exit code 1: found; 0: not found in so many tries, which proves nothing; 4: not found, and
    tries ended in errors of a plugin.
    """
    running = scenarios.Running.of(default_registry(), observers, time_limit, memory_limit)
    quarry = Quarry(
        allocator=allocator,
        backend=backend or default_spec("backend"),
        condition=condition,
        other=against,
        other_backend=against_backend,
        machines=tuple(reading.all_machines(machines)),
        modes=modes,
    )
    quarry.check()
    with _progress(seconds) as progress:
        result = hunt(
            quarry,
            seed=seed,
            seconds=seconds,
            jobs=jobs,
            max_tries=tries,
            limits=running.limits,
            progress=progress,
        )
    if result.errors:
        complain(f"{result.errors} of {counted(result.tries, 'try')}: {result.error}")
    if result.machine is None:
        for name in sorted(Condition.parse(condition).names - result.figures):
            there = ", ".join(sorted(result.figures)) or "none"
            complain(f"no run on a real machine had a number {name!r}; of plugins it had: {there}")
        click.echo(_not_found(result, seed, as_json))
        return ExitCode.PLUGIN if result.errors else ExitCode.OK
    found = Found.of(quarry, result, limits=running.limits, each=running.each, seconds=seconds)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        emit(found.toml(), folder / "found.toml")
        emit(found.pytest(), folder / "test_found.py")
    click.echo(_as_json(found, result, seed) if as_json else _as_text(found, result, seed, folder))
    return ExitCode.FINDINGS


def _rate(result: HuntResult) -> str:
    tries = counted(result.tries, "try")
    return f"{tries}, {result.seconds:.1f} s, {per_second(result.tries, result.seconds):.0f}/s"


def _not_found(result: HuntResult, seed: int, as_json: bool) -> str:
    account = result.account
    if as_json:
        record = {"found": False, "tries": result.tries, "seed": seed}
        return json.dumps(record | (account.record() if account else {}), indent=1)
    head = f"not found in {_rate(result)} (seed {seed}); that proves nothing"
    return "\n  ".join([head, *(account.lines() if account else ())])


def _as_json(found: Found, result: HuntResult, seed: int) -> str:
    record = {"found": True, "tries": result.tries, "seed": seed, **found.record()}
    return json.dumps(record, indent=1)


def _as_text(found: Found, result: HuntResult, seed: int, folder: Path | None) -> str:
    entries = counted(found.shrunk_from, "map entry")
    head = (
        f"found after {_rate(result)} (seed {seed}); from {entries} "
        f"to {len(found.machine.memory_map)} in {found.tries} more"
    )
    if folder is not None:
        rest = f"written: {folder / 'found.toml'}, {folder / 'test_found.py'}"
    else:
        rest = f"{found.toml()}\nA pytest case and the machine as files: -o DIR"
    return f"{head}\n\n{found.text()}\n\n{rest}"


@contextmanager
def _progress(seconds: float) -> Iterator[Callable[[int, float], None]]:
    """Show tries, rate and the nearest machine on a terminal; nothing elsewhere."""
    began = time.monotonic()

    def told(tries: int, nearest: float) -> None:
        passed = time.monotonic() - began
        rate = per_second(tries, passed)
        line = f"{counted(tries, 'try')}, {rate:.0f}/s, nearest {1 - nearest:.1%}"
        show_status(f"{line}, {max(0, seconds - passed):.0f} s left")

    try:
        yield told
    finally:
        show_status("")
