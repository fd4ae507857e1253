"""Find plugins, check them, and make instances of them.

Nothing is imported before somebody asks for it: by name, or for those that answer a hook
(`paravirt_mm.strangers` finds out which do). A plugin that cannot be used never stops the others:
it becomes a `BrokenPlugin` that says what to change. What pluggy lets pass in silence is refused
here: a misspelt hook, a forgotten ``@hookimpl``, a parameter with a default value, a hook of
another role, a name that is taken.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import os
import re
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import Distribution, EntryPoint, distributions
from pathlib import Path
from typing import Any, TypeVar

import attrs

from paravirt_mm import guard, hookspecs
from paravirt_mm.errors import INTERRUPTIONS, ParavirtMmError, PluginError, SpecError
from paravirt_mm.hookspecs import API_MINOR, API_VERSION, HOOKS, PREFIX, PROJECT, Role
from paravirt_mm.instances import HookFailed, Instances, implemented, in_one_line
from paravirt_mm.options import PluginSpec, create
from paravirt_mm.printable import printable
from paravirt_mm.strangers import NAMED, UNASKED, Tried, tried
from paravirt_mm.untouched import no_output, unchanged

T = TypeVar("T")

OWN_DISTRIBUTION = "paravirt-mm"
"""Its plugins keep their names, whoever else claims them."""
CHOICE_VARIABLE = "PARAVIRT_MM_PLUGINS"
"""Environment variable: names of the plugins to look for, with commas between; with a minus before
each, of those to leave out ("-all": none is found).
"""
NONE = "-all"
"""What `CHOICE_VARIABLE` says for no plugins at all."""
LOCAL = "no distribution"
"""What is said instead of one, of a class that a spec names by its file or module."""
ANSWERING = guard.Limits(cpu=20.0, wall=30.0)
"""What one answer to a command's question may cost a plugin."""
_API = re.compile(r"(\d{1,4})(?:\.(\d{1,4}))?\Z")
_ENTRY = re.compile(r"[\w.]+\s*:\s*[\w.]+\s*\Z")
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
        return tuple(sorted(implemented(self.factory)))

    @property
    def role(self) -> Role:
        """What it is in a scenario."""
        return role_of(self.hooks)

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


@cache
def _parameters(hook: str) -> tuple[str, ...]:
    """Return the parameters that a hook may take, as hookspecs.py has them."""
    return tuple(inspect.signature(getattr(hookspecs, hook)).parameters)


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
    if match is None or isinstance(stated, bool):
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


def _warn_of_deprecated(plugin: Plugin) -> None:
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
        if parameter.name not in _parameters(hook):
            allowed = ", ".join(_parameters(hook)) or "none"
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
    for name in sorted(hooks):
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


@attrs.frozen
class _Place:
    """Where a class without an entry point is: ``./file.py:Class``, ``package.module:Class``."""

    value: str

    @property
    def module(self) -> str:
        """The file or module."""
        return self.value.rpartition(":")[0]

    def load(self) -> Any:
        """Import it; modules beside a file can be imported by it, and so can those in the folder
        where the process was started.
        """
        module, _, name = self.value.rpartition(":")
        path = Path(module)
        folder = str(path.resolve().parent if path.suffix == ".py" else Path.cwd())
        if folder not in sys.path:
            sys.path.append(folder)
        if path.suffix != ".py":
            return getattr(importlib.import_module(module), name)
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {module}")
        unique = f"{path.stem}_{zlib.crc32(str(path.resolve()).encode()):08x}"
        if unique not in sys.modules:
            spec = importlib.util.spec_from_file_location(unique, path)
            if spec is None or spec.loader is None:
                raise ImportError(f"{module} is no module")
            made = sys.modules[unique] = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(made)
            except BaseException:
                del sys.modules[unique]
                raise
        return getattr(sys.modules[unique], name)


@attrs.frozen
class _Point:
    """An entry point that nobody has asked for yet."""

    point: EntryPoint | _Place
    distribution: str
    version: str

    @property
    def strange(self) -> bool:
        """Whether it comes from somebody else."""
        return self.distribution != OWN_DISTRIBUTION


def _problems(name: str, factory: object) -> list[str]:
    return class_problems(factory) if ":" in name else problems(name, factory)


class Junk(ParavirtMmError):
    """An answer that cannot be used, and why."""


def _discarded(answer: Callable[[], object]) -> None:
    answer()


class Registry:
    """All plugins that were found: usable, broken, and those that were not needed yet."""

    def __init__(self, careful: bool = False) -> None:
        self.careful = careful
        self._plugins: dict[str, Plugin] = {}
        self._points: dict[str, _Point] = {}
        self._tried: dict[str, Tried] = {}
        self.broken: list[BrokenPlugin] = []

    @classmethod
    def discover(cls, choice: str | None = None, *, careful: bool = False) -> Registry:
        """Find every entry point of the group ``paravirt_mm``, without importing any.

        ``choice`` is what `CHOICE_VARIABLE` says, which is also its default. ``careful``: what
        others wrote is imported in a child first, so that it can neither hang nor end the process.
        """
        registry = cls(careful)
        chosen = _Choice.parse(os.environ.get(CHOICE_VARIABLE, "") if choice is None else choice)
        for name, found in sorted(_points(registry.broken), key=_precedence):
            if name not in chosen:
                continue
            taken = registry._points.get(name)
            if _ENTRY.match(found.point.value) is None:
                problem = f"its entry point must be module:Class, not {found.point.value!r:.100}"
            elif taken is not None:
                owner = f"{taken.distribution} {taken.version} ({taken.point.module})"
                problem = f"the name {name!r} is taken by {owner}; rename the entry point"
            else:
                registry._points[name] = found
                continue
            registry.broken.append(BrokenPlugin(name, found.distribution, found.version, problem))
        return registry

    @property
    def plugins(self) -> dict[str, Plugin]:
        """Every usable plugin, by name; imports those that were not needed yet."""
        self._try_strangers(patient=True)
        for name in sorted(self._points):
            self._load(name)
        return self._plugins

    def branch(self) -> Registry:
        """Return a registry of the same plugins, to add others to."""
        made = Registry(self.careful)
        made._plugins, made._points = dict(self._plugins), dict(self._points)
        made._tried = dict(self._tried)
        return made

    def _try_strangers(self, *names: str, patient: bool) -> None:
        """Import what others wrote in children first, if the registry is ``careful``: these, or
        all that nobody has asked for yet. One that cannot be used is broken from then on; one that
        took longer than we were ``patient`` may be tried again.
        """
        if not self.careful:
            return
        todo = {
            name: found.point
            for name, found in sorted(self._points.items())
            if found.strange and (not names or name in names) and not self._known(name, patient)
        }
        for name, what in tried(todo, _problems, NAMED if patient else UNASKED):
            self._tried[name] = what
            if what.problem:
                found = self._points[name]
                if patient or not what.stopped:
                    del self._points[name]
                self._break(name, found, what.problem)

    def _known(self, name: str, patient: bool) -> bool:
        known = self._tried.get(name)
        return known is not None and not (known.stopped and patient)

    def _break(self, name: str, found: _Point, problem: str) -> None:
        broken = BrokenPlugin(name, found.distribution, found.version, problem)
        self.broken[:] = [
            one
            for one in self.broken
            if (one.name, one.distribution) != (name, broken.distribution)
        ] + [broken]

    def _load(self, name: str) -> None:
        """Import what an entry point names, or a spec that says where a class is.

        Nothing that it prints mixes with our output, and nothing that a process has only one of is
        left changed (`paravirt_mm.untouched`).
        """
        if ":" in name and name not in self._plugins:
            self._points[name] = _Point(_Place(name), LOCAL, "")
            self._tried.pop(name, None)
        if name not in self._points:
            return
        self._try_strangers(name, patient=True)
        found = self._points.pop(name, None)
        if found is None:
            return
        try:
            if found.strange:
                with no_output(), unchanged() as touched:
                    factory = found.point.load()
                if touched:
                    raise ImportError(f"it replaces {', '.join(sorted(set(touched))[:5])}")
            else:
                factory = found.point.load()
        except INTERRUPTIONS:
            raise
        except BaseException as error:
            self._break(
                name, found, f"cannot be loaded from {found.point.value}: {in_one_line(error)}"
            )
            return
        self.add(name, factory, found.distribution, found.version)

    def add(
        self, name: str, factory: object, distribution: str = "unregistered", version: str = ""
    ) -> None:
        """Check a plugin class and add it, to the usable ones or to the broken ones."""
        if name in self._points:
            self._load(name)
        found = _problems(name, factory)
        taken = self._plugins.get(name)
        if taken is not None:
            found.insert(
                0,
                f"the name {name!r} is taken by {taken.origin} "
                f"({taken.factory.__module__}); rename the entry point",
            )
        if found or not isinstance(factory, type):
            self.broken.append(BrokenPlugin(name, distribution, version, "; ".join(found)))
        else:
            self._plugins[name] = Plugin(name, factory, distribution, version)
            _warn_of_deprecated(self._plugins[name])

    def replace(self, plugin: Plugin) -> None:
        """Take a plugin whatever there is of its name, unchecked: a test wants it."""
        self._points.pop(plugin.name, None)
        self._plugins[plugin.name] = plugin

    @property
    def found(self) -> dict[str, str]:
        """Names of all plugins with distribution and version, without importing any."""
        there = {name: f"{p.distribution} {p.version}".strip() for name, p in self._points.items()}
        return there | {name: plugin.origin for name, plugin in self._plugins.items()}

    def ask(self, hook: str, read: Callable[[Any], T], **arguments: Any) -> Iterator[tuple[str, T]]:
        """Yield what default instances of all plugins answer to a hook, as ``read`` takes it, with
        their names.

        A plugin that fails, or whose answer ``read`` refuses with `Junk`, is left out, with its
        name in ``broken``; what others wrote is asked in a child first.
        """
        self._try_strangers(patient=False)
        for name in sorted({*self._points, *self._plugins}):
            known = self._tried.get(name)
            if known is None or hook in known.hooks:
                self._load(name)
        for name, plugin in sorted(self._plugins.items()):
            if hook not in plugin.hooks:
                continue

            def answer(plugin: Plugin = plugin) -> T | None:
                try:
                    instances = Instances([(plugin.name, plugin.create())])
                    found = instances.call(hook, **arguments)
                    return None if found is None else read(found)
                except HookFailed as failed:
                    raise Junk(str(failed)) from failed
                except Junk as junk:
                    raise Junk(f"{hook} {junk}") from junk

            try:
                if self.careful and plugin.strange:
                    guard.call(_discarded, answer, limits=ANSWERING)
                found = answer()
            except (Junk, guard.StoppedError, guard.ForeignError) as problem:
                how = "" if isinstance(problem, Junk) else f"{hook}: "
                self.leave_out(name, f"{how}{problem}")
                continue
            if found is not None:
                yield name, found

    def leave_out(self, name: str, problem: str) -> None:
        """Note that a plugin failed, or answered what cannot be used."""
        plugin = self._plugins[name]
        broken = BrokenPlugin(name, plugin.distribution, plugin.version, problem)
        if broken not in self.broken:
            self.broken.append(broken)

    def of_role(self, role: str) -> list[Plugin]:
        """Return the plugins of a role, by name."""
        return [plugin for _, plugin in sorted(self.plugins.items()) if plugin.role == role]

    def get(self, name: str, role: str | None = None) -> Plugin:
        """Return a plugin by name; only that one is imported.

        Raises `PluginError` where it is broken, `SpecError` that names what there is.
        """
        self._load(name)
        plugin = self._plugins.get(name)
        if plugin is not None and role in (None, plugin.role):
            return plugin
        for broken in self.broken:
            if broken.name == name and plugin is None:
                raise PluginError(name, broken.problem)
        self._try_strangers(patient=False)
        names = sorted(n for n, has in self._roles().items() if role in (None, has))
        close = difflib.get_close_matches(name, names, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        there = f"there are: {', '.join(names)}" if names else "none is installed"
        raise SpecError(f"no {role or 'plugin'} {name!r}{hint} ({there})")

    def _roles(self) -> dict[str, Role]:
        """Return the names of all usable plugins, importing no stranger for that."""
        for name, found in sorted(self._points.items()):
            if not found.strange or not self.careful:
                self._load(name)
        roles = {name: role_of(self._tried[name].hooks) for name in self._points}
        return roles | {name: plugin.role for name, plugin in self._plugins.items()}

    def origin(self, name: str) -> str:
        """Return a plugin's name and where it comes from, for people."""
        plugin = self._plugins.get(name)
        return f"{name} ({plugin.origin})" if plugin else name

    def make(self, spec: PluginSpec, role: str) -> tuple[str, Any]:
        """Return a plugin's name and a new instance, as a spec says. Raises as `get` does."""
        plugin = self.get(spec.name, role)
        return plugin.name, plugin.create(dict(spec.options))


@attrs.frozen
class _Choice:
    """Which plugins somebody wants: all, some, or all but some."""

    only: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, text: str) -> _Choice:
        names = [name.strip() for name in text.split(",") if name.strip()]
        return cls(
            frozenset(name for name in names if not name.startswith("-")),
            frozenset(name[1:] for name in names if name.startswith("-")),
        )

    def __contains__(self, name: str) -> bool:
        if name in self.without or NONE[1:] in self.without:
            return False
        return not self.only or name in self.only


def _points(broken: list[BrokenPlugin]) -> Iterator[tuple[str, _Point]]:
    """Yield the entry points of all distributions; one whose metadata cannot be read is ``broken``
    and hides no other.
    """
    seen: set[str] = set()
    for distribution in distributions():
        try:
            if PROJECT not in (distribution.read_text("entry_points.txt") or ""):
                continue
            name, version = _told(distribution)
            name = name or _folder(distribution)
            # An editable install beside its own metadata is the same distribution twice.
            key = re.sub(r"[-_.]+", "-", name).lower()
            if key in seen:
                continue
            seen.add(key)
            points = {one for one in distribution.entry_points if one.group == PROJECT}
            yield from ((one.name, _Point(one, name, version)) for one in points)
        except Exception as error:
            problem = f"its metadata cannot be read: {in_one_line(error)}"
            broken.append(BrokenPlugin("?", _folder(distribution), "", problem))


def _told(distribution: Distribution) -> tuple[str, str]:
    """Return a distribution's name and version; empty where its metadata does not tell.

    Where importlib_metadata was imported, it finds distributions in place of the standard library,
    and raises for what that answers with None.
    """
    try:
        told: Any = distribution.metadata  # has a `get`, which its type does not tell
    except FileNotFoundError:
        return "", ""
    return told.get("Name", ""), told.get("Version", "")


def _folder(distribution: Distribution) -> str:
    """Return the name of a distribution's folder, for want of better."""
    path = getattr(distribution, "_path", None)
    return str(getattr(path, "name", "unknown")).partition("-")[0]


def _precedence(item: tuple[str, _Point]) -> tuple[str, bool, str, str]:
    """Return the key that sorts entry points: of one name, the core's own comes first."""
    name, found = item
    return name, found.strange, found.distribution, found.point.value


_DEFAULT: list[Registry] = []


@contextmanager
def chosen(choice: str) -> Iterator[None]:
    """Let this process, and those that it starts, find only some plugins (`CHOICE_VARIABLE`)."""
    before = os.environ.get(CHOICE_VARIABLE)
    os.environ[CHOICE_VARIABLE] = choice
    known = _DEFAULT[:]
    _DEFAULT.clear()
    try:
        yield
    finally:
        _DEFAULT[:] = known
        if before is None:
            del os.environ[CHOICE_VARIABLE]
        else:
            os.environ[CHOICE_VARIABLE] = before


def default_registry() -> Registry:
    """Return the registry of everything installed; found once a process."""
    if not _DEFAULT:
        _DEFAULT.append(Registry.discover(careful=True))
    return _DEFAULT[0]
