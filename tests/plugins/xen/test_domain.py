"""The domain builder's arrangement against what real Xen printed ("VIRTUAL MEMORY ARRANGEMENT") for
nine dom0s.
"""

from __future__ import annotations

import itertools
from contextlib import suppress
from typing import Any

import attrs
import pytest

from paravirt_mm import (
    GIB,
    MODES,
    BootState,
    E820Type,
    KernelImage,
    Machine,
    MemoryMap,
    Refusal,
    Scenario,
    Span,
    SpecError,
    align_up,
    bundled,
)
from paravirt_mm.comparison import Row
from paravirt_mm.engine.trace import TablesAllocated, TablesReserved
from paravirt_mm.sources.generated import Seeded, any_machine
from paravirt_mm_xen.backend import Xen
from paravirt_mm_xen.domain.builders import builders_of, start_info_sizes
from paravirt_mm_xen.domain.collisions import apart, releases
from paravirt_mm_xen.domain.layout import (
    DomainKind,
    Given,
    P2mPlace,
    Part,
    TooLarge,
    arrange,
    boot_tables_needed,
    first_allocation,
    loaded_kernel,
)
from paravirt_mm_xen.verify import guest_machine


@attrs.frozen
class Printed:
    """One boot: addresses as printed less the virtual base; ``initrd`` and ``p2m`` where they lie
    inside the initial mapping.
    """

    kernel: Span
    start_info: int
    page_tables: Span
    boot_stack: Span
    end: int
    initrd: Span | None = None
    p2m: Span | None = None
    mode: str = "x86_64"


PRINTED = {
    "threadripper, 1007932 pages": Printed(
        (0x1000000, 0x4000000), 0x4000000, (0x4001000, 0x4026000), (0x4026000, 0x4027000), 0x4400000
    ),
    "qubes, 4.19.86": Printed(
        (0x1000000, 0x2E2C000), 0x2E2C000, (0x2E2D000, 0x2E48000), (0x2E48000, 0x2E49000), 0x3000000
    ),
    "kernel at 2M": Printed(
        (0x200000, 0x3C00000), 0x3C00000, (0x3C01000, 0x3C24000), (0x3C24000, 0x3C25000), 0x4000000
    ),
    "1027107 pages": Printed(
        (0x1000000, 0x2698000), 0x2698000, (0x2699000, 0x26B0000), (0x26B0000, 0x26B1000), 0x2800000
    ),
    "110824 pages": Printed(
        (0x1000000, 0x342C000), 0x342C000, (0x342D000, 0x344C000), (0x344C000, 0x344D000), 0x3800000
    ),
    "114688 pages": Printed(
        (0x1000000, 0x26DE000), 0x26DE000, (0x26DF000, 0x26F6000), (0x26F6000, 0x26F7000), 0x2800000
    ),
    "barcelona, 172699 pages": Printed(
        (0x1000000, 0x3A00000), 0x3A00000, (0x3A01000, 0x3A22000), (0x3A22000, 0x3A23000), 0x3C00000
    ),
    # 0x282C000 + tables and stack ends at 0x2847000; 4 MiB boundary 0x2C00000.
    "fobnail, 5.8.10": Printed(
        (0x1000000, 0x282C000), 0x282C000, (0x282D000, 0x2846000), (0x2846000, 0x2847000), 0x2C00000
    ),
    "32-bit, 477073 pages": Printed(
        (0x100000, 0x480734), 0x143C000, (0x143D000, 0x144E000), (0x144E000, 0x144F000), 0x1800000,
        initrd=(0x481000, 0x1261C00), p2m=(0x1262000, 0x143BE44), mode="i386-pae",
    ),
}  # fmt: skip


@pytest.mark.parametrize("printed", PRINTED.values(), ids=PRINTED)
def test_arrangement_is_what_xen_printed(printed: Printed) -> None:
    entry = 4 if printed.mode == "i386-pae" else 8
    initrd = printed.initrd[1] - printed.initrd[0] if printed.initrd else 0
    pages = (printed.p2m[1] - printed.p2m[0]) // entry if printed.p2m else 1_000_000
    place = P2mPlace.INLINE if printed.p2m else P2mPlace.HIGH
    found = arrange(
        Given(
            mode=MODES[printed.mode],
            kernel=printed.kernel,
            initrd_bytes=initrd,
            pages=pages,
            p2m=place,
            hypervisor_bits=32 if printed.p2m else 64,
        )
    )
    assert found.kernel == printed.kernel
    assert found.initrd == printed.initrd
    assert found.p2m == printed.p2m
    assert found.start_info[0] == printed.start_info
    assert found.page_tables == printed.page_tables
    assert found.boot_stack == printed.boot_stack
    assert found.end == printed.end


@attrs.frozen
class Guest:
    """A guest of the toolstack, as public console logs show it: kernel's end and pages; then start
    info, page tables, and how many pages these are.
    """

    mode: str
    kernel_end: int
    pages: int
    start_info: int
    tables: int
    count: int
    base: int | None = None


GUESTS = (
    # 32 bits with more user space than 3 GiB leave: its kernel half begins below the last GiB.
    Guest("i386-pae", 0x967000, 0x6A400, 0xB10000, 0xB13000, 9, base=2 << 30),
    Guest("i386-pae", 0x813000, 0x16800, 0x86D000, 0x870000, 8),
    Guest("x86_64", 0x9AE000, 0x26700, 0xAE2000, 0xAE5000, 9),
    Guest("x86_64", 0x990000, 0x3C0000, 0x2790000, 0x2793000, 25),
    Guest("x86_64", 0x114D000, 0x10000, 0x11CD000, 0x11D0000, 13),
    Guest("x86_64", 0x1D4000, 0x800, 0x1D8000, 0x1DB000, 5),
    Guest("x86_64", 0x241E000, 0x100000, 0x2C1E000, 0x2C21000, 27),
)


@pytest.mark.parametrize("guest", GUESTS, ids=lambda guest: f"{guest.mode} {guest.pages:#x}")
@pytest.mark.parametrize("release", [(4, 1), (4, 17)])
def test_guests_of_the_toolstack(guest: Guest, release: tuple[int, ...]) -> None:
    """Root, the L2 tables needed (32 bits: one more for the last GiB), the L1 tables."""
    builders = builders_of(release)
    assert builders is not None
    found = arrange(
        Given(
            mode=MODES[guest.mode],
            kernel=(0x100000, guest.kernel_end),
            pages=guest.pages,
            p2m=P2mPlace.INLINE,
            kind=DomainKind.DOMU,
            base=guest.base,
            builders=builders,
        )
    )
    assert found.start_info[0] == guest.start_info
    assert found.page_tables == (guest.tables, guest.tables + (guest.count << 12))


@pytest.mark.parametrize(
    ("base", "release", "tables"),
    [
        (3 << 30, (4, 6), 1 + 1 + 8),
        (2 << 30, (4, 6), 1 + 2 + 8),
        (2 << 30, (4, 7), 1 + 2 + 8),
        (1 << 30, (4, 6), 1 + 2 + 8),
        (1 << 30, (4, 7), 1 + 3 + 8),
        ((1 << 30) + (16 << 20), (4, 7), 1 + 3 + 8),
        # A mapping that begins below 3 GiB and ends above needs both anyway.
        ((3 << 30) - (8 << 20), (4, 6), 1 + 2 + 8),
        ((3 << 30) - (16 << 20), (4, 6), 1 + 2 + 8),
    ],
)
def test_l2_tables_of_32_bit_guests(base: int, release: tuple[int, ...], tables: int) -> None:
    builders = builders_of(release)
    assert builders is not None
    given = Given(
        mode=MODES["i386-pae"],
        kernel=(0, 1),
        pages=1,
        kind=DomainKind.DOMU,
        base=base,
        builders=builders,
    )
    assert boot_tables_needed(given, 16 << 20) == tables


@pytest.mark.parametrize(
    ("release", "sizes"),
    [
        ((3, 0, 4), (0x49C, 0x46C)),
        ((3, 1, 4), (0x49C, 0x46C)),
        ((3, 2), (0x4A4, 0x474)),
        ((3, 3, 1), (0x4A4, 0x474)),
        ((3, 4), (0x4B4, 0x47C)),
        ((4, 11, 2), (0x4B4, 0x47C)),
        ((4, 11, 3), (0x4B8, 0x480)),
        ((4, 12, 1), (0x4B4, 0x47C)),
        ((4, 12, 2), (0x4B8, 0x480)),
        ((4, 13), (0x4B8, 0x480)),
        ((4, 22), (0x4B8, 0x480)),
    ],
)
def test_start_info_of_each_release(release: tuple[int, ...], sizes: tuple[int, int]) -> None:
    """Sizes that the public headers of these releases compile to."""
    builders = builders_of(release)
    assert builders is not None
    assert tuple(builders.start_info_bytes(bits, console=True) for bits in (64, 32)) == sizes
    assert set(sizes) <= start_info_sizes(64) | start_info_sizes(32)


@pytest.mark.parametrize(
    ("last", "first", "new"),
    [
        ((3, 1, 4), (3, 2), {"console_info"}),
        ((3, 3, 2), (3, 4), {"start_info", "dom0_high_p2m"}),
        ((3, 4, 4), (4, 0), {"guest_slack", "clips_dom0"}),
        ((4, 0, 4), (4, 1), {"initrd_in_chunk", "dom0_unmapped_initrd"}),
        ((4, 1, 6), (4, 2), {"guest_slack"}),
        ((4, 2), (4, 2, 1), {"l4_of_32bit"}),
        ((4, 6, 6), (4, 7), {"guest_unmapped_initrd", "guest_high_p2m", "guest_l2_to_the_end"}),
        ((4, 11, 2), (4, 11, 3), {"console_info"}),
        ((4, 11, 4), (4, 12), {"console_info"}),
        ((4, 12, 1), (4, 12, 2), {"console_info"}),
    ],
)
def test_what_a_release_was_the_first_to_do(
    last: tuple[int, ...], first: tuple[int, ...], new: set[str]
) -> None:
    before, after = builders_of(last), builders_of(first)
    assert before is not None
    assert after is not None
    names = {field.name for field in attrs.fields(type(after))} - {"since"}
    assert {name for name in names if getattr(before, name) != getattr(after, name)} == new
    assert before.guest_slack in (0, 8 << 20)


def test_releases_before_the_first_known_are_refused() -> None:
    assert builders_of((3, 0, 3)) is None
    with pytest.raises(SpecError, match=r"older than 3\.0\.4"):
        Xen(xen="2.0")
    with pytest.raises(SpecError):
        Xen(xen="newest")


def test_what_does_not_fit_into_the_addresses_is_refused() -> None:
    """A p2m list of 2 TiB inside the last 2 GiB; Xen gives such a kernel less memory."""
    given = Given(
        mode=MODES["x86_64"], kernel=(16 << 20, 48 << 20), pages=1 << 29, p2m=P2mPlace.INLINE
    )
    with pytest.raises(TooLarge, match="does not fit"):
        arrange(given)
    machine = attrs.evolve(
        bundled("xen-dom0-qubes-4g"),
        memory_map=MemoryMap.sanitise([(0, 2 << 40, E820Type.RAM)]),
    )
    answer = Xen(kernel="3.2", xen="3.4").pvmm_boot_state(machine)
    assert isinstance(answer, Refusal)
    assert answer.code == -12
    assert isinstance(Xen(kernel="4.3").pvmm_boot_state(machine), BootState)
    # Whatever the kernel: a builder without another place for the list does not take one.
    for release, fits in (("3.3", False), ("3.4", True)):
        state = Xen(xen=release).pvmm_boot_state(machine)
        assert isinstance(state, BootState) is fits
    # Where the list of another domain stands in a hole, no release before 4.3 is an answer, either.
    hole = MemoryMap.sanitise([(0, GIB, E820Type.RAM), (2 * GIB, 2 << 40, E820Type.RAM)])
    machine = attrs.evolve(machine, memory_map=hole, host_map=None, initrd=None)
    assert isinstance(Xen(kernel="4.2", xen="3.4").pvmm_boot_state(machine), Refusal)
    first, any_release = (Xen(kernel=kernel, xen="3.4") for kernel in ("4.3", None))
    state, unnamed = first.pvmm_boot_state(machine), any_release.pvmm_boot_state(machine)
    assert isinstance(state, BootState)
    assert isinstance(unnamed, BootState)
    assert dict(state.places)[Part.P2M][1] > GIB
    assert unnamed.places == state.places


@pytest.mark.parametrize("mode", ["i386-pae", "x86_64"])
def test_a_mapping_may_end_where_the_addresses_do(mode: str) -> None:
    """The last GiB of 32 bits, the last 2 GiB of 64: an end of its own behind them is none."""
    room, left = (1 << 30, 4 << 20) if mode == "i386-pae" else (2 << 30, 8 << 20)
    kernel = 16 << 20, room - left
    given = Given(mode=MODES[mode], kernel=kernel, pages=1 << 16, p2m=P2mPlace.HIGH)
    layout = arrange(given)
    assert layout.end == room
    assert layout.start_info[1] - layout.start_info[0] == 0x4B8  # Xen itself has 64 bits
    with pytest.raises(TooLarge, match=f"an initial mapping of {room + (4 << 20):#x} bytes"):
        arrange(attrs.evolve(given, kernel=(16 << 20, room - left + (4 << 20))))


def test_an_old_kernel_gets_no_more_memory_than_its_list_can_name() -> None:
    """Xen since 4.0: "Dom0 memory clipped to ... pages"; what is left is the balloon's."""
    machine = attrs.evolve(
        bundled("xen-dom0-qubes-4g"),
        memory_map=MemoryMap.sanitise(
            [(0, 3 << 30, E820Type.RAM), (4 << 30, 2 << 40, E820Type.RAM)]
        ),
        initrd=None,
    )
    state = Xen(kernel="3.2").pvmm_boot_state(machine)
    assert isinstance(state, BootState)
    end = align_up(loaded_kernel(machine).loaded[1], 4096)
    pages = ((2 << 30) - end) // 16
    low, high = dict(state.places)[Part.P2M]
    assert high - low == 8 * pages
    assert state.reserved[-1] == ((pages << 12) + (1 << 30), 2 << 40)
    whole = Xen(kernel="4.3").pvmm_boot_state(machine)
    assert isinstance(whole, BootState)
    # No page is missing; those that the hole has no room for wait behind the others.
    assert whole.reserved[-1] == ((2 << 40) - (1 << 30), 2 << 40)


def test_ram_that_the_mode_cannot_address_is_kept_for_nobody() -> None:
    """Found by a hunt: 512 GiB under PAE, whose 36 bits end at 64 GiB."""
    ram = MemoryMap.sanitise([(0, 512 << 30, E820Type.RAM)])
    machine = attrs.evolve(bundled("pae-4g"), memory_map=ram, reserved=(), max_pfn_hint=None)
    state = Xen().pvmm_boot_state(machine)
    assert isinstance(state, BootState)
    assert max(high for _, high in state.reserved) <= 64 << 30
    assert str(Scenario.of(machine, "incremental:variant=hpa", "xen").run().verdict) == "ok"


def test_guests_of_libxl_4_1_have_slack_behind_their_memory() -> None:
    """8 MiB of the map without memory; Linux keeps them for the balloon driver."""
    machine = guest_machine(256)
    end = 256 << 20
    state = Xen(domain=DomainKind.DOMU, xen="4.1.6").pvmm_boot_state(machine)
    assert isinstance(state, BootState)
    assert (end - (8 << 20), end) in state.reserved
    p2m = dict(state.places)[Part.P2M]
    assert (p2m[1] - p2m[0]) // 8 == (machine.memory_map.ram_pages().total - (8 << 20)) >> 12
    # It reaches over a hole, too: what lies behind a domain of which that is the end is its own.
    pieces = [(0, 248), (252, 254), (255, 256)]
    ram = MemoryMap.sanitise((low << 20, high << 20, E820Type.RAM) for low, high in pieces)
    state = Xen(domain=DomainKind.DOMU, xen="4.1.6").pvmm_boot_state(
        attrs.evolve(machine, memory_map=ram)
    )
    assert isinstance(state, BootState)
    assert state.reserved[-3:] == (
        (243 << 20, 248 << 20), (252 << 20, 254 << 20), (255 << 20, 256 << 20),
    )  # fmt: skip
    for other in (Xen(domain=DomainKind.DOMU, xen="4.2"), Xen(xen="4.1.6")):
        state = other.pvmm_boot_state(machine)
        assert isinstance(state, BootState)
        assert not any(high == end for _, high in state.reserved)


@pytest.mark.parametrize(
    ("options", "initrd_mapped", "p2m_high"),
    [
        ({"kernel": "3.17"}, True, False),
        ({"kernel": "3.18"}, False, False),
        ({"kernel": "4.2"}, False, False),
        ({"kernel": "4.3"}, False, True),
        ({"kernel": "6.1", "xen": "4.0"}, True, True),
        ({"kernel": "6.1", "xen": "3.3"}, True, False),
        ({"kernel": "6.1", "xen": "4.6", "domain": DomainKind.DOMU}, True, False),
        ({"kernel": "6.1", "xen": "4.7", "domain": DomainKind.DOMU}, False, True),
        ({}, True, False),
    ],
)
def test_kernel_and_builder_must_both_know_the_notes(
    options: dict[str, Any], initrd_mapped: bool, p2m_high: bool
) -> None:
    state = Xen(**options).pvmm_boot_state(guest_machine(256))
    assert isinstance(state, BootState)
    places = dict(state.places)
    end = state.direct_mapped[0][1]
    assert (places[Part.INITRD][0] < end) == initrd_mapped
    assert (places[Part.P2M][0] >= end) == p2m_high


def _guest(mode: str, kernel: Span, pages: int, initrd: Span | None = None) -> Machine:
    """A guest whose kernel has no brk, with the hole that Linux makes below 1 MiB."""
    entries = [
        (0, 640 << 10, E820Type.RAM),
        (640 << 10, 1 << 20, E820Type.RESERVED),
        (1 << 20, pages << 12, E820Type.RAM),
    ]
    image = KernelImage(*kernel, kernel[1], kernel[1])
    return Machine(
        name="guest",
        memory_map=MemoryMap.sanitise(entries),
        mode=MODES[mode],
        kernel=image,
        initrd=initrd,
    )


def test_a_64_bit_kernel_of_2_6_27_goes_on_behind_the_builders_mapping() -> None:
    """Its log: PGTABLE [0002c3c000 - 0003423000], 2,023 tables from the boot stack's page on."""
    machine = _guest("x86_64", (0x200000, 0x8B7000), 0x100000, (0x8B7000, 0x241E000))
    run = Scenario.of(machine, "legacy_linear:kernel=2.6.27", "xen:domain=domU,kernel=2.6.27").run()
    assert str(run.verdict) == "ok"
    assert run.figures["tables"] == 2023
    runs = [part.run for event in run.trace.of(TablesAllocated) for part in event.batch.pages]
    assert (runs[0].span[0], runs[-1].span[1]) == (0x2C3C000, 0x3423000)


def test_a_32_bit_kernel_of_2_6_29_does_so_and_counts_it() -> None:
    """Its log: tables up to 16800000 @ 878000-930000, of which it needed two for the fixmap."""
    machine = _guest("i386-pae", (0x100000, 0x813000), 0x16800)
    run = Scenario.of(machine, "legacy_linear:kernel=2.6.29", "xen:domain=domU,kernel=2.6.29").run()
    assert str(run.verdict) == "ok"
    (reserved,) = run.trace.of(TablesReserved)
    assert reserved.pages[0].span == (0x878000, 0x930000)
    assert run.figures["tables"] == (0x924000 - 0x878000) // 4096 - 2


@pytest.mark.parametrize(
    ("mode", "kernel", "tables"),
    [
        ("x86_64", "2.6.25", 0),
        ("x86_64", "2.6.26", 4),
        ("x86_64", "3.6", 4),
        ("x86_64", "3.7", 0),
        ("i386-pae", "4.9", 4),
    ],
)
def test_tables_of_the_kernels_own(mode: str, kernel: str, tables: int) -> None:
    """Behind an initial mapping of 4 MiB, up to the end of the guest's memory."""
    for mib, most in ((256, 4), (12, 4), (8, 2), (5, 1), (4, 0), (3, 0)):
        machine = _guest(mode, (1 << 20, 2 << 20), mib << 8)
        state = Xen(domain=DomainKind.DOMU, kernel=kernel).pvmm_boot_state(machine)
        assert isinstance(state, BootState)
        own = min(tables, most)
        assert state.direct_mapped == ((0, (4 << 20) + (own << 21)),)
        assert len(set(state.table_pages[1])) == len(state.table_pages[1]) == 2 + own
    # An initial mapping may go two whole tables beyond the memory: 512 KiB behind the stack, to
    # the next 4 MiB.
    machine = _guest(mode, (1 << 20, 0x388000), 4 << 8)
    state = Xen(domain=DomainKind.DOMU, kernel=kernel).pvmm_boot_state(machine)
    assert isinstance(state, BootState)
    assert state.direct_mapped == ((0, 8 << 20),)


@pytest.mark.slow
def test_a_domain_in_a_hole_is_that_of_the_first_kernel_that_boots() -> None:
    """Kernel and initrd reach over the end of low RAM; a kernel of 4.3 lies elsewhere."""
    entries = [
        (0, 655360, E820Type.RAM),
        (1048576, 25432064, E820Type.RAM),
        (92540928, 293867520, E820Type.RAM),
    ]
    machine = Machine(
        name="drawn",
        memory_map=MemoryMap.sanitise(entries),
        kernel=KernelImage(16777216, 16777217, 16781312, 17043456),
        initrd=(251924480, 293867520),
    )
    for allocator in ("incremental:variant=hpa", "legacy_linear:kernel=3.6"):
        run = Scenario.of(machine, allocator, "xen").run(thorough=True)
        assert str(run.verdict) == "ok"
        assert "needs Linux 4.3" in run.figures["xen.dom0_stands_on"]
        newer = Scenario.of(machine, allocator, "xen:kernel=4.3").run()
        assert newer.trace.start.boot.places == run.trace.start.boot.places


def test_the_boot_stack_is_free() -> None:
    """Linux has a stack of its own: a kernel of 2.6.27 took its first table from there."""
    state = Xen(domain=DomainKind.DOMU).pvmm_boot_state(guest_machine(256))
    assert isinstance(state, BootState)
    low, high = dict(state.places)[Part.BOOT_STACK]
    assert not any(start < high and low < end for start, end in state.reserved)
    assert any(start <= low and high <= end for start, end in state.mapped)


@pytest.mark.parametrize("kernel_end", range(0x1400000, 0x3400000, 0x135000))
@pytest.mark.parametrize("pages", [1 << 15, 1 << 20, 1 << 24])
def test_boot_tables_map_themselves(kernel_end: int, pages: int) -> None:
    """As many tables as the mapping needs, and no page more; parts follow each other; 512 KiB stay
    free at the end.
    """
    mode = MODES["x86_64"]
    given = Given(mode=mode, kernel=(0x1000000, kernel_end), pages=pages, p2m=P2mPlace.INLINE)
    layout = arrange(given)
    low, high = layout.page_tables
    assert boot_tables_needed(given, layout.end) == (high - low) >> 12
    assert layout.end % (4 << 20) == 0
    assert layout.end - layout.boot_stack[1] >= 512 << 10
    spans = [span for _, span in layout.places]
    assert spans == sorted(spans)
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))


def test_auto_p2m_is_inline_until_it_cannot_be() -> None:
    mode = MODES["x86_64"]
    kernel = (0x1000000, 0x2000000)
    # Half of the last 2 GiB, less the kernel: Linux's own tables take the other half.
    limit = ((1 << 30) - kernel[1]) // 8 - 1
    assert arrange(Given(mode=mode, kernel=kernel, pages=limit)).p2m is not None
    assert arrange(Given(mode=mode, kernel=kernel, pages=limit + 1)).p2m is None


@pytest.mark.parametrize("place", P2mPlace)
def test_a_32_bit_guest_always_has_its_list_inside_the_mapping(place: P2mPlace) -> None:
    """Of the builders only those of 64-bit guests know another place."""
    for pages in (1 << 16, 1 << 26):
        given = Given(mode=MODES["i386-pae"], kernel=(1 << 20, 2 << 20), pages=pages, p2m=place)
        assert given.p2m_inline


def test_randomised_kernel_goes_back_to_its_linked_address() -> None:
    """The domain builder loads where the kernel is linked: KASLR does not exist for PV."""
    machine = bundled("gentoo-64g")
    kernel = loaded_kernel(machine)
    assert kernel.start == 16 << 20
    assert kernel.end - kernel.start == machine.kernel.end - machine.kernel.start
    state = Xen().pvmm_boot_state(machine)
    assert isinstance(state, BootState)
    assert dict(state.places)[Part.KERNEL] == kernel.span


def test_linked_kernel_stays() -> None:
    machine = bundled("xen-dom0-qubes-4g")
    low = attrs.evolve(machine, kernel=KernelImage(0x200000, 0x900000, 0x900000, 0x940000))
    assert loaded_kernel(low) == low.kernel


@pytest.mark.parametrize("mode", ["x86_64", "i386-pae"])
def test_no_kernels_domain_reaches_beyond_what_is_looked_at(mode: str) -> None:
    """Where that is all RAM, nobody has to work out for each release what its domain stands on."""
    xen = Xen()
    tried = 0
    for seed in range(15):
        machine = any_machine(Seeded(f"domain {seed}"), MODES[mode], f"domain-{seed}")
        state = xen.pvmm_boot_state(machine)
        if isinstance(state, Refusal):
            continue
        spans = *state.direct_mapped, *(span for _, span in state.places)
        limit = 3 * first_allocation(max(high for _, high in spans))
        for release in releases():
            with suppress(TooLarge):
                arrangement = arrange(xen._given(machine, release))
                parts = apart(arrangement.places, loaded_kernel(machine))
                assert max(arrangement.end, *(span[1] for _, span in parts)) <= limit
                tried += 1
    assert tried > 50


# -- machines at the edge of what can be -----------------------------------------------------------


@pytest.mark.parametrize(
    ("domain", "needed"),
    # dom0: a chunk of 64 MiB, and the initrd beside it; a guest: up to the end of its boot stack.
    [(DomainKind.DOM0, (64 << 20) + (5 << 20)), (DomainKind.DOMU, 0x252E000)],
)
def test_a_domain_that_is_larger_than_its_memory_is_not_built(
    domain: DomainKind, needed: int
) -> None:
    """Xen: "Domain 0 allocation is too small for kernel image"."""
    end = 0x2000000
    for bytes_, fits in ((needed, True), (needed - 4096, False)):
        machine = attrs.evolve(
            bundled("qemu-512m"),
            memory_map=MemoryMap.sanitise([(0, bytes_, E820Type.RAM)]),
            kernel=KernelImage(16 << 20, end, end, end),
            initrd=(end, end + (5 << 20)),
        )
        state = Xen(domain=domain, kernel="3.2").pvmm_boot_state(machine)
        assert isinstance(state, Refusal) is not fits
        if isinstance(state, Refusal):
            assert f"domain builder: needs {needed:#x} bytes of memory" in state.operation
            assert state.code == -12


def test_a_guest_with_less_memory_than_its_builder_keeps_is_not_built() -> None:
    machine = _guest("x86_64", (1 << 20, 2 << 20), 8 << 8)
    state = Xen(domain=DomainKind.DOMU, xen="4.1").pvmm_boot_state(machine)
    assert isinstance(state, Refusal)
    assert state.operation.endswith("and has 0 pages")


def test_a_guest_older_than_any_dom0_looks_at_nothing_it_stands_on() -> None:
    hole = [(0, 0x9F000, E820Type.RAM), (32 << 20, 640 << 20, E820Type.RAM)]
    machine = attrs.evolve(bundled("qemu-512m"), memory_map=MemoryMap.sanitise(hole))
    guest = Xen(domain=DomainKind.DOMU, kernel="2.6.27")
    assert isinstance(guest.pvmm_boot_state(machine), BootState)


def test_no_guest_stands_on_the_map_of_its_host() -> None:
    host = MemoryMap.sanitise([(0, 0x9F000, E820Type.RAM)])
    machine = attrs.evolve(bundled("qemu-512m"), host_map=host)
    assert isinstance(Xen(domain=DomainKind.DOMU).pvmm_boot_state(machine), BootState)
    assert isinstance(Xen().pvmm_boot_state(machine), Refusal)


def test_a_kernel_that_begins_within_a_page_is_moved_by_whole_pages() -> None:
    start = (64 << 20) + 5
    image = KernelImage(start, start + 100, (65 << 20), 66 << 20)
    machine = attrs.evolve(bundled("qemu-512m"), kernel=image)
    assert loaded_kernel(machine) == image.at((16 << 20) + 5)
    assert str(Scenario.of(machine, "incremental", "xen:kernel=6.1").run().verdict) == "ok"


def test_of_a_domain_that_is_not_built_there_are_no_figures() -> None:
    """Not even those that its allocator adds, which say nothing then: no crash kernel is looked for
    in what was never begun.
    """
    machine = attrs.evolve(bundled("qemu-512m"), mode=MODES["i386"])
    run = Scenario.of(machine, "incremental:kernel=6.1,kaslr=yes", "xen").run()
    assert run.extra
    assert not run.figures
    assert Row.of(run, crashkernels=("256M",)).crashkernels == {}
