"""What a search tries, keeps and tells: real machines first, then batches that a seed decides, half
of them fresh, the others the nearest ones changed further.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

from paravirt_mm import (
    MODES,
    E820Type,
    KernelImage,
    Machine,
    MemoryMap,
    Outcome,
    Run,
    Scenario,
    bundled,
)
from paravirt_mm.engine.trace import RangeSplit, TablesAllocated, Trace
from paravirt_mm.errors import SpecError
from paravirt_mm.guard import Stopped
from paravirt_mm.hunt import search
from paravirt_mm.hunt.account import Account, Tally
from paravirt_mm.hunt.condition import Condition
from paravirt_mm.hunt.search import BATCH, KEPT, BatchResult, HuntResult, Quarry, hunt, run_batch
from paravirt_mm.sources import bundled_machines
from paravirt_mm.sources.generated import Seeded

MIB = 1 << 20
HPA = Quarry("incremental:variant=hpa", "native", "violation")
SMALL = Machine(
    "small", MemoryMap.sanitise([(0, 0x9F000, E820Type.RAM), (MIB, 64 * MIB, E820Type.RAM)])
)
TOP = Machine(
    "top", MemoryMap.sanitise([(0, 0x9F000, E820Type.RAM), (MIB, 96 * MIB, E820Type.RAM)])
)


RUN = Scenario.of(SMALL, "incremental:variant=hpa", "native").run()


class Watching(Quarry):
    """Notes what is tried."""

    seen: ClassVar[list[Machine]] = []
    extra: ClassVar[list[bool]] = []

    def runs(self, machine: Machine, *, watched: bool = True, extra: bool = True) -> Any:
        self.seen.append(machine)
        self.extra.append(extra)
        return super().runs(machine, watched=watched, extra=extra)


@pytest.fixture(autouse=True)
def _fresh_notes() -> None:
    Watching.seen, Watching.extra = [], []


def done(quarry: Quarry, number: int, seed: int = 0, most: int = BATCH,
         stopped: Mapping[int, str] | None = None) -> BatchResult:  # fmt: skip
    *_, result = search._batch(quarry, seed, number, stopped or {}, most)
    assert isinstance(result, BatchResult)
    return result


# -- batches -------------------------------------------------------------------------------------


def test_the_first_batch_tries_the_real_machines_as_they_are() -> None:
    quarry = Watching("incremental:variant=hpa", "native", "violation", machines=(SMALL, TOP))
    result = done(quarry, search._START)
    assert Watching.seen == [SMALL, TOP]
    assert (result.tries, result.found, result.errors) == (2, None, 0)
    assert {*Quarry("a", "b", "c").start} == {*map(bundled, bundled_machines())}
    Watching.seen = []
    only = attrs.evolve(quarry, machines=(SMALL, bundled("pae-4g")), modes=("i386-pae",))
    assert done(only, search._START).tries == 1
    assert [m.name for m in Watching.seen] == ["pae-4g"]
    Watching.seen = []
    assert done(quarry, search._START, most=1).tries == 1


def test_a_batch_tries_no_machine_twice_nor_a_real_one_as_it_is() -> None:
    quarry = Watching("incremental:variant=hpa", "native", "tables == 77.5", machines=(SMALL,))
    result = done(quarry, 4, seed=9)
    assert {machine.name for machine in Watching.seen} == {"hunt-9-4"}
    assert result.tries == len(Watching.seen) == len({*Watching.seen}) == BATCH
    assert attrs.evolve(SMALL, name="hunt-9-4") not in Watching.seen
    assert 0 < result.nearest < 1


@pytest.mark.parametrize(("number", "size"), [(2, BATCH), (3, BATCH * search.LONG)])
def test_each_fourth_batch_is_a_long_one_and_as_many_of_it_are_fresh(
    monkeypatch: pytest.MonkeyPatch, number: int, size: int
) -> None:
    """So that what takes hundreds of changes is come to."""
    drawn: list[Machine] = []
    fresh = search._fresh

    def noted(choose: Seeded, quarry: Quarry, name: str, **how: bool) -> Machine:
        drawn.append(fresh(choose, quarry, name, **how))
        return drawn[-1]

    monkeypatch.setattr(search, "_fresh", noted)
    monkeypatch.setattr(Quarry, "runs", lambda *_, **__: (RUN, None))
    quarry = attrs.evolve(HPA, condition="tables < 0", machines=(SMALL, TOP))
    assert size - 5 <= done(quarry, number, most=10**6).tries <= size, "few find nothing new"
    assert BATCH // 2 <= len(drawn) < BATCH


@pytest.mark.parametrize(
    ("condition", "asks"),
    [("tables > 9999999", False), ("panic", False), ("xen.model > 1", True),
     ("differs or panic", True), ("error", True), ("panic and not error 'x'", True)],
)  # fmt: skip
def test_plugins_are_asked_for_figures_where_these_may_decide(condition: str, asks: bool) -> None:
    """To work them out takes as long as a tenth of a try."""
    quarry = Watching("incremental", "xen", condition, machines=(SMALL,), other="incremental")
    done(quarry, search._START)
    assert {*Watching.extra} == {asks}
    run, _ = quarry.runs(SMALL, watched=False, extra=asks)
    assert any(name.startswith("xen.") for name in run.figures) is asks


def test_a_plugin_of_others_is_asked_for_figures_always(tmp_path: Any) -> None:
    """What it does wrong there is an error that a hunt tells."""
    path = tmp_path / "copy_of_it.py"
    path.write_text("from paravirt_mm_xen import Xen\nclass Copy(Xen): pass\n", encoding="utf-8")
    done(Watching("incremental", f"{path}:Copy", "panic", machines=(SMALL,)), search._START)
    assert Watching.extra == [True]


STRANGER = """
from paravirt_mm import hookimpl
from paravirt_mm.hunt import search
from paravirt_mm_xen import Xen
class Patches(Xen):
    @hookimpl
    def pvmm_features(self, machine):
        search.KEPT += 1
        return Xen.pvmm_features(self, machine)
class Good(Xen): pass
"""


def test_a_batch_in_which_a_plugin_replaces_something_is_worth_nothing(tmp_path: Path) -> None:
    """All of its tries are errors, whatever they found; what was replaced is put back."""
    path = tmp_path / "stranger.py"
    path.write_text(STRANGER, encoding="utf-8")
    good = Quarry("incremental", f"{path}:Good", "tables > 9999", machines=(SMALL, TOP))
    (found,) = good.suspects()
    assert "Good" in found
    assert Quarry("incremental", "xen", "ok").suspects() == ()
    said = run_batch(good, 0, search._START)
    assert (said.tries, said.found, said.errors, said.error) == (2, None, 0, "")
    assert said.nearest < 1
    assert [*search._batch(good, 0, search._START, {})] == [1, 2, said]
    bad = attrs.evolve(good, backend=f"{path}:Patches")
    for condition, tries in (("tables > 9999", 2), ("tables > 0", 1)):
        said = run_batch(attrs.evolve(bad, condition=condition), 0, search._START)
        assert (said.number, said.tries, said.found, said.errors) == (-1, tries, None, tries)
        assert said.nearest == 1
        assert "Patches" in said.error
        assert "replaces paravirt_mm.hunt.search.KEPT while it runs" in said.error
    assert bad.judge(SMALL)[1][0] == "error"
    assert attrs.evolve(bad, condition="error").holds(SMALL)
    assert not attrs.evolve(good, condition="error").holds(SMALL)
    assert search.KEPT == KEPT


def test_plugins_of_the_package_are_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """That takes as long as a few tries, and nobody needs it."""
    monkeypatch.delattr(search, "unchanged")
    quarry = attrs.evolve(HPA, machines=(SMALL,))
    assert run_batch(quarry, 0, search._START).tries == 1


def test_a_seed_and_a_number_decide_what_is_tried() -> None:
    quarry = Watching("incremental:variant=hpa", "native", "tables == 77", machines=(SMALL, TOP))
    tried = []
    for seed, number in ((3, 1), (3, 1), (3, 2), (4, 1)):
        Watching.seen = []
        result = done(quarry, number, seed, most=20)
        tried.append((result.nearest, result.errors, tuple(Watching.seen[:20])))
    assert tried[0] == tried[1]
    assert len({*tried}) == 3


@pytest.mark.slow
def test_a_seed_tries_the_same_in_every_process() -> None:
    """Whatever order its sets have, and each time again."""
    code = (
        "from paravirt_mm import bundled\n"
        "from paravirt_mm.hunt.search import Quarry, run_batch\n"
        "from paravirt_mm.hunt.shrink import shrink\n"
        "quarry = Quarry('incremental:variant=hpa', 'native', 'tables == 77')\n"
        "print(run_batch(quarry, 3, 1), run_batch(quarry, 3, 1), sep='\\n')\n"
        "print(shrink(bundled('pae-4g'), lambda m: len(m.memory_map.ram_pages()) >= 2))\n"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    (text,) = told
    first, second, _ = text.splitlines()
    assert first == second


def test_a_batch_ends_with_what_it_finds() -> None:
    found = done(attrs.evolve(HPA, condition="tables > 0", machines=(SMALL, TOP)), search._START)
    assert (found.found, found.tries, found.nearest) == (SMALL, 1, 0.0)
    second = attrs.evolve(HPA, condition="machine.ram > 70000000", machines=(SMALL, TOP))
    found = done(second, search._START)
    assert (found.found, found.tries) == (TOP, 2)


def test_what_had_to_be_stopped_is_an_error_of_a_plugin() -> None:
    quarry = Watching("incremental:variant=hpa", "native", "violation", machines=(SMALL, TOP))
    result = done(quarry, search._START, stopped={2: "it took 5 s"})
    assert Watching.seen == [SMALL], "it is not run again"
    assert (result.tries, result.errors) == (2, 1)
    assert "it took 5 s" in result.error
    both = done(quarry, search._START, stopped={1: "first", 2: "second"})
    assert both.errors == 2
    assert "first" in both.error


def test_numbers_of_plugins_are_told_where_the_condition_asks_for_any() -> None:
    asked = Quarry("incremental", "xen", "xen.model > 1", machines=(SMALL,))
    assert "xen.hypercalls_clearing" in done(asked, search._START).figures
    assert all("." in name for name in done(asked, search._START).figures)
    assert done(attrs.evolve(asked, condition="violation"), search._START).figures == frozenset()


def test_only_sound_machines_are_tried_in_another_mode() -> None:
    quarry = Watching("incremental:variant=hpa", "native", "violation", modes=("i386",))
    done(quarry, 0, most=40)
    assert {machine.mode.name for machine in Watching.seen} == {"i386"}
    assert all(search.is_sound(machine, MIB) for machine in Watching.seen)


class Drawn:
    """Fresh machines in place of chance: so many equal ones, then as many of another, and so on."""

    def __init__(self, equal: int) -> None:
        self.equal, self.count, self.small = equal, 0, 0

    def __call__(
        self, choose: Seeded, quarry: Quarry, name: str, *, only_small: bool = False
    ) -> Machine:
        self.count += 1
        self.small += only_small
        return attrs.evolve(SMALL, max_pfn_hint=1000 + (self.count - 1) // self.equal)


@pytest.mark.parametrize(
    ("equal", "made", "count"),
    [
        (1, BATCH, BATCH),
        (20, BATCH, 1 + 20 * (BATCH - 1)),
        (21, BATCH // 2, 21 * BATCH // 2),  # each other place stays empty
        (10**9, 1, 1 + 20 * (BATCH - 1)),
    ],
)
def test_another_machine_is_drawn_twenty_times_in_place_of_one_that_was_tried(
    monkeypatch: pytest.MonkeyPatch, equal: int, made: int, count: int
) -> None:
    """Then its place in the batch stays empty; while nothing is kept all of it is fresh."""
    draw = Drawn(equal)
    monkeypatch.setattr(search, "_fresh", draw)
    machines = list(search._made(attrs.evolve(HPA, machines=(TOP,)), 0, 0, search._Best()))
    assert len(machines) == len({*machines})
    assert (len(machines), draw.count) == (made, count)


def test_the_second_half_of_a_batch_changes_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = Drawn(1)
    monkeypatch.setattr(search, "_fresh", draw)
    machines = list(search._made(HPA, 0, 0, best_of((0.5, Outcome.OK, 3))))
    assert [m.name for m in machines[: BATCH // 2]] == ["small"] * (BATCH // 2)
    assert {m.name for m in machines[BATCH // 2 :]} == {"0"}
    assert draw.count == BATCH // 2


def test_a_batch_in_which_much_has_happened_makes_no_more_large_machines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of an allocator that makes a step of every 2 MiB, each would take most of a second."""
    draw, best = Drawn(1), search._Best()
    monkeypatch.setattr(search, "_fresh", draw)
    machines = search._made(HPA, 0, 0, best)
    for work, small in ((0, 0), (20_000, 0), (20_001, 1), (20_001, 2)):
        best.work = work
        next(machines)
        assert draw.small == small


def test_fresh_machines_are_small_where_they_have_to_be() -> None:
    """Little more than what the kernel needs, whatever is generated."""
    quarry = attrs.evolve(HPA, machines=(SMALL,))
    sizes = [
        max(
            search._fresh(Seeded(n), quarry, "m", only_small=small).memory_map.ram().end
            for n in range(100)
        )
        for small in (False, True)
    ]
    assert sizes[0] > 1 << 40
    assert sizes[1] < 1 << 30


def test_a_kernel_of_another_mode_is_tried_where_it_could_start() -> None:
    """No 32-bit kernel lies beyond the 896 MiB that it maps."""
    high = attrs.evolve(
        SMALL,
        memory_map=MemoryMap.sanitise([(MIB, 4096 * MIB, E820Type.RAM)]),
        kernel=SMALL.kernel.at(1024 * MIB),
    )
    quarry = attrs.evolve(HPA, machines=(high,), modes=("i386", "i386-pae"))
    machines = list(search._made(quarry, 0, 0, search._Best()))
    assert machines
    assert {m.mode.name for m in machines} == {"i386", "i386-pae"}
    assert all(m.kernel.span[1] + MIB <= 896 * MIB for m in machines)


# -- what is kept --------------------------------------------------------------------------------


def best_of(*items: tuple[float, Outcome, int]) -> search._Best:
    best = search._Best()
    for n, (distance, outcome, events) in enumerate(items):
        shorter = attrs.evolve(
            RUN, trace=Trace(RUN.trace.events[:events]),
            verdict=attrs.evolve(RUN.verdict, outcome=outcome),
        )  # fmt: skip
        best.add(distance, (shorter, None), attrs.evolve(SMALL, name=str(n)))
    return best


def names(best: search._Best) -> list[str]:
    return [one.machine.name for one in best.kept]


def test_the_nearest_machines_are_kept_and_no_two_that_do_the_same() -> None:
    ok, panic = Outcome.OK, Outcome.PANIC
    assert best_of().nearest == 1.0
    best = best_of((0.5, ok, 3), (0.5, ok, 3), (0.5, panic, 3), (0.5, ok, 4), (0.6, ok, 3))
    assert names(best) == ["0", "2", "3", "4"]
    assert best.nearest == 0.5
    ascending = [(n / 10, ok, 3) for n in range(8)]
    assert names(best_of(*ascending)) == [str(n) for n in range(6)]
    assert best_of(*ascending).nearest == 0
    falling = best_of(*reversed(ascending))
    assert names(falling) == [str(n) for n in range(2, 8)]
    level = best_of(*((0.5, ok, n) for n in range(KEPT + 3)))
    assert len(level.kept) == KEPT + 3, "where there is no slope any of them may be changed"


def test_as_much_work_is_done_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the events of its run, of which a large machine has thousands."""
    monkeypatch.setattr(search, "changed", lambda _c, one, *_: one)
    best = best_of((0.5, Outcome.OK, 0), (0.5, Outcome.PANIC, 0), (0.5, Outcome.OK, 10))
    condition = Condition.parse("panic")
    counts = Counter(best.changed(Seeded(n), condition).name for n in range(2000))
    share = 1 / (1 + 1 + 20 / 30)
    assert counts["0"] / 2000 == pytest.approx(share, abs=0.05)
    assert counts["2"] / counts["0"] == pytest.approx(20 / 30, abs=0.1)


def test_marks_are_where_a_run_begins_or_ends_something() -> None:
    start = RUN.trace.start
    kernel = start.boot.kernel_of(start.machine)
    marks = search._marks(RUN)
    assert marks == sorted({*marks})
    expected = {*kernel.span, *kernel.loaded, kernel.brk_start}
    for event in RUN.trace:
        if isinstance(event, RangeSplit):
            expected |= {event.start, event.end}
        elif isinstance(event, TablesAllocated):
            expected |= {edge for part in event.batch.pages for edge in part.run.span}
    assert {*marks} == expected
    assert len(expected) > 6
    apart = KernelImage(16 * MIB, 18 * MIB, 19 * MIB, 20 * MIB, 21 * MIB)
    run = Scenario.of(attrs.evolve(SMALL, kernel=apart), "incremental", "native").run()
    begun = attrs.evolve(run, trace=Trace([run.trace.start]))
    assert {n * MIB for n in (16, 19, 21)} <= {*search._marks(begun)}, "brk, and what is loaded"
    refused = Scenario.of(bundled("asus-l8400-256m"), "incremental", "xen")
    assert search._marks(attrs.evolve(refused.run(), trace=Trace())) == []


def test_marks_are_looked_for_in_the_first_300_events() -> None:
    """All of a run of ten thousand would be as good as none, and take as long as the run."""
    first = RUN.trace.start
    splits = [RangeSplit(start * MIB, (start + 1) * MIB, ()) for start in range(1001, 1303)]
    marks = search._marks(attrs.evolve(RUN, trace=Trace([first, *splits])))
    assert marks[-1] == splits[298].end
    assert splits[0].start in marks


def test_fresh_machines_are_generated_or_real_ones_large_and_small() -> None:
    quarry = attrs.evolve(HPA, machines=(TOP,))
    made = [search._fresh(Seeded(n), quarry, f"f{n}") for n in range(300)]
    assert [machine.name for machine in made] == [f"f{n}" for n in range(300)]
    assert {machine.mode.name for machine in made} == {*MODES}
    only = attrs.evolve(quarry, modes=("i386-pae", "i386"), machines=(bundled("pae-4g"),))
    modes = [search._fresh(Seeded(n), only, "f").mode.name for n in range(100)]
    assert {"i386-pae", "i386"} <= {*modes}
    real = [m for m in made if m.provenance == TOP.provenance]
    assert 100 < len(real) < 200
    generated = [m for m in made if m.provenance != TOP.provenance]
    assert any(m.memory_map.ram().end > 1 << 32 for m in generated)
    assert any(m.memory_map.ram().end < 300 * MIB for m in generated)


def test_a_fresh_machine_is_changed_unless_it_is_a_generated_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A generated one may be tried as it is; real ones have been tried already."""
    names = {"any_machine": SMALL, "small": None, "changed": None}
    done: list[str] = []
    quarry = attrs.evolve(HPA, machines=(TOP,), modes=("i386", "i386-pae"))
    for name, gives in names.items():

        def note(*given: Any, name: str = name, gives: Machine | None = gives) -> Machine:
            done.append(name)
            if gives:
                assert given[1].name in ("i386", "i386-pae"), "of a mode that counts"
            return gives or given[1]

        monkeypatch.setattr(search, name, note)
    seen = set()
    for n in range(100):
        search._fresh(Seeded(n), quarry, "f")
        seen.add(tuple(done))
        done.clear()
    small = ("small", "changed")
    assert seen == {
        ("any_machine",), ("any_machine", "changed"), ("any_machine", *small), ("changed",), small,
    }  # fmt: skip


# -- a hunt --------------------------------------------------------------------------------------


def test_sides_are_the_two_runs_that_are_compared() -> None:
    one = Quarry("a", "native", "c")
    assert one.sides == (("a", "native"),)
    assert attrs.evolve(one, other="b").sides == (("a", "native"), ("b", "native"))
    assert attrs.evolve(one, other_backend="xen").sides == (("a", "native"), ("a", "xen"))
    assert attrs.evolve(one, other="b", other_backend="xen").sides[1] == ("b", "xen")
    assert one.counts(SMALL)
    assert attrs.evolve(one, modes=("x86_64",)).counts(SMALL)
    assert not attrs.evolve(one, modes=("i386",)).counts(SMALL)


@pytest.mark.parametrize(
    ("other", "plugins"),
    [(None, "incremental, xen"), ("legacy_linear", "incremental, legacy_linear, native, xen")],
)
def test_a_condition_has_figures_of_the_plugins_of_the_hunt(
    other: str | None, plugins: str
) -> None:
    """The message names the first in the alphabet, whatever order a set has."""
    wrong = " or ".join(f"{name}.x > 1" for name in "hgfedcba")
    quarry = Quarry("incremental", "xen", f"xen.model > 1 or {wrong}", other=other,
                    other_backend=other and "native")  # fmt: skip
    with pytest.raises(SpecError, match=rf"no figure 'a\.x': the plugins .* are {plugins}$"):
        quarry.check()
    attrs.evolve(quarry, condition="xen.model > 1 or incremental.x > 1").check()


def test_a_condition_on_a_second_allocator_wants_one() -> None:
    alone = Quarry("incremental", "xen", "differs")
    with pytest.raises(SpecError, match="'differs' speaks of a second allocator: add --against"):
        alone.check()
    attrs.evolve(alone, other="legacy_linear").check()
    attrs.evolve(alone, other_backend="native").check()
    for wrong in ({"allocator": "nobody"}, {"backend": "nobody"}, {"other": "nobody"}):
        with pytest.raises(SpecError, match="nobody"):
            attrs.evolve(alone, **wrong).check()


def test_each_side_is_run() -> None:
    """And neither where one had to be stopped."""
    both = attrs.evolve(HPA, other="legacy_linear", other_backend="xen")
    for one, two in (both.runs(SMALL), both.stopped(SMALL, "it slept")):
        assert two is not None
        assert (one.machine, two.machine) == (SMALL, SMALL)
        told = [(str(run.allocator), str(run.backend)) for run in (one, two)]
        assert [a.partition(":")[0] for a, _ in told] == ["incremental", "legacy_linear"]
        assert [b for _, b in told] == ["native", "xen"]
    assert all(run and run.verdict.outcome is Outcome.ERROR for run in both.stopped(SMALL, "x"))
    for runs in (HPA.runs(SMALL), HPA.stopped(SMALL, "it slept")):
        assert runs[1] is None
    alone = attrs.evolve(both, condition="differs")
    assert alone.judge(SMALL)[0] is alone.holds(SMALL) is True


def test_a_reason_is_an_outcome_and_words_without_numbers() -> None:
    """Another panic, or one for want of any memory, is not what was found."""

    def reason(detail: str) -> search.Reason:
        verdict = attrs.evolve(RUN.verdict, outcome=Outcome.PANIC, detail=detail)
        return search._reason(attrs.evolve(RUN, verdict=verdict))

    assert reason("no space for 12 pages: at 0x5") == reason("no space for 93 pages: elsewhere")
    assert reason("no space for 12 pages") != reason("no memory at all")
    assert reason("x")[0] == "panic"
    holds = attrs.evolve(HPA, condition="tables > 0")
    assert holds.judge(SMALL) == (True, ("ok", ""))
    assert holds.holds(SMALL)
    assert not HPA.holds(SMALL)
    told, (outcome, _) = attrs.evolve(HPA, condition="error").judge(SMALL, "it slept")
    assert (told, outcome) == (True, "error")


def test_tries_are_shared_out_to_batches() -> None:
    """The real machines are the first; then a batch each, as many as are left."""
    quarry = attrs.evolve(HPA, machines=(SMALL, TOP))

    long = BATCH * search.LONG

    def left(most: int | None, number: int) -> int:
        return search._Way(quarry, 0, 0, 1, most)._left(number)

    assert [left(None, n) for n in (0, 2, 3, 6, 7)] == [BATCH, BATCH, long, BATCH, long]
    assert left(None, search._START) >= 2
    many = attrs.evolve(HPA, machines=(SMALL,) * (BATCH + 5))
    assert search._Way(many, 0, 0, 1, None)._left(search._START) >= BATCH + 5
    assert [left(10, n) for n in (search._START, 0)] == [10, 8]
    most = 2 + BATCH + 3
    assert [left(most, n) for n in (search._START, 0, 1)] == [most, BATCH + 3, 3]
    assert left(2 + BATCH, 1) == 0
    assert left(2 + 3 * BATCH + long + 9, 4) == 9, "the fourth was a long one"


def test_a_way_hears_tries_stops_and_batches() -> None:
    way = search._Way(HPA, 0, 1, 3, None)
    assert way.hear(2) is None
    way.note(5)
    assert way.tries == 5, "whatever was said last"
    assert way.hear(Stopped("it slept")) is None
    assert {number: str(why) for number, why in way.stopped.items()} == {5: "it slept"}
    way.note(9)
    batch = BatchResult(4, 9, None, 0.5)
    assert way.hear(batch) is batch
    assert (way._number, way.tries, way.stopped) == (7, 0, {})
    way.note(9 + 2)
    assert way.tries == 2


def test_a_way_notes_every_try_and_says_now_and_then_that_it_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = iter(range(10**6))
    monkeypatch.setattr(search.time, "monotonic", lambda: next(now) * 0.02)
    quarry = attrs.evolve(HPA, machines=(SMALL,))
    way = search._Way(quarry, 0, search._START, 1, 1 + 20)
    tries, batches = [], []
    for item in way.work(0):
        if isinstance(item, BatchResult):
            way.hear(item)
            batches.append(item.tries)
        else:
            assert way.tries == item
            tries.append(item)
    assert batches == [1, 20]
    assert 4 <= len(tries) <= 10, "not each of them"
    assert (way.tries, way._heard) == (0, 21)
    only = search._Way(quarry, 0, search._START, 1, 1).work(0)
    assert [item.number for item in only if isinstance(item, BatchResult)] == [-1]


def told_by(monkeypatch: pytest.MonkeyPatch, *items: Any) -> list[float]:
    """Let a hunt hear that; return its ends by and by."""

    def together(ways: Any, limits: Any, until: float) -> Iterator[Any]:
        try:
            for number, item in items:
                way = ways[number].__self__
                if not isinstance(item, Stopped):
                    way.note(way._heard + (item if isinstance(item, int) else item.tries))
                yield number, item
        finally:
            ends.append(until)

    ends: list[float] = []
    monkeypatch.setattr(search, "together", together)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    return ends


def test_batches_are_counted_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes: a batch that is ahead waits; each is heard of once."""
    quarry = attrs.evolve(HPA, machines=(SMALL,))
    heard: list[tuple[int, float]] = []

    def result(*items: Any) -> HuntResult:
        heard.clear()
        told_by(monkeypatch, *items)
        return hunt(quarry, jobs=9, seconds=60, progress=lambda *told: heard.append(told))

    def account(runs: int) -> Account:
        ended = Counter({Outcome.OK: runs})
        return Account([Tally("violation", runs, runs)], ended, {Outcome.OK: RUN.verdict})

    nothing = [
        BatchResult(n, 10 * n + 20, None, near, n + 1, f"e{n}", frozenset({f"p.{n}"}),
                    account(10 * n + 20))
        for n, near in ((-1, 0.5), (0, 0.25), (1, 0.75))
    ]  # fmt: skip
    found = result((0, nothing[0]), (0, nothing[2]), (1, nothing[1]))
    assert heard == [(10, 0.5), (30, 0.25), (60, 0.25)]
    assert (found.machine, found.tries, found.nearest) == (None, 60, 0.25)
    assert (found.errors, found.error) == (3, "e-1")
    assert found.figures == {"p.-1", "p.0", "p.1"}
    assert found.account == account(60)
    assert 0 <= found.seconds < 5
    hit = BatchResult(1, 7, TOP, 0.0)
    found = result((0, nothing[0]), (0, hit), (1, nothing[1]), (0, nothing[0]))
    assert (found.machine, found.tries, found.nearest) == (TOP, 37, 0.0)
    ahead = result((0, nothing[0]), (0, hit), (1, 5))
    assert (ahead.machine, ahead.tries, ahead.nearest) == (TOP, 10 + 7 + 5, 0.0)
    none = result((0, nothing[0]), (0, nothing[2]), (1, 5), (1, Stopped("slept")))
    assert (none.machine, none.tries, none.nearest) == (None, 10 + 30 + 5, 0.5)
    assert (none.errors, none.error) == (0 + 1, "e-1")
    assert none.account == account(10 + 30), "those that are ahead, too"
    quiet = result((1, 5), (1, Stopped("slept")))
    assert quiet.errors == 1
    assert "slept" in quiet.error
    assert quiet.nearest == 1.0
    two = result((0, hit), (1, attrs.evolve(hit, number=2, found=SMALL)))
    assert two.machine == TOP, "the earlier batch counts"
    late = result((0, nothing[2]), (1, attrs.evolve(hit, number=2)))
    assert (late.machine, late.nearest) == (TOP, 0.0), "whatever is missing before it"


def test_the_time_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until when is said to those who work, from the begin of the hunt on."""
    monkeypatch.setattr(search.time, "monotonic", lambda: 1000.0)
    ends = told_by(monkeypatch)
    result = hunt(attrs.evolve(HPA, machines=(SMALL,)), seconds=7)
    assert (ends, result.seconds, result.tries) == ([1007.0], 0.0, 0)


def test_as_many_processes_as_there_are_processors_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    widths: list[list[int]] = []
    seeds: set[int] = set()

    def together(ways: Any, limits: Any, until: float) -> Iterator[Any]:
        widths.append([way.__self__._number for way in ways])
        seeds.update(way.__self__._seed for way in ways)
        assert {way.__self__.by for way in ways} == {len(ways)}
        yield from ()

    monkeypatch.setattr(search, "together", together)
    for cpus, jobs in ((4, 3), (2, 8), (None, 8), (4, 0)):
        monkeypatch.setattr(os, "cpu_count", lambda cpus=cpus: cpus)
        hunt(attrs.evolve(HPA, machines=(SMALL,)), jobs=jobs, seconds=1)
    assert widths == [[-1, 0, 1], [-1, 0], [-1], [-1]]
    hunt(HPA, seconds=1)
    assert widths[-1] == [-1], "one, where no more are asked for"
    assert seeds == {0}
    hunt(HPA, seconds=1, seed=5)
    assert seeds == {0, 5}


def test_a_batch_can_be_run_alone() -> None:
    quarry = attrs.evolve(HPA, condition="tables > 0", machines=(SMALL,))
    assert run_batch(quarry, 1, search._START) == BatchResult(-1, 1, SMALL, 0.0)


def test_a_run_is_needed_for_a_judgement(made: Any) -> None:
    run: Run = made({"tables": 3})
    assert search._reason(run) == ("ok", "")
