"""``paravirt-mm plugins``: what is installed, usable or broken."""

from __future__ import annotations

import inspect
import json
import textwrap

import attrs
import click

from paravirt_mm.cli.output import complain
from paravirt_mm.errors import ExitCode
from paravirt_mm.evidence import recorded
from paravirt_mm.hookspecs import Role
from paravirt_mm.options import described
from paravirt_mm.plugin import Plugin
from paravirt_mm.printable import printable
from paravirt_mm.registry import Registry, default_registry

_WIDTH = 96


@click.command()
@click.argument("name", required=False, metavar="[NAME]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Show each as if it were named.")
def command(name: str | None, as_json: bool, verbose: bool) -> int:
    """List plugins with their options, and those that could not be loaded with the reason.

    With NAME (of a plugin, or ./file.py:Class), show one: what it is, each option with what it
    accepts, its default and what it is for, its hooks, and what it was checked against.

    Exit code 4 when one is broken.
    """
    registry = default_registry()
    if name is not None:
        plugin = registry.get(name)
        click.echo(json.dumps(_record(plugin), indent=1) if as_json else _page(plugin))
        return ExitCode.OK
    usable = [plugin for role in Role for plugin in registry.of_role(role)]
    if as_json:
        click.echo(json.dumps(_records(registry, usable), indent=1))
    else:
        for plugin in usable:
            click.echo(_page(plugin) + "\n" if verbose else _line(plugin))
        for broken in registry.broken:
            origin = f"{broken.distribution} {broken.version}".strip()
            words = f"BROKEN {broken.name} ({origin}): {broken.problem}"
            click.echo(printable(words, 4000))
        if not usable:
            complain("no plugin is installed")
    return ExitCode.PLUGIN if registry.broken else ExitCode.OK


def _records(registry: Registry, usable: list[Plugin]) -> dict[str, object]:
    return {
        "plugins": [_record(plugin) for plugin in usable],
        "broken": [attrs.asdict(broken) for broken in registry.broken],
    }


def _record(plugin: Plugin) -> dict[str, object]:
    return {
        "name": plugin.name,
        "role": str(plugin.role),
        "distribution": plugin.distribution,
        "version": plugin.version,
        "class": f"{plugin.factory.__module__}:{plugin.factory.__qualname__}",
        "api": plugin.api,
        "about": inspect.getdoc(plugin.factory) or "",
        "options": [attrs.asdict(option) for option in described(plugin.factory)],
        "hooks": list(plugin.hooks),
        "verified": recorded(plugin.name),
    }


def _line(plugin: Plugin) -> str:
    options = ", ".join(f"{one.name}={one.default}" for one in described(plugin.factory))
    return printable(f"{plugin.role:<10}{plugin.name:<16}{plugin.origin:<24}{options}", 4000)


def _page(plugin: Plugin) -> str:
    about = (inspect.getdoc(plugin.factory) or "").partition("\n\n")[0]
    lines = [f"{plugin.name}: {plugin.role} of {plugin.origin}", *_wrapped(about, "  ")]
    for option in described(plugin.factory):
        lines += ["", f"  {option.name}={option.default}   {option.accepts}"]
        lines += _wrapped(option.help, "      ")
    lines += ["", *_wrapped(f"hooks: {', '.join(plugin.hooks)}", "  ")]
    checked = [f"{spec}: {how}" for spec, how in recorded(plugin.name).items()]
    lines += ["  checked against:", *(f"    {line}" for line in checked or ["not"])]
    return "\n".join(printable(line, 1000) for line in lines)


def _wrapped(text: str, indent: str) -> list[str]:
    words = " ".join(text.split())
    return textwrap.wrap(words, _WIDTH, initial_indent=indent, subsequent_indent=indent)
