"""A real kernel as dom0 as a row: `linux:image=` under `xen:hypervisor=`, from a recorded boot."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from paravirt_mm import (
    MIB,
    Cost,
    CpuFeatures,
    E820Type,
    EntryKind,
    EntryWrite,
    InputError,
    Machine,
    MemoryMap,
    Outcome,
    PageRun,
    Run,
    Scenario,
    SpecError,
    Way,
    load,
)
from paravirt_mm_xen.backend import Xen
from paravirt_mm_xen.dom0 import kept
from paravirt_mm_xen.dom0.compare import machine_of
from paravirt_mm_xen.dom0.host import Host, host_of, plain_host
from paravirt_mm_xen.dom0.recording import Dom0Recording, Kind, Request
from paravirt_mm_xen.dom0.row import Charges, recorded_boot
from paravirt_mm_xen.domain.layout import DomainKind
from paravirt_mm_xen.live.errors import XenBootError
from paravirt_mm_xen.live.pieces import Pieces

DATA = Path(__file__).parents[3] / "tests/data/xen"
QEMU_512M = DATA / "dom0-linux-6.1-xen-4.17-qemu-512m.json.xz"


@pytest.fixture(scope="module")
def recording() -> Dom0Recording:
    return Dom0Recording.load(QEMU_512M)


@attrs.define
class Booting:
    """Stands for QEMU: what "boots", and the hosts and parameters that were asked for."""

    recording: Dom0Recording
    image: Path
    asked: list[tuple[Host, str]] = attrs.field(factory=list)
    error: Exception | None = None

    def record(
        self, _image: Path, _pieces: Pieces, host: Host, *, parameters: str, seconds: float
    ) -> Dom0Recording:
        assert seconds == kept.SECONDS
        self.asked.append((host, parameters))
        if self.error is not None:
            raise self.error
        return self.recording

    def run(self, machine: Machine, options: str = "", backend: str = "xen:hypervisor=here") -> Run:
        return Scenario.of(machine, f"linux:image={self.image}{options}", backend).run()


@pytest.fixture
def booting(recording: Dom0Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Booting:
    image, xen = tmp_path / "vmlinuz", tmp_path / "xen"
    image.write_bytes(b"a kernel")
    xen.write_bytes(b"a hypervisor")
    found = Booting(recording, image)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "record", found.record)
    monkeypatch.setattr(kept, "find_pieces", lambda _: Pieces(xen, xen, xen, xen))
    return found


def test_the_figures_of_a_row_are_what_the_kernel_asked_for(booting: Booting) -> None:
    machine = load("qemu-512m")
    run = booting.run(machine)
    assert str(run.verdict) == "ok", run.traceback
    real = booting.recording.counts(inside=True)
    figures = {**run.figures, **run.extra}
    cleared = real["cleared L2"] + real["cleared L3"]
    assert figures["flips"] == real["made read-only"] == 218
    assert figures["pins_l1"] == figures["tables"] == real["PIN_L1_TABLE"] == 218
    assert figures["hypercalls"] == real["hypercalls"] - cleared == 656
    assert figures["multicall_batches"] == real["batches"] == 0
    assert figures["tlb_flushes"] == 2
    assert figures["xen.hypercalls_clearing"] == cleared
    assert figures["xen.booted"] == "Linux 6.1.0-50-amd64 on Xen 4.17.7"
    assert figures["steps"] == 4
    # What the model of that release does with that kernel is the same, figure by figure.
    linked = attrs.evolve(machine, kernel=run.trace.start.machine.kernel)
    model = Scenario.of(linked, "incremental:variant=linux,kernel=6.1", "xen:kernel=6.1").run()
    assert {**model.figures, "xen.booted": figures["xen.booted"]} == run.figures
    assert model.extra["xen.hypercalls_clearing"] == cleared


@pytest.mark.slow
def test_a_boot_is_made_once(booting: Booting) -> None:
    machine = load("qemu-512m")
    first, again = booting.run(machine), booting.run(machine)
    assert first.figures == again.figures
    assert len(booting.asked) == 1
    ((host, parameters),) = booting.asked
    assert (host, parameters) == (host_of(machine), "")
    # The first page is RAM that Linux keeps for itself.
    assert host.pages == machine.memory_map.ram_pages().total // 4096 + 1
    assert host.e820[0] == (0, 0x9FC00, 1)
    booting.run(machine, ",movable_node=yes")
    assert booting.asked[1:] == [(host, "movable_node")]
    booting.image.write_bytes(b"another kernel")
    booting.run(machine)
    assert len(booting.asked) == 3


def test_requests_that_share_a_hypercall_are_a_batch(booting: Booting) -> None:
    calls = list(booting.recording.calls)
    pins = [n for n, call in enumerate(calls) if call.command == "PIN_L1_TABLE"][-3:]
    for n in pins:
        calls[n] = attrs.evolve(calls[n], hypercall=calls[pins[0]].hypercall)
    booting.recording = attrs.evolve(booting.recording, calls=tuple(calls))
    run = booting.run(load("qemu-512m"))
    assert run.figures["multicall_batches"] == 1
    assert run.figures["hypercalls"] == 656


def test_a_kernel_that_gives_up_is_told(booting: Booting) -> None:
    booting.recording = attrs.evolve(booting.recording, panic="alloc_low_pages: no memory")
    run = booting.run(load("qemu-512m"))
    assert run.verdict.outcome is Outcome.PANIC
    assert run.verdict.detail == "alloc_low_pages: no memory"


def told(run: Run) -> str:
    assert run.verdict.outcome is Outcome.ERROR
    assert "\n" not in run.verdict.detail
    return run.verdict.detail


def test_what_cannot_be_compared_is_refused_in_a_line(booting: Booting) -> None:
    machine = load("qemu-512m")
    memory = machine.memory_map.with_range(256 * MIB, 257 * MIB, E820Type.RAM, None)
    less = attrs.evolve(machine, memory_map=memory)
    assert "only dom0 has RAM at 0x10000000-0x10100000" in told(booting.run(less))
    assert "boots no kernel there" in told(booting.run(machine, backend="xen"))
    booting.recording = attrs.evolve(booting.recording, mappings=())
    booting.image.write_bytes(b"a third kernel")
    assert "record it again" in told(booting.run(machine))
    booting.image.write_bytes(b"a kernel that Xen refuses")
    booting.error = XenBootError("6.1: Xen gave up: too small", ("a line", "of the console"))
    assert told(booting.run(machine)).endswith("6.1: Xen gave up: too small")
    with pytest.raises(SpecError, match="leave out domain=domU"):
        Xen(domain=DomainKind.DOMU, hypervisor="4.17")


def _machine(*ram: tuple[int, int], **more: Any) -> Machine:
    entries = [(*span, E820Type.RAM) for span in ram]
    return Machine(name="m", memory_map=MemoryMap.sanitise(entries), **more)


@pytest.mark.parametrize(
    ("machine", "complaint"),
    [
        (_machine((0, 64 * MIB), (3073 * MIB, 3074 * MIB)), "none from 3 to 4 GiB; take it out"),
        (_machine((0, 64 * MIB), (1 << 40, (1 << 40) + MIB)), "cut the map there"),
        (_machine((0, 64 * MIB), reserved=((40 * MIB, 41 * MIB),)), "take it out of 'reserved'"),
        (_machine(*((2 * n * MIB, (2 * n + 1) * MIB) for n in range(128))), "127 entries"),
        (attrs.evolve(load("qemu-pae-320m")), "only 64-bit kernels with four levels"),
    ],
)
def test_machines_that_no_host_can_be(machine: Machine, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as raised:
        host_of(machine)
    assert "\n" not in str(raised.value)


def test_a_host_has_the_map_and_room_for_xen() -> None:
    machine = _machine((0, 640 << 10), (MIB, 3000 * MIB), (4096 * MIB, 4608 * MIB))
    machine = attrs.evolve(machine, features=CpuFeatures(gbpages=True), initrd=(MIB, 3 * MIB))
    host = host_of(machine)
    assert host.e820[:3] == tuple((e.start, e.end, 1) for e in machine.memory_map)
    ((start, end, kind),) = host.e820[3:]
    assert (start, kind) == (4608 * MIB, 1)
    assert end - start > 384 * MIB
    # QEMU has its memory up to 3 GiB, and the rest from 4 GiB on.
    assert (host.mib + 1024) * MIB >= end + MIB
    assert (host.initrd, host.gbpages) == (2 * MIB, True)
    behind = host_of(_machine((0, 3071 * MIB)))
    assert behind.e820[-1][0] == 4096 * MIB
    assert Counter(kind for *_, kind in behind.e820) == {1: 2}


def test_where_xens_room_lies_and_how_large_it_is() -> None:
    """384 MiB and a 64th of where RAM ends, by MiB, where 4 MiB more are free; QEMU's PC has its
    memory below 3 GiB and from 4 GiB on."""
    for ram, start, room, mib in (
        (((0, 640 * MIB),), 640 * MIB, 394, 640 + 394 + 4),
        (((0, 641 * MIB - 4096),), 641 * MIB, 395, 641 + 395 + 4),
        (((0, 2644 * MIB),), 4096 * MIB, 426, 4096),  # less would all lie low
        # 3072 - 426 - 4 is where it still fits below 3 GiB; a page more, and it does not.
        (((0, 2642 * MIB),), 2642 * MIB, 426, 3072),
        (((0, 2642 * MIB + 4096),), 4096 * MIB, 426, 4096),
        (((0, MIB), (4096 * MIB, 5120 * MIB)), 5120 * MIB, 464, 5120 + 464 + 4 - 1024),
        (((0, MIB), (4096 * MIB, 1000 << 30)), 1000 << 30, 16384, None),
    ):  # fmt: skip
        host = host_of(_machine(*ram))
        assert max(host.e820) == (start, start + room * MIB, 1)
        assert mib is None or host.mib == mib
        assert host.pages == sum(high - low for low, high in ram) // 4096
    with pytest.raises(InputError, match="cut the map there"):
        host_of(_machine((0, MIB), (4096 * MIB, (1000 << 30) + 4096)))
    # What the firmware keeps is no place for it.
    kept = [(0, 640 * MIB, E820Type.RAM), (700 * MIB, 701 * MIB, E820Type.ACPI)]
    host = host_of(Machine("m", MemoryMap.sanitise(kept)))
    assert (701 * MIB, (701 + 394) * MIB, 1) in host.e820
    assert host_of(_machine(*((2 * n * MIB, (2 * n + 1) * MIB) for n in range(127)))).mib
    assert plain_host() == Host(1024, 131072)
    # The first MiB, the kernel and the initrd are dom0's anyway.
    kernel = load("qemu-512m").kernel
    reserved = ((0, MIB), kernel.loaded, (200 * MIB, 201 * MIB))
    whole = _machine((0, 640 * MIB), kernel=kernel, reserved=reserved)
    assert host_of(attrs.evolve(whole, initrd=(200 * MIB, 201 * MIB))).initrd == MIB
    for wrong in ((200 * MIB, 201 * MIB - 1), (200 * MIB + 1, 201 * MIB)):
        with pytest.raises(InputError, match="out of 'reserved'"):
            host_of(attrs.evolve(whole, initrd=wrong))


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=pytest.mark.slow if "linux-5.10" in path.name else ())
        for path in sorted(DATA.glob("dom0-*-small-132m.json.xz"))
    ],
    ids=lambda p: p.name,
)
def test_the_row_of_each_release_is_its_models(booting: Booting, path: Path) -> None:
    """5.10 passes its leaf entries to Xen one by one, and those of RAM without frames are empty."""
    booting.recording = Dom0Recording.load(path)
    machine = machine_of(booting.recording)
    release = booting.recording.release
    run = booting.run(machine)
    assert str(run.verdict) == "ok", run.traceback
    model = Scenario.of(
        machine, f"incremental:variant=linux,kernel={release}", f"xen:kernel={release}"
    ).run()
    assert {**model.figures, "xen.booted": run.extra["xen.booted"]} == run.figures
    passes = release.startswith("5.10")
    assert (run.figures["hypercall_writes"] > 512 * run.figures["tables"] / 2) is passes


def _charges(*calls: Request, begin: int = 0) -> Charges:
    """Of a dom0 with 64 MiB, whose page 0x50 is the L1 table of the first 2 MiB."""
    recording = Dom0Recording(
        "6.1.0", "4.17", 512, 64, (MIB, 2 * MIB, 2 * MIB, 3 * MIB, 4 * MIB), (), calls, begin,
        tables=((1, 0x50, 0),), e820=((0, 64 * MIB, 1),), pages=64 << 8,
    )  # fmt: skip
    return Charges.of(recording)


def _pages(*pages: PageRun) -> Any:
    return SimpleNamespace(runs=pages)


def test_requests_are_charged_to_the_page_that_they_name() -> None:
    flip = Request(Kind.UPDATE_VA_MAPPING, 1, target=7, flags=0x61)
    pin = Request(Kind.MMUEXT_OP, 2, pfn=7, command="PIN_L1_TABLE")
    calls = (
        flip, attrs.evolve(flip, target=8), attrs.evolve(flip, target=9, hypercall=3),
        attrs.evolve(flip, flags=0x63, hypercall=4),  # made writable
        pin, attrs.evolve(pin, pfn=8, command="PIN_L2_TABLE"), attrs.evolve(pin, pfn=20),
        attrs.evolve(pin, command="UNPIN_TABLE", hypercall=5),
        attrs.evolve(pin, command="NEW_BASEPTR", hypercall=6),
        attrs.evolve(pin, pfn=-1, command="TLB_FLUSH_ALL", hypercall=7),
    )  # fmt: skip
    charges = _charges(*calls)
    both = _pages(PageRun(7, 2))
    assert charges.made_readonly(both) == Cost(hypercalls={"update_va_mapping": 2}, batches=1)
    assert charges.made_readonly(both) == Cost(hypercalls={})
    assert charges.pinned(both) == Cost(hypercalls={"mmuext_op": 2}, batches=1, pinned={1: 1, 2: 1})
    assert charges.made_readonly(_pages(PageRun(9, 1))) == Cost(hypercalls={"update_va_mapping": 1})
    # A multicall that was told once is not told again; what is left comes at the end.
    assert charges.at_the_end() == Cost(
        hypercalls={"update_va_mapping": 1, "mmuext_op": 4}, flushes=2
    )
    assert charges.at_the_end() == Cost(hypercalls={})
    # What was asked before init_mem_mapping is not charged.
    assert _charges(*calls, begin=9).at_the_end() == Cost(hypercalls={"mmuext_op": 1}, flushes=1)


def test_entries_are_charged_by_level_and_empty_ones_counted() -> None:
    update = Request(Kind.MMU_UPDATE, 0, pfn=0x51, level=2, target=5, flags=0x67)
    calls = (
        update, attrs.evolve(update, hypercall=1), attrs.evolve(update, level=3, hypercall=2),
        attrs.evolve(update, target=-1, flags=0), attrs.evolve(update, level=4, target=-1, flags=0),
        # Empty leaf entries: of RAM that waits for its frames, and behind all RAM.
        attrs.evolve(update, pfn=0x50, level=1, index=3, target=-1, flags=0, hypercall=3),
        attrs.evolve(update, pfn=0x52, level=1, index=3, target=-1, flags=0, hypercall=4),
    )  # fmt: skip
    charges = _charges(*calls)
    assert dict(charges.cleared) == {1: 1, 2: 1, 4: 1}

    def written(level: int, count: int, live: bool = True, leaf: bool = False) -> Cost:
        kind = EntryKind.LEAF if leaf else EntryKind.TABLE
        return charges.written(EntryWrite(level, kind, count, live=live))

    passed = Way.HYPERCALL
    assert written(2, 1) == Cost(hypercalls={"mmu_update": 1}, batches=1, way=passed)
    assert written(2, 5) == Cost(hypercalls={"mmu_update": 1}, way=passed)
    assert written(2, 1) == Cost(way=Way.DIRECT)
    assert written(1, 1, leaf=True) == Cost(hypercalls={"mmu_update": 1}, way=passed)
    assert written(1, 1, leaf=True) == Cost(way=Way.EMULATED)
    assert written(1, 1, live=False, leaf=True) == Cost(way=Way.DIRECT)
    assert charges.at_the_end() == Cost(hypercalls={"mmu_update": 1})


def test_empty_entries_map_ram_that_waits_for_its_frames(recording: Dom0Recording) -> None:
    """Those behind the RAM are only counted: Linux clears what it does not map."""
    (table, base) = next((pfn, base) for level, pfn, base in recording.tables if level == 1)
    ram = machine_of(recording).memory_map.ram_pages()
    cleared = Request(Kind.MMU_UPDATE, 0, table, 0, 1)
    calls = tuple(attrs.evolve(cleared, index=index) for index in range(512))
    charges = Charges.of(attrs.evolve(recording, calls=calls, begin=0))
    waiting = [index for index in range(512) if base + index * 4096 in ram]
    assert 0 < len(waiting) < 512
    assert [call.index for call in charges.entries[1]] == waiting
    assert charges.cleared == {1: 512 - len(waiting)}
    above = tuple(attrs.evolve(call, pfn=1, level=2) for call in calls)
    assert Charges.of(attrs.evolve(recording, calls=above, begin=0)).cleared == {2: 512}


def test_a_host_has_its_map_in_order() -> None:
    """What lies behind the hypervisor's room stays there; without an initrd none is given."""
    entries = [(0, 64 * MIB, E820Type.RAM), (0xFEC0_0000, 0xFEC0_1000, E820Type.RESERVED)]
    host = host_of(Machine("m", MemoryMap.sanitise(entries)))
    assert [entry[0] for entry in host.e820] == [0, 64 * MIB, 0xFEC0_0000]
    assert host.initrd == 0


def test_recordings_are_kept_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG base directories: $XDG_CACHE_HOME, or ~/.cache where it is empty or not set."""
    monkeypatch.setenv("HOME", "/home/somebody")
    for given, home in (("/var/x", "/var/x"), ("", "/home/somebody/.cache")):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert kept._home() == Path(home) / "paravirt-mm/dom0"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert kept._home() == Path("/home/somebody/.cache/paravirt-mm/dom0")


def test_the_first_page_is_linuxs_and_all_other_memory_must_be_the_same(
    recording: Dom0Recording,
) -> None:
    machine = machine_of(recording)
    ram = machine.memory_map
    assert 0x2000 in ram.ram_pages()
    for low, high in ((0, 4096), (0x2000, 0x3000)):
        old, new = (E820Type.RAM, E820Type.RESERVED)
        if low not in ram.ram_pages():
            old, new = new, old
        other = attrs.evolve(machine, memory_map=ram.with_range(low, high, old, new))
        if (low, high) == (0, 4096):
            assert recorded_boot(recording, other).tables
        else:
            with pytest.raises(InputError, match="has RAM at"):
                recorded_boot(recording, other)


def test_a_leaf_that_maps_a_table_does_not_attach_it(recording: Dom0Recording) -> None:
    """Releases whose leaf entries go through Xen map tables so, too, in a later range."""
    machine = machine_of(recording)
    boot = recorded_boot(recording, machine)
    (level, table, _) = boot.tables[0]
    assert level == 1
    leaf = Request(Kind.MMU_UPDATE, 0, table, 5, 1, table, 0x61)
    mapped = attrs.evolve(recording, calls=(*recording.calls, leaf))
    assert recorded_boot(mapped, machine).tables == boot.tables
