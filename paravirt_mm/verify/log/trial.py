"""One candidate: its lines beside those of the log, each with a verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import attrs

from paravirt_mm.machine.model import Machine, Span
from paravirt_mm.machine.paging import GIB, ISA_END, PAGE_SHIFT
from paravirt_mm.machine.ranges import RangeSet
from paravirt_mm.machine.release import leading_version
from paravirt_mm.registry import Registry
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
    WritableRange,
)
from paravirt_mm.sources.bootlog.lines import LineVerdict, LogLine
from paravirt_mm.verify.log.pairing import Pair, aligned, key, tail_of_brk
from paravirt_mm.verify.log.predict import last_pfns, mapping_lines
from paravirt_mm.verify.log.variants import Candidate
from paravirt_mm.verify.log.words import Words

MAX_LINES = 10_000
"""A log with more lines about mappings than this is not compared: no kernel prints so many."""

FIRST_BRK = (2, 6, 30)
"""First release with a brk area behind the kernel (extend_brk)."""

_FOUR_GIB_PFN = (4 * GIB) >> PAGE_SHIFT
_MATCH, _DIFFERS, _UNCHECKED = LineVerdict.MATCH, LineVerdict.DIFFERS, LineVerdict.UNCHECKED
_TRIMMED = "printed before the map was trimmed to what the MTRRs make cacheable"
_STANDS_FOR_MAP = "the map is missing from the log here: this line stands for it"
_LOST_MAP = "depends on a part of the map that is missing from the log"
_LOG_ENDS = "the log ends before it"
_LOST_HEADER = "this line is missing from the log; those of its page sizes are there"
_BUILDER = "depends on what the domain builder has mapped; the log lists no kernel or no initrd"
_NR_CPUS = "fixmap and highmem tables: their number depends on NR_CPUS"


_FIXMAP = "tables of the fixmap come from the block, too: their number depends on NR_CPUS"
MAX_FIXMAP_TABLES = 3
"""A fixmap of up to 1,024 entries lies in the spans of so many tables at the most."""


def is_checked(fact: Fact) -> bool:
    """Tell whether a fact is one that models of the direct map predict."""
    if isinstance(fact, Reservation):
        return fact.is_table
    return isinstance(
        fact, LastPfn | MappedRange | PageRange | TableBlock | BrkTable | WritableRange
    )


class Trial:
    """The lines of a log compared with those of one candidate.

    ``rank`` says how well they agree, higher is better; ``perfect`` that no line differs and none
    is left unchecked. Both are known after `run`.
    """

    def __init__(
        self,
        log: BootLog,
        facts: Sequence[Fact],
        machine: Machine,
        candidate: Candidate,
        registry: Registry,
    ) -> None:
        self.candidate = candidate
        self.checks_mapping = any(not isinstance(fact, LastPfn) for fact in facts)
        self.lines: tuple[LogLine, ...] = ()
        self.rank: tuple[float, int] = (0, 0)
        self.perfect = False
        self._log = log
        self._facts = facts
        self._machine = machine
        self._words = Words(leading_version(candidate.release), machine.mode.is_32bit)
        self._lists_reservations = any(
            isinstance(fact, Reservation) and not fact.is_table for fact in log.facts
        )
        self._linear = any(isinstance(fact, TableBlock) for fact in facts)
        self._known_from = max((end for _, end in log.made_up), default=0)
        self._cut_off = facts[-1].line >= log.last_line
        self._registry = registry

    def run(self) -> None:
        """Predict, and compare."""
        machine = self._without_brk(self._with_low_memory(self._machine))
        lines = list(self._last_pfns(machine))
        if self.checks_mapping:
            lines += self._mapping(self.candidate.machine(machine))
        self.lines = tuple(lines)
        counts = Counter(line.verdict for line in lines)
        score = counts[_MATCH] - 2 * counts[_DIFFERS] - 0.5 * counts[_UNCHECKED]
        self.rank = (score, -self.candidate.unusual)
        self.perfect = not counts[_DIFFERS] and not counts[_UNCHECKED]

    def _with_low_memory(self, machine: Machine) -> Machine:
        """Return the machine with that low memory taken which the candidate's release keeps.

        The reader assumes it by the release that the log names; this candidate may be another.
        """
        if self._lists_reservations:
            return machine
        assumed = low_reservation(leading_version(self._log.release or "") or None)
        kept = low_reservation(leading_version(self.candidate.release))
        taken = RangeSet(machine.reserved)
        if assumed is not None:
            taken.discard(*assumed[0])
        if kept is not None:
            taken.add(*kept[0])
        return attrs.evolve(machine, reserved=tuple(taken))

    def _without_brk(self, machine: Machine) -> Machine:
        """Return the machine with no brk, which the reader assumes, if the release has none."""
        if self._words.version >= FIRST_BRK:
            return machine
        kernel = attrs.evolve(machine.kernel, brk_end=machine.kernel.brk_start)
        return attrs.evolve(machine, kernel=kernel)

    # -- last_pfn ------------------------------------------------------------------------------

    def _last_pfns(self, machine: Machine) -> Iterator[LogLine]:
        printed = [fact for fact in self._facts if isinstance(fact, LastPfn)]
        if not printed:
            return
        max_arch_pfn = printed[0].max_arch_pfn  # the same in each line
        expected = last_pfns(machine, max_arch_pfn, self._words)
        # memmap=exactmap had the kernel look for the old end of RAM first (until 2020).
        stale = [fact for fact in printed if fact.line < self._log.user_map_from]
        if stale and self._log.firmware_map is not None:
            before = attrs.evolve(machine, memory_map=self._log.firmware_map)
            expected_before = last_pfns(before, max_arch_pfn, self._words)
            yield from (self._last_pfn(fact, expected_before) for fact in stale)
        counted = [fact for fact in printed if fact not in stale]
        for number, fact in enumerate(counted):
            line = self._last_pfn(fact, expected)
            if line.verdict is _DIFFERS and number == 0 and len(counted) > len(expected):
                line = attrs.evolve(line, verdict=_UNCHECKED, why=_TRIMMED)
            yield line

    def _last_pfn(self, fact: LastPfn, expected: Sequence[LastPfn]) -> LogLine:
        equal = next((line for line in expected if line.pfn == fact.pfn), None)
        if equal is not None:
            return LogLine(_MATCH, fact.line, fact.text, equal.text)
        above = fact.pfn > _FOUR_GIB_PFN
        near = next((x for x in expected if (x.pfn > _FOUR_GIB_PFN) == above), expected[0])
        ram_end = self._machine.memory_map.ram_pages().end
        if fact.pfn << PAGE_SHIFT <= self._known_from or ram_end <= self._known_from:
            return LogLine(_UNCHECKED, fact.line, fact.text, near.text, _LOST_MAP)
        return LogLine(_DIFFERS, fact.line, fact.text, near.text)

    # -- ranges, page sizes, blocks, tables ----------------------------------------------------

    def _mapping(self, machine: Machine) -> Iterator[LogLine]:
        printed = [fact for fact in self._facts if not isinstance(fact, LastPfn)]
        kinds = {type(fact) for fact in printed}
        taken: dict[Span, str] = {}
        blocks = sum(isinstance(fact, TableBlock) for fact in printed)
        for _ in range(blocks + 1):
            predicted = self._predict(machine, kinds, taken)
            pairs = list(aligned(printed, predicted))
            hidden = self._hidden(machine, pairs, kinds, taken)
            if hidden is None:
                break
            taken[hidden[0]] = hidden[1]
        tail = tail_of_brk(pairs) if machine.mode.is_32bit else len(pairs)
        for index, pair in enumerate(pairs):
            if index >= tail and isinstance(pair[0], BrkTable):
                yield _line(_UNCHECKED, *pair, _NR_CPUS)
            elif why := self._depends_on_lost(pairs, index):
                yield _line(_UNCHECKED, *pair, why)
            else:
                yield from self._judged(*pair, taken)

    def _predict(
        self, machine: Machine, kinds: set[type[Fact]], taken: Iterable[Span]
    ) -> list[Fact]:
        machine = attrs.evolve(machine, reserved=(*machine.reserved, *taken))
        candidate = self.candidate
        run = Scenario.of(machine, candidate.spec, candidate.backend).run(self._registry)
        return mapping_lines(run, self._words, kinds, MAX_LINES, candidate.other_tables)

    def _hidden(
        self,
        machine: Machine,
        pairs: Sequence[Pair],
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
            again = aligned([line for line, _ in pairs if line is not None], trial)
            moved = next((line for printed, line in again if printed is fact), None)
            if isinstance(moved, TableBlock) and moved.start == fact.start:
                return between, f"something in {span[0]:x}-{span[1]:x} that the log does not list"
        return None

    def _depends_on_lost(self, pairs: Sequence[Pair], index: int) -> str:
        """Say why a line cannot be checked because others, or a part of the map, are lost."""
        fact, model = pairs[index]
        if fact is None and isinstance(model, MappedRange) and _has_page_sizes(pairs, index, model):
            return _LOST_HEADER
        if self._cut_off and all(printed is None for printed, _ in pairs[index:]):
            return _LOG_ENDS
        if not self._known_from:
            return ""
        differs = key(fact) != key(model)
        if isinstance(fact or model, MappedRange | PageRange):
            # What the linear allocator prints does not depend on where in a call RAM is.
            lost = any(
                start < self._known_from and end > ISA_END for start, end in _spans(fact, model)
            )
            if lost and (differs or not self._linear):
                return _LOST_MAP if differs else _STANDS_FOR_MAP
        elif differs and isinstance(fact or model, BrkTable | Reservation):
            return _LOST_MAP
        return ""

    def _judged(
        self, fact: Fact | None, model: Fact | None, taken: dict[Span, str]
    ) -> Iterator[LogLine]:
        if self._is_fixmap(fact, model):
            yield _line(_UNCHECKED, fact, model, _FIXMAP)
            return
        if key(fact) != key(model):
            yield _line(_DIFFERS, fact, model)
            return
        if isinstance(fact, WritableRange) and isinstance(model, WritableRange):
            yield self._writable(fact, model)
            return
        if not isinstance(fact, TableBlock) or not isinstance(model, TableBlock):
            yield _line(_MATCH, fact, model)
            return
        hidden = [
            why for span, why in taken.items() if fact.end == span[0] or fact.start == span[1]
        ]
        if fact.start != model.start:
            if self._known_from:
                yield _line(_UNCHECKED, fact, model, _LOST_MAP)
            else:
                yield _line(_DIFFERS, fact, model, "position")
        elif hidden:
            yield _line(_MATCH, fact, model, "size")
            position = f"position {fact.start:x}"
            yield LogLine(_UNCHECKED, fact.line, position, None, f"depends on {hidden[0]}")
        else:
            yield _line(_MATCH, fact, model)

    def _is_fixmap(self, fact: Fact | None, model: Fact | None) -> bool:
        """Tell whether more of a block was used by as much as a fixmap may have taken.

        32-bit kernels take the tables of their fixmap from the block, too
        (early_ioremap_page_table_range_init).
        """
        if not (self._machine.mode.is_32bit and self._linear):
            return False
        if isinstance(fact, Reservation) and isinstance(model, Reservation):
            same, more = fact.start == model.start, fact.end - model.end
        elif isinstance(fact, WritableRange) and isinstance(model, WritableRange):
            same, more = fact.end == model.end, fact.start - model.start
        else:
            return False
        return same and 0 < more <= MAX_FIXMAP_TABLES << PAGE_SHIFT

    def _writable(self, fact: WritableRange, model: WritableRange) -> LogLine:
        """Judge how much of a block was left: in the first call the builder's tables save some."""
        if fact.start == model.start:
            return _line(_MATCH, fact, model)
        in_first_call = fact.end < 4 * GIB
        if in_first_call and not (self._machine.initrd and self._log.kernel_listed):
            return _line(_UNCHECKED, fact, model, _BUILDER)
        return _line(_DIFFERS, fact, model)


def _line(verdict: LineVerdict, fact: Fact | None, model: Fact | None, why: str = "") -> LogLine:
    number, printed = (None, None) if fact is None else (fact.line, fact.text)
    return LogLine(verdict, number, printed, None if model is None else model.text, why)


def _spans(*facts: Fact | None) -> Iterator[Span]:
    for fact in facts:
        if isinstance(fact, PageRange):
            yield fact.start, fact.end
        elif isinstance(fact, MappedRange) and fact.span is not None:
            yield fact.span


def _has_page_sizes(pairs: Sequence[Pair], index: int, header: MappedRange) -> bool:
    """Tell whether the page sizes of a range stand in the log, all as predicted; of one that old
    kernels do not tell, its block.
    """
    found = False
    for fact, model in pairs[index + 1 :]:
        if isinstance(model, MappedRange):
            break
        if isinstance(model, PageRange) or (header.span is None and isinstance(model, TableBlock)):
            if key(fact) != key(model):
                return False
            found = True
    return found
