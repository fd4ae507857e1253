"""What ``paravirt-mm verify xen`` does: recorded answers, fresh ones, and whole runs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import click

from paravirt_mm import (
    MIB,
    E820Type,
    Evidence,
    ExitCode,
    InputError,
    Machine,
    MemoryMap,
    ParavirtMmError,
    Scenario,
    SpecError,
    printable,
    reading,
    record_evidence,
)
from paravirt_mm_xen.dom0.boot import record as record_dom0
from paravirt_mm_xen.dom0.compare import compare_dom0
from paravirt_mm_xen.dom0.recording import Dom0Recording
from paravirt_mm_xen.live import BuildError, LiveXen, MissingPieceError, XenBootError, compare
from paravirt_mm_xen.live.pieces import find_pieces
from paravirt_mm_xen.mmu.releases import RECORDED, RELEASES, Release, release_of
from paravirt_mm_xen.replay import ModelReplay, describe, replay
from paravirt_mm_xen.traces import recorded
from paravirt_mm_xen.traces.files import write_traces
from paravirt_mm_xen.traces.format import OperationTrace
from paravirt_mm_xen.traces.generators import GENERATORS, generate
from paravirt_mm_xen.traces.guest import predict
from paravirt_mm_xen.translate import Refused, Translated, translate

SIZES = (64, 256, 512)
ALLOCATORS = (
    "legacy_linear:kernel=2.6.39",
    "legacy_linear:kernel=3.6",
    "incremental:variant=linux",
    "incremental:variant=hpa",
    "chunk_end",
)


@attrs.frozen
class VerifyOptions:
    """What the command line asked for; see `paravirt_mm_xen.command`."""

    files: tuple[Path, ...] = ()
    live: bool = False
    runs: bool = False
    seed: int = 1
    operations: int = 100_000
    generators: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    allocators: tuple[str, ...] = ()
    directory: Path | None = None
    release: str | None = None
    save: Path | None = None
    dom0: tuple[Path, ...] = ()
    record_to: Path | None = None

    @property
    def traces(self) -> list[Path]:
        """The files of operations."""
        return [path for path in self.files if path not in self.recordings]

    @property
    def recordings(self) -> list[Path]:
        """The files that are recordings of a dom0: by their name."""
        return [path for path in self.files if path.name.endswith((".json", ".json.xz"))]


@attrs.frozen
class RunResult:
    """One run of an allocator, as the model and (None: not asked) real Xen answered it.

    ``differs`` is the number of the first operation that the two answered differently.
    """

    mib: int
    allocator: str
    verdict: str
    operations: int = 0
    model: ModelReplay | None = None
    real: Refused | None = None
    asked_xen: bool = False
    differs: int | None = None
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the run came to its end and everybody who was asked accepted all of it."""
        return (
            self.verdict == "ok"
            and self.model is not None
            and self.model.refused is None
            and self.real is None
            and self.differs is None
        )

    def line(self) -> str:
        """Return the result in one line."""
        head = f"{self.mib} MiB, {self.allocator}: "
        if self.model is None:
            return head + self.verdict
        said = "accepted by model and Xen" if self.asked_xen else "accepted by the model"
        if self.differs is not None:
            said = f"model and Xen differ at operation {self.differs}"
        elif refused := self.real or self.model.refused:
            said = describe(refused)
        elif self.verdict != "ok":
            said += f", but {self.verdict}"
        counts = self.model.counts
        return (
            f"{head}{self.operations:,} operations {said} ({counts.mmu_update:,} mmu_update, "
            f"{counts.update_va_mapping:,} update_va_mapping, {counts.mmuext_op:,} mmuext_op, "
            f"{counts.emulated:,} emulated stores; {self.seconds:.1f} s)"
        )

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        refused = self.real or (self.model.refused if self.model else None)
        return {
            "mib": self.mib,
            "allocator": self.allocator,
            "verdict": self.verdict,
            "ok": self.ok,
            "operations": self.operations,
            "xen": self.asked_xen,
            "differs": self.differs,
            "refused": attrs.asdict(refused) if refused else None,
            "counts": attrs.asdict(self.model.counts) if self.model else None,
        }


def verify(options: VerifyOptions, *, as_json: bool) -> ExitCode:
    """Do what was asked, print it, and return the exit code."""
    asked = None if options.release is None else _release(options.release)
    report: dict[str, Any] = {}
    codes = [ExitCode.OK]
    say: _Say = _nothing if as_json else click.echo
    with ExitStack() as stack:
        live: LiveXen | None = None
        if options.live:
            try:
                live = stack.enter_context(LiveXen.open(options.directory))
            except (MissingPieceError, BuildError) as error:
                # The files are worth reading all the same.
                codes.append(ExitCode.BAD_INPUT)
                report["missing"] = str(error)
                click.echo(f"paravirt-mm: {error}", err=True)
        try:
            if options.traces:
                codes.append(_files(options, asked, report, say))
            if options.recordings or options.dom0:
                codes.append(_dom0(options, report, say))
            if live is not None:
                codes.append(_fresh(options, live, asked, report, say))
            if live is not None or (options.runs and not options.live):
                release = asked or (RECORDED if live is None else release_booted(live))
                codes.append(_runs(options, live, release, report, say))
        except XenBootError as error:
            codes.append(ExitCode.FINDINGS)
            report["boot"] = str(error)
            click.echo(f"paravirt-mm: {error}", err=True)
    if options.record_to is not None:
        for kind, evidence in evidence_of(report).items():
            record_evidence(options.record_to, kind, evidence)
    if as_json:
        click.echo(json.dumps({"agree": not any(codes), **report}, indent=1))
    return max(codes)


def evidence_of(report: dict[str, Any]) -> dict[str, list[Evidence]]:
    """Return what a report proves, by kind: of what was not asked for, nothing.

    Operations speak for the model of the hypervisor, whole constructions for their allocator.
    """
    found: dict[str, list[Evidence]] = {}
    for part, failed in (("files", "differing_traces"), ("live", "failed_traces")):
        if part in report:
            traces = report[part]["traces"]
            told = Evidence("xen", traces - report[part][failed], traces)
            found.setdefault("operations", []).append(told)
    for each in report.get("dom0", ()):
        spec = f"incremental:variant=linux,kernel={each['kernel']}"
        found.setdefault("dom0", []).append(Evidence(spec, int(each["agree"]), 1))
    for each in report.get("runs", ()):
        accepted = each["operations"] and each["verdict"] == "ok" and each["refused"] is None
        told = Evidence(each["allocator"], int(accepted), 1)
        found.setdefault("model", []).append(told)
        if each["xen"]:
            told = Evidence(each["allocator"], int(each["ok"]), 1)
            found.setdefault("xen", []).append(told)
    return found


_Say = Callable[[str], None]


def _nothing(_: str) -> None:
    """Say nothing: JSON is printed in the end."""


def _release(version: str) -> Release:
    try:
        release = release_of(version)
    except KeyError:
        known = ", ".join(RELEASES)
        raise SpecError(f"no model of Xen {version!r}; there are {known}") from None
    if not release.verified:
        click.echo(f"note: {release.name} was never replayed on a real hypervisor", err=True)
    return release


def release_booted(live: LiveXen) -> Release:
    """The release of a hypervisor that was booted; the default before the first boot.

    Raises `SpecError` where there is none for its version.
    """
    return RECORDED if live.version is None else _release(live.version)


def _files(
    options: VerifyOptions, release: Release | None, report: dict[str, Any], say: _Say
) -> ExitCode:
    outcome = recorded.verify(options.traces, release, progress=sys.stderr.isatty())
    report["files"] = outcome.as_dict()
    for path, found in outcome.differences:
        say(recorded.difference_line(path, found))
    say(recorded.summary_line(outcome))
    for error in outcome.errors:
        click.echo(f"paravirt-mm: {printable(str(error))}", err=True)
    if outcome.errors:
        return ExitCode.BAD_INPUT
    return ExitCode.FINDINGS if outcome.differences else ExitCode.OK


def _dom0(options: VerifyOptions, report: dict[str, Any], say: _Say) -> ExitCode:
    """Recordings of real kernels as dom0, and fresh ones."""
    report["dom0"] = []
    codes = [ExitCode.OK]
    for found in _dom0_comparisons(options, codes):
        report["dom0"].append(found.record)
        for line in found.lines:
            say(line)
        codes.append(ExitCode.OK if found.ok else ExitCode.FINDINGS)
    return max(codes)


@attrs.frozen
class _Compared:
    """What came of a comparison: for ``--json``, and for people."""

    record: dict[str, Any]
    lines: tuple[str, ...]
    ok: bool

    @classmethod
    def of(cls, recording: Dom0Recording) -> _Compared:
        found = compare_dom0(recording)
        return cls(found.as_dict(), tuple(found.lines()), found.ok)

    @classmethod
    def of_file(cls, path: Path, save: Path | None) -> _Compared:
        recording = Dom0Recording.load(path)
        try:
            found = cls.of(recording)
        except ParavirtMmError as error:
            raise InputError(str(error), str(path)) from None
        if save is not None:
            recording.save(save)
        return found


def _dom0_comparisons(options: VerifyOptions, codes: list[ExitCode]) -> Iterator[_Compared]:
    """Yield those that can be had; the others are told, and cost their exit code. Files are read
    and compared in a child, for nobody vouches for them.
    """
    save = None if options.live else options.save
    for path in options.recordings:
        try:
            yield reading(_Compared.of_file, path, save)
        except InputError as error:
            codes.append(ExitCode.BAD_INPUT)
            click.echo(f"paravirt-mm: {printable(str(error))}", err=True)
    for image in options.dom0:
        try:
            recording = record_dom0(image, find_pieces(options.directory))
            if save is not None:
                recording.save(save)
            yield _Compared.of(recording)
        except XenBootError:
            raise
        except ParavirtMmError as error:
            codes.append(ExitCode.BAD_INPUT)
            click.echo(f"paravirt-mm: {printable(str(error))}", err=True)


def _fresh(
    options: VerifyOptions, live: LiveXen, asked: Release | None, report: dict[str, Any], say: _Say
) -> ExitCode:
    @cache
    def booted(version: str | None) -> Release:
        return release_booted(live)

    def model(trace: OperationTrace) -> Sequence[int]:
        return predict(trace, asked or booted(live.version))

    traces = generate(options.generators or tuple(GENERATORS), options.seed, options.operations)
    with ExitStack() as stack:
        record: compare.Record | None = None
        if options.save is not None:
            written = stack.enter_context(write_traces(options.save))

            def record(trace: OperationTrace, answers: Sequence[int]) -> None:
                written.write(f"{trace.to_json(answers, live.version)}\n")

        result = compare.compare(live, traces, model, record=record)
    report["live"] = {
        "xen": result.xen,
        "release": (asked or booted(live.version)).name,
        "seed": options.seed,
        "operations": result.operations,
        "traces": result.traces,
        "failed_traces": result.failed_traces,
        "agree": result.ok,
        "disagreements": [
            {"trace": found.trace.name, "reproducer": json.loads(found.reproducer())}
            for found in result.disagreements
        ],
    }
    for found in result.disagreements:
        say(f"{found}\n{found.reproducer()}")
    say(result.summary())
    return ExitCode.OK if result.ok else ExitCode.FINDINGS


def _runs(
    options: VerifyOptions,
    live: LiveXen | None,
    release: Release,
    report: dict[str, Any],
    say: _Say,
) -> ExitCode:
    report["runs"] = []
    good = True
    sizes = options.sizes or (SIZES if options.runs else SIZES[:1])
    for result in run_all(sizes, options.allocators or ALLOCATORS, live, release):
        report["runs"].append(result.as_dict())
        good = good and result.ok
        say(result.line())
    return ExitCode.OK if good else ExitCode.FINDINGS


def run_all(
    sizes: Sequence[int],
    allocators: Sequence[str],
    live: LiveXen | None = None,
    release: Release = RECORDED,
) -> Iterator[RunResult]:
    """Run allocators on guests of some sizes (MiB); replay each run on the model, and on Xen where
    that is given.

    Raises `SpecError` for a wrong spec.
    """
    for mib in sizes:
        for allocator in allocators:
            started = time.monotonic()
            run = Scenario.of(guest_machine(mib), allocator, "xen:replay_limit=0").run()
            result = RunResult(mib, allocator, str(run.verdict))
            if run.trace.events:
                translated = translate(run.trace, f"{allocator} {mib} MiB")
                result = answered(result, translated, live, release)
            yield attrs.evolve(result, seconds=time.monotonic() - started)


def answered(
    result: RunResult, translated: Translated, live: LiveXen | None, release: Release = RECORDED
) -> RunResult:
    """Return a result with the answers to a replay."""
    model = replay(translated, release)
    result = attrs.evolve(result, operations=len(translated.trace.ops), model=model)
    if live is None:
        return result
    (answers,) = live.replay([translated.trace])
    return attrs.evolve(
        result,
        asked_xen=True,
        real=translated.refused(answers),
        differs=compare.first_difference(model.answers, answers),
    )


def guest_machine(mib: int) -> Machine:
    """Return a guest of ``mib`` MiB with the legacy hole below 1 MiB and a small initrd."""
    if mib < 64:
        raise InputError(f"a guest of {mib} MiB is too small for kernel and initrd")
    return Machine(
        name=f"pv-{mib}m",
        memory_map=MemoryMap.sanitise(
            [
                (0, 640 << 10, E820Type.RAM),
                (640 << 10, MIB, E820Type.RESERVED),
                (MIB, mib * MIB, E820Type.RAM),
            ]
        ),
        initrd=(32 * MIB, 40 * MIB),
    )
