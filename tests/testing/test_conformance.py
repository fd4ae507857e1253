"""The conformance suites themselves: right plugins pass, and plugins that are wrong on purpose fail
where they should.
"""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from paravirt_mm import (
    ActivateRoot,
    Boot,
    Map,
    Outcome,
    PageRun,
    Scenario,
    Source,
    TableDemand,
    TablePages,
    hookimpl,
)
from paravirt_mm.testing import (
    AllocatorConformance,
    AscendingAllocator,
    BackendConformance,
    BlockAllocator,
    Expected,
    PlainPlatform,
    TypingPlatform,
    generate,
    judge,
    registry_with,
)
from tests.testing.suites import allocator_suite, backend_suite, refused


class TestAscending(AllocatorConformance):
    plugin = AscendingAllocator
    name = "ascending"


class TestPlainPlatform(BackendConformance):
    plugin = PlainPlatform


class TestTypingPlatform(BackendConformance):
    plugin = TypingPlatform


# -- the suites find what is wrong ----------------------------------------------------------------


@attrs.frozen
class KernelsOwnPages(AscendingAllocator):
    """Wrong: its tables lie in the kernel."""

    @hookimpl
    def pvmm_allocate_tables(self, boot: Boot, demand: TableDemand) -> Any:
        first = boot.machine.kernel.start >> 12
        return [TablePages(PageRun(first + boot.tables_made, demand.count), Source.MEMBLOCK)]


@attrs.frozen
class PageByPage(AscendingAllocator):
    """Wrong: one step a 2 MiB."""

    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Any:
        for start, end in boot.memblock.memory(0, min(boot.machine.map_limit, 1 << 35)):
            for low in range(start, end, 1 << 21):
                yield Map(low, min(end, low + (1 << 21)))


_RUNS: list[int] = []


@attrs.frozen
class Remembers(AscendingAllocator):
    """Wrong: a run changes the next one."""

    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Any:
        _RUNS.append(1)
        yield from AscendingAllocator.pvmm_map_steps(self, boot)
        for _ in _RUNS:
            yield ActivateRoot()


@attrs.frozen
class Silent(AscendingAllocator):
    @hookimpl
    def pvmm_promise(self, boot: Boot) -> Any:
        return super().pvmm_promise(boot)


def test_broken_rule_is_found() -> None:
    suite = allocator_suite(KernelsOwnPages)
    refused(suite.test_run_is_right, "mine", "native", "generated-1-2")


@pytest.mark.slow
def test_broken_rule_is_found_and_shrunk() -> None:
    refused(allocator_suite(KernelsOwnPages).test_any_machine)


@pytest.mark.slow
def test_too_many_steps_are_found() -> None:
    refused(allocator_suite(PageByPage).test_work_is_done_in_runs, "mine", "plain_platform")


def test_state_between_runs_is_found() -> None:
    refused(allocator_suite(Remembers).test_run_is_repeatable, "mine", "plain_platform")


def test_missing_words_are_found() -> None:
    refused(allocator_suite(Silent).test_plugin_says_what_it_is)
    refused(allocator_suite(PlainPlatform).test_plugin_is_usable)


@attrs.frozen
class LeavesTablesWritable(TypingPlatform):
    """Wrong: nothing is made read-only."""

    @hookimpl
    def pvmm_make_readonly(self) -> None:
        return None


def test_writable_tables_are_found() -> None:
    suite = backend_suite(LeavesTablesWritable)
    with pytest.raises(AssertionError):
        suite.test_run_is_right("mine", "ascending", "generated-1-2")


# -- judging --------------------------------------------------------------------------------------


def test_judge() -> None:
    machine = next(generate(1, seed=1, modes=("x86_64",)))
    registry = registry_with(block=BlockAllocator, plain=PlainPlatform)
    good = Scenario.of(machine, "block", "plain").run(registry)
    assert good.verdict.outcome is Outcome.OK
    assert judge(good) is None
    assert judge(good, [Expected("panic", "other machine", machine="other")]) is None
    stale = judge(good, [Expected("panic", "long ago")])
    assert stale is not None
    assert "stale: long ago" in stale
    bad = Scenario.of(machine, "mine", "plain").run(
        registry_with(mine=KernelsOwnPages, plain=PlainPlatform)
    )
    assert "invariant 1" in (judge(bad) or "")
    only = attrs.evolve(bad, findings=bad.findings[:1])
    assert str(judge(only)).endswith(str(bad.findings[0]))  # it is named, be there one or more
    assert "invariant 1" in (judge(bad, [Expected("violation", "findings are never right")]) or "")
    refused = Scenario.of(machine, "block:spare=2000000", "plain").run(registry)
    assert refused.verdict.outcome is Outcome.PANIC
    assert judge(refused) is not None
    assert (
        judge(refused, [Expected("panic: no block", "asks too much", allocator="block:*")]) is None
    )


@pytest.mark.slow
def test_suite_needs_three_lines(pytester: pytest.Pytester) -> None:
    """As a third party would write it; fixtures and report header only where they are asked for."""
    pytester.makeconftest('pytest_plugins = ["paravirt_mm.testing.fixtures"]')
    pytester.makepyfile(
        """
        from paravirt_mm.testing import AllocatorConformance, AscendingAllocator

        class TestMine(AllocatorConformance):
            plugin = AscendingAllocator
        """
    )
    result = pytester.runpytest("-q", "-p", "no:cacheprovider", "-k", "generated-1-2 or usable")
    result.assert_outcomes(passed=len(allocator_suite(AscendingAllocator).partner_specs()) + 1)
    result = pytester.runpytest("--collect-only", "-p", "no:cacheprovider")
    result.stdout.fnmatch_lines(["paravirt-mm *, plugins: *native (paravirt-mm *"])


@pytest.mark.slow
def test_a_requirement_may_be_declined_with_a_reason(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from paravirt_mm.testing import AllocatorConformance, AscendingAllocator
        class TestMine(AllocatorConformance):
            plugin = AscendingAllocator
            declines = {"work_is_done_in_runs": "too slow", "any_machine": "one machine only"}
        class TestProud(AllocatorConformance):
            plugin = AscendingAllocator
            declines = {"run_is_right": "no"}
        """
    )
    names = "declines or work_is or any_machine"
    done = pytester.runpytest_subprocess("-q", "-rs", "-k", names, "-p", "no:cacheprovider")
    done.stdout.fnmatch_lines_random(
        [
            "*declined: too slow*",
            "*declined: one machine only*",
            "*'run_is_right' cannot be declined, but any_machine, work_is_*",
        ]
    )
    done.assert_outcomes(failed=1, passed=4, skipped=3)


def test_expectation_that_nothing_meets_is_stale() -> None:
    suite = allocator_suite(AscendingAllocator)
    for stale in ({"machine": "no-such-machine"}, {"backend": "xen"}):
        type(suite).expected = (Expected("panic", "once", **stale),)
        refused(suite.test_expectations_speak_of_something)
    type(suite).expected = (Expected("panic", "now", machine="qemu-512m"),)
    suite.test_expectations_speak_of_something()
    backend = backend_suite(PlainPlatform)
    type(backend).expected = (Expected("panic", "now", allocator="block", backend="mine"),)
    backend.test_expectations_speak_of_something()
    type(backend).expected = (Expected("panic", "now", allocator="mine"),)
    refused(backend.test_expectations_speak_of_something)


def test_partners_are_the_kits_own() -> None:
    assert allocator_suite(AscendingAllocator).partner_specs() == [
        "plain_platform",
        "typing_platform",
    ]
    assert backend_suite(PlainPlatform).partner_specs() == ["ascending", "block"]


@pytest.mark.slow
def test_any_plugin_can_be_checked_without_code(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        mine="""
        import attrs
        from paravirt_mm.testing import AscendingAllocator
        @attrs.frozen
        class Mine(AscendingAllocator):
            "Mine."
        """
    )
    arguments = ["-p", "paravirt_mm.testing.fixtures", "--pyargs", "paravirt_mm.testing.check"]
    wanted = ("-q", "-k", "usable or options or repeatable", "-p", "no:cacheprovider")
    spec = ("--pvmm-plugin", "./mine.py:Mine:first_step=32M")
    done = pytester.runpytest_subprocess(*arguments, *wanted, *spec)
    done.assert_outcomes(passed=4)
    assert done.ret == 0
    refused = pytester.runpytest_subprocess(*arguments, *wanted, "--pvmm-plugin", "no_such")
    refused.stderr.fnmatch_lines(["*no plugin 'no_such'*"])
