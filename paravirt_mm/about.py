"""What plugins say about themselves, so that the core need not know any of them by name."""

from __future__ import annotations

import attrs

from paravirt_mm.machine.model import Span
from paravirt_mm.machine.release import leading_version

CONFIGURATION = "configuration"
"""Key in the metadata of an option that stands for how a kernel was built or booted, not for what
its release does: ``attrs.field(default=True, metadata={CONFIGURATION: True})``. What is verified
with one of its values counts as verified with every other.
"""
ERA = "era"
"""Key in the metadata of the option ``kernel``: a function that makes of a release what is equal
for all releases that behave alike, ``attrs.field(default="4.19", metadata={ERA: era})``. What is
known of one of them is told of the others as such.
"""


@attrs.frozen
class DefaultSpec:
    """A spec that a comparison uses where nobody names any.

    ``rank`` is its place among those of all plugins, lowest first. Commands that take a single spec
    use the first with ``alone``, or the first of all.
    """

    spec: str
    rank: int = 100
    alone: bool = False


@attrs.frozen
class Choice:
    """One answer to an open question about a kernel.

    options
        Options of the allocator, as on the command line.
    reserved
        Memory that is taken before (bytes).
    words
        The choice for people; empty: nothing worth telling.
    other_tables
        Pages of brk that become tables of something else than the direct map, right after the first
        `Map` step: the kernel prints them among its own.
    large_pages
        Whether the kernel uses large pages where the CPU has them.
    """

    options: tuple[tuple[str, str], ...] = ()
    reserved: tuple[Span, ...] = ()
    words: str = ""
    other_tables: int = 0
    large_pages: bool = True


@attrs.frozen
class OpenQuestion:
    """What the number of a release does not settle, from ``since`` up to, not with, ``before``.

    The ``choices`` are tried in their order; the first is what mainline does by default.
    """

    since: str
    before: str
    modes: tuple[str, ...]
    choices: tuple[Choice, ...]

    def concerns(self, release: str, mode: str) -> bool:
        """Tell whether a release leaves this open in a paging mode."""
        since, before = leading_version(self.since), leading_version(self.before)
        return mode in self.modes and since <= leading_version(release) < before
