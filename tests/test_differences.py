"""What counts as a difference between two runs, on runs that are made to differ in one thing."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import attrs
import pytest

from paravirt_mm import (
    ActivateRoot,
    Boot,
    Machine,
    Map,
    Outcome,
    PageRun,
    Refusal,
    Run,
    Scenario,
    Source,
    Step,
    StepResult,
    TableDemand,
    TablePages,
    Verdict,
    bundled,
    hookimpl,
)
from paravirt_mm.differences import (
    Difference,
    _At,
    _Done,
    _figure_differences,
    _Item,
    _same_pages,
    differences,
)
from paravirt_mm.engine.trace import RangeSplit, RootActivated, Trace
from paravirt_mm.machine.paging import MIB, PAGE_SIZE
from paravirt_mm.machine.ranges import align_down, align_up
from paravirt_mm.testing import (
    AscendingAllocator,
    PlainPlatform,
    TypingPlatform,
    registry_with,
)

QEMU = bundled("qemu-512m")


@attrs.frozen
class Placed(AscendingAllocator):
    """Takes the first ``brk`` tables from brk, and leaves a page out before table ``gap``; maps to
    the end of the kernel, and of that the large page boundary below it with ``short``.
    """

    brk: int = 0
    gap: int = 0
    short: bool = False
    further: int = 0
    _given: list[int] = attrs.field(factory=list, init=False)

    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Generator[Step, StepResult, None]:
        end = boot.machine.kernel.span[1]
        end = align_down(end, 2 * MIB) if self.short else align_up(end, PAGE_SIZE)
        yield Map(MIB, end + self.further, label="kernel")
        yield Map(end + self.further, 64 * MIB, label="behind")
        yield Map(64 * MIB, 256 * MIB, label="rest")
        yield ActivateRoot()

    @hookimpl
    def pvmm_allocate_tables(
        self, boot: Boot, step: object, demand: TableDemand
    ) -> Sequence[TablePages]:
        pages = []
        for _ in range(demand.count):
            number = len(self._given) + 1
            self._given.append(number)
            if number <= self.brk:
                pfn, source = (boot.machine.kernel.brk_start >> 12) + number, Source.BRK
            else:
                pfn, source = 0x10 + number + (0 < self.gap <= number), Source.MEMBLOCK
            pages.append(TablePages(PageRun(pfn, 1), source))
        return pages


@attrs.frozen
class Refuses(PlainPlatform):
    """A platform that begins nothing."""

    @hookimpl
    def pvmm_boot_state(self, machine: Machine) -> Any:
        return Refusal("not here", -22)


REGISTRY = registry_with(
    installed=False, placed=Placed, up=AscendingAllocator, plain=PlainPlatform,
    typing=TypingPlatform, refuses=Refuses,
)  # fmt: skip


def run(spec: str = "placed", machine: Machine = QEMU, backend: str = "plain") -> Run:
    return Scenario.of(machine, spec, backend).run(REGISTRY)


def told(a: Run, b: Run) -> dict[str, tuple[str, str]]:
    return {one.aspect: (one.a, one.b) for one in differences(a, b)}


def with_kernel(end: int) -> Machine:
    """The machine with another kernel, its brk right behind."""
    return attrs.evolve(
        QEMU,
        kernel=attrs.evolve(QEMU.kernel, end=end, brk_start=end, brk_end=end + 64 * PAGE_SIZE),
    )


def test_a_place_is_told_by_its_number() -> None:
    found = told(run(), run("placed:gap=3"))
    assert found["places"] == ("3: 0x13000", "3: 0x14000")
    assert told(run(), run()) == {}


def test_tables_from_brk_are_counted_and_so_are_figures() -> None:
    a, b = run("placed:brk=3"), run("placed:brk=1")
    found = told(a, b)
    assert found["sources"] == ("3 tables from brk", "1 table from brk")
    names = [name for name in a.figures if a.figures[name] != b.figures[name]]
    assert told(b, a)["sources"] == found["sources"][::-1]
    for run_, text in zip((a, b), found["figures"], strict=True):
        assert text == ", ".join(f"{name} {run_.figures[name]}" for name in names)


def test_page_sizes_are_told_with_the_range() -> None:
    small = attrs.evolve(QEMU, features=attrs.evolve(QEMU.features, pse=False, gbpages=False))
    sizes = next(one for one in differences(run(), run(machine=small)) if one.aspect != "end")
    assert sizes == Difference(
        "sizes",
        "1: 0x100000 to 0x200000 with pages of level 1",
        "1: 0x100000 to the kernel's end with pages of level 1",
    )


def test_tables_are_told_by_level() -> None:
    """A platform that has mapped the kernel has the upper tables, and 13 of 256 small ones. What
    follows from that (their places, figures) is not told.
    """
    small = attrs.evolve(QEMU, features=attrs.evolve(QEMU.features, pse=False, gbpages=False))
    without, with_some = (run("up", small, backend) for backend in ("plain", "typing"))
    tables = Difference("tables", "256 L1, 1 L2, 1 L3", "243 L1")
    assert list(differences(without, with_some)) == [tables]
    assert list(differences(with_some, without)) == [Difference("tables", tables.b, tables.a)]


def test_a_run_that_never_began_has_an_end_and_nothing_else() -> None:
    good, none = run(), run(backend="refuses")
    assert not none.trace.begun
    for pair in ((good, none), (none, good)):
        assert list(differences(*pair)) == [Difference("end", *(str(one.verdict) for one in pair))]


def test_the_end_of_a_kernel_is_the_same_place_wherever_it_is() -> None:
    """Larger kernels end elsewhere, also within a page; who maps to the end does the same."""
    first, second = with_kernel(0x1FE2345), with_kernel(0x23F2001)
    assert {"steps", "sizes"}.isdisjoint(told(run(machine=first), run(machine=second)))
    found = told(run(machine=first), run("placed:further=0x1000", second))
    assert found["steps"] == ("1: 0x100000 to the kernel's end", "1: 0x100000 to 0x2434000")
    found = told(run(machine=first), run("placed:short=yes", first))
    assert found["steps"] == ("1: 0x100000 to the kernel's end", "1: 0x100000 to 0x2000000")
    short = [run("placed:short=yes", machine) for machine in (first, second)]
    assert "steps" not in told(*short)
    further = [run("placed:short=yes,further=0x200000", machine) for machine in (first, second)]
    assert "steps" not in told(*further)
    end, below, behind = "the kernel's end", "0x2000000", "0x2600000"
    for one, other, ends in (
        (short[0], further[1], (below, behind)),
        (run(machine=first), further[1], (end, behind)),
        (run(machine=first), short[1], (end, "0x2400000")),
    ):
        assert told(one, other)["steps"] == tuple(f"1: 0x100000 to {at}" for at in ends)
    near = [run("placed:further=0x1000", machine) for machine in (first, with_kernel(0x23E2001))]
    assert told(*near)["steps"] == ("1: 0x100000 to 0x2024000", "1: 0x100000 to 0x2424000")


def test_places_that_are_nothing_to_the_kernel_are_told() -> None:
    found = told(run("placed:further=0x1000"), run("placed:further=0x3000"))
    end = align_up(QEMU.kernel.span[1], PAGE_SIZE)
    assert found["steps"] == tuple(f"1: 0x100000 to {end + more:#x}" for more in (0x1000, 0x3000))


def test_of_a_real_kernel_no_panic_is_known_beyond_its_direct_map() -> None:
    """So a model's is none that could differ; of two models, and before CR3 is loaded, it is."""
    good = attrs.evolve(run(), verdict=Verdict(Outcome.OK))
    late = attrs.evolve(good, verdict=Verdict(Outcome.PANIC, "later"))
    begun = [one for one in good.trace if not isinstance(one, RootActivated)]
    early = attrs.evolve(late, trace=Trace(begun))
    end = Difference("end", "ok", "panic: later")
    assert list(differences(good, late)) == [end]
    assert list(differences(good, late, recorded=True)) == []
    assert next(differences(good, early, recorded=True)) == end


def test_a_range_that_only_one_maps_is_told_beside_nothing() -> None:
    more, less = run(), run(backend="plain")
    events = [one for one in less.trace if not (isinstance(one, RangeSplit) and one.end > 64 * MIB)]
    less = attrs.evolve(less, trace=Trace(events))
    told_ = next(one for one in differences(more, less) if one.aspect == "steps")
    assert (told_.a, told_.b) == ("3: 0x4000000 to 0x10000000", "3: nothing")
    back = next(one for one in differences(less, more) if one.aspect == "steps")
    assert (back.a, back.b) == (told_.b, told_.a)


@pytest.mark.parametrize("odd", [0, 1, 4095])
def test_before_the_end_of_brk_a_place_is_its_address(odd: int) -> None:
    """Behind it, what is as far behind is the same, wherever the two kernels end; a page in which
    brk ends is not behind it.
    """
    first, second = (_Done(run(machine=with_kernel(end + odd))) for end in (32 * MIB, 34 * MIB))
    for behind, same in ((-1, False), (0, not odd), (1, True)):
        pages = [PageRun((done.kernel.brk_end >> 12) + behind, 1) for done in (first, second)]
        places = first.page(pages[0], 0), second.page(pages[1], 0)
        assert places[0].same(places[1]) is same
        assert [str(place) for place in places] == [f"{place.address:#x}" for place in places]
    assert first.page(pages[0], 0).same(second.page(pages[0], 0))


def test_of_runs_that_part_the_first_page_that_differs_counts() -> None:
    """One goes up and one down from the same page; two steps on both are as far behind."""
    first, second = (_Done(run(machine=with_kernel(32 * MIB - at * PAGE_SIZE))) for at in (0, 4))
    start = (first.kernel.brk_end >> 12) + 4
    assert _same_pages(first, PageRun(start, 4, 1), second, PageRun(start, 4, -1)) == 1


def test_a_piece_is_its_range_and_its_pages() -> None:
    at = (_At(2 * MIB, None), _At(4 * MIB, None))
    assert _Item(at, " of level 2").same(_Item(at, " of level 2"))
    assert not _Item(at, " of level 2").same(_Item(at, " of level 1"))


def test_an_image_is_from_its_first_byte_to_its_last() -> None:
    done = _Done(run())
    low, high = QEMU.kernel.span
    inside = [done.is_inside(_At(at, None)) for at in (low - 1, low, high - 1, high)]
    assert inside == [False, True, True, False]


def test_of_unequal_kernels_only_what_does_not_follow_is_told() -> None:
    """As much brk as there is decides how much is taken; figures depend on where a kernel lies."""
    first, second = with_kernel(32 * MIB), with_kernel(32 * MIB)
    second = attrs.evolve(
        second, kernel=attrs.evolve(second.kernel, brk_end=second.kernel.brk_end - PAGE_SIZE)
    )
    found = told(run("placed:brk=3", first), run("placed:brk=1", second))
    assert found["brk"] == ("64 pages", "63 pages")
    assert {"sources", "figures"}.isdisjoint(found)


def test_figures_that_only_one_has_are_none_of_the_others() -> None:
    a, b = {"x": 1, "same": 4, "mine.y": 2, "gone": 3}, {"x": 2, "same": 4, "mine.y": 3, "new": 1}
    assert list(_figure_differences(a, b)) == [Difference("figures", "x 1", "x 2")]
    assert list(_figure_differences(a, a)) == []


def test_of_runs_that_failed_there_are_no_figures_to_compare() -> None:
    """Both alike, or one alone."""
    whole = Scenario.of(QEMU, "up", "plain").run(REGISTRY)
    failed = attrs.evolve(whole, verdict=Verdict(Outcome.ERROR, "gone"))
    assert whole.trace.begun
    assert list(differences(failed, failed)) == []
    assert [found.aspect for found in differences(whole, failed)] == ["end"]
