"""The words for memory types: in boot logs, /proc/iomem, /sys/firmware/memmap and Xen's logs."""

from __future__ import annotations

import re

from paravirt_mm.machine.e820 import E820Type

_LOG_TYPES = {kind.label: kind for kind in E820Type} | {
    "persistent (type 7)": E820Type.PMEM,
    "persistent": E820Type.PMEM,
    # Linux 7.2 as it boots as dom0; the other types it has other words for, too.
    "System RAM": E820Type.RAM,
    "device reserved": E820Type.RESERVED,
}
_RESOURCE_TYPES = {
    "system ram": E820Type.RAM,
    "system ram (kernel reserved)": E820Type.RAM,
    "reserved": E820Type.RESERVED,
    "unknown e820 type": E820Type.RESERVED,
    "acpi tables": E820Type.ACPI,
    "acpi non-volatile storage": E820Type.NVS,
    "unusable memory": E820Type.UNUSABLE,
    "persistent memory": E820Type.PMEM,
    "persistent memory (legacy)": E820Type.PRAM,
    "soft reserved": E820Type.SOFT_RESERVED,
}
_NUMBERED = re.compile(r"type (\d{1,10})$")


def log_type(text: str) -> E820Type | None:
    """Return the type that a boot log means; None where ``text`` names none.

    Numbers that Linux has no words for are printed as ``type 20`` and kept as they are.
    """
    text = text.strip()
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1]
    known = _LOG_TYPES.get(text)
    if known is not None:
        return known
    if numbered := _NUMBERED.match(text):
        number = int(numbered[1])
        return E820Type(number) if number < 1 << 32 else None
    return None


def resource_type(text: str) -> E820Type | None:
    """Return the type that a resource name of /proc/iomem or /sys/firmware/memmap means."""
    return _RESOURCE_TYPES.get(text.strip().lower())
