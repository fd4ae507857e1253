"""``paravirt-mm verify linux``: the model against a real kernel, booted in QEMU."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from typing import IO, Any

import attrs
import click

from paravirt_mm.cli import reading
from paravirt_mm.cli.output import complain, progress, while_some_can
from paravirt_mm.cli.recording import record_option
from paravirt_mm.cli.types import Seconds, jobs_option
from paravirt_mm.counted import counted
from paravirt_mm.errors import ExitCode, InputError
from paravirt_mm.evidence import Evidence, record_evidence
from paravirt_mm.registry import default_registry
from paravirt_mm.verify.kernel.compare import Replay
from paravirt_mm.verify.linux.compare import replay, replay_file
from paravirt_mm.verify.linux.maps import NamedMap, builtin_maps, map_of, random_maps
from paravirt_mm.verify.linux.qemu import (
    DEFAULT_TIMEOUT,
    BootRecord,
    Kernel,
    KernelBootError,
    KernelImageError,
    LiveUnavailableError,
    MapSpecError,
    end_all,
    find_kernel,
    find_qemu,
    record_boot,
)


@attrs.frozen
class Result:
    """One map under one kernel: compared, or why not."""

    name: str
    kernel: str
    replay: Replay | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    tables: int = 0

    @property
    def verdict(self) -> str:
        """``agrees``, ``differs``, or ``refused``: not compared."""
        if self.replay is None:
            return "refused"
        return "agrees" if self.replay.agrees else "differs"


@click.command("linux")
@click.argument("machines", metavar="[MACHINE]...", nargs=-1)
@click.option(
    "-k", "--kernel", "kernels", multiple=True, type=click.Path(path_type=Path),
    metavar="DIR|VMLINUZ",
    help="Kernel, or where a kernel package was unpacked. May be repeated. "
    "[default: $PARAVIRT_MM_LINUX]",
)  # fmt: skip
@click.option("--qemu", metavar="PROGRAM", help="QEMU, if not qemu-system-x86_64 on the path.")
@click.option(
    "--random", "count", type=click.IntRange(1, 1_000_000), metavar="N",
    help="Boot N random maps.",
)  # fmt: skip
@click.option(
    "--seed", type=click.IntRange(0, (1 << 32) - 1), default=0, show_default=True,
    help="Which random maps.",
)  # fmt: skip
@click.option(
    "--timeout", type=Seconds(1), default=DEFAULT_TIMEOUT, show_default=True,
    metavar="SECONDS", help="How long one boot may take.",
)  # fmt: skip
@jobs_option(256, "Boots at a time")
@click.option(
    "--replay", "files", multiple=True, metavar="FILE",
    help="Compare boots recorded in FILE (JSON, one a line) instead of booting. May be repeated.",
)  # fmt: skip
@click.option(
    "--save", type=click.File("w", encoding="utf-8", lazy=True), metavar="FILE",
    help="Record what the kernels did, for --replay.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print every map's result as JSON.")
@click.option(
    "-v", "--verbose", is_flag=True, help="Show every field that differs, not only the first."
)
@record_option
def command(
    machines: tuple[str, ...],
    kernels: tuple[Path, ...],
    qemu: str | None,
    count: int | None,
    seed: int,
    timeout: float,
    jobs: int,
    files: tuple[str, ...],
    save: IO[str] | None,
    as_json: bool,
    verbose: bool,
    record_to: Path | None,
) -> ExitCode:
    """Boot a real Linux kernel and compare what it did with the model of its release.

    MACHINE is a name from `paravirt-mm machines`, a machine file or a log; without any, a set of
    maps that comes with the package is booted. Compared are: memory, brk pages, ranges and page
    sizes, the order, source and place of every table, the order of the paravirt hooks, the leaf
    mappings, reservations, panics.

    A kernel needs no installation: unpack Debian's linux-image-amd64 (tools/fetch-linux.sh does).
    Exit code 0: everything agrees; 1: something differs; 3: QEMU, the kernel or a machine is not
    there, or a machine cannot be booted.
    """
    if files and (machines or kernels or count or save):
        raise click.UsageError("--replay boots nothing: it takes no machines, kernels or maps")
    if machines and count:
        raise click.UsageError("give machines or --random, not both")
    try:
        if files:
            results = [_replayed(r) for r in progress(_recorded(files), "comparing")]
        else:
            program = find_qemu(qemu)
            loaded = [Kernel.load(find_kernel(path)) for path in kernels or (None,)]
            todo = [
                (kernel, named)
                for kernel in loaded
                for named in _maps(machines, kernel, count, seed)
            ]
            results = []
            with closing(_boots(todo, program, timeout, jobs)) as booted:
                hopeful = while_some_can(booted, lambda boot: boot[1] is not None)
                for result, live in progress(hopeful, "booting", len(todo)):
                    results.append(result)
                    if live is not None and save is not None:
                        save.write(json.dumps({"id": result.name, **live.to_json()}) + "\n")
            if len(results) < len(todo):
                left = len(todo) - len(results)
                complain(f"{left} more were not booted: none came to its end within a minute")
    except (LiveUnavailableError, KernelImageError) as error:
        click.echo(f"paravirt-mm: {error}", err=True)
        return ExitCode.BAD_INPUT
    click.echo(_json(results) if as_json else _text(results, verbose))
    if record_to is not None:
        record_evidence(record_to, "live", _evidence(results))
    verdicts = {result.verdict for result in results}
    if "differs" in verdicts:
        return ExitCode.FINDINGS
    return ExitCode.BAD_INPUT if "refused" in verdicts else ExitCode.OK


def _recorded(files: Sequence[str]) -> Iterator[Replay]:
    for path in files:
        yield from reading.reading_each(replay_file, path)


def _replayed(replayed: Replay) -> Result:
    return Result(replayed.machine, replayed.kernel, replayed)


def _maps(
    machines: Sequence[str], kernel: Kernel, count: int | None, seed: int
) -> Iterator[NamedMap | Result]:
    """Yield what is to be booted, and results for what cannot be."""
    if count is not None:
        yield from random_maps(count, seed, kernel)
    elif not machines:
        yield from builtin_maps(kernel)
    for source, machine in reading.machines(machines):
        if isinstance(machine, InputError):
            yield Result(source, kernel.release, reason=str(machine))
            continue
        try:
            yield map_of(machine, kernel)
        except MapSpecError as error:
            yield Result(machine.name, kernel.release, reason=str(error))


def _boots(
    todo: Sequence[tuple[Kernel, NamedMap | Result]], qemu: str, timeout: float, jobs: int
) -> Generator[tuple[Result, BootRecord | None], None, None]:
    """Boot ``jobs`` at a time; yield results in order."""
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        boots = [pool.submit(_booted, kernel, item, qemu, timeout) for kernel, item in todo]
        try:
            for boot in boots:
                yield boot.result()
        except BaseException:  # nobody waits for the boots that are under way, or begin just now
            for boot in boots:
                boot.cancel()
            while wait(boots, timeout=0.05).not_done:
                end_all()
            raise


def _booted(
    kernel: Kernel, todo: NamedMap | Result, qemu: str, timeout: float
) -> tuple[Result, BootRecord | None]:
    if isinstance(todo, Result):
        return todo, None
    try:
        live = record_boot(todo.spec, kernel, qemu=qemu, timeout=timeout)
    except (MapSpecError, KernelBootError) as error:
        return Result(todo.name, kernel.release, reason=str(error), notes=todo.notes), None
    everything = live.to_json(tables_up_to=len(live.tables))
    result = Result(
        todo.name,
        kernel.release,
        replay({"id": todo.name, **everything}, todo.name, default_registry()),
        notes=todo.notes,
        seconds=live.provenance.seconds,
        tables=len(live.tables),
    )
    return result, live


def _json(results: Sequence[Result]) -> str:
    rows: list[dict[str, Any]] = [
        {**attrs.asdict(result), "verdict": result.verdict} for result in results
    ]
    return json.dumps(
        {"agree": all(row["verdict"] == "agrees" for row in rows), "maps": rows}, indent=1
    )


def _text(results: Sequence[Result], verbose: bool) -> str:
    width = max((len(result.name) for result in results), default=0)
    specs: dict[str, str] = {}
    for result in results:
        if result.replay is not None:
            specs.setdefault(result.kernel, f" against {result.replay.spec}")
    lines: list[str] = []
    kernel = ""
    for result in results:
        if result.kernel != kernel:
            kernel = result.kernel
            lines.append(f"Linux {kernel}{specs.get(kernel, '')}")
        lines.append(f"  {result.name:{width}}  {result.verdict:7}  {_remark(result)}".rstrip())
        lines += _differences(result.replay, verbose) if result.replay else []
    lines += ["", *_summary(results)]
    return "\n".join(lines)


def _remark(result: Result) -> str:
    if result.replay is None:
        return result.reason.replace("\n", "\n    ")
    parts = [counted(result.tables, "table"), f"{result.seconds:.1f} s"] if result.seconds else []
    return ", ".join([*parts, *result.notes])


def _differences(replayed: Replay, verbose: bool) -> Iterator[str]:
    shown = replayed.differences if verbose else replayed.differences[:1]
    for difference in shown:
        yield f"    {difference.field}" + (f", {difference.place}" if difference.place else "")
        yield f"      kernel  {difference.kernel}"
        yield f"      model   {difference.model}"
    others = ", ".join(difference.field for difference in replayed.differences[len(shown) :])
    if others:
        yield f"      also    {others}"


def _summary(results: Sequence[Result]) -> Iterator[str]:
    counts: dict[str, Counter[str]] = {}
    for result in results:
        counts.setdefault(result.kernel, Counter())[result.verdict] += 1
    for kernel, verdicts in counts.items():
        compared = verdicts["agrees"] + verdicts["differs"]
        text = f"Linux {kernel}: {verdicts['agrees']} of {compared} maps agree in every field"
        yield text + (f", {verdicts['refused']} refused" if verdicts["refused"] else "")


def _evidence(results: Iterable[Result]) -> Iterator[Evidence]:
    for result in results:
        if result.replay is not None:
            yield Evidence(result.replay.spec, int(result.replay.agrees), 1)
