"""Damage inputs and throw them at everything that reads: ``python tests/fuzz/fuzz.py --help``.

A case is (target, seed, number) and nothing else, so that each finding can be made again. The cases
of a target run in the guarded child; a finding is an exception that is not ours, a process that
dies, more than `SECONDS` of processor time or more than a GiB of memory. Inputs of findings are
written to a folder; those that were mended move to tests/fuzz/found, where they are tests.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import attrs

sys.path[:0] = [str(Path(__file__).parent)]

from mutate import damaged  # noqa: E402
from targets import ON_PURPOSE, TARGETS, Target  # noqa: E402

from paravirt_mm.guard import MIB, Limits, Stopped, guarded  # noqa: E402

SECONDS = 10.0
LIMITS = Limits(cpu=SECONDS, wall=120.0, memory=1024 * MIB)


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


def fuzz(name: str, seed: int, first: int, count: int, seconds: float) -> Iterator[Finding | None]:
    """Yield a finding or None for each of ``count`` cases, until the time is over."""
    target = TARGETS[name]
    end = time.monotonic() + seconds
    target.seeds()
    with tempfile.TemporaryDirectory(prefix="paravirt-mm-fuzz-") as folder:

        def work(skip: int) -> Iterator[str]:
            for number in range(first + skip, first + count):
                rng, data = case(target, name, seed, number)
                yield outcome(target, rng, data, Path(folder))

        for number, item in enumerate(guarded(work, LIMITS), first):
            if item:
                what = str(item) if isinstance(item, Stopped) else item
                yield Finding(name, seed, number, what, case(target, name, seed, number)[1])
            else:
                yield None
            if time.monotonic() > end:
                return


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
    total, found = 0, 0
    done = dict.fromkeys(names, 0)
    while time.monotonic() < end:
        for name in names:
            begin = time.monotonic()
            share = min(given.seconds / len(names), 30.0, end - begin)
            if share <= 0:
                break
            before = done[name]
            for finding in fuzz(name, given.seed, before, 1_000_000, share):
                done[name] += 1
                if finding is None:
                    continue
                found += 1
                given.out.mkdir(parents=True, exist_ok=True)
                path = given.out / f"{name.replace(' ', '-')}--{given.seed}-{finding.number}"
                path.write_bytes(finding.data)
                print(f"FOUND {path}\n{finding.what}", flush=True)
            count = done[name] - before
            total += count
            rate = count / max(time.monotonic() - begin, 1e-9)
            print(f"{name:16} {count:7} inputs, {rate:6.0f}/s", flush=True)
    print(f"{total} inputs, {found} findings, seed {given.seed}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
