"""Registries for tests: what is installed, and plugins that are not."""

from __future__ import annotations

from typing import Any

from paravirt_mm.errors import PluginError
from paravirt_mm.registry import Registry, default_registry


def registry_with(*, installed: bool = True, **plugins: type[Any]) -> Registry:
    """Return a new registry of ``name=class``, on top of the installed plugins or alone.

    Raises `PluginError` with everything that is wrong where a class cannot be used, or its name is
    taken.
    """
    registry = default_registry().branch() if installed else Registry()
    for name, factory in plugins.items():
        registry.add(name, factory)
    for broken in registry.broken:
        raise PluginError(broken.name, broken.problem)
    return registry
