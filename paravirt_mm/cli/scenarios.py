"""What the commands share that run scenarios: limits, observers, and rows for runs that had to be
stopped.

A plugin may hang, eat memory or end its process. So scenarios run in a child; where one has to be
stopped its row says so, and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import attrs
import click

from paravirt_mm.cli.output import complain
from paravirt_mm.cli.types import Seconds, size_in_bytes
from paravirt_mm.comparison import Cell, Row
from paravirt_mm.guard import RUNNING, Limits, Stopped, guarded
from paravirt_mm.instances import Instances
from paravirt_mm.machine.model import Machine
from paravirt_mm.options import PluginSpec
from paravirt_mm.registry import Registry
from paravirt_mm.run import Run
from paravirt_mm.scenario import Scenario

Command = TypeVar("Command", bound=Callable[..., Any])
T = TypeVar("T")

_OBSERVER = click.option(
    "--observer", "observers", multiple=True, metavar="SPEC",
    help="Observer, with options: jsonl:path=out.jsonl. May be repeated.",
)  # fmt: skip
_TRACEBACK = click.option(
    "--traceback", is_flag=True, help="Show where in its code a plugin failed."
)
_MATRIX = (
    click.option(
        "-a", "--allocator", "allocators", multiple=True, metavar="SPEC",
        help="Allocator, with options: legacy_linear:kernel=3.6. May be repeated. "
        "[default: what the installed plugins offer]",
    ),
    click.option(
        "-b", "--backend", "backends", multiple=True, metavar="SPEC",
        help="Backend, with options. May be repeated. "
        "[default: what the installed plugins offer]",
    ),
    click.option(
        "--boot", type=click.IntRange(1), help="Which boot of a log with several. [default: 1]"
    ),
)  # fmt: skip


def _with(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def limits(time_limit: float, memory_limit: int) -> Limits:
    """Return what `limit_options` say: seconds of processor time, bytes of memory. A scenario may
    wait, too, but not for long.
    """
    return Limits(cpu=time_limit, wall=2.5 * time_limit, memory=memory_limit)


def limit_options(usual: Limits) -> Callable[[Command], Command]:
    """Give a command the options for what one scenario may cost."""
    return _with(
        click.option(
            "--time-limit", type=Seconds(0.01, 86400), default=usual.cpu,
            show_default=True, metavar="SECONDS", help="A scenario that takes longer is stopped.",
        ),
        click.option(
            "--memory-limit", callback=size_in_bytes,
            default=f"{usual.memory >> 30}G", show_default=True, metavar="SIZE",
            help="A scenario that needs more is stopped.",
        ),
    )  # fmt: skip


matrix = _with(*_MATRIX)
"""Gives a command the options for allocators, backends, and the boot of a log."""
options = _with(_OBSERVER, limit_options(RUNNING), _TRACEBACK)
"""Gives a command the options of `Running`."""


def watching(usual: Limits) -> Callable[[Command], Command]:
    """Give a command observers, and limits of its own."""
    return _with(_OBSERVER, limit_options(usual))


@attrs.frozen
class Running:
    """How a command wants its scenarios to run."""

    registry: Registry
    observers: tuple[str, ...]
    limits: Limits
    traceback: bool

    @classmethod
    def of(
        cls,
        registry: Registry,
        observers: Sequence[str],
        time_limit: float,
        memory_limit: int,
        traceback: bool = False,
    ) -> Running:
        """Make it of what the command line says. Raises `SpecError` for a wrong observer."""
        for text in observers:
            registry.make(PluginSpec.parse(text), "observer")
        return cls(registry, tuple(observers), limits(time_limit, memory_limit), traceback)

    @contextmanager
    def watching(self) -> Iterator[Callable[..., Run]]:
        """Let the observers begin and, in the end, end; give what runs a scenario under them."""
        made = [self.registry.make(PluginSpec.parse(text), "observer") for text in self.observers]
        instances = Instances([], made)
        instances.tell("pvmm_begin")
        told: set[str] = set()

        def run(machine: Machine, allocator: str, backend: str, *, thorough: bool) -> Run:
            watched = (instance for _, instance in made)
            scenario = Scenario.of(machine, allocator, backend, *watched)
            run = scenario.run(self.registry, thorough=thorough)
            for message in run.left_out:
                if message not in told:
                    told.add(message)
                    complain(message)
            return run

        try:
            yield run
        finally:
            instances.tell("pvmm_end")
            for message in instances.left_out:
                complain(message)

    def each(
        self, todo: Sequence[Cell], make: Callable[[Run], T], *, thorough: bool = False
    ) -> Iterator[T]:
        """Yield what ``make`` makes of the runs of scenarios, which happen in a child.

        A scenario that had to be stopped gives an empty run with the verdict ``error``. Raises
        `SpecError` for a wrong spec.
        """
        for _, allocator, backend in todo:
            self.registry.make(PluginSpec.parse(allocator), "allocator")
            self.registry.make(PluginSpec.parse(backend), "backend")

        def work(skip: int) -> Iterator[T]:
            with self.watching() as run:
                for asked in todo[skip:]:
                    yield make(run(*asked, thorough=thorough))

        # The guard first: asked once more after the last scenario, it lets observers hear the end.
        for found, asked in zip(guarded(work, self.limits), todo, strict=False):
            if isinstance(found, Stopped):
                yield make(Scenario.of(*asked).stopped(found))
            else:
                yield found

    def show_tracebacks(self, rows: Iterable[Row]) -> None:
        """Show where plugins failed, if that is wanted."""
        for row in rows:
            if self.traceback and row.traceback:
                click.echo(row.traceback, err=True)
