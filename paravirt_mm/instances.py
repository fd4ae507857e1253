"""The plugins of one scenario, made: their hooks are called directly, each with the parameters that
it takes, and what a plugin raises is its own.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from types import GeneratorType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from paravirt_mm import hookspecs
from paravirt_mm.engine.contract import ContractBroken
from paravirt_mm.engine.panic import KernelPanic
from paravirt_mm.errors import INTERRUPTIONS
from paravirt_mm.guard import is_child
from paravirt_mm.hookspecs import HOOKS, PROJECT, Role

T = TypeVar("T")

TRACE_VARIABLE = "PARAVIRT_MM_TRACE_HOOKS"
"""Environment variable: 1 prints each call of a hook and its answer on standard error."""

_MAY_PANIC = frozenset(name for name, roles in HOOKS.items() if roles == {Role.ALLOCATOR}) | {
    "pvmm_boot_state"
}
"""Hooks in which the modelled kernel may give up: an allocator's, and on what it finds at boot."""


def in_one_line(error: BaseException) -> str:
    """Return an exception in one line, whatever its text is made of."""
    try:
        return f"{type(error).__name__}: {error}".removesuffix(": ")
    except BaseException:
        return type(error).__name__


class HookFailed(Exception):
    """A plugin raised something in a hook; ``error`` is what."""

    def __init__(self, plugin: str, hook: str, error: BaseException) -> None:
        broken = isinstance(error, ContractBroken)
        super().__init__(f"{hook}: {error}" if broken else f"{hook} raised {in_one_line(error)}")
        self.plugin = plugin
        self.hook = hook
        self.error = error


def implemented(factory: type[Any]) -> dict[str, tuple[str, ...]]:
    """Return the hooks that a class implements, and the parameters that each takes."""
    found = _IMPLEMENTED.get(factory)
    if found is None:
        found = _IMPLEMENTED[factory] = _looked_up(factory)
    return found


_IMPLEMENTED: WeakKeyDictionary[type[Any], dict[str, tuple[str, ...]]] = WeakKeyDictionary()


def _looked_up(factory: type[Any]) -> dict[str, tuple[str, ...]]:
    return {
        name: tuple(inspect.signature(member).parameters)[1:]
        for name, member in inspect.getmembers(factory, callable)
        if name in HOOKS and hasattr(member, f"{PROJECT}_impl")
    }


@cache
def parameters_of(hook: str) -> tuple[str, ...]:
    """Return the parameters that a hook may take, as hookspecs.py has them."""
    return tuple(inspect.signature(getattr(hookspecs, hook)).parameters)


class Hook:
    """One hook of a class of plugins, whose instances can be asked."""

    __slots__ = ("_not_taken", "name")

    def __init__(self, name: str, parameters: tuple[str, ...]) -> None:
        self.name = name
        self._not_taken = [one for one in parameters_of(name) if one not in parameters]

    def ask(self, plugin: str, instance: Any, arguments: dict[str, Any]) -> Any:
        """Ask an instance, with those of the arguments that it takes; the others are dropped from
        them: they were put together for this call, and a copy would cost something at every
        question. Raises `HookFailed` for whatever it raises, but for a panic in an allocator.
        """
        for name in self._not_taken:
            arguments.pop(name, None)
        try:
            answer = getattr(instance, self.name)(**arguments)
        except BaseException as error:
            if self._passes(error):
                raise
            raise HookFailed(plugin, self.name, error) from error
        if type(answer) is GeneratorType:
            return self._guarded(plugin, answer)
        return answer

    def _guarded(self, plugin: str, answers: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Yield what a generator of the plugin yields; what it raises is the plugin's too. (Not
        ``yield from``: a GeneratorExit that it raises is none that was sent to it.)
        """
        sent = None
        try:
            while True:
                try:
                    item = answers.send(sent)
                except StopIteration as end:
                    return end.value
                except BaseException as error:
                    if self._passes(error):
                        raise
                    raise HookFailed(plugin, self.name, error) from error
                sent = yield item
        finally:
            try:
                answers.close()
            except BaseException as error:
                if self._passes(error):
                    raise
                raise HookFailed(plugin, self.name, error) from error

    def _passes(self, error: BaseException) -> bool:
        """Tell whether an exception is none of the plugin's faults."""
        if isinstance(error, INTERRUPTIONS):
            return not is_child()
        return self.name in _MAY_PANIC and isinstance(error, KernelPanic)


class _ShownHook(Hook):
    """One whose questions and answers are printed."""

    __slots__ = ()

    def ask(self, plugin: str, instance: Any, arguments: dict[str, Any]) -> Any:
        answer = super().ask(plugin, instance, arguments)
        given = ", ".join(
            f"{name}={value!r}" for name, value in arguments.items() if name != "boot"
        )
        print(f"{plugin}.{self.name}({given}) -> {answer!r}", file=sys.stderr)
        return answer


_Found = Mapping[str, Sequence[tuple[int, Hook]]]


@lru_cache(maxsize=256)
def _hooks_of(classes: tuple[type[Any], ...], kind: type[Hook]) -> _Found:
    """Return every hook, with the place of the class, of those among some classes that have it."""
    found: dict[str, list[tuple[int, Hook]]] = {name: [] for name in HOOKS}
    for place, factory in enumerate(classes):
        for name, parameters in implemented(factory).items():
            found[name].append((place, kind(name, parameters)))
    return found


class Instances:
    """Instances of plugins by name: of a scenario, its allocator, its backend, its observers."""

    def __init__(
        self, plugins: Iterable[tuple[str, Any]], observers: Iterable[tuple[str, Any]] = ()
    ) -> None:
        watching = list(observers)
        self._plugins = [*plugins, *watching]
        self._watching = {plugin for plugin, _ in watching}
        kind = _ShownHook if os.environ.get(TRACE_VARIABLE) == "1" else Hook
        self._hooks = _hooks_of(tuple([type(instance) for _, instance in self._plugins]), kind)
        self.left_out: list[str] = []
        """What observers did to be left out."""

    def call(self, hook: str, **arguments: Any) -> Any:
        """Return the answer of the one plugin that implements a hook; None: none does."""
        found = self._hooks[hook]
        if not found:
            return None
        place, one = found[0]
        plugin, instance = self._plugins[place]
        return one.ask(plugin, instance, arguments)

    def answers(self, hook: str) -> bool:
        """Tell whether a plugin implements a hook."""
        return bool(self._hooks[hook])

    def each(
        self, hook: str, read: Callable[[Any], T], **arguments: Any
    ) -> Iterator[tuple[str, T]]:
        """Yield what every plugin answers that is not None, as ``read`` takes it, with its name.

        An observer that fails is left out from then on.
        """
        for place, one in self._hooks[hook]:
            plugin, instance = self._plugins[place]
            try:
                answer = one.ask(plugin, instance, {**arguments})
                found = None if answer is None else read(answer)
            except (HookFailed, ContractBroken) as failed:
                if isinstance(failed, ContractBroken):
                    failed = HookFailed(plugin, hook, failed)
                self._failed(plugin, failed)
                continue
            if found is not None:
                yield plugin, found

    def tell(self, hook: str) -> None:
        """Tell everyone of something that has no answer."""
        for _ in self.each(hook, lambda answer: answer):
            pass

    def observe(self, event: Any) -> None:
        """Tell the observers of an event; one that fails is left out from then on."""
        for place, one in self._hooks["pvmm_observe"]:
            plugin, instance = self._plugins[place]
            try:
                one.ask(plugin, instance, {"event": event})
            except HookFailed as failed:
                self._failed(plugin, failed)

    def _failed(self, plugin: str, failed: HookFailed) -> None:
        """Leave an observer out. Raises what an allocator or backend raised."""
        if plugin not in self._watching:
            raise failed
        self.left_out.append(f"observer {plugin} is left out: {failed}")
        self._hooks = {
            name: [(place, one) for place, one in found if self._plugins[place][0] != plugin]
            for name, found in self._hooks.items()
        }

    def implementer(self, hook: str) -> str:
        """Return the name of the plugin that a hook's answer came from."""
        for place, _ in self._hooks[hook]:
            return self._plugins[place][0]
        return "?"
