"""Which specs may model the kernel of a boot log: its release, and what the release leaves open.

The allocator that models a release says what it leaves open, and with which choices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import attrs

from paravirt_mm.about import Choice
from paravirt_mm.machine.model import Machine, Span
from paravirt_mm.machine.paging import MIB, PagingMode
from paravirt_mm.machine.release import leading_version
from paravirt_mm.offers import model_of_kernel, model_of_platform, open_questions
from paravirt_mm.registry import Registry
from paravirt_mm.sources.bootlog.facts import Fact, LastPfn, MappedRange, PageRange, TableBlock
from paravirt_mm.verify.log.words import Words

_SERIES: tuple[tuple[str, int, int], ...] = (
    ("2.6", 19, 39),
    ("3", 0, 19),
    ("4", 0, 20),
    ("5", 0, 19),
    ("6", 0, 19),
    ("7", 0, 3),
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
    other_tables: int
    large_pages: bool

    def machine(self, machine: Machine) -> Machine:
        """Return the machine with what this candidate says is taken, or not used."""
        features = machine.features
        if not self.large_pages:
            features = attrs.evolve(features, pse=False, gbpages=False)
        reserved = (*machine.reserved, *self.reserved)
        return attrs.evolve(machine, reserved=reserved, features=features)


def all_series() -> Iterator[str]:
    """Yield every mainline release series that is modelled, oldest first."""
    for major, first, last in _SERIES:
        for minor in range(first, last + 1):
            yield f"{major}.{minor}"


def candidates(
    release: str, machine: Machine, platform: str, registry: Registry
) -> list[Candidate]:
    """Return the candidates for a release on a machine of a platform, the most usual first; none
    where no allocator models the release or no backend the platform.
    """
    mode = machine.mode.name
    spec = model_of_kernel(registry, release, mode)
    backend = model_of_platform(registry, platform, release, mode)
    if spec is None or backend is None:
        return []
    questions = [
        *open_questions(registry, spec, release, mode),
        *_questions_of_guests(machine, platform),
    ]
    found = []
    for picked in product(*(list(enumerate(choices)) for choices in questions)):
        choices = [choice for _, choice in picked]
        options = [option for choice in choices for option in choice.options]
        large_pages = all(choice.large_pages for choice in choices)
        if len({key for key, _ in options}) < len(options):
            continue
        if machine.features.gbpages and not large_pages:
            continue  # the kernel says so where it uses them
        found.append(
            Candidate(
                release=release,
                spec=",".join([spec, *(f"{key}={value}" for key, value in options)]),
                backend=backend,
                reserved=tuple(span for choice in choices for span in choice.reserved),
                words=tuple(choice.words for choice in choices if choice.words),
                unusual=sum(number for number, _ in picked),
                other_tables=sum(choice.other_tables for choice in choices),
                large_pages=large_pages,
            )
        )
    return sorted(found, key=lambda candidate: candidate.unusual)


_SLACK = 8 * MIB
"""What libxl leaves to a guest beyond its memory, for a frame buffer (LIBXL_MAXMEM_CONSTANT and
videoram: libxl_dom.c, up to Xen 4.1 and what is derived from it).
"""


def _questions_of_guests(machine: Machine, platform: str) -> list[tuple[Choice, ...]]:
    """Return what only the toolstack knows of a guest: whether its map ends in slack, which Linux
    keeps for ballooning (xen_memory_setup, xen_add_extra_mem).
    """
    ram = machine.memory_map.ram_pages()
    if platform != "xen-pv-guest" or ram.total <= 2 * _SLACK:
        return []
    slack = (ram.end - _SLACK, ram.end)
    words = "8 MiB of slack at the end of the guest's map"
    return [(Choice(), Choice(reserved=(slack,), words=words))]


# -- which release ---------------------------------------------------------------------------------


def releases_that_print_like(named: str, facts: Sequence[Fact], mode: PagingMode) -> list[str]:
    """Return the releases to try: the one named, or all that print in this form.

    Kernels between two releases (-rc, -tip) may print like the next: then that is tried too. Where
    no release prints all of it, those that print most of it are tried.
    """
    first: dict[type[Fact], Fact] = {}
    for fact in facts:
        first.setdefault(type(fact), fact)
    if named and _unlike(named, first, mode) == 0:
        return [named]
    unlike = {series: _unlike(series, first, mode) for series in all_series()}
    least = min(unlike.values())
    if not named:
        return [series for series, count in unlike.items() if count == least]
    alike = [series for series, count in unlike.items() if count == 0]
    later = [series for series in alike if leading_version(series) > leading_version(named)]
    return [named, *later[:1]]


def _unlike(release: str, first: Mapping[type[Fact], Fact], mode: PagingMode) -> int:
    """Return how many kinds of lines a release does not print, or not in this form."""
    words = Words(leading_version(release), mode.is_32bit)
    return sum(
        not words.shows(kind) or _render(fact, words) not in (None, fact.text.strip())
        for kind, fact in first.items()
    )


def _render(fact: Fact, words: Words) -> str | None:
    """Return how a release prints a fact; None where the form tells nothing."""
    text: str | None = None
    if isinstance(fact, LastPfn):
        text = words.last_pfn(fact.pfn, fact.max_arch_pfn)
    elif isinstance(fact, MappedRange):
        text = words.mapped_range(*(fact.span or (0, 0)))
        if fact.span is None and not words.hides_ranges:
            text = ""
    elif isinstance(fact, PageRange):
        text = words.page_range(fact.start, fact.end, fact.page).strip()
    elif isinstance(fact, TableBlock):
        text = words.table_block(fact.up_to, fact.start, fact.end)
    return text
