"""``paravirt-mm``: the group of subcommands, loaded lazily; errors become exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

from paravirt_mm._version import __version__
from paravirt_mm.errors import ExitCode, InputError, ParavirtMmError, PluginError, SpecError


class LazyGroup(click.Group):
    """A group whose commands live in modules that are imported when they are used.

    ``commands`` maps a name to (module, one line of help); each module has a ``command``.
    """

    def __init__(self, *args: Any, lazy: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order in which they were given."""
        return [*self._lazy, *sorted(super().list_commands(ctx))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        if cmd_name not in self._lazy:
            return super().get_command(ctx, cmd_name)
        command: click.Command = import_module(self._lazy[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any."""
        rows = [(name, text) for name, (_, text) in self._lazy.items()]
        for name in sorted(super().list_commands(ctx)):
            command = super().get_command(ctx, name)
            if command is not None:
                rows.append((name, command.get_short_help_str(limit=70)))
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


COMMANDS = {
    "compare": ("paravirt_mm.cli.compare", "Compare allocators under native and Xen on machines."),
    "run": ("paravirt_mm.cli.run", "Run one scenario and show it step by step."),
    "machines": ("paravirt_mm.cli.machines", "List the machines that ship with the package."),
    "plugins": ("paravirt_mm.cli.plugins", "List plugins, their options and hooks."),
    "figures": ("paravirt_mm.cli.figures", "Explain every column of the comparison."),
    "inspect": ("paravirt_mm.cli.inspect", "Show the page tables found in a memory dump."),
    "sweep": ("paravirt_mm.cli.sweep", "Run very many machines, here or on a cluster."),
    "query": ("paravirt_mm.cli.query", "Ask the result of a sweep: panics, waste, SQL."),
    "hunt": ("paravirt_mm.cli.hunt", "Find the machine that breaks an allocator."),
    "verify": ("paravirt_mm.cli.verify", "Check the models against reality."),
}

_EPILOG = """\b
Start here:
  paravirt-mm compare                      the machines of the package
  paravirt-mm compare /var/log/dmesg       your own machine
  paravirt-mm run lenovo-x230-8g -a incremental:variant=hpa -b xen

Exit codes: 0 fine, 1 findings, 2 wrong usage, 3 unreadable input, 4 broken plugin."""


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EPILOG,
)
@click.version_option(__version__, prog_name="paravirt-mm")
def cli() -> None:
    """A laboratory for the code that builds an x86 kernel's first page tables.

    It takes a real machine (a boot log, a firmware memory map), runs any allocator of table pages
    under any platform, and compares what that costs: page-status flips, wrong guesses, precious low
    memory.
    """


def main() -> None:
    """Run the command line; errors are one line on standard error and an exit code."""
    try:
        code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else ExitCode.OK)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ParavirtMmError as error:
        click.echo(f"paravirt-mm: {error}", err=True)
        sys.exit(exit_code(error))
    except BrokenPipeError:
        # The reader went away: not an error, but Python would complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.OK)


def exit_code(error: ParavirtMmError) -> ExitCode:
    """Return what an error means for the exit code."""
    if isinstance(error, InputError):
        return ExitCode.BAD_INPUT
    if isinstance(error, PluginError):
        return ExitCode.PLUGIN
    if isinstance(error, SpecError):
        return ExitCode.USAGE
    return ExitCode.FINDINGS
