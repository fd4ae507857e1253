"""The guess, by hand: entries of each level, rounded up to whole pages, as init.c of each release
sums them up. And what is searched where, and which ranges are mapped, at the edges of releases.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import attrs
import pytest

from paravirt_mm import (
    CONFIGURATION,
    MODES,
    Boot,
    CpuFeatures,
    DefaultSpec,
    E820Type,
    KernelImage,
    Machine,
    MemoryMap,
    Piece,
    Run,
    Scenario,
    SpecError,
)
from paravirt_mm.engine.trace import Panicked, RangeSplit, TablesReserved
from paravirt_mm_incremental import Incremental
from paravirt_mm_legacy_linear import LegacyLinear
from paravirt_mm_legacy_linear.releases import Guess, change_for, era, guess_pages, pages_for

KIB, MIB, GIB, TIB, PAGE = 1 << 10, 1 << 20, 1 << 30, 1 << 40, 4096
SMALL, LARGE, HUGE = 1, 2, 3


def boot(mode: str, largest: int) -> Boot:
    """What the formulas read of a boot."""
    return cast("Boot", SimpleNamespace(mode=MODES[mode], largest_level=largest))


Spans = list[tuple[int, int, int]]


@pytest.mark.parametrize(
    ("guess", "mode", "largest", "pieces", "end", "pages"),
    [
        # L3 and L2 entries, never a small page: 513 of 1 GiB take 2 pages, 262656 of 2 MiB 513.
        ("large-pages", "x86_64", LARGE, [], 512 * GIB, 1 + 512),
        ("large-pages", "x86_64", LARGE, [], 512 * GIB + 1, 2 + 513),
        ("large-pages", "x86_64", HUGE, [], 512 * GIB + 1, 2),
        # 3 of 1 GiB, 1025 of 2 MiB; no tail, or one page of tail.
        ("whole", "x86_64", LARGE, [], 2 * GIB + 2 * MIB, 1 + 3 + 0),
        ("whole", "x86_64", LARGE, [], 2 * GIB + PAGE, 1 + 3 + 1),
        # With 1 GiB pages only what is left of the last one takes L2 entries.
        ("whole", "x86_64", HUGE, [], 2 * GIB, 1 + 0 + 0),
        ("whole", "x86_64", HUGE, [], 2 * GIB + PAGE, 1 + 1 + 1),
        # Small pages: 16385 of them take 33 pages.
        ("whole", "x86_64", SMALL, [], 64 * MIB + PAGE, 1 + 1 + 33),
        # A first piece below 2 MiB is added in small pages, wherever it ends: 2560 take 5.
        ("first-piece", "x86_64", LARGE, [(0, 10 * MIB, LARGE)], 10 * MIB, 1 + 1 + 5),
        ("first-piece", "x86_64", LARGE, [(2 * MIB - PAGE, 10 * MIB, 2)], 10 * MIB, 1 + 1 + 5),
        ("first-piece", "x86_64", LARGE, [(2 * MIB, 10 * MIB, LARGE)], 10 * MIB, 1 + 1 + 0),
        ("first-piece", "x86_64", SMALL, [(0, 10 * MIB, SMALL)], 10 * MIB, 1 + 1 + 5),
        ("first-piece", "x86_64", LARGE, [], 10 * MIB, 1 + 1 + 0),
        ("any-first-piece", "x86_64", LARGE, [(2 * MIB, 10 * MIB, 2)], 10 * MIB, 1 + 1 + 4),
        # Pieces: 512 + 1 small, 2 MiB + 8 MiB of large ones: one page of each kind but two of L1.
        ("pieces", "x86_64", LARGE, [(0, 2 * MIB + PAGE, 1), (4 * MIB, 12 * MIB, 2)], 0, 1 + 1 + 2),
        # A large piece needs L1 entries for what is no whole large page: 256.
        ("pieces", "x86_64", LARGE, [(4 * MIB, 12 * MIB, 2)], 0, 1 + 1 + 0),
        ("pieces", "x86_64", LARGE, [(4 * MIB, 13 * MIB, 2)], 0, 1 + 1 + 1),
        # A huge piece needs L2 entries for what is no whole huge page.
        ("pieces", "x86_64", HUGE, [(GIB, 3 * GIB, 3)], 0, 1 + 0 + 0),
        ("pieces", "x86_64", HUGE, [(GIB, 3 * GIB + 2 * MIB, 3)], 0, 1 + 1 + 0),
        ("pieces", "x86_64", HUGE, [(GIB, 3 * GIB, 2)], 0, 1 + 2 + 0),
        # Each piece is rounded up to entries, the sum to pages: 512 + 1 of 1 GiB.
        ("pieces", "x86_64", HUGE, [(0, 512 * GIB, 3), (TIB, TIB + GIB, 3)], 0, 2 + 0 + 0),
        # A page more for a piece that reaches into another entry of the root, if only with its end.
        ("pieces-and-roots", "x86_64", HUGE, [(GIB, 511 * GIB, 3)], 0, 1),
        ("pieces-and-roots", "x86_64", HUGE, [(GIB, 512 * GIB, 3)], 0, 1 + 1),
        ("pieces-and-roots", "x86_64", HUGE, [(511 * GIB, 513 * GIB, 3)] * 3, 0, 1 + 3),
        ("pieces", "x86_64", HUGE, [(511 * GIB, 513 * GIB, 3)] * 3, 0, 1),
        # PAE, its L3 in the root: 2 of 1 GiB, 768 of 2 MiB, a tail of nothing and one large page.
        ("whole", "i386-pae", LARGE, [], 3 * GIB // 2, 1 + 2 + 1),
        ("whole", "i386-pae", SMALL, [], 8 * MIB, 1 + 1 + 4),
        ("pieces", "i386-pae", LARGE, [(2 * MIB, 4 * MIB, 2)], 0, 1 + 1 + 1),
        ("pieces", "i386-pae", LARGE, [(2 * MIB, 5 * MIB, 2)], 0, 1 + 1 + 2),
        ("pieces", "i386-pae", SMALL, [(2 * MIB, 4 * MIB, 1)], 0, 1 + 1 + 1),
        # Without PAE there is no L3: its entries are those of the L2, 4 MiB each, 1024 to a page.
        ("whole", "i386", LARGE, [], 8 * MIB, 1 + 1 + 1),
        ("whole", "i386", SMALL, [], 8 * MIB, 1 + 1 + 2),
        ("pieces", "i386", LARGE, [(4 * MIB, 9 * MIB, 2)], 0, 1 + 1 + 2),
        ("whole", "i386", SMALL, [], 4 * GIB, 1 + 1 + 1024),
    ],
)
def test_pages_that_are_guessed(
    guess: str, mode: str, largest: int, pieces: Spans, end: int, pages: int
) -> None:
    given = [Piece(*piece) for piece in pieces]
    wide = mode == "x86_64"
    subject = boot(mode, largest)
    assert guess_pages(subject, Guess(guess), given, end) == pages
    # Tables of the fixmap are asked for by 32-bit kernels only.
    assert guess_pages(subject, Guess(guess), given, end, 7) == pages + (0 if wide else 7)


def test_a_pae_root_holds_the_entries_of_the_l3() -> None:
    """They are of 1 GiB: 2051 take five pages and 1049601 of 2 MiB 2051, the first 2 MiB one."""
    pae = boot("i386-pae", LARGE)
    assert guess_pages(pae, Guess.WHOLE, [], 2050 * GIB + 2 * MIB) == 5 + 2051 + 1


def test_without_pae_the_l3_is_folded_into_the_l2() -> None:
    """Both count entries of 4 MiB: 2049 of them take three pages each, and the first 4 MiB one."""
    narrow = boot("i386", LARGE)
    assert guess_pages(narrow, Guess.WHOLE, [], 2049 * 4 * MIB) == 3 + 3 + 1
    pieces = [Piece(number * 4 * MIB, (number + 1) * 4 * MIB, LARGE) for number in range(2049)]
    assert guess_pages(narrow, Guess.PIECES, pieces, 0) == 3 + 3 + 2049


def test_without_pieces_nothing_is_added_to_the_estimate() -> None:
    for guess in (Guess.FIRST_PIECE, Guess.ANY_FIRST_PIECE):
        assert guess_pages(boot("x86_64", LARGE), guess, [], 10 * MIB) == 1 + 1 + 0
    for guess in (Guess.PIECES, Guess.PIECES_AND_ROOTS):
        assert guess_pages(boot("x86_64", LARGE), guess, [], 10 * MIB) == 0


# -- releases -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "last", "first", "new"),
    [
        (64, "2.6.26", "2.6.27", {"guess", "calls"}),
        (64, "2.6.30", "2.6.31", {"good_end"}),
        (64, "2.6.36", "2.6.37", {"top_down"}),
        (64, "2.6.38", "2.6.39", {"good_end", "search_start"}),
        (64, "3.0", "3.1", {"good_end"}),
        (64, "3.4", "3.5", {"guess"}),
        (64, "3.6", "3.7", {"guess", "calls"}),
        (64, "3.7", "3.8", {"guess"}),
        (32, "2.6.28", "2.6.29", {"fixmap"}),
        (32, "2.6.36", "2.6.37", {"top_down"}),
        (32, "2.6.38", "2.6.39", {"search_start"}),
        (32, "3.4", "3.5", {"guess"}),
        (32, "3.6", "3.7", {"guess"}),
        (32, "3.7", "3.8", {"guess"}),
    ],
)
def test_what_a_release_was_the_first_to_do(
    bits: int, last: str, first: str, new: set[str]
) -> None:
    narrow = bits == 32
    before, after = (attrs.asdict(change_for(k, is_32bit=narrow)) for k in (last, first))
    differ = {name for name in before if before[name] != after[name]}
    assert differ - {"since", "note"} == new


@pytest.mark.parametrize(
    ("kernel", "bits", "modelled"),
    [
        ("2.6.18", 64, False), ("2.6.19", 64, True), ("3.8.13", 64, True), ("3.9", 64, False),
        ("2.6.26", 32, False), ("2.6.27", 32, True), ("3.8.13", 32, True), ("3.9", 32, False),
    ],
)  # fmt: skip
def test_first_and_last_release(kernel: str, bits: int, modelled: bool) -> None:
    mode = "x86_64" if bits == 64 else "i386-pae"
    spec = f"legacy_linear:kernel={kernel}" if modelled else None
    assert LegacyLinear().pvmm_models_kernel(kernel, mode) == spec
    if not modelled:
        first, where = {64: ("2.6.19", ""), 32: ("2.6.27", " in this mode")}[bits]
        words = f"legacy_linear models kernels {first} to 3.8{where}, not {kernel}"
        with pytest.raises(SpecError) as refused:
            change_for(kernel, is_32bit=bits == 32)
        assert str(refused.value) == words + ("; use incremental" if kernel == "3.9" else "")


def test_eras_of_both_modes() -> None:
    assert era("2.6.20") == (None, (2, 6, 19))
    assert era("2.6.30") == ((2, 6, 29), (2, 6, 27))
    assert era("3.6") == ((3, 5), (3, 5))
    assert era("3.5") == ((3, 5), (3, 5))
    assert era("2.6.31") == ((2, 6, 29), (2, 6, 31))


def test_what_is_a_matter_of_configuration() -> None:
    """What has been compared with kernels of one configuration counts for all of a release."""
    found = {each.name for each in attrs.fields(LegacyLinear) if each.metadata.get(CONFIGURATION)}
    assert found == {"fixmap_entries"}
    found = {each.name for each in attrs.fields(Incremental) if each.metadata.get(CONFIGURATION)}
    assert found == {"randomize_memory", "brk_pages", "kaslr"}


@pytest.mark.parametrize("entries", [-1, (1 << 20) + 1])
def test_no_fixmap_has_so_many_entries(entries: int) -> None:
    words = f"fixmap_entries={entries} is not between 0 and {1 << 20}"
    with pytest.raises(SpecError, match=words):
        LegacyLinear(fixmap_entries=entries)
    assert LegacyLinear(fixmap_entries=0)
    assert LegacyLinear(fixmap_entries=1 << 20)


KIB_64 = 64 * KIB
OPEN: dict[str, list[tuple[dict[str, str], tuple[tuple[int, int], ...]]]] = {
    "guess": [
        ({}, ()), ({"guess": "pieces"}, ()), ({"guess": "whole"}, ()),
        ({"guess": "first-piece"}, ()),
    ],
    "guess of RHEL 6": [({}, ()), ({"guess": "pieces"}, ())],
    "calls": [({}, ()), ({"calls": "regions"}, ())],
    "good_end": [({}, ()), ({"good_end": "mapped"}, ())],
    # Where 600 entries are usual: of PAE's tables one, two, and three.
    "fixmap": [({}, ()), ({"fixmap_entries": "500"}, ()), ({"fixmap_entries": "1100"}, ())],
    "low 64K": [({}, ()), ({}, ((0, KIB_64),))],
    # The trampoline has two pages on 64 bits and one on 32, the ACPI wakeup code four.
    "trampoline": [({}, ()), ({}, ((KIB_64, KIB_64 + (2 + 4) * PAGE),))],
    "trampoline 32": [({}, ()), ({}, ((KIB_64, KIB_64 + (1 + 4) * PAGE),))],
}  # fmt: skip


@pytest.mark.parametrize(
    ("releases", "mode", "questions"),
    [
        ("2.6.26", "x86_64", []),
        ("2.6.27 2.6.31", "x86_64", ["low 64K"]),
        ("2.6.32", "x86_64", ["guess of RHEL 6", "low 64K"]),
        ("2.6.33 2.6.36", "x86_64", ["low 64K", "trampoline"]),
        ("2.6.37 2.6.39", "x86_64", []),
        ("3.0", "x86_64", ["good_end"]),
        ("3.1", "x86_64", []),
        ("3.2 3.3", "x86_64", ["guess"]),
        ("3.4 3.6", "x86_64", ["guess", "calls"]),
        ("3.7 3.8 3.9", "x86_64", []),
        ("2.6.26", "i386", []),
        ("2.6.27 2.6.28", "i386", ["low 64K"]),
        ("2.6.29 2.6.32", "i386", ["fixmap", "low 64K"]),
        ("2.6.33 2.6.36", "i386", ["fixmap", "low 64K", "trampoline 32"]),
        ("2.6.37 3.1", "i386", ["fixmap"]),
        ("3.2 3.6", "i386", ["guess", "fixmap"]),
        ("3.7 3.8", "i386", ["fixmap"]),
        ("3.9", "i386", []),
        ("3.0", "x86_64-la57", []),
    ],
)
def test_what_a_release_leaves_open(releases: str, mode: str, questions: list[str]) -> None:
    """What real kernels are known to do otherwise, and mainline's way first; PAE as without."""
    for release in releases.split():
        for each in {mode, mode.replace("i386", "i386-pae")}:
            asked = LegacyLinear().pvmm_open_questions(release, each)
            found = [[(dict(choice.options), choice.reserved) for choice in q] for q in asked]
            assert found == [OPEN[name] for name in questions], (release, each)
    for name in questions:
        for options, _ in OPEN[name]:
            told = ",".join(f"{key}={value}" for key, value in options.items())
            assert run(machine((0, GIB)), f"kernel={releases.split()[-1]},{told}".strip(","))


def test_few_usual_and_many_entries_of_a_fixmap() -> None:
    """As boot logs show: less than 512 to 1022 without more ado; each asks for other tables."""
    usual = LegacyLinear().fixmap_entries
    assert usual == 600
    for mode, tables in (("i386-pae", [1, 2, 3]), ("i386", [1, 1, 2])):
        assert [pages_for(boot(mode, LARGE), each) for each in (500, usual, 1100)] == tables
    assert [pages_for(boot("i386-pae", LARGE), each) for each in (0, 1, 512, 513)] == [0, 1, 1, 2]
    assert [pages_for(boot("i386", LARGE), each) for each in (1024, 1025)] == [1, 2]


def test_what_is_compared_where_nobody_names_anything() -> None:
    """Both sides of the thread, the one that was proposed first."""
    assert list(LegacyLinear().pvmm_default_specs()) == [
        DefaultSpec("legacy_linear:kernel=2.6.39", 10),
        DefaultSpec("legacy_linear:kernel=3.6", 20),
    ]


# -- where, and what ------------------------------------------------------------------------------


def machine(*ram: tuple[int, int], **others: object) -> Machine:
    memory = MemoryMap.sanitise((low, high, E820Type.RAM) for low, high in ram)
    kernel = KernelImage(16 * MIB, 18 * MIB, 18 * MIB, 18 * MIB)
    return Machine("formulas", memory, kernel=kernel, **others)


def run(subject: Machine, options: str) -> Run:
    return Scenario.of(subject, f"legacy_linear:{options}", "native").run()


def blocks(found: Run) -> list[tuple[int, int]]:
    return [event.pages[0].span for event in found.trace.of(TablesReserved)]


def calls(found: Run) -> list[tuple[int, int]]:
    return [(event.start, event.end) for event in found.trace.of(RangeSplit)]


@pytest.mark.parametrize(
    ("kernel", "mode", "pages", "start"),
    [
        # L3, L2; 2.6.27: no tail. From below; from above, below what is mapped.
        ("2.6.20", "x86_64", 2, 0x8000),
        ("2.6.36", "x86_64", 2, 0x8000),
        ("2.6.37", "x86_64", 2, 64 * MIB - 2 * PAGE),
        # One more for the first 2 MiB; 600 entries of the fixmap take two tables, or one.
        ("2.6.28", "i386-pae", 3 + 2, 0x7000),
        ("2.6.29", "i386-pae", 3 + 2, 0x7000),
        ("2.6.28", "i386", 3 + 2, 0x7000),
        ("2.6.29", "i386", 3 + 1, 0x7000),
        ("2.6.37", "i386", 3 + 1, 64 * MIB - 4 * PAGE),
    ],
)
def test_where_the_block_is_and_how_large(kernel: str, mode: str, pages: int, start: int) -> None:
    subject = machine((0, 64 * MIB), mode=MODES[mode])
    assert blocks(run(subject, f"kernel={kernel}")) == [(start, start + pages * PAGE)]


@pytest.mark.parametrize(
    ("kernel", "mode", "lowest"),
    [
        ("2.6.38", "x86_64", 0x8000),
        ("2.6.39", "x86_64", PAGE),
        ("3.8", "x86_64", PAGE),
        ("2.6.38", "i386", 0x7000),
        ("2.6.39", "i386", PAGE),
    ],
)
def test_how_low_the_search_goes(kernel: str, mode: str, lowest: int) -> None:
    """As many pages as are guessed are free just above that, and nowhere else; then one less."""
    pages = {"x86_64": 2, "i386": 4}[mode]
    for free in (pages, pages - 1):
        stop = lowest + free * PAGE
        subject = machine((0, 64 * MIB), reserved=((stop, 64 * MIB),), mode=MODES[mode])
        found = blocks(run(subject, f"kernel={kernel},guess=whole"))
        assert found == ([(lowest, stop)] if free == pages else [])


def test_ranges_by_release() -> None:
    """::

    0       3.5G   4G     5G     6G     7G    7G+12K
    | RAM   | hole | RAM  | hole | RAM  | ACPI |
    """
    memory = MemoryMap.sanitise(
        [
            (0, 7 * GIB // 2, E820Type.RAM),
            (4 * GIB, 5 * GIB, E820Type.RAM),
            (6 * GIB, 7 * GIB, E820Type.RAM),
            (7 * GIB, 7 * GIB + 3 * PAGE, E820Type.ACPI),
        ]
    )
    subject = attrs.evolve(machine((0, GIB)), memory_map=memory)
    low = (0, 7 * GIB // 2)
    assert calls(run(subject, "kernel=2.6.26")) == [(0, 7 * GIB + 2 * MIB)]
    assert calls(run(subject, "kernel=3.6")) == [low, (4 * GIB, 7 * GIB)]
    apart = [low, (4 * GIB, 5 * GIB), (6 * GIB, 7 * GIB)]
    assert calls(run(subject, "kernel=3.7")) == apart
    assert calls(run(subject, "kernel=3.6,calls=regions")) == apart
    for kernel in ("3.6", "3.7"):
        assert calls(run(machine(low), f"kernel={kernel}")) == [low]
    narrow = attrs.evolve(subject, mode=MODES["i386-pae"], boot_mapped=64 * MIB)
    assert calls(run(narrow, "kernel=3.7")) == [(0, 896 * MIB)]


def test_tables_beyond_the_block_are_counted() -> None:
    """Five levels: L4, L3, L2 and 32 L1 for 64 MiB of small pages, where 34 are guessed."""
    subject = machine((0, 64 * MIB), mode=MODES["x86_64-la57"], features=CpuFeatures(pse=False))
    found = run(subject, "kernel=3.8")
    (panic,) = found.trace.of(Panicked)
    assert found.figures["reserved"] == 1 + 1 + 32
    assert panic.missing_tables == found.figures["overrun"] == 1


def test_holes_of_lowmem_are_mapped() -> None:
    """On 32 bits there is no slot that is left empty: no entry of any type is in 300..400 MiB, nor
    in its first L1 tables.
    """
    subject = machine((0, 300 * MIB), (400 * MIB, GIB), mode=MODES["i386"])
    for kernel in ("2.6.27", "3.8"):
        found = run(subject, f"kernel={kernel}")
        assert found.trace.start.promised == ((0, 896 * MIB),)
        assert str(found.verdict) == "ok"


def test_options_make_one_release_do_as_another() -> None:
    """Each takes what the next one was the first to do; all four ask for another number of pages on
    a machine whose RAM ends inside of large pages, and reaches into a second entry of the root.
    """
    subject = machine((PAGE, 640 * KIB), (MIB, 3 * GIB - PAGE), (4 * GIB, 600 * GIB + 3 * PAGE))
    asked = {
        "3.4": "3.6,guess=whole",
        "3.6": "3.4,guess=first-piece",
        "3.7": "3.6,guess=pieces,calls=regions",
        "3.8": "3.7,guess=pieces-and-roots",
    }
    found = {kernel: blocks(run(subject, f"kernel={kernel}")) for kernel in asked}
    assert {kernel: blocks(run(subject, f"kernel={asked[kernel]}")) for kernel in asked} == found
    sizes = [[high - low for low, high in spans] for spans in found.values()]
    assert all(sizes.count(each) == 1 for each in sizes)
