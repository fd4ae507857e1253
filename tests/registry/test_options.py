"""Options: every type from text, with messages that list what is allowed."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping
from enum import Enum, Flag, IntEnum, StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import attrs
import pytest

from paravirt_mm import PluginSpec, SpecError
from paravirt_mm.errors import PluginError
from paravirt_mm.options import as_text, described
from paravirt_mm.plugin import Plugin
from paravirt_mm.registry import Registry
from paravirt_mm.testing import AscendingAllocator, PlainPlatform, registry_with


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


class Page(StrEnum):
    """Values that look like numbers."""

    SMALL = "4K"
    LARGE = "2M"


def mib(text: object) -> int:
    return int(str(text).rstrip("Mm"))


BETWEEN: Any = attrs.validators.optional(
    attrs.validators.and_(attrs.validators.gt(1), attrs.validators.lt(3))
)


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
    marked: Annotated[Size, "of something"] = Size.SMALL
    loose: str | float = 1.5
    odd: int | Literal["1"] = 5
    page: Page = Page.SMALL
    mixed: int | Size = 3
    any_map: dict = attrs.field(factory=dict)  # type: ignore[type-arg]  # as people write it
    between: float | None = attrs.field(default=1.5, validator=BETWEEN)
    some: set[int] = attrs.field(factory=set)
    kept: frozenset[str] = frozenset()
    bare: tuple = ()  # type: ignore[type-arg]  # as people write it
    moment: datetime.datetime = datetime.datetime(2020, 1, 1)
    mapped: Mapping[int, bool] = attrs.field(factory=lambda: {1: True, 2: False})
    copied: int = attrs.field(default=attrs.Factory(lambda self: self.told, takes_self=True))
    worked_out: int = attrs.field(default=9, init=False)
    day: datetime.date | str = "never"
    stamp: datetime.date | float = 0.5
    only: tuple[int] = (1,)
    any_of_them: Any = None
    each: Iterable[int] = ()


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
    ("bits=a | B", Bits.A | Bits.B),
    ("perhaps=", None),
    ("told=+7", 7),
    ("told=0XfF", 255),
    ("told=0xfK", 15 << 10),
    ("told=3TB", 3 << 40),
    (f"told={'0' * 39}8", 8),
    ("ratio=-.5", -0.5),
    ("ratio=2.5E-1", 0.25),
    ("flag=On", True),
    ("flag=1", True),
    ("flag=0", False),
    ("names=[a;b]", ["a", "b"]),
    ("names= a ; b", ["a", "b"]),
    ("levels=()", ()),
    ("some={1;2;1}", {1, 2}),
    ("kept=a;b", frozenset("ab")),
    ("bare=x;y", ("x", "y")),
    ("pair=(3;z)", (3, "z")),
    ("moment=2012-10-04T05:06", datetime.datetime(2012, 10, 4, 5, 6)),
    ("mapped=1:no;0x2:on", {1: False, 2: True}),
    ("mapped={}", {}),
    ("mapped={ 3 : yes }", {3: True}),
    ("within=2", 2),
    ("marked=large", Size.LARGE),
    ("loose=2.5", 2.5),
    ("loose=x", "x"),
    ("odd=1", "1"),
    ("odd=2", 2),
    ("page=2M", Page.LARGE),
    ("mixed=2", Size.LARGE),
    ("mixed=4", 4),
    ("any_map=a:b", {"a": "b"}),
    ("copied=5", 5),
    ("day=2012-10-04", datetime.date(2012, 10, 4)),  # text takes everything, and so comes last
    ("day=today", "today"),
    ("stamp=20121004", 20121004.0),  # a number before what happens to be written like one
    ("stamp=2012-10-04", datetime.date(2012, 10, 4)),
    ("only=5", (5,)),
    ("any_of_them=x", "x"),
    ("names=( )", []),
    ("each=1;2", [1, 2]),
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
    "within=1": "'within' must be >= 2",
    f"told={'0' * 40}8": "is not a whole number",
    "told=1Kb": "is not a whole number",
    "ratio=1e999": "is not a number",
    "ratio=٣": "is not a number",
    "ratio=_": "is not a number",
    "pair=1;x;y": "with ';' between",
    "mapped=1": "is not key:value",
    "mapped=1:perhaps": "is not key:value",
    "perhaps=nothing": "or none",
    "bits=A|C": "is not one of a, b",
    "converted=x": "(converted='x')",
    "worked_out=1": "no option 'worked_out'",
    "xyzzy=1": "opts has no option 'xyzzy' (options: first_step, lit, number,",
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
    assert "worked_out" not in [field.name for field in plugin.options()]


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
    assert schemas["within"]["minimum"] == 2
    between = schemas["between"]
    assert (between["exclusiveMinimum"], between["exclusiveMaximum"]) == (1, 3)
    assert {"minimum", "maximum"}.isdisjoint(between)
    assert schemas["colour"]["enum"] == ["red", "b"]
    assert schemas["number"] == {"enum": [1, 2], "default": 1}
    assert schemas["annotated"]["type"] == schemas["converted"]["type"] == "integer"
    assert schemas["names"] == {"type": "array", "items": {"type": "string"}, "default": []}
    assert schemas["levels"]["items"] == {"type": "integer"}
    assert "items" not in schemas["pair"]
    assert (schemas["mapped"]["type"], schemas["ratio"]["type"]) == ("object", "number")
    assert (schemas["path"]["type"], schemas["path"]["default"]) == ("string", "/x")
    assert (schemas["flag"]["default"], schemas["perhaps"]["default"]) == (False, None)
    assert told["flag"].default == "no"
    assert told["mapped"].default == "1:yes;2:no"
    assert (told["colour"].default, told["copied"].default) == ("red", "")
    assert "worked_out" not in told
    assert told["either"].accepts == "text or a whole number (also 0x10, 2M)"
    assert told["annotated"].accepts == told["told"].accepts
    assert told["levels"].accepts == "a whole number (also 0x10, 2M), with ';' between"
    assert told["bare"].accepts == "text, with ';' between"
    assert told["moment"].accepts == "datetime"
    assert told["number"].help == ""
    assert told["anything"].accepts == told["any_of_them"].accepts == "text"


def test_options_describe_themselves_whoever_asks_first() -> None:
    """Also those of a class that no registry has seen, and that says nothing of itself."""

    @attrs.frozen
    class Silent:
        size: int | None = None

    assert Silent.__doc__ is None
    (size,) = described(Silent)
    assert (size.accepts, size.help) == ("a whole number (also 0x10, 2M) or none", "")
    assert size.schema == {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None}
    with pytest.raises(SpecError, match=r"plain has no option 'x' \(options: none\)"):
        Plugin("plain", PlainPlatform).create({"x": "1"})


def test_members_of_flags_are_told_together_or_not_at_all() -> None:
    assert [as_text(one) for one in (Bits.A, Bits.A | Bits.B, Bits(0))] == ["a", "a|b", ""]


# -- specs as text ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a", "a:b=1", "a:b=1,c=", "./x.py:Mine", "x.y:Mine:b=1,c=d=e"])
def test_specs_are_read_as_they_are_written(text: str) -> None:
    spec = PluginSpec.parse(text)
    assert str(spec) == text
    assert PluginSpec.parse(" a : b = 1 , c=x ") == PluginSpec("a", (("b", "1"), ("c", "x")))
    assert spec.is_local == ("Mine" in text)
    spaced = text.replace(",", " , ").replace("=1", " = 1 ")
    assert PluginSpec.parse(f" {spaced} " if not spec.is_local else spaced) == spec


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot read ''; the form is name:option=value"),
        (" :a=1", "cannot read ' :a=1'"),
        ("a:", "cannot read option '' of 'a:'"),
        ("a:b", "cannot read option 'b'"),
        (" ", "cannot read ' '"),
        ("a:=1", "cannot read option '=1'"),
        ("a: =1", "cannot read option"),
        ("a:b=1,", "cannot read option ''"),
        ("a:b=1, b=2", "option 'b' stands twice"),
        ("a:b=1,b =2", "option 'b' stands twice"),
        ("x.y:Mine:b", "cannot read option 'b'"),
    ],
)
def test_specs_that_are_none(text: str, words: str) -> None:
    with pytest.raises(SpecError) as error:
        PluginSpec.parse(text)
    assert words in str(error.value)


@attrs.frozen
class Particular(AscendingAllocator):
    """Wants more of its options than their types say."""

    size: int = 1

    def __attrs_post_init__(self) -> None:
        if self.size == 2:
            raise ValueError
        if self.size == 3:
            raise SpecError("mine: 3 is odd")
        if self.size == 4:
            raise KeyError("four", 4)
        if self.size == 6:
            raise KeyError("six", "seven")
        if self.size == 5:
            raise PluginError("mine", "is at fault")
        if self.size == 7:
            raise ValueError("mine or not")
        if self.size == 8:
            raise SpecError("8 is odd")
        if self.size == 9:
            raise ValueError(4, 5)


@pytest.mark.parametrize(
    ("size", "kind", "words"),
    [
        (2, SpecError, "mine: ValueError (size='2')"),
        (3, SpecError, "mine: 3 is odd"),
        (4, SpecError, "mine: four (size='4')"),
        (6, SpecError, "mine: six (size='6')"),
        (5, PluginError, "plugin mine: is at fault"),
        (7, SpecError, "mine: mine or not (size='7')"),
        (8, SpecError, "mine: 8 is odd (size='8')"),
        (9, SpecError, "mine: (4, 5) (size='9')"),
    ],
)
def test_what_a_plugin_says_of_its_options(size: int, kind: type[Exception], words: str) -> None:
    plugin = registry_with(installed=False, mine=Particular).get("mine")
    with pytest.raises(kind) as error:
        plugin.create({"size": str(size)})
    assert str(error.value) == words


def test_what_fails_by_default_says_that() -> None:
    @attrs.frozen
    class Fails:
        def __attrs_post_init__(self) -> None:
            raise ValueError("no idea")

    with pytest.raises(SpecError, match=r"^mine: no idea \(default options\)$"):
        Plugin("mine", Fails).create()


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
    assert registry.broken == []
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
