"""``paravirt-mm verify kernel``: the models against what real kernel code did."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import attrs
import click

from paravirt_mm.cli import reading
from paravirt_mm.cli.output import progress
from paravirt_mm.cli.recording import record_option
from paravirt_mm.errors import ExitCode
from paravirt_mm.evidence import Evidence, record_evidence
from paravirt_mm.registry import Registry, default_registry
from paravirt_mm.verify.kernel.compare import Replay, replay_file

JUDGES = ("oracle", "naive")
"""Kinds of evidence (`paravirt_mm.evidence.KINDS`) that such files can be."""


@click.command("kernel")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option(
    "--judge", type=click.Choice(JUDGES), default=JUDGES[0], show_default=True,
    help="Whose results these are: real kernel code's, or those of a plain model written apart "
    "(tests/verify/naive_linux.py prints such files).",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print every machine's result as JSON.")
@click.option(
    "-v", "--verbose", is_flag=True, help="Show every field that differs, not only the first."
)
@record_option
def command(
    files: tuple[str, ...], judge: str, as_json: bool, verbose: bool, record_to: Path | None
) -> ExitCode:
    """Replay oracle files: machines, and what the page-table code of real Linux kernels did.

    FILE has one machine a line (JSON; .jsonl, .jsonl.xz, .jsonl.gz, - for standard input). Compared
    are: ranges and page sizes, guessed blocks and what of them was used, brk tables, every table's
    level, pfn and address, the order in which tables are handed to the paravirt hook, the leaf
    mappings, reservations, panics.
    """
    registry = default_registry()
    replays = list(progress(_all(files, registry), "replaying"))
    click.echo(_json(replays) if as_json else _text(replays, verbose))
    if record_to is not None:
        record_evidence(record_to, judge, _evidence(replays))
    return ExitCode.OK if all(replay.agrees for replay in replays) else ExitCode.FINDINGS


def _all(files: Sequence[str], registry: Registry) -> Iterable[Replay]:
    for path in files:
        yield from reading.reading_each(replay_file, path, registry)


def _json(replays: Sequence[Replay]) -> str:
    return json.dumps(
        {
            "agree": all(replay.agrees for replay in replays),
            "replays": [{**attrs.asdict(replay), "agrees": replay.agrees} for replay in replays],
        },
        indent=1,
    )


def _text(replays: Sequence[Replay], verbose: bool) -> str:
    lines = []
    for replay in replays:
        shown = replay.differences if verbose else replay.differences[:1]
        for number, difference in enumerate(shown):
            head = f"{replay.where} {replay.machine}, Linux {replay.kernel}: "
            lines.append(f"{head if not number else '  '}{difference.field}")
            lines[-1] += f", {difference.place}" if difference.place else ""
            lines += [f"    kernel  {difference.kernel}", f"    model   {difference.model}"]
        if len(replay.differences) > len(shown):
            others = ", ".join(difference.field for difference in replay.differences[1:])
            lines.append(f"    also    {others}")
    total: Counter[tuple[str, str]] = Counter()
    agree: Counter[tuple[str, str]] = Counter()
    fields: Counter[str] = Counter()
    for replay in replays:
        key = replay.kernel, _model(replay)
        total[key] += 1
        agree[key] += replay.agrees
        fields[replay.kernel] = max(fields[replay.kernel], len(replay.fields))
    for (kernel, spec), count in total.items():
        lines.append(
            f"Linux {kernel}, {spec}: {agree[kernel, spec]} of {count} machines agree"
            f" in all {fields[kernel]} fields"
        )
    return "\n".join(lines)


def _evidence(replays: Sequence[Replay]) -> Iterable[Evidence]:
    for replay in replays:
        yield Evidence(_model(replay), int(replay.agrees), 1)


def _model(replay: Replay) -> str:
    """Return the spec of the model, without how much brk the machine leaves it."""
    return replay.spec.partition(",brk_pages")[0]
