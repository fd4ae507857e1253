"""The comparison: which rows there are, in which order, and what each says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import pytest

from paravirt_mm import DefaultSpec, Run, bundled, compare, hookimpl
from paravirt_mm.comparison import Row, run_here
from paravirt_mm.engine.boot import Boot
from paravirt_mm.machine.model import Machine
from paravirt_mm.machine.paging import GIB, MIB
from paravirt_mm.registry import Registry
from paravirt_mm.run import Outcome
from paravirt_mm.testing import AscendingAllocator, PlainPlatform, registry_with

SMALL, LARGE = bundled("qemu-512m"), bundled("pae-4g")


@attrs.frozen
class Fails(AscendingAllocator):
    """Raises instead of mapping; offers the other allocator, too."""

    @hookimpl
    def pvmm_default_specs(self) -> list[DefaultSpec]:
        return [DefaultSpec("fails", rank=2), DefaultSpec("up", rank=1)]

    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Any:
        raise RuntimeError("not today")


@attrs.frozen
class Offered(PlainPlatform):
    """A platform for those who name none."""

    @hookimpl
    def pvmm_default_specs(self) -> list[DefaultSpec]:
        return [DefaultSpec("other"), DefaultSpec("plain")]


REGISTRY = registry_with(
    installed=False, up=AscendingAllocator, plain=PlainPlatform, other=Offered, fails=Fails
)


def rows(
    machines: Sequence[Machine] = (SMALL,), registry: Registry = REGISTRY, **asked: Any
) -> list[list[Row]]:
    return list(compare(machines, registry=registry, **asked))


def test_every_allocator_meets_every_backend_on_every_machine() -> None:
    """Machine by machine; what is not chosen is what the registry's own plugins offer."""
    pairs = [(a, b) for a in ("up", "fails") for b in ("other", "plain")]
    found = rows([LARGE, SMALL], allocators=["up", "fails"], backends=["other", "plain"])
    assert [[(row.allocator, row.backend) for row in group] for group in found] == [pairs, pairs]
    assert [{row.machine for row in group} for group in found] == [{LARGE}, {SMALL}]
    (group,) = rows()
    assert [(row.allocator, row.backend) for row in group] == pairs
    (group,) = compare([SMALL], ["legacy_linear"], ["native"])
    assert [(row.allocator, row.backend) for row in group] == [("legacy_linear", "native")]


def test_who_runs_them_elsewhere_gives_the_same_rows() -> None:
    asked: list[tuple[Machine, str, str]] = []

    def each(
        cells: Sequence[tuple[Machine, str, str]], make: Callable[[Run], Any]
    ) -> Iterator[Any]:
        asked.extend(cells)
        yield from run_here(REGISTRY, cells, make)

    given: dict[str, Any] = {
        "allocators": ["up"],
        "backends": ["other", "plain"],
        "crashkernels": ["64M"],
    }
    assert rows([LARGE, SMALL], each=each, **given) == rows([LARGE, SMALL], **given)
    assert asked == [
        (machine, "up", one) for machine in (LARGE, SMALL) for one in given["backends"]
    ]


def test_a_row_tells_what_is_there_to_tell() -> None:
    """No traceback where nothing was raised, no crash kernels where nobody asked."""
    ((good, bad),) = rows(allocators=["up", "fails"], backends=["plain"])
    assert (good.outcome, good.traceback, bad.outcome) == (Outcome.OK, "", Outcome.ERROR)
    told = good.as_record()
    assert not {"traceback", "crashkernels"} & told.keys()
    assert told.items() >= good.figures.items()
    assert (told["machine"], told["allocator"], told["backend"]) == (SMALL.name, "up", "plain")
    assert (told["outcome"], told["verdict"], told["verified"]) == ("ok", "ok", "not")
    assert "RuntimeError: not today" in bad.as_record()["traceback"]


@pytest.mark.parametrize("size", [64 * MIB, GIB])
def test_crash_kernels_fit_where_memory_is_free(size: int) -> None:
    ((good, bad),) = rows(
        allocators=["up", "fails"], backends=["plain"], crashkernels=[f"{size >> 20}M"]
    )
    (places,) = good.crashkernels.values()
    assert bool(places) == (size < 512 * MIB)
    assert all(0 <= first <= last <= 512 * MIB - size for first, last in places)
    assert good.as_record()["crashkernels"] == {f"{size >> 20}M": places}
    assert bad.crashkernels == {}
    assert "crashkernels" not in bad.as_record()
