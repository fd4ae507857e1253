# ruff: noqa: S101 - a suite is made of asserts
"""What every allocator and every backend must do, as test classes to inherit.

A subclass names its ``plugin``; everything else has a default. The suites only grow in minor
releases of the API.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import zip_longest
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from paravirt_mm.engine.answers import Refusal
from paravirt_mm.engine.trace import MadeReadonly, TablesAllocated, TablesAttached
from paravirt_mm.instances import Instances
from paravirt_mm.machine.model import BootState, Machine
from paravirt_mm.machine.paging import PAGE_SIZE
from paravirt_mm.machine.ranges import RangeSet
from paravirt_mm.options import PluginSpec
from paravirt_mm.plugin import Plugin, name_for, problems
from paravirt_mm.registry import Registry
from paravirt_mm.run import Outcome, Run
from paravirt_mm.scenario import Scenario
from paravirt_mm.sources import bundled, bundled_machines
from paravirt_mm.sources.generated import generate
from paravirt_mm.testing.expected import Expected, judge
from paravirt_mm.testing.reference import (
    AscendingAllocator,
    BlockAllocator,
    PlainPlatform,
    TypingPlatform,
)
from paravirt_mm.testing.strategies import machines

MACHINES: dict[str, Callable[[], Machine]] = {
    **{name: partial(bundled, name) for name in bundled_machines()},
    **{machine.name: partial(lambda kept: kept, machine) for machine in generate(12, seed=1)},
}
"""The machines that each suite runs on, by name: those that ship with the package, and twelve
generated ones.
"""

DECLINABLE = frozenset({"work_is_done_in_runs", "any_machine"})
"""Requirements that a plugin may decline: a slow one the terabyte machine, one for machines of one
kind all the others.
"""

# A suite's tests are inherited: each subclass runs them, and that is what hypothesis warns of.
_drawn = settings(
    deadline=None,
    max_examples=15,
    # To find out which parts of a failure do not matter takes twenty times as long as to shrink it.
    phases=[phase for phase in settings().phases if phase is not Phase.explain],
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
)


class _Conformance:
    """What both suites share."""

    plugin: ClassVar[type[Any]]
    """The plugin class under test."""
    name: ClassVar[str] = ""
    """Its name in the registry; default: the class name in snake_case."""
    options: ClassVar[tuple[str, ...]] = ("",)
    """Options to test it with, as on the command line: ``("variant=hpa", "variant=linux")``."""
    partners: ClassVar[tuple[str, ...] | None] = None
    """Specs of the plugins of the other role to combine it with; default: the kit's own, so that no
    other installed plugin can fail yours.
    """
    expected: ClassVar[tuple[Expected, ...]] = ()
    """Verdicts other than ``ok`` that are right, with reasons. One that is never met is stale, and
    fails.
    """
    declines: ClassVar[Mapping[str, str]] = {}
    """What the plugin says that it cannot do, with reasons: names of `DECLINABLE` requirements.
    Their tests are skipped, and counted as that.
    """

    _role: ClassVar[str]
    _registry: ClassVar[Registry]
    _references: ClassVar[dict[str, type[Any]]]

    @classmethod
    def plugin_name(cls) -> str:
        """Return the name that the plugin has in specs."""
        return cls.name or name_for(cls.plugin)

    @classmethod
    def registry(cls) -> Registry:
        """Return the reference plugins, the plugin under test in place of any of its name, and what
        is installed, which is imported only if ``partners`` names it.
        """
        known: Registry | None = cls.__dict__.get("_registry")
        if known is None:
            known = Registry.discover()
            for name, factory in {**cls._references, cls.plugin_name(): cls.plugin}.items():
                known.replace(Plugin(name, factory))
            cls._registry = known
        return known

    @classmethod
    def specs(cls) -> list[str]:
        """Return the specs under test."""
        return [f"{cls.plugin_name()}:{text}".removesuffix(":") for text in cls.options]

    @classmethod
    def partner_specs(cls) -> list[str]:
        """Return the specs of the partners."""
        if cls.partners is not None:
            return list(cls.partners)
        return list(cls._references)

    @classmethod
    def run(cls, machine: Machine, spec: str, partner: str) -> Run:
        """Run the plugin with a partner."""
        return Scenario.of(machine, *cls._pair(spec, partner)).run(cls.registry())

    @classmethod
    def _pair(cls, spec: str, partner: str) -> tuple[str, str]:
        """Return the specs of the allocator and the backend."""
        return (spec, partner) if cls._role == "allocator" else (partner, spec)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Fill the parameters that a test asks for."""
        for parameter, values in (
            ("spec", self.specs),
            ("partner", self.partner_specs),
            ("machine_name", lambda: list(MACHINES)),
        ):
            if parameter in metafunc.fixturenames:
                metafunc.parametrize(parameter, values())

    @pytest.fixture(autouse=True)
    def _declined(self, request: pytest.FixtureRequest) -> None:
        requirement = request.function.__name__.removeprefix("test_")
        if requirement in self.declines:
            pytest.skip(f"declined: {self.declines[requirement]}")

    def test_declines_what_may_be_declined(self) -> None:
        """Most requirements are what makes a plugin right; only some may be declined.

        ::

            declines = {"work_is_done_in_runs": "why"}     skipped, counted, and the reason told
            declines = {"run_is_right": "why"}             refused: that would make it wrong
        """
        for requirement in self.declines:
            allowed = ", ".join(sorted(DECLINABLE))
            assert requirement in DECLINABLE, f"{requirement!r} cannot be declined, but {allowed}"

    def test_expectations_speak_of_something(self) -> None:
        """Every expectation matches a scenario of this suite; others are stale.

        ::

            expected = Expected("panic", machine="qemu-128m", ...)
            machines   qemu-512m  lenovo-x230-8g  generated-1-0 ...   <- nothing matches
        """
        pairs = [
            self._pair(spec, partner) for spec in self.specs() for partner in self.partner_specs()
        ]
        for item in self.expected:
            assert any(item.matches(*pair, machine) for pair in pairs for machine in MACHINES), (
                f"stale, no scenario matches: {item}"
            )

    def test_plugin_is_usable(self) -> None:
        """The registry takes it, in the right role, and every option has a default.

        ::

            pvmm_map_steps         an allocator  --+
            pvmm_boot_state        a backend       +-- one of them, never two
            neither                an observer   --+
        """
        assert problems(self.plugin_name(), self.plugin) == []
        plugin = Plugin(self.plugin_name(), self.plugin)
        assert plugin.role == self._role
        assert isinstance(plugin.create(), self.plugin)

    def test_options_are_accepted(self, spec: str) -> None:
        """The options under test can be created, and creating twice gives equal plugins.

        ::

            "kernel=3.6"  -->  X(kernel=3.6)  ==  X(kernel=3.6)  <--  "kernel=3.6"
                                 no list, file or counter that the two share
        """
        parsed = PluginSpec.parse(spec)
        plugin = Plugin(parsed.name, self.plugin)
        assert plugin.create(dict(parsed.options)) == plugin.create(dict(parsed.options))

    def test_plugin_says_what_it_is(self) -> None:
        """Class and hooks have docstrings: they are what ``paravirt-mm plugins`` and the manual
        show.

        ::

            class X:              "What it is."        <-- paravirt-mm plugins X
                def pvmm_...:     "What it does."      <-- the manual
        """
        assert self.plugin.__doc__
        for hook in Plugin(self.plugin_name(), self.plugin).hooks:
            assert getattr(self.plugin, hook).__doc__, f"{hook} has no docstring"

    def test_run_is_right(self, spec: str, partner: str, machine_name: str) -> None:
        """Each run ends ``ok`` and breaks no rule, or ends as expected.

        What is not the plugin's business is excused: a backend that refuses the machine before the
        allocator is asked anything, an allocator that gives up (the reference allocators may not).

        ::

            promised   [..............................)
            mapped     [..........]      [............)     violation: a hole in what was promised
            tables            TT   T                        violation: T is not mapped yet
        """
        run = self.run(MACHINES[machine_name](), spec, partner)
        if self._excused(run, partner):
            return
        problem = judge(run, self.expected)
        assert problem is None, problem

    def _excused(self, run: Run, partner: str) -> bool:
        """Tell whether the end of a run is the partner's business alone."""
        raise NotImplementedError

    def test_run_is_repeatable(self, spec: str, partner: str) -> None:
        """The same scenario gives the same events, whatever ran before: nothing is kept, nothing is
        drawn at random.

        ::

            machine A    run 1  ── a b c d
            machine B    run 2  ── ...
            machine A    run 3  ── a b x d      <- differs
        """
        machine, other = generate(2, seed=2)
        first = self.run(machine, spec, partner)
        self.run(other, spec, partner)
        second = self.run(machine, spec, partner)
        assert first.verdict == second.verdict
        events = (map(repr, first.trace), map(repr, second.trace))
        for number, (before, after) in enumerate(zip_longest(*events, fillvalue="no more")):
            assert before == after, f"event {number} differs:\n{before:.300}\n{after:.300}"
        assert first.figures == second.figures

    @_drawn
    @given(data=st.data())
    def test_any_machine(self, data: st.DataObject) -> None:
        """On whatever machine: the kernel may give up, the platform may refuse, but no rule breaks
        and nothing fails.

        ::

            [RAM)  hole  [RAM)[reserved)[RAM)  hole  [R)    pieces of a page, holes at any place
               ok, panic, rejected: all of them are answers; violation and error are not
        """
        machine = data.draw(machines())
        spec = data.draw(st.sampled_from(self.specs()))
        partner = data.draw(st.sampled_from(self.partner_specs()))
        run = self.run(machine, spec, partner)
        assert run.verdict.outcome is not Outcome.ERROR, run.verdict
        assert not run.findings, run.findings[0]


class AllocatorConformance(_Conformance):
    """What every allocator must do, under every backend."""

    _role = "allocator"
    _references: ClassVar[dict[str, type[Any]]] = {
        "plain_platform": PlainPlatform,
        "typing_platform": TypingPlatform,
    }

    def _excused(self, run: Run, partner: str) -> bool:
        return run.verdict.outcome is Outcome.REJECTED and not _started(run)

    def test_work_is_done_in_runs(self, spec: str, partner: str) -> None:
        """A 4 TiB machine takes thousands of events at the most, not one a page or table.

        ::

            [0 ............................. 4T)     one step, some pieces
            [0 4K) [4K 8K) [8K 12K) ...              <- a billion steps
        """
        machine = _large_machine()
        run = self.run(machine, spec, partner)
        assert run.verdict.outcome is not Outcome.ERROR
        assert len(run.trace) < 20_000, f"{len(run.trace)} events"

    def test_same_memory_on_every_platform(self, spec: str) -> None:
        """What is promised to be mapped depends on the machine only, not on what a platform asks of
        tables.

        ::

            plain     [RAM      ][RAM  ]
            typing    [RAM      ]             <- RAM that only one of the two kernels has
        """
        machine = next(generate(1, seed=3, modes=("x86_64",)))
        promised = set()
        for partner in self.partner_specs():
            run = self.run(machine, spec, partner)
            if _started(run):
                promised.add(run.trace.start.promised)
        assert len(promised) <= 1


class BackendConformance(_Conformance):
    """What every backend must do, with every allocator."""

    _role = "backend"
    _references: ClassVar[dict[str, type[Any]]] = {
        "ascending": AscendingAllocator,
        "block": BlockAllocator,
    }

    def _excused(self, run: Run, partner: str) -> bool:
        gave_up = run.verdict.outcome is Outcome.PANIC and not run.findings
        return gave_up and partner != "ascending"

    def boot_state(self, spec: str, machine: Machine) -> BootState | None:
        """Return the backend's boot state, None where it refuses the machine."""
        parsed = PluginSpec.parse(spec)
        instance = Plugin(parsed.name, self.plugin).create(dict(parsed.options))
        state = Instances([(parsed.name, instance)]).call("pvmm_boot_state", machine=machine)
        if isinstance(state, Refusal):
            assert state.code < 0
            assert state.operation
            return None
        assert isinstance(state, BootState)
        return state

    def test_boot_state_is_sound(self, spec: str, machine_name: str) -> None:
        """Boot tables are taken, whole pages; the running kernel can be written, but for its
        tables.

        ::

            mapped       [..........................)
            kernel           [text  data  brk]
            boot tables                       [TT]     reserved, no longer writable
        """
        machine = MACHINES[machine_name]()
        state = self.boot_state(spec, machine)
        if state is None:
            return
        mapped, reserved = RangeSet(state.mapped), RangeSet(state.reserved)
        kernel = state.kernel_of(machine)
        mapped.update(state.boot_tables)
        assert mapped.covers(kernel.start, kernel.end)
        for low, high in state.boot_tables:
            assert low % PAGE_SIZE == high % PAGE_SIZE == 0
            assert low < high
            assert reserved.covers(low, high)
        for low, high in state.direct_mapped:
            assert low % PAGE_SIZE == high % PAGE_SIZE == 0
        assert all(1 <= level < machine.mode.root_level for level in state.tables)
        assert bool(state.boot_tables) >= state.typed

    def test_features_are_only_taken_away(self, spec: str, machine_name: str) -> None:
        """A platform may hide what the CPU has, never add to it.

        ::

            the CPU has     pse  gbpages  nx
            the platform    pse     -     nx      it may hide what is there,
            the platform    pse  gbpages  nx +1   never offer what is not
        """
        machine = MACHINES[machine_name]()
        state = self.boot_state(spec, machine)
        if state is not None:
            for feature in ("pse", "gbpages", "nx"):
                assert getattr(state.features, feature) <= getattr(machine.features, feature)

    def test_typed_pages_are_handed_over(self, spec: str, partner: str) -> None:
        """Where pages are typed, each table is made read-only before it is attached, and stays so;
        elsewhere nothing flips.
        """
        for machine in generate(4, seed=4):
            run = self.run(machine, spec, partner)
            if run.verdict.outcome is not Outcome.OK:
                continue
            if not run.trace.start.boot.typed:
                assert run.figures["flips"] == 0
                continue
            assert run.figures["flips_per_table"] >= 1
            _check_order(run)

    def test_large_pages_are_hidden_or_taken(self, spec: str, partner: str) -> None:
        """No run uses a page size that the platform does not offer.

        ::

            offered  4K  2M  -         [4K][      2M      ][4K]    right
                               1G      [          1G           )   was not offered
        """
        for machine in generate(4, seed=5):
            run = self.run(machine, spec, partner)
            if run.verdict.outcome is Outcome.OK:
                features = run.trace.start.boot.features
                used = {2: run.figures["mapped_large"], 3: run.figures["mapped_huge"]}
                largest = features.largest_level(machine.mode)
                assert not any(size for level, size in used.items() if level > largest)


def _started(run: Run) -> bool:
    """Tell whether the platform let the allocator begin."""
    return run.trace.begun


def _check_order(run: Run) -> None:
    made, readonly = set(), set()
    for event in run.trace:
        if isinstance(event, TablesAllocated):
            made.add(event.batch.index)
        elif isinstance(event, MadeReadonly):
            readonly.add(event.batch.index)
        elif isinstance(event, TablesAttached):
            assert event.batch.index in readonly, "attached before it was made read-only"
    assert made == readonly


def _large_machine() -> Machine:
    from paravirt_mm.machine.e820 import E820Type, MemoryMap
    from paravirt_mm.machine.model import CpuFeatures
    from paravirt_mm.machine.paging import GIB, TIB

    entries: Iterable[tuple[int, int, E820Type]] = (
        (0x1000, 0x9F000, E820Type.RAM),
        (1 << 20, 3 * GIB, E820Type.RAM),
        (4 * GIB, 4 * TIB, E820Type.RAM),
    )
    return Machine(
        "large", MemoryMap.sanitise(entries), features=CpuFeatures(pse=True, gbpages=True)
    )
