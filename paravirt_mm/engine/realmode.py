"""Code that runs in real mode needs a place below 1 MiB: without one a kernel stops, whichever way
it builds its tables.

Processors start in real mode, and wake up in it, so their first code (the trampoline) lies where
that reaches. One row a change; a release behaves as the last row that is not newer than it.

Source: arch/x86/kernel/trampoline.c (2.6.31 to 3.4; setup_trampolines since 2.6.39) and
arch/x86/realmode/init.c (reserve_real_mode, init_real_mode); sizes from boot logs ("Base memory
trampoline at ..."). Guests of Xen PV need none since 6.2 (commit f1e525009493, "x86/boot: Skip
realmode init code when running as Xen PV guest"; in review of 28 December 2022 for 6.0.16, as
patch 389 of 1073, and in the branch linux-6.1.y that became 6.1.2). Not read in a tag: the releases
2.6.33, 2.6.39 and 4.9 of the rows below.
"""

from __future__ import annotations

from collections.abc import Generator

import attrs

from paravirt_mm.engine.boot import Boot
from paravirt_mm.engine.panic import KernelPanic
from paravirt_mm.engine.steps import Step, StepResult
from paravirt_mm.machine.paging import ISA_END, PAGE_SIZE
from paravirt_mm.machine.release import Version, parse_release


@attrs.frozen
class Trampoline:
    """What releases do from ``since`` on.

    ``pages`` are needed in one piece by a 32-bit and by a 64-bit kernel. ``at_once``: without them
    the kernel stops before it maps memory; otherwise it goes on until it wants to use them.
    """

    since: Version
    pages: tuple[int, int]
    at_once: bool = True

    @property
    def panic(self) -> str:
        """The words with which the kernel gives up."""
        return (
            "Cannot allocate trampoline"
            if self.at_once
            else "Real mode trampoline was not allocated"
        )


TRAMPOLINES: tuple[Trampoline, ...] = (
    Trampoline((2, 6, 33), (1, 2)),
    Trampoline((2, 6, 39), (4, 5)),
    Trampoline((3, 5), (4, 6)),
    Trampoline((4, 9), (4, 6), at_once=False),
)
"""Oldest first. Before, its place was fixed (0x6000), and nobody looked what is there."""
NOT_IN_GUESTS_SINCE: tuple[Version, ...] = ((6, 0, 16), (6, 1, 2), (6, 2))
"""First releases, of stable series and of all, that ask for no place where the hypervisor starts
their processors.
"""


def missing_trampoline(boot: Boot, kernel: str) -> Trampoline | None:
    """Return what a release lacks for its trampoline; None: nothing.

    What is reserved counts as free, since a log tells of the trampoline itself as reserved.
    """
    release = parse_release(kernel)
    known = [row for row in TRAMPOLINES if row.since <= release]
    if not known or (boot.state.typed and _guests_need_none(release)):
        return None
    needed = known[-1].pages[0 if boot.mode.is_32bit else 1] * PAGE_SIZE
    low = boot.memblock.memory(PAGE_SIZE, ISA_END)
    return None if any(end - start >= needed for start, end in low) else known[-1]


def _guests_need_none(release: Version) -> bool:
    *series, mainline = NOT_IN_GUESTS_SINCE
    return release >= mainline or any(
        since[:2] == release[:2] and since <= release for since in series
    )


def with_trampoline(
    boot: Boot, kernel: str, steps: Generator[Step, StepResult, None]
) -> Generator[Step, StepResult, None]:
    """Yield the steps of a kernel, which stops where its trampoline has no place.

    ``kernel`` is the release, such as 3.7: up to 4.8 it stops before the first step, later after
    the last. Raises `KernelPanic`.
    """
    missing = missing_trampoline(boot, kernel)
    if missing and missing.at_once:
        raise KernelPanic(missing.panic)
    yield from steps
    if missing:
        raise KernelPanic(missing.panic)
