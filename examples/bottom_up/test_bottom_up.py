"""What the author of a plugin writes to have it checked."""

from paravirt_mm_bottom_up import BottomUp

from paravirt_mm.testing import AllocatorConformance


class TestBottomUp(AllocatorConformance):
    """Run the whole suite on this allocator."""

    plugin = BottomUp
