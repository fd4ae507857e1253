"""Options of every type."""

import datetime
from enum import Enum, Flag, IntEnum, StrEnum
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Optional

import attrs
from older_chunk_end import ChunkEnd



class Colour(Enum):
    RED = 1
    BLUE = "b"


class Size(IntEnum):
    SMALL = 1
    LARGE = 2


class Bits(Flag):
    A = 1
    B = 2


def mib(text):
    return int(str(text).rstrip("Mm"))


@attrs.frozen(kw_only=True)
class Opts(ChunkEnd):
    """Options of every type."""

    pvmm_api: ClassVar[int] = 1

    lit: Literal["a", "b"] = "a"
    litint: Literal[1, 2] = 1
    colour: Colour = Colour.RED
    size: Size = Size.SMALL
    bits: Bits = Bits.A
    opt: Optional[int] = None
    optenum: Size | None = None
    path: Path = Path("/x")
    floaty: float = 0.5
    flag: bool = False
    either: int | str = 3
    levels: tuple[int, ...] = (1, 2)
    names: list[str] = attrs.field(factory=list)
    nested: dict[str, int] = attrs.field(factory=dict)
    conv: int = attrs.field(default=1, converter=mib)
    aliased: int = attrs.field(default=1, alias="public_name")
    _private: int = 1
    doc: int = attrs.field(default=4, metadata={"help": "what doc means"})
    when: datetime.date = datetime.date(2020, 1, 1)
    in_range: int = attrs.field(default=4, validator=[attrs.validators.ge(2), attrs.validators.le(8)])
    any_: object = None
    anno: Annotated[int, "bytes"] = 3
