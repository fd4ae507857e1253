"""Which specs may model the kernel of a boot log: its release, and what the release leaves open.

The allocator that models a release says what it leaves open, and with which choices.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import attrs

from paravirt_mm.machine.model import Machine, Span
from paravirt_mm.offers import model_of_kernel, model_of_platform, open_questions
from paravirt_mm.registry import Registry

_SERIES: tuple[tuple[str, int, int], ...] = (
    ("2.6", 19, 39),
    ("3", 0, 19),
    ("4", 0, 20),
    ("5", 0, 19),
    ("6", 0, 18),
)
"""Mainline releases by major number: first and last minor number."""


@attrs.frozen
class Candidate:
    """A way to model a log's kernel. ``unusual`` counts how far its choices are from the first."""

    release: str
    spec: str
    backend: str
    reserved: tuple[Span, ...]
    words: tuple[str, ...]
    unusual: int
    other_tables: int = 0

    def machine(self, machine: Machine) -> Machine:
        """Return the machine with what this candidate says is taken."""
        return attrs.evolve(machine, reserved=(*machine.reserved, *self.reserved))


def all_series() -> Iterator[str]:
    """Yield every mainline release series that is modelled, oldest first."""
    for major, first, last in _SERIES:
        for minor in range(first, last + 1):
            yield f"{major}.{minor}"


def candidates(release: str, mode: str, platform: str, registry: Registry) -> list[Candidate]:
    """Return the candidates for a release in a mode on a platform, the most usual first; none where
    no allocator models the release or no backend the platform.
    """
    spec = model_of_kernel(registry, release, mode)
    backend = model_of_platform(registry, platform, release, mode)
    if spec is None or backend is None:
        return []
    questions = open_questions(registry, spec, release, mode)
    found = []
    for picked in product(*(list(enumerate(choices)) for choices in questions)):
        choices = [choice for _, choice in picked]
        options = [option for choice in choices for option in choice.options]
        if len({key for key, _ in options}) < len(options):
            continue
        found.append(
            Candidate(
                release=release,
                spec=",".join([spec, *(f"{key}={value}" for key, value in options)]),
                backend=backend,
                reserved=tuple(span for choice in choices for span in choice.reserved),
                words=tuple(choice.words for choice in choices if choice.words),
                unusual=sum(number for number, _ in picked),
                other_tables=sum(choice.other_tables for choice in choices),
            )
        )
    return sorted(found, key=lambda candidate: candidate.unusual)
