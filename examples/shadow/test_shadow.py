"""The conformance suite, and the one rule that is this platform's own."""

from paravirt_mm_shadow import Shadow

from paravirt_mm import Outcome, Scenario, bundled
from paravirt_mm.testing import AscendingAllocator, BackendConformance, registry_with


class TestShadow(BackendConformance):
    """Everything that the core asks of a backend."""

    plugin = Shadow


def test_shadows_need_room() -> None:
    """Another allocator of the kit stands in for a kernel, so that no other plugin is needed."""
    registry = registry_with(installed=False, shadow=Shadow, ascending=AscendingAllocator)
    machine = bundled("qemu-512m")
    run = Scenario.of(machine, "ascending", "shadow").run(registry)
    assert run.verdict.outcome is Outcome.OK
    assert run.figures["flips"] == 0
    assert run.figures["shadow.pool_left"] == (1 << 20) - run.figures["shadow.pages"]
    poor = Scenario.of(machine, "ascending", "shadow:pool=1").run(registry)
    assert poor.verdict.outcome is Outcome.REJECTED
    assert "the pool has 1" in str(poor.verdict)
