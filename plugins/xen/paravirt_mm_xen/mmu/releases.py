"""What differs between hypervisor builds, as data: one row for each behaviour, found by version.

In every release listed the functions that update entries and count type references (mod_l*_entry,
_get_page_type, _put_page_type) come to the same in the sources. What is left are accidents of the
code that a guest can see, codes that were corrected, and what a build was compiled with.
"""

from __future__ import annotations

import re
from typing import Final

from attrs import frozen

from paravirt_mm_xen.mmu.codes import EACCES, EINVAL


@frozen
class Release:
    """Visible behaviour of hypervisor builds, from one version on."""

    name: str
    """The first version that behaves so, ``major.minor`` or with the point release."""

    builds: tuple[str, ...] = ()
    """Versions whose answers were recorded, and agree. Empty: read in the sources only."""

    forgets_nested_failure: bool = True
    """An L3 fails in its slot 0, over a half-checked L2 below it, and stands itself in a slot other
    than 0 of an L4: then the L4 takes the only place in which Xen remembers a table to clean up.
    The L2 keeps its type and its one reference.  It reads as untyped, but cannot be mapped writable
    until it is validated as an L2 again.  (``promote_l4_table`` has an assertion there, which
    release builds compile to nothing.)  False: the L2 is cleaned up as well."""

    leaves_xen_slots: bool = True
    """A frame that was an L4 keeps what Xen wrote into slots 256..271, and among it a writable
    entry of the frame itself in slot 258: it cannot become a table of another level until the
    guest clears them.  False: Xen's slots are cleared with the type."""

    names_former_type: bool = False
    """``XEN_DOMCTL_getpageframeinfo3`` tells the type of a frame's last use even after that ended,
    or was refused half-way.  False: only of a frame that is validated or pinned (from 4.16 on:
    "x86/PV: make post-migration page state consistent")."""

    flush_all_caches_refusal: int = EINVAL
    """The code of ``MMUEXT_FLUSH_CACHE_GLOBAL`` for a guest that may not flush caches.  EACCES, as
    for ``MMUEXT_FLUSH_CACHE``, since "x86/pv: fix MMUEXT_FLUSH_CACHE to flush all pCPU caches"
    (2025), which went into 4.21 and into the point releases listed."""

    shadow_paging: bool = False
    """Compiled with CONFIG_SHADOW_PAGING, as Debian's package of the release is.  It decides what
    becomes of a guest that stores an entry by which the CPU's L1 cache could be read
    (``pv_l1tf_check_pte``): it goes on under shadow tables, or is crashed."""

    @property
    def verified(self) -> bool:
        """Whether recorded answers of a real build agree with the model."""
        return bool(self.builds)


RELEASES: Final = {
    release.name: release
    for release in (
        Release("4.14", ("4.14.6",), names_former_type=True, shadow_paging=True),
        Release("4.15", names_former_type=True),
        Release("4.16"),
        Release("4.17", ("4.17.7",)),
        Release("4.18"),
        Release("4.18.5", flush_all_caches_refusal=EACCES),
        Release("4.19"),
        Release("4.19.3", flush_all_caches_refusal=EACCES),
        Release("4.20"),
        Release("4.20.1", ("4.20.5-pre",), flush_all_caches_refusal=EACCES),
        Release("4.21", flush_all_caches_refusal=EACCES),
        Release("ideal", forgets_nested_failure=False, leaves_xen_slots=False),
    )
}
"""By name, in order.  ``ideal`` is no real build: the rules without the accidents."""

RECORDED: Final = RELEASES["4.17"]
"""The build (Debian's, without debug checks) whose answers were published; the default."""

_VERSION: Final = re.compile(r"([0-9]{1,3})\.([0-9]{1,3})(?:\.([0-9]{1,3}))?(?![0-9])")


def release_of(version: str) -> Release:
    """The row for a hypervisor that calls itself `version` (``4.20.5-pre``), or for a row's name.

    A version after the last row is taken to behave like that.  Raises KeyError for one before the
    first, and for what is no version.
    """
    if version in RELEASES:
        return RELEASES[version]
    asked = _numbers(version)
    rows = [row for row in RELEASES.values() if _VERSION.match(row.name)]
    found = [row for row in rows if asked is not None and (_numbers(row.name) or ()) <= asked]
    if not found:
        raise KeyError(version)
    return found[-1]


def _numbers(version: str) -> tuple[int, ...] | None:
    match = _VERSION.match(version)
    return tuple(int(number) for number in match.groups() if number) if match else None
