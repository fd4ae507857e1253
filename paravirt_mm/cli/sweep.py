"""``paravirt-mm sweep``: many machines through many scenarios, into one file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import click

from paravirt_mm.cli import reading, scenarios
from paravirt_mm.cli.output import per_second, show_status, terminal
from paravirt_mm.cli.types import jobs_option
from paravirt_mm.errors import ExitCode, PluginError
from paravirt_mm.guard import Limits
from paravirt_mm.offers import default_specs
from paravirt_mm.options import PluginSpec
from paravirt_mm.registry import Registry, default_registry
from paravirt_mm.sources.inputs import GeneratedPart, Part
from paravirt_mm.sweep import cluster
from paravirt_mm.sweep.drive import drive
from paravirt_mm.sweep.guard import close_all, stop_all
from paravirt_mm.sweep.settings import LIMIT, UNREADABLE, Settings
from paravirt_mm.sweep.store import Store

AHEAD = 2
"""Chunks in the queue for each worker, so that none waits for the next one."""


@click.command()
@click.argument("inputs", metavar="[INPUT]...", nargs=-1)
@click.option(
    "-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path),
    help="File for the result (DuckDB). If it exists, the sweep that made it is continued.",
)  # fmt: skip
@click.option("--generate", type=click.IntRange(1), metavar="N", help="Sweep N generated machines.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="For --generate."
)
@scenarios.matrix
@jobs_option(4096, "Local processes")
@click.option(
    "--scheduler", metavar="ADDRESS",
    help="Work on a dask.distributed cluster (tcp://host:8786), whose workers see the INPUTs.",
)  # fmt: skip
@scenarios.limit_options(Limits(cpu=60.0))
@click.option(
    "--chunk", type=click.IntRange(1, 100_000), default=16, show_default=True,
    help="Inputs that are done, and repeated after a crash, together.",
)  # fmt: skip
def command(
    inputs: tuple[str, ...],
    output: Path,
    generate: int | None,
    seed: int,
    allocators: tuple[str, ...],
    backends: tuple[str, ...],
    boot: int | None,
    jobs: int,
    scheduler: str | None,
    time_limit: float,
    memory_limit: int,
    chunk: int,
) -> int:
    """Run every allocator under every backend on very many machines.

    INPUT is a log, machine file, folder or archive of these, a file of kernel-oracle records
    (.jsonl), or a name from `paravirt-mm machines`. Bad inputs and failing plugins cost their own
    rows, which say why. Ask the result with `paravirt-mm query`.

    A sweep that was killed is continued by the same command; what is stored is not done again.
    Observers do not watch it: scenarios run side by side, in processes and on hosts of their own,
    and may run twice. `run --observer` watches one of them.
    """
    if bool(inputs) is (generate is not None):
        raise click.UsageError("give either INPUTs or --generate N")
    registry = default_registry()
    settings = Settings(
        allocators or default_specs("allocator", registry),
        backends or default_specs("backend", registry),
        boot,
        time_limit,
        memory_limit,
        chunk,
    )
    _check_specs(settings, registry)
    paths = [str(Path(name).absolute()) if os.path.lexists(name) else name for name in inputs]

    def parts() -> Iterator[Part]:
        if generate is not None:
            return (GeneratedPart(seed, number) for number in range(generate))
        return reading.parts(paths)

    workers = _cluster(scheduler, paths) if scheduler else _local(jobs)
    with workers as (executor, width), Store(output, settings, registry) as store:
        with _progress(parts) as progress:
            drive(parts(), settings, store, executor, AHEAD * width, progress)
        outcomes = store.outcomes()
    counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
    click.echo(f"{output}: {counts or 'no inputs'}")
    if outcomes.keys() & {UNREADABLE, LIMIT, "error", "violation"}:
        click.echo(f"`paravirt-mm query {output} errors` tells which, and why", err=True)
    if "error" in outcomes:
        return ExitCode.PLUGIN
    if UNREADABLE in outcomes:
        return ExitCode.BAD_INPUT
    return ExitCode.FINDINGS if {"violation", LIMIT} & outcomes.keys() else ExitCode.OK


def _check_specs(settings: Settings, registry: Registry) -> None:
    """Refuse wrong specs before anything is done; a broken plugin is none, it costs its rows."""
    for role, specs in (("allocator", settings.allocators), ("backend", settings.backends)):
        for text in specs:
            spec = PluginSpec.parse(text)
            try:
                registry.get(spec.name, role).create(dict(spec.options))
            except PluginError as error:
                click.echo(f"paravirt-mm: {error}", err=True)


@contextmanager
def _local(jobs: int) -> Iterator[tuple[Executor, int]]:
    """Threads that each look after one child process."""
    executor = ThreadPoolExecutor(jobs, thread_name_prefix="sweep")
    try:
        yield executor, jobs
    except BaseException:
        stop_all()  # or the threads would wait for what their children are doing
        raise
    finally:
        executor.shutdown(cancel_futures=True)
        close_all()


@contextmanager
def _cluster(address: str, paths: Sequence[str]) -> Iterator[tuple[Executor, int]]:
    with cluster.connect(address, [path for path in paths if Path(path).is_absolute()]) as workers:
        yield workers


@contextmanager
def _progress(parts: Callable[[], Iterator[Part]]) -> Iterator[Callable[[int, bool], None]]:
    """Show progress with rate and time left on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda count, computed: None
        return
    total = sum(1 for _ in parts())
    begin = time.monotonic()
    finished = computed = 0

    def line(count: int, now: bool) -> str:
        nonlocal finished, computed
        finished += count
        computed += count if now else 0
        rate = per_second(computed, time.monotonic() - begin)
        left = timedelta(seconds=int((total - finished) / rate)) if rate else "?"
        return f"{finished}/{total} inputs, {rate:.1f}/s, {left} left"

    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
    except ImportError:
        yield lambda count, now: show_status(line(count, now))
        return
    columns = (TextColumn("sweeping"), BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(file=terminal(err=True)), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda count, now: bar.update(task, advance=count, description=line(count, now))
