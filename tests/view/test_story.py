"""A run in words: numbers of the design, figures that are those of the run, bounded texts."""

from __future__ import annotations

import re

from paravirt_mm import Run, Scenario, bundled
from paravirt_mm.view.story import MAX_TEXT, bounded, chapters
from paravirt_mm.view.survey import Subject


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
