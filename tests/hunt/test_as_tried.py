"""The same seed tries the same machines, on every host and until somebody changes what is tried.

That is what makes a seed in a report worth something. What was tried is kept as a digest; who
changes what a hunt does on purpose keeps the new one with ``PARAVIRT_MM_SEEN=yes pytest
tests/hunt/test_as_tried.py``, and who only makes it faster need not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction

import pytest

from paravirt_mm import Machine, bundled
from paravirt_mm.hunt.edits import changed, in_mode, small
from paravirt_mm.hunt.search import BatchResult, Quarry, _tried
from paravirt_mm.hunt.shrink import shrink
from paravirt_mm.machine.paging import MODES
from paravirt_mm.sources.generated import Seeded, any_machine
from paravirt_mm.sources.machine_file import write_toml
from tests.kept import DATA, digest, kept

SEEN = DATA / "tried"
NAMES = ("lenovo-x230-8g", "pae-4g", "qemu-512m", "asus-l8400-256m")


def _changes() -> Iterator[Machine]:
    """Chains of changes, beside marks, by ratios and without either."""
    for name in NAMES:
        machine = bundled(name)
        marks = [0, machine.kernel.span[1], 1 << 24, 1 << 30, 1 << 45]
        ratios = [Fraction(3, 2), Fraction(1, 7)]
        for number in range(120):
            choose = Seeded(f"{name} {number}")
            with_marks, with_ratios = number % 2, number % 3 == 0
            machine = changed(
                choose, machine, marks if with_marks else (), ratios if with_ratios else ()
            )
            yield machine
            if number % 20 == 19:
                machine = bundled(name)


def _small() -> Iterator[Machine]:
    for name in NAMES:
        for number in range(10):
            choose = Seeded(f"small {name} {number}")
            yield small(choose, bundled(name))
            for mode in MODES.values():
                yield in_mode(any_machine(choose, mode, "any"), MODES["x86_64"])


def _shrunk() -> Iterator[Machine]:
    """What is left of machines when a question must stay true."""
    questions: list[Callable[[Machine], bool]] = [
        lambda m: len(m.memory_map) >= 3,
        lambda m: m.memory_map.ram().end > 3 << 30,
        lambda m: m.memory_map.ram_pages().total % (64 << 20) == 12288,
        lambda m: len(m.reserved) >= 2 and m.kernel.start > 1 << 24,
        lambda m: sum(m.kernel.span) % 3 == 0,
    ]
    for number, question in enumerate(questions):
        for name in NAMES:
            for step in range(2):
                machine = changed(Seeded(f"{name} {number} {step}"), bundled(name))
                if question(machine):
                    yield shrink(machine, question)[0]


def _batches() -> Iterator[object]:
    for condition, most in (("violation", 10), ("tables == 77", 75)):
        quarry = Quarry("incremental:variant=hpa", "native", condition, modes=("i386-pae",))
        for item in _tried(quarry, 3, 1, {}, most):
            if isinstance(item, BatchResult):
                yield item.tries, item.nearest, item.errors
                if item.found is not None:
                    yield item.found


PARTS: dict[str, Callable[[], Iterator[object]]] = {
    "changes": _changes, "small": _small, "shrunk": _shrunk, "batches": _batches,
}  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_a_seed_tries_what_it_did(part: str) -> None:
    told = (write_toml(one) if isinstance(one, Machine) else repr(one) for one in PARTS[part]())
    shown = digest("".join(f"{one}\0" for one in told)) + "\n"
    seen = kept(SEEN / f"{part}.txt", shown)
    assert shown == seen, "if it is meant so, see above"


def test_nothing_is_kept_that_is_not_compared() -> None:
    assert {path.stem for path in SEEN.iterdir()} == {*PARTS}
