"""Xen PV: a page must be read-only and known to the hypervisor before it may be a page table.

This module is the backend as an allocator meets it: what exists when the domain starts, what a
status change costs, and what is refused with which code. It is checked against the rest of this
package: `replay` translates whole runs into hypercalls, which the model of the hypervisor's page
typing (`mmu`) and the real hypervisor (`live`) must accept and count as this module does.

Source: Xen's public interface (xen/include/public/xen.h), arch/x86/xen/mmu.c and mmu_pv.c of Linux
3.6 to 6.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from functools import cache, lru_cache, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

import attrs

from paravirt_mm import (
    API_VERSION,
    ISA_END,
    MIB,
    PAGE_SHIFT,
    PAGE_SIZE,
    Batch,
    Boot,
    BootState,
    Cost,
    CpuFeatures,
    DefaultSpec,
    EntryKind,
    EntryWrite,
    KernelFile,
    KernelPanic,
    Machine,
    MemoryMap,
    PageRun,
    RangeSet,
    RecordedBoot,
    Refusal,
    Span,
    SpecError,
    Version,
    Way,
    align_down,
    align_up,
    dotted,
    hookimpl,
    leading_version,
    parse_release,
)
from paravirt_mm_xen.domain.builders import NEWEST, RELEASES as BUILDERS, Builders, builders_of
from paravirt_mm_xen.domain.collisions import (
    HANDLINGS,
    NO_RELEASE,
    Collision,
    Fate,
    apart,
    boots,
    find_collisions,
    handling,
    releases,
    releases_that_boot,
    summary,
)
from paravirt_mm_xen.domain.layout import (
    BOOT_STACK,
    Arrangement,
    DomainKind,
    Given,
    P2mPlace,
    Part,
    TooLarge,
    built,
    extra_memory,
    first_allocation,
    loaded_kernel,
    static_tables,
    table_pages,
)
from paravirt_mm_xen.linux import (
    EXTRA_RESERVED_SINCE,
    HIGH_P2M_SINCE,
    IDENTITY_64BIT,
    IDENTITY_TABLES,
    LEAF_HYPERCALLS,
    MULTICALL_ENTRIES,
    UNMAPPED_INITRD_SINCE,
    WRITES_BACK_SINCE,
)

if TYPE_CHECKING:
    import click

    from paravirt_mm import Fact, Finding, LogLine, Run
    from paravirt_mm_xen.dom0.recording import Dom0Recording
    from paravirt_mm_xen.dom0.row import Charges

EINVAL, ENOMEM = -22, -12
_STORED, _EMULATED = Cost(), Cost(way=Way.EMULATED)


@lru_cache(maxsize=4096)
def _calls(pages: int, batches: int = 0) -> Cost:
    """Return what it costs to have pages mapped otherwise: there are few different costs."""
    return Cost({"update_va_mapping": pages}, batches)


@lru_cache(maxsize=4096)
def _updates(entries: int) -> Cost:
    """Return what it costs to have the hypervisor write entries."""
    return Cost({"mmu_update": entries}, way=Way.HYPERCALL)


@lru_cache(maxsize=4096)
def _pins(leaf_tables: int, batches: int) -> Cost:
    """Return what it costs to pin some L1 tables."""
    return Cost({"mmuext_op": leaf_tables}, batches, pinned={1: leaf_tables})


class TableEntries(StrEnum):
    """How an entry that refers to a table gets into one that the hypervisor does not know yet."""

    HYPERCALL = "hypercall"
    """As Linux does it: before struct page exists it cannot know whether a table is pinned, and
    takes it that all are (xen_set_pmd, xen_set_pud, xen_set_p4d).
    """
    STORE = "store"
    """As the design has it: what is still an ordinary page is written like one."""


_LEAF, _STORE = EntryKind.LEAF, TableEntries.STORE
"""As `paravirt_mm_xen.domain.layout.KERNEL`."""


@attrs.frozen
class Booted:
    """A real kernel that booted for a run: its recording, and what of it is not charged yet."""

    recording: Dom0Recording
    charges: Charges


@attrs.frozen
class Xen:
    """A Xen PV domain (dom0 or domU).

    domain
        Who builds it: ``dom0``, the hypervisor itself; ``domU``, the toolstack.
    kernel
        The Linux release that boots, for example ``6.1``. It decides whether initrd (3.18) and p2m
        list (4.3) are part of the initial mapping, and what happens where dom0 stands on memory
        that is no RAM on the host. Without it: both are mapped, as for every older
        kernel; on a host where none of these boots, as for the first that does.
    p2m
        Where the domain builder maps the list of machine frames: ``inline`` after the initrd,
        ``high`` at an address of its own, ``auto`` by the kernel or the size of the domain.
    table_entries
        How entries get into tables that are not handed over yet: ``hypercall`` as in Linux,
        ``store`` as the incremental design has it.
    xen
        The release of Xen, for example ``4.1``: what its builders do differently. Without it: what
        the newest do.
    replay_limit
        Thorough runs of guests up to this size (MiB of RAM; 512) are replayed on the model of the
        hypervisor; 0: none.
    hypervisor
        Where the Debian packages of a real Xen are unpacked, or a version that tools/fetch-xen.sh
        fetched: 4.14, 4.17, 4.20. An allocator that is a real kernel (``linux:image=``) boots as
        dom0 under it in QEMU, and is charged with what it asked for. Models stay models.
    """

    pvmm_api: ClassVar[int] = API_VERSION

    domain: DomainKind = DomainKind.DOM0
    kernel: str | None = None
    p2m: P2mPlace = P2mPlace.AUTO
    table_entries: TableEntries = TableEntries.HYPERCALL
    xen: str | None = None
    replay_limit: int = 512
    hypervisor: str | None = None
    _booted: list[Booted] = attrs.field(init=False, factory=list, repr=False, eq=False)
    """None or one."""

    def __attrs_post_init__(self) -> None:
        if self.hypervisor is not None and self.domain is not DomainKind.DOM0:
            raise SpecError("hypervisor boots a kernel as dom0: leave out domain=domU")
        if self._release is not None and self.domain is DomainKind.DOM0:
            handling(self._release)
        if not 0 <= self.replay_limit <= 4096:
            raise SpecError(f"replay_limit is {self.replay_limit}, not in 0..4096 MiB")
        _builders(self.xen)

    @property
    def _release(self) -> Version | None:
        """The kernel's release as numbers: of the one that booted, or the one that is named. Raises
        `SpecError` where it is none.
        """
        if self._booted:
            return parse_release(self._booted[0].recording.release)
        return None if self.kernel is None else parse_release(self.kernel)

    @property
    def _passes_leaves(self) -> bool:
        """Whether the kernel has the hypervisor write leaf entries, too."""
        first, after = LEAF_HYPERCALLS
        return self._release is not None and first <= self._release < after

    def _given(self, machine: Machine, release: Version | None) -> Given:
        """Return what the builder is given for a domain that owns all RAM of a machine, with a
        kernel of ``release`` (None: as before there were choices).
        """
        builders = _builders(self.xen)
        by_guest = self.domain is DomainKind.DOMU
        unmapped = builders.guest_unmapped_initrd if by_guest else builders.dom0_unmapped_initrd
        high = builders.guest_high_p2m if by_guest else builders.dom0_high_p2m
        p2m = self.p2m
        if p2m is P2mPlace.AUTO and (release is not None or not high):
            p2m = P2mPlace.HIGH if high and (release or ()) >= HIGH_P2M_SINCE else P2mPlace.INLINE
        initrd = machine.initrd
        given = Given(
            mode=machine.mode,
            kernel=loaded_kernel(machine).loaded,
            pages=(machine.memory_map.ram_pages().total - self._slack) // PAGE_SIZE,
            initrd_bytes=initrd[1] - initrd[0] if initrd else 0,
            initrd_mapped=not unmapped or (release or ()) < UNMAPPED_INITRD_SINCE,
            p2m=p2m,
            kind=self.domain,
            builders=builders,
            gbpages=machine.features.gbpages,
        )
        clips = builders.clips_dom0 and not by_guest and given.p2m_inline
        return given.clipped if clips else given

    @property
    def _slack(self) -> int:
        """Bytes at the end of the memory map behind which there is no memory."""
        return _builders(self.xen).guest_slack if self.domain is DomainKind.DOMU else 0

    @hookimpl
    def pvmm_features(self, machine: Machine) -> CpuFeatures:
        """Hide large pages: the hypervisor counts references by 4 KiB frames."""
        return CpuFeatures(pse=False, gbpages=False, nx=machine.features.nx)

    @hookimpl
    def pvmm_boot_kernel(self, machine: Machine, kernel_file: KernelFile) -> RecordedBoot | None:
        """Boot a real kernel as dom0 under the real hypervisor, if there is one."""
        if self.hypervisor is None:
            return None
        from paravirt_mm_xen.dom0.host import host_of
        from paravirt_mm_xen.dom0.kept import recorded
        from paravirt_mm_xen.dom0.row import Charges, recorded_boot

        recording = recorded(kernel_file, self.hypervisor, host_of(machine))
        boot = recorded_boot(recording, machine)
        self._booted[:] = [Booted(recording, Charges.of(recording))]
        return boot

    @hookimpl
    def pvmm_boot_state(self, machine: Machine) -> BootState | Refusal:
        """Say what the domain builder has mapped; its tables, grafted by Linux, begin the direct
        map.

        A kernel that finds what it cannot move on something else than RAM panics.
        """
        mode = machine.mode
        if mode.name not in ("x86_64", "i386-pae"):
            return Refusal(f"domain builder: there are no PV guests with {mode.title}", EINVAL)
        given = self._given(machine, self._release)
        try:
            layout = built(given)
        except TooLarge as error:
            return Refusal(f"domain builder: {error}", ENOMEM)
        found = self._on_no_ram(machine, layout.places)
        if self._release is not None and found:
            fatal = [one for one in found if one.outcome(self._release) is Fate.PANIC]
            if fatal:
                raise KernelPanic(f"memory conflicts with E820 map: {', '.join(map(str, fatal))}")
        elif found:
            first = next(filter(partial(self._copes, machine), releases()), None)
            if first is None:
                worst = max(found, key=lambda one: one.outcome(HANDLINGS[-1].since))
                return Refusal(f"domain builder: {worst}: {NO_RELEASE}", EINVAL)
            if not any(boots(found, one.since) for one in HANDLINGS):
                given = self._given(machine, first)
                layout = built(given)
        return self._boot_state(machine, layout, given.pages)

    def _boot_state(self, machine: Machine, layout: Arrangement, pages: int) -> BootState:
        """Return the state of a domain of so many pages: RAM beyond is kept for its balloon."""
        mode = machine.mode
        identity = self._identity_tables(machine, layout.end)
        end = layout.end + identity * mode.table_span(1)
        kernel = loaded_kernel(machine)
        static = static_tables(mode, kernel, layout, identity)
        mapped = RangeSet([(0, end)])
        mapped.discard(*layout.page_tables)
        mapped.discard(*static)
        # A 64-bit kernel's own limit for early allocations is where the p2m list begins: what
        # follows belongs to the domain builder. A 32-bit one counts what it has mapped itself.
        limit = layout.p2m[0] if layout.p2m else layout.end
        limit = end if mode.is_32bit else limit
        tables: dict[int, tuple[Span, ...]] = {
            level: ((0, align_up(end, mode.table_span(level))),)
            for level in range(1, mode.root_level)
        }
        # The boot stack is free: the kernel has one of its own from its first instructions on.
        places = layout.places
        kept = [static, *[span for part, span in places if part is not BOOT_STACK]]
        kept += _behind(machine.memory_map, pages)
        if (self._release or ()) >= EXTRA_RESERVED_SINCE:
            kept += extra_memory(machine.memory_map)
        # RAM that the mode has no addresses for is nobody's: it cannot be kept for anybody.
        taken = RangeSet(kept).below(1 << mode.physical_bits)
        return BootState(
            mapped=tuple(mapped),
            max_pfn_mapped=limit >> PAGE_SHIFT,
            features=self.pvmm_features(machine),
            kernel=kernel,
            reserved=tuple(
                [(align_down(low, PAGE_SIZE), align_up(high, PAGE_SIZE)) for low, high in taken]
            ),
            # The builder's, and the kernel's own into which they are grafted.
            boot_tables=(layout.page_tables, static),
            tables=MappingProxyType(tables),
            table_pages=MappingProxyType(table_pages(mode, layout, static, self.domain, identity)),
            direct_mapped=((0, end),),
            typed=True,
            places=places,
        )

    def _identity_tables(self, machine: Machine, end: int) -> int:
        """Return how many L1 tables the kernel itself adds behind the initial mapping."""
        first, after = IDENTITY_64BIT
        if not machine.mode.is_32bit and not first <= (self._release or ()) < after:
            return 0
        left = -(-max(0, (machine.max_pfn << PAGE_SHIFT) - end) // machine.mode.table_span(1))
        return min(IDENTITY_TABLES, left)

    @hookimpl
    def pvmm_map_readonly(self, boot: Boot, start: int, end: int) -> Iterable[Span]:
        """Map read-only what is a table, or is set aside to become one (mask_rw_pte)."""
        tables = tuple(boot.table_pages(start, end))
        if not boot.reservation or (self._release or WRITES_BACK_SINCE) < WRITES_BACK_SINCE:
            return tables
        return tuple(RangeSet([*tables, *boot.reserved_pages(start, end)]))

    @hookimpl
    def pvmm_write_entries(self, write: EntryWrite) -> Cost | Refusal:
        """Leaf entries are stores, which Xen emulates in a table that it knows, or go through it
        (4.19 to 5.15); entries that refer to tables go through it.
        """
        if self._booted:
            return self._booted[0].charges.written(write)
        if write.kind is _LEAF:
            if write.live and write.level > 1:
                return Refusal(f"mmu_update: large page in an L{write.level} entry", EINVAL)
            if self._passes_leaves and write.level == 1:
                return _updates(write.count)
            if not write.live:
                return _STORED
            return _EMULATED
        if not write.live and self.table_entries is _STORE:
            return _STORED
        if write.live and not write.readonly_children:
            return Refusal(f"mmu_update: L{write.level} entry to a writable page", EINVAL)
        return _updates(write.count)

    @hookimpl
    def pvmm_make_readonly(self, boot: Boot, tables: Batch) -> Cost:
        """Take write access from the pages' mappings, one update_va_mapping a page.

        A page that is not mapped yet needs none; its mapping will be read-only from the start.
        """
        if self._booted:
            return self._booted[0].charges.made_readonly(tables)
        mapped = _mapped(boot, tables.runs)
        if not mapped:
            return _STORED
        return _calls(mapped, _batches(boot, mapped))

    @hookimpl
    def pvmm_pin_tables(self, boot: Boot, tables: Batch) -> Cost | Refusal | None:
        """Pin L1 tables; tables above are validated when they are attached."""
        if self._booted:
            return self._booted[0].charges.pinned(tables)
        leaf_tables = tables.tables(1)
        root = boot.mode.root_level
        large = [level for level in tables.leaf_levels if level > 1 and tables.tables(level)]
        # L2 and L3 tables are not pinned: they are refused when they are to be attached, or
        # together with the root of a new tree.
        if large and not any(root in batch.spans for batch in boot.waiting):
            return Refusal(
                f"mmu_update: L{large[0] + 1} entry to a table with a large page", EINVAL
            )
        if not boot.ledger.is_readonly(tables.runs):
            return Refusal("MMUEXT_PIN_TABLE: page is mapped writable", EINVAL)
        if not leaf_tables:
            return None
        return _pins(leaf_tables, _batches(boot, leaf_tables))

    @hookimpl
    def pvmm_make_writable(self, boot: Boot, pages: Sequence[PageRun]) -> Cost | None:
        """Give write access back, one update_va_mapping a mapped page, read-only or not
        (xen_mapping_pagetable_reserve, 2.6.39 to 3.8; earlier kernels map no page read-only before
        it is a table).
        """
        if self._release is not None and self._release < WRITES_BACK_SINCE:
            return None
        return _calls(_mapped(boot, pages))

    @hookimpl
    def pvmm_activate_cr3(self, boot: Boot, root: Batch | None) -> Cost | Refusal:
        """Load CR3; a new root is pinned first, and the old one unpinned afterwards.

        Linux loads the root that it has once more and flushes the TLB (end of init_mem_mapping).
        """
        if self._booted:
            return self._booted[0].charges.at_the_end()
        if root is None:
            return Cost(hypercalls={"mmuext_op": 2}, flushes=2)
        if not boot.ledger.is_readonly(root.runs):
            return Refusal("MMUEXT_PIN_TABLE: root is mapped writable", EINVAL)
        if any(any(boot.tree.leaves(level)) for level in boot.tree.leaf_levels if level > 1):
            return Refusal("MMUEXT_PIN_TABLE: a table below has a large page", EINVAL)
        return Cost(
            hypercalls={"mmuext_op": 3}, pinned={boot.mode.root_level: root.count}, flushes=1
        )

    @hookimpl
    def pvmm_figures(self, run: Run) -> Mapping[str, int | float | str] | None:
        """Add columns: ``model``, whether the model of the hypervisor accepts the run;
        ``hypercalls_clearing``, what Linux would spend on entries that stay empty (see `clears`);
        ``dom0_collisions``, how many parts of dom0 stand on something else than RAM, and
        ``dom0_stands_on``, which, and what Linux makes of it; ``booted``, what really booted.
        """
        from paravirt_mm_xen.empty_entries import cleared_entries

        if not run.trace.begun:
            return None
        machine = run.machine
        booted = self._booted[0] if self._booted else None
        cleared = booted.charges.cleared if booted else cleared_entries(run.trace)
        figures: dict[str, int | float | str] = {
            "model": self._told_of_model(run),
            "hypercalls_clearing": sum(cleared.values()),
        }
        if booted:
            figures["booted"] = f"Linux {booted.recording.release} on Xen {booted.recording.xen}"
        if self.domain is DomainKind.DOM0:
            figures.update(self._collision_figures(machine, run.trace.start.boot))
        return figures

    def _collision_figures(self, machine: Machine, state: BootState) -> dict[str, int | str]:
        if self._has_room(machine, state):
            return {"dom0_collisions": 0}
        places = [(part, span) for part, span in state.places if isinstance(part, Part)]
        found = self._on_no_ram(machine, places)
        if self._release is not None:
            told = summary(found, self._release)
        else:
            needed = self._releases_that_boot(machine)
            told = ": ".join(filter(None, [", ".join(map(str, found)), needed]))
        figures: dict[str, int | str] = {"dom0_collisions": len(found)}
        return {**figures, "dom0_stands_on": told} if told else figures

    def _has_room(self, machine: Machine, state: BootState) -> bool:
        """Tell whether there is nothing but RAM wherever any kernel's domain could lie: that spares
        working it out for each.
        """
        spans = *state.direct_mapped, *[span for _, span in state.places]
        end = max([high for _, high in spans])
        return self._host(machine).ram_pages().covers(ISA_END, 3 * first_allocation(end))

    def _host(self, machine: Machine) -> MemoryMap:
        """Return the map that decides what a domain stands on: its own, where the host's is not
        known, or is none that a guest sees.
        """
        if machine.host_map is None or self.domain is DomainKind.DOMU:
            return machine.memory_map
        return machine.host_map

    def _on_no_ram(self, machine: Machine, places: Iterable[tuple[Part, Span]]) -> list[Collision]:
        """Return what of a domain stands on something else than RAM; for dom0 the host decides."""
        pages = machine.memory_map.ram_pages().total // PAGE_SIZE
        return find_collisions(apart(places, loaded_kernel(machine)), self._host(machine), pages)

    def _releases_that_boot(self, machine: Machine) -> str:
        """Return in words which releases of Linux boot where they would lie; empty: all."""
        # Most lie where the one before did.
        collisions = cache(partial(self._collisions, machine))
        return releases_that_boot(
            lambda release: _boots(collisions(self._given(machine, release)), release)
        )

    def _copes(self, machine: Machine, release: Version) -> bool:
        """Tell whether a release of Linux boots where it would lie."""
        return _boots(self._collisions(machine, self._given(machine, release)), release)

    def _collisions(self, machine: Machine, given: Given) -> list[Collision] | None:
        """Return what of a domain would stand on something else than RAM; None: it is too large."""
        try:
            return self._on_no_ram(machine, built(given).places)
        except TooLarge:
            return None

    @hookimpl
    def pvmm_check(self, run: Run) -> list[Finding]:
        """Check rule 6 of a thorough run: replay it on the model of the hypervisor."""
        if self._not_replayed(run):
            return []
        from paravirt_mm_xen.replay import findings

        return findings(run.trace)

    def _not_replayed(self, run: Run) -> str:
        """Say in words why a run is not replayed; empty: it is."""
        if run.machine.mode.is_32bit:
            return "not verified on a real hypervisor"
        if run.machine.memory_map.ram_pages().total > self.replay_limit * MIB:
            return f"not asked, the guest has over {self.replay_limit} MiB (replay_limit)"
        return "" if run.thorough else "not asked (`run` asks, as every thorough run)"

    def _told_of_model(self, run: Run) -> str:
        """Say in words what the model of the hypervisor makes of a run."""
        if why := self._not_replayed(run):
            return why
        from paravirt_mm_xen.replay import RULE

        said = (finding.message for finding in run.findings if finding.rule == RULE)
        return next((f"refuses: {message}" for message in said), "accepts")

    @hookimpl
    def pvmm_check_log(self, facts: Sequence[Fact]) -> list[LogLine]:
        """Compare the arrangement that Xen printed about a dom0 with the predicted one."""
        from paravirt_mm_xen.domain.arrangement_log import check_arrangement

        return check_arrangement(facts)

    @hookimpl
    def pvmm_default_specs(self) -> Iterable[DefaultSpec]:
        """Stand beside bare hardware."""
        return (DefaultSpec("xen", 20),)

    @hookimpl
    def pvmm_models_platform(self, platform: str, release: str | None) -> str | None:
        """Model what a PV kernel finds, dom0 as a rule."""
        version = leading_version(release)[:3]
        kernel = f"kernel={dotted(version)}" if len(version) > 1 else ""
        if platform == "xen-pv-guest":
            return ",".join(filter(None, ["xen:domain=domU", kernel]))
        if platform != "xen-pv":
            return None
        is_dom0 = kernel and version >= HANDLINGS[0].since
        return f"xen:{kernel}" if is_dom0 else "xen"

    @hookimpl
    def pvmm_verifiers(self) -> Iterable[click.Command]:
        """Add ``verify xen``."""
        from paravirt_mm_xen.command import xen

        return (xen,)


def _builders(release: str | None) -> Builders:
    """Return the builders of a release. Raises `SpecError` for what is none, or too old."""
    if release is None:
        return NEWEST
    builders = builders_of(parse_release(release))
    if builders is None:
        raise SpecError(f"Xen {release} is older than {dotted(BUILDERS[0].since)}")
    return builders


def _boots(found: list[Collision] | None, release: Version) -> bool:
    return found is not None and boots(found, release)


def _behind(memory: MemoryMap, pages: int) -> Iterator[Span]:
    """Yield the RAM that is left when the lowest ``pages`` pages of it are a domain's."""
    room = pages * PAGE_SIZE
    for low, high in memory.ram_pages():
        if high - low > room:
            yield low + room, high
        room = max(0, room - (high - low))


def _mapped(boot: Boot, pages: Iterable[PageRun]) -> int:
    """Return how many of some pages the kernel has a mapping of."""
    return (
        sum([high - low for run in pages for low, high in boot.reachable(*run.span)]) // PAGE_SIZE
    )


def _batches(boot: Boot, operations: int) -> int:
    """Tables that wait are handed over together, so their operations share multicalls."""
    return -(-operations // MULTICALL_ENTRIES) if boot.oldest_waiting else 0
