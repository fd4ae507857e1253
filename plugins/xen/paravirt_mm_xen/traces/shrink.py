"""Shrinking a trace on which model and hypervisor disagree to a minimal one.

Delta debugging, arranged for a test that is dear to start and cheap to widen: a boot of Xen takes a
second, whether it tries one candidate or a thousand. So each round tries all candidates of the
current trace together and goes on with the smallest that still fails.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs

from paravirt_mm_xen.traces.format import PAGE_FIELDS, SHAPES, Field, Operation, OperationTrace

Failures = Callable[[Sequence[OperationTrace]], Sequence[int | None]]
"""For each trace, the number of its first operation that fails, or None where none does."""

_ROUND_OPERATIONS = 400_000
_ROUND_PAGES = 1 << 18
_EXHAUSTIVE = 10  # operations of which every subset is tried
_SAMPLED = 1000  # operations of which random subsets are tried
_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8)
_SAMPLES = 60  # random subsets of each share


@attrs.frozen
class Shrunk:
    """The minimal trace. Its last operation is the one that fails."""

    trace: OperationTrace
    rounds: int
    minimal: bool  #: False where the rounds ran out: a smaller trace may exist


def shrink(trace: OperationTrace, failures: Failures, *, max_rounds: int = 40) -> Shrunk:
    """The smallest failing trace that removing and simplifying operations leads to.

    No single operation of the result can be left out (if ``minimal``). Raises
    `ValueError` if the trace does not fail at all.
    """
    name = f"{trace.name}-shrunk"
    whole, renumbered = OperationTrace(name, trace.pages, trace.ops), compact(name, trace.ops)
    first, first_renumbered = failures([whole, renumbered])
    if first is None:
        raise ValueError(f"{trace.name} does not fail")
    # Should the numbers of the pages matter, the trace stays as it is until a candidate fails.
    best = _cut(whole, first) if first_renumbered is None else _cut(renumbered, first_renumbered)
    rounds = 1
    untried = _candidates(best)
    while rounds < max_rounds:
        batch = _take(untried)
        if not batch:
            return Shrunk(best, rounds, minimal=True)
        rounds += 1
        failing = [
            _cut(candidate, at)
            for candidate, at in zip(batch, failures(batch), strict=True)
            if at is not None
        ]
        if failing:
            best = min(failing, key=_size)
            untried = _candidates(best)
    return Shrunk(best, rounds, minimal=False)


def compact(name: str, operations: Sequence[Operation]) -> OperationTrace:
    """A trace of these operations whose pages are numbered in the order of their first use."""
    numbers: dict[int, int] = {}
    renumbered = []
    for operation in operations:
        places = _PAGES.get(operation[0])
        if places is None:
            renumbered.append(
                _map_pages(operation, lambda page: numbers.setdefault(page, len(numbers)))
            )
            continue
        fields = [*operation]
        for place in places:
            if fields[place] is not None:
                fields[place] = numbers.setdefault(fields[place], len(numbers))
        renumbered.append(tuple(fields))
    return OperationTrace(name, max(len(numbers), 1), tuple(renumbered))


def _size(trace: OperationTrace) -> tuple[int, int, int]:
    """What makes a trace simpler: fewer operations and members, fewer pages, smaller fields."""
    members = sum(len(op[1]) for op in trace.ops if op[0] in _BATCHES)
    fields = sum(_weight(field) for op in trace.ops for field in op[1:])
    return (len(trace.ops) + members, trace.pages, fields)


_BATCHES = {
    name for name, shape in SHAPES.items() if {Field.UPDATES, Field.MEMBERS} & {*shape.fields}
}

_PAGES = {
    name: [place for place, field in enumerate(shape.fields, 1) if field in PAGE_FIELDS]
    for name, shape in SHAPES.items()
    if name not in _BATCHES
}
"""Where single operations name pages; it is asked of millions of them."""


def _weight(field: Any) -> int:
    if isinstance(field, (list, tuple)):
        return sum(map(_weight, field))
    return field if isinstance(field, int) else 0


def _cut(trace: OperationTrace, failing: int) -> OperationTrace:
    """The trace up to the operation that fails, with no pages but those used until then."""
    operations = trace.ops[: failing + 1]
    shorter = compact(trace.name, operations)
    return shorter if shorter.ops == operations else attrs.evolve(trace, ops=operations)


def _candidates(trace: OperationTrace) -> Iterator[OperationTrace]:
    """Smaller traces: chunks left out, then subsets, then simpler operations.

    A short trace's subsets are all there, so that its smallest failing one is found; a longer one's
    are drawn at random (the same on every run). The operation that fails, the last one, stays.
    """
    operations = trace.ops
    for kept in _kept(trace):
        yield compact(trace.name, kept)
    for number, operation in enumerate(operations):
        for simpler in _simpler(operation):
            candidate = (*operations[:number], simpler, *operations[number + 1 :])
            yield compact(trace.name, candidate)


def _kept(trace: OperationTrace) -> Iterator[tuple[Operation, ...]]:
    *rest, last = trace.ops
    chunk = len(rest)
    while chunk:
        for start in range(0, len(rest), chunk):
            yield (*rest[:start], *rest[start + chunk :], last)
        chunk //= 2
    if len(rest) <= _EXHAUSTIVE:
        for count in range(1, len(rest) - 1):
            for subset in itertools.combinations(rest, count):
                yield (*subset, last)
    elif len(rest) <= _SAMPLED:
        source = random.Random(f"{trace.name}-{len(rest)}")  # noqa: S311 - to be repeatable
        for share in _SHARES:
            for _ in range(_SAMPLES):
                subset = tuple(op for op in rest if source.random() < share)
                if len(subset) < len(rest):
                    yield (*subset, last)


def _simpler(operation: Operation) -> Iterator[Operation]:
    name, *values = operation
    if name in _BATCHES:
        (members,) = values
        if len(members) > 1:
            for i in range(len(members)):
                yield (name, (*members[:i], *members[i + 1 :]))
        return
    for i, (field, value) in enumerate(zip(SHAPES[name].fields, values, strict=True)):
        plain = {Field.INDEX: 0, Field.PRESERVE: False}.get(field, value)
        if plain != value:
            yield (name, *values[:i], plain, *values[i + 1 :])


def _take(candidates: Iterator[OperationTrace]) -> list[OperationTrace]:
    """The next candidates, as many as one boot holds; at least one while there are any."""
    batch: list[OperationTrace] = []
    operations = pages = 0
    for candidate in candidates:
        batch.append(candidate)
        operations += len(candidate.ops)
        pages += candidate.pages
        if operations >= _ROUND_OPERATIONS or pages >= _ROUND_PAGES:
            break
    return batch


def _map_pages(operation: Operation, number: Callable[[int], int]) -> Operation:
    name, *values = operation
    return (
        name,
        *(
            _mapped(field, value, number)
            for field, value in zip(SHAPES[name].fields, values, strict=True)
        ),
    )


def _mapped(field: Field, value: Any, number: Callable[[int], int]) -> Any:
    if field is Field.UPDATES:
        return tuple(_map_pages(("mmu_update", *update), number)[1:] for update in value)
    if field is Field.MEMBERS:
        return tuple(_map_pages(tuple(member), number) for member in value)
    return number(value) if field in PAGE_FIELDS else value
