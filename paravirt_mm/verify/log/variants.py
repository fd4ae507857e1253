"""Which specs may model the kernel of a boot log: its release, and what the release leaves open.

The open questions stand in ``data/variants.json``, one entry a question, with the choices that real
kernels are known to have made.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import attrs

from paravirt_mm.machine.model import Machine, Span
from paravirt_mm.machine.release import leading_version
from paravirt_mm.options import PluginSpec
from paravirt_mm.registry import Registry
from paravirt_mm.verify.kernel.compare import models

DATA_FILE = Path(__file__).parent / "data" / "variants.json"

_SERIES: tuple[tuple[str, int, int], ...] = (
    ("2.6", 19, 39),
    ("3", 0, 19),
    ("4", 0, 20),
    ("5", 0, 19),
    ("6", 0, 18),
)
"""Mainline releases by major number: first and last minor number."""


@attrs.frozen
class Choice:
    """One answer to an open question: allocator options, and memory taken before (bytes)."""

    options: tuple[tuple[str, str], ...] = ()
    reserved: tuple[Span, ...] = ()
    words: str = ""


@attrs.frozen
class Candidate:
    """A way to model a log's kernel. ``unusual`` counts how far its choices are from the first."""

    release: str
    spec: str
    backend: str
    reserved: tuple[Span, ...]
    words: tuple[str, ...]
    unusual: int

    def machine(self, machine: Machine) -> Machine:
        """Return the machine with what this candidate says is taken."""
        return attrs.evolve(machine, reserved=(*machine.reserved, *self.reserved))


def all_series() -> Iterator[str]:
    """Yield every mainline release series that is modelled, oldest first."""
    for major, first, last in _SERIES:
        for minor in range(first, last + 1):
            yield f"{major}.{minor}"


def candidates(
    release: str, mode: str, default_backend: str, registry: Registry
) -> list[Candidate]:
    """Return the candidates for a release in a mode, the most usual first; none where no allocator
    models it.
    """
    spec = models(release, mode, registry)
    if spec is None:
        return []
    data = _data()
    allocator = PluginSpec.parse(spec).name
    backend = default_backend
    for entry in data["backends"]:
        if default_backend == "native" and _applies(entry, allocator, mode, release):
            backend = entry["backend"]
    questions = [
        [_choice(choice) for choice in entry["choices"]]
        for entry in data["questions"]
        if _applies(entry, allocator, mode, release)
    ]
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
            )
        )
    return sorted(found, key=lambda candidate: candidate.unusual)


def configuration() -> frozenset[str]:
    """Return the options that stand for a kernel's configuration, not for what its release does."""
    return frozenset(_data()["configuration"])


def _applies(entry: dict[str, Any], allocator: str, mode: str, release: str) -> bool:
    numbers = leading_version(release)
    return (
        entry["allocator"] == allocator
        and mode in entry["modes"]
        and leading_version(entry["since"]) <= numbers < leading_version(entry["before"])
    )


def _choice(data: dict[str, Any]) -> Choice:
    return Choice(
        tuple(data.get("options", {}).items()),
        tuple((int(low, 16), int(high, 16)) for low, high in data.get("reserved", ())),
        data.get("words", ""),
    )


@cache
def _data() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(DATA_FILE.read_text(encoding="utf-8"))
    return content
