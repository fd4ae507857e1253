"""Shell completion: commands, machines, plugins, their options and values.

click speaks with the shells; this adds what it cannot know, and lets bash complete words with
``:`` and ``=`` in them, as specs have.
"""

from __future__ import annotations

import enum
import os
import typing
from collections.abc import Callable, Iterator
from typing import Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    add_completion_class,
    split_arg_string,
)

from paravirt_mm.cli import COMPLETE

SHELLS = ("bash", "zsh", "fish")

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def teach(command: click.Command) -> None:
    """Tell a command's parameters how to complete themselves, by what they are called."""
    for parameter in command.params:
        completer = _completer(parameter)
        if completer is not None:
            parameter._custom_shell_complete = completer
    for child in getattr(command, "commands", {}).values():
        teach(child)


def _completer(parameter: click.Parameter) -> Completer | None:
    metavar = parameter.metavar or ""
    if "MACHINE" in metavar or metavar in {"[INPUT]...", "[NAME|LOG]"}:
        return _machines
    if parameter.name in {"allocator", "allocators", "against"}:
        return _allocators
    if parameter.name in {"backend", "backends"}:
        return _backends
    return None


def _machines(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer machines by name; where none fits, files."""
    from paravirt_mm.offers import machines
    from paravirt_mm.registry import default_registry
    from paravirt_mm.sources import bundled_machines

    names = [*bundled_machines(), *machines(default_registry())]
    found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]


def _allocators(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(text) for text in _specs("allocator", incomplete)]


def _backends(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(text) for text in _specs("backend", incomplete)]


def _specs(role: str, incomplete: str) -> Iterator[str]:
    """Yield what a spec may become: a name, a name with an option, an option with a value."""
    from paravirt_mm.registry import default_registry

    plugins = default_registry().plugins
    name, colon, rest = incomplete.partition(":")
    if not colon:
        names = (key for key, plugin in plugins.items() if plugin.role == role)
        yield from sorted(key for key in names if key.startswith(name))
        return
    if name not in plugins:
        return
    before, comma, last = rest.rpartition(",")
    head = f"{name}:{before}{comma}"
    key, equals, value = last.partition("=")
    fields = {field.name: field for field in plugins[name].options()}
    if not equals:
        told = {part.partition("=")[0] for part in before.split(",")}
        yield from (
            f"{head}{other}=" for other in fields if other.startswith(key) and other not in told
        )
    elif key in fields:
        values = _values(name, plugins[name].factory, fields[key])
        yield from (f"{head}{key}={each}" for each in values if each.startswith(value))


def _values(plugin: str, factory: type[Any], field: Any) -> list[str]:
    """Return the values that an option is known to take: all of a choice, else those that are
    checked against reality, and the default.
    """
    from paravirt_mm.evidence import known_specs
    from paravirt_mm.options import PluginSpec, as_text

    kind = typing.get_type_hints(factory).get(field.name, field.type)
    one = typing.get_origin(kind) is typing.Literal
    kinds = (kind,) if one else typing.get_args(kind) or (kind,)
    if bool in kinds:
        return ["yes", "no"]
    for each in kinds:
        if typing.get_origin(each) is typing.Literal:
            return [as_text(value) for value in typing.get_args(each)]
        if isinstance(each, type) and issubclass(each, enum.Enum):
            return [as_text(member) for member in each]
    specs = map(PluginSpec.parse, known_specs())
    checked = {dict(s.options).get(field.name) for s in specs if s.name == plugin}
    return sorted({as_text(field.default), *filter(None, checked)})


class _Bash(BashComplete):
    """Bash, which takes ``:`` and ``=`` for the ends of words: it is given the line, and gets back
    only what comes after the last of them.
    """

    source_template = """\
%(complete_func)s() {
    local IFS=$'\\n' response completion type value
    response=$(env COMP_TEXT="${COMP_LINE:0:COMP_POINT}" COMP_BREAKS="$COMP_WORDBREAKS" \\
        %(complete_var)s=bash_complete "$1")
    COMPREPLY=()
    for completion in $response; do
        IFS=',' read -r type value <<< "$completion"
        if [[ $type == dir ]]; then
            compopt -o dirnames
        elif [[ $type == file ]]; then
            compopt -o default
        elif [[ $type == plain ]]; then
            COMPREPLY+=("$value")
            [[ $value == *= ]] && compopt -o nospace
        fi
    done
    return 0
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def _words(self) -> tuple[list[str], str]:
        line = os.environ.get("COMP_TEXT", "")
        words = split_arg_string(line)
        begun = words.pop() if words and not line[-1:].isspace() else ""
        return words[1:], begun

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the one that is completed, and the beginning of that one."""
        return self._words()

    def format_completion(self, item: CompletionItem) -> str:
        """Return a line for the function: bash itself keeps what stands before its last break."""
        begun = self._words()[1]
        breaks = os.environ.get("COMP_BREAKS", "")
        kept = max((begun.rfind(char) + 1 for char in ":=" if char in breaks), default=0)
        return f"{item.type},{item.value[kept:]}"

    @staticmethod
    def _check_version() -> None:
        """Any bash will do: nothing new is asked of it."""


def register() -> None:
    """Make click use this for bash."""
    add_completion_class(_Bash)


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> None:
    """Print the lines that make a shell complete commands, machines, plugins and their options.

    \b
    bash:  eval "$(paravirt-mm completion bash)"                      in ~/.bashrc
    zsh:   eval "$(paravirt-mm completion zsh)"                       in ~/.zshrc
    fish:  paravirt-mm completion fish > ~/.config/fish/completions/paravirt-mm.fish
    """
    from click.shell_completion import get_completion_class

    register()
    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"click does not know {shell}")
    root = click.get_current_context().find_root().command
    click.echo(found(root, {}, "paravirt-mm", COMPLETE).source())
