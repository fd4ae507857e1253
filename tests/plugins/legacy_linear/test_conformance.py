"""The linear allocator under every backend."""

from __future__ import annotations

import pytest

from paravirt_mm.testing import AllocatorConformance, Expected
from paravirt_mm_legacy_linear import LegacyLinear

NO_FIVE_LEVELS = "the guess knows no fifth level, which came five years after its last release"
NO_ROOM_BELOW = (
    "the block must lie in what is mapped since boot, and the domain builder maps little"
)
NO_ROOM_IN_HEADROOM = "the block must lie in what is mapped since boot: kernel and 8 MiB"
ONE_TABLE_SHORT = "3.8 sums up sizes: a range that begins inside a table's span may need one more"

_PLAIN = ("native", "plain_platform")

# A thousand small runs: the matrix has the quick ones.
pytestmark = pytest.mark.slow


class TestLegacyLinear(AllocatorConformance):
    plugin = LegacyLinear
    # The matrix has runs replayed on the model of the hypervisor; here it would only take time.
    partners = ("native", "xen:replay_limit=0", "plain_platform", "typing_platform")
    options = ("kernel=2.6.32", "kernel=3.6", "kernel=3.6,good_end=end", "kernel=3.8")
    expected = (
        *(
            Expected(
                "panic: alloc_low_page: ran out of memory", NO_FIVE_LEVELS, kernel, backend, machine
            )
            for kernel, machine in (
                ("*kernel=2.6.32", "generated-1-[37]"),
                ("*kernel=2.6.32", "generated-1-11"),
                ("*kernel=3.6*", "generated-1-3"),
                ("*kernel=3.8", "generated-1-[37]"),
                ("*kernel=3.8", "generated-1-11"),
            )
            for backend in _PLAIN
        ),
        *(
            Expected(
                "panic: alloc_low_page: ran out of memory",
                ONE_TABLE_SHORT,
                "*kernel=3.8",
                backend,
                "generated-1-2",
            )
            for backend in ("xen*", "typing_platform")
        ),
        *(
            Expected("panic: Cannot find space", NO_ROOM_BELOW, kernel, "xen*", machine)
            for kernel, machine in (
                ("*kernel=2.6.32", "generated-1-6"),
                ("*kernel=3.6", "generated-1-6"),
                ("*kernel=2.6.32", "generated-1-10"),
                ("*kernel=3.[68]", "generated-1-10"),
                ("*kernel=2.6.32", "sun-x4600m2-256g"),
                ("*kernel=3.[68]", "sun-x4600m2-256g"),
            )
        ),
        *(
            Expected(
                "panic: Cannot find space", NO_ROOM_IN_HEADROOM, kernel, "typing_platform", machine
            )
            for kernel, machine in (
                ("*kernel=2.6.32", "generated-1-6"),
                ("*kernel=3.6", "generated-1-6"),
                ("*kernel=2.6.32", "generated-1-1[01]"),
                ("*kernel=3.[68]", "generated-1-1[01]"),
            )
        ),
    )
