"""Machines of our lab, and Emacs' org tables as a report format."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import attrs

from paravirt_mm import GIB, MIB, E820Type, Machine, MemoryMap, Provenance, hookimpl


@attrs.frozen
class LabMachines:
    """Machines of our lab."""

    pvmm_api: ClassVar[int] = 1

    @hookimpl
    def pvmm_machines(self) -> Iterable[Machine]:
        """Give two machines."""
        for gib in (2, 16):
            entries = [(0x1000, 0x9F000, E820Type.RAM), (MIB, 2 * GIB, E820Type.RAM), (4 * GIB, 4 * GIB + gib * GIB, E820Type.RAM)]
            yield Machine(f"lab-{gib}g", MemoryMap.sanitise(entries), provenance=Provenance(source="by hand", title=f"lab machine {gib}"))


@attrs.frozen
class OrgMode:
    """Emacs' org tables."""

    pvmm_api: ClassVar[int] = 1

    @hookimpl
    def pvmm_report_formats(self) -> Mapping[str, Any]:
        """Give the format org."""
        return {"orglab": org}


def org(rows: Iterable[Mapping[str, Any]]) -> str:
    rows = list(rows)
    names = list(rows[0]) if rows else []
    lines = ["| " + " | ".join(names) + " |", "|" + "+".join("-" * 5 for _ in names) + "|"]
    lines += ["| " + " | ".join(str(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(lines) + "\n"
