"""Public names of paravirt_mm.testing, for type checkers and for the lazy loader."""

from .conformance import AllocatorConformance as AllocatorConformance
from .conformance import BackendConformance as BackendConformance
from .expected import Expected as Expected
from .expected import judge as judge
from .generator import generate as generate
from .reference import AscendingAllocator as AscendingAllocator
from .reference import BlockAllocator as BlockAllocator
from .reference import PlainPlatform as PlainPlatform
from .reference import TypingPlatform as TypingPlatform
from .registries import registry_with as registry_with
from .strategies import machines as machines
from .strategies import memory_maps as memory_maps
from .strategies import raw_entries as raw_entries
