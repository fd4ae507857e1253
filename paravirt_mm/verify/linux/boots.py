"""Boots of a real kernel on the machines of a comparison, each made once and kept.

A boot is decided by the kernel's image, the machine's map as QEMU can have it, the processor's
paging features and the command line; whoever asks for the same again gets the record. Records lie
under ``$XDG_CACHE_HOME/paravirt-mm/boots/IMAGE/BOOT.json`` (the first half of SHA-256 sums), in the
form that ``verify linux --save`` writes; they may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import attrs

from paravirt_mm.engine.pages import PageRun, Source, TablePages
from paravirt_mm.engine.recorded import RecordedBoot, RecordedStep
from paravirt_mm.engine.split import Piece
from paravirt_mm.errors import InputError
from paravirt_mm.machine.model import Machine
from paravirt_mm.printable import printable
from paravirt_mm.sources.checker import Checker
from paravirt_mm.verify.linux.compare import machine_of
from paravirt_mm.verify.linux.maps import map_of
from paravirt_mm.verify.linux.qemu import (
    DEFAULT_TIMEOUT,
    Kernel,
    KernelFacts,
    LiveLinuxError,
    LiveUnavailableError,
    MapSpec,
    find_kernel,
    record_boot,
)

MAX_KEPT = 4096
"""Records of one image that are kept; when there are more, the older half goes."""
_FORM = 2
"""Counts up when a record of the same boot would say more, or something else."""
_LEVELS = {"4k": 1, "2M": 2, "1G": 3}


def read_boot(record: Mapping[str, Any], where: str) -> RecordedBoot:
    """Read a record that lists its tables. Raises InputError where it is not of that form."""
    check = Checker(where)
    pages: dict[int, list[tuple[int, Source]]] = {}
    for index, item in enumerate(check.array(check.need(record, "allocations"), "allocations")):
        key = f"allocations[{index}]"
        pfn, source, step = check.array(item, key, length=3)
        kind = Source.BRK if check.text(source, key) == "brk" else Source.MEMBLOCK
        number = check.integer(step, key, 0, 1 << 32)
        pages.setdefault(number, []).append((check.address(pfn, key), kind))
    steps = []
    for index, item in enumerate(check.array(check.need(record, "steps"), "steps")):
        key = f"steps[{index}]"
        step = check.table(item, key)
        start, end = check.span([check.need(step, "start"), check.need(step, "end")], key)
        pieces = tuple(
            _piece(check, piece, key) for piece in check.array(check.need(step, "ranges"), key)
        )
        steps.append(RecordedStep(start, end, pieces, tuple(_runs(pages.get(index, [])))))
    tables = [
        tuple(check.integer(number, "tables", 0, 1 << 52) for number in row)
        for row in check.array(check.need(record, "tables"), "tables")
    ]
    panic = record.get("panic")
    return RecordedBoot(
        release=check.text(check.need(record, "release"), "release"),
        machine=machine_of(record, where),
        steps=tuple(steps),
        tables=tuple((level, pfn, va) for level, pfn, va in tables),
        panic=None if panic is None else printable(check.text(panic, "panic"), 200),
        findings=tuple(
            printable(check.text(text, "findings"))
            for text in check.array(record.get("findings", []), "findings")
        ),
    )


def recorded_boot(
    image: str, machine: Machine, parameters: str = "", timeout: float = DEFAULT_TIMEOUT
) -> RecordedBoot:
    """Return what a kernel does on a machine: as it is kept, or by booting it now.

    ``image`` is a bzImage, a vmlinux or a directory with one (``""``: ``$PARAVIRT_MM_LINUX``),
    ``parameters`` are more words for its command line. Raises InputError, one line with what to do,
    where there is no such kernel or QEMU, where the machine cannot be booted, and where the kernel
    does not reach the end of its direct map in ``timeout`` seconds.
    """
    try:
        file = _File.of(_kernel_file(image))
        spec = attrs.evolve(map_of(machine, file.facts()).spec, command_line=parameters)
        return _boot(file, spec, timeout)
    except LiveLinuxError as error:
        raise _refused(error) from error


def kernel_path(image: str) -> Path:
    """Return the kernel that ``image`` names, as `recorded_boot` takes it. Raises InputError."""
    try:
        return _kernel_file(image)
    except LiveLinuxError as error:
        raise InputError(str(error)) from error


def kernel_facts(image: str) -> KernelFacts:
    """Return on what machines a kernel boots. Raises InputError as `recorded_boot` does."""
    try:
        return _File.of(_kernel_file(image)).facts()
    except LiveLinuxError as error:
        raise _refused(error) from error


def _kernel_file(image: str) -> Path:
    return find_kernel(Path(image) if image else None)


def _refused(error: LiveLinuxError) -> InputError:
    """Return the first line of an error."""
    return InputError(" ".join(str(error).split("\n")[0].split()))


@attrs.frozen
class _File:
    """A kernel's file, by what changes when it does."""

    path: Path
    modified: int
    size: int

    @classmethod
    def of(cls, path: Path) -> _File:
        try:
            status = path.stat()
        except OSError as error:
            raise LiveUnavailableError(f"{path}: {error.strerror}") from error
        return cls(path, status.st_mtime_ns, status.st_size)

    def kept(self) -> Path:
        """Return where what is known of it lies."""
        home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        return Path(home) / "paravirt-mm" / "boots" / _digest(self)[:32]

    def facts(self) -> KernelFacts:
        """Return what its image says, without reading all of it each time."""
        kept = self.kept() / "kernel"
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            facts = json.loads(kept.read_text("utf-8"))
            start, end = facts["physical_range"]
            return KernelFacts(
                str(facts["release"]), (int(start), int(end)), bool(facts["has_five_levels"])
            )
        facts = _kernel(self).facts
        _keep(kept, json.dumps(attrs.asdict(facts)))
        return facts


@lru_cache(maxsize=4)
def _kernel(file: _File) -> Kernel:
    return Kernel.load(file.path)


@lru_cache(maxsize=64)
def _digest(file: _File) -> str:
    with file.path.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


@lru_cache(maxsize=64)
def _boot(file: _File, spec: MapSpec, timeout: float) -> RecordedBoot:
    kept = file.kept() / f"{_key(spec)}.json"
    with contextlib.suppress(OSError, ValueError, InputError):
        return read_boot(json.loads(kept.read_text("utf-8")), str(kept))
    kernel = _kernel(file)
    live = record_boot(spec, kernel, timeout=timeout)
    record = live.to_json(tables_up_to=len(live.tables))
    _keep(kept, json.dumps(record))
    return read_boot(record, f"{kernel.release}, just booted")


def _key(spec: MapSpec) -> str:
    """Return the name of a boot: everything that the kernel can tell apart."""
    text = json.dumps([_FORM, attrs.asdict(spec, value_serializer=_plain)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _plain(_instance: object, _field: object, value: Any) -> Any:
    return getattr(value, "value", value)


def _keep(path: Path, text: str) -> None:
    """Write a file whole or not at all; what cannot be kept is booted again next time."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            try:
                file.write(text)
                file.close()
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
        others = list(path.parent.glob("*.json"))
        if len(others) > MAX_KEPT:
            others.sort(key=lambda other: other.stat().st_mtime)
            for old in others[: len(others) // 2]:
                old.unlink(missing_ok=True)


def _piece(check: Checker, item: Any, key: str) -> Piece:
    start, end, size = check.array(item, key, length=3)
    level = _LEVELS.get(check.text(size, key))
    if level is None:
        raise InputError(f"{key}: {printable(repr(size), 20)} is no page size", check.where)
    return Piece(*check.span([start, end], key), level)


def _runs(pages: list[tuple[int, Source]]) -> list[TablePages]:
    """Return pages as runs, in their order."""
    runs: list[TablePages] = []
    for pfn, source in pages:
        if runs and runs[-1].source is source:
            run = runs[-1].run
            step = pfn - (run.start + (run.count - 1) * run.step)
            if step in (1, -1) and (run.count == 1 or step == run.step):
                runs[-1] = TablePages(PageRun(run.start, run.count + 1, step), source)
                continue
        runs.append(TablePages(PageRun(pfn, 1), source))
    return runs
