"""Predict what a kernel printed about its direct map, and compare line by line.

The log says which machine it was and, mostly, which release; the allocator that models the release
runs on that machine. What a release number leaves open is tried (`variants`), and the answer names
the choice that fits best: a log proves that one way of building the kernel agrees, not which one it
was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import attrs

from paravirt_mm import offers
from paravirt_mm.errors import SpecError
from paravirt_mm.machine.model import Machine
from paravirt_mm.machine.release import dotted, leading_version
from paravirt_mm.registry import Registry, default_registry
from paravirt_mm.sources.bootlog.facts import BootLog, Fact
from paravirt_mm.sources.bootlog.lines import LineVerdict, LogLine
from paravirt_mm.verify.log.report import LogReport
from paravirt_mm.verify.log.trial import MAX_LINES, Trial, is_checked
from paravirt_mm.verify.log.variants import candidates, releases_that_print_like

MAX_WORK = 1 << 17
"""Limit on candidates tried, times map entries or lines."""
MAX_OPEN_RELEASES = 6
MAX_TRIALS = 64
"""In so many releases is what they leave open tried, and in so many ways, all together."""


def check_log(
    log: BootLog, kernel: str | None = None, registry: Registry | None = None
) -> LogReport:
    """Compare a boot log with the model of its kernel; ``kernel`` overrides the release it names.

    Lines that are not Linux's are left to plugins (``pvmm_check_log``). Raises `SpecError` where no
    allocator models ``kernel``.
    """
    registry = registry or default_registry()
    report = _check_kernel(log, kernel, registry)
    lines = offers.check_log(registry, log.facts)
    if not lines:
        return report
    return attrs.evolve(report, lines=(*report.lines, *lines), nothing="")


def _check_kernel(log: BootLog, kernel: str | None, registry: Registry) -> LogReport:
    machine = log.machine
    base = LogReport(
        source=log.source,
        boot=log.boot,
        release=log.release,
        mode=machine.mode.name if machine else "",
        assumed=machine.provenance.assumed if machine else (),
    )
    facts = [fact for fact in log.facts if is_checked(fact)]
    if log.platform == "hypervisor":
        return attrs.evolve(base, nothing="a hypervisor's log: nothing to check for a Linux kernel")
    if not facts:
        return attrs.evolve(base, nothing="the log holds no line about mappings or tables")
    if machine is None or (problem := _problem(log, facts)):
        why = problem if machine else log.missing or "the log holds no memory map"
        return _unchecked(base, facts[:MAX_LINES], why)
    numbers = dotted(leading_version(kernel or log.release)[:3])
    named = bool(numbers)
    releases = [numbers] if kernel else releases_that_print_like(numbers, facts, machine.mode)
    best = _best_trials(log, machine, facts, releases, registry)
    if not best:
        if kernel:
            raise SpecError(f"no allocator models Linux {kernel} on {machine.mode.name}")
        return _unchecked(base, facts, f"no allocator models Linux {log.release or 'of this kind'}")
    chosen = max(best, key=lambda trial: trial.rank)
    also = [t.candidate.release for t in best if t.rank == chosen.rank and t is not chosen]
    return attrs.evolve(
        base,
        kernel=chosen.candidate.release,
        spec=chosen.candidate.spec if chosen.checks_mapping else "",
        backend=chosen.candidate.backend if chosen.checks_mapping else "",
        variant=chosen.candidate.words if chosen.checks_mapping else (),
        also=() if named else tuple(also),
        lines=chosen.lines,
    )


def _problem(log: BootLog, facts: Sequence[Fact]) -> str:
    """Say why lines about mappings cannot be compared with any model; empty: they can."""
    if len(facts) > MAX_LINES:
        return f"more than {MAX_LINES} lines about mappings"
    if log.mixed:
        return "the lines of two boots stand between each other"
    if log.is_fork:
        return "a kernel of the XenLinux fork, which is no mainline Linux"
    return ""


def _unchecked(base: LogReport, facts: Iterable[Fact], why: str) -> LogReport:
    lines = tuple(LogLine(LineVerdict.UNCHECKED, f.line, f.text, None, why) for f in facts)
    return attrs.evolve(base, lines=lines)


def _best_trials(
    log: BootLog,
    machine: Machine,
    facts: Sequence[Fact],
    releases: Sequence[str],
    registry: Registry,
) -> list[Trial]:
    """Return the best trial of each release.

    The usual form of every release comes first; then, in the releases that fit best, what they
    leave open. Nothing is tried beyond what is as unusual as a choice that agrees, and all together
    may cost no more than `MAX_WORK`.
    """
    waiting = [
        [Trial(log, facts, machine, candidate, registry) for candidate in found]
        for release in releases
        if (found := candidates(release, machine, log.platform, registry))
    ]
    tries = max(1, MAX_WORK // max(len(machine.memory_map), len(facts)))
    best: list[Trial] = []
    for trials in waiting[:tries]:
        trials[0].run()
        best.append(trials[0])
    if any(map(_is_enough, best)):
        return best  # nothing is as usual
    order = sorted(range(len(best)), key=lambda index: best[index].rank, reverse=True)
    tries = min(tries - len(best), MAX_TRIALS)
    limit = math.inf
    for index in order[:MAX_OPEN_RELEASES]:
        for trial in waiting[index][1:]:
            if trial.candidate.unusual > limit or tries <= 0:
                break
            tries -= 1
            trial.run()
            best[index] = max(best[index], trial, key=lambda trial: trial.rank)
            if _is_enough(trial):
                limit = min(limit, trial.candidate.unusual)
    return best


def _is_enough(trial: Trial) -> bool:
    return trial.perfect or not trial.checks_mapping
