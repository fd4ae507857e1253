"""What differs between hypervisor builds, as data.

In every release listed the functions that update entries and count type references (mod_l*_entry,
_get_page_type, _put_page_type) read the same in the sources.  What is left are accidents of the
code that a guest can see.
"""

from __future__ import annotations

from typing import Final

from attrs import frozen


@frozen
class Release:
    """Visible behaviour of one hypervisor build."""

    name: str
    verified: bool
    """Whether recorded answers of this very build agree with the model."""

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


RELEASES: Final = {
    release.name: release
    for release in (
        Release("4.15", verified=False),
        Release("4.17.7", verified=True),
        Release("4.18", verified=False),
        Release("4.20", verified=False),
        Release("ideal", verified=False, forgets_nested_failure=False, leaves_xen_slots=False),
    )
}
"""By name.  ``ideal`` is no real build: the rules without the accidents."""

RECORDED: Final = RELEASES["4.17.7"]
"""The build (Debian's, without debug checks) whose answers were recorded; the default."""
