"""The contract, checked where an answer arrives: types, units, order, bounds.

Each function takes what a plugin answered to one hook and returns it, as tuples where a plugin may
give any sequence. What the engine cannot act on raises `ContractBroken`, which names hook, field
and value. Whether an answer is wise is not asked here: that is for the rules of a finished run
(`paravirt_mm.invariants`).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping
from itertools import pairwise
from operator import attrgetter
from typing import Any, NoReturn, TypeGuard, TypeVar

from paravirt_mm.engine.answers import Cost, Refusal, Way
from paravirt_mm.engine.boot import Promise
from paravirt_mm.engine.pages import PageRun, Source, TablePages
from paravirt_mm.engine.recorded import KernelFile, RecordedBoot, RecordedStep
from paravirt_mm.engine.split import Piece
from paravirt_mm.engine.steps import (
    ActivateRoot,
    AttachTables,
    HandOver,
    HandOverTables,
    Map,
    NewRoot,
    Promote,
    Step,
    StepResult,
    TableDemand,
)
from paravirt_mm.errors import Rejected
from paravirt_mm.machine.model import BootState, CpuFeatures, KernelImage, Machine, Span
from paravirt_mm.machine.paging import PAGE_SIZE, PagingMode

MAX_BRK_PAGES = 1 << 15
"""128 MiB of brk: more than any kernel could link."""
MAX_RUNS = 1 << 22
"""More runs of pages in one answer than any machine needs."""
MAX_COUNT = 1 << 62
"""Numbers of operations end here."""
MAX_PFN = 1 << 40
"""52 bits of physical address."""
_SHOWN = 160

T = TypeVar("T")


class ContractBroken(Exception):
    """A plugin answered with something that the engine cannot act on. ``hook`` says which."""

    def __init__(self, hook: str, message: str) -> None:
        super().__init__(message)
        self.hook = hook


class Answer:
    """One answer to one hook; knows how to refuse it."""

    def __init__(self, hook: str) -> None:
        self.hook = hook

    def refuse(self, message: str, value: Any = ...) -> NoReturn:
        """Raise `ContractBroken`; ``value`` is what is wrong."""
        shown = "" if value is ... else f": {_shown(value)}"
        raise ContractBroken(self.hook, f"{message}{shown}")

    def of(self, value: Any, kind: type[T], what: str) -> T:
        """Return a value that must be of a class (no bool for a number)."""
        if type(value) is kind:
            return value
        if not isinstance(value, kind) or isinstance(value, bool):
            self.refuse(f"{what} is not a {kind.__name__}", value)
        return value

    def number(self, value: Any, what: str, low: int = 0, high: int = MAX_COUNT) -> int:
        """Return a whole number of ``low``..``high``."""
        if type(value) is not int and not is_int(value):
            self.refuse(f"{what} must be a whole number", value)
        if not low <= value <= high:
            self.refuse(f"{what} is not in {low}..{high}", value)
        return value

    def numbers(self, value: Any, what: str, low: int, high: int) -> None:
        """Refuse what are not whole numbers of ``low``..``high``."""
        found = self.items(value, what)
        # There are hundreds, hardly ever one of them wrong.
        if set(map(type, found)) != {int} or min(found) < low or max(found) > high:
            for one in found:
                self.number(one, what, low, high)

    def items(self, value: Any, what: str, most: int = MAX_RUNS) -> tuple[Any, ...]:
        """Return the items of an iterable that is no text and comes to an end."""
        if isinstance(value, (tuple, list)):
            return tuple(value)
        if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
            self.refuse(f"{what}, not a sequence", value)
        found = []
        for item in value:
            found.append(item)
            if len(found) > most:
                self.refuse(f"{what}, more than {most}")
        return tuple(found)

    def span(self, value: Any, what: str, end: int, align: int = PAGE_SIZE) -> Span:
        """Return a pair of addresses, the second behind the first, not above ``end``."""
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            self.refuse(f"{what} must be a pair (start, end) of bytes", value)
        low, high = value
        if not type(low) is type(high) is int and not (is_int(low) and is_int(high)):
            self.refuse(f"{what} must be a pair of whole numbers", value)
        if not 0 <= low < high <= end:
            self.refuse(f"{what} must be 0 <= start < end <= {end:#x}", (low, high))
        if low % align or high % align:
            self.refuse(f"{what} must begin and end at pages", (low, high))
        return low, high

    def spans(
        self, value: Any, what: str, end: int, align: int = PAGE_SIZE, *, ordered: bool = True
    ) -> tuple[Span, ...]:
        """Return pairs of addresses, ascending and disjoint if ``ordered``."""
        found = tuple([self.span(item, what, end, align) for item in self.items(value, what)])
        if ordered and len(found) > 1:
            for before, after in pairwise(found):
                if before[1] > after[0]:
                    self.refuse(f"{what} must ascend and not overlap", (before, after))
        return found


# Those that are asked again and again.
_MAP_STEPS = Answer("pvmm_map_steps")
_ALLOCATE_TABLES = Answer("pvmm_allocate_tables")
_MAP_READONLY = Answer("pvmm_map_readonly")


def is_int(value: object) -> TypeGuard[int]:
    """Tell whether a value is a whole number, and no truth value."""
    return type(value) is int or (isinstance(value, int) and not isinstance(value, bool))


def _shown(value: Any) -> str:
    """Return an answer as text of a bounded length, whatever its repr does."""
    try:
        if isinstance(value, tuple) and all(is_int(one) for one in value[:_SHOWN]):
            text = f"({', '.join(hex(one) for one in value[:_SHOWN])})"
        else:
            text = repr(value)
    except Exception as error:
        text = f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


# -- before the first step -------------------------------------------------------------------------


def features(machine: Machine, answer: Any) -> CpuFeatures:
    """Check the answer of ``pvmm_features``; nobody answers: the machine's."""
    if answer is None:
        return machine.features
    return _features(Answer("pvmm_features"), machine, answer, "the answer")


def _features(told: Answer, machine: Machine, value: Any, what: str) -> CpuFeatures:
    visible = told.of(value, CpuFeatures, what)
    for name in ("pse", "gbpages", "nx"):
        if getattr(visible, name) and not getattr(machine.features, name):
            told.refuse(f"{what}.{name}: a platform cannot add what the CPU lacks")
    return visible


def kernel_file(answer: Any) -> KernelFile | None:
    """Check the answer of ``pvmm_kernel_file``; nobody answers: no kernel's file."""
    if answer is None:
        return None
    told = Answer("pvmm_kernel_file")
    file = told.of(answer, KernelFile, "the answer")
    told.of(file.image, str, "KernelFile.image")
    told.of(file.parameters, str, "KernelFile.parameters")
    known = file.timeout is None or is_int(file.timeout) or isinstance(file.timeout, float)
    if not known or (file.timeout is not None and not 0 < file.timeout < math.inf):
        told.refuse("KernelFile.timeout must be a number of seconds", file.timeout)
    return file


def recorded(answer: Any) -> RecordedBoot | None:
    """Check the answer of ``pvmm_boot_kernel``; nobody answers: the platform is the machine.

    Steps and pages are checked when the allocator gives them.
    """
    if answer is None:
        return None
    told = Answer("pvmm_boot_kernel")
    boot = told.of(answer, RecordedBoot, "the answer")
    told.of(boot.machine, Machine, "RecordedBoot.machine")
    for step in told.items(boot.steps, "RecordedBoot.steps"):
        told.of(step, RecordedStep, "what RecordedBoot.steps holds")
    return boot


def image(machine: Machine, answer: Any) -> KernelImage:
    """Check the answer of ``pvmm_kernel_image``; nobody answers: the machine's."""
    if answer is None:
        return machine.kernel
    told = Answer("pvmm_kernel_image")
    kernel = kernel_image(told, answer, "the answer", 1 << machine.mode.physical_bits)
    told.number(kernel.brk_pages, "pages of brk", 0, MAX_BRK_PAGES)
    return kernel


def boot_state(machine: Machine, answer: Any) -> BootState | Refusal:
    """Check the answer of ``pvmm_boot_state``."""
    told = Answer("pvmm_boot_state")
    if isinstance(answer, Refusal):
        return refusal(told, answer)
    state = told.of(answer, BootState, "the answer")
    end = 1 << machine.mode.physical_bits
    for name in ("mapped", "reserved", "boot_tables", "direct_mapped"):
        align = PAGE_SIZE if name in ("boot_tables", "direct_mapped") else 1
        told.spans(getattr(state, name), f"BootState.{name}", end, align, ordered=False)
    if state.boot_tables:
        taken = state.taken(machine)
        for low, high in state.boot_tables:
            if not taken.covers(low, high):
                told.refuse("BootState.boot_tables must be among what is reserved", (low, high))
    told.number(state.max_pfn_mapped, "BootState.max_pfn_mapped", 0, MAX_PFN)
    _features(told, machine, state.features, "BootState.features")
    if state.kernel is not None:
        kernel_image(told, state.kernel, "BootState.kernel", end)
    root = machine.mode.root_level
    for level, spans in state.tables.items():
        told.number(level, "a level of BootState.tables", 1, root - 1)
        told.spans(spans, f"BootState.tables[{level}]", machine.mode.table_span(root))
    for level, pfns in state.table_pages.items():
        told.number(level, "a level of BootState.table_pages", 1, root)
        told.numbers(pfns, f"BootState.table_pages[{level}]", 0, MAX_PFN)
    told.of(state.typed, bool, "BootState.typed")
    for item in told.items(state.places, "BootState.places"):
        if not isinstance(item, tuple) or len(item) != 2 or not isinstance(item[0], str):
            told.refuse("BootState.places must hold (name, (start, end))", item)
        name, span = item
        told.span(span, f"place '{name}'", end, align=1)
    return state


def kernel_image(told: Answer, value: Any, what: str, end: int) -> KernelImage:
    """Check where a kernel is said to lie."""
    kernel = told.of(value, KernelImage, what)
    for name in ("start", "end", "brk_start", "brk_end"):
        told.number(getattr(kernel, name), f"{what}.{name}", 0, end)
    if kernel.start > kernel.end or kernel.brk_start > kernel.brk_end:
        told.refuse(f"{what} ends before it starts", kernel)
    return kernel


def promise(machine: Machine, answer: Any) -> Promise:
    """Check the answer of ``pvmm_promise``."""
    told = Answer("pvmm_promise")
    given = told.of(answer, Promise, "the answer")
    told.of(given.direct_map, tuple, "Promise.direct_map")
    told.spans(given.direct_map, "Promise.direct_map", machine.mode.physical_end)
    if given.brk_pages is not None:
        told.number(given.brk_pages, "Promise.brk_pages", 0, MAX_BRK_PAGES)
    return given


def steps(answer: Any) -> Generator[Step, StepResult, None]:
    """Check the answer of ``pvmm_map_steps``."""
    if not isinstance(answer, Generator):
        _MAP_STEPS.refuse("the answer is not a generator of steps", answer)
    return answer


_LABELLED = (NewRoot, HandOverTables, AttachTables, ActivateRoot)
_MAP_FIELDS = {
    "label": str,
    "use_brk": bool,
    "faults_in": bool,
    "reserve": bool,
    "promote": Promote,
    "hand_over": HandOver,
}
_map_fields = attrgetter(*_MAP_FIELDS)
_ANYWHERE = Map(0, PAGE_SIZE).tables_from
"""What most steps leave as it is."""
_MAP_KINDS = tuple(_MAP_FIELDS.values())


def step(mode: PagingMode, answer: Any) -> Step:
    """Check a step that ``pvmm_map_steps`` yields."""
    told = _MAP_STEPS
    kind = type(answer)
    if kind is not Map:
        if kind not in _LABELLED:
            told.refuse("what it yields is not a step", answer)
        if type(answer.label) is not str:
            told.of(answer.label, str, f"{kind.__name__}.label")
        return answer  # type: ignore[no-any-return]  # one of the labelled steps
    _check_map(told, mode, answer)
    return answer  # type: ignore[no-any-return]  # a Map


def _check_map(told: Answer, mode: PagingMode, answer: Map) -> None:
    start, end = answer.start, answer.end
    # What is wrong is looked for only where something is.
    if (
        not type(start) is type(end) is int
        or not 0 <= start < end <= mode.physical_end
        or (start | end) % PAGE_SIZE
    ):
        told.span((start, end), "Map(start, end)", mode.physical_end)
    if tuple(map(type, _map_fields(answer))) != _MAP_KINDS:
        for name, wanted in _MAP_FIELDS.items():
            told.of(getattr(answer, name), wanted, f"Map.{name}")
    if answer.tables_from is not _ANYWHERE:
        window = told.items(answer.tables_from, "Map.tables_from")
        if len(window) != 2:
            told.refuse("Map.tables_from must be a pair (low, high) of bytes", answer.tables_from)
        if {*map(type, window)} != {int} or min(window) < 0 or max(window) > MAX_COUNT:
            for place, address in enumerate(window):
                told.number(address, f"Map.tables_from[{place}]")
    told.number(answer.skip_empty_level, "Map.skip_empty_level", 0, 5)
    if answer.pieces == ():
        return
    for piece in told.items(answer.pieces, "Map.pieces"):
        told.of(piece, Piece, "a piece of Map.pieces")
        told.span((piece.start, piece.end), "a piece of Map.pieces", mode.physical_end)
        told.number(piece.level, "the level of a piece of Map.pieces", 1, mode.root_level)


# -- pages -----------------------------------------------------------------------------------------


def _run(told: Answer, run: Any, what: str) -> PageRun:
    if type(run) is not PageRun:
        told.refuse(f"{what} must be a PageRun", run)
    start, count, step = run.start, run.count, run.step
    if not type(start) is type(count) is type(step) is int and not (
        is_int(start) and is_int(count) and is_int(step)
    ):
        told.refuse(f"{what} must hold whole numbers", run)
    if step not in (1, -1):
        told.refuse(f"{what}.step must be 1 or -1", run)
    low, high = run.pfns
    if count < 0 or (count and not 0 <= low < high <= MAX_PFN):
        told.refuse(f"{what} must hold pages of 0..{MAX_PFN:#x}", run)
    return run


def runs(hook: str, answer: Any) -> tuple[PageRun, ...]:
    """Check runs of pages; None: there are none."""
    told = Answer(hook)
    given = told.items(() if answer is None else answer, "the answer is not runs of pages")
    return tuple(run for run in given if _run(told, run, "a run of pages").count)


def table_pages(answer: Any, demand: TableDemand) -> tuple[TablePages, ...]:
    """Check the answer of ``pvmm_allocate_tables``: as many pages as are needed.

    Whether they are free, and where they are said to come from, is for rule 1.
    """
    told = _ALLOCATE_TABLES
    given = told.items(() if answer is None else answer, "the answer is not TablePages")
    pages: list[TablePages] = []
    count = 0
    for part in given:
        if type(part) is not TablePages:
            told.refuse("what it gives is not TablePages", part)
        given_count = _run(told, part.run, "TablePages.run").count
        if type(part.source) is not Source:
            told.of(part.source, Source, "TablePages.source")
        if given_count:
            pages.append(part)
            count += given_count
    if count != (needed := demand.count):
        told.refuse(f"gave {count} pages where {needed} are needed")
    return tuple(pages)


def readonly(answer: Any, start: int, end: int) -> tuple[Span, ...]:
    """Check the answer of ``pvmm_map_readonly``: ascending whole pages of ``[start, end)``."""
    if answer is None or answer == ():
        return ()
    told = _MAP_READONLY
    given = told.spans(answer, "a read-only range", end)
    if given and given[0][0] < start:
        told.refuse(f"a read-only range lies outside of {start:#x}..{end:#x}", given[0])
    return given


def taken(answer: Any, machine: Machine) -> tuple[Span, ...]:
    """Check the answer of ``pvmm_memory_taken``: ascending whole pages."""
    if answer is None:
        return ()
    return Answer("pvmm_memory_taken").spans(answer, "a range", machine.mode.physical_end)


# -- what backends answer --------------------------------------------------------------------------


def refusal(told: Answer, answer: Refusal) -> Refusal:
    """Check a refusal."""
    told.of(answer.operation, str, "Refusal.operation")
    told.number(answer.code, "Refusal.code (a negative errno)", -4095, -1)
    return answer


def cost(
    hook: str, mode: PagingMode, answer: Any, pinnable: Mapping[int, int] | None = None
) -> Cost | None:
    """Check what an operation costs; nobody answers: None. Raises `Rejected` where it is refused.

    ``pinnable`` is how many tables of which level it is about; None: all there are.
    """
    if answer is None:
        return None
    known = _CHECKED.get(id(answer))
    if known is not answer or known is None:
        if isinstance(answer, Refusal):
            refused = refusal(Answer(hook), answer)
            raise Rejected(refused.operation, refused.code)
        known = _checked(Answer(hook), answer)
    # What is pinned is checked each time, unless it is all that there is of a level.
    if known.pinned and not (pinnable and known.pinned.items() <= pinnable.items()):
        _check_pinned(Answer(hook), mode, known.pinned, pinnable)
    return known


def _checked(told: Answer, answer: Any) -> Cost:
    """Check all of a cost but how much is pinned, which depends on the tables at hand."""
    if not isinstance(answer, Cost):
        told.refuse("the answer is not a Cost, a Refusal or None", answer)
    # A Cost holds mappings whatever it is made of.
    for name, count in answer.hypercalls.items():
        told.of(name, str, "a kind in Cost.hypercalls")
        told.number(count, f"Cost.hypercalls[{name!r}]")
    told.number(answer.batches, "Cost.batches")
    told.of(answer.way, Way, "Cost.way")
    told.number(answer.flushes, "Cost.flushes")
    for level, count in answer.pinned.items():
        told.number(level, "a level of Cost.pinned", 0)
        told.number(count, f"Cost.pinned[{level}]")
    if type(answer) is Cost:
        if len(_CHECKED) == _MAX_CHECKED:
            _CHECKED.clear()
        _CHECKED[id(answer)] = answer
    return answer


_CHECKED: dict[int, Cost] = {}
"""Costs that were found right, by their identity: a cost never changes, and backends answer the
same ones again and again.
"""
_MAX_CHECKED = 4096


def _check_pinned(
    told: Answer, mode: PagingMode, pinned: Mapping[int, int], pinnable: Mapping[int, int] | None
) -> None:
    for level, count in pinned.items():
        told.number(level, "a level of Cost.pinned", 1, mode.root_level)
        most = MAX_COUNT if pinnable is None else pinnable.get(level, 0)
        told.number(count, f"Cost.pinned[{level}]", 0, most)
