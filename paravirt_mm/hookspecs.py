"""The contract between the core and its plugins: every hook, in the order in which a run calls
them.

How to read this file
    A **scenario** is one machine, one *allocator* and one *backend*. The allocator decides where
    page-table pages come from and in which order memory is mapped; the backend decides what the
    platform demands of a page before it may be a table. Plugins decide, the core acts: a hook gets
    read-only views and returns a value. Only the core changes state, counts, and writes the trace.

How to write a plugin
    A class made with ``attrs.frozen`` whose fields are its options, whose methods named
    ``pvmm_...`` carry ``@hookimpl``, and whose attribute ``pvmm_api`` is `API_VERSION`; registered
    under the entry-point group ``paravirt_mm``. What it implements makes it an allocator
    (`pvmm_map_steps`), a backend (`pvmm_boot_state`), or an observer (neither), and it answers the
    hooks of that role only. A hook may take fewer parameters than its specification, never others,
    and none with a default value.

How a run goes
    ``pvmm_features`` → (``pvmm_kernel_file`` → ``pvmm_boot_kernel``) → ``pvmm_kernel_image`` →
    ``pvmm_boot_state`` → ``pvmm_promise`` → then for each step that ``pvmm_map_steps`` yields:

    - (``pvmm_memory_taken``) before each of them
    - `Map`: split by page size → (``pvmm_reserve_tables``) → for each piece
      ``pvmm_allocate_tables``, ``pvmm_write_entries``, ``pvmm_map_readonly`` → hand over
      (``pvmm_make_readonly``, ``pvmm_pin_tables``) and attach (``pvmm_write_entries``), at once or
      at a later step → (``pvmm_release_tables``, ``pvmm_make_writable``).
    - `NewRoot`, `HandOverTables`, `AttachTables`, `ActivateRoot` (``pvmm_activate_cr3``).

    Hooks are called per run of pages, never per page or entry. A panic of the modelled kernel is
    raised as `KernelPanic`; a refusal by the platform is returned as `Refusal`; that the plugin's
    options do not fit the machine is raised as `SpecError`, best before `pvmm_promise`. Each ends
    the run with a verdict, and none is an error.

All addresses are bytes and all ends exclusive, unless a name says pfn.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from paravirt_mm.about import Choice, DefaultSpec
from paravirt_mm.engine.answers import Cost, EntryWrite, Refusal
from paravirt_mm.engine.boot import Boot, Promise
from paravirt_mm.engine.pages import PageRun, TablePages
from paravirt_mm.engine.recorded import KernelFile, RecordedBoot
from paravirt_mm.engine.split import Piece
from paravirt_mm.engine.steps import Map, Step, StepResult, TableDemand
from paravirt_mm.engine.tables import Batch
from paravirt_mm.engine.trace import Event
from paravirt_mm.invariants.rules import Finding
from paravirt_mm.machine.model import BootState, CpuFeatures, KernelImage, Machine
from paravirt_mm.run import Run
from paravirt_mm.sources.bootlog.facts import Fact
from paravirt_mm.sources.bootlog.lines import LogLine

if TYPE_CHECKING:
    import click

PROJECT = "paravirt_mm"
"""Name of the pluggy project and of the entry-point group."""

API_VERSION = 1
"""Raised when a hook changes in a way that breaks plugins. A plugin states the version it was
written for in ``pvmm_api``: this number, or with the minor one as text ("1.1") if it needs hooks or
parameters that came with that.
"""

API_MINOR = 1
"""Raised when hooks or parameters are added. What was written for a lower one goes on working."""

DEPRECATED: dict[str, str] = {}
"""Hooks, and parameters as ``hook.parameter``, that go away with the next version: what to do
instead. Whoever has one is warned, by name, when the plugin is loaded.
"""

PREFIX = "pvmm_"
"""How the name of every hook begins."""

hookimpl = pluggy.HookimplMarker(PROJECT)
_hookspec = pluggy.HookspecMarker(PROJECT)


class Role(StrEnum):
    """What a plugin is in a scenario; the hooks that it implements decide."""

    ALLOCATOR = "allocator"
    BACKEND = "backend"
    OBSERVER = "observer"
    """Neither: it watches, checks and adds, when it is asked to."""


HOOKS: dict[str, frozenset[Role]] = {}
"""Every hook, and whose plugins may answer it."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _answered_by(*roles: Role) -> Callable[[_Function], _Function]:
    """Declare a hook that only plugins of these roles may answer."""

    def declare(function: _Function) -> _Function:
        HOOKS[function.__name__] = frozenset(roles)
        # A scenario has one allocator, one backend, and any number of observers.
        one = Role.OBSERVER not in roles and len(roles) == 1
        return _hookspec(firstresult=one)(function)

    return declare


_allocator = _answered_by(Role.ALLOCATOR)
_backend = _answered_by(Role.BACKEND)
_observer = _answered_by(Role.OBSERVER)
_allocator_or_backend = _answered_by(Role.ALLOCATOR, Role.BACKEND)
_anyone = _answered_by(*Role)


# -- before the first step ------------------------------------------------------------------------


@_backend
def pvmm_features(machine: Machine) -> CpuFeatures | None:
    """Backend: say which of the CPU's features the platform leaves visible. None: all of them.

    Called first of all. `BootState.features` says the same to the allocator's other hooks.
    """


@_allocator
def pvmm_kernel_file(machine: Machine) -> KernelFile | None:
    """Allocator: name the file of a real kernel, where that boots and nothing is modelled.

    None: the allocator is a model.
    """


@_backend
def pvmm_boot_kernel(machine: Machine, kernel_file: KernelFile) -> RecordedBoot | None:
    """Backend: boot a real kernel on the platform, with the machine's map, and say what it did.

    Called with what `pvmm_kernel_file` answered, which the backend may also find kept from an
    earlier run. From then on its costs are what that kernel asked for. None: the platform boots no
    kernels.
    """


@_allocator
def pvmm_kernel_image(
    machine: Machine, features: CpuFeatures, recorded: RecordedBoot | None
) -> KernelImage | None:
    """Allocator: say where the kernel lies, and how much brk it is linked with.

    ``machine.kernel`` is the image that the machine was found with; `KernelImage.with_brk` links it
    with another brk, which this allocator's tables come from. The platform loads what is answered
    here: boot mapping, reservations and what a domain builder puts behind the kernel follow. None:
    the image stays as it is. ``recorded`` is what `pvmm_boot_kernel` answered.
    """


@_backend
def pvmm_boot_state(machine: Machine) -> BootState:  # type: ignore[empty-body]
    """Backend: say what exists before the allocator's first step.

    Called once, with the kernel that `pvmm_kernel_image` answered. The answer tells what the boot
    page tables map, which pages they are, what the platform has taken for itself, and which CPU
    features it leaves visible (Xen PV hides large pages).
    """


@_allocator
def pvmm_promise(boot: Boot) -> Promise:  # type: ignore[empty-body]
    """Allocator: promise what the direct map will cover.

    Called once, before `pvmm_map_steps`. The run is checked against it: everything promised is
    mapped in the end, and nothing else.
    """


@_allocator
def pvmm_map_steps(boot: Boot) -> Generator[Step, StepResult, None]:  # type: ignore[empty-body]
    """Allocator: yield the steps of the run, one after the other.

    Each ``yield`` gives back the step's `StepResult`, and ``boot`` shows the progress made, so the
    next step can depend on both. Raise `KernelPanic` where the modelled kernel would give up.
    """


@_backend
def pvmm_memory_taken(boot: Boot, step: Step) -> Iterable[tuple[int, int]] | None:
    """Backend: say what memory (bytes, ascending, disjoint) the platform takes away before a step.

    Called before every step. What is taken is not free any more; that a page table, or a page that
    is set aside for one, lies in it breaks rule 1. None or nothing: memory stays as it is.
    """


# -- during a Map step ----------------------------------------------------------------------------


@_allocator
def pvmm_reserve_tables(boot: Boot, step: Map, pieces: Sequence[Piece]) -> Sequence[PageRun]:  # type: ignore[empty-body]
    """Allocator: set pages aside for the tables of a `Map` step with ``reserve=True``.

    ``pieces`` is the range split by page size. Called before anything of the range is mapped. Raise
    `KernelPanic` where no space is found.
    """


@_allocator
def pvmm_allocate_tables(boot: Boot, step: Step, demand: TableDemand) -> Sequence[TablePages]:  # type: ignore[empty-body]
    """Allocator: give pages to be tables, exactly ``demand.count`` of them.

    Called once a piece (and once for `NewRoot`). The core deals the pages out in the order of the
    kernel's walk: ascending addresses, parents before children. It reserves pages from memblock by
    itself. Raise `KernelPanic` where the modelled kernel runs out of memory.
    """


@_backend
def pvmm_write_entries(boot: Boot, write: EntryWrite) -> Cost | Refusal | None:
    """Backend: say how entries of one kind get into tables of one level, or refuse them.

    Called for entries of new tables (plain memory), for leaf entries in tables that are already
    part of the tree, and for the entries that attach new tables. None: plain stores.
    """


@_backend
def pvmm_map_readonly(boot: Boot, start: int, end: int) -> Iterable[tuple[int, int]] | None:
    """Backend: say which parts of the new mapping ``[start, end)`` must not be writable.

    Answer with ascending page-aligned ranges inside it; None or nothing: map all of it writable.
    """


@_backend
def pvmm_make_readonly(boot: Boot, tables: Batch) -> Cost | Refusal | None:
    """Backend: take write access to the pages of finished tables away, and say what it takes.

    First of the two hand-over hooks. None: the platform does not ask for it, and nothing happens.
    """


@_backend
def pvmm_pin_tables(boot: Boot, tables: Batch) -> Cost | Refusal | None:
    """Backend: tell the platform that pages are tables; ``Cost.pinned`` says how many of which
    level.

    Second of the two hand-over hooks. Levels that are not pinned count as validated when they are
    attached. None: nothing to tell.
    """


@_allocator
def pvmm_release_tables(boot: Boot, step: Map, surplus: Sequence[PageRun]) -> Sequence[PageRun]:  # type: ignore[empty-body]
    """Allocator: say what of the unused reservation is given back. Called at the end of a step with
    ``reserve=True``.
    """


@_backend
def pvmm_make_writable(boot: Boot, pages: Sequence[PageRun]) -> Cost | Refusal | None:
    """Backend: give write access back to all released pages, whatever they were. None: they stay as
    they are.
    """


# -- other steps ----------------------------------------------------------------------------------


@_backend
def pvmm_activate_cr3(boot: Boot, root: Batch | None) -> Cost | Refusal | None:
    """Backend: load CR3. ``root`` holds the new root table, None stands for the one that exists
    since boot.
    """


# -- around runs ----------------------------------------------------------------------------------


@_observer
def pvmm_begin() -> None:
    """Observer: a command begins, and its scenarios follow. The place to open a file.

    Called once a process; a command that had to stop a scenario goes on in a new one.
    """


@_observer
def pvmm_end() -> None:
    """Observer: no scenario follows. The place to flush and close."""


@_observer
def pvmm_observe(event: Event) -> None:
    """Observer: an event has just been added to the trace. Called for every event, in order."""


@_anyone
def pvmm_check(run: Run) -> Iterable[Finding] | None:
    """Anyone: more broken rules of a finished run; the verdict becomes ``violation``.

    Called once a run that neither panicked nor was refused, before `pvmm_figures`. The Xen backend
    replays the run on its model of the hypervisor here (rule 6 of `paravirt_mm.invariants.rules`),
    which takes far longer than the run itself: only if ``run.thorough`` says so.
    """


@_anyone
def pvmm_figures(run: Run) -> Mapping[str, int | float | str] | None:
    """Anyone: extra columns for the comparison, by name. Called once a finished run."""


@_anyone
def pvmm_machines() -> Iterable[Machine] | None:
    """Anyone: more machines, selectable by name like the ones that ship with the package."""


@_anyone
def pvmm_report_formats() -> Mapping[str, Any] | None:
    """Anyone: more output formats: a name, and a function from row dictionaries to text."""


@_anyone
def pvmm_verifiers() -> Iterable[click.Command] | None:
    """Anyone: more subcommands of ``paravirt-mm verify``, each checking a model against reality."""


@_anyone
def pvmm_check_log(facts: Sequence[Fact]) -> Iterable[LogLine] | None:
    """Anyone: predict lines of a boot log that are not Linux's, such as a hypervisor's.

    Called on default instances by `verify log`, with everything that was read from the log.
    """


# -- what plugins say about themselves: asked of default instances, by the commands that choose ----


@_allocator_or_backend
def pvmm_default_specs() -> Iterable[DefaultSpec] | None:
    """Allocator or backend: specs of itself for a comparison where nobody names any."""


@_allocator
def pvmm_models_kernel(release: str, mode: str, parameters: Sequence[str]) -> str | None:
    """Allocator: the spec of itself that models a kernel release ("3.6.11") in a paging mode
    ("x86_64"), or None.

    ``parameters`` are words of the kernel's command line that change how it allocates, such as
    "movable_node". The commands that compare with real kernels find their allocator by this.
    """


@_allocator
def pvmm_open_questions(release: str, mode: str) -> Iterable[Sequence[Choice]] | None:
    """Allocator: what the number of a release that it models leaves open (configuration, patches),
    question by question.

    Each is answered by one of its choices, the first of which is the usual one. `verify log` tries
    them all. `paravirt_mm.OpenQuestion` helps to keep them as a table.
    """


@_backend
def pvmm_models_platform(platform: str, release: str | None, mode: str) -> str | None:
    """Backend: the spec of itself that models what a kernel finds on a platform, or None.

    ``platform`` is what a boot log tells: "native" for bare hardware and what looks like it,
    "xen-pv"; ``release`` is the kernel's, None: no peculiarities of a release are wanted.
    """
