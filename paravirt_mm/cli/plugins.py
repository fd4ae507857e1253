"""``paravirt-mm plugins``: what is installed, usable or broken."""

from __future__ import annotations

import json
from typing import Any

import attrs
import click

from paravirt_mm.errors import ExitCode
from paravirt_mm.hookspecs import Role
from paravirt_mm.printable import printable
from paravirt_mm.registry import Plugin, default_registry


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Show hooks and the documentation of options.")
def command(as_json: bool, verbose: bool) -> int:
    """List plugins with their options, and those that could not be loaded with the reason.

    Exit code 4 when one is broken.
    """
    registry = default_registry()
    if as_json:
        click.echo(
            json.dumps(
                {
                    "plugins": [_record(plugin) for plugin in registry.plugins.values()],
                    "broken": [attrs.asdict(broken) for broken in registry.broken],
                },
                indent=1,
            )
        )
    else:
        for role in Role:
            for plugin in registry.of_role(role):
                _show(plugin, verbose)
        for broken in registry.broken:
            origin = f"{broken.distribution} {broken.version}".strip()
            click.echo(
                f"BROKEN {printable(broken.name)} ({printable(origin)}): "
                f"{printable(broken.problem)}"
            )
    return ExitCode.PLUGIN if registry.broken else ExitCode.OK


def _default(field: attrs.Attribute[Any]) -> Any:
    return None if field.default is attrs.NOTHING else field.default


def _record(plugin: Plugin) -> dict[str, object]:
    return {
        "name": plugin.name,
        "role": plugin.role,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "options": {field.name: str(_default(field)) for field in plugin.options()},
        "hooks": list(plugin.hooks),
    }


def _show(plugin: Plugin, verbose: bool) -> None:
    options = ", ".join(f"{field.name}={_default(field)}" for field in plugin.options())
    click.echo(f"{plugin.role:<10}{plugin.name:<16}{plugin.origin:<24}{options}")
    if verbose:
        for line in (plugin.factory.__doc__ or "").strip().splitlines():
            click.echo(f"    {line.strip()}" if line.strip() else "")
        click.echo(f"    hooks: {', '.join(plugin.hooks)}\n")
