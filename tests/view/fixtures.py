"""Runs to look at, made once; and machines and plugins that say hostile things wherever anything
can be said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import attrs
import pytest

from paravirt_mm import (
    API_VERSION,
    Boot,
    BootState,
    Finding,
    KernelPanic,
    Machine,
    Map,
    Promise,
    Provenance,
    Run,
    Scenario,
    bundled,
    hookimpl,
)
from paravirt_mm.testing import registry_with
from paravirt_mm.view.survey import Subject, survey

ALLOCATORS = (
    "legacy_linear:kernel=2.6.39",
    "legacy_linear:kernel=3.6",
    "incremental:variant=linux,kernel=4.19",
    "incremental:variant=hpa",
)
MACHINES = ("asus-l8400-256m", "lenovo-x230-8g", "pae-4g", "sun-x4600m2-256g")


@pytest.fixture(scope="session")
def subjects() -> list[Subject]:
    """Four machines: one that Xen refuses, one on which a kernel panics."""
    return list(survey((bundled(name) for name in MACHINES), ALLOCATORS))


@pytest.fixture(scope="session")
def runs() -> dict[tuple[str, str], Run]:
    """Runs of one machine by allocator and backend."""
    machine = bundled("lenovo-x230-8g")
    specs = ("legacy_linear:kernel=2.6.39", "legacy_linear:kernel=3.6", "incremental:variant=hpa")
    return {
        (spec, backend): Scenario.of(machine, spec, backend).run()
        for spec in specs
        for backend in ("native", "xen")
    }


SCRIPT = "<script>window.hit=1</script></script><img src=x onerror=window.hit=1>"
QUOTES = "\"'`><svg/onload=window.hit=1> onmouseover=window.hit=1 {{7*7}} ${7*7} -->"
BIDI = "admin\u202egnp.exe\u2066\u200f"
CONTROL = "bell\x07\x1b[2J\x1b]0;title\x07\u2028\u2029\x00\x85"
LONG = "W" * 10_000
EVERYTHING = SCRIPT + QUOTES + BIDI + CONTROL + LONG


@attrs.frozen
class Liar:
    """An allocator whose every text is hostile, and which panics in hostile words."""

    pvmm_api: ClassVar[int] = API_VERSION

    word: str = EVERYTHING

    @hookimpl
    def pvmm_promise(self, boot: Boot) -> Promise:
        return Promise(tuple(boot.memblock.memory(0, boot.machine.map_limit)))

    @hookimpl
    def pvmm_map_steps(self, boot: Boot) -> Iterable[Map]:
        yield Map(0, 1 << 21, label=self.word)
        raise KernelPanic(self.word, 3)


@attrs.frozen
class LiarsPlatform:
    """A backend that names places in hostile words."""

    pvmm_api: ClassVar[int] = API_VERSION

    @hookimpl
    def pvmm_boot_state(self, machine: Machine) -> BootState:
        return BootState(
            mapped=((0, 1 << 30),),
            max_pfn_mapped=1 << 18,
            features=machine.features,
            places=((EVERYTHING, (1 << 22, 1 << 23)),),
        )


@attrs.frozen
class Gossip:
    """An observer with hostile findings and figures."""

    pvmm_api: ClassVar[int] = API_VERSION

    @hookimpl
    def pvmm_check(self, run: Run) -> Iterable[Finding]:
        return [Finding(6, 1, 4096, text) for text in (SCRIPT, QUOTES, BIDI, CONTROL, LONG)]

    @hookimpl
    def pvmm_figures(self, run: Run) -> Mapping[str, str]:
        return {EVERYTHING: EVERYTHING, "=cmd|' /C calc'!A0": "=1+1"}


@pytest.fixture(scope="session")
def hostile_subjects() -> list[Subject]:
    """Two machines with hostile texts, under plugins that add theirs."""
    registry = registry_with(liar=Liar, liars_platform=LiarsPlatform, gossip=Gossip)
    base = bundled("qemu-pae-320m")
    machines = [
        attrs.evolve(
            base,
            name=name,
            provenance=Provenance(
                source=EVERYTHING, title=title, kernel_release=QUOTES, assumed=(EVERYTHING, BIDI)
            ),
        )
        for name, title in ((EVERYTHING, EVERYTHING), ("=HYPERLINK(1)", BIDI + CONTROL))
    ]
    return list(
        survey(
            machines,
            ["liar", "incremental:variant=hpa", "legacy_linear:kernel=3.6"],
            ["liars_platform", "native"],
            registry,
        )
    )
