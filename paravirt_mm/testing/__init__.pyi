"""Public names of paravirt_mm.testing, for type checkers and for the lazy loader."""

from .conformance import (
    AllocatorConformance as AllocatorConformance,
    BackendConformance as BackendConformance,
)
from .expected import Expected as Expected, judge as judge
from .generator import generate as generate
from .reference import (
    AscendingAllocator as AscendingAllocator,
    BlockAllocator as BlockAllocator,
    PlainPlatform as PlainPlatform,
    TypingPlatform as TypingPlatform,
)
from .registries import registry_with as registry_with
from .strategies import machines as machines, memory_maps as memory_maps, raw_entries as raw_entries
