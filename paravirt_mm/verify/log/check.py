"""Predict what a kernel printed about its direct map, and compare line by line.

The log says which machine it was and, mostly, which release; the allocator that models the release
runs on that machine. What a release number leaves open is tried (`variants`), and the answer names
the choice that fits best: a log proves that one way of building the kernel agrees, not which one it
was.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import attrs

from paravirt_mm import offers
from paravirt_mm.errors import SpecError
from paravirt_mm.machine.model import Machine, Span
from paravirt_mm.machine.paging import GIB, ISA_END, PAGE_SHIFT, PagingMode
from paravirt_mm.machine.ranges import RangeSet
from paravirt_mm.machine.release import dotted, leading_version
from paravirt_mm.registry import Registry, default_registry
from paravirt_mm.scenario import Scenario
from paravirt_mm.sources.assume import low_reservation
from paravirt_mm.sources.bootlog.facts import (
    BootLog,
    BrkTable,
    Fact,
    LastPfn,
    MappedRange,
    PageRange,
    Reservation,
    TableBlock,
)
from paravirt_mm.sources.bootlog.lines import LineVerdict, LogLine
from paravirt_mm.verify.log.predict import last_pfns, mapping_lines
from paravirt_mm.verify.log.variants import Candidate, all_series, candidates
from paravirt_mm.verify.log.words import Words

REASONS_FILE = Path(__file__).parent / "data" / "reasons.json"
MAX_REASONS = 5
MAX_LINES = 10_000
"""A log with more lines about mappings than this is not compared: no kernel prints so many."""
MAX_WORK = 1 << 17
"""Limit on candidates tried, times map entries or lines."""

_FOUR_GIB_PFN = (4 * GIB) >> PAGE_SHIFT


@attrs.frozen
class LogReport:
    """What was predicted for one boot, and how it compares.

    ``kernel`` is the release that was modelled (None: nothing to check), ``also`` other series that
    agree as well where the log names none, ``variant`` what was assumed about this kernel's
    configuration, ``assumed`` about the machine; ``nothing`` says why there is nothing to check,
    ``reason`` why the log cannot match.
    """

    source: str
    boot: int
    release: str | None
    mode: str
    kernel: str | None = None
    spec: str = ""
    backend: str = ""
    variant: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    lines: tuple[LogLine, ...] = ()
    nothing: str = ""
    reason: str = ""

    def count(self, verdict: LineVerdict) -> int:
        """Return how many lines have a verdict."""
        return sum(line.verdict is verdict for line in self.lines)

    @property
    def agrees(self) -> bool:
        """Whether no line differs."""
        return not self.count(LineVerdict.DIFFERS)


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
    facts = [fact for fact in log.facts if _is_checked(fact)]
    if log.platform == "hypervisor":
        return attrs.evolve(base, nothing="a hypervisor's log: nothing to check for a Linux kernel")
    if not facts:
        return attrs.evolve(base, nothing="the log holds no line about mappings or tables")
    if machine is None:
        return _unchecked(base, facts, log.missing or "the log holds no memory map")
    if len(facts) > MAX_LINES:
        return _unchecked(base, facts[:MAX_LINES], f"more than {MAX_LINES} lines about mappings")
    if log.mixed:
        return _unchecked(base, facts, "the lines of two boots stand between each other")
    numbers = dotted(leading_version(kernel or log.release)[:3])
    named = kernel is not None or bool(numbers)
    releases = [numbers] if kernel else _releases(numbers, facts, machine.mode)
    best: list[_Trial] = []
    limit = 1 << 10
    tries = max(1, MAX_WORK // max(len(machine.memory_map), len(facts), 1))
    for release in releases:
        trials = []
        for candidate in candidates(release, machine.mode.name, log.platform, registry):
            if candidate.unusual > limit or not tries:
                break
            tries -= 1
            trials.append(_Trial(log, facts, machine, candidate, registry))
            if trials[-1].perfect or not trials[-1].checks_mapping:
                limit = min(limit, candidate.unusual)
                break
        if trials:
            best.append(max(trials, key=lambda trial: trial.rank))
            if named and best[-1].perfect:
                break
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


def with_reason(report: LogReport, path: str) -> LogReport:
    """Return the report with the documented reason why this very file cannot match, if any."""
    if report.agrees or not Path(path).is_file():
        return report
    digest = sha256(Path(path).read_bytes()).hexdigest()
    return attrs.evolve(report, reason=reasons().get(digest, ""))


@cache
def reasons() -> dict[str, str]:
    """Return the documented reasons, by the SHA-256 of the file they speak of."""
    content: dict[str, Any] = json.loads(REASONS_FILE.read_text(encoding="utf-8"))
    found = {entry["sha256"]: str(entry["reason"]) for entry in content["reasons"]}
    if len(found) > MAX_REASONS:
        raise ValueError(f"{REASONS_FILE.name} holds more than {MAX_REASONS} reasons")
    return found


def _is_checked(fact: Fact) -> bool:
    if isinstance(fact, Reservation):
        return fact.is_table
    return isinstance(fact, LastPfn | MappedRange | PageRange | TableBlock | BrkTable)


def _unchecked(base: LogReport, facts: Iterable[Fact], why: str) -> LogReport:
    lines = tuple(LogLine(LineVerdict.UNCHECKED, f.line, f.text, None, why) for f in facts)
    return attrs.evolve(base, lines=lines)


# -- which release ---------------------------------------------------------------------------------


def _releases(named: str, facts: Sequence[Fact], mode: PagingMode) -> list[str]:
    """Return the releases to try: the one named, or all that print in this form.

    Kernels between two releases (-rc, -tip) may print like the next: then that is tried too.
    """
    if named and _prints_like(named, facts, mode):
        return [named]
    alike = [series for series in all_series() if _prints_like(series, facts, mode)]
    if not named:
        return alike or list(all_series())
    later = [series for series in alike if leading_version(series) > leading_version(named)]
    return [named, *later[:1]]


def _prints_like(release: str, facts: Sequence[Fact], mode: PagingMode) -> bool:
    words = Words(leading_version(release), mode.is_32bit)
    first: dict[type, Fact] = {}
    for fact in facts:
        first.setdefault(type(fact), fact)
    return all(
        words.shows(kind.__name__) and _render(fact, words) in (None, fact.text.strip())
        for kind, fact in first.items()
    )


def _render(fact: Fact, words: Words) -> str | None:
    """Return how a release prints a fact; None where the form tells nothing."""
    text: str | None = None
    if isinstance(fact, LastPfn):
        text = words.last_pfn(fact.pfn, fact.max_arch_pfn)
    elif isinstance(fact, MappedRange):
        text = words.mapped_range(*(fact.span or (0, 0)))
        if fact.span is None and not words.hides_ranges:
            text = ""
    elif isinstance(fact, PageRange):
        text = words.page_range(fact.start, fact.end, fact.page).strip()
    elif isinstance(fact, TableBlock):
        text = words.table_block(fact.up_to, fact.start, fact.end)
    return text


# -- one candidate ---------------------------------------------------------------------------------


class _Trial:
    """The lines of a log compared with those of one candidate."""

    def __init__(
        self,
        log: BootLog,
        facts: Sequence[Fact],
        machine: Machine,
        candidate: Candidate,
        registry: Registry,
    ) -> None:
        self.candidate = candidate
        self._facts = facts
        self._words = Words(leading_version(candidate.release), machine.mode.is_32bit)
        self._mode = machine.mode
        self.checks_mapping = any(not isinstance(fact, LastPfn) for fact in facts)
        self._lists_reservations = any(
            isinstance(fact, Reservation) and not fact.is_table for fact in log.facts
        )
        # What the linear allocator prints does not depend on where in a call RAM is.
        linear = any(isinstance(fact, TableBlock) for fact in facts)
        self._known_from = 0 if linear else max((end for _, end in log.made_up), default=0)
        self._registry = registry
        machine = self._with_low_memory(log, machine)
        lines = list(self._last_pfns(machine))
        lines += self._mapping(candidate.machine(machine))
        self.lines = tuple(lines)
        counts = Counter(line.verdict for line in lines)
        score = (
            counts[LineVerdict.MATCH]
            - 2 * counts[LineVerdict.DIFFERS]
            - 0.5 * counts[LineVerdict.UNCHECKED]
        )
        self.rank = (score, -candidate.unusual)
        self.perfect = not counts[LineVerdict.DIFFERS] and not counts[LineVerdict.UNCHECKED]

    # -- last_pfn ------------------------------------------------------------------------------

    def _last_pfns(self, machine: Machine) -> Iterator[LogLine]:
        printed = [fact for fact in self._facts if isinstance(fact, LastPfn)]
        if not printed:
            return
        expected = last_pfns(machine, printed[0].max_arch_pfn, self._words)
        for number, fact in enumerate(printed):
            equal = next((line for line in expected if line.pfn == fact.pfn), None)
            if equal is not None:
                yield LogLine(LineVerdict.MATCH, fact.line, fact.text, equal.text)
                continue
            above = fact.pfn > _FOUR_GIB_PFN
            near = next((x for x in expected if (x.pfn > _FOUR_GIB_PFN) == above), expected[0])
            verdict, why = LineVerdict.DIFFERS, ""
            if number == 0 and len(printed) > len(expected):
                verdict = LineVerdict.UNCHECKED
                why = "printed before the map was trimmed to what the MTRRs make cacheable"
            yield LogLine(verdict, fact.line, fact.text, near.text, why)

    # -- ranges, page sizes, blocks, tables ----------------------------------------------------

    def _mapping(self, machine: Machine) -> Iterator[LogLine]:
        printed = [fact for fact in self._facts if not isinstance(fact, LastPfn)]
        kinds = {type(fact) for fact in printed}
        taken: dict[Span, str] = {}
        blocks = sum(isinstance(fact, TableBlock) for fact in printed)
        for _ in range(blocks + 1):
            predicted = self._predict(machine, kinds, taken)
            pairs = list(_aligned(printed, predicted))
            hidden = self._hidden(machine, pairs, kinds, taken)
            if hidden is None:
                break
            taken[hidden[0]] = hidden[1]
        tail = _tail_of_brk(pairs) if self._mode.is_32bit else len(pairs)
        for index, (fact, model) in enumerate(pairs):
            yield from self._line(fact, model, taken, in_tail=index >= tail)

    def _predict(
        self, machine: Machine, kinds: set[type[Fact]], taken: Iterable[Span]
    ) -> list[Fact]:
        machine = attrs.evolve(machine, reserved=(*machine.reserved, *taken))
        candidate = self.candidate
        run = Scenario.of(machine, candidate.spec, candidate.backend).run(self._registry)
        return mapping_lines(run, self._words, kinds, 2 * MAX_LINES, candidate.other_tables)

    def _hidden(
        self,
        machine: Machine,
        pairs: Sequence[tuple[Fact | None, Fact | None]],
        kinds: set[type[Fact]],
        taken: dict[Span, str],
    ) -> tuple[Span, str] | None:
        """Return what must have been taken, unknown to the log, for a block to lie where it does.

        None where every block lies where it is predicted, or where nothing that could be taken
        explains its place: then the model would not choose it at all.
        """
        if self._lists_reservations:
            return None
        for fact, model in pairs:
            if not (isinstance(fact, TableBlock) and isinstance(model, TableBlock)):
                continue
            if fact.start == model.start or fact.end - fact.start != model.end - model.start:
                continue
            if fact.start < model.start:
                span = (max(fact.end, model.start), model.end)
                between = (fact.end, model.end)
            else:
                span = (model.start, min(fact.start, model.end))
                between = (model.start, fact.start)
            trial = self._predict(machine, kinds, [*taken, between])
            again = _aligned([line for line, _ in pairs if line is not None], trial)
            moved = next((line for printed, line in again if printed is fact), None)
            if isinstance(moved, TableBlock) and moved.start == fact.start:
                return between, f"something in {span[0]:x}-{span[1]:x} that the log does not list"
        return None

    def _with_low_memory(self, log: BootLog, machine: Machine) -> Machine:
        """Return the machine with that low memory taken which the candidate's release keeps.

        The reader assumes it by the release that the log names; this candidate may be another.
        """
        assumed = low_reservation(leading_version(log.release or "") or None)
        kept = low_reservation(leading_version(self.candidate.release))
        if assumed == kept or self._lists_reservations:
            return machine
        taken = RangeSet(machine.reserved)
        if assumed is not None:
            taken.discard(*assumed[0])
        if kept is not None:
            taken.add(*kept[0])
        return attrs.evolve(machine, reserved=tuple(taken))

    def _is_lost(self, fact: Fact) -> bool:
        """Tell whether a printed range was needed to make up for a part of the map."""
        if isinstance(fact, MappedRange):
            return fact.span is not None and ISA_END <= fact.span[0] < self._known_from
        return isinstance(fact, PageRange) and ISA_END <= fact.start < self._known_from

    def _line(
        self, fact: Fact | None, model: Fact | None, taken: dict[Span, str], *, in_tail: bool
    ) -> Iterator[LogLine]:
        if fact is None or model is None:
            verdict, why = LineVerdict.DIFFERS, ""
            if in_tail and isinstance(fact, BrkTable):
                verdict = LineVerdict.UNCHECKED
                why = "fixmap and highmem tables: their number depends on NR_CPUS"
            number, printed = (None, None) if fact is None else (fact.line, fact.text)
            yield LogLine(verdict, number, printed, None if model is None else model.text, why)
            return
        if _key(fact) != _key(model):
            yield LogLine(LineVerdict.DIFFERS, fact.line, fact.text, model.text)
            return
        if self._is_lost(fact):
            why = "the map is missing from the log here: this line stands for it"
            yield LogLine(LineVerdict.UNCHECKED, fact.line, fact.text, model.text, why)
            return
        if not isinstance(fact, TableBlock) or not isinstance(model, TableBlock):
            yield LogLine(LineVerdict.MATCH, fact.line, fact.text, model.text)
            return
        hidden = [
            why for span, why in taken.items() if fact.end == span[0] or fact.start == span[1]
        ]
        same = fact.start == model.start
        if same and hidden:
            yield LogLine(LineVerdict.MATCH, fact.line, fact.text, model.text, "size")
            yield LogLine(
                LineVerdict.UNCHECKED, fact.line, f"position {fact.start:x}", None,
                f"depends on {hidden[0]}",
            )  # fmt: skip
        elif same:
            yield LogLine(LineVerdict.MATCH, fact.line, fact.text, model.text)
        else:
            yield LogLine(LineVerdict.DIFFERS, fact.line, fact.text, model.text, "position")


def _key(fact: Fact) -> tuple[object, ...]:
    """Return what must be equal of a line; a block's place is looked at on its own."""
    if isinstance(fact, MappedRange):
        return "range", fact.span
    if isinstance(fact, PageRange):
        return "page", fact.start, fact.end, fact.page
    if isinstance(fact, TableBlock):
        return "block", fact.up_to, fact.end - fact.start
    if isinstance(fact, BrkTable | Reservation):
        return type(fact).__name__, fact.start, fact.end
    return (fact,)


def _aligned(
    printed: Sequence[Fact], predicted: Sequence[Fact]
) -> Iterator[tuple[Fact | None, Fact | None]]:
    """Pair the lines up as a diff does; what differs in one place is paired in order."""
    matcher = SequenceMatcher(
        None, [_key(fact) for fact in printed], [_key(fact) for fact in predicted], autojunk=False
    )
    for _, low, high, other_low, other_high in matcher.get_opcodes():
        left: list[Fact | None] = list(printed[low:high])
        right: list[Fact | None] = list(predicted[other_low:other_high])
        while left and right:
            # Only lines of one kind speak of the same thing.
            if type(left[0]) is type(right[0]):
                yield left.pop(0), right.pop(0)
            elif len(left) >= len(right):
                yield left.pop(0), None
            else:
                yield None, right.pop(0)
        yield from ((fact, None) for fact in left)
        yield from ((None, fact) for fact in right)


def _tail_of_brk(pairs: Sequence[tuple[Fact | None, Fact | None]]) -> int:
    """Return the index after the last pair that is not merely a printed BRK line."""
    index = len(pairs)
    while index and isinstance(pairs[index - 1][0], BrkTable) and pairs[index - 1][1] is None:
        index -= 1
    return index


def summary(reports: Iterable[LogReport]) -> Counter[str]:
    """Count logs and lines over many reports."""
    counts: Counter[str] = Counter()
    for report in reports:
        counts["logs"] += 1
        counts["nothing to check"] += bool(report.nothing)
        counts["explained"] += bool(report.reason)
        counts["disagreeing"] += not report.agrees and not report.reason
        for verdict in LineVerdict:
            counts[str(verdict)] += report.count(verdict)
    return counts
