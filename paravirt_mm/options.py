"""Plugin options as text, ``legacy_linear:kernel=3.6``, and what they mean to a plugin class."""

from __future__ import annotations

import datetime
import difflib
import enum
import functools
import inspect
import math
import operator
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import attrs
import cattrs

from paravirt_mm.errors import INTERRUPTIONS, PluginError, SpecError

_FORM = "the form is name:option=value,option=value"
_LOCAL = re.compile(r"([^:,=]+\.py:[A-Za-z_]\w*|[A-Za-z_][\w.]*:[A-Z]\w*)(?::(.*))?\Z", re.DOTALL)
"""A class without an entry point: ./file.py:Class or package.module:Class, then options."""


@attrs.frozen
class PluginSpec:
    """A plugin and its options as text: ``legacy_linear:kernel=3.6,good_end=end``.

    ``name`` is that of an entry point, or says where a class is: ``./file.py:Class``,
    ``package.module:Class``.
    """

    name: str
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> PluginSpec:
        """Read a spec. Raises `SpecError` that shows the form."""
        local = _LOCAL.match(text)
        if local:
            name, rest = local[1], local[2]
        else:
            name, colon, after = text.partition(":")
            rest = after if colon else None
        pairs: list[tuple[str, str]] = []
        for part in () if rest is None else rest.split(","):
            key, equals, value = part.partition("=")
            if not key.strip() or not equals:
                raise SpecError(f"cannot read option {part!r} of {text!r}; {_FORM}")
            if key.strip() in dict(pairs):
                raise SpecError(f"option {key.strip()!r} stands twice in {text!r}")
            pairs.append((key.strip(), value.strip()))
        if not name.strip():
            raise SpecError(f"cannot read {text!r}; {_FORM}")
        return cls(name.strip(), tuple(pairs))

    @property
    def is_local(self) -> bool:
        """Whether it says where a class is, rather than naming an entry point."""
        return ":" in self.name

    def __str__(self) -> str:
        if not self.options:
            return self.name
        return f"{self.name}:{','.join(f'{key}={value}' for key, value in self.options)}"


# -- from text to values ---------------------------------------------------------------------------

T = TypeVar("T")

_YES, _NO = ("yes", "true", "on", "1"), ("no", "false", "off", "0")
_INTEGER = re.compile(r"([+-]?)(0[xX][0-9a-fA-F_]+|[0-9][0-9_]*)([KMGT]?)(?:i?B)?\Z")
_NUMBER = re.compile(r"[+-]?[0-9._]+(?:[eE][+-]?[0-9]+)?\Z")
_BETWEEN = ";"
"""Stands between the values of a sequence: the comma stands between options."""


def _structured(text: Any, kind: Any) -> Any:
    """Convert text to a type. Raises whatever does not fit."""
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    # Members of IntEnum and StrEnum are numbers and text too, which cattrs would see first.
    return _member(text, kind) if _is_enum(kind) else _CONVERTER.structure(text, kind)


def _integer(text: str) -> int:
    match = _INTEGER.match(text)
    if match is None or len(text) > 40:
        raise ValueError(text)
    sign, digits, unit = match.groups()
    value = int(digits.replace("_", ""), 16 if digits[:2].lower() == "0x" else 10)
    return (-value if sign == "-" else value) << (10 * " KMGT".index(unit or " "))


def _floating(text: str) -> float:
    if not _NUMBER.match(text) or not math.isfinite(float(text)):
        raise ValueError(text)
    return float(text)


def _truth(text: str) -> bool:
    if text.lower() not in _YES + _NO:
        raise ValueError(text)
    return text.lower() in _YES


def _nothing(text: str) -> None:
    if text.lower() not in {"none", ""}:
        raise ValueError(text)


@functools.lru_cache
def _member(text: str, kind: type[enum.Enum]) -> enum.Enum:
    """Return the member of an enum by its value as text, or by its name in any case."""
    if issubclass(kind, enum.Flag):
        if _INTEGER.match(text):
            return kind(_integer(text))
        if "|" in text:
            members = [_member(part.strip(), kind) for part in text.split("|")]
            return functools.reduce(operator.or_, members)
    for member in kind:
        if text in {str(member.value), member.name}:
            return member
    for member in kind:
        if text.lower() in {str(member.value).lower(), member.name.lower()}:
            return member
    raise ValueError(text)


def _literal(text: str, kind: Any) -> Any:
    for value in typing.get_args(kind):
        if text == str(value.value if isinstance(value, enum.Enum) else value):
            return value
    raise ValueError(text)


_ORDER = (NoneType, bool, enum.Enum, Literal, int, float)
"""Of a union the most particular kind is tried first; text, which takes everything, last."""


def _place(kind: Any) -> int:
    origin = typing.get_origin(kind) or kind
    for place, other in enumerate(_ORDER):
        if origin is other or (
            isinstance(origin, type) and isinstance(other, type) and issubclass(origin, other)
        ):
            return place
    return len(_ORDER) + (origin in (str, object, Any))


def _one_of(text: str, kind: Any) -> Any:
    for member in sorted(typing.get_args(kind), key=_place):
        try:
            return _structured(text, member)
        except Exception:  # noqa: S112  # the next member may take it
            continue
    raise ValueError(text)


def _sequence(text: str, kind: Any) -> Any:
    inside = text.strip("()[]{}").replace(",", _BETWEEN)
    parts = [part.strip() for part in inside.split(_BETWEEN)] if inside.strip() else []
    origin = typing.get_origin(kind) or kind
    args = typing.get_args(kind) or (str, ...)
    if origin is tuple and args[-1] is not ...:
        return tuple(_structured(*pair) for pair in zip(parts, args, strict=True))
    items = (_structured(part, args[0]) for part in parts)
    return {set: set, frozenset: frozenset, tuple: tuple}.get(origin, list)(items)


def _mapping(text: str, kind: Any) -> dict[Any, Any]:
    key_kind, value_kind = typing.get_args(kind) or (str, str)
    found = {}
    for part in text.strip("{}").split(_BETWEEN) if text.strip("{}") else ():
        key, colon, value = part.partition(":")
        if not colon:
            raise ValueError(text)
        found[_structured(key.strip(), key_kind)] = _structured(value.strip(), value_kind)
    return found


def _origin_is(*kinds: Any) -> Callable[[Any], bool]:
    return lambda kind: (typing.get_origin(kind) or kind) in kinds


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, enum.Enum)


def _plain(convert: Callable[[str], T]) -> Callable[[Any, Any], T]:
    return lambda value, _: convert(str(value))


_UNIONS = {typing.Union, types.UnionType}
_MAPPINGS = (dict, *map(typing.get_origin, (Mapping[int, int],)))
_SEQUENCES = (list, set, frozenset, tuple, *map(typing.get_origin, (Iterable[int],)))
_CONVERTER = cattrs.Converter()
for _kind, _convert in (
    (int, _integer),
    (float, _floating),
    (bool, _truth),
    (NoneType, _nothing),
    (Path, Path),
    (datetime.date, datetime.date.fromisoformat),
    (datetime.datetime, datetime.datetime.fromisoformat),
):
    _CONVERTER.register_structure_hook(_kind, _plain(_convert))
for _predicate, _read in (
    (_origin_is(Literal), _literal),
    (_origin_is(*_UNIONS), _one_of),
    (_origin_is(*_SEQUENCES), _sequence),
    (_origin_is(*_MAPPINGS), _mapping),
    (lambda kind: kind is Any or kind is object, lambda value, _: value),
):
    _CONVERTER.register_structure_hook_func(_predicate, _read)


def option_name(field: attrs.Attribute[Any]) -> str:
    """Return the name of an option: that of the parameter, without leading underscores."""
    return field.alias or field.name


_FIELDS: WeakKeyDictionary[type[Any], dict[str, attrs.Attribute[Any]]] = WeakKeyDictionary()


def _fields(factory: type[Any]) -> dict[str, attrs.Attribute[Any]]:
    """Return the options of a plugin class by name, their types resolved."""
    found = _FIELDS.get(factory)
    if found is None:
        attrs.resolve_types(factory)
        found = {option_name(field): field for field in attrs.fields(factory) if field.init}
        _FIELDS[factory] = found
    return found


def create(name: str, factory: type[Any], options: Mapping[str, str]) -> Any:
    """Make an instance of a plugin class. Raises `SpecError`: which option, and what fits."""
    fields = _fields(factory)
    values: dict[str, Any] = {}
    for key, text in options.items():
        field = fields.get(key)
        if field is None:
            close = difflib.get_close_matches(key, fields, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            names = ", ".join(fields) or "none"
            raise SpecError(f"{name} has no option {key!r}{hint} (options: {names})")
        try:
            values[key] = text if field.converter else _structured(text, field.type)
        except Exception as error:
            raise SpecError(f"{name}: {key}={text!r} is not {expected(field.type)}") from error
    try:
        return factory(**values)
    except (PluginError, *INTERRUPTIONS):
        raise
    except BaseException as error:
        if isinstance(error, SpecError) and str(error).startswith(name):
            raise
        given = ", ".join(f"{key}={text!r}" for key, text in options.items()) or "default options"
        told = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
        raise SpecError(f"{name}: {told or type(error).__name__} ({given})") from error


# -- for people ------------------------------------------------------------------------------------

_WORDS: dict[Any, str] = {
    bool: "yes or no",
    int: "a whole number (also 0x10, 2M)",
    float: "a number",
    str: "text",
    NoneType: "none",
    Path: "a path",
    datetime.date: "a date (2012-10-04)",
    Any: "text",
    object: "text",
}


def expected(kind: Any) -> str:
    """Say what a type accepts, for people."""
    origin, args = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is typing.Annotated:
        return expected(args[0])
    if _is_enum(kind):
        return "one of " + ", ".join(as_text(member) for member in kind)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in _UNIONS:
        return " or ".join(expected(member) for member in sorted(args, key=_place)[::-1])
    if origin in _SEQUENCES:
        items = [expected(arg) for arg in args if arg is not ...] or ["text"]
        return f"{', '.join(items)}, with {_BETWEEN!r} between"
    if origin in _MAPPINGS:
        return f"key:value, with {_BETWEEN!r} between"
    return _WORDS.get(origin, getattr(origin, "__name__", str(origin)))


@attrs.frozen
class Option:
    """One option of a plugin: its name, what it accepts, its default as text, what it is for.

    ``schema`` says the first two to programs, in the words of JSON schema: type, enum, bounds, and
    the default as a value.
    """

    name: str
    accepts: str
    default: str
    help: str
    schema: dict[str, Any]


def described(factory: type[Any]) -> list[Option]:
    """Return the options of a plugin class, in order.

    What they are for is in the field's metadata (``help``), or in the class's docstring, indented
    below a line that holds the option's name alone.
    """
    told = _documented(inspect.getdoc(factory) or "")
    found = []
    for name, field in _fields(factory).items():
        words = str(field.metadata.get("help") or told.get(name, ""))
        default = _default(field)
        schema = {**_schema(field.type), **_bounds(field.validator), "default": _json(default)}
        found.append(Option(name, expected(field.type), as_text(default), words, schema))
    return found


_JSON_TYPES: dict[Any, str] = {
    bool: "boolean", int: "integer", float: "number", NoneType: "null",
    **dict.fromkeys(_MAPPINGS, "object"),
}  # fmt: skip
_BOUNDS: dict[Any, str] = {
    operator.ge: "minimum",
    operator.gt: "exclusiveMinimum",
    operator.le: "maximum",
    operator.lt: "exclusiveMaximum",
}


def _schema(kind: Any) -> dict[str, Any]:
    """Return the JSON schema of a type; what has no type of its own in JSON is text."""
    origin, args = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is typing.Annotated:
        return _schema(args[0])
    if _is_enum(kind):
        return {"enum": [as_text(member) for member in kind]}
    if origin is Literal:
        return {"enum": [_json(one) for one in args]}
    if origin in _UNIONS:
        return {"anyOf": [_schema(one) for one in args]}
    if origin in _SEQUENCES:
        items = [one for one in args if one is not ...]
        return {"type": "array", **({"items": _schema(items[0])} if len(items) == 1 else {})}
    return {"type": _JSON_TYPES.get(origin, "string")}


def _bounds(validator: Any) -> dict[str, Any]:
    """Return what attrs' own validators allow."""
    found: dict[str, Any] = {}
    for one in getattr(validator, "_validators", ()):
        found |= _bounds(one)
    word = _BOUNDS.get(getattr(validator, "compare_func", None))
    if word is not None:
        found[word] = validator.bound
    inner = getattr(validator, "validator", None)
    return found | (_bounds(inner) if inner is not None else {})


def _json(value: Any) -> Any:
    """Return a value as JSON has it; what JSON does not know, as text."""
    if value is None or (isinstance(value, bool | int | float | str) and not _is_enum(type(value))):
        return value
    if isinstance(value, list | tuple):
        return [_json(one) for one in value]
    return as_text(value)


def _documented(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for match in re.finditer(r"(?m)^(\w+)\n((?:[ \t]+\S.*\n?|\n(?=[ \t]))+)", text):
        found[match[1]] = " ".join(textwrap.dedent(match[2]).split())
    return found


def _default(field: attrs.Attribute[Any]) -> Any:
    made: Any = field.default
    if hasattr(made, "takes_self"):  # what attrs.Factory gives
        return "" if made.takes_self else made.factory()
    return made


def as_text(value: Any) -> str:
    """Return the value of an option as it is written in a spec."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, enum.Enum):
        return value.value if isinstance(value.value, str) else (value.name or "").lower()
    if isinstance(value, dict):
        return _BETWEEN.join(f"{as_text(key)}:{as_text(one)}" for key, one in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return _BETWEEN.join(map(as_text, value))
    return str(value)
