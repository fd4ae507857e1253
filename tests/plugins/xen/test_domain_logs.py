"""Where the domain builders put things, as nine hypervisors printed it; what dom0 stands on."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from paravirt_mm import (
    MODES,
    BootState,
    E820Type,
    KernelImage,
    Machine,
    MemoryMap,
    Scenario,
    SpecError,
    bundled,
)
from paravirt_mm.registry import Plugin
from paravirt_mm.sources.bootlog.facts import Fact
from paravirt_mm.sources.bootlog.lines import LineVerdict
from paravirt_mm.sources.bootlog.xen import HypervisorScan
from paravirt_mm_xen.backend import Xen
from paravirt_mm_xen.domain.arrangement_log import check_arrangement, predict, read_given
from paravirt_mm_xen.domain.collisions import (
    HANDLINGS,
    Collision,
    Fate,
    find_collisions,
    needs,
    summary,
)
from paravirt_mm_xen.domain.layout import (
    DomainKind,
    P2mPlace,
    Part,
    arrange,
    boot_l1_pages,
    boot_tables_needed,
    builder_tables,
    first_allocation,
    high_p2m_frames,
)
from paravirt_mm_xen.verify import guest_machine

MIB = 1 << 20
PAGE = 4096
X86_64, PAE = MODES["x86_64"], MODES["i386-pae"]


def _logs() -> dict[str, list[Fact]]:
    found: dict[str, HypervisorScan] = {}
    name = ""
    path = Path(__file__).parent / "data/arrangements.txt"
    for number, line in enumerate(path.read_text(encoding="ascii").splitlines(), 1):
        if line.startswith("== "):
            name = line[3:]
            found[name] = HypervisorScan()
        elif not line.startswith("#"):
            found[name].feed(path.name, number, line)
    return {name: scan.facts for name, scan in found.items()}


LOGS = _logs()


@pytest.mark.parametrize("name", LOGS)
def test_every_line_of_a_hypervisors_log_is_predicted(name: str) -> None:
    lines = check_arrangement(LOGS[name])
    differing = [line for line in lines if line.verdict is LineVerdict.DIFFERS]
    assert differing == []
    unchecked = [line for line in lines if line.verdict is LineVerdict.UNCHECKED]
    assert [line.why for line in unchecked] == ["told by the kernel"]
    assert len(lines) - len(unchecked) >= 7
    for line in lines:
        if line.verdict is LineVerdict.MATCH and line.why != "size":
            assert line.printed is not None
            assert line.printed.strip() == line.predicted


def test_all_logs_are_there() -> None:
    assert len(LOGS) == 9
    givens = [read_given(facts) for facts in LOGS.values()]
    assert all(given is not None for given in givens)
    assert sum(given.mode is PAE for given in givens if given) == 1
    assert sum(given.p2m is P2mPlace.HIGH for given in givens if given) == 8
    assert {given.pages for given in givens if given} >= {485265, 999460, 1 << 17, 1 << 20}


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"kernel": (0x1000000, 0x2697001)}, set()),
        ({"kernel": (0x1000000, 0x2697000)}, {"Loaded kernel", "Start info", "Page tables"}),
        ({"pages": 1 << 20}, set()),
        ({"pages": (1 << 20) - 1}, {"Phys-Mach map"}),
        ({"initrd_mapped": True}, {"Init. ramdisk", "Start info", "TOTAL"}),
        ({"p2m": P2mPlace.INLINE}, {"Phys-Mach map", "Page tables", "TOTAL"}),
    ],
)
def test_a_wrong_input_gives_other_lines(change: dict[str, object], differs: set[str]) -> None:
    given = read_given(LOGS["dom0-1027107p"])
    assert given is not None
    right, other = predict(given), predict(attrs.evolve(given, **change))
    changed = {name for name, span in right.places.items() if other.places[name] != span}
    assert changed - {"Loaded kernel"} >= differs - {"Loaded kernel"}
    if not differs:
        assert changed <= {"Loaded kernel"}


def test_a_log_without_total_is_not_guessed_at() -> None:
    facts = [fact for fact in LOGS["dom0-114688p"] if "TOTAL" not in fact.text]
    assert {line.verdict for line in check_arrangement(facts)} == {LineVerdict.UNCHECKED}
    assert check_arrangement([]) == []


@pytest.mark.parametrize("mib", range(4, 1024, 52))
def test_frames_of_64_bit_guests(mib: int) -> None:
    """Within one GiB of addresses: an L1 for every 2 MiB, and one table of each level above."""
    assert boot_tables_needed(X86_64, mib * MIB) == mib // 2 + 3


def test_half_a_megabyte_stays_free_to_the_byte() -> None:
    """Start info, 19 tables and the stack behind a kernel that ends 21 pages before the limit."""
    fits = 32 * MIB - (512 << 10) - 21 * PAGE
    assert arrange(X86_64, (MIB, fits), 0, 1 << 16, P2mPlace.HIGH).end == 32 * MIB
    over = arrange(X86_64, (MIB, fits + 1), 0, 1 << 16, P2mPlace.HIGH)
    assert over.end == 36 * MIB
    assert (over.page_tables[1] - over.page_tables[0]) // PAGE == 21


def test_a_second_gigabyte_of_initial_mapping_needs_another_l2() -> None:
    assert boot_tables_needed(X86_64, 1024 * MIB) == 512 + 3
    assert boot_tables_needed(X86_64, 1028 * MIB) == 514 + 4


def test_pae_guests_get_all_four_l2_tables() -> None:
    assert boot_tables_needed(PAE, 24 * MIB) == 1 + 4 + 12


@pytest.mark.parametrize("end", [4 * MIB, 68 * MIB, 1028 * MIB])
@pytest.mark.parametrize("kind", DomainKind)
def test_order_of_boot_tables(kind: DomainKind, end: int) -> None:
    """Xen: L4, L1, L2, L3, L1, L1 ...; the toolstack: level by level from the top."""
    order = list(builder_tables(X86_64, end, kind))
    levels = [level for level, _ in order]
    assert len(order) == boot_tables_needed(X86_64, end)
    if kind is DomainKind.DOM0:
        assert levels[:4] == [4, 1, 2, 3]
    else:
        assert levels == sorted(levels, reverse=True)
    l1 = [address for level, address in order if level == 1]
    assert l1 == list(range(0, end, 2 * MIB))
    pages = boot_l1_pages(X86_64, (0x4001000, 0x5000000), end, kind)
    assert len(set(pages)) == len(l1)
    assert pages == sorted(pages)
    assert pages[0] - 0x4001 == (1 if kind is DomainKind.DOM0 else levels.index(1))


def test_what_is_not_mapped_follows_the_first_allocation() -> None:
    """A kernel to 64 MiB needs 68 MiB, so Xen takes 128 MiB; initrd and p2m list come behind."""
    layout = arrange(
        X86_64, (16 * MIB, 64 * MIB), 31 * MIB, 1 << 20, P2mPlace.HIGH, initrd_mapped=False
    )
    assert layout.end == 68 * MIB
    assert layout.initrd == (128 * MIB, 159 * MIB)
    assert layout.high_p2m is not None
    assert layout.high_p2m[0] == 159 * MIB
    assert layout.high_p2m[1] - layout.high_p2m[0] == (8 * MIB) + 2 * PAGE
    assert layout.p2m is None


def test_a_domu_has_rings_and_no_power_of_two() -> None:
    layout = arrange(
        X86_64, (16 * MIB, 48 * MIB), 14 * MIB - 1, 1 << 17, P2mPlace.HIGH,
        initrd_mapped=False, kind=DomainKind.DOMU,
    )  # fmt: skip
    assert layout.xenstore == (48 * MIB + PAGE, 48 * MIB + 2 * PAGE)
    assert layout.console == (48 * MIB + 2 * PAGE, 48 * MIB + 3 * PAGE)
    assert layout.page_tables[0] == 48 * MIB + 3 * PAGE
    # A 5.17 guest of 512 MiB printed RAMDISK: [mem 0x03400000-0x04158fff].
    assert layout.end == 0x3400000
    assert layout.initrd is not None
    assert layout.initrd[0] == layout.end


@pytest.mark.parametrize(
    ("size", "inserted", "chunk"),
    [
        (64 * MIB, 0, 64 * MIB),
        (68 * MIB, 0, 128 * MIB),
        (68 * MIB, 4 * MIB, 64 * MIB),
        (68 * MIB, 4 * MIB - 4097, 128 * MIB),
        (68 * MIB, 4 * MIB - 4095, 64 * MIB),
    ],
)
def test_first_allocation(size: int, inserted: int, chunk: int) -> None:
    assert first_allocation(size, inserted) == chunk


@pytest.mark.parametrize(
    ("size", "frames"),
    [
        (2 * MIB, 512 + 2),
        (8 * MIB, 2048 + 2),
        (0x7A0120, 3 * 512 + 417 + 3),
        (PAGE, 1 + 3),
        (1024 * MIB, (1 << 18) + 2),
        (1026 * MIB, (1 << 18) + 512 + 3),
    ],
)
def test_frames_of_a_p2m_list_of_its_own(size: int, frames: int) -> None:
    assert high_p2m_frames(size) == frames


# -- what dom0 stands on ---------------------------------------------------------------------------

NVS_64M = [
    (0, 640 << 10, E820Type.RAM),
    (1 * MIB, 64 * MIB, E820Type.RAM),
    (64 * MIB, 64 * MIB + 0x13000, E820Type.NVS),
    (64 * MIB + 0x13000, 3072 * MIB, E820Type.RAM),
    (3072 * MIB, 4096 * MIB, E820Type.RESERVED),
    (4096 * MIB, 8192 * MIB, E820Type.RAM),
]
THREADRIPPER = KernelImage(0x1000000, 0x4000000 - 0x40000, 0x4000000 - 0x40000, 0x4000000)


def _host(entries: list[tuple[int, int, E820Type]], kernel: KernelImage = THREADRIPPER) -> Machine:
    return Machine(
        name="host", memory_map=MemoryMap.sanitise(entries), kernel=kernel, initrd=(0, 31 * MIB)
    )


def _places(machine: Machine, **options: str) -> list[tuple[Part, tuple[int, int]]]:
    state = Plugin("xen", Xen).create(options).pvmm_boot_state(machine)
    assert isinstance(state, BootState)
    return [(part, span) for part, span in state.places if isinstance(part, Part)]


def _found(entries: list[tuple[int, int, E820Type]], **options: str) -> list[Collision]:
    machine = _host(entries)
    pages = machine.memory_map.ram_pages().total // PAGE
    return list(find_collisions(_places(machine, **options), machine.memory_map, pages))


def test_threadripper_with_nvs_at_64_mib() -> None:
    """That kernel ends at 64 MiB: start info and the first boot tables lie on ACPI NVS."""
    found = [str(one) for one in _found(NVS_64M, kernel="6.1")]
    assert found == [
        "Start info on ACPI NVS at 0x4000000-0x40004b8",
        "Page tables on ACPI NVS at 0x4001000-0x4013000",
    ]


NVS = "on ACPI NVS at 0x4000000-0x40"
INFO, TABLES = f"Start info {NVS}004b8", "Page tables on ACPI NVS at 0x4001000-0x4013000"


@pytest.mark.parametrize(
    ("kernel", "told"),
    [
        # Everything is inside the initial mapping, and what lies at 64 MiB is the initrd.
        ("3.2", f"unnoticed: Init. ramdisk {NVS}13000"),
        # The p2m list is mapped after the kernel: it is what lies at 64 MiB.
        ("4.2", f"unnoticed: Phys-Mach map {NVS}13000"),
        ("4.3", f"panic: {TABLES}; unnoticed: {INFO}"),
        ("6.11", f"panic: {TABLES}; unnoticed: {INFO}"),
        ("6.12", f"moved: {INFO}, {TABLES}"),
    ],
)
def test_what_releases_make_of_it(kernel: str, told: str) -> None:
    run = Scenario.of(_host(NVS_64M), "incremental:variant=linux", f"xen:kernel={kernel}").run()
    assert run.figures["dom0_collisions"] == told


def test_without_a_release_the_first_that_boots_is_named() -> None:
    found = _found(NVS_64M, kernel="6.1")
    assert needs(found) == "needs Linux 6.12"
    assert needs(_found(NVS_64M)) == "needs Linux 4.3"
    assert summary([]) == "none"


def test_reserved_memory_cannot_be_moved() -> None:
    reserved = [(a, b, E820Type.RESERVED if t is E820Type.NVS else t) for a, b, t in NVS_64M]
    found = _found(reserved, kernel="6.12")
    assert needs(found) == "no release of Linux boots"


def test_nvs_moves_only_where_the_host_has_ram_behind_dom0() -> None:
    """The counterpart must lie above dom0's own memory, at the end of an entry large enough."""
    tight = [entry for entry in NVS_64M if entry[0] < 4096 * MIB]
    size = 19 * PAGE  # of what must move
    places = _places(_host(NVS_64M), kernel="6.12")
    for above, told in (
        (0, "no release of Linux boots"),
        (size - PAGE, "no release of Linux boots"),
        (size, "needs Linux 6.12"),
    ):
        ram = [(4096 * MIB, 4096 * MIB + above, E820Type.RAM)] if above else []
        host = MemoryMap.sanitise([*tight, *ram])
        # As many pages as the RAM below reaches: nothing of it is left for a swap.
        assert needs(find_collisions(places, host, (3072 * MIB) // PAGE)) == told


def test_unusable_memory_is_ram_to_dom0_and_holes_are_not() -> None:
    unusable = [(a, b, E820Type.UNUSABLE if t is E820Type.NVS else t) for a, b, t in NVS_64M]
    assert _found(unusable, kernel="6.1") == []
    hole = [entry for entry in NVS_64M if entry[2] is not E820Type.NVS]
    assert "Page tables on hole at 0x4001000-0x4013000" in map(str, _found(hole, kernel="6.1"))


def test_p2m_list_and_initrd_are_moved_since_4_3() -> None:
    at_128m = [
        (0, 128 * MIB, E820Type.RAM),
        (128 * MIB, 129 * MIB, E820Type.NVS),
        (129 * MIB, 2048 * MIB, E820Type.RAM),
        (3072 * MIB, 4096 * MIB, E820Type.RAM),
    ]
    assert [str(one) for one in _found(at_128m, kernel="5.10")] == [
        "Init. ramdisk on ACPI NVS at 0x8000000-0x8100000"
    ]
    told = "moved: Init. ramdisk on ACPI NVS at 0x8000000-0x8100000"
    assert summary(_found(at_128m, kernel="5.10"), (5, 10)) == told


def test_a_domu_has_no_host_to_collide_with() -> None:
    run = Scenario.of(_host(NVS_64M), "incremental:variant=linux", "xen:domain=domU").run()
    assert "dom0_collisions" not in run.figures
    assert Part.XENSTORE in [part for part, _ in run.trace.start.boot.places]


def test_bundled_machines_have_room_for_an_ordinary_dom0() -> None:
    run = Scenario.of(bundled("lenovo-x230-8g"), "incremental:variant=linux", "xen").run()
    assert run.figures["dom0_collisions"] == "none"


@pytest.mark.parametrize("kernel", ["2.6.36", "six", "6"])
def test_releases_that_cannot_be_dom0(kernel: str) -> None:
    with pytest.raises(SpecError):
        Xen(kernel=kernel)


def test_replay_limit_is_bounded() -> None:
    with pytest.raises(SpecError, match=r"not in 0\.\.4096"):
        Xen(replay_limit=5000)


def test_changes_are_in_order_and_outcomes_sort() -> None:
    assert [change.since for change in HANDLINGS] == sorted(change.since for change in HANDLINGS)
    assert Fate.PANIC > Fate.UNNOTICED > Fate.MOVED


def test_kernel_decides_the_layout() -> None:
    machine = guest_machine(256)
    old, middle, new = (
        dict(_places(machine, kernel=release)) for release in ("3.2", "3.18", "4.3")
    )
    assert old[Part.INITRD][0] == old[Part.KERNEL][1]
    assert middle[Part.INITRD][0] > middle[Part.BOOT_STACK][1]
    assert middle[Part.P2M][0] == middle[Part.KERNEL][1]
    assert new[Part.P2M][0] >= new[Part.INITRD][1]
    assert new[Part.START_INFO][0] == new[Part.KERNEL][1]
