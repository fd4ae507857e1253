"""Immutable values that cost little to make: those that a run makes dozens of.

What refuses to be changed refuses its own constructor, too, so that of `attrs.frozen` goes past the
refusal field by field, at fifty times the price of an assignment. Here it does so once: until it is
filled, a value belongs to a subclass that can be changed. The class itself costs half a millisecond
more, at each start. (PyPy compiles the former away, and takes longer over the latter.)
"""

from __future__ import annotations

import linecache
import sys
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING or sys.implementation.name == "pypy":
    from attrs import frozen as frozen
else:

    def frozen(cls: type[Any] | None = None, *, eq: bool = True) -> Any:
        """Make a class as `attrs.frozen` does, with a constructor that takes less time."""
        if cls is None:
            return lambda cls: frozen(cls, eq=eq)
        made = attrs.frozen(cls, eq=eq)
        made.__init__ = _constructor(made)
        return made


_into = object.__dict__["__class__"].__set__


def _constructor(made: type[Any]) -> Any:
    by_attrs = made.__init__

    @attrs.define(eq=False, repr=False)
    class Open(made):  # type: ignore[misc]  # which class it is, is seen when it is made
        __setattr__ = object.__setattr__
        __delattr__ = object.__delattr__

    lines = linecache.getlines(Open.__init__.__code__.co_filename)  # where attrs puts it
    head, body = "".join(lines).split("\n", 1)
    names = {**Open.__init__.__globals__, "_into": _into, "_Open": Open, "_made": made}
    source = f"{head}\n    _into(self, _Open)\n{body}\n    self.__class__ = _made\n"
    exec(source, names)  # noqa: S102  # what attrs made of the class, and two lines
    init = names["__init__"]
    init.__annotations__ = by_attrs.__annotations__
    init.__qualname__, init.__module__ = by_attrs.__qualname__, by_attrs.__module__

    def inherit(cls: type[Any], /, **settings: Any) -> None:
        super(made, cls).__init_subclass__(**settings)
        if "__init__" not in vars(cls):  # a value of it is none of an open class for a while
            cls.__init__ = by_attrs

    made.__init_subclass__ = classmethod(inherit)  # type: ignore[assignment]
    return init
