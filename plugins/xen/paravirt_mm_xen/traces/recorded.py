"""Recorded answers of the real hypervisor against the model: ``paravirt-mm verify xen FILE...``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import attrs
import click

from paravirt_mm import InputError
from paravirt_mm_xen.mmu.codes import describe
from paravirt_mm_xen.mmu.releases import RECORDED, Release
from paravirt_mm_xen.traces.format import Operation, RecordedTrace
from paravirt_mm_xen.traces.guest import REFUSED_BY_GUEST, Difference, read_traces, replay

_WORDS: Final = {
    "pin": "MMUEXT_PIN_L{0}_TABLE page {1}",
    "unpin": "MMUEXT_UNPIN_TABLE page {0}",
    "update_va_mapping": "update_va_mapping address of page {0} := page {1} flags {2:#x}",
    "mmu_update": "mmu_update page {0} entry {1} := page {2} flags {3:#x} preserve A/D {4}",
    "write": "store to page {0} entry {1} := page {2} flags {3:#x}",
    "store": "store to page {0} entry {1} := page {2} flags {3:#x}",
    "store_value": "store to page {0} entry {1} := {2:#x}",
    "new_baseptr": "MMUEXT_NEW_BASEPTR page {0}",
    "boot_baseptr": "MMUEXT_NEW_BASEPTR boot tables",
    "new_user_baseptr": "MMUEXT_NEW_USER_BASEPTR page {0}",
    "copy_kernel_slots": "store of the kernel's L4 entries to page {0}",
    "type": "XEN_DOMCTL_getpageframeinfo3 page {0}",
    "read": "load from page {0} entry {1}",
    "clear_page": "MMUEXT_CLEAR_PAGE page {0}",
    "copy_page": "MMUEXT_COPY_PAGE page {0} from page {1}",
    "update_va": "update_va_mapping address {0:#x} := page {1} flags {2:#x}",
    "probe": "{1} at address {0:#x}",
}
"""Operations as the hypervisor's interface calls them; others are printed as they are."""


@attrs.define
class Outcome:
    """What a comparison of recorded answers came to.  Times are seconds of CPU time of the process,
    so that other load does not count."""

    release: Release
    traces: int = 0
    operations: int = 0
    replay_seconds: float = 0.0
    """In the model alone ..."""
    seconds: float = 0.0
    """... and with reading and checking the files."""
    differences: list[tuple[Path, Difference]] = attrs.Factory(list)
    """The first of each trace that differs."""
    errors: list[str] = attrs.Factory(list)
    """Of files that could not be read to their end."""

    @property
    def agrees(self) -> bool:
        """Whether everything could be read, and every answer agreed."""
        return not self.errors and not self.differences

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "release": self.release.name,
            "traces": self.traces,
            "operations": self.operations,
            "differing_traces": len(self.differences),
            "agree": self.agrees,
            "cpu_seconds": round(self.seconds, 3),
            "operations_per_second": _rate(self.operations, self.seconds),
            "operations_per_second_model": _rate(self.operations, self.replay_seconds),
            "differences": [
                {
                    "file": str(path),
                    "trace": found.recorded.trace.name,
                    "number": found.number,
                    "operation": found.operation,
                    "hypervisor": found.answer,
                    "model": found.predicted,
                }
                for path, found in self.differences
            ],
            "errors": self.errors,
        }


def verify(files: list[Path], release: Release = RECORDED, *, progress: bool = False) -> Outcome:
    """Replay all traces of `files`.  A damaged file is an entry of ``errors``, not an exception."""
    outcome = Outcome(release)
    started = time.process_time()
    shown = time.monotonic()
    for path in files:
        try:
            for recorded in _at_least_one(path):
                before = time.process_time()
                found = replay(recorded, release)
                outcome.replay_seconds += time.process_time() - before
                outcome.traces += 1
                outcome.operations += len(recorded.trace.ops)
                if found is not None:
                    outcome.differences.append((path, found))
                if progress and time.monotonic() - shown > 0.2:
                    shown = time.monotonic()
                    _show(
                        f"{path.name}: {outcome.traces:,} traces, {outcome.operations:,} operations"
                    )
        except InputError as error:
            outcome.errors.append(str(error))
    if progress:
        _show("")
    outcome.seconds = time.process_time() - started
    return outcome


def _at_least_one(path: Path) -> Iterator[RecordedTrace]:
    empty = True
    for recorded in read_traces(path):
        empty = False
        yield recorded
    if empty:
        raise InputError("holds no trace", str(path))


def _show(text: str) -> None:
    """Replace the progress line."""
    click.echo(f"\r\x1b[K{printable(text)}", nl=False, err=True)


def _rate(operations: int, seconds: float) -> int:
    return round(operations / seconds) if seconds > 0 else 0


def words(operation: Operation) -> str:
    """An operation in the words of the hypervisor's interface."""
    name, *fields = operation
    template = _WORDS.get(name)
    return template.format(*fields) if template else json.dumps(operation)


def answer_in_words(name: str, answer: int) -> str:
    """An answer: errno or fault by name; what a load saw and a type as it is."""
    if answer == REFUSED_BY_GUEST:
        return "not tried (the guest would have cut itself off)"
    if name == "type":
        return f"type {answer}"
    if answer > 0:
        return f"{answer:#x}"
    if -100_000 < answer <= -1000:
        done, code = divmod(-answer, 1000)
        return f"{describe(-code)} after {done} done"
    return describe(answer)


def difference_line(path: Path, found: Difference) -> str:
    """A differing trace in one line."""
    name = found.operation[0]
    return printable(
        f"{path}: {found.recorded.trace.name}: operation {found.number},"
        f" {words(found.operation)}: hypervisor {answer_in_words(name, found.answer)},"
        f" model {answer_in_words(name, found.predicted)}"
    )


def summary_line(outcome: Outcome) -> str:
    """The last line."""
    verdict = (
        f"{len(outcome.differences)} traces differ"
        if outcome.differences
        else "all agree"
        if outcome.traces
        else "nothing compared"
    )
    return (
        f"model of Xen {outcome.release.name}: {outcome.operations:,} operations in"
        f" {outcome.traces:,} traces: {verdict}"
        f" ({_rate(outcome.operations, outcome.replay_seconds):,} operations a CPU second"
        " in the model,"
        f" {_rate(outcome.operations, outcome.seconds):,} with reading)"
    )


def printable(text: str) -> str:
    """What came from a file cannot move the cursor."""
    return "".join(char if char.isprintable() else "?" for char in text)
