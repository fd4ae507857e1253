"""A plugin's class: what can be wrong with it, and what it is.

What pluggy lets pass in silence is refused here: a misspelt hook, a forgotten ``@hookimpl``, a
parameter with a default value, a hook of another role.
"""

from __future__ import annotations

import difflib
import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import attrs

from paravirt_mm import hookspecs
from paravirt_mm.errors import INTERRUPTIONS
from paravirt_mm.hookspecs import API_MINOR, API_VERSION, HOOKS, PREFIX, PROJECT, Role
from paravirt_mm.instances import implemented, parameters_of
from paravirt_mm.options import create
from paravirt_mm.printable import printable

OWN_DISTRIBUTION = "paravirt-mm"
"""Its plugins keep their names, whoever else claims them."""
_API = re.compile(r"(\d{1,4})(?:\.(\d{1,4}))?\Z")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")


@attrs.frozen
class Plugin:
    """A usable plugin: its name, its class, and where it comes from."""

    name: str
    factory: type[Any]
    distribution: str = "unregistered"
    version: str = ""
    role: Role = attrs.field(init=False, repr=False, eq=False)
    """What it is in a scenario."""

    @role.default
    def _role(self) -> Role:
        return role_of(self.hooks)

    @property
    def hooks(self) -> tuple[str, ...]:
        """Names of the hooks it implements, sorted."""
        return tuple(implemented(self.factory))

    @property
    def api(self) -> str:
        """Version of the contract that it was written for."""
        return str(self.factory.pvmm_api)

    @property
    def origin(self) -> str:
        """Distribution and version, for people."""
        return f"{self.distribution} {self.version}".strip()

    @property
    def strange(self) -> bool:
        """Whether it comes from somebody else."""
        return self.distribution != OWN_DISTRIBUTION

    def options(self) -> tuple[attrs.Attribute[Any], ...]:
        """The options: the fields of the class."""
        return tuple(field for field in attrs.fields(self.factory) if field.init)

    def create(self, options: dict[str, str] | None = None) -> Any:
        """Make an instance; option values are text. Raises `SpecError` naming the option."""
        return create(self.name, self.factory, options or {})


@attrs.frozen
class BrokenPlugin:
    """A plugin that cannot be used, and why."""

    name: str
    distribution: str
    version: str
    problem: str

    def __str__(self) -> str:
        origin = f"{self.distribution} {self.version}".strip()
        return printable(f"plugin {self.name} ({origin}) is left out: {self.problem}", 4000)


def name_for(factory: type[Any]) -> str:
    """Return the name of a plugin class that has none of its own: the class's, in snake_case."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", factory.__name__).lower()


def role_of(hooks: Iterable[str]) -> Role:
    """Return the role of a plugin that implements some hooks."""
    if "pvmm_map_steps" in hooks:
        return Role.ALLOCATOR
    return Role.BACKEND if "pvmm_boot_state" in hooks else Role.OBSERVER


def problems(name: str, factory: object) -> list[str]:
    """Return everything that is wrong with a plugin class; empty: it can be used."""
    if not _NAME.match(name):
        return [f"its name {name!r} must be lower-case letters, digits and underscores"]
    return class_problems(factory)


def class_problems(factory: object) -> list[str]:
    """Return everything that is wrong with a plugin class, whatever its name."""
    if not isinstance(factory, type) or not attrs.has(factory):
        return ["its entry point must name a class made with attrs.define or attrs.frozen"]
    wrong = _api_problem(getattr(factory, "pvmm_api", None))
    if wrong:
        return [wrong]
    found = list(_hook_problems(factory))
    if not found and not implemented(factory):
        found.append("it implements no hook")
    found += _role_problems(implemented(factory))
    return found or list(_option_problems(factory))


def _api_problem(stated: object) -> str | None:
    """Return why a plugin's version of the API will not do; None: it will."""
    if stated is None:
        return f"it must say which API it was written for: pvmm_api = {API_VERSION}"
    match = _API.match(str(stated)) if isinstance(stated, int | str) else None
    if match is None:
        return f"it was written for API {stated!r}, which is none: pvmm_api = {API_VERSION}"
    version, minor = int(match[1]), int(match[2] or 0)
    here = f"this is API {API_VERSION}.{API_MINOR}"
    if version < API_VERSION:
        return f"it was written for API {stated}, {here}: update the plugin"
    if (version, minor) > (API_VERSION, API_MINOR):
        return f"it was written for API {stated}, {here}: update paravirt-mm"
    return None


class PluginDeprecationWarning(DeprecationWarning):
    """A plugin uses something that goes away with the next version of the API."""


def warn_of_deprecated(plugin: Plugin) -> None:
    """Warn whoever wrote a plugin, by its name, of what it uses and should not any more."""
    for hook, parameters in implemented(plugin.factory).items():
        for what in (hook, *(f"{hook}.{parameter}" for parameter in parameters)):
            if what in hookspecs.DEPRECATED:
                words = f"plugin {plugin.name} ({plugin.origin}) uses {what}, which goes away"
                warnings.warn(
                    f"{words}: {hookspecs.DEPRECATED[what]}", PluginDeprecationWarning, stacklevel=3
                )


def _hook_problems(factory: type[Any]) -> Iterator[str]:
    """Yield what is wrong with single methods."""
    for name, member in inspect.getmembers(factory, callable):
        mark = getattr(member, f"{PROJECT}_impl", None)
        if not name.startswith(PREFIX):
            if mark is not None:
                yield f"{name} has @hookimpl but hooks start with {PREFIX!r}"
            continue
        if name not in HOOKS:
            close = difflib.get_close_matches(name, HOOKS, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            yield f"there is no hook {name}{hint}"
            continue
        if mark is None:
            yield f"{name} lacks the decorator @hookimpl"
        elif any(mark.values()):
            yield f"{name}: @hookimpl takes no arguments here: a hook answers for itself alone"
        if isinstance(inspect.getattr_static(factory, name), staticmethod | classmethod):
            yield f"{name} must be a plain method"
            continue
        if inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member):
            yield f"{name} must not be async"
        yield from _parameter_problems(name, member)


def _parameter_problems(hook: str, method: Callable[..., Any]) -> Iterator[str]:
    """Yield what is wrong with the parameters of a method that answers ``hook``."""
    for parameter in list(inspect.signature(method).parameters.values())[1:]:
        if parameter.name not in parameters_of(hook):
            allowed = ", ".join(parameters_of(hook)) or "none"
            yield f"{hook} takes {parameter.name!r}; it may take: {allowed}"
        elif parameter.default is not parameter.empty:
            yield (
                f"{hook}: parameter {parameter.name!r} must not have a default value "
                "(the core's value would never arrive)"
            )
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            yield f"{hook}: parameter {parameter.name!r} must not be positional-only"


def _role_problems(hooks: Iterable[str]) -> Iterator[str]:
    """Yield the hooks that the plugin's role may not answer."""
    role = role_of(hooks)
    for name in hooks:
        if role not in HOOKS[name]:
            owners = " or ".join(sorted(HOOKS[name]))
            yield f"{name} is for the {owners} to answer, and {_WHY[role]}"


_WHY = {
    Role.ALLOCATOR: "pvmm_map_steps makes it an allocator",
    Role.BACKEND: "pvmm_boot_state makes it a backend",
    Role.OBSERVER: "without pvmm_map_steps or pvmm_boot_state it is an observer",
}


def _option_problems(factory: type[Any]) -> Iterator[str]:
    """Yield what is wrong with the options."""
    try:
        attrs.resolve_types(factory)
    except Exception as error:
        yield f"the types of its options cannot be resolved at run time: {error}"
        return
    required = [f.name for f in attrs.fields(factory) if f.init and f.default is attrs.NOTHING]
    if required:
        yield f"every option needs a default value, and {', '.join(required)} has none"
        return
    try:
        factory()
    except INTERRUPTIONS:
        raise
    except BaseException as error:
        yield f"it cannot be made with default options: {type(error).__name__}: {error}"
