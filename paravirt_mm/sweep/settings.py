"""What a sweep is asked to do, and what comes out of a chunk of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import attrs

from paravirt_mm.guard import Limits
from paravirt_mm.machine.paging import MIB
from paravirt_mm.sources.inputs import Part

UNREADABLE = "unreadable"
"""Outcome of the scenarios of an input that gives no machine."""
LIMIT = "limit"
"""Outcome of a scenario that was stopped, because it took more time or memory than it may."""


@attrs.frozen
class Settings:
    """The scenarios of a sweep and their limits; a sweep is resumed only under equal ones.

    ``time_limit`` is in seconds of wall-clock time, for reading an input and for each scenario;
    ``memory_limit`` in bytes beyond what the process needs to start. ``chunk`` is how many parts of
    the inputs are done, and repeated after a crash, together.
    """

    allocators: tuple[str, ...]
    backends: tuple[str, ...]
    boot: int | None = None
    time_limit: float = 60.0
    memory_limit: int = 2048 * MIB
    chunk: int = 16

    @property
    def scenarios(self) -> tuple[tuple[str, str], ...]:
        """Every allocator under every backend, in the order of rows."""
        return tuple((a, b) for a in self.allocators for b in self.backends)

    @property
    def limits(self) -> Limits:
        """What reading an input, or one scenario, may cost."""
        return Limits(cpu=self.time_limit, wall=self.time_limit, memory=self.memory_limit)

    def as_json(self) -> str:
        """Return the settings as text that is equal for equal settings."""
        return json.dumps(attrs.asdict(self), sort_keys=True)


@attrs.frozen
class MachineRecord:
    """What became of one input: facts about its machine by column name, or why there is none."""

    source: str
    facts: Mapping[str, Any] = attrs.field(factory=dict)
    error: str | None = None


@attrs.frozen
class RunRecord:
    """One scenario's row; ``figures`` by name, those of plugins included."""

    allocator: str
    backend: str
    outcome: str
    verdict: str
    figures: Mapping[str, Any] = attrs.field(factory=dict)


Record = MachineRecord | RunRecord
"""A part gives, machine by machine, a `MachineRecord` and then one `RunRecord` a scenario."""


@attrs.frozen
class Chunk:
    """Some parts of the inputs; ``first`` is the place of the first one among all, from 0."""

    number: int
    first: int
    parts: tuple[Part, ...]

    def digest(self) -> str:
        """Return what changes when one of the parts does."""
        text = "\n".join(part.digest() for part in self.parts)
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


@attrs.frozen
class ChunkResult:
    """The records of a chunk, part by part, and how long they took (seconds)."""

    number: int
    first: int
    digest: str
    parts: tuple[tuple[Record, ...], ...]
    seconds: float
