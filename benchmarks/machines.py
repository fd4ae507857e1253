"""The machines that benchmarks run on, by size: made here, since nobody's log has them."""

from __future__ import annotations

from paravirt_mm import MODES, CpuFeatures, E820Type, Machine, MemoryMap

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
_LOW = [(0x1000, 0x9F000, E820Type.RAM), (MIB, 2 * GIB, E820Type.RAM)]


def guest(tebibytes: int) -> Machine:
    """Return a machine with RAM up to ``tebibytes`` and without large pages, like a Xen guest."""
    memory = MemoryMap.sanitise([*_LOW, (4 * GIB, tebibytes * TIB, E820Type.RAM)])
    return Machine(f"guest-{tebibytes}t", memory, features=CpuFeatures(pse=False))


def pieces(count: int) -> Machine:
    """Return a machine whose RAM lies in ``count`` pieces of 3 MiB and some odd pages."""
    raw, start = list(_LOW), 4 * GIB
    for number in range(count - len(raw)):
        raw.append((start, start + 3 * MIB + number % 7 * 4 * KIB, E820Type.RAM))
        start += 4 * MIB + (0 if number % 3 else 32 * KIB)
    return Machine(f"pieces-{count}", MemoryMap.sanitise(raw), mode=MODES["x86_64"])


def machine(name: str) -> Machine:
    """Return ``guest-64t``, ``pieces-10000``, or a machine that comes with the package."""
    kind, _, number = name.partition("-")
    if kind not in ("guest", "pieces"):
        from paravirt_mm import bundled  # its imports are no part of what others measure

        return bundled(name)
    if kind == "guest":
        return guest(int(number.removesuffix("t")))
    return pieces(int(number))
