"""Immutable values: what `frozen` makes is what `attrs.frozen` makes of the same class."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from paravirt_mm.frozen import frozen

Maker = Callable[[type[Any]], type[Any]]


def _positive(value: int) -> int:
    if value < 0:
        raise ValueError("below zero")
    return value


def _made(how: Maker) -> type[Any]:
    @how
    class Value:
        """A value with a field of each kind."""

        first: int = attrs.field(converter=_positive)
        text: str = "x"
        many: list[int] = attrs.field(factory=list, hash=False)
        double: int = attrs.field(init=False, repr=False, eq=False)

        @double.default
        def _double(self) -> int:
            return 2 * self.first

        def __attrs_post_init__(self) -> None:
            if self.first == 13:
                raise ValueError("unlucky")

    return Value


@frozen
class Pair:
    """A value that pickle finds."""

    left: int
    right: int = 2


OURS, THEIRS = _made(frozen), _made(attrs.frozen)
CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((1,), {}),
    ((1, "y", [3]), {}),
    ((), {"many": [4], "first": 5}),
    ((-1,), {}),
    ((13,), {}),
    ((), {}),
    ((1, "y", [], 4), {}),
    ((1,), {"double": 3}),
]


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in ("first", "text", "many", "double")}


def _told(make: Callable[[], Any]) -> Any:
    try:
        value = make()
    except (TypeError, ValueError) as error:
        return repr(error)
    return _fields(value), repr(value)


@pytest.mark.parametrize(("given", "named"), CALLS)
def test_it_is_made_of_the_same_arguments(given: tuple[Any, ...], named: dict[str, Any]) -> None:
    ours, theirs = (_told(lambda cls=cls: cls(*given, **named)) for cls in (OURS, THEIRS))
    assert ours == theirs
    assert inspect.signature(OURS) == inspect.signature(THEIRS)


def test_nothing_can_be_changed() -> None:
    value = OURS(1)
    assert type(value) is OURS
    for change in (
        lambda: setattr(value, "first", 2),
        lambda: setattr(value, "other", 2),
        lambda: delattr(value, "first"),
    ):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            change()
    with pytest.raises(AttributeError):
        value.__dict__  # noqa: B018
    assert value == OURS(1)


def test_values_compare_hash_and_travel() -> None:
    assert OURS(1) == OURS(1) != OURS(2)
    assert len({OURS(1), OURS(1), OURS(2)}) == 2
    assert attrs.evolve(OURS(1), first=4).double == 8
    assert pickle.loads(pickle.dumps(Pair(1))) == Pair(1, 2)  # noqa: S301
    assert attrs.asdict(Pair(1)) == {"left": 1, "right": 2}


def test_equality_can_be_left_out() -> None:
    @frozen(eq=False)
    class Thing:
        name: str

    one = Thing("a")
    assert one != Thing("a")
    assert one.name == "a"
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        one.name = "b"  # type: ignore[misc]


def test_subclasses_stay_what_they_are() -> None:
    class Plain(Pair):
        pass

    class Slotted(Pair):
        __slots__ = ()

    @attrs.frozen
    class Triple(Pair):
        third: int = 3

    for kind in (Plain, Slotted, Triple):
        value = kind(7)
        assert type(value) is kind
        assert (value.left, value.right) == (7, 2)
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            value.left = 8  # type: ignore[misc]
