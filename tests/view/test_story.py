"""A run in words: numbers of the design, figures that are those of the run, bounded texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from typing import Any

import attrs
import pytest

from paravirt_mm import BootState, E820Type, Machine, Map, MemoryMap, Run, Scenario, bundled
from paravirt_mm.engine.answers import Cost
from paravirt_mm.engine.pages import PageRun
from paravirt_mm.engine.steps import HandOver, NewRoot
from paravirt_mm.engine.tables import Leaves
from paravirt_mm.engine.trace import (
    EntriesWritten,
    EntryKind,
    OperationRejected,
    Panicked,
    RangeMapped,
    RunFinished,
    RunStarted,
    StepStarted,
    SurplusReleased,
    TablesAttached,
    TablesReserved,
)
from paravirt_mm.machine.paging import GIB, MIB
from paravirt_mm.report.values import size
from paravirt_mm.view.story import MAX_TEXT, _Teller, _where, bounded, chapters, span_text
from paravirt_mm.view.survey import Subject
from tests.kept import DATA, kept


def test_the_seven_steps_carry_their_numbers(runs: dict[tuple[str, str], Run]) -> None:
    told = chapters(runs["incremental:variant=hpa", "xen"])
    seeds = [chapter.seed for chapter in told if chapter.seed]
    assert seeds == sorted(seeds)
    assert {1, 2, 3, 4, 5, 6} <= set(seeds)


def test_other_designs_carry_none(runs: dict[tuple[str, str], Run]) -> None:
    told = chapters(runs["legacy_linear:kernel=2.6.39", "xen"])
    assert [chapter.seed for chapter in told] == [None] * len(told)


def test_chapters_cover_every_event_once(runs: dict[tuple[str, str], Run]) -> None:
    for run in runs.values():
        told = chapters(run)
        covered = [n for chapter in told for n in range(chapter.first, chapter.last + 1)]
        assert covered == list(range(len(run.trace)))


def numbers(sentences: list[str], pattern: str) -> int:
    return sum(
        int(found[1].replace(",", ""))
        for text in sentences
        if (found := re.match(pattern, text)) is not None
    )


def test_the_words_have_the_figures_of_the_run(runs: dict[tuple[str, str], Run]) -> None:
    for run in runs.values():
        sentences = [text for chapter in chapters(run) for text in chapter.sentences]
        tables = numbers(sentences, r"([\d,]+) pages? from .* becomes? (?:a table|tables)")
        assert tables == run.figures["tables"]
        assert numbers(sentences, r"Set ([\d,]+) pages?") == run.figures["reserved"]
        wasted = numbers(sentences, r".*: ([\d,]+) status changes? for")
        assert wasted == run.figures["flips_wasted"]


def test_it_ends_with_all_of_the_direct_map(runs: dict[tuple[str, str], Run]) -> None:
    last = [chapters(run)[-1].sentences[-1] for run in runs.values()]
    assert set(last) == {"Nothing is left to do."}


def test_bounded_texts_are_printable_and_short(hostile_subjects: list[Subject]) -> None:
    for subject in hostile_subjects:
        for each in subject.exhibits:
            for frame in each.scene.frames:
                for text in (frame.chapter.title, *frame.chapter.sentences):
                    assert text.isprintable()
                    assert len(text) < 40 * MAX_TEXT
    assert bounded("a\u202eb").isprintable()
    assert len(bounded("x" * 10_000, 80)) == 80


def test_a_run_that_gives_up_says_so_last() -> None:
    machine = bundled("sun-x4600m2-256g")
    run = Scenario.of(machine, "legacy_linear:kernel=3.6", "xen").run()
    told = chapters(run)[-1].sentences
    assert told[-1] == "The kernel gives up: Cannot find space for the kernel page tables."
    assert "Nothing is left to do." not in told


# -- against the trace ----------------------------------------------------------------------------


def machine(*ram: tuple[int, int], **given: Any) -> Machine:
    spans = [(0x1000, 0x9F000), *(ram or ((MIB, 64 * MIB),))]
    return Machine("small", MemoryMap.sanitise([(a, b, E820Type.RAM) for a, b in spans]), **given)


LOW = (0x1000, 0x9F000)
TOLD = {
    "proposed": (machine(), "incremental:variant=hpa", "xen"),
    "linear": (machine(), "legacy_linear:kernel=2.6.39", "xen"),
    "panic": (machine((4 * GIB, 4 * GIB + 64 * MIB), reserved=(LOW,)), "legacy_linear:kernel=3.6",
              "native"),
    "refused": (bundled("asus-l8400-256m"), "incremental:kernel=4.19", "xen"),
}  # fmt: skip


@pytest.fixture(scope="module")
def told() -> dict[str, Run]:
    """Small runs: the proposed design, a linear one, a panic and a refusal."""
    return {name: Scenario.of(*scenario).run() for name, scenario in TOLD.items()}


def test_stories_word_for_word(told: dict[str, Run]) -> None:
    """Kept to be read: do the words say what happened? `tests.kept` tells how to mean a change."""
    for name, run in told.items():
        lines = []
        for one in chapters(run):
            seed = "" if one.seed is None else f" (step {one.seed} of the design)"
            lines += [f"{one.number}: {one.title}{seed}", *(f"    {s}" for s in one.sentences)]
        text = "\n".join([*lines, ""])
        assert text == kept(DATA / "stories" / f"{name}.txt", text)
    assert {path.name for path in (DATA / "stories").iterdir()} == {f"{name}.txt" for name in told}


def counts(sentences: Iterable[str], pattern: str) -> Counter[str]:
    """Numbers by the word after each, of the sentences that match."""
    found: Counter[str] = Counter()
    for text in sentences:
        if match := re.match(pattern, text):
            for number, word in re.findall(r"(\d[\d,]*) (\w+)", match[1]):
                found[word] += int(number.replace(",", ""))
    return found


def test_levels_pins_and_calls_are_those_of_the_figures(
    runs: dict[tuple[str, str], Run], told: dict[str, Run]
) -> None:
    for run in [*runs.values(), told["proposed"], told["linear"]]:
        figures = run.figures
        sentences = [text for chapter in chapters(run) for text in chapter.sentences]
        by_level = counts(sentences, r"By level: (.*)\.")
        pinned = counts(sentences, r"The hypervisor checks and pins (.*)\.")
        checked = counts(sentences, r"The hypervisor checks, because a .* to \w+: (.*)\.")
        for level in range(1, 6):
            assert by_level[f"L{level}"] == figures[f"tables_l{level}"]
            if level < 5:
                assert pinned[f"L{level}"] == figures[f"pins_l{level}"]
                assert checked[f"L{level}"] == figures[f"validations_l{level}"]
        calls = counts(sentences, r"Asked of the hypervisor: (.*)\.")
        kinds = {name: calls[name] for name in ("mmu_update", "update_va_mapping", "mmuext_op")}
        assert kinds == {name: figures[f"hypercalls_{name}"] for name in kinds}
        assert calls.total() == figures["hypercalls"]
        stores = numbers(sentences, r"([\d,]+) stores? to read-only tables trap")
        assert stores == figures["emulated_writes"]
        joins = numbers(sentences, r"([\d,]+) tables? joins? the tree")
        later = [e for e in run.trace.of(TablesAttached) if e.order is HandOver.LATER]
        assert joins == sum(event.batch.count for event in later)


def test_ranges_are_those_of_the_trace(
    runs: dict[tuple[str, str], Run], told: dict[str, Run]
) -> None:
    """What a chapter says is mapped, set aside, taken and given back is what its events say; what
    exists by then grows by it, and begins anew with a new tree.
    """
    for run in [*runs.values(), *told.values()]:
        exists = 0
        for one in chapters(run):
            events = run.trace.events[one.first : one.last + 1]
            text = " ".join(one.sentences)
            for event in events:
                if isinstance(event, RunStarted):
                    exists = sum(high - low for low, high in event.boot.direct_mapped)
                    for name, span in event.boot.places:
                        assert f"{name.rstrip(':')}: {span_text(*span)}." in one.sentences
                    promised = sum(high - low for low, high in event.promised)
                    assert f"To be mapped in the end: {size(promised)} of memory" in text
                elif isinstance(event, StepStarted) and isinstance(event.step, Map):
                    assert f"Map {span_text(event.step.start, event.step.end)}." in one.sentences
                elif isinstance(event, StepStarted) and isinstance(event.step, NewRoot):
                    exists = 0
                elif isinstance(event, TablesReserved | SurplusReleased):
                    low, high = event.pages[0].span
                    assert f"{low:#x}-{high:#x}" in text
            mapped: Counter[int] = Counter()
            for event in events:
                if isinstance(event, RangeMapped):
                    mapped[event.leaves.level] += event.leaves.end - event.leaves.start
            if mapped:
                parts = ", ".join(f"{size(n)} by L{level} entries" for level, n in mapped.items())
                assert f"Maps {size(mapped.total())}: {parts}." in one.sentences
                exists += mapped.total()
                share = round(100 * exists / promised)
                so_far = f"So far {size(exists)} of the direct map exist ({share} %)."
                assert so_far in one.sentences
            assert one.mapped == exists


def test_a_step_is_named_by_what_it_does_where_it_has_no_label() -> None:
    """Numbers of the design are 1 to 7, and step 5 after step 6 is the repetition."""
    teller = _Teller()
    labels = ["", "1: a", "5: b", "6: c", "5: d", "7: e", "8: f", "0: g", "5:h", "x" * 400]
    named = [teller.named(Map(0, 1, label=text)) for text in labels]
    assert named[:9] == [
        (None, "map"), (1, "a"), (5, "b"), (6, "c"), (7, "repeat: d"), (7, "e"), (None, "8: f"),
        (None, "0: g"), (7, "repeat: h"),
    ]  # fmt: skip
    assert len(named[9][1]) == MAX_TEXT


def test_where_nothing_is_promised_no_share_of_it_is_told() -> None:
    teller = _Teller()
    teller.tell(RangeMapped(Leaves(1, 0, 8192), ()))
    assert list(teller.end()) == ["Maps 8K: 8K by L1 entries."]
    assert teller.mapped == 8192


@pytest.mark.parametrize(
    ("missing", "lack"),
    [
        (0, ""),
        (1, "; 1 table would have been missing"),
        (1200, "; 1,200 tables would have been missing"),
    ],
)
def test_who_gives_up_says_how_much_was_missing(missing: int, lack: str) -> None:
    teller = _Teller()
    teller.tell(Panicked("no space", missing))
    teller.tell(RunFinished(()))
    assert list(teller.end()) == [f"The kernel gives up: no space{lack}."]
    refused = _Teller()
    refused.tell(OperationRejected("pin L1", -22))
    refused.tell(RunFinished(()))
    assert list(refused.end()) == ["The platform refuses: pin L1, -22."]


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ((PageRun(1, 1, 1),), "1 page too large: 0x1000-0x2000 goes back unused."),
        (
            (PageRun(1, 2, 1), PageRun(8, 1, 1)),
            "3 pages too large: 0x1000-0x3000, 0x8000-0x9000 go back unused.",
        ),
    ],
)
def test_what_was_guessed_too_much_goes_back(runs: tuple[PageRun, ...], words: str) -> None:
    teller = _Teller()
    teller.tell(SurplusReleased(runs))
    assert list(teller.end()) == [f"The guess was {words}"]


class Part(StrEnum):
    """What a platform may place."""

    LONG = "p" * 80


def test_lists_of_places_are_cut_after_three() -> None:
    runs = [PageRun(n * 16, 2, 1) for n in range(5)]
    three = "0x0-0x2000, 0x10000-0x12000, 0x20000-0x22000"
    assert _where(runs[:3]) == three
    assert _where(runs[:4]) == f"{three} and 1 more place"
    assert _where(runs) == f"{three} and 2 more places"
    pieces = [(n * 4 * MIB, n * 4 * MIB + MIB) for n in range(4)]
    boot = BootState(mapped=tuple(pieces[:3]), max_pfn_mapped=0, features=machine().features)
    assert _first_words(boot).endswith("(1M).")
    boot = attrs.evolve(boot, mapped=tuple(pieces))
    assert _first_words(boot).endswith("0x800000-0x900000 (1M) ....")
    assert _first_words(boot).startswith("The boot tables let the kernel write 0x0-0x100000 (1M), ")
    many = BootState(
        mapped=((0, MIB),),
        max_pfn_mapped=0,
        features=machine().features,
        places=tuple((Part.LONG, (n, n + 1)) for n in range(20)),
    )
    teller = _Teller()
    teller.tell(RunStarted(machine(), many, "a", "b", (LOW,)))
    places = [text for text in teller.end() if text.startswith("p")]
    assert len(places) == 12
    teller.begin()
    calls = Cost(hypercalls={"c" * 100: 1})
    teller.tell(EntriesWritten(0, 1, EntryKind.LEAF, 7, 0, calls))
    assert next(iter(teller.end())) == f"Asked of the hypervisor: 1 {'c' * 39}…."
    assert {len(text.split(": ")[0]) for text in places} == {60}


def _first_words(boot: BootState) -> str:
    teller = _Teller()
    teller.tell(RunStarted(machine(), boot, "a", "b", (LOW,)))
    return next(iter(teller.end()))
