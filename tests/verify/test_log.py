"""``verify log``: what real kernels printed is predicted line by line; what is not, is told why."""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import attrs
import pytest
from click.testing import CliRunner

from paravirt_mm import (
    API_VERSION,
    E820Type,
    Machine,
    MemoryMap,
    Registry,
    Scenario,
    SpecError,
    default_registry,
    hookimpl,
)
from paravirt_mm.cli.main import cli
from paravirt_mm.errors import ExitCode
from paravirt_mm.machine.paging import I386, I386_PAE, X86_64, PagingMode
from paravirt_mm.machine.release import leading_version
from paravirt_mm.sources import bundled, read_boot_log
from paravirt_mm.sources.bootlog.facts import (
    BrkTable,
    Fact,
    LastPfn,
    MappedRange,
    PageRange,
    Reservation,
    TableBlock,
    WritableRange,
)
from paravirt_mm.sources.bootlog.lines import LineVerdict, LogLine
from paravirt_mm.verify.log.check import MAX_TRIALS, _best_trials, check_log
from paravirt_mm.verify.log.pairing import aligned
from paravirt_mm.verify.log.predict import last_pfns, mapping_lines
from paravirt_mm.verify.log.report import (
    MAX_REASONS,
    LogReport,
    reasons,
    summary,
    with_reason,
)
from paravirt_mm.verify.log.trial import MAX_LINES, Trial
from paravirt_mm.verify.log.variants import all_series, candidates, releases_that_print_like
from paravirt_mm.verify.log.words import Words

DATA = Path(__file__).parents[1] / "data" / "logs"
EXPECTED: dict[str, tuple[str, int, int, int]] = json.loads((DATA / "boot-logs.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """121 boot logs of real machines, 2.6.19 to 6.12."""
    where = tmp_path_factory.mktemp("logs")
    with tarfile.open(DATA / "boot-logs.tar.xz") as archive:
        archive.extractall(where, filter="data")
    return where


@pytest.fixture(scope="module")
def reports(folder: Path) -> dict[str, LogReport]:
    found = {}
    for path in sorted(folder.iterdir()):
        found[path.stem] = with_reason(check_log(read_boot_log(path)), str(path))
    return found


def check(text: str, tmp_path: Path, kernel: str | None = None) -> LogReport:
    path = tmp_path / "log.txt"
    path.write_text(text, encoding="utf-8")
    return check_log(read_boot_log(path), kernel)


@pytest.mark.slow
def test_every_log_comes_out_as_recorded(reports: dict[str, LogReport]) -> None:
    got = {
        name: [
            report.spec.partition(":")[2],
            report.count(LineVerdict.MATCH),
            report.count(LineVerdict.DIFFERS),
            report.count(LineVerdict.UNCHECKED),
        ]
        for name, report in reports.items()
    }
    assert got == EXPECTED


OF_EACH_KIND = [
    "xen-dom0-172699p-amd-barcelona",
    "xen-dom0-1022144p-kernel2M",
    "xen-dom0-114688p",
    "xen-domu-pv-6.12.21-e820host-98G",
    "xen-dom0-1014568p-qubes-4.19.86",
    "xen-domu-pv-5.17.6-512M",
    "lkml-2006-nforce-512M-2619",
    "mashpy-ajenti-track-3.13.0-d76581b8",
    "linux-scsi-5.2.0-17c6153d",
    "ubf-2.6.31-20-macmini-1.7G",
    "simularent-asterisk-fo-4.4.0-d76581b8",
    "linux-wireless-5.1.0-cdd52e4e",
    "ubf-3.5.0-21-hp-nx7400-3.4G",
    "lixiang2014-servicelog-3.13.0-aa36c85d",
    "linux-ide-5.2.0-rc1-4cca112c",
    "lkml-2008-sun-x4600m2-256G-8node",
    "patzhu-yong-3.2.0-88859920",
    "decareano-php-aws-3.10.0-d76581b8",
    "vyatta-2.6.32-i386-256M",
    "ubf-2.6.27-11-i386-256M-asus-l8400",
    "disdi-acpi-3.2.0-fc20796b",
    "linux-scsi-5.4.0-rc1-6b3a885e",
    "cmotc-m11x-hwinfo-3.13.0-79205203",
    "ubf-2.6.27-msi1632-1.8G",
    "duanery-linux-insight-4.9.152-85e23258",
    "ubf-2.6.34-suse-1.8G-1G",
    "ubf-2013-biostar-ta890fxe-4.8G",
    "duanery-linux-insight-4.9.96-5de0e4ba",
    "ubf-2.6.28-i386-502M-montara",
    "ubf-2.6.28-i386-256M-jetway",
    "ubf-2.6.31-i386-510M-hp-piranha",
    "lkp-2014-i386-nonpae-kvm-320M-4k",
    "ubf-2.6.32-i386pae-4.4G",
    "lkp-2014-i386-qemu-320M-4k",
    "ubf-3.5+-lenovo-x230-efi-8G",
    "ubf-4.x-skl-8G-1G-holes",
    "ubf-2.6.32+-gbt-16G-1G",
    "lmm-2013-movablenode-qemu-4G-2node",
    "ubf-3.1x-dell-cl09-8G-efi",
]
"""One of each kind (mode, era, choice, why lines are unchecked), of the fast ones, by hand."""


@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_a_log_of_each_kind_comes_out_as_recorded(folder: Path, name: str) -> None:
    """And a line that matches is predicted as it was printed, word for word."""
    report = check_log(read_boot_log(folder / f"{name}.txt"))
    assert (report.spec.partition(":")[2], *map(report.count, LineVerdict)) == (*EXPECTED[name],)
    for line in report.lines:
        matches = line.verdict is LineVerdict.MATCH and "memblock" not in str(line.printed)
        if matches and "dom0" not in name:
            assert str(line.printed).strip() == str(line.predicted).strip()


def test_a_log_that_cannot_match_has_its_reason(folder: Path, tmp_path: Path) -> None:
    """The reason is known by what the file holds, and only told where a line differs."""
    path = folder / "lmm-2013-movablenode-qemu-4G-2node.txt"
    report = check_log(read_boot_log(path))
    assert not report.agrees
    known = with_reason(report, str(path))
    assert known.reason in reasons().values()
    other = tmp_path / "log.txt"
    other.write_bytes(path.read_bytes() + b"\n")
    assert with_reason(report, str(other)) == with_reason(report, "-") == report
    good = attrs.evolve(report, lines=())
    assert with_reason(good, str(path)) == good
    nothing = attrs.evolve(good, nothing="no line about mappings")
    assert summary([report, known, known, good, nothing]) == {
        "logs": 5,
        "nothing to check": 1,
        "explained": 2,
        "disagreeing": 1,
        **{str(verdict): 3 * report.count(verdict) for verdict in LineVerdict},
    }


@pytest.mark.slow
def test_every_checkable_line_is_predicted(reports: dict[str, LogReport]) -> None:
    counts = summary(reports.values())
    assert counts["logs"] == 121
    assert counts["disagreeing"] == 0
    assert counts[LineVerdict.MATCH] >= 1168 + 68  # Linux, and what the Xen plugin predicts
    # Lines that differ are in logs with a documented reason, and nowhere else.
    differing = [name for name, report in reports.items() if not report.agrees]
    assert len(differing) <= MAX_REASONS
    assert all(reports[name].reason for name in differing)
    assert len(reasons()) <= MAX_REASONS


@pytest.mark.slow
def test_what_cannot_be_checked_is_told_why(reports: dict[str, LogReport]) -> None:
    why = Counter(
        re.sub(r"[0-9a-f]+-[0-9a-f]+", "A-B", line.why)
        for report in reports.values()
        for line in report.lines
        if line.verdict is LineVerdict.UNCHECKED
    )
    assert why == {
        "the lines of two boots stand between each other": 52,
        "the map is missing from the log here: this line stands for it": 14,
        "fixmap and highmem tables: their number depends on NR_CPUS": 4,
        "depends on something in A-B that the log does not list": 1,
        "told by the kernel": 9,  # Xen's ENTRY ADDRESS
        "the log does not tell the release of Xen": 9,  # the size of start info
    }


@pytest.mark.slow
def test_modes_and_eras_are_all_there(reports: dict[str, LogReport]) -> None:
    checked = Counter(
        (report.mode, report.spec.partition(":")[0]) for report in reports.values() if report.spec
    )
    assert set(checked) == {
        (mode, allocator)
        for mode in ("i386", "i386-pae", "x86_64")
        for allocator in ("legacy_linear", "incremental")
    }
    assert all(report.backend.startswith("native") for report in reports.values() if report.spec)


@pytest.mark.slow
def test_the_shared_logs_are_the_committed_ones(shared: Path, folder: Path) -> None:
    for path in (shared / "corpus" / "logs").iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()


# -- one log, line by line -------------------------------------------------------------------------

UBUNTU_35 = (DATA / "3.5-inclusive-ends.txt").read_text()
UBUNTU_313 = (DATA / "3.13-i386-pae.txt").read_text()
MEMBLOCK_49 = (DATA / "4.9-memblock-debug.txt").read_text()
VYATTA_2632 = (DATA / "2.6.32-i386.txt").read_text()
TIP_2626 = (DATA / "2.6.26-exclusive-ends.txt").read_text()


def test_reservations_of_tables_are_predicted_where_the_log_has_them(tmp_path: Path) -> None:
    report = check(MEMBLOCK_49, tmp_path)
    tables = [line for line in report.lines if "alloc_low_pages" in str(line.printed)]
    assert len(tables) == 2
    assert report.count(LineVerdict.MATCH) == len(report.lines) == 10


@pytest.mark.parametrize(
    ("old", "new", "printed"),
    [
        ("[mem 0x37800000-0x379fffff]", "[mem 0x37600000-0x379fffff]", "0x37600000"),
        ("0x00200000-0x33ffffff] page 2M", "0x00200000-0x33ffffff] page 4k", "page 4k"),
        ("last_pfn = 0x40000", "last_pfn = 0x3f000", "0x3f000"),
    ],
)
def test_a_line_that_is_not_as_predicted_differs(
    tmp_path: Path, old: str, new: str, printed: str
) -> None:
    assert old in UBUNTU_313
    report = check(UBUNTU_313.replace(old, new), tmp_path)
    wrong = [line for line in report.lines if line.verdict is LineVerdict.DIFFERS]
    assert wrong
    assert all(printed in str(line.printed) for line in wrong)
    assert old.split("]")[0].strip("[") in " ".join(str(line.predicted) for line in wrong)


@pytest.mark.parametrize("above", [True, False])
def test_an_end_of_memory_is_compared_with_the_one_on_its_side_of_4_gib(
    tmp_path: Path, above: bool
) -> None:
    pfns = [int(pfn, 16) for pfn in re.findall(r"last_pfn = (0x\w+)", MEMBLOCK_49)]
    (pfn,) = (pfn for pfn in pfns if (pfn > 1 << 20) is above)
    report = check(
        MEMBLOCK_49.replace(f"last_pfn = {pfn:#x}", f"last_pfn = {pfn - 1:#x}"), tmp_path
    )
    (line,) = [line for line in report.lines if f"last_pfn = {pfn - 1:#x}" in str(line.printed)]
    assert line.verdict is not LineVerdict.MATCH
    assert f"last_pfn = {pfn:#x}" in str(line.predicted)


def test_a_log_without_a_map_is_told_to_have_none(tmp_path: Path) -> None:
    kept = [line for line in UBUNTU_313.splitlines() if "e820" not in line]
    report = check("\n".join(kept), tmp_path)
    assert report.lines
    for line in report.lines:
        assert line.verdict is LineVerdict.UNCHECKED
        assert line.why.startswith("no memory map: expected")


def test_a_lost_and_an_added_line_differ(tmp_path: Path) -> None:
    lines = UBUNTU_313.splitlines()
    at = next(i for i, line in enumerate(lines) if "[mem 0x34000000-0x377fffff] page" in line)
    lost = check("\n".join(lines[:at] + lines[at + 1 :]), tmp_path)
    (line,) = [line for line in lost.lines if line.verdict is LineVerdict.DIFFERS]
    assert line.printed is None
    assert line.predicted == " [mem 0x34000000-0x377fffff] page 2M"
    added = check("\n".join(lines[: at + 1] + lines[at:]), tmp_path)
    (line,) = [line for line in added.lines if line.verdict is LineVerdict.DIFFERS]
    assert line.predicted is None
    assert line.number in (at + 1, at + 2)


def test_size_of_a_block_is_always_checked(tmp_path: Path) -> None:
    text = VYATTA_2632.replace("@ 7000-c000", "@ 7000-16000")
    assert text != VYATTA_2632
    report = check(text, tmp_path)
    (line,) = [line for line in report.lines if line.verdict is LineVerdict.DIFFERS]
    assert line.printed == "kernel direct mapping tables up to 10000000 @ 7000-16000"
    assert re.fullmatch(r"kernel .* up to 10000000 @ 7000-[bcd]000", str(line.predicted))


def test_position_of_a_block_is_unknown_where_something_unlisted_must_lie_there(
    tmp_path: Path,
) -> None:
    report = check(UBUNTU_35, tmp_path)
    (line,) = [line for line in report.lines if line.verdict is LineVerdict.UNCHECKED]
    assert line.printed == "position b60c7000"
    assert re.fullmatch("depends on something in .* that the log does not list", line.why)


def test_position_where_no_reservation_could_put_it_differs(tmp_path: Path) -> None:
    # Above what is mapped: the search ends below.
    text = UBUNTU_35.replace("[mem 0x1fffc000-0x1fffffff]", "[mem 0x2fffc000-0x2fffffff]")
    assert text != UBUNTU_35
    report = check(text, tmp_path, "3.7")
    (line,) = [line for line in report.lines if line.verdict is LineVerdict.DIFFERS]
    assert line.why == "position"
    assert "0x1fffc000" in str(line.predicted)


def test_the_choice_that_fits_is_named(tmp_path: Path) -> None:
    report = check(VYATTA_2632, tmp_path)
    assert report.spec == "legacy_linear:kernel=2.6.32,fixmap_entries=1100"
    assert report.variant == ("fixmap of more than 1024 entries (many CPUs, or aligned to 256)",)


def test_a_kernel_between_two_releases(tmp_path: Path) -> None:
    """2.6.26-tip prints as 2.6.27 does, and is modelled as that."""
    report = check(TIP_2626, tmp_path)
    assert (report.release, report.kernel) == ("2.6.26-tip-01876-g0609af7-dirty", "2.6.27")
    assert report.count(LineVerdict.MATCH) == len(report.lines) == 11


def test_a_log_without_release_names_all_that_agree(tmp_path: Path) -> None:
    report = check(re.sub(r".*Linux version.*\n", "", UBUNTU_313), tmp_path)
    assert report.release is None
    assert {report.kernel, *report.also} == {f"3.{minor}" for minor in range(9, 19)}
    assert report.agrees


def test_another_kernel_than_the_logs(tmp_path: Path) -> None:
    assert check(UBUNTU_313, tmp_path, "3.18").agrees
    report = check(UBUNTU_313, tmp_path, "3.19")
    assert not report.agrees  # its steps grow faster
    assert report.kernel == "3.19"
    with pytest.raises(SpecError, match=r"no allocator models Linux 2\.4\.37"):
        check(UBUNTU_313, tmp_path, "2.4.37")


def test_hypervisor_logs_have_nothing_to_check(folder: Path) -> None:
    report = check_log(read_boot_log(folder / "xen-dom0-114688p.txt"), registry=Registry())
    assert report.nothing.startswith("a hypervisor's log")
    assert report.lines == ()
    assert report.agrees


def test_plugins_check_lines_that_are_not_linuxs(folder: Path) -> None:
    @attrs.frozen
    class Echo:
        """Predicts whatever was printed."""

        pvmm_api = API_VERSION

        @hookimpl
        def pvmm_check_log(self, facts: tuple[Fact, ...]) -> list[LogLine]:
            return [LogLine(LineVerdict.MATCH, fact.line, fact.text, fact.text) for fact in facts]

    log = read_boot_log(folder / "xen-dom0-114688p.txt")
    registry = Registry()
    registry.add("echo", Echo)
    assert not registry.broken
    report = check_log(log, registry=registry)
    assert report.count(LineVerdict.MATCH) == len(log.facts) > 0
    assert report.nothing == ""


@pytest.mark.slow
def test_more_lines_than_any_kernel_prints(tmp_path: Path) -> None:
    line = "init_memory_mapping: [mem 0x00000000-0x000fffff]\n"
    text = "BIOS-e820: [mem 0x0000000000000000-0x000000003fffffff] usable\n"
    report = check(text + line * (MAX_LINES + 1), tmp_path)
    assert report.count(LineVerdict.UNCHECKED) == MAX_LINES
    assert report.lines[0].why == f"more than {MAX_LINES} lines about mappings"


def test_terabytes_of_small_pages_are_no_problem(tmp_path: Path) -> None:
    """33 million tables: none of them is looked at one by one."""
    report = check(
        "Linux version 4.3.0\n"
        "BIOS-e820: [mem 0x0000000000000000-0x00003fffffffffff] usable\n"
        "init_memory_mapping: [mem 0x00000000-0x000fffff]\n"
        " [mem 0x00000000-0x3fffffffffff] page 4k\n",
        tmp_path,
    )
    assert report.kernel == "4.3.0"
    assert not report.agrees


# -- words and candidates --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "lines"),
    [
        ("2.6.27", ["init_memory_mapping", " 0000000000 - 0040000000 page 1G"]),
        ("2.6.28", ["init_memory_mapping: 0000000000000000-0000000040000000"]),
        (
            "3.4",
            [
                "init_memory_mapping: 0000000000000000-0000000040000000",
                " 0000000000 - 0040000000 page 1G",
                "kernel direct mapping tables up to 40000000 @ 7000-9000",
                "last_pfn = 0x40000 max_arch_pfn = 0x400000000",
            ],
        ),
        (
            "3.5",
            [
                "init_memory_mapping: [mem 0x00000000-0x3fffffff]",
                " [mem 0x00000000-0x3fffffff] page 1G",
                "kernel direct mapping tables up to 0x3fffffff @ [mem 0x00007000-0x00008fff]",
                "e820: last_pfn = 0x40000 max_arch_pfn = 0x400000000",
            ],
        ),
        ("4.10", ["memblock_reserve: [0x0000000000001000-0x0000000000001fff]"]),
        ("4.11", ["e820: last_pfn = 0x40000 max_arch_pfn = 0x400000000"]),
        ("4.12", ["last_pfn = 0x40000 max_arch_pfn = 0x400000000"]),
    ],
)
def test_words_of_a_release(release: str, lines: list[str]) -> None:
    words = Words(leading_version(release))
    said = {
        words.mapped_range(0, 1 << 30),
        words.page_range(0, 1 << 30, "1G"),
        words.table_block(1 << 30, 0x7000, 0x9000),
        words.last_pfn(0x40000, 0x400000000),
        words.reserved(0x1000, 0x2000),
    }
    assert set(lines) <= said


LAST = "7.3"
PRINTED_BY: list[tuple[type[Fact], str, str, str]] = [
    (LastPfn, "2.6.27", "2.6.27", LAST),  # e820_end_pfn
    (MappedRange, "2.6.27", "2.6.30", "4.3"),  # pr_debug since 4.4
    (PageRange, "2.6.27", "2.6.30", "4.3"),
    (TableBlock, "2.6.19", "2.6.27", "3.8"),  # find_early_table_space, gone with 3.9
    (WritableRange, "2.6.39", "2.6.39", "3.8"),  # xen_mapping_pagetable_reserve
    (BrkTable, "3.9", "3.9", "5.7"),  # pr_debug since 5.8
    (Reservation, "2.6.19", "2.6.19", LAST),  # when asked to, with memblock=debug
]


@pytest.mark.parametrize(("kind", "first", "first_32", "last"), PRINTED_BY)
def test_releases_that_print_a_kind_of_line(
    kind: type[Fact], first: str, first_32: str, last: str
) -> None:
    """The last column counts in: one release later the line is gone, or only told when asked to."""
    series = list(all_series())
    for is_32bit, since in ((False, first), (True, first_32)):
        told = [one for one in series if Words(leading_version(one), is_32bit).shows(kind)]
        assert told == series[series.index(since) : series.index(last) + 1]


def test_before_2_6_27_the_last_large_page_was_mapped_whole() -> None:
    """What is printed as the end is that of the firmware's last entry."""
    memory = MemoryMap.sanitise(
        [(0, 0x9F000, E820Type.RAM), (1 << 20, (1 << 28) + 0x1800, E820Type.RAM)]
    )
    end = (1 << 28) + (2 << 20)
    assert Words((2, 6, 26)).end_of_call(end, memory) == (1 << 28) + 0x1000
    assert Words((2, 6, 26)).end_of_call(1 << 27, memory) == 1 << 27
    assert Words((2, 6, 27)).end_of_call(end, memory) == end


def test_large_pages_without_pae_were_called_2m_before_4_0() -> None:
    assert Words((3, 19)).page_name("4M") == "2M"
    assert Words((4, 0)).page_name("4M") == "4M"


def test_every_series_has_candidates_and_the_usual_one_is_first() -> None:
    series = list(all_series())
    assert series[0] == "2.6.19"
    assert series[-1] == "7.3"
    for release in series:
        found = candidates(release, bundled("qemu-512m"), "native", default_registry())
        assert found, release
        assert found[0].unusual == 0
        assert len({(c.spec, c.reserved, c.other_tables, c.large_pages) for c in found}) == len(
            found
        )
    assert candidates("2.4.37", bundled("qemu-512m"), "native", default_registry()) == []
    assert (
        candidates(
            "2.6.24", attrs.evolve(bundled("qemu-512m"), mode=I386), "native", default_registry()
        )
        == []
    )


def test_series_end_where_mainline_changed_its_first_number() -> None:
    series = list(all_series())
    assert [a for a, b in pairwise(series) if a.split(".")[0] != b.split(".")[0]] == [
        "2.6.39", "3.19", "4.20", "5.19", "6.19",
    ]  # fmt: skip
    assert len(set(series)) == len(series) == 21 + 20 + 21 + 20 + 20 + 4


def test_slack_of_a_guest_is_a_question_of_large_ones_alone() -> None:
    """8 MiB at the end (libxl), for guests that have more than twice as much."""
    end = 1 << 28
    guest = attrs.evolve(
        bundled("qemu-512m"), memory_map=MemoryMap.sanitise([(0, end, E820Type.RAM)])
    )

    def kept(machine: Machine) -> set[tuple[tuple[int, int], ...]]:
        found = candidates("3.13", machine, "xen-pv-guest", default_registry())
        for one in found:
            if one.reserved:
                assert one.machine(machine).reserved[-1] == one.reserved[-1]
        return {candidate.reserved for candidate in found}

    assert kept(guest) == {(), ((end - (8 << 20), end),)}
    for size, asked in ((16 << 20, 1), ((16 << 20) + 4096, 2)):
        memory = MemoryMap.sanitise([(0, size, E820Type.RAM)])
        assert len(kept(attrs.evolve(guest, memory_map=memory))) == asked
    found = candidates("3.13", guest, "native", default_registry())
    assert {candidate.reserved for candidate in found} == {()}


@pytest.mark.parametrize(
    ("mode", "end", "pfns"),
    [
        (X86_64, 1 << 29, [0x20000]),
        (X86_64, 1 << 32, [0x100000]),  # e820_end_of_low_ram_pfn is asked above 4 GiB only
        (X86_64, (1 << 32) + 4096, [0x100001, 0x100000]),
        (I386_PAE, 5 << 30, [0x140000]),
    ],
)
def test_last_pfns_of_a_machine(mode: PagingMode, end: int, pfns: list[int]) -> None:
    """Whatever the log told: what follows from the map is compared with it."""
    memory = MemoryMap.sanitise([(0, end, E820Type.RAM)])
    machine = Machine("m", memory, mode, max_pfn_hint=7, max_low_pfn_hint=5)
    found = last_pfns(machine, 1 << 34, Words((6, 1), mode.is_32bit))
    assert [fact.pfn for fact in found] == pfns
    assert [fact.text for fact in found] == [
        f"last_pfn = {pfn:#x} max_arch_pfn = 0x400000000" for pfn in pfns
    ]
    assert all((fact.line, fact.max_arch_pfn) == (0, 1 << 34) for fact in found)


@pytest.mark.parametrize("spec", ["legacy_linear:kernel=3.6", "incremental:kernel=4.19"])
def test_predicted_lines_stand_in_no_line_of_a_log(spec: str) -> None:
    run = Scenario.of(bundled("qemu-512m"), spec, "native").run()
    kinds = [kind for kind, *_ in PRINTED_BY]
    lines = mapping_lines(run, Words((3, 8)), kinds, 1000, 0)
    assert {line.line for line in lines} == {0}
    assert {type(line) for line in lines} >= {MappedRange, PageRange}
    assert mapping_lines(run, Words((3, 8)), kinds, 3, 0) == lines[:3]
    of_one = mapping_lines(run, Words((3, 8)), [MappedRange], 1000, 0)
    assert of_one == [line for line in lines if type(line) is MappedRange]


@pytest.mark.parametrize("limit", ["MAX_TRIALS", "MAX_OPEN_RELEASES", "MAX_WORK"])
def test_what_a_release_leaves_open_is_tried_within_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    assert check(VYATTA_2632, tmp_path).variant
    monkeypatch.setattr(f"paravirt_mm.verify.log.check.{limit}", 0)
    report = check(VYATTA_2632, tmp_path)
    assert (report.variant, report.kernel) == ((), "2.6.32")
    assert not report.agrees


def test_as_many_are_tried_as_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a log that no candidate explains: the usual one, and so many more."""
    text = VYATTA_2632.replace("@ 7000-c000", "@ 7000-16000")
    runs: list[Trial] = []
    run = Trial.run
    monkeypatch.setattr(Trial, "run", lambda trial: runs.append(trial) or run(trial))
    for most in (1, 2):
        runs.clear()
        monkeypatch.setattr("paravirt_mm.verify.log.check.MAX_TRIALS", most)
        assert not check(text, tmp_path).agrees
        assert len(runs) == 1 + most


@pytest.mark.parametrize(
    ("name", "mode", "releases", "tries"),
    [
        ("2.6.31-map-tail-modified", "x86_64", 1, 1),
        ("3.0-head-cut", "x86_64", 17, 17),
        ("3.2-i386-pae", "i386-pae", 1, 3),  # of the twelve that it leaves open
    ],
)
def test_nothing_is_tried_that_is_more_unusual_than_what_agrees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, mode: str, releases: int, tries: int
) -> None:
    """First the usual form of all releases that print so."""
    runs: list[Trial] = []
    run = Trial.run
    monkeypatch.setattr(Trial, "run", lambda trial: runs.append(trial) or run(trial))
    report = check((DATA / f"{name}.txt").read_text(), tmp_path)
    assert report.agrees
    assert report.mode == mode
    assert (len({trial.candidate.release for trial in runs}), len(runs)) == (releases, tries)


def test_what_the_six_best_releases_leave_open_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the usual form of each release that prints so."""
    text = re.sub(r".*Linux version.*\n", "", VYATTA_2632)
    runs: list[Trial] = []
    monkeypatch.setattr(Trial, "run", lambda trial: runs.append(trial))
    check(text, tmp_path)
    usual = [trial.candidate.release for trial in runs if trial.candidate.unusual == 0]
    assert usual == [trial.candidate.release for trial in runs[: len(usual)]]
    assert len(usual) == len(set(usual)) > 6
    assert len(runs) < len(usual) + MAX_TRIALS
    assert {trial.candidate.release for trial in runs[len(usual) :]} == {*usual[:6]}


def test_all_together_may_cost_no_more_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a release all are candidates; one at least is tried. Each costs as much as the log
    has lines to compare, or its map entries, whichever are more.
    """
    runs: list[Trial] = []
    monkeypatch.setattr(Trial, "run", lambda trial: runs.append(trial))
    for left_out in ("Linux version|ACPI", "Linux version|init_memory_mapping| page |BRK"):
        text = re.sub(rf".*(?:{left_out}).*\n", "", UBUNTU_313)
        assert check(text, tmp_path).kernel
        log, facts = runs[0]._log, len(runs[0]._facts)
        assert log.machine is not None
        entries = len(log.machine.memory_map)
        assert entries < facts if "ACPI" in left_out else entries > facts
        cost = max(entries, facts)
        for work, tried in ((1, 1), (3 * cost - 1, 2), (3 * cost, 3)):
            runs.clear()
            with monkeypatch.context() as patch:
                patch.setattr("paravirt_mm.verify.log.check.MAX_WORK", work)
                assert check(text, tmp_path).kernel
            assert len(runs) == tried
        runs.clear()
    # Of the longest log that is compared, thirteen releases are tried.
    block = TableBlock(1, "", 1 << 30, 0x7000, 0x9000)
    series = [*all_series()][-20:]
    longest = (block,) * MAX_LINES
    assert len(_best_trials(log, log.machine, longest, series, default_registry())) == 13


def test_lines_of_other_kinds_in_one_place_are_paired_in_order() -> None:
    """The shorter side's lines have no partner until one of the same kind comes."""
    first, second = MappedRange(1, "", (0, 4096)), MappedRange(2, "", (4096, 8192))
    page, block = PageRange(3, "", 0, 4096, "4k"), Reservation(4, "", 0, 4096, "PGTABLE")
    assert list(aligned([first, page], [block])) == [(first, None), (page, None), (None, block)]
    assert list(aligned([first], [page, second])) == [(None, page), (first, second)]
    assert list(aligned([page, first], [second])) == [(page, None), (first, second)]


@pytest.mark.parametrize(
    ("fact", "since", "before"),
    [
        (LastPfn(1, "e820: last_pfn = 0x5 max_arch_pfn = 0x9", 5, 9), (3, 5), (4, 12)),
        (MappedRange(1, "init_memory_mapping", None), (2, 6, 27), (2, 6, 28)),
        (
            MappedRange(1, "init_memory_mapping: 0000000000000000-0000000000001000", (0, 4096)),
            (2, 6, 28), (3, 5),
        ),
        (
            MappedRange(1, "init_memory_mapping: [mem 0x00000000-0x00000fff]", (0, 4096)),
            (3, 5), (4, 4),
        ),
        (PageRange(1, "0000000000 - 0000001000 page 4k", 0, 4096, "4k"), (2, 6, 27), (3, 5)),
        (
            PageRange(1, " [mem 0x00000000-0x00000fff] page 4k", 0, 4096, "4k"),
            (3, 5), (4, 4),
        ),
        (
            TableBlock(1, "kernel direct mapping tables up to 9 @ 1000-2000", 9, 4096, 8192),
            (2, 6, 19), (3, 5),
        ),
        (WritableRange(1, "whatever", 0, 4096), (2, 6, 39), (3, 9)),
    ],
)  # fmt: skip
def test_a_line_tells_which_releases_print_like_it(
    fact: Fact, since: tuple[int, ...], before: tuple[int, ...]
) -> None:
    alike = releases_that_print_like("", [fact], X86_64)
    assert alike == [each for each in all_series() if since <= leading_version(each) < before]
    assert releases_that_print_like(alike[0], [fact], X86_64) == alike[:1]


def test_what_depends_on_a_lost_part_of_the_map() -> None:
    """RAM up to 16 MiB is made up. What was printed of it stands for the map, what was not lacks
    it; the ISA range is always mapped, and what the linear allocator prints tells of no RAM.
    """

    def why(fact: Fact | None, model: Fact | None, known: int = 16 << 20, linear: int = 0) -> str:
        trial = Trial.__new__(Trial)
        trial._known_from, trial._linear, trial._cut_off = known, bool(linear), False
        told = trial._depends_on_lost([(fact, model)], 0)
        return next((word for word in ("stands for", "missing", "ends") if word in told), told)

    low, other = MappedRange(1, "", (4 << 20, 8 << 20)), MappedRange(2, "", (4 << 20, 9 << 20))
    high, isa = MappedRange(3, "", (16 << 20, 32 << 20)), MappedRange(4, "", (0, 1 << 20))
    brk, table = BrkTable(5, "", 0, 4096), Reservation(6, "", 0, 4096, "PGTABLE")
    page = PageRange(7, "", 4 << 20, 8 << 20, "4k")
    for fact in (low, page):
        assert why(fact, fact) == "stands for"
        assert why(fact, fact, linear=1) == why(fact, fact, known=0) == ""
        assert why(fact, None) == why(fact, None, linear=1) == "missing"
    assert why(low, other) == why(None, page) == "missing"
    for fact in (high, isa):
        assert why(fact, fact) == why(fact, None) == ""
    for fact in (brk, table):
        assert why(fact, fact) == why(fact, None, known=0) == ""
        assert why(fact, None) == why(None, fact) == "missing"


def test_a_fixmap_takes_up_to_three_tables_of_a_32_bit_block() -> None:
    """1,024 entries; more of the block is used by as much, less of it is writable again."""

    def block(end: int, start: int = 0x10000) -> Fact:
        return Reservation(1, "", start, end, "PGTABLE")

    def left(start: int, end: int = 0x30000) -> Fact:
        return WritableRange(1, "", start, end)

    def is_fixmap(
        fact: Fact | None, model: Fact | None, mode: PagingMode = I386, linear: bool = True
    ) -> bool:
        trial = Trial.__new__(Trial)
        trial._machine = Machine("x", MemoryMap.sanitise([(0, 1 << 28, E820Type.RAM)]), mode)
        trial._linear = linear
        return trial._is_fixmap(fact, model)

    for of in (block, left):
        for pages, taken in ((-1, False), (0, False), (1, True), (3, True), (4, False)):
            fact = of(0x20000 + (pages << 12))
            assert is_fixmap(fact, of(0x20000)) is taken
            assert not is_fixmap(fact, of(0x20000), linear=False)
            assert not is_fixmap(fact, of(0x20000), X86_64)
            assert not is_fixmap(fact, None)
            assert not is_fixmap(None, fact)
        assert not is_fixmap(of(0x20000 + 1), of(0x20000, 0x8000))
    assert not is_fixmap(block(0x21000), left(0x20000))
    assert not is_fixmap(left(0x21000), block(0x20000))
    assert is_fixmap(block(0x20001), block(0x20000))


# -- the command -----------------------------------------------------------------------------------


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["verify", "log", *arguments], standalone_mode=False)
    assert result.exception is None
    return int(result.return_value), result.output


def test_command_shows_a_diff(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text(UBUNTU_313.replace("0x34000000-0x377fffff]", "0x34000000-0x375fffff]"))
    code, output = run(str(path))
    assert code == ExitCode.FINDINGS
    assert "    27 - init_memory_mapping: [mem 0x34000000-0x375fffff]\n" in output
    assert "       + init_memory_mapping: [mem 0x34000000-0x377fffff]\n" in output
    assert "    24 = [mem 0x00000000-0x000fffff] page 4k\n" in output
    assert "    40 ? BRK [0x01b97000, 0x01b97fff] PGTABLE    (fixmap" in output
    assert output.endswith("  11 lines match, 2 differ, 1 cannot be checked\n")


def test_command_goes_on_after_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_text(UBUNTU_313)
    bad.write_text("nothing\n")
    code, output = run(str(bad), str(good))
    assert code == ExitCode.BAD_INPUT
    assert "bad.txt: not a boot log" in output
    assert "13 lines match" in output


def test_of_a_folder_each_file_is_taken(tmp_path: Path) -> None:
    (tmp_path / "logs" / "old").mkdir(parents=True)
    (tmp_path / "empty\x1b[2J").mkdir()
    for name in ("b.txt", "old/a.txt", ".hidden"):
        (tmp_path / "logs" / name).write_text(UBUNTU_313)
    code, output = run(str(tmp_path / "logs"))
    assert code == ExitCode.OK
    assert re.findall(r"logs/(.*\.txt): Linux", output) == ["b.txt", "old/a.txt"]
    assert output.splitlines()[-1].startswith("2 logs: 26 lines match")
    code, output = run(str(tmp_path / "empty\x1b[2J"), str(tmp_path / "logs"))
    assert code == ExitCode.BAD_INPUT
    assert "empty\\x1b[2J: there is no file in this folder" in output
    assert "2 logs: 26 lines match" in output


def test_command_prints_json_and_records(tmp_path: Path) -> None:
    path, evidence = tmp_path / "log.txt", tmp_path / "verified.json"
    path.write_text(UBUNTU_313)
    code, output = run("--json", str(path), "--record", str(evidence))
    assert code == ExitCode.OK
    (report,) = json.loads(output)
    assert report["counts"] == {"match": 13, "differs": 0, "cannot be checked": 1}
    assert report["agrees"] is True
    assert json.loads(evidence.read_text()) == {"logs": {"incremental:kernel=3.13": [1, 1]}}
