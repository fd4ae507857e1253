"""What the model of the hypervisor makes of a run: its answers, and findings where it refuses.

`paravirt_mm_xen.translate` writes the run down as operations. The model answers each; the first
answer that is not the expected one is a finding of rule 6.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import attrs

from paravirt_mm import PAGE_SHIFT, Finding, Trace
from paravirt_mm_xen.mmu.releases import RECORDED, Release
from paravirt_mm_xen.traces.format import Operation
from paravirt_mm_xen.traces.guest import TraceGuest
from paravirt_mm_xen.traces.words import answer_in_words, words
from paravirt_mm_xen.translate import (
    PROBE,
    NotReplayable,
    Refused,
    Translated,
    guest_frames,
    translate,
)

RULE = 6
"""The rule of `paravirt_mm.invariants.rules` that a replay checks: the model accepts the run."""


@attrs.frozen
class Counts:
    """What a run took, counted by the model of the hypervisor while it answered the replay.

    Operations without a counterpart in a kernel are left out.

    mmu_update, update_va_mapping, mmuext_op
        Requests, however they were batched.
    multicalls, batched
        Multicalls, and the requests in them.
    emulated
        Stores to L1 tables in use, which trapped.
    pins, validations
        By level: pins, and tables whose contents were checked, whatever for.
    """

    mmu_update: int
    update_va_mapping: int
    mmuext_op: int
    multicalls: int
    batched: int
    emulated: int
    pins: tuple[tuple[int, int], ...]
    validations: tuple[tuple[int, int], ...]

    @property
    def calls(self) -> int:
        """How often the guest entered the hypervisor by a hypercall."""
        return self.requests - self.batched + self.multicalls

    @property
    def requests(self) -> int:
        """Requests of all kinds."""
        return self.mmu_update + self.update_va_mapping + self.mmuext_op


@attrs.frozen
class ModelReplay:
    """The model's answers to a replay: the first that is wrong, if any, and what it all took."""

    refused: Refused | None
    answers: tuple[int, ...]
    counts: Counts


_KINDS = {
    "mmu_update": "mmu_update",
    "update_va": "update_va_mapping",
    "update_va_mapping": "update_va_mapping",
    "pin": "mmuext_op",
    "unpin": "mmuext_op",
    "new_baseptr": "mmuext_op",
    "tlb_flush": "mmuext_op",
}


def replay(replayed: Translated, release: Release = RECORDED) -> ModelReplay:
    """Let the model answer a replay."""
    operations = replayed.trace.ops
    guest = TraceGuest(replayed.trace.pages, release)
    answers = guest.answers(operations[: replayed.begin])
    guest.hypervisor.counters.reset()
    answers += guest.answers(operations[replayed.begin : replayed.end])
    counters = guest.hypervisor.counters
    emulated, validations = counters.emulated_stores, tuple(counters.validations)
    answers += guest.answers(operations[replayed.end :])
    kinds: Counter[str] = Counter()
    pins = [0] * len(validations)
    multicalls = batched = 0
    for number in range(replayed.begin, replayed.end):
        operation = operations[number]
        if number in replayed.stand_in:
            continue
        requests: Sequence[Operation] = (operation,)
        if operation[0] == "multicall":
            requests = operation[1]
            multicalls += 1
            batched += len(requests)
        for name, *fields in requests:
            if name in _KINDS:
                kinds[_KINDS[name]] += 1
            if name == "pin":
                pins[fields[0]] += 1
    counts = Counts(
        mmu_update=kinds["mmu_update"],
        update_va_mapping=kinds["update_va_mapping"],
        mmuext_op=kinds["mmuext_op"],
        multicalls=multicalls,
        batched=batched,
        emulated=emulated,
        pins=tuple((level, n) for level, n in enumerate(pins) if n),
        validations=tuple((level, n) for level, n in enumerate(validations) if n),
    )
    return ModelReplay(replayed.refused(answers), answers, counts)


def findings(trace: Trace) -> list[Finding]:
    """Check rule 6: the model of the hypervisor accepts a run, operation by operation."""
    try:
        refused = replay(translate(trace)).refused
    except NotReplayable as error:
        return [Finding(RULE, 0, 0, str(error))]
    if refused is None:
        return []
    event = len(trace.events) - 1 if refused.event == PROBE else max(0, refused.event)
    return [Finding(RULE, event, address_of(refused.operation, trace), describe(refused))]


def describe(refused: Refused) -> str:
    """Return a refusal in the words of the hypervisor's interface."""
    what, name = words(refused.operation), refused.operation[0]
    code = answer_in_words(name, refused.code)
    if refused.expected:
        return f"{what}: {code}, not {answer_in_words(name, refused.expected)}"
    return f"the hypervisor refuses {what}: {code}"


def address_of(operation: Operation, trace: Trace) -> int:
    """Return the physical address of the page that an operation acts on."""
    name, *fields = operation
    page = fields[1] if name == "pin" else fields[0] if fields else 0
    if not isinstance(page, int) or name in ("update_va", "probe"):
        return 0
    for low, high in guest_frames(trace.start):
        if page < (high - low) >> PAGE_SHIFT:
            return low + (page << PAGE_SHIFT)
        page -= (high - low) >> PAGE_SHIFT
    return 0
