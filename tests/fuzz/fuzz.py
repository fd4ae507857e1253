"""Damage inputs and throw them at everything that reads: ``python tests/fuzz/fuzz.py --help``.

A case is (target, seed, number) and nothing else, so that each finding can be made again. The cases
of a target run in the guarded child; a finding is an exception that is not ours, a process that
dies, more than `SECONDS` of processor time or more than a GiB of memory. Inputs of findings are
written to a folder; those that were mended move to tests/fuzz/found, where they are tests.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import attrs

sys.path[:0] = [str(Path(__file__).parent)]

from damage import damaged  # noqa: E402
from targets import ON_PURPOSE, TARGETS, Target  # noqa: E402

from paravirt_mm.guard import MIB, Limits, Stopped, guarded, limit_time  # noqa: E402

SECONDS = 10.0
LIMITS = Limits(cpu=SECONDS, wall=120.0, memory=1024 * MIB)
HEARTBEAT = 0.3
"""Seconds between two words of the child; a case that takes longer is told by itself."""
ROUND = 120.0
"""Seconds in which every target has its turn once."""


@attrs.frozen
class Finding:
    """What went wrong with which case; ``data`` is its input."""

    target: str
    seed: int
    number: int
    what: str
    data: bytes = attrs.field(repr=False)


def case(target: Target, name: str, seed: int, number: int) -> tuple[random.Random, bytes]:
    """Return what decides a case: its source of chance, and its input."""
    rng = random.Random(f"{name} {seed} {number}")  # repeatable, not secret
    return rng, damaged(rng, target.seeds())


def outcome(target: Target, rng: random.Random, data: bytes, folder: Path) -> str:
    """Let the target have an input; return a traceback, or nothing where all is well."""
    path = folder / f"input.{target.suffix}"
    path.write_bytes(data)
    try:
        target.act(path, rng)
    except ON_PURPOSE:
        return ""
    except MemoryError:
        raise
    except Exception:
        return traceback.format_exc()
    return ""


def fuzz(name: str, seed: int, first: int, count: int, seconds: float) -> Iterator[Finding | int]:
    """Yield findings, and between them how many of ``count`` cases were harmless, until the time is
    over.

    One child takes case after case. Before each it notes the number where its parent reads it when
    the child had to be ended, and its time begins anew.
    """
    target = TARGETS[name]
    end = time.monotonic() + seconds
    target.seeds()
    at = mmap.mmap(-1, 8)

    def work(skip: int) -> Iterator[tuple[int, str]]:
        told = time.monotonic()
        for number in range(_number(at) + 1 if skip else first, first + count):
            at[:] = number.to_bytes(8, "little")
            limit_time(LIMITS)
            rng, data = case(target, name, seed, number)
            what = outcome(target, rng, data, Path(folder))
            now = time.monotonic()
            if what or now - told > HEARTBEAT or number == first + count - 1:
                yield number, what
                told = now
            if now > end:
                return

    with tempfile.TemporaryDirectory(prefix="paravirt-mm-fuzz-") as folder:
        done = first
        for item in guarded(work, LIMITS):
            number, what = (_number(at), str(item)) if isinstance(item, Stopped) else item
            yield number - done + (not what)
            done = number + 1
            if what:
                yield Finding(name, seed, number, what, case(target, name, seed, number)[1])
            if time.monotonic() > end:
                return


def _number(at: mmap.mmap) -> int:
    return int.from_bytes(at[:], "little")


@attrs.define
class Tally:
    """What one target has cost so far, and what it has found."""

    inputs: int = 0
    findings: int = 0
    cpu: float = 0.0

    def __str__(self) -> str:
        rate = self.inputs / max(self.cpu, 1e-9)
        return f"{self.inputs:8} inputs {self.cpu:8.1f} s of processor {rate:7.0f}/s"


def cpu_seconds() -> float:
    """Return what this process and its children have used."""
    return sum(os.times()[:4])


def main() -> int:
    """Fuzz for a while; the exit code tells whether something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="in all [60]")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="[the time]")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="[all]")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), help="[build/fuzz]")
    given = parser.parse_args()
    names = given.target or list(TARGETS)
    end = time.monotonic() + given.seconds
    tallies = {name: Tally() for name in names}
    weights = sum(TARGETS[name].weight for name in names)
    turn = min(given.seconds, ROUND) / weights
    while (now := time.monotonic()) < end:
        for name, tally in tallies.items():
            begin, share = cpu_seconds(), min(turn * TARGETS[name].weight, end - now)
            for what in fuzz(name, given.seed, tally.inputs, 1 << 62, share):
                if isinstance(what, int):
                    tally.inputs += what
                else:
                    tally.inputs += 1
                    tally.findings += 1
                    path = _kept(what, given.out)
                    print(f"FOUND {path}\n{what.what}", flush=True)
            tally.cpu += cpu_seconds() - begin
            if (now := time.monotonic()) > end:
                break
        print(_summary(tallies, given.seed), flush=True)
    return 1 if any(tally.findings for tally in tallies.values()) else 0


def _kept(finding: Finding, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{finding.target.replace(' ', '-')}--{finding.seed}-{finding.number}"
    path.write_bytes(finding.data)
    return path


def _summary(tallies: dict[str, Tally], seed: int) -> str:
    lines = [f"{name:16} {tally}" for name, tally in tallies.items()]
    inputs, found, cpu = (
        sum(getattr(tally, field) for tally in tallies.values())
        for field in ("inputs", "findings", "cpu")
    )
    lines.append(f"{'':16} {Tally(inputs, found, cpu)}")
    return "\n".join([*lines, f"{inputs} inputs, {found} findings, seed {seed}", ""])


if __name__ == "__main__":
    sys.exit(main())
