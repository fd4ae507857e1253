"""What reading costs grows no faster than what is read: measured at a size and at four times it.

``python tests/sources/test_growth.py`` prints the figures at full size: a log of a million lines, a
map of 100,000 entries, an archive of 10,000 logs.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from paravirt_mm.guard import Limits, call
from paravirt_mm.sources.inputs import divide
from tests.sources.packed import tar

HEAD = (
    "[    0.000000] Linux version 4.19.0 (a@b) #1 SMP\n"
    "[    0.000000] BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable\n"
    "[    0.000000] BIOS-e820: [mem 0x0000000000100000-0x000000003fffffff] usable\n"
    "[    0.000000] e820: last_pfn = 0x40000 max_arch_pfn = 0x400000000\n"
)


def long_log(lines: int) -> bytes:
    """A boot log of so many lines."""
    line = "[  {:>4}.000000] usb 1-1: new high-speed USB device number {} using xhci_hcd\n"
    return (HEAD + "".join(line.format(n % 9999, n) for n in range(lines - 4))).encode()


def large_map(entries: int) -> bytes:
    """A log whose map has so many entries."""
    line = "BIOS-e820: [mem 0x{:016x}-0x{:016x}] {}\n"
    kinds = ("usable", "reserved", "ACPI NVS")
    return "".join(
        line.format(n << 16, (n << 16) + 0x7FFF, kinds[n % 3]) for n in range(entries)
    ).encode()


def archive(logs: int) -> bytes:
    """A tar archive of so many logs."""
    content = HEAD.encode()
    return tar(*((f"{number}.log", content) for number in range(logs)))


def cost(path: str) -> tuple[float, int, int]:
    """Read all of a file; return seconds of processor time, bytes of memory, and machines."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    machines = sum(1 for part in divide([path]) for _ in part.machines(None))
    seconds = time.process_time() - began
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before << 10, machines


def measured(make: Callable[[int], bytes], size: int) -> tuple[float, int, int]:
    """Return what an input of that size costs, the least of three times, each in a fresh child."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "input"
        path.write_bytes(make(size))
        limits = Limits(cpu=120.0, memory=1 << 30)
        return min(call(cost, str(path), limits=limits) for _ in range(3))


FULL = {
    "a log of a million lines": (long_log, 1_000_000),
    "a map of 100,000 entries": (large_map, 100_000),
    "an archive of 10,000 logs": (archive, 10_000),
}


@pytest.mark.slow
@pytest.mark.parametrize("make", [long_log, large_map, archive])
def test_four_times_as_much_costs_four_times_as_much(make: Callable[[int], bytes]) -> None:
    """Time with half of it to spare, the least of three tries: a processor that others use, too,
    takes longer by chance, never less; memory with a few MiB of what is needed for anything.
    """
    size = next(full for which, full in FULL.values() if which is make) // 50
    seconds, memory, machines = measured(make, size)
    more_seconds, more_memory, more_machines = measured(make, 4 * size)
    assert more_machines == (4 * machines if make is archive else machines)
    for _ in range(2):
        if more_seconds < 6 * seconds + 0.02:
            break
        more_seconds = min(more_seconds, measured(make, 4 * size)[0])
    assert more_seconds < 6 * seconds + 0.02
    assert more_memory < 4 * memory + (16 << 20)


def main() -> None:
    """Print a table."""
    for name, (make, size) in FULL.items():
        quarter, whole = measured(make, size // 4), measured(make, size)
        print(
            f"{name}: {whole[0]:.2f} s of processor time, {whole[1] >> 20} MiB;"
            f" a quarter of it: {quarter[0]:.2f} s, {quarter[1] >> 20} MiB"
            f" (ratio {whole[0] / quarter[0]:.1f})"
        )


if __name__ == "__main__":
    sys.exit(main())
