"""A scenario: one machine, one allocator, one backend, observers; run it, see how it ends."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from paravirt_mm.engine.build import ContractBroken, build
from paravirt_mm.engine.trace import OperationRejected, Panicked, Trace
from paravirt_mm.errors import PluginError
from paravirt_mm.invariants.rules import Finding, check
from paravirt_mm.machine.model import Machine
from paravirt_mm.options import PluginSpec
from paravirt_mm.registry import Manager, Registry
from paravirt_mm.run import Outcome, Run, Verdict


@attrs.frozen
class Scenario:
    """One machine, one allocator, one backend, and any observers (instances of plugin classes)."""

    machine: Machine
    allocator: PluginSpec
    backend: PluginSpec
    observers: tuple[Any, ...] = ()

    @classmethod
    def of(cls, machine: Machine, allocator: str, backend: str, *observers: Any) -> Scenario:
        """Make a scenario from specs as they are written on the command line."""
        return cls(machine, PluginSpec.parse(allocator), PluginSpec.parse(backend), observers)

    def run(self, registry: Registry | None = None, *, thorough: bool = False) -> Run:
        """Run it. Only wrong specs raise (`SpecError`); a plugin that fails gives the verdict
        ``error``.

        ``thorough`` also makes the tables byte for byte and walks them, where they are not too many
        (`paravirt_mm.invariants.image.is_small`).
        """
        registry = registry or default_registry()
        allocator = registry.get(self.allocator.name, "allocator")
        backend = registry.get(self.backend.name, "backend")
        named = [
            (self.allocator.name, allocator.create(dict(self.allocator.options))),
            (self.backend.name, backend.create(dict(self.backend.options))),
        ]
        extras = [(plugin.name, plugin.create()) for plugin in registry.of_role("extra")]
        named += extras
        named += [(f"observer{n}", observer) for n, observer in enumerate(self.observers, 1)]
        manager = Manager(named)
        try:
            trace = build(self.machine, manager, str(self.allocator), str(self.backend))
            run = self._judged(trace, manager, thorough)
            extra: dict[str, Any] = {}
            for figures in manager.call("pvmm_figures", run=run):
                extra.update(figures)
            return attrs.evolve(run, extra=extra)
        except ContractBroken as broken:
            culprit = next(iter(manager.implementers(broken.hook)), "?")
            return self._error(registry, culprit, f"{broken.hook} {broken}")
        except Exception as error:  # a plugin may raise anything
            modules = {type(instance).__module__: name for name, instance in named}
            return self._error(
                registry, _culprit(error, modules), f"{type(error).__name__}: {error}"
            )

    def _judged(self, trace: Trace, manager: Manager, thorough: bool) -> Run:
        """Return the run with its findings: the core's, and what plugins add."""
        findings = tuple(check(trace))
        if thorough:
            from paravirt_mm.invariants.image import check_image, is_small

            if is_small(trace):
                findings += tuple(check_image(trace))
        ended = _early_end(trace)
        if ended is not None:
            return Run(self.machine, self.allocator, self.backend, trace, ended, findings)
        run = Run(self.machine, self.allocator, self.backend, trace, _verdict(findings), findings)
        for more in manager.call("pvmm_check", run=run):
            findings += tuple(more)
        return attrs.evolve(run, verdict=_verdict(findings), findings=findings)

    def _error(self, registry: Registry, name: str, message: str) -> Run:
        plugin = registry.plugins.get(name)
        origin = f"{name} ({plugin.origin})" if plugin else name
        verdict = Verdict(Outcome.ERROR, str(PluginError(origin, message)))
        return Run(self.machine, self.allocator, self.backend, Trace(), verdict)


def _early_end(trace: Trace) -> Verdict | None:
    """Return the verdict of a run that did not come to its end."""
    match trace.ended_early:
        case Panicked() as panic:
            return Verdict(Outcome.PANIC, panic.reason)
        case OperationRejected() as refusal:
            return Verdict(Outcome.REJECTED, f"{refusal.operation}, {refusal.code}")
    return None


def _verdict(findings: Sequence[Finding]) -> Verdict:
    return Verdict(Outcome.VIOLATION, str(findings[0])) if findings else Verdict(Outcome.OK)


def _culprit(error: BaseException, modules: Mapping[str, str]) -> str:
    """Return the plugin whose code is deepest in the traceback, or "core"."""
    name = "core"
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = modules.get(frame.f_globals.get("__name__", ""), name)
    return name


_DEFAULT: list[Registry] = []


def default_registry() -> Registry:
    """Return the registry of everything installed; found once a process."""
    if not _DEFAULT:
        _DEFAULT.append(Registry.discover())
    return _DEFAULT[0]
