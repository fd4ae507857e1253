"""A scenario: one machine, one allocator, one backend, observers; run it, see how it ends."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import Any

import attrs

from paravirt_mm import contract
from paravirt_mm.engine.build import Hooks, build
from paravirt_mm.engine.contract import ContractBroken
from paravirt_mm.engine.trace import Event, OperationRejected, Panicked, Trace
from paravirt_mm.errors import InputError, PluginError, SpecError
from paravirt_mm.hookspecs import Role
from paravirt_mm.instances import HookFailed, Instances, implemented
from paravirt_mm.invariants.rules import Finding, check
from paravirt_mm.machine.model import Machine
from paravirt_mm.options import PluginSpec
from paravirt_mm.plugin import class_problems, name_for, role_of
from paravirt_mm.registry import Registry, default_registry
from paravirt_mm.run import Outcome, Run, Verdict
from paravirt_mm.untouched import named, unchanged


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

    def run(
        self,
        registry: Registry | None = None,
        *,
        thorough: bool = False,
        through: Callable[[Hooks], Hooks] | None = None,
        watched: bool = True,
        extra: bool = True,
    ) -> Run:
        """Run it. Only wrong specs raise (`SpecError`); where they are wrong for this machine alone
        the verdict is ``rejected``, and where a plugin fails ``error``.

        ``thorough`` also makes the tables byte for byte and walks them, where they are not too many
        (`paravirt_mm.invariants.image.is_small`), and has plugins check what takes them long (rule
        6 of `paravirt_mm.invariants.rules`). ``through`` puts something between the engine and
        the plugins. A plugin of others that replaces something of ours meanwhile gets the verdict
        ``error``, and what it changes of the process meets no other scenario; whoever runs
        thousands may watch over many at a time instead (``watched``), and may do without the
        figures that plugins add (``extra``).
        """
        registry = registry or default_registry()
        if not watched or not (suspects := self.suspects(registry)):
            return self._ran(registry, thorough, through, extra)
        with unchanged(dice=False) as touched:
            run = self._ran(registry, thorough, through, extra)
        if touched:
            error = replaced(suspects, touched)
            run = attrs.evolve(run, verdict=Verdict(Outcome.ERROR, error))
        return run

    def suspects(self, registry: Registry) -> tuple[str, ...]:
        """Return the plugins of others that take part, with where they come from."""
        asked = ((self.allocator, "allocator"), (self.backend, "backend"))
        found = [registry.get(spec.name, role) for spec, role in asked]
        strange = [registry.origin(plugin.name) for plugin in found if plugin.strange]
        return (*strange, *(registry.origin(name) for name, _ in self._named_observers()))

    def _ran(
        self,
        registry: Registry,
        thorough: bool,
        through: Callable[[Hooks], Hooks] | None,
        extra: bool,
    ) -> Run:
        instances = Instances(
            [
                registry.make(self.allocator, "allocator"),
                registry.make(self.backend, "backend"),
            ],
            self._named_observers(),
        )
        hooks = instances if through is None else through(instances)
        events: list[Event] = []
        try:
            trace = build(self.machine, hooks, str(self.allocator), str(self.backend), events)
            return self._judged(trace, instances, thorough, extra)
        except ContractBroken as broken:
            culprit = instances.implementer(broken.hook)
            return self._error(registry, events, culprit, f"{broken.hook}: {broken}", broken)
        except HookFailed as failed:
            if isinstance(failed.error, SpecError):
                return self._run(Trace(), Verdict(Outcome.REJECTED, str(failed.error)))
            told = failed.error if isinstance(failed.error, InputError) else failed
            return self._error(registry, events, failed.plugin, str(told), failed.error)
        except Exception as error:  # no plugin was being asked
            message = f"{type(error).__name__}: {error}"
            return self._error(registry, events, "core", message, error)

    def stopped(self, reason: object) -> Run:
        """Return the run that a scenario has which had to be stopped: an empty one, an error."""
        message = f"{self.allocator} under {self.backend} was stopped: {reason}"
        return self._run(Trace(), Verdict(Outcome.ERROR, message))

    def _named_observers(self) -> Iterator[tuple[str, Any]]:
        names: set[str] = set()
        for observer in self.observers:
            wrong = class_problems(type(observer))
            role = role_of(implemented(type(observer)))
            if wrong or role is not Role.OBSERVER:
                why = "; ".join(wrong) or f"it is of the role {role}"
                raise SpecError(f"{observer!r:.80} is no observer: {why}")
            name = name_for(type(observer))
            while name in names:
                name += "_again"
            names.add(name)
            yield name, observer

    def _judged(self, trace: Trace, instances: Instances, thorough: bool, extra: bool) -> Run:
        """Return the run with its findings and figures: the core's, and with ``extra`` what
        plugins add.
        """
        findings = tuple(check(trace))
        if thorough:
            from paravirt_mm.invariants.image import check_image, is_small

            if is_small(trace):
                findings += tuple(check_image(trace))
        ended = _early_end(trace)
        judged = partial(self._run, trace, thorough=thorough)
        run = judged(ended or _verdict(findings), findings)
        if ended is None:
            added = [more for _, more in instances.each("pvmm_check", contract.findings, run=run)]
            if any(added):
                findings += tuple(chain(*added))
                run = judged(_verdict(findings), findings)
        asked = instances.each("pvmm_figures", contract.figures, run=run) if extra else ()
        told = {
            f"{plugin.rpartition(':')[2]}.{name}": value
            for plugin, figures in asked
            for name, value in figures.items()
        }
        if told or instances.left_out:
            left_out = tuple(instances.left_out)
            run = judged(run.verdict, findings, extra=MappingProxyType(told), left_out=left_out)
        return run

    def _run(
        self, trace: Trace, verdict: Verdict, findings: tuple[Finding, ...] = (), **more: Any
    ) -> Run:
        return Run(self.machine, self.allocator, self.backend, trace, verdict, findings, **more)

    def _error(
        self,
        registry: Registry,
        events: list[Event],
        name: str,
        message: str,
        error: BaseException,
    ) -> Run:
        origin = registry.origin(name)
        verdict = Verdict(Outcome.ERROR, str(PluginError(origin, message)))
        told = "".join(traceback.format_exception(error))
        return self._run(Trace(events), verdict, traceback=told)


def replaced(suspects: Sequence[str], touched: Sequence[str]) -> str:
    """Return the error of plugins while which ran something of ours was replaced."""
    return str(PluginError(", ".join(suspects), f"replaces {named(touched)} while it runs"))


def _early_end(trace: Trace) -> Verdict | None:
    """Return the verdict of a run that did not come to its end."""
    match trace.ended_early:
        case Panicked(reason):
            return Verdict(Outcome.PANIC, reason)
        case OperationRejected(operation, code):
            return Verdict(Outcome.REJECTED, f"{operation}, {code}")
    return None


def _verdict(findings: Sequence[Finding]) -> Verdict:
    return Verdict(Outcome.VIOLATION, str(findings[0])) if findings else Verdict(Outcome.OK)
