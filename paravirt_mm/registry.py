"""Find plugins, check them, and make instances of them.

Nothing is imported before somebody asks for it: by name, or for those that answer a hook
(`paravirt_mm.strangers` finds out which do). A plugin that cannot be used never stops the others:
it becomes a `BrokenPlugin` that says what to change (`paravirt_mm.plugin` checks classes; that no
name is taken twice is seen here).
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from paravirt_mm import guard
from paravirt_mm.entry_points import (
    LOCAL,
    Choice,
    Place,
    Point,
    entry_points,
    precedence,
)
from paravirt_mm.errors import INTERRUPTIONS, ParavirtMmError, PluginError, SpecError
from paravirt_mm.hookspecs import Role
from paravirt_mm.instances import HookFailed, Instances, in_one_line
from paravirt_mm.options import PluginSpec
from paravirt_mm.plugin import (
    BrokenPlugin,
    Plugin,
    class_problems,
    problems,
    role_of,
    warn_of_deprecated,
)
from paravirt_mm.strangers import NAMED, UNASKED, Tried, tried
from paravirt_mm.untouched import named, no_output, unchanged

T = TypeVar("T")

CHOICE_VARIABLE = "PARAVIRT_MM_PLUGINS"
"""Environment variable: names of the plugins to look for, with commas between; with a minus before
each, of those to leave out ("-all": none is found).
"""
ANSWERING = guard.Limits(cpu=20.0, wall=30.0)
"""What one answer to a command's question may cost a plugin."""
MAX_SURVIVED = 4096
"""How many questions are remembered that a plugin came through alive."""


def _problems(name: str, factory: object) -> list[str]:
    return class_problems(factory) if ":" in name else problems(name, factory)


class Junk(ParavirtMmError):
    """An answer that cannot be used, and why."""


def _words(argument: object) -> bool:
    return isinstance(argument, tuple) and all(isinstance(one, str) for one in argument)


def _discarded(answer: Callable[[], object]) -> None:
    answer()


class Registry:
    """All plugins that were found: usable, broken, and those that were not needed yet."""

    def __init__(self, careful: bool = False) -> None:
        self.careful = careful
        self._plugins: dict[str, Plugin] = {}
        self._points: dict[str, Point] = {}
        self._tried: dict[str, Tried] = {}
        self._survived: set[tuple[Plugin, str, tuple[object, ...]]] = set()
        self.broken: list[BrokenPlugin] = []

    @classmethod
    def discover(cls, choice: str | None = None, *, careful: bool = False) -> Registry:
        """Find every entry point of the group ``paravirt_mm``, without importing any.

        ``choice`` is what `CHOICE_VARIABLE` says, which is also its default. ``careful``: what
        others wrote is imported in a child first, so that it can neither hang nor end the process.
        """
        registry = cls(careful)
        chosen = Choice.parse(os.environ.get(CHOICE_VARIABLE, "") if choice is None else choice)
        for name, found in sorted(entry_points(registry.broken), key=precedence):
            if name not in chosen:
                continue
            taken = registry._points.get(name)
            if not found.names_a_class:
                problem = f"its entry point must be module:Class, not {found.point.value!r:.100}"
            elif taken is not None:
                owner = f"{taken.distribution} {taken.version} ({taken.point.value})"
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
        for name in [*self._points]:
            self._load(name)
        return self._plugins

    def branch(self) -> Registry:
        """Return a registry of the same plugins, to add others to."""
        made = Registry(self.careful)
        made._plugins, made._points = dict(self._plugins), dict(self._points)
        made._tried, made._survived = dict(self._tried), set(self._survived)
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
            for name, found in self._points.items()
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

    def _break(self, name: str, found: Point, problem: str) -> None:
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
            self._points[name] = Point(Place(name), LOCAL, "")
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
                    raise ImportError(f"it replaces {named(touched)}")
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
            warn_of_deprecated(self._plugins[name])

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
        name in ``broken``. What others wrote is asked in a child first, the same question only
        once. What is remembered is that the plugin came through alive, never what it said: its
        answer is made anew each time, from files or from what it keeps, so that none is out of
        date. What is taken on trust is that who survives a question survives it again; a plugin
        that tells the child from its parent could always break that trust.
        """
        self._try_strangers(patient=False)
        for name in [*self._points]:
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
                    self._survive(plugin, hook, arguments, answer)
                found = answer()
            except (Junk, guard.StoppedError, guard.ForeignError) as problem:
                how = "" if isinstance(problem, Junk) else f"{hook}: "
                self.leave_out(name, f"{how}{problem}")
                continue
            if found is not None:
                yield name, found

    def _survive(
        self,
        plugin: Plugin,
        hook: str,
        arguments: dict[str, Any],
        answer: Callable[[], object],
    ) -> None:
        """Have a plugin answer in a child, unless it did answer this question there. Raises what
        is wrong with it.
        """
        question = (plugin, hook, tuple(arguments.values()))
        # Other arguments may be large, or change.
        plain = all(isinstance(one, str | None) or _words(one) for one in arguments.values())
        if plain and question in self._survived:
            return
        guard.call(_discarded, answer, limits=ANSWERING)
        if plain and len(self._survived) < MAX_SURVIVED:
            self._survived.add(question)

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
        if plugin is not None and role in {None, plugin.role}:
            return plugin
        for broken in self.broken:
            if broken.name == name and plugin is None:
                raise PluginError(name, broken.problem)
        self._try_strangers(patient=False)
        names = sorted(n for n, has in self._roles().items() if role in {None, has})
        close = difflib.get_close_matches(name, names, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        there = f"there are: {', '.join(names)}" if names else "none is installed"
        raise SpecError(f"no {role or 'plugin'} {name!r}{hint} ({there})")

    def _roles(self) -> dict[str, Role]:
        """Return the names of all usable plugins, importing no stranger for that."""
        for name, found in [*self._points.items()]:
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
