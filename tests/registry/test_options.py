"""Options: every type from text, with messages that list what is allowed."""

from __future__ import annotations

import datetime
import json
from enum import Enum, Flag, IntEnum, StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import attrs
import pytest

from paravirt_mm import PluginSpec, SpecError
from paravirt_mm.options import described
from paravirt_mm.registry import Registry
from paravirt_mm.testing import AscendingAllocator, registry_with


class Colour(Enum):
    """By value or name."""

    RED = 1
    BLUE = "b"


class Size(IntEnum):
    SMALL = 1
    LARGE = 2


class Bits(Flag):
    A = 1
    B = 2


class Growth(StrEnum):
    FIXED = "fixed"
    DOUBLE = "double"


def mib(text: object) -> int:
    return int(str(text).rstrip("Mm"))


@attrs.frozen(kw_only=True)
class Options(AscendingAllocator):
    """Options of every type.

    lit
        A letter, and what it is for goes
        over two lines.
    """

    lit: Literal["a", "b"] = "a"
    number: Literal[1, 2] = 1
    colour: Colour = Colour.RED
    size: Size = Size.SMALL
    bits: Bits = Bits.A
    growth: Growth = Growth.FIXED
    perhaps: int | None = None
    either: int | str = 3
    either_way: str | int = 3
    level: Size | None = None
    path: Path = Path("/x")
    ratio: float = 0.5
    flag: bool = False
    levels: tuple[int, ...] = (1, 2)
    pair: tuple[int, str] = (1, "x")
    names: list[str] = attrs.field(factory=list)
    nested: dict[str, int] = attrs.field(factory=dict)
    converted: int = attrs.field(default=1, converter=mib)
    renamed: int = attrs.field(default=1, alias="public")
    _private: int = 1
    told: int = attrs.field(default=4, metadata={"help": "what it means"})
    when: datetime.date = datetime.date(2020, 1, 1)
    within: int = attrs.field(default=4, validator=[attrs.validators.ge(2), attrs.validators.le(8)])
    anything: object = None
    annotated: Annotated[int, "bytes"] = 3


RIGHT: list[tuple[str, Any]] = [
    ("lit=b", "b"),
    ("number=2", 2),
    ("colour=1", Colour.RED),
    ("colour=blue", Colour.BLUE),
    ("size=2", Size.LARGE),
    ("size=LARGE", Size.LARGE),
    ("size=large", Size.LARGE),
    ("bits=A", Bits.A),
    ("bits=A|B", Bits.A | Bits.B),
    ("bits=3", Bits.A | Bits.B),
    ("growth=double", Growth.DOUBLE),
    ("growth=FIXED", Growth.FIXED),
    ("perhaps=3", 3),
    ("perhaps=none", None),
    ("perhaps=None", None),
    ("either=5", 5),
    ("either=abc", "abc"),
    ("either_way=5", 5),
    ("level=none", None),
    ("level=large", Size.LARGE),
    ("path=/a/b", Path("/a/b")),
    ("ratio=1e3", 1000.0),
    ("flag=yes", True),
    ("flag=OFF", False),
    ("levels=12", (12,)),
    ("levels=1;0x10", (1, 16)),
    ("pair=2;y", (2, "y")),
    ("names=a;b", ["a", "b"]),
    ("names=", []),
    ("nested=a:1;b:2M", {"a": 1, "b": 2 << 20}),
    ("converted=2M", 2),
    ("told=0x10", 16),
    ("told=2M", 2 << 20),
    ("told=1GiB", 1 << 30),
    ("told=1_000", 1000),
    ("told=-4", -4),
    ("when=2012-10-04", datetime.date(2012, 10, 4)),
    ("within=8", 8),
    ("anything=x", "x"),
    ("annotated=5", 5),
]


def value_of(text: str) -> Any:
    plugin = registry_with(installed=False, opts=Options).get("opts")
    made = plugin.create(dict(PluginSpec.parse(f"opts:{text}").options))
    return getattr(made, text.partition("=")[0])


@pytest.mark.parametrize(("text", "value"), RIGHT, ids=[text for text, _ in RIGHT])
def test_right(text: str, value: Any) -> None:
    found = value_of(text)
    assert found == value
    assert type(found) is type(value)


WRONG = {
    "lit=z": "is not one of a, b",
    "number=3": "is not one of 1, 2",
    "colour=green": "is not one of red, b",
    "size=7": "is not one of small, large",
    "growth=none": "is not one of fixed, double",
    "level=9": "is not one of small, large or none",
    "perhaps=x": "is not a whole number (also 0x10, 2M) or none",
    "ratio=nan": "is not a number",
    "ratio=inf": "is not a number",
    "flag=maybe": "is not yes or no",
    "levels=1;x": "with ';' between",
    "pair=1": "is not a whole number (also 0x10, 2M), text, with ';' between",
    "nested=a": "is not key:value, with ';' between",
    "told=٣": "is not a whole number",
    "told=2X": "is not a whole number",
    "told=1e3": "is not a whole number",
    "when=yesterday": "is not a date",
    "within=9": "'within' must be <= 8",
    "renamed=1": "no option 'renamed'",
    "_private=1": "did you mean 'private'?",
}


@pytest.mark.parametrize(("text", "words"), WRONG.items())
def test_wrong(text: str, words: str) -> None:
    with pytest.raises(SpecError) as error:
        value_of(text)
    assert words in str(error.value)


def test_names_are_those_of_the_parameters() -> None:
    plugin = registry_with(installed=False, opts=Options).get("opts")
    made = plugin.create({"public": "3", "private": "4"})
    assert (made.renamed, made._private) == (3, 4)


def test_options_describe_themselves() -> None:
    told = {option.name: option for option in described(Options)}
    assert told["lit"].help == "A letter, and what it is for goes over two lines."
    assert told["told"].help == "what it means"
    assert told["size"].accepts == "one of small, large"
    assert (told["size"].default, told["perhaps"].default, told["levels"].default) == (
        "small",
        "none",
        "1;2",
    )
    assert {"public", "private"} <= told.keys()
    schemas = {name: option.schema for name, option in told.items()}
    assert schemas["size"] == {"enum": ["small", "large"], "default": "small"}
    assert schemas["flag"]["type"] == "boolean"
    assert schemas["within"]["type"] == "integer"
    assert schemas["within"]["maximum"] == 8
    assert schemas["levels"]["default"] == [1, 2]
    assert {"type": "null"} in schemas["perhaps"]["anyOf"]
    assert json.dumps(schemas)


# -- classes without an entry point ----------------------------------------------------------------

LOCAL = """
from helper import STEP
from paravirt_mm.testing import AscendingAllocator
import attrs
@attrs.frozen
class Mine(AscendingAllocator):
    first_step: int = STEP
"""


@pytest.mark.parametrize("careful", [False, True])
def test_class_of_a_file(tmp_path: Path, careful: bool) -> None:
    (tmp_path / "helper.py").write_text("STEP = 1 << 21")
    (tmp_path / "my-alloc.py").write_text(LOCAL)
    place = f"{tmp_path}/my-alloc.py:Mine"
    spec = PluginSpec.parse(f"{place}:first_step=4M")
    assert (spec.name, spec.options, str(spec)) == (
        place,
        (("first_step", "4M"),),
        f"{place}:first_step=4M",
    )
    registry = Registry(careful)
    name, made = registry.make(spec, "allocator")
    assert (name, made.first_step) == (place, 4 << 20)
    assert registry.make(PluginSpec.parse(place), "allocator")[1].first_step == 1 << 21
    with pytest.raises(SpecError, match="no backend"):
        registry.get(place, "backend")


def test_class_of_a_module() -> None:
    registry = Registry()
    name = "paravirt_mm.testing.reference:AscendingAllocator"
    assert registry.make(PluginSpec.parse(name), "allocator")[1] == AscendingAllocator()


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("./nowhere.py:Mine", "there is no file"),
        ("no_such_module:Mine", "No module named"),
        ("json:JSONDecoder", "must name a class made with attrs"),
        ("json:Nothing", "has no attribute 'Nothing'"),
    ],
)
def test_wrong_places(place: str, words: str) -> None:
    with pytest.raises(Exception, match=words):
        Registry().get(place)


@pytest.mark.slow
def test_import_can_neither_hang_nor_end_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paravirt_mm import guard, registry as module

    monkeypatch.setattr(module, "NAMED", guard.Limits(cpu=1, wall=1))
    registry = Registry(careful=True)
    for code, words in (("import os; os._exit(0)", "exit code 0"), ("while True: pass", "longer")):
        path = tmp_path / f"bad{len(code)}.py"
        path.write_text(code)
        with pytest.raises(Exception, match=words):
            registry.get(f"{path}:Mine")
