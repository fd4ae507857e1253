"""Plugins that give an answer to one hook, and machines for them to bring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from paravirt_mm import E820Type, Machine, MemoryMap, hookimpl
from paravirt_mm.testing import AscendingAllocator


def answering(hook: str, answer: Callable[[], Any], base: type = AscendingAllocator) -> type[Any]:
    """Return the class of a plugin that gives an answer to one hook."""

    def method(self: object) -> Any:
        return answer()

    method.__name__ = hook
    return attrs.frozen(type("Answers", (base,), {hook: hookimpl(method)}))


def small(name: str) -> Machine:
    return Machine(name, MemoryMap.sanitise([(0, 1 << 26, E820Type.RAM)]))
