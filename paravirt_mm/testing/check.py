"""The conformance suite of the plugin that ``--pvmm-plugin`` names, without a line of code::

    pytest -p paravirt_mm.testing.fixtures --pyargs paravirt_mm.testing.check \\
        --pvmm-plugin ./my_alloc.py:MyAllocator
"""

from __future__ import annotations

from typing import Any

import pytest

from paravirt_mm.hookspecs import Role
from paravirt_mm.options import PluginSpec
from paravirt_mm.plugin import name_for
from paravirt_mm.registry import default_registry
from paravirt_mm.testing.conformance import AllocatorConformance, BackendConformance

_SUITES = {Role.ALLOCATOR: AllocatorConformance, Role.BACKEND: BackendConformance}


def suite_for(text: str) -> type[Any]:
    """Return the test class for a plugin spec. Raises `SpecError`, `PluginError`."""
    spec = PluginSpec.parse(text)
    plugin = default_registry().get(spec.name)
    if plugin.role not in _SUITES:
        raise pytest.UsageError(f"{spec.name} is an observer; the kit tests what builds tables")
    options = ",".join(f"{key}={value}" for key, value in spec.options)
    name = name_for(plugin.factory) if spec.is_local else plugin.name
    members = {"plugin": plugin.factory, "name": name, "options": (options,)}
    return type("TestPlugin", (_SUITES[plugin.role],), members)
