"""What can be used is documented: hooks, public names, figures, the kit."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest

import paravirt_mm
from paravirt_mm import Role, hookspecs
from paravirt_mm.measure.figures import FIGURES

HOOKS = {
    name: function
    for name, function in vars(hookspecs).items()
    if name.startswith("pvmm_") and inspect.isfunction(function)
}
WHO = {
    "Allocator:": {Role.ALLOCATOR},
    "Backend:": {Role.BACKEND},
    "Observer:": {Role.OBSERVER},
    "Allocator or backend:": {Role.ALLOCATOR, Role.BACKEND},
    "Anyone:": set(Role),
}


@pytest.mark.parametrize("name", HOOKS)
def test_hook_says_who_answers(name: str) -> None:
    words = inspect.getdoc(HOOKS[name]) or ""
    told = [roles for who, roles in WHO.items() if words.startswith(who)]
    assert told == [set(hookspecs.HOOKS[name])], f"{name}: {words[:60]!r}"
    assert words.split("\n\n")[0].endswith(".")


@pytest.mark.parametrize("name", HOOKS)
def test_hook_is_typed(name: str) -> None:
    signature = inspect.signature(HOOKS[name])
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter
        assert parameter.default is inspect.Parameter.empty, parameter


@pytest.mark.parametrize("name", HOOKS)
def test_one_answer_only_where_one_plugin_answers(name: str) -> None:
    """A scenario has one allocator and one backend, but any number of observers."""
    words = inspect.getdoc(HOOKS[name]) or ""
    options = getattr(HOOKS[name], f"{hookspecs.PROJECT}_spec")
    assert bool(options["firstresult"]) is words.startswith(("Allocator:", "Backend:"))


def test_every_parameter_is_of_a_public_type() -> None:
    """A plugin needs only public names: what a hook gets and returns is among them (or in hookspecs
    itself).
    """
    public = [getattr(paravirt_mm, name) for name in paravirt_mm.__all__]
    for name, function in HOOKS.items():
        namespace = {
            **vars(typing),
            **vars(hookspecs),
            "click": importlib.import_module("click"),
            **{n: getattr(paravirt_mm, n) for n in ("Fact", "Finding", "LogLine", "Run")},
        }
        for kind in _named(typing.get_type_hints(function, namespace)):
            if kind.__module__.startswith("paravirt_mm"):
                assert kind in public, f"{name} uses {kind.__name__}, which is not public"


def _named(hints: Any) -> Iterator[type]:
    for hint in hints.values() if isinstance(hints, dict) else [hints]:
        if isinstance(hint, type):
            yield hint
        for inner in typing.get_args(hint):
            yield from _named(inner)


def test_public_names_are_documented() -> None:
    names = sorted(set(paravirt_mm.__all__) - {"__version__"})
    assert [missing for name in names for missing in _undocumented(name)] == []


def _undocumented(name: str) -> Iterator[str]:
    """Yield what of a public name has no docstring: itself, its methods, its properties."""
    thing = getattr(paravirt_mm, name)
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        return  # A constant: its docstring follows it in the source.
    if not _own_docstring(thing):
        yield name
    for member, value in vars(thing).items() if inspect.isclass(thing) else ():
        if not member.startswith("_") and (
            inspect.isfunction(value) or isinstance(value, property | classmethod)
        ):
            function = (
                value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            )
            if not function.__doc__:
                yield f"{name}.{member}"


def _own_docstring(thing: Any) -> str:
    words = str(vars(thing).get("__doc__") or getattr(thing, "__doc__", "") or "")
    generated = inspect.isclass(thing) and attrs.has(thing) and words.startswith("Method generated")
    return "" if generated or words.startswith("An enumeration") else words


def test_dir_lists_public_names() -> None:
    assert set(paravirt_mm.__all__) <= set(dir(paravirt_mm))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = paravirt_mm.no_such_name


def test_kit_is_documented() -> None:
    kit = importlib.import_module("paravirt_mm.testing")
    for name in kit.__all__:
        assert getattr(kit, name).__doc__, name
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = kit.no_such_name


@pytest.mark.parametrize("name", FIGURES)
def test_figure_has_a_meaning(name: str) -> None:
    figure = FIGURES[name]
    assert len(figure.meaning.split()) >= 2
    assert figure.header
    assert len(figure.header) <= 17, "columns must fit"
    assert not figure.meaning.endswith(".")


def _modules(package: ModuleType) -> Iterator[str]:
    yield package.__name__
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        yield info.name


def test_modules_say_what_they_are() -> None:
    names = list(_modules(paravirt_mm))
    assert len(names) > 150
    assert [name for name in names if not importlib.import_module(name).__doc__] == []


def test_built_in_plugins_import_public_names_only(checkout: Path) -> None:
    """They are what a third party's would be: `paravirt_mm`, its hookspecs, errors and paging
    constants.
    """
    allowed = ("paravirt_mm.hookspecs",)
    for path in (checkout / "plugins").rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            words = line.split()
            if words[:1] == ["from"] and words[1].startswith("paravirt_mm."):
                assert words[1] in allowed, f"{path}: {line}"


def test_enum_members_of_options_are_explained(checkout: Path) -> None:
    """Every choice of an option is shown by `paravirt-mm plugins`: an enum of an option has a
    docstring.
    """
    from paravirt_mm.registry import Registry

    for plugin in Registry.discover().plugins.values():
        for option in plugin.options():
            kinds = [option.type, *typing.get_args(option.type)]
            for kind in kinds:
                if inspect.isclass(kind) and issubclass(kind, Enum):
                    assert _own_docstring(kind), f"{plugin.name}: {option.name}"
