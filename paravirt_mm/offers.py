"""What installed plugins offer to the commands that choose: default specs, models of kernels and
platforms, machines, formats, verifiers, lines of logs.

Each answer is checked where it arrives. A plugin that fails, or answers what cannot be used, is
left out and named in `Registry.broken`; the others go on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from paravirt_mm.about import Choice, DefaultSpec
from paravirt_mm.entry_points import LOCAL
from paravirt_mm.errors import ParavirtMmError, PluginError, SpecError
from paravirt_mm.hookspecs import Role
from paravirt_mm.instances import HookFailed, Instances
from paravirt_mm.machine.model import Machine
from paravirt_mm.options import PluginSpec
from paravirt_mm.registry import Junk, Registry, default_registry
from paravirt_mm.sources import bundled_machines, load as load_one, load_all as load_more
from paravirt_mm.sources.bootlog.facts import Fact
from paravirt_mm.sources.bootlog.lines import LogLine
from paravirt_mm.sources.content import Spec

if TYPE_CHECKING:
    import click

T = TypeVar("T")

Format = Callable[[list[dict[str, Any]]], str]
"""From row dictionaries to text."""


def _some(answer: Any, kind: type[T], most: int = 10_000) -> list[T]:
    """Return an answer that must be an iterable of one kind of thing. Raises `Junk`."""
    if not isinstance(answer, Iterable) or isinstance(answer, str | bytes):
        raise Junk(f"answered {answer!r:.100}, not an iterable of {kind.__name__}")
    found: list[T] = []
    for item in answer:
        if not isinstance(item, kind):
            raise Junk(f"gave {item!r:.100}, not a {kind.__name__}")
        found.append(item)
        if len(found) > most:
            raise Junk(f"gave more than {most} of {kind.__name__}")
    return found


# -- specs -----------------------------------------------------------------------------------------


def default_specs(role: str, registry: Registry | None = None) -> tuple[str, ...]:
    """Return the specs of a role that a comparison uses where nobody names any.

    Raises `SpecError` where no installed plugin offers one.
    """
    return tuple(offer.spec for offer in _default_specs(role, registry or default_registry()))


def default_spec(role: str, registry: Registry | None = None) -> str:
    """Return the spec of a role for commands that take one. Raises as `default_specs` does."""
    offers = _default_specs(role, registry or default_registry())
    return next((offer.spec for offer in offers if offer.alone), offers[0].spec)


def _default_specs(role: str, registry: Registry) -> list[DefaultSpec]:
    found: list[DefaultSpec] = []
    asked = registry.ask("pvmm_default_specs", lambda answer: _some(answer, DefaultSpec, 100))
    for plugin, offers in asked:
        # A class in a file is there for who named it; it may inherit what its model offers.
        known = registry.get(plugin)
        if known.role == role and known.distribution != LOCAL:
            found += offers
    if not found:
        raise SpecError(f"no {role} is named, and no installed plugin offers one")
    return sorted(found, key=lambda offer: offer.rank)


def _usable(registry: Registry, role: Role) -> Callable[[Any], str]:
    """Return a reader of specs that this registry can make."""

    def read(answer: Any) -> str:
        if not isinstance(answer, str):
            raise Junk(f"answered {answer!r:.100}, not a spec")
        try:
            registry.make(PluginSpec.parse(answer), role)
        except ParavirtMmError as error:
            raise Junk(f"answered {answer!r:.100}: {error}") from error
        return answer

    return read


def model_of_kernel(
    registry: Registry, release: str, mode: str, parameters: Sequence[str] = ()
) -> str | None:
    """Return the spec of the allocator that models a kernel release in a mode; None: none does.

    ``parameters`` are words of its command line that change how it allocates.
    """
    asked = registry.ask(
        "pvmm_models_kernel",
        _usable(registry, Role.ALLOCATOR),
        release=release,
        mode=mode,
        parameters=tuple(parameters),
    )
    return next((spec for _, spec in asked), None)


def model_of_platform(
    registry: Registry, platform: str, release: str | None, mode: str
) -> str | None:
    """Return the spec of the backend that models a platform; None: none does."""
    asked = registry.ask(
        "pvmm_models_platform",
        _usable(registry, Role.BACKEND),
        platform=platform,
        release=release,
        mode=mode,
    )
    return next((spec for _, spec in asked), None)


def open_questions(
    registry: Registry, spec: str, release: str, mode: str
) -> list[tuple[Choice, ...]]:
    """Return what an allocator says that a release leaves open, question by question."""
    plugin = registry.get(PluginSpec.parse(spec).name)
    instances = Instances([(plugin.name, plugin.create())])
    hook = "pvmm_open_questions"
    try:
        answer = instances.call(hook, release=release, mode=mode)
        questions = [] if answer is None else _some(answer, Iterable, 32)  # type: ignore[type-abstract]
        return [tuple(_some(choices, Choice, 32)) for choices in questions]
    except Junk as junk:
        registry.leave_out(plugin.name, f"{hook} {junk}")
    except HookFailed as failed:
        registry.leave_out(plugin.name, str(failed))
    return []


# -- everything else -------------------------------------------------------------------------------


def machines(registry: Registry) -> dict[str, Machine]:
    """Return the machines that plugins bring, by name; the first plugin to use a name has it."""
    found: dict[str, Machine] = {}
    asked = registry.ask("pvmm_machines", lambda answer: _some(answer, Machine))
    for plugin, brought in asked:
        for machine in brought:
            if machine.name in found or machine.name in bundled_machines():
                registry.leave_out(plugin, f"pvmm_machines: {machine.name!r:.80} is taken")
            else:
                found[machine.name] = machine
    return found


def brought_machine(name: str, registry: Registry | None = None) -> Machine | None:
    """Return the machine of a plugin that has this name; files and bundled machines come first."""
    if name == "-" or os.path.lexists(name) or name in bundled_machines():
        return None
    return machines(registry or default_registry()).get(name)


def load(spec: Spec, boot: int | None = None) -> Machine:
    """Return the one machine that ``spec`` names: a file, a machine of the package or of a plugin;
    ``boot`` chooses among the boots of a log.

    Raises `InputError` where there is none, or more than one (`load_all` takes those).
    """
    return brought_machine(str(spec)) or load_one(spec, boot)


def load_all(specs: Iterable[Spec], boot: int | None = None) -> Iterator[Machine]:
    """Yield every machine of ``specs``: files, folders, archives, names of machines of the package
    or of plugins.

    Raises `InputError` at the first that cannot be read.
    """
    for spec in specs:
        brought = brought_machine(str(spec))
        yield from load_more([spec], boot) if brought is None else [brought]


def formats(registry: Registry) -> dict[str, Format]:
    """Return the output formats that plugins bring, by name."""

    def read(answer: Any) -> dict[str, Format]:
        if not isinstance(answer, Mapping):
            raise Junk(f"answered {answer!r:.100}, not a mapping of names to functions")
        for name, write in answer.items():
            if not isinstance(name, str) or not callable(write):
                raise Junk(f"gave {name!r:.80}: {write!r:.100}, not a name and a function")
        return dict(answer)

    found: dict[str, Format] = {}
    for plugin, brought in registry.ask("pvmm_report_formats", read):
        for name, write in brought.items():
            found.setdefault(name, _Writer(plugin, name, write))
    return found


@attrs.frozen
class _Writer:
    """A format of a plugin; what goes wrong in it is the plugin's."""

    plugin: str
    name: str
    write: Format

    def __call__(self, rows: list[dict[str, Any]]) -> str:
        try:
            text = self.write(rows)
        except Exception as error:
            message = f"format {self.name} raised {type(error).__name__}: {error}"
            raise PluginError(self.plugin, message) from error
        if not isinstance(text, str):
            raise PluginError(self.plugin, f"format {self.name} gave {text!r:.100}, not text")
        return text


def verifiers(registry: Registry) -> list[click.Command]:
    """Return the subcommands of ``verify`` that plugins bring."""
    import click

    asked = registry.ask("pvmm_verifiers", lambda answer: _some(answer, click.Command, 100))
    return [command for _, commands in asked for command in commands]


def check_log(registry: Registry, facts: Sequence[Fact]) -> list[LogLine]:
    """Return what plugins predict of a log's lines that are not Linux's."""
    asked = registry.ask("pvmm_check_log", lambda answer: _some(answer, LogLine), facts=facts)
    return [line for _, lines in asked for line in lines]
