"""The plugins of one scenario, made: their hooks are called directly, each with the parameters that
it takes, and what a plugin raises is its own.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import cache
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


@cache
def _not_among(hook: str, taken: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in parameters_of(hook) if name not in taken)


class Hook:
    """One hook of one plugin, ready to be called."""

    __slots__ = ("_function", "_not_taken", "_traced", "name", "plugin")

    def __init__(
        self, plugin: str, instance: Any, name: str, parameters: tuple[str, ...], traced: bool
    ) -> None:
        self.plugin = plugin
        self.name = name
        self._function: Callable[..., Any] = getattr(instance, name)
        self._not_taken = _not_among(name, parameters)
        self._traced = traced

    def __call__(self, arguments: dict[str, Any]) -> Any:
        """Call it with those of the arguments that it takes; the others are dropped from them: they
        were put together for this call, and a copy would cost something at every question. Raises
        `HookFailed` for whatever it raises, but for a panic in an allocator.
        """
        for name in self._not_taken:
            arguments.pop(name, None)
        try:
            answer = self._function(**arguments)
        except BaseException as error:
            if self._passes(error):
                raise
            raise HookFailed(self.plugin, self.name, error) from error
        if type(answer) is GeneratorType:
            answer = self._guarded(answer)
        if self._traced:
            self._show(arguments, answer)
        return answer

    def _guarded(self, answers: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
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
                    raise HookFailed(self.plugin, self.name, error) from error
                sent = yield item
        finally:
            try:
                answers.close()
            except BaseException as error:
                if self._passes(error):
                    raise
                raise HookFailed(self.plugin, self.name, error) from error

    def _passes(self, error: BaseException) -> bool:
        """Tell whether an exception is none of the plugin's faults."""
        if isinstance(error, INTERRUPTIONS):
            return not is_child()
        return self.name in _MAY_PANIC and isinstance(error, KernelPanic)

    def _show(self, arguments: dict[str, Any], answer: Any) -> None:
        given = ", ".join(
            f"{name}={value!r}" for name, value in arguments.items() if name != "boot"
        )
        print(f"{self.plugin}.{self.name}({given}) -> {answer!r}", file=sys.stderr)


class _Hooks(dict[str, list[Hook]]):
    """Hooks of some plugins by name, each made when it is first asked for."""

    def __init__(self, plugins: Iterable[tuple[str, Any]], traced: bool) -> None:
        self._traced = traced
        self._plugins = [
            (plugin, instance, implemented(type(instance))) for plugin, instance in plugins
        ]

    def __missing__(self, name: str) -> list[Hook]:
        found = self[name] = []
        for plugin, instance, hooks in self._plugins:
            if name in hooks:
                found.append(Hook(plugin, instance, name, hooks[name], self._traced))
        return found

    def forget(self, gone: str) -> None:
        """Leave the hooks of a plugin out from now on."""
        self._plugins = [one for one in self._plugins if one[0] != gone]
        for hooks in self.values():
            hooks[:] = [one for one in hooks if one.plugin != gone]


class Instances:
    """Instances of plugins by name: of a scenario, its allocator, its backend, its observers."""

    def __init__(
        self, plugins: Iterable[tuple[str, Any]], observers: Iterable[tuple[str, Any]] = ()
    ) -> None:
        watching = list(observers)
        traced = os.environ.get(TRACE_VARIABLE) == "1"
        self._hooks = _Hooks([*plugins, *watching], traced)
        """Those that were asked for."""
        self._watching = {plugin for plugin, _ in watching}
        self._observers = self._hooks["pvmm_observe"]
        self.left_out: list[str] = []
        """What observers did to be left out."""

    def call(self, hook: str, **arguments: Any) -> Any:
        """Return the answer of the one plugin that implements a hook; None: none does."""
        found = self._hooks[hook]
        return found[0](arguments) if found else None

    def answers(self, hook: str) -> bool:
        """Tell whether a plugin implements a hook."""
        return bool(self._hooks[hook])

    def each(
        self, hook: str, read: Callable[[Any], T], **arguments: Any
    ) -> Iterator[tuple[str, T]]:
        """Yield what every plugin answers that is not None, as ``read`` takes it, with its name.

        An observer that fails is left out from then on.
        """
        for one in list(self._hooks[hook]):
            try:
                answer = one({**arguments})
                found = None if answer is None else read(answer)
            except (HookFailed, ContractBroken) as failed:
                if isinstance(failed, ContractBroken):
                    failed = HookFailed(one.plugin, hook, failed)
                self._failed(one.plugin, failed)
                continue
            if found is not None:
                yield one.plugin, found

    def tell(self, hook: str) -> None:
        """Tell everyone of something that has no answer."""
        for _ in self.each(hook, lambda answer: answer):
            pass

    def observe(self, event: Any) -> None:
        """Tell the observers of an event; one that fails is left out from then on."""
        for one in self._observers[:]:
            try:
                one({"event": event})
            except HookFailed as failed:
                self._failed(one.plugin, failed)

    def _failed(self, plugin: str, failed: HookFailed) -> None:
        """Leave an observer out. Raises what an allocator or backend raised."""
        if plugin not in self._watching:
            raise failed
        self.left_out.append(f"observer {plugin} is left out: {failed}")
        self._hooks.forget(plugin)

    def implementer(self, hook: str) -> str:
        """Return the name of the plugin that a hook's answer came from."""
        found = self._hooks[hook]
        return found[0].plugin if found else "?"
