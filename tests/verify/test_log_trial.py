"""What a trial of ``verify log`` makes of single lines, at the boundaries of each rule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from paravirt_mm import Machine, RangeSet, Registry, default_registry
from paravirt_mm.machine.paging import X86_64
from paravirt_mm.sources import read_boot_log
from paravirt_mm.sources.bootlog.facts import (
    BootLog,
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
from paravirt_mm.verify.log.check import check_log
from paravirt_mm.verify.log.pairing import tail_of_brk
from paravirt_mm.verify.log.trial import Trial, _has_page_sizes
from paravirt_mm.verify.log.variants import candidates, releases_that_print_like

MATCH, DIFFERS, UNCHECKED = LineVerdict.MATCH, LineVerdict.DIFFERS, LineVerdict.UNCHECKED
MIB, GIB = 1 << 20, 1 << 30
LOG = """\
Linux version 3.18.0
BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable
BIOS-e820: [mem 0x0000000000100000-0x00000000bfffffff] usable
BIOS-e820: [mem 0x0000000100000000-0x000000013fffffff] usable
"""
EARLY, WHOLE, LOW = 0x150000, 0x140000, 0xC0000


def last_pfn(pfn: int) -> str:
    return f"e820: last_pfn = {pfn:#x} max_arch_pfn = 0x400000000\n"


def read(tmp_path: Path, text: str) -> BootLog:
    path = tmp_path / "log.txt"
    path.write_text(text)
    return read_boot_log(path)


@pytest.fixture
def log(tmp_path: Path) -> BootLog:
    return read(tmp_path, LOG + last_pfn(WHOLE) + last_pfn(LOW))


def trial_of(log: BootLog, release: str = "3.18", facts: Sequence[Fact] | None = None) -> Trial:
    assert log.machine is not None
    candidate = candidates(release, log.machine, "native", default_registry())[0]
    return Trial(
        log, log.facts if facts is None else facts, log.machine, candidate, default_registry()
    )


# -- the end of RAM --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("printed", "verdicts"),
    [
        ((WHOLE, LOW), (MATCH, MATCH)),
        ((EARLY, WHOLE, LOW), (UNCHECKED, MATCH, MATCH)),  # mtrr_trim_uncached_memory
        ((WHOLE, EARLY, LOW), (MATCH, DIFFERS, MATCH)),
        ((EARLY, LOW), (DIFFERS, MATCH)),
        ((EARLY, EARLY, LOW), (UNCHECKED, DIFFERS, MATCH)),
    ],
)
def test_only_the_first_of_more_ends_than_follow_may_be_from_before_the_map_was_trimmed(
    tmp_path: Path, printed: tuple[int, ...], verdicts: tuple[LineVerdict, ...]
) -> None:
    report = check_log(read(tmp_path, LOG + "".join(map(last_pfn, printed))))
    assert tuple(line.verdict for line in report.lines) == verdicts
    for line in report.lines:
        assert ("trimmed to what the MTRRs make" in line.why) is (line.verdict is UNCHECKED)


def test_an_end_at_4_gib_lies_below(log: BootLog) -> None:
    """It is shown beside the expected end of its side; where there is none, beside the first."""
    trial = trial_of(log)

    def beside(pfn: int, *expected: int) -> str | None:
        line = trial._last_pfn(
            LastPfn(1, "", pfn, 9), [LastPfn(0, hex(each), each, 9) for each in expected]
        )
        assert line.verdict is DIFFERS
        return line.predicted

    for pfn, near in ((0xFFFFF, LOW), (0x100000, LOW), (0x100001, WHOLE), (EARLY, WHOLE)):
        assert beside(pfn, WHOLE, LOW) == hex(near)
        assert beside(pfn, WHOLE) == hex(WHOLE)
    assert beside(0xFFFFF, WHOLE, 0x100000) == hex(0x100000)


def test_an_end_within_what_is_made_up_tells_nothing(log: BootLog) -> None:
    """Nor does any, where all RAM is."""
    trial = trial_of(log)
    expected = [LastPfn(0, "", WHOLE, 9)]
    for known, pfn, verdict in (
        (0, LOW, DIFFERS),
        ((LOW << 12) - 1, LOW, DIFFERS),
        (LOW << 12, LOW, UNCHECKED),
        (LOW << 12, LOW + 1, DIFFERS),
        ((WHOLE << 12) - 1, EARLY, DIFFERS),
        (WHOLE << 12, EARLY, UNCHECKED),
        (0, WHOLE, MATCH),
        (1 << 40, WHOLE, MATCH),
    ):
        trial._known_from = known
        line = trial._last_pfn(LastPfn(1, "", pfn, 9), expected)
        assert line.verdict is verdict
        assert ("missing from the log" in line.why) is (verdict is UNCHECKED)


# -- low memory, brk, how well a candidate fits ---------------------------------------------------


@pytest.mark.parametrize(
    ("named", "tried", "kept"),
    [
        ("2.6.36", "2.6.36", 0),
        ("2.6.36", "2.6.37", 64 << 10),  # CONFIG_X86_RESERVE_LOW
        ("2.6.36", "5.12", 64 << 10),
        ("2.6.36", "5.13", 1 << 20),  # reserve_bios_regions, then all of it
        ("2.6.37", "2.6.36", 0),
        ("5.13", "5.12", 64 << 10),
        ("5.13", "2.6.36", 0),
        (None, "2.6.36", 0),
        (None, "5.12", 64 << 10),
        (None, "5.13", 1 << 20),
    ],
)
def test_each_release_keeps_low_memory_its_own_way(
    tmp_path: Path, named: str | None, tried: str, kept: int
) -> None:
    text = LOG.replace("Linux version 3.18.0", f"Linux version {named}" if named else "")
    log = read(tmp_path, text + last_pfn(LOW))
    assert log.machine is not None
    machine = trial_of(log, tried)._with_low_memory(log.machine)
    conventional = RangeSet(machine.reserved).within(0, 0x9F000)
    assert list(conventional) == ([(0, min(kept, 0x9F000))] if kept else [])


def test_what_a_log_lists_as_reserved_is_all_there_is(log: BootLog) -> None:
    assert log.machine is not None
    table = Reservation(1, "", 0x7000, 0x9000, "PGTABLE")
    other = Reservation(2, "", 0x1000, 0x2000, "TRAMPOLINE")
    for facts, listed in (((), False), ((table,), False), ((table, other), True)):
        trial = trial_of(attrs.evolve(log, facts=(*log.facts, *facts)), "5.13")
        assert trial._lists_reservations is listed
        assert (trial._with_low_memory(log.machine) is log.machine) is listed


def test_a_kernel_has_brk_since_2_6_30(log: BootLog) -> None:
    assert log.machine is not None
    assert log.machine.kernel.brk_end > log.machine.kernel.brk_start
    for release, has in (("2.6.29", False), ("2.6.30", True)):
        kernel = trial_of(log, release)._without_brk(log.machine).kernel
        assert (kernel.brk_end > kernel.brk_start) is has
        assert kernel.brk_start == log.machine.kernel.brk_start


def test_a_line_that_differs_weighs_more_than_one_that_matches(
    log: BootLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice as much; one that cannot be checked half as much."""
    trial = trial_of(log)
    trial.candidate = attrs.evolve(trial.candidate, unusual=3)
    for verdicts, score in (
        ((), 0),
        ((MATCH, MATCH), 2),
        ((MATCH, UNCHECKED), 0.5),
        ((MATCH, MATCH, DIFFERS), 0),
        ((DIFFERS, UNCHECKED), -2.5),
    ):
        lines = [LogLine(verdict, 1, "", "") for verdict in verdicts]
        monkeypatch.setattr(trial, "_last_pfns", lambda _, lines=lines: iter(lines))
        trial.run()
        assert trial.lines == tuple(lines)
        assert trial.rank == (score, -3)
        assert trial.perfect is (set(verdicts) <= {MATCH})


# -- blocks of the linear allocator ----------------------------------------------------------------


def block(start: int, end: int, up_to: int = GIB, line: int = 1) -> TableBlock:
    return TableBlock(line, "", up_to, start, end)


@pytest.mark.parametrize(
    ("printed", "between", "words"),
    [
        ((0x5000, 0x8000), (0x8000, 0xC000), "9000-c000"),
        ((0x7000, 0xA000), (0xA000, 0xC000), "a000-c000"),
        ((0xD000, 0x10000), (0x9000, 0xD000), "9000-c000"),
        ((0xA000, 0xD000), (0x9000, 0xA000), "9000-a000"),
    ],
)
def test_something_unlisted_between_moves_a_block(
    log: BootLog,
    monkeypatch: pytest.MonkeyPatch,
    printed: tuple[int, int],
    between: tuple[int, int],
    words: str,
) -> None:
    """It must lie where the block would have been, in a part of that at least."""
    assert log.machine is not None
    trial, machine = trial_of(log), log.machine
    asked: list[list[Any]] = []
    known = {(0x1000, 0x2000): "known"}
    fact, model = block(*printed), block(0x9000, 0xC000, line=0)
    same = (block(0x3000, 0x4000, MIB), block(0x3000, 0x4000, MIB))
    other = (block(0x3000, 0x6000, MIB), block(0x4000, 0x5000, MIB))
    predicted = [same[1], block(*printed, line=0)]

    def predict(_machine: Machine, _kinds: object, taken: Sequence[Any]) -> list[Fact]:
        asked.append(list(taken))
        return list(predicted)

    def hidden(*pairs: Any) -> object:
        asked.clear()
        return trial._hidden(machine, pairs, {TableBlock}, known)

    monkeypatch.setattr(trial, "_predict", predict)
    told = f"something in {words} that the log does not list"
    assert hidden(same, (fact, model)) == (between, told)
    assert asked == [[(0x1000, 0x2000), between]]
    assert hidden(same) is hidden(other) is hidden((fact, None)) is hidden((None, model)) is None
    predicted[1] = block(printed[0] + 0x1000, printed[1] + 0x1000)
    assert hidden(same, (fact, model)) is None
    predicted[1] = block(*printed)
    trial._lists_reservations = True
    assert hidden(same, (fact, model)) is None


def test_the_place_of_a_block_beside_something_unlisted_is_not_checked(log: BootLog) -> None:
    """Its size is. A block elsewhere is where it must be."""
    trial = trial_of(log)
    fact = block(0x5000, 0x8000)
    taken = {(0x8000, 0xC000): "X", (0x2000, 0x5000): "Y"}

    def judged(model: TableBlock, *spans: tuple[int, int]) -> list[tuple[LineVerdict, str]]:
        lines = trial._judged(fact, model, {span: taken[span] for span in spans})
        return [(line.verdict, line.why) for line in lines]

    for span, why in taken.items():
        assert judged(fact, span) == [(MATCH, "size"), (UNCHECKED, f"depends on {why}")]
    assert judged(fact) == [(MATCH, "")]
    taken[0x8001, 0xC000] = taken[0x2000, 0x4FFF] = taken[0x5000, 0x8000] = "Z"
    assert judged(fact, (0x8001, 0xC000), (0x2000, 0x4FFF), (0x5000, 0x8000)) == [(MATCH, "")]
    moved = block(0x6000, 0x9000)
    assert judged(moved) == judged(moved, (0x8000, 0xC000)) == [(DIFFERS, "position")]
    assert judged(block(0x5000, 0x9000)) == [(DIFFERS, "")]
    trial._known_from = 1
    assert [verdict for verdict, _ in judged(moved)] == [UNCHECKED]


@pytest.mark.parametrize("end", [4 * GIB - 4096, 4 * GIB])
@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("initrd", [None, (32 * MIB, 48 * MIB)])
def test_what_the_builders_tables_save_is_known_where_the_log_lists_all_that_they_map(
    log: BootLog, end: int, listed: bool, initrd: tuple[int, int] | None
) -> None:
    """Kernel and initrd; and they save tables in the first call alone, which ends below 4 GiB."""
    assert log.machine is not None
    trial = trial_of(attrs.evolve(log, kernel_listed=listed))
    trial._machine = attrs.evolve(log.machine, initrd=initrd)
    fact, model = WritableRange(1, "", end - 8192, end), WritableRange(0, "", end - 4096, end)
    (line,) = trial._judged(fact, model, {})
    known = end == 4 * GIB or (listed and initrd is not None)
    assert line.verdict is (DIFFERS if known else UNCHECKED)
    assert ("domain builder" in line.why) is not known
    assert [line.verdict for line in trial._judged(fact, fact, {})] == [MATCH]


# -- lines that are lost ---------------------------------------------------------------------------


def test_the_page_sizes_of_a_lost_header_stand_behind_it() -> None:
    """All of them, up to the next header; a block stands for a range that is not told."""
    header, hidden = MappedRange(0, "", (0, GIB)), MappedRange(0, "", None)
    small, large = PageRange(1, "", 0, MIB, "4k"), PageRange(2, "", MIB, GIB, "2M")
    tables = block(0x7000, 0x9000)

    def has(head: MappedRange, *behind: tuple[Fact | None, Fact | None]) -> bool:
        return _has_page_sizes([(small, None), (None, head), *behind], 1, head)

    assert has(header, (small, small), (large, large))
    assert not has(header)
    assert not has(header, (small, small), (large, attrs.evolve(large, page="1G")))
    assert not has(header, (small, small), (None, large))
    assert not has(header, (tables, tables))
    assert has(hidden, (tables, tables))
    assert not has(hidden, (None, tables))
    assert not has(hidden, (tables, block(0x7000, 0xA000)))
    assert has(header, (small, small), (None, header), (None, large))
    assert not has(header, (None, header), (small, small))


# -- which releases are tried ----------------------------------------------------------------------


def test_a_release_that_does_not_print_so_has_the_next_that_does_beside_it() -> None:
    fact = MappedRange(1, "init_memory_mapping: [mem 0x00000000-0x00000fff]", (0, 4096))
    for named, tried in (
        ("2.6.24", ["2.6.24", "3.5"]),
        ("3.4", ["3.4", "3.5"]),
        ("3.5", ["3.5"]),
        ("4.4", ["4.4"]),  # none after it prints so
    ):
        assert releases_that_print_like(named, [fact], X86_64) == tried
    unknown = MappedRange(1, "init_memory_mapping of another kind", (0, 4096))
    assert releases_that_print_like("3.5", [unknown], X86_64) == ["3.5"]


def test_where_there_is_nothing_to_check_that_is_told(tmp_path: Path) -> None:
    log = read(tmp_path, LOG)
    assert log.machine is not None
    report = check_log(log)
    assert report.nothing == "the log holds no line about mappings or tables"
    assert report.assumed == log.machine.provenance.assumed != ()
    for text, nothing in (
        ("Linux version 3.18.0\n", "the log holds no line about mappings or tables"),
        (
            "(XEN) Xen version 4.17.0 (me) debug=n\n(XEN) Latest ChangeSet:\n"
            "(XEN) Xen-e820 RAM map:\n(XEN)  [0000000000000000, 0000000080000000] (usable)\n",
            "a hypervisor's log: nothing to check for a Linux kernel",
        ),
    ):
        assert check_log(read(tmp_path, text)).nothing == nothing


def test_where_no_allocator_models_it_that_is_told(tmp_path: Path) -> None:
    for release in ("3.18.0", ""):
        text = LOG.replace("Linux version 3.18.0", f"Linux version {release}" if release else "")
        report = check_log(read(tmp_path, text + last_pfn(LOW)), registry=Registry())
        (line,) = report.lines
        assert line.verdict is UNCHECKED
        assert line.why == f"no allocator models Linux {release or 'of this kind'}"


def test_tables_of_brk_behind_all_that_is_predicted_are_the_fixmaps() -> None:
    """As many as stand there at the end, and nothing else."""
    brk, header = BrkTable(1, "", 0, 4096), MappedRange(2, "", (0, GIB))
    extra, both, lost = (brk, None), (brk, brk), (None, brk)
    for pairs, tail in (
        ([], 0),
        ([extra], 0),
        ([extra, extra, extra], 0),
        ([both], 1),
        ([lost], 1),
        ([both, extra], 1),
        ([extra, both, extra, extra], 2),
        ([extra, (header, None)], 2),
        ([(header, None), extra, extra], 1),
    ):
        assert tail_of_brk(pairs) == tail
