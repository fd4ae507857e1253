"""A conformance suite for a plugin, as a third party's class of tests is one."""

from __future__ import annotations

from typing import Any

import pytest

from paravirt_mm.testing import AllocatorConformance, BackendConformance


def _members(factory: type[Any], more: dict[str, Any]) -> dict[str, Any]:
    return {"plugin": factory, "name": "mine", **more}


def allocator_suite(factory: type[Any], **more: Any) -> AllocatorConformance:
    members = _members(factory, more)
    made: type[AllocatorConformance] = type("Suite", (AllocatorConformance,), members)
    return made()


def backend_suite(factory: type[Any], **more: Any) -> BackendConformance:
    members = _members(factory, more)
    made: type[BackendConformance] = type("Suite", (BackendConformance,), members)
    return made()


def refused(test: Any, *arguments: Any, words: str = "") -> None:
    """A test of the suite fails, and says so in these words."""
    with pytest.raises(AssertionError) as caught:
        test(*arguments)
    assert words in str(caught.value), str(caught.value)
