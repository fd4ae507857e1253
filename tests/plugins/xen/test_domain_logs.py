"""Where the domain builders put things, as nine hypervisors printed it; what dom0 stands on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

from paravirt_mm import (
    MODES,
    BootState,
    DomainKernel,
    E820Type,
    Hypervisor,
    KernelImage,
    Machine,
    MemoryMap,
    PagingMode,
    Place,
    Scenario,
    SpecError,
    bundled,
)
from paravirt_mm.plugin import Plugin
from paravirt_mm.sources.bootlog.facts import Fact
from paravirt_mm.sources.bootlog.lines import LineVerdict
from paravirt_mm.sources.bootlog.xen import HypervisorScan
from paravirt_mm_xen.backend import Xen
from paravirt_mm_xen.domain.arrangement_log import check_arrangement, predict, read_told
from paravirt_mm_xen.domain.builders import RELEASES, builders_of
from paravirt_mm_xen.domain.collisions import (
    HANDLINGS,
    Collision,
    Fate,
    apart,
    boots,
    find_collisions,
)
from paravirt_mm_xen.domain.layout import (
    DomainKind,
    Given,
    P2mPlace,
    Part,
    arrange,
    boot_l1_pages,
    boot_tables_needed,
    builder_tables,
    first_allocation,
    high_p2m_frames,
    static_tables,
    table_pages,
    with_first_page,
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


def _given(**options: Any) -> Given:
    """A 64-bit domain whose p2m list has an address of its own, with these differences."""
    usual = {"mode": X86_64, "kernel": (MIB, 2 * MIB), "pages": 1 << 16, "p2m": P2mPlace.HIGH}
    return Given(**{**usual, **options})


@pytest.mark.parametrize("name", LOGS)
def test_every_line_of_a_hypervisors_log_is_predicted(name: str) -> None:
    lines = check_arrangement(LOGS[name])
    differing = [line for line in lines if line.verdict is LineVerdict.DIFFERS]
    assert differing == []
    unchecked = [line.why for line in lines if line.verdict is LineVerdict.UNCHECKED]
    told = read_told(LOGS[name])
    assert told is not None
    of_start_info = [] if told.xen else ["the log does not tell the release of Xen"]
    assert unchecked == [*of_start_info, "told by the kernel"]
    assert len(lines) - len(unchecked) >= 6
    for line in lines:
        if line.verdict is LineVerdict.MATCH and line.why != "size":
            assert line.printed is not None
            assert line.printed.split() == (line.predicted or "").split()


def test_a_start_info_of_no_release_differs() -> None:
    """Where the log does not tell which Xen it was, one of any release it must be."""
    facts = LOGS["dom0-1027107p"]
    told = read_told(facts)
    assert told is not None
    assert told.xen is None
    for more, verdict in ((0, LineVerdict.UNCHECKED), (1, LineVerdict.DIFFERS)):
        other = [
            attrs.evolve(fact, end=fact.end + more)
            if isinstance(fact, Place) and fact.name == Part.START_INFO
            else fact
            for fact in facts
        ]
        (line,) = (one for one in check_arrangement(other) if "Start info" in (one.predicted or ""))
        assert line.verdict is verdict


def test_all_logs_are_there() -> None:
    assert len(LOGS) == 14
    found = [told for told in map(read_told, LOGS.values()) if told is not None]
    assert len(found) == 14
    givens = [told.given for told in found]
    assert sum(given.mode is PAE for given in givens) == 2
    assert sum(given.p2m is P2mPlace.HIGH for given in givens) == 9
    pages = {given.pages for given in givens}
    assert pages >= {485265, 999460, 1 << 17, 1 << 20, 2007682 + 0x4000 + 13624}
    assert {told.xen for told in found} == {None, (3, 4, 1), (4, 0, 1), (4, 1, 1)}


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"kernel": (0x1000000, 0x2697001)}, set()),
        ({"kernel": (0x1000000, 0x2697000)}, {"Start info", "Page tables", "Boot stack"}),
        ({"pages": 1 << 20}, set()),
        ({"pages": (1 << 20) - 1}, {"Phys-Mach map"}),
        ({"initrd_mapped": True}, {"Init. ramdisk", "Start info", "TOTAL"}),
        ({"p2m": P2mPlace.INLINE}, {"Phys-Mach map", "Page tables", "TOTAL"}),
        ({"base": 0}, {"Start info", "Page tables", "Boot stack", "TOTAL"}),
        ({"builders": RELEASES[0]}, {"Start info"}),
        ({"kind": DomainKind.SHIM}, {"Xenstore ring", "Console ring", "Page tables"}),
    ],
)
def test_a_wrong_input_gives_other_lines(change: dict[str, object], differs: set[str]) -> None:
    told = read_told(LOGS["dom0-1027107p"])
    assert told is not None
    right = predict(told)
    other = predict(attrs.evolve(told, given=attrs.evolve(told.given, **change)))
    changed = {name for name, span in right.places.items() if other.places[name] != span}
    assert changed - {"Loaded kernel"} >= differs
    if not differs:
        assert changed <= {"Loaded kernel"}


def _verdicts(facts: list[Fact]) -> dict[str, LineVerdict]:
    lines = check_arrangement(facts)
    return {(line.printed or "").strip().split(":")[0]: line.verdict for line in lines}


def test_start_info_elsewhere_differs_whatever_its_length_tells() -> None:
    """Where the log does not say which Xen it is, a length of some release is none of another."""
    seen = 0
    for facts in LOGS.values():
        told = read_told(facts)
        if told is None or told.xen is not None:
            continue
        moved = [
            attrs.evolve(fact, start=fact.start + PAGE, end=fact.end + PAGE)
            if isinstance(fact, Place) and fact.name == Part.START_INFO
            else fact
            for fact in facts
        ]
        differing = [
            line for line in check_arrangement(moved) if line.verdict is LineVerdict.DIFFERS
        ]
        assert len(differing) == 1
        seen += 1
    assert seen


def test_a_release_that_does_not_fit_shows() -> None:
    """The length of start info is predicted from the release, not copied from the line."""
    facts = LOGS["dom0-xen-4.1.1-toshiba"]
    for version, differs in (
        ("4.1.1", set()),
        ("4.0.1", {"Dom0 alloc.", *AFTER_P2M} - {"TOTAL"}),
        ("4.13.0", {"Start info"}),
        ("3.3.0", {"Dom0 alloc.", *AFTER_P2M} - {"TOTAL"}),
    ):
        told = [
            attrs.evolve(fact, version=version) if isinstance(fact, Hypervisor) and fact.version
            else fact
            for fact in facts
        ]  # fmt: skip
        verdicts = _verdicts(told)
        found = {name for name, verdict in verdicts.items() if verdict is LineVerdict.DIFFERS}
        assert found - {"Dom0 alloc."} == differs - {"Dom0 alloc."}, version


AFTER_P2M = {"Phys-Mach map", "Start info", "Page tables", "Boot stack", "TOTAL"}


def test_without_the_number_of_pages_only_their_list_is_not_checked() -> None:
    facts = [fact for fact in LOGS["dom0-xen-4.1.1-toshiba"] if "Dom0 alloc" not in fact.text]
    verdicts = _verdicts(facts)
    assert verdicts.pop("Phys-Mach map") is LineVerdict.UNCHECKED
    assert verdicts.pop("ENTRY ADDRESS") is LineVerdict.UNCHECKED
    assert set(verdicts.values()) == {LineVerdict.MATCH}


@pytest.mark.parametrize(
    "lines",
    [
        [
            "VIRTUAL MEMORY ARRANGEMENT:",
            " Loaded kernel: ffffffff80200000->ffffffff80d1f3d8",
            " Phys-Mach map: ffffffff80d20000->ffffffff81c9d758",
            " TOTAL:         ffffffff80000000->ffffffff82000000",
        ],
        [
            "VIRTUAL MEMORY ARRANGEMENT:",
            " Loaded kernel: ffffffff80200000->80d20000",
            " Phys-Mach map: ffffffff80d20000->ffffffff81c9d758",
            " TOTAL:         ffffffff80000000->ffffffff82000000",
        ],
        [
            "Dom0 kernel: 32-bit, PAE, lsb, paddr 0x100000 -> 0xffffffff80d20000",
            "VIRTUAL MEMORY ARRANGEMENT:",
            " Loaded kernel: ffffffff80200000->ffffffff80d20000",
            " TOTAL:         ffffffff80000000->ffffffff82000000",
        ],
        [
            "PHYSICAL MEMORY ARRANGEMENT:",
            " Dom0 alloc.:   210000000->214000000 (999999999999999 pages to be allocated)",
            "VIRTUAL MEMORY ARRANGEMENT:",
            " Loaded kernel: ffffffff80200000->ffffffff80d20000",
            " Phys-Mach map: ffffffff80d20000->ffffffff81c9d758",
            " TOTAL:         ffffffff80000000->ffffffff82000000",
        ],
    ],
    ids=["no pages", "cut end", "widths disagree", "pages"],
)
def test_no_number_of_a_log_makes_it_count_forever(lines: list[str]) -> None:
    """A loop over the tables of what such a log says would run for days."""
    scan = HypervisorScan()
    for number, line in enumerate(lines, 1):
        scan.feed("xen.txt", number, f"(XEN) {line}")
    started = time.process_time()
    found = check_arrangement(scan.facts)
    assert time.process_time() - started < 1
    assert LineVerdict.UNCHECKED in {line.verdict for line in found}


def test_a_log_without_total_is_not_guessed_at() -> None:
    facts = [fact for fact in LOGS["dom0-114688p"] if "TOTAL" not in fact.text]
    assert {line.verdict for line in check_arrangement(facts)} == {LineVerdict.UNCHECKED}
    assert check_arrangement([]) == []


@pytest.mark.parametrize("mib", range(4, 1024, 52))
def test_frames_of_64_bit_guests(mib: int) -> None:
    """Within one GiB of addresses: an L1 for every 2 MiB, and one table of each level above."""
    assert boot_tables_needed(_given(), mib * MIB) == mib // 2 + 3


def test_half_a_megabyte_stays_free_to_the_byte() -> None:
    """Start info, 19 tables and the stack behind a kernel that ends 21 pages before the limit."""
    fits = 32 * MIB - (512 << 10) - 21 * PAGE
    assert arrange(_given(kernel=(MIB, fits))).end == 32 * MIB
    over = arrange(_given(kernel=(MIB, fits + 1)))
    assert over.end == 36 * MIB
    assert (over.page_tables[1] - over.page_tables[0]) // PAGE == 21


def test_a_second_gigabyte_of_initial_mapping_needs_another_l2() -> None:
    assert boot_tables_needed(_given(), 1024 * MIB) == 512 + 3
    assert boot_tables_needed(_given(), 1028 * MIB) == 514 + 4


@pytest.mark.parametrize(
    ("hypervisor_bits", "xen", "tables"),
    [
        (32, (4, 2), 1 + 4 + 12),
        (64, (3, 4, 1), 2 + 4 + 12),
        (64, (4, 2, 0), 2 + 4 + 12),
        (64, (4, 2, 1), 1 + 4 + 12),
        (64, (4, 17), 1 + 4 + 12),
    ],
)
def test_a_32_bit_dom0_gets_all_four_l2_tables(
    hypervisor_bits: int, xen: tuple[int, ...], tables: int
) -> None:
    """And an L4 of its own under a 64-bit Xen up to 4.2.0."""
    builders = builders_of(xen)
    assert builders is not None
    given = _given(mode=PAE, hypervisor_bits=hypervisor_bits, builders=builders)
    assert boot_tables_needed(given, 24 * MIB) == tables


@pytest.mark.parametrize("end", [4 * MIB, 68 * MIB, 1028 * MIB])
@pytest.mark.parametrize("kind", DomainKind)
def test_order_of_boot_tables(kind: DomainKind, end: int) -> None:
    """Xen: L4, L1, L2, L3, L1, L1 ...; the toolstack: level by level from the top."""
    order = list(builder_tables(X86_64, end, kind))
    levels = [level for level, _ in order]
    assert len(order) == boot_tables_needed(_given(kind=kind), end)
    if kind is not DomainKind.DOMU:
        assert levels[:4] == [4, 1, 2, 3]
    else:
        assert levels == sorted(levels, reverse=True)
    for level, span in ((1, 2 * MIB), (2, 1024 * MIB), (3, 1 << 39), (4, 1 << 48)):
        assert [address for at, address in order if at == level] == list(range(0, end, span))
    l1 = range(0, end, 2 * MIB)
    pages = boot_l1_pages(X86_64, (0x4001000, 0x5000000), end, kind)
    assert len(set(pages)) == len(l1)
    assert pages == sorted(pages)
    assert pages[0] - 0x4001 == (levels.index(1) if kind is DomainKind.DOMU else 1)


def test_what_is_not_mapped_follows_the_first_allocation() -> None:
    """A kernel to 64 MiB needs 68 MiB, so Xen takes 128 MiB; initrd and p2m list come behind."""
    layout = arrange(
        _given(
            kernel=(16 * MIB, 64 * MIB), initrd_bytes=31 * MIB - 4095, pages=1 << 20,
            initrd_mapped=False,
        )
    )  # fmt: skip
    assert layout.end == 68 * MIB
    assert layout.initrd == (128 * MIB, 159 * MIB - 4095)
    assert layout.high_p2m is not None
    assert layout.high_p2m[0] == 159 * MIB
    assert layout.high_p2m[1] - layout.high_p2m[0] == (8 * MIB) + 2 * PAGE
    assert layout.p2m is None


def test_what_is_inserted_into_the_first_allocation_is_whole_pages() -> None:
    """An initrd of 6 MiB less 100 bytes: 66 MiB of 72 are the chunk's, so that is 128 MiB."""
    layout = arrange(_given(kernel=(16 * MIB, 62 * MIB), initrd_bytes=6 * MIB - 100, pages=1 << 20))
    assert (layout.end, layout.initrd) == (72 * MIB, (62 * MIB, 68 * MIB - 100))
    assert layout.high_p2m == (134 * MIB, 142 * MIB + 2 * PAGE)


def test_what_a_log_says_of_xen_and_of_the_kernel() -> None:
    """Word size and version may stand in other lines; the kernel's last line is the one it got."""

    def place(name: str, start: int, end: int, section: Any = "virtual") -> Place:
        return Place(1, "", section, name, start, end)

    base = 0xFFFF_FFFF_8000_0000
    places = [
        place("Loaded kernel", base + 16 * MIB, base + 20 * MIB),
        place("TOTAL", base, base + 24 * MIB),
    ]
    kernels = [DomainKernel(1, "", 32, 1 * MIB, 2 * MIB), DomainKernel(2, "", 64, 3 * MIB, 4 * MIB)]
    said = [Hypervisor(1, "", version="4.17.2"), Hypervisor(2, "", bits=32)]
    for facts in ([*places, *kernels, *said], [*said[::-1], *kernels, *places]):
        told = read_told(facts)
        assert told is not None
        assert (told.xen, told.given.hypervisor_bits) == ((4, 17, 2), 32)
        assert (told.given.kernel, told.given.mode) == ((3 * MIB, 4 * MIB), X86_64)
    told = read_told([*places, Hypervisor(1, "", version="unstable")])
    assert told is not None
    assert (told.xen, told.given.hypervisor_bits) == (None, 64)
    assert told.given.kernel == (16 * MIB, 20 * MIB)


def test_how_wide_a_hypervisor_is_that_does_not_say_so() -> None:
    """As wide as it prints addresses, above a guest of 32 bits, whose p2m list has 4 bytes a page;
    a kernel that is mapped at 0 may be of either width.
    """
    base = 0xC000_0000

    def told(base: int, digits: int, *more: Fact) -> Any:
        def place(name: str, start: int, end: int) -> Place:
            text = f"{start:0{digits}x}->{end:0{digits}x}"
            return Place(1, text, "virtual", name, base + start, base + end)

        return read_told(
            [
                place("Loaded kernel", MIB, 2 * MIB),
                place("Phys-Mach map", 2 * MIB, 2 * MIB + 4096),
                Place(1, f"{base + 4 * MIB:0{digits}x}", "virtual", "TOTAL", base, base + 4 * MIB),
                *more,
            ]
        )

    assert told(base, 8).given.hypervisor_bits == 32
    assert told(base, 16).given.hypervisor_bits == 64
    assert told(base, 8).given.mode is MODES["i386-pae"]
    last = (1 << 32) - 2 * MIB  # where the kernel ends with the last address of 32 bits
    assert told(last, 16).given.mode is MODES["i386-pae"]
    assert told(last + 1, 16).given.mode is X86_64
    assert told(base, 8).given.pages == 1024
    allocated = Place(1, "", "physical", "Dom0 alloc.", 0, 2 * PAGE)  # and it says no more
    assert told(base, 8, allocated).given.pages == 1024
    whole = told(base, 8, attrs.evolve(allocated, pages=5))
    assert (whole.given.pages, whole.pages_told) == (2 + 5, True)
    empty = attrs.evolve(allocated, end=0)
    assert told(base, 8, attrs.evolve(empty, pages=1 << 40)).given.pages == 1 << 40
    assert told(base, 8, attrs.evolve(empty, pages=(1 << 40) + 1)) is None  # nobody has so many
    # What ends before it begins has no bytes; a kernel without any was not loaded.
    backwards = Place(1, "", "virtual", "Init. ramdisk", base + 2 * MIB, base + MIB)
    assert told(base, 8, backwards).given.initrd_bytes == 0
    kernel = Place(1, "", "virtual", "Loaded kernel", base + MIB, base + MIB)
    assert told(base, 8, kernel) is None
    assert told(base, 8, attrs.evolve(kernel, end=base + MIB + 1)).given.kernel == (MIB, MIB + 1)
    assert told(0, 16) is None
    assert told(0, 16, DomainKernel(1, "", 32, MIB, 2 * MIB)).given.mode is MODES["i386-pae"]


def test_static_tables_keep_away_from_brk() -> None:
    """Where the image is said to end behind brk, the tables lie in front of it."""
    kernel = KernelImage(16 * MIB, 20 * MIB, 19 * MIB, 20 * MIB)
    layout = arrange(_given(kernel=kernel.span))
    assert static_tables(X86_64, kernel, layout) == (19 * MIB - 3 * PAGE, 19 * MIB)
    shorter = attrs.evolve(kernel, end=18 * MIB)
    assert static_tables(X86_64, shorter, layout) == (18 * MIB - 3 * PAGE, 18 * MIB)
    # In an image of three whole pages they are all of it; one of less is too small to have them.
    behind = layout.boot_stack[1], layout.boot_stack[1] + 3 * PAGE
    for start, end, place in (
        (0, 3 * PAGE, (16 * MIB, 16 * MIB + 3 * PAGE)),
        (0, 4 * PAGE - 1, (16 * MIB, 16 * MIB + 3 * PAGE)),
        (1, 4 * PAGE, (16 * MIB + PAGE, 16 * MIB + 4 * PAGE)),
        (1, 4 * PAGE - 1, behind),
        (0, 3 * PAGE - 1, behind),
    ):
        small = KernelImage(16 * MIB + start, 16 * MIB + end, 16 * MIB + end, 16 * MIB + end)
        assert static_tables(X86_64, small, layout) == place


def test_parts_that_cannot_move_are_told_first() -> None:
    places = [
        (part, (n * MIB, (n + 1) * MIB))
        for n, part in enumerate(
            (Part.KERNEL, Part.INITRD, Part.P2M, Part.START_INFO, Part.PAGE_TABLES, Part.BRK), 1
        )
    ]
    found = find_collisions(places, MemoryMap.sanitise([(0, MIB, E820Type.RAM)]), 1)
    assert [one.part for one in found] == [
        Part.KERNEL, Part.BRK, Part.START_INFO, Part.PAGE_TABLES, Part.P2M, Part.INITRD,
    ]  # fmt: skip
    # A hole is nothing that could move away, whatever RAM there is elsewhere.
    assert found[0] == Collision(Part.KERNEL, (MIB, 2 * MIB), "hole", None, can_swap=False)
    assert find_collisions([], MemoryMap.sanitise([(0, 4096, E820Type.RAM)]), 1) == []


def test_tables_of_a_kernel_that_goes_on_behind_the_builders() -> None:
    """An initial mapping up to 1,020 MiB and 8 MiB more: a second L2, and four L1 of its own."""
    kernel = KernelImage(16 * MIB, 1016 * MIB, 1016 * MIB, 1016 * MIB)
    layout = arrange(_given(kernel=kernel.span, kind=DomainKind.DOMU))
    assert layout.end == 1020 * MIB
    static = static_tables(X86_64, kernel, layout, 4)
    pages = table_pages(X86_64, layout, static, DomainKind.DOMU, 4)
    assert {level: len(pfns) for level, pfns in pages.items()} == {4: 1, 3: 1, 2: 2, 1: 510 + 4}
    own = [*pages[4], *pages[3], *pages[2], *pages[1][510:]]
    assert own == list(range((static[1] >> 12) - 1, (static[0] >> 12) - 1, -1))
    low, high = layout.page_tables
    assert all(low >> 12 <= pfn < high >> 12 for pfn in pages[1][:510])


def test_what_an_old_dom0_is_clipped_to() -> None:
    """dom0_compute_nr_pages: its list and as much again in the last 2 GiB, behind kernel and
    initrd, each of whole pages.
    """
    given = _given(kernel=(16 * MIB, 20 * MIB + 5), initrd_bytes=3 * MIB + 1, pages=1 << 30)
    behind = 20 * MIB + PAGE
    assert given.clipped.pages == ((2 << 30) - behind - 3 * MIB - PAGE) // 16
    unmapped = attrs.evolve(given, initrd_mapped=False)
    assert unmapped.clipped.pages == ((2 << 30) - behind) // 16
    few = attrs.evolve(unmapped, pages=1 << 16)
    assert few.clipped is few


@pytest.mark.parametrize(
    ("mode", "bits", "fits"), [(X86_64, 64, False), (PAE, 32, False), (PAE, 64, True)]
)
def test_what_ends_with_the_last_address(mode: PagingMode, bits: int, fits: bool) -> None:
    """dom0_compute_nr_pages finds it beyond the end where the end, in as many bits, is 0 again:
    then there are more pages than were given, by half of what kernel and initrd take of the list.
    """
    entry = 4 if mode.is_32bit else 8
    addresses = 1 << 30 if mode.is_32bit else 2 << 30
    given = _given(mode=mode, hypervisor_bits=bits, pages=(addresses // 2 - 2 * MIB) // entry)
    assert given.clipped.pages == given.pages + (0 if fits else MIB // entry)
    one_less = attrs.evolve(given, pages=given.pages - 1)
    assert one_less.clipped is one_less


def test_linux_keeps_the_first_page() -> None:
    rest = (PAGE, MIB, E820Type.RAM)
    for first, whole in (
        ((0, PAGE, E820Type.RESERVED), [(0, MIB)]),
        ((0, PAGE, E820Type.ACPI), [(0, MIB)]),
        ((0, PAGE - 1, E820Type.RESERVED), [(PAGE, MIB)]),
        ((1, PAGE, E820Type.RESERVED), [(PAGE, MIB)]),
    ):
        found = with_first_page(MemoryMap.sanitise([first, rest]))
        assert list(found.ram_pages()) == whole
    assert not list(with_first_page(MemoryMap.sanitise([])))
    two = MemoryMap.sanitise([(0, 2 * PAGE, E820Type.RESERVED), (2 * PAGE, MIB, E820Type.RAM)])
    assert with_first_page(two) == two


def test_brk_is_a_part_of_its_own() -> None:
    """Xen knows one part, which it loads; Linux has its brk at the end of that, if it has one."""
    kernel = KernelImage(16 * MIB, 20 * MIB, 20 * MIB, 21 * MIB)
    stack = Part.BOOT_STACK, (30 * MIB, 31 * MIB)
    assert list(apart([(Part.KERNEL, (16 * MIB, 21 * MIB)), stack], kernel)) == [
        (Part.KERNEL, (16 * MIB, 20 * MIB)),
        (Part.BRK, (20 * MIB, 21 * MIB)),
        stack,
    ]
    for end in (19 * MIB, 20 * MIB):
        places = [(Part.KERNEL, (16 * MIB, end)), stack]
        assert list(apart(places, kernel)) == places


def test_a_domu_has_rings_and_no_power_of_two() -> None:
    layout = arrange(
        _given(
            kernel=(16 * MIB, 48 * MIB), initrd_bytes=14 * MIB - 1, pages=1 << 17,
            initrd_mapped=False, kind=DomainKind.DOMU,
        )
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
    ("size", "options", "frames"),
    [
        (2 * MIB, {}, 512 + 2),
        (8 * MIB, {}, 2048 + 2),
        (0x7A0120, {}, 3 * 512 + 417 + 3),
        (PAGE, {}, 1 + 3),
        (1024 * MIB, {}, (1 << 18) + 2),
        (1024 * MIB, {"gbpages": True}, (1 << 18) + 1),
        (1026 * MIB, {}, (1 << 18) + 512 + 3),
        (1026 * MIB, {"gbpages": True}, (1 << 18) + 512 + 2),
        (1025 * MIB, {"gbpages": True}, (1 << 18) + 256 + 3),
        # A guest of 16 GiB: every table of small pages, whatever the CPU has.
        (32 * MIB, {"kind": DomainKind.DOMU, "gbpages": True}, 8210),
        (32 * MIB + 1, {"kind": DomainKind.DOMU}, 8193 + 17 + 1 + 1),
    ],
)
def test_frames_of_a_p2m_list_of_its_own(size: int, options: dict[str, Any], frames: int) -> None:
    assert high_p2m_frames(_given(pages=-(-size // 8), **options)) == frames


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


def _figures(machine: Machine, **options: str) -> Mapping[str, Any]:
    spec = ",".join(f"{name}={value}" for name, value in options.items())
    backend = f"xen:{spec}" if spec else "xen"
    return Scenario.of(machine, "incremental:variant=linux", backend).run().figures


def _stands_on(entries: list[tuple[int, int, E820Type]], **options: str) -> str:
    """The figure; "none" where there is none."""
    figures = _figures(_host(entries), **options)
    told = figures.get("xen.dom0_stands_on", "none")
    assert isinstance(told, str)
    return told


NVS = "on ACPI NVS at 0x4000000-0x40"
INFO, TABLES = f"Start info {NVS}004b8", "Page tables on ACPI NVS at 0x4001000-0x4013000"


@pytest.mark.parametrize(
    ("kernel", "told"),
    [
        # Everything is inside the initial mapping, and what lies at 64 MiB is the initrd.
        ("3.2", f"unnoticed: Init. ramdisk {NVS}13000"),
        # The p2m list is mapped after the kernel: it is what lies at 64 MiB.
        ("4.2", f"unnoticed: Phys-Mach map {NVS}13000"),
        ("6.6.54", f"moved: {INFO}, {TABLES}"),
        ("6.10.13", f"moved: {INFO}, {TABLES}"),
        ("6.11.2", f"moved: {INFO}, {TABLES}"),
        ("6.12", f"moved: {INFO}, {TABLES}"),
    ],
)
def test_what_releases_make_of_it(kernel: str, told: str) -> None:
    assert _stands_on(NVS_64M, kernel=kernel) == told


@pytest.mark.parametrize("kernel", ["4.3", "6.1", "6.6.53", "6.7", "6.10.12", "6.11", "6.11.1"])
def test_kernels_that_look_and_cannot_move_it_panic(kernel: str) -> None:
    """That kernel ends at 64 MiB: start info and the first boot tables lie on ACPI NVS."""
    run = Scenario.of(_host(NVS_64M), "incremental:variant=linux", f"xen:kernel={kernel}").run()
    assert str(run.verdict) == f"panic: memory conflicts with E820 map: {TABLES}"


def test_without_a_release_those_that_boot_are_named() -> None:
    """In the layout of older kernels it is the initrd; with that of 4.3 the tables are fatal."""
    assert _stands_on(NVS_64M) == f"Init. ramdisk {NVS}13000: needs Linux 6.12"
    assert _figures(_host(NVS_64M))["xen.dom0_collisions"] == 1


def test_reserved_memory_cannot_be_moved() -> None:
    reserved = [(a, b, E820Type.RESERVED if t is E820Type.NVS else t) for a, b, t in NVS_64M]
    run = Scenario.of(_host(reserved), "incremental:variant=linux", "xen").run()
    assert str(run.verdict) == (
        "rejected: domain builder: Init. ramdisk on reserved at 0x4000000-0x4013000: "
        "no release of Linux boots, -22"
    )
    # The worst is told: what the kernel cannot move before what it can.
    below = (20 * MIB, 21 * MIB, E820Type.RESERVED)
    nvs = [NVS_64M[0], (MIB, 20 * MIB, E820Type.RAM), below, (21 * MIB, *NVS_64M[1][1:])]
    run = Scenario.of(_host([*nvs, *NVS_64M[2:]]), "incremental:variant=linux", "xen").run()
    assert "Loaded kernel on reserved at 0x1400000-0x1500000: no rel" in str(run.verdict)


def test_nvs_moves_only_where_the_host_has_ram_behind_dom0() -> None:
    """The counterpart must lie above dom0's own memory, at the end of an entry large enough."""
    tight = [entry for entry in NVS_64M if entry[0] < 4096 * MIB]
    size = 19 * PAGE  # of what must move
    places = _places(_host(NVS_64M), kernel="6.12")
    for above, moves in ((0, False), (size - PAGE, False), (size, True)):
        ram = [(4096 * MIB, 4096 * MIB + above, E820Type.RAM)] if above else []
        host = MemoryMap.sanitise([*tight, *ram])
        # As many pages as the RAM below reaches: nothing of it is left for a swap.
        found = find_collisions(places, host, (3072 * MIB) // PAGE)
        assert found
        assert boots(found, (6, 12)) is moves
    # The kernel swaps whole pages, however few bytes of the first and the last one it is about.
    for low, high in ((0, size - PAGE + 1), (PAGE - 1, size)):
        for above, moves in ((size - PAGE + 1, False), (size, True)):
            host = MemoryMap.sanitise(
                [
                    (MIB, 64 * MIB + low, E820Type.RAM),
                    (64 * MIB + low, 64 * MIB + high, E820Type.NVS),
                    (64 * MIB + high, 3072 * MIB, E820Type.RAM),
                    (4096 * MIB, 4096 * MIB + above, E820Type.RAM),
                ]
            )
            found = find_collisions(places, host, 3072 * MIB // PAGE)
            assert boots(found, (6, 12)) is moves
    # To the byte: RAM that ends where dom0's memory ends leaves no page behind it.
    longer = (64 * MIB + 0x13000, 3072 * MIB + size, E820Type.RAM)
    host = MemoryMap.sanitise([*tight[:3], longer])
    pages = 3072 * MIB // PAGE
    assert boots(find_collisions(places, host, pages), (6, 12))
    assert not boots(find_collisions(places, host, pages + 1), (6, 12))


def test_unusable_memory_is_ram_to_dom0_and_holes_are_not() -> None:
    unusable = [(a, b, E820Type.UNUSABLE if t is E820Type.NVS else t) for a, b, t in NVS_64M]
    assert _stands_on(unusable) == "none"
    hole = [entry for entry in NVS_64M if entry[2] is not E820Type.NVS]
    run = Scenario.of(_host(hole), "incremental:variant=linux", "xen:kernel=6.12").run()
    assert "Page tables on hole at 0x4001000-0x4013000" in str(run.verdict)


def test_a_map_that_ends_below_a_part_has_no_ram_for_it() -> None:
    host = MemoryMap.sanitise([(0, 40 * MIB, E820Type.RAM)])
    (found,) = find_collisions([(Part.PAGE_TABLES, (39 * MIB, 41 * MIB))], host, 1 << 20)
    assert str(found) == "Page tables on hole at 0x2800000-0x2900000"


def test_the_first_mebibyte_is_nobodys() -> None:
    """A 32-bit kernel at 1 MiB may begin below it; firmware's areas there are expected."""
    host = MemoryMap.sanitise([(0, 640 << 10, E820Type.RAM), (MIB, 64 * MIB, E820Type.RAM)])
    assert find_collisions([(Part.KERNEL, (512 << 10, 2 * MIB))], host, 1 << 14) == []
    (found,) = find_collisions([(Part.KERNEL, (512 << 10, 65 * MIB))], host, 1 << 14)
    assert found.where == (64 * MIB, 65 * MIB)


def test_a_part_may_stand_on_several_things_that_are_no_ram() -> None:
    """Each is told of, whether or not it could move away."""
    host = MemoryMap.sanitise(
        [(0, 8 * MIB, E820Type.RAM), (9 * MIB, 10 * MIB, E820Type.NVS),
         (11 * MIB, 12 * MIB, E820Type.RESERVED), (12 * MIB, 64 * MIB, E820Type.RAM)]
    )  # fmt: skip
    found = find_collisions([(Part.INITRD, (7 * MIB, 13 * MIB))], host, 1 << 12)
    assert [(one.where[0] // MIB, one.on, one.can_swap) for one in found] == [
        (8, "hole", False), (9, "ACPI NVS", True), (10, "hole", False), (11, "reserved", True),
    ]  # fmt: skip


def test_brk_is_looked_at_since_6_12() -> None:
    """The check of 4.3 ends at __bss_stop, that of 6.12 at _end."""
    brk = 512 << 10
    kernel = KernelImage(16 * MIB, 64 * MIB - brk, 64 * MIB - brk, 64 * MIB)
    entries = [
        (MIB, 64 * MIB - brk, E820Type.RAM),
        (64 * MIB - brk, 64 * MIB, E820Type.NVS),
        (64 * MIB, 2048 * MIB, E820Type.RAM),
        (4096 * MIB, 8192 * MIB, E820Type.RAM),
    ]
    machine = _host(entries, kernel)
    on = "Brk on ACPI NVS at 0x3f80000-0x4000000"
    assert _figures(machine, kernel="6.1")["xen.dom0_stands_on"] == f"unnoticed: {on}"
    assert _figures(machine, kernel="6.12")["xen.dom0_stands_on"] == f"moved: {on}"
    assert _figures(machine)["xen.dom0_stands_on"] == f"{on}: needs Linux 6.12"


def test_the_hypervisors_own_map_decides() -> None:
    """dom0's log shows a map that its kernel has repaired already."""
    machine = attrs.evolve(
        _host([(0, 640 << 10, E820Type.RAM), (MIB, 8192 * MIB, E820Type.RAM)]),
        host_map=MemoryMap.sanitise(NVS_64M),
    )
    assert _figures(machine)["xen.dom0_collisions"] == 1
    assert "xen.dom0_stands_on" not in _figures(machine, domain="domU")


def test_p2m_list_and_initrd_are_moved_since_4_3() -> None:
    at_128m = [
        (0, 128 * MIB, E820Type.RAM),
        (128 * MIB, 129 * MIB, E820Type.NVS),
        (129 * MIB, 2048 * MIB, E820Type.RAM),
        (3072 * MIB, 4096 * MIB, E820Type.RAM),
    ]
    told = "Init. ramdisk on ACPI NVS at 0x8000000-0x8100000"
    assert _stands_on(at_128m, kernel="5.10") == f"moved: {told}"
    above = [(0, 200 * MIB, E820Type.RAM), (201 * MIB, 2048 * MIB, E820Type.RAM)]
    long = attrs.evolve(_host(above), initrd=(0, 100 * MIB))  # from 128 MiB on, too
    told_of_hole = "moved: Init. ramdisk on hole at 0xc800000-0xc900000"
    assert _figures(long, kernel="5.10")["xen.dom0_stands_on"] == told_of_hole
    # The inline layout of old kernels ends below 128 MiB: they do not get so far.
    assert _stands_on(at_128m) == "needs Linux before 3.18 or 4.3"


def test_a_guest_of_the_toolstack_stands_on_its_own_map() -> None:
    run = Scenario.of(_host(NVS_64M), "incremental:variant=linux", "xen:domain=domU").run()
    assert "xen.dom0_collisions" not in run.figures
    assert Part.XENSTORE in [part for part, _ in run.trace.start.boot.places]


def test_bundled_machines_have_room_for_an_ordinary_dom0() -> None:
    figures = _figures(bundled("lenovo-x230-8g"))
    assert figures["xen.dom0_collisions"] == 0
    assert "xen.dom0_stands_on" not in figures


@pytest.mark.parametrize("kernel", ["2.6.36", "six", "6"])
def test_releases_that_cannot_be_dom0(kernel: str) -> None:
    with pytest.raises(SpecError):
        Xen(kernel=kernel)


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
