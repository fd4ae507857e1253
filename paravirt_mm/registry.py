"""Find plugins, check them, and build the plugin manager of one scenario.

A plugin that cannot be used never stops the others: it becomes a `BrokenPlugin` that says what to
change. What pluggy lets pass in silence is refused here: a misspelt hook, a forgotten
``@hookimpl``, a parameter with a default value, a name that is taken.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import attrs
import pluggy

from paravirt_mm import hookspecs
from paravirt_mm.errors import PluginError, SpecError
from paravirt_mm.hookspecs import API_VERSION, PROJECT
from paravirt_mm.options import create

_PREFIX = "pvmm_"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")


@attrs.frozen
class Plugin:
    """A usable plugin: its name, its class, and where it comes from."""

    name: str
    factory: type[Any]
    distribution: str = "unregistered"
    version: str = ""

    @property
    def hooks(self) -> tuple[str, ...]:
        """Names of the hooks it implements, sorted."""
        return tuple(sorted(_implemented(self.factory)))

    @property
    def role(self) -> str:
        """What it is in a scenario: "allocator", "backend" or "extra"."""
        if "pvmm_map_steps" in self.hooks:
            return "allocator"
        return "backend" if "pvmm_boot_state" in self.hooks else "extra"

    @property
    def origin(self) -> str:
        """Distribution and version, for people."""
        return f"{self.distribution} {self.version}".strip()

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


@cache
def _specs() -> dict[str, tuple[str, ...]]:
    """Return hook names and their parameters, as hookspecs.py has them."""
    return {
        name: tuple(inspect.signature(function).parameters)
        for name, function in vars(hookspecs).items()
        if name.startswith(_PREFIX) and callable(function)
    }


def _implemented(factory: type[Any]) -> dict[str, Any]:
    return {
        name: member
        for name, member in inspect.getmembers(factory, callable)
        if name.startswith(_PREFIX) and hasattr(member, f"{PROJECT}_impl")
    }


def problems(name: str, factory: object) -> list[str]:
    """Return everything that is wrong with a plugin class; empty: it can be used."""
    if not _NAME.match(name):
        return [f"its name {name!r} must be lower-case letters, digits and underscores"]
    if not isinstance(factory, type) or not attrs.has(factory):
        return ["its entry point must name a class made with attrs.define or attrs.frozen"]
    version = getattr(factory, "pvmm_api", None)
    if version is None:
        return [f"it must say which API it was written for: pvmm_api = {API_VERSION}"]
    if version != API_VERSION:
        older = isinstance(version, int) and version < API_VERSION
        change = "update the plugin" if older else "update paravirt-mm"
        return [f"it was written for API {version!r}, this is API {API_VERSION}: {change}"]
    found: list[str] = []
    specs = _specs()
    for member_name, member in inspect.getmembers(factory, callable):
        marked = hasattr(member, f"{PROJECT}_impl")
        if not member_name.startswith(_PREFIX):
            if marked:
                found.append(f"{member_name} has @hookimpl but hooks start with {_PREFIX!r}")
            continue
        if member_name not in specs:
            close = difflib.get_close_matches(member_name, specs, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            found.append(f"there is no hook {member_name}{hint}")
            continue
        if not marked:
            found.append(f"{member_name} lacks the decorator @hookimpl")
        for parameter in list(inspect.signature(member).parameters.values())[1:]:
            if parameter.name not in specs[member_name]:
                allowed = ", ".join(specs[member_name])
                found.append(f"{member_name} takes {parameter.name!r}; it may take: {allowed}")
            elif parameter.default is not parameter.empty:
                found.append(
                    f"{member_name}: parameter {parameter.name!r} must not have a default value "
                    "(the core's value would never arrive)"
                )
    if not found and not _implemented(factory):
        found.append("it implements no hook")
    return found


class Registry:
    """All plugins that were found, usable and broken."""

    def __init__(self) -> None:
        self.plugins: dict[str, Plugin] = {}
        self.broken: list[BrokenPlugin] = []

    @classmethod
    def discover(cls) -> Registry:
        """Load every entry point of the group ``paravirt_mm``, by name and distribution."""
        registry = cls()
        seen: set[tuple[str, str, str]] = set()
        found = sorted(entry_points(group=PROJECT), key=lambda point: (point.name, _dist(point)[0]))
        for point in found:
            distribution, version = _dist(point)
            # An editable install beside its own metadata lists the same entry point twice.
            if (point.name, point.value, distribution) in seen:
                continue
            seen.add((point.name, point.value, distribution))
            try:
                factory = point.load()
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                problem = f"cannot be loaded from {point.value}: {type(error).__name__}: {error}"
                registry.broken.append(BrokenPlugin(point.name, distribution, version, problem))
                continue
            registry.add(point.name, factory, distribution, version)
        return registry

    def add(
        self, name: str, factory: object, distribution: str = "unregistered", version: str = ""
    ) -> None:
        """Check a plugin class and add it, to the usable ones or to the broken ones."""
        found = problems(name, factory)
        taken = self.plugins.get(name)
        if taken is not None:
            found.insert(
                0,
                f"the name {name!r} is taken by {taken.origin} "
                f"({taken.factory.__module__}); rename the entry point",
            )
        if found or not isinstance(factory, type):
            self.broken.append(BrokenPlugin(name, distribution, version, "; ".join(found)))
        else:
            self.plugins[name] = Plugin(name, factory, distribution, version)

    def ask(self, hook: str, **arguments: Any) -> Iterator[Any]:
        """Yield the answers of default instances of all plugins to a hook that many may answer."""
        for name, plugin in sorted(self.plugins.items()):
            if hook in plugin.hooks:
                yield from Manager([(name, plugin.create())]).call(hook, **arguments)

    def of_role(self, role: str) -> list[Plugin]:
        """Return the plugins of a role, by name."""
        return [plugin for _, plugin in sorted(self.plugins.items()) if plugin.role == role]

    def get(self, name: str, role: str | None = None) -> Plugin:
        """Return a plugin by name. Raises `SpecError` that names what there is."""
        plugin = self.plugins.get(name)
        if plugin is not None and role in (None, plugin.role):
            return plugin
        for broken in self.broken:
            if broken.name == name and plugin is None:
                raise PluginError(name, broken.problem)
        names = sorted(p.name for p in self.plugins.values() if role in (None, p.role))
        close = difflib.get_close_matches(name, names, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise SpecError(f"no {role or 'plugin'} {name!r}{hint} (there are: {', '.join(names)})")


def _dist(point: EntryPoint) -> tuple[str, str]:
    dist = point.dist
    return (dist.name, dist.version) if dist else ("unknown", "")


class Manager:
    """The plugins of one scenario: exactly one allocator, one backend, and observers."""

    def __init__(self, plugins: Iterable[tuple[str, Any]]) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._names: dict[int, str] = {}
        for name, instance in plugins:
            self._manager.register(instance, name=name)
            self._names[id(instance)] = name
        self._manager.check_pending()
        self._hooks = self._manager.hook
        self._observed = bool(self._hooks.pvmm_observe.get_hookimpls())

    def call(self, hook: str, **arguments: Any) -> Any:
        """Call a hook; see `paravirt_mm.hookspecs` for what it answers."""
        return getattr(self._hooks, hook)(**arguments)

    def observe(self, event: Any) -> None:
        """Pass an event to the observers, if there are any."""
        if self._observed:
            self._hooks.pvmm_observe(event=event)

    def implementers(self, hook: str) -> Iterator[str]:
        """Yield the names of the plugins that implement a hook."""
        for implementation in getattr(self._hooks, hook).get_hookimpls():
            yield implementation.plugin_name
