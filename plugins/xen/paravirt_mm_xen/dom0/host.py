"""The host that a dom0 boots on in QEMU: as the firmware has it, or with a machine's own map.

Xen takes the memory map from its boot loader where it is told not to ask the BIOS
(``no-real-mode``), so the loader's copy is exchanged before Xen's first instruction (`Host.e820`).
dom0 sees the host's map, cut where its own pages end; a machine's map becomes dom0's if the host
has that map and, behind it, RAM for the hypervisor.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from paravirt_mm import GIB, MIB, PAGE_SIZE, E820Type, InputError, Machine, RangeSet, align_up
from paravirt_mm_xen.domain.layout import with_first_page

Entry = tuple[int, int, int]
"""An e820 entry: ``[start, end)`` in bytes, and the type's number."""

LOW_END = 3 * GIB
"""Below it QEMU's PC has RAM however much there is; up to 4 GiB it has none if there is more."""
TOP = 1000 * GIB
_XEN_ROOM = 384 * MIB
"""RAM beside dom0's: the hypervisor's own, and the kernel's file while dom0 is built."""
_XEN_SHARE = 64
"""It has about one byte of tables for so many of the host's (frame table, machine-to-physical)."""
_FIRMWARE_ROOM = 4 * MIB
"""Behind all RAM of the map, where the firmware keeps its own tables in memory."""
MAX_ENTRIES = 128


@attrs.frozen
class Host:
    """What QEMU and Xen are started with.

    ``mib`` is QEMU's memory, ``pages`` what dom0 gets of it. ``e820`` replaces the firmware's map
    (empty: it stays). ``initrd`` is how many bytes of initrd dom0 is given; ``gbpages`` whether the
    processor has pages of 1 GiB.
    """

    mib: int
    pages: int
    e820: tuple[Entry, ...] = ()
    initrd: int = 0
    gbpages: bool = True


def plain_host(mib: int = 1024, dom0_mib: int = 512) -> Host:
    """Return a host with the firmware's map."""
    return Host(mib, dom0_mib * MIB // PAGE_SIZE)


def host_of(machine: Machine) -> Host:
    """Return the host on which dom0 finds ``machine``'s map.

    Raises `InputError`, one line with what to do, where QEMU cannot be that host.
    """
    if machine.mode.name != "x86_64":
        raise InputError(f"{machine.mode.title}: only 64-bit kernels with four levels boot as dom0")
    entries = with_first_page(machine.host_map or machine.memory_map)
    ram = RangeSet((e.start, e.end) for e in entries if e.type is E820Type.RAM)
    for low, high in ram.within(LOW_END, 4 * GIB):
        raise InputError(
            f"RAM at {low:#x}-{high:#x}: QEMU's PC has none from 3 to 4 GiB; take it out of the map"
        )
    if ram.end > TOP:
        raise InputError(f"RAM above {TOP // GIB} GiB: QEMU cannot address it; cut the map there")
    for low, high in _not_of_dom0(machine):
        raise InputError(
            f"the machine has something at {low:#x}-{high:#x}: Xen cannot tell dom0 of it; take it "
            "out of 'reserved'"
        )
    room = align_up(_XEN_ROOM + ram.end // _XEN_SHARE, MIB)
    start = _behind([(e.start, e.end) for e in entries], ram.end, room)
    e820 = (*((e.start, e.end, int(e.type)) for e in entries), (start, start + room, 1))
    if len(e820) > MAX_ENTRIES:
        raise InputError(
            f"the map has over {MAX_ENTRIES - 1} entries: Xen takes no more; join some"
        )
    end = start + room + _FIRMWARE_ROOM
    initrd = machine.initrd
    return Host(
        mib=(end if end <= LOW_END else max(end - GIB, 4 * GIB)) // MIB,
        pages=with_first_page(machine.memory_map).ram_pages().total // PAGE_SIZE,
        e820=tuple(sorted(e820)),
        initrd=initrd[1] - initrd[0] if initrd else 0,
        gbpages=machine.features.gbpages,
    )


def _not_of_dom0(machine: Machine) -> RangeSet:
    """Return what is reserved and neither the kernel's, nor the initrd's, nor in the first MiB."""
    taken = RangeSet(machine.reserved)
    taken.discard(0, MIB)
    taken.discard(*machine.kernel.loaded)
    if machine.initrd is not None:
        taken.discard(*machine.initrd)
    return taken.intersection(machine.memory_map.ram_pages())


def _behind(entries: Sequence[tuple[int, int]], start: int, room: int) -> int:
    """Return the first place behind ``start`` for so much RAM that no entry lies on."""
    taken = RangeSet(entries)
    taken.add(LOW_END, 4 * GIB)
    at = align_up(start, MIB)
    while overlap := list(taken.within(at, at + room + _FIRMWARE_ROOM)):
        at = align_up(overlap[-1][1], MIB)
    return at
