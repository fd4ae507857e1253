"""The incremental allocators under every backend."""

from __future__ import annotations

import pytest

from paravirt_mm.testing import AllocatorConformance, Expected
from paravirt_mm_incremental import Incremental

# A thousand small runs: the matrix has the quick ones.
pytestmark = pytest.mark.slow


class TestIncremental(AllocatorConformance):
    plugin = Incremental
    # The matrix has runs replayed on the model of the hypervisor; here it would only take time.
    partners = ("native", "xen:replay_limit=0", "plain_platform", "typing_platform")
    options = ("variant=hpa", "variant=linux,kernel=3.9", "variant=linux,kernel=6.1")
    expected = (
        *(
            Expected(
                "panic: alloc_low_page: ran out of memory",
                "3.9 set 5 pages of brk aside; a fifth level needs more, and came with 4.14",
                allocator="*kernel=3.9",
                backend=backend,
                machine=machine,
            )
            for backend in ("native", "plain_platform")
            for machine in ("generated-1-3", "generated-1-11")
        ),
    )
