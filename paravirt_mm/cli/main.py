"""``paravirt-mm``: the group of subcommands, loaded lazily; errors become exit codes."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NoReturn

import click

from paravirt_mm._version import __version__
from paravirt_mm.cli import COMPLETE
from paravirt_mm.cli.output import OutputClosed, complain, streams
from paravirt_mm.errors import Ended, ExitCode, InputError, ParavirtMmError, PluginError, SpecError


class LazyGroup(click.Group):
    """A group whose commands live in modules that are imported when they are used.

    ``commands`` maps a name to (module, one line of help); each module has a ``command``.
    """

    def __init__(self, *args: Any, lazy: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order in which they were given."""
        return [*self._lazy, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        command = super().get_command(ctx, cmd_name)
        if cmd_name in self._lazy:
            command = import_module(self._lazy[cmd_name][0]).command
        if command is not None and COMPLETE in os.environ:
            import_module("paravirt_mm.cli.completion").teach(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is meant; where there is none, say which may be."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            close = get_close_matches(args[0], self.list_commands(ctx))
            if not close:
                raise
            raise click.UsageError(f"{error.message} Did you mean {close[0]!r}?", ctx) from None

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Return what may stand here: names of commands, without importing any, and options."""
        from click.shell_completion import CompletionItem

        names = (name for name in self.list_commands(ctx) if name.startswith(incomplete))
        found = [CompletionItem(name, help=self._lazy.get(name, ("", ""))[1]) for name in names]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any."""
        rows = [(name, text) for name, (_, text) in self._lazy.items()]
        rows += [
            (name, command.get_short_help_str(limit=70))
            for name, command in sorted(self.commands.items())
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


COMMANDS = {
    "compare": ("paravirt_mm.cli.compare", "Compare allocators under several platforms."),
    "run": ("paravirt_mm.cli.run", "Run one scenario and show it step by step."),
    "report": ("paravirt_mm.cli.report", "Write everything as one HTML page to look at."),
    "picture": ("paravirt_mm.cli.picture", "Draw a memory map or a chart as SVG or PNG."),
    "diff": ("paravirt_mm.cli.diff", "Find where two allocators differ, and the smallest machine."),
    "machines": ("paravirt_mm.cli.machines", "List the machines that ship with the package."),
    "plugins": ("paravirt_mm.cli.plugins", "List plugins, their options and hooks."),
    "figures": ("paravirt_mm.cli.figures", "Explain every column of the comparison."),
    "inspect": ("paravirt_mm.cli.inspect", "Show the page tables found in a memory dump."),
    "sweep": ("paravirt_mm.cli.sweep", "Run very many machines, here or on a cluster."),
    "query": ("paravirt_mm.cli.query", "Ask the result of a sweep: panics, waste, SQL."),
    "hunt": ("paravirt_mm.cli.hunt", "Find the machine that breaks an allocator."),
    "new-plugin": ("paravirt_mm.cli.new_plugin", "Write a project for a plugin of yours."),
    "verify": ("paravirt_mm.cli.verify", "Check the models against reality."),
    "completion": ("paravirt_mm.cli.completion", "Print what makes a shell complete words."),
}

_EPILOG = """\b
Start here:
  paravirt-mm compare                      the machines of the package
  paravirt-mm compare /var/log/dmesg       your own machine
  paravirt-mm run lenovo-x230-8g -a incremental:variant=hpa -b xen

Exit codes: 0 fine, 1 findings, 2 wrong usage, 3 unreadable input or unwritable output, 4 broken
plugin, 70 a bug of paravirt-mm, 71 no descriptor or memory left; 130 interrupted, 129 and 143
ended by SIGHUP and SIGTERM."""


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EPILOG,
)
@click.version_option(__version__, prog_name="paravirt-mm")
@click.option(
    "--disable", multiple=True, metavar="NAME", help="Leave a plugin out. May be repeated."
)
@click.option(
    "--only", metavar="NAMES", help="Use these plugins alone, with commas between their names."
)
@click.pass_context
def cli(context: click.Context, disable: tuple[str, ...], only: str | None) -> None:
    """A laboratory for the code that builds an x86 kernel's first page tables.

    It takes a real machine (a boot log, a firmware memory map), runs any allocator of table pages
    under any platform, and compares what that costs: page-status flips, wrong guesses, precious low
    memory.
    """
    if disable or only:
        from paravirt_mm.registry import chosen

        without = [f"-{name}" for name in disable]
        context.with_resource(chosen(",".join([*(only or "").split(","), *without])))


@cli.result_callback()
@click.pass_context
def _warn(context: click.Context, /, result: object, **_: object) -> object:
    """Name the plugins that were left out, on standard error, whatever the command did."""
    registry = sys.modules.get("paravirt_mm.registry")
    if registry is not None and context.invoked_subcommand != "plugins":
        for broken in registry.default_registry().broken:
            click.echo(f"paravirt-mm: {broken}", err=True)
    return result


def main() -> NoReturn:
    """Run the command line; errors are one line on standard error and an exit code."""
    if COMPLETE in os.environ:
        import_module("paravirt_mm.cli.completion").register()
        cli.main(prog_name="paravirt-mm")
    _end_in_order()
    code: int
    try:
        with streams():
            code = _run()
    except OutputClosed:
        code = ExitCode.OK
    except InputError as error:  # what was left for standard output
        complain(error)
        code = exit_code(error)
    sys.exit(code)


def _run() -> int:
    """Run the command and return its exit code; what it raises is told here."""
    try:
        # Not cli.main(): it makes a closed pipe exit code 1, which here means findings.
        with cli.make_context("paravirt-mm", sys.argv[1:]) as context:
            code = cli.invoke(context)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt, EOFError):
        click.echo("interrupted", err=True)
        return ExitCode.INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ParavirtMmError as error:
        complain(error)
        return exit_code(error)
    except (OSError, MemoryError) as error:
        return _refused(error)
    except Ended:
        raise
    except SystemExit as error:
        complain(f"a plugin tried to end the process: sys.exit({error.code!r})")
        return ExitCode.PLUGIN
    except Exception:
        import traceback

        click.echo(traceback.format_exc(), err=True)
        complain("this is a bug of paravirt-mm; please report it with the lines above")
        return ExitCode.BUG
    return code if isinstance(code, int) else ExitCode.OK


_USED_UP: dict[int | None, str] = {
    errno.EMFILE: "no file descriptor is left (`ulimit -n` is how many there may be)",
    errno.ENFILE: "no file descriptor is left on this system",
    errno.ENOMEM: "out of memory",
}


def _refused(error: OSError | MemoryError) -> ExitCode:
    """Tell what the system refuses; return the exit code."""
    number = error.errno if isinstance(error, OSError) else errno.ENOMEM
    complain(f"the system refuses: {_USED_UP.get(number, error)}")
    return ExitCode.SYSTEM if number in _USED_UP else ExitCode.BAD_INPUT


def _end_in_order() -> None:
    """Let SIGTERM and SIGHUP unwind what is going on, so that children and files end in order."""

    def unwind(number: int, _: object) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)
        raise Ended(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        # Ignored means somebody wants that: nohup.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, unwind)


def exit_code(error: ParavirtMmError) -> ExitCode:
    """Return what an error means for the exit code."""
    if isinstance(error, InputError):
        return ExitCode.BAD_INPUT
    if isinstance(error, PluginError):
        return ExitCode.PLUGIN
    if isinstance(error, SpecError):
        return ExitCode.USAGE
    return ExitCode.FINDINGS
