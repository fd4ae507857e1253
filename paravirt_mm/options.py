"""Plugin options as text, ``legacy_linear:kernel=3.6``, and what they mean to a plugin class."""

from __future__ import annotations

import difflib
import enum
import typing
from types import NoneType
from typing import Any

import attrs
import cattrs

from paravirt_mm.errors import PluginError, SpecError

_FORM = "the form is name:option=value,option=value"
_YES, _NO = ("yes", "true", "on", "1"), ("no", "false", "off", "0")


@attrs.frozen
class PluginSpec:
    """A plugin and its options as text: ``legacy_linear:kernel=3.6,good_end=end``."""

    name: str
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> PluginSpec:
        """Read a spec. Raises `SpecError` that shows the form."""
        name, colon, rest = text.partition(":")
        pairs: list[tuple[str, str]] = []
        for part in rest.split(",") if colon else ():
            key, equals, value = part.partition("=")
            if not key.strip() or not equals:
                raise SpecError(f"cannot read option {part!r} of {text!r}; {_FORM}")
            if key.strip() in dict(pairs):
                raise SpecError(f"option {key.strip()!r} stands twice in {text!r}")
            pairs.append((key.strip(), value.strip()))
        if not name.strip():
            raise SpecError(f"cannot read {text!r}; {_FORM}")
        return cls(name.strip(), tuple(pairs))

    def __str__(self) -> str:
        if not self.options:
            return self.name
        return f"{self.name}:{','.join(f'{key}={value}' for key, value in self.options)}"


def _structure_bool(value: Any, _: Any) -> bool:
    text = str(value).lower()
    if text not in _YES + _NO:
        raise ValueError(value)
    return text in _YES


_CONVERTER = cattrs.Converter()
_CONVERTER.register_structure_hook(bool, _structure_bool)
_CONVERTER.register_structure_hook_func(
    lambda kind: NoneType in typing.get_args(kind),
    lambda value, kind: _CONVERTER.structure(value, typing.get_args(kind)[0]),
)


def create(name: str, factory: type[Any], options: dict[str, str]) -> Any:
    """Make an instance of a plugin class. Raises `SpecError`: which option, and what fits."""
    attrs.resolve_types(factory)
    fields = {field.name: field for field in attrs.fields(factory) if field.init}
    values: dict[str, Any] = {}
    for key, text in options.items():
        field = fields.get(key)
        if field is None:
            close = difflib.get_close_matches(key, fields, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            names = ", ".join(fields) or "none"
            raise SpecError(f"{name} has no option {key!r}{hint} (options: {names})")
        try:
            values[key] = _CONVERTER.structure(text, field.type)
        except Exception as error:
            raise SpecError(f"{name}: {key}={text!r} is not {_expected(field.type)}") from error
    try:
        return factory(**values)
    except (SpecError, PluginError):
        raise
    except Exception as error:
        raise SpecError(f"{name}: {error or type(error).__name__}") from error


def _expected(kind: Any) -> str:
    """Say what a type accepts, for people."""
    kinds = [each for each in typing.get_args(kind) or (kind,) if each is not NoneType]
    if isinstance(kinds[0], type) and issubclass(kinds[0], enum.Enum):
        return "one of " + ", ".join(str(member.value) for member in kinds[0])
    if kinds[0] is bool:
        return "yes or no"
    return {int: "a whole number", float: "a number"}.get(kinds[0], str(kinds[0]))
