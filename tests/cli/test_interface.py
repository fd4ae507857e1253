"""What commands take, which scripts rely on: arguments, options, bounds and defaults.

They are kept in tests/data/commands.txt, a line each, so that a change of them is a difference for
whoever reviews it (see tests/kept.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
import pytest

from paravirt_mm.cli import (
    choosing,
    compare,
    completion,
    diff,
    figures,
    hunt,
    inspect,
    machines,
    new_plugin,
    picture,
    plugins,
    query,
    recording,
    report,
    run,
    scenarios,
    screen,
    sweep,
    types,
    verify,
    verify_cpu,
    verify_kernel,
    verify_linux,
    verify_log,
)
from paravirt_mm.cli.main import cli
from paravirt_mm.evidence import EVIDENCE_FILE
from tests.kept import DATA, kept

OWN = ("kernel", "log", "cpu", "linux")
"""The subcommands of ``verify`` that are not a plugin's."""
MANY = 12
"""Choices of which not all are kept: tabulate knows new formats now and then."""


def _commands(
    group: click.Group, within: click.Context | None, before: str = ""
) -> Iterator[tuple[str, click.Context, click.Command]]:
    context = click.Context(group, within, **group.context_settings)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if before and name not in OWN:
            continue
        yield f"{before}{name}", context, command
        if isinstance(command, click.Group):
            yield from _commands(command, context, f"{name} ")


COMMANDS = {name: (within, command) for name, within, command in _commands(cli, None)}


def _kind(kind: click.ParamType[Any]) -> Iterator[str]:
    yield kind.name
    if isinstance(kind, click.Choice):
        few = len(kind.choices) < MANY
        yield "|".join(map(str, kind.choices)) if few else f"{kind.choices[0]} and others"
        if not kind.case_sensitive:
            yield "in any case"
    for name in ("min", "max"):
        if getattr(kind, name, None) is not None:
            yield f"{name} {getattr(kind, name)}"
    yield from getattr(kind, "words", ())
    if isinstance(kind, click.Path):
        yield from ("never a folder",) * (not kind.dir_okay)
        yield from ("never a file",) * (not kind.file_okay)


def _takes(within: click.Context | None, command: click.Command) -> Iterator[str]:
    settings = {} if within else command.context_settings
    given = command.make_context("x", [], within, resilient_parsing=True, **settings).params
    for param in command.params:
        words = [*param.opts, *param.secondary_opts, *_kind(param.type)]
        words += ["any number"] * (param.nargs == -1) + ["required"] * param.required
        if isinstance(param, click.Option):
            words += ["flag"] * param.is_flag + ["repeated"] * param.multiple
            words += ["default shown"] * bool(param.show_default)
        yield ", ".join([*words, f"default {given.get(param.name or '')}"])


def test_what_commands_take_is_what_they_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a system that does not say how many processors it has: then one job at a time."""
    monkeypatch.setattr("os.cpu_count", lambda: None)
    lines = [f"{name}: {line}" for name, command in COMMANDS.items() for line in _takes(*command)]
    told = "\n".join([*(f"paravirt-mm: {line}" for line in _takes(None, cli)), *lines, ""])
    assert told == kept(DATA / "commands.txt", told)


MODULES = {
    "compare": compare, "run": run, "report": report, "picture": picture, "diff": diff,
    "machines": machines, "plugins": plugins, "figures": figures, "inspect": inspect,
    "sweep": sweep, "query": query, "hunt": hunt, "new-plugin": new_plugin, "verify": verify,
    "completion": completion, "verify kernel": verify_kernel, "verify log": verify_log,
    "verify cpu": verify_cpu, "verify linux": verify_linux,
}  # fmt: skip


def test_names_stand_for_commands_and_words_for_the_same_in_each() -> None:
    """Options that several commands have mean the same everywhere."""
    assert {name: found for name, (_, found) in COMMANDS.items()} == {
        name: module.command for name, module in MODULES.items()
    }
    known: dict[str, set[str]] = {}
    for _, command in COMMANDS.values():
        for param in command.params:
            if isinstance(param, click.Option):
                known.setdefault(param.opts[-1], set()).add(param.help or "")

    @click.command()
    @scenarios.matrix
    @scenarios.options
    @screen.color_option
    @choosing.here_option
    @recording.record_option
    def shared() -> None:
        """Take all that is shared."""

    for param in shared.params:
        assert isinstance(param, click.Option)
        assert (param.help or "") in known[param.opts[-1]]
        if param.name == "memory_limit":
            assert types.size_in_bytes(click.Context(shared), param, "128M") == types.LEAST_MEMORY
        if param.name == "record_to":  # --record alone
            assert (param.is_flag, param.flag_value) == (False, str(EVIDENCE_FILE))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_may_be_repeated(name: str) -> None:
    """And nothing else says so."""
    for param in COMMANDS[name][1].params:
        if isinstance(param, click.Option):
            assert ("May be repeated" in (param.help or "")) == param.multiple, param.name


def test_help_fits_a_wide_terminal_and_is_asked_for_in_two_ways(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    within, command = COMMANDS["compare"]
    context = command.make_context("compare", [], within, resilient_parsing=True)
    lines = command.get_help(context).splitlines()
    assert context.make_formatter().width == 98  # of 100, of which click leaves two empty
    assert 90 < max(map(len, lines)) <= 98
    assert any(line.startswith("  -h, --help ") for line in lines)
